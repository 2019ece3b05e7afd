"""The nano latent-diffusion model: music born from noise in 32 steps (notebook 14).

A state is x = (1 - σ) z + σ ε: latents z of the nano VAE, noise ε, and how much of it, σ. The
network says in which direction ε - z lies (flow matching, Lipman et al., arXiv 2210.02747), a step
of Euler's method goes a little way back along it, and at every step x - σ v is the **denoised
prediction**: what would come out if nothing else were learnt about the noise.

The transformer is the one of Stable Audio as diffusers has it; prompts are read with the nano
language model's own vocabulary. Trained by ``make nano``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from musae_utils.latents.model import LatentModel
from musae_utils.latents.nano import load_nano_latents
from musae_utils.models import NANO_FOLDER
from musae_utils.models.nano import WordConditioner, load_part
from musae_utils.music.captions import VOCABULARY

FLOW = {
    "width": 192,
    "layers": 6,
    "heads": 6,
    "latent": 64,
    "max_words": 32,
    "guidance_dropout": 0.15,
}
STEPS = 32  # as many as DiffRhythm takes
GUIDANCE = 3.0
ROWS = 16  # pieces through the network at once

Prompts = Sequence[str | None]
Steer = Callable[[int, np.ndarray], np.ndarray]


class FlowNet(nn.Module):
    """The velocity field, in latents that are scaled to mean 0 and deviation 1.

    Parameters
    ----------
    config : dict
        Like `FLOW`.
    """

    def __init__(self, config: dict):
        from diffusers import StableAudioDiTModel  # takes seconds, and only this needs it

        super().__init__()
        c = FLOW | config
        self.words = WordConditioner(c.get("vocabulary", VOCABULARY), c["width"], c["max_words"])
        self.transformer = StableAudioDiTModel(
            in_channels=c["latent"],
            out_channels=c["latent"],
            num_layers=c["layers"],
            num_attention_heads=c["heads"],
            num_key_value_attention_heads=c["heads"] // 2,
            attention_head_dim=c["width"] // c["heads"],
            cross_attention_dim=c["width"],
            cross_attention_input_dim=c["width"],
            global_states_input_dim=c["width"],
            time_proj_dim=64,
        )
        self.turn = c["width"] // c["heads"] // 2  # numbers of a head that positions turn
        self.register_buffer("mean", torch.zeros(c["latent"]))
        self.register_buffer("deviation", torch.ones(c["latent"]))

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, T, d) as the network sees them, (B, d, T)."""
        return ((latents - self.mean) / self.deviation).transpose(1, 2)

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        """(B, d, T) back to latents (B, T, d)."""
        return x.transpose(1, 2) * self.deviation + self.mean

    def read(self, prompts: Prompts) -> torch.Tensor:
        """Prompts as (B, words, width); None as zeros, the null condition of guidance."""
        return self.words(self.words.tokenize(list(prompts)))[0]

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Velocity of states (B, d, T) at noise levels (B,), (B, d, T)."""
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        turns = get_1d_rotary_pos_embed(
            self.turn, x.shape[-1] + 1, use_real=True, repeat_interleave_real=False
        )
        return self.transformer(
            x, sigma, words, words.mean(1, keepdim=True), turns, return_dict=False
        )[0]


class Birth(NamedTuple):
    """Everything that happened while music was made.

    Attributes
    ----------
    states : ndarray of float32, shape (S + 1, B, T, d)
        In the VAE's own units; the first is noise, the last the result.
    predictions : ndarray of float32, shape (S, B, T, d)
        The denoised prediction at each step, steered where it was.
    sigmas : ndarray of shape (S + 1,)
        How much noise each state holds, from 1 to 0.
    prompts : list of (str or None)
    seeds : list of int
    first : int
        The step that ``states[0]`` stands before: 0 unless the birth was taken up later.
    """

    states: np.ndarray
    predictions: np.ndarray
    sigmas: np.ndarray
    prompts: list[str | None]
    seeds: list[int]
    first: int = 0


class Flow:
    """A velocity field and the VAE whose latents it makes.

    Parameters
    ----------
    net : FlowNet
    vae : LatentModel
    """

    def __init__(self, net: FlowNet, vae: LatentModel) -> None:
        self.net, self.vae = net.eval().requires_grad_(False), vae

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.net.parameters()) / 1e6
        return f"Flow of {millions:.1f} M parameters over the latents of {self.vae.name}"

    def noise(self, seeds: Sequence[int], seconds: float) -> np.ndarray:
        """What each seed begins from: (B, T, d) in the VAE's own units."""
        frames = max(1, round(seconds * self.vae.frame_rate))
        rows = [torch.randn(self.vae.width, frames, generator=torch.Generator().manual_seed(s))
                for s in seeds]  # fmt: skip
        return self.net.unscaled(torch.stack(rows)).numpy()

    @torch.no_grad()
    def draw(
        self,
        prompts: Prompts | str | None,
        seconds: float = 5.0,
        seeds: Sequence[int] | int = 0,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        prompts_from: Mapping[int, Prompts] | None = None,
        steer: Steer | None = None,
        begin: tuple[int, np.ndarray] | None = None,
        progress: Callable = iter,
    ) -> Birth:
        """Make music and keep every step of it.

        Parameters
        ----------
        prompts : list of (str or None), or one
        seconds : float
            Trained on up to 10.
        seeds : sequence of int, or the first of a row of them
            One a prompt: the same seed, the same noise, whatever else is in the batch.
        steps : int
        guidance : float
            1 follows the prompt as far as training did; more exaggerates it.
        prompts_from : dict of int to list of prompts, optional
            From these steps on other prompts are heard.
        steer : callable, optional
            ``steer(step, prediction)`` returns another denoised prediction, (B, T, d) both.
        begin : (int, ndarray of shape (B, T, d)), optional
            Go on from this state, before this step, instead of from noise.
        progress : callable
            Wraps the loop over batches, e.g. ``tqdm``.

        Returns
        -------
        Birth

        Raises
        ------
        ValueError
            Numbers of prompts and seeds that differ, no steps, too short a piece.
        """
        prompts = [prompts] if isinstance(prompts, str) or prompts is None else list(prompts)
        n = len(prompts)
        seeds = [seeds + i for i in range(n)] if isinstance(seeds, int) else list(seeds)
        if not n or len(seeds) != n:
            raise ValueError(f"{n} prompts need as many seeds; there are {len(seeds)}.")
        if steps < 1:
            raise ValueError(f"Music is made in one step or more, not in {steps}.")
        if seconds * self.vae.frame_rate < 1 or seconds > 60:
            raise ValueError(f"seconds lies between one latent frame and 60, and not at {seconds}.")
        first, start = begin if begin is not None else (0, self.noise(seeds, seconds))
        if not 0 <= first < steps or np.shape(start)[0] != n:
            raise ValueError(
                f"begin is a step from 0 to {steps - 1} and a state of {n} rows, not step {first} "
                f"and {np.shape(start)[0]} rows."
            )
        states, predictions = [], []
        for at in progress(range(0, n, ROWS)):
            rows = slice(at, at + ROWS)
            later = {t: list(p)[rows] for t, p in (prompts_from or {}).items()}
            parts = self._rows(prompts[rows], start[rows], first, steps, guidance, later, steer)
            states.append(parts[0])
            predictions.append(parts[1])
        return Birth(np.concatenate(states, 1), np.concatenate(predictions, 1),
                     self.sigmas(steps)[first:], prompts, seeds, first)  # fmt: skip

    def sigmas(self, steps: int = STEPS) -> np.ndarray:
        """Noise levels before each step and after the last, (steps + 1,)."""
        return self._scheduler(steps).sigmas.numpy()

    @staticmethod
    def _scheduler(steps: int):
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps)
        return scheduler

    def _rows(self, prompts, start, first, steps, guidance, later, steer):
        net, scheduler = self.net, self._scheduler(steps)
        scheduler.set_begin_index(first)
        x = net.scaled(torch.as_tensor(np.asarray(start, np.float32)))
        for t in sorted(t for t in later if t < first):
            prompts = later[t]
        nothing, heard = net.read([None] * len(x)), net.read(prompts)
        states, predictions = [net.unscaled(x)], []
        for step in range(first, steps):
            if step in later:
                heard = net.read(later[step])
            sigma = scheduler.sigmas[step]
            level = sigma.expand(len(x))
            if guidance == 1:
                v = net(x, level, heard)
            else:
                both = net(x.repeat(2, 1, 1), level.repeat(2), torch.cat([heard, nothing]))
                told, untold = both.chunk(2)
                v = untold + guidance * (told - untold)
            prediction = net.unscaled(x - sigma * v)
            if steer is not None:
                steered = steer(step, prediction.numpy())
                prediction = torch.as_tensor(np.asarray(steered, np.float32))
                v = (x - net.scaled(prediction)) / sigma
            x = scheduler.step(v, scheduler.timesteps[step], x, return_dict=False)[0]
            states.append(net.unscaled(x))
            predictions.append(prediction)
        return torch.stack(states).numpy(), torch.stack(predictions).numpy()


def load_flow(folder: Path = NANO_FOLDER) -> Flow:
    """The nano latent-diffusion model, from the files that ``make nano`` made.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is damaged or belongs to another model.
    """
    net = load_part(folder, "flow", {"flow": FlowNet})
    return Flow(net, load_nano_latents("nano-vae", folder))
