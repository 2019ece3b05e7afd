"""What is heard in a sound, what is known of a clip, and how answers become classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt

from musae_utils import music
from musae_utils.latents import attributes, spaces
from musae_utils.latents.attributes import ATTRIBUTES, measured, targets
from musae_utils.music import measure

RATE = 16_000


def tone(midi, seconds=0.6, gain=0.3, partials=6, rate=RATE):
    t = np.arange(round(seconds * rate)) / rate
    hz = 440 * 2 ** ((midi - 69) / 12)
    heard = [k for k in range(1, partials + 1) if k * hz < 7500]
    return gain * sum(np.sin(2 * np.pi * k * hz * t) / k for k in heard)


@settings(max_examples=25, deadline=None)
@given(midi=st.floats(38, 86), gain=st.floats(0.05, 0.4), partials=st.integers(1, 8))
def test_a_tone_has_its_pitch_whatever_its_level_and_colour(midi, gain, partials):
    heard = measured(tone(midi, gain=gain, partials=partials))
    inside = slice(5, -5)
    assert heard["voiced"][inside].all()
    assert np.abs(heard["pitch"][inside] - midi).max() < 0.5


@settings(max_examples=10, deadline=None)
@given(db=st.floats(-12, 12), seed=st.integers(0, 99))
def test_a_gain_changes_loudness_by_itself_and_nothing_else(db, seed):
    rng = np.random.default_rng(seed)
    x = tone(rng.uniform(45, 90)) * 0.3 + rng.normal(0, 0.01, 9600)
    plain, louder = measured(x), measured(x * 10 ** (db / 20))
    assert louder["loudness"] - plain["loudness"] == pytest.approx(db, abs=0.01)
    for name in ("pitch", "centroid", "strength"):
        assert louder[name] == pytest.approx(plain[name], abs=1e-3, nan_ok=True)
    lufs = [attributes.momentary_lufs(y) for y in (x, x * 10 ** (db / 20))]
    assert lufs[1] - lufs[0] == pytest.approx(db, abs=0.01)


def test_a_low_pass_lowers_the_centre_and_leaves_the_pitch():
    x = tone(60, partials=8)
    dull = sosfilt(butter(4, 700, fs=RATE, output="sos"), x)
    a, b = measured(x), measured(dull)
    assert np.median(a["centroid"] - b["centroid"]) > 0.5
    assert np.nanmedian(b["pitch"]) == pytest.approx(60, abs=0.3)


def test_silence_and_noise_have_no_pitch_and_silence_no_centre():
    silent = measured(np.zeros(RATE))
    assert not silent["voiced"].any() and np.isnan(silent["pitch"]).all()
    assert np.isnan(silent["centroid"]).all() and (silent["loudness"] == -80).all()
    noise = measured(np.random.default_rng(0).normal(0, 0.1, 4 * RATE))
    assert noise["voiced"].mean() < 0.03 and np.isfinite(noise["centroid"]).all()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(RATE // 4, 2 * RATE), rate=st.sampled_from([12.5, 21.5, 25, 50, 75, 86.1]))
def test_there_are_as_many_frames_as_a_latent_model_has(n, rate):
    heard = measured(np.random.default_rng(n).normal(0, 0.1, n), RATE, rate)
    assert {len(x) for x in heard.values()} == {int(np.ceil(n * rate / RATE - 1e-6))}


def test_another_rate_is_converted():
    a, b = measured(tone(64)), measured(tone(64, rate=44_100), 44_100)
    inside = slice(6, -6)
    assert a["pitch"][inside] == pytest.approx(b["pitch"][inside], abs=0.1)
    assert a["loudness"][inside] == pytest.approx(b["loudness"][inside], abs=0.2)


def test_bad_sound_is_answered():
    with pytest.raises(ValueError, match="mono"):
        measured(np.zeros((2, RATE)))
    with pytest.raises(ValueError, match=r"needs 0\.25 s"):
        measured(np.zeros(800))
    with pytest.raises(ValueError, match="not numbers"):
        measured(np.full(RATE, np.nan))
    with pytest.raises(ValueError, match="1 to 200"):
        measured(np.zeros(RATE), RATE, 0)


def test_trackers_follow_a_melody_alone_and_not_another_one():
    clips = [spaces.melody_alone(3_000 + i, seconds=5.0) for i in range(3)]
    truth = [np.where(t < 0, np.nan, t) for t in (c.truth.frames["melody"] * 1.0 for c in clips)]
    ours = [measured(c.audio)["pitch"] for c in clips]
    assert attributes.agreement(truth, ours).value > 0.85
    assert attributes.agreement(truth[1:] + truth[:1], ours).value < 0.4
    pitch, sure = attributes.crepe(clips[0].audio[: 2 * RATE])
    theirs = np.where(sure < 0.5, np.nan, pitch)
    assert len(theirs) == 100
    assert attributes.agreement([ours[0][:100]] * 2, [theirs] * 2).value > 0.8


def test_tracks_without_a_common_pitch_are_refused():
    with pytest.raises(ValueError, match="all unvoiced"):
        attributes.agreement([np.full(10, np.nan)], [np.full(10, 60.0)])


@pytest.fixture(scope="module")
def clip():
    return music.make(seed=11, seconds=5, drums=True)


@pytest.mark.parametrize("rate", [25, 50])
def test_targets_are_the_truth_at_each_frames_middle(clip, rate):
    known = targets(clip, rate)
    assert set(known) == set(ATTRIBUTES)
    assert {len(x) for x in known.values()} == {5 * rate}
    middle = ((np.arange(5 * rate) + 0.5) * 50 / rate).astype(int)
    melody = clip.truth.frames["melody"][middle]
    assert (np.isnan(known["pitch"]) == (melody < 0)).all()
    assert (known["pitch"][melody >= 0] == melody[melody >= 0]).all()
    assert known["onset"].any() and known["drums"].any() and not known["drums"].all()
    phase = clip.truth.frames["beat"][middle]
    assert (known["beat"] == np.round(phase * 8) % 8).all()
    assert (known["key"] == clip.truth.clip["tonic"]).all()


def test_loudness_is_close_to_the_truths_own(clip):
    apart = targets(clip)["loudness"] - clip.truth.frames["loudness"]
    assert np.nanmedian(np.abs(apart)) < 1.0


def test_momentary_loudness_is_the_integrated_one_of_a_steady_sound():
    x = tone(69, seconds=3)
    steady = attributes.momentary_lufs(x)[25:-25]
    assert steady == pytest.approx(measure.loudness(x), abs=0.2)


def test_a_recording_has_no_truth():
    with pytest.raises(ValueError, match="recording without truth"):
        targets(music.Clip(np.zeros(RATE, np.float32)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(200, 2000))
def test_bins_are_of_equal_width_or_of_equal_count(seed, n):
    x = np.random.default_rng(seed).gamma(2, 3, n)
    wide, full = attributes.edges(x), attributes.edges(x, "count")
    assert len(wide) == len(full) == 19
    assert np.diff(wide) == pytest.approx(wide[1] - wide[0])
    labels = attributes.classes("loudness", x, full)
    assert np.bincount(labels, minlength=20).max() <= n / 20 + 2


def test_no_answer_is_never_a_class():
    x = np.array([np.nan, 60, 61.4, np.nan, 20, 150])
    assert attributes.classes("pitch", x).tolist() == [-1, 24, 25, -1, -1, -1]
    levels, bins = np.array([np.nan, -30.0]), np.array([-40.0, -20.0])
    assert attributes.classes("loudness", levels, bins).tolist() == [-1, 1]


def test_all_unvoiced_is_said():
    silence = np.full(50, np.nan)
    with pytest.raises(ValueError, match="all are silent or unvoiced"):
        attributes.classes("pitch", silence)
    with pytest.raises(ValueError, match="all are silent or unvoiced"):
        attributes.edges(silence)
    with pytest.raises(ValueError, match="same value"):
        attributes.edges(np.ones(50))
    with pytest.raises(ValueError, match="equal in"):
        attributes.edges(np.arange(50.0), "area")
    with pytest.raises(ValueError, match="needs bins"):
        attributes.classes("timbre", np.ones(5))
    with pytest.raises(ValueError, match="no attribute 'colour'"):
        attributes.classes("colour", np.ones(5))


def test_a_class_with_one_example_is_left_out_and_named():
    labels, groups = np.array([0, 0, 1, 1, 2, -1]), np.array([1, 2, 1, 2, 2, 1])
    kept, dropped = attributes.common(labels, groups)
    assert dropped == [2] and kept.tolist() == [0, 0, 1, 1, -1, -1]
    with pytest.raises(ValueError, match="occur in a single composition"):
        attributes.common(np.array([0, 1, 1]), np.array([1, 2, 2]))


def test_bins_over_the_whole_range_are_wide_and_hold_everything():
    for name, (low, high) in attributes.RANGES.items():
        edges = attributes.whole(name)
        assert len(edges) == 19 and low < edges[0] and edges[-1] < high
        labels = attributes.classes(name, np.array([low, (low + high) / 2 + 1e-6, high]), edges)
        assert labels.tolist() == [0, 10, 19]
