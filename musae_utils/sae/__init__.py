"""Sparse autoencoders: architectures, a fast training, metrics (notebook 06).

>>> from musae_utils import sae
>>> config = sae.presets.nano(steps=1000)
>>> trained = sae.train(config, activations)  # doctest: +SKIP
>>> sae.evaluate(trained.sae, held_out)  # doctest: +SKIP
"""

from musae_utils.sae import presets
from musae_utils.sae.architectures import ARCHITECTURES, SAE, SAEConfig, Sparse
from musae_utils.sae.metrics import Stability, evaluate, nearest, seed_stability, spliced
from musae_utils.sae.train import TrainConfig, Trained, train

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "SAEConfig",
    "Sparse",
    "Stability",
    "TrainConfig",
    "Trained",
    "evaluate",
    "nearest",
    "presets",
    "seed_stability",
    "spliced",
    "train",
]
