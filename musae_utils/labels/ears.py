"""Ears of the project's own: a tagger and an audio-text model, small enough to ship (notebook 08).

Both hear sound in two ways: in steps finer than a semitone, for what has a pitch, and in mel bands
at a finer rate, for colour and strokes. What has a pitch is heard by one set of weights from each
of the twelve pitch classes in turn, so that a piece and its transposition are heard alike, and
"G chords" is learnt from every chord there is. Blocks are made of matrix products, as the nano
codec's are. They learnt from composed music (``make ears``; `train_ears` says how), each from other
compositions than the other and with a hearing of its own, so that either may judge the other.

How well they hear each group of concepts, on music that neither learnt from, is in the `held_out`
table beside their weights. `TruthJudge` needs no ears: it reads what was written.

References
----------
Radford et al. (2021), Learning transferable visual models from natural language supervision, and
Elizalde et al. (2023), CLAP: learning audio concepts from natural language supervision: an encoder
for each of two kinds of things, and one space for both.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from musae_utils import models, runs
from musae_utils.labels.contrast import shares
from musae_utils.labels.examples import Example
from musae_utils.labels.scoring import Unjudged
from musae_utils.labels.words import CONCEPTS, GROUPS, concepts_in, phrase
from musae_utils.models.nano import NO_PART, ShiftBlock, refuse_other_sizes
from musae_utils.music import measure
from musae_utils.music.captions import VOCABULARY, words
from musae_utils.music.clip import SAMPLE_RATE

LOWEST, SEMITONES = 24, 84  # MIDI pitch from which seven octaves are heard
SEEN = SEMITONES - 11  # semitones above itself that each pitch class sees
FLOOR = 8  # decades of power below full scale that count as silence
PULSE = (0.2, 2.0)  # seconds between strokes that repeat

TAGGER = {
    "pitch_fft": 4096, "pitch_hop": 1280, "steps": 3, "mel_fft": 1024, "mels": 80,
    "note_width": 64, "width": 128, "dilations": [1, 2, 4, 8], "hidden": 160,
}  # fmt: skip
CLAP = {
    "pitch_fft": 6144, "pitch_hop": 1600, "steps": 2, "mel_fft": 2048, "mels": 64,
    "note_width": 48, "width": 112, "dilations": [1, 3, 9], "hidden": 256,
    "buckets": 2048, "word_width": 64, "text_hidden": 192, "embedding": 128,
}  # fmt: skip

#: Settings that no weight tells, and what they can be.
UNSEEN = {
    "pitch_fft": (256, 2**15), "mel_fft": (256, 2**15), "pitch_hop": (160, 2**13),
    "steps": (1, 12), "mels": (8, 512), "dilations": (1, 2**12),
}  # fmt: skip

#: Concepts that one set of weights hears from each pitch class in turn.
TURNED = ("chord root", "melody", "sounding")
#: Of whole clips, and exclusive: one of each group holds.
CLIP_GROUPS = ("metre", "tempo", "family", "drums", "form", "register", "articulation", "dynamics",
               "texture")  # fmt: skip
#: Heard frame by frame, without turning.
FRAME_GROUPS = ("chord quality", "part", "onset", "beat", "section", "motif", "loudness")


class Front(nn.Module):
    """Sound to log power: fine steps of pitch (B, T, 84 * steps) and mel bands (B, 4 T, mels).

    Both lie between 0 (silence) and about 1 (full scale). A frame of mel is a quarter as long.
    """

    def __init__(self, c: dict):
        super().__init__()
        self.hop, self.sizes = c["pitch_hop"], (c["pitch_fft"], c["mel_fft"])
        pitch = LOWEST + (np.arange(SEMITONES * c["steps"]) + 0.5) / c["steps"] - 0.5
        centre = librosa.midi_to_hz(pitch)[:, None]
        bins = librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=c["pitch_fft"])
        reach = np.maximum(centre * (2 ** (1 / 12 / c["steps"]) - 1), bins[1])
        near = np.maximum(0, 1 - np.abs(bins - centre) / reach)
        mel = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=c["mel_fft"], n_mels=c["mels"], norm=None)
        for name, bank in (("pitch", near / near.sum(1, keepdims=True)), ("mel", mel)):
            self.register_buffer(name, torch.from_numpy(bank.T.astype(np.float32)), False)

    @torch.no_grad()
    def forward(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        audio = F.pad(audio, (0, -audio.shape[-1] % self.hop))
        found = []
        for size, hop, bank in zip(
            self.sizes, (self.hop, self.hop // 4), (self.pitch, self.mel), strict=True
        ):
            window = torch.hann_window(size)
            frames = F.pad(audio, ((size - hop) // 2,) * 2).unfold(-1, size, hop) * window
            power = (torch.fft.rfft(frames).abs() * (2 / window.sum())).square() @ bank
            found.append((power + 10**-FLOOR).log10() / FLOOR + 1)
        return found[0], found[1]


def ring(x: torch.Tensor) -> torch.Tensor:
    """What each pitch class sees of all, from itself upwards: (…, 12, n) to (…, 12, 12 n)."""
    index = (torch.arange(12)[:, None] + torch.arange(12)) % 12
    return x[..., index, :].flatten(-2)


class Ear(nn.Module):
    """What both models hear with.

    From `Front`'s two outputs: notes of shape (B, T, 12, note_width), which turn with the music's
    transposition; frames (B, T, width + 2 note_width), which do not; and a summary of the whole
    (B, summary).
    """

    def __init__(self, c: dict):
        super().__init__()
        self.front, self.steps = Front(c), c["steps"]
        n, w = c["note_width"], c["width"]
        self.lags = [round(s * 4 * SAMPLE_RATE / c["pitch_hop"]) for s in PULSE]
        self.see = nn.Linear(SEEN * c["steps"], n)
        self.last = nn.ModuleList(ShiftBlock(n, d, 1) for d in (1, 2))
        self.narrow, self.around = nn.Linear(n, 16), nn.Linear(12 * 16, n)
        self.start = nn.Linear(2 * c["mels"], w)
        self.blocks = nn.Sequential(*(ShiftBlock(w, d, 1) for d in c["dilations"]))
        self.pulse = nn.Linear(3 * (self.lags[1] - self.lags[0]), 64)
        self.summary = 3 * (w + 2 * n) + 64

    def forward(self, pitch: torch.Tensor, mel: torch.Tensor):
        pitch, mel = (pitch - 0.2) * 5, (mel - 0.3) * 5
        seen = pitch.unfold(-1, SEEN * self.steps, self.steps)  # (B, T, 12, SEEN * steps)
        notes = F.gelu(self.see(seen)).transpose(1, 2).flatten(0, 1)  # (B * 12, T, n)
        notes = self.last[0](notes).unflatten(0, (-1, 12)).transpose(1, 2)
        notes = notes + F.gelu(self.around(ring(self.narrow(notes))))
        notes = self.last[1](notes.transpose(1, 2).flatten(0, 1))
        notes = notes.unflatten(0, (-1, 12)).transpose(1, 2)
        colour = self.blocks(self.start(mel.unflatten(1, (-1, 2)).flatten(2)))
        colour = colour.unflatten(1, (-1, 2)).mean(2)
        frames = torch.cat([colour, notes.mean(2), notes.amax(2)], -1)
        spread = (frames.float().var(1, correction=0) + 1e-4).sqrt()
        summary = [frames.mean(1), frames.amax(1), spread, F.gelu(self.pulse(self._pulse(mel)))]
        return notes, frames, torch.cat(summary, -1)

    def _pulse(self, mel: torch.Tensor) -> torch.Tensor:
        """How strokes in three bands repeat, at each distance of `PULSE` (autocorrelation)."""
        with torch.autocast("cpu", enabled=False):
            rise = F.relu(mel.float().diff(dim=1)).tensor_split(3, -1)
            rise = torch.stack([band.mean(-1) for band in rise], 1)  # (B, 3, 4 T - 1)
            rise = rise - rise.mean(-1, keepdim=True)
            size = rise.shape[-1] + self.lags[1]
            again = torch.fft.irfft(torch.fft.rfft(rise, 2 * size).abs().square(), 2 * size)
            again = again[..., : self.lags[1]] / (again[..., :1] + 1e-6)
            return again[..., self.lags[0] :].flatten(1)


class TaggerNet(nn.Module):
    """`Ear`, and a question for each concept."""

    def __init__(self, c: dict):
        super().__init__()
        self.ear = Ear(c)
        n, frames = c["note_width"], c["width"] + 2 * c["note_width"]
        count = lambda names: sum(len(GROUPS[name]) for name in names)  # noqa: E731
        self.turned = nn.Linear(n, len(TURNED))
        self.key = nn.Sequential(nn.Linear(12 * 2 * n, 64), nn.GELU(), nn.Linear(64, 2))
        self.degree = nn.Linear(12, len(GROUPS["chord degree"]))
        self.frame = nn.Sequential(
            nn.Linear(frames, 96), nn.GELU(), nn.Linear(96, count(FRAME_GROUPS))
        )
        self.clip = nn.Sequential(
            nn.Linear(self.ear.summary, c["hidden"]), nn.GELU(),
            nn.Linear(c["hidden"], count(CLIP_GROUPS)),
        )  # fmt: skip

    def forward(self, pitch: torch.Tensor, mel: torch.Tensor):
        """Logits of the 24 keys (B, 24), of clip groups (B, n), of frame concepts (B, T, m)."""
        notes, frames, summary = self.ear(pitch, mel)
        key = self.key(ring(torch.cat([notes.mean(1), notes.amax(1)], -1)))  # (B, 12, 2)
        turned = self.turned(notes).transpose(2, 3)  # (B, T, 3, 12)
        root = turned[:, :, 0].float().sigmoid()
        home = key.float().flatten(1).softmax(-1).unflatten(1, (12, 2)).sum(-1)
        above = torch.einsum("bk,btkd->btd", home, ring(root[..., None]))  # root above the tonic
        degree = self.degree((above + 1e-3).log())
        by_frame = torch.cat([turned.flatten(2), degree, self.frame(frames)], -1)
        return key.flatten(1).float(), self.clip(summary).float(), by_frame.float()


#: Order of the concepts in `TaggerNet`'s answers.
FRAME_CONCEPTS = tuple(c for g in (*TURNED, "chord degree", *FRAME_GROUPS) for c in GROUPS[g])
CLIP_CONCEPTS = tuple(c for g in CLIP_GROUPS for c in GROUPS[g])
TAGGED = (*GROUPS["tonic"], *GROUPS["mode"], *CLIP_CONCEPTS, *FRAME_CONCEPTS)


def tag_probabilities(key, clip, frames) -> torch.Tensor:
    """`TaggerNet`'s answers as the share in which each concept of `TAGGED` holds, (B, tags)."""
    keys = key.softmax(-1).unflatten(1, (12, 2))
    sizes = [len(GROUPS[name]) for name in CLIP_GROUPS]
    chosen = [logits.softmax(-1) for logits in clip.split(sizes, -1)]
    return torch.cat([keys.sum(2), keys.sum(1), *chosen, frames.sigmoid().mean(1)], -1)


class ClapNet(nn.Module):
    """`Ear` and a reader of words, into one space."""

    def __init__(self, c: dict):
        super().__init__()
        self.ear, self.buckets = Ear(c), c["buckets"]
        n, e = c["note_width"], c["embedding"]
        self.ring = nn.Linear(12 * 2 * n, 24)
        self.sound = nn.Sequential(
            nn.Linear(self.ear.summary + 12 * 24, c["hidden"]), nn.GELU(), nn.Linear(c["hidden"], e)
        )
        self.words = nn.EmbeddingBag(c["buckets"], c["word_width"], mode="sum")
        self.text = nn.Sequential(
            nn.Linear(c["word_width"], c["text_hidden"]), nn.GELU(), nn.Linear(c["text_hidden"], e)
        )
        self.heat = nn.Parameter(torch.tensor(2.5))  # log of the inverse temperature

    def sounds(self, pitch: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, embedding)."""
        notes, _, summary = self.ear(pitch, mel)
        return self.place(notes, summary)

    def place(self, notes: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
        """Unit rows, from what the ear heard."""
        around = F.gelu(self.ring(ring(torch.cat([notes.mean(1), notes.amax(1)], -1))))
        return F.normalize(self.sound(torch.cat([summary, around.flatten(1)], -1)).float(), dim=-1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit rows (texts, embedding)."""
        tokens = [tokenise(text, self.buckets) for text in texts]
        offsets = torch.tensor([0, *map(len, tokens)]).cumsum(0)[:-1]
        flat = torch.tensor([t for row in tokens for t in row], dtype=torch.long)
        counts = torch.tensor([max(1, len(row)) for row in tokens])
        summed = self.words(flat, offsets) / counts[:, None].sqrt()
        return F.normalize(self.text(summed).float(), dim=-1)


_INDEX = {word: i for i, word in enumerate(VOCABULARY)}
LONGEST = 2000  # characters of a text that are read


def tokenise(text: str, buckets: int) -> list[int]:
    """Words of a text as numbers: those of captions each its own, others by their letters.

    An unknown word is its three-letter parts, hashed into the buckets that captions leave.
    """
    tokens, text = [], text[:LONGEST]
    known = words(text)
    rest = [w for w in text.lower().split() if not words(w)]  # another alphabet
    for word in [*known, *rest]:
        if word in _INDEX:
            tokens.append(_INDEX[word])
            continue
        marked = f"<{word}>"
        for i in range(max(1, len(marked) - 2)):
            place = zlib.crc32(marked[i : i + 3].encode()) % (buckets - len(VOCABULARY))
            tokens.append(len(VOCABULARY) + place)
    return tokens


# -- the shipped ones ------------------------------------------------------------------------------


class _Shipped:
    """Shipped weights, and what they made of sounds before: features share many of them."""

    def __init__(self, name: str, net: nn.Module, held_out: dict):
        self.name, self.net, self.held_out = name, net, held_out
        self._known: dict[bytes, np.ndarray] = {}

    def _heard(self, sounds: Sequence[Example], answer, width: int) -> np.ndarray:
        rows = []
        for sound in sounds:
            audio = np.ascontiguousarray(sound.audio, np.float32)
            key = hashlib.sha256(audio.tobytes() + bytes(str(sound.sample_rate), "ascii")).digest()
            if key not in self._known:
                heard = torch.from_numpy(measure.validate(audio, sound.sample_rate)[None])
                with torch.no_grad():
                    self._known[key] = answer(*self.net.ear.front(heard))[0].numpy()
            rows.append(self._known[key])
        return np.array(rows, float).reshape(len(rows), width)


class NanoTagger(_Shipped):
    """The project's own `Tagger`: the share of a sound in which each planted concept holds.

    Attributes
    ----------
    name : str
    tags : tuple of str
        Concepts in words.
    held_out : dict
        How well it hears each group, on music and codec copies that it never heard.
    """

    tags = tuple(map(phrase, TAGGED))

    def probabilities(self, sounds: Sequence[Example]) -> np.ndarray:
        """Shares in [0, 1], of shape (sounds, tags); sounds of 0.25 s and more, at any rate."""
        answer = lambda *levels: tag_probabilities(*self.net(*levels))  # noqa: E731
        return self._heard(sounds, answer, len(self.tags))


class NanoCLAP(_Shipped):
    """The project's own `AudioTextModel`.

    Attributes
    ----------
    name : str
    held_out : dict
        How well it tells for which sounds a phrase is true, on music and codec copies that it never
        heard.
    """

    def embed_sounds(self, sounds: Sequence[Example]) -> np.ndarray:
        """Unit rows of shape (sounds, embedding)."""
        return self._heard(sounds, self.net.sounds, CLAP["embedding"])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows of shape (texts, embedding); any text has one, the empty one too."""
        with torch.no_grad():
            return self.net.texts(list(texts)).double().numpy()


@functools.cache
def nano_tagger(folder: Path | None = None) -> NanoTagger:
    """The tagger that ships (or one that ``make ears`` put into another folder).

    Raises
    ------
    FileNotFoundError, ValueError
        Its files are missing, or are not what they should be.

    Examples
    --------
    >>> tagger = nano_tagger()  # doctest: +SKIP
    >>> dict(zip(tagger.tags, tagger.probabilities([example])[0]))["with drums"]  # doctest: +SKIP
    0.98
    """
    net, report = load("tagger", folder or models.NANO_FOLDER)
    return NanoTagger("nano tagger", net, report["held_out"])


@functools.cache
def nano_clap(folder: Path | None = None) -> NanoCLAP:
    """The audio-text model that ships; see `nano_tagger`."""
    net, report = load("clap", folder or models.NANO_FOLDER)
    return NanoCLAP("nano CLAP", net, report["held_out"])


def fingerprints() -> dict[str, str]:
    """16 hex digits of the SHA-256 of each shipped ear's file, for provenance."""
    return {part: runs.sha256(models.NANO_FOLDER / f"{part}.safetensors")[:16]
            for part in ("tagger", "clap")}  # fmt: skip


def load(part: str, folder: Path) -> tuple[nn.Module, dict]:
    """Weights of the ``"tagger"`` or the ``"clap"`` (safetensors), and the report beside them."""
    paths = [Path(folder) / f"{part}.json", Path(folder) / f"{part}.safetensors"]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: `make ears` makes it.")
    try:
        report = json.loads(paths[0].read_text(encoding="utf-8"))
        build = {"tagger": TaggerNet, "clap": ClapNet}[part]
        if report["concepts"] != list(CONCEPTS):
            raise ValueError("it was trained for other concepts")
        state = {k: v.float() for k, v in load_file(paths[1]).items()}
        refuse_other_sizes(report["architecture"], build, state, UNSEEN)
        net = build(report["architecture"])
        net.load_state_dict(state)
        report["held_out"]
    except NO_PART as error:
        raise ValueError(
            f"{paths[1]} cannot be read as the nano {part} ({type(error).__name__}): it is "
            "damaged or belongs to another version. Fetch it again, or make it with `make ears`."
        ) from error
    return net.eval().requires_grad_(False), report


# -- no ears at all --------------------------------------------------------------------------------


class TruthJudge:
    """An `AudioTextScorer` that knows what was written: composed music alone.

    A text fits a sound by the mean share of it in which the text's concepts hold.

    Examples
    --------
    >>> TruthJudge().score(half.all, "melody on a flute, in D minor")  # doctest: +SKIP
    """

    name = "written truth"

    def __init__(self) -> None:
        self._known: dict[tuple, tuple] = {}

    def score(self, sounds: Sequence[Example], text: str) -> np.ndarray:
        """See `AudioTextScorer`; texts without a planted concept are not judged."""
        asked = concepts_in(text)
        if not asked:
            raise Unjudged("The text names no planted concept, so what was written cannot tell.")
        found = []
        for sound in sounds:
            if sound.truth is None:
                raise Unjudged(f"The truth about {sound.name!r} is not known.")
            at = id(sound.truth), sound.start, sound.end
            if at not in self._known:  # beside its truth, which then lives as long as its id
                self._known[at] = sound.truth, shares(sound)
            held = self._known[at][1]
            if missing := [name for name in asked if not np.isfinite(held.get(name, np.nan))]:
                raise Unjudged(f"What was written of {sound.name!r} does not tell {missing[0]!r}.")
            found.append(np.mean([held[name] for name in asked]))
        return np.array(found)
