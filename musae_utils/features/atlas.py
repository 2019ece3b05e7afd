"""The atlas of a sparse autoencoder's features: when each fires, and what it follows (notebook 07).

`FeatureAtlas.of` reads a store once and keeps, for every feature, how often and how strongly it
fires, the clips in which it is strongest, weakest and silent, its curve over those clips in time,
its neighbours, and the planted concepts that it follows. `publish` makes of one or several atlases
a site that needs no server and no network; `FeatureAtlas.show` and `browse` show the same in a
notebook.

Conventions
-----------
- Activations are sparse from the start: a `scipy.sparse` array of shape (rows, features) that holds
  only what fires, 8 bytes each. 100,000 rows at 32 active features take 26 MB; a dense array of
  frames by features is never made.
- A *track* is a clip of the store, *kin* are clips that count as one when examples are chosen: of
  one composition, or so alike that their mean activations correlate at more than 0.8.
- AUC is the chance that a frame (or clip) where the concept holds has a higher activation (mean
  activation) than one where it does not; 0.5 is chance. What a feature follows is **found** on one
  half of the compositions and **scored** on the other. With thousands of features the best of them
  looks good on the half where it was found even if none follows anything: only the scored half
  counts.

References
----------
Singh, Cherep and Maes (2026), Discovering and steering interpretable concepts in large generative
music models, arXiv:2505.18186: the filter, and examples by mean activation of a track.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from annotated_types import Gt, Lt
from pydantic import NonNegativeInt, StringConstraints
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from threadpoolctl import threadpool_limits
from typing_extensions import TypedDict

from musae_utils import runs, stats
from musae_utils.activations import ActivationStore
from musae_utils.runs import RunError

if TYPE_CHECKING:
    from IPython.display import HTML

    from musae_utils.models import MusicModel
    from musae_utils.trace import HookPoint

LOW, HIGH = 0.01, 0.25  # S1's filter
QUANTILES = (0.5, 0.9, 0.99)  # of the activations where a feature fires
MIDDLE, SILENT = 2, 2  # examples beside the top ones
PARTNERS = 8  # kept in each list of relatives
# Correlation of mean activations from which two clips count as one. Of 160 compositions no two came
# above 0.45 (nano model, 4,096 features); a clip and itself, 0.1 or 1.3 s later, to 0.91 to 0.97,
# and with noise 40 dB below, to 0.84 to 0.95. At half the level it came to 0.4 to 0.7: not found.
NEAR = 0.8
MIN_COMPOSITIONS = 3  # with and without a concept, in each half, for an AUC to be given
WORTH = 0.6  # AUC below which a feature is not said to follow anything,
ERRORS = 3  # and standard errors of chance: dozens of concepts are tried for each feature
GRAPH_WORK = 2**31  # products that a graph of features may cost; beyond, rows are left out evenly
DENSE = 2**25  # numbers that a coder may return at once


class Coder(Protocol):
    """What the atlas asks of a sparse autoencoder; `musae_utils.sae.SAE` is one.

    Attributes
    ----------
    hook_point : trace.HookPoint, the same as a dict, or the name of a store's hook
        Where its rows come from.
    W_dec : Tensor of shape (features, d)
        A direction for each feature.
    """

    hook_point: HookPoint | Mapping[str, Any] | str
    W_dec: torch.Tensor

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Activations (n, features) of rows (n, d).

        Where there is an ``encode_sparse``, which gives values and indices, both (n, k), that is
        asked instead.
        """


# -- activations -----------------------------------------------------------------------------------


def encode(sae: Coder, store: ActivationStore, rows: np.ndarray | None = None) -> sparse.csr_array:
    """Activations of every feature at the rows of a store.

    Parameters
    ----------
    sae : Coder
    store : ActivationStore
    rows : int array of shape (n,), optional
        Numbers of the rows; all unless given.

    Returns
    -------
    scipy.sparse.csr_array of float32 and shape (rows, features)

    Raises
    ------
    ValueError
        The store is empty, was harvested elsewhere than where the SAE belongs, or has another
        width; activations are NaN, infinite or negative.
    """
    if not store.clips:
        raise ValueError(f"The store in {store.folder} holds no clips, so there is nothing to see.")
    hook, (n_features, d) = store.hook(_point(sae)), sae.W_dec.shape
    if store.widths[hook] != d:
        raise ValueError(
            f"The SAE reads rows that are {d} wide, and those of {hook} in {store.folder} are "
            f"{store.widths[hook]} wide: it was trained on something else."
        )
    read = getattr(sae, "encode_sparse", sae.encode)
    rows = np.arange(len(store)) if rows is None else rows
    step, parts = max(1, DENSE // n_features), []
    with torch.no_grad():
        for first in range(0, len(rows), step):
            x = store[hook][rows[first : first + step]].to(sae.W_dec.device, torch.float32)
            parts.append(_sparse(read(x), len(x), n_features))
    codes = sparse.vstack(parts, "csr")
    if not (np.isfinite(codes.data).all() and (codes.data >= 0).all()):
        raise ValueError("The SAE's activations are NaN, infinite or negative: it is damaged.")
    return codes


def _point(sae: Coder) -> HookPoint | str:
    point = sae.hook_point
    if point is None:
        raise ValueError("This SAE does not say where it was trained: set its hook_point.")
    if isinstance(point, Mapping):
        from musae_utils.trace import HookPoint

        return HookPoint(**point)
    return point


def _sparse(found: Any, n: int, n_features: int) -> sparse.csr_array:
    """Whatever a coder gives, as sparse rows without zeros."""
    if isinstance(found, torch.Tensor):
        found = found.float().cpu()
        row, column = found.nonzero(as_tuple=True)
        values, indices = found[row, column], column
        starts = np.concatenate([[0], np.cumsum(torch.bincount(row, minlength=n).numpy())])
    else:
        values, indices = (part.detach().cpu() for part in found)
        starts = np.arange(n + 1) * values.shape[1]
    codes = sparse.csr_array(
        (values.float().numpy().ravel(), indices.numpy().ravel().astype(np.int32), starts),
        shape=(n, n_features),
    )
    codes.eliminate_zeros()
    return codes


# -- the atlas -------------------------------------------------------------------------------------


class Followed(NamedTuple):
    """How well features tell where concepts hold.

    Attributes
    ----------
    names : list of str
    found, scored : float32 arrays of shape (features, concepts)
        AUC on the half of the compositions where the best is chosen, and on the other. NaN where a
        concept is too rare on one of the halves.
    least : float32 array of shape (concepts,)
        What `found` must reach for a feature to be said to follow a concept: 0.6, and three
        standard errors above chance, which for concepts of few compositions is more.
    """

    names: list[str]
    found: np.ndarray
    scored: np.ndarray
    least: np.ndarray

    def follow(self, features: Any = slice(None)) -> np.ndarray:
        """How clearly features follow concepts: (features, concepts).

        Positive where `found` reaches `least`, the more the further it exceeds it, and else 0. By
        this, and not by AUC alone, concepts compete for a feature: with few compositions a high AUC
        comes easily.
        """
        return np.maximum(np.nan_to_num(self.found[features]) - self.least + 1e-6, 0)


@dataclass(repr=False)
class FeatureAtlas:
    """What is known about every feature of one sparse autoencoder, after one look at a store.

    F features, C clips, E examples of each feature, T frames of the longest clip. Made by
    `FeatureAtlas.of`, `survey` and `FeatureAtlas.load`.

    Attributes
    ----------
    layer : str
        Short name of the place: "3", "embed", or a hook's name.
    hook, store, sae : str
        Where the rows come from, and fingerprints of the store and of the decoder.
    frame_rate : float
        Rows a second.
    n_rows : int
    clips : list of dict
        ``name``, ``group`` (composition), ``caption``, ``frames``, ``kin`` of each clip.
    density : array of shape (F,)
        Share of rows in which a feature fires.
    mean, peak : arrays of shape (F,)
        Mean and largest activation where it fires; 0 if it never does.
    quantiles : array of shape (F, 3)
        Median, 0.9 and 0.99 of the activations where it fires.
    track_mean, track_rate : arrays of shape (C, F)
        In each clip: mean activation over all its frames, and share of frames in which it fires.
    kinds : tuple of str
        What each of the E examples is: "top", "middle" or "silent".
    examples : int array of shape (F, E)
        Clip numbers, -1 for none. Top ones come strongest first, by mean activation; all are of
        different kin.
    curves : uint8 array of shape (F, E - silent ones, T)
        Activation in each frame of an example, 255 at the feature's `peak`.
    marks : uint8 array of shape (F, E - silent ones, ceil(T / 8))
        Where the frame concept that the feature follows best holds (`numpy.packbits`).
    neighbours, partners : (int array (F, P), float array (F, P))
        Features whose decoder directions have the highest cosine, and that fire together more often
        than by chance (phi, the correlation of firing with firing); -1 for none.
    matches : dict of layer to (int array (F, P), float array (F, P))
        Features of other atlases whose activations correlate best over the same frames.
    place : array of shape (F, 2)
        In [0, 1]: features with like directions lie near each other. NaN if a feature does not pass
        S1's filter.
    concepts : dict of "frame", "clip" to Followed
        Empty where the music's truth is not known.
    names : list of str
        Labels, "" until somebody names them.
    """

    layer: str
    hook: str
    store: str
    sae: str
    frame_rate: float
    n_rows: int
    clips: list[dict]
    density: np.ndarray
    mean: np.ndarray
    peak: np.ndarray
    quantiles: np.ndarray
    track_mean: np.ndarray
    track_rate: np.ndarray
    kinds: tuple[str, ...]
    examples: np.ndarray
    curves: np.ndarray
    marks: np.ndarray
    neighbours: tuple[np.ndarray, np.ndarray]
    partners: tuple[np.ndarray, np.ndarray]
    place: np.ndarray
    concepts: dict[str, Followed] = field(default_factory=dict)
    matches: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        sae: Coder,
        store: ActivationStore,
        examples: int = 5,
        codes: sparse.sparray | None = None,
        seed: int = 0,
    ) -> FeatureAtlas:
        """Survey every feature of a sparse autoencoder over a store.

        Parameters
        ----------
        sae : Coder
        store : ActivationStore
            Music that the SAE was not trained on, if the atlas is to be believed.
        examples : int
            Top clips of each feature, each of another composition; two middling and two silent ones
            come on top.
        codes : sparse array of shape (rows, F), optional
            What `encode` returned for the same two.
        seed : int
            Decides the halves of the compositions, the silent examples and the map.

        Returns
        -------
        FeatureAtlas

        Raises
        ------
        ValueError
            As `encode`; or more examples than there are different clips.

        See Also
        --------
        survey : several layers, and which of their features match.
        """
        codes = encode(sae, store) if codes is None else sparse.csr_array(codes)
        n, n_features = codes.shape
        starts = np.array([clip.start for clip in store.clips])
        lengths = np.array([clip.n_rows for clip in store.clips])
        if n != len(store) or n_features != len(sae.W_dec):
            raise ValueError(
                f"codes has shape {codes.shape}; the store has {len(store):,} rows and the SAE "
                f"{len(sae.W_dec):,} features."
            )
        by_clip = sparse.csr_array(
            (np.repeat(1 / lengths, lengths), np.arange(n), np.append(starts, n))
        )
        fires = codes.copy()
        fires.data = np.ones_like(fires.data)
        track_mean = (by_clip @ codes).toarray().astype(np.float32)
        track_rate = (by_clip @ fires).toarray().astype(np.float32)
        kin = _kin([clip.group for clip in store.clips], track_mean)
        different = len(np.unique(kin))
        if not 1 <= examples <= different:
            raise ValueError(
                f"{examples} examples of each feature were asked for, and the store holds "
                f"{len(kin)} clips, of which {different} are of different compositions and sound "
                f"different: ask for 1 to {different}, or harvest more music."
            )
        kinds = ("top",) * examples + ("middle",) * MIDDLE + ("silent",) * SILENT
        chosen = _examples(track_mean, kin, examples, seed)

        columns = codes.tocsc()
        columns.sort_indices()
        count = np.diff(columns.indptr)
        peak, quantiles = np.zeros(n_features, np.float32), np.zeros((n_features, 3), np.float32)
        for f in np.flatnonzero(count):
            values = columns.data[columns.indptr[f] : columns.indptr[f + 1]]
            peak[f], quantiles[f] = values.max(), np.quantile(values, QUANTILES)
        concepts, holds = _concepts(store, codes, track_mean, seed)
        spans = np.stack([starts, lengths], 1)
        curves, marks = _curves(columns, peak, chosen[:, :-SILENT], spans, concepts, holds)

        directions = sae.W_dec.detach().float().cpu().numpy()
        point, rate = _point(sae), track_rate.mean(0)
        return cls(
            layer=_label(point), hook=str(point), store=store.fingerprint,
            sae=_fingerprint(directions), frame_rate=store.frame_rate, n_rows=n,
            clips=[
                {"name": c.name, "group": c.group, "caption": c.caption, "frames": c.n_rows,
                 "kin": int(k)}
                for c, k in zip(store.clips, kin, strict=True)
            ],
            density=(count / n).astype(np.float32),
            mean=np.divide(codes.sum(0), count, where=count > 0, out=np.zeros(n_features)).astype(
                np.float32
            ),
            peak=peak, quantiles=quantiles, track_mean=track_mean, track_rate=track_rate,
            kinds=kinds, examples=chosen, curves=curves, marks=marks,
            neighbours=_neighbours(directions, count > 0),
            partners=strongest(fires, fires, same=True),
            place=_places(directions, (rate >= LOW) & (rate <= HIGH), seed), concepts=concepts,
            names=[""] * n_features,
        )  # fmt: skip

    # what is in it

    def __len__(self) -> int:
        return len(self.density)

    @property
    def fires(self) -> np.ndarray:
        """Which features fire at all: bool (F,)."""
        return self.peak > 0

    @property
    def rate(self) -> np.ndarray:
        """S1's activation rate: share of a track's frames in which a feature fires, averaged over
        the tracks; (F,)."""
        return self.track_rate.mean(0)

    @property
    def share(self) -> np.ndarray:
        """Share of tracks in which a feature fires at all, (F,)."""
        return (self.track_rate > 0).mean(0)

    def kept(self, low: float = LOW, high: float = HIGH, by: str = "rate") -> np.ndarray:
        """Features that pass S1's filter: neither dead, nor too rare, nor everywhere.

        The paper computes activations by track (10 s) and drops features whose activation rate is
        0, below 0.01 or above 0.25. It does not say what counts as active; two readings are
        possible, and `sensitivity` shows both.

        Parameters
        ----------
        low, high : float
            Kept if low <= rate <= high, and it fires.
        by : {"rate", "share"}
            "rate" takes it as `rate`, the mean over tracks of the share of frames; "share" as the
            share of tracks in which the feature fires at all.

        Returns
        -------
        bool array of shape (F,)
        """
        if by not in ("rate", "share"):
            raise ValueError(f"The filter goes by 'rate' or 'share', not by {by!r}.")
        if not 0 <= low < high <= 1:
            raise ValueError(f"The filter needs 0 <= low < high <= 1; got {low} and {high}.")
        value = getattr(self, by)
        return self.fires & (value >= low) & (value <= high)

    def sensitivity(
        self,
        lows: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1),
        highs: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    ) -> pd.DataFrame:
        """How many features the filter keeps as its thresholds move.

        Returns
        -------
        DataFrame
            A line for each reading and lower threshold, a column for each upper one; empty where
            the two cross.
        """
        counts = {
            (by, low): {
                high: self.kept(low, high, by).sum() if low < high else None for high in highs
            }
            for by in ("rate", "share")
            for low in lows
        }
        table = pd.DataFrame(counts).T.astype("Int64")
        table.index.names, table.columns.name = ["reading", "low"], "high"
        return table

    def follows(self, feature: int, n: int = 3) -> pd.DataFrame:
        """What a feature follows: up to `n` concepts of frames and `n` of clips, clearest first.

        Returns
        -------
        DataFrame
            ``concept``, ``level`` ("frame" or "clip"), ``found`` (the AUC on the half where they
            were chosen), ``auc`` (on the other); see `Followed`.
        """
        self._check(feature)
        rows = []
        for level, followed in self.concepts.items():
            clear = followed.follow(feature)
            for c in np.argsort(-clear, kind="stable")[:n]:
                if clear[c]:
                    found, auc = (float(x[feature, c]) for x in (followed.found, followed.scored))
                    rows.append((followed.names[c], level, found, auc))
        return pd.DataFrame(rows, columns=["concept", "level", "found", "auc"])

    def best(self) -> pd.DataFrame:
        """The one feature that follows each concept best, chosen on one half, scored on the other.

        Returns
        -------
        DataFrame by concept
            ``level``, ``feature``, ``found`` and ``auc``. Concepts too rare to score are absent.
        """
        rows = {}
        for level, (names, found, scored, _) in self.concepts.items():
            best = np.nan_to_num(found).argmax(0)
            for c, (name, f) in enumerate(zip(names, best.tolist(), strict=True)):
                if np.isfinite(found[f, c]):
                    rows[name] = (level, f, float(found[f, c]), float(scored[f, c]))
        return pd.DataFrame.from_dict(
            rows, "index", columns=["level", "feature", "found", "auc"]
        ).rename_axis("concept")

    def search(self, words: str, n: int = 20) -> pd.DataFrame:
        """Features by what they follow or are named: all words must occur; a number is a feature.

        Returns
        -------
        DataFrame
            Lines of `to_frame`, the highest held-out AUC first.

        Examples
        --------
        >>> atlas.search("chord root")  # doctest: +SKIP
        """
        words = words.lower().split()
        if len(words) == 1 and words[0].isdigit():
            return self.to_frame([self._check(int(words[0]))])
        concepts = [
            (level, c)
            for level, followed in self.concepts.items()
            for c, name in enumerate(followed.names)
            if all(word in name.lower() for word in words)
        ]
        best = np.full(len(self), -1.0)
        for level, c in concepts:
            followed = self.concepts[level]
            follow = followed.follow()[:, c] > 0
            best[follow] = np.maximum(best[follow], np.nan_to_num(followed.scored[follow, c]))
        for f, name in enumerate(self.names):
            if words and name and all(word in name.lower() for word in words):
                best[f] = 2.0
        order = np.argsort(-best, kind="stable")[:n]
        return self.to_frame(order[best[order] >= 0])

    def top(self, by: str = "auc", n: int = 20, kept: bool = True) -> pd.DataFrame:
        """The first features in some order.

        Parameters
        ----------
        by : str
            A column of `to_frame`, largest first.
        n : int
        kept : bool
            Only those that pass S1's filter.
        """
        table = self.to_frame()
        if by not in table or table[by].dtype.kind not in "fiub":
            raise ValueError(f"Features have no {by!r}; sort by one of {', '.join(table)}.")
        table = table[table["kept"]] if kept else table
        return table.sort_values(by, ascending=False, kind="stable").head(n)

    def to_frame(self, features: Iterable[int] | None = None) -> pd.DataFrame:
        """One line a feature, with the concept it follows most clearly and its held-out AUC."""
        chosen = np.arange(len(self)) if features is None else np.array(list(features), int)
        table = pd.DataFrame(
            {
                "name": [self.names[f] for f in chosen],
                "density": self.density[chosen], "rate": self.rate[chosen],
                "share": self.share[chosen], "mean": self.mean[chosen], "peak": self.peak[chosen],
                "kept": self.kept()[chosen],
            },
            index=pd.Index(chosen, name="feature"),
        )  # fmt: skip
        concept = np.full(len(chosen), "", object)
        auc, most = np.full(len(chosen), np.nan), np.zeros(len(chosen))
        for followed in self.concepts.values():
            if not followed.names:
                continue
            values = followed.follow(chosen)
            c = values.argmax(1)
            rows = np.flatnonzero(values.max(1) > most)
            most[rows] = values[rows, c[rows]]
            concept[rows] = [followed.names[i] for i in c[rows]]
            auc[rows] = followed.scored[chosen[rows], c[rows]]
        return table.assign(concept=concept, auc=auc)

    def summary(self) -> dict[str, Any]:
        """The atlas in numbers.

        Returns
        -------
        dict
            ``features``, ``rows``, ``clips``, ``compositions``, ``dead`` (never fire), ``kept`` (by
            S1's filter), ``l0`` (mean number of features that fire in a row), ``density`` (median
            of those that fire); and for each level of concepts their number, that of those followed
            by a single feature with AUC at least 0.9 on held-out compositions, and their mean AUC.
        """
        alive = self.fires
        found = {
            "features": len(self), "rows": self.n_rows, "clips": len(self.clips),
            "compositions": len({clip["group"] for clip in self.clips}),
            "dead": int((~alive).sum()), "kept": int(self.kept().sum()),
            "l0": float(self.density.sum()),
            "density": float(np.median(self.density[alive])) if alive.any() else 0.0,
        }  # fmt: skip
        best = self.best()
        for level, rows in best.groupby("level"):
            found[f"{level}_concepts"] = len(rows)
            found[f"{level}_followed"] = int((rows["auc"] >= 0.9).sum())
            found[f"{level}_auc"] = float(rows["auc"].mean())
        return found

    def curve(self, feature: int, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Seconds at which frames begin, and activation in them, for one example.

        Returns
        -------
        seconds, activation : arrays of shape (frames of the clip,)
            The activation is exact to 1/255 of the feature's peak.
        """
        clip = int(self.examples[self._check(feature), example])
        if clip < 0:
            raise ValueError(f"Feature {feature} has no example {example}.")
        n = self.clips[clip]["frames"]
        seconds = np.arange(n) / self.frame_rate
        if self.kinds[example] == "silent":
            return seconds, np.zeros(n, np.float32)
        return seconds, self.curves[feature, example, :n] * (self.peak[feature] / np.float32(255))

    def _check(self, feature: int) -> int:
        if not 0 <= feature < len(self):
            raise ValueError(f"There is no feature {feature}: they go from 0 to {len(self) - 1:,}.")
        return feature

    def __repr__(self) -> str:
        s = self.summary()
        said = [
            f"FeatureAtlas of {self.hook}",
            f"  {s['features']:,} features over {s['rows']:,} frames of {s['clips']:,} clips "
            f"({s['compositions']:,} compositions), {s['l0']:.1f} firing at a time",
            f"  {s['features'] - s['dead']:,} fire; {s['kept']:,} pass S1's filter",
        ]
        for level in ("frame", "clip"):
            if f"{level}_concepts" in s:
                said.append(
                    f"  {s[f'{level}_followed']} of {s[f'{level}_concepts']} concepts of a {level} "
                    f"have a feature with AUC 0.9 on held-out music (mean {s[f'{level}_auc']:.2f})"
                )
        if len(said) == 3:
            said.append("  no truth is known about this music, so no concepts are scored")
        return "\n".join(said)

    # files

    def save(self, folder: str | Path) -> Path:
        """Write ``atlas.safetensors`` and ``atlas.json``; see `load`."""
        folder, path = Path(folder), Path(folder) / "atlas.safetensors"
        arrays = {name: getattr(self, name) for name in ARRAYS}
        for name in ("neighbours", "partners"):
            arrays[f"{name}.which"], arrays[f"{name}.how"] = getattr(self, name)
        for layer, (which, how) in self.matches.items():
            arrays[f"matches.{layer}.which"], arrays[f"matches.{layer}.how"] = which, how
        for level, followed in self.concepts.items():
            arrays |= {f"{level}.{name}": getattr(followed, name) for name in SCORES}
        with runs.atomic_path(path) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)
        about = {name: getattr(self, name) for name in ABOUT}
        about["concepts"] = {level: followed.names for level, followed in self.concepts.items()}
        about |= {"matches": list(self.matches), "sha256": runs.sha256(path)}
        runs.save_json(folder / "atlas.json", about)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> FeatureAtlas:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no atlas.
        RunError
            It is damaged.
        """
        folder = Path(folder)
        if not (folder / "atlas.json").exists():
            raise FileNotFoundError(f"{folder} holds no atlas: make one with FeatureAtlas.of.")
        about, path = runs.load_json(folder / "atlas.json"), folder / "atlas.safetensors"
        runs.checked(_About, about, folder / "atlas.json", "an atlas", "Make the atlas again.")
        if not path.exists() or runs.sha256(path) != about["sha256"]:
            raise RunError(
                f"{path} is missing, damaged or not the one that {folder / 'atlas.json'} belongs "
                "to: make the atlas again."
            )
        try:
            arrays = load_file(path)
            _refuse_other_shapes(about, arrays)
            pair = lambda name: (arrays[f"{name}.which"], arrays[f"{name}.how"])  # noqa: E731
            return cls(
                **{name: about[name] for name in ABOUT if name != "kinds"},
                kinds=tuple(about["kinds"]),
                **{name: arrays[name] for name in ARRAYS},
                neighbours=pair("neighbours"),
                partners=pair("partners"),
                matches={layer: pair(f"matches.{layer}") for layer in about["matches"]},
                concepts={
                    level: Followed(names, *(arrays[f"{level}.{name}"] for name in SCORES))
                    for level, names in about["concepts"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise RunError(
                f"{folder} holds an atlas that this version cannot read: {error}. Make it again."
            ) from error

    # on a page

    def publish(
        self, folder: str | Path, sound: Sound | None = None, title: str = "Feature atlas"
    ) -> Path:
        """A site of this atlas alone; see `publish`."""
        return publish([self], folder, sound, title)

    def show(self, feature: int, sound: Sound | None = None) -> HTML:
        """One feature: its curves under players, its density, concepts and relatives.

        Parameters
        ----------
        feature : int
        sound : see `publish`

        Returns
        -------
        IPython.display.HTML
        """
        from musae_utils.show import explorer

        return explorer.card(self, self._check(feature), sound)

    def browse(self, sound: Sound | None = None) -> Any:
        """Search, sort and listen in JupyterLab; on a published page, the first feature found.

        Parameters
        ----------
        sound : see `publish`

        Returns
        -------
        An ipywidgets box, with a static form for pages behind which no kernel runs.
        """
        from musae_utils.show import explorer

        return explorer.browse(self, sound)


ARRAYS = (
    "density", "mean", "peak", "quantiles", "track_mean", "track_rate", "examples", "curves",
    "marks", "place",
)  # fmt: skip
SCORES = ("found", "scored", "least")
ABOUT = ("layer", "hook", "store", "sae", "frame_rate", "n_rows", "clips", "kinds", "names")

_Layer = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_]+(\.[0-9A-Za-z_]+)*$")]


class _Clip(TypedDict):
    name: str
    group: str
    caption: str
    frames: NonNegativeInt
    kin: NonNegativeInt


class _About(TypedDict):
    """What ``atlas.json`` holds."""

    layer: _Layer  # `publish` names files after it
    hook: str
    store: str
    sae: str
    frame_rate: Annotated[float, Gt(0), Lt(1e6)]
    n_rows: NonNegativeInt
    clips: list[_Clip]
    kinds: list[Literal["top", "middle", "silent"]]
    names: list[str]
    concepts: dict[Literal["frame", "clip"], list[str]]
    matches: list[_Layer]
    sha256: str


def _refuse_other_shapes(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless the arrays of a file are what its JSON says they are of."""
    n, clips, kinds = len(arrays["density"]), len(about["clips"]), about["kinds"]
    heard = kinds[: len(kinds) - kinds.count("silent")]
    longest = max((clip["frames"] for clip in about["clips"]), default=0)
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        **{name: ("f", (n,)) for name in ("density", "mean", "peak")},
        "quantiles": ("f", (n, len(QUANTILES))), "place": ("f", (n, 2)),
        "track_mean": ("f", (clips, n)), "track_rate": ("f", (clips, n)),
        "examples": ("i", (n, len(kinds))), "curves": ("u", (n, len(heard), longest)),
        "marks": ("u", (n, len(heard), -(-longest // 8))),
    }  # fmt: skip
    for name in ("neighbours", "partners", *(f"matches.{layer}" for layer in about["matches"])):
        wanted[f"{name}.which"], wanted[f"{name}.how"] = ("i", (n, PARTNERS)), ("f", (n, PARTNERS))
    for level, names in about["concepts"].items():
        for name in ("found", "scored"):
            wanted[f"{level}.{name}"] = "f", (n, len(names))
        wanted[f"{level}.least"] = "f", (len(names),)
    for name, (kind, shape) in wanted.items():
        held = arrays[name]
        if held.dtype.kind != kind or held.shape != shape:
            raise ValueError(f"{name} is {held.shape} of {held.dtype}, and not {shape}")
    for name, most in (("examples", clips), ("neighbours.which", n), ("partners.which", n)):
        if not ((arrays[name] >= -1) & (arrays[name] < most)).all():
            raise ValueError(f"{name} leads to what there is not")
    if len(about["names"]) != n:
        raise ValueError(f"there are {len(about['names'])} names for {n} features")


Sound = Sequence[Any] | Mapping[int, Any] | Callable[[int], Any]


def survey(
    saes: Sequence[Coder], store: ActivationStore, examples: int = 5, seed: int = 0
) -> list[FeatureAtlas]:
    """An atlas for each of several SAEs, and which features match from one to the next.

    Features of two layers match if their activations correlate over the same frames. Each SAE is
    compared with its neighbours in the list, so that a feature can be followed through the model.

    Parameters
    ----------
    saes : sequence of Coder
        Of different hooks of one store, in order.
    store : ActivationStore
    examples, seed : see `FeatureAtlas.of`

    Returns
    -------
    list of FeatureAtlas
    """
    labels = [_label(_point(sae)) for sae in saes]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"One SAE a layer is surveyed; these are of layers {labels}.")
    atlases, before = [], None
    for sae in saes:
        codes = encode(sae, store)
        atlas = FeatureAtlas.of(sae, store, examples, codes, seed)
        if before is not None:
            atlas.matches[atlases[-1].layer] = strongest(codes, before)
            atlases[-1].matches[atlas.layer] = strongest(before, codes)
        atlases.append(atlas)
        before = codes
    return atlases


def sounds(store: ActivationStore, model: MusicModel | None = None) -> Callable[[int], Any]:
    """The sound of a store's clips, for `publish`: a store keeps everything but that.

    Composed music is composed again; of other music the codes that the model read are decoded.

    Parameters
    ----------
    store : ActivationStore
    model : MusicModel, optional
        Needed for clips that were not composed here.

    Returns
    -------
    callable
        From a clip's number to a Clip, or to (audio, sample rate).
    """
    from musae_utils import music

    def sound(number: int) -> Any:
        clip = store.clips[number]
        known = clip.provenance
        if known.get("source") == "composed" and "spec" in known:
            return music.make(music.Spec(**known["spec"]), known["seed"])
        if model is None or clip.codes is None:
            raise ValueError(
                f"Clip {clip.name!r} was not composed here: give the model that read it, and its "
                "codes are decoded, or give publish the clips themselves."
            )
        return model.decode(clip.codes[None])[0], model.sample_rate

    return sound


def publish(
    atlases: Sequence[FeatureAtlas],
    folder: str | Path,
    sound: Sound | None = None,
    title: str = "Feature atlas",
) -> Path:
    """Make a site: every feature that fires, to search, sort, filter and hear.

    It opens from a folder (``index.html``) and from any static host, without a network, and
    ``#layer-3/feature-17`` leads to one feature. Each clip's sound is one MP3 that all features
    share, read when it is played.

    Parameters
    ----------
    atlases : sequence of FeatureAtlas
        Of different layers over one store.
    folder : str or Path
        New, empty, or one that an explorer was published into before.
    sound : sequence, mapping or callable, optional
        From a clip's number to a Clip or to (audio, sample rate); see `sounds`. Without it the
        curves are shown alone.
    title : str

    Returns
    -------
    Path
        Of ``index.html``.

    Raises
    ------
    ValueError
        No atlas, two of one layer, or of different stores.
    RunError
        The folder holds something else, or the disk is full.
    """
    from musae_utils.show import explorer

    labels = [atlas.layer for atlas in atlases]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"An explorer shows one atlas a layer; these are of layers {labels}.")
    if len({atlas.store for atlas in atlases}) > 1:
        raise ValueError("The atlases were made from different stores: survey one store.")
    return explorer.write(atlases, Path(folder), sound, title)


# -- inside ----------------------------------------------------------------------------------------


def _label(point: HookPoint | str) -> str:
    layer = getattr(point, "layer", point)
    return "embed" if layer == -1 else re.sub(r"[^\w.]+", "_", str(layer))


def _fingerprint(array: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def _kin(groups: Sequence[str], track_mean: np.ndarray) -> np.ndarray:
    """Number clips so that those of one composition, or nearly the same in sound, share one."""
    n = len(groups)
    _, composition = np.unique(groups, return_inverse=True)
    x = track_mean[:, track_mean.any(0)].astype(np.float32)
    x = x - x.mean(0)
    x /= np.maximum(x.std(0), 1e-12)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    pairs = [np.stack([np.arange(n), n + composition])]
    for first in range(0, n, 1024):
        a, b = np.nonzero(x[first : first + 1024] @ x.T > NEAR)
        pairs.append(np.stack([a + first, b]))
    a, b = np.concatenate(pairs, 1)
    graph = sparse.coo_array((np.ones(len(a)), (a, b)), shape=(2 * n, 2 * n))
    return sparse.csgraph.connected_components(graph, directed=False)[1][:n]


def _examples(track_mean: np.ndarray, kin: np.ndarray, top: int, seed: int) -> np.ndarray:
    """Clips for each feature, (F, top + MIDDLE + SILENT): strongest, about half as strong, none."""
    rng = np.random.default_rng(seed)
    scores = np.ascontiguousarray(track_mean.T)
    chosen = np.full((len(scores), top + MIDDLE + SILENT), -1, np.int32)
    for score, row in zip(scores, chosen, strict=True):
        order = rng.permutation(len(score))  # so that silent clips are drawn, not the first ones
        order = order[np.argsort(-score[order], kind="stable")]
        order = order[np.sort(np.unique(kin[order], return_index=True)[1])]  # the best of each kin
        firing = order[score[order] > 0]
        row[: min(top, len(firing))] = firing[:top]
        rest = firing[top:]
        if len(rest):
            half = np.argsort(np.abs(score[rest] - score[firing[0]] / 2), kind="stable")[:MIDDLE]
            row[top : top + len(half)] = rest[half]
        silent = order[len(firing) :][:SILENT]
        row[top + MIDDLE :][: len(silent)] = silent
    return chosen


def _curves(columns, peak, chosen, spans, concepts, holds) -> tuple[np.ndarray, np.ndarray]:
    """Quantised activations over each example, and where the best frame concept holds."""
    longest = int(spans[:, 1].max())
    curves = np.zeros((*chosen.shape, longest), np.uint8)
    marks = np.zeros((*chosen.shape, -(-longest // 8)), np.uint8)
    best = np.full(len(chosen), -1)
    if (followed := concepts.get("frame")) and followed.names:
        clear = followed.follow()
        best = np.where(clear.max(1) > 0, clear.argmax(1), -1)
    for f in np.flatnonzero(peak):
        span = slice(columns.indptr[f], columns.indptr[f + 1])
        rows, values = columns.indices[span], columns.data[span]
        for e, clip in enumerate(chosen[f]):
            if clip < 0:
                continue
            start, n = spans[clip]
            first, last = np.searchsorted(rows, [start, start + n])
            level = np.ceil(values[first:last] * (255 / peak[f])).clip(1, 255)
            curves[f, e, rows[first:last] - start] = level
            if best[f] >= 0 and (held := holds(clip, best[f])) is not None:
                bits = np.packbits(held)
                marks[f, e, : len(bits)] = bits
    return curves, marks


def _concepts(store, codes, track_mean, seed):
    """AUC of all features for all concepts on both halves, and a look-up of where they hold."""
    from musae_utils.music import concepts

    truths = [clip.truth for clip in store.clips]
    known = np.array([truth is not None for truth in truths])
    groups = np.array([clip.group for clip in store.clips])
    if len(np.unique(groups[known])) < 2 * MIN_COMPOSITIONS:
        return {}, lambda which, concept: None
    counts = np.array([clip.n_rows for clip in store.clips])
    first_half = {clip.group for clip in store.split(0.5, seed)[0].clips}
    found_on = np.array([group in first_half for group in groups[known]])
    truths = [truth for truth in truths if truth is not None]
    _, composition = np.unique(groups[known], return_inverse=True)

    names, table = concepts.frame_table(truths, counts[known], store.frame_rate)
    rows = np.repeat(known, counts)
    owner = np.repeat(np.arange(len(truths)), counts[known])
    frame = _followed(codes[rows], names, table, composition[owner], found_on[owner])
    tracks = sparse.csr_array(track_mean[known])
    clip = _followed(tracks, *concepts.clip_table(truths), composition, found_on)

    starts = np.concatenate([[0], np.cumsum(counts[known])])
    number = np.where(known, np.cumsum(known) - 1, -1)

    def holds(which: int, concept: int) -> np.ndarray | None:
        i = number[which]
        return None if i < 0 else table[starts[i] : starts[i + 1], concept]

    return {"frame": frame, "clip": clip}, holds


def compositions_of(holds: np.ndarray, composition: np.ndarray) -> np.ndarray:
    """In how many compositions each concept holds, and in how many it fails: (2, concepts)."""
    where = np.zeros((2, composition.max() + 1, holds.shape[1]), bool)
    for found, rows in zip(where, (holds, ~holds), strict=True):
        np.logical_or.at(found, composition, rows)
    return where.sum(1)


def _followed(scores, names, labels, composition, found_on) -> Followed:
    halves, seen = [], []
    for half in (found_on, ~found_on):
        halves.append(stats.auc(scores[half], labels[half]).astype(np.float32))
        seen += [*compositions_of(labels[half], composition[half])]
    for auc in halves:
        auc[:, np.min(seen, axis=0) < MIN_COMPOSITIONS] = np.nan
    # Mann and Whitney's standard error, with compositions for independent samples.
    a, b = np.maximum(seen[:2], 1)
    least = (0.5 + ERRORS * np.sqrt((a + b + 1) / (12 * a * b))).clip(WORTH, 1.0)
    return Followed(names, *halves, least.astype(np.float32))


def strongest(a: sparse.sparray, b: sparse.sparray, same: bool = False):
    """For each column of `a` the columns of `b` that correlate best over the same rows.

    Parameters
    ----------
    a, b : sparse arrays of shape (n, F) and (n, G)
    same : bool
        They are the same, so a column is not its own match.

    Returns
    -------
    which : int array of shape (F, P)
        -1 for none.
    correlation : float array of shape (F, P)
    """
    work = float(np.diff(a.indptr) @ np.diff(b.indptr))
    step = int(np.ceil(work / GRAPH_WORK)) or 1
    a, b = a[::step].astype(np.float64).tocsc(), b[::step].astype(np.float64).tocsr()
    n = a.shape[0]

    def moments(x):
        mean = np.asarray(x.sum(0)).ravel() / n
        variance = np.asarray(x.power(2).sum(0)).ravel() / n - mean**2
        return mean, np.sqrt(variance.clip(min=0))

    (mean_a, sd_a), (mean_b, sd_b) = moments(a), moments(b)
    most = min(PARTNERS, b.shape[1] - same)
    which = np.full((a.shape[1], PARTNERS), -1, np.int32)
    how = np.zeros((a.shape[1], PARTNERS), np.float32)
    for first in range(0, a.shape[1], 512):
        some = slice(first, first + 512)
        covariance = (a[:, some].T @ b).toarray() / n - np.outer(mean_a[some], mean_b)
        scale = np.outer(sd_a[some], sd_b)
        r = np.divide(covariance, scale, where=scale > 1e-12, out=np.zeros_like(scale))
        if same:
            r[np.arange(len(r)), first + np.arange(len(r))] = 0
        _keep_best(r, most, which[some], how[some])
    return which, how


def _neighbours(directions: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each feature those that fire whose decoder directions have the highest cosine."""
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    most = min(PARTNERS, len(unit) - 1)
    which = np.full((len(unit), PARTNERS), -1, np.int32)
    how = np.zeros((len(unit), PARTNERS), np.float32)
    for first in range(0, len(unit), 512):
        some = slice(first, first + 512)
        cosine = np.where(alive, unit[some] @ unit.T, 0)
        cosine[np.arange(len(cosine)), first + np.arange(len(cosine))] = 0
        _keep_best(cosine, most, which[some], how[some])
    return which, how


def _keep_best(r: np.ndarray, most: int, which: np.ndarray, how: np.ndarray) -> None:
    """The `most` largest positive entries of each row of `r`, into `which` and `how`."""
    best = np.argpartition(-r, most - 1, axis=1)[:, :most] if most else np.empty((len(r), 0), int)
    value = np.take_along_axis(r, best, 1)
    order = np.argsort(-value, axis=1, kind="stable")
    best, value = np.take_along_axis(best, order, 1), np.take_along_axis(value, order, 1)
    which[:, :most] = np.where(value > 0, best, -1)
    how[:, :most] = value.clip(min=0)


# One thread: sums in a fixed order, so that a seed gives the same map again.
@threadpool_limits.wrap(limits=1)
def _places(directions: np.ndarray, kept: np.ndarray, seed: int) -> np.ndarray:
    """A map in which features with like directions are near each other: t-SNE, in [0, 1]."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    place = np.full((len(directions), 2), np.nan, np.float32)
    x = directions[kept]
    if len(x) < 8:
        flat = PCA(min(2, *x.shape), random_state=seed).fit_transform(x) if len(x) > 1 else x[:, :2]
    else:
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        x = PCA(min(50, *x.shape), random_state=seed).fit_transform(x)
        perplexity = min(30, (len(x) - 1) / 3)
        # Coarser than by default: four times as fast, and a map is only looked at.
        tsne = TSNE(init="pca", perplexity=perplexity, angle=0.7, max_iter=500, random_state=seed,
                    n_jobs=1)  # fmt: skip
        flat = tsne.fit_transform(x)
    if len(flat):
        flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
        low, span = flat.min(0), np.maximum(np.ptp(flat, axis=0), 1e-12)
        place[kept] = (flat - low) / span
    return place
