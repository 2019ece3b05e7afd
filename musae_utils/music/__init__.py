"""Music with known answers: composing, real scores, recordings, rendering, truth (notebook 01)."""

from musae_utils.music.captions import caption
from musae_utils.music.clip import (
    FAMILIES,
    FRAME_RATE,
    MODES,
    PITCH_NAMES,
    QUALITIES,
    SAMPLE_RATE,
    SCALES,
    Clip,
    Note,
    Truth,
)
from musae_utils.music.compose import FORMS, PROGRAMS, Score, Spec, compose
from musae_utils.music.corpus import corpus, iter_folder, load_audio, load_folder
from musae_utils.music.dataset import association, make, make_many
from musae_utils.music.render import render

__all__ = [
    "FAMILIES", "FORMS", "FRAME_RATE", "MODES", "PITCH_NAMES", "PROGRAMS", "QUALITIES",
    "SAMPLE_RATE", "SCALES", "Clip", "Note", "Score", "Spec", "Truth", "association", "caption",
    "compose", "corpus", "iter_folder", "load_audio", "load_folder", "make", "make_many",
    "render",
]  # fmt: skip
