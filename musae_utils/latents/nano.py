"""The nano latent models: a VAE, a tokenizer and a latent-diffusion model (notebooks 12 and 14).

They share the codec's way of hearing and of making sound (`models.nano`: log magnitudes in, log
magnitudes out, phase put back by following spectral peaks) and differ in what lies between:

- the **codec**: 50 frames a second of 32 numbers, rounded by eight codebooks of 512;
- the **VAE**, of Oobleck's kind (Evans et al., arXiv 2404.10301): 25 frames a second of 64 numbers,
  each a Gaussian, drawn towards the standard one;
- the **tokenizer**, of WavTokenizer's kind (Ji et al., arXiv 2408.16532): 50 frames a second, one
  codebook of 4,096 and nothing else.

The **flow** makes music in the VAE's space from noise, by a velocity field (flow matching, Lipman
et al., arXiv 2210.02747) that diffusers' Stable Audio transformer learnt. All of it is trained by
``make nano``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from musae_utils.latents.model import LatentModel
from musae_utils.models import NANO_FOLDER
from musae_utils.models.nano import CODEC, NanoDecoder, NanoEncoder, build_codec, load_part

VAE = CODEC | {
    "stride": 2,  # of the codec's frames: 25 latent frames a second
    "dim": 64,
    "encoder_width": 224,
    "decoder_width": 320,
}

TOKENIZER = CODEC | {
    "codebooks": 1,  # 600 bits a second
    "cardinality": 4096,
    "encoder_width": 192,
    "decoder_width": 256,
}


class VAEEncoder(NanoEncoder):
    """(B, 1, samples) to means and raw scales (B, 2 dim, T), `stride` codec frames each."""

    def __init__(self, c: dict):
        super().__init__(c)
        self.stride = c["stride"]
        self.end = nn.Linear(self.stride * c["encoder_width"], 2 * c["dim"])

    def from_spectrum(self, x: torch.Tensor) -> torch.Tensor:  # (B, T * stride, bins)
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stride), value=float(x.min()))
        y = self.blocks(self.start(x))
        return self.end(y.reshape(len(y), y.shape[1] // self.stride, -1)).transpose(1, 2)


class VAEDecoder(NanoDecoder):
    """Latents (B, dim, T) to (B, 1, samples)."""

    def __init__(self, c: dict):
        super().__init__(c)
        self.stride = c["stride"]
        self.start = nn.Linear(c["dim"], self.stride * c["decoder_width"])

    def to_spectrum(self, latents: torch.Tensor) -> torch.Tensor:  # (B, T * stride, bins)
        y = self.start(latents.transpose(1, 2))
        return self.end(self.blocks(y.reshape(len(y), y.shape[1] * self.stride, -1)))


class NanoVAE(nn.Module):
    """A variational autoencoder of sound.

    Parameters
    ----------
    config : dict
        Like `VAE`.
    """

    def __init__(self, config: dict):
        super().__init__()
        c = VAE | config
        self.dim, self.hop = c["dim"], c["stride"] * c["hop"]
        self.encoder, self.decoder = VAEEncoder(c), VAEDecoder(c)

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """(B, 1, samples) to the means of the latents, (B, dim, T)."""
        return self.encoder(audio)[:, : self.dim]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, dim, T) to (B, 1, T * stride * hop)."""
        return self.decoder(latents)


BUILDERS = {"codec": build_codec, "tokenizer": build_codec, "vae": NanoVAE}
#: The nano latent models, and what each is.
NANO = {
    "nano-codec": "rvq",
    "nano-vae": "vae",
    "nano-tokenizer": "single codebook",
}


def load_nano_latents(name: str, folder: Path = NANO_FOLDER) -> LatentModel:
    """One of `NANO`, from the files that ``make nano`` made.

    Raises
    ------
    ValueError
        A name that is none of them, or a damaged file.
    FileNotFoundError
        A file is missing.
    """
    if name not in NANO:
        raise ValueError(f"There is no nano latent model {name!r}; there are {', '.join(NANO)}.")
    part = name.removeprefix("nano-")
    net = load_part(folder, part, BUILDERS)
    if part == "vae":
        encoder, decode, quantise = net.encode, net.decode, None
        width, hop = net.dim, net.hop
    else:
        encoder, decode = net.encoder, net.decoder
        width, hop = net.quantizer.dimension, round(net.sample_rate / net.frame_rate)

        def quantise(z: torch.Tensor) -> torch.Tensor:
            return net.quantizer.decode(net.quantizer.encode(z))

    return LatentModel(name, NANO[name], net, encoder, decode, CODEC["sample_rate"], hop, width,
                       quantise)  # fmt: skip
