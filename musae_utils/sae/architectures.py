"""Sparse autoencoders: one class, seven ways to be sparse (notebook 06).

An SAE rewrites an activation x of width d as a sum of few of its n directions::

    z = W_enc (s x - b_dec) + b_enc        pre-activations
    f = sparse(z)                          feature activations, nearly all 0
    x̂ = (f W_dec + b_dec) / s              reconstruction

==============  ================================================================================
architecture    f
==============  ================================================================================
``standard``    ReLU(z); an L1 penalty makes it sparse (Bricken et al., 2023)
``topk``        the k largest of ReLU(z) in each sample (Gao et al., arXiv 2406.04093); S1's are
                of this kind
``batch_topk``  the k B largest of a batch of B; afterwards all over a threshold, which makes a
                sample's code independent of its neighbours (Bussmann et al., arXiv 2412.06410)
``matryoshka``  `batch_topk` whose prefixes reconstruct too, so that general features come first
                (Bussmann et al., arXiv 2503.17547)
``jumprelu``    z where z exceeds a learned threshold (Rajamanoharan et al., arXiv 2407.14435)
``gated``       ReLU(e^r ⊙ (W_enc x) + b_mag) where z > 0 (Rajamanoharan et al., arXiv 2404.16014)
``rmsnorm``     h = ReLU(z), f = h / RMS(h), L1 on h (S2, arXiv 2510.23802)
==============  ================================================================================

``W_enc`` and ``W_dec`` have shape (n, d): row i of one is what feature i listens for, row i of the
other what it says. (SAELens stores ``W_enc`` as (d, n).) The scale s is one number, stored with the
weights, that brings activations to a root mean square of 1; with s = 1 there is none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import nn
from torch.nn import functional as F

from musae_utils.runs import atomic_path

ARCHITECTURES = (
    "standard", "topk", "batch_topk", "matryoshka", "jumprelu", "gated", "rmsnorm",
)  # fmt: skip
K_SPARSE = ("topk", "batch_topk", "matryoshka")
BATCHED = ("batch_topk", "matryoshka")  # k on average over a batch; a threshold afterwards


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE computes; how it came by its weights is in `TrainConfig`.

    Raises
    ------
    ValueError
        Sizes that no SAE can have, an unknown architecture, k out of range or out of place.
    """

    d_in: int
    """Width d of the activations."""
    d_sae: int
    """Dictionary size n: expansion times d."""
    architecture: str = "topk"
    """One of `ARCHITECTURES`."""
    k: int | None = None
    """Active features a sample (on average, for ``batch_topk`` and ``matryoshka``)."""
    prefixes: tuple[int, ...] = ()
    """Where the nested dictionaries of ``matryoshka`` end; the last is n."""
    apply_b_dec_to_input: bool = True
    """Whether the encoder reads x less b_dec, or x itself."""
    unit_norm: bool = True
    """Whether decoder rows are kept at length 1."""

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            size = getattr(self, name)
            if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} is a positive whole number, not {size!r}.")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"There is no architecture {self.architecture!r}; there are "
                f"{', '.join(ARCHITECTURES)}."
            )
        if (self.architecture in K_SPARSE) != (self.k is not None):
            needs = "needs" if self.architecture in K_SPARSE else "has no"
            raise ValueError(f"The architecture {self.architecture!r} {needs} k.")
        whole = isinstance(self.k, (int, np.integer)) and not isinstance(self.k, bool)
        if self.k is not None and not whole:
            raise ValueError(f"k is a whole number, not {self.k!r:.80}.")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(
                f"k = {self.k} features cannot be active in a dictionary of {self.d_sae}: k lies "
                "between 1 and the dictionary size."
            )
        for prefix in self.prefixes:
            if not isinstance(prefix, (int, np.integer)) or isinstance(prefix, bool):
                raise ValueError(f"A prefix is a whole number of features, not {prefix!r:.80}.")
        object.__setattr__(self, "prefixes", tuple(int(p) for p in self.prefixes))
        rising = all(a < b for a, b in zip((0, *self.prefixes), self.prefixes, strict=False))
        if self.architecture == "matryoshka":
            if not rising or self.prefixes[-1:] != (self.d_sae,):
                raise ValueError(
                    f"The prefixes of a matryoshka rise to the dictionary size {self.d_sae}, "
                    f"for instance {_prefixes(self.d_sae)}; given were {self.prefixes}."
                )
        elif self.prefixes:
            raise ValueError(f"The architecture {self.architecture!r} has no prefixes.")
        if self.architecture == "rmsnorm" and self.unit_norm:
            raise ValueError(
                "The code of 'rmsnorm' has a fixed length, so its decoder must be free to have "
                "another: unit_norm is False there."
            )

    @property
    def weights(self) -> int:
        """Number of weights in the two matrices."""
        return 2 * self.d_in * self.d_sae

    @classmethod
    def of(
        cls, d_in: int, expansion: float, k: int | None = None, architecture: str = "topk",
        **fields: Any,
    ) -> SAEConfig:  # fmt: skip
        """A configuration by expansion factor, with what else the architecture needs.

        Examples
        --------
        >>> SAEConfig.of(256, 16, k=32).d_sae
        4096
        """
        d_sae = round(d_in * expansion)
        if architecture == "matryoshka":
            fields.setdefault("prefixes", _prefixes(d_sae))
        if architecture == "rmsnorm":
            fields.setdefault("unit_norm", False)
        return cls(d_in, d_sae, architecture, k, **fields)


def _prefixes(d_sae: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, d_sae >> shift) for shift in (4, 3, 2, 1, 0)}))


class Sparse(NamedTuple):
    """Activations of a batch without their zeros.

    Attributes
    ----------
    values : Tensor of shape (N, m)
        Largest first; 0 where a sample has fewer than m active features.
    indices : Tensor of shape (N, m), int64
    """

    values: torch.Tensor
    indices: torch.Tensor


class SAE(nn.Module):
    """A sparse autoencoder.

    Parameters
    ----------
    config : SAEConfig
    hook_point : mapping or `trace.HookPoint`, optional
        Where the activations come from: model, layer, path, fingerprint of the model's weights.
        Kept as a dict.
    seed : int or None
        Of random weights; None leaves them 0.

    Attributes
    ----------
    W_enc, W_dec : Parameter of shape (n, d)
    b_enc : Parameter of shape (n,)
    b_dec : Parameter of shape (d,)
    jump : Parameter of shape (n,)
        ``jumprelu`` only: each feature's threshold.
    r_mag, b_mag : Parameter of shape (n,)
        ``gated`` only.
    scale : Tensor of shape ()
        What activations are multiplied by.
    threshold : Tensor of shape ()
        ``batch_topk`` and ``matryoshka``: the smallest activation outside training.
    hook_point : dict or None
    provenance : dict
        Whatever led to the weights, as JSON: training configuration, steps, figures.

    Raises
    ------
    MemoryError
        There is no room for the weights; nothing has been allocated.

    Examples
    --------
    >>> sae = SAE(SAEConfig(d_in=4, d_sae=16, k=2))
    >>> x = torch.randn(3, 4)
    >>> sae.encode(x).shape, int((sae.encode(x) > 0).sum(-1).max())
    (torch.Size([3, 16]), 2)
    >>> sae(x).shape
    torch.Size([3, 4])
    """

    def __init__(self, config: SAEConfig, hook_point: Any = None, seed: int | None = 0) -> None:
        super().__init__()
        refuse_too_large(4 * config.weights, f"The weights of {_size(config)}")
        n, d = config.d_sae, config.d_in
        self.config = config
        self.hook_point = _hook_point(hook_point)
        self.provenance: dict[str, Any] = {}
        # NumPy asks for huge pages where an array is large, which spares the update many faults.
        self.W_enc = nn.Parameter(torch.from_numpy(np.zeros((n, d), np.float32)))
        self.W_dec = nn.Parameter(torch.from_numpy(np.zeros((n, d), np.float32)))
        self.b_enc = nn.Parameter(torch.zeros(n))
        self.b_dec = nn.Parameter(torch.zeros(d))
        if config.architecture == "jumprelu":
            self.jump = nn.Parameter(torch.zeros(n))
        if config.architecture == "gated":
            self.r_mag = nn.Parameter(torch.zeros(n))
            self.b_mag = nn.Parameter(torch.zeros(n))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("threshold", torch.tensor(0.0))
        if seed is not None:
            self.initialise(torch.Generator().manual_seed(seed))

    # -- starting values

    @torch.no_grad()
    def initialise(
        self,
        generator: torch.Generator,
        x: torch.Tensor | None = None,
        b_dec: str = "geometric_median",
        tied: bool = True,
        scaled: bool = False,
        threshold: float = 0.05,
    ) -> None:
        """Draw starting weights.

        Parameters
        ----------
        generator : torch.Generator
        x : Tensor of shape (N, d), optional
            Activations to begin from; without any, b_dec is 0 and the scale 1.
        b_dec : {"geometric_median", "mean", "zero"}
        tied : bool
            Let the encoder begin as the decoder's transpose, else at random.
        scaled : bool
            Set `scale` so that ``x * scale`` has a root mean square of 1.
        threshold : float
            First threshold of ``jumprelu``.
        """
        directions = torch.randn(self.W_dec.shape, generator=generator)
        self.W_dec.copy_(F.normalize(directions, dim=1))
        if tied:
            self.W_enc.copy_(self.W_dec)
        else:
            directions = torch.randn(self.W_enc.shape, generator=generator)
            self.W_enc.copy_(F.normalize(directions, dim=1))
        self.b_enc.zero_()
        self.b_dec.zero_()
        if self.config.architecture == "jumprelu":
            self.jump.fill_(threshold)
        if x is None:
            return
        x = self._checked(x)
        if scaled:
            self.scale.copy_(x.square().mean().sqrt().clamp_min(1e-12).reciprocal())
        if b_dec == "geometric_median":
            self.b_dec.copy_(geometric_median(x * self.scale))
        elif b_dec == "mean":
            self.b_dec.copy_(x.mean(0) * self.scale)
        elif b_dec != "zero":
            raise ValueError(
                f"b_dec begins as 'geometric_median', 'mean' or 'zero', not as {b_dec!r}."
            )
        if self.config.architecture not in K_SPARSE:
            # About half of all features are active at first and would say n / 2 d times too much.
            part = x[:512] * self.scale
            said = self.decode(self.encode(x[:512])) * self.scale - self.b_dec
            target = part - self.b_dec
            fit = (said * target).sum() / said.square().sum().clamp_min(1e-12)
            # Shrinking the encoder would not shorten a code of fixed length.
            matrix = self.W_dec if self.config.architecture == "rmsnorm" else self.W_enc
            matrix.mul_(fit.clamp(1e-3, 1.0))

    # -- the function

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_tensor(x):
            x = torch.as_tensor(np.asarray(x))
        if x.ndim == 0 or x.shape[-1] != self.config.d_in:
            raise ValueError(
                f"This SAE reads activations of width {self.config.d_in}; given was a tensor of "
                f"shape {tuple(x.shape)}."
            )
        return x.to(self.W_enc.device, self.W_enc.dtype)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """What the encoder's matrix is multiplied by: scaled, centred where b_dec is applied."""
        x = x * self.scale
        return x - self.b_dec if self.config.apply_b_dec_to_input else x

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """z of shape (…, n) for x of shape (…, d)."""
        return F.linear(self.inputs(self._checked(x)), self.W_enc, self.b_enc)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations of shape (…, n) for activations of shape (…, d).

        Never depends on the other samples: `batch_topk` and `matryoshka` use their threshold.
        """
        return self.activate(self.pre_activations(x))

    def activate(self, z: torch.Tensor) -> torch.Tensor:
        """Feature activations from pre-activations, both of shape (…, n)."""
        kind = self.config.architecture
        if kind == "topk":
            values, indices = z.topk(self.config.k, dim=-1)
            return torch.zeros_like(z).scatter(-1, indices, values.relu())
        if kind in BATCHED:
            return z * ((z > 0) & (z >= self.threshold))
        if kind == "jumprelu":
            return z * (z > self.jump)
        if kind == "gated":
            return self._magnitude(z) * (z > 0)
        if kind == "rmsnorm":
            return root_mean_square_norm(z.relu())
        return z.relu()

    def _magnitude(self, z: torch.Tensor) -> torch.Tensor:
        return F.relu(self.r_mag.exp() * (z - self.b_enc) + self.b_mag)

    def encode_sparse(self, x: torch.Tensor) -> Sparse:
        """`encode` without the zeros: x of shape (N, d) to m active features a sample.

        m is k for ``topk``, else the largest number active in any of the samples.
        """
        if self.config.architecture == "topk":
            values, indices = self.pre_activations(x).topk(self.config.k, dim=-1)
            return Sparse(values.relu(), indices)
        dense = self.encode(x)
        most = max(1, int((dense != 0).sum(-1).max())) if len(dense) else 1
        return Sparse(*dense.topk(most, dim=-1))

    def decode(self, f: torch.Tensor | Sparse) -> torch.Tensor:
        """Reconstruction of shape (…, d) from `encode`'s or `encode_sparse`'s result."""
        if isinstance(f, Sparse):
            said = F.embedding_bag(
                f.indices, self.W_dec, per_sample_weights=f.values.to(self.W_dec.dtype), mode="sum"
            )
        else:
            if f.ndim == 0 or f.shape[-1] != self.config.d_sae:
                raise ValueError(
                    f"This SAE has {self.config.d_sae} features; given were activations of shape "
                    f"{tuple(f.shape)}."
                )
            said = f @ self.W_dec
        return (said + self.b_dec) / self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction of activations, both of shape (…, d)."""
        return self.decode(self.encode(x))

    @property
    def directions(self) -> torch.Tensor:
        """What one unit of each feature adds to the stream itself, (n, d): W_dec over `scale`."""
        return self.W_dec.detach() / self.scale

    @torch.no_grad()
    def calibrate(self, x: torch.Tensor) -> None:
        """Set `threshold` so that on x, (N, d), k features are active on average."""
        if self.config.architecture not in BATCHED:
            raise ValueError(f"{self.config.architecture!r} has no threshold to calibrate.")
        z = self.pre_activations(x).flatten().relu()
        keep = min(self.config.k * len(x), z.numel())
        self.threshold.copy_(z.kthvalue(z.numel() - keep + 1).values)

    # -- where it belongs

    def check(self, hook_point: Any) -> None:
        """Raise `ValueError` unless activations from this hook point are what the SAE reads.

        Parameters
        ----------
        hook_point : mapping or `trace.HookPoint`
        """
        asked = _hook_point(hook_point)
        if self.hook_point is None:
            raise ValueError("This SAE does not say which hook point it was trained at.")
        if self.hook_point.get("fingerprint", "") is None:
            raise ValueError(
                f"This SAE belongs to {_told(self.hook_point)}: load it with model= to bind it to "
                "weights, which measures whether it fits."
            )
        for key in ("fingerprint", "path", "layer"):
            if self.hook_point.get(key) != (asked or {}).get(key):
                raise ValueError(
                    f"This SAE was trained at {_told(self.hook_point)}, and the activations are "
                    f"from {_told(asked)}: its features mean nothing there."
                )

    # -- files

    def save(self, path: str | Path, half: bool = False) -> None:
        """Write weights, configuration, hook point and provenance to one safetensors file.

        Parameters
        ----------
        path : str or Path
        half : bool
            Round the weights to float16, for half the size. `load` makes them float32 again.
        """
        from safetensors.torch import save_file

        about = {
            "config": dataclasses.asdict(self.config),
            "hook_point": self.hook_point,
            "provenance": self.provenance,
        }
        kind = torch.float16 if half else torch.float32
        tensors = {k: v.detach().to("cpu", kind).contiguous() for k, v in self.state_dict().items()}
        with atomic_path(path) as partial:
            save_file(tensors, partial, metadata={"musae_sae": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> SAE:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is damaged, or is not an SAE of this kind, or says what no SAE can be.
        MemoryError
            It does not fit.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["musae_sae"])
                config, hook_point = about["config"], about["hook_point"]
                provenance = about["provenance"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or cut short ({error}).") from None
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError(f"{path} is not an SAE that MuSAE saved.") from None
        try:
            config = SAEConfig(**config)
            for name, x in tensors.items():
                if not x.is_floating_point() or not x.sum(dtype=torch.float32).isfinite():
                    raise ValueError(f"{name} holds what is no finite number")
            held = tuple(tensors["W_enc"].shape) if "W_enc" in tensors else "none"
            if held != (config.d_sae, config.d_in):  # before there is memory for what it promises
                raise ValueError(f"its W_enc is {held}, and not ({config.d_sae}, {config.d_in})")
            if not isinstance(provenance, dict):
                raise ValueError(f"its provenance is {provenance!r:.80}")
            sae = cls(config, hook_point, seed=None)
            sae.load_state_dict(tensors)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path} does not hold the SAE it says: {reason}") from None
        sae.provenance = provenance
        return sae.to(device)

    def __repr__(self) -> str:
        at = f" at {_told(self.hook_point)}" if self.hook_point else ""
        return f"SAE({_size(self.config)}{at})"


def root_mean_square_norm(h: torch.Tensor) -> torch.Tensor:
    """h over the root of its mean square along the last dimension."""
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)


def geometric_median(x: torch.Tensor, steps: int = 100, tolerance: float = 1e-6) -> torch.Tensor:
    """The point whose distances to all rows of x, (N, d), have the smallest sum.

    By Weiszfeld's iteration; unlike the mean it does not run after a few huge activations.
    """
    x = x.float()
    at = x.mean(0)
    for _ in range(steps):
        weights = (x - at).norm(dim=1).clamp_min(1e-8).reciprocal()
        new = weights @ x / weights.sum()
        moved = (new - at).norm()
        at = new
        if moved <= tolerance * at.norm().clamp_min(1e-8):
            break
    return at


def refuse_too_large(n_bytes: int, what: str, device: torch.device | None = None) -> None:
    """Raise `MemoryError` where so much memory is not to be had, before asking for it."""
    if device is not None and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    if n_bytes > free:
        raise MemoryError(
            f"{what} would take {gigabytes(n_bytes)}, and {gigabytes(free)} are free: choose a "
            "smaller dictionary or fewer at once."
        )


def gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"


def _size(config: SAEConfig) -> str:
    k = f", k = {config.k}" if config.k else ""
    return f"{config.architecture} {config.d_in} → {config.d_sae}{k}"


def _hook_point(hook_point: Any) -> dict[str, Any] | None:
    if hook_point is None:
        return None
    if dataclasses.is_dataclass(hook_point):
        return dataclasses.asdict(hook_point)
    if isinstance(hook_point, Mapping):
        return dict(hook_point)
    raise ValueError(f"A hook point is a trace.HookPoint or a dict, not {hook_point!r}.")


def _told(hook_point: Mapping[str, Any] | None) -> str:
    if not hook_point:
        return "an unknown hook point"
    return (
        f"{hook_point.get('path', '?')} of {hook_point.get('model', '?')} "
        f"[{hook_point.get('fingerprint') or 'weights not known'}]"
    )
