"""Sound and truth agree: onsets, pitches, loudness, chords and beats are measured in the audio."""

import hashlib
import subprocess
import sys

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compose import FEW, PIECES

from musae_utils.music import FRAME_RATE, SAMPLE_RATE, Note, Spec, compose, make
from musae_utils.music.clip import frame_loudness
from musae_utils.music.compose import CHORD_TONES
from musae_utils.music.render import frames_of, note_frames, synthesise, truth_of

SILENCE = np.zeros(1, np.float32)


@pytest.fixture(scope="module")
def solo():
    """A piano melody alone: its notes and its sound."""
    score = compose(Spec(program=0, articulation="staccato", tempo=92, drums=False), 5)
    notes = [n for n in score.notes if n.role == "melody"]
    return notes, synthesise(notes, score.programs, score.spec.seconds)


@pytest.fixture(scope="module")
def clip():
    return make(seed=11, family="organ", drums=True, dynamics="medium", texture="block", seconds=12)


def checksum(seed):
    return hashlib.sha256(make(seed=seed, seconds=5).audio.tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_samples_in_a_fresh_process_too():
    make(seed=99, seconds=5)  # whatever was rendered before leaves no trace
    code = "from test_render import checksum; print(checksum(7))"
    fresh = subprocess.run(
        [sys.executable, "-c", code],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
    )
    assert fresh.stdout.strip() == checksum(7) == checksum(7) != checksum(8), fresh.stderr


def test_audio_is_clean(clip):
    assert clip.audio.dtype == np.float32 and clip.audio.shape == (12 * SAMPLE_RATE,)
    assert np.isfinite(clip.audio).all() and 0.05 < np.abs(clip.audio).max() <= 0.98 + 1e-6
    assert np.abs(clip.audio[-10:]).max() < 1e-3, "the end is faded, not cut"
    assert abs(clip.audio.mean()) < 0.01
    assert len(clip.truth) == 12 * FRAME_RATE


def test_loud_tutti_is_turned_down_and_not_clipped():
    notes = [Note(0.1, 2.0, p, 127, "harmony") for p in range(40, 90)]
    audio = synthesise(notes, {"harmony": 61}, 2.0)
    assert np.abs(audio).max() == pytest.approx(0.98, abs=1e-4)
    assert (np.abs(audio) > 0.97).mean() < 0.01


def test_notes_are_heard_when_the_truth_says(solo):
    notes, audio = solo
    hop = 32  # 2 ms
    # A window of 8 ms: librosa centres it, so half of it is all the blur there is.
    flux = librosa.onset.onset_strength(
        y=audio, sr=SAMPLE_RATE, hop_length=hop, n_fft=128, n_mels=20
    )
    heard = librosa.onset.onset_detect(
        onset_envelope=flux, sr=SAMPLE_RATE, hop_length=hop, units="time", wait=20, delta=0.1
    )
    written = np.array([n.start for n in notes])
    nearest = heard[np.abs(heard[:, None] - written).argmin(axis=0)]
    off = nearest - written
    found = np.abs(off) < 0.05
    assert found.mean() > 0.95
    assert abs(np.median(off[found])) < 0.010
    assert np.abs(off[found]).max() < 0.030


def test_the_strongest_pitch_of_a_solo_is_the_melody(solo):
    notes, audio = solo
    truth = note_frames(notes, frames_of(10))["melody"]
    agree = []
    for note in notes:
        start, stop = (round(t * SAMPLE_RATE) for t in (note.start + 0.03, note.end))
        spectrum = np.abs(np.fft.rfft(audio[start:stop] * np.hanning(stop - start), 1 << 16))
        bins = 440 * 2 ** ((np.arange(40, 100) - 69) / 12) * (1 << 16) / SAMPLE_RATE
        # The first four partials tell a note from its octave.
        salience = sum(
            np.where(h * bins < len(spectrum), spectrum[np.minimum(h * bins, 32768).astype(int)], 0)
            / h
            for h in (1, 2, 3, 4)
        )
        middle = int((note.start + note.end) / 2 * FRAME_RATE)
        agree.append(40 + int(salience.argmax()) == note.pitch == truth[middle])
    assert np.mean(agree) > 0.95


def test_loudness_is_the_level_of_each_frame(clip):
    hop = SAMPLE_RATE // FRAME_RATE
    rms = np.sqrt((clip.audio.astype(float).reshape(-1, hop) ** 2).mean(axis=1))
    expected = np.maximum(20 * np.log10(np.maximum(rms, 1e-9)), -80)
    np.testing.assert_allclose(clip.truth.frames["loudness"], expected, atol=0.01)
    np.testing.assert_array_equal(frame_loudness(np.zeros(3200, np.float32), SAMPLE_RATE, 10), -80)
    tone = np.sin(np.arange(16_000) / 16_000 * 2 * np.pi * 100).astype(np.float32)
    np.testing.assert_allclose(frame_loudness(tone, 16_000, 50), -3.01, atol=0.01)


def test_soft_music_is_softer_than_loud_music():
    levels = [
        np.median(make(seed=3, dynamics=d, seconds=5).truth.frames["loudness"])
        for d in ("soft", "medium", "loud")
    ]
    assert levels[0] + 2 < levels[1] < levels[2] - 2


def test_drums_are_heard_where_they_are_struck():
    score = compose(Spec(drums=True, tempo=80, seconds=8), 2)
    strokes = [n for n in score.notes if n.role == "drums"]
    audio = synthesise(strokes, score.programs, 8)
    frames = note_frames(strokes, frames_of(8))["drums"]
    level = frame_loudness(audio, SAMPLE_RATE, frames_of(8))
    rise = np.maximum(level[2:-1], level[3:]) - level[:-3]  # to this frame or the next
    assert np.median(rise[frames[2:-1]]) > 10 > 3 > np.median(rise[~frames[2:-1]])


# -- truth from a score -------------------------------------------------------------------------


@FEW
@given(PIECES)
def test_tracks_have_one_length_and_their_ranges(score):
    truth, n = truth_of(score, SILENCE), frames_of(score.spec.seconds)
    assert {len(track) for track in truth.frames.values()} == {n} and len(truth) == n
    f = truth.frames
    for name in ("beat", "downbeat"):
        assert (f[name] >= 0).all() and (f[name] < 1).all()
    assert f["active"].shape == (n, 128) and f["active"].dtype == bool
    assert (f["section"] >= 0).all() and (f["chord_root"] >= 0).all()
    assert set(np.unique(f["repeats"])) <= {-1, *range(len(truth.clip["statements"]))}
    assert (f["repeats"][f["motif"] < 0] == -1).all()
    assert (f["tonic"] == truth.clip["tonic"]).all() and (f["mode"] == truth.clip["mode"]).all()


@FEW
@given(PIECES)
def test_phases_turn_exactly_at_beats_and_bars(score):
    frames = truth_of(score, SILENCE).frames
    seconds = np.arange(len(frames["beat"])) / FRAME_RATE
    for name, length in (("beat", score.beat), ("downbeat", score.beat * score.spec.metre)):
        turned = np.flatnonzero(np.diff(frames[name]) < 0) + 1
        times = np.arange(1, int(seconds[-1] / length + 1e-6) + 1) * length
        # The first frame that begins at or after the beat.
        expected = np.ceil(times * FRAME_RATE - 1e-6).astype(int)
        np.testing.assert_array_equal(turned, expected[expected < len(seconds)])
        # Between turns the phase grows evenly, by the frame's share of the beat.
        step = np.diff(frames[name].astype(float)) % 1
        np.testing.assert_allclose(step, 1 / FRAME_RATE / length, atol=1e-5)
    starts = {round(c["start"] / (score.beat * score.spec.metre), 6) % 1 for c in score.chords}
    assert starts == {0.0}, "chords change on downbeats"


@FEW
@given(PIECES)
def test_active_notes_fit_the_chord_track(score):
    """The accompaniment sounds only tones of the chord of the frame (but for note ends)."""
    notes = [n for n in score.notes if n.role in ("harmony", "bass")]
    n = frames_of(score.spec.seconds)
    active, frames = note_frames(notes, n)["active"], truth_of(score, SILENCE).frames
    both = frames["chord_root"] * 4 + frames["chord_quality"]  # V and V7 have one root
    changes = np.flatnonzero(np.diff(both)) + 1
    near = np.zeros(n, bool)
    near[np.concatenate([changes, changes - 1]).astype(int)] = True  # a chord changes within these
    for t in np.flatnonzero(~near):
        tones = {
            (frames["chord_root"][t] + x) % 12 for x in CHORD_TONES[frames["chord_quality"][t]]
        }
        assert {p % 12 for p in np.flatnonzero(active[t])} <= tones


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 480), st.integers(1, 100), st.integers(0, 127))
def test_a_note_is_active_in_exactly_the_frames_that_it_touches(first, length, pitch):
    """Also where seconds times the frame rate falls just short of a whole number (0.58 * 50)."""
    note = Note(first / FRAME_RATE, (first + length) / FRAME_RATE, pitch, 80, "melody")
    frames = note_frames([note], 500)
    expected = np.arange(500)
    expected = (expected >= first) & (expected < first + length)
    np.testing.assert_array_equal(frames["active"][:, pitch], expected)
    np.testing.assert_array_equal(frames["melody"], np.where(expected, pitch, -1))
    stroke = note_frames([Note(note.start, note.end, 38, 80, "drums")], 500)
    assert np.flatnonzero(stroke["drums"]).tolist() == [first] and not stroke["active"].any()


@FEW
@given(PIECES)
def test_melody_sections_and_motifs_are_in_their_frames(score):
    truth = truth_of(score, SILENCE)
    # A frame tells what holds at its beginning; the clip's end may leave a span less than a frame.
    first = lambda span: int(np.ceil(span["start"] * FRAME_RATE - 1e-6))  # noqa: E731
    inside = lambda span: first(span) < min(span["end"] * FRAME_RATE - 1e-6, len(truth))  # noqa: E731
    for section in filter(inside, truth.clip["sections"]):
        assert truth.frames["section"][first(section)] == ord(section["label"]) - ord("A")
    for statement in filter(inside, truth.clip["statements"]):
        t = first(statement)
        assert truth.frames["motif"][t] == statement["motif"]
        assert truth.frames["repeats"][t] == statement["of"]
    for note in (n for n in score.notes if n.role == "melody" and n.end - n.start > 0.04):
        t = int((note.start + note.end) / 2 * FRAME_RATE)
        assert truth.frames["melody"][t] == note.pitch and truth.frames["active"][t, note.pitch]


# -- what a reader does with a clip -------------------------------------------------------------


def test_a_clip_says_what_it_is(clip):
    assert clip.seconds == 12
    said = repr(clip)
    assert str(clip.truth.clip["key"]) in said and "12.0 s at 16000 Hz" in said and "organ" in said
    assert clip.provenance["seed"] == 11 and len(clip.provenance["soundfont_sha256"]) == 64
    again = make(Spec(**clip.provenance["spec"]), seed=clip.provenance["seed"])
    np.testing.assert_array_equal(again.audio, clip.audio)


def test_a_clip_plays_and_plots():
    clip = make(seed=1, seconds=5)
    assert "<audio" in clip.play().data and "<audio" in clip.plot().data
