"""Audio-text models whose spaces are planted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_examples import half, numbered

from musae_utils.labels import CLAPLabeler, Label, candidate_texts, score_labels
from musae_utils.labels.words import CONCEPTS, concepts_in

TEXTS = ("melody on a flute", "with drums", "in D", "like rain")


class Planted:
    """A dimension for each text; active examples point to one. All lie near a common one."""

    name = "planted"

    def __init__(self, text=None):
        self.text = text

    def embed_sounds(self, sounds):
        n = len(TEXTS) + 1
        rows = np.array([np.random.default_rng(e.clip).normal(0, 0.1, n) for e in sounds])
        rows[:, -1] += [3.0 if e.activation > 0 else -1.0 for e in sounds]
        if self.text:
            rows[:, TEXTS.index(self.text)] += [1.5 * (e.activation > 0) for e in sounds]
        return rows

    def embed_texts(self, texts):
        rows = np.zeros((len(texts), len(TEXTS) + 1))
        for row, text in zip(rows, texts, strict=True):
            row[TEXTS.index(text) if text in TEXTS else 0] = 1.0
            row[-1] = 0.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("text", TEXTS)
def test_the_planted_text_is_the_label_and_its_score_tells_active_from_silent(text):
    named = CLAPLabeler(Planted(text), TEXTS)
    label = named.label(numbered(3).finding)
    assert (label.text, label.method, label.feature) == (text, "planted", 3)
    assert "Holm for 4 texts" in label.evidence
    scores = named.score(numbered(3).scoring.all, text)
    assert scores.shape == (20,) and scores[:10].min() > scores[10:].max()
    assert (abs(scores) <= 1 + 1e-9).all()


def test_what_lies_near_every_text_is_no_name():
    """Active sounds lean to what all texts share: without a baseline, any text would do."""
    label = CLAPLabeler(Planted(), TEXTS).label(numbered(0).finding)
    assert label.abstains and "None of the texts is clear" in label.evidence


def test_it_does_not_judge_itself():
    labels = [Label(feature=f, method="planted", text=TEXTS[f]) for f in (0, 1)]
    table = score_labels(labels, [numbered(0), numbered(1)], {"m": CLAPLabeler(Planted())}).table
    assert set(table["why"]) == {"It was made by this judge."}


def test_candidates_are_what_can_be_heard():
    texts = candidate_texts()
    spoken = {c for text in texts for c in concepts_in(text)}
    assert len(set(texts)) == len(texts) and spoken < set(CONCEPTS)
    assert {"in D", "in C# minor", "G chords", "violin", "with drums"} <= set(texts)
    assert not any(c.startswith(("form", "motif", "section", "melody pitch")) for c in spoken)


def test_texts_are_kept_harmless_and_one_at_least_is_needed():
    named = CLAPLabeler(Planted(), ["  slow\n‮flute", "slow flute", ""])
    assert named.texts == ("slow flute",)
    for texts in ([], ["", "\n"]):
        with pytest.raises(ValueError, match="no text to choose from"):
            CLAPLabeler(Planted(), texts)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.01, 100))
def test_lengths_of_rows_do_not_matter(by):
    model = Planted("in D")
    model.embed_sounds = lambda sounds, of=model.embed_sounds: by * of(sounds)
    sounds = half(0, [None] * 3, [None] * 3).all
    assert CLAPLabeler(model).score(sounds, "in D") == pytest.approx(
        CLAPLabeler(Planted("in D")).score(sounds, "in D")
    )


@pytest.mark.parametrize("rows", [np.zeros(5), np.full((20, 5), np.nan), np.zeros((3, 5))])
def test_what_is_no_embedding_is_refused(rows):
    model = Planted()
    model.embed_sounds = lambda sounds: rows
    with pytest.raises(ValueError, match="'planted' embedded 20 sounds as numbers of shape"):
        CLAPLabeler(model, TEXTS).label(numbered(0).finding)
