"""Does the model plan ahead? The whole question, asked of many pieces and kept.

`run` reads composed pieces and the model's own music, asks who foretells returns at three horizons,
and tests the method on what is planted; it can be stopped and taken up again. The command of
`musae_utils.structure.gates` (``make structure``) calls it, also for another MusicGen and for
recordings; `load` reads what it kept.

=============  =====================================================================================
composed       held-out compositions, of which the model reads the first 15 s: all rows
… settled      rows at which the past gives the answer away, to whoever knows the composer's rules:
               what can be known. A model that has understood form foretells these
… open         rows at which it does not: no source may know more than the rules do
own            the model's own music after 5 s of composition: what only the model can know
recordings     a folder of sounds, instead of composed pieces
=============  =====================================================================================

`circuit` lists the SAE features that look most as if they foretold a return, on one half of the
compositions, and what they are worth on the other: the next chapter cuts them.

Explained in notebooks/16_does_the_model_plan_ahead.ipynb.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from musae_utils import models, music, runs, stats
from musae_utils.activations import harvest
from musae_utils.sae import SAE, shipped
from musae_utils.sae.presets import nano
from musae_utils.sae.train import train
from musae_utils.stats import Interval
from musae_utils.structure import planted
from musae_utils.structure.horizons import ROWS, Answer, naive, read, study
from musae_utils.structure.pieces import (
    HORIZONS,
    balanced,
    composed,
    played,
    recordings,
    rows,
)

TABLE = Path(__file__).resolve().parents[2] / "data" / "structure" / "horizons.json"
SEED = 700_000  # compositions that no ear and no labeler learnt from
OWN = {"prefix": 5.0, "seconds": 30.0}  # of the model's own music
STRENGTHS = planted.STRENGTHS


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is asked.

    Attributes
    ----------
    composed, own : int
        Pieces.
    seeds : int
        Splits of the compositions into halves.
    nothing, signals, leaks : int
        Runs without a signal; runs of each strength; runs of each kind of leak.
    circuit : int
        Features that are listed.
    """

    composed: int = 400
    own: int = 128
    seeds: int = 2
    nothing: int = 40
    signals: int = 20
    leaks: int = 20
    circuit: int = 8


# -- models and their SAEs -------------------------------------------------------------------------


def dictionaries(
    model: Any, folder: Path, data: str = "", again: bool = False, given: Sequence[SAE] = ()
) -> tuple[list[SAE], SAE | None]:
    """SAEs of an early, a middle and a late layer, and a second one of the middle layer.

    Parameters
    ----------
    model : MusicModel
    folder : Path
        Where what does not ship is trained, on composed music or on `data`, and kept.
    data : str
        A folder of sounds.
    again : bool
        Train the second one, which differs from the first in its seed.
    given : sequence of SAE
        The first ones, if they are at hand; else those that ship, or trained here.

    Returns
    -------
    list of SAE, SAE or None
    """
    given = sorted(given, key=lambda sae: sae.hook_point["layer"])
    layers = [sae.hook_point["layer"] for sae in given] or shipped.layers(model)
    if not again:
        with contextlib.suppress(FileNotFoundError):
            return given or [shipped.pretrained(model, layer) for layer in layers], None
    clips = data or music.make_many(shipped.CLIPS, shipped.SEED, shipped.SECONDS, "train")
    store = harvest(model, clips, layers, folder / "store")
    saes = given or [shipped.pretrained(model, layer, store, folder) for layer in layers]
    if not again:
        return saes, None
    layer = layers[len(layers) // 2]
    config = nano(d_in=model.dim, steps=shipped.STEPS, seed=1, **shipped.LEARNING)
    hook = store.hook_point(layer)
    return saes, train(config, shipped.batches(store, layer), folder / "second", hook).sae


# -- questions -------------------------------------------------------------------------------------


def asked(sources: dict[str, np.ndarray], table: pd.DataFrame, what: str, seeds: int) -> list[dict]:
    """Answers for every horizon; of composed pieces also of settled and of open rows.

    Returns
    -------
    list of dict
        ``pieces``, ``rows``, ``horizon``, and the fields of `Answer`; of all rows also
        ``naive``, the AUC of `horizons.naive`; where nothing could be asked ``why`` instead.
    """
    found = []
    for horizon in HORIZONS:
        rules = table[f"grammar {horizon}"].to_numpy(float)
        which = {"all": np.ones(len(table), bool)}
        if np.isfinite(rules).any():
            which |= {"settled": (rules == 0) | (rules == 1), "open": (rules > 0) & (rules < 1)}
        for name, some in which.items():
            line = {"pieces": what, "rows": name, "horizon": horizon}
            labels = np.where(some, table[horizon].to_numpy(float), np.nan)
            line["yes"] = float(np.nanmean(labels)) if np.isfinite(labels).any() else np.nan
            try:
                answer = study(sources, table, horizon, some, seeds)
            except ValueError as error:  # too few rows with both answers: said, not hidden
                found.append(line | {"why": str(error)})
                continue
            line |= _told(answer)
            if name == "all":
                line["naive"] = naive(sources, table, horizon)
            if np.isfinite(rules).any():
                line["auc"]["grammar"] = list(_oracle(rules, labels, table))
            if "second SAE" in sources and name == "all":
                again = study(sources, table, horizon, some, seeds, model=["second SAE"])
                line |= {"second gain": list(again.gain)}
                line["auc"]["second SAE"] = list(again.auc["second SAE"])
            found.append(line)
    return found


def _oracle(rules: np.ndarray, labels: np.ndarray, table: pd.DataFrame) -> Interval:
    """AUC of the composer's rules, on the rows that `study` draws."""
    kept = balanced(labels, table["t"].to_numpy(), 0, ROWS)
    truth = labels[kept].astype(bool)[:, None]
    names = table["name"].to_numpy()[kept]
    value, influence = stats.grouped_auc(rules[kept][:, None], truth, names)
    reach = 1.96 * float(np.sqrt((influence**2).sum()))
    value = float(value[0])
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach), len(influence))


def _told(answer: Answer) -> dict:
    return {
        "auc": {name: list(one) for name, one in answer.auc.items()},
        "model": answer.model, "confound": answer.confound, "gain": list(answer.gain),
        "sae gain": None if answer.sae_gain is None else list(answer.sae_gain),
        "brier": list(answer.brier), "f1": list(answer.f1), "n": answer.n, "go": answer.go,
        "explained by": answer.explained_by,
    }  # fmt: skip


def farthest(table: pd.DataFrame) -> str:
    """The farthest horizon at which pieces say both yes and no at some moment.

    Raises
    ------
    ValueError
        There is none: all pieces are alike, or too short.
    """
    for horizon in reversed(HORIZONS):
        with contextlib.suppress(ValueError):
            balanced(table[horizon].to_numpy(float), table["t"].to_numpy())
            return horizon
    raise ValueError(
        f"Of {table['name'].nunique()} pieces none has, at the same moment as another, a different "
        "answer at any horizon: there is nothing to foretell. Give more music, or longer."
    )


def circuit(
    sources: dict[str, np.ndarray],
    table: pd.DataFrame,
    name: str,
    horizon: str = "long",
    n: int = 8,
) -> dict:
    """Features that look most as if they foretold a return, and ones that hear only the present.

    Parameters
    ----------
    sources, table
        Of `horizons.read` and `pieces.rows`.
    name : str
        An SAE among the sources, of the middle layer.
    horizon : str
    n : int
        Of each kind.

    Returns
    -------
    dict
        ``features`` (numbers in the SAE), ``found`` and ``scored`` (their AUC on the first and on
        the second half of the compositions), ``local``: those whose activations are most alike
        (correlation, ``likeness``) when the model has heard the last two seconds only.
    """
    kept = balanced(table[horizon].to_numpy(float), table["t"].to_numpy())
    labels = table[horizon].to_numpy()[kept].astype(bool)
    half = table["piece"].to_numpy()[kept] % 2 == 0
    code, numbers = np.asarray(sources[name], np.float32), np.asarray(sources[f"of {name}"])
    often = (code > 0).mean(0)
    usable = (often >= 0.05) & (often <= 0.9)
    of = lambda some: stats.auc(code[kept][some], labels[some][:, None])[:, 0]  # noqa: E731
    found, scored = of(half), of(~half)
    best = np.argsort(np.where(usable, -found, 1.0), kind="stable")[:n]
    alone = np.zeros_like(code)
    _, mine, theirs = np.intersect1d(numbers, sources["of local features"], return_indices=True)
    alone[:, mine] = np.asarray(sources["local features"], np.float32)[:, theirs]
    centred = lambda x: x - x.mean(0)  # noqa: E731
    a, b = centred(code), centred(alone)
    likeness = (a * b).sum(0) / np.maximum(np.sqrt((a**2).sum(0) * (b**2).sum(0)), 1e-9)
    free = usable & ~np.isin(np.arange(len(numbers)), best)
    local = np.argsort(np.where(free, -likeness, 2.0), kind="stable")[:n]
    return {
        "features": numbers[best].tolist(), "found": found[best].tolist(),
        "scored": scored[best].tolist(), "local": numbers[local].tolist(),
        "likeness": likeness[local].tolist(), "horizon": horizon,
    }  # fmt: skip


def _alike(sae: SAE, features: Sequence[int], other: SAE, avoid: Sequence[int]) -> dict:
    """Of another SAE the features that point most like given ones, each once; with the cosines."""
    a, b = (torch.nn.functional.normalize(x.W_dec.detach().float(), dim=1) for x in (sae, other))
    cosines = a[list(features)] @ b.T
    cosines[:, list(avoid)] = -2
    found, sure = [], []
    for row in cosines:
        row[found] = -2
        found.append(int(row.argmax()))
        sure.append(float(row.max()))
    return {"local": found, "likeness": sure}


# -- the run ---------------------------------------------------------------------------------------


def run(
    folder: Path,
    model: Any = None,
    plan: Plan = Plan(),
    data: str = "",
    saes: tuple[list[SAE], SAE] | None = None,
) -> dict:
    """Everything, in a folder that may be taken up again; what `TABLE` keeps.

    Parameters
    ----------
    folder : Path
    model : MusicModel, optional
        The nano model unless given.
    plan : Plan
    data : str
        A folder of sounds to ask about instead of composed pieces.
    saes : (list of SAE, SAE), optional
        Of `dictionaries`, unless given.
    """
    from musae_utils.labels.ears import fingerprints

    began, model = time.monotonic(), model or models.load("nano")
    folder = Path(folder) / model.fingerprint
    saes, second = saes or dictionaries(model, folder / "saes", data, again=True)
    middle = f"SAE {saes[len(saes) // 2].hook_point['layer']}"
    config = {"data": str(data), "own": OWN, "plan": dataclasses.asdict(plan)}
    with runs.Run(folder / "horizons", config, fingerprints=fingerprints()) as desk:
        keep = functools.partial(_keep, desk)
        bar = lambda what: lambda jobs: tqdm(jobs, what)  # noqa: E731
        if data:
            clips = music.load_folder(data, seconds=OWN["seconds"])
            first = recordings(model, clips, progress=bar("listening to recordings"))
        else:
            first = composed(model, plan.composed, SEED, progress=bar("composing"))
        what = "recordings" if data else "composed"
        table = rows(first, model.frame_rate)
        sources = read(
            model, saes, first, table, second, lambda name, make: keep(f"{what}-{name}", make),
            bar(f"reading {what} pieces"),
        )  # fmt: skip
        far = farthest(table)
        chosen = circuit(sources, table, middle, far, plan.circuit)
        chosen["second"] = circuit(sources, table, "second SAE", far, plan.circuit)
        # Local features were read with the first SAE: of the second, those that point alike.
        first_sae, theirs = saes[len(saes) // 2], chosen["second"]["features"]
        chosen["second"] |= _alike(first_sae, chosen["local"], second, theirs)
        desk.save("circuit.json", functools.partial(runs.save_json, value=chosen))
        found = _answers(desk, sources, table, what, plan.seeds)
        tests = _tests(sources, table, far, saes[len(saes) // 2], plan, desk)
        mine = []
        if plan.own:
            mine = played(
                model, plan.own, SEED + 10_000, **OWN, codes=functools.partial(_codes, keep),
                progress=bar("playing"),
            )  # fmt: skip
            line = rows(mine, model.frame_rate, first=OWN["prefix"])
            heard = read(
                model, saes, mine, line, second, lambda name, make: keep(f"own-{name}", make),
                bar("reading its own music"),
            )  # fmt: skip
            found += _answers(desk, heard, line, "own", plan.seeds)
    return {
        "provenance": {
            "model": model.fingerprint, "name": model.name, "data": str(data), "seed": SEED,
            "layers": [sae.hook_point["layer"] for sae in saes], "plan": dataclasses.asdict(plan),
            "ears": fingerprints(), "pieces": {what: len(first), "own": len(mine)},
            "versions": runs.versions(), "seconds": round(time.monotonic() - began),
        },
        "answers": found, "circuit": chosen, **tests,
    }  # fmt: skip


def _answers(desk: runs.Run, sources, table, what: str, seeds: int) -> list[dict]:
    """`asked`, once."""
    name = f"answers-{what}.json"
    if not desk.has(name):
        found = asked(sources, table, what, seeds)
        desk.save(name, functools.partial(runs.save_json, value=found))
    return runs.load_json(desk.path(name))


def _keep(desk: runs.Run, name: str, make: Callable[[], dict]) -> dict:
    file = f"{name}.safetensors"
    if not desk.has(file):
        made = {key: np.ascontiguousarray(x) for key, x in make().items()}
        desk.save(file, functools.partial(save_file, made))
    return load_file(desk.path(file))


def _codes(keep: Callable, number: int, play: Callable[[], np.ndarray]) -> np.ndarray:
    return keep(f"played-{number:04d}", lambda: {"codes": play().astype(np.int32)})["codes"]


def _tests(sources, table, horizon: str, sae: SAE, plan: Plan, desk: runs.Run) -> dict:
    """The method on what was planted, kept run by run."""
    jobs: list[tuple[float, int]] = [(0.0, seed) for seed in range(plan.nothing)]
    jobs += [(strength, 1000 + seed) for strength in STRENGTHS for seed in range(plan.signals)]
    done = {(line["strength"], line["seed"]): line for line in desk.metrics()}
    for strength, seed in tqdm(jobs, "signals, and none"):
        if (strength, seed) not in done:
            answer = planted.searched(sources, table, horizon, sae, strength, seed)
            line = {"strength": strength, "seed": seed, "gain": answer.gain.value,
                    "low": answer.gain.low, "go": answer.go}  # fmt: skip
            desk.log(**line)
            done[strength, seed] = line
    name = "leaks.csv"
    if not desk.has(name):
        seeds = range(plan.leaks)
        found = planted.leaks(sources, table, seeds, progress=lambda x: tqdm(x, "leaks"))
        desk.save(name, functools.partial(found.to_csv, index=False))
    return {
        "signals": [done[job] for job in jobs],
        "leaks": pd.read_csv(desk.path(name), keep_default_na=False).to_dict("records"),
    }


def load(path: Path = TABLE) -> dict:
    """What the command kept; ``answers``, ``signals`` and ``leaks`` as DataFrames."""
    return opened(runs.load_made(path, "python -m musae_utils.structure.gates"))


def opened(kept: dict) -> dict:
    """What `run` gives, or a file holds; ``answers``, ``signals`` and ``leaks`` as tables."""
    tables = ("answers", "signals", "leaks")
    return kept | {name: pd.DataFrame(kept[name]) for name in tables}


def figures(kept: dict) -> dict[str, Interval]:
    """The headlines of a table that `load` gave, by their names on the scoreboard.

    ``structure.gain.<horizon>`` (composed, all rows), ``structure.gain.<rows>.<horizon>`` and
    ``structure.gain.own.<horizon>``; ``structure.auc.…`` of the model's best source and
    ``….grammar``, the composer's rules; ``structure.sae_gain.…`` over a random SAE;
    ``structure.leaks_caught`` and by leak; ``structure.false_go``; ``structure.power80`` (d', with
    a bootstrap interval over seeds) and ``structure.power.<d'>``.
    """
    made: dict[str, Interval] = {}
    for line in kept["answers"].to_dict("records"):
        if not isinstance(line.get("gain"), list):
            continue
        part = "" if line["rows"] == "all" else f"{line['rows']}."
        part = f"own.{part}" if line["pieces"] == "own" else part
        name = f"{part}{line['horizon']}"
        made[f"structure.gain.{name}"] = Interval(*line["gain"])
        made[f"structure.auc.{name}"] = Interval(*line["auc"]["best of the model"])
        if np.isfinite(line.get("naive", np.nan)):
            made[f"structure.auc.{name}.naive"] = Interval(
                line["naive"], np.nan, np.nan, int(line["n"])
            )
        made[f"structure.auc.{name}.confound"] = Interval(*line["auc"]["best confound"])
        if "grammar" in line["auc"]:
            made[f"structure.auc.{name}.grammar"] = Interval(*line["auc"]["grammar"])
        if isinstance(line.get("sae gain"), list):
            made[f"structure.sae_gain.{name}"] = Interval(*line["sae gain"])
    leaks, signals = kept["leaks"], kept["signals"]
    share = lambda x: stats.proportion(int(x.sum()), len(x))  # noqa: E731
    if len(leaks):
        made["structure.leaks_caught"] = share(leaks["caught"])
        for kind, part in leaks.groupby("leak"):
            made[f"structure.leaks_caught.{kind}"] = share(part["caught"])
    nothing = signals[signals["strength"] == 0]
    made["structure.false_go"] = share(nothing["go"])
    something = signals[signals["strength"] > 0]
    for strength, part in something.groupby("strength"):
        made[f"structure.power.{strength:g}"] = share(part["go"])
    made["structure.power80"] = _power80(signals)
    return made


def _power80(signals: pd.DataFrame) -> Interval:
    """The smallest signal found in four of five cases, with an interval over seeds."""
    x, y = signals["strength"].to_numpy(float), signals["go"].to_numpy(bool)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        some = np.concatenate([
            rng.choice(np.flatnonzero(x == s), int((x == s).sum())) for s in np.unique(x)
        ])  # fmt: skip
        drawn.append(planted.power80(x[some], y[some]))
    drawn = np.array(drawn)[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Interval(planted.power80(x, y), float(low), float(high), len(x))


def rounded(value: Any) -> Any:
    """Numbers with four digits, wherever they are."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
