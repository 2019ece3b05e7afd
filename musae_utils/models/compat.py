"""Make ``import audiocraft`` work beside current libraries, and load its checkpoints safely.

This is the only module of the package that touches another library's internals. Importing it
applies every patch below; each says which version needs it, and ``tests/models/test_compat.py``
undoes each in turn and fails once audiocraft works without it, so that it can be deleted.

============================  =================================  ===============================
patch                         needed by                          because
============================  =================================  ===============================
`stub_xformers`               audiocraft 1.3.0                   imports xformers for two
                                                                 functions that torch has
`stub_torchaudio_extension`   torchaudio 2.11.0                  a CUDA build cannot load its C
                                                                 library beside a torch without
`quiet_warnings`              audiocraft 1.3.0 on torch 2.13.0   its codec uses the old
                                                                 ``weight_norm``
`allow_omegaconf`             audiocraft 1.3.0 checkpoints       their configuration is a pickled
                                                                 omegaconf tree
============================  =================================  ===============================
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from importlib.machinery import ModuleSpec

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
    attention call, and a failing import there costs more than the attention's own arithmetic.
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
        import torchaudio  # noqa: F401
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
        import torchaudio  # noqa: F401


def quiet_warnings() -> None:
    """Silence what neither a reader nor this package can act on.

    audiocraft 1.3.0 builds its codec with ``torch.nn.utils.weight_norm``, deprecated since torch
    2.0; checkpoints depend on its parameter names.
    """
    warnings.filterwarnings("ignore", message=r".*weight_norm. is deprecated.*")


def allow_omegaconf() -> None:
    """Name the harmless classes in audiocraft's checkpoints for ``torch.load(weights_only=True)``.

    Containers and scalar nodes of omegaconf and the types they refer to: their unpickling sets
    attributes and calls nothing else.
    """
    import collections
    import typing

    import omegaconf
    from omegaconf import base, nodes

    scalars = [
        getattr(nodes, name)
        for name in (
            "AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode",
            "BytesNode", "PathNode", "InterpolationResultNode",
        )
    ]  # fmt: skip
    torch.serialization.add_safe_globals(
        [
            omegaconf.DictConfig, omegaconf.ListConfig, base.ContainerMetadata, base.Metadata,
            *scalars, typing.Any, collections.defaultdict, dict, list, tuple, int, float, bool, str,
        ]
    )  # fmt: skip


PATCHES = (stub_xformers, stub_torchaudio_extension, quiet_warnings, allow_omegaconf)

for _patch in PATCHES:
    _patch()
