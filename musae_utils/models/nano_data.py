"""The music that the nano models learn from: rendered once, kept in resumable shards.

Shard ``i`` holds training compositions ``100 i`` to ``100 i + 99``, 30 s each, as 16-bit samples.
Whatever is complete on disk is reused; a shard appears under its name only when it is whole.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from musae_utils.music import SAMPLE_RATE, Spec, caption, compose
from musae_utils.music.dataset import SPLIT_SEEDS
from musae_utils.music.render import synthesise, truth_of

SHARD = 100  # clips
SECONDS = 30


def audio_shard(folder: Path, index: int) -> np.ndarray:
    """Samples of one shard, memory-mapped: int16, shape (100, 480000)."""
    path = folder / f"audio-{index:04d}.npy"
    if not path.exists():
        audio = np.zeros((SHARD, SECONDS * SAMPLE_RATE), np.int16)
        for i in range(SHARD):
            score = compose(Spec(seconds=SECONDS), SPLIT_SEEDS["train"] + index * SHARD + i)
            samples = synthesise(score.notes, score.programs, SECONDS)
            audio[i] = np.round(samples * 32767)
        partial = folder / f".{path.name}.{os.getpid()}"
        with open(partial, "wb") as f:
            np.save(f, audio)
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")


def training_audio(folder: Path, n_shards: int) -> list[np.ndarray]:
    """Shards 0 to ``n_shards - 1``, rendered where missing (about 8 s a shard)."""
    folder.mkdir(parents=True, exist_ok=True)
    return [audio_shard(folder, i) for i in tqdm(range(n_shards), desc="rendering", unit="shard")]


def training_captions(index: int, rng: np.random.Generator) -> list[str]:
    """New captions for the clips of a shard: the same truth, told in other words."""
    captions = []
    for i in range(SHARD):
        score = compose(Spec(seconds=SECONDS), SPLIT_SEEDS["train"] + index * SHARD + i)
        truth = truth_of(score, np.zeros(1, np.float32))
        captions.append(caption(truth, rng))
    return captions


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/nano"))
    parser.add_argument("--shards", type=int, default=100)
    arguments = parser.parse_args()
    training_audio(arguments.folder, arguments.shards)
