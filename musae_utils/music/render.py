"""From a score to sound and frame-wise truth.

The SoundFont is TimGM6mb (Tim Brechbill, GPL-2.0), which ships with pretty_midi; the synthesiser is
TinySoundFont. It does not band-limit, so scores are rendered at twice the rate and decimated.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from musae_utils.music.clip import (
    FAMILIES,
    FRAME_RATE,
    SAMPLE_RATE,
    Clip,
    Note,
    Truth,
    frame_loudness,
)
from musae_utils.music.compose import Score, key_name

CHANNELS = {"melody": 0, "harmony": 1, "bass": 2, "drums": 9}
GAIN_DB = -4.0  # leaves room for tutti; a clip is turned down only if it would still clip


@functools.cache
def soundfont() -> Path:
    """Path of the SoundFont TimGM6mb that pretty_midi ships."""
    import pretty_midi

    return Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")


@functools.cache
def soundfont_sha256() -> str:
    return hashlib.sha256(soundfont().read_bytes()).hexdigest()


def synthesise(notes: list[Note], programs: dict[str, int], seconds: float) -> np.ndarray:
    """Play notes through the SoundFont.

    Parameters
    ----------
    notes : list of Note
    programs : dict
        General MIDI program of each pitched role.
    seconds : float

    Returns
    -------
    ndarray of float32, shape (round(seconds * 16000),)
        Mono. The same notes give the same samples.
    """
    import tinysoundfont

    rate = 2 * SAMPLE_RATE
    synth = tinysoundfont.Synth(samplerate=rate, gain=GAIN_DB)  # a fresh one: no voice left over
    font = synth.sfload(str(soundfont()))
    for role, program in programs.items():
        synth.program_select(CHANNELS[role], font, 0, int(program))
    synth.program_select(CHANNELS["drums"], font, 128, 0, True)

    events = []
    for note in notes:
        channel = CHANNELS[note.role]
        on, off = round(note.start * rate), round(note.end * rate)
        # Note-offs first: a repeated note must stop before it is struck again.
        events.append((on, 1, channel, note.pitch, note.velocity))
        events.append((max(off, on + 1), 0, channel, note.pitch, 0))
    total, at, parts = round(seconds * SAMPLE_RATE) * 2, 0, []
    for when, is_on, channel, pitch, velocity in sorted(events):
        when = min(when, total)
        if when > at:
            parts.append(np.frombuffer(bytes(synth.generate(when - at)), np.float32))
            at = when
        if is_on:
            synth.noteon(channel, pitch, velocity)
        else:
            synth.noteoff(channel, pitch)
    if total > at:
        parts.append(np.frombuffer(bytes(synth.generate(total - at)), np.float32))
    mono = np.concatenate(parts).reshape(-1, 2).mean(axis=1)
    audio = resample_poly(mono, 1, 2).astype(np.float32)
    fade = min(len(audio), SAMPLE_RATE // 20)
    audio[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32) ** 2
    peak = np.abs(audio).max()
    return audio / (peak / 0.98) if peak > 0.98 else audio


def frames_of(seconds: float) -> int:
    return round(seconds * FRAME_RATE)


def span_frames(start: float, end: float) -> slice:
    """Frames whose beginning lies in ``[start, end)``."""
    return slice(int(np.ceil(start * FRAME_RATE - 1e-6)), int(np.ceil(end * FRAME_RATE - 1e-6)))


def note_frames(notes: list[Note], n_frames: int) -> dict[str, np.ndarray]:
    """Active notes (T, 128), melody pitch (T,), drum strokes (T,) of a list of notes."""
    active = np.zeros((n_frames, 128), bool)
    melody = np.full(n_frames, -1, np.int16)
    drums = np.zeros(n_frames, bool)
    for note in notes:
        # Frames that the note touches; the margin keeps 0.58 s * 50 = 28.999… in frame 29.
        first = int(note.start * FRAME_RATE + 1e-6)
        span = slice(first, max(int(np.ceil(note.end * FRAME_RATE - 1e-6)), first + 1))
        if note.role == "drums":
            drums[min(span.start, n_frames - 1)] = True
            continue
        active[span, note.pitch] = True
        if note.role == "melody":
            melody[span] = note.pitch
    return {"active": active, "melody": melody, "drums": drums}


def truth_of(score: Score, audio: np.ndarray) -> Truth:
    """Ground truth of a composed score; see `Truth` for its keys."""
    spec, n = score.spec, frames_of(score.spec.seconds)
    seconds = np.arange(n) / FRAME_RATE
    beats = seconds / score.beat + 1e-9
    frames = {
        "tonic": np.full(n, spec.tonic, np.int16),
        "mode": np.full(n, spec.mode, np.int16),
        "tempo": np.full(n, spec.tempo, np.float32),
        "family": np.full(n, FAMILIES.index(spec.family) if spec.family else -1, np.int16),
        # Once more modulo 1: single precision rounds 0.99999999 up.
        "beat": (beats % 1.0).astype(np.float32) % 1,
        "downbeat": (beats / spec.metre % 1.0).astype(np.float32) % 1,
        "loudness": frame_loudness(audio, SAMPLE_RATE, n),
        **note_frames(score.notes, n),
    }
    for name in ("chord_root", "chord_quality", "section", "motif", "repeats"):
        frames[name] = np.full(n, -1, np.int16)
    for chord in score.chords:
        span = span_frames(chord["start"], chord["end"])
        frames["chord_root"][span] = chord["root"]
        frames["chord_quality"][span] = chord["quality"]
    for section in score.sections:
        span = span_frames(section["start"], section["end"])
        frames["section"][span] = ord(section["label"]) - ord("A")
    for statement in score.statements:
        span = span_frames(statement["start"], statement["end"])
        frames["motif"][span] = statement["motif"]
        frames["repeats"][span] = statement["of"]
    clip = {
        "key": key_name(spec.tonic, spec.mode),
        **{k: getattr(spec, k) for k in spec.__dataclass_fields__ if k != "seconds"},
        "chords": score.chords,
        "sections": score.sections,
        "statements": score.statements,
    }
    return Truth(frames, clip, score.notes)


def render(score: Score, seed: int | None = None) -> Clip:
    """Play a score and write down its truth.

    Returns
    -------
    Clip
        Mono, 16 kHz. Its caption is drawn by the seed.
    """
    from dataclasses import asdict

    from musae_utils.music.captions import caption

    audio = synthesise(score.notes, score.programs, score.spec.seconds)
    truth = truth_of(score, audio)
    provenance = {
        "source": "composed",
        "spec": asdict(score.spec),
        "seed": seed,
        "soundfont": "TimGM6mb (GPL-2.0)",
        "soundfont_sha256": soundfont_sha256(),
        "licence": "CC0-1.0",
    }
    text = caption(truth, np.random.default_rng([seed or 0, 7]))
    return Clip(audio, SAMPLE_RATE, truth, text, provenance, name=f"composition {seed}")
