"""Published audio-latent models behind one face: by name, from a folder, from a file (notebook 12).

What is loaded, and by which library:

- **EnCodec** and **DAC**: transformers' ``EncodecModel`` and ``DacModel``;
- **Oobleck**, the VAE of Stable Audio Open and ACE-Step 1.5: diffusers' ``AutoencoderOobleck``;
- the same VAE in the layout of ``stable-audio-tools``, as DiffRhythm's is trained: its weights are
  taken over key by key, its shape is read off them;
- **AudioLDM**: diffusers' ``AutoencoderKL`` between mel spectrograms, transformers' vocoder after;
- **WavTokenizer**: `latents.wavtokenizer`, from a released checkpoint.

Weights are tensors and nothing else: safetensors, or pickles read with ``weights_only=True``. A
TorchScript file is a program and is refused. Latents are those before any quantiser, of a VAE the
means, unscaled.

`TABLE` says of each model what it is, how it loads, and whether that was ever tried on the files
that were published. None was: the tests write files of the same layout and shape.
"""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from musae_utils.latents.model import LatentModel
from musae_utils.models import compat  # noqa: F401  (before diffusers and vocos)
from musae_utils.runs import is_whole

TRIED = "loads; tried on files of its layout and shape, not on the published ones"
RATE = 44_100  # of a bare Oobleck state dict: Stable Audio Open's and DiffRhythm's
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".ts")


class Published(NamedTuple):
    """A row of `TABLE`.

    Attributes
    ----------
    name : str
        On the Hugging Face hub.
    kind : str
        As `LatentModel.kind`.
    hertz, frames, width : float
        Sample rate, latent frames a second, numbers a frame.
    licence : str
        Of the weights, as their publishers state it; read it there before you rely on it.
    files : tuple of str
        Which files of the repository are fetched; none where the model cannot be loaded.
    loads : str
        Through what.
    state : str
        What is known about it working.
    """

    name: str
    kind: str
    hertz: int
    frames: float
    width: int
    licence: str
    files: tuple[str, ...]
    loads: str
    state: str


_CONFIGURED = ("config.json", "model.safetensors")
_OOBLECK = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
_MEL = ("vae/config.json", "vae/diffusion_pytorch_model*", "vocoder/config.json",
        "vocoder/model.safetensors", "vocoder/pytorch_model.bin")  # fmt: skip

#: Published latent models, and the honest state of each.
TABLE = (
    Published("facebook/encodec_24khz", "rvq", 24_000, 75, 128, "see its page",
              _CONFIGURED, "transformers, EncodecModel", TRIED),
    Published("facebook/encodec_32khz", "rvq", 32_000, 50, 128, "CC-BY-NC 4.0, as MusicGen's",
              _CONFIGURED, "transformers, EncodecModel", TRIED),
    Published("descript/dac_16khz", "rvq", 16_000, 50, 1024, "MIT",
              _CONFIGURED, "transformers, DacModel", TRIED),
    Published("descript/dac_24khz", "rvq", 24_000, 75, 1024, "MIT",
              _CONFIGURED, "transformers, DacModel", TRIED),
    Published("descript/dac_44khz", "rvq", 44_100, 44_100 / 512, 1024, "MIT",
              _CONFIGURED, "transformers, DacModel", TRIED),
    Published("stabilityai/stable-audio-open-1.0", "vae", 44_100, 44_100 / 2048, 64,
              "Stability AI Community; accepted on its page first", _OOBLECK,
              "diffusers, AutoencoderOobleck", TRIED),
    Published("ACE-Step/Ace-Step1.5", "vae", 48_000, 25, 64, "MIT", _OOBLECK,
              "diffusers, AutoencoderOobleck", TRIED),
    Published("ASLP-lab/DiffRhythm-vae", "vae", 44_100, 44_100 / 2048, 64, "Stability AI Community",
              ("*.safetensors", "*.json"),
              "key by key into diffusers' AutoencoderOobleck",
              "its vae_model.pt is TorchScript and refused; a state dict of it loads, tried on "
              "one of its layout and shape"),
    Published("novateur/WavTokenizer-medium-music-audio-75token", "single codebook", 24_000, 75,
              512, "MIT", ("wavtokenizer_medium_music_audio_320_24k_v2.ckpt",),
              "encodec and vocos, latents.wavtokenizer", TRIED),
    Published("novateur/WavTokenizer-large-speech-75token", "single codebook", 24_000, 75, 512,
              "MIT", ("wavtokenizer_large_speech_320_v2.ckpt",),
              "encodec and vocos, latents.wavtokenizer", TRIED),
    Published("novateur/WavTokenizer-large-unify-40token", "single codebook", 24_000, 40, 512,
              "MIT", ("wavtokenizer_large_unify_600_24k.ckpt",),
              "encodec and vocos, latents.wavtokenizer", TRIED),
    Published("cvssp/audioldm2-music", "vae", 16_000, 25, 128, "CC-BY-NC-SA 4.0", _MEL,
              "diffusers, AutoencoderKL on mel bands; transformers, SpeechT5HifiGan", TRIED),
    Published("ACE-Step/ACE-Step-v1-3.5B", "vae", 44_100, 44_100 / 4096, 128, "Apache 2.0", (),
              "—", "does not load: diffusers has its autoencoder (AutoencoderDC) and not its "
              "vocoder (ADaMoSHiFiGANV1), without which there is no sound"),
    Published("acids-ircam/RAVE", "vae", 48_000, 48_000 / 2048, 128, "see the model", (),
              "—", "does not load: its models are published as TorchScript, and neither diffusers "
              "nor torch has its network; sizes differ from model to model"),
)  # fmt: skip
BY_NAME = {row.name: row for row in TABLE}


def load_published(name: str | Path) -> LatentModel:
    """Load a model of `TABLE`, a folder, or a file.

    Parameters
    ----------
    name : str or Path
        A name in `TABLE`; a folder with a ``config.json`` (of transformers or diffusers, the latter
        also as ``vae/config.json``), or with a ``model_config.json`` (of stable-audio-tools) and
        weights; or a file of weights (stable-audio-tools' Oobleck, or WavTokenizer).

    Returns
    -------
    LatentModel

    Raises
    ------
    ValueError
        A name nobody knows; a model that does not load, and why; a file that is damaged, is a
        program instead of weights, or has other keys than the model, which are named.
    FileNotFoundError
        No such folder or file, or one of a model's files is missing.
    ConnectionError
        The files are neither in the cache nor to be had from the network.
    """
    name = os.fspath(name)
    if row := BY_NAME.get(name):
        if not row.files:
            raise ValueError(f"{name} {row.state}.")
        return _from_folder(name, _fetched(row))
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):
        return _from_folder(name, path)
    if os.path.isfile(path):
        return _from_weights(name, path, {})
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix in SUFFIXES:
        raise FileNotFoundError(f"There is no folder or file {name}.")
    short = {known.split("/")[-1].lower(): known for known in BY_NAME}
    near = difflib.get_close_matches(name.split("/")[-1].lower(), short, n=1, cutoff=0.5)
    hint = f" Did you mean {short[near[0]]!r}?" if near else ""
    raise ValueError(
        f"There is no latent model called {name!r}.{hint} Known are nano-codec, nano-vae, "
        f"nano-tokenizer, {', '.join(BY_NAME)}; or give a folder or a file of weights."
    )


def _fetched(row: Published) -> Path:
    """The folder in the hub's cache with a model's files, fetched if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(row.name, allow_patterns=list(row.files)))
    except (OSError, HfHubHTTPError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC, f"The disk is full: {row.name} could not be fetched."
            ) from None
        reason = (str(error).strip().splitlines() or ["no reason"])[0]
        raise ConnectionError(
            f"{row.name} is not in the Hugging Face cache and could not be fetched: go online "
            "once (and accept its licence there, if it asks for that), or load 'nano-codec', "
            f"which needs no network. ({type(error).__name__}: {reason})"
        ) from None


# -- folders ---------------------------------------------------------------------------------------


def _from_folder(name: str, folder: Path) -> LatentModel:
    for inner in (folder, folder / "vae"):
        if (inner / "config.json").exists():
            config = _json(inner / "config.json")
            kind = config.get("_class_name") or config.get("model_type")
            if not isinstance(kind, str) or kind not in READERS:
                raise ValueError(
                    f"{inner / 'config.json'} is of a {kind or 'model without a name'}; those that "
                    f"can be read are {', '.join(READERS)}."
                )
            _refuse_absurd(config, inner / "config.json")
            try:
                model = READERS[kind](name, inner)
            except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
                raise ValueError(
                    f"{inner / 'config.json'} describes no {kind} that can be read: {error}."
                ) from error
            return _checked(model, inner / "config.json")
    config = folder / "model_config.json"
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files:
        if name == "ASLP-lab/DiffRhythm-vae":
            raise ValueError(_PROGRAM.format(file=f"{name}/vae_model.pt"))
        raise FileNotFoundError(
            f"{folder} holds no model: there is no config.json in it (nor in a folder vae), and "
            f"no file that ends in {', '.join(SUFFIXES)}."
        )
    if len(files) > 1:
        raise ValueError(
            f"{folder} holds {', '.join(path.name for path in files)}: give the one that is meant."
        )
    return _from_weights(name, files[0], _json(config) if config.exists() else {})


#: How many parts a configuration may ask for: far more than any published model has.
MOST = {"n_codebooks": 256, "num_residual_layers": 64, "num_lstm_layers": 64,
        "layers_per_block": 64, "target_bandwidths": 100}  # fmt: skip


def _refuse_absurd(config: dict, file: Path) -> None:
    """Raise ValueError where building what a configuration says would take for ever."""
    for name, most in MOST.items():
        said = config.get(name, 1)
        for number in said if isinstance(said, list) else [said]:
            if not isinstance(number, (int, float)) or not number <= most:
                raise ValueError(
                    f"{file} says {name} = {number!r:.80}: a number up to {most} is expected."
                )


def _checked(model: LatentModel, file: Path) -> LatentModel:
    """The model, if what its configuration says about sound can be."""
    for name, least, most in (
        ("sample_rate", 1000, 384_000), ("hop", 1, 2**20), ("width", 1, 2**16), ("channels", 1, 8),
    ):  # fmt: skip
        number = getattr(model, name)
        if not isinstance(number, int) or not least <= number <= most:
            raise ValueError(
                f"{file} makes a model with {name} = {number!r:.80}: a whole number from {least:,} "
                f"to {most:,} is expected."
            )
    return model


_PLAIN = {"low_cpu_mem_usage": False}  # diffusers would ask for accelerate


def _pretrained(of: Any, folder: Path, **how: Any) -> nn.Module:
    """A model of transformers or diffusers, every weight of it from the folder."""
    from safetensors import SafetensorError

    if not any(path.suffix in SUFFIXES for path in folder.iterdir()):
        raise FileNotFoundError(f"{folder} holds a config.json and no weights: fetch it again.")
    held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in SUFFIXES)
    try:
        with torch.device("meta"):  # before there is memory for what the configuration promises
            promised = sum(p.numel() for p in _configured(of, folder).parameters())
        if promised > held:  # in eight bits
            raise ValueError(f"its config.json is of {promised:,} numbers in {held:,} bytes")
        net, found = of.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, **how
        )
    except SafetensorError as error:
        raise ValueError(_DAMAGED.format(file=folder, why=error)) from None
    except Exception as error:  # whatever a library finds wrong with a configuration
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} is not a whole {of.__name__}: {why}") from error
    _agree(folder, found["missing_keys"], found["unexpected_keys"])
    return net.eval().requires_grad_(False)


def _configured(of: Any, folder: Path) -> nn.Module:
    """A model as a folder's config.json has it, without its weights."""
    if hasattr(of, "from_config"):  # of diffusers
        return of.from_config(of.load_config(folder, local_files_only=True))
    return of(of.config_class.from_pretrained(folder, local_files_only=True))


def _encodec(name: str, folder: Path) -> LatentModel:
    from transformers import EncodecModel

    net = _pretrained(EncodecModel, folder)
    c = net.config
    if c.normalize:
        raise ValueError(
            f"{name} measures the loudness of each second and keeps it beside its latents, so they "
            "alone are no sound. Take facebook/encodec_24khz or facebook/encodec_32khz."
        )

    def quantise(z: torch.Tensor) -> torch.Tensor:
        return net.quantizer.decode(net.quantizer.encode(z))

    books = net.quantizer.num_quantizers
    return LatentModel(
        name, "rvq", net, net.encoder, net.decoder, c.sampling_rate, math.prod(c.upsampling_ratios),
        c.hidden_size, quantise, c.audio_channels, f"All {books} codebooks quantise it.",
    )  # fmt: skip


def _dac(name: str, folder: Path) -> LatentModel:
    from transformers import DacModel

    net = _pretrained(DacModel, folder)
    c = net.config
    return LatentModel(
        name, "rvq", net, _whole(net.encoder, c.hop_length), net.decoder, c.sampling_rate,
        c.hop_length, c.hidden_size, lambda z: net.quantizer(z)[0],
        said=f"All {c.n_codebooks} codebooks quantise it.",
    )  # fmt: skip


def _oobleck(name: str, folder: Path) -> LatentModel:
    from diffusers import AutoencoderOobleck

    return _of_oobleck(name, _pretrained(AutoencoderOobleck, folder, **_PLAIN))


def _of_oobleck(name: str, net: Any, said: str = "", tanh: bool = False) -> LatentModel:
    c = net.config

    def encode(audio: torch.Tensor) -> torch.Tensor:
        return net.encode(audio).latent_dist.mode()

    def decode(z: torch.Tensor) -> torch.Tensor:
        sound = net.decode(z).sample
        return sound.tanh() if tanh else sound

    return LatentModel(
        name, "vae", net, _whole(encode, net.hop_length), decode, c.sampling_rate, net.hop_length,
        c.decoder_input_channels, channels=c.audio_channels, said=said,
    )  # fmt: skip


def _audioldm(name: str, folder: Path) -> LatentModel:
    from diffusers import AutoencoderKL
    from librosa.filters import mel
    from transformers import SpeechT5HifiGan

    vocoder_folder = folder.parent / "vocoder"
    if not (vocoder_folder / "config.json").exists():
        raise FileNotFoundError(
            f"{vocoder_folder / 'config.json'} is missing: {folder} turns mel bands into latents, "
            "and sound needs the vocoder beside it."
        )
    vae, vocoder = (_pretrained(AutoencoderKL, folder, **_PLAIN),
                    _pretrained(SpeechT5HifiGan, vocoder_folder))  # fmt: skip
    c = vocoder.config
    step, bands = math.prod(c.upsample_rates), c.model_in_dim
    if (c.sampling_rate, step, bands) != (16_000, 160, 64):
        raise ValueError(
            f"{name} hears {bands} mel bands at {c.sampling_rate} Hz, {step} samples apart; how "
            "they are computed is known of AudioLDM's 64 at 16,000 Hz, 160 apart, and of no other."
        )
    # As in its own preprocessing: 1,024 samples, magnitudes, 64 bands up to 8 kHz, natural log.
    filters = torch.from_numpy(mel(sr=16_000, n_fft=1024, n_mels=64, fmin=0, fmax=8000))
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    high, channels = bands // factor, vae.config.latent_channels
    net = nn.ModuleDict({"vae": vae, "vocoder": vocoder})

    def encode(audio: torch.Tensor) -> torch.Tensor:
        window = torch.hann_window(1024, device=audio.device)
        spectrum = torch.stft(
            audio[:, 0], 1024, step, window=window, pad_mode="reflect", return_complex=True
        )
        heard = filters.to(audio.device) @ spectrum.abs()[..., : audio.shape[-1] // step]
        image = heard.clamp(min=1e-5).log().transpose(1, 2)[:, None]  # (B, 1, time, band)
        z = vae.encode(image).latent_dist.mode()  # (B, channels, T, high)
        return z.permute(0, 1, 3, 2).flatten(1, 2)

    def decode(z: torch.Tensor) -> torch.Tensor:
        image = vae.decode(z.unflatten(1, (channels, high)).permute(0, 1, 3, 2)).sample
        return vocoder(image[:, 0])[:, None]

    return LatentModel(
        name, "vae", net, _whole(encode, factor * step), decode, 16_000, factor * step,
        channels * high, said="It was trained on sound with its peak at 0.5.",
    )  # fmt: skip


#: By what a config.json calls itself.
READERS: dict[str, Callable[[str, Path], LatentModel]] = {
    "encodec": _encodec,
    "dac": _dac,
    "AutoencoderOobleck": _oobleck,
    "AutoencoderKL": _audioldm,
}


# -- files of weights ------------------------------------------------------------------------------


_PROGRAM = (
    "{file} is TorchScript: a program, which runs when it is loaded, and not weights. It is not "
    "opened here. Where you trust it (in a machine that may break), keep its weights alone: "
    "safetensors.torch.save_file(torch.jit.load(file).state_dict(), 'weights.safetensors'), and "
    "load that file."
)
_DAMAGED = "{file} is damaged or cut short: fetch it again. ({why})"


class _Program(Exception):
    """A file of weights turned out to be TorchScript."""


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, by key; of a Lightning checkpoint, its ``state_dict``.

    Raises
    ------
    ValueError
        TorchScript; a pickle that holds more than tensors; a damaged file; no tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, TypeError) as error:
            raise ValueError(_DAMAGED.format(file=file, why=error)) from None
    try:
        if zipped := zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any("/code/" in entry for entry in archive.namelist()):
                    raise _Program
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise ValueError(
                f"{file} holds more than tensors and would run code: it is not opened. Keep its "
                "state dict alone, in a safetensors file, and load that."
            ) from None
        raise ValueError(_DAMAGED.format(file=file, why=error)) from None
    except _Program:
        raise ValueError(_PROGRAM.format(file=file)) from None
    except Exception as error:  # a broken archive or pickle fails in any way
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(_DAMAGED.format(file=file, why=why)) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no state dict: a dictionary of tensors by their names.")
    for key, value in tensors.items():
        if not is_whole(value):
            raise ValueError(
                f"{file} holds less of {key} than its shape {tuple(value.shape)} says: weights "
                "are dense tensors."
            )
    return tensors


def _from_weights(name: str, file: Path, config: dict) -> LatentModel:
    state = read_weights(file)
    if any(key.startswith("feature_extractor.encodec.") for key in state):
        return _wavtokenizer(name, file, state)
    ends = "encoder.layers.0.weight_v"
    prefixes = [key.removesuffix(ends) for key in state if key.endswith(ends)]
    if prefixes:
        # Of a whole diffusion model, the autoencoder is "pretransform.model."; nothing else is.
        prefix = min(prefixes, key=len)
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        return _stable_audio_tools(name, file, own, config)
    raise ValueError(
        f"{file} is neither an Oobleck VAE as stable-audio-tools names its weights "
        f"(encoder.layers.0.weight_v …) nor a WavTokenizer (feature_extractor.encodec.…): it "
        f"begins with {', '.join(list(state)[:3])}. A model of transformers or diffusers is loaded "
        "by the folder that holds its config.json."
    )


def _wavtokenizer(name: str, file: Path, state: dict[str, torch.Tensor]) -> LatentModel:
    from musae_utils.latents.wavtokenizer import SAMPLE_RATE, TRAINING_ONLY, WavTokenizer

    state = {key: value for key, value in state.items() if not key.startswith(TRAINING_ONLY)}
    net = _filled(lambda: WavTokenizer.of(state), file, state)
    return LatentModel(name, "single codebook", net, net.encode, net.decode, SAMPLE_RATE, net.hop,
                       net.width, net.quantise)  # fmt: skip


def _stable_audio_tools(
    name: str, file: Path, state: dict[str, torch.Tensor], config: dict
) -> LatentModel:
    """An Oobleck VAE under the names of stable-audio-tools, its shape read off its weights."""
    from diffusers import AutoencoderOobleck

    rate = config.get("sample_rate", RATE)
    if not isinstance(rate, int) or isinstance(rate, bool) or not 1000 <= rate <= 384_000:
        raise ValueError(
            f"The model_config.json beside {file} gives a sample rate of {rate!r:.80}: a whole "
            "number of Hz from 1,000 to 384,000 is expected."
        )
    blocks = 0
    while f"encoder.layers.{blocks + 1}.layers.4.weight_v" in state:
        blocks += 1
    names = dict(oobleck_keys(blocks))
    _agree(file, names.keys() - state.keys(), state.keys() - names.keys())
    shape = {key: tuple(value.shape) for key, value in state.items()}
    first = shape["encoder.layers.0.weight_v"]
    ends = [shape[f"encoder.layers.{i + 1}.layers.4.weight_v"] for i in range(blocks)]

    def build() -> AutoencoderOobleck:
        return AutoencoderOobleck(
            encoder_hidden_size=first[0],
            audio_channels=first[1],
            channel_multiples=[out // first[0] for out, _, _ in ends],
            downsampling_ratios=[kernel // 2 for _, _, kernel in ends],
            decoder_channels=shape[f"decoder.layers.{blocks + 2}.weight_v"][1],
            decoder_input_channels=shape["decoder.layers.0.weight_v"][1],
            sampling_rate=rate,
        )

    for theirs, ours in names.items():
        if ours.endswith((".alpha", ".beta")) and state[theirs].ndim == 1:
            state[theirs] = state[theirs][None, :, None]
    net = _filled(build, file, state, names)
    tanh = _final_tanh(file, config)
    said = "" if config else (
        f"What its weights do not say is taken from Stable Audio Open: {RATE:,} Hz, and no tanh at "
        "the end."
    )  # fmt: skip
    return _of_oobleck(name, net, said, tanh)


def _final_tanh(file: Path, config: dict) -> bool:
    """Whether the decoder of a ``model_config.json`` ends in one."""
    decoder = config.get("model", {})
    # A whole diffusion model calls its autoencoder a pretransform.
    whole = isinstance(decoder, dict) and "pretransform" in decoder
    for key in (*(("pretransform", "config") if whole else ()), "decoder", "config"):
        decoder = decoder.get(key, {}) if isinstance(decoder, dict) else None
    if not isinstance(decoder, dict):
        raise ValueError(f"The model_config.json beside {file} does not describe an autoencoder.")
    return bool(decoder.get("final_tanh", bool(config)))


def oobleck_keys(blocks: int) -> Iterator[tuple[str, str]]:
    """Every weight of stable-audio-tools' Oobleck VAE, and its name in diffusers' class.

    Parameters
    ----------
    blocks : int
        Strided blocks of the encoder, and as many of the decoder.

    Examples
    --------
    >>> dict(oobleck_keys(5))["encoder.layers.1.layers.3.alpha"]
    'encoder.block.0.snake1.alpha'
    """
    conv, bare, snake = (
        ("weight_g", "weight_v", "bias"),
        ("weight_g", "weight_v"),
        ("alpha", "beta"),
    )
    inner = (("0", "snake1", snake), ("1", "conv1", conv), ("2", "snake2", snake),
             ("3", "conv2", conv))  # fmt: skip
    for coder, last, turn, units, step in (
        ("encoder", conv, 3, (0, 1, 2), ("4", "conv1")),
        ("decoder", bare, 0, (2, 3, 4), ("1", "conv_t1")),
    ):
        parts = [("0", "conv1", conv), (blocks + 1, "snake1", snake), (blocks + 2, "conv2", last)]
        for i in range(blocks):
            there, here = f"{i + 1}.layers", f"block.{i}"
            parts += [(f"{there}.{turn}", f"{here}.snake1", snake),
                      (f"{there}.{step[0]}", f"{here}.{step[1]}", conv)]  # fmt: skip
            parts += [(f"{there}.{unit}.layers.{a}", f"{here}.res_unit{j + 1}.{b}", weights)
                      for j, unit in enumerate(units) for a, b, weights in inner]  # fmt: skip
        for theirs, ours, weights in parts:
            for weight in weights:
                yield f"{coder}.layers.{theirs}.{weight}", f"{coder}.{ours}.{weight}"


# -- small things ----------------------------------------------------------------------------------


def _filled(
    build: Callable[[], nn.Module], file: Path, state: dict, names: dict[str, str] | None = None
) -> nn.Module:
    """A network with its weights; `names` from the file's keys to the network's."""
    try:
        with torch.device("meta"):  # before there is memory for what the shapes promise
            wanted = build().state_dict()
    except KeyError as error:
        raise ValueError(f"{file} is not a whole model: {error} is missing.") from None
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} has the shapes of no model: {why}") from None
    names = names or {key: key for key in wanted}
    _agree(file, names.keys() - state.keys(), state.keys() - names.keys())
    wrong = [
        f"{theirs} is {tuple(state[theirs].shape)} and not {tuple(wanted[ours].shape)}"
        for theirs, ours in names.items()
        if state[theirs].shape != wanted[ours].shape
    ]
    if wrong:
        raise ValueError(f"{file} does not fit the model that it describes: {_few(wrong)}.")
    net = build()
    net.load_state_dict({ours: state[theirs].float() for theirs, ours in names.items()})
    return net.eval().requires_grad_(False)


def _agree(file: Path, missing: Any, extra: Any) -> None:
    said = [f"{word} {_few(sorted(keys))}" for word, keys in
            (("misses", missing), ("has besides", extra)) if keys]  # fmt: skip
    if said:
        raise ValueError(
            f"{file} does not hold the weights of this model: it {' and '.join(said)}."
        )


def _few(items: list[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _whole(encode: Callable, hop: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """An encoder that would drop the end of a sound, with silence added up to whole frames."""

    def encoded(audio: torch.Tensor) -> torch.Tensor:
        return encode(F.pad(audio, (0, -audio.shape[-1] % hop)))

    return encoded


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(_DAMAGED.format(file=file, why=error)) from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no configuration: it holds a {type(found).__name__}.")
    return found
