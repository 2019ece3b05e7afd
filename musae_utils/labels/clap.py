"""Names from models that place sounds and texts in one space (CLAP's kind; notebook 08).

The same model can name features or judge the names that others gave, never both of one label: a
text that was chosen because its cosine is high will have a high cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from musae_utils.labels.examples import Example, Half
from musae_utils.labels.label import Label, clean
from musae_utils.labels.taggers import clearest
from musae_utils.labels.words import GROUPS, phrase
from musae_utils.music.captions import PROGRAM_WORDS
from musae_utils.music.clip import MODES, PITCH_NAMES

#: What needs more than an ear: a memory of the whole piece, or absolute time.
UNHEARD = ("form", "section", "motif", "beat", "sounding pitch", "melody pitch")


class AudioTextModel(Protocol):
    """What places sounds and texts in one space of e dimensions.

    Attributes
    ----------
    name : str
    """

    name: str

    def embed_sounds(self, sounds: Sequence[Example]) -> np.ndarray:
        """Unit rows of shape (sounds, e)."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows of shape (texts, e)."""


def candidate_texts() -> tuple[str, ...]:
    """What can be heard, in words: phrases of concepts, keys, chords, instruments by name."""
    phrases = [phrase(c) for kind, of in GROUPS.items() if kind not in UNHEARD for c in of]
    keys = [f"in {note} {mode}" for note in PITCH_NAMES for mode in MODES]
    return tuple(dict.fromkeys([*phrases, *keys, *PROGRAM_WORDS.values()]))


class CLAPLabeler:
    """The candidate text whose cosine tells active from silent examples most clearly.

    A `Labeler`, and an `AudioTextScorer` of the same name: a text's score is its cosine.

    Parameters
    ----------
    model : AudioTextModel
    texts : sequence of str, optional
        Candidates, all compared and corrected for as `contrasts` does; `candidate_texts` if not
        given.

    Examples
    --------
    >>> CLAPLabeler(nano_clap()).label(chosen.finding).text  # doctest: +SKIP
    'melody on a flute'
    """

    def __init__(self, model: AudioTextModel, texts: Sequence[str] | None = None) -> None:
        self.model, self.name = model, model.name
        said = (clean(text) for text in (candidate_texts() if texts is None else texts))
        self.texts = tuple(dict.fromkeys(filter(None, said)))
        if not self.texts:
            raise ValueError("There is no text to choose from: give at least one candidate.")
        self._embedded: np.ndarray | None = None

    def label(self, half: Half) -> Label:
        """See `Labeler`."""
        if self._embedded is None:
            self._embedded = checked(self.model, "texts", self.texts)
        # A sound that is near to every text (a loud one, say) is no nearer to any of them.
        cosines = checked(self.model, "sounds", half.all) @ self._embedded.T
        cosines -= cosines.mean(1, keepdims=True)
        table = pd.DataFrame(cosines, columns=list(self.texts))
        return clearest(half, self.name, table, "texts", "cosine above the sound's mean")

    def score(self, sounds: Sequence[Example], text: str) -> np.ndarray:
        """Cosines of a text with sounds, in [-1, 1]; see `AudioTextScorer`."""
        text = checked(self.model, "texts", [text])
        return (checked(self.model, "sounds", sounds) @ text.T)[:, 0]


def checked(model: AudioTextModel, kind: str, things: Sequence) -> np.ndarray:
    """A model's embeddings of ``"sounds"`` or ``"texts"``, refused if they are not unit rows."""
    found = np.asarray(getattr(model, f"embed_{kind}")(things), float)
    if found.ndim != 2 or len(found) != len(things) or not np.isfinite(found).all():
        raise ValueError(
            f"{model.name!r} embedded {len(things)} {kind} as numbers of shape {found.shape}: a "
            "finite row for each was expected."
        )
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
