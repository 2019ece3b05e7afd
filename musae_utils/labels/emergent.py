"""Features that are heard and have no name: audible, unplanted, beyond any caption, not prompted.

A feature is a candidate for *emergent* if it can be heard and nothing that can be said of it holds:

heard          sounds near its active examples of the finding half, in an audio embedding, are told
               from those near its silent ones: AUC on the scoring half
unplanted      of all planted concepts the one that does best on the finding half does not on the
               scoring half
no caption     nor does the best of all texts, by the cosine of an audio-text model

The embedding may hear what no text can say, so the first is no contradiction to the third. What is
left is whether a *prompt* brings the feature about: `reached` compares what it does while the model
plays from prompts with what it does in real music. Met in notebook 09.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from musae_utils import stats
from musae_utils.labels.clap import AudioTextModel
from musae_utils.labels.contrast import shares
from musae_utils.labels.examples import Examples

HEARD = 0.75  # AUC from which a feature is heard, and a name tells its examples apart


def audible(
    examples: Sequence[Examples], ear: AudioTextModel, texts: Sequence[str]
) -> pd.DataFrame:
    """What of features can be heard, and what of that can be said.

    Parameters
    ----------
    examples : list of Examples
        Of music with truth; those with a problem are left out.
    ear : AudioTextModel
    texts : list of str
        All that could be said.

    Returns
    -------
    DataFrame by feature
        ``heard``, ``planted`` and ``caption``: AUC on the scoring half of the embedding, of the
        best planted concept and of the best text, both chosen on the finding half (``concept``,
        ``text``); and ``emergent``: the first is at least `HEARD` and significant, the others are
        not. P-values are one-sided and adjusted over the features (Benjamini and Hochberg).
    """
    words = ear.embed_texts(list(texts))
    rows, p = {}, {}
    for chosen in (one for one in examples if not one.problem):
        half, other = chosen.finding, chosen.scoring
        first, second = ear.embed_sounds(half.all), ear.embed_sounds(other.all)
        towards = first[half.fires].mean(0) - first[~half.fires].mean(0)
        held, holds = (
            pd.DataFrame([shares(sound) for sound in side.all]).fillna(0.5)
            for side in (half, other)
        )
        concept = _best(held.to_numpy(), half.fires)
        text = _best(first @ words.T, half.fires)
        asked = {
            "heard": second @ towards,
            "planted": holds[held.columns[concept]].to_numpy(),
            "caption": second @ words[text],
        }
        told = {name: _told(values, other.fires) for name, values in asked.items()}
        rows[chosen.feature] = {name: value for name, (value, _) in told.items()}
        rows[chosen.feature] |= {"concept": held.columns[concept], "text": texts[text]}
        p[chosen.feature] = {name: sure for name, (_, sure) in told.items()}
    table = pd.DataFrame.from_dict(rows, "index").rename_axis("feature")
    if not len(table):
        return table
    sure = pd.DataFrame.from_dict(p, "index").apply(stats.benjamini_hochberg) < 0.05
    clear = sure & (table[["heard", "planted", "caption"]] >= HEARD)
    return table.assign(emergent=clear["heard"] & ~clear["planted"] & ~clear["caption"])


def reached(real: np.ndarray, played: np.ndarray) -> pd.Series:
    """How far prompts bring features: the strongest piece played, among the pieces of real music.

    Parameters
    ----------
    real, played : arrays of shape (pieces, features)
        A feature's mean activation in each real piece, and in each that was played from a prompt.

    Returns
    -------
    Series of shape (features,)
        Share of the real pieces in which the feature is active that the strongest played piece
        exceeds, in [0, 1]: 0 is out of the prompts' reach, NaN if no real piece has it active.
    """
    real, most = np.asarray(real, float), np.asarray(played, float).max(0)
    active = real > 0
    with np.errstate(invalid="ignore"):
        return pd.Series(((real < most) & active).sum(0) / active.sum(0))


def _best(values: np.ndarray, fires: np.ndarray) -> int:
    """The column that tells best which rows fire."""
    return int(np.nan_to_num(stats.auc(values, fires[:, None])[:, 0]).argmax())


def _told(values: np.ndarray, fires: np.ndarray) -> tuple[float, float]:
    """AUC and one-sided p."""
    test = mannwhitneyu(values[fires], values[~fires], alternative="greater")
    return float(test.statistic / (fires.sum() * (~fires).sum())), float(test.pvalue)
