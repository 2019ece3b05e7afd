"""How fast SAEs train, against the encoder's matrix product alone and against other libraries.

    python benchmarks/sae_speed.py [--shape nano] [--pairs 12] [--peers FILE] [--json FILE]

A training step has to multiply every activation with the encoder: 2 d n operations. No step can be
faster than that product, so its rate in bfloat16 (the best of torch's own ways to say it) is the
bound, and ``sae.speed_vs_gemm`` the share of it that is reached. Products, steps and peers
alternate in one run, on the same batches; ratios are medians over rounds, with 95 % bootstrap
intervals. On a CPU the clock is the process's own, which stands still while other programs run.

=========================  =======================================================================
sae.speed_vs_gemm.SHAPE    tokens a second of a training step over those of the product alone
sae.speed_vs_PEER.SHAPE    … over those of a peer's training step
=========================  =======================================================================

Peers live in an environment of their own. ``--peers FILE`` names a Python file with a function
``trainers(d, n, k, batch, first)``; `first` is a batch (B, d) to begin from. It returns
``{name: step}``, where ``step(x)`` does one whole training step of that library (forward, backward,
optimiser, normalisation) at its best settings. What a library cannot do it leaves out.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from musae_utils import stats
from musae_utils.sae import SAE, SAEConfig, TrainConfig
from musae_utils.sae.steps import bfloat16_pays, step_for

SHAPES = {  # name: width, dictionary size, k
    "x8_k32": (1024, 8192, 32),
    "x8_k100": (1024, 8192, 100),
    "x32_k32": (1024, 32768, 32),
    "x32_k100": (1024, 32768, 100),
    "nano": (256, 4096, 32),
    "latents": (64, 4096, 16),
}
DATA = 8  # batches, used in turn


def activations(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Activations (n, d) as SAEs expect them: sparse sums of 4 d directions, some common."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(4 * d, d, generator=generator), dim=1)
    often = torch.arange(1, 4 * d + 1) ** -0.7
    often = (40 * often / often.sum()).clamp(max=0.5)
    out = []
    for start in range(0, n, 1024):
        shape = (min(1024, n - start), 4 * d)
        f = torch.rand(shape, generator=generator) + 0.5
        f *= torch.rand(shape, generator=generator) < often
        noise = torch.randn(shape[0], d, generator=generator)
        out.append(f @ directions + 0.02 * noise)
    return torch.cat(out)


def products(sae: SAE, batch: int, half: bool) -> list[Callable]:
    """The encoder's product, in the ways torch has to say it."""
    weights = sae.W_enc.detach().to(torch.bfloat16 if half else torch.float32)
    turned = weights.T.contiguous()
    out = weights.new_empty(batch, len(weights))
    return [
        lambda x: F.linear(x, weights),
        lambda x: torch.mm(x, weights.T, out=out),
        lambda x: torch.mm(x, turned, out=out),
    ]


def measure(
    names: list[str] | None = None,
    pairs: int = 12,
    batch: int = 4096,
    peers: Callable | None = None,
    device: str = "cpu",
) -> list[dict]:
    """All ratios, as scoreboard entries.

    Parameters
    ----------
    names : list of str, optional
        Of `SHAPES`; all of them unless given.
    pairs : int
        Rounds in which everybody has one turn.
    batch : int
        Activations a step.
    peers : callable, optional
        See the module's text.
    device : str

    Returns
    -------
    list of dict
        name, value, low, high, n, unit, seconds; tokens a second of both beside the ratio.
    """
    half = bfloat16_pays(torch.device(device).type)
    entries = []
    for shape in names or list(SHAPES):
        began = time.perf_counter()
        d, n, k = SHAPES[shape]
        data = activations(DATA * batch, d).to(device).split(batch)
        sae = SAE(SAEConfig(d, n, k=k), seed=None)
        sae.initialise(torch.Generator().manual_seed(0), data[0].cpu(), scaled=True)
        sae = sae.to(device)
        config = TrainConfig(sae.config, steps=10**6, batch_size=batch)
        step = step_for(sae, config, "bf16" if half else "fp32")
        halves = [x.bfloat16() if half else x for x in data]
        ways = products(sae, batch, half)
        best = min(range(len(ways)), key=lambda i: np.median(timed([ways[i]], halves, 5, device)))
        rivals: dict[str, tuple[Callable, list]] = {
            "ours": (lambda x, step=step: step(x, 3e-4), data),
            "gemm": (ways[best], halves),
        }
        for peer, function in (peers(d, n, k, batch, data[0]) if peers else {}).items():
            rivals[peer] = function, data
        times = np.array(
            [
                [timed([function], xs[i % DATA :], 1, device, warm=i < 0)[0]
                 for function, xs in rivals.values()]
                for i in range(-2, pairs)
            ]
        )[2:]  # fmt: skip
        rates = dict(zip(rivals, batch / np.median(times, axis=0), strict=True))
        for i, rival in enumerate(rivals):
            if rival == "ours":
                continue
            found = stats.bootstrap(times[:, i] / times[:, 0], np.median)
            entries.append(
                dict(name=f"sae.speed_vs_{rival}.{shape}", value=found.value, low=found.low,
                     high=found.high, n=found.n, unit="ratio", ours=rates["ours"],
                     rival=rates[rival], seconds=time.perf_counter() - began)
            )  # fmt: skip
    return entries


def timed(functions, batches, repeats: int, device: str, warm: bool = True) -> list[float]:
    """Seconds that each call took, after one that is not counted."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for i in range(-int(warm), repeats):
        start = clock()
        functions[0](batches[i % len(batches)])
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return times[int(warm) :]


def load_peers(path: str) -> Callable:
    spec = importlib.util.spec_from_file_location("peers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.trainers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="all if absent")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--peers", help="a file with the trainers of other libraries")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write the entries to this file")
    arguments = parser.parse_args()
    peers = load_peers(arguments.peers) if arguments.peers else None
    entries = measure(arguments.shape, arguments.pairs, arguments.batch, peers, arguments.device)
    for e in entries:
        print(
            f"{e['name']:32} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]  "
            f"{e['ours']:,.0f} against {e['rival']:,.0f} tokens/s"
        )
    if arguments.json:
        from musae_utils.runs import save_json

        save_json(arguments.json, entries)


if __name__ == "__main__":
    main()
