"""What chapter 04 claims, on fewer pieces than the chapter takes, with the code its readers see."""

import re

import numpy as np
import pytest
from chapter import Chapter

execute = Chapter("04_what_the_model_knows")


@pytest.fixture(scope="module")
def read():
    """The nano model has read 64 pieces of 7 s."""
    space = execute.begin()
    return execute(space, "codes = musicgen.encode(clips)", n=64, seconds=7)


@pytest.fixture(scope="module")
def known(read):
    """Three concepts, probed in layers and rivals, and in another piece's truth."""
    space = execute(read, "sources |= probes.rival_features")
    probes, pieces = space["probes"], np.arange(64)
    ask = dict(concepts=("drums", "chord_root", "beat"), seed=space["seed"])
    strangers = [*space["clips"][1:], space["clips"][0]]
    middle = {space["middle"]: space["sources"][space["middle"]]}
    space["known"] = probes.probe_concepts(
        space["sources"], space["clips"], pieces, space["rivals"], **ask
    )
    space["luck"] = probes.probe_concepts(middle, strangers, pieces, **ask)
    return space | dict(pieces=pieces, strangers=strangers)


@pytest.fixture(scope="module")
def drums(read):
    return execute(read, "def answers(labels)", "right = {}")


def test_shuffled_labels_are_separated_where_they_were_learned_and_nowhere_else(drums):
    right = drums["right"]
    assert right["shuffled", "learned"].value > 0.95
    by_chance = right["shuffled", "never seen"]
    assert by_chance.low < 0.5 < by_chance.high
    assert right["true labels", "never seen"].above(max(0.6, by_chance.value))


def test_pieces_to_listen_to_are_chosen_by_the_rule(drums):
    space = execute(drums, "surest yes")
    sure, unseen, chosen = space["sure"], space["unseen"], space["chosen"]
    assert all(i in unseen for i in chosen.values()) and not space["learn"][unseen].any()
    assert sure[chosen["surest yes"]] == sure[unseen].max()
    assert abs(sure[chosen["least sure"]]) == np.abs(sure[unseen]).min()
    if "surest error" in chosen:
        i = chosen["surest error"]
        assert (sure[i] > 0) != space["drums"][i]


def test_a_split_by_frame_guesses_coins_and_a_split_by_piece_does_not(drums):
    space = execute(drums, "coin = np.random", "by_frame, by_piece = (")
    a, b = (space[s].loc["a coin for each piece"] for s in ("by_frame", "by_piece"))
    assert a["value"] > 0.7 and a["low"] > b["high"] - 0.05
    assert b["low"] < 0.5 < b["high"]
    assert b["high"] - b["low"] > a["high"] - a["low"]  # siblings are no independent witnesses


def test_layers_know_drums_and_chords_and_an_untrained_network_does_not(known):
    for concept in ("drums", "chord_root"):
        result = known["known"][concept]
        assert result.best.score.above(result.results["untrained"].score), concept
        assert result.best.score.above(known["luck"][concept].best.score), concept
    luck = known["luck"]["chord_root"].best
    assert not luck.score.above(luck.chance + 0.03)


def test_control_tasks_tell_learning_by_heart(known):
    space = execute(known, "def standing(result)", "one_hot = [", "heart = [")
    gaps = space["gaps"]
    organised, by_heart = (
        gaps["chord_root", name] for name in ("the middle layer", "a code, one-hot")
    )
    assert organised.low > 0.1 and organised.above(by_heart.value)
    assert gaps["beat", "a code, one-hot"].high < 0 and "beat" in space["heart"]


def test_a_verdict_says_where_a_layer_stands(known):
    space = execute(known, "def standing(result)", "corrected = dict(")
    standing, verdicts = space["standing"], space["verdicts"]
    assert list(verdicts.index) == ["drums", "chord_root", "beat"]
    for concept, result in space["known"].items():
        ahead, words = result.differences[result.best_rival], standing(result)
        assert words == verdicts.loc[concept, "verdict"]
        assert words.startswith("above") == (
            result.apart and result.best.score.above(result.best.chance)
        )
        assert "behind" not in words or ahead.high < 0


def test_the_listener_follows_its_own_truth_only(known, drums):
    unseen = np.flatnonzero(drums["score"])
    space = execute({**known, "learn": drums["learn"], "unseen": unseen}, "def listener(rows)")
    foreign, heard = space["foreign"], space["sources"][space["middle"]]
    by_luck = [np.mean(foreign.predict(np.float32(heard[i])) == space["truths"][i]) for i in unseen]
    assert np.mean(space["hits"]) > np.mean(by_luck) + 0.3
    typical = space["hits"][list(unseen).index(space["typical"])]
    assert np.mean(np.array(space["hits"]) < typical) <= 0.5 >= np.mean(space["hits"] > typical)


def test_the_exercise_has_hints_and_a_solution(known):
    space = execute(
        known, "def standing(result)", "def span(", "def my_rival", "def answer_of(rival)"
    )
    check = space["check"]
    assert check(space["my_rival"]).startswith("Hint")
    assert "one a frame" in check(lambda audio, rate: np.zeros(5))
    ahead = lambda audio, rate: np.full((350, 1), audio.std())  # noqa: E731
    assert "looks ahead" in check(ahead)
    text = "\n".join(c.source for c in execute.cells if "dropdown" in c.source)
    (solution,) = (s for s in re.findall(r"```python\n(.*?)```", text, re.S) if "my_rival" in s)
    exec(solution, space)
    assert check(space["my_rival"]).startswith("A ")
