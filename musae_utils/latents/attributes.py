"""What can be asked of a moment of music: pitch, loudness, timbre and more, frame by frame.

Two sources, kept apart. `targets` looks up the **truth** of composed music; `measured` hears a
**sound**, any sound, and so also one that was edited or that a model made up.

Conventions: latent frame t of a model covers [t, t + 1) / frame_rate seconds, and what is said of
it is said of its middle. Pitch is in MIDI numbers, level in dB relative to full scale (the RMS of a
full-scale sine is -3 dB), the centre of the spectrum in octaves: log2 of its frequency in Hz. What
a frame does not have (the pitch of silence) is NaN, never a class of its own.

Explained in notebooks/13_pitch_loudness_timbre.ipynb.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from musae_utils import stats
from musae_utils.music import measure
from musae_utils.music.captions import tempo_word
from musae_utils.music.clip import (
    FAMILIES,
    FRAME_RATE,
    MODES,
    QUALITIES,
    SAMPLE_RATE,
    Clip,
)
from musae_utils.music.concepts import frame_concepts
from musae_utils.stats import Interval

#: S2 has 66 MIDI bins and does not say which: these, C2 to F7, hold every note that is composed.
LOWEST, PITCHES = 36, 66
STEPS = 5  # candidates a semitone
HARMONICS = 5  # of a candidate that are listened for
#: Where a frame has a pitch: 1 frame of white noise in 100 is as strong.
STRENGTH = 0.185
SILENT = -55.0  # dB; quieter frames have neither pitch nor centre
FLOOR = -80.0  # dB
WINDOW, LONG_WINDOW = 1024, 2048  # samples: 64 ms for level and centre, 128 ms for pitch
PADDED = 2  # times as long with zeros, so that spectra are finer

BINS = 20  # S2's number for loudness and timbre
#: From end to end of what can occur: dB from the floor to full scale, log2 Hz from 62.5 to 8,000.
RANGES = {"loudness": (FLOOR, 0.0), "timbre": (np.log2(62.5), np.log2(8000.0))}
PHASES = 8  # a phase is right in the right eighth of a beat; the first is centred on the beat
TEMPI = ("slow", "moderate", "fast")


class Attribute(NamedTuple):
    """Something that can be asked of music.

    Attributes
    ----------
    level : {"frame", "clip"}
        One answer a frame, or one a clip.
    classes : int
        Possible answers.
    question : str
    unit : str
        Where answers have an order: what they are measured in.
    per_class : float
        Units from one answer to the next; 0 where bins have to be made first.
    """

    level: str
    classes: int
    question: str
    unit: str = ""
    per_class: float = 0.0


ATTRIBUTES = {
    "pitch": Attribute("frame", PITCHES, "Which note does the melody have?", "semitones", 1.0),
    "heard_pitch": Attribute("frame", PITCHES, "Which note does a tracker hear?", "semitones", 1.0),
    "loudness": Attribute("frame", BINS, "How loud is it (RMS)?", "dB"),
    "lufs": Attribute("frame", BINS, "How loud does it seem (momentary LUFS)?", "LU"),
    "timbre": Attribute("frame", BINS, "Where is the centre of the spectrum?", "octaves"),
    "onset": Attribute("frame", 2, "Has a note begun within the last 60 ms?"),
    "beat": Attribute("frame", PHASES, "Where between two beats?"),
    "chord": Attribute("frame", 12, "Which root has the chord?"),
    "quality": Attribute("frame", len(QUALITIES), "Which kind of chord is it?"),
    "drums": Attribute("frame", 2, "Has a drum been struck within the last 60 ms?"),
    "family": Attribute("frame", len(FAMILIES), "Which family of instruments leads?"),
    "tempo": Attribute("clip", len(TEMPI), "Is it slow, moderate or fast?"),
    "key": Attribute("clip", 12, "Which is the tonic?"),
    "mode": Attribute("clip", len(MODES), "Is it major or minor?"),
}  # fmt: skip


def targets(
    clip: Clip, frame_rate: float = FRAME_RATE, n_frames: int | None = None
) -> dict[str, np.ndarray]:
    """Every attribute of a composed clip in each frame of a latent model.

    Loudness and timbre are measured in the sound, `heard_pitch` is `measured`'s; all else is looked
    up in the truth, at each frame's middle.

    Parameters
    ----------
    clip : Clip
        With a truth.
    frame_rate : float
        Frames a second.
    n_frames : int, optional
        How many; by default as many as the sound has.

    Returns
    -------
    dict of float ndarray of shape (n_frames,)
        By the names of `ATTRIBUTES`: MIDI numbers, dB, LUFS, log2 Hz; 0 or 1; eighths of a beat;
        else places in `PITCH_NAMES`, `QUALITIES`, `FAMILIES`, `TEMPI`, `MODES`. NaN where a frame
        has no such thing: the pitch of a rest, the centre of silence.

    Raises
    ------
    ValueError
        The clip is a recording, of which nothing is known.
    """
    if clip.truth is None:
        raise ValueError(
            f"{clip.name} is a recording without truth: only `measured` can say what it holds."
        )
    heard = measured(clip.audio, clip.sample_rate, frame_rate)
    wanted = len(heard["pitch"]) if n_frames is None else n_frames
    truth, known = clip.truth, clip.truth.frames
    moments = ((np.arange(wanted) + 0.5) * (FRAME_RATE / frame_rate)).astype(int)
    moments = moments.clip(max=len(truth) - 1)
    events = frame_concepts(truth, wanted, frame_rate)
    at = lambda name: known[name][moments].astype(float)  # noqa: E731
    none = lambda x: np.where(x < 0, np.nan, x)  # noqa: E731
    each = lambda x: np.full(wanted, float(x))  # noqa: E731
    heard |= {"lufs": momentary_lufs(clip.audio, clip.sample_rate, frame_rate)}
    heard = {k: np.pad(x.astype(float), (0, wanted), "edge")[:wanted] for k, x in heard.items()}
    sounding = ~np.isnan(heard["centroid"])
    return {
        "pitch": none(at("melody")),
        "heard_pitch": heard["pitch"],
        "loudness": np.where(sounding, heard["loudness"], np.nan),
        "lufs": np.where(sounding, heard["lufs"], np.nan),
        "timbre": heard["centroid"],
        "onset": events["onset: any note"].astype(float),
        "beat": np.round(at("beat") * PHASES) % PHASES,
        "chord": none(at("chord_root")),
        "quality": none(at("chord_quality")),
        "drums": events["onset: drum"].astype(float),
        "family": none(at("family")),
        "tempo": each(TEMPI.index(tempo_word(truth.clip["tempo"]))),
        "key": each(truth.clip["tonic"]),
        "mode": each(truth.clip["mode"]),
    }


def edges(values: np.ndarray, equal: str = "width", bins: int = BINS) -> np.ndarray:
    """Where bins meet, from the training half.

    S2 does not say how its 20 bins were laid. Bins of **equal width** between the 1st and the 99th
    percentile (the outer ones take what lies beyond) are the default. Bins of **equal count** are
    harder: none is more common than another, and they are narrowest where music mostly is. Bins
    that share out a **whole range** (`RANGES`) are wide, easy, and mostly empty: `whole`.

    Parameters
    ----------
    values : array of shape (N,)
        NaN is passed over.
    equal : {"width", "count"}
    bins : int

    Returns
    -------
    array of shape (bins - 1,), rising

    Raises
    ------
    ValueError
        Nothing is left without NaN, or it never varies.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError(
            "Not one frame has this attribute: all are silent or unvoiced. Give music that sounds, "
            "or check the recording's level."
        )
    if equal == "width":
        made = np.linspace(*np.percentile(values, [1, 99]), bins + 1)[1:-1]
    elif equal == "count":
        made = np.percentile(values, np.linspace(0, 100, bins + 1)[1:-1])
    else:
        raise ValueError(f"Bins are equal in 'width' or in 'count', not in {equal!r}.")
    if made[0] == made[-1]:
        raise ValueError(f"All frames have the same value, {made[0]:g}: there is nothing to tell.")
    return made


def whole(name: str, bins: int = BINS) -> np.ndarray:
    """Edges (bins - 1,) of bins of equal width from end to end of what can occur (`RANGES`)."""
    return np.linspace(*RANGES[name], bins + 1)[1:-1]


def classes(name: str, values: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
    """Answers as class numbers: int (N,), from 0; -1 where there is none.

    Parameters
    ----------
    name : str
        Of `ATTRIBUTES`.
    values : array of shape (N,)
        Of `targets` or `measured`.
    at : array, optional
        Of `edges`, for loudness, LUFS and timbre.

    Raises
    ------
    ValueError
        An unknown name, bins that are needed and not given, or not one frame with an answer.
    """
    if name not in ATTRIBUTES:
        raise ValueError(f"There is no attribute {name!r}; there are {', '.join(ATTRIBUTES)}.")
    values, one = np.asarray(values, float), ATTRIBUTES[name]
    known = np.isfinite(values)
    if not known.any():
        raise ValueError(
            f"Not one of {len(values):,} frames has an answer to {one.question!r}: all are silent "
            "or unvoiced. Give music that sounds."
        )
    if one.unit and not one.per_class:
        if at is None:
            raise ValueError(f"{name} needs bins: give at=edges(values of the training half).")
        found = np.searchsorted(at, np.where(known, values, 0.0), side="right")
    else:
        lowest = LOWEST if "pitch" in name else 0
        found = np.round(np.where(known, values, 0.0)).astype(int) - lowest
        known &= (found >= 0) & (found < one.classes)
    return np.where(known, found, -1)


def common(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Drop classes that one composition alone has: no probe can be found and chosen from those.

    Parameters
    ----------
    labels : int array of shape (N,)
        -1 where there is none.
    groups : array of shape (N,)
        Composition of each row.

    Returns
    -------
    labels : int array of shape (N,)
        -1 also where the class was dropped.
    dropped : list of int
        To be said beside the score.

    Raises
    ------
    ValueError
        Fewer than two classes are left.
    """
    labels = np.asarray(labels)
    here = np.unique(labels[labels >= 0])
    dropped = [int(c) for c in here if len(np.unique(np.asarray(groups)[labels == c])) < 2]
    if len(here) - len(dropped) < 2:
        raise ValueError(
            f"Of {len(here)} classes {len(dropped)} occur in a single composition, and a probe "
            "needs at least two that occur in more: give more music."
        )
    return np.where(np.isin(labels, dropped), -1, labels), dropped


def momentary_lufs(
    audio: np.ndarray, sample_rate: int = SAMPLE_RATE, frame_rate: float = 50.0
) -> np.ndarray:
    """Loudness of the 400 ms around each frame, by pyloudnorm: (T,) in LUFS, from -80 on.

    Blocks of ITU-R BS.1770 every 100 ms, without its gate, and straight lines between them.
    """
    from pyloudnorm import Meter

    n_frames = int(np.ceil(len(audio) * frame_rate / sample_rate - 1e-6))
    x = measure.validate(audio, sample_rate).astype(np.float64)
    meter, half = Meter(SAMPLE_RATE), round(0.2 * SAMPLE_RATE)
    with np.errstate(divide="ignore", invalid="ignore"):
        meter.integrated_loudness(np.pad(x, half))
    blocks = np.maximum(meter.blockwise_loudness, FLOOR)  # silence is -inf
    middle = (np.arange(n_frames) + 0.5) / frame_rate
    return np.interp(middle, 0.1 * np.arange(len(blocks)), blocks)


def crepe(
    audio: np.ndarray, sample_rate: int = SAMPLE_RATE, frame_rate: float = 50.0, size: str = "tiny"
) -> tuple[np.ndarray, np.ndarray]:
    """Pitch by CREPE (Kim et al., 2018), S2's tracker, through torchcrepe and its own weights.

    Parameters
    ----------
    audio : ndarray of shape (n,)
    sample_rate, frame_rate : as for `measured`
    size : {"tiny", "full"}
        The full network takes some twenty times as long.

    Returns
    -------
    pitch : ndarray of shape (T,)
        MIDI numbers, in every frame: CREPE always says something.
    confidence : ndarray of shape (T,)
        In [0, 1]; usually believed from 0.5 on.
    """
    import torch
    import torchcrepe

    from musae_utils.models import compat  # noqa: F401  torchcrepe imports torchaudio

    n_frames = int(np.ceil(len(audio) * frame_rate / sample_rate - 1e-6))
    x = measure.validate(audio, sample_rate)
    hop = SAMPLE_RATE / frame_rate
    if hop != int(hop):
        raise ValueError(
            f"CREPE steps by whole samples of 16 kHz: {frame_rate} Hz is no such step."
        )
    hop = int(hop)
    padded = np.pad(x[hop // 2 :], (0, hop))  # its frame i is centred on sample i * hop
    hz, confidence = torchcrepe.predict(
        torch.from_numpy(padded)[None], SAMPLE_RATE, hop, 60.0, 1900.0, size,
        decoder=torchcrepe.decode.weighted_argmax, return_periodicity=True, batch_size=512,
        device="cpu",
    )  # fmt: skip
    pitch = 69 + 12 * np.log2(hz[0].numpy() / 440)
    return pitch[:n_frames], confidence[0].numpy()[:n_frames]


def agreement(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], within: float = 0.5, chroma: bool = False
) -> Interval:
    """Share of frames in which two pitch tracks agree, where both have a pitch.

    Parameters
    ----------
    a, b : sequences of arrays of shape (T,)
        MIDI numbers of each clip, NaN where there is none.
    within : float
        Semitones.
    chroma : bool
        Do octaves not matter?

    Returns
    -------
    Interval
        Over clips.

    Raises
    ------
    ValueError
        No clip has a frame in which both have a pitch.
    """
    shares = []
    for x, y in zip(a, b, strict=True):
        n = min(len(x), len(y))
        both = np.isfinite(x[:n]) & np.isfinite(y[:n])
        if both.any():
            apart = (x[:n] - y[:n])[both]
            apart = (apart + 6) % 12 - 6 if chroma else apart
            shares.append(float((np.abs(apart) <= within).mean()))
    if not shares:
        raise ValueError("In no clip do both tracks have a pitch at the same time: all unvoiced.")
    return stats.bootstrap(shares)


def measured(
    audio: np.ndarray, sample_rate: int = SAMPLE_RATE, frame_rate: float = 50.0
) -> dict[str, np.ndarray]:
    """Pitch, loudness and timbre of any sound, frame by frame.

    The pitch is that of a sieve of five harmonics, after SWIPE (Camacho and Harris, 2008), in one
    window of 128 ms. Of a melody alone it is mostly the written note (but organs with long pipes
    sound an octave below what is written), of several notes at once one of them, and mostly the
    lowest; how often it agrees with the truth and with CREPE is in `spaces.load`'s ``trackers``.
    Some 20 ms for 10 s of sound.

    Parameters
    ----------
    audio : ndarray of shape (n,)
        Mono; at least 0.25 s.
    sample_rate : int
        Hz; converted to 16 kHz.
    frame_rate : float
        Frames a second.

    Returns
    -------
    dict of ndarray of shape (T,), T = ⌈n · frame_rate / sample_rate⌉
        ``pitch``: MIDI number, 36 to 101 with parts of it, NaN where unvoiced. ``strength`` of that
        pitch, in [0, 1]. ``voiced``: bool. ``loudness``: dB, from -80. ``centroid``: log2 Hz of the
        spectral centroid, NaN in silence.

    Raises
    ------
    ValueError
        Not mono, too short, not finite; or frames that are not between 1 and 200 a second.

    Examples
    --------
    >>> t = np.arange(16_000) / 16_000
    >>> heard = measured(0.5 * np.sin(2 * np.pi * 440 * t), 16_000)
    >>> round(np.median(heard["pitch"])), round(np.median(heard["loudness"]))
    (69, -9)
    """
    if not 1 <= frame_rate <= 200:
        raise ValueError(f"frame_rate is {frame_rate}; it can be 1 to 200 frames a second.")
    n_frames = int(np.ceil(len(audio) * frame_rate / sample_rate - 1e-6))
    x = measure.validate(audio, sample_rate)
    short, mean_square = _spectrum(x, WINDOW, n_frames, frame_rate)
    loudness = 10 * np.log10(np.maximum(mean_square, 10 ** (FLOOR / 10)))
    sounding = loudness > SILENT
    hz = np.fft.rfftfreq(PADDED * WINDOW, 1 / SAMPLE_RATE)
    with np.errstate(divide="ignore", invalid="ignore"):
        centroid = np.log2((short * hz).sum(1) / short.sum(1))
    pitch, strength = _pitch(_spectrum(x, LONG_WINDOW, n_frames, frame_rate)[0])
    voiced = sounding & (strength >= STRENGTH)
    return {
        "pitch": np.where(voiced, pitch, np.nan),
        "strength": strength,
        "voiced": voiced,
        "loudness": loudness,
        "centroid": np.where(sounding, centroid, np.nan),
    }


def _spectrum(
    x: np.ndarray, window: int, n_frames: int, frame_rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes (T, window // 2 + 1) and mean squares (T,) of Hann windows around frames."""
    middle = ((np.arange(n_frames) + 0.5) * SAMPLE_RATE / frame_rate).astype(int)
    after = max(0, middle[-1] + window - window // 2 - len(x))
    padded = np.pad(x, (window // 2, after))
    hann = np.hanning(window + 1)[:-1].astype(np.float32)
    parts = np.lib.stride_tricks.sliding_window_view(padded, window)[middle] * hann
    mean_square = (parts.astype(np.float64) ** 2).sum(1) / (hann**2).sum()
    return np.abs(np.fft.rfft(parts, PADDED * window)).astype(np.float32), mean_square


def _pitch(spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MIDI number and strength of each row's best candidate."""
    below, share, sieve, candidates = _sieve()
    levels = spectra[:, below] * (1 - share) + spectra[:, below + 1] * share
    levels /= np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-9)
    match = levels @ sieve
    best, rows = match.argmax(1), np.arange(len(match))
    left, top, right = (match[rows, (best + i).clip(0, match.shape[1] - 1)] for i in (-1, 0, 1))
    # Where between candidates: the summit of a parabola through three of them.
    curve = np.where(left + right < 2 * top, left - 2 * top + right, -np.inf)
    aside = (0.5 * (left - right) / curve).clip(-0.5, 0.5)
    return candidates[best] + aside / STEPS, top.clip(0, 1)


@functools.cache
def _sieve() -> tuple[np.ndarray, ...]:
    """SWIPE's kernels: hills on a candidate's harmonics, valleys between them.

    Frequencies are spaced as the ear has them, ten to an equivalent rectangular bandwidth.
    """
    erb = np.arange(*(21.4 * np.log10(1 + f / 229) for f in (30, 7500)), 0.1)
    grid = 229 * (10 ** (erb / 21.4) - 1)
    place = grid * PADDED * LONG_WINDOW / SAMPLE_RATE
    below = place.astype(int)
    candidates = LOWEST + np.arange((PITCHES - 1) * STEPS + 1) / STEPS
    ratio = grid[:, None] / (440 * 2 ** ((candidates - 69) / 12))
    sieve = np.zeros_like(ratio)
    for i in range(1, HARMONICS + 1):
        away = np.abs(ratio - i)
        height = np.where(away < 0.25, 1.0, np.where(away < 0.75, 0.5, 0.0))
        height[:, ratio.max(0) < i + 0.75] = 0  # beyond what can be heard
        sieve += height * np.cos(2 * np.pi * ratio)
    sieve /= np.sqrt(grid)[:, None]
    sieve /= np.linalg.norm(np.maximum(sieve, 0), axis=0)
    return below, (place - below).astype(np.float32), sieve.astype(np.float32), candidates
