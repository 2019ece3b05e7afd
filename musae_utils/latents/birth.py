"""How a sound is born: when a model settles what will be heard (notebook 14).

Of music that a diffusion model makes in steps, two questions are asked about each attribute:

- **settled**: from which step on can it be *read* from what there is, and does it stay? (`course`;
  Paek et al., arXiv 2510.23802, ask this of the noisy state.)
- **decided**: from which step on can it not be *changed* any more by asking for something else?
  Two prompts that differ in everything, one seed; the second is heard from step t on (`swapped`).

A language model makes music moment by moment, and settles it by codebook and by layer: codebooks of
another piece (`mixed_codebooks`), the prompt of another from a layer on (`prompts_by_layer`), the
memory of another beginning at a layer (`memories_by_layer`).

**Attributes**, `hear` measures them all:

=========  =============  ==========================================================================
pitch      semitones      strongest pitch of each frame
loudness   dB             level of each frame, not below -60
timbre     octaves        spectral centroid of each frame
onsets     a second       of the whole piece
tonic      share          of 12, by the nano tagger; distances are total variation
family     share          of 8 lead instruments, by the nano tagger
drums      share          with or without, by the nano tagger
=========  =============  ==========================================================================

**One measure for all swaps.** A result y of own piece a and donor b is pulled towards b by how much
nearer it is to b than to strangers, pieces whose prompts and seeds had no part in it:
``pull(y) = d(y, strangers) - d(y, b)``. Its *share* is ``(pull(y) - pull(a)) / (pull(b) -
pull(a))``, sums over units: 0 for a, 1 for b, and 0 as well for a piece that is only something else
(`left` says how far it went from a, wherever to). The null is the share of one of the strangers. An
attribute is decided where a falling curve through the shares passes one half.

``make latents`` computes everything; ``data/latents/birth.json`` keeps it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.isotonic import isotonic_regression
from tqdm import tqdm

from musae_utils import models, music, runs, stats, trace
from musae_utils.labels.examples import of_sounds
from musae_utils.labels.taggers import checked
from musae_utils.latents import attributes
from musae_utils.latents.flow import STEPS, Birth, Flow, load_flow
from musae_utils.latents.model import LatentModel
from musae_utils.models import MusicModel
from musae_utils.music import measure
from musae_utils.music.clip import FAMILIES, MODES, PITCH_NAMES, Clip
from musae_utils.music.compose import TEMPI
from musae_utils.music.concepts import group
from musae_utils.stats import Interval

TABLE = Path(__file__).resolve().parents[2] / "data" / "latents" / "birth.json"
#: Attributes and the units of their distances.
UNITS = {"pitch": "semitones", "loudness": "dB", "timbre": "octaves", "onsets": "onsets a second",
         "tonic": "share", "family": "share", "drums": "share"}  # fmt: skip
FRAMES = ("pitch", "loudness", "timbre")  # measured frame by frame
TAGS = ("tonic", "family", "drums")
RATE = 25.0  # frames a second in which attributes are read, as many as the VAE has
QUIET = -60.0  # dB; what lies below is one silence
#: Settled: the error is this share of the distance to a stranger, or s within this of 1.
TOLERANCE = 0.1
SMALL = 0.1  # of the median way; births that move less have no s worth the name
CLIPS, SEED = 64, 61_000  # composed training music that directions are found on

Heard = dict[str, np.ndarray]


# -- asking ----------------------------------------------------------------------------------------


def prompt_pairs(n: int, seed: int = 0) -> pd.DataFrame:
    """Pairs of prompts that differ in everything they ask for.

    Returns
    -------
    DataFrame of n lines
        ``a`` and ``b``, the prompts; ``tonic_a``, ``family_a``, ``drums_a``, ``dynamics_a``,
        ``register_a``, ``tempo_a``, what they ask for, and the same of b.
    """
    rng, lines = np.random.default_rng([seed, 14]), []
    slow, fast = [t for t in TEMPI if t < 84], [t for t in TEMPI if t > 120]
    for _ in range(n):
        tonic, mode, family = (int(rng.integers(k)) for k in (12, 2, len(FAMILIES)))
        flip = rng.integers(2, size=4).astype(bool)
        line = {}
        for who in "ab":
            asked = {
                "tonic": tonic, "mode": mode, "family": family, "drums": bool(flip[0]),
                "dynamics": "loud" if flip[1] else "soft",
                "register": "high" if flip[2] else "low",
                "tempo": int(rng.choice(fast if flip[3] else slow)),
            }  # fmt: skip
            line[who] = (
                f"a piece for {FAMILIES[family]}, in {PITCH_NAMES[tonic]} {MODES[mode]}, "
                f"{'fast' if flip[3] else 'slow'} {asked['tempo']} bpm, "
                f"{'with' if flip[0] else 'without'} drums, {asked['dynamics']}, "
                f"{asked['register']} register"
            )
            line |= {f"{name}_{who}": value for name, value in asked.items()}
            tonic = (tonic + int(rng.integers(1, 12))) % 12
            family = (family + int(rng.integers(1, len(FAMILIES)))) % len(FAMILIES)
            mode, flip = 1 - mode, ~flip
        lines.append(line)
    return pd.DataFrame(lines)


# -- hearing ---------------------------------------------------------------------------------------


def hear(audio: np.ndarray, sample_rate: int, only: Sequence[str] = tuple(UNITS)) -> Heard:
    """All attributes of B sounds.

    Parameters
    ----------
    audio : array of shape (B, n)
    sample_rate : int
        Hz.
    only : sequence of str
        Of `UNITS`.

    Returns
    -------
    dict of name to array of shape (B, m)
        m frames at `RATE`, or values of the whole; NaN where a frame has none (no pitch).
    """
    unknown = set(only) - set(UNITS)
    if unknown:
        raise ValueError(f"There is no attribute {min(unknown)!r}; there are {', '.join(UNITS)}.")
    audio = np.atleast_2d(np.asarray(audio, np.float32))
    found: Heard = {}
    if any(name in FRAMES for name in only):
        tracks = [attributes.measured(sound, sample_rate, RATE) for sound in audio]
        found |= {
            "pitch": np.array([t["pitch"] for t in tracks]),
            "loudness": np.array([t["loudness"] for t in tracks]).clip(QUIET),
            "timbre": np.array([t["centroid"] for t in tracks]),
        }
    if "onsets" in only:
        found["onsets"] = np.array([[measure.onset_rate(x, sample_rate)] for x in audio])
    if any(name in TAGS for name in only):
        from musae_utils.labels.ears import TAGGED, nano_tagger

        shares = checked(nano_tagger(), of_sounds(audio, sample_rate))
        kinds = np.array([group(concept) for concept in TAGGED])
        found |= {name: shares[:, kinds == name] for name in TAGS}
    return {name: found[name] for name in only}


def distance(name: str, heard: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """How far sounds are from others in one attribute, row by row.

    Parameters
    ----------
    name : str
        Of `UNITS`.
    heard, goal : arrays of shape (B, m)
        Compared where `goal` has a value; where `heard` has none, it is taken for the median of all
        goals, which is what one would guess of a sound without a pitch.

    Returns
    -------
    array of shape (B,)
        In the attribute's unit; NaN for a goal without any value.
    """
    if heard.shape != goal.shape:
        raise ValueError(f"Sounds of shape {heard.shape} and {goal.shape} cannot be compared.")
    known = np.isfinite(goal)
    middle = np.median(goal[known]) if known.any() else np.nan
    gap = np.where(known, np.abs(np.where(np.isfinite(heard), heard, middle) - goal), 0)
    if name in TAGS:
        return gap.sum(1) / 2
    return np.where(known.any(1), gap.sum(1) / known.sum(1).clip(1), np.nan)


def overall(name: str, heard: np.ndarray, middle: float | None = None) -> np.ndarray:
    """An attribute of whole pieces: means over frames (B, 1), else as it was.

    Pieces in which no frame has a value get `middle`.
    """
    if name not in FRAMES:
        return heard
    known = np.isfinite(heard)
    mean = np.where(known, heard, 0).sum(1) / known.sum(1).clip(1)
    return np.where(known.any(1), mean, np.nan if middle is None else middle)[:, None]


# -- settling: what can be read, and when ----------------------------------------------------------


def watched(steps: int, every: int = 2) -> tuple[list[int], list[int]]:
    """Steps whose states, and whose predictions, are heard: every other one, and the last."""
    states = sorted({*range(0, steps + 1, every), steps})
    return states, sorted({*range(0, steps, every), steps - 1})


def course(flow: Flow, birth: Birth, every: int = 2, progress: Callable = iter) -> dict:
    """How far each state and each prediction of births is from the result.

    Parameters
    ----------
    flow : Flow
    birth : Birth
        Of B rows, two at least: others' results say how far apart births are.
    every : int
        Steps from one listening to the next.
    progress : callable
        Wraps the loop.

    Returns
    -------
    dict
        ``"state"`` and ``"prediction"``: dicts of ``at`` (steps), and by attribute of ``error``
        (distance to the result, (steps, B)) and ``moved`` (|p_t - p_0|, of whole pieces).
        ``"stranger"``, by attribute: mean distance between a result and the others, (B,);
        ``"average"``: distance of the births' median to each result.
    """
    if birth.states.shape[1] < 2:
        raise ValueError("How far apart births are takes two of them at least; there is one.")
    steps, rate = len(birth.states) - 1, flow.vae.sample_rate
    result = hear(flow.vae.decode(birth.states[-1]), rate)
    places = dict(zip(("state", "prediction"), watched(steps, every), strict=True))
    out: dict[str, Any] = {
        kind: {"at": at, "error": {name: [] for name in UNITS}, "moved": {n: [] for n in UNITS}}
        for kind, at in places.items()
    }
    first: Heard = {}
    middles = {name: float(np.nanmedian(result[name])) for name in FRAMES}
    for kind, t in progress([(kind, t) for kind, at in places.items() for t in at]):
        x = birth.states[t] if kind == "state" else birth.predictions[t]
        heard = hear(flow.vae.decode(x), rate)
        for name in UNITS:
            whole = overall(name, heard[name], middles.get(name))
            if t == 0:
                first[name] = whole
            out[kind]["error"][name].append(distance(name, heard[name], result[name]))
            out[kind]["moved"][name].append(_apart(name, whole, first[name]))
    others = [np.roll(np.arange(len(result["tonic"])), k) for k in range(1, len(result["tonic"]))]
    for name in UNITS:
        goal = result[name]
        apart = [distance(name, goal[other], goal) for other in others]
        out.setdefault("stranger", {})[name] = np.mean(apart, 0)
        typical = np.nanmedian(goal, 0, keepdims=True) if name not in FRAMES else middles[name]
        out.setdefault("average", {})[name] = distance(name, 0 * goal + typical, goal)
    return out


def _apart(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).sum(1) / (2 if name in TAGS else 1)


def joined(parts: Sequence[dict]) -> dict:
    """Courses, or swaps, of several batches as one: units one after the other."""
    if isinstance(parts[0], dict):
        return {key: joined([part[key] for part in parts]) for key in parts[0]}
    arrays = [np.asarray(part) for part in parts]
    same = arrays[0].ndim == 1 and np.issubdtype(arrays[0].dtype, np.integer)  # the steps
    return arrays[0].tolist() if same else np.concatenate(arrays, -1)


def settling(at: Sequence[int], deviation: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """The step from which a curve stays within a tolerance, in between steps by a straight line.

    Parameters
    ----------
    at : sequence of S steps
    deviation : array of shape (S,)
        0 is where it will end.
    tolerance : float

    Returns
    -------
    float
        The last of `at` if it is outside to the end.

    Examples
    --------
    >>> settling([0, 2, 4, 6], [1.0, 0.3, 0.1, 0.0], tolerance=0.2)
    3.0
    """
    d = np.abs(np.asarray(deviation, float))
    outside = np.flatnonzero(~(d <= tolerance))  # NaN is outside
    if not len(outside):
        return float(at[0])
    last = outside[-1]
    if last == len(d) - 1:
        return float(at[-1])
    part = (d[last] - tolerance) / (d[last] - d[last + 1]) if np.isfinite(d[last]) else 1.0
    return float(at[last] + part * (at[last + 1] - at[last]))


def errors(kept: dict, kind: str, name: str) -> np.ndarray:
    """Errors over the distance to a stranger, pooled over births: (steps,); 1 knows nothing."""
    far = np.nansum(kept["stranger"][name])
    alike = far < 1e-3 * len(kept["stranger"][name])  # then there is nothing to know
    return np.nansum(kept[kind]["error"][name], 1) / (np.nan if alike else far)


def ways(kept: dict, kind: str, name: str) -> tuple[np.ndarray, int]:
    """S2's s of each birth, (steps, births), and how many are left out.

    ``|p_t - p_0| / |p_T - p_0|`` of whole pieces. A birth that ends where it began divides by
    almost nothing: those whose way is less than `SMALL` of the median way are left out.
    """
    moved = np.asarray(kept[kind]["moved"][name])
    way = moved[-1]
    good = np.isfinite(moved).all(0) & (way > SMALL * np.nanmedian(way)) & (way > 0)
    return moved[:, good] / way[good], int((~good).sum())


def settled(kept: dict, kind: str, name: str, by: str = "error") -> Interval:
    """The step from which an attribute can be read and stays, with its interval over births.

    Parameters
    ----------
    kept : dict
        Of `course`.
    kind : {"state", "prediction"}
    name : str
        Of `UNITS`.
    by : {"error", "s"}
        Errors below a tenth of the distance to a stranger; or S2's s, the median over births,
        within a tenth of 1.
    """
    at = kept[kind]["at"]
    if by == "s":
        s, _ = ways(kept, kind, name)
        if s.shape[1] < 2:
            raise ValueError(f"{name} moves in fewer than two births: s has nothing to divide by.")
        return _over_units(s.shape[1], lambda i: settling(at, np.median(s[:, i], 1) - 1))
    error, far = (np.asarray(x) for x in (kept[kind]["error"][name], kept["stranger"][name]))
    units = np.flatnonzero(np.isfinite(error).all(0) & np.isfinite(far))
    error, far = error[:, units], far[units]
    apart = lambda i: max(far[i].sum(), 1e-9)  # noqa: E731
    return _over_units(len(units), lambda i: settling(at, error[:, i].sum(1) / apart(i)))


def _over_units(n: int, statistic: Callable[[np.ndarray], float]) -> Interval:
    return stats.bootstrap(np.arange(n), lambda i: statistic(i.astype(int)), n=1000)


# -- deciding: what can be changed, and until when -------------------------------------------------


def swapped(
    flow: Flow,
    a: Sequence[str],
    b: Sequence[str],
    seeds: Sequence[int],
    at: Sequence[int],
    seconds: float = 3.0,
    steps: int = STEPS,
    progress: Callable = iter,
) -> tuple[Birth, dict[int, np.ndarray]]:
    """Births under prompts a, and their results where prompts b are heard from step t on.

    Each swap is taken up from the state before its step: what came before is shared.

    Returns
    -------
    birth : Birth
        Under a alone.
    results : dict of step to latents (B, T, d)
        0 is b alone, `steps` is a alone.
    """
    birth = flow.draw(a, seconds, seeds, steps)
    results = {steps: birth.states[-1]}
    for t in progress(sorted({0, *at})):
        results[t] = flow.draw(b, seconds, seeds, steps, begin=(t, birth.states[t])).states[-1]
    return birth, dict(sorted(results.items()))


def between(results: dict[int, Heard], own: Heard, donor: Heard) -> dict:
    """Distances of results from their own, their donor's and strangers, by attribute.

    Parameters
    ----------
    results : dict of place to Heard
        Of B rows, two at least. Among the places are those of `own` and of `donor` themselves.
    own, donor : Heard
        Strangers are the other rows' donors.

    Returns
    -------
    dict
        ``at``, the places, and by attribute ``own``, ``donor``, ``stranger`` (the next row's donor)
        and ``strangers`` (mean over all of them): arrays of shape (places, B).
    """
    n = len(next(iter(own.values())))
    if n < 2:
        raise ValueError("A stranger is the donor of another row, and there is one row only.")
    out: dict[str, Any] = {"at": list(results)}
    for name in own:
        far = np.array(
            [[distance(name, y[name], np.roll(donor[name], -k, 0)) for y in results.values()]
             for k in range(n)]
        )  # fmt: skip
        away = np.isfinite(far[1:])
        mean = np.where(away, far[1:], 0).sum(0) / away.sum(0).clip(1)
        near = [distance(name, y[name], own[name]) for y in results.values()]
        kinds = {"own": np.array(near), "donor": far[0], "stranger": far[1], "strangers": mean}
        for kind, found in kinds.items():
            out.setdefault(kind, {})[name] = found
    return out


def share(kept: dict, name: str, goal: str = "donor", units: Any = slice(None)) -> np.ndarray:
    """How far results follow their donor, (places,): 0 is their own, 1 the donor; see the module.

    Parameters
    ----------
    kept : dict
        Of `between`.
    name : str
        Of `UNITS`.
    goal : {"donor", "stranger"}
        "stranger" is the null, on the donor's scale.
    units : index
        Of the rows to take.
    """
    own, donor, other, away = (np.asarray(kept[kind][name])[:, units]
                               for kind in ("own", "donor", goal, "strangers"))  # fmt: skip
    good = np.isfinite(own + donor + other + away).all(0)
    pull, scale = (away - other)[:, good].sum(1), (away - donor)[:, good].sum(1)
    a, b = own[:, good].sum(1).argmin(), donor[:, good].sum(1).argmin()
    way = scale[b] - scale[a]
    return (pull - pull[a]) / (way if way > 0 else np.inf)


def left(kept: dict, name: str) -> np.ndarray:
    """How far results went from their own, (places,): 1 is as far as the donor, wherever to."""
    own, donor = (np.asarray(kept[kind][name]) for kind in ("own", "donor"))
    good = np.isfinite(own + donor).all(0)
    gone = own[:, good].sum(1)
    return gone / max(gone[donor[:, good].sum(1).argmin()], 1e-9)


def halfway(at: Sequence[float], shares: np.ndarray) -> float:
    """Where a falling curve fitted to shares passes one half; the first place if never above it.

    Isotonic regression, then a straight line between the places on both sides.

    Examples
    --------
    >>> halfway([0, 8, 16, 32], [1.0, 0.9, 0.1, 0.0])
    12.0
    """
    at = np.asarray(at, float)
    fitted = isotonic_regression(shares, increasing=False)
    below = np.flatnonzero(fitted < 0.5)
    if not len(below):
        return float(at[-1])
    i = below[0]
    if i == 0:
        return float(at[0])
    part = (fitted[i - 1] - 0.5) / (fitted[i - 1] - fitted[i])
    return float(at[i - 1] + part * (at[i] - at[i - 1]))


def decided(kept: dict, name: str, goal: str = "donor") -> Interval:
    """The step, or layer, at which half of a swap's effect is lost, with its interval over pairs.

    Parameters
    ----------
    kept : dict
        Of `between`, the places in rising order.
    name : str
        Of `UNITS`.
    goal : {"donor", "stranger"}
        "stranger" is the null.
    """
    n = np.asarray(kept["own"][name]).shape[1]
    return _over_units(n, lambda i: halfway(kept["at"], share(kept, name, goal, i)))


def grip(kept: dict, name: str) -> Interval:
    """How far apart two prompts leave one seed, beside two prompts and two seeds: 0 is not at all.

    Where a prompt has no grip on an attribute, there is nothing for a swap to change.
    """
    own, donor, away = (np.asarray(kept[kind][name]) for kind in ("own", "donor", "strangers"))
    a = np.nansum(own, 1).argmin()
    near, far = donor[a], away[a]
    good = np.flatnonzero(np.isfinite(near) & np.isfinite(far))
    return _over_units(len(good), lambda i: near[good][i].sum() / max(far[good][i].sum(), 1e-9))


def obeyed(heard: Heard, asked: pd.DataFrame, who: str) -> dict[str, np.ndarray]:
    """Whether pieces are what prompts asked for: bool (B,) by attribute.

    Tonic, family and drums are what the tagger finds likeliest. Give the prompts of another row,
    and it is chance.
    """
    goals = {name: asked[f"{name}_{who}"].to_numpy() for name in TAGS}
    goals["drums"] = (~goals["drums"].astype(bool)).astype(int)  # "yes" comes first
    return {name: heard[name].argmax(1) == goals[name] for name in TAGS}


# -- steering --------------------------------------------------------------------------------------

#: What is asked for by name: the attribute it should change, and by how much.
ASKED = {"louder": ("loudness", 6.0), "brighter": ("timbre", 0.5), "higher": ("pitch", 4.0),
         "drums": ("drums", 1.0)}  # fmt: skip


def directions(vae: LatentModel, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """How latents differ where an attribute is one unit higher: a direction (d,) for each name.

    DiffMean for numbers, ``cov(z, a) / var(a)`` over frames; for drums the mean of pieces with
    drums minus the mean of those without.

    Parameters
    ----------
    vae : LatentModel
    clips : list of Clip
        With truth; music that nothing is scored on.

    Returns
    -------
    dict of name in `ASKED` to array of shape (d,)
    """
    z = vae.encode(list(clips))
    heard = hear(np.stack([clip.audio for clip in clips]), clips[0].sample_rate, FRAMES)
    flat, n = z.reshape(-1, z.shape[-1]), z.shape[1]
    found = {}
    for name, (attribute, _) in ASKED.items():
        if attribute == "drums":
            has = np.array([bool(clip.truth.clip["drums"]) for clip in clips])
            if has.all() or not has.any():
                raise ValueError("A direction for drums needs pieces with drums and without.")
            found[name] = z[has].mean((0, 1)) - z[~has].mean((0, 1))
            continue
        # A latent frame and a frame of the track may differ by one at the end.
        track = heard[attribute][:, :n]
        track = np.pad(track, ((0, 0), (0, n - track.shape[1])), constant_values=np.nan).ravel()
        good = np.isfinite(track)
        if good.sum() < 2:
            raise ValueError(f"No frame of these pieces has a {attribute}: give others.")
        a = track[good] - track[good].mean()
        found[name] = (a @ (flat[good] - flat[good].mean(0)) / (a @ a)).astype(np.float32)
    return found


def random_like(direction: np.ndarray, deviation: np.ndarray, seed: int = 0) -> np.ndarray:
    """A direction drawn at random, as long as another one where latents have deviation 1."""
    drawn = np.random.default_rng([seed, 15]).standard_normal(direction.shape)
    length = np.linalg.norm(direction / deviation) / np.linalg.norm(drawn)
    return (drawn * length * deviation).astype(np.float32)


def push(by: np.ndarray, window: tuple[int, int]) -> Callable[[int, np.ndarray], np.ndarray]:
    """A ``steer`` for `Flow.draw`: adds `by`, (d,), to the prediction in steps [from, to)."""
    return lambda step, prediction: prediction + by * (window[0] <= step < window[1])


def steered(
    flow: Flow,
    birth: Birth,
    by: np.ndarray,
    windows: Sequence[tuple[int, int]],
    progress: Callable = iter,
) -> dict[tuple[int, int], np.ndarray]:
    """Results of births that are pushed in some of their steps, latents (B, T, d) by window.

    The window (steps, steps) is no steering at all: the finished latents are pushed.
    """
    steps = len(birth.states) - 1
    frames, out = birth.states.shape[2], {}
    for window in progress(list(windows)):
        if window[0] >= steps:
            out[window] = birth.states[-1] + by
            continue
        taken = flow.draw(
            birth.prompts, frames / flow.vae.frame_rate, birth.seeds, steps,
            steer=push(by, window), begin=(window[0], birth.states[window[0]]),
        )  # fmt: skip
        out[window] = taken.states[-1]
    return out


def reached(kept: dict) -> pd.DataFrame:
    """What pushes did, of the table's ``push``.

    Returns
    -------
    DataFrame
        A line for each ``name`` of `ASKED` and each ``window`` ("random" along another direction,
        in all steps): ``value``, ``low``, ``high``, share of what was asked for (of drums: more
        certainty of the tagger), ``n`` births; ``others``, the mean change of all other attributes,
        in standard deviations between births.
    """
    lines = []
    for name, (attribute, by) in ASKED.items():
        for window, gains in kept[name].items():
            got = stats.bootstrap(np.nan_to_num(gains[attribute]) / by)
            rest = [
                np.abs(np.nanmean(gain)) / spread
                for other, gain in gains.items()
                if other != attribute and (spread := np.nanstd(kept["level"][other])) > 0
            ]
            lines.append({"name": name, "window": window, **got._asdict(), "others": np.mean(rest)})
    return pd.DataFrame(lines)


# -- the language model ----------------------------------------------------------------------------


def mixed_codebooks(
    codes: torch.Tensor, donors: torch.Tensor, keep: str
) -> dict[int, torch.Tensor]:
    """Codes of which k codebooks are another piece's, for k = 0 … K.

    Parameters
    ----------
    codes, donors : Tensors of shape (B, K, T)
    keep : {"first", "last"}
        Which codebooks go over first.

    Returns
    -------
    dict of k to Tensor of shape (B, K, T)
    """
    if keep not in ("first", "last"):
        raise ValueError(f"The first or the last codebooks go over first, not {keep!r}.")
    if codes.shape != donors.shape:
        raise ValueError(
            f"Pieces of {tuple(codes.shape)} and {tuple(donors.shape)} codes cannot be mixed."
        )
    n, out = codes.shape[1], {}
    for k in range(n + 1):
        over = torch.arange(n) < k if keep == "first" else torch.arange(n) >= n - k
        out[k] = torch.where(over[:, None], donors, codes)
    return out


def hears_by_layer(model: MusicModel) -> bool:
    """Whether each layer reads the prompt itself; elsewhere it comes in once, before the music."""
    layers = model.lm.transformer.layers
    return all(getattr(layer, "cross_attention", None) is not None for layer in layers)


@contextmanager
def prompts_swapped(model: MusicModel, at: torch.Tensor, source: torch.Tensor) -> Iterator[None]:
    """While this lasts, layer l of row i hears the prompt of row ``source[i]`` where ``at[i, l]``.

    Parameters
    ----------
    model : MusicModel
    at : Tensor of bool, shape (B, layers)
    source : Tensor of int, shape (B,)

    Raises
    ------
    ValueError
        A model whose layers do not read the prompt; see `hears_by_layer`.
    """
    if not hears_by_layer(model):
        raise ValueError(
            f"The layers of {model.name} do not read the prompt: it comes in once, before the "
            "music. Take a model with cross-attention, such as facebook/musicgen-small."
        )

    def hook(rows: torch.Tensor) -> Callable:
        def replace(_: Any, given: tuple) -> tuple:
            query, told, _ = given  # keys and values are both the prompt
            told = told.clone()
            told[rows] = told[source[rows]]  # the prompted half comes first; the other hears none
            return query, told, told

        return replace

    hooks = [
        layer.cross_attention.register_forward_pre_hook(hook(at[:, i].nonzero()[:, 0]))
        for i, layer in enumerate(model.lm.transformer.layers)
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def prompts_by_layer(
    model: MusicModel, a: Sequence[str], b: Sequence[str], seconds: float, seeds: Sequence[int]
) -> dict[int, np.ndarray]:
    """Music under prompts a, of which layers l and above hear prompts b, for l = 0 … layers.

    Returns
    -------
    dict of l to audio (B, n)
        0 is b alone, the number of layers is a alone; the same random numbers.
    """
    n, depth = len(a), model.n_layers
    starts = torch.arange(depth + 1).repeat_interleave(n)
    at = torch.arange(depth) >= starts[:, None]
    source = (depth + 1) * n + torch.arange(n).repeat(depth + 1)
    at = torch.cat([at, torch.zeros(n, depth, dtype=torch.bool)])  # those who lend their prompts
    prompts = [*a] * (depth + 1) + [*b]
    with prompts_swapped(model, at, torch.cat([source, source[:n]])):
        played = model.generate(prompts, seconds, [*seeds] * (depth + 2))
    audio = played.audio.numpy().reshape(depth + 2, n, -1)
    return {level: audio[level] for level in range(depth + 1)}


def memories_by_layer(
    model: MusicModel, codes: torch.Tensor, donors: torch.Tensor, seconds: float,
    seeds: Sequence[int],
) -> dict[int, np.ndarray]:  # fmt: skip
    """Pieces continued without a prompt, whose beginning layers above l remember as another's.

    Activation patching: over the beginning, the stream after layer l is that of the donor's row, so
    that all layers above attend to the donor's beginning, and those up to l to the own one.

    Parameters
    ----------
    model : MusicModel
    codes, donors : Tensors of shape (B, K, T)
        Beginnings.
    seconds : float
        That are played after them.
    seeds : sequence of B int

    Returns
    -------
    dict of layer to audio (B, n)
        Of what was played. -1, the embeddings, is the donor's continuation; `n_layers` is the own
        one, nothing being patched.
    """
    n, depth, known = len(codes), model.n_layers, codes.shape[-1]
    levels = list(range(-1, depth + 1))
    rows = len(levels) * n
    source = torch.arange(rows + n)
    source[:rows] = rows + torch.arange(n).repeat(len(levels))
    # The beginning's last frame is read a delay later than it is written.
    window = (0.0, (known + model.n_codebooks) / model.frame_rate)
    edits = [
        trace.Edit(
            level, lambda x: x[source.to(x.device)],
            strength=[float(i // n == j) for i in range(rows + n)], window=window,
        )
        for j, level in enumerate(levels[:-1])
    ]  # fmt: skip
    begun = torch.cat([codes.repeat(len(levels), 1, 1), donors])
    played = trace.edit(model, edits).generate(
        [None] * len(begun), known / model.frame_rate + seconds, prompt_codes=begun,
        seed=[*seeds] * (len(levels) + 1),
    )  # fmt: skip
    audio = played.audio.numpy()[:, round(known / model.frame_rate * model.sample_rate) :]
    return {level: audio[j * n : (j + 1) * n] for j, level in enumerate(levels)}


# -- all of it -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is played.

    Attributes
    ----------
    pairs : int
        Of prompts, each with a seed.
    seconds : float
    swaps : tuple of int
        Steps from which the other prompt is heard.
    windows : tuple of (int, int)
        Steps in which births are pushed; (steps, steps) pushes the finished latents.
    pushed : int
        Births that are pushed.
    pieces : int
        Of the language model.
    begun, played : float
        Seconds of its beginnings, and of what it plays.
    batch : int
        Units in one step of the work, after which it may be stopped.
    """

    pairs: int = 64
    seconds: float = 3.0
    swaps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24)
    windows: tuple[tuple[int, int], ...] = ((0, 32), (0, 8), (8, 16), (16, 24), (24, 32), (32, 32))
    pushed: int = 16
    pieces: int = 32
    begun: float = 1.5
    played: float = 1.5
    batch: int = 16


def run(
    folder: Path, plan: Plan = Plan(), flow: Flow | None = None, model: MusicModel | None = None
) -> dict:
    """Everything, in a folder that a kill does no harm; returns what `TABLE` keeps."""
    began, flow, model = time.monotonic(), flow or load_flow(), model or models.load("nano")
    weights = fingerprint(flow)
    asked = prompt_pairs(max(plan.pairs, plan.pushed, plan.pieces))
    counts = dict(pairs=0, pushed=0, pieces=0)  # more of them later: what was made is kept
    how = zlib.crc32(repr(dataclasses.replace(plan, **counts)).encode())
    parts: dict[str, list] = {}

    def part(name: str, rows: slice, make: Callable[[], dict]) -> None:
        of = model.fingerprint if name == "lm" else weights
        path = Path(folder) / f"{name}-{of}-{how:08x}" / f"{rows.start:03d}-{rows.stop:03d}.json"
        if not path.exists():
            _save(path, make())
        parts.setdefault(name, []).append(_arrays(runs.load_json(path)))

    def born(rows: slice) -> dict:
        a, b = (asked[who].tolist()[rows] for who in "ab")
        seeds = list(range(rows.start, rows.stop))
        with torch.autocast("cpu", torch.bfloat16):  # three times faster
            birth, results = swapped(flow, a, b, seeds, plan.swaps, plan.seconds)
        heard = {t: hear(flow.vae.decode(x), flow.vae.sample_rate) for t, x in results.items()}
        own, donor = heard[STEPS], heard[0]
        right, wrong = asked[rows], asked[rows].iloc[::-1]  # another row's prompts: chance
        loud, high = (_signs(right, name, yes) for name, yes in
                      (("dynamics", "loud"), ("register", "high")))  # fmt: skip
        return {
            "course": course(flow, birth), "swap": between(heard, own, donor),
            "obeyed": obeyed(own, right, "a"), "chance": obeyed(own, wrong, "a"),
            "louder": loud * _gain("loudness", own, donor),
            "higher": high * _gain("pitch", own, donor),
        }  # fmt: skip

    def pushed(rows: slice) -> dict:
        found = directions(flow.vae, _clips())
        ask = asked["a"].tolist()[rows], plan.seconds, list(range(rows.start, rows.stop))
        spread = flow.net.deviation.numpy()
        with torch.autocast("cpu", torch.bfloat16):
            birth = flow.draw(*ask)
            turned = {}
            for name, (_, by) in ASKED.items():
                turned[name] = steered(flow, birth, by * found[name], plan.windows)
                drawn = random_like(by * found[name], spread)
                turned[name] |= {"random": steered(flow, birth, drawn, plan.windows[:1])}
        base = hear(flow.vae.decode(birth.states[-1]), flow.vae.sample_rate)
        out: dict[str, Any] = {"level": {n: _level(n, base) for n in _LEVELS}}
        for name, results in turned.items():
            results = {_called(w): x for w, x in results.items() if w != "random"} | {
                "random": results["random"][plan.windows[0]]
            }
            heard = {w: hear(flow.vae.decode(x), flow.vae.sample_rate, _LEVELS)
                     for w, x in results.items()}  # fmt: skip
            out[name] = {w: {n: _gain(n, base, h) for n in _LEVELS} for w, h in heard.items()}
        return out

    def spoken(rows: slice) -> dict:
        n = round(2 * plan.begun * model.frame_rate)
        codes, donors = (
            model.encode(music.make_many(plan.pieces, start, 5.0, "test")[rows])[..., :n]
            for start in (SEED, SEED + 1000)
        )
        out, rate = {}, model.sample_rate
        for which in ("first", "last"):
            heard = {k: hear(model.decode(x).numpy(), rate)
                     for k, x in mixed_codebooks(codes, donors, which).items()}  # fmt: skip
            out[f"codebooks {which}"] = between(heard, heard[0], heard[max(heard)])
        a, b = (asked[who].tolist()[rows] for who in "ab")
        seeds = list(range(rows.start, rows.stop))
        played = prompts_by_layer(model, a, b, plan.played, seeds)
        heard = {level: hear(audio, rate) for level, audio in played.items()}
        out["prompt layers"] = between(heard, heard[max(heard)], heard[0])
        n = round(plan.begun * model.frame_rate)
        played = memories_by_layer(model, codes[..., :n], donors[..., :n], plan.played, seeds)
        heard = {level: hear(audio, rate) for level, audio in played.items()}
        out["memory layers"] = between(heard, heard[max(heard)], heard[-1])
        return out

    jobs = [
        (name, rows, make)
        for name, total, make in (
            ("lm", plan.pieces, spoken), ("push", plan.pushed, pushed), ("birth", plan.pairs, born)
        )
        for rows in _batches(total, plan.batch)
    ]  # fmt: skip
    for name, rows, make in tqdm(jobs, "language model, pushes, births"):
        part(name, rows, lambda make=make, rows=rows: make(rows))
    return {
        "provenance": {
            "flow": weights, "vae": flow.vae.fingerprint, "model": model.fingerprint,
            "plan": dataclasses.asdict(plan), "steps": STEPS, "tolerance": TOLERANCE,
            "prompts": asked[["a", "b"]].head(4).to_numpy().tolist(),
            "music": {"directions": [CLIPS, SEED, "train"], "codebooks": [SEED, "test"]},
            "precision": "bfloat16 for the flow", "versions": runs.versions(),
            "seconds": round(time.monotonic() - began),
        },
        **joined(parts["birth"]), "push": joined(parts["push"]), "lm": joined(parts["lm"]),
    }  # fmt: skip


def fingerprint(flow: Flow) -> str:
    """16 hex digits of a SHA-256 over a velocity field's weights."""
    digest = hashlib.sha256()
    for value in flow.net.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


_LEVELS = ("pitch", "loudness", "timbre", "drums")


def _level(name: str, heard: Heard) -> np.ndarray:
    """One number a piece: mean over frames, or the share with drums. (B,)."""
    return overall(name, heard[name])[:, 0]


def _gain(name: str, base: Heard, heard: Heard) -> np.ndarray:
    return _level(name, heard) - _level(name, base)


def _signs(asked: pd.DataFrame, name: str, yes: str) -> np.ndarray:
    """+1 where b asks for more than a, -1 where for less."""
    return np.where(asked[f"{name}_b"] == yes, 1.0, -1.0)


def _called(window: tuple[int, int]) -> str:
    return f"{window[0]} to {window[1]}"


def _batches(n: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _clips() -> list[Clip]:
    return music.make_many(CLIPS, SEED, 5.0, "train")


def _plain(value: Any) -> Any:
    """Three digits are plenty."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.3g}") if np.isfinite(value) else None
    return value


def _save(path: Path, value: dict) -> None:
    # One line: a number a line would take three times the room.
    runs.atomic_write(path, json.dumps(_plain(value), separators=(",", ":")) + "\n")


def _arrays(value: Any) -> Any:
    """Lists of numbers as arrays again, except lists of steps; null is NaN."""
    if isinstance(value, dict):
        return {
            key: one if key in ("at", "provenance") else _arrays(one) for key, one in value.items()
        }
    return np.array(value, float) if isinstance(value, list) else value


def load(path: Path = TABLE) -> dict:
    """What ``make latents`` kept: provenance, and arrays by experiment, attribute and place."""
    return _arrays(runs.load_json(path))


def figures(kept: dict) -> dict[str, Interval]:
    """The headlines of a table that `load` gave, by their names on the scoreboard.

    In steps of 32: ``birth.ATTRIBUTE_settle``, from which the denoised prediction stays within a
    tenth of a stranger's distance, ``.noisy`` that of the noisy state, ``.s`` S2's measure of the
    noisy state; ``birth.ATTRIBUTE_decided``, after which a swap of the prompt has lost half of its
    effect, ``.null`` the same measured towards a stranger; ``birth.ATTRIBUTE_grip``, how much of
    the distance between births is the prompt's.

    Shares from 0 to 1: ``birth.codebook.first.ATTRIBUTE``, how far a piece goes over to another
    with its first codebook alone, ``.last`` with all but the first, each with ``.null``, towards a
    stranger; ``birth.steer.NAME``, what pushes in all steps reach of what was asked for,
    ``.random`` along a random direction, ``.result`` by a push of the finished latents.

    In layers: ``birth.layer.ATTRIBUTE``, from which on a prompt must be heard to have half of its
    effect; ``.memory``, the same of another beginning; each with ``.null``.
    """
    found: dict[str, Interval] = {}
    for name in UNITS:
        found[f"birth.{name}_settle"] = settled(kept["course"], "prediction", name)
        found[f"birth.{name}_settle.noisy"] = settled(kept["course"], "state", name)
        if name in FRAMES:
            found[f"birth.{name}_settle.s"] = settled(kept["course"], "state", name, by="s")
        found[f"birth.{name}_decided"] = decided(kept["swap"], name)
        found[f"birth.{name}_decided.null"] = decided(kept["swap"], name, "stranger")
        found[f"birth.{name}_grip"] = grip(kept["swap"], name)
        lm = kept["lm"]
        last = len(lm["codebooks last"]["at"]) - 2
        for key, table, place in (
            (f"birth.codebook.first.{name}", "codebooks first", 1),
            (f"birth.codebook.last.{name}", "codebooks last", last),
        ):
            found[key] = share_at(lm[table], name, place)
            found[f"{key}.null"] = share_at(lm[table], name, place, "stranger")
        for key, table in (("", "prompt layers"), (".memory", "memory layers")):
            found[f"birth.layer.{name}{key}"] = decided(lm[table], name)
            found[f"birth.layer.{name}{key}.null"] = decided(lm[table], name, "stranger")
    last = _called((STEPS, STEPS))
    kinds = {_called((0, STEPS)): "", "random": ".random", last: ".result"}
    for line in reached(kept["push"]).itertuples():
        if line.window in kinds:
            found[f"birth.steer.{line.name}{kinds[line.window]}"] = Interval(*line[3:7])
    return found


def share_at(kept: dict, name: str, place: int, goal: str = "donor") -> Interval:
    """`share` at one of the places, by its number, with its interval over pieces."""
    n = np.asarray(kept["own"][name]).shape[1]
    return _over_units(n, lambda i: share(kept, name, goal, i)[place])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/latents/birth"))
    asked = parser.parse_args()
    _save(TABLE, run(asked.folder))
    print(f"{TABLE}: {TABLE.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
