"""Every metric on a case whose answer is known beforehand."""

import math

import numpy as np
import pytest
import torch

from musae_utils.models import compat  # noqa: F401  # isort: skip  (before audiocraft)
from audiocraft.models import MusicGen

from musae_utils import trace
from musae_utils.models import MusicModel, nano
from musae_utils.sae import SAE, SAEConfig, evaluate, nearest, seed_stability, spliced

K, CARD, DIM = 3, 16, 16


def reading(directions, said=None):
    """A "standard" SAE whose features listen for the given rows, and say others."""
    rows = torch.as_tensor(directions, dtype=torch.float32)
    n, d = rows.shape
    sae = SAE(SAEConfig(d, n, "standard", unit_norm=False), seed=None)
    sae.W_enc.data = rows.clone()
    sae.W_dec.data = rows.clone() if said is None else torch.as_tensor(said, dtype=torch.float32)
    return sae


def both_signs(d, factor=1.0):
    """An SAE whose reconstruction is `factor` times its input."""
    eye = torch.eye(d)
    return reading(torch.cat([eye, -eye]), factor * torch.cat([eye, -eye]))


X = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-1.0, 0.0], [0.0, -2.0]])


def test_a_perfect_reconstruction():
    found = evaluate(both_signs(2), X)
    for name in ("explained_variance", "cossim", "l2_ratio", "relative_reconstruction_bias"):
        assert found[name] == pytest.approx(1.0), name
    assert found["fvu"] == pytest.approx(0) and found["mse"] == pytest.approx(0)
    assert found["l0"] == 1 and found["l1"] == pytest.approx(2.5)
    assert found["l2_norm_in"] == found["l2_norm_out"] == pytest.approx(2.5)
    assert found["samples"] == 4


def test_shrinkage():
    found = evaluate(both_signs(2, 0.5), X)
    assert found["cossim"] == pytest.approx(1)
    assert found["l2_ratio"] == found["relative_reconstruction_bias"] == pytest.approx(0.5)
    assert found["mse"] == pytest.approx((9 + 16 + 1 + 4) / 4 / 4)
    # Mean (0.5, 0.5), so a total variance of 30 - 4 * 0.5; errors of a quarter of 30.
    assert found["fvu"] == pytest.approx(7.5 / 28)
    assert found["explained_variance"] == pytest.approx(1 - 7.5 / 28)


def test_half_of_the_stream_is_missing():
    sae = reading([[1.0, 0.0], [-1.0, 0.0]])
    found = evaluate(sae, X)
    assert found["mse"] == pytest.approx((16 + 4) / 4)
    assert found["cossim"] == pytest.approx(0.5)  # two samples are all there, two not at all
    assert found["l0"] == found["l2_ratio"] == pytest.approx(0.5)


def test_explained_variance_is_of_all_samples_together():
    """Not a mean of ratios: samples near the mean weigh little, and a constant shift nothing."""
    x = torch.randn(500, 6, dtype=torch.float64).float() * torch.logspace(-1, 1, 6) + 50
    sae = SAE(SAEConfig(6, 24, k=3), seed=2)
    sae.b_dec.data.fill_(50.0)
    with torch.no_grad():
        error = (sae(x).double() - x.double()).square().sum()
    total = (x.double() - x.double().mean(0)).square().sum()
    whole = evaluate(sae, x)
    assert whole["fvu"] == pytest.approx(float(error / total), rel=1e-5)
    parts = evaluate(sae, [x[:7], x[:0], x[7:300], x[300:]])
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
    assert evaluate(sae, x.numpy(), batch_size=33)["fvu"] == pytest.approx(whole["fvu"])


def test_densities():
    # Features active in 1, 1/2, 1/20 and none of 200 samples.
    sae = reading(torch.eye(4))
    x = torch.zeros(200, 4) - 1
    x[:, 0] = 1
    x[:100, 1] = 1
    x[:10, 2] = 1
    found = evaluate(sae, x)
    assert found["density"].tolist() == pytest.approx([1, 0.5, 0.05, 0])
    assert found["density_histogram"] == [1, 0, 0, 0, 0, 1, 2]
    assert found["frac_alive"] == 0.75
    assert (found["freq_over_1_percent"], found["freq_over_10_percent"]) == (0.75, 0.5)


def test_decoder_similarity():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 1.0]])
    root = math.sqrt(0.5)
    assert nearest(rows).tolist() == pytest.approx([1, 1, root, root])
    assert nearest(rows, chunk=1).tolist() == nearest(rows, chunk=3).tolist()
    found = evaluate(reading(torch.eye(2), [[1.0, 1.0], [1.0, 0.0]]), X)
    assert found["average_max_decoder_cosine_sim"] == pytest.approx(root)
    assert found["average_max_encoder_cosine_sim"] == pytest.approx(0)


def test_seed_stability_matches_one_to_one():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 12, generator=generator)
    order = torch.randperm(20, generator=generator)
    first, second = reading(rows), reading(3 * rows[order])
    found = seed_stability(first, second)
    assert found.mean == pytest.approx(1) and found.share == 1
    assert np.array_equal(order.numpy()[found.matches], np.arange(20))
    # Two features that want the same partner: only one of them can have it.
    found = seed_stability(reading([[1.0, 0.0], [1.0, 0.1]]), reading([[1.0, 0.0], [0.0, 1.0]]))
    assert sorted(found.matches) == [0, 1]
    assert found.share == 0.5
    # A direction is not its opposite.
    found = seed_stability(reading([[1.0, 0.0]]), reading([[-1.0, 0.0]]))
    assert found.mean == pytest.approx(-1)
    with pytest.raises(ValueError, match="cannot be matched"):
        seed_stability(reading(torch.eye(3)), reading(torch.eye(2)))


@pytest.mark.parametrize(
    "x, says",
    [
        (torch.zeros(0, 2), "no activations"),
        ([], "no activations"),
        (torch.randn(3, 5), "width 2"),
        (torch.randn(3), r"matrix \(N, d\)"),
        (torch.tensor([[1.0, torch.nan]]), "NaN"),
    ],
)
def test_activations_that_cannot_be_evaluated_are_refused(x, says):
    with pytest.raises(ValueError, match=says):
        evaluate(both_signs(2), x)


# -- in the model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    codec = nano.build_codec(
        dict(encoder_width=8, decoder_width=8, encoder_dilations=[1], decoder_dilations=[1],
             n_fft=512, dim=8, codebooks=K, cardinality=CARD, griffin_lim_steps=0)
    )  # fmt: skip
    lm = nano.build_lm(dict(dim=DIM, layers=2, heads=2, codebooks=K, cardinality=CARD))
    with torch.no_grad():
        for linear in lm.linears:
            linear.weight.mul_(4)  # so that something is at stake
    musicgen = MusicGen("tiny", codec.eval(), lm.eval(), max_duration=30)
    return MusicModel("tiny", musicgen, torch.float32)


@pytest.fixture(scope="module")
def codes():
    return torch.randint(CARD, (2, K, 12), generator=torch.Generator().manual_seed(0))


def at_layer(sae, model, layer=0):
    sae.hook_point = vars(trace.HookPoint.of(model, layer))
    return sae


def test_nothing_is_lost_where_the_reconstruction_is_perfect(model, codes):
    sae = at_layer(both_signs(DIM), model)
    x = trace.residuals(model, codes, [0])[0].flatten(0, 1)
    found = evaluate(sae, x, model, codes)
    assert found["fvu"] == pytest.approx(0, abs=1e-9)
    for name in ("ce_loss_score", "kl_div_score", "ce_loss_score_mean", "kl_div_score_mean"):
        assert found[name] == pytest.approx(1, abs=1e-4), name
    assert found["kl_div_with_sae"] == pytest.approx(0, abs=1e-6)
    logits = trace.logits(model, codes).log_softmax(-1)
    clean = -logits.gather(-1, codes[..., None])[..., 0].mean((0, 2))
    assert found["ce_loss_without_sae_per_codebook"] == pytest.approx(clean.tolist(), rel=1e-5)
    assert found["ce_loss_without_sae"] == pytest.approx(float(clean.mean()), rel=1e-5)


def test_all_is_lost_where_the_sae_says_nothing(model, codes):
    sae = at_layer(both_signs(DIM, 0.0), model)
    found = spliced(sae, model, codes)
    assert found["ce_loss_with_sae"] == found["ce_loss_with_ablation"]
    assert found["kl_div_with_sae"] == found["kl_div_with_ablation"] > 0.01
    assert found["ce_loss_score"] == found["kl_div_score"] == 0
    assert "ce_loss_score_mean" not in found
    mean = torch.randn(DIM)
    sae.b_dec.data = mean.clone()
    found = spliced(sae, model, codes, mean=mean)
    assert found["ce_loss_score_mean"] == found["kl_div_score_mean"] == 0


def test_divergence_by_hand(model, codes):
    """The last layer is read by nothing but the heads: logits follow from the residual alone."""
    sae = at_layer(both_signs(DIM, 0.7), model, layer=1)
    found = spliced(sae, model, [codes[:1], codes[1]])
    with torch.no_grad():
        heads = model.lm.linears[0]
        norm = model.lm.out_norm or (lambda x: x)
        position = trace.residuals(model, codes, [1])[1][:, : codes.shape[-1]]  # writes codebook 0
        clean, there = (heads(norm(x)).log_softmax(-1) for x in (position, 0.7 * position))
        kl = (clean.exp() * (clean - there)).sum(-1).mean()
    assert found["kl_div_with_sae_per_codebook"][0] == pytest.approx(float(kl), rel=1e-4)


def test_an_sae_of_another_model_is_refused(model, codes):
    sae = at_layer(both_signs(DIM), model)
    sae.hook_point = sae.hook_point | {"fingerprint": "ffffffffffffffff"}
    with pytest.raises(ValueError, match="other weights"):
        spliced(sae, model, codes)
    with pytest.raises(ValueError, match="does not say"):
        spliced(both_signs(DIM), model, codes)
    with pytest.raises(ValueError, match="give codes"):
        evaluate(at_layer(both_signs(DIM), model), torch.randn(5, DIM), model)
