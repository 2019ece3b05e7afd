"""Configurations to begin from: S1's own, and what serves the nano model (notebook 06).

S1 is *Discovering and Steering Interpretable Concepts in Large Generative Music Models*
(arXiv 2505.18186). Its released SAEs say how they were trained: a "standard" architecture with a
top-k activation, b_dec subtracted from the input and begun as a geometric median, unit-norm
decoder, no scaling of activations, float32, Adam with betas (0, 0.999), a constant rate of 3e-4
that falls to 0 over the last fifth, 64 tokens a batch, 126,093 clips of 501 positions, seed 42,
and a window of 1,000 steps before a feature counts as dead. None of their losses helps dead
features. A released SAE's layer is counted from 0 (hooks 1, 5, 11, 17, 21 of the small model); the
paper counts from 1.
"""

from __future__ import annotations

from typing import Any

from musae_utils.sae.architectures import SAEConfig
from musae_utils.sae.train import TrainConfig

S1_ACTIVATIONS = 126_093 * 501
S1_LAYERS = {"small": (1, 5, 11, 17, 21), "large": (1, 11, 23, 35, 45)}  # from 0
S1_WIDTH = {"small": 1024, "large": 2048}
S1_BATCH = 64


def s1(size: str, expansion: int = 32, k: int = 100, **changes: Any) -> TrainConfig:
    """S1's training of an SAE on MusicGen's residual stream.

    Parameters
    ----------
    size : {"small", "large"}
    expansion : {4, 32}
    k : {32, 100}
    **changes
        Other fields of `TrainConfig`; what is trained is then no longer S1's.

    Examples
    --------
    >>> config = s1("small")
    >>> config.sae.d_sae, config.steps
    (32768, 987071)
    """
    if size not in S1_WIDTH:
        raise ValueError(f"S1 looked at MusicGen {' and '.join(S1_WIDTH)}, not at {size!r}.")
    settings = dict(
        steps=S1_ACTIVATIONS // S1_BATCH, batch_size=S1_BATCH, lr=3e-4, betas=(0.0, 0.999),
        warmup=0, decay=0.2, auxiliary=0.0, dead_after=1000 * S1_BATCH,
        b_dec="geometric_median", tied=True, scaled=False, precision="fp32", seed=42,
    )  # fmt: skip
    sae = SAEConfig.of(S1_WIDTH[size], expansion, k)
    return TrainConfig(sae, **(settings | changes))


def s1_small(**changes: Any) -> TrainConfig:
    """S1's SAE that its figures are mostly about: small model, × 32, k = 100."""
    return s1("small", **changes)


def s1_large(**changes: Any) -> TrainConfig:
    """The same for the large model, where S1 finds most of its features."""
    return s1("large", **changes)


def s1_sweep(size: str, **changes: Any) -> dict[str, TrainConfig]:
    """S1's four configurations of a layer, × 4 and × 32 with k = 32 and 100, for one `train`."""
    return {
        f"x{expansion}_k{k}": s1(size, expansion, k, **changes)
        for expansion in (4, 32)
        for k in (32, 100)
    }


def nano(
    architecture: str = "topk", expansion: int = 16, k: int = 32, d_in: int = 256, **changes: Any
) -> TrainConfig:
    """An SAE on the nano model that trains in minutes on a laptop.

    Parameters
    ----------
    architecture : str
        Any of `ARCHITECTURES`; those without k get a penalty that leaves about 32 features active.
    expansion, k, d_in : int
    **changes
        Other fields of `TrainConfig`.

    Examples
    --------
    >>> nano().sae  # doctest: +ELLIPSIS
    SAEConfig(d_in=256, d_sae=4096, architecture='topk', k=32, ...)
    """
    sparse = architecture in ("topk", "batch_topk", "matryoshka")
    penalties = {"standard": 4.5, "gated": 7.0, "jumprelu": 2.2, "rmsnorm": 2.3}
    settings: dict[str, Any] = dict(steps=1000, batch_size=2048, lr=3e-3, warmup=50)
    if not sparse:
        settings |= dict(sparsity=penalties[architecture], sparsity_warmup=200)
    sae = SAEConfig.of(d_in, expansion, k if sparse else None, architecture)
    return TrainConfig(sae, **(settings | changes))


def nano_sweep(**changes: Any) -> dict[str, TrainConfig]:
    """One SAE of each architecture, for one `train`."""
    return {
        name: nano(name, **changes)
        for name in ("topk", "batch_topk", "matryoshka", "standard", "jumprelu", "gated", "rmsnorm")
    }
