"""The nano models: real instances of audiocraft's classes, small enough for a laptop.

The codec is audiocraft's `EncodecModel` with its `ResidualVectorQuantizer`; the language model is
audiocraft's `LMModel`, as in MusicGen, with a text conditioner of its own small vocabulary.
Explained in notebook 02; trained by ``make nano``.

The codec's codes spell out magnitudes only. Phase, spelled out frame by frame, is what makes codes
hard to predict for a language model, and it can be found again: the decoder predicts log magnitudes
and puts phase back by following spectral peaks (single-pass spectrogram inversion, Beauregard et
al., IEEE DSP 2015). A few steps of Griffin-Lim after it smear strokes and add others: 1.3 times as
many onsets as the music has, from its own magnitudes, against 1.1 without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F

from musae_utils.models import compat  # noqa: F401  (before audiocraft)

from audiocraft.models.encodec import EncodecModel  # isort: skip
from audiocraft.models.lm import LMModel  # isort: skip
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # isort: skip
from audiocraft.modules.conditioners import (  # isort: skip
    ConditionFuser,
    ConditioningProvider,
    TextConditioner,
)
from audiocraft.quantization import ResidualVectorQuantizer  # isort: skip

from musae_utils.music.captions import VOCABULARY, words

CODEC = {
    "sample_rate": 16_000,  # Hz
    "hop": 320,  # samples a code frame: 50 frames a second
    "n_fft": 2048,  # a window of 128 ms tells a semitone from the next down to 130 Hz
    "floor": 3e-5,  # amplitude below which everything is silence (-90 dB)
    "dim": 32,  # latent dimension
    # A note lasts 10 to 50 frames: blocks that see far average over what quantising did to each.
    "encoder_width": 320,
    "encoder_dilations": [1, 2, 4, 8, 1],
    "decoder_width": 448,
    "decoder_dilations": [1, 2, 4, 8, 4, 1],
    "expansion": 1,  # of a block's inner width
    "codebooks": 8,  # 72 bits a frame; four of 1024 left loud partials 4 dB off
    "cardinality": 512,
}

LM = {
    "dim": 256,
    "layers": 6,
    "heads": 8,
    "codebooks": CODEC["codebooks"],
    "cardinality": CODEC["cardinality"],
    "max_words": 32,
    "guidance_dropout": 0.15,
}


#: Settings that no weight tells, and what they can be.
UNSEEN = {
    "sample_rate": (8_000, 384_000), "hop": (1, 2**12), "n_fft": (16, 2**16),
    "max_words": (1, 2**12), "floor": (1e-12, 1), "guidance_dropout": (0, 1),
    "encoder_dilations": (1, 2**12), "decoder_dilations": (1, 2**12), "griffin_lim_steps": (0, 99),
}  # fmt: skip
SCALE = ".scale"  # what is added to the name of a matrix kept in eight bits
LOUDEST = 2.9  # normalised log magnitude: -11 dB of full scale in one partial

# -- the codec ----------------------------------------------------------------------------------


class ShiftBlock(nn.Module):
    """A residual block that sees frames t - d, t and t + d, made of matrix products alone.

    A convolution over time, but several times faster to train on a CPU.
    """

    def __init__(self, width: int, dilation: int, expansion: int):
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(3 * width, expansion * width)
        self.reduce = nn.Linear(expansion * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, T, width)
        y, d = self.norm(x), self.dilation
        padded = F.pad(y, (0, 0, d, d))
        y = torch.cat([padded[:, : -2 * d], y, padded[:, 2 * d :]], dim=-1)
        return x + self.reduce(F.gelu(self.expand(y)))


class LogSpectrum(nn.Module):
    """Audio to log magnitudes and back: frame i is centred on the middle of code frame i."""

    def __init__(self, n_fft: int, hop: int, floor: float):
        super().__init__()
        self.n_fft, self.hop, self.floor = n_fft, hop, floor
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    def stft(self, audio: torch.Tensor) -> torch.Tensor:
        """(B, T * hop) samples to (B, T, bins) complex amplitudes."""
        side = (self.n_fft - self.hop) // 2
        frames = F.pad(audio, (side, side)).unfold(-1, self.n_fft, self.hop) * self.window
        # Phase is counted from the window's centre: a peak and its neighbours then share it.
        return torch.fft.rfft(torch.fft.ifftshift(frames, dim=-1)) * (2 / self.window.sum())

    def istft(self, spectrum: torch.Tensor) -> torch.Tensor:
        """(B, T, bins) to (B, T * hop): windowed overlap-add, normalised."""
        frames = torch.fft.fftshift(torch.fft.irfft(spectrum, self.n_fft), dim=-1) * self.window
        n = frames.shape[1]
        length = (n - 1) * self.hop + self.n_fft
        fold = lambda x: F.fold(  # noqa: E731
            x.transpose(1, 2), (1, length), (1, self.n_fft), stride=(1, self.hop)
        ).flatten(1)
        norm = fold((self.window**2).expand(1, n, -1)) * (2 / self.window.sum())
        side = (self.n_fft - self.hop) // 2
        return (fold(frames) / norm.clamp(min=1e-6))[:, side : side + n * self.hop]

    def analyse(self, audio: torch.Tensor) -> torch.Tensor:
        """(B, samples) to normalised log magnitudes (B, T, bins), about -1.7 to 3.5."""
        audio = F.pad(audio, (0, -audio.shape[-1] % self.hop))
        return (torch.log(self.stft(audio).abs() + self.floor) + 7) / 2

    def synthesise(self, log_magnitudes: torch.Tensor) -> torch.Tensor:
        """Normalised log magnitudes (B, T, bins) to audio (B, T * hop)."""
        # No partial of a clip reaches this; codes that never met in music could ask for any level.
        log_magnitudes = log_magnitudes.clamp(max=LOUDEST)
        magnitude = (torch.exp(log_magnitudes.float() * 2 - 7) - self.floor).clamp(min=0)
        phase = self._phase_from_peaks(log_magnitudes.float())
        return self.istft(torch.polar(magnitude, phase))

    def _phase_from_peaks(self, log_magnitude: torch.Tensor) -> torch.Tensor:
        """Each bin follows the spectral peak nearest to it, at that peak's exact frequency."""
        left, mid, right = log_magnitude[..., :-2], log_magnitude[..., 1:-1], log_magnitude[..., 2:]
        peak = F.pad((mid > left) & (mid >= right), (1, 1))
        # The vertex of the parabola through a peak's three log magnitudes, in bins from its centre.
        offset = 0.5 * (left - right) / (left - 2 * mid + right).clamp(max=-1e-4)
        offset = F.pad(offset.clamp(-0.5, 0.5), (1, 1))
        index = torch.arange(self.bins, device=peak.device).expand(peak.shape)
        far = 4 * self.bins
        below = torch.where(peak, index, -far).cummax(-1).values
        above = torch.where(peak, index, far).flip(-1).cummin(-1).values.flip(-1)
        owner = torch.where(index - below <= above - index, below, above).clamp(0, self.bins - 1)
        advance = (index + offset).gather(-1, owner) * (2 * math.pi * self.hop / self.n_fft)
        phases, phase = [], torch.zeros_like(advance[:, 0])
        for t in range(owner.shape[1]):
            phase = (phase + advance[:, t]).gather(-1, owner[:, t])
            phases.append(phase)
        return torch.stack(phases, dim=1)


class NanoEncoder(nn.Module):
    """(B, 1, samples) to latents (B, dim, T), 50 frames a second."""

    def __init__(self, c: dict):
        super().__init__()
        self.spectrum = LogSpectrum(c["n_fft"], c["hop"], c["floor"])
        width = c["encoder_width"]
        self.start = nn.Linear(self.spectrum.bins, width)
        self.blocks = nn.Sequential(
            *(ShiftBlock(width, d, c["expansion"]) for d in c["encoder_dilations"])
        )
        self.end = nn.Linear(width, c["dim"])

    def from_spectrum(self, x: torch.Tensor) -> torch.Tensor:  # (B, T, bins)
        return self.end(self.blocks(self.start(x))).transpose(1, 2)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return self.from_spectrum(self.spectrum.analyse(audio.squeeze(1)))


class NanoDecoder(nn.Module):
    """Latents (B, dim, T) to (B, 1, samples)."""

    def __init__(self, c: dict):
        super().__init__()
        self.spectrum = LogSpectrum(c["n_fft"], c["hop"], c["floor"])
        width = c["decoder_width"]
        self.start = nn.Linear(c["dim"], width)
        self.blocks = nn.Sequential(
            *(ShiftBlock(width, d, c["expansion"]) for d in c["decoder_dilations"])
        )
        self.end = nn.Linear(width, self.spectrum.bins)

    def to_spectrum(self, latents: torch.Tensor) -> torch.Tensor:  # (B, T, bins)
        return self.end(self.blocks(self.start(latents.transpose(1, 2))))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.spectrum.synthesise(self.to_spectrum(latents)).unsqueeze(1)


def build_codec(config: dict) -> EncodecModel:
    """A nano codec with fresh weights."""
    c = CODEC | config
    return EncodecModel(
        NanoEncoder(c),
        NanoDecoder(c),
        ResidualVectorQuantizer(
            dimension=c["dim"], n_q=c["codebooks"], bins=c["cardinality"], kmeans_init=False
        ),
        frame_rate=c["sample_rate"] // c["hop"],
        sample_rate=c["sample_rate"],
        channels=1,
    )


# -- the language model -------------------------------------------------------------------------


class WordConditioner(TextConditioner):
    """Embeds the words of a caption from a fixed vocabulary; unknown words are skipped.

    Every prompt becomes the same number of tokens, so that a row of a batch never depends on how
    long another row's prompt is. Its words are repeated to fill them: attention over the copies is
    attention over the words, whereas zeros beside them are a place to look away to, and a language
    model that learns to look away early never reads a prompt again. No prompt gives zeros alone:
    the null condition of guidance.
    """

    def __init__(self, vocabulary: list[str], output_dim: int, max_words: int):
        super().__init__(output_dim, output_dim)
        self.vocabulary = list(vocabulary)
        self.index = {word: i + 1 for i, word in enumerate(self.vocabulary)}
        self.max_words = max_words
        self.embed = nn.Embedding(len(vocabulary) + 1, output_dim, padding_idx=0)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that this model never learnt."""
        return sorted({w for w in words(prompt) if w not in self.index})

    def tokenize(self, x: list[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.embed.weight.device
        tokens = torch.zeros(len(x), self.max_words, dtype=torch.long, device=device)
        for row, text in enumerate(x):
            known = [self.index[w] for w in words(text or "") if w in self.index]
            known = (known * self.max_words)[: self.max_words]
            tokens[row, : len(known)] = torch.tensor(known, dtype=torch.long)
        return tokens, (tokens > 0).int()

    def forward(self, inputs):
        tokens, mask = inputs
        embedded = self.output_proj(self.embed(tokens)) * mask.unsqueeze(-1)
        return embedded, mask


def build_lm(config: dict) -> LMModel:
    """A nano language model with fresh weights."""
    c = LM | config
    conditioner = WordConditioner(c.get("vocabulary", VOCABULARY), c["dim"], c["max_words"])
    return LMModel(
        DelayedPatternProvider(n_q=c["codebooks"]),
        ConditioningProvider({"description": conditioner}),
        ConditionFuser(
            {"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []}
        ),
        n_q=c["codebooks"],
        card=c["cardinality"],
        dim=c["dim"],
        num_heads=c["heads"],
        hidden_scale=4,
        norm_first=True,
        bias_proj=False,
        weight_init="gaussian",
        depthwise_init="current",
        zero_bias_init=True,
        cfg_dropout=c["guidance_dropout"],
        cfg_coef=3.0,
        num_layers=c["layers"],
        dropout=0.0,
        activation="gelu",
        bias_ff=False,
        bias_attn=False,
        causal=True,
        custom=False,
        memory_efficient=True,
        attention_as_float32=False,
        cross_attention=True,
        positional_embedding="sin",
    )


# -- files --------------------------------------------------------------------------------------


def save_part(
    folder: Path, part: str, model: nn.Module, config: dict, eight_bit: bool = False
) -> None:
    """Write ``{part}.safetensors`` (half precision) and ``{part}.json`` (config and report).

    With `eight_bit` each row of a matrix is kept as whole numbers from -127 to 127 and one scale.
    """
    from safetensors.torch import save

    from musae_utils.runs import atomic_write, save_json

    state = {}
    for name, value in model.state_dict().items():
        value = value.detach()
        if eight_bit and value.ndim == 2 and name.endswith("weight"):
            scale = (value.abs().amax(1) / 127).clamp(min=1e-6).half()
            rounded = (value / scale.float()[:, None]).round().clamp(-127, 127)
            state[name], state[name + SCALE] = rounded.to(torch.int8), scale
        else:
            state[name] = value.half().contiguous()
    atomic_write(folder / f"{part}.safetensors", save(state))
    save_json(folder / f"{part}.json", config)


def _full_precision(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `save_part` was given, as near as its file says."""
    full = {}
    for name, value in state.items():
        if name + SCALE in state:
            scale = state[name + SCALE]
            if value.ndim != 2 or scale.shape != value.shape[:1]:
                raise ValueError(f"{name} has no scale a row")
            full[name] = value.float() * scale.float()[:, None]
        elif not name.endswith(SCALE):
            full[name] = value.float() if value.is_floating_point() else value
    return full


#: What building a part raises where its architecture is not one.
NO_PART = (SafetensorError, ValueError, LookupError, TypeError, RuntimeError, AttributeError,
            ArithmeticError, AssertionError, RecursionError)  # fmt: skip


def refuse_other_sizes(
    architecture: dict, build: Callable[[dict], nn.Module], state: dict[str, torch.Tensor],
    unseen: Mapping[str, tuple[float, float]],
) -> None:  # fmt: skip
    """Raise ValueError unless weights are numbers, and those of an architecture.

    Found out without memory for weights: what an architecture promises need not be in the file.
    """
    for name, x in state.items():
        if x.is_floating_point() and not x.sum(dtype=torch.float64).isfinite():
            raise ValueError(f"{name} holds NaN or infinite values")
    largest = sum(x.numel() for x in state.values())
    for name, value in architecture.items():
        if name == "vocabulary":
            if not all(isinstance(word, str) for word in value):
                raise ValueError("vocabulary is a list of words")
            continue
        # Layers and codebooks are tensors of their own; all else is a length of one.
        several = name in ("layers", "heads", "codebooks")
        least, most = unseen.get(name, (1, len(state) if several else largest))
        if isinstance(value, list) != name.endswith("dilations"):
            raise ValueError(f"{name} is {value!r:.80}")
        for number in value if isinstance(value, list) else [value]:
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not (whole or (isinstance(number, float) and most <= 1)):
                raise ValueError(f"{name} is {number!r:.80}")
            if not least <= number <= most:
                raise ValueError(f"{name} is {number:.6g}, and not from {least} to {most}")
    with torch.device("meta"):
        wanted = {name: x.shape for name, x in build(architecture).state_dict().items()}
    if wanted != {name: x.shape for name, x in state.items()}:
        raise ValueError("its tensors have other names or shapes")


def load_part(
    folder: Path, part: str, builders: Mapping[str, Callable[[dict], nn.Module]] | None = None
) -> nn.Module:
    """Read what `save_part` wrote; a clear error names the file that is missing or damaged.

    `builders` make a part with fresh weights from its architecture; by default those of this file.
    """
    from safetensors.torch import load_file

    paths = [folder / f"{part}.json", folder / f"{part}.safetensors"]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: a nano model needs it; `make nano` makes it."
            )
    try:
        architecture = json.loads(paths[0].read_text(encoding="utf-8"))["architecture"]
        state = _full_precision(load_file(paths[1]))
        build = (builders or {"codec": build_codec, "lm": build_lm})[part]
        refuse_other_sizes(architecture, build, state, UNSEEN)
        model = build(architecture)
        model.load_state_dict(state)
    except NO_PART as error:
        raise ValueError(
            f"{paths[1]} cannot be read as a nano {part} ({type(error).__name__}): it is truncated "
            "or belongs to another model. Fetch it again, or make it with `make nano`."
        ) from error
    return model.eval().requires_grad_(False)


def load_nano(folder: Path) -> tuple[EncodecModel, LMModel]:
    """The codec and the language model of a nano folder, ready to use."""
    return load_part(Path(folder), "codec"), load_part(Path(folder), "lm")
