"""Stores of activations: the right rows, whole files or none, kills, damage, shuffles, streams."""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
import weakref

import numpy as np
import psutil
import pytest
import torch

from musae_utils.models import compat  # noqa: F401  # isort: skip  (before audiocraft)
import soundfile
from audiocraft.models import MusicGen
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils import activations, models, runs, trace
from musae_utils.activations import ActivationStore, Frames, harvest, stream, write_store
from musae_utils.models import MusicModel, nano
from musae_utils.music import Clip, Note, Truth
from musae_utils.runs import RunError

K, CARD, DIM, LAYERS, RATE = 4, 32, 32, 3, 16_000
CODEC = dict(
    encoder_width=8, decoder_width=8, encoder_dilations=[1], decoder_dilations=[1], n_fft=512,
    dim=8, codebooks=K, cardinality=CARD, griffin_lim_steps=0,
)  # fmt: skip


def tiny(seed=0):
    torch.manual_seed(seed)
    shape = dict(dim=DIM, layers=LAYERS, heads=2, codebooks=K, cardinality=CARD)
    parts = nano.build_codec(CODEC).eval(), nano.build_lm(shape).eval()
    return MusicModel("tiny", MusicGen("tiny", *parts, max_duration=30), torch.float32)


@pytest.fixture(scope="module")
def model():
    return tiny()


def truth_of(n, rng):
    frames = {
        "tonic": np.full(n, rng.integers(12), np.int16),
        "beat": rng.random(n, np.float32),
        "drums": rng.random(n) < 0.5,
        "active": rng.random((n, 128)) < 0.1,
    }
    chords = [{"start": 0.0, "end": 0.5, "root": np.int64(3)}]
    notes = [Note(0.1, 0.3, 60, 90, "melody"), Note(1 / 3, 0.7, 62, 80, "drums")]
    return Truth(frames, {"key": "D minor", "drums": True, "chords": chords}, notes)


def a_clip(i, seconds=1.0, known=True):
    rng = np.random.default_rng(i)
    audio = rng.normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    truth = truth_of(round(seconds * 50), rng) if known else None
    provenance = {"source": "composed", "seed": i // 2}
    return Clip(audio, RATE, truth, ("piano", "organ")[i % 2], provenance, f"clip {i}")


LENGTHS = (1.0, 1.0, 0.6, 0.6, 0.6, 1.4, 1.0, 0.2)


@pytest.fixture(scope="module")
def clips():
    return [a_clip(i, seconds) for i, seconds in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def store(model, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    settings = dict(rows_per_shard=60, batch=2, dtype="float32", progress=False)
    return harvest(model, clips, ["embed", 0, 2], folder, **settings)


def checksums(folder):
    return {p.name: runs.sha256(p) for p in folder.glob("*") if p.name not in RECORDS}


RECORDS = ("run.json", "artifacts.json", ".lock")  # they tell of sessions


# -- a store whose every row says which row it is


def numbered(clips, first):
    """Row t of clip i is (i, t)."""
    return [
        Frames({"a": torch.stack([torch.full((n,), first + i), torch.arange(n)], 1).float(),
                "b": torch.full((n, 1), first + i).float()})
        for i, n in ((i, round(clip.seconds * 50)) for i, clip in enumerate(clips))
    ]  # fmt: skip


def write(folder, clips, read=numbered, **settings):
    settings = dict(dtype="float32", rows_per_shard=100, batch=3, progress=False) | settings
    return write_store(folder, clips, read, {"a": "both", "b": "clip"}, 50.0, **settings)


def many(n=24):
    return [a_clip(i, 0.1 + 0.1 * (i * 7 % 13), known=False) for i in range(n)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain") / "store", many())


# -- which rows


def test_rows_are_the_residuals_at_the_positions_of_frames(model, clips, store):
    assert store.n_rows == len(store) == sum(round(s * 50) - K + 1 for s in LENGTHS)
    assert [c.name for c in store.clips] == [c.name for c in clips]
    for clip, kept in zip(clips, store.clips, strict=True):
        codes = model.encode(clip)
        assert torch.equal(kept.codes, codes[0])
        n = codes.shape[-1]
        streams = trace.residuals(model, codes, ["embed", 0, 2])
        for layer, residual in streams.items():
            expected = trace.align(residual, n, K - 1)[0, : n - K + 1]
            assert torch.equal(store[layer][kept.rows], expected)


@given(frames=st.integers(K, 40))
@settings(max_examples=20, deadline=None)
def test_rows_are_the_positions_without_special_tokens(frames):
    lm = tiny_lm()
    codes = torch.zeros(1, K, frames, dtype=torch.long)
    pattern = lm.pattern_provider.get_pattern(frames)
    sequence, _, _ = pattern.build_pattern_sequence(codes, lm.special_token_id)
    music = (sequence[0] != lm.special_token_id).all(0).float()[:, None]
    rows = trace.align(music, frames, K - 1)[: frames - K + 1]
    assert rows.all() and rows.sum() == music.sum()


def tiny_lm(_kept=[]):  # noqa: B006  (built once)
    if not _kept:
        _kept.append(tiny().lm)
    return _kept[0]


def test_several_layers_take_one_pass_that_stops_after_the_deepest(model, clips, store, tmp_path):
    passes = {layer: 0 for layer in range(LAYERS)}

    def count(layer):
        def hook(*_):
            passes[layer] += 1

        return model.lm.transformer.layers[layer].register_forward_pre_hook(hook)

    handles = [count(layer) for layer in passes]
    both = harvest(model, clips, [0, 1], tmp_path / "both", batch=2, progress=False)
    for handle in handles:
        handle.remove()
    assert passes == {0: 6, 1: 6, 2: 0}  # batches of up to two neighbours of one length
    for layer in (0, 1):
        alone = harvest(model, clips, layer, tmp_path / f"{layer}", batch=2, progress=False)
        assert torch.equal(both[layer][:], alone[layer][:])
    assert both.dtype == torch.bfloat16
    assert torch.equal(both[0][:], store[0][:].bfloat16())


def test_a_row_does_not_depend_on_what_it_is_batched_with(model, clips, store, tmp_path):
    for batch in (1, 8):
        other = harvest(
            model, clips, 2, tmp_path / f"{batch}", batch=batch, dtype="float32", progress=False
        )
        torch.testing.assert_close(other[2][:], store[2][:], rtol=0, atol=1e-5)


def test_prompts_are_heard_and_kept(model, clips, store, tmp_path):
    settings = dict(dtype="float32", progress=False, batch=2)
    told = harvest(model, clips, 2, tmp_path / "told", prompts="captions", **settings)
    listed = [clip.caption for clip in clips]
    same = harvest(model, clips, 2, tmp_path / "same", prompts=listed, **settings)
    assert torch.equal(told[2][:], same[2][:]) and not torch.equal(told[2][:], store[2][:])
    assert [c.prompt for c in told.clips] == listed and store.clips[0].prompt is None
    with pytest.raises(ValueError, match="There are 3 prompts for 8 clips"):
        harvest(model, clips, 2, tmp_path / "x", prompts=["piano"] * 3)
    with pytest.raises(ValueError, match="more clips than the 3 prompts"):
        harvest(model, iter(clips), 2, tmp_path / "y", prompts=["piano"] * 3, progress=False)
    with pytest.raises(ValueError, match=r"'captions', or a list .*not 'slow organ'"):
        harvest(model, clips, 2, tmp_path / "z", prompts="slow organ")


def test_a_folder_of_sound_is_harvested(model, tmp_path):
    (tmp_path / "music").mkdir()
    for i, seconds in enumerate((0.5, 1.0)):
        sound = np.stack([a_clip(i, seconds).audio] * 2, 1)
        soundfile.write(tmp_path / "music" / f"{i}.flac", sound, RATE)
    store = harvest(model, tmp_path / "music", 1, tmp_path / "store", progress=False)
    assert [c.name for c in store.clips] == ["0", "1"] and store.n_rows == 25 + 50 - 2 * (K - 1)
    assert store.clips[0].truth is None and store.clips[0].group.startswith("recording ")
    assert store.clips[0].provenance["original_channels"] == 2
    with pytest.raises(ValueError, match="no 'tonic' for clip '0', which has no truth"):
        store.labels("tonic")


def test_a_codecs_latents_fit_as_well(model, clips, tmp_path):
    def latents(clips, first):
        return [Frames({"latents": model.latents(clip)[0].T}) for clip in clips]

    store = write_store(
        tmp_path / "store", clips, latents, {"latents": "the codec's encoder"}, model.frame_rate,
        dtype="float32", progress=False,
    )  # fmt: skip
    assert store.d == 8 and store.n_rows == sum(round(s * 50) for s in LENGTHS)
    expected = model.latents(clips[3])[0].T
    torch.testing.assert_close(store["latents"][store.clips[3].rows], expected)
    assert store.clips[0].codes is None and len(store.labels("tonic")) == store.n_rows
    with pytest.raises(ValueError, match="no place in a language model: the codec's encoder"):
        store.hook_point("latents")
    with pytest.raises(ValueError, match="holds latents; it has no 2"):
        store[2]


# -- what is known of a row


def test_what_is_known_comes_back(clips, store):
    for clip, kept in zip(clips, store.clips, strict=True):
        assert (kept.caption, kept.provenance) == (clip.caption, clip.provenance)
        truth = kept.truth
        assert truth.notes == clip.truth.notes and truth.clip["key"] == "D minor"
        assert truth.clip["chords"] == [{"start": 0.0, "end": 0.5, "root": 3}]
        assert truth.frames.keys() == clip.truth.frames.keys()
        for name, track in clip.truth.frames.items():
            assert truth.frames[name].dtype == track.dtype
            np.testing.assert_array_equal(truth.frames[name], track)


def test_the_index_and_labels_of_rows(clips, store):
    index = store.index()
    assert list(index.columns) == ["clip", "name", "group", "frame", "seconds"]
    row = store.clips[5].start + 7
    line = index.iloc[row]
    assert (line["clip"], line["name"], line["frame"]) == (5, "clip 5", 7)
    assert line["group"] == "composition 2" and line["seconds"] == pytest.approx(7 / 50)
    for name in ("beat", "active"):
        track = clips[5].truth.frames[name]
        np.testing.assert_array_equal(store.labels(name)[row], track[7])
    with pytest.raises(ValueError, match=r"no 'mood' for clip 'clip 0', which has tonic, beat"):
        store.labels("mood")


@given(rate=st.sampled_from([12.5, 21.5, 25.0, 50.0, 75.0, 86.1]))
@settings(max_examples=6, deadline=None)
def test_labels_at_another_frame_rate_are_those_of_the_moment(tmp_path_factory, rate):
    clip = a_clip(0, 2.0)
    clip.truth.frames["moment"] = np.arange(100, dtype=np.float64) / 50

    def read(clips, first):
        return [Frames({"x": torch.zeros(int(2 * rate), 1)})]

    folder = tmp_path_factory.mktemp("rate") / "store"
    store = write_store(folder, [clip], read, {"x": None}, rate, progress=False)
    middle = store.index()["seconds"] + 0.5 / rate
    apart = middle - store.labels("moment")
    assert (apart >= -1e-9).all() and (apart <= 1 / 50 + 1e-9).all()


def test_clips_without_truth_may_stand_among_others(model, tmp_path):
    clips = [a_clip(i, 0.4, known=i % 2 == 1) for i in range(4)]
    clips[3].truth.frames.pop("drums")
    store = harvest(model, clips, 0, tmp_path / "store", progress=False)
    assert [c.truth is None for c in store.clips] == [True, False, True, False]
    assert "drums" not in store.clips[3].truth.frames
    for i in (1, 3):
        np.testing.assert_array_equal(
            store.clips[i].truth.frames["active"], clips[i].truth.frames["active"]
        )


def test_the_composition_of_a_clip():
    def of(**provenance):
        return activations.composition(Clip(np.zeros(9, np.float32), provenance=provenance))

    assert of(source="composed", seed=3) == "composition 3"
    assert of(source="recording", sha256="ab") == "recording ab"
    assert of(source="music21 corpus: bwv1", title="x") == "music21 corpus: bwv1"
    assert of(source="composed", seed=3, group="pair 7") == "pair 7"
    assert of(model="nano", seed=1).startswith("clip ") and of(seed=1) != of(seed=2)


# -- reading in any order


@given(
    index=st.one_of(
        st.slices(400),
        st.lists(st.integers(-300, 300), max_size=40),
        st.integers(-300, 300),
    )
)
@settings(max_examples=60, deadline=None)
def test_rows_are_indexed_like_an_array(plain, index):
    whole = np.concatenate([x.rows["a"].numpy() for x in numbered(many(), 0)])
    assert plain["a"].shape == whole.shape and plain.widths == {"a": 2, "b": 1}
    index = np.array(index, int) if isinstance(index, list) else index
    np.testing.assert_array_equal(plain["a"][index].numpy(), whole[index])


def test_masks_and_wrong_indices(plain):
    mask = np.zeros(plain.n_rows, bool)
    mask[[3, 200]] = True
    assert torch.equal(plain.rows("b", mask), plain["b"][[3, 200]])
    assert plain["a"][np.zeros((2, 3), int)].shape == (2, 3, 2)
    for wrong, kind in [(10**6, IndexError), (mask[:-1], ValueError), ([0.5], ValueError)]:
        with pytest.raises(kind, match=r"no row 1000000|a mask of 810; not an array of"):
            plain["a"][wrong]
    with pytest.raises(ValueError, match="hooks differ in width"):
        _ = plain.d


@given(
    size=st.integers(1, 300), buffer=st.integers(1, 500), seed=st.integers(0, 9),
    epochs=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_an_epoch_has_each_row_once(plain, size, buffer, seed, epochs):
    settings = dict(batch_size=size, seed=seed, epochs=epochs, buffer_rows=buffer)
    batches = list(plain.batches("a", **settings))
    an_epoch = -(-plain.n_rows // size)
    assert len(batches) == epochs * an_epoch
    orders = []
    for epoch in range(epochs):
        rows = torch.cat(batches[epoch * an_epoch : (epoch + 1) * an_epoch])
        assert {len(x) for x in batches[epoch * an_epoch : -1]} <= {size, plain.n_rows % size}
        assert sorted(map(tuple, rows.tolist())) == list(map(tuple, plain["a"][:].tolist()))
        orders.append(rows)
    assert all(not torch.equal(x, y) for x, y in itertools.combinations(orders, 2))
    # a training that was stopped anywhere goes on with the batch that was next
    start = seed * len(batches) // 10
    for x, y in zip(plain.batches("a", start=start, **settings), batches[start:], strict=True):
        assert torch.equal(x, y)


def test_the_order_is_the_seeds_and_mixes(plain):
    first, again, other = (next(plain.batches("a", 64, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    together = next(plain.batches(["a", "b"], 64))
    assert torch.equal(together["a"], first) and torch.equal(together["b"][:, 0], first[:, 0])
    endless = itertools.islice(plain.batches("a", 100, epochs=None), 40)
    assert sum(len(x) for x in endless) > 4 * plain.n_rows
    # even a buffer of a third of the rows mixes clips from all over the store
    for batch in itertools.islice(plain.batches("a", 60, buffer_rows=100), 3):
        assert len(batch[:, 0].unique()) >= 5
    for wrong in (dict(batch_size=0), dict(epochs=0), dict(buffer_rows=0), dict(start=-1)):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is a"):
            plain.batches("a", **wrong)


def test_halves_share_no_composition(plain):
    train, test = plain.split(0.75, seed=1)
    groups = [{c.group for c in half.clips} for half in (train, test)]
    assert not groups[0] & groups[1] and (len(groups[0]), len(groups[1])) == (9, 3)
    assert train.n_rows + test.n_rows == plain.n_rows
    for half in (train, test):
        assert set(half["b"][:].flatten().tolist()) == {
            float(c.name.split()[1]) for c in half.clips
        }  # fmt: skip
        frames = torch.tensor(half.index()["frame"].to_numpy())
        assert torch.equal(half["a"][:][:, 1], frames.float())
        seen = torch.cat(list(half.batches("a", 50)))
        assert sorted(seen.tolist()) == sorted(half["a"][:].tolist())
        kept = half.clips[-1]
        assert (half["b"][kept.rows] == float(kept.name.split()[1])).all()
    assert {c.name for c in plain.split(0.75, seed=1)[0].clips} == {c.name for c in train.clips}
    assert {c.name for c in plain.split(0.75, seed=2)[0].clips} != {c.name for c in train.clips}
    for fraction in (0.0, 1.0, 0.01):
        with pytest.raises(ValueError, match="leaves one side of the split empty"):
            plain.split(fraction)


# -- without a disk


def test_a_stream_has_the_rows_of_a_store(model, clips, store):
    expected = sorted(map(tuple, store[2][:].tolist()))
    streamed = {}
    for seed in (0, 1):
        batches = list(stream(model, iter(clips), 2, 32, 80, seed, dtype="float32", batch=2))
        assert [len(x) for x in batches[:-1]] == [32] * (len(batches) - 1)
        streamed[seed] = torch.cat(batches)
        assert sorted(map(tuple, streamed[seed].tolist())) == expected
    assert not torch.equal(streamed[0], streamed[1])
    both = list(stream(model, clips, ["embed", 2], 32, 80, 0, dtype="float32", batch=2))
    assert torch.equal(torch.cat([x[2] for x in both]), streamed[0])
    row = {tuple(x): tuple(e) for x, e in zip(store[2][:].tolist(), store["embed"][:].tolist(),
                                              strict=True)}  # fmt: skip
    for batch in both:
        for deep, embedded in zip(batch[2].tolist(), batch["embed"].tolist(), strict=True):
            assert row[tuple(deep)] == tuple(embedded)
    assert next(stream(model, clips, 0, 8)).dtype == torch.bfloat16


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=30), size=st.integers(1, 50),
    buffer=st.integers(1, 200), seed=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_buffer_gives_each_row_once(lengths, size, buffer, seed):
    rows = torch.arange(sum(lengths))
    held = 0

    def parts():
        nonlocal held
        for part in rows.split(lengths):
            held += len(part)
            yield {"x": part}

    out = []
    for batch in activations._mixed(parts(), size, buffer, seed):
        held -= len(batch["x"])
        assert held <= buffer + size + max(lengths)
        out += batch["x"].tolist()
        assert len(batch["x"]) == size or len(out) == len(rows)
    assert sorted(out) == rows.tolist()


# -- size, time and memory


def test_it_says_what_it_will_take(model, clips, tmp_path, capsys):
    harvest(model, clips, 0, tmp_path / "a")
    said = capsys.readouterr()
    assert "rows and" in said.out and "8 clips make about" in said.out and "free" in said.out
    assert "take about" in said.out and "harvesting: 100%" in said.err
    harvest(model, iter(clips), 0, tmp_path / "b")
    assert "s a clip." in capsys.readouterr().out
    harvest(model, iter(clips), 0, tmp_path / "c", progress=False)
    said = capsys.readouterr()
    assert not said.out and not said.err
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b") == checksums(tmp_path / "c")


def test_memory_does_not_grow_with_the_clips(tmp_path):
    process, memory, alive = psutil.Process(), [], []

    def clips():
        for i in range(1200):
            clip = a_clip(i, 2.0, known=i % 4 == 0)
            alive.append(weakref.ref(clip))
            memory.append(process.memory_info().rss)
            yield clip
            del clip
            assert sum(ref() is not None for ref in alive[-30:]) <= 8 + 2  # a batch and its ends

    def read(clips, first):
        return [Frames({"x": torch.zeros(100, 64)}) for _ in clips]

    write_store(tmp_path / "s", clips(), read, {"x": 0}, 50.0, rows_per_shard=1000, progress=False)
    passed_by = 800 * (a_clip(0, 2.0).audio.nbytes + 100 * 64 * 2)
    growth = np.mean(memory[-50:]) - np.mean(memory[400:450])
    assert passed_by > 100e6 and growth < 0.1 * passed_by


# -- killed, and taken up again


def fork(work, *arguments):
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def test_killed_before_any_change_of_the_disk_it_goes_on_to_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "versions", dict)  # most of what a tiny run takes
    clips = many(6)
    right = checksums(write(tmp_path / "right", clips).folder)
    assert len(right) == 3  # two shards and store.json

    def until(n, folder):
        """Write, and die before the n-th time that something reaches the disk."""
        left = itertools.count(n, -1)

        def deadly(call):
            def made(*arguments):
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments)

            return made

        os.replace, os.fsync = deadly(os.replace), deadly(os.fsync)
        write(folder, clips)
        os._exit(0)

    for n in itertools.count():
        folder = tmp_path / f"{n}"
        process = fork(until, n, folder)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if not (folder / "store.json").exists() and (folder / "run.json").exists():
            with pytest.raises(RunError, match="not finished"):
                ActivationStore.open(folder)
        resumed = write(folder, iter(clips))
        assert checksums(folder) == right and resumed.n_rows == sum(c.n_rows for c in resumed.clips)
        shutil.rmtree(folder)
    assert n > 20


def test_killed_at_random_a_harvest_ends_with_the_same_files(model, tmp_path):
    clips = [a_clip(i, 1.0) for i in range(60)]
    settings = dict(rows_per_shard=100, batch=2, progress=False)
    start = time.monotonic()
    right = checksums(harvest(model, clips, [0, 2], tmp_path / "right", **settings).folder)
    whole = time.monotonic() - start
    rng, killed = np.random.default_rng(), 0

    def work():
        harvest(model, clips, [0, 2], tmp_path / "killed", **settings)
        os._exit(0)

    while killed < 5:
        process = fork(work)
        process.join(rng.uniform(0, whole / 2))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        killed += 1
    harvest(model, clips, [0, 2], tmp_path / "killed", **settings)
    assert killed and checksums(tmp_path / "killed") == right


def test_what_is_there_is_not_read_again(tmp_path):
    clips, seen = many(12), []

    def watched(batch, first):
        seen.extend(clip.name for clip in batch)
        return numbered(batch, first)

    def interrupted():
        yield from clips[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", interrupted(), watched)
    before, whole = len(seen), write(tmp_path / "whole", clips)
    seen.clear()
    assert write(tmp_path / "s", iter(clips), watched).n_rows == whole.n_rows
    assert 0 < before and len(seen) < 12
    seen.clear()
    write(tmp_path / "s", (clip for clip in clips), watched)  # finished: opened
    assert not seen
    (tmp_path / "s" / "rows-00001.safetensors").unlink()
    write(tmp_path / "s", clips, watched)
    assert 0 < len(seen) < 12 and checksums(tmp_path / "s") == checksums(tmp_path / "whole")


def test_other_clips_are_refused(tmp_path):
    clips = many(12)

    def interrupted():
        yield from clips[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", interrupted())
    with pytest.raises(RunError, match="holds 'clip 0' where 'clip 1' is given now"):
        write(tmp_path / "s", clips[1:])
    with pytest.raises(RunError, match="holds 'clip 1' where no more clips are given now"):
        write(tmp_path / "s", clips[:1])
    with pytest.raises(RunError, match=r"batch = 3, and now batch = 5"):
        write(tmp_path / "s", clips, batch=5)
    write(tmp_path / "s", clips)
    for others in (clips[1:], clips[:4], (clip for clip in clips[1:])):
        with pytest.raises(RunError, match="finished store of 12 clips that begins with 'clip 0'"):
            write(tmp_path / "s", others)


# -- bad input


def test_a_store_of_another_model_is_refused(model, clips, store):
    other = tiny(seed=1)
    assert ActivationStore.open(store.folder, model).n_rows == store.n_rows
    with pytest.raises(ValueError, match="made on other weights than 'tiny' has"):
        ActivationStore.open(store.folder, other)
    with pytest.raises(RunError, match=r"holds a run with .*fingerprint = .*another folder"):
        harvest(other, clips, ["embed", 0, 2], store.folder, batch=2, rows_per_shard=60,
                dtype="float32", progress=False)  # fmt: skip
    here, there = (trace.HookPoint.of(m, 2) for m in (model, other))
    assert store.hook_point(2) == here and torch.equal(store[here][:5], store[2][:5])
    assert store.hook_point("embed").layer == -1
    with pytest.raises(ValueError, match=f"has no .*{there.fingerprint}"):
        store[there]
    with pytest.raises(ValueError, match=r"holds transformer of tiny .*; it has no 1\."):
        store[1]


@pytest.fixture
def copied(plain, tmp_path):
    return shutil.copytree(plain.folder, tmp_path / "copy")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_a_flipped_bit_is_found(plain, tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("flip") / "copy"
    shutil.copytree(plain.folder, folder)
    file = folder / "rows-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"rows-00001\.safetensors is damaged or was replaced"):
        ActivationStore.open(folder)


def test_files_that_are_cut_or_gone_are_named(copied):
    file, manifest = copied / "rows-00002.safetensors", copied / "store.json"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    for verify in (True, False):
        with pytest.raises(RunError, match=r"rows-00002\.safetensors is damaged"):
            ActivationStore.open(copied, verify=verify)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"rows-00002\.safetensors is missing: harvest"):
        ActivationStore.open(copied)
    file.write_bytes(data)
    manifest.write_text(json.dumps(runs.load_json(manifest) | {"shards": []}))
    with pytest.raises(RunError, match=r"store\.json is damaged"):
        ActivationStore.open(copied)
    manifest.unlink()
    with pytest.raises(RunError, match="not finished: harvest with the same clips again"):
        ActivationStore.open(copied)


def test_what_is_no_store_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no activation store"):
        ActivationStore.open(tmp_path)
    runs.Run(tmp_path / "run", {"steps": 3}).close()
    with pytest.raises(RunError, match="a run folder, but holds no activation store"):
        ActivationStore.open(tmp_path / "run")


def test_no_clips_and_no_such_layer(model, clips, tmp_path):
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="no clips to harvest"):
            harvest(model, nothing, 0, tmp_path / "s")
        with pytest.raises(ValueError, match="no clips to stream"):
            stream(model, nothing, 0)
    with pytest.raises(ValueError, match=r"layers 0 to 2, and 'embed'.*there is no 3"):
        harvest(model, clips, [0, 3], tmp_path / "s")
    with pytest.raises(ValueError, match="Which layers"):
        harvest(model, clips, [], tmp_path / "s")
    with pytest.raises(ValueError, match="number 0 is ndarray"):
        harvest(model, [clips[0].audio], 0, tmp_path / "t", progress=False)
    with pytest.raises(ValueError, match="bfloat16 or float32, not 'int8'"):
        harvest(model, clips, 0, tmp_path / "s", dtype="int8")
    with pytest.raises(ValueError, match="batch is a whole number from 1 up, not 0"):
        harvest(model, clips, 0, tmp_path / "s", batch=0)
    with pytest.raises(ValueError, match="rows_per_shard is a whole number from 1 up, not 0"):
        harvest(model, clips, 0, tmp_path / "s", rows_per_shard=0)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "seconds, said",
    [(0.01, r"'clip 5' cannot be read\. The sound lasts"), (0.05, "'clip 5' is too short: it"),
     (31.0, "'clip 5' lasts 31 s, and tiny reads up to 30 s: cut it")],
)  # fmt: skip
def test_a_clip_too_short_or_too_long_is_named(model, tmp_path, seconds, said):
    with pytest.raises(ValueError, match=said):
        harvest(model, [a_clip(1), a_clip(5, seconds)], 0, tmp_path / "s", progress=False)


def test_the_shortest_clip_makes_one_row(model, tmp_path):
    store = harvest(model, a_clip(0, K / 50), 0, tmp_path / "s", progress=False)
    assert store.n_rows == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_no_numbers_name_clip_and_layer(
    model, clips, tmp_path, monkeypatch, value
):
    honest = trace.residuals

    def spoilt(model, codes, layers, prompts):
        streams = honest(model, codes, layers, prompts)
        for layer, x in streams.items():
            if layer.layer == 2 and len(x) == 2:
                x[1, 10, 3] = value
        return streams

    monkeypatch.setattr(trace, "residuals", spoilt)
    said = r"'clip 1' gives activations at transformer\.layers\.2 that are NaN or infinite"
    with pytest.raises(ValueError, match=said):
        harvest(model, clips, [0, 2], tmp_path / "s", progress=False)
    with pytest.raises(ValueError, match=said):
        next(stream(model, clips, [0, 2]))
    clip = a_clip(3)
    clip.audio[100] = value
    with pytest.raises(ValueError, match=r"'clip 3' cannot be read.*not numbers"):
        harvest(model, [clip], 0, tmp_path / "t", progress=False)


def test_a_reader_that_forgets_a_hook_is_told(tmp_path):
    def forgetful(clips, first):
        return [Frames({"a": frames.rows["a"]}) for frames in numbered(clips, first)]

    with pytest.raises(ValueError, match="for each of a, b; for clip 'clip 0' it gave"):
        write(tmp_path / "s", many(2), forgetful)


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    clips = [a_clip(i, known=False) for i in range(60)]
    with pytest.raises(RunError, match=r"will take \d\d\.\d kB and its disk has 20 kB free"):
        write(tmp_path / "s", clips, progress=True)
    assert not list((tmp_path / "s").glob("*.safetensors"))
    monkeypatch.undo()
    assert write(tmp_path / "s", clips).n_rows == 60 * 50


def test_a_disk_that_fills_up_is_said_and_costs_one_shard(tmp_path, monkeypatch):
    whole, honest, calls = write(tmp_path / "whole", many()), activations.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(tensors, path)

    monkeypatch.setattr(activations, "save_file", full)
    with pytest.raises(RunError, match=r"disk that holds .*rows-00001\.safetensors is full"):
        write(tmp_path / "s", many())
    assert [p.name for p in (tmp_path / "s").glob("rows*")] == ["rows-00000.safetensors"]
    write(tmp_path / "s", many())
    assert checksums(tmp_path / "s") == checksums(whole.folder)


def test_a_store_is_written_by_one_process_at_a_time(tmp_path):
    def clips():
        yield a_clip(0)
        with pytest.raises(RunError, match=f"in use by another run .process {os.getpid()}"):
            write(tmp_path / "s", [a_clip(0)])
        yield a_clip(1)

    assert write(tmp_path / "s", clips(), batch=1, rows_per_shard=10).n_rows == 100


def test_from_a_shell_it_harvests_composed_music(tmp_path, capsys):
    command = f"{tmp_path / 's'} --clips 2 --seconds 5 --layers 0 1 --seed 3".split()
    activations.main(command)
    store = ActivationStore.open(tmp_path / "s")
    rows = 2 * (250 - models.load("nano").n_codebooks + 1)
    said = f"{rows} rows in bfloat16: 2 clips of 2 compositions"
    assert said in capsys.readouterr().out
    assert store.clips[0].group == "composition 3" and store.hook_point(1).model == "nano"
    assert len(store.labels("chord_root")) == rows
