"""Gates that open on evidence and on nothing else."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from musae_utils import models, music
from musae_utils.sae import shipped
from musae_utils.sae.files import Fit
from musae_utils.stats import Interval
from musae_utils.structure import cutting, gates, planning

GOOD, BAD = Interval(0.1, 0.05, 0.15, 200), Interval(0.1, -0.05, 0.25, 200)


def fitted(own=0.1, other=0.4, gap=(0.3, 0.2, 0.4)):
    return Fit(3, {2: other, 3: own, 4: other + 0.1}, 2, Interval(*gap, 8), 1000)


def marked(exact=0.95, varied=0.85, ratio=0.2):
    one = lambda x: Interval(x, x - 0.02, x + 0.02, 200)  # noqa: E731
    return {
        "structure.label_f1.exact": one(exact), "structure.label_f1.transposed": one(0.88),
        "structure.label_f1.varied": one(varied), "structure.trap_fpr_ratio": one(ratio),
    }  # fmt: skip


def foretold(gain=GOOD, second=GOOD, caught=True, false=0, why=None, explained=""):
    """A table as `planning.run` keeps it."""
    sure = [0.8, 0.7, 0.9, 200]
    line = {
        "pieces": "composed", "rows": "all", "horizon": "long", "yes": 0.8,
        "auc": {"best of the model": sure, "best confound": [0.6, 0.5, 0.7, 200]},
        "gain": list(gain), "second gain": list(second), "explained by": explained, "n": 1200,
    }  # fmt: skip
    lines = [line]
    if why:
        lines.append({"pieces": "own", "rows": "all", "horizon": "long", "yes": 0.0, "why": why})
    signals = [{"strength": 0.0, "seed": i, "gain": 0.0, "go": i < false} for i in range(40)]
    signals += [{"strength": s, "seed": i, "gain": 0.1, "go": i < 20 * s / 2}
                for s in (0.5, 1.0, 2.0) for i in range(20)]  # fmt: skip
    leaks = [{"leak": kind, "seed": i, "named": kind, "caught": caught or i > 0}
             for kind in ("position", "prompt") for i in range(20)]  # fmt: skip
    found = {"features": [1, 2], "found": [0.7, 0.7], "scored": [0.65, 0.6], "local": [3, 4]}
    kept = {"answers": lines, "signals": signals, "leaks": leaks,
            "circuit": found | {"second": found}}  # fmt: skip
    return planning.opened(kept)


def cut(ablate=0.1, controls=0.7, base=0.7, quality=0.0, n=60):
    """A table as `cutting.run` keeps it: shares that return, a shift of quality under ablate."""
    rng, lines = np.random.default_rng(0), []
    for condition, share in (("baseline", base), ("ablate", ablate), ("random", controls),
                             ("local", controls), ("stranger", 0.05)):  # fmt: skip
        for i in range(n):
            shift = quality if condition == "ablate" else 0.0
            lines.append({
                "prefix": f"p{i}", "condition": condition, "draw": 0,
                **{f"returns.{w}": float(rng.random() < share) for w in cutting.WINDOWS},
                **{f"probability.{w}": rng.random() for w in cutting.WINDOWS},
                **{name: shift * margin + 0.02 * margin * rng.normal()
                   for name, margin in cutting.MARGINS.items()},
            })  # fmt: skip
    return {"rows": pd.DataFrame(lines), "read": pd.DataFrame(), "fad": {}, "provenance": {}}


def test_alignment_needs_the_right_layer():
    assert gates.alignment(fitted()).go
    assert not gates.alignment(fitted(own=0.7, other=0.9)).go, "explains too little"
    assert not gates.alignment(fitted(own=0.4, other=0.1, gap=(-0.3, -0.4, -0.2))).go


def test_labels_need_every_kind_and_the_traps():
    assert gates.labels(marked()).go
    short = gates.labels(marked(varied=0.7))
    assert not short.go and "varied" in short.says
    assert not gates.labels(marked(ratio=0.5)).go


def test_horizon_needs_a_gain_and_a_method_that_was_tested():
    assert gates.horizon(foretold()).go
    said = gates.horizon(foretold(gain=BAD, explained="prompt"))
    assert not said.go and "prompt foretells as well" in said.says
    assert not gates.horizon(foretold(caught=False)).go
    assert "failed its tests" in gates.horizon(foretold(false=4)).says
    assert "could not be asked: no returns" in gates.horizon(foretold(why="no returns")).says


def test_causality_needs_less_than_under_controls_in_the_same_music():
    good = gates.causality(cut())
    assert good.go and "where it is chance" in good.says
    assert not gates.causality(cut(ablate=0.7)).go, "no effect"
    assert not gates.causality(cut(controls=0.1)).go, "any cut does it"
    worse = gates.causality(cut(quality=5.0))
    assert not worse.go and "worse music" in worse.says


def test_where_nothing_ever_returns_nothing_can_be_told():
    silent = cut(ablate=0.0, controls=0.0, base=0.0)
    said = gates.causality(silent)
    assert not said.go and "othing can be told" in said.says


def test_replication_needs_the_gain_and_the_cut_again():
    assert gates.replication(foretold(), cut()).go
    alone = gates.replication(foretold(), None)
    assert not alone.go and "were not cut" in alone.says
    assert not gates.replication(foretold(second=BAD), cut()).go
    assert not gates.replication(foretold(), cut(ablate=0.7)).go


@pytest.mark.parametrize("ablate", (0.1, 0.7))
def test_reports_are_the_same_for_people_and_machines(ablate):
    decided = gates.decide(fitted(), marked(), foretold(), cut(ablate), cut())
    told = json.loads(json.dumps(gates.as_json(decided)))
    assert [one["go"] for one in told] == [one.go for one in decided]
    assert all(len(x) == 4 for one in told for x in one["evidence"].values() if type(x) is list)
    text = gates.report(decided, "A <model>")
    assert text.count("**go**") == sum(one.go for one in decided)
    assert ("**not shown**" in text) == (not all(one.go for one in decided))
    assert all(len(row.split("|")) == 6 for row in text.splitlines() if row.startswith("| "))


def test_text_from_outside_cannot_become_markup():
    gate = gates.Gate("horizon", False, "<script>alert(1)</script> a|b", {}, "")
    assert "<script>" not in gates.report([gate]) and "a/b" in gates.report([gate])


def test_failure_modes_count_what_fooled_and_was_caught():
    fooled = pd.DataFrame({"fooled": [True, True, False], "caught": [True, False, True]})
    decided = gates.decide(fitted(), marked(), foretold(), cut(), cut())
    figures = gates.figures(decided, fooled)
    assert figures["structure.failure_modes"].value == pytest.approx(1 / 3)
    assert figures["structure.gates"].value == 1.0


@pytest.mark.slow
def test_one_command_goes_from_a_folder_of_sounds_to_gates(tmp_path, monkeypatch, capsys):
    """Chapters 15 to 17 on recordings, small: nobody says what returns in them."""
    forms = ("variations", "through", "AABA")
    for i in range(12):
        clip = music.make(seed=1_000_795_000 + i, form=forms[i % 3], seconds=14.0)
        soundfile.write(tmp_path / f"take {i}.wav", clip.audio, clip.sample_rate)
    plan = planning.Plan(own=0, seeds=1, nothing=1, signals=1, leaks=1, circuit=3)
    monkeypatch.setattr(planning, "STRENGTHS", (3.0,))
    monkeypatch.setattr(gates, "SECONDS", 14.0)
    monkeypatch.setattr(shipped, "STEPS", 40)
    model = models.load("nano")
    published = [shipped.pretrained(model, layer) for layer in (1, 3)]
    found = gates.run(model, tmp_path / "run", str(tmp_path), plan, (2, 2), 16, published=published)
    assert [one.name for one in found["gates"]] == [
        "alignment", "labels", "horizon", "causality", "replication"
    ]  # fmt: skip
    assert found["horizons"]["provenance"]["pieces"] == {"recordings": 12, "own": 0}
    assert found["cutting"]["provenance"]["layer"] == 3
    json.dumps(gates.as_json(found["gates"]))
    assert "could not be asked" in found["gates"][2].says, "14 s have no long horizon"
