"""What a model thinks of much music, kept on disk or streamed past (notebook 05).

`harvest` lets a model read clips and keeps its residual streams in an `ActivationStore`, from which
sparse autoencoders are trained; `stream` gives the same rows without a disk. `write_store` is what
`harvest` is made of: it keeps whatever a function makes of clips, such as a codec's latents.

**A row is one frame of one clip.** Row t of a clip is read where the language model has just been
told the whole of frame t, all its codebooks: the position of `trace.align` for the last codebook,
as for the probes. So a row is compared with the truth of frame t and knows nothing later but the
beginnings of the next K - 1 frames. At the last K - 1 frames of a clip, the slots of those
beginnings hold the special token: they are left out, and every row is a position that holds K codes
of music. T frames make T - K + 1 rows.

**A store is a run folder** (`musae_utils.runs`) with shards of whole clips, named
``rows-00000.safetensors`` and so on, and ``store.json``, written last. The tensors of a shard::

    transformer.layers.3   (rows, d)     one for each hook, in bfloat16 or float32
    codes                  (frames, K)   what the model was told
    truth.chord_root, …    (frames,)     the truth tracks of its clips, one after the other
    truth.active           (frames, 16)  its 128 pitches in bits
    clips                  (bytes,)      the index of the clips, as JSON
    about                  (bytes,)      clip by clip, provenance and truth, as JSON

Kill a harvest at any moment and call it again: whole shards are compared with the clips and kept,
the others are made, and the files are, byte by byte, those of a harvest that was left in peace.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
import torch
from annotated_types import Gt, Len, Lt
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, StringConstraints
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from typing_extensions import TypedDict

from musae_utils import runs
from musae_utils.plan import Halving
from musae_utils.runs import Run, RunError

if TYPE_CHECKING:  # audiocraft takes seconds to import, and a store can be read without it
    import pandas as pd

    from musae_utils.models import MusicModel
    from musae_utils.music import Clip, Truth
    from musae_utils.trace import HookPoint, Layer

__all__ = [
    "ActivationStore",
    "Frames",
    "HookRows",
    "StoredClip",
    "composition",
    "harvest",
    "stream",
    "write_store",
]

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHARD_BYTES = 2**26  # a kill costs at most the time that one shard takes
MANIFEST = "store.json"
PACKED = "truth.active"  # 128 pitches a frame, kept in bits
BLOCK = 32  # neighbouring rows that a shuffled read takes together: several kB from any disk


# -- writing ---------------------------------------------------------------------------------------


@dataclass
class Frames:
    """What a reader makes of one clip.

    Attributes
    ----------
    rows : dict of hook name to Tensor of shape (n, d)
        Row t belongs to frame t of the clip; n is the same for all hooks.
    codes : Tensor of shape (K, T), integers, optional
        What a language model was told.
    prompt : str, optional
        What it was asked for.
    """

    rows: dict[str, torch.Tensor]
    codes: torch.Tensor | None = None
    prompt: str | None = None


Reader = Callable[[list["Clip"], int], list[Frames]]


def harvest(
    model: MusicModel,
    clips: Iterable[Clip] | str | Path,
    layers: Layer | Iterable[Layer],
    folder: str | Path,
    *,
    prompts: str | Sequence[str | None] | None = None,
    dtype: str = "bfloat16",
    rows_per_shard: int | None = None,
    batch: int = 8,
    progress: bool = True,
) -> ActivationStore:
    """Let a model read music, and keep what its layers hold at each frame.

    Teacher-forced, all layers in one pass that ends after the deepest. Says what it will take,
    then shows a bar. A folder that holds the finished store already is opened and nothing is read.

    Parameters
    ----------
    model : MusicModel
    clips : iterable of Clip, or a folder of sound files
        Of any lengths up to ``model.max_seconds`` (of the files of a folder, so much is read). A
        generator is taken clip by clip, and forgotten likewise. To go on after a kill, the same
        clips must come again in the same order.
    layers : int, "embed", HookPoint, or several
    folder : str or Path
    prompts : None, "captions" or list of (str or None)
        None reads without a prompt, as arXiv:2505.18186 did; ``"captions"`` with each clip's own; a
        list with one for each clip.
    dtype : "bfloat16" or "float32"
        To keep them in. bfloat16 has the range of float32 and 8 bits of precision.
    rows_per_shard : int, optional
        A shard is closed by the clip that fills it; 64 MiB unless given.
    batch : int
        Clips at once. Only neighbours of one length are batched: nothing is ever padded. Where a
        GPU's memory does not hold so many, they are halved until it does.
    progress : bool
        Say what it will take and show a bar.

    Returns
    -------
    ActivationStore

    Raises
    ------
    ValueError
        No clips, no such layer, a clip that is too short or too long, activations or sound that
        are not finite, prompts that do not fit: each names the clip.
    RunError
        The folder is in use, or holds another store; the disk is full, or will be.

    Examples
    --------
    >>> from musae_utils import activations, models, music
    >>> model = models.load("nano")  # doctest: +SKIP
    >>> clips = (music.make(seed=i) for i in range(100))  # doctest: +SKIP
    >>> store = activations.harvest(model, clips, [1, 3], "runs/store")  # doctest: +SKIP
    >>> store[3].shape  # doctest: +SKIP
    torch.Size([49700, 256])
    """
    clips = _clips(clips, model)
    hooks, read = _language_model(model, layers, prompts)
    told = prompts
    if not (prompts is None or isinstance(prompts, str)):
        told = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
        if isinstance(clips, Sized) and len(prompts) != len(clips):
            raise ValueError(
                f"There are {len(prompts)} prompts for {len(clips)} clips: give one each."
            )
    return write_store(
        folder, clips, read, {name: asdict(hook) for name, hook in hooks.items()},
        model.frame_rate, config={"prompts": told, "model_dtype": str(model.dtype)},
        fingerprints={"model": model.fingerprint}, dtype=dtype, rows_per_shard=rows_per_shard,
        batch=batch, progress=progress,
    )  # fmt: skip


def write_store(
    folder: str | Path,
    clips: Iterable[Clip],
    read: Reader,
    hooks: Mapping[str, Any],
    frame_rate: float,
    *,
    config: Mapping[str, Any] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    dtype: str = "bfloat16",
    rows_per_shard: int | None = None,
    batch: int = 8,
    progress: bool = True,
) -> ActivationStore:
    """Keep what a function makes of each frame of many clips.

    Parameters
    ----------
    folder, clips, dtype, rows_per_shard, batch, progress : see `harvest`
    read : callable
        ``read(clips, first)`` returns a `Frames` for each of a few clips of one length, the first
        of which is number `first`. The same clips must give the same numbers.
    hooks : dict of hook name to anything JSON can say
        Names of the tensors, and where they come from.
    frame_rate : float
        Rows a second.
    config, fingerprints : dict, optional
        What else decides the result; see `runs.Run`.

    Returns
    -------
    ActivationStore

    Examples
    --------
    The latents of a codec:

    >>> def latents(clips, first):
    ...     return [Frames({"latents": model.latents(clip)[0].T}) for clip in clips]
    >>> write_store("runs/latents", clips, latents, {"latents": "codec encoder"},
    ...             model.frame_rate)  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {' or '.join(DTYPES)}, not {dtype!r}.")
    _positive(batch=batch, rows_per_shard=1 if rows_per_shard is None else rows_per_shard)
    total = len(clips) if isinstance(clips, Sized) else None
    queue = _Queue(clips)
    if queue.head is None:
        raise ValueError("There are no clips to harvest: the list, folder or generator is empty.")
    config = {
        "kind": "activations", "hooks": hooks, "frame_rate": frame_rate, "dtype": dtype,
        "batch": batch, "rows_per_shard": rows_per_shard, **(config or {}),
    }  # fmt: skip
    with Run(folder, config, fingerprints=fingerprints) as run:
        finished = run.has(MANIFEST) and all(
            run.has(shard["file"]) for shard in runs.load_json(run.path(MANIFEST))["shards"]
        )
        if not finished:
            _write(run, config, queue, read, total, progress)
    store = ActivationStore.open(folder, verify=finished)
    first = store.clips[0]
    if first.digest != _identity(queue.first) or total not in (None, len(store.clips)):
        raise RunError(
            f"{folder} is a finished store of {len(store.clips):,} clips that begins with "
            f"{first.name!r}, and other clips are given now: choose another folder."
        )
    return store


def _write(
    run: Run, config: Mapping, queue: _Queue, read: Reader, total: int | None, progress: bool
) -> None:
    """Write what is missing: shards of whole batches, so that each can be made on its own."""
    dtype, hooks = DTYPES[config["dtype"]], config["hooks"]
    halving = Halving(int(config["batch"]))
    shards: list[str] = []
    said = False
    settings = dict(unit="clip", disable=not progress, mininterval=1, dynamic_ncols=True)
    with tqdm(desc="harvesting", total=total, **settings) as bar:
        while queue.head is not None:
            name = f"rows-{len(shards):05d}.safetensors"
            shards.append(name)
            if run.has(name):
                _compare(_Shard(run.path(name)), queue, bar)
                continue
            shard = _Unwritten()
            while queue.head is not None and not shard.full(config["rows_per_shard"]):
                started, before = time.monotonic(), queue.taken
                for clip, frames in _readings(queue, read, halving, hooks, dtype):
                    shard.add(clip, frames)
                if not said:
                    took = (time.monotonic() - started) / (queue.taken - before)
                    left = None if total is None else total - before
                    forecast = _forecast(run.folder, shard, took, left)
                    if progress:
                        bar.write(forecast)
                    said = True
                bar.update(queue.taken - before)
            run.save(name, shard.save)
    run.save(MANIFEST, lambda path: runs.save_json(path, _manifest(run, hooks, shards)))


def _readings(
    queue: _Queue, read: Reader, halving: Halving, hooks: Iterable[str], dtype: torch.dtype
) -> Iterator[tuple[Clip, Frames]]:
    """Read the next few clips; what comes out is in `dtype`, complete and finite."""
    first, clips = queue.taken, queue.batch(halving.batch)
    parts = halving(lambda a, b: read(clips[a:b], first + a), len(clips))
    for clip, frames in zip(clips, itertools.chain.from_iterable(parts), strict=True):
        shapes = {hook: tuple(rows.shape) for hook, rows in frames.rows.items()}
        if shapes.keys() != set(hooks) or len({shape[0] for shape in shapes.values()}) != 1:
            raise ValueError(
                f"A reader gives as many rows for each of {', '.join(hooks)}; for clip "
                f"{clip.name!r} it gave {shapes}."
            )
        for hook, rows in frames.rows.items():
            frames.rows[hook] = rows = rows.to(dtype)
            # NaN and infinity survive a sum, and a sum is ten times as fast as isfinite().all().
            if not rows.sum(dtype=torch.float32).isfinite():
                raise ValueError(
                    f"Clip {clip.name!r} gives activations at {hook} that are NaN or infinite: "
                    "listen to it and leave it out, or load the model in float32."
                )
        yield clip, frames


def _compare(shard: _Shard, queue: _Queue, bar: tqdm) -> None:
    """Pass over the clips that a shard holds, if they are the same."""
    for entry in shard.entries():
        clip = queue.next() if queue.head is not None else None
        if clip is None or entry["digest"] != _identity(clip):
            given = "no more clips are" if clip is None else f"{clip.name!r} is"
            raise RunError(
                f"{shard.path.parent} holds {entry['name']!r} where {given} given now: give the "
                "same clips in the same order, or choose another folder."
            )
        bar.update()
    bar.unpause()  # what is there already says nothing about the time that the rest takes


def _forecast(folder: Path, shard: _Unwritten, seconds: float, clips: int | None) -> str:
    """Say what is to come, from the first clips; refuse if the disk has no room for it."""
    done, free = len(shard.table), shutil.disk_usage(folder).free
    each = shard.n_bytes / done
    what = f"{folder}: {shard.n_rows / done:,.0f} rows and {_size(each)} a clip"
    needed = each * (clips or done)
    if needed > free:
        raise RunError(
            f"{folder} will take {_size(needed)} and its disk has {_size(free)} free: free some "
            "space, harvest fewer clips or layers, or choose another folder."
        )
    if clips is None:
        return f"{what}, {_size(free)} free; {seconds:.2f} s a clip."
    return (
        f"{what}; {clips:,} clips make about {_size(needed)} ({_size(free)} free) and take about "
        f"{_duration(seconds * clips)}."
    )


class _Queue:
    """Clips in order, one at a time or in batches of one length; holds none but the next."""

    def __init__(self, clips: Iterable[Clip]) -> None:
        self._rest = iter(clips)
        self.taken = 0
        self.first = self.head = next(self._rest, None)

    def next(self) -> Clip:
        clip = self.head
        if not hasattr(clip, "audio"):
            raise ValueError(
                f"clips are music.Clip objects (music.load_audio and music.make give them), and "
                f"number {self.taken} is {type(clip).__name__}."
            )
        self.head = next(self._rest, None)
        self.taken += 1
        return clip

    def batch(self, most: int) -> list[Clip]:
        length = lambda clip: (np.shape(clip.audio), clip.sample_rate)  # noqa: E731
        clips = [self.next()]
        while self.head is not None and len(clips) < most:
            if not hasattr(self.head, "audio") or length(self.head) != length(clips[0]):
                break
            clips.append(self.next())
        return clips


class _Unwritten:
    """The clips of a shard to be."""

    def __init__(self) -> None:
        self.tensors: dict[str, list[torch.Tensor]] = {}
        self.table: list[dict] = []
        self.about: list[bytes] = []
        self.n_rows = self.n_bytes = self._about = 0
        self._ends: dict[str, int] = {}

    def full(self, rows_per_shard: int | None) -> bool:
        if rows_per_shard is None:
            return self.n_bytes >= SHARD_BYTES
        return self.n_rows >= rows_per_shard

    def add(self, clip: Clip, frames: Frames) -> None:
        n_rows = len(next(iter(frames.rows.values())))
        tracks = {} if frames.codes is None else {"codes": _small(frames.codes).T}
        about: dict[str, Any] = {"provenance": clip.provenance}
        if clip.truth is not None:
            known = {f"truth.{key}": track for key, track in clip.truth.frames.items()}
            tracks |= {name: _packed(name, track) for name, track in known.items()}
            notes = [[n.start, n.end, n.pitch, n.velocity, n.role] for n in clip.truth.notes]
            about |= {"truth": clip.truth.clip, "notes": notes}
        about["tracks"] = {}
        for name, track in tracks.items():
            start = self._ends.get(name, 0)
            about["tracks"][name] = start, start + len(track)
            self._ends[name] = start + len(track)
        for name, tensor in (frames.rows | tracks).items():
            self.tensors.setdefault(name, []).append(tensor.cpu())
            self.n_bytes += tensor.nbytes
        written = json.dumps(about, default=_plain).encode()
        entry = {
            "name": clip.name, "group": composition(clip), "rows": n_rows,
            "caption": clip.caption, "prompt": frames.prompt, "digest": _identity(clip),
            "about": [self._about, self._about + len(written)],
        }  # fmt: skip
        self._about += len(written)
        self.about.append(written)
        self.table.append(entry)
        self.n_rows += n_rows
        self.n_bytes += len(written)

    def save(self, path: Path) -> None:
        tensors = {name: torch.cat(parts) for name, parts in self.tensors.items()}
        tensors["clips"] = _bytes(json.dumps(self.table).encode())
        tensors["about"] = _bytes(b"".join(self.about))
        save_file(tensors, path)


def _manifest(run: Run, hooks: Iterable[str], shards: list[str]) -> dict:
    entries = runs.load_json(run.folder / "artifacts.json")
    listed = []
    for name in shards:
        shard, path = _Shard(run.folder / name), run.folder / name
        table = shard.entries()
        # A kill between a file and its entry leaves the entry undecided.
        settled = entries[name].get("sha256") if "next" not in entries[name] else None
        listed.append({
            "file": name, "clips": len(table), "rows": sum(e["rows"] for e in table),
            "bytes": path.stat().st_size, "sha256": settled or runs.sha256(path),
        })  # fmt: skip
    widths = {hook: shard.tensor(hook).shape[1] for hook in hooks}
    return {"widths": widths, "shards": listed}


def composition(clip: Clip) -> str:
    """What a clip is a crop or a performance of: the unit of splits and intervals.

    A composition's seed, a work of the corpus, or a recording's checksum; ``provenance["group"]``
    goes before all, and a clip that has none of them is a composition of its own.
    """
    known, source = clip.provenance, str(clip.provenance.get("source", ""))
    if "group" in known:
        return str(known["group"])
    if source == "composed":
        return f"composition {known.get('seed')}"
    if source == "recording":
        return f"recording {known.get('sha256')}"
    return source or f"clip {_identity(clip)}"


def _identity(clip: Clip) -> str:
    """16 digits that another clip does not have: where it is from and every 16th sample."""
    said = json.dumps([clip.name, clip.caption, clip.provenance, len(clip.audio)], default=_plain)
    digest = hashlib.sha256(said.encode())
    digest.update(np.ascontiguousarray(clip.audio[::16]))
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _small(codes: torch.Tensor) -> torch.Tensor:
    return codes.to(torch.int16 if codes.max() < 2**15 else torch.int32)


def _packed(name: str, track: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.packbits(track, axis=1) if name == PACKED else track)


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data or b" "), dtype=torch.uint8)


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count != int(count) or count < 1:
            raise ValueError(f"{name} is a whole number from 1 up, not {count!r}.")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# -- reading music with a language model -----------------------------------------------------------


def _clips(clips: Iterable[Clip] | str | Path, model: MusicModel) -> Iterable[Clip]:
    if isinstance(clips, (str, Path)):
        from musae_utils import music

        return music.iter_folder(clips, model.max_seconds, sample_rate=model.sample_rate)
    return [clips] if hasattr(clips, "audio") else clips


def _language_model(
    model: MusicModel, layers: Layer | Iterable[Layer], prompts: str | Sequence[str | None] | None
) -> tuple[dict[str, HookPoint], Reader]:
    """Hook points by path, and a reader that keeps the residual stream there."""
    from musae_utils import trace

    points = [trace.HookPoint.of(model, layer) for layer in _listed(layers)]
    hooks = {hook.path: hook for hook in points}
    if isinstance(prompts, str) and prompts != "captions":
        raise ValueError(
            f"prompts is None, 'captions', or a list with one for each clip; not {prompts!r}."
        )
    last = max(trace._delays(model.lm))

    def told(clips: list[Clip], first: int) -> list[str | None]:
        if prompts is None:
            return [None] * len(clips)
        if prompts == "captions":
            return [clip.caption or None for clip in clips]
        if len(prompts) < first + len(clips):
            raise ValueError(
                f"There are more clips than the {len(prompts)} prompts: give one each."
            )
        return list(prompts[first : first + len(clips)])

    def read(clips: list[Clip], first: int) -> list[Frames]:
        codes = torch.stack([_encoded(model, clip, last) for clip in clips])
        n_frames, said = codes.shape[-1], told(clips, first)
        streams = trace.residuals(model, codes, list(hooks.values()), said)
        gc.collect(1)  # a trace ends as a cycle that holds its streams: many MB that gc cannot see
        rows = {
            path: trace.align(streams[hook], n_frames, last)[:, : n_frames - last]
            for path, hook in hooks.items()
        }
        return [
            Frames({path: x[i] for path, x in rows.items()}, codes[i], said[i])
            for i in range(len(clips))
        ]

    return hooks, read


def _encoded(model: MusicModel, clip: Clip, last: int) -> torch.Tensor:
    """Codes (K, T) of a clip, long and short enough to be read."""
    longest, shortest = model.max_seconds, (last + 1) / model.frame_rate
    if clip.seconds > longest + 1 / model.frame_rate:
        raise ValueError(
            f"Clip {clip.name!r} lasts {clip.seconds:g} s, and {model.name} reads up to "
            f"{longest:g} s: cut it (music.load_audio has seconds and offset)."
        )
    try:
        codes = model.encode(clip)[0]
    except ValueError as error:
        raise ValueError(f"Clip {clip.name!r} cannot be read. {error}") from None
    if codes.shape[-1] <= last:
        raise ValueError(
            f"Clip {clip.name!r} is too short: it lasts {clip.seconds:g} s, and no position of "
            f"{model.name} holds nothing but music before {shortest:g} s. Leave it out."
        )
    return codes


def stream(
    model: MusicModel,
    clips: Iterable[Clip] | str | Path,
    layers: Layer | Iterable[Layer],
    batch_size: int = 4096,
    buffer_rows: int = 2**17,
    seed: int = 0,
    *,
    prompts: str | Sequence[str | None] | None = None,
    dtype: str = "bfloat16",
    batch: int = 8,
) -> Iterator[torch.Tensor | dict[Layer, torch.Tensor]]:
    """The rows of `harvest` in random order and without a disk: each once, then they are gone.

    Rows wait in a buffer. When it is full it is shuffled and one half, drawn at random, goes out.
    So a batch mixes rows of clips that are up to some ``buffer_rows`` rows apart: give clips in
    random order.

    Parameters
    ----------
    model, clips, layers, prompts, dtype, batch : see `harvest`
    batch_size : int
        Rows of a batch; the last one may have fewer.
    buffer_rows : int
        Rows in memory: 131,072 of width 1,024 in bfloat16 are 268 MB a layer.
    seed : int
        Decides the order and nothing else.

    Yields
    ------
    Tensor of shape (batch_size, d), or of several layers a dict
        On the model's device; the dict by layer, as it was asked for, its rows in one order.

    Raises
    ------
    ValueError
        As `harvest`.
    """
    _positive(batch_size=batch_size, buffer_rows=buffer_rows, batch=batch)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {' or '.join(DTYPES)}, not {dtype!r}.")
    from musae_utils.trace import HookPoint

    layers = layers if _is_one(layers) else list(layers)
    hooks, read = _language_model(model, layers, prompts)
    paths = {layer: HookPoint.of(model, layer).path for layer in _listed(layers)}
    queue, halving = _Queue(_clips(clips, model)), Halving(int(batch))
    if queue.head is None:
        raise ValueError("There are no clips to stream: the list, folder or generator is empty.")

    def parts() -> Iterator[dict[str, torch.Tensor]]:
        while queue.head is not None:
            for _, frames in _readings(queue, read, halving, hooks, DTYPES[dtype]):
                yield frames.rows

    mixed = _mixed(parts(), batch_size, buffer_rows, seed)
    if _is_one(layers):
        return (rows[paths[layers]] for rows in mixed)
    return ({layer: rows[path] for layer, path in paths.items()} for rows in mixed)


def _mixed(
    parts: Iterable[dict[str, torch.Tensor]], batch_size: int, buffer_rows: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of rows in random order through a buffer; see `stream`."""
    random = torch.Generator().manual_seed(seed)
    waiting, n = [], 0

    def batches(most: int) -> Iterator[dict[str, torch.Tensor]]:
        """Shuffle the buffer, give `most` batches of it, and keep the rest."""
        nonlocal waiting, n
        pool = {name: torch.cat([part[name] for part in waiting]) for name in waiting[0]}
        order = torch.randperm(n, generator=random)
        out = order[: most * batch_size].split(batch_size)
        for rows in out:
            yield {name: x[rows.to(x.device)] for name, x in pool.items()}
        rest = order[most * batch_size :]
        waiting, n = [{name: x[rest.to(x.device)] for name, x in pool.items()}], len(rest)

    for part in parts:
        waiting.append(part)
        n += len(next(iter(part.values())))
        if n >= buffer_rows and (most := (n - buffer_rows // 2) // batch_size):
            yield from batches(most)
    if n:
        yield from batches(-(-n // batch_size))


def _is_one(layers: Any) -> bool:
    """Whether it is one layer and not several: a number, a name or a hook point."""
    return isinstance(layers, (int, np.integer, str)) or hasattr(layers, "fingerprint")


def _listed(layers: Any) -> list:
    listed = [layers] if _is_one(layers) else list(layers)
    if not listed:
        raise ValueError("Which layers? The list is empty.")
    return listed


# -- reading a store -------------------------------------------------------------------------------


class _Shard:
    """A file of rows, mapped into memory: what is not looked at is not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise RunError(_damaged(path)) from error
        self._tensors: dict[str, torch.Tensor] = {}

    def tensor(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            try:
                self._tensors[name] = self._file.get_tensor(name)
            except (SafetensorError, TypeError):  # none, or of a shape that no tensor has
                raise RunError(_damaged(self.path)) from None
        return self._tensors[name]

    def said(self, name: str, form: Any, start: int = 0, stop: int | None = None) -> Any:
        """JSON that a tensor of bytes holds, of the form that it has to have."""
        data = self.tensor(name)[start:stop]
        try:
            found = json.loads(data.numpy().tobytes())
        except (ValueError, RecursionError, TypeError):
            raise RunError(_damaged(self.path)) from None
        runs.checked(form, found, self.path, _A_STORE, _AGAIN)
        return found

    def entries(self) -> list[dict]:
        return self.said("clips", list[_Entry])

    def agree(self, dtype: torch.dtype, widths: Mapping[str, int], n_rows: int) -> None:
        """Raise RunError unless each hook has its rows."""
        for hook, width in widths.items():
            tensor = self.tensor(hook)
            if tensor.dtype != dtype or tensor.shape != (n_rows, width):
                raise RunError(
                    f"{self.path} holds {hook} as {tuple(tensor.shape)} numbers of {tensor.dtype}, "
                    f"and not ({n_rows}, {width}) of {dtype}: it was changed. {_AGAIN}"
                )


_TRACKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
           torch.float32, torch.float64)  # fmt: skip
_A_STORE = "part of a store that a harvest wrote"
_AGAIN = "Delete it and harvest again, and it is made anew."
_Span = Annotated[list[NonNegativeInt], Len(2, 2)]


class _Place(TypedDict):
    """What is known about a hook of a language model: a `trace.HookPoint`."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    model: str
    layer: int
    path: str
    fingerprint: str


class _Config(TypedDict):
    hooks: Annotated[dict[str, Any], Len(1)]
    frame_rate: Annotated[float, Gt(0), Lt(1e6)]
    dtype: Literal["bfloat16", "float32"]


class _Listed(TypedDict):
    file: Annotated[str, StringConstraints(pattern=r"^rows-[0-9]{5,9}\.safetensors$")]
    bytes: NonNegativeInt
    sha256: str


class _Manifest(TypedDict):
    widths: dict[str, PositiveInt]
    shards: Annotated[list[_Listed], Len(1)]


class _Entry(TypedDict):
    """A clip in the index of a shard."""

    name: str
    group: str
    rows: PositiveInt
    caption: str
    prompt: str | None
    digest: str
    about: _Span


class _About(TypedDict):
    """What is known of a clip."""

    provenance: dict[str, Any]
    tracks: dict[str, _Span]
    truth: NotRequired[dict[str, Any]]
    notes: NotRequired[list[Annotated[list, Len(5, 5)]]]


@dataclass(frozen=True)
class StoredClip:
    """A clip of a store: everything but its sound, which ``model.decode(clip.codes)`` comes near.

    Attributes
    ----------
    name, caption : str
    group : str
        Its composition.
    prompt : str or None
        With which it was read.
    start, n_rows : int
        Its rows in the store are ``start`` to ``start + n_rows - 1``, in the order of its frames.
    digest : str
        Of its sound and provenance.
    """

    name: str
    group: str
    caption: str
    prompt: str | None
    start: int
    n_rows: int
    digest: str
    _shard: _Shard = field(repr=False)
    _offset: int = field(repr=False)  # first row in the shard
    _span: tuple[int, int] = field(repr=False)

    @property
    def rows(self) -> slice:
        """Where its rows are: ``store[layer][clip.rows]``."""
        return slice(self.start, self.start + self.n_rows)

    @property
    def provenance(self) -> dict:
        """What it takes to make or find the clip again."""
        return self._about["provenance"]

    @property
    def codes(self) -> torch.Tensor | None:
        """What the language model was told: (K, T) int64."""
        codes = self._track("codes", self._about)
        return None if codes is None else torch.from_numpy(codes.T).long()

    @property
    def truth(self) -> Truth | None:
        """What is known about the clip; None for recordings."""
        from musae_utils.music import Note, Truth

        about = self._about
        if "truth" not in about:
            return None
        frames = {
            name.removeprefix("truth."): self._track(name, about)
            for name in about["tracks"]
            if name.startswith("truth.")
        }
        return Truth(frames, about["truth"], [Note(*note) for note in about["notes"]])

    @property
    def _about(self) -> dict:  # read anew each time: of many clips it would fill the memory
        return self._shard.said("about", _About, *self._span)

    def _track(self, name: str, about: dict) -> np.ndarray | None:
        if name not in about["tracks"]:
            return None
        start, stop = about["tracks"][name]
        track = self._shard.tensor(name)
        packed, bits = name == PACKED, (track.dtype, track.shape[1:]) == (torch.uint8, (16,))
        if not start < stop <= len(track) or track.ndim != 1 + (packed or name == "codes"):
            raise RunError(_damaged(self._shard.path))
        plain = track.dtype in _TRACKS and not (name == "codes" and track.is_floating_point())
        if not plain or (packed and not bits):
            raise RunError(_damaged(self._shard.path))
        track = track[start:stop].numpy()
        return np.unpackbits(track, axis=1).astype(bool) if packed else track.copy()


@dataclass(frozen=True)
class HookRows:
    """The rows of one hook, in the order of the clips: ``store[layer]``.

    Indexed by a number, a slice, an array of numbers or a mask, it gives a `Tensor` in memory.
    """

    store: ActivationStore
    hook: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.store.n_rows, self.store.widths[self.hook]

    def __len__(self) -> int:
        return self.store.n_rows

    def __getitem__(self, index) -> torch.Tensor:
        n = self.store.n_rows
        if isinstance(index, slice):
            return self.store._gather(self.hook, np.arange(*index.indices(n)))
        rows = np.asarray(index)
        rows = np.flatnonzero(rows) if rows.dtype == bool and len(rows) == n else rows
        if rows.dtype == bool or not (np.issubdtype(rows.dtype, np.integer) or rows.size == 0):
            raise ValueError(
                f"Rows are chosen by whole numbers, a slice or a mask of {n:,}; not an array of "
                f"{rows.dtype} of shape {rows.shape}."
            )
        outside = rows[(rows < -n) | (rows >= n)]
        if outside.size:
            raise IndexError(f"The store has {n:,} rows; there is no row {outside.flat[0]}.")
        found = self.store._gather(self.hook, (rows.ravel() % n).astype(np.int64))
        return found.reshape(*rows.shape, found.shape[-1])


class ActivationStore:
    """Rows of activations on disk, with what is known about the music that they come from.

    Made by `harvest`, `write_store` and `ActivationStore.open`. Rows are mapped into memory, so a
    store may be larger than it; several processes may read one store.

    Attributes
    ----------
    folder : Path
    clips : list of StoredClip
    hooks : dict of name to what is known about it
    widths : dict of hook name to int
    n_rows : int
    frame_rate : float
        Rows of a clip a second.
    dtype : torch.dtype
    config : dict
        What it was made with.
    fingerprint : str
        16 digits that stand for all its rows: what was trained on them can say so.

    Examples
    --------
    >>> store = ActivationStore.open("runs/store", model)  # doctest: +SKIP
    >>> train, test = store.split(0.8)  # doctest: +SKIP
    >>> for x in train.batches(3, batch_size=4096, epochs=2):  # doctest: +SKIP
    ...     step(x)  # (4096, 256) in bfloat16
    >>> test[3][test.clips[0].rows].shape  # doctest: +SKIP
    torch.Size([497, 256])
    """

    def __init__(
        self, folder: Path, config: dict, widths: dict, fingerprint: str, clips: list[StoredClip]
    ) -> None:
        self.folder, self.config, self.widths = folder, config, widths
        self.hooks: dict[str, Any] = config["hooks"]
        self.frame_rate: float = config["frame_rate"]
        self.dtype = DTYPES[config["dtype"]]
        self.fingerprint = fingerprint
        counts = np.array([clip.n_rows for clip in clips])
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.clips = [
            replace(clip, start=int(start))
            for clip, start in zip(clips, self._starts, strict=False)
        ]
        self._shards = list(dict.fromkeys(clip._shard for clip in clips))
        number = {shard: i for i, shard in enumerate(self._shards)}
        self._home = np.array([number[clip._shard] for clip in clips])
        self._offsets = np.array([clip._offset for clip in clips])
        self.n_rows = int(self._starts[-1])

    @classmethod
    def open(
        cls, folder: str | Path, model: MusicModel | None = None, verify: bool = True
    ) -> ActivationStore:
        """Open a finished store.

        Parameters
        ----------
        folder : str or Path
        model : MusicModel, optional
            The model that the rows must come from.
        verify : bool
            Compare the checksum of every shard, at more than a GB a second; otherwise only sizes.

        Returns
        -------
        ActivationStore

        Raises
        ------
        FileNotFoundError
            No store there, or a shard is missing.
        RunError
            The store is not finished, or a file is damaged: which.
        ValueError
            It was harvested from other weights than the model's.
        """
        folder = Path(folder)
        if not (folder / "run.json").exists():
            raise FileNotFoundError(f"{folder} holds no activation store: harvest one into it.")
        record = runs.load_json(folder / "run.json")
        config = record.get("config") if isinstance(record, dict) else None
        if not isinstance(config, dict) or config.get("kind") != "activations":
            raise RunError(f"{folder} is a run folder, but holds no activation store.")
        runs.checked(_Config, config, folder / "run.json", _A_STORE, _AGAIN)
        for about in config["hooks"].values():
            if _place(about):
                runs.checked(_Place, about, folder / "run.json", _A_STORE, _AGAIN)
        if not (folder / MANIFEST).exists():
            raise RunError(
                f"The store in {folder} is not finished: harvest with the same clips again, and "
                "it goes on where it stopped."
            )
        entries = runs.load_json(folder / "artifacts.json")
        runs.checked(dict[str, dict], entries, folder / "artifacts.json", _A_STORE, _AGAIN)
        entry, digest = entries.get(MANIFEST, {}), runs.sha256(folder / MANIFEST)
        if digest not in (entry.get("sha256"), entry.get("next")):
            raise RunError(_damaged(folder / MANIFEST))
        manifest = runs.load_json(folder / MANIFEST)
        runs.checked(_Manifest, manifest, folder / MANIFEST, _A_STORE, _AGAIN)
        if manifest["widths"].keys() != config["hooks"].keys():
            raise RunError(f"{folder / MANIFEST} and run.json name other hooks. {_AGAIN}")
        clips = []
        for listed in manifest["shards"]:
            path = folder / listed["file"]
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing: harvest again, and it is made anew.")
            right = path.stat().st_size == listed["bytes"]
            if not right or (verify and runs.sha256(path) != listed["sha256"]):
                raise RunError(_damaged(path))
            shard = _Shard(path)
            clips += (found := _stored(shard))
            dtype, n_rows = DTYPES[config["dtype"]], sum(clip.n_rows for clip in found)
            shard.agree(dtype, manifest["widths"], n_rows)
        if not clips:
            raise RunError(f"The store in {folder} holds no clips. {_AGAIN}")
        store = cls(folder, config, manifest["widths"], digest[:16], clips)
        if model is not None:
            for hook in store.hooks:
                store.hook_point(hook).check(model)
        return store

    # rows

    @property
    def d(self) -> int:
        """Width of a row, where all hooks have one."""
        if len(widths := set(self.widths.values())) > 1:
            raise ValueError(f"The hooks differ in width: {self.widths}. Ask store[hook].shape.")
        return widths.pop()

    def hook(self, layer: Layer) -> str:
        """The name of the tensor that holds a layer (a number, "embed", HookPoint or name)."""
        places = {name: _place(about) for name, about in self.hooks.items()}
        for name, place in places.items():
            if hasattr(layer, "fingerprint"):
                if (place.get("path"), place.get("fingerprint")) == (layer.path, layer.fingerprint):
                    return name
            elif layer == name or place.get("layer", name) == (-1 if layer == "embed" else layer):
                return name
        held = ", ".join(
            f"{name} of {place['model']} [{place['fingerprint']}]" if place else name
            for name, place in places.items()
        )
        raise ValueError(f"The store in {self.folder} holds {held}; it has no {layer}.")

    def hook_point(self, layer: Layer) -> HookPoint:
        """Where the rows of a layer come from, to be stored beside what is found in them."""
        from musae_utils.trace import HookPoint

        about = self.hooks[self.hook(layer)]
        if not _place(about):
            raise ValueError(f"{layer} of {self.folder} is no place in a language model: {about}.")
        return HookPoint(**about)

    def __getitem__(self, layer: Layer) -> HookRows:
        return HookRows(self, self.hook(layer))

    def rows(self, layer: Layer, index) -> torch.Tensor:
        """Rows of a layer by number, from anywhere: (n, d). The same as ``store[layer][index]``."""
        return self[layer][index]

    def __len__(self) -> int:
        return self.n_rows

    def batches(
        self,
        layer: Layer | Iterable[Layer],
        batch_size: int = 4096,
        seed: int = 0,
        epochs: int | None = 1,
        start: int = 0,
        buffer_rows: int = 2**18,
    ) -> Iterator[torch.Tensor | dict[Layer, torch.Tensor]]:
        """All rows in random order, each once in an epoch.

        Stretches of 32 neighbouring rows are drawn from anywhere until they make `buffer_rows`
        rows, and these are shuffled one by one. So what is read at a time is as much as a system
        keeps in its cache, in pieces that suit any disk; a store of no more rows than that is
        simply permuted.

        Parameters
        ----------
        layer : one (int, "embed", HookPoint or hook name), or several
        batch_size : int
            The last batch of an epoch may have fewer rows.
        seed : int
            With the number of the epoch it decides the order.
        epochs : int or None
            None goes on for ever.
        start : int
            Batches to pass over without reading them: how many were taken is all the state there
            is, and a training that was stopped goes on with ``start=step``.
        buffer_rows : int
            Rows that are shuffled together. They are not copied: memory holds one batch.

        Yields
        ------
        Tensor of shape (batch_size, d), in the store's dtype; or of several layers a dict
            By layer, as it was asked for, the rows in one order.
        """
        _positive(
            batch_size=batch_size, epochs=1 if epochs is None else epochs, buffer_rows=buffer_rows
        )
        if start != int(start) or start < 0:
            raise ValueError(f"start is a number of batches from 0 up, not {start!r}.")
        layers = layer if _is_one(layer) else list(layer)
        return self._batches(layers, batch_size, seed, epochs, start, buffer_rows)

    def _batches(self, layers, batch_size, seed, epochs, start, buffer_rows):
        hooks = {layer: self.hook(layer) for layer in _listed(layers)}
        an_epoch = -(-self.n_rows // batch_size)
        a_buffer = -(-buffer_rows // batch_size)
        shuffled = None
        for number in itertools.count(start):
            epoch, place = divmod(number, an_epoch)
            if epochs is not None and epoch >= epochs:
                return
            part, within = divmod(place, a_buffer)
            if shuffled != (epoch, part):
                order = self._order(seed, epoch, part, a_buffer * batch_size)
                shuffled = epoch, part
            rows = order[within * batch_size : (within + 1) * batch_size]
            batch = {layer: self._gather(hook, rows) for layer, hook in hooks.items()}
            yield batch[layers] if _is_one(layers) else batch

    def _order(self, seed: int, epoch: int, part: int, size: int) -> np.ndarray:
        """Rows that are shuffled together: one part of an epoch, its stretches drawn anywhere."""
        starts, lengths = self._blocks
        mixed = np.random.default_rng([seed, epoch]).permutation(len(starts))
        ends = np.cumsum(lengths[mixed])
        first, after = part * size, min((part + 1) * size, self.n_rows)
        places = np.arange(first, after)
        block = np.searchsorted(ends, places, side="right")
        rows = starts[mixed[block]] + places - (ends - lengths[mixed])[block]
        return np.random.default_rng([seed, epoch, part]).permutation(rows)

    @cached_property
    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """First row and length of each stretch; none crosses from one clip into the next."""
        starts = np.concatenate([np.arange(c.start, c.start + c.n_rows, BLOCK) for c in self.clips])
        return starts, np.diff(np.append(starts, self.n_rows))

    def _gather(self, hook: str, rows: np.ndarray) -> torch.Tensor:
        """Rows in the order asked for, read in the order in which they lie on the disk."""
        clip = np.searchsorted(self._starts, rows, side="right") - 1
        home, local = self._home[clip], self._offsets[clip] + rows - self._starts[clip]
        out = torch.empty(len(rows), self.widths[hook], dtype=self.dtype)
        order = np.lexsort((local, home))
        edges = np.flatnonzero(np.diff(home[order], prepend=-1, append=-1))
        local = torch.from_numpy(local[order])
        for first, after in itertools.pairwise(edges):
            tensor = self._shards[home[order[first]]].tensor(hook)
            torch.index_select(tensor, 0, local[first:after], out=out[first:after])
        if (order[:-1] < order[1:]).all():
            return out
        return out[torch.from_numpy(np.argsort(order))]

    # music

    def index(self) -> pd.DataFrame:
        """What each row is.

        Returns
        -------
        DataFrame with a line for each row
            ``clip`` (its number in `clips`), ``name``, ``group``, ``frame`` and ``seconds``, the
            moment at which the frame begins.
        """
        import pandas as pd

        counts = np.diff(self._starts)
        clip = np.repeat(np.arange(len(self.clips)), counts)
        frame = np.arange(self.n_rows) - self._starts[clip]
        names, groups = (
            pd.Categorical([getattr(c, key) for c in self.clips]).take(clip)
            for key in ("name", "group")
        )
        seconds = frame / self.frame_rate
        return pd.DataFrame(
            {"clip": clip, "name": names, "group": groups, "frame": frame, "seconds": seconds}
        )

    def labels(self, track: str) -> np.ndarray:
        """A truth track at each row: the truth of the middle of the row's frame.

        Parameters
        ----------
        track : str
            A key of ``Truth.frames``, e.g. ``"chord_root"``.

        Returns
        -------
        ndarray of shape (n_rows,), of ``"active"`` (n_rows, 128)

        Raises
        ------
        ValueError
            A clip has no truth, or not this track.
        """
        from musae_utils.music import FRAME_RATE

        parts = []
        for clip in self.clips:
            about = clip._about
            known = clip._track(f"truth.{track}", about)
            if known is None:
                tracks = [t[6:] for t in about["tracks"] if t.startswith("truth.")]
                has = ", ".join(tracks) or "no truth: it is a recording"
                raise ValueError(f"There is no {track!r} for clip {clip.name!r}, which has {has}.")
            moments = (np.arange(clip.n_rows) + 0.5) * (FRAME_RATE / self.frame_rate)
            parts.append(known[moments.astype(int).clip(max=len(known) - 1)])
        return np.concatenate(parts)

    def split(
        self, fraction: float = 0.5, seed: int = 0
    ) -> tuple[ActivationStore, ActivationStore]:
        """Two stores, one with this fraction of the compositions and one with the others.

        All clips of a composition are on one side. Both read the same files; rows are numbered
        from 0 in each.

        Raises
        ------
        ValueError
            One side would be empty.
        """
        groups = list(dict.fromkeys(clip.group for clip in self.clips))
        n = round(fraction * len(groups))
        if not 0 < n < len(groups):
            raise ValueError(
                f"{fraction:g} of {len(groups)} compositions leaves one side of the split empty."
            )
        order = np.random.default_rng(seed).permutation(len(groups))
        chosen = {groups[i] for i in order[:n]}
        return self._only(lambda c: c.group in chosen), self._only(lambda c: c.group not in chosen)

    def _only(self, wanted: Callable[[StoredClip], bool]) -> ActivationStore:
        clips = [clip for clip in self.clips if wanted(clip)]
        return ActivationStore(self.folder, self.config, self.widths, self.fingerprint, clips)

    def __repr__(self) -> str:
        hooks = "; ".join(f"{name} ({width} wide)" for name, width in self.widths.items())
        n_groups = len({clip.group for clip in self.clips})
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"ActivationStore {str(self.folder)!r} [{self.fingerprint}]\n"
            f"  {self.n_rows:,} rows in {dtype}: {len(self.clips):,} clips of {n_groups:,} "
            f"compositions, {self.frame_rate:g} frames/s\n"
            f"  {hooks}"
        )


def _place(about: Any) -> dict:
    """What a hook is known by if it lies in a language model: the fields of a `HookPoint`."""
    return about if isinstance(about, dict) and "fingerprint" in about else {}


def _stored(shard: _Shard) -> list[StoredClip]:
    clips, offset = [], 0
    for e in shard.entries():
        clips.append(
            StoredClip(
                e["name"], e["group"], e["caption"], e["prompt"], 0, e["rows"], e["digest"],
                shard, offset, tuple(e["about"]),
            )
        )  # fmt: skip
        offset += e["rows"]
    return clips


def _damaged(path: Path) -> str:
    return (
        f"{path} is damaged or was replaced: it is not what the harvest wrote. Delete it and "
        "harvest again, and it is made anew."
    )


# -- from a shell ----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Harvest composed music; stop it at any time, and the same command goes on."""
    parser = argparse.ArgumentParser("python -m musae_utils.activations", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--layers", type=int, nargs="+", help="the middle one unless given")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="the first composition")
    parser.add_argument("--split", default="train")
    parser.add_argument("--rows-per-shard", type=int)
    given = parser.parse_args(arguments)

    from musae_utils import models, music, trace

    model = models.load(given.model)
    clips = (
        music.make_many(1, given.seed + i, given.seconds, given.split)[0]
        for i in range(given.clips)
    )
    layers = given.layers or [trace.at_depth(model, 0.5)]
    store = harvest(model, clips, layers, given.folder, rows_per_shard=given.rows_per_shard)
    print(store)


if __name__ == "__main__":
    main()
