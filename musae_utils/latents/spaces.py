"""What latent spaces make linearly available, at what sparsity, and how selectively (notebook 13).

For each space, on the same music:

1. **Sources.** Sparse autoencoders of three kinds over penalty (or k) and dictionary size, against
   the latents themselves, their principal components kept to as few as an SAE keeps, random
   features (an SAE that never learnt), and mel bands over as much time as an encoder hears.
2. **Questions.** Those of `attributes.ATTRIBUTES`, of full pieces ("mix") and, for pitch, loudness
   and timbre, of their melodies alone ("alone"): most of S2's music has one voice at a time, so
   "alone" is what its figures may be set beside.
3. **Probes.** Softmax regression, found on training compositions and scored on test compositions.
   Every question has a **control task** (Hewitt and Liang, 2019): answers drawn at random for each
   of 512 cells of the latent space. Score less control is the selectivity.
4. **Few features.** How the score of pitch falls as features are taken away, the least used half
   at a time.
5. **Other instruments.** Pitch found on a flute, asked of a cello; found on all families, asked of
   programs that no model of this project heard in training.

What is chosen (the best SAE of a space for a question, the probe's last step) is chosen on an inner
fifth of the training compositions.

``python -m musae_utils.latents.spaces`` does all of it for the three nano spaces, goes on where it
was stopped, and keeps what it finds in ``data/latents/spaces.json``.

S2's penalty is λ on the sum of h beside a *mean* squared error; here the squared error of a frame
is a sum, so λ is multiplied by the width of the latents.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from tqdm import tqdm

from musae_utils import latents, music, probes, runs, sae, stats
from musae_utils.latents import attributes
from musae_utils.latents.attributes import ATTRIBUTES
from musae_utils.music.compose import Spec, compose
from musae_utils.music.dataset import SPLIT_SEEDS
from musae_utils.music.render import render
from musae_utils.stats import Interval

TABLE = Path(__file__).resolve().parents[2] / "data" / "latents" / "spaces.json"
SPACES = ("nano-codec", "nano-vae", "nano-tokenizer")
SAES = ("rmsnorm", "topk", "batch_topk")
DRAWS = 2000
#: Asked of full pieces, and of melodies alone.
ASKED = {"mix": tuple(ATTRIBUTES), "alone": ("pitch", "loudness", "timbre")}
BINNED = ("loudness", "timbre", "lufs")
NUMBERS = ("pitch", "heard_pitch", "loudness", "timbre", "lufs")  # also asked as numbers
#: Second ways to ask what is asked above.
SECOND = tuple(
    f"{n} {how}" for n in ("loudness", "timbre") for how in ("equal count", "whole range")
)
UNCONTROLLED = (*SECOND, "heard_pitch", "lufs")
BANDS = 64  # mel bands
CONTEXT = (-16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16)  # in 1/50 s: what the nano encoders hear
LARGEST = 8192  # features
FLUTE, CELLO = 73, 42  # General MIDI programs


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    train, test : int
        Compositions.
    others : int
        Of each other instrument, and of programs never heard.
    seconds : float
    per_clip : int
        Frames drawn from each clip.
    steps : int
        Of each SAE; half as many of the largest.
    epochs : int
        Of each probe.
    cells : int
        Types of the control tasks.
    seed : int
        First composition within its split.
    """

    train: int = 120
    test: int = 100
    others: int = 32
    seconds: float = 6.0
    per_clip: int = 64
    steps: int = 400
    epochs: int = 12
    cells: int = 512
    seed: int = 70_000


def melody_alone(number: int, held_out_presets: bool = False, **fields: Any) -> music.Clip:
    """The melody of a composition, played by itself: one note at a time."""
    score = compose(Spec(**fields), number, held_out_presets)
    score.notes[:] = [note for note in score.notes if note.role == "melody"]
    return render(score, number)


class Frames(NamedTuple):
    """Frames drawn from C clips: N = C · per_clip rows.

    Attributes
    ----------
    z : ndarray of shape (N, d)
        Latents.
    mel : ndarray of shape (N, 704)
        Log mel bands around each frame.
    answers : dict of str to float ndarray of shape (N,)
        Of `attributes.targets`.
    clip : ndarray of int, shape (N,)
    cell : ndarray of int, shape (N,), optional
        Cell of the latent space, for control tasks.
    """

    z: np.ndarray
    mel: np.ndarray
    answers: dict[str, np.ndarray]
    clip: np.ndarray
    cell: np.ndarray | None = None


def draw(
    clips: Sequence[music.Clip], frame_rate: float, per_clip: int, seed: int = 0
) -> tuple[Frames, np.ndarray]:
    """Frames of equally long clips, without latents as yet, and their places (C, per_clip)."""
    rng, places, parts = np.random.default_rng(seed), [], []
    for clip in clips:
        known = attributes.targets(clip, frame_rate)
        n = len(known["pitch"])
        rows = np.sort(rng.choice(n, min(per_clip, n), replace=False))
        mel = mel_around(clip, (rows + 0.5) / frame_rate)
        parts.append(({k: v[rows] for k, v in known.items()}, mel))
        places.append(rows)
    answers = {k: np.concatenate([known[k] for known, _ in parts]) for k in parts[0][0]}
    mel = np.concatenate([mel for _, mel in parts])
    clip = np.repeat(np.arange(len(clips)), len(places[0]))
    return Frames(np.zeros((len(mel), 0), np.float32), mel, answers, clip), np.stack(places)


def joined(parts: Sequence[Frames]) -> Frames:
    """One after the other, their clips renumbered."""
    answers = {k: np.concatenate([p.answers[k] for p in parts]) for k in parts[0].answers}
    starts = np.cumsum([0, *(p.clip.max() + 1 for p in parts[:-1])])
    clip = np.concatenate([p.clip + s for p, s in zip(parts, starts, strict=True)])
    return Frames(
        np.concatenate([p.z for p in parts]), np.concatenate([p.mel for p in parts]), answers, clip
    )


def mel_around(clip: music.Clip, moments: np.ndarray) -> np.ndarray:
    """Log mel bands at moments (N,) in seconds and around them: (N, 704), float32.

    64 bands in windows of 128 ms, at the moment and up to 0.32 s on both sides: the windows and the
    reach of the nano encoders.
    """
    import librosa

    step = round(clip.sample_rate / music.FRAME_RATE)
    power = librosa.feature.melspectrogram(
        y=clip.audio, sr=clip.sample_rate, n_fft=2048, hop_length=step, n_mels=BANDS
    )
    levels = np.log(power.T + 1e-6).astype(np.float32)
    at = np.round(moments * music.FRAME_RATE).astype(int)
    return levels[(at[:, None] + np.array(CONTEXT)).clip(0, len(levels) - 1)].reshape(len(at), -1)


# -- questions -------------------------------------------------------------------------------------


class Question(NamedTuple):
    """What a probe is asked: answers of both halves, and of how many kinds they are.

    Attributes
    ----------
    train, test : ndarray of shape (N,), (M,)
        Classes, int, -1 where there is no answer; or numbers, NaN where there is none.
    classes : int
        0 for numbers.
    binned : callable, optional
        Numbers to classes, where the classes have an order.
    """

    train: np.ndarray
    test: np.ndarray
    classes: int
    binned: Callable[[np.ndarray], np.ndarray] | None = None


def questions(
    train: Frames,
    test: Frames,
    names: Sequence[str],
    bins: dict[str, np.ndarray],
    types: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Question]:
    """Questions about frames, with their control tasks.

    Parameters
    ----------
    train, test : Frames
    names : sequence of str
        Of `ATTRIBUTES`, of one level, and of `SECOND`: the same in other bins.
    bins : dict of str to edges
    types : two ndarrays of shape (N,), (M,), optional
        Type of each row: adds ``"NAME control"``.
    seed : int

    Returns
    -------
    dict of str to Question
        ``"NAME"``, ``"NAME control"`` and, where order matters, ``"NAME number"``.
    """
    made, rng = {}, np.random.default_rng(seed)
    for name in names:
        plain = name.split(" ")[0]
        size = ATTRIBUTES[plain].classes
        both = [attributes.classes(plain, h.answers[plain], bins.get(name)) for h in (train, test)]
        both[0], dropped = attributes.common(both[0], train.clip)
        both[1] = np.where(np.isin(both[1], dropped), -1, both[1])
        if size == 2 and ATTRIBUTES[plain].level == "frame":
            both = [_balanced(x, rng) for x in both]
        ordered = plain in NUMBERS
        made[name] = Question(
            *both, size, functools.partial(_classes, plain, bins.get(name)) if ordered else None
        )
        if types is not None and name not in UNCONTROLLED:
            labels, cells = np.concatenate(both), np.concatenate(types)
            has = labels >= 0
            labels[has] = probes.control_labels(labels[has], cells[has], seed)
            made[f"{name} control"] = Question(*np.split(labels, [len(both[0])]), size)
        if name in NUMBERS:
            made[f"{name} number"] = Question(train.answers[name], test.answers[name], 0)
    return made


def _classes(name: str, at: np.ndarray | None, numbers: np.ndarray) -> np.ndarray:
    if "pitch" in name:
        numbers = numbers.clip(attributes.LOWEST, attributes.LOWEST + attributes.PITCHES - 1)
    return attributes.classes(name, numbers, at)


def _balanced(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many frames with yes as with no; the others of the more common answer are not asked."""
    counts = [(labels == c).sum() for c in (0, 1)]
    often = int(counts[1] > counts[0])
    here = np.flatnonzero(labels == often)
    out = labels.copy()
    out[rng.permutation(here)[min(counts) :]] = -1
    return out


# -- probes ----------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """What a probe says of test rows (M,), its score on the inner fifth, its weights (d, c)."""

    said: np.ndarray
    inner: float
    weights: np.ndarray


def fit(
    x: np.ndarray,
    test: np.ndarray,
    asked: dict[str, Question],
    groups: np.ndarray,
    epochs: int = 12,
    batch: int = 256,
    rate: float = 2e-2,
    seed: int = 0,
) -> dict[str, Answers]:
    """Find linear probes for many questions at once.

    Where answers have an order, a number is found too; put into its bin, it is the answer where
    that does better on the inner fifth than the softmax.

    One matrix, whose columns belong to different questions: as each column has its own gradient and
    Adam scales each weight by itself, this equals probes found one by one. A question without an
    answer in a row takes no part in it. Features are divided by their standard deviation, and cut
    at 8 of them, so that a feature that is hardly ever active does not decide what it never saw.

    Parameters
    ----------
    x, test : ndarray of shape (N, d), (M, d)
    asked : dict of str to Question
    groups : ndarray of shape (N,)
        Composition of each training row. A fifth of the compositions is kept out, and every
        question keeps the weights of the epoch that did best on it.
    epochs, batch, rate, seed

    Returns
    -------
    dict of str to Answers

    Raises
    ------
    ValueError
        A question with no answer in one of the two parts of the training half.
    """
    torch.manual_seed(seed)
    x, test = torch.as_tensor(x), torch.as_tensor(test)
    sample = x[:: max(1, len(x) // 4000)].float()
    scale = sample.std(0).clamp_min(1e-3 * float(sample.std()) + 1e-9)
    mean = sample.mean(0) if not (sample == 0).float().mean() > 0.3 else torch.zeros(x.shape[1])
    ready = lambda part: ((part.float() - mean) / scale).clamp(-8, 8)  # noqa: E731
    inner = torch.as_tensor(_fifth(groups))
    learn, judge = (torch.nonzero(part).ravel() for part in (~inner, inner))
    names, at, targets = list(asked), {}, {}
    for name, q in asked.items():
        start = max((s.stop for s in at.values()), default=0)
        at[name] = slice(start, start + max(1, q.classes))
        y = torch.as_tensor(q.train)
        if not q.classes:
            known = torch.isfinite(y)
            y = (y - y[known].mean()) / y[known].std().clamp_min(1e-9)
        known = (y >= 0) if q.classes else torch.isfinite(y)
        if not (known[learn].any() and known[judge].any()):
            raise ValueError(f"{name}: too few compositions have an answer; give more music.")
        targets[name] = (y.long() if q.classes else y.float(), known)
    width = max(s.stop for s in at.values())
    weights = torch.zeros(x.shape[1], width, requires_grad=True)
    bias = torch.zeros(width, requires_grad=True)
    steps = epochs * -(-len(learn) // batch)
    optimiser = torch.optim.AdamW([weights, bias], rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / (steps + 1))
    fast = sae.steps.bfloat16_pays() and x.shape[1] * width > 100_000
    kept: dict[str, tuple] = {}
    for _ in range(epochs):
        for rows in learn[torch.randperm(len(learn))].split(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                out = ready(x[rows]) @ weights
            out, loss = out.float() + bias, 0.0
            for name, q in asked.items():
                y, known = targets[name]
                y, known, mine = y[rows], known[rows], out[:, at[name]]
                if q.classes:
                    y = torch.where(known, y, -100)
                    loss = loss + F.cross_entropy(mine, y, reduction="sum", ignore_index=-100)
                else:
                    away = torch.where(known, mine[:, 0] - torch.nan_to_num(y), 0.0)
                    loss = loss + away.square().sum()
            optimiser.zero_grad()
            (loss / len(rows)).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            out = torch.cat([ready(x[r]) @ weights for r in judge.split(4096)]) + bias
            for name, q in asked.items():
                y, known = (part[judge] for part in targets[name])
                mine = out[known][:, at[name]]
                if q.classes:
                    found = (mine.argmax(1) == y[known]).float().mean()
                else:
                    found = 1 - (mine[:, 0] - y[known]).square().mean()
                if name not in kept or float(found) > kept[name][0]:
                    kept[name] = (
                        float(found), weights[:, at[name]].clone(), bias[at[name]].clone()
                    )  # fmt: skip
    best = torch.cat([kept[name][1] for name in names], 1)
    bias = torch.cat([kept[name][2] for name in names])
    with torch.no_grad():
        out = torch.cat([ready(part) @ best for part in test.split(4096)]) + bias
        again = torch.cat([ready(x[r]) @ best for r in judge.split(4096)]) + bias
    found = {}
    for name, q in asked.items():
        said, inner = out[:, at[name]].argmax(1).numpy(), kept[name][0]
        if not q.classes:
            said = _numbers(out[:, at[name]], q)
        number = f"{name.split(' ')[0]} number"
        if q.binned and number in asked:  # softmax learns an order slowly, and a line knows it
            y, known = (part[judge].numpy() for part in targets[name])
            guess = q.binned(_numbers(again[:, at[number]], asked[number]))
            share = float((guess == y)[known].mean())
            if share > inner:
                said, inner = q.binned(_numbers(out[:, at[number]], asked[number])), share
        found[name] = Answers(said, inner, kept[name][1].detach().numpy())
    return found


def _numbers(out: torch.Tensor, question: Question) -> np.ndarray:
    """Standardised numbers (M, 1) in the question's own units (M,)."""
    y = question.train[np.isfinite(question.train)]
    return out[:, 0].detach().numpy() * y.std() + y.mean()


def _fifth(groups: np.ndarray) -> np.ndarray:
    """Which rows belong to every fifth composition."""
    _, index = np.unique(groups, return_inverse=True)
    return index % 5 == 4


def scored(
    asked: dict[str, Question], found: dict[str, Answers], groups: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each question: score, chance, control and selectivity, with intervals.

    Parameters
    ----------
    asked, found
    groups : ndarray of shape (M,)
        Composition of each test row; the bootstrap draws compositions.

    Returns
    -------
    list of dict
        ``attribute``, ``score``, ``low``, ``high`` (accuracy), ``chance`` (that of the answer most
        common in the training half), ``control``, ``selectivity``, ``selectivity_low``, ``…_high``,
        ``inner``, ``n`` (compositions), ``rows`` and, where it was asked as a number too, ``mae``
        and ``r2``.
    """
    _, index = np.unique(groups, return_inverse=True)
    weights = stats.resample_groups(index.max() + 1, DRAWS)
    sums = lambda x: np.bincount(index, x, index.max() + 1)  # noqa: E731
    share = lambda right, asked: (weights @ sums(right)) / np.maximum(weights @ sums(asked), 1)  # noqa: E731
    rows = []
    for name, q in asked.items():
        if not q.classes or name.endswith(" control"):
            continue
        known = q.test >= 0
        right = known & (found[name].said == q.test)
        draws = share(right, known)
        common = np.bincount(q.train[q.train >= 0]).argmax()
        row = dict(
            attribute=name, score=right.sum() / known.sum(), low=np.percentile(draws, 2.5),
            high=np.percentile(draws, 97.5), chance=(q.test[known] == common).mean(),
            inner=found[name].inner, n=len(np.unique(index[known])), rows=known.sum(),
        )  # fmt: skip
        if control := asked.get(f"{name} control"):
            hit = (control.test >= 0) & (found[f"{name} control"].said == control.test)
            apart = draws - share(hit, control.test >= 0)
            row |= dict(
                control=hit.sum() / known.sum(),
                selectivity=(right.sum() - hit.sum()) / known.sum(),
                selectivity_low=np.percentile(apart, 2.5),
                selectivity_high=np.percentile(apart, 97.5),
            )  # fmt: skip
        if number := asked.get(f"{name} number"):
            has = np.isfinite(number.test)
            away = (found[f"{name} number"].said - number.test)[has]
            row |= dict(mae=np.abs(away).mean(), r2=1 - away.var() / number.test[has].var())
        rows.append({k: v if isinstance(v, str) else float(v) for k, v in row.items()})
    return rows


# -- sources ---------------------------------------------------------------------------------------


class Source(NamedTuple):
    """One way to describe a frame: an SAE of an architecture, or a rival of it.

    Attributes
    ----------
    architecture : str
        Of `SAES`; or "latents", "pca", "random", "mel".
    expansion : float
        Features of each latent dimension; 0 where that has no meaning.
    setting : float
        λ or k; 0 where there is none.
    """

    architecture: str
    expansion: float = 0.0
    setting: float = 0.0

    def __str__(self) -> str:
        return "-".join([self.architecture, *(f"{x:g}" for x in self[1:] if x)])


def sources(width: int, smoke: bool = False) -> list[Source]:
    """All that is compared in a space of this width."""
    most = min(256, LARGEST // width)
    found = [Source("latents"), Source("mel"), Source("pca", 0, 16)]
    if smoke:
        return [*found, Source("topk", 8, 8), Source("random", 8, 8)]
    found += [Source("random", 32, 16), Source("rmsnorm", 4, 0.005), Source("topk", 4, 8)]
    found += [Source("topk", 32, k) for k in (4, 8, 16, 32)]
    found += [Source("rmsnorm", 32, penalty) for penalty in (0.005, 0.02, 0.05, 0.15)]
    found += [Source("batch_topk", 32, k) for k in (8, 32)]
    return [*found, Source("topk", most, 32), Source("rmsnorm", most, 0.005)]


def sae_of(source: Source, every: np.ndarray, plan: Plan, seed: int = 42) -> sae.SAE:
    """Train the SAE of a source on latents (N, d); a "random" one is not trained.

    λ = 0 is allowed: then nothing asks for zeros, and a rectifier alone makes them. A dictionary
    without features, or k out of range, is refused by `sae.SAEConfig`.
    """
    kind, width = source.architecture, every.shape[1]
    data = torch.as_tensor(np.asarray(every, np.float32))
    if kind == "random":
        config = sae.SAEConfig.of(width, source.expansion, int(source.setting), "topk")
        untrained = sae.SAE(config, seed=None)
        generator = torch.Generator().manual_seed(seed)
        untrained.initialise(generator, data[:4096], scaled=True)
        return untrained
    sparse = kind != "rmsnorm"
    config = sae.SAEConfig.of(
        width, source.expansion, int(source.setting) if sparse else None, kind
    )
    large = config.d_sae > 4096
    training = sae.TrainConfig(
        config, steps=plan.steps // (2 if large else 1), batch_size=1024 if sparse else 512,
        lr=2e-3, warmup=50, seed=seed, sparsity=0.0 if sparse else source.setting * width,
    )  # fmt: skip
    return sae.train(training, data, progress=False).sae


@torch.no_grad()
def features(one: sae.SAE, z: np.ndarray) -> np.ndarray:
    """Feature activations of latents (N, d): (N, n), float16."""
    parts = torch.as_tensor(np.asarray(z, np.float32)).split(2048)
    return np.concatenate([one.encode(part).half().numpy() for part in parts])


def described(
    source: Source, every: np.ndarray, halves: Sequence[Frames], plan: Plan
) -> tuple[list[np.ndarray], dict[str, float]]:
    """A source's description of some frames, and how sparse it is on the last of them.

    Returns
    -------
    list of ndarray of shape (N, n), one for each of `halves`
    about : dict
        ``features``; ``sparsity`` (share of zeros, S2's measure), ``l0`` (features active in a
        frame) and ``fvu`` (share of variance that is lost).
    """
    kind, last = source.architecture, halves[-1].z
    if kind == "mel":
        made = [half.mel for half in halves]
        return made, {"features": made[0].shape[1]}
    if kind == "latents":
        made = [half.z for half in halves]
        return made, {"features": made[0].shape[1], "sparsity": 0.0, "l0": last.shape[1]}
    if kind == "pca":
        mean = every.mean(0)
        _, axes = np.linalg.eigh(np.cov((every - mean).T))
        made = [_largest((half.z - mean) @ axes, int(source.setting)) for half in halves]
        said = made[-1] @ axes.T + mean
    else:
        one = sae_of(source, every, plan)
        made = [features(one, half.z) for half in halves]
        with torch.no_grad():
            said = one.decode(torch.as_tensor(made[-1]).float()).numpy()
    zero = float((made[-1] == 0).mean())
    lost = float(((said - last) ** 2).sum() / ((last - last.mean(0)) ** 2).sum())
    n = made[-1].shape[1]
    return made, {"features": n, "sparsity": zero, "l0": n * (1 - zero), "fvu": lost}


def _largest(x: np.ndarray, k: int) -> np.ndarray:
    """All but the k largest of each row made 0."""
    if k >= x.shape[1]:
        return x
    bar = -np.partition(-np.abs(x), k - 1, axis=1)[:, k - 1 : k]
    return np.where(np.abs(x) >= bar, x, 0)


# -- a space ---------------------------------------------------------------------------------------


class Space(NamedTuple):
    """A latent space, with all the frames that are looked at.

    Attributes
    ----------
    name : str
    every : ndarray of shape (N, d)
        All latents of the training music, for the SAEs.
    frames : dict of str to Frames
        ``"mix train"``, ``"mix test"``, ``"alone train"``, ``"alone test"``, ``"flute train"``,
        ``"flute test"``, ``"cello test"``, ``"unheard test"``.
    """

    name: str
    every: np.ndarray
    frames: dict[str, Frames]


def music_of(plan: Plan, part: str, first: int, n: int) -> list[music.Clip]:
    """Clips ``first`` to ``first + n`` of a part of the music; see `Space.frames`."""
    kind, split = part.split()
    start = SPLIT_SEEDS[split] + plan.seed + first
    if kind == "mix":
        return music.make_many(n, plan.seed + first, plan.seconds, split)
    if kind in ("flute", "cello"):
        start += 5_000 if kind == "flute" else 6_000
    fields = {"flute": {"program": FLUTE}, "cello": {"program": CELLO}}.get(kind, {})
    return [
        melody_alone(start + i, kind == "unheard", seconds=plan.seconds, **fields) for i in range(n)
    ]


def parts_of(plan: Plan) -> dict[str, int]:
    """Compositions in each part of the music."""
    halves = {f"{kind} {half}": getattr(plan, half)
              for kind in ("mix", "alone") for half in ("train", "test")}  # fmt: skip
    others = ("flute train", "flute test", "cello test", "unheard test")
    return halves | dict.fromkeys(others, plan.others)


def look(models: dict[str, latents.LatentModel], plan: Plan, progress=tqdm) -> dict[str, Space]:
    """All spaces look at the same music, in one pass over it."""
    from sklearn.cluster import MiniBatchKMeans

    frames: dict[str, dict[str, list]] = {name: {} for name in models}
    every: dict[str, list] = {name: [] for name in models}
    todo = [(part, i, min(8, n - i)) for part, n in parts_of(plan).items() for i in range(0, n, 8)]
    for part, first, n in progress(todo):
        clips = music_of(plan, part, first, n)
        rates = {model.frame_rate for model in models.values()}
        drawn = {rate: draw(clips, rate, plan.per_clip, seed=first) for rate in rates}
        for name, model in models.items():
            some, places = drawn[model.frame_rate]
            z = model.encode(clips)
            rows = z[np.arange(len(z))[:, None], places].reshape(-1, model.width)
            frames[name].setdefault(part, []).append(some._replace(z=rows))
            if part in ("mix train", "alone train"):
                every[name].append(z.reshape(-1, model.width))
    spaces = {}
    for name in models:
        latent = np.concatenate(every[name]).astype(np.float32)
        learn = latent[:: max(1, len(latent) // 20_000)]
        cells = MiniBatchKMeans(
            min(plan.cells, len(learn) // 4), n_init=1, random_state=0, batch_size=2048
        ).fit(learn)
        parts = {part: joined(some) for part, some in frames[name].items()}
        spaces[name] = Space(
            name, latent, {k: v._replace(cell=cells.predict(v.z)) for k, v in parts.items()}
        )
    return spaces


def keep(space: Space, path: Path) -> None:
    """Write a space to an .npz file."""
    arrays = {f"{part}/{field}": getattr(some, field) for part, some in space.frames.items()
              for field in ("z", "mel", "clip", "cell")}  # fmt: skip
    arrays |= {f"{part}/answers/{name}": x for part, some in space.frames.items()
               for name, x in some.answers.items()}  # fmt: skip
    with path.open("wb") as file:
        np.savez(file, every=space.every, **arrays)


def kept_space(name: str, path: Path) -> Space:
    """Read what `keep` wrote."""
    with np.load(path) as arrays:
        held = dict(arrays)
    frames = {}
    for part in dict.fromkeys(key.split("/")[0] for key in held if "/" in key):
        start = f"{part}/answers/"
        answers = {k.removeprefix(start): x for k, x in held.items() if k.startswith(start)}
        z, mel, clip, cell = (held[f"{part}/{field}"] for field in ("z", "mel", "clip", "cell"))
        frames[part] = Frames(z, mel, answers, clip, cell)
    return Space(name, held["every"], frames)


def bins_of(space: Space) -> dict[str, np.ndarray]:
    """Edges of loudness, LUFS and timbre, from the training halves of both kinds of music."""
    made = {}
    for name in BINNED:
        both = np.concatenate([space.frames[f"{k} train"].answers[name] for k in ("mix", "alone")])
        made[name] = attributes.edges(both)
        made[f"{name} equal count"] = attributes.edges(both, "count")
    made |= {f"{name} whole range": attributes.whole(name) for name in attributes.RANGES}
    return made


def measure(space: Space, source: Source, plan: Plan) -> list[dict[str, Any]]:
    """Probe one source of one space for every question.

    Returns
    -------
    list of dict
        Rows of `scored`, with ``space``, ``music`` ("mix" or "alone") and what the source is.
    """
    bins, rows = bins_of(space), []
    parts = ("mix train", "alone train", "alone test", "mix test")
    made, about = described(source, space.every, [space.frames[p] for p in parts], plan)
    x = dict(zip(parts, made, strict=True))
    for kind, names in ASKED.items():
        train, test = (space.frames[f"{kind} {half}"] for half in ("train", "test"))
        halves = [x[f"{kind} {half}"] for half in ("train", "test")]
        names = [name for name in names if ATTRIBUTES[name].level == "frame"]
        asked = questions(train, test, [*names, *SECOND], bins, (train.cell, test.cell))
        found = fit(*halves, asked, train.clip, plan.epochs)
        rows += [{"music": kind, **row} for row in scored(asked, found, test.clip)]
        if kind == "mix":
            rows += [{"music": kind, **row}
                     for row in of_clips(train, test, halves, plan)]  # fmt: skip
    base = {"space": space.name, **source._asdict(), **about}
    return [base | row for row in rows]


def of_clips(
    train: Frames, test: Frames, halves: Sequence[np.ndarray], plan: Plan
) -> list[dict[str, Any]]:
    """Questions about whole clips, from the mean and the deviation of each feature over a clip."""
    names = [name for name in ASKED["mix"] if ATTRIBUTES[name].level == "clip"]
    first = [np.unique(half.clip, return_index=True)[1] for half in (train, test)]
    whole = [
        Frames(h.z[i], h.mel[i], {k: v[i] for k, v in h.answers.items()}, h.clip[i])
        for h, i in zip((train, test), first, strict=True)
    ]
    pooled = [
        np.stack([probes.pool(x[h.clip == c]) for c in np.unique(h.clip)])
        for h, x in zip((train, test), halves, strict=True)
    ]
    tokens = [h.cell[h.clip == c] for h in (train, test) for c in np.unique(h.clip)]
    kinds = np.split(probes.clip_types(tokens), [len(pooled[0])])
    asked = questions(*whole, names, {}, tuple(kinds))
    found = fit(*pooled, asked, whole[0].clip, 6 * plan.epochs, batch=64)
    return scored(asked, found, whole[1].clip)


def few(space: Space, source: Source, plan: Plan) -> list[dict[str, Any]]:
    """Pitch of melodies alone from ever fewer features: the half with the least weight goes.

    Recursive elimination (Guyon et al., 2002), on the training half; as many probes as halvings.
    """
    train, test = (space.frames[f"alone {half}"] for half in ("train", "test"))
    (x, y), _ = described(source, space.every, [train, test], plan)
    asked = {"pitch": questions(train, test, ["pitch"], {})["pitch"]}
    keep, rows = np.arange(x.shape[1]), []
    while True:
        found = fit(x[:, keep], y[:, keep], asked, train.clip, plan.epochs)
        (row,) = scored(asked, found, test.clip)
        rows.append({"space": space.name, **source._asdict(), "kept": len(keep), **row})
        if len(keep) == 1:
            return rows
        used = np.linalg.norm(found["pitch"].weights, axis=1)
        keep = np.sort(
            keep[np.argsort(-used, kind="stable")[: 1 << (len(keep) - 1).bit_length() - 1]]
        )


def others(space: Space, source: Source, plan: Plan) -> list[dict[str, Any]]:
    """Pitch across instruments: where the probe was found, and where it was asked."""
    names = ("alone train", "flute train", "alone test", "unheard test", "flute test", "cello test")
    parts = {name: space.frames[name] for name in names}
    made, _ = described(source, space.every, list(parts.values()), plan)
    x, rows = dict(zip(names, made, strict=True)), []
    for found_on, tests in (("alone train", names[2:]), ("flute train", names[4:])):
        together = joined([parts[test] for test in tests])
        asked = questions(parts[found_on], together, ["pitch"], {})
        found = fit(
            x[found_on], np.concatenate([x[t] for t in tests]), asked, parts[found_on].clip,
            plan.epochs,
        )  # fmt: skip
        start = 0
        for test in tests:
            own = slice(start, start := start + len(x[test]))
            row, = scored(
                {k: q._replace(test=q.test[own]) for k, q in asked.items()},
                {k: a._replace(said=a.said[own]) for k, a in found.items()}, parts[test].clip,
            )  # fmt: skip
            rows.append({
                "space": space.name, **source._asdict(), "found": found_on.split()[0],
                "asked": test.split()[0], **row,
            })  # fmt: skip
    return rows


def trackers(plan: Plan, n: int = 20, seconds: float = 5.0) -> list[dict[str, Any]]:
    """How far the truth, our tracker and CREPE agree about pitch, within half a semitone."""
    rows = []
    for kind in ("alone", "mix"):
        tracks: dict[str, list] = {name: [] for name in ("truth", "measured", "CREPE")}
        for i in range(n):
            number = SPLIT_SEEDS["test"] + plan.seed + i
            clip = (
                melody_alone(number, seconds=seconds) if kind == "alone"
                else music.make(seed=number, seconds=seconds)
            )  # fmt: skip
            melody = clip.truth.frames["melody"].astype(float)
            pitch, sure = attributes.crepe(clip.audio)
            tracks["truth"].append(np.where(melody < 0, np.nan, melody))
            tracks["measured"].append(attributes.measured(clip.audio)["pitch"])
            tracks["CREPE"].append(np.where(sure < 0.5, np.nan, pitch))
        for a, b in (("truth", "CREPE"), ("truth", "measured"), ("CREPE", "measured")):
            share, octaves_aside = (
                attributes.agreement(tracks[a], tracks[b], chroma=c) for c in (False, True)
            )
            rows.append({
                "music": kind, "a": a, "b": b, **share._asdict(), "chroma": octaves_aside.value,
            })  # fmt: skip
    return rows


# -- the table -------------------------------------------------------------------------------------


def best(table: pd.DataFrame, space: str, attribute: str, kind: str = "mix") -> pd.Series:
    """The SAE of a space that does best at a question, by the inner fifth of the training half.

    Parameters
    ----------
    table : DataFrame
        ``load()["rows"]``.
    space, attribute : str
    kind : {"mix", "alone"}

    Raises
    ------
    ValueError
        There is no such row.
    """
    rows = table[(table["space"] == space) & (table["attribute"] == attribute)]
    rows = rows[(rows["music"] == kind) & rows["architecture"].isin(SAES)]
    if rows.empty:
        raise ValueError(f"The table has no SAE of {space!r} that was asked for {attribute!r}.")
    return rows.loc[rows["inner"].idxmax()]


def compute(
    folder: str | Path = "runs/latents/spaces", plan: Plan | None = None,
    names: Sequence[str] = SPACES, smoke: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure everything; what `main` keeps. Stopped, it goes on with the next source."""
    plan = plan or Plan()
    models = {name: latents.load(name) for name in names}
    begun, names = time.time(), list(names)
    kept: dict[str, list] = {"rows": [], "few": [], "others": [], "trackers": []}
    with runs.Run(Path(folder) / "trackers", dataclasses.asdict(plan), plan.seed) as run:
        if not run.has("trackers.json"):
            n, seconds = (3, 5.0) if smoke else (20, 5.0)
            run.save("trackers.json", lambda p: runs.save_json(p, trackers(plan, n, seconds)))
        kept["trackers"] = runs.load_json(run.path("trackers.json"))

    def opened(name):
        marks = {name: models[name].fingerprint}
        return runs.Run(Path(folder) / name, dataclasses.asdict(plan), plan.seed, marks)

    missing = []
    for name in names:
        with opened(name) as run:
            missing += [] if run.has("frames.npz") else [name]
    if missing:  # one pass over the music for all of them
        for name, space in look({name: models[name] for name in missing}, plan).items():
            with opened(name) as run:
                run.save("frames.npz", functools.partial(keep, space))
    for name, model in models.items():
        with opened(name) as run:
            space = functools.cache(
                lambda run=run, name=name: kept_space(name, run.path("frames.npz"))
            )

            def step(file, work, run=run, space=space):
                if not run.has(file):
                    began, made = time.time(), work(space())
                    run.log(step=file, seconds=time.time() - began)
                    run.save(file, lambda p: runs.save_json(p, made))
                return runs.load_json(run.path(file))

            rows = []
            for source in tqdm(sources(model.width, smoke), desc=name):
                rows += step(f"{source}.json", lambda s, source=source: measure(s, source, plan))
            kept["rows"] += rows
            pick = best(pd.DataFrame(rows), name, "pitch", "alone")
            chosen = Source(pick["architecture"], pick["expansion"], pick["setting"])
            for one in (chosen, Source("latents"), Source("mel")):
                kept["few"] += step(f"few-{one}.json", lambda s, one=one: few(s, one, plan))
                kept["others"] += step(
                    f"others-{one}.json", lambda s, one=one: others(s, one, plan)
                )
    kept["provenance"] = {
        "plan": dataclasses.asdict(plan),
        "fingerprints": {name: model.fingerprint for name, model in models.items()},
        "rates": {name: model.frame_rate for name, model in models.items()},
        "versions": runs.versions(), "seconds": round(time.time() - begun),
    }  # fmt: skip
    return kept


def load(path: str | Path = TABLE) -> dict[str, Any]:
    """The kept table: DataFrames ``rows``, ``few``, ``others``, ``trackers``; ``provenance``."""
    kept = runs.load_json(path)
    return {k: v if k == "provenance" else pd.DataFrame(v) for k, v in kept.items()}


def figures(kept: dict[str, Any]) -> dict[str, Interval]:
    """Figures for the scoreboard.

    ``latents.SPACE.ATTRIBUTE``: accuracy of the SAE chosen on the training half, of full pieces;
    ``…_alone``: of melodies alone; ``…_selectivity``; ``…_mel``: mel bands; ``…_latents``: the
    latents themselves. ``latents.SPACE.pitch_cello``: found on flutes, asked of cellos;
    ``…pitch_unheard``: of programs never heard in training.
    """
    table, found = kept["rows"], {}
    of = lambda row, what="score", ends=("low", "high"): Interval(  # noqa: E731
        row[what], row[ends[0]], row[ends[1]], int(row["n"])
    )
    for (space, kind, attribute), rows in table.groupby(
        ["space", "music", "attribute"], sort=False
    ):
        name = f"latents.{space.removeprefix('nano-')}.{attribute.replace(' ', '_')}"
        name += "_alone" if kind == "alone" else ""
        pick = best(table, space, attribute, kind)
        found[name] = of(pick)
        ends = ("selectivity_low", "selectivity_high")
        if np.isfinite(pick["selectivity"]):
            found[f"{name}_selectivity"] = of(pick, "selectivity", ends)
        for rival in ("mel", "latents"):
            found[f"{name}_{rival}"] = of(rows[rows["architecture"] == rival].iloc[0])
    moved = kept["others"][kept["others"]["architecture"].isin(SAES)]
    for row in moved.to_dict("records"):
        if (row["found"], row["asked"]) in (("flute", "cello"), ("alone", "unheard")):
            found[f"latents.{row['space'].removeprefix('nano-')}.pitch_{row['asked']}"] = of(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What latent spaces make linearly available.")
    parser.add_argument("--folder", default="runs/latents/spaces")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    runs.save_json(TABLE, compute(folder))
    print(f"{TABLE} is written.")


if __name__ == "__main__":
    main()
