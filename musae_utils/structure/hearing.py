"""How alike two windows of a piece sound: harmony, rhythm and melody, each on its own.

Conventions: sound is mono or stereo at any rate and at most ten minutes long; frames are those of
the nano tagger, 80 ms, frame ``i`` centred on ``(i + 0.5) / 12.5`` s. A *window* is a pair of
seconds. It may return wherever a window of the same length fits that does not overlap it.

=================  =================================================================================
chroma             1 minus the cost of a time warp between the two windows' pitch classes, a cosine
                   distance: **the usual measure**
chroma rotated     the best of twelve rotations of it: the same music in another key
rhythm             correlation of when notes of the melody begin
melody             cosine of the melodies as scale degrees over time, at the best of seven shifts:
                   a motif that moves inside its key keeps its steps, not its semitones
melody on chord    the same at the one shift by which the chord moved
lead               by how much the best shift is ahead of the second best
worst              mean cosine of the three eighths of the window that agree least
near               `melody` with neighbouring degrees counted half: a note too many costs little
sung               how sure it is that a melody sounds, in the less sure of the two windows
same chord         whether the chord is on the same degree: 0 or 1
... in context     by how much a score is above the median of this piece's other windows, in units
                   of how far their upper tenth is: what is alike everywhere says little
=================  =================================================================================

Melody, its onsets, chords and key are heard by the nano tagger (notebook 08), which learnt them
from composed music. Explained in notebooks/15_what_counts_as_a_return.ipynb.

References
----------
Müller (2015), Fundamentals of Music Processing, chapters 3, 4 and 7: subsequence dynamic time
warping, self-similarity, transposition-invariant similarity.
"""

from __future__ import annotations

from typing import NamedTuple

import librosa
import numpy as np
import pandas as pd

from musae_utils.music import measure
from musae_utils.music.clip import MODES, PITCH_NAMES, SAMPLE_RATE

RATE = 12.5  # frames a second
POINTS = 32  # moments of a window that are compared, however long it is
SILENT = -55.0  # dB; a window is silent if three quarters of its frames are quieter
LONGEST = 600.0  # seconds
IN_CONTEXT = ("rhythm", "melody", "melody on chord", "near")
SCORES = ("chroma", "chroma rotated", "rhythm", "melody", "melody on chord", "lead", "worst",
          "near", "sung", "same chord", *(f"{name} in context" for name in IN_CONTEXT))  # fmt: skip
#: Steps of a warp along (earlier, later): at most twice or half as fast.
STEPS, STEP_WEIGHTS = np.array([[1, 1], [1, 2], [2, 1]]), np.array([1.0, 1.0, 2.0])


class Heard(NamedTuple):
    """What is heard in T frames of a piece.

    Attributes
    ----------
    seconds : float
        Its length.
    chroma : ndarray of shape (T, 12)
        Unit rows.
    degrees : ndarray of shape (T, 7)
        How sure it is that the melody sounds on each degree of the scale.
    onsets : ndarray of shape (T,)
        How sure it is that a note of the melody begins.
    chords : ndarray of shape (T, 7)
        How sure it is that a chord stands on each degree of the scale.
    level : ndarray of shape (T,)
        dB relative to full scale.
    key : tuple of int
        Tonic 0-11 and mode (0 major, 1 minor), of the whole piece.
    """

    seconds: float
    chroma: np.ndarray
    degrees: np.ndarray
    onsets: np.ndarray
    chords: np.ndarray
    level: np.ndarray
    key: tuple[int, int]


def one_channel(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mono at 16 kHz, shape (n,), of mono or stereo at any rate.

    Raises
    ------
    ValueError
        No sound, no rate, values that are not numbers, too many channels, too long or too short.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim == 2 and min(audio.shape) <= 8:
        audio = audio.mean(axis=int(audio.shape[0] > audio.shape[1]))
    if not sample_rate or sample_rate <= 0:
        raise ValueError(f"The sample rate is {sample_rate}; it must be above 0 Hz.")
    if len(audio) > LONGEST * sample_rate:
        raise ValueError(
            f"The sound lasts {len(audio) / sample_rate:.0f} s, and at most {LONGEST:.0f} s are "
            "heard at once: cut it into parts."
        )
    return measure.validate(audio, sample_rate)


def hear(audio: np.ndarray, sample_rate: int = SAMPLE_RATE) -> Heard:
    """Listen to a piece once; about 1/300 of its length.

    Parameters
    ----------
    audio : ndarray of shape (n,), (n, channels) or (channels, n)
    sample_rate : int
        Hz.

    Returns
    -------
    Heard

    Raises
    ------
    ValueError
        See `one_channel`.
    """
    import torch

    from musae_utils.labels.ears import FRAME_CONCEPTS, nano_tagger

    audio = one_channel(audio, sample_rate)
    net = nano_tagger().net
    with torch.no_grad():
        keys, _, frames = net(*net.ear.front(torch.from_numpy(audio)[None]))
    frames = frames[0].sigmoid().double().numpy()
    of = lambda names: frames[:, [FRAME_CONCEPTS.index(name) for name in names]]  # noqa: E731
    tonic, mode = divmod(int(keys[0].argmax()), len(MODES))
    scale = degree_map(tonic, mode)
    melody = of([f"melody: {name}" for name in PITCH_NAMES]) @ scale
    chroma, power = measure.chroma(audio), librosa.feature.rms(y=audio, hop_length=measure.HOP)[0]
    chroma = _fourth(chroma, len(frames))
    return Heard(
        len(audio) / SAMPLE_RATE,
        chroma / np.maximum(np.linalg.norm(chroma, axis=1, keepdims=True), 1e-6),
        melody / (melody.sum(1, keepdims=True) + 0.3),  # a melody that is hardly heard counts less
        of(["onset: melody"])[:, 0],
        of([f"chord root: {name}" for name in PITCH_NAMES]) @ scale,
        10 * np.log10(_fourth(power**2, len(frames)) + 1e-8),
        (tonic, mode),
    )


def degree_map(tonic: int, mode: int) -> np.ndarray:
    """Pitch classes to degrees of a scale, shape (12, 7); a pitch between two counts half for each.

    The raised seventh of minor is a seventh.
    """
    scale = np.array(((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))[mode])
    found = np.zeros((12, 7))
    for above in range(12):
        near = np.flatnonzero(np.isin((scale - above) % 12, (0, 1, 11)))
        exact = near[scale[near] == above]
        near = exact if len(exact) else near
        if mode == 1 and above == 11:
            near = np.array([6])
        found[(tonic + above) % 12, near] = 1 / len(near)
    return found


def starts_of(heard: Heard, length: float) -> np.ndarray:
    """Where windows of a length (seconds) can start, frame by frame; shape (S,), in seconds."""
    return np.arange(0, heard.seconds - length + 1e-6, 1 / RATE)


def silent(heard: Heard, starts: np.ndarray, length: float) -> np.ndarray:
    """Which windows hold next to nothing, of shape (S,)."""
    quiet = _windows(heard.level[:, None] < SILENT, np.asarray(starts, float), length)
    return quiet[..., 0].mean(1) > 0.75


def scores(
    heard: Heard, earlier: tuple[float, float], starts: np.ndarray | None = None
) -> pd.DataFrame:
    """How alike an earlier window and later ones are, in every way of `SCORES`.

    Parameters
    ----------
    heard : Heard
    earlier : (float, float)
        Start and end in seconds.
    starts : array of shape (S,), optional
        Where the later windows, as long as the earlier one, start; every frame after it if left
        out.

    Returns
    -------
    DataFrame of shape (S, scores), indexed by start

    Raises
    ------
    ValueError
        The earlier window is outside the sound, silent, or shorter than 0.5 s; no other fits beside
        it; a later one does not fit into the sound.
    """
    start, end = map(float, earlier)
    length = end - start
    if not (-1e-6 <= start and 0.5 <= length and end <= heard.seconds + 0.1):
        raise ValueError(
            f"The earlier window is {start:g} to {end:g} s of a sound of {heard.seconds:.2f} s; it "
            "must lie inside and last at least 0.5 s."
        )
    grid = starts_of(heard, length)
    apart = np.abs(grid - start) >= length - 1e-6
    if not apart.any():
        raise ValueError(
            f"The sound lasts {heard.seconds:.2f} s and the window {length:.2f} s: to hear whether "
            "it returns there must be room for another one beside it."
        )
    starts = grid[grid >= end - 1e-6] if starts is None else np.asarray(starts, float)
    outside = (starts < -1e-6) | (starts + length > heard.seconds + 0.1)
    if outside.any():
        raise ValueError(
            f"A window of {length:.2f} s from {starts[outside][0]:.2f} s on does not fit into a "
            f"sound of {heard.seconds:.2f} s."
        )
    if silent(heard, np.array([start]), length)[0]:
        raise ValueError(f"Nothing sounds from {start:g} to {end:g} s, so nothing can return.")
    background = grid[apart]
    table = pd.DataFrame(_alike(heard, start, length, np.concatenate([starts, background])))
    for name in IN_CONTEXT:
        others = table[name][len(starts) :]
        spread = np.quantile(others, 0.9) - others.median() + 0.02
        table[f"{name} in context"] = (table[name] - others.median()) / spread
    return table.iloc[: len(starts)].set_index(pd.Index(starts, name="start"))[list(SCORES)]


def _fourth(x: np.ndarray, n: int) -> np.ndarray:
    """Means of four frames each, 20 to 80 ms: (..., 4 n or so) to (n, ...)."""
    parts = np.array_split(x[..., : 4 * n], n, axis=-1)
    return np.stack([part.mean(axis=-1) for part in parts])


# -- one score after the other ---------------------------------------------------------------------


def _alike(heard: Heard, start: float, length: float, starts: np.ndarray) -> dict[str, np.ndarray]:
    both = lambda x: (_windows(x, np.array([start]), length)[0], _windows(x, starts, length))  # noqa: E731
    (a, b), rows = both(heard.degrees), np.arange(len(starts))
    by_eighth, here, there = _shifted(a, b)
    by_shift = by_eighth.sum(2)
    best, ranked = by_shift.argmax(1), np.sort(by_shift, axis=1)
    chord, chords = both(heard.chords)
    moved = (chords.mean(1).argmax(1) - chord.mean(0).argmax()) % 7
    eighths = by_eighth[rows, best] / np.sqrt(here * there + 1e-6)
    onset, onsets = both(heard.onsets[:, None])
    plain, rotated = _warped(heard.chroma, start, length, starts)
    return {
        "chroma": plain,
        "chroma rotated": rotated,
        "rhythm": _correlation(onset[:, 0], onsets[..., 0]),
        "melody": ranked[:, -1],
        "melody on chord": by_shift[rows, moved],
        "lead": ranked[:, -1] - ranked[:, -2],
        "worst": np.sort(eighths, axis=1)[:, :3].mean(1),
        "near": _shifted(_blurred(a), _blurred(b))[0].sum(2).max(1),
        "sung": np.minimum(a.sum(1).mean(), b.sum(2).mean(1)),
        "same chord": (moved == 0).astype(float),
    }


def _windows(x: np.ndarray, starts: np.ndarray, length: float) -> np.ndarray:
    """`POINTS` moments of each window, interpolated: (T, d) to (S, POINTS, d)."""
    at = (starts[:, None] + (np.arange(POINTS) + 0.5) / POINTS * length) * RATE - 0.5
    left = np.clip(np.floor(at).astype(int), 0, max(0, len(x) - 2))
    right, share = np.minimum(left + 1, len(x) - 1), np.clip(at - left, 0, 1)[..., None]
    return x[left] * (1 - share) + x[right] * share


def _shifted(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products of (POINTS, 7) with each of (S, POINTS, 7), by shift and eighth of the window.

    (S, 7, 8), summing over eighths to a cosine; and the shares of energy in the eighths of both,
    (8,) and (S, 8).
    """
    a, b = a - a.mean(1, keepdims=True), b - b.mean(2, keepdims=True)
    a = a / max(np.linalg.norm(a), 1e-6)
    b = b / np.maximum(np.linalg.norm(b, axis=(1, 2)), 1e-6)[:, None, None]
    turned = np.stack([np.roll(a, shift, axis=1) for shift in range(7)])
    product = np.einsum("jnd,snd->sjn", turned, b, optimize=True)
    eighth = lambda x: x.reshape(*x.shape[:-1], 8, POINTS // 8).sum(-1)  # noqa: E731
    return eighth(product), eighth((a**2).sum(1)), eighth((b**2).sum(2))


def _blurred(x: np.ndarray) -> np.ndarray:
    return x + 0.5 * (np.roll(x, 1, axis=-1) + np.roll(x, -1, axis=-1))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(), b - b.mean(1, keepdims=True)
    return b @ a / np.maximum(np.linalg.norm(a) * np.linalg.norm(b, axis=1), 1e-6)


def _warped(
    chroma: np.ndarray, start: float, length: float, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of a window with later ones, as it is and at the best of twelve rotations.

    A subsequence warp of the window along the whole piece says what it costs to end in each frame.
    """
    first, n = round(start * RATE), max(2, round(length * RATE))
    window = chroma[first : first + n]
    n = len(window)
    ends = np.round(starts * RATE).astype(int) + n - 1
    ends = np.clip(ends[:, None] + np.arange(-1, 2), 0, len(chroma) - 1)
    found = []
    for rotation in range(12):
        cost = librosa.sequence.dtw(
            C=1 - np.roll(window, rotation, axis=1) @ chroma.T,
            subseq=True,
            backtrack=False,
            step_sizes_sigma=STEPS,
            weights_mul=STEP_WEIGHTS,
            weights_add=np.zeros(3),
        )[-1]
        found.append(1 - np.minimum(cost / n, 1)[ends].min(1))
    return found[0], np.max(found, axis=0)
