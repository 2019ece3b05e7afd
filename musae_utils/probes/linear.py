"""The probe itself: one source, or layers against rivals, and control tasks (notebook 04)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from ..stats import resample_groups
from .fitting import (
    DRAWS,
    _codes,
    _difference,
    _draw,
    _first_codebook,
    _Half,
    _halves,
    _score_half,
    _Trail,
    _validate,
)
from .results import LayerProbes, ProbeResult, Selectivity


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
