"""What several test modules share: the book itself, built once."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# One thread a process, also in what the tests start: on a busy machine threads that wait for each
# other spin, and a test of seconds takes minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# On a build server the same commit meets the same examples; at a desk they are new each time.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Built:
    """A finished `make book`: what it printed, how it ended and where the site is."""

    printed: str
    status: int
    site: Path


@pytest.fixture(scope="session")
def smoke_book() -> Built:
    """Every chapter in the smoke profile and the site, as a reader's `make book` makes them.

    Chapters whose sources have not changed since the last test run are not run again.
    """
    out = ROOT / "_build" / "test"
    command = [sys.executable, "-m", "musae_utils.book", "--profile", "smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return Built(done.stdout + done.stderr, done.returncode, out / "_build" / "html")
