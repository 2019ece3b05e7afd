"""Marks whose right answer is known: true and false names, judges that hear and that are deaf."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_examples import example
from planted import clip_of

from musae_utils.labels import (
    Examples,
    Half,
    Label,
    agreed,
    audible,
    calibrate,
    mark,
    mark_concepts,
    reached,
    score_labels,
    shuffled,
    truths,
)  # fmt: skip
from musae_utils.labels.contrast import shares
from musae_utils.labels.words import concepts_in, phrase

N = 8


class Written:
    """Reads the truth, as a perfect judge would."""

    name = "written truth"

    def score(self, sounds, text):
        return [np.mean([shares(s)[c] for c in concepts_in(text)]) for s in sounds]


class Deaf:
    name = "deaf"

    def score(self, sounds, text):
        return np.zeros(len(sounds))


class Ear:
    """An audio-text model that hears drums in the first number, and a secret in the second."""

    name = "ear"

    def __init__(self, secret):
        self.secret = secret

    def embed_sounds(self, sounds):
        rows = [(s.truth.clip["drums"] + 0.01, 2 * self.secret(s) + 0.01) for s in sounds]
        return np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_texts(self, texts):
        return np.array([(1.0, 0.0) if "drums" in text else (0.7, 0.7) for text in texts])


def of(clip, number, active):
    audio = clip.audio[:800]
    return example(number, audio, float(active), clip.truth, f"composition {number}")


def feature(number, active, silent, first=0):
    """A feature with N active clips made by `active`, and N silent ones, in each half."""
    made = []
    for at in (first, first + 2 * N):
        clips = [active(at + i) for i in range(N)], [silent(at + N + i) for i in range(N)]
        made.append(
            Half(number, *([of(c, at + N * k + i, k == 0) for i, c in enumerate(side)]
                           for k, side in enumerate(clips)))
        )  # fmt: skip
    return Examples(number, *made, 0.1)


@pytest.fixture(scope="module")
def drums():
    return feature(7, lambda s: clip_of(s, drums=True), lambda s: clip_of(s, drums=False))


def label(text, method="m", number=7):
    return Label(feature=number, method=method, text=text)


def test_true_names_count_and_false_and_foreign_ones_do_not(drums):
    said = [label("with drums", "right"), label("without drums", "wrong"), label("", "silent"),
            label("in D", "beside it")]  # fmt: skip
    marks = mark(score_labels(said, [drums], {"written truth": Written()}))
    precision = marks["precision"].map(lambda x: None if x is None else x.value)
    assert precision["right"] == 1 and precision["wrong"] == precision["beside it"] == 0
    assert precision.isna()["silent"] and marks.loc["silent", "abstained"] == 1
    assert marks.loc["right", "coverage"].value == 1 and marks.loc["silent", "coverage"].value == 0


def test_marks_by_what_labels_speak_of(drums):
    said = [label("with drums"), label("drums, in C", "both")]
    by_group = mark_concepts(score_labels(said, [drums], {"written truth": Written()}))
    assert by_group.loc["m", "drums"].to_list() == [1, 1]
    assert set(by_group.loc["both"].index) == {"drums", "tonic"}


def test_marks_need_a_judge_that_was_asked(drums):
    scores = score_labels([label("with drums")], [drums], {"deaf": Deaf()})
    with pytest.raises(ValueError, match="No label was scored by 'written truth'"):
        truths(scores)


def test_two_of_three_methods_make_a_name():
    said = [label("a flute in D", "a"), label("soft flute", "b"), label("drums", "c"),
            label("drums", "a", 8), label("", "b", 8), label("organ", "c", 8)]  # fmt: skip
    first, second = agreed(said)
    assert concepts_in(first.text) == ("family: flute",) and "a, b agree" in first.evidence
    assert second.abstains and second.feature == 8


def test_two_names_of_one_pitch_agree_on_it():
    said = [label("A chords", "a"), label("", "b"), label("the note A", "c")]
    (found,) = agreed(said)
    assert found.text == "A chords" and "on the pitch; a says" in found.evidence
    assert agreed([label("A chords", "a"), label("the note B", "b")])[0].abstains
    exact = [label("A chords", "a"), label("the note A", "b"), label("the note A", "c")]
    assert agreed(exact)[0].text == "the note A"


@given(st.lists(st.sampled_from(["with drums", "in D", "legato", ""]), min_size=1, max_size=5))
def test_an_ensemble_says_only_what_two_have_said(texts):
    (found,) = agreed(label(text, f"method {i}") for i, text in enumerate(texts))
    for concept in concepts_in(found.text):
        assert texts.count(phrase(concept)) >= 2
    assert found.abstains == (max((texts.count(t) for t in texts if t), default=0) < 2)


def test_a_judge_that_reads_the_truth_is_right_and_a_deaf_one_at_chance(drums):
    sounds = [*drums.finding.all, *drums.scoring.all]
    judges = {"written": Written(), "deaf": Deaf(), "absent": None}
    marks = calibrate(judges, sounds, ["drums: yes", "family: flute"])
    assert marks.loc[("written", "drums: yes"), "auc"].value == 1
    deaf = marks.loc[("deaf", "drums: yes"), "auc"]
    assert deaf.value == 0.5 and "absent" not in marks.index.get_level_values(0)


def test_judges_are_not_calibrated_on_music_without_truth():
    with pytest.raises(ValueError, match="truth is known"):
        calibrate({"deaf": Deaf()}, [example(1)])


def test_a_coin_leaves_nothing_to_name(drums):
    mixed = shuffled(drums, seed=3)
    before, after = ({e.group for e in one.finding.all} for one in (drums, mixed))
    assert before == after and len(mixed.scoring.active) == len(drums.scoring.active)
    assert 0 < sum(e.activation > 0 for e in mixed.finding.active) < N
    again = shuffled(drums, seed=3)
    assert [e.group for e in again.finding.all] == [e.group for e in mixed.finding.all]


def test_what_is_heard_but_cannot_be_said_is_emergent(drums):
    either = lambda s: clip_of(s, drums=s % 2 > 0)  # noqa: E731
    secret = feature(3, either, either, first=100)
    hidden = {e.group for half in (secret.finding, secret.scoring) for e in half.active}
    ear = Ear(lambda sound: sound.group in hidden)
    table = audible([drums, secret], ear, ["with drums", "anything"])
    assert table.loc[3, "heard"] == 1 and table.loc[7, "caption"] == 1
    assert not table.loc[7, "emergent"]  # drums are planted, and can be said
    assert table.loc[3, "planted"] < 0.9
    deaf = audible([secret], Ear(lambda sound: False), ["with drums"])
    assert not deaf["emergent"].any()


def test_the_reach_of_prompts_is_a_rank_among_real_pieces():
    real = np.array([[0.0, 1, 0], [1, 2, 0], [3, 3, 0]])
    far = reached(real, np.array([[2.0, 0.5, 1], [0, 0, 0]]))
    assert far[0] == 0.5 and far[1] == 0 and np.isnan(far[2])
