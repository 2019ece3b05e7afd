"""Music that nobody here composed: real scores with their truth, and a user's own recordings.

The scores are those that music21 carries (nothing is fetched): Bach's four-part chorales, and
fiddle tunes of *Ryan's Mammoth Collection* (Boston, 1883). Both are in the public domain; music21
distributes the encodings by permission of those who typed them in. Its larger folk-song database
(Essen) is not used, because its licence excludes commercial use. ``data/scores.json`` lists the
works that are fit for truth; ``python -m musae_utils.music.corpus`` makes that list again in some
minutes.

What a score does not say is absent, never guessed: form, motifs and sections always, chords where
what sounds is no complete triad or dominant seventh, and the key where music21's analysis of the
whole work is not borne out by the signature and the close. Explained in notebook 01.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from musae_utils.music.captions import caption
from musae_utils.music.clip import (
    FAMILIES,
    FRAME_RATE,
    MODES,
    SAMPLE_RATE,
    Clip,
    Note,
    Truth,
    frame_loudness,
)
from musae_utils.music.compose import (
    ACCOMPANIMENTS,
    ARTICULATIONS,
    BASSES,
    CHORD_TONES,
    DYNAMICS,
    TEMPI,
    Spec,
    key_name,
)
from musae_utils.music.dataset import SPLIT_SEEDS
from musae_utils.music.render import (
    frames_of,
    note_frames,
    soundfont_sha256,
    span_frames,
    synthesise,
)
from musae_utils.runs import load_json, save_json, sha256

SCORES = Path(__file__).parents[2] / "data" / "scores.json"

#: Where each kind of score lies in music21's corpus, the tempi at which it is played here (beats a
#: minute; the scores name none that can be trusted), and what it is.
KINDS = {
    "chorales": ("bach/*.mxl", (60, 104), "J. S. Bach, four-part chorales"),
    "folk": ("ryansMammoth/*.abc", (84, 126), "Ryan's Mammoth Collection, Boston 1883"),
}
VOICES = ("Soprano", "Alto", "Tenor", "Bass")
SOFTER = {"melody": 0, "harmony": 18, "bass": 8}  # MIDI velocity below the melody's
PLAYED = ("family", "program", "tempo", "articulation", "dynamics")  # what a performer decides
SOUND_FILES = (".wav", ".flac", ".mp3", ".ogg")
ABSURD = 1e12  # times full scale; some programs write whole numbers up to 2^31 as floats
BLOCK = 2**22  # samples of a recording read at once, all channels together
RATES = 1_000, 6_000_000  # Hz at which anything is recorded; resampling from others takes memory


# -- real scores --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """The longest run of complete bars of a score, counted in beats from the first of them.

    ``notes`` holds (onset, duration, pitch, role); ``tonic`` and ``mode`` are -1 where unknown.
    """

    title: str
    tonic: int
    mode: int
    metre: int  # beats in a bar: in 6/8 two
    bars: tuple[int, ...]  # their numbers in the score
    notes: tuple[tuple[float, float, int, str], ...]


def corpus(
    n: int,
    seed: int = 0,
    seconds: float = 10.0,
    kind: str = "chorales",
    split: str = "test",
    held_out_presets: bool = False,
    **fields,
) -> list[Clip]:
    """Excerpts of real scores, rendered as composed music is, with what the score says as truth.

    Parameters
    ----------
    n : int
        Each clip is another work, until the split has no more (then other excerpts follow).
    seed : int
        Clip ``i`` is number ``seed + i`` of the split; the same number gives the same samples.
    seconds : float
        5-40. An excerpt begins on a downbeat and stays within the complete bars of its work.
    kind : {"chorales", "folk"}
    split : {"train", "test", "validation"}
        Works that share a tune are in the same split.
    held_out_presets : bool
        Lead instruments from programs that the nano models' training never hears.
    **fields
        What a performer decides, ``family``, ``program``, ``tempo``, ``articulation`` and
        ``dynamics``; what is not fixed is drawn.

    Returns
    -------
    list of Clip
        ``truth.clip`` has ``key``, ``tonic`` and ``mode`` only where they are sure. ``metre``
        counts beats (6/8 has two), and ``tempo`` those beats a minute. Chords are those written:
        they last through the gaps of a staccato.

    Raises
    ------
    ValueError
        An unknown kind or split, a field that the score decides, or no work that is long enough.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it can be one of {', '.join(KINDS)}.")
    if split not in SPLIT_SEEDS:
        raise ValueError(f"split is {split!r}; it can be one of {', '.join(SPLIT_SEEDS)}.")
    if written := sorted(set(fields) - set(PLAYED)):
        raise ValueError(
            f"{', '.join(written)} cannot be chosen for a real score; {', '.join(PLAYED)} can."
        )
    if n < 0 or seed < 0:
        raise ValueError(f"n is {n} and seed is {seed}; both count from 0.")
    asked = Spec(seconds=seconds, **fields)
    slowest = asked.tempo or KINDS[kind][1][0]
    works = [w for w in works_of(kind, split) if w["bars"] * w["metre"] * 60 / slowest >= seconds]
    if not works:
        raise ValueError(
            f"No {split} work of the kind {kind} lasts {seconds:g} s at {slowest:g} beats a "
            "minute; ask for fewer seconds or a slower tempo."
        )
    numbers = range(seed, seed + n)
    return [
        _perform(works[i % len(works)], kind, split, i, asked, held_out_presets) for i in numbers
    ]


def works_of(kind: str, split: str) -> list[dict]:
    """The listed works of a kind and split: ``file``, ``metre``, ``bars``; in a shuffled order."""
    works = [w for w in load_json(SCORES)["works"] if w["kind"] == kind and w["split"] == split]
    return [works[i] for i in np.random.default_rng(1685).permutation(len(works))]


@functools.lru_cache(maxsize=512)
def read_work(file: str) -> Work:
    """Parse a score of music21's corpus (about 0.1 s, once in a session).

    Raises
    ------
    ValueError
        The score cannot give truth: other voices than expected, a metre that changes or whose beats
        are not counted in two, three or four, or fewer than four complete bars on end.
    """
    import music21

    path = Path(music21.__file__).parent / "corpus" / file
    if not path.exists():
        raise FileNotFoundError(
            f"music21's corpus has no {file}: this music21 was installed without its corpus."
        )
    score = music21.converter.parse(path, forceSource=True, storePickle=False)
    parts = {p.partName: p for p in score.parts}
    if file.startswith("bach/"):
        if tuple(parts) != VOICES:
            raise ValueError(f"{file} is not in four voices.")
        roles = dict(zip(VOICES, ("melody", "harmony", "harmony", "bass"), strict=True))
    else:
        if len(parts) != 1:
            raise ValueError(f"{file} has more than one part.")
        roles = dict.fromkeys(parts, "melody")

    metres = {t.ratioString: t for t in score.recurse().getElementsByClass("TimeSignature")}
    if len(metres) != 1:
        raise ValueError(f"{file} changes its metre, or names none.")
    (time,) = metres.values()
    beat, metre = float(time.beatDuration.quarterLength), time.beatCount
    if metre not in (2, 3, 4):
        raise ValueError(f"{file} is in {time.ratioString}.")

    lead = next(iter(parts.values()))
    run = _complete_bars(lead, metre * beat)
    if len(run) < 4:
        raise ValueError(f"{file} has no four complete bars on end.")
    begin, notes = run[0][1], set()
    end = begin + len(run) * metre * beat
    for name, role in roles.items():
        for element in parts[name].stripTies().flatten().notes:
            if element.duration.isGrace or isinstance(element, music21.harmony.Harmony):
                continue
            onset, duration = float(element.offset), float(element.quarterLength)
            if begin <= onset < end and duration > 0:
                pitches = sorted((p.midi for p in element.pitches), reverse=True)
                for i, pitch in enumerate(pitches):  # of a double stop the upper note is the tune
                    start, length = (onset - begin) / beat, min(duration, end - onset) / beat
                    notes.add((start, length, pitch, "harmony" if i and role == "melody" else role))
    tonic, mode = _key(score)
    title = path.stem if file.startswith("bach/") else score.metadata.bestTitle or path.stem
    bars = tuple(number for number, _ in run)
    return Work(title, tonic, mode, metre, bars, tuple(sorted(notes)))


def _complete_bars(part, length: float) -> list[tuple[int, float]]:
    """Number and offset of each bar in the longest run of bars of the given length.

    A bar that a repeat sign splits in two is one.
    """
    bars = list(part.getElementsByClass("Measure"))
    edges = [float(b.offset) for b in bars] + [float(part.highestTime)]
    best, run, i = [], [], 0
    while i < len(bars):
        after = next((j for j, e in enumerate(edges) if e - edges[i] > length - 1e-6), None)
        if after is None or edges[after] - edges[i] > length + 1e-6:
            run, i = [], i + 1
        else:
            run, i = [*run, (bars[i].number, edges[i])], after
            best = max(best, run, key=len)
    return best


def _key(score) -> tuple[int, int]:
    """Tonic and mode by music21's analysis where the score bears it out, else (-1, -1).

    The key signature must agree, and the lowest part close on the tonic; of a tune, which goes
    round and may close on any note, its transcriber may name the key instead. A chorale in A minor
    that closes on E is Phrygian, whatever its signature is called.
    """
    found = score.analyze("key")
    written = list(score.recurse().getElementsByClass("KeySignature"))
    named = {(k.tonic.pitchClass, k.mode) for k in written if getattr(k, "mode", None)}
    last = score.parts[-1].flatten().notes[-1]
    closes = min(last.pitches).pitchClass == found.tonic.pitchClass
    called = len(score.parts) == 1 and named == {(found.tonic.pitchClass, found.mode)}
    if {k.sharps for k in written} != {found.sharps} or not (closes or called):
        return -1, -1
    return found.tonic.pitchClass, MODES.index(found.mode)


def sounding_chords(notes, end: float) -> list[tuple[float, float, int, int]]:
    """Chords of a work: (start, end, root, quality), wherever exactly a known chord sounds.

    A triad or dominant seventh must be complete and undisturbed: with a passing note there is none.

    Parameters
    ----------
    notes : iterable of (onset, duration, pitch, role)
    end : float
        Same unit as the onsets.
    """
    known = {
        frozenset((root + t) % 12 for t in tones): (root, quality)
        for root in range(12)
        for quality, tones in enumerate(CHORD_TONES)
    }
    spans = [(start, start + length, pitch % 12) for start, length, pitch, _ in notes]
    cuts = sorted({0.0, end} | {t for s in spans for t in s[:2] if 0 < t < end})
    chords = []
    for start, stop in itertools.pairwise(cuts):
        if stop - start < 1e-6:
            continue
        chord = known.get(frozenset(p for s, e, p in spans if s < stop - 1e-6 and e > start + 1e-6))
        if chord and chords and chords[-1][1] == start and chords[-1][2:] == chord:
            chords[-1] = (chords[-1][0], stop, *chord)
        elif chord:
            chords.append((start, stop, *chord))
    return chords


def _perform(entry: dict, kind: str, split: str, number: int, asked: Spec, held_out: bool) -> Clip:
    work, seconds = read_work(entry["file"]), asked.seconds
    # The split is part of the seed, so that no two splits are played alike clip by clip.
    rng = np.random.default_rng([SPLIT_SEEDS[split] + number, 1685])
    spec = asked.drawn(rng, held_out)
    beats, (low, high) = len(work.bars) * work.metre, KINDS[kind][1]
    fits = [t for t in TEMPI if low <= t <= high and beats * 60 / t >= seconds]
    tempo = float(asked.tempo or (fits[int(rng.integers(len(fits)))] if fits else low))
    programs = {
        "melody": spec.program,
        "harmony": int(rng.choice(ACCOMPANIMENTS)),
        "bass": int(rng.choice(BASSES)),
    }
    length = seconds * tempo / 60  # of the excerpt, in beats
    first = int(rng.integers(int((beats - length) / work.metre + 1e-6) + 1))
    bars = work.bars[first : first + int(np.ceil(length / work.metre - 1e-6))]
    excerpt = _excerpt(work, first * work.metre, length)
    notes = _play(excerpt, work.metre, replace(spec, tempo=tempo))
    audio = synthesise(notes, programs, seconds)

    beat = 60 / tempo
    chords = [
        {"start": start * beat, "end": stop * beat, "root": root, "quality": quality}
        for start, stop, root, quality in sounding_chords(excerpt, length)
    ]
    clip = {
        "tempo": tempo, "metre": work.metre, "program": spec.program, "drums": False,
        "articulation": spec.articulation, "dynamics": spec.dynamics, "chords": chords,
    }  # fmt: skip
    if spec.family:
        clip["family"] = spec.family
    if work.tonic >= 0:
        clip |= {"key": key_name(work.tonic, work.mode), "tonic": work.tonic, "mode": work.mode}
    truth = _truth(notes, clip, audio, seconds)
    provenance = {
        "source": f"music21 corpus: {entry['file']}",
        "collection": KINDS[kind][2],
        "title": work.title,
        "bars": [bars[0], bars[-1]],
        "seed": number,
        "split": split,
        "performance": {k: clip.get(k) for k in PLAYED},
        "programs": programs,
        "key_from": "music21's analysis of the whole work, borne out by signature and close",
        "soundfont": "TimGM6mb (GPL-2.0)",
        "soundfont_sha256": soundfont_sha256(),
        "licence": "score in the public domain; encoding distributed with music21 by permission",
    }
    text = caption(truth, np.random.default_rng([number, 7]))
    return Clip(
        audio, SAMPLE_RATE, truth, text, provenance, f"{work.title}, bars {bars[0]}-{bars[-1]}"
    )


def _excerpt(work: Work, begin: float, length: float) -> list[tuple[float, float, int, str]]:
    """The work's notes within a span of beats, counted from its beginning.

    A note that is held into the span is struck at its beginning.
    """
    notes = []
    for onset, duration, pitch, role in work.notes:
        start, stop = max(onset - begin, 0.0), min(onset + duration - begin, length)
        if stop - start > 0.01:
            notes.append((start, stop - start, pitch, role))
    return notes


def _play(excerpt: list[tuple[float, float, int, str]], metre: int, spec: Spec) -> list[Note]:
    gate, loud, beat = ARTICULATIONS[spec.articulation], DYNAMICS[spec.dynamics], 60 / spec.tempo
    notes = []
    for onset, duration, pitch, role in excerpt:
        accent = 8 if onset % metre < 1e-6 else 0
        velocity = int(np.clip(loud - SOFTER[role] + accent, 24, 127))
        sounds = min(max(duration * beat * gate, 0.06), duration * beat)
        start = onset * beat
        notes.append(Note(start, min(start + sounds, spec.seconds), pitch, velocity, role))
    return sorted(notes, key=lambda note: (note.start, note.role, note.pitch))


def _truth(notes: list[Note], clip: dict, audio: np.ndarray, seconds: float) -> Truth:
    """The tracks that a performed score has; what it does not tell is -1."""
    n = frames_of(seconds)
    # The small addition keeps a frame that begins with a beat from rounding to the one before.
    beats = np.arange(n) / FRAME_RATE * clip["tempo"] / 60 + 1e-9
    unknown = ("chord_root", "chord_quality", "section", "motif", "repeats")
    frames = {name: np.full(n, -1, np.int16) for name in unknown}
    family = clip.get("family")
    frames |= {
        "tonic": np.full(n, clip.get("tonic", -1), np.int16),
        "mode": np.full(n, clip.get("mode", -1), np.int16),
        "tempo": np.full(n, clip["tempo"], np.float32),
        "family": np.full(n, FAMILIES.index(family) if family else -1, np.int16),
        "beat": (beats % 1).astype(np.float32) % 1,
        "downbeat": (beats / clip["metre"] % 1).astype(np.float32) % 1,
        "loudness": frame_loudness(audio, SAMPLE_RATE, n),
        **note_frames(notes, n),
    }
    for chord in clip["chords"]:
        span = span_frames(chord["start"], chord["end"])
        frames["chord_root"][span] = chord["root"]
        frames["chord_quality"][span] = chord["quality"]
    return Truth(frames, clip, notes)


def list_works(most: int = 400) -> dict:
    """What ``data/scores.json`` holds: the works that can give truth.

    Of a kind at most so many scores are tried, evenly from its list. Works whose tunes agree in
    twelve successive melodic steps from beat to beat, in any key, are of one family, and a family
    is in one split: three quarters train, the rest half test and half validation.
    """
    import music21
    from tqdm.auto import tqdm

    root, works = Path(music21.__file__).parent / "corpus", []
    for kind, (pattern, _, _) in KINDS.items():
        files = sorted(p.relative_to(root).as_posix() for p in root.glob(pattern))
        files = [files[i * len(files) // most] for i in range(most)] if len(files) > most else files
        good, family = [], {}
        for file in tqdm(files, desc=kind):
            try:
                good.append((file, read_work.__wrapped__(file)))
            except ValueError:
                continue
            except Exception as error:  # a score that music21 itself cannot read
                warnings.warn(f"{file} is left out: {error}", stacklevel=2)
        steps: dict[tuple, str] = {}
        for file, work in good:
            family[file] = file
            for run in _tune(work):
                a, b = _eldest(family, steps.setdefault(run, file)), _eldest(family, file)
                family[max(a, b)] = min(a, b)
        for file, work in good:
            draw = hashlib.sha256(_eldest(family, file).encode()).digest()[0]
            split = "train" if draw < 192 else "test" if draw < 224 else "validation"
            facts = {"metre": work.metre, "bars": len(work.bars), "split": split}
            works.append({"kind": kind, "file": file, **facts})
    return {"music21": music21.__version__, "works": works}


def _eldest(family: dict[str, str], file: str) -> str:
    while family[file] != file:
        file = family[file]
    return file


def _tune(work: Work) -> set[tuple[int, ...]]:
    """Every run of twelve melodic steps between successive beats, as semitones."""
    melody = [n for n in work.notes if n[3] == "melody"]
    heard = [
        max((n for n in melody if n[0] <= b + 1e-6), default=(0, 0, 0), key=lambda n: n[0])[2]
        for b in range(len(work.bars) * work.metre)
    ]
    steps = tuple(int(s) for s in np.diff(heard))
    return {steps[i : i + 12] for i in range(len(steps) - 11)}


# -- recordings ---------------------------------------------------------------------------------


def load_audio(
    path: str | Path,
    seconds: float | None = None,
    offset: float = 0.0,
    sample_rate: int = SAMPLE_RATE,
) -> Clip:
    """Read a recording: WAV, FLAC, MP3 or OGG, of any rate and any number of channels.

    Parameters
    ----------
    path : str or Path
    seconds : float, optional
        At most so much of it; all of it when left out.
    offset : float
        Seconds to skip first.
    sample_rate : int
        Hz to resample to. Channels are averaged.

    Returns
    -------
    Clip
        Without truth or caption. Its provenance names the file, its checksum, rate and channels.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, ValueError
        Nothing there; a folder; not a sound file, empty, broken, with samples that are not numbers,
        or shorter than the offset.

    Warns
    -----
    UserWarning
        The recording is silent.
    """
    import soundfile
    import soxr

    path = Path(path)
    name = _printable(path.name)
    if seconds is not None and not 0 < seconds < np.inf:
        raise ValueError(f"seconds is {seconds}; it must be above 0, or None for the whole file.")
    if not 0 <= offset < np.inf:
        raise ValueError(f"offset is {offset}; it counts seconds from the beginning, 0 or more.")
    if sample_rate <= 0:
        raise ValueError(f"sample_rate is {sample_rate}; it must be above 0 Hz.")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} is a folder, not a sound file; load_folder reads folders.")
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no file {_printable(path)}.")
    try:
        # Opened here: soundfile cannot spell a name that is not Unicode.
        with open(path, "rb") as stream, soundfile.SoundFile(stream) as file:
            rate, channels = file.samplerate, file.channels
            if not RATES[0] <= rate <= RATES[1]:
                raise ValueError(
                    f"{name} says that it has {rate:,} samples a second: its header is damaged. "
                    f"From {RATES[0]:,} to {RATES[1]:,} can be read."
                )
            length = file.frames / rate
            if length <= offset > 0:
                raise ValueError(f"{name} lasts {length:.1f} s; offset {offset:g} is past its end.")
            file.seek(round(offset * rate))
            sound = _samples(file, np.inf if seconds is None else round(seconds * rate))
    except (soundfile.LibsndfileError, TypeError, OSError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise ValueError(
            f"{name} cannot be read as sound ({_printable(reason).rstrip('.')}); "
            "it should be a WAV, FLAC, MP3 or OGG file."
        ) from None
    if not len(sound):
        raise ValueError(f"{name} holds no sound.")
    if not np.isfinite(sound).all():
        raise ValueError(
            f"{name} holds samples that are not numbers (NaN or infinite); export it again."
        )
    if (highest := float(np.abs(sound).max())) > ABSURD:
        raise ValueError(
            f"{name} holds samples of {highest:.0e} times full scale, which no recording has: it "
            "is damaged, or not sound; export it again."
        )
    audio = sound.mean(axis=1)
    if rate != sample_rate:
        audio = soxr.resample(audio, rate, sample_rate, quality="VHQ")
    peak = float(np.abs(audio).max(initial=0.0))
    if peak > 1:  # a float file may exceed full scale
        audio = audio / peak
    if peak < 1e-4:
        warnings.warn(f"{name} is silent.", stacklevel=2)
    provenance = {
        "source": "recording",
        "file": _printable(path),
        "sha256": sha256(path),
        "offset": float(offset),
        "original_sample_rate": rate,
        "original_channels": channels,
        "licence": "as the file's",
    }
    audio = np.ascontiguousarray(audio, np.float32)
    return Clip(audio, sample_rate, None, "", provenance, _printable(path.stem))


def _samples(file: Any, most: float) -> np.ndarray:
    """Samples (n, channels) from where a SoundFile stands, at most so many.

    Block by block: a header may promise any length, and the file holds what it holds.
    """
    parts = [np.empty((0, file.channels), np.float32)]
    while (n := min(most, file.frames - file.tell(), max(1, BLOCK // file.channels))) > 0:
        part = file.read(int(n), dtype="float32", always_2d=True)
        parts.append(part)
        most -= len(part)
        if not len(part):
            break
    return np.concatenate(parts)


def load_folder(
    path: str | Path,
    seconds: float | None = None,
    offset: float = 0.0,
    sample_rate: int = SAMPLE_RATE,
) -> list[Clip]:
    """Read every WAV, FLAC, MP3 and OGG file of a folder and its subfolders, by name.

    Parameters and what each clip is: see `load_audio`. `iter_folder` holds one clip at a time.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        No such folder, or a file.
    ValueError
        No sound file in it, or none that can be read.

    Warns
    -----
    UserWarning
        For each file that cannot be read; the others are loaded.
    """
    return list(iter_folder(path, seconds, offset, sample_rate))


def iter_folder(
    path: str | Path,
    seconds: float | None = None,
    offset: float = 0.0,
    sample_rate: int = SAMPLE_RATE,
) -> Iterator[Clip]:
    """The clips of `load_folder` one after the other, for folders larger than memory."""
    folder = Path(path)
    if not os.path.exists(folder):
        raise FileNotFoundError(f"There is no folder {_printable(folder)}.")
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{_printable(folder)} is a file; load_audio reads one file.")
    files = sorted(
        p
        for p in folder.rglob("*")
        # Hidden files are another program's notes, not music ("._song.wav" on an exchanged disk).
        if p.suffix.lower() in SOUND_FILES and not p.name.startswith(".") and p.is_file()
    )
    if not files:
        raise ValueError(f"The folder {_printable(folder)} holds no WAV, FLAC, MP3 or OGG file.")

    def read() -> Iterator[Clip]:
        reasons = []
        for file in files:
            try:
                clip = load_audio(file, seconds, offset, sample_rate)
            except ValueError as error:
                reasons.append(str(error))
                continue
            clip.name = _printable(file.relative_to(folder).with_suffix("").as_posix())
            yield clip
        if len(reasons) == len(files):
            raise ValueError(f"No sound file in {_printable(folder)} can be read. {reasons[0]}")
        for reason in reasons:
            warnings.warn(f"Left out: {reason}", stacklevel=3)

    return read()


def _printable(text: object) -> str:
    """Text that can be written anywhere: a file name may hold bytes that are not Unicode."""
    return str(text).encode("utf-8", "replace").decode()


if __name__ == "__main__":
    save_json(SCORES, list_works())
