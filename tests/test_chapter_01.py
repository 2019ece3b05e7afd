"""What chapter 01 claims, on less music than the chapter takes, with the code its readers see."""

import re

import numpy as np
import pandas as pd
import pytest
from chapter import Chapter

execute = Chapter("01_music_with_known_answers")


@pytest.fixture(scope="module")
def cells():
    return execute.cells


@pytest.fixture(scope="module")
def run():
    """Run cells of the chapter, each time from the chapter's imports alone."""
    from musae_utils import music, show, stats
    from musae_utils.music import measure

    def fresh(*snippets, **names):
        space = dict(np=np, pd=pd, music=music, measure=measure, show=show)
        space |= dict(stats=stats, seed=709, rng=np.random.default_rng(709))
        return execute(space, *snippets, **names)

    return fresh


def test_one_knob_leaves_the_melody_where_it_was(run):
    space = run("recipe = dict(", "def compared")
    knobs = space["knobs"]

    def kept(row, what):
        there, of = map(int, knobs[row][what].split(" of "))
        return there / of

    for row in ("lead: flute → brass", "120 → 160 beats a minute", "with drums"):
        assert kept(row, "notes kept") == 1
    assert kept("minor → major", "onsets kept") == 1
    assert kept("another seed", "notes kept") < kept("minor → major", "notes kept") < 1


def test_the_second_bar_begins_where_the_text_says(run):
    table = run("recipe = dict(", "around = slice(73, 78)")["table"].round(3)
    assert table.loc[75, ["beat", "downbeat"]].eq(0).all() and table.loc[74, "beat"] > 0.9
    assert table["chord_root"].diff().dropna().ne(0).tolist() == [False, True, False, False]


def test_chroma_finds_exact_returns_and_misses_transposed_ones(run):
    alike = run("def likeness", n_pieces=8)["alike"]
    mean = alike.groupby("kind")[["as played", "best of 12 rotations"]].mean()
    assert mean.loc["exact", "as played"] > 0.98
    assert mean.loc["transposed", "as played"] < mean.loc["another motif", "as played"] + 0.15
    turned = mean["best of 12 rotations"]
    assert turned["transposed"] > turned["another motif"] + 0.05
    assert turned["another motif"] > mean.loc["another motif", "as played"] + 0.2


def test_attributes_are_independent_unless_tied_and_a_tie_fools_a_classifier(run):
    space = run("names = (", "def treble", "outcome = {", n_set=80)
    links, largest = space["links"], space["largest"]
    assert largest(links["as drawn"]) <= max(space["by_chance"]) + 0.05
    assert (
        largest(links["minor tied to drums"]) == links["minor tied to drums"].loc["mode", "drums"]
    )
    assert links["minor tied to drums"].loc["mode", "drums"] == 1
    outcome = space["outcome"]
    assert outcome["tied pieces: minor?"].above(0.85)
    assert outcome["free pieces: drums?"].above(0.7)
    for row in ("free pieces: minor?", "shuffled labels: minor?"):
        assert outcome[row].low < 0.5 < outcome[row].high, row
    assert not outcome["learned on free pieces: minor?"].above(0.5)


def test_sound_starts_within_a_frame_of_the_truth_and_far_from_another_pieces(run):
    names = ("def heard(clip)", "placed = np.arange", "def solo", "checks = {")
    from musae_utils import music

    free = music.make_many(16, seed=709, seconds=5)
    space = run(*names, free=free, n_sound=16, rate=music.SAMPLE_RATE)
    assert abs(np.median(space["alone"])) < np.median(space["own"]) < 20  # ms, one frame
    assert np.mean(np.abs(space["own"]) < 40) > np.mean(np.abs(space["others"]) < 40) + 0.3
    table = space["agreement"].pivot(
        index="name", columns="series", values=["value", "low", "high"]
    )
    own, others = (table.xs(s, axis=1, level=1) for s in ("its own truth", "another's"))
    assert (own["low"] > others["high"]).all()
    assert space["shares"].loc["guitar", "as written"] > 0.9
    assert space["shares"].loc["brass", "as written"] < 0.7  # why the strongest pitch is no truth


def test_the_first_exercise_has_hints_and_a_solution(run, cells):
    check = run("answer = dict(", "def check_returns")["check_returns"]
    assert "Which form" in check(dict(form="through", metre=4))
    assert "Which form" in check(dict(tempo=80))
    for late in (dict(form="rondo", tempo=80), dict(form="AABA", tempo=60, metre=4)):
        assert "which section" in check(late)
    (solution,) = _solutions(cells, "answer = ")
    assert check(solution["answer"]).startswith("Right")


def test_the_second_exercise_tells_a_shortcut_from_a_solution(run, cells, capsys):
    from musae_utils import music

    chorales = [c for c in music.corpus(12, seconds=10) if "key" in c.truth.clip]
    space = run("def key_of", "exam = {", "def check_key", chorales=chorales)
    check = space["check_key"]
    assert check(space["key_of"]).startswith("Hint")
    clever, better = (found["key_of"] for found in _solutions(cells, "def key_of"))
    assert "habit" in check(clever)
    assert check(better).startswith("Well done")
    assert "composed" in capsys.readouterr().out


def _solutions(cells, snippet):
    """The namespaces that the folded solutions holding a text make."""
    from musae_utils import music

    found = []
    for cell in cells:
        for code in re.findall(r"```python\n(.*?)```", cell.source, re.S):
            if snippet in code and "dropdown" in cell.source:
                space = {"np": np, "music": music}
                exec(code, space)
                found.append(space)
    return found
