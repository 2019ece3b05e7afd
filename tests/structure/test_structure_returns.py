"""Returns: scores that measure what they say, traps that are traps, marks that add up."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from musae_utils import music, structure
from musae_utils.structure import hearing, labelers, returns, scored
from musae_utils.structure.labelers import TABLE, Labeler

FORMS = ("AABA", "ABAB", "rondo")


def heard(melody, chroma=None, chords=None, level=-20.0):
    """What would be heard of a melody, a degree a frame (-1: none), with all certainty."""
    melody = np.asarray(melody)
    degrees = np.eye(8)[melody][:, :7]
    chroma = np.eye(12)[melody % 12] if chroma is None else chroma
    chords = np.zeros_like(melody) if chords is None else np.asarray(chords)
    onsets = (np.diff(melody, prepend=-1) != 0).astype(float)
    return hearing.Heard(
        len(melody) / hearing.RATE, chroma, degrees, onsets, np.eye(7)[chords],
        np.full(len(melody), level), (0, 0),
    )  # fmt: skip


melodies = st.lists(st.integers(0, 6), min_size=8, max_size=8).filter(lambda x: len({*x}) > 2)


def held(notes, frames=4):
    return np.repeat(notes, frames)


# -- scores ----------------------------------------------------------------------------------------


@given(st.integers(0, 11), st.integers(0, 1))
def test_each_pitch_class_has_its_degree_or_two_halves(tonic, mode):
    found = hearing.degree_map(tonic, mode)
    assert np.allclose(found.sum(1), 1)
    scale = (music.SCALES[0], (0, 2, 3, 5, 7, 8, 10))[mode]
    for degree, above in enumerate(scale):
        assert found[(tonic + above) % 12, degree] == 1
    assert not mode or found[(tonic + 11) % 12, 6] == 1


@settings(deadline=None, max_examples=25)
@given(melodies, st.integers(0, 6))
def test_a_motif_on_any_degree_is_the_same_melody_and_its_chord_tells_where(notes, shift):
    motif, length = held(notes), 32 / hearing.RATE
    moved = (motif + shift) % 7
    chords = np.repeat([0, 0, shift], 32)
    piece = heard(np.concatenate([motif, np.full(32, -1), moved]), chords=chords)
    row = structure.scores(piece, (0.0, length), np.array([2 * length])).iloc[0]
    for name in ("melody", "melody on chord", "worst", "rhythm"):
        assert row[name] == pytest.approx(1, abs=0.02), name
    assert row["same chord"] == (shift == 0)
    backwards = heard(np.concatenate([motif, np.full(32, -1), motif[::-1]]))
    other = structure.scores(backwards, (0.0, length), np.array([2 * length])).iloc[0]
    assert other["melody"] <= row["melody"] + 0.02


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 11), st.integers(0, 2**32 - 1))
def test_chroma_in_another_key_is_alike_only_when_rotated(rotation, seed):
    window = np.random.default_rng(seed).dirichlet(np.full(12, 0.1), 32)
    chroma = np.concatenate([window, window.mean(0) + 0 * window, np.roll(window, rotation, 1)])
    chroma /= np.linalg.norm(chroma, axis=1, keepdims=True)
    piece = heard(held([0, 2, 4, 1, 3, 5] * 4), chroma)
    row = structure.scores(piece, (0.0, 2.56), np.array([5.12])).iloc[0]
    assert row["chroma rotated"] == pytest.approx(1, abs=1e-6)
    assert row["chroma rotated"] >= row["chroma"]
    assert rotation or row["chroma"] == pytest.approx(1, abs=1e-6)


def test_an_ornament_costs_little_and_another_melody_much():
    motif = held([0, 0, 2, 2, 4, 4, 3, 1])
    varied = held([0, 0, 2, 2, 4, 5, 3, 1])
    other = held([4, 3, 1, 5, 0, 6, 2, 2])
    piece = heard(np.concatenate([motif, other, varied, np.full(32, -1)]))
    table = structure.scores(piece, (0.0, 2.56), np.array([2.56, 5.12]))
    assert table["melody"].iloc[1] > 0.8 > 0.6 > table["melody"].iloc[0]
    assert table["near"].iloc[1] > table["near"].iloc[0]


# -- questions and traps ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_questions_say_what_was_written(seed):
    clip = music.make(seed=seed, seconds=20)
    statements = {round(s["start"], 4): s for s in clip.truth.clip["statements"]}
    asked = structure.questions(clip)
    assert asked
    for q in asked:
        there, first = statements.get(round(q.start, 4)), statements[round(q.earlier[0], 4)]
        same = there is not None and there["motif"] == first["motif"]
        assert q.kind == (there["kind"] if same else "none") and q.start >= q.earlier[1] - 1e-6
        assert q.start + q.earlier[1] - q.earlier[0] <= clip.seconds + 1e-3


def test_of_a_recording_nothing_was_written():
    with pytest.raises(ValueError, match="no motifs were written"):
        structure.questions(music.Clip(np.zeros(16_000, np.float32)))


@pytest.mark.parametrize("number", range(3))
def test_the_same_chords_come_back_note_by_note_with_another_melody(number):
    before = music.compose(music.Spec(form=FORMS[number], seconds=30.0), number)
    kept = [n for n in before.notes if n.role != "melody"]
    old = {s["start"]: s for s in before.statements if s["kind"] != "first"}
    score = music.compose(music.Spec(form=FORMS[number], seconds=30.0), number)
    fresh = scored.sing_anew(score, np.random.default_rng(number))
    assert [n for n in score.notes if n.role != "melody"] == kept
    assert fresh == {round(start, 4) for start in old}
    lines = [scored._line(score.notes, s["start"], s["end"], score.beat)
             for s in score.statements if s["end"] - s["start"] > 0.99 * score.spec.metre
             * score.beat]  # fmt: skip
    assert all(a != b for a, b in itertools.combinations(lines, 2))
    clip, asked = structure.trap("same chords", number)
    roots = {round(c["start"], 4): c["root"] for c in clip.truth.clip["chords"]}
    assert asked and all(q.kind == "none" for q in asked)
    assert all(roots[round(q.start, 4)] == roots[round(q.earlier[0], 4)] for q in asked)


def test_nothing_returns_in_the_other_traps():
    clip, asked = structure.trap("drum loop", 0)
    assert {n.role for n in clip.truth.notes} == {"drums"} and len(asked) > 5
    _, through = structure.trap("texture", 0)
    assert {q.kind for q in (*asked, *through)} == {"none"}
    with pytest.raises(ValueError, match="no trap 'noise'; there are texture"):
        structure.trap("noise", 0)


# -- labelers --------------------------------------------------------------------------------------


def made(seed=0, informative=True, pieces=20, each=12):
    """Windows of which one score tells everything, and one nothing."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["exact", "transposed", "varied", "none", "none"], pieces * each)
    score = rng.normal(0, 0.2, len(kind)) + informative * (kind != "none")
    return pd.DataFrame({
        "a": score, "b": rng.normal(size=len(kind)), "kind": kind,
        "piece": np.repeat(np.arange(pieces), each),
    })  # fmt: skip


def test_a_labeler_learns_what_tells_and_nothing_from_noise():
    table = made()
    by = structure.fit(table, "made", ("a", "b"))
    new = made(1)
    said, back = by.probability(new) >= by.threshold, (new["kind"] != "none").to_numpy()
    assert labelers.even_f1(said, back) > 0.95
    assert abs(by.weights["a"]) > 5 * abs(by.weights["b"])
    assert set(by.kind(new)) <= set(structure.KINDS)
    noise = structure.fit(made(informative=False), "noise", ("a", "b"))
    said = noise.probability(made(2, False)) >= noise.threshold
    assert labelers.even_f1(said, (made(2, False)["kind"] != "none").to_numpy()) < 0.72


def test_what_cannot_be_learned_from_is_refused():
    table = made()
    with pytest.raises(ValueError, match="All 240 windows have the answer no"):
        structure.fit(table.assign(kind="none"), "x", ("a",))
    with pytest.raises(ValueError, match="have the answer yes"):
        structure.fit(table.assign(kind="exact"), "x", ("a",))
    with pytest.raises(ValueError, match="come from one piece"):
        structure.fit(table.assign(piece=1), "x", ("a",))
    with pytest.raises(ValueError, match="NaN"):
        structure.fit(table.assign(a=np.nan), "x", ("a",))
    with pytest.raises(ValueError, match="needs the scores c"):
        Labeler("x", {"c": 1.0}, 0.0, 0.5).probability(table)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5, unique=True))
def test_returns_begin_where_their_probability_peaks(places):
    at = np.arange(300) / hearing.RATE
    planted = np.array(sorted(places)) * 1.12
    p = pd.Series(np.exp(-((at[:, None] - planted) ** 2) / 0.02).max(1), index=at)
    found = structure.onsets(p, 1.6, 0.5)
    assert len(found) == len(planted) and np.abs(found - planted).max() <= 0.05
    assert len(structure.onsets(p * 0.4, 1.6, 0.5)) == 0


# -- any sound, and bad input ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    return music.make(seed=11, form="AABA", family="reed", seconds=20, drums=False)


@pytest.fixture(scope="module")
def alike():
    """A labeler that wants the same melody on the same chords."""
    return Labeler("by hand", {"melody": 20.0, "same chord": 1.0, "sung": 2.0}, -16.0, 0.5)


def test_the_first_section_is_found_again_one_section_later(clip, alike):
    table = structure.what_returns(clip.audio, clip.sample_rate, by=alike)
    section = clip.truth.clip["sections"][0]
    back = table["start"] - table["earlier start"]
    assert (np.abs(back - section["end"]) < 0.3).any()
    assert (table["score"] >= alike.search).all() and (table["end"] > table["start"]).all()


def test_stereo_at_another_rate_is_the_same_music(clip):
    import librosa

    louder = librosa.resample(clip.audio, orig_sr=clip.sample_rate, target_sr=44_100)
    stereo = np.stack([louder, 0.5 * louder], axis=1)
    one, other = structure.hear(clip.audio), structure.hear(stereo, 44_100)
    assert one.key == other.key and len(one.degrees) == len(other.degrees)
    assert np.corrcoef(one.degrees.ravel(), other.degrees.ravel())[0, 1] > 0.95


def test_silence_returns_nothing(clip, alike):
    quiet = clip.audio.copy()
    quiet[10 * clip.sample_rate :] = 0
    first = structure.questions(clip)[0]
    said = structure.label(structure.hear(quiet), first.earlier, np.array([12.0, 15.0]), alike)
    assert not said["returns"].any() and (said["probability"] == 0).all()
    assert (said["kind"] == "none").all()
    assert structure.what_returns(np.zeros(160_000), by=alike).empty
    with pytest.raises(ValueError, match="Nothing sounds from 12 to 14 s"):
        structure.scores(structure.hear(quiet), (12.0, 14.0))


def test_bad_input_is_answered_in_words(clip, alike):
    with pytest.raises(ValueError, match=r"lasts 3\.00 s and the window 2 s.*room for two"):
        structure.what_returns(clip.audio[:48_000], by=alike)
    piece = structure.hear(clip.audio[:48_000])
    with pytest.raises(ValueError, match="room for another"):
        structure.scores(piece, (0.0, 2.0))
    with pytest.raises(ValueError, match="does not fit"):
        structure.scores(piece, (0.0, 1.0), np.array([2.5]))
    with pytest.raises(ValueError, match="must lie inside"):
        structure.scores(piece, (2.5, 4.0))
    with pytest.raises(ValueError, match="not numbers"):
        structure.hear(np.full(16_000, np.nan))
    with pytest.raises(ValueError, match="above 0 Hz"):
        structure.hear(clip.audio, 0)
    with pytest.raises(ValueError, match="cut it into parts"):
        structure.hear(np.zeros(700 * 1000), 1000)
    with pytest.raises(ValueError, match="cannot be cut"):
        structure.boundaries(clip.audio[:8000], parts=20)
    with pytest.raises(FileNotFoundError, match="makes it"):
        returns.load(TABLE.with_name("none.json"))


def test_parts_cover_the_piece(clip):
    spans = structure.boundaries(clip.audio, parts=3)
    assert spans.shape == (3, 2) and spans[0, 0] == 0
    assert spans[-1, 1] == pytest.approx(clip.seconds)
    assert np.allclose(spans[1:, 0], spans[:-1, 1])


def test_clap_hears_a_window_and_itself_as_the_same(clip):
    from musae_utils import labels

    cosines = structure.clap_scores(
        clip.audio, clip.sample_rate, labels.nano_clap(), [(0.0, 2.0)] * 2, [0.0, 7.0]
    )
    assert cosines[0] == pytest.approx(1) and cosines[1] < 1


# -- marks -----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_f1_at_even_odds_is_sklearns_on_as_many_of_each(n, m, data):
    hits, false = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    row = pd.DataFrame({
        "exact": [n], "transposed": 0, "varied": 0, "none": m, "said exact": hits,
        "said transposed": 0, "said varied": 0, "said none": false,
    })  # fmt: skip
    true = np.repeat([1, 0], [n * m, n * m])
    said = np.repeat([1, 0, 1, 0], [hits * m, (n - hits) * m, false * n, (m - false) * n])
    assert returns._f1(row, ("exact",), 1.0)[0] == pytest.approx(f1_score(true, said))
    true, said = (
        np.repeat([1, 0], [n, m]),
        np.repeat([1, 0, 1, 0], [hits, n - hits, false, m - false]),
    )
    assert returns._f1(row, ("exact",), None)[0] == pytest.approx(f1_score(true, said))


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    names = {
        "train": [("composed", 400_000 + i) for i in range(12)]
        + [(name, 401_000 + i) for i in range(2) for name in structure.TRAPS],
        "test": [("composed", 400_000 + i) for i in range(3)]
        + [(name, 401_000 + i) for i in range(2) for name in structure.TRAPS],
    }  # fmt: skip
    whole = returns.run(tmp_path / "a", names)
    listened = returns.listen
    left = [5]

    def dies(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return listened(*args)

    monkeypatch.setattr(returns, "listen", dies)
    with pytest.raises(KeyboardInterrupt):
        returns.run(tmp_path / "b", names)
    monkeypatch.setattr(returns, "listen", listened)
    again = returns.run(tmp_path / "b", names)
    assert whole["labelers"] == again["labelers"]
    pd.testing.assert_frame_equal(whole["rows"], again["rows"])
    made = returns.figures(whole)
    assert all(one.low <= one.value <= one.high for one in made.values() if np.isfinite(one.value))


@pytest.fixture(scope="module")
def kept():
    if not TABLE.exists():
        pytest.skip("python -m musae_utils.structure.returns has not been run")
    return returns.load()


def test_the_kept_labeler_was_fitted_with_these_ears(kept):
    by = structure.labeler()
    assert by.name == "combined" and tuple(by.weights) == structure.SCORES
    with pytest.raises(ValueError, match="no labeler 'ear'; there are combined"):
        structure.labeler("ear")


def test_what_the_board_will_say(kept):
    made = returns.figures(kept)
    assert made["structure.label_f1.exact"].n >= 200
    assert made["structure.label_f1.exact"].low > 2 / 3, "better than always yes"
    for kind in ("transposed", "varied"):
        ours, usual = (
            made[f"structure.label_f1.{kind}"],
            made[f"structure.label_f1.{kind}.chroma_only"],
        )
        assert ours.above(usual)
    assert made["structure.trap_fpr_ratio"].high < 1
