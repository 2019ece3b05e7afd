"""The nano VAE and tokenizer: shapes, files in eight bits, training that survives a kill."""

import numpy as np
import pytest
import torch

from musae_utils import latents, music
from musae_utils.latents import nano, train_vae
from musae_utils.models import nano as parts
from musae_utils.models import train_codec
from musae_utils.music import measure

SMALL = {"encoder_width": 16, "decoder_width": 16, "dim": 4}


@pytest.fixture(scope="module")
def clips():
    return music.make_many(3, seed=40, seconds=5)


@pytest.mark.parametrize("samples", [640, 641, 5000, 16000])
def test_a_vae_covers_the_sound_at_half_the_codec_rate(samples):
    vae = nano.NanoVAE(SMALL)
    z = vae.encode(torch.randn(2, 1, samples) * 0.1)
    assert z.shape == (2, 4, -(-samples // 640))
    assert vae.decode(z).shape == (2, 1, z.shape[-1] * 640)


def test_what_the_decoder_makes_depends_on_the_latents_alone():
    vae = nano.NanoVAE(SMALL).eval()
    z = torch.randn(1, 4, 9)
    assert torch.equal(vae.decode(z), vae.decode(z))
    assert not torch.equal(vae.decode(z), vae.decode(z + 0.5))


def test_eight_bits_keep_a_matrix_within_half_a_step(tmp_path):
    torch.manual_seed(0)
    vae = nano.NanoVAE(SMALL)
    parts.save_part(tmp_path, "vae", vae, {"architecture": SMALL}, eight_bit=True)
    again = parts.load_part(tmp_path, "vae", nano.BUILDERS)
    for name, weight in vae.named_parameters():
        found = again.get_parameter(name)
        step = weight.abs().amax(-1, keepdim=True) / 127
        assert ((found - weight).abs() <= 0.51 * step + 2e-3 * weight.abs()).all(), name
    halves = tmp_path / "halves"
    halves.mkdir()
    parts.save_part(halves, "vae", vae, {"architecture": SMALL})
    sizes = [(folder / "vae.safetensors").stat().st_size for folder in (tmp_path, halves)]
    assert sizes[0] < 0.75 * sizes[1]


def test_an_unknown_nano_model_is_answered_with_the_known():
    with pytest.raises(ValueError, match="nano-codec, nano-vae, nano-tokenizer"):
        nano.load_nano_latents("nano-mp3")


def test_a_missing_part_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vae\.json is missing.*make nano"):
        nano.load_nano_latents("nano-vae", tmp_path)


@pytest.mark.parametrize("name", nano.NANO)
def test_shipped_latents_keep_music_recognisable(name, clips):
    """Fails when the shipped weights are lost or mangled: chroma against another clip's."""
    model = latents.load(name)
    again = model.decode(model.encode(clips), quantise=True)
    own = [measure.chroma_correlation(c.audio, a) for c, a in zip(clips, again, strict=True)]
    other = [
        measure.chroma_correlation(c.audio, a) for c, a in zip(clips, again[::-1], strict=True)
    ]
    assert np.mean(own) > 0.75 and np.mean(own) > np.mean(other[::2]) + 0.2


def test_the_tokenizer_has_one_code_a_frame(clips):
    model = latents.load("nano-tokenizer")
    z = model.quantise(model.encode(clips[0]))
    book = model.net.quantizer.vq.layers[0]._codebook.embed.numpy()
    assert len(book) == nano.TOKENIZER["cardinality"]
    distance = np.abs(z[:, None] - book[None]).max(-1).min(1)
    assert distance.max() < 1e-4


class Killed(Exception):
    pass


def test_a_killed_vae_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    for name, value in {"BATCH": 2, "CROP": 0.2}.items():
        monkeypatch.setattr(train_codec, name, value)
    monkeypatch.setattr(train_vae, "SAVE_EVERY", 2)
    for name, value in SMALL.items():
        monkeypatch.setitem(nano.VAE, name, value)
    sound = np.random.default_rng(0).integers(-3000, 3000, (2, 8000), dtype=np.int16)
    monkeypatch.setattr(train_vae, "training_audio", lambda folder, n: [sound])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    train_vae.train(whole, whole, steps=7, shards=1)

    calls, crops = [], train_vae.crops

    def dying(*args):
        calls.append(1)
        if len(calls) == 6:
            raise Killed
        return crops(*args)

    with monkeypatch.context() as m:
        m.setattr(train_vae, "crops", dying)
        with pytest.raises(Killed):
            train_vae.train(killed, killed, steps=7, shards=1)
    assert not (killed / "vae.safetensors").exists()
    train_vae.train(killed, killed, steps=7, shards=1)
    a, b = ((folder / "vae.safetensors").read_bytes() for folder in (whole, killed))
    assert a == b
