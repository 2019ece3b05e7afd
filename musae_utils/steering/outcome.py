"""What steering did: to what it was for, to everything else, and to the music (notebook 11).

`hear` listens to a sweep once and knows nothing of what was asked of its rows. `changes` compares
each row with the untouched row of its *unit*, which has the same prompt and the same random
numbers. `test` asks what holds over units.

=============  =====================================================================================
judge          change of the cosine of the sound with the concept's words, by an audio-text model
               that had no part in choosing anything: **the primary outcome**
tagger         change of the concept's log-odds, by estimators trained on truth. What chose the
               features is not their judge; on other prompts and seeds it is a second opinion
others         root mean square change of the log-odds of all concepts that answer other questions
               ("in D" is an answer to the same question as "in G")
nats           change of the mean cross-entropy of the codes under the untouched model, told the
               row's own prompt: positive is less fluent
clipping       share of samples at full scale
silence        share of the time below -50 dB
loops          share of frames that end `LOOP` frames of the first codebook that were played before
broken         whether nats, clipping, silence or loops lie outside the range of all untouched rows
concept        0 to 2: none if the cosine is no higher than the median untouched row's, 2 if higher
               than all of them, and by the share of untouched rows in between
fluency        0 to 2: 2 if as likely as untouched rows on average, 0 if as unlikely as codes drawn
               blindly, and by nats in between
harmonic       harmonic mean of the two, as in AxBench: high only if both are
=============  =====================================================================================

References
----------
Wu et al. (2025), AxBench, arXiv:2501.17148: harmonic means of scores from 0 to 2. Kilgour et al.
(2019), Fréchet audio distance, Interspeech.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import librosa
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from musae_utils import stats, trace
from musae_utils.labels.clap import AudioTextModel
from musae_utils.labels.clap import checked as embedded
from musae_utils.labels.examples import Example, of_sounds
from musae_utils.labels.taggers import UNSURE, Tagger, checked
from musae_utils.labels.words import CONCEPTS, phrase
from musae_utils.models import Generation, MusicModel
from musae_utils.music.concepts import group
from musae_utils.stats import Interval

LOOP = 25  # frames (half a second of the nano model) that make a repetition
QUIET = -50.0  # dB relative to full scale
SOUND = ["nats", "clipping", "silence", "loops"]
ROWS = 16  # read at once


_CONCEPTS = {phrase(concept): concept for concept in CONCEPTS}


class Heard(NamedTuple):
    """What can be heard in each of B rows.

    Attributes
    ----------
    odds : DataFrame of shape (B, tags)
        Log-odds of each concept, by the tagger.
    cosine : DataFrame of shape (B, concepts)
        Of the sound with the concept's words, by the judge.
    embedding : array of shape (B, e)
        The judge's, of the sound.
    sound : DataFrame of shape (B, 4)
        ``nats``, ``clipping``, ``silence``, ``loops``.
    """

    odds: pd.DataFrame
    cosine: pd.DataFrame
    embedding: np.ndarray
    sound: pd.DataFrame


def examples_of(played: Generation) -> list[Example]:
    """The rows of a sweep as a judge takes them."""
    return of_sounds(played.audio.numpy(), played.sample_rate)


def hear(
    model: MusicModel,
    played: Generation,
    tagger: Tagger,
    judge: AudioTextModel,
    concepts: Sequence[str],
) -> Heard:
    """Listen to a sweep.

    Parameters
    ----------
    model : MusicModel
        The one that played, untouched.
    played : Generation
        Of B rows.
    tagger : Tagger
    judge : AudioTextModel
        Another model, trained on other music.
    concepts : sequence of str
        What the judge is asked for, in words.

    Returns
    -------
    Heard
    """
    if tagger.name == judge.name:
        raise ValueError(f"{judge.name} cannot judge what it chose itself: give another judge.")
    sounds = examples_of(played)
    embedding = embedded(judge, "sounds", sounds)
    cosine = embedding @ embedded(judge, "texts", [phrase(concept) for concept in concepts]).T
    audio = played.audio.numpy()
    hop = max(1, round(played.sample_rate / model.frame_rate))
    level = librosa.feature.rms(y=audio, frame_length=2 * hop, hop_length=hop)[:, 0]
    sound = {
        "nats": surprise(model, played.codes, played.prompts),
        "clipping": (np.abs(audio) >= 0.999).mean(1),
        "silence": (level < 10 ** (QUIET / 20)).mean(1),
        "loops": [loops(codes[0].tolist()) for codes in played.codes],
    }
    return Heard(
        log_odds(tagger, sounds),
        pd.DataFrame(cosine, columns=list(concepts)), embedding, pd.DataFrame(sound),
    )  # fmt: skip


def log_odds(tagger: Tagger, sounds: Sequence[Example]) -> pd.DataFrame:
    """Log-odds of each tag in each sound; tags that name a planted concept are called by it."""
    share = checked(tagger, sounds).clip(UNSURE, 1 - UNSURE)
    columns = [_CONCEPTS.get(tag, tag) for tag in tagger.tags]
    return pd.DataFrame(np.log(share / (1 - share)), columns=columns)


@torch.no_grad()
def surprise(model: MusicModel, codes: torch.Tensor, prompts: Sequence[str | None]) -> np.ndarray:
    """Mean cross-entropy of codes (B, K, T) under the untouched model in nats, (B,)."""
    found = []
    for first in range(0, len(codes), ROWS):
        some = codes[first : first + ROWS]
        known = trace.logits(model, some, list(prompts[first : first + ROWS])).log_softmax(-1)
        likely = known.gather(-1, some.to(known.device)[..., None])
        found.append(-likely.mean((1, 2, 3)).cpu().numpy())
    return np.concatenate(found)


def loops(codes: Sequence[int], n: int = LOOP) -> float:
    """Share of frames at which `n` codes end that were played before in the same order.

    Examples
    --------
    >>> loops([1, 2, 3, 4, 1, 2, 3, 4], n=4), loops([1, 2, 3, 4, 5, 6, 7, 8], n=4)
    (0.125, 0.0)
    """
    seen, again = set(), 0
    for end in range(n, len(codes) + 1):
        piece = tuple(codes[end - n : end])
        again += piece in seen
        seen.add(piece)
    return again / max(1, len(codes))


def changes(heard: Heard, rows: pd.DataFrame, cardinality: int) -> pd.DataFrame:
    """What became of each row, beside the untouched row of its unit.

    Parameters
    ----------
    heard : Heard
        Of B rows.
    rows : DataFrame of B lines
        ``unit`` (prompt and seed), ``concept`` (what the row was to raise; "" for untouched rows,
        of which each unit has one), and whatever else says what was done.
    cardinality : int
        Codes to choose from, for the scale of fluency.

    Returns
    -------
    DataFrame
        Of the rows with a concept: the columns of `rows` and those of the module's table.

    Raises
    ------
    ValueError
        A unit without an untouched row, or with several.
    """
    rows = rows.reset_index(drop=True)
    plain = rows.index[rows["concept"] == ""]
    base = pd.Series(plain, index=rows.loc[plain, "unit"])
    done = rows.index[rows["concept"] != ""]
    asked, units = rows.loc[done, "concept"], rows.loc[done, "unit"]
    if not base.index.is_unique or not units.isin(base.index).all():
        raise ValueError("Each unit (a prompt and a seed) needs exactly one untouched row.")
    before = base[units].to_numpy()
    cosine, odds = heard.cosine.to_numpy(), heard.odds.to_numpy()
    place = heard.cosine.columns.get_indexer(asked)
    tag = heard.odds.columns.get_indexer(asked)
    if (place < 0).any():
        raise ValueError(f"The judge was not asked for {asked[place < 0].iloc[0]!r}.")
    moved = odds[done] - odds[before]
    groups = np.array([group(name) for name in heard.odds])
    other = groups != np.array([group(name) for name in asked])[:, None]
    sound, usual = heard.sound.loc[done], heard.sound.loc[plain]
    out = rows.loc[done].copy()
    out["judge"] = cosine[done, place] - cosine[before, place]
    out["tagger"] = np.where(tag >= 0, moved[np.arange(len(done)), tag], np.nan)
    out["others"] = np.sqrt((moved**2 * other).sum(1) / other.sum(1))
    out["nats"] = sound["nats"].to_numpy() - heard.sound["nats"].to_numpy()[before]
    out[SOUND[1:]] = sound[SOUND[1:]]
    out["broken"] = ((sound < usual.min()) | (sound > usual.max())).any(axis=1)
    above = (cosine[done, place][:, None] > cosine[np.ix_(plain, place)].T).mean(1)
    out["concept score"] = 4 * np.clip(above - 0.5, 0, None)
    blind = np.log(cardinality)
    out["fluency score"] = 2 * np.clip(
        (blind - sound["nats"]) / (blind - usual["nats"].mean()), 0, 1
    )
    both = out["concept score"] + out["fluency score"]
    product = 2 * out["concept score"] * out["fluency score"]
    out["harmonic"] = np.where(both > 0, product / both.where(both > 0, 1), 0.0)
    return out


def test(
    table: pd.DataFrame, by: Sequence[str], value: str = "judge", alternative: str = "greater"
) -> pd.DataFrame:
    """Whether rows were raised, over units, and corrected for how many are asked.

    Parameters
    ----------
    table : DataFrame
        Of `changes`.
    by : sequence of str
        Columns that say which rows belong together, such as ``["method", "concept"]``; each unit is
        averaged within. All but the last make a family of tests: those of one method, say.
    value : str
    alternative : {"greater", "less", "two-sided"}

    Returns
    -------
    DataFrame
        A line for each: ``value``, ``low``, ``high``, ``n`` units, ``d`` (Cohen's, paired), ``p``
        (permutation of signs) and ``adjusted`` (Benjamini and Hochberg, within the family).
    """
    by, rows = list(by), {}
    for which, part in table.groupby(by, sort=False):
        x = part.groupby("unit")[value].mean().to_numpy()
        found = stats.paired_test(x, np.zeros(len(x)), alternative=alternative)
        rows[which] = (*found.difference, found.d, found.p)
    columns = [*Interval._fields, "d", "p"]
    out = pd.DataFrame.from_dict(rows, "index", columns=columns)
    out.index = pd.MultiIndex.from_tuples(out.index, names=by)
    families = out.groupby(level=by[:-1], sort=False) if len(by) > 1 else out.groupby(lambda _: 0)
    out["adjusted"] = families["p"].transform(stats.benjamini_hochberg)
    return out


def wins(
    table: pd.DataFrame, method: str, rival: str, value: str = "judge"
) -> tuple[Interval, Interval]:
    """How often a method raises its concept more than a rival, and by how much more.

    Pairs are of one concept and unit; concepts are what is resampled.

    Returns
    -------
    ratio : Interval
        Wins to losses (ties count half on both sides).
    difference : Interval
        Mean over concepts.
    """
    pairs = table.pivot_table(value, ["concept", "unit"], "method")[[method, rival]].dropna()
    gap = (pairs[method] - pairs[rival]).to_numpy()
    share = stats.bootstrap((np.sign(gap) + 1) / 2, groups=pairs.index.get_level_values("concept"))
    odds = [x / max(1 - x, 0.5 / len(gap)) for x in share[:3]]
    each = stats.bootstrap(gap, groups=pairs.index.get_level_values("concept"))
    return Interval(*odds, share.n), each


def frechet(a: ArrayLike, b: ArrayLike) -> float:
    """Fréchet distance of two sets of embeddings (n, e) and (m, e), by torchaudio's function.

    With few rows it is too large: compare sets of equal sizes only.
    """
    from torchaudio.functional import frechet_distance

    told = [torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (a, b)]
    return float(frechet_distance(*(part for x in told for part in (x.mean(0), torch.cov(x.T)))))


def breaks_at(table: pd.DataFrame, share: float = 0.5) -> float:
    """The least strength at which more than this share of rows are broken; NaN if none is."""
    broken = table.groupby("strength")["broken"].mean()
    return float(min(broken.index[broken > share], default=np.nan))
