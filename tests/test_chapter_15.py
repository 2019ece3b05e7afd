"""What chapter 15 claims, on a few pieces and on the table it shows, with its readers' code."""

import re

import numpy as np
import pandas as pd
import pytest
from chapter import Chapter

from musae_utils import music, structure
from musae_utils.structure import returns
from musae_utils.structure.labelers import TABLE

execute = Chapter("15_what_counts_as_a_return")
needs_table = pytest.mark.skipif(
    not TABLE.exists(), reason="python -m musae_utils.structure.returns has not been run"
)


@pytest.fixture(scope="module")
def start():
    """The parameters, the imports, the kept labelers."""
    space = execute({}, 'profile: str = "full"')
    return execute({**space, "profile": "smoke"}, "labeler = structure.labeler()")


@pytest.fixture(scope="module")
def asked():
    """Two composed pieces and two traps of each kind, that neither table nor chapter holds."""
    clips = music.make_many(2, 20_000, 30.0, form="AABA")
    parts = [
        returns.answered(clip, structure.questions(clip)).assign(set="composed") for clip in clips
    ]
    parts += [
        returns.answered(*structure.trap(kind, 20_000 + i)).assign(set=kind)
        for kind in structure.TRAPS for i in range(2)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@needs_table
def test_the_example_returns_in_all_three_ways(start):
    space = execute(start, "def all_kinds(clip)", "slid = structure.scores(heard, earlier)")
    kinds = {(q.start, q.kind) for q in structure.questions(space["piece"])
             if q.earlier == space["earlier"]}  # fmt: skip
    assert {(start, kind) for kind, start in space["places"].items()} <= kinds
    assert set(space["places"]) == {*structure.KINDS, "none"}
    assert space["at"]["exact"] > space["at"]["transposed"], "chroma is blind to transposition"


@needs_table
def test_chroma_is_fooled_by_chords_and_drums_and_the_labeler_is_not(asked):
    ours, usual = structure.labeler(), structure.labeler("chroma")
    trapped = asked[asked["set"].isin(["same chords", "drum loop"])]
    fooled = (usual.probability(trapped) >= usual.threshold).mean()
    caught = (ours.probability(trapped) >= ours.threshold).mean()
    assert fooled > 0.4 and caught < fooled / 3


@needs_table
def test_the_labeler_hears_what_returns_on_another_degree(asked):
    ours, usual = structure.labeler(), structure.labeler("chroma")
    moved, exact = (asked[asked["kind"] == kind] for kind in ("transposed", "exact"))
    assert len(moved) > 2 and len(exact) > 2
    heard = (ours.probability(moved) >= ours.threshold).mean()
    assert heard > (usual.probability(moved) >= usual.threshold).mean() + 0.3
    assert (ours.probability(exact) >= ours.threshold).mean() > 0.8


@needs_table
def test_the_table_bears_the_chapters_sentences_out(start):
    figures = start["figures"]
    get = lambda name: figures[f"structure.{name}"]  # noqa: E731
    assert get("label_f1.exact").n >= 200
    # "Chroma knows an exact return when it hears one, and no transposed one."
    assert get("label_recall.exact.chroma_only").low > 0.8
    assert get("label_recall.transposed.chroma_only").high < 0.2
    for kind in ("transposed", "varied"):
        assert get(f"label_f1.{kind}").above(get(f"label_f1.{kind}.chroma_and_clap"))
        assert get(f"label_f1.{kind}").above(2 / 3)
    # "Beside chroma it helps a little with ornaments and not at all with transposition."
    assert get("label_f1.varied.chroma_and_clap").value > get("label_f1.varied.chroma_only").value
    assert get("label_recall.transposed.chroma_and_clap").high < 0.2
    # "No worse than the labeler that asks for more", "chroma has no disadvantage" in texture.
    assert get("label_f1.exact.chroma_only").high > get("label_f1.exact").low
    assert get("trap_fpr.texture.chroma_only").low < get("trap_fpr.texture").high
    assert get("trap_fpr_ratio").high < 1 / 3
    assert get("timing_error").value < returns.NEAR / 4, "within half a second says too little"


@needs_table
def test_any_recording_is_searched(start):
    wish = execute(start, "def all_kinds(clip)")
    space = execute(wish, "structure.what_returns(stereo", display=lambda *_: None)
    table = space["table"]
    assert list(table.columns) == ["start", "end", "earlier start", "kind", "score"]
    assert (table["earlier start"] + 2 <= table["start"] + 1e-6).all()


def test_the_exercise_accepts_its_solution_and_hints_otherwise():
    space = execute({"np": np}, "def alike(a, b)", "def check(made)")
    check = space["check"]
    assert "steps higher" in check(space["alike"])
    assert "one number" in check(lambda a, b: a)
    assert "itself should score 1" in check(lambda a, b: 0.5)
    assert "another melody" in check(lambda a, b: 1.0)
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {"np": np}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert check(solved["alike"]).startswith("Right")
