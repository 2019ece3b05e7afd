"""Knobs, and what they are to a language model: edits of its stream (notebook 10)."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from musae_utils import trace
from musae_utils.features.atlas import FeatureAtlas, _fingerprint
from musae_utils.models import MusicModel
from musae_utils.sae import SAE
from musae_utils.sae.architectures import BATCHED
from musae_utils.sae.files import _placed
from musae_utils.trace import HALVES, HookPoint, _check_window, _frames, _layer_index, _numbers

HOW = ("add", "scale", "ablate", "clamp")
MOST = 100.0  # a strength beyond this is a slip of the pen: S1's lie between 0 and 1
ALWAYS = 0.99  # share of rows from which a feature counts as always on
DENSE = 2**25  # activations worked out at once
COMPETING = ("topk", "rmsnorm")  # a feature's activation depends on all others


@dataclass(frozen=True, eq=False)
class Knob:
    """One feature, and what is done to it.

    Parameters
    ----------
    sae : SAE
        Its hook point says where; checked against the model.
    feature : int
    strength : float
        s of the module's table; from -100 to 100.
    how : {"add", "scale", "ablate", "clamp"}
    peak : float or FeatureAtlas
        β, in the SAE's units, or the atlas that knows it. "add" and "clamp" need it.
    to : float, or array of shape (T,)
        "clamp": where to, in units of β; or frame by frame of the clip.
    window : (start, end) in seconds, optional
        Of the clip; end may be None.
    curve : array, optional
        A factor of `strength` for each frame of the window, or of the clip if there is none.
    half : {"both", "cond", "uncond"}
        Of classifier-free guidance; see `trace.Edit`.
    along : Tensor of shape (d,), optional
        Another direction, brought to the length of the feature's own: a rival.

    Raises
    ------
    ValueError
        No such feature, one that never fires or says nothing; an atlas of another SAE; a strength,
        curve or direction that is not finite or absurd; an unknown `how` or `half`.

    Warns
    -----
    UserWarning
        By the atlas, the feature always fires.

    Examples
    --------
    >>> Knob(sae, 7, 0.5, peak=atlas, window=(2, 6))  # doctest: +SKIP
    """

    sae: SAE
    feature: int
    strength: float = 1.0
    how: str = "add"
    peak: float | FeatureAtlas | None = None
    to: float | ArrayLike = 1.0
    window: tuple[float, float | None] | None = None
    curve: ArrayLike | None = None
    half: str = "both"
    along: torch.Tensor | None = None

    def __post_init__(self) -> None:
        n = self.sae.config.d_sae
        if self.how not in HOW:
            raise ValueError(f"how is one of {', '.join(HOW)}; not {self.how!r}.")
        whole = isinstance(self.feature, (int, np.integer)) and not isinstance(self.feature, bool)
        if not whole or not 0 <= self.feature < n:
            raise ValueError(
                f"The SAE has the features 0 to {n - 1}; there is no {self.feature!r}."
            )
        _check_turn(self)
        if isinstance(self.peak, FeatureAtlas):
            object.__setattr__(self, "peak", _peak(self.peak, self.sae, self.feature))
        needs = self.how in ("add", "clamp")
        if needs and self.peak is None:
            raise ValueError(
                f"A knob that does {self.how!r} needs peak, the largest activation of the feature: "
                "a number, or a FeatureAtlas of the SAE."
            )
        if self.peak is not None and _number(self.peak) == float("inf"):
            raise ValueError("peak is the largest activation of the feature, and not infinite.")
        if self.peak is not None and not _number(self.peak) > 0:
            raise ValueError(
                f"Feature {self.feature} never fires (its peak is {self.peak}), so a knob of it "
                "has no scale: choose another, for instance one that passes FeatureAtlas.kept()."
            )
        if not (_numbers(self.to, "The value to clamp to").abs() <= MOST).all():
            raise ValueError(f"to is in units of the peak and at most {MOST:g} of them.")
        if not self.sae.W_dec[self.feature].any():
            raise ValueError(f"Feature {self.feature} says nothing: its decoder row is 0.")
        if self.along is not None:
            along = _numbers(self.along, "The direction of a knob")
            if along.shape != (self.sae.config.d_in,) or not along.any():
                raise ValueError(
                    f"along is a direction of shape ({self.sae.config.d_in},) and not all 0; given "
                    f"was a tensor of shape {tuple(along.shape)}."
                )
            object.__setattr__(self, "along", along)

    @property
    def direction(self) -> torch.Tensor:
        """What one unit of activation adds to the stream, (d,), on the CPU."""
        own = (self.sae.W_dec[self.feature] / self.sae.scale).detach().float().cpu()
        return own if self.along is None else own.norm() * self.along / self.along.norm()

    @property
    def owner(self) -> SAE:
        """What `layer` depends on."""
        return self.sae

    def layer(self, model: MusicModel) -> int:
        """Where it belongs in this model; `ValueError` if the SAE is of another one."""
        layer = _placed(self.sae, model)
        self.sae.check(HookPoint.of(model, layer))
        return layer

    def tables(self, n_frames: int, frame_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(r, c) of shape (T,) each: at frame t the feature gains r[t] a + c[t]."""
        s = _strengths(self, n_frames, frame_rate)
        zero = torch.zeros_like(s)
        if self.how == "add":
            return zero, s * self.peak
        if self.how == "clamp":
            to = _numbers(self.to, "The value to clamp to")
            if to.dim() and to.shape != s.shape:
                raise ValueError(
                    f"to has shape {tuple(to.shape)}, and the clip {n_frames} frames: give a "
                    "number, or one for each frame."
                )
            return -s, s * to * self.peak
        return (s if self.how == "scale" else -s), zero


@dataclass(frozen=True, eq=False)
class Patch:
    """Activation patching, the rival of all features: another piece's whole stream, put in.

    ``x + s (stream - x)``; at strength 1 exactly the other stream. Made before the knobs of its row
    at the same place, which read what was there.

    Parameters
    ----------
    at : int, "embed" or HookPoint
    stream : Tensor of shape (S, d)
        Over positions, a row of `trace.residuals` of the same layer.
    strength, window, curve, half : see `Knob`

    Raises
    ------
    ValueError
        A stream that is not finite or too short; else as `Knob`.
    """

    at: trace.Layer
    stream: torch.Tensor
    strength: float = 1.0
    window: tuple[float, float | None] | None = None
    curve: ArrayLike | None = None
    half: str = "both"

    def __post_init__(self) -> None:
        _check_turn(self)
        stream = _numbers(self.stream, "The stream of a patch")
        if stream.dim() != 2:
            raise ValueError(
                f"The stream of a patch has shape (positions, d), not {tuple(stream.shape)}."
            )
        object.__setattr__(self, "stream", stream)

    @property
    def owner(self) -> Patch:
        """What `layer` depends on."""
        return self

    def layer(self, model: MusicModel) -> int:
        """The layer it is for, if this model has it and its stream is as wide."""
        if self.stream.shape[-1] != model.dim:
            raise ValueError(
                f"The residual stream of {model.name} is {model.dim} wide; that of the patch "
                f"{self.stream.shape[-1]}."
            )
        return _layer_index(model, self.at)


Turn = Knob | Patch
Row = Turn | Sequence[Turn] | None


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _check_turn(turn: Turn) -> None:
    if not abs(_number(turn.strength)) <= MOST:
        raise ValueError(
            f"strength is a number from {-MOST:g} to {MOST:g}, and 1 is already as much as the "
            f"feature ever does by itself; not {turn.strength!r}."
        )
    if turn.half not in HALVES:
        raise ValueError(f"half is one of {', '.join(HALVES)}; not {turn.half!r}.")
    _check_window(turn.window)
    if turn.curve is not None:
        curve = _numbers(turn.curve, "The curve of a knob")
        if curve.dim() != 1 or not (curve.abs() * abs(turn.strength) <= MOST).all():
            raise ValueError(
                "The curve of a knob is one factor for each frame, and strength times factor at "
                f"most {MOST:g}; given was a shape of {tuple(curve.shape)}."
            )


# Hashing a decoder takes milliseconds, and knobs come by the thousand.
_seen: weakref.WeakKeyDictionary[SAE, tuple[int, str]] = weakref.WeakKeyDictionary()


def _peak(atlas: FeatureAtlas, sae: SAE, feature: int) -> float:
    if sae not in _seen or _seen[sae][0] != sae.W_dec._version:
        decoder = sae.W_dec.detach().float().cpu().numpy()
        _seen[sae] = sae.W_dec._version, _fingerprint(decoder)
    if atlas.sae != _seen[sae][1]:
        raise ValueError(
            f"The atlas is of another SAE (layer {atlas.layer}), whose features are others: give "
            "FeatureAtlas.of(sae, store) of this one."
        )
    if (share := float(atlas.density[feature])) >= ALWAYS:
        warnings.warn(
            f"Feature {feature} fires in {share:.1%} of all rows: it tells no music from another, "
            "and turning it shifts all of it.",
            stacklevel=4,
        )
    return float(atlas.peak[feature])


def _strengths(turn: Turn, n_frames: int, frame_rate: float) -> torch.Tensor:
    """Strength at each frame, (T,)."""
    first, after = _frames(turn.window, n_frames, frame_rate)
    curve = torch.ones(1) if turn.curve is None else _numbers(turn.curve, "The curve of a knob")
    if turn.curve is not None and len(curve) != after - first:
        raise ValueError(
            f"The curve has {len(curve)} factors for {after - first} frames (of "
            f"{1 / frame_rate:g} s): give one each."
        )
    s = torch.zeros(n_frames)
    s[first:after] = float(turn.strength) * curve
    return s


# -- from knobs to edits ---------------------------------------------------------------------------


class _Reader(NamedTuple):
    """Which activations are needed of one SAE.

    Entry i is feature `columns[i]` of `part` in `rows[i]`, and goes to `slots[i]` there. `own` are
    the rows, without repeats, and `among` finds them again. Where features compete, `whole` decides
    which of them win, and `features` are the part's there.
    """

    part: SAE
    rows: torch.Tensor
    slots: torch.Tensor
    columns: torch.Tensor
    own: torch.Tensor
    among: torch.Tensor
    whole: SAE | None
    features: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Activations of shape (entries, n) for a stream of shape (B, n, d)."""
        flat = x[self.own].flatten(0, 1)
        code = self.part.encode(flat)
        seen = code.unflatten(0, (len(self.own), -1))[self.among, :, self.columns]
        if self.whole is not None and (seen > 0).any():
            # What is not positive never wins, and so spares the others: they are most of the cost.
            hopes = torch.zeros(len(self.own), x.shape[1], device=seen.device)
            hopes = hopes.index_add(0, self.among.to(seen.device), (seen > 0).float())
            at = hopes.flatten().nonzero()[:, 0]
            parts = flat[at.to(flat.device)].split(max(1, DENSE // self.whole.config.d_sae))
            code[at] = torch.cat([self.whole.encode(one)[:, self.features] for one in parts])
            seen = code.unflatten(0, (len(self.own), -1))[self.among, :, self.columns]
        return seen.to(x.device)


class _Turns:
    """All that rows ask for at one place in one half of guidance: the function of a `trace.Edit`.

    B rows, T frames, m knobs at most in a row.
    """

    def __init__(self, rows: list[list[Turn]], n_frames: int, model: MusicModel) -> None:
        knobs = [[one for one in row if isinstance(one, Knob)] for row in rows]
        shape = len(rows), n_frames, max(1, *map(len, knobs))
        reads, adds = torch.zeros(shape), torch.zeros(shape)
        directions = torch.zeros(shape[0], shape[2], model.dim)
        entries: dict[int, list[tuple[SAE, int, int, int]]] = {}
        for i, row in enumerate(knobs):
            for j, one in enumerate(row):
                directions[i, j] = one.direction
                reads[i, :, j], adds[i, :, j] = one.tables(n_frames, model.frame_rate)
                if reads[i, :, j].any():
                    entry = one.sae, i, j, int(one.feature)
                    entries.setdefault(id(one.sae), []).append(entry)
        self.patches = [
            (i, _strengths(one, n_frames, model.frame_rate), one.stream.to(model.device))
            for i, row in enumerate(rows) for one in row if isinstance(one, Patch)
        ]  # fmt: skip
        active = ((reads != 0) | (adds != 0)).any(-1)  # (B, T)
        for i, strengths, stream in self.patches:
            active[i] |= strengths != 0
            if len(stream) < n_frames:
                raise ValueError(
                    f"The stream of a patch has {len(stream)} positions, and the clip {n_frames} "
                    "frames: patch in a piece that is at least as long."
                )
        self.rows = active.any(1)  # which are touched at all
        self.frames = active.any(0)
        self.readers = [_reader(one) for one in entries.values()]
        self.reads, self.adds = reads.to(model.device), adds.to(model.device)
        self.directions = directions.to(model.device)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The stream (B, n, d) at n positions, changed."""
        if len(x) != len(self.rows):
            raise ValueError(f"The knobs are for {len(self.rows)} rows; there are {len(x)}.")
        # After the last frame's own position, those that write its finer codebooks go with it.
        frames = positions.clamp(max=len(self.frames) - 1)
        if not self.frames[frames].any():
            return x
        gains = self.adds[:, frames]  # (B, n, m)
        for reader in self.readers:
            # Two advanced indices around a slice: (entries, n)
            gains[reader.rows, :, reader.slots] += self.reads[
                reader.rows[:, None], frames, reader.slots[:, None]
            ] * reader(x)
        touched = (gains != 0).any(-1, keepdim=True)
        out = x.clone()
        for i, strengths, stream in self.patches:
            s = strengths[frames].to(x.device, x.dtype)[:, None]
            at = positions.clamp(max=len(stream) - 1)
            out[i] = torch.where(s != 0, torch.lerp(out[i], stream[at].to(x.dtype), s), out[i])
        changed = (out.float() + gains @ self.directions).to(x.dtype)
        return torch.where(touched, changed, out)


def _reader(entries: list[tuple[SAE, int, int, int]]) -> _Reader:
    sae = entries[0][0]
    rows, slots, features = (torch.tensor(part) for part in list(zip(*entries, strict=True))[1:])
    own, among = rows.unique(return_inverse=True)
    wanted, columns = features.unique(return_inverse=True)
    whole = sae if sae.config.architecture in COMPETING else None
    return _Reader(_part(sae, wanted), rows, slots, columns, own, among, whole, wanted)


def _part(sae: SAE, features: torch.Tensor) -> SAE:
    """An SAE of some of the features: they fire as in the whole, or as if none competed."""
    n, kind = sae.config.d_sae, sae.config.architecture
    config = dataclasses.replace(
        sae.config, d_sae=len(features), architecture="standard" if kind in COMPETING else kind,
        k=1 if kind in BATCHED else None, prefixes=(len(features),) if sae.config.prefixes else (),
    )  # fmt: skip
    part = SAE(config, sae.hook_point, seed=None).to(sae.W_enc.device)
    part.load_state_dict(
        {
            name: value if name == "b_dec" or value.shape[:1] != (n,) else value[features]
            for name, value in sae.state_dict().items()
        }
    )
    return part


def _listed(rows: Sequence[Row]) -> list[list[Turn]]:
    if isinstance(rows, (Knob, Patch)) or not isinstance(rows, Sequence) or not len(rows):
        raise ValueError("rows is a list, a row being a knob, a list of knobs, or None for none.")
    out = []
    for row in rows:
        row = [] if row is None else [row] if isinstance(row, (Knob, Patch)) else list(row)
        for one in row:
            if not isinstance(one, (Knob, Patch)):
                raise ValueError(f"A row holds steering.Knob and steering.Patch, not {one!r}.")
        out.append(row)
    return out


def edits(
    model: MusicModel, rows: Sequence[Row], seconds: float, guided: bool = True
) -> list[trace.Edit]:
    """Knobs as edits, for `trace.edit`: to read a piece under them, or to go on from one.

    Parameters
    ----------
    model : MusicModel
    rows : list of B rows
        Each a `Knob` or `Patch`, several in a list, or None for an untouched row.
    seconds : float
        Of the clip that will be played or read.
    guided : bool
        Whether there will be two halves of guidance; a piece is read with one.

    Returns
    -------
    list of trace.Edit
        For B rows: give `generate`, `logits` or `residuals` B prompts or pieces. None if no row is
        touched.

    Raises
    ------
    ValueError
        An SAE of another layer or model, a window outside the clip, a curve of another length, a
        half that will not be there.

    Examples
    --------
    >>> edited = trace.edit(model, edits(model, [None, knob], 5))  # doctest: +SKIP
    >>> edited.continue_from(sound, 5, ["calm piano"] * 2, same_noise=True)  # doctest: +SKIP
    """
    rows, n_frames = _listed(rows), model._checked_frames(seconds)
    layers: dict[Any, int] = {}  # of SAEs and patches, each checked once
    for one in (one for row in rows for one in row):
        if one.owner not in layers:
            layers[one.owner] = one.layer(model)
    placed = [[(layers[one.owner], one) for one in row] for row in rows]
    out = []
    for layer in sorted({layer for row in placed for layer, _ in row}):
        here = [[one for at, one in row if at == layer] for row in placed]
        # Apart where they differ, so that all knobs of a half read the same stream.
        halves = {one.half for row in here for one in row}
        apart = ("cond", "uncond") if guided or "uncond" in halves else ("cond",)
        for half in ("both",) if halves == {"both"} else apart:
            mine = [[one for one in row if one.half in ("both", half)] for row in here]
            turns = _Turns(mine, n_frames, model)
            if turns.rows.any():
                out.append(trace.Edit(layer, turns, turns.rows.float(), half=half, timed=True))
    return out
