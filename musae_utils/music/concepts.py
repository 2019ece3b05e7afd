"""What was planted in composed music, as yes-or-no questions: one table for the whole book.

Whoever asks what a feature, a neuron or a probe follows asks it here, so that everyone means the
same by "the chord's root is G". A concept is named ``"group: value"``; what is absent is False (a
frame without a melody is no frame with melody G). What a source cannot know (the chords of a
recording) gives no concept at all. Met in notebook 07.

====================  ===========================================================================
of each frame         chord root (12), quality (4), degree in the key (7); melody sounds, its pitch
                      class (12) and pitch; sounding pitch classes (12) and pitches; on the beat,
                      between beats, bar begins; onset of any note, of the melody, of a drum;
                      section; motif returns or is new; loudness in three bands
of each clip          tonic (12), mode, metre, tempo in three bands, lead family (8), drums, form,
                      register, articulation, dynamics, texture
====================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from musae_utils.music.captions import tempo_word
from musae_utils.music.clip import FAMILIES, FRAME_RATE, MODES, PITCH_NAMES, QUALITIES, Truth
from musae_utils.music.compose import ARTICULATIONS, DYNAMICS, FORMS, REGISTERS, TEXTURES

__all__ = ["clip_concepts", "clip_table", "frame_concepts", "frame_table", "group"]

#: Semitones above the tonic: the degree whose triad has its root there, in major or minor.
DEGREES = {"I": (0,), "II": (2,), "III": (3, 4), "IV": (5,), "V": (7,), "VI": (8, 9),
           "VII": (10, 11)}  # fmt: skip
#: dB relative to full scale; composed music has about a third of its frames in each band.
SOFT, LOUD = -29.0, -24.0
SHORT = 3  # truth frames (60 ms) that an onset lasts: a codec's frame hears a little around itself
ON_THE_BEAT = 1 / 16  # of a beat, on either side


def group(concept: str) -> str:
    """The question that a concept answers: ``"chord root"`` of ``"chord root: G"``."""
    return concept.split(":")[0]


def frame_concepts(
    truth: Truth, n_frames: int | None = None, frame_rate: float = FRAME_RATE
) -> dict[str, np.ndarray]:
    """Which concepts hold in each frame of a clip.

    Parameters
    ----------
    truth : Truth
    n_frames : int, optional
        Frames wanted from the start; by default as many as the truth has.
    frame_rate : float
        Hz, of the frames wanted; each is given the truth of its middle.

    Returns
    -------
    dict of str to bool ndarray of shape (n_frames,)
        The same keys for every clip of a source.

    Examples
    --------
    >>> from musae_utils import music
    >>> clip = music.make(seed=1, seconds=5)
    >>> int(frame_concepts(clip.truth)["beat: bar begins"].sum()) > 0
    True
    """
    known, found = truth.frames, {}
    if "chord_root" in known:
        root = known["chord_root"]
        found |= _each("chord root", root, PITCH_NAMES)
        found |= _each("chord quality", known["chord_quality"], QUALITIES)
        if "tonic" in known:
            above = np.where(root < 0, -1, (root - known["tonic"]) % 12)
            for degree, semitones in DEGREES.items():
                found[f"chord degree: {degree}"] = np.isin(above, semitones)
    if "melody" in known:
        melody = known["melody"]
        found["part: melody"] = melody >= 0
        found |= _each("melody", np.where(melody < 0, -1, melody % 12), PITCH_NAMES)
        found |= _each("melody pitch", melody, _midi_names())
        found["onset: melody"] = _lasting(_starts(truth, known, ("melody",)))
    if "active" in known:
        active = known["active"]
        for i, name in enumerate(PITCH_NAMES):
            found[f"sounding: {name}"] = active[:, i::12].any(1)
        found |= {f"sounding pitch: {name}": active[:, i] for i, name in enumerate(_midi_names())}
        pitched = _starts(truth, known, ("melody", "harmony", "bass"))
        found["onset: any note"] = _lasting(pitched)
    if "drums" in known:
        found["onset: drum"] = _lasting(known["drums"].astype(bool))
    if "beat" in known:
        beat = known["beat"]
        found["beat: on the beat"] = _near(beat, 0.0, ON_THE_BEAT)
        found["beat: between beats"] = _near(beat, 0.5, ON_THE_BEAT)
    if "downbeat" in known:
        metre = int(truth.clip.get("metre") or 4)
        found["beat: bar begins"] = _near(known["downbeat"], 0.0, ON_THE_BEAT / metre)
    if "section" in known:
        found |= _each("section", known["section"], "ABCD")
    if "motif" in known:
        stated, again = known["motif"] >= 0, known["repeats"] >= 0
        found |= {"motif: returns": stated & again, "motif: is new": stated & ~again}
    if "loudness" in known:
        level = known["loudness"]
        found |= {
            f"loudness: below {SOFT:g} dB": level < SOFT,
            f"loudness: {SOFT:g} to {LOUD:g} dB": (level >= SOFT) & (level < LOUD),
            f"loudness: above {LOUD:g} dB": level >= LOUD,
        }
    n = len(truth)
    wanted = n if n_frames is None else n_frames
    moments = ((np.arange(wanted) + 0.5) * (FRAME_RATE / frame_rate)).astype(int).clip(max=n - 1)
    return {name: track[moments] for name, track in found.items()}


def clip_concepts(truth: Truth) -> dict[str, bool]:
    """Which concepts hold for a whole clip; see `frame_concepts`.

    Examples
    --------
    >>> from musae_utils import music
    >>> clip = music.make(seed=1, seconds=5, tonic=2, family="flute")
    >>> [name for name, holds in clip_concepts(clip.truth).items() if holds][:1]
    ['tonic: D']
    """
    values = {
        "tonic": PITCH_NAMES, "mode": MODES, "metre": (3, 4), "tempo": ("slow", "moderate", "fast"),
        "family": FAMILIES, "drums": ("yes", "no"), "form": tuple(FORMS),
        "register": tuple(REGISTERS), "articulation": tuple(ARTICULATIONS),
        "dynamics": tuple(DYNAMICS), "texture": TEXTURES,
    }  # fmt: skip
    said = {
        "tonic": lambda v: PITCH_NAMES[v], "mode": lambda v: MODES[v], "tempo": tempo_word,
        "drums": lambda v: "yes" if v else "no",
    }  # fmt: skip
    found = {}
    for name, options in values.items():
        value = truth.clip.get(name)
        if value is not None:
            value = said.get(name, lambda v: v)(value)
            found |= {f"{name}: {option}": value == option for option in options}
    return found


def frame_table(
    truths: Sequence[Truth], counts: Sequence[int], frame_rate: float = FRAME_RATE
) -> tuple[list[str], np.ndarray]:
    """The frames of many clips, one after the other.

    Parameters
    ----------
    truths : sequence of Truth
    counts : sequence of int
        Frames of each clip.
    frame_rate : float
        Hz.

    Returns
    -------
    names : list of str
        Concepts that every clip knows and that hold somewhere and fail somewhere.
    table : bool ndarray of shape (sum of counts, len(names))
    """
    return _table([frame_concepts(t, n, frame_rate) for t, n in zip(truths, counts, strict=True)])


def clip_table(truths: Sequence[Truth]) -> tuple[list[str], np.ndarray]:
    """The concepts of many clips: names, and a bool ndarray of shape (clips, len(names))."""
    return _table([{k: np.array([v]) for k, v in clip_concepts(t).items()} for t in truths])


def _table(clips: list[dict[str, np.ndarray]]) -> tuple[list[str], np.ndarray]:
    shared = [name for name in (clips[0] if clips else ()) if all(name in c for c in clips)]
    tracks = {name: np.concatenate([clip[name] for clip in clips]) for name in shared}
    names = [name for name, track in tracks.items() if track.any() and not track.all()]
    n = len(tracks[shared[0]]) if shared else 0
    table = np.empty((n, len(names)), bool, order="F")
    for i, name in enumerate(names):
        table[:, i] = tracks[name]
    return names, table


def _each(kind: str, track: np.ndarray, values: Sequence[str]) -> dict[str, np.ndarray]:
    return {f"{kind}: {value}": track == i for i, value in enumerate(values)}


def _midi_names() -> list[str]:
    return [f"{PITCH_NAMES[p % 12]}{p // 12 - 1}" for p in range(128)]


def _near(phase: np.ndarray, centre: float, reach: float) -> np.ndarray:
    return np.abs((phase - centre + 0.5) % 1.0 - 0.5) <= reach


def _starts(truth: Truth, known: dict, roles: tuple[str, ...]) -> np.ndarray:
    """Frames in which a note of these parts begins."""
    n = len(truth)
    if truth.notes:
        began = np.zeros(n, bool)
        frames = [int(note.start * FRAME_RATE + 1e-6) for note in truth.notes if note.role in roles]
        began[[f for f in frames if f < n]] = True
        return began
    track = known["melody"] if roles == ("melody",) else known["active"]
    before = np.roll(track, 1, axis=0)
    before[0] = -1 if track.ndim == 1 else 0
    began = (track != before) & (track >= 0 if track.ndim == 1 else track)
    return began if track.ndim == 1 else began.any(1)


def _lasting(events: np.ndarray) -> np.ndarray:
    """Events of one frame, made `SHORT` frames long."""
    out = events.copy()
    for later in range(1, SHORT):
        out[later:] |= events[:-later]
    return out
