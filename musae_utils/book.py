"""Run the chapters with papermill and build the site: ``python -m musae_utils.book`` (`make book`).

One folder, ``_build/``, takes everything::

    executed/PROFILE-MODEL/   the executed chapters and a record of each (a `musae_utils.runs.Run`)
    source/PROFILE-MODEL/     what jupyter-book reads: ``book/``, executed chapters, status page
    html/                     the site, which works from the file system and without a network

What a chapter writes into ``notebooks/pages/NAME`` (the feature explorer) goes along with it and is
found beside its page.

A chapter is run again only when something that can change its result did: its own source, its
parameters, the package, ``data/`` or the lock file. A chapter that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import yaml

from musae_utils import runs

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("smoke", "full")
GENERATED = "book/status"  # the only page in the table of contents that no file stands behind
TIMES = "<!-- chapters -->"  # in book/intro.md: where the list of chapters goes
FIGURE = re.compile(r"<!-- figure: ([\w.]+) -->")  # in any page of book/: one of the scoreboard's
QUOTE = ("<!-- scoreboard: begin -->", "<!-- scoreboard: end -->")  # in README.md
PAGES = "pages"  # notebooks/pages/NAME: pages that a chapter writes for readers to open
NO_STATIC_FORM = re.compile(r"application/vnd\.(jupyter\.widget-view|plotly|bokeh|vega)")


class BookError(Exception):
    """Something a reader of the message can put right; shown without a traceback."""


# -- chapters ------------------------------------------------------------------------------------


@dataclass(eq=False)
class Chapter:
    """One notebook of the book, and what became of it in this profile and with this model."""

    path: Path
    notebook: nbformat.NotebookNode
    key: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)  # state, seconds, finished, error

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name.split("_")[0]

    @property
    def state(self) -> str:
        """``done``, ``failed``, ``stale`` (its sources have changed since) or ``not run``."""
        if not self.record:
            return "not run"
        return self.record["state"] if self.record["key"] == self.key else "stale"

    @property
    def title(self) -> str:
        return self._heading()[0]

    @property
    def question(self) -> str:
        return self._heading()[1]

    def _heading(self) -> tuple[str, str]:
        cells = [cell.source for cell in self.notebook.cells[:3] if cell.cell_type == "markdown"]
        text = re.sub(r"^> ?", "", "\n\n".join(cells), flags=re.MULTILINE)
        found = re.search(r"^# +(.+?) *$", text, re.MULTILINE)
        if not found:
            raise BookError(f"{self.path.name} does not begin with a title ('# …').")
        title = re.sub(r"^\d+\W+", "", found[1])
        first = " ".join(text[found.end() :].strip().split("\n\n")[0].split()).strip(" *_")
        return title, first if first.endswith("?") else ""


def load_chapters(root: Path) -> list[Chapter]:
    """Read ``notebooks/NN_*.ipynb`` and hold them against ``book/_toc.yml``.

    Raises
    ------
    BookError
        A notebook is listed and missing, there and not listed, or not a notebook.
    """
    listed = [entry for entry in toc_files(root) if entry.startswith("notebooks/")]
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    found = [f"notebooks/{path.stem}" for path in paths]
    if missing := [entry for entry in listed if entry not in found]:
        raise BookError(f"book/_toc.yml lists {_and(missing)}, but there is no such notebook.")
    if unlisted := [entry for entry in found if entry not in listed]:
        raise BookError(
            f"{_and(unlisted)} is not in the book: add `- file: {unlisted[0]}` to book/_toc.yml."
        )
    chapters = []
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of cells without ids
                notebook = nbformat.read(path, as_version=4)
                nbformat.validate(notebook)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BookError(f"{path} is not a notebook ({reason}).") from None
        chapters.append(Chapter(path, notebook))
    return sorted(chapters, key=lambda chapter: listed.index(f"notebooks/{chapter.name}"))


def toc_files(root: Path) -> list[str]:
    """Return every ``root`` and ``file`` entry of ``book/_toc.yml``, in order, without suffix."""

    def walk(node: Any) -> Iterable[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            for name, value in node.items():
                if name in ("root", "file"):
                    yield re.sub(r"\.(ipynb|md)$", "", str(value))
                else:
                    yield from walk(value)

    path = root / "book" / "_toc.yml"
    try:
        return list(walk(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise BookError(f"There is no {path}, which lists the chapters.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BookError(f"{path} is not a table of contents in YAML: {error}") from None


def select(chapters: Sequence[Chapter], only: str | None) -> list[Chapter]:
    """Return the chapters that ``only`` ("03", "3", "01,03" or a whole name) means."""
    if not only:
        return list(chapters)
    chosen = []
    for wish in re.split(r"[,\s]+", only.strip()):
        hits = [c for c in chapters if wish.zfill(2) == c.number or wish in (c.name, c.path.name)]
        if not hits:
            there = ", ".join(chapter.name for chapter in chapters) or "none yet"
            raise BookError(f"There is no chapter {wish!r}. The chapters: {there}.")
        chosen += hits
    return [chapter for chapter in chapters if chapter in chosen]


# -- parameters ----------------------------------------------------------------------------------


def declared_parameters(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return what the notebook's ``parameters`` cell declares, as papermill reads it."""
    import papermill

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return papermill.inspect_notebook(str(path))
    except Exception as error:
        raise BookError(f"The parameters of {path.name} cannot be read: {error}") from None


def set_parameters(
    chapters: Sequence[Chapter],
    chosen: Sequence[Chapter],
    profile: str,
    model: str,
    data: str | None,
    extra: Mapping[str, str],
) -> None:
    """Give each chapter its parameters; refuse any that a chosen one does not declare.

    ``profile`` is every chapter's; ``model`` and ``data`` go to the chapters that declare them,
    of which one must be chosen; ``extra`` goes to the chosen, each of which must declare it.
    """
    offered = {"profile": profile, "model": model, **({"data": data} if data else {})}
    used = set()
    for chapter in chapters:
        declared = declared_parameters(chapter.path)
        if "profile" not in declared:
            raise BookError(
                f"{chapter.path.name} declares no parameter `profile`: give it a cell tagged "
                '`parameters` with `profile: str = "full"`.'
            )
        chapter.parameters = {name: offered[name] for name in offered if name in declared}
        if chapter not in chosen:
            continue
        used |= chapter.parameters.keys()
        for name, text in extra.items():
            if name not in declared:
                raise BookError(
                    f"{chapter.path.name} has no parameter {name!r}. It declares:\n"
                    + "\n".join(
                        f"  {p['name']} = {p['default']}   {p['help']}".rstrip()
                        for p in declared.values()
                    )
                )
            is_text = declared[name]["inferred_type_name"].startswith("str")
            try:
                chapter.parameters[name] = text if is_text else yaml.safe_load(text)
            except (yaml.YAMLError, ValueError, RecursionError):
                raise BookError(
                    f"{name} = {text[:80]!r} cannot be read as a value; it is of the kind "
                    f"{declared[name]['default']}."
                ) from None
    for name, value in (("model", model if model != "nano" else None), ("data", data)):
        if chosen and value and name not in used:
            raise BookError(
                f"{name} = {value!r} was given, but {_and(c.path.name for c in chosen)} "
                f"declares no parameter `{name}`."
            )


def key(chapter: Chapter, shared: str) -> str:
    """Hash what decides a chapter's result; ``shared`` is `shared_hash` of the repository.

    Outputs and execution counts are left out: running a notebook in JupyterLab changes nothing.
    """
    cells = [
        [cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))]
        for cell in chapter.notebook.cells
    ]
    folders = [
        _stat_hash(Path(chapter.parameters[name]))
        for name in ("model", "data")
        if name in chapter.parameters and os.path.isdir(chapter.parameters[name])
    ]
    return _digest([cells, chapter.parameters, folders, shared])


def shared_hash(root: Path) -> str:
    """Hash the package (this module apart), ``data/`` and the lock file."""
    files = [*root.glob("musae_utils/**/*"), *root.glob("data/**/*"), root / "requirements.lock"]
    return _digest(
        [str(path.relative_to(root)), runs.sha256(path)]
        for path in sorted(files)
        if path.is_file() and path.name != "book.py" and "__pycache__" not in path.parts
    )


def _stat_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _digest([str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files)


def _digest(value: Any) -> str:
    value = value if isinstance(value, list) else list(value)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -- running -------------------------------------------------------------------------------------


def run_chapters(chosen: Sequence[Chapter], run: runs.Run) -> list[Chapter]:
    """Execute the chosen chapters that are not up to date; return those that failed."""
    begun = time.monotonic()
    expected = {chapter.name: chapter.record.get("seconds") for chapter in chosen}
    todo = [chapter for chapter in chosen if chapter.state != "done"]
    failed = []
    for number, chapter in enumerate(chosen, 1):
        head = f"[{number}/{len(chosen)}] {chapter.name}"
        if chapter not in todo:
            print(f"{head}: up to date", flush=True)
            continue
        left = _remaining(todo[todo.index(chapter) :], expected)
        print(f"{head}: running … (elapsed {_clock(time.monotonic() - begun)}, {left})", flush=True)
        execute(chapter, run)
        expected[chapter.name] = chapter.record["seconds"]
        word = "done" if chapter.state == "done" else "FAILED"
        print(
            f"{head}: {word} in {_clock(chapter.record['seconds'])} "
            f"(elapsed {_clock(time.monotonic() - begun)}, "
            f"{_remaining(todo[todo.index(chapter) + 1 :], expected)})",
            flush=True,
        )
        if chapter.state == "failed":
            failed.append(chapter)
            print(_indent(chapter.record["error"]), flush=True)
            print(f"    kept as {run.folder / chapter.path.name}", flush=True)
    return failed


def execute(chapter: Chapter, run: runs.Run) -> None:
    """Run one chapter, in its own folder as JupyterLab does; keep the notebook and a record."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    partial = run.folder / f".{chapter.name}.partial.ipynb"  # papermill writes after each cell
    pages = chapter.path.parent / PAGES / chapter.name
    shutil.rmtree(pages, ignore_errors=True)
    begun, error = time.monotonic(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(chapter.path),
                str(partial),
                parameters=chapter.parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(chapter.path.parent),
                extra_arguments=["--log-level=ERROR"],  # the kernel's own remarks, not the code's
            )
        error = hollow_outputs(nbformat.read(partial, as_version=4))
    except PapermillExecutionError as failure:
        line = next((line for line in failure.source.splitlines() if line.strip()), "")
        error = (
            f"{chapter.path.name}, cell In [{failure.exec_count}], which begins `{line.strip()}`:\n"
            f"{failure.ename}: {_plain_text(failure.evalue)}"
        )
    except Exception as failure:  # a kernel that died, a disk that filled up
        error = f"{chapter.path.name}: {type(failure).__name__}: {_plain_text(str(failure))}"
    chapter.record = {
        "key": chapter.key,
        "state": "failed" if error else "done",
        "seconds": round(time.monotonic() - begun, 2),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "parameters": chapter.parameters,
        "error": error,
    }
    kept = run.folder / PAGES / chapter.name
    shutil.rmtree(kept, ignore_errors=True)
    if pages.is_dir():
        shutil.copytree(pages, kept)
    if partial.exists():
        run.save(chapter.path.name, partial.read_bytes())
        partial.unlink()
    run.save(f"{chapter.name}.json", json.dumps(chapter.record, indent=1))


def hollow_outputs(notebook: nbformat.NotebookNode) -> str | None:
    """Say which cells show something that a page cannot: a widget or figure without HTML.

    jupyter-book drops such an output without a word. A cell may show a widget when it also shows
    its static form (HTML or an image).
    """
    hollow = []
    for cell in notebook.cells:
        kinds = [set(output.get("data", {})) for output in cell.get("outputs", [])]
        live = [k for k in kinds if any(map(NO_STATIC_FORM.match, k)) and not _static(k)]
        if live and not any(map(_static, kinds)):
            hollow.append(f"In [{cell.execution_count}] ({cell.source.strip().splitlines()[-1]})")
    if not hollow:
        return None
    return (
        f"{_and(hollow)} shows a widget or an interactive figure with no static form, which the "
        "published page would lose: use musae_utils.show (figure for matplotlib, choices for "
        "widgets) and plain tqdm, or display its HTML as well."
    )


def _static(kinds: set[str]) -> bool:
    return any(kind == "text/html" or kind.startswith("image/") for kind in kinds)


# -- the site ------------------------------------------------------------------------------------


def stage(root: Path, source: Path, chapters: Sequence[Chapter], run: runs.Run, about: str) -> None:
    """Lay out what jupyter-book reads: the pages of ``book/``, the chapters and the status page."""
    wanted: dict[str, bytes] = {"_config.yml": (root / "_config.yml").read_bytes()}
    for path in (root / "book").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            wanted[path.relative_to(root).as_posix()] = path.read_bytes()
    figures = {entry["name"]: entry for entry in _board(root) or ()}
    for name in [name for name in wanted if name.endswith(".md")]:
        text = wanted[name].decode()
        wanted[name] = FIGURE.sub(lambda found: _told(figures.get(found[1])), text).encode()
    intro = wanted["book/intro.md"].decode()
    wanted["book/intro.md"] = intro.replace(TIMES, chapter_table(chapters)).encode()
    wanted["book/_toc.yml"] = numbered_toc(root, chapters).encode()
    wanted[f"{GENERATED}.md"] = status_page(root, chapters, about).encode()
    for chapter in chapters:
        wanted[f"notebooks/{chapter.path.name}"] = page(chapter, run).encode()
    for path in source.rglob("*"):
        if path.is_file() and path.relative_to(source).as_posix() not in wanted:
            path.unlink()
    for name, content in wanted.items():  # Sphinx reads again only what has a new date
        target = source / name
        if not target.exists() or target.read_bytes() != content:
            runs.atomic_write(target, content)


def numbered_toc(root: Path, chapters: Sequence[Chapter]) -> str:
    """Return ``book/_toc.yml`` with each chapter's number before its title in the sidebar."""
    titles = {f"notebooks/{c.name}": f"{c.number} {c.title}" for c in chapters}

    def give_titles(node: Any) -> None:
        for child in node if isinstance(node, list) else node.values():
            if isinstance(child, (dict, list)):
                give_titles(child)
        if isinstance(node, dict) and str(node.get("file")).removesuffix(".ipynb") in titles:
            node["title"] = titles[node["file"].removesuffix(".ipynb")]

    toc = yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8"))
    give_titles(toc)
    return yaml.safe_dump(toc, allow_unicode=True, sort_keys=False)


def page(chapter: Chapter, run: runs.Run) -> str:
    """Return the notebook that becomes the chapter's page, as JSON."""
    executed = chapter.state != "not run" and run.has(chapter.path.name)
    if executed:
        notebook = nbformat.read(run.path(chapter.path.name), as_version=4)
    else:
        notebook = nbformat.from_dict(chapter.notebook)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)  # kilobytes of state for widgets that no page shows
    kept = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "papermill-error-cell-tag" in tags:
            continue
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "hide-input"]
        cell.outputs = [o for o in cell.get("outputs", []) if _shows(o)]
        if cell.cell_type != "code":
            del cell["outputs"]
        kept.append(cell)
    note = {
        "not run": "This chapter has not been run in this build, so it shows no results: "
        f"`make book ONLY={chapter.number}`.",
        "stale": "What this chapter shows was made by an earlier version of its sources.",
        "failed": "This chapter stopped with an error:\n\n~~~text\n"
        f"{chapter.record.get('error')}\n~~~",
    }.get(chapter.state)
    if note:
        title = next((i for i, c in enumerate(kept) if c.source.lstrip().startswith("# ")), 0)
        fence = ":::::{warning}\n" + note + "\n:::::"
        kept.insert(title + 1, nbformat.v4.new_markdown_cell(fence, id=f"note-{chapter.number}"))
    notebook.cells = kept
    return nbformat.writes(notebook)


def _shows(output: Mapping[str, Any]) -> bool:
    kinds = set(output.get("data", {}))
    return _static(kinds) or not any(map(NO_STATIC_FORM.match, kinds))


def chapter_table(chapters: Sequence[Chapter]) -> str:
    """Return the landing page's list of chapters, with the time each took in this build."""
    if not chapters:
        return ""
    rows = [
        f"| {c.number} | {_link(c, c.title)} | {_cell(c.question)} | {_took(c)} |" for c in chapters
    ]
    return "\n".join(["| | Chapter | Its question | Ran in |", "|--|--|--|--:|", *rows])


def status_page(root: Path, chapters: Sequence[Chapter], about: str) -> str:
    """Return the status page (Markdown): what was run, when, how long; and the scoreboard."""
    lines = [
        "# Status of this build",
        "",
        f"{about} Every page shows what its code printed, drew and played on that occasion: "
        "nothing is pasted in.",
        "",
    ]
    if chapters:
        lines += ["| Chapter | State | Took | Finished |", "|--|--|--:|--|"]
        for c in chapters:
            finished = c.record.get("finished", "").replace("T", " ")[:16]
            link = _link(c, f"{c.number} {c.title}")
            lines.append(f"| {link} | {c.state} | {_took(c)} | {finished} |")
        total = sum(c.record.get("seconds", 0) for c in chapters)
        lines += ["", f"All of them together took {_clock(total)} on this machine."]
    lines += ["", "## Software", "", "| Package | Version |", "|--|--|"]
    lines += [f"| {name} | {version} |" for name, version in runs.versions().items()]
    lines += ["", "## Scoreboard", ""]
    if (entries := _board(root)) is not None:
        lines += [
            "Recomputed from what is shipped by `make scoreboard`; intervals are 95 %.",
            "",
            scoreboard_table(entries),
        ]
    else:
        lines += ["Not computed yet: `make scoreboard`."]
    return "\n".join(lines) + "\n"


def scoreboard_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return scoreboard entries ({name, value, low, high, n, unit, …}) as a Markdown table."""
    rows = ["| Figure | Value | 95 % interval | n |", "|--|--:|--:|--:|"]
    for entry in entries:
        low, high = entry.get("low"), entry.get("high")
        span = f"{_figure(low)} – {_figure(high)}" if low is not None and high is not None else ""
        value = f"{_figure(entry['value'])} {entry.get('unit') or ''}".strip()
        count = "" if entry.get("n") is None else entry["n"]
        rows.append(f"| `{entry['name']}` | {value} | {span} | {count} |")
    return "\n".join(rows)


def _board(root: Path) -> list[dict[str, Any]] | None:
    """The scoreboard's entries; None where it was not computed yet."""
    path = root / "data" / "scoreboard.json"
    return runs.load_json(path) if path.exists() else None


def _told(entry: Mapping[str, Any] | None) -> str:
    """A figure in a sentence: its value, its unit and its interval."""
    if entry is None:
        return "*not measured yet*"
    value = f"{_figure(entry['value'])} {entry.get('unit') or ''}".strip()
    ends = [entry.get("low"), entry.get("high")]
    return value if None in ends else f"{value} [{', '.join(map(_figure, ends))}]"


def quote_scoreboard(root: Path = ROOT) -> str:
    """Return ``README.md`` with the headlines of ``data/scoreboard.json``."""
    text = (root / "README.md").read_text(encoding="utf-8")
    table = "Not computed yet."
    if (entries := _board(root)) is not None:
        table = scoreboard_table([entry for entry in entries if entry.get("headline")])
    pattern = re.compile(f"(?<={re.escape(QUOTE[0])}\n).*?(?={re.escape(QUOTE[1])})", re.DOTALL)
    return pattern.sub(lambda _: f"\n{table}\n\n", text)


def build_site(source: Path, out: Path) -> None:
    """Run jupyter-book; any warning, also of a broken reference, is an error.

    Raises
    ------
    BookError
        With jupyter-book's warnings; its whole output is kept in ``site.log``.
    """
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "--path-output", str(out.parent)]
    command += ["--toc", str(source / "book" / "_toc.yml"), "-W", "-n", "--keep-going"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    log = out / "site.log"
    text = _plain_text(done.stdout + done.stderr)
    runs.atomic_write(log, text)
    if done.returncode:
        lines = [line for line in text.splitlines() if re.search(r"WARNING|ERROR|Error:", line)]
        found = "\n".join(lines[:20]) or "\n".join(text.splitlines()[-20:])
        raise BookError(f"jupyter-book refused the book (all it said is in {log}):\n{found}")


# -- words ---------------------------------------------------------------------------------------


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _link(chapter: Chapter, text: str) -> str:
    return f"[{_cell(text)}](../notebooks/{chapter.path.name})"


def _took(chapter: Chapter) -> str:
    return _clock(chapter.record["seconds"]) if chapter.record else ""


def _remaining(chapters: Sequence[Chapter], expected: Mapping[str, float | None]) -> str:
    if not chapters:
        return "nothing remains"
    known = [seconds for seconds in expected.values() if seconds is not None]
    if not known:
        return "remaining time not known yet"
    mean = sum(known) / len(known)
    total = sum(mean if expected[c.name] is None else expected[c.name] for c in chapters)
    return f"about {_clock(total)} remain"


def _figure(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _and(names: Iterable[str]) -> str:
    *first, last = list(names)
    return f"{', '.join(first)} and {last}" if first else last


def _plain_text(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def slug(model: str) -> str:
    """Return a folder name for a model's name; two folders of one name stay apart."""
    # os.path.isdir, unlike Path.is_dir, calls a name that is too long for a path no folder.
    if os.path.isdir(model):
        where = Path(model).resolve()
        return f"{slug(where.name)}-{hashlib.sha256(str(where).encode()).hexdigest()[:6]}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model)[:100].strip("-.") or "model"


# -- the command ---------------------------------------------------------------------------------


def make_book(
    root: Path = ROOT,
    out: Path | None = None,
    profile: str = "full",
    model: str = "nano",
    only: str | None = None,
    data: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> list[Chapter]:
    """Run the chapters and build the site.

    Parameters
    ----------
    root : Path
        The repository.
    out : Path, optional
        The folder that gets ``_build``, with all that is made (default: the repository).
    profile : {"full", "smoke"}
    model : str
        ``nano``, a published MusicGen or a folder: see `musae_utils.models.load`.
    only : str, optional
        Numbers of the chapters to run ("03" or "01,03"). The site shows all of them.
    data : str, optional
        A folder of audio files, for the chapters that take one.
    extra : mapping of str to str, optional
        Further parameters by name.

    Returns
    -------
    list of Chapter
        The chapters that failed.

    Raises
    ------
    BookError, musae_utils.runs.RunError
        Nothing could be run, or the site could not be built.
    """
    out = (out or root).resolve() / "_build"
    if data:
        if not os.path.isdir(data):
            raise BookError(f"data = {data!r} is not a folder: give one that holds audio files.")
        data = str(Path(data).resolve())
    if os.path.isdir(model):
        model = str(Path(model).resolve())
    chapters = load_chapters(root)
    chosen = select(chapters, only)
    set_parameters(chapters, chosen, profile, model, data, extra or {})
    shared = shared_hash(root)
    name = f"{profile}-{slug(model)}"
    asked = {"profile": profile, "model": model}
    with runs.Run(out / "executed" / name, asked) as run:
        for chapter in chapters:
            chapter.key = key(chapter, shared)
            if run.has(f"{chapter.name}.json") and run.has(chapter.path.name):
                chapter.record = runs.load_json(run.path(f"{chapter.name}.json"))
        failed = run_chapters(chosen, run)
        begun = time.monotonic()
        print("Building the site …", flush=True)
        today = datetime.now().astimezone().strftime("%Y-%m-%d")
        about = f"Built on {today} in the `{profile}` profile with the model `{Path(model).name}`."
        stage(root, out / "source" / name, chapters, run, about)
        build_site(out / "source" / name, out)
        pages = out / "html" / "notebooks" / PAGES
        shutil.rmtree(pages, ignore_errors=True)
        if (run.folder / PAGES).is_dir():
            shutil.copytree(run.folder / PAGES, pages)
        print(f"Built in {_clock(time.monotonic() - begun)}.")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m musae_utils.book", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--profile", default="full", choices=PROFILES)
    parser.add_argument("--model", default="nano", help="nano, facebook/musicgen-small … a folder")
    parser.add_argument("--only", metavar="NN", help="run these chapters alone: 03, or 01,03")
    parser.add_argument("--data", metavar="FOLDER", help="your own audio, where a chapter takes it")
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="any parameter the chapters declare",
    )
    parser.add_argument("--out", type=Path, help="folder that gets _build (default: this one)")
    parser.add_argument(
        "--quote", action="store_true", help="only put data/scoreboard.json's table into README.md"
    )
    given = parser.parse_args(arguments)
    if given.quote:
        runs.atomic_write(ROOT / "README.md", quote_scoreboard())
        return 0
    try:
        failed = make_book(
            ROOT,
            given.out,
            given.profile,
            given.model,
            given.only,
            given.data,
            dict(given.parameter),
        )
    except (BookError, runs.RunError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The chapters that were done are kept: the same command goes on.")
        return 130
    site = (given.out or ROOT).resolve() / "_build" / "html" / "index.html"
    print(f"Open {site.as_uri()}")
    if failed:
        print(f"Failed: {_and(c.path.name for c in failed)}. The same command tries again.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
