"""The SAE benchmarks: what they compare is compared rightly, and a loss shows as a loss."""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from musae_utils import runs, sae

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import kill_survival  # noqa: E402
import sae_peers  # noqa: E402

sys.path.remove(str(BENCHMARKS))


# -- peers -----------------------------------------------------------------------------------------


@given(bottom=st.integers(-12, 0), start=st.integers(-12, 0))
def test_the_best_learning_rate_has_worse_neighbours(bottom, start):
    tried = []

    def score(power):
        tried.append(power)
        return abs(power - bottom) + 0.1

    assert sae_peers.best_rate(score, start) == bottom
    assert {bottom - 1, bottom, bottom + 1} <= set(tried)
    assert len(tried) == len(set(tried)) <= abs(bottom - start) + 3


def test_a_schedule_rises_over_a_twentieth_and_falls_over_a_fifth():
    share = [sae_peers.rise_and_fall(100)(i) for i in range(100)]
    assert share[0] == pytest.approx(0.2) and share[4:80] == [1.0] * 76
    assert share[80] == pytest.approx(20 / 21) and share[99] == pytest.approx(1 / 21)


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.floats(0.5, 2.0))
def test_a_ratio_of_fvu_is_paired(theirs, times):
    value, low, high = sae_peers.ratio([times * f for f in theirs], theirs)
    assert value == pytest.approx(times) and low == pytest.approx(high)


def test_a_ratio_is_as_uncertain_as_its_seeds():
    value, low, high = sae_peers.ratio([0.9, 1.0, 1.1], [1.0, 1.0, 1.0])
    logs = np.log([0.9, 1.0, 1.1])
    assert value == pytest.approx(np.exp(logs.mean()))
    assert math.log(high / value) == pytest.approx(4.303 * logs.std(ddof=1) / 3**0.5, rel=1e-3)
    assert low < 1 < high


def test_ours_is_scored_as_the_metrics_score_it():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 16, generator=generator) @ torch.randn(16, 16, generator=generator) + 3
    trainer = sae_peers.ours("bf16", 16, 64, 4, x, 1e-2, 20, 1, 100)
    before, *_ = sae_peers.unexplained(trainer, x)
    for part in x.split(100) * 3:
        trainer.step(part)
    after, active, alive = sae_peers.unexplained(trainer, x)
    assert after < before and 3.5 < active <= 4 and 0.5 < alive <= 1

    with torch.no_grad():
        told = (x - trainer.read(x)[0]).square().sum() / (x - x.mean(0)).square().sum()
    assert after == pytest.approx(float(told), rel=1e-4)


def rival(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def test_the_board_shows_the_worst_shape_and_the_strongest_rival():
    table = {
        "made": {"date": "2026-01-02", "processor": "Abacus"},
        "speed": {
            "a": {"rounds": 4, "rivals": {"gemm": rival(0.7), "x": rival(5.0), "y": rival(4.0)}},
            "b": {
                "rounds": 4,
                "rivals": {
                    "gemm": rival(0.8),
                    "x": rival(0.9),
                    "y": rival(7.0),
                    sae_peers.MOMENTUM: rival(0.5),
                },
            },
        },
        "fvu": {"ours": [{"setting": "z"}], "rivals": {"x": [rival(0.8)], "y": [rival(1.2), {}]}},
    }
    found = sae_peers.headlines(table)
    assert {name: interval.value for name, (interval, _) in found.items()} == {
        "sae.speed_vs_gemm": 0.7, "sae.speed_vs_gemm.a": 0.7, "sae.speed_vs_gemm.b": 0.8,
        "sae.speed_vs_best_peer": 0.9, "sae.speed_vs_best_peer.a": 4.0,
        "sae.speed_vs_best_peer.b": 0.9, "sae.fvu_vs_best_peer": 1.2,
        "sae.fvu_vs_best_peer.x": 0.8, "sae.fvu_vs_best_peer.y": 1.2,
    }  # fmt: skip
    assert found["sae.speed_vs_best_peer"][1] == "ratio, x at b (Abacus, 2026-01-02)"
    assert found["sae.fvu_vs_best_peer"][1] == "ratio, z against y (Abacus, 2026-01-02)"
    speeds = sae_peers.headlines(table | {"fvu": {}})
    assert speeds == {name: row for name, row in found.items() if "speed" in name}


def test_the_peers_lock_holds_what_was_chosen():
    def read(name):
        lines = (BENCHMARKS / "peers" / name).read_text().splitlines()
        lines = [line.split("#")[0].strip() for line in lines]
        return [Requirement(line) for line in lines if line]

    lock = {canonicalize_name(r.name): r for r in read("requirements.lock")}
    chosen = [canonicalize_name(r.name) for r in read("requirements.in")]
    assert set(chosen) <= set(lock) and "torch" not in lock
    assert set(sae_peers.PACKAGES.values()) <= set(chosen)


# -- kills -----------------------------------------------------------------------------------------


def careful(folder, given):
    """Five parts, each written whole; what is there is kept."""
    with runs.Run(folder, {}) as run:
        for i in range(5):
            if not run.has(f"{i}"):
                time.sleep(0.01)
                run.save(f"{i}", f"part {i}")


def careless(folder, given):
    """Appends, and begins anew after a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(10):
        with open(folder / "all", "a") as file:
            file.write(f"part {i}")
        time.sleep(0.01)


def test_survival_is_told_from_its_absence(tmp_path):
    rng = np.random.default_rng(0)
    count, told = kill_survival.survived(careful, None, tmp_path / "careful", 2, rng)
    assert count == 2 and len({row["instant"] for row in told}) == 2
    count, told = kill_survival.survived(careless, None, tmp_path / "careless", 4, rng)
    assert count == sum(not row["files"] for row in told) < 4
    assert all(row["differ"] == ["all"] for row in told if row["files"])


def test_work_that_fails_in_peace_is_no_survival(tmp_path):
    def fails(folder, given):
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="fails failed without being killed"):
        kill_survival.survived(fails, None, tmp_path, 1, np.random.default_rng(0))


def test_checksums_know_every_file_and_not_the_time(tmp_path):
    config = sae.TrainConfig(sae.SAEConfig(8, 32, k=4), 10, batch_size=32)
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    for name in ("a", "b"):
        sae.train(config, x, tmp_path / name, log_every=1, progress=False)
    one = kill_survival.checksums(tmp_path / "a")
    assert set(one) == {"checkpoint.safetensors", "metrics.jsonl", "sae.safetensors"}
    assert one == kill_survival.checksums(tmp_path / "b")

    metrics = tmp_path / "b" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[3]["loss"] += 1e-6
    metrics.write_text("\n".join(map(json.dumps, rows)))
    content = bytearray((tmp_path / "b" / "sae.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b" / "sae.safetensors").write_bytes(content)
    other = kill_survival.checksums(tmp_path / "b")
    assert {name for name in one if one[name] != other[name]} == {
        "metrics.jsonl", "sae.safetensors",
    }  # fmt: skip
