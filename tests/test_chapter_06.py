"""What chapter 06 claims, on less music and fewer steps, with the code its readers see."""

import re

import numpy as np
import pytest
import torch
from chapter import Chapter

from musae_utils import models  # noqa: F401  # before audiocraft

execute = Chapter("06_training_sparse_autoencoders")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The parameters, the imports, the nano model, and the planted directions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("chapter"))
        space = execute.begin()
        yield execute(space, "planted, active = 40, 3", "def by_hand(", "def matched(")


@pytest.fixture(scope="module")
def layer(toy):
    """A small harvest, its rivals, and an SAE on each."""
    space = execute(toy, "clips = music.make_many", "def read(part", "def pca(rows, k)", n=16)
    return execute(space, "def picture()", "def unexplained(one")


@pytest.fixture(scope="module")
def heard(layer):
    return execute(layer, "contenders = {", "def nats(name, book", "def played(piece, cut)")


@pytest.fixture(scope="module")
def recipes(layer):
    return execute(layer, "recipes = {")


def test_planted_directions_are_found_where_they_are_planted(toy):
    found = toy["found"]
    by_hand = found["SAE by hand"]
    assert (by_hand > 0.9).sum() >= 36
    for rival, cosines in found.items():
        assert cosines.shape == (40,)
        assert rival == "SAE by hand" or by_hand.mean() > cosines.mean() + 0.2, rival
    turned = torch.linalg.qr(torch.randn(20, 20))[0]
    assert np.allclose(toy["matched"](toy["truth"][torch.randperm(40)]), 1, atol=1e-5)
    assert toy["matched"](toy["truth"] @ turned).mean() < 0.6


def test_the_loss_falls_while_the_truth_is_lost(toy):
    by_k = execute(toy, "sparsities = [")["by_k"]
    assert by_k["fvu"].is_monotonic_decreasing
    assert by_k["fvu"].iloc[-1] < by_k.loc[3, "fvu"] / 3
    assert by_k.loc[3, "found"] > by_k["found"].iloc[-1] + 0.15


def test_the_library_finds_them_too_and_twice_the_same(toy):
    space = execute(toy, "def by_library(seed)", "twice = sae.seed_stability")
    for one in space["toys"]:
        assert (space["matched"](one.W_dec) > 0.9).sum() >= 36
    assert 36 <= space["agree"] <= 50  # forty were planted; of the other twenty few agree


def test_fvu_and_its_interval_are_those_of_known_reconstructions(layer):
    y, unexplained = layer["y"], layer["unexplained"]
    assert unexplained(lambda rows: rows, y).value == 0
    assert np.isclose(unexplained(lambda rows: rows.mean(0).expand_as(rows), y).value, 1)
    value, low, high, count = unexplained(layer["trained"]["the model"].sae, y)
    assert low < value < high and count == len(layer["score"].clips)
    assert np.isclose(value, layer["fvu"](y, layer["trained"]["the model"].sae(y)), rtol=1e-3)


def test_pca_as_an_sae_is_pca(layer):
    x, k = layer["x"], layer["k"]
    found = layer["sae"].evaluate(layer["pca"](x, k), x)
    spectrum = torch.linalg.eigvalsh(torch.cov(x.T))
    assert np.isclose(found["fvu"], float(spectrum[:-k].sum() / spectrum.sum()), rtol=1e-2)
    assert np.isclose(found["l0"], k, atol=0.01)


def test_sae_explains_pieces_never_seen_and_remembers_those_it_saw(layer):
    assert not {c.group for c in layer["learn"].clips} & {c.group for c in layer["score"].clips}
    for name, row in layer["left_over"].items():
        assert row["SAE before its first step"].low > row["SAE"].high, name
        assert row["SAE"].low > row["SAE, pieces learned"].high, name
    scores = {name: row["SAE, pieces learned"].value for name, row in layer["left_over"].items()}
    assert scores["the model"] < scores["shuffled"] - 0.05
    assert scores["untrained"] < 0.5  # so that a small FVU alone says nothing about learning


def test_rivals_keep_what_they_should_and_lose_the_rest(layer):
    x, mixed = layer["x"], layer["data"]["shuffled"][0]
    assert torch.equal(x.sort(0).values, mixed.sort(0).values)
    spread, mixed = torch.corrcoef(x.T).abs().mean(), torch.corrcoef(mixed.T).abs().mean()
    assert mixed < 0.7 * spread
    again = layer["read"](layer["score"])  # with the learned weights back
    assert (again - layer["y"]).norm() < 0.01 * layer["y"].norm()
    idle = layer["data"]["untrained"][1]
    assert idle.shape == layer["y"].shape and (idle - again).norm() > 0.5 * idle.norm()


def test_a_stopped_training_ends_with_the_same_weights(layer, capsys):
    space = execute(layer, "asked = iter(range")
    assert (space["half"].ended, space["half"].steps) == ("stopped", 15)
    assert (space["resumed"].ended, space["resumed"].steps) == ("finished", 40)
    assert space["same"] is True
    halfway = space["half"].sae.W_dec
    assert not torch.equal(halfway, space["calm"].sae.W_dec)
    assert "sae.safetensors" in capsys.readouterr().out


def test_a_reconstruction_costs_less_than_no_stream_and_a_perfect_one_nothing(heard):
    lost = heard["lost"]
    for book in heard["books"]:
        assert lost["zeros"][book].low > lost["SAE"][book].high > lost["SAE"][book].low > 0
    perfect = heard["pca"](heard["x"], heard["width"])
    found = heard["sae"].spliced(perfect, heard["musicgen"], heard["few"][:1])
    assert np.isclose(found["ce_loss_score"], 1, atol=1e-3)
    assert heard["recovered"]["SAE"].above(0.3)


def test_what_is_heard_differs_by_the_stream_alone(heard):
    (codes,), cut = heard["takes"], heard["cut"]
    assert (codes[..., :cut] == heard["begun"][0][..., :cut]).all()
    plain = (
        heard["trace"]
        .edit(heard["musicgen"], [])
        .generate(None, heard["seconds"], prompt_codes=codes[:1, :, :cut], seed=heard["seed"])
    )
    assert torch.equal(plain.codes[0], codes[0])
    assert all(not torch.equal(codes[0], row) for row in codes[1:])
    assert (heard["surprised"]["zeros"] > heard["surprised"]["its own stream"]).all()


def test_where_it_fails_is_counted_against_another_piece(layer):
    space = execute(layer, "def at_begins(shift)", "def excerpt(piece, frame)")
    begins = np.array(space["begins"])
    assert 0.01 < begins.mean() < 0.5
    space["wrong"][:] = 1 + 0.5 * begins
    assert np.isclose(space["at_begins"](0).value, 0.5)
    assert abs(space["at_begins"](1).value) < 0.3
    heights = {why: [space["inside"][i, t] for i, t in m] for why, m in space["moments"].items()}
    assert len(heights) == 3 and all(len(each) == 3 for each in heights.values())


def test_the_frontier_has_all_architectures_at_their_sparsity(layer):
    space = execute(layer, "def grid():", "def at_same(l0)", steps=30)
    frontier = space["frontier"]
    assert set(frontier["architecture"]) == set(space["sae"].ARCHITECTURES)
    own = frontier[frontier["architecture"] == "topk"]
    assert own["L0"].tolist() == [8, 32] and own["fvu"].is_monotonic_decreasing
    assert np.allclose(own["against TopK"], 1)
    assert (frontier["fvu"].between(frontier["low"], frontier["high"])).all()
    bias = frontier.set_index("architecture")["bias"]
    assert bias["standard"] < bias["topk"].min()  # L1 shrinks


def test_haste_makes_dead_features(recipes):
    dead = recipes["dead"]
    assert dead.loc["in a hurry", "never active"] > dead.loc["as above", "never active"] + 0.05
    assert dead.loc["in a hurry", "FVU"] < dead.loc["before its first step", "FVU"]


def test_two_seeds_share_more_than_chance_and_music_helps(layer):
    space = execute(layer, "def pair(rows)", steps=120)
    by_music, random = space["by_music"], space["random"]
    assert by_music["mean"].iloc[-1] > random.mean + 0.02
    assert (by_music["learned"] < [i.low for i in by_music["new"]]).all()
    assert by_music["new"].iloc[-1].high < by_music["new"].iloc[0].low


def test_the_cost_of_s1_is_extrapolated_from_rates(recipes):
    space = execute(recipes, "s1 = sae.presets.s1_small()", "def rate(done)")
    costs = space["s1_costs"]
    assert costs.loc["small, × 32", "features"] == 32768
    assert np.isclose(space["s1"].steps * 64, 126_093 * 501, rtol=1e-5)
    for column in (c for c in costs if "days" in c):
        ratio = costs.loc["small, × 32", column] / costs.loc["small, × 4", column]
        assert np.isclose(ratio, 8) and (costs[column] > 0).all()


def test_the_exercise_has_hints_and_a_solution(layer):
    space = execute(layer, "def batch_top_k(", "def check(made)")
    check = space["check"]
    (told,) = [cell.source for cell in execute.cells if "dropdown} Solution" in cell.source]
    assert "numbers are kept" in check(space["batch_top_k"])
    exec(re.search(r"```python\n(.*?)```", told, re.S)[1], space)
    right = space["batch_top_k"]
    assert check(right).startswith("Right")

    def by_row(z, k):
        f = z.relu()
        return f * (f >= f.topk(min(k, f.shape[1])).values[:, -1:])

    def smallest(z, k):
        f = z.relu().flatten()
        f[f.argsort(descending=True)[2 * k * len(z) :]] = 0
        f[f.argsort(descending=True)[: k * len(z)]] = 0
        return f.view_as(z)

    wrong = {
        "the shape of z": lambda z, k: z[0],
        "only positive": lambda z, k: z,
        "stays as it is": lambda z, k: 2 * right(z, k),
        "larger numbers": smallest,
        "numbers are kept": lambda z, k: z.relu(),
    }
    for hint, made in wrong.items():
        assert hint in check(made), hint
    assert "larger numbers" in check(by_row) or "batch decide" in check(by_row)
