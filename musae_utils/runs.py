"""Run folders: what was asked, what it ran on, what it measured, and files that can be trusted.

A run folder holds

- ``run.json``: configuration, seed, fingerprints of models and data, and one entry a session with
  the versions in use (written when the run is opened);
- ``metrics.jsonl``: one JSON object a line, appended by :meth:`Run.log`;
- ``artifacts.json``: the SHA-256 of every artifact beside it, checked whenever one is read.

Kill a run anywhere and open it again: what is there is whole, and the run goes on. Files are
written beside their target, flushed to the disk and renamed over it, so that a reader sees the old
file or the new one and never half of either. Non-finite numbers are stored as JSON's ``null``.

Chapters 02 and 04 keep what they compute in such folders; ``make nano`` trains in two of them.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import functools
import glob
import hashlib
import json
import math
import os
import platform
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "audiocraft", "nnsight", "transformers", "numpy", "scikit-learn")
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
SECRET = re.compile(r"(^|_)(api_?key|secret|password|(access|auth|hf)_token)$", re.IGNORECASE)


class RunError(RuntimeError):
    """Something about a run folder or a file in it that its owner has to settle."""


# -- files ---------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path whose file replaces ``path`` when the block ends without an error.

    Parameters
    ----------
    path : str or Path
        The file to write; its folder is made when missing.

    Yields
    ------
    Path
        A file of the same name in a folder beside it, for any library's writer.

    Raises
    ------
    RunError
        The disk is full, or the folder may not be written to. ``path`` is then what it was before,
        and nothing else is left behind.
    """
    path = Path(path)
    # A folder of its own: some writers (safetensors') keep a temporary file beside their target,
    # readable by its owner alone, and a kill would leave that file among the artifacts.
    desk = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary = desk / path.name
    _clear_desks(path)
    try:
        desk.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(desk.stat().st_mode & 0o666)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except Exception as error:
        if _disk_is_full(error, path.parent):
            raise RunError(_full(path)) from None
        own = str(getattr(error, "filename", None) or "").startswith(str(path.parent))
        if own and isinstance(error, OSError) and error.errno in FORBIDDEN:
            raise RunError(_forbidden(path.parent)) from None
        raise
    finally:
        shutil.rmtree(desk, ignore_errors=True)


def _clear_desks(path: Path) -> None:
    """Take away what a killed process left of the same file: a checkpoint's may be large."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = left.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path`` completely or not at all; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def save_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON; paths, NumPy and torch numbers, arrays and dataclasses are plain."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n"
    try:
        atomic_write(path, text.encode())
    except UnicodeEncodeError:  # half a character, as the name of a file may hold: escaped
        atomic_write(path, json.dumps(_plain(value), indent=1) + "\n")


def load_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    RunError
        It is not JSON, for instance because it was cut off.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist.") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError too
        raise RunError(
            f"{path} is not a JSON file ({error}). It was cut off or is something else: "
            "restore it, or delete it so that it is made again."
        ) from None


def checked(form: Any, found: Any, name: str | Path, what: str, cure: str) -> Any:
    """Hold what a file said against a pydantic model or type; say what is wrong, and where.

    Parameters
    ----------
    form : pydantic.BaseModel class or type
    found : plain value
        As `load_json` gives it.
    name : str or Path
        Of the file, for the message.
    what, cure : str
        What it should have been (``"an atlas"``), and what to do about it, as a sentence.

    Returns
    -------
    What pydantic makes of it, numbers and text as strictly as JSON has them.

    Raises
    ------
    RunError
        It is something else.
    """
    from pydantic import ValidationError

    try:
        return _adapter(form).validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:100] or "all of it"
        raise RunError(
            f"{name} is not {what}, or was changed ({where}: {first['msg'].lower()[:200]}). {cure}"
        ) from None


@functools.cache
def _adapter(form: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(form)


def is_whole(tensor: Any) -> bool:
    """Whether a tensor out of a pickle holds each of its numbers, in memory and one by one.

    A pickle can say of one number that it stands for 10¹² (strides of 0), or give sparse or
    absent ones, and no file of weights has a reason to.
    """
    return (
        str(tensor.layout) == "torch.strided"
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def load_made(path: str | Path, command: str) -> Any:
    """`load_json` of a table that a command makes; the error where it is missing names that."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: {command} makes it.")
    return load_json(path)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for package in ("musae", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


# -- runs ----------------------------------------------------------------------------------------


class Run:
    """A folder in which one computation can be stopped and taken up again.

    Parameters
    ----------
    folder : str or Path
        An empty or new folder, or that of the same run.
    config : mapping
        Everything that decides the result. Opening the folder again with another configuration
        is refused, so that no folder mixes two.
    seed : int
        The seed the run draws from.
    fingerprints : mapping of str to str, optional
        Hashes of the models and data that go in; compared like ``config``.

    Attributes
    ----------
    folder : Path
    resumed : bool
        Whether the folder held this run already.

    Raises
    ------
    RunError
        Another process has the folder open; it belongs to another run or holds other files; its
        ``run.json`` cannot be read; the configuration holds a key or password; the disk is full or
        read-only.

    Examples
    --------
    >>> import tempfile
    >>> with Run(tempfile.mkdtemp(), {"steps": 2}, seed=1) as run:
    ...     run.log(step=0, loss=1.5)
    ...     weights = run.save("weights.bin", b"abc")
    ...     weights.read_bytes(), run.metrics()
    (b'abc', [{'step': 0, 'loss': 1.5}])
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        seed: int = 0,
        fingerprints: Mapping[str, str] | None = None,
    ):
        self.folder = Path(folder)
        asked = _plain({"config": config, "seed": seed, "fingerprints": fingerprints or {}})
        _refuse_secrets(asked["config"])
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{folder} is a file; a run needs a folder of its own.")
        foreign = self.folder.is_dir() and not (self.folder / "run.json").exists()
        if foreign and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
            raise RunError(
                f"{folder} holds files but no run.json, so it is not a run folder: "
                "choose an empty or new one."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.folder)
            _OPEN.add(self)
        except OSError as error:
            if _disk_is_full(error, self.folder):
                raise RunError(_full(self.folder)) from None
            if error.errno in FORBIDDEN:
                raise RunError(_forbidden(self.folder)) from None
            raise
        try:
            self._open(asked)
        except RecursionError:
            self.close()
            raise RunError(
                f"What {self.folder} keeps was not written by a run (JSON nested without end): "
                "choose another folder."
            ) from None
        except BaseException:
            self.close()
            raise

    def _open(self, asked: dict[str, Any]) -> None:
        for leftover in self.folder.glob(".*.partial*"):  # of a session that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        record = self.folder / "run.json"
        self.resumed = record.exists()
        kept = load_json(record) if self.resumed else {**asked, "sessions": []}
        whole = isinstance(kept, dict) and isinstance(kept.get("config"), dict)
        if not whole or not isinstance(kept.get("sessions", []), list):
            raise RunError(f"{record} was not written by a run: choose another folder.")
        differing = _difference(
            {key: kept.get(key) for key in asked}, {key: asked[key] for key in asked}
        )
        if differing:
            name, was, now = differing
            raise RunError(
                f"{self.folder} holds a run with {name} = {was!r}, and now {name} = {now!r} is "
                "asked for. Use another folder, or delete this one to start over."
            )
        started = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"started": started, "machine": platform.platform(), "versions": versions()}
        save_json(record, {**kept, "sessions": [*kept.get("sessions", []), session]})
        manifest = self.folder / "artifacts.json"
        self._artifacts: dict[str, dict] = load_json(manifest) if manifest.exists() else {}
        listed = self._artifacts.values() if isinstance(self._artifacts, dict) else [None]
        if not all(isinstance(entry, dict) for entry in listed):
            raise RunError(
                f"{manifest} does not list checksums: it was changed. Delete this run's folder to "
                "start over."
            )
        self._metrics = self.folder / "metrics.jsonl"
        self._mend_metrics()

    # metrics

    def log(self, **values: Any) -> None:
        """Append one line to ``metrics.jsonl``, for instance ``log(step=10, loss=2.1)``."""
        line = (json.dumps(_plain(values), ensure_ascii=False) + "\n").encode()
        before = self._metrics.stat().st_size if self._metrics.exists() else 0
        try:
            with open(self._metrics, "ab") as file:
                file.write(line)
        except OSError as error:
            if error.errno in FORBIDDEN:
                raise RunError(_forbidden(self.folder)) from None
            if not _disk_is_full(error, self.folder):
                raise
            os.truncate(self._metrics, before)
            raise RunError(_full(self._metrics)) from None

    def metrics(self) -> list[dict[str, Any]]:
        """Return every logged line, oldest first."""
        if not self._metrics.exists():
            return []
        return [json.loads(line) for line in self._metrics.read_bytes().splitlines()]

    def rewind(self, step: int) -> None:
        """Drop the metrics of steps after ``step``: a checkpoint's steps are run only once more."""
        rows = self.metrics()
        for row in rows:
            if not isinstance(row.get("step", 0), (int, float)):
                raise RunError(f"{self._metrics} has a step {row['step']!r:.80}: it was changed.")
        kept = [row for row in rows if row.get("step", -math.inf) <= step]
        atomic_write(
            self._metrics, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        )

    def _mend_metrics(self) -> None:
        """Cut off a last line that a kill left torn; a bad line elsewhere is somebody's edit."""
        if not self._metrics.exists():
            return
        lines = self._metrics.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
            except (ValueError, RecursionError):
                whole = False
            if whole:
                continue
            if number < len(lines):
                raise RunError(f"{self._metrics}, line {number}, is not a line of metrics.")
            os.truncate(self._metrics, sum(map(len, lines[:-1])))

    # artifacts

    def save(self, name: str, data: bytes | str | Callable[[Path], Any]) -> Path:
        """Keep a file under ``name``.

        Parameters
        ----------
        name : str
            A file name, without folders.
        data : bytes, str or callable
            The content, or a function that writes it to the path it is given.

        Returns
        -------
        Path
        """
        path = self.folder / name
        if path.parent != self.folder or name.startswith(".") or name in _OWN_FILES:
            raise ValueError(f"{name!r} cannot name an artifact: give a plain file name.")
        with atomic_path(path) as temporary:
            if callable(data):
                data(temporary)
            else:
                temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            new = {"sha256": sha256(temporary), "bytes": temporary.stat().st_size}
            # Either file is right until the rename is known to have happened: see `path`.
            self._record(name, {**self._artifacts.get(name, {}), "next": new["sha256"]})
        self._record(name, new)
        return path

    def path(self, name: str) -> Path:
        """Return the path of an artifact whose checksum is right.

        Raises
        ------
        FileNotFoundError
            The run never made it, or it is gone.
        RunError
            It is not what the run wrote.
        """
        path, entry = self.folder / name, self._artifacts.get(name)
        if entry is None:
            known = ", ".join(sorted(self._artifacts)) or "none yet"
            raise FileNotFoundError(f"{self.folder} has no artifact {name!r} (it has: {known}).")
        if not path.exists():
            raise FileNotFoundError(f"{path} is gone, though the run wrote it: run it again.")
        if sha256(path) not in (entry.get("sha256"), entry.get("next")):
            raise RunError(
                f"{path} is damaged or was replaced: its checksum is not the one in "
                "artifacts.json. Delete it and run again to make it anew."
            )
        return path

    def has(self, name: str) -> bool:
        """Tell whether the run made ``name`` and the file is still there (`path` verifies it)."""
        return name in self._artifacts and (self.folder / name).exists()

    def _record(self, name: str, entry: dict[str, Any]) -> None:
        self._artifacts[name] = entry
        save_json(self.folder / "artifacts.json", self._artifacts)

    # the folder

    def close(self) -> None:
        """Let others open the folder. Ending the process does so too."""
        os.close(self._lock) if self._lock is not None else None
        self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {len(self._artifacts)} artifacts)"


_OWN_FILES = ("run.json", "metrics.jsonl", "artifacts.json")


_OPEN: weakref.WeakSet[Run] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked process: it may outlive this one, and a run is this one's."""
    for run in _OPEN:
        run.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _take_lock(folder: Path) -> int:
    """Lock the folder for this process; the system lets go of it however the process ends."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise RunError(
            f"{folder} is in use by another run (process {holder}): wait for it, stop it, "
            "or choose another folder."
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _plain(value: Any) -> Any:
    """Reduce a value to what JSON can say."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON: {value!r}")


def _difference(was: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return (name, was, now) of the first place where two plain values differ."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            path = key if name in ("", "config") else f"{name}.{key}"
            if found := _difference(was.get(key), now.get(key), path):
                return found
        return None
    return None if was == now else (name, was, now)


def _refuse_secrets(config: Any) -> None:
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if SECRET.search(key):
            raise RunError(f"The configuration holds {key!r}: keys and passwords are never stored.")
        _refuse_secrets(value)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    """Tell whether a failed write was for want of space; Rust and C++ writers hide the errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if isinstance(error, RunError):
        return False
    if "No space left" in str(error) or "os error 28" in str(error):
        return True
    return folder.is_dir() and shutil.disk_usage(folder).free < 2**20


def _forbidden(folder: Path) -> str:
    return (
        f"{folder} cannot be written to: the folder or its disk is read-only for this user. "
        "Nothing was changed: choose another folder, or see to its permissions."
    )


def _full(path: Path) -> str:
    return (
        f"The disk that holds {path} is full. Nothing there was changed or left half-written: "
        "free some space and run again; what was finished is kept."
    )
