"""Sampling codes from a MusicGen-type language model, with random numbers that rows can share.

A token is drawn by the Gumbel-max rule: add Gumbel noise to the log-probabilities, take the
largest. Each row of a batch has a noise stream of its own, set by (seed, row) alone, so a row does
not depend on its neighbours; and two rows given the same stream differ only as far as their
probabilities do (common random numbers). Explained in chapter 02.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

UNKNOWN = -1  # a code that is still to be generated


class Noise:
    """Gumbel noise for each row of a batch, reproducible on any device and at any batch size.

    Parameters
    ----------
    seed : int, at least 0, or one for each row
        Rows of a list share a stream where they share a seed: that of row 0.
    rows : int
        Rows of the batch.
    same : bool
        All rows share one stream (that of row 0) instead of each having its own.
    """

    def __init__(self, seed: int | Sequence[int], rows: int, same: bool = False) -> None:
        self.rows = rows
        if np.ndim(seed):
            which = [(one, 0) for one in seed]
        else:
            which = [(seed, 0 if same else row) for row in range(rows)]
        own = list(dict.fromkeys(which))
        self._of_row = None if len(own) == rows else [own.index(one) for one in which]
        self._streams = []
        for seed, row in own:
            # Hashed, so that seed 0 row 1 and seed 1 row 0 are unrelated.
            state = np.random.SeedSequence([seed, row]).generate_state(1)
            self._streams.append(torch.Generator().manual_seed(int(state[0])))

    def __call__(self, *shape: int) -> torch.Tensor:
        """Draw the next noise of shape (rows, *shape), float32 on the CPU."""
        drawn = torch.stack([torch.empty(shape).exponential_(generator=g) for g in self._streams])
        drawn = drawn.log_().neg_()
        return drawn if self._of_row is None else drawn[self._of_row]


def sample(
    logits: torch.Tensor, noise: Noise, temperature: float = 1.0, top_k: int | None = 250
) -> torch.Tensor:
    """Draw one token from each distribution.

    Parameters
    ----------
    logits : Tensor of shape (rows, K, cardinality)
    noise : Noise for that many rows
    temperature : float, at least 0
        0 takes the likeliest token.
    top_k : int or None
        Draw among the likeliest `top_k` tokens; None or 0 among all.

    Returns
    -------
    Tensor of shape (rows, K), int64
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits / temperature + noise(*logits.shape[1:]).to(logits.device)
    if top_k and top_k < logits.shape[-1]:
        least = logits.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
        scores = scores.masked_fill(logits < least, float("-inf"))
    return scores.argmax(-1)


@torch.no_grad()
def generate_codes(
    lm,
    conditions: dict,
    n_frames: int,
    noise: Noise,
    prompt_codes: torch.Tensor | None = None,
    guidance: float = 3.0,
    temperature: float = 1.0,
    top_k: int | None = 250,
    progress: bool = False,
) -> torch.Tensor:
    """Generate codes one position of the language model at a time.

    The model is called exactly as audiocraft's ``LMModel.generate`` calls it (greedy codes are
    equal), once per position, and nothing but its ``forward`` is used: hooks and nnsight traces
    see every step. The first call takes the prompt, every later one a single position; there are
    ``n_frames - prompt + K - 1`` calls with K delayed codebooks.

    Parameters
    ----------
    lm : audiocraft ``LMModel`` in eval mode
    conditions : dict of condition tensors
        For `guidance` other than 1 they have 2 × rows rows: first the prompts', then as many
        unconditional ones. For `guidance` 1 they have one per row.
    n_frames : int
        Frames to return, the prompt's included.
    noise : Noise
        Sets the number of rows.
    prompt_codes : Tensor of shape (rows, K, T), optional
        Frames to continue, T < n_frames.
    guidance : float
        Classifier-free guidance: logits = uncond + guidance × (cond − uncond). 1 is off, and
        costs half.
    temperature, top_k : see `sample`
    progress : bool
        Show a progress bar.

    Returns
    -------
    Tensor of shape (rows, K, n_frames), int64
    """
    device = next(lm.parameters()).device
    guided = guidance != 1
    known = 0 if prompt_codes is None else prompt_codes.shape[-1]
    codes = torch.full((noise.rows, lm.num_codebooks, n_frames), UNKNOWN, device=device)
    if known:
        codes[..., :known] = prompt_codes.to(device)
    pattern = lm.pattern_provider.get_pattern(n_frames)
    sequence, _, _ = pattern.build_pattern_sequence(codes, lm.special_token_id)
    first = pattern.get_first_step_with_timesteps(known)
    with lm.streaming():
        done = 0
        for position in tqdm(
            range(first, sequence.shape[-1]), "generating", unit="frame", disable=not progress
        ):
            new = sequence[..., done:position]
            logits = lm(torch.cat([new, new]) if guided else new, [], conditions)[:, :, -1].float()
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + guidance * (conditional - unconditional)
            # What is known, from the prompt or because the pattern leaves it empty, stays.
            column = sequence[..., position]
            tokens = sample(logits, noise, temperature, top_k)
            sequence[..., position] = torch.where(column == UNKNOWN, tokens, column)
            done = position
    codes, _, _ = pattern.revert_pattern_sequence(sequence, special_token=UNKNOWN)
    return codes[..., :n_frames]
