"""Two methods that ask a fixed list of questions: what was planted, and what can be measured.

Both compare the active with the silent examples question by question, with Cliff's delta for the
size of the difference and an exact Mann-Whitney test, corrected by Holm for the number of questions
asked, and abstain where no answer survives.

`Truth` asks what the music was written with, so it works for composed music alone; there it is the
best label that one concept can give. `Descriptors` asks the sound, and so finds words for what no
tagger has in its vocabulary: "quieter", "slower", "in a lower register".

References
----------
Krumhansl and Kessler (1982), Tracing the dynamic changes in perceived tonal organization in a
spatial representation of musical keys, Psychological Review 89: the profiles of `keys`.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import librosa
import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from musae_utils import stats
from musae_utils.labels.examples import Example, Half
from musae_utils.labels.label import Label, abstain
from musae_utils.music import concepts, measure
from musae_utils.music.clip import FRAME_RATE, PITCH_NAMES, SAMPLE_RATE, frame_loudness

ALPHA = 0.05
CLEAR = 0.5  # Cliff's delta below which a difference is not worth a name
SAID = 3  # differences that a sentence holds, at most

# Krumhansl and Kessler's ratings of how well each degree fits a key, from the tonic upwards.
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
TRIADS = ((0, 4, 7), (0, 3, 7))  # semitones above the root, major and minor
KEYS = [f"{name} {mode}" for mode in ("major", "minor") for name in PITCH_NAMES]


def contrasts(active: pd.DataFrame, silent: pd.DataFrame) -> pd.DataFrame:
    """How active and silent examples differ, question by question, clearest first.

    Parameters
    ----------
    active, silent : DataFrame of shape (examples, questions)
        Answers, NaN where there is none. Questions that are not answered for three examples on
        either side, or answered the same everywhere, are not asked.

    Returns
    -------
    DataFrame by question
        ``active`` and ``silent`` (medians), ``delta`` (Cliff's, in [-1, 1]), ``d`` (Cohen's), ``p``
        (exact, two-sided; near it with ties, and not below it where it is small) and ``adjusted``
        (Holm's).
    """
    rows = {}
    for name in active.columns.intersection(silent.columns, sort=False):
        a, b = (side[name].dropna().to_numpy(float) for side in (active, silent))
        if min(len(a), len(b)) >= 3 and len(np.unique([*a, *b])) > 1:
            p = float(mannwhitneyu(a, b, method="exact").pvalue)
            rows[name] = (np.median(a), np.median(b), stats.cliffs_delta(a, b),
                          stats.cohens_d(a, b), min(p, 1.0), abs(a.mean() - b.mean()))  # fmt: skip
    columns = ["active", "silent", "delta", "d", "p", "gap"]
    table = pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("question")
    table["adjusted"] = stats.holm(table["p"])
    order = np.lexsort([-table["gap"], -table["d"].abs(), -table["delta"].abs()])
    return table.iloc[order].drop(columns="gap")


# -- what was planted ------------------------------------------------------------------------------


class Truth:
    """The planted concept that tells active from silent examples best (notebook 08).

    A concept of frames counts by the share of an example's frames in which it holds.

    Examples
    --------
    >>> Truth().label(chosen.finding).text  # doctest: +SKIP
    'family: flute'
    """

    name = "truth"

    def label(self, half: Half) -> Label:
        """See `Labeler`; music whose truth is not known makes it abstain."""
        if any(example.truth is None for example in half.all):
            return abstain(half, self.name, "The truth about some of this music is not known.")
        table = pd.DataFrame([shares(example) for example in half.all])
        asked = contrasts(table[half.fires], table[~half.fires])
        clear = asked[(asked["adjusted"] < ALPHA) & (asked["delta"] >= CLEAR)]
        if clear.empty:
            return abstain(half, self.name, f"No planted concept is clear: {_closest(asked)}.")
        best = clear.iloc[0]
        means = [table.loc[side, best.name].mean() for side in (half.fires, ~half.fires)]
        said = (
            f"Holds in {means[0]:.0%} of the active examples and {means[1]:.0%} of the silent ones "
            f"(Cliff's delta {best['delta']:.2f}, p = {best['adjusted']:.2g} after Holm for "
            f"{len(asked)} concepts)."
        )
        return Label(feature=half.feature, method=self.name, text=best.name, evidence=said)


def shares(example: Example) -> dict[str, float]:
    """Share of an example in which each planted concept holds, in [0, 1]."""
    found = {name: float(holds) for name, holds in concepts.clip_concepts(example.truth).items()}
    first = round(example.start * FRAME_RATE)
    last = max(first + 1, round(example.end * FRAME_RATE))
    for name, track in concepts.frame_concepts(example.truth).items():
        part = track[first:last]
        found[name] = float(part.mean()) if len(part) else float("nan")
    return found


def _closest(asked: pd.DataFrame) -> str:
    if asked.empty:
        return "the examples differ in nothing that is asked"
    best = asked.iloc[0]
    return (
        f"the nearest of {len(asked)} is {best.name!r} with Cliff's delta {best['delta']:.2f}, "
        f"p = {best['adjusted']:.2g} after Holm"
    )


# -- what can be measured --------------------------------------------------------------------------


class Descriptor(NamedTuple):
    """How a number is spoken of: unit, and what more and less of it are called."""

    unit: str
    more: str
    less: str
    digits: int = 0


DESCRIPTORS = {
    "loudness": Descriptor("LUFS", "louder", "quieter"),
    "dynamic spread": Descriptor("dB", "more changing in loudness", "steadier in loudness", 1),
    "tempo": Descriptor("BPM", "faster", "slower"),
    "onset density": Descriptor("a second", "denser in onsets", "sparser in onsets", 1),
    "brightness": Descriptor("Hz", "brighter", "darker"),
    "noisiness": Descriptor("", "noisier", "more tonal", 3),
    "sustained share": Descriptor("", "more sustained", "more percussive", 2),
    "register": Descriptor("MIDI", "higher in register", "lower in register"),
    "pitch range": Descriptor("semitones", "wider in pitch", "narrower in pitch", 1),
    "bass share": Descriptor("", "heavier in the bass", "lighter in the bass", 2),
    "mode": Descriptor("", "more major", "more minor", 2),
}


class Descriptors:
    """What is measurably different about the active examples, as a sentence (notebook 08).

    `DESCRIPTORS`, and the fit to each of 24 keys and 24 triads. Sounds that several features share
    are measured once.
    """

    name = "descriptors"

    def __init__(self) -> None:
        self._known: dict[str, dict[str, float]] = {}

    def label(self, half: Half) -> Label:
        """See `Labeler`."""
        asked = self.contrasts(half)
        clear = asked[(asked["adjusted"] < ALPHA) & (asked["delta"].abs() >= CLEAR)]
        kinds, words, said = set(), [], []
        for question, row in clear.iterrows():
            kind, _, which = question.partition(": ")
            if (which and row["delta"] < 0) or kind in kinds or len(kinds) == SAID:
                continue  # "not in D minor" is no name; one key and one chord are enough
            kinds.add(kind)
            if which:
                words.append(f"in {which}" if kind == "key" else f"{which} chords")
                numbers = f"fit {row['active']:.2f} against {row['silent']:.2f}"
            else:
                about = DESCRIPTORS[kind]
                words.append(about.more if row["delta"] > 0 else about.less)
                unit = f" {about.unit}" if about.unit else ""
                numbers = (
                    f"{row['active']:.{about.digits}f}{unit} against "
                    f"{row['silent']:.{about.digits}f}"
                )
            said.append(
                f"{question}: {numbers} (Cliff's delta {row['delta']:.2f}, d {row['d']:.1f})"
            )
        if not words:
            return abstain(half, self.name, f"No descriptor differs clearly: {_closest(asked)}.")
        evidence = f"Medians, each p < {ALPHA} after Holm for {len(asked)} descriptors. "
        return Label(
            feature=half.feature, method=self.name, text=", ".join(words),
            evidence=evidence + "; ".join(said) + ".",
        )  # fmt: skip

    def contrasts(self, half: Half) -> pd.DataFrame:
        """All descriptors, clear or not; see `contrasts`."""
        table = pd.DataFrame([self._described(example) for example in half.all])
        return contrasts(table[half.fires], table[~half.fires])

    def _described(self, example: Example) -> dict[str, float]:
        audio = np.ascontiguousarray(example.audio)
        digest = hashlib.sha256(audio.tobytes() + bytes(str(example.sample_rate), "ascii"))
        key = digest.hexdigest()
        if key not in self._known:
            self._known[key] = describe(audio, example.sample_rate)
        return self._known[key]


def describe(audio: np.ndarray, sample_rate: int = SAMPLE_RATE) -> dict[str, float]:
    """All descriptors of one sound; NaN for what silence or too short a sound does not tell.

    Parameters
    ----------
    audio : ndarray of shape (n,)
        Mono, at least 0.4 s.
    sample_rate : int
        Hz.

    Returns
    -------
    dict of str to float
        The names of `DESCRIPTORS`, ``"key: D minor"`` … and ``"chord: G major"`` ….

    Raises
    ------
    ValueError
        As `measure.loudness`.
    """
    x = measure.validate(audio, sample_rate)
    loudness = measure.loudness(x)
    if not np.isfinite(loudness):  # silence has no other property
        return {"loudness": measure.FLOOR_DB}
    level = frame_loudness(x, SAMPLE_RATE, max(1, len(x) * FRAME_RATE // SAMPLE_RATE))
    level = level[level > measure.FLOOR_DB]
    spectrum = np.abs(librosa.stft(x, n_fft=1024, hop_length=measure.HOP))
    centroid = librosa.feature.spectral_centroid(S=spectrum, sr=SAMPLE_RATE)[0]
    flatness = librosa.feature.spectral_flatness(S=spectrum)[0]
    power = (spectrum**2).sum(0)
    bands = measure.band_energy(x)
    track = measure.strongest_pitch(x)
    pitch = track.pitch[track.loud]
    low, middle, high = np.percentile(pitch, (10, 50, 90)) if len(pitch) else [np.nan] * 3
    chroma = measure.chroma(x)
    key = keys(chroma.mean(1))
    found = {
        "loudness": loudness,
        "dynamic spread": float(np.std(level)) if len(level) else np.nan,
        "tempo": measure.tempo(x),
        "onset density": measure.onset_rate(x),
        "brightness": float((centroid * power).sum() / power.sum()),
        "noisiness": float(flatness[power > power.max() / 1000].mean()),
        "sustained share": measure.harmonic_fraction(x),
        "register": float(middle),
        "pitch range": float(high - low),
        "bass share": float(bands[:2].sum() / bands.sum()) if bands.sum() else np.nan,
        "mode": float(key[:12].max() - key[12:].max()),
    }
    found |= {f"key: {name}": float(fit) for name, fit in zip(KEYS, key, strict=True)}
    found |= {f"chord: {name}": float(s) for name, s in zip(KEYS, _triads(chroma), strict=True)}
    return found


def keys(profile: np.ndarray) -> np.ndarray:
    """How well pitch classes fit each key: Pearson's r with Krumhansl and Kessler's profiles.

    Parameters
    ----------
    profile : ndarray of shape (12,)
        Energy of each pitch class, C first.

    Returns
    -------
    ndarray of shape (24,)
        In the order of `KEYS`; NaN if all pitch classes are equal.

    Examples
    --------
    >>> KEYS[keys(np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1.0])).argmax()]
    'C major'
    """
    if np.ptp(profile) < 1e-9:
        return np.full(24, np.nan)
    rows = [np.roll(kind, tonic) for kind in (MAJOR, MINOR) for tonic in range(12)]
    return np.corrcoef(np.vstack([profile, rows]))[0, 1:]


def _triads(chroma: np.ndarray) -> np.ndarray:
    """Share of frames (12, T) that are most like each of the 24 triads, (24,)."""
    rows = np.zeros((24, 12))
    for i, (kind, root) in enumerate((k, r) for k in TRIADS for r in range(12)):
        rows[i, [(root + step) % 12 for step in kind]] = 1
    best = (rows @ chroma).argmax(0)
    return np.bincount(best, minlength=24) / len(best)
