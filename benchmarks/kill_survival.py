"""What survives kill -9: harvests and trainings, killed at random instants and taken up again.

    python benchmarks/kill_survival.py [--kills 10] [--seed 0] [--json FILE]

A harvest (40 clips of 5 s, two layers, a shard for every 8 clips) and an SAE's training on it (300
steps, a checkpoint every 0.1 s) run once in peace. Then each begins anew ten times in a folder of
its own, is killed at an instant drawn evenly from the time that it took in peace, and is called
again. It has survived if it then ends by itself and its files have the checksums that they have in
peace. ``run.json`` tells when it ran, so it is left out, as are ``artifacts.json``, which repeats
checksums, and the seconds of a training's log.

Processes are forked from one that has imported all they need, so that the instants fall into the
work and not into imports.

====================  ============================================================================
store.kill_survival   share of all kills that were survived
… .harvest, .train    the same for one kind
====================  ============================================================================
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use its parent's threads

import numpy as np
import torch
from safetensors import safe_open

from musae_utils import activations, models, music, sae
from musae_utils.runs import save_json, sha256
from musae_utils.stats import proportion

LEFT_OUT = (".lock", "run.json", "artifacts.json")


def harvest(folder: Path, model: models.MusicModel) -> None:
    clips = (music.make_many(1, seed, 5.0)[0] for seed in range(40))
    activations.harvest(model, clips, [1, 3], folder, rows_per_shard=1500, progress=False)


def train(folder: Path, store: activations.ActivationStore) -> None:
    config = sae.presets.nano(expansion=4, steps=300, batch_size=512)
    sae.train(
        config, lambda number: store.batches(3, 512, seed=number), folder,
        checkpoint_every=0.1, progress=False,
    )  # fmt: skip


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a run, without what tells the time."""
    found = {}
    for path in sorted(p for p in folder.iterdir() if p.name not in LEFT_OUT):
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.name] = _digest([_timeless(row) for row in rows])
        elif path.name == "sae.safetensors":
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["musae_sae"])
                tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}
            found[path.name] = _digest(_timeless(about), *tensors.values())
        else:
            found[path.name] = sha256(path)
    return found


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(kept) for key, kept in value.items() if key != "seconds"}
    return value


def _digest(about, *parts: bytes) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def run(work: Callable, folder: Path, given, kill_after: float | None = None) -> int:
    """Do the work in a process of its own; its exit code, -9 where it was killed."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder, given))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def survived(work: Callable, given, folder: Path, kills: int, rng) -> tuple[int, list[dict]]:
    """How many of so many kills the work survives, and what happened at each.

    Raises
    ------
    RuntimeError
        The work does not even end in peace.
    """
    start = time.perf_counter()
    if run(work, folder / "peace", given):
        raise RuntimeError(f"{work.__name__} failed without being killed.")
    took, expected = time.perf_counter() - start, checksums(folder / "peace")
    told = []
    while len(told) < kills:
        here, instant = folder / f"killed-{len(told)}", rng.uniform(0, took)
        if run(work, here, given, instant) != -9:  # it was faster this time: drawn again
            shutil.rmtree(here)
            continue
        files = sorted(p.name for p in here.glob("*")) if here.exists() else []
        code, ended = run(work, here, given), checksums(here)
        differ = sorted(n for n in expected | ended if expected.get(n) != ended.get(n))
        told.append(
            {"instant": round(instant / took, 3), "files": files, "survived": not (code or differ),
             "exit_code": code, "differ": differ}
        )  # fmt: skip
        shutil.rmtree(here)
    return sum(row["survived"] for row in told), told


def measure(kills: int = 10, seed: int = 0) -> list[dict]:
    """Scoreboard entries: name, value, low, high, n, unit; what happened at each kill beside it."""
    torch.set_num_threads(1)
    rng, model = np.random.default_rng(seed), models.load("nano", device="cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        harvests, told = survived(harvest, model, folder / "harvest", kills, rng)
        store = activations.ActivationStore.open(folder / "harvest" / "peace")
        trainings, told_too = survived(train, store, folder / "train", kills, rng)
    entries = []
    for part, count, n, rows in (
        ("", harvests + trainings, 2 * kills, []),
        (".harvest", harvests, kills, told),
        (".train", trainings, kills, told_too),
    ):
        share = proportion(count, n)
        entries.append(
            dict(name=f"store.kill_survival{part}", value=share.value, low=share.low,
                 high=share.high, n=n, unit="share", kills=rows)
        )  # fmt: skip
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the entries to this file")
    given = parser.parse_args()
    if not hasattr(os, "fork"):
        sys.exit("This benchmark forks processes, which this system cannot: run it on Linux.")
    entries = measure(given.kills, given.seed)
    for e in entries:
        for row in e["kills"]:
            how = "survived" if row["survived"] else f"NOT survived: {row['differ']} differ"
            print(f"  at {row['instant']:.0%} of the time, {len(row['files'])} files there: {how}")
        print(f"{e['name']:30} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}], n = {e['n']}")
    if given.json:
        save_json(given.json, entries)


if __name__ == "__main__":
    main()
