"""SAEs in the files of other libraries, and whether an SAE sits where it says (notebook 06).

`save_saelens` and `load_saelens` know SAELens' folders (``cfg.json``, ``sae_weights.safetensors``,
``sparsity.safetensors``), `save_dictionary_learning` and `load_dictionary_learning` that library's
(``ae.pt``, ``config.json``):

==============  ============================  ==================================================
MuSAE           SAELens                       dictionary_learning
==============  ============================  ==================================================
``standard``    standard                      AutoEncoder; AutoEncoderNew where b_dec is not
                                              taken from the input
``topk``        standard, activation topk     AutoEncoderTopK
``batch_topk``  jumprelu, one threshold       BatchTopKSAE
``matryoshka``  jumprelu, one threshold       MatryoshkaBatchTopKSAE
``jumprelu``    jumprelu                      JumpReluAutoEncoder
``gated``       gated                         GatedAutoEncoder
``rmsnorm``     no                            no
==============  ============================  ==================================================

``cfg.json`` is written as sae-lens 5 wrote S1's (arXiv 2505.18186), which version 6 reads too.
Activations are in the units of the model there, so `SAE.scale` goes into the weights: W_enc s,
W_dec / s, b_dec / s. Weights come back bit for bit where s = 1, and within rounding otherwise; so
they do where a class of dictionary_learning has no choice about b_dec, and b_enc absorbs the
difference.

**Which layer?** Layers of files count from 0: ``hook_layers.11``, S1's name, is the output of
``transformer.layers.11``, which S1's paper calls layer 12. The loader says what it bound and why.
A published SAE knows no fingerprint of the model's weights, and is of no use before a model is
given, `verify` has measured that this layer fits better than its neighbours, and the fingerprint
has been filled in.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from musae_utils.runs import atomic_path, is_whole, save_json
from musae_utils.sae.architectures import BATCHED, SAE, SAEConfig
from musae_utils.stats import Interval, resample_groups

if TYPE_CHECKING:
    from musae_utils.models import MusicModel
    from musae_utils.music import Clip

CFG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
AE, CONFIG = "ae.pt", "config.json"
EMBED = -1  # as in `trace`
HOOKS = re.compile(
    r"(?:hook_layers\.|(?:lm\.)?transformer\.layers\.)(\d{1,3})|blocks\.(\d{1,3})\.hook_resid_post"
)

# Their names of our tensors; .T where theirs is the transpose.
_BOTH = {"W_enc": "W_enc.T", "W_dec": "W_dec", "b_dec": "b_dec"}
SAELENS = {
    "standard": _BOTH | {"b_enc": "b_enc"},
    "topk": _BOTH | {"b_enc": "b_enc"},
    "jumprelu": _BOTH | {"b_enc": "b_enc", "threshold": "jump"},
    "gated": _BOTH | {"b_gate": "b_enc", "b_mag": "b_mag", "r_mag": "r_mag"},
}
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec.T"}
CLASSES = {
    "AutoEncoder": _LINEAR | {"bias": "b_dec"},
    "AutoEncoderNew": _LINEAR | {"decoder.bias": "b_dec"},
    "AutoEncoderTopK": _LINEAR | {"b_dec": "b_dec"},
    "BatchTopKSAE": _LINEAR | {"b_dec": "b_dec"},
    "MatryoshkaBatchTopKSAE": _BOTH | {"b_enc": "b_enc"},
    "JumpReluAutoEncoder": _BOTH | {"b_enc": "b_enc", "threshold": "jump"},
    "GatedAutoEncoder": {
        "encoder.weight": "W_enc", "decoder.weight": "W_dec.T", "decoder_bias": "b_dec",
        "gate_bias": "b_enc", "mag_bias": "b_mag", "r_mag": "r_mag",
    },
}  # fmt: skip
KINDS = {
    "AutoEncoder": "standard", "AutoEncoderNew": "standard", "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk", "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu", "GatedAutoEncoder": "gated",
}  # fmt: skip
UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")  # their encoders read x, not x - b_dec


# -- SAELens ---------------------------------------------------------------------------------------


def save_saelens(sae: SAE, folder: str | Path, sparsity: Any = None) -> None:
    """Write an SAE as a SAELens folder, which sae-lens 5 and 6 load.

    Parameters
    ----------
    sae : SAE
    folder : str or Path
        Made when missing. ``cfg.json`` is written last: a folder without it is not whole.
    sparsity : array of shape (n,), optional
        Share of samples in which each feature is active, as ``evaluate(...)["density"]``.

    Raises
    ------
    ValueError
        SAELens cannot express it: ``rmsnorm``, or thresholds below 0; sparsity of another shape.
    """
    folder, config = _to_write(folder), sae.config
    w = _folded(sae, "SAELens")
    kind = "jumprelu" if config.architecture in BATCHED else config.architecture
    tensors = _theirs(SAELENS[kind], w)
    if sparsity is not None:
        sparsity = torch.as_tensor(np.asarray(sparsity), dtype=torch.float32)
        if sparsity.shape != (config.d_sae,) or not ((sparsity >= 0) & (sparsity <= 1)).all():
            raise ValueError(
                f"sparsity is the share of samples in which each of {config.d_sae} features is "
                f"active, from 0 to 1; given was an array of shape {tuple(sparsity.shape)}."
            )
    point = sae.hook_point or {}
    top = kind == "topk"
    cfg = {
        "architecture": "standard" if top else kind, "d_in": config.d_in, "d_sae": config.d_sae,
        "dtype": "float32", "device": "cpu", "model_name": _public(point.get("model")),
        "hook_name": _hook_name(point.get("layer")), "hook_layer": point.get("layer"),
        "hook_head_index": None, "activation_fn_str": "topk" if top else "relu",
        "activation_fn_kwargs": {"k": config.k} if top else {},
        "apply_b_dec_to_input": config.apply_b_dec_to_input, "finetuning_scaling_factor": False,
        "sae_lens_training_version": None, "prepend_bos": False, "dataset_path": None,
        "dataset_trust_remote_code": False, "context_size": None,
        "normalize_activations": "none", "musae": _about(sae),
    }  # fmt: skip
    for name in (CFG, SPARSITY):
        (folder / name).unlink(missing_ok=True)
    with atomic_path(folder / WEIGHTS) as path:
        save_file(tensors, path)
    if sparsity is not None:
        with atomic_path(folder / SPARSITY) as path:
            save_file({"sparsity": torch.log10(sparsity + 1e-10)}, path)
    save_json(folder / CFG, cfg)


def load_saelens(
    folder: str | Path,
    model: MusicModel | None = None,
    layer: int | None = None,
    verify: bool = True,
    clips: Iterable[Clip] | str | Path | None = None,
) -> SAE:
    """Read a SAELens folder, of sae-lens 5 (as S1's are) or 6.

    Parameters
    ----------
    folder : str or Path
        No other file is opened than those three in it, whatever ``cfg.json`` says.
    model : MusicModel, optional
        What the SAE is to read: its fingerprint becomes part of the SAE's hook point.
    layer : int, optional
        From 0, where the file does not say, or says wrong.
    verify : bool
        Measure, when a model is given, that the layer fits better than its neighbours.
    clips : iterable of Clip or folder of sound files, optional
        Music for that; see `verify`.

    Returns
    -------
    SAE
        In float32, with ``scale`` 1. What ``cfg.json`` said is in its provenance.

    Raises
    ------
    FileNotFoundError
        No such folder, or a file of it is missing.
    ValueError
        A file is damaged, holds NaN, contradicts the other, or says what no SAE can be; what this
        package cannot express (another architecture, normalised activations); another layer fits
        better; the model is another than the one it was trained on.
    MemoryError
        It does not fit.

    Examples
    --------
    >>> sae = load_saelens("sae-32_k_100_hook_layers.11/facebook/musicgen-small")  # doctest: +SKIP
    This SAE reads the output of transformer.layers.11, as hook_layers.11 counts from 0; where …
    """
    folder = _to_read(folder)
    cfg = _json(folder / CFG)
    about = _mapping(cfg, "musae", folder / CFG)
    cfg = {**_mapping(cfg, "metadata", folder / CFG), **cfg}  # sae-lens 6 keeps a part in there
    config = _reported(folder / CFG, _saelens_config, cfg)
    weights = folder / WEIGHTS
    with _opened(weights) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        layout = SAELENS[config.architecture]
        for name in shapes.keys() & {"scaling_factor", "finetuning_scaling_factor"}:
            if np.prod(shapes[name]) > config.d_sae or (file.get_tensor(name) != 1).any():
                raise ValueError(
                    f"{weights} scales its features after the fact ({name}), which this package "
                    "cannot: multiply the rows of W_dec by it, and take it out."
                )
            del shapes[name]
        sae = _filled(config, layout, shapes, file.get_tensor, weights)
    if config.architecture == "topk" and cfg.get("rescale_acts_by_decoder_norm"):
        with torch.no_grad():  # there, the k features that say most are chosen
            norm = sae.W_dec.norm(dim=1).clamp_min(1e-8)
            sae.W_enc.mul_(norm[:, None])
            sae.b_enc.mul_(norm)
            sae.W_dec.div_(norm[:, None])
    _notice_unit_norm(sae)
    if about.get("config"):
        _reported(folder / CFG, _make_batched, sae, about["config"])
    sae.provenance = {
        **_mapping(about, "provenance", folder / CFG),
        "cfg": {key: value for key, value in cfg.items() if key not in ("musae", "metadata")},
    }
    said = cfg.get("hook_name", cfg.get("hook_point"))
    _settle(sae, folder / CFG, about, said, None, cfg.get("model_name"), layer)
    return _bound(sae, folder, model, verify, clips)


def load_sparsity(folder: str | Path) -> np.ndarray:
    """Share of samples in which each feature is active, (n,), from a SAELens folder.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file; it is damaged or something else.
    """
    path = _to_read(folder) / SPARSITY
    with _opened(path) as file:
        try:
            found = file.get_tensor("sparsity").float()
        except (SafetensorError, TypeError):  # none, or of a shape that no tensor has
            found = None
    if (
        found is None
        or found.ndim != 1
        or not len(found)
        or not found.isfinite().all()
        or (found > 0.001).any()
    ):
        raise ValueError(f"{path} holds no log10 of shares, one a feature, under 'sparsity'.")
    return (10.0 ** found.double() - 1e-10).clamp(0, 1).numpy()


def _saelens_config(cfg: Mapping[str, Any]) -> SAEConfig:
    kind = cfg.get("architecture", "standard")
    if not isinstance(kind, str) or kind not in SAELENS:
        raise ValueError(
            f"there is no architecture {kind!r} here; of SAELens' there are {', '.join(SAELENS)} "
            "(it saves batchtopk and matryoshka_batchtopk as jumprelu: save_inference_model)."
        )
    normalised = cfg.get("normalize_activations") or "none"
    if normalised != "none":
        raise ValueError(
            f"it reads activations normalised by {normalised!r}, in units that this folder does "
            "not hold or that change from sample to sample: only 'none' can be read."
        )
    if (cfg.get("reshape_activations") or "none") != "none":
        raise ValueError("it reads attention heads (hook_z), not a residual stream.")
    activation = cfg.get("activation_fn_str") or cfg.get("activation_fn") or "relu"
    k = None
    if kind == "topk" or (kind == "standard" and activation == "topk"):
        kind = "topk"
        k = cfg.get("k", _mapping(cfg, "activation_fn_kwargs").get("k"))
        k = _whole("k", k)
    elif activation != "relu":
        raise ValueError(f"its activation function is {activation!r}; 'relu' or 'topk' is known.")
    sizes = (_whole(name, cfg.get(name)) for name in ("d_in", "d_sae"))
    centred = bool(cfg.get("apply_b_dec_to_input", True))
    return SAEConfig(*sizes, kind, k, apply_b_dec_to_input=centred, unit_norm=False)


# -- dictionary_learning ---------------------------------------------------------------------------


def save_dictionary_learning(sae: SAE, folder: str | Path) -> None:
    """Write an SAE as a folder of dictionary_learning: ``ae.pt`` and ``config.json``.

    That library's ``load_dictionary`` divides the decoder rows of an AutoEncoder by their length,
    and multiplies activations by it; with ``normalize_decoder=False`` it leaves both as they are.

    Raises
    ------
    ValueError
        That library cannot express it: ``rmsnorm``, or thresholds below 0.
    """
    folder, config = _to_write(folder), sae.config
    w = _folded(sae, "dictionary_learning")
    name = next(name for name, kind in KINDS.items() if kind == config.architecture)
    if name == "AutoEncoder" and not config.apply_b_dec_to_input:
        name = "AutoEncoderNew"
    if config.apply_b_dec_to_input == (name in UNCENTRED):
        shift = w["W_enc"] @ w["b_dec"] * (-1 if name in UNCENTRED else 1)
        w["b_enc"] = w["b_enc"] + shift
        if name == "GatedAutoEncoder":
            w["b_mag"] = w["b_mag"] + w["r_mag"].exp() * shift
    state = _theirs(CLASSES[name], w)
    trainer = {
        "dict_class": name, "activation_dim": config.d_in, "dict_size": config.d_sae,
        "layer": (sae.hook_point or {}).get("layer"),
        "lm_name": _public((sae.hook_point or {}).get("model")),
        "submodule_name": (sae.hook_point or {}).get("path"),
    }  # fmt: skip
    if config.k is not None:
        trainer["k"] = config.k
        threshold = w["jump"][0] if config.architecture in BATCHED else torch.tensor(-1.0)
        state |= {"k": torch.tensor(config.k, dtype=torch.int32), "threshold": threshold.clone()}
    if config.prefixes:
        state["group_sizes"] = torch.tensor(np.diff((0, *config.prefixes)), dtype=torch.int64)
    (folder / CONFIG).unlink(missing_ok=True)
    with atomic_path(folder / AE) as path:
        torch.save(state, path)
    save_json(folder / CONFIG, {"trainer": trainer, "buffer": {}, "musae": _about(sae)})


def load_dictionary_learning(
    path: str | Path,
    model: MusicModel | None = None,
    layer: int | None = None,
    verify: bool = True,
    clips: Iterable[Clip] | str | Path | None = None,
) -> SAE:
    """Read an ``ae.pt`` of dictionary_learning, and the ``config.json`` beside it if there is one.

    Tensors alone are unpickled (``weights_only=True``): a file that asks for anything else to be
    run is refused. Decoder rows are left as long as they are.

    Parameters
    ----------
    path : str or Path
        The folder, or its ``ae.pt``.
    model, layer, verify, clips : see `load_saelens`

    Returns
    -------
    SAE

    Raises
    ------
    FileNotFoundError, ValueError, MemoryError
        As `load_saelens`.
    """
    path = Path(path)
    path = path / AE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: give a folder with an {AE} in it.")
    about_file = path.with_name(CONFIG)
    known = _json(about_file) if about_file.exists() else {}
    trainer, about = (_mapping(known, key, about_file) for key in ("trainer", "musae"))
    state = _unpickled(path)
    name = _class(path, state, trainer)
    kind, rest = KINDS[name], dict(state)
    k = rest.pop("k", trainer.get("k"))
    threshold = None if kind == "jumprelu" else rest.pop("threshold", None)
    groups = rest.pop("group_sizes", None)
    fields: dict[str, Any] = {}
    if kind in ("topk", *BATCHED):
        fields["k"] = _reported(path, _whole, "k", k)
        if trainer.get("k", fields["k"]) != fields["k"]:
            raise ValueError(f"{path} has k = {fields['k']}, {about_file} k = {trainer['k']}.")
    sizes = _sizes(path, rest, CLASSES[name])
    if kind == "matryoshka":
        whole = groups is not None and groups.ndim == 1 and not groups.is_floating_point()
        if not whole or len(groups) > sizes[1]:
            raise ValueError(f"{path} is a {name} and lacks group_sizes, one a prefix.")
        fields["prefixes"] = tuple(groups.cumsum(0).tolist())
    config = _reported(
        path, SAEConfig, *sizes, kind, apply_b_dec_to_input=name not in UNCENTRED,
        unit_norm=False, **fields,
    )  # fmt: skip
    shapes = {key: tuple(value.shape) for key, value in rest.items()}
    sae = _filled(config, CLASSES[name], shapes, rest.__getitem__, path)
    _notice_unit_norm(sae)
    if kind in BATCHED:
        if threshold is None or threshold.numel() != 1 or not threshold.isfinite().all():
            raise ValueError(f"{path} is a {name} and lacks its threshold, one number.")
        sae.threshold.copy_(_at_least(threshold.float().reshape(())))
    sae.provenance = {**_mapping(about, "provenance", about_file), "cfg": {"trainer": trainer}}
    where = trainer.get("submodule_name")
    _settle(sae, about_file, about, where, trainer.get("layer"), trainer.get("lm_name"), layer)
    return _bound(sae, path, model, verify, clips)


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is refused: it is damaged, or holds more than tensors, and reading that would "
            f"run whatever it says. An {AE} is a state dict, as torch.save(ae.state_dict()) writes."
        ) from None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged, cut short or something else ({reason}).") from None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ValueError(f"{path} is not a state dict: tensors by their names.")
    for key, value in state.items():
        if not is_whole(value):
            raise ValueError(
                f"{path} holds less of {key} than its shape {tuple(value.shape)} says: weights "
                "are dense tensors."
            )
    return state


def _class(path: Path, state: Mapping, trainer: Mapping) -> str:
    name, loose = trainer.get("dict_class"), {"k", "threshold"}
    if name is None:
        prefixed = "group_sizes" in state  # which only one class has
        keys = state.keys() - loose - {"group_sizes"}
        fits = [
            each
            for each, layout in CLASSES.items()
            if keys == layout.keys() - loose and prefixed == (KINDS[each] == "matryoshka")
        ]
        if len(fits) != 1:
            which = " and of ".join(fits) or "no dictionary that is known here"
            raise ValueError(
                f"{path} has the tensors of {which}: put its {CONFIG} beside it, with the "
                "trainer's dict_class."
            )
        name = fits[0]
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(
            f"{path} is a {name!r}; of dictionary_learning there are {', '.join(CLASSES)}."
        )
    return name


def _sizes(path: Path, state: Mapping, layout: Mapping[str, str]) -> tuple[int, int]:
    """(d, n) from the shape of the encoder."""
    key = next(key for key, ours in layout.items() if ours.startswith("W_enc"))
    if key not in state or state[key].ndim != 2:
        raise ValueError(f"{path} lacks {key}, a matrix.")
    n, d = state[key].shape if layout[key] == "W_enc" else state[key].T.shape
    return d, n


# -- where an SAE fits -----------------------------------------------------------------------------


class Fit(NamedTuple):
    """What `verify` measured; as text, one sentence.

    Attributes
    ----------
    layer : int
        Where the SAE is bound, from 0; -1 is the sum of code embeddings.
    fvu : dict of int to float
        Fraction of variance unexplained by layer. 1 is what the mean activation alone leaves.
    rival : int
        The best of the other layers.
    gap : stats.Interval
        FVU there minus FVU where it is bound, with a 95 % interval over clips (NaN if of one).
    rows : int
        Activations of each layer.
    """

    layer: int
    fvu: dict[int, float]
    rival: int
    gap: Interval
    rows: int

    @property
    def best(self) -> int:
        """The layer that fits: where the least is left unexplained."""
        return min(self.fvu, key=lambda layer: self.fvu[layer])

    @property
    def fits(self) -> bool:
        """Whether the SAE is bound where it fits best, and explains anything there."""
        return self.best == self.layer and self.fvu[self.best] < 1

    @property
    def sure(self) -> bool:
        """Whether the interval of the gap leaves no doubt about its sign."""
        return self.gap.low > 0 or self.gap.high < 0

    def __repr__(self) -> str:
        others = ", ".join(
            f"{v:.3f} at {_named(i)}" for i, v in self.fvu.items() if i != self.layer
        )
        if not self.fvu[self.best] < 1:
            verdict = "none of them fits (the mean activation alone leaves 1)"
        else:
            off = "" if self.fits else f", {self.best - self.layer:+d} from where it is bound"
            doubt = "" if self.sure else ", too close to be sure"
            gap = f"{self.gap:+.4f}"
            verdict = (
                f"{_named(self.best)} fits{off} (difference to {_named(self.rival)} {gap}{doubt})"
            )
        return (
            f"Of {self.rows:,} activations in {self.gap.n} fresh clips the SAE leaves "
            f"{self.fvu[self.layer]:.3f} of the variance unexplained at {_named(self.layer)}, "
            f"where it is bound, and {others}: {verdict}."
        )


def _named(layer: int) -> str:
    return "the embedding" if layer == EMBED else f"layer {layer}"


def verify(
    sae: SAE,
    model: MusicModel,
    clips: Iterable[Clip] | str | Path | None = None,
    prompts: str | None = None,
    layers: Iterable[int] | None = None,
) -> Fit:
    """Measure an SAE at its hook point and at the layers beside it, on fresh music.

    An SAE one layer off still looks alive: its features fire, only for other things. What it fails
    to reconstruct gives it away, if by little: neighbouring layers say much the same, so all are
    compared on the same clips. Warns where another layer fits better or none clearly.

    Parameters
    ----------
    sae : SAE
        Its hook point says the layer; a fingerprint must be this model's.
    model : MusicModel
    clips : iterable of Clip or folder of sound files, optional
        Not those it was trained on. Eight composed clips of 10 s unless given.
    prompts : None or "captions"
        As in training; see `activations.harvest`.
    layers : iterable of int, optional
        Layers to compare; unless given, its own and one on both sides.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        The SAE has no hook point, or one of another model, or another width.

    Examples
    --------
    >>> verify(sae, model).fits  # doctest: +SKIP
    True
    """
    fit = _fit(sae, model, clips, prompts, layers)
    if not (fit.fits and fit.sure):
        warnings.warn(str(fit), stacklevel=2)
    return fit


@torch.no_grad()
def _fit(
    sae: SAE, model: MusicModel, clips: Any = None, prompts: Any = None, layers: Any = None
) -> Fit:
    from musae_utils import activations, music

    layer = _placed(sae, model)
    if layers is None:
        layers = range(max(EMBED, layer - 1), min(model.n_layers, layer + 2))
    layers = sorted({layer, *layers})
    if len(layers) < 2:
        raise ValueError(f"Layer {layer} is compared with others: give some of them as layers.")
    if clips is None:
        clips = music.make_many(8, seconds=min(10.0, model.max_seconds), split="validation")
    parts: dict[int, list[np.ndarray]] = {i: [] for i in layers}
    for clip in activations._clips(clips, model):  # one pass over the music for all layers
        sums = dict.fromkeys(layers, 0.0)
        for rows in activations.stream(
            model, clip, layers, 512, prompts=prompts, dtype="float32", batch=1
        ):
            for i, x in rows.items():
                sums[i] = sums[i] + _sums(sae, x)
        for i in layers:
            parts[i].append(sums[i])
    if not parts[layer]:
        raise ValueError("There are no clips to verify the SAE on: the list or folder is empty.")
    tables = {i: np.stack(part) for i, part in parts.items()}
    fvu = {i: float(_unexplained(table.sum(0))) for i, table in tables.items()}
    rival = min((i for i in layers if i != layer), key=lambda i: fvu[i])
    low = high = float("nan")
    if len(tables[layer]) > 1:
        weights = resample_groups(len(tables[layer]))
        gaps = _unexplained(weights @ tables[rival]) - _unexplained(weights @ tables[layer])
        low, high = np.quantile(gaps, (0.025, 0.975)).tolist()
    gap = Interval(fvu[rival] - fvu[layer], low, high, len(tables[layer]))
    return Fit(layer, fvu, rival, gap, int(tables[layer][:, 0].sum()))


def _sums(sae: SAE, x: torch.Tensor) -> np.ndarray:
    """Number, sum of squares, squared error and sum of activations, (3 + d,): an FVU adds up."""
    x = sae._checked(x)
    error, x = (x - sae(x)).double(), x.double()
    three = torch.stack([x.new_tensor(len(x)), x.square().sum(), error.square().sum()])
    return torch.cat([three, x.sum(0)]).cpu().numpy()


def _unexplained(sums: np.ndarray) -> np.ndarray:
    variance = sums[..., 1] - np.square(sums[..., 3:]).sum(-1) / sums[..., 0]
    return sums[..., 2] / np.maximum(variance, 1e-30)


def _placed(sae: SAE, model: MusicModel) -> int:
    """The layer of this model that the SAE is bound to."""
    from musae_utils.trace import HookPoint

    point = sae.hook_point
    if not point or "layer" not in point:
        raise ValueError(
            "This SAE does not say at which layer it was trained: load it with layer=."
        )
    if sae.config.d_in != model.dim:
        raise ValueError(
            f"This SAE reads activations of width {sae.config.d_in}, and those of {model.name!r} "
            f"are {model.dim} wide: it belongs to another model."
        )
    if point.get("fingerprint") is not None:
        HookPoint(**point).check(model)
    HookPoint.of(model, point["layer"])  # there is such a layer
    return point["layer"]


def _bound(sae: SAE, path: Path, model: MusicModel | None, verify: bool, clips: Any) -> SAE:
    """The SAE, bound to the model's weights if they are given and it fits there."""
    if model is None:
        return sae
    from musae_utils.trace import HookPoint

    layer = _placed(sae, model)
    if verify:
        fit = _fit(sae, model, clips)
        if not fit.fits and (fit.sure or not fit.fvu[layer] < 1):
            raise ValueError(
                f"{path}: {fit} With layer= it can be bound elsewhere, with verify=False anyway."
            )
        if not (fit.fits and fit.sure):
            warnings.warn(f"{path}: {fit}", stacklevel=3)
        sae.provenance["fvu"] = {str(i): value for i, value in fit.fvu.items()}
    sae.hook_point = dataclasses.asdict(HookPoint.of(model, layer))
    return sae


def _settle(
    sae: SAE, path: Path, about: Mapping, said: Any, number: Any, name: Any, asked: int | None
) -> None:
    """Decide which layer a file means, and say so where it is not this package's own word."""
    own = _mapping(about, "hook_point", path)
    model, fingerprint = own.get("model", name), own.get("fingerprint")
    for value in (model, fingerprint):
        if not (value is None or isinstance(value, str)):
            raise ValueError(f"{path} names a model by {value!r}, which is no name.")
    if model is not None and model != _public(model):
        raise ValueError(
            f"{path} names as its model {model!r}, a path outside its folder: a name such as "
            "'facebook/musicgen-small' is expected. If you trust the file, correct it there."
        )
    match = HOOKS.fullmatch(said) if isinstance(said, str) else None
    if asked is not None:
        layer, why = asked, "as layer= says"
    elif own and "layer" not in own:  # of a codec's latents, say
        sae.hook_point = dict(own)
        return
    elif own:
        layer, why = own["layer"], None
    elif match:
        layer, why = int(match[1] or match[2]), f"as {said} counts from 0"
    elif said == "hook_embed":
        layer, why = EMBED, f"as {said} says"
    elif number is not None:
        layer, why = number, "as the trainer's layer counts from 0"
    elif said:
        raise ValueError(
            f"{path} names the hook {said!r}, which is no layer of a music model, such as "
            "'hook_layers.11': say which with layer=, from 0."
        )
    else:
        return
    whole = isinstance(layer, (int, np.integer)) and not isinstance(layer, bool)
    if not whole or not EMBED <= layer < 1000:
        raise ValueError(f"{path}: a layer is a whole number from 0 (or -1), not {layer!r}.")
    place = "transformer" if layer == EMBED else f"transformer.layers.{layer}"
    sae.hook_point = {
        "model": model or "an unnamed model", "layer": int(layer), "path": place,
        "fingerprint": fingerprint,
    }  # fmt: skip
    if why:
        paper = "" if layer == EMBED else f"; where layers count from 1, it is layer {layer + 1}"
        side = "input" if layer == EMBED else "output"
        sae.provenance["layer"] = f"This SAE reads the {side} of {place}, {why}{paper}."
        print(sae.provenance["layer"])


# -- both ------------------------------------------------------------------------------------------


def _folded(sae: SAE, library: str) -> dict[str, torch.Tensor]:
    """The weights with the scale inside them, and `jump` what z must exceed."""
    kind = sae.config.architecture
    if kind == "rmsnorm":
        raise ValueError(f"{library} has no SAE of the kind 'rmsnorm': use SAE.save.")
    w = {name: t.detach().cpu().float() for name, t in sae.state_dict().items()}
    scale = w.pop("scale")
    w["W_enc"], w["W_dec"] = w["W_enc"] * scale, w["W_dec"] / scale
    w["b_dec"] = w["b_dec"] / scale
    threshold = w.pop("threshold")
    if kind in BATCHED:
        below = torch.nextafter(threshold, torch.tensor(-torch.inf)).clamp_min(0)
        w["jump"] = below.repeat(sae.config.d_sae)
    elif kind == "jumprelu" and (w["jump"] < 0).any():
        raise ValueError(
            f"In {library} no feature is active below 0, and {int((w['jump'] < 0).sum())} of this "
            "SAE's thresholds are: use SAE.save."
        )
    return w


def _at_least(exceeded: torch.Tensor) -> torch.Tensor:
    """The smallest number over a threshold; 0 where all positive numbers are."""
    return torch.where(exceeded > 0, torch.nextafter(exceeded, torch.tensor(torch.inf)), 0.0)


def _make_batched(sae: SAE, fields: Any) -> None:
    """What was `batch_topk` or `matryoshka` before it was saved as `jumprelu` is so again."""
    jump = getattr(sae, "jump", None)
    if not isinstance(fields, Mapping) or fields.get("architecture") not in BATCHED:
        raise ValueError(f"no SAE of this package is described by {fields!r}.")
    if jump is None or not (jump == jump[0]).all():
        raise ValueError("it says that one threshold serves all features, and they have several.")
    kept = {name: fields.get(name) for name in ("architecture", "prefixes")}
    if not isinstance(kept["prefixes"], list):
        raise ValueError(f"prefixes are a list, not {kept['prefixes']!r}.")
    prefixes = tuple(_whole("a prefix", p) for p in kept["prefixes"])
    k = _whole("k", fields.get("k"))
    sae.config = dataclasses.replace(
        sae.config, architecture=kept["architecture"], k=k, prefixes=prefixes
    )
    sae.threshold.copy_(_at_least(jump.detach()[0]))
    del sae.jump


def _about(sae: SAE) -> dict[str, Any]:
    """What only this package knows about an SAE."""
    config = sae.config
    fields = {"architecture": config.architecture, "k": config.k, "prefixes": config.prefixes}
    point = sae.hook_point and {**sae.hook_point, "model": _public(sae.hook_point.get("model"))}
    return {
        "hook_point": point, "provenance": sae.provenance,
        "config": fields if config.architecture in BATCHED else None,
    }  # fmt: skip


def _theirs(layout: Mapping[str, str], w: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for name, ours in layout.items():
        value = w[ours.removesuffix(".T")]
        out[name] = (value.T if ours.endswith(".T") else value).contiguous()
    return out


@torch.no_grad()
def _filled(
    config: SAEConfig, layout: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]],
    get: Callable[[str], torch.Tensor], path: Path,
) -> SAE:  # fmt: skip
    """An SAE with the tensors of a file, all of which are checked before any is read."""
    missing, extra = layout.keys() - shapes.keys(), shapes.keys() - layout.keys()
    if missing or extra:
        raise ValueError(
            f"{path} is no {config.architecture} SAE: its tensors should be "
            f"{', '.join(layout)}; {', '.join(sorted(missing)) or 'none'} missing, "
            f"{', '.join(sorted(extra)) or 'none'} unknown."
        )
    d, n = config.d_in, config.d_sae
    for name, ours in layout.items():
        shape = {"W_enc": (n, d), "W_dec": (n, d), "b_dec": (d,)}.get(ours[:5], (n,))
        shape = shape[::-1] if ours.endswith(".T") else shape
        if shapes[name] != shape:
            raise ValueError(
                f"{path} holds {name} of shape {shapes[name]}; with d_in = {d} and d_sae = {n} it "
                f"is {shape}."
            )
    sae = SAE(config, seed=None)
    for name, ours in layout.items():
        value = get(name)
        if not value.is_floating_point():
            raise ValueError(f"{path} holds {name} as {value.dtype}: weights are real numbers.")
        value = value.float()
        if not value.isfinite().all():
            raise ValueError(f"{path} holds NaN or infinite values in {name}.")
        if ours == "jump":
            value = value.clamp_min(0)  # there, nothing below 0 is ever active
        getattr(sae, ours.removesuffix(".T")).copy_(value.T if ours.endswith(".T") else value)
    return sae


def _notice_unit_norm(sae: SAE) -> None:
    lengths = sae.W_dec.detach().norm(dim=1)
    sae.config = dataclasses.replace(sae.config, unit_norm=bool(((lengths - 1).abs() < 1e-3).all()))


def _hook_name(layer: int | None) -> str:
    if layer is None:
        return ""
    return "hook_embed" if layer == EMBED else f"hook_layers.{layer}"


def _public(name: str | None) -> str | None:
    """A model's name without the folders of this machine."""
    if not name:
        return None
    away = any(
        kind(name).is_absolute() or ".." in kind(name).parts or name.startswith("~")
        for kind in (PurePosixPath, PureWindowsPath)
    )
    return (re.split(r"[\\/]", name.rstrip("\\/"))[-1].strip(".~") or "a folder") if away else name


def _whole(name: str, value: Any) -> int:
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{name} is a whole number, not {value!r}.")
    return number


def _mapping(known: Mapping, key: str, path: Path | str = CFG) -> Mapping[str, Any]:
    value = known.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: {key} is a group of settings, not {value!r}.")
    return value


def _reported(path: Path, make: Callable, *given: Any, **more: Any) -> Any:
    """What `make` gives; of its complaints, the file that caused them."""
    try:
        return make(*given, **more)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    if path.stat().st_size > 2**26:
        raise ValueError(f"{path} is too large to be a configuration.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON: it was cut short, or is something else.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a configuration: settings by their names.")
    return found


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged, cut short or something else ({error}).") from None


def _to_read(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}: give a folder with {CFG} and {WEIGHTS}.")
    return folder


def _to_write(folder: str | Path) -> Path:
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder to write into.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
