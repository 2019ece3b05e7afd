"""What a probe found, with intervals (notebook 04)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..stats import Interval


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
