"""Are the names true? Labels scored on examples that no method saw, through a judge.

A judge gives a number to each of some sounds for a text: how well the text fits. A label is worth
as much as the judge's numbers tell active from silent examples of the scoring half: the *detection
AUC*. A judge never scores what it said itself. Beside each label stand three rivals:

================  ==================================================================================
shuffled          the same examples, labels of other features (mean of up to five)
wrong             the same examples, the label of the feature that fires about as often
random feature    this label, the examples of another feature
================  ==================================================================================

A judge that is deaf, or likes certain sounds whatever is asked, gives the rivals as much as the
label. All come from the same method and have other texts than the label.

For agreement, a judge's number becomes yes or no at the threshold that parts the *finding* half
best. `agreement` is Cohen's kappa: 0 is what two would agree on by chance, 1 is always.

References
----------
Cohen (1960), A coefficient of agreement for nominal scales, Educational and Psychological
Measurement 20. Met in notebook 09.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import mannwhitneyu
from sklearn.metrics import cohen_kappa_score

from musae_utils import stats
from musae_utils.labels.examples import Example, Examples, Half
from musae_utils.labels.label import Label
from musae_utils.stats import Interval

RIVALS = ("shuffled", "wrong", "random feature")
OTHERS = 5  # labels of other features, for "shuffled"


class Unjudged(ValueError):
    """A judge cannot judge a text, or these sounds by it; says why. It is no verdict."""


class AudioTextScorer(Protocol):
    """A judge.

    Attributes
    ----------
    name : str
        Of what judges; a `Labeler` with the same name is the same model.
    """

    name: str

    def score(self, sounds: Sequence[Example], text: str) -> ArrayLike:
        """How well a text fits each sound: finite numbers of shape (sounds,), more is better.

        Raises
        ------
        Unjudged
            The text names nothing that this judge knows, or it knows nothing of these sounds.
        """


@dataclass(repr=False)
class Scores:
    """How labels did.

    Attributes
    ----------
    table : DataFrame
        A line for each label and judge: ``feature``, ``method``, ``judge``, ``text``, ``auc``,
        ``p`` (one-sided, exact), ``adjusted`` (Benjamini and Hochberg's, over the labels of a
        method and judge), the three `RIVALS`, and ``why`` where there is no AUC (NaN).
    decisions : DataFrame
        A line for each of these and each scored example: ``feature``, ``method``, ``judge``,
        ``clip``, ``start``, ``group``, ``active``, ``said``.
    missing : list of str
        Judges that there were not.
    """

    table: pd.DataFrame
    decisions: pd.DataFrame
    missing: list[str]

    def summary(self) -> pd.DataFrame:
        """A line for each method and judge.

        Returns
        -------
        DataFrame by (method, judge)
            ``labels``, ``abstained``, ``auc`` (Interval over features), ``true`` (labels whose
            adjusted p is below 0.05); for each rival ``over <rival>`` (Interval of the difference)
            and ``p <rival>`` (Holm's, for all the comparisons of the table). None where fewer than
            two features have both.
        """
        rows, p = {}, {}
        for at, part in self.table.groupby(["method", "judge"], sort=False):
            had = part[part["auc"].notna()]
            rows[at] = {
                "labels": len(had), "abstained": int((part["text"] == "").sum()),
                "auc": stats.bootstrap(had["auc"]) if len(had) > 1 else None,
                "true": int((had["adjusted"] < 0.05).sum()),
            }  # fmt: skip
            for rival in RIVALS:
                both = had[had[rival].notna()]
                rows[at][f"over {rival}"] = rows[at][f"p {rival}"] = None
                if len(both) > 1:
                    test = stats.paired_test(both["auc"], both[rival], alternative="greater")
                    rows[at][f"over {rival}"], p[at, rival] = test.difference, test.p
        for (at, rival), adjusted in zip(p, stats.holm(list(p.values())), strict=True):
            rows[at][f"p {rival}"] = float(adjusted)
        return pd.DataFrame.from_dict(rows, "index").rename_axis(["method", "judge"])

    def agreements(self, between: str) -> pd.DataFrame:
        """Cohen's kappa between every two judges of a method's labels, or methods before a judge.

        Parameters
        ----------
        between : {"judge", "method"}

        Returns
        -------
        DataFrame
            ``method`` or ``judge`` (what is the same), ``first``, ``second``, ``kappa`` (Interval
            over compositions, None where only one composition is shared).
        """
        if between not in ("judge", "method"):
            raise ValueError(f"Agreement is between judges or methods ('judge', 'method'), not "
                             f"{between!r}.")  # fmt: skip
        same = "method" if between == "judge" else "judge"
        rows = []
        for held, part in self.decisions.groupby(same, sort=False):
            said = part.pivot(
                index=["feature", "clip", "start", "group"], columns=between, values="said"
            )
            for i, first in enumerate(said):
                for second in said.columns[i + 1 :]:
                    both = said[[first, second]].dropna()
                    groups = both.index.get_level_values("group")
                    kappa = None
                    if groups.nunique() > 1:
                        kappa = agreement(both[first], both[second], groups)
                    rows.append((held, first, second, kappa))
        return pd.DataFrame(rows, columns=[same, "first", "second", "kappa"])


def score_labels(
    labels: Iterable[Label],
    features: Iterable[Examples],
    judges: Mapping[str, AudioTextScorer | None],
    seed: int = 0,
) -> Scores:
    """Score labels on the scoring half of their features' examples.

    Parameters
    ----------
    labels : iterable of Label
    features : iterable of Examples
        Of at least the labelled features.
    judges : dict of name to AudioTextScorer
        None for one that is not there (its weights, say): it is listed as missing, and the others
        go on.
    seed : int
        Draws the rivals.

    Returns
    -------
    Scores

    Raises
    ------
    ValueError
        There is no judge at all or no label, a label's feature has no examples, a method labels a
        feature twice, or a judge gives other than one finite number a sound.

    Examples
    --------
    >>> scores = score_labels(named.labels, chosen, {"CLAP": clap})  # doctest: +SKIP
    >>> scores.summary()  # doctest: +SKIP
    """
    labels, of = list(labels), {chosen.feature: chosen for chosen in features}
    there = {name: judge for name, judge in judges.items() if judge is not None}
    if not there:
        wanted = ", ".join(judges) or "none was named"
        raise ValueError(f"No label can be scored without a judge ({wanted}): install or load one.")
    if not labels:
        raise ValueError("There is no label to score: name features first.")
    lost = sorted({label.feature for label in labels} - set(of))
    if lost:
        raise ValueError(f"Examples of features {lost} are needed to score their labels.")
    if len({(label.feature, label.method) for label in labels}) < len(labels):
        raise ValueError("A method labels a feature once, and here it does so twice.")
    rows, decisions = [], []
    for name, judge in there.items():
        ask = _Judge(name, judge)
        for label in labels:
            chosen, why = of[label.feature], ""
            if chosen.problem or label.abstains:
                why = chosen.problem or f"It abstains. {label.evidence}"
            elif name == label.method or judge.name == label.method:
                why = "It was made by this judge."
            row = {"feature": label.feature, "method": label.method, "judge": name,
                   "text": label.text, "auc": np.nan, "p": np.nan, "adjusted": np.nan}  # fmt: skip
            row |= dict.fromkeys(RIVALS, np.nan) | {"why": why}
            if not why:
                try:
                    values = ask(label.text, chosen.scoring)
                    decisions += _decided(ask, label, chosen, values)
                    row |= {
                        "auc": detection_auc(values, chosen.scoring),
                        "p": _p(values, chosen.scoring),
                    }
                    row |= _rivals(ask, label, labels, of, seed)
                except Unjudged as error:
                    row["why"] = str(error)
            rows.append(row)
    table = pd.DataFrame(rows)
    for _, part in table[table["auc"].notna()].groupby(["method", "judge"]):
        table.loc[part.index, "adjusted"] = stats.benjamini_hochberg(part["p"])
    columns = ["feature", "method", "judge", "clip", "start", "group", "active", "said"]
    missing = [name for name in judges if name not in there]
    return Scores(table, pd.DataFrame(decisions, columns=columns), missing)


def agreement(a: Iterable, b: Iterable, groups: Iterable) -> Interval:
    """Cohen's kappa of two raters: agreement beyond chance, whole compositions being resampled.

    Parameters
    ----------
    a, b : sequences of the same length
        What each said, as categories of any type.
    groups : sequence of the same length
        Composition of each.

    Returns
    -------
    Interval
        NaN where both say the same of everything: then agreement has no meaning. Its ends leave out
        resamples of which that is true.

    Examples
    --------
    >>> agreement("yyyynnnn", "yyynnnny", range(8)).value
    0.5
    """
    a, b, groups = list(a), list(b), list(groups)
    if not len(a) == len(b) == len(groups) or len(a) < 2:
        raise ValueError(
            f"Two raters say as much; got {len(a)}, {len(b)} and {len(groups)} groups."
        )
    known = list(dict.fromkeys([*a, *b]))
    index = {value: i for i, value in enumerate(known)}
    first, second = ([index[value] for value in said] for said in (a, b))
    where = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(known) < 2 or len(where) < 2:
        value = float(cohen_kappa_score(first, second)) if len(known) > 1 else float("nan")
        return Interval(value, float("nan"), float("nan"), len(where))
    counts = np.zeros((len(where), len(known), len(known)))
    np.add.at(counts, ([where[group] for group in groups], first, second), 1)
    drawn = np.tensordot(stats.resample_groups(len(where)), counts, 1)
    with np.errstate(invalid="ignore"):
        share = drawn / drawn.sum((1, 2), keepdims=True)
        by_chance = (share.sum(1) * share.sum(2)).sum(1)
        kappa = (np.trace(share, axis1=1, axis2=2) - by_chance) / (1 - by_chance)
    low, high = np.quantile(kappa[np.isfinite(kappa)], [0.025, 0.975])
    return Interval(float(cohen_kappa_score(first, second)), float(low), float(high), len(where))


# -- inside ----------------------------------------------------------------------------------------


class _Judge:
    """A judge whose answers are checked and kept: rivals ask the same things again."""

    def __init__(self, name: str, judge: AudioTextScorer) -> None:
        self._name, self._judge, self._known = name, judge, {}

    def __call__(self, text: str, half: Half) -> np.ndarray:
        at = text, tuple((example.clip, example.start, example.end) for example in half.all)
        if at not in self._known:
            values = np.asarray(self._judge.score(half.all, text), float)
            if values.shape != (len(half.all),) or not np.isfinite(values).all():
                raise ValueError(
                    f"The judge {self._name!r} gave {values.size} numbers of shape {values.shape} "
                    f"for {len(half.all)} sounds: one finite number a sound was expected."
                )
            self._known[at] = values
        return self._known[at]


def detection_auc(values: np.ndarray, half: Half) -> float:
    """How well a judge's numbers (n,) for ``half.all`` tell active from silent examples."""
    return float(stats.auc(values[:, None], half.fires[:, None])[0, 0])


def _p(values: np.ndarray, half: Half) -> float:
    active, silent = values[half.fires], values[~half.fires]
    test = mannwhitneyu(active, silent, alternative="greater", method="exact")
    return min(float(test.pvalue), 1.0)


def _rivals(ask, label, labels, of, seed) -> dict[str, float]:
    others = [
        other
        for other in labels
        if other.method == label.method and not other.abstains and other.text != label.text
        and not of[other.feature].problem
    ]  # fmt: skip
    if not others:
        return {}
    half, rate = of[label.feature].scoring, of[label.feature].rate

    def auc(text: str, half: Half) -> float:
        try:
            return detection_auc(ask(text, half), half)
        except Unjudged:
            return float("nan")

    def first(others: Iterable[Label], n: int) -> float:
        """Mean over the first labels that can be judged: one that cannot is no rival."""
        judged = (auc for auc in (auc(other.text, half) for other in others) if auc == auc)
        values = list(itertools.islice(judged, n))
        return float(np.mean(values)) if values else float("nan")

    rng = np.random.default_rng([seed, label.feature])
    drawn = [others[i] for i in rng.permutation(len(others))]
    alike = sorted(others, key=lambda other: abs(of[other.feature].rate - rate))
    return {
        "shuffled": first(drawn, OTHERS),
        "wrong": first(alike, 1),
        "random feature": auc(label.text, of[drawn[0].feature].scoring),
    }


def _decided(ask, label, chosen, values) -> list[tuple]:
    cut = _threshold(ask(label.text, chosen.finding), chosen.finding.fires)
    return [
        (label.feature, label.method, ask._name, example.clip, example.start, example.group,
         bool(fires), bool(value > cut))
        for example, fires, value in zip(
            chosen.scoring.all, chosen.scoring.fires, values, strict=True
        )
    ]  # fmt: skip


def _threshold(values: np.ndarray, fires: np.ndarray) -> float:
    """Above which a value is more often that of an active example than that of a silent one."""
    at = np.unique(values)
    cuts = np.concatenate([[-np.inf], (at[:-1] + at[1:]) / 2, [np.inf]])
    gain = [(values[fires] > cut).mean() - (values[~fires] > cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(gain))])
