"""Every reader of files, given files that are not what they should be.

The readers, their valid files and the ways of changing them are those of benchmarks/fuzz.py, which
gives each thousands of inputs; here hypothesis looks for the smallest that is not handled.
"""

import contextlib
import io
import json
import os
import random
import struct
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import fuzz  # noqa: E402

sys.path.remove(str(BENCHMARKS))

fuzz.silence()
READERS = fuzz._parsers()
SLOW = {"weights": 5, "published": 5, "notebooks": 20, "model": 20, "run": 20}  # examples
KNOWN = {}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def valid(name, place):
    """The valid files of a reader, made once."""
    if name not in KNOWN:
        KNOWN[name] = fuzz.valid(READERS[name], place / f"{name}-valid")
    return KNOWN[name]


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused_in_a_sentence(name, place):
    variants = valid(name, place)

    @settings(max_examples=SLOW.get(name, 60), deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.integers(0, 2**48))
    def changed(seed):
        variant, files = fuzz.damaged(variants, READERS[name], random.Random(seed))
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), fuzz.patience():
            warnings.simplefilter("ignore")
            found = fuzz.attempt(READERS[name], place / variant, files)
        assert found.kind != "unhandled", found.said

    changed()


@given(data=st.binary(max_size=300), name=st.sampled_from(["sae", "store", "atlas", "labels"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_bytes_that_are_no_file_at_all_are_refused(data, name, place):
    [files, *_] = valid(name, place).values()
    for file in files:
        found = fuzz.attempt(READERS[name], place / "nothing", {**files, file: data})
        assert found.kind == "refused", (file, found)


# -- the harness itself can fail


def parser(read, *refuses):
    return fuzz.Parser(lambda folder: None, read, refuses or (ValueError,))


def fail(error):
    def read(folder):
        raise error

    return read


def test_only_a_documented_error_from_this_package_with_a_sentence_counts_as_handled(tmp_path):
    from musae_utils import stats

    attempt = lambda by: fuzz.attempt(by, tmp_path / "x", {"a": b"1"}).kind  # noqa: E731
    assert attempt(parser(lambda folder: None)) == "accepted"
    assert attempt(parser(lambda folder: stats.proportion(3, 2))) == "refused"
    assert attempt(parser(lambda folder: stats.proportion(3, 2), TypeError)) == "unhandled"
    assert attempt(parser(fail(ValueError("a sentence, but from elsewhere")))) == "unhandled"
    assert attempt(parser(lambda folder: json.loads("{"))) == "unhandled"


def test_a_crash_a_hang_and_a_hunger_for_memory_are_found(tmp_path, monkeypatch):
    def read(folder):
        word = (folder / "a").read_bytes()
        if word == b"die":
            os._exit(7)
        if word == b"hang":
            while True:
                pass
        if word == b"eat":
            read.eaten = bytearray(2**27)

    words, patience = [b"", b"die", b"", b"hang", b"eat", b""], fuzz.patience
    monkeypatch.setattr(fuzz, "patience", lambda: patience(0.3))
    monkeypatch.setattr(fuzz, "nth", lambda i, *_: ("one", {"a": words[i]}))
    found = fuzz.chunk("x", parser(read), {"one": {"a": b""}}, tmp_path, 0, 0, len(words))
    assert found["counts"] == {"accepted": 4, "unhandled": 2}
    said = dict(found["faults"])
    assert "process died" in said[1] and "seconds" in said[3]
    assert 120 < found["grew"] < 400


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_changes_are_decided_by_the_seed(place, seed):
    for name in ("sae", "saelens"):
        variants = valid(name, place)
        once, again = (fuzz.damaged(variants, READERS[name], random.Random(seed)) for _ in "ab")
        assert once == again


def test_a_measurement_goes_on_and_its_figures_say_what_was_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "CHUNK", 10)
    said = []
    first = fuzz.measure(tmp_path, 20, only=["labels"], say=said.append)
    monkeypatch.setattr(fuzz, "chunk", None)  # nothing is made again
    again = fuzz.measure(tmp_path, 20, only=["labels"], say=said.append)
    assert first == again and first["labels"]["inputs"] == 20
    counts = first["labels"]
    assert counts["accepted"] + counts["refused"] + counts["unhandled"] == 20
    bad = {"labels": counts | {"unhandled": 3, "grew": 7.0}}
    fuzz.keep("fuzz", {"bound": 256, "parsers": bad}, tmp_path / "table.json")
    fuzz.keep("crash", {"faults": {}}, tmp_path / "table.json")
    made = fuzz.figures(fuzz.load(tmp_path / "table.json"))
    assert made["fuzz.unhandled"][0].value == 3 and made["fuzz.unhandled"][0].n == 20
    assert made["fuzz.unhandled"][0].low < 3 < made["fuzz.unhandled"][0].high
    assert made["fuzz.memory.labels"][0].value == 7.0
    with pytest.raises(FileNotFoundError, match=r"fuzz\.py makes it"):
        fuzz.load(tmp_path / "nowhere.json")


# -- what was found: each was an unhandled error, a wrong result or a hunger for memory


def safetensors(header, payload=b""):
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + payload


def test_an_sae_that_promises_more_than_its_file_holds_costs_no_memory(tmp_path, monkeypatch):
    from musae_utils import sae

    about = {"config": {"d_in": 1, "d_sae": 10**8, "k": 1}, "hook_point": None, "provenance": {}}
    header = {"__metadata__": {"musae_sae": json.dumps(about)},
              "W_enc": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}  # fmt: skip
    (tmp_path / "sae.safetensors").write_bytes(safetensors(header, bytes(4)))
    made = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: pytest.fail("allocated") if a else made(0))
    with pytest.raises(ValueError, match=r"W_enc is \(1,\), and not \(100000000, 1\)"):
        sae.SAE.load(tmp_path / "sae.safetensors")


@pytest.mark.parametrize("change", [{"k": True}, {"k": 2.0}, {"d_sae": "8"}])
def test_an_sae_of_odd_sizes_is_refused(change, tmp_path):
    from musae_utils import sae

    with pytest.raises(ValueError, match="whole number"):
        sae.SAEConfig(**{"d_in": 4, "d_sae": 8, "k": 2} | change)


@pytest.mark.parametrize("odd", [None, float("inf"), 2.0, "4"])
def test_prefixes_that_are_no_numbers_are_refused(odd):
    from musae_utils import sae

    with pytest.raises(ValueError, match="A prefix is a whole number"):
        sae.SAEConfig(4, 8, "matryoshka", 2, prefixes=(odd, 8))


def test_an_sae_with_nan_is_refused(tmp_path):
    from musae_utils import sae

    made = sae.SAE(sae.SAEConfig(4, 8, k=2))
    with torch.no_grad():
        made.W_dec[3, 1] = torch.nan
    made.save(tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="W_dec holds what is no finite number"):
        sae.SAE.load(tmp_path / "sae.safetensors")


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(1).expand(30_000, 30_000),  # 4 bytes that pose as 3.6 GB
        torch.empty(8, 4, device="meta"),
        torch.eye(8, 4).to_sparse(),
    ],
)
def test_tensors_that_are_not_there_are_refused(odd, tmp_path):
    from musae_utils import sae
    from musae_utils.latents import published

    made = sae.SAE(sae.SAEConfig(4, 8, k=2))
    sae.save_dictionary_learning(made, tmp_path)
    state = torch.load(tmp_path / "ae.pt", weights_only=True) | {"encoder.weight": odd}
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"holds less of encoder\.weight than"):
        sae.load_dictionary_learning(tmp_path)
    with pytest.raises(ValueError, match=r"holds less of encoder\.weight than"):
        published.read_weights(tmp_path / "ae.pt")


@pytest.mark.parametrize("shape", [[0, 2**63 - 1], [2**63, 0], [0]])
def test_densities_of_a_shape_that_no_tensor_has_are_refused(shape, tmp_path):
    from musae_utils import sae

    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    (tmp_path / "sparsity.safetensors").write_bytes(safetensors({"sparsity": entry}))
    with pytest.raises(ValueError, match=r"sparsity\.safetensors"):
        sae.load_sparsity(tmp_path)


NANO = {"dim": 16, "heads": 2, "layers": 1, "codebooks": 2, "cardinality": 8}


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 30_000}, {"layers": 10**9}, {"codebooks": 10**9}, {"dim": "16"}, {"heads": 0},
        {"max_words": 10**12}, {"guidance_dropout": float("nan")}, {"vocabulary": [3]},
        {"dim": [16]}, {"layers": True},
    ],
)  # fmt: skip
def test_a_nano_part_that_promises_more_than_its_file_holds_costs_no_memory(change, tmp_path):
    from musae_utils.models import nano

    about = NANO | {"vocabulary": ["slow"]}
    nano.save_part(tmp_path, "lm", nano.build_lm(about), {"architecture": about})
    assert nano.load_part(tmp_path, "lm")
    (tmp_path / "lm.json").write_text(json.dumps({"architecture": about | change}))
    tracemalloc.start()
    with pytest.raises(ValueError, match="cannot be read as a nano lm"), fuzz.patience(5):
        nano.load_part(tmp_path, "lm")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_scales_of_other_rows_and_nan_in_a_nano_part_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    from musae_utils.models import nano

    about = NANO | {"vocabulary": ["slow"]}
    nano.save_part(tmp_path, "lm", nano.build_lm(about), {"architecture": about}, eight_bit=True)
    path, whole = tmp_path / "lm.safetensors", load_file(tmp_path / "lm.safetensors")
    name = next(name for name in whole if name.endswith(nano.SCALE))
    for scale in (torch.ones(10**5, dtype=torch.float16), whole[name] * torch.nan):
        save_file(whole | {name: scale}, path)
        with pytest.raises(ValueError, match="cannot be read as a nano lm"):
            nano.load_part(tmp_path, "lm")


@pytest.mark.parametrize("seconds", ["20", {}, None, 18, 10**12, float("nan")])
def test_a_model_says_how_long_it_can_play(seconds, place, tmp_path):
    from musae_utils import models

    [files] = valid("model", place).values()
    told = json.loads(files["lm.json"]) | {"max_seconds": seconds}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "lm.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="max_seconds is a number above 18"):
        models.load(tmp_path, device="cpu")


def rewritten(files, name, change):
    """A folder's files with a JSON file changed, and checksums put right."""
    files = dict(files)
    told = json.loads(files[name])
    change(told)
    files[name] = json.dumps(told).encode()
    fuzz._sign_store(files) if "store.json" in files else None
    return files


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("store.json", lambda t: t["shards"][0].update(file="../../etc/passwd"), "shards.0.file"),
        ("store.json", lambda t: t["widths"].update({"transformer.layers.3": 10**12}), "numbers"),
        ("store.json", lambda t: t.update(shards=[]), "shards"),
        ("run.json", lambda t: t["config"].update(frame_rate=0), "frame_rate"),
        ("run.json", lambda t: t["config"]["hooks"]["transformer.layers.3"].pop("path"), "path"),
        ("run.json", lambda t: t["config"].update(dtype="int4"), "dtype"),
    ],
)
def test_the_index_of_a_store_is_held_against_its_form(name, change, words, place, tmp_path):
    from musae_utils.activations import ActivationStore
    from musae_utils.runs import RunError

    files = rewritten(valid("store", place)["known"], name, change)
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    with pytest.raises(RunError, match=words):
        ActivationStore.open(tmp_path)


@pytest.mark.parametrize("layer", ["../../x", "..", "a/b", "", "a\nb"])
def test_an_atlas_names_no_files_outside_its_page(layer, place, tmp_path):
    from musae_utils.features import FeatureAtlas
    from musae_utils.runs import RunError

    [files] = valid("atlas", place).values()
    files = rewritten(files, "atlas.json", lambda told: told.update(layer=layer))
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    with pytest.raises(RunError, match=r"not an atlas, or was changed \(layer"):
        FeatureAtlas.load(tmp_path)


def wav(samples=b"", rate=16_000, channels=1, kind=3, bits=32, said=None):
    """A WAV file whose header may say anything."""
    said = len(samples) if said is None else said
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8 % 2**32,
                       channels * bits // 8, bits)  # fmt: skip
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", said) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data, words",
    [
        (wav(struct.pack("<4f", 0.1, 3e38, -3e38, 0.2)), "times full scale"),
        (wav(struct.pack("<4f", 0.1, 0.2, 0.1, 0.2), rate=1), "1 samples a second"),
        (wav(struct.pack("<4f", 0.1, 0.2, 0.1, 0.2), rate=2**31 - 1), "samples a second"),
    ],
)
def test_sound_that_is_none_is_refused(data, words, tmp_path):
    from musae_utils import music

    (tmp_path / "x.wav").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        music.load_audio(tmp_path / "x.wav")


def test_a_length_that_only_the_header_knows_costs_no_memory(tmp_path):
    import numpy as np
    import soundfile

    from musae_utils import music

    quiet = np.full(1600, 0.1, np.float32)
    soundfile.write(tmp_path / "x.flac", quiet, 16_000)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    data[21] |= 0x0F  # 2^36 samples, says the header
    data[22:26] = b"\xff" * 4
    (tmp_path / "x.flac").write_bytes(data)
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        assert len(music.load_audio(tmp_path / "x.flac").audio) <= 2 * len(quiet)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


@pytest.mark.parametrize("text", ["[1", "{a: b: c}", "\x00", "!!python/object/apply:os.getcwd []"])
def test_a_parameter_that_yaml_cannot_read_is_said(text, place):
    from musae_utils import book

    [files] = valid("notebooks", place).values()
    found = fuzz.attempt(READERS["notebooks"], place / "given", {
        **files, "given.json": json.dumps({"n": text}).encode()
    })  # fmt: skip
    assert found.kind == "refused" and "cannot be read as a value" in found.said
    assert issubclass(book.BookError, Exception)


def test_json_nested_without_end_is_a_damaged_file(tmp_path):
    from musae_utils import runs

    (tmp_path / "x.json").write_text("[" * 10**5)
    with pytest.raises(runs.RunError, match="is not a JSON file"):
        runs.load_json(tmp_path / "x.json")
    (tmp_path / "run.json").write_text("[" * 10**5)
    with pytest.raises(runs.RunError):
        runs.Run(tmp_path, {})


def test_half_a_character_in_a_name_is_kept_as_it_is(tmp_path):
    from musae_utils import runs

    runs.save_json(tmp_path / "x.json", {"name": "a\ud800 é"})
    assert runs.load_json(tmp_path / "x.json") == {"name": "a\ud800 é"}


@pytest.mark.parametrize("kept", [{"config": {}, "sessions": 3}, {"config": 3}, [], "x"])
def test_a_run_that_no_run_wrote_is_refused(kept, tmp_path):
    from musae_utils import runs

    (tmp_path / "run.json").write_text(json.dumps(kept))
    with pytest.raises(runs.RunError, match="was not written by a run"):
        runs.Run(tmp_path, {})


@pytest.mark.parametrize("listed", [[], {"a.bin": 3}, {"a.bin": None}])
def test_checksums_that_are_none_are_refused(listed, tmp_path):
    from musae_utils import runs

    runs.Run(tmp_path, {}).close()
    (tmp_path / "artifacts.json").write_text(json.dumps(listed))
    with pytest.raises(runs.RunError, match="does not list checksums"):
        runs.Run(tmp_path, {})
