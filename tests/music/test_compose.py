"""The composer: what is written is what was asked, is musical, and is recorded as it is."""

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils.music import FAMILIES, FORMS, PROGRAMS, SCALES, Spec, compose
from musae_utils.music.compose import (
    ARTICULATIONS,
    CHORD_TONES,
    DYNAMICS,
    REGISTERS,
    TEXTURES,
    family_of,
)

SPECS = st.builds(
    Spec,
    tonic=st.none() | st.integers(0, 11),
    mode=st.none() | st.integers(0, 1),
    tempo=st.none() | st.floats(40, 240),
    metre=st.none() | st.sampled_from((3, 4)),
    family=st.none() | st.sampled_from(FAMILIES),
    drums=st.none() | st.booleans(),
    form=st.none() | st.sampled_from(tuple(FORMS)),
    register=st.none() | st.sampled_from(tuple(REGISTERS)),
    articulation=st.none() | st.sampled_from(tuple(ARTICULATIONS)),
    dynamics=st.none() | st.sampled_from(tuple(DYNAMICS)),
    texture=st.none() | st.sampled_from(TEXTURES),
    seconds=st.floats(5, 40),
)
SEEDS = st.integers(0, 3_000_000_000)
PIECES = st.builds(compose, SPECS, SEEDS)
FEW = settings(max_examples=60, deadline=None)


def melody_of(score, span):
    """Melody notes of a span: (onset within it, length, pitch, velocity)."""
    return [
        (round(n.start - span["start"], 6), round(n.end - n.start, 6), n.pitch, n.velocity)
        for n in score.notes
        if n.role == "melody" and span["start"] - 1e-6 <= n.start < span["end"] - 1e-6
    ]


def whole_returns(score, kind):
    """Pairs (earlier, later) of statements that the end of the clip does not cut short."""
    end = score.spec.seconds - 1e-6
    return [
        (score.statements[s["of"]], s)
        for s in score.statements
        if s["kind"] == kind and s["end"] < end
    ]


@FEW
@given(SPECS, SEEDS)
def test_the_same_spec_and_seed_give_the_same_score(spec, seed):
    assert compose(spec, seed) == compose(spec, seed)


def test_other_seeds_give_other_music():
    spec = compose(Spec(), 1).spec
    written = {tuple((n.start, n.pitch) for n in compose(spec, s).notes) for s in range(20)}
    assert len(written) == 20


@FEW
@given(PIECES)
def test_every_note_can_be_played_within_the_clip(score):
    assert score.notes
    for note in score.notes:
        assert 0 <= note.start < note.end <= score.spec.seconds
        assert 21 <= note.pitch <= 108 and 1 <= note.velocity <= 127
    lines = [[n for n in score.notes if n.role == role] for role in ("melody", "bass")]
    for line in lines:
        for one, two in itertools.pairwise(line):
            assert one.end <= two.start + 1e-9, "a line sings one note at a time"


@FEW
@given(PIECES)
def test_chords_sections_and_statements_cover_the_clip_in_order(score):
    bar = score.spec.metre * score.beat
    for spans in (score.chords, score.sections):
        assert spans[0]["start"] == 0 and spans[-1]["end"] == pytest.approx(score.spec.seconds)
        for one, two in itertools.pairwise(spans):
            assert one["end"] == pytest.approx(two["start"])
    for span in (*score.chords, *score.statements):
        assert span["start"] / bar == pytest.approx(round(span["start"] / bar), abs=1e-6)
    for i, s in enumerate(score.statements):
        if s["kind"] == "first":
            assert s["of"] == -1
            assert s["motif"] not in {e["motif"] for e in score.statements[:i]}
        else:
            earlier = score.statements[s["of"]]
            assert s["of"] < i and earlier["motif"] == s["motif"] and earlier["kind"] == "first"


@FEW
@given(SPECS, SEEDS)
def test_a_field_that_is_fixed_stays_and_leaves_the_others_as_they_were(spec, seed):
    free, fixed = compose(Spec(seconds=spec.seconds), seed).spec, compose(spec, seed).spec
    for name, value in asdict(spec).items():
        drawn = getattr(fixed, name)
        if value is not None:
            assert drawn == value
        elif name != "program":
            assert drawn is not None and drawn == getattr(free, name)
    assert fixed.program in PROGRAMS[fixed.family]


# -- harmony ------------------------------------------------------------------------------------


@FEW
@given(PIECES)
def test_every_pitch_belongs_to_the_key(score):
    scale = {(score.spec.tonic + s) % 12 for s in SCALES[score.spec.mode]}
    assert {n.pitch % 12 for n in score.notes if n.role != "drums"} <= scale


@FEW
@given(PIECES)
def test_the_recorded_chord_is_what_the_accompaniment_plays(score):
    for chord in score.chords:
        heard = [
            n
            for n in score.notes
            if n.role in ("harmony", "bass")
            and chord["start"] - 1e-6 <= n.start < chord["end"] - 1e-6
        ]
        classes = {(n.pitch - chord["root"]) % 12 for n in heard}
        assert classes <= set(CHORD_TONES[chord["quality"]])
        if chord["end"] < score.spec.seconds - 1e-6:  # a whole bar: every tone, and no other
            assert classes == set(CHORD_TONES[chord["quality"]])
        lowest = [n for n in heard if n.role == "bass" and n.start < chord["start"] + 1e-6]
        assert [n.pitch % 12 for n in lowest] in ([chord["root"]], [])


def chord_degrees(score):
    """Scale degree of each chord's root, 0-6."""
    scale = SCALES[score.spec.mode][:6] + ((10,) if score.spec.mode else (11,))
    return [scale.index((c["root"] - score.spec.tonic) % 12) for c in score.chords]


def bars_of(score, section):
    """The indices of a section's chords, one a bar."""
    start, end = section["start"] - 1e-6, section["end"] - 1e-6
    return [i for i, c in enumerate(score.chords) if start <= c["start"] < end]


@FEW
@given(PIECES)
def test_a_chord_is_a_dominant_seventh_exactly_when_its_seventh_sounds(score):
    for chord, degree in zip(score.chords, chord_degrees(score), strict=True):
        seventh = (chord["root"] + 10) % 12
        sounds = any(
            n.pitch % 12 == seventh
            for n in score.notes
            if n.role in ("harmony", "bass")
            and chord["start"] - 1e-6 <= n.start < chord["end"] - 1e-6
        )
        assert sounds is (chord["quality"] == 3)
        assert degree == 4 or not sounds


@pytest.mark.parametrize("metre", [3, 4])
@pytest.mark.parametrize("texture", TEXTURES)
def test_dominants_come_with_and_without_their_seventh(texture, metre):
    scores = [compose(Spec(texture=texture, metre=metre, seconds=30), s) for s in range(40)]
    dominants = [
        c["quality"]
        for score in scores
        for c, degree in zip(score.chords, chord_degrees(score), strict=True)
        if degree == 4
    ]
    assert set(dominants) == {0, 3} and 0.45 < np.mean(np.equal(dominants, 3)) < 0.75


THIRTY_SECONDS = [compose(Spec(seconds=30), s) for s in range(250)]


def test_where_a_section_begins_does_not_give_the_key_away():
    first = [
        (score.spec.mode, chord_degrees(score)[bars_of(score, section)[0]])
        for score in THIRTY_SECONDS
        for section in score.sections
    ]
    assert 0.6 < np.mean([degree == 0 for _, degree in first]) < 0.7
    for mode, starts in ((0, {0, 1, 3, 4, 5}), (1, {0, 2, 3, 4, 5})):
        assert {degree for m, degree in first if m == mode} == starts
    opening = [chord_degrees(score)[0] for score in THIRTY_SECONDS]
    assert 0.55 < np.mean(np.equal(opening, 0)) < 0.75, "whole pieces too"


def test_every_degree_is_heard_and_the_third_and_seventh_are_rare():
    for mode in (0, 1):
        heard = [d for s in THIRTY_SECONDS if s.spec.mode == mode for d in chord_degrees(s)]
        share = np.bincount(heard, minlength=7) / len(heard)
        assert (share > 0.003).all() and share[2] < 0.1 and share[6] < 0.1
        assert share[[0, 4]].sum() > 0.6


def test_most_sections_close_with_a_cadence_in_the_key():
    closes = {2: [], 4: []}
    for score in THIRTY_SECONDS:
        for section in score.sections[:-1]:
            bars = bars_of(score, section)
            degrees = [chord_degrees(score)[i] for i in bars]
            if len(bars) == 4 and degrees[-2:] == [4, 0]:
                # The melody closes on a tone of the tonic chord.
                last = melody_of(score, score.chords[bars[-1]])[-1][2]
                assert (last - score.spec.tonic) % 12 in CHORD_TONES[score.spec.mode]
            closes[len(bars)].append(
                degrees[-2:] == [4, 0] if len(bars) == 4 else degrees[-1] in (0, 4)
            )
    assert all(0.75 < np.mean(found) < 0.95 for found in closes.values())


# -- form and motifs ----------------------------------------------------------------------------


@FEW
@given(PIECES)
def test_an_exact_return_has_the_same_notes(score):
    for earlier, later in whole_returns(score, "exact"):
        assert melody_of(score, earlier) == melody_of(score, later) != []


def degrees(score, pitches):
    """Pitches as steps of the key's scale; the raised seventh of minor counts as the seventh."""
    scale = (0, 2, 4, 5, 7, 9, 11) if score.spec.mode == 0 else (0, 2, 3, 5, 7, 8, 10)
    steps = []
    for pitch in pitches:
        octave, above = divmod(pitch - score.spec.tonic, 12)
        steps.append(7 * octave + scale.index(10 if score.spec.mode and above == 11 else above))
    return steps


@FEW
@given(PIECES)
def test_a_transposed_return_has_the_same_rhythm_and_the_same_diatonic_steps(score):
    for earlier, later in whole_returns(score, "transposed"):
        a, b = melody_of(score, earlier), melody_of(score, later)
        assert [(n[0], n[1]) for n in a] == [(n[0], n[1]) for n in b]
        moved = np.subtract(*(degrees(score, [n[2] for n in notes]) for notes in (a, b)))
        assert len(set(moved)) == 1 and moved[0] != 0


@FEW
@given(st.builds(compose, SPECS.map(lambda s: replace(s, form="variations")), SEEDS))
def test_a_varied_return_differs_but_keeps_the_theme(score):
    for earlier, later in whole_returns(score, "varied"):
        theme, varied = melody_of(score, earlier), melody_of(score, later)
        assert len(varied) == len(theme) + 1, "one note is split by its neighbour"
        assert {n[0] for n in theme} <= {n[0] for n in varied}


@pytest.mark.parametrize("form, kinds", [
    ("AABA", {"exact"}), ("ABAB", {"exact"}), ("rondo", {"exact"}), ("variations", {"varied"}),
])  # fmt: skip
def test_forms_return_as_their_names_say(form, kinds):
    for seed in range(15):
        score = compose(Spec(form=form, seconds=30), seed)
        labels = "".join(s["label"] for s in score.sections)
        heard = min(len(labels), len(FORMS[form]))  # a slow rondo is cut before its last section
        assert heard >= 4 and labels[:heard] == FORMS[form][:heard]
        first = {label: score.sections[labels.index(label)]["start"] for label in labels}
        back = {
            s["kind"]
            for section in score.sections
            for s in score.statements
            if section["start"] > first[section["label"]]
            and abs(s["start"] - section["start"]) < 1e-6
        }
        assert kinds <= back


@FEW
@given(st.builds(compose, SPECS.map(lambda s: replace(s, form="through")), SEEDS))
def test_in_through_composed_music_nothing_returns(score):
    labels = [s["label"] for s in score.sections]
    assert labels == sorted(set(labels))
    assert {(s["kind"], s["of"]) for s in score.statements} == {("first", -1)}
    motifs = [s["motif"] for s in score.statements]
    assert len(motifs) == len(set(motifs))


@FEW
@given(PIECES)
def test_no_two_motifs_are_twins_by_chance(score):
    """The same rhythm and intervals, in steps or in semitones, are the same motif."""
    alike = {}
    for s in (s for s in score.statements if s["end"] < score.spec.seconds - 1e-6):
        onsets, lengths, pitches, _ = zip(*melody_of(score, s), strict=True)
        for line in (pitches, degrees(score, pitches)):
            intervals = tuple(np.diff(line).tolist())
            alike.setdefault((onsets, lengths, intervals), set()).add(s["motif"])
    assert all(len(motifs) == 1 for motifs in alike.values())


def test_transposed_returns_are_heard_in_short_sections_as_in_long_ones():
    transposed = {2: [], 4: []}
    for score in THIRTY_SECONDS:
        if score.spec.form != "through":
            kinds = {s["kind"] for s in score.statements}
            transposed[len(bars_of(score, score.sections[0]))].append("transposed" in kinds)
    assert min(map(len, transposed.values())) > 20
    assert 0.4 < np.mean(transposed[2]) < np.mean(transposed[4])


@FEW
@given(SPECS, SEEDS, st.floats(5, 40))
def test_a_shorter_clip_is_the_beginning_of_a_longer_one(spec, seed, seconds):
    a, b = sorted((spec.seconds, seconds))
    short, long = (compose(replace(spec, seconds=s), seed) for s in (a, b))
    assert short.programs == long.programs
    # A note that begins with the end is left out.
    cut = [replace(n, end=min(n.end, a)) for n in long.notes if n.start < a - 0.02]
    assert short.notes == cut
    for name in ("chords", "sections", "statements"):
        whole = [s for s in getattr(short, name) if s["end"] < a]
        assert whole == getattr(long, name)[: len(whole)]


@FEW
@given(SPECS, SEEDS)
def test_tempo_and_metre_alone_decide_how_long_a_section_is(spec, seed):
    score = compose(replace(spec, seconds=40), seed)
    bar = score.spec.metre * score.beat
    bars = {round((s["end"] - s["start"]) / bar) for s in score.sections[:-1]}
    assert bars == {4 if 16 * bar <= 30 else 2}


# -- performance --------------------------------------------------------------------------------


def test_register_dynamics_articulation_and_drums_are_in_the_notes():
    def melody(**fields):
        spec = replace(Spec(form="AABA", tempo=100, metre=4), **fields)
        return [n for s in range(8) for n in compose(spec, s).notes if n.role == "melody"]

    pitch = [np.mean([n.pitch for n in melody(register=r)]) for r in REGISTERS]
    assert 9 < pitch[1] - pitch[0] < 15 and 9 < pitch[2] - pitch[1] < 15
    loud = [np.mean([n.velocity for n in melody(dynamics=d)]) for d in DYNAMICS]
    assert loud[0] + 20 < loud[1] < loud[2] - 20
    short, long = (
        np.mean([n.end - n.start for n in melody(articulation=a)]) for a in ("staccato", "legato")
    )
    assert short < 0.55 * long
    for drums in (True, False):
        score = compose(Spec(drums=drums), 4)
        assert any(n.role == "drums" for n in score.notes) is drums


def test_training_never_hears_the_held_out_presets():
    draw = lambda seed, held_out: Spec().drawn(np.random.default_rng(seed), held_out)  # noqa: E731
    heard = {draw(s, False).program for s in range(600)}
    kept = {draw(s, True).program for s in range(200)}
    assert kept == {programs[3] for programs in PROGRAMS.values()}
    assert heard == {p for programs in PROGRAMS.values() for p in programs[:3]}


def test_a_fixed_program_decides_the_family():
    assert all(family_of(p) == f for f, programs in PROGRAMS.items() for p in programs)
    assert {compose(Spec(program=40), s).spec.family for s in range(5)} == {"strings"}
    assert compose(Spec(program=80), 0).spec.family is None  # a synthesiser: no family
    with pytest.raises(ValueError, match="program 40 is not of the family flute but of strings"):
        Spec(program=40, family="flute")


@pytest.mark.parametrize("fields, said", [
    ({"tonic": 12}, "tonic is 12; it can be one of 0 to 11"),
    ({"tonic": "D"}, "tonic is 'D'"),
    ({"mode": "minor"}, "mode is 'minor'"),
    ({"tempo": 0}, "tempo is 0; it can be 40 to 240"),
    ({"tempo": 241}, "tempo is 241"),
    ({"tempo": float("nan")}, "tempo is nan"),
    ({"metre": 5}, "metre is 5"),
    ({"family": "kazoo"}, "family is 'kazoo'.*piano"),
    ({"program": 128}, "program is 128; it can be one of 0 to 127"),
    ({"drums": "yes"}, "drums is 'yes'"),
    ({"form": "sonata"}, "form is 'sonata'.*rondo"),
    ({"register": "top"}, "register is 'top'.*low"),
    ({"articulation": "pizzicato"}, "articulation is 'pizzicato'"),
    ({"dynamics": "ff"}, "dynamics is 'ff'"),
    ({"texture": "fugue"}, "texture is 'fugue'.*alberti"),
    ({"seconds": 0}, "seconds is 0; a clip can last 5 to 40"),
    ({"seconds": -1}, "seconds is -1"),
    ({"seconds": 10_000}, "seconds is 10000"),
    ({"seconds": float("nan")}, "seconds is nan"),
])  # fmt: skip
def test_a_spec_that_cannot_be_written_says_what_can(fields, said):
    with pytest.raises(ValueError, match=said):
        Spec(**fields)


@pytest.mark.parametrize("seconds", [5, 40])
@pytest.mark.parametrize("metre", [3, 4])
@pytest.mark.parametrize("tempo", [40, 240])
def test_the_ends_of_every_range_can_be_written(seconds, metre, tempo):
    for form in FORMS:
        score = compose(Spec(form=form, tempo=tempo, metre=metre, seconds=seconds), 3)
        assert max(n.end for n in score.notes) > seconds - 2 * score.beat
        assert len(score.chords) == np.ceil(seconds * tempo / 60 / metre - 1e-6)
