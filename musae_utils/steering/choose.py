"""Which feature brings a concept about? By what it follows, or by what it does (notebook 11).

A feature that follows drums reads the stream; one that brings drums about writes to it. `pulls`
asks what each feature of several layers would do to the next codes, all at once: the codes' own
frequencies say for each concept which of them speak for it (`evidence`), and one backward pass a
concept says along which direction of the stream their share grows. That is a linear estimate for a
small push, and a code is no sound, so it only makes a short list; `experiment` plays what is on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from musae_utils.activations import ActivationStore
from musae_utils.models import MusicModel
from musae_utils.music.concepts import clip_concepts, frame_concepts
from musae_utils.sae import SAE
from musae_utils.sae.files import _placed

SHRINK = 50.0  # imagined frames of the usual frequencies that each concept's counts begin with


def evidence(
    store: ActivationStore, concepts: Sequence[str], cardinality: int
) -> tuple[list[str], torch.Tensor]:
    """How much each code speaks for each concept: log ratios of its frequencies with and without.

    Parameters
    ----------
    store : ActivationStore
        Of music with known truth.
    concepts : sequence of str
    cardinality : int

    Returns
    -------
    names : list of str
        Those of the concepts that hold somewhere and fail somewhere.
    weights : float32 Tensor of shape (names, K, cardinality)
    """
    count = np.zeros((2, len(concepts)))  # frames without and with
    seen: np.ndarray | None = None
    for clip in store.clips:
        codes, truth = clip.codes.numpy(), clip.truth
        whole, n = clip_concepts(truth), codes.shape[-1]
        if seen is None:
            seen = np.zeros((2, len(concepts), len(codes), cardinality))
        frames = frame_concepts(truth, n, store.frame_rate)
        for c, name in enumerate(concepts):
            holds = frames.get(name, np.full(n, whole.get(name, False)))
            for side, where in enumerate((~holds, holds)):
                count[side, c] += where.sum()
                for k, book in enumerate(codes):
                    seen[side, c, k] += np.bincount(book[where], minlength=cardinality)
    usual = seen.sum(0) / count.sum(0)[:, None, None]
    share = (seen + SHRINK * usual + 0.5) / (count[:, :, None, None] + SHRINK + cardinality / 2)
    known = np.flatnonzero((count > 0).all(0))
    weights = np.log(share[1] / share[0])[known]
    return [concepts[c] for c in known], torch.from_numpy(weights).float()


def pulls(
    model: MusicModel, saes: Sequence[SAE], codes: torch.Tensor, weights: torch.Tensor
) -> list[np.ndarray]:
    """How far a unit of each feature, added everywhere, pulls the next codes to each concept.

    Parameters
    ----------
    model : MusicModel
    saes : sequence of SAE
        Each of a layer of its own.
    codes : int Tensor of shape (B, K, T)
        Music to read, without a prompt.
    weights : Tensor of shape (concepts, K, cardinality)
        Of `evidence`.

    Returns
    -------
    list of float arrays of shape (features, concepts), one for each SAE
        Change of the expected evidence in nats; times a feature's peak, that of a knob of 1.
    """
    lm, pushes, hooks = model.lm, [], []
    for sae in saes:
        push = torch.zeros(model.dim, device=model.device, dtype=model.dtype, requires_grad=True)
        layer = _placed(sae, model)
        hooks.append(
            lm.transformer.layers[layer].register_forward_hook(lambda *io, push=push: io[2] + push)
        )
        pushes.append(push)
    try:
        codes = model._checked_codes(codes).contiguous().to(model.device)
        pattern = lm.pattern_provider.get_pattern(codes.shape[-1])
        sequence = pattern.build_pattern_sequence(codes, lm.special_token_id)[0]
        # Positions at which every codebook has something to say.
        logits = lm(sequence, [], model.conditions([None] * len(codes)))
        expected = logits[:, :, model.n_codebooks : -model.n_codebooks].float().softmax(-1)
        scores = (expected.mean((0, 2)) * weights.to(model.device)).sum((1, 2))
        slopes = [torch.autograd.grad(one, pushes, retain_graph=True) for one in scores]
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (sae.directions.detach().float() @ torch.stack(slope).float().to(sae.W_dec.device).T)
        .cpu().numpy()
        for sae, slope in zip(saes, zip(*slopes, strict=True), strict=True)
    ]  # fmt: skip
