"""The loop in which every nano part learns (``make nano``): kill it and start it again.

A part brings a function from a step's number to its losses. Whatever is random in a step is drawn
from that number, so a run that was killed and taken up again ends with the very same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from musae_utils.runs import RunError, atomic_path

COARSE = 3  # Newton-Schulz rounds of Muon; five take twice the time and learn no more a minute


def optimisers(
    matrices: Iterable[nn.Parameter], model: nn.Module, muon_rate: float, adam_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for a network's inner matrices, AdamW for all else in it."""
    inside = list(matrices)
    known = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(inside, lr=muon_rate, momentum=0.95, weight_decay=0.01,
                         adjust_lr_fn="original", ns_steps=COARSE),
        torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]  # fmt: skip


def fit(
    name: str,
    model: nn.Module,
    movers: list[torch.optim.Optimizer],
    losses: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    checkpoint: Path,
    warmup: int,
    save_every: int,
) -> dict:
    """Train until ``steps``, from the checkpoint if there is one.

    Parameters
    ----------
    name : str
        What the progress bar says.
    model : Module
        All its weights and buffers are kept in the checkpoint.
    movers : list of Optimizer
        Their rates are peaks: a warm-up leads to them, a half cosine away.
    losses : callable
        Step number to (the loss to descend, the figures to show as a tensor of shape (n,)).
    steps, warmup, save_every : int
    checkpoint : Path

    Returns
    -------
    dict
        ``history`` (running means of the figures, at most 100 entries) and ``seconds``.

    Raises
    ------
    FloatingPointError
        A loss is not a number any more; the last checkpoint stays as it was.
    RunError
        The checkpoint is damaged, or of a training with other steps or rates.
    """
    torch.set_num_threads(1)  # two hyperthreads of one core are no faster, and stall beside others
    peaks = [group["lr"] for mover in movers for group in mover.param_groups]
    step, spent, history, running = 0, 0.0, [], None
    asked = {"steps": steps, "warmup": warmup, "rates": peaks}  # they decide every step's rates
    if checkpoint.exists():
        saved = _taken_up(checkpoint, model, movers)
        if saved.get("asked", asked) != asked:
            raise RunError(
                f"{checkpoint} is of a training with {saved['asked']}, and now {asked} is asked "
                "for: use another folder, or delete it to start over."
            )
        step, spent, history = saved["step"], saved["seconds"], saved["history"]
    began = time.monotonic() - spent
    bar = tqdm(total=steps, initial=step, desc=name, unit="step", mininterval=10)
    while step < steps:
        scale = 0.01 + 0.495 * (1 + math.cos(math.pi * step / steps))
        scale *= min(1, (step + 1) / warmup)
        groups = [group for mover in movers for group in mover.param_groups]
        for peak, group in zip(peaks, groups, strict=True):
            group["lr"] = peak * scale
        loss, figures = losses(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for mover in movers:
            mover.step()
            mover.zero_grad(set_to_none=True)
        figures = figures.detach()
        running = figures if running is None else 0.98 * running + 0.02 * figures
        if not (torch.isfinite(running).all() and torch.isfinite(loss)):
            raise FloatingPointError(
                f"The losses of the {name} are {running.tolist()} at step {step}: lower its rates."
            )
        step += 1
        bar.update()
        if step % 50 == 0 or step == steps:
            shown = [round(v, 4) for v in running.tolist()]
            bar.set_postfix_str(" ".join(map(str, shown)))
            seconds = round(time.monotonic() - began)
            history.append({"step": step, "losses": shown, "seconds": seconds})
        if step % save_every == 0 or step == steps:
            state = {"model": model.state_dict(), "movers": [m.state_dict() for m in movers],
                     "step": step, "seconds": time.monotonic() - began, "history": history,
                     "asked": asked}  # fmt: skip
            with atomic_path(checkpoint) as partial:
                torch.save(state, partial)
    return {
        "history": history[:: max(1, len(history) // 100)],
        "seconds": round(time.monotonic() - began),
    }


def _taken_up(
    checkpoint: Path, model: nn.Module, movers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """What a checkpoint says, its weights and optimisers being taken over."""
    try:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for mover, state in zip(movers, saved["movers"], strict=True):
            mover.load_state_dict(state)
        saved["step"], saved["seconds"], saved["history"]
    except Exception as error:  # of a broken archive there is no end of kinds
        raise RunError(
            f"{checkpoint} is damaged or of another training ({type(error).__name__}): delete it "
            "to start over."
        ) from None
    return saved


def arguments(description: str, steps: int, shards: int) -> argparse.Namespace:
    """The command line of a part's training."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=Path("runs/nano"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("data/nano"))
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--shards", type=int, default=shards, help="of 100 clips of 30 s")
    return parser.parse_args()
