"""Labels marked against written truth, judges likewise, and labels on which methods agree.

Composed music knows what is true of it, so here an automatic label need not be voted on: `mark`
says how many of a method's labels hold of examples that no method saw. The same truth says how
often a judge is right (`calibrate`), before anyone believes what it says about labels. And methods
that err independently seldom make the same mistake: `agreed` keeps what several of them say.

Met in notebooks 08 and 09.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from musae_utils import stats
from musae_utils.labels.contrast import shares
from musae_utils.labels.examples import Example
from musae_utils.labels.label import Label
from musae_utils.labels.scoring import AudioTextScorer, Scores, Unjudged
from musae_utils.labels.words import concepts_in, phrase
from musae_utils.music import concepts

TRUE = 0.75  # AUC of written truth from which a label is called true, if it is significant too
VOTES = 2  # methods that must say the same
HOLDS, FAILS = 0.5, 0.0  # share of a sound in which a concept counts as there, and as absent
LEAST = 5  # sounds with a concept, and without


def agreed(labels: Iterable[Label], method: str = "ensemble") -> list[Label]:
    """What at least two methods say of a feature, as labels of a method of their own.

    Texts are compared by the concepts that they speak of (`words.concepts_in`). The concept with
    most votes wins, among equals the one that earlier methods name. Where no two methods name the
    same concept but two the same pitch ("A chords", "the note A"), what the earlier one says of it
    is the name; else the ensemble abstains.

    Parameters
    ----------
    labels : iterable of Label
        Of several methods; more trusted methods first.
    method : str
        Name of the ensemble.

    Returns
    -------
    list of Label
        One for each feature, in the order of their first labels.

    Examples
    --------
    >>> said = [("a", "a flute in D"), ("b", "soft flute"), ("c", "drums")]
    >>> agreed(Label(feature=3, method=m, text=t) for m, t in said)[0].text
    'flute'
    """
    said: dict[int, list[Label]] = {}
    for label in labels:
        said.setdefault(label.feature, []).append(label)
    found = []
    for feature, mine in said.items():
        spoken = {label.method: concepts_in(label.text) for label in mine}
        for about in (str, _pitch):
            votes = Counter(x for named in spoken.values() for x in {about(c) for c in named} if x)
            first = [c for named in spoken.values() for c in named if votes[about(c)] >= VOTES]
            if first:
                break
        else:
            why = f"No two of {len(mine)} methods name the same."
            found.append(Label(feature=feature, method=method, evidence=why))
            continue
        best = max(first, key=lambda c: votes[about(c)])  # the first among equals
        who = [m for m, named in spoken.items() if about(best) in map(about, named)]
        evidence = f"{', '.join(who)} agree, of {len(mine)} methods"
        evidence += "." if about is str else f", on the pitch; {who[0]} says what of it."
        found.append(Label(feature=feature, method=method, text=phrase(best), evidence=evidence))
    return found


def _pitch(concept: str) -> str:
    """The pitch class that a concept is about, "" for others."""
    kind, value = concept.split(": ", 1)
    return value if kind in ("tonic", "chord root", "melody", "sounding") else ""


def truths(scores: Scores, judge: str = "written truth") -> pd.DataFrame:
    """The labels that this judge has scored, each with whether it is ``true``.

    A label is true of its feature if what it speaks of tells active from silent examples of the
    scoring half with an AUC of at least `TRUE`, significantly so after Benjamini and Hochberg.
    """
    table = scores.table
    if judge not in set(table["judge"]):
        raise ValueError(
            f"No label was scored by {judge!r}; judges were {', '.join(table['judge'].unique())}."
        )
    table = table[table["judge"] == judge].copy()
    table["true"] = (table["auc"] >= TRUE) & (table["adjusted"] < 0.05)
    return table


def mark(scores: Scores, judge: str = "written truth") -> pd.DataFrame:
    """Precision and coverage of each method's labels.

    Parameters
    ----------
    scores : Scores
        Among whose judges is written truth.
    judge : str
        Its name.

    Returns
    -------
    DataFrame by method
        ``features``; ``abstained``; ``not judged`` (the text speaks of nothing that was planted);
        ``judged``; ``precision`` (Interval: true labels of those judged) and ``coverage``
        (Interval: features with a true label, of all). None where there is nothing to divide by.
    """
    rows = {}
    for method, part in truths(scores, judge).groupby("method", sort=False):
        judged, abstained = part["auc"].notna(), part["text"] == ""
        true = int(part["true"].sum())
        rows[method] = {
            "features": len(part), "abstained": int(abstained.sum()),
            "not judged": int((~judged & ~abstained).sum()), "judged": int(judged.sum()),
            "precision": stats.proportion(true, int(judged.sum())) if judged.any() else None,
            "coverage": stats.proportion(true, len(part)),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, "index").rename_axis("method")


def mark_concepts(scores: Scores, judge: str = "written truth") -> pd.DataFrame:
    """Precision by what labels speak of.

    Returns
    -------
    DataFrame by (method, group)
        ``judged`` labels that speak of a concept of the group, and how many of them are ``true``.
    """
    table = truths(scores, judge)
    table = table[table["auc"].notna()]
    rows = [
        {"method": row.method, "group": group, "true": row.true}
        for row in table.itertuples()
        for group in dict.fromkeys(concepts.group(c) for c in concepts_in(row.text))
    ]
    found = pd.DataFrame(rows, columns=["method", "group", "true"])
    return found.groupby(["method", "group"], sort=False)["true"].agg(judged="size", true="sum")


def calibrate(
    judges: Mapping[str, AudioTextScorer | None],
    sounds: Sequence[Example],
    names: Iterable[str] | None = None,
) -> pd.DataFrame:
    """How often judges are right about sounds whose truth is known.

    Each is asked for the phrase of a concept. Its AUC is the chance that it gives more to a sound
    in which the concept holds (for at least half of the time) than to one in which it never does.

    Parameters
    ----------
    judges : dict of name to AudioTextScorer
        None for one that is not there.
    sounds : list of Example
        With truth; one of a composition, on which no judge has learnt.
    names : iterable of str, optional
        Concepts; all by default.

    Returns
    -------
    DataFrame by (judge, concept)
        ``auc`` (Interval over sounds), ``holds`` and ``fails`` (sounds on either side). Concepts
        with fewer than five sounds on a side, and those a judge cannot judge, are left out.
    """
    if any(sound.truth is None for sound in sounds):
        raise ValueError("Judges are calibrated on music whose truth is known; this is not.")
    held = pd.DataFrame([shares(sound) for sound in sounds])
    rows = {}
    for name in held.columns if names is None else names:
        text, holds, fails = phrase(name), held[name] >= HOLDS, held[name] <= FAILS
        if min(holds.sum(), fails.sum()) < LEAST:
            continue
        asked = (holds | fails).to_numpy()
        for judge, listener in judges.items():
            if listener is None:
                continue
            try:
                said = listener.score([s for s, a in zip(sounds, asked, strict=True) if a], text)
            except Unjudged:
                continue
            interval = _auc(np.asarray(said, float), holds.to_numpy()[asked])
            rows[judge, name] = {
                "auc": interval, "holds": int(holds.sum()), "fails": int(fails.sum())
            }  # fmt: skip
    index = pd.MultiIndex.from_tuples(rows, names=["judge", "concept"])
    return pd.DataFrame(list(rows.values()), index, columns=["auc", "holds", "fails"])


def _auc(said: np.ndarray, holds: np.ndarray) -> stats.Interval:
    value, influence = stats.grouped_auc(said[:, None], holds[:, None], np.arange(len(said)))
    reach = 1.96 * float(np.sqrt((influence**2).sum()))
    value = float(value[0])
    return stats.Interval(value, max(0.0, value - reach), min(1.0, value + reach), len(said))
