"""A lot of features to name, with music to find names on and music to score them on.

Three sets of compositions, none in two of them: features are *chosen* on training pieces, *named*
on one half of held-out pieces and *scored* on the other half. A lot holds features that follow a
planted concept, of each kind of concept no more than a few (else drums, which many features follow,
would decide every average), and features drawn from all that pass S1's filter, whatever they
follow. Used by notebooks 08 and 09, and by the scoreboard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from musae_utils.features import FeatureAtlas, encode, sounds
from musae_utils.labels.examples import Example, Examples, choose_examples
from musae_utils.music import concepts

if TYPE_CHECKING:
    from musae_utils.activations import ActivationStore
    from musae_utils.models import MusicModel
    from musae_utils.sae import SAE

FOLLOWS = 0.75  # AUC on pieces on which the concept was not chosen, to count as following it
APART = 70_000  # first composition of the held-out pieces; no other part of the book uses them


@dataclass(repr=False)
class Study:
    """Features, and their examples.

    Attributes
    ----------
    sae : SAE
    known, unseen : ActivationStore
        Training pieces, on which features were chosen; held-out pieces.
    atlas : FeatureAtlas
        Of the held-out pieces.
    planted : Series
        The concept that each feature follows on training pieces, "" for one that was drawn. Its
        index are the features.
    auc : Series
        How well: AUC on the half of the training pieces on which the concept was not chosen.
    examples : list of Examples
        In the order of `planted`.
    sound : callable
        A held-out piece's Clip by its number.
    """

    sae: SAE
    known: ActivationStore
    unseen: ActivationStore
    atlas: FeatureAtlas
    planted: pd.Series
    auc: pd.Series
    examples: list[Examples] = field(repr=False)
    sound: Callable[[int], Any] = field(repr=False)

    def of(self, feature: int) -> Examples:
        """The examples of one feature."""
        return self.examples[self.planted.index.get_loc(feature)]

    def pieces(self, window: float | None = None, seed: int = 0) -> list[Example]:
        """One window of each held-out piece, at a place drawn for it: to try judges on."""
        rng, found = np.random.default_rng(seed), []
        for number, about in enumerate(self.unseen.clips):
            clip = self.sound(number)
            length = clip.seconds if window is None else min(window, clip.seconds)
            start = rng.uniform(0, clip.seconds - length)
            part = clip.audio[round(start * clip.sample_rate) :]
            found.append(
                Example(number, about.name, about.group, start, start + length, 0.0,
                        part[: round(length * clip.sample_rate)], clip.sample_rate, clip.truth)
            )  # fmt: skip
        return found

    def __repr__(self) -> str:
        follow = int((self.planted != "").sum())
        return (
            f"Study: {len(self.planted)} features, of which {follow} follow a planted concept of "
            f"{self.planted[self.planted != ''].map(concepts.group).nunique()} kinds; "
            f"{len(self.known.clips)} pieces to choose on, {len(self.unseen.clips)} to name and "
            "score on"
        )


def study(
    model: MusicModel,
    layer: int,
    folder: str | Path,
    pieces: int = 96,
    seconds: float = 10.0,
    window: float | None = 2.0,
    each: int = 6,
    drawn: int = 12,
    n: int = 20,
    seed: int = 0,
    sae: SAE | None = None,
    filtered: tuple[float, float] = (0.01, 0.25),
) -> Study:
    """Choose features and their examples.

    Parameters
    ----------
    model : MusicModel
    layer : int
    folder : str or Path
        Where activations are kept; a second study of the same music reads nothing again.
    pieces : int
        Compositions on either side.
    seconds, window : float
        Length of pieces, and of examples (None: whole pieces).
    each, drawn : int
        Features of each kind of planted concept, at most; others, drawn from all that pass the
        filter.
    n : int
        Active and silent examples in each half; see `choose_examples`.
    seed : int
        Which music, and which features of those that might be taken.
    sae : SAE, optional
        Another one of this layer than the shipped.
    filtered : (float, float)
        Thresholds of S1's filter; see `FeatureAtlas.kept`.

    Returns
    -------
    Study
    """
    from musae_utils import activations, music
    from musae_utils.sae import shipped

    def composed(split: str) -> Iterator:
        for number in range(pieces):
            yield from music.make_many(1, APART + seed * 1000 + number, seconds, split)

    def harvested(split: str):
        layers = sorted({layer, *shipped.layers(model)})  # so that studies share the reading
        read = "-".join(map(str, layers))
        name = f"study-{model.fingerprint}-{read}-{split}-{pieces}-{seconds:g}-{seed}"
        place = Path(folder) / name
        return activations.harvest(model, composed(split), layers, place, progress=False)

    known, unseen = harvested("train"), harvested("test")
    sae = sae or shipped.pretrained(model, layer, known, folder)
    chosen_on = FeatureAtlas.of(sae, known)
    table = chosen_on.to_frame()[chosen_on.kept(*filtered)]
    table = table.iloc[np.random.default_rng(seed).permutation(len(table))]
    codes = encode(sae, unseen)
    atlas = FeatureAtlas.of(sae, unseen, codes=codes)
    follows = table[table["auc"] >= FOLLOWS]
    kind = follows["concept"].map(concepts.group)
    follows = follows[kind.groupby(kind).cumcount() < each]["concept"].sort_values()
    rest = table.index.difference(follows.index, sort=False)[:drawn]
    planted = pd.concat([follows, pd.Series("", rest, dtype=object)]).rename("concept")
    auc = table["auc"][planted.index]
    sound = _sounds(unseen.folder)
    examples = [
        choose_examples(atlas, int(f), sound, n, window, codes, unseen, seed) for f in planted.index
    ]
    return Study(sae, known, unseen, atlas, planted, auc, examples, sound)


@functools.lru_cache(maxsize=2)
def _sounds(folder: Path) -> Callable[[int], Any]:
    """Sounds of a store's pieces, each composed once for all studies of them."""
    from musae_utils.activations import ActivationStore

    return functools.cache(sounds(ActivationStore.open(folder)))
