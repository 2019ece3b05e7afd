"""Steering at scale: features chosen in two ways, and every rival (notebook 11).

1. `shortlist`: for each concept the feature that follows it best (chosen by **activation**), and of
   each layer the one that pulls the next codes most towards it.
2. `screen`: what is on the list is played for a few seconds, without a prompt, and marked by the
   tagger. The best of each concept, and of these the clearest, are chosen by **output effect**.
3. `play`: the chosen, and all rivals, on prompts and seeds that chose nothing, judged by a model
   that named nothing. The first of the seeds of each prompt are the units of all tests.

``make steering`` does all of it and, stopped at any time, goes on where it was. What it measures is
kept in ``data/steering.json``, row by row.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from musae_utils import models, music, runs, stats, trace
from musae_utils.activations import ActivationStore, harvest
from musae_utils.features import FeatureAtlas
from musae_utils.labels.clap import AudioTextModel
from musae_utils.labels.taggers import Tagger
from musae_utils.labels.words import CONCEPTS, phrase
from musae_utils.models import MusicModel
from musae_utils.music.concepts import clip_concepts, frame_concepts, group
from musae_utils.sae import SAE, shipped
from musae_utils.stats import Interval
from musae_utils.steering import outcome
from musae_utils.steering.choose import evidence, pulls
from musae_utils.steering.knobs import Knob, Patch
from musae_utils.steering.rivals import controls
from musae_utils.steering.sweeps import sweep

TABLE = Path(__file__).resolve().parents[2] / "data" / "steering.json"
#: Concepts that a few seconds cannot have, and single pitches, of which there are too many.
UNASKED = ("form", "section", "motif", "beat", "melody pitch", "sounding pitch")
ASKED = tuple(name for name in CONCEPTS if group(name) not in UNASKED)
#: Of all scoring; a prompt may well contradict what a feature is to bring about.
PROMPTS = ("music", "a melody on a piano", "a tune played by a flute, slow",
           "a piece for guitar, with drums")  # fmt: skip
NEGATIVE = ("inactive", "cross-layer", "orthogonal")
RIVALS = ("random", "DiffMean", "probe", "PCA", "neuron")
CLIPS, SEED = 128, 60_000  # composed training music that features are found on
RARE, COMMON = 0.002, 0.9  # of a feature's rows; outside it is no candidate


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is played.

    Attributes
    ----------
    features : int
        Chosen in each way.
    most : int
        Of them for concepts that answer the same question.
    strength : float
        Of all knobs and rivals.
    doses : tuple of float
        Other strengths of the features chosen by output effect, on one seed of each prompt.
    finding, scoring : int
        Seeds a candidate is screened on; seeds of each prompt that are units.
    untouched : int
        Seeds of each prompt played without a knob, the units among them.
    screened, seconds : float
        Length of a screened candidate and of all else.
    """

    features: int = 24
    most: int = 3
    strength: float = 0.5
    doses: tuple[float, ...] = (0.25, 1.0, 2.0)
    finding: int = 4
    scoring: int = 2
    untouched: int = 32
    screened: float = 2.5
    seconds: float = 3.0


FINDING = 10_000  # first seed of the screen; scoring begins at 0
HEARD = 0.7  # AUC from which a judge is believed to tell a group of concepts


def heard_by(judge: AudioTextModel, seconds: str = "2 s") -> tuple[str, ...]:
    """Concepts of `ASKED` that a judge of this project tells in held-out music, so short.

    Which groups it is deaf to is known from its training, before anything is steered: what it
    cannot hear, it cannot say was raised. Another judge is believed to hear all.
    """
    known = getattr(judge, "held_out", {}).get(seconds)
    if known is None:
        return ASKED
    return tuple(c for c in ASKED if known.get(group(c), {}).get("auc", 0) >= HEARD)


def shortlist(
    model: MusicModel,
    saes: Sequence[SAE],
    atlases: Sequence[FeatureAtlas],
    store: ActivationStore,
    concepts: Sequence[str] = ASKED,
    clips: int = 8,
) -> pd.DataFrame:
    """Candidates for each concept.

    Parameters
    ----------
    model : MusicModel
    saes, atlases : sequences of SAE, FeatureAtlas
        One a layer, of the store.
    store : ActivationStore
        Of music with known truth, on which nothing will be scored.
    concepts : sequence of str
    clips : int
        Two seconds of so many are read for the pull.

    Returns
    -------
    DataFrame
        ``by`` ("activation" or "output"), ``concept``, ``sae`` (its number), ``feature``, ``score``
        (AUC; or pull of a knob of strength 1, in nats).
    """
    names, weights = evidence(store, concepts, model.cardinality)
    half = round(model.frame_rate)
    codes = [clip.codes[:, half : 3 * half] for clip in store.clips[:clips]]
    pulled = pulls(model, saes, np.stack(codes), weights)
    usable = [(a.density > RARE) & (a.density < COMMON) for a in atlases]
    lines = []
    for i, (atlas, pull, good) in enumerate(zip(atlases, pulled, usable, strict=True)):
        reach = np.where(good[:, None], pull * atlas.peak[:, None], -np.inf)
        best = reach.argmax(0)
        lines += [("output", name, i, int(best[c]), float(reach[best[c], c]))
                  for c, name in enumerate(names)]  # fmt: skip
        for followed in atlas.concepts.values():
            found = np.where(good[:, None], np.nan_to_num(followed.found), 0)
            best = found.argmax(0)
            lines += [("activation", name, i, int(best[c]), float(found[best[c], c]))
                      for c, name in enumerate(followed.names)
                      if name in names and np.isfinite(followed.scored[best[c], c])]  # fmt: skip
    table = pd.DataFrame(lines, columns=["by", "concept", "sae", "feature", "score"])
    follow = table[table["by"] == "activation"].sort_values("score", ascending=False, kind="stable")
    return pd.concat(
        [table[table["by"] == "output"], follow.drop_duplicates("concept")], ignore_index=True
    )


def screen(
    model: MusicModel,
    saes: Sequence[SAE],
    atlases: Sequence[FeatureAtlas],
    candidates: pd.DataFrame,
    tagger: Tagger,
    plan: Plan,
    folder: Path | None = None,
) -> pd.DataFrame:
    """Play candidates for a few seconds and mark them.

    Returns
    -------
    DataFrame
        `candidates` with ``gain`` (mean change of the concept's log-odds over the finding seeds)
        and ``t`` (that in standard errors).
    """
    knobs = [
        Knob(saes[one.sae], one.feature, plan.strength, peak=atlases[one.sae])
        for one in candidates.itertuples()
    ]
    seeds = list(range(FINDING, FINDING + plan.finding))
    rows = [knob for knob in (None, *knobs) for _ in seeds]
    played = sweep(
        model, None, rows, plan.screened, seeds * (1 + len(knobs)), batch=96, folder=folder
    )
    odds = outcome.log_odds(tagger, outcome.examples_of(played))[list(candidates["concept"])]
    odds = odds.to_numpy().reshape(1 + len(knobs), len(seeds), len(knobs))
    each = np.arange(len(knobs))
    gain = odds[1:][each, :, each] - odds[0].T
    error = gain.std(1, ddof=1) / np.sqrt(len(seeds))
    return candidates.assign(gain=gain.mean(1), t=gain.mean(1) / np.maximum(error, 1e-9))


def clearest(candidates: pd.DataFrame, by: str, plan: Plan) -> pd.DataFrame:
    """The candidate with the highest ``by`` of each concept, and of these the highest.

    At most `Plan.most` for concepts that answer one question.
    """
    best = candidates.sort_values(by, ascending=False, kind="stable").drop_duplicates("concept")
    rank = best.groupby(best["concept"].map(group), sort=False).cumcount()
    return best[rank < plan.most].head(plan.features).reset_index(drop=True)


def directions(
    saes: Sequence[SAE],
    atlases: Sequence[FeatureAtlas],
    store: ActivationStore,
    chosen: pd.DataFrame,
    seed: int = 0,
) -> dict[str, list]:
    """Of each rival a direction for each chosen feature, made for its concept; see `controls`.

    With several SAEs also "cross-layer", a feature drawn from another layer's (of those that fire),
    put in at this one. What is drawn depends on the feature, and on no other beside it.
    """
    holds, found = where(store, list(chosen["concept"])), {}
    for i, one in enumerate(chosen.itertuples()):
        drawn = seed + 1000 * one.sae + one.feature
        given = controls(saes[one.sae], one.feature, store, holds[:, i], seed=drawn)
        other = (one.sae + 1) % len(saes)
        if other != one.sae:
            alive = np.flatnonzero(atlases[other].density > RARE)
            far = np.random.default_rng(drawn).choice(alive)
            given["cross-layer"] = saes[other].directions[far].detach()
        for name, direction in given.items():
            found.setdefault(name, []).append(direction)
    return found


def ways(
    saes: Sequence[SAE],
    atlases: Sequence[FeatureAtlas],
    chosen: pd.DataFrame,
    listed: pd.DataFrame,
    plan: Plan,
) -> dict[str, list]:
    """Other knobs for the concepts of chosen features.

    "prompted half": in that half of guidance alone, which multiplies the push; "all layers": the
    candidates of all layers at once, each with its part of the strength; "follows": the feature
    that follows the concept best (None where the music holds it too rarely to say).
    """
    knob = lambda one, part=1.0, **how: Knob(  # noqa: E731
        saes[one.sae], one.feature, plan.strength * part, peak=atlases[one.sae], **how
    )
    of = lambda by: [  # noqa: E731
        list(listed[(listed["by"] == by) & (listed["concept"] == concept)].itertuples())
        for concept in chosen["concept"]
    ]
    return {
        "prompted half": [knob(one, half="cond") for one in chosen.itertuples()],
        "all layers": [[knob(one, 1 / len(part)) for one in part] for part in of("output")],
        "follows": [knob(part[0]) if part else None for part in of("activation")],
    }


def patches(
    model: MusicModel, saes: Sequence[SAE], chosen: pd.DataFrame, store: ActivationStore, plan: Plan
) -> list[Patch]:
    """Activation patching for the concepts of chosen features, at their layers.

    The stream of the piece in which the concept holds most of the time, mixed in at the plan's
    strength: all that the layer holds of it, and not one direction.
    """
    n, turns = model._checked_frames(plan.seconds), []
    for one in chosen.itertuples():
        holds = where(store, [one.concept])[:, 0]
        share = [holds[clip.start : clip.start + n].mean() for clip in store.clips]
        codes = torch.as_tensor(store.clips[int(np.argmax(share))].codes)[None, :, :n].long()
        layer = saes[one.sae].hook_point["layer"]
        stream = trace.residuals(model, codes, [layer])[layer][0]
        turns.append(Patch(layer, stream, plan.strength))
    return turns


def where(store: ActivationStore, concepts: Sequence[str]) -> np.ndarray:
    """In which rows of a store concepts hold, bool (rows, concepts)."""
    parts = []
    for clip in store.clips:
        frames = frame_concepts(clip.truth, clip.n_rows, store.frame_rate)
        whole = clip_concepts(clip.truth)
        parts.append(np.stack(
            [frames[c] if c in frames else np.full(clip.n_rows, whole[c]) for c in concepts], 1
        ))  # fmt: skip
    return np.concatenate(parts)


def in_words(concept: str) -> str:
    """A concept as the nano model's captions say it; they name a key, and never a tonic alone."""
    return f"{phrase(concept)} major" if group(concept) == "tonic" else phrase(concept)


def sayable(model: MusicModel, concept: str) -> bool:
    """Whether a model's prompts have words for a concept; T5, which reads letters, has for all."""
    readers = model.lm.condition_provider.conditioners.values()
    return not any(
        reader.unknown_words(in_words(concept))
        for reader in readers if hasattr(reader, "unknown_words")
    )  # fmt: skip


def play(
    model: MusicModel,
    saes: Sequence[SAE],
    atlases: Sequence[FeatureAtlas],
    chosen: dict[str, pd.DataFrame],
    made: dict[str, list],
    tagger: Tagger,
    judge: AudioTextModel,
    plan: Plan,
    prompts: Sequence[str] = PROMPTS,
    variants: dict[str, list] | None = None,
    folder: Path | None = None,
    progress: Callable = iter,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """All methods on all units: a sweep for each feature, its rivals in the same rows' company.

    Parameters
    ----------
    model, saes, atlases
    chosen : dict
        "output" and, if it is to be compared, "activation": of `clearest`.
    made : dict of name to directions
        Of `directions` for ``chosen["output"]``; those that are to be played.
    tagger, judge
    plan : Plan
    prompts : sequence of str
    variants : dict of name to rows, optional
        Other knobs for each of ``chosen["output"]``, as `sweep` takes them; None is passed over.
    folder : Path, optional
        Where what was played is kept.
    progress : callable
        Wraps the iteration over features.

    Returns
    -------
    table : DataFrame
        Of `outcome.changes`, a line a row: ``method``, ``strength``, ``concept``, ``unit``, …
    embeddings : dict of method to array
        Of its rows at the plan's strength, and of the untouched ones, by the judge.
    """
    concepts = sorted({c for part in chosen.values() for c in part["concept"]})

    def heard(name: str, asked: pd.DataFrame, knobs: list) -> outcome.Heard:
        texts = [f"{prompts[p]}, {words}" if words else prompts[p]
                 for p, words in zip(asked["prompt"], asked["said"], strict=True)]  # fmt: skip
        played = sweep(
            model, texts, knobs, plan.seconds, asked["seed"].tolist(), batch=96,
            folder=folder and folder / name,
        )  # fmt: skip
        return outcome.hear(model, played, tagger, judge, concepts)

    def asked(method: str, strength: float, concept: str = "", said: str = "") -> list[tuple]:
        n = plan.untouched if not concept else 1 if strength in plan.doses else plan.scoring
        seeds = [(p, s) for s in range(n) for p in range(len(prompts))]
        return [(method, strength, concept, f"{p}.{s}", p, s, said) for p, s in seeds]

    def lines(rows: list[tuple]) -> pd.DataFrame:
        names = ["method", "strength", "concept", "unit", "prompt", "seed", "said"]
        return pd.DataFrame(rows, columns=names)

    blank = lines(asked("untouched", 0.0))
    untouched = heard("untouched", blank, [None] * len(blank))
    tables, kept = [], {"untouched": [untouched.embedding]}
    kinds = chosen | ({"variants": chosen["output"]} if variants else {})
    jobs = [
        (name, i, one) for name, part in kinds.items() for i, one in enumerate(part.itertuples())
    ]
    for name, i, one in progress(jobs):
        knob = Knob(saes[one.sae], one.feature, plan.strength, peak=atlases[one.sae])
        todo = [(name, plan.strength, knob, "")]
        if name == "output":
            said = in_words(one.concept)
            todo += [(rival, plan.strength, dataclasses.replace(knob, along=along[i]), "")
                     for rival, along in made.items()]  # fmt: skip
            todo += [("prompt", 0.0, None, said), ("prompt + output", plan.strength, knob, said)]
            todo += [(name, dose, dataclasses.replace(knob, strength=dose), "")
                     for dose in plan.doses]  # fmt: skip
        elif name == "variants":
            todo = [(way, plan.strength, turns[i], "") for way, turns in variants.items()
                    if turns[i] is not None]  # fmt: skip
        rows, turned = [], []
        for method, strength, turn, said in todo:
            rows += asked(method, strength, one.concept, said)
            turned += [turn] * (len(rows) - len(turned))
        rows = lines(rows)
        place = f"{name} {one.concept} {one.sae}-{one.feature}"
        found = heard(place, rows, turned)
        both = outcome.Heard(
            *(pd.concat([a, b], ignore_index=True) if isinstance(a, pd.DataFrame)
              else np.concatenate([a, b]) for a, b in zip(untouched, found, strict=True))
        )  # fmt: skip
        all_rows = pd.concat([blank, rows], ignore_index=True)
        tables.append(outcome.changes(both, all_rows, model.cardinality))
        main = rows["strength"].isin([plan.strength, 0.0])
        for method, which in rows[main].groupby("method", sort=False).groups.items():
            kept.setdefault(method, []).append(found.embedding[which])
    table = pd.concat(tables, ignore_index=True).drop(columns=["prompt", "seed", "said"])
    return table, {method: np.concatenate(parts) for method, parts in kept.items()}


def run(folder: Path, plan: Plan = Plan(), model: MusicModel | None = None) -> dict:
    """The whole experiment in a folder; returns what `TABLE` keeps."""
    from musae_utils.labels.ears import fingerprints, nano_clap, nano_tagger

    began, model = time.monotonic(), model or models.load("nano")
    folder = folder / model.fingerprint  # more features later: what was played is kept
    clips = music.make_many(CLIPS, SEED, 10.0, "train")
    layers = shipped.layers(model)
    store = harvest(model, clips, layers, folder / "store")
    saes = [shipped.pretrained(model, layer) for layer in layers]
    atlases = [FeatureAtlas.of(sae, store) for sae in saes]
    tagger, judge = nano_tagger(), nano_clap()
    listed = shortlist(model, saes, atlases, store, heard_by(judge))
    pulled = listed[listed["by"] == "output"].reset_index(drop=True)
    which = zlib.crc32(repr(pulled[["concept", "sae", "feature"]].to_numpy().tolist()).encode())
    marked = screen(model, saes, atlases, pulled, tagger, plan, folder / f"screen-{which:08x}")
    chosen = {
        "output": clearest(marked, "t", plan),
        "activation": clearest(listed[listed["by"] == "activation"], "score", plan),
    }
    made = directions(saes, atlases, store, chosen["output"])

    def placed(part: pd.DataFrame) -> pd.DataFrame:
        peaks = [
            float(atlases[i].peak[f]) for i, f in zip(part["sae"], part["feature"], strict=True)
        ]
        return part.assign(layer=[layers[i] for i in part["sae"]], peak=peaks)

    table, embeddings = play(
        model, saes, atlases, chosen, made, tagger, judge, plan, folder=folder,
        variants=ways(saes, atlases, chosen["output"], listed, plan)
        | {"patch": patches(model, saes, chosen["output"], store, plan)},
        progress=lambda jobs: tqdm(jobs, "features"),
    )  # fmt: skip
    distance = {
        name: outcome.frechet(rows, embeddings["untouched"][: len(rows)])
        for name, rows in embeddings.items()
    }
    return {
        "provenance": {
            "model": model.fingerprint, "plan": dataclasses.asdict(plan), "prompts": PROMPTS,
            "music": {"clips": CLIPS, "seed": SEED, "split": "train"}, "layers": layers,
            "ears": fingerprints(),
            "versions": runs.versions(), "seconds": round(time.monotonic() - began),
        },
        "screen": _columns(placed(marked)),
        "chosen": {name: _columns(placed(part)) for name, part in chosen.items()},
        "frechet": distance, "rows": _columns(table),
    }  # fmt: skip


def _columns(table: pd.DataFrame) -> dict[str, list]:
    """A table as JSON keeps it small: four digits, and a list a column."""
    return {
        name: [float(f"{x:.4g}") for x in column] if column.dtype.kind == "f" else column.tolist()
        for name, column in table.items()
    }


def load(path: Path = TABLE) -> dict:
    """What ``make steering`` kept: provenance, and tables as DataFrames."""
    kept = runs.load_json(path)
    return kept | {
        "screen": pd.DataFrame(kept["screen"]), "rows": pd.DataFrame(kept["rows"]),
        "chosen": {name: pd.DataFrame(part) for name, part in kept["chosen"].items()},
    }  # fmt: skip


def figures(kept: dict) -> dict[str, Interval]:
    """The headlines of a table that `load` gave, by their names on the scoreboard.

    ``steering.improved_share``, of features chosen by output effect, and with the method's name
    after a dot that of each rival; ``steering.win_ratio_random``; ``steering.vs_…``, by how much
    the feature raises the judge's cosine more than a rival does (negative: less);
    ``steering.negative_controls``, share of features whose push along a direction that should do
    nothing raises the concept, all such directions together.
    """
    rows, plan = kept["rows"], Plan(**kept["provenance"]["plan"])
    rows = rows[rows["strength"].isin([plan.strength, 0.0])]
    raised = outcome.test(rows, ["method", "concept"])["adjusted"] < 0.05
    share = lambda x: stats.proportion(int(x.sum()), len(x))  # noqa: E731
    found = {f"steering.improved_share.{_short(method)}": share(part)
             for method, part in raised.groupby(level="method", sort=False)}  # fmt: skip
    found["steering.improved_share"] = found.pop("steering.improved_share.output")
    negative = [m for m in raised.index.unique("method") if m in NEGATIVE]
    found["steering.negative_controls"] = share(raised.loc[negative])
    for rival in raised.index.unique("method").difference(["output", "activation"], sort=False):
        ratio, ahead = outcome.wins(rows, "output", rival)
        found[f"steering.vs_{_short(rival)}"] = ahead
        if rival == "random":
            found["steering.win_ratio_random"] = ratio
    return found


def _short(method: str) -> str:
    return method.lower().replace(" + ", "_and_").replace("-", "_").replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/steering"))
    asked = parser.parse_args()
    runs.save_json(TABLE, run(asked.folder))
    print(f"{TABLE}: {TABLE.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
