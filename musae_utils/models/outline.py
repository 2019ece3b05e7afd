"""A model's architecture without its weights, by name or from a folder (notebook 18).

`outline` reads configurations alone. What it gives can be built on torch's *meta* device, where
tensors have shapes and no memory, so that a model of billions of parameters is counted, and even
run to see which tensors live at once, before a byte of it is loaded. The same outline builds a few
layers with made-up weights on a real device, to see how fast they are there.

Sizes of the published models are those of audiocraft's own configurations
(``config/model/lm/model_scale``, ``musicgen_lm``, ``encodec_large_nq4_s640``,
``conditioner/chroma2music``), of MusicGen (arXiv 2306.05284) and, for the text encoders, of T5
(arXiv 1910.10683, table of model variants).
"""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from musae_utils import models
from musae_utils.models import nano
from musae_utils.models.compat import read_checkpoint
from musae_utils.models.model import MusicModel

__all__ = ["Outline", "musicgen_config", "outline"]

SCALES = {"small": (1024, 16, 24), "medium": (1536, 24, 48), "large": (2048, 32, 48)}
#: d_model, d_kv, d_ff, layers and heads of the encoders; 32,128 tokens each.
T5 = {
    "t5-small": (512, 64, 2048, 6, 8),
    "t5-base": (768, 64, 3072, 12, 12),
    "t5-large": (1024, 64, 4096, 24, 16),
}
PROMPT_TOKENS = 32  # of a T5 prompt: a sentence or two
MELODY_DOWNSAMPLING = 4096  # samples a frame of the melody's chroma: a quarter of 2^14


@dataclass(frozen=True)
class Outline:
    """What a model consists of; made by `outline`.

    Attributes
    ----------
    name : str
    layers, dim, heads : int
        Of the language model's transformer.
    codebooks, cardinality : int
    delay : int
        Steps by which the last codebook lags: T frames take T + delay + 1 positions.
    sample_rate, frame_rate : float
        Hz, and frames of codes a second.
    max_seconds : float
    text : str or None
        The T5 whose encoder reads prompts; the nano's language model has its own embedding.
    tokens : int
        Of a prompt, as planned with.
    prefix : int
        Positions that conditions take before the music, in models that put them there.
    files : int
        Bytes on the disk, of a folder; 0 where they are not there yet.
    """

    name: str
    layers: int
    dim: int
    heads: int
    codebooks: int
    cardinality: int
    delay: int
    sample_rate: int
    frame_rate: float
    max_seconds: float
    text: str | None
    tokens: int
    prefix: int
    files: int
    _lm: Any = field(repr=False)  # the nano's architecture, or audiocraft's configuration
    _codec: Any = field(repr=False)

    def model(
        self,
        layers: int | None = None,
        device: str | torch.device = "meta",
        dtype: torch.dtype = torch.float32,
    ) -> MusicModel:
        """The model with its first `layers` layers: shapes alone on "meta", else made-up weights.

        Prompts are read by a small stand-in of the right width, so that no text encoder is needed.
        """
        from audiocraft.models import builders
        from audiocraft.utils.autocast import TorchAutocast

        device = torch.device(device)
        with torch.device("meta"):
            lm = self._build_lm(self.layers if layers is None else layers)
            reader = nano.WordConditioner([], self.dim, self.tokens)
            lm.condition_provider.conditioners["description"] = reader
            codec = self._build_codec()
        if device.type != "meta":
            lm, codec = (_made_up(part, device) for part in (lm, codec))
        if self.text:  # two codecs of one channel make a stereo one
            codec = builders.get_wrapped_compression_model(codec, self._lm)
        half = dtype == torch.float16 and device.type not in ("cpu", "meta")
        autocast = dict(device_type=device.type, dtype=dtype) if half else {}
        parts = SimpleNamespace(  # audiocraft's MusicGen cannot live on the meta device
            lm=lm.to(dtype=dtype).eval(), compression_model=codec, device=device,
            sample_rate=self.sample_rate, frame_rate=self.frame_rate,
            max_duration=self.max_seconds, autocast=TorchAutocast(half, **autocast),
        )  # fmt: skip
        return MusicModel(self.name, parts, dtype)

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Trained weights of the language model (its conditioners included), codec, text encoder.

        Codebooks count as weights of the codec.
        """
        with torch.device("meta"):
            lm, codec = self._build_lm(self.layers), self._build_codec()
        widths = [12] if self.prefix else []  # the melody's chroma
        widths += [T5[self.text][0]] if self.text else []
        conditioners = sum((width + 1) * self.dim for width in widths)
        if not self.text:
            conditioners = _size(nano.build_lm(self._lm).condition_provider)
        return {
            "language model": _size(lm) + conditioners,
            "codec": _size(codec),
            "text encoder": sum(p.numel() for p in self._text_encoder().parameters())
            if self.text
            else 0,
        }

    def weights(self, dtype: torch.dtype) -> int:
        """Bytes of all weights in memory: the language model in `dtype`, the rest in float32."""
        counts = self.parameters
        rest = counts["codec"] + counts["text encoder"]
        return counts["language model"] * dtype.itemsize + 4 * rest

    @cached_property
    def text_file(self) -> int:
        """Weights in the file of the text encoder, which brings a decoder that is not used."""
        from transformers import T5Model

        return sum(p.numel() for p in self._text_encoder(T5Model).parameters()) if self.text else 0

    def _text_encoder(self, kind: type | None = None) -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        with torch.device("meta"):
            return (kind or T5EncoderModel)(
                T5Config(vocab_size=32_128, **dict(zip(names, T5[self.text], strict=True)))
            )

    def _build_lm(self, layers: int) -> nn.Module:
        """On the device that is torch's default; without conditioners, where audiocraft's."""
        if not self.text:
            return _without_conditioners(nano.build_lm(self._lm | {"layers": layers}))
        from audiocraft.models import builders

        config = copy.deepcopy(self._lm)
        config.device, config.dtype = "meta", "float32"
        where = "prepend" if self.prefix else "cross"
        config.transformer_lm.cross_attention = where == "cross"
        config.transformer_lm.num_layers = layers
        config.fuser[where], config.conditioners = [], {}
        lm = builders.get_lm_model(config).eval()
        lm.fuser.fuse2cond[where], lm.fuser.cond2fuse["description"] = ["description"], where
        lm.cfg = config
        return lm

    def _build_codec(self) -> nn.Module:
        if not self.text:
            return nano.build_codec(self._codec).eval()
        from audiocraft.models import builders

        config = copy.deepcopy(self._codec)
        config.device = "meta"
        return builders.get_compression_model(config).eval()


def outline(name: str | Path = "nano") -> Outline:
    """Read what a model consists of; no weight is loaded and nothing is fetched.

    Parameters
    ----------
    name : str or Path
        As `musae_utils.models.load` takes it: "nano", a published name, or a folder.

    Returns
    -------
    Outline

    Raises
    ------
    ValueError, FileNotFoundError
        As `models.load`: an unknown name, a folder that is no model, a file that is damaged or
        whose weights are not those that its configuration asks for.
    """
    name = str(name)
    if name in models.PUBLISHED:
        return _of_audiocraft(name, *musicgen_config(name), files=0)
    folder = models.NANO_FOLDER if name == "nano" else models._folder(name)
    layout = models._layout(name, folder)
    files = sum((folder / file).stat().st_size for file in layout)
    read = _read_nano if layout is models.NANO_FILES else _read_audiocraft
    return read(name, folder, files)


def musicgen_config(name: str) -> tuple[Any, Any]:
    """The configurations, language model's and codec's, of a published MusicGen.

    In the form in which audiocraft keeps them in its checkpoints, as far as loading reads them.
    """
    from omegaconf import OmegaConf

    kind = name.removeprefix("facebook/musicgen-")
    stereo, melody = kind.startswith("stereo-"), kind.endswith("melody")
    dim, heads, layers = SCALES[kind.removeprefix("stereo-").replace("melody", "medium")]
    delays = [0, 0, 1, 1, 2, 2, 3, 3] if stereo else [0, 1, 2, 3]
    t5 = {"name": "t5-base", "finetune": False, "word_dropout": 0.2, "normalize_text": False}
    conditioners = {"description": {"model": "t5", "t5": t5}}
    if melody:
        conditioners["self_wav"] = {"model": "chroma_stem", "chroma_stem": {
            "sample_rate": 32_000, "n_chroma": 12, "radix2_exp": 14, "argmax": True}}  # fmt: skip
    lm = {
        "device": "cuda", "dtype": "float16", "solver": "musicgen", "sample_rate": 32_000,
        "channels": 1 + stereo, "lm_model": "transformer_lm",
        "transformer_lm": {
            "dim": dim, "num_heads": heads, "num_layers": layers, "hidden_scale": 4,
            "n_q": len(delays), "card": 2048, "dropout": 0.0, "emb_lr": None, "activation": "gelu",
            "norm_first": True, "bias_ff": False, "bias_attn": False, "bias_proj": False,
            "past_context": None, "causal": True, "custom": False, "memory_efficient": True,
            "attention_as_float32": False, "layer_scale": None, "positional_embedding": "sin",
            "xpos": False, "checkpointing": "none", "weight_init": "gaussian",
            "depthwise_init": "current", "zero_bias_init": True, "norm": "layer_norm",
            "cross_attention": False, "qk_layer_norm": False, "qk_layer_norm_cross": False,
            "attention_dropout": None, "kv_repeat": 1, "two_step_cfg": False,
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": delays, "flatten_first": 0, "empty_initial": 0},
        },
        "classifier_free_guidance": {"training_dropout": 0.2, "inference_coef": 3.0},
        "attribute_dropout": {"args": {"active_on_eval": False}, "text": {}},
        "conditioners": {"args": {}, **conditioners},
        "fuser": {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [],
                  "prepend": ["self_wav", "description"] if melody else [],
                  "cross": [] if melody else ["description"], "input_interpolate": []},
        "dataset": {"segment_duration": 30},
        "interleave_stereo_codebooks": {"use": stereo, "per_timestep": False},
        "compression_model_n_q": None,
    }  # fmt: skip
    return OmegaConf.create(lm), OmegaConf.create(ENCODEC_32KHZ)


ENCODEC_32KHZ = {
    "device": "cuda", "sample_rate": 32_000, "channels": 1, "compression_model": "encodec",
    "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": 32_000, "channels": 1,
                "causal": False, "renormalize": False},
    "seanet": {"dimension": 128, "channels": 1, "causal": False, "n_filters": 64,
               "n_residual_layers": 1, "ratios": [8, 5, 4, 4], "activation": "ELU",
               "activation_params": {"alpha": 1.0}, "norm": "weight_norm", "norm_params": {},
               "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 7,
               "dilation_base": 2, "pad_mode": "constant", "true_skip": True, "compress": 2,
               "lstm": 2, "disable_norm_outer_blocks": 0, "encoder": {},
               "decoder": {"trim_right_ratio": 1.0, "final_activation": None,
                           "final_activation_params": None}},
    "rvq": {"n_q": 4, "q_dropout": False, "bins": 2048, "decay": 0.99, "kmeans_init": False,
            "kmeans_iters": 50, "threshold_ema_dead_code": 2, "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False},
}  # fmt: skip


def _of_audiocraft(name: str, lm: Any, codec: Any, files: int) -> Outline:
    t, told = lm.transformer_lm, lm.conditioners.get("description", {})
    text = told.get("t5", {}).get("name", "none")
    if text not in T5:
        raise ValueError(
            f"{name} reads prompts with {text!r}, whose size is not known here; known are "
            f"{', '.join(T5)}."
        )
    prefix = 0
    if "description" in lm.fuser.prepend:
        melody = lm.dataset.segment_duration * lm.sample_rate // MELODY_DOWNSAMPLING + 1
        prefix = PROMPT_TOKENS + (int(melody) if "self_wav" in lm.conditioners else 0)
    sample_rate = int(codec.sample_rate)
    hop = int(torch.tensor(list(codec.seanet.ratios)).prod())
    return Outline(
        name, int(t.num_layers), int(t.dim), int(t.num_heads), int(t.n_q), int(t.card),
        int(max(lm.codebooks_pattern.delay.delays)), sample_rate, sample_rate / hop,
        float(lm.dataset.segment_duration), text, PROMPT_TOKENS, prefix, files, lm, codec,
    )  # fmt: skip


def _read_audiocraft(name: str, folder: Path, files: int) -> Outline:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # Mapped, not read: the tensors of these files stay on the disk.
    lm, codec = (read_checkpoint(folder / file) for file in models.AUDIOCRAFT_FILES)
    try:
        reference = codec.get("pretrained")
        if reference not in (None, "facebook/encodec_32khz"):
            raise ValueError(
                f"{folder} uses the codec {reference!r}, whose size is not known here."
            )
        codec_config = OmegaConf.create(ENCODEC_32KHZ if reference else codec["xp.cfg"])
        found = _of_audiocraft(name, OmegaConf.create(lm["xp.cfg"]), codec_config, files)
        stored = {"language model": lm["best_state"]}
        stored |= {} if reference else {"codec": codec["best_state"]}
        counts = found.parameters
    except (KeyError, AttributeError, TypeError, AssertionError, OmegaConfBaseException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{folder} is not a MusicGen as audiocraft exports it: {reason}"
        ) from error
    for part, state in stored.items():
        _check(
            folder, part, counts[part], sum(v.numel() for k, v in state.items() if _is_weight(k))
        )
    return found


def _read_nano(name: str, folder: Path, files: int) -> Outline:
    from safetensors import SafetensorError, safe_open

    settings, stored = {}, {}
    for part in ("lm", "codec"):
        try:
            settings[part] = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
            with safe_open(folder / f"{part}.safetensors", "pt") as file:
                keys = [key for key in file.keys() if not key.endswith(nano.SCALE)]
                shapes = {key: file.get_slice(key).get_shape() for key in keys}
            stored[part] = sum(
                int(torch.tensor(shape).prod()) for key, shape in shapes.items() if _is_weight(key)
            )
            config = {"lm": nano.LM, "codec": nano.CODEC}[part] | settings[part]["architecture"]
            settings[part] = settings[part] | {"architecture": config}
        except (SafetensorError, ValueError, KeyError, TypeError):
            raise ValueError(f"{folder / part} is damaged or cut short: fetch it again.") from None
    lm, codec = settings["lm"]["architecture"], settings["codec"]["architecture"]
    found = Outline(
        name, lm["layers"], lm["dim"], lm["heads"], lm["codebooks"], lm["cardinality"],
        lm["codebooks"] - 1, codec["sample_rate"], codec["sample_rate"] / codec["hop"],
        float(settings["lm"].get("max_seconds", 30)), None, lm["max_words"], 0, files, lm, codec,
    )  # fmt: skip
    for part, key in (("language model", "lm"), ("codec", "codec")):
        _check(folder, part, found.parameters[part], stored[key])
    return found


def _check(folder: Path, part: str, asked: int, stored: int) -> None:
    if asked != stored:
        raise ValueError(
            f"The {part} of {folder} has {stored:,} weights in its file, and its configuration "
            f"asks for {asked:,}: the two do not belong together."
        )


def _is_weight(name: str) -> bool:
    """Whether a tensor of a checkpoint is one: not a buffer, but for a codebook."""
    buffers = ("inited", "cluster_size", "embed_avg", "spec.window", "fbanks", "window")
    return not name.endswith(buffers) and "self_wav.chroma" not in name


def _size(module: nn.Module) -> int:
    return sum(value.numel() for name, value in module.state_dict().items() if _is_weight(name))


def _without_conditioners(lm: nn.Module) -> nn.Module:
    lm.condition_provider.conditioners.clear()
    return lm.eval()


def _made_up(module: nn.Module, device: torch.device) -> nn.Module:
    """Weights that take no time to make and give finite numbers."""
    module = module.to_empty(device=device)
    with torch.no_grad():
        for value in itertools.chain(module.parameters(), module.buffers()):
            value.fill_(0.01 if value.is_floating_point() else 0)
    return module.eval()
