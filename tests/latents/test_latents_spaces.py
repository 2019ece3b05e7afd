"""Probes for many questions at once, control tasks, sources, and the table that is kept."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils import latents, runs
from musae_utils.latents import spaces
from musae_utils.latents.spaces import Frames, Plan, Question, Source

CLIPS, PER = 30, 20


def frames(seed, planted=True):
    """30 clips of 20 frames; latents hold loudness and beat, and no chord."""
    rng = np.random.default_rng(seed)
    n = CLIPS * PER
    level, phase = rng.uniform(-40, -10, n), rng.integers(0, 8, n).astype(float)
    z = rng.normal(0, 0.3, (n, 12))
    if planted:
        z[:, 0] += (level + 25) / 8
        z[:, 1:9] += 2 * np.eye(8)[phase.astype(int)]
    answers = {
        "loudness": level, "beat": phase, "chord": rng.integers(0, 12, n).astype(float),
        "onset": (rng.random(n) < 0.15).astype(float), "pitch": np.full(n, np.nan),
    }  # fmt: skip
    cell = (z[:, :3] > 0) @ np.array([1, 2, 4])
    clip = np.repeat(np.arange(CLIPS), PER)
    return Frames(z.astype(np.float32), z.astype(np.float32), answers, clip, cell)


@pytest.fixture(scope="module")
def halves():
    return frames(0), frames(1)


def asked_of(halves, names=("loudness", "beat", "chord", "onset"), types=True):
    bins = {"loudness": np.linspace(-35, -15, 4)}
    return spaces.questions(*halves, names, bins, [h.cell for h in halves] if types else None)


@pytest.fixture(scope="module")
def rows(halves):
    asked = asked_of(halves)
    found = spaces.fit(halves[0].z, halves[1].z, asked, halves[0].clip, epochs=30, batch=128)
    return pd.DataFrame(spaces.scored(asked, found, halves[1].clip)).set_index("attribute")


def test_a_probe_finds_what_is_there_and_nothing_else(rows):
    assert rows.loc["beat", "low"] > 0.9
    assert rows.loc["loudness", "low"] > 0.3 > rows.loc["loudness", "chance"]
    assert rows.loc["loudness", "r2"] > 0.7 and rows.loc["loudness", "mae"] < 4
    for absent in ("chord", "onset"):
        row = rows.loc[absent]
        assert row["low"] - 0.05 < row["chance"] < row["high"] + 0.05
    assert (rows["n"] == CLIPS).all()


def test_selectivity_is_what_is_left_of_the_score(rows):
    gap = rows["score"] - rows["control"]
    assert rows["selectivity"].to_numpy() == pytest.approx(gap.to_numpy())
    assert (rows["selectivity_low"] <= gap).all() and (gap <= rows["selectivity_high"]).all()
    assert rows.loc["beat", "selectivity_low"] > 0
    assert rows.loc["chord", "selectivity_high"] < 0.05


def test_yes_and_no_are_asked_equally_often(halves):
    question = asked_of(halves)["onset"]
    for part in (question.train, question.test):
        assert (part == 0).sum() == (part == 1).sum() > 0


def test_a_control_answer_is_the_same_wherever_its_type_occurs(halves):
    asked = asked_of(halves)
    control = asked["chord control"]
    labels = np.concatenate([control.train, control.test])
    cells = np.concatenate([h.cell for h in halves])
    for cell in np.unique(cells):
        assert len(np.unique(labels[(cells == cell) & (labels >= 0)])) == 1


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99))
def test_probes_found_together_are_those_found_one_by_one(seed):
    halves = frames(seed), frames(seed + 100)
    asked = asked_of(halves, ("beat", "chord"), types=False)
    give = (halves[0].z, halves[1].z)
    together = spaces.fit(*give, asked, halves[0].clip, epochs=3, seed=seed)
    alone = spaces.fit(*give, {"beat": asked["beat"]}, halves[0].clip, epochs=3, seed=seed)
    assert together["beat"].weights == pytest.approx(alone["beat"].weights, abs=1e-4)
    assert (together["beat"].said == alone["beat"].said).mean() > 0.99


def test_frames_without_an_answer_teach_nothing(halves):
    asked = asked_of(halves, ("beat",), types=False)
    half = asked["beat"].train.copy()
    hidden = np.arange(len(half)) % 2 == 0
    lies = Question(np.where(hidden, -1, half), asked["beat"].test, 8)
    x = halves[0].z.copy()
    x[hidden] *= -1  # what those frames hold would mislead
    found = spaces.fit(x, halves[1].z, {"beat": lies}, halves[0].clip, epochs=30, batch=128)
    (row,) = spaces.scored({"beat": lies}, found, halves[1].clip)
    assert row["score"] > 0.9


def test_an_attribute_that_no_frame_has_is_refused(halves):
    with pytest.raises(ValueError, match="all are silent or unvoiced"):
        asked_of(halves, ("pitch",))
    nobody = {"x": Question(np.full(CLIPS * PER, -1), np.full(CLIPS * PER, 0), 2)}
    with pytest.raises(ValueError, match="x: too few compositions"):
        spaces.fit(halves[0].z, halves[1].z, nobody, halves[0].clip)


def test_a_class_of_one_composition_is_asked_in_neither_half(halves):
    train = halves[0]._replace(answers=dict(halves[0].answers))
    train.answers["chord"] = np.where(train.clip == 3, 11.0, train.answers["chord"] % 11)
    question = asked_of((train, halves[1]), ("chord",))["chord"]
    assert 11 not in question.train and 11 not in question.test


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 12))
def test_the_largest_components_are_kept(seed, k):
    x = np.random.default_rng(seed).normal(size=(20, 10))
    kept = spaces._largest(x, k)
    assert ((kept != 0).sum(1) == min(k, 10)).all()
    assert ((kept == 0) | (kept == x)).all()
    smallest = np.where(kept != 0, np.abs(x), np.inf).min(1)
    assert (np.where(kept == 0, np.abs(x), 0).max(1) <= smallest).all()


@pytest.mark.parametrize("width", [32, 64, 128])
def test_no_dictionary_is_too_large(width):
    made = spaces.sources(width)
    assert len({str(s) for s in made}) == len(made)
    assert max(s.expansion for s in made) * width <= spaces.LARGEST
    assert {s.architecture for s in made} == {*spaces.SAES, "latents", "mel", "pca", "random"}


SHORT = Plan(train=24, test=8, others=6, seconds=5.0, per_clip=20, steps=20, epochs=2, cells=8)


def test_no_penalty_is_allowed_and_no_feature_is_not():
    z = np.random.default_rng(0).normal(size=(2048, 8))
    dense = spaces.features(spaces.sae_of(Source("rmsnorm", 2, 0.0), z, SHORT), z)
    heavy = spaces.features(spaces.sae_of(Source("rmsnorm", 2, 5.0), z, SHORT), z)
    assert (dense != 0).mean() > (heavy != 0).mean()
    with pytest.raises(ValueError, match="d_sae is a positive whole number, not 0"):
        spaces.sae_of(Source("topk", 0, 4), z, SHORT)


def test_random_features_are_as_sparse_and_never_learnt():
    z = np.random.default_rng(0).normal(size=(512, 8)).astype(np.float32)
    untrained = spaces.sae_of(Source("random", 4, 4), z, SHORT)
    learnt = spaces.sae_of(Source("topk", 4, 4), z, SHORT)
    for one in (untrained, learnt):
        assert ((spaces.features(one, z) != 0).sum(1) <= 4).all()
    x = torch.as_tensor(z)
    lost = [float((one(x) - x).square().sum().detach()) for one in (untrained, learnt)]
    assert lost[1] < lost[0]


def test_a_melody_alone_is_the_melody_and_nothing_else():
    clip = spaces.melody_alone(7, seconds=5.0)
    assert {note.role for note in clip.truth.notes} == {"melody"}
    assert clip.truth.frames["active"].sum(1).max() == 1
    assert not clip.truth.frames["drums"].any()


def test_the_best_is_chosen_where_it_is_not_scored():
    table = pd.DataFrame([
        {"space": "s", "attribute": "pitch", "music": "mix", "architecture": a, "inner": i,
         "score": c} for a, i, c in (("topk", 0.5, 0.9), ("rmsnorm", 0.6, 0.1), ("mel", 1.0, 1.0))
    ])  # fmt: skip
    assert spaces.best(table, "s", "pitch")["architecture"] == "rmsnorm"
    with pytest.raises(ValueError, match="no SAE of 's' that was asked for 'key'"):
        spaces.best(table, "s", "key")


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_table(tmp_path, monkeypatch):
    give = dict(plan=SHORT, names=["nano-codec"], smoke=True)
    whole = spaces.compute(tmp_path / "whole", **give)
    real, calls = spaces.measure, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(spaces, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        spaces.compute(tmp_path / "stopped", **give)
    again = spaces.compute(tmp_path / "stopped", **give)
    assert len(calls) == 3 + len(spaces.sources(32, True)) - 2
    a, b = (runs._plain({k: v for k, v in x.items() if k != "provenance"}) for x in (whole, again))
    assert a == b


@pytest.fixture(scope="module")
def kept():
    if not spaces.TABLE.exists():
        pytest.skip("python -m musae_utils.latents.spaces has not been run")
    return spaces.load()


def test_the_table_is_of_these_models(kept):
    marks = kept["provenance"]["fingerprints"]
    assert marks == {name: latents.load(name).fingerprint for name in marks}


def test_every_figure_has_an_interval_around_it(kept):
    figures = spaces.figures(kept)
    assert len(figures) > 100
    for name, figure in figures.items():
        assert figure.low <= figure.value <= figure.high and figure.n >= 30, name
    for space in kept["provenance"]["fingerprints"]:
        short = space.removeprefix("nano-")
        for name in spaces.ASKED["mix"]:
            assert f"latents.{short}.{name}" in figures
            assert f"latents.{short}.{name}_mel" in figures
