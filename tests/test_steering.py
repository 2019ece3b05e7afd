"""Knobs against arithmetic by hand; rows against single runs; what is said to bad input."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from musae_utils.models import compat  # noqa: F401  # isort: skip  (before audiocraft)
from audiocraft.models import MusicGen
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny_models import tiny_codec, tiny_lm
from planted import OTHER, POINT, clip_of, store_of

from musae_utils import runs, steering, trace
from musae_utils.features import FeatureAtlas
from musae_utils.models import MusicModel
from musae_utils.sae import SAE, SAEConfig
from musae_utils.steering import HOW, Knob, Patch
from musae_utils.trace import HookPoint

K, CARD, DIM, LAYERS, RATE = 4, 32, 32, 3, 50
PEAK = 3.0
KINDS = ("topk", "batch_topk", "matryoshka", "standard", "jumprelu", "gated", "rmsnorm")


def tiny():
    musicgen = MusicGen("tiny", tiny_codec(), tiny_lm(DIM, LAYERS), max_duration=30)
    return MusicModel("tiny", musicgen, torch.float32)


def an_sae(model, layer=1, architecture="topk", seed=3):
    """Random, with every parameter off its starting value."""
    k = 6 if "top" in architecture or "mat" in architecture else None
    config = SAEConfig.of(DIM, 3, k, architecture)
    sae = SAE(config, HookPoint.of(model, layer), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sae.named_parameters():
            spread = 0.3 if value.dim() == 2 else 0.1
            value.add_(spread * torch.randn(value.shape, generator=generator))
            if name == "jump":
                value.abs_()
        sae.scale.fill_(0.7)
        sae.threshold.fill_(0.2)
    return sae


_made = {}


def made(name, make, *arguments):
    return _made.setdefault(name, make(*arguments)) if name not in _made else _made[name]


@pytest.fixture(scope="module")
def model():
    return made("model", tiny)


@pytest.fixture(scope="module")
def sae(model):
    return an_sae(model)


def random_codes(rows, frames, seed=0):
    return torch.randint(CARD, (rows, K, frames), generator=torch.Generator().manual_seed(seed))


def firing(sae, x, rank=0):
    """A feature that fires at many of the positions of a stream, and at some does not."""
    share = (sae.encode(x) > 0).float().flatten(0, -2).mean(0)
    return int(torch.where(share < 0.95, share, 0).argsort(descending=True)[rank])


def read(model, rows, codes, layer):
    edits = steering.edits(model, rows, codes.shape[-1] / RATE, guided=False)
    return trace.edit(model, edits).residuals(codes, [layer])[layer]


def play(model, rows, prompts="slow piano", seconds=0.4, **more):
    return steering.sweep(model, prompts, rows, seconds, **more).codes


# -- what a knob does


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("how", HOW)
def test_a_knob_adds_the_change_of_its_feature_and_keeps_the_error(model, architecture, how):
    sae, codes = an_sae(model, 1, architecture), random_codes(2, 12)
    x = trace.residuals(model, codes, [1])[1]
    code = sae.encode(x)
    feature = firing(sae, x)
    assert (code[..., feature] > 0).any()
    knobs = [Knob(sae, feature, s, how, peak=PEAK, to=0.5) for s in (0.8, -1.5)]
    ours = read(model, knobs, codes, 1)
    for row, s in enumerate((0.8, -1.5)):
        a = code[row, :, feature]
        new = {"add": a + s * PEAK, "scale": (1 + s) * a, "ablate": (1 - s) * a,
               "clamp": a + s * (0.5 * PEAK - a)}[how]  # fmt: skip
        changed = code[row].clone()
        changed[:, feature] = new
        by_hand = x[row] + sae.decode(changed) - sae.decode(code[row])
        assert torch.allclose(ours[row], by_hand, atol=1e-5)
        silent = new == a
        assert torch.equal(ours[row][silent], x[row][silent])
        assert not torch.equal(ours[row], x[row])


def test_an_ablated_feature_is_what_decoding_without_it_takes_away(model, sae):
    codes = random_codes(1, 10)
    x = trace.residuals(model, codes, [1])[1]
    f, g = firing(sae, x), firing(sae, x, 1)
    code = sae.encode(x)
    without = code.clone()
    without[..., [f, g]] = 0
    # Both read the same stream, though taking one away changes what the other would read.
    ours = read(model, [[Knob(sae, f, how="ablate"), Knob(sae, g, how="ablate")]], codes, 1)
    assert torch.allclose(ours, x - sae.decode(code) + sae.decode(without), atol=1e-5)
    own = sae.directions[f].numpy()
    alone = read(model, [Knob(sae, f, how="ablate")], codes, 1) - x
    assert np.allclose(alone[0], -code[0, :, [f]].detach() * own, atol=1e-5)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "half, prompts", [("both", "slow piano"), ("both", None), ("cond", None), ("uncond", "drums")]
)
def test_strength_0_is_no_edit(model, sae, how, half, prompts):
    plain = model.generate([prompts] * 2, 0.3, seed=4, same_noise=True)
    knob = Knob(sae, 5, 0.0, how, peak=PEAK, half=half, window=(0.1, None))
    still = Knob(sae, 5, 1.0, how, peak=PEAK, half=half, curve=np.zeros(15))
    played = steering.sweep(model, prompts, [knob, [knob, still]], 0.3, seed=4)
    assert torch.equal(played.codes, plain.codes) and torch.equal(played.audio, plain.audio)
    # and beside rows that are edited
    loud = Knob(sae, 5, 5.0, peak=PEAK, half=half)
    codes = play(model, [knob, loud], prompts, 0.3, seed=4)
    assert torch.equal(codes[0], plain.codes[0]) and not torch.equal(codes[1], plain.codes[0])


@pytest.mark.parametrize("half", trace.HALVES)
def test_adding_is_a_plain_edit_of_the_half(model, sae, half):
    knob = Knob(sae, 7, 1.5, peak=PEAK, half=half)
    direction = 1.5 * PEAK * sae.directions[7]
    edit = trace.edit(model, trace.Edit(1, direction, half=half))
    theirs = edit.generate("slow piano", 0.4, seed=2, guidance=2.0).codes
    ours = play(model, [knob], seed=2, guidance=2.0)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, play(model, [None], seed=2, guidance=2.0))


def test_halves_are_kept_apart_row_by_row(model, sae):
    rows = [Knob(sae, 7, 2.0, peak=PEAK, half=half) for half in trace.HALVES]
    together = play(model, rows)
    assert len({tuple(row.flatten().tolist()) for row in together}) == 3
    for row, codes in zip(rows, together, strict=True):
        assert torch.equal(play(model, [row])[0], codes)
    # cond and uncond together are both
    f, g = rows[1], rows[2]
    assert torch.equal(play(model, [[f, g]])[0], together[0])
    # without guidance there is one half
    one = play(model, [rows[0], rows[1]], guidance=1.0)
    assert torch.equal(one[0], one[1])


# -- when


@given(start=st.integers(0, 18), frames=st.integers(1, 10), how=st.sampled_from(HOW))
@settings(max_examples=10, deadline=None)
def test_before_its_window_a_knob_changes_nothing(start, frames, how):
    model = made("model", tiny)
    sae = made("sae", an_sae, model)
    end = min(start + frames, 20)
    strength = {"add": 20, "scale": 20, "ablate": 1, "clamp": 10}[how]
    knob = Knob(sae, 5, strength, how, peak=PEAK, window=(start / RATE, end / RATE))
    plain, codes = play(model, [None, knob], seed=1)
    for k in range(K):
        before = max(start - k, 0)
        assert torch.equal(codes[k, :before], plain[k, :before])


def test_a_window_begins_to_the_frame_in_seconds_of_the_music(model, sae):
    plain, codes = play(
        model, [None, Knob(sae, 5, 60, peak=PEAK, window=(0.3, 0.4))], seconds=0.6, temperature=0
    )
    assert [int((codes[k] != plain[k]).nonzero()[0]) for k in range(K)] == [15, 14, 13, 12]


@pytest.mark.parametrize("how", HOW)
def test_a_curve_is_a_strength_for_each_frame(model, sae, how):
    codes = random_codes(1, 12)
    x = trace.residuals(model, codes, [1])[1][0]
    feature = firing(sae, x)
    curve = np.linspace(-1, 1, 12)
    ours = read(model, [Knob(sae, feature, 2, how, peak=PEAK, curve=curve)], codes, 1)[0]
    for p in range(12 + K):  # after the last frame's position the curve stays where it is
        single = Knob(sae, feature, 2 * curve[min(p, 11)], how, peak=PEAK)
        assert torch.allclose(ours[p], read(model, [single], codes, 1)[0, p], atol=1e-5)
    window = dict(window=(0.04, 0.1))
    box = np.r_[np.zeros(2), np.ones(3), np.zeros(7)]
    rows = [Knob(sae, feature, 2, how, peak=PEAK, **window),
            Knob(sae, feature, 2, how, peak=PEAK, curve=box),
            Knob(sae, feature, 2, how, peak=PEAK, curve=[1, 1, 1], **window)]  # fmt: skip
    same = read(model, rows, codes, 1)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])


def test_a_feature_follows_another_pieces_course(model, sae):
    """Clamping frame by frame is activation patching of one feature."""
    codes, other = random_codes(1, 12), random_codes(1, 12, seed=9)
    x, y = (trace.residuals(model, c, [1])[1][0] for c in (codes, other))
    feature = firing(sae, y)
    course = sae.encode(y)[:, feature].detach()
    knob = Knob(sae, feature, how="clamp", peak=PEAK, to=course[:12] / PEAK)
    moved = read(model, [knob], codes, 1)[0] - x
    gained = moved @ sae.directions[feature] / sae.directions[feature].square().sum()
    expected = course - sae.encode(x)[:, feature].detach()
    assert torch.allclose(gained[:12], expected[:12], atol=1e-4)


def test_a_patch_puts_in_the_other_stream(model, sae):
    codes, other = random_codes(1, 12), random_codes(1, 12, seed=9)
    x, y = (trace.residuals(model, c, [1])[1][0] for c in (codes, other))
    rows = [Patch(1, y), Patch(1, y, 0.0), Patch(1, y, 0.5), Patch(1, y, window=(0.04, 0.1)),
            [Patch(1, y), Knob(sae, 7, peak=PEAK)]]  # fmt: skip
    streams = read(model, rows, codes, 1)
    assert torch.equal(streams[0], y) and torch.equal(streams[1], x)
    assert torch.allclose(streams[2], (x + y) / 2, atol=1e-5)
    assert torch.equal(streams[3][2:5], y[2:5])
    assert torch.equal(streams[3][:2], x[:2]) and torch.equal(streams[3][5:], x[5:])
    assert torch.allclose(streams[4], y + PEAK * sae.directions[7], atol=1e-5)
    with pytest.raises(ValueError, match="16 positions, and the clip 20 frames"):
        play(model, [Patch(1, y)])


def test_windows_of_a_continuation_count_from_its_beginning(model, sae):
    given = random_codes(1, 10)
    x = trace.residuals(model, given, [1])[1]
    f = firing(sae, x)
    rows = [None, Knob(sae, f, 60, peak=PEAK, window=(0.4, None)),
            Knob(sae, f, 30, "scale", window=(0.0, 0.1))]  # fmt: skip
    edited = trace.edit(model, steering.edits(model, rows, 0.6))
    settings = dict(seconds=0.6, prompt_codes=given, temperature=0)
    codes = edited.generate(["slow piano"] * 3, **settings).codes
    plain = model.generate("slow piano", **settings).codes
    assert torch.equal(codes[0], plain[0]) and torch.equal(
        codes[..., :10], plain[..., :10].expand(3, -1, -1)
    )
    assert int((codes[1, 0] != plain[0, 0]).nonzero()[0]) == 20
    assert not torch.equal(codes[2], plain[0])  # what was heard in the given music is changed


def test_half_precision(model, sae):
    lm = copy.deepcopy(model.lm).half()
    half = MusicModel("tiny", MusicGen("tiny", tiny_codec(), lm, max_duration=30), torch.float16)
    codes = random_codes(1, 12)
    x = trace.residuals(half, codes, [1])[1][0]
    f = firing(sae, x.float())
    streams = read(half, [None, Knob(sae, f, how="ablate"), Patch(1, x.flip(0))], codes, 1)
    a = sae.encode(x.float())[:, [f]]
    assert streams.dtype == torch.float16 and torch.equal(streams[0], x)
    assert torch.equal(streams[1], (x.float() - a * sae.directions[f]).half())
    assert torch.equal(streams[2], x.flip(0))


# -- many rows


def test_a_row_is_what_it_would_be_alone(model):
    topk, deep = an_sae(model), an_sae(model, 2, "batch_topk", seed=8)
    rows = [
        None,
        Knob(topk, 3, 2.0, peak=PEAK),
        [Knob(topk, 4, 1.0, "ablate"), Knob(deep, 9, 3.0, "scale", window=(0.1, 0.3))],
        [Knob(deep, 9, 1.0, "clamp", peak=PEAK), Knob(deep, 11, -2.0, peak=PEAK),
         Knob(topk, 3, 1.0, peak=PEAK, half="cond")],
        Knob(topk, 3, 2.0, peak=PEAK, along=torch.ones(DIM)),
    ]  # fmt: skip
    prompts, seeds = ["slow piano", None, "fast organ", "slow piano", "drums"], [5, 6, 5, 7, 5]
    together = play(model, rows, prompts, seed=seeds)
    for i, row in enumerate(rows):
        alone = play(model, [row, None], [prompts[i], "piano"], seed=[seeds[i], 0])
        assert torch.equal(alone[0], together[i])
    parts = play(model, rows, prompts, seed=seeds, batch=2)
    assert torch.equal(parts, together)


def test_rows_of_one_seed_share_their_noise(model):
    codes = play(model, [None] * 4, seed=[1, 2, 1, 2])
    assert torch.equal(codes[:2], codes[2:]) and not torch.equal(codes[0], codes[1])
    assert torch.equal(codes[1], model.generate("slow piano", 0.4, seed=2).codes[0])
    with pytest.raises(ValueError, match="3 seeds for 2 rows"):
        model.generate(["piano"] * 2, 0.4, seed=[1, 2, 3])


def test_a_sweep_says_what_was_played(model, sae):
    knob = Knob(sae, 7, 1.5, peak=PEAK, window=(0.1, None), curve=np.ones(15))
    played = steering.sweep(model, [None, "piano"], [None, [knob]], 0.4, seed=[1, 2])
    assert played.prompts == [None, "piano"] and len(played.clips()) == 2
    assert played.audio.shape == (2, 6400)
    told = played.provenance
    assert told["rows"][0] == [] and told["seeds"] == [1, 2]
    (only,) = told["rows"][1]
    assert only["feature"] == 7 and only["strength"] == 1.5 and only["window"] == (0.1, None)
    assert only["how"] == "add" and len(only["sae"]) == len(only["curve"]) == 16


# -- a sweep that is killed


class Killed(BaseException):
    """As good as SIGKILL: nothing in the package catches it."""


def test_a_sweep_that_is_killed_goes_on(model, sae, tmp_path, monkeypatch):
    rows = [None, *(Knob(sae, 7, s, peak=PEAK) for s in (0.5, 1, 2, 4))]
    whole = steering.sweep(model, "slow piano", rows, 0.3, batch=2)
    generate, played = trace.Edited.generate, []

    def counted(self, *arguments, **settings):
        if len(played) == 2:
            raise Killed
        played.append(1)
        return generate(self, *arguments, **settings)

    monkeypatch.setattr(trace.Edited, "generate", counted)
    with pytest.raises(Killed):
        steering.sweep(model, "slow piano", rows, 0.3, batch=2, folder=tmp_path)
    assert len(list(tmp_path.glob("rows-*"))) == 2
    played[:] = [1]
    again = steering.sweep(model, "slow piano", rows, 0.3, batch=2, folder=tmp_path)
    assert len(played) == 2  # only the last of three batches
    assert torch.equal(again.codes, whole.codes) and torch.equal(again.audio, whole.audio)
    once_more = steering.sweep(model, "slow piano", rows, 0.3, batch=2, folder=tmp_path)
    assert len(played) == 2 and torch.equal(once_more.audio, whole.audio)
    assert once_more.provenance == whole.provenance

    louder = [*rows[:-1], dataclasses.replace(rows[-1], strength=5.0)]
    with pytest.raises(runs.RunError, match="holds a run with"):
        steering.sweep(model, "slow piano", louder, 0.3, batch=2, folder=tmp_path)
    trained = an_sae(model, seed=4)
    other = [None, *(Knob(trained, 7, s, peak=PEAK) for s in (0.5, 1, 2, 4))]
    with pytest.raises(runs.RunError, match="holds a run with"):
        steering.sweep(model, "slow piano", other, 0.3, batch=2, folder=tmp_path)
    (tmp_path / "rows-00002.safetensors").write_bytes(b"torn")
    with pytest.raises(runs.RunError, match="damaged or was replaced"):
        steering.sweep(model, "slow piano", rows, 0.3, batch=2, folder=tmp_path)


# -- which features


def test_output_effect_is_the_divergence_of_the_next_code(model, sae):
    codes = random_codes(2, 10)
    x = trace.residuals(model, codes, [1], "slow piano")[1]
    f = firing(sae, x)
    knobs = [Knob(sae, 7, 0.5, peak=PEAK), Knob(sae, f, 1, "ablate"),
             Knob(sae, 7, -1.0, peak=PEAK, half="cond")]  # fmt: skip
    found = steering.output_effect(model, knobs, codes, "slow piano")
    assert found.kl.shape == found.shift.shape == (3, K) and found.change.shape == (3, K, CARD)
    base = trace.logits(model, codes, "slow piano").double()
    for i, knob in enumerate(knobs):
        edits = steering.edits(model, [knob] * 2, 0.2, guided=False)
        new = trace.edit(model, edits).logits(codes, "slow piano").double()
        p, q = base.softmax(-1), new.softmax(-1)
        kl = (p * (p / q).log()).sum(-1).mean((0, 2))
        assert (kl > 0).all() and torch.allclose(found.kl[i].double(), kl, atol=1e-6)
        change = (q / p).log().mean((0, 2)) / knob.strength
        assert torch.allclose(found.change[i].double(), change, atol=1e-4)
        moved = new - base
        shift = (moved - moved.mean(-1, keepdim=True)).std((0, 2, 3), correction=0)
        assert torch.allclose(found.shift[i].double(), shift / abs(knob.strength), atol=1e-4)
    small = steering.output_effect(model, knobs, codes, "slow piano", batch=1)
    assert torch.allclose(small.kl, found.kl, atol=1e-6)


def test_what_the_last_norm_takes_away_has_no_effect(model):
    """After the last layer comes a norm that removes the mean: a direction of ones says nothing."""
    sae = an_sae(model, LAYERS - 1)
    knobs = [Knob(sae, 7, 1, peak=1.0, along=torch.ones(DIM)), Knob(sae, 7, 1, peak=1.0)]
    found = steering.output_effect(model, knobs, random_codes(2, 10))
    assert found.kl[0].max() < 1e-6 and found.kl[1].min() > 1e-3
    assert found.shift[0].max() < 1e-3 < found.shift[1].min()


def test_a_unit_of_strength_is_a_unit(model, sae):
    knobs = [Knob(sae, 7, s, peak=0.01) for s in (1.0, 2.0)]
    one, two = steering.output_effect(model, knobs, random_codes(1, 10)).change
    assert (one - two).abs().max() < 0.02 * one.abs().max() and one.abs().max() > 1e-3


# -- rivals


def planted_sae(point=POINT, roll=0):
    """Features 0 to 31 are the columns of planted rows; the rest are random and never fire."""
    sae = SAE(SAEConfig(32, 48, "standard"), point, seed=1)
    with torch.no_grad():
        sae.W_enc[:32] = sae.W_dec[:32] = torch.eye(32).roll(roll, 1)
        sae.b_enc[:] = -0.3
        sae.b_enc[32:] = -100
        sae.scale.fill_(2.0)
        sae.W_dec.mul_(3)
    return sae


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steering") / "store"
    tonics = [clip_of(seed, 5.0, tonic=7 * (seed % 2), mode=0) for seed in range(8)]
    return store_of(folder, tonics, (POINT, OTHER))


def test_controls_are_as_long_as_the_feature_and_what_they_say(store):
    sae = planted_sae()
    tonic = store.labels("tonic") == 7
    found = steering.controls(sae, 19, store, where=tonic, other=planted_sae(OTHER, 1))
    own = sae.directions[19]
    names = ["random", "inactive", "orthogonal", "neuron", "PCA", "DiffMean", "probe"]
    assert list(found) == [*names, "other layer"]
    for direction in found.values():
        assert torch.allclose(direction.norm(), own.norm())
    cosine = {name: float(torch.cosine_similarity(d, own, 0)) for name, d in found.items()}
    assert abs(cosine["orthogonal"]) < 1e-4 and abs(cosine["random"]) < 0.6
    # Tonics are 0 or 7, columns 12 and 19: what tells them apart is their difference.
    apart = torch.zeros(32)
    apart[[12, 19]] = torch.tensor([-1.0, 1.0])
    for name in ("PCA", "DiffMean"):  # chords go with the key, so these mix in their roots
        assert torch.cosine_similarity(found[name], apart, 0) > 0.6
    x = store[POINT][:].float()
    by_hand = x[tonic].mean(0) - x[~tonic].mean(0)
    assert torch.cosine_similarity(found["DiffMean"], by_hand, 0) > 1 - 1e-5
    turned = torch.cov(x.T) @ found["PCA"]
    assert torch.cosine_similarity(turned, found["PCA"], 0) > 1 - 1e-4
    assert int(found["neuron"].abs().argmax()) in (12, 19)
    assert found["probe"] @ apart > 0.5 * own.norm()
    inactive = [torch.cosine_similarity(found["inactive"], row, 0) for row in sae.W_dec[32:]]
    assert max(inactive) > 0.999
    # The other layer's rows are rolled by one, and so is its feature.
    assert int(found["other layer"].argmax()) == 20

    several = steering.controls(sae, [19, 3], store, where=np.stack([tonic, tonic], 1))
    assert several["PCA"].shape == (2, 32) and torch.allclose(several["PCA"][0], found["PCA"])
    own_firing = steering.controls(sae, [19], store)["DiffMean"][0]
    assert torch.allclose(own_firing, found["DiffMean"], atol=0.05)  # it fires where 7 is tonic
    again = steering.controls(sae, 19, store, where=tonic)
    assert all(torch.equal(again[name], found[name]) for name in again)


def test_a_rival_adds_as_much_at_the_same_moments(model, sae):
    codes = random_codes(1, 12)
    x = trace.residuals(model, codes, [1])[1][0]
    f = firing(sae, x)
    along = torch.randn(DIM, generator=torch.Generator().manual_seed(0))
    for how in HOW:
        knob = Knob(sae, f, 0.7, how, peak=PEAK)
        mine, theirs = read(model, [knob, dataclasses.replace(knob, along=along)], codes, 1) - x
        assert torch.allclose(mine.norm(dim=-1), theirs.norm(dim=-1), atol=1e-5)
        cosine = torch.cosine_similarity(theirs, along[None]).abs()
        assert torch.allclose(cosine[theirs.norm(dim=-1) > 1e-3], torch.ones(1), atol=1e-3)


# -- what cannot be


@pytest.mark.parametrize(
    "given, word",
    [
        (dict(strength=float("nan")), "strength is a number from -100 to 100.*nan"),
        (dict(strength=1e6), "strength is a number from -100 to 100.*1000000.0"),
        (dict(strength="loud"), "strength is a number"),
        (dict(feature=96), "features 0 to 95; there is no 96"),
        (dict(feature=-1), "there is no -1"),
        (dict(feature=1.5), "there is no 1.5"),
        (dict(how="replace"), "add, scale, ablate, clamp"),
        (dict(half="left"), "both, cond, uncond"),
        (dict(peak=None), "needs peak"),
        (dict(how="clamp", peak=None), "needs peak"),
        (dict(peak=0.0), "Feature 5 never fires"),
        (dict(peak=float("nan")), "never fires"),
        (dict(peak=float("inf")), "not infinite"),
        (dict(how="clamp", to=1e6), "in units of the peak"),
        (dict(window=(2, 1)), "start < end"),
        (dict(window=(-1, 1)), "start < end"),
        (dict(window=(float("nan"), 1)), "start < end"),
        (dict(window=(0, float("inf"))), "start < end"),
        (dict(curve=[1, float("nan")]), "not finite"),
        (dict(curve=[1, 1e6]), "at most 100"),
        (dict(along=torch.zeros(DIM)), "not all 0"),
        (dict(along=torch.ones(3)), r"shape \(32,\)"),
    ],
)
def test_knobs_that_make_no_sense(sae, given, word):
    with pytest.raises(ValueError, match=word):
        Knob(**(dict(sae=sae, feature=5, peak=PEAK) | given))


def test_a_feature_without_a_direction(model):
    sae = an_sae(model)
    with torch.no_grad():
        sae.W_dec[5] = 0
    with pytest.raises(ValueError, match="Feature 5 says nothing"):
        Knob(sae, 5, peak=PEAK)


def test_peaks_come_from_the_atlas_which_knows_dead_and_constant_features(store):
    sae = planted_sae()
    with torch.no_grad():
        sae.b_enc[31] = 5
    atlas = FeatureAtlas.of(sae, store, examples=2)
    assert Knob(sae, 19, peak=atlas).peak == atlas.peak[19] > 0
    with pytest.raises(ValueError, match="Feature 40 never fires"):
        Knob(sae, 40, peak=atlas)
    with pytest.raises(ValueError, match="Feature 40 never fires"):
        Knob(sae, 40, how="ablate", peak=atlas)
    with pytest.warns(UserWarning, match="Feature 31 fires in 100.0% of all rows"):
        Knob(sae, 31, peak=atlas)
    with pytest.raises(ValueError, match="atlas is of another SAE"):
        Knob(planted_sae(OTHER, 1), 19, peak=atlas)
    with torch.no_grad():
        sae.W_dec[0] += 1
    with pytest.raises(ValueError, match="atlas is of another SAE"):
        Knob(sae, 19, peak=atlas)


@pytest.mark.parametrize(
    "given, more, word",
    [
        (dict(window=(2, 3)), {}, "lies outside the clip, which lasts 0.4 s"),
        (dict(window=(0.1, 0.5)), {}, "lies outside the clip"),
        (dict(curve=np.ones(7)), {}, "7 factors for 20 frames"),
        (dict(how="clamp", to=np.ones(7)), {}, "shape \\(7,\\), and the clip 20 frames"),
        (dict(half="uncond"), dict(guidance=1.0), "only one half"),
        ({}, dict(seed=[1, 2, 3]), "3 seeds for 2 rows"),
        ({}, dict(prompts=["a", "b", "c"]), "3 prompts for 2 rows"),
        ({}, dict(batch=0), "batch is"),
        ({}, dict(seconds=100), "too long"),
    ],
)
def test_sweeps_that_cannot_be_leave_no_folder(model, sae, tmp_path, given, more, word):
    knob = Knob(**(dict(sae=sae, feature=5, peak=PEAK) | given))
    settings = dict(prompts="piano", seconds=0.4) | more
    with pytest.raises(ValueError, match=word):
        steering.sweep(model, rows=[None, knob], folder=tmp_path / "run", **settings)
    assert not list((tmp_path / "run").glob("rows-*"))


def test_an_sae_of_another_place_is_refused(model, sae):
    other = tiny()
    with torch.no_grad():
        other.lm.linears[0].weight[0, 0] += 1
    unbound = an_sae(model)
    unbound.hook_point["fingerprint"] = None
    nowhere = SAE(sae.config, None)
    moved = an_sae(model)
    moved.hook_point["layer"] = 2
    wide = SAE(SAEConfig(64, 96, "standard"), HookPoint.of(model, 1))
    for one, word in [
        (an_sae(other), "other weights"), (unbound, "bind it to weights"),
        (nowhere, "does not say at which layer"), (moved, "Layer 2 is found at"),
        (wide, "width 64, and those of 'tiny' are 32 wide"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=word):
            play(model, [Knob(one, 5, peak=PEAK)])
    with pytest.raises(ValueError, match="other weights"):
        steering.output_effect(model, [Knob(an_sae(other), 5, peak=PEAK)], random_codes(1, 8))


def test_rows_and_rivals_that_cannot_be(model, sae, store):
    knob, codes = Knob(sae, 5, peak=PEAK), random_codes(1, 8)
    planted = planted_sae()
    some = store.labels("tonic") == 7
    always = planted_sae()
    with torch.no_grad():
        always.b_enc[31] = 5
    for call, word in [
        (lambda: play(model, knob), "rows is a list"),
        (lambda: play(model, []), "rows is a list"),
        (lambda: play(model, [[7]]), "A row holds"),
        (lambda: steering.output_effect(model, [], codes), "knobs is a list"),
        (lambda: steering.output_effect(model, [dataclasses.replace(knob, strength=0)], codes),
         "other than 0"),
        (lambda: steering.output_effect(model, [dataclasses.replace(knob, half="uncond")], codes),
         "only one half"),
        (lambda: trace.edit(model, steering.edits(model, [knob], 0.16)).logits(
            codes.repeat(2, 1, 1)), "knobs are for 1 rows; there are 2"),
        (lambda: Patch(1, torch.ones(3)), "positions, d"),
        (lambda: Patch(1, torch.full((9, DIM), float("nan"))), "not finite"),
        (lambda: Patch(1, torch.ones(9, DIM), float("nan")), "strength is a number from -100"),
        (lambda: Patch(1, torch.ones(9, DIM), 1e6), "strength is a number from -100"),
        (lambda: play(model, [Patch(1, torch.ones(30, DIM), window=(2, 3))]), "outside the clip"),
        (lambda: steering.output_effect(model, [knob], codes + CARD), "integers from 0 to 31"),
        (lambda: Knob(sae, 5, peak=PEAK, along=torch.full((DIM,), float("nan"))), "not finite"),
        (lambda: play(model, [Patch(1, torch.ones(30, 5))]), "32 wide; that of the patch 5"),
        (lambda: play(model, [Patch(7, torch.ones(30, DIM))]), "layers 0 to 2"),
        (lambda: steering.controls(sae, 5, store), "it has no"),
        (lambda: steering.controls(planted, 48, store), "features 0 to 47"),
        (lambda: steering.controls(planted, 40, store), "Feature 40 fires in none of"),
        (lambda: steering.controls(always, 31, store), "Feature 31 fires in all of"),
        (lambda: steering.controls(planted, 3, store, where=some | True), "where=, holds in all"),
        (lambda: steering.controls(planted, 3, store, where=some[:-1]), "where has shape"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=word):
            call()
