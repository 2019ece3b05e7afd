"""Linear probes: what can be read off a model's activations, and what could be read anyway.

A probe is a linear map fitted to predict a known property of the music (the key, the chord, the
phase of the beat, …) from activations. That it succeeds shows that the property is *there* in
linear form, not that the model uses it. Four controls keep the claim honest:

- **Split by composition.** A probe is found on one half of the compositions and scored on the
  other; frames and crops of one composition never lie on both sides. Standardisation,
  regularisation strength and the choice of the best layer see the first half only.
- **Rivals.** The same split, rows and probe for the sum of code embeddings, the codec's latents,
  plain acoustic features and the mere position in the clip. Differences are paired by composition.
- **Control tasks** after Hewitt and Liang (2019): labels drawn at random per *type* of input, which
  only a probe that memorises can learn. Selectivity is the accuracy on the task minus that on its
  control task.
- **Chance** is what a probe without features scores on the same rows: the most common class.

What is a type, in music? In language it is the word. Here

- for a *frame* the type is its token in the first codebook: it occurs in many compositions, and
  says what the frame sounds like and nothing about where in the music it stands;
- for a *clip* a label drawn per composition could never be learnt from one half for the other, so
  the type is one of a few dozen equally large kinds of sound: a leaf of a balanced tree over the
  clips' histograms of first-codebook tokens (`clip_types`), built without any label.

Three tasks: ``"class"`` (multinomial logistic regression), ``"regress"`` (ridge; tempo) and
``"circular"`` (ridge on cosine and sine; a phase in [0, 1)).

Explained and used in notebooks/04_what_the_model_knows.ipynb.

References
----------
Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes,
arXiv:1610.01644. Hewitt and Liang (2019), Designing and interpreting probes with control tasks,
arXiv:1909.03368.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from .stats import Interval, proportion, resample_groups

__all__ = [
    "CONCEPTS",
    "RIVALS",
    "Concept",
    "LayerProbes",
    "ProbeResult",
    "Rows",
    "Selectivity",
    "acoustic_features",
    "clip_types",
    "concept_rows",
    "control_labels",
    "layer_features",
    "pool",
    "position_features",
    "probe",
    "probe_concepts",
    "probe_layers",
    "rival_features",
    "selectivity",
    "untrained",
    "with_context",
]

TASKS = ("class", "regress", "circular")
MIN_GROUPS = 6  # three compositions in each half: as many as there are inner folds
FOLDS = 3  # inner folds, by composition, that choose the regularisation
BINS = 8  # a phase counts as right in the right eighth; the first is centred on 0, the beat itself
CLOSE = 0.08  # a number counts as right within 8 %, the usual tolerance for tempo
PENALTIES = (75.0, 15.0, 3.0, 0.6, 0.12, 0.024, 0.005, 0.001, 0.0002)  # L2 per row of features
DRAWS = 2000  # bootstrap resamples of compositions
# Resampling the scored compositions leaves out that the training half, too, is a sample. On
# simulated data 95 % intervals of scores and of differences then held the expected value in 81 to
# 94 % of cases, the true spread being 1.1 to 1.4 times theirs; widened, in 93 % and more.
WIDEN = 1.3


# -- results ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeResult:
    """What a probe scored on compositions it never saw.

    Intervals are 95 % bootstrap intervals over compositions, widened by 1.3 because the training
    half is a sample as well. A share of exactly 0 or 1 has no bootstrap spread and gets its Wilson
    interval by composition.
    """

    task: str
    score: Interval
    """Accuracy ("class"), R² ("regress"; below 0 is worse than the mean) or share of phases in the
    right eighth ("circular")."""
    metrics: dict[str, Interval]
    """class: accuracy, balanced_accuracy, macro_f1; regress: r2, within_8; circular: accuracy,
    angular_error in degrees. Each `*_chance` is the same for a probe without features."""
    classes: np.ndarray
    """Class names, in the order of `confusion`; empty for other tasks."""
    groups: np.ndarray
    """The G compositions that were scored."""
    sums: np.ndarray = field(repr=False)
    """Sufficient statistics of each composition, shape (G, m); what the bootstrap resamples."""
    splits: tuple[float, ...] = ()
    """The score in each test half."""
    inner: tuple[float, ...] = ()
    """The score in inner cross-validation on each training half; the best layer is chosen by it."""
    penalties: tuple[float, ...] = ()
    """Regularisation chosen in each training half (L2 per row of standardised features)."""

    @property
    def chance(self) -> float:
        """The score of a probe without features on the same rows."""
        return self.metrics[f"{_MAIN[self.task]}_chance"].value

    @property
    def confusion(self) -> np.ndarray:
        """Counts of shape (true class, predicted class), added up over repeats."""
        c = len(self.classes)
        if not c:
            raise ValueError(f"Only classes have a confusion matrix; this task is {self.task!r}.")
        return self.sums[:, : c * c].sum(0).reshape(c, c).astype(int)

    def by_group(self) -> np.ndarray:
        """Score within each composition, shape (G,), e.g. for `stats.paired_test`.

        Shares of correct rows: accuracy for classes and phases, "within 8 %" for numbers.
        """
        name = "within_8" if self.task == "regress" else "accuracy"
        return _METRICS[self.task](self.sums, len(self.classes))[name]

    def __str__(self) -> str:
        return f"{_MAIN[self.task]} {self.score} compositions, chance {self.chance:.3f}"


class Selectivity(NamedTuple):
    """A task beside its control task.

    Attributes
    ----------
    task, control : ProbeResult
    value : Interval
        Score on the task minus score on the control task, paired by composition.
    coverage : float
        Share of scored rows whose type also occurred in the training half: where it is far below 1
        the control task could not have been learnt and the selectivity flatters.
    """

    task: ProbeResult
    control: ProbeResult
    value: Interval
    coverage: float


@dataclass(frozen=True)
class LayerProbes:
    """Layers and rivals on the same rows and splits."""

    results: dict[str, ProbeResult]
    """By source, rivals included."""
    rivals: tuple[str, ...]
    best: ProbeResult
    """The best layer: chosen on each training half, scored on the other half."""
    chosen: tuple[str, ...]
    """Which layer that was, for each half."""
    differences: dict[str, Interval]
    """Score of `best` minus each rival's, paired by composition; for a p-value give both
    `ProbeResult.by_group` to `stats.paired_test`."""
    controls: dict[str, Selectivity] = field(default_factory=dict)
    """By source, where types were given."""

    @property
    def best_rival(self) -> str | None:
        """The rival with the highest test score (a choice in the rivals' favour)."""
        return max(self.rivals, key=lambda r: self.results[r].score.value, default=None)

    @property
    def apart(self) -> bool:
        """Whether the best layer's interval lies above the interval of every rival."""
        if not self.rivals:
            raise ValueError(
                "No rivals were given, so there is nothing to compare the layers with."
            )
        return all(self.best.score.above(self.results[r].score) for r in self.rivals)

    def table(self) -> pd.DataFrame:
        """One row a source: score, interval, chance, inner score, control and selectivity."""
        rows = []
        for name, r in self.results.items():
            row = dict(source=name, rival=name in self.rivals, **_columns("", r.score))
            row |= dict(chance=r.chance, inner=float(np.mean(r.inner)))
            if name in self.controls:
                control = self.controls[name]
                row |= dict(control=control.control.score.value, coverage=control.coverage)
                row |= _columns("selectivity", control.value)
            rows.append(row)
        return pd.DataFrame(rows).set_index("source")


def _columns(prefix: str, interval: Interval) -> dict[str, float]:
    names = (prefix or "score", *(f"{prefix}_{end}".lstrip("_") for end in ("low", "high")))
    return dict(zip(names, interval[:3], strict=True))


# -- probing ---------------------------------------------------------------------------------------


def probe(
    features: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    task: str = "class",
    seed: int = 0,
    repeats: int = 1,
    both: bool = True,
) -> ProbeResult:
    """Fit a linear probe on one half of the compositions and score it on the other.

    Parameters
    ----------
    features : array of shape (N, d)
        One row a clip or frame; finite numbers. Standardised with the training half's statistics.
    labels : array of shape (N,)
        Classes of any type, numbers, or phases in [0, 1).
    groups : array of shape (N,)
        Composition of each row: at least 6 different ones.
    task : {"class", "regress", "circular"}
        What the labels are.
    seed : int
        Split of the compositions and bootstrap.
    repeats : int
        Different splits, pooled.
    both : bool
        Also find on the second half and score on the first, so that every composition is scored.

    Returns
    -------
    ProbeResult

    Raises
    ------
    ValueError
        Mismatched lengths, NaN, a label that never varies, too few compositions, or a task that
        does not fit the labels.

    See Also
    --------
    probe_layers : many sources on the same split. selectivity : with a control task.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> composition = np.repeat(np.arange(40), 5)
    >>> key = rng.integers(0, 3, 40)[composition]
    >>> features = 2 * np.eye(3)[key] + rng.standard_normal((200, 3))
    >>> result = probe(features, key, composition)
    >>> result.score.low > result.chance
    True
    """
    return probe_layers({"features": features}, labels, groups, (), task, seed, repeats, both).best


# Many small products in a row: on two hyperthreads of one core, threads that wait for each other
# made chapter 04 three times slower.
@threadpool_limits.wrap(limits=1)
def probe_layers(
    sources: Mapping[str, ArrayLike],
    labels: ArrayLike,
    groups: ArrayLike,
    rivals: Iterable[str] = (),
    task: str = "class",
    seed: int = 0,
    repeats: int = 1,
    both: bool = True,
    types: ArrayLike | None = None,
) -> LayerProbes:
    """Probe every layer and every rival on the same rows and the same splits.

    The best layer is chosen within each training half by inner cross-validation, so its score is as
    honest as that of a layer fixed in advance; with both directions it may be another layer each
    time.

    Parameters
    ----------
    sources : dict of name to array of shape (N, d)
        Layers and rivals; widths may differ.
    labels, groups, task, seed, repeats, both
        As for `probe`.
    rivals : names in `sources`
        Everything else counts as a layer.
    types : array of shape (N,), optional
        Type of each row (see the module's text): adds a control task for every source.

    Returns
    -------
    LayerProbes

    Raises
    ------
    ValueError
        As for `probe`; also where a rival is not among the sources.
    """
    rivals = tuple(rivals)
    arrays, target, groups, index = _validate(sources, labels, groups, rivals, task)
    layers = [name for name in arrays if name not in rivals]
    halves = _halves(target, index, seed, repeats, both)
    trails = {name: _Trail() for name in arrays}
    control_trails = {name: _Trail() for name in arrays}
    best_trail, chosen, covered = _Trail(), [], []
    controls = None
    if types is not None:
        types = _codes(types, len(groups), "types")
        if types.max() < 1:
            raise ValueError("All rows have the same type, so a control task cannot be made.")
    for train, test, fold, repeat in halves:
        if types is not None:
            controls = target._replace(values=_draw(target.values, types, (seed, repeat)))
            covered.append(np.isin(types[test], types[train]).mean())
        steps = {}
        for name, x in arrays.items():
            half = _Half(x, train, test)
            steps[name] = _score_half(half, target, index, fold)
            trails[name].append(steps[name])
            if controls is not None:
                control_trails[name].append(_score_half(half, controls, index, fold))
        # Of equal inner scores (common with few clips) the lower inner loss decides.
        chosen.append(max(layers, key=lambda n: (steps[n].inner, -steps[n].loss)))
        best_trail.append(steps[chosen[-1]])

    scored = np.unique(index[np.concatenate([test for _, test, _, _ in halves])])
    weights = resample_groups(len(scored), DRAWS, seed)

    def result(trail: _Trail) -> ProbeResult:
        return trail.result(target, scored, np.unique(groups)[scored], weights)

    results = {name: result(trail) for name, trail in trails.items()}
    best = result(best_trail)
    differences = {name: _difference(best, results[name], weights) for name in rivals}
    found = {}
    if types is not None:
        for name, trail in control_trails.items():
            control = result(trail)
            gap = _difference(results[name], control, weights)
            found[name] = Selectivity(results[name], control, gap, float(np.mean(covered)))
    return LayerProbes(results, rivals, best, tuple(chosen), differences, found)


def selectivity(
    features: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    types: ArrayLike,
    task: str = "class",
    seed: int = 0,
    repeats: int = 1,
    both: bool = True,
) -> Selectivity:
    """Score on a task minus score on its control task (Hewitt and Liang 2019).

    Parameters
    ----------
    features, labels, groups, task, seed, repeats, both
        As for `probe`. Each repeat draws a new control task.
    types : array of shape (N,)
        Type of each row: the first codebook's token for frames, `clip_types` for clips.

    Returns
    -------
    Selectivity
        High where a probe finds the property but cannot memorise random labels; near zero or below
        where the probe might have memorised just as well.

    Raises
    ------
    ValueError
        As for `probe`; also where all rows have the same type.
    """
    return probe_layers(
        {"features": features}, labels, groups, (), task, seed, repeats, both, types
    ).controls["features"]


def control_labels(labels: ArrayLike, types: ArrayLike, seed: int = 0) -> np.ndarray:
    """Labels of a control task: one random label for each type, the same wherever the type occurs.

    Parameters
    ----------
    labels : array of shape (N,)
        The task's labels; random ones are drawn from their distribution, so chance is about equal.
    types : array of shape (N,)
        Type of each row.
    seed : int
        Same seed, same labels.

    Returns
    -------
    array of shape (N,)
    """
    labels = np.asarray(labels)
    return _draw(labels, _codes(types, len(labels), "types"), seed)


def clip_types(tokens: Sequence[ArrayLike], n_types: int | None = None) -> np.ndarray:
    """Sort clips into equally large kinds of sound, for control tasks on whole clips.

    Each clip becomes its histogram of first-codebook tokens (square roots, so that Euclidean is
    Hellinger distance); the clips are halved at the median along the first principal component,
    each half again, and so on. No label is used.

    Parameters
    ----------
    tokens : sequence of arrays of shape (T,) or (K, T)
        Codes of each clip; of K codebooks the first is used.
    n_types : int, optional
        At most this many types, a power of two. By default about 8 clips a type, so that a type
        nearly always occurs in both halves.

    Returns
    -------
    array of shape (number of clips,), integers from 0

    Raises
    ------
    ValueError
        Fewer than four clips.
    """
    rows = [_first_codebook(t) for t in tokens]
    if len(rows) < 4:
        raise ValueError(f"Types need at least four clips; got {len(rows)}.")
    levels = max(1, int(np.log2((n_types or len(rows) / 8) + 1e-9)))
    size = 1 + max(int(t.max()) for t in rows)
    histograms = np.sqrt([np.bincount(t, minlength=size) / len(t) for t in rows])
    leaves = [np.arange(len(rows))]
    for _ in range(levels):
        halves = []
        for leaf in leaves:
            x = histograms[leaf] - histograms[leaf].mean(0)
            _, axes = np.linalg.eigh(x @ x.T)
            order = leaf[np.argsort(axes[:, -1], kind="stable")]
            halves += [order[: len(leaf) // 2], order[len(leaf) // 2 :]]
        leaves = halves
    out = np.empty(len(rows), int)
    for i, leaf in enumerate(leaves):
        out[leaf] = i
    return out


# -- concepts --------------------------------------------------------------------------------------


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


# -- what is probed --------------------------------------------------------------------------------

RIVALS = ("embeddings", "codec latents", "acoustics", "position")


def layer_features(
    model: Any,
    codes: Any,
    layers: Iterable[int] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, list[np.ndarray]]:
    """What a language model's layers hold at each frame of given music, and what goes into them.

    Teacher-forced and without a prompt: whatever is found was heard. Frame t is read where the
    model has just seen all codebooks of frame t (`trace.align`), and has no more of the future.

    Parameters
    ----------
    model : MusicModel
    codes : Tensor of shape (B, K, T)
    layers : iterable of int, optional
        All of them unless given.
    progress : callable
        Wraps the iteration over batches, e.g. ``tqdm``.

    Returns
    -------
    dict of name to list of B arrays, float16
        ``"embeddings"``, the sum of code embeddings, and ``"layer 0"``, …: (T, dim).
    """
    from . import trace  # torch and audiocraft: seconds to import, and only this needs them

    layers = list(range(model.n_layers)) if layers is None else list(layers)
    out: dict[str, list[np.ndarray]] = {"embeddings": []} | {f"layer {i}": [] for i in layers}
    n_frames, last = codes.shape[-1], trace._delays(model.lm)[-1]
    for batch in progress(codes.split(8)):
        streams = trace.residuals(model, batch, ["embed", *layers])
        frames = {k: trace.align(x, n_frames, last).cpu().float() for k, x in streams.items()}
        for name, place in zip(out, ["embed", *layers], strict=True):
            out[name] += list(frames[place].half().numpy())
    return out


def rival_features(
    model: Any,
    clips: Sequence[Any],
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, list[np.ndarray]]:
    """What can be known about clips without the language model.

    Parameters
    ----------
    model : MusicModel
        Its codec's encoder is a rival.
    clips : list of Clip, of one length
    progress : callable
        Wraps the iteration over clips, e.g. ``tqdm``.

    Returns
    -------
    dict of name to list of arrays of shape (T, d)
        ``"codec latents"``: the encoder's output *before* quantisation, so more than the model was
        told. ``"acoustics"``: `acoustic_features`. ``"position"``: a stopwatch.
    """
    out: dict[str, list[np.ndarray]] = {name: [] for name in RIVALS[1:]}
    for clip in progress(clips):
        latents = _array(model.latents(clip)[0].T)
        heard = acoustic_features(clip.audio, clip.sample_rate, model.frame_rate)
        out["codec latents"].append(latents.astype(np.float16))
        out["acoustics"].append(heard[: len(latents)].astype(np.float16))
        out["position"].append(position_features(len(latents), model.frame_rate))
    return out


@contextmanager
def untrained(model: Any, seed: int = 0) -> Iterator[Any]:
    """The same language model with random weights, for as long as the ``with`` lasts.

    Its layers mix what they are told, and have learnt nothing. Matrices are Gaussian with the
    variance of one over their inputs, norms and biases neutral; the learned weights come back.

    Parameters
    ----------
    model : MusicModel
    seed : int

    Yields
    ------
    MusicModel
        `model` itself.
    """
    import torch

    rng = torch.Generator().manual_seed(seed)
    learned = {name: value.clone() for name, value in model.lm.state_dict().items()}
    try:
        with torch.no_grad():
            for name, weights in model.lm.named_parameters():
                if weights.dim() > 1:
                    noise = torch.randn(weights.shape, generator=rng) / weights.shape[-1] ** 0.5
                    weights.copy_(noise)
                else:
                    weights.fill_(float(name.endswith("weight")))
        yield model
    finally:
        model.lm.load_state_dict(learned)


# -- features --------------------------------------------------------------------------------------


def pool(frames: ArrayLike) -> np.ndarray:
    """Mean and standard deviation over time: (T, d) to (2 d,), float32."""
    frames = _array(frames).astype(np.float32, copy=False)
    if frames.ndim != 2 or len(frames) == 0:
        raise ValueError(f"Pooling needs frames of shape (T, d), T at least 1; got {frames.shape}.")
    return np.concatenate([frames.mean(0), frames.std(0)])


def with_context(
    frames: ArrayLike, windows: Sequence[int], rows: ArrayLike | None = None
) -> np.ndarray:
    """Append means over the past, so that a rival can have heard as much as a language model.

    A causal model's residual at a frame may draw on everything before it. A single frame's features
    cannot, and losing to the model would then say little.

    Parameters
    ----------
    frames : array of shape (T, d)
    windows : sequence of int
        Lengths in frames of the windows that end at each frame (shorter at the start).
    rows : array of shape (N,), optional
        The frames wanted; all of them unless given.

    Returns
    -------
    array of shape (N, d · (1 + len(windows))), float32
        A row depends on frames up to its own only.
    """
    frames = _array(frames).astype(np.float64)
    rows = np.arange(len(frames)) if rows is None else np.asarray(rows)
    total = np.vstack([np.zeros((1, frames.shape[1])), np.cumsum(frames, axis=0)])
    end, parts = rows + 1, [frames[rows]]
    for window in windows:
        length = np.minimum(end, max(1, window))
        parts.append((total[end] - total[end - length]) / length[:, None])
    return np.concatenate(parts, axis=1).astype(np.float32)


def position_features(n_frames: int, frame_rate: float = 50.0, n: int = 16) -> np.ndarray:
    """Time in the clip alone, as `n` overlapping bumps: what a stopwatch would know.

    The rival to beat for sections and returns, which come at similar times in many pieces.

    Returns
    -------
    array of shape (n_frames, n), float32, in [0, 1]
        Bumps are spaced evenly over 30 s, on a square-root scale: finer at the start.
    """
    t = np.sqrt((np.arange(n_frames) + 0.5) / frame_rate / 30.0)
    centres = np.linspace(0, 1, n)
    return np.exp(-0.5 * ((t[:, None] - centres) * (n - 1)) ** 2).astype(np.float32)


def acoustic_features(audio: ArrayLike, sr: int, frame_rate: float = 50.0) -> np.ndarray:
    """Plain acoustic features, and what a listener keeps of the rhythm so far.

    Of each frame: chroma (12), chroma of the bass (12), 20 MFCC, spectral contrast (7), spectral
    centroid, RMS level and onset strength. Added are the onset strength of the past second in steps
    of 40 ms, and the autocorrelation of the past 4 s of onset strength (a tempogram) at 24 tempi
    from 30 to 300 BPM.

    A frame's analysis windows are centred on it and reach at most 0.128 s past its middle; nothing
    else looks ahead. A MusicGen-type model has seen the frame's own codes, which the codec too
    computes from a little of the future.

    Parameters
    ----------
    audio : array of shape (n,) or (channels, n)
        Samples, any loudness; channels are averaged.
    sr : int
        Sampling rate in Hz; converted to 16 kHz at 50 frames a second.
    frame_rate : float
        Frames a second; frame i covers [i, i + 1) / frame_rate.

    Returns
    -------
    array of shape (T, 104), float32, T = ⌈n · frame_rate / sr⌉
    """
    import librosa  # takes seconds to import, and only this needs it

    y = _array(audio).astype(np.float32)
    y = y.mean(0) if y.ndim == 2 else y
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"Audio of shape (n,) or (channels, n) is needed; got {y.shape}.")
    if not np.isfinite(y).all():
        raise ValueError(
            f"The audio holds NaN or infinity in {int((~np.isfinite(y)).sum())} samples."
        )
    n_frames = int(np.ceil(len(y) * frame_rate / sr - 1e-6))
    hop, n_fft = 320, 4096
    rate = round(hop * frame_rate)
    if sr != rate:
        y = librosa.resample(y, orig_sr=sr, target_sr=rate)
    before = (n_fft - hop) // 2  # window i is centred on the middle of frame i
    after = max(0, n_fft + hop * (n_frames - 1) - before - len(y))
    y = np.pad(y, (before, after))
    wide = np.abs(librosa.stft(y, n_fft=n_fft, hop_length=hop, center=False))[:, :n_frames]
    cut = (n_fft - 1024) // 2
    narrow = np.abs(librosa.stft(y[cut : len(y) - cut], n_fft=1024, hop_length=hop, center=False))
    narrow = narrow[:, :n_frames]
    mel = librosa.feature.melspectrogram(S=narrow**2, sr=rate, n_mels=64)
    db = librosa.power_to_db(mel, top_db=None, amin=1e-8)
    onset = librosa.onset.onset_strength(S=db, sr=rate, center=False).astype(np.float32)
    rms = librosa.feature.rms(S=narrow, frame_length=1024)
    chroma = dict(S=wide**2, sr=rate, n_fft=n_fft, tuning=0.0)
    now = np.vstack(
        [
            librosa.feature.chroma_stft(**chroma),
            librosa.feature.chroma_stft(**chroma, ctroct=2.0, octwidth=0.75),
            librosa.feature.mfcc(S=db, n_mfcc=20),
            librosa.feature.spectral_contrast(S=narrow, sr=rate),
            librosa.feature.spectral_centroid(S=narrow, sr=rate) / 1000,
            librosa.amplitude_to_db(rms, top_db=None, amin=1e-4),
            onset[None],
        ]
    ).T
    heard = np.pad(onset, (round(frame_rate), 0))
    lags = np.lib.stride_tricks.sliding_window_view(heard, round(frame_rate) + 1)[:n_frames, ::-2]
    return np.hstack([now, lags, _tempogram(onset, frame_rate)]).astype(np.float32)


def _tempogram(onset: np.ndarray, frame_rate: float) -> np.ndarray:
    """Autocorrelation of the past 4 s of onset strength at 24 tempi: (T,) to (T, 24)."""
    window = round(4 * frame_rate)
    past = np.lib.stride_tricks.sliding_window_view(np.pad(onset, (window - 1, 0)), window)
    past = past - past.mean(1, keepdims=True)
    spectrum = np.fft.rfft(past, 2 * window)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:, : window // 2 + 1]
    correlation = correlation / (correlation[:, :1] + 1e-6)
    lag = 60 * frame_rate / np.geomspace(30, 300, 24)
    low = np.minimum(np.floor(lag).astype(int), window // 2 - 1)
    part = lag - low
    return correlation[:, low] * (1 - part) + correlation[:, low + 1] * part


# -- inside: splits, fits, scores ------------------------------------------------------------------


class _Target(NamedTuple):
    """Labels as the solver needs them: class codes, numbers or phases, float64 or int."""

    task: str
    values: np.ndarray
    classes: np.ndarray


def _validate(
    sources: Mapping[str, ArrayLike],
    labels: ArrayLike,
    groups: ArrayLike,
    rivals: tuple[str, ...],
    task: str,
) -> tuple[dict[str, np.ndarray], _Target, np.ndarray, np.ndarray]:
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; choose 'class', 'regress' or 'circular'.")
    unknown = [r for r in rivals if r not in sources]
    if unknown:
        raise ValueError(f"Rival {unknown[0]!r} is not among the sources: {', '.join(sources)}.")
    if not set(sources) - set(rivals):
        raise ValueError(
            "No layer is left to probe: every source is named as a rival, or none given."
        )
    labels, groups = np.asarray(labels), np.asarray(groups)
    if labels.ndim != 1 or groups.ndim != 1 or len(labels) != len(groups):
        raise ValueError(
            f"labels and groups need one entry a row; got shapes {labels.shape} and {groups.shape}."
        )
    if labels.dtype.kind == "O":
        raise ValueError("The labels mix kinds or hold None; leave rows without a label out.")
    arrays = {}
    for name, x in sources.items():
        x = _array(x)
        if x.ndim != 2 or len(x) != len(labels) or x.shape[1] == 0:
            raise ValueError(
                f"{name} has shape {x.shape}; {len(labels)} labels need features of shape "
                f"({len(labels)}, d). Pool or sample frames first."
            )
        if x.dtype.kind not in "fiub":
            raise ValueError(f"{name} holds {x.dtype}, and features are real numbers.")
        bad = int((~np.isfinite(x).all(1)).sum())
        if bad:
            raise ValueError(f"{name} holds NaN or infinity in {bad} of {len(x)} rows.")
        with np.errstate(over="ignore"):  # answered in the next line
            arrays[name] = x.astype(np.float32, copy=False)
        if x.dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds numbers too large for single precision.")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        bad = int((~np.isfinite(labels)).sum())
        raise ValueError(f"labels hold NaN or infinity in {bad} of {len(labels)} rows.")
    unique, codes = np.unique(labels, return_inverse=True)
    if len(unique) < 2:
        found = f"all are {unique[0].item()!r}" if len(unique) else "there are none"
        raise ValueError(f"Labels must vary for a probe to be scored; {found}.")
    index = _codes(groups, len(labels), "groups")
    count = int(index.max()) + 1
    if count < MIN_GROUPS:
        raise ValueError(
            f"{count} compositions are too few: a probe is found on one half of them and scored on "
            f"the other, which takes at least {MIN_GROUPS}."
        )
    if task == "class":
        if labels.dtype.kind == "f" and len(unique) > max(2, len(labels) // 3):
            raise ValueError(
                f"The labels take {len(unique)} different values in {len(labels)} rows: too many "
                "to be classes. For numbers use task='regress'."
            )
        return arrays, _Target(task, codes, unique), groups, index
    if labels.dtype.kind not in "fiu":
        raise ValueError(f"task={task!r} needs numbers as labels, and these are {labels.dtype}.")
    values = labels.astype(np.float64)
    if task == "circular" and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"Phases are counted in turns from 0 to 1; these go from {values.min():g} to "
            f"{values.max():g}."
        )
    return arrays, _Target(task, values, unique[:0]), groups, index


def _codes(x: ArrayLike, n: int, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.shape != (n,):
        raise ValueError(f"{name} has shape {x.shape}, and there are {n} rows: one entry each.")
    return np.unique(x, return_inverse=True)[1]


def _draw(values: np.ndarray, types: np.ndarray, seed: Any) -> np.ndarray:
    """One label a type, drawn from the labels; again if all types got the same."""
    rng = np.random.default_rng(seed)
    while True:
        drawn = rng.choice(values, types.max() + 1)
        if len(np.unique(drawn)) > 1 or len(np.unique(values)) < 2 or types.max() < 1:
            return drawn[types]


def _deal(target: _Target, index: np.ndarray, members: np.ndarray, k: int, rng: Any) -> np.ndarray:
    """Deal the compositions `members` into k hands of equal size and similar labels.

    Returns the hand of each row of `index`, −1 where its composition is not among the members.
    """
    order = rng.permutation(members)
    if target.task == "class":  # by the most common class of each composition
        table = np.zeros((index.max() + 1, len(target.classes)), int)
        np.add.at(table, (index, target.values), 1)
        order = order[np.argsort(table[order].argmax(1), kind="stable")]
    elif target.task == "regress":  # by the fifth in which the composition's mean lies
        mean = np.bincount(index, target.values)[order] / np.bincount(index)[order]
        fifth = np.searchsorted(np.quantile(mean, [0.2, 0.4, 0.6, 0.8]), mean)
        order = order[np.argsort(fifth, kind="stable")]
    hand = np.full(index.max() + 1, -1)
    hand[order] = (np.arange(len(order)) + rng.integers(k)) % k
    return hand[index]


def _halves(
    target: _Target, index: np.ndarray, seed: int, repeats: int, both: bool
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """All splits: rows to find on, rows to score on, inner fold of the former, repeat."""
    if repeats < 1:
        raise ValueError(f"At least one split is needed; repeats is {repeats}.")
    out = []
    for repeat in range(repeats):
        rng = np.random.default_rng((seed, repeat))
        half = _deal(target, index, np.arange(index.max() + 1), 2, rng)
        for side in (0, 1) if both else (0,):
            train, test = np.flatnonzero(half == side), np.flatnonzero(half != side)
            fold = _deal(target, index, np.unique(index[train]), FOLDS, rng)[train]
            if len(np.unique(target.values[train])) < 2:
                raise ValueError(
                    "One half of the compositions has a single label: too few compositions carry "
                    "the others. Give more, or another seed."
                )
            out.append((train, test, fold, repeat))
    return out


class _Half:
    """Features of one split, standardised on the training rows and turned to their principal axes.

    A rotation leaves L2-penalised fits as they are, gives a preconditioner for every target and
    penalty at once, and shrinks d to N where there are fewer rows than features.
    """

    def __init__(self, x: np.ndarray, train: np.ndarray, test: np.ndarray):
        self.train, self.test = train, test
        found = x[train]
        mean, spread = found.mean(0, dtype=np.float64), found.std(0, dtype=np.float64)
        constant = spread <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
        scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, spread))
        found = ((found - mean) * scale).astype(np.float32)
        scored = ((x[test] - mean) * scale).astype(np.float32)
        n, d = found.shape
        if n < d:
            values, vectors = np.linalg.eigh((found @ found.T).astype(np.float64))
            keep = values > 1e-6 * max(values[-1], 1e-30)
            values, vectors = values[keep], vectors[:, keep]
            axes = (found.T @ (vectors / np.sqrt(values))).astype(np.float32)
        else:
            values, axes = np.linalg.eigh(found.T @ found)
        self.curvature = np.maximum(values, 0) / n  # variance along each axis
        self.found, self.scored = found @ axes, scored @ axes


class _Step(NamedTuple):
    """One probe on one split: its sums by composition (G, m), and how it was found."""

    sums: np.ndarray
    score: float
    inner: float
    penalty: float
    loss: float


class _Trail(list[_Step]):
    """The steps of one source over all splits."""

    def result(
        self, target: _Target, scored: np.ndarray, groups: np.ndarray, weights: np.ndarray
    ) -> ProbeResult:
        sums = sum(step.sums for step in self)[scored]
        metrics = _intervals(target.task, sums, len(target.classes), weights)
        return ProbeResult(
            task=target.task,
            score=metrics[_MAIN[target.task]],
            metrics=metrics,
            classes=target.classes,
            groups=groups,
            sums=sums,
            splits=tuple(step.score for step in self),
            inner=tuple(step.inner for step in self),
            penalties=tuple(step.penalty for step in self),
        )


def _score_half(half: _Half, target: _Target, index: np.ndarray, fold: np.ndarray) -> _Step:
    """Fit on the training rows, tally on the test rows."""
    y, y_test = target.values[half.train], target.values[half.test]
    fit = _fit_classes if target.task == "class" else _fit_numbers
    predicted, inner, penalty, loss = fit(half, y, fold, target)
    if target.task == "class":
        constant = np.bincount(y).argmax()
    elif target.task == "regress":
        constant = y.mean()
    else:
        constant = np.bincount(_bin(y), minlength=BINS).argmax() / BINS
    rows = _tally(target, y_test, predicted, constant)
    sums = _by_group(rows, index[half.test], index.max() + 1)
    score = float(_METRICS[target.task](sums.sum(0), len(target.classes))[_MAIN[target.task]])
    return _Step(sums, score, inner, penalty, loss)


def _fit_classes(
    half: _Half, y: np.ndarray, fold: np.ndarray, target: _Target
) -> tuple[np.ndarray, float, float, float]:
    """Multinomial logistic regression, from strong to weak penalty until held-out loss rises."""
    n_classes = len(target.classes)
    onehot = np.eye(n_classes, dtype=np.float32)[y]
    parts = [
        (half.found[fold != k], onehot[fold != k], half.found[fold == k], y[fold == k])
        for k in np.unique(fold)
    ]
    weights: list[np.ndarray | None] = [None] * len(parts)
    best, worse = None, 0
    for penalty in PENALTIES:
        loss = hits = 0.0
        for i, (x, t, x_out, y_out) in enumerate(parts):
            weights[i] = _logistic(x, t, penalty, half.curvature, weights[i])
            logits = _affine(x_out, weights[i]).astype(np.float64)
            hits += (logits.argmax(1) == y_out).sum()
            logits -= logits.max(1, keepdims=True)
            true = logits[np.arange(len(y_out)), y_out]
            loss += (np.log(np.exp(logits).sum(1)) - true).sum()
        loss /= len(y)
        if best is None or loss < best[0]:
            best, worse = (loss, penalty, hits / len(y), sum(weights) / len(parts)), 0
        else:
            worse += 1
            if worse == 2:
                break
    loss, penalty, inner, start = best
    final = _logistic(half.found, onehot, penalty, half.curvature, start)
    return _affine(half.scored, final).argmax(1), float(inner), penalty, float(loss)


def _affine(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return x @ weights[:-1] + weights[-1]


def _logistic(
    x: np.ndarray,
    onehot: np.ndarray,
    penalty: float,
    curvature: np.ndarray,
    start: np.ndarray | None,
) -> np.ndarray:
    """Minimise mean cross-entropy + penalty/2 · |W|² (bias free); returns (d + 1, C), float32.

    L-BFGS in coordinates scaled by the approximate curvature of each principal axis: two to five
    times fewer steps than on the features as they come.
    """
    (n, d), c = x.shape, onehot.shape[1]
    scale = (1 / np.sqrt(curvature / c + penalty)).astype(np.float32)[:, None]
    x = x * scale.T
    ridge = penalty * scale**2

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.astype(np.float32).reshape(d + 1, c)
        logits = _affine(x, w)
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(1, keepdims=True)
        value = np.log(total).mean(dtype=np.float64) - np.vdot(logits, onehot) / n
        p /= total
        p -= onehot
        p /= n
        shrunk = ridge * w[:-1]
        gradient = np.vstack([x.T @ p + shrunk, p.sum(0)])
        return value + 0.5 * np.vdot(shrunk, w[:-1]), gradient.ravel().astype(np.float64)

    if start is None:
        start = np.zeros((d + 1, c))
        start[-1] = np.log((onehot.sum(0) + 1) / (n + c))
    else:
        start = np.vstack([start[:-1] / scale, start[-1]])
    options = dict(maxiter=200, gtol=1e-3 / c, ftol=1e-6)
    flat = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options).x
    w = flat.reshape(d + 1, c).astype(np.float32)
    w[:-1] *= scale
    return w


def _fit_numbers(
    half: _Half, y: np.ndarray, fold: np.ndarray, target: _Target
) -> tuple[np.ndarray, float, float, float]:
    """Ridge regression on the number, or on cosine and sine of the phase."""
    if target.task == "regress":
        goal = y[:, None]
    else:
        goal = np.stack([np.cos(2 * np.pi * y), np.sin(2 * np.pi * y)], axis=1)
    spread = float(((goal - goal.mean(0)) ** 2).sum()) or 1.0
    held_out = np.zeros((len(PENALTIES), *goal.shape))
    for k in np.unique(fold):
        inside = fold != k
        held_out[:, ~inside] = _ridge(half.found[inside], goal[inside], half.found[~inside])
    losses = ((held_out - goal) ** 2).sum((1, 2)) / spread
    best = int(losses.argmin())
    out = _ridge(half.found, goal, half.scored, PENALTIES[best : best + 1])[0]
    if target.task == "regress":
        return out[:, 0], float(1 - losses[best]), PENALTIES[best], float(losses[best])
    inner = float((_bin(_phase(held_out[best])) == _bin(y)).mean())
    return _phase(out), inner, PENALTIES[best], float(losses[best])


def _ridge(
    x: np.ndarray, y: np.ndarray, x_new: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> np.ndarray:
    """Predictions for all penalties from one decomposition: (len(penalties), M, targets)."""
    mean, centre = x.mean(0), y.mean(0)
    x = x - mean
    values, axes = np.linalg.eigh((x.T @ x).astype(np.float64) / len(x))
    values = np.maximum(values, 0)[None, :, None]
    project = (axes.T @ (x.T @ (y - centre))) / len(x)
    weights = axes @ (project / (values + np.asarray(penalties)[:, None, None]))
    return (x_new - mean) @ weights + centre


def _phase(xy: np.ndarray) -> np.ndarray:
    return np.arctan2(xy[:, 1], xy[:, 0]) / (2 * np.pi) % 1.0


def _bin(phase: np.ndarray) -> np.ndarray:
    return np.floor(phase * BINS + 0.5).astype(int) % BINS


def _tally(target: _Target, y: np.ndarray, predicted: np.ndarray, constant: float) -> np.ndarray:
    """What each row adds to the sums of its composition, shape (rows, m)."""
    n = np.ones(len(y))
    if target.task == "class":
        c = len(target.classes)
        cells = np.zeros((len(y), c * c + c))
        cells[np.arange(len(y)), y * c + predicted.astype(int)] = 1
        right = np.flatnonzero(y == constant)  # hits of the constant answer, by true class
        cells[right, c * c + y[right]] = 1
        return cells
    if target.task == "regress":
        z = y - target.values.mean()  # one origin for all halves; keeps the digits of the squares
        close = [np.abs(p - y) <= CLOSE * np.abs(y) for p in (predicted, np.full(len(y), constant))]
        return np.stack([n, z, z**2, (y - predicted) ** 2, (y - constant) ** 2, *close], axis=1)
    turn = (predicted - y + 0.5) % 1.0 - 0.5
    right = _bin(predicted) == _bin(y)
    base = _bin(np.full(len(y), constant)) == _bin(y)
    return np.stack([n, 360 * np.abs(turn), right, base], axis=1).astype(float)


def _by_group(rows: np.ndarray, index: np.ndarray, n_groups: int) -> np.ndarray:
    order = np.argsort(index, kind="stable")
    present, first = np.unique(index[order], return_index=True)
    out = np.zeros((n_groups, rows.shape[1]))
    out[present] = np.add.reduceat(rows[order], first, axis=0)
    return out


def _class_metrics(sums: np.ndarray, c: int) -> dict[str, np.ndarray]:
    """Metrics from sums of shape (…, c² + c), as scikit-learn defines them."""
    confusion = sums[..., : c * c].reshape(*sums.shape[:-1], c, c)
    true, said = confusion.sum(-1), confusion.sum(-2)
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    base = sums[..., c * c :]
    n = true.sum(-1)
    present = np.maximum((true > 0).sum(-1), 1)
    answered = np.maximum(((true + said) > 0).sum(-1), 1)
    return {
        "accuracy": right.sum(-1) / n,
        "balanced_accuracy": (right / np.maximum(true, 1)).sum(-1) / present,
        "macro_f1": (2 * right / np.maximum(true + said, 1)).sum(-1) / answered,
        "accuracy_chance": base.sum(-1) / n,
        "balanced_accuracy_chance": (base / np.maximum(true, 1)).sum(-1) / present,
    }


def _number_metrics(sums: np.ndarray, _: int) -> dict[str, np.ndarray]:
    n, z, z2, error, base, close, base_close = np.moveaxis(sums, -1, 0)
    total = np.maximum(z2 - z**2 / n, 1e-12)
    return {
        "r2": 1 - error / total,
        "within_8": close / n,
        "r2_chance": 1 - base / total,
        "within_8_chance": base_close / n,
    }


def _phase_metrics(sums: np.ndarray, _: int) -> dict[str, np.ndarray]:
    n, error, right, base = np.moveaxis(sums, -1, 0)
    return {
        "accuracy": right / n,
        "angular_error": error / n,
        "accuracy_chance": base / n,
        "angular_error_chance": np.full_like(n, 90.0),
    }


_METRICS = {"class": _class_metrics, "regress": _number_metrics, "circular": _phase_metrics}
_RANGES = {"r2": (-np.inf, 1.0), "angular_error": (0.0, 180.0)}  # all others are shares
_MAIN = {"class": "accuracy", "regress": "r2", "circular": "accuracy"}


def _intervals(task: str, sums: np.ndarray, c: int, weights: np.ndarray) -> dict[str, Interval]:
    values = _METRICS[task](sums.sum(0), c)
    drawn = _METRICS[task](weights @ sums, c)
    out = {}
    for name, value in values.items():
        low, high = _RANGES.get(name.removesuffix("_chance"), (0.0, 1.0))
        if (low, high) == (0.0, 1.0) and value in (0.0, 1.0):
            out[name] = proportion(int(value) * len(sums), len(sums))
        else:
            ends = np.clip(_ends(value, drawn[name]), low, high)
            out[name] = Interval(float(value), *map(float, ends), len(sums))
    return out


def _difference(a: ProbeResult, b: ProbeResult, weights: np.ndarray) -> Interval:
    """Interval of a difference of scores, both resampled with the same compositions."""
    name, metrics, c = _MAIN[a.task], _METRICS[a.task], len(a.classes)
    drawn = metrics(weights @ a.sums, c)[name] - metrics(weights @ b.sums, c)[name]
    value = a.score.value - b.score.value
    return Interval(value, *map(float, _ends(value, drawn)), len(a.groups))


def _ends(value: float, drawn: np.ndarray) -> np.ndarray:
    return value + WIDEN * (np.percentile(drawn, [2.5, 97.5]) - value)


def _array(x: Any) -> np.ndarray:
    """A NumPy array of an array, a list or a tensor, wherever that lies and whatever its type."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if x.is_floating_point() else x
    return np.asarray(x)


def _known(value: Any) -> bool:
    return value is not None and value == value and value != -1 and value != ""


def _known_array(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values) & (values != -1) if values.dtype.kind in "fiub" else values != ""


def _first_codebook(tokens: ArrayLike) -> np.ndarray:
    tokens = _array(tokens)
    tokens = tokens[0] if tokens.ndim == 2 else tokens
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not tokens.size or tokens.min() < 0:
        raise ValueError(
            f"Codes are non-negative integers of shape (T,) or (K, T); got {tokens.dtype} of shape "
            f"{tokens.shape}."
        )
    return tokens
