"""Which features bring something about: their effect on the next code (notebook 10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from musae_utils import trace
from musae_utils.models import MusicModel
from musae_utils.models.model import Prompts, _prompt_list
from musae_utils.steering.knobs import Knob, edits
from musae_utils.steering.sweeps import _one_each


class OutputEffect(NamedTuple):
    """What knobs do to the next code, on average over the frames of given music.

    Attributes
    ----------
    kl : Tensor of shape (n, K)
        KL divergence in nats from the untouched distribution to that under each knob, by codebook.
    change : Tensor of shape (n, K, cardinality)
        Change of each code's log-probability for a unit of strength.
    shift : Tensor of shape (n, K)
        Root mean square, over frames and codes, of the change of the logits for a unit of strength,
        their common offset left out.
    """

    kl: torch.Tensor
    change: torch.Tensor
    shift: torch.Tensor


@torch.no_grad()
def output_effect(
    model: MusicModel,
    knobs: Sequence[Knob],
    codes: torch.Tensor,
    prompts: Prompts = None,
    batch: int = 32,
) -> OutputEffect:
    """How much each of many knobs moves what the model would play next, without playing.

    Teacher-forced on given music, several knobs to a pass. Features and their rivals (`along`) are
    measured alike, so a feature can be asked to do more than a random direction of its size.

    Parameters
    ----------
    model : MusicModel
    knobs : list of n Knob
        Of any kind; for S1's steering ``[Knob(sae, j, 0.5, peak=atlas) for j in features]``.
    codes : Tensor of shape (C, K, T) or (K, T)
        Music to read, from `MusicModel.encode` or a `Generation`.
    prompts : str or None, or a list of C
    batch : int
        Rows of one pass; a knob takes C.

    Returns
    -------
    OutputEffect
        In the order of the knobs, on the CPU.

    Raises
    ------
    ValueError
        No knobs, one of strength 0, one of the unconditional half only; as `edits`.

    References
    ----------
    Arad, Mueller and Belinkov (2025), arXiv:2505.20063, who call such features output features and
    score them by the tokens that they bring up.
    """
    if not len(knobs) or any(not isinstance(knob, Knob) or not knob.strength for knob in knobs):
        raise ValueError("knobs is a list of Knob, each with a strength other than 0 to divide by.")
    codes = model._checked_codes(codes)
    n, seconds = len(codes), codes.shape[-1] / model.frame_rate
    prompts = _one_each(_prompt_list(prompts), n, "prompts")
    plain = trace.logits(model, codes, prompts)
    base = plain.log_softmax(-1)  # (C, K, T, cardinality)
    parts, step = [], max(1, batch // n)
    for first in range(0, len(knobs), step):
        some = knobs[first : first + step]
        rows = [knob for knob in some for _ in range(n)]
        edited = trace.edit(model, edits(model, rows, seconds, guided=False)).logits(
            codes.repeat(len(some), 1, 1), prompts * len(some)
        )
        edited = edited.unflatten(0, (len(some), n))
        change = edited.log_softmax(-1) - base
        kl = -(base.exp() * change).sum(-1).mean((1, 3))
        moved = edited - plain
        shift = (moved - moved.mean(-1, keepdim=True)).square().mean((1, 3, 4)).sqrt()
        unit = torch.tensor([float(knob.strength) for knob in some], device=kl.device)[:, None]
        effect = kl, change.mean((1, 3)) / unit[..., None], shift / unit.abs()
        parts.append([part.cpu() for part in effect])
    return OutputEffect(*(torch.cat(part) for part in zip(*parts, strict=True)))
