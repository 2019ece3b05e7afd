"""Many rows in one generation, in a folder that a kill does no harm (notebook 11)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from musae_utils import trace
from musae_utils.models import Generation, MusicModel
from musae_utils.models.model import Prompts, _prompt_list
from musae_utils.plan import Halving
from musae_utils.runs import Run
from musae_utils.sae import SAE
from musae_utils.steering.knobs import Row, Turn, _listed, edits


def sweep(
    model: MusicModel,
    prompts: Prompts,
    rows: Sequence[Row],
    seconds: float = 10.0,
    seed: int | Sequence[int] = 0,
    guidance: float = 3.0,
    temperature: float = 1.0,
    top_k: int | None = 250,
    folder: str | Path | None = None,
    batch: int = 64,
    progress: bool = False,
) -> Generation:
    """Play all rows in one generation: many features, strengths, prompts and seeds.

    Rows of one prompt and seed differ only by their knobs. A row is, as far as floating point
    allows, what it would be alone.

    Parameters
    ----------
    model : MusicModel
    prompts : str or None, or a list of B
        One for all rows, or one each.
    rows : list of B rows
        Each a `Knob` or `Patch`, several in a list, or None for an untouched row.
    seconds : float
    seed : int, or a list of B
    guidance, temperature, top_k, progress : see `MusicModel.generate`
    folder : str or Path, optional
        A run folder: what was played is kept, and a sweep that was stopped goes on.
    batch : int
        Rows in one generation; as many as the memory holds. Where a GPU's does not hold them,
        they are halved until it does.

    Returns
    -------
    Generation
        Of B rows; its provenance has ``rows``, what was asked of each.

    Raises
    ------
    ValueError
        As `edits`; prompts or seeds that are not as many as rows.
    RunError
        The folder holds another sweep.

    Examples
    --------
    >>> rows = [None, *(Knob(sae, 7, s, peak=atlas) for s in (0.25, 0.5, 1))]  # doctest: +SKIP
    >>> sweep(model, "calm piano", rows, 5, folder="runs/knob-7").clips()  # doctest: +SKIP
    """
    rows = _listed(rows)
    prompts = _one_each(_prompt_list(prompts), len(rows), "prompts")
    seeds = _one_each(np.atleast_1d(seed).tolist(), len(rows), "seeds")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch is a number of rows from 1 up, not {batch!r}.")
    guided = guidance != 1
    # All at once, so that whatever is wrong is said before anything is played.
    parts = {
        first: edits(model, rows[first : first + batch], seconds, guided)
        for first in range(0, len(rows), batch)
    }
    told = _told(rows)
    config = dict(
        what="steering sweep", prompts=prompts, rows=told, seeds=seeds, seconds=seconds,
        guidance=guidance, temperature=temperature, top_k=top_k, batch=batch,
    )  # fmt: skip
    settings = dict(guidance=guidance, temperature=temperature, top_k=top_k, progress=progress)

    def play(start: int, asked: list[trace.Edit]) -> Callable[[int, int], Generation]:
        def some(a: int, b: int) -> Generation:
            these = slice(start + a, start + b)
            whole = len(prompts[start : start + batch]) == b - a
            turned = asked if whole else edits(model, rows[these], seconds, guided)
            return trace.edit(model, turned).generate(
                prompts[these], seconds, seed=seeds[these], **settings
            )

        return some

    audio, codes, halving = [], [], Halving(batch)
    with contextlib.ExitStack() as stack:
        run = folder and stack.enter_context(
            Run(folder, config, fingerprints={"model": model.fingerprint})
        )
        for first, asked in parts.items():
            these = slice(first, first + batch)
            name = f"rows-{first:05d}.safetensors"
            if run and run.has(name):
                codes.append(load_file(run.path(name))["codes"].long())
                audio.append(model.decode(codes[-1]))
                continue
            played = halving(play(first, asked), len(prompts[these]))
            audio += [part.audio for part in played]
            codes.append(torch.cat([part.codes for part in played]))
            if run:
                kept = {"codes": codes[-1].to(torch.int32).contiguous()}
                run.save(name, lambda path, kept=kept: save_file(kept, path))
    provenance = dict(config, model=model.name, fingerprint=model.fingerprint)
    return Generation(torch.cat(audio), torch.cat(codes), model.sample_rate, prompts, provenance)


def _one_each(values: list, rows: int, what: str) -> list:
    if len(values) not in (1, rows):
        raise ValueError(f"There are {len(values)} {what} for {rows} rows: give one, or one each.")
    return values * rows if len(values) == 1 else values


def _told(rows: list[list[Turn]]) -> list[list[dict]]:
    """What a run folder keeps of knobs: numbers as they are, weights and arrays by their hash."""
    prints: dict[int, str] = {}

    def of(sae: SAE) -> str:
        if id(sae) not in prints:
            prints[id(sae)] = _hash(*sae.state_dict().values())
        return prints[id(sae)]

    def told(value: Any) -> Any:
        if isinstance(value, SAE):
            return of(value)
        if torch.is_tensor(value) or (not isinstance(value, tuple) and np.ndim(value)):
            return _hash(torch.as_tensor(value))
        return value

    return [
        [{f.name: told(getattr(one, f.name)) if f.name != "at" else str(one.at)
          for f in dataclasses.fields(one)} for one in row]
        for row in rows
    ]  # fmt: skip


def _hash(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()[:16]
