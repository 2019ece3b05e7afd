"""What each architecture computes, by hand; files; hook points; refusals."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from musae_utils.sae import ARCHITECTURES, SAE, SAEConfig, presets
from musae_utils.sae.architectures import geometric_median

HOOK = {"model": "nano", "layer": 3, "path": "transformer.layers.3", "fingerprint": "0123abcd"}


def config_for(architecture, d=4, n=8, **fields):
    k = 2 if architecture in ("topk", "batch_topk", "matryoshka") else None
    return SAEConfig.of(d, n / d, k, architecture, **fields)


def by_hand(architecture, **fields):
    """Two inputs; features 0 and 1 read them, 2 and 3 their negatives."""
    sae = SAE(SAEConfig.of(2, 2, None, architecture, **fields), seed=None)
    eye = torch.eye(2)
    sae.W_enc.data = torch.cat([eye, -eye])
    sae.W_dec.data = torch.cat([eye, -eye])
    return sae


def of_kind(architecture, k):
    sae = by_hand("standard")
    fields = {"prefixes": (2, 4)} if architecture == "matryoshka" else {}
    sae.config = SAEConfig(2, 4, architecture, k, **fields)
    return sae


X = torch.tensor([[3.0, -1.0], [0.25, 0.5]])


def test_standard_by_hand():
    sae = by_hand("standard")
    assert sae.encode(X).tolist() == [[3, 0, 0, 1], [0.25, 0.5, 0, 0]]
    assert torch.equal(sae(X), X)


def test_top_k_by_hand():
    assert of_kind("topk", 1).encode(X).tolist() == [[3, 0, 0, 0], [0, 0.5, 0, 0]]
    # Only two features are positive: the third of three stays 0.
    assert of_kind("topk", 3).encode(X).tolist() == [[3, 0, 0, 1], [0.25, 0.5, 0, 0]]


@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka"])
def test_batch_top_k_uses_its_threshold_and_no_neighbours(architecture):
    sae = of_kind(architecture, 1)
    sae.threshold.fill_(0.5)
    assert sae.encode(X).tolist() == [[3, 0, 0, 1], [0, 0.5, 0, 0]]
    assert torch.equal(sae.encode(X[:1]), sae.encode(X)[:1])


def test_a_threshold_calibrates_to_k_on_average():
    sae = SAE(config_for("batch_topk", 8, 64))
    x = torch.randn(500, 8)
    sae.calibrate(x)
    assert (sae.encode(x) > 0).sum(1).float().mean() == pytest.approx(2, abs=0.01)
    with pytest.raises(ValueError, match="no threshold"):
        SAE(config_for("topk")).calibrate(x)


def test_jump_relu_by_hand():
    sae = by_hand("jumprelu")
    sae.jump.data = torch.tensor([0.3, 0.5, 0.0, 1.0])
    assert sae.encode(X).tolist() == [[3, 0, 0, 0], [0, 0, 0, 0]]
    sae.jump.data = torch.tensor([0.2, 0.4, 0.0, 0.9])
    assert sae.encode(X).tolist() == [[3, 0, 0, 1], [0.25, 0.5, 0, 0]]


def test_gated_by_hand():
    sae = by_hand("gated")
    sae.b_enc.data = torch.tensor([-1.0, 0.0, 0.0, 0.0])  # closes the gate of the first below 1
    sae.r_mag.data.fill_(np.log(2))
    sae.b_mag.data.fill_(0.5)
    assert sae.encode(X).tolist() == [[6.5, 0, 0, 2.5], [0, 1.5, 0, 0]]


def test_root_mean_square_norm_by_hand():
    sae = by_hand("rmsnorm")
    f = sae.encode(X)
    h = X.new_tensor([[3, 0, 0, 1], [0.25, 0.5, 0, 0]])
    torch.testing.assert_close(f, h / h.square().mean(1, keepdim=True).sqrt(), rtol=1e-4, atol=0)
    # Music twice as loud has the same code: that is the point of it.
    torch.testing.assert_close(sae.encode(2 * X), f, rtol=1e-4, atol=0)


@pytest.mark.parametrize("applied", [True, False])
def test_scale_and_bias_by_hand(applied):
    sae = by_hand("standard", apply_b_dec_to_input=applied)
    sae.scale.fill_(2.0)
    sae.b_dec.data = torch.tensor([1.0, 0.0])
    z = [[5, -2], [-0.5, 1]] if applied else [[6, -2], [0.5, 1]]
    f = torch.tensor([[max(a, 0), max(b, 0), max(-a, 0), max(-b, 0)] for a, b in z])
    assert torch.equal(sae.encode(X), f)
    torch.testing.assert_close(sae(X), X if applied else X + torch.tensor([0.5, 0.0]))
    # One more unit of feature 1 moves the stream by its direction.
    more = f.clone()
    more[:, 1] += 1
    torch.testing.assert_close(
        sae.decode(more) - sae.decode(f), sae.directions[1].expand(2, -1), rtol=1e-6, atol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ARCHITECTURES), st.integers(1, 5), st.integers(0, 1000))
def test_the_sparse_code_is_the_dense_one(architecture, rows, seed):
    sae = SAE(config_for(architecture, 6, 24), seed=seed)
    sae.threshold.fill_(0.5)
    generator = torch.Generator().manual_seed(seed)
    sae.b_dec.data = torch.randn(6, generator=generator)
    x = torch.randn(rows, 6, generator=generator)
    with torch.no_grad():
        dense, sparse = sae.encode(x), sae.encode_sparse(x)
        again = torch.zeros_like(dense).scatter_add(1, sparse.indices, sparse.values)
        torch.testing.assert_close(again, dense)
        torch.testing.assert_close(sae.decode(sparse), sae.decode(dense), rtol=1e-4, atol=1e-5)
        assert (sparse.values.diff(dim=1) <= 0).all()
        torch.testing.assert_close(sae(x[None]), sae(x)[None])  # any leading dimensions


def test_a_geometric_median_is_not_moved_by_one_huge_activation():
    x = torch.randn(200, 5)
    far = torch.cat([x, torch.full((1, 5), 1e6)])
    assert (geometric_median(far) - geometric_median(x)).norm() < 0.1
    assert (far.mean(0) - x.mean(0)).norm() > 1000
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(geometric_median(corners), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_starting_weights(architecture):
    x = 7 * torch.randn(400, 16) + 3
    sae = SAE(config_for(architecture, 16, 128), seed=None)
    sae.initialise(torch.Generator().manual_seed(3), x, "mean", scaled=True)
    torch.testing.assert_close(sae.inputs(x).mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    assert (x * sae.scale).square().mean() == pytest.approx(1, abs=1e-3)
    if architecture != "rmsnorm":
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(128))
    ratio = sae.W_enc.norm(dim=1) / sae.W_dec.norm(dim=1)
    torch.testing.assert_close(sae.W_enc, sae.W_dec * ratio[:, None])  # tied
    if architecture not in ("topk", "batch_topk", "matryoshka"):
        error = (sae(x) - x).square().sum()
        assert error < (x - x.mean(0)).square().sum(), "worse than saying nothing"
    other = SAE(sae.config, seed=None)
    other.initialise(torch.Generator().manual_seed(3), x, "zero", tied=False)
    assert not torch.equal(other.W_enc, other.W_dec) and not other.b_dec.any()
    with pytest.raises(ValueError, match="geometric_median"):
        other.initialise(torch.Generator(), x, "median")


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_sae_is_the_same(architecture, tmp_path):
    sae = SAE(config_for(architecture), HOOK, seed=5)
    sae.scale.fill_(0.3)
    sae.threshold.fill_(0.1)
    sae.provenance = {"steps": 10}
    sae.save(tmp_path / "sae.safetensors")
    again = SAE.load(tmp_path / "sae.safetensors")
    assert (again.config, again.hook_point, again.provenance) == (sae.config, HOOK, {"steps": 10})
    x = torch.randn(3, 4)
    assert torch.equal(again.encode(x), sae.encode(x)) and torch.equal(again(x), sae(x))


def damaged(tmp_path, change):
    path = tmp_path / "sae.safetensors"
    SAE(config_for("topk"), HOOK).save(path)
    change(path)
    return path


def rewritten(**changes):
    def change(path):
        sae = SAE(config_for("topk"))
        config = {"d_in": 4, "d_sae": 8, "architecture": "topk", "k": 2} | changes
        about = {"config": config, "hook_point": None, "provenance": {}}
        save_file(dict(sae.state_dict()), path, metadata={"musae_sae": json.dumps(about)})

    return change


@pytest.mark.parametrize(
    "change, error, says",
    [
        (lambda p: p.unlink(), FileNotFoundError, "no file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-7]), ValueError, "damaged"),
        (lambda p: p.write_bytes(b"weights"), ValueError, "damaged"),
        (lambda p: save_file({"a": torch.ones(1)}, p), ValueError, "not an SAE"),
        (rewritten(architecture="crosscoder"), ValueError, "no architecture 'crosscoder'"),
        (rewritten(d_sae=16), ValueError, "does not hold the SAE it says"),
        (rewritten(k=9), ValueError, "k = 9"),
        (rewritten(colour="red"), ValueError, "colour"),
        (rewritten(d_sae=10**12), ValueError, r"W_enc is \(8, 4\), and not \(10{12}, 4\)"),
    ],
)
def test_a_file_that_is_no_sae_is_refused(tmp_path, change, error, says):
    path = damaged(tmp_path, change)
    with pytest.raises(error, match=says):
        SAE.load(path)


# -- hook points ---------------------------------------------------------------------------------


def test_an_sae_belongs_to_its_hook_point():
    sae = SAE(config_for("topk"), HOOK)
    sae.check(HOOK)
    sae.check(HOOK | {"model": "another name of the same weights"})
    for other in ({"layer": 2, "path": "transformer.layers.2"}, {"fingerprint": "ffff"}):
        with pytest.raises(ValueError, match=r"was trained at transformer\.layers\.3 of nano"):
            sae.check(HOOK | other)
    with pytest.raises(ValueError, match="does not say"):
        SAE(config_for("topk")).check(HOOK)
    with pytest.raises(ValueError, match="HookPoint or a dict"):
        SAE(config_for("topk"), "layer 3")


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(d_in=0, d_sae=8, k=1), "d_in is a positive whole number"),
        (dict(d_in=4, d_sae=-8, k=1), "d_sae"),
        (dict(d_in=4, d_sae=8.5, k=1), "d_sae"),
        (dict(d_in=4, d_sae=8, k=9), "k = 9 features cannot be active in a dictionary of 8"),
        (dict(d_in=4, d_sae=8, k=0), "between 1"),
        (dict(d_in=4, d_sae=8), "needs k"),
        (dict(d_in=4, d_sae=8, architecture="standard", k=2), "has no k"),
        (dict(d_in=4, d_sae=8, architecture="vanilla"), "there are standard, topk"),
        (dict(d_in=4, d_sae=8, k=1, prefixes=(4, 8)), "has no prefixes"),
        (dict(d_in=4, d_sae=8, architecture="matryoshka", k=1, prefixes=(4, 6)), "rise to"),
        (dict(d_in=4, d_sae=8, architecture="matryoshka", k=1, prefixes=(8, 4)), "rise to"),
        (dict(d_in=4, d_sae=8, architecture="rmsnorm"), "unit_norm is False"),
    ],
)
def test_impossible_configurations_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        SAEConfig(**fields)


def test_other_widths_are_refused():
    sae = SAE(config_for("topk"))
    with pytest.raises(ValueError, match=r"width 4; given was a tensor of shape \(3, 5\)"):
        sae.encode(torch.randn(3, 5))
    with pytest.raises(ValueError, match="8 features"):
        sae.decode(torch.randn(3, 5))


def test_absurd_sizes_are_refused_before_anything_is_allocated():
    with pytest.raises(MemoryError, match=r"topk 1024 → 1000000000000, k = 32 would take"):
        SAE(SAEConfig(1024, 10**12, k=32))


def test_s1s_configuration():
    config = presets.s1_small()
    assert config.sae == SAEConfig(1024, 32768, "topk", 100)
    assert (config.lr, config.betas, config.batch_size, config.seed) == (3e-4, (0.0, 0.999), 64, 42)
    assert config.steps * 64 == pytest.approx(63_172_593, abs=64)
    assert config.rate(0) == config.rate(int(0.79 * config.steps)) == 3e-4
    assert config.rate(int(0.9 * config.steps)) == pytest.approx(1.5e-4, rel=1e-3)
    assert config.rate(config.steps - 1) < 1e-8
    sweep = presets.s1_sweep("large", steps=10)
    assert {(c.sae.d_sae // 2048, c.sae.k) for c in sweep.values()} == {
        (4, 32), (4, 100), (32, 32), (32, 100),
    }  # fmt: skip
    with pytest.raises(ValueError, match="small and large"):
        presets.s1("medium")
    assert set(presets.nano_sweep()) == set(ARCHITECTURES)
