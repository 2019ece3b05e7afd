"""The music that the nano models learn from: rendered once, kept in resumable shards.

Shard ``i`` holds training compositions ``100 i`` to ``100 i + 99``, 30 s each, as 16-bit samples.
Whatever is complete on disk is reused; a shard appears under its name only when it is whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from musae_utils.music import SAMPLE_RATE, Spec, caption, compose
from musae_utils.music.dataset import SPLIT_SEEDS
from musae_utils.music.render import synthesise, truth_of
from musae_utils.runs import atomic_path

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
        with atomic_path(path) as partial, open(partial, "wb") as f:
            np.save(f, audio)
    return np.load(path, mmap_mode="r")


def training_audio(folder: Path, n_shards: int) -> list[np.ndarray]:
    """Shards 0 to ``n_shards - 1``, rendered where missing (about 8 s a shard)."""
    folder.mkdir(parents=True, exist_ok=True)
    return [audio_shard(folder, i) for i in tqdm(range(n_shards), desc="rendering", unit="shard")]


def training_captions(index: int, rng: np.random.Generator, tellings: int) -> list[list[str]]:
    """Captions for the clips of a shard, told several times: the same truth in other words."""
    truths = []
    for i in range(SHARD):
        score = compose(Spec(seconds=SECONDS), SPLIT_SEEDS["train"] + index * SHARD + i)
        truths.append(truth_of(score, np.zeros(1, np.float32)))
    return [[caption(truth, rng) for truth in truths] for _ in range(tellings)]
