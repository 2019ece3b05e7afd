"""Directions to steer along instead of a feature's: rivals and negative controls (notebook 11)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional as F

from musae_utils.activations import ActivationStore
from musae_utils.features.atlas import _point
from musae_utils.sae import SAE

ROWS = 20_000  # that controls are made from
RIDGE = 1e-3  # of a probe, in mean variances of the stream
DENSE = 2**25  # activations worked out at once


@torch.no_grad()
def controls(
    sae: SAE,
    features: int | Sequence[int],
    store: ActivationStore,
    where: ArrayLike | None = None,
    other: SAE | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Directions to steer along instead of a feature's, as long as its own.

    Negative controls, which should not do what the feature does::

        random          drawn from a sphere
        inactive        of a feature that does not fire in these rows (or least, where all fire)
        orthogonal      the difference of two rows, less its part along the feature: unlike a random
                        direction one in which the stream does vary

    Rivals, which may do it as well::

        neuron, PCA     the dimension, or principal component, that best tells rows where the
                        concept holds from the others
        DiffMean        mean of the rows where it holds, less that of the others
        probe           weights of a linear probe, by least squares with a little ridge
        other layer     with `other`: its feature that fires most alike, put in at this layer

    Parameters
    ----------
    sae : SAE
    features : int, or list of n
    store : ActivationStore
        Rows of the SAE's hook point (and of the other's); 20,000 of them are read.
    where : bool array of shape (rows,) or (rows, n), optional
        Where the concept holds that the feature is to bring about; where it fires unless given.
    other : SAE, optional
        Of another layer.
    seed : int

    Returns
    -------
    dict of name to Tensor of shape (d,), or (n, d) for a list
        For ``dataclasses.replace(knob, along=direction)``.

    Raises
    ------
    ValueError
        The store is of another layer or model; a concept (or feature) that holds in no row or all.
    """
    listed = np.atleast_1d(features)
    if listed.dtype.kind not in "iu" or not ((listed >= 0) & (listed < sae.config.d_sae)).all():
        raise ValueError(
            f"The SAE has the features 0 to {sae.config.d_sae - 1}; asked for was {features!r}."
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(store), generator=generator)[:ROWS].sort().values.numpy()
    x = store[_point(sae)][chosen].float()
    code, fired = _codes(sae, x, listed)
    if where is None:
        holds, what = code > 0, "fires"
    else:
        holds, what = torch.as_tensor(np.asarray(where, bool)), "is for what, by where=, holds"
        if len(holds) != len(store) or holds.shape[1:] not in ((), (len(listed),)):
            raise ValueError(
                f"where has shape {tuple(holds.shape)}; the store has {len(store)} rows."
            )
        holds = holds[chosen].reshape(len(chosen), -1).expand(-1, len(listed))
    share = holds.float().mean(0)
    if len(bad := np.flatnonzero((share == 0) | (share == 1))):
        often = "in all" if share[bad[0]] else "in none"
        raise ValueError(
            f"Feature {listed[bad[0]]} {what} {often} of {len(x):,} rows: there is nothing to tell "
            "apart. Choose another feature, or say with where= in which rows its concept holds."
        )
    said = sae.directions.float().cpu()
    own, spread = said[listed], _floored(x.std(0))
    apart = torch.stack([x[h].mean(0) - x[~h].mean(0) for h in holds.T])  # (n, d)
    centred = x - x.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred / len(x))
    values = _floored(values)
    # Another feature that never fires; where all do, one that does so least.
    fired[listed] = fired[~said.any(1)] = len(x) + 1
    silent = fired.argsort(stable=True)[: max(1, int((fired == 0).sum()))]
    silent = silent[torch.randint(len(silent), listed.shape, generator=generator)]
    first = torch.randint(len(x), listed.shape, generator=generator)
    second = first + torch.randint(1, len(x), listed.shape, generator=generator)
    away = x[first] - x[second % len(x)]
    found = {
        "random": torch.randn(own.shape, generator=generator),
        "inactive": said[silent],
        "orthogonal": away - (away * own).sum(1, keepdim=True) * own / own.square().sum(1)[:, None],
        "neuron": _best(apart, spread, torch.eye(x.shape[1])),
        "PCA": _best(apart @ axes, values.sqrt(), axes.T),
        "DiffMean": apart,
        "probe": apart @ axes / (values + RIDGE * values.mean()) @ axes.T,
    }
    if other is not None:
        found["other layer"] = other.directions[
            _most_alike(code, other, store[_point(other)][chosen].float())
        ].float().cpu()  # fmt: skip
        if found["other layer"].shape != own.shape:
            raise ValueError("The other SAE reads activations of another width.")
    found = {
        name: own.norm(dim=1, keepdim=True) * F.normalize(direction, dim=1)
        for name, direction in found.items()
    }
    return {name: d[0] for name, d in found.items()} if np.ndim(features) == 0 else found


def _codes(sae: SAE, x: torch.Tensor, features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of some features (N, n), and how often each of all fires (F,)."""
    some, fired = [], torch.zeros(sae.config.d_sae, dtype=torch.int64)
    for part in x.split(max(1, DENSE // sae.config.d_sae)):
        code = sae.encode(part).cpu()
        some.append(code[:, features])
        fired += (code > 0).sum(0)
    return torch.cat(some), fired


def _floored(spread: torch.Tensor) -> torch.Tensor:
    """Spreads to divide by: what hardly varies would only show its rounding."""
    return spread.clamp_min(1e-6 * float(spread.max()) + 1e-30)


def _best(apart: torch.Tensor, spread: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Of each row of differences of means the axis with the largest by its spread, signed."""
    scores = apart / spread
    which = scores.abs().argmax(1)
    return axes[which] * scores.gather(1, which[:, None]).sign()


def _most_alike(code: torch.Tensor, other: SAE, x: torch.Tensor) -> torch.Tensor:
    """Of each feature the one of another SAE whose activations correlate best over the rows."""
    mine = code - code.mean(0)
    products = torch.zeros(code.shape[1], other.config.d_sae)
    first, square = torch.zeros(other.config.d_sae), torch.zeros(other.config.d_sae)
    step = max(1, DENSE // other.config.d_sae)
    for a, part in zip(mine.split(step), x.split(step), strict=True):
        b = other.encode(part).cpu()
        products += a.T @ b
        first += b.sum(0)
        square += b.square().sum(0)
    spread = (square / len(x) - (first / len(x)).square()).clamp_min(0).sqrt()
    return (products / _floored(spread)).argmax(1)
