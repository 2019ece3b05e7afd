"""Whether plans come true: what the nano was said to take, against what it took.

    python benchmarks/plan.py [--repeats 5] [--json FILE]

=========================  =====================================================================
plan.memory_error.play     (planned - taken) / taken, of the growth of a process that loads the nano
                           and plays 8 rows of 10 s, over one that has only imported it
plan.memory_error.harvest  the same, for 32 clips of 10 s and three layers
plan.time_error.play       of the seconds of the generation alone
plan.time_error.harvest    of the harvest alone
plan.probe                 seconds that a timed plan takes to make, imports aside
=========================  =====================================================================

Each plan and each deed is a process of its own. ``memory_error`` and ``time_error`` are the larger
of the two in size, with its sign. Seconds are those of the process's own clock, which stands still
while other programs run, so all run on one thread. Intervals are bootstrapped over repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from musae_utils import runs, stats

ROWS, SECONDS, CLIPS, LAYERS = 8, 10.0, 32, [1, 3, 5]


def grown() -> float:
    """Peak of this process so far, bytes."""
    if sys.platform == "linux":  # getrusage would begin with what the parent process held
        (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def deed(what: str) -> dict[str, float]:
    """Make a plan, play or harvest, in this process; what it took."""
    from musae_utils import activations, models, music, trace  # noqa: F401
    from musae_utils.models import nano  # noqa: F401
    from musae_utils.plan import plan

    if what == "plan":
        start = time.process_time()
        made = plan("nano", SECONDS, CLIPS, LAYERS, batch=ROWS, device="cpu")
        took = time.process_time() - start
        found = {f"{name}.memory": getattr(made, name).memory for name in ("play", "harvest")}
        found |= {f"{name}.seconds": getattr(made, name).seconds for name in ("play", "harvest")}
        return found | {"probe": took, "load.memory": made.load.memory}

    before = grown()
    model = models.load("nano", device="cpu")
    if what == "play":
        start = time.process_time()
        model.generate(["slow piano"] * ROWS, SECONDS)
    else:
        clips = noise(model.sample_rate)
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            activations.harvest(model, clips, LAYERS, folder, batch=ROWS, progress=False)
    took = time.process_time() - start
    return {f"{what}.seconds": took, f"{what}.memory": grown() - before}


def noise(sample_rate: int):
    from musae_utils.music import Clip

    for i in range(CLIPS):
        sound = np.random.default_rng(i).normal(0, 0.1, round(SECONDS * sample_rate))
        about = {"source": "noise", "group": str(i)}
        yield Clip(sound.astype(np.float32), sample_rate, None, "", about, f"noise {i}")


def apart(what: str) -> dict[str, float]:
    """The same in a process of its own, on one thread."""
    done = subprocess.run(
        [sys.executable, __file__, "--deed", what], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure(repeats: int = 5) -> list[dict]:
    """Scoreboard entries: name, value, low, high, n, unit, seconds."""
    started = time.perf_counter()
    errors: dict[str, list[float]] = {}
    for _ in range(repeats):
        planned = apart("plan")
        taken = apart("play") | apart("harvest")
        for name, value in taken.items():
            stage, kind = name.split(".")
            kind = {"memory": "memory", "seconds": "time"}[kind]
            error = (planned[name] - value) / value
            errors.setdefault(f"plan.{kind}_error.{stage}", []).append(error)
            print(f"{name}: planned {planned[name]:.4g}, took {value:.4g}", file=sys.stderr)
        errors.setdefault("plan.probe", []).append(planned["probe"])
    for kind in ("memory", "time"):
        stages = [f"plan.{kind}_error.{stage}" for stage in ("play", "harvest")]
        worst = max(stages, key=lambda name: abs(np.median(errors[name])))
        errors[f"plan.{kind}_error"] = errors[worst]
    took = time.perf_counter() - started
    entries = []
    for name, values in sorted(errors.items()):
        found = stats.bootstrap(np.array(values), np.median)
        unit = "s" if name == "plan.probe" else "relative error"
        entries.append(dict(name=name, value=found.value, low=found.low, high=found.high,
                            n=found.n, unit=unit, seconds=took))  # fmt: skip
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the entries to this file")
    parser.add_argument("--deed", choices=("plan", "play", "harvest"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.deed:
        print(json.dumps(deed(asked.deed)))
        return
    entries = measure(asked.repeats)
    for e in entries:
        print(f"{e['name']:28} {e['value']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}]  {e['unit']}")
    if asked.json:
        runs.save_json(asked.json, {"entries": entries, "versions": runs.versions()})


if __name__ == "__main__":
    main()
