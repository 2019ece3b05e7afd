"""What a label is, who may give one, and how its text is kept harmless.

Text of a label may come from a language model, a file or a reader. It is kept as plain text without
control or direction marks and cut to a length that fits a table (`clean`), and it meets a page only
through `safe`, in which neither HTML nor Markdown can begin.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from tqdm.auto import tqdm

from musae_utils import runs
from musae_utils.labels.examples import Examples, Half

LONGEST, LONGEST_EVIDENCE = 120, 600  # characters


class Unavailable(RuntimeError):
    """A method cannot be asked at all: no key, no connection, no money left. Not an abstention."""


def clean(text: str, longest: int = LONGEST) -> str:
    """One line of plain text: no control, direction or invisible characters, cut to a length.

    Examples
    --------
    >>> clean("  slow\\n\\u202e flute ")
    'slow flute'
    >>> clean("a" * 50_000, 10)
    'aaaaaaaaa…'
    """
    text = re.sub(r"\s+", " ", text[: 20 * longest])  # what is cut off anyway costs nothing
    text = "".join(c for c in text if unicodedata.category(c)[0] != "C")
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def safe(text: str) -> str:
    """The same text for a page, in HTML or Markdown: every ASCII mark becomes a character entity.

    Examples
    --------
    >>> safe("<b> & *C#*")
    '&#60;b&#62; &#38; &#42;C&#35;&#42;'
    """
    return re.sub(r"[!-/:-@\[-`{-~]", lambda mark: f"&#{ord(mark[0])};", text)


class Label(BaseModel):
    """What a method says of a feature.

    Attributes
    ----------
    feature : int
    method : str
        Who says it: a `Labeler`'s name.
    text : str
        The label, one line; "" if the method abstains.
    evidence : str
        What it rests on, or why the method abstains.
    cost : float
        US dollars paid for it.

    Examples
    --------
    >>> label = Label(feature=3, method="descriptors", text="loud <drums>")
    >>> label.abstains, label.text
    (False, 'loud <drums>')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: int = Field(ge=0)
    method: str = Field(min_length=1)
    text: str = ""
    evidence: str = ""
    cost: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @field_validator("text")
    @classmethod
    def _clean_text(cls, text: str) -> str:
        return clean(text)

    @field_validator("evidence")
    @classmethod
    def _clean_evidence(cls, text: str) -> str:
        return clean(text, LONGEST_EVIDENCE)

    @property
    def abstains(self) -> bool:
        return not self.text

    def _repr_html_(self) -> str:
        said = f"<b>{safe(self.text)}</b>" if self.text else "<i>abstains</i>"
        return (
            f"<p>Feature {self.feature}: {said} "
            f"<small>({safe(self.method)}: {safe(self.evidence)})</small></p>"
        )


class Labeler(Protocol):
    """A method of naming features.

    Attributes
    ----------
    name : str
    """

    name: str

    def label(self, half: Half) -> Label:
        """Name a feature from the finding half of its examples; the other half is out of reach.

        Raises
        ------
        Unavailable
            The method cannot be asked, of this feature or of any other.
        """


class Named(NamedTuple):
    """What all methods said.

    Attributes
    ----------
    labels : list of Label
        Abstentions among them.
    missing : dict of method to str
        Why a method could not be asked; labels that it gave before are among `labels`.
    """

    labels: list[Label]
    missing: dict[str, str]


def name_features(
    labelers: Sequence[Labeler], features: Iterable[Examples], progress: bool = True
) -> Named:
    """Let each method name each feature from the finding half of its examples.

    A feature that gives no two halves (it never fires, say) is named by none: each abstains. A
    method that cannot be asked is left out, with its reason, and the others go on.

    Parameters
    ----------
    labelers : sequence of Labeler
        Of different names.
    features : iterable of Examples
    progress : bool

    Returns
    -------
    Named

    Examples
    --------
    >>> named = name_features([Truth(), Descriptors()], chosen)  # doctest: +SKIP
    """
    names = [labeler.name for labeler in labelers]
    if len(set(names)) < len(names):
        raise ValueError(f"Methods are told apart by their names, and these are {names}.")
    labels, missing = [], {}
    for examples in tqdm(features, desc="naming", unit="feature", disable=not progress):
        for labeler in (one for one in labelers if one.name not in missing):
            if examples.problem:
                labels.append(abstain(examples.finding, labeler.name, examples.problem))
                continue
            try:
                labels.append(labeler.label(examples.finding))
            except Unavailable as error:
                missing[labeler.name] = str(error)
    return Named(labels, missing)


def abstain(half: Half, method: str, why: str, cost: float = 0.0) -> Label:
    """A label without text, and why."""
    return Label(feature=half.feature, method=method, evidence=why, cost=cost)


def save(path: str | Path, labels: Iterable[Label]) -> Path:
    """Write labels as JSON, completely or not at all."""
    runs.save_json(path, [label.model_dump() for label in labels])
    return Path(path)


def load(path: str | Path) -> list[Label]:
    """Read what `save` wrote; what somebody else wrote there is cleaned or refused.

    Raises
    ------
    RunError
        The file holds something else.
    """
    try:
        return [Label.model_validate(item) for item in runs.load_json(path)]
    except (ValidationError, TypeError):
        raise runs.RunError(f"{path} does not hold labels: delete it, and name again.") from None
