"""What stands around the package: commands, pins, notebooks, and documents that agree."""

import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def requirements(name):
    """Yield the requirements of a file, comments and options left out."""
    for line in read(name).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if line and not line.startswith("-"):
            yield Requirement(line)


def tracked(pattern):
    listed = subprocess.run(
        ["git", "ls-files", "--", pattern], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


# -- commands ------------------------------------------------------------------------------------


def test_every_command_has_a_line_of_help():
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    helped = re.findall(r"^  make (\S+) +\S", printed, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)", read("Makefile"), re.MULTILINE)[1].split()
    assert helped == phony
    named = "help env book test test-fast lab nano scoreboard lint lock clean"
    assert set(named.split()) <= set(helped)


@pytest.fixture
def checkout(tmp_path):
    """A folder with what `make env` reads, and a Python that only writes down what it is told."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python3.11"
    python.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/told\n'
        f'case "$*" in *requirements.lock*) test ! -e {tmp_path}/no_network;; esac || exit 1\n'
        f'if [ "$2" = venv ]; then mkdir -p .venv/bin && cp {python} .venv/bin/python; fi\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    return tmp_path


def make_env(folder, python="./python3.11", **environment):
    (folder / "told").write_text("")
    done = subprocess.run(
        [shutil.which("make"), "env", f"PYTHON={python}"],
        cwd=folder, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    return done, (folder / "told").read_text()


def test_the_environment_is_made_once_in_the_right_order_and_goes_on_when_stopped(checkout):
    (checkout / "no_network").touch()
    done, told = make_env(checkout)
    assert done.returncode and "venv --clear .venv" in told
    (checkout / "no_network").unlink()

    done, told = make_env(checkout)
    assert done.returncode == 0, done.stderr
    assert "venv" not in told.replace(".venv", ""), "an environment that works is kept"
    steps = re.findall(r"-m pip install.*", told)
    assert re.search(r" torch==[\d.]+$", steps[0])
    assert steps[1].endswith("--no-deps -r requirements.lock")
    assert steps[2].endswith("--no-deps --no-build-isolation -e .")

    assert make_env(checkout)[1] == "", "nothing is done twice"
    future = os.stat(checkout / ".venv" / ".ready").st_mtime + 10
    os.utime(checkout / "requirements.lock", (future, future))
    assert "requirements.lock" in make_env(checkout)[1], "a new lock is installed"


def test_the_wrong_python_is_refused_in_a_sentence(checkout):
    old = checkout / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    path = f"{checkout}:{os.environ['PATH']}"
    done, _ = make_env(checkout, python="no-such-python3.11", PATH=path)
    assert done.returncode and "MuSAE needs Python 3.11" in done.stdout
    assert "make env PYTHON=" in done.stdout and not (checkout / ".venv").exists()


def test_ci_calls_the_tests_and_passes_their_verdict_on():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert "set -euo pipefail" in text and text.strip().splitlines()[-1] == "make test"


# -- pins ----------------------------------------------------------------------------------------


def test_conda_pip_and_make_agree():
    conda = yaml.safe_load(read("environment.yml"))["dependencies"]
    pins = dict(item.split("=", 1) for item in conda if isinstance(item, str) and "=" in item)
    torch = re.search(r"^TORCH +:= (\S+)", read("Makefile"), re.MULTILINE)[1]
    assert pins == {"python": "3.11", "pytorch": torch}
    overrides = {r.name: str(r.specifier) for r in requirements("overrides.txt")}
    assert overrides["torch"] == f"=={torch}"
    (pip,) = (item["pip"] for item in conda if isinstance(item, dict))
    assert pip == ["-r requirements.lock", "-e ."]
    project = tomllib.loads(read("pyproject.toml"))
    assert project["project"]["requires-python"] == ">=3.11"
    assert "python3.11" in read("Makefile")
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert 'python-version: "3.11"' in workflow.read_text()


def test_the_lock_holds_what_was_chosen():
    lock = {}
    for requirement in requirements("requirements.lock"):
        lock.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    assert "torch" not in lock, "torch is installed first, by itself"
    for chosen in requirements("requirements.in"):
        locked = lock[canonicalize_name(chosen.name)]
        for requirement in locked:
            (pin,) = requirement.specifier
            assert pin.operator == "==" and chosen.specifier.contains(pin.version), str(requirement)
    assert "never" not in read("requirements.lock")


def test_this_environment_is_the_locked_one():
    for requirement in requirements("requirements.lock"):
        if requirement.marker is None or requirement.marker.evaluate():
            installed = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(installed, prereleases=True), str(requirement)


# -- notebooks -----------------------------------------------------------------------------------

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "papermill" not in notebook.metadata and "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert "papermill" not in cell.metadata
        assert not re.search(r"^\s*[!%]\s*pip\b", cell.source, re.MULTILINE), "no pip in lessons"


def test_every_notebook_is_a_numbered_chapter_of_the_book():
    from musae_utils import book

    assert [path for path in NOTEBOOKS if not re.match(r"\d\d_[a-z0-9_]+$", path.stem)] == []
    assert [chapter.path for chapter in book.load_chapters(ROOT)] == NOTEBOOKS


def test_hooks_strip_what_lint_verifies():
    keys = '--extra-keys "metadata.papermill cell.metadata.papermill"'
    assert keys in read("Makefile") and keys in read(".pre-commit-config.yaml")
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "hooks need no network"
    assert all(h["entry"].startswith(".venv/bin/") for repo in hooks for h in repo["hooks"])


# -- documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documents_point_at_what_is_there(name):
    text = read(name)
    for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
        assert (ROOT / target).exists(), f"{name} points at {target}"
    commands = set(re.findall(r"^(\S+): .*##", read("Makefile"), re.MULTILINE))
    for command in re.findall(r"\bmake ([a-z-]+)\b(?=[ `\n])", "\n".join(re.findall(
        r"`make [^`]*`|^make .*", text, re.MULTILINE))):  # fmt: skip
        assert command in commands, f"{name} names make {command}"


def test_the_readme_quotes_the_scoreboard_as_it_is():
    from musae_utils import book

    text = read("README.md")
    assert all(text.count(mark) == 1 for mark in book.QUOTE)
    assert text == book.quote_scoreboard(ROOT), "run: python -m musae_utils.book --quote"


def test_every_source_is_in_the_references_once_and_complete():
    entries = re.findall(r"^@(\w+)\{(\w+),(.*?)^\}", read("book/references.bib"), re.M | re.S)
    keys = [key for _, key, _ in entries]
    assert len(keys) == len(set(keys)) and "hewitt2019designing" in keys
    for kind, key, body in entries:
        assert all(f"{field} " in body for field in ("author", "title", "year")), key
        assert kind != "misc" or "url" in body, key
        year = re.search(r"year\s*=\s*\{(\d{4})\}", body)[1]
        assert year in key, f"{key} is of {year}"


def test_licence_and_citation_agree():
    citation = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    from musae_utils import __version__

    assert citation["version"] == project["version"] == __version__
    assert citation["license"] == project["license"] == "MIT"
    assert "MIT License" in read("LICENSE") and "The MuSAE authors" in read("LICENSE")


def test_what_is_committed_stays_small():
    sizes = {path: path.stat().st_size for path in tracked("*")}
    large = {str(p.relative_to(ROOT)): s for p, s in sizes.items() if s > 1_000_000}
    assert all(name.startswith("data/") for name in large), large
    assert sum(sizes.values()) < 120_000_000


def test_data_files_are_no_pickles():
    assert not [
        p for p in tracked("data/*") if p.suffix in (".pkl", ".pickle", ".pt", ".th", ".bin")
    ]


def test_the_scoreboard_file_has_the_agreed_form():
    path = ROOT / "data" / "scoreboard.json"
    if not path.exists():
        pytest.skip("no scoreboard yet")
    entries = json.loads(path.read_text())
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names))
    for entry in entries:
        assert {"name", "value", "low", "high", "n", "unit", "seconds"} <= set(entry), entry


def test_pages_quote_figures_that_are_on_the_board():
    figures = {
        entry["name"]: entry
        for entry in json.loads((ROOT / "data" / "scoreboard.json").read_text())
    }
    quoted = {
        name
        for page in (ROOT / "book").glob("*.md")
        for name in re.findall(r"<!-- figure: ([\w.]+) -->", page.read_text())
    }
    assert quoted and quoted <= set(figures)
    # What the page on the reviewers says in words of early and late layers.
    early, late = (figures[f"atlas.coverage.frame.layer_{layer}"] for layer in (1, 5))
    assert early["low"] > late["high"]
