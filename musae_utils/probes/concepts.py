"""Properties of music to look for, and the rows that are asked for them (notebook 04)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .fitting import _array, _first_codebook
from .linear import clip_types, probe_layers
from .results import LayerProbes
from .sources import pool, with_context


class Concept(NamedTuple):
    """A property of music to look for.

    Attributes
    ----------
    level : {"clip", "frame"}
        One label a clip, or one a frame.
    task : {"class", "regress", "circular"}
    read : callable
        Truth of a clip to its label, or to an array of labels of shape (T,). None, NaN and −1 mean
        that there is none.
    question : str
        What the probe is asked, in words.
    """

    level: str
    task: str
    read: Callable[[Any], Any]
    question: str


def _returns(truth: Any) -> np.ndarray:
    motif, repeats = np.asarray(truth.frames["motif"]), np.asarray(truth.frames["repeats"])
    return np.where(motif < 0, -1, repeats >= 0)


CONCEPTS: dict[str, Concept] = {
    "tonic": Concept("clip", "class", lambda t: t.clip["tonic"], "Which of 12 tonics?"),
    "mode": Concept("clip", "class", lambda t: t.clip["mode"], "Major or minor?"),
    "tempo": Concept("clip", "regress", lambda t: t.clip["tempo"], "How many beats a minute?"),
    "family": Concept("clip", "class", lambda t: t.clip["family"], "Which family leads?"),
    "drums": Concept("clip", "class", lambda t: t.clip["drums"], "Are there drums?"),
    "form": Concept("clip", "class", lambda t: t.clip["form"], "Which form?"),
    "chord_root": Concept(
        "frame", "class", lambda t: t.frames["chord_root"], "The root of this chord?"
    ),
    "chord_quality": Concept(
        "frame",
        "class",
        lambda t: t.frames["chord_quality"],
        "Major, minor, diminished or seventh?",
    ),
    "beat": Concept("frame", "circular", lambda t: t.frames["beat"], "Where between two beats?"),
    "section": Concept("frame", "class", lambda t: t.frames["section"], "Which section?"),
    "returns": Concept("frame", "class", _returns, "Was this motif heard before?"),
}


PAST = (0.5, 2.0, float("inf"))  # seconds over which every source of a frame is also averaged


@dataclass(frozen=True)
class Rows:
    """The rows of a probe: which clips or frames, and their labels.

    Attributes
    ----------
    labels : array of shape (N,)
    clip : array of shape (N,)
        Index of the clip.
    frame : array of shape (N,) or None
        Frame within the clip; None where a row is a whole clip.
    """

    labels: np.ndarray
    clip: np.ndarray
    frame: np.ndarray | None

    def take(self, arrays: Sequence[ArrayLike], windows: Sequence[int] = ()) -> np.ndarray:
        """Rows of per-clip arrays of shape (T, …): frames where rows are frames, whole clips' rows
        (arrays already pooled to one row a clip) otherwise. Windows, in frames, as in
        `with_context`."""
        if self.frame is None:
            return _array(arrays)[self.clip]
        out = None
        for clip in np.unique(self.clip):  # one clip at a time: long stores need not fit twice
            here = self.clip == clip
            if windows:
                part = with_context(arrays[clip], windows, self.frame[here])
            else:
                part = _array(arrays[clip])[self.frame[here]]
            if out is None:
                out = np.empty((len(self.clip), *part.shape[1:]), part.dtype)
            out[here] = part
        return out


def concept_rows(
    truths: Sequence[Any],
    concept: str | Concept,
    n_frames: Sequence[int] | None = None,
    per_clip: int = 24,
    skip: float = 2.0,
    frame_rate: float = 50.0,
    seed: int = 0,
) -> Rows:
    """Choose the rows that have a label for a concept.

    Parameters
    ----------
    truths : sequence of Truth (or Clip)
        Ground truth of each clip.
    concept : str or Concept
        A key of `CONCEPTS`, or one's own.
    n_frames : sequence of int, optional
        Usable frames of each clip; by default as many as the truth has.
    per_clip : int
        Frames drawn from each clip, for concepts of frames (neighbouring frames say the same).
    skip : float
        Seconds left out at the start, where a causal model has heard too little to know anything.
    frame_rate : float
        Hz, of the truth.
    seed : int

    Returns
    -------
    Rows

    Raises
    ------
    ValueError
        Unknown concept, a clip without truth, or no labelled row at all.
    """
    if isinstance(concept, str):
        if concept not in CONCEPTS:
            raise ValueError(f"Unknown concept {concept!r}; choose from {', '.join(CONCEPTS)}.")
        concept = CONCEPTS[concept]
    truths = [getattr(t, "truth", t) for t in truths]
    missing = [i for i, t in enumerate(truths) if t is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(truths)} clips have no ground truth (the first is number "
            f"{missing[0]}), and a probe cannot be scored without it; leave them out."
        )
    if concept.level == "clip":
        values = [concept.read(t) for t in truths]
        known = np.array([_known(v) for v in values], bool)
        labels = np.array([v for v, k in zip(values, known, strict=True) if k])
        clips, frames = np.flatnonzero(known), None
    else:
        rng = np.random.default_rng(seed)
        labels, clips, frames = [], [], []
        for i, truth in enumerate(truths):
            values = np.asarray(concept.read(truth))
            usable = len(values) if n_frames is None else min(len(values), n_frames[i])
            good = np.flatnonzero(_known_array(values[:usable]))
            good = good[good >= skip * frame_rate]
            drawn = np.sort(rng.choice(good, min(per_clip, len(good)), replace=False))
            labels.append(values[drawn])
            clips.append(np.full(len(drawn), i))
            frames.append(drawn)
        labels, clips, frames = map(np.concatenate, (labels, clips, frames))
    if not len(labels):
        raise ValueError("None of the clips has a label for this concept.")
    return Rows(labels, clips, frames)


def probe_concepts(
    sources: Mapping[str, Sequence[ArrayLike]],
    truths: Sequence[Any],
    compositions: ArrayLike,
    rivals: Iterable[str] = (),
    tokens: Sequence[ArrayLike] | None = None,
    concepts: Iterable[str] = tuple(CONCEPTS),
    per_clip: int = 24,
    skip: float = 2.0,
    frame_rate: float = 50.0,
    seed: int = 0,
    repeats: int = 1,
    past: Sequence[float] = PAST,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, LayerProbes]:
    """Probe every layer and rival for every concept.

    Clips are pooled over time by mean and standard deviation for concepts of whole clips; for
    concepts of frames a few frames of each clip are drawn, the same for all sources, each with its
    means over the past (`with_context`): a layer may draw on everything it has heard, so its rivals
    are given a memory too, and then all must be read through the same windows.

    Parameters
    ----------
    sources : dict of name to sequence of arrays of shape (T, d)
        Frame-aligned features of each clip, at the truth's frame rate; a last frame more or less is
        cut off.
    truths : sequence of Truth (or Clip)
    compositions : array of shape (number of clips,)
        Which composition each clip belongs to.
    rivals : names in `sources`
    tokens : sequence of arrays of shape (T,) or (K, T), optional
        Codes of each clip; with them every probe gets a control task.
    concepts : names in `CONCEPTS`
        One that does not vary in these clips is left out of the result.
    per_clip, skip, frame_rate, seed, repeats
        As for `concept_rows` and `probe`.
    past : sequence of float
        Seconds of the windows; empty for single frames.
    progress : callable
        Wraps the iteration over concepts, e.g. ``tqdm``.

    Returns
    -------
    dict of concept to LayerProbes
    """
    compositions = np.asarray(compositions)
    counts = {name: len(x) for name, x in sources.items()} | {"truths": len(truths)}
    counts["compositions"] = len(compositions)
    if tokens is not None:
        tokens = [_first_codebook(t) for t in tokens]
        counts["tokens"] = len(tokens)
    if len(set(counts.values())) > 1:
        raise ValueError(f"Each needs one entry a clip, and their numbers differ: {counts}.")
    n_frames = [min(len(x[i]) for x in sources.values()) for i in range(len(truths))]
    if tokens is not None:
        n_frames = [min(n, len(t)) for n, t in zip(n_frames, tokens, strict=True)]
    for i, n in enumerate(n_frames):
        longest = max(len(x[i]) for x in sources.values())
        if longest - n > max(3, 0.02 * longest):
            raise ValueError(
                f"Clip {i} has {n} frames in one source and {longest} in another; all sources must "
                "be aligned to the same frames."
            )
    start = int(skip * frame_rate)
    windows = [round(min(seconds * frame_rate, 1e9)) for seconds in past]
    pooled: dict[str, np.ndarray] = {}
    types = None
    out = {}
    for name in progress(list(concepts)):
        rows = concept_rows(truths, name, n_frames, per_clip, skip, frame_rate, seed)
        if len(np.unique(rows.labels)) < 2:
            continue
        if rows.frame is None:
            if not pooled:
                pooled = {
                    s: np.stack([pool(a[start:n]) for a, n in zip(x, n_frames, strict=True)])
                    for s, x in sources.items()
                }
                types = clip_types(tokens) if tokens is not None else None
            features, row_types = pooled, types
        else:
            features, row_types = sources, tokens
        out[name] = probe_layers(
            {s: rows.take(x, windows) for s, x in features.items()},
            rows.labels,
            compositions[rows.clip],
            rivals,
            CONCEPTS[name].task,
            seed,
            repeats,
            types=None if row_types is None else rows.take(row_types),
        )
    return out


def _known(value: Any) -> bool:
    return value is not None and value == value and value != -1 and value != ""


def _known_array(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values) & (values != -1) if values.dtype.kind in "fiub" else values != ""
