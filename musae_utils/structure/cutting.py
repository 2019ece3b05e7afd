"""Cut features that foretell a return: does the motif return less, and is that all that changes?

A model goes on from a *prefix*, ten seconds of music whose motifs are known, under one of several
edits of its stream that act from the end of the prefix on. All continuations of a prefix use the
same random numbers, so they differ only by the edit.

==========  ========================================================================================
baseline    no edit
ablate      the features under test, all at once, brought to 0; the rest of the stream stays
scale       the same features doubled
random      as ablate, with features drawn to fire as often and as strongly; never those under test
local       as ablate, with features that tell what sounds now, and not what will return
mean layer  the whole stream of the layer replaced by its mean: all that the layer knows is cut
patch       the stream that another composition has there: another piece's plan, if there is one
==========  ========================================================================================

Two more conditions are heard and not played, to read the others by: *original*, how the composition
itself goes on (through the codec), and *stranger*, the prefix followed by the untouched
continuation of another prefix, in which a return is chance or an error of the labeler.

A motif *returns* in a window after the prefix if `labelers.labeler` finds it to begin again there,
at its threshold for whole pieces: 1 to 3 s after the prefix, 5 to 10 s, and 15 to 20 s. (The far
horizon would end at 25 s; a model that plays 30 s has 20 s left after 10.)

=============  =====================================================================================
nats           mean cross-entropy of the continuation's codes under the untouched model
in_key         share of its strongest pitch in the key of the prefix; 0 in silence
loudness       LUFS; -70, the gate of BS.1770, in silence
loops          share of its frames that end half a second of codes that were played before
onset_rate     onsets a second
silence        share of its time below -50 dB
fad            Fréchet distance of windows of 2 s from those of the baseline, by the nano CLAP
changed        share of its codes that are not those of the baseline
fires          share of the prefix's frames in which a feature under test fires
=============  =====================================================================================

A model that seldom brings a motif back leaves a cut little to take away. `expected` asks the same
of music in which motifs do return: reading a composition on from its prefix, does the cut make the
bars that bring a motif back less likely, by more than the bars that bring something new?

`run` plays and marks all of it, and goes on where it was stopped; the command of
`musae_utils.structure.gates` calls it. Explained in notebooks/17_cutting_the_circuit.ipynb.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import librosa
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from musae_utils import music, runs, stats, trace
from musae_utils.labels.examples import of_sounds
from musae_utils.models import MusicModel
from musae_utils.music import measure
from musae_utils.music.clip import Clip
from musae_utils.sae import SAE
from musae_utils.stats import Interval
from musae_utils.steering import Knob, Patch, edits, outcome
from musae_utils.steering.sweeps import _hash
from musae_utils.structure.hearing import hear, silent, starts_of
from musae_utils.structure.labelers import Labeler, label, labeler, onsets
from musae_utils.structure.scored import questions

TABLE = Path(__file__).resolve().parents[2] / "data" / "structure" / "cutting.json"
SECOND = TABLE.with_name("second.json")  # the same with an SAE of another seed, other prefixes
CONDITIONS = ("baseline", "ablate", "scale", "random", "local", "mean layer", "patch")
REFERENCES = ("original", "stranger")
WHOLE = ("baseline", "mean layer", "patch")  # no feature has to do with them
#: Seconds after the prefix in which a return begins.
WINDOWS = {"short": (1.0, 3.0), "middle": (5.0, 10.0), "long": (15.0, 20.0)}
SEED = 600_000  # compositions of the "test" split that nothing was fitted on or chosen by
LONGER = 3.0  # seconds that must follow a prefix: the short window
MOTIF, STEP = 2.0, 1.0  # seconds: windows of recordings, and how far apart they start
GATE = -70.0  # LUFS: below it BS.1770 hears nothing
EMBEDDED = 2.0  # seconds that the nano CLAP embeds at once
AMONG = 10  # nearest features among which a matched one is drawn

#: Differences from the baseline that would not matter, fixed before anything was tested. nats: each
#: code is a tenth less likely, a third of what lies between the model's music and the composer's.
#: in_key: one frame in twenty. loudness: a change of level of 1 to 2 dB is just heard in music.
#: loops and silence: one second of twenty. onset_rate: one note more or less in two seconds, where
#: composed music has about three a second. All are about three standard errors of 64 prefixes whose
#: continuations differ by chance alone: with smaller ones nothing could be shown to be the same.
MARGINS = {"nats": 0.1, "in_key": 0.05, "loudness": 1.5, "loops": 0.05, "onset_rate": 0.5,
           "silence": 0.05}  # fmt: skip
ALPHA = 0.05
#: What `verdict` can say.
WORDS = (
    "less recurrence, same music",
    "less recurrence because worse music",
    "less recurrence, and whether the music is the same is not shown",
    "less recurrence, and no less than other cuts bring",
    "more recurrence",
    "no effect seen",
    "no effect seen, and without a cut hardly more recurrence than by chance",
)

# -- prefixes --------------------------------------------------------------------------------------


class Prefix(NamedTuple):
    """Music to go on from, and what of it may return.

    Attributes
    ----------
    name : str
    codes : int array of shape (K, T)
        Of the prefix alone.
    motifs : list of (float, float)
        Start and end in seconds, inside the prefix.
    seed : int
        Of the continuation's random numbers.
    prompt : str or None
    seconds : float
        Length of the prefix.
    key : (int, int), optional
        Tonic 0-11 and mode (0 major, 1 minor).
    piece : int array of shape (K, T'), optional
        The real piece from its beginning, prefix included.
    bars : list of (float, float, bool)
        Start and end in seconds of whole bars of the piece after the prefix, and whether a motif of
        the prefix comes back there; empty where nobody knows.
    """

    name: str
    codes: np.ndarray
    motifs: list[tuple[float, float]]
    seed: int
    prompt: str | None = None
    seconds: float = 10.0
    key: tuple[int, int] | None = None
    piece: np.ndarray | None = None
    bars: Sequence[tuple[float, float, bool]] = ()


def prefixes(
    model: MusicModel, n: int = 64, seed: int = SEED, seconds: float = 10.0, total: float = 30.0
) -> list[Prefix]:
    """Beginnings of held-out compositions, with the motifs that were stated in them.

    Parameters
    ----------
    model : MusicModel
    n : int
    seed : int
        First composition of the "test" split; also of the continuations' random numbers.
    seconds : float
        Length of a prefix.
    total : float
        Length of the whole pieces, of which the rest is what the composer wrote.

    Returns
    -------
    list of Prefix
        A motif is a first, whole statement that ends within the prefix and sounds. Compositions
        without one are passed over, and the next are taken.

    Raises
    ------
    ValueError
        No prefixes were asked for, or none shorter than the pieces.
    """
    if n < 1 or not 0 < seconds < total:
        raise ValueError(
            f"{n} prefixes of {seconds:g} s of pieces of {total:g} s were asked for: ask for at "
            "least one, shorter than its piece."
        )
    found: list[Prefix] = []
    for number in itertools.count(seed):
        clip = music.make_many(1, number, total, "test")[0]
        asked = [q for q in questions(clip) if q.earlier[1] <= seconds + 1e-6]
        motifs = list(dict.fromkeys(q.earlier for q in asked))
        back: dict[tuple[float, float], bool] = {}
        for q in asked:
            bar = q.start, q.start + q.earlier[1] - q.earlier[0]
            if bar[0] >= seconds - 1e-6 and bar[1] <= total + 1e-6:
                back[bar] = back.get(bar, False) or q.kind != "none"
        known = clip.truth.clip
        key = known["tonic"], known["mode"]
        made = _prefix(model, clip, motifs, number, seconds, total, key)
        found += [one._replace(bars=[(*bar, came) for bar, came in back.items()]) for one in made]
        if len(found) == n:
            return found


def prefixes_of(
    model: MusicModel,
    clips: Sequence[Clip],
    seconds: float = 10.0,
    total: float = 30.0,
    seed: int = SEED,
) -> list[Prefix]:
    """Beginnings of any recordings; every window of 2 s, a second apart, may return.

    Parameters
    ----------
    model : MusicModel
    clips : sequence of Clip
    seconds : float
        Length of a prefix.
    total : float
        Of a longer recording so much is kept, to compare with and to patch from.
    seed : int
        Of the first one's random numbers.

    Returns
    -------
    list of Prefix
        Its key is the one that the nano tagger hears. Silent windows are no motifs.

    Raises
    ------
    ValueError
        No recordings; one is shorter than the prefix, or its beginning is silent; a prefix shorter
        than a window.
    """
    if not len(clips):
        raise ValueError("There are no recordings to go on from: the list is empty.")
    if seconds < MOTIF:
        raise ValueError(
            f"A prefix of {seconds:g} s is shorter than a motif's window of {MOTIF:g} s: take a "
            "longer one."
        )
    found = []
    for i, clip in enumerate(clips):
        if clip.seconds < seconds - 1e-6:
            raise ValueError(
                f"{clip.name!r} lasts {clip.seconds:.2f} s, and the prefix is to last {seconds:g} "
                "s: take a longer recording or a shorter prefix."
            )
        starts = np.arange(0, seconds - MOTIF + 1e-6, STEP)
        motifs = [(float(a), float(a) + MOTIF) for a in starts]
        one = _prefix(model, clip, motifs, seed + i, seconds, total, None)
        if not one:
            raise ValueError(
                f"The first {seconds:g} s of {clip.name!r} are silent, so nothing can return: "
                "leave it out, or cut its beginning."
            )
        found += one
    return found


def _prefix(model, clip, motifs, seed, seconds, total, key) -> list[Prefix]:
    """The prefix of a clip, if a motif sounds in it."""
    n_frames = round(seconds * model.frame_rate)
    last = round(min(total, model.max_seconds) * model.frame_rate)
    piece = model.encode(clip)[0, :, :last]
    codes = piece[:, :n_frames]
    heard = hear(model.decode(codes)[0].numpy(), model.sample_rate)
    motifs = [(a, b) for a, b in motifs if not silent(heard, np.array([a]), b - a)[0]]
    if not motifs:
        return []
    key = heard.key if key is None else key
    return [Prefix(clip.name, codes.numpy(), motifs, seed, None, seconds, key, piece.numpy())]


def _checked(model: MusicModel, prefixes: Sequence[Prefix], seconds: float) -> None:
    """Prefixes of one length, with motifs inside, and time after them."""
    if not len(prefixes):
        raise ValueError("There is nothing to go on from: the list of prefixes is empty.")
    for one in prefixes:
        if not one.motifs:
            raise ValueError(f"The prefix {one.name!r} has no motif that could return.")
        for start, end in one.motifs:
            if not 0 <= start < end <= one.seconds + 1e-6:
                raise ValueError(
                    f"The prefix {one.name!r} lasts {one.seconds:g} s, and a motif of it is said "
                    f"to sound from {start:g} to {end:g} s: take a longer prefix."
                )
    frames = {one.codes.shape[-1] for one in prefixes}
    if len(frames) > 1 or frames != {round(prefixes[0].seconds * model.frame_rate)}:
        raise ValueError(
            f"The prefixes have {', '.join(map(str, sorted(frames)))} frames and are said to last "
            f"{prefixes[0].seconds:g} s, {model.frame_rate:g} frames each: one length for all."
        )
    if seconds <= prefixes[0].seconds + LONGER:
        raise ValueError(
            f"{seconds:g} s with a prefix of {prefixes[0].seconds:g} s leave no time for a return: "
            f"ask for more than {prefixes[0].seconds + LONGER:g} s."
        )
    model._checked_frames(seconds)


# -- features --------------------------------------------------------------------------------------


class Statistics(Protocol):
    """How often features fire and how strongly; a `FeatureAtlas` is one, and so is `Firing`."""

    density: np.ndarray
    mean: np.ndarray


class Firing(NamedTuple):
    """What F features do in N prefixes.

    Attributes
    ----------
    density : array of shape (F,)
        Share of frames in which each fires.
    mean : array of shape (F,)
        Mean activation where it fires; 0 if it never does.
    by_prefix : array of shape (N, F)
        Share of each prefix's frames in which each fires.
    any : array of shape (N,)
        Share of frames in which any of the features asked about fires.
    stream : Tensor of shape (d,)
        The layer's mean stream.
    """

    density: np.ndarray
    mean: np.ndarray
    by_prefix: np.ndarray
    any: np.ndarray
    stream: torch.Tensor


@torch.no_grad()
def firing(
    model: MusicModel, sae: SAE, prefixes: Sequence[Prefix], features: Sequence[int] = ()
) -> Firing:
    """Read prefixes with the untouched model and encode the stream of the SAE's layer.

    Parameters
    ----------
    model : MusicModel
    sae : SAE
        Of a layer of this model.
    prefixes : sequence of Prefix
    features : sequence of int
        Those that `Firing.any` is about.
    """
    layer, last = _layer(model, sae), model.n_codebooks - 1
    shares, either, total, mean, n = [], [], 0.0, 0.0, 0
    for one in prefixes:
        codes = torch.as_tensor(one.codes)[None].long()
        stream = trace.residuals(model, codes, [layer], one.prompt)[layer][0]
        # The rows that SAEs are trained on: all codebooks of a frame are known.
        rows = trace.align(stream, codes.shape[-1], last)[: codes.shape[-1] - last].float()
        found = sae.encode(rows.to(sae.W_dec.device)).float().cpu()
        shares.append((found > 0).float().mean(0).numpy())
        either.append(float((found[:, list(features)] > 0).any(1).float().mean()))
        total, mean, n = total + found.double().sum(0), mean + rows.double().sum(0), n + len(rows)
    shares = np.stack(shares)
    density = shares.mean(0)
    average = total.numpy() / np.maximum(density * n, 1)
    return Firing(density, average, shares, np.array(either), (mean / n).float().cpu())


def matched(
    statistics: Statistics,
    features: Sequence[int],
    sae: SAE,
    rng: np.random.Generator,
    avoid: Sequence[int] = (),
    among: int = AMONG,
) -> list[int]:
    """Features like given ones in how often and how strongly they fire, and never one of them.

    Parameters
    ----------
    statistics : Statistics
        With ``density`` and ``mean`` of every feature.
    features : sequence of int
        Those under test.
    sae : SAE
    rng : Generator
    avoid : sequence of int
        Others that may not be drawn.
    among : int
        Each is drawn among so many that are nearest in log density, log mean activation and log
        norm of the decoder's row.

    Returns
    -------
    list of int
        One for each of `features`, all different, none of `features` or `avoid`, none dead.

    Raises
    ------
    ValueError
        There are not enough others.
    """
    density, mean = np.asarray(statistics.density, float), np.asarray(statistics.mean, float)
    norm = sae.W_dec.detach().float().norm(dim=1).cpu().numpy()
    if not len(density) == len(mean) == len(norm):
        raise ValueError(
            f"The statistics are of {len(density)} features and the SAE has {len(norm)}: they are "
            "of another SAE."
        )
    like = np.log(np.maximum(np.stack([density, mean, norm], 1), 1e-8))
    free = (density > 0) & (mean > 0) & (norm > 0)
    free[[*features, *avoid]] = False
    if free.sum() < len(features):
        raise ValueError(
            f"Of {len(density)} features only {free.sum()} fire and are neither under test nor to "
            f"be avoided, and {len(features)} are needed: a control of the same features would be "
            "none."
        )
    drawn: list[int] = []
    for feature in features:
        others = np.flatnonzero(free)
        far = ((like[others] - like[feature]) ** 2).sum(1)
        nearest = others[np.argsort(far, kind="stable")[:among]]
        drawn.append(int(rng.choice(nearest)))
        free[drawn[-1]] = False
    return drawn


def _layer(model: MusicModel, sae: SAE) -> int:
    """The layer that an SAE belongs to; `ValueError` if that is not one of this model."""
    return Knob(sae, 0, how="ablate").layer(model)


def _features(features: Sequence[int], what: str) -> list[int]:
    features = [int(one) for one in features]
    if not features or len(set(features)) < len(features):
        raise ValueError(f"{what} is a list of different features, at least one; not {features!r}.")
    return features


# -- playing ---------------------------------------------------------------------------------------


class Played(NamedTuple):
    """What was played of N prefixes.

    Attributes
    ----------
    codes : dict of str to int array of shape (N, K, T)
        By condition; draws of "random" are "random 0", "random 1", …
    seconds : float
    features, local : list of int
    random : list of list of int
        Features of each draw.
    fires : array of shape (N,)
        Share of the prefix's frames in which a feature under test fires.
    """

    codes: dict[str, np.ndarray]
    seconds: float
    features: list[int]
    local: list[int]
    random: list[list[int]]
    fires: np.ndarray


def rows(
    model: MusicModel,
    sae: SAE,
    features: Sequence[int],
    others: Mapping[str, Any],
    prefix: Prefix,
    condition: str,
) -> list[Knob | Patch]:
    """What is done to one continuation: a row for `steering.edits`.

    Parameters
    ----------
    model : MusicModel
    sae : SAE
    features : sequence of int
        Under test.
    others : mapping
        What the controls are made of: ``"local"`` and ``"random"``, features; ``"mean layer"`` and
        ``"patch"``, streams of shape (positions, d), at least as many as the clip has frames.
    prefix : Prefix
        Edits act from its end on.
    condition : str
        Of `CONDITIONS`.

    Returns
    -------
    list of Knob or Patch
        None of them for "baseline".
    """
    if condition not in CONDITIONS:
        raise ValueError(f"There is no condition {condition!r}; there are {', '.join(CONDITIONS)}.")
    if condition == "baseline":
        return []
    window = prefix.seconds, None
    if condition in ("ablate", "scale"):
        return [Knob(sae, one, how=condition, window=window) for one in features]
    if condition not in others:
        raise ValueError(f"The condition {condition!r} needs an entry of that name in others.")
    if condition in ("random", "local"):
        return [Knob(sae, one, how="ablate", window=window) for one in others[condition]]
    return [Patch(_layer(model, sae), others[condition], window=window)]


def play(
    model: MusicModel,
    sae: SAE,
    features: Sequence[int],
    local: Sequence[int],
    prefixes: Sequence[Prefix],
    seconds: float = 30.0,
    conditions: Sequence[str] = CONDITIONS,
    folder: str | Path | None = None,
    batch: int = 32,
    random_seeds: Sequence[int] = (0,),
    statistics: Statistics | None = None,
    guidance: float = 3.0,
    temperature: float = 1.0,
    top_k: int | None = 250,
    progress: bool = False,
) -> Played:
    """Go on from every prefix under every condition.

    Parameters
    ----------
    model : MusicModel
    sae : SAE
        Of a layer of this model.
    features : sequence of int
        Under test; cut all at once.
    local : sequence of int
        Features of the condition "local".
    prefixes : sequence of N Prefix
        All of one length.
    seconds : float
        Length with the prefix.
    conditions : sequence of str
        Of `CONDITIONS`.
    folder : str or Path, optional
        A run folder: what was played is kept, and a run that was stopped goes on.
    batch : int
        Rows in one generation.
    random_seeds : sequence of int
        A draw of "random" for each.
    statistics : Statistics, optional
        Of all features, for `matched`; what they do in the prefixes if left out.
    guidance : float
        Of prompted prefixes; without a prompt there is none.
    temperature, top_k, progress : see `MusicModel.generate`

    Returns
    -------
    Played

    Raises
    ------
    ValueError
        An SAE of another layer or model; features under test that never fire in any prefix, or are
        also local; prefixes of different lengths, with a motif outside, or too few seconds after;
        too few features for a control; a piece too short to patch from.
    RunError
        The folder holds another run.

    Warns
    -----
    UserWarning
        A feature that never fires in any prefix.
    """
    _checked(model, prefixes, seconds)
    layer = _layer(model, sae)
    features, n_frames = _features(features, "features"), model._checked_frames(seconds)
    local = _features(local, "local") if "local" in conditions else [int(one) for one in local]
    if both := sorted({*features} & {*local}):
        raise ValueError(f"Features {both} are under test and local: a control must differ.")
    for one in [*features, *local]:
        Knob(sae, one, how="ablate")  # there is such a feature
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch is a number of rows from 1 up, not {batch!r}.")
    heard = firing(model, sae, prefixes, features)
    if not heard.any.any():
        raise ValueError(
            f"None of the features {features} fires in any of the {len(prefixes)} prefixes, so "
            "there is nothing to cut: choose features that fire in this music."
        )
    for one in features:
        if not heard.by_prefix[:, one].any():
            warnings.warn(
                f"Feature {one} never fires in any of the {len(prefixes)} prefixes: what is cut of "
                "it can only be in the continuations.",
                stacklevel=2,
            )
    drawn = []
    if "random" in conditions:
        drawn = [
            matched(statistics or heard, features, sae, np.random.default_rng([seed, 17]), local)
            for seed in random_seeds
        ]
    if "patch" in conditions:
        for one in prefixes:
            if one.piece is None or one.piece.shape[-1] < n_frames:
                raise ValueError(
                    f"To patch from, the real piece of {one.name!r} must last {seconds:g} s: leave "
                    'the condition "patch" out, or take longer pieces.'
                )
        if len({one.name for one in prefixes}) < 2:
            raise ValueError('The condition "patch" needs prefixes of two compositions or more.')
    names = [
        name for one in dict.fromkeys(conditions)
        for name in ([f"random {i}" for i in range(len(drawn))] if one == "random" else [one])
    ]  # fmt: skip

    def asked(i: int, name: str) -> list[Knob | Patch]:
        condition, draw = _condition(name)
        others = {"local": local, "random": drawn[draw] if drawn else []}
        if condition == "mean layer":
            others[condition] = heard.stream.expand(n_frames, -1)
        if condition == "patch":
            codes = torch.as_tensor(prefixes[_other(prefixes, i)].piece)[None, :, :n_frames].long()
            others[condition] = trace.residuals(model, codes, [layer])[layer][0]
        return rows(model, sae, features, others, prefixes[i], condition)

    todo = [(i, name) for i in range(len(prefixes)) for name in names]
    asked(*todo[0])  # an unknown condition is said before anything is played
    # Only what decides a row: what needs no feature is not played again for others.
    cut, told = {"ablate", "scale"} & {*conditions}, "local" in conditions
    config = dict(
        what="cutting the circuit", features=features if cut else [], local=local if told else [],
        random=drawn, rows=names,
        seconds=seconds, prefix=prefixes[0].seconds, batch=batch, guidance=guidance,
        temperature=temperature, top_k=top_k,
        names=[one.name for one in prefixes], seeds=[one.seed for one in prefixes],
        prompts=[one.prompt for one in prefixes],
        codes=_hash(*(torch.as_tensor(one.codes) for one in prefixes)),
        pieces=_hash(*(torch.as_tensor(o.piece) for o in prefixes if o.piece is not None)),
        sae=_hash(*sae.state_dict().values()),
    )  # fmt: skip
    codes = []
    with contextlib.ExitStack() as stack:
        run = folder and stack.enter_context(
            runs.Run(folder, config, fingerprints={"model": model.fingerprint})
        )
        steps = range(0, len(todo), batch)
        for first in tqdm(steps, f"playing, {batch} rows a step", disable=not progress):
            name, these = f"rows-{first:05d}.safetensors", todo[first : first + batch]
            if run and run.has(name):
                codes.append(load_file(run.path(name))["codes"].long())
                continue
            turns = [asked(*one) for one in these]
            given = torch.stack([torch.as_tensor(prefixes[i].codes).long() for i, _ in these])
            edited = trace.edit(model, edits(model, turns, seconds, guided=guidance != 1))
            played = edited.generate(
                [prefixes[i].prompt for i, _ in these], seconds, guidance=guidance,
                prompt_codes=given, seed=[prefixes[i].seed for i, _ in these],
                temperature=temperature, top_k=top_k,
            )  # fmt: skip
            codes.append(played.codes)
            if run:
                kept = {"codes": played.codes.to(torch.int32).contiguous()}
                run.save(name, functools.partial(save_file, kept))
    codes = torch.cat(codes).numpy().reshape(len(prefixes), len(names), -1, n_frames)
    by_name = {name: codes[:, j] for j, name in enumerate(names)}
    return Played(by_name, seconds, features, local, drawn, heard.any)


def _condition(name: str) -> tuple[str, int]:
    """ "random 1" is the second draw of random; all else is its own."""
    word, _, number = name.rpartition(" ")
    return (word, int(number)) if number.isdigit() else (name, 0)


def _other(prefixes: Sequence[Prefix], i: int) -> int:
    """The next prefix of another composition."""
    n = len(prefixes)
    return next(j % n for j in range(i + 1, i + n) if prefixes[j % n].name != prefixes[i].name)


# -- what returns ----------------------------------------------------------------------------------


def recurrence(
    audio: np.ndarray,
    sample_rate: int,
    prefix: Prefix,
    windows: Mapping[str, tuple[float, float]] = WINDOWS,
    by: Labeler | None = None,
) -> pd.DataFrame:
    """Whether any motif of a prefix begins again in windows after it.

    Parameters
    ----------
    audio : ndarray of shape (n,)
        The prefix and what follows.
    sample_rate : int
        Hz.
    prefix : Prefix
    windows : mapping of str to (float, float)
        Seconds after the prefix's end.
    by : Labeler, optional
        The kept one if left out.

    Returns
    -------
    DataFrame indexed by window
        ``probability``, the highest of all motifs and moments; ``returns``, 1 or 0: whether it
        peaks there at the labeler's threshold for whole pieces. NaN where the sound ends before a
        motif fits into the window.

    Raises
    ------
    ValueError
        The sound ends before the first window; a motif is silent, or not in the prefix.
    """
    by = by or labeler()
    heard = hear(audio, sample_rate)
    if heard.seconds <= prefix.seconds + min(low for low, _ in windows.values()):
        raise ValueError(
            f"The sound lasts {heard.seconds:.2f} s, and nothing of {prefix.name!r} can return so "
            f"soon after its {prefix.seconds:g} s: play longer."
        )
    found = {name: [] for name in windows}
    for motif in prefix.motifs:
        start, end = motif
        if not end <= prefix.seconds + 1e-6:
            raise ValueError(
                f"The prefix {prefix.name!r} lasts {prefix.seconds:g} s, and a motif of it is said "
                f"to sound from {start:g} to {end:g} s: take a longer prefix."
            )
        starts = starts_of(heard, end - start)
        starts = starts[starts >= prefix.seconds - 1e-6]
        if not len(starts):
            continue
        probability = label(heard, motif, starts, by)["probability"]
        peaks = onsets(probability, end - start, by.search)
        for name, (low, high) in windows.items():
            inside = lambda x: (x >= prefix.seconds + low) & (x < prefix.seconds + high)  # noqa: B023, E731
            here = probability[inside(probability.index.to_numpy())]
            if len(here):
                found[name].append((float(here.max()), float(inside(peaks).any())))
    best = {name: np.max(each, axis=0) if each else (np.nan,) * 2 for name, each in found.items()}
    return pd.DataFrame.from_dict(best, "index", columns=["probability", "returns"])


def outcomes(
    model: MusicModel,
    prefixes: Sequence[Prefix],
    played: Played,
    references: bool = True,
    folder: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Listen to what was played.

    Parameters
    ----------
    model : MusicModel
        The one that played, untouched.
    prefixes : sequence of Prefix
        Those that were gone on from.
    played : Played
    references : bool
        Hear `REFERENCES` too: "original" where a piece is as long, "stranger" where there is a
        baseline and another composition.
    folder : str or Path, optional
        A run folder: what was heard is kept, prefix by prefix.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DataFrame, one line a prefix and row
        ``prefix``, ``condition``, ``draw`` (of random), ``returns.short`` … and
        ``probability.short`` … of `recurrence`, the measures of the module's table but "fad", and
        ``silent``, whether the continuation holds next to nothing: nothing returns there.
    """
    lines = (table for table, _ in _listened(model, prefixes, played, references, folder, progress))
    return pd.concat(lines, ignore_index=True)


def fad(
    model: MusicModel,
    prefixes: Sequence[Prefix],
    played: Played,
    references: bool = True,
    folder: str | Path | None = None,
) -> dict[str, Interval]:
    """Fréchet distance of each condition's continuations from the baseline's; see `outcomes`.

    Over windows of 2 s embedded by the nano CLAP. The interval is 1.96 standard errors on either
    side, from leaving out one prefix after the other: prefixes drawn with replacement, as a
    bootstrap has them, are fewer different ones, and so look further away. Strangers are left out:
    they are the baseline in another order.
    """
    tables, rows = zip(*_listened(model, prefixes, played, references, folder, False), strict=True)
    if "baseline" not in played.codes:
        raise ValueError('The distance is from the condition "baseline", which was not played.')
    names = [
        name for name in tables[0]["name"]
        if name != "stranger" and all(name in set(table["name"]) for table in tables)
    ]  # fmt: skip
    by_name = {
        name: np.stack([x[list(t["name"]).index(name)] for t, x in zip(tables, rows, strict=True)])
        for name in names
    }  # (prefixes, windows, e) each
    base, found = by_name.pop("baseline"), {}
    for name, x in by_name.items():
        n, flat = len(x), lambda x: x.reshape(-1, x.shape[-1])
        value = outcome.frechet(flat(x), flat(base))
        without = [
            outcome.frechet(*(flat(np.delete(one, i, axis=0)) for one in (x, base)))
            for i in range(n)
        ]
        reach = 1.96 * float(np.std(without)) * np.sqrt(n - 1)
        found[name] = Interval(value, max(0.0, value - reach), value + reach, n)
    return found


def _listened(
    model, prefixes, played, references, folder, progress
) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Of each prefix its lines (with the row's ``name``), and embeddings (rows, windows, e)."""
    from musae_utils.labels.ears import fingerprints

    _checked(model, prefixes, played.seconds)
    if any(len(codes) != len(prefixes) for codes in played.codes.values()):
        raise ValueError(
            f"What was played is of {len(next(iter(played.codes.values())))} prefixes, and "
            f"{len(prefixes)} are given: give those that were gone on from."
        )
    config = dict(
        what="listening to cuts", references=references, windows=WINDOWS, seconds=played.seconds,
        names=[one.name for one in prefixes], rows=list(played.codes), fires=played.fires,
        motifs=[one.motifs for one in prefixes],
        codes=_hash(*(torch.as_tensor(codes) for codes in played.codes.values())),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        run = folder and stack.enter_context(
            runs.Run(folder, config, fingerprints={"model": model.fingerprint, **fingerprints()})
        )
        for i in tqdm(range(len(prefixes)), "listening", disable=not progress):
            names = [f"heard-{i:04d}.csv", f"embedded-{i:04d}.safetensors"]
            if run and all(map(run.has, names)):
                rows = load_file(run.path(names[1]))["rows"].numpy()
                yield pd.read_csv(run.path(names[0])), rows
                continue
            table, rows = _listen(model, prefixes, played, i, references)
            if run:
                run.save(names[0], functools.partial(table.to_csv, index=False))
                kept = {"rows": torch.from_numpy(rows).contiguous()}
                run.save(names[1], functools.partial(save_file, kept))
            yield table, rows


def _listen(model, prefixes, played, i, references) -> tuple[pd.DataFrame, np.ndarray]:
    """Lines and embeddings of one prefix."""
    prefix, known = prefixes[i], prefixes[i].codes.shape[-1]
    codes = {name: rows[i] for name, rows in played.codes.items()}
    n_frames = next(iter(codes.values())).shape[-1]
    if references and prefix.piece is not None and prefix.piece.shape[-1] >= n_frames:
        codes["original"] = prefix.piece[:, :n_frames]
    if references and "baseline" in codes and len({one.name for one in prefixes}) > 1:
        follows = played.codes["baseline"][_other(prefixes, i)][:, known:]
        codes["stranger"] = np.concatenate([prefix.codes, follows], axis=1)
    every = torch.from_numpy(np.stack(list(codes.values()))).long()
    audio = model.decode(every).numpy()
    likely = nats(model, every, [prefix.prompt] * len(every), known)
    lines = []
    for j, name in enumerate(codes):
        condition, draw = _condition(name)
        line = {"prefix": prefix.name, "name": name, "condition": condition, "draw": draw}
        back = recurrence(audio[j], model.sample_rate, prefix)
        for window in back.index:
            line[f"returns.{window}"] = back.loc[window, "returns"]
            line[f"probability.{window}"] = back.loc[window, "probability"]
        line |= {"nats": likely[j]}
        line |= quality(audio[j], model.sample_rate, prefix)
        line["loops"] = outcome.loops(every[j, 0, known:].tolist())
        if "baseline" in codes:
            differs = codes[name][:, known:] != codes["baseline"][:, known:]
            line["changed"] = float(differs.mean())
        lines.append(line | {"fires": float(played.fires[i])})
    return pd.DataFrame(lines), _embedded(audio, model.sample_rate, prefix.seconds)


@torch.no_grad()
def expected(
    model: MusicModel,
    sae: SAE,
    prefixes: Sequence[Prefix],
    played: Played,
    progress: bool = False,
) -> pd.DataFrame:
    """How likely the real pieces' bars are, read under each condition from the prefix's end on.

    Nothing is played: what the model expects is compared with what the composer wrote.

    Parameters
    ----------
    model : MusicModel
    sae : SAE
    prefixes : sequence of Prefix
        Of composed music. Those whose bars after the prefix do not both bring motifs back and
        bring something new are passed over.
    played : Played
        Says what was cut. "patch" is left out: it is another piece that would be read.

    Returns
    -------
    DataFrame, one line a prefix and row
        ``prefix``, ``name``, ``condition``, ``draw``, and mean nats of codes in bars with a return
        (``nats.return``) and in others (``nats.new``); ``bars.return`` and ``bars.new``, how many.

    Raises
    ------
    ValueError
        No prefix has bars of both kinds.
    """
    seconds, lines = played.seconds, []
    names = [name for name in played.codes if name != "patch"]
    able = _readable(prefixes, seconds)
    if not able:
        raise ValueError(
            "In none of the pieces is it known of later bars that some bring a motif back and "
            "others do not: give composed prefixes (prefixes), longer ones or more of them."
        )
    mean = firing(model, sae, prefixes).stream
    n_frames = model._checked_frames(seconds)
    for one in tqdm(able, "reading", disable=not progress):
        codes = torch.as_tensor(one.piece)[None, :, :n_frames].long()
        asked = []
        for name in names:
            condition, draw = _condition(name)
            others = {"local": played.local, "mean layer": mean.expand(n_frames, -1)}
            others["random"] = played.random[draw] if condition == "random" else []
            asked.append(rows(model, sae, played.features, others, one, condition))
        edited = trace.edit(model, edits(model, asked, seconds, guided=False))
        told = edited.logits(codes, one.prompt).log_softmax(-1)
        codes = codes.expand(len(names), -1, -1).to(told.device)
        unlikely = -told.gather(-1, codes[..., None])[..., 0].mean(1).cpu().numpy()  # (rows, T)
        inside = {True: np.zeros(n_frames, bool), False: np.zeros(n_frames, bool)}
        for start, end, came in one.bars:
            inside[came][round(start * model.frame_rate) : round(end * model.frame_rate)] = True
        count = {kind: sum(came == kind for *_, came in one.bars) for kind in inside}
        for name, row in zip(names, unlikely, strict=True):
            condition, draw = _condition(name)
            lines.append({
                "prefix": one.name, "name": name, "condition": condition, "draw": draw,
                "nats.return": float(row[inside[True]].mean()),
                "nats.new": float(row[inside[False]].mean()),
                "bars.return": count[True], "bars.new": count[False],
            })  # fmt: skip
    return pd.DataFrame(lines)


def _readable(prefixes: Sequence[Prefix], seconds: float) -> list[Prefix]:
    """Prefixes with later bars of both kinds in pieces that are as long, and only those bars."""
    kept = [
        one._replace(bars=[bar for bar in one.bars if bar[1] <= seconds + 1e-6])
        for one in prefixes
    ]  # fmt: skip
    return [one for one in kept if len({came for *_, came in one.bars}) == 2]


@torch.no_grad()
def nats(
    model: MusicModel, codes: torch.Tensor, prompts: Sequence[str | None], known: int
) -> np.ndarray:
    """Mean cross-entropy of what follows `known` frames of codes (B, K, T), by the model; (B,)."""
    found = []
    for one, prompt in zip(codes, prompts, strict=True):
        told = trace.logits(model, one[None], prompt)[0, :, known:].log_softmax(-1)
        likely = told.gather(-1, one[:, known:, None].to(told.device))
        found.append(-float(likely.mean()))
    return np.array(found)


def quality(audio: np.ndarray, sample_rate: int, prefix: Prefix) -> dict[str, float]:
    """What can be measured of the sound that follows a prefix; all finite, also in silence.

    Returns
    -------
    dict of str to float
        ``in_key``, ``loudness``, ``onset_rate``, ``silence``, ``silent`` (0 or 1).
    """
    rest = np.asarray(audio, np.float32)[round(prefix.seconds * sample_rate) :]
    rest = measure.validate(rest, sample_rate)
    level = librosa.feature.rms(y=rest, frame_length=2 * measure.HOP, hop_length=measure.HOP)[0]
    quiet = float((level < 10 ** (outcome.QUIET / 20)).mean())
    found = {"silence": quiet, "silent": float(quiet > 0.99)}
    found["onset_rate"] = measure.onset_rate(rest) if rest.any() else 0.0
    found["loudness"] = max(GATE, measure.loudness(rest))
    if prefix.key is not None:
        found["in_key"] = float(np.nan_to_num(measure.in_key(rest, *prefix.key)))
    return found


def _embedded(audio: np.ndarray, sample_rate: int, start: float) -> np.ndarray:
    """Windows of what follows, as the nano CLAP hears them: (rows, windows, e)."""
    from musae_utils.labels.ears import nano_clap

    size, first = round(EMBEDDED * sample_rate), round(start * sample_rate)
    count = (audio.shape[-1] - first) // size
    parts = audio[:, first : first + count * size].reshape(len(audio) * count, size)
    judge = nano_clap()
    rows = judge.embed_sounds(of_sounds(parts, sample_rate))
    judge._known.clear()  # it remembers all it heard, and these are heard once
    return rows.reshape(len(audio), count, -1).astype(np.float32)


# -- what it means ---------------------------------------------------------------------------------


def askable(table: pd.DataFrame) -> list[str]:
    """Windows in which some continuations bring a motif back and others do not."""
    played = table[~table["condition"].isin(REFERENCES)]
    answers = {name: played.get(f"returns.{name}", pd.Series(dtype=float)) for name in WINDOWS}
    return [name for name, each in answers.items() if each.dropna().nunique() > 1]


def effects(table: pd.DataFrame, windows: Sequence[str] | None = None) -> dict[str, pd.DataFrame]:
    """What each condition changed, over prefixes.

    Parameters
    ----------
    table : DataFrame
        Of `outcomes`. Draws of "random" are averaged within a prefix.
    windows : sequence of str, optional
        All that were heard if left out.

    Returns
    -------
    dict
        ``returns``: a line for each condition, what it is ``against`` ("baseline", "random" or
        "local"), ``outcome`` ("returns" or "probability") and ``window``: the paired difference
        ``value`` with ``low``, ``high`` and ``n``, ``p``, and ``adjusted`` by Holm over windows.
        ``quality``: a line for each condition and ``measure``, against the baseline: the same
        without a correction, with ``margin`` and ``equivalent``, the p-value of a difference
        smaller than that.

    Raises
    ------
    ValueError
        No baseline; fewer than two prefixes; all continuations have the same answer in a window.
    """
    if "baseline" not in set(table["condition"]):
        raise ValueError('Effects are differences from the condition "baseline"; it is missing.')
    if table["prefix"].nunique() < 2:
        raise ValueError("All was played from one prefix: effects are tested over two or more.")
    played = table[~table["condition"].isin(REFERENCES)]
    heard = [name for name in WINDOWS if table.get(f"returns.{name}", pd.Series()).notna().any()]
    windows = heard if windows is None else list(windows)
    for window in windows:
        if window not in heard:
            raise ValueError(
                f"Nothing was heard in the window {window!r}; in {', '.join(heard)} it was."
            )
        answers = played[f"returns.{window}"].dropna()
        if answers.nunique() == 1:
            raise ValueError(
                f"In the window {window!r} all {len(answers)} continuations have the answer "
                f"{'yes' if answers.iloc[0] else 'no'}, so nothing can be told about it: play more "
                "prefixes, or leave the window out (windows=)."
            )
    conditions = [name for name in dict.fromkeys(table["condition"]) if name != "baseline"]
    mean = table.groupby(["condition", "prefix"], sort=False).mean(numeric_only=True)
    returned, heard_as = [], []
    for condition in conditions:
        for against in ("baseline", "random", "local"):
            if against not in mean.index or against == condition:
                continue
            if condition in ("random", "local") and against != "baseline":
                continue
            for kind in ("returns", "probability"):
                tests = {
                    window: test for window in windows
                    if (test := _paired(mean, condition, against, f"{kind}.{window}"))
                }  # fmt: skip
                adjusted = stats.holm([test.p for test in tests.values()]) if tests else []
                returned += [
                    (condition, against, kind, window, *test.difference, test.p, float(p))
                    for (window, test), p in zip(tests.items(), adjusted, strict=True)
                ]
        for name, margin in MARGINS.items():
            if name in mean and (test := _paired(mean, condition, "baseline", name)):
                a, b = _pairs(mean, condition, "baseline", name)
                same = stats.equivalence(a, b, margin)
                heard_as.append((condition, name, *test.difference, test.p, margin, same.p))
    interval = list(Interval._fields)
    return {
        "returns": pd.DataFrame(
            returned,
            columns=["condition", "against", "outcome", "window", *interval, "p", "adjusted"],
        ),
        "quality": pd.DataFrame(
            heard_as, columns=["condition", "measure", *interval, "p", "margin", "equivalent"]
        ),
    }


def _pairs(mean, condition, against, column) -> tuple[np.ndarray, np.ndarray]:
    """Both values of each prefix that has both."""
    both = pd.concat([mean.loc[condition][column], mean.loc[against][column]], axis=1).dropna()
    return both.iloc[:, 0].to_numpy(), both.iloc[:, 1].to_numpy()


def _paired(mean, condition, against, column) -> stats.Comparison | None:
    a, b = _pairs(mean, condition, against, column)
    return stats.paired_test(a, b) if len(a) > 1 else None


def surprises(table: pd.DataFrame) -> pd.DataFrame:
    """What each condition did to the likelihood of returns, over pieces.

    Parameters
    ----------
    table : DataFrame
        Of `expected`.

    Returns
    -------
    DataFrame
        A line for each condition and what it is ``against`` ("baseline"; "random" and "local" for
        the others than these): the paired difference ``value`` with ``low``, ``high``, ``n`` and
        ``p``, of ``measure`` "return" and "new", nats in bars of that kind, and of "gap", by how
        much more those of a return rose. ``adjusted``: Holm's, over conditions and what they are
        against, for each measure.
    """
    mean = table.groupby(["condition", "prefix"], sort=False).mean(numeric_only=True)
    mean = mean.rename(columns={"nats.return": "return", "nats.new": "new"})
    mean["gap"] = mean["return"] - mean["new"]
    found = []
    for what in ("gap", "return", "new"):
        for condition in dict.fromkeys(table["condition"]):
            for against in ("baseline", "random", "local"):
                if against not in mean.index or condition in ("baseline", against):
                    continue
                if condition in ("random", "local") and against != "baseline":
                    continue
                if test := _paired(mean, condition, against, what):
                    found.append((condition, against, what, *test.difference, test.p))
    columns = ["condition", "against", "measure", *Interval._fields, "p"]
    found = pd.DataFrame(found, columns=columns)
    adjusted = found.groupby("measure", sort=False)["p"].transform(stats.holm)
    return found.assign(adjusted=adjusted)


def verdict(
    effects: Mapping[str, pd.DataFrame], window: str = "long", by: str = "returns"
) -> dict[str, Any]:
    """Whether the cut was selective: less recurrence than under any control, in the same music.

    Parameters
    ----------
    effects : dict
        Of `effects`, with "ablate", and with "random" and "local" to be compared with. With
        "stranger" it is known whether there was recurrence to take away.
    window : str
        Of `WINDOWS`.
    by : {"returns", "probability"}
        The outcome that counts as recurrence.

    Returns
    -------
    dict
        ``words``, one of `WORDS`; ``selective`` (bool); ``against``, the difference of recurrence
        from the baseline and from each control, with its corrected p; ``same`` and ``worse``, the
        measures of quality that were shown to be equal, and those that changed.

    Raises
    ------
    ValueError
        A condition or the window is missing.
    """
    found = effects["returns"]
    here = found[(found["outcome"] == by) & (found["window"] == window)]
    found = here[here["condition"] == "ablate"].set_index("against")
    if missing := [name for name in ("baseline", "random", "local") if name not in found.index]:
        raise ValueError(
            f"In the window {window!r} the cut was not compared with {', '.join(missing)}: play "
            "and hear those conditions too."
        )
    less = (found["value"] < 0) & (found["adjusted"] < ALPHA)
    kept = effects["quality"]
    kept = kept[kept["condition"] == "ablate"]
    same = list(kept.loc[kept["equivalent"] < ALPHA, "measure"])
    # With several measures one of them may look changed by chance: corrected over measures.
    changed = stats.holm(kept["p"]) < ALPHA if len(kept) else np.zeros(0, bool)
    worse = [name for name in kept.loc[changed, "measure"] if name not in same]
    alone = bool(less["random"] and less["local"])
    if less["baseline"]:
        words = WORDS[3] if not alone else WORDS[1] if worse else WORDS[2]
        words = WORDS[0] if alone and len(kept) and len(same) == len(kept) else words
    else:
        more = found.loc["baseline", "value"] > 0 and found.loc["baseline", "adjusted"] < ALPHA
        chance = here[(here["condition"] == "stranger") & (here["against"] == "baseline")]
        above = (chance["value"] < 0) & (chance["adjusted"] < ALPHA)
        words = WORDS[4] if more else WORDS[5] if above.all() else WORDS[6]
    against = {
        name: (Interval(row["value"], row["low"], row["high"], int(row["n"])), row["adjusted"])
        for name, row in found.iterrows()
    }
    return {
        "words": words, "selective": words == WORDS[0], "window": window, "by": by,
        "against": against,
        "same": same, "worse": worse,
    }  # fmt: skip


# -- the kept table --------------------------------------------------------------------------------


def load(path: Path = TABLE) -> dict:
    """What the command kept: provenance, ``rows`` (`outcomes`), ``read`` (`expected`), ``fad``."""
    return opened(runs.load_made(path, "python -m musae_utils.structure.gates"))


def opened(kept: dict) -> dict:
    """What `run` gives, or a file holds: ``rows`` and ``read`` as tables, ``fad`` as intervals."""
    distances = {name: Interval(*one) for name, one in kept["fad"].items()}
    tables = {name: pd.DataFrame(kept[name]) for name in ("rows", "read")}
    return kept | tables | {"fad": distances}


def figures(kept: dict, found: dict | None = None) -> dict[str, Interval]:
    """The headlines of a table that `load` gave, by their names on the scoreboard.

    `found` are its `effects`, if they are at hand: they take seconds.

    ``structure.ablation.<condition>.<window>``: difference of the share of continuations in which a
    motif returns from the baseline's, with ``.against_random`` and ``.against_local`` behind for
    those from the controls; ``structure.ablation.rate.<condition>.<window>``: that share itself;
    ``structure.ablation.quality.<measure>.<condition>``: difference from the baseline, and for
    ``fad`` the distance from it; ``structure.ablation.expected.<gap, return or new>.<condition>``:
    of `surprises`, in nats. Intervals over compositions.
    """
    table, made = kept["rows"], {}
    found = found or effects(table, askable(table))
    for row in found["returns"].to_dict("records"):
        if row["outcome"] == "returns":
            name = f"structure.ablation.{_spelled(row['condition'])}.{row['window']}"
            name += "" if row["against"] == "baseline" else f".against_{row['against']}"
            made[name] = _interval(row)
    for row in found["quality"].to_dict("records"):
        name = f"structure.ablation.quality.{row['measure']}.{_spelled(row['condition'])}"
        made[name] = _interval(row)
    for name, one in kept["fad"].items():
        made[f"structure.ablation.quality.fad.{_spelled(name)}"] = one
    read = surprises(kept["read"]) if len(kept["read"]) else pd.DataFrame()
    for row in read.to_dict("records"):
        name = f"structure.ablation.expected.{row['measure']}.{_spelled(row['condition'])}"
        name += "" if row["against"] == "baseline" else f".against_{row['against']}"
        made[name] = _interval(row)
    for condition, part in table.groupby("condition", sort=False):
        for window in WINDOWS:
            mine = part[["prefix", f"returns.{window}"]].dropna()
            made[f"structure.ablation.rate.{_spelled(condition)}.{window}"] = stats.bootstrap(
                mine[f"returns.{window}"].to_numpy(), groups=mine["prefix"]
            )
    return made


def _interval(row: Mapping[str, Any]) -> Interval:
    return Interval(row["value"], row["low"], row["high"], int(row["n"]))


def _spelled(name: str) -> str:
    return name.replace(" ", "_")


def run(
    model: MusicModel,
    sae: SAE,
    features: Sequence[int],
    local: Sequence[int],
    prefixes: Sequence[Prefix],
    folder: Path,
    seconds: float = 30.0,
    batch: int = 32,
    random_seeds: Sequence[int] = (0, 1),
    conditions: Sequence[str] = CONDITIONS,
) -> dict:
    """Play and hear all conditions (resumable); what `TABLE` keeps."""
    from musae_utils.labels.ears import fingerprints

    folder = Path(folder)
    by_part = [
        play(
            model, sae, features, local, prefixes, seconds, part, folder / name, batch,
            random_seeds, progress=True,
        )
        for name, part in (
            ("whole", [c for c in conditions if c in WHOLE]),
            ("features", [c for c in conditions if c not in WHOLE]),
        ) if part
    ]  # fmt: skip
    codes = {name: rows for part in by_part for name, rows in part.codes.items()}
    played = by_part[-1]._replace(codes=codes)
    table = outcomes(model, prefixes, played, folder=folder / "heard", progress=True)
    far = fad(model, prefixes, played, folder=folder / "heard")
    read = pd.DataFrame({"name": []})  # of recordings nobody knows which bars are returns
    if _readable(prefixes, seconds):
        read = expected(model, sae, prefixes, played, progress=True)
    return {
        "provenance": {
            "model": model.fingerprint, "sae": _hash(*sae.state_dict().values()),
            "layer": _layer(model, sae), "ears": fingerprints(), "features": played.features,
            "local": played.local, "random": played.random, "random_seeds": list(random_seeds),
            "prefixes": len(prefixes), "seeds": [one.seed for one in prefixes],
            "prefix_seconds": prefixes[0].seconds, "seconds_a_piece": seconds,
            "windows": WINDOWS, "margins": MARGINS, "versions": runs.versions(),
        },
        "rows": table.drop(columns="name").round(4).to_dict("list"),
        "read": read.drop(columns="name").round(4).to_dict("list"),
        "fad": {name: [*(round(x, 6) for x in one[:3]), one.n] for name, one in far.items()},
    }  # fmt: skip
