"""Train the nano VAE (``make nano``). Resumable: kill it and start it again.

As the codec learns, with a Gaussian in the middle: what is sent through the bottleneck is a draw,
and a penalty (Kullback-Leibler divergence from the standard Gaussian) keeps the space smooth, so
that a model that makes latents may miss a little.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from musae_utils.latents.nano import VAE, NanoVAE
from musae_utils.models.nano import save_part
from musae_utils.models.nano_data import SHARD, training_audio
from musae_utils.models.train_codec import (
    ADAM_RATE,
    BATCH,
    CROP,
    FLICKER,
    MUON_RATE,
    SAVE_EVERY,
    WARMUP,
    crops,
    heard_error,
)
from musae_utils.models.training import arguments, fit, optimisers

# After the above, whose `compat` lets diffusers find torchaudio.
from diffusers.models.autoencoders.autoencoder_oobleck import (  # isort: skip
    OobleckDiagonalGaussianDistribution,
)

DIVERGENCE = 1e-4  # weight of the divergence of a frame, in nats, beside the error


def train(folder: Path, out: Path, steps: int, shards: int, seed: int = 2) -> None:
    torch.manual_seed(seed)
    data = training_audio(folder, shards)
    vae = NanoVAE({})
    error = heard_error(vae.encoder.spectrum.bins)

    def losses(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed * 1_000_003 + step)
        with torch.no_grad():
            x = crops(data, np.random.default_rng([seed, step]), vae.encoder.spectrum)
        with torch.autocast("cpu", torch.bfloat16):
            parameters = vae.encoder.from_spectrum(x)
        latents = OobleckDiagonalGaussianDistribution(parameters.float())
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decoder.to_spectrum(latents.sample())
        loss, flicker = error(x, y.float())
        divergence = latents.kl()
        total = loss + FLICKER * flicker + DIVERGENCE * divergence
        return total, torch.stack([loss, flicker, divergence])

    matrices = (
        p for blocks in (vae.encoder.blocks, vae.decoder.blocks) for p in blocks.parameters()
    )
    movers = optimisers((p for p in matrices if p.ndim == 2), vae, MUON_RATE, ADAM_RATE)
    learnt = fit("VAE", vae, movers, losses, steps, folder / "vae.pt", WARMUP, SAVE_EVERY)
    recipe = {"steps": steps, "batch": BATCH, "crop_seconds": CROP, "muon_rate": MUON_RATE,
              "adam_rate": ADAM_RATE, "divergence": DIVERGENCE, "seed": seed,
              "clips": shards * SHARD, **learnt}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    save_part(out, "vae", vae, {"architecture": VAE, "recipe": recipe}, eight_bit=True)


if __name__ == "__main__":
    asked = arguments(__doc__.splitlines()[0], steps=9_000, shards=16)
    train(asked.folder, asked.out, asked.steps, asked.shards)
