"""Probes find what was planted, score chance where nothing is, and cannot be fooled by leakage."""

import doctest
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge

from musae_utils import probes
from musae_utils.music import Clip
from musae_utils.probes import fitting, results

relaxed = settings(deadline=None)  # the machine may be busy
quick = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 10**6)


def planted(seed=0, groups=60, rows=5, classes=4, d=12, strength=1.5):
    """Rows of compositions, one label a composition, and features that carry it linearly."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rows)
    label = rng.integers(0, classes, groups)[group]
    signal = strength * np.random.default_rng(99).standard_normal((classes, d))[label]
    return signal + rng.standard_normal((len(group), d)), label, group


def test_examples_in_the_docstrings_run():
    assert doctest.testmod(probes).failed == 0


# -- what is there is found


@quick
@given(seeds)
def test_a_planted_class_is_found(seed):
    x, y, g = planted(seed)
    r = probes.probe(x, y, g, seed=seed)
    assert r.score.value > 0.85 and r.score.above(r.chance) and r.score.n == 60
    assert r.confusion.sum() == len(y) and np.trace(r.confusion) / len(y) == r.score.value
    np.testing.assert_allclose(np.mean(r.by_group()), r.score.value)


@quick
@given(seeds)
def test_a_planted_number_is_found(seed):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(50), 4)
    tempo = rng.uniform(60, 180, 50)[g]
    x = np.outer(tempo, rng.standard_normal(8)) / 30 + 0.3 * rng.standard_normal((200, 8))
    r = probes.probe(x, tempo, g, task="regress", seed=seed)
    assert r.score.value > 0.8 and abs(r.chance) < 0.2
    assert r.metrics["within_8"].value > r.metrics["within_8_chance"].high


@quick
@given(seeds)
def test_a_planted_phase_is_found_across_the_turn(seed):
    rng = np.random.default_rng(seed)
    g, phase = np.repeat(np.arange(40), 10), rng.random(400)
    turn = np.stack([np.cos(2 * np.pi * phase), np.sin(2 * np.pi * phase)], 1)
    x = turn @ rng.standard_normal((2, 10)) + 0.2 * rng.standard_normal((400, 10))
    r = probes.probe(x, phase, g, task="circular", seed=seed)
    assert r.score.value > 2 * r.chance and r.metrics["angular_error"].high < 40


def test_a_phase_of_one_turn_is_a_phase_of_none():
    rng = np.random.default_rng(0)
    g, phase = np.repeat(np.arange(20), 5), rng.integers(0, 4, 100) / 4
    x = rng.standard_normal((100, 3)) + np.eye(4)[(4 * phase).astype(int)][:, :3]
    a = probes.probe(x, phase, g, task="circular")
    b = probes.probe(x, np.where(phase == 0, 1.0, phase), g, task="circular")
    assert a.score.value == b.score.value


# -- what is not there is not found


def test_shuffled_labels_score_chance():
    """By chance one reaches 1/4 of balanced accuracy, but the share of the commonest class (more
    than 1/4 in 60 compositions) of plain accuracy, which is why `chance` is that share."""
    balanced, gains = [], []
    for seed in range(16):
        x, y, g = planted(seed)
        shuffled = np.random.default_rng(1000 + seed).permutation(60)[g]
        r = probes.probe(x, y[::5][shuffled], g, seed=seed)
        balanced.append(r.metrics["balanced_accuracy"].value)
        gains.append(r.score.value - r.chance)
    assert abs(np.mean(balanced) - 0.25) < 0.03 and -0.05 < np.mean(gains) < 0.03


@pytest.mark.parametrize("task", fitting.TASKS)
def test_knowing_the_composition_is_worth_nothing(task):
    """The features name the composition, the label belongs to the composition: by-frame splits
    would score 100 %."""
    scores = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        g = np.repeat(np.arange(40), 6)
        label = {
            "class": rng.integers(0, 4, 40),
            "regress": rng.uniform(60, 180, 40),
            "circular": rng.random(40),
        }[task][g]
        x = np.eye(40)[g] + 0.01 * rng.standard_normal((240, 40))
        r = probes.probe(x, label, g, task=task, seed=seed)
        name = {"class": "balanced_accuracy", "regress": "r2", "circular": "accuracy"}[task]
        scores.append(r.metrics[name].value)
    chance = {"class": 0.25, "regress": 0.0, "circular": 1 / fitting.BINS}[task]
    assert np.mean(scores) < chance + 0.04


def test_choosing_the_best_of_many_noise_layers_gains_nothing():
    gains = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        g = np.arange(48)
        y = np.random.default_rng(seed).permutation(g % 4)
        layers = {f"layer {i}": rng.standard_normal((48, 6)) for i in range(16)}
        found = probes.probe_layers(layers, y, g, seed=seed)
        gains.append(found.best.score.value - 0.25)
        assert found.best.score.value < max(r.score.value for r in found.results.values())
    assert abs(np.mean(gains)) < 0.07


@quick
@given(seeds, st.integers(6, 25), st.booleans(), st.integers(1, 3))
def test_halves_share_no_composition_and_miss_none(seed, n_groups, both, repeats):
    rng = np.random.default_rng(seed)
    index = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, 50)])
    target = fitting._Target("class", rng.integers(0, 2, len(index)), np.arange(2))
    halves = fitting._halves(target, index, seed, repeats, both)
    assert len(halves) == repeats * (1 + both)
    for train, test, fold, _ in halves:
        assert not set(index[train]) & set(index[test])
        assert sorted([*train, *test]) == list(range(len(index)))
        assert abs(len(set(index[train])) - len(set(index[test]))) <= 1
        for k in range(fitting.FOLDS):  # inner folds, too, split by composition
            assert not set(index[train][fold == k]) & set(index[train][fold != k])
            assert (fold == k).any()


def test_a_half_is_standardised_without_the_other():
    x, y, g = planted(3)
    a = probes.probe(x, y, g, both=False)
    scored = np.isin(g, a.groups)
    outlier = x.copy()
    outlier[np.flatnonzero(scored)[0]] = 1e6  # one row of the scored half goes wild
    b = probes.probe(outlier, y, g, both=False)
    assert a.penalties == b.penalties and a.inner == b.inner
    assert np.abs(a.confusion - b.confusion).sum() <= 2 and len(a.groups) == 30


# -- invariances


@quick
@given(seeds, st.floats(0.001, 1000), st.floats(-100, 100))
def test_scale_offset_names_and_row_order_do_not_matter(seed, scale, offset):
    x, y, g = planted(seed, strength=0.5)
    r = probes.probe(x, y, g)
    order = np.random.default_rng(seed).permutation(len(y))
    columns = np.random.default_rng(seed).permutation(x.shape[1])
    names = np.array(["a", "b", "c", "d"])
    s = probes.probe(
        scale * x[order][:, columns] + offset, names[y[order]], [f"{i:03d}" for i in g[order]]
    )
    assert r.score.value == pytest.approx(s.score.value, abs=0.02)
    assert r.chance == pytest.approx(s.chance) and list(s.classes) == list(names)


def test_the_same_seed_gives_the_same_result_and_more_repeats_the_same_count():
    x, y, g = planted(strength=0.4)
    a, b, c = (probes.probe(x, y, g, seed=s) for s in (1, 1, 2))
    assert a.score == b.score and a.splits == b.splits and a.splits != c.splits
    d = probes.probe(x, y, g, repeats=3)
    assert d.score.n == 60 and len(d.splits) == 6 == len(d.penalties) == len(d.inner)
    assert d.confusion.sum() == 3 * len(y)


def test_constant_and_huge_features_do_no_harm():
    x, y, g = planted()
    x = np.hstack([x, np.full((len(x), 2), 7.0), 1e8 + np.zeros((len(x), 1))])
    x[g == 0, -3] = 1e4  # constant in one half only
    assert probes.probe(x, y, g).score.value > 0.85


# -- the solver and the metrics are what they are said to be


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 100)])
@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01])
def test_logistic_regression_is_scikit_learns(n, d, penalty):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) @ (rng.standard_normal((d, d)) / np.sqrt(d))
    y = (x[:, :4] + rng.standard_normal((n, 4))).argmax(1)
    train, test = np.arange(n - 20), np.arange(n - 20, n)
    half = fitting._Half(x.astype(np.float32), train, test)
    w = fitting._logistic(
        half.found, np.eye(4, dtype=np.float32)[y[train]], penalty, half.curvature, None
    )
    mean, std = x[train].mean(0), x[train].std(0)
    theirs = LogisticRegression(C=1 / (penalty * len(train)), max_iter=5000, tol=1e-8)
    theirs.fit((x[train] - mean) / std, y[train])
    logits = fitting._affine(half.scored, w)
    p = np.exp(logits - logits.max(1, keepdims=True))
    expected = theirs.predict_proba((x[test] - mean) / std)
    np.testing.assert_allclose(p / p.sum(1, keepdims=True), expected, atol=0.015)


def test_ridge_is_scikit_learns():
    rng = np.random.default_rng(0)
    x, y, new = rng.standard_normal((80, 6)), rng.standard_normal((80, 2)), rng.random((5, 6))
    ours = fitting._ridge(x, y, new, [0.5, 0.01])
    for penalty, out in zip([0.5, 0.01], ours, strict=True):
        np.testing.assert_allclose(out, Ridge(alpha=80 * penalty).fit(x, y).predict(new))


@relaxed
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60))
@pytest.mark.filterwarnings("ignore:.*(classes not in y_true|single label).*")
def test_class_metrics_are_scikit_learns(rows):
    y, p = np.array(rows).T
    target = fitting._Target("class", y, np.arange(5))
    sums = fitting._tally(target, y, p, 2).sum(0)
    ours = results._class_metrics(sums, 5)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(y, p))
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, p))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(y, p, average="macro", zero_division=0))
    assert ours["accuracy_chance"] == pytest.approx((y == 2).mean())


@relaxed
@given(st.lists(st.tuples(st.floats(40, 200), st.floats(40, 200)), min_size=3, max_size=40))
def test_number_metrics_are_scikit_learns(rows):
    y, p = np.array(rows).T
    if np.ptp(y) < 1e-3:
        y = y + np.arange(len(y))
    sums = fitting._tally(fitting._Target("regress", y, y[:0]), y, p, 100.0).sum(0)
    ours = results._number_metrics(sums, 0)
    assert ours["r2"] == pytest.approx(sk.r2_score(y, p), rel=1e-6, abs=1e-6)
    assert ours["within_8"] == pytest.approx((np.abs(p - y) <= 0.08 * np.abs(y)).mean())


def test_phase_error_goes_the_short_way_round():
    y, p = np.array([0.98, 0.5]), np.array([0.03, 0.25])
    rows = fitting._tally(fitting._Target("circular", y, y[:0]), y, p, 0.0)
    np.testing.assert_allclose(rows[:, 1], [18, 90])
    np.testing.assert_array_equal(rows[:, 2], [1, 0])  # .98 and .03 both lie in the eighth at 0


def test_sums_by_composition_add_up():
    rows, index = np.arange(12.0).reshape(6, 2), np.array([2, 0, 2, 2, 0, 4])
    expected = [rows[index == i].sum(0) for i in range(6)]
    np.testing.assert_array_equal(fitting._by_group(rows, index, 6), expected)


def test_intervals_cover_the_expected_score_and_difference():
    """What the procedure scores on average over fresh data sets lies in most intervals."""
    found = []
    for seed in range(80):
        x, y, g = planted(seed, 40, 3, 3, 6, 0.5)
        found.append(probes.probe_layers({"a": x, "b": x[:, :3]}, y, g, ["b"], seed=seed))
    for intervals in ([f.results["a"].score for f in found], [f.differences["b"] for f in found]):
        expected = np.mean([i.value for i in intervals])
        assert np.mean([i.low <= expected <= i.high for i in intervals]) >= 0.9


def test_a_perfect_score_has_an_interval():
    y = np.arange(40) % 2
    r = probes.probe(np.stack([y, y], 1), y, np.arange(40))
    assert r.score.value == 1 == r.score.high and r.score.low == pytest.approx(0.912, abs=0.001)


# -- layers against rivals


def layers_and_rivals(seed=0):
    strong, y, g = planted(seed, strength=1.2)
    weak, _, _ = planted(seed, strength=0.3)
    noise = np.random.default_rng(seed + 1).standard_normal((len(y), 30))
    return {"layer 0": weak, "layer 1": strong, "codec": weak[:, :6], "acoustic": noise}, y, g


def test_the_better_layer_is_chosen_and_beats_its_rivals():
    sources, y, g = layers_and_rivals()
    r = probes.probe_layers(sources, y, g, ["codec", "acoustic"])
    assert r.chosen == ("layer 1", "layer 1") and r.best.score == r.results["layer 1"].score
    assert r.apart and r.best_rival == "codec" and r.differences["codec"].low > 0
    codec = r.results["codec"].score
    assert r.differences["codec"].value == pytest.approx(r.best.score.value - codec.value)
    table = r.table()
    assert list(table.index) == list(sources) and table.loc["codec", "rival"]
    assert table.loc["layer 1", "score"] == r.best.score.value


def test_a_source_scores_alone_as_it_does_among_others():
    sources, y, g = layers_and_rivals()
    together = probes.probe_layers(sources, y, g, ["codec"]).results["layer 0"]
    assert together.score == probes.probe(sources["layer 0"], y, g).score


def test_a_rival_with_the_same_features_ties_exactly():
    x, y, g = planted(strength=0.4)
    r = probes.probe_layers({"layer": x, "rival": x}, y, g, ["rival"])
    assert r.differences["rival"][:3] == (0, 0, 0) and not r.apart


def test_pairing_narrows_the_interval_of_a_difference():
    x, y, g = planted(strength=0.4)
    other = x + 0.2 * np.random.default_rng(5).standard_normal(x.shape)
    r = probes.probe_layers({"layer": x, "rival": other}, y, g, ["rival"])
    width = [i.high - i.low for i in (r.differences["rival"], r.best.score)]
    assert width[0] < width[1]


# -- control tasks


@quick
@given(seeds)
def test_a_type_has_one_control_label_wherever_it_occurs(seed):
    rng = np.random.default_rng(seed)
    types, labels = rng.integers(0, 30, 300), rng.choice(["x", "y", "z"], 300)
    control = probes.control_labels(labels, types, seed)
    assert all(len(set(control[types == t])) == 1 for t in set(types))
    assert set(control) <= set(labels) and len(set(control)) > 1
    np.testing.assert_array_equal(control, probes.control_labels(labels, types, seed))


def test_a_probe_that_memorises_types_has_no_selectivity():
    rng = np.random.default_rng(0)
    g, types = np.repeat(np.arange(60), 20), rng.integers(0, 12, 1200)
    label = probes.control_labels(rng.integers(0, 4, 1200), types, seed=5)
    memory = probes.selectivity(np.eye(12)[types], label, g, types)
    assert memory.task.score.value > 0.95 and memory.control.score.value > 0.95
    assert abs(memory.value.value) < 0.05 and memory.coverage == 1


def test_a_probe_that_reads_the_property_is_selective():
    x, y, g = planted(rows=10)
    types = np.random.default_rng(0).integers(0, 40, len(y))
    r = probes.selectivity(x, y, g, types)
    assert r.value.low > 0.4 and r.control.score.value < 0.45
    assert r.value.value == pytest.approx(r.task.score.value - r.control.score.value)
    layers = probes.probe_layers({"a": x}, y, g, types=types)
    assert layers.controls["a"].value == r.value and "selectivity_low" in layers.table()


def test_types_seen_on_one_side_only_are_reported():
    x, y, g = planted()
    assert probes.selectivity(x, y, g, g).coverage == 0


@quick
@given(seeds, st.integers(8, 70))
def test_clip_types_are_equally_large_and_follow_the_sound(seed, n):
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, 50, 100) + 50 * (i % 2) for i in range(n)]
    types = probes.clip_types(tokens, 2)
    counts = np.bincount(types)
    assert len(counts) == 2 and np.ptp(counts) <= 1
    if n % 2 == 0:  # two disjoint vocabularies, two types
        assert len(set(zip(types, np.arange(n) % 2, strict=True))) == 2
    default = probes.clip_types([np.stack([t, t * 0]) for t in tokens])
    assert default.max() + 1 <= max(2, n / 8) and np.ptp(np.bincount(default)) <= 2


# -- features


@quick
@given(seeds, st.integers(1, 40), st.integers(1, 4), st.integers(1, 60))
def test_context_never_looks_ahead(seed, n, d, window):
    x = np.random.default_rng(seed).standard_normal((n, d))
    out = probes.with_context(x, (window, 10**9))
    assert out.shape == (n, 3 * d)
    t = seed % n
    expected = [x[t], x[max(0, t + 1 - window) : t + 1].mean(0), x[: t + 1].mean(0)]
    np.testing.assert_allclose(out[t], np.concatenate(expected), atol=1e-5)
    np.testing.assert_array_equal(probes.with_context(x, (window, 10**9), [t]), out[t : t + 1])


def test_acoustic_features_hear_the_pitch_in_its_frame():
    sr = 16000
    t = np.arange(2 * sr) / sr
    a, e = np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 329.63 * t)
    f = probes.acoustic_features(np.where(t < 1, a, e), sr)
    assert f.shape == (100, 104) and f.dtype == np.float32 and np.isfinite(f).all()
    chroma = f[:, :12].argmax(1)
    assert (chroma[8:43] == 9).all() and (chroma[57:92] == 4).all()
    assert abs(int((chroma == 9).sum()) - 50) <= 4  # the change lies where it lies


def test_acoustic_features_look_ahead_by_an_eighth_of_a_second_at_most():
    rng = np.random.default_rng(0)
    y = 0.1 * rng.standard_normal(16000 * 3)
    z = y.copy()
    z[32000:] = 0.1 * rng.standard_normal(16000)
    a, b = probes.acoustic_features(y, 16000), probes.acoustic_features(z, 16000)
    last = round((2.0 - 0.128) * 50) - 1  # the last frame whose middle is 0.128 s before the change
    np.testing.assert_allclose(a[:last], b[:last], atol=1e-4)
    assert np.abs(a[last + 5 :] - b[last + 5 :]).max() > 1


def test_acoustic_features_know_the_tempo():
    clicks = np.zeros(16000 * 8)
    clicks[:: 16000 // 2] = 1.0  # 120 BPM
    tempogram = probes.acoustic_features(clicks, 16000)[-50:, -24:].mean(0)
    bpm = np.geomspace(30, 300, 24)
    near = bpm[tempogram.argmax()]
    assert min(abs(near / t - 1) for t in (30, 40, 60, 120)) < 0.08


@pytest.mark.parametrize("seconds", [0.001, 0.1, 1.0])
def test_acoustic_features_of_silence_and_of_almost_nothing(seconds):
    f = probes.acoustic_features(np.zeros((2, int(44100 * seconds))), 44100)
    assert f.shape == (max(1, round(50 * seconds)), 104) and np.isfinite(f).all()


def test_stereo_at_another_rate_is_the_same_music():
    t = np.arange(32000 * 2) / 32000
    y = np.sin(2 * np.pi * 440 * t) * (1 + np.sin(2 * np.pi * 3 * t))
    a = probes.acoustic_features(np.stack([y, y]), 32000)
    b = probes.acoustic_features(y[::2], 16000)
    np.testing.assert_allclose(a[10:-10, :12], b[10:-10, :12], atol=0.05)


def test_pooling_and_position():
    x = np.random.default_rng(0).standard_normal((30, 4))
    np.testing.assert_allclose(probes.pool(x), [*x.mean(0), *x.std(0)], rtol=1e-5)
    assert probes.pool(torch.tensor(x, dtype=torch.bfloat16)).shape == (8,)
    p = probes.position_features(1500)
    assert p.shape == (1500, 16) and (p >= 0).all() and (p <= 1).all()
    assert (np.diff(p.argmax(1)) >= 0).all() and p[-1].argmax() == 15


# -- concepts


def truths(n=24, t=300, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        frames = {
            "chord_root": np.repeat(rng.integers(-1, 12, t // 30), 30),
            "chord_quality": np.repeat(rng.integers(0, 3, t // 30), 30),
            "beat": np.arange(t) / 25 % 1,
            "section": np.repeat(rng.integers(0, 2, t // 100), 100),
            "motif": np.repeat(rng.integers(-1, 3, t // 50), 50),
            "repeats": np.repeat(rng.integers(-1, 2, t // 50), 50),
        }
        clip = dict(tonic=i % 12, mode=i % 2, tempo=60.0 + 5 * i, family=["organ", "reed"][i % 2])
        clip |= dict(drums=bool(i % 2), form=[None, "AABA", "ABAB"][i % 3])
        out.append(SimpleNamespace(frames=frames, clip=clip))
    return out


@pytest.mark.parametrize("concept", probes.CONCEPTS)
def test_rows_carry_the_label_of_their_frame(concept):
    songs = truths()
    rows = probes.concept_rows(songs, concept, per_clip=5, skip=2.0)
    read = probes.CONCEPTS[concept].read
    if rows.frame is None:
        assert list(rows.labels) == [read(songs[c]) for c in rows.clip]
        assert not {None, -1} & set(rows.labels.tolist())
        return
    assert rows.frame.min() >= 100 and np.bincount(rows.clip).max() == 5
    for c, f, label in zip(rows.clip, rows.frame, rows.labels, strict=True):
        assert read(songs[c])[f] == label != -1
    assert len(set(zip(rows.clip, rows.frame, strict=True))) == len(rows.labels)
    stamps = [np.stack([np.full(300, c), np.arange(300)], 1) for c in range(24)]
    np.testing.assert_array_equal(rows.take(stamps), np.stack([rows.clip, rows.frame], 1))


def test_a_form_that_is_unknown_is_left_out():
    assert len(probes.concept_rows(truths(), "form").labels) == 16


def test_every_concept_at_once():
    songs, rng = truths(), np.random.default_rng(0)
    codes = [rng.integers(0, 20, (4, 300)) for _ in songs]
    chords = rng.standard_normal((13, 8)) * 2
    layer = [
        torch.tensor(chords[s.frames["chord_root"]] + rng.standard_normal((300, 8))) for s in songs
    ]
    noise = [rng.standard_normal((301, 5)) for _ in songs]
    out = probes.probe_concepts(
        {"layer": layer, "codec": noise}, songs, np.arange(24), ["codec"], codes, per_clip=8
    )
    assert list(out) == list(probes.CONCEPTS)
    assert out["chord_root"].apart and out["chord_root"].controls["layer"].value.low > 0.3
    assert out["tempo"].best.task == "regress" and out["beat"].best.task == "circular"
    assert all(set(r.controls) == {"layer", "codec"} for r in out.values())
    same = [SimpleNamespace(frames=s.frames, clip={**s.clip, "mode": 0}) for s in songs]
    assert not probes.probe_concepts({"layer": layer}, same, np.arange(24), concepts=["mode"])


# -- bad input

X, Y, G = planted()


def with_nan():
    x = X.copy()
    x[3, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: probes.probe(with_nan(), Y, G), "NaN or infinity in 1 of 300 rows"),
        (lambda: probes.probe(X[:10], Y, G), r"shape \(10, 12\); 300 labels"),
        (lambda: probes.probe(X[:, 0], Y, G), "features of shape"),
        (lambda: probes.probe(X, Y, G[:5]), "one entry a row"),
        (lambda: probes.probe(X, np.zeros(300), G), "must vary"),
        (lambda: probes.probe(X[:0], Y[:0], G[:0]), "there are none"),
        (lambda: probes.probe(X, Y, G % 5), "5 compositions are too few"),
        (lambda: probes.probe(X, X[:, 0], G), "task='regress'"),
        (lambda: probes.probe(X, [None, *Y[1:]], G), "without a label"),
        (lambda: probes.probe(X, np.where(G < 9, np.nan, 1.0), G, "regress"), "NaN"),
        (lambda: probes.probe(X, Y.astype(str), G, "regress"), "numbers"),
        (lambda: probes.probe(X, Y, G, "circular"), "from 0 to 1"),
        (lambda: probes.probe(X, Y, G, "magic"), "magic"),
        (lambda: probes.probe(X, Y, G, repeats=0), "repeats is 0"),
        (lambda: probes.probe(X, G == 3, G), "single label"),
        (lambda: probes.probe(X.astype(str), Y, G), "real numbers"),
        (lambda: probes.probe(X * 1e300, Y, G), "too large"),
        (lambda: probes.probe_layers({"a": X}, Y, G, ["b"]), "'b' is not among"),
        (lambda: probes.probe_layers({"a": X}, Y, G, ["a"]), "No layer is left"),
        (lambda: probes.probe_layers({"a": X}, Y, G).apart, "No rivals"),
        (lambda: probes.probe(X, X[:, 0], G, "regress").confusion, "Only classes"),
        (lambda: probes.selectivity(X, Y, G, Y[:9]), "types has shape"),
        (lambda: probes.selectivity(X, Y, G, Y * 0), "same type"),
        (lambda: probes.clip_types([[1, 2]] * 3), "four clips"),
        (lambda: probes.clip_types([[0.5]] * 9), "non-negative integers"),
        (lambda: probes.pool(X[:0]), "T at least 1"),
        (lambda: probes.acoustic_features([np.nan] * 100, 16000), "100 samples"),
        (lambda: probes.acoustic_features([], 16000), "needed"),
        (lambda: probes.concept_rows([], "swing"), "swing"),
        (lambda: probes.concept_rows([SimpleNamespace(truth=None)], "mode"), "no ground truth"),
        (lambda: probes.concept_rows(truths(4, 300), "beat", skip=9), "None of the clips"),
        (
            lambda: probes.probe_concepts({"a": [X] * 3}, truths(4), np.arange(4)),
            "numbers differ",
        ),
        (
            lambda: probes.probe_concepts({"a": [X] * 4, "b": [X[:90]] * 4}, truths(4), range(4)),
            "same frames",
        ),
    ],
)
def test_bad_input_is_answered_in_a_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# -- what is probed


@pytest.fixture(scope="module")
def tiny():
    from musae_utils.models import MusicModel, compat, nano  # noqa: F401

    from audiocraft.models import MusicGen  # isort: skip  (after the patches)

    torch.manual_seed(0)
    small = dict(encoder_width=8, decoder_width=8, encoder_dilations=[1], decoder_dilations=[1])
    size = dict(cardinality=32, codebooks=4)
    codec = nano.build_codec(small | size | dict(n_fft=512, dim=8))
    lm = nano.build_lm(size | dict(dim=32, layers=3, heads=2)).eval()
    return MusicModel("tiny", MusicGen("tiny", codec.eval(), lm, max_duration=30), torch.float32)


def test_layers_and_rivals_are_aligned_to_frames_and_know_nothing_of_the_future(tiny):
    rng = np.random.default_rng(0)
    sound = (0.1 * rng.standard_normal((9, 16_000))).astype(np.float32)  # more than one batch
    clips = [Clip(s) for s in sound]
    codes = tiny.encode(sound)
    found = probes.layer_features(tiny, codes)
    assert list(found) == ["embeddings", "layer 0", "layer 1", "layer 2"]
    rivals = probes.rival_features(tiny, clips[:2])
    assert set(found) | set(rivals) == {*probes.RIVALS, *(f"layer {i}" for i in range(3))}
    assert {len(x) for row in (found | rivals).values() for x in row} == {50}
    changed = codes.clone()
    changed[..., 30:] = (changed[..., 30:] + 1) % 32
    other = probes.layer_features(tiny, changed, layers=[2])
    for name in ("layer 2", "embeddings"):
        a, b = np.stack(found[name]), np.stack(other[name])
        # Frame t is read K - 1 positions later, when the first codebooks of the next are there.
        np.testing.assert_array_equal(a[:, :27], b[:, :27])
        assert (a[:, 30] != b[:, 30]).any()


def test_codec_latents_are_what_the_quantiser_gets(tiny):
    sound = 0.1 * np.random.default_rng(1).standard_normal((3, 16_000)).astype(np.float32)
    latents = tiny.latents(sound)
    assert torch.equal(tiny.codec.quantizer.encode(latents), tiny.encode(sound))


def test_an_untrained_twin_forgets_and_the_model_remembers(tiny):
    codes = torch.randint(32, (2, 4, 20), generator=torch.Generator().manual_seed(0))
    before = probes.layer_features(tiny, codes)
    with probes.untrained(tiny) as twin:
        assert twin is tiny
        twins = probes.layer_features(twin, codes)
    with pytest.raises(KeyboardInterrupt), probes.untrained(tiny, seed=1):
        raise KeyboardInterrupt
    after = probes.layer_features(tiny, codes)
    for name, x in before.items():
        assert np.isfinite(twins[name][0]).all() and not np.array_equal(twins[name][0], x[0])
        np.testing.assert_array_equal(after[name], x)
