"""Many clips at once: splits by composition, independent attributes, deliberate confounds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd

from musae_utils.music.clip import FAMILIES, Clip
from musae_utils.music.compose import TEMPI, Spec, compose
from musae_utils.music.render import render

#: First seed of each split. Compositions of different splits never share one.
SPLIT_SEEDS = {"train": 0, "test": 1_000_000_000, "validation": 2_000_000_000}

ATTRIBUTES = ("tonic", "mode", "tempo", "metre", "family", "drums", "form", "register",
              "articulation", "dynamics", "texture")  # fmt: skip


def make(spec: Spec | None = None, seed: int = 0, held_out_presets: bool = False, **fields) -> Clip:
    """Compose and render one clip.

    Parameters
    ----------
    spec : Spec, optional
        What to write; open fields are drawn.
    seed : int
    held_out_presets : bool
        Play the lead on a program that training never hears.
    **fields
        Fields of `Spec` to fix, e.g. ``family="flute", seconds=20``.

    Returns
    -------
    Clip

    Examples
    --------
    >>> make(seed=3, tonic=2, mode=1, family="flute").truth.clip["key"]
    'D minor'
    """
    try:
        spec = replace(spec or Spec(), **fields)
    except TypeError:
        known = ", ".join(Spec.__dataclass_fields__)
        unknown = ", ".join(sorted(set(fields) - set(Spec.__dataclass_fields__)))
        raise ValueError(f"A spec has no field {unknown}; its fields are {known}.") from None
    return render(compose(spec, seed, held_out_presets), seed)


def confounded(
    spec: Spec, rng: np.random.Generator, pair: tuple[str, str], strength: float
) -> Spec:
    """Tie the second attribute to the first in a share ``strength`` of clips."""
    first, second = pair
    levels = {
        "tonic": range(12), "mode": (0, 1), "tempo": TEMPI, "metre": (3, 4), "family": FAMILIES,
        "drums": (False, True), "register": ("low", "middle", "high"),
        "articulation": ("legato", "staccato"), "dynamics": ("soft", "medium", "loud"),
    }  # fmt: skip
    if first not in levels or second not in levels:
        raise ValueError(f"confound is {pair}; it can be a pair of {', '.join(levels)}.")
    n, m = len(levels[first]), len(levels[second])
    a = int(rng.integers(n))
    tied = rng.random() < strength
    b = a * m // n if tied else int(rng.integers(m))
    kinds = {"tempo": float, "drums": bool}
    value = lambda name, i: kinds.get(name, lambda x: x)(levels[name][i])  # noqa: E731
    return replace(spec, **{first: value(first, a), second: value(second, b)})


def make_many(
    n: int,
    seed: int = 0,
    seconds: float = 10.0,
    split: str = "test",
    held_out_presets: bool = False,
    confound: tuple[str, str] | None = None,
    confound_strength: float = 1.0,
    **fields,
) -> list[Clip]:
    """Compose and render many clips with independent attributes.

    Parameters
    ----------
    n : int
    seed : int
        Shifts within the split; clip ``i`` is composition ``seed + i`` of it.
    seconds : float
        5-40.
    split : {"train", "test", "validation"}
        Compositions never overlap between splits; the nano models saw only "train".
    held_out_presets : bool
        Lead instruments from programs that training never hears.
    confound : (str, str), optional
        Tie the second attribute to the first, on purpose.
    confound_strength : float
        Share of clips in which they are tied, in [0, 1].
    **fields
        Fields of `Spec` to fix in every clip.

    Returns
    -------
    list of Clip
    """
    if split not in SPLIT_SEEDS:
        raise ValueError(f"split is {split!r}; it can be one of {', '.join(SPLIT_SEEDS)}.")
    if n < 0 or seed < 0 or seed + n > 1_000_000_000:
        raise ValueError(
            f"n is {n} and seed is {seed}; both count from 0, and a split ends at 1,000,000,000."
        )
    clips = []
    for i in range(n):
        number = SPLIT_SEEDS[split] + seed + i
        spec = replace(Spec(seconds=seconds), **fields)
        if confound:
            rng = np.random.default_rng([number, 99])
            spec = confounded(spec, rng, confound, confound_strength)
        clips.append(make(spec, number, held_out_presets))
    return clips


def association(clips: list[Clip], attributes: tuple[str, ...] = ATTRIBUTES) -> pd.DataFrame:
    """How much each attribute tells about each other: bias-corrected Cramér's V in [0, 1].

    Tempo is taken in thirds (slow, moderate, fast). Near 0 everywhere means that no attribute is
    accidentally a clue to another. Bergsma (2013).
    """
    from musae_utils.music.captions import tempo_word
    from musae_utils.stats import cramers_v

    columns = {
        a: [tempo_word(c.truth.clip[a]) if a == "tempo" else c.truth.clip[a] for c in clips]
        for a in attributes
    }
    table = pd.DataFrame(np.eye(len(attributes)), index=attributes, columns=attributes)
    for a, b in itertools.combinations(attributes, 2):
        table.loc[a, b] = table.loc[b, a] = cramers_v(columns[a], columns[b])
    return table
