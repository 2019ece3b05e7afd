"""Train the nano latent-diffusion model (``make nano``). Resumable: kill it and start it again.

The VAE's latents of scored music, captions told anew on every pass, noise levels drawn most often
from the middle (Esser et al., arXiv 2403.03206), the squared error of the velocity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from musae_utils.latents.flow import FLOW, FlowNet
from musae_utils.latents.nano import load_nano_latents
from musae_utils.models.nano import VOCABULARY, save_part
from musae_utils.models.nano_data import SECONDS, SHARD, audio_shard
from musae_utils.models.train_lm import FROM_THE_START, Captions, plain_attention
from musae_utils.models.training import arguments, fit, optimisers
from musae_utils.runs import atomic_path

# Rows and latent frames of the steps, in turn: 10 s, 5 s, and many of 3 s, since a prompt says
# most in the first seconds.
SHAPES = ((16, 250), (48, 75), (32, 125), (48, 75))
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 2e-3, 100
SAVE_EVERY = 250  # steps


def latent_shard(folder: Path, index: int, vae) -> np.ndarray:
    """Latents of one shard: float16, shape (100, 750, 64)."""
    path = folder / f"latents-{vae.fingerprint}-{index:04d}.npy"
    if not path.exists():
        audio = audio_shard(folder, index)
        with torch.autocast("cpu", torch.bfloat16):  # four times faster
            latents = [vae.encode(audio[i : i + 10].astype(np.float32) / 32768)
                       for i in range(0, SHARD, 10)]  # fmt: skip
        with atomic_path(path) as partial, open(partial, "wb") as f:
            np.save(f, np.concatenate(latents).astype(np.float16))
    return np.load(path, mmap_mode="r")


def train(folder: Path, out: Path, steps: int, shards: int, seed: int = 4) -> None:
    torch.manual_seed(seed)
    vae = load_nano_latents("nano-vae", out)
    latents = [latent_shard(folder, i, vae)
               for i in tqdm(range(shards), desc="encoding", unit="shard")]  # fmt: skip
    captions = Captions()
    net = FlowNet({}).train()
    known = np.concatenate([shard[:, ::25].reshape(-1, vae.width) for shard in latents[:8]])
    net.mean.copy_(torch.from_numpy(known.astype(np.float32).mean(0)))
    net.deviation.copy_(torch.from_numpy(known.astype(np.float32).std(0)))

    def losses(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([seed, step])
        rows, frames = SHAPES[step % len(SHAPES)]
        z, prompts = np.empty((rows, frames, vae.width), np.float32), []
        for i in range(rows):
            shard, row = int(rng.integers(shards)), int(rng.integers(SHARD))
            last = int(SECONDS * vae.frame_rate) - frames
            start = 0 if rng.random() < FROM_THE_START else int(rng.integers(last + 1))
            z[i] = latents[shard][row, start : start + frames]
            dropped = rng.random() < FLOW["guidance_dropout"]
            prompts.append(None if dropped else captions.of(shard, row, rng))
        clean = net.scaled(torch.from_numpy(z))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
        sigma = torch.sigmoid(torch.from_numpy(rng.standard_normal(rows).astype(np.float32)))
        state = (1 - sigma)[:, None, None] * clean + sigma[:, None, None] * noise
        with torch.autocast("cpu", torch.bfloat16), plain_attention():
            velocity = net(state, sigma, net.read(prompts))
        wrong = (velocity.float() - (noise - clean)).pow(2).mean((1, 2))
        high = wrong[sigma > 0.5].mean() if (sigma > 0.5).any() else wrong.mean()
        return wrong.mean(), torch.stack([wrong.mean(), high])

    blocks = net.transformer.transformer_blocks
    movers = optimisers((p for p in blocks.parameters() if p.ndim == 2), net, MUON_RATE, ADAM_RATE)
    learnt = fit("flow", net, movers, losses, steps, folder / "flow.pt", WARMUP, SAVE_EVERY)
    recipe = {"steps": steps, "shapes": SHAPES, "muon_rate": MUON_RATE, "adam_rate": ADAM_RATE,
              "vae": vae.fingerprint, "seed": seed, "clips": shards * SHARD, **learnt}  # fmt: skip
    architecture = FLOW | {"vocabulary": list(VOCABULARY)}
    save_part(out, "flow", net, {"architecture": architecture, "recipe": recipe}, eight_bit=True)


if __name__ == "__main__":
    asked = arguments(__doc__.splitlines()[0], steps=7_500, shards=48)
    train(asked.folder, asked.out, asked.steps, asked.shards)
