"""Pieces of which it is known when motifs return, and the moments at which one can ask.

A row is a moment ``t`` of a piece. Its answer for a horizon ``(a, b)`` is whether a motif that has
been heard in full by ``t`` begins again from ``t + a`` to ``t + b`` seconds. A model that reads the
piece up to ``t`` cannot have heard it: what it reads of composed music even ends before.

`composed` pieces know their answers from the score, `played` ones (the model's own music) and
`recordings` from the labeler of `musae_utils.structure.labelers`.

Of composed music it is also known what *anybody* could foretell. The composer draws one of five
forms; `grammar` is the probability of a return over all forms that fit the bars begun so far. Where
it is 0 or 1 the past gives the answer away; in between nothing in the sound can.

Explained in notebooks/16_does_the_model_plan_ahead.ipynb.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from musae_utils.music.captions import caption
from musae_utils.music.clip import Clip
from musae_utils.music.compose import (
    BARS,
    BARS_THROUGH,
    FORMS,
    Score,
    Spec,
    compose,
    section_bars,
)
from musae_utils.music.dataset import SPLIT_SEEDS
from musae_utils.music.render import render
from musae_utils.structure.hearing import hear, silent
from musae_utils.structure.labelers import Labeler, label, labeler, onsets

#: Seconds from now on, as S3 named them.
HORIZONS = {"short": (1.0, 3.0), "middle": (5.0, 10.0), "long": (15.0, 25.0)}
FIRST, EVERY = 4.0, 1.0  # seconds: the first row of a piece, and how far apart they are
WINDOW = 2.0  # seconds of a motif where no score says how long it is


class Piece(NamedTuple):
    """Music, and when its motifs return.

    Attributes
    ----------
    name : str
        The composition; splits go by it.
    codes : int array of shape (K, T)
        What the model reads.
    audio : float32 array of shape (n,)
        The same as sound.
    sample_rate : int
        Hz.
    seconds : float
        Until when its returns are known; may be later than the sound's end.
    returns : float array of shape (R, 2)
        When the motif had been heard in full, and when it begins again; seconds.
    motifs : float array of shape (M,)
        When each motif had been heard in full.
    prompt : str
        What the model is told; "" for nothing.
    instrument : str
        The lead's family, where it is known.
    foretell : callable, optional
        (t, (a, b)) to the probability of a return by the composer's rules.
    """

    name: str
    codes: np.ndarray
    audio: np.ndarray
    sample_rate: int
    seconds: float
    returns: np.ndarray
    motifs: np.ndarray
    prompt: str = ""
    instrument: str = ""
    foretell: Callable[[float, tuple[float, float]], float] | None = None

    def comes_back(self, t: float, horizon: tuple[float, float]) -> bool:
        """Whether a motif that has been heard by t begins again within the horizon."""
        heard, again = self.returns.T if len(self.returns) else np.zeros((2, 0))
        return bool(((heard <= t) & (again >= t + horizon[0]) & (again <= t + horizon[1])).any())


# -- composed music --------------------------------------------------------------------------------


def composed(
    model: Any,
    n: int,
    seed: int = 0,
    read: float = 15.0,
    seconds: float = 40.0,
    split: str = "test",
    prompted: bool = True,
    progress: Callable[[Iterable], Iterable] = iter,
    **fields,
) -> list[Piece]:
    """Composed pieces, of which the model reads the beginning.

    Parameters
    ----------
    model : MusicModel
    n, seed, split
        Compositions of a split, as `music.make_many` counts them.
    read : float
        Seconds that are rendered and read, at least 5.
    seconds : float
        Length of the composition.
    prompted : bool
        Tell the model a caption, which never names the form.
    progress : callable
        Wraps the iteration over batches, e.g. ``tqdm``.
    **fields
        Of `music.Spec`, to fix in all pieces.

    Returns
    -------
    list of Piece
    """
    made = []
    for first in progress(range(0, n, 8)):
        numbers = range(first, min(n, first + 8))
        scores = [
            compose(Spec(seconds=seconds, **fields), SPLIT_SEEDS[split] + seed + i)
            for i in numbers
        ]  # fmt: skip
        clips = [
            render(
                compose(Spec(seconds=read, **fields), SPLIT_SEEDS[split] + seed + i),
                SPLIT_SEEDS[split] + seed + i,
            )
            for i in numbers
        ]
        codes = model.encode(clips).numpy()
        for i, score, clip, row in zip(numbers, scores, clips, codes, strict=True):
            told = _told(clip, seed + i) if prompted else ""
            made.append(_piece(f"{split} {seed + i}", score, clip, row, told))
    return made


def _told(clip: Clip, seed: int) -> str:
    """A caption that does not name the form, which would give most answers away."""
    known = {name: value for name, value in clip.truth.clip.items() if name != "form"}
    return caption(replace(clip.truth, clip=known), np.random.default_rng([seed, 16]))


def _piece(name: str, score: Score, clip: Clip, codes: np.ndarray, prompt: str) -> Piece:
    returns, motifs = statements(score)
    return Piece(
        name, codes, clip.audio, clip.sample_rate, score.spec.seconds, returns, motifs, prompt,
        score.spec.family or "", lambda t, horizon: grammar(score, t, horizon),
    )  # fmt: skip


def statements(score: Score) -> tuple[np.ndarray, np.ndarray]:
    """(R, 2) returns and (M,) motifs of a score, as `Piece` has them."""
    ends = {s["motif"]: s["end"] for s in score.statements if s["kind"] == "first"}
    back = [(ends[s["motif"]], s["start"]) for s in score.statements if s["kind"] != "first"]
    return np.array(back, float).reshape(-1, 2), np.array(sorted(ends.values()), float)


def grammar(score: Score, t: float, horizon: tuple[float, float]) -> float:
    """How probable a return is, to somebody who knows the composer's rules and the bars so far.

    All forms are equally likely. A bar counts as known as soon as it begins, so no listener knows
    more.

    Parameters
    ----------
    score : Score
        Only its bars that begin before `t`, and how long a bar is, are looked at.
    t : float
        Seconds.
    horizon : (float, float)
        Seconds after t.

    Returns
    -------
    float in [0, 1]
    """
    spec = score.spec
    bar, per_section = spec.metre * score.beat, section_bars(spec.tempo, spec.metre)
    motif_at = {round(s["start"] / bar): s["motif"] for s in score.statements}
    known = [motif_at.get(i, "-") for i in range(int(np.ceil(t / bar - 1e-9)))]
    bars = int(np.ceil((t + horizon[1]) / bar)) + 1
    total = back = 0.0
    for form in FORMS:
        for weight, motifs in _written(form, per_section, bars, len(known)):
            if _canonical(motifs[: len(known)]) != _canonical(known):
                continue
            total += weight
            back += weight * _returns(motifs, bar, t, horizon)
    return back / total


def _written(form: str, per_section: int, bars: int, known: int) -> Iterable[tuple[float, list]]:
    """All ways in which a form may lay its motifs over bars, with their weights.

    Sections that a through-composed piece has yet to begin bring nothing back whichever their
    letters, so there one way stands for all.
    """
    n = -(-bars // per_section)
    if form == "through":
        labels = list(range(n))
    else:
        labels = [FORMS[form][i % len(FORMS[form])] for i in range(n)]
    options = (BARS_THROUGH if form == "through" else BARS)[per_section]
    some = list(dict.fromkeys(labels))
    some = some[: -(-known // per_section)] if form == "through" else some
    for letters in itertools.product(options, repeat=len(some)):
        of = dict(zip(some, letters, strict=True))
        motifs = [
            letter if letter == "-" else (section, letter)
            for section in labels
            for letter in of.get(section, options[0])
        ]
        yield len(options) ** -len(some), motifs


def _canonical(motifs: Sequence) -> list:
    """Motifs by the order of their first appearance; closing bars stay what they are."""
    numbers: dict = {}
    return [m if m == "-" else numbers.setdefault(m, len(numbers)) for m in motifs]


def _returns(motifs: Sequence, bar: float, t: float, horizon: tuple[float, float]) -> bool:
    first: dict = {}
    for i, motif in enumerate(motifs):
        start = i * bar
        if motif == "-":
            continue
        if motif in first and first[motif] <= t + 1e-9:
            if t + horizon[0] <= start <= t + horizon[1]:
                return True
        first.setdefault(motif, start + bar)
    return False


# -- music without a score -------------------------------------------------------------------------


def by_ear(
    audio: np.ndarray,
    sample_rate: int,
    motifs: Sequence[tuple[float, float]],
    by: Labeler | None = None,
) -> np.ndarray:
    """When motifs return, as a labeler hears it.

    Parameters
    ----------
    audio : ndarray of shape (n,)
    sample_rate : int
        Hz.
    motifs : sequence of (float, float)
        Windows in seconds. Silent ones return nothing.
    by : Labeler, optional
        The kept one if left out.

    Returns
    -------
    ndarray of shape (R, 2)
        As `Piece.returns`.
    """
    by, heard = by or labeler(), hear(audio, sample_rate)
    found = []
    for start, end in motifs:
        if silent(heard, np.array([start]), end - start)[0] or heard.seconds < 2 * end - start:
            continue
        probability = label(heard, (start, end), by=by)["probability"]
        found += [(end, again) for again in onsets(probability, end - start, by.search)]
    return np.array(found, float).reshape(-1, 2)


def played(
    model: Any,
    n: int,
    seed: int = 0,
    prefix: float = 5.0,
    seconds: float = 30.0,
    batch: int = 32,
    split: str = "test",
    codes: Callable[[int, Callable[[], np.ndarray]], np.ndarray] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Piece]:
    """The model's own music: composed beginnings, which it goes on from without a prompt.

    The motifs asked about are those written in the beginning; their returns are heard. With no
    rule for what comes next, only the model can know what it will play.

    Parameters
    ----------
    model : MusicModel
    n, seed, split
        Compositions of a split, as `music.make_many` counts them.
    prefix, seconds : float
        Length of the beginning and of the whole.
    batch : int
        Rows played at once.
    codes : callable, optional
        (number of a batch, function that plays it) to its codes: lets a caller keep them.
    progress : callable

    Returns
    -------
    list of Piece
        Without those whose beginning holds no whole motif.
    """
    made = []
    for first in progress(range(0, n, batch)):
        numbers = range(seed + first, seed + min(n, first + batch))
        clips = [
            render(compose(Spec(seconds=prefix), SPLIT_SEEDS[split] + i), SPLIT_SEEDS[split] + i)
            for i in numbers
        ]

        def play(clips=clips, numbers=numbers) -> np.ndarray:
            return model.continue_from(clips, seconds, seed=list(numbers)).codes.numpy()

        rows = play() if codes is None else codes(first // batch, play)
        sounds = model.decode(rows).numpy()
        for i, clip, row, sound in zip(numbers, clips, rows, sounds, strict=True):
            whole = [
                (s["start"], s["end"]) for s in clip.truth.clip["statements"]
                if s["kind"] == "first" and s["end"] <= prefix + 1e-6
            ]  # fmt: skip
            bar = max((c["end"] - c["start"] for c in clip.truth.clip["chords"]), default=0)
            whole = [span for span in whole if span[1] - span[0] > bar - 1e-3]
            if whole:
                made.append(_heard(f"own {i}", row, sound, model.sample_rate, whole))
    return made


def recordings(
    model: Any,
    clips: Sequence[Clip],
    prefix: float = 5.0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Piece]:
    """Pieces of which nothing is known: every window of the beginning may return.

    Parameters
    ----------
    model : MusicModel
    clips : sequence of Clip
        At least twice as long as `prefix`; clips of one recording should have one name.
    prefix : float
        Seconds; the motifs are its windows of two seconds, one a second.

    Returns
    -------
    list of Piece

    Raises
    ------
    ValueError
        A clip is too short for any horizon.
    """
    windows = [(s, s + WINDOW) for s in np.arange(0, prefix - WINDOW + 1e-6, 1.0)]
    made = []
    for clip in progress(clips):
        least = prefix + HORIZONS["short"][1]
        if clip.seconds < least:
            raise ValueError(
                f"{clip.name!r} lasts {clip.seconds:.1f} s. To ask what comes after its first "
                f"{prefix:g} s even the shortest horizon needs {least:g} s: give longer music, or "
                "a shorter prefix."
            )
        codes = model.encode(clip)[0].numpy()
        made.append(_heard(clip.name, codes, clip.audio, clip.sample_rate, windows))
    return made


def _heard(name: str, codes, audio, sample_rate: int, motifs: list) -> Piece:
    returns = by_ear(audio, sample_rate, motifs)
    ends = np.array(sorted(end for _, end in motifs))
    return Piece(name, codes, audio, sample_rate, len(audio) / sample_rate, returns, ends)


# -- rows ------------------------------------------------------------------------------------------


def rows(
    pieces: Sequence[Piece],
    frame_rate: float,
    horizons: dict[str, tuple[float, float]] = HORIZONS,
    first: float = FIRST,
    every: float = EVERY,
) -> pd.DataFrame:
    """The moments at which pieces are asked, and the answers.

    Parameters
    ----------
    pieces : sequence of Piece
    frame_rate : float
        Of the codes, Hz.
    horizons : dict of str to (float, float)
    first, every : float
        Seconds.

    Returns
    -------
    DataFrame, one line a moment
        ``piece`` (its place in `pieces`), ``name``, ``t``, ``frame`` (the last one that has been
        heard), of each horizon 1.0 or 0.0 (NaN where the piece ends before it), and
        ``grammar <horizon>`` (NaN where nothing is written).

    Raises
    ------
    ValueError
        No piece is long enough for any horizon.
    """
    lines = []
    for number, piece in enumerate(pieces):
        ends = piece.codes.shape[-1] / frame_rate
        for t in np.arange(first, ends + 1e-6, every):
            line = {"piece": number, "name": piece.name, "t": t, "frame": round(t * frame_rate) - 1}
            for name, horizon in horizons.items():
                fits = t + horizon[1] <= piece.seconds + 1e-6
                line[name] = float(piece.comes_back(t, horizon)) if fits else np.nan
                known = fits and piece.foretell is not None
                line[f"grammar {name}"] = piece.foretell(t, horizon) if known else np.nan
            lines.append(line)
    table = pd.DataFrame(lines)
    if not len(table) or table[list(horizons)].isna().all(axis=None):
        longest = max((piece.seconds for piece in pieces), default=0.0)
        least = first + min(end for _, end in horizons.values())
        raise ValueError(
            f"The longest of {len(pieces)} pieces lasts {longest:.1f} s, and the shortest horizon "
            f"asks for {least:g} s: give longer music."
        )
    return table[table[list(horizons)].notna().any(axis=1)].reset_index(drop=True)


def balanced(
    labels: np.ndarray, t: np.ndarray, seed: int = 0, most: int | None = None
) -> np.ndarray:
    """Rows, drawn so that at every moment as many answers are yes as no.

    A stopwatch then knows nothing: returns are rare early in a piece and common later.

    Parameters
    ----------
    labels : array of shape (N,)
        0, 1 or NaN.
    t : array of shape (N,)
        Seconds.
    seed : int
    most : int, optional
        About so many rows at most; moments keep their shares.

    Returns
    -------
    int array, sorted

    Raises
    ------
    ValueError
        No moment has both answers.
    """
    labels, t = np.asarray(labels, float), np.asarray(t, float)
    rng, kept = np.random.default_rng(seed), []
    both = [
        [np.flatnonzero((t == moment) & (labels == answer)) for answer in (1, 0)]
        for moment in np.unique(t)
    ]
    total = 2 * sum(min(map(len, each)) for each in both)
    part = 1.0 if most is None or total <= most else most / total
    for yes, no in both:
        n = int(np.ceil(part * min(len(yes), len(no))))
        kept += [rng.choice(yes, n, replace=False), rng.choice(no, n, replace=False)]
    found = np.sort(np.concatenate(kept)).astype(int) if kept else np.array([], int)
    if not len(found):
        share = np.nanmean(labels) if np.isfinite(labels).any() else np.nan
        raise ValueError(
            f"{share:.0%} of {np.isfinite(labels).sum()} answers are yes, and at no moment of the "
            "pieces are there both yes and no. A probe learns from both: give more or other music."
        )
    return found


def so_far(pieces: Sequence[Piece], table: pd.DataFrame) -> np.ndarray:
    """What has returned up to each row, of shape (N, 4).

    Number of motifs heard, of returns that have begun, their ratio, and seconds since the last
    return began (30 if none has).
    """
    found = []
    for number, t in zip(table["piece"], table["t"], strict=True):
        piece = pieces[number]
        again = piece.returns[:, 1][piece.returns[:, 1] <= t] if len(piece.returns) else []
        heard = int((piece.motifs <= t).sum())
        last = t - np.max(again) if len(again) else 30.0
        found.append((heard, len(again), len(again) / max(1, heard), min(30.0, last)))
    return np.array(found, np.float32)
