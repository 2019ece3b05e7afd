"""Run folders: whole files or none, checksums, resuming after a kill, clear refusals."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils import runs
from musae_utils.runs import Run, RunError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


@given(value=PLAIN)
@settings(max_examples=60, deadline=None)
def test_json_comes_back_as_it_went(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    runs.save_json(path, value)
    assert runs.load_json(path) == value


def test_json_takes_what_results_are_made_of(tmp_path):
    @dataclass
    class Interval:
        value: float
        low: float

    path = tmp_path / "deep" / "value.json"
    value = {
        "i": Interval(np.float32(0.5), float("nan")),
        "a": np.arange(3),
        "p": Path("x"),
        7: {2},
    }
    runs.save_json(path, value)
    assert runs.load_json(path) == {
        "i": {"value": 0.5, "low": None},
        "a": [0, 1, 2],
        "p": "x",
        "7": [2],
    }
    with pytest.raises(TypeError, match="object cannot be stored"):
        runs.save_json(path, object())


def test_a_file_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "value.json"
    path.write_text('{"a": [1, 2')
    with pytest.raises(RunError, match=r"value\.json is not a JSON file"):
        runs.load_json(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        runs.load_json(tmp_path / "none.json")


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.bin"
    runs.atomic_write(path, b"old")
    with pytest.raises(ZeroDivisionError), runs.atomic_path(path) as temporary:
        temporary.write_bytes(b"ne")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and visible(tmp_path) == ["weights.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence_and_changes_nothing(tmp_path):
    path = tmp_path / "weights.bin"
    runs.atomic_write(path, b"old")
    with pytest.raises(RunError, match=r"disk that holds .*weights\.bin is full"):
        with runs.atomic_path(path), open("/dev/full", "wb") as full:
            full.write(b"x" * 100_000)
    assert path.read_bytes() == b"old" and visible(tmp_path) == ["weights.bin"]


def test_a_full_disk_in_another_languages_words(tmp_path):
    def rust_writer(path):
        path.write_bytes(b"half")
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with Run(tmp_path / "run", {}) as run:
        with pytest.raises(RunError, match="is full"):
            run.save("weights.safetensors", rust_writer)
        assert visible(run.folder) == ["run.json"] and not run.has("weights.safetensors")


def test_a_line_of_metrics_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    with Run(tmp_path, {}) as run:
        run.log(step=1)

        def torn_open(path, mode):
            file = open(path, mode)

            class Torn:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def write(self, data):
                    file.write(data[:3])
                    file.flush()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            return Torn()

        monkeypatch.setattr(runs, "open", torn_open, raising=False)
        with pytest.raises(RunError, match="is full"):
            run.log(step=2)
        monkeypatch.undo()
        run.log(step=3)
        assert run.metrics() == [{"step": 1}, {"step": 3}]


def test_a_run_remembers_what_it_was_and_goes_on(tmp_path):
    config = {"steps": 3, "rates": (0.1, 0.2)}
    with Run(tmp_path / "run", config, seed=4, fingerprints={"nano": "ab"}) as run:
        assert not run.resumed
        run.log(step=0, loss=np.float64(2.5))
        run.save("a.txt", "α")
    with Run(tmp_path / "run", config, seed=4, fingerprints={"nano": "ab"}) as run:
        assert run.resumed and run.has("a.txt") and not run.has("b.txt")
        assert run.path("a.txt").read_text() == "α" and run.metrics() == [{"step": 0, "loss": 2.5}]
    record = runs.load_json(tmp_path / "run" / "run.json")
    assert record["config"] == {"steps": 3, "rates": [0.1, 0.2]} and record["seed"] == 4
    assert len(record["sessions"]) == 2 and "torch" in record["sessions"][0]["versions"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"steps": 4}}, "steps = 3, and now steps = 4"),
        ({"seed": 1}, "seed = 0, and now seed = 1"),
        ({"fingerprints": {"nano": "cd"}}, "fingerprints.nano = 'ab'"),
        ({"config": {"steps": 3, "more": 1}}, "more = None, and now more = 1"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, change, words):
    asked = {"config": {"steps": 3}, "fingerprints": {"nano": "ab"}}
    Run(tmp_path, **asked).close()
    with pytest.raises(RunError, match=words.replace(".", r"\.")):
        Run(tmp_path, **{**asked, **change})
    Run(tmp_path, **asked).close()  # and the refusal let go of the folder


def test_folders_that_are_something_else_are_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match=r"no run\.json"):
        Run(tmp_path, {})
    with pytest.raises(RunError, match="is a file"):
        Run(tmp_path / "holiday.jpg", {})
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text("[1]")
    with pytest.raises(RunError, match="was not written by a run"):
        Run(other, {})


@pytest.mark.parametrize("key", ["api_key", "HF_TOKEN", "apikey", "db_password"])
def test_secrets_never_reach_a_run_folder(tmp_path, key):
    with pytest.raises(RunError, match="never stored"):
        Run(tmp_path / "run", {"labels": {key: "abc"}})
    assert not (tmp_path / "run").exists()


def test_words_that_only_look_like_secrets_are_kept(tmp_path):
    Run(tmp_path, {"max_tokens": 3, "key": "D minor"}).close()


def test_two_processes_cannot_share_a_folder(tmp_path):
    script = "from musae_utils.runs import Run; import sys, time; r = Run(sys.argv[1], {}); "
    script += "print('open', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline().strip() == b"open"
        with pytest.raises(RunError, match=rf"in use by another run \(process {other.pid}\)"):
            Run(tmp_path, {})
    finally:
        other.kill()
        other.wait()
    Run(tmp_path, {}).close()  # a killed process holds nothing


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign"])
def test_a_damaged_artifact_is_never_read(tmp_path, damage):
    with Run(tmp_path, {}) as run:
        path = run.save("weights.bin", b"0123456789")
        path.write_bytes({"flip": b"0123456780", "cut": b"01234", "foreign": b""}[damage])
        with pytest.raises(RunError, match=r"weights\.bin is damaged or was replaced"):
            run.path("weights.bin")
        path.unlink()
        assert not run.has("weights.bin")
        with pytest.raises(FileNotFoundError, match="is gone"):
            run.path("weights.bin")
        with pytest.raises(FileNotFoundError, match=r"no artifact 'x' \(it has: weights\.bin\)"):
            run.path("x")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "run.json", "metrics.jsonl"])
def test_an_artifact_stays_in_its_folder(tmp_path, name):
    with Run(tmp_path, {}) as run, pytest.raises(ValueError, match="plain file name"):
        run.save(name, b"")


@given(cut=st.integers(0, 40))
@settings(max_examples=41, deadline=None)
def test_metrics_survive_a_line_torn_anywhere(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("run")
    with Run(folder, {}) as run:
        for step in range(3):
            run.log(step=step, word="é")
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - min(cut, len(whole))])
    kept = path.read_bytes().count(b"\n")
    with Run(folder, {}) as run:
        assert [row["step"] for row in run.metrics()] == list(range(kept))
        run.log(step=99)
        assert run.metrics()[-1] == {"step": 99}


def test_metrics_edited_in_the_middle_are_refused(tmp_path):
    Run(tmp_path, {}).close()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\noops\n{"step": 1}\n')
    with pytest.raises(RunError, match="line 2, is not a line of metrics"):
        Run(tmp_path, {})


def test_rewinding_drops_what_comes_after_the_checkpoint(tmp_path):
    with Run(tmp_path, {}) as run:
        for step in range(5):
            run.log(step=step)
        run.log(note="no step")
        run.rewind(2)
        assert run.metrics() == [{"step": 0}, {"step": 1}, {"step": 2}, {"note": "no step"}]


TRAINER = textwrap.dedent(
    """
    import json, sys
    from musae_utils.runs import Run
    with Run(sys.argv[1], {"steps": 150}) as run:
        state = json.loads(run.path("state.json").read_text()) if run.has("state.json") else [0, 1]
        run.rewind(state[0] - 1)
        for step in range(state[0], 150):
            state = [step + 1, state[1] * 31 % 1009]
            run.log(step=step, value=state[1])
            if step % 3 == 0 or step == 149:
                run.save("state.json", json.dumps(state))
    """
)


def test_killed_anywhere_it_ends_with_the_same_result(tmp_path):
    def train(folder):
        return subprocess.Popen([sys.executable, "-c", TRAINER, str(folder)])

    assert train(tmp_path / "straight").wait() == 0
    begun = time.monotonic()
    kills = 0
    for attempt in range(200):
        process = train(tmp_path / "killed")
        try:
            assert process.wait(timeout=0.04 + 0.01 * attempt) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    else:
        pytest.fail(f"never finished in {time.monotonic() - begun:.0f} s")
    assert kills > 0
    for name in ("state.json", "metrics.jsonl"):
        straight, killed = (tmp_path / f / name for f in ("straight", "killed"))
        assert straight.read_bytes() == killed.read_bytes()
    assert not list((tmp_path / "killed").glob(".*.partial*"))


def test_what_a_writer_puts_beside_its_file_goes_with_it(tmp_path):
    run, mask = Run(tmp_path, {}), os.umask(0o022)

    def write(path):
        (path.parent / ".tmpXYZ").touch()  # as safetensors does, with a mode of its own
        path.write_bytes(b"weights")
        path.chmod(0o600)

    try:
        path = run.save("weights.bin", write)
        process = multiprocessing.get_context("fork").Process(
            target=run.save, args=("more.bin", lambda path: (write(path), os._exit(9)))
        )
        process.start()
        process.join()
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644
    assert process.exitcode == 9 and list(tmp_path.glob(".*.partial"))
    run.close()
    Run(tmp_path, {}).close()
    assert {entry.name for entry in tmp_path.iterdir()} == {
        ".lock", "run.json", "artifacts.json", "weights.bin",
    }  # fmt: skip


def test_a_kill_between_the_file_and_its_checksum_is_no_damage(tmp_path):
    with Run(tmp_path, {}) as run:
        path = run.save("a.bin", b"old")
        # As after a kill right before the rename, and right after it:
        record = json.loads((tmp_path / "artifacts.json").read_text())
        new = tmp_path / "elsewhere"
        new.write_bytes(b"new")
        record["a.bin"]["next"] = runs.sha256(new)
    runs.save_json(tmp_path / "artifacts.json", record)
    for content in (b"old", b"new"):
        path.write_bytes(content)
        with Run(tmp_path, {}) as run:
            assert run.path("a.bin").read_bytes() == content
