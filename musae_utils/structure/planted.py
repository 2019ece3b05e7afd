"""What is known to be there, and what is known not to be: tests of the method itself.

- A **signal** is added to the stream along a random direction, so strongly that answers lie `d'`
  standard deviations apart there. From the share of times it is found follows the method's power.
- **Nothing**: answers of other compositions. Whatever is "found" is false.
- A **leak**: answers that follow the moment, the instrument or a word of the prompt, nine times of
  ten. A naive probe is delighted. The method must say no, and say why.

Explained in notebooks/16_does_the_model_plan_ahead.ipynb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from musae_utils.sae import SAE
from musae_utils.structure.horizons import (
    ROWS,
    SIMPLE,
    Answer,
    Halves,
    ask,
    taken,
    together,
)
from musae_utils.structure.pieces import balanced

LEAKS = SIMPLE  # position, prompt, instrument
TIGHT = 0.9  # how often answers follow a leak
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # d'


def exchanged(table: pd.DataFrame, horizon: str, seed: int) -> np.ndarray:
    """Answers of other compositions at the same moments, shape (N,).

    They keep all that answers have of themselves (how common, how lasting, how they depend on
    the moment) and nothing of the music. NaN where the other piece has no answer.
    """
    names = table["name"].unique()
    order = np.random.default_rng([seed, 1]).permutation(len(names))
    other = dict(zip(names, names[order], strict=True))
    known = table.set_index(["name", "t"])[horizon]
    at = pd.MultiIndex.from_arrays([table["name"].map(other), table["t"]])
    return known.reindex(at).to_numpy(float)


def signal(frames: np.ndarray, answers: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """A stream in which a random direction follows the answers.

    Parameters
    ----------
    frames : array of shape (N, d)
    answers : array of shape (N,)
        0 or 1.
    strength : float
        d': distance of the two answers' means in standard deviations along the direction.
    seed : int

    Returns
    -------
    array of shape (N, d)
    """
    frames = np.asarray(frames, np.float32)
    direction = np.random.default_rng([seed, 2]).standard_normal(frames.shape[1])
    direction = (direction / np.linalg.norm(direction)).astype(np.float32)
    spread = (frames @ direction).std()
    side = (np.asarray(answers, np.float32) - 0.5)[:, None]
    return frames + strength * spread * side * direction


def searched(
    sources: dict[str, np.ndarray],
    table: pd.DataFrame,
    horizon: str,
    sae: SAE,
    strength: float,
    seed: int,
) -> Answer:
    """The whole method, on other compositions' answers and a signal (or none) that follows them.

    Parameters
    ----------
    sources, table
        Of `horizons.read` and `pieces.rows`.
    horizon : str
    sae : SAE
        The middle one, which reads the planted stream.
    strength : float
        0 plants nothing, and leaves all sources of the model as they are.
    seed : int
        Of the exchange, the direction and the rows.
    """
    labels = exchanged(table, horizon, seed)
    kept = balanced(labels, table["t"].to_numpy(), seed, ROWS)
    answers = labels[kept].astype(int)
    part = taken(sources, kept)
    if strength:
        name = next(name for name in sources if name.startswith("frame "))
        layer = name.removeprefix("frame ")
        planted = signal(np.asarray(sources[name])[kept], answers, strength, seed)
        part[f"residual {layer}"] = planted
        with torch.no_grad():
            code = sae.encode(torch.from_numpy(planted)).numpy()
        part[f"SAE {layer}"] = code[:, sources[f"of SAE {layer}"]]
    return ask(part, answers, table["name"].to_numpy()[kept])


def leak(kind: str, table: pd.DataFrame, sources: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """Answers that follow a leak, 0 or 1, shape (N,).

    Parameters
    ----------
    kind : str
        One of `LEAKS`. "prompt": a word or two that a quarter to three quarters of prompts have;
        "instrument": half of the instruments; "position": the later half of the moments.
    table, sources
        Of `pieces.rows` and `horizons.read`.
    seed : int

    Raises
    ------
    ValueError
        No such leak; or the sources do not have what it needs.
    """
    rng = np.random.default_rng([seed, 3])
    if kind not in LEAKS:
        raise ValueError(f"There is no leak {kind!r}; there are {', '.join(LEAKS)}.")
    if kind not in sources:
        raise ValueError(f"The pieces have no {kind}, so their answers cannot follow it.")
    if kind == "position":
        follows = table["t"].to_numpy() > table["t"].median()
    elif kind == "instrument":
        leads = sources[kind].argmax(1)
        some = rng.permutation(np.unique(leads))
        follows = np.isin(leads, some[: len(some) // 2])
    else:
        share = sources[kind].mean(0)
        common = np.flatnonzero((share > 0.25) & (share < 0.75))
        if not len(common):
            raise ValueError("No word is in a quarter to three quarters of the prompts.")
        follows = sources[kind][:, rng.choice(common)] > 0
    return (follows == (rng.random(len(table)) < TIGHT)).astype(int)


def caught(
    kind: str,
    halves: Halves,
    table: pd.DataFrame,
    sources: dict[str, np.ndarray],
    seed: int,
) -> dict:
    """Plant one leak, and see what a naive probe and the method make of it.

    Parameters
    ----------
    kind : str
    halves : Halves
        Of the same rows; sources do not change from leak to leak.
    table, sources, seed : see `leak`

    Returns
    -------
    dict
        ``leak``, ``seed``, ``naive`` (AUC of the model's best source), ``gain``, ``named``, and
        ``caught``: it said no, and named the leak.
    """
    answer = ask(halves, leak(kind, table, sources, seed))
    return {
        "leak": kind, "seed": seed, "naive": answer.auc["best of the model"].value,
        "naive low": answer.auc["best of the model"].low, "gain": answer.gain.value,
        "gain low": answer.gain.low, "named": answer.explained_by,
        "caught": (not answer.go) and answer.explained_by == kind,
    }  # fmt: skip


def leaks(
    sources: dict[str, np.ndarray],
    table: pd.DataFrame,
    seeds: Sequence[int],
    every: int = 3,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """`caught` for each kind of leak and seed, on every third moment.

    Returns
    -------
    DataFrame
        A line for each leak and seed.
    """
    some = np.isin(table["t"], np.unique(table["t"])[::every])
    part = taken(sources, some)
    table = table[some].reset_index(drop=True)
    known = (table["t"] > table["t"].median()).to_numpy().astype(int)
    halves = Halves(together(part), table["name"].to_numpy(), known)
    return pd.DataFrame([
        caught(kind, halves, table, part, seed)
        for seed in progress(seeds) for kind in LEAKS if kind in part
    ])  # fmt: skip


def power80(strengths: Sequence[float], found: Sequence[bool], share: float = 0.8) -> float:
    """The smallest strength that is found in a share of cases, by a logistic curve.

    Parameters
    ----------
    strengths : sequence of float, of shape (R,)
    found : sequence of bool, of shape (R,)

    Returns
    -------
    float
        NaN if signals are not found more often as they get stronger.
    """
    x, y = np.asarray(strengths, float)[:, None], np.asarray(found, int)
    if y.all() or not y.any():
        return float("nan")
    fit = LogisticRegression(C=1e3).fit(x, y)
    slope, start = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    return (np.log(share / (1 - share)) - start) / slope if slope > 0 else float("nan")
