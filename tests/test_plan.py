"""Plans: what is counted is what is taken, batches that halve, words that say what was chosen."""

import gc
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_activations import a_clip, tiny

from musae_utils import activations, models, plan, steering, trace
from musae_utils.models.outline import outline
from musae_utils.models.sampling import Noise, generate_codes
from musae_utils.plan import Halving, s1_layers

ROOT = Path(__file__).resolve().parents[1]
FULL = torch.cuda.OutOfMemoryError

# -- batches that halve


@given(rows=st.integers(0, 40), batch=st.integers(1, 20), holds=st.integers(1, 20))
@settings(max_examples=60)
def test_halving_does_every_row_once_in_order_in_batches_that_fit(rows, batch, holds):
    tried = []

    def work(first, after):
        tried.append(after - first)
        if after - first > holds:
            raise FULL("fake")
        return list(range(first, after))

    halving = Halving(batch)
    if batch > holds and rows > holds:
        with pytest.warns(UserWarning, match="do not fit in the GPU's memory"):
            done = halving(work, rows)
    else:
        done = halving(work, rows)
    assert [*itertools.chain(*done)] == [*range(rows)]
    assert all(len(part) <= holds for part in done)
    assert halving.batch <= batch and sum(n > holds for n in tried) <= batch.bit_length()


def test_the_size_that_went_well_is_kept():
    halving, tried = Halving(8), []

    def work(first, after):
        tried.append(after - first)
        if after - first > 3:
            raise FULL("fake")

    with pytest.warns(UserWarning, match="8 rows at once do not fit.*going on with 4"):
        halving(work, 8)
    assert halving.batch == 2 and tried[:3] == [8, 4, 2]
    tried.clear()
    halving(work, 8)
    assert tried == [2, 2, 2, 2]


def test_a_row_that_does_not_fit_alone_is_told_and_other_errors_pass():
    def full(first, after):
        raise FULL("fake")

    with pytest.raises(MemoryError, match="Not even a single row fits"), pytest.warns(UserWarning):
        Halving(4)(full, 4)

    def broken(first, after):
        raise RuntimeError("CUDA error: something else")

    with pytest.raises(RuntimeError, match="something else"):
        Halving(4)(broken, 4)
    for batch in (0, -1, 2.5, "8"):
        with pytest.raises(ValueError, match="from 1 up"):
            Halving(batch)


def holding(monkeypatch, model, rows, seen):
    """The model's transformer runs out of memory with more rows than these."""
    forward = model.lm.transformer.forward

    def limited(x, *args, **kwargs):
        seen.append(len(x))
        if len(x) > rows:
            raise FULL(f"fake: {len(x)} rows")
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(model.lm.transformer, "forward", limited)


def test_a_harvest_goes_on_with_the_rows_of_the_smaller_batch(tmp_path, monkeypatch):
    model, clips = tiny(), [a_clip(i) for i in range(7)]
    make = lambda name, batch: activations.harvest(  # noqa: E731
        model, clips, [0, 2], tmp_path / name, batch=batch, progress=False
    )
    small, seen = make("small", 2), []
    holding(monkeypatch, model, 2, seen)
    with pytest.warns(UserWarning, match="8 rows|7 rows") as said:
        large = make("large", 8)
    assert len(said) == 2 and seen == [7, 3, 1, 1, 1, 1, 1, 1, 1]  # 7 → 3 → 1
    for layer in (0, 2):
        assert torch.allclose(large[layer][:].float(), small[layer][:].float(), atol=1e-2)
    monkeypatch.undo()
    alone = make("alone", 1)
    for layer in (0, 2):
        assert torch.equal(large[layer][:], alone[layer][:])


def test_a_sweep_goes_on_with_the_music_of_the_smaller_batch(tmp_path, monkeypatch):
    model = tiny()
    knob = steering.Patch(1, torch.randn(30, model.dim), strength=0.7)
    rows, seeds = [None, knob, knob, None, knob, knob], [3, 3, 4, 5, 6, 7]
    prompts = ["slow piano", "slow piano", None, "organ", "organ", "drums"]
    play = lambda **more: steering.sweep(model, prompts, rows, 0.3, seeds, **more)  # noqa: E731
    small, seen = play(batch=2), []
    holding(monkeypatch, model, 4, seen)  # both halves of guidance: two rows of music
    with pytest.warns(UserWarning, match="4 rows at once do not fit.*going on with 2"):
        large = play(batch=4, folder=tmp_path)
    assert 8 in seen and set(seen) == {8, 4}
    assert torch.equal(large.codes, small.codes) and torch.equal(large.audio, small.audio)
    assert len(list(tmp_path.glob("rows-*"))) == 2, "files are those of the batch that was asked"
    again = play(batch=4, folder=tmp_path)
    assert torch.equal(again.codes, small.codes)


def test_a_stream_goes_on_as_well(monkeypatch):
    model, clips = tiny(), [a_clip(i) for i in range(4)]
    small = torch.cat(list(activations.stream(model, clips, 1, batch=1)))
    holding(monkeypatch, model, 1, [])
    with pytest.warns(UserWarning, match="4 rows"):
        large = torch.cat(list(activations.stream(model, clips, 1, batch=4)))
    assert torch.equal(large, small)


# -- places


def test_s1_looked_where_its_saes_are_and_other_depths_follow():
    assert s1_layers("facebook/musicgen-small") == (1, 5, 11, 17, 21)
    assert s1_layers("facebook/musicgen-large") == (1, 11, 23, 35, 45)
    assert s1_layers("facebook/musicgen-medium") == s1_layers("facebook/musicgen-melody")
    assert s1_layers("facebook/musicgen-stereo-small") == (1, 5, 11, 17, 21)
    assert s1_layers("nano") == (0, 1, 2, 4, 5)


@given(st.integers(1, 100))
def test_s1_layers_are_layers(depth):
    layers = s1_layers(depth)
    assert layers == tuple(sorted(set(layers))) and set(layers) <= set(range(depth))


# -- memory


def test_what_lives_at_once_is_counted_without_views_and_what_was_there():
    weights = torch.empty(1000, device="meta")

    def work():
        a = weights * 2  # 4,000 bytes
        b = a.view(10, 100)[:5].T  # nothing
        c = b.contiguous()  # 2,000
        del a, b
        d = torch.empty(100, dtype=torch.float64, device="meta")  # 800
        return c + d.float()[:1], weights[10:]  # 400 and 2,000

    assert plan._peak(work) == 6000
    assert plan._peak(lambda: weights[10:]) == 0
    assert plan._peak(lambda: weights + 1, heap=1.5) == 6000


def test_the_meta_device_counts_what_the_cpu_makes():
    model, shape = models.load("nano", device="cpu"), outline("nano").model()
    codes = torch.randint(0, 512, (2, 8, 60))
    for work in (
        lambda m: trace.residuals(m, codes, [1, 3]),
        lambda m: m.codec.decode(codes.to(m.device), None),
        lambda m: m.codec.encode(torch.zeros(1, 1, 16_000, device=m.device)),
    ):
        with torch.no_grad(), plan._Live() as live:
            kept = work(model)
        del kept
        counted = plan._peak(lambda work=work: work(shape))
        assert counted == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("frames", [5, 248, 249, 250, 251, 260, 600])
def test_keys_and_values_are_counted_as_they_are_kept(frames):
    model, rows = tiny(), 2
    shape = outline("nano")
    shape = type(shape)(**{
        **{k: getattr(shape, k) for k in shape.__dataclass_fields__},
        "layers": model.n_layers, "dim": model.dim, "delay": 3, "codebooks": 4,
    })  # fmt: skip
    work = object.__new__(plan._Work)
    work.shape, work.dtype, work.frames = shape, torch.float32, frames
    held = []
    leave = model.lm.reset_streaming
    model.lm.reset_streaming = lambda: (held.append(kept(model.lm)), leave())
    conditions = model.conditions(["slow piano"] * rows, guided=True)
    generate_codes(model.lm, conditions, frames, Noise(0, rows))
    tokens = conditions["description"][0].shape[1]
    assert tokens == shape.tokens
    own, text = held[-1]
    twice = own // (2 * model.n_layers)  # the buffer that is there twice where one grows
    assert work.kv_cache(rows) == own + twice + text


def kept(lm):
    """Bytes of the caches of a language model: its own keys and values, those of the text."""
    own = text = 0
    for module in lm.modules():
        state = getattr(module, "_streaming_state", {})
        own += sum(
            state[f"past_{k}_buffer"].nbytes for k in ("keys", "values") if "past_keys" in state
        )
        text += sum(state[k].nbytes for k in ("keys", "values") if k in state)
    return own, text


@pytest.mark.slow
def test_memory_of_the_nano_is_planned_within_a_fifth():
    """In processes of their own, on one thread: growth over a process that has only imported."""
    made = plan.plan("nano", 10, 32, [1, 3, 5], batch=8, device="cpu", timed=False)
    program = str(ROOT / "benchmarks" / "plan.py")
    for stage in ("play", "harvest"):
        done = subprocess.run(
            [sys.executable, program, "--deed", stage], capture_output=True, text=True, cwd=ROOT,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        taken = json.loads(done.stdout.splitlines()[-1])[f"{stage}.memory"]
        assert getattr(made, stage).memory == pytest.approx(taken, rel=0.2)


def test_streams_do_not_pile_up_between_batches(tmp_path):
    """A trace is a cycle that holds its streams, and Python does not know how large they are."""
    model, clips, counts = tiny(), [a_clip(i) for i in range(12)], []
    read = trace.residuals

    def counted(*args):
        big = (model.dim, 54)
        counts.append(sum(
            1 for o in gc.get_objects()
            if type(o) is torch.Tensor and o.dim() == 3 and o.shape[-1] == big[0]
            and o.shape[1] == big[1]
        ))  # fmt: skip
        return read(*args)

    trace.residuals = counted
    gc.disable()
    try:
        activations.harvest(model, clips, [0, 1, 2], tmp_path / "s", batch=2, progress=False)
    finally:
        gc.enable()
        trace.residuals = read
    assert len(counts) == 6 and max(counts[2:]) <= counts[1]


# -- plans


def test_a_plan_says_what_it_takes_and_what_was_chosen(tmp_path):
    made = plan.plan(
        "facebook/musicgen-small", 10, 1000, device="cpu", folder=tmp_path, timed=False
    )
    assert made.layers == (1, 5, 11, 17, 21)
    rows = (500 - 3) * 1000
    assert made.harvest.disk == 5 * rows * 1024 * 2 + rows * 4 * 2
    assert made.train.disk == 5 * 2 * 1024 * 32_768 * 4
    weights = made.parameters["language model"] + made.parameters["codec"]
    assert made.weights == 4 * (weights + made.parameters["text encoder"])
    assert made.memory == max(stage.memory for stage in made.stages.values())
    text = str(made)
    for word in ("facebook/musicgen-small on cpu in float32", "420.4 M", "harvest", "497,000 rows",
                 "Device: cpu, as asked", "as audiocraft has it"):  # fmt: skip
        assert word in text
    assert all(stage.seconds is None for stage in made.stages.values())


def test_memory_grows_with_what_is_asked_and_half_precision_saves_it():
    ask = lambda **more: plan.plan(  # noqa: E731
        **{"name": "nano", "seconds": 1, "clips": 2, "batch": 4, "device": "cpu", "timed": False,
           **more})  # fmt: skip
    base = ask()
    assert ask(batch=8).play.memory > base.play.memory
    assert ask(seconds=8).kv_cache > base.kv_cache
    assert ask(d_sae=512).train.memory < base.train.memory
    assert ask(layers=[3]).harvest.memory < base.harvest.memory
    half = ask(dtype=torch.float16)
    assert half.weights < base.weights and half.kv_cache == base.kv_cache / 2


def test_the_largest_batch_that_fits_is_chosen_and_what_does_not_fit_is_told(monkeypatch):
    ask = lambda **more: plan.plan("nano", 2, 4, [3], device="cpu", timed=False, **more)  # noqa: E731
    needed = {batch: ask(batch=batch) for batch in (4, 8)}
    room = lambda free: monkeypatch.setattr(plan, "_free", lambda device: (free, "in memory"))  # noqa: E731
    room(int(needed[8].play.memory / plan.ROOM) + 1)
    assert ask().play.batch == 8 and "Batches: 8 rows to play" in str(ask()) and ask().fits
    room(int(needed[8].play.memory / plan.ROOM) - 10)
    assert ask().play.batch == 4
    room(10**6)
    made = ask()
    assert made.play.batch == 1 and not made.fits
    assert "DOES NOT FIT: to load takes" in str(made) and "1.0 MB are free" in str(made)


def test_a_full_disk_is_told(monkeypatch):
    usage = type(plan.shutil.disk_usage("."))
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    made = plan.plan("nano", clips=3, device="cpu", timed=False)
    assert not made.fits and "the disk has 0.0 MB free" in str(made)


@pytest.mark.parametrize(
    "given, word",
    [
        (dict(name="musicgen-smal"), "Did you mean"),
        (dict(seconds=0), "seconds is a length"),
        (dict(seconds=float("nan")), "seconds is a length"),
        (dict(seconds=31), "plays up to 30 s"),
        (dict(clips=0), "clips is a whole number"),
        (dict(batch=0), "batch is a whole number"),
        (dict(d_sae=-1), "d_sae is a whole number"),
        (dict(layers=[6]), "has the layers 0 to 5; asked for was 6"),
        (dict(layers=[]), "has the layers 0 to 5"),
        (dict(device="gpu"), "'cuda', 'mps' or 'cpu'"),
        (dict(dtype=torch.bfloat16), "float32 or torch.float16"),
    ],
)
def test_wrong_requests_are_answered(given, word):
    with pytest.raises(ValueError, match=word):
        plan.plan(**{"timed": False, **given})


def test_a_plan_knows_its_stages():
    made = plan.plan("nano", clips=1, device="cpu", timed=False)
    with pytest.raises(AttributeError, match="stages are load, play, harvest, train"):
        made.dance  # noqa: B018


def test_times_are_measured_and_scale_with_the_work():
    base = plan.plan("nano", 1, 4, [0], batch=2, device="cpu")
    assert all(getattr(base, stage).seconds > 0 for stage in ("play", "harvest", "train"))
    more = plan.plan("nano", 1, 40, [0], batch=2, device="cpu")
    assert more.play.seconds == base.play.seconds, "what was measured is kept"
    assert more.harvest.seconds == pytest.approx(10 * base.harvest.seconds, rel=0.01)
    deep = plan.plan("nano", 1, 4, [5], batch=2, device="cpu")
    assert deep.harvest.seconds > base.harvest.seconds


def test_primed_caches_are_as_long_as_said():
    from musae_utils.models.compat import prime_streaming

    model = tiny()
    x, text = torch.zeros(2, 1, model.dim), torch.zeros(2, 32, model.dim)
    with torch.no_grad(), model.lm.streaming():
        prime_streaming(model.lm, 2, 40)
        model.lm.transformer(x, cross_attention_src=text)
        (first, *_) = (
            m for m in model.lm.modules() if "past_keys" in getattr(m, "_streaming_state", {})
        )
        assert first._streaming_state["past_keys"].shape[2] == 41
    assert not first._streaming_state


def test_from_a_shell(capsys):
    plan.main(["nano", "--clips", "3", "--seconds", "2", "--device", "cpu", "--untimed"])
    said = capsys.readouterr().out
    assert said.startswith("nano on cpu in float32") and "3 clips of 2 s" in said
    with pytest.raises(SystemExit, match="Did you mean"):
        plan.main(["musicgen-smal"])
    assert np.isfinite(plan.plan("nano", device="cpu", timed=False).memory)
