"""What keeping activations costs: time beside the bare forward pass, and memory by the clip.

    python benchmarks/harvest_overhead.py [--pairs 12] [--json FILE]

=============================  ===================================================================
harvest.overhead               `activations.harvest` of the middle layer, 64 clips of 10 s whose
                               codes are known, against bare forward passes up to that layer in the
                               same batches
harvest.overhead_wall          the same by the clock on the wall, so with the wait for the disk
harvest.overhead_layers        all layers at once, against bare forward passes through all layers
harvest.overhead_from_sound    the middle layer, both sides encoding the sound first
harvest.memory_slope           growth of the process while a generator of 1,500 clips is harvested
=============================  ===================================================================

Bare passes run on a second model, which nnsight never saw. Sides alternate in one run; ratios are
medians over pairs, with 95 % bootstrap intervals. But for ``_wall``, the clock on a CPU is the
process's own, which stands still while other programs run.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from trace_overhead import bare_forward, untrained

from musae_utils import activations, models, music, stats, trace
from musae_utils.models import MusicModel
from musae_utils.music import Clip

CLIPS, SECONDS, BATCH = 64, 10, 8


def some_clips(n: int, seconds: float) -> Iterator[Clip]:
    """Clips with the truth of one composition and a sound of their own."""
    piece = music.make(seed=0, seconds=max(seconds, 5))
    for i in range(n):
        noise = np.random.default_rng(i).normal(0, 0.1, round(seconds * piece.sample_rate))
        yield replace(piece, audio=noise.astype(np.float32), name=f"clip {i}")


def ratios(first: Callable, second: Callable, pairs: int, cpu: bool) -> np.ndarray:
    """(pairs, 2): how many times as long the first takes, by the process's clock and the wall's."""
    times = np.empty((pairs + 1, 2, 2))
    for i in range(len(times)):
        for which in (0, 1) if i % 2 else (1, 0):
            if not cpu:
                torch.cuda.synchronize()
            start = time.process_time(), time.perf_counter()
            (first, second)[which]()
            if not cpu:
                torch.cuda.synchronize()
            times[i, which] = time.process_time() - start[0], time.perf_counter() - start[1]
    return (times[:, 0] / times[:, 1])[1:]  # the first pair warms up


def overhead(model: MusicModel | None, pairs: int) -> dict[str, stats.Interval]:
    bare = untrained() if model is None else models.load(model.name, model.device, model.dtype)
    model = untrained() if model is None else model
    middle, every = trace.at_depth(model, 0.5), range(model.n_layers)
    clips = list(some_clips(CLIPS, SECONDS))
    codes = torch.cat([bare.encode(clip) for clip in clips])
    cpu = model.device.type == "cpu"

    def harvested(layers) -> None:
        with tempfile.TemporaryDirectory() as folder:
            activations.harvest(model, clips, layers, folder, batch=BATCH, progress=False)

    def passed(layer: int, encode: bool = False) -> None:
        for start in range(0, CLIPS, BATCH):
            rows = codes[start : start + BATCH]
            if encode:
                rows = torch.cat([bare.encode(clip) for clip in clips[start : start + BATCH]])
            bare_forward(bare, rows, [None] * len(rows), layer)

    from_sound = ratios(
        lambda: harvested(middle), lambda: passed(middle, encode=True), pairs // 2, cpu
    )
    known = {clip.name: codes[i : i + 1] for i, clip in enumerate(clips)}
    model.encode = lambda clip: known[clip.name]
    try:
        one = ratios(lambda: harvested(middle), lambda: passed(middle), pairs, cpu)
        layers = ratios(lambda: harvested(every), lambda: passed(every[-1]), pairs // 2, cpu)
    finally:
        del model.encode
    clock = 0 if cpu else 1
    found = {
        "harvest.overhead": one[:, clock],
        "harvest.overhead_wall": one[:, 1],
        "harvest.overhead_layers": layers[:, clock],
        "harvest.overhead_from_sound": from_sound[:, clock],
    }
    return {name: stats.bootstrap(values, np.median) for name, values in found.items()}


def memory_slope(n_clips: int = 1500, warm: int = 500, repeats: int = 4) -> stats.Interval:
    """By how many kB the process grows with each further clip; a clip of 2 s holds 128 of sound."""
    model, process, slopes = untrained(), psutil.Process(), []
    for _ in range(repeats):
        seen = np.zeros(n_clips)

        def watched(seen=seen) -> Iterator[Clip]:
            for i, clip in enumerate(some_clips(n_clips, 2)):
                if i % 50 == 0:
                    gc.collect()
                seen[i] = process.memory_info().rss / 1e3
                yield clip

        with tempfile.TemporaryDirectory() as folder:
            activations.harvest(model, watched(), 0, folder, rows_per_shard=5_000, progress=False)
        slopes.append(np.polyfit(np.arange(warm, n_clips), seen[warm:], 1)[0])
    return stats.bootstrap(slopes)


def measure(model: MusicModel | None = None, pairs: int = 12, only: str = "harvest") -> list[dict]:
    """All figures whose names begin with `only`, as scoreboard entries.

    Parameters
    ----------
    model : MusicModel, optional
        From `models.load`; an untrained nano unless given: time does not depend on weights.
    pairs : int
        Alternations.

    Returns
    -------
    list of dict
        name, value, low, high, n, unit, seconds.
    """
    entries = []
    for prefix, unit, compute in (
        ("harvest.overhead", "ratio", lambda: overhead(model, pairs)),
        ("harvest.memory_slope", "kB a clip", lambda: {"harvest.memory_slope": memory_slope()}),
    ):
        if not prefix.startswith(only):
            continue
        start = time.perf_counter()
        found = compute()
        seconds = time.perf_counter() - start
        entries += [
            dict(name=name, value=v.value, low=v.low, high=v.high, n=v.n, unit=unit,
                 seconds=seconds)
            for name, v in found.items()
        ]  # fmt: skip
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--only", default="harvest", help="names that begin with this")
    parser.add_argument("--model", help="a model to load; an untrained nano if absent")
    parser.add_argument("--json", type=Path, help="write the entries to this file")
    arguments = parser.parse_args()
    model = models.load(arguments.model) if arguments.model else None
    entries = measure(model, arguments.pairs, arguments.only)
    for e in entries:
        print(f"{e['name']:28} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]  {e['unit']}")
    if arguments.json:
        from musae_utils.runs import save_json

        save_json(arguments.json, entries)


if __name__ == "__main__":
    main()
