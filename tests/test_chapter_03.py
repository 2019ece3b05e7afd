"""What chapter 03 claims, on less music than the chapter takes, with the code its readers see."""

import re

import numpy as np
import pytest
import torch
from chapter import Chapter

from musae_utils import models  # noqa: F401  # before audiocraft

execute = Chapter("03_tracing_and_intervening")


@pytest.fixture(scope="module")
def start():
    """The parameters, the imports, the nano model, and the residual streams of two pieces."""
    space = execute.begin()
    return execute(space, "nn = nnsight.NNsight", "kept = {}", "stations = list(streams)")


@pytest.fixture(scope="module")
def pushed(start):
    return execute(start, "def random_direction(length")


@pytest.fixture(scope="module")
def drummed(pushed):
    """The drums direction, and three openings continued under it."""
    names = ("means = {}", "plan = pd.DataFrame", "def brightness(", "def surprise(take)")
    return execute(pushed, *names, n=3)


def test_three_ways_to_read_the_stream_agree_to_the_bit(start):
    stream = start["streams"][start["middle"]]
    assert torch.equal(stream, start["raw"])
    assert torch.equal(stream, start["kept"]["hooked"])
    assert not torch.equal(stream, start["next_door"])


def test_a_layer_adds_something_that_fits_its_own_piece(start):
    lengths = start["lengths"]
    assert (lengths["length after"] > lengths["length before"]).all()
    own, other = (lengths[c].abs().mean() for c in ("cosine", "cosine, other piece"))
    assert own > 1.5 * other  # late layers take away, so it is the size that tells


def test_a_changed_code_moves_the_stream_where_the_map_says(start):
    impulse = execute(start, "def moved(codebook)")["impulse"]
    for name in impulse:
        if name.startswith("first moved"):
            assert (impulse[name] == impulse["expected"]).all(), name
    assert (impulse["positions moved, embed"] == 1).all()
    assert (impulse[f"positions moved, {start['middle']}"] > 50).all()


def test_codes_and_strokes_are_read_best_where_the_map_says(start):
    space = execute(start, "def ridge(x, y)", "def ranked(predicted", n=3)
    codes, strokes = space["code_curves"], space["stroke_curves"]
    shifts, middle = space["shifts"], space["middle"]
    for k in range(start["musicgen"].n_codebooks):
        assert max(shifts, key=lambda d, k=k: codes["embed", k, d]) == k
        others = [codes["embed", k, d] for d in shifts if d != k]
        assert codes["embed", k, k] > max(others) + 0.03
    right, early = (strokes[middle, "true", d].value for d in (0, -4))
    assert right > early + 0.05
    assert right > strokes[middle, "other", 0].value + 0.15


def test_edits_that_must_change_nothing_change_nothing(pushed):
    nothing = execute(pushed, "by_row = ")["nothing"]
    assert (nothing["codes changed"] == 0).all()
    assert (nothing.iloc[:, 1] > 0.2).all()  # the same push is felt where it acts


def test_no_layer_sees_a_constant(pushed):
    invisible = execute(pushed, "def response(direction)")["invisible"]
    constant, random = invisible.loc["a constant"], invisible.loc["random, zero mean"]
    assert np.isclose(constant["stream moves by"], random["stream moves by"], rtol=0.01)
    by = "largest change of a logit"
    assert constant[by] < 1e-3 * random[by]


def test_the_ruler_tells_drums(drummed):
    ruler = drummed["ruler"]
    assert ruler[True].min() > ruler[False].max() + 3  # dB


def test_half_of_the_pieces_find_the_direction_of_the_other_half(drummed):
    assert drummed["agreement"](drummed["each"]) > 0.4
    assert drummed["direction"].norm() > 1.3 * drummed["chance_length"]
    assert abs(drummed["direction"].mean()) < 1e-4


def test_the_drums_direction_puts_drums_in_and_a_random_one_does_not(drummed):
    values, ruler = drummed["values"], drummed["ruler"]
    unedited, random, drums = (
        values("high", *row) for row in (("drums", 0), ("random", 2), ("drums", 2))
    )
    assert drums.mean() > unedited.mean() + 8  # dB
    assert drums.mean() > random.mean() + 5
    assert drums.mean() > (ruler[True].mean() + ruler[False].mean()) / 2


def test_more_is_not_better(drummed):
    effect = drummed["effect"]
    assert effect("nats", "drums", 4).value > effect("nats", "drums", 1).value


def test_the_exercise_has_hints_and_a_solution(drummed):
    space = execute(drummed, "def without_drums(x)", "def check(function)")
    check, unit, level = space["check"], space["unit"], space["level"]
    (told,) = [cell.source for cell in execute.cells if "dropdown} Solution" in cell.source]
    solution = re.search(r"```python\n(.*?)```", told, re.S)[1]
    exec(solution, space)
    assert check(space["without_drums"]).startswith("Right")
    wrong = {
        "how long is the part": lambda x: x,
        "of the shape": lambda x: x[0],
        "right angles": lambda x: x * 0.5,
        "zero is not": lambda x: x - (x @ unit)[..., None] * unit,
        "should be": lambda x: x + (2 * level + 9 - x @ unit)[..., None] * unit,
        "was changed": lambda x: x.sub_((x @ unit)[..., None] * unit),
    }
    for hint, function in wrong.items():
        assert hint in check(function), hint
