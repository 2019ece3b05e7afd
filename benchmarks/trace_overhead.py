"""What tracing costs: each pass alternates with its bare counterpart, in one run.

    python benchmarks/trace_overhead.py [--pairs 40] [--json FILE]

===========================  =====================================================================
trace.overhead               `trace.residuals` of the middle layer, 4 clips of 10 s, against a bare
                             forward pass up to that layer
trace.overhead_short         the same for one clip of 2 s, where what tracing adds weighs most
trace.overhead_full          `trace.logits` with nothing traced, against a bare forward pass
trace.edit_overhead          generation with an edit at every step, against generation without
trace.edit_overhead_hooked   the same edit by a forward hook, against generation without
===========================  =====================================================================

The bare model is a second one, that nnsight never saw. Bare passes prepare prompts and delay
pattern like traced ones. Ratios are medians over pairs, with 95 % bootstrap intervals. On a CPU
the clock is the process's own, which stands still while other programs run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from musae_utils import models, stats, trace
from musae_utils.models import MusicModel


class _Enough(Exception):
    """Ends a bare pass at the layer that is wanted."""


def untrained() -> MusicModel:
    """A nano model with random weights: as fast as the trained one."""
    from audiocraft.models import MusicGen

    from musae_utils.models.nano import build_codec, build_lm

    torch.manual_seed(0)
    parts = build_codec({}).eval(), build_lm({}).eval()
    return MusicModel("untrained", MusicGen("untrained", *parts, max_duration=30), torch.float32)


@torch.no_grad()
def bare_forward(model: MusicModel, codes: torch.Tensor, prompts: list, layer: int | None):
    """The residual after a layer (all layers: the logits), without any tracing library."""
    lm = model.lm
    codes = codes.to(model.device).contiguous()
    pattern = lm.pattern_provider.get_pattern(codes.shape[-1])
    sequence, _, _ = pattern.build_pattern_sequence(codes, lm.special_token_id)
    conditions = model.conditions(prompts)
    if layer is None:
        return lm(sequence, [], conditions)
    seen = []

    def keep(module, inputs, output):
        seen.append(output)
        raise _Enough

    hook = lm.transformer.layers[layer].register_forward_hook(keep)
    try:
        lm(sequence, [], conditions)
    except _Enough:
        pass
    finally:
        hook.remove()
    return seen[0]


def ratio(first: Callable, second: Callable, pairs: int, cpu: bool) -> stats.Interval:
    """How many times as long the first takes as the second: the median over alternating pairs."""
    clock = time.process_time if cpu else time.perf_counter
    times = np.empty((pairs + 2, 2))
    for i in range(len(times)):
        for which in (0, 1) if i % 2 else (1, 0):
            start = clock()
            (first, second)[which]()
            if not cpu:
                torch.cuda.synchronize()
            times[i, which] = clock() - start
    ratios = times[2:, 0] / times[2:, 1]  # the first two warm up
    return stats.bootstrap(ratios, np.median)


def measure(model: MusicModel | None = None, pairs: int = 40, only: str = "trace") -> list[dict]:
    """All ratios whose names begin with `only`, as scoreboard entries.

    Parameters
    ----------
    model : MusicModel, optional
        From `models.load`; it is loaded once more, for nnsight leaves its mark on what it has
        wrapped. An untrained nano unless given: time does not depend on weights.
    pairs : int
        Alternations, of forward passes; generation takes a quarter of them.

    Returns
    -------
    list of dict
        name, value, low, high, n, unit, seconds.
    """
    bare = untrained() if model is None else models.load(model.name, model.device, model.dtype)
    model = untrained() if model is None else model
    layer = trace.at_depth(model, 0.5)
    random = torch.Generator().manual_seed(0)
    shape = (4, model.n_codebooks, round(10 * model.frame_rate))
    codes = torch.randint(model.cardinality, shape, generator=random)
    short = codes[:1, :, : round(2 * model.frame_rate)]
    prompts = ["slow organ music", "fast piano", None, "flute"]
    direction = torch.randn(model.dim, generator=random)
    edited = trace.edit(model, trace.Edit(layer, direction, strength=0.01))
    play = dict(prompts=prompts, seconds=2, temperature=0)

    def hooked():
        layers = bare.lm.transformer.layers
        push = direction.to(model.device) * 0.01
        hook = layers[layer].register_forward_hook(lambda module, x, out: out + push.to(out.dtype))
        try:
            bare.generate(**play)
        finally:
            hook.remove()

    rivals = {
        "trace.overhead": (
            lambda: trace.residuals(model, codes, [layer], prompts),
            lambda: bare_forward(bare, codes, prompts, layer),
            pairs,
        ),
        "trace.overhead_short": (
            lambda: trace.residuals(model, short, [layer], prompts[:1]),
            lambda: bare_forward(bare, short, prompts[:1], layer),
            4 * pairs,
        ),
        "trace.overhead_full": (
            lambda: trace.logits(model, codes, prompts),
            lambda: bare_forward(bare, codes, prompts, None),
            pairs // 2,
        ),
        "trace.edit_overhead": (
            lambda: edited.generate(**play),
            lambda: bare.generate(**play),
            pairs // 4,
        ),
        "trace.edit_overhead_hooked": (hooked, lambda: bare.generate(**play), pairs // 4),
    }
    entries = []
    for name, (first, second, n) in rivals.items():
        if not name.startswith(only):
            continue
        start = time.perf_counter()
        found = ratio(first, second, max(n, 2), cpu=model.device.type == "cpu")
        entries.append(
            dict(name=name, value=found.value, low=found.low, high=found.high, n=found.n,
                 unit="ratio", seconds=time.perf_counter() - start)
        )  # fmt: skip
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--only", default="trace", help="names that begin with this")
    parser.add_argument("--model", help="a model to load; an untrained nano if absent")
    parser.add_argument("--json", help="write the entries to this file")
    arguments = parser.parse_args()
    model = models.load(arguments.model) if arguments.model else None
    entries = measure(model, arguments.pairs, arguments.only)
    for e in entries:
        print(f"{e['name']:28} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]  n = {e['n']}")
    if arguments.json:
        from musae_utils.runs import save_json

        save_json(arguments.json, entries)


if __name__ == "__main__":
    main()
