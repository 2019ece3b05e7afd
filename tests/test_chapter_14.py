"""What chapter 14 claims, planted and on the table it shows, with the code its readers see."""

import re

import numpy as np
import pandas as pd
import pytest
from chapter import Chapter

from musae_utils import models, show, stats
from musae_utils.latents import birth
from musae_utils.latents.flow import load_flow

execute = Chapter("14_how_a_sound_is_born")
STEPS, UNITS = 32, 30


@pytest.fixture(scope="module")
def table():
    if not birth.TABLE.exists():
        pytest.skip("make latents has not been run")
    return birth.load()


def made(settle, decide, seed=0):
    """A table in which attributes are settled and decided at planted steps."""
    rng = np.random.default_rng(seed)
    at = list(range(0, STEPS + 1, 2))
    falls = np.clip(1 - np.array(at) / settle, 0, 1)[:, None] * rng.uniform(0.9, 1.1, UNITS)
    later = np.clip(1 - np.array(at) / STEPS, 0, 1)[:, None] * rng.uniform(0.9, 1.1, UNITS)
    every = lambda x: dict.fromkeys(birth.UNITS, x)  # noqa: E731
    part = lambda error: {"at": at, "error": every(error), "moved": every(error[:1] - error)}  # noqa: E731
    course = {"prediction": part(falls), "state": part(later), "stranger": every(np.ones(UNITS)),
              "average": every(np.full(UNITS, 0.7))}  # fmt: skip
    own = np.where(np.array(at) >= decide, 0.0, 1.0)[:, None] * rng.uniform(0.9, 1.1, UNITS)
    far = every(np.ones_like(own))
    swap = {"at": at, "own": every(own), "donor": every(own.max(0) - own), "stranger": far,
            "strangers": far}  # fmt: skip
    yes, no = np.ones(UNITS), np.zeros(UNITS)
    return {"course": course, "swap": swap, "louder": 3 * yes, "higher": 5 * yes,
            "obeyed": dict.fromkeys(birth.TAGS, yes),
            "chance": dict.fromkeys(birth.TAGS, no)}  # fmt: skip


def read(kept):
    """The chapter's reading of a table: what it says, and the tables it shows."""
    said, shown = [], []
    space = {"table": kept, "units": UNITS, "last": STEPS, "full": True, "birth": birth, "np": np,
             "pd": pd, "stats": stats, "show": show, "curves": lambda *_: None,
             "display": shown.append, "say": lambda *x: said.append(" ".join(x))}  # fmt: skip
    space = execute(space, 'course = table["course"]', "published = {", 'swap = table["swap"]',
                    "before = [m for m")  # fmt: skip
    return space, "\n".join(said), shown


def test_what_is_decided_before_it_is_settled_is_said_so():
    space, said, shown = read(made(settle=24, decide=8))
    assert f"*before* the prediction is settled: {', '.join(birth.UNITS)}; after it: none" in said
    assert space["when"]["pitch"].value == pytest.approx(7, abs=1)
    assert space["found"]["prediction", "pitch"].value == pytest.approx(21.6, abs=1)
    assert f"In {', '.join(birth.UNITS)} the prediction is settled before the state" in said
    assert "tonic 100% (another's prompt: 0%)" in said
    assert shown[0].loc["loudness", "S2, DiffRhythm"] == "never"


def test_and_the_other_way_round():
    _, said, _ = read(made(settle=8, decide=24))
    assert f"is settled: none; after it: {', '.join(birth.UNITS)}" in said
    assert "Longest open is" in said and "until step 23.0 of 32" in said


def test_strangers_are_never_followed():
    kept = made(settle=8, decide=24)
    space, _, shown = read(kept)
    assert all(i.value == 0 for i in space["null"].values())
    assert shown[1].loc["pitch", "null"].startswith("0.0 [0.0, 0.0]")


def test_the_exercise_accepts_its_solution_and_hints_otherwise():
    space = execute({"np": np}, "def settle(moved)", "def check(made)")
    check = space["check"]
    assert "passes through 1" in check(space["settle"])
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {"np": np}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert check(solved["settle"]).startswith("Right")

    def mean_that_stays(moved):
        s = (moved / moved[-1]).mean(1)
        return int(np.flatnonzero(np.abs(s - 1) >= 0.1)[-1]) + 1

    assert "end where they began" in check(mean_that_stays)
    assert "rise until step 20" in check(lambda moved: 3)


def test_the_table_is_of_the_models_that_ship(table):
    about = table["provenance"]
    assert about["flow"] == birth.fingerprint(load_flow())
    assert about["model"] == models.load("nano").fingerprint
    assert about["plan"]["pairs"] >= 64


def test_music_is_decided_before_it_is_settled(table):
    found = birth.figures(table)
    for name in birth.FRAMES:
        decided, null, read_, noisy = (
            found[f"birth.{name}_{what}"]
            for what in ("decided", "decided.null", "settle", "settle.noisy")
        )
        assert decided.above(null), name
        assert read_.above(decided) and noisy.above(read_), name
    for name in birth.TAGS:
        said, luck = (stats.bootstrap(table[which][name]) for which in ("obeyed", "chance"))
        assert said.above(luck), name


def test_the_language_model_reads_the_key_deepest_and_writes_the_pitch_first(table):
    found = birth.figures(table)
    assert found["birth.layer.tonic"].above(found["birth.layer.pitch"])
    assert found["birth.codebook.first.pitch"].above(found["birth.codebook.last.pitch"])
    assert found["birth.codebook.first.pitch"].above(found["birth.codebook.first.family"])
