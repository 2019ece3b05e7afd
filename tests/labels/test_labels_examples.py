"""Halves share no composition, active and silent are what they say, odd features are answered."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from planted import POINT, TopK, clip_of, store_of
from scipy import sparse

from musae_utils import stats
from musae_utils.features import FeatureAtlas, encode
from musae_utils.labels import Label, Truth, choose_examples, name_features
from musae_utils.labels.contrast import followed
from musae_utils.labels.examples import LEAST, QUIET
from musae_utils.music import concepts

TONIC_C, TONIC_G, DRUMS, CLIPS = 12, 19, 24, 60


@pytest.fixture(scope="module")
def clips():
    made = [clip_of(seed, 5.0, tonic=7 * (seed % 2), mode=0) for seed in range(CLIPS)]
    again = clip_of(0, 6.0, tonic=0, mode=0)  # another performance of composition 0
    return [*made, again]


@pytest.fixture(scope="module")
def store(clips, tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("labels") / "store", clips, (POINT,))


@pytest.fixture(scope="module")
def codes(store):
    return encode(TopK(), store)


@pytest.fixture(scope="module")
def atlas(store, codes):
    return FeatureAtlas.of(TopK(), store, examples=4, codes=codes)


def changed(atlas, feature, track_mean):
    """The atlas as if a feature did otherwise."""
    import copy

    other = copy.copy(atlas)
    other.track_mean = atlas.track_mean.copy()
    other.track_mean[:, feature] = track_mean
    return other


@pytest.mark.parametrize("seconds", [None, 1.0])
def test_halves_share_no_composition_and_are_what_they_say(atlas, clips, codes, seconds):
    kin = np.array([clip["kin"] for clip in atlas.clips])
    homes = [set(), set()]
    for feature in (TONIC_C, TONIC_G, DRUMS, 0):
        chosen = choose_examples(atlas, feature, clips.__getitem__, 5, seconds, codes)
        if chosen.problem:
            continue
        for home, half in zip(homes, (chosen.finding, chosen.scoring), strict=True):
            assert LEAST <= len(half.active) == len(half.silent) <= 5
            mine = [kin[e.clip] for e in half.all]
            assert len(set(mine)) == len(mine), "one example a composition"
            home.update(mine)
            loud = [e.activation for e in half.active]
            assert loud == sorted(loud, reverse=True)
            assert max(e.activation for e in half.silent) <= QUIET * np.median(loud)
            np.testing.assert_array_equal(half.fires, [e in half.active for e in half.all])
            for e in half.all:
                rows = slice(*np.round(50 * np.array([e.start, e.end])).astype(int))
                clip = clips[e.clip]
                starts = np.cumsum([0, *(c["frames"] for c in atlas.clips)])
                here = codes[starts[e.clip] : starts[e.clip + 1], [feature]].toarray()[rows]
                assert e.activation == pytest.approx(here.mean(), rel=1e-4, abs=1e-6)
                assert e.end - e.start == pytest.approx(len(here) / 50)
                np.testing.assert_array_equal(e.curve, here[:, 0])
                sound = clip.audio if seconds is None else clip.audio[rows.start * 320 :]
                np.testing.assert_array_equal(e.audio, sound[: len(e.audio)])
                if seconds:
                    assert len(e.audio) == 16_000 and e.truth is clip.truth
    assert homes[0] and homes[1] and not homes[0] & homes[1], "one split for all features"
    assert kin[CLIPS] == kin[0]


def test_the_same_seed_gives_the_same_and_another_another_split(atlas, clips):
    pick = lambda seed: choose_examples(atlas, TONIC_C, clips.__getitem__, 5, seed=seed)  # noqa: E731
    numbers = lambda chosen: [e.clip for e in chosen.finding.all]  # noqa: E731
    assert numbers(pick(0)) == numbers(pick(0)) != numbers(pick(1))
    assert pick(0).rate == pytest.approx(atlas.density[TONIC_C])


def test_windows_are_matched_in_length_and_place(atlas, clips, codes):
    chosen = choose_examples(atlas, 0, clips.__getitem__, 4, 1.0, codes)
    assert not chosen.problem
    for half in (chosen.finding, chosen.scoring):
        apart = [abs(a.start - s.start) for a, s in zip(half.active, half.silent, strict=True)]
        assert np.mean(apart) < 1.0  # by chance 5 s of music would put them 1.6 s apart


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda n: np.zeros(n), "never fires"),
        (lambda n: np.ones(n), r"hardly ever quiet: it fires in (\d+) of the \1 compositions"),
        (lambda n: np.arange(n) == 3, r"fires in one of the \d+ compositions"),
        (lambda n: np.isin(np.arange(n), (0, CLIPS)), "fires in one of"),
        (lambda n: np.isin(np.arange(n), (3, 4, 5, 6)), "fires in [34] of .* fewer than 3"),
    ],
)
def test_features_without_two_halves_are_named_by_nobody_and_say_why(atlas, clips, make, says):
    other = changed(atlas, 5, make(len(clips)).astype(np.float32))
    chosen = choose_examples(other, 5, clips.__getitem__)
    assert not chosen.finding.all and not chosen.scoring.all

    class Never:
        name = "never"

        def label(self, half):
            raise AssertionError("it is not asked")

    ((label,), missing) = name_features([Never()], [chosen], progress=False)
    assert label.abstains and not missing
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(label.evidence)


def test_wrong_requests_are_answered(atlas, clips, codes):
    with pytest.raises(ValueError, match="go from 0 to 41"):
        choose_examples(atlas, 42, clips.__getitem__)
    with pytest.raises(ValueError, match="At least 3 examples"):
        choose_examples(atlas, 1, clips.__getitem__, 2)
    for seconds, given in ((1.0, None), (0.0, codes), (1.0, sparse.csr_array((5, 42)))):
        with pytest.raises(ValueError, match=r"Windows of .* need the activations"):
            choose_examples(atlas, 1, clips.__getitem__, 5, seconds, given)


def test_sound_without_truth_takes_it_from_the_store(atlas, clips, store):
    plain = functools.cache(lambda i: (np.stack([clips[i].audio] * 2), 16_000))
    bare = choose_examples(atlas, TONIC_C, plain, 5)
    assert bare.finding.all[0].truth is None and bare.finding.all[0].audio.ndim == 1
    label = Truth().label(bare.finding)
    assert label.abstains and "not known" in label.evidence
    known = choose_examples(atlas, TONIC_C, plain, 5, store=store)
    assert known.finding.all[0].truth.clip["tonic"] == 0


def test_the_planted_concept_is_found_and_nothing_is_found_where_nothing_is(atlas, clips):
    named = {}
    for feature, expected in ((TONIC_C, "tonic: C"), (TONIC_G, "tonic: G")):
        label = Truth().label(choose_examples(atlas, feature, clips.__getitem__).finding)
        assert isinstance(label, Label) and "Holm" in label.evidence
        named[feature] = label
        assert label.text == expected, label
    rng = np.random.default_rng(0)
    for seed in range(6):  # nothing to be found: at most a chance finding
        noise = rng.random(len(clips)).astype(np.float32) * (rng.random(len(clips)) < 0.5)
        chosen = choose_examples(changed(atlas, 5, noise), 5, clips.__getitem__, seed=seed)
        if not chosen.problem:
            named[f"noise {seed}"] = Truth().label(chosen.finding)
    found = [label.text for name, label in named.items() if str(name).startswith("noise")]
    assert len(found) > 3 and sum(map(bool, found)) <= 1, found


def test_a_feature_of_frames_is_named_by_its_frames(atlas, clips, codes):
    """Beats are in every clip alike, so only frame by frame can such a feature be named."""
    chosen = choose_examples(atlas, TONIC_C, clips.__getitem__, 10, None, codes).finding
    rng = np.random.default_rng(0)

    def beating(share):
        made = []
        for e in chosen.all:
            held = concepts.frame_concepts(e.truth)["beat: on the beat"][: len(e.curve)]
            made.append(replace(e, curve=share * held + rng.random(len(held))))
        n = len(chosen.active)
        return replace(chosen, active=made[:n], silent=made[n:])

    half = beating(0.5)
    found = followed(half)
    held = [concepts.frame_concepts(e.truth)["beat: on the beat"] for e in half.all]
    curve = np.concatenate([e.curve for e in half.all])
    expected = stats.auc(curve[:, None], np.concatenate(held)[:, None])[0, 0]
    assert found.loc["beat: on the beat", "auc"] == pytest.approx(expected)
    assert found["auc"].idxmax() == "beat: on the beat"
    beats = replace(half, silent=half.active[::2], active=half.active[1::2])  # tonics are alike
    assert Truth().label(beats).abstains, "too few compositions to be sure of it"
    label = Truth().label(replace(half, active=half.all[::2], silent=half.all[1::2]))
    assert label.text == "beat: on the beat" and "Over frames, AUC" in label.evidence, label
    assert (stats.holm(followed(beating(0.0))["p"]) > 0.05).all(), "nothing is followed by noise"
    assert followed(choose_examples(atlas, TONIC_C, clips.__getitem__).finding).empty
