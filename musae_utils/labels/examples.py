"""A feature's examples: where it is active, where it is not, a half to find on, a half to score on.

Conventions
-----------
- An example is a whole clip, or a window of it for features that follow what passes quickly. Its
  *activation* is the feature's mean over its frames.
- Compositions, with whatever sounds nearly the same (`FeatureAtlas`'s kin), are split once, for all
  features alike, into a finding and a scoring half. In each half a composition gives one example.
- *Silent* examples have at most a tenth of the activation of the active ones. Each is matched to an
  active one in length and in where in the clip it lies, and in nothing that a label may speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from musae_utils.music.clip import Clip, Truth

if TYPE_CHECKING:
    from musae_utils.activations import ActivationStore
    from musae_utils.features import FeatureAtlas

QUIET = 0.1  # of the active examples' median activation, up to which an example is silent
LEAST = 3  # active and silent examples in each half


@dataclass(frozen=True, eq=False)
class Example:
    """A clip, or a window of one.

    Attributes
    ----------
    clip : int
        Its number in the store.
    name, group : str
        The clip's name and composition.
    start, end : float
        Seconds within the clip.
    activation : float
        The feature's mean over the frames.
    audio : float32 array of shape (n,)
        Mono, from `start` to `end`.
    sample_rate : int
        Hz.
    truth : Truth or None
        Of the whole clip.
    curve : float array of shape (frames,), or None
        The feature's activation in each frame, where codes were given.
    """

    clip: int
    name: str
    group: str
    start: float
    end: float
    activation: float
    audio: np.ndarray = field(repr=False)
    sample_rate: int
    truth: Truth | None = field(repr=False, default=None)
    curve: np.ndarray | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Half:
    """All that a method may see of a feature (or all that it is scored on).

    Attributes
    ----------
    feature : int
    active, silent : list of Example
        As many of each, each of another composition.
    """

    feature: int
    active: list[Example]
    silent: list[Example]

    @property
    def all(self) -> list[Example]:
        """The active ones, then the silent ones."""
        return [*self.active, *self.silent]

    @property
    def fires(self) -> np.ndarray:
        """Which of `all` are active: bool (n,)."""
        return np.arange(len(self.active) + len(self.silent)) < len(self.active)


@dataclass(frozen=True)
class Examples:
    """Both halves of a feature's examples.

    Attributes
    ----------
    feature : int
    finding, scoring : Half
        Of different compositions; empty if there is a problem.
    rate : float
        Share of frames in which the feature fires.
    problem : str
        Why it cannot be named or scored, "" if it can.
    """

    feature: int
    finding: Half
    scoring: Half
    rate: float
    problem: str = ""


def choose_examples(
    atlas: FeatureAtlas,
    feature: int,
    sound: Callable[[int], Any],
    n: int = 10,
    seconds: float | None = None,
    codes: sparse.sparray | None = None,
    store: ActivationStore | None = None,
    seed: int = 0,
) -> Examples:
    """Choose a feature's examples.

    Parameters
    ----------
    atlas : FeatureAtlas
    feature : int
    sound : callable
        From a clip's number to a Clip or to (audio, sample rate): `features.sounds`, which is worth
        wrapping in `functools.cache` when many features share the clips.
    n : int
        Active and silent examples wanted in each half; fewer where the music has no more. With
        fewer than about 8 no method that corrects for its many questions can be sure of anything,
        and 20 are better: they take about 100 pieces of music.
    seconds : float, optional
        Length of windows; by default an example is a whole clip.
    codes : sparse array of shape (rows, features), optional
        What `features.encode` gave; needed for windows, and for what `Truth` says of frames.
    store : ActivationStore, optional
        Where truth comes from, if `sound` gives none.
    seed : int
        Decides the halves (give all features the same), and among equals.

    Returns
    -------
    Examples
        With a `problem` for a feature that never fires, is never quiet, or does so in too few
        compositions.

    Raises
    ------
    ValueError
        There is no such feature, `n` is too small, or windows are wanted without codes.
    """
    if not 0 <= feature < len(atlas):
        raise ValueError(f"There is no feature {feature}: they go from 0 to {len(atlas) - 1:,}.")
    if n < LEAST:
        raise ValueError(f"At least {LEAST} examples of each kind are needed; n is {n}.")
    clip, start, length, score = _units(atlas, feature, seconds, codes)
    column = None if codes is None else codes[:, [feature]].toarray().ravel()
    first = np.cumsum([0, *(c["frames"] for c in atlas.clips)])
    rng = np.random.default_rng(seed)
    kin = np.array([c["kin"] for c in atlas.clips])
    order = rng.permutation(np.unique(kin))
    found_on = np.isin(kin, order[: (len(order) + 1) // 2])[clip]
    kin = kin[clip]
    firing = len(np.unique(kin[score > 0]))
    rate = float(atlas.density[feature])

    def problem(said: str) -> Examples:
        empty = Half(feature, [], [])
        return Examples(feature, empty, empty, rate, f"Feature {feature} {said}.")

    of = f"of the {len(order)} compositions of this music"
    if not firing:
        return problem(f"never fires: it is silent in all {of}")
    if firing == 1:
        return problem(f"fires in one {of}: nothing can be found in one half and scored in another")
    halves = [_choose(half, kin, score, start, length, n, rng) for half in (found_on, ~found_on)]
    if min(len(active) for active, _ in halves) < LEAST:
        return problem(f"fires in {firing} {of}: fewer than {LEAST} fall into one of the halves")
    if min(len(silent) for _, silent in halves) < LEAST:
        return problem(
            f"is hardly ever quiet: it fires in {firing} {of}, and fewer than {LEAST} without it "
            "fall into one of the halves"
        )

    def example(unit: int) -> Example:
        about, rate = atlas.clips[clip[unit]], atlas.frame_rate
        begin, end = start[unit] / rate, (start[unit] + length[unit]) / rate
        audio, sample_rate, truth = _heard(sound, int(clip[unit]), store)
        whole = seconds is None
        part = audio if whole else audio[round(begin * sample_rate) : round(end * sample_rate)]
        at = first[clip[unit]] + start[unit]
        return Example(
            int(clip[unit]), about["name"], about["group"], float(begin), float(end),
            float(score[unit]), part, sample_rate, truth,
            None if column is None else column[at : at + length[unit]],
        )  # fmt: skip

    made = [
        Half(feature, *(list(map(example, side)) for side in (active[: len(silent)], silent)))
        for active, silent in halves
    ]
    return Examples(feature, *made, rate)


def of_sounds(sounds: Iterable[np.ndarray], sample_rate: int) -> list[Example]:
    """Plain sounds of shape (n,) as taggers and judges take them: whole, and no feature's."""
    return [
        Example(i, f"row {i}", f"row {i}", 0.0, len(sound) / sample_rate, 0.0, sound, sample_rate)
        for i, sound in enumerate(sounds)
    ]


def shuffled(examples: Examples, seed: int = 0) -> Examples:
    """The same examples with nothing to find: a coin decides which of each pair counts as active.

    Each also gets the curve of another, or frames would still tell. How often a method names or a
    judge confirms such a feature is its rate of false alarms.
    """
    rng = np.random.default_rng([seed, examples.feature])

    def exchanged(sounds: list[Example]) -> list[Example]:
        curves = [sound.curve for sound in sounds]
        order = rng.permutation(len(sounds))
        return [replace(sound, curve=curves[i]) for sound, i in zip(sounds, order, strict=True)]

    def mixed(half: Half) -> Half:
        coin = rng.random(len(half.active)) < 0.5
        pairs = [
            pair[::-1] if turned else pair
            for pair, turned in zip(zip(half.active, half.silent, strict=True), coin, strict=True)
        ]
        sounds = exchanged([a for a, _ in pairs] + [s for _, s in pairs])
        return Half(half.feature, sounds[: len(pairs)], sounds[len(pairs) :])

    return replace(examples, finding=mixed(examples.finding), scoring=mixed(examples.scoring))


def _units(atlas, feature, seconds, codes):
    """All that can be an example: clip, first frame, frames and mean activation of each."""
    frames = np.array([clip["frames"] for clip in atlas.clips])
    if seconds is None:
        n = len(frames)
        return np.arange(n), np.zeros(n, int), frames, atlas.track_mean[:, feature]
    size = round(seconds * atlas.frame_rate)
    if codes is None or codes.shape[0] != frames.sum() or size < 1:
        raise ValueError(
            f"Windows of {seconds} s need the activations in every frame: give a positive length "
            f"and codes of {frames.sum():,} rows (features.encode of the atlas's store)."
        )
    column = codes[:, [feature]].toarray().ravel()
    count = np.maximum(frames // size, 1)
    clip = np.repeat(np.arange(len(frames)), count)
    place = np.arange(len(clip)) - np.repeat(np.cumsum(count) - count, count)
    start, length = place * size, np.minimum(size, frames[clip])
    total = np.concatenate([[0.0], np.cumsum(column, dtype=float)])
    first = np.repeat(np.cumsum(frames) - frames, count) + start
    return clip, start, length, (total[first + length] - total[first]).clip(min=0) / length


def _choose(half, kin, score, start, length, n, rng):
    """Units of one half: the strongest of the `n` strongest compositions, and silent matches."""
    mine = rng.permutation(np.flatnonzero(half))
    order = mine[np.argsort(-score[mine], kind="stable")]
    best = order[np.sort(np.unique(kin[order], return_index=True)[1])]
    active = best[score[best] > 0][:n]
    if not len(active):
        return active, active
    quiet = score[mine] <= QUIET * np.median(score[active])
    active = active[score[active] > QUIET * np.median(score[active])]
    left = mine[quiet & ~np.isin(kin[mine], kin[active])]
    silent = []
    for unit in active:
        if len(left):
            unlike = np.abs(start[left] - start[unit]) + np.abs(length[left] - length[unit])
            silent.append(left[unlike.argmin()])
            left = left[kin[left] != kin[silent[-1]]]
    return active, np.array(silent, int)


def _heard(sound, clip, store):
    found = sound(clip)
    if isinstance(found, Clip):
        return np.asarray(found.audio, np.float32), found.sample_rate, found.truth
    audio, sample_rate = found
    audio = np.asarray(audio, np.float32)
    audio = audio.mean(0) if audio.ndim == 2 else audio
    return audio, int(sample_rate), None if store is None else store.clips[clip].truth
