"""What an SAE keeps, how sparsely, and what the model makes of it (notebook 06).

Names and definitions are SAEBench's (Karvonen et al., arXiv 2503.09532) where it has one.

=================================  =============================================================
``explained_variance``             1 - `fvu`
``fvu``                            fraction of variance unexplained: Σ|x - x̂|² / Σ|x - mean(x)|²
``mse``                            squared distance of x and x̂, mean over samples
``cossim``                         cosine of x and x̂, mean over samples
``l2_norm_in``, ``l2_norm_out``    length of x, of x̂
``l2_ratio``                       length of x̂ over length of x, mean over samples
``relative_reconstruction_bias``   E|x̂|² / E[x·x̂]; below 1 the SAE shrinks (Rajamanoharan et al.,
                                   arXiv 2404.16014, eq. 10)
``l0``, ``l1``                     active features, and sum of activations, a sample
``frac_alive``                     features active at least once
``freq_over_1_percent``, …         features active in more than 1 % (10 %) of samples
``average_max_decoder_cosine_sim`` each feature's cosine with its nearest other, mean (`…encoder…`)
``ce_loss_score``                  (CE_ablated - CE_sae) / (CE_ablated - CE_clean), "loss
                                   recovered", the stream ablated being 0
``kl_div_score``                   the same for the divergence from the clean model's predictions
=================================  =============================================================

A stream of zeros is an easy rival in the last two: ``…_with_mean_ablation`` and ``…_score_mean``
take the mean activation in its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from musae_utils.sae.architectures import SAE, refuse_too_large

if TYPE_CHECKING:
    from musae_utils.models import MusicModel

# Powers of ten between which features are counted by density; below the first: never active.
DENSITY_EDGES = tuple(10.0**e for e in (-6, -5, -4, -3, -2, -1, 0))


@torch.no_grad()
def evaluate(
    sae: SAE,
    activations: torch.Tensor | np.ndarray | Iterable[torch.Tensor],
    model: MusicModel | None = None,
    codes: torch.Tensor | Iterable[torch.Tensor] | None = None,
    prompts: Any = None,
    batch_size: int = 2048,
) -> dict[str, Any]:
    """All metrics by name; see the module's table.

    Parameters
    ----------
    sae : SAE
    activations : Tensor or ndarray of shape (N, d), or iterable of Tensor of shape (B, d)
        Held out from training.
    model, codes, prompts : optional
        Music that the model reads, codes of shape (B, K, T) or several of them, while the SAE's
        reconstruction stands in for the stream at its hook point: adds the CE and KL metrics.
    batch_size : int
        Samples at a time.

    Returns
    -------
    dict
        Numbers, and ``density`` (ndarray of shape (n,): share of samples in which each feature is
        active) with ``density_histogram`` (features by power of ten; see `DENSITY_EDGES`).

    Raises
    ------
    ValueError
        No activations, NaN among them, another width than the SAE's; a model other than the one the
        SAE was trained on.

    Examples
    --------
    >>> from musae_utils.sae import SAE, SAEConfig
    >>> found = evaluate(SAE(SAEConfig(8, 32, k=4)), torch.randn(100, 8))
    >>> found["l0"], round(found["fvu"] + found["explained_variance"], 6)
    (4.0, 1.0)
    """
    sums = _Sums(sae)
    for x in _batches(activations, batch_size):
        sums.add(sae, x)
    found = sums.metrics()
    found |= {
        "average_max_decoder_cosine_sim": float(nearest(sae.W_dec).mean()),
        "average_max_encoder_cosine_sim": float(nearest(sae.W_enc).mean()),
    }
    if model is not None:
        if codes is None:
            raise ValueError("To see what the model makes of the SAE, give codes of music as well.")
        found |= spliced(sae, model, codes, prompts, sums.x / sums.n)
    return found


class _Sums:
    """Running sums, in float64, from which the metrics follow."""

    def __init__(self, sae: SAE) -> None:
        self.n = 0
        self.x = torch.zeros(sae.config.d_in, dtype=torch.float64)
        self.active = torch.zeros(sae.config.d_sae, dtype=torch.int64)
        self.parts: dict[str, float] = {}

    def add(self, sae: SAE, x: torch.Tensor) -> None:
        x = sae._checked(x)
        if not torch.isfinite(x).all():
            raise ValueError("The activations hold NaN or infinite values.")
        f = sae.encode(x)
        out = sae.decode(f)
        x, out = x.double(), out.double()
        lengths, made = x.norm(dim=1), out.norm(dim=1)
        along = (x * out).sum(1)
        self.n += len(x)
        self.x += x.sum(0).cpu()
        self.active += (f != 0).sum(0).cpu()
        tiny = 1e-30
        for name, values in {
            "square": lengths**2, "error": (x - out).square().sum(1), "made": made**2,
            "along": along, "cossim": along / (lengths * made).clamp_min(tiny),
            "l2_norm_in": lengths, "l2_norm_out": made, "l2_ratio": made / lengths.clamp_min(tiny),
            "l0": (f != 0).sum(1).double(), "l1": f.abs().sum(1).double(),
        }.items():  # fmt: skip
            self.parts[name] = self.parts.get(name, 0.0) + float(values.sum())

    def metrics(self) -> dict[str, Any]:
        if not self.n:
            raise ValueError("There are no activations to evaluate on.")
        mean = {name: value / self.n for name, value in self.parts.items()}
        variance = mean["square"] - float((self.x / self.n).square().sum())
        fvu = mean["error"] / variance if variance > 1e-12 * mean["square"] else float("nan")
        density = (self.active / self.n).numpy()
        counts, _ = np.histogram(density[density > 0], bins=DENSITY_EDGES)
        return {
            "explained_variance": 1 - fvu, "fvu": fvu, "mse": mean["error"],
            **{k: mean[k] for k in ("cossim", "l2_norm_in", "l2_norm_out", "l2_ratio")},
            "relative_reconstruction_bias": mean["made"] / mean["along"]
            if mean["along"] else float("nan"),
            "l0": mean["l0"], "l1": mean["l1"],
            "frac_alive": float((density > 0).mean()),
            "freq_over_1_percent": float((density > 0.01).mean()),
            "freq_over_10_percent": float((density > 0.1).mean()),
            "density": density,
            "density_histogram": [int((density == 0).sum()), *counts.tolist()],
            "samples": self.n,
        }  # fmt: skip


def nearest(rows: torch.Tensor, chunk: int = 1024) -> torch.Tensor:
    """The largest cosine of each row with any other, of rows of shape (n, d); (n,)."""
    rows = F.normalize(rows.detach().float(), dim=1)
    if len(rows) < 2:
        return rows.new_full((len(rows),), float("nan"))
    best = []
    for first in range(0, len(rows), chunk):
        cosines = rows[first : first + chunk] @ rows.T
        own = torch.arange(len(cosines))
        cosines[own, own + first] = -2.0
        best.append(cosines.max(1).values)
    return torch.cat(best)


class Stability(NamedTuple):
    """How far two SAEs found the same features.

    Attributes
    ----------
    mean : float
        Cosine of matched features, mean.
    share : float
        Of features whose match has a cosine above 0.7.
    cosines : ndarray of shape (m,)
        Of each feature of the first SAE, in order, with its match.
    matches : ndarray of shape (m,), int
        The feature of the second SAE it is matched with.
    """

    mean: float
    share: float
    cosines: np.ndarray
    matches: np.ndarray


def seed_stability(first: SAE, second: SAE) -> Stability:
    """Match features of two SAEs one to one, so that their directions agree best overall.

    Hungarian matching on cosines of decoder rows, as in Paulo and Belrose (arXiv 2501.16615). SAEs
    that differ in their seed alone share what the data gave them; the rest is the seed's.

    Raises
    ------
    ValueError
        They read activations of different widths, or the first has more features.
    MemoryError
        The table of cosines does not fit.

    Examples
    --------
    >>> from musae_utils.sae import SAE, SAEConfig
    >>> sae = SAE(SAEConfig(8, 32, k=4))
    >>> round(seed_stability(sae, sae).mean, 6)
    1.0
    """
    from scipy.optimize import linear_sum_assignment

    a, b = (F.normalize(sae.W_dec.detach().float().cpu(), dim=1) for sae in (first, second))
    if a.shape[1] != b.shape[1] or len(a) > len(b):
        raise ValueError(
            f"Features of a dictionary {tuple(a.shape)} cannot be matched one to one with those of "
            f"{tuple(b.shape)}: the widths must agree, and the first be no larger."
        )
    refuse_too_large(3 * 8 * len(a) * len(b), f"A table of {len(a):,} × {len(b):,} cosines")
    cosines = (a @ b.T).numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    matched = cosines[rows, columns]
    return Stability(
        float(matched.mean()), float((matched > 0.7).mean()), matched, columns.astype(np.int64)
    )


@torch.no_grad()
def spliced(
    sae: SAE,
    model: MusicModel,
    codes: torch.Tensor | Iterable[torch.Tensor],
    prompts: Any = None,
    mean: torch.Tensor | None = None,
) -> dict[str, Any]:
    """What the model predicts with the SAE's reconstruction in place of the stream.

    Parameters
    ----------
    sae : SAE
        Its hook point says where; it must be one of this model.
    model : MusicModel
    codes : Tensor of shape (B, K, T), or iterable of such
    prompts : see `trace.residuals`; None is without
    mean : Tensor of shape (d,), optional
        Mean activation, for the harder ablation.

    Returns
    -------
    dict
        ``ce_loss_without_sae``, ``…_with_sae``, ``…_with_ablation``, ``ce_loss_score``, and for the
        divergence ``kl_div_with_sae``, ``…_with_ablation``, ``kl_div_score``: means over codebooks,
        in nats; each also as a list with one entry a codebook, ``…_per_codebook``. With `mean` also
        ``…_with_mean_ablation`` and ``…_score_mean``.
    """
    from musae_utils import trace

    if not sae.hook_point:
        raise ValueError("This SAE does not say which hook point it was trained at.")
    sae.check(sae.hook_point)  # one that was never bound to weights says what to do
    hook = trace.HookPoint(**sae.hook_point)
    hook.check(model)

    def reconstruction(x: torch.Tensor) -> torch.Tensor:
        return sae(x).to(x.dtype)

    ways = {"sae": reconstruction, "ablation": torch.zeros_like}
    if mean is not None:
        ways["mean_ablation"] = lambda x: mean.to(x.device, x.dtype).expand_as(x)
    totals: dict[str, torch.Tensor] = {}
    count = 0
    for some in [codes] if torch.is_tensor(codes) else codes:
        some = some[None] if some.ndim == 2 else some
        clean = trace.logits(model, some, prompts).log_softmax(-1)
        target = some.to(clean.device)[..., None].long()
        count += some.shape[0] * some.shape[2]
        seen = {"ce_loss_without_sae": -clean.gather(-1, target)[..., 0]}
        for name, change in ways.items():
            edited = trace.edit(model, trace.Edit(hook, change))
            there = edited.logits(some, prompts).log_softmax(-1)
            seen[f"ce_loss_with_{name}"] = -there.gather(-1, target)[..., 0]
            seen[f"kl_div_with_{name}"] = (clean.exp() * (clean - there)).sum(-1)
        for name, values in seen.items():  # (B, K, T)
            totals[name] = totals.get(name, 0.0) + values.double().sum((0, 2)).cpu()
    if not count:
        raise ValueError("There is no music to splice the SAE into: codes are empty.")
    table = {name: total / count for name, total in totals.items()}  # (K,)
    found = {k: float(v) for k, v in _scored({k: v.mean() for k, v in table.items()}).items()}
    return found | {f"{k}_per_codebook": v.tolist() for k, v in _scored(table).items()}


def _scored(table: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The table with its scores: 1 where nothing is lost, 0 where as much as by ablation."""
    scores = {}
    for ablation, score in (("ablation", "score"), ("mean_ablation", "score_mean")):
        if f"kl_div_with_{ablation}" in table:
            worst = table[f"ce_loss_with_{ablation}"]
            kept = worst - table["ce_loss_with_sae"]
            scores[f"ce_loss_{score}"] = kept / (worst - table["ce_loss_without_sae"])
            worst = table[f"kl_div_with_{ablation}"]
            scores[f"kl_div_{score}"] = (worst - table["kl_div_with_sae"]) / worst
    return table | scores


def _batches(activations: Any, size: int) -> Iterable[torch.Tensor]:
    if isinstance(activations, np.ndarray):
        activations = torch.from_numpy(activations)
    if torch.is_tensor(activations):
        if activations.ndim != 2:
            raise ValueError(
                f"Activations are a matrix (N, d); given was one of {tuple(activations.shape)}."
            )
        activations = activations.split(size)
    for x in activations:
        if len(x):
            yield x
