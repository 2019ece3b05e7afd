"""How a probe is fitted and scored: splits by composition, solvers, tallies, intervals.

What `linear` is made of; the conventions are explained there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from ..stats import Interval, proportion
from .results import _MAIN, _METRICS, _RANGES, ProbeResult

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
            root = np.sqrt(values)
            # The axes themselves, (d, n), are never needed: products of rows are.
            self.found = (vectors * root).astype(np.float32)
            self.scored = (scored @ found.T) @ (vectors / root).astype(np.float32)
        else:
            values, axes = np.linalg.eigh(found.T @ found)
            self.found, self.scored = found @ axes, scored @ axes
        self.curvature = np.maximum(values, 0) / n  # variance along each axis


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
        predicted = predicted.argmax(1)
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
    """Multinomial logistic regression, from strong to weak penalty until held-out loss rises.

    Returns logits of the scored rows, accuracy and loss of inner cross-validation, and the penalty.
    """
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
    return _affine(half.scored, final), float(inner), penalty, float(loss)


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


def _first_codebook(tokens: ArrayLike) -> np.ndarray:
    tokens = _array(tokens)
    tokens = tokens[0] if tokens.ndim == 2 else tokens
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not tokens.size or tokens.min() < 0:
        raise ValueError(
            f"Codes are non-negative integers of shape (T,) or (K, T); got {tokens.dtype} of shape "
            f"{tokens.shape}."
        )
    return tokens
