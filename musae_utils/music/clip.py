"""What a piece of music is here: sound, and the truth about it.

Conventions: time in seconds, pitch in MIDI numbers (60 = middle C), loudness in dB relative to
full scale, truth in frames of 1/50 s: frame ``i`` covers ``[i/50, (i+1)/50)`` seconds. Explained in
notebook 01.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

FRAME_RATE = 50  # Hz; the nano codec's own rate, so that a token and a truth frame are one
SAMPLE_RATE = 16_000  # Hz

PITCH_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")
QUALITIES = ("major", "minor", "diminished", "dominant seventh")
FAMILIES = ("piano", "organ", "guitar", "strings", "brass", "reed", "flute", "mallet")

#: Semitones above the tonic; minor is natural minor plus the raised leading tone.
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10, 11))


@dataclass(frozen=True)
class Note:
    """One sounding note: seconds, MIDI pitch, MIDI velocity, and the part that plays it.

    ``role`` is ``"melody"``, ``"harmony"``, ``"bass"`` or ``"drums"``; for drums ``pitch`` is the
    General MIDI percussion key (36 kick, 38 snare, 42 closed hi-hat).
    """

    start: float
    end: float
    pitch: int
    velocity: int
    role: str


@dataclass
class Truth:
    """What is known about a clip, because it was written down before it was played.

    Attributes
    ----------
    frames : dict of str to ndarray of shape (T,) or (T, 128)
        ``tonic`` 0-11, ``mode`` (0 major, 1 minor), ``chord_root`` 0-11 or -1, ``chord_quality``
        (index into `QUALITIES`) or -1, ``beat`` and ``downbeat`` phases in [0, 1), ``tempo`` in
        BPM, ``active`` (T, 128) bool, ``melody`` MIDI or -1, ``loudness`` in dB (floor -80),
        ``family`` (index into `FAMILIES`), ``drums`` bool (a drum is struck within the frame),
        ``section`` 0 = A, 1 = B, … or -1, ``motif`` id or -1, ``repeats`` index into
        ``clip["statements"]`` of the earlier statement heard again, or -1.
    clip : dict
        ``key`` ("D minor"), ``tonic``, ``mode``, ``tempo``, ``metre``, ``family``, ``program``,
        ``drums``, ``form``, ``register``, ``articulation``, ``dynamics``, ``texture``, ``chords``,
        ``sections`` and ``statements`` (lists of dicts with ``start`` and ``end`` in seconds).
        What a source cannot know is absent.
    notes : list of Note
    """

    frames: dict[str, np.ndarray]
    clip: dict[str, object]
    notes: list[Note] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.frames.values())))


@dataclass
class Clip:
    """Sound with its truth (or without: a recording), a caption, and where it came from.

    Attributes
    ----------
    audio : ndarray of float32, shape (n,)
        Mono, in [-1, 1].
    sample_rate : int
        Hz.
    truth : Truth or None
        None for recordings.
    caption : str
        A description in words; partial on purpose.
    provenance : dict
        Everything needed to make or find the clip again: spec, seed, SoundFont and its checksum,
        or the file it was read from; licence.
    name : str
    """

    audio: np.ndarray
    sample_rate: int = SAMPLE_RATE
    truth: Truth | None = None
    caption: str = ""
    provenance: dict = field(default_factory=dict)
    name: str = "clip"

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate

    def play(self):
        """A player for this clip, as HTML."""
        from musae_utils import show

        return show.player(self.audio, self.sample_rate, title=self.name, caption=self.caption)

    def plot(self):
        """The piano roll with everything known about the clip, and a playhead, as HTML.

        A recording, of which nothing is known, is drawn as its spectrogram.
        """
        from musae_utils import show

        if self.truth is not None:
            return show.piano_roll(self)
        alt = f"Spectrogram of {self.name}, {self.seconds:.1f} seconds."
        return show.figure(show.clip_figure(self), alt)

    def __repr__(self) -> str:
        known = "no truth (a recording)"
        if self.truth is not None:
            c = self.truth.clip
            known = ", ".join(
                str(c[k]) for k in ("key", "tempo", "family", "form") if c.get(k) is not None
            )
        return f"Clip({self.name!r}, {self.seconds:.1f} s at {self.sample_rate} Hz; {known})"


def frame_loudness(audio: np.ndarray, sample_rate: int, n_frames: int) -> np.ndarray:
    """RMS level of each truth frame in dB relative to full scale, floored at -80. Shape (T,)."""
    hop = sample_rate / FRAME_RATE
    edges = np.round(np.arange(n_frames + 1) * hop).astype(int).clip(max=len(audio))
    power = np.concatenate([[0.0], np.cumsum(audio.astype(np.float64) ** 2)])
    mean = np.diff(power[edges]) / np.maximum(np.diff(edges), 1)
    return (10 * np.log10(np.maximum(mean, 1e-8))).astype(np.float32)
