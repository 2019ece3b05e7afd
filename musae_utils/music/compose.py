"""A composer whose every decision is on record.

It writes short tonal pieces: a key, a progression with cadences, a melody and a bass that follow
the harmony, an accompaniment, drums or none, and a form whose motifs return exactly, transposed,
varied, or never. All attributes are drawn independently, so that none is accidentally a clue to
another. Explained in notebook 01.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

import numpy as np

from musae_utils.music.clip import FAMILIES, MODES, PITCH_NAMES, Note

#: Metronome marks: the tempi that composers write.
TEMPI = (60, 63, 66, 69, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 116, 120, 126, 132, 138,
         144, 152, 160)  # fmt: skip
#: Sections of each form; a form shorter than the clip starts over, but for "through", which goes on
#: to new letters, and to new motifs inside them: nothing ever returns.
FORMS = {"AABA": "AABA", "ABAB": "ABAB", "rondo": "ABACA", "through": "ABCD", "variations": "AAAA"}
REGISTERS = {"low": 55, "middle": 67, "high": 79}  # MIDI pitch around which the melody moves
ARTICULATIONS = {"legato": 0.97, "staccato": 0.45}  # share of a note's length that sounds
DYNAMICS = {"soft": 52, "medium": 80, "loud": 112}  # MIDI velocity
TEXTURES = ("block", "arpeggio", "alberti", "pad")

#: General MIDI programs (0-based) by family; the last of each is never heard in training.
PROGRAMS = {
    "piano": (0, 1, 4, 5),
    "organ": (16, 19, 20, 18),
    "guitar": (24, 25, 26, 27),
    "strings": (40, 42, 48, 41),
    "brass": (56, 57, 61, 60),
    "reed": (68, 71, 65, 66),
    "flute": (73, 75, 74, 72),
    "mallet": (11, 12, 13, 8),
}
#: General MIDI groups its programs in eights; 48-51 are string ensembles.
FAMILY_OF_EIGHT = {0: "piano", 1: "mallet", 2: "organ", 3: "guitar", 5: "strings", 7: "brass",
                   8: "reed", 9: "flute"}  # fmt: skip
ACCOMPANIMENTS = (0, 24, 48)  # piano, nylon guitar, string ensemble
BASSES = (32, 33)  # acoustic and fingered bass

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
#: Triads on each degree, as indices of `CHORD_TONES`; the fifth degree may add its seventh.
DEGREE_QUALITY = ((0, 1, 1, 0, 0, 1, 2), (1, 2, 0, 1, 0, 0, 0))
CHORD_TONES = ((0, 4, 7), (0, 3, 7), (0, 3, 6), (0, 4, 7, 10))
SEVENTH = 3  # quality of the dominant seventh
#: Where a degree likes to go next (functional harmony; V goes home, III and VII are rare).
NEXT = {
    0: (3, 3, 4, 4, 5, 5, 1, 1, 2, 6),
    1: (4, 4, 4, 3, 3, 6),
    2: (5, 5, 3),
    3: (4, 4, 4, 0, 0, 1, 1, 6),
    4: (0, 0, 0, 5, 5, 2),
    5: (3, 3, 1, 1, 4, 4, 2),
    6: (0, 0, 2),
}
#: Where a section begins if not at home, in major and minor.
STARTS = ((5, 3, 1, 4), (5, 3, 2, 4))
#: Motifs of a section's bars; "-" is a long closing note. Through-composed music repeats no letter.
BARS = {4: ("aba-",), 2: ("a-", "aa")}
BARS_THROUGH = {4: ("abc-",), 2: ("a-", "ab")}
#: Order in which the voices of a triad, or of a seventh chord, are broken into eighths.
FIGURES = {
    "arpeggio": {3: (0, 1, 2, 1), 4: (0, 1, 2, 3)},
    "alberti": {3: (0, 2, 1, 2), 4: (0, 3, 1, 3, 2, 3)},
}


@dataclass(frozen=True)
class Spec:
    """What to write. A field left None is drawn by the seed, independently of all others."""

    tonic: int | None = None  # 0-11, C = 0
    mode: int | None = None  # 0 major, 1 minor
    tempo: float | None = None  # BPM, 40-240
    metre: int | None = None  # beats in a bar: 3 or 4
    family: str | None = None  # lead instrument, one of FAMILIES; a fixed program decides it
    program: int | None = None  # General MIDI program 0-127; within the family when drawn
    drums: bool | None = None
    form: str | None = None  # one of FORMS
    register: str | None = None  # low, middle, high
    articulation: str | None = None  # legato, staccato
    dynamics: str | None = None  # soft, medium, loud
    texture: str | None = None  # one of TEXTURES
    seconds: float = 10.0  # 5-40

    def __post_init__(self):
        choices = {
            "tonic": range(12), "mode": (0, 1), "metre": (3, 4), "family": FAMILIES,
            "program": range(128), "drums": (True, False), "form": tuple(FORMS),
            "register": tuple(REGISTERS), "articulation": tuple(ARTICULATIONS),
            "dynamics": tuple(DYNAMICS), "texture": TEXTURES,
        }  # fmt: skip
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                listed = allowed if not isinstance(allowed, range) else f"0 to {allowed[-1]}"
                raise ValueError(
                    f"{name} is {value!r}; it can be one of {listed}, or None to draw it."
                )
        if self.family and self.program is not None and family_of(self.program) != self.family:
            raise ValueError(
                f"program {self.program} is not of the family {self.family} but of "
                f"{family_of(self.program) or 'none'}; fix one of the two."
            )
        if self.tempo is not None and not 40 <= self.tempo <= 240:
            raise ValueError(f"tempo is {self.tempo}; it can be 40 to 240 beats a minute.")
        if not 5 <= self.seconds <= 40:
            raise ValueError(f"seconds is {self.seconds}; a clip can last 5 to 40 seconds.")

    def drawn(self, rng: np.random.Generator, held_out_presets: bool = False) -> Spec:
        """This spec with every open field drawn uniformly and independently."""
        pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
        # Drawn in a fixed order, used or not: fixing one field leaves the others as they were.
        draw = {
            "tonic": int(rng.integers(12)), "mode": int(rng.integers(2)),
            "tempo": float(pick(TEMPI)), "metre": 4 if rng.random() < 0.7 else 3,
            "family": pick(FAMILIES), "drums": bool(rng.integers(2)), "form": pick(tuple(FORMS)),
            "register": pick(tuple(REGISTERS)), "articulation": pick(tuple(ARTICULATIONS)),
            "dynamics": pick(tuple(DYNAMICS)), "texture": pick(TEXTURES),
        }  # fmt: skip
        which = int(rng.integers(3))
        values = asdict(self)
        for name, value in draw.items():
            if values[name] is None:
                values[name] = value
        if self.program is not None:
            values["family"] = family_of(self.program)
        if values["program"] is None:
            values["program"] = PROGRAMS[values["family"]][3 if held_out_presets else which]
        return Spec(**values)


@dataclass
class Score:
    """A written piece: notes in seconds, and the decisions behind them.

    Attributes
    ----------
    spec : Spec
        With every field filled in (family stays None for a program of no family).
    notes : list of Note
    programs : dict
        General MIDI program of each role (``melody``, ``harmony``, ``bass``).
    beat : float
        Seconds per beat.
    chords, sections, statements : list of dict
        With ``start`` and ``end`` in seconds; see `Truth`.
    """

    spec: Spec
    notes: list[Note] = field(default_factory=list)
    programs: dict[str, int] = field(default_factory=dict)
    beat: float = 0.5
    chords: list[dict] = field(default_factory=list)
    sections: list[dict] = field(default_factory=list)
    statements: list[dict] = field(default_factory=list)


def family_of(program: int) -> str | None:
    """The family of a General MIDI program (0-127), or None outside `FAMILIES`."""
    return "strings" if 48 <= program <= 51 else FAMILY_OF_EIGHT.get(program // 8)


def key_name(tonic: int, mode: int) -> str:
    return f"{PITCH_NAMES[tonic]} {MODES[mode]}"


def degree_pitch(tonic: int, mode: int, degree: int, raised: bool = False) -> int:
    """MIDI pitch of a scale degree counted from the tonic at octave 0 (may be negative).

    ``raised`` sharpens the seventh degree of minor, as the dominant chord asks.
    """
    octave, step = divmod(degree, 7)
    sharp = raised and mode == 1 and step == 6
    return tonic + 12 * octave + (MAJOR, MINOR)[mode][step] + int(sharp)


# -- harmony and motifs -------------------------------------------------------------------------


def progression(n_bars: int, mode: int, rng: np.random.Generator) -> list[int]:
    """Chord degrees, one a bar.

    Two in three begin at home: always would give the key away. Four in five close with V-I (of two
    bars there is room for one of them).
    """
    degrees = [0 if rng.random() < 0.65 else int(rng.choice(STARTS[mode]))]
    while len(degrees) < n_bars:
        degrees.append(int(rng.choice(NEXT[degrees[-1]])))
    if rng.random() < 0.8:
        degrees[-2:] = [4, 0] if n_bars > 2 else [degrees[0], 0 if degrees[0] else 4]
    return degrees


RHYTHMS = {  # durations in beats of a one-bar motif
    4: ((1, 1, 1, 1), (1.5, 0.5, 1, 1), (1, 0.5, 0.5, 2), (0.5, 0.5, 1, 0.5, 0.5, 1), (2, 1, 1),
        (1, 1, 2), (1, 0.5, 0.5, 1, 1), (0.5, 0.5, 0.5, 0.5, 1, 1)),
    3: ((1, 1, 1), (2, 1), (1.5, 0.5, 1), (1, 0.5, 0.5, 1), (0.5, 0.5, 1, 1), (1, 2)),
}  # fmt: skip


def new_motif(metre: int, rng: np.random.Generator) -> list[tuple[float, float, int]]:
    """One bar of melody: (onset, duration in beats, scale degrees above the chord's root).

    The first note and those on other strong beats are chord tones (0, 2, 4); between them the
    line moves by step, so that the melody follows the harmony wherever the motif is placed.
    """
    rhythm = RHYTHMS[metre][int(rng.integers(len(RHYTHMS[metre])))]
    motif, onset, degree = [], 0.0, int(rng.choice((0, 2, 4)))
    for i, duration in enumerate(rhythm):
        strong = onset % (2 if metre == 4 else 3) == 0
        if i:
            degree += int(rng.choice((-2, -1, -1, 1, 1, 2)))
            if strong:
                degree = min((0, 2, 4, 7, -3), key=lambda tone: (abs(tone - degree), tone))
        degree = int(np.clip(degree, -3, 7))
        motif.append((onset, float(duration), degree))
        onset += duration
    return motif


def vary(motif: list[tuple[float, float, int]], step: int) -> list[tuple[float, float, int]]:
    """The same motif, ornamented: its longest note is split by the neighbour a step away."""
    longest = max(range(len(motif)), key=lambda i: (motif[i][1], -i))
    onset, duration, degree = motif[longest]
    pieces = [(onset, duration / 2, degree), (onset + duration / 2, duration / 2, degree + step)]
    return motif[:longest] + pieces + motif[longest + 1 :]


def sung(spec: Spec, motif: list[tuple[float, float, int]], degree: int) -> list[int]:
    """MIDI pitches of a motif above the chord on a degree."""
    # The chord's root nearest below the register's centre, so that a motif keeps its octave.
    base = degree
    while degree_pitch(spec.tonic, spec.mode, base + 7) <= REGISTERS[spec.register] + 2:
        base += 7
    raised = degree == 4
    return [degree_pitch(spec.tonic, spec.mode, base + step, raised) for _, _, step in motif]


def shapes(spec: Spec, motif: list[tuple[float, float, int]], degrees: list[int]) -> set[tuple]:
    """What a motif and its variations are up to transposition: rhythms with their intervals.

    Intervals in steps and, above each of the chords, in semitones: another number of steps can
    sound the same (the augmented second of minor is a minor third).
    """
    found = set()
    for each in (motif, vary(motif, 1), vary(motif, -1)):
        rhythm = tuple((onset, duration) for onset, duration, _ in each)
        lines = [[step for _, _, step in each], *(sung(spec, each, degree) for degree in degrees)]
        found |= {(rhythm, tuple(np.diff(line).tolist())) for line in lines}
    return found


# -- the piece ----------------------------------------------------------------------------------


class _Bar(NamedTuple):
    """A bar of a section's plan; every return of the section shares it."""

    degree: int
    quality: int
    motif: int  # -1 for a closing note
    melody: list[tuple[float, float, int]]


def section_bars(tempo: float, metre: int) -> int:
    """Bars of a section: four where sixteen fit into half a minute, otherwise two.

    The clip's own length has no say, so that a shorter clip is the beginning of a longer one.
    """
    return 4 if 16 * metre * 60 / tempo <= 30 else 2


def compose(spec: Spec, seed: int, held_out_presets: bool = False) -> Score:
    """Write a piece.

    Parameters
    ----------
    spec : Spec
        Open fields are drawn from the seed.
    seed : int
        The same spec and seed give the same score, note by note; with fewer seconds, its beginning.
    held_out_presets : bool
        Draw the lead instrument's program from those that training never hears.

    Returns
    -------
    Score
    """
    rng = np.random.default_rng([seed, 20_260])
    spec = spec.drawn(rng, held_out_presets)
    score = Score(spec, beat=60.0 / spec.tempo)
    score.programs = {
        "melody": spec.program,
        "harmony": int(rng.choice(ACCOMPANIMENTS)),
        "bass": int(rng.choice(BASSES)),
    }
    drum_pattern = int(rng.integers(3))
    bar, last = spec.metre * score.beat, spec.seconds
    per_section = section_bars(spec.tempo, spec.metre)
    n_sections = int(np.ceil(last / (per_section * bar) - 1e-6))

    plans: dict[str, list[_Bar]] = {}
    numbers, taken = itertools.count(), set()  # of motifs; and the shapes of those so far
    heard: dict[int, tuple[int, int]] = {}  # motif: its first statement's index and degree
    form = FORMS[spec.form]
    for index in range(n_sections):
        label = chr(ord("A") + index) if spec.form == "through" else form[index % len(form)]
        if label not in plans:  # drawn only now: a shorter clip draws the same up to its end
            plans[label] = _plan_section(spec, per_section, numbers, taken, rng)
        occurrence = sum(s["label"] == label for s in score.sections)
        start = index * per_section * bar
        end = min(start + per_section * bar, last)
        score.sections.append({"start": start, "end": end, "label": label})
        for b, planned in enumerate(plans[label]):
            at = start + b * bar
            if at < last - 1e-6:
                _write_bar(score, planned, at, occurrence, heard, drum_pattern)

    score.notes = sorted(
        (
            Note(n.start, min(n.end, last), n.pitch, n.velocity, n.role)
            for n in score.notes
            if n.start < last - 0.02
        ),
        key=lambda n: (n.start, n.role, n.pitch),
    )
    for spans in (score.chords, score.statements):
        for span in spans:
            span["end"] = min(span["end"], last)
    final = score.chords[-1]
    if final["quality"] == SEVENTH and not any(  # the end came before the seventh
        n.role == "harmony"
        and n.start > final["start"] - 1e-6
        and (n.pitch - final["root"]) % 12 == CHORD_TONES[SEVENTH][-1]
        for n in score.notes
    ):
        final["quality"] = 0
    return score


def _plan_section(spec: Spec, n_bars: int, numbers, taken: set[tuple], rng) -> list[_Bar]:
    """Chords and melody of a section; each of its motifs takes a number and its shapes."""
    degrees = progression(n_bars, spec.mode, rng)
    options = (BARS_THROUGH if spec.form == "through" else BARS)[n_bars]
    letters = options[int(rng.integers(len(options)))]
    melodies = {"-": (-1, [(0.0, float(spec.metre - 1), int(rng.choice((0, 2))))])}
    for letter in sorted(set(letters) - {"-"}):
        above = [d for d, placed in zip(degrees, letters, strict=True) if placed == letter]
        motif = new_motif(spec.metre, rng)
        while shapes(spec, motif, above) & taken:  # a twin of another motif, by chance
            motif = new_motif(spec.metre, rng)
        taken |= shapes(spec, motif, above)
        melodies[letter] = (next(numbers), motif)
    bars = []
    for degree, letter in zip(degrees, letters, strict=True):
        seventh = rng.random() < 0.6 and degree == 4
        quality = SEVENTH if seventh else DEGREE_QUALITY[spec.mode][degree]
        bars.append(_Bar(degree, quality, *melodies[letter]))
    return bars


def _write_bar(score: Score, planned: _Bar, at: float, occurrence: int, heard, drum_pattern):
    spec, end = score.spec, at + score.spec.metre * score.beat
    degree, quality, motif, melody = planned
    root = (spec.tonic + (MAJOR, MINOR)[spec.mode][degree]) % 12
    tones = [(root + t) % 12 for t in CHORD_TONES[quality]]
    score.chords.append({"start": at, "end": end, "root": root, "quality": quality})

    if motif >= 0:
        varied = spec.form == "variations" and occurrence % 4
        if varied:
            melody = vary(melody, 1 if occurrence % 2 else -1)
        if motif not in heard:
            kind, of = "first", -1
            heard[motif] = len(score.statements), degree
        else:
            of, at_first = heard[motif]
            kind = "varied" if varied else "exact" if degree == at_first else "transposed"
        score.statements.append({"start": at, "end": end, "motif": motif, "kind": kind, "of": of})

    _melody(score, melody, degree, at)
    _bass(score, root, tones, at)
    _harmony(score, tones, at)
    if spec.drums:
        _drums(score, at, drum_pattern)


def _melody(score: Score, motif, degree: int, at: float) -> None:
    spec, gate = score.spec, ARTICULATIONS[score.spec.articulation]
    pitches = sung(spec, motif, degree)
    for (onset, duration, _), pitch in zip(motif, pitches, strict=True):
        start = at + onset * score.beat
        accent = 8 if onset == 0 else 0
        velocity = min(127, DYNAMICS[spec.dynamics] + accent)
        end = start + max(duration * score.beat * gate, 0.08)
        score.notes.append(Note(start, end, pitch, velocity, "melody"))


def _softer(spec: Spec, by: int) -> int:
    return max(24, DYNAMICS[spec.dynamics] - by)


def _bass(score: Score, root: int, tones, at: float) -> None:
    spec, beat = score.spec, score.beat
    low = 36 + (root - 36) % 12  # C2 to B2
    fifth = low + ((tones[2] - root) % 12)
    plan = [(0, 2, low), (2, 2, fifth)] if spec.metre == 4 else [(0, 3, low)]
    for onset, duration, pitch in plan:
        start = at + onset * beat
        end = start + 0.95 * duration * beat
        score.notes.append(Note(start, end, pitch, _softer(spec, 8), "bass"))


def _harmony(score: Score, tones, at: float) -> None:
    spec, beat = score.spec, score.beat
    voiced = sorted(52 + (pc - 52) % 12 for pc in tones)  # close position, E3 to D#4
    velocity = _softer(spec, 26)
    put = lambda onset, duration, pitch: score.notes.append(  # noqa: E731
        Note(at + onset * beat, at + (onset + 0.95 * duration) * beat, pitch, velocity, "harmony")
    )
    if spec.texture == "pad":
        for pitch in voiced:
            put(0, spec.metre, pitch)
    elif spec.texture == "block":
        for onset in range(spec.metre):
            for pitch in voiced:
                put(onset, 0.8, pitch)
    else:
        order = FIGURES[spec.texture][len(voiced)]
        for i in range(2 * spec.metre):
            put(i / 2, 0.5, voiced[order[i % len(order)]])


def _drums(score: Score, at: float, pattern: int) -> None:
    spec, beat = score.spec, score.beat
    velocity = min(127, DYNAMICS[spec.dynamics] + 4)
    hits = [(b / 2, 42, velocity - 25) for b in range(2 * spec.metre)]  # hi-hat in eighths
    if pattern == 1:
        hits = [h for h in hits if h[0] % 1 == 0]
    kicks, snares = ((0, 2), (1, 3)) if spec.metre == 4 else ((0,), (1, 2))
    if pattern == 2 and spec.metre == 4:
        kicks = (0, 1.5, 2)
    hits += [(b, 36, velocity) for b in kicks] + [(b, 38, velocity - 6) for b in snares]
    for onset, key, vel in hits:
        start = at + onset * beat
        score.notes.append(Note(start, start + 0.1, key, max(20, vel), "drums"))


def spec_fields() -> tuple[str, ...]:
    return tuple(f.name for f in fields(Spec))
