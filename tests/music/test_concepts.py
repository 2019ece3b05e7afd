"""Planted concepts against what was written."""

import numpy as np
import pytest
from planted import clip_of

from musae_utils.music import concepts


@pytest.fixture(scope="module")
def clips():
    return [clip_of(0), clip_of(1)]


def test_concepts_say_what_was_written(clips):
    clip = clips[0]
    truth, found = clip.truth, concepts.frame_concepts(clip.truth)
    assert all(track.shape == (len(truth),) and track.dtype == bool for track in found.values())
    for i, name in enumerate(concepts.PITCH_NAMES):
        root = truth.frames["chord_root"]
        np.testing.assert_array_equal(found[f"chord root: {name}"], root == i)
        sounding = truth.frames["active"][:, i::12].any(1)
        np.testing.assert_array_equal(found[f"sounding: {name}"], sounding)
    degrees = np.stack([v for k, v in found.items() if concepts.group(k) == "chord degree"])
    assert (degrees.sum(0) == 1).all(), "diatonic harmony: each chord is on one degree"
    bands = np.stack([v for k, v in found.items() if concepts.group(k) == "loudness"])
    assert (bands.sum(0) == 1).all()
    first = min(n.start for n in truth.notes if n.role == "melody")
    began = np.flatnonzero(found["onset: melody"])
    assert began[0] == int(first * 50) and found["onset: melody"][began[0] + 2]
    beats = 60 / truth.clip["tempo"] * 50
    on = found["beat: on the beat"]
    assert on[0] and not on[round(beats / 2)] and found["beat: between beats"][round(beats / 2)]
    assert (found["beat: bar begins"] <= on).all()
    # Another frame rate: the truth of the middle of each frame.
    slow = concepts.frame_concepts(truth, 60, 12.5)
    np.testing.assert_array_equal(slow["part: melody"], found["part: melody"][2::4][:60])


def test_concepts_of_a_clip_say_what_was_asked_for():
    clip = clip_of(5, tonic=2, mode=1, family="flute", drums=True, tempo=144.0, metre=3)
    found = concepts.clip_concepts(clip.truth)
    held = {name for name, holds in found.items() if holds}
    asked = {"tonic: D", "mode: minor", "family: flute", "drums: yes", "tempo: fast", "metre: 3"}
    assert asked <= held
    groups = [concepts.group(name) for name in held]
    assert len(groups) == len(set(groups)) == 11


def test_concepts_that_a_source_does_not_know_are_absent(clips):
    truth = clip_of(7).truth
    for key in ("chord_root", "chord_quality", "motif", "repeats", "section"):
        del truth.frames[key]
    del truth.clip["form"]
    found = concepts.frame_concepts(truth)
    assert not any(concepts.group(name) in ("chord root", "motif", "section") for name in found)
    names, table = concepts.frame_table([truth, clips[0].truth], [100, 100])
    assert table.shape == (200, len(names)) and not any("chord" in name for name in names)
    assert table.any(0).all() and not table.all(0).any()
    assert not any(name.startswith("form") for name in concepts.clip_concepts(truth))
