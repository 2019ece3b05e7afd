"""What chapter 13 claims, in small and on the tables it shows, with the code its readers see."""

import re

import numpy as np
import pandas as pd
import pytest
from chapter import Chapter

from musae_utils.latents import manipulate, spaces

execute = Chapter("13_pitch_loudness_timbre")


@pytest.fixture(scope="module")
def start():
    """The parameters, the imports, the latent model; no kept table."""
    space = execute({}, 'profile: str = "full"')
    space = execute({**space, "profile": "smoke"}, "latent = latents.load(space)")
    plan = spaces.Plan(24, 12, 6, 5.0, 40, 100, 8, 64, 80_000)
    return space | {"small": plan, "kept": None, "display": lambda *_: None}


@pytest.fixture(scope="module")
def live(start):
    """A few melodies and pieces, probed."""
    return execute(start, "here = probing.look", 'tried = {\n    "SAE"')


@pytest.fixture(scope="module")
def kept():
    if not spaces.TABLE.exists():
        pytest.skip("python -m musae_utils.latents.spaces has not been run")
    return spaces.load()


def test_pitch_is_read_off_latents_and_not_off_another_pieces(live):
    rows = live["three"].set_index(["source", "attribute"])
    for source in ("SAE", "latents"):
        row = rows.loc[source, "pitch"]
        assert row["low"] > row["chance"]
    train, test = (live["frames"][f"alone {half}"] for half in ("train", "test"))
    asked = spaces.questions(train, test, ["pitch"], {})
    roll = np.roll(asked["pitch"].test, len(test.z) // 2)
    asked = {"pitch": asked["pitch"]._replace(test=roll)}
    found = spaces.fit(train.z, test.z, asked, train.clip)
    (luck,) = spaces.scored(asked, found, test.clip)
    assert luck["high"] < rows.loc["latents", "pitch"]["score"]


def test_features_follow_notes_of_their_own_piece(live):
    space = execute(live, "def by_note(active, notes)")
    own, luck = space["shares"]
    assert own > luck + 0.05


def test_the_chapter_reads_a_small_table_as_it_reads_the_kept_one(live):
    said = []
    space = execute(
        {**live, "say": lambda *x: said.append(" ".join(x))},
        "S2 = {", "goals = {", "def rival(", "def lines(name)", "verdicts = pd.Series",
        "summary = []",
    )  # fmt: skip
    assert any("goal 0.87" in text for text in said)
    assert len(space["summary"]) == 12
    for line in space["summary"]:
        assert line["against mel"] == space["verdicts"]["nano-codec", line["attribute"]]


def test_alone_trackers_err_by_octaves_and_in_a_mix_by_more(kept):
    rows = kept["trackers"].set_index(["music", "a", "b"])
    for other in ("CREPE", "measured"):
        alone, mix = (rows.loc[(kind, "truth", other)] for kind in ("alone", "mix"))
        assert alone["chroma"] > 0.9 > alone["value"] - 0.1
        assert mix["high"] < alone["low"]


def test_the_boxes_are_read_at_the_spaces_they_belong_to(kept):
    table = kept["rows"]
    assert set(table["space"]) == set(spaces.SPACES)
    for space in spaces.SPACES:
        row = spaces.best(table, space, "pitch", "alone")
        assert row["low"] > 0.5 > row["chance"]
        assert row["n"] >= 90


def test_sparser_codes_say_less_about_pitch(kept):
    rows = kept["rows"]
    rows = rows[(rows["attribute"] == "pitch") & (rows["architecture"] == "rmsnorm")]
    rows = rows[(rows["expansion"] == 32) & (rows["music"] == "alone")].sort_values("setting")
    for _, own in rows.groupby("space"):
        assert own["sparsity"].is_monotonic_increasing
        assert own["score"].iloc[0] > own["score"].iloc[-1]


def test_how_bins_are_laid_moves_a_score_by_more_than_methods_do(kept):
    for space in spaces.SPACES:
        for kind in ("alone", "mix"):
            laid = [
                spaces.best(kept["rows"], space, f"loudness{how}", kind)["score"]
                for how in (" whole range", "", " equal count")
            ]
            assert laid[0] > laid[1] + 0.05


def test_notes_have_places_that_lie_on_no_line(kept):
    row = spaces.best(kept["rows"], "nano-codec", "pitch", "alone")
    assert row["score"] > 0.7 and row["mae"] > 2


def test_a_single_feature_does_not_carry_pitch(kept):
    few = kept["few"]
    for _, own in few[few["architecture"].isin(spaces.SAES)].groupby("space"):
        own = own.sort_values("kept")
        assert own["score"].iloc[0] < 0.25 < own["score"].iloc[-1]


@pytest.mark.skipif(not manipulate.TABLE.exists(), reason="manipulations have not been measured")
def test_what_is_read_best_is_not_what_is_turned_best(kept):
    turned = manipulate.figures(manipulate.load())
    pick = {a: spaces.best(kept["rows"], "nano-codec", a)["score"] for a in ("pitch", "loudness")}
    assert pick["loudness"] < pick["pitch"]
    reached = [turned[f"manipulate.codec.{a}"].value for a in ("loudness", "pitch")]
    assert reached[0] > reached[1] - 0.1


def test_the_exercise_accepts_its_solution_and_hints_otherwise(start):
    space = execute(start, "def control(labels, cells, rng)", "def check_control(made)")
    check = space["check_control"]
    assert "different answers" in check(space["control"])
    text = "\n".join(c.source for c in execute.cells if "dropdown} Solution" in c.source)
    (solution,) = (s for s in re.findall(r"```python\n(.*?)```", text, re.S) if "def control" in s)
    solved = {"np": np, "pd": pd}
    exec(solution, solved)
    assert check(solved["control"]).startswith("Right")

    def even(labels, cells, rng):
        return np.where(labels >= 0, rng.integers(0, 5, cells.max() + 1)[cells], -1)

    assert "60 % of the labels" in check(even)
    assert "one answer a frame" in check(lambda labels, cells, rng: labels[:5])
    fixed = lambda labels, cells, rng: solved["control"](labels, cells, np.random.default_rng(0))  # noqa: E731
    assert "other answers" in check(fixed)
