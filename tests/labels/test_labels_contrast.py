"""Descriptors say what was done to the sound, and nothing where nothing was done."""

import numpy as np
import pandas as pd
import pytest
from made_examples import RATE, example, half, tone

from musae_utils.labels import Descriptors, Half, contrast, contrasts, describe
from musae_utils.labels.contrast import DESCRIPTORS, KEYS, keys
from musae_utils.music import measure
from musae_utils.stats import cliffs_delta, cohens_d, holm

N = 8


def chord(*pitches, seconds=0.6, seed=0):
    return sum(tone(440 * 2 ** ((p - 69) / 12), seconds, 0.08, seed) for p in pitches)


def test_each_descriptor_goes_where_its_words_say():
    low, high = describe(tone(220)), describe(tone(880))
    assert high["register"] - low["register"] == pytest.approx(24, abs=0.3)
    assert high["brightness"] == pytest.approx(880, rel=0.05)
    assert low["bass share"] > 0.9 > 0.1 > high["bass share"]
    assert describe(tone(440, level=0.4))["loudness"] - describe(tone(440, level=0.2))[
        "loudness"
    ] == pytest.approx(6.02, abs=0.1)
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(RATE).astype(np.float32)
    clicks = np.zeros(2 * RATE, np.float32)
    clicks[:: RATE // 4] = 0.9  # four a second: 120 and 240 BPM
    assert describe(noise)["noisiness"] > 10 * low["noisiness"]
    assert describe(clicks)["sustained share"] < 0.3 < 0.9 < low["sustained share"]
    struck = describe(clicks + 0.001 * np.resize(noise, 2 * RATE))
    assert struck["onset density"] == pytest.approx(4, abs=0.6) and low["onset density"] < 1.5
    assert struck["tempo"] == pytest.approx(120, rel=0.05) or struck["tempo"] > 200
    swell = tone(440, 2.0) * np.linspace(0.05, 1, 2 * RATE, dtype=np.float32)
    assert describe(swell)["dynamic spread"] > low["dynamic spread"] + 3
    leap = np.concatenate([tone(220, 0.5), tone(880, 0.5)])
    assert describe(leap)["pitch range"] > 20 > 1 > low["pitch range"]
    major = describe(np.concatenate([chord(60, 64, 67), chord(60, 65, 69), chord(59, 62, 67)]))
    minor = describe(np.concatenate([chord(60, 63, 67), chord(60, 65, 68), chord(60, 63, 67)]))
    assert major["mode"] > 0 > minor["mode"]
    for which, found in (("major", major), ("minor", minor)):
        assert found[f"chord: C {which}"] > 0.25 and found[f"chord: F {which}"] > 0.25
    assert {name for name in low if ": " not in name} == set(DESCRIPTORS)
    notes = {name: share for name, share in low.items() if name.startswith("note: ")}
    assert max(notes, key=notes.get) == "note: A" and sum(notes.values()) == pytest.approx(1)


@pytest.mark.parametrize("tonic", range(12))
def test_a_scale_fits_its_own_key_best(tonic):
    for mode, scale in (("major", (0, 2, 4, 5, 7, 9, 11)), ("minor", (0, 2, 3, 5, 7, 8, 10))):
        profile = np.full(12, 0.1)
        profile[[(tonic + step) % 12 for step in scale]] = 1
        profile[[(tonic + step) % 12 for step in (scale[0], scale[2], scale[4])]] += 1
        best = KEYS[int(keys(profile).argmax())]
        assert best == f"{KEYS[tonic].split()[0]} {mode}"
    assert np.isnan(keys(np.ones(12))).all()


def test_differences_become_a_sentence_with_effect_sizes():
    rng = np.random.default_rng(1)

    def make(hz, level):
        two = [tone(hz * 2 ** (rng.normal() / 24), 0.6, level * rng.uniform(0.9, 1), i)
               for i in range(2)]  # fmt: skip
        return two * (N // 2)

    named = Descriptors().label(half(3, make(880, 0.3), make(220, 0.03)))
    assert named.feature == 3 and not named.abstains
    assert "louder" in named.text or "brighter" in named.text or "higher" in named.text
    assert not set(named.text.split()) & {"quieter", "darker", "lower"}
    assert len(named.text.split(", ")) == 3 and "Holm" in named.evidence
    assert "Cliff's delta 1.00" in named.evidence and "against" in named.evidence


def test_a_key_and_a_chord_are_named_when_they_are_there():
    table = Descriptors().contrasts(
        half(1, [chord(62, 65, 69)] * N,
             [chord(60 + i % 3, 64 + i % 3, 67 + i % 3) for i in range(N)])
    )  # fmt: skip
    assert table.loc["chord: D minor", "delta"] == 1 and table.loc["chord: D minor", "active"] > 0.9
    assert table.loc["key: D minor", "delta"] == 1
    assert table.loc["key: D minor", "adjusted"] < 0.05


def test_of_note_chord_and_key_one_is_named():
    named = Descriptors().label(half(2, [tone(440, 0.6, seed=i) for i in range(N)],
                                     [tone(330, 0.6, seed=i) for i in range(N)]))  # fmt: skip
    said = [word for word in ("the note A", "A major chords", "in A", "in E") if word in named.text]
    assert said == ["the note A"]


def test_it_abstains_where_nothing_differs_or_too_few_were_heard(monkeypatch):
    sounds = [[i] for i in range(2 * N)]
    rng = np.random.default_rng(2)
    monkeypatch.setattr(contrast, "describe", lambda *_: dict(zip(names, rng.random(59))))  # noqa: B905
    names = [*DESCRIPTORS, *(f"{kind}: {key}" for kind in ("key", "chord") for key in KEYS)]
    found = 0
    for trial in range(20):
        label = Descriptors().label(half(trial, sounds[:N], sounds[N:]))
        found += not label.abstains
        assert not label.abstains or "No difference has a clear name" in label.evidence
    assert found <= 3, "one in twenty, corrected for 59 questions"
    monkeypatch.setattr(contrast, "describe", lambda x, _: {name: x[0] for name in names})
    assert not Descriptors().label(half(0, [[1.0]] * N, [[0.0]] * N)).abstains
    few = Descriptors().label(half(0, [[1.0]] * 3, [[0.0]] * 3))
    assert few.abstains, "with 3 against 3 nothing survives Holm, however different"


def test_silence_and_short_sounds_are_answered():
    silence = np.zeros(RATE, np.float32)
    assert describe(silence) == {"loudness": -80.0}
    label = Descriptors().label(half(0, [silence] * N, [tone(440, 0.5)] * N))
    assert label.text == "quieter"
    assert Descriptors().label(half(0, [silence] * N, [silence] * N)).abstains
    with pytest.raises(ValueError, match=r"needs 0\.4 s of sound"):
        describe(tone(440, 0.3))


def test_sounds_that_features_share_are_measured_once(monkeypatch):
    count = []
    real = measure.loudness
    monkeypatch.setattr(measure, "loudness", lambda *a: count.append(1) or real(*a))
    sounds = [example(i, tone(200 + 50 * i, 0.5)) for i in range(6)]
    labeler = Descriptors()
    labeler.label(Half(0, sounds[:3], sounds[3:]))
    labeler.label(Half(1, sounds[3:], sounds[:3]))
    assert len(count) == 6


def test_contrasts_are_the_statistics_of_the_house():
    rng = np.random.default_rng(3)
    a = pd.DataFrame({"same": 1.0, "x": rng.normal(3, 1, 9), "y": rng.normal(0, 1, 9)})
    b = pd.DataFrame({"same": 1.0, "x": rng.normal(0, 1, 7), "y": rng.normal(0, 1, 7)})
    a["rare"] = [1.0, 2.0] + [np.nan] * 7
    b["rare"] = 3.0
    table = contrasts(a, b)
    assert list(table.index) == ["x", "y"], "what does not vary or is rarely known is not asked"
    for name, row in table.iterrows():
        assert row["delta"] == cliffs_delta(a[name], b[name])
        assert row["d"] == cohens_d(a[name], b[name])
    np.testing.assert_allclose(table["adjusted"], holm(table["p"]))
    # All 9 above all 7: one of 16 over 9 arrangements, either way.
    apart = contrasts(pd.DataFrame({"z": np.arange(9) + 10.0}), pd.DataFrame({"z": np.arange(7.0)}))
    assert apart["p"].iloc[0] == pytest.approx(2 / 11440)


def test_ties_make_no_small_p_value_smaller():
    """Yes-or-no answers against Fisher's exact test, whose null is theirs."""
    from scipy.stats import fisher_exact

    for yes_a in range(9):
        for yes_b in range(9):
            a, b = (np.repeat([1.0, 0.0], [n, 8 - n]) for n in (yes_a, yes_b))
            table = contrasts(pd.DataFrame({"q": a}), pd.DataFrame({"q": b}))
            if len(table):
                exact = fisher_exact([[yes_a, 8 - yes_a], [yes_b, 8 - yes_b]]).pvalue
                assert table["p"].iloc[0] >= exact - 1e-9 or exact > 0.01


def test_composed_music_is_described():
    from musae_utils import music

    clip = music.make(seed=3, seconds=5, tonic=2, mode=1)
    found = describe(clip.audio, clip.sample_rate)
    assert all(np.isfinite(value) for value in found.values())
