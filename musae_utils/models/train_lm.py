"""Train the nano language model (``make nano``). Resumable: kill it and start it again.

The codec's codes of scored music, captions told anew on every pass, the delay pattern of MusicGen,
next-token cross-entropy. Muon (Jordan et al., 2024) moves the transformer's matrices, AdamW all
else.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from musae_utils.models.nano import LM, VOCABULARY, build_lm, load_part, save_part
from musae_utils.models.nano_data import SECONDS, SHARD, audio_shard, training_captions
from musae_utils.models.training import arguments, fit, optimisers
from musae_utils.runs import atomic_path

# Rows and frames of the steps, in turn: 30 s for form and returns, 10 s, and many of 3 s, since a
# prompt says something about the first seconds and little about what goes on from there.
SHAPES = ((2, 1500), (20, 150), (6, 500), (20, 150))
FROM_THE_START = 0.5  # share of short rows that begin where the piece begins
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 3e-3, 100
SAVE_EVERY = 250  # steps
CODEBOOK_WEIGHTS = (2.4, 1.6, 1.2, 1.0, 0.8, 0.6, 0.5, 0.4)  # the first say most of what is heard


def code_shard(folder: Path, index: int, codec) -> np.ndarray:
    """Codes of one shard: int16, shape (100, K, 1500)."""
    path = folder / f"codes-{index:04d}.npy"
    if not path.exists():
        audio = audio_shard(folder, index)
        codes = []
        with torch.no_grad():
            for start in range(0, SHARD, 10):
                batch = torch.from_numpy(audio[start : start + 10].astype(np.float32) / 32768)
                with torch.autocast("cpu", torch.bfloat16):  # four times faster
                    latents = codec.encoder(batch[:, None])
                codes.append(codec.quantizer.encode(latents.float()).to(torch.int16))
        with atomic_path(path) as partial, open(partial, "wb") as f:
            np.save(f, torch.cat(codes).numpy())
    return np.load(path, mmap_mode="r")


@contextmanager
def plain_attention():
    """Attention by plain products, for rows as short as in training.

    torch's fused attention is made for long rows; on a CPU in bf16 it takes 1.4 times as long as
    plain products over 500 positions, and 8 times as long over a prompt's 32 words.
    """
    fused = F.scaled_dot_product_attention

    def attend(q, k, v, attn_mask=None, is_causal=False, dropout_p=0.0):
        if k.shape[-2] > 1000 or attn_mask is not None:
            return fused(q, k, v, attn_mask, is_causal=is_causal, dropout_p=dropout_p)
        with torch.autocast("cpu", enabled=False):
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if is_causal:
                later = torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype).triu(1)
                scores = scores + later
            return scores.softmax(-1) @ v

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def sequence_of(lm, codes: torch.Tensor) -> torch.Tensor:
    """(B, K, T) codes to the delayed sequence (B, K, S) that the transformer reads."""
    pattern = lm.pattern_provider.get_pattern(codes.shape[-1])
    return pattern.build_pattern_sequence(codes, lm.special_token_id)[0]


def cross_entropies(lm, codes: torch.Tensor, prompts: list[str | None]) -> torch.Tensor:
    """Mean cross-entropy of each codebook in nats, shape (K,)."""
    sequence = sequence_of(lm, codes)
    provider = lm.condition_provider
    tokens = provider.conditioners["description"].tokenize(prompts)
    conditions = provider({"description": tokens})
    logits = lm(sequence[..., :-1], [], conditions)
    losses = []
    for k in range(codes.shape[1]):
        target = sequence[:, k, 1:]
        target = target.masked_fill(target == lm.special_token_id, -100)
        losses.append(F.cross_entropy(logits[:, k].flatten(0, 1).float(), target.flatten()))
    return torch.stack(losses)


class Captions:
    """Four tellings of each training clip, made when a shard is first asked for."""

    def __init__(self) -> None:
        self.told: dict[int, list[list[str]]] = {}

    def of(self, shard: int, row: int, rng: np.random.Generator) -> str:
        if shard not in self.told:
            tell = np.random.default_rng([shard, 5])
            self.told[shard] = training_captions(shard, tell, tellings=4)
        return self.told[shard][rng.integers(4)][row]


class Pieces:
    """Training clips' codes and captions, drawn by step number alone."""

    def __init__(self, folder: Path, shards: int, codec):
        self.codes = [code_shard(folder, i, codec)
                      for i in tqdm(range(shards), desc="encoding", unit="shard")]  # fmt: skip
        self.captions = Captions()

    def batch(self, rng, rows: int, frames: int):
        codes, prompts = [], []
        for _ in range(rows):
            shard, row = int(rng.integers(len(self.codes))), int(rng.integers(SHARD))
            last = SECONDS * 50 - frames
            start = 0 if rng.random() < FROM_THE_START else int(rng.integers(last + 1))
            codes.append(self.codes[shard][row, :, start : start + frames].astype(np.int64))
            dropped = rng.random() < LM["guidance_dropout"]
            prompts.append(None if dropped else self.captions.of(shard, row, rng))
        return torch.from_numpy(np.stack(codes)), prompts


def train(folder: Path, out: Path, steps: int, shards: int, seed: int = 1) -> None:
    torch.manual_seed(seed)
    pieces = Pieces(folder, shards, load_part(out, "codec"))
    lm = build_lm({}).train()
    weights = torch.tensor(CODEBOOK_WEIGHTS) / sum(CODEBOOK_WEIGHTS)

    def losses(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([seed, step])
        codes, prompts = pieces.batch(rng, *SHAPES[step % len(SHAPES)])
        with torch.autocast("cpu", torch.bfloat16), plain_attention():
            nats = cross_entropies(lm, codes, prompts)
        return (nats * weights).sum(), nats

    matrices = (p for p in lm.transformer.parameters() if p.ndim == 2)
    movers = optimisers(matrices, lm, MUON_RATE, ADAM_RATE)
    learnt = fit("lm", lm, movers, losses, steps, folder / "lm.pt", WARMUP, SAVE_EVERY)
    recipe = {"steps": steps, "shapes": SHAPES, "muon_rate": MUON_RATE,
              "adam_rate": ADAM_RATE, "codebook_weights": CODEBOOK_WEIGHTS, "seed": seed,
              "clips": shards * SHARD, **learnt}  # fmt: skip
    architecture = LM | {"vocabulary": list(VOCABULARY)}
    save_part(out, "lm", lm, {"architecture": architecture, "recipe": recipe})


if __name__ == "__main__":
    asked = arguments(__doc__.splitlines()[0], steps=8000, shards=100)
    train(asked.folder, asked.out, asked.steps, asked.shards)
