"""A composer whose every decision is on record.

It writes short tonal pieces: a key, a progression with cadences, a melody and a bass that follow
the harmony, an accompaniment, drums or none, and a form whose motifs return exactly, transposed,
varied, or never. All attributes are drawn independently, so that none is accidentally a clue to
another. Explained in notebook 01.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

import numpy as np

from musae_utils.music.clip import FAMILIES, MODES, PITCH_NAMES, Note

#: Metronome marks: the tempi that composers write.
TEMPI = (60, 63, 66, 69, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 116, 120, 126, 132, 138,
         144, 152, 160)  # fmt: skip
#: Sections of each form; a form shorter than the clip starts over, but for "through", which goes on
#: to new letters and never returns.
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
#: Chord qualities on each degree (0 major, 1 minor, 2 diminished, 3 dominant seventh).
#: The dominant is a plain triad: the accompaniment plays no sevenths.
DEGREE_QUALITY = ((0, 1, 1, 0, 0, 1, 2), (1, 2, 0, 1, 0, 0, 0))
CHORD_TONES = ((0, 4, 7), (0, 3, 7), (0, 3, 6), (0, 4, 7, 10))
#: Where a degree likes to go next (functional harmony; V goes home).
NEXT = {0: (3, 4, 5, 1), 1: (4, 4, 3), 2: (5, 3), 3: (4, 0, 1, 4), 4: (0, 0, 5), 5: (3, 1, 4)}


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


def chord_pitch_classes(tonic: int, mode: int, degree: int) -> tuple[int, int, tuple[int, ...]]:
    """Root, quality and pitch classes of the chord on a scale degree (0-6)."""
    root = (tonic + (MAJOR, MINOR)[mode][degree]) % 12
    quality = DEGREE_QUALITY[mode][degree]
    return root, quality, tuple((root + t) % 12 for t in CHORD_TONES[quality])


def degree_pitch(tonic: int, mode: int, degree: int, raised: bool = False) -> int:
    """MIDI pitch of a scale degree counted from the tonic at octave 0 (may be negative).

    ``raised`` sharpens the seventh degree of minor, as the dominant chord asks.
    """
    octave, step = divmod(degree, 7)
    sharp = raised and mode == 1 and step == 6
    return tonic + 12 * octave + (MAJOR, MINOR)[mode][step] + int(sharp)


# -- harmony and motifs -------------------------------------------------------------------------


def progression(n_bars: int, rng: np.random.Generator, opens_at_home: bool) -> list[int]:
    """Chord degrees, one a bar; ends with a cadence on the tonic (V-I) when there is room."""
    degree = 0 if opens_at_home else int(rng.choice((3, 5)))
    degrees = [degree]
    while len(degrees) < n_bars:
        degrees.append(int(rng.choice(NEXT[degrees[-1]])))
    if n_bars >= 4:
        degrees[-2:] = [4, 0]
    elif n_bars >= 2:
        degrees[-1] = 4 if degrees[0] == 0 else 0
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


def vary(motif: list[tuple[float, float, int]], rng: np.random.Generator):
    """The same motif, ornamented: its longest note is split by a neighbour tone."""
    longest = max(range(len(motif)), key=lambda i: (motif[i][1], -i))
    onset, duration, degree = motif[longest]
    neighbour = degree + int(rng.choice((-1, 1)))
    pieces = [(onset, duration / 2, degree), (onset + duration / 2, duration / 2, neighbour)]
    return motif[:longest] + pieces + motif[longest + 1 :]


# -- the piece ----------------------------------------------------------------------------------


def compose(spec: Spec, seed: int, held_out_presets: bool = False) -> Score:
    """Write a piece.

    Parameters
    ----------
    spec : Spec
        Open fields are drawn from the seed.
    seed : int
        The same spec and seed give the same score, note by note.
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
    bar = spec.metre * score.beat
    n_bars = int(np.ceil(spec.seconds / bar - 1e-6))
    labels = FORMS[spec.form]
    # The longest sections (1, 2 or 4 bars) with which the whole form is heard once.
    per_section = max((n for n in (4, 2, 1) if n * len(labels) <= n_bars), default=1)
    n_sections = int(np.ceil(n_bars / per_section))
    if spec.form == "through":
        labels = "".join(chr(ord("A") + i) for i in range(n_sections))
    plans = {label: _plan_section(label, per_section, spec, rng) for label in sorted(set(labels))}
    drum_pattern = int(rng.integers(3))

    seen: dict[int, int] = {}  # motif id -> index of its first statement
    for index in range(n_sections):
        label = labels[index % len(labels)]
        plan = plans[label]
        occurrence = sum(s["label"] == label for s in score.sections)
        start = index * per_section * bar
        end = min(start + per_section * bar, spec.seconds)
        score.sections.append({"start": start, "end": end, "label": label})
        for b in range(per_section):
            at = start + b * bar
            if at >= spec.seconds - 1e-6:
                break
            _write_bar(score, plan, b, at, occurrence, seen, drum_pattern, rng)

    last = spec.seconds
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
    return score


def _plan_section(label: str, bars: int, spec: Spec, rng: np.random.Generator) -> dict:
    """Chords and melody bars of a section; every return of the section shares them."""
    motif = new_motif(spec.metre, rng)
    melody = [("motif", motif)]
    if bars == 4:
        melody += [("free", new_motif(spec.metre, rng)), ("motif", motif)]
    if bars > 1:
        melody.append(("cadence", [(0.0, float(spec.metre - 1), int(rng.choice((0, 2))))]))
    return {
        "label": label,
        "id": ord(label) - ord("A"),
        "chords": progression(bars, rng, opens_at_home=label != "B"),
        "melody": melody,
    }


def _write_bar(score, plan, b, at, occurrence, seen, drum_pattern, rng) -> None:
    spec, bar = score.spec, score.spec.metre * score.beat
    degree = plan["chords"][b]
    root, quality, tones = chord_pitch_classes(spec.tonic, spec.mode, degree)
    score.chords.append({"start": at, "end": at + bar, "root": root, "quality": quality})

    kind, motif = plan["melody"][b]
    if kind == "motif":
        key = plan["id"]
        if key not in seen:
            how, of = "first", -1
        elif b > 0:  # within its section the motif is heard again on another chord
            how, of = ("exact" if degree == plan["chords"][0] else "transposed"), seen[key]
        elif spec.form == "variations" and occurrence % 4:
            how, of = "varied", seen[key]
        else:
            how, of = "exact", seen[key]
        if spec.form == "variations" and occurrence % 4:
            motif = vary(motif, np.random.default_rng([plan["id"], occurrence % 4, len(motif)]))
            how = "varied" if of >= 0 else how
        seen.setdefault(key, len(score.statements))
        score.statements.append({"start": at, "end": at + bar, "motif": key, "kind": how, "of": of})

    _melody(score, motif, degree, quality, at)
    _bass(score, root, tones, at)
    _harmony(score, tones, at)
    if spec.drums:
        _drums(score, at, drum_pattern)


def _melody(score: Score, motif, degree: int, quality: int, at: float) -> None:
    spec = score.spec
    center, gate = REGISTERS[spec.register], ARTICULATIONS[spec.articulation]
    # The chord's root nearest below the register's centre, so that a motif keeps its octave.
    base = degree
    while degree_pitch(spec.tonic, spec.mode, base + 7) <= center + 2:
        base += 7
    for onset, duration, step in motif:
        start = at + onset * score.beat
        pitch = degree_pitch(spec.tonic, spec.mode, base + step, raised=degree == 4)
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
    voiced = sorted(52 + (pc - 52) % 12 for pc in tones[:3])  # close position, E3 to D#4
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
        order = (0, 1, 2, 1) if spec.texture == "arpeggio" else (0, 2, 1, 2)
        for i in range(2 * spec.metre):
            put(i / 2, 0.5, voiced[order[i % 4]])


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
