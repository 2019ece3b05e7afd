"""One face for every audio-latent model: sound to frames of numbers, and back (notebook 12).

A latent model is an autoencoder that others build on: a language model predicts its codes, a
diffusion model draws its latents. Here it is a pair of functions between sound and arrays of shape
(T, d), whatever lies inside. ``latents.load(name)`` makes one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import librosa
import numpy as np
import torch
from torch import nn

ROWS = 8  # sounds through a model at once


class LatentModel:
    """An autoencoder of sound.

    Parameters
    ----------
    name : str
    kind : {"rvq", "vae", "single codebook"}
        What its latents are made for: residual vector quantisation, diffusion, one token a frame.
    net : Module
        In eval mode; its weights are the model's fingerprint.
    encode, decode : callable
        (B, channels, n) samples to (B, d, T) latents, before any quantiser (of a VAE, the means);
        and back.
    sample_rate : int
        Hz.
    hop : int
        Samples a frame.
    width : int
        d, numbers a frame.
    quantise : callable, optional
        (B, d, T) latents to those that are left of them after the codebooks.
    channels : int
        Of the sound; stereo models hear mono on both sides, and their sides are averaged.
    said : str
        What should be known about these weights, in a sentence.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        net: nn.Module,
        encode: Callable[[torch.Tensor], torch.Tensor],
        decode: Callable[[torch.Tensor], torch.Tensor],
        sample_rate: int,
        hop: int,
        width: int,
        quantise: Callable[[torch.Tensor], torch.Tensor] | None = None,
        channels: int = 1,
        said: str = "",
    ) -> None:
        self.name, self.kind, self.net = name, kind, net
        self._said, self._converted = said, set()
        self.sample_rate, self.hop, self.width, self.channels = sample_rate, hop, width, channels
        self._encode, self._decode, self._quantise = encode, decode, quantise

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.net.parameters()) / 1e6
        return (
            f"LatentModel {self.name!r} ({self.kind}): {self.sample_rate} Hz audio as "
            f"{self.frame_rate:g} frames/s of {self.width} numbers; {millions:,.1f} M parameters, "
            f"fingerprint {self.fingerprint}{'. ' + self.said if self.said else ''}"
        )

    @property
    def said(self) -> str:
        """What should be known about this model, and about what was done to its sound."""
        rates = ", ".join(f"{rate:,}" for rate in sorted(self._converted))
        converted = (
            f"Sound at {rates} Hz was converted to {self.sample_rate:,} Hz." if rates else ""
        )
        return f"{self._said} {converted}".strip()

    @property
    def frame_rate(self) -> float:
        """Frames of latents a second."""
        return self.sample_rate / self.hop

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over all weights: the same model, the same fingerprint."""
        digest = hashlib.sha256()
        for key, value in sorted(self.net.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().half().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, audio: Any, sample_rate: int | None = None) -> np.ndarray:
        """Turn sound into latents.

        Parameters
        ----------
        audio : array or Tensor of shape (n,) or (B, n), or Clip, or a list of these
            Mono; of a list all are equally long. Converted to the model's own rate.
        sample_rate : int, optional
            Hz of `audio`; the model's own unless given. Clips bring theirs.

        Returns
        -------
        ndarray of float32, shape (T, d), or (B, T, d) for several; T = ⌈n / hop⌉

        Raises
        ------
        ValueError
            Empty, not finite, shorter than one frame, or of a shape that is not sound.
        """
        one, batch = self._waveform(audio, sample_rate)
        parts = []
        for start in range(0, len(batch), ROWS):
            rows = torch.from_numpy(batch[start : start + ROWS])[:, None]
            z = self._encode(rows.expand(-1, self.channels, -1).to(self._device))
            parts.append(z.float().transpose(1, 2).cpu().numpy())
        latents = np.concatenate(parts)
        return latents[0] if one else latents

    @torch.no_grad()
    def decode(self, latents: Any, quantise: bool = False) -> np.ndarray:
        """Turn latents into sound.

        Parameters
        ----------
        latents : array or Tensor of shape (T, d) or (B, T, d)
        quantise : bool
            Send them through the model's codebooks first, as its codes would be; a VAE has none.

        Returns
        -------
        ndarray of float32, shape (n,) or (B, n), n = T · hop

        Raises
        ------
        ValueError
            Another width than the model's, or values that are not finite.
        """
        z = self._checked(latents)
        one, z = z.ndim == 2, z.reshape(-1, *z.shape[-2:])
        parts = []
        for rows in z.transpose(1, 2).split(ROWS):
            rows = rows.to(self._device)
            if quantise and self._quantise is not None:
                rows = self._quantise(rows)
            parts.append(self._decode(rows).float().mean(1).cpu().numpy())
        n = z.shape[1] * self.hop
        sound = np.concatenate(parts)[:, :n]
        sound = np.pad(sound, ((0, 0), (0, n - sound.shape[1])))  # odd strides drop a sample or two
        return sound[0] if one else sound

    @torch.no_grad()
    def quantise(self, latents: Any) -> np.ndarray:
        """What is left of latents after the codebooks (of a VAE, all): same shape, float32."""
        z = self._checked(latents)
        if self._quantise is None:
            return z.numpy()
        rows = z.reshape(-1, *z.shape[-2:]).transpose(1, 2)
        return self._quantise(rows.to(self._device)).transpose(1, 2).reshape(z.shape).cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    def _checked(self, latents: Any) -> torch.Tensor:
        z = torch.as_tensor(np.asarray(latents, np.float32))
        if z.ndim not in (2, 3) or z.shape[-1] != self.width or not z.shape[-2]:
            raise ValueError(
                f"Latents of {self.name} have shape (T, {self.width}) or (B, T, {self.width}), not "
                f"{tuple(z.shape)}."
            )
        if not torch.isfinite(z).all():
            raise ValueError("These latents hold NaN or infinity.")
        return z

    def _waveform(self, audio: Any, sample_rate: int | None) -> tuple[bool, np.ndarray]:
        """Whether there is one sound, and float32 of shape (B, n) at the model's rate."""
        if isinstance(audio, (list, tuple)):
            if not len(audio):
                raise ValueError("There is no sound to encode: the list is empty.")
            rows = [self._waveform(item, sample_rate)[1] for item in audio]
            lengths = sorted({row.shape[-1] for row in rows})
            if len(lengths) > 1:
                raise ValueError(
                    f"The sounds last {lengths[0] / self.sample_rate:g} to "
                    f"{lengths[-1] / self.sample_rate:g} s: cut them to one length, or encode them "
                    "one by one."
                )
            return False, np.concatenate(rows)
        if hasattr(audio, "audio"):
            audio, sample_rate = audio.audio, audio.sample_rate
        x = np.asarray(audio, np.float32)
        if x.ndim not in (1, 2) or not x.size:
            raise ValueError(f"Sound has shape (n,) or (B, n), not {x.shape}.")
        if not np.isfinite(x).all():
            raise ValueError(
                f"The sound holds NaN or infinity in {(~np.isfinite(x)).sum()} samples."
            )
        rate = sample_rate or self.sample_rate
        if rate != self.sample_rate:
            x = librosa.resample(x, orig_sr=rate, target_sr=self.sample_rate)
            self._converted.add(rate)
        if x.shape[-1] < self.hop:
            raise ValueError(
                f"The sound lasts {1000 * x.shape[-1] / self.sample_rate:.0f} ms, and one frame of "
                f"{self.name} lasts {1000 / self.frame_rate:.0f} ms."
            )
        return x.ndim == 1, np.atleast_2d(x)
