"""Five gates between "a feature lights up before the return" and "the model plans".

===========  =======================================================================================
alignment    the SAE belongs to the layer that is read: its fingerprint, and the variance it leaves
             unexplained there and at its neighbours
labels       what is called a return is one: F1 by kind, and false positives in traps
horizon      15 to 25 s ahead the model knows more than the best confound; and the method that says
             so finds what is planted, names every leak and says no where there is nothing
causality    with the features cut, motifs return less: less than under random and local cuts, in
             music that is otherwise the same
replication  again with an SAE of another seed, and on prefixes that chose nothing
===========  =======================================================================================

Each is a go or a no-go with its evidence and what would change it. A no-go is a result.

``python -m musae_utils.structure.gates --model facebook/musicgen-small --data my_folder`` runs
everything that they rest on and prints the report; for the nano model it reads the kept tables.
Explained in notebooks/17_cutting_the_circuit.ipynb.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from musae_utils import models, music, runs, stats, trace
from musae_utils.sae import SAE, load_saelens, verify
from musae_utils.sae.files import Fit
from musae_utils.stats import Interval
from musae_utils.structure import cutting, planning, returns
from musae_utils.structure.horizons import CONFOUNDS

F1 = {"exact": 0.90, "transposed": 0.80, "varied": 0.80}  # of labels, at even odds
TRAPS = 1 / 3  # false positives in traps, of those of chroma alone
FALSE = 0.05  # share of runs without a signal in which the method may say go
UNEXPLAINED = 0.5  # of the variance, at the SAE's own layer
SECONDS = 30.0  # of a continuation with its prefix
REPEATED = ("baseline", "ablate", "random", "local")  # conditions with the second SAE
SOME = 1_000_720_000  # held-out compositions that an SAE is looked at on


@dataclasses.dataclass(frozen=True)
class Gate:
    """One decision.

    Attributes
    ----------
    name : str
    go : bool
    says : str
        The decision in a sentence or two.
    evidence : dict of str to Interval or number
    would_change : str
        What would turn it.
    """

    name: str
    go: bool
    says: str
    evidence: dict[str, Any]
    would_change: str


def alignment(fit: Fit) -> Gate:
    """The SAE is read where it was trained.

    Parameters
    ----------
    fit : Fit
        Of `sae.verify`, on fresh music.
    """
    own, other = fit.fvu[fit.layer], fit.fvu.get(fit.rival, float("nan"))
    go = bool(own <= UNEXPLAINED and fit.fits)
    says = (
        f"At layer {fit.layer} the SAE leaves {own:.3f} of the variance unexplained, at layer "
        f"{fit.rival} {other:.3f}."
    )
    return Gate(
        "alignment", go, says,
        {"fvu": own, "fvu of the best other layer": other, "gap": fit.gap, "layer": fit.layer},
        "An SAE that explains its own layer better than the layers beside it."
        if not go else "A hook point of another layer or another model.",
    )  # fmt: skip


def labels(figures: Mapping[str, Interval]) -> Gate:
    """Returns are returns.

    Parameters
    ----------
    figures : dict
        Of `returns.figures`.
    """
    marks = {kind: figures[f"structure.label_f1.{kind}"] for kind in F1}
    ratio = figures["structure.trap_fpr_ratio"]
    short = [kind for kind, goal in F1.items() if marks[kind].value < goal]
    go = bool(not short and ratio.value <= TRAPS)
    said = ", ".join(f"{kind} {one.value:.2f}" for kind, one in marks.items())
    says = f"F1 by kind: {said}; false positives in traps {ratio.value:.2f} of chroma's."
    if short:
        says += f" Short of the goal: {', '.join(short)}."
    return Gate(
        "labels", go, says,
        {f"f1 {kind}": one for kind, one in marks.items()} | {"trap ratio": ratio},
        "Marks on recordings whose returns somebody wrote down: these are of composed music.",
    )  # fmt: skip


def horizon(kept: Mapping[str, Any]) -> Gate:
    """The model knows more of the far future than the best confound.

    Parameters
    ----------
    kept : dict
        Of `planning.load`.
    """
    found, lines = planning.figures(kept), kept["answers"]
    far = lines[(lines["horizon"] == "long") & (lines["rows"] == "all")]
    gains = {
        one["pieces"]: Interval(*one["gain"]) for one in far.to_dict("records")
        if isinstance(one.get("gain"), list)
    }  # fmt: skip
    caught, false = found.get("structure.leaks_caught"), found["structure.false_go"]
    power = found["structure.power80"]
    sound = (caught is None or caught.value == 1) and false.value <= FALSE
    ahead = [name for name, gain in gains.items() if gain.low > 0]
    said = "; ".join(
        f"{name}: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        for name, gain in gains.items()
    )
    says = f"Gain over the best confound 15 to 25 s ahead: {said or 'nothing could be asked'}."
    for one in far.to_dict("records"):
        if isinstance(one.get("why"), str):
            says += f" Of {one['pieces']} pieces it could not be asked: {one['why']}"
        elif one.get("explained by"):
            says += f" In {one['pieces']} pieces {one['explained by']} foretells as well."
    if not sound:
        says += " The method itself failed its tests."
    evidence = {f"gain {name}": gain for name, gain in gains.items()}
    evidence |= {"false go": false, "power80": power}
    evidence |= {} if caught is None else {"leaks caught": caught}
    return Gate(
        "horizon", bool(ahead and sound), says, evidence,
        f"A model that knows more than {', '.join(CONFOUNDS[:3])} and the sound so far; the method "
        f"would find a signal of d' {power.value:.2f} in four of five cases.",
    )  # fmt: skip


def causality(kept: Mapping[str, Any], window: str = "long") -> Gate:
    """Cutting the features, and only that, cuts the return.

    Parameters
    ----------
    kept : dict
        Of `cutting.load`.
    window : str
    """
    found = _cut(kept, window)
    evidence = {
        f"returns, ablate against {name}": gap for name, (gap, _) in found["against"].items()
    }
    rates = _rates(kept, window)
    evidence |= {f"rate, {name}": rate for name, rate in rates.items()}
    says = f"{found['words'][0].upper()}{found['words'][1:]}."
    if "baseline" in rates and "stranger" in rates:
        says += (
            f" A motif returns in {rates['baseline']:.0%} of untouched continuations and in "
            f"{rates['stranger']:.0%} of a stranger's, where it is chance."
        )
    return Gate(
        "causality", bool(found["selective"]), says, evidence,
        "Less recurrence than under random and local cuts, with quality shown to be the same; "
        "which takes a model that brings motifs back to begin with.",
    )  # fmt: skip


def replication(kept: Mapping[str, Any], again: Mapping[str, Any] | None) -> Gate:
    """The same with another SAE and other prefixes.

    Parameters
    ----------
    kept : dict
        Of `planning.load`: features chosen on half of the compositions, marked on the other, and
        the gain of an SAE of another seed.
    again : dict, optional
        Of `cutting.load`, for that SAE's features on prefixes that the first cut did not have.
    """
    lines, evidence = kept["answers"], {}
    far = lines[(lines["horizon"] == "long") & (lines["rows"] == "all")].to_dict("records")
    for one in far:
        if isinstance(one.get("second gain"), list):
            evidence[f"gain of the second SAE, {one['pieces']}"] = Interval(*one["second gain"])
    chosen = kept["circuit"]
    mean = lambda x: sum(x) / max(1, len(x))  # noqa: E731
    for name, part in (("first", chosen), ("second", chosen["second"])):
        evidence[f"AUC of the features found, {name} SAE"] = mean(part["found"])
        evidence[f"AUC of them on the other half, {name} SAE"] = mean(part["scored"])
    held = all(mean(part["scored"]) > 0.5 for part in (chosen, chosen["second"]))
    gained = any(one.low > 0 for name, one in evidence.items() if name.startswith("gain"))
    cut = None if again is None else _cut(again, "long")
    go = bool(held and gained and cut and cut["selective"])
    says = (
        f"Features chosen by an AUC of {mean(chosen['found']):.2f} have "
        f"{mean(chosen['scored']):.2f} on compositions that did not choose them; with an SAE of "
        f"another seed {mean(chosen['second']['found']):.2f} and "
        f"{mean(chosen['second']['scored']):.2f}. "
    )
    if cut is None:
        says += "The second SAE's features were not cut."
    else:
        evidence |= {f"returns, second ablate against {name}": gap
                     for name, (gap, _) in cut["against"].items()}  # fmt: skip
        says += f"Cutting those, on other prefixes: {cut['words']}."
    return Gate(
        "replication", go, says, evidence,
        "The same selective effect with an SAE of another seed, on prefixes that chose nothing.",
    )  # fmt: skip


def _cut(kept: Mapping[str, Any], window: str) -> dict:
    """What the cut did; where all continuations have one answer, that nothing can be told."""
    try:
        return cutting.verdict(cutting.effects(kept["rows"], [window]), window)
    except ValueError as error:
        return {"words": f"nothing can be told: {error}", "selective": False, "against": {}}


def figures(gates: Sequence[Gate], fooled: pd.DataFrame) -> dict[str, Interval]:
    """``structure.gates``, of five; ``structure.failure_modes``, of those planted."""
    ways = fooled["fooled"] & fooled["caught"]
    return {
        "structure.gates": stats.proportion(sum(g.go for g in gates), len(gates)),
        "structure.failure_modes": stats.proportion(int(ways.sum()), len(ways)),
    }


def _rates(kept: Mapping[str, Any], window: str) -> dict[str, float]:
    table = kept["rows"]
    mean = table.groupby("condition", sort=False)[f"returns.{window}"].mean()
    return {str(name): float(value) for name, value in mean.items()}


def decide(fit: Fit, marks: Mapping, planned: Mapping, cut: Mapping, again: Mapping | None):
    """All five gates, in order; see each."""
    return [alignment(fit), labels(marks), horizon(planned), causality(cut),
            replication(planned, again)]  # fmt: skip


def as_json(gates: Sequence[Gate]) -> list[dict]:
    """Gates for a machine: plain dicts, intervals as lists of value, low, high, n."""
    plain = lambda x: [float(v) for v in x] if isinstance(x, Interval) else float(x)  # noqa: E731
    return [
        dataclasses.asdict(gate)
        | {"evidence": {name: plain(one) for name, one in gate.evidence.items()}}
        for gate in gates
    ]


def report(gates: Sequence[Gate], title: str = "") -> str:
    """Gates for a person, in Markdown."""
    passed = sum(gate.go for gate in gates)
    lines = [f"### {title}", ""] if title else []
    lines += [
        f"{passed} of {len(gates)} gates say go: "
        + ("the model plans, by this evidence." if passed == len(gates) else
           "that this model plans is **not shown**."),
        "", "| gate | decision | why | what would change it |", "|---|---|---|---|",
    ]  # fmt: skip
    for gate in gates:
        cells = (gate.name, "**go**" if gate.go else "no-go", gate.says, gate.would_change)
        lines.append(
            "| " + " | ".join(html.escape(c, False).replace("|", "/") for c in cells) + " |"
        )
    return "\n".join(lines)


# -- four ways to be fooled ------------------------------------------------------------------------


def failures(
    model: Any, sae: SAE, fit: Fit, marks: Mapping, planned: Mapping, cut: Mapping
) -> pd.DataFrame:
    """S3's four failure modes, each planted: what the naive way says, and what gives it away.

    Parameters
    ----------
    model : MusicModel
    sae : SAE
    fit : Fit
        Of `sae.verify`.
    marks : dict
        Of `returns.figures`.
    planned, cut : dict
        Of `planning.load` and `cutting.load`.

    Returns
    -------
    DataFrame, indexed by failure mode
        ``naive``, what is believed, and ``caught by``, in words with numbers; ``fooled`` and
        ``caught`` (bool).
    """
    looks, refused = _misplaced(model, sae, fit.rival)
    shallow, deep = (marks[f"structure.trap_fpr{end}"] for end in (".chroma_only", ""))
    ratio = marks["structure.trap_fpr_ratio"]
    read = cutting.surprises(cut["read"]) if len(cut["read"]) else None
    found = planning.figures(planned)
    far = {end: found.get(f"structure.auc.long{end}") for end in ("", ".naive")}
    gain = found.get("structure.gain.long")
    lines = [{
        "mode": "misalignment",
        "naive": f"one layer off, {looks:.0%} as many features fire: it looks alive",
        "caught by": f"FVU {fit.fvu[fit.rival]:.3f} there and {fit.fvu[fit.layer]:.3f} at its own "
                     f"layer, difference {fit.gap}; and the hook point refuses",
        "fooled": looks > 0.5, "caught": bool(fit.gap.low > 0 and refused),
    }, {
        "mode": "shallow chroma",
        "naive": f"similar chroma: in traps where nothing returns, {shallow.value:.0%} of windows "
                 "are called returns",
        "caught by": f"asking for the melody: {deep.value:.0%}, a ratio of {ratio}",
        "fooled": shallow.value > 0.2, "caught": ratio.value <= TRAPS,
    }]  # fmt: skip
    if read is not None:
        mean = read[(read["condition"] == "mean layer") & (read["against"] == "baseline")]
        of = {row["measure"]: cutting._interval(row) for row in mean.to_dict("records")}
        lines.append({
            "mode": "entangled ablation",
            "naive": "without the layer, bars that bring a motif back cost "
                     f"{of['return'].value:+.2f} nats a code: the layer makes returns",
            "caught by": f"bars that bring something new cost {of['new'].value:+.2f}; what is "
                         f"left for returns alone is {of['gap']}",
            "fooled": of["return"].low > 0,
            "caught": bool(of["new"].low > 0 and abs(of["gap"].value) < of["return"].value / 3),
        })  # fmt: skip
    if gain is not None and far[".naive"] is not None:
        lines.append({
            "mode": "horizon confounding",
            "naive": f"15 to 25 s ahead, AUC {far['.naive'].value:.2f} on rows not seen",
            "caught by": f"on pieces not seen {far[''].value:.2f}; gain over the best confound "
                         f"{gain}",
            "fooled": far[".naive"].value > 0.7, "caught": bool(gain.low <= 0),
        })  # fmt: skip
    return pd.DataFrame(lines).set_index("mode")


def _misplaced(model: Any, sae: SAE, layer: int) -> tuple[float, bool]:
    """How alive an SAE looks at another layer, of its own; and whether its hook point refuses."""
    own = sae.hook_point["layer"]
    codes = model.encode([music.make(seed=SOME + i, seconds=5.0) for i in range(4)])
    streams = trace.residuals(model, codes, [own, layer])
    alive = {at: (sae.encode(x.flatten(0, 1)) > 0).any(0).sum().item() for at, x in streams.items()}
    try:
        sae.check(trace.HookPoint.of(model, layer))
    except ValueError:
        return alive[layer] / max(1, alive[own]), True
    return alive[layer] / max(1, alive[own]), False


# -- one command for all of it ---------------------------------------------------------------------


def run(
    model: Any,
    folder: Path,
    data: str = "",
    plan: planning.Plan | None = None,
    prefixes: tuple[int, int] = (64, 32),
    batch: int = 32,
    published: Sequence[SAE] = (),
) -> dict[str, Any]:
    """Chapters 15 to 17 for any model: horizons, cuts with two SAEs, and the gates.

    Parameters
    ----------
    model : MusicModel
    folder : Path
        Run folders; what was stopped goes on.
    data : str
        A folder of sounds to ask about and to go on from, instead of composed pieces.
    plan : Plan
    prefixes : (int, int)
        How many continuations are cut with the first SAE, and with the second.
    batch : int
        Rows played at once.
    published : sequence of SAE
        Of different layers; the middle one is cut. Trained here, or those that ship, if left out.
        The second one, of another seed, is always trained here.

    Returns
    -------
    dict
        ``horizons``, ``cutting`` and ``second``, tables as their modules keep them, and ``gates``,
        a list of `Gate`.
    """
    folder, place = Path(folder), Path(folder) / model.fingerprint
    saes, second = planning.dictionaries(model, place / "saes", data, again=True, given=published)
    planned = planning.run(folder, model, plan or planning.Plan(), data, (saes, second))
    found = {"horizons": planned}
    for name, sae, chosen, n, seed in (
        ("cutting", saes[len(saes) // 2], planned["circuit"], prefixes[0], cutting.SEED),
        ("second", second, planned["circuit"]["second"], prefixes[1], cutting.SEED + 10_000),
    ):
        if data:
            clips = music.load_folder(data, seconds=SECONDS)
            given = cutting.prefixes_of(model, clips[:n], seed=seed)
        else:
            given = cutting.prefixes(model, n, seed)
        conditions = cutting.CONDITIONS if name == "cutting" else REPEATED
        found[name] = cutting.run(
            model, sae, chosen["features"], chosen["local"], given, place / name, SECONDS, batch,
            conditions=conditions,
        )  # fmt: skip
    fit = verify(saes[len(saes) // 2], model)
    decided = decide(
        fit, returns.figures(returns.load()), planning.opened(planned),
        cutting.opened(found["cutting"]), cutting.opened(found["second"]),
    )  # fmt: skip
    return found | {"fit": fit, "gates": decided}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--data", default="", help="a folder of sounds, instead of composed pieces")
    parser.add_argument(
        "--sae", default="", help="folders of SAEs in SAELens' format, comma between; else our own"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/structure"))
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args(arguments)
    model = models.load(given.model)
    published = [load_saelens(one.strip(), model) for one in given.sae.split(",") if one.strip()]
    found = run(model, given.folder, given.data, batch=given.batch, published=published)
    ships = given.model == "nano" and not given.data and not published
    out = planning.TABLE.parent if ships else given.folder
    for name, path in (("horizons", planning.TABLE), ("cutting", cutting.TABLE),
                       ("second", cutting.SECOND)):  # fmt: skip
        runs.save_json(out / path.name, planning.rounded(found[name]))
    runs.save_json(out / "gates.json", as_json(found["gates"]))
    text = report(found["gates"], f"The gates of {model.name}")
    runs.atomic_write(given.folder / "gates.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
