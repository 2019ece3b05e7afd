"""Pieces with answers, probes of the future, planted signals and leaks: what must hold of them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils import models, music
from musae_utils.music.compose import Spec, compose
from musae_utils.sae import SAE, SAEConfig, shipped
from musae_utils.stats import Interval
from musae_utils.structure import horizons, pieces, planning, planted
from musae_utils.structure.pieces import HORIZONS, Piece


@pytest.fixture(scope="module")
def model():
    return models.load("nano")


@pytest.fixture(scope="module")
def saes(model):
    return [shipped.pretrained(model, layer) for layer in (1, 3)]


@pytest.fixture(scope="module")
def composed(model):
    return pieces.composed(model, 8, 790_000)


def blank(returns=(), seconds=40.0, motifs=(2.0,), name="a", **more):
    codes, audio = np.zeros((8, 750), int), np.zeros(15 * 16_000, np.float32)
    back = np.array(returns, float).reshape(-1, 2)
    return Piece(name, codes, audio, 16_000, seconds, back, np.array(motifs), **more)


# -- answers ---------------------------------------------------------------------------------------


def test_only_motifs_that_were_heard_can_come_back():
    piece = blank([(2.0, 6.0), (8.0, 9.0)])
    assert piece.comes_back(4.0, (1, 3)), "begins two seconds later"
    assert not piece.comes_back(1.0, (1, 10)), "had not been heard in full"
    assert not piece.comes_back(7.0, (1, 3)), "the motif of 8 s was still to come"
    assert piece.comes_back(8.0, (1, 3)) and not piece.comes_back(10.0, (1, 25))


@pytest.mark.parametrize("form", ("AABA", "ABAB", "rondo", "variations", "through"))
def test_answers_are_those_of_the_score(form):
    score = compose(Spec(form=form, seconds=40.0), 1_000_790_100)
    back, motifs = pieces.statements(score)
    assert (len(back) == 0) == (form == "through")
    assert len(motifs) == len({s["motif"] for s in score.statements})
    for heard, again in back:
        assert again >= heard - 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.floats(4.0, 15.0))
def test_the_rules_are_never_certain_and_wrong(number, t):
    score = compose(Spec(seconds=40.0), 1_000_000_000 + number)
    returns, motifs = pieces.statements(score)
    piece = blank(returns, motifs=motifs)
    for horizon in HORIZONS.values():
        said = pieces.grammar(score, t, horizon)
        assert 0 <= said <= 1
        if said in (0, 1):
            assert said == piece.comes_back(t, horizon)


def test_the_rules_are_calibrated_where_the_past_leaves_it_open():
    said, came = [], []
    for number in range(120):
        score = compose(Spec(seconds=40.0), 1_000_791_000 + number)
        returns, motifs = pieces.statements(score)
        for t in (5.0, 9.0, 13.0):
            p = pieces.grammar(score, t, HORIZONS["middle"])
            if 0 < p < 1:
                said.append(p)
                came.append(blank(returns, motifs=motifs).comes_back(t, HORIZONS["middle"]))
    assert len(said) > 60
    assert abs(np.mean(said) - np.mean(came)) < 3 * np.sqrt(0.25 / 60)


def test_composed_pieces_are_the_beginnings_of_longer_ones_and_never_name_their_form(composed):
    for i, piece in enumerate(composed):
        whole = music.make(seed=1_000_790_000 + i, seconds=40.0)
        first = whole.audio[: len(piece.audio) - 16_000]
        assert np.corrcoef(first, piece.audio[: len(first)])[0, 1] > 0.99
        assert not {"form", "rondo", "verse", "theme", "through"} & {*piece.prompt.split()}
        assert piece.codes.shape == (8, 750) and piece.seconds == 40


def test_rows_ask_only_what_lies_inside_a_piece(composed, model):
    table = pieces.rows(composed, model.frame_rate)
    assert set(table["t"]) == set(np.arange(4.0, 15.5))
    assert table[list(HORIZONS)].notna().all(axis=None)
    short = pieces.rows([blank([(2.0, 6.0)], seconds=15.0)], 50)
    assert short["long"].isna().all() and short["short"].notna().sum() == 9
    assert (short["frame"] == (short["t"] * 50).round() - 1).all()


def test_music_that_is_shorter_than_every_horizon_is_refused():
    with pytest.raises(ValueError, match=r"5\.0 s, and the shortest horizon"):
        pieces.rows([blank(seconds=5.0)._replace(codes=np.zeros((8, 250), int))], 50)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=4, max_size=80))
def test_after_balancing_a_stopwatch_knows_nothing(rows):
    t, labels = (np.array(x, float) for x in zip(*rows, strict=True))
    both = [len({*labels[t == moment]}) == 2 for moment in np.unique(t)]
    if not any(both):
        with pytest.raises(ValueError, match="answers are yes"):
            pieces.balanced(labels, t)
        return
    kept = pieces.balanced(labels, t)
    assert len({*kept.tolist()}) == len(kept)
    for moment in np.unique(t[kept]):
        assert labels[kept][t[kept] == moment].mean() == 0.5


def test_answers_of_one_kind_are_refused_by_name():
    with pytest.raises(ValueError, match="100% of 12 answers are yes"):
        pieces.balanced(np.ones(12), np.arange(12.0) % 3)
    with pytest.raises(ValueError, match="All 12 answers are no"):
        rows = {"residual 1": np.eye(12), "position": np.eye(12)}
        horizons.ask(rows, np.zeros(12), np.arange(12))


def test_one_piece_cannot_be_split():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 3)), np.arange(40) % 2
    with pytest.raises(ValueError, match="come from 1 piece"):
        horizons.ask({"residual 1": x, "position": x}, labels, np.zeros(40))


def test_recordings_too_short_for_a_horizon_are_named(model):
    clip = music.Clip(np.zeros(6 * 16_000, np.float32), name="door bell")
    with pytest.raises(ValueError, match=r"'door bell' lasts 6\.0 s"):
        pieces.recordings(model, [clip])


def test_a_silent_recording_returns_nothing(model):
    noise = np.random.default_rng(0).normal(size=12 * 16_000).astype(np.float32)
    quiet = music.Clip(1e-6 * noise, name="a quiet room")
    (piece,) = pieces.recordings(model, [quiet])
    assert len(piece.returns) == 0
    with pytest.raises(ValueError, match="0% of"):
        table = pieces.rows([piece], model.frame_rate)
        pieces.balanced(table["short"].to_numpy(), table["t"].to_numpy())


def test_what_is_heard_is_what_was_written():
    clip = music.make(seed=3, form="variations", family="reed", register="middle", seconds=30.0)
    spans = [(s["start"], s["end"]) for s in clip.truth.clip["statements"] if s["kind"] == "first"]
    found = pieces.by_ear(clip.audio, clip.sample_rate, spans[:1])
    motif = clip.truth.clip["statements"][0]["motif"]
    written = [s["start"] for s in clip.truth.clip["statements"] if s["motif"] == motif][1:]
    near = [min(abs(again - start) for start in written) < 0.3 for _, again in found]
    assert len(found) >= 2 and np.mean(near) > 0.7


# -- reading ---------------------------------------------------------------------------------------


def test_every_source_has_a_row_for_each_moment(model, saes, composed):
    table = pieces.rows(composed[:2], model.frame_rate, first=13.0)
    found = horizons.read(model, saes, composed[:2], table, saes[1])
    assert {"residual 1", "residual 3", "SAE 1", "SAE 3", "random SAE", "second SAE", "frame 3",
            *horizons.CONFOUNDS} - {"all together"} <= {*found}  # fmt: skip
    for name, x in found.items():
        assert name.startswith("of ") or (len(x) == len(table) and np.isfinite(x).all()), name
    # What is read at a moment does not depend on what comes later.
    cut = [p._replace(codes=p.codes[:, :-50], audio=p.audio[:-16_000]) for p in composed[:2]]
    before = table["t"] <= 13.5
    again = horizons.read(model, saes, cut, table[before].reset_index(drop=True))
    for name in ("residual 3", "frame 3", "untrained model"):
        assert np.allclose(found[name][before.to_numpy()], again[name], atol=0.02), name


def test_an_sae_of_another_place_is_refused(model, saes, composed):
    table = pieces.rows(composed[:1], model.frame_rate, first=15.0)
    with pytest.raises(ValueError, match="different layers"):
        horizons.read(model, [saes[0], saes[0]], composed[:1], table)
    moved = SAE(SAEConfig(256, 64, "topk", k=4), dict(saes[0].hook_point, fingerprint="other"))
    with pytest.raises(ValueError, match="other"):
        horizons.read(model, [moved], composed[:1], table)


# -- asking ----------------------------------------------------------------------------------------


def made(n_groups=60, each=6, seed=0, model=0.0, confound=0.0):
    """Sources in which the model, or a confound, knows the answer so well (d')."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), each)
    labels = rng.integers(0, 2, n_groups * each)
    side = (labels - 0.5)[:, None]
    draw = lambda d, k: (  # noqa: E731
        rng.normal(size=(len(labels), d)) + k * side * np.eye(d)[0]
    ).astype(np.float32)
    return {
        "residual 1": draw(8, model), "SAE 1": np.abs(draw(12, model / 2)),
        "random SAE": np.abs(draw(12, 0)), "position": draw(4, 0), "acoustics": draw(6, confound),
    }, labels, groups  # fmt: skip


def test_a_model_that_knows_more_than_everything_else_is_a_go():
    answer = horizons.ask(*made(model=2.0))
    assert answer.go and answer.model == "residual 1" and answer.explained_by == ""
    assert answer.auc["residual 1"].value == pytest.approx(0.92, abs=0.04)  # of d' 2
    assert answer.brier.value < 0.2 and answer.f1.value > 0.75
    assert str(answer).startswith("go: residual 1")


def test_a_model_that_knows_what_the_sound_tells_is_no_go_and_it_is_said_why():
    answer = horizons.ask(*made(model=1.5, confound=2.0))
    assert not answer.go and answer.explained_by == "acoustics"
    assert answer.auc["best of the model"].low > 0.5, "a naive probe would be delighted"
    assert answer.gain.high < 0.1


def test_gain_is_the_difference_of_the_chosen():
    answer = horizons.ask(*made(model=1.0, confound=0.5), seeds=2)
    gap = answer.auc["best of the model"].value - answer.auc["best confound"].value
    assert answer.gain.value == pytest.approx(gap, abs=1e-9)
    assert answer.gain.n == 60 and len(answer.chosen["model"]) == 4


def test_intervals_hold_nothing_as_often_as_they_say():
    """Of 60 questions without an answer, few are a go, and most intervals hold 0."""
    found = [horizons.ask(*made(30, 4, seed)) for seed in range(60)]
    assert sum(one.go for one in found) <= 4
    assert np.mean([one.gain.low <= 0 <= one.gain.high for one in found]) > 0.9


# -- planting --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 3.0), st.integers(0, 1000))
def test_a_signal_is_as_strong_as_it_says_and_in_one_direction(strength, seed):
    rng = np.random.default_rng(seed)
    frames, answers = rng.normal(size=(4000, 16)).astype(np.float32), rng.integers(0, 2, 4000)
    moved = planted.signal(frames, answers, strength, seed) - frames
    values = np.linalg.svd(moved, compute_uv=False)
    assert values[1] < 1e-3 * values[0]
    direction = moved[answers == 1][0] / np.linalg.norm(moved[answers == 1][0])
    along = (frames + moved) @ direction
    gap = (along[answers == 1].mean() - along[answers == 0].mean()) / (frames @ direction).std()
    assert gap == pytest.approx(strength, abs=0.12)


def answered(n=40):
    """A table of moments, with answers that last within a piece."""
    rng = np.random.default_rng(5)
    lines = [
        {"piece": i, "name": f"piece {i}", "t": t, "long": float(rng.random() < share)}
        for i in range(n) for share in [rng.random()] for t in np.arange(4.0, 10.0)
    ]  # fmt: skip
    return pd.DataFrame(lines)


def test_exchanged_answers_are_another_pieces_at_the_same_moment():
    table = answered()
    other = planted.exchanged(table, "long", 0)
    by_piece = table.assign(other=other).groupby("name")
    rows = {tuple(part["long"]) for _, part in by_piece}
    assert {tuple(part["other"]) for _, part in by_piece} <= rows
    assert (other != table["long"]).any()


@pytest.mark.parametrize("kind", planted.LEAKS)
def test_a_leak_is_caught_and_named(kind):
    table, rng = answered(60), np.random.default_rng(1)
    n = len(table)
    lead = rng.integers(0, 6, 60)[table["piece"]]
    words = (rng.random((60, 10)) < 0.5)[table["piece"]].astype(np.float32)
    clock = np.eye(6)[(table["t"] - 4).astype(int)]
    everything = np.concatenate([np.eye(6)[lead], words, clock], axis=1).astype(np.float32)
    sources = {
        "residual 3": everything + 0.3 * rng.normal(size=everything.shape).astype(np.float32),
        "position": clock, "prompt": words, "instrument": np.eye(6)[lead],
        "acoustics": rng.normal(size=(n, 5)).astype(np.float32),
    }  # fmt: skip
    found = planted.leaks(sources, table, range(2), every=1)
    mine = found[found["leak"] == kind]
    assert (mine["naive low"] > 0.5).all(), "a naive probe is fooled"
    assert mine["caught"].all() and (mine["named"] == kind).all()


def test_a_leak_needs_what_it_follows():
    table = answered(10)
    with pytest.raises(ValueError, match="no leak 'weather'"):
        planted.leak("weather", table, {}, 0)
    with pytest.raises(ValueError, match="have no instrument"):
        planted.leak("instrument", table, {"position": np.zeros((len(table), 1))}, 0)


def test_power_is_where_the_curve_crosses():
    strengths = np.repeat([0.5, 1.0, 1.5, 2.0], 50)
    rng = np.random.default_rng(0)
    found = rng.random(200) < 1 / (1 + np.exp(-4 * (strengths - 1.0)))
    assert planted.power80(strengths, found) == pytest.approx(1.0 + np.log(4) / 4, abs=0.2)
    assert np.isnan(planted.power80(strengths, np.zeros(200, bool)))


# -- the whole, small ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_run_goes_on_after_a_stop_and_ends_the_same(model, saes, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "STRENGTHS", (2.0,))
    plan = planning.Plan(composed=14, own=0, seeds=1, nothing=2, signals=1, leaks=1, circuit=3)
    first = planning.run(tmp_path / "a", model, plan, saes=(saes, saes[1]))
    read = horizons._read
    done = []

    def stops(*given):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return read(*given)

    monkeypatch.setattr(horizons, "SHARD", 7)
    monkeypatch.setattr(horizons, "_read", stops)
    with pytest.raises(KeyboardInterrupt):
        planning.run(tmp_path / "b", model, plan, saes=(saes, saes[1]))
    monkeypatch.setattr(horizons, "_read", read)
    second = planning.run(tmp_path / "b", model, plan, saes=(saes, saes[1]))
    for table in ("answers", "signals", "leaks", "circuit"):
        a, b = (pd.json_normalize(planning.rounded(one[table])) for one in (first, second))
        numbers = a.select_dtypes("number").columns
        assert list(a) == list(b)
        assert np.allclose(a[numbers], b[numbers], atol=0.05, equal_nan=True), table
    opened = planning.opened(second)
    found = planning.figures(opened)
    assert {"structure.gain.long", "structure.false_go", "structure.leaks_caught"} <= {*found}
    assert all(isinstance(one, Interval) for one in found.values())
    chosen = second["circuit"]
    assert not {*chosen["features"]} & {*chosen["local"]}
