"""Many clips: attributes are independent unless asked otherwise, and splits share nothing."""

import numpy as np
import pytest

from musae_utils.music import Spec, association, dataset, make, make_many
from musae_utils.music.clip import Clip
from musae_utils.music.dataset import ATTRIBUTES, SPLIT_SEEDS
from musae_utils.music.render import truth_of


@pytest.fixture
def unheard(monkeypatch):
    """Clips with their truth but without the cost of their sound."""

    def written(score, seed=None):
        sound = np.zeros(1, np.float32)
        return Clip(sound, truth=truth_of(score, sound), provenance={"seed": seed, "score": score})

    monkeypatch.setattr(dataset, "render", written)


def test_no_attribute_tells_of_another(unheard):
    table = association(make_many(300, seconds=5))
    assert list(table.index) == list(table.columns) == list(ATTRIBUTES)
    np.testing.assert_array_equal(np.diag(table), 1)
    np.testing.assert_array_equal(table, table.T)
    others = table.to_numpy()[~np.eye(len(table), dtype=bool)]
    assert others.max() < 0.2 and others.mean() < 0.04


@pytest.mark.parametrize("pair", [
    ("family", "drums"), ("mode", "register"), ("tonic", "family"), ("tempo", "dynamics"),
])  # fmt: skip
def test_a_confound_ties_two_attributes_and_no_others(unheard, pair):
    tied = association(make_many(200, seconds=5, confound=pair))
    # Tempo is tied by its marks, and reported in three classes: not quite one to one.
    assert tied.loc[pair] > (0.75 if "tempo" in pair else 0.97)
    rest = tied.drop(index=list(pair), columns=list(pair)).to_numpy()
    assert rest[~np.eye(len(rest), dtype=bool)].max() < 0.25
    loose = association(make_many(200, seconds=5, confound=pair, confound_strength=0.0))
    assert loose.loc[pair] < 0.2
    half = association(make_many(200, seconds=5, confound=pair, confound_strength=0.5)).loc[pair]
    assert loose.loc[pair] < half < tied.loc[pair]


def test_splits_share_no_composition(unheard):
    seeds = [
        {c.provenance["seed"] for c in make_many(20, seed, 5, split)}
        for split in SPLIT_SEEDS
        for seed in (0, 20)
    ]
    assert len(set.union(*seeds)) == 20 * len(seeds)
    tunes = [
        {tuple((n.start, n.pitch) for n in c.truth.notes) for c in make_many(40, 0, 5, split)}
        for split in SPLIT_SEEDS
    ]
    assert len(set.union(*tunes)) == 3 * 40
    for bad in ({"seed": 999_999_999}, {"seed": -1}, {"n": -1}):  # would reach into another split
        with pytest.raises(ValueError, match="both count from 0"):
            make_many(**({"n": 2} | bad))
    with pytest.raises(
        ValueError, match="split is 'dev'; it can be one of train, test, validation"
    ):
        make_many(1, split="dev")


def test_clips_go_on_where_the_last_call_ended(unheard):
    a, b = make_many(4, seconds=5), make_many(2, seed=2, seconds=5)
    assert [c.truth.notes for c in a[2:]] == [c.truth.notes for c in b]
    assert make_many(0) == []


def test_held_out_presets_change_the_instrument_and_nothing_else(unheard):
    heard, kept = (make_many(30, seconds=5, held_out_presets=h) for h in (False, True))
    for a, b in zip(heard, kept, strict=True):
        assert a.truth.notes == b.truth.notes
        assert a.truth.clip["family"] == b.truth.clip["family"]
        assert a.truth.clip["program"] != b.truth.clip["program"]


def test_fixed_fields_hold_in_every_clip(unheard):
    clips = make_many(10, seconds=5, family="flute", tonic=2, mode=1)
    assert {(c.truth.clip["family"], c.truth.clip["key"]) for c in clips} == {("flute", "D minor")}


def test_make_takes_a_spec_or_its_fields():
    a, b = make(Spec(tonic=2, seconds=5), 3), make(seed=3, tonic=2, seconds=5)
    np.testing.assert_array_equal(a.audio, b.audio)
    assert a.truth.clip["tonic"] == 2 and a.name == "composition 3"
    with pytest.raises(ValueError, match=r"no field loudness; its fields are tonic, .*seconds"):
        make(loudness=3)
    with pytest.raises(ValueError, match=r"confound is \('tonic', 'weather'\)"):
        make_many(1, confound=("tonic", "weather"))
