"""Reading and editing what a model computes on its way from one code to the next (notebook 03).

Everything here runs through nnsight on audiocraft's own modules. A *hook point* is a place in the
model; the *residual stream* is the vector of width `dim` that each layer reads and adds to.

===========  ==================================  ===============================================
layer        hook point                          what it is
===========  ==================================  ===============================================
``i``        ``transformer.layers.{i}`` output   the stream after layer i, counted from 0
``"embed"``  ``transformer`` input               the sum of the code embeddings: what the model
or ``-1``                                        is told before it has thought. The positional
                                                 embedding is added later, inside the
                                                 transformer, so this rival of every layer
                                                 knows codes and not what time it is
===========  ==================================  ===============================================

**Which position is which moment.** MusicGen delays codebook k by k steps, so that one position of
the language model holds a different frame in each codebook. With T = 4 frames f0 … f3, K = 3
codebooks and ``·`` for the special token::

    position s      0    1    2    3    4    5    6         S = T + K positions
    codebook 0      ·    f0   f1   f2   f3   ·    ·
    codebook 1      ·    ·    f0   f1   f2   f3   ·         position s reads frame s - 1 - k
    codebook 2      ·    ·    ·    f0   f1   f2   f3
                      ↘    ↘    ↘    ↘    ↘    ↘
    codebook 0      f0   f1   f2   f3   ·    ·              and its output becomes the codes at
    codebook 1      ·    f0   f1   f2   f3   ·              s + 1: it writes frame s - k
    codebook 2      ·    ·    f0   f1   f2   f3

- *Reading* (`residuals`, `align`): frame t is first seen at position t + 1, where its codebook 0
  comes in, and completely known at t + K, where its last codebook does. The map is in
  `frame_of_position`, `position_of_frame`, `positions_to_seconds` and nowhere else.
- *Writing* (`Edit`): position t decides codebook 0 of frame t. A window from a to b seconds edits
  the positions that write, in codebook 0, the frames from a to b. The same positions write codebook
  k of the frame k steps earlier, so its first trace is in the last codebook, K - 1 frames
  ahead of a; what lies before that is bit for bit what it was.

In stereo models two neighbouring codebooks share a delay: there, k is ``codebook // 2``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from nnsight import NNsight

from musae_utils.models import Generation, MusicModel
from musae_utils.models.model import Audio, Prompts, _prompt_list

__all__ = [
    "EMBED",
    "Edit",
    "Edited",
    "HookPoint",
    "align",
    "at_depth",
    "edit",
    "frame_of_position",
    "logits",
    "position_of_frame",
    "positions_to_seconds",
    "residuals",
]

EMBED = -1  # the layer index of the sum of code embeddings
HALVES = ("both", "cond", "uncond")

# -- time ----------------------------------------------------------------------------------------


def frame_of_position(position, codebook: int = 0):
    """The frame that a position of the language model holds in one codebook.

    Parameters
    ----------
    position : int, or array of int
    codebook : int

    Returns
    -------
    int, or array
        Below 0, or T and more: no frame but the special token.

    See Also
    --------
    position_of_frame : the other way round.
    """
    return position - 1 - codebook


def position_of_frame(frame, codebook: int = 0):
    """The first position at which the language model has read `codebook` of a frame.

    The position before it is the one that wrote it.
    """
    return frame + 1 + codebook


def positions_to_seconds(n_positions: int, frame_rate: float, codebook: int = 0) -> np.ndarray:
    """When the frame held at each position begins to sound.

    Returns
    -------
    ndarray of shape (n_positions,)
        Seconds; negative where the position holds the special token before the music.
    """
    return frame_of_position(np.arange(n_positions), codebook) / frame_rate


def align(residual: torch.Tensor, n_frames: int, codebook: int = 0) -> torch.Tensor:
    """Sort positions into frames.

    Parameters
    ----------
    residual : Tensor of shape (..., S, dim)
        Over the positions of the language model, as from `residuals`.
    n_frames : int
        T, frames of the codes that went in.
    codebook : int
        Entry t is the first position that has read this codebook of frame t: 0 has just heard the
        coarsest part of it, K - 1 all of it, and up to K - 1 frames more.

    Returns
    -------
    Tensor of shape (..., T, dim)
        A view of `residual`.

    Raises
    ------
    ValueError
        There are fewer positions than these frames take.
    """
    start, end = position_of_frame(0, codebook), position_of_frame(n_frames, codebook)
    if residual.dim() < 2 or codebook < 0 or not 0 < end - start <= residual.shape[-2] - start:
        raise ValueError(
            f"{n_frames} frames, seen through codebook {codebook}, take the positions {start} to "
            f"{end - 1}; a residual of shape {tuple(residual.shape)} does not have them. Its last "
            "two axes are positions and width."
        )
    return residual[..., start:end, :]


# -- places --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HookPoint:
    """A place in one particular model, to store beside whatever was found there.

    Attributes
    ----------
    model : str
        Name the model was loaded by; for people.
    layer : int
        From 0; -1 is the sum of code embeddings.
    path : str
        Module path inside the language model.
    fingerprint : str
        Of the model's weights: what decides whether the place is the same.
    """

    model: str
    layer: int
    path: str
    fingerprint: str

    def __post_init__(self) -> None:
        if self.path != _path(self.layer):
            raise ValueError(
                f"Layer {self.layer} is found at {_path(self.layer)}, not at {self.path!r}."
            )

    @classmethod
    def of(cls, model: MusicModel, layer: int | str) -> HookPoint:
        """The hook point of a layer of a loaded model."""
        layer = _layer_index(model, layer)
        return cls(model.name, layer, _path(layer), model.fingerprint)

    def check(self, model: MusicModel) -> int:
        """The layer, if the hook point is one of this model; else `ValueError`."""
        if self.fingerprint != model.fingerprint:
            raise ValueError(
                f"{self} was made on other weights than {model.name!r} has (fingerprint "
                f"{model.fingerprint}): what was found in one model means nothing in another. "
                f"Load {self.model!r} as it was."
            )
        return _layer_index(model, self.layer)

    def __str__(self) -> str:
        return f"{self.path} of {self.model} [{self.fingerprint}]"


Layer = int | str | HookPoint


def _path(layer: int) -> str:
    return "transformer" if layer == EMBED else f"transformer.layers.{layer}"


def _layer_index(model: MusicModel, layer: Layer) -> int:
    if isinstance(layer, HookPoint):
        return layer.check(model)
    if isinstance(layer, str) and layer == "embed":
        return EMBED
    whole = isinstance(layer, (int, np.integer)) and not isinstance(layer, bool)
    if not whole or not EMBED <= layer < model.n_layers:
        raise ValueError(
            f"{model.name} has the layers 0 to {model.n_layers - 1}, and 'embed' (or -1), the sum "
            f"of code embeddings; there is no {layer!r}."
        )
    return int(layer)


def at_depth(model: MusicModel, fraction: float) -> int:
    """The layer at a fraction of the depth: 0 is the first, 1 the last, in a model of any size."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"A fraction of the depth lies between 0 and 1, not at {fraction}.")
    return round(fraction * (model.n_layers - 1))


# -- edits ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Edit:
    """One change of the residual stream.

    Parameters
    ----------
    layer : int, "embed" or HookPoint
        Where; a `HookPoint` is checked against the model.
    change : array or Tensor of shape (dim,) or (B, dim), or function
        A direction to add, ``x + strength × direction`` (taken as given: its length counts), the
        same for all rows or one a row. Or a function of the residual, (B, n, dim) with row i that
        of prompt i, that returns its replacement: ``x + strength × (change(x) - x)``, exactly
        ``change(x)`` at strength 1. In generation it sees the prompt's n positions at once, then
        one at a time.
    strength : float, or one for each of B rows
        A row with strength 0 is not touched: its result is bit-identical to that of no edit.
    window : (start, end) in seconds, optional
        Of the clip, a continued prompt included; end may be None. All of it unless given. See the
        module's picture for what a window means under the delay.
    half : "both", "cond" or "uncond"
        Of classifier-free guidance. ``"cond"`` alone is amplified by guidance; ``"both"`` is not.
    timed : bool
        The function changes with time: it is also given the numbers of the positions it sees, int64
        of shape (n,), as ``change(x, positions)``.

    Raises
    ------
    ValueError
        A direction or strength that is not finite, an unknown half, a window that is not one.
    """

    layer: Layer
    change: torch.Tensor | np.ndarray | Sequence[float] | Callable[[torch.Tensor], torch.Tensor]
    strength: float | Sequence[float] | np.ndarray | torch.Tensor = 1.0
    window: tuple[float, float | None] | None = None
    half: str = "both"
    timed: bool = False
    _strength: torch.Tensor = field(init=False, repr=False)  # (1,) or (B,)
    _direction: torch.Tensor | None = field(init=False, repr=False)  # (1, dim) or (B, dim)

    def __post_init__(self) -> None:
        if self.half not in HALVES:
            raise ValueError(f"half is one of {', '.join(HALVES)}; not {self.half!r}.")
        self._strength = _numbers(self.strength, "strength").reshape(-1)
        if self._strength.numel() == 0:
            raise ValueError("strength is a number, or one for each row; it is empty.")
        self._direction = None
        if not callable(self.change):
            direction = _numbers(self.change, "The direction of an edit")
            if direction.dim() not in (1, 2) or direction.numel() == 0:
                raise ValueError(
                    "The direction of an edit has shape (dim,) or (rows, dim), not "
                    f"{tuple(direction.shape)}."
                )
            self._direction = direction if direction.dim() == 2 else direction[None]
        _check_window(self.window)

    @property
    def rows(self) -> int | None:
        """How many rows the edit is written for; None if for any number."""
        counts = [len(self._strength)]
        counts += [] if self._direction is None else [len(self._direction)]
        several = {count for count in counts if count > 1}
        if len(several) > 1:
            raise ValueError(
                f"An edit has {len(self._strength)} strengths for {len(self._direction)} "
                "directions: give one of each a row."
            )
        return several.pop() if several else None

    def describe(self) -> dict:
        """What a provenance record keeps of it; functions and directions by name and norm."""
        what = (
            f"function {getattr(self.change, '__name__', type(self.change).__name__)}"
            if self._direction is None
            else f"direction of norm {', '.join(f'{n:.4g}' for n in self._direction.norm(dim=-1))}"
        )
        return dict(
            layer=str(self.layer), change=what, strength=self._strength.tolist(),
            window=None if self.window is None else list(self.window), half=self.half,
        )  # fmt: skip


def _check_window(window: tuple[float, float | None] | None) -> None:
    if window is None:
        return
    try:
        start, end = window
        right = start >= 0 and np.isfinite(start)
        right = right and (end is None or (end > start and np.isfinite(end)))
    except (TypeError, ValueError):
        right = False
    if not right:
        raise ValueError(
            "window is (start, end) in seconds with 0 <= start < end, or (start, None) for all "
            f"the rest; not {window!r}."
        )


def _numbers(values, what: str) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(values).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{what} is made of numbers, not {values!r}.") from None
    if not tensor.isfinite().all():
        raise ValueError(f"{what} is not finite (NaN or infinite) in some place.")
    return tensor


class _Placed:
    """An edit worked out for one run: which rows, which positions, how strongly.

    `halves` are those the run computes, in the order in which they lie in the batch.
    """

    def __init__(
        self, edit: Edit, model: MusicModel, rows: int, n_frames: int, n_positions: int,
        halves: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.edit = edit
        self.layer = _layer_index(model, edit.layer)
        if edit.half == "uncond" and len(halves) == 1:
            raise ValueError(
                "half='uncond' needs a pass with guidance: here there is only one half. Use "
                "half='both', or generate with guidance other than 1."
            )
        wanted = halves if edit.half == "both" else (edit.half,)
        self.offsets = [rows * i for i, half in enumerate(halves) if half in wanted]
        self.rows = rows
        # The positions after the last frame's own only write its finer codebooks: they go with it.
        writes = np.minimum(np.arange(n_positions), n_frames - 1)
        first, after = _frames(edit.window, n_frames, model.frame_rate)
        inside = torch.from_numpy((first <= writes) & (writes < after))
        weight = edit._strength.expand(rows)[:, None] * inside  # (B, S)
        self.positions = weight.any(0).nonzero()[:, 0].tolist()
        self.weight = weight[..., None].to(model.device)
        self.direction = (
            None if edit._direction is None else edit._direction[:, None].to(model.device)
        )

    def __call__(self, x: torch.Tensor, first: int, after: int) -> torch.Tensor:
        """Edit, in place, a batch of residuals of the positions from `first` up to `after`."""
        weight = self.weight[:, first:after]
        prefix = x.shape[1] - (after - first)  # of conditions; some models put them in front
        for offset in self.offsets:
            here = x[offset : offset + self.rows, prefix:]
            if self.direction is not None:
                new = here + (weight * self.direction).to(x.dtype)
            else:
                new = self._changed(here, weight, first, after)
            here.copy_(torch.where(weight != 0, new, here))
        return x

    def _changed(
        self, here: torch.Tensor, weight: torch.Tensor, first: int, after: int
    ) -> torch.Tensor:
        when = [torch.arange(first, after)] if self.edit.timed else []
        changed = self.edit.change(here.clone(), *when)
        if not torch.is_tensor(changed) or changed.shape != here.shape:
            got = f"{tuple(changed.shape)}" if torch.is_tensor(changed) else repr(changed)
            raise ValueError(
                f"The function of an edit returns a residual of the shape it was given, "
                f"{tuple(here.shape)}; it returned {got}."
            )
        if not changed.masked_fill(weight == 0, 0).isfinite().all():
            raise ValueError("The function of an edit returned NaN or infinite values.")
        # lerp is exact at both ends: nothing changed at 0, the function's own result at 1.
        return torch.lerp(here, changed.to(here.dtype), weight.to(here.dtype))


def _frames(window: tuple | None, n_frames: int, frame_rate: float) -> tuple[int, int]:
    """The frames [first, after) of a window in a clip of `n_frames`."""
    if window is None:
        return 0, n_frames
    start, end = window
    first = round(start * frame_rate)
    after = n_frames if end is None else round(end * frame_rate)
    if first >= n_frames or after > n_frames:
        raise ValueError(
            f"The window {window} s of an edit lies outside the clip, which lasts "
            f"{n_frames / frame_rate:g} s."
        )
    if after <= first:
        raise ValueError(
            f"The window {window} s of an edit is shorter than a frame ({1 / frame_rate:g} s)."
        )
    return first, after


# -- running -------------------------------------------------------------------------------------


def residuals(
    model: MusicModel, codes: torch.Tensor, layers: Iterable[Layer], prompts: Prompts = None
) -> dict[Layer, torch.Tensor]:
    """What the model thinks of given music: its residual streams, teacher-forced.

    One pass over all positions, ended after the deepest layer asked for.

    Parameters
    ----------
    model : MusicModel
    codes : Tensor of shape (B, K, T) or (K, T)
        From `MusicModel.encode`, or of a `Generation`.
    layers : list of (int, "embed" or HookPoint)
    prompts : str, or list of (str or None), optional
        One, or one a row. What guidance calls the unconditional half is the pass without.

    Returns
    -------
    dict of layer, as it was asked for, to Tensor of shape (B, S, dim)
        S = T + K positions; `align` sorts them into frames. On the model's device, in its dtype.

    Raises
    ------
    ValueError
        No such layer, a hook point of another model, wrong codes or number of prompts.

    Examples
    --------
    >>> from musae_utils import models, trace
    >>> model = models.load("nano")  # doctest: +SKIP
    >>> codes = model.generate("slow organ", seconds=2).codes  # doctest: +SKIP
    >>> streams = trace.residuals(model, codes, ["embed", 3])  # doctest: +SKIP
    >>> trace.align(streams[3], codes.shape[-1]).shape  # doctest: +SKIP
    torch.Size([1, 100, 256])
    """
    return edit(model, []).residuals(codes, layers, prompts)


def logits(model: MusicModel, codes: torch.Tensor, prompts: Prompts = None) -> torch.Tensor:
    """What the model expects at each frame of given music, having read all before it.

    Parameters
    ----------
    codes, prompts : see `residuals`

    Returns
    -------
    Tensor of shape (B, K, T, cardinality), float32
        Entry t are the logits from which codebook k of frame t would have been drawn (guidance 1).
    """
    return edit(model, []).logits(codes, prompts)


def edit(model: MusicModel, edits: Edit | Iterable[Edit]) -> Edited:
    """A model with its residual stream changed while it reads or plays; see `Edit`.

    Parameters
    ----------
    model : MusicModel
        Not changed itself.
    edits : Edit, or list of Edit
        Several at one place are made in the order given.

    Returns
    -------
    Edited

    Raises
    ------
    ValueError
        An edit does not fit the model or the others: layer, width of its direction, rows.

    Examples
    --------
    One prompt, the same random numbers, one knob turned:

    >>> knob = trace.Edit(3, direction, strength=[0, 4, 8], window=(2, 6))  # doctest: +SKIP
    >>> trace.edit(model, knob).generate("calm piano", same_noise=True)  # doctest: +SKIP
    """
    return Edited(model, [edits] if isinstance(edits, Edit) else edits)


class Edited:
    """A model under edits, made by `edit`: it reads (`residuals`, `logits`) and plays.

    Where the edits have a row each, one prompt or one piece of music is used for all rows.
    """

    def __init__(self, model: MusicModel, edits: Iterable[Edit]) -> None:
        self.model = model
        self.edits = list(edits)
        for one in self.edits:
            if not isinstance(one, Edit):
                raise ValueError(f"edits are made with trace.Edit(...), not {one!r}.")
            _layer_index(model, one.layer)
            if one._direction is not None and one._direction.shape[-1] != model.dim:
                raise ValueError(
                    f"The residual stream of {model.name} is {model.dim} wide; the direction of "
                    f"an edit has {one._direction.shape[-1]} entries."
                )
        rows = {one.rows for one in self.edits} - {None}
        if len(rows) > 1:
            raise ValueError(f"The edits are for different numbers of rows: {sorted(rows)}.")
        self.rows = rows.pop() if rows else None

    def residuals(
        self, codes: torch.Tensor, layers: Iterable[Layer], prompts: Prompts = None
    ) -> dict[Layer, torch.Tensor]:
        """As `trace.residuals`; where a layer is edited, the stream after the edit."""
        layers = [layers] if isinstance(layers, (int, str, HookPoint)) else list(layers)
        if not layers:
            raise ValueError("Which layers? The list is empty.")
        index = {layer: _layer_index(self.model, layer) for layer in layers}
        streams, _ = self._read(codes, prompts, set(index.values()), to_the_end=False)
        return {layer: streams[i] for layer, i in index.items()}

    def logits(self, codes: torch.Tensor, prompts: Prompts = None) -> torch.Tensor:
        """As `trace.logits`."""
        _, out = self._read(codes, prompts, set(), to_the_end=True)
        n_frames = torch.as_tensor(codes).shape[-1]
        delays = enumerate(_delays(self.model.lm))
        # Codebook k of frame t is written at the position before the one that holds it.
        written = [out[:, k, delay : delay + n_frames] for k, delay in delays]
        return torch.stack(written, dim=1).float()

    def generate(
        self,
        prompts: Prompts = None,
        seconds: float = 10.0,
        guidance: float = 3.0,
        prompt_codes: torch.Tensor | None = None,
        **settings,
    ) -> Generation:
        """Play under the edits; parameters and result are those of `MusicModel.generate`.

        Rows do not depend on each other: an edit in one leaves the others as they were. With
        ``same_noise=True`` rows of one prompt differ only by their edits.
        """
        model, lm = self.model, self.model.lm
        n_frames = model._checked_frames(seconds)
        given = 1
        if prompt_codes is not None:
            prompt_codes = model._checked_codes(prompt_codes)
            given = len(prompt_codes)
        prompts = self._one_each(_prompt_list(prompts), given)
        known = 0 if prompt_codes is None else prompt_codes.shape[-1]

        # The unprompted halves of guidance are equal until one of them is edited.
        both = any(one.half != "both" for one in self.edits)
        guided = guidance != 1 and (both or any(prompts))
        n_positions = n_frames + max(_delays(lm))  # the last one is written, never read
        placed = self._placed(
            len(prompts), n_frames, n_positions, ("cond", "uncond") if guided else ("cond",)
        )
        # The first step reads the prompt and the special token before it, each other one position.
        steps = sorted({max(p - known, 0) for one in placed for p in one.positions})
        at_layer = _by_layer(placed)

        nn = _nnsight(model)
        with nn.trace(
            prompts, seconds, fn=model.generate, guidance=guidance, prompt_codes=prompt_codes,
            both_halves=both, **settings,
        ) as tracer:  # fmt: skip
            for step in tracer.iter[steps]:
                after = known + step + 1
                first = after - 1 if step else 0
                for layer, here in at_layer:
                    if any(one.positions[0] < after and first <= one.positions[-1] for one in here):
                        _write(nn, layer, _made(here, _seen(nn, layer), first, after))
            played = tracer.result.save()
        played.provenance["edits"] = [one.describe() for one in self.edits]
        return played

    def continue_from(
        self,
        audio: Audio,
        seconds: float,
        prompts: Prompts = None,
        sample_rate: int | None = None,
        **settings,
    ) -> Generation:
        """As `MusicModel.continue_from`. Windows count from the start of the given sound."""
        given = self.model.encode(audio, sample_rate)
        return self.generate(prompts, seconds, prompt_codes=given, **settings)

    def _read(
        self, codes: torch.Tensor, prompts: Prompts, wanted: set[int], to_the_end: bool
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
        """A teacher-forced pass: streams of `wanted` layers (B, S, dim), logits (B, K, S, card)."""
        model, lm = self.model, self.model.lm
        codes = model._checked_codes(codes)
        prompts = self._one_each(_prompt_list(prompts), len(codes))
        codes = codes.expand(len(prompts), -1, -1).contiguous().to(model.device)
        n_frames = codes.shape[-1]
        pattern = lm.pattern_provider.get_pattern(n_frames)
        sequence, _, _ = pattern.build_pattern_sequence(codes, lm.special_token_id)
        n_positions = n_frames + 1 + max(_delays(lm))

        deepest = model.n_layers if to_the_end else max(wanted)
        placed = self._placed(len(prompts), n_frames, n_positions, ("cond",))
        at_layer = dict(_by_layer([one for one in placed if one.layer <= deepest]))
        visits = sorted({*at_layer, *wanted})
        streams: dict[int, torch.Tensor] = {}
        out = None
        nn = _nnsight(model)
        with torch.no_grad(), model.musicgen.autocast:
            conditions = model.conditions(prompts)
            with nn.trace(sequence, [], conditions) as tracer:
                for layer in visits:
                    x = _seen(nn, layer)
                    if layer in at_layer:
                        x = _made(at_layer[layer], x, 0, n_positions)
                        _write(nn, layer, x)
                    if layer in wanted:
                        streams[layer] = x[:, -n_positions:]
                if to_the_end:
                    out = nn.output.save()
                else:
                    tracer.stop()
        return streams, out

    def _one_each(self, prompts: list, given: int) -> list:
        """As many prompts as there are rows of edits, of given music, or of prompts."""
        counts = {"rows of edits": self.rows or 1, "rows of codes": given, "prompts": len(prompts)}
        rows = max(counts.values())
        if any(count not in (1, rows) for count in counts.values()):
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"Rows do not match: there are {told}. Give one for all, or one each.")
        return prompts * rows if len(prompts) == 1 else prompts

    def _placed(self, rows, n_frames, n_positions, halves) -> list[_Placed]:
        placed = [
            _Placed(one, self.model, rows, n_frames, n_positions, halves) for one in self.edits
        ]
        return [one for one in placed if one.positions]

    def __repr__(self) -> str:
        return f"Edited({self.model.name!r}, {len(self.edits)} edits, rows={self.rows or 'any'})"


def _by_layer(placed: list[_Placed]) -> list[tuple[int, list[_Placed]]]:
    """Edits in the order in which the model reaches them."""
    layers = sorted({one.layer for one in placed})
    return [(layer, [one for one in placed if one.layer == layer]) for layer in layers]


def _made(edits: list[_Placed], x: torch.Tensor, first: int, after: int) -> torch.Tensor:
    x = x.clone()
    for one in edits:
        one(x, first, after)
    return x


def _delays(lm) -> list[int]:
    """By how many steps each codebook lags; every map of this module rests on them."""
    provider = lm.pattern_provider
    delays = getattr(provider, "delays", None)
    plain = not (getattr(provider, "flatten_first", 0) or getattr(provider, "empty_initial", 0))
    if delays is None or not plain or delays[0] != 0:
        raise ValueError(
            f"This model interleaves its codebooks by {type(provider).__name__}, and only the "
            "delay pattern of MusicGen, its first codebook undelayed, is understood here."
        )
    return list(delays)


def _nnsight(model: MusicModel) -> NNsight:
    """The model's language model as nnsight sees it, wrapped once."""
    if "_nnsight" not in vars(model):
        model._nnsight = NNsight(model.lm)
    return model._nnsight


def _seen(nn: NNsight, layer: int) -> torch.Tensor:
    """The residual at a layer; inside a trace."""
    return nn.transformer.input if layer == EMBED else nn.transformer.layers[layer].output


def _write(nn: NNsight, layer: int, x: torch.Tensor) -> None:
    if layer == EMBED:
        nn.transformer.input = x
    else:
        nn.transformer.layers[layer].output = x
