"""Ears that others trained: models that relate sound to text, and taggers (notebook 08).

==================  ================================================================================
`TransformersCLAP`  `AudioTextModel`: a CLAP saved by transformers, from the hub or a folder
`LaionCLAP`         `AudioTextModel`: a checkpoint of laion-clap, such as the one for music
`AudioSetAST`       `Tagger`: the audio spectrogram transformer and AudioSet's words for music
`EssentiaTags`      `Tagger`: Essentia's heads over Discogs-EffNet embeddings; an extra to install
==================  ================================================================================

Conventions
-----------
- A sound longer than a model hears at once is cut into pieces of that length which cover it evenly,
  and what the model says of them is averaged. Nothing is cropped at random.
- A name is looked up in the Hugging Face cache and then on the network. What is in neither raises
  `Unavailable`, which says what to fetch; a damaged or foreign file raises ValueError.
- ``fingerprint`` is the hub's revision, or else 16 hex digits of a SHA-256 over the files read.
- Weights are read from safetensors or without running any code that a pickle may hold.

References
----------
Wu et al. (2023), Large-scale contrastive language-audio pretraining with feature fusion and
keyword-to-caption augmentation, ICASSP (arXiv 2211.06687): CLAP. Gong, Chung and Glass (2021), AST:
Audio Spectrogram Transformer, Interspeech (arXiv 2104.01778).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch

from musae_utils import runs
from musae_utils.labels.examples import Example
from musae_utils.labels.label import Unavailable, clean

ROWS = 8  # pieces, or times eight texts, through a model at once
SHORTEST = 0.05  # seconds
TOKENS = 77  # of a text, as CLAP was trained

ESSENTIA_RATE = 16_000
ESSENTIA_MODELS = "https://essentia.upf.edu/models"
EMBEDDING = "feature-extractors/discogs-effnet/discogs-effnet-bs64-1.pb"


# -- models that relate sound to text --------------------------------------------------------------


class _CLAP:
    """Sounds and texts through transformers' `ClapModel`."""

    def __init__(self, name, fingerprint, model, extractor, tokenizer, device) -> None:
        self.name, self.fingerprint = name, fingerprint
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self._extractor = model.eval().to(self._device), extractor
        self._tokenizer = knows_words(tokenizer, model.config.text_config.vocab_size, name)

    def embed_sounds(self, sounds: Sequence[Example]) -> np.ndarray:
        """Unit vectors of sounds.

        Parameters
        ----------
        sounds : sequence of Example
            Of any length from 0.05 s and any sample rate.

        Returns
        -------
        float32 array of shape (sounds, e)

        Raises
        ------
        ValueError
            A sound is empty or too short, or holds NaN.
        """
        rate, seconds = self._extractor.sampling_rate, self._extractor.max_length_s
        return _unit(averaged(sounds, rate, seconds, self._embed), self.name)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of texts, of which the first 77 tokens count: float32 (texts, e)."""
        said = [clean(text, 50 * TOKENS) for text in texts] or [""]
        rows = []
        for i in range(0, len(said), 8 * ROWS):
            tokens = self._tokenizer(
                said[i : i + 8 * ROWS], padding=True, truncation=True, max_length=TOKENS,
                return_tensors="pt",
            )  # fmt: skip
            found = self._model.get_text_features(
                tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
            )
            rows.append(found.pooler_output.float().cpu().numpy())
        return _unit(np.concatenate(rows)[: len(texts)], self.name)

    @torch.no_grad()
    def _embed(self, pieces: list[np.ndarray]) -> np.ndarray:
        seen = self._extractor(
            pieces, sampling_rate=self._extractor.sampling_rate, return_tensors="pt"
        )
        said = self._model.get_audio_features(**seen.to(self._device))
        return said.pooler_output.float().cpu().numpy()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.fingerprint}, on {self._device})"


class TransformersCLAP(_CLAP):
    """A CLAP as transformers saves it.

    Parameters
    ----------
    name : str
        On the hub, or a folder with ``config.json``, weights, tokenizer and feature extractor.
    revision : str, optional
        Of the hub.
    device : str, optional
        "cuda" where there is one.

    Raises
    ------
    Unavailable
        It is neither in the cache nor to be had from the network.
    ValueError
        The folder is missing, damaged, or holds another kind of model.

    Examples
    --------
    >>> TransformersCLAP("laion/larger_clap_music").embed_texts(["a flute"])  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str = "laion/larger_clap_music",
        revision: str | None = None,
        device: str | None = None,
    ) -> None:
        _, fingerprint = identify(name, ["clap"], revision)
        model = read(name, "ClapModel", revision)
        processor = read(name, "ClapProcessor", revision)
        said = f"clap: {clean(Path(name).name)}"
        super().__init__(
            said, fingerprint, model, processor.feature_extractor, processor.tokenizer, device
        )


class LaionCLAP(_CLAP):
    """A checkpoint of laion-clap 1.1.7: HTSAT and RoBERTa, without fusion.

    The one for music is ``music_audioset_epoch_15_esc_90.14.pt`` (HTSAT-base), 2.35 GB with its
    optimiser, from ``https://huggingface.co/lukewys/laion_clap``. laion-clap itself is not needed:
    transformers' `ClapModel` is the same network, and the sizes are read from the checkpoint. As in
    laion-clap, sound is rounded to 16 bits, and what is short repeated up to 10 s.

    Parameters
    ----------
    checkpoint : str or Path
    device : str, optional
        "cuda" where there is one.

    Raises
    ------
    Unavailable
        There is no such file; or RoBERTa's tokenizer is neither in the Hugging Face cache nor to be
        had from the network.
    ValueError
        The file is damaged, would run code, or is not such a checkpoint.
    """

    def __init__(self, checkpoint: str | Path, device: str | None = None) -> None:
        from transformers import ClapFeatureExtractor

        from musae_utils.models.compat import read_checkpoint

        checkpoint = Path(checkpoint)
        if not checkpoint.is_file():
            raise Unavailable(
                f"There is no file {checkpoint}: fetch it from "
                "https://huggingface.co/lukewys/laion_clap (music_audioset_epoch_15_esc_90.14.pt)."
            )
        extractor = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
        model = _from_laion(checkpoint, read_checkpoint(checkpoint), extractor)
        tokenizer = read("roberta-base", "AutoTokenizer")
        fingerprint = runs.sha256(checkpoint)[:16]
        said = f"clap: {clean(checkpoint.stem)}"
        super().__init__(said, fingerprint, model, extractor, tokenizer, device)

    def _embed(self, pieces: list[np.ndarray]) -> np.ndarray:
        return super()._embed([np.trunc(np.clip(x, -1, 1) * 32767) / 32767 for x in pieces])


# What laion-clap calls a part, as a pattern, and what transformers calls it; None for what no
# embedding needs: spectra (which the extractor makes), tags, layers of the training loss, counters.
LAION_NAMES = (
    (r"audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\..*", None),
    (r"(audio|text)_transform\..*", None),
    (r".*\.(attn_mask|relative_position_index|position_ids)", None),
    (r"(audio|text)_projection\.0\.", r"\1_projection.linear1."),
    (r"(audio|text)_projection\.2\.", r"\1_projection.linear2."),
    (r"text_branch\.", "text_model."),
    (r"audio_branch\.bn0\.", "audio_model.audio_encoder.batch_norm."),
    (r"audio_branch\.", "audio_model.audio_encoder."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def _from_laion(checkpoint: Path, found: Any, extractor) -> torch.nn.Module:
    """The `ClapModel` of a checkpoint of laion-clap, every one of its entries accounted for."""
    from transformers import ClapModel

    no = f"{checkpoint} is not a checkpoint of laion-clap with HTSAT and RoBERTa, without fusion"
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError(f"{no}: it holds no dictionary of named tensors.")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        model = ClapModel(_sizes(state))
        mel = state["audio_branch.logmel_extractor.melW"].numpy()
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(f"{no}: it lacks {error}.") from None
    if not np.allclose(mel, extractor.mel_filters_slaney, atol=1e-6):
        raise ValueError(f"{no}: it was trained on other spectra than 64 bands up to 14 kHz.")
    renamed = {}
    for name, value in state.items():
        for pattern, other in LAION_NAMES:
            if other is None and re.fullmatch(pattern, name):
                break
            name = name if other is None else re.sub(pattern, other, name)
        else:
            if ".qkv." in name:
                for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    renamed[name.replace("qkv", part)] = third
            else:
                renamed[name] = value
    try:
        missing, unknown = model.load_state_dict(renamed, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{no}: {str(error).splitlines()[-1].strip()}") from None
    # Counters that follow from the sizes: the model has its own.
    missing = [name for name in missing if not re.search(r"_ids$|_index$|_tracked$", name)]
    if missing or unknown:
        listed = ", ".join([*missing, *unknown][:3])
        raise ValueError(f"{no}: {len(missing)} weights are missing and {len(unknown)} unknown, "
                         f"such as {listed}.")  # fmt: skip
    return model


def _sizes(state: dict[str, torch.Tensor]):
    """The sizes of the two networks, read off their weights."""
    from transformers import ClapConfig

    def count(pattern: str) -> int:
        return len({m[0] for m in (re.match(pattern, name) for name in state) if m})

    audio, text = r"audio_branch\.layers\.", "text_branch.embeddings."
    depths = [count(rf"{audio}{i}\.blocks\.\d+\.") for i in range(count(audio + r"\d+\."))]
    table = "audio_branch.layers.{}.blocks.0.attn.relative_position_bias_table"
    width = len(state["audio_branch.patch_embed.proj.weight"])
    words, hidden = state[f"{text}word_embeddings.weight"].shape
    return ClapConfig(
        projection_dim=len(state["audio_projection.2.weight"]),
        audio_config={
            "patch_embeds_hidden_size": width,
            "hidden_size": width * 2 ** (len(depths) - 1),
            "depths": depths,
            "num_attention_heads": [state[table.format(i)].shape[1] for i in range(len(depths))],
        },
        text_config={
            "vocab_size": words,
            "hidden_size": hidden,
            "num_hidden_layers": count(r"text_branch\.encoder\.layer\.\d+\."),
            "num_attention_heads": hidden // 64,  # as in every RoBERTa
            "intermediate_size": len(state["text_branch.encoder.layer.0.intermediate.dense.bias"]),
            "max_position_embeddings": len(state[f"{text}position_embeddings.weight"]),
            "layer_norm_eps": 1e-5,
        },
    )


# -- taggers ---------------------------------------------------------------------------------------

#: First and last of AudioSet's runs of labels for music: voices, and instruments to moods.
MUSIC = (("Singing", "Humming"), ("Music", "Scary music"))


class AudioSetAST:
    """The audio spectrogram transformer, trained on AudioSet's 527 kinds of sound.

    Of these, music are the voices from "Singing" to "Humming" and the run from "Music" through
    instruments, genres and roles to "Scary music"; the rest (speech, animals, weather, machines) is
    no tag here, since each tag more makes all others harder to be sure of. A model without these
    labels keeps all that it has.

    Parameters
    ----------
    name : str
        On the hub, or a folder that transformers saved.
    revision, device : str, optional
        See `TransformersCLAP`, which raises the same.

    Attributes
    ----------
    name : str
    tags : tuple of str
    """

    def __init__(
        self,
        name: str = "MIT/ast-finetuned-audioset-10-10-0.4593",
        revision: str | None = None,
        device: str | None = None,
    ) -> None:
        _, self.fingerprint = identify(name, ["audio-spectrogram-transformer"], revision)
        model = read(name, "ASTForAudioClassification", revision)
        self._extractor = read(name, "ASTFeatureExtractor", revision)
        self.name = f"tagger: {clean(Path(name).name)}"
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        labels = [str(label) for _, label in sorted(model.config.id2label.items())]
        runs_of = [
            range(labels.index(first), labels.index(last) + 1)
            for first, last in MUSIC
            if {first, last} <= set(labels)
        ]
        self._kept = [i for run in runs_of for i in run] or list(range(len(labels)))
        self.tags = _distinct(labels[i] for i in self._kept)

    def probabilities(self, sounds: Sequence[Example]) -> np.ndarray:
        """How probable each tag is in each sound: (sounds, tags) in [0, 1].

        Raises
        ------
        ValueError
            A sound is empty or too short, or holds NaN.
        """
        rate, frames = self._extractor.sampling_rate, self._extractor.max_length
        heard = averaged(sounds, rate, frames / 100, self._hear)  # a frame is 10 ms
        return _finite(heard, self.name)

    @torch.no_grad()
    def _hear(self, pieces: list[np.ndarray]) -> np.ndarray:
        rate = self._extractor.sampling_rate
        seen = self._extractor(pieces, sampling_rate=rate, return_tensors="pt")
        logits = self._model(**seen.to(self._device)).logits
        return logits[:, self._kept].float().sigmoid().cpu().numpy()


class EssentiaTags:
    """A tagger of Essentia: a head over Discogs-EffNet embeddings, as S1 used.

    It needs the package ``essentia-tensorflow`` (AGPL, 0.6 GB, not for Windows), an extra that is
    not installed with this book, and three files of Essentia's models (CC BY-NC-SA).

    Parameters
    ----------
    folder : str or Path
        With ``discogs-effnet-bs64-1.pb``, and ``<head>-discogs-effnet-1.pb`` and ``.json``.
    head : str
        "mtg_jamendo_instrument", "mtg_jamendo_genre", "mtg_jamendo_moodtheme" or another one that
        ends in independent probabilities.

    Raises
    ------
    Unavailable
        The package or a file is missing; it says where that is to be had.
    ValueError
        A file is not what Essentia publishes.

    References
    ----------
    Alonso-Jiménez et al. (2020), TensorFlow audio models in Essentia, ICASSP (arXiv 2003.07393).
    """

    def __init__(self, folder: str | Path, head: str = "mtg_jamendo_instrument") -> None:
        try:
            from essentia.standard import TensorflowPredict2D, TensorflowPredictEffnetDiscogs
        except ImportError:
            raise Unavailable(
                "Essentia's taggers need a package of their own: pip install essentia-tensorflow."
            ) from None
        name = f"classification-heads/{head}/{head}-discogs-effnet-1"
        wanted = [EMBEDDING, f"{name}.pb", f"{name}.json"]
        files = [Path(folder) / Path(file).name for file in wanted]
        for file, address in zip(files, wanted, strict=True):
            if not file.is_file():
                raise Unavailable(
                    f"There is no file {file}: fetch it from {ESSENTIA_MODELS}/{address}."
                )
        try:
            classes = json.loads(files[2].read_text(encoding="utf-8"))["classes"]
            self.tags = _distinct(str(label).replace("---", " ") for label in classes)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{files[2]} does not list classes: fetch it again.") from None
        try:
            self._embed = TensorflowPredictEffnetDiscogs(
                graphFilename=str(files[0]), output="PartitionedCall:1"
            )
            self._head = TensorflowPredict2D(graphFilename=str(files[1]))
        except RuntimeError as error:
            raise ValueError(f"Essentia cannot read the models in {folder}: {error}") from None
        self.name = f"tagger: {clean(head)}"
        digest = "".join(runs.sha256(file) for file in files)
        self.fingerprint = hashlib.sha256(digest.encode()).hexdigest()[:16]

    def probabilities(self, sounds: Sequence[Example]) -> np.ndarray:
        """How probable each tag is in each sound, on average over it: (sounds, tags) in [0, 1].

        Raises
        ------
        ValueError
            A sound is empty or too short, or holds NaN; or the head and its list of classes do not
            belong together.
        """
        rows = []
        for sound in sounds:
            audio = heard(sound, ESSENTIA_RATE)
            # A patch is 2 s: what is shorter is repeated.
            audio = np.tile(audio, math.ceil(3 * ESSENTIA_RATE / len(audio)))
            said = np.asarray(self._head(self._embed(audio)))
            if said.ndim != 2 or said.shape[1] != len(self.tags):
                raise ValueError(f"{self.name} gives {said.shape} numbers for {len(self.tags)} "
                                 "tags: its .pb and .json do not belong together.")  # fmt: skip
            rows.append(said.mean(0))
        return _finite(np.array(rows).reshape(-1, len(self.tags)), self.name)


# -- reading from the hub or a folder --------------------------------------------------------------

CONFIG = "config.json"
WEIGHTS = (".safetensors", ".bin", ".json")


def identify(
    name: str | Path, kinds: Iterable[str], revision: str | None = None
) -> tuple[str, str]:
    """Check that a name is a model of the wanted kind, before any of its weights are read.

    Parameters
    ----------
    name : str or Path
        On the hub, or a folder.
    kinds : iterable of str
        ``model_type`` in ``config.json``, as transformers writes it.
    revision : str, optional

    Returns
    -------
    kind : str
    fingerprint : str
        The hub's revision, or 16 digits of a SHA-256 over the folder's files.

    Raises
    ------
    Unavailable, ValueError
        See `TransformersCLAP`.
    """
    local = os.path.isdir(name)
    with _in_words(name):
        from huggingface_hub import hf_hub_download

        at = Path(name, CONFIG) if local else hf_hub_download(name, CONFIG, revision=revision)
        settings = json.loads(Path(at).read_text(encoding="utf-8"))
        kind = settings.get("model_type")
    if kind not in kinds:
        raise ValueError(f"{name} is a model of the kind {kind!r}: {' or '.join(map(repr, kinds))} "
                         "was expected.")  # fmt: skip
    if not local:
        return kind, Path(at).parent.name  # the cache names its folders by revision
    files = sorted(path for path in Path(name).iterdir() if path.suffix in WEIGHTS)
    digest = "".join(f"{path.name} {runs.sha256(path)} " for path in files)
    return kind, hashlib.sha256(digest.encode()).hexdigest()[:16]


def read(name: str | Path, kind: str, revision: str | None = None, **settings: Any) -> Any:
    """Read a class of transformers by its name; of a model, every weight is there.

    Raises
    ------
    Unavailable, ValueError
        See `TransformersCLAP`.
    """
    with _in_words(name):
        import transformers

        wanted = getattr(transformers, kind)
        if not issubclass(wanted, transformers.PreTrainedModel):
            return wanted.from_pretrained(name, revision=revision)
        before = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()  # what it would print is raised below
        try:
            model, info = wanted.from_pretrained(
                name, revision=revision, output_loading_info=True, ignore_mismatched_sizes=True,
                **settings,
            )  # fmt: skip
        finally:
            transformers.utils.logging.set_verbosity(before)
    other = [lost for lost, *_ in info["mismatched_keys"]]
    lost = sorted([*info["missing_keys"], *other])
    if lost:
        raise ValueError(
            f"{name} lacks {len(lost)} weights of {kind}, or has them in other sizes than its "
            f"{CONFIG} says, such as {lost[0]}: fetch it again, or load what it is."
        )
    return model


def knows_words(tokenizer: Any, words: int, name: str) -> Any:
    """The tokenizer, if it knows most of a model's words: without its files it is made empty.

    Raises
    ------
    ValueError
        It knows few of them, or more.
    """
    if not words / 2 < len(tokenizer) <= words:
        raise ValueError(
            f"The tokenizer of {name} knows {len(tokenizer):,} words and its model {words:,}: its "
            "files (tokenizer.json, or vocab.json and merges.txt) are missing or another model's."
        )
    return tokenizer


@contextlib.contextmanager
def _in_words(name: str | Path) -> Iterator[None]:
    """What transformers, the hub and safetensors raise while reading `name`, in one sentence."""
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    import musae_utils.models.compat  # noqa: F401  (transformers imports torchaudio)

    local = os.path.isdir(name)
    looks_local = isinstance(name, Path) or str(name).startswith((".", "/", "~"))
    if not local and looks_local:
        raise ValueError(f"There is no folder {name}.")
    try:
        yield
    except (pickle.UnpicklingError, SafetensorError, EOFError):
        raise ValueError(
            f"The weights of {name} are damaged, or hold more than weights and would run code; "
            "nothing of them was run: fetch them again."
        ) from None
    except (OSError, HfHubHTTPError, ValueError, RuntimeError, TypeError, KeyError,
            AttributeError, ImportError) as error:  # fmt: skip
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"The disk is full: {name} was not fetched.") from None
        if isinstance(error, OSError | HfHubHTTPError) and not local:
            raise Unavailable(
                f"{name} is not in the Hugging Face cache and could not be fetched: go online once "
                f"and run `hf download {name}`. ({_first_line(error)})"
            ) from None
        raise ValueError(f"{name} cannot be read: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {clean(lines[0], 300)}" if lines else type(error).__name__


# -- sounds ----------------------------------------------------------------------------------------


def heard(sound: Example, rate: int) -> np.ndarray:
    """A sound at a model's sample rate: float32 (n,).

    Raises
    ------
    ValueError
        It is not mono, lasts less than 0.05 s, or holds values that are not numbers.
    """
    audio = np.asarray(sound.audio, np.float32)
    if audio.ndim != 1 or len(audio) < SHORTEST * sound.sample_rate:
        raise ValueError(
            f"{sound.name} has a sound of shape {audio.shape} at {sound.sample_rate} Hz: mono "
            f"sound of at least {SHORTEST} s was expected."
        )
    if not np.isfinite(audio).all():
        raise ValueError(f"{sound.name} holds values that are not numbers (NaN or infinite).")
    if sound.sample_rate != rate:
        audio = librosa.resample(audio, orig_sr=sound.sample_rate, target_sr=rate)
    return audio


def averaged(
    sounds: Sequence[Example],
    rate: int,
    seconds: float,
    said: Callable[[list[np.ndarray]], np.ndarray],
) -> np.ndarray:
    """What a model says of sounds, averaged over pieces of at most `seconds`.

    Parameters
    ----------
    sounds : sequence of Example
    rate : int
        Hz, of the model.
    seconds : float
        That it hears at once.
    said : callable
        From a list of n arrays to an array of shape (n, e).

    Returns
    -------
    array of shape (sounds, e)
    """
    size, pieces, of = round(seconds * rate), [], []
    if not len(sounds):
        return said([np.zeros(size, np.float32)])[:0]
    for i, sound in enumerate(sounds):
        audio = heard(sound, rate)
        n = math.ceil(len(audio) / size)
        starts = np.linspace(0, max(len(audio) - size, 0), n).round().astype(int)
        pieces += [audio[start : start + size] for start in starts]
        of += [i] * n
    rows = np.concatenate([said(pieces[i : i + ROWS]) for i in range(0, len(pieces), ROWS)])
    return np.stack([rows[np.array(of) == i].mean(0) for i in range(len(sounds))])


def _finite(rows: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} gave numbers that are not finite: its weights are damaged.")
    return rows


def _unit(rows: np.ndarray, name: str) -> np.ndarray:
    rows = _finite(rows, name)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _distinct(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels as plain text; one that was given twice is numbered."""
    tags: list[str] = []
    for label in map(clean, labels):
        tags.append(label if label not in tags else f"{label} ({tags.count(label) + 1})")
    return tuple(tags)
