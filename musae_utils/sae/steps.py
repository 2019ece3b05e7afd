"""One training step of an SAE, three times over (notebook 06).

`DenseStep` is the textbook: autograd over dense activations and torch's Adam, any architecture. It
is also the reference that the other two are tested against. They take the architectures whose
number of active features is fixed, and never build what is mostly zeros:

- `SparseStep`, on a CPU, with the loops of `kernels`;
- `TorchSparseStep`, anywhere, from torch's own operators; the one for GPUs.

**The bound.** Only the encoder is a dense product: 2 d n operations a token. All else is
proportional to k, or to the weights that a batch touches. Where bfloat16 units exist the product
runs on them, at several times the speed of float32, and what remains is limited by memory:

- decoding and the gradient by the activations gather k rows of the decoder a token, once;
- the gradient of the two matrices gathers k rows each of inputs and errors a token;
- Adam reads and writes two matrices and their second moments, once a batch and not once a token:
  the larger the batch, the less it weighs. With beta1 = 0 (S1's choice, and the default here) only
  features that were active move at all, exactly as in dense Adam, so only their rows are read.

How near that comes (``benchmarks/sae_speed.py``; one core with bfloat16 units, 4,096 activations a
batch, shares of the rate of the encoder's product alone): 0.77 and 0.64 at d = 1024, × 8, k = 32
and 100; 0.85 and 0.76 at × 32; 0.60 at d = 256, × 16, k = 32, where the product is so short that
the rest shows. Of that rest, at d = 256, selecting takes a quarter, reading decoder rows under a
third, gradients a sixth, Adam an eighth. `DenseStep` with autocast reaches 0.07. On a GPU nothing
has been measured yet.

What is approximate: with ``precision="bf16"`` the encoder product, the decoder rows and the inputs
and errors that make up the gradients are rounded to bfloat16 (relative error 2⁻⁹), as under
autocast; sums, weights and moments are float32. With ``precision="fp32"`` nothing is.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from musae_utils.sae.architectures import BATCHED, K_SPARSE, SAE

if TYPE_CHECKING:
    from musae_utils.sae.train import TrainConfig

ROWS = 512  # samples whose pre-activations exist at a time: they stay in the processor's cache
RANGE = 1 << 19  # weights updated at a time: their gradient stays in cache, too
AUXILIARY_SHARE = 0.25  # of the encoder product's cost, at most


class Measured(NamedTuple):
    """What a step saw, before it changed the weights.

    Attributes
    ----------
    loss : float
        What is minimised, a sample.
    mse : float
        Squared distance of reconstruction and target, a sample (scaled activations).
    l0 : float
        Active features a sample.
    """

    loss: float
    mse: float
    l0: float


class Diverged(FloatingPointError):
    """The loss is not a number; the weights are those before the step."""


class Step:
    """What all three have in common: liveness, the auxiliary loss, state.

    Parameters
    ----------
    sae : SAE
        Changed in place.
    config : TrainConfig
    precision : {"bf16", "fp32"}

    Attributes
    ----------
    done : int
        Steps made.
    since : Tensor of shape (n,), int64
        Samples seen since each feature was last active.
    """

    def __init__(self, sae: SAE, config: TrainConfig, precision: str) -> None:
        self.sae, self.config, self.precision = sae, config, precision
        self.device = sae.W_enc.device
        self.done = 0
        # The inference threshold averages over a tenth of the training, at most 100 steps.
        self.threshold_rate = min(1.0, max(0.01, 10 / config.steps))
        self.since = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=self.device)

    def __call__(self, x: torch.Tensor, rate: float, penalty: float = 0.0) -> Measured:
        """Learn from a batch.

        Parameters
        ----------
        x : Tensor of shape (B, d), float32, on the SAE's device
        rate : float
            Learning rate.
        penalty : float
            Coefficient of the sparsity penalty, for architectures that have one.

        Raises
        ------
        Diverged
        """
        raise NotImplementedError

    @property
    def dead(self) -> torch.Tensor:
        """Features not active for `dead_after` samples, (n,) bool."""
        return self.since >= self.config.dead_after

    def _saw(self, active: torch.Tensor, samples: int) -> None:
        self.since += samples
        self.since[active] = 0

    def _set_threshold(self, smallest: torch.Tensor) -> None:
        self.sae.threshold.lerp_(smallest, self.threshold_rate if self.done > 1 else 1.0)

    def _auxiliary_rows(self, n_dead: int, batch: int) -> int:
        """Samples that the auxiliary loss is taken over: five products with the dead features."""
        n = self.sae.config.d_sae
        return min(batch, max(64, int(AUXILIARY_SHARE / 5 * batch * n / n_dead)))

    def _auxiliary(
        self, inputs: torch.Tensor, residual: torch.Tensor, dead: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Loss of dead features that try to explain what is left over (Gao et al.), and gradients.

        Parameters
        ----------
        inputs, residual : Tensor of shape (rows, d)
            What the encoder reads; target minus reconstruction.
        dead : Tensor of shape (D,), int64

        Returns
        -------
        loss, and gradients by the dead features' W_enc, W_dec (D, d) and b_enc (D,)
        """
        sae = self.sae
        rows = [p.detach()[dead].requires_grad_() for p in (sae.W_enc, sae.W_dec, sae.b_enc)]
        encoder, decoder, bias = rows
        with torch.enable_grad(), self._autocast():
            f = F.linear(inputs, encoder, bias).relu()
            k = max(1, sae.config.d_in // 2)
            if len(dead) > k:
                values, indices = f.topk(k, dim=-1)
                f = torch.zeros_like(f).scatter(-1, indices, values)
            error = residual - f @ decoder
            loss = self.config.auxiliary * error.float().square().sum(-1).mean()
        gradients = torch.autograd.grad(loss, rows)
        return loss.detach(), *(g.float() for g in gradients)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _rates(self, rate: float) -> tuple[float, float]:
        """Adam's rate over its first bias correction, and the inverse root of its second."""
        beta1, beta2 = self.config.betas
        return rate / (1 - beta1**self.done), (1 - beta2**self.done) ** -0.5

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, beside the SAE's own tensors."""
        return {"done": torch.tensor(self.done), "since": self.since}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state`; the SAE's tensors have been loaded before."""
        self.done = int(state["done"])
        self.since.copy_(state["since"])


def step_for(sae: SAE, config: TrainConfig, precision: str, reference: bool = False) -> Step:
    """The fastest step there is for an architecture and device; the dense one as `reference`."""
    if reference or sae.config.architecture not in K_SPARSE:
        return DenseStep(sae, config, precision)
    if sae.W_enc.device.type == "cpu" and sae.config.d_in % 2 == 0:
        return SparseStep(sae, config, precision)
    return TorchSparseStep(sae, config, precision)


# -- dense -----------------------------------------------------------------------------------------


class _Jump(torch.autograd.Function):
    """z where z exceeds θ, with the paper's pseudo-derivative by θ (a rectangle of width ε)."""

    @staticmethod
    def forward(ctx, z, threshold, width):
        ctx.save_for_backward(z, threshold)
        ctx.width = width
        return z * (z > threshold)

    @staticmethod
    def backward(ctx, gradient):
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.width / 2).to(z.dtype)
        by_threshold = -(threshold / ctx.width) * near * gradient
        return gradient * (z > threshold), by_threshold.flatten(0, -2).sum(0), None


class _Over(torch.autograd.Function):
    """1 where z exceeds θ: the count whose mean is L0, with a pseudo-derivative by θ alone."""

    @staticmethod
    def forward(ctx, z, threshold, width):
        ctx.save_for_backward(z, threshold)
        ctx.width = width
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx, gradient):
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.width / 2).to(z.dtype)
        return None, (-(1 / ctx.width) * near * gradient).flatten(0, -2).sum(0), None


def batch_top_k(z: torch.Tensor, k: int) -> torch.Tensor:
    """The k · B largest positive entries of z, (B, n), and zeros."""
    flat = z.relu().flatten()
    values, indices = flat.topk(min(k * len(z), flat.numel()))
    return torch.zeros_like(flat).scatter(0, indices, values).view_as(z)


class DenseStep(Step):
    """Autograd and torch's Adam. Slow, short, and right by inspection."""

    def __init__(self, sae: SAE, config: TrainConfig, precision: str) -> None:
        super().__init__(sae, config, precision)
        self.adam = torch.optim.Adam(
            sae.parameters(), lr=0.0, betas=config.betas, eps=config.eps, fused=True
        )

    def __call__(self, x: torch.Tensor, rate: float, penalty: float = 0.0) -> Measured:
        sae, config = self.sae, self.sae.config
        total = mse = l0 = 0.0
        smallest, active = None, torch.zeros_like(self.since, dtype=torch.bool)
        dead = self.dead.nonzero()[:, 0]
        helped = 0
        if config.architecture in K_SPARSE and self.config.auxiliary and len(dead):
            helped = self._auxiliary_rows(len(dead), len(x))
        inputs, residual = [], []
        self.adam.zero_grad()
        # A part at a time fits a processor's cache; the k B largest of a batch need it whole.
        whole = config.architecture in BATCHED or self.device.type != "cpu"
        for part in x.split(len(x) if whole else ROWS // 2):
            target = part * sae.scale
            with self._autocast():
                loss, f, said = self._objective(target, penalty)
            (loss * (len(part) / len(x))).backward()
            f, error = f.detach(), target - said.detach()
            total += loss.item() * len(part) / len(x)
            mse += _square(error).item() * len(part) / len(x)
            on = f > 0
            l0 += on.sum().item() / len(x)
            active |= on.any(0)
            if config.architecture in BATCHED and on.any():
                smallest = f[on].min()
            if sum(map(len, inputs)) < helped:
                inputs.append(target - config.apply_b_dec_to_input * sae.b_dec.detach())
                residual.append(error)
        if helped:
            more, *extra = self._auxiliary(
                torch.cat(inputs)[:helped], torch.cat(residual)[:helped], dead
            )
            total += more.item()
            for p, g in zip((sae.W_enc, sae.W_dec, sae.b_enc), extra, strict=True):
                p.grad[dead] += g
        if not np.isfinite(total):
            raise Diverged
        self.done += 1
        with torch.no_grad():
            if config.unit_norm:
                along = (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True)
                sae.W_dec.grad -= along * sae.W_dec
            for group in self.adam.param_groups:
                group["lr"] = rate
            self.adam.step()
            if config.unit_norm:
                sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))
            if config.architecture == "jumprelu":
                sae.jump.clamp_(min=0)
            self._saw(active, len(x))
            if smallest is not None:
                self._set_threshold(smallest)
        return Measured(total, mse, l0)

    def _objective(self, target: torch.Tensor, penalty: float):
        """Loss a sample, activations (B, n), reconstruction (B, d), for scaled activations."""
        sae, config = self.sae, self.sae.config
        kind = config.architecture
        inputs = target - sae.b_dec if config.apply_b_dec_to_input else target
        z = F.linear(inputs, sae.W_enc).float() + sae.b_enc
        if kind == "topk":
            f = sae.activate(z)
        elif kind in BATCHED:
            f = batch_top_k(z, config.k)
        elif kind == "jumprelu":
            f = _Jump.apply(z, sae.jump, self.config.bandwidth)
        else:
            f = sae.activate(z)
        if kind == "matryoshka":
            loss, said, start = 0.0, sae.b_dec, 0
            for stop in config.prefixes:
                said = said + (f[:, start:stop] @ sae.W_dec[start:stop]).float()
                loss = loss + _square(said - target) / len(config.prefixes)
                start = stop
            return loss, f, said
        said = (f @ sae.W_dec).float() + sae.b_dec
        loss = _square(said - target)
        lengths = 1.0 if config.unit_norm else sae.W_dec.norm(dim=1)
        if kind == "standard":
            loss = loss + penalty * (f * lengths).sum(-1).mean()
        elif kind == "rmsnorm":
            loss = loss + penalty * z.relu().sum(-1).mean()
        elif kind == "jumprelu" and self.config.penalty == "tanh":
            loss = loss + penalty * torch.tanh(4 * f * lengths).sum(-1).mean()
        elif kind == "jumprelu":
            over = _Over.apply(z, sae.jump, self.config.bandwidth)
            loss = loss + penalty * over.sum(-1).mean()
        elif kind == "gated":
            gate = z.relu()
            # A reconstruction from the gate alone keeps it informed; it must not bend the decoder.
            frozen = (gate @ sae.W_dec.detach()).float() + sae.b_dec.detach()
            loss = loss + penalty * (gate * lengths).sum(-1).mean() + _square(frozen - target)
        return loss, f, said

    def state(self) -> dict[str, torch.Tensor]:
        kept = super().state()
        for name, p in self.sae.named_parameters():
            for key, value in self.adam.state[p].items():
                kept[f"adam.{name}.{key}"] = value
        return kept

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        for name, p in self.sae.named_parameters():
            start = f"adam.{name}."
            self.adam.state[p] = {
                key.removeprefix(start): value.clone()
                for key, value in state.items()
                if key.startswith(start)
            }


def _square(error: torch.Tensor) -> torch.Tensor:
    return error.square().sum(-1).mean()


# -- sparse, on a CPU ------------------------------------------------------------------------------


class _Rows:
    """Float32 rows, or packed ones (see `kernels`), as numba and as torch see them.

    Attributes
    ----------
    array : ndarray of shape (rows, d) float32, or (rows, d // 2) uint32
    tensor : Tensor of shape (rows, d), float32, or bfloat16 with its columns permuted
        The same memory.
    """

    def __init__(self, rows: int, d: int, packed: bool) -> None:
        self.packed = packed
        if packed:
            self.array = np.empty((rows, d // 2), np.uint32)
            self.tensor = torch.from_numpy(self.array.view(np.int32)).view(torch.bfloat16)
        else:
            self.array = np.empty((rows, d), np.float32)
            self.tensor = torch.from_numpy(self.array)

    def sums(self, which: torch.Tensor, weights: torch.Tensor, bags: torch.Tensor) -> np.ndarray:
        """Σ weights[j] · rows[which[j]] of each bag of pairs; packed where the rows are."""
        first, last = int(bags[0]), int(bags[-1])
        if first == last:
            return np.zeros((len(bags) - 1, self.array.shape[1]), self.array.dtype)
        sums = F.embedding_bag(
            which[first:last], self.tensor, bags - first if first else bags, mode="sum",
            per_sample_weights=weights[first:last].to(self.tensor.dtype), include_last_offset=True,
        )  # fmt: skip
        return sums.view(torch.int32).numpy().view(np.uint32) if self.packed else sums.numpy()

    def floats(self) -> torch.Tensor:
        """A copy as float32, columns in order."""
        if not self.packed:
            return self.tensor.clone()
        return torch.cat([self.tensor[:, 0::2], self.tensor[:, 1::2]], dim=1).float()


class SparseStep(Step):
    """The loops of `kernels`, shared among as many threads as torch uses."""

    def __init__(self, sae: SAE, config: TrainConfig, precision: str) -> None:
        super().__init__(sae, config, precision)
        from musae_utils.sae import kernels  # numba takes a moment to import

        self.kernels = kernels
        n, d = sae.config.d_sae, sae.config.d_in
        self.packed = precision == "bf16"
        self.encoder, self.decoder = sae.W_enc.detach().numpy(), sae.W_dec.detach().numpy()
        self.bias, self.b_dec = sae.b_enc.detach().numpy(), sae.b_dec.detach().numpy()
        self.moments = {
            f"{order}_{name}": np.zeros(shape if kept else [0] * len(shape), np.float32)
            for order, kept in (("m", config.betas[0] > 0), ("v", True))
            for name, shape in (("encoder", (n, d)), ("decoder", (n, d)), ("bias", (n,)))
        }
        self.b_dec_moments = torch.zeros(2, d)
        self.stepped = np.zeros(n, np.int64)
        self.ends = np.array(sae.config.prefixes or (n,), np.int64)
        self.floor = None  # of candidates in batch top-k
        # What products and sums read: bfloat16 copies, or the weights themselves.
        self.read = [_Rows(n if self.packed else 0, d, self.packed) for _ in range(2)]
        if not self.packed:
            for rows, weights in zip(self.read, (self.encoder, self.decoder), strict=True):
                rows.array, rows.tensor = weights, torch.from_numpy(weights)
        self.threads = _threads(torch.get_num_threads())
        self.rows = ROWS if self.threads.pool is None else ROWS // 4
        self._buffers: dict[str, tuple] = {}
        self._refresh()

    def _refresh(self) -> None:
        if self.packed:
            for rows, weights in zip(self.read, (self.encoder, self.decoder), strict=True):
                self.kernels.pack(weights, rows.array, 0, len(weights))

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Memory that is kept from step to step."""
        if name not in self._buffers or self._buffers[name][0] != shape:
            self._buffers[name] = shape, np.empty(shape, dtype)
        return self._buffers[name][1]

    def _rows(self, name: str, rows: int) -> _Rows:
        if name not in self._buffers or self._buffers[name][0] != rows:
            self._buffers[name] = rows, _Rows(rows, self.sae.config.d_in, self.packed)
        return self._buffers[name][1]

    def __call__(self, x: torch.Tensor, rate: float, penalty: float = 0.0) -> Measured:
        sae, kernels, size = self.sae, self.kernels, self.rows
        batch, d = x.shape
        n, groups = sae.config.d_sae, len(self.ends)
        values, scale = x.numpy(), np.float32(sae.scale)
        centre = self.b_dec if sae.config.apply_b_dec_to_input else np.zeros(d, np.float32)
        chunks = [(first, min(first + size, batch)) for first in range(0, batch, size)]

        inputs = self._rows("inputs", batch)
        start, index, value, smallest = self._select(values, scale, centre, inputs, chunks)
        bags = start
        if groups > 1:
            bags = np.empty(batch * groups + 1, np.int32)
            kernels.by_group(start, index, value, self.ends, bags)

        most = (max(len(index), batch * sae.config.k),)
        errors = self._rows("errors", batch * groups)
        slope = self._buffer("slope", most, np.float32)[: len(index)]
        loss = self._buffer("loss", (batch, 2), np.float32)
        totals = np.zeros((len(chunks), d), np.float32)
        pairs = torch.from_numpy(index), torch.from_numpy(value)
        bag_ends = torch.from_numpy(bags)

        def decode(first: int, last: int) -> None:
            said = self.read[1].sums(*pairs, bag_ends[first * groups : last * groups + 1])
            kernels.take_back(
                values, scale, self.b_dec, said, first, self.read[1].array, bags, index, groups,
                first, last, errors.array, slope, loss, totals[first // size],
            )  # fmt: skip

        self.threads(decode, chunks)
        total, mse = loss.mean(0, dtype=np.float64)

        extra, of_dead = (np.zeros(0, np.bool_), np.zeros(0, np.float32)), None
        dead = self.dead.nonzero()[:, 0]
        if self.config.auxiliary and len(dead):
            more, of_dead, extra = self._of_dead(dead, inputs, errors, batch)
            total += more
        if not np.isfinite(total):
            raise Diverged

        self.done += 1
        begin = self._buffer("begin", (n + 1,), np.int32)
        bag = self._buffer("bag", most, np.int32)
        sorted_value = self._buffer("sorted_value", most, np.float32)
        sorted_slope = self._buffer("sorted_slope", most, np.float32)
        kernels.by_feature(bags, index, value, slope, begin, bag, sorted_value, sorted_slope)
        of_errors = torch.from_numpy(bag), torch.from_numpy(sorted_value)
        sample = of_errors[0] // groups if groups > 1 else of_errors[0]
        of_inputs = sample, torch.from_numpy(sorted_slope)
        feature_ends = torch.from_numpy(begin)
        half = np.float32(2 / batch)
        beta1, beta2 = map(np.float32, self.config.betas)
        step_rate, correction = map(np.float32, self._rates(rate))
        span = max(32, RANGE // d)
        parts = [(first, min(first + span, n)) for first in range(0, n, span)]
        back = np.zeros((len(parts), d if sae.config.apply_b_dec_to_input else 0), np.float32)
        copies = [rows.array if self.packed else np.zeros((0, 0), np.uint32) for rows in self.read]
        m = self.moments

        def update(first: int, last: int) -> None:
            here = feature_ends[first : last + 1]
            by_encoder, by_decoder = inputs.sums(*of_inputs, here), errors.sums(*of_errors, here)
            if of_dead is not None:
                features, more_encoder, more_decoder = of_dead
                a, b = np.searchsorted(features, (first, last))
                kernels.add_rows(by_encoder, features[a:b] - first, more_encoder[a:b], 1 / half)
                kernels.add_rows(by_decoder, features[a:b] - first, more_decoder[a:b], 1 / half)
            kernels.update(
                first, last, begin, sorted_value, sorted_slope, by_encoder, by_decoder, half,
                self.encoder, self.decoder, self.bias, *copies,
                m["m_encoder"], m["m_decoder"], m["m_bias"],
                m["v_encoder"], m["v_decoder"], m["v_bias"], self.stepped, *extra,
                self.done, beta1, beta2, step_rate, correction, np.float32(self.config.eps),
                sae.config.unit_norm, back[first // span],
            )  # fmt: skip

        self.threads(update, parts)
        gradient = totals.sum(0) * half - (back.sum(0) if back.size else 0)
        self._move_b_dec(torch.from_numpy(gradient), step_rate, correction)
        self._saw(torch.from_numpy(begin[1:] > begin[:-1]), batch)
        if smallest is not None:
            self._set_threshold(torch.tensor(float(smallest)))
        return Measured(float(total), float(mse), float(begin[-1]) / batch)

    @torch.no_grad()
    def _move_b_dec(self, gradient: torch.Tensor, rate: float, correction: float) -> None:
        beta1, beta2 = self.config.betas
        first, second = self.b_dec_moments
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self.sae.b_dec.sub_(rate * first / (second.sqrt() * correction + self.config.eps))

    def _product(self, inputs: _Rows, first: int, last: int) -> np.ndarray:
        """Pre-activations without bias of some samples: float32, or the bits of bfloat16."""
        mine, shape = vars(self.threads.local), (self.rows, self.sae.config.d_sae)
        name = f"{shape} {self.packed}"
        if name not in mine:
            out = torch.empty(shape, dtype=torch.bfloat16 if self.packed else torch.float32)
            mine[name] = out, (out.view(torch.uint16) if self.packed else out).numpy()
        out, array = mine[name]
        torch.mm(inputs.tensor[first:last], self.read[0].tensor.T, out=out[: last - first])
        return array[: last - first]

    def _select(self, values, scale, centre, inputs: _Rows, chunks: list[tuple[int, int]]):
        """Active pairs: where each sample's begin, features, values, and the smallest of them."""
        sae, kernels = self.sae, self.kernels
        batch, k, n = len(values), sae.config.k, sae.config.d_sae
        blocks = max(k, min(n, 1 << max(6, int(np.ceil(np.log2(np.sqrt(k * n)))))))
        if sae.config.architecture == "topk":
            index = self._buffer("index", (batch, k), np.int32)
            value = self._buffer("value", (batch, k), np.float32)

            def select(first: int, last: int) -> None:
                kernels.prepare(values, scale, centre, inputs.array, first, last)
                pre = self._product(inputs, first, last)
                kernels.top_k(pre, self.bias, k, blocks, 0, last - first, first, index, value)

            self.threads(select, chunks)
            start = np.arange(0, k * batch + 1, k, dtype=np.int32)
            return start, index.ravel(), value.ravel(), None

        kernels.prepare(values, scale, centre, inputs.array, 0, batch)
        if self.floor is None:
            z = torch.from_numpy(self._product(inputs, *chunks[0]))
            z = (z.view(torch.bfloat16).float() if self.packed else z) + sae.b_enc.detach()
            z = z.relu().flatten()
            least = max(1, z.numel() - k * chunks[0][1])
            self.floor = 0.8 * float(z.kthvalue(least).values)
        while True:
            found: dict[int, tuple] = {}

            def collect(first: int, last: int) -> None:
                pre = self._product(inputs, first, last)
                count, room = np.empty(last - first, np.int64), 2 * k * (last - first)
                while True:
                    index, value = np.empty(room, np.int32), np.empty(room, np.float32)
                    total = kernels.above(
                        pre, self.bias, np.float32(self.floor), blocks, 0, last - first,
                        count, index, value,
                    )  # fmt: skip
                    if total <= room:
                        break
                    room = total
                found[first] = count, index[:total], value[:total]  # noqa: B023

            self.threads(collect, chunks)
            count, index, value = (
                np.concatenate(arrays)
                for arrays in zip(*(found[first] for first, _ in chunks), strict=True)
            )
            if len(index) >= k * batch or self.floor == 0:
                break
            self.floor = self.floor / 2 if self.floor > 1e-6 else 0.0
        smallest = kernels.keep_largest(count, index, value, k * batch)
        self.floor = 0.9 * float(smallest)
        start = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
        return start, index[: start[-1]], value[: start[-1]], smallest if start[-1] else None

    def _of_dead(self, dead, inputs: _Rows, errors: _Rows, batch: int):
        rows, groups = self._auxiliary_rows(len(dead), batch), len(self.ends)
        residual = -groups * errors.floats()[groups - 1 : rows * groups : groups]
        loss, *by = self._auxiliary(inputs.floats()[:rows], residual, dead)
        encoder, decoder, bias = (g.numpy() for g in by)
        extra = self.dead.numpy(), np.zeros(self.sae.config.d_sae, np.float32)
        extra[1][dead.numpy()] = bias
        return float(loss), (dead.numpy(), encoder, decoder), extra

    def state(self) -> dict[str, torch.Tensor]:
        kept = super().state() | {
            "b_dec_moments": self.b_dec_moments, "stepped": torch.from_numpy(self.stepped),
            "floor": torch.tensor(-1.0 if self.floor is None else self.floor, dtype=torch.float64),
        }  # fmt: skip
        return kept | {k: torch.from_numpy(v) for k, v in self.moments.items() if v.size}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.b_dec_moments.copy_(state["b_dec_moments"])
        self.stepped[:] = state["stepped"].numpy()
        self.floor = None if state["floor"] < 0 else float(state["floor"])
        for name, moments in self.moments.items():
            if moments.size:
                moments[:] = state[name].numpy()
        self._refresh()


class _Threads:
    """Runs a function over ranges of rows, on several threads where torch has several.

    Each thread multiplies its own rows: one pool, and no second one of torch's that spins beside.
    """

    def __init__(self, count: int) -> None:
        self.local = threading.local()  # memory of each thread
        self.pool = None
        if count > 1:
            self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
            list(self.pool.map(time.sleep, [0.01] * count))
            torch.set_num_threads(count)  # the setting is of the calling thread, but is reported

    def __call__(self, function: Callable, ranges: Iterable[tuple[int, int]]) -> None:
        if self.pool is None:
            for first, last in ranges:
                function(first, last)
        else:
            for done in [self.pool.submit(function, *one) for one in ranges]:
                done.result()


_threads = cache(_Threads)  # shared by the SAEs of a sweep


# -- sparse, anywhere ------------------------------------------------------------------------------


class TorchSparseStep(Step):
    """The same step from torch's operators, on any device.

    A sum of decoder rows is an embedding bag, of one bag a sample; a feature's gradient is one too,
    of one bag a feature, over the samples in which it is active. Neither builds a row a pair, or a
    gradient of features that were not active.
    """

    def __init__(self, sae: SAE, config: TrainConfig, precision: str) -> None:
        super().__init__(sae, config, precision)
        self.first = {n: torch.zeros_like(p) for n, p in self._moved() if config.betas[0] > 0}
        self.second = {n: torch.zeros_like(p) for n, p in self._moved()}
        self.stepped = torch.zeros_like(self.since)

    def _moved(self):
        return [(n, getattr(self.sae, n).detach()) for n in ("W_enc", "W_dec", "b_enc", "b_dec")]

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, rate: float, penalty: float = 0.0) -> Measured:
        sae, config = self.sae, self.sae.config
        batch, n, k = len(x), config.d_sae, config.k
        target = x * sae.scale
        inputs = target - sae.b_dec if config.apply_b_dec_to_input else target
        with self._autocast():
            z = F.linear(inputs, sae.W_enc).float() + sae.b_enc
        smallest = None
        if config.architecture == "topk":
            value, index = z.topk(k, dim=-1)
            sample = torch.arange(batch, device=z.device).repeat_interleave(k)
            value, index = value.flatten(), index.flatten()
        else:
            value, place = z.flatten().topk(k * batch)
            order = place.argsort()
            value, place = value[order], place[order]
            sample, index = place // n, place % n
        del z
        active = value > 0
        sample, index, value = sample[active], index[active], value[active]
        if config.architecture != "topk" and len(value):
            smallest = value.min()
        starts = torch.searchsorted(sample, torch.arange(batch, device=x.device))

        prefixes = config.prefixes or (n,)
        value.requires_grad_()
        groups = len(prefixes)
        said, errors, loss, start = sae.b_dec.detach(), [], 0.0, 0
        with torch.enable_grad():
            for stop in prefixes:
                inside = (index >= start) & (index < stop)
                said = said + F.embedding_bag(
                    index, sae.W_dec.detach(), starts, mode="sum",
                    per_sample_weights=value * inside if groups > 1 else value,
                )  # fmt: skip
                errors.append(said - target)
                loss = loss + _square(errors[-1]) / groups
                start = stop
        (slope,) = torch.autograd.grad(loss, value)
        value = value.detach()
        errors = [e.detach() for e in errors]
        total, mse = loss.item(), _square(errors[-1]).item()

        dead = self.dead.nonzero()[:, 0]
        extra = None
        if self.config.auxiliary and len(dead):
            rows = self._auxiliary_rows(len(dead), batch)
            more, *extra = self._auxiliary(inputs[:rows], -errors[-1][:rows], dead)
            total += more.item()
        if not np.isfinite(total):
            raise Diverged

        self.done += 1
        order = index.argsort(stable=True)
        sample, value, slope = sample[order], value[order], slope[order]
        features, counts = index[order].unique_consecutive(return_counts=True)
        bags = counts.cumsum(0) - counts
        half = 2 / batch

        def summed(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return F.embedding_bag(sample, rows, bags, mode="sum", per_sample_weights=weights)

        by_encoder = summed(inputs, slope)
        by_bias = torch.zeros_like(features, dtype=x.dtype).index_add_(
            0, torch.repeat_interleave(counts), slope
        )
        for g in range(groups - 2, -1, -1):  # what group g adds enters all later reconstructions
            errors[g] = errors[g] + errors[g + 1]
        if groups == 1:
            by_decoder = summed(errors[0], value) * half
        else:
            group = torch.searchsorted(
                torch.tensor(prefixes, device=x.device), features, right=True
            )
            by_decoder = torch.zeros_like(by_encoder)
            for g in range(groups):
                by_decoder[group == g] = summed(errors[g], value)[group == g] * half / groups
        by_b_dec = errors[0].sum(0) * half / groups
        if config.apply_b_dec_to_input:
            by_b_dec = by_b_dec - by_bias @ sae.W_enc[features]

        if self.first:  # with momentum all rows move
            every = torch.arange(n, device=x.device)
            by_encoder, by_decoder, by_bias = (
                torch.zeros(n, *g.shape[1:], device=x.device).index_add_(0, features, g)
                for g in (by_encoder, by_decoder, by_bias)
            )
            features = every
        if extra is not None:
            features, by_encoder, by_decoder, by_bias = _merged(
                (features, by_encoder, by_decoder, by_bias), (dead, *extra)
            )
        if config.unit_norm:
            rows = sae.W_dec[features]
            by_decoder = by_decoder - (by_decoder * rows).sum(1, keepdim=True) * rows
        self._adam("W_enc", features, by_encoder, rate)
        self._adam("W_dec", features, by_decoder, rate)
        self._adam("b_enc", features, by_bias, rate)
        self._adam("b_dec", None, by_b_dec, rate)
        self.stepped[features] = self.done
        if config.unit_norm:
            sae.W_dec[features] = F.normalize(sae.W_dec[features], dim=1)

        fired = torch.zeros(n, dtype=torch.bool, device=x.device)
        fired[index] = True
        self._saw(fired, batch)
        if smallest is not None:
            self._set_threshold(smallest)
        return Measured(total, mse, len(index) / batch)

    def _adam(self, name: str, rows, gradient: torch.Tensor, rate: float) -> None:
        beta1, beta2 = self.config.betas
        rate, correction = self._rates(rate)
        weights, second = getattr(self.sae, name).detach(), self.second[name]
        if rows is None:
            rows, keep = slice(None), beta2
        else:  # rows left alone since their last step make up for the decay
            keep = beta2 ** (self.done - self.stepped[rows]).to(gradient.dtype)
            keep = keep.view(-1, *[1] * (gradient.ndim - 1))
        v = second[rows] * keep + (1 - beta2) * gradient.square()
        second[rows] = v
        move = gradient
        if self.first:
            move = torch.lerp(self.first[name][rows], gradient, 1 - beta1)
            self.first[name][rows] = move
        weights[rows] -= rate * move / (v.sqrt() * correction + self.config.eps)

    def state(self) -> dict[str, torch.Tensor]:
        kept = super().state() | {"stepped": self.stepped}
        kept |= {f"m.{name}": value for name, value in self.first.items()}
        return kept | {f"v.{name}": value for name, value in self.second.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.stepped.copy_(state["stepped"])
        for start, moments in (("m.", self.first), ("v.", self.second)):
            for name, value in moments.items():
                value.copy_(state[start + name])


def _merged(first: tuple, second: tuple) -> tuple:
    """Gradients of two sets of features, (indices, rows, …) each, as those of their union."""
    features, place = torch.cat([first[0], second[0]]).unique(return_inverse=True)
    out = [features]
    for a, b in zip(first[1:], second[1:], strict=True):
        rows = torch.cat([a, b])
        out.append(rows.new_zeros(len(features), *rows.shape[1:]).index_add_(0, place, rows))
    return tuple(out)


# -- precision -------------------------------------------------------------------------------------


@cache
def bfloat16_pays(device: str = "cpu") -> bool:
    """Whether products in bfloat16 are faster here than in float32. Measured once, in 0.1 s."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE") == "STRICT":
        return False
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.zeros(256, 512, dtype=dtype), torch.zeros(2048, 512, dtype=dtype)
        spent = []
        for _ in range(4):
            start = time.perf_counter()
            a @ b.T
            spent.append(time.perf_counter() - start)
        times[dtype] = min(spent)
    return times[torch.bfloat16] < 0.8 * times[torch.float32]
