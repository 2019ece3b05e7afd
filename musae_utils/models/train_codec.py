"""Train the nano codec (``make nano``). Resumable: kill it and start it again.

One can read it in a sitting: crops of scored music, log magnitudes in, codes in the middle, log
magnitudes out. Codebooks are running means of what falls to them; one that nothing falls to is
planted anew where the encoder is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from musae_utils.models.nano import CODEC, LogSpectrum, build_codec, save_part
from musae_utils.models.nano_data import SHARD, training_audio
from musae_utils.models.training import arguments, fit, optimisers

BATCH, CROP = 32, 0.8  # crops a step, seconds each: many short ones show more different sounds
MUON_RATE, ADAM_RATE = 0.02, 3e-3  # AdamW alone learns half as much a minute
WARMUP, CONTINUOUS = 200, 400  # steps; the quantiser joins after CONTINUOUS
COMMITMENT, FLICKER = 0.25, 0.5  # weights beside the error itself
SAVE_EVERY = 500  # steps
DECAY = (
    0.98,
    0.998,
)  # of the codebooks' running means, first and last: they settle as the rate falls
EDGE = 3  # frames at either end of a crop whose windows reach beyond it
DEAD = 0.2  # a code used less often than this times the batch's mean use per code is planted anew


def quantise(
    z: torch.Tensor, layers, decay: float | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Residual vector quantisation of (N, dim) latents; given a decay, the codebooks follow."""
    residual, total, codes = z, torch.zeros_like(z), []
    for layer in layers:
        book = layer._codebook
        distance = book.embed.pow(2).sum(1) - 2 * residual @ book.embed.T
        code = distance.argmin(1)
        if decay is not None:
            n = len(book.embed)
            count = torch.bincount(code, minlength=n).float()
            sums = torch.zeros_like(book.embed).index_add_(0, code, residual)
            book.cluster_size.lerp_(count, 1 - decay)
            book.embed_avg.lerp_(sums, 1 - decay)
            dead = book.cluster_size < DEAD * len(z) / n
            if dead.any():
                fresh = residual[torch.randint(len(residual), (int(dead.sum()),))]
                mean_use = len(z) / n
                book.embed_avg[dead], book.cluster_size[dead] = fresh * mean_use, mean_use
            book.embed.copy_(book.embed_avg / book.cluster_size.clamp(min=1e-3)[:, None])
        chosen = book.embed[code]
        total, residual = total + chosen, residual - chosen
        codes.append(code)
    return total, codes


def plant(z: torch.Tensor, layers, rounds: int = 8) -> None:
    """k-means on (N, dim) latents, codebook after codebook."""
    for layer in layers:
        book = layer._codebook
        n = len(book.embed)
        centres = z[torch.randperm(len(z))[:n]].clone()
        for _ in range(rounds):
            code = (centres.pow(2).sum(1) - 2 * z @ centres.T).argmin(1)
            count = torch.bincount(code, minlength=n).float()
            sums = torch.zeros_like(centres).index_add_(0, code, z)
            centres = torch.where(count[:, None] > 0, sums / count[:, None].clamp(min=1), centres)
        book.embed.copy_(centres)
        mean_use = BATCH * CROP * 50 / n
        book.cluster_size.fill_(mean_use)
        book.embed_avg.copy_(centres * mean_use)
        book.inited.fill_(1)
        z = z - centres[(centres.pow(2).sum(1) - 2 * z @ centres.T).argmin(1)]


def crops(shards, rng: np.random.Generator, spectrum: LogSpectrum) -> torch.Tensor:
    """Log magnitudes (BATCH, frames, bins) of random crops, at random levels, soft and loud."""
    n = int(CROP * CODEC["sample_rate"]) + 2 * EDGE * CODEC["hop"]
    out = np.empty((BATCH, n), np.float32)
    for i in range(BATCH):
        shard = shards[rng.integers(len(shards))]
        start = rng.integers(shard.shape[1] - n)
        out[i] = shard[rng.integers(len(shard)), start : start + n]
    gain = 10 ** (rng.uniform(-6, 6, (BATCH, 1)) / 20)
    audio = torch.from_numpy((out / 32768 * gain).clip(-1, 1).astype(np.float32))
    return spectrum.analyse(audio)[:, EDGE:-EDGE]


def heard_error(bins: int):
    """How wrong log magnitudes are to the ear: (x, y) to (error, flicker), of shape () both."""
    # Bins weigh as hearing does: equal below 500 Hz, then less; and partials near a frame's loudest
    # ten times those 26 dB below it. All bins alike, the top octave's noise drowns the tones.
    hertz = torch.arange(bins) * CODEC["sample_rate"] / CODEC["n_fft"]
    by_ear = 1 / (1 + hertz / 500)
    by_ear = by_ear / by_ear.mean()

    def error(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = by_ear * (0.03 + torch.exp(1.5 * (x - x.amax(-1, keepdim=True))))
        wrong = y - x
        loss = (wrong.abs() * weight).sum() / weight.sum()
        # An error that comes and goes is heard as strokes that nobody played; one that stays, less.
        flicker = (wrong.diff(dim=1).abs() * weight[:, 1:]).sum() / weight[:, 1:].sum()
        return loss, flicker

    return error


def train(
    folder: Path,
    out: Path,
    steps: int,
    shards: int,
    seed: int = 1,
    part: str = "codec",
    config: dict = CODEC,
    eight_bit: bool = False,
) -> None:
    """Train a codec of this architecture; it is kept as ``{part}.safetensors``."""
    torch.manual_seed(seed)
    data = training_audio(folder, shards)
    codec = build_codec(config)
    encoder, decoder, layers = codec.encoder, codec.decoder, codec.quantizer.vq.layers
    error = heard_error(encoder.spectrum.bins)

    def losses(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed * 1_000_003 + step)
        with torch.no_grad():
            x = crops(data, np.random.default_rng([seed, step]), encoder.spectrum)
        with torch.autocast("cpu", torch.bfloat16):
            z = encoder.from_spectrum(x)
        flat = z.float().transpose(1, 2).reshape(-1, z.shape[1])
        commitment = torch.zeros(())
        if step == CONTINUOUS:
            with torch.no_grad():
                draws = (np.random.default_rng([seed, 10**6 + i]) for i in range(16))
                many = (encoder.from_spectrum(crops(data, r, encoder.spectrum)) for r in draws)
                plant(torch.cat(list(many)).transpose(1, 2).reshape(-1, z.shape[1]), layers)
        if step >= CONTINUOUS:
            with torch.no_grad():
                decay = DECAY[0] + (DECAY[1] - DECAY[0]) * step / steps
                quantised, _ = quantise(flat, layers, decay)
            commitment = (flat - quantised).pow(2).mean()
            passed = flat + (quantised - flat).detach()
            z = passed.view(len(x), -1, z.shape[1]).transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            y = decoder.to_spectrum(z)
        loss, flicker = error(x, y.float())
        total = loss + FLICKER * flicker + COMMITMENT * commitment
        return total, torch.stack([loss, flicker])

    matrices = (p for blocks in (encoder.blocks, decoder.blocks) for p in blocks.parameters())
    movers = optimisers((p for p in matrices if p.ndim == 2), codec, MUON_RATE, ADAM_RATE)
    learnt = fit(part, codec, movers, losses, steps, folder / f"{part}.pt", WARMUP, SAVE_EVERY)
    recipe = {"steps": steps, "batch": BATCH, "crop_seconds": CROP, "muon_rate": MUON_RATE,
              "adam_rate": ADAM_RATE, "seed": seed, "clips": shards * SHARD, **learnt}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    save_part(out, part, codec, {"architecture": config, "recipe": recipe}, eight_bit)


if __name__ == "__main__":
    asked = arguments(__doc__.splitlines()[0], steps=12_000, shards=34)
    train(asked.folder, asked.out, asked.steps, asked.shards)
