"""Which planted concepts have a feature of their own, and which have none (notebook 07).

Composed music is known note by note, so a dictionary can be marked like an exam: for each planted
concept the best single feature is **found** on some compositions and **scored** on others. Nothing
is labelled, voted on or chosen by hand, and the concepts that no feature finds are listed as well.

Whatever gives a number for each row can sit the exam, and some who know nothing must: thousands of
random directions contain a fair detector of almost anything. `rivals` makes them:

=================  =================================================================================
neurons            the dimensions of the stream, each in both directions
PCA                its principal components, each in both directions
random directions  as many as the SAE has features, drawn from a sphere
untrained SAE      the SAE's architecture, size and starting values, without training
=================  =================================================================================

Measures
--------
auc
    P(the feature is higher where the concept holds than where it does not), ties counting half.
    Of a frame its activation, of a clip its mean over the clip's frames.
coverage
    Share of concepts whose best feature scores `FOUND` or more.
f1
    Of "it is above a threshold", which is found where the feature is.
probe
    AUC of a logistic regression on the k features whose means differ most between frames with and
    without the concept: k-sparse probing (Gurnee et al., arXiv:2305.01610).
redundancy
    Features that reach `FOUND` on both sides, for a concept that has any.
splinters
    Features of a concept that fire nearly only where it holds (precision `PURE` or more) and in
    less than half of it, on both sides: pieces into which it was split. Of frames only.
exclusivity
    Concepts that a feature reaches `FOUND` for, if any; 1 is best. Concepts overlap (a chord's root
    and its notes), so a good feature may have several.

Intervals resample compositions, the features being as they were found. They follow from each
composition's influence on each AUC (`stats.grouped_auc`), so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch.nn import functional as F
from tqdm.auto import tqdm

from musae_utils import stats
from musae_utils.activations import ActivationStore
from musae_utils.features.atlas import Coder, _point, compositions_of, encode
from musae_utils.music import concepts
from musae_utils.sae import SAE
from musae_utils.sae.architectures import BATCHED
from musae_utils.stats import Interval

FOUND = 0.9  # AUC from which a concept counts as found
PURE = 0.9  # precision of a splinter
LEAST = 5  # compositions with and without a concept, on both sides, for it to be asked
FIRST = 20_000  # rows that rivals are made from
FITTED = 6_000  # rows, at most, that a sparse probe is fitted on
COLUMNS = 512  # of a dense code that are ranked at once


class Directions:
    """A code of signed coordinates: (x - centre) · direction, in both directions.

    Parameters
    ----------
    directions : Tensor of shape (n, d)
    centre : Tensor of shape (d,)
    hook_point : as `Coder` has it
    both : bool
        Give each direction and its opposite, 2 n numbers.
    """

    def __init__(
        self, directions: torch.Tensor, centre: torch.Tensor, hook_point: Any, both: bool = True
    ) -> None:
        self.W_dec = torch.cat([directions, -directions]) if both else directions
        self.centre, self.hook_point = centre, hook_point

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.centre) @ self.W_dec.T


def rivals(sae: SAE, store: ActivationStore, seed: int = 0) -> dict[str, Coder]:
    """Codes that learnt nothing, of the same rows as an SAE's.

    Parameters
    ----------
    sae : SAE
    store : ActivationStore
        Music that the SAE was trained on, or like it: starting values and components come from it.
    seed : int

    Returns
    -------
    dict of name to Coder
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(store), generator=generator)[:FIRST].sort().values
    rows = store[_point(sae)][chosen.numpy()].float()
    centre, d = rows.mean(0), rows.shape[1]
    untrained = SAE(sae.config, sae.hook_point, seed=None)
    untrained.initialise(generator, rows[:4096], scaled=bool(sae.scale != 1))
    if sae.config.architecture in BATCHED:
        untrained.calibrate(rows[:4096])
    components = torch.linalg.svd(rows - centre, full_matrices=False).Vh
    random = F.normalize(torch.randn(sae.config.d_sae, d, generator=generator), dim=1)
    return {
        "untrained SAE": untrained,
        "random directions": Directions(random, centre, sae.hook_point, both=False),
        "neurons": Directions(torch.eye(d), centre, sae.hook_point),
        "PCA": Directions(components, centre, sae.hook_point),
    }


@dataclass(repr=False)
class KnownAnswers:
    """How several codes did.

    Attributes
    ----------
    table : DataFrame by (code, level, concept)
        ``feature``, ``found`` (AUC where it was chosen), ``auc`` (elsewhere), ``f1``, ``probe``,
        ``features``, ``splinters``, ``share`` (of frames or clips where the concept holds).
    influence : dict of (code, level) to array of shape (compositions, concepts)
        Of each composition on each AUC.
    exclusivity : dict of (code, level) to float
        NaN if no feature finds a concept.
    """

    table: pd.DataFrame
    influence: dict[tuple[str, str], np.ndarray]
    exclusivity: dict[tuple[str, str], float]

    @property
    def codes(self) -> list[str]:
        return list(self.table.index.unique("code"))

    @property
    def levels(self) -> list[str]:
        return list(self.table.index.unique("level"))

    def missed(self, code: str, level: str) -> list[str]:
        """Concepts without a feature, the nearest miss first."""
        auc = self._auc(code, level)
        return list(auc[auc < FOUND].sort_values(ascending=False).index)

    def coverage(self, code: str, level: str) -> Interval:
        """Share of concepts that have a feature."""
        return self._over(code, level, lambda auc: (auc >= FOUND).mean(-1))

    def auc(self, code: str, level: str) -> Interval:
        """Mean AUC of the concepts' best features."""
        return self._over(code, level, lambda auc: auc.mean(-1))

    def gain(self, code: str, rival: str, level: str) -> Interval:
        """By how much the mean AUC exceeds a rival's, concept by concept, on the same music."""
        value = (self._auc(code, level) - self._auc(rival, level)).mean()
        difference = self.influence[code, level] - self.influence[rival, level]
        return _interval(np.array([value]), difference.mean(1)[:, None], lambda x: x[..., 0])

    def summary(self) -> pd.DataFrame:
        """A line for each code and level: the measures of the module's text."""
        rows = {}
        for (code, level), part in self.table.groupby(level=["code", "level"], sort=False):
            held = part["features"][part["features"] > 0]
            rows[code, level] = {
                "concepts": len(part), "coverage": self.coverage(code, level),
                "auc": self.auc(code, level), "f1": part["f1"].mean(),
                "probe": part["probe"].mean(),
                "redundancy": held.mean() if len(held) else float("nan"),
                "splinters": part["splinters"].mean(),
                "exclusivity": self.exclusivity[code, level],
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, "index").rename_axis(["code", "level"])

    def _auc(self, code: str, level: str) -> pd.Series:
        return self.table.loc[code].loc[level]["auc"]

    def _over(self, code: str, level: str, statistic) -> Interval:
        return _interval(self._auc(code, level).to_numpy(), self.influence[code, level], statistic)

    def __repr__(self) -> str:
        said = [f"{code}, {level}: AUC {self.auc(code, level):.2f}, "
                f"coverage {self.coverage(code, level):.0%}"
                for code in self.codes for level in self.levels]  # fmt: skip
        return "\n".join(said)


def known_answers(
    codes: Mapping[str, Coder],
    found_on: ActivationStore,
    scored_on: ActivationStore,
    k: int = 5,
    every: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> KnownAnswers:
    """Let codes sit the exam.

    Parameters
    ----------
    codes : dict of name to Coder
    found_on, scored_on : ActivationStore
        Of different compositions, all with known truth. The music that an SAE was trained on may be
        `found_on`, never `scored_on`.
    k : int
        Features of a sparse probe.
    every : int
        Take each so-manieth row: neighbouring frames say nearly the same.
    seed : int
        Of the rows that sparse probes are fitted on.
    progress : bool

    Returns
    -------
    KnownAnswers

    Raises
    ------
    ValueError
        A composition is on both sides, truth is absent, or too little music for any concept.

    Examples
    --------
    >>> marks = known_answers({"SAE": sae} | rivals(sae, train), train, held_out)  # doctest: +SKIP
    >>> marks.gain("SAE", "untrained SAE", "frame")  # doctest: +SKIP
    """
    shared = {c.group for c in found_on.clips} & {c.group for c in scored_on.clips}
    if shared:
        raise ValueError(
            f"{len(shared)} compositions are on both sides, {min(shared)!r} for one: features must "
            "be scored on music other than that on which they were chosen."
        )
    sides = _Side(found_on, every), _Side(scored_on, every)
    asked = {level: _asked(*(side.concepts[level] for side in sides)) for level in LEVELS}
    if not any(asked.values()):
        raise ValueError(
            f"No concept holds in {LEAST} compositions and fails in {LEAST} on both sides: take "
            "more music."
        )
    rows, influence, exclusivity = [], {}, {}
    bar = tqdm(codes.items(), desc="marking", unit="code", disable=not progress)
    for name, coder in bar:
        bar.set_postfix_str(name)
        read = [side.read(coder) for side in sides]
        for level in (level for level in LEVELS if asked[level]):
            marked, influence[name, level], exclusivity[name, level] = _mark(
                [r[level] for r in read], [s.concepts[level] for s in sides], asked[level], k, seed
            )
            rows += [{"code": name, "level": level} | row for row in marked]
    table = pd.DataFrame(rows).set_index(["code", "level", "concept"])
    return KnownAnswers(table, influence, exclusivity)


# -- inside ----------------------------------------------------------------------------------------

LEVELS = ("frame", "clip")


@dataclass
class _Concepts:
    """What holds, in samples (frames or clips) of which each belongs to a composition."""

    names: list[str]
    holds: np.ndarray  # (n, concepts)
    composition: np.ndarray  # (n,)

    def common(self) -> set[str]:
        """Concepts with enough compositions, on either side of the question."""
        seen = compositions_of(self.holds, self.composition)
        return {self.names[i] for i in np.flatnonzero((seen >= LEAST).all(0))}

    def of(self, wanted: list[str]) -> np.ndarray:
        return self.holds[:, [self.names.index(name) for name in wanted]]


def _asked(first: _Concepts, second: _Concepts) -> list[str]:
    both = first.common() & second.common()
    return [name for name in first.names if name in both]


class _Side:
    """Music, and what is true of it."""

    def __init__(self, store: ActivationStore, every: int) -> None:
        if not store.clips or any(clip.truth is None for clip in store.clips):
            raise ValueError(
                f"The store in {store.folder} holds no music, or some whose truth is not known: "
                "only composed music can be marked."
            )
        truths = [clip.truth for clip in store.clips]
        counts = np.array([clip.n_rows for clip in store.clips])
        clip = np.repeat(np.arange(len(counts)), counts)
        self.store, self.rows = store, np.arange(0, len(store), every)
        self.clip = clip[self.rows]
        _, composition = np.unique([c.group for c in store.clips], return_inverse=True)
        names, table = concepts.frame_table(truths, counts, store.frame_rate)
        self.concepts = {
            "frame": _Concepts(names, table[self.rows], composition[self.clip]),
            "clip": _Concepts(*concepts.clip_table(truths), composition),
        }

    def read(self, coder: Coder) -> dict[str, sparse.csr_array | np.ndarray]:
        """Activations (n, features): of frames, and means of clips."""
        if isinstance(coder, Directions):  # signed, so nothing of it is zero
            x, device = self.store[_point(coder)], coder.W_dec.device
            parts = np.array_split(self.rows, max(1, len(self.rows) // 4096))
            with torch.no_grad():
                read = [coder.encode(x[some].to(device, torch.float32)).cpu() for some in parts]
            frames = torch.cat(read).numpy()
        else:
            frames = encode(coder, self.store, self.rows)
        counts = np.bincount(self.clip)
        pool = sparse.csr_array(
            (1 / counts[self.clip], (self.clip, np.arange(len(self.clip)))),
            shape=(len(counts), len(self.clip)),
        )
        clips = pool @ frames
        return {"frame": frames, "clip": clips.toarray() if sparse.issparse(clips) else clips}


def _mark(codes, sides, names, k, seed):
    """One code at one level: a row for each concept, influences, exclusivity."""
    holds = [side.of(names) for side in sides]
    auc = [_auc(code, held) for code, held in zip(codes, holds, strict=True)]
    best = auc[0].argmax(0)
    chosen = [_columns(code, best) for code in codes]
    scored, influence = stats.grouped_auc(chosen[1], holds[1], sides[1].composition)
    reach = (auc[0] >= FOUND) & (auc[1] >= FOUND)
    splinters = _splinters(codes, holds)
    probes = _sparse_probes(codes, holds, k, seed)
    rows = [
        {
            "concept": name, "feature": int(best[c]), "found": float(auc[0][best[c], c]),
            "auc": float(scored[c]), "f1": _f1([x[:, c] for x in chosen], [h[:, c] for h in holds]),
            "probe": probes[c], "features": int(reach[:, c].sum()), "splinters": splinters[c],
            "share": float(holds[1][:, c].mean()),
        }
        for c, name in enumerate(names)
    ]  # fmt: skip
    wide = reach.sum(1)
    return rows, influence, float(wide[wide > 0].mean()) if wide.any() else float("nan")


def _auc(code: sparse.csr_array | np.ndarray, holds: np.ndarray) -> np.ndarray:
    if sparse.issparse(code):
        return stats.auc(code, holds)
    parts = range(0, code.shape[1], COLUMNS)
    return np.concatenate([stats.auc(code[:, i : i + COLUMNS], holds) for i in parts])


def _columns(code: sparse.csr_array | np.ndarray, which: np.ndarray) -> np.ndarray:
    columns = code[:, which]
    return columns.toarray() if sparse.issparse(columns) else columns


def _f1(scores: list[np.ndarray], holds: list[np.ndarray]) -> float:
    from sklearn.metrics import f1_score, precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(holds[0], scores[0])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(f1_score(holds[1], scores[1] >= thresholds[f1[:-1].argmax()], zero_division=0))


def _splinters(codes, holds) -> np.ndarray:
    """Features of each concept that hold a part of it and little else; NaN for dense codes."""
    n_concepts = holds[0].shape[1]
    if not sparse.issparse(codes[0]):
        return np.full(n_concepts, np.nan)
    pure = True
    for code, held in zip(codes, holds, strict=True):
        fires = code.astype(bool).astype(np.float32)
        both = (fires.T @ sparse.csr_array(held, dtype=np.float32)).toarray()
        often = np.asarray(fires.sum(0))[:, None]
        precision = both / np.maximum(often, 1)
        pure &= (precision >= PURE) & (both < 0.5 * held.sum(0)) & (often >= LEAST)
    rare = np.mean(holds[0], axis=0) <= 0.5  # of a common concept any rare feature is a part
    return np.where(rare, pure.sum(0), np.nan)


def _sparse_probes(codes, holds, k: int, seed: int) -> list[float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    code, held = codes[0], holds[0]
    weights = held / np.maximum(held.sum(0), 1) - ~held / np.maximum((~held).sum(0), 1)
    apart = np.asarray(code.T @ weights)  # difference of means, (features, concepts)
    squares = np.asarray((code.multiply(code) if sparse.issparse(code) else code**2).mean(0))
    spread = np.sqrt(np.maximum(squares - np.asarray(code.mean(0)) ** 2, 0))
    apart = np.abs(apart) / np.maximum(spread, 1e-6 * spread.max())[:, None]
    found = []
    some = np.sort(np.random.default_rng(seed).permutation(len(held))[:FITTED])
    for c in range(held.shape[1]):
        which = np.argsort(-apart[:, c], kind="stable")[:k]
        if len(np.unique(held[some, c])) < 2:
            found.append(float("nan"))
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        probe.fit(_columns(code[some], which), held[some, c])
        said = probe.decision_function(_columns(codes[1], which))
        found.append(float(stats.auc(said[:, None], holds[1][:, [c]])[0, 0]))
    return found


def _interval(values: np.ndarray, influence: np.ndarray, statistic, n: int = 1000) -> Interval:
    """Resample compositions to first order: each draws its influence as often as it is drawn."""
    groups = len(influence)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=n)
    low, high = np.quantile(statistic(values + drawn @ influence), [0.025, 0.975])
    value = float(statistic(values))
    return Interval(value, min(float(low), value), max(float(high), value), groups)
