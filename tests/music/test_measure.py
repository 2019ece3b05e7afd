"""Each measure on sounds whose answer is known: tones, clicks, noise, music made worse."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt

from musae_utils import music
from musae_utils.music import measure
from musae_utils.music.measure import SAMPLE_RATE

RNG = np.random.default_rng(0)
seeds = st.integers(0, 2**31)


def tone(midi, seconds=2.0, level=0.3, rate=SAMPLE_RATE):
    t = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * 440 * 2 ** ((midi - 69) / 12) * t)).astype(np.float32)


def clicks(per_second, seconds=4.0):
    audio = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    noise = np.random.default_rng(1).standard_normal(200) * np.exp(-np.arange(200) / 40)
    for i in range(int(per_second * seconds)):
        at = round((0.1 + i / per_second) * SAMPLE_RATE)
        audio[at : at + 200] += 0.3 * noise[: len(audio[at : at + 200])]
    return audio


def with_noise(audio, snr_db):
    noise = np.random.default_rng(2).standard_normal(len(audio))
    return (audio + noise * audio.std() * 10 ** (-snr_db / 20)).astype(np.float32)


def low_passed(audio, hz):
    sos = butter(6, hz, fs=SAMPLE_RATE, output="sos")
    return sosfilt(sos, audio).astype(np.float32)


@pytest.fixture(scope="module")
def clip():
    return music.make(seed=3, seconds=6, family="flute", drums=False, dynamics="loud")


@pytest.fixture(scope="module")
def semitone_up(clip):
    spec = clip.provenance["spec"]
    return music.make(music.Spec(**spec | {"tonic": (spec["tonic"] + 1) % 12}), seed=3)


# -- one sound -------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(st.floats(46, 104), st.sampled_from([16_000, 32_000, 44_100]))
def test_the_strongest_pitch_of_a_tone_is_its_pitch(midi, rate):
    track = measure.strongest_pitch(tone(midi, rate=rate), rate)
    assert len(track.pitch) == 100
    assert track.loud[10:-10].all()
    assert np.abs(track.pitch[10:-10] - midi).max() <= 0.21  # bins are 20 cents apart


def test_frames_of_the_pitch_track_are_the_truth_s():
    """A tone that changes at 1 s changes between frames 49 and 50, which meet there."""
    audio = np.concatenate([tone(80, 1.0), tone(85, 1.0)])
    pitch = np.round(measure.strongest_pitch(audio).pitch)
    assert (pitch[5:49] == 80).all() and (pitch[51:95] == 85).all()


def test_silence_has_no_pitch_and_no_key():
    quiet = np.zeros(2 * SAMPLE_RATE, np.float32)
    assert not measure.strongest_pitch(quiet).loud.any()
    assert np.isnan(measure.in_key(quiet, 0, 0))
    assert np.isnan(measure.harmonic_fraction(quiet))
    assert measure.onset_rate(quiet) == 0
    assert measure.loudness(quiet) == -np.inf


@pytest.mark.parametrize("mode", [0, 1])
def test_a_scale_is_in_its_key_and_hardly_in_the_key_a_tritone_away(mode):
    scale = music.SCALES[mode]
    audio = np.concatenate([tone(62 + step, 0.5) for step in scale])  # on D
    own, wrong = measure.in_key(audio, 2, mode), measure.in_key(audio, 8, mode)
    assert own > 0.97
    assert wrong == pytest.approx((2, 4)[mode] / len(scale), abs=0.05)


def test_in_key_of_a_window():
    audio = np.concatenate([tone(60, 2.0), tone(61, 2.0)])  # C, then C sharp
    assert measure.in_key(audio, 0, 0, end=1.8) == 1
    assert measure.in_key(audio, 0, 0, start=2.2) == 0
    assert measure.in_key(audio, 0, 0) == pytest.approx(0.5, abs=0.03)


def test_composed_music_is_in_its_own_key(clip, semitone_up):
    key = clip.truth.clip["tonic"], clip.truth.clip["mode"]
    assert measure.in_key(clip.audio, *key) > 0.9
    assert measure.in_key(semitone_up.audio, *key) < 0.6
    active = clip.truth.frames["active"]
    classes = np.stack([active[:, k::12].any(axis=1) for k in range(12)], axis=1)
    track = measure.strongest_pitch(clip.audio)
    at = np.flatnonzero(track.loud[: len(classes)])
    assert classes[at, np.round(track.pitch[at]).astype(int) % 12].mean() > 0.85


def test_harmonic_fraction_orders_tone_noise_and_clicks():
    noise = RNG.standard_normal(2 * SAMPLE_RATE).astype(np.float32) * 0.1
    values = [measure.harmonic_fraction(x) for x in (tone(69), noise, clicks(5))]
    assert values[0] > 0.97 and 0.3 < values[1] < 0.7 and values[2] < 0.05


@pytest.mark.parametrize("rate", [2, 5])
def test_onsets_are_counted(rate):
    assert measure.onset_rate(clicks(rate)) == pytest.approx(rate, rel=0.1)


def test_onsets_are_those_that_were_written():
    rates = []
    for clip in music.make_many(12, seed=300, seconds=8):
        onsets = {round(n.start, 2) for n in clip.truth.notes}
        rates.append((measure.onset_rate(clip.audio), len(onsets) / 8))
    heard, written = np.mean(rates, axis=0)
    assert heard == pytest.approx(written, rel=0.25)


@pytest.mark.parametrize("bpm", [80, 120])
def test_the_tempo_of_clicks(bpm):
    assert measure.tempo(clicks(bpm / 60, 8.0)) == pytest.approx(bpm, rel=0.04)


def test_music_that_stays_continues_and_music_that_moves_away_does_not():
    # In one piece chords may move away for a while; on average they stay in the key.
    pieces = [piece.audio for piece in music.make_many(12, seed=300, seconds=8)]
    strangers = [np.append(a[:64_000], b[64_000:]) for a, b in itertools.pairwise(pieces)]
    stays, leaves = (
        np.mean([measure.continuity(x, 4) for x in clips]) for clips in (pieces, strangers)
    )
    assert stays > 0.3 and stays > leaves + 0.2
    moved = np.concatenate([tone(60, 2.0), tone(66, 2.0)])
    assert measure.continuity(moved, 2) < 0
    assert measure.continuity(tone(60, 4.0), 2) > 0.99


def test_ten_times_less_amplitude_is_twenty_units_less_loud(clip):
    gap = measure.loudness(clip.audio) - measure.loudness(clip.audio / 10)
    assert gap == pytest.approx(20, abs=0.1)


# -- a copy against its original -------------------------------------------------------------------


def test_a_copy_that_is_the_original(clip):
    found = measure.compare(clip.audio, clip.audio, melody=clip.truth.frames["melody"])
    assert found["chroma_correlation"] == pytest.approx(1)
    assert found["pitch_agreement"] == 1
    assert found["log_spectral_distance"] == 0
    assert found["band_energy_error"] == 0
    assert found["si_sdr"] > 100


@settings(max_examples=10, deadline=None)
@given(st.floats(-12, 0))
def test_a_gain_costs_its_decibels_and_changes_no_note(gain_db):
    x = with_noise(tone(69), 20)
    found = measure.compare(x, x * 10 ** (gain_db / 20))
    assert found["chroma_correlation"] > 0.999 and found["pitch_agreement"] == 1
    assert found["si_sdr"] > 60
    assert found["band_energy_error"] == pytest.approx(-gain_db, abs=1e-3)
    assert found["log_spectral_distance"] <= -gain_db + 1e-3


@settings(max_examples=10, deadline=None)
@given(st.floats(-10, 40), seeds)
def test_si_sdr_is_the_signal_to_noise_ratio(snr, seed):
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, 8000))
    x, noise = x - x.mean(), noise - noise.mean()
    noise -= (noise @ x) / (x @ x) * x
    noise *= np.linalg.norm(x) / np.linalg.norm(noise) * 10 ** (-snr / 20)
    assert measure.si_sdr(x, x + noise) == pytest.approx(snr, abs=0.05)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 6))
def test_band_energy_finds_the_octave_of_a_tone_and_its_energy(band):
    lo, hi = measure.BANDS[band]
    midi = 69 + 12 * np.log2(np.sqrt(lo * hi) / 440)
    energy = measure.band_energy(tone(midi, level=0.5))
    assert energy.argmax() == band
    assert energy[band] == pytest.approx(2.0 * SAMPLE_RATE * 0.5**2 / 2, rel=0.01)


def test_bands_of_clips_are_added_before_they_are_compared():
    loud, faint = np.full(7, 1.0), np.full(7, 1e-6)
    error = measure.band_energy_error(np.stack([loud, faint]), np.stack([loud, 100 * faint]))
    assert np.abs(error).max() < 0.01


def test_log_spectral_distance_has_a_floor():
    """Below -80 dB nothing is heard, so nothing is counted."""
    quiet = RNG.standard_normal(SAMPLE_RATE).astype(np.float32) * 1e-6
    assert measure.log_spectral_distance(quiet, np.zeros_like(quiet)) == 0
    full = measure._levels(tone(81, level=1.0))[:, 5:-5]
    assert full.max() == pytest.approx(0, abs=1.5)  # between two bins a Hann window loses 1.4 dB


def test_each_harm_is_seen_by_the_measure_for_it(clip, semitone_up):
    x, melody = clip.audio, clip.truth.frames["melody"]
    against = lambda y: measure.compare(x, y, melody=melody)  # noqa: E731
    noisy, noisier = against(with_noise(x, 20)), against(with_noise(x, 0))
    dull, moved, other = against(low_passed(x, 1000)), against(np.roll(x, 1600)), against(
        semitone_up.audio
    )  # fmt: skip
    # noise: colour and waveform, worse with more of it; hardly the notes
    assert noisier["log_spectral_distance"] > noisy["log_spectral_distance"] + 5
    assert noisier["si_sdr"] < 1 < 19 < noisy["si_sdr"]
    assert noisy["pitch_agreement"] > 0.95
    # a low-pass: the upper bands alone
    bands = measure.band_energy_error(
        measure.band_energy(x), measure.band_energy(low_passed(x, 1000))
    )
    assert np.abs(bands[:3]).max() < 0.5 and (bands[5:] < -20).all()
    assert dull["pitch_agreement"] > 0.9 and dull["chroma_correlation"] > 0.95
    # 100 ms late: same colour over all, other notes at each moment
    assert moved["band_energy_error"] < 0.5
    assert moved["chroma_correlation"] < noisy["chroma_correlation"] - 0.05
    assert moved["pitch_agreement"] < 0.95
    # a semitone up: hardly a note in common, though the colour is nearly the same
    assert other["pitch_agreement"] < 0.15 and other["chroma_correlation"] < 0.5
    assert other["band_energy_error"] < dull["band_energy_error"]


def test_phase_alone_costs_si_sdr_alone(clip):
    spectrum = np.fft.rfft(clip.audio)
    delayed = np.fft.irfft(spectrum * np.exp(-0.5j * np.pi), len(clip.audio)).astype(np.float32)
    found = measure.compare(clip.audio, delayed, melody=clip.truth.frames["melody"])
    assert found["si_sdr"] < -20
    assert found["chroma_correlation"] > 0.99 and found["pitch_agreement"] > 0.97
    assert found["band_energy_error"] < 0.1


def test_melody_frames_alone_are_counted():
    a = np.concatenate([tone(60, 1.0), tone(64, 1.0)])
    b = np.concatenate([tone(60, 1.0), tone(67, 1.0)])
    melody = np.r_[np.full(45, 60), np.full(55, -1)]
    assert measure.pitch_agreement(a, b, melody) == 1
    assert measure.pitch_agreement(a, b) == pytest.approx(0.5, abs=0.05)
    assert np.isnan(measure.pitch_agreement(a, b, np.full(100, -1)))


def test_describe_names_the_rival(clip):
    found = measure.describe(clip.audio, key=(clip.truth.clip["tonic"], clip.truth.clip["mode"]))
    assert found["in_key"] > found["in_wrong_key"] + 0.3
    assert set(found) == {
        "harmonic_fraction", "onset_rate", "tempo", "loudness", "in_key", "in_wrong_key"
    }  # fmt: skip


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "audio, said",
    [
        (np.zeros((2, SAMPLE_RATE)), "mono"),
        (np.zeros(100), "lasts 0.006 s"),
        (np.zeros(0), "lasts 0.000 s"),
        (np.full(SAMPLE_RATE, np.nan), "not numbers"),
    ],
)
def test_bad_sound_is_named(audio, said):
    for function in (measure.strongest_pitch, measure.harmonic_fraction, measure.onset_rate):
        with pytest.raises(ValueError, match=said):
            function(audio)


def test_a_copy_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"1\.00 s and 2\.00 s"):
        measure.chroma_correlation(tone(60, 1.0), tone(60, 2.0))
    with pytest.raises(ValueError, match=r"0\.4 s"):
        measure.loudness(tone(60, 0.3))
