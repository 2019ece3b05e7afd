"""What a sweep costs, and that knobs at zero cost nothing of the music.

    python benchmarks/sweep_cost.py [--pairs 3] [--json FILE]

=======================  =========================================================================
steering.zero_identity   codes that differ from an untouched generation's, over every kind of knob
                         and half of guidance at strength 0, and beside rows that are turned
steering.sweep_overhead  64 rows of 2 s, each with a knob of its own, against a plain generation of
                         64 rows; ``.ablate`` for knobs that read the stream
steering.batching_gain   64 generations of one row, against that sweep
=======================  =========================================================================

Ratios are medians over alternating pairs, with 95 % bootstrap intervals; see trace_overhead.py.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from trace_overhead import ratio, untrained

from musae_utils import runs, steering, trace
from musae_utils.models import MusicModel
from musae_utils.sae import SAE, SAEConfig
from musae_utils.stats import Interval
from musae_utils.steering import HOW, Knob
from musae_utils.trace import HALVES, HookPoint

ROWS, SECONDS, PROMPT = 64, 2.0, "slow piano"


def zero_identity(model: MusicModel, sae: SAE) -> Interval:
    """Over all kinds of knobs; n is how many."""
    kinds = [(how, half) for how in HOW for half in HALVES]
    rows = [Knob(sae, 7 * i, 0.0, how, peak=5.0, half=half) for i, (how, half) in enumerate(kinds)]
    rows.append(steering.Patch(1, torch.randn(999, model.dim), strength=0.0))
    loud = Knob(sae, 3, 2.0, peak=5.0)
    plain = model.generate([PROMPT] * 2, 1.0, seed=3, same_noise=True).codes[:1]
    played = steering.sweep(model, PROMPT, [*rows, loud], 1.0, seed=3).codes
    if torch.equal(played[-1:], plain):
        raise RuntimeError("The knob that is turned changed nothing, so that zero says nothing.")
    differ = int((played[:-1] != plain).sum())
    return Interval(float(differ), math.nan, math.nan, len(rows))


def measure(model: MusicModel | None = None, sae: SAE | None = None, pairs: int = 3) -> list[dict]:
    """Scoreboard entries: name, value, low, high, n, unit. Untrained parts unless given."""
    model = model or untrained()
    if sae is None:
        hook = HookPoint.of(model, trace.at_depth(model, 0.5))
        sae = SAE(SAEConfig(model.dim, 4096, "topk", k=32), hook, seed=0)
    cpu = model.device.type == "cpu"
    adding = [Knob(sae, 7 * i, 0.5, peak=5.0) for i in range(ROWS)]
    silencing = [Knob(sae, 7 * i, 1.0, "ablate") for i in range(ROWS)]
    plain = lambda: model.generate([PROMPT] * ROWS, SECONDS, same_noise=True)  # noqa: E731
    turned = lambda rows: lambda: steering.sweep(model, PROMPT, rows, SECONDS)  # noqa: E731
    alone = ratio(lambda: model.generate(PROMPT, SECONDS), turned(adding), pairs, cpu)
    found = {
        "steering.zero_identity": (zero_identity(model, sae), "codes that differ"),
        "steering.sweep_overhead": (ratio(turned(adding), plain, pairs, cpu), "times"),
        "steering.sweep_overhead.ablate": (ratio(turned(silencing), plain, pairs, cpu), "times"),
        "steering.batching_gain": (Interval(*(ROWS * x for x in alone[:3]), alone.n), "times"),
    }
    return [
        dict(name=name, value=i.value, low=i.low, high=i.high, n=i.n, unit=unit)
        for name, (i, unit) in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    listed = measure(pairs=asked.pairs)
    for entry in listed:
        print(f"{entry['name']:34} {entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]")
    if asked.json:
        runs.save_json(asked.json, listed)


if __name__ == "__main__":
    main()
