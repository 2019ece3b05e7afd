"""The fast training steps against the dense one, and their loops against torch's own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils.sae import SAE, SAEConfig, TrainConfig, kernels, steps
from musae_utils.sae.steps import DenseStep, SparseStep, TorchSparseStep, _Rows

K_SPARSE = ("topk", "batch_topk", "matryoshka")


def settings_for(architecture="topk", d=16, expansion=8, k=4, **changes):
    sae = SAEConfig.of(d, expansion, k, architecture, **changes.pop("sae", {}))
    return TrainConfig(sae, steps=10, batch_size=48, **changes)


def begun(config, x, kind, precision="fp32"):
    sae = SAE(config.sae, seed=None)
    sae.initialise(torch.Generator().manual_seed(1), x, scaled=True)
    return kind(sae, config, precision)


def batches(n, rows=48, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator)
    return [torch.randn(rows, d, generator=generator) @ mix + 0.5 for _ in range(n)]


# -- selection -----------------------------------------------------------------------------------


def bits(x):
    """The bits of bfloat16 numbers, and their values."""
    rounded = torch.from_numpy(x).bfloat16()
    return rounded.view(torch.uint16).numpy(), rounded.float().numpy()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 200), st.data(), st.integers(0, 2**32 - 1),
    st.booleans(), st.sampled_from([0, 3, 1000]),
)  # fmt: skip
def test_top_k_finds_what_sorting_finds(rows, n, data, seed, half, levels):
    k = data.draw(st.integers(1, n))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, n)).astype(np.float32)
    if levels:  # many values are equal
        x = np.round(x * levels) / levels
    bias = rng.standard_normal(n).astype(np.float32) * (levels == 0)
    pre, seen = bits(x) if half else (x, x)
    index, value = np.zeros((rows, k), np.int32), np.zeros((rows, k), np.float32)
    blocks = data.draw(st.integers(k, n))
    kernels.top_k(pre, bias, k, blocks, 0, rows, 0, index, value)
    z = seen + bias
    wanted = np.sort(np.maximum(z, 0), axis=1)[:, ::-1][:, :k]
    np.testing.assert_array_equal(np.sort(value, axis=1)[:, ::-1], wanted)
    for s in range(rows):
        active = index[s][value[s] > 0]
        assert len(set(active)) == len(active)
        np.testing.assert_array_equal(z[s][active], value[s][value[s] > 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 60), st.data(), st.integers(0, 2**32 - 1))
def test_batch_top_k_finds_what_sorting_finds(rows, n, data, seed):
    rng = np.random.default_rng(seed)
    levels = data.draw(st.sampled_from([2, 1000]))
    x = np.round(rng.standard_normal((rows, n)) * levels).astype(np.float32) / levels
    count = np.zeros(rows, np.int64)
    threshold = np.float32(data.draw(st.sampled_from([0.0, 0.25, 0.5])))
    room = np.zeros(rows * n, np.int32), np.zeros(rows * n, np.float32)
    total = kernels.above(x, np.zeros(n, np.float32), threshold, min(n, 8), 0, rows, count, *room)
    assert total == count.sum() == ((x >= threshold) & (x > 0)).sum()
    index, value = room[0][:total].copy(), room[1][:total].copy()
    keep = data.draw(st.integers(1, rows * n))
    smallest = kernels.keep_largest(count, index, value, keep)
    kept = int(count.sum())
    assert kept == min(keep, total)
    wanted = np.sort(x[(x >= threshold) & (x > 0)])[::-1][:kept]
    np.testing.assert_array_equal(np.sort(value[:kept])[::-1], wanted)
    if kept:
        assert smallest == wanted[-1]
    samples = np.repeat(np.arange(rows), count)
    np.testing.assert_array_equal(x[samples, index[:kept]], value[:kept])


def test_more_candidates_than_there_is_room_for_are_counted():
    x = np.ones((3, 10), np.float32)
    count = np.zeros(3, np.int64)
    room = np.full(5, -1, np.int32), np.zeros(5, np.float32)
    total = kernels.above(x, np.zeros(10, np.float32), np.float32(0.5), 4, 0, 3, count, *room)
    assert total == 30 and (count == 10).all()


# -- packing -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_rounds_as_torch_does(rows, half, seed):
    x = np.random.default_rng(seed).standard_normal((rows, 2 * half)).astype(np.float32)
    x[0, 0] *= 1e30
    packed = _Rows(rows, 2 * half, packed=True)
    kernels.pack(x, packed.array, 0, rows)
    wanted = torch.from_numpy(x).bfloat16().float()
    torch.testing.assert_close(packed.floats(), wanted, rtol=0, atol=0)
    # Products and sums do not care about the order of columns.
    torch.testing.assert_close(
        (packed.tensor.float() @ packed.tensor.float().T), wanted @ wanted.T, rtol=1e-5, atol=1e-5
    )


# -- whole steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SparseStep, TorchSparseStep])
@pytest.mark.parametrize("architecture", K_SPARSE)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"betas": (0.9, 0.999)},
        {"dead_after": 60},  # the auxiliary loss has work
        {"dead_after": 60, "betas": (0.9, 0.99)},
        {"sae": {"unit_norm": False}},
        {"sae": {"apply_b_dec_to_input": False}},
    ],
    ids=lambda c: " ".join(map(str, c.values())) or "as it is",
)
def test_a_fast_step_is_the_dense_one(kind, architecture, changes):
    config = settings_for(architecture, **changes)
    data = batches(6)
    dense, fast = begun(config, data[0], DenseStep), begun(config, data[0], kind)
    for x in data:
        wanted, seen = dense(x, 1e-2), fast(x, 1e-2)
        np.testing.assert_allclose(seen, wanted, rtol=1e-4)
        if changes.get("dead_after") and dense.done == 3:
            assert dense.dead.any(), "nothing for the auxiliary loss to do"
    for name, value in dense.sae.state_dict().items():
        seen = fast.sae.state_dict()[name]
        assert torch.allclose(seen, value, rtol=1e-3, atol=2e-4), (name, (seen - value).abs().max())
    assert torch.equal(fast.since, dense.since)


@pytest.mark.parametrize("kind", [SparseStep, TorchSparseStep])
@pytest.mark.parametrize("architecture", K_SPARSE)
def test_one_step_has_the_dense_gradient(kind, architecture):
    """With Adam's eps far above the gradient, a step is proportional to the gradient."""
    config = settings_for(architecture, eps=1e6)
    (x,) = batches(1)
    dense, fast = begun(config, x, DenseStep), begun(config, x, kind)
    before = {name: p.detach().clone() for name, p in dense.sae.named_parameters()}
    dense(x, 1e4)
    fast(x, 1e4)
    for name, p in dense.sae.named_parameters():
        moved = p.detach() - before[name]
        assert moved.abs().max() > 1e-4
        seen = dict(fast.sae.named_parameters())[name].detach() - before[name]
        assert (seen - moved).norm() < 1e-3 * moved.norm(), name


@pytest.mark.parametrize("architecture", K_SPARSE)
def test_bfloat16_learns_what_float32_learns(architecture):
    config = settings_for(architecture, d=32)
    data = batches(40, rows=256, d=32)
    losses = {}
    for precision in ("fp32", "bf16"):
        step = begun(config, data[0], SparseStep, precision)
        losses[precision] = [step(x, 3e-3).mse for x in data]
    first, last = losses["fp32"][0], losses["fp32"][-1]
    assert last < 0.7 * first
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=0.03)


def test_features_chosen_in_bfloat16_are_those_of_the_product_in_bfloat16():
    config = settings_for(d=32, expansion=16, k=8)
    (x,) = batches(1, rows=700, d=32)
    step = begun(config, x, SparseStep, "bf16")
    step.sae.b_enc.data.normal_(std=0.1)
    sae = step.sae
    inputs = _Rows(700, 32, packed=True)
    chunks = [(0, 512), (512, 700)]
    _, index, value, _ = step._select(x.numpy(), np.float32(sae.scale), step.b_dec, inputs, chunks)
    product = torch.mm(inputs.tensor, step.read[0].tensor.T).float() + sae.b_enc.detach()
    wanted = product.topk(8).values.relu().sort(1).values
    torch.testing.assert_close(
        torch.from_numpy(value).view(700, 8).sort(1).values, wanted, rtol=0, atol=0
    )
    np.testing.assert_array_equal(
        product.gather(1, torch.from_numpy(index).view(700, 8).long())[:5].numpy(),
        torch.from_numpy(value).view(700, 8)[:5].numpy(),
    )


def test_the_number_of_threads_changes_nothing_but_rounding():
    config = settings_for(d=32, expansion=16)
    data = batches(4, rows=600, d=32)
    found = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            step = begun(config, data[0], SparseStep)
            assert (step.threads.pool is None) == (threads == 1)
            for x in data:
                step(x, 1e-3)
        finally:
            torch.set_num_threads(before)
        found.append(step.sae.W_enc.detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [DenseStep, SparseStep, TorchSparseStep])
@pytest.mark.parametrize("architecture", K_SPARSE)
def test_a_step_goes_on_from_its_state_bit_for_bit(kind, architecture):
    config = settings_for(architecture, dead_after=60)
    data = batches(6)
    step = begun(config, data[0], kind, "bf16" if kind is SparseStep else "fp32")
    for x in data[:3]:
        step(x, 1e-2)
    kept = {k: v.clone() for k, v in step.sae.state_dict().items()}
    state = {k: v.clone() for k, v in step.state().items()}
    for x in data[3:]:
        step(x, 1e-2)
    sae = SAE(config.sae, seed=None)
    sae.load_state_dict(kept)
    again = kind(sae, config, step.precision)
    again.load(state)
    for x in data[3:]:
        again(x, 1e-2)
    for name, value in step.sae.state_dict().items():
        assert torch.equal(again.sae.state_dict()[name], value), name


@pytest.mark.parametrize("kind", [DenseStep, SparseStep, TorchSparseStep])
def test_a_step_that_cannot_be_made_leaves_the_weights(kind):
    config = settings_for()
    (x,) = batches(1)
    step = begun(config, x, kind)
    before = step.sae.W_dec.detach().clone()
    x[3, 2] = torch.nan
    with pytest.raises(steps.Diverged):
        step(x, 1e-2)
    assert torch.equal(step.sae.W_dec.detach(), before) and step.done == 0


def test_decoder_rows_keep_their_length():
    config = settings_for(d=32)
    data = batches(10, rows=100, d=32)
    for precision in ("fp32", "bf16"):
        step = begun(config, data[0], SparseStep, precision)
        for x in data:
            step(x, 1e-2)
        lengths = step.sae.W_dec.detach().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)


def test_the_fast_step_is_chosen_where_it_fits():
    cases = {
        SparseStep: settings_for("topk"),
        TorchSparseStep: settings_for("topk", d=15),  # halves of a row need an even width
        DenseStep: settings_for("standard", k=None),
    }
    for kind, config in cases.items():
        assert type(steps.step_for(SAE(config.sae), config, "fp32")) is kind
    config = settings_for("topk")
    assert type(steps.step_for(SAE(config.sae), config, "fp32", reference=True)) is DenseStep


@pytest.mark.parametrize("kind", [DenseStep, SparseStep, TorchSparseStep])
def test_the_auxiliary_loss_revives_features(kind):
    """Features that hear too little to win against others are dead, unless they are helped."""
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(100, 128, 24, generator=generator)
    data = (f + 0.5) * (torch.rand(f.shape, generator=generator) < 0.12)
    found = {}
    for weight in (0.0, 1 / 32):
        config = settings_for(d=24, expansion=2, dead_after=200, auxiliary=weight)
        step = begun(config, data[0], kind)
        step.sae.W_enc.data[8:] *= 0.02
        if isinstance(step, SparseStep):
            step._refresh()
        for x in data:
            seen = step(x, 1e-2)
        found[weight] = int(step.dead.sum()), seen.mse
    assert found[0.0][0] > 15
    assert found[1 / 32][0] < 0.6 * found[0.0][0] and found[1 / 32][1] < 0.95 * found[0.0][1]


# -- penalties -----------------------------------------------------------------------------------


def test_the_jump_has_the_papers_pseudo_derivatives():
    z = torch.tensor([[0.9, 1.02, 1.3, 0.97]], requires_grad=True)
    threshold = torch.full((4,), 1.0, requires_grad=True)
    out = steps._Jump.apply(z, threshold, 0.1)
    assert out.tolist() == [[0.0, pytest.approx(1.02), pytest.approx(1.3), 0.0]]
    out.sum().backward()
    assert z.grad.tolist() == [[0, 1, 1, 0]]
    assert threshold.grad.tolist() == pytest.approx([0, -10, 0, -10])  # -θ / ε within ε / 2
    threshold.grad = None
    over = steps._Over.apply(z, threshold, 0.1)
    assert over.tolist() == [[0, 1, 1, 0]]
    over.sum().backward()
    assert threshold.grad.tolist() == pytest.approx([0, -10, 0, -10])


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "rmsnorm"])
def test_a_penalty_makes_sparse(architecture):
    config = settings_for(architecture, d=16, k=None, bandwidth=0.1)
    data = batches(120, rows=128)
    found = {}
    for penalty in (0.0, 3.0):
        step = begun(config, data[0], DenseStep)
        found[penalty] = [step(x, 1e-2, penalty) for x in data][-1]
    assert found[3.0].l0 < 0.7 * found[0.0].l0
    assert found[0.0].mse < found[3.0].mse


def test_micro_batches_have_the_gradient_of_the_batch(monkeypatch):
    config = settings_for("gated", k=None)
    (x,) = batches(1, rows=100)
    found = []
    for rows in (10_000, 34):
        monkeypatch.setattr(steps, "ROWS", rows)
        step = begun(config, x, DenseStep)
        found.append((step(x, 1e-2, 0.5), step.sae.W_enc.detach()))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)
