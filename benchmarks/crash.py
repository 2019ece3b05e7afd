"""What is left after a crash: every long operation, killed, starved, locked out and confused.

    python benchmarks/crash.py [--kills 120] [--seed 0] [--only OPERATION ...] [--json FILE]

Each operation runs once in peace. Then it begins anew, in a folder of its own, and meets a fault:

===========  =====================================================================================
kill         ``kill -9`` at an instant drawn evenly from the time that it took in peace
full disk    a disk (tmpfs) that has room for a part of what it writes
read-only    a folder that it may not write to
clock        killed and taken up on a machine whose clock is a day behind, its files from tomorrow
two at once  a second process of the same operation in the same folder
===========  =====================================================================================

After the fault it is called again, as a reader would. It has **survived** if it then ends by itself
with the result that it has in peace, bit for bit, but for what tells the time. Where a fault leaves
it nothing to do but refuse (a read-only folder, a full disk), it has survived if it says so in a
sentence of this package, and ends with the same result once the fault is gone. Between fault and
second call, whatever can be read of its results must be whole, or be refused.

Processes are forked from one that has imported what they need, so that instants fall into the work.

=================  ===============================================================================
crash.survived     share of kills that were survived, and ``.OPERATION``
crash.full_disk, crash.read_only, crash.clock, crash.two_at_once    the same for other faults
=================  ===============================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process cannot use its parent's threads

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from musae_utils import runs
from musae_utils.runs import RunError
from musae_utils.stats import Interval, proportion

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "data" / "robustness.json"
POINT = {"model": "nano", "layer": 3, "path": "transformer.layers.3", "fingerprint": "ab" * 8}
TIMELESS = (".lock", "run.json", "artifacts.json")  # they tell when, or repeat checksums
DAY = 86_400
PATIENCE = 180  # seconds that an operation of about one may take


class Operation(NamedTuple):
    """Something long that can be taken up again.

    Attributes
    ----------
    work : callable
        Does it in a folder, or what is left of it.
    result : callable
        From the folder to what must be the same.
    read : callable, optional
        Reads whatever a stopped operation left, and raises if it finds it to be half.
    """

    work: Callable[[Path], None]
    result: Callable[[Path], Any]
    read: Callable[[Path], None] = lambda folder: None


# -- operations, small -----------------------------------------------------------------------------


def _clips(n: int = 24) -> list:
    from musae_utils.music import Clip

    rng, made = np.random.default_rng(0), []
    for i in range(n):
        audio = (0.1 * rng.standard_normal(8000)).astype(np.float32)
        made.append(Clip(audio, 16_000, None, "noise", {"group": f"g{i}"}, f"clip {i}"))
    return made


def _rows(clips: list, first: int) -> list:
    """Rows that depend on a clip's sound alone, and take a moment."""
    from musae_utils.activations import Frames

    time.sleep(0.01)
    seeds = [torch.from_numpy(clip.audio[:32].copy()) for clip in clips]
    return [Frames({POINT["path"]: torch.outer(torch.arange(40.0), x)}) for x in seeds]


def _harvest(folder: Path) -> None:
    from musae_utils.activations import write_store

    write_store(folder, _clips(), _rows, {POINT["path"]: POINT}, 50.0, dtype="float32", batch=2,
                rows_per_shard=160, progress=False)  # fmt: skip


def _opened(folder: Path) -> None:
    from musae_utils.activations import ActivationStore

    with contextlib.suppress(RunError, FileNotFoundError):
        if len(ActivationStore.open(folder).clips) != len(_clips()):
            raise AssertionError("a store opens that is not whole")


def _data() -> torch.Tensor:
    return torch.randn(512, 16, generator=torch.Generator().manual_seed(0))


def _train_sae(folder: Path) -> None:
    from musae_utils import sae

    config = sae.TrainConfig(sae.SAEConfig(16, 64, k=4), steps=120, batch_size=64, seed=1,
                             precision="fp32")  # fmt: skip
    sae.train(config, _data(), folder, checkpoint_every=0.02, progress=False)


def _trained(folder: Path) -> Any:
    from musae_utils import sae

    made = sae.SAE.load(folder / "sae.safetensors")
    return {name: x.numpy().tobytes() for name, x in made.state_dict().items()}


def _read_sae(folder: Path) -> None:
    from musae_utils import sae

    with contextlib.suppress(FileNotFoundError):
        sae.SAE.load(folder / "sae.safetensors")


def _train_nano(folder: Path) -> None:
    """As ``make nano`` trains its parts, with a network of a few numbers."""
    from musae_utils.models import training

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))

    def losses(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        loss = (net(x) - x.roll(1, 1)).square().mean()
        return loss, loss.detach()[None]

    movers = training.optimisers([net[0].weight], net, 0.02, 3e-3)
    training.fit("net", net, movers, losses, 80, folder / "net.pt", 10, 5)
    with runs.atomic_path(folder / "net.safetensors") as path:
        save_file({name: x.detach() for name, x in net.state_dict().items()}, path)


class _Coder:
    """The sparse autoencoder of the atlas: its features are its inputs."""

    hook_point, W_dec = POINT, torch.eye(32)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().relu()


@functools.cache
def _atlases() -> tuple:
    """Two atlases of one store, that differ."""
    from musae_utils.activations import write_store
    from musae_utils.features import FeatureAtlas

    with tempfile.TemporaryDirectory() as place:
        store = write_store(place, _clips(), _rows, {POINT["path"]: POINT}, 50.0,
                            dtype="float32", progress=False)  # fmt: skip
        return tuple(FeatureAtlas.of(_Coder(), store, examples=n) for n in (2, 3))


def _save_atlas(folder: Path) -> None:
    """Saved over and over, so that an instant falls into the saving; the first is the last."""
    for i in range(12):
        _atlases()[(i + 1) % 2].save(folder)


def _read_atlas(folder: Path) -> None:
    from musae_utils.features import FeatureAtlas

    with contextlib.suppress(RunError, FileNotFoundError):
        found = FeatureAtlas.load(folder)
        if not any(found.kinds == one.kinds and np.array_equal(found.examples, one.examples)
                   for one in _atlases()):  # fmt: skip
            raise AssertionError("an atlas opens that nobody saved")


def _save_labels(folder: Path) -> None:
    from musae_utils import labels

    for i in range(24):
        named = [labels.Label(feature=f, method="truth", text=f"{f} of {23 - i}")
                 for f in range(200)]  # fmt: skip
        labels.save(folder / "labels.json", named)


def _read_labels(folder: Path) -> None:
    from musae_utils import labels

    with contextlib.suppress(FileNotFoundError):
        said = [label.text.split(" of ") for label in labels.load(folder / "labels.json")]
        if len(said) != 200 or len({of for _, of in said}) != 1:
            raise AssertionError("labels of two savings in one file")


@functools.cache
def _model() -> Any:
    from musae_utils import models

    return models.load("nano", device="cpu")


def _sweep(folder: Path) -> None:
    from musae_utils import sae, steering

    knobs = [steering.Knob(_turned(), 7, s, peak=1.0) for s in (0.5, 1)]
    steering.sweep(_model(), "slow piano", [None, *knobs], 0.1, seed=1, folder=folder, batch=1)
    assert isinstance(_turned(), sae.SAE)


@functools.cache
def _turned() -> Any:
    from musae_utils import sae, trace

    hook = trace.HookPoint.of(_model(), 3)
    return sae.SAE(sae.SAEConfig(_model().dim, 64, k=4), hook)


def _listen(kind: str, number: int, split: str, clap: Any) -> dict[str, pd.DataFrame]:
    """In place of hearing a piece: numbers of its own."""
    time.sleep(0.004)
    rng = np.random.default_rng(number)
    return {"asked": pd.DataFrame({"chroma": rng.random(5), "kind": list("abcde")})}


def _table(folder: Path) -> None:
    """The table of returns, with pieces that take milliseconds to hear, and nothing fitted."""
    from unittest import mock

    from musae_utils.structure import returns

    pieces = {split: [("composed", i) for i in range(40)] for split in ("train", "test")}
    kept = {"listen": _listen, "SHARD": 4, "fit_all": lambda heard: {},
            "marked": lambda fitted, heard: {"heard": heard}}  # fmt: skip
    ears = "musae_utils.labels.ears.nano_clap"  # not asked by `_listen`
    with mock.patch.multiple(returns, **kept), mock.patch(ears, lambda: None):
        found = returns.run(folder, pieces)
    runs.atomic_write(folder / "heard.txt", found["heard"].to_csv(index=False))


def _write_chapters(root: Path) -> None:
    from nbformat import v4, write

    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    for n in (1, 2):
        cells = [
            v4.new_markdown_cell(f"# {n} A title\n\n**Why?**"),
            v4.new_code_cell('profile: str = "full"  # how', metadata={"tags": ["parameters"]}),
            v4.new_code_cell(f"import time; time.sleep(0.2); print({n} * 111)"),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        write(notebook, root / "notebooks" / f"0{n}_chapter.ipynb")


def _book(folder: Path) -> None:
    """Chapters as `book.make_book` runs them, without the site."""
    from musae_utils import book

    root = next(p / "repository" for p in folder.parents if (p / "repository").exists())
    chapters = [book.Chapter(p, _notebook(p)) for p in sorted(root.glob("notebooks/*.ipynb"))]
    with runs.Run(folder, {"profile": "smoke"}) as run:
        for chapter in chapters:
            chapter.key, chapter.parameters = book.key(chapter, ""), {"profile": "smoke"}
            if run.has(f"{chapter.name}.json") and run.has(chapter.path.name):
                chapter.record = runs.load_json(run.path(f"{chapter.name}.json"))
        if book.run_chapters(chapters, run):
            raise RuntimeError("a chapter failed")


def _notebook(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)


def _pages(folder: Path) -> Any:
    """What the chapters printed, and whether their records say that they are done."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        told = runs.load_json(folder / f"{path.stem}.json")
        texts = [out.get("text") for cell in _notebook(path).cells
                 for out in cell.get("outputs", [])]  # fmt: skip
        found[path.name] = [texts, told["state"], told["key"]]
    return found


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, without what tells the time."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in TIMELESS):
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([{k: v for k, v in row.items() if k != "seconds"}
                               for row in rows]).encode()  # fmt: skip
        elif path.suffix == ".gz":
            data = gzip.decompress(data)
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def _but(*names: str) -> Callable[[Path], dict[str, str]]:
    return lambda folder: {n: d for n, d in files(folder).items() if n not in names}


OPERATIONS = {
    "harvest": Operation(_harvest, files, _opened),
    "sae": Operation(_train_sae, _trained, _read_sae),
    "nano": Operation(_train_nano, _but("net.pt")),  # the checkpoint holds seconds
    "atlas": Operation(_save_atlas, files, _read_atlas),
    "labels": Operation(_save_labels, files, _read_labels),
    "sweep": Operation(_sweep, files),
    "table": Operation(_table, files),
    "book": Operation(_book, _pages),
}


SLOW = {"sweep": 0.3, "book": 0.2}  # share of kills, of what the others get


def prepare(names: list[str]) -> None:
    """Import and make what operations need, so that their processes need not."""
    from musae_utils import activations, book, features, labels, sae, steering  # noqa: F401
    from musae_utils.models import training  # noqa: F401
    from musae_utils.structure import returns  # noqa: F401

    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # a thread whose lock a fork could copy while it is held
    warnings.simplefilter("ignore")
    if "atlas" in names:
        _atlases()
    if "sweep" in names:
        _turned()
    if "book" in names:
        import papermill  # noqa: F401


# -- faults ----------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a process ended: its exit code, and what it said of an error that it raised."""

    code: int
    said: str = ""
    ours: bool = False  # a RunError


def _child(work: Callable, folder: Path, before: Callable[[], None] | None, out: Any) -> None:
    os.setpgid(0, 0)  # so that a kernel that it started can be found
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if before is not None:
        before()
    code, said, ours = 0, "", False
    try:
        work(folder)
    except BaseException as error:
        code, said, ours = 1, f"{type(error).__name__}: {error}", isinstance(error, RunError)
    out.send((said, ours))
    os._exit(code)


def start(work: Callable, folder: Path, before: Callable[[], None] | None = None):
    """A process that does the work in the folder, and the end of a pipe that tells."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(False)
    process = context.Process(target=_child, args=(work, folder, before, send))
    process.start()
    send.close()
    return process, receive


def ended(process: Any, receive: Any, kill_after: float | None = None) -> Ended:
    """Wait for a process, or kill it after so many seconds."""
    process.join(PATIENCE if kill_after is None else kill_after)
    if process.is_alive():
        process.kill()
        process.join()
        if kill_after is None:
            return Ended(process.exitcode, f"no end within {PATIENCE} seconds")
    with contextlib.suppress(EOFError):
        return Ended(process.exitcode, *receive.recv())
    return Ended(process.exitcode)


def run(work: Callable, folder: Path, before: Callable | None = None, kill_after=None) -> Ended:
    """Do the work in a process of its own."""
    return ended(*start(work, folder, before), kill_after)


def in_peace(operation: Operation, folder: Path) -> tuple[float, Any]:
    """Seconds that an operation takes, and its result.

    Raises
    ------
    RuntimeError
        It does not even end in peace.
    """
    folder.mkdir(parents=True)
    began = time.perf_counter()
    if (how := run(operation.work, folder)).code:
        raise RuntimeError(f"It failed without a fault: {how.said}")
    return time.perf_counter() - began, operation.result(folder)


def again(operation: Operation, folder: Path, right: Any, before: Callable | None = None) -> str:
    """Read what a fault left, do the work again, compare; "" or what was wrong."""
    try:
        operation.read(folder)
    except Exception as error:
        return f"what was left reads wrongly: {type(error).__name__}: {error}"
    if (how := run(operation.work, folder, before)).code:
        return f"the second call ended with {how.said or how.code}"
    try:
        return "" if operation.result(folder) == right else "another result"
    except Exception as error:
        return f"no result: {type(error).__name__}: {error}"


def killed(operation: Operation, folder: Path, instant: float, right: Any) -> str | None:
    """After a kill at an instant; None if the work was done before it."""
    folder.mkdir()
    if run(operation.work, folder, kill_after=instant).code != -9:
        return None
    return again(operation, folder, right)


def _yesterday() -> None:
    real = time.time
    time.time = lambda: real() - DAY


def clock(operation: Operation, folder: Path, instant: float, right: Any) -> str | None:
    """After a kill, on a machine whose clock is a day behind the files."""
    folder.mkdir()
    if run(operation.work, folder, kill_after=instant).code != -9:
        return None
    tomorrow = time.time() + DAY
    for path in folder.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    return again(operation, folder, right, _yesterday)


def two_at_once(operation: Operation, folder: Path, instant: float, right: Any) -> str:
    """A second process joins; each ends well or is refused in a sentence."""
    folder.mkdir()
    first = start(operation.work, folder)
    time.sleep(instant)
    second = start(operation.work, folder)
    for how in (ended(*first), ended(*second)):
        if how.code and not how.ours:
            return f"one of the two ended with {how.said or how.code}"
    return again(operation, folder, right)


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes at a folder; needs to be allowed to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
                   check=True, capture_output=True)  # fmt: skip
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def can_mount() -> bool:
    """Whether this process may mount a disk."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder), 2**20):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def full_disk(operation: Operation, folder: Path, size: int, right: Any) -> str | None:
    """On a disk that is too small, and again when there is room; None if it was large enough."""
    with disk(folder, size):
        inside = folder / "work"
        inside.mkdir()
        how = run(operation.work, inside)
        if not how.code:
            return None
        if not how.ours or ("full" not in how.said and "free" not in how.said):
            return f"it said: {how.said or how.code}"
        subprocess.run(["mount", "-o", f"remount,size={2**28}", str(folder)], check=True)
        return again(operation, inside, right)


def _nobody() -> None:
    if os.geteuid() == 0:  # whom no permission stops
        os.setgroups([])
        os.setgid(65_534)
        os.setuid(65_534)


def read_only(operation: Operation, folder: Path, right: Any) -> str:
    """In a folder that may not be written to, and again when it may."""
    folder.mkdir()
    folder.chmod(0o555)
    how = run(operation.work, folder, _nobody)
    folder.chmod(0o755)
    if not how.code or not how.ours:
        return f"it said: {how.said or how.code}"
    return again(operation, folder, right)


# -- measuring -------------------------------------------------------------------------------------


def measure(
    kills: int = 120, seed: int = 0, only: list[str] | None = None, others: int = 2,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, list]]:  # fmt: skip
    """What became of each operation at each fault.

    Parameters
    ----------
    kills : int
        Over all operations together.
    others : int
        Times that each operation meets each other fault.

    Returns
    -------
    dict of fault to dict of operation to list of str
        "" where it was survived, else what was wrong.
    """
    names = list(only or OPERATIONS)
    prepare(names)
    rng, found = np.random.default_rng(seed), {}
    mounts = can_mount()
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None  # killed processes lose no disk's cache
    with tempfile.TemporaryDirectory(dir=shm) as place:
        Path(place).chmod(0o755)  # for the user whom permissions stop
        _write_chapters(Path(place) / "repository")
        for name in names:
            operation = OPERATIONS[name]
            took, right = in_peace(operation, Path(place) / f"{name}-peace")
            size = sum(p.stat().st_size for p in (Path(place) / f"{name}-peace").rglob("*")
                       if p.is_file())  # fmt: skip
            counter = iter(range(10**6))

            def met(fault: str, times: int, by: Callable, name=name, counter=counter) -> None:
                told: list[str] = []
                for _ in range(10 * times):
                    if len(told) == times:
                        break
                    folder = Path(place) / f"{name}-{next(counter)}"
                    said = by(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    if said is not None:  # else the work was done before the fault
                        told.append(said)
                found.setdefault(fault, {})[name] = told
                wrong = [words for words in told if words]
                say(f"{name:8} {fault:12} {len(told) - len(wrong)} of {len(told)}  {wrong[:2]}")

            def at(fault: Callable, operation=operation, took=took, right=right) -> Callable:
                return lambda folder: fault(operation, folder, rng.uniform(0, took), right)

            whole = sum(SLOW.get(one, 1) for one in names)
            met("kill", -round(-kills * SLOW.get(name, 1) // whole), at(killed))
            met("clock", others, at(clock))
            met("two_at_once", others, at(two_at_once))
            met("read_only", 1, lambda f, o=operation, r=right: read_only(o, f, r))
            if mounts:
                pages = -(-size // 4096)
                met("full_disk", others, lambda f, o=operation, r=right, p=pages: full_disk(
                    o, f, 4096 * int(rng.integers(2, max(3, p // 2))), r))  # fmt: skip
    return found


def load(path: Path = TABLE) -> dict:
    """What was kept: ``provenance``, and by fault and operation what `measure` gave (``faults``).

    Raises
    ------
    FileNotFoundError
        It was never made.
    """
    if not Path(path).exists() or "crash" not in (kept := runs.load_json(path)):
        raise FileNotFoundError(f"{path} holds no crashes: python benchmarks/crash.py makes it.")
    return kept["crash"]


def figures(kept: dict) -> dict[str, tuple[Interval, str]]:
    """The headlines of what `load` gave, by their names on the scoreboard: see the top."""
    made = {}
    for fault, by in kept["faults"].items():
        name = "crash.survived" if fault == "kill" else f"crash.{fault}"
        told = [words for some in by.values() for words in some]
        made[name] = (proportion(told.count(""), len(told)), "share")
        if fault == "kill":
            for operation, some in by.items():
                made[f"{name}.{operation}"] = (proportion(some.count(""), len(some)), "share")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=120, help="over all operations")
    parser.add_argument("--others", type=int, default=2, help="of each other fault, an operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(OPERATIONS))
    parser.add_argument("--json", type=Path, default=TABLE)
    asked = parser.parse_args()
    if not hasattr(os, "fork"):
        sys.exit("This benchmark forks processes, which this system cannot: run it on Linux.")
    faults = measure(asked.kills, asked.seed, asked.only, asked.others)
    about = {"versions": runs.versions(), "seed": asked.seed,
             "date": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
    found = {"provenance": about, "faults": faults}
    if not asked.only:  # a part of the table would pose as the whole
        kept = runs.load_json(asked.json) if asked.json.exists() else {}
        runs.save_json(asked.json, {**kept, "crash": found})
    for name, (value, unit) in figures(found).items():
        print(f"{name:28} {value} {unit}")


if __name__ == "__main__":
    main()
