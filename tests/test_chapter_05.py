"""What chapter 05 claims, on less music than the chapter takes, with the code its readers see."""

import re

import numpy as np
import pytest
import torch
from chapter import Chapter

from musae_utils import models  # noqa: F401  # before audiocraft

execute = Chapter("05_harvesting_activations")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The parameters, the imports, the nano model, eight pieces and their store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("chapter"))
        space = execute.begin()
        yield execute(space, "sounds = zlib.crc32")


@pytest.fixture(scope="module")
def checked(start):
    return execute(start, "def apart(vector)")


@pytest.fixture(scope="module")
def rows(checked):
    """All rows of the store, and of the untrained twin."""
    return execute(checked, "probes.untrained(musicgen, seed)")


@pytest.fixture(scope="module")
def ruled(rows):
    return execute(rows, "def onset_effect(", "def top_share(energy)", n=8)


def test_the_terms_of_the_stream_add_up(start):
    made_of = execute(start, "hooks = {}, []", "made_of = pd.DataFrame")["made_of"]
    assert (made_of["does not add up"] < 1e-5).all()
    assert (made_of["… with a strange MLP"] > 0.01).all()
    shares = made_of[[c for c in made_of if c.startswith("from ") and "," not in c]]
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-4)


def test_a_row_is_the_stream_at_its_frame_and_at_no_other(checked):
    table = checked["checked"]
    assert table["equal"].tolist() == [True, False, False, False, False]
    assert (table["distance / length"].astype(float)[1:] > 0.02).all()


def test_a_harvest_that_was_killed_ends_with_the_same_files(start, capsys):
    space = execute(start, "def until_the_power_fails", "short[::-1]")
    killed = space["killed"]
    assert killed["at the kill"].notna().any() and killed["at the kill"].isna().any()
    assert (killed["resumed"] == killed["left in peace"]).all()
    printed = capsys.readouterr().out
    assert "is not finished" in printed and "refused:" in printed
    assert space["temporary"].name not in printed


def test_rulers_of_length_and_of_axes_find_what_is_there(ruled):
    own, turned = ruled["found"], ruled["found_turned"]
    assert own.low > 0.4 > 2 * turned.max()  # the planted dimension, and its end in other axes
    assert int((ruled["planted"] ** 2).mean((0, 1)).argmax()) == ruled["victim"]
    begun = np.array(ruled["starts"])
    assert 0.01 < begun.mean() < 0.5
    marked = torch.ones(len(begun), begun.shape[1], 4)
    marked[torch.from_numpy(begun)] *= 1.5
    assert np.isclose(ruled["onset_effect"](marked).value, 0.5)


def test_strangers_differ_more_once_the_mean_is_gone(ruled):
    means = execute(ruled, "def removed(rows, mean)")["means"]
    for row in means.values():
        assert row["mean takes"].value > row["signs tossed"].value


def test_the_effective_dimension_is_that_of_known_rows(ruled):
    space = execute(ruled, "def participation(c)")
    of = space["effective_dimension"]
    rows = torch.randn(20, 200, 12, generator=torch.Generator().manual_seed(0))
    assert np.isclose(of(rows).value, 12, rtol=0.03)
    rows[..., 4:] = 0
    assert np.isclose(of(rows + 5).value, 4, rtol=0.03)
    assert np.isclose(space["turned"], space["used"][space["middle"]].value, rtol=1e-3)
    for layer in space["stations"]:
        assert space["used"][layer].value < space["unrelated"][layer] <= space["width"]


def test_neighbours_are_not_independent_and_shuffling_helps(ruled):
    space = execute(ruled, "def alike(rows, lag", "def worth(rows)", "def unfair(batches")
    near, far = space["likeness"]["own piece"][0], space["likeness"]["another piece"][0]
    assert near.low > 0.3 and near.above(far)
    assert space["independent"].high < 0.3 * space["n_rows"]
    assert space["by_chance"].value > 0.5 * space["n_rows"]
    assert space["same"] is True
    fairness = space["fairness"]
    assert fairness["store.batches"] < 3 < fairness["store, in order"]


def test_the_worth_of_rows_is_that_of_known_rows(ruled):
    worth = execute(ruled, "def alike(rows, lag", "def worth(rows)")["worth"]
    rows = torch.randn(30, 40, 50, generator=torch.Generator().manual_seed(0))
    assert np.isclose(worth(rows).value, 40, rtol=0.1)
    assert np.isclose(worth(rows.repeat_interleave(5, 1)).value, 40, rtol=0.1)


def test_costs_are_measured_and_extrapolated(rows):
    space = execute(rows, "def clock(work)", "def work(width, depth)")
    seconds = space["measured"].iloc[:, 0]
    assert (seconds > 0).all()
    estimate = space["estimate"]
    assert np.isclose(estimate.loc["musicgen-small", "TB in bfloat16"], 160e3 * 497 * 5 * 2048e-12)
    assert estimate["days of reading here"].is_monotonic_increasing
    weights = sum(
        p.numel() for p in space["musicgen"].lm.transformer.layers[0].parameters() if p.dim() > 1
    )
    assert space["work"](space["musicgen"].dim, 1) == 2 * weights


def test_bfloat16_loses_less_than_a_frame(rows):
    precision = execute(rows, "exact = again[middle]")["precision"]
    lost = precision["error / step to the next frame"]
    assert lost["float32"] == 0 and 0 < lost["bfloat16"] < 0.1


def test_the_exercise_has_hints_and_a_solution(ruled):
    space = execute(ruled, "def removed(rows, mean)", "def scaler(rows)", "def check(made)")
    check, width = space["check"], space["width"]
    (told,) = [cell.source for cell in execute.cells if "dropdown} Solution" in cell.source]
    solution = re.search(r"```python\n(.*?)```", told, re.S)[1]
    assert "nothing has changed" in check(space["scaler"])
    exec(solution, space)
    assert check(space["scaler"]).startswith("Right")

    def size(x):
        return (x.square().sum(-1).mean() / width).sqrt()

    wrong = {
        "a tensor of the shape": lambda a: lambda x: x[0],
        "should be zero": lambda a: lambda x: x / size(x),
        "on average": lambda a: lambda x: x - a.mean(0),
        "angles": lambda a: lambda x: (x - a.mean(0)) / a.std(0),
        "company": lambda a: lambda x: (x - x.mean(0)) / size(x - x.mean(0)),
    }
    for hint, made in wrong.items():
        assert hint in check(made), hint
