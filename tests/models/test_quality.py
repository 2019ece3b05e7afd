"""Reports on codec and language model: known answers from perfect, broken and random ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audiocraft.models import MusicGen
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt
from tiny_models import tiny_codec, tiny_lm

from musae_utils import music, trace
from musae_utils.models import MusicModel, quality
from musae_utils.music.captions import words

seeds = st.integers(0, 2**31)


@pytest.fixture(scope="module")
def model():
    return MusicModel("tiny", MusicGen("tiny", tiny_codec(), tiny_lm(), 30), torch.float32)


@pytest.fixture(scope="module")
def clips():
    return music.make_many(4, seed=40, seconds=5)


# -- the codec


def test_a_perfect_codec(clips):
    audio = np.stack([c.audio for c in clips])
    codes = np.stack([np.resize(np.arange(32 // 2**k), 250) for k in range(3)])
    report = quality.codec_report(clips, audio, np.repeat(codes[None], 4, 0), cardinality=32)
    assert report["chroma_correlation"].value == pytest.approx(1)
    assert report["pitch_agreement"].value == 1
    assert report["log_spectral_distance"].value == 0
    assert report["band_energy_error"].value == report["band_energy_error"].high == 0
    assert [report[f"codebook_use.{k}"].value for k in (1, 2, 3)] == [1, 0.5, 0.25]
    assert report["codebook_use"].value == 0.25 and np.isnan(report["codebook_use"].low)


def test_a_dull_codec_fails_in_the_bands_it_loses(clips):
    audio = np.stack([c.audio for c in clips])
    dull = sosfilt(butter(8, 1500, fs=16_000, output="sos"), audio).astype(np.float32)
    report = quality.codec_report(clips, dull, np.zeros((4, 1, 250), np.int16), 32)
    worst = report["band_energy_error"]
    assert worst.value > 20 and worst.low <= worst.value <= worst.high
    assert report["band_energy_error.4000-6000"].value == pytest.approx(-worst.value)
    assert abs(report["band_energy_error.125-250"].value) < 0.5
    assert report["chroma_correlation"].value > 0.9


def test_copies_have_the_length_of_the_originals(model):
    audio = np.random.default_rng(0).standard_normal((3, 16_100)).astype(np.float32) * 0.1
    copied, codes = quality.copies(model, audio)
    assert copied.shape == audio.shape and codes.shape == (3, 4, 51)
    alone, _ = quality.copies(model.codec, audio[:1])
    assert np.allclose(alone, copied[:1], atol=1e-5)


# -- prediction


def test_a_model_that_expects_nothing_pays_for_every_code_alike(model):
    uniform = SimpleNamespace(
        lm=tiny_lm(), device=model.device, conditions=model.conditions, n_codebooks=4
    )
    for linear in uniform.lm.linears:
        torch.nn.init.zeros_(linear.weight)
        if linear.bias is not None:
            torch.nn.init.zeros_(linear.bias)
    codes = np.random.default_rng(0).integers(0, 32, (2, 4, 40))
    nats = quality.cross_entropies(uniform, codes, ["piano", None])
    assert nats == pytest.approx(np.full((2, 4), np.log(32)), abs=1e-5)


def test_cross_entropy_is_that_of_the_traced_logits(model):
    codes = np.random.default_rng(1).integers(0, 32, (1, 4, 30))
    found = quality.cross_entropies(model, codes, ["slow organ"])
    given = torch.from_numpy(codes)
    logits = trace.logits(model, given, ["slow organ"])
    for k in range(4):
        expected = torch.nn.functional.cross_entropy(logits[0, k], given[0, k])
        assert found[0, k] == pytest.approx(expected.item(), abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0.1, 1.5))
def test_the_ratio_is_to_the_entropy_of_the_codes(seed, share):
    codes = np.random.default_rng(seed).integers(0, 16, (5, 2, 200))
    p = np.bincount(codes[:, 0].ravel(), minlength=16) / 1000
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    report = quality.prediction_report(np.full((5, 2), share * entropy), codes, 16)
    assert report["ce_ratio"].value == pytest.approx(share)
    assert report["unigram.1"].value == pytest.approx(entropy)
    assert report["ce_ratio"].low <= report["ce_ratio"].value <= report["ce_ratio"].high


# -- likeness


def test_originals_are_like_themselves_and_unlike_another_key(clips):
    truths = [c.truth for c in clips]
    traits = quality.traits(np.stack([c.audio for c in clips]), truths)
    report = quality.likeness_report(traits, traits)
    for name in ("in_key_ratio", "harmonic_ratio", "onset_ratio"):
        assert report[name] == (1, 1, 1, 4)
    assert report["in_key_ratio.wrong_key"].high < 0.75
    assert report["in_key_ratio.originals"].value > 0.9


def test_silence_is_like_nothing(clips):
    truths = [c.truth for c in clips]
    silent = quality.traits(np.zeros((4, 80_000), np.float32), truths)
    assert all((values == 0).all() for values in silent.values())
    real = quality.traits(np.stack([c.audio for c in clips]), truths)
    assert quality.likeness_report(silent, real)["in_key_ratio"].value == 0


def test_a_continuation_that_leaves_the_key_is_found(clips):
    audio, truths = np.stack([c.audio for c in clips]), [c.truth for c in clips]
    specs = [music.Spec(**c.provenance["spec"] | {"tonic": (c.truth.clip["tonic"] + 6) % 12})
             for c in clips]  # fmt: skip
    away = np.stack([music.make(s, 1_000_000_040 + i).audio for i, s in enumerate(specs)])
    left = np.concatenate([audio[:, :32_000], away[:, 32_000:]], axis=1)
    stayed = quality.continuation_report(audio, audio, truths, at=2.0)
    gone = quality.continuation_report(left, audio, truths, at=2.0)
    assert stayed["continuation_key_ratio"].value == 1
    assert stayed["continuity"].value == stayed["continuity.originals"].value
    assert stayed["continuity"].value > stayed["continuity.strangers"].value
    assert gone["continuation_key_ratio"].value < 0.75
    wrong = gone["continuation_key_ratio.wrong_key"].value
    assert gone["continuation_key_ratio"].value == pytest.approx(wrong, abs=0.15)


# -- obedience


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_a_full_prompt_states_everything_that_is_marked(seed):
    score = music.compose(music.Spec(seconds=5), seed)
    spec = score.spec
    clip = SimpleNamespace(
        clip=dict(family=spec.family, program=spec.program, drums=spec.drums, tempo=spec.tempo,
                  key=f"{music.PITCH_NAMES[spec.tonic]} {music.MODES[spec.mode]}")
    )  # fmt: skip
    said = words(quality.full_prompt(clip, seed))
    assert spec.family in said and clip.clip["key"].lower() in said and "drums" in said
    assert str(round(spec.tempo)) in said
    assert ({"no", "without"} & set(said) != set()) == (not spec.drums)


def _truths(**columns):
    rows = zip(*columns.values(), strict=True)
    return [SimpleNamespace(clip=dict(zip(columns, row, strict=True))) for row in rows]


def test_obedience_and_chance_are_counted():
    truths = _truths(
        family=["organ", "organ", "flute", "piano"], drums=[True, False, False, False],
        tonic=[0, 2, 4, 4], tempo=[100.0, 104.0, 60.0, 160.0],
    )  # fmt: skip
    heard = {
        "instrument": np.array(["organ", "flute", "flute", "piano"]),
        "drums": np.array([True, False, False, False]),
        "tonic": np.array([1, 1, 1, 1]),
        "tempo": np.array([107, 113, 60, 80]),  # 7 % off, 8.7 % off, right, half
    }
    report = quality.obedience_report(heard, truths)
    found = {name: interval.value for name, interval in report.items()}
    assert found == {
        "instrument": 0.75, "instrument.chance": 0.5, "drums": 1, "drums.chance": 0.75,
        "tonic": 0, "tonic.chance": 0.5, "tempo": 0.5, "tempo.chance": 0.5,
    }  # fmt: skip
    assert report["instrument"].n == 4 and report["drums"].low < 1


def test_tempo_is_heard_as_it_was_written():
    learning = music.make_many(40, 0, 5, "train")
    unheard = music.make_many(12, 0, 5)
    judge = quality.TempoJudge().fit(
        np.stack([c.audio for c in learning]), [c.truth for c in learning]
    )
    heard = {"tempo": judge.hear(np.stack([c.audio for c in unheard]))}
    right = quality.marks(heard, [c.truth for c in unheard])["tempo"]
    assert right.shape == (12,) and right.mean() >= 0.4  # chance 0.2
