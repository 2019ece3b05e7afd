"""Models: ``load(name)`` returns one `MusicModel`, whatever the weights (notebook 02).

`load` answers to ``"nano"`` (shipped, trained on scored music), to the published MusicGen names,
and to a folder in audiocraft's layout (``state_dict.bin``, ``compression_state_dict.bin``) or in
the nano's (``lm.json``, ``lm.safetensors``, ``codec.json``, ``codec.safetensors``).
"""

from __future__ import annotations

import difflib
import errno
import json
import os
from pathlib import Path

import psutil
import torch

from musae_utils.models import compat  # noqa: F401  (first: audiocraft needs it)
from musae_utils.models.model import Generation, MusicModel
from musae_utils.models.sampling import Noise, generate_codes

__all__ = ["PUBLISHED", "Generation", "MusicModel", "Noise", "generate_codes", "load"]

NANO_FOLDER = Path(__file__).parents[2] / "data" / "nano"

#: Published models and roughly how many parameters they have in all, codec and text encoder
#: included; `outline` counts them.
PUBLISHED = {
    "facebook/musicgen-small": 0.59e9,
    "facebook/musicgen-medium": 2.01e9,
    "facebook/musicgen-large": 3.42e9,
    "facebook/musicgen-melody": 1.55e9,
    "facebook/musicgen-stereo-small": 0.605e9,
    "facebook/musicgen-stereo-medium": 2.03e9,
    "facebook/musicgen-stereo-large": 3.46e9,
    "facebook/musicgen-stereo-melody": 1.58e9,
}

AUDIOCRAFT_FILES = ("state_dict.bin", "compression_state_dict.bin")
SHORTEST, LONGEST = 18, 3600  # seconds a model can play; audiocraft goes on in strides of 18
NANO_FILES = ("lm.json", "lm.safetensors", "codec.json", "codec.safetensors")


def load(
    name: str | Path = "nano",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> MusicModel:
    """Load a music model by name or from a folder.

    Parameters
    ----------
    name : str or Path
        ``"nano"``, a name in `PUBLISHED` (fetched once through huggingface_hub), or a folder.
    device : "cuda", "mps" or "cpu", optional
        The first of them that this machine has.
    dtype : torch.float32 or torch.float16, optional
        Of the language model; float16 on CUDA and float32 elsewhere, as audiocraft has it.

    Returns
    -------
    MusicModel
        In eval mode; its `repr` says what was chosen.

    Raises
    ------
    ValueError
        A name nobody knows (the nearest known one is suggested), a folder that is not a model, a
        damaged file, or a pickle that would run code.
    FileNotFoundError
        No such folder, or a file of the model is missing.
    ConnectionError
        The weights are neither in the cache nor to be had from the network.
    MemoryError
        The model would not fit; said before loading it.
    """
    device, dtype = _choose(device, dtype)
    name = str(name)
    if name == "nano":
        folder = NANO_FOLDER
    elif name in PUBLISHED:
        from musae_utils.models.outline import outline

        _require_memory(name, outline(name).weights(dtype), device)
        folder = _fetch(name)
    else:
        folder = _folder(name)

    layout = _layout(name, folder)
    if name not in PUBLISHED:
        # A file of float16 becomes twice as large in float32; the estimate leans to the safe side.
        size = sum((folder / file).stat().st_size for file in layout)
        _require_memory(name, 2 * size, device)
    read = _load_nano if layout is NANO_FILES else _load_audiocraft
    musicgen = read(name, folder, device)
    musicgen.lm.to(device, dtype)
    if dtype != torch.float16 or device.type == "cpu":
        from audiocraft.utils.autocast import TorchAutocast

        musicgen.autocast = TorchAutocast(enabled=False)
    return MusicModel(name, musicgen, dtype)


def _choose(device, dtype) -> tuple[torch.device, torch.dtype]:
    if device is None:
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is 'cuda', 'mps' or 'cpu', not {device!r}.") from None
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if chosen.type not in has or chosen.index:
        raise ValueError(
            f"device is 'cuda', 'mps' or 'cpu', not {str(device)!r}; among several GPUs, choose "
            "with CUDA_VISIBLE_DEVICES."
        )
    if not has[chosen.type]:
        raise ValueError(f"This machine, or its torch, has no {chosen.type}: use device='cpu'.")
    if dtype is None:
        dtype = torch.float16 if chosen.type == "cuda" else torch.float32
    if dtype not in (torch.float32, torch.float16):
        # bfloat16 cannot count the positions above 256 that the embedding is computed from.
        raise ValueError(f"dtype is torch.float32 or torch.float16, not {dtype}.")
    return torch.device(chosen.type), dtype


def _require_memory(name: str, needed: float, device: torch.device) -> None:
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info()[0], "on the GPU"
    else:
        free, where = psutil.virtual_memory().available, "in memory"
    if needed > free:
        raise MemoryError(
            f"{name} needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free {where}: "
            "close something, or load a smaller model."
        )


def _fetch(name: str) -> Path:
    """The folder in the hub's cache that holds a published model, fetched if need be."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        files = [hf_hub_download(name, file) for file in AUDIOCRAFT_FILES]
    except (OSError, HfHubHTTPError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"The disk is full: {name} could not be fetched.") from None
        raise ConnectionError(_not_to_be_had(f"{name} is", error)) from None
    return Path(files[0]).parent


def _not_to_be_had(what: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"{what} not in the Hugging Face cache and could not be fetched: go online once, or load "
        f"'nano', which needs no network. ({type(error).__name__}: {(reason or ['no reason'])[0]})"
    )


def _folder(name: str) -> Path:
    folder = Path(os.path.expanduser(name))  # os.path: a name no path can have is no folder
    if name and os.path.isdir(folder):
        return folder
    if os.path.isfile(folder):
        raise ValueError(f"{name} is a file: give the folder that holds the model.")
    known = ["nano", *PUBLISHED]
    short = {known_name.removeprefix("facebook/"): known_name for known_name in known}
    near = difflib.get_close_matches(name.lower(), [*known, *short], n=1, cutoff=0.5)
    if not near and (folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"There is no folder {name}.")
    hint = f" Did you mean {short.get(near[0], near[0])!r}?" if near else ""
    raise ValueError(
        f"There is no model or folder called {name!r}.{hint} Known models: {', '.join(known)}; or "
        "give a folder."
    )


def _layout(name: str, folder: Path) -> tuple[str, ...]:
    """Which of the two layouts a folder has, all its files being there."""
    found = {path.name for path in folder.iterdir()} if os.path.isdir(folder) else set()
    for layout in (NANO_FILES, AUDIOCRAFT_FILES):
        missing = [file for file in layout if file not in found]
        if not missing:
            return layout
        if len(missing) < len(layout) or (name == "nano" and layout is NANO_FILES):
            hint = " (`make nano` trains it anew)" if name == "nano" else ""
            raise FileNotFoundError(
                f"{', '.join(missing)} missing in {folder}: {name} is incomplete{hint}."
            )
    holds = f"holds {', '.join(sorted(found)[:4])}" if found else "is empty"
    hint = (
        " A MusicGen saved by transformers cannot be read; audiocraft's own files can."
        if {"config.json", "model.safetensors"} & found
        else ""
    )
    raise ValueError(
        f"{folder} is not a model: it {holds}, and a model has {' and '.join(AUDIOCRAFT_FILES)}, "
        f"or {', '.join(NANO_FILES)}.{hint}"
    )


def _load_audiocraft(name: str, folder: Path, device: torch.device):
    from audiocraft.models import MusicGen

    try:
        return MusicGen.get_pretrained(str(folder), device=device.type)
    except torch.OutOfMemoryError:
        raise MemoryError(f"{name} does not fit on the GPU: load a smaller model.") from None
    except OSError as error:
        what = f"The text encoder or the codec that {name} refers to is"
        raise ConnectionError(_not_to_be_had(what, error)) from None
    except (KeyError, AttributeError, AssertionError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{folder} is not a MusicGen as audiocraft exports it: {reason}"
        ) from error


def _load_nano(name: str, folder: Path, device: torch.device):
    from audiocraft.models import MusicGen
    from safetensors import SafetensorError, safe_open

    from musae_utils.models import nano

    for file in (folder / file for file in NANO_FILES):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            else:
                with safe_open(file, "pt"):
                    pass
        except (SafetensorError, ValueError, RecursionError):
            raise ValueError(f"{file} is damaged or cut short: fetch it again.") from None
    codec, lm = nano.load_nano(folder)
    seconds = json.loads((folder / "lm.json").read_text(encoding="utf-8")).get("max_seconds", 30)
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not SHORTEST < seconds <= LONGEST:
        raise ValueError(
            f"{folder / 'lm.json'} says that the model plays up to {seconds!r:.80} seconds: "
            f"max_seconds is a number above {SHORTEST} and up to {LONGEST}."
        )
    return MusicGen(name, codec.to(device).eval(), lm.to(device).eval(), max_duration=seconds)
