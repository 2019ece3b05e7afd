"""Judges whose answers are known: what a right, a deaf and a biased judge make of labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_examples import numbered
from sklearn.metrics import cohen_kappa_score

from musae_utils.labels import Examples, Label, agreement, score_labels

FEATURES = 6


@pytest.fixture
def features():
    """Feature f's clips are f000 to f999; the first ten of each half are active."""
    return [numbered(f, rate=0.01 * 2**f) for f in range(FEATURES)]


def said(method="m", right=True, n=FEATURES):
    return [Label(feature=f, method=method, text=f"sound {f if right else (f + 1) % n}")
            for f in range(n)]  # fmt: skip


class Judge:
    """Hears what "sound f" is: the active clips of feature f, and nothing else."""

    name = "hears"

    def __init__(self, noise=0.0):
        self.noise, self.asked = noise, []

    def score(self, sounds, text):
        self.asked.append(text)
        f = int(text.split()[-1])
        holds = [e.clip // 1000 == f and e.activation > 0 for e in sounds]
        rng = np.random.default_rng([f, sounds[0].clip])
        return np.array(holds, float) + self.noise * rng.standard_normal(len(sounds))


class Deaf:
    name = "deaf"

    def score(self, sounds, text):
        return np.zeros(len(sounds))


class Biased:
    """Likes loud clips whatever is asked: every label seems true of every feature."""

    name = "biased"

    def score(self, sounds, text):
        return [e.activation for e in sounds]


def test_a_right_label_is_found_right_and_its_rivals_at_chance(features):
    scores = score_labels(said(), features, {"hears": Judge()})
    assert (scores.table["auc"] == 1).all() and (scores.table["adjusted"] < 1e-4).all()
    assert (scores.table[["shuffled", "wrong", "random feature"]] == 0.5).all(axis=None)
    line = scores.summary().loc[("m", "hears")]
    assert line["labels"] == line["true"] == FEATURES and line["abstained"] == 0
    assert line["auc"][:3] == (1, 1, 1) and line["over shuffled"].value == 0.5
    assert line["p shuffled"] == pytest.approx(3 / 2**FEATURES), "Holm over three comparisons"
    assert (scores.decisions["said"] == scores.decisions["active"]).all()
    assert len(scores.decisions) == FEATURES * 20


def test_a_wrong_label_a_deaf_and_a_biased_judge_are_seen_through(features):
    wrong = score_labels(said(right=False), features, {"hears": Judge()})
    assert (wrong.table["auc"] == 0.5).all() and (wrong.table["adjusted"] > 0.4).all()
    deaf = score_labels(said(), features, {"deaf": Deaf()})
    assert (deaf.table["auc"] == 0.5).all() and deaf.decisions["said"].nunique() == 1
    biased = score_labels(said(), features, {"biased": Biased()}).summary().iloc[0]
    assert biased["auc"].value == 1, "by itself it looks like a perfect label"
    for rival in ("shuffled", "wrong", "random feature"):
        assert biased[f"over {rival}"].value == 0 and biased[f"p {rival}"] == 1


def test_only_the_scoring_half_counts(features):
    class Remembers(Judge):
        """Knows the finding half by heart, and guesses the rest."""

        def score(self, sounds, text):
            return [float(e.activation > 0 and e.clip % 1000 < 500) for e in sounds]

    scores = score_labels(said(), features, {"hears": Remembers()})
    assert (scores.table["auc"] == 0.5).all()


def test_the_wrong_label_is_that_of_the_feature_that_fires_as_often(features):
    rates = [0.1, 0.5, 0.11, 0.51, 0.9, 0.89]
    features = [
        Examples(c.feature, c.finding, c.scoring, rate)
        for c, rate in zip(features, rates, strict=True)
    ]
    twins = {0: 2, 2: 0, 1: 3, 3: 1, 4: 5, 5: 4}

    class Twin(Judge):
        def score(self, sounds, text):
            f = twins[int(text.split()[-1])]
            return [float(e.clip // 1000 == f and e.activation > 0) for e in sounds]

    table = score_labels(said(), features, {"t": Twin()}).table
    assert (table["wrong"] == 1).all() and (table["auc"] == 0.5).all()


def test_abstentions_and_features_without_examples_are_kept_and_not_scored(features):
    labels = said()
    labels[2] = Label(feature=2, method="m", evidence="Nothing in common.")
    never = features[3]
    features[3] = Examples(3, never.finding, never.scoring, 0.0, "Feature 3 never fires.")
    judge = Judge()
    scores = score_labels(labels, features, {"hears": judge})
    assert np.isnan(scores.table.loc[[2, 3], "auc"]).all()
    assert list(scores.table.loc[[2, 3], "why"]) == [
        "It abstains. Nothing in common.", "Feature 3 never fires.",
    ]  # fmt: skip
    assert "" not in judge.asked and "sound 3" not in judge.asked
    line = scores.summary().iloc[0]
    assert line["labels"] == FEATURES - 2 and line["abstained"] == 1
    alone = score_labels(labels[:1], features, {"hears": Judge()})
    assert alone.table["auc"][0] == 1 and np.isnan(alone.table["shuffled"][0])
    assert alone.summary().iloc[0]["auc"] is None


def test_nobody_judges_what_he_said_himself(features):
    for method in ("hears", "CLAP"):  # by its own name, and by the name it is called here
        scores = score_labels(said(method), features, {"CLAP": Judge()})
        assert scores.table["auc"].isna().all() and scores.decisions.empty
        assert set(scores.table["why"]) == {"It was made by this judge."}
        assert scores.summary().iloc[0]["labels"] == 0


def test_a_judge_that_is_missing_is_said_to_be_and_without_any_nothing_is_scored(features):
    scores = score_labels(said(), features, {"CLAP": None, "hears": Judge()})
    assert scores.missing == ["CLAP"] and set(scores.table["judge"]) == {"hears"}
    for judges in ({"CLAP": None}, {}):
        with pytest.raises(ValueError, match="No label can be scored without a judge"):
            score_labels(said(), features, judges)


@pytest.mark.parametrize("values", [[1.0], [np.nan] * 20, np.ones((20, 1)), 3.0])
def test_a_judge_that_gives_other_than_a_number_a_sound_is_refused(features, values):
    class Odd(Judge):
        def score(self, sounds, text):
            return values

    with pytest.raises(ValueError, match=r"The judge 'odd' gave .* for 20 sounds"):
        score_labels(said(), features, {"odd": Odd()})


def test_labels_that_cannot_be_scored_are_refused(features):
    with pytest.raises(ValueError, match=r"Examples of features \[5\] are needed"):
        score_labels(said(), features[:-1], {"j": Judge()})
    with pytest.raises(ValueError, match="labels a feature once"):
        score_labels([*said(), *said()], features, {"j": Judge()})
    with pytest.raises(ValueError, match="no label to score"):
        score_labels([], features, {"j": Judge()})


# -- agreement


def test_judges_and_methods_agree_as_far_as_they_do(features):
    judges = {"one": Judge(), "again": Judge(), "noisy": Judge(noise=0.5), "deaf": Deaf()}
    scores = score_labels([*said("right"), *said("wrong", right=False)], features, judges)
    between = scores.agreements("judge").set_index(["method", "first", "second"])["kappa"]
    kappa = {frozenset(at[1:]): value for at, value in between.items() if at[0] == "right"}
    assert kappa[frozenset({"one", "again"})].value == 1
    assert 0.3 < kappa[frozenset({"one", "noisy"})].value < 0.95
    assert kappa[frozenset({"one", "deaf"})].value == 0, (
        "always the same agrees half the time, by chance"
    )
    same = scores.agreements("method").set_index("judge")["kappa"]
    assert same["one"].value == 0 and same["one"].n == FEATURES * 20
    with pytest.raises(ValueError, match="between judges or methods"):
        scores.agreements("table")


yes = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40)


@settings(deadline=None, max_examples=25)
@given(yes)
def test_kappa_is_scikit_learns_and_lies_in_its_interval(pairs):
    a, b = zip(*pairs, strict=True)
    found = agreement(a, b, range(len(a)))
    if len({*a, *b}) < 2:
        assert np.isnan(found.value)
        return
    assert found.value == pytest.approx(cohen_kappa_score(a, b))
    assert found.low <= found.high <= 1 and found.n == len(a)


def test_intervals_go_by_compositions_and_chance_gives_none():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    free = agreement(a, b, range(400))
    assert free.low < 0 < free.high and abs(free.value) < 0.15
    block = np.repeat(rng.integers(0, 2, 20), 20)
    other = np.where(rng.random(20) < 0.8, block[::20], 1 - block[::20]).repeat(20)
    wide, narrow = (agreement(block, other, g) for g in (np.arange(400) // 20, range(400)))
    assert wide.n == 20 and wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert np.isnan(agreement("yy", "yy", [0, 1]).value)
    with pytest.raises(ValueError, match="Two raters say as much"):
        agreement("yyn", "yn", [0, 1, 2])
