"""Captions: every word is known, what is said is true, and much is left unsaid."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compose import SPECS

from musae_utils.music import Spec, Truth, caption, compose
from musae_utils.music.captions import (
    FORM_WORDS,
    PROGRAM_WORDS,
    VOCABULARY,
    tempo_word,
    words,
)
from musae_utils.music.compose import PROGRAMS, TEMPI
from musae_utils.music.render import truth_of


def truth(spec=None, seed=0, held_out=False):
    return truth_of(compose(spec or Spec(seconds=5), seed, held_out), np.zeros(1, np.float32))


@settings(max_examples=150, deadline=None)
@given(SPECS, st.integers(0, 2**32), st.floats(0, 1), st.booleans())
def test_every_word_is_in_the_vocabulary(spec, seed, keep, held_out):
    text = caption(truth(spec, seed, held_out), np.random.default_rng(seed), keep)
    assert text and set(words(text)) <= set(VOCABULARY)


def test_the_vocabulary_has_no_word_that_is_never_said():
    rng, said = np.random.default_rng(0), set()
    for seed in range(1500):
        said |= set(words(caption(truth(seed=seed, held_out=seed % 3 == 0), rng, 1.0)))
    spare = set(VOCABULARY) - said
    # "major" and "minor" alone are for a prompt that names no tonic.
    assert spare <= {"major", "minor", "and"}


@settings(max_examples=150, deadline=None)
@given(SPECS, st.integers(0, 2**32))
def test_what_is_said_is_true(spec, seed):
    known = truth(spec, seed)
    text, c = caption(known, np.random.default_rng(seed), 1.0), known.clip
    said = words(text)
    assert c["key"].lower() in said
    assert len([w for w in said if " " in w]) == 1, "one key"
    assert c["family"] in said
    assert ("no" in said or "without" in said) is not c["drums"] and "drums" in said
    for mark in (w for w in said if w.isdigit()):
        assert abs(int(mark) - c["tempo"]) <= 0.05 * c["tempo"]
    if {"slow", "moderate", "fast"} & set(said):
        assert tempo_word(c["tempo"]) in said
    assert ("waltz" in said or "three" in said) is (c["metre"] == 3)
    for name in ("register", "articulation", "dynamics"):
        assert c[name] in said
    assert FORM_WORDS[c["form"]] in text


def test_a_program_is_called_by_its_name_only_where_it_plays():
    for family, programs in PROGRAMS.items():
        for program in programs:
            known = truth(Spec(family=family, program=program, seconds=5))
            texts = [caption(known, np.random.default_rng(s), 1.0) for s in range(12)]
            others = set(PROGRAM_WORDS.values()) - {PROGRAM_WORDS[program]}
            named = [t for t in texts if PROGRAM_WORDS[program] in t]
            assert named and all(family in words(t) for t in texts)
            wrong = {o for o in others if o not in PROGRAM_WORDS[program] and o != family}
            assert not any(re.search(rf"\b{o}\b", t) for o in wrong for t in texts)


def test_each_attribute_is_sometimes_left_out():
    known, n = truth(Spec(seconds=5, drums=True, metre=3)), 400
    texts = [caption(known, np.random.default_rng(s)) for s in range(n)]
    for sign, expected in (
        (known.clip["family"], 0.7), (known.clip["key"], 0.7), ("drums", 0.7),
        ("waltz|in three", 0.49), (known.clip["dynamics"], 0.49), ("bass|chords|arpeggio", 0.49),
    ):  # fmt: skip
        share = np.mean([bool(re.search(rf"\b({sign})\b", t)) for t in texts])
        assert share == pytest.approx(expected, abs=0.1)
    assert len(set(texts)) > 0.9 * n, "free in wording"
    assert caption(known, np.random.default_rng(0), keep=0) == "music"


def test_what_is_unknown_is_not_said():
    rng = np.random.default_rng(0)
    frames = {"tempo": np.zeros(5)}
    assert {caption(Truth(frames, {}), rng, 1.0) for _ in range(20)} == {"music"}
    assert {caption(Truth(frames, {"key": "A minor"}), rng, 1.0) for _ in range(40)} == {
        "in A minor", "key of A minor", "A minor",
    }  # fmt: skip


def test_a_tempo_beyond_the_metronome_is_not_given_a_wrong_number():
    frames = {"tempo": np.zeros(5)}
    told = lambda bpm: {  # noqa: E731
        caption(Truth(frames, {"tempo": bpm}), np.random.default_rng(s), 1.0) for s in range(20)
    }
    assert told(220.0) == {"fast"} and told(45.0) == {"slow"}
    assert told(120.0) == {"120 bpm", "moderate 120 bpm", "moderate"}
    assert all(str(t) in VOCABULARY for t in TEMPI)


def test_a_key_is_one_word():
    assert words("A waltz in A minor for oboe") == ["a", "waltz", "in", "a minor", "for", "oboe"]
    assert words("F# major, Eb minor; 120 BPM!") == ["f# major", "eb minor", "120", "bpm"]
    assert words("") == [] and words("…") == []
