"""Make ``import audiocraft`` work beside current libraries, and load its checkpoints safely.

This is the only module of the package that touches another library's internals. Importing it
applies every patch below; each says which version needs it, and ``tests/models/test_compat.py``
undoes each in turn and fails once audiocraft works without it, so that it can be deleted.

=============================  ==================  ============================================
patch                          needed by           because
=============================  ==================  ============================================
`stub_xformers`                audiocraft 1.3.0    imports xformers for functions torch has
`stub_torchaudio_extension`    torchaudio 2.11.0   a CUDA build cannot load its C library beside
                                                   a torch without CUDA
`quiet`                        audiocraft 1.3.0,   its codec uses torch's deprecated weight_norm;
                               transformers 5      a progress bar over weights read in no time
`stub_demucs`                  audiocraft 1.3.0    MusicGen-melody wants a stem separator even
                                                   where only text is used
`load_safely`                  audiocraft 1.3.0    an environment variable decides whether its
                                                   checkpoints may run code
`stream_in_place`              audiocraft 1.3.0    generating copies all cached keys and values
                                                   at each step
=============================  ==================  ============================================
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pickle
import sys
import types
import warnings
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch


def _register(name: str, **names: object) -> types.ModuleType:
    """Put a module made of `names` into ``sys.modules``, as an import would have."""
    module = types.ModuleType(name, "Stand-in made by musae_utils.models.compat.")
    # Libraries ask importlib for the spec of a loaded module and fail where it is None.
    module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
    module.__path__ = []
    module.__dict__.update(names)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
    return module


def stub_xformers() -> None:
    """Stand in for xformers, which audiocraft 1.3.0 imports although it runs torch's attention.

    Of its functions only `unbind` is called, by every self-attention. The mask is only created:
    audiocraft tells torch "causal" by its presence. The profiler module is asked for in every
    self-attention call, and an import that fails is not remembered: it would be searched anew.
    """
    if "xformers" in sys.modules or importlib.util.find_spec("xformers"):
        return

    class LowerTriangularMask:
        """Marks attention as causal."""

    def memory_efficient_attention(*args, **kwargs):
        raise NotImplementedError(
            "xformers is not installed: leave audiocraft's attention backend at 'torch'."
        )

    _register("xformers")
    _register(
        "xformers.ops",
        unbind=torch.unbind,
        LowerTriangularMask=LowerTriangularMask,
        memory_efficient_attention=memory_efficient_attention,
    )
    idle = types.SimpleNamespace(_Profiler=types.SimpleNamespace(_CURRENT_PROFILER=None))
    _register("xformers.profiler", profiler=idle)


def stub_torchaudio_extension() -> None:
    """Let torchaudio 2.11.0 do without its C library where that cannot be loaded.

    The wheel on the usual index is built for CUDA; beside a CPU-only torch it fails to load
    ``libc10_cuda.so`` and the whole import with it. What the library adds (forced alignment, a
    faster ``lfilter``) is not used here.
    """
    if "torchaudio" in sys.modules:
        return
    try:
        importlib.import_module("torchaudio")
    except (OSError, RuntimeError):  # cannot be loaded; or built for another CUDA
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]

        def fail_if_no_align(function):
            return function

        _register(
            "torchaudio._extension",
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            fail_if_no_align=fail_if_no_align,
        )
        importlib.import_module("torchaudio")


def quiet() -> None:
    """Silence what neither a reader nor this package can act on.

    audiocraft 1.3.0 builds its codec with ``torch.nn.utils.weight_norm``, deprecated since torch
    2.0; checkpoints depend on its parameter names. transformers 5 shows a progress bar whenever it
    reads weights; huggingface_hub's bar over a download, which does take time, stays.
    """
    import huggingface_hub
    import transformers

    warnings.filterwarnings("ignore", message=r".*weight_norm. is deprecated.*")
    downloads_shown = not huggingface_hub.utils.are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()
    if downloads_shown:
        huggingface_hub.utils.enable_progress_bars()


def stub_demucs() -> None:
    """Let MusicGen-melody load where demucs, dropped from the lock, is absent.

    Its melody conditioner asks for a stem separator when it is built, but runs it only on a
    melody: text prompts never reach it.
    """
    if "demucs" in sys.modules or importlib.util.find_spec("demucs"):
        return

    class Separator(torch.nn.Module):
        sources = ("drums", "bass", "other", "vocals")

    def refuse(*args, **kwargs):
        raise NotImplementedError(
            "Conditioning on a melody separates its stems with demucs: `pip install demucs`."
        )

    _register("demucs")
    _register("demucs.pretrained", get_model=lambda name: Separator())
    _register("demucs.apply", apply_model=refuse)
    _register("demucs.audio", convert_audio=refuse)


def _omegaconf_classes() -> list[type]:
    """What audiocraft's pickled configurations are made of: data holders, none of which acts."""
    import collections
    import typing

    from omegaconf import DictConfig, ListConfig, base, nodes

    containers = [DictConfig, ListConfig, base.ContainerMetadata, base.Metadata]
    scalars = [nodes.AnyNode, nodes.StringNode, nodes.IntegerNode, nodes.FloatNode,
               nodes.BooleanNode]  # fmt: skip
    return [*containers, *scalars, typing.Any, collections.defaultdict, dict, list, int]


def _numpy_scalars() -> list:
    """What a number of numpy in a checkpoint (a best score, say) is pickled as, old and new."""
    import numpy as np

    scalar = np._core.multiarray.scalar
    types_of_numbers = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *types_of_numbers]


def read_checkpoint(file: str | Path, device: str | torch.device = "cpu") -> dict:
    """Read a torch checkpoint of tensors, plain data, numpy's numbers and omegaconf alone.

    Parameters
    ----------
    file : path of a file written by ``torch.save``
    device : where its tensors go

    Raises
    ------
    ValueError
        The file is damaged, or asks for a function or class outside the list (a pickle can run
        any code while it is read; this one was not).
    """
    file = Path(file)
    try:
        with torch.serialization.safe_globals([*_omegaconf_classes(), *_numpy_scalars()]):
            # Mapped, the file's tensors and the model's do not fill memory side by side.
            return torch.load(
                file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported" in str(error):
            raise ValueError(
                f"{file} was refused: it holds more than weights and would run code when read "
                f"({_first_sentence_with(str(error), 'GLOBAL', 'Unsupported')})."
            ) from None
        raise ValueError(f"{file} is damaged or not a torch checkpoint: fetch it again.") from None
    except PermissionError:
        raise ValueError(f"{file} may not be read: see its permissions.") from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, AttributeError, TypeError):
        raise ValueError(f"{file} is damaged or not a torch checkpoint: fetch it again.") from None


def _first_sentence_with(text: str, *words: str) -> str:
    lines = [line for line in text.splitlines() if any(word in line for word in words)]
    return lines[0].strip().split(" was not")[0].split(". ")[-1]


def load_safely() -> None:
    """Make audiocraft read local checkpoints through `read_checkpoint`.

    audiocraft 1.3.0 calls ``torch.load`` with its defaults, which an environment variable
    (``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD``) turns into a plain unpickling.
    """
    from audiocraft.models import loaders

    @functools.wraps(loaders._get_state_dict)
    def get_state_dict(folder, filename=None, device="cpu", cache_dir=None):
        return read_checkpoint(Path(folder) / filename, device)

    loaders._get_state_dict = get_state_dict


KV_PAGE = 256  # positions by which the cache of `stream_in_place` grows


def stream_in_place() -> None:
    """Generate without copying the key/value cache at every step.

    audiocraft 1.3.0 appends with ``torch.cat``, which copies all earlier keys and values, and
    projects the text anew at every step. On a CPU this is two thirds of the nano model's time.
    Here the cache grows by pages and the text's keys and values are kept; the numbers are the
    same. Outside generation, and where gradients are wanted, audiocraft's own code runs.
    """
    from audiocraft.modules import transformer

    attention = transformer.StreamingMultiheadAttention

    def append(state: dict, name: str, new: torch.Tensor, dim: int) -> torch.Tensor:
        past = state.get(name)
        start = 0 if past is None else past.shape[dim]
        end = start + new.shape[dim]
        buffer = state.get(f"{name}_buffer")
        if buffer is None or buffer.shape[dim] < end:
            shape = list(new.shape)
            shape[dim] = end + KV_PAGE
            buffer = state[f"{name}_buffer"] = new.new_empty(shape)
            if start:
                buffer.narrow(dim, 0, start).copy_(past)
        buffer.narrow(dim, start, new.shape[dim]).copy_(new)
        state[name] = buffer.narrow(dim, 0, end)
        return state[name]

    @functools.wraps(attention._complete_kv)
    def complete_kv(self, k, v):
        own = self._is_streaming and not self.cross_attention and self.past_context is None
        if not own or torch.is_grad_enabled():
            return complete_kv.__wrapped__(self, k, v)
        dim = transformer._get_attention_time_dimension(self.memory_efficient)
        state = self._streaming_state
        return append(state, "past_keys", k, dim), append(state, "past_values", v, dim)

    @functools.wraps(attention.forward)
    def forward(self, query, key, value, *args, **kwargs):
        kept = (
            self.cross_attention
            and self._is_streaming
            and self.memory_efficient
            and not (self.qk_layer_norm or self.attention_as_float32 or self.training)
            and not torch.is_grad_enabled()
        )
        if not kept:
            return forward.__wrapped__(self, query, key, value, *args, **kwargs)

        def project(x, part):  # 0 query, 1 key, 2 value
            rows = slice(part * self.embed_dim, (part + 1) * self.embed_dim)
            bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
            x = torch.nn.functional.linear(x, self.in_proj_weight[rows], bias)
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        state = self._streaming_state
        if state.get("source") is not key:
            state.update(source=key, keys=project(key, 1), values=project(key, 2))
        x = torch.nn.functional.scaled_dot_product_attention(
            project(query, 0), state["keys"], state["values"]
        )
        x = x.to(query.dtype).transpose(1, 2).flatten(2)
        return self.out_proj(x), None

    attention._complete_kv = complete_kv
    attention.forward = forward


def prime_streaming(lm: torch.nn.Module, rows: int, positions: int) -> None:
    """Make a language model that is about to generate believe that it has played before.

    Its caches then hold zeros for so many positions, and have room for more; what it plays means
    nothing, but takes the time that it takes there.
    """
    from audiocraft.modules import transformer

    weights = next(lm.transformer.parameters())
    # Conditions in front of the music come with the first step alone.
    lm.fuser._streaming_state["offsets"] = weights.new_zeros(rows)
    for module in lm.transformer.modules():
        if not isinstance(module, transformer.StreamingMultiheadAttention):
            continue
        if not module.cross_attention:
            dim = transformer._get_attention_time_dimension(module.memory_efficient)
            shape = [rows, module.num_heads, module.embed_dim // module.num_heads]
            shape.insert(dim, positions + KV_PAGE)
            for name in ("past_keys", "past_values"):
                buffer = weights.new_zeros(shape)
                module._streaming_state[f"{name}_buffer"] = buffer
                module._streaming_state[name] = buffer.narrow(dim, 0, positions)


PATCHES = (
    stub_xformers,
    stub_torchaudio_extension,
    quiet,
    stub_demucs,
    load_safely,
    stream_in_place,
)

for _patch in PATCHES:
    _patch()
