"""What chapter 16 claims: of the table it shows, and of a few pieces read with its own cells."""

import re

import numpy as np
import pytest
from chapter import Chapter

from musae_utils.structure import horizons, pieces, planning
from musae_utils.structure.planning import TABLE

execute = Chapter("16_does_the_model_plan_ahead")
needs_table = pytest.mark.skipif(not TABLE.exists(), reason="make structure has not been run")
silently = {"display": lambda *_: None}


@pytest.fixture(scope="module")
def read():
    """Eight pieces, read by everything."""
    start = execute.begin()
    start = execute(start, "some = pieces.composed(", "horizons.naive(sources", **silently)
    return start


@needs_table
def test_what_is_read_ends_before_what_is_asked(read):
    assert all(len(p.audio) / p.sample_rate <= 15.05 and p.seconds == 40 for p in read["some"])
    assert read["table"]["long"].notna().all(), "15 s read, 25 s ahead, 40 s known"


@needs_table
def test_settled_rows_are_never_wrong_and_open_ones_are_open(read):
    table = read["table"]
    for name in pieces.HORIZONS:
        rules = table[f"grammar {name}"]
        sure = rules.isin([0.0, 1.0])
        assert (rules[sure] == table[name][sure]).all()
        assert 0 < sure.mean() < 1


@needs_table
def test_every_rival_of_the_chapters_table_was_asked():
    for line in planning.load()["answers"].to_dict("records"):
        if line["pieces"] == "composed" and line["rows"] == "all":
            assert {*horizons.CONFOUNDS, horizons.CONTROL, "grammar"} <= {*line["auc"]}
            assert line["gain"][3] >= 200, "held-out compositions"


@needs_table
def test_the_table_bears_the_chapters_sentences_out():
    figures = planning.figures(planning.load())
    get = lambda name: figures[f"structure.{name}"]  # noqa: E731
    # "Where the past gives the answer away, 'returns so far' reads it off."
    assert get("auc.settled.long.grammar").value == 1.0
    assert get("auc.settled.long.confound").low > 0.7
    # "How far the model falls behind": it has not learnt form.
    assert get("gain.settled.long").high < 0
    # "Open is where everybody should be at chance": nobody beats the rules.
    for horizon in pieces.HORIZONS:
        ours, rules = (get(f"auc.open.{horizon}{end}") for end in ("", ".grammar"))
        assert not ours.above(rules)
    # "The usual way": rows of one piece on both sides.
    assert get("auc.long.naive").value > get("auc.long").high
    # The method's own marks.
    assert get("leaks_caught").value == 1.0 and get("leaks_caught").n >= 60
    assert get("false_go").value <= 0.05 and get("false_go").n >= 40
    assert 0 < get("power80").value < max(planning.STRENGTHS)
    # "In this model's own music it is rare."
    rate = {
        (line["pieces"], line["horizon"]): line["yes"]
        for line in planning.load()["answers"].to_dict("records") if line["rows"] == "all"
    }  # fmt: skip
    assert rate["own", "middle"] < rate["composed", "middle"] / 3


@needs_table
def test_a_planted_signal_is_found_here_and_nothing_is_not(read):
    from musae_utils.structure import planted

    middle = read["saes"][len(read["saes"]) // 2]
    found = planted.searched(read["sources"], read["table"], "short", middle, 6.0, 0)
    assert found.auc["residual 3"].value > 0.9
    nothing = planted.searched(read["sources"], read["table"], "short", middle, 0.0, 0)
    assert not nothing.go


def test_the_exercise_accepts_its_solution_and_hints_otherwise():
    space = execute({"np": np}, "def fair(labels, t)", "def check(made)")
    check = space["check"]
    assert "say yes" in check(space["fair"])
    assert "each row at most once" in check(lambda labels, t: np.zeros(4, int))
    assert "row numbers" in check(lambda labels: labels)
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {"np": np}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert check(solved["fair"]).startswith("Right")
    half = lambda labels, t: solved["fair"](labels, t)[:0]  # noqa: E731
    assert check(lambda labels, t: solved["fair"](labels[t < 10], t[t < 10])).startswith("Hint")
    assert "could be kept" in check(half) or "Hint" in check(half)
