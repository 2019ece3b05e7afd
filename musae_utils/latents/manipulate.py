"""Turning what a latent holds: does one hear it, how much of it, and what else? (notebook 13)

An *edit* takes latents z of shape (B, T, d) and is asked for a shift of one attribute: semitones of
pitch, dB of loudness, octaves of the spectral centroid.

==============  ====================================================================================
edit            z becomes
==============  ====================================================================================
``S2``          SAE.decode(RMS(f + α w_class)): S2's rule. f is the code of z, w_class the weights
                of a softmax probe for the class asked for; the reconstruction replaces z
``matrix``      z + z M + m, fitted by ridge regression on **pairs**: latents of composed music, and
                of the same music with nothing but the attribute changed (a score can be played
                again, transposed)
``neighbours``  the same, reading the two frames before and after too
``dictionary``  z + f D: each feature of an SAE is given a vector that it adds, fitted on the pairs
``vector``      z + m: the mean step of the pairs, the same for every frame
``probe``       z moved along a ridge probe's weights until the probe reads what was asked
``DiffMean``    z + mean latent at the value asked for − mean latent at the present value
``feature``     z + (f' − f) W_dec: the features of the present note exchanged for those of the note
                asked for; of loudness and centroid the one feature that goes with it best
``random``      z + a random direction, as long as the step of ``matrix``
``true``        no edit: latents of the music that really was played so. What an edit can hope for
==============  ====================================================================================

All but S2's keep what the SAE does not explain, and shift 0 is z itself. Everything is fitted on
training compositions, chosen on validation ones and scored on test ones. What is heard is measured
on the decoded sound by trackers that know nothing of latents, and each edited sound is compared
with the decoded sound of the same clip without an edit (for S2: of the SAE's reconstruction).

References
----------
S2: Learning Interpretable Features in Audio Latent Spaces via Sparse Autoencoders, arXiv
2510.23802. Difference in means: Marks and Tegmark, arXiv 2310.06824. Fréchet audio distance:
Kilgour et al., Interspeech 2019.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import uniform_filter1d
from sklearn.linear_model import Ridge

from musae_utils import runs, stats
from musae_utils.latents.attributes import SILENT, measured
from musae_utils.latents.model import LatentModel
from musae_utils.latents.nano import NANO, load_nano_latents
from musae_utils.music.clip import SAMPLE_RATE
from musae_utils.music.compose import Score, Spec, compose
from musae_utils.music.dataset import SPLIT_SEEDS
from musae_utils.music.measure import log_spectral_distance
from musae_utils.music.render import synthesise
from musae_utils.sae import SAEConfig, TrainConfig, train
from musae_utils.sae.architectures import root_mean_square_norm
from musae_utils.stats import Interval

TABLE = Path(__file__).resolve().parents[2] / "data" / "latents" / "manipulate.json"
#: Shifts that are asked for: semitones, dB, octaves.
DOSES = {"pitch": (-7, -3, 2, 5), "loudness": (-6, 6), "centroid": (-0.5, 0.5)}
UNITS = {"pitch": "semitones", "loudness": "dB", "centroid": "octaves"}
KEY = {"pitch": 5, "loudness": 6, "centroid": 0.5}  # shifts that every rival is asked for
ALPHAS = (1, 10, 20, 30)  # S2's
MEASURED = ("pitch", "loudness", "centroid", "strength")
FITTED = ("matrix", "neighbours", "dictionary")  # the best of them is chosen on validation pairs
RIVALS = ("vector", "probe", "DiffMean", "feature", "random")
BIN = {"pitch": 1.0, "loudness": 2.0, "centroid": 0.125}  # of DiffMean
KINDS = ("mix", "melody")  # all parts, and the melody alone
START, LENGTH = 1.0, 2.5  # s: what is heard of each composition
PLAIN = ("", 0.0)


# -- pairs ---------------------------------------------------------------------------------------


def scores(n: int, split: str = "train", seed: int = 0) -> list[Score]:
    """n compositions of a split, long enough for `pairs`."""
    first = SPLIT_SEEDS[split] + seed
    return [compose(Spec(seconds=max(5.0, START + LENGTH)), first + i) for i in range(n)]


def pairs(
    pieces: Sequence[Score], doses: Mapping[str, Sequence[float]] = DOSES, alone: bool = False
) -> dict[tuple[str, float], np.ndarray]:
    """Compositions as they are, and with one attribute changed and the others left.

    Pitch: all notes but drums played so many semitones higher, then brought back to the original's
    level and centroid, for a transposed sound is brighter too. Loudness: a gain. Centroid: a tilt
    of the spectrum in dB an octave, at equal level.

    Parameters
    ----------
    pieces : sequence of B Score
    doses : mapping of attribute to shifts
    alone : bool
        The melody without accompaniment, bass and drums.

    Returns
    -------
    dict of (attribute, shift) to float32 array of shape (B, n), at 16 kHz
        ``PLAIN`` is the music as it is.
    """
    plain = np.stack([_played(piece, 0, alone) for piece in pieces])
    found = {PLAIN: plain}
    for asked in doses.get("pitch", ()):
        higher = [_played(piece, asked, alone) for piece in pieces]
        found["pitch", asked] = np.stack([tilted(a, b) for a, b in zip(higher, plain, strict=True)])
    for asked in doses.get("loudness", ()):
        found["loudness", asked] = plain * np.float32(10 ** (asked / 20))
    for asked in doses.get("centroid", ()):
        found["centroid", asked] = np.stack([tilted(sound, sound, asked) for sound in plain])
    return found


def _played(piece: Score, shift: int, alone: bool) -> np.ndarray:
    notes = [
        note if note.role == "drums" else dataclasses.replace(note, pitch=note.pitch + shift)
        for note in piece.notes
        if note.role == "melody" or not alone
    ]
    sound = synthesise(notes, piece.programs, START + LENGTH)
    return sound[round(START * SAMPLE_RATE) :]


def tilted(audio: np.ndarray, like: np.ndarray, octaves: float = 0.0) -> np.ndarray:
    """A sound with the level of another one, and its centroid moved by so many octaves.

    Every frequency f is multiplied by f^s, with the s at which the mean over frames of the log
    centroid is right (bisection between −3 and 3; beyond, as near as that).

    Parameters
    ----------
    audio, like : ndarray of shape (n,)
    octaves : float

    Returns
    -------
    float32 array of shape (n,)
    """
    hz = librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=1024)
    octave = np.log2(np.maximum(hz, 30) / 1000)

    def centroid(levels: np.ndarray, s: float = 0.0) -> float:
        weighted = levels * 2 ** (s * octave)[:, None]
        return float(np.log2(hz @ weighted / weighted.sum(0)).mean())

    spectrum = librosa.stft(audio, n_fft=1024, hop_length=256)
    levels, target = (_sounding(np.abs(x)) for x in
                      (spectrum, librosa.stft(like, n_fft=1024, hop_length=256)))  # fmt: skip
    if not levels.size or not target.size:
        return audio
    wanted, low, high = centroid(target) + octaves, -3.0, 3.0
    for _ in range(14):
        s = (low + high) / 2
        low, high = (s, high) if centroid(levels, s) < wanted else (low, s)
    sound = librosa.istft(spectrum * 2 ** (s * octave)[:, None], hop_length=256, length=len(audio))
    return (sound * np.sqrt((like**2).mean() / (sound**2).mean())).astype(np.float32)


def _sounding(levels: np.ndarray) -> np.ndarray:
    """Frames (bins, T) that are not silent."""
    mean_square = (
        2 * (levels**2).sum(0) / (1024 * 384)
    )  # Parseval; 384 is the sum of Hann's squares
    return levels[:, mean_square > 10 ** (SILENT / 10)]


def heard(sounds: np.ndarray, model: LatentModel) -> dict[str, np.ndarray]:
    """`attributes.measured` of (B, n) sounds at a model's frame rate: arrays of shape (B, T)."""
    rows = [measured(sound, model.sample_rate, model.frame_rate) for sound in sounds]
    return {name: np.stack([row[name] for row in rows]) for name in MEASURED}


def transposition(before: np.ndarray, after: np.ndarray) -> float:
    """By how many semitones the spectrum of a sound was moved, between −12 and 12.

    The lag at which levels over log frequency (20 cents a bin, each frame less its average over an
    octave) correlate best, over the whole sound. Of several notes at once a tracker of one pitch
    may follow another one after the edit than before; this follows all of them.

    Parameters
    ----------
    before, after : ndarray of shape (n,)
        At 16 kHz.

    Returns
    -------
    float
        A multiple of 0.2.
    """
    hz = librosa.midi_to_hz(np.arange(40, 105, 0.2))
    lines = []
    for sound in (before, after):
        level = np.abs(librosa.stft(sound, n_fft=4096, hop_length=1024))
        place = hz * 4096 / SAMPLE_RATE
        below, share = place.astype(int), (place % 1)[:, None]
        level = level[below] * (1 - share) + level[below + 1] * share
        level = 20 * np.log10(np.maximum(level, level.max() * 1e-3 + 1e-9))
        lines.append(level - uniform_filter1d(level, 60, axis=0))
    a, b = (np.fft.rfft(line, 1024, axis=0) for line in lines)
    match = np.fft.irfft((a.conj() * b).sum(1))
    lags = np.array(sorted(range(-60, 61), key=abs))  # of equals the smallest: silence is not moved
    return float(lags[match[lags].argmax()] / 5)


# -- edits ---------------------------------------------------------------------------------------


class Edits:
    """All edits of one latent space; each is fitted when it is first asked for.

    Parameters
    ----------
    model : LatentModel
    played : dict
        Of `pairs`, of training compositions; several lists of compositions may be joined.
    more : array of shape (B, n), optional
        Further sounds to learn dictionaries from, which need many frames.
    steps : int
        Batches that each SAE learns from.
    seed : int
    """

    def __init__(self, model: LatentModel, played: dict, more: np.ndarray | None = None,
                 steps: int = 1000, seed: int = 0) -> None:  # fmt: skip
        self.model, self.steps, self.seed = model, steps, seed
        self.latents = {key: model.encode(sounds) for key, sounds in played.items()}
        self.heard = heard(played[PLAIN], model)
        plain = _rows(self.latents[PLAIN])
        self.rows = plain if more is None else np.r_[plain, _rows(model.encode(more))]
        self.doses = [key for key in self.latents if key != PLAIN]
        self._fits: dict[str, Ridge] = {}
        self._probes: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(
        self, edit: str, z: np.ndarray, attribute: str, asked: float, now: dict, alpha: float = 1
    ) -> np.ndarray:
        """Latents (B, T, d) after an edit, of the same shape.

        Parameters
        ----------
        edit : str
            Of the module's table, but for ``"true"``.
        z : array of shape (B, T, d)
        attribute : {"pitch", "loudness", "centroid"}
        asked : float
            Shift. Fitted edits know those of their pairs only.
        now : dict
            Of `heard`: what the unedited sound is. Frames without the attribute are left alone by
            the edits that need to know its present value.
        alpha : float
            S2's α.

        Raises
        ------
        ValueError
            An unknown edit or attribute, or a shift that there are no pairs of.
        """
        if attribute not in DOSES:
            raise ValueError(f"{attribute!r} cannot be shifted; {', '.join(DOSES)} can.")
        if asked == 0 and edit != "S2":
            return z.copy()
        if edit == "S2":
            return self._s2(z, attribute, asked, now[attribute], alpha)
        if edit in (*FITTED, "vector", "random"):
            if (attribute, asked) not in self.latents:
                known = sorted(x for name, x in self.doses if name == attribute)
                raise ValueError(
                    f"There are no pairs with {attribute} shifted by {asked:g}: fitted edits know "
                    f"{known}. Ask for one of these, or make pairs of it."
                )
            if edit == "vector":
                return z + (self.latents[attribute, asked] - self.latents[PLAIN]).mean((0, 1))
            step = self._fitted("matrix" if edit == "random" else edit, z)[attribute, asked]
            if edit == "random":
                way = np.random.default_rng(self.seed).normal(size=(len(z), 1, z.shape[-1]))
                way /= np.linalg.norm(way, axis=-1, keepdims=True)
                step = np.linalg.norm(step, axis=-1, keepdims=True) * way
        elif edit == "probe":
            w = self._probe(attribute)
            step = np.broadcast_to(asked * w / (w @ w), z.shape)
        elif edit == "DiffMean":
            step = self._difference(attribute, asked, now[attribute])
        elif edit == "feature":
            step = self._feature(z, attribute, asked, now[attribute])
        else:
            known = ("S2", *FITTED, *RIVALS)
            raise ValueError(f"There is no edit {edit!r}; there are {', '.join(known)}.")
        return (z + step).astype(np.float32)

    # fitted on pairs

    def _reads(self, edit: str, z: np.ndarray) -> np.ndarray:
        """What an edit's regression reads of each frame."""
        if edit == "dictionary":
            return _code(self.topk, z)
        if edit == "neighbours":
            padded = np.pad(z, ((0, 0), (2, 2), (0, 0)), mode="edge")
            return np.concatenate([padded[:, i : i + z.shape[1]] for i in range(5)], axis=-1)
        return z

    def _fitted(self, edit: str, z: np.ndarray) -> dict[tuple[str, float], np.ndarray]:
        """Steps (B, T, d) towards every shift there are pairs of."""
        plain = self.latents[PLAIN]
        if edit not in self._fits:
            steps = [self.latents[key] - plain for key in self.doses]
            x = _rows(self._reads(edit, plain))
            penalty = 1e-3 * len(x) * x.var(0).mean()
            self._fits[edit] = Ridge(penalty).fit(x, _rows(np.concatenate(steps, axis=-1)))
        found = self._fits[edit].predict(_rows(self._reads(edit, z)))
        parts = np.split(found.reshape(*z.shape[:2], -1), len(self.doses), axis=-1)
        return dict(zip(self.doses, parts, strict=True))

    def explained(self, edit: str, latents: dict) -> dict[tuple[str, float], float]:
        """R² of an edit's steps on other pairs' latents: 1 is the true step, 0 none at all.

        Of edits that need not know the present value: those fitted on pairs, and directions.
        """
        z, found = latents[PLAIN], {}
        for key in self.doses:
            true = latents[key] - z
            left = true - (self(edit, z, *key, {}) - z)
            found[key] = float(1 - (left**2).sum() / (true**2).sum())
        return found

    # directions and means

    def _known(self, attribute: str) -> tuple[np.ndarray, np.ndarray]:
        """Latents (N, d) of frames that have an attribute, and its values (N,)."""
        values = self.heard[attribute].reshape(-1)
        here = np.isfinite(values)
        return _rows(self.latents[PLAIN])[here], values[here]

    def _probe(self, attribute: str) -> np.ndarray:
        x, values = self._known(attribute)
        return Ridge(1e-3 * len(x) * x.var(0).mean()).fit(x, values).coef_

    def _difference(self, attribute: str, asked: float, now: np.ndarray) -> np.ndarray:
        x, values = self._known(attribute)
        bins = np.round(values / BIN[attribute]).astype(int)
        taken = np.array([b for b in np.unique(bins) if (bins == b).sum() >= 20])
        means = np.stack([x[bins == b].mean(0) for b in taken])
        has = np.isfinite(now)[..., None]
        now = np.nan_to_num(now) / BIN[attribute]
        nearest = lambda v: np.abs(v[..., None] - taken).argmin(-1)  # noqa: E731
        return has * (means[nearest(now + asked / BIN[attribute])] - means[nearest(now)])

    # dictionaries

    @cached_property
    def topk(self):
        """A TopK SAE of the space: 16 features of 16 d."""
        return self._sae("topk", 16)

    @cached_property
    def rmsnorm(self):
        """S2's SAE of the space: 16 d features, λ = 0.02."""
        return self._sae("rmsnorm", None, sparsity=0.02)

    def _sae(self, architecture: str, k: int | None, **how):
        config = TrainConfig(
            SAEConfig.of(self.model.width, 16, k, architecture), steps=self.steps, batch_size=1024,
            lr=1e-3, dead_after=100_000, seed=self.seed, **how,
        )  # fmt: skip
        return train(config, self.rows, progress=False).sae

    def _feature(self, z: np.ndarray, attribute: str, asked: float, now: np.ndarray) -> np.ndarray:
        x, values = self._known(attribute)
        codes, ways = _code(self.topk, x), self.topk.directions.numpy()
        if attribute != "pitch":
            centred = codes - codes.mean(0)
            slopes = (values - values.mean()) @ centred / len(values) / values.var()
            best = np.abs(slopes / np.maximum(codes.std(0), 1e-6)).argmax()
            return np.broadcast_to(asked * slopes[best] * ways[best], z.shape)
        notes = np.round(values).astype(int)
        span = np.arange(notes.min(), notes.max() + 1)
        active = np.stack([codes[notes == n].sum(0) / max(20, (notes == n).sum()) for n in span])
        own = active.argmax(0)  # each feature's note
        profile = np.where(own == np.arange(len(span))[:, None], active, 0)
        profile /= np.maximum(profile.sum(1, keepdims=True), 1e-9)

        def place(values: np.ndarray) -> np.ndarray:
            return np.clip(np.round(np.nan_to_num(values)) - span[0], 0, len(span) - 1).astype(int)

        f = _code(self.topk, z)
        given = np.where(own == place(now)[..., None], f, 0)
        change = given.sum(-1, keepdims=True) * profile[place(now + asked)] - given
        return np.isfinite(now)[..., None] * (change @ ways)

    # S2's rule

    def reconstructed(self, z: np.ndarray) -> np.ndarray:
        """What S2's SAE makes of latents: what S2's edits are compared with."""
        sae = self.rmsnorm
        with torch.no_grad():
            return sae(torch.as_tensor(z)).numpy()

    def _classes(self, attribute: str) -> tuple[np.ndarray, np.ndarray]:
        """Class borders of an attribute, and softmax weights (classes, n) on the features."""
        if attribute not in self._probes:
            x, values = self._known(attribute)
            if attribute == "pitch":
                borders = np.arange(np.floor(values.min()), np.ceil(values.max())) + 0.5
            else:
                borders = np.quantile(values, np.linspace(0, 1, 21)[1:-1])
            labels = np.digitize(values, borders)
            weights = _softmax(_code(self.rmsnorm, x), labels, len(borders) + 1)
            self._probes[attribute] = borders, weights
        return self._probes[attribute]

    def _s2(
        self, z: np.ndarray, attribute: str, asked: float, now: np.ndarray, alpha: float
    ) -> np.ndarray:
        borders, weights = self._classes(attribute)
        push = weights[np.digitize(np.nan_to_num(now) + asked, borders)]
        push = np.where(np.isfinite(now)[..., None], push, 0).astype(np.float32)
        code = torch.as_tensor(_code(self.rmsnorm, z) + alpha * push)
        with torch.no_grad():
            return self.rmsnorm.decode(root_mean_square_norm(code)).numpy()


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _code(sae, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return sae.encode(torch.as_tensor(np.ascontiguousarray(x))).numpy()


def _softmax(x: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights (classes, n) of a softmax probe, fitted by Adam in 400 batches of 512."""
    torch.manual_seed(0)
    probe = torch.nn.Linear(x.shape[1], classes)
    adam = torch.optim.Adam(probe.parameters(), lr=0.01)
    x, labels = torch.as_tensor(x), torch.as_tensor(labels)
    for _ in range(400):
        some = torch.randint(len(x), (512,))
        adam.zero_grad()
        torch.nn.functional.cross_entropy(probe(x[some]), labels[some]).backward()
        adam.step()
    return probe.weight.detach().numpy()


# -- what is heard -------------------------------------------------------------------------------


class Ground:
    """Compositions that edits are scored on, in one latent space.

    Parameters
    ----------
    edits : Edits
    played : dict
        Of `pairs`.

    Attributes
    ----------
    now : dict of array of shape (B, T)
        What the sound itself is heard as: all that an edit is told.
    spread : dict of float
        Of each measure, its standard deviation over the clips, decoded without an edit.
    """

    def __init__(self, edits: Edits, played: dict) -> None:
        self.edits, self.model, self.played = edits, edits.model, played
        self.z = self.model.encode(played[PLAIN])
        self.now = heard(played[PLAIN], self.model)
        self._bases: dict[bool, tuple[np.ndarray, dict]] = {}
        self.spread = {
            name: float(np.nanstd(np.nanmean(values, axis=1)))
            for name, values in self.base(False)[1].items()
        }

    def base(self, s2: bool) -> tuple[np.ndarray, dict]:
        """Decoded sounds without an edit (S2's: of its SAE's reconstruction), and as heard."""
        if s2 not in self._bases:
            sounds = self.model.decode(self.edits.reconstructed(self.z) if s2 else self.z)
            self._bases[s2] = sounds, heard(sounds, self.model)
        return self._bases[s2]

    def sounds(
        self, edit: str, attribute: str, asked: float, alpha: float = 1, n: int | None = None
    ) -> np.ndarray:
        """Decoded sounds (n, samples) after an edit of the first n compositions."""
        if edit == "true":
            return self.model.decode(self.model.encode(self.played[attribute, asked][:n]))
        now = {name: values[:n] for name, values in self.now.items()}
        z = self.edits(edit, self.z[:n], attribute, asked, now, alpha)
        return self.model.decode(z)

    def changes(
        self, sounds: np.ndarray, key: tuple[str, float] = PLAIN, s2: bool = False
    ) -> dict[str, np.ndarray]:
        """What changed in n edited sounds beside the unedited ones: arrays of shape (n,).

        ``pitch`` (median over the frames that have one before and after, in semitones; 0 where none
        has), ``loudness``, ``centroid``, ``strength`` of pitch (means over frames), ``transposed``
        (`transposition`), and ``lsd``: log-spectral distance in dB from the music that really was
        played as `key` asks.
        """
        plain, before = self.base(s2)
        after, n = heard(sounds, self.model), len(sounds)
        found = {}
        for name in MEASURED:
            average = np.nanmedian if name == "pitch" else np.nanmean
            change = after[name] - before[name][:n]
            empty = ~np.isfinite(change).any(axis=1)
            change[empty] = 0
            found[name] = average(change, axis=1)
        found["transposed"] = np.array(list(map(transposition, plain, sounds)))
        found["lsd"] = np.array(list(map(log_spectral_distance, self.played[key], sounds)))
        return found


def figure_of(rows: Sequence[Mapping], spread: Mapping, measure: str = "") -> dict[str, Interval]:
    """Share of the asked shift that is reached, and what else changes beside it.

    Parameters
    ----------
    rows : sequence of dict
        Conditions of one edit and attribute, shifts of the same n clips: ``attribute``, ``asked``,
        and arrays as of `Ground.changes`.
    spread : mapping
        Of `Ground`.
    measure : str
        What the target is measured by, if not by the attribute's own tracker: ``"transposed"``.

    Returns
    -------
    dict of Interval
        ``share``: mean over shifts and clips of change / asked, 1 being all of it. ``offtarget``:
        of the other two attributes the larger mean absolute change, in standard deviations over
        clips, over the mean change of the target towards what was asked in those of the target. 95
        % intervals by bootstrap over compositions.
    """
    attribute = rows[0]["attribute"]
    target = np.array([np.array(r[measure or attribute]) for r in rows])  # (shifts, clips)
    asked = np.array([[r["asked"]] for r in rows])
    moved = (target * np.sign(asked)).mean(0) / spread[attribute]
    others = [
        np.abs([r[name] for r in rows]).mean(0) / spread[name]
        for name in DOSES
        if name != attribute
    ]
    worst = lambda m, a, b: max(a.mean(), b.mean()) / max(m.mean(), 1e-3)  # noqa: E731
    return {
        "share": stats.bootstrap((target / asked).mean(0)),
        "offtarget": stats.bootstrap((moved, *others), worst, n=1000),
    }


# -- the measurement -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is played."""

    learnt: int = 40
    """Training compositions of pairs, of each kind."""
    more: int = 96
    """Further ones (a quarter of them melodies alone) that dictionaries are learnt from."""
    chosen: int = 12
    """Validation compositions that the best fitted edit is chosen on."""
    steps: int = 1000
    """Batches that each SAE learns from."""
    scored: int = 48
    """Test compositions."""
    rivals: int = 24
    """Of them, those that rivals are asked for."""


def learn(
    model: LatentModel,
    plan: Plan = Plan(),
    doses: Mapping[str, Sequence[float]] = DOSES,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> Edits:
    """Edits of a space, from training compositions: other ones for mixes and for melodies."""
    parts = [
        pairs(scores(plan.learnt, "train", seed + 10_000 * i), doses, alone=kind == "melody")
        for i, kind in enumerate(kinds)
    ]
    more = [_played(piece, 0, i % 4 == 3)
            for i, piece in enumerate(scores(plan.more, "train", seed + 20_000))]  # fmt: skip
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Edits(model, joined, np.stack(more) if more else None, plan.steps, seed)


def measure(edits: Edits, tests: Mapping[str, dict], chosen: Mapping[str, dict], plan: Plan,
            judge) -> dict:  # fmt: skip
    """All edits of one space.

    Parameters
    ----------
    edits : Edits
    tests, chosen : mapping of kind ("mix", "melody") to what `pairs` gives
        Of test and of validation compositions.
    plan : Plan
    judge : AudioTextModel
        Whose embeddings the Fréchet distance is of.

    Returns
    -------
    dict
        ``candidates`` (R² on validation pairs by fitted edit and shift), ``best`` (of them),
        ``spread`` by kind, ``rows``.
    """
    from musae_utils.labels.examples import of_sounds
    from musae_utils.steering.outcome import frechet

    model, out = edits.model, {"candidates": {}, "spread": {}, "rows": []}
    latents = [{key: model.encode(x) for key, x in played.items()} for played in chosen.values()]
    for edit in FITTED:
        found = [edits.explained(edit, part) for part in latents]
        out["candidates"][edit] = {
            f"{name} {asked:+g}": round(float(np.mean([part[name, asked] for part in found])), 3)
            for name, asked in found[0]
        }
    means = {edit: np.mean(list(by.values())) for edit, by in out["candidates"].items()}
    out["best"] = max(means, key=means.get)

    def embedded(sounds: np.ndarray) -> np.ndarray:
        return judge.embed_sounds(of_sounds(sounds, model.sample_rate))

    for kind, played in tests.items():
        ground = Ground(edits, played)
        out["spread"][kind] = ground.spread
        reference = {}
        for edit, alpha, attribute, asked, n in _conditions(out["best"], kind, plan):
            s2, key = edit == "S2", (attribute, asked)
            if edit in ("none", "reconstruction"):
                sounds, s2 = ground.base(edit == "reconstruction")[0], False
            else:
                sounds = ground.sounds(edit, attribute, asked, alpha, n)
            row = {"kind": kind, "edit": edit, "alpha": alpha, "attribute": attribute,
                   "asked": asked, **ground.changes(sounds, key, s2)}  # fmt: skip
            if n == plan.scored and asked in (0.0, *KEY.values()):
                if key not in reference:
                    reference[key] = embedded(played[key])
                row["fad"] = frechet(embedded(sounds), reference[key])
            out["rows"].append({name: _short(value) for name, value in row.items()})
    return out


def _conditions(best: str, kind: str, plan: Plan):
    """(edit, alpha, attribute, asked, compositions) of everything that is played."""
    yield from ((edit, 1, *PLAIN, plan.scored) for edit in ("none", "reconstruction"))
    for attribute in DOSES if kind == "mix" else ("pitch",):
        for asked in DOSES[attribute]:
            yield from ((edit, 1, attribute, asked, plan.scored) for edit in ("true", best))
        asked = KEY[attribute]
        for each in (-3, 5) if attribute == "pitch" else (asked,):
            yield from (("S2", alpha, attribute, each, plan.scored) for alpha in ALPHAS)
        rivals = [*(edit for edit in FITTED if edit != best), *RIVALS]
        yield from ((edit, 1, attribute, asked, plan.rivals) for edit in rivals)


def _short(value):
    """Three decimals are more than any tracker has."""
    if isinstance(value, np.ndarray):
        return [round(float(x), 3) for x in value]
    return round(value, 4) if isinstance(value, float) else value


def run(folder: Path, plan: Plan = Plan(), spaces: Sequence[str] = tuple(NANO)) -> dict:
    """Measure all edits of all spaces; stopped at any time, it goes on with the next space."""
    from musae_utils.labels.ears import nano_clap

    models = {name: load_nano_latents(name) for name in spaces}
    about = {"plan": dataclasses.asdict(plan), "doses": DOSES, "seconds": LENGTH}
    prints = {name: model.fingerprint for name, model in models.items()}
    out = {"provenance": about | {"versions": runs.versions(), "spaces": prints}, "spaces": {}}
    tests = chosen = None
    with runs.Run(folder, about, fingerprints=prints) as kept:
        for name, model in models.items():
            if not kept.has(f"{name}.json"):
                begun = time.perf_counter()
                tests = tests or {
                    k: pairs(scores(plan.scored, "test"), alone=k == "melody") for k in KINDS
                }
                chosen = chosen or {
                    k: pairs(scores(plan.chosen, "validation"), alone=k == "melody") for k in KINDS
                }
                found = measure(learn(model, plan), tests, chosen, plan, nano_clap())
                found["seconds"] = round(time.perf_counter() - begun)
                kept.save(f"{name}.json", lambda path, found=found: runs.save_json(path, found))
                print(f"{name}: {found['seconds']} s, best edit {found['best']}", flush=True)
            out["spaces"][name] = runs.load_json(kept.path(f"{name}.json"))
    return out


def load(path: Path = TABLE) -> dict:
    """The kept table: ``provenance``, and by space what `measure` gave.

    Raises
    ------
    FileNotFoundError
        It was never made: ``make latents`` does.
    """
    return runs.load_json(path)


def conditions(table: dict) -> pd.DataFrame:
    """A line for each space, kind, edit, alpha, attribute and shift, with means over clips.

    Columns are those of `Ground.changes` and ``fad``; ``reached`` is the target's mean change in
    its own unit: of pitch ``transposed`` on mixes, the tracker's on melodies.
    """
    lines = []
    for space, found in table["spaces"].items():
        for row in found["rows"]:
            means = {k: np.mean(v) if isinstance(v, list) else v for k, v in row.items()}
            target = "transposed" if (row["attribute"], row["kind"]) == ("pitch", "mix") else None
            reached = means.get(target or row["attribute"], np.nan)
            lines.append({"space": space, "n": len(row["lsd"]), "reached": reached, **means})
    return pd.DataFrame(lines)


def rows_of(
    table: dict, space: str, edit: str, attribute: str, kind: str = "mix", **fixed
) -> list[dict]:
    """Conditions of an edit in a space; ``fixed`` asks for one ``alpha`` or ``asked``."""
    asked = {"edit": edit, "attribute": attribute, "kind": kind, **fixed}
    found = [row for row in table["spaces"][space]["rows"]
             if all(row[name] == value for name, value in asked.items())]  # fmt: skip
    if not found:
        raise ValueError(f"The table has no rows of {space} with {asked}.")
    return found


def best_alpha(table: dict, space: str, attribute: str, kind: str = "mix", by: str = "") -> float:
    """S2's α whose share came nearest to 1: chosen in its favour, afterwards."""
    rows = pd.DataFrame(rows_of(table, space, "S2", attribute, kind))
    share = rows[by or attribute].map(np.mean) / rows["asked"]
    return float((share.groupby(rows["alpha"]).mean() - 1).abs().idxmin())


def figures(table: dict) -> dict[str, Interval]:
    """The headlines of a table that `load` gave, by their names on the scoreboard.

    ``manipulate.ATTRIBUTE`` is the share of the asked shift that the best edit reached, in the
    space whose pairs it explained best on validation compositions, all shifts together; with
    ``_offtarget`` the largest change of another attribute beside it (`figure_of`), with ``_s2`` and
    ``_s2_offtarget`` what S2's rule did, at the α that served it best. ``manipulate.SPACE.…`` are
    the same in each space. Pitch is that of all notes together (`transposition`);
    ``pitch_melody`` is that of melodies alone, by the tracker.
    """
    quality = {
        space: np.mean(list(found["candidates"][found["best"]].values()))
        for space, found in table["spaces"].items()
    }
    first, out = max(quality, key=quality.get), {}
    for space, found in table["spaces"].items():
        here = {}
        for name, kind, by in (("pitch", "mix", "transposed"), ("pitch_melody", "melody", ""),
                               ("loudness", "mix", ""), ("centroid", "mix", "")):  # fmt: skip
            attribute, spread = name.removesuffix("_melody"), found["spread"][kind]
            alpha = best_alpha(table, space, attribute, kind, by)
            for edit, end, fixed in ((found["best"], "", {}), ("S2", "_s2", {"alpha": alpha})):
                rows = rows_of(table, space, edit, attribute, kind, **fixed)
                told = figure_of(rows, spread, by)
                here[name + end] = told["share"]
                here[f"{name}{end}_offtarget"] = told["offtarget"]
        out |= {f"manipulate.{space.removeprefix('nano-')}.{key}": i for key, i in here.items()}
        if space == first:
            out |= {f"manipulate.{key}": i for key, i in here.items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/latents/manipulate"))
    asked = parser.parse_args()
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    runs.save_json(TABLE, run(asked.folder))
    print(f"{TABLE}: {TABLE.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
