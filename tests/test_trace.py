"""Positions, moments and edits: nnsight against plain hooks, against arithmetic, against music."""

import copy
import warnings

import numpy as np
import pytest
import torch

from musae_utils.models import compat  # noqa: F401  # isort: skip  (before audiocraft)
from audiocraft.models import MusicGen
from audiocraft.models.lm import LMModel
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils import models, trace
from musae_utils.models import MusicModel, nano
from musae_utils.music.clip import FRAME_RATE, Note, frame_loudness
from musae_utils.music.render import synthesise

K, CARD, DIM, LAYERS = 4, 32, 32, 3
CODEC = dict(
    encoder_width=8, decoder_width=8, encoder_dilations=[1], decoder_dilations=[1], n_fft=512,
    dim=8, codebooks=K, cardinality=CARD,
)  # fmt: skip


def outspoken(lm):
    """Far from uniform, so that what is played depends on what happens inside."""
    with torch.no_grad():
        for linear in lm.linears:
            linear.weight.mul_(4)
    return lm.eval()


def with_lm(lm):
    torch.manual_seed(0)
    musicgen = MusicGen("tiny", nano.build_codec(CODEC).eval(), lm, max_duration=30)
    return MusicModel("tiny", musicgen, torch.float32)


def tiny(**architecture):
    torch.manual_seed(0)
    shape = dict(dim=DIM, layers=LAYERS, heads=2, codebooks=K, cardinality=CARD)
    return with_lm(outspoken(nano.build_lm(shape | architecture)))


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def bare():
    """The same model, never wrapped by nnsight."""
    return tiny()


@pytest.fixture(scope="module")
def prefixed():
    """A model that reads its prompt as positions before the music, like MusicGen-melody."""
    torch.manual_seed(0)
    words = nano.WordConditioner(["piano", "organ"], DIM, 5)
    fuser = dict(cross=[], prepend=["description"], sum=[], input_interpolate=[])
    lm = LMModel(
        DelayedPatternProvider(K), ConditioningProvider({"description": words}),
        ConditionFuser(fuser), n_q=K, card=CARD, dim=DIM, num_heads=2, norm_first=True,
        num_layers=LAYERS, dropout=0.0, causal=True, memory_efficient=True,
        weight_init="gaussian",
    )  # fmt: skip
    return with_lm(outspoken(lm))


@pytest.fixture(scope="module")
def stereo():
    """Codebooks that share delays two by two, like MusicGen-stereo."""
    model = tiny()
    model.lm.pattern_provider = DelayedPatternProvider(K, delays=[0, 0, 1, 1])
    return model


def random_codes(rows, frames, seed=0):
    return torch.randint(CARD, (rows, K, frames), generator=torch.Generator().manual_seed(seed))


def a_direction(seed=1):
    return torch.randn(DIM, generator=torch.Generator().manual_seed(seed))


def sequence_of(model, codes):
    pattern = model.lm.pattern_provider.get_pattern(codes.shape[-1])
    return pattern.build_pattern_sequence(codes, model.lm.special_token_id)[0]


class Hooked:
    """The rival: plain forward hooks that edit residuals position by position, row by row."""

    def __init__(self, model, edits, rows, n_frames, prefix=0):
        self.model, self.edits, self.rows, self.n_frames = model, edits, rows, n_frames
        self.prefix = prefix
        self.handles = []

    def __enter__(self):
        for edit in self.edits:
            if edit.layer == "embed":
                handle = self.model.lm.transformer.register_forward_pre_hook(self.before(edit))
            else:
                module = self.model.lm.transformer.layers[edit.layer]
                handle = module.register_forward_hook(self.after(edit))
            self.handles.append(handle)
        return self.model

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def before(self, edit):
        at = [0]  # positions already seen
        return lambda module, x: (self.change(x[0], edit, at), *x[1:])

    def after(self, edit):
        at = [0]
        return lambda module, x, out: self.change(out, edit, at)

    def change(self, x, edit, at):
        prefix = 0 if at[0] else self.prefix
        n = x.shape[1] - prefix
        start, end = edit.window or (0, None)
        last = self.n_frames if end is None else round(end * FRAME_RATE)
        out = x.clone()
        strengths = np.broadcast_to(np.asarray(edit.strength, np.float32), self.rows)
        for row in range(len(x)):
            half = "uncond" if row >= self.rows else "cond"
            if edit.half not in ("both", half):
                continue
            i = row % self.rows
            for p in range(n):
                frame = min(at[0] + p, self.n_frames - 1)
                if not round(start * FRAME_RATE) <= frame < last or strengths[i] == 0:
                    continue
                here = out[row, prefix + p]
                if callable(edit.change):
                    new = edit.change(x[row : row + 1, prefix + p : prefix + p + 1])[0, 0]
                    out[row, prefix + p] = torch.lerp(here, new, float(strengths[i]))
                else:
                    direction = edit.change if edit.change.dim() == 1 else edit.change[i]
                    out[row, prefix + p] = here + float(strengths[i]) * direction
        at[0] += n
        return out


# -- which position is which moment


@given(frames=st.integers(1, 40), codebooks=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_positions_hold_the_frames_that_the_pattern_puts_there(frames, codebooks):
    pattern = DelayedPatternProvider(codebooks).get_pattern(frames)
    codes = torch.arange(frames).expand(1, codebooks, frames).contiguous()
    held, _, _ = pattern.build_pattern_sequence(codes, -1)
    assert held.shape[-1] == frames + codebooks
    positions = np.arange(held.shape[-1])
    for k in range(codebooks):
        frame = trace.frame_of_position(positions, k)
        frame[(frame < 0) | (frame >= frames)] = -1
        assert held[0, k].tolist() == frame.tolist()
        assert (held[0, k, trace.position_of_frame(np.arange(frames), k)] >= 0).all()
        assert trace.frame_of_position(trace.position_of_frame(7, k), k) == 7


def test_positions_in_seconds():
    assert trace.positions_to_seconds(4, 50).tolist() == [-0.02, 0, 0.02, 0.04]
    assert trace.positions_to_seconds(6, 50, codebook=3)[4] == 0


def test_aligning_picks_the_positions_of_frames():
    residual = torch.arange(14.0)[:, None].expand(2, 14, 3)
    assert trace.align(residual, 10)[0, :, 0].tolist() == list(range(1, 11))
    assert trace.align(residual, 10, codebook=3)[0, :, 0].tolist() == list(range(4, 14))
    assert trace.align(residual[0], 10).shape == (10, 3)
    for frames, codebook in [(10, 4), (14, 0), (10, -1), (0, 0)]:
        with pytest.raises(ValueError, match="take the positions"):
            trace.align(residual, frames, codebook)


@pytest.mark.parametrize("codebook", range(K))
@pytest.mark.parametrize("frame", [0, 5, 11])
def test_a_changed_code_is_first_seen_where_the_map_says(model, codebook, frame):
    codes = random_codes(1, 12)
    other = codes.clone()
    other[0, codebook, frame] = (other[0, codebook, frame] + 1) % CARD
    layers = ["embed", 0, LAYERS - 1]
    before, after = (trace.residuals(model, c, layers) for c in (codes, other))
    for layer in layers:
        moved = (before[layer] != after[layer]).any(-1)[0]
        assert moved.nonzero()[0] == trace.position_of_frame(frame, codebook)
        assert trace.align(moved[:, None], 12, codebook)[:, 0].nonzero()[0] == frame
    # what the position writes is a step further on: in codebook j a frame of its own
    told = (trace.logits(model, codes) != trace.logits(model, other)).any(-1)[0]
    for j in range(K):
        expected = trace.frame_of_position(trace.position_of_frame(frame, codebook) + 1, j)
        seen = told[j].nonzero()
        assert seen[0] == max(expected, 0) if expected < 12 else not len(seen)


def notes_and_onsets():
    """Rendered notes, irregular in time, pitch and loudness, and the frames they start in."""
    random = np.random.default_rng(0)
    onsets = np.cumsum(random.integers(12, 21, 14)).tolist()
    notes = [
        Note((t + 0.1) / FRAME_RATE, t / FRAME_RATE + 0.12, int(random.integers(55, 80)),
             int(random.integers(95, 115)), "melody")
        for t in onsets
    ]  # fmt: skip
    return synthesise(notes, {"melody": 0}, 6), onsets


def changes(frames):
    """How much each frame of (T, dim) differs from the one before."""
    return np.r_[0, (frames[1:] - frames[:-1]).norm(dim=-1).detach()]


def best_lag(change, onsets, reach=4):
    """By how many frames a change per frame lags behind the onsets."""
    lags = range(-reach, reach + 1)
    return max(lags, key=lambda lag: np.mean([change[t + lag] for t in onsets]))


@pytest.mark.parametrize("codebook", range(K))
def test_note_onsets_of_rendered_music_are_seen_at_their_frames(model, codebook):
    audio, onsets = notes_and_onsets()
    n_frames = round(len(audio) / 16000 * FRAME_RATE)
    # A codec that sees one frame at a time: another code whenever the sound rises by 6 dB.
    rises = np.diff(frame_loudness(audio, 16000, n_frames), prepend=-80) > 6
    assert rises.sum() == len(onsets)
    codes = torch.zeros(1, K, n_frames, dtype=torch.long)
    codes[0, codebook] = torch.from_numpy(np.cumsum(rises) % CARD)
    streams = trace.residuals(model, codes, ["embed", 0, LAYERS - 1])
    for layer, stream in streams.items():
        for shift in (-1, 0, 1):
            n = n_frames - 1
            seen = stream[0, 1 + codebook + shift :][:n]
            if shift == 0:
                assert torch.equal(seen, trace.align(stream, n, codebook)[0])
            assert best_lag(changes(seen), onsets) == -shift, layer


# -- reading


@pytest.mark.parametrize("prompts", [None, "slow piano", ["fast organ", None]])
def test_residuals_are_those_of_a_plain_forward(model, bare, prompts):
    codes = random_codes(2, 20)
    layers = ["embed", *range(LAYERS)]
    traced = trace.residuals(model, codes, layers, prompts)
    plain, handles = {}, []
    for i, layer in enumerate(bare.lm.transformer.layers):
        keep = lambda module, x, out, i=i: plain.__setitem__(i, out)  # noqa: E731
        handles.append(layer.register_forward_hook(keep))
    sequence = sequence_of(bare, codes)
    rows = prompts if isinstance(prompts, list) else [prompts] * 2
    with torch.no_grad():
        logits = bare.lm(sequence, [], bare.conditions(rows))
        plain["embed"] = sum(bare.lm.emb[k](sequence[:, k]) for k in range(K))
    for handle in handles:
        handle.remove()
    assert list(traced) == layers
    for layer in layers:
        assert traced[layer].shape == (2, 24, DIM)
        assert torch.equal(traced[layer], plain[layer])
        alone = trace.residuals(model, codes, [layer], prompts)[layer]
        assert torch.equal(alone, plain[layer])
    for k in range(K):
        assert torch.equal(trace.logits(model, codes, prompts)[:, k], logits[:, k, k : k + 20])


def test_logits_agree_with_audiocrafts_predictions(model, bare):
    codes = random_codes(2, 9)
    with torch.no_grad():
        theirs = bare.lm.compute_predictions(codes, [], bare.conditions(["piano", None]),
                                             keep_only_valid_steps=False)  # fmt: skip
    ours = trace.logits(model, codes, ["piano", None])
    assert torch.equal(ours, theirs.logits) and theirs.mask.all()


def test_a_trace_stops_after_the_deepest_layer(model):
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
        for i, layer in enumerate(model.lm.transformer.layers)
    ]
    try:
        trace.residuals(model, random_codes(1, 5), ["embed"])
        assert calls == []
        trace.residuals(model, random_codes(1, 5), [1, 0])
        assert 2 not in calls and 0 in calls
    finally:
        for handle in handles:
            handle.remove()


def test_tracing_leaves_the_model_as_it_was(model, bare):
    trace.residuals(model, random_codes(1, 5), [1])
    play = dict(prompts="slow piano", seconds=0.3)
    assert torch.equal(model.generate(**play).codes, bare.generate(**play).codes)
    assert model.fingerprint == bare.fingerprint


def test_positions_of_a_prompt_put_first_are_not_of_the_music(prefixed):
    codes = random_codes(2, 10)
    streams = trace.residuals(prefixed, codes, ["embed", 0], ["piano", "organ"])
    sequence = sequence_of(prefixed, codes)
    expected = sum(prefixed.lm.emb[k](sequence[:, k]) for k in range(K))
    assert torch.equal(streams["embed"], expected)
    assert streams[0].shape == (2, 14, DIM)


def test_codebooks_may_share_a_delay(stereo):
    codes = random_codes(1, 10)
    other = codes.clone()
    other[0, 3, 6] = (other[0, 3, 6] + 1) % CARD
    before, after = (trace.residuals(stereo, c, [1])[1] for c in (codes, other))
    assert before.shape[1] == 12
    moved = (before != after).any(-1)[0]
    assert moved.nonzero()[0] == trace.position_of_frame(6, codebook=3 // 2)
    assert trace.logits(stereo, codes).shape == (1, K, 10, CARD)
    seen = []
    edit = trace.Edit(1, lambda x: seen.append(x.shape[1]) or x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace.edit(stereo, edit).generate(None, 0.2)
    assert sum(seen) == 11


# -- places


def test_a_hook_point_knows_its_model(model):
    hook = trace.HookPoint.of(model, 1)
    assert (hook.model, hook.layer, hook.path) == ("tiny", 1, "transformer.layers.1")
    assert hook.fingerprint == model.fingerprint and hook.check(model) == 1
    assert trace.HookPoint.of(model, "embed").layer == trace.EMBED
    stream = trace.residuals(model, random_codes(1, 4), [hook])[hook]
    assert torch.equal(stream, trace.residuals(model, random_codes(1, 4), [1])[1])
    module = model.lm.get_submodule(hook.path)
    assert module is model.lm.transformer.layers[1]


def test_a_hook_point_of_another_model_is_refused(model):
    other = tiny(heads=4)
    with torch.no_grad():
        other.lm.linears[0].weight[0, 0] += 1
    hook = trace.HookPoint.of(other, 1)
    for use in (
        lambda: hook.check(model),
        lambda: trace.residuals(model, random_codes(1, 4), [hook]),
        lambda: trace.edit(model, trace.Edit(hook, a_direction())),
    ):
        with pytest.raises(ValueError, match="other weights"):
            use()
    with pytest.raises(ValueError, match="found at"):
        trace.HookPoint("tiny", 1, "transformer.layers.2", model.fingerprint)


@pytest.mark.parametrize("layer", [3, -2, "1", 1.0, True, None])
def test_layers_that_are_not_there(model, layer):
    with pytest.raises(ValueError, match="layers 0 to 2"):
        trace.residuals(model, random_codes(1, 4), [layer])
    with pytest.raises(ValueError, match="layers 0 to 2"):
        trace.edit(model, trace.Edit(layer, a_direction()))


def test_layers_by_depth(model):
    assert [trace.at_depth(model, f) for f in (0, 0.5, 1)] == [0, 1, 2]
    with pytest.raises(ValueError, match="between 0 and 1"):
        trace.at_depth(model, 2)


# -- editing

ABLATE = a_direction(5) / a_direction(5).norm()


def without(x):
    return x - (x * ABLATE).sum(-1, keepdim=True) * ABLATE


EDITS = {
    "a direction": [trace.Edit(1, a_direction(), 3.0)],
    "a strength for each row": [trace.Edit(0, a_direction(), [0, 2.5, -4])],
    "a direction for each row": [
        trace.Edit(2, torch.stack([a_direction(6), a_direction(7), a_direction(8)]), [3, 0, 2])
    ],
    "a window": [trace.Edit(1, a_direction(), 4, window=(0.1, 0.22))],
    "a window to the end": [trace.Edit(1, a_direction(), 4, window=(0.24, None))],
    "a function": [trace.Edit(1, lambda x: torch.tanh(x) * 2)],
    "part of a function": [trace.Edit(1, lambda x: x.flip(-1), [0, 0.4, 1.7], (0.1, 0.3))],
    "the embedding": [trace.Edit("embed", a_direction(), 2.0)],
    "several": [
        trace.Edit(2, a_direction(2), [0, 1, 2], (0.2, 0.3)),
        trace.Edit(0, a_direction(3), 2, (0.0, 0.1)),
        trace.Edit(2, lambda x: x * 0.5, 1, (0.24, None)),
    ],
    "the conditional half": [trace.Edit(1, a_direction(), 3.0, half="cond")],
    "the unconditional half": [trace.Edit(1, a_direction(), [1, 3, 0], half="uncond")],
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("known", [0, 6])
@pytest.mark.parametrize("prompts", [["slow piano", None, "fast organ"], None])
def test_generation_under_edits_equals_hooks(model, bare, name, known, prompts):
    edits = EDITS[name]
    codes = random_codes(3, known) if known else None
    settings = dict(seconds=0.36, seed=2, prompt_codes=codes)
    prompts = [None] * 3 if prompts is None else prompts
    ours = trace.edit(model, edits).generate(prompts, **settings)
    both = any(e.half != "both" for e in edits)
    with Hooked(bare, edits, 3, 18):
        theirs = bare.generate(prompts, **settings, both_halves=both)
    assert torch.equal(ours.codes, theirs.codes)
    assert not torch.equal(ours.codes, bare.generate(prompts, **settings).codes)
    if known:
        assert torch.equal(ours.codes[..., :known], codes)


@pytest.mark.parametrize("name", [n for n in EDITS if "uncond" not in n])
def test_reading_under_edits_equals_hooks(model, bare, name):
    edits, codes = EDITS[name], random_codes(3, 18)
    ours = trace.edit(model, edits)
    with Hooked(bare, edits, 3, 18), torch.no_grad():
        theirs = bare.lm(sequence_of(bare, codes), [], bare.conditions(["piano"] * 3))
    told = ours.logits(codes, "piano")
    for k in range(K):
        assert torch.equal(told[:, k], theirs[:, k, k : k + 18])
    # and the residual is the one after the edit
    last = ours.residuals(codes, [2], "piano")[2]
    with torch.no_grad():
        again = model.lm.linears[0](model.lm.out_norm(last))
    assert torch.equal(again[:, :18], told[:, 0])


def test_an_edit_after_a_prompt_that_is_put_first(prefixed):
    bare = with_lm(copy.deepcopy(prefixed.lm))
    edits = [trace.Edit(1, a_direction(), [4, 0], (0.0, 0.2))]
    settings = dict(seconds=0.3, prompt_codes=random_codes(2, 4))
    ours = trace.edit(prefixed, edits).generate(["piano", "organ"], **settings).codes
    with Hooked(bare, edits, 2, 15, prefix=5):
        theirs = bare.generate(["piano", "organ"], **settings).codes
    plain = bare.generate(["piano", "organ"], **settings).codes
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[1], plain[1]) and not torch.equal(ours[0], plain[0])


@pytest.mark.parametrize("half", trace.HALVES)
@pytest.mark.parametrize("change", [a_direction(), lambda x: x + 100, lambda x: x * float("nan")])
def test_strength_0_changes_nothing(model, half, change):
    edit = trace.Edit(1, change, 0.0, half=half)
    play = dict(prompts=["slow piano", None], seconds=0.3, seed=5)
    assert torch.equal(trace.edit(model, edit).generate(**play).codes, model.generate(**play).codes)
    if half != "uncond":
        codes = random_codes(2, 10)
        assert torch.equal(trace.edit(model, edit).logits(codes), trace.logits(model, codes))


def test_rows_are_independent(model):
    play = dict(seconds=0.5, seed=1, same_noise=True)
    plain = model.generate(["slow piano"] * 4, **play).codes
    edit = trace.Edit(1, a_direction(), [0, 3, 0, -3])
    codes = trace.edit(model, edit).generate("slow piano", **play).codes  # one prompt for all
    assert codes.shape[0] == 4
    assert torch.equal(codes[[0, 2]], plain[[0, 2]])
    for row, strength in ((1, 3), (3, -3)):
        assert not torch.equal(codes[row], plain[row])
        alone = trace.edit(model, trace.Edit(1, a_direction(), strength))
        assert torch.equal(alone.generate("slow piano", **play).codes[0], codes[row])
    # own noise: the same, row by row
    own = dict(play, same_noise=False)
    codes = trace.edit(model, edit).generate("slow piano", **own).codes
    plain = model.generate(["slow piano"] * 4, **own).codes
    assert torch.equal(codes[[0, 2]], plain[[0, 2]]) and not torch.equal(codes[1], plain[1])


@given(known=st.integers(0, 8), start=st.integers(0, 18), frames=st.integers(1, 20))
@settings(max_examples=12, deadline=None)
def test_a_window_acts_from_its_frame_on_and_not_before(known, start, frames):
    model = shared()
    start = max(start, known)
    window = (start / FRAME_RATE, min(start + frames, 20) / FRAME_RATE)
    play = dict(seconds=0.4, seed=3, prompt_codes=random_codes(1, known) if known else None)
    plain = model.generate("piano", **play).codes[0]
    seen = []

    def to_noise(x):
        seen.append(x.shape[1])
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(len(seen))) * 10

    codes = trace.edit(model, trace.Edit(2, to_noise, 1, window)).generate("piano", **play).codes[0]
    for k in range(K):
        assert torch.equal(codes[k, : max(start - k, 0)], plain[k, : max(start - k, 0)])
    # One call a position and half, those after the last frame going with it, the prompt's at once.
    positions = range(start, 23 if round(window[1] * 50) == 20 else round(window[1] * 50))
    assert seen == [known + 1 if p == known else 1 for p in positions for _ in range(2)]


_shared = []


def shared():
    if not _shared:
        _shared.append(tiny())
    return _shared[0]


def test_a_window_begins_to_the_frame(model):
    """Codebook 0 changes at the window's first frame, codebook k k frames before: 60 ms."""
    play = dict(seconds=0.6, temperature=0)
    loud = trace.Edit(2, a_direction(2), 60.0, window=(0.3, 0.4))
    plain = model.generate(["slow piano"], **play).codes[0]
    codes = trace.edit(model, loud).generate("slow piano", **play).codes[0]
    assert [int((codes[k] != plain[k]).nonzero()[0]) for k in range(K)] == [15, 14, 13, 12]


def test_windows_of_a_continuation_count_from_its_beginning(model):
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 3200)).astype(np.float32)
    play = dict(seconds=0.6, prompts="slow piano", temperature=0)
    plain = model.continue_from(sound, **play).codes[0]
    edit = trace.Edit(2, a_direction(), 60.0, window=(0.4, None))
    codes = trace.edit(model, edit).continue_from(sound, **play).codes[0]
    assert torch.equal(codes[:, :10], plain[:, :10])
    assert int((codes[0] != plain[0]).nonzero()[0]) == 20


def test_a_timed_function_is_told_where_it_is(model):
    seen = []

    def by_position(x, positions):
        seen.append(positions)
        return x + positions[:, None] * a_direction()

    edit = trace.edit(model, trace.Edit(1, by_position, timed=True))
    codes = random_codes(1, 8)
    stream = edit.residuals(codes, [1])[1] - trace.residuals(model, codes, [1])[1]
    assert torch.allclose(stream[0], torch.arange(12.0)[:, None] * a_direction(), atol=1e-4)
    seen.clear()
    edit.generate(None, 0.4, prompt_codes=random_codes(1, 6))  # the prompt's at once, then singly
    assert [list(p) for p in seen] == [list(range(7)), *([p] for p in range(7, 23))]


def test_one_piece_is_read_under_several_edits(model):
    codes = random_codes(1, 8)
    streams = trace.edit(model, trace.Edit(0, a_direction(), [0, 1, 2])).residuals(codes, [0])[0]
    plain = trace.residuals(model, codes, [0])[0]
    for row in range(3):
        assert torch.equal(streams[row], plain[0] + row * a_direction())


def test_a_function_cannot_change_the_stream_behind_the_edits_back(model):
    edit = trace.Edit(1, lambda x: x.mul_(0), [0.0, 1.0])
    streams = trace.edit(model, edit).residuals(random_codes(2, 8), [1])[1]
    assert torch.equal(streams[0], trace.residuals(model, random_codes(2, 8), [1])[1][0])
    assert not streams[1].any()


def test_half_precision(model):
    lm = copy.deepcopy(tiny().lm).half()
    half = with_lm(lm)
    codes = random_codes(2, 8)
    edits = [trace.Edit(1, a_direction(), [0, 2]), trace.Edit(1, lambda x: x * 0.5, [0, 1])]
    streams = trace.edit(half, edits).residuals(codes, [1])[1]
    plain = trace.residuals(half, codes, [1])[1]
    assert streams.dtype == torch.float16 and torch.equal(streams[0], plain[0])
    expected = (plain[1] + (2 * a_direction()).half()) * 0.5
    assert torch.equal(streams[1], expected)


def test_a_generation_says_how_it_was_edited(model):
    edit = trace.Edit(1, a_direction(), [0, 2], window=(0.1, 0.2), half="cond")
    provenance = trace.edit(model, edit).generate("piano", 0.3).provenance
    (told,) = provenance["edits"]
    assert told["layer"] == "1" and told["strength"] == [0, 2] and told["half"] == "cond"
    assert told["window"] == [0.1, 0.2] and "norm" in told["change"]
    assert "1 edits" in repr(trace.edit(model, edit))


# -- what cannot be


@pytest.mark.parametrize(
    "arguments, word",
    [
        (dict(change=torch.full((DIM,), float("nan"))), "not finite"),
        (dict(change=a_direction(), strength=float("inf")), "not finite"),
        (dict(change=a_direction(), strength=[]), "empty"),
        (dict(change=a_direction(), strength="strong"), "numbers"),
        (dict(change="louder"), "numbers"),
        (dict(change=torch.zeros(2, 2, DIM)), "shape"),
        (dict(change=a_direction(), half="left"), "both, cond, uncond"),
        (dict(change=a_direction(), window=(2, 1)), "start < end"),
        (dict(change=a_direction(), window=(-1, 1)), "start < end"),
        (dict(change=a_direction(), window=(float("nan"), 1)), "start < end"),
        (dict(change=a_direction(), window=3), "start < end"),
    ],
)
def test_edits_that_make_no_sense(arguments, word):
    with pytest.raises(ValueError, match=word):
        trace.Edit(1, **arguments)


@pytest.mark.parametrize(
    "edits, word",
    [
        ([trace.Edit(1, torch.zeros(DIM + 1))], "32 wide; the direction of an edit has 33"),
        ([trace.Edit(1, torch.zeros(2, DIM), [1, 2, 3])], "3 strengths for 2 directions"),
        (
            [trace.Edit(1, a_direction(), [1, 2, 3]), trace.Edit(2, a_direction(), [1, 2])],
            "different numbers of rows",
        ),
        ([a_direction()], "trace.Edit"),
    ],
)
def test_edits_that_do_not_fit_the_model_or_each_other(model, edits, word):
    with pytest.raises(ValueError, match=word):
        trace.edit(model, edits)


@pytest.mark.parametrize(
    "edit, play, word",
    [
        (dict(window=(2, 3)), {}, "outside the clip, which lasts 1 s"),
        (dict(window=(0.5, 1.5)), {}, "outside the clip"),
        (dict(window=(0.5, 0.505)), {}, "shorter than a frame"),
        (dict(strength=[1, 2, 3]), dict(prompts=["a", "b"]), "3 rows of edits"),
        (dict(strength=[1, 2]), dict(prompt_codes=random_codes(3, 4)), "3 rows of codes"),
        (dict(half="uncond"), dict(guidance=1), "only one half"),
        ({}, dict(seconds=0), "length of time"),
        ({}, dict(temperature=-1), "temperature"),
        ({}, dict(prompts=[3]), "text or None"),
        (dict(change=lambda x: x * float("nan")), {}, "NaN"),
        (dict(change=lambda x: x[..., :3]), {}, "shape it was given"),
        (dict(change=lambda x: None), {}, "shape it was given"),
    ],
)
def test_impossible_runs_are_answered_and_leave_no_trace(model, bare, edit, play, word):
    edited = trace.edit(model, trace.Edit(1, **({"change": a_direction()} | edit)))
    play = dict(prompts="piano", seconds=1) | play
    with warnings.catch_warnings(), pytest.raises(ValueError, match=word):
        warnings.simplefilter("ignore")
        edited.generate(**play)
    small = dict(prompts="slow piano", seconds=0.2)
    assert torch.equal(model.generate(**small).codes, bare.generate(**small).codes)


def test_readings_that_cannot_be(model):
    codes = random_codes(2, 10)
    for call, word in [
        (lambda: trace.residuals(model, codes, []), "empty"),
        (lambda: trace.residuals(model, codes, [1], ["a", "b", "c"]), "3 prompts"),
        (lambda: trace.residuals(model, codes[:, :2], [1]), "Codes of tiny"),
        (lambda: trace.edit(model, trace.Edit(1, a_direction(), half="uncond")).logits(codes),
         "only one half"),
        (lambda: trace.edit(model, trace.Edit(1, a_direction(), window=(0, 1))).logits(codes),
         "lasts 0.2 s"),
    ]:  # fmt: skip
        with warnings.catch_warnings(), pytest.raises(ValueError, match=word):
            warnings.simplefilter("ignore")
            call()


def test_other_interleavings_are_refused(model):
    other = tiny()
    other.lm.pattern_provider = DelayedPatternProvider(K, delays=[0, 1, 2, 3], flatten_first=2)
    with pytest.raises(ValueError, match="delay pattern"):
        trace.residuals(other, random_codes(1, 5), [0])


# -- the shipped model


@pytest.fixture(scope="module")
def shipped():
    if not (models.NANO_FOLDER / "lm.safetensors").exists():
        pytest.skip("the nano model is not here: `make nano` trains it")
    return models.load("nano", device="cpu")


@pytest.mark.parametrize("codebook", [0, 1, 2, 3])
def test_the_shipped_model_hears_notes_when_its_codec_does(shipped, codebook):
    """The codec hears notes a little ahead, its window being centred; tracing adds nothing."""
    audio, onsets = notes_and_onsets()
    played = shipped.encode(audio)
    codes = torch.zeros_like(played)
    codes[:, codebook] = played[:, codebook]
    n_frames = codes.shape[-1]
    stream = trace.residuals(shipped, codes, ["embed"])["embed"]
    heard = changes(trace.align(stream, n_frames, codebook)[0])
    of_codec = changes(shipped.lm.emb[codebook](codes[0, codebook]))
    # At the ends the other codebooks hold special tokens; a sum of many rounds otherwise than one.
    inner = slice(shipped.n_codebooks, -shipped.n_codebooks)
    assert np.allclose(heard[inner], of_codec[inner], atol=1e-4)
    assert best_lag(heard, onsets) == best_lag(of_codec, onsets)
    if codebook == 0:  # the finer ones also follow how notes fade
        assert -4 < best_lag(heard, onsets) <= 0
