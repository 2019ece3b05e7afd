"""Asking a multimodal language model on this machine: the same question, without a service.

The question and the form of the answer are `labels.llm`'s. The model decodes greedily, so the same
sounds give the same answer; every answer is kept in a run folder as soon as it is given, and the
model is loaded only when a question comes that the folder does not answer. Met in notebook 08.

References
----------
Chu et al. (2024), Qwen2-Audio technical report (arXiv 2407.10759).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musae_utils.labels.examples import Example, Half
from musae_utils.labels.label import Label, Unavailable, clean
from musae_utils.labels.llm import ASKED, _file, _label, _sent
from musae_utils.labels.pretrained import heard, identify, knows_words, read
from musae_utils.runs import Run

ANSWER = 300  # tokens of an answer, at most
LONGEST, SHORTEST = 30, 0.5  # seconds of a clip that are played; what is shorter gets silence
GAP = 1.0  # seconds of silence between clips in one recording

#: ``model_type`` of each kind, what transformers calls it, and whether it takes several sounds.
KINDS = {
    "qwen2_audio": ("Qwen2Audio", True),
    "audioflamingo3": ("AudioFlamingo3", False),
    "musicflamingo": ("MusicFlamingo", False),
}
AGAIN = "That is not the one JSON object that was asked for. Answer with it and nothing else."


class LocalLLM:
    """A labeler that plays the examples to a multimodal language model on this machine.

    Parameters
    ----------
    model : str or Path
        On the hub, or a folder that transformers saved: "Qwen/Qwen2-Audio-7B-Instruct" (17 GB),
        "nvidia/music-flamingo-2601-hf" or another of their kinds.
    folder : str or Path
        A run folder for the answers.
    revision : str, optional
        Of the hub.
    device : str, optional
        "cuda" where there is one. On a CPU an answer takes minutes.

    Attributes
    ----------
    name : str
        ``"llm: <model>"``.
    fingerprint : str

    Raises
    ------
    Unavailable
        The model is neither in the Hugging Face cache nor to be had from the network.
    ValueError
        The folder is missing, damaged, or holds another kind of model.
    RunError
        The run folder holds another model's answers.

    Examples
    --------
    >>> llm = LocalLLM("Qwen/Qwen2-Audio-7B-Instruct", "runs/qwen")  # doctest: +SKIP
    >>> llm.label(chosen.finding).text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path,
        folder: str | Path,
        revision: str | None = None,
        device: str | None = None,
    ) -> None:
        self._kind, self.fingerprint = identify(model, KINDS, revision)
        self._model, self._revision = model, revision
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        short = clean(Path(model).name)
        self.name = f"llm: {short}"
        self._run = Run(
            folder, {"kind": "answers", "model": short, "fingerprint": self.fingerprint}
        )

    def label(self, half: Half) -> Label:
        """See `Labeler`.

        Raises
        ------
        Unavailable
            The weights are not to be had, or do not fit on the GPU.
        ValueError
            They are damaged, or an example holds NaN or lasts less than 0.05 s.
        """
        sent = _sent(half)
        return _label(half, self.name, lambda reading: self._reply(sent, reading))

    def close(self) -> None:
        """Let another process use the folder."""
        self._run.close()

    def __enter__(self) -> LocalLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalLLM({self.name!r}, {self.fingerprint}, on {self._device})"

    def _reply(self, sent: Sequence[Example], reading: int) -> dict[str, Any]:
        """What the model said: from the disk, or asked and put there."""
        name = _file(sent, reading)
        if self._run.has(name):
            return json.loads(self._run.path(name).read_text(encoding="utf-8"))
        before = self._reply(sent, reading - 1)["text"] if reading else None
        try:
            text = self._ask(sent, before)
        except torch.OutOfMemoryError:
            raise Unavailable(f"{self._model} does not fit on the GPU beside the sound.") from None
        reply = {"text": text, "refused": False, "dollars": 0.0}
        self._run.save(name, json.dumps(reply))
        return reply

    @cached_property
    def _loaded(self) -> tuple[torch.nn.Module, Any]:
        called, _ = KINDS[self._kind]
        model = read(self._model, f"{called}ForConditionalGeneration", self._revision, dtype="auto")
        processor = read(self._model, f"{called}Processor", self._revision)
        knows_words(processor.tokenizer, model.config.text_config.vocab_size, self.name)
        return model.eval().to(self._device), processor

    @torch.inference_mode()
    def _ask(self, sent: Sequence[Example], before: str | None) -> str:
        model, processor = self._loaded
        rate = processor.feature_extractor.sampling_rate
        sounds = [heard(example, rate)[: LONGEST * rate] for example in sent]
        least = round(SHORTEST * rate)
        sounds = [np.pad(sound, (0, max(least - len(sound), 0))) for sound in sounds]
        talk = [{"role": "user", "content": _asked(sounds, rate, KINDS[self._kind][1])}]
        if before is not None:
            talk += [
                {"role": "assistant", "content": [{"type": "text", "text": before}]},
                {"role": "user", "content": [{"type": "text", "text": AGAIN}]},
            ]
        given = processor.apply_chat_template(
            talk, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self._device, model.dtype)
        said = model.generate(
            **given, max_new_tokens=ANSWER, do_sample=False, temperature=None, top_p=None,
            top_k=None,
        )  # fmt: skip
        new = said[:, given["input_ids"].shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0]


def _asked(sounds: list[np.ndarray], rate: int, several: bool) -> list[dict[str, Any]]:
    """The question with its sounds: each after its name, or in one recording with a list."""
    n = len(sounds) // 2
    names = [f"{'AB'[i >= n]}{i % n + 1}" for i in range(2 * n)]
    question = {"type": "text", "text": ASKED.format(n=n)}
    if several:
        parts = [question]
        for name, sound in zip(names, sounds, strict=True):
            parts += [{"type": "text", "text": f"{name}:"}, {"type": "audio", "audio": sound}]
        return parts
    gap = np.zeros(round(GAP * rate), np.float32)
    joined = np.concatenate([part for sound in sounds for part in (sound, gap)])
    starts = np.cumsum([0.0, *((len(sound) + len(gap)) / rate for sound in sounds[:-1])])
    order = ", ".join(f"{name} at {at:.1f} s" for name, at in zip(names, starts, strict=True))
    said = f"The clips follow one another in this recording: {order}."
    return [question, {"type": "text", "text": said}, {"type": "audio", "audio": joined}]
