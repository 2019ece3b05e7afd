"""Training: schedules, sweeps, kills and resumes, what is said when something is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from musae_utils.runs import RunError
from musae_utils.sae import ARCHITECTURES, SAE, SAEConfig, TrainConfig, train
from musae_utils.sae.train import CHECKPOINT

ROOT = Path(__file__).resolve().parents[2]


def config_for(architecture="topk", steps=12, **changes):
    k = 4 if architecture in ("topk", "batch_topk", "matryoshka") else None
    sae = SAEConfig.of(16, 8, k, architecture)
    return TrainConfig(sae, steps, **(dict(batch_size=64, lr=3e-3, warmup=3) | changes))


def activations(n=1000, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(3 * d, d, generator=generator), dim=1)
    f = torch.rand(n, 3 * d, generator=generator)
    f = f * (torch.rand(n, 3 * d, generator=generator) < 0.1)
    return 5 * f @ directions + 1


def quietly(*args, **kwargs):
    return train(*args, progress=False, **kwargs)


def at(step):
    """Says stop before this step."""
    asked = iter(range(1000))
    return lambda: next(asked) == step


def same(a, b):
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns(architecture):
    done = quietly(config_for(architecture, steps=150, lr=1e-2), activations(), log_every=10)
    first, last = done.history[0], done.history[-1]
    assert done.ended == "finished" and done.steps == 150 and last["step"] == 149
    assert last["fvu"] < 0.6 * first["fvu"]
    if done.config.sae.k:
        assert last["l0"] == pytest.approx(4, abs=0.01)
        f = done.sae.encode(activations())
        assert (f > 0).sum(1).float().mean() == pytest.approx(4, rel=0.25)


def test_what_was_planted_is_found():
    """Directions that really make up the data are decoder rows after training."""
    generator = torch.Generator().manual_seed(1)
    planted = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    f = torch.rand(8000, 24, generator=generator) + 0.5
    f = f * (torch.rand(8000, 24, generator=generator) < 0.08)
    config = TrainConfig(SAEConfig(16, 64, k=4), 400, 256, lr=1e-2, warmup=20)
    sae = quietly(config, f @ planted).sae
    cosines = (torch.nn.functional.normalize(sae.W_dec, dim=1) @ planted.T).max(0).values
    assert (cosines > 0.9).float().mean() > 0.9


def test_rates_rise_stay_and_fall():
    config = config_for(steps=100, warmup=10, decay=0.2, lr=1.0)
    rates = [config.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == pytest.approx([(100 - s) / 21 for s in range(80, 100)])
    penalty = dataclasses.replace(config_for("standard"), sparsity=2.0, sparsity_warmup=4)
    assert [penalty.penalty_weight(s) for s in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


# -- one pass for several --------------------------------------------------------------------------


def test_a_sweep_reads_its_data_once_and_changes_nothing():
    sweep = {
        "narrow": config_for(), "batch": config_for("batch_topk", seed=7),
        "l1": config_for("standard", sparsity=0.5), "short": config_for(steps=5),
    }  # fmt: skip
    data, reads = activations(), []

    def passes(number):
        for i in range(0, 960, 64):
            reads.append(number)
            yield data[i : i + 64]

    together = quietly(sweep, passes)
    assert len(reads) == 12
    for name, config in sweep.items():
        alone = quietly(config, passes)
        assert same(alone.sae, together[name].sae), name
        assert together[name].steps == config.steps


def test_data_may_be_a_tensor_a_function_or_an_iterable():
    data = activations(640)
    assert quietly(config_for(steps=30), data.numpy()).steps == 30  # three passes
    batches = [data[i : i + 64] for i in range(0, 640, 64)]
    by_pass = quietly(config_for(), lambda number: batches)
    with pytest.warns(UserWarning, match="ended after 10 of 12 steps"):
        once = quietly(config_for(), iter(batches))
    assert (by_pass.ended, once.ended, once.steps) == ("finished", "data ended", 10)
    bf16 = quietly(config_for(), lambda number: [b.bfloat16() for b in batches])
    assert bf16.ended == "finished"


def test_passes_over_a_tensor_differ_and_repeat():
    data, config = activations(256), config_for(steps=10)
    first, again, other = (quietly(config, data, order=o).sae for o in (0, 0, 1))
    assert same(first, again) and not same(first, other)


# -- kills and resumes -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["topk", "matryoshka", "jumprelu"])
def test_a_stopped_training_goes_on_to_the_same_weights(architecture, tmp_path):
    sweep = {"a": config_for(architecture), "b": config_for("batch_topk", dead_after=100)}
    whole = quietly(sweep, activations(), tmp_path / "whole", log_every=2)
    for stop_at in (1, 7):
        folder = tmp_path / f"stopped-{stop_at}"
        halted = quietly(sweep, activations(), folder, log_every=2, stop=at(stop_at))
        assert {r.ended for r in halted.values()} == {"stopped"}
        assert {r.steps for r in halted.values()} == {stop_at}
        assert SAE.load(folder / "a.safetensors").provenance["ended"] == "stopped"
        done = quietly(sweep, activations(), folder, log_every=2)
        for name in sweep:
            assert same(done[name].sae, whole[name].sae), name
            steps = [row["step"] for row in done[name].history]
            assert steps == [row["step"] for row in whole[name].history]
            assert done[name].history[-1]["loss"] == whole[name].history[-1]["loss"]
        again = quietly(sweep, activations(), folder)  # nothing is left to do
        assert same(again["a"].sae, whole["a"].sae) and again["a"].ended == "finished"
        assert again["a"].history == done["a"].history


def test_a_training_killed_at_any_instant_goes_on_to_the_same_weights(tmp_path):
    program = textwrap.dedent("""
        import sys
        sys.path.insert(0, "tests/sae")
        from test_sae_train import activations, config_for, quietly
        print("begun", flush=True)
        quietly(config_for(steps=150), activations(), sys.argv[1], checkpoint_every=0.0)
    """)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    whole = quietly(config_for(steps=150), activations())
    generator = np.random.default_rng(0)
    for wait in generator.uniform(0.05, 1.5, 4):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "run")], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = quietly(config_for(steps=150), activations(), tmp_path / "run")
    assert same(done.sae, whole.sae)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps)) and steps[-1] == 149


def test_a_kill_between_the_last_step_and_the_sae_loses_nothing(tmp_path, monkeypatch):
    """A checkpoint may fall due right after the last step, before the SAE is written."""
    from musae_utils.runs import Run

    save = Run.save

    def die_before_the_sae(self, name, *args, **kwargs):
        if name == "sae.safetensors":
            raise KeyboardInterrupt
        return save(self, name, *args, **kwargs)

    monkeypatch.setattr(Run, "save", die_before_the_sae)
    with pytest.raises(KeyboardInterrupt):
        quietly(config_for(), activations(), tmp_path / "run", checkpoint_every=0.0)
    monkeypatch.setattr(Run, "save", save)
    done = quietly(config_for(), activations(), tmp_path / "run")
    assert same(done.sae, quietly(config_for(), activations()).sae)


def test_an_interrupt_keeps_what_was_reached(tmp_path):
    seen = []

    def watch(histories):
        seen.append(histories["sae"][-1]["step"])
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    done = quietly(config_for(steps=50), activations(), tmp_path, log_every=1, watch=watch)
    assert (done.ended, done.steps) == ("stopped", 3)
    assert signal.getsignal(signal.SIGINT) is before
    assert quietly(config_for(steps=50), activations(), tmp_path).steps == 50


def test_a_damaged_checkpoint_is_named(tmp_path):
    quietly(config_for(), activations(), tmp_path, stop=at(3))
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged"):
        quietly(config_for(), activations(), tmp_path)


def test_a_folder_of_another_training_is_refused(tmp_path):
    quietly(config_for(), activations(), tmp_path)
    with pytest.raises(RunError, match="lr"):
        quietly(config_for(lr=1e-4), activations(), tmp_path)


# -- saying what is wrong --------------------------------------------------------------------------


def test_divergence_is_said_and_the_last_weights_are_kept():
    with pytest.raises(FloatingPointError, match=r"diverged at step \d+: lower lr"):
        with pytest.warns(UserWarning, match="not a number at step"):
            quietly(config_for(steps=300, lr=1e38, warmup=0), activations())
    with pytest.warns(UserWarning, match="wild: the loss is not a number at step"):
        done = quietly(
            {"wild": config_for(steps=40, lr=1e38, warmup=0), "calm": config_for(steps=40)},
            activations(),
        )
    assert done["wild"].ended == "diverged" and done["calm"].ended == "finished"
    assert done["wild"].steps < 40 and done["calm"].steps == 40


def test_a_loss_that_jumps_is_said():
    data = activations()

    def passes(number):
        for i in range(200):
            yield data[:64] * (100 if i == 150 else 1)

    with pytest.warns(UserWarning, match=r"the loss rose from .* to .* at step 150"):
        quietly(config_for(steps=160), passes)


def test_dead_features_are_said():
    with pytest.warns(UserWarning, match="features are dead"):
        done = quietly(config_for(steps=40, dead_after=64, auxiliary=0), activations(64))
    assert done.history[-1]["dead"] > 12 and done.sae.provenance["dead"] > 12


@pytest.mark.parametrize(
    "data, says",
    [
        (torch.zeros(0, 16), "N > 0"),
        (torch.zeros(5), r"matrix \(N, d\)"),
        (torch.randn(100, 17), r"shape \(64, 17\); the SAE reads batches of shape \(B, 16\)"),
        ([], "the data are empty"),
        (lambda number: [], "the data are empty"),
        ([torch.randn(64, 16), torch.randn(64, 16).index_fill(0, torch.tensor([5]), torch.nan)],
         "Batch 1 of the activations holds NaN or infinite values, the first in row 5"),
        ([torch.full((64, 16), torch.inf)], "Batch 0 .* row 0"),
    ],
)  # fmt: skip
def test_activations_that_cannot_be_used_are_refused(data, says):
    with pytest.raises(ValueError, match=says):
        quietly(config_for(), data)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(steps=0), "steps is a whole number from 1"),
        (dict(batch_size=-1), "batch_size"),
        (dict(lr=0.0), "positive learning rate"),
        (dict(decay=1.5), "share of the steps"),
        (dict(betas=(0.9, 1.0)), "betas"),
        (dict(sparsity=-1.0), "from 0 on"),
        (dict(sparsity=1.0), "sparsity must be 0"),
        (dict(precision="int4"), "precision is one of auto, bf16, fp32"),
        (dict(b_dec="median"), "b_dec is one of"),
        (dict(penalty="l2"), "penalty"),
    ],
)
def test_impossible_trainings_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        config_for(**changes)


def test_sweeps_that_do_not_share_a_pass_are_refused():
    with pytest.raises(ValueError, match="share batch_size"):
        quietly({"a": config_for(), "b": config_for(batch_size=32)}, activations())
    other = TrainConfig(SAEConfig(8, 16, k=2), 5, batch_size=64)
    with pytest.raises(ValueError, match="share d_in"):
        quietly({"a": config_for(), "b": other}, activations())
    with pytest.raises(ValueError, match="nothing to train"):
        quietly({}, activations())
    with pytest.raises(ValueError, match="'a' is not a TrainConfig"):
        quietly({"a": config_for().sae}, activations())


def test_a_training_that_does_not_fit_is_refused_before_it_begins():
    config = TrainConfig(SAEConfig(1024, 10**9, k=32), 10)
    with pytest.raises(MemoryError, match=r"Training topk 1024 → 1000000000, k = 32 would take"):
        quietly(config, torch.randn(10, 1024))


def test_what_led_to_an_sae_stays_with_it(tmp_path):
    hook = {"model": "nano", "layer": 1, "path": "transformer.layers.1", "fingerprint": "ab"}
    quietly(config_for(), activations(), tmp_path, hook_point=hook)
    sae = SAE.load(tmp_path / "sae.safetensors")
    assert sae.hook_point == hook
    assert sae.provenance["train"]["lr"] == 3e-3 and sae.provenance["steps"] == 12
    assert sae.provenance["precision"] in ("bf16", "fp32")
    assert sae.scale != 1


def test_progress_is_shown_with_what_it_takes(capsys):
    train(config_for(), activations())
    printed = "".join(capsys.readouterr())
    assert "1 SAE (topk 16 → 128, k = 4) on 12 × 64 activations" in printed
    assert "of memory" in printed and "FVU" in printed
