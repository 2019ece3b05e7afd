"""Does a motif return? Labels from sound alone, of any sound.

A `Labeler` is a weighted sum of `hearing.SCORES` and a threshold; `labeler` is the kept one, which
`returns` fitted and marked on scored music. `label` asks it about one window, `what_returns` about
a whole recording. `boundaries` and `clap_scores` are thin layers over librosa and over models that
embed sounds. Explained in notebooks/15_what_counts_as_a_return.ipynb.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
from scipy.signal import find_peaks

from musae_utils import runs
from musae_utils.labels.clap import AudioTextModel, checked
from musae_utils.labels.examples import Example
from musae_utils.music.clip import SAMPLE_RATE
from musae_utils.structure.hearing import RATE, SCORES, Heard, hear, one_channel, scores, silent
from musae_utils.structure.scored import KINDS

TABLE = Path(__file__).resolve().parents[2] / "data" / "structure" / "returns.json"

# -- labelers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labeler:
    """A weighted sum of scores, and where it says "a return".

    Attributes
    ----------
    name : str
    weights : dict of str to float
        Of each score it uses.
    intercept : float
    threshold : float
        Probability from which an asked window is called a return.
    search : float
        The same where a whole piece is searched: among many windows some are alike by luck.
    kinds : dict of str to dict
        Weights and intercept by kind of return; the largest sum names it. Empty where not fitted.
    """

    name: str
    weights: dict[str, float]
    intercept: float
    threshold: float
    search: float = 0.5
    kinds: dict[str, dict] | None = None

    def probability(self, table: pd.DataFrame) -> np.ndarray:
        """That the motif returns, where it does in half of the windows; shape (rows,)."""
        return 1 / (1 + np.exp(-self._sum(table, self.weights, self.intercept)))

    def kind(self, table: pd.DataFrame) -> np.ndarray:
        """Which of `KINDS` a return would be, shape (rows,)."""
        if not self.kinds:
            raise ValueError(f"The labeler {self.name!r} was not taught kinds of return.")
        sums = [self._sum(table, k["weights"], k["intercept"]) for k in self.kinds.values()]
        return np.array(list(self.kinds))[np.argmax(sums, axis=0)]

    def _sum(self, table, weights, intercept) -> np.ndarray:
        missing = [name for name in weights if name not in table]
        if missing:
            raise ValueError(f"The labeler {self.name!r} needs the scores {', '.join(missing)}.")
        return table[list(weights)].to_numpy(float) @ np.array(list(weights.values())) + intercept


def fit(table: pd.DataFrame, name: str = "combined", columns: Sequence[str] = SCORES) -> Labeler:
    """Fit a labeler on windows whose answers are known.

    Parameters
    ----------
    table : DataFrame
        `columns`, ``kind`` (of `KINDS` or "none"), ``piece`` (the composition), and optionally
        ``trap`` (bool; such rows teach the weights, and have no say in the threshold).
    name : str
    columns : sequence of str
        Scores to use.

    Returns
    -------
    Labeler
        Its threshold is the one with the highest F1 at even odds, over pieces left out in turn.

    Raises
    ------
    ValueError
        All windows have the same answer; fewer than two pieces; a score is not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, back = table[list(columns)].to_numpy(float), (table["kind"] != "none").to_numpy()
    pieces = table["piece"].nunique()
    if pieces < 2:
        raise ValueError(
            "All windows come from one piece. A threshold is checked on pieces that it was not "
            "fitted on, so at least two are needed."
        )
    if back.all() or not back.any():
        raise ValueError(
            f"All {len(back)} windows have the answer {'yes' if back.all() else 'no'}: a labeler "
            "learns from returns and from windows without one."
        )
    if not np.isfinite(x).all():
        raise ValueError("Some scores are NaN or infinite; leave those windows out.")

    def regression():
        return make_pipeline(
            StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000)
        )

    unseen = cross_val_predict(
        regression(), x, back, groups=table["piece"], cv=GroupKFold(min(5, pieces)),
        method="predict_proba",
    )[:, 1]  # fmt: skip
    asked = ~table["trap"].to_numpy(bool) if "trap" in table else np.ones(len(x), bool)
    steps = np.quantile(unseen[asked], np.linspace(0, 1, 401))
    f1 = [even_f1(unseen[asked] >= step, back[asked]) for step in steps]
    weights, intercept = _plain(regression().fit(x, back))
    kinds, returned = {}, table["kind"][back]
    if set(returned) == set(KINDS):
        model = regression().fit(x[back], returned)
        kinds = {
            kind: dict(zip(("weights", "intercept"), _plain(model, row, columns), strict=True))
            for row, kind in enumerate(model[-1].classes_)
        }
    return Labeler(
        name, dict(zip(columns, weights, strict=True)), intercept, float(steps[np.argmax(f1)]),
        kinds=kinds,
    )  # fmt: skip


def _plain(model, row: int = 0, columns: Sequence[str] | None = None) -> tuple:
    """Weights and intercept of a scaled regression, for scores as they are."""
    weights = model[-1].coef_[row] / model[0].scale_
    intercept = float(model[-1].intercept_[row] - weights @ model[0].mean_)
    weights = [float(w) for w in weights]
    return (dict(zip(columns, weights, strict=True)) if columns else weights), intercept


def even_f1(said: np.ndarray, back: np.ndarray) -> float:
    """F1 if as many windows had a return as not."""
    hits, false = said[back].mean(), said[~back].mean()
    return 2 * hits / (1 + hits + false)


@functools.cache
def labeler(name: str = "combined", path: Path = TABLE) -> Labeler:
    """A fitted labeler of `LABELERS`, from the kept table.

    Raises
    ------
    FileNotFoundError
        The table was not made yet.
    ValueError
        No such labeler; or the ears have changed since it was fitted.
    """
    from musae_utils.labels.ears import fingerprints

    kept = runs.load_made(path, "python -m musae_utils.structure.returns")
    if name not in kept["labelers"]:
        raise ValueError(f"There is no labeler {name!r}; there are {', '.join(kept['labelers'])}.")
    now = fingerprints()
    if kept["provenance"]["ears"] != now:
        raise ValueError(
            f"{path.name} was fitted with other ears ({kept['provenance']['ears']}) than those "
            f"at hand ({now}): run python -m musae_utils.structure.returns again."
        )
    return Labeler(**kept["labelers"][name])


# -- any sound -------------------------------------------------------------------------------------


def label(
    heard: Heard,
    earlier: tuple[float, float],
    starts: np.ndarray | None = None,
    by: Labeler | None = None,
) -> pd.DataFrame:
    """Does an earlier window's motif return in later ones?

    Parameters
    ----------
    heard : Heard
    earlier : (float, float)
        Seconds.
    starts : array of shape (S,), optional
        Where later windows start, in seconds; every 80 ms after the earlier one if left out.
    by : Labeler, optional
        The kept one if left out. It may use no other scores than `SCORES`.

    Returns
    -------
    DataFrame of shape (S, 3), indexed by start
        ``probability`` (0 in silence), ``returns`` (bool), ``kind`` (of `KINDS` or "none").

    Raises
    ------
    ValueError
        See `hearing.scores`.
    """
    by = by or labeler()
    table = scores(heard, earlier, starts)
    probability = by.probability(table)
    probability[silent(heard, table.index.to_numpy(), earlier[1] - earlier[0])] = 0.0
    back = probability >= by.threshold
    kind = np.where(back, by.kind(table) if by.kinds else "return", "none")
    return pd.DataFrame(
        {"probability": probability, "returns": back, "kind": kind}, index=table.index
    )


def onsets(probability: pd.Series, length: float, threshold: float) -> np.ndarray:
    """Where returns begin: peaks of a probability, half a window and more apart, in seconds.

    Parameters
    ----------
    probability : Series of shape (S,), indexed by start, every 80 ms
    length : float
        Of the window, in seconds.
    threshold : float
        That a peak reaches; for a whole piece `Labeler.search`.
    """
    padded = np.concatenate([[-1], probability.to_numpy(), [-1]])
    apart = max(1, int(length / 2 * RATE))
    peaks, _ = find_peaks(padded, height=threshold, distance=apart)
    return probability.index.to_numpy()[peaks - 1]


def what_returns(
    audio: np.ndarray,
    sample_rate: int = SAMPLE_RATE,
    window: float = 2.0,
    by: Labeler | None = None,
) -> pd.DataFrame:
    """What comes back in any sound, and where it was before.

    Every half window is compared with all that lies before it. Finds that continue one another,
    at the same distance, are one.

    Parameters
    ----------
    audio : ndarray of shape (n,), (n, channels) or (channels, n)
        At most ten minutes.
    sample_rate : int
        Hz.
    window : float
        Seconds; about a bar. At least 0.5.
    by : Labeler, optional
        The kept one if left out.

    Returns
    -------
    DataFrame
        ``start``, ``end``, ``earlier start`` in seconds, ``kind`` (a guess, of `KINDS`) and
        ``score``, the highest probability. Silence returns nothing. Empty where nothing does.

    Raises
    ------
    ValueError
        Shorter than two windows; not finite; longer than ten minutes.

    Examples
    --------
    >>> clip = music.make(seed=3, form="AABA", seconds=30)  # doctest: +SKIP
    >>> what_returns(clip.audio, clip.sample_rate)  # doctest: +SKIP
    """
    by, heard = by or labeler(), hear(audio, sample_rate)
    if heard.seconds < 2 * window:
        raise ValueError(
            f"The sound lasts {heard.seconds:.2f} s and the window {window:g} s. For something to "
            "return there must be room for two: take a longer sound or a shorter window."
        )
    found = []
    for start in np.arange(window, heard.seconds - window + 1e-6, window / 2):
        if silent(heard, np.array([start]), window)[0]:
            continue
        before = np.arange(0, start - window + 1e-6, 1 / RATE)
        table = scores(heard, (start, start + window), before)
        probability = by.probability(table)
        probability[silent(heard, before, window)] = 0.0
        best = int(np.argmax(probability))
        if probability[best] >= by.search:
            kind = str(by.kind(table.iloc[[best]])[0]) if by.kinds else "return"
            found.append([start, start + window, before[best], kind, probability[best]])
    table = pd.DataFrame(found, columns=["start", "end", "earlier start", "kind", "score"])
    return _joined(table, window)


def _joined(table: pd.DataFrame, window: float) -> pd.DataFrame:
    """Finds that overlap in time and lie equally far back, as one."""
    kept: list[dict] = []
    for row in table.to_dict("records"):
        back = row["start"] - row["earlier start"]
        if kept and row["start"] <= kept[-1]["end"] + 1e-6:
            last = kept[-1]
            if abs(back - (last["start"] - last["earlier start"])) <= window / 8:
                last["end"] = row["end"]
                if row["score"] > last["score"]:
                    last |= {"kind": row["kind"], "score": row["score"]}
                continue
        kept.append(row)
    return pd.DataFrame(kept, columns=table.columns)


def boundaries(audio: np.ndarray, sample_rate: int = SAMPLE_RATE, parts: int = 4) -> np.ndarray:
    """Where the parts of a piece begin and end, by `librosa.segment.agglomerative`.

    Neighbouring moments that sound alike (pitch classes, timbre) are joined until as many parts
    are left.

    Returns
    -------
    ndarray of shape (parts, 2)
        Start and end of each in seconds, as `mir_eval.segment` takes them.
    """
    audio = one_channel(audio, sample_rate)
    hop = round(SAMPLE_RATE / RATE)
    if len(audio) < 2 * parts * hop:
        raise ValueError(f"{len(audio) / SAMPLE_RATE:.2f} s cannot be cut into {parts} parts.")
    features = np.concatenate([
        librosa.feature.chroma_stft(y=audio, sr=SAMPLE_RATE, n_fft=4096, hop_length=hop, tuning=0),
        librosa.feature.mfcc(y=audio, sr=SAMPLE_RATE, n_mfcc=13, hop_length=hop, n_mels=64),
    ])  # fmt: skip
    spread = features.std(axis=1, keepdims=True)
    features = (features - features.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-6)
    starts = librosa.segment.agglomerative(features, parts) / RATE
    return np.column_stack([starts, np.append(starts[1:], len(audio) / SAMPLE_RATE)])


def clap_scores(
    audio: np.ndarray,
    sample_rate: int,
    model: AudioTextModel,
    earlier: Sequence[tuple[float, float]],
    starts: Sequence[float],
) -> np.ndarray:
    """Cosine of each later window with its earlier one, by a model that embeds sounds, shape (S,).

    Parameters
    ----------
    audio : ndarray of shape (n,)
    sample_rate : int
        Hz.
    model : AudioTextModel
        For instance `labels.nano_clap()`.
    earlier : sequence of (float, float)
        One for each start, in seconds.
    starts : sequence of float
        Seconds.
    """
    spans = [(s, s + e - b) for (b, e), s in zip(earlier, starts, strict=True)]
    index = {span: i for i, span in enumerate(dict.fromkeys([*map(tuple, earlier), *spans]))}
    heard = [
        Example(i, f"window {i}", "", b, e, 0.0,
                audio[round(b * sample_rate) : round(e * sample_rate)], sample_rate)
        for (b, e), i in index.items()
    ]  # fmt: skip
    rows = checked(model, "sounds", heard)
    pairs = [(index[tuple(a)], index[b]) for a, b in zip(earlier, spans, strict=True)]
    return np.array([rows[i] @ rows[j] for i, j in pairs])
