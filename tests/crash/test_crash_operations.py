"""Long operations under faults: killed, starved of disk, locked out, on a wrong clock, doubled.

Operations and faults are those of benchmarks/crash.py, which meets each many times; here each meets
a few, at seeded instants.
"""

import errno
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from musae_utils import runs
from musae_utils.runs import Run, RunError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import crash  # noqa: E402

sys.path.remove(str(BENCHMARKS))

FAST = ("harvest", "sae", "nano", "atlas", "labels", "table")
slow = [pytest.param(name, marks=pytest.mark.slow) for name in ("sweep", "book")]
names = pytest.mark.parametrize("name", [*FAST, *slow])
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.fixture(scope="module")
def peace(tmp_path_factory):
    """Seconds and result of each operation in peace, found out when first asked for."""
    known, place = {}, tmp_path_factory.mktemp("peace")
    crash._write_chapters(place / "repository")

    def of(name):
        if name not in known:
            crash.prepare([name])
            known[name] = crash.in_peace(crash.OPERATIONS[name], place / name)
        return known[name]

    return of


@pytest.fixture
def place(tmp_path):
    """A folder whose children anybody may look into, beside the chapters."""
    crash._write_chapters(tmp_path / "repository")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and os.geteuid() == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


@names
def test_killed_it_ends_with_the_same_result(name, peace, place):
    took, right = peace(name)
    rng, killed = np.random.default_rng(1), 0
    for i in itertools.count():
        said = crash.killed(crash.OPERATIONS[name], place / f"{i}", rng.uniform(0, took), right)
        killed += said is not None
        assert not said
        if killed == (1 if name in ("sweep", "book") else 2) or i == 30:
            break
    assert killed


@names
def test_on_a_clock_that_went_back_it_ends_with_the_same_result(name, peace, place):
    took, right = peace(name)
    for i in range(30):
        said = crash.clock(crash.OPERATIONS[name], place / f"{i}", took * 0.6 / (i + 1), right)
        assert not said
        if said is not None:
            break
    else:
        pytest.fail("it was never killed")


@names
def test_of_two_at_once_none_spoils_the_other(name, peace, place):
    took, right = peace(name)
    assert not crash.two_at_once(crash.OPERATIONS[name], place / "x", took / 4, right)


@names
def test_a_read_only_folder_is_said(name, peace, place):
    assert not crash.read_only(crash.OPERATIONS[name], place / "x", peace(name)[1])


@names
def test_a_disk_that_fills_up_is_said_and_spoils_nothing(name, peace, place):
    _, right = peace(name)
    operation, flush = crash.OPERATIONS[name], runs._flush

    def filling(after):
        left = itertools.count(after, -1)

        def full(path):
            if next(left) <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(path)

        runs._flush = full

    for after in (0, 3):  # times that something reaches the disk
        folder = place / f"{after}"
        folder.mkdir()
        how = crash.run(operation.work, folder, lambda after=after: filling(after))
        assert how.code and how.ours and "is full" in how.said, how
        assert not crash.again(operation, folder, right)


# -- the faults themselves are real


def test_an_operation_that_keeps_half_a_file_does_not_survive(tmp_path):
    def careless(folder):
        path = folder / "x.txt"
        if not path.exists():
            with open(path, "w") as file:
                for i in range(200):
                    file.write(f"{i}\n")
                    file.flush()
                    time.sleep(0.002)

    operation = crash.Operation(careless, crash.files)
    took, right = crash.in_peace(operation, tmp_path / "peace")
    told = [crash.killed(operation, tmp_path / f"{i}", took * i / 5, right) for i in range(1, 5)]
    assert "another result" in told
    assert "it said" in crash.read_only(operation, tmp_path / "locked", right)


def test_figures_count_what_survived():
    kept = {"faults": {"kill": {"a": ["", ""], "b": ["", "another result"]}, "clock": {"a": [""]}}}
    made = crash.figures(kept)
    assert made["crash.survived"][0].value == 0.75 and made["crash.survived"][0].n == 4
    assert made["crash.survived.b"][0].value == 0.5 and made["crash.clock"][0].value == 1
    assert made["crash.survived"][0].low < 0.75 < made["crash.survived"][0].high


# -- what was found


def test_a_process_that_outlives_its_run_does_not_keep_the_folder(tmp_path):
    """A worker that was forked while the run was open, and goes on after a kill."""

    def parent(pipe):
        run = Run(tmp_path / "run", {})
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        worker.start()
        pipe.send(worker.pid)
        run.log(step=1)
        time.sleep(30)

    receive, send = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=parent, args=(send,))
    process.start()
    worker = receive.recv()
    try:
        with pytest.raises(RunError, match="in use"):
            Run(tmp_path / "run", {})
        process.kill()
        process.join()
        os.kill(worker, 0)  # it is still there
        Run(tmp_path / "run", {}).close()
    finally:
        os.kill(worker, 9)


def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path):
    script = "import os, sys; from musae_utils.runs import atomic_path\n"
    script += "with atomic_path(sys.argv[1]) as path: path.write_bytes(b'x'); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a[1].bin")])
    assert done.returncode == 9 and len(list(tmp_path.glob(".a*.partial"))) == 1
    runs.atomic_write(tmp_path / "a[1].bin", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a[1].bin"]


def nets(steps, folder, rate=3e-3):
    from musae_utils.models import training

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
    loss = lambda step: ((net(torch.ones(2, 4)) - 1).square().mean(),) * 2  # noqa: E731
    losses = lambda step: (loss(step)[0], loss(step)[1][None])  # noqa: E731
    movers = training.optimisers([net[0].weight], net, 0.02, rate)
    return training.fit("net", net, movers, losses, steps, folder / "net.pt", 2, 2)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    nets(4, tmp_path)
    assert nets(4, tmp_path)["history"]  # the same goes on
    for steps, rate in ((8, 3e-3), (2, 3e-3), (4, 1e-3)):
        with pytest.raises(RunError, match=r"net\.pt is of a training with"):
            nets(steps, tmp_path, rate)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_damaged_checkpoint_of_a_nano_part_is_named(keep, tmp_path):
    nets(4, tmp_path)
    path = tmp_path / "net.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"net\.pt is damaged or of another training"):
        nets(4, tmp_path)


def test_seconds_never_run_backwards(tmp_path, monkeypatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 10**6 * (1 + real() % 1))
    told = nets(60, tmp_path)
    seconds = [entry["seconds"] for entry in told["history"]]
    assert seconds == sorted(seconds) and 0 <= told["seconds"] < 1000
