"""Train the tagger and the audio-text model (``make ears``). Resumable: kill it, start it again.

Both learn from composed training music and from the nano codec's copies of some of it, since all
that the nano model generates has passed its codec. The tagger learns from shards of even number,
the audio-text model from those of odd number, and both are examined on the test split, which
neither heard.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional as F
from tqdm.auto import tqdm

from musae_utils import models, stats
from musae_utils.labels import ears
from musae_utils.labels.clap import candidate_texts
from musae_utils.labels.contrast import shares
from musae_utils.labels.examples import Example
from musae_utils.labels.words import CONCEPTS, GROUPS, concepts_in, phrase
from musae_utils.models.nano import load_part
from musae_utils.models.nano_data import SECONDS, SHARD, training_audio
from musae_utils.models.quality import copies
from musae_utils.models.train_lm import code_shard
from musae_utils.models.training import fit, optimisers
from musae_utils.music import FRAME_RATE, SAMPLE_RATE, Spec, caption, compose, concepts, make_many
from musae_utils.music.captions import PROGRAM_WORDS
from musae_utils.music.clip import MODES, PITCH_NAMES, Truth
from musae_utils.music.render import truth_of
from musae_utils.runs import atomic_path, atomic_write, save_json

COPIED = 25  # clips of each shard that are heard through the codec, too
AS_COPY = 0.5  # of the crops that can be
#: Rows and seconds of the steps, in turn.
SHAPES = ((48, 2.0), (28, 4.8), (16, 9.6), (28, 4.8), (40, 3.2), (8, 20.0))
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 2e-3, 100
STEPS, SAVE_EVERY = {"tagger": 2000, "clap": 1500}, 250
MASKED = 8  # mel bands that are hidden in each crop, so that none alone decides


def small(levels: torch.Tensor) -> np.ndarray:
    """Levels of `ears.Front` as bytes."""
    return (levels * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def heard_shard(folder: Path, part: str, index: int, audio: np.ndarray, codec) -> dict:
    """What a model's front end hears in a shard, and the truth at its rate; made once, and kept.

    ``pitch`` and ``mel`` hold the shard's clips, then the first of them through the codec;
    ``frame`` (clips, T, concepts) the share of each frame in which a concept holds, and ``clip``
    (clips, concepts), all as bytes.
    """
    path = folder / f"{part}-{index:04d}.npz"
    if not path.exists():
        front = ears.Front({"tagger": ears.TAGGER, "clap": ears.CLAP}[part])
        sounds = torch.from_numpy(audio.astype(np.float32) / 32768)
        codes = torch.from_numpy(code_shard(folder, index, codec)[:COPIED].astype(np.int64))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            again = [codec.decode(c, None)[:, 0].float() for c in codes.split(5)]
        found = [front(batch) for batch in (*sounds.split(10), *again)]
        pitch, mel = (np.concatenate([small(x) for x in side]) for side in zip(*found, strict=True))
        frame, clip = [], []
        for i in range(SHARD):
            truth = truth_of(compose(Spec(seconds=SECONDS), index * SHARD + i), sounds[i].numpy())
            tracks = concepts.frame_concepts(truth)
            tracks = np.stack([tracks[name] for name in ears.FRAME_CONCEPTS], 1).astype(np.float32)
            frame.append(np.round(255 * coarser(tracks, front.hop)).astype(np.uint8))
            holds = concepts.clip_concepts(truth)
            clip.append([holds[n] for g in ("tonic", "mode") for n in GROUPS[g]]
                        + [holds[n] for n in ears.CLIP_CONCEPTS])  # fmt: skip
        with atomic_path(path) as partial, open(partial, "wb") as f:
            np.savez(f, pitch=pitch, mel=mel, frame=np.stack(frame), clip=np.array(clip, np.uint8))
    with np.load(path) as kept:
        return dict(kept)


def coarser(tracks: np.ndarray, hop: int) -> np.ndarray:
    """Truth frames (n, concepts) averaged into frames of `hop` samples."""
    per = hop * FRAME_RATE // SAMPLE_RATE
    n = -(-len(tracks) // per)
    padded = np.pad(tracks, ((0, n * per - len(tracks)), (0, 0)), "edge")
    return padded.reshape(n, per, -1).mean(1)


class Crops:
    """Crops of what was heard, drawn by step number alone."""

    def __init__(self, folder: Path, part: str, indices: Sequence[int], audio, codec):
        listened = tqdm(indices, desc=f"hearing for the {part}", unit="shard")
        self.shards = [heard_shard(folder, part, i, audio[i], codec) for i in listened]

    def batch(self, rng: np.random.Generator, rows: int, frames: int):
        """Levels and truth of `rows` crops, and which clips they are: (shard, row, first frame)."""
        pitch, mel, frame, clip, where = [], [], [], [], []
        for _ in range(rows):
            shard, row = int(rng.integers(len(self.shards))), int(rng.integers(SHARD))
            known = self.shards[shard]
            start = int(rng.integers(known["pitch"].shape[1] - frames + 1))
            copied = rng.random() < AS_COPY
            row = row % COPIED if copied else row
            at = SHARD + row if copied else row
            pitch.append(known["pitch"][at, start : start + frames])
            mel.append(known["mel"][at, 4 * start : 4 * (start + frames)])
            band = int(rng.integers(mel[-1].shape[1] - MASKED))
            mel[-1] = mel[-1].copy()
            mel[-1][:, band : band + MASKED] = int(mel[-1].mean())
            frame.append(known["frame"][row, start : start + frames])
            clip.append(known["clip"][row])
            where.append((shard, row, start))
        levels = (torch.from_numpy(np.stack(x)).float() / 255 for x in (pitch, mel, frame))
        return *levels, torch.from_numpy(np.stack(clip)).long(), where


def tagger_losses(net, pitch, mel, frame, clip) -> torch.Tensor:
    """Mean loss of each group: cross-entropy of the key and of clips' groups, then of frames'."""
    with torch.autocast("cpu", torch.bfloat16):
        key, of_clip, by_frame = net(pitch, mel)
    tonic, mode = clip[:, :12].argmax(1), clip[:, 12:14].argmax(1)
    losses = [F.cross_entropy(key, 2 * tonic + mode), *clip_losses(of_clip, clip)]
    each = F.binary_cross_entropy_with_logits(by_frame, frame, reduction="none").mean((0, 1))
    at = 0
    for name in (*ears.TURNED, "chord degree", *ears.FRAME_GROUPS):
        losses.append(each[at : at + len(GROUPS[name])].mean())
        at += len(GROUPS[name])
    return torch.stack(losses)


def clip_losses(of_clip: torch.Tensor, clip: torch.Tensor) -> list[torch.Tensor]:
    """Cross-entropy of each of `ears.CLIP_GROUPS`."""
    losses, at = [], 0
    for name in ears.CLIP_GROUPS:
        end = at + len(GROUPS[name])
        right = clip[:, 14 + at : 14 + end].argmax(1)
        losses.append(F.cross_entropy(of_clip[:, at:end].float(), right))
        at = end
    return losses


# -- the audio-text model --------------------------------------------------------------------------

PROGRAMS = tuple(PROGRAM_WORDS)
#: What a text may ask of a crop: concepts, then programs.
_NAMES = (*ears.TAGGED, *PROGRAMS)
COLUMNS = {name: i for i, name in enumerate(_NAMES)}


def columns_of(text: str) -> list[int]:
    """What a text asks: its concepts, or the program of which it is the name."""
    named = [COLUMNS[p] for p in PROGRAMS if PROGRAM_WORDS[p] == text]
    return named or [COLUMNS[name] for name in concepts_in(text) if name in COLUMNS]


def fits(holds: torch.Tensor, asked: Sequence[Sequence[int]], named: int) -> torch.Tensor:
    """How far texts are true of crops: (texts, rows) from shares (rows, columns).

    A text is as true as the least true thing that it asks; but for the first ones, `named`, which
    are names of programs: any of theirs will do.
    """
    rows = [holds[:, i].amax(1) if t < named else holds[:, i].amin(1) for t, i in enumerate(asked)]
    return torch.stack(rows)


def turn(holds: np.ndarray, by: int) -> np.ndarray:
    """Shares (columns,) of a crop transposed by some semitones."""
    holds = holds.copy()
    for kind in ("tonic", *ears.TURNED):
        at = COLUMNS[GROUPS[kind][0]]
        holds[at : at + 12] = np.roll(holds[at : at + 12], by)
    return holds


def weights_of(asked: Sequence[Sequence[int]]) -> torch.Tensor:
    """What each text counts: as much in all for each kind of thing that is asked."""
    kinds = [tuple(concepts.group(str(_NAMES[i])) for i in columns) for columns in asked]
    kinds = ["program" if kind[0].isdigit() else kind for kind in kinds]
    weights = torch.tensor([1 / kinds.count(kind) for kind in kinds])
    return weights / weights.sum()


def clap_loss(net, sounds, texts, true: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropies with as many right answers as there are.

    The first texts are phrases, of which each counts by its weight; the others captions. A text is
    shared out among the sounds by how far it is true of each; a sound among the captions that are
    wholly true of it. Without that, a caption that is true of a neighbour in the batch, too, would
    be taught to be false of it.
    """
    logits = net.heat.clamp(max=4.6).exp() * texts @ sounds.T
    share = true / true.sum(1, keepdim=True).clamp(min=1e-9)
    # Less what no answer could avoid, so that 0 is perfect.
    least = -(share * share.clamp(min=1e-9).log()).sum(1)
    apart = -(share * logits.log_softmax(1)).sum(1) - least
    apart = apart * (true.amax(1) > 0.05)  # what is true of none tells nothing
    phrases = len(weights)
    to_sounds = (apart[:phrases] * weights).sum() + apart[phrases:].mean()
    told = (true[phrases:] > 0.99).float().T
    told = told / told.sum(1, keepdim=True)
    least = -(told * told.clamp(min=1e-9).log()).sum(1)
    to_texts = (-(told * logits[phrases:].T.log_softmax(1)).sum(1) - least).mean()
    return torch.stack([to_sounds, to_texts])


# -- training and examination ----------------------------------------------------------------------


def train(part: str, folder: Path, out: Path, steps: int, shards: int, seed: int) -> None:
    codec = load_part(out, "codec")
    audio = training_audio(folder, shards)
    indices = range(0 if part == "tagger" else 1, shards, 2)
    crops = Crops(folder, part, indices, audio, codec)
    config = {"tagger": ears.TAGGER, "clap": ears.CLAP}[part]
    rate = SAMPLE_RATE / config["pitch_hop"]
    torch.manual_seed(seed)
    net = {"tagger": ears.TaggerNet, "clap": ears.ClapNet}[part](config).train()
    learner = net
    if part == "tagger":
        even_odds(net, crops)
    else:
        # What a sound is compared with in a batch is few: questions put to the ear itself teach it
        # instruments sooner. They are not part of the model.
        questions = torch.nn.Linear(net.ear.summary, len(ears.CLIP_CONCEPTS))
        learner = torch.nn.ModuleList([net, questions])
        told = [[truth_of(compose(Spec(seconds=SECONDS), i * SHARD + row), np.zeros(1)).clip
                 for row in range(SHARD)] for i in indices]  # fmt: skip
        pool = sorted(candidate_texts(), key=lambda text: text not in PROGRAM_WORDS.values())
        asked_of_pool = [columns_of(text) for text in pool]
        named, weights = len(set(PROGRAM_WORDS.values())), weights_of(asked_of_pool)

    def losses(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([seed, step])
        rows, seconds = SHAPES[step % len(SHAPES)]
        pitch, mel, frame, clip, where = crops.batch(rng, rows, round(seconds * rate))
        if part == "tagger":
            each = tagger_losses(net, pitch, mel, frame, clip)
            return each.mean(), each
        by = rng.integers(12, size=rows) - 5
        texts, holds = list(pool), []
        for i, (shard, row, _) in enumerate(where):
            about = told[shard][row]
            tonic = (about["tonic"] + int(by[i])) % 12
            key = f"{PITCH_NAMES[tonic]} {MODES[about['mode']]}"
            texts.append(caption(Truth({}, about | {"key": key}), rng, rng.uniform(0.2, 0.9)))
            known = np.r_[clip[i].numpy(), frame[i].mean(0).numpy()].astype(np.float32)
            plays = np.float32([about["program"] == p for p in PROGRAMS])
            holds.append(turn(np.r_[known, plays], int(by[i])))
            pitch[i] = pitch[i].roll(int(by[i]) * config["steps"], -1)
        # "music" says nothing, and is true of all.
        asked = [*asked_of_pool, *([*columns_of(text)] for text in texts[len(pool) :])]
        holds = torch.from_numpy(np.stack(holds))
        true = fits(torch.cat([holds, torch.ones(rows, 1)], 1),
                    [columns or [len(COLUMNS)] for columns in asked], named)  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            notes, _, summary = net.ear(pitch, mel)
            sounds, embedded = net.place(notes, summary), net.texts(texts)
            answers = questions(summary)
        answered = torch.stack(clip_losses(answers, clip)).mean(0, keepdim=True)
        each = torch.cat([clap_loss(net, sounds, embedded, true, weights), answered])
        return each.sum(), each

    matrices = [p for name, p in net.named_parameters() if p.ndim == 2 and "words" not in name]
    movers = optimisers(matrices, learner, MUON_RATE, ADAM_RATE)
    learnt = fit(part, learner, movers, losses, steps, folder / f"{part}.pt", WARMUP, SAVE_EVERY)
    recipe = {"steps": steps, "shapes": SHAPES, "muon_rate": MUON_RATE, "adam_rate": ADAM_RATE,
              "seed": seed, "clips": len(indices) * SHARD, **learnt}  # fmt: skip
    state = {k: v.detach().half().contiguous() for k, v in net.state_dict().items()}
    atomic_write(out / f"{part}.safetensors", save(state))
    report = {"architecture": config, "concepts": CONCEPTS, "recipe": recipe, "held_out": {}}
    save_json(out / f"{part}.json", report)
    heard = {"tagger": ears.nano_tagger, "clap": ears.nano_clap}[part](out)
    save_json(out / f"{part}.json", report | {"held_out": examine(heard, codec)})


def even_odds(net: ears.TaggerNet, crops: Crops) -> None:
    """Begin with each concept as likely as it is, so that rare ones are learnt from the start."""
    share = np.mean([shard["frame"].mean((0, 1)) / 255 for shard in crops.shards], 0)
    odds = torch.from_numpy(np.log((share + 1e-3) / (1 - share + 1e-3))).float()
    turned = 12 * len(ears.TURNED)
    with torch.no_grad():
        net.turned.bias.copy_(odds[:turned].view(-1, 12).mean(1))
        net.frame[-1].bias.copy_(odds[turned + len(GROUPS["chord degree"]) :])


CLIPS, HEARD_FROM = 200, 500_000  # of the test split: pieces that no chapter listens to


def examine(heard: ears.NanoTagger | ears.NanoCLAP, codec) -> dict:
    """How well a model hears what it never heard: originals, codec copies, 2 s of originals."""
    clips = make_many(CLIPS, HEARD_FROM, 10.0, "test")
    audio = np.stack([clip.audio for clip in clips])
    with torch.no_grad():
        again = copies(codec, audio)[0]
    report = {"clips": CLIPS, "split": "test", "seed": HEARD_FROM}
    for name, sounds, end in (("10 s", audio, 10.0), ("codec copies", again, 10.0),
                              ("2 s", audio, 6.0)):  # fmt: skip
        start = 0.0 if end == 10.0 else 4.0
        cut = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        examples = [
            Example(i, c.name, c.name, start, end, 0.0, sound[cut], SAMPLE_RATE, c.truth)
            for i, (c, sound) in enumerate(zip(clips, sounds, strict=True))
        ]
        truth = [shares(example) for example in examples]
        truth = np.array([[held[concept] for concept in ears.TAGGED] for held in truth])
        if isinstance(heard, ears.NanoTagger):
            values = heard.probabilities(examples)
        else:
            embedded = heard.embed_texts([phrase(concept) for concept in ears.TAGGED])
            values = heard.embed_sounds(examples) @ embedded.T
            report[f"retrieval, {name}"] = retrieval(heard, examples)
        asked = [kind for kind, of in GROUPS.items() if of[0] in ears.TAGGED]
        report[name] = {kind: marks(kind, values, truth) for kind in asked}
    return report


def marks(kind: str, values: np.ndarray, truth: np.ndarray) -> dict:
    """How well a group's concepts are heard: mean AUC, and accuracy where one of them holds.

    A concept of frames counts as present where it holds in more of a sound than on average. The
    mean AUC lies within ``plus_minus`` with 95 % confidence, over compositions.
    """
    at = [ears.TAGGED.index(concept) for concept in GROUPS[kind]]
    values, truth = values[:, at], truth[:, at]
    there = truth > truth.mean(0)
    known = there.any(0) & ~there.all(0)
    auc, influence = stats.grouped_auc(values[:, known], there[:, known], np.arange(len(values)))
    error = np.sqrt((influence.mean(1) ** 2).sum())
    found = {"auc": auc.mean(), "plus_minus": 1.96 * error, "least_auc": auc.min()}
    if (truth.max(1) == 1).all() and (truth.sum(1) == 1).all():
        found["accuracy"] = (values.argmax(1) == truth.argmax(1)).mean()
        found["chance"] = there.mean(0).max()
    return {name: round(float(value), 3) for name, value in found.items()}


def retrieval(heard: ears.NanoCLAP, examples: Sequence[Example]) -> dict:
    """Rank of the right sound for a full caption, 1 being the first; and among the first ten."""
    rng = np.random.default_rng(0)
    texts = heard.embed_texts([caption(example.truth, rng, keep=1.0) for example in examples])
    cosines = texts @ heard.embed_sounds(examples).T
    rank = 1 + (cosines > np.diag(cosines)[:, None]).sum(1)
    n, first = len(examples), round(float((rank <= 10).mean()), 3)
    return {"median_rank": float(np.median(rank)), "median_by_chance": (n + 1) / 2,
            "in_first_ten": first, "in_first_ten_by_chance": 10 / n}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/ears"), help="what it keeps")
    parser.add_argument("--out", type=Path, default=models.NANO_FOLDER)
    parser.add_argument("--shards", type=int, default=60, help="of 100 clips of 30 s")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--only", choices=("tagger", "clap"))
    given = parser.parse_args()
    for seed, name in enumerate(("tagger", "clap")):
        if given.only in (None, name):
            train(name, given.folder, given.out, given.steps or STEPS[name], given.shards, seed)
