"""Concepts into words and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils.labels.words import CONCEPTS, GROUPS, concepts_in, phrase
from musae_utils.music import FAMILIES, Spec, caption, compose
from musae_utils.music.captions import PROGRAM_WORDS, tempo_word
from musae_utils.music.clip import MODES, PITCH_NAMES
from musae_utils.music.compose import family_of
from musae_utils.music.render import truth_of


def test_every_concept_has_a_phrase_of_its_own_and_both_it_and_its_name_are_understood():
    assert len({phrase(c) for c in CONCEPTS}) == len(CONCEPTS) > 300
    for concept in CONCEPTS:
        assert concepts_in(phrase(concept)) == (concept,), phrase(concept)
        assert concepts_in(concept) == (concept,)
    assert [len(GROUPS[name]) for name in ("tonic", "family", "sounding")] == [12, 8, 12]


separable = st.lists(st.sampled_from([c for c in CONCEPTS if "pitch" not in c]), max_size=4)


@settings(deadline=None, max_examples=60)
@given(separable, st.sampled_from([", ", "; ", " and "]))
def test_a_list_of_phrases_speaks_of_each_in_its_order(chosen, between):
    text = between.join(phrase(c) for c in chosen)
    assert concepts_in(text) == tuple(dict.fromkeys(chosen)), text


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.1, 1))
def test_captions_say_what_is_true_and_all_that_they_mention(seed, keep):
    truth = truth_of(compose(Spec(seconds=5), seed), np.zeros(1, np.float32))
    about = truth.clip
    said = concepts_in(caption(truth, np.random.default_rng(seed), keep))
    true = {
        f"tonic: {PITCH_NAMES[about['tonic']]}", f"mode: {MODES[about['mode']]}",
        f"drums: {'yes' if about['drums'] else 'no'}", f"tempo: {tempo_word(about['tempo'])}",
    }  # fmt: skip
    true |= {f"{k}: {about[k]}" for k in ("metre", "family", "form", "register", "articulation",
                                          "dynamics", "texture")}  # fmt: skip
    assert set(said) <= true
    everything = concepts_in(caption(truth, np.random.default_rng(seed), 1.0))
    assert set(everything) == true


@pytest.mark.parametrize(
    "text, concepts",
    [
        ("melody on a flute, in d minor", "family: flute|tonic: D|mode: minor"),
        ("faster, louder", "tempo: fast|dynamics: loud"),
        ("quieter, slower, higher in register", "dynamics: soft|tempo: slow|register: high"),
        ("in D♭ minor, E flat major chords",
         "tonic: C#|mode: minor|chord root: Eb|chord quality: major"),
        ("a minor chord", "chord quality: minor"),
        ("A minor chords", "chord root: A|chord quality: minor"),
        ("in a minor key", "mode: minor"),
        ("in A minor", "tonic: A|mode: minor"),
        ("in a low register", "register: low"),
        ("Solo violin at 150 BPM, no drums", "family: strings|tempo: fast|drums: no"),
        ("without a flute, not loud", ""),
        ("Dominant chord in G", "chord degree: V|tonic: G"),
        ("bass guitar", ""),
        ("A chord progression", ""),
        ("music in a church", ""),
        ("shimmering, like rain", ""),
    ],
)  # fmt: skip
def test_other_wordings(text, concepts):
    assert concepts_in(text) == tuple(filter(None, concepts.split("|")))


def test_instruments_are_of_their_families():
    for program, name in PROGRAM_WORDS.items():
        assert concepts_in(f"solo {name}") == (f"family: {family_of(program)}",)
    assert {c for c in CONCEPTS if c.startswith("family")} == {f"family: {f}" for f in FAMILIES}


@given(st.text(st.characters(min_codepoint=0x400, max_codepoint=0x10FFFF), max_size=300))
@settings(deadline=None, max_examples=40)
def test_what_no_concept_says_is_heard_as_nothing(text):
    assert concepts_in(text) == ()


def test_odd_texts_and_unknown_concepts():
    assert concepts_in("") == concepts_in("\0\n") == concepts_in("<script>alert(1)</script>") == ()
    assert concepts_in("flute " * 20_000) == ("family: flute",)
    with pytest.raises(ValueError, match="'family: kazoo' is no planted concept"):
        phrase("family: kazoo")
