"""Inside the codec: audio-latent models, what their latents hold, and how a sound is born.

``load(name)`` answers to the nano models, ``"nano-codec"``, ``"nano-vae"`` and
``"nano-tokenizer"``, and to the published ones (`published`).
"""

from __future__ import annotations

from musae_utils.latents.model import LatentModel
from musae_utils.latents.nano import NANO, load_nano_latents

__all__ = ["NANO", "LatentModel", "load"]


def load(name: str = "nano-codec") -> LatentModel:
    """Load an audio-latent model by name."""
    return load_nano_latents(name)
