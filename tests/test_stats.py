"""Known answers from scipy and hand calculations, and properties that must hold for any sample."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats

from musae_utils import stats

finite = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 3))
samples = st.integers(3, 25).flatmap(lambda n: arrays(float, n, elements=finite))
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=30)

relaxed = settings(deadline=None)  # the machine may be busy


def test_examples_in_the_docstrings_run():
    assert doctest.testmod(stats).failed == 0


# -- intervals


@relaxed
@given(samples, st.floats(-50, 50))
def test_bootstrap_holds_its_estimate_and_moves_with_the_data(x, shift):
    a, b = stats.bootstrap(x, n=200), stats.bootstrap(x + shift, n=200)
    assert a.low <= a.value + 1e-9 and a.value <= a.high + 1e-9 and a.n == len(x)
    np.testing.assert_allclose(np.array(b[:3]) - shift, a[:3], atol=1e-6)


def test_bootstrap_of_the_mean_is_scipys():
    x = np.random.default_rng(0).exponential(size=40)
    for method in ("percentile", "BCa"):
        ours = stats.bootstrap(x, n=500, seed=3, method=method)
        theirs = scipy_stats.bootstrap(
            (x,), np.mean, n_resamples=500, method=method, rng=np.random.default_rng(3)
        ).confidence_interval
        np.testing.assert_allclose(ours[1:3], theirs)


def test_a_statistic_of_several_arrays_is_resampled_by_row():
    x = np.random.default_rng(0).standard_normal(60)
    r = stats.bootstrap((x, 2 * x), lambda a, b: np.corrcoef(a, b)[0, 1], n=100)
    assert r.low == pytest.approx(1) and r.high == pytest.approx(1)


def test_repeating_every_row_changes_a_plain_interval_but_not_a_clustered_one():
    x = np.random.default_rng(1).standard_normal(30)
    wide = stats.bootstrap(x, groups=np.arange(30))
    repeated = stats.bootstrap(np.repeat(x, 20), groups=np.repeat(np.arange(30), 20))
    plain = stats.bootstrap(np.repeat(x, 20))
    np.testing.assert_allclose(repeated, wide)
    assert plain.high - plain.low < 0.4 * (repeated.high - repeated.low)


def test_grouped_mean_and_grouped_function_agree():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 25, 300)
    x = rng.standard_normal(300) + groups
    fast = stats.bootstrap(x, groups=groups, n=4000)
    slow = stats.bootstrap(x, lambda v: v.mean(), groups=groups, n=4000)
    assert fast.value == slow.value
    np.testing.assert_allclose(fast[1:3], slow[1:3], atol=0.02 * x.std() + 0.2)


def test_group_weights_reproduce_the_clustered_bootstrap():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 40, 400)
    x = rng.standard_normal(400) + 0.2 * groups
    w = stats.resample_groups(40, 4000, seed=1)
    assert (w.sum(1) == 40).all()
    means = (w @ np.bincount(groups, x)) / (w @ np.bincount(groups))
    expected = stats.bootstrap(x, groups=groups, n=4000)
    np.testing.assert_allclose(np.percentile(means, [2.5, 97.5]), expected[1:3], atol=0.15)


def test_clustered_intervals_cover_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = np.repeat(rng.standard_normal(30), 5) + rng.standard_normal(150)
        i = stats.bootstrap(x, groups=np.repeat(np.arange(30), 5), n=300, seed=seed)
        hits += i.low <= 0 <= i.high
    assert 0.87 <= hits / 200 <= 0.99


def test_constant_values_have_an_interval_of_width_zero():
    assert stats.bootstrap([2.0] * 5, method="BCa") == (2.0, 2.0, 2.0, 5)


@relaxed
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_by_its_formula(kn):
    k, n = kn
    i, z = stats.proportion(k, n), 1.959963984540054
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(i[1:3], np.clip([centre - half, centre + half], 0, 1), atol=1e-9)


def test_intervals_apart():
    low, high = stats.Interval(0.5, 0.4, 0.6, 9), stats.Interval(0.8, 0.7, 0.9, 9)
    assert high.above(low) and not low.above(high) and not low.above(low) and high.above(0.69)
    assert f"{high:.1f}" == "0.8 [0.7, 0.9], n = 9" and str(high).startswith("0.800 [0.700")


# -- tests


@settings(deadline=None, max_examples=40)
@given(arrays(float, 9, elements=finite), st.sampled_from(["sign-flip", "wilcoxon", "t"]))
def test_swapping_the_sides_keeps_p_and_flips_the_effect(x, method):
    y = np.roll(x, 1) * 0.5
    ab = stats.paired_test(x, y, method=method, n=199)
    ba = stats.paired_test(y, x, method=method, n=199)
    assert ab.p == pytest.approx(ba.p, abs=1e-9) and 0 <= ab.p <= 1
    assert ab.difference.value == pytest.approx(-ba.difference.value)


def test_sign_flips_of_few_pairs_are_counted_exactly():
    assert stats.paired_test([1, 2, 3, 4], [0, 0, 0, 0]).p == pytest.approx(2 / 2**4)


def test_t_and_wilcoxon_are_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 30))
    a += 0.4
    t = scipy_stats.ttest_rel(a, b)
    assert stats.paired_test(a, b, method="t").p == pytest.approx(t.pvalue)
    assert stats.paired_test(a, b, method="wilcoxon", alternative="greater").p == pytest.approx(
        scipy_stats.wilcoxon(a, b, alternative="greater").pvalue
    )


def test_frames_of_one_composition_are_one_observation():
    rng = np.random.default_rng(0)
    shift = np.repeat(rng.standard_normal(8), 100)  # differs by composition, zero on average
    a, b = shift + rng.standard_normal(800), rng.standard_normal(800)
    groups = np.repeat(np.arange(8), 100)
    naive = stats.paired_test(a, b, method="t")
    fair = stats.paired_test(a, b, groups, method="t")
    assert fair.difference.n == 8 and fair.p > 0.05 > naive.p


def test_equal_samples_show_no_difference():
    for method in ("sign-flip", "wilcoxon", "t"):
        result = stats.paired_test([1.0, 2, 3], [1.0, 2, 3], method=method)
        assert result.p == 1 and result.d == 0


def test_equivalence_agrees_with_its_interval():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(50)
    b = a + 0.1 * rng.standard_normal(50)
    for margin in (0.005, 0.01, 0.02, 0.03, 0.05, 0.2):  # on both sides of the interval's ends
        e = stats.equivalence(a, b, margin)
        assert (e.p < 0.05) == (-margin < e.difference.low and e.difference.high < margin)
    assert stats.equivalence(a, b, 0.2).p < 0.001 < 0.5 < stats.equivalence(a, b + 1, 0.2).p
    assert stats.equivalence(a, a, 0.1).p == 0 and stats.equivalence([2, 3], [1, 2], 0.5).p == 1


@relaxed
@given(p_lists)
def test_adjusted_p_values_keep_order_and_never_shrink(p):
    p = np.array(p)
    bonferroni = np.minimum(1, p * len(p))
    h, bh = stats.holm(p), stats.benjamini_hochberg(p)
    assert (p <= bh + 1e-12).all() and (bh <= h + 1e-12).all() and (h <= bonferroni + 1e-12).all()
    for adjusted in (h, bh):
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


@relaxed
@given(p_lists, st.randoms())
def test_adjustment_does_not_depend_on_the_order(p, random):
    shuffled = random.sample(range(len(p)), len(p))
    for adjust in (stats.holm, stats.benjamini_hochberg):
        np.testing.assert_allclose(adjust(np.array(p)[shuffled]), adjust(p)[shuffled])


def test_holm_and_bh_by_hand():
    p = [0.01, 0.02, 0.03, 0.005]
    np.testing.assert_allclose(stats.holm(p), [0.03, 0.04, 0.04, 0.02])
    np.testing.assert_allclose(stats.benjamini_hochberg(p), [0.02, 0.08 / 3, 0.03, 0.02])


# -- effect sizes


def test_cohens_d_by_hand():
    assert stats.cohens_d([2, 4, 6], [1, 3, 5]) == pytest.approx(0.5)
    assert stats.cohens_d([2.0, 4, 7], [1, 3, 5], paired=True) == pytest.approx(
        (4 / 3) / np.std([1, 1, 2], ddof=1)
    )
    assert stats.cohens_d([1, 1], [1, 1]) == 0 and stats.cohens_d([2, 2], [1, 1]) == np.inf


@relaxed
@given(samples, samples)
def test_cliffs_delta_counts_pairs(a, b):
    assert stats.cliffs_delta(a, b) == pytest.approx(np.sign(a[:, None] - b[None]).mean(), abs=1e-9)


def test_odds_ratio_is_scipys_and_survives_empty_cells():
    table = [[66, 34], [17, 83]]
    theirs = scipy_stats.contingency.odds_ratio(table, kind="sample")
    ours = stats.odds_ratio(table)
    expected = [theirs.statistic, *theirs.confidence_interval()]
    np.testing.assert_allclose(ours[:3], expected, rtol=1e-6)
    assert np.isfinite(stats.odds_ratio([[10, 0], [3, 7]])).all()


categories = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc")), min_size=4, max_size=60)


@relaxed
@given(categories)
def test_cramers_v_is_symmetric_and_bounded(rows):
    a, b = zip(*rows, strict=True)
    v = stats.cramers_v(a, b)
    renamed = stats.cramers_v([f"<{x}>" for x in a], b)
    if np.isnan(v):
        assert np.isnan(renamed) and np.isnan(stats.cramers_v(b, a))
    else:
        assert 0 <= v <= 1 and v == pytest.approx(renamed, abs=1e-6)
        assert v == pytest.approx(stats.cramers_v(b, a), abs=1e-6)


def test_cramers_v_without_its_correction_is_scipys():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 500)
    b = np.where(rng.random(500) < 0.5, a, rng.integers(0, 4, 500))
    table = np.zeros((4, 4), int)
    np.add.at(table, (a, b), 1)
    raw = scipy_stats.contingency.association(table)
    phi2 = max(0, 3 * raw**2 - 9 / 499)
    assert stats.cramers_v(a, b) == pytest.approx(np.sqrt(phi2 / (3 - 9 / 499)))


def test_cramers_v_of_independent_attributes_is_near_zero_where_the_raw_one_is_not():
    ours, raw = [], []
    for seed in range(30):
        a, b = np.random.default_rng(seed).integers(0, 12, (2, 200))
        table = np.zeros((12, 12), int)
        np.add.at(table, (a, b), 1)
        ours.append(stats.cramers_v(a, b))
        raw.append(scipy_stats.contingency.association(table))
    assert np.mean(ours) < 0.06 < 0.2 < np.mean(raw)


@settings(deadline=None, max_examples=40)  # scikit-learn's takes its time
@given(
    st.integers(0, 2**32 - 1), st.integers(2, 60), st.floats(0, 1), st.sampled_from([2, 5, 1000])
)
def test_auc_is_sklearns_dense_or_sparse_with_ties_and_negative_scores(seed, n, filled, values):
    from scipy import sparse
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    scores = np.where(rng.random((n, 3)) < filled, rng.integers(-1, values, (n, 3)), 0) / 7
    labels = rng.random((n, 4)) < rng.random(4)
    found = stats.auc(sparse.csr_array(scores), labels)
    np.testing.assert_allclose(found, stats.auc(scores, labels))
    for i, j in np.ndindex(3, 4):
        if labels[:, j].all() or not labels[:, j].any():
            assert np.isnan(found[i, j])
        else:
            assert found[i, j] == pytest.approx(roc_auc_score(labels[:, j], scores[:, i]))


def test_auc_leaves_its_input_alone_and_refuses_what_it_cannot_rank():
    from scipy import sparse

    scores = sparse.csc_array(np.array([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0]]))
    before = scores.toarray()
    stats.auc(scores, np.array([[True], [False], [True]]))
    np.testing.assert_array_equal(scores.toarray(), before)
    with pytest.raises(ValueError, match="yes or no"):
        stats.auc(scores, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="3 rows"):
        stats.auc(scores, np.zeros((2, 1), bool))
    for bad in (np.array([[np.nan]]), sparse.csc_array(np.array([[np.inf]]))):
        with pytest.raises(ValueError, match="NaN"):
            stats.auc(bad, np.ones((1, 1), bool))


def test_cramers_v_of_what_never_varies_is_not_a_number():
    assert np.isnan(stats.cramers_v([1, 1, 1], [1, 2, 3]))


# -- bad input


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.bootstrap([]), "non-empty"),
        (lambda: stats.bootstrap([1.0, float("nan")]), "1 of 2"),
        (lambda: stats.bootstrap([1.0]), "at least two values"),
        (lambda: stats.bootstrap([1, 2, 3], groups=[0, 0, 0]), "at least two groups"),
        (lambda: stats.bootstrap([1, 2, 3], groups=[0, 1]), "3 values"),
        (lambda: stats.bootstrap(([1, 2], [1, 2, 3]), np.dot), r"\[2, 3\]"),
        (lambda: stats.bootstrap(([1, 2], [1, 2])), "which statistic"),
        (lambda: stats.paired_test([1, 2], [1, 2, 3]), "as many of each"),
        (lambda: stats.paired_test([1, 2], [1, 3], method="magic"), "magic"),
        (lambda: stats.equivalence([1, 2], [1, 2], 0), "positive"),
        (lambda: stats.proportion(3, 2), "no proportion"),
        (lambda: stats.holm([0.1, float("nan")]), "from 0 to 1"),
        (lambda: stats.benjamini_hochberg([1.1]), "from 0 to 1"),
        (lambda: stats.odds_ratio([[1, 2, 3]]), "2 × 2"),
        (lambda: stats.cramers_v([1, 2], [1]), "equally long"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()
