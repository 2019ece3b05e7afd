"""Names from taggers, which say how surely each of their tags holds in a sound (notebook 08).

The same tagger can name features or judge the names that others gave, never both of one label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from musae_utils.labels.contrast import ALPHA, CLEAR, contrasts
from musae_utils.labels.examples import Example, Half
from musae_utils.labels.label import Label, abstain
from musae_utils.labels.scoring import Unjudged
from musae_utils.labels.words import concepts_in
from musae_utils.music.captions import words

UNSURE = 1e-4  # a probability nearer to 0 or 1 is not believed to be


class Tagger(Protocol):
    """What tags sounds.

    Attributes
    ----------
    name : str
    tags : tuple of str
        In words, as a label would say them.
    """

    name: str
    tags: tuple[str, ...]

    def probabilities(self, sounds: Sequence[Example]) -> np.ndarray:
        """How surely each tag holds: in [0, 1], of shape (sounds, tags)."""


class TagLabeler:
    """The tag that tells active from silent examples most clearly (a `Labeler`).

    All tags are compared as `contrasts` does, with Holm's correction for their number. Only what
    the active examples have more of is a name.

    Examples
    --------
    >>> TagLabeler(nano_tagger()).label(chosen.finding).text  # doctest: +SKIP
    'with drums'
    """

    def __init__(self, tagger: Tagger) -> None:
        self.tagger, self.name = tagger, tagger.name

    def label(self, half: Half) -> Label:
        """See `Labeler`."""
        table = pd.DataFrame(checked(self.tagger, half.all), columns=list(self.tagger.tags))
        return clearest(half, self.name, table, "tags", "probability")


def clearest(half: Half, method: str, table: pd.DataFrame, kind: str, number: str) -> Label:
    """The candidate whose numbers are most clearly higher in active examples, or an abstention.

    Parameters
    ----------
    half : Half
    method : str
    table : DataFrame of shape (examples, candidates)
        Numbers for ``half.all``.
    kind, number : str
        What candidates and numbers are called in the evidence.
    """
    asked = contrasts(table[half.fires], table[~half.fires])
    tried = f"after Holm for {len(asked)} {kind}"
    more = asked[asked["delta"] > 0]
    clear = more[(more["adjusted"] < ALPHA) & (more["delta"] >= CLEAR)]
    if clear.empty:
        said = "no sound differs from another in any"
        if len(more):
            near = more.iloc[0]
            said = f"nearest is {near.name!r} with Cliff's delta {near['delta']:.2f}, "
            said += f"p = {near['adjusted']:.2g} {tried}"
        return abstain(half, method, f"None of the {kind} is clear: {said}.")
    best = clear.iloc[0]
    said = (
        f"Median {number} {best['active']:.2f} in active examples, {best['silent']:.2f} in silent "
        f"ones (Cliff's delta {best['delta']:.2f}, p = {best['adjusted']:.2g} {tried})."
    )
    if len(clear) > 1:
        said += f" Also clear: {', '.join(clear.index[1:4])}."
    return Label(feature=half.feature, method=method, text=best.name, evidence=said)


class TagJudge:
    """Scores a text by the tags that it speaks of (an `AudioTextScorer`).

    A tag is spoken of if the text names the tag's planted concepts, all of them; a tag that names
    none is spoken of if the text holds its words, in their order. The score is the mean of those
    tags' log odds.
    """

    def __init__(self, tagger: Tagger) -> None:
        self.tagger, self.name = tagger, tagger.name
        self._meant = [(set(concepts_in(tag)), words(tag)) for tag in tagger.tags]

    def score(self, sounds: Sequence[Example], text: str) -> np.ndarray:
        """See `AudioTextScorer`."""
        named, heard = set(concepts_in(text)), words(text)

        def runs(said: list[str]) -> bool:
            places = range(len(heard) - len(said) + 1)
            return any(heard[i : i + len(said)] == said for i in places)

        spoken = [
            i
            for i, (meant, said) in enumerate(self._meant)
            if (meant <= named if meant else said and runs(said))
        ]
        if not spoken:
            raise Unjudged(f"The text speaks of none of the {len(self._meant)} tags.")
        surely = checked(self.tagger, sounds)[:, spoken].clip(UNSURE, 1 - UNSURE)
        return np.log(surely / (1 - surely)).mean(1)


def checked(tagger: Tagger, sounds: Sequence[Example]) -> np.ndarray:
    """A tagger's probabilities, refused if they are none."""
    found = np.asarray(tagger.probabilities(sounds), float)
    if found.shape != (len(sounds), len(tagger.tags)) or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(
            f"The tagger {tagger.name!r} gave numbers of shape {found.shape} for {len(sounds)} "
            f"sounds and {len(tagger.tags)} tags: a probability for each was expected."
        )
    return found
