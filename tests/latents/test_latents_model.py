"""One face for latent models: shapes, rates, batches, and what is no sound."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from musae_utils import latents, music
from musae_utils.latents import LatentModel, quality

HOP, WIDTH, RATE = 20, 6, 1000


class Frames(nn.Module):
    """Each frame's samples times a matrix; back by its pseudo-inverse."""

    def __init__(self, seed=0):
        super().__init__()
        drawn = torch.randn(HOP, WIDTH, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(torch.linalg.qr(drawn)[0], requires_grad=False)

    def encode(self, audio):
        x = nn.functional.pad(audio.mean(1), (0, -audio.shape[-1] % HOP)).unflatten(-1, (-1, HOP))
        return (x @ self.weight).transpose(1, 2)

    def decode(self, z):
        return (z.transpose(1, 2) @ self.weight.T).flatten(1)[:, None]


def model(channels=1, seed=0, decode=None):
    net = Frames(seed)
    return LatentModel("frames", "rvq", net, net.encode, decode or net.decode, RATE, HOP, WIDTH,
                       torch.round, channels, "It is linear.")  # fmt: skip


sounds = arrays(np.float32, st.integers(HOP, 200), elements=st.floats(-1, 1, width=32))


@given(sounds, st.sampled_from([1, 2]))
def test_frames_cover_the_sound_and_decode_to_whole_frames(x, channels):
    z = model(channels).encode(x)
    assert z.shape == (-(-len(x) // HOP), WIDTH) and z.dtype == np.float32
    y = model(channels).decode(z)
    assert y.shape == (len(z) * HOP,)
    np.testing.assert_allclose(model().encode(y), z, atol=1e-5)  # what it can say, it keeps


@given(st.integers(1, 20), st.integers(HOP, 60))
def test_a_batch_is_its_rows(n, length):
    x = np.random.default_rng(n).normal(size=(n, length)).astype(np.float32)
    together = model().encode(x)
    assert together.shape[0] == n
    for row, z in zip(x, together, strict=True):
        np.testing.assert_allclose(z, model().encode(row), atol=1e-6)
        np.testing.assert_allclose(
            model().decode(together)[0], model().decode(together[0]), atol=1e-5
        )
    np.testing.assert_allclose(model().encode(list(x)), together, atol=1e-6)
    np.testing.assert_allclose(model().encode(torch.from_numpy(x)), together, atol=1e-6)


@given(arrays(np.float32, (3, 4, WIDTH), elements=st.floats(-9, 9, width=32)))
def test_codebooks_round_and_decoding_may_go_through_them(z):
    m = model()
    np.testing.assert_array_equal(m.quantise(z), np.round(z))
    np.testing.assert_array_equal(m.quantise(z[0]), np.round(z[0]))
    np.testing.assert_allclose(m.decode(z, quantise=True), m.decode(np.round(z)), atol=1e-5)


def test_a_decoder_that_is_short_by_a_sample_is_made_whole():
    short = model(decode=lambda z: Frames().decode(z)[..., :-3])
    y = short.decode(np.ones((4, WIDTH)))
    assert y.shape == (4 * HOP,) and not y[-3:].any() and y[:-3].all()


def test_another_rate_is_converted_and_said():
    m = model()
    x = np.sin(np.arange(2000) / 20).astype(np.float32)
    assert m.said == "It is linear."
    z = m.encode(x, sample_rate=2 * RATE)
    assert len(z) == 1000 / HOP
    assert m.said == "It is linear. Sound at 2,000 Hz was converted to 1,000 Hz."
    assert m.said in repr(m)
    m.encode(x, sample_rate=2 * RATE)
    assert m.said.count("converted") == 1


def test_clips_bring_their_rate():
    clip = music.make(seed=3, seconds=5)
    m = model()
    assert len(m.encode(clip)) == 5 * RATE / HOP
    assert m.encode([clip, clip]).shape == (2, 250, WIDTH)


@pytest.mark.parametrize(
    "sound, said",
    [
        (np.zeros(HOP - 1), "lasts 19 ms, and one frame of frames lasts 20 ms"),
        (np.zeros(0), "shape"),
        (np.zeros((2, 2, 50)), "shape"),
        (np.full(50, np.nan), "NaN or infinity in 50 samples"),
        ([], "the list is empty"),
        ([np.zeros(50), np.zeros(80)], r"last 0\.05 to 0\.08 s: cut them to one length"),
    ],
)
def test_what_is_no_sound_is_said(sound, said):
    with pytest.raises(ValueError, match=said):
        model().encode(sound)


@pytest.mark.parametrize(
    "z, said",
    [
        (np.zeros((4, WIDTH + 1)), r"have shape \(T, 6\) or \(B, T, 6\), not \(4, 7\)"),
        (np.zeros(WIDTH), "have shape"),
        (np.zeros((0, WIDTH)), "have shape"),
        (np.full((4, WIDTH), np.inf), "NaN or infinity"),
    ],
)
def test_what_is_no_latents_is_said(z, said):
    with pytest.raises(ValueError, match=said):
        model().decode(z)


def test_the_fingerprint_is_of_the_weights():
    assert model().fingerprint == model().fingerprint != model(seed=1).fingerprint
    assert len(model().fingerprint) == 16 and model().fingerprint in repr(model())


# -- the nano models, and what they keep -----------------------------------------------------------


@pytest.fixture(scope="module", params=latents.NANO)
def nano(request):
    try:
        return latents.load(request.param)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def test_a_twentieth_of_a_second_is_enough(nano):
    z = nano.encode(np.zeros(800), 16_000)
    assert len(z) == -(-800 // nano.hop) and np.isfinite(nano.decode(z, quantise=True)).all()
    with pytest.raises(ValueError, match="10 ms, and one frame"):
        nano.encode(np.zeros(160), 16_000)


def test_a_copy_is_more_like_its_original_than_another_piece(nano):
    clips = music.make_many(8, seed=500, seconds=5)
    found = quality.report(nano, clips)
    strangers = quality.codec_report(clips, np.stack([c.audio for c in [*clips[1:], clips[0]]]))
    for name, theirs in quality.MEASURES.items():
        assert found[name].n == 8
        if name in ("chroma", "pitch_agreement"):
            assert found[name].above(strangers[theirs]), name
    assert found["lsd"].high < strangers["log_spectral_distance"].low


def test_copies_come_back_at_the_clips_rate():
    clips = music.make_many(2, seed=9, seconds=5)
    copied = quality.copies(model(), clips)
    assert copied.shape == (2, 5 * clips[0].sample_rate)
