"""A piano roll that knows the answers: notes, harmony, beats, form and returning motifs, in time.

What is drawn is the truth of a composed clip, not an estimate. Roles differ in shape as well as
in colour, every label is also in the words below the picture, and without JavaScript the picture
and the browser's own player remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from IPython.display import HTML

from .page import wrap
from .players import audio_tag, matching_gains, mono

FRAME_RATE = 50  # Hz of the truth tracks, as in musae_utils.music
PITCH_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
#: The line of fifths, from Fbb to B##.
FIFTHS = tuple(letter + sign for sign in ("bb", "b", "", "#", "##") for letter in "FCGDAEB")
MODES = ("major", "minor")
QUALITIES = ("", "m", "°", "7")  # major, minor, diminished, dominant seventh
SPOKEN = ("major", "minor", "diminished", "dominant seventh")
KINDS = {"first": "", "exact": "=", "transposed": "↕", "varied": "~"}
DASHES = {"exact": "", "transposed": "7 3", "varied": "1.5 3"}
HUES = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2")  # Okabe and Ito
ROLES = {
    # role: (fill, fill opacity, edge, height in semitones): block, hollow block, thin bar.
    "harmony": ("#56B4E9", 0.25, "#56B4E9", 1.0),
    "bass": ("#009E73", 1.0, "#009E73", 0.45),
    "melody": ("#D55E00", 1.0, "var(--paper)", 1.0),
}
DRUM_ROWS = {35: 2, 36: 2, 37: 1, 38: 1, 39: 1, 40: 1}  # kick below, snare in the middle


def segments(values: Sequence[Any], rate: float = FRAME_RATE) -> list[tuple[float, float, Any]]:
    """Runs of equal values as (start, end, value), in seconds at `rate` frames a second."""
    values = np.asarray(values)
    if not len(values):
        return []
    starts = np.r_[0, np.flatnonzero(values[1:] != values[:-1]) + 1]
    ends = np.r_[starts[1:], len(values)]
    return [(s / rate, e / rate, values[s].item()) for s, e in zip(starts, ends, strict=True)]


def bar_times(phase: Sequence[float], rate: float = FRAME_RATE) -> list[float]:
    """Times in seconds at which a phase track in [0, 1) starts a new turn, between frames too."""
    phase = np.asarray(phase, dtype=float)
    if len(phase) < 2:
        return []
    step = np.median(np.diff(phase)[np.diff(phase) > 0]) if (np.diff(phase) > 0).any() else np.inf
    turns = np.flatnonzero(np.diff(phase) < 0) + 1
    turns = np.r_[0, turns] if phase[0] < step else turns
    return [max(0.0, float(i - phase[i] / step) / rate) for i in turns]


def key_name(tonic: int, mode: int) -> str:
    """ "D minor" for (2, 1)."""
    return f"{PITCH_NAMES[tonic]} {MODES[mode]}"


def pitch_name(pitch: int, tonic: int = -1) -> str:
    """A pitch class as a key spells it: 8 is "G#" in E (4), "Ab" in F (5), and where no key is
    known (-1)."""
    if tonic < 0:
        return PITCH_NAMES[pitch]
    # On the line of fifths, F C G D A E B and again with a sharp or flat, a scale's notes are
    # neighbours: of a note's names, the one between five below the tonic and six above it.
    home = FIFTHS.index(PITCH_NAMES[tonic])
    return FIFTHS[home - 5 + (7 * (pitch - tonic) + 5) % 12]


def chord_name(root: int, quality: int, tonic: int = -1, spoken: bool = False) -> str:
    """ "Dm" for (2, 1), or "D minor" when `spoken`; "" for no chord (-1)."""
    if root < 0 or quality < 0:
        return ""
    name = pitch_name(root, tonic)
    return name + (f" {SPOKEN[quality]}" if spoken else QUALITIES[quality])


def chords(truth: Any) -> list[tuple[float, float, tuple[int, int, int]]]:
    """The clip's chords as (start, end, (root, quality, tonic)), the arguments of `chord_name`.

    Places without a chord are left out; the tonic is -1 where it is not known.
    """
    if "chord_root" not in truth.frames:
        return []
    root, quality = (np.asarray(truth.frames[f"chord_{name}"]) for name in ("root", "quality"))
    tonic = np.asarray(truth.frames.get("tonic", np.full(len(root), -1)))
    runs = segments(np.where(root < 0, -1, (root * 8 + quality) * 16 + tonic + 1))
    return [
        (s, e, (int(v) // 128, int(v) // 16 % 8, int(v) % 16 - 1)) for s, e, v in runs if v >= 0
    ]


def statement_names(statements: Sequence[dict]) -> list[str]:
    """ "a1", "b1", "a2", ...: the motif's letter and how often it has been heard."""
    letters, heard, names = {}, {}, []
    for statement in statements:
        motif = statement["motif"]
        letter = letters.setdefault(motif, chr(ord("a") + len(letters) % 26))
        heard[motif] = heard.get(motif, 0) + 1
        names.append(f"{letter}{heard[motif]}")
    return names


def in_words(clip: Any) -> str:
    """What a composed clip is, in one sentence."""
    facts = clip.truth.clip
    shapes = {
        "key": "{}",
        "tempo": "{:.0f} beats a minute",
        "metre": "{} beats a bar",
        "form": "form {}",
        "family": "{} in the lead",
    }
    parts = [shape.format(facts[k]) for k, shape in shapes.items() if facts.get(k) is not None]
    if facts.get("drums") is not None:
        parts.append("with drums" if facts["drums"] else "no drums")
    return ", ".join([*parts, f"{len(clip.audio) / clip.sample_rate:.0f} seconds"]) + "."


def piano_roll(clip: Any, title: str = "") -> HTML:
    """The clip's score with everything known about it, its sound, and a moving playhead.

    Lanes from the top: bars, form, motif statements (an arc leads back to the statement that one
    repeats: solid exact, dashed transposed, dotted varied), key, chords, notes, drums, loudness.
    Click or, with the picture focused, use the keys to move: arrows by a second, Page Up and Page
    Down by a bar, Home, End; space plays and pauses.

    Parameters
    ----------
    clip : Clip
        With truth, as ``music.make`` returns it.
    title : str, optional
        Printed above; the clip's name by default.

    Returns
    -------
    IPython.display.HTML

    Raises
    ------
    ValueError
        If the clip has no truth (a recording).

    See Also
    --------
    clip_figure : the picture for clips without truth.
    """
    truth = getattr(clip, "truth", None)
    if truth is None:
        raise ValueError(
            f"{getattr(clip, 'name', '') or 'This clip'} is a recording: its notes are not known. "
            "Show it with show.clip_figure(clip) and show.player(clip)."
        )
    samples, rate = mono(clip)
    title = title or getattr(clip, "name", "") or "clip"
    seconds = len(samples) / rate
    lanes = [lane for lane in _lanes(truth, seconds) if lane]
    [gain] = matching_gains([(samples, rate)], match=False)
    words = in_words(clip)
    names = "".join(f'<div style="--h:{height}px">{name}</div>' for name, _, height, _ in lanes)
    tracks = "".join(
        f'<div class="lane {kind}" style="--h:{height}px">{body}</div>'
        for _, kind, height, body in lanes
    )
    drums = any(note.role == "drums" for note in truth.notes)
    return wrap(
        "roll",
        f'<p class="title">{escape(title)}</p><p>{escape(words)}</p>'
        f'<div class="frame"><div class="names" aria-hidden="true">{names}</div>'
        f'<div class="tracks" role="img" aria-label="Piano roll: {escape(words)}" '
        f'style="min-width:{max(12.0, 1.35 * seconds):.1f}rem">{tracks}'
        f'<div class="head"></div></div></div>'
        f"{audio_tag(samples, rate, title, gain)}"
        f'<p class="now-text js" aria-hidden="true"></p>{_legend(truth, drums)}{_words(truth)}',
        f'data-seconds="{seconds:.3f}" data-metre="{int(truth.clip.get("metre") or 4)}" '
        f'data-name="{escape(title)}" data-lm-suppress-shortcuts="true"',
    )


# -- lanes: (name for the margin, class, height in px, markup); x is in % or in ms of the viewBox


def _block(
    start: float,
    end: float,
    seconds: float,
    text: str,
    title: str,
    style: str = "",
    extra: str = "",
) -> str:
    left, width = 100 * start / seconds, 100 * (end - start) / seconds
    return (
        f'<b data-from="{start:.3f}" data-to="{end:.3f}" title="{escape(title)}" {extra} '
        f'style="left:{left:.2f}%;width:{width:.2f}%;{style}">{escape(text)}</b>'
    )


def _picture(seconds: float, height: float, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {1000 * seconds:.0f} {height:g}" preserveAspectRatio="none" '
        f'aria-hidden="true">{body}</svg>'
    )


def _tint(index: int) -> str:
    hue = HUES[index % len(HUES)]
    return f"--fill:{hue}38;--edge:{hue}"


def _lanes(truth: Any, seconds: float) -> list[tuple | None]:
    # What a source cannot know is absent from its truth, and its lane from the picture.
    facts, frames = truth.clip, truth.frames
    sections = facts.get("sections") or []
    bars = bar_times(frames.get("downbeat", ()))
    ends = [*bars[1:], seconds][: len(bars)]
    bar_lane = "".join(
        _block(s, e, seconds, str(i), f"bar {i}", extra=f'data-bar="{i}"')
        for i, (s, e) in enumerate(zip(bars, ends, strict=True), 1)
        if s < seconds
    )
    labels = list(dict.fromkeys(section["label"] for section in sections))
    form = "".join(
        _block(
            s["start"],
            min(s["end"], seconds),
            seconds,
            s["label"],
            f"section {s['label']}",
            _tint(labels.index(s["label"])),
        )
        for s in sections
    )
    known = "tonic" in frames and "mode" in frames
    keys = segments(np.asarray(frames["tonic"]) * 2 + np.asarray(frames["mode"])) if known else []
    key_lane = "".join(
        _block(s, min(e, seconds), seconds, key_name(v // 2, v % 2), key_name(v // 2, v % 2))
        for s, e, v in keys
        if v >= 0
    )
    chord_lane = "".join(
        _block(s, min(e, seconds), seconds, chord_name(*c), chord_name(*c, spoken=True))
        for s, e, c in chords(truth)
    )
    return [
        ("bar", "bar", 18, bar_lane) if bars else None,
        ("form", "form", 24, form) if form else None,
        _motif_lane(facts.get("statements") or [], seconds),
        ("key", "keys", 24, key_lane) if key_lane else None,
        ("chord", "chords", 24, chord_lane) if chord_lane else None,
        _note_lane(truth, seconds, bars, bar_times(frames.get("beat", ()))),
        _drum_lane(truth, seconds),
        _loudness_lane(frames["loudness"], seconds) if "loudness" in frames else None,
        _time_lane(seconds),
    ]


def _motif_lane(statements: Sequence[dict], seconds: float) -> tuple | None:
    if not statements:
        return None
    names = statement_names(statements)
    boxes, arcs = [], {}
    for statement, name in zip(statements, names, strict=True):
        of, kind = statement.get("of", -1), statement["kind"]
        text, title = name, f"motif {name}, first heard"
        if of >= 0:
            text = name + KINDS[kind] + names[of]
            title = f"motif {name}, {kind} return of {names[of]}"
            x = [1000 * (s["start"] + s["end"]) / 2 for s in (statements[of], statement)]
            # The curve rises to three quarters of its handles: the farther back, the higher.
            top = 38 - 48 * min(1.0, 0.3 + abs(x[1] - x[0]) / (1000 * seconds))
            arcs.setdefault(kind, []).append(
                f"M{x[0]:.0f} 38C{x[0]:.0f} {top:.0f} {x[1]:.0f} {top:.0f} {x[1]:.0f} 38"
            )
        boxes.append(
            _block(
                statement["start"],
                min(statement["end"], seconds),
                seconds,
                text,
                title,
                _tint(ord(name[0]) - ord("a") + 2),
            )
        )
    paths = "".join(
        f'<path d="{"".join(d)}" fill="none" stroke="var(--muted)" stroke-width="1.25" '
        f'stroke-dasharray="{DASHES.get(kind, "")}"/>'
        for kind, d in arcs.items()
    )
    return "motif", "motifs", 62, _picture(seconds, 62, paths) + "".join(boxes)


def _note_lane(
    truth: Any, seconds: float, bars: Sequence[float], beats: Sequence[float]
) -> tuple | None:
    notes = [note for note in truth.notes if note.role != "drums"]
    if not notes:
        return None
    low = min(note.pitch for note in notes) - 2
    high = max(note.pitch for note in notes) + 3
    span = high - low
    height = int(min(300, max(150, 5.5 * span)))
    lines = "".join(f"M0 {high - c}H{1000 * seconds:.0f}" for c in range(low, high) if c % 12 == 0)
    ticks = "".join(f"M{1000 * b:.0f} 0V{span}" for b in beats)
    downs = "".join(f"M{1000 * b:.0f} 0V{span}" for b in bars)
    grid = "".join(
        f'<path d="{d}" fill="none" stroke="var(--line)" stroke-width="{width}" '
        f'stroke-opacity="{alpha}"/>'
        for d, width, alpha in ((lines, 1, 0.9), (ticks, 1, 0.45), (downs, 1.5, 1))
        if d
    )
    drawn = []
    for role, (fill, opacity, edge, tall) in ROLES.items():
        path = []
        for note in notes:
            if note.role != role:
                continue
            x, w = 1000 * note.start, max(15.0, 1000 * (min(note.end, seconds) - note.start))
            y = high - note.pitch - 0.5 - tall / 2
            path.append(f"M{x:.0f} {y:.5g}h{w:.0f}v{tall:g}h-{w:.0f}z")
            if role == "bass":  # a foot at the onset: repeated notes stay countable
                path.append(f"M{x:.0f} {y - 0.5:.5g}v{tall + 1:.4g}")
        if path:
            drawn.append(
                f'<path class="{role}" d="{"".join(path)}" fill="{fill}" '
                f'fill-opacity="{opacity}" stroke="{edge}" stroke-width="1"/>'
            )
    octaves = "".join(
        f'<span style="top:{100 * (high - c - 0.5) / span:.1f}%">C{c // 12 - 1}</span>'
        for c in range(low + 1, high - 1)
        if c % 12 == 0
    )
    return f"pitch{octaves}", "notes", height, _picture(seconds, span, grid + "".join(drawn))


def _drum_lane(truth: Any, seconds: float) -> tuple | None:
    hits = [note for note in truth.notes if note.role == "drums"]
    if not hits:
        return None
    path = "".join(
        f"M{1000 * hit.start:.0f} {10 * DRUM_ROWS.get(hit.pitch, 0) + 2}v6" for hit in hits
    )
    mark = f'<path class="drums" d="{path}" fill="none" stroke="#CC79A7" stroke-width="3"/>'
    return "drums", "drums", 36, _picture(seconds, 30, mark)


def _loudness_lane(level: Sequence[float], seconds: float) -> tuple:
    # Ten points a second is what the eye resolves here; the truth has fifty.
    level = np.asarray(level, dtype=float)
    step = FRAME_RATE // 10
    level = level[: len(level) // step * step].reshape(-1, step).max(1)
    y = 60 - np.clip(level + 60, 0, 60)
    points = "".join(f"L{100 * i + 50} {v:.0f}" for i, v in enumerate(y))
    area = (
        f'<path d="M0 60{points}L{1000 * seconds:.0f} 60z" fill="var(--muted)" '
        f'fill-opacity=".35" stroke="var(--muted)" stroke-width="1"/>'
    )
    return "level", "level", 30, _picture(seconds, 60, area)


def _time_lane(seconds: float) -> tuple:
    step = 1 if seconds <= 12 else 2 if seconds <= 24 else 5
    ticks = "".join(
        f'<b style="left:{100 * t / seconds:.2f}%">{t}{" s" if t == 0 else ""}</b>'
        for t in range(0, int(np.ceil(seconds - 0.3)), step)
    )
    return "time", "time", 18, ticks


def _legend(truth: Any, drums: bool) -> str:
    def sample(shape: str, text: str) -> str:
        return f'<span><svg viewBox="0 0 26 12" aria-hidden="true">{shape}</svg>{text}</span>'

    roles = {note.role for note in truth.notes}
    shapes = {
        "melody": '<rect x="1" y="2" width="24" height="8" fill="#D55E00"/>',
        "harmony": '<rect x="1" y="2" width="24" height="8" fill="#56B4E9" fill-opacity=".25" '
        'stroke="#56B4E9"/>',
        "bass": '<path d="M2 1v10M2 6h23" stroke="#009E73" stroke-width="3" fill="none"/>',
        "drums": '<path d="M5 2v8M13 2v8M21 2v8" stroke="#CC79A7" stroke-width="3"/>',
    }
    items = [sample(shape, role) for role, shape in shapes.items() if role in roles]
    kinds = {s["kind"] for s in truth.clip.get("statements") or []}
    items += [
        sample(
            f'<path d="M1 11C1 -2 25 -2 25 11" fill="none" stroke="currentColor" '
            f'stroke-width="1.25" stroke-dasharray="{dash}"/>',
            f"{KINDS[kind]} {kind} return",
        )
        for kind, dash in DASHES.items()
        if kind in kinds
    ]
    keys = (
        '<span class="js keys">Click to move; or arrows, <kbd>Page Up</kbd> <kbd>Page Down</kbd> '
        "by a bar, <kbd>space</kbd> to play</span>"
    )
    return f'<div class="key">{"".join(items)}{keys}</div>'


def _words(truth: Any) -> str:
    """The picture's labels as text, for who reads or listens instead of looking."""
    statements = truth.clip.get("statements") or []
    names = statement_names(statements)
    returns = [
        f" ({s['kind']} return of {names[s['of']]})" if s.get("of", -1) >= 0 else ""
        for s in statements
    ]
    lines = {
        "Form": [f"{s['label']} from {s['start']:.1f} s" for s in truth.clip.get("sections") or []],
        "Chords": [f"{chord_name(*c)} at {s:.1f} s" for s, _, c in chords(truth)],
        "Motifs": [
            f"{name} at {s['start']:.1f} s{back}"
            for name, s, back in zip(names, statements, returns, strict=True)
        ],
    }
    body = "".join(
        f"<p>{name}: {escape(', '.join(items))}.</p>" for name, items in lines.items() if items
    )
    return f"<details><summary>The same in words</summary>{body}</details>"
