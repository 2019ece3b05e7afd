"""What chapter 11 claims, in small and on the table it shows, with the code its readers see."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chapter import Chapter

from musae_utils import models, stats
from musae_utils.steering import experiment, outcome

execute = Chapter("11_steering_at_scale")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The parameters, the imports, the nano model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("chapter"))
        yield execute.begin()


@pytest.fixture(scope="module")
def table():
    if not experiment.TABLE.exists():
        pytest.skip("make steering has not been run")
    return experiment.load()


def made(methods=("output", "activation", "random", "prompt", "inactive"), seed=0):
    """A table as `make steering` keeps it: only features chosen by output do anything."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        [(m, s, c, f"{p}.{k}") for m in methods for s in ((0.5, 2.0) if m == "output" else (0.5,))
         for c in "abcdef" for p in range(4) for k in range(2)],
        columns=["method", "strength", "concept", "unit"],
    )  # fmt: skip
    rows["judge"] = rng.normal(0, 0.1, len(rows)) + 0.3 * (rows["method"] == "output")
    for name in ("tagger", "others", "nats", "harmonic", "loops", "silence"):
        rows[name] = rng.random(len(rows))
    rows["broken"] = rows["strength"] == 2.0
    chosen = pd.DataFrame({"by": "output", "concept": list("abcdef"), "feature": range(6)})
    about = {"layers": [1], "prompts": ["a"] * 4, "music": "none", "model": "none",
             "plan": {"strength": 0.5, "doses": [2.0]}}  # fmt: skip
    return {"rows": rows, "provenance": about, "frechet": dict.fromkeys(methods, 1.0),
            "chosen": {"output": chosen, "activation": chosen.assign(by="activation")}}  # fmt: skip


def read(start, kept, **more):
    """The chapter's reading of a table, with its texts caught."""
    said = []
    same = {name: getattr(experiment, name) for name in ("TABLE", "Plan", "NEGATIVE")}
    about = SimpleNamespace(load=lambda: kept, **same)
    kept["provenance"]["model"] = start["musicgen"].fingerprint
    space = execute(
        {**start, "experiment": about, "say": lambda *x: said.append(" ".join(x)),
         "measures": ["judge", "nats"], "display": lambda *_: None, **more},
        "kept = experiment.load()", "**Primary outcome.**", "table_of_duels = ",
        "def compared(by)", "breaks = outcome.breaks_at",
    )  # fmt: skip
    return space, "\n".join(said)


@pytest.mark.skipif(not experiment.TABLE.exists(), reason="make steering has not been run")
def test_what_raises_is_counted_and_noise_is_not(start):
    space, said = read(start, made())
    assert space["counted"]["output"].value == 1
    assert space["counted"]["random"].value < 0.2 and space["counted"]["activation"].value < 0.2
    assert space["duels"]["random"][0].low > 4
    assert "**100%**" in said and "Better than the feature**, by the interval of" in said
    assert "none. Not told apart: none." in said
    assert "Most rows are broken from strength 2 on." in said


@pytest.mark.skipif(not experiment.TABLE.exists(), reason="make steering has not been run")
def test_nothing_is_claimed_where_nothing_works(start):
    kept = made()
    kept["rows"]["judge"] -= 0.3 * (kept["rows"]["method"] == "output")
    space, said = read(start, kept)
    assert space["counted"]["output"].value < 0.2
    assert "Not told apart: none" not in said


def test_the_table_is_of_this_model_and_of_a_judge_that_chose_nothing(table):
    about = table["provenance"]
    assert about["model"] == models.load("nano").fingerprint
    assert about["ears"]["tagger"] != about["ears"]["clap"]
    plan = experiment.Plan(**about["plan"])
    rows = table["rows"]
    main = rows[rows["strength"].isin([plan.strength, 0.0])]
    units = len(about["prompts"]) * plan.scoring
    counts = main.groupby(["method", "concept"])["unit"].nunique()
    assert (counts == units).all() and units >= 8
    assert {*experiment.RIVALS, *experiment.NEGATIVE, "prompt", "prompt + output", "activation"} < {
        *main["method"]
    }


def test_features_were_chosen_by_their_screening_alone(table):
    plan = experiment.Plan(**table["provenance"]["plan"])
    again = experiment.clearest(table["screen"], "t", plan)
    assert again["feature"].tolist() == table["chosen"]["output"]["feature"].tolist()
    follow = table["chosen"]["activation"]["score"]
    assert follow.is_monotonic_decreasing and (follow > 0.5).all()


def test_the_chapters_share_is_the_boards(table):
    figures = experiment.figures(table)
    rows, plan = table["rows"], experiment.Plan(**table["provenance"]["plan"])
    main = rows[rows["strength"].isin([plan.strength, 0.0])]
    found = outcome.test(main, ["method", "concept"]).loc["output"]
    share = (found["adjusted"] < 0.05).mean()
    assert figures["steering.improved_share"].value == pytest.approx(share)


def test_the_exercise_accepts_its_solution_and_hints_otherwise(start):
    space = execute(start, "def raised(change)", "def check(made)")
    check = space["check"]
    assert "Noise is above zero" in check(space["raised"])
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {"stats": stats}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert check(solved["raised"]).startswith("Right")

    def uncorrected(change):
        p = [stats.paired_test(row, 0 * row, alternative="greater").p for row in change]
        return np.array(p) < 0.05

    assert "correct for how many" in check(uncorrected)
    assert "you find" in check(lambda change: np.zeros(len(change), bool))
    assert "one bool for each" in check(lambda change: change.mean(1))
