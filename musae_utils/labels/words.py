"""Planted concepts in words, and the concepts that words speak of (notebook 08).

A concept is called one thing (`phrase`), and many wordings speak of it (`concepts_in`): captions',
descriptors', those of people and of language models. What no concept says is heard as nothing.

Examples
--------
>>> phrase("chord root: G")
'G chords'
>>> concepts_in("melody on a flute, in d minor")
('family: flute', 'tonic: D', 'mode: minor')
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from musae_utils.labels.label import LONGEST_EVIDENCE
from musae_utils.music.captions import FORM_WORDS, PROGRAM_WORDS, tempo_word
from musae_utils.music.clip import FAMILIES, PITCH_NAMES, SAMPLE_RATE
from musae_utils.music.compose import Spec, compose, family_of
from musae_utils.music.concepts import DEGREES, LOUD, SOFT, clip_concepts, frame_concepts, group
from musae_utils.music.render import truth_of

_any = truth_of(compose(Spec(seconds=5), 0), np.zeros(5 * SAMPLE_RATE, np.float32))
#: All that can be planted, of clips first.
CONCEPTS = (*clip_concepts(_any), *frame_concepts(_any))
#: The concepts that answer each question.
GROUPS = {name: tuple(c for c in CONCEPTS if group(c) == name) for name in map(group, CONCEPTS)}

_ORDINALS = dict(zip(DEGREES, ("first", "second", "third", "fourth", "fifth", "sixth", "seventh"),
                   strict=True))  # fmt: skip
#: What a concept is called; in the braces stands its value.
_CALLED = {
    "tonic": "in {}", "mode": "in a {} key", "chord root": "{} chords",
    "chord quality": "{} chords", "chord degree": "chords on the {} degree", "metre": "in {}",
    "tempo": "{} tempo", "family": "melody on {}", "register": "{} register",
    "melody": "melody on the note {}", "melody pitch": "melody on the note {}",
    "sounding": "the note {}", "sounding pitch": "the note {}", "section": "section {}",
}  # fmt: skip
_SAID = {
    "drums: yes": "with drums", "drums: no": "without drums", "part: melody": "with a melody",
    "articulation: legato": "legato", "articulation: staccato": "staccato",
    "dynamics: soft": "soft", "dynamics: medium": "medium loud", "dynamics: loud": "loud",
    "texture: block": "block chords", "texture: arpeggio": "arpeggio",
    "texture: alberti": "alberti bass", "texture: pad": "sustained chords",
    "onset: melody": "melody onsets", "onset: any note": "note onsets",
    "onset: drum": "drum strokes", "beat: on the beat": "on the beat",
    "beat: between beats": "between beats", "beat: bar begins": "where a bar begins",
    "motif: returns": "a motif that returns", "motif: is new": "a new motif",
    f"loudness: below {SOFT:g} dB": f"levels below {SOFT:g} dB",
    f"loudness: {SOFT:g} to {LOUD:g} dB": f"levels of {SOFT:g} to {LOUD:g} dB",
    f"loudness: above {LOUD:g} dB": f"levels above {LOUD:g} dB",
    **{f"form: {form}": said for form, said in FORM_WORDS.items()},
}  # fmt: skip
_FAMILIES = {"organ": "an organ", "strings": "strings", "brass": "brass", "mallet": "mallets"}
_VALUES = {
    "metre": {"3": "three", "4": "four"}, "chord degree": _ORDINALS,
    "family": {name: f"a {name}" for name in FAMILIES} | _FAMILIES,
}  # fmt: skip


def phrase(concept: str) -> str:
    """What a planted concept is called.

    Parameters
    ----------
    concept : str
        One of `CONCEPTS`.

    Returns
    -------
    str
        Words in which `concepts_in` finds this concept, and no other.

    Raises
    ------
    ValueError
        There is no such concept.

    Examples
    --------
    >>> phrase("family: flute"), phrase("tonic: D"), phrase("drums: yes")
    ('melody on a flute', 'in D', 'with drums')
    """
    if concept not in CONCEPTS:
        raise ValueError(
            f"{concept!r} is no planted concept; they are called as in 'family: flute' or "
            f"'tonic: D', of the groups {', '.join(GROUPS)}."
        )
    if concept in _SAID:
        return _SAID[concept]
    kind, value = concept.split(": ")
    return _CALLED[kind].format(_VALUES.get(kind, {}).get(value, value))


# -- and back --------------------------------------------------------------------------------------

_RESPELT = {"DB": "C#", "D#": "Eb", "GB": "F#", "G#": "Ab", "A#": "Bb", "CB": "B", "FB": "E",
          "E#": "F", "B#": "C"}  # fmt: skip
_NAMES = {name.upper(): name for name in PITCH_NAMES} | _RESPELT
# A note may be written small, but a lone "a" is a word.
_NOTE = r"([A-Ga-g](?:#|b|-sharp|-flat)?)(?![\w#])"
_LONE = r"((?:[A-Gb-g]|[A-Ga-g](?:#|b|-sharp|-flat)))(?![\w#])"
_END = r"(?=\s*(?:$|[,.;:!?()\0]|and\b|with\b|major\b|minor\b|key\b))"
_QUALITY = r"(major|minor|diminished|dominant[ -]seventh)"


def _note(written: str) -> str:
    return _NAMES[written.replace("-sharp", "#").replace("-flat", "b").upper()]


def _all(*concepts: str) -> Callable[[re.Match], tuple[str, ...]]:
    return lambda found: concepts


def _key(found: re.Match) -> tuple[str, ...]:
    return f"tonic: {_note(found[1])}", f"mode: {found[2].lower()}"


def _chord(found: re.Match) -> tuple[str, ...]:
    quality = found[2].lower().replace("-", " ")
    return f"chord root: {_note(found[1])}", f"chord quality: {quality}"


def _value(kind: str, table: dict | None = None):
    """The value is what was matched, or stands for it in a table."""
    return lambda found: (f"{kind}: {(table or {}).get(found[1].lower(), found[1].lower())}",)


def _pitch(kind: str):
    """A note of any octave, or of the one that is named."""

    def said(found: re.Match) -> tuple[str, ...]:
        note, octave = _note(found[1]), found[2]
        name = f"{kind} pitch: {note}{octave}" if octave else f"{kind}: {note}"
        return (name,) if name in CONCEPTS else ()

    return said


_PITCH = r"([A-Ga-g](?:#|b|-sharp|-flat)?)(-?\d+)?(?![\w#])"
_INSTRUMENTS = {word: family_of(program) for program, word in PROGRAM_WORDS.items()}
_INSTRUMENTS |= {name: name for name in FAMILIES} | {
    "string": "strings", "violin": "strings", "fiddle": "strings",
    "harmonium": "organ", "trumpet": "brass", "horn": "brass", "tuba": "brass",
    "saxophone": "reed", "sax": "reed", "bassoon": "reed", "english horn": "reed", "reeds": "reed",
    "glockenspiel": "mallet", "mallets": "mallet", "piccolo": "flute",
    "acoustic guitar": "guitar", "electric guitar": "guitar", "french horn": "brass",
}  # fmt: skip
_listed = lambda names: "|".join(map(re.escape, sorted(names, key=len, reverse=True)))  # noqa: E731
_BY_FORM = {said: form for form, said in FORM_WORDS.items()} | {"rondo": "rondo"}
_BY_DEGREE = {word: degree for degree, word in _ORDINALS.items()} | {
    "tonic": "I", "subdominant": "IV", "dominant": "V"}  # fmt: skip
_BY_LEVEL = {said.lower(): c for c, said in _SAID.items() if group(c) == "loudness"}
_EXACT = {concept.lower(): concept for concept in CONCEPTS}

# Tried in this order, and what one has understood the next does not see. Each speaks of whole
# words; "(?-i:…)" is where capitals matter.
_RULES: tuple[tuple[re.Pattern, Callable], ...] = tuple(
    (re.compile(rf"(?<![\w#]){pattern}", re.IGNORECASE), said)
    for pattern, said in (
        (rf"({_listed(_EXACT)})(?![\w#])", lambda found: (_EXACT[found[1].lower()],)),
        (rf"({_listed(_BY_LEVEL)})\b", lambda found: (_BY_LEVEL[found[1].lower()],)),
        # what would be misread in parts
        (r"bass guitars?\b", _all()),
        (r"(?:drum-?less|no percussion|(?:no|without(?: any)?) (?:drums?|drum kit|beat))\b",
         _all("drums: no")),
        (r"(?:no|not|without(?: an?| any)?) [\w#-]+", _all()),
        (r"drum (?:strokes?|hits?|onsets?)\b", _all("onset: drum")),
        (r"melody onsets?\b", _all("onset: melody")),
        (r"(?:note onsets?|many onsets|denser in onsets)\b", _all("onset: any note")),
        # chords before keys: "C major chords"
        (rf"(?-i:(?=a ))a {_QUALITY} chord\b", _value("chord quality")),
        (rf"{_NOTE} {_QUALITY} (?:chords?|triads?|harmony|harmonies)\b", _chord),
        (rf"{_QUALITY} (?:chords?|triads?)\b",
         lambda found: (f"chord quality: {found[1].lower().replace('-', ' ')}",)),
        (rf"(?-i:(?!A chord\b|A triad\b){_LONE}) (?:chords?|triads?)\b",
         lambda found: (f"chord root: {_note(found[1])}",)),
        (rf"chords? on the ({_listed(_ORDINALS.values())}) degree\b",
         _value("chord degree", table=_BY_DEGREE)),
        (r"(tonic|subdominant|dominant) (?:chords?|harmony)\b",
         _value("chord degree", table=_BY_DEGREE)),
        # notes
        (rf"melody (?:is )?on (?:the )?note {_PITCH}", _pitch("melody")),
        (rf"(?:the )?(?:note|pitch|pitch class) {_PITCH}", _pitch("sounding")),
        # keys
        (r"(?-i:(?<=a ))(major|minor) (?:key|mode|scale|tonality)\b", _value("mode")),
        (rf"{_NOTE}[ -](major|minor)\b", _key),
        (rf"key of {_NOTE}", lambda found: (f"tonic: {_note(found[1])}",)),
        (rf"in (?:the key of )?(?-i:{_LONE}){_END}", lambda found: (f"tonic: {_note(found[1])}",)),
        (r"(major|minor)\b", _value("mode")),
        # instruments
        (r"(?:drums?|percussion)\b", _all("drums: yes")),
        (rf"({_listed(_INSTRUMENTS)})s?\b",
         lambda found: (f"family: {_INSTRUMENTS[found[1].lower()]}",)),
        (r"with (?:a )?melody(?! (?:on|in|by|played))\b", _all("part: melody")),
        (r"melody (?:sounds|sounding|plays|playing)\b", _all("part: melody")),
        # time
        (r"(\d{2,3}(?:\.\d+)?) ?bpm\b", lambda found: (f"tempo: {tempo_word(float(found[1]))}",)),
        (r"(?:slower|slow|slowly|adagio|largo)\b", _all("tempo: slow")),
        (r"(?:moderate|moderato|andante|medium tempo|mid-tempo)\b", _all("tempo: moderate")),
        (r"(?:faster|fast|quick|quickly|up-?tempo|allegro|presto)\b", _all("tempo: fast")),
        (r"(?:waltz|in three|3/4|(?:triple|three-four) (?:metre|meter|time))(?!\w)",
         _all("metre: 3")),
        (r"(?:in four|4/4|(?:quadruple|four-four|common) (?:metre|meter|time))(?!\w)",
         _all("metre: 4")),
        (r"on the beat\b", _all("beat: on the beat")),
        (r"(?:between beats|off the beat|off-?beat)\b", _all("beat: between beats")),
        (r"(?:where a bar begins|down-?beats?)\b", _all("beat: bar begins")),
        # the rest of a clip
        (r"(?:lower|low)[ -](?:in )?(?:register|pitched|range)\b", _all("register: low")),
        (r"(?:middle|mid)[ -](?:register|range)\b", _all("register: middle")),
        (r"(?:higher|high)[ -](?:in )?(?:register|pitched|range)\b", _all("register: high")),
        (r"(legato|staccato)\b", _value("articulation")),
        (r"(?:quieter|quiet|quietly|softer|soft|softly|piano dynamics|pianissimo)\b",
         _all("dynamics: soft")),
        (r"medium(?: loud| loudness| dynamics)?\b", _all("dynamics: medium")),
        (r"(?:louder|loud|loudly|forte|fortissimo)\b", _all("dynamics: loud")),
        (r"block chords?\b", _all("texture: block")),
        (r"(?:arpeggios?|arpeggiated(?: chords?)?|broken chords?)\b", _all("texture: arpeggio")),
        (r"alberti(?: bass)?\b", _all("texture: alberti")),
        (r"(?:sustained chords?|pads?)\b", _all("texture: pad")),
        (rf"({_listed(_BY_FORM)})\b", _value("form", table=_BY_FORM)),
        (r"section ([A-D])\b", lambda found: (f"section: {found[1].upper()}",)),
        (r"(?:motif|theme|melody) (?:that |which )?returns\b", _all("motif: returns")),
        (r"new (?:motif|theme)\b", _all("motif: is new")),
    )
)  # fmt: skip


def concepts_in(text: str) -> tuple[str, ...]:
    """The planted concepts that a text speaks of.

    Parameters
    ----------
    text : str
        Anything: a caption, a label, names of concepts. Its first 600 characters are read.

    Returns
    -------
    tuple of str
        In the order of the text, each once; empty if it speaks of none. What is denied ("no flute")
        is not spoken of, but for drums, whose absence is a concept.

    Examples
    --------
    >>> concepts_in("faster, louder"), concepts_in("Db major chords"), concepts_in("shimmering")
    (('tempo: fast', 'dynamics: loud'), ('chord root: C#', 'chord quality: major'), ())
    """
    text = text[:LONGEST_EVIDENCE].replace("♯", "#").replace("♭", "b")
    text = re.sub(r"(?<![\w#])([A-Ga-g])[ -](sharp|flat)\b", r"\1-\2", text)
    found: dict[int, tuple[str, ...]] = {}
    for pattern, said in _RULES:

        def heard(match: re.Match, said=said) -> str:
            found.setdefault(match.start(), said(match))
            return "\0" * len(match[0])

        text = pattern.sub(heard, text)
    return tuple(dict.fromkeys(c for at in sorted(found) for c in found[at]))
