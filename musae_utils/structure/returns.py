"""How far labels of returns can be believed: marks on scored music, beside simpler labelers.

``python -m musae_utils.structure.returns`` fits labelers on training compositions and marks them
against what was written in others; it can be stopped and taken up again. `load` reads what it kept.

================  ==================================================================================
combined          logistic regression on all of `hearing.SCORES`
chroma            similarity of pitch classes after a time warp, alone: the usual labeler
chroma rotated    the same, in the best of twelve keys
rhythm, melody    one score each
CLAP              cosine of the two windows' embeddings by an audio-text model
chroma + CLAP     logistic regression on the two: S3's design
combined + CLAP   whether CLAP adds anything
================  ==================================================================================

Every labeler is fitted on the same training compositions, traps among them, and its threshold is
where F1 is highest on those that are no traps, each judged by a fit that did not see it.

F1 is given for as many windows with a return as without (always "yes" scores 0.667), and at the
rate at which windows of composed music bring a motif back (``natural``). Explained in
notebooks/15_what_counts_as_a_return.ipynb.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import asdict, replace
from pathlib import Path

import mir_eval
import numpy as np
import pandas as pd
from tqdm import tqdm

from musae_utils import music, runs, stats
from musae_utils.labels.clap import AudioTextModel
from musae_utils.music.clip import Clip
from musae_utils.music.dataset import SPLIT_SEEDS
from musae_utils.stats import Interval
from musae_utils.structure.hearing import SCORES, hear, scores
from musae_utils.structure.labelers import (
    TABLE,
    Labeler,
    boundaries,
    clap_scores,
    fit,
    onsets,
)
from musae_utils.structure.scored import KINDS, TRAPS, Question, questions, trap

LABELERS = {
    "combined": SCORES, "chroma": ("chroma",), "chroma rotated": ("chroma rotated",),
    "rhythm": ("rhythm",), "melody": ("melody",), "CLAP": ("CLAP",),
    "chroma + CLAP": ("chroma", "CLAP"), "combined + CLAP": (*SCORES, "CLAP"),
}  # fmt: skip
NEAR = 0.5  # seconds within which an onset counts as found (mir_eval's for boundaries)
SECONDS = 30.0  # of a piece
SEED, SHARD = 400_000, 10  # compositions that the ears did not learn from; pieces kept at once
PIECES = {"train": (200, 50), "test": (200, 80)}  # composed ones, and of each trap


# -- marks -----------------------------------------------------------------------------------------


def answered(clip: Clip, asked: list[Question], clap: AudioTextModel | None = None) -> pd.DataFrame:
    """Scores of all that is asked of a clip, with what was written (``kind``).

    Returns
    -------
    DataFrame
        `SCORES` (and ``CLAP``), ``kind``, ``start``, ``earlier``.
    """
    heard, parts = hear(clip.audio, clip.sample_rate), []
    for earlier in dict.fromkeys(q.earlier for q in asked):
        mine = [q for q in asked if q.earlier == earlier]
        part = scores(heard, earlier, np.array([q.start for q in mine])).reset_index()
        parts.append(part.assign(kind=[q.kind for q in mine], earlier=earlier[0]))
        if clap is not None:
            spans, starts = [q.earlier for q in mine], [q.start for q in mine]
            parts[-1]["CLAP"] = clap_scores(clip.audio, clip.sample_rate, clap, spans, starts)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def slid(clip: Clip, asked: list[Question]) -> pd.DataFrame:
    """`SCORES` of every later window of each motif, with its start, earlier and end."""
    heard = hear(clip.audio, clip.sample_rate)
    parts = [
        scores(heard, earlier).reset_index().assign(earlier=earlier[0], end=earlier[1])
        for earlier in dict.fromkeys(q.earlier for q in asked)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def detected(by: Labeler, slid: pd.DataFrame, asked: pd.DataFrame, thresholds) -> pd.DataFrame:
    """Returns found in one piece by sliding, against those written, at each of some thresholds.

    Parameters
    ----------
    by : Labeler
    slid, asked : DataFrame
        Of one piece, as `slid` and `answered` give them.
    thresholds : sequence of float

    Returns
    -------
    DataFrame, one row a threshold
        ``written``, ``found``, ``hits`` (within `NEAR`), and ``error``: their median in seconds,
        NaN without hits.
    """
    counts, errors = np.zeros((len(thresholds), 3), int), [[] for _ in thresholds]
    back = asked[asked["kind"] != "none"]
    for (earlier, end), part in slid.groupby(["earlier", "end"]):
        probability = pd.Series(by.probability(part), index=part["start"])
        written = back.loc[back["earlier"] == earlier, "start"].to_numpy(float)
        for row, threshold in enumerate(thresholds):
            found = onsets(probability, end - earlier, threshold)
            hits = mir_eval.util.match_events(written, found, NEAR) if len(written) else []
            counts[row] += len(written), len(found), len(hits)
            errors[row] += [abs(float(written[i] - found[j])) for i, j in hits]
    table = pd.DataFrame(counts, columns=["written", "found", "hits"])
    return table.assign(error=[np.median(e) if e else np.nan for e in errors])


def pieces_of(split: str) -> list[tuple[str, int]]:
    """What is marked: (set, number) of each piece; sets are ``"composed"`` and `TRAPS`."""
    composed, each = PIECES[split]
    traps = [(name, SEED + 1000 * (i + 1) + j) for i, name in enumerate(TRAPS) for j in range(each)]
    return [("composed", SEED + i) for i in range(composed)] + traps


def listen(kind: str, number: int, split: str, clap: AudioTextModel) -> dict[str, pd.DataFrame]:
    """One piece of `pieces_of`: what is asked, what is slid over, and how its parts are cut."""
    if kind != "composed":
        clip, asked = trap(kind, number, split)
        return {"asked": answered(clip, asked, clap)}
    clip = music.make_many(1, number, SECONDS, split)[0]
    asked = questions(clip)
    sections = clip.truth.clip["sections"]
    written = np.array([[s["start"], s["end"]] for s in sections])
    n = len(written)
    even = np.linspace(0, clip.seconds, n + 1)
    rng = np.random.default_rng(number)
    drawn = np.sort(np.concatenate([even[[0, -1]], rng.uniform(0, clip.seconds, n - 1)]))
    cuts = {
        "agglomerative": boundaries(clip.audio, clip.sample_rate, n),
        "even": np.column_stack([even[:-1], even[1:]]),
        "random": np.column_stack([drawn[:-1], drawn[1:]]),
    }
    cut = [
        {"by": name, "window": near,
         "f1": mir_eval.segment.detection(written, _to(spans, clip.seconds), near, trim=True)[2]}
        for name, spans in cuts.items() for near in (0.5, 3.0) if n > 1
    ]  # fmt: skip
    return {
        "asked": answered(clip, asked, clap), "slid": slid(clip, asked), "cut": pd.DataFrame(cut),
    }  # fmt: skip


def _to(spans: np.ndarray, end: float) -> np.ndarray:
    spans = spans.copy()
    spans[0, 0], spans[-1, 1] = 0.0, end
    return spans


def run(folder: Path, pieces: dict[str, list[tuple[str, int]]] | None = None) -> dict:
    """Listen to all pieces (resumable), fit every labeler, and mark it; what `TABLE` keeps."""
    from musae_utils.labels.ears import fingerprints, nano_clap

    began = time.monotonic()
    pieces = pieces or {split: pieces_of(split) for split in PIECES}
    clap, ears, heard = nano_clap(), fingerprints(), {}
    with runs.Run(folder, {"pieces": pieces, "scores": SCORES}, fingerprints=ears) as desk:
        shards = [
            (split, i, some[i : i + SHARD])
            for split, some in pieces.items() for i in range(0, len(some), SHARD)
        ]  # fmt: skip
        for split, i, some in tqdm(shards, f"listening, {SHARD} pieces a step"):
            name = f"{split}-{i:04d}.csv.gz"
            if not desk.has(name):
                found = [
                    part.assign(table=table, set=kind, piece=f"{split} {kind} {number}")
                    for kind, number in some
                    for table, part in listen(kind, number, split, clap).items()
                ]
                table = pd.concat(found, ignore_index=True)
                desk.save(name, functools.partial(table.to_csv, index=False, float_format="%.5g"))
            heard.setdefault(split, []).append(pd.read_csv(desk.path(name)))
    heard = {split: pd.concat(parts, ignore_index=True) for split, parts in heard.items()}
    fitted = fit_all(heard["train"])
    return {
        "provenance": {
            "ears": ears, "pieces": {split: len(some) for split, some in pieces.items()},
            "seconds_a_piece": SECONDS, "seed": SEED, "near": NEAR, "versions": runs.versions(),
            "seconds": round(time.monotonic() - began),
        },
        "labelers": {name: asdict(one) for name, one in fitted.items()},
        **marked(fitted, heard["test"]),
    }  # fmt: skip


def fit_all(heard: pd.DataFrame) -> dict[str, Labeler]:
    """Every labeler of `LABELERS`, and the search thresholds of those that slide."""
    asked = heard[heard["table"] == "asked"]
    asked = asked.assign(trap=asked["set"] != "composed")
    fitted = {name: fit(asked, name, columns) for name, columns in LABELERS.items()}
    steps = np.linspace(0.3, 0.98, 18)
    for name in ("combined", "chroma"):
        found = sum(
            detected(fitted[name], *of, steps)[["written", "found", "hits"]]
            for of in _composed(heard).values()
        )
        f1 = 2 * found["hits"] / (found["written"] + found["found"])
        fitted[name] = replace(fitted[name], search=float(steps[f1.argmax()]))
    return fitted


def _composed(heard: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """What was slid over and what was asked, by composed piece."""
    tables = {
        name: dict(tuple(heard[heard["table"] == name].groupby("piece")))
        for name in ("slid", "asked")
    }
    return {piece: (slid, tables["asked"][piece]) for piece, slid in tables["slid"].items()}


def marked(fitted: dict[str, Labeler], heard: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Marks of every labeler, piece by piece.

    Returns
    -------
    dict of DataFrame
        ``rows``: by labeler, set and piece (with its lead's family), how many windows were
        ``exact``, ``transposed``, ``varied`` or ``none``; how many of them were called returns
        (``said ...``); ``named``, how many returns that were called so also had their kind right.
        ``found``: of sliding, see `detected`. ``cut``: F1 of boundaries.
    """
    asked, rows, found = heard[heard["table"] == "asked"], [], []
    kinds, families = (*KINDS, "none"), {piece: _family(piece) for piece in asked["piece"].unique()}
    for name, by in fitted.items():
        said = by.probability(asked) >= by.threshold
        named = said & (by.kind(asked) == asked["kind"]) if by.kinds else said & False
        for (group, piece), part in asked.assign(said=said, named=named).groupby(["set", "piece"]):
            counts = {kind: int((part["kind"] == kind).sum()) for kind in kinds}
            yes = {f"said {k}": int(part.loc[part["kind"] == k, "said"].sum()) for k in kinds}
            row = {"labeler": name, "set": group, "piece": piece, "family": families[piece]}
            row |= counts | yes
            rows.append(row | {"named": int(part["named"].sum())})
    for name in ("combined", "chroma"):
        for piece, of in _composed(heard).items():
            part = detected(fitted[name], *of, [fitted[name].search])
            found.append(part.assign(labeler=name, piece=piece))
    cut = heard.loc[heard["table"] == "cut", ["piece", "by", "window", "f1"]]
    return {
        "rows": pd.DataFrame(rows), "found": pd.concat(found, ignore_index=True),
        "cut": cut.reset_index(drop=True),
    }  # fmt: skip


def _family(piece: str) -> str:
    """The lead instrument's family of a piece of `run`, written again without a sound."""
    split, *_, number = piece.split()
    spec = music.Spec(seconds=SECONDS)
    return music.compose(spec, SPLIT_SEEDS[split] + int(number)).spec.family


def load(path: Path = TABLE) -> dict:
    """What the command kept: provenance, labelers, and the tables of `marked`."""
    kept = runs.load_made(path, "python -m musae_utils.structure.returns")
    return kept | {name: pd.DataFrame(kept[name]) for name in ("rows", "found", "cut")}


def figures(kept: dict) -> dict[str, Interval]:
    """The headlines of a table that `load` gave, by their names on the scoreboard.

    ``structure.label_f1.…`` of each kind of return at even odds, ``label_f1_natural.…`` at the rate
    of composed music, ``label_recall.…``, ``label_precision`` (natural); ``trap_fpr`` (mean over
    traps) and by trap; the same with ``.chroma_only`` and other labelers' names behind;
    ``trap_fpr_ratio``, of combined to chroma alone; ``kind_accuracy`` of returns that were called
    returns; ``found_f1`` and ``timing_error`` (median, seconds) of sliding; ``boundary_f1`` within
    0.5 s and its rivals. Intervals over compositions.
    """
    rows, made = kept["rows"], {}
    drawn: dict[int, np.ndarray] = {}

    def over(table: pd.DataFrame, statistic) -> tuple[float, np.ndarray]:
        """A statistic of summed counts, and of those of resampled pieces."""
        sums = table.select_dtypes("number").to_numpy(float)
        if len(sums) not in drawn:
            drawn[len(sums)] = stats.resample_groups(len(sums))
        columns = list(table.select_dtypes("number"))
        of = lambda x: statistic(pd.DataFrame(x, columns=columns))  # noqa: E731
        return float(of(sums.sum(0, keepdims=True)).iloc[0]), of(drawn[len(sums)] @ sums).to_numpy()

    def interval(found: tuple[float, np.ndarray], n: int) -> Interval:
        return Interval(found[0], *map(float, np.nanpercentile(found[1], [2.5, 97.5])), n)

    traps: dict[str, tuple[float, np.ndarray]] = {}
    for name in dict.fromkeys(rows["labeler"]):
        end = {"combined": "", "chroma": ".chroma_only"}.get(name, "." + _spelled(name))
        mine = rows[rows["labeler"] == name].sort_values("piece")
        composed = mine[mine["set"] == "composed"]
        n = len(composed)
        for kind in (*KINDS, "any"):
            some = KINDS if kind == "any" else (kind,)
            for at, odds in (("label_f1", 1.0), ("label_f1_natural", None)):
                one = over(composed, functools.partial(_f1, kinds=some, odds=odds))
                made[f"structure.{at}.{kind}{end}"] = interval(one, n)
            one = over(composed, lambda x, some=some: _share(x, some))
            made[f"structure.label_recall.{kind}{end}"] = interval(one, n)
        one = over(composed, lambda x: _said(x, KINDS) / (_said(x, KINDS) + x["said none"]))
        made[f"structure.label_precision{end}"] = interval(one, n)
        false = over(composed, lambda x: x["said none"] / x["none"])
        made[f"structure.label_fpr{end}"] = interval(false, n)
        each = []
        for one in TRAPS:
            part = mine[mine["set"] == one]
            each.append(over(part, lambda x: x["said none"] / x["none"]))
            made[f"structure.trap_fpr.{_spelled(one)}{end}"] = interval(each[-1], len(part))
        # Traps are drawn apart: their resamples have nothing to do with one another.
        shuffle = np.random.default_rng(0).permutation
        traps[name] = (
            np.mean([value for value, _ in each]),
            np.mean([shuffle(resampled) for _, resampled in each], axis=0),
        )
        made[f"structure.trap_fpr{end}"] = interval(
            traps[name], int((mine["set"] != "composed").sum())
        )
    ratio = traps["combined"][0] / traps["chroma"][0], traps["combined"][1] / traps["chroma"][1]
    made["structure.trap_fpr_ratio"] = interval(ratio, made["structure.trap_fpr"].n)
    best = rows[(rows["labeler"] == "combined") & (rows["set"] == "composed")]
    made["structure.kind_accuracy"] = interval(
        over(best, lambda x: x["named"] / _said(x, KINDS)), len(best)
    )
    for name, part in kept["found"].groupby("labeler"):
        end = "" if name == "combined" else ".chroma_only"
        counts = part[["written", "found", "hits"]]
        one = over(counts, lambda x: 2 * x["hits"] / (x["written"] + x["found"]))
        made[f"structure.found_f1{end}"] = interval(one, len(part))
        errors = part["error"].dropna().to_numpy(float)
        made[f"structure.timing_error{end}"] = stats.bootstrap(errors, np.median)
    for name, part in kept["cut"][kept["cut"]["window"] == 0.5].groupby("by"):
        end = "" if name == "agglomerative" else f".{name}"
        made[f"structure.boundary_f1{end}"] = stats.bootstrap(part["f1"].to_numpy(float))
    return made


def _spelled(name: str) -> str:
    return name.lower().replace(" + ", "_and_").replace(" ", "_")


def _said(x: pd.DataFrame, kinds) -> pd.Series:
    return x[[f"said {kind}" for kind in kinds]].sum(axis=1)


def _share(x: pd.DataFrame, kinds) -> pd.Series:
    return _said(x, kinds) / x[list(kinds)].sum(axis=1)


def _f1(x: pd.DataFrame, kinds, odds: float | None) -> pd.Series:
    """F1 of some kinds against windows without a return.

    `odds`: windows with a return for each without; None leaves them as they come in the music, all
    kinds together (a kind that is a third of the returns faces a third of the false ones).
    """
    recall, false = _share(x, kinds), x["said none"] / x["none"]
    none = 1 / odds if odds else x["none"] / x[list(KINDS)].sum(axis=1)
    return 2 * recall / (1 + recall + false * none)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/structure/returns"))
    asked = parser.parse_args()
    TABLE.parent.mkdir(exist_ok=True)
    runs.save_json(TABLE, _as_json(run(asked.folder)))
    print(f"{TABLE}: {TABLE.stat().st_size / 1e3:.0f} KB")
    for name, one in figures(load()).items():
        print(f"{name:44} {one}")


def _as_json(kept: dict) -> dict:
    """Tables as columns."""
    tables = ("rows", "found", "cut")
    return kept | {name: kept[name].round(4).to_dict("list") for name in tables}


if __name__ == "__main__":
    main()
