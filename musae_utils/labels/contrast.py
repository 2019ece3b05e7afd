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
from scipy.special import binom
from scipy.stats import mannwhitneyu
from scipy.stats import t as student

from musae_utils import stats
from musae_utils.labels.examples import Example, Half
from musae_utils.labels.label import Label, abstain
from musae_utils.music import concepts, measure
from musae_utils.music.clip import FRAME_RATE, PITCH_NAMES, SAMPLE_RATE, frame_loudness

ALPHA = 0.05
CLEAR = 0.5  # Cliff's delta below which a difference is not worth a name
SAID = 3  # differences that a sentence holds, at most

#: Not asked one by one: they would double the questions, and each has its pitch class.
SINGLE = ("sounding pitch", "melody pitch")

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
    """The planted concept that the feature follows best (notebook 08).

    Two questions about each concept: does it hold in a larger share of the active examples than of
    the silent ones; and, where examples carry their curves, is the feature higher in the frames in
    which it holds (AUC over all frames, compositions being the independent units)? What is clear is
    ranked by AUC, and all questions are corrected for together.

    Examples
    --------
    >>> Truth().label(chosen.finding).text  # doctest: +SKIP
    'family: flute'
    """

    name = "truth"

    def label(self, half: Half) -> Label:
        """See `Labeler`; music whose truth is not known makes it abstain."""
        if not half.all:
            return abstain(half, self.name, "There are no examples.")
        if any(example.truth is None for example in half.all):
            return abstain(half, self.name, "The truth about some of this music is not known.")
        table = pd.DataFrame([shares(example) for example in half.all])
        found = contrasts(table[half.fires], table[~half.fires])
        asked = pd.concat(
            [
                found[["p"]].assign(auc=(1 + found["delta"]) / 2, of="examples"),
                followed(half).assign(of="frames"),
            ]
        )
        asked = asked[[concepts.group(name) not in SINGLE for name in asked.index]].copy()
        asked["adjusted"] = stats.holm(asked["p"])
        asked = asked.sort_values("auc", ascending=False, kind="stable")
        clear = asked[(asked["adjusted"] < ALPHA) & (asked["auc"] >= (1 + CLEAR) / 2)]
        tried = f"after Holm for {len(asked)} questions"
        if clear.empty:
            said = "the examples differ in nothing that is asked"
            if len(asked):
                near = asked.iloc[0]
                said = f"nearest is {near.name!r}, of {near['of']}, with AUC {near['auc']:.2f}, "
                said += f"p = {near['adjusted']:.2g} {tried}"
            return abstain(half, self.name, f"No planted concept is clear: {said}.")
        best = clear.iloc[0]
        means = [table.loc[side, best.name].mean() for side in (half.fires, ~half.fires)]
        said = (
            f"Over {best['of']}, AUC {best['auc']:.2f} (p = {best['adjusted']:.2g} {tried}). It "
            f"holds in {means[0]:.0%} of the active examples and {means[1]:.0%} of the silent ones."
        )
        return Label(feature=half.feature, method=self.name, text=best.name, evidence=said)


def followed(half: Half) -> pd.DataFrame:
    """How well a feature's activation, frame by frame, tells where planted concepts hold.

    Returns
    -------
    DataFrame by concept
        ``auc``, and ``p`` (one-sided, from the AUC's standard error over compositions, and never
        below the chance that so few would all point this way). Empty where examples
        carry no curves; concepts that hold or fail in fewer than three compositions are left out.
    """
    empty = pd.DataFrame({"auc": [], "p": []}, dtype=float)
    if any(example.curve is None for example in half.all):
        return empty
    tracks = []
    for example in half.all:
        n = len(example.curve)
        rate = n / (example.end - example.start)
        first = round(example.start * rate)
        held = concepts.frame_concepts(example.truth, first + n, rate)
        tracks.append(pd.DataFrame({name: track[first:] for name, track in held.items()}))
    table = pd.concat(tracks, join="inner").astype(bool)
    group = np.repeat([example.group for example in half.all], [len(t) for t in tracks])
    holds, fails = (where.groupby(group).any() for where in (table, ~table))
    units = np.minimum(holds.sum(), fails.sum())
    table = table.loc[:, units >= 3]
    if table.empty:
        return empty
    scores = np.concatenate([example.curve for example in half.all])
    scores = np.repeat(scores[:, None], table.shape[1], 1)
    auc, influence = stats.grouped_auc(scores, table.to_numpy(), group)
    error = np.sqrt((influence**2).sum(0))
    units = units[table.columns].to_numpy()
    t = np.divide(auc - 0.5, error, out=np.zeros_like(auc), where=error > 0)
    p = np.where((error > 0) | (auc == 0.5), student.sf(t, units - 1), 0.0)
    both, always, never = (
        where.sum()[table.columns].to_numpy()
        for where in (holds & fails, holds & ~fails, ~holds & fails)
    )
    least = 0.5**both / binom(always + never, always)
    return pd.DataFrame({"auc": auc, "p": np.maximum(p, least)}, index=table.columns)


def shares(example: Example) -> dict[str, float]:
    """Share of an example in which each planted concept holds, in [0, 1]."""
    found = {name: float(holds) for name, holds in concepts.clip_concepts(example.truth).items()}
    first = round(example.start * FRAME_RATE)
    last = max(first + 1, round(example.end * FRAME_RATE))
    for name, track in concepts.frame_concepts(example.truth).items():
        part = track[first:last]
        found[name] = float(part.mean()) if len(part) else float("nan")
    return found


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


#: How a note, a chord or a key is spoken of.
WORDED = {"note": "the note {}", "chord": "{} chords", "key": "in {}"}


class Descriptors:
    """What is measurably different about the active examples, as a sentence (notebook 08).

    `DESCRIPTORS`, the share of each pitch class, and the fit to each of 24 triads and 24 keys, of
    which the clearest is named. Sounds that several features share are measured once.
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
            about = "pitches" if which else kind
            if (which and row["delta"] < 0) or about in kinds or len(kinds) == SAID:
                continue  # "not in D minor" is no name; of note, chord and key the clearest is one
            kinds.add(about)
            if which:
                words.append(WORDED[kind].format(which))
                numbers = f"fit {row['active']:.2f} against {row['silent']:.2f}"
            else:
                said_as = DESCRIPTORS[kind]
                words.append(said_as.more if row["delta"] > 0 else said_as.less)
                unit = f" {said_as.unit}" if said_as.unit else ""
                numbers = (
                    f"{row['active']:.{said_as.digits}f}{unit} against "
                    f"{row['silent']:.{said_as.digits}f}"
                )
            said.append(
                f"{question}: {numbers} (Cliff's delta {row['delta']:.2f}, d {row['d']:.1f})"
            )
        if not words:
            return abstain(half, self.name, f"No difference has a clear name: {_closest(asked)}.")
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


def _closest(asked: pd.DataFrame) -> str:
    if asked.empty:
        return "the examples differ in nothing that is measured"
    best = asked.iloc[0]
    return (
        f"the largest of {len(asked)} is {best.name!r} with Cliff's delta {best['delta']:.2f}, "
        f"p = {best['adjusted']:.2g} after Holm"
    )


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
        The names of `DESCRIPTORS`, ``"note: A"`` …, ``"chord: G major"`` … and ``"key:
        D minor"`` ….

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
    share = chroma.mean(1) / max(chroma.mean(1).sum(), 1e-9)
    found |= {f"note: {name}": float(s) for name, s in zip(PITCH_NAMES, share, strict=True)}
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
