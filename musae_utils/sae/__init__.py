"""Sparse autoencoders: architectures, a fast training, metrics, files (notebook 06).

>>> from musae_utils import sae
>>> config = sae.presets.nano(steps=1000)
>>> trained = sae.train(config, activations)  # doctest: +SKIP
>>> sae.evaluate(trained.sae, held_out)  # doctest: +SKIP
"""

from musae_utils.sae import presets
from musae_utils.sae.architectures import ARCHITECTURES, SAE, SAEConfig, Sparse
from musae_utils.sae.files import (
    Fit,
    load_dictionary_learning,
    load_saelens,
    load_sparsity,
    save_dictionary_learning,
    save_saelens,
    verify,
)
from musae_utils.sae.metrics import Stability, evaluate, nearest, seed_stability, spliced
from musae_utils.sae.train import TrainConfig, Trained, train

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "Fit",
    "SAEConfig",
    "Sparse",
    "Stability",
    "TrainConfig",
    "Trained",
    "evaluate",
    "load_dictionary_learning",
    "load_saelens",
    "load_sparsity",
    "nearest",
    "presets",
    "save_dictionary_learning",
    "save_saelens",
    "seed_stability",
    "spliced",
    "train",
    "verify",
]
