"""Does a model plan ahead? Probes of what it holds now for returns that come later.

`read` takes from a model, and from everything else that might know, one row of features for each
moment of `pieces.rows`; `ask` fits a probe (standardise, logistic regression) to each source on one
half of the compositions and scores it on the other. What counts is not how well the model's
activations foretell a return, but the **gain** over the best thing that is not a plan:

==================  ================================================================================
residual, SAE       the model: its stream, and the features of its SAEs, at each layer given
position            a stopwatch
prompt              the words the model was told
instrument          who plays the lead, where that is known
acoustics           what the last seconds sound like, with means over the past 1 and 4 s
codec latents       what the codec makes of them, with the same means
returns so far      how many motifs have been heard and have come back, and when last
local features      the middle SAE's features, of a model that has heard the last two seconds only
untrained model     the same architecture with random weights
all together        all of these at once
==================  ================================================================================

Shuffled labels are no source but a way to ask: `planted` does. An SAE with random weights
(``random SAE``) reads the same stream; it is not a confound of the model, but a control of what a
*trained* dictionary adds.

Best layer and best confound are chosen by inner cross-validation on the training half. Rows are
drawn so that a stopwatch knows nothing (`pieces.balanced`). Intervals are over compositions.

Explained in notebooks/16_does_the_model_plan_ahead.ipynb.

References
----------
Hewitt and Liang (2019), Designing and interpreting probes with control tasks, arXiv:1909.03368.
Obuchowski (1997), Nonparametric analysis of clustered ROC curve data, Biometrics 53.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from musae_utils import stats, trace
from musae_utils.probes import acoustic_features, position_features, untrained, with_context
from musae_utils.probes.fitting import WIDEN, _fit_classes, _Half, _halves, _Target
from musae_utils.sae import SAE
from musae_utils.sae.files import _placed
from musae_utils.stats import Interval
from musae_utils.structure.pieces import Piece, balanced, so_far

SIMPLE = ("position", "prompt", "instrument")  # confounds that name themselves
CONFOUNDS = (*SIMPLE, "acoustics", "codec latents", "returns so far", "local features",
             "untrained model", "all together")  # fmt: skip
CONTROL = "random SAE"
PAST = 1.0  # seconds over which the model's features are averaged beside the last frame
STEP = 2  # frames from one to the next of an SAE's average
LOCAL = 2.0  # seconds that "local features" have heard
LEAST = 6  # compositions: three in each half
AXES = 16  # of each confound in all of them together
RARE = 0.01  # share of rows from which a feature counts as one
SHARD = 20  # pieces read at once
#: Rows of one question. Those of one piece say much the same, and intervals are over pieces.
ROWS = 1200


# -- what is read ----------------------------------------------------------------------------------


def read(
    model: Any,
    saes: Sequence[SAE],
    pieces: Sequence[Piece],
    table: pd.DataFrame,
    second: SAE | None = None,
    keep: Callable[[str, Callable[[], dict]], dict] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, np.ndarray]:
    """All sources of all rows.

    Parameters
    ----------
    model : MusicModel
    saes : sequence of SAE
        Of different layers of this model; the middle one gives the local features.
    pieces, table
        Of `pieces.rows`.
    second : SAE, optional
        Another one of the middle layer, for instance of another seed: becomes "second SAE".
    keep : callable, optional
        (name, function) to the function's dict of arrays: lets a caller keep parts.
    progress : callable
        Wraps the iteration over parts of `SHARD` pieces, e.g. ``tqdm``.

    Returns
    -------
    dict of str to float array of shape (N, d)
        The sources of the module's head that there are, without "all together"; and ``frame <l>``,
        the stream of the last frame at the middle SAE's layer, for signals to be planted in.

    Raises
    ------
    ValueError
        No SAE, two of one layer, or one of another model.
    """
    layers = _layers(model, saes)
    parts = []
    for first in progress(range(0, len(pieces), SHARD)):
        some = table[(table["piece"] >= first) & (table["piece"] < first + SHARD)]
        make = functools.partial(_read, model, saes, layers, second, pieces, some)
        parts.append(make() if keep is None else keep(f"rows-{first:05d}", make))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name in [name for name in found if "SAE" in name or name == "local features"]:
        alive = (found[name] > 0).mean(0) >= RARE
        found[name] = found[name][:, alive] if alive.any() else found[name][:, :1]
        found[f"of {name}"] = np.flatnonzero(alive)
    told = [pieces[i].prompt for i in table["piece"]]
    if any(told):
        words = CountVectorizer(token_pattern=r"[^\s,]+", binary=True, ngram_range=(1, 2))
        found["prompt"] = words.fit_transform(told).toarray().astype(np.float32)
    leads = np.array([pieces[i].instrument for i in table["piece"]])
    if len(set(leads)) > 1:
        found["instrument"] = (leads[:, None] == np.unique(leads)).astype(np.float32)
    longest = max(len(piece.audio) / piece.sample_rate for piece in pieces)
    clock = position_features(round(longest * model.frame_rate) + 1, model.frame_rate)
    found["position"] = clock[table["frame"]]
    found["returns so far"] = so_far(pieces, table)
    return found


def _layers(model: Any, saes: Sequence[SAE]) -> list[int]:
    """Where SAEs belong, checked."""
    layers = [_placed(sae, model) for sae in saes]
    for sae, layer in zip(saes, layers, strict=True):
        sae.check(trace.HookPoint.of(model, layer))
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"Give SAEs of different layers, at least one; these are of {layers}.")
    return layers


@torch.no_grad()
def _read(model, saes, layers, second, pieces, table) -> dict[str, np.ndarray]:
    """Rows of some pieces: what the model holds, and what can be heard."""
    middle = len(saes) // 2
    past, found = round(PAST * model.frame_rate), {}

    def add(name: str, x: np.ndarray) -> None:
        found.setdefault(name, []).append(x.astype(np.float16))

    for _, part in table.groupby(table["piece"] // 8):
        numbers = list(dict.fromkeys(part["piece"]))
        lengths = [pieces[i].codes.shape[-1] for i in numbers]
        # Pieces of one pass are cut to one length; what is asked of each lies before its own end.
        codes = np.stack([_filled(pieces[i].codes, max(lengths)) for i in numbers])
        codes = torch.as_tensor(codes.astype(np.int64))
        prompts = [pieces[i].prompt or None for i in numbers]
        streams = _streams(model, codes, layers, prompts)
        with untrained(model):
            blank = _streams(model, codes, layers[middle : middle + 1], prompts)
        for row, i in enumerate(numbers):
            at = part.loc[part["piece"] == i, "frame"].to_numpy()
            for j, (sae, layer) in enumerate(zip(saes, layers, strict=True)):
                stream = streams[layer][row]
                add(f"residual {layer}", with_context(stream, [past], at))
                windows = np.clip(at[:, None] - np.arange(0, past, STEP), 0, None)
                near = torch.from_numpy(stream[windows])
                fires = lambda one, near=near: one.encode(near).mean(1).numpy()  # noqa: E731
                add(f"SAE {layer}", fires(sae))
                if j == middle:
                    add(CONTROL, fires(_random(sae)))
                    if second is not None:
                        add("second SAE", fires(second))
                    add(f"frame {layer}", stream[at])
            add("untrained model", with_context(blank[layers[middle]][row], [past], at))
            heard = acoustic_features(pieces[i].audio, pieces[i].sample_rate, model.frame_rate)
            context = [past, 4 * past]
            add("acoustics", with_context(heard, context, np.minimum(at, len(heard) - 1)))
            latents = model.latents(pieces[i].audio, pieces[i].sample_rate)[0].T.float().numpy()
            add("codec latents", with_context(latents, context, np.minimum(at, len(latents) - 1)))
    # What a model makes of the last two seconds, cut out and read alone.
    n = round(LOCAL * model.frame_rate)
    cuts = np.stack([
        pieces[i].codes[:, frame + 1 - n : frame + 1]
        for i, frame in zip(table["piece"], table["frame"], strict=True)
    ])  # fmt: skip
    told = [pieces[i].prompt or None for i in table["piece"]]
    for some in np.array_split(np.arange(len(cuts)), -(-len(cuts) // 64)):
        codes = torch.as_tensor(cuts[some].astype(np.int64))
        stream = _streams(model, codes, layers[middle : middle + 1], [told[i] for i in some])
        near = torch.from_numpy(stream[layers[middle]][:, -1 : -past - 1 : -STEP].copy())
        add("local features", saes[middle].encode(near).mean(1).numpy())
    return {name: np.concatenate(each) for name, each in found.items()}


def _filled(codes: np.ndarray, length: int) -> np.ndarray:
    return np.pad(codes, ((0, 0), (0, length - codes.shape[-1])), mode="edge")


def _streams(model, codes, layers, prompts) -> dict[int, np.ndarray]:
    last = trace._delays(model.lm)[-1]
    found = trace.residuals(model, codes, layers, prompts)
    return {
        k: trace.align(x, codes.shape[-1], last).float().cpu().numpy() for k, x in found.items()
    }


@functools.lru_cache(maxsize=8)
def _random(sae: SAE) -> SAE:
    """An SAE of the same kind that has learnt nothing but where the activations lie."""
    blank = SAE(sae.config, sae.hook_point, seed=0)
    state = blank.state_dict() | {
        name: value for name, value in sae.state_dict().items() if name in ("b_dec", "scale")
    }
    blank.load_state_dict(state)
    return blank


# -- what is asked ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What sources foretold, on compositions that their probes had not seen.

    Attributes
    ----------
    auc : dict of str to Interval
        Area under the ROC curve of each source; 0.5 is chance.
    model, confound : str
        The most often chosen source of the model, and thing that is no plan.
    gain : Interval
        AUC of the chosen source of the model minus that of the chosen confound.
    sae_gain : Interval or None
        The best SAE's minus the random SAE's.
    brier, f1 : Interval
        Of the chosen source of the model; guessing has 0.25 and about 0.5.
    n : int
        Rows.
    explained_by : str
        The simplest confound that does as well as the model, or "" if none does or nothing is
        foretold.
    """

    auc: dict[str, Interval]
    model: str
    confound: str
    gain: Interval
    sae_gain: Interval | None
    brier: Interval
    f1: Interval
    n: int
    explained_by: str = ""
    chosen: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def go(self) -> bool:
        """Whether the model knows more than the best confound: the interval lies above 0."""
        return self.gain.low > 0

    def __str__(self) -> str:
        verdict = "go" if self.go else "no-go"
        why = f", explained by {self.explained_by}" if self.explained_by else ""
        return (
            f"{verdict}: {self.model} {self.auc[self.model].value:.3f}, best confound "
            f"{self.confound} {self.auc[self.confound].value:.3f}, gain {self.gain}{why}"
        )


class Halves:
    """Splits of compositions, and sources turned for them; keeps what several questions share.

    Parameters
    ----------
    sources : dict of str to array of shape (N, d)
    groups : array of shape (N,)
        Composition of each row.
    labels : bool array of shape (N,)
        Only to deal compositions with similar answers to both halves.
    seeds : int
        Different splits.
    """

    def __init__(self, sources: dict, groups: np.ndarray, labels: np.ndarray, seeds: int = 1):
        self.groups, self.index = np.unique(groups, return_inverse=True)
        if len(self.groups) < LEAST:
            raise ValueError(
                f"The rows come from {len(self.groups)} piece"
                f"{'s' if len(self.groups) > 1 else ''}. A probe is found on some compositions and "
                f"scored on others, never on rows of one piece: give at least {LEAST}."
            )
        target = _target(labels)
        self.splits = _halves(target, self.index, 0, seeds, True)
        self.sources = dict(sources)
        self._turned: dict[tuple[str, int], _Half] = {}

    def turned(self, name: str, split: int) -> _Half:
        if (name, split) not in self._turned:
            train, test, *_ = self.splits[split]
            x = np.asarray(self.sources[name], np.float32)
            self._turned[name, split] = _Half(x, train, test)
        return self._turned[name, split]

    def put(self, name: str, x: np.ndarray) -> None:
        """Replace a source."""
        self.sources[name] = x
        for key in [key for key in self._turned if key[0] == name]:
            del self._turned[key]


def _target(labels: np.ndarray) -> _Target:
    labels = np.asarray(labels)
    answers = set(np.unique(labels).tolist())
    if not answers <= {0, 1}:
        raise ValueError(f"Answers are yes or no; these are {sorted(answers)[:5]}.")
    if len(answers) < 2:
        said = "yes" if answers == {1} else "no"
        raise ValueError(
            f"All {len(labels)} answers are {said}: there is nothing to foretell. Give music in "
            "which motifs return sometimes."
        )
    return _Target("class", labels.astype(int), np.array([0, 1]))


@threadpool_limits.wrap(limits=1)
def ask(
    sources: dict[str, np.ndarray] | Halves,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    seeds: int = 1,
    model: Sequence[str] | None = None,
    confounds: Sequence[str] | None = None,
) -> Answer:
    """Who foretells the answers?

    Parameters
    ----------
    sources : dict of str to array of shape (N, d), or Halves of them
        "all together" is added to a dict.
    labels : array of shape (N,)
        0 or 1.
    groups : array of shape (N,)
        Compositions; not needed with `Halves`.
    seeds : int
        Splits into two halves, each scored both ways.
    model, confounds : sequences of str, optional
        Names of sources; unless given, all that begin with "residual" or "SAE", and `CONFOUNDS`.

    Returns
    -------
    Answer

    Raises
    ------
    ValueError
        Fewer than `LEAST` compositions, answers that are all the same, sources that lack a model
        or a confound.
    """
    labels = np.asarray(labels)
    target = _target(labels)
    if isinstance(sources, Halves):
        halves = sources
    else:
        halves = Halves(together(sources), np.asarray(groups), labels, seeds)
    names = list(halves.sources)
    ours = [n for n in names if n.startswith(("residual", "SAE"))] if model is None else list(model)
    theirs = [n for n in names if n in CONFOUNDS] if confounds is None else list(confounds)
    if not ours or not theirs:
        raise ValueError("A question needs a source of the model and at least one confound.")
    asked = [*ours, *theirs, *([CONTROL] if CONTROL in names else [])]
    n_groups, n_splits = len(halves.groups), len(halves.splits)
    of = {name: _Marks(n_groups, n_splits) for name in (*asked, "model", "confound", "SAE")}
    chosen: dict[str, list[str]] = {"model": [], "confound": [], "SAE": []}
    for split, (train, test, fold, _) in enumerate(halves.splits):
        inner = {}
        for name in asked:
            half = halves.turned(name, split)
            logits, _, _, inner[name] = _fit_classes(half, target.values[train], fold, target)
            of[name].add(logits[:, 1] - logits[:, 0], labels[test], halves.index[test])
        for which, among in (("model", ours), ("confound", theirs),
                             ("SAE", [n for n in ours if n.startswith("SAE")])):  # fmt: skip
            if among:
                best = min(among, key=inner.get)
                chosen[which].append(best)
                of[which].copy(of[best])
    auc = {name: of[name].auc() for name in asked}
    gain = of["model"].minus(of["confound"])
    control = of["SAE"].minus(of[CONTROL]) if chosen["SAE"] and CONTROL in names else None
    most = {k: max(dict.fromkeys(v), key=v.count) for k, v in chosen.items() if v}
    return Answer(
        auc | {"best of the model": of["model"].auc(), "best confound": of["confound"].auc()},
        most["model"], most["confound"], gain, control, of["model"].brier(), of["model"].f1(),
        len(labels), _explained(of, theirs), {k: tuple(v) for k, v in chosen.items()},
    )  # fmt: skip


def together(sources: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sources that a question is asked of, with all confounds side by side.

    Of wide confounds `AXES` principal components each, or the widest would drown the others: seven
    thousand features, and how often a motif has come back.
    """
    known = ("residual", "SAE", CONTROL, "second SAE")
    kept = {n: x for n, x in sources.items() if n.startswith(known) or n in CONFOUNDS}
    single = [_narrow(x) for n, x in kept.items() if n in CONFOUNDS[:-1]]
    return kept | {"all together": np.concatenate(single, axis=1)} if single else kept


def _narrow(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.shape[1] <= AXES or len(x) <= AXES:
        return x
    scaled = StandardScaler().fit_transform(x)
    return PCA(AXES, svd_solver="randomized", random_state=0).fit_transform(scaled)


class _Marks:
    """Scores of one source over all splits: what its AUC, Brier score and F1 are made of."""

    def __init__(self, n_groups: int, n_splits: int):
        self.n, self.splits = n_groups, n_splits
        self.values, self.influence = [], np.zeros(n_groups)
        self.sums = np.zeros((n_groups, 5))  # rows, squared errors, hits, said, true
        self.last: tuple = ()

    def add(self, scores: np.ndarray, labels: np.ndarray, index: np.ndarray) -> None:
        self.last = scores, labels, index
        value, part = stats.grouped_auc(scores[:, None], labels.astype(bool)[:, None], index)
        self.values.append(float(value[0]))
        self.influence[np.unique(index)] += part[:, 0] / self.splits
        p = 1 / (1 + np.exp(-np.clip(scores.astype(float), -50, 50)))
        said = p >= 0.5
        each = [np.ones(len(p)), (p - labels) ** 2, said & (labels == 1), said, labels]
        self.sums += np.stack([np.bincount(index, x, self.n) for x in each], axis=1)

    def copy(self, other: _Marks) -> None:
        self.add(*other.last)

    def auc(self) -> Interval:
        return _around(float(np.mean(self.values)), self.influence, self.n, (0.0, 1.0))

    def minus(self, other: _Marks) -> Interval:
        gap = float(np.mean(self.values) - np.mean(other.values))
        return _around(gap, self.influence - other.influence, self.n, (-1.0, 1.0))

    def brier(self) -> Interval:
        return self._over(lambda s: s[:, 1] / s[:, 0])

    def f1(self) -> Interval:
        return self._over(lambda s: 2 * s[:, 2] / np.maximum(s[:, 3] + s[:, 4], 1e-9))

    def _over(self, statistic) -> Interval:
        drawn = statistic(stats.resample_groups(self.n) @ self.sums)
        value = float(statistic(self.sums.sum(0, keepdims=True))[0])
        return Interval(value, *map(float, np.percentile(drawn, [2.5, 97.5])), self.n)


def _around(value: float, influence: np.ndarray, n: int, ends: tuple[float, float]) -> Interval:
    """A 95 % interval from each composition's influence, widened because probes are fitted."""
    reach = 1.96 * WIDEN * float(np.sqrt((influence**2).sum()))
    return Interval(value, max(ends[0], value - reach), min(ends[1], value + reach), n)


def _explained(of: dict[str, _Marks], confounds: Sequence[str]) -> str:
    """The clearest confound that foretells the answers and is not beaten; simple ones first."""
    known = {name: of[name].auc() for name in confounds}
    enough = [n for n in known if known[n].low > 0.5 and of["model"].minus(of[n]).low <= 0]
    enough = [n for n in enough if n in SIMPLE] or enough
    return max(enough, key=lambda name: known[name].value, default="")


def study(
    sources: dict[str, np.ndarray],
    table: pd.DataFrame,
    horizon: str,
    rows: np.ndarray | None = None,
    seeds: int = 3,
    seed: int = 0,
    model: Sequence[str] | None = None,
) -> Answer:
    """`ask` for one horizon, of rows drawn so that position says nothing.

    Parameters
    ----------
    sources : dict
        Of `read`.
    table : DataFrame
        Of `pieces.rows`.
    horizon : str
        A column of answers.
    rows : bool array of shape (N,), optional
        Only these.
    seeds : int
        Splits.
    seed : int
        Of the rows drawn.
    model : sequence of str, optional
        See `ask`.

    Raises
    ------
    ValueError
        See `ask` and `pieces.balanced`.
    """
    labels = table[horizon].to_numpy(float).copy()
    if rows is not None:
        labels[~rows] = np.nan
    kept = balanced(labels, table["t"].to_numpy(), seed, ROWS)
    groups = table["name"].to_numpy()[kept]
    return ask(taken(sources, kept), labels[kept].astype(int), groups, seeds, model)


def taken(sources: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows of the sources; what is no source is left out."""
    return {
        name: np.asarray(x)[rows] for name, x in sources.items()
        if not name.startswith(("of ", "frame "))
    }  # fmt: skip


def naive(sources: dict[str, np.ndarray], table: pd.DataFrame, horizon: str) -> float:
    """AUC as it is easily had: rows of one piece on both sides of the split, and no rival.

    Of the middle residual, on all rows, whatever the clock says. What it finds is the piece: rows
    of one piece are alike, and so are their answers.

    Parameters
    ----------
    sources, table
        Of `read` and `pieces.rows`.
    horizon : str

    Returns
    -------
    float
        NaN where a single row has one of the answers.
    """
    known = table[horizon].notna().to_numpy()
    names = [name for name in sources if name.startswith("residual")]
    x, labels = sources[names[len(names) // 2]][known], table[horizon].to_numpy()[known].astype(int)
    _target(labels)
    least = int(np.bincount(labels).min())
    if least < 2:
        return float("nan")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    folds = StratifiedKFold(min(5, least), shuffle=True, random_state=0)
    said = cross_val_predict(model, x.astype(np.float32), labels, cv=folds, method="predict_proba")
    return float(stats.auc(said[:, 1:], labels.astype(bool)[:, None])[0, 0])
