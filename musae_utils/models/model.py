"""One face for every model: sound to codes and back, prompts, generation (notebook 02).

Shapes: audio (B, n) samples; codes (B, K, T), K codebooks and T frames; conditions a dict of
(tensor, mask) as audiocraft's language model takes them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from audiocraft.modules.conditioners import ConditioningAttributes, WavCondition

from musae_utils.models.sampling import Noise, generate_codes
from musae_utils.music.clip import Clip

Audio = np.ndarray | torch.Tensor | Clip | Sequence[Clip] | Sequence[np.ndarray]
Prompts = str | None | Sequence[str | None]

_LONGEST_PROMPT = 2000  # characters; T5's attention grows with their square
_ROWS_AT_ONCE = 8  # of a batch through the codec, whose activations are large


@dataclass
class Generation:
    """What a model played.

    Attributes
    ----------
    audio : Tensor of shape (B, n), float32, on the CPU
    codes : Tensor of shape (B, K, T), int64, on the CPU
        The codes that `audio` was decoded from, a continued prompt included.
    sample_rate : int
        Hz.
    prompts : list of (str or None)
    provenance : dict
        Model, fingerprint, seed and settings: what it takes to generate the same again.
    """

    audio: torch.Tensor
    codes: torch.Tensor
    sample_rate: int
    prompts: list[str | None]
    provenance: dict

    @property
    def seconds(self) -> float:
        return self.audio.shape[-1] / self.sample_rate

    def clips(self) -> list[Clip]:
        """The rows as `Clip` objects, to play, plot or measure; their truth is unknown."""
        return [
            Clip(audio.numpy(), self.sample_rate, None, prompt or "", {**self.provenance, "row": i},
                 name=prompt or f"unprompted {i}")
            for i, (audio, prompt) in enumerate(zip(self.audio, self.prompts, strict=True))
        ]  # fmt: skip

    def __repr__(self) -> str:
        shown = "; ".join(repr(p) if p else "no prompt" for p in self.prompts[:3])
        more = f"; … {len(self.prompts) - 3} more" if len(self.prompts) > 3 else ""
        return f"Generation({len(self.prompts)} × {self.seconds:.1f} s: {shown}{more})"


class MusicModel:
    """A codec and a language model over its codes, with a few words to say about themselves.

    Made by `musae_utils.models.load`. The parts are audiocraft's own: `lm` (``LMModel``), `codec`
    (``CompressionModel``) and `musicgen` (``MusicGen``, which holds both), all in eval mode.

    Attributes
    ----------
    name : str
    sample_rate : int
        Hz of the codec's audio.
    frame_rate : float
        Frames of codes a second.
    n_codebooks, cardinality : int
        Codebooks in a frame, codes in each.
    n_layers, dim : int
        Of the transformer.
    max_seconds : float
        The longest music the language model was trained on.
    device : torch.device
    dtype : torch.dtype
        Of the language model's weights; the codec is always float32.
    """

    def __init__(self, name: str, musicgen, dtype: torch.dtype) -> None:
        self.name = name
        self.musicgen = musicgen
        self.lm = musicgen.lm
        self.codec = musicgen.compression_model
        self.sample_rate = int(musicgen.sample_rate)
        self.frame_rate = float(musicgen.frame_rate)
        self.max_seconds = float(musicgen.max_duration)
        self.device = musicgen.device
        self.dtype = dtype
        self.n_codebooks = self.lm.num_codebooks
        self.cardinality = self.lm.card
        self.n_layers = len(self.lm.transformer.layers)
        self.dim = self.lm.dim

    def __repr__(self) -> str:
        millions = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (self.lm, self.codec)]
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"MusicModel {self.name!r} on {self.device} in {dtype}\n"
            f"  language model  {millions[0]:,.1f} M parameters: {self.n_layers} layers of width "
            f"{self.dim}\n"
            f"  codec           {millions[1]:,.1f} M parameters: {self.sample_rate} Hz audio as "
            f"{self.frame_rate:g} frames/s of {self.n_codebooks} codes out of {self.cardinality}\n"
            f"  plays up to     {self.max_seconds:g} s\n"
            f"  fingerprint     {self.fingerprint}"
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over all weights: the same model, the same fingerprint.

        Weights are hashed as float16, so that float32 on a CPU and float16 on a GPU agree.
        """
        digest = hashlib.sha256()
        for part in (self.lm, self.codec):
            for key, value in sorted(part.state_dict().items()):
                value = value.detach().cpu()
                value = value.half() if value.is_floating_point() else value
                digest.update(f"{key} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    # -- sound and codes

    @torch.no_grad()
    def encode(self, audio: Audio, sample_rate: int | None = None) -> torch.Tensor:
        """Turn sound into codes.

        Parameters
        ----------
        audio : array or Tensor of shape (n,), (B, n) or (B, channels, n), or Clip, or a list
            A list holds clips or arrays of one length in seconds. Any rate, any number of
            channels: resampled, and mixed to the codec's channels.
        sample_rate : int, optional
            Hz of `audio`; the model's own unless given. Clips bring theirs.

        Returns
        -------
        Tensor of shape (B, K, T), int64, on the CPU

        Raises
        ------
        ValueError
            Empty, not finite, shorter than one frame, or of a shape that is not sound.
        """
        batch = self._waveform(audio, sample_rate)
        parts = [
            self.codec.encode(rows.to(self.device))[0].cpu() for rows in batch.split(_ROWS_AT_ONCE)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def latents(self, audio: Audio, sample_rate: int | None = None) -> torch.Tensor:
        """What the codec's encoder makes of sound, before the quantiser rounds it to codes.

        Parameters
        ----------
        audio, sample_rate : see `encode`

        Returns
        -------
        Tensor of shape (B, d, T), float32, on the CPU
            Of a stereo codec, the mean of both channels' latents.
        """
        codec, batch = self.codec, self._waveform(audio, sample_rate)
        while hasattr(codec, "model"):  # audiocraft wraps transformers' codec, and stereo ones
            codec = codec.model
        mono = batch.flatten(0, 1)[:, None]  # (B × channels, 1, n)
        parts = [codec.encoder(rows.to(self.device)).cpu() for rows in mono.split(_ROWS_AT_ONCE)]
        return torch.cat(parts).unflatten(0, batch.shape[:2]).mean(1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Turn codes into sound.

        Parameters
        ----------
        codes : Tensor of shape (B, K, T) or (K, T), integers in [0, cardinality)

        Returns
        -------
        Tensor of shape (B, n), float32, on the CPU, n = T × sample_rate / frame_rate
            Mono: a stereo codec's channels are averaged.
        """
        codes = self._checked_codes(codes)
        n_samples = round(codes.shape[-1] * self.sample_rate / self.frame_rate)
        parts = [
            self.codec.decode(rows.to(self.device), None)[..., :n_samples].mean(1).float().cpu()
            for rows in codes.split(_ROWS_AT_ONCE)
        ]
        return torch.cat(parts)

    def _waveform(self, audio: Audio, sample_rate: int | None) -> torch.Tensor:
        """Any kind of sound as float32 of shape (B, channels, n) at the codec's rate."""
        if isinstance(audio, (list, tuple)):
            if not len(audio):
                raise ValueError("There is no sound to encode: the list is empty.")
            rows = [self._waveform(item, sample_rate) for item in audio]
            lengths = {row.shape[-1] for row in rows}
            if len(lengths) > 1:
                shortest, longest = (f(lengths) / self.sample_rate for f in (min, max))
                raise ValueError(
                    f"The clips last from {shortest:.2f} to {longest:.2f} s: cut them to one "
                    "length, or encode them one by one."
                )
            return torch.cat(rows)
        if isinstance(audio, Clip):
            audio, sample_rate = audio.audio, audio.sample_rate
        sound = audio.cpu() if torch.is_tensor(audio) else torch.from_numpy(np.array(audio))
        if sound.is_complex() or sound.dtype == torch.bool or not 1 <= sound.dim() <= 3:
            raise ValueError(
                f"Sound has shape (n,), (B, n) or (B, channels, n), not {tuple(sound.shape)} of "
                f"{sound.dtype}."
            )
        if not sound.is_floating_point():
            sound = sound.float() / torch.iinfo(sound.dtype).max
        sound = sound.detach().float()
        sound = sound[None, None] if sound.dim() == 1 else sound
        sound = sound[:, None] if sound.dim() == 2 else sound  # (B, channels, n)

        rate = self.sample_rate if sample_rate is None else int(sample_rate)
        if rate <= 0:
            raise ValueError(f"sample_rate is in Hz and above 0, not {sample_rate}.")
        seconds = sound.shape[-1] / rate
        if sound.numel() == 0:
            raise ValueError(f"There is no sound to encode: its shape is {tuple(sound.shape)}.")
        if seconds < 1 / self.frame_rate:
            hint = ""
            if sound.shape[-2] > sound.shape[-1] or sound.shape[0] > 1000:
                hint = " If the last axis holds channels, transpose it: samples come last."
            raise ValueError(
                f"The sound lasts {seconds:.4f} s; one frame of {self.name} is "
                f"{1 / self.frame_rate:g} s long.{hint}"
            )
        if not sound.isfinite().all():
            bad = (~sound.isfinite()).float().mean().item()
            raise ValueError(
                f"{bad:.2%} of the samples are not numbers (NaN or infinite): repair the sound "
                "before encoding it."
            )
        if sound.shape[1] != self.codec.channels:
            sound = sound.mean(1, keepdim=True).repeat(1, self.codec.channels, 1)
        if rate != self.sample_rate:
            import librosa

            resampled = librosa.resample(sound.numpy(), orig_sr=rate, target_sr=self.sample_rate)
            sound = torch.from_numpy(resampled)
        return sound

    def _checked_codes(self, codes: torch.Tensor) -> torch.Tensor:
        codes = torch.as_tensor(codes)
        codes = codes[None] if codes.dim() == 2 else codes
        if codes.dim() != 3 or codes.shape[1] != self.n_codebooks or codes.shape[-1] == 0:
            raise ValueError(
                f"Codes of {self.name} have shape (B, {self.n_codebooks}, T), not "
                f"{tuple(codes.shape)}."
            )
        if codes.is_floating_point() or codes.min() < 0 or codes.max() >= self.cardinality:
            raise ValueError(
                f"Codes of {self.name} are integers from 0 to {self.cardinality - 1}; these are "
                f"{codes.dtype} from {codes.min().item()} to {codes.max().item()}."
            )
        return codes.long()

    # -- prompts

    @torch.no_grad()
    def conditions(self, prompts: Prompts, guided: bool = False) -> dict:
        """Turn prompts into what the language model attends to.

        Prompts of one call are padded to one length, and audiocraft lets the model see the
        padding: with T5 a prompt's tensors depend a little on the longest prompt beside it.

        Parameters
        ----------
        prompts : list of (str or None)
            None and "" are the unconditional prompt.
        guided : bool
            Append as many unconditional rows, as classifier-free guidance wants them.

        Returns
        -------
        dict of (Tensor of shape (B, L, dim), mask of shape (B, L))
            For ``lm(sequence, [], conditions)``; B is doubled when `guided`.

        Warns
        -----
        UserWarning
            A word that the text conditioner does not know, and which therefore says nothing; a
            prompt of more than 2,000 characters, of which the rest is not read.
        """
        prompts = _prompt_list(prompts)
        longest = max(len(prompt or "") for prompt in prompts)
        if longest > _LONGEST_PROMPT:
            warnings.warn(
                f"A prompt has {longest:,} characters: only the first {_LONGEST_PROMPT:,} are "
                "read.",
                stacklevel=2,
            )
            prompts = [prompt and prompt[:_LONGEST_PROMPT] for prompt in prompts]
        self._mention_unknown_words(prompts)
        provider = self.lm.condition_provider
        rows = [*prompts, *[None] * len(prompts)] if guided else prompts
        attributes = [
            ConditioningAttributes(
                text=dict.fromkeys(provider.text_conditions, prompt or None),
                wav={name: self._no_melody() for name in provider.wav_conditions},
            )
            for prompt in rows
        ]
        with self.musicgen.autocast:
            return provider(provider.tokenize(attributes))

    def _no_melody(self) -> WavCondition:
        silence = torch.zeros(1, 1, 1, device=self.device)
        return WavCondition(
            silence, torch.tensor([0], device=self.device), [self.sample_rate], [None], [None]
        )

    def _mention_unknown_words(self, prompts: list[str | None]) -> None:
        unknown: dict[str, None] = {}
        for conditioner in self.lm.condition_provider.conditioners.values():
            if hasattr(conditioner, "unknown_words"):
                for prompt in filter(None, prompts):
                    unknown.update(dict.fromkeys(conditioner.unknown_words(prompt)))
        if unknown:
            words = [repr(word if len(word) < 30 else word[:29] + "…") for word in unknown]
            more = f" and {len(words) - 8} more" if len(words) > 8 else ""
            warnings.warn(
                f"{self.name} does not know {', '.join(words[:8])}{more}: it cannot hear them.",
                stacklevel=3,
            )

    # -- generation

    def generate(
        self,
        prompts: Prompts,
        seconds: float = 10.0,
        seed: int | Sequence[int] = 0,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int | None = 250,
        same_noise: bool = False,
        prompt_codes: torch.Tensor | None = None,
        progress: bool = False,
        both_halves: bool = False,
    ) -> Generation:
        """Play music.

        Row i depends on its prompt and on (seed, i), not on the batch around it, as far as
        floating point and `conditions` allow; a longer request begins with the shorter one's
        music.

        Parameters
        ----------
        prompts : str, or list of (str or None)
            One row each; None plays without a prompt.
        seconds : float
            Length of the result, `prompt_codes` included; at most `max_seconds`.
        seed : int, or one for each row
            Rows of a list use the same random numbers where they have the same seed, those of a
            single row with that seed.
        guidance : float
            How strongly to follow the prompt: logits = uncond + guidance × (cond − uncond).
            1 is off.
        temperature : float
            0 always takes the likeliest code.
        top_k : int or None
            Draw among so many likeliest codes.
        same_noise : bool
            All rows use the same random numbers: equal prompts then give equal music, and rows
            differ only because of what was changed between them.
        prompt_codes : Tensor of shape (B, K, T) or (1, K, T), optional
            Codes to go on from; see also `continue_from`.
        progress : bool
            Show a progress bar.
        both_halves : bool
            Run both halves of guidance even where no row has a prompt and they begin equal: an
            edit of one of them (`musae_utils.trace`) needs it.

        Returns
        -------
        Generation

        Raises
        ------
        ValueError
            With what was given and what is possible.

        Examples
        --------
        >>> from musae_utils import models
        >>> model = models.load("nano")  # doctest: +SKIP
        >>> model.generate("slow organ music in D minor", seconds=5).audio.shape  # doctest: +SKIP
        torch.Size([1, 80000])
        """
        prompts = _prompt_list(prompts)
        n_frames = self._checked_frames(seconds)
        if any(one != int(one) or one < 0 for one in np.atleast_1d(seed)):
            raise ValueError(f"seed is a whole number from 0 up, not {seed}.")
        if not (np.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature is a number from 0 up, not {temperature}.")
        if not np.isfinite(guidance):
            raise ValueError(f"guidance is a finite number (1 is off), not {guidance}.")
        if top_k is not None and top_k < 0:
            raise ValueError(f"top_k is a number of codes, or None for all, not {top_k}.")
        if prompt_codes is not None:
            prompt_codes = self._checked_codes(prompt_codes)
            if prompt_codes.shape[-1] >= n_frames:
                raise ValueError(
                    f"The sound to go on from lasts {prompt_codes.shape[-1] / self.frame_rate:g} s "
                    f"and seconds={seconds:g} includes it: ask for more."
                )
            if len(prompts) == 1:
                prompts = prompts * len(prompt_codes)
            if len(prompt_codes) not in (1, len(prompts)):
                raise ValueError(
                    f"There are {len(prompts)} prompts for {len(prompt_codes)} rows of codes."
                )
            prompt_codes = prompt_codes.expand(len(prompts), -1, -1)

        seed = [int(one) for one in seed] if np.ndim(seed) else int(seed)
        if np.ndim(seed) and len(seed) != len(prompts):
            raise ValueError(f"There are {len(seed)} seeds for {len(prompts)} rows: one each.")

        # Without any prompt both halves of guidance are the same: half the work does.
        applied = float(guidance) if both_halves or any(prompts) else 1.0
        conditions = self.conditions(prompts, guided=applied != 1)
        with self.musicgen.autocast:
            codes = generate_codes(
                self.lm, conditions, n_frames, Noise(seed, len(prompts), same_noise),
                prompt_codes, applied, temperature, top_k, progress,
            )  # fmt: skip
        provenance = dict(
            model=self.name, fingerprint=self.fingerprint, seed=seed, guidance=guidance,
            temperature=temperature, top_k=top_k, same_noise=same_noise,
            prompt_frames=0 if prompt_codes is None else prompt_codes.shape[-1],
        )  # fmt: skip
        return Generation(self.decode(codes), codes.cpu(), self.sample_rate, prompts, provenance)

    def continue_from(
        self,
        audio: Audio,
        seconds: float,
        prompts: Prompts = None,
        sample_rate: int | None = None,
        **settings,
    ) -> Generation:
        """Go on from a piece of sound.

        Parameters
        ----------
        audio, sample_rate : see `encode`
        seconds : float
            Length of the result, the given sound included (as decoded by the codec).
        prompts : str, or list of (str or None), optional
            One for all rows, or one each.
        **settings
            Of `generate`: seed, guidance, temperature, top_k, same_noise, progress.
        """
        return self.generate(
            prompts, seconds, prompt_codes=self.encode(audio, sample_rate), **settings
        )

    def _checked_frames(self, seconds: float) -> int:
        longest = f"{self.name} plays up to {self.max_seconds:g} s"
        if not (np.isfinite(seconds) and round(seconds * self.frame_rate) >= 1):
            raise ValueError(f"seconds is a length of time above 0, not {seconds}; {longest}.")
        if seconds > self.max_seconds:
            raise ValueError(
                f"seconds={seconds:g} is too long: {longest} at a time. To go further, continue "
                "from the end of what it played (continue_from)."
            )
        return round(seconds * self.frame_rate)


def _prompt_list(prompts: Prompts) -> list[str | None]:
    if prompts is None or isinstance(prompts, str):
        prompts = [prompts]
    prompts = list(prompts)
    for prompt in prompts:
        if not (prompt is None or isinstance(prompt, str)):
            raise ValueError(f"A prompt is text or None, not {prompt!r}.")
    if not prompts:
        raise ValueError("There is no prompt: give one a row, None to play without.")
    return [prompt if prompt and prompt.strip() else None for prompt in prompts]
