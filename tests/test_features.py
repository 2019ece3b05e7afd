"""The atlas against dense references and planted answers; what it says to bad input."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import OTHER, POINT, TopK, clip_of, rows_of, store_of
from scipy import sparse

from musae_utils import features, runs
from musae_utils.features import FeatureAtlas, encode
from musae_utils.features import atlas as inside
from musae_utils.music import concepts

relaxed = settings(deadline=None, max_examples=30)
CLIPS = 24
DEAD = -1  # the stand-in's last feature


@pytest.fixture(scope="module")
def clips():
    return [
        clip_of(seed, 5.0 if seed % 3 else 6.0, tonic=7 * (seed % 2), mode=0)
        for seed in range(CLIPS)
    ]


@pytest.fixture(scope="module")
def store(clips, tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("features") / "store", clips, (POINT, OTHER))


@pytest.fixture(scope="module")
def codes(store):
    return encode(TopK(), store)


@pytest.fixture(scope="module")
def atlas(store):
    return FeatureAtlas.of(TopK(), store, examples=4)


# -- activations and statistics


def test_dense_and_sparse_coders_say_the_same_in_any_chunks(store, codes, monkeypatch):
    x = store[POINT][:]
    expected = TopK(dense=True).encode(x).numpy()
    np.testing.assert_array_equal(codes.toarray(), expected)
    monkeypatch.setattr(inside, "DENSE", 1000)  # a few rows at a time
    for dense in (False, True):
        again = encode(TopK(dense=dense), store)
        np.testing.assert_array_equal(again.toarray(), expected)
        assert again.has_canonical_format or (again.data > 0).all()


def test_statistics_are_those_of_the_dense_array(store, codes, atlas):
    x = codes.toarray()
    fires = x > 0
    np.testing.assert_allclose(atlas.density, fires.mean(0), rtol=1e-6)
    np.testing.assert_allclose(atlas.peak, x.max(0))
    parts = [x[clip.rows] for clip in store.clips]
    np.testing.assert_allclose(atlas.track_mean, [p.mean(0) for p in parts], rtol=1e-5)
    np.testing.assert_allclose(atlas.track_rate, [(p > 0).mean(0) for p in parts], rtol=1e-5)
    for f in range(len(atlas)):
        active = x[fires[:, f], f]
        if len(active):
            assert atlas.mean[f] == pytest.approx(active.mean(), rel=1e-5)
            expected = np.quantile(active, inside.QUANTILES)
            np.testing.assert_allclose(atlas.quantiles[f], expected, rtol=1e-5)
        else:
            assert atlas.mean[f] == atlas.peak[f] == 0 and not atlas.quantiles[f].any()
    np.testing.assert_allclose(atlas.rate, np.mean([(p > 0).mean(0) for p in parts], 0), rtol=1e-5)
    np.testing.assert_allclose(atlas.share, np.mean([(p > 0).any(0) for p in parts], 0))


def test_features_that_never_fire_are_listed_and_nothing_else(atlas):
    dead = np.flatnonzero(~atlas.fires)
    assert len(atlas) - 1 in dead and len(dead) < len(atlas) / 2
    assert not atlas.kept()[dead].any()
    assert (atlas.examples[dead, : -inside.SILENT] == -1).all()
    assert not atlas.curves[dead].any() and np.isnan(atlas.place[dead]).all()
    for which, how in (atlas.neighbours, atlas.partners):
        assert not np.isin(which, dead).any()
        assert (which[dead] == -1).all() or (how[dead] >= 0).all()
    assert atlas.follows(dead[0]).empty
    assert atlas.summary()["dead"] == len(dead)


def test_the_filter_is_what_it_says_and_its_sensitivity_is_monotone(atlas):
    for by in ("rate", "share"):
        value = getattr(atlas, by)
        expected = (value > 0) & (value >= 0.02) & (value <= 0.3)
        np.testing.assert_array_equal(atlas.kept(0.02, 0.3, by), expected)
    table = atlas.sensitivity(lows=(0.001, 0.01, 0.1), highs=(0.05, 0.25, 1.0))
    assert table.loc[("rate", 0.01), 0.25] == atlas.kept().sum()
    for by in ("rate", "share"):
        part = table.loc[by]
        assert (part.diff(axis=1).iloc[:, 1:].dropna() >= 0).all(axis=None)
        assert (part.diff().iloc[1:].dropna() <= 0).all(axis=None)
    assert table[0.05].isna().sum() == 2  # 0.1 to 0.05 is no range
    with pytest.raises(ValueError, match="low < high"):
        atlas.kept(0.3, 0.1)
    with pytest.raises(ValueError, match="'rate' or 'share'"):
        atlas.kept(by="density")


# -- examples and curves


def test_examples_are_the_strongest_the_middling_and_the_silent(atlas):
    top = [i for i, kind in enumerate(atlas.kinds) if kind == "top"]
    kin = np.array([clip["kin"] for clip in atlas.clips])
    for f in np.flatnonzero(atlas.fires):
        score, chosen = atlas.track_mean[:, f], atlas.examples[f]
        here = chosen[chosen >= 0]
        assert len(set(kin[here])) == len(here), "each of another composition"
        strongest = chosen[top][chosen[top] >= 0]
        best = sorted((score[kin == k].max() for k in set(kin)), reverse=True)
        best = [value for value in best if value > 0][: len(top)]
        np.testing.assert_allclose(score[strongest], best)
        for kind, clip in zip(atlas.kinds, chosen, strict=True):
            if kind == "silent" and clip >= 0:
                assert score[clip] == 0
            if kind == "middle" and clip >= 0:
                assert 0 < score[clip] <= score[strongest[-1]]


def test_compositions_and_near_duplicates_count_once(clips, tmp_path):
    again = clip_of(0, tonic=0, mode=0)  # another crop or performance of composition 0
    again.name = "piece 0 again"
    copy = clip_of(1, tonic=7, mode=0)  # the same sound under another name and composition
    copy.name, copy.provenance = "a copy", {**copy.provenance, "seed": 999}
    reads = lambda c: rows_of(clips[1] if c.name == "a copy" else c)  # noqa: E731
    store = store_of(tmp_path / "store", [*clips[:8], again, copy], read=reads)
    kin = np.array([c["kin"] for c in FeatureAtlas.of(TopK(), store).clips])
    assert kin[8] == kin[0] and kin[9] == kin[1]
    assert len(set(kin)) == 8


def test_curves_are_the_activations_in_seconds(store, codes, atlas):
    x = codes.toarray()
    for f in (0, 3, 14, 24, 30):
        for e, clip in enumerate(atlas.examples[f]):
            if clip < 0:
                continue
            seconds, curve = atlas.curve(f, e)
            expected = x[store.clips[clip].rows, f]
            assert len(curve) == len(expected)
            np.testing.assert_allclose(curve, expected, atol=atlas.peak[f] / 255)
            np.testing.assert_array_equal(curve > 0, expected > 0)
            assert seconds[1] - seconds[0] == pytest.approx(1 / 50)
    with pytest.raises(ValueError, match="no feature"):
        atlas.curve(len(atlas), 0)


# -- relatives


def dense_correlation(a, b):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :])


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(1, 12))
def test_strongest_partners_are_those_of_the_dense_correlation(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = (np.where(rng.random((n, m)) < 0.4, rng.random((n, m)), 0) for _ in range(2))
    for same in (False, True):
        other = a if same else b
        r = dense_correlation(a, other)
        if same:
            np.fill_diagonal(r, 0)
        which, how = features.strongest(sparse.csr_array(a), sparse.csr_array(other), same)
        expected = -np.sort(-r.clip(min=0), axis=1)[:, : inside.PARTNERS]
        np.testing.assert_allclose(how[:, : expected.shape[1]], expected, atol=1e-6)
        for f, partners in enumerate(which):
            there = partners >= 0
            np.testing.assert_allclose(r[f, partners[there]], how[f][there], atol=1e-6)
            assert len(set(partners[there])) == there.sum() and not (same and f in partners)


def test_neighbours_have_the_highest_cosine(atlas):
    directions = torch.nn.functional.normalize(TopK().W_dec, dim=1).numpy()
    cosine = directions @ directions.T
    np.fill_diagonal(cosine, 0)
    cosine[:, ~atlas.fires] = 0
    how = atlas.neighbours[1]
    expected = -np.sort(-cosine.clip(min=0), axis=1)[:, : inside.PARTNERS]
    np.testing.assert_allclose(how, expected, atol=1e-6)


def test_features_match_across_layers(store):
    # The other layer holds the same columns, turned by one: feature f there is column f - 1 here.
    first, second = features.survey([TopK(), TopK(point=OTHER)], store)
    which, how = first.matches["1"]
    here = np.flatnonzero(first.fires[:24])
    np.testing.assert_array_equal(which[here, 0], here + 1)
    assert (how[here, 0] > 0.95).all()
    np.testing.assert_array_equal(second.matches["3"][0][here + 1, 0], here)
    with pytest.raises(ValueError, match="One SAE a layer"):
        features.survey([TopK(), TopK()], store)


def test_the_map_is_the_same_every_time_and_fits_the_square(store, codes, atlas):
    again = FeatureAtlas.of(TopK(), store, examples=4, codes=codes)
    np.testing.assert_array_equal(again.place, atlas.place)
    place = atlas.place[atlas.kept()]
    assert place.min() == 0 and place.max() == 1 and np.isfinite(place).all()


# -- concepts


def test_planted_concepts_are_found_on_one_half_and_hold_on_the_other(atlas, store):
    best = atlas.best()
    for root in range(12):
        name = f"chord root: {concepts.PITCH_NAMES[root]}"
        if name in best.index:
            assert best.loc[name, "feature"] == root and best.loc[name, "auc"] > 0.95
    assert sum(name.startswith("chord root") for name in best.index) >= 4
    assert best.loc["drums: yes", "feature"] == 24 and best.loc["drums: yes", "auc"] == 1
    told = atlas.follows(24)
    assert set(told["level"]) == {"frame", "clip"} and (told["found"] >= inside.WORTH).all()
    least = atlas.concepts["clip"].least
    assert (least >= inside.WORTH).all() and (least <= 1).all() and least.max() > 0.9
    assert told["concept"].iloc[0] == "onset: drum"
    # Noise may look like something where it was found; elsewhere it is nothing.
    noise = atlas.concepts["clip"].scored[25:32]
    assert abs(np.nanmean(noise) - 0.5) < 0.1


def test_halves_are_compositions_and_auc_is_that_of_the_dense_array(store, codes, atlas):
    from sklearn.metrics import roc_auc_score

    found, scored = store.split(0.5, 0)
    name = "onset: drum"
    for half, auc in ((found, atlas.concepts["frame"].found), (scored, None)):
        auc = atlas.concepts["frame"].scored if auc is None else auc
        groups = {clip.group for clip in half.clips}
        rows = np.concatenate([np.arange(c.start, c.start + c.n_rows) for c in store.clips
                               if c.group in groups])  # fmt: skip
        labels = np.concatenate([
            concepts.frame_concepts(c.truth, c.n_rows)[name] for c in store.clips
            if c.group in groups
        ])  # fmt: skip
        column = atlas.concepts["frame"].names.index(name)
        for f in (0, 24, 30):
            expected = roc_auc_score(labels, codes[rows][:, [f]].toarray()[:, 0])
            assert auc[f, column] == pytest.approx(expected, abs=1e-6)


def test_a_concept_of_one_piece_is_not_scored(clips, tmp_path):
    odd = [clip_of(100 + i, family="flute") for i in range(11)] + [clip_of(200, family="organ")]
    atlas = FeatureAtlas.of(TopK(), store_of(tmp_path / "store", odd), examples=2)
    assert not atlas.best().index.str.startswith("family").any()


# -- what is said


def test_searching_sorting_and_summing_up(atlas):
    found = atlas.search("drum")
    assert found.index[0] == 24 and (found["auc"].iloc[0]) > 0.95
    assert atlas.search("7").index.tolist() == [7]
    assert atlas.search("nothing like it").empty
    named = FeatureAtlas(**{**vars(atlas), "names": [""] * len(atlas)})
    named.names[30] = "Velvet hum"
    assert named.search("velvet").index[0] == 30
    top = atlas.top("density", n=5, kept=False)
    assert top["density"].is_monotonic_decreasing and len(top) == 5
    assert atlas.top("peak")["kept"].all()
    with pytest.raises(ValueError, match="sort by one of"):
        atlas.top("beauty")
    table = atlas.to_frame()
    assert len(table) == len(atlas) and table.loc[24, "concept"] in ("onset: drum", "drums: yes")
    said = repr(atlas)
    assert f"{len(atlas)} features" in said and "concepts of a frame" in said
    s = atlas.summary()
    assert s["clips"] == CLIPS and s["l0"] == pytest.approx(atlas.density.sum())


def test_saved_and_loaded_it_is_the_same(atlas, store, tmp_path):
    full = features.survey([TopK(), TopK(point=OTHER)], store, examples=2)[0]
    for name, one in (("a", atlas), ("b", full)):
        folder = one.save(tmp_path / name)
        again = FeatureAtlas.load(folder)
        assert repr(again) == repr(one) and again.kinds == one.kinds and again.clips == one.clips
        for key in inside.ARRAYS:
            np.testing.assert_array_equal(getattr(again, key), getattr(one, key))
        assert again.matches.keys() == one.matches.keys()
        for level, followed in one.concepts.items():
            assert again.concepts[level].names == followed.names
            np.testing.assert_array_equal(again.concepts[level].scored, followed.scored)
        for pair in ("neighbours", "partners"):
            for x, y in zip(getattr(again, pair), getattr(one, pair), strict=True):
                np.testing.assert_array_equal(x, y)


def test_a_damaged_atlas_is_named(atlas, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no atlas"):
        FeatureAtlas.load(tmp_path)
    folder = atlas.save(tmp_path / "atlas")
    data = folder / "atlas.safetensors"
    data.write_bytes(data.read_bytes()[:-7])
    with pytest.raises(runs.RunError, match=r"atlas\.safetensors"):
        FeatureAtlas.load(folder)
    shutil.rmtree(folder)
    atlas.save(folder)
    about = runs.load_json(folder / "atlas.json")
    del about["frame_rate"]
    runs.save_json(folder / "atlas.json", about)
    with pytest.raises(runs.RunError, match="frame_rate"):
        FeatureAtlas.load(folder)


# -- bad input


def test_an_sae_of_another_model_or_hook_is_refused(store):
    elsewhere = TopK(point=type(POINT)("nano", 3, POINT.path, "f" * 16))
    with pytest.raises(ValueError, match="it has no"):
        encode(elsewhere, store)
    missing = TopK(point=type(POINT)("nano", 2, "transformer.layers.2", POINT.fingerprint))
    with pytest.raises(ValueError, match=r"transformer\.layers\.2"):
        FeatureAtlas.of(missing, store)
    homeless = TopK(point=None)
    with pytest.raises(ValueError, match="does not say where"):
        encode(homeless, store)
    narrow = TopK()
    narrow.W_dec = narrow.W_dec[:, :16]
    with pytest.raises(ValueError, match="16 wide"):
        encode(narrow, store)


def test_the_real_sae_is_a_coder(store):
    architectures = pytest.importorskip("musae_utils.sae.architectures")
    for kind, k in (("topk", 4), ("jumprelu", None)):
        config = architectures.SAEConfig(d_in=32, d_sae=64, architecture=kind, k=k)
        sae = architectures.SAE(config, POINT)  # keeps its hook point as a dict
        codes = encode(sae, store)
        with torch.no_grad():
            expected = sae.encode(store[POINT][:]).numpy()
        np.testing.assert_allclose(codes.toarray(), expected, atol=1e-6)
        atlas = FeatureAtlas.of(sae, store, examples=2, codes=codes)
        assert atlas.layer == "3" and "layers.3 of nano" in atlas.hook


def test_an_empty_store_is_refused(store):
    with pytest.raises(ValueError, match="holds no clips"):
        FeatureAtlas.of(TopK(), store._only(lambda clip: False))


def test_more_examples_than_clips_are_refused(store):
    with pytest.raises(ValueError, match=rf"{CLIPS} clips, of which \d+ .* ask for 1 to \d+"):
        FeatureAtlas.of(TopK(), store, examples=CLIPS + 1)


def test_broken_activations_are_refused(store):
    class Broken(TopK):
        def pairs(self, x):
            values, indices = super().pairs(x)
            values[0, 0] = float("nan")
            return values, indices

    with pytest.raises(ValueError, match="NaN"):
        encode(Broken(), store)
    with pytest.raises(ValueError, match="codes has shape"):
        FeatureAtlas.of(TopK(), store, codes=sparse.csr_array((3, 3)))


def test_recordings_have_everything_but_concepts(tmp_path):
    clips = [clip_of(seed, known=False) for seed in range(6)]
    atlas = FeatureAtlas.of(TopK(), store_of(tmp_path / "store", clips), examples=3)
    assert atlas.concepts == {} and atlas.best().empty and not atlas.marks.any()
    assert atlas.curves.any() and (atlas.examples[:, 0] >= 0).any()
    assert "no truth is known" in repr(atlas) and atlas.search("chord").empty
    assert atlas.to_frame()["concept"].eq("").all() and atlas.summary()["kept"] >= 0
    assert FeatureAtlas.load(atlas.save(tmp_path / "atlas")).concepts == {}


def test_recordings_beside_composed_music_leave_its_concepts_alone(clips, store, tmp_path):
    mixed = [*clips, *(clip_of(50 + i, known=False) for i in range(3))]
    atlas = FeatureAtlas.of(TopK(), store_of(tmp_path / "store", mixed), examples=3)
    assert atlas.best().loc["drums: yes", "auc"] == 1
    assert len(atlas.clips) == CLIPS + 3


def test_one_clip_and_one_feature_are_an_atlas_too(tmp_path):
    sae = TopK(k=1, random=0)
    sae.W_dec = sae.W_dec[:1]
    atlas = FeatureAtlas.of(sae, store_of(tmp_path / "store", [clip_of(3, tonic=0)]), examples=1)
    assert len(atlas) == 1 and (atlas.neighbours[0] == -1).all() and repr(atlas)


def test_the_sound_of_composed_clips_is_made_again(tmp_path):
    from musae_utils import music

    clips = music.make_many(1, 3, 5.0)
    clips[0].hidden = clips[0].truth
    store = store_of(tmp_path / "store", clips)
    np.testing.assert_array_equal(features.sounds(store)(0).audio, clips[0].audio)
    strange = clip_of(1)
    strange.provenance = {"source": "recording", "sha256": "1", "seed": 1}
    with pytest.raises(ValueError, match="was not composed here"):
        features.sounds(store_of(tmp_path / "third", [strange]))(0)
