"""Inside the codec: audio-latent models, what their latents hold, and how a sound is born.

``load(name)`` answers to the nano models, ``"nano-codec"``, ``"nano-vae"`` and
``"nano-tokenizer"``, to the published ones of `TABLE`, and to folders and files (`published`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from musae_utils.latents.model import LatentModel
from musae_utils.latents.nano import NANO, load_nano_latents
from musae_utils.latents.published import TABLE, load_published

__all__ = ["NANO", "TABLE", "LatentModel", "load"]


def load(name: str | Path = "nano-codec", device: str | torch.device = "cpu") -> LatentModel:
    """Load an audio-latent model.

    Parameters
    ----------
    name : str or Path
        One of `NANO`, a name in `TABLE`, a folder, or a file of weights; see
        `published.load_published` for what may lie there, and for what is refused.
    device : str or torch.device
        Where its weights go; arrays come from memory and return to it.

    Returns
    -------
    LatentModel
    """
    model = load_nano_latents(str(name)) if name in NANO else load_published(name)
    model.net.to(device)
    return model
