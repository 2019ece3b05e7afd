"""What chapter 17 claims: of the tables it shows, and of two prefixes cut with its own cells."""

import re

import numpy as np
import pytest
from chapter import Chapter

from musae_utils.structure import cutting, gates, planning
from musae_utils.structure.cutting import SECOND, TABLE

execute = Chapter("17_cutting_the_circuit")
needs_table = pytest.mark.skipif(
    not (TABLE.exists() and SECOND.exists()), reason="make structure has not been run"
)
silently = {"display": lambda *_: None}


@pytest.fixture(scope="module")
def cut():
    """Two prefixes, cut at ten seconds."""
    return execute(execute.begin(), "played = cutting.play(", "pairs = pd.DataFrame(", **silently)


@needs_table
def test_no_cut_changes_nothing_and_every_cut_starts_at_the_prefixes_end(cut):
    codes, known = cut["played"].codes, cut["prefixes"][0].codes.shape[-1]
    assert (cut["untouched"].codes.numpy() == codes["baseline"]).all()
    for name, played in codes.items():
        assert (played[..., :known] == codes["baseline"][..., :known]).all(), name
    assert (codes["mean layer"] != codes["baseline"]).mean() > 0.1


@needs_table
def test_controls_are_alike_and_never_under_test(cut):
    pairs = cut["pairs"]
    assert not {*pairs["under test"]} & {*pairs["its control"]}
    kept = cutting.load()["provenance"]
    for draw in kept["random"]:
        assert not {*draw} & {*kept["features"], *kept["local"]}
        assert len({*draw}) == len(kept["features"])


@needs_table
def test_the_tables_bear_the_chapters_sentences_out():
    kept, figures = cutting.load(), cutting.figures(cutting.load())
    assert kept["provenance"]["prefixes"] >= 64
    assert {*cutting.CONDITIONS, *cutting.REFERENCES} == {*kept["rows"]["condition"]}
    # The chapter's features are those that chapter 16 lists.
    chosen = planning.load()["circuit"]
    assert kept["provenance"]["features"] == chosen["features"]
    assert cutting.load(SECOND)["provenance"]["features"] == chosen["second"]["features"]
    assert not {*kept["provenance"]["seeds"]} & {*cutting.load(SECOND)["provenance"]["seeds"]}
    # "The composer brings a motif back …, the model seldom": a cut has little to take away.
    rate = lambda name: figures[f"structure.ablation.rate.{name}.long"]  # noqa: E731
    assert rate("original").above(rate("baseline"))
    # "Is the music the same?": to cut a whole layer is not the same music.
    quality = cutting.effects(kept["rows"])["quality"]
    worse = quality[(quality["condition"] == "mean layer") & (quality["p"] < cutting.ALPHA)]
    assert len(worse) > 0


@needs_table
def test_the_gates_decide_by_their_evidence(cut):
    space = execute(cut, "marks = returns.figures(", "decided = gates.decide(", say=lambda *_: None,
                    **silently)  # fmt: skip
    decided, fooled = space["decided"], space["fooled"]
    assert [g.name for g in decided] == [
        "alignment", "labels", "horizon", "causality", "replication"
    ]  # fmt: skip
    assert all(g.says and g.would_change and g.evidence for g in decided)
    assert len(fooled) == 4 and (fooled["fooled"] & fooled["caught"]).all()
    text = gates.report(decided)
    assert text.count("**go**") == sum(g.go for g in decided)
    gained = planning.figures(planning.load())["structure.gain.long"].low > 0
    own = planning.figures(planning.load()).get("structure.gain.own.long")
    assert decided[2].go == (gained or (own is not None and own.low > 0))


def test_the_exercise_accepts_its_solution_and_hints_otherwise():
    space = execute({"np": np}, "def control(features, density)", "def check(made)")
    check = space["check"]
    assert "under test" in check(space["control"])
    assert "stands for two" in check(lambda features, density: [1] * len(features))
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {"np": np}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert check(solved["control"]).startswith("Right")
