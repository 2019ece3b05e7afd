"""Recompute every headline figure from what is shipped (`make scoreboard`).

    python benchmarks/scoreboard.py [--only PREFIX] [--json FILE] [--clips 64]

Each figure becomes {name, value, low, high, n, unit, seconds}: value with its 95 % interval over n
compositions that training never saw, and the seconds that its group of figures takes from nothing.
The file is a JSON list; with `--only` the other figures in it stay. A name with one more part is a
rival or a detail of the name before it: ``nano.prompt.tonic.chance``.

What takes long (generated music, codec copies) is kept in ``runs/scoreboard/``, a folder for each
set of weights, so that a board that was stopped goes on where it was: delete the folder to start
over. Everything together takes about 50 minutes on 2 cores.

To add figures, write a function of the board that returns {name: Interval, or (Interval, unit)} and
register it with `figures`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from musae_utils import models, music, probes, runs, trace
from musae_utils.models import quality
from musae_utils.stats import Interval, bootstrap, proportion

ROOT = Path(__file__).resolve().parents[1]
BATCH = 16  # rows generated at once
IN_DECIBELS = ("log_spectral_distance", "si_sdr", "band_energy_error")
KEYS = ("name", "value", "low", "high", "n", "unit", "seconds")


# -- the registry ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Figures that are computed together."""

    names: tuple[str, ...]
    minutes: float
    compute: Callable[[Board], dict]
    timing: bool

    def wanted(self, only: str) -> bool:
        return any(name.startswith(only) or only.startswith(f"{name}.") for name in self.names)


REGISTRY: list[Group] = []


def figures(*names: str, minutes: float, timing: bool = False):
    """Register a function that computes figures.

    Parameters
    ----------
    *names : str
        The headline figures it returns.
    minutes : float
        What it takes on 2 cores from nothing.
    timing : bool
        It measures time: never answered from an earlier run.
    """

    def register(compute):
        REGISTRY.append(Group(names, minutes, compute, timing))
        return compute

    return register


# -- the board -------------------------------------------------------------------------------------


@dataclass
class Board:
    """What figures are computed from: the model, held-out music, and what is kept of earlier runs.

    Attributes
    ----------
    clips : int
        Held-out compositions of a figure; some take a multiple.
    folder : Path
        Where intermediate results are kept.
    """

    clips: int = 64
    folder: Path = ROOT / "runs" / "scoreboard"
    name: str = "nano"
    earlier: float = field(default=0.0, init=False)  # seconds that kept results took to make

    @cached_property
    def model(self) -> models.MusicModel:
        return models.load(self.name, device="cpu" if self.name == "nano" else None)

    @cached_property
    def run(self) -> runs.Run:
        fingerprint = self.model.fingerprint
        config = {"clips": self.clips}
        return runs.Run(
            self.folder / f"{fingerprint}-{self.clips}", config, fingerprints={"model": fingerprint}
        )

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is made once for these weights. `make` may return a tuple of arrays."""
        file = f"{name}.npz"
        if not self.run.has(file):
            start = time.perf_counter()
            made = make()
            arrays = made if isinstance(made, tuple) else (made,)
            took = time.perf_counter() - start
            self.run.save(file, lambda path: np.savez(open(path, "wb"), *arrays, seconds=took))
        else:
            took = None
        with np.load(self.run.path(file)) as found:
            if took is None:
                self.earlier += float(found["seconds"])
            arrays = tuple(found[f"arr_{i}"] for i in range(len(found.files) - 1))
        return arrays if len(arrays) > 1 else arrays[0]

    def progress(self, what: str) -> Callable:
        return partial(tqdm, desc=f"  {what}", mininterval=2, leave=False, file=sys.stderr)

    # held-out music

    def held_out(self, n: int, seconds: float, seed: int = 0) -> list[music.Clip]:
        return self._composed(n, seconds, seed, "test")

    def _composed(self, n: int, seconds: float, seed: int, split: str) -> list[music.Clip]:
        numbers = self.progress(f"composing {n} clips of {seconds:g} s")(range(seed, seed + n))
        return [
            music.make_many(1, seed=number, seconds=seconds, split=split)[0] for number in numbers
        ]

    # generated music

    def generated(self, name: str, prompts, seconds: float, prompt_codes=None, **settings):
        """Codes of generated music, (B, K, T), in batches with a seed each."""

        def make():
            codes = []
            for start in self.progress(f"generating {name}")(range(0, len(prompts), BATCH)):
                rows = slice(start, start + BATCH)
                given = None if prompt_codes is None else torch.from_numpy(prompt_codes[rows])
                played = self.model.generate(
                    prompts[rows], seconds, seed=start, prompt_codes=given, **settings
                )
                codes.append(played.codes.numpy().astype(np.int16))
            return np.concatenate(codes)

        return self.kept(name, make)

    def audio(self, name: str, codes: np.ndarray) -> np.ndarray:
        """Kept codes as sound, (B, n)."""

        def make():
            parts = [
                self.model.decode(torch.from_numpy(codes[i : i + BATCH])).numpy()
                for i in self.progress(f"decoding {name}")(range(0, len(codes), BATCH))
            ]
            return _int16(np.concatenate(parts))

        return self.kept(f"{name}-audio", make).astype(np.float32) / 32767

    @cached_property
    def prompted(self) -> tuple[list[music.Truth], np.ndarray, list[str]]:
        """Held-out pieces of 10 s: their truths, their sound, prompts that state what they are."""
        clips = self.held_out(2 * self.clips, 10, seed=10_000)
        prompts = [quality.full_prompt(c.truth, i) for i, c in enumerate(clips)]
        return [c.truth for c in clips], np.stack([c.audio for c in clips]), prompts

    def copied(self, name: str, audio: np.ndarray) -> np.ndarray:
        """Sound through the codec and back."""

        def make():
            copies = quality.copies(self.model, audio, self.progress(f"copying {name}"))[0]
            return _int16(copies)

        return self.kept(f"copies-{name}", make).astype(np.float32) / 32767

    @property
    def copied_originals(self) -> np.ndarray:
        return self.copied("held-out", self.prompted[1])

    def played(self, guidance: float) -> np.ndarray:
        """The same prompts played by the model, with and without guidance: sound."""
        name = f"prompted-guidance-{guidance:g}"
        codes = self.generated(name, self.prompted[2], 10, guidance=guidance)
        return self.audio(name, codes)


# -- the nano models -------------------------------------------------------------------------------


@figures(
    "nano.codec.chroma_correlation", "nano.codec.pitch_agreement",
    "nano.codec.log_spectral_distance", "nano.codec.band_energy_error", "nano.codec.codebook_use",
    "nano.codec.si_sdr", minutes=1,
)  # fmt: skip
def codec(board: Board) -> dict:
    clips = board.held_out(board.clips, 10)
    audio = np.stack([clip.audio for clip in clips])
    copied, codes = board.kept(
        "codec", lambda: quality.copies(board.model, audio, board.progress("copying"))
    )
    report = quality.codec_report(
        clips, copied, codes, board.model.cardinality, board.progress("comparing")
    )
    return {
        f"nano.codec.{k}": (v, "dB" if k.split(".")[0] in IN_DECIBELS else "")
        for k, v in report.items()
    }


@figures(
    "nano.vae.chroma_correlation", "nano.vae.pitch_agreement", "nano.tokenizer.chroma_correlation",
    "nano.tokenizer.pitch_agreement", "nano.tokenizer.codebook_use", minutes=1,
)  # fmt: skip
def bottlenecks(board: Board) -> dict:
    """The other nano latent models, by the codec's own figures on the same pieces."""
    from musae_utils import latents

    clips, found = board.held_out(board.clips, 10), {}
    audio = np.stack([clip.audio for clip in clips])
    for name in ("nano-vae", "nano-tokenizer"):
        space = latents.load(name)
        codes, cardinality = None, 0
        z = space.encode(audio)
        if space.kind != "vae":
            book = space.net.quantizer
            codes = book.encode(torch.from_numpy(z).transpose(1, 2)).numpy()
            cardinality = book.bins
        copied = space.decode(z, quantise=True)[:, : audio.shape[1]]
        report = quality.codec_report(clips, copied, codes, cardinality, board.progress(name))
        for key, value in report.items():
            unit = "dB" if key.split(".")[0] in IN_DECIBELS else ""
            found[f"{name.replace('-', '.')}.{key}"] = (value, unit)
    return found


@figures("nano.lm.ce_ratio", "nano.lm.cross_entropy", "nano.lm.unigram", minutes=1)
def prediction(board: Board) -> dict:
    """Held-out pieces of 30 s with their captions as they come: partial, free in wording."""
    clips = board.held_out(board.clips, 30, seed=20_000)

    def make():
        batches = board.progress("encoding")(clips)
        codes = np.concatenate([board.model.encode(clip).numpy() for clip in batches])
        prompts = [clip.caption for clip in clips]
        nats = quality.cross_entropies(board.model, codes, prompts, board.progress("reading"))
        return nats, codes.astype(np.int16)

    report = quality.prediction_report(*board.kept("prediction", make), board.model.cardinality)
    unit = lambda name: "" if name.startswith("ce_ratio") else "nats"  # noqa: E731
    return {f"nano.lm.{name}": (found, unit(name)) for name, found in report.items()}


@figures("nano.lm.in_key_ratio", "nano.lm.harmonic_ratio", "nano.lm.onset_ratio", minutes=10)
def likeness(board: Board) -> dict:
    """10 s under the plain names, the codec's copies of the originals under ``.codec``; 30 s, of
    fewer pieces, under ``.30s``."""
    truths, originals, _ = board.prompted
    found = {}
    for suffix, audio in {"": board.played(3.0), ".codec": board.copied_originals}.items():
        for name, interval in _likeness(board, audio, originals, truths).items():
            if name.endswith("_ratio") or not suffix:
                found[f"nano.lm.{name}{suffix}"] = interval
    clips = board.held_out(board.clips, 30, seed=20_000)
    prompts = [quality.full_prompt(c.truth, i) for i, c in enumerate(clips)]
    played = board.audio("prompted-30s", board.generated("prompted-30s", prompts, 30))
    originals, truths = np.stack([c.audio for c in clips]), [c.truth for c in clips]
    for name, interval in _likeness(board, played, originals, truths).items():
        found[f"nano.lm.{name}.30s"] = interval
    return found


def _likeness(board, played, originals, truths) -> dict[str, Interval]:
    measured = [
        quality.traits(x, truths, board.model.sample_rate, board.progress("measuring"))
        for x in (played, originals)
    ]
    return quality.likeness_report(*measured)


@figures("nano.lm.continuation_key_ratio", minutes=1)
def continuation(board: Board) -> dict:
    """3 s of held-out pieces, continued to 10 s without a word."""
    clips = board.held_out(board.clips, 10, seed=30_000)
    audio, rate = np.stack([c.audio for c in clips]), board.model.sample_rate
    start = board.kept("prompt-codes", lambda: board.model.encode(audio[:, : 3 * rate]).numpy())
    codes = board.generated("continued", [None] * len(clips), 10, start)
    report = quality.continuation_report(
        board.audio("continued", codes), audio, [c.truth for c in clips], 3.0, rate,
        board.progress("measuring"),
    )  # fmt: skip
    return {f"nano.lm.{name}": found for name, found in report.items()}


@figures(
    "nano.prompt.instrument", "nano.prompt.drums", "nano.prompt.tonic", "nano.prompt.tempo",
    minutes=8,
)  # fmt: skip
def obedience(board: Board) -> dict:
    """Beside each ``.chance``, ``.guidance_off``, ``.no_prompt`` and the judge's ``.accuracy``.

    The judge is the tagger that ships, for tempo in beats a minute one that learns from the codec's
    copies. Its accuracy, on the codec's copies of the originals, is the most that can be seen.
    """
    truths, _, prompts = board.prompted
    learning = board._composed(8 * board.clips, 10, 500_000, "train")
    heard_from = board.copied("to-learn-tempo-from", np.stack([c.audio for c in learning]))
    tempo = quality.TempoJudge().fit(
        heard_from, [c.truth for c in learning], progress=board.progress("teaching a judge")
    )

    def hear(audio: np.ndarray) -> dict[str, np.ndarray]:
        return _tagged(audio, board.model.sample_rate) | {"tempo": tempo.hear(audio)}

    unprompted = board.audio("unprompted", board.generated("unprompted", [None] * len(prompts), 10))
    sounds = {
        "": board.played(3.0),
        ".guidance_off": board.played(1.0),
        ".no_prompt": unprompted,
        ".accuracy": board.copied_originals,
    }
    found = {}
    for suffix, audio in sounds.items():
        for name, interval in quality.obedience_report(hear(audio), truths).items():
            if not name.endswith(".chance"):
                found[f"nano.prompt.{name}{suffix}"] = interval
            elif not suffix:
                found[f"nano.prompt.{name}"] = interval
    return found


def _tagged(audio: np.ndarray, rate: int) -> dict[str, np.ndarray]:
    """What the shipped tagger hears in each sound: instrument, drums, tonic."""
    from musae_utils import labels
    from musae_utils.labels.words import GROUPS

    tagger = labels.nano_tagger()
    share = tagger.probabilities(labels.of_sounds(audio, rate))

    def answer(kind: str) -> np.ndarray:
        at = [tagger.tags.index(labels.phrase(concept)) for concept in GROUPS[kind]]
        values = [concept.split(": ")[1] for concept in GROUPS[kind]]
        return np.array(values)[share[:, at].argmax(1)]

    tonics = [music.PITCH_NAMES.index(name) for name in answer("tonic")]
    return {"instrument": answer("family"), "drums": answer("drums") == "yes",
            "tonic": np.array(tonics)}  # fmt: skip


def _int16(audio: np.ndarray) -> np.ndarray:
    return (audio.clip(-1, 1) * 32767).round().astype(np.int16)


@figures(
    "nano.flow.in_key_ratio", "nano.flow.harmonic_ratio", "nano.flow.onset_ratio",
    "nano.flow.prompt.instrument", "nano.flow.prompt.drums", "nano.flow.prompt.tonic", minutes=4,
)  # fmt: skip
def diffusion(board: Board) -> dict:
    """Music of 10 s that the latent-diffusion model makes of the same prompts in 32 steps.

    Under ``.vae`` the VAE's copies of the originals: the most that it can be seen to reach.
    """
    from musae_utils.latents.flow import load_flow

    flow = load_flow()
    truths, originals, prompts = (part[: board.clips] for part in board.prompted)

    def make() -> np.ndarray:
        birth = flow.draw(prompts, 10, progress=board.progress("drawing"))
        return _int16(flow.vae.decode(birth.states[-1]))

    drawn = board.kept("drawn", make).astype(np.float32) / 32767
    copied = flow.vae.decode(flow.vae.encode(originals))[:, : originals.shape[1]]
    found = {}
    for suffix, audio in {"": drawn, ".vae": copied}.items():
        for name, interval in _likeness(board, audio, originals, truths).items():
            if name.endswith("_ratio"):
                found[f"nano.flow.{name}{suffix}"] = interval
        heard = quality.obedience_report(_tagged(audio, board.model.sample_rate), truths)
        for name, interval in heard.items():
            if not (suffix and name.endswith(".chance")):
                found[f"nano.flow.prompt.{name}{suffix}"] = interval
    return found


@figures("nano.generate_rtf", minutes=1, timing=True)
def generate_rtf(board: Board) -> dict:
    """Seconds of music a second, 16 rows of 10 s with guidance, decoding included."""
    prompts = board.prompted[2][:BATCH]
    board.model.generate(prompts, 1)  # warms up
    speeds = []
    for seed in range(4):
        start = time.perf_counter()
        board.model.generate(prompts, 10, seed=seed)
        speeds.append(10 * len(prompts) / (time.perf_counter() - start))
    return {"nano.generate_rtf": (bootstrap(speeds), "s/s")}


# -- tracing --------------------------------------------------------------------------------------


@figures("trace.identity", "trace.zero_edit", "trace.hook_parity", minutes=1)
def tracing(board: Board) -> dict:
    """Largest differences that should be none: logits, codes, codes and logits."""
    model, rows, middle = board.model, 8, trace.at_depth(board.model, 0.5)
    prompts = [*board.prompted[2][: rows - 1], None]
    play = dict(prompts=prompts, seconds=4.0, seed=1)
    plain = model.generate(**play).codes
    push = torch.randn(model.dim, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        bare = model.lm.compute_predictions(
            plain.to(model.device),
            [],
            condition_tensors=model.conditions(prompts),
            keep_only_valid_steps=False,  # the sequence that trace reads; a shorter one rounds else
        )
        gap = (trace.logits(model, plain, prompts) - bare.logits)[bare.mask].abs().max()

    untouched = trace.edit(model, trace.Edit(middle, push, strength=0.0)).generate(**play).codes
    edited = trace.edit(model, trace.Edit(middle, push))
    edited_codes, edited_logits = edited.generate(**play).codes, edited.logits(plain, prompts)
    added = push.to(model.device, model.dtype)
    hook = model.lm.transformer.layers[middle].register_forward_hook(lambda m, i, out: out + added)
    try:
        hooked_codes = model.generate(**play).codes
        hooked_logits = trace.logits(model, plain, prompts)
    finally:
        hook.remove()
    if torch.equal(edited_codes, plain):
        raise RuntimeError("The edit changed nothing, so that its parity with a hook says nothing.")
    parity = max(
        float((edited_logits - hooked_logits).abs().max()),
        float((edited_codes != hooked_codes).sum()),
    )
    count = lambda value: Interval(float(value), math.nan, math.nan, rows)  # noqa: E731
    return {
        "trace.identity": (count(gap), "largest difference"),
        "trace.zero_edit": (count((untouched != plain).sum()), "codes that differ"),
        "trace.hook_parity": (count(parity), "largest difference"),
    }


@figures("trace.overhead", minutes=3, timing=True)
def overhead(board: Board) -> dict:
    """``.short``: one clip of 2 s; ``.full``: to the logits (benchmarks/trace_overhead.py)."""
    import trace_overhead

    return {
        e["name"].replace("overhead_", "overhead."): (
            Interval(e["value"], e["low"], e["high"], e["n"]),
            e["unit"],
        )
        for e in trace_overhead.measure(board.model, only="trace.overhead")
    }


# -- activations ----------------------------------------------------------------------------------


@figures("harvest.overhead", "harvest.memory_slope", minutes=6, timing=True)
def harvesting(board: Board) -> dict:
    """``.wall``, ``.layers`` and ``.from_sound``: see benchmarks/harvest_overhead.py."""
    import harvest_overhead

    return {
        e["name"].replace("overhead_", "overhead."): (
            Interval(e["value"], e["low"], e["high"], e["n"]),
            e["unit"],
        )
        for e in harvest_overhead.measure(board.model)
    }


# -- sparse autoencoders --------------------------------------------------------------------------


@figures(
    "sae.speed_vs_gemm", "sae.speed_vs_best_peer", "sae.fvu_vs_best_peer", minutes=0, timing=True
)
def engine(board: Board) -> dict:
    """Read from data/sae_peers.json, which `make peers` makes beside the other libraries.

    The worst of six shapes, ``.SHAPE`` each; the strongest of four libraries, ``.LIBRARY`` each.
    """
    import sae_peers

    return sae_peers.headlines(runs.load_json(sae_peers.TABLE))


@figures("store.kill_survival", minutes=2, timing=True)
def kills(board: Board) -> dict:
    """``.harvest`` and ``.train``: see benchmarks/kill_survival.py, which forks processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kills.json"
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "kill_survival.py"),
            "--json",
            str(file),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        listed = runs.load_json(file)
    return {
        e["name"]: (Interval(e["value"], e["low"], e["high"], e["n"]), e["unit"]) for e in listed
    }


# -- probes ---------------------------------------------------------------------------------------


@figures(*(f"{kind}.{c}" for kind in ("probe", "probe_rival") for c in probes.CONCEPTS), minutes=5)
def worth_opening(board: Board) -> dict:
    """The best residual layer, chosen on one half and scored on the other, and its best rival.

    Held-out pieces of 20 s, read without a prompt. Rivals are the sum of code embeddings, the
    codec's latents (before rounding to codes), acoustic features, and position, a stopwatch. All,
    the layers too, come with means over the past 0.5 s, 2 s and all. The rival with the highest
    test score counts. ``probe.tonic.ahead`` is the difference, paired by composition.
    """
    model, clips = board.model, board.held_out(3 * board.clips, 20, seed=40_000)
    encoded = lambda: model.encode(clips).numpy().astype(np.int16)  # noqa: E731
    codes = torch.from_numpy(board.kept("probe-codes", encoded)).long()
    sources = probes.layer_features(model, codes, progress=board.progress("reading"))
    sources |= probes.rival_features(model, clips, board.progress("rivals"))
    results = probes.probe_concepts(
        sources, clips, np.arange(len(clips)), probes.RIVALS, frame_rate=model.frame_rate,
        progress=board.progress("probing"),
    )  # fmt: skip
    found = {}
    for concept, result in results.items():
        rival = result.best_rival
        score = "R²" if result.best.task == "regress" else "accuracy"
        chosen = " or ".join(sorted(set(result.chosen)))
        found[f"probe.{concept}"] = (result.best.score, f"{score}, {chosen}")
        found[f"probe.{concept}.ahead"] = (result.differences[rival], score)
        found[f"probe_rival.{concept}"] = (result.results[rival].score, f"{score}, {rival}")
    return found


# -- the atlas ------------------------------------------------------------------------------------


@figures(
    "atlas.coverage", "atlas.coverage_neurons", "atlas.coverage_pca", "atlas.coverage_untrained",
    "atlas.coverage_random", "atlas.auc", "atlas.auc_gain_over_untrained", minutes=4,
)  # fmt: skip
def exam(board: Board) -> dict:
    """Planted concepts with a feature of the middle layer's shipped SAE, or with one of a rival.

    Of clips under the plain names, of frames under ``.frame``; other layers under ``.layer_N``.
    Features are chosen on training compositions and scored on held-out ones, twice as many as
    elsewhere.
    """
    from musae_utils import activations, features
    from musae_utils.sae import shipped

    model, n = board.model, 2 * board.clips
    layers = shipped.layers(model)
    sides = [
        activations.harvest(
            model, board._composed(n, 10, 60_000, split), layers,
            board.run.folder / f"exam-{split}-{n}", progress=False,
        )
        for split in ("train", "test")
    ]  # fmt: skip
    found = {}
    for layer in layers:
        sae = shipped.pretrained(model, layer)
        middle = layer == layers[len(layers) // 2]
        rivals = features.rivals(sae, sides[0])
        if not middle:
            rivals = {"untrained SAE": rivals["untrained SAE"]}
        marks = features.known_answers({"SAE": sae} | rivals, *sides, progress=False)
        for level in marks.levels:
            end = ("" if level == "clip" else ".frame") + ("" if middle else f".layer_{layer}")
            found[f"atlas.coverage{end}"] = marks.coverage("SAE", level)
            found[f"atlas.auc{end}"] = marks.auc("SAE", level)
            found[f"atlas.auc_gain_over_untrained{end}"] = marks.gain("SAE", "untrained SAE", level)
            for rival in rivals:
                short = {"untrained SAE": "untrained", "random directions": "random"}.get(
                    rival, rival.lower()
                )
                found[f"atlas.coverage_{short}{end}"] = marks.coverage(rival, level)
                found[f"atlas.auc_{short}{end}"] = marks.auc(rival, level)
    return found


@figures("atlas.explorer_open", "atlas.explorer_search", minutes=1, timing=True)
def explorer(board: Board) -> dict:
    """4,000 features in headless Chromium, from a folder (benchmarks/explorer_speed.py)."""
    import explorer_speed

    return {
        e["name"]: (Interval(e["value"], e["low"], e["high"], e["n"]), e["unit"])
        for e in explorer_speed.measure()
    }


# -- names -----------------------------------------------------------------------------------------


@figures(
    "labels.precision", "labels.coverage", "labels.detection_auc", "labels.detection_auc_shuffled",
    minutes=6,
)  # fmt: skip
def naming(board: Board) -> dict:
    """Features of the middle layer's shipped SAE that follow a planted concept, named and marked.

    Chosen on training pieces, named on one half of held-out ones, scored on the other. Under the
    plain names the automatic method whose names are most often true; ``.ensemble`` and every other
    under ``.METHOD``. Detection: all automatic names of all features before judges that made none
    of them; rivals have ``.ahead``, by how much the names are better. ``labels.judge.JUDGE``: mean
    AUC over concepts. ``labels.false_names.METHOD``: share of features with nothing to find that
    got a name. ``labels.circle.flattery``: AUC that the audio-text model gives its own names on the
    clips on which it chose them, less what written truth gives them on others.
    """
    from musae_utils import labels
    from musae_utils.labels.scoring import RIVALS, detection_auc
    from musae_utils.sae import shipped

    model = board.model
    layer = shipped.layers(model)[1]
    study = labels.study(model, layer, board.run.folder, 2 * board.clips, each=10, drawn=24)
    tagger, clap = labels.nano_tagger(), labels.CLAPLabeler(labels.nano_clap())
    methods = [labels.TagLabeler(tagger), clap, labels.Descriptors(), labels.Truth()]
    named = labels.name_features(methods, study.examples, progress=False).labels
    named += labels.agreed(label for label in named if label.method != "truth")
    judges = {"tagger": labels.TagJudge(tagger), "clap": clap, "written truth": labels.TruthJudge()}
    short = lambda name: name.replace("nano ", "").lower()  # noqa: E731
    found = {}

    follow = set(study.planted.index[study.planted != ""])
    planted = [label for label in named if label.feature in follow]
    truth = {"written truth": judges["written truth"]}
    marks = labels.mark(labels.score_labels(planted, study.examples, truth))
    given = {name: row for name, row in marks.iterrows() if row["precision"] is not None}
    single = [name for name in given if name not in ("truth", "ensemble")]
    best = max(single, key=lambda name: given[name]["precision"].value)
    for what in ("precision", "coverage"):
        found[f"labels.{what}"] = (given[best][what], short(best))
        found |= {f"labels.{what}.{short(name)}": row[what] for name, row in given.items()}

    automatic = [label for label in named if label.method not in ("truth", "ensemble")]
    ears = {name: judges[name] for name in ("tagger", "clap")}
    table = labels.score_labels(automatic, study.examples, ears).table
    scored = table.dropna(subset=["auc", *RIVALS])
    found["labels.detection_auc"] = bootstrap(scored["auc"], groups=scored["feature"])
    for rival in RIVALS:
        name = f"labels.detection_auc_{rival.replace(' ', '_')}"
        found[name] = bootstrap(scored[rival], groups=scored["feature"])
        ahead = scored["auc"] - scored[rival]
        found[f"{name}.ahead"] = bootstrap(ahead, groups=scored["feature"])

    heard = labels.calibrate(ears, study.pieces(2.0))["auc"].map(lambda interval: interval.value)
    for judge, values in heard.groupby(level="judge"):
        found[f"labels.judge.{judge}"] = bootstrap(values)
    coin = [labels.shuffled(chosen) for chosen in study.examples if not chosen.problem]
    for method in methods:
        said = labels.name_features([method], coin, progress=False).labels
        number = sum(not label.abstains for label in said)
        found[f"labels.false_names.{short(method.name)}"] = proportion(number, len(said))

    def auc(judge, half, text):
        return detection_auc(np.asarray(judge.score(half.all, text), float), half)

    flattery = []
    for label in automatic:
        if label.method == clap.name and labels.concepts_in(label.text):
            chosen = study.of(label.feature)
            own = auc(clap, chosen.finding, label.text)
            flattery.append(own - auc(judges["written truth"], chosen.scoring, label.text))
    if len(flattery) > 1:
        found["labels.circle.flattery"] = bootstrap(flattery)
    return found


# -- steering -------------------------------------------------------------------------------------


@figures(
    "steering.improved_share", "steering.win_ratio_random", "steering.negative_controls",
    "steering.vs_diffmean", "steering.vs_probe", "steering.vs_pca", "steering.vs_neuron",
    "steering.vs_prompt", minutes=0, timing=True,
)  # fmt: skip
def steered(board: Board) -> dict:
    """Read from data/steering.json, which `make steering` makes in most of an hour.

    The share of each method under ``steering.improved_share.METHOD``; all else of `figures` there.
    """
    from musae_utils.steering import experiment

    def unit(name: str) -> str:
        if name.startswith("steering.vs_"):
            return "cosine"
        return "wins to losses" if name == "steering.win_ratio_random" else ""

    found = experiment.figures(experiment.load())
    return {name: (figure, unit(name)) for name, figure in found.items()}


@figures(
    "steering.zero_identity", "steering.sweep_overhead", "steering.batching_gain", minutes=3,
    timing=True,
)  # fmt: skip
def sweeping(board: Board) -> dict:
    """``.ablate``: of knobs that read the stream (benchmarks/sweep_cost.py)."""
    import sweep_cost

    from musae_utils.sae import shipped

    sae = shipped.pretrained(board.model, shipped.layers(board.model)[1])
    return {
        e["name"]: (Interval(e["value"], e["low"], e["high"], e["n"]), e["unit"])
        for e in sweep_cost.measure(board.model, sae)
    }


# -- audio latents ---------------------------------------------------------------------------------

SPACES = ("codec", "vae", "tokenizer")


@figures(
    *(f"latents.{space}.{a}" for space in SPACES
      for a in ("pitch", "pitch_alone", "loudness", "timbre")), minutes=0, timing=True,
)  # fmt: skip
def spaces(board: Board) -> dict:
    """Read from data/latents/spaces.json (`make latents`): all of `figures` in latents.spaces."""
    from musae_utils.latents import spaces

    return spaces.figures(spaces.load())


@figures("manipulate.pitch", "manipulate.loudness", "manipulate.centroid", minutes=0, timing=True)
def manipulated(board: Board) -> dict:
    """Shares of the asked shift, from data/latents/manipulate.json (`make latents`)."""
    from musae_utils.latents import manipulate

    return manipulate.figures(manipulate.load())


@figures(
    *(f"birth.{a}_{what}" for a in ("pitch", "loudness", "timbre")
      for what in ("settle", "decided")), minutes=0, timing=True,
)  # fmt: skip
def births(board: Board) -> dict:
    """Read from data/latents/birth.json (`make latents`); in steps of 32 where they are steps."""
    from musae_utils.latents import birth

    def unit(name: str) -> str:
        return "steps" if "_settle" in name or "_decided" in name else ""

    found = birth.figures(birth.load())
    return {name: (figure, unit(name)) for name, figure in found.items()}


# -- structure -------------------------------------------------------------------------------------


@figures(
    "structure.label_f1.exact", "structure.label_f1.transposed", "structure.label_f1.varied",
    "structure.trap_fpr", "structure.trap_fpr_ratio", "structure.timing_error", minutes=0,
    timing=True,
)  # fmt: skip
def returning(board: Board) -> dict:
    """Labels of returns, from data/structure/returns.json (`make structure`)."""
    from musae_utils.structure import returns

    found = returns.figures(returns.load())
    return {name: (v, "s" if "timing" in name else "") for name, v in found.items()}


@figures(
    *(f"structure.gain.{part}{horizon}" for part in ("", "own.")
      for horizon in ("short", "middle", "long")),
    "structure.leaks_caught", "structure.false_go", "structure.power80", minutes=0, timing=True,
)  # fmt: skip
def planning_ahead(board: Board) -> dict:
    """Read from data/structure/horizons.json (`make structure`)."""
    from musae_utils.structure import planning

    return planning.figures(planning.load())


@figures(
    "structure.ablation.ablate.long", "structure.ablation.ablate.long.against_random",
    "structure.ablation.ablate.long.against_local", "structure.ablation.rate.baseline.long",
    "structure.ablation.expected.gap.ablate", "structure.gates", "structure.failure_modes",
    minutes=1, timing=True,
)  # fmt: skip
def cut_circuit(board: Board) -> dict:
    """Read from data/structure/cutting.json (`make structure`); the gates are decided anew."""
    from musae_utils import sae
    from musae_utils.sae import shipped
    from musae_utils.structure import cutting, gates, planning, returns

    kept, planned, marks = cutting.load(), planning.load(), returns.figures(returns.load())
    middle = shipped.pretrained(board.model, shipped.layers(board.model)[1])
    fit = sae.verify(middle, board.model)
    decided = gates.decide(fit, marks, planned, kept, cutting.load(cutting.SECOND))
    fooled = gates.failures(board.model, middle, fit, marks, planned, kept)
    return cutting.figures(kept) | gates.figures(decided, fooled)


# -- running ---------------------------------------------------------------------------------------


def entries(group: Group, board: Board) -> list[dict]:
    """The entries of a group, from an earlier run where nothing has changed since."""
    file = f"figures {group.names[0]} {_sources()}.json"
    if not group.timing and board.run.has(file):
        return runs.load_json(board.run.path(file))
    board.earlier, start = 0.0, time.perf_counter()
    found = group.compute(board)
    seconds = round(time.perf_counter() - start + board.earlier, 1)
    listed = [entry(name, figure, seconds) for name, figure in found.items()]
    if not group.timing:
        board.run.save(file, json.dumps(listed))
    return listed


def entry(name: str, figure: Interval | tuple[Interval, str], seconds: float) -> dict:
    """One line of the board; ends that are nan (a count, not an estimate) become null."""
    interval, unit = figure if isinstance(figure[0], tuple) else (figure, "")
    value, low, high = (float(x) if math.isfinite(x) else None for x in interval[:3])
    return dict(zip(KEYS, (name, value, low, high, int(interval.n), unit, seconds), strict=True))


def _sources() -> str:
    """Eight digits that change with the code that computes figures."""
    import hashlib

    package = ROOT / "musae_utils"
    files = [Path(__file__), package / "models" / "quality.py", *models.NANO_FOLDER.glob("*.json")]
    files += [package / name for name in ("stats.py", "trace.py")]
    for folder in ("music", "probes", "labels", "steering", "latents", "structure"):
        files += sorted((package / folder).glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def compute(
    board: Board, only: str = "", skip: Callable[[str], None] = print
) -> Iterator[list[dict]]:
    """Entries group by group, saying what goes on; a group that fails is said and passed over."""
    groups = [group for group in REGISTRY if group.wanted(only)]
    if not groups:
        known = sorted(name for group in REGISTRY for name in group.names)
        raise ValueError(f"No figure begins with {only!r}. There are: {', '.join(known)}.")
    left = sum(group.minutes for group in groups)
    for number, group in enumerate(groups, 1):
        title = ", ".join(group.names[:3]) + (", …" if len(group.names) > 3 else "")
        print(f"[{number}/{len(groups)}] {title} (up to {left:.0f} min left)", flush=True)
        left -= group.minutes
        try:
            listed = entries(group, board)
        except Exception as error:
            skip(f"  not computed: {type(error).__name__}: {error}")
            continue
        yield [e for e in listed if e["name"].startswith(only)]


def marked(entries: list[dict]) -> list[dict]:
    """Entries by name; those that are registered by name are headlines, which README.md quotes."""
    registered = {name for group in REGISTRY for name in group.names}
    return [e | {"headline": e["name"] in registered}
            for e in sorted(entries, key=lambda e: e["name"])]  # fmt: skip


def shown(e: dict) -> str:
    number = lambda x: "–" if x is None else f"{x:.3f}"  # noqa: E731
    span = "" if e["low"] is None else f"[{number(e['low'])}, {number(e['high'])}]"
    return f"  {e['name']:44} {number(e['value']):>8} {e['unit']:5} {span:18} n = {e['n']}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="PREFIX", help="names that begin with this")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "data" / "scoreboard.json", metavar="FILE"
    )
    parser.add_argument("--clips", type=int, default=64, help="fewer for a quick, rough board")
    given = parser.parse_args(arguments)
    if given.clips < 8:
        parser.error(f"--clips is {given.clips}; intervals need at least 8 compositions.")
    board, failed = Board(given.clips), []

    def skip(said: str) -> None:
        failed.append(said)
        print(said, flush=True)

    kept = runs.load_json(given.json) if given.only and given.json.exists() else []
    try:
        for listed in compute(board, given.only, skip):
            print("\n".join(map(shown, listed)), flush=True)
            new = {e["name"] for e in listed}
            kept = [e for e in kept if e["name"] not in new] + listed
            runs.save_json(given.json, marked(kept))
    except (ValueError, OSError, runs.RunError) as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{len(kept)} figures in {given.json}"
        + (f"; {len(failed)} groups failed" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
