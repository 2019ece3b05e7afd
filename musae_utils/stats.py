"""Intervals, paired tests, corrections for many tests, effect sizes.

A thin layer over `scipy.stats` that fixes the book's conventions:

- **The composition is the unit.** Frames, crops and prompts of one composition are not independent,
  so whatever is measured several times a composition is resampled, paired and tested by composition
  (``groups``), never by frame.
- **Same music, same seeds.** Two methods are compared on the same clips, so tests are paired.
- **Every number has an interval.** An `Interval` is 95 % unless said otherwise.
- **Many features, many tests.** p-values of a family are adjusted together: `holm` when one false
  claim would hurt, `benjamini_hochberg` when a list may hold a known share of false ones.

Used by every chapter from notebooks/04_what_the_model_knows.ipynb on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy import stats as _scipy

__all__ = [
    "Comparison",
    "Equivalence",
    "Interval",
    "auc",
    "benjamini_hochberg",
    "bootstrap",
    "cliffs_delta",
    "cohens_d",
    "cramers_v",
    "equivalence",
    "group_means",
    "grouped_auc",
    "holm",
    "odds_ratio",
    "paired_test",
    "proportion",
    "resample_groups",
]


class Interval(NamedTuple):
    """An estimate and its confidence interval.

    Attributes
    ----------
    value, low, high : float
        Estimate, lower and upper end.
    n : int
        Independent units behind it (compositions where there are groups).

    Examples
    --------
    >>> print(Interval(0.8912, 0.85, 0.92, 200))
    0.891 [0.850, 0.920], n = 200
    >>> f"{Interval(0.8912, 0.85, 0.92, 200):.1%}"
    '89.1% [85.0%, 92.0%], n = 200'
    >>> Interval(0.9, 0.85, 0.95, 50).above(Interval(0.7, 0.6, 0.8, 50))
    True
    """

    value: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        value, low, high = (format(x, spec) for x in self[:3])
        return f"{value} [{low}, {high}], n = {self.n}"

    def __str__(self) -> str:
        return format(self)

    def above(self, other: Interval | float) -> bool:
        """Whether the whole interval lies above `other`: "better, with intervals apart"."""
        return bool(self.low > (other.high if isinstance(other, Interval) else other))


class Comparison(NamedTuple):
    """Outcome of `paired_test`: mean difference with its interval, p-value, paired Cohen's d."""

    difference: Interval
    p: float
    d: float
    method: str


class Equivalence(NamedTuple):
    """Outcome of `equivalence`: p-value, mean difference with its interval, margin."""

    p: float
    difference: Interval
    margin: float


# -- intervals -------------------------------------------------------------------------------------


def bootstrap(
    values: ArrayLike | tuple[ArrayLike, ...],
    statistic: Callable[..., float] = np.mean,
    groups: ArrayLike | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "percentile",
) -> Interval:
    """Bootstrap interval of a statistic, resampling whole groups where groups are given.

    Parameters
    ----------
    values : array of shape (N,) or tuple of such arrays
        The sample. Arrays of a tuple are resampled together, row by row, and given to
        `statistic` as separate arguments.
    statistic : callable
        Maps the arrays to a number. The default, the mean, is vectorised; others are called
        `n` times.
    groups : array of shape (N,), optional
        Composition of each row. Whole compositions are then drawn with replacement and `Interval.n`
        counts them. Intervals from fewer than about 20 groups are too narrow.
    n : int
        Resamples.
    seed : int
        Same seed, same interval.
    level : float
        Confidence level in (0, 1).
    method : {"percentile", "BCa", "basic"}
        As in `scipy.stats.bootstrap`. BCa corrects bias and skew, for small or lopsided samples.

    Returns
    -------
    Interval

    Raises
    ------
    ValueError
        Empty, unequal or non-finite input, or fewer than two groups.

    See Also
    --------
    resample_groups : the weights of a cluster bootstrap, for statistics that are sums by group.

    Examples
    --------
    >>> print(bootstrap([0.0, 1.0, 1.0, 1.0], groups=["a", "a", "b", "b"]))
    0.750 [0.500, 1.000], n = 2
    """
    many = isinstance(values, tuple)
    arrays = tuple(_finite(v, "values") for v in (values if many else (values,)))
    if len({len(a) for a in arrays}) > 1:
        raise ValueError(
            f"The arrays to resample together have lengths {[len(a) for a in arrays]}; "
            "they must be equal."
        )
    if statistic is np.mean and many:
        raise ValueError("Several arrays were given; say which statistic to compute from them.")
    value = float(statistic(*arrays))
    inner = dict(
        n_resamples=n,
        confidence_level=level,
        method=method,
        rng=np.random.default_rng(seed),
        batch=max(1, 2**22 // len(arrays[0])),
    )
    if groups is None:
        units = len(arrays[0])
        _two(units, "values")
        if statistic is np.mean:
            data, fn, vectorised = arrays, _mean, True
        else:
            data, fn, vectorised = arrays, statistic, False
    else:
        index, members = _members(groups, len(arrays[0]))
        units = len(members)
        _two(units, "groups")
        if statistic is np.mean:
            sums = np.bincount(index, weights=arrays[0])
            data, fn, vectorised = (sums, np.bincount(index).astype(float)), _ratio, True
        else:

            def fn(drawn: np.ndarray) -> float:
                rows = np.concatenate([members[int(g)] for g in drawn])
                return statistic(*(a[rows] for a in arrays))

            data, vectorised = (np.arange(units),), False
    if vectorised and all(np.ptp(a) == 0 for a in data):  # BCa would divide by 0
        return Interval(value, value, value, units)
    found = _scipy.bootstrap(data, fn, paired=True, vectorized=vectorised, **inner)
    return Interval(value, *map(float, found.confidence_interval), units)


def resample_groups(n_groups: int, n: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each group is drawn in each resample of a cluster bootstrap.

    Statistics that depend on sums by group (accuracy, a confusion matrix, R²) are then one matrix
    product away: ``resample_groups(G) @ sums`` of shape (n, m). Using the same weights for two
    methods makes their difference a paired one.

    Returns
    -------
    array of shape (n, n_groups), integer counts; each row sums to `n_groups`
    """
    _two(n_groups, "groups")
    return np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), n)


def proportion(successes: int, n: int, level: float = 0.95) -> Interval:
    """Share of successes with its Wilson interval, which stays sensible near 0 and 1.

    Examples
    --------
    >>> print(proportion(66, 100))
    0.660 [0.563, 0.745], n = 100
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"{successes} successes of {n} is no proportion.")
    test = _scipy.binomtest(int(successes), int(n))
    return Interval(successes / n, *map(float, test.proportion_ci(level, "wilson")), int(n))


# -- tests -----------------------------------------------------------------------------------------


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    method: str = "sign-flip",
    alternative: str = "two-sided",
    n: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Test whether `a` differs from `b`, measured on the same clips.

    Parameters
    ----------
    a, b : array of shape (N,)
        Paired measurements.
    groups : array of shape (N,), optional
        Composition of each pair; differences are first averaged within compositions.
    method : {"sign-flip", "wilcoxon", "t"}
        Permutation of the differences' signs (assumes only that they are symmetric under the null;
        exact for few units), Wilcoxon's signed-rank test, or the paired t-test.
    alternative : {"two-sided", "greater", "less"}
        "greater": `a` is greater.
    n, seed : int
        Permutations drawn, for "sign-flip".

    Returns
    -------
    Comparison
        The difference's interval is a bootstrap over units.

    Raises
    ------
    ValueError
        Unequal, non-finite or too short input, or an unknown method.

    Examples
    --------
    >>> result = paired_test([0.9, 0.8, 0.9, 0.7, 0.8, 0.9], [0.5, 0.6, 0.4, 0.6, 0.5, 0.3])
    >>> round(result.p, 3), round(result.difference.value, 3)
    (0.031, 0.35)
    """
    d = _differences(a, b, groups)
    if method == "sign-flip":
        p = _scipy.permutation_test(
            (d,),
            _mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=n,
            alternative=alternative,
            rng=np.random.default_rng(seed),
            batch=max(1, 2**22 // len(d)),
        ).pvalue
    elif not d.any():
        p = 1.0  # both below would divide 0 by 0
    elif method == "wilcoxon":
        p = _scipy.wilcoxon(d, alternative=alternative).pvalue
    elif method == "t":
        p = _scipy.ttest_1samp(d, 0.0, alternative=alternative).pvalue
    else:
        raise ValueError(f"Unknown method {method!r}; choose 'sign-flip', 'wilcoxon' or 't'.")
    return Comparison(bootstrap(d, seed=seed), float(p), cohens_d(d), method)


def equivalence(
    a: ArrayLike, b: ArrayLike, margin: float, groups: ArrayLike | None = None, alpha: float = 0.05
) -> Equivalence:
    """Two one-sided t-tests (TOST): is the mean of `a` − `b` within ±`margin`?

    A large p-value of `paired_test` does not show that two things are equal; this does. A small p
    here says that the difference, whatever it is, is smaller than `margin`.

    Parameters
    ----------
    a, b : array of shape (N,)
        Paired measurements.
    margin : float
        Largest difference that would not matter, chosen before looking.
    groups : array of shape (N,), optional
        Composition of each pair.
    alpha : float
        Level; the interval returned is the (1 − 2 alpha) one, which lies inside ±margin exactly
        when p < alpha.

    Returns
    -------
    Equivalence

    References
    ----------
    Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15.
    """
    if not margin > 0:
        raise ValueError(f"The margin must be positive, and {margin} was given.")
    d = _differences(a, b, groups)
    if np.ptp(d) == 0:
        same = abs(d[0]) < margin
        return Equivalence(0.0 if same else 1.0, Interval(d[0], d[0], d[0], len(d)), margin)
    below = _scipy.ttest_1samp(d, margin, alternative="less").pvalue
    test = _scipy.ttest_1samp(d, -margin, alternative="greater")
    spread = float(_scipy.sem(d) * _scipy.t.ppf(1 - alpha, len(d) - 1))
    mean = float(d.mean())
    return Equivalence(
        float(max(below, test.pvalue)), Interval(mean, mean - spread, mean + spread, len(d)), margin
    )


def holm(p: ArrayLike) -> np.ndarray:
    """p-values adjusted by Holm's step-down method: bounds the chance of even one false claim.

    Parameters
    ----------
    p : array of shape (m,)
        p-values of one family of tests.

    Returns
    -------
    array of shape (m,), in the same order; compare with 0.05

    References
    ----------
    Holm (1979), Scandinavian Journal of Statistics 6.

    Examples
    --------
    >>> [round(float(x), 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = _p_values(p)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(adjusted, 1.0)
    return out


def benjamini_hochberg(p: ArrayLike) -> np.ndarray:
    """p-values adjusted by Benjamini and Hochberg's method: bounds the share of false claims.

    Parameters and result as for `holm`. Valid for independent or positively dependent tests.

    References
    ----------
    Benjamini and Hochberg (1995), Journal of the Royal Statistical Society B 57.
    """
    p = _p_values(p)
    return _scipy.false_discovery_control(p) if len(p) else p


# -- effect sizes ----------------------------------------------------------------------------------


def cohens_d(a: ArrayLike, b: ArrayLike | None = None, paired: bool = False) -> float:
    """Cohen's d: a difference of means in standard deviations (0.2 small, 0.5 medium, 0.8 large).

    Parameters
    ----------
    a : array of shape (N,)
    b : array of shape (M,), optional
        Without it, `a` holds differences and 0 is the other mean.
    paired : bool
        Divide by the standard deviation of the differences (d_z) instead of the pooled one.

    Returns
    -------
    float
        0 where the means are equal, ±inf where they differ and nothing varies.
    """
    a = _finite(a, "a")
    if b is None or paired:
        d = a if b is None else _differences(a, b)
        mean, spread = d.mean(), d.std(ddof=1) if len(d) > 1 else 0.0
    else:
        b = _finite(b, "b")
        mean, dof = a.mean() - b.mean(), len(a) + len(b) - 2
        squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
        spread = np.sqrt(squares / dof) if dof > 0 else 0.0
    if mean == 0:
        return 0.0
    return float(mean / spread) if spread > 0 else float(np.copysign(np.inf, mean))


def cliffs_delta(a: ArrayLike, b: ArrayLike) -> float:
    """Cliff's delta in [−1, 1]: P(a > b) − P(a < b) over all pairs; needs no normal distribution.

    Examples
    --------
    >>> cliffs_delta([3, 4, 5], [1, 2, 3])
    0.8888888888888888
    """
    a, b = _finite(a, "a"), _finite(b, "b")
    u = _scipy.mannwhitneyu(a, b, method="asymptotic").statistic
    return float(2 * u / (len(a) * len(b)) - 1)


def auc(scores: ArrayLike | sparse.sparray, labels: ArrayLike) -> np.ndarray:
    """Area under the ROC curve of every score for every label: P(score where it holds is higher).

    Made for sparse codes: all zeros of a column are one tie, so only what is stored is sorted, and
    all labels together cost one product of the ranks with the labels.

    Parameters
    ----------
    scores : array or scipy.sparse array of shape (n, m)
        Finite; negative values are allowed.
    labels : bool array of shape (n, c)

    Returns
    -------
    float array of shape (m, c)
        0.5 is chance, 1 ranks every row where the label holds above all others, ties count half;
        NaN for labels that always or never hold.

    Raises
    ------
    ValueError
        Unequal lengths, labels that are not yes or no, NaN or infinity.

    References
    ----------
    Mann and Whitney (1947), Annals of Mathematical Statistics 18.

    Examples
    --------
    >>> auc(np.array([[0.0], [0.0], [0.2], [0.9]]), np.array([[0], [0], [0], [1]], bool))
    array([[1.]])
    """
    labels = np.asarray(labels)
    if labels.dtype != bool or labels.ndim != 2 or len(labels) != scores.shape[0]:
        raise ValueError(
            f"labels are yes or no (bool) in an array of {scores.shape[0]:,} rows, one a score, "
            f"and a column a label; got {labels.dtype} of shape {labels.shape}."
        )
    base, above = _ranks(scores)
    n, holds = len(labels), labels.sum(0).astype(float)
    # Few labels hold in a row: as a sparse product it costs a tenth of a dense one.
    ranks = (sparse.csr_array(labels.T, dtype=float) @ above).T
    ranks = ranks.toarray() if sparse.issparse(ranks) else ranks
    ranks += base[:, None] * holds
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks - holds * (holds + 1) / 2) / (holds * (n - holds))


def grouped_auc(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each score for its own label, and the influence of each group of samples on it.

    Frames of one composition are not independent samples, so an interval must resample
    compositions. To first order, leaving out or doubling a group moves the AUC by its influence:
    a bootstrap draws ``auc + (times drawn) @ influence``.

    Parameters
    ----------
    scores : array of shape (n, m)
        Finite.
    labels : bool array of shape (n, m)
    groups : array of shape (n,)

    Returns
    -------
    auc : float array of shape (m,)
        NaN for labels that always or never hold.
    influence : float array of shape (groups in sorted order, m)
        Sums to 0 over the groups; the root of its sum of squares is the standard error.

    References
    ----------
    Obuchowski (1997), Nonparametric analysis of clustered ROC curve data, Biometrics 53.

    Examples
    --------
    >>> labels = np.array([[False], [True], [False], [True]])
    >>> grouped_auc(np.array([[0.1], [0.2], [0.3], [0.4]]), labels, ["a", "b", "b", "b"])[0]
    array([0.75])
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels)
    if scores.shape != labels.shape or labels.ndim != 2 or labels.dtype != bool:
        raise ValueError(
            "scores and labels (yes or no) are tables of the same shape; got "
            f"{scores.shape} and {labels.dtype} of {labels.shape}."
        )
    if not np.isfinite(scores).all():
        raise ValueError("The scores hold NaN or infinity.")
    index, members = _members(groups, len(labels))
    auc = np.full(labels.shape[1], np.nan)
    influence = np.full((len(members), labels.shape[1]), np.nan)
    ranks = _scipy.rankdata(scores, axis=0)
    for c, held in enumerate(labels.T):
        n_yes, n_no = held.sum(), (~held).sum()
        if n_yes and n_no:
            yes, no = scores[held, c], scores[~held, c]
            below = (ranks[held, c] - _scipy.rankdata(yes)) / n_no  # share of the others below
            above = 1 - (ranks[~held, c] - _scipy.rankdata(no)) / n_yes
            auc[c] = below.mean()
            part = np.empty(len(held))
            part[held], part[~held] = (below - auc[c]) / n_yes, (above - auc[c]) / n_no
            influence[:, c] = np.bincount(index, part, len(members))
    return auc, influence


def _ranks(scores: ArrayLike | sparse.sparray) -> tuple[np.ndarray, sparse.csr_array | np.ndarray]:
    """Ranks in each column: that of its zeros, (m,), and how far the others are above, (n, m)."""
    if not sparse.issparse(scores):
        scores = np.asarray(scores, float)
        if not np.isfinite(scores).all():
            raise ValueError("The scores hold NaN or infinity.")
        return np.zeros(scores.shape[1]), _scipy.rankdata(scores, axis=0)
    scores = sparse.csc_array(scores, copy=True)
    scores.eliminate_zeros()
    if not np.isfinite(scores.data).all():
        raise ValueError("The scores hold NaN or infinity.")
    (n, m), starts, data = scores.shape, scores.indptr, scores.data
    counts = np.diff(starts)
    column = np.repeat(np.arange(m, dtype=np.int32), counts)
    order = np.empty(len(data), np.int64)
    for first, after in itertools.pairwise(starts):
        order[first:after] = first + np.argsort(data[first:after])
    data = data[order]
    # Equal values share the mean of their places.
    new = np.r_[True, (data[1:] != data[:-1]) | (column[1:] != column[:-1])][: len(data)]
    first = np.flatnonzero(new)
    length = np.diff(np.append(first, len(data)))
    mean = first + (length + 1) / 2
    below = np.bincount(column, data < 0, m)
    zeros = n - counts
    base = below + (zeros + 1) / 2
    rank = np.repeat(mean, length) - (starts[:-1] + base)[column]
    rank += np.where(data > 0, zeros[column], 0)
    scores.data = np.empty(len(data))
    scores.data[order] = rank
    return base, scores.tocsr()


def odds_ratio(table: ArrayLike, level: float = 0.95) -> Interval:
    """Odds ratio of a 2 × 2 table of counts with its interval.

    Parameters
    ----------
    table : array of shape (2, 2)
        ``[[a successes, a failures], [b successes, b failures]]``. Where a cell is empty, 0.5 is
        added to each (Haldane and Anscombe), so that the ratio stays finite.

    Returns
    -------
    Interval
        Sample odds ratio with the log-normal (Woolf) interval.
    """
    t = np.asarray(table, dtype=float)
    if t.shape != (2, 2) or not np.isfinite(t).all() or (t < 0).any() or t.sum() == 0:
        raise ValueError(f"An odds ratio needs a 2 × 2 table of counts; got {t.tolist()}.")
    n = int(t.sum())
    t = t + 0.5 if (t == 0).any() else t
    log = np.log(t[0, 0] * t[1, 1] / (t[0, 1] * t[1, 0]))
    reach = _scipy.norm.ppf(0.5 + level / 2) * np.sqrt((1 / t).sum())
    return Interval(*(float(np.exp(x)) for x in (log, log - reach, log + reach)), n)


def cramers_v(a: ArrayLike, b: ArrayLike) -> float:
    """Association of two categorical variables, corrected for the bias of small samples.

    0 is independent, 1 is one-to-one. Without the correction, independent attributes with many
    values look associated in a few hundred clips.

    Parameters
    ----------
    a, b : array of shape (N,)
        Categories of any type, row by row.

    Returns
    -------
    float in [0, 1], or NaN where one of the two never varies (then association has no meaning)

    References
    ----------
    Bergsma (2013), A bias-correction for Cramér's V and Tschuprow's T, Journal of the Korean
    Statistical Society 42.

    Examples
    --------
    >>> cramers_v(["major", "minor"] * 50, ["organ", "flute"] * 50)
    1.0
    """
    a, b = _categories(a), _categories(b)
    n = len(a)
    if n != len(b) or n < 2:
        raise ValueError(f"Two equally long columns are needed; got {n} and {len(b)} rows.")
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    r, c = table.shape
    if min(r, c) < 2:
        return float("nan")
    phi2 = _scipy.chi2_contingency(table, correction=False).statistic / n
    phi2 = max(0.0, phi2 - (r - 1) * (c - 1) / (n - 1))
    levels = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    return float(min(1.0, np.sqrt(phi2 / levels))) if levels > 0 else float("nan")


def group_means(values: ArrayLike, groups: ArrayLike) -> np.ndarray:
    """Mean of `values` (N,) in each group, in sorted order of the groups: shape (G,)."""
    values = _finite(values, "values")
    index, _ = _members(groups, len(values))
    return np.bincount(index, weights=values) / np.bincount(index)


# -- inside ----------------------------------------------------------------------------------------


def _mean(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(x, axis=axis)


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    return sums.sum(axis) / counts.sum(axis)


def _finite(x: ArrayLike, name: str) -> np.ndarray:
    x = np.asarray(x, dtype=float)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers; got shape {x.shape}.")
    bad = int((~np.isfinite(x)).sum())
    if bad:
        raise ValueError(f"{name} holds NaN or infinity in {bad} of {len(x)} places.")
    return x


def _two(count: int, name: str) -> None:
    if count < 2:
        raise ValueError(f"An interval needs at least two {name}; got {count}.")


def _p_values(p: ArrayLike) -> np.ndarray:
    p = np.atleast_1d(np.asarray(p, dtype=float))
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be numbers from 0 to 1, without NaN.")
    return p


def _categories(x: ArrayLike) -> np.ndarray:
    """Integer codes of categories of any type; numbers and strings may be mixed."""
    x = list(x)
    codes = {value: i for i, value in enumerate(dict.fromkeys(x))}
    return np.array([codes[value] for value in x], dtype=int)


def _members(groups: ArrayLike, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups has shape {groups.shape}, and there are {n} values: one each.")
    _, index = np.unique(groups, return_inverse=True)
    order = np.argsort(index, kind="stable")
    return index, np.split(order, np.cumsum(np.bincount(index))[:-1])


def _differences(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> np.ndarray:
    a, b = _finite(a, "a"), _finite(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b {len(b)}; pairs need as many of each.")
    d = a - b
    d = d if groups is None else group_means(d, groups)
    _two(len(d), "pairs" if groups is None else "groups")
    return d
