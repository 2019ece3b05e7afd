"""How good a model is, on compositions it never heard (notebook 02, benchmarks/scoreboard.py).

Every figure is an `Interval` over clips, beside the same figure of what it can be compared with:
the originals, a wrong key, chance, guidance switched off. Sounds go in, numbers come out; what
makes the sounds (encoding, generating) is the caller's, so that it can be kept and not made twice.

- `codec_report`: what the codec keeps of the originals
- `prediction_report`: how well the language model predicts the codes of held-out music
- `likeness_report`: what generated music has in common with originals
- `continuation_report`: whether a continued prompt stays in its key
- `obedience_report`: whether music does what its prompt says

Answers to prompts are marked by listeners that learnt from training compositions and from the
*codec's copies* of them (so that the codec's own colour does not mislead them): `TempoJudge` here,
for the rest the tagger of `labels.ears`. Their accuracy on held-out copies is reported with them
and is the most that any model can be seen to reach.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from musae_utils.music import SAMPLE_RATE, Clip, Truth, caption, measure
from musae_utils.music.compose import TEMPI
from musae_utils.stats import Interval, bootstrap, proportion, resample_groups

ROWS = 8  # clips through a model at once
#: Attributes that prompts state and judges mark, and the truth that answers them.
ATTRIBUTES = {"instrument": "family", "drums": "drums", "tonic": "tonic", "tempo": "tempo"}
CLOSE_TEMPO = 0.08  # relative error that counts as the same tempo

Progress = Callable[[Iterable], Iterable]


# -- the codec -------------------------------------------------------------------------------------


@torch.no_grad()
def copies(model, audio: np.ndarray, progress: Progress = iter) -> tuple[np.ndarray, np.ndarray]:
    """Sound through a codec and back.

    Parameters
    ----------
    model : MusicModel, or an audiocraft CompressionModel
    audio : ndarray of float32, shape (B, n)
        At the codec's own rate.
    progress : callable
        Wraps the loop over batches, e.g. ``tqdm``.

    Returns
    -------
    copies : ndarray of float32, shape (B, n)
    codes : ndarray of int16, shape (B, K, T)
    """
    codec = getattr(model, "codec", model)
    sounds, codes = [], []
    for start in progress(range(0, len(audio), ROWS)):
        batch = torch.from_numpy(np.asarray(audio[start : start + ROWS], np.float32))
        code = codec.encode(batch[:, None])[0]
        sounds.append(codec.decode(code, None)[:, 0, : audio.shape[-1]].float().numpy())
        codes.append(code.to(torch.int16).numpy())
    return np.concatenate(sounds), np.concatenate(codes)


def codec_report(
    clips: Sequence[Clip],
    copied: np.ndarray,
    codes: np.ndarray | None = None,
    cardinality: int = 0,
    progress: Progress = iter,
) -> dict[str, Interval]:
    """What a codec, or another autoencoder of sound, keeps of held-out music.

    Parameters
    ----------
    clips : sequence of Clip, with truth
    copied, codes : see `copies`
        An autoencoder without codebooks has no codes.
    cardinality : int
        Entries of each codebook.
    progress : callable

    Returns
    -------
    dict of str to Interval over clips
        ``chroma_correlation``, ``pitch_agreement`` (frames in which the melody sounds),
        ``log_spectral_distance`` (dB), ``si_sdr`` (dB), as in `measure`;
        ``band_energy_error`` (dB): the band furthest off, without sign, and each band with its sign
        as ``band_energy_error.125-250``; ``codebook_use``: share of entries that these clips use,
        in the least used codebook, and of each as ``codebook_use.1``: a count, with no interval
        (nan).
    """
    rows, bands = [], []
    for clip, copy in progress(list(zip(clips, copied, strict=True))):
        x, rate = clip.audio, clip.sample_rate
        rows.append(
            {
                "chroma_correlation": measure.chroma_correlation(x, copy, rate),
                "pitch_agreement": measure.pitch_agreement(x, copy, _melody(clip), rate),
                "log_spectral_distance": measure.log_spectral_distance(x, copy, rate),
                "si_sdr": measure.si_sdr(x, copy, rate),
            }
        )
        bands.append([measure.band_energy(x, rate), measure.band_energy(copy, rate)])
    report = {name: bootstrap(_filled([row[name] for row in rows])) for name in rows[0]}

    before, after = np.moveaxis(np.array(bands), 1, 0)  # (clips, bands) each
    error = measure.band_energy_error(before, after)
    weights = resample_groups(len(clips))
    drawn = 10 * np.log10((weights @ after + 1e-9) / (weights @ before + 1e-9))
    report["band_energy_error"] = _interval(
        np.abs(error).max(), np.abs(drawn).max(axis=1), len(clips)
    )
    for i, (low, high) in enumerate(measure.BANDS):
        name = f"band_energy_error.{low:g}-{high:g}"
        report[name] = _interval(error[i], drawn[:, i], len(clips))

    if codes is None:
        return report
    if codes is None:
        return report
    used = [len(np.unique(book)) / cardinality for book in np.moveaxis(codes, 1, 0)]
    for name, value in {"": min(used), **{f".{k}": u for k, u in enumerate(used, 1)}}.items():
        report[f"codebook_use{name}"] = Interval(value, np.nan, np.nan, len(clips))
    return report


def _melody(clip: Clip) -> np.ndarray | None:
    return None if clip.truth is None else clip.truth.frames["melody"]


# -- predicting held-out music ---------------------------------------------------------------------


@torch.no_grad()
def cross_entropies(
    model, codes: np.ndarray, prompts: Sequence[str | None], progress: Progress = iter
) -> np.ndarray:
    """Mean cross-entropy of each clip and codebook in nats: what the language model did not expect.

    Parameters
    ----------
    model : MusicModel
    codes : ndarray of int, shape (B, K, T)
    prompts : sequence of (str or None), B of them
    progress : callable

    Returns
    -------
    ndarray of float, shape (B, K)
    """
    lm, found = model.lm, []
    for code, prompt in progress(list(zip(codes, prompts, strict=True))):
        code = torch.as_tensor(code.astype(np.int64), device=model.device)[None]
        pattern = lm.pattern_provider.get_pattern(code.shape[-1])
        sequence = pattern.build_pattern_sequence(code, lm.special_token_id)[0]
        logits = lm(sequence[..., :-1], [], model.conditions([prompt]))[0].float()  # (K, S, card)
        target = sequence[0, :, 1:]
        target = target.masked_fill(target == lm.special_token_id, -100)
        nats = F.cross_entropy(logits.transpose(1, 2), target, reduction="none", ignore_index=-100)
        found.append((nats.sum(-1) / (target >= 0).sum(-1)).cpu().numpy())
    return np.array(found)


def prediction_report(nats: np.ndarray, codes: np.ndarray, cardinality: int) -> dict[str, Interval]:
    """Cross-entropy against the entropy of the codes' frequencies.

    Parameters
    ----------
    nats : ndarray of shape (B, K)
        Of `cross_entropies`.
    codes : ndarray of int, shape (B, K, T)
        The same clips' codes: their frequencies are the rival that knows how often each code is
        used and nothing of what went before.

    Returns
    -------
    dict of str to Interval over clips
        ``ce_ratio`` and, for codebooks 1 to K, ``ce_ratio.1``, ``cross_entropy.1``, ``unigram.1``
        (nats). The first codebook, of which most is heard, gives ``ce_ratio``.
    """
    report = {}
    for k in range(nats.shape[1]):
        book = codes[:, k].astype(int)
        share = np.bincount(book.ravel(), minlength=cardinality) / book.size
        # What each clip costs by frequencies alone; the mean over clips is their entropy. The
        # frequencies are held fixed: those of resampled clips would be less diverse than any music.
        unigram = -np.log(share[book]).mean(axis=1)
        ratio = bootstrap((nats[:, k], unigram), lambda x, y: x.mean() / max(y.mean(), 1e-9))
        report[f"ce_ratio.{k + 1}"] = ratio
        report[f"cross_entropy.{k + 1}"] = bootstrap(nats[:, k])
        report[f"unigram.{k + 1}"] = bootstrap(unigram)
    return {"ce_ratio": report["ce_ratio.1"], **report}


# -- likeness to originals -------------------------------------------------------------------------


def traits(
    audio: np.ndarray,
    truths: Sequence[Truth],
    sample_rate: int = SAMPLE_RATE,
    progress: Progress = iter,
) -> dict[str, np.ndarray]:
    """Measure each of B sounds, `in_key` by the key of its truth, and in the key a tritone away.

    Returns
    -------
    dict of str to ndarray of shape (B,)
        ``in_key``, ``in_wrong_key``, ``harmonic_fraction``, ``onset_rate``. Silence is in no key,
        and has no harmonic energy.
    """
    rows = []
    for sound, truth in progress(list(zip(audio, truths, strict=True))):
        tonic, mode = truth.clip["tonic"], truth.clip["mode"]
        track = measure.strongest_pitch(sound, sample_rate)
        rows.append(
            {
                "in_key": measure.in_key(track, tonic, mode),
                "in_wrong_key": measure.in_key(track, (tonic + 6) % 12, mode),
                "harmonic_fraction": measure.harmonic_fraction(sound, sample_rate),
                "onset_rate": measure.onset_rate(sound, sample_rate),
            }
        )
    return {name: _filled([row[name] for row in rows]) for name in rows[0]}


def likeness_report(
    generated: dict[str, np.ndarray], originals: dict[str, np.ndarray]
) -> dict[str, Interval]:
    """Traits of generated music, as ratios to those of originals with the same truth.

    Parameters
    ----------
    generated, originals : dict
        Of `traits`: row i of one was prompted with what row i of the other is.

    Returns
    -------
    dict of str to Interval over clips
        ``in_key_ratio``, ``harmonic_ratio``, ``onset_ratio``: ratio of means, 1 is like the
        originals. Beside the first, ``in_key_ratio.wrong_key`` (what music in another key would
        score: the originals marked a tritone away) and ``in_key_ratio.originals`` (the share of the
        originals' own strongest pitch in their key).
    """
    ratio = lambda a, b: bootstrap((a, b), lambda x, y: x.mean() / max(y.mean(), 1e-9))  # noqa: E731
    return {
        "in_key_ratio": ratio(generated["in_key"], originals["in_key"]),
        "in_key_ratio.wrong_key": ratio(originals["in_wrong_key"], originals["in_key"]),
        "in_key_ratio.originals": bootstrap(originals["in_key"]),
        "harmonic_ratio": ratio(generated["harmonic_fraction"], originals["harmonic_fraction"]),
        "onset_ratio": ratio(generated["onset_rate"], originals["onset_rate"]),
    }


def continuation_report(
    continued: np.ndarray,
    originals: np.ndarray,
    truths: Sequence[Truth],
    at: float = 3.0,
    sample_rate: int = SAMPLE_RATE,
    progress: Progress = iter,
) -> dict[str, Interval]:
    """Does music that was continued without a word stay in the key of its prompt?

    Parameters
    ----------
    continued, originals : ndarray of shape (B, n)
        Both begin with the same `at` seconds (one of them through the codec).
    truths : sequence of Truth
    at : float
        Seconds of the prompt; only what follows is measured.

    Returns
    -------
    dict of str to Interval over clips
        ``continuation_key_ratio``: share of strongest pitch in key, against the originals' in the
        same window; ``continuation_key_ratio.wrong_key``: the originals in a key a tritone away;
        ``continuity``: correlation of chroma before and after; ``continuity.originals`` and
        ``continuity.strangers`` (one prompt, another's continuation).
    """
    rows = []
    for i in progress(range(len(truths))):
        tonic, mode = truths[i].clip["tonic"], truths[i].clip["mode"]
        played, real = (measure.strongest_pitch(x[i], sample_rate) for x in (continued, originals))
        cut = round(at * sample_rate)
        stranger = np.concatenate([continued[i - 1][:cut], continued[i][cut:]])
        rows.append(
            (
                measure.in_key(played, tonic, mode, start=at),
                measure.in_key(real, tonic, mode, start=at),
                measure.in_key(real, (tonic + 6) % 12, mode, start=at),
                measure.continuity(continued[i], at, sample_rate),
                measure.continuity(originals[i], at, sample_rate),
                measure.continuity(stranger, at, sample_rate),
            )
        )
    played, real, wrong, stays, real_stays, strangers = (
        _filled(column) for column in zip(*rows, strict=True)
    )
    ratio = lambda a: bootstrap((a, real), lambda x, y: x.mean() / max(y.mean(), 1e-9))  # noqa: E731
    return {
        "continuation_key_ratio": ratio(played),
        "continuation_key_ratio.wrong_key": ratio(wrong),
        "continuity": bootstrap(stays),
        "continuity.originals": bootstrap(real_stays),
        "continuity.strangers": bootstrap(strangers),
    }


# -- obedience -------------------------------------------------------------------------------------


def full_prompt(truth: Truth, seed: int) -> str:
    """A caption that states instrument, drums, key and the tempo in beats a minute."""
    rng = np.random.default_rng([seed, 11])
    while True:  # two captions in three state the tempo as a number
        text = caption(truth, rng, keep=1.0)
        if re.search(r"\d bpm", text):
            return text


class TempoJudge:
    """A listener that says which of the composer's tempi it hears.

    One question is asked of every candidate ("is this the beat?") with features relative to it, so
    that what is learnt of one tempo holds for all.

    Examples
    --------
    >>> TempoJudge().fit(copied, truths).hear(generated)  # doctest: +SKIP
    array([ 76., 112.])
    """

    def fit(
        self, audio: np.ndarray, truths: Sequence[Truth], progress: Progress = iter
    ) -> TempoJudge:
        """Learn from sounds at 16 kHz, shape (B, n), with known truth; a few hundred or more."""
        features = [_rhythm_features(measure.validate(sound)) for sound in progress(list(audio))]
        asked = np.array([_tempo_question(f, bpm) for f in features for bpm in TEMPI])
        same = np.abs(np.array(TEMPI) / _answers(truths, "tempo")[:, None] - 1) < 0.02
        self.model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        self.model.fit(asked, same.ravel())
        return self

    def hear(self, audio: np.ndarray, progress: Progress = iter) -> np.ndarray:
        """Beats a minute of each of B sounds at 16 kHz, (B,)."""
        features = [_rhythm_features(measure.validate(sound)) for sound in progress(list(audio))]
        asked = np.array([_tempo_question(f, bpm) for f in features for bpm in TEMPI])
        return np.array(TEMPI)[
            self.model.decision_function(asked).reshape(-1, len(TEMPI)).argmax(1)
        ]


def marks(heard: dict[str, np.ndarray], truths: Sequence[Truth]) -> dict[str, np.ndarray]:
    """Which answers are right: bool arrays of shape (B,); a tempo may be 8 % off."""
    right = {}
    for name, answers in heard.items():
        truth = _answers(truths, name)
        right[name] = (
            np.abs(answers / truth - 1) <= CLOSE_TEMPO if name == "tempo" else answers == truth
        )
    return right


def obedience_report(heard: dict[str, np.ndarray], truths: Sequence[Truth]) -> dict[str, Interval]:
    """Share of sounds that are judged to be what was asked for, with its Wilson interval.

    Parameters
    ----------
    heard : dict
        What each sound was heard to be, by the names of `ATTRIBUTES`: arrays of shape (B,).
    truths : sequence of Truth
        What the prompts stated.

    Returns
    -------
    dict of str to Interval
        ``instrument``, ``drums``, ``tonic``, ``tempo``; and of each the best that a fixed answer
        could do, ``instrument.chance``.
    """
    report = {}
    for name, right in marks(heard, truths).items():
        truth = _answers(truths, name)
        fixed = max(
            int(marks({name: np.full(len(truth), answer)}, truths)[name].sum())
            for answer in np.unique(truth)
        )
        report[name] = proportion(int(right.sum()), len(right))
        report[f"{name}.chance"] = proportion(fixed, len(right))
    return report


def _answers(truths: Sequence[Truth], name: str) -> np.ndarray:
    return np.array([truth.clip[ATTRIBUTES[name]] for truth in truths])


# -- what is heard of tempo ------------------------------------------------------------------------


_BEATS = np.geomspace(30, 320, 120)  # BPM of the autocorrelation
_PULSES = np.geomspace(30, 640, 160)  # pulses a minute of the spectrum of onset strength


def _rhythm_features(audio: np.ndarray) -> np.ndarray:
    """Autocorrelation of onset strength at `_BEATS`, its spectrum at `_PULSES`: shape (280,)."""
    strength = measure.onset_strength(audio)
    strength = strength - strength.mean()
    n, rate = len(strength), SAMPLE_RATE / measure.HOP
    power = np.abs(np.fft.rfft(strength, 4 * n)) ** 2
    correlation = np.fft.irfft(power)[:n]
    beats = np.interp(60 * rate / _BEATS, np.arange(n), correlation / max(correlation[0], 1e-9))
    turns = np.exp(-2j * np.pi * np.outer(_PULSES / 60, np.arange(n) / rate))
    pulses = np.abs(turns @ (strength * np.hanning(n)))
    return np.r_[beats, pulses / max(np.linalg.norm(pulses), 1e-9)]


def _tempo_question(rhythm: np.ndarray, bpm: float) -> np.ndarray:
    """Both at simple ratios to a candidate tempo, and the tempo itself (a prior)."""
    beats, pulses = rhythm[: len(_BEATS)], rhythm[len(_BEATS) :]
    at = lambda grid, values, x: np.interp(np.log(x), np.log(grid), values)  # noqa: E731
    ratios = np.array([1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 2])
    multiples = np.array([1 / 2, 3 / 4, 1, 3 / 2, 2, 3, 4])
    prior = np.log(bpm / 100)
    return np.r_[
        at(_BEATS, beats, bpm * ratios), at(_PULSES, pulses, bpm * multiples), prior, prior**2
    ]


# -- small things ----------------------------------------------------------------------------------


def _filled(values: Sequence[float]) -> np.ndarray:
    """Values with 0 where silence left nothing to measure."""
    return np.nan_to_num(np.array(values, float), nan=0.0, posinf=100.0, neginf=-100.0)


def _interval(value: float, drawn: np.ndarray, n: int) -> Interval:
    return Interval(float(value), *map(float, np.percentile(drawn, [2.5, 97.5])), n)
