"""Music whose activations are made by hand, so that an atlas of them has known answers."""

from dataclasses import asdict

import numpy as np
import torch

from musae_utils.activations import ActivationStore, Frames, write_store
from musae_utils.music import Clip, Spec, compose
from musae_utils.music.concepts import _lasting
from musae_utils.music.render import truth_of
from musae_utils.trace import HookPoint

RATE = 16_000
POINT = HookPoint("nano", 3, "transformer.layers.3", "0123456789abcdef")
OTHER = HookPoint("nano", 1, "transformer.layers.1", "0123456789abcdef")
ROOTS = slice(0, 12)  # columns of a row: the chord's root, the tonic, drums, and noise
TONICS = slice(12, 24)
DRUMS, NOISE, WIDTH = 24, slice(25, 32), 32


def clip_of(seed: int, seconds: float = 5.0, known: bool = True, **fields) -> Clip:
    """A composed clip with its truth, and a hum instead of its sound."""
    score = compose(Spec(seconds=seconds, **fields), seed)
    audio = 0.1 * np.sin(np.arange(int(seconds * RATE)) * (200 + 20 * seed) * 2 * np.pi / RATE)
    audio = audio.astype(np.float32)
    provenance = {"source": "composed", "seed": seed, "spec": asdict(score.spec)}
    name = f"piece <b>{seed}</b>"
    truth = truth_of(score, audio)
    clip = Clip(audio, RATE, truth, f"a tune & number {seed}", provenance, name)
    clip.hidden = truth
    if not known:
        clip.truth = None
    return clip


def rows_of(clip: Clip, noise: float = 0.02) -> torch.Tensor:
    """Activations (T, 32) in which the planted concepts can be read off."""
    frames, n = clip.hidden.frames, len(clip.hidden)
    rng = np.random.default_rng(clip.provenance["seed"])
    x = noise * rng.random((n, WIDTH))
    x[np.arange(n), frames["chord_root"]] += 1
    x[np.arange(n), 12 + frames["tonic"]] += 0.5 + 0.2 * rng.random(n)
    x[:, DRUMS] += _lasting(frames["drums"])
    x[:, NOISE] += 0.5 * rng.random((n, 7)) * (rng.random((n, 7)) < 0.1)
    return torch.from_numpy(x.astype(np.float32))


def store_of(folder, clips, points=(POINT,), read=rows_of) -> ActivationStore:
    """A store of the clips' rows, the same at each hook but for a rotation of the columns."""

    def frames(batch, first):
        return [
            Frames({p.path: read(clip).roll(i, 1) for i, p in enumerate(points)}) for clip in batch
        ]

    return write_store(
        folder, clips, frames, {p.path: asdict(p) for p in points}, 50.0, dtype="float32",
        progress=False,
    )  # fmt: skip


class TopK:
    """The least sparse autoencoder: its first features are the columns themselves, the next ones
    random directions, and the last two never fire."""

    def __init__(self, k: int = 3, random: int = 8, point=POINT, dense: bool = False):
        generator = torch.Generator().manual_seed(0)
        directions = torch.nn.functional.normalize(
            torch.randn(random, WIDTH, generator=generator), dim=1
        )
        self.W_dec = torch.cat([torch.eye(WIDTH), directions, torch.zeros(2, WIDTH)])
        self.hook_point, self.k = point, k
        if not dense:
            self.encode_sparse = self.pairs

    def pairs(self, x):
        values, indices = (x @ self.W_dec.T - 0.05).topk(self.k, dim=1)
        return values.relu(), indices

    def encode(self, x):
        values, indices = self.pairs(x)
        return torch.zeros(len(x), len(self.W_dec)).scatter(1, indices, values)
