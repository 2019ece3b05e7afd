"""The nano models: files, the way from sound to codes and back, training that survives a kill."""

import json

import numpy as np
import pytest
import torch

from musae_utils import models, music
from musae_utils.models import nano, train_codec, train_lm


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return nano.build_codec({}).eval()


def tone(hertz, seconds=1.0):
    return 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(int(16000 * seconds)) / 16000)


def test_spectrum_and_back_is_the_same_sound(codec):
    sound = torch.randn(2, 3200) * 0.1
    spectrum = codec.encoder.spectrum
    assert torch.allclose(spectrum.istft(spectrum.stft(sound)), sound, atol=1e-5)


@pytest.mark.parametrize("hertz", [110.0, 261.63, 440.0, 1000.0, 3000.0])
def test_phase_found_again_keeps_pitch_and_level(codec, hertz):
    spectrum = codec.decoder.spectrum
    sound = tone(hertz)[None]
    again = spectrum.synthesise(spectrum.analyse(sound))[0, 2000:-2000]
    peak = np.argmax(np.abs(np.fft.rfft(again.numpy() * np.hanning(len(again)), 1 << 18)))
    found = peak * 16000 / (1 << 18)
    assert abs(1200 * np.log2(found / hertz)) < 10  # cents
    assert abs(20 * np.log10(again.std() / sound.std())) < 1  # dB


def test_frame_i_is_centred_on_code_frame_i(codec):
    sound = torch.zeros(1, 320 * 40)
    sound[0, 320 * 20 + 160] = 1.0  # a click in the middle of frame 20
    energy = codec.encoder.spectrum.stft(sound).abs().pow(2).sum(-1)[0]
    assert energy.argmax() == 20
    assert torch.allclose(energy, energy.flip(0).roll(1), atol=1e-4)


@pytest.mark.parametrize("samples", [320, 321, 5000, 16000])
def test_codes_cover_the_sound(codec, samples):
    codes, scale = codec.encode(torch.randn(1, 1, samples) * 0.1)
    assert codes.shape == (1, nano.CODEC["codebooks"], -(-samples // 320)) and scale is None
    assert codec.decode(codes).shape[-1] >= samples


def test_words_that_are_known_and_not():
    lm = nano.build_lm({"dim": 32, "heads": 2, "layers": 1})
    conditioner = lm.condition_provider.conditioners["description"]
    assert conditioner.unknown_words("slow flute in A minor, 92 bpm") == []
    assert conditioner.unknown_words("slow kazoo in H minor") == ["h", "kazoo"]
    tokens, mask = conditioner.tokenize(["flute", None, "flute " * 1000, "музыка", ""])
    assert tokens.shape == (5, 32) and mask.sum(1).tolist() == [32, 0, 32, 0, 0]
    embedded, _ = conditioner((tokens, mask))
    assert (embedded[1] == 0).all() and (embedded[0, 0] != 0).any()
    words = conditioner.tokenize(["flute in c major"])[0][0].tolist()
    assert len(set(words)) == 3 and words == (words[:3] * 11)[:32]


@pytest.fixture
def folder(tmp_path):
    lm = nano.build_lm({"dim": 32, "heads": 2, "layers": 1})
    nano.save_part(tmp_path, "lm", lm, {"architecture": {"dim": 32, "heads": 2, "layers": 1}})
    return tmp_path


def test_what_is_saved_is_loaded(folder):
    lm = nano.load_part(folder, "lm")
    assert not lm.training and sum(p.numel() for p in lm.parameters()) > 1000


def test_a_missing_file_is_named(folder):
    (folder / "lm.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lm\.safetensors is missing.*make nano"):
        nano.load_part(folder, "lm")


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_a_truncated_file_is_named(folder, keep):
    path = folder / "lm.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"lm\.safetensors cannot be read as a nano lm"):
        nano.load_part(folder, "lm")


def test_weights_of_another_architecture_are_refused(folder):
    config = json.loads((folder / "lm.json").read_text())
    config["architecture"]["dim"] = 64
    (folder / "lm.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="belongs to another model"):
        nano.load_part(folder, "lm")


class Killed(Exception):
    pass


def killed_after(calls, function):
    """The function, which dies at its call number ``calls``."""
    seen = []

    def dying(*args, **kwargs):
        seen.append(1)
        if len(seen) == calls:
            raise Killed
        return function(*args, **kwargs)

    return dying


def test_a_killed_codec_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    for name, value in {"BATCH": 2, "CROP": 0.2, "CONTINUOUS": 2, "SAVE_EVERY": 2}.items():
        monkeypatch.setattr(train_codec, name, value)
    sound = np.random.default_rng(0).integers(-3000, 3000, (2, 8000), dtype=np.int16)
    monkeypatch.setattr(train_codec, "training_audio", lambda folder, n: [sound])
    monkeypatch.setitem(nano.CODEC, "cardinality", 16)
    for way in ("whole", "killed"):
        (tmp_path / way).mkdir()
    train_codec.train(tmp_path / "whole", tmp_path / "whole", steps=7, shards=1)
    with monkeypatch.context() as m:
        # 16 more crops are drawn when the codebooks are planted
        m.setattr(train_codec, "crops", killed_after(22, train_codec.crops))
        with pytest.raises(Killed):
            train_codec.train(tmp_path / "killed", tmp_path / "killed", steps=7, shards=1)
    assert not (tmp_path / "killed" / "codec.safetensors").exists()
    train_codec.train(tmp_path / "killed", tmp_path / "killed", steps=7, shards=1)
    whole, killed = ((tmp_path / w / "codec.safetensors").read_bytes() for w in ("whole", "killed"))
    assert whole == killed


def test_a_killed_lm_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    for name, value in {"SHAPES": ((1, 40), (2, 20)), "SAVE_EVERY": 2}.items():
        monkeypatch.setattr(train_lm, name, value)
    for name, value in {"dim": 32, "heads": 2, "layers": 1}.items():
        monkeypatch.setitem(nano.LM, name, value)
    shape, most = (100, nano.LM["codebooks"], 1500), nano.LM["cardinality"]
    codes = np.random.default_rng(0).integers(0, most, shape).astype(np.int16)
    monkeypatch.setattr(train_lm, "load_part", lambda *args: None)
    monkeypatch.setattr(train_lm, "code_shard", lambda *args: codes)
    monkeypatch.setattr(
        train_lm, "training_captions", lambda *args, **kw: [["flute in c major"] * 100] * 4
    )
    for way in ("whole", "killed"):
        (tmp_path / way).mkdir()
    train_lm.train(tmp_path / "whole", tmp_path / "whole", steps=6, shards=1)
    with monkeypatch.context() as m:
        m.setattr(train_lm, "cross_entropies", killed_after(4, train_lm.cross_entropies))
        with pytest.raises(Killed):
            train_lm.train(tmp_path / "killed", tmp_path / "killed", steps=6, shards=1)
    train_lm.train(tmp_path / "killed", tmp_path / "killed", steps=6, shards=1)
    whole, killed = ((tmp_path / w / "lm.safetensors").read_bytes() for w in ("whole", "killed"))
    assert whole == killed


def test_the_shipped_codec_keeps_music_recognisable():
    """Fails when the shipped weights are lost or mangled: chroma against another clip's."""
    from musae_utils.music import measure

    codec = nano.load_part(models.NANO_FOLDER, "codec")
    clips = music.make_many(3, seconds=5)
    sounds = torch.from_numpy(np.stack([c.audio for c in clips]))[:, None]
    again = codec.decode(codec.encode(sounds)[0])[:, 0].numpy()
    own = [measure.chroma_correlation(c.audio, a) for c, a in zip(clips, again, strict=True)]
    other = [
        measure.chroma_correlation(c.audio, a) for c, a in zip(clips, again[::-1], strict=True)
    ]
    assert np.mean(own) > 0.75 and np.mean(own) > np.mean(other[::2]) + 0.2


def test_plain_attention_is_attention():
    torch.manual_seed(0)
    lm = nano.build_lm({"dim": 32, "heads": 2, "layers": 2, "cardinality": 16})
    codes, prompts = torch.randint(0, 16, (2, lm.num_codebooks, 30)), ["flute in c major", None]

    def gradients():
        lm.zero_grad()
        loss = train_lm.cross_entropies(lm, codes, prompts).sum()
        loss.backward()
        return loss, torch.cat([p.grad.flatten() for p in lm.parameters()])

    fused, fused_gradients = gradients()
    with train_lm.plain_attention():
        plain, plain_gradients = gradients()
    torch.testing.assert_close(plain, fused)
    torch.testing.assert_close(plain_gradients, fused_gradients, rtol=1e-3, atol=1e-5)
