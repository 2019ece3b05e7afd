"""Descriptions in words: free in wording, partial on purpose.

A caption mentions each attribute only sometimes, so a model learns to play from whatever it is
told. `VOCABULARY` is every word that a caption can hold, and so what the nano models understand.
"""

from __future__ import annotations

import re

import numpy as np

from musae_utils.music.clip import FAMILIES, MODES, PITCH_NAMES, Truth
from musae_utils.music.compose import TEMPI

#: What each General MIDI program used here is called.
PROGRAM_WORDS = {
    0: "grand piano", 1: "bright piano", 4: "electric piano", 5: "electric piano",
    16: "drawbar organ", 18: "rock organ", 19: "church organ", 20: "reed organ",
    24: "nylon guitar", 25: "steel guitar", 26: "jazz guitar", 27: "clean guitar",
    40: "violin", 41: "viola", 42: "cello", 48: "string ensemble",
    56: "trumpet", 57: "trombone", 60: "horn", 61: "brass section",
    65: "alto saxophone", 66: "tenor saxophone", 68: "oboe", 71: "clarinet",
    72: "piccolo", 73: "flute", 74: "recorder", 75: "pan flute",
    8: "celesta", 11: "vibraphone", 12: "marimba", 13: "xylophone",
}  # fmt: skip
FORM_WORDS = {
    "AABA": "song form", "ABAB": "verse and chorus", "rondo": "a rondo",
    "through": "through composed", "variations": "theme and variations",
}  # fmt: skip
FILLERS = ("a piece for", "music with", "a melody on", "a tune played by", "featuring", "lead")


def tempo_word(tempo: float) -> str:
    """slow (below 84 BPM), moderate, or fast (above 120)."""
    return "slow" if tempo < 84 else "fast" if tempo > 120 else "moderate"


def caption(truth: Truth, rng: np.random.Generator, keep: float = 0.7) -> str:
    """Describe a clip; each attribute is mentioned with probability ``keep``.

    Parameters
    ----------
    truth : Truth
    rng : numpy Generator
    keep : float
        In [0, 1]; 1 mentions everything, and finer points (metre, form, …) are told with ``keep²``.

    Returns
    -------
    str
        Words from `VOCABULARY` and punctuation; never empty.
    """
    c, said = truth.clip, []
    say = lambda: rng.random() < keep  # noqa: E731
    choose = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
    family, program = c.get("family"), c.get("program")
    if family and say():
        # The family's own word is always there: programs are too many to learn each from little.
        name = PROGRAM_WORDS.get(program, "")
        name = name if family in name.split() or rng.random() < 0.5 else ""
        noun = name if family in name.split() else f"{family} {name}".strip()
        said.append(f"{choose(FILLERS)} {noun}")
    if c.get("key") and say():
        said.append(choose(("in {}", "key of {}", "{}")).format(c["key"]))
    if c.get("tempo") and say():
        mark = min(TEMPI, key=lambda t: abs(t - c["tempo"]))
        word = tempo_word(c["tempo"])
        wordings = (f"{mark} bpm", f"{word} {mark} bpm", word)
        # A tempo beyond the marks is not given a wrong number.
        said.append(choose(wordings if abs(mark / c["tempo"] - 1) < 0.04 else (word,) * 3))
    if c.get("drums") is not None and say():
        wordings = ("with drums", "drums") if c["drums"] else ("no drums", "without drums")
        said.append(choose(wordings))
    for key, words in (
        ("metre", {3: ("waltz", "in three"), 4: ("in four",)}),
        ("form", {k: (v,) for k, v in FORM_WORDS.items()}),
        ("register", {k: (f"{k} register",) for k in ("low", "middle", "high")}),
        ("articulation", {k: (k,) for k in ("legato", "staccato")}),
        ("dynamics", {k: (k,) for k in ("soft", "medium", "loud")}),
        ("texture", {"block": ("block chords",), "arpeggio": ("arpeggio",),
                     "alberti": ("alberti bass",), "pad": ("sustained chords",)}),
    ):  # fmt: skip
        if c.get(key) in words and rng.random() < keep * keep:  # finer points are told less often
            said.append(choose(words[c[key]]))
    rng.shuffle(said)
    return ", ".join(said) if said else "music"


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text; a key ("c# minor") is one word.

    So "a" in "a minor" is not the article.
    """
    return re.findall(r"\b[a-g](?:#|b)? (?:major|minor)|[a-z]+#?|\d+", text.lower())


def _vocabulary() -> tuple[str, ...]:
    keys = [f"{name} {mode}" for name in PITCH_NAMES for mode in MODES]
    texts = [*FAMILIES, *MODES, *keys, *map(str, TEMPI), *PROGRAM_WORDS.values()]
    texts += [*FORM_WORDS.values(), *FILLERS]
    texts += ["in key of bpm slow moderate fast with drums no without waltz three four register"]
    texts += ["low middle high legato staccato soft medium loud block chords arpeggio alberti bass"]
    texts += ["sustained music and"]
    return tuple(sorted({w for t in texts for w in words(t)}))


VOCABULARY = _vocabulary()
