"""What is asked of scored music: does this window bring the motif back? And traps.

Of each motif, its first whole statement is the earlier window, and every later whole bar is asked
about. What was written answers: an ``exact`` return, a ``transposed`` one (on another degree of
the same key), a ``varied`` one (ornamented), or ``none``.

In a trap nothing returns, whatever it sounds like:

=============  =====================================================================================
texture        through-composed: same instruments, key, texture and drums, and never the same motif
same chords    a form whose sections return with their harmony, bass and drums, bar by bar, and
               with a new melody each time; asked where the chord is that of the earlier window
drum loop      drums alone, the same bar over and over
=============  =====================================================================================

Explained in notebooks/15_what_counts_as_a_return.ipynb.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from musae_utils.music.clip import Clip
from musae_utils.music.compose import (
    MAJOR,
    MINOR,
    Score,
    Spec,
    _melody,
    compose,
    new_motif,
    shapes,
)
from musae_utils.music.dataset import SPLIT_SEEDS
from musae_utils.music.render import render

KINDS = ("exact", "transposed", "varied")
TRAPS = ("texture", "same chords", "drum loop")


class Question(NamedTuple):
    """An earlier window, where a later one of the same length starts, and what was written there.

    Attributes
    ----------
    earlier : (float, float)
        Seconds.
    start : float
        Seconds.
    kind : str
        One of `KINDS`, or ``"none"``.
    """

    earlier: tuple[float, float]
    start: float
    kind: str


def questions(clip: Clip) -> list[Question]:
    """All that is asked of a composed clip; see the module's head.

    Raises
    ------
    ValueError
        It has no written statements: a recording, or not composed here.
    """
    known = {} if clip.truth is None else clip.truth.clip
    if "statements" not in known:
        raise ValueError(
            f"Of {clip.name!r} no motifs were written down; questions are asked of composed clips."
        )
    bars, stated = _bars(known), {_at(s): s for s in known["statements"]}
    asked = []
    for first in known["statements"]:
        earlier = first["start"], first["end"]
        if first["kind"] != "first" or _at(first) not in {_at(bar) for bar in bars}:
            continue
        for bar in bars:
            if bar["start"] > earlier[1] - 1e-6:
                there = stated.get(_at(bar), {"motif": None})
                kind = there["kind"] if there["motif"] == first["motif"] else "none"
                asked.append(Question(earlier, bar["start"], kind))
    return asked


def trap(kind: str, number: int, split: str = "test") -> tuple[Clip, list[Question]]:
    """A clip of 30 s in which nothing returns, and what is asked of it.

    Parameters
    ----------
    kind : str
        One of `TRAPS`.
    number : int
        Composition of the split.
    split : {"train", "test", "validation"}

    Returns
    -------
    Clip, list of Question
    """
    if kind not in TRAPS:
        raise ValueError(f"There is no trap {kind!r}; there are {', '.join(TRAPS)}.")
    seed = SPLIT_SEEDS[split] + number
    if kind == "texture":
        clip = render(compose(Spec(form="through", seconds=30.0), seed), seed)
        return clip, questions(clip)
    if kind == "same chords":
        form = ("AABA", "ABAB", "rondo")[number % 3]
        score = compose(Spec(form=form, seconds=30.0), seed)
        returned = sing_anew(score, np.random.default_rng([seed, 15]))
        clip = render(score, seed)
        chords = {_at(chord): chord["root"] for chord in _bars(clip.truth.clip)}
        at = lambda start: chords[round(start, 4)]  # noqa: E731
        return clip, [
            q for q in questions(clip)
            if round(q.start, 4) in returned and at(q.start) == at(q.earlier[0])
        ]  # fmt: skip
    score = compose(Spec(drums=True, seconds=30.0), seed)
    score.notes = [note for note in score.notes if note.role == "drums"]
    score.statements = []
    clip = render(score, seed)
    bars = _bars(clip.truth.clip)
    return clip, [
        Question((bar["start"], bar["end"]), later["start"], "none")
        for i, bar in enumerate(bars[:4]) for later in bars[i + 1 :]
    ]  # fmt: skip


def sing_anew(score: Score, rng: np.random.Generator) -> set[float]:
    """Put a motif never heard before into each bar that brings one back, harmony left as it is.

    Changes the score; returns where the new motifs start, in seconds with four decimals.
    """
    spec, scale = score.spec, (MAJOR, MINOR)[score.spec.mode]
    bar = spec.metre * score.beat
    degree = {_at(c): scale.index((c["root"] - spec.tonic) % 12) for c in score.chords}
    number = 1 + max(s["motif"] for s in score.statements)
    taken = set()  # of the motifs that stay: their rhythms and pitches
    for each in score.statements:
        taken |= {_line(score.notes, each["start"], each["end"], score.beat)}
    fresh = set()
    for each in score.statements:
        if each["kind"] == "first":
            continue
        start, on = each["start"], degree[_at(each)]
        motif = new_motif(spec.metre, rng)
        while shapes(spec, motif, [on]) & taken:
            motif = new_motif(spec.metre, rng)
        taken |= shapes(spec, motif, [on])
        score.notes = [
            n for n in score.notes
            if n.role != "melody" or not start - 1e-6 <= n.start < start + bar - 1e-6
        ]  # fmt: skip
        _melody(score, motif, on, start)
        each |= {"motif": number, "kind": "first", "of": -1}
        number += 1
        fresh.add(round(start, 4))
    score.notes = [n for n in score.notes if n.start < spec.seconds - 0.02]
    score.notes.sort(key=lambda n: (n.start, n.role, n.pitch))
    return fresh


def _at(span: dict) -> float:
    return round(span["start"], 4)


def _bars(known: dict) -> list[dict]:
    """Whole bars: each has one chord; the last may be cut short by the clip's end."""
    length = max(chord["end"] - chord["start"] for chord in known["chords"])
    return [c for c in known["chords"] if c["end"] - c["start"] > length - 1e-3]


def _line(notes, start: float, end: float, beat: float) -> tuple:
    """A bar of melody as `shapes` has it: when its notes begin and last, and its semitones."""
    sung = [n for n in notes if n.role == "melody" and start - 1e-6 <= n.start < end - 1e-6]
    onsets = [(n.start - start) / beat for n in sung] + [(end - start) / beat]
    rhythm = tuple((round(a, 3), round(b - a, 3)) for a, b in itertools.pairwise(onsets))
    return rhythm, tuple(int(b.pitch - a.pitch) for a, b in itertools.pairwise(sung))
