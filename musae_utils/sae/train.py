"""Training SAEs: schedules, checkpoints, sweeps that share one pass over the data (notebook 06).

The loss of a sample is the squared distance of reconstruction and target, plus a sparsity penalty
where the architecture has one (λ times the L1 norm of f weighted by decoder lengths, or L0), plus
the auxiliary loss of dead features; a batch's loss is the mean over its samples.

Everything that decides a result is in `TrainConfig` and the data: a training that is killed and run
again goes on from its last checkpoint and ends with the same weights, bit for bit, on the same
machine with as many threads.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from musae_utils.runs import Run, RunError
from musae_utils.sae.architectures import (
    K_SPARSE,
    SAE,
    SAEConfig,
    _hook_point,
    _size,
    gigabytes,
    refuse_too_large,
)
from musae_utils.sae.steps import DenseStep, Diverged, bfloat16_pays, step_for

FIRST = 4096  # samples that b_dec and scale are taken from, where there are as many
CHECKPOINT = "checkpoint.safetensors"

Data = torch.Tensor | np.ndarray | Iterable[torch.Tensor] | Callable[[int], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class TrainConfig:
    """How an SAE is trained.

    Raises
    ------
    ValueError
        A value that no training can use.
    """

    sae: SAEConfig
    """What is trained."""
    steps: int
    """Batches to learn from."""
    batch_size: int = 2048
    """Samples a batch. The same for all SAEs of a sweep."""
    lr: float = 3e-4
    """Learning rate of Adam, after warm-up and before decay."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Of Adam. With a first one of 0 features that are not active need no work."""
    eps: float = 1e-8
    """Of Adam."""
    warmup: int = 0
    """Steps in which the rate rises linearly from 0."""
    decay: float = 0.2
    """Share of the steps, at the end, in which the rate falls linearly to 0."""
    sparsity: float = 0.0
    """Coefficient λ of the sparsity penalty; k-sparse architectures have none."""
    sparsity_warmup: int = 0
    """Steps in which λ rises linearly from 0."""
    penalty: str = "l0"
    """``jumprelu``: "l0", or "tanh" of four times the activation."""
    bandwidth: float = 0.05
    """``jumprelu``: width of the pseudo-derivative around a threshold, in scaled units."""
    threshold: float = 0.05
    """``jumprelu``: first threshold."""
    auxiliary: float = 1 / 32
    """Weight of the auxiliary loss of dead features; k-sparse architectures only."""
    dead_after: int = 1_000_000
    """Samples without activity after which a feature counts as dead."""
    b_dec: str = "geometric_median"
    """What b_dec begins as: also "mean" or "zero"."""
    tied: bool = True
    """Whether the encoder begins as the decoder's transpose."""
    scaled: bool = True
    """Whether activations are scaled to a root mean square of 1; the scale stays with the SAE."""
    precision: str = "auto"
    """Of matrix products: "bf16", "fp32", or whichever is faster here."""
    seed: int = 42
    """Of the starting weights."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("dead_after", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} is a whole number from {least} on, not {value!r}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr is a positive learning rate, not {self.lr!r}.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is a share of the steps, from 0 to 1, not {self.decay!r}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas lie from 0 to below 1: {self.betas!r} do not.")
        if self.sparsity < 0 or self.auxiliary < 0:
            raise ValueError("sparsity and auxiliary are weights of a loss, from 0 on.")
        if self.sparsity and self.sae.architecture in K_SPARSE:
            raise ValueError(
                f"{self.sae.architecture!r} is as sparse as its k says; sparsity must be 0."
            )
        for name, known in (("penalty", ("l0", "tanh")), ("precision", ("auto", "bf16", "fp32")),
                            ("b_dec", ("geometric_median", "mean", "zero"))):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)}.")
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        decaying = round(self.decay * self.steps)
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = min(1.0, (self.steps - step) / (decaying + 1)) if decaying else 1.0
        return self.lr * min(rising, falling)

    def penalty_weight(self, step: int) -> float:
        """λ at a step, counted from 0."""
        rising = min(1.0, (step + 1) / self.sparsity_warmup) if self.sparsity_warmup else 1.0
        return self.sparsity * rising

    def memory(self, dense: bool = False) -> int:
        """Bytes that training takes, about."""
        matrices = 2 + (self.betas[0] > 0)  # weights, second moments, first moments
        n_bytes = self.sae.weights * (4 * matrices + 4)  # and bfloat16 copies, starting values
        if dense or self.sae.architecture not in K_SPARSE:
            n_bytes += 4 * self.sae.weights + 24 * self.batch_size * self.sae.d_sae
        return n_bytes


@dataclass
class Trained:
    """What a training came to.

    Attributes
    ----------
    sae : SAE
    config : TrainConfig
    history : list of dict
        One entry a logged step: step, loss, mse, fvu, l0, dead (features), rate, seconds.
    steps : int
        Steps made.
    ended : {"finished", "stopped", "diverged", "data ended"}
    """

    sae: SAE
    config: TrainConfig
    history: list[dict[str, Any]] = field(repr=False)
    steps: int
    ended: str


def train(
    configs: TrainConfig | Mapping[str, TrainConfig],
    data: Data,
    folder: str | Path | None = None,
    hook_point: Any = None,
    order: int = 0,
    device: str | torch.device = "cpu",
    reference: bool = False,
    stop: Callable[[], bool] | None = None,
    watch: Callable[[dict[str, list[dict]]], None] | None = None,
    log_every: int = 20,
    checkpoint_every: float = 300.0,
    progress: bool = True,
) -> Trained | dict[str, Trained]:
    """Train one SAE, or several on the same batches.

    Parameters
    ----------
    configs : TrainConfig, or dict of name to TrainConfig
        A sweep shares one pass over the data.
    data : Tensor or ndarray of shape (N, d); callable; or iterable of Tensor of shape (B, d)
        A tensor is shuffled anew for each pass over it. A callable is given the number of the
        pass, from 0, and returns its batches: ``lambda i: store.batches(layer, 2048, seed=i)``.
        An iterable that cannot be gone through again ends the training when it ends.
    folder : str or Path, optional
        A run folder (`runs.Run`): configuration, metrics, checkpoints and the SAEs, one
        ``<name>.safetensors`` each ("sae" where there is no name). Training goes on where it was.
    hook_point : mapping or `trace.HookPoint`, optional
        Where the activations come from; kept with the SAEs.
    order : int
        Seed of the order of a tensor's samples.
    device : str or torch.device
    reference : bool
        Dense activations and autograd instead of the fast steps (see `steps`).
    stop : callable, optional
        Asked between steps; once it says True, training ends as after an interrupt.
    watch : callable, optional
        Given the histories at every logged step, for a live plot.
    log_every : int
        Steps between entries of the history.
    checkpoint_every : float
        Seconds between checkpoints.
    progress : bool
        Show a progress bar, after a line on what the training will take.

    Returns
    -------
    Trained, or dict of name to Trained

    Raises
    ------
    ValueError
        Configurations that do not go together; activations of another width, with NaN, or none.
    MemoryError
        There is no room; nothing has been allocated.
    FloatingPointError
        Every SAE diverged. One of several that does is said in a warning, and kept as it last was.

    Notes
    -----
    Ctrl-C (the stop button of a notebook) ends the training after the current step: what was
    reached is checkpointed and returned. A second one interrupts at once.

    Examples
    --------
    >>> config = TrainConfig(SAEConfig(d_in=8, d_sae=32, k=4), steps=20, batch_size=64)
    >>> done = train(config, torch.randn(1000, 8), progress=False)
    >>> done.ended, done.history[-1]["l0"]
    ('finished', 4.0)
    """
    single = isinstance(configs, TrainConfig)
    named = {"sae": configs} if single else dict(configs)
    if not named:
        raise ValueError("There is nothing to train: no configuration was given.")
    for name, config in named.items():
        if not isinstance(config, TrainConfig):
            raise ValueError(f"{name!r} is not a TrainConfig but {config!r}.")
    for what in ("batch_size", "d_in"):
        sizes = {c.batch_size if what == "batch_size" else c.sae.d_in for c in named.values()}
        if len(sizes) > 1:
            raise ValueError(f"SAEs that share a pass share {what}; here it is {sorted(sizes)}.")
    device = torch.device(device)
    needed = sum(config.memory(reference) for config in named.values())
    told = ", ".join(sorted({_size(config.sae) for config in named.values()}))
    refuse_too_large(needed, f"Training {told}", device)
    session = _Session(named, data, hook_point, order, device, reference, log_every, watch)
    if progress:
        some = next(iter(named.values()))
        most = max(config.steps for config in named.values())
        tqdm.write(
            f"{len(named)} SAE{'s' * (len(named) > 1)} ({told}) on {most:,} × {some.batch_size:,} "
            f"activations: {gigabytes(needed)} of memory"
            + (f", {gigabytes(needed)} of disk" if folder is not None else "")
        )
    if folder is None:
        session.train(None, stop, checkpoint_every, progress)
    else:
        asked = {
            "sae": {name: dataclasses.asdict(config) for name, config in named.items()},
            "hook_point": _hook_point(hook_point), "order": order, "reference": reference,
        }  # fmt: skip
        with Run(folder, asked, order) as run:
            session.train(run, stop, checkpoint_every, progress)
    return session.results["sae"] if single else session.results


class _Session:
    """The SAEs of one training, their steps and histories."""

    def __init__(self, named, data, hook_point, order, device, reference, log_every, watch):
        self.configs: dict[str, TrainConfig] = named
        self.data, self.hook_point, self.order = data, hook_point, order
        self.device, self.reference = device, reference
        self.log_every, self.watch = log_every, watch
        self.step = 0
        self.steppers: dict[str, Any] = {}
        self.ended: dict[str, str] = {}
        self.precision: dict[str, str] = {}
        self.histories: dict[str, list[dict]] = {name: [] for name in named}
        self.level: dict[str, float] = {}  # running mean of the loss
        self.started = time.monotonic()

    @property
    def results(self) -> dict[str, Trained]:
        return {
            name: Trained(
                self.steppers[name].sae, config, self.histories[name],
                self.steppers[name].done, self.ended.get(name, "finished"),
            )
            for name, config in self.configs.items()
        }  # fmt: skip

    @property
    def active(self) -> list[str]:
        return [
            name for name, config in self.configs.items()
            if name not in self.ended and self.step < config.steps
        ]  # fmt: skip

    def train(self, run: Run | None, stop, checkpoint_every: float, progress: bool) -> None:
        if run is not None and self._resume(run):
            return
        batches = self._batches()
        last = max(config.steps for config in self.configs.values())
        some = next(iter(self.configs.values()))
        if not self.steppers:
            first = list(_some(batches, min(FIRST, last * some.batch_size)))
            if not first:
                raise ValueError("There are no activations to train on: the data are empty.")
            self._begin(torch.cat(first))
            batches = itertools.chain(first, batches)
        bar = tqdm(
            total=last * some.batch_size, initial=self.step * some.batch_size, unit="act",
            unit_scale=True, desc="training", disable=not progress, mininterval=0.5,
        )  # fmt: skip
        saved = time.monotonic()
        with bar, _Interrupt() as interrupt:
            while self.active:
                if interrupt.asked or (stop is not None and stop()):
                    self._end("stopped")
                    break
                x = next(batches, None)
                if x is None:
                    warnings.warn(
                        f"The data ended after {self.step:,} of {last:,} steps.", stacklevel=3
                    )
                    self._end("data ended")
                    break
                self._learn(x, run, bar)
                bar.update(len(x))
                if run is not None and time.monotonic() - saved > checkpoint_every:
                    self._checkpoint(run)
                    saved = time.monotonic()
        self._finish(run)

    # -- steps

    def _begin(self, x: torch.Tensor) -> None:
        """Starting weights, from the first activations."""
        for name, config in self.configs.items():
            sae = self._new(name, config)
            seen = x[: config.steps * config.batch_size].cpu()
            sae.initialise(
                torch.Generator().manual_seed(config.seed), seen, config.b_dec, config.tied,
                config.scaled, config.threshold,
            )  # fmt: skip
            self._add(name, sae.to(self.device))

    def _new(self, name: str, config: TrainConfig) -> SAE:
        precision = config.precision
        if precision == "auto":
            precision = "bf16" if bfloat16_pays(self.device.type) else "fp32"
        self.precision.setdefault(name, precision)
        return SAE(config.sae, self.hook_point, seed=None)

    def _add(self, name: str, sae: SAE) -> None:
        config, precision = self.configs[name], self.precision[name]
        self.steppers[name] = step_for(sae, config, precision, self.reference)

    def _learn(self, x: torch.Tensor, run: Run | None, bar: tqdm) -> None:
        x = x.to(self.device)
        logged = self.step % self.log_every == 0
        rows = []
        for name in self.active:
            config, stepper = self.configs[name], self.steppers[name]
            rate = config.rate(self.step)
            try:
                seen = stepper(x, rate, config.penalty_weight(self.step))
            except Diverged:
                self.ended[name] = "diverged"
                warnings.warn(
                    f"{name}: the loss is not a number at step {self.step:,}; the SAE is kept as "
                    f"it was before. Lower lr ({config.lr:g}) or warm up.", stacklevel=4,
                )  # fmt: skip
                if not [n for n in self.configs if self.ended.get(n) != "diverged"]:
                    raise FloatingPointError(
                        f"Training diverged at step {self.step:,}: lower lr ({config.lr:g}), or "
                        "look at the activations."
                    ) from None
                continue
            level = self.level.get(name)
            if level is not None and self.step > 100 and seen.loss > 3 * level:
                warnings.warn(
                    f"{name}: the loss rose from {level:.4g} to {seen.loss:.4g} at step "
                    f"{self.step:,}.", stacklevel=4,
                )  # fmt: skip
            self.level[name] = seen.loss if level is None else 0.98 * level + 0.02 * seen.loss
            if logged or self.step == config.steps - 1:
                spread = (x * stepper.sae.scale).var(0, correction=0).sum()
                row = {
                    "step": self.step, "loss": seen.loss, "mse": seen.mse,
                    "fvu": seen.mse / max(float(spread), 1e-30), "l0": seen.l0,
                    "dead": int(stepper.dead.sum()), "rate": rate,
                    "seconds": round(time.monotonic() - self.started, 3),
                }  # fmt: skip
                self.histories[name].append(row)
                rows.append((name, row))
        for name, row in rows:
            if run is not None:
                run.log(sae=name, **row)
        if rows:
            name, row = rows[0]
            more = f" ({name})" if len(self.configs) > 1 else ""
            bar.set_postfix_str(f"FVU {row['fvu']:.4f}, {row['dead']:,} dead{more}")
            if self.watch is not None:
                self.watch(self.histories)
        self.step += 1

    def _end(self, how: str) -> None:
        for name in self.active:
            self.ended[name] = how

    # -- data

    def _batches(self) -> Iterator[torch.Tensor]:
        """Checked float32 batches, from the current step on."""
        size = next(iter(self.configs.values())).batch_size
        width = next(iter(self.configs.values())).sae.d_in
        raw = _endless(self.data, size, self.order, self.step)
        for number, x in enumerate(raw, self.step):
            x = torch.as_tensor(x)
            if x.ndim != 2 or x.shape[1] != width:
                raise ValueError(
                    f"The activations have the shape {tuple(x.shape)}; the SAE reads batches of "
                    f"shape (B, {width})."
                )
            x = x.float().contiguous()
            if not torch.isfinite(x.sum()) and not x.isfinite().all():
                row = int((~x.isfinite()).any(1).nonzero()[0])
                raise ValueError(
                    f"Batch {number:,} of the activations holds NaN or infinite values, the first "
                    f"in row {row}: find out where they come from, and harvest again."
                )
            if len(x):
                yield x

    # -- checkpoints

    def _checkpoint(self, run: Run, finished: bool = False) -> None:
        from safetensors.torch import save_file

        tensors, about = {}, {"step": self.step, "ended": self.ended, "precision": self.precision}
        for name, stepper in self.steppers.items():
            for part, state in (("sae", stepper.sae.state_dict()), ("step", stepper.state())):
                for key, value in state.items():
                    tensors[f"{name}/{part}/{key}"] = value.detach().cpu().contiguous()
        about["finished"] = finished
        if finished:  # the SAEs are there: nothing is left to go on from
            tensors = {"none": torch.zeros(0)}
        metadata = {"musae_training": json.dumps(about)}
        run.save(CHECKPOINT, lambda path: save_file(tensors, path, metadata=metadata))

    def _resume(self, run: Run) -> bool:
        """Take up the run's last checkpoint; whether it was finished already."""
        from safetensors import SafetensorError, safe_open

        if not run.has(CHECKPOINT):
            run.rewind(-1)
            return False
        path = run.path(CHECKPOINT)
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["musae_training"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, KeyError, TypeError, ValueError):
            raise RunError(f"{path} is no checkpoint: delete {run.folder} to begin anew.") from None
        self.step, self.precision = about["step"], about["precision"]
        self.ended = {k: v for k, v in about["ended"].items() if v != "stopped"}
        run.rewind(self.step - 1)
        for row in run.metrics():
            name = row.pop("sae")
            self.histories[name].append(row)
        if about["finished"]:
            for name, config in self.configs.items():
                sae = SAE.load(run.path(f"{name}.safetensors"), self.device)
                stepper = DenseStep(sae, config, "fp32")  # holds the SAE; makes no more steps
                stepper.done = sae.provenance["steps"]
                self.steppers[name] = stepper
            return True
        for name, config in self.configs.items():
            sae = self._new(name, config)
            start = f"{name}/sae/"
            state = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            sae.load_state_dict(state)
            self._add(name, sae.to(self.device))
            start = f"{name}/step/"
            self.steppers[name].load(
                {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            )
        return False

    def _finish(self, run: Run | None) -> None:
        for name, result in self.results.items():
            config = {k: v for k, v in dataclasses.asdict(result.config).items() if k != "sae"}
            dead = int(self.steppers[name].dead.sum())
            result.sae.provenance = {
                "train": config, "steps": result.steps, "ended": result.ended,
                "precision": self.precision[name], "dead": dead, "order": self.order,
                "last": self.histories[name][-1] if self.histories[name] else None,
            }  # fmt: skip
            if dead > 0.1 * result.config.sae.d_sae:
                warnings.warn(
                    f"{name}: {dead:,} of {result.config.sae.d_sae:,} features are dead: not one "
                    f"was active in the last {result.config.dead_after:,} samples or more.",
                    stacklevel=4,
                )
            if run is not None:
                run.save(f"{name}.safetensors", result.sae.save)
        if run is not None:
            self._checkpoint(run, not self.active and "stopped" not in self.ended.values())


def _endless(data: Data, size: int, order: int, skip: int) -> Iterator[torch.Tensor]:
    """Batches, pass after pass, without the first `skip`."""
    if isinstance(data, (torch.Tensor, np.ndarray)):
        data = torch.as_tensor(data)
        if data.ndim != 2 or not len(data):
            raise ValueError(
                f"Activations are a matrix (N, d) with N > 0; given was one of {tuple(data.shape)}."
            )
        a_pass = max(1, len(data) // size)
        for number in itertools.count(skip // a_pass):
            rng = np.random.default_rng([order, number])
            shuffled = torch.from_numpy(rng.permutation(len(data)))
            for i in range(skip % a_pass if number == skip // a_pass else 0, a_pass):
                yield data[shuffled[i * size : (i + 1) * size]]
    again = callable(data)
    for number in itertools.count():
        empty = True
        for x in data(number) if again else data:
            empty = False
            if skip:
                skip -= 1
            else:
                yield x
        if empty or not again:
            return


def _some(batches: Iterator[torch.Tensor], samples: int) -> Iterator[torch.Tensor]:
    """Batches until there are so many samples."""
    for x in batches:
        yield x
        samples -= len(x)
        if samples <= 0:
            return


class _Interrupt:
    """Turns the first Ctrl-C into a wish, so that no step is left half made."""

    def __init__(self) -> None:
        self.asked = False
        self.before = None

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
