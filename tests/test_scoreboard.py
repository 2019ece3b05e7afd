"""The board: what is registered, kept, merged, filtered, and said when something fails."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from musae_utils.stats import Interval

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

HEADLINES = """
nano.codec.chroma_correlation nano.codec.pitch_agreement nano.codec.log_spectral_distance
nano.codec.band_energy_error nano.codec.codebook_use nano.codec.si_sdr nano.lm.ce_ratio
nano.lm.in_key_ratio nano.lm.harmonic_ratio nano.lm.onset_ratio nano.lm.continuation_key_ratio
nano.prompt.instrument nano.prompt.drums nano.prompt.tonic nano.prompt.tempo nano.generate_rtf
trace.identity trace.zero_edit trace.hook_parity trace.overhead harvest.overhead
harvest.memory_slope sae.speed_vs_best_peer sae.speed_vs_gemm sae.fvu_vs_best_peer
store.kill_survival atlas.coverage atlas.coverage_neurons atlas.coverage_pca
atlas.coverage_untrained atlas.auc_gain_over_untrained probe.tonic probe.beat probe.section
probe_rival.tonic steering.improved_share steering.win_ratio_random steering.negative_controls
steering.vs_diffmean steering.vs_probe steering.vs_pca steering.vs_neuron steering.vs_prompt
steering.zero_identity steering.sweep_overhead steering.batching_gain
nano.vae.chroma_correlation nano.tokenizer.chroma_correlation nano.flow.in_key_ratio
latents.codec.pitch latents.vae.loudness latents.tokenizer.timbre manipulate.pitch
manipulate.loudness manipulate.centroid birth.pitch_settle birth.pitch_decided
birth.loudness_settle birth.loudness_decided birth.timbre_settle birth.timbre_decided
""".split()


@pytest.fixture(scope="module")
def scoreboard():
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("scoreboard", BENCHMARKS / "scoreboard.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scoreboard"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def model():
    import torch
    from audiocraft.models import MusicGen

    sys.path.insert(0, str(Path(__file__).parent / "models"))
    from tiny_models import tiny_codec, tiny_lm

    from musae_utils.models import MusicModel

    sys.path.pop(0)
    return MusicModel("tiny", MusicGen("tiny", tiny_codec(), tiny_lm(), 30), torch.float32)


@pytest.fixture
def board(scoreboard, model, tmp_path):
    board = scoreboard.Board(8, tmp_path / "kept")
    board.model = model  # instead of the cached property
    yield board
    board.run.close()


@pytest.fixture
def registry(scoreboard, monkeypatch):
    """An empty registry, and boards that need no model."""
    monkeypatch.setattr(scoreboard, "REGISTRY", [])
    return scoreboard.REGISTRY


def test_every_headline_figure_is_registered_once(scoreboard):
    names = [name for group in scoreboard.REGISTRY for name in group.names]
    assert len(names) == len(set(names))
    assert set(HEADLINES) <= set(names)
    assert sum(group.minutes for group in scoreboard.REGISTRY) <= 60


@pytest.mark.parametrize(
    "only, wanted",
    [("", True), ("a", True), ("a.b", True), ("a.b.chance", True), ("a.bc", False), ("b", False)],
)
def test_a_prefix_chooses_groups(scoreboard, only, wanted):
    assert scoreboard.Group(("a.b", "a.d"), 1, None, False).wanted(only) == wanted


def test_an_entry_has_seven_fields_and_no_nan(scoreboard):
    e = scoreboard.entry("x", (Interval(0.5, math.nan, math.nan, 3), "dB"), 1.5)
    assert e == dict(name="x", value=0.5, low=None, high=None, n=3, unit="dB", seconds=1.5)
    assert scoreboard.entry("x", Interval(1, 0, 2, 9), 0)["unit"] == ""


def test_what_was_made_is_kept_with_the_time_it_took(board, scoreboard):
    calls = []

    def make():
        calls.append(1)
        return np.arange(3), np.ones((2, 2))

    first, second = board.kept("pair", make), board.kept("pair", make)
    assert len(calls) == 1 and len(first) == len(second) == 2
    assert (second[0] == [0, 1, 2]).all() and board.earlier > 0
    assert board.kept("one", lambda: np.zeros(2)).shape == (2,)
    board.run.close()
    again = scoreboard.Board(8, board.folder)
    again.model = board.model
    assert (again.kept("pair", make)[0] == [0, 1, 2]).all() and len(calls) == 1
    again.run.close()


def test_generation_in_batches_is_kept_and_decoded(board, scoreboard, monkeypatch):
    monkeypatch.setattr(scoreboard, "BATCH", 2)
    codes = board.generated("few", ["piano", None, "organ"], 0.4)
    assert codes.shape == (3, 4, 20) and codes.dtype == np.int16
    assert (codes == board.generated("few", None, None)).all()  # kept: nothing is played
    assert board.audio("few", codes).shape == (3, 6400)


def test_figures_are_answered_from_an_earlier_run_unless_they_are_times(
    board, scoreboard, registry
):
    calls = []

    def compute(board):
        calls.append(1)
        return {"a.x": Interval(len(calls), 0, 9, 2)}

    for timing, expected in ((False, 1), (True, 2)):
        calls.clear()
        group = scoreboard.Group((f"a.{timing}",), 1, compute, timing)
        assert scoreboard.entries(group, board)[0]["value"] == 1
        assert scoreboard.entries(group, board)[0]["value"] == expected


def test_the_file_keeps_other_figures_and_a_failure_is_said(
    scoreboard, registry, monkeypatch, tmp_path, capsys
):
    class NoModel(scoreboard.Board):
        pass

    monkeypatch.setattr(scoreboard, "Board", lambda clips: NoModel(clips, tmp_path))
    monkeypatch.setattr(
        scoreboard, "entries",
        lambda group, board: [
            scoreboard.entry(k, v, 1.0) for k, v in group.compute(board).items()
        ],
    )  # fmt: skip

    @scoreboard.figures("good.a", minutes=1)
    def good(board):
        return {"good.a": Interval(1, 0, 2, 5), "good.a.chance": Interval(0.5, 0, 1, 5)}

    @scoreboard.figures("bad.b", minutes=1)
    def bad(board):
        raise ValueError("no such thing")

    file = tmp_path / "board.json"
    old = dict(name="old", value=3, low=None, high=None, n=1, unit="", seconds=0)
    stale = old | {"name": "good.a"}
    file.write_text(json.dumps([old, stale]))
    assert scoreboard.main(["--only", "good", "--json", str(file)]) == 0
    listed = {e["name"]: e["value"] for e in json.loads(file.read_text())}
    assert listed == {"good.a": 1, "good.a.chance": 0.5, "old": 3}

    assert scoreboard.main(["--json", str(file)]) == 1  # the whole board: what is old goes
    assert [e["name"] for e in json.loads(file.read_text())] == ["good.a", "good.a.chance"]
    printed = capsys.readouterr().out
    assert "not computed: ValueError: no such thing" in printed and "1 groups failed" in printed

    assert scoreboard.main(["--only", "good.a.chance", "--json", str(tmp_path / "new.json")]) == 0
    assert [e["name"] for e in json.loads((tmp_path / "new.json").read_text())] == ["good.a.chance"]


def test_an_unknown_prefix_is_answered_with_what_there_is(scoreboard, tmp_path, capsys):
    assert scoreboard.main(["--only", "nona", "--json", str(tmp_path / "x.json")]) == 2
    said = capsys.readouterr().err
    assert "'nona'" in said and "nano.generate_rtf" in said
    with pytest.raises(SystemExit):
        scoreboard.main(["--clips", "2"])


@pytest.mark.filterwarnings("ignore:.*does not know")
def test_tracing_is_exact_on_a_model_of_any_weights(board, scoreboard):
    found = scoreboard.tracing(board)
    assert {name: figure[0].value for name, figure in found.items()} == {
        "trace.identity": 0, "trace.zero_edit": 0, "trace.hook_parity": 0,
    }  # fmt: skip
