"""What work will take before anything is loaded: memory, time and disk by stage (notebook 18).

    python -m musae_utils.plan facebook/musicgen-small --clips 1000

**Memory is counted, not guessed.** The model is built from its configuration on torch's *meta*
device, where tensors have shapes and no memory, and the package's own code runs on it; `_peak` adds
up which tensors live at once. To that come the weights, the keys and values that generation keeps,
and what the operations of a CPU copy for themselves. A count stands for a stage: its weights and
its tensors, beside whatever the process holds already (Python and its libraries take 0.6 GB).

**Time is measured on a slice.** The same configuration, with a few layers and made-up weights, runs
for a second or two on the device that will be used: some steps of generation from the middle of
the music, a pass over a few rows, a second of sound through the codec. What comes out is multiplied
by what was left out, and kept for the process. The text encoder, which reads a prompt once, and
reading weights from a disk are not in it.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import math
import shutil
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:  # audiocraft takes seconds to import, and `Halving` needs none of it
    from musae_utils.models import MusicModel
    from musae_utils.models.outline import Outline

__all__ = ["Halving", "Plan", "Stage", "plan", "s1_layers"]

ROOM = 0.85  # share of the free memory that a batch may fill: allocators need some to move in
LARGEST = {"play": 64, "harvest": 8}  # rows at once that still gain something
ROWS = 8  # of a batch that go through the codec together
# Below 32 MiB a tensor lies on glibc's heap, where those that are freed leave holes. By how much
# the heap is larger than what lives on it depends on the order of sizes; measured on the nano
# (benchmarks/plan.py), where all tensors are that small.
MAPPED = 2**25
HEAP = {"step": 1.6, "decode": 1.6, "encode": 1.6, "pass": 2.0}
AROUND = 15e6  # code that is imported at first use, and what kernels keep
PROBE_SECONDS = 0.3  # of generation that is timed, twice
PROBE_FLOPS = 1e10  # of a pass that is timed: a fraction of a second on a laptop
PROBE_BYTES = 4e8  # of the weights that are made up for it

Result = TypeVar("Result")


# -- batches that shrink ---------------------------------------------------------------------------


class Halving:
    """Does work in batches, and halves them where a GPU's memory does not hold one.

    Only `torch.cuda.OutOfMemoryError` is caught; whatever else is raised is no matter of size. The
    size that went well is kept for the next call. Work whose rows do not depend on each other has
    the results of the smaller batch.

    Parameters
    ----------
    batch : int
        Rows to begin with.

    Attributes
    ----------
    batch : int
        Rows that fit, as far as is known.

    Examples
    --------
    >>> Halving(2)(lambda first, after: list(range(first, after)), 5)
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, batch: int) -> None:
        if not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch is a number of rows from 1 up, not {batch!r}.")
        self.batch = batch

    def __call__(self, work: Callable[[int, int], Result], rows: int) -> list[Result]:
        """Results of ``work(first, after)`` over neighbouring ranges that make 0 to `rows`.

        Raises
        ------
        MemoryError
            A single row does not fit.

        Warns
        -----
        UserWarning
            The batch was halved: from how many rows to how many.
        """
        results, first = [], 0
        while first < rows:
            after, full = min(first + self.batch, rows), False
            try:
                results.append(work(first, after))
                first = after
            except torch.cuda.OutOfMemoryError:
                full = True  # only after this block the tensors of the attempt can be freed
            if full:
                self._halve(after - first)
        return results

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise MemoryError(
                "Not even a single row fits in the GPU's memory: close what else uses it, ask for "
                "fewer seconds or layers, or load a smaller model (python -m musae_utils.plan "
                "says what fits)."
            )
        self.batch = tried // 2
        warnings.warn(
            f"{tried} rows at once do not fit in the GPU's memory: going on with {self.batch}.",
            stacklevel=4,
        )
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


# -- what is planned -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes
    ----------
    name : {"load", "play", "harvest", "train"}
    what : str
        In words.
    memory : int
        Bytes at the peak, weights included.
    seconds : float or None
        None where it was not measured.
    disk : int
        Bytes that it writes.
    batch : int or None
        Rows at once.
    """

    name: str
    what: str
    memory: int
    seconds: float | None = None
    disk: int = 0
    batch: int | None = None


@dataclass(frozen=True)
class Plan:
    """What work with a model takes, made by `plan`; `str` gives a table.

    Attributes
    ----------
    model : str
    device : torch.device
    dtype : torch.dtype
        Of the language model.
    parameters : dict of part to int
    weights : int
        Bytes of them in memory.
    kv_cache : int
        Bytes of keys and values at the end of a generation of ``play.batch`` rows.
    layers : tuple of int
        That are harvested.
    stages : dict of name to Stage
    free, free_disk : int
        Bytes, when the plan was made.
    notes : list of str
        What was chosen and why, and what does not fit.
    """

    model: str
    device: torch.device
    dtype: torch.dtype
    parameters: dict[str, int]
    weights: int
    kv_cache: int
    layers: tuple[int, ...]
    stages: dict[str, Stage]
    free: int
    free_disk: int
    notes: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """Bytes that the hungriest stage takes."""
        return max(stage.memory for stage in self.stages.values())

    @property
    def fits(self) -> bool:
        """Whether every stage fits in the free memory, and all they write on the disk."""
        disk = sum(stage.disk for stage in self.stages.values())
        return self.memory <= self.free and disk <= self.free_disk

    def __getattr__(self, name: str) -> Stage:
        stages = self.__dict__.get("stages", {})
        if name in stages:
            return stages[name]
        raise AttributeError(f"A plan has no {name!r}; its stages are {', '.join(stages)}.")

    def __str__(self) -> str:
        counts = ", ".join(f"{part} {n / 1e6:,.1f} M" for part, n in self.parameters.items() if n)
        rows = [("stage", "memory", "time", "disk", "")]
        for stage in self.stages.values():
            took = "-" if stage.seconds is None else _duration(stage.seconds)
            disk = _size(stage.disk) if stage.disk else "-"
            rows.append((stage.name, _size(stage.memory), took, disk, stage.what))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        table = []
        for first, *middle, last in rows:
            numbers = [cell.rjust(width) for cell, width in zip(middle, widths[1:], strict=True)]
            table.append("  ".join([first.ljust(widths[0]), *numbers, last]))
        dtype = str(self.dtype).removeprefix("torch.")
        return "\n".join([
            f"{self.model} on {self.device} in {dtype}: {_size(self.free)} of memory and "
            f"{_size(self.free_disk)} of disk are free",
            f"parameters: {counts}",
            "", *(line.rstrip() for line in table), "", *self.notes,
        ])  # fmt: skip


def plan(
    name: str | Path = "nano",
    seconds: float = 10.0,
    clips: int = 100,
    layers: int | Iterable[int] | None = None,
    d_sae: int | None = None,
    batch: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    folder: str | Path = ".",
    timed: bool = True,
) -> Plan:
    """Say what loading, playing, harvesting and training an SAE will take; nothing is loaded.

    Parameters
    ----------
    name : str or Path
        As for `models.load`: "nano", a published MusicGen, or a folder.
    seconds : float
        Of music, in each row that is played and each clip that is harvested.
    clips : int
        To harvest.
    layers : int or list of int, optional
        To harvest; S1's, at the model's depth, unless given (`s1_layers`).
    d_sae : int, optional
        Features of an SAE for each layer; 32 times the model's width unless given (nano: 16).
    batch : int, optional
        Rows at once, playing and harvesting. Unless given the largest power of two, up to 64 and
        8, that fits in the free memory.
    device, dtype : optional
        As for `models.load`.
    folder : str or Path
        Where activations would be kept: its disk is looked at.
    timed : bool
        Measure a slice of the work, in some seconds; otherwise times are left out.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, FileNotFoundError
        As `models.load`; lengths, counts and layers that cannot be.

    Examples
    --------
    >>> from musae_utils.plan import plan
    >>> small = plan("facebook/musicgen-small", clips=1000, timed=False)
    >>> round(small.parameters["language model"] / 1e6)
    420
    """
    from musae_utils import models
    from musae_utils.models.outline import outline

    chosen, precision = models._choose(device, dtype)
    shape = outline(name)
    layers = _checked(shape, seconds, clips, layers, d_sae, batch)
    free, where = _free(chosen)
    work = _Work(shape, chosen, precision, seconds, layers)
    notes = [_why(device, dtype, chosen, precision)]

    sizes = {}
    for stage, count in (("play", work.play), ("harvest", lambda rows: work.harvest(rows, clips))):
        sizes[stage] = batch or next(
            (rows for rows in _powers(LARGEST[stage]) if count(rows) <= ROOM * free), 1
        )
    took = _times(shape, chosen, precision, seconds, layers, sizes) if timed else {}
    frames = round(seconds * shape.frame_rate)
    rows = (frames - shape.delay) * clips
    kept = len(layers) * rows * shape.dim * 2 + rows * shape.codebooks * 2
    trained, train_seconds = _training(shape, d_sae, rows, layers, took.get("flops"))
    music = f"{seconds:g} s of music"
    files = f"{_size(shape.files)} of files" if shape.files else "once its files are here"
    stages = [
        Stage("load", files, work.load(), disk=_to_fetch(shape)),
        Stage("play", f"{sizes['play']} rows of {music} at once, with guidance",
              work.play(sizes["play"]), took.get("play"), batch=sizes["play"]),
        Stage("harvest", f"{clips:,} clips of {music}, layers {', '.join(map(str, layers))}, "
              f"{sizes['harvest']} clips at once: {rows:,} rows a layer",
              work.harvest(sizes["harvest"], clips),
              None if not took else took["harvest"] * clips / sizes["harvest"]
              + kept * took["byte"], kept, sizes["harvest"]),
        Stage("train", f"an SAE of {trained.sae.d_sae:,} features for each layer in turn, "
              f"{trained.steps:,} batches of {trained.batch_size:,}",
              trained.memory(), train_seconds, 4 * trained.sae.weights * len(layers)),
    ]  # fmt: skip
    found = Plan(
        shape.name, chosen, precision, shape.parameters, work.weights,
        work.kv_cache(sizes["play"]), layers, {stage.name: stage for stage in stages}, free,
        shutil.disk_usage(_existing(Path(folder))).free, notes,
    )  # fmt: skip
    if batch is None:
        notes.append(
            f"Batches: {sizes['play']} rows to play and {sizes['harvest']} to harvest are the "
            f"largest, up to {LARGEST['play']} and {LARGEST['harvest']}, that fit {where}."
        )
    for stage in stages:
        if stage.memory > free:
            notes.append(
                f"DOES NOT FIT: to {stage.name} takes {_size(stage.memory)}, and {_size(free)} are "
                f"free {where}. {_remedy(stage, shape)}"
            )
    needed = sum(stage.disk for stage in stages)
    if needed > found.free_disk:
        notes.append(
            f"DOES NOT FIT: the disk has {_size(found.free_disk)} free, and {_size(needed)} will "
            "be written: harvest fewer clips or layers, or choose another folder."
        )
    return found


def s1_layers(model: str | int) -> tuple[int, ...]:
    """The layers that S1 looks at, from 0, in a model of any size.

    Parameters
    ----------
    model : str or int
        A name as `models.load` takes it, or a number of layers.

    Returns
    -------
    tuple of int
        Of the small and the large model, those of S1's released SAEs (arXiv 2505.18186); else
        those at the same fractions of the depth.

    Examples
    --------
    >>> s1_layers("facebook/musicgen-small"), s1_layers("facebook/musicgen-medium")
    ((1, 5, 11, 17, 21), (1, 11, 23, 35, 45))
    """
    from musae_utils.sae.presets import S1_LAYERS

    if not isinstance(model, int):
        from musae_utils.models.outline import outline

        model = outline(model).layers
    depths = {"small": 24, "large": 48}
    near = min(depths, key=lambda size: abs(depths[size] - model))
    fractions = [layer / (depths[near] - 1) for layer in S1_LAYERS[near]]
    return tuple(dict.fromkeys(round(fraction * (model - 1)) for fraction in fractions))


def _checked(shape: Outline, seconds, clips, layers, d_sae, batch) -> tuple[int, ...]:
    if not (math.isfinite(seconds) and (shape.delay + 1) / shape.frame_rate <= seconds):
        raise ValueError(f"seconds is a length of music above 0, not {seconds!r}.")
    if seconds > shape.max_seconds:
        raise ValueError(
            f"seconds={seconds:g} is too long: {shape.name} plays up to {shape.max_seconds:g} s."
        )
    for what, count in (("clips", clips), ("d_sae", d_sae), ("batch", batch)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{what} is a whole number from 1 up, not {count!r}.")
    if layers is None:
        return s1_layers(shape.layers)
    layers = (layers,) if isinstance(layers, int) else tuple(layers)
    wrong = [layer for layer in layers if layer not in range(shape.layers)]
    if wrong or not layers:
        raise ValueError(
            f"{shape.name} has the layers 0 to {shape.layers - 1}; asked for was "
            f"{wrong[0] if wrong else 'none'!r}."
        )
    return layers


def _powers(most: int) -> list[int]:
    return [1 << i for i in reversed(range(most.bit_length()))]


def _free(device: torch.device) -> tuple[int, str]:
    """Bytes to be had on a device, and where that is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "on the GPU"
    if device.type == "mps":
        used = torch.mps.driver_allocated_memory()
        return torch.mps.recommended_max_memory() - used, "on the GPU"
    return psutil.virtual_memory().available, "in memory"


def _why(device, dtype, chosen: torch.device, precision: torch.dtype) -> str:
    if device is not None:
        where = f"Device: {chosen}, as asked"
    elif chosen.type == "cpu":
        where = "Device: cpu, as there is no GPU that torch can use"
    else:
        where = f"Device: {chosen}, as there is one"
    kind = str(precision).removeprefix("torch.")
    if dtype is not None:
        return f"{where}; {kind}, as asked."
    return f"{where}; {kind}, as audiocraft has it there. The codec and T5 are in float32."


def _remedy(stage: Stage, shape: Outline) -> str:
    if stage.name == "load":
        smaller = "'nano'" if "small" in shape.name else "facebook/musicgen-small, or 'nano'"
        return f"Choose a smaller model: {smaller}."
    if stage.name == "train":
        return "Choose a smaller d_sae."
    return "Ask for fewer seconds, or a smaller model."


def _existing(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _to_fetch(shape: Outline) -> int:
    """Bytes that would be fetched: of a published model whose files are not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    from musae_utils import models

    if shape.name not in models.PUBLISHED:
        return 0
    counts = shape.parameters
    sizes = {
        (shape.name, "state_dict.bin"): 2 * counts["language model"],
        (shape.name, "compression_state_dict.bin"): 4 * counts["codec"],
        (shape.text, "model.safetensors"): 4 * shape.text_file,
    }
    return sum(n for file, n in sizes.items() if not isinstance(try_to_load_from_cache(*file), str))


# -- memory ----------------------------------------------------------------------------------------


class _Work:
    """Bytes that each stage takes, by number of rows."""

    def __init__(self, shape: Outline, device, dtype, seconds: float, layers) -> None:
        self.shape, self.device, self.dtype, self.layers = shape, device, dtype, layers
        self.seconds, self.frames = seconds, round(seconds * shape.frame_rate)
        self.weights = shape.weights(dtype)
        self.model = shape.model(max(layers) + 1, dtype=dtype)
        self.around = int(AROUND) if device.type == "cpu" else 0
        # What is tried for several batches is counted once for each that differs.
        self._step, self._decode = cache(self._step), cache(self._decode)
        self.harvest = cache(self.harvest)

    def load(self) -> int:
        """While files are read: their mapped pages and half-precision copies beside the model."""
        if self.device.type != "cpu":
            return self.weights
        if self.shape.text:
            return self.weights + self.shape.parameters["language model"] * 2
        # Fresh weights, the file's in half precision and a copy in full, one part after the other.
        lm, codec = (self.shape.parameters[part] for part in ("language model", "codec"))
        return max(4 * codec + 10 * lm, 10 * codec)

    def peak(self, part: str, work: Callable[[], Any]) -> int:
        return _peak(work, HEAP[part] if self.device.type == "cpu" else 1.0)

    def kv_cache(self, rows: int) -> int:
        """Keys and values of `rows` rows at the end, both halves of guidance, all layers."""
        from musae_utils.models.compat import KV_PAGE

        shape, item = self.shape, self.dtype.itemsize
        positions = shape.prefix + self.frames + shape.delay
        first = (shape.prefix or 0) + 1 + KV_PAGE
        capacity = first if positions <= first else first + (KV_PAGE + 1) * math.ceil(
            (positions - first) / (KV_PAGE + 1)
        )  # fmt: skip
        own = 2 * shape.layers * 2 * rows * capacity * shape.dim * item
        text = 0 if shape.prefix else 2 * shape.layers * 2 * rows * shape.tokens * shape.dim * item
        # Where the cache grows, one of its buffers is there twice.
        return own + text + own // (2 * shape.layers)

    def play(self, rows: int) -> int:
        # What is decoded is there in parts, and then joined.
        sound = 2 * 4 * rows * self.frames * self.shape.sample_rate / self.shape.frame_rate
        steps = self.kv_cache(rows) + rows * self._step()
        return self.weights + self.around + max(steps, self._decode(min(rows, ROWS)) + int(sound))

    def _step(self) -> int:
        """Of a step of one row."""
        from musae_utils.models.sampling import Noise, generate_codes

        conditions = _conditions(self.model, 2)
        few = lambda: generate_codes(  # noqa: E731
            self.model.lm, conditions, 2, Noise(0, 1), guidance=3.0
        )
        return self.peak("step", few)

    def _decode(self, rows: int) -> int:
        codes = torch.zeros(
            rows, self.shape.codebooks, self.frames, dtype=torch.long, device="meta"
        )
        return self.peak("decode", lambda: self.model.codec.decode(codes, None))

    def harvest(self, rows: int, clips: int) -> int:
        from musae_utils import trace
        from musae_utils.activations import SHARD_BYTES

        shape = self.shape
        codes = torch.zeros(rows, shape.codebooks, self.frames, dtype=torch.long)
        read = lambda: trace.residuals(self.model, codes, list(self.layers))  # noqa: E731
        passed = self.peak("pass", read)
        sound = torch.empty(
            1, self.model.codec.channels, round(self.seconds * shape.sample_rate), device="meta"
        )
        encoded = self.peak("encode", lambda: self.model.codec.encode(sound))
        # The rows of a shard: one by one, joined, and as bytes.
        a_clip = len(self.layers) * self.frames * shape.dim * 2
        shard = min(clips * a_clip, SHARD_BYTES + rows * a_clip)
        shard *= self.device.type == "cpu"  # of a GPU's memory it takes none
        batch = rows * sound.numel() * 4
        busy = max(passed + shard, encoded + shard, 3 * shard)
        return self.weights + self.around + batch + busy


def _conditions(model: MusicModel, rows: int) -> dict:
    """A prompt's worth of what a language model attends to."""
    (reader,) = model.lm.condition_provider.conditioners.values()
    shape, device = (rows, reader.max_words, model.dim), model.device
    prompt = torch.zeros(shape, device=device, dtype=model.dtype)
    return {"description": (prompt, torch.ones(shape[:2], device=device))}


def _peak(work: Callable[[], Any], heap: float = 1.0) -> int:
    """Bytes of the tensors that live at once while `work` runs on the meta device.

    Tensors below `MAPPED` count `heap` times.
    """
    with torch.no_grad(), _as_fused(), _Live(heap) as live:
        kept = work()
    del kept
    return live.peak


class _Live(TorchDispatchMode):
    """Adds up the tensors that are made, and takes them off as they go.

    Views, and what was there before, count nothing. What an operation copies for itself on a CPU
    counts while it runs: an inverse FFT of real signals overwrites its input and works on a copy;
    FFTs, folding and convolutions want their input in one piece.
    """

    COPIES = ("_fft_r2c", "_fft_c2c", "col2im", "im2col", "convolution")

    def __init__(self, heap: float = 1.0) -> None:
        super().__init__()
        self.heap, self.now, self.peak = heap, 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, 0)
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, tensor.untyped_storage().nbytes())
        name = function.overloadpacket.__name__
        copied = 0
        if name == "_fft_c2r":
            copied = args[0].nbytes
        elif name in self.COPIES and not args[0].is_contiguous():
            copied = args[0].nbytes
        self.peak = max(self.peak, self.now + copied)
        return result

    def _meet(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            size = int(size * self.heap) if size < MAPPED else size
            self.now += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _tensors(values: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


@contextmanager
def _as_fused():
    """Attention and LSTMs as one operation each: on the meta device torch takes them apart."""

    def attention(query, key, value, *args, **kwargs):
        return torch.empty_like(query)

    def lstm(self, x, hx=None):
        gates = x.new_empty(*x.shape[:-1], 4 * self.hidden_size)
        return gates[..., : self.hidden_size].clone(), None

    kept = F.scaled_dot_product_attention, torch.nn.LSTM.forward
    F.scaled_dot_product_attention, torch.nn.LSTM.forward = attention, lstm
    try:
        yield
    finally:
        F.scaled_dot_product_attention, torch.nn.LSTM.forward = kept


# -- time ------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _slice(name: str, device: torch.device, dtype: torch.dtype):
    """A few layers of a model with made-up weights, and how many they are."""
    from musae_utils.models.outline import outline

    shape = outline(name)
    a_layer = 16 * shape.dim**2 * dtype.itemsize
    layers = max(1, min(shape.layers, int(PROBE_BYTES // a_layer)))
    return shape.model(layers, device, dtype), layers


def _times(shape: Outline, device, dtype, seconds: float, layers, sizes) -> dict[str, float]:
    """Seconds of a batch played and harvested; of a byte written; of a floating-point operation."""
    key = (device, dtype, seconds)
    took = {
        "play": _play_seconds(shape.name, *key, sizes["play"]),
        "harvest": _harvest_seconds(shape.name, *key, max(layers) + 1, sizes["harvest"]),
        "byte": _byte_seconds(),
        "flops": _flop_seconds(device),
    }
    _slice.cache_clear()  # some hundred MB that would stay
    return took


@lru_cache(maxsize=64)
def _play_seconds(name: str, device, dtype, seconds: float, rows: int) -> float:
    from musae_utils.models.compat import prime_streaming
    from musae_utils.models.sampling import Noise, generate_codes

    model, layers = _slice(name, device, dtype)
    depth, frames, lm = _depth(name), round(seconds * model.frame_rate), model.lm
    conditions, delay = _conditions(model, 2 * rows), max(lm.pattern_provider.delays)
    middle, early, late = (max(int(frames * part), 1) for part in (0.5, 0.25, 0.75))

    def steps(n: int, played: int = middle) -> float:
        prime_streaming(lm, 2 * rows, played)
        with model.musicgen.autocast:
            took = _clock(
                lambda: generate_codes(lm, conditions, n, Noise(0, rows), guidance=3.0), device, 0
            )
        return took / (n + delay)

    some = max(1, min(16, int(PROBE_SECONDS / steps(1)) - delay))
    step = (steps(some, early) + steps(some, late)) / 2
    if layers < depth:  # the rest of them, without embeddings and logits
        x = torch.zeros(2 * rows, 1, model.dim, device=device, dtype=dtype)
        text = conditions["description"][0] if not lm.fuser.fuse2cond["prepend"] else None

        def deeper() -> float:
            with torch.no_grad(), model.musicgen.autocast, lm.streaming():
                prime_streaming(lm, 2 * rows, middle)
                lm.transformer(x, cross_attention_src=text)  # projects the text
                return _clock(lambda: lm.transformer(x, cross_attention_src=text), device, 2)

        step += (depth - layers) * deeper() / layers
    return step * (frames + delay) + _codec_seconds(name, device, dtype, seconds, rows)[1]


def _depth(name: str) -> int:
    from musae_utils.models.outline import outline

    return outline(name).layers


@lru_cache(maxsize=64)
def _harvest_seconds(name: str, device, dtype, seconds: float, depth: int, rows: int) -> float:
    """Of a batch of clips: encoded one by one, read together."""
    from musae_utils import trace

    model, layers = _slice(name, device, dtype)
    layers = min(layers, depth)
    frames = round(seconds * model.frame_rate)
    a_row = 2 * 16 * model.dim**2 * layers * frames
    some = max(1, min(rows, int(PROBE_FLOPS // a_row)))
    codes = torch.zeros(some, model.n_codebooks, frames, dtype=torch.long)
    read = lambda: trace.residuals(model, codes, [layers - 1])  # noqa: E731
    passed = _clock(read, device, 1) * rows / some * depth / layers
    return passed + rows * _codec_seconds(name, device, dtype, seconds, 1)[0]


@lru_cache(maxsize=64)
def _codec_seconds(name: str, device, dtype, seconds: float, rows: int) -> tuple[float, float]:
    """Of one clip encoded, and of all rows decoded."""
    model, _ = _slice(name, device, dtype)
    short = min(seconds, 1.0)
    n = round(short * model.sample_rate)
    sound = torch.full((1, model.codec.channels, n), 0.1, device=device)
    codes = torch.zeros(min(rows, ROWS), model.n_codebooks, round(short * model.frame_rate),
                        dtype=torch.long, device=device)  # fmt: skip
    with torch.no_grad():
        encode = _clock(lambda: model.codec.encode(sound), device, 1)
        decode = _clock(lambda: model.codec.decode(codes, None), device, 1)
    return encode * seconds / short, decode * seconds / short * max(1, rows / ROWS)


def _clock(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of 1 + `repeats` runs; the first warms up."""
    cpu = device.type == "cpu"
    sync = (lambda: None) if cpu else getattr(torch, device.type).synchronize
    # The clock of the process stands still while other programs run, but adds up threads.
    clock = time.process_time if cpu and torch.get_num_threads() == 1 else time.perf_counter
    best = math.inf
    for _ in range(1 + repeats):
        sync()
        start = clock()
        work()
        sync()
        best = min(best, clock() - start)
    return best


@lru_cache(maxsize=1)
def _byte_seconds() -> float:
    """Of a byte that is hashed and written, as stores are."""
    data = bytes(2**24)
    with tempfile.NamedTemporaryFile() as file:
        start = time.perf_counter()
        hashlib.sha256(data).digest()
        file.write(data)
        file.flush()
        return (time.perf_counter() - start) / len(data)


@lru_cache(maxsize=4)
def _flop_seconds(device: torch.device) -> float:
    """Of a floating-point operation in the products that SAEs are trained with."""
    from musae_utils.sae.steps import bfloat16_pays

    dtype = torch.bfloat16 if bfloat16_pays(device.type) else torch.float32
    a, b = (torch.zeros(n, 1024, dtype=dtype, device=device) for n in (1024, 4096))
    return _clock(lambda: a @ b.T, device, 3) / (2 * 1024 * 1024 * 4096)


def _training(shape: Outline, d_sae: int | None, rows: int, layers, flop: float | None):
    """The training of an SAE on all rows once, and the seconds of all layers."""
    from musae_utils.sae import presets
    from musae_utils.sae.architectures import SAEConfig
    from musae_utils.sae.train import TrainConfig

    if shape.text:
        d_sae = d_sae or 32 * shape.dim
        sae = SAEConfig(shape.dim, d_sae, "topk", min(100, d_sae))
        config = TrainConfig(sae, steps=1, batch_size=2048)
    else:
        config = presets.nano(d_in=shape.dim)
        sae = SAEConfig(shape.dim, d_sae or config.sae.d_sae, "topk", min(32, d_sae or 32))
    steps = max(1, rows // config.batch_size)
    config = TrainConfig(sae, steps=steps, batch_size=config.batch_size)
    # The encoder's product is dense; decoder and gradients touch k features a row.
    a_row = 2 * sae.d_in * sae.d_sae + 2 * 5 * sae.k * sae.d_in
    return config, None if flop is None else flop * a_row * steps * config.batch_size * len(layers)


# -- words -----------------------------------------------------------------------------------------


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main(arguments: list[str] | None = None) -> None:
    """Say what work with a model will take, before anything is loaded."""
    parser = argparse.ArgumentParser("python -m musae_utils.plan", description=main.__doc__)
    parser.add_argument("model", nargs="?", default="nano", help="a name or a folder")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--layers", type=int, nargs="+", help="S1's unless given")
    parser.add_argument("--d-sae", type=int, help="features of an SAE")
    parser.add_argument("--batch", type=int, help="rows at once; what fits unless given")
    parser.add_argument("--device", help="cuda, mps or cpu")
    parser.add_argument("--folder", default=".", help="where activations would be kept")
    parser.add_argument("--untimed", action="store_true", help="leave the times out")
    given = parser.parse_args(arguments)
    try:
        print(plan(
            given.model, given.seconds, given.clips, given.layers, given.d_sae, given.batch,
            given.device, folder=given.folder, timed=not given.untimed,
        ))  # fmt: skip
    except (ValueError, FileNotFoundError, MemoryError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
