"""Cuts: controls that are controls, rows that differ by the edit alone, honest verdicts."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from musae_utils.models import compat  # noqa: F401  # isort: skip  (before audiocraft)
from audiocraft.models import MusicGen
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models.tiny_models import tiny_codec, tiny_lm

from musae_utils import models, music, runs, stats, trace
from musae_utils.models import MusicModel
from musae_utils.sae import SAE, SAEConfig, shipped
from musae_utils.steering import Knob, Patch, outcome
from musae_utils.structure import cutting
from musae_utils.structure.cutting import CONDITIONS, MARGINS, WINDOWS, WORDS, Firing, Prefix
from musae_utils.trace import HookPoint

K, CARD, DIM, LAYERS, RATE = 4, 32, 32, 3, 50
SHORT = 4.0  # seconds of a prefix
FRAMES, TOTAL = int(SHORT * RATE), 7.2


def an_sae(model, layer=1, d_sae=64, seed=3):
    """Random, and with a decoder of rows of different lengths."""
    config = SAEConfig(DIM, d_sae, "topk", 8, unit_norm=False)
    sae = SAE(config, HookPoint.of(model, layer), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.W_dec *= 0.5 + torch.rand(d_sae, 1, generator=generator)
    return sae


def a_prefix(i, **changes):
    codes = np.random.default_rng(i).integers(0, CARD, (K, int(TOTAL * RATE)))
    one = Prefix(f"piece {i}", codes[:, :FRAMES], [(0.0, 2.0)], 100 + i, None, SHORT, (0, 0), codes)
    return one._replace(**changes)


@pytest.fixture(scope="module")
def model():
    musicgen = MusicGen("tiny", tiny_codec(), tiny_lm(DIM, LAYERS), max_duration=30)
    return MusicModel("tiny", musicgen, torch.float32)


@pytest.fixture(scope="module")
def sae(model):
    return an_sae(model)


@pytest.fixture(scope="module")
def two():
    return [a_prefix(0), a_prefix(1)]


@pytest.fixture(scope="module")
def chosen(model, sae, two):
    """Two features under test and two local ones, all of which fire."""
    order = np.argsort(-cutting.firing(model, sae, two).density, kind="stable")
    return order[:4:2].tolist(), order[1:4:2].tolist()


@pytest.fixture(scope="module")
def played(model, sae, two, chosen):
    return cutting.play(model, sae, *chosen, two, TOTAL, random_seeds=(0, 1), batch=7)


@pytest.fixture(scope="module")
def nano():
    return models.load("nano")


# -- features that stand in for those under test ---------------------------------------------------


class Rows:
    """All that `matched` asks of an SAE."""

    def __init__(self, norms):
        self.W_dec = torch.tensor(norms, dtype=torch.float32)[:, None]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_matched_feature_is_never_under_test_nor_dead_nor_drawn_twice(data):
    n = data.draw(st.integers(4, 40))
    some = st.lists(st.integers(0, n - 1), unique=True, max_size=n)
    tested, avoid = data.draw(some.filter(len)), data.draw(some)
    density = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    density[data.draw(some)] = 0
    firing = Firing(density, np.where(density > 0, 1.0, 0.0), None, None, None)
    free = {int(i) for i in np.flatnonzero(density)} - {*tested} - {*avoid}
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    if len(free) < len(tested):
        with pytest.raises(ValueError, match=r"only .* fire and are neither under test"):
            cutting.matched(firing, tested, Rows(np.ones(n)), rng, avoid)
        return
    drawn = cutting.matched(firing, tested, Rows(np.ones(n)), rng, avoid)
    assert len({*drawn}) == len(drawn) == len(tested)
    assert {*drawn} <= free


@pytest.mark.parametrize("of", ["density", "mean", "norm"])
def test_a_matched_feature_is_like_the_one_it_stands_for(of):
    rng = np.random.default_rng(0)
    x = {name: np.ones(2000) for name in ("density", "mean", "norm")}
    x["density"] = np.full(2000, 0.1)
    x[of] = np.exp(rng.uniform(-6, 0, 2000))
    firing = Firing(x["density"], x["mean"], None, None, None)
    tested = list(range(20))
    drawn = cutting.matched(firing, tested, Rows(x["norm"]), rng)
    apart = lambda other: np.abs(np.log(x[of][tested] / x[of][other]))  # noqa: E731
    assert apart(drawn).max() < 0.1
    assert apart(rng.permutation(tested)).mean() > 1


def test_matching_differs_by_seed_and_refuses_statistics_of_another_sae():
    firing = Firing(np.full(50, 0.1), np.ones(50), None, None, None)
    draw = lambda seed: cutting.matched(  # noqa: E731
        firing, [0, 1, 2], Rows(np.ones(50)), np.random.default_rng(seed)
    )
    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(8)}) > 1
    with pytest.raises(ValueError, match="50 features and the SAE has 49"):
        cutting.matched(firing, [0], Rows(np.ones(49)), np.random.default_rng(0))


def test_firing_is_counted_over_frames_that_the_model_has_read_whole(model, sae, two):
    codes = torch.as_tensor(two[0].codes)[None]
    x = trace.residuals(model, codes, [1])[1][0][K : FRAMES + 1]
    fires = (sae.encode(x) > 0).numpy()
    found = cutting.firing(model, sae, two, [3, 7])
    np.testing.assert_allclose(found.by_prefix[0], fires.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.any[0], fires[:, [3, 7]].any(1).mean(), atol=1e-6)
    np.testing.assert_allclose(found.density, found.by_prefix.mean(0))
    assert found.stream.shape == (DIM,)
    once = cutting.firing(model, sae, two[:1])
    active = np.where(fires, sae.encode(x).detach().numpy(), 0).sum(0) / np.maximum(fires.sum(0), 1)
    np.testing.assert_allclose(once.mean, active, rtol=1e-4, atol=1e-6)


# -- rows ------------------------------------------------------------------------------------------


def test_each_condition_does_what_it_says(model, sae, two):
    stream = torch.zeros(500, DIM)
    others = {"random": [5, 6], "local": [7], "mean layer": stream, "patch": stream}
    row = lambda condition: cutting.rows(model, sae, [1, 2], others, two[0], condition)  # noqa: E731
    said = lambda condition: [(k.feature, k.how, k.strength, k.window) for k in row(condition)]  # noqa: E731
    window = (SHORT, None)
    assert row("baseline") == []
    assert said("ablate") == [(1, "ablate", 1.0, window), (2, "ablate", 1.0, window)]
    assert said("scale") == [(1, "scale", 1.0, window), (2, "scale", 1.0, window)]
    assert said("random") == [(5, "ablate", 1.0, window), (6, "ablate", 1.0, window)]
    assert said("local") == [(7, "ablate", 1.0, window)]
    for condition in ("mean layer", "patch"):
        (only,) = row(condition)
        assert isinstance(only, Patch)
        assert (only.at, only.strength, only.window) == (1, 1.0, window)
    with pytest.raises(ValueError, match="no condition 'delete'; there are baseline"):
        row("delete")
    with pytest.raises(ValueError, match="needs an entry of that name"):
        cutting.rows(model, sae, [1], {}, two[0], "random")


# -- playing ---------------------------------------------------------------------------------------


def test_continuations_of_a_prefix_differ_by_the_edit_alone(model, sae, two, chosen, played):
    names = [name for name in CONDITIONS if name != "random"]
    assert {*played.codes} == {*names, "random 0", "random 1"}
    for name, codes in played.codes.items():
        assert codes.shape == (2, K, round(TOTAL * RATE)), name
        for i, one in enumerate(two):
            np.testing.assert_array_equal(codes[i][:, :FRAMES], one.codes)
        if name != "baseline":
            assert (codes != played.codes["baseline"]).any(), name
    for i, one in enumerate(two):
        given = torch.as_tensor(one.codes)[None]
        alone = model.generate(None, TOTAL, seed=[one.seed], prompt_codes=given)
        np.testing.assert_array_equal(alone.codes[0], played.codes["baseline"][i])
    knobs = [Knob(sae, one, how="ablate", window=(SHORT, None)) for one in chosen[0]]
    edited = trace.edit(model, cutting.edits(model, [knobs], TOTAL))
    alone = edited.generate(
        None, TOTAL, prompt_codes=torch.as_tensor(two[1].codes)[None], seed=[two[1].seed]
    )
    np.testing.assert_array_equal(alone.codes[0], played.codes["ablate"][1])


def test_random_draws_are_two_and_none_of_the_features_under_test(played, chosen):
    features, local = chosen
    assert (played.features, played.local) == (features, local)
    assert len(played.random) == 2
    for drawn in played.random:
        assert len(drawn) == len(features)
        assert not {*drawn} & {*features, *local}
    assert (played.fires > 0).all()


def test_a_patch_is_another_pieces_own_stream_and_the_mean_layer_knows_nothing(
    model, sae, two, chosen, monkeypatch
):
    asked = []

    def stop(_, turns, *rest, **more):
        asked.extend(turns)
        raise KeyboardInterrupt

    monkeypatch.setattr(cutting, "edits", stop)
    with pytest.raises(KeyboardInterrupt):
        conditions = ("mean layer", "patch")
        cutting.play(model, sae, chosen[0], [], two, TOTAL, conditions, batch=4)
    (mean,), (patch,), *_, (last,) = asked
    other = torch.as_tensor(two[1].piece)[None]
    torch.testing.assert_close(patch.stream, trace.residuals(model, other, [1])[1][0])
    assert not torch.equal(patch.stream, last.stream)
    assert (mean.stream == mean.stream[0]).all()
    torch.testing.assert_close(mean.stream[0], cutting.firing(model, sae, two).stream)


def test_a_run_that_was_stopped_goes_on_and_ends_alike(
    model, sae, two, chosen, played, tmp_path, monkeypatch
):
    settings = dict(random_seeds=(0, 1), batch=7, folder=tmp_path / "cut")
    generate, count = trace.Edited.generate, []

    def dies(self, *rest, **more):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return generate(self, *rest, **more)

    monkeypatch.setattr(trace.Edited, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        cutting.play(model, sae, *chosen, two, TOTAL, **settings)
    again = cutting.play(model, sae, *chosen, two, TOTAL, **settings)
    assert len(count) == 4  # 16 rows, 7 at once: the first step was kept
    for name, codes in played.codes.items():
        np.testing.assert_array_equal(again.codes[name], codes)
    cutting.play(model, sae, *chosen, two, TOTAL, **settings)
    assert len(count) == 4
    with pytest.raises(runs.RunError, match="holds a run with"):
        cutting.play(model, sae, *chosen[::-1], two, TOTAL, **settings)


def test_what_needs_no_feature_is_not_played_again_for_others(
    model, sae, two, chosen, played, tmp_path, monkeypatch
):
    play = lambda of: cutting.play(model, sae, *of, two, TOTAL, cutting.WHOLE, tmp_path)  # noqa: E731
    once = play(chosen)
    monkeypatch.setattr(cutting, "edits", None)
    again = play(chosen[::-1])
    for name in cutting.WHOLE:
        np.testing.assert_array_equal(once.codes[name], again.codes[name])
        np.testing.assert_array_equal(once.codes[name], played.codes[name])


# -- what cannot be asked --------------------------------------------------------------------------


def dead_and_alive(model, sae, some):
    shares = cutting.firing(model, sae, some).by_prefix
    return np.flatnonzero(~shares.any(0)).tolist(), np.flatnonzero(shares.any(0)).tolist()


def test_features_that_never_fire_are_named_or_refused(model, two, monkeypatch):
    sae = an_sae(model)
    with torch.no_grad():
        sae.b_enc[[4, 9]] = -1e4
    dead, alive = dead_and_alive(model, sae, two)
    assert {4, 9} <= {*dead}
    ask = lambda features: cutting.play(  # noqa: E731
        model, sae, features, [], two, TOTAL, ("baseline", "ablate")
    )
    with pytest.raises(ValueError, match=r"None of the features \[4, 9\] fires in any of the 2"):
        ask([4, 9])
    monkeypatch.setattr(cutting, "edits", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.warns(UserWarning, match="Feature 9 never fires"), pytest.raises(KeyboardInterrupt):
        ask([alive[0], 9])


def test_an_sae_of_another_place_is_refused(model, two):
    with pytest.raises(ValueError, match=r"layers 0 to 2, .* there is no 7"):
        astray = an_sae(model)
        astray.hook_point = {**astray.hook_point, "layer": 7, "path": "transformer.layers.7"}
        cutting.play(model, astray, [0], [1], two, TOTAL)
    with pytest.raises(ValueError, match="other weights"):
        foreign = an_sae(model)
        foreign.hook_point = {**foreign.hook_point, "fingerprint": "0123456789abcdef"}
        cutting.play(model, foreign, [0], [1], two, TOTAL)
    with pytest.raises(ValueError, match=r"not at 'transformer\.layers\.2'"):
        moved = an_sae(model)
        moved.hook_point = {**moved.hook_point, "path": "transformer.layers.2"}
        cutting.play(model, moved, [0], [1], two, TOTAL)


BAD = {
    "no prefix": (dict(prefixes=[]), "list of prefixes is empty"),
    "motif outside": (dict(prefixes=[a_prefix(0, motifs=[(3.0, 5.0)])]), "lasts 4 s, and a motif"),
    "no motif": (dict(prefixes=[a_prefix(0, motifs=[])]), "no motif that could return"),
    "lengths": (
        dict(prefixes=[a_prefix(0), a_prefix(1, codes=a_prefix(1).piece[:, :90])]),
        "90, 200 frames",
    ),
    "too short": (dict(seconds=SHORT + 3), "leave no time for a return: ask for more than 7 s"),
    "too long": (dict(seconds=31.0), "too long"),
    "both": (dict(local=[0, 2]), r"Features \[0\] are under test and local"),
    "twice": (dict(features=[0, 0]), "different features"),
    "none": (dict(features=[]), "at least one"),
    "no local": (dict(local=[]), "local is a list of different features"),
    "no such": (dict(features=[64]), "features 0 to 63; there is no 64"),
    "no such local": (dict(local=[-1]), "there is no -1"),
    "batch": (dict(batch=0), "batch is a number of rows"),
    "no piece": (dict(prefixes=[a_prefix(0), a_prefix(1, piece=None)]), 'leave the condition "pa'),
    "short piece": (dict(seconds=TOTAL + 1), "must last 8.2 s"),
    "one piece": (dict(prefixes=[a_prefix(0)]), "two compositions or more"),
    "condition": (dict(conditions=("baseline", "cut")), "there are baseline, ablate"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_are_answered_before_anything_is_played(model, sae, two, what, monkeypatch):
    monkeypatch.setattr(cutting, "edits", None)
    changes, answer = BAD[what]
    asked = dict(features=[0, 1], local=[2], prefixes=two, seconds=TOTAL) | changes
    with pytest.raises(ValueError, match=answer):
        cutting.play(model, sae, **asked)


# -- prefixes --------------------------------------------------------------------------------------


def test_prefixes_are_beginnings_of_held_out_pieces_with_whole_motifs_in_them(nano):
    found = cutting.prefixes(nano, 2, 700_010, seconds=4.0, total=8.0)
    assert len({one.name for one in found}) == 2
    for one in found:
        clip = music.make_many(1, one.seed, 8.0, "test")[0]
        assert one.name == clip.name
        first = [
            (s["start"], s["end"]) for s in clip.truth.clip["statements"] if s["kind"] == "first"
        ]
        assert one.motifs and all(motif in first and motif[1] <= 4.0 for motif in one.motifs)
        assert one.codes.shape == (nano.n_codebooks, 200)
        assert one.piece.shape == (nano.n_codebooks, 400)
        np.testing.assert_array_equal(one.codes, one.piece[:, :200])
        assert one.key == (clip.truth.clip["tonic"], clip.truth.clip["mode"])
    bars = cutting.prefixes(nano, 1, 700_013, seconds=4.0, total=12.0)[0].bars
    clip = music.make_many(1, 700_013, 12.0, "test")[0]
    back = [s["start"] for s in clip.truth.clip["statements"] if s["kind"] != "first"]
    assert bars and all(start >= 4.0 and end <= 12.0 for start, end, _ in bars)
    assert all(start in back for start, _, came in bars if came)
    for wrong in (dict(n=0), dict(seconds=9.0)):
        with pytest.raises(ValueError, match="ask for at least one, shorter than its piece"):
            cutting.prefixes(nano, **{"n": 1, "seconds": 4.0, "total": 8.0} | wrong)


def test_any_recording_has_windows_that_may_return_unless_they_are_silent(nano):
    clip = music.make(seed=5, seconds=6)
    audio = clip.audio.copy()
    audio[: 3 * clip.sample_rate] = 0
    late = dataclasses.replace(clip, audio=audio, truth=None)
    whole, half = cutting.prefixes_of(nano, [clip, late], 5.0)
    assert whole.motifs == [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.0, 5.0)]
    assert half.motifs and half.motifs[0][0] >= 1.0
    assert (whole.key is not None, half.prompt) == (True, None)
    assert whole.seed != half.seed
    silence = dataclasses.replace(clip, audio=np.zeros_like(clip.audio), truth=None)
    with pytest.raises(ValueError, match=r"lasts 6\.00 s, and the prefix is to last 10 s"):
        cutting.prefixes_of(nano, [clip])
    with pytest.raises(ValueError, match="silent, so nothing can return"):
        cutting.prefixes_of(nano, [silence], 5.0)
    with pytest.raises(ValueError, match="1 s is shorter than a motif's window"):
        cutting.prefixes_of(nano, [clip], 1.0)
    with pytest.raises(ValueError, match="no recordings"):
        cutting.prefixes_of(nano, [])


# -- what returns, and what else changed -----------------------------------------------------------


@pytest.fixture(scope="module")
def tune():
    """Six seconds of a composed piece: a motif of 2 s, and others after it."""
    return music.make(seed=1_000_700_003, seconds=12, tempo=120.0, metre=4, form="through").audio


def test_a_motif_that_is_played_again_returns_when_it_does(tune):
    rate = music.SAMPLE_RATE
    prefix = Prefix("tune", np.zeros((1, 200), int), [(0.0, 2.0)], 0, None, SHORT, (0, 0))
    sound = np.concatenate([tune[: 8 * rate], tune[: 4 * rate]])  # again 4 s after the prefix
    windows = {"before": (0.5, 2.0), "there": (3.5, 4.5), "after": (7.0, 9.0)}
    found = cutting.recurrence(sound, rate, prefix, windows)
    assert found.loc["there", "returns"] == 1
    assert found.loc["there", "probability"] > 0.9
    assert found.loc["before", "returns"] == 0
    assert found.loc["after"].isna().all()  # the sound ends before a motif fits
    gone = np.concatenate([tune[: 4 * rate], np.zeros(8 * rate, np.float32)])
    found = cutting.recurrence(gone, rate, prefix, windows)
    assert (found.loc[["before", "there"]] == 0).all().all()


def test_a_sound_without_time_or_a_motif_outside_is_refused(tune):
    prefix = Prefix("tune", np.zeros((1, 200), int), [(0.0, 2.0)], 0, None, SHORT, (0, 0))
    with pytest.raises(ValueError, match="nothing of 'tune' can return so soon after its 4 s"):
        cutting.recurrence(tune[: 5 * music.SAMPLE_RATE], music.SAMPLE_RATE, prefix)
    with pytest.raises(ValueError, match="motif of it is said to sound from 3 to 5 s"):
        outside = prefix._replace(motifs=[(3.0, 5.0)])
        cutting.recurrence(tune, music.SAMPLE_RATE, outside)


def test_silence_has_a_quality_and_is_said_to_be_silent(tune):
    prefix = a_prefix(0)
    gone = np.concatenate([tune[: 4 * music.SAMPLE_RATE], np.zeros(80_000, np.float32)])
    found = cutting.quality(gone, music.SAMPLE_RATE, prefix)
    assert all(np.isfinite(value) for value in found.values())
    assert found == {
        "silence": 1.0, "silent": 1.0, "onset_rate": 0.0, "loudness": -70.0, "in_key": 0.0
    }  # fmt: skip
    found = cutting.quality(tune, music.SAMPLE_RATE, prefix)
    assert found["silent"] == 0 and found["loudness"] > -40 and found["onset_rate"] > 0.5


def test_nats_are_those_of_what_follows(model, played):
    codes = torch.as_tensor(played.codes["baseline"])
    whole = cutting.nats(model, codes, [None] * 2, 0)
    np.testing.assert_allclose(whole, outcome.surprise(model, codes, [None] * 2), rtol=1e-5)
    known = trace.logits(model, codes[:1])[0, :, FRAMES:].log_softmax(-1)
    by_hand = -known.gather(-1, codes[0, :, FRAMES:, None]).mean()
    rest = cutting.nats(model, codes, [None] * 2, FRAMES)
    np.testing.assert_allclose(rest[0], float(by_hand), rtol=1e-5)


@pytest.fixture(scope="module")
def shown(nano):
    """Two real prefixes and, as if played, their pieces, each other's ends, and silence."""
    some = cutting.prefixes(nano, 2, 700_020, seconds=4.0, total=8.0)
    quiet = nano.encode(np.zeros(8 * nano.sample_rate, np.float32))[0].numpy()
    ends = [one.piece[:, 200:] for one in some]
    joined = lambda parts: np.stack(  # noqa: E731
        [np.concatenate([one.codes, part], 1) for one, part in zip(some, parts, strict=True)]
    )
    codes = {
        "baseline": joined(ends), "ablate": joined([quiet[:, 200:]] * 2),
        "random 0": joined(ends[::-1]), "random 1": joined(ends),
    }  # fmt: skip
    fires = np.array([0.25, 0.5])
    return some, cutting.Played(codes, 8.0, [1], [2], [[3], [4]], fires)


def test_outcomes_have_a_line_for_all_that_was_played_and_go_on(nano, shown, tmp_path, monkeypatch):
    some, was = shown
    table = cutting.outcomes(nano, some, was, folder=tmp_path)
    assert list(table["name"][:6]) == [*was.codes, "original", "stranger"]
    assert list(table["condition"][:4]) == ["baseline", "ablate", "random", "random"]
    assert list(table["draw"][:4]) == [0, 0, 0, 1]
    by = table.set_index(["prefix", "name"])
    for i, one in enumerate(some):
        mine = by.loc[one.name]
        assert mine.loc["ablate", "silent"] == 1 and mine.loc["baseline", "silent"] == 0
        assert mine.loc["ablate", "returns.short"] in (0, np.nan)
        assert mine.loc["baseline", "changed"] == 0 < mine.loc["random 0", "changed"]
        assert (mine["fires"] == was.fires[i]).all()
        same = mine.loc[["baseline", "random 1", "original"]].drop(columns=["condition", "draw"])
        assert (same.nunique() <= 1).all()
        assert mine.loc["stranger", "nats"] == mine.loc["random 0", "nats"]
    measures = [*MARGINS, "silent", "changed", "fires"]
    assert np.isfinite(table[measures].to_numpy(float)).all()
    assert table["returns.long"].isna().all()  # 4 s follow the prefix
    monkeypatch.setattr(cutting, "_listen", None)
    pd.testing.assert_frame_equal(cutting.outcomes(nano, some, was, folder=tmp_path), table)
    far = cutting.fad(nano, some, was, folder=tmp_path)
    assert {*far} == {"ablate", "random 0", "random 1", "original"}
    assert far["random 1"].value == pytest.approx(0, abs=1e-3)
    assert far["ablate"].value > 0.1
    for one in far.values():
        assert 0 <= one.low <= one.value + 1e-6 and one.value <= one.high and one.n == 2
    with pytest.raises(ValueError, match="played is of 2 prefixes, and 1 are given"):
        cutting.outcomes(nano, some[:1], was)


def test_reading_on_under_a_cut_tells_returns_from_what_is_new(model, sae, two, played):
    bars = [(4.0, 5.0, True), (5.0, 6.0, False), (6.5, 7.0, True)]
    some = [two[0]._replace(bars=bars), two[1]]
    table = cutting.expected(model, sae, some, played).set_index("name")
    assert list(table.index) == [name for name in played.codes if name != "patch"]
    assert {*table["prefix"]} == {two[0].name}  # of the other nothing is known
    assert (table[["bars.return", "bars.new"]] == [2, 1]).all().all()
    codes = torch.as_tensor(two[0].piece)[None]
    told = trace.logits(model, codes).log_softmax(-1).gather(-1, codes[..., None])[0, ..., 0]
    back = [*range(200, 250), *range(325, 350)]
    plain = table.loc["baseline"]
    assert plain["nats.return"] == pytest.approx(-float(told[:, back].mean()), rel=1e-5)
    assert plain["nats.new"] == pytest.approx(-float(told[:, 250:300].mean()), rel=1e-5)
    assert (table.drop(index="baseline")["nats.new"] != plain["nats.new"]).all()
    with pytest.raises(ValueError, match="some bring a motif back"):
        cutting.expected(model, sae, two, played)


def test_a_rise_of_returns_alone_is_found_and_a_rise_of_all_is_not():
    rng, n = np.random.default_rng(0), 30
    lines = []
    for condition, (back, new) in {
        "baseline": (0, 0), "ablate": (0.3, 0.1), "random": (0.1, 0.1), "local": (0, 0)
    }.items():  # fmt: skip
        for i in range(n):
            kinds = {"nats.return": 2 + back, "nats.new": 3 + new}
            noise = {k: v + 0.02 * rng.normal() for k, v in kinds.items()}
            lines.append({"prefix": i, "condition": condition, "draw": 0} | noise)
    found = cutting.surprises(pd.DataFrame(lines)).set_index(["condition", "against", "measure"])
    row = found.loc[("ablate", "random", "gap")]
    assert row["value"] == pytest.approx(0.2, abs=0.02)
    assert row["low"] > 0.15 and row["adjusted"] < 0.01 and row["n"] == n
    assert found.loc[("random", "baseline", "return"), "adjusted"] < 0.01
    assert found.loc[("random", "baseline", "gap"), "adjusted"] > 0.05
    assert (found["adjusted"] >= found["p"]).all()


# -- what it means ---------------------------------------------------------------------------------


def a_table(n=40, seed=0, rates=None, shift=None, **noise):
    """Outcomes as if played: ``rates`` of returns at the long horizon, ``shift`` of a measure."""
    rng = np.random.default_rng(seed)
    rates = {"baseline": 0.8, "ablate": 0.8, "random": 0.8, "local": 0.8} | (rates or {})
    luck = rng.random(n)  # shared by the conditions of a prefix
    lines = []
    for condition, rate in rates.items():
        for draw in range(2 if condition == "random" else 1):
            for i in range(n):
                line = dict(prefix=f"piece {i}", condition=condition, draw=draw)
                for window in WINDOWS:
                    share = rate if window == "long" else 0.5
                    line[f"returns.{window}"] = float(luck[i] < share)
                    line[f"probability.{window}"] = float(np.clip(share + luck[i] - 0.5, 0, 1))
                for name, margin in MARGINS.items():
                    moved = (shift or {}).get((condition, name), 0.0)
                    line[name] = 1 + moved + noise.get("spread", 0.2) * margin * rng.normal()
                lines.append(line)
    return pd.DataFrame(lines)


FEWER = {"ablate": 0.2}
VERDICTS = {
    "less recurrence, same music": (FEWER, {}, 0.2),
    "less recurrence because worse music": (FEWER, {("ablate", "nats"): 1.0}, 0.2),
    "less recurrence, and whether the music is the same is not shown": (FEWER, {}, 8.0),
    "less recurrence, and no less than other cuts bring": (
        {"ablate": 0.2, "random": 0.2, "local": 0.2}, {}, 0.2
    ),
    "more recurrence": ({"baseline": 0.2}, {}, 0.2),
    "no effect seen": ({"stranger": 0.2}, {}, 0.2),
    "no effect seen, and without a cut hardly more recurrence than by chance": (
        {"stranger": 0.75}, {}, 0.2
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_each_verdict_is_given_where_it_is_due(words):
    rates, shift, spread = VERDICTS[words]
    said = cutting.verdict(cutting.effects(a_table(rates=rates, shift=shift, spread=spread)))
    assert said["words"] == words
    assert said["selective"] == (words == WORDS[0])
    assert {*said["against"]} == {"baseline", "random", "local"}
    if words == WORDS[1]:
        assert said["worse"] == ["nats"]


def test_recurrence_may_be_judged_by_its_probability():
    table = a_table(rates=FEWER)
    table["returns.long"] = (np.arange(len(table)) % 2).astype(float)
    found = cutting.effects(table)
    assert not cutting.verdict(found)["selective"]
    assert cutting.verdict(found, by="probability")["selective"]


def test_one_control_that_does_as_much_takes_the_verdict_away():
    for control in ("random", "local"):
        found = cutting.effects(a_table(rates=FEWER | {control: 0.2}))
        assert cutting.verdict(found)["words"] == WORDS[3]


@settings(deadline=None, max_examples=4)
@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_effects_are_mean_differences_of_prefixes_and_draws_count_once(seed, rate):
    table = a_table(12, seed, {"random": rate})
    assume(all(table[f"returns.{window}"].nunique() > 1 for window in WINDOWS))
    found = cutting.effects(table)["returns"]
    mean = table.groupby("condition")["returns.long"].mean()
    row = found[(found["condition"] == "random") & (found["outcome"] == "returns")]
    row = row.set_index("window").loc["long"]
    assert row["value"] == pytest.approx(mean["random"] - mean["baseline"])
    assert row["n"] == 12
    assert row["low"] <= row["value"] <= row["high"]
    for _, family in found.groupby(["condition", "against", "outcome"]):
        np.testing.assert_allclose(family["adjusted"], stats.holm(family["p"]))
        assert len(family) == len(WINDOWS)
    assert {*found.loc[found["condition"] == "ablate", "against"]} == {
        "baseline", "random", "local"
    }  # fmt: skip


def test_quality_is_tested_for_a_difference_and_for_equality():
    shift = {("ablate", "nats"): 1.0, ("ablate", "loops"): 0.02}
    found = cutting.effects(a_table(rates=FEWER, shift=shift))["quality"]
    mine = found[found["condition"] == "ablate"].set_index("measure")
    assert {*mine.index} == {*MARGINS}
    assert mine.loc["nats", "p"] < 0.01 and mine.loc["nats", "equivalent"] > 0.5
    assert mine.loc["loops", "p"] < 0.01 and mine.loc["loops", "equivalent"] < 0.01
    assert (mine["margin"] == pd.Series(MARGINS)[mine.index]).all()


def test_what_cannot_be_compared_is_said():
    table = a_table()
    with pytest.raises(ValueError, match='condition "baseline"; it is missing'):
        cutting.effects(table[table["condition"] != "baseline"])
    with pytest.raises(ValueError, match="from one prefix"):
        cutting.effects(table[table["prefix"] == "piece 0"])
    same = table.assign(**{"returns.long": 0.0})
    with pytest.raises(ValueError, match="window 'long' all 200 continuations have the answer no"):
        cutting.effects(same)
    some = cutting.effects(same, ["short", "middle"])
    assert {*some["returns"]["window"]} == {"short", "middle"}
    with pytest.raises(ValueError, match="window 'long' the cut was not compared with baseline"):
        cutting.verdict(some)
    with pytest.raises(ValueError, match="Nothing was heard in the window 'later'"):
        cutting.effects(table, ["later"])
    alone = table[table["condition"].isin(["baseline", "ablate", "random"])]
    with pytest.raises(ValueError, match="not compared with local"):
        cutting.verdict(cutting.effects(alone))


def test_windows_without_two_answers_are_left_out_where_nobody_asked_for_them():
    table = a_table().assign(**{"returns.short": 0.0})
    assert cutting.askable(table) == ["middle", "long"]
    found = cutting.effects(table, cutting.askable(table))
    assert {*found["returns"]["window"]} == {"middle", "long"}
    nowhere = table.assign(**{f"returns.{name}": 0.0 for name in cutting.WINDOWS})
    assert cutting.askable(nowhere) == []
    assert len(cutting.effects(nowhere, [])["quality"]) > 0, "quality is told all the same"


def test_references_are_heard_and_no_part_of_what_was_played():
    table = a_table(rates={"original": 0.9, "stranger": 0.1})
    found = cutting.effects(table)["returns"]
    assert {"original", "stranger"} <= {*found["condition"]}
    silent = table.assign(**{"returns.long": np.where(table["condition"] == "original", 1.0, 0.0)})
    with pytest.raises(ValueError, match="all 200 continuations have the answer no"):
        cutting.effects(silent)


# -- the kept table --------------------------------------------------------------------------------


def test_a_kept_table_gives_its_figures(tmp_path):
    table = a_table(rates=FEWER | {"mean layer": 0.1, "stranger": 0.1})
    path = tmp_path / "cutting.json"
    read = table[["prefix", "condition", "draw"]].assign(
        **{
            "nats.return": table["nats"] + (table["condition"] == "ablate"),
            "nats.new": table["nats"],
        }
    )
    kept = {
        "provenance": {}, "rows": table.to_dict("list"), "read": read.to_dict("list"),
        "fad": {"mean layer": [1, 0.5, 2, 40]},
    }  # fmt: skip
    runs.save_json(path, kept)
    found = cutting.figures(cutting.load(path))
    of = lambda name: found[f"structure.ablation.{name}"]  # noqa: E731
    rate = lambda name: table.loc[table["condition"] == name, "returns.long"].mean()  # noqa: E731
    assert of("ablate.long").value == pytest.approx(rate("ablate") - rate("baseline"))
    assert of("ablate.long").n == 40
    assert of("ablate.long.against_random").value == pytest.approx(rate("ablate") - rate("random"))
    assert of("rate.baseline.long").value == pytest.approx(rate("baseline"))
    assert of("mean_layer.short").value == 0
    assert of("quality.fad.mean_layer") == (1, 0.5, 2, 40)
    assert of("quality.nats.ablate").n == 40
    assert of("expected.gap.ablate").value == pytest.approx(1)
    assert of("expected.gap.ablate.against_local").value == pytest.approx(1)
    unread = cutting.opened(kept | {"read": {}})
    assert {*cutting.figures(unread)} == {name for name in found if ".expected." not in name}
    with pytest.raises(FileNotFoundError, match=r"structure\.gates makes it"):
        cutting.load(tmp_path / "none.json")


@pytest.mark.slow
def test_the_whole_of_it_in_small(nano, tmp_path):
    bars = [(4.0, 5.0, True), (5.0, 6.0, False), (8.0, 10.0, True)]  # the last is not played
    some = cutting.prefixes(nano, 2, 700_030, seconds=4.0, total=9.0)
    some = [one._replace(bars=bars) for one in some]
    sae = shipped.pretrained(nano, 3)
    order = np.argsort(-cutting.firing(nano, sae, some).density, kind="stable")[:4].tolist()
    made = cutting.run(
        nano, sae, order[:2], order[2:], some, tmp_path, seconds=8.0, random_seeds=(0,)
    )
    runs.save_json(tmp_path / "cutting.json", made)
    kept = cutting.load(tmp_path / "cutting.json")
    assert len(kept["rows"]) == 2 * (len(CONDITIONS) + 2)
    assert kept["provenance"]["features"] == order[:2]
    assert kept["provenance"]["model"] == nano.fingerprint
    assert kept["fad"]["mean layer"].value > 0
    assert {*kept["read"]["condition"]} == {*CONDITIONS} - {"patch"}
    assert (kept["read"]["bars.return"] == 1).all()
