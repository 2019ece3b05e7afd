"""What chapter 10 claims, on shorter music than it plays, with the code its readers see."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from chapter import Chapter

from musae_utils import models, stats, steering  # noqa: F401  # models before audiocraft
from musae_utils.steering import Knob

execute = Chapter("10_turning_one_knob")


def quiet(*_):
    """Instead of display."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The parameters, the imports, the nano model, its dictionary and the atlas of 24 pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("chapter"))
        space = execute.begin()
        space |= dict(n=32, long=5, seconds=1.5)
        yield execute(space, "def harvested(split)", "pieces = torch.stack")


@pytest.fixture(scope="module")
def chosen(start):
    many = dict(display=quiet, profile="full")  # as many candidates as readers see
    return execute(start, "atlas.best()", "told = {}", "j, rival = (", **many)


@pytest.fixture(scope="module")
def turned(chosen):
    few = dict(display=quiet, profile="smoke")
    return execute(chosen, "def heard", "def row_of", "def gain(name", **few)


def test_the_knob_adds_what_the_formula_says_and_nothing_else(start):
    assert start["off"] < 1e-4
    others = start["added"][-100:]
    across = others - others.mean(0)
    assert float(across.norm()) < 1e-3 * float(others.norm()), "the same at every moment"


def test_four_kinds_at_zero_change_nothing_and_the_test_can_see(start):
    same = execute(start, "zeros = {how:")["same"]
    assert same[[*steering.HOW]].all() and not same["add, 0.2"]


def test_a_random_direction_is_as_long_as_the_features(chosen):
    for one, direction in zip(chosen["knobs"], chosen["blind"], strict=True):
        assert float(direction.direction.norm()) == pytest.approx(
            float(one.direction.norm()), rel=1e-4
        )


def test_what_fires_most_clearly_need_not_move_the_output_most(chosen):
    best = chosen["best"]
    assert (best["KL"] > 0).all() and (best["KL, random direction"] > 0).all()
    ratio = best["KL"] / best["KL, random direction"]
    assert ratio.max() > 2 > ratio.min(), "some do far more than a random direction, some do not"


def test_signatures_tell_on_other_pieces_where_their_concepts_hold(chosen):
    real = np.mean([auc for auc in chosen["told"].values() if np.isfinite(auc)])
    rng, used = np.random.default_rng(0), chosen["used"][1::2].float()
    blind = []
    for name in chosen["told"]:
        for _ in range(5):  # the same concepts, said of other pieces
            where = rng.permutation(chosen["holds"][:, chosen["names"].index(name)])
            score = (used @ chosen["sign"](where, slice(0, None, 2))).numpy()
            blind.append(stats.auc(score[:, None], where[1::2, None])[0, 0])
    assert real > 0.6 > np.nanmean(blind)


def test_the_choice_by_effect_is_the_largest_predicted_change_of_its_own_concept(chosen):
    own = chosen["own"]
    assert own[chosen["by_effect"]] == own.max() > chosen["chance"][chosen["by_effect"]]


def test_the_rows_of_a_seed_differ_by_the_knob_alone(turned):
    result, played = turned["result"], turned["played"]
    assert len(result) == len(played.codes) == len(turned["asked_for"]) * len(turned["seeds"])
    alone = steering.sweep(turned["musicgen"], None, [None], turned["seconds"], turned["seeds"][1])
    [row] = result.index[(result["knob"] == "untouched") & (result["seed"] == turned["seeds"][1])]
    assert torch.equal(played.codes[row], alone.codes[0])
    tags = [turned["tag"][c] for c in turned["best"].index]
    assert result[tags].to_numpy().min() >= 0 and result[tags].to_numpy().max() <= 1


def test_a_turned_knob_changes_the_music_more_than_its_rival_at_the_same_strength(turned):
    """Of the feature chosen by effect, in codes; what the tagger makes of it is the reader's."""
    result, codes = turned["result"], turned["played"].codes[:, 0]
    share = {}
    for name in (turned["first"], "random direction"):
        rows = result[(result["knob"] == name) & (result["strength"] == 1)]
        same = [result.index[(result["knob"] == "untouched") & (result["seed"] == s)][0]
                for s in rows["seed"]]  # fmt: skip
        share[name] = float((codes[rows.index] != codes[same]).float().mean())
    assert share[turned["first"]] > 0.2
    assert share[turned["first"]] >= share["random direction"] - 0.05


def test_the_listening_page_does_not_tell_and_its_key_does(turned):
    space = execute({**turned, "HTML": str}, "listening.make(", display=quiet)
    text = (space["place"] / "listening.html").read_text(encoding="utf-8")
    assert not any(word in text for word in ("steered", "untouched", "random direction"))
    key = space["key"].read_text(encoding="utf-8")
    assert key.count('"steered"') == len(turned["seeds"])


def test_before_a_window_nothing_changes_and_the_ramp_begins_softly(turned):
    space = execute(turned, "timed = {", display=quiet)
    assert space["before"] == 0 and space["inside"] > 0
    throughout, ramp = (space["differs"][list(space["timed"]).index(name)] for name in
                        ("throughout", "ramp"))  # fmt: skip
    assert ramp[: len(ramp) // 8].mean() <= throughout[: len(ramp) // 8].mean()


def test_surprise_rises_with_strength(turned):
    space = execute({**turned, "display": quiet}, "quality.cross_entropies")
    cost = space["few"].groupby(["knob", "strength"])["surprise"].mean()
    assert cost[turned["first"], 16] > cost["untouched", 0], "it would not have played that"
    assert cost["untouched", 0] < space["unigram"], "the scale has two ends"


def test_a_silent_feature_can_be_neither_scaled_nor_ablated(turned):
    space = execute(turned, "moved = pd.DataFrame")
    moved = space["moved"]
    quiet = moved["where it is quietest"]
    assert (moved["where it fires most"] > 0).all()
    assert quiet["add"] > 0 and quiet["clamp"] > 0
    if space["fires"].min() == 0:
        assert quiet["scale"] == quiet["ablate"] == 0


def test_the_exercise_accepts_its_solution_and_hints_otherwise(chosen):
    space = dict(
        chosen, frames=75, at=1, k=chosen["rival"],
        strong=Knob(chosen["sae"], chosen["j"], 1.0, peak=chosen["atlas"]),
    )  # fmt: skip
    space = execute(space, "def check(made)", crossfade=lambda a, b, *_: [a, b])
    check = space["check"]
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {"np": np, "replace": replace}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert check(solved["crossfade"]) == (
        "Right. Until the crossfade begins, 100% of the codes are the first knob's alone."
    )
    given = execute(chosen, "def crossfade(a, b")["crossfade"]
    assert check(given).startswith("Hint: dataclasses.replace")
    swapped = lambda *asked: solved["crossfade"](*asked)[::-1]  # noqa: E731
    assert "which one goes down" in check(swapped)
    sudden = lambda a, b, n, start, end: solved["crossfade"](a, b, n, start, start + 1)  # noqa: E731
    assert "same step" in check(sudden)
