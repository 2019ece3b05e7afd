"""What becomes of files that are not what they should be: every reader, given thousands of them.

    python benchmarks/fuzz.py [--only PARSER ...] [--inputs 100000] [--seed 0] [--folder DIR]

For each reader of this package a small valid folder is made, and then changed at random: bits and
bytes (flipped, cut, doubled, overwritten with sizes that nothing has), and what the bytes mean
(JSON values of another type, huge numbers, NaN, deep nesting, names that lead out of the folder;
headers of safetensors that promise what is not there; tensors of another shape, kind or length).
Where files vouch for each other by checksums, these are mostly put right again: what somebody else
publishes is consistent and may be hostile all the same.

An input is **handled** when the reader accepts it, or refuses it by raising one of the exceptions
that its docstring names, with a sentence, from a line of this package. Anything else is
**unhandled**: another exception, one that surfaces from a library's depths, a crash of the process,
more than `PATIENCE` seconds. Memory is the highest resident set of the reading process, over what
it was after reading the valid folder; `BOUND` is what it must stay below. An allocation that would
exceed `ROOM` is refused by the system, and so counts as unhandled.

The inputs are decided by the seed, the reader's name and the input's number. Readers run in forked
processes, `CHUNK` inputs each; what is done is kept in the folder, so that a stopped run goes on.

==================  ==============================================================================
fuzz.unhandled      inputs that were not handled, of all; and of each reader
fuzz.memory         MiB by which the resident set grew at most, over all readers; and of each
==================  ==============================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process cannot use its parent's threads

import numpy as np
import torch

from musae_utils import runs
from musae_utils.stats import Interval, proportion

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "data" / "robustness.json"
PACKAGE = str(ROOT / "musae_utils")
CHUNK = 2000  # inputs a process
PATIENCE = 10  # seconds an input may take
BOUND = 256  # MiB by which a reader's memory may grow
ROOM = 2**32  # bytes that a reader may ask the system for
Files = dict[str, bytes]


# -- changing files --------------------------------------------------------------------------------

SIZES = (0, 1, -1, 2, 7, 255, 2**15, 30_000, 2**31 - 1, 2**31, 10**12, 2**63 - 1, 2**63, -(10**30))
NAMES = (
    "", "..", "../../etc/passwd", "/etc/passwd", "~/x", "C:\\x", "a\x00b", "\u202ex", "\ud800",
    "x" * 5000, "<script>alert(1)</script>", "ünï", "none", "cuda:99", "%s%n", "{0}", "true",
)  # fmt: skip
DTYPES = ("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "C64", "F8_E4M3",
          "X")  # fmt: skip


def value(r: random.Random) -> Any:
    """A JSON value that nobody expects."""
    kind = r.randrange(9)
    if kind < 3:
        return r.choice(SIZES)
    if kind == 3:
        return r.choice((math.nan, math.inf, -math.inf, 1e308, 1e-308, 0.5, -0.0))
    if kind < 6:
        return r.choice(NAMES)
    if kind == 6:
        return r.choice((None, True, False))
    if kind == 7:
        return r.choice(([], {}, [[]], [0] * 300, {"": None}, [None, "x", {}]))
    nested: Any = r.choice(SIZES)
    for _ in range(r.choice((1, 5, 60, 900))):
        nested = [nested] if r.random() < 0.5 else {"x": nested}
    return nested


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found, left = [], [tree]
    while left and len(found) < 2000:
        node = left.pop()
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                left.append(node[key])
    return found


def change_json(tree: Any, r: random.Random) -> Any:
    """The same JSON value, changed in one to three places."""
    tree = json.loads(json.dumps(tree))
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        places = _places(tree) if isinstance(tree, (dict, list)) else []
        if not places or r.random() < 0.02:
            return value(r)
        node, key = r.choice(places)
        old, what = node[key], r.randrange(9)
        if isinstance(old, str) and old[:1] in "{[" and r.random() < 0.9:
            with contextlib.suppress(ValueError):  # JSON within JSON
                node[key] = written(json.loads(old), r)
                continue
        if what == 0:
            del node[key]
        elif what == 1 and isinstance(node, dict):
            node[r.choice(NAMES) if r.random() < 0.5 else str(key) + "x"] = node.pop(key)
        elif what == 2:
            other, place = r.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                node[key] = json.loads(json.dumps(other[place]))
        elif what == 3:
            node[key] = [old] if r.random() < 0.5 else {"x": old}
        elif what < 7 and isinstance(old, (int, float)) and not isinstance(old, bool):
            node[key] = r.choice((old + 1, old - 1, -old, old * 2, old * 10**6, old / 2, str(old)))
        else:
            node[key] = value(r)
    return tree


def written(tree: Any, r: random.Random) -> str:
    """A changed JSON value as text, which may be no JSON any more."""
    text = json.dumps(change_json(tree, r), ensure_ascii=r.random() < 0.7)
    odd = r.randrange(60)
    if odd == 0:
        text = text[: r.randrange(len(text) + 1)]
    elif odd == 1:
        at = r.randrange(len(text) + 1)
        text = text[:at] + r.choice(("[" * 100_000, '{"a":' * 50_000, "9" * 5000, "NaN", "\x00"))
    elif odd == 2:
        text = "\ufeff" + text
    return text


def change_text(data: bytes, r: random.Random) -> bytes:
    """A changed JSON file."""
    try:
        text = written(json.loads(data), r)
    except ValueError:
        return change_bytes(data, r)
    how = "utf-16" if r.random() < 0.01 else "utf-8"
    return text.encode(how, "surrogatepass")


def change_bytes(data: bytes, r: random.Random) -> bytes:
    """The same bytes, damaged."""
    data = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 4))):
        n, what = len(data), r.randrange(8)
        at = min(r.randrange(n + 1), r.randrange(n + 1)) if r.random() < 0.7 else r.randrange(n + 1)
        if what == 0 and n:
            for _ in range(r.choice((1, 8))):
                data[min(r.randrange(n), at)] ^= 1 << r.randrange(8)
        elif what == 1:
            del data[at:]
        elif what == 2:
            del data[at : at + r.choice((1, 4, 64))]
        elif what == 3:
            data[at:at] = r.randbytes(r.choice((1, 4, 64)))
        elif what == 4:
            data[at:at] = data[at : at + r.choice((8, 256))]
        elif what == 5 and n > 8:
            size = r.choice((1, 2, 4, 8))
            number = r.choice(SIZES) % 2 ** (8 * size)
            data[at : at + size] = number.to_bytes(size, r.choice(("little", "big")))
        elif what == 6:
            length = r.choice((4, 64, n))
            data[at : at + length] = bytes([r.choice((0, 255, 127))]) * min(length, max(n - at, 0))
        elif r.random() < 0.1:
            data = bytearray(r.randbytes(r.choice((0, 1, 8, 500))))
        else:
            data += data[:at]
        del data[10**6 :]
    return bytes(data)


def split_safetensors(data: bytes) -> tuple[dict, bytes]:
    """Header and payload of a safetensors file."""
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def join_safetensors(header: str, payload: bytes) -> bytes:
    told = header.encode("utf-8", "surrogatepass")
    told += b" " * (-len(told) % 8)
    return struct.pack("<Q", len(told)) + told + payload


def _put(header: dict, payload: bytes, name: str, data: bytes) -> tuple[dict, bytes]:
    """Bytes in the place of a tensor's; those behind it move."""
    start, end = header[name]["data_offsets"]
    header[name] |= {"shape": [len(data)], "data_offsets": [start, start + len(data)]}
    for other, entry in header.items():
        if other not in (name, "__metadata__") and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [x + len(data) - end + start for x in entry["data_offsets"]]
    return header, payload[:start] + data + payload[end:]


def _inside(text: str, r: random.Random) -> str:
    """JSON values, one after the other, of which one was changed and keeps its length if it can."""
    decode, at, spans = json.JSONDecoder().raw_decode, 0, []
    while at < len(text) and text[at] in "[{":
        tree, end = decode(text, at)
        spans.append((at, end, tree))
        at = end
    start, end, tree = r.choice(spans)
    return text[:start] + written(tree, r).ljust(end - start) + text[end:]


def change_safetensors(data: bytes, r: random.Random) -> bytes:
    """Another header, other numbers, or damage."""
    what = r.randrange(6)
    if what == 0:
        return change_bytes(data, r)
    header, payload = split_safetensors(data)
    names = [name for name in header if name != "__metadata__"]
    if what == 1 or not names:
        return join_safetensors(written(header, r), payload)
    for _ in range(r.choice((1, 1, 2))):
        name = r.choice(names)
        entry, change = header[name], r.randrange(8)
        start, end = entry["data_offsets"]
        if entry["dtype"] == "U8" and payload[start : start + 1] in (b"[", b"{") and change > 1:
            text = _inside(payload[start:end].decode(), r).encode("utf-8", "surrogatepass")
            header, payload = _put(header, payload, name, text)
            continue
        if change == 0:  # as many numbers in another shape
            shape = [int(s) for s in entry["shape"]]
            r.shuffle(shape)
            entry["shape"] = r.choice((shape, [1, *shape], [math.prod(shape)], [*shape, 1]))
        elif change == 1:  # as many bytes of another kind
            entry["dtype"] = r.choice(DTYPES)
        elif change == 2:
            entry["shape"] = [r.choice(SIZES) for _ in range(r.randrange(4))]
        elif change == 3:  # nothing, in a shape of any size: this is a valid header
            header, payload = _put(header, payload, name, b"")
            header[name]["shape"] = [0, r.choice((1, 7, 10**6, 10**12))]
        elif change == 4 and end - start >= 4:  # NaN, infinity, huge
            at = start + 4 * r.randrange((end - start) // 4)
            pattern = r.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 4, b"\xff\xff\x7f\x7f"))
            many = (end - at) // 4 if r.random() < 0.3 else 1
            payload = payload[:at] + pattern * many + payload[at + 4 * many :]
        elif change == 5:
            header[r.choice(NAMES) or "x"] = header.pop(name)
            names = [name for name in header if name != "__metadata__"]
        elif change == 6:
            entry["data_offsets"] = [r.choice((start, r.choice(SIZES))), r.choice((end, 10**12))]
        elif "__metadata__" in header:
            header["__metadata__"] = change_json(header["__metadata__"], r)
        else:
            del header[name]
            names.remove(name)
        if not names:
            break
    return join_safetensors(json.dumps(header), payload)


def change_tensor(x: torch.Tensor, r: random.Random) -> Any:
    """Something else in a tensor's place."""
    what = r.randrange(10)
    if what == 0:
        return x.flatten()[: r.randrange(x.numel() + 1)].clone()
    if what == 1:
        return x.T.contiguous() if x.ndim == 2 else x[None]
    if what == 2:
        kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool,
                 torch.complex64)  # fmt: skip
        return x.to(r.choice(kinds))
    if what == 3:
        x = x.clone().float()
        if x.numel():
            x.view(-1)[r.randrange(x.numel())] = r.choice((math.nan, math.inf, -math.inf, 3e38))
        return x
    if what == 4:  # a number that poses as many: nothing but its strides says so
        shape = [r.choice((1, 30_000, 10**6, 10**9)) for _ in range(max(1, x.ndim))]
        return torch.zeros(1).expand(shape)
    if what == 5:
        return x.reshape(-1)[:1].reshape(()).clone() if x.numel() else x
    if what == 6:
        return x.to_sparse() if x.ndim else x.reshape(1).to_sparse()
    if what == 7:
        return torch.empty(tuple(x.shape), device="meta")
    if what == 8:
        return torch.randint(-(2**40), 2**40, (r.randrange(6),))
    return r.choice((None, 3, 0.5, "x", [1, 2], {"a": x}, 10**30))


def change_pickle(data: bytes, r: random.Random) -> bytes:
    """A file of torch.save: tensors, the pickle within it, or bytes."""
    what = r.randrange(4)
    if what == 0:
        return change_bytes(data, r)
    if what == 1:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            chosen = r.choice(old.namelist())
            for name in old.namelist():
                inside = old.read(name)
                new.writestr(name, change_bytes(inside, r) if name == chosen else inside)
        return out.getvalue()
    state = torch.load(io.BytesIO(data), weights_only=True)
    inner = state.get("state_dict", state)
    for _ in range(r.choice((1, 1, 2, 3))):
        name, other = r.choice(list(inner)), r.random()
        if other < 0.1:
            del inner[name]
        elif other < 0.2:
            inner[r.choice((*NAMES, 3))] = inner.pop(name)
        elif isinstance(inner[name], torch.Tensor):
            inner[name] = change_tensor(inner[name], r)
        if not inner:
            break
    out = io.BytesIO()
    with contextlib.suppress(Exception):  # some things cannot be saved at all
        torch.save(state if r.random() < 0.95 else list(inner.values()), out)
    return out.getvalue()


CHANGES = {
    ".json": change_text, ".ipynb": change_text, ".jsonl": change_bytes,
    ".safetensors": change_safetensors, ".pt": change_pickle, ".ckpt": change_pickle,
}  # fmt: skip


def change(files: Files, r: random.Random) -> Files:
    """A folder's files of which one or two were changed, or one lost."""
    files = dict(files)
    for _ in range(r.choice((1, 1, 1, 2))):
        name = r.choice(sorted(files))
        if r.random() < 0.005 and len(files) > 1:
            del files[name]
            continue
        by = CHANGES.get(Path(name).suffix, change_bytes)
        by = change_bytes if r.random() < 0.1 else by
        try:
            files[name] = by(files[name], r)
        except Exception:  # an earlier change left nothing to understand
            files[name] = change_bytes(files[name], r)
    return files


# -- readers ---------------------------------------------------------------------------------------


class Parser(NamedTuple):
    """A reader of files, and a valid folder for it.

    Attributes
    ----------
    make : callable
        Writes the valid folder.
    read : callable
        Reads a folder, and whatever is read only when it is asked for.
    refuses : tuple of exception types
        Those that its docstring names.
    sign : callable, optional
        Puts right the checksums by which the files vouch for each other.
    share : float
        Of the inputs asked for; less where reading is slow.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    refuses: tuple[type[BaseException], ...]
    sign: Callable[[Files], None] | None = None
    share: float = 1.0


def _write_saelens(folder: Path) -> None:
    from musae_utils import sae

    point = {"model": "nano", "layer": 3, "path": "transformer.layers.3", "fingerprint": "ab" * 8}
    for name, config in (
        ("topk", sae.SAEConfig(4, 8, k=2)),
        ("jumprelu", sae.SAEConfig(4, 8, "jumprelu", apply_b_dec_to_input=False)),
        ("gated", sae.SAEConfig(4, 8, "gated")),
        ("batched", sae.SAEConfig.of(4, 2, 2, "matryoshka")),
    ):
        made = sae.SAE(config, point)
        sae.save_saelens(made, folder / name, sparsity=np.full(8, 0.1))
    # As sae-lens 6 writes it, from nobody we know.
    cfg = json.loads((folder / "jumprelu" / "cfg.json").read_text())
    shutil.copytree(folder / "jumprelu", folder / "foreign")
    cfg["metadata"] = {key: cfg.pop(key) for key in ("hook_name", "model_name", "prepend_bos")}
    (folder / "foreign" / "cfg.json").write_text(json.dumps(cfg | {"musae": None}))


def _used(made: Any) -> None:
    """What is done with an SAE that was accepted."""
    x = torch.ones(2, made.config.d_in)
    made(x), made.decode(made.encode_sparse(x)), repr(made)
    made.hook_point is None or made.check(made.hook_point)


def _read_saelens(folder: Path) -> None:
    from musae_utils import sae

    _used(_bindable(sae.load_saelens(folder)))
    sae.load_sparsity(folder)


def _bindable(made: Any) -> Any:
    """A fingerprint, as binding it to a model would give."""
    if made.hook_point and made.hook_point.get("fingerprint") is None:
        made.hook_point = {**made.hook_point, "fingerprint": "ab"}
    return made


def _write_dictionary_learning(folder: Path) -> None:
    from musae_utils import sae

    for name, config in (
        ("topk", sae.SAEConfig(4, 8, k=2)),
        ("standard", sae.SAEConfig(4, 8, "standard")),
        ("gated", sae.SAEConfig(4, 8, "gated")),
        ("batched", sae.SAEConfig.of(4, 2, 2, "matryoshka")),
    ):
        sae.save_dictionary_learning(sae.SAE(config), folder / name)


def _read_dictionary_learning(folder: Path) -> None:
    from musae_utils import sae

    _used(_bindable(sae.load_dictionary_learning(folder)))


def _write_sae(folder: Path) -> None:
    from musae_utils import sae

    point = {"model": "nano", "layer": 3, "path": "transformer.layers.3", "fingerprint": "ab" * 8}
    for name, config in (
        ("topk", sae.SAEConfig(4, 8, k=2)),
        ("jumprelu", sae.SAEConfig(4, 8, "jumprelu")),
        ("batched", sae.SAEConfig.of(4, 2, 2, "matryoshka")),
    ):
        made = sae.SAE(config, point)
        made.provenance = {"steps": 3, "last": {"fvu": 0.2}}
        made.save(folder / name / "sae.safetensors", half=name == "topk")


def _read_sae(folder: Path) -> None:
    from musae_utils import sae

    _used(sae.SAE.load(folder / "sae.safetensors"))


def _hum(seed: int, seconds: float = 5.0, known: bool = True) -> Any:
    """A composed clip with its truth, and a tone in place of its sound."""
    from musae_utils.music import Clip, Spec, compose
    from musae_utils.music.render import truth_of

    score = compose(Spec(seconds=seconds), seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    audio = (0.1 * np.sin(2 * np.pi * (220 + 30 * seed) * t)).astype(np.float32)
    provenance = {"source": "composed", "seed": seed}
    return Clip(audio, 16_000, truth_of(score, audio) if known else None, "a tune", provenance)


def _write_store(folder: Path) -> None:
    from musae_utils.activations import Frames, write_store

    point = {"model": "nano", "layer": 3, "path": "transformer.layers.3", "fingerprint": "ab" * 8}

    def read(clips, first):
        return [
            Frames({"transformer.layers.3": torch.ones(10, 4) * i}, torch.ones(2, 13).int() * i)
            for i, _ in enumerate(clips, first)
        ]

    hooks = {"transformer.layers.3": point}
    for name, last in (("known", True), ("unknown", False)):
        clips = [_hum(seed, known=last or seed < 2) for seed in range(3)]
        write_store(folder / name, clips, read, hooks, 50.0, rows_per_shard=20, progress=False)


def _read_store(folder: Path) -> None:
    from musae_utils.activations import ActivationStore

    store = ActivationStore.open(folder)
    repr(store), store.index()
    for hook in store.hooks:
        store[hook][:3], store[hook].shape, next(store.batches(hook, 8))
    truths = [(clip.codes, clip.provenance, clip.truth)[2] for clip in store.clips]
    store.hook_point(3)
    if all(truths):
        store.labels("chord_root")


def _sign_store(files: Files) -> None:
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        manifest = json.loads(files["store.json"])
        for shard in manifest["shards"]:
            if (data := files.get(shard["file"])) is not None:
                shard |= {"bytes": len(data), "sha256": _digest(data)}
        files["store.json"] = json.dumps(manifest).encode("utf-8", "surrogatepass")
        entries = json.loads(files["artifacts.json"])
        for name in entries:
            if name in files:
                entries[name] = {"sha256": _digest(files[name]), "bytes": len(files[name])}
        files["artifacts.json"] = json.dumps(entries).encode("utf-8", "surrogatepass")


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _write_atlas(folder: Path) -> None:
    from musae_utils.activations import Frames, write_store
    from musae_utils.features import FeatureAtlas

    point = {"model": "nano", "layer": 3, "path": "transformer.layers.3", "fingerprint": "ab" * 8}

    class Coder:
        hook_point = point
        W_dec = torch.eye(8)

        def encode(self, x):
            return x.float().relu()

    def read(clips, first):
        rng = torch.Generator().manual_seed(first)
        return [Frames({point["path"]: torch.randn(50, 8, generator=rng)}) for _ in clips]

    clips = [_hum(seed) for seed in range(8)]
    with tempfile.TemporaryDirectory() as place:
        store = write_store(place, clips, read, {point["path"]: point}, 50.0, batch=1,
                            progress=False)  # fmt: skip
        FeatureAtlas.of(Coder(), store, examples=2).save(folder / "one")


def _read_atlas(folder: Path) -> None:
    from musae_utils.features import FeatureAtlas

    atlas = FeatureAtlas.load(folder)
    repr(atlas), atlas.search("chord"), atlas.top(n=3, kept=False), atlas.follows(0)
    for example in range(len(atlas.kinds)):
        if atlas.examples[0, example] >= 0:
            atlas.curve(0, example)


def _sign_atlas(files: Files) -> None:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        about = json.loads(files["atlas.json"])
        about["sha256"] = _digest(files.get("atlas.safetensors", b""))
        files["atlas.json"] = json.dumps(about).encode("utf-8", "surrogatepass")


def _write_audio(folder: Path) -> None:
    import soundfile

    t = np.arange(2400) / 8000
    sound = np.stack([np.sin(2 * np.pi * 300 * t), np.sin(2 * np.pi * 450 * t)], 1) * 0.3
    for name, format, subtype in (
        ("wav", "WAV", "PCM_16"), ("float", "WAV", "FLOAT"), ("flac", "FLAC", "PCM_16"),
        ("ogg", "OGG", "VORBIS"), ("mp3", "MP3", None), ("aiff", "AIFF", "PCM_24"),
    ):  # fmt: skip
        (folder / name).mkdir()
        soundfile.write(folder / name / "sound.bin", sound, 8000, subtype, format=format)


def _read_audio(folder: Path) -> None:
    from musae_utils import music

    clip = music.load_audio(folder / "sound.bin")
    assert np.isfinite(clip.audio).all() and np.abs(clip.audio).max(initial=0) <= 1 + 1e-6
    music.load_audio(folder / "sound.bin", seconds=0.1, offset=0.05)


def _write_replies(folder: Path) -> None:
    answer = {"abstain": False, "label": "solo flute", "evidence": "heard in A1 to A4"}
    message = {"role": "assistant", "content": json.dumps(answer)}
    reply = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 40},
    }
    fenced = json.loads(json.dumps(reply))
    fenced["choices"][0]["message"]["content"] = f"```json\n{json.dumps(answer, indent=1)}\n```"
    refusal = json.loads(json.dumps(reply))
    refusal["choices"][0]["message"] |= {"content": None, "refusal": "I cannot listen."}
    for name, said in (("plain", reply), ("fenced", fenced), ("refusal", refusal)):
        (folder / name).mkdir()
        (folder / name / "reply.json").write_text(json.dumps(said))


def _read_reply(folder: Path) -> None:
    """As `MultimodalLLM._reply` does, but for the network and the disk."""
    import httpx

    from musae_utils.labels import Example, Half, llm

    client = object.__new__(llm.MultimodalLLM)
    client.url, client._gap, client._last, client._local = "https://x", 0.0, -math.inf, True
    client._timeout, client._key_name = 1.0, "KEY"
    body = (folder / "reply.json").read_bytes()
    headers = {"content-type": "application/json", "retry-after": "1" * 40}
    posted, httpx.post = httpx.post, lambda *_, **__: httpx.Response(200, content=body,
                                                                     headers=headers)  # fmt: skip
    try:
        reply = llm._read(client._once({}, llm.SecretStr("")))
    finally:
        httpx.post = posted
    json.dumps(reply).encode()
    one = Example(0, "clip", "g", 0.0, 0.1, 0.0, np.zeros(800, np.float32), 16_000, None)
    label = llm._label(Half(3, [one], [one]), "llm: x", lambda _: reply | {"dollars": 0.1})
    label._repr_html_().encode(), label.model_dump_json()


def _write_labels(folder: Path) -> None:
    from musae_utils import labels

    named = [labels.Label(feature=i, method="truth", text=f"label {i}") for i in range(3)]
    (folder / "one").mkdir()
    labels.save(folder / "one" / "labels.json", named)


def _read_labels(folder: Path) -> None:
    from musae_utils import labels

    for label in labels.load(folder / "labels.json"):
        label._repr_html_().encode()


def _write_book(folder: Path) -> None:
    from nbformat import v4, writes

    root = folder / "one"
    (root / "notebooks").mkdir(parents=True)
    (root / "book").mkdir()
    parameters = 'profile: str = "full"  # how much\nmodel: str = "nano"  # which\nn: int = 3  # of'
    cells = [
        v4.new_markdown_cell("# 1 A title\n\n**Why is it so?**"),
        v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        v4.new_code_cell("1", execution_count=1, outputs=[
            v4.new_output("execute_result", {"text/html": "<b>1</b>"}, execution_count=1)
        ]),
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    (root / "notebooks" / "01_one.ipynb").write_text(writes(notebook))
    (root / "book" / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nparts:\n- caption: I\n  chapters:\n"
        "  - file: notebooks/01_one\n"
    )
    (root / "given.json").write_text(json.dumps({"n": "4", "model": "nano"}))


def _read_book(folder: Path) -> None:
    from musae_utils import book

    try:
        given = json.loads((folder / "given.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        given = {}
    given = given if isinstance(given, dict) else {}
    given = {str(name): text for name, text in given.items() if isinstance(text, str)}
    chapters = book.load_chapters(folder)
    book.set_parameters(chapters, chapters, "smoke", "nano", None, given)
    for chapter in chapters:
        chapter.title, chapter.question, book.key(chapter, "")
        book.hollow_outputs(chapter.notebook)


_NANO = {"dim": 16, "heads": 2, "layers": 1, "codebooks": 2, "cardinality": 8,
         "vocabulary": ["slow", "flute"]}  # fmt: skip
_CODEC = {"n_fft": 64, "hop": 32, "dim": 4, "encoder_width": 6, "decoder_width": 6,
          "encoder_dilations": [1, 2], "decoder_dilations": [1], "codebooks": 2,
          "cardinality": 8}  # fmt: skip


def _write_nano(folder: Path) -> None:
    from musae_utils.latents.nano import BUILDERS
    from musae_utils.models import nano

    builders = {"lm": nano.build_lm, **BUILDERS}
    for part, about in (
        ("lm", _NANO), ("codec", _CODEC), ("tokenizer", {**_CODEC, "codebooks": 1}),
        ("vae", {**_CODEC, "stride": 2}),
    ):  # fmt: skip
        torch.manual_seed(0)
        (folder / part).mkdir()
        net = builders[part](about)
        nano.save_part(folder / part, part, net, {"architecture": about, "max_seconds": 20},
                       eight_bit=part != "codec")  # fmt: skip


def _read_nano(folder: Path) -> None:
    from musae_utils.latents.nano import BUILDERS
    from musae_utils.models import nano

    part = folder.name
    net = nano.load_part(folder, part, {"lm": nano.build_lm, **BUILDERS})
    with torch.no_grad():
        if part != "lm":
            sound = torch.zeros(1, 1, 640)
            z = net.encode(sound) if part == "vae" else net.encoder(sound)
            net.decode(z) if part == "vae" else net.decoder(z)


def _write_model(folder: Path) -> None:
    from musae_utils.models import nano

    (folder / "one").mkdir()
    torch.manual_seed(0)
    for part, build, about in (("lm", nano.build_lm, _NANO), ("codec", nano.build_codec, _CODEC)):
        told = {"architecture": about, "max_seconds": 20}
        nano.save_part(folder / "one", part, build(about), told)


def _read_model(folder: Path) -> None:
    from musae_utils import models

    repr(models.load(folder, device="cpu"))


def _write_ears(folder: Path) -> None:
    from safetensors.torch import save_file

    from musae_utils import models
    from musae_utils.labels import ears

    for part, of in (("tagger", ears.TaggerNet), ("clap", ears.ClapNet)):
        report = json.loads((models.NANO_FOLDER / f"{part}.json").read_text())
        small = {"embedding": 4, "buckets": 16}
        widths = ("note_width", "width", "hidden", "word_width", "text_hidden")
        about = {
            name: small.get(name, 4 if name in widths else size)
            for name, size in report["architecture"].items()
        }
        report |= {"architecture": about, "recipe": {}, "held_out": {}}
        (folder / part).mkdir()
        (folder / part / f"{part}.json").write_text(json.dumps(report))
        state = {name: x.half() for name, x in of(about).state_dict().items()}
        save_file(state, folder / part / f"{part}.safetensors")


def _read_ears(folder: Path) -> None:
    from musae_utils.labels import ears

    ears.load(folder.name, folder)


def _write_published(folder: Path) -> None:
    from diffusers import AutoencoderKL, AutoencoderOobleck
    from transformers import (
        DacConfig,
        DacModel,
        EncodecConfig,
        EncodecModel,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
    )  # fmt: skip

    torch.manual_seed(0)
    EncodecModel(
        EncodecConfig(num_filters=2, hidden_size=4, codebook_size=8, target_bandwidths=[1.5],
                      upsampling_ratios=[4, 2], num_lstm_layers=1)
    ).save_pretrained(folder / "encodec")  # fmt: skip
    DacModel(
        DacConfig(encoder_hidden_size=2, decoder_hidden_size=8, n_codebooks=2, codebook_size=8,
                  downsampling_ratios=(2, 4), sampling_rate=24_000)
    ).save_pretrained(folder / "dac")  # fmt: skip
    AutoencoderOobleck(
        encoder_hidden_size=4, decoder_channels=4, decoder_input_channels=4,
        channel_multiples=[1, 2], downsampling_ratios=[2, 4],
    ).save_pretrained(folder / "oobleck" / "vae")  # fmt: skip
    AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(4, 4),
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=2,
    ).save_pretrained(folder / "audioldm" / "vae")  # fmt: skip
    SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=64, sampling_rate=16_000, upsample_initial_channel=32,
            upsample_rates=[5, 4, 2, 2, 2], upsample_kernel_sizes=[16, 16, 8, 4, 4],
            normalize_before=False,
        )
    ).save_pretrained(folder / "audioldm" / "vocoder")  # fmt: skip


def _read_published(folder: Path) -> None:
    from musae_utils import latents

    model = latents.load(folder)
    repr(model)


def _write_weights(folder: Path) -> None:
    from diffusers import AutoencoderOobleck
    from safetensors.torch import save_file

    from musae_utils.latents import published, wavtokenizer

    torch.manual_seed(0)
    net = wavtokenizer.WavTokenizer([2, 2, 2, 2], 4, 32, 8, 32, 8, 1, 2)
    (folder / "wavtokenizer").mkdir()
    torch.save({"state_dict": net.state_dict(), "epoch": 3},
               folder / "wavtokenizer" / "model.ckpt")  # fmt: skip
    net = AutoencoderOobleck(
        encoder_hidden_size=4, decoder_channels=4, decoder_input_channels=4,
        channel_multiples=[1, 2], downsampling_ratios=[2, 4],
    )  # fmt: skip
    ours, state = net.state_dict(), {}
    for theirs, name in published.oobleck_keys(2):
        x = ours[name]
        state[theirs] = x[0, :, 0].clone() if name.endswith((".alpha", ".beta")) else x
    config = {"sample_rate": 44_100, "model": {"decoder": {"config": {"final_tanh": False}}}}
    for name in ("safetensors", "ckpt"):
        (folder / name).mkdir()
        (folder / name / "model_config.json").write_text(json.dumps(config))
    save_file(state, folder / "safetensors" / "vae.safetensors")
    torch.save({"state_dict": state}, folder / "ckpt" / "vae.ckpt")


def _write_answers(folder: Path) -> None:
    from musae_utils.show import listening

    t = np.arange(8000) / 16_000
    sounds = {c: 0.1 * np.sin(2 * np.pi * h * t) for c, h in (("a", 300), ("b", 500))}
    trials = [listening.Trial(kind, sounds, "drums", f"item {i}")
              for i, kind in enumerate(("prefer", "abx", "prefer"))]  # fmt: skip
    trials.append(listening.Trial("rate", {"a": sounds["a"]}, "drums", "item 3"))
    (folder / "one").mkdir()
    with tempfile.TemporaryDirectory() as page:
        listening.make(trials, Path(page) / "page.html", folder / "one" / "key.json",
                       sample_rate=16_000, seed=1)  # fmt: skip
    key = json.loads((folder / "one" / "key.json").read_text())
    answers = []
    for name, trial in key["trials"].items():
        shown = list(trial["sounds"])
        given = {"trial": name, "shown": shown, "seconds": 3.0, "at": "2026-01-01"}
        answers.append(given | {"chosen": shown[0] if trial["kind"] != "rate" else None,
                                "rating": 4 if trial["kind"] == "rate" else None,
                                "x": shown[-1] if trial["kind"] == "abx" else None})  # fmt: skip
    export = {
        "format": "musae-listening-answers-1", "study": key["study"], "listener": "L1", "seed": 1,
        "began": "2026-01-01", "saved": "2026-01-01", "trials": len(answers), "answers": answers,
    }  # fmt: skip
    (folder / "one" / "answers.json").write_text(json.dumps(export))


def _read_answers(folder: Path) -> None:
    from musae_utils.show import listening

    repr(listening.analyse([folder / "answers.json"], folder / "key.json"))


def _write_run(folder: Path) -> None:
    with runs.Run(folder / "one", {"steps": 3, "rates": [0.1, 0.2]}, 1, {"nano": "ab"}) as run:
        run.log(step=0, loss=2.5)
        run.log(step=1, loss=None)
        run.save("a.json", "[1]")


def _read_run(folder: Path) -> None:
    with runs.Run(folder, {"steps": 3, "rates": [0.1, 0.2]}, 1, {"nano": "ab"}) as run:
        run.metrics(), run.rewind(0), repr(run)
        if run.has("a.json"):
            runs.load_json(run.path("a.json"))
        run.log(step=9)
        run.save("b.txt", "b")


def _parsers() -> dict[str, Parser]:
    from musae_utils.book import BookError
    from musae_utils.labels import llm
    from musae_utils.runs import RunError

    gone = FileNotFoundError
    return {
        "saelens": Parser(
            _write_saelens, _read_saelens, (gone, ValueError, MemoryError), share=0.5
        ),
        "dictionary_learning": Parser(
            _write_dictionary_learning,
            _read_dictionary_learning,
            (gone, ValueError, MemoryError),
            share=0.3,
        ),
        "sae": Parser(_write_sae, _read_sae, (gone, ValueError, MemoryError)),
        "store": Parser(_write_store, _read_store, (gone, ValueError, RunError), _sign_store, 0.3),
        "atlas": Parser(_write_atlas, _read_atlas, (gone, RunError), _sign_atlas, 0.3),
        "audio": Parser(_write_audio, _read_audio, (gone, ValueError), share=0.5),
        "llm": Parser(_write_replies, _read_reply, (llm._Busy, llm.Unavailable)),
        "labels": Parser(_write_labels, _read_labels, (gone, RunError)),
        "answers": Parser(_write_answers, _read_answers, (gone, RunError), share=0.5),
        "notebooks": Parser(_write_book, _read_book, (BookError,), share=0.05),
        "nano": Parser(_write_nano, _read_nano, (gone, ValueError, MemoryError), share=0.2),
        "model": Parser(_write_model, _read_model, (gone, ValueError, MemoryError), share=0.05),
        "ears": Parser(_write_ears, _read_ears, (gone, ValueError), share=0.1),
        "weights": Parser(_write_weights, _read_published, (gone, ValueError), share=0.01),
        "published": Parser(_write_published, _read_published, (gone, ValueError), share=0.005),
        "run": Parser(_write_run, _read_run, (gone, RunError), share=0.05),
    }


# -- the loop --------------------------------------------------------------------------------------


class Hung(BaseException):
    """An input took more than `PATIENCE` seconds."""


class Outcome(NamedTuple):
    """What an input came to: ``accepted``, ``refused`` or ``unhandled``, and in which words."""

    kind: str
    said: str = ""


def valid(parser: Parser, folder: Path) -> dict[str, Files]:
    """The files of each variant of the parser's valid folder, written there."""
    folder.mkdir(parents=True, exist_ok=True)
    parser.make(folder)
    variants: dict[str, Files] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            variant, *inside = path.relative_to(folder).parts
            variants.setdefault(variant, {})["/".join(inside)] = path.read_bytes()
    for variant, files in variants.items():
        with contextlib.redirect_stdout(io.StringIO()):
            found = attempt(parser, folder.parent / variant, files)
        if found.kind != "accepted":
            raise RuntimeError(f"{variant} was to be valid, and is not: {found}")
    return variants


def damaged(variants: dict[str, Files], parser: Parser, r: random.Random) -> tuple[str, Files]:
    """A variant, and its files with something changed in them."""
    variant = r.choice(sorted(variants))
    files = change(variants[variant], r)
    if parser.sign is not None and r.random() < 0.9:
        parser.sign(files)
    return variant, files


def nth(
    number: int, name: str, parser: Parser, variants: dict[str, Files], seed: int
) -> tuple[str, Files]:
    """The input of a parser with this number."""
    return damaged(variants, parser, random.Random(f"{seed} {name} {number}"))


def attempt(parser: Parser, folder: Path, files: Files) -> Outcome:
    """Let a parser read these files, in a folder of its own."""
    if folder.exists():
        shutil.rmtree(folder)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        parser.read(folder)
    except parser.refuses as error:
        return judged(error, parser)
    except Hung:
        return Outcome("unhandled", f"more than {PATIENCE} seconds")
    except Exception as error:
        return Outcome("unhandled", told(error))
    return Outcome("accepted")


def judged(error: BaseException, parser: Parser) -> Outcome:
    """Whether a refusal comes from this package and is a sentence."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    text = str(error)
    ours = last.startswith(PACKAGE)
    if ours and len(text.split()) >= 3:
        return Outcome("refused", text)
    return Outcome("unhandled", told(error))


def told(error: BaseException) -> str:
    """What went wrong, where in this package, and where in the end."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if f.filename.startswith(PACKAGE)]
    last = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    return f"{type(error).__name__} at {' > '.join(ours[-2:])} (in {last}): {str(error)[:160]}"


@contextlib.contextmanager
def patience(seconds: float = PATIENCE) -> Iterator[None]:
    """Raise `Hung` when the block takes longer."""

    def ring(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak() -> float:
    """MiB of the highest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _chunk(name, parser, variants, place, seed, first, last, number, out) -> None:
    """Inputs `first` to `last - 1`; what they came to goes to `out`."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    warnings.simplefilter("ignore")
    for variant in sorted(variants):
        for _ in range(2):
            attempt(parser, place / variant, variants[variant])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    before, counts, faults = peak(), Counter(), []
    for i in range(first, last):
        number.value = i
        variant, files = nth(i, name, parser, variants, seed)
        began = time.monotonic()
        try:
            with patience():
                found = attempt(parser, place / variant, files)
        except Hung:
            found = Outcome("unhandled", f"more than {PATIENCE} seconds")
        counts[found.kind] += 1
        if found.kind == "unhandled":
            faults.append([i, f"{found.said} [{time.monotonic() - began:.1f} s]"])
    number.value = last
    out.send({"counts": dict(counts), "faults": faults, "grew": max(0.0, peak() - before)})
    out.close()
    os._exit(0)


def chunk(name, parser, variants, place, seed, first, last) -> dict:
    """Outcomes of some inputs, whatever they do to the process that reads them."""
    total = {"counts": Counter(), "faults": [], "grew": 0.0}
    while first < last:
        context = multiprocessing.get_context("fork")
        receive, send = context.Pipe(False)
        number = context.Value("q", first)
        process = context.Process(
            target=_chunk,
            args=(name, parser, variants, place, seed, first, last, number, send),
        )
        process.start()
        send.close()
        seen, since = first, time.monotonic()
        while process.is_alive() and not receive.poll(0.5):
            if number.value != seen:
                seen, since = number.value, time.monotonic()
            elif time.monotonic() - since > 6 * PATIENCE:  # stuck where no signal reaches it
                process.kill()
        try:
            told = receive.recv()
            process.join()
            total["counts"].update(told["counts"])
            total["faults"] += told["faults"]
            total["grew"] = max(total["grew"], told["grew"])
            break
        except EOFError:
            process.join()
        # It died: the inputs before are read again, and this one is known.
        dead = number.value
        if dead > first:
            done = chunk(name, parser, variants, place, seed, first, dead)
            total["counts"].update(done["counts"])
            total["faults"] += done["faults"]
            total["grew"] = max(total["grew"], done["grew"])
        total["counts"]["unhandled"] += 1
        total["faults"].append([dead, f"the process died (exit code {process.exitcode})"])
        first = dead + 1
    return total


def measure(
    folder: Path, inputs: int = 100_000, seed: int = 0, only: list[str] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, dict]:  # fmt: skip
    """What became of the inputs of each parser; a stopped measurement goes on.

    Returns
    -------
    dict of parser to dict
        ``inputs``, ``accepted``, ``refused``, ``unhandled``, ``faults`` (first of each kind, with
        the number of the input), ``grew`` (MiB), ``seconds``.
    """
    found = {}
    silence()
    for name, parser in _parsers().items():
        if only and name not in only:
            continue
        n = max(1, round(inputs * parser.share))
        sum_, began = Counter(), time.monotonic()
        kinds: dict[str, list] = {}
        grew = seconds = 0.0
        with runs.Run(folder / name, {"parser": name, "seed": seed, "chunk": CHUNK}, seed) as run:
            shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
            with tempfile.TemporaryDirectory(dir=shm) as place:
                variants = valid(parser, Path(place) / "valid")
                for first in range(0, n, CHUNK):
                    last = min(first + CHUNK, n)
                    kept = f"{first}-{last}.json"
                    if not run.has(kept):
                        began = time.monotonic()
                        made = chunk(name, parser, variants, Path(place), seed, first, last)
                        made["seconds"] = time.monotonic() - began
                        run.save(kept, json.dumps(made))
                    told = runs.load_json(run.path(kept))
                    sum_.update(told["counts"])
                    grew, seconds = max(grew, told["grew"]), seconds + told["seconds"]
                    for i, words in told["faults"]:
                        kinds.setdefault(words.split(": ")[0], [0, i, words])[0] += 1
        found[name] = {
            "inputs": n, **{kind: sum_[kind] for kind in ("accepted", "refused", "unhandled")},
            "faults": sorted(kinds.values(), reverse=True)[:20], "grew": grew, "seconds": seconds,
        }  # fmt: skip
        say(
            f"{name:20} {n:7,} inputs: {sum_['accepted']:,} accepted, {sum_['refused']:,} refused, "
            f"{sum_['unhandled']:,} unhandled; {grew:.0f} MiB, {seconds:.0f} s"
        )
        for count, i, words in found[name]["faults"]:
            say(f"    {count} ×, first {i}: {words}")
    return found


def silence() -> None:
    """Import what readers import, so that forked processes need not; libraries say nothing."""
    import logging

    from musae_utils import activations, book, features, labels, latents, models  # noqa: F401
    from musae_utils.latents import published, wavtokenizer  # noqa: F401
    from musae_utils.show import listening  # noqa: F401

    import diffusers  # isort: skip
    import papermill  # noqa: F401  # isort: skip
    import transformers  # isort: skip

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity(50)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


# -- the table -------------------------------------------------------------------------------------


def load(path: Path = TABLE) -> dict:
    """What was kept: ``provenance``, and by parser what `measure` gave (``parsers``).

    Raises
    ------
    FileNotFoundError
        It was never made.
    """
    if not Path(path).exists() or "fuzz" not in (kept := runs.load_json(path)):
        raise FileNotFoundError(f"{path} holds no fuzzing: python benchmarks/fuzz.py makes it.")
    return kept["fuzz"]


def figures(kept: dict) -> dict[str, tuple[Interval, str]]:
    """The headlines of what `load` gave, by their names on the scoreboard.

    ``fuzz.unhandled``: inputs that were not handled, with the ends of their share's Wilson interval
    times n; ``fuzz.unhandled.PARSER``; ``fuzz.memory`` and ``.PARSER``: MiB, a maximum, which has
    no interval.
    """
    parsers, made = kept["parsers"], {}

    def count(bad: int, n: int) -> tuple[Interval, str]:
        share = proportion(bad, n)
        return Interval(float(bad), share.low * n, share.high * n, n), "inputs"

    n = sum(p["inputs"] for p in parsers.values())
    made["fuzz.unhandled"] = count(sum(p["unhandled"] for p in parsers.values()), n)
    for name, p in parsers.items():
        made[f"fuzz.unhandled.{name}"] = count(p["unhandled"], p["inputs"])
    nan = float("nan")
    most = max(p["grew"] for p in parsers.values())
    made["fuzz.memory"] = (Interval(most, nan, nan, n), f"MiB, bound {kept['bound']}")
    for name, p in parsers.items():
        made[f"fuzz.memory.{name}"] = (Interval(p["grew"], nan, nan, p["inputs"]), "MiB")
    return made


def keep(part: str, found: dict, path: Path = TABLE) -> None:
    """Put one benchmark's part into the table, beside what others put there."""
    kept = runs.load_json(path) if path.exists() else {}
    runs.save_json(path, {**kept, part: found})


def provenance(seed: int) -> dict:
    """Versions, date and seed."""
    return {
        "versions": runs.versions(), "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="a parser; slow ones get less")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--only", nargs="+", choices=list(_parsers()), metavar="PARSER")
    parser.add_argument("--json", type=Path, default=TABLE)
    asked = parser.parse_args()
    found = measure(asked.folder, asked.inputs, asked.seed, asked.only)
    if asked.only:
        return  # a part of the table would pose as the whole
    keep("fuzz", {"provenance": provenance(asked.seed), "bound": BOUND, "patience": PATIENCE,
                  "parsers": found}, asked.json)  # fmt: skip
    for name, (value, unit) in figures(load(asked.json)).items():
        print(f"{name:36} {value} {unit}")


if __name__ == "__main__":
    main()
