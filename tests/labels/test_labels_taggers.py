"""Taggers whose answers are planted: what labels and verdicts come of them."""

import numpy as np
import pytest
from made_examples import half, numbered

from musae_utils.labels import Label, TagJudge, TagLabeler, Unjudged, score_labels

TAGS = ("melody on a flute", "with drums", "in D", "Shimmering pads", "in C minor", "ocean waves")


class Planted:
    """Hears one tag in active examples, and noise in all."""

    name, tags = "planted", TAGS

    def __init__(self, tag=None, rise=0.5):
        self.tag, self.rise = tag, rise

    def probabilities(self, sounds):
        seeds = [[e.clip, i] for e in sounds for i in range(len(TAGS))]
        noise = [np.random.default_rng(seed).uniform(0, 0.4) for seed in seeds]
        found = np.reshape(noise, (len(sounds), len(TAGS)))
        if self.tag:
            found[:, TAGS.index(self.tag)] += [self.rise * (e.activation > 0) for e in sounds]
        return found


@pytest.mark.parametrize("tag", TAGS)
def test_the_planted_tag_is_the_label(tag):
    label = TagLabeler(Planted(tag)).label(numbered(7).finding)
    assert (label.text, label.method, label.feature) == (tag, "planted", 7)
    assert "Cliff's delta 1.00" in label.evidence and "Holm for 6 tags" in label.evidence


def test_nothing_and_less_of_something_are_no_names():
    for tagger in (Planted(), Planted("in D", rise=-0.5)):
        tagger.probabilities = lambda s, of=tagger.probabilities: of(s).clip(0)
        label = TagLabeler(tagger).label(numbered(0).finding)
        assert label.abstains and "None of the tags is clear" in label.evidence


def test_silence_everywhere_gives_an_abstention():
    class Same(Planted):
        def probabilities(self, sounds):
            return np.full((len(sounds), len(TAGS)), 0.5)

    label = TagLabeler(Same()).label(half(1, [None] * 5, [None] * 5))
    assert label.abstains and "no sound differs" in label.evidence


@pytest.mark.parametrize(
    "text, tag",
    [("flute solo", 0), ("drums: yes", 1), ("D minor", 2), ("ocean waves at night", 5)],
)
def test_a_text_is_judged_by_the_tags_that_it_speaks_of(text, tag):
    sounds = numbered(0).finding.all
    right = TagJudge(Planted(TAGS[tag])).score(sounds, text)
    other = TagJudge(Planted("in C minor")).score(sounds, text)
    assert np.isfinite(right).all() and right[:10].min() > right[10:].max()
    assert abs(other[:10].mean() - other[10:].mean()) < 1.5


def test_a_tag_of_two_concepts_needs_both_and_words_count_in_order():
    judge = TagJudge(Planted("in C minor"))
    sounds = numbered(0).finding.all
    assert (judge.score(sounds, "key of C minor")[:10] > 0).all()
    for text in ("in E minor", "waves of the ocean", "", "C", "<b>*", "слово"):
        with pytest.raises(Unjudged, match="none of the 6 tags"):
            judge.score(sounds, text)


def test_certainty_does_not_become_infinite():
    class Sure(Planted):
        def probabilities(self, sounds):
            return np.array([[float(e.activation > 0)] * len(TAGS) for e in sounds])

    assert np.isfinite(TagJudge(Sure()).score(numbered(0).finding.all, "drums")).all()


@pytest.mark.parametrize(
    "found", [np.full((20, 6), 1.5), np.full((20, 6), np.nan), np.zeros((20, 5))]
)
def test_what_is_no_probability_is_refused(found):
    tagger = Planted()
    tagger.probabilities = lambda sounds: found
    for ask in (
        lambda h: TagLabeler(tagger).label(h),
        lambda h: TagJudge(tagger).score(h.all, "D, drums"),
    ):
        with pytest.raises(ValueError, match="The tagger 'planted' gave numbers of shape"):
            ask(numbered(0).finding)


def test_a_label_that_a_judge_does_not_know_is_not_scored_and_is_no_rival():
    texts = ["flute", "sorrow", "flute", "drums"]
    features = [numbered(i) for i in range(4)]
    labels = [Label(feature=i, method="m", text=text) for i, text in enumerate(texts)]
    table = score_labels(labels, features, {"tags": TagJudge(Planted("melody on a flute"))}).table
    assert table["why"][1] == "The text speaks of none of the 6 tags." and np.isnan(table["auc"][1])
    assert table["auc"][0] == table["auc"][2] == 1 and (table["why"][[0, 2, 3]] == "").all()
    assert table[["shuffled", "wrong"]].notna().all(axis=1).tolist() == [True, False, True, True]
    assert table["wrong"][0] == pytest.approx(table["shuffled"][0]), "drums are the only rival"
