"""Asking a multimodal language model what active examples share and silent ones lack.

One protocol, OpenAI's chat completions with ``input_audio`` parts, reaches OpenAI, Gemini (through
its compatible endpoint) and servers of one's own; it is spoken here over httpx. The answer is JSON
that pydantic validates; an answer that is something else is asked for once more, then counts as an
abstention, as a refusal does.

Money
-----
Nothing is spent before `MultimodalLLM.confirm` was answered with yes, or a budget was given. Every
paid answer is on the disk before it is read, so that a run that is killed pays for none twice (but
for one that was on its way). Prices are the user's to give: they change, and are not known here.

Keys
----
A key is read from an environment variable, sent in a header to the one address (https, or this
machine), and taken out of whatever comes back before it is raised, printed or stored.

Met in notebook 08.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
import tenacity
from pydantic import BaseModel, SecretStr, ValidationError

from musae_utils.labels.examples import Example, Examples, Half
from musae_utils.labels.label import Label, Unavailable, abstain
from musae_utils.runs import Run, load_json

#: Address and environment variable of the key.
SERVICES = {
    "gemini": ("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
}
ATTEMPTS = 5  # of a request that times out, or that the server is too busy for
READINGS = 2  # paid answers that are asked for, if the first is not what was asked
CLIPS = 5  # active and silent examples sent, of each
ANSWER = 2000  # tokens of an answer, at most; a model that thinks first counts its thoughts
AUDIO = 32  # tokens a second of sound, for the estimate: the most that Gemini was said to count
LOOPBACK = ("127.0.0.1", "::1", "localhost")

ASKED = """\
One unit inside a music model reacts to some music and not to other music. You hear {n} clips in \
which it is active, A1 to A{n}, and then {n} clips in which it is silent, B1 to B{n}. Say what the \
A clips have in common that the B clips lack: an instrument, a rhythm, a harmony, a register, a \
way of playing, a texture, a style, anything that can be heard. If nothing tells A from B, \
abstain: an honest abstention is worth more than a guess.

Answer with one JSON object and nothing else:
{{"abstain": false, "label": "at most eight words", "evidence": "one sentence on what you heard in \
which clips"}}"""


class Answer(BaseModel):
    """What the model is asked to return."""

    abstain: bool = False
    label: str | None = ""
    evidence: str | None = ""


class Estimate(NamedTuple):
    """What naming will cost at most, if no answer has to be asked for twice.

    Attributes
    ----------
    calls, cached : int
        Requests to make, and those already paid for.
    seconds : float
        Of sound to send.
    dollars : float
    """

    calls: int
    cached: int
    seconds: float
    dollars: float

    def __str__(self) -> str:
        return (
            f"{self.calls} requests with {self.seconds / 60:.1f} minutes of sound, at most "
            f"${self.dollars:.2f} ({self.cached} answers are paid for already)"
        )


class _Busy(Exception):
    """Worth another attempt, after so many seconds if the server says."""

    def __init__(self, said: str, after: float | None = None) -> None:
        super().__init__(said)
        self.after = after


class MultimodalLLM:
    """A labeler that plays the examples to a multimodal language model.

    Parameters
    ----------
    model : str
        As the service calls it.
    folder : str or Path
        A run folder for the answers: the cache, and the account of what was spent.
    price : (float, float)
        US dollars for a million tokens in and out, from the service's price list.
    service : str
        "gemini", "openai", or the address of another server that speaks the same protocol, to
        which ``/chat/completions`` is added.
    key_name : str, optional
        Environment variable of the key, if not the service's usual one. A server on this machine
        needs none.
    budget : float
        US dollars that may be spent into this folder, over all its sessions. 0 spends nothing until
        `confirm`.
    per_minute : float
        Requests a minute, at most.
    timeout : float
        Seconds to wait for an answer.

    Attributes
    ----------
    name : str
        ``"llm: <model>"``.
    spent : float
        US dollars, over all sessions of the folder, by the token counts that the service reported.

    Raises
    ------
    ValueError
        The address would carry a key in the clear, or prices and limits are not positive.
    RunError
        The folder holds another model's answers.

    Examples
    --------
    >>> llm = MultimodalLLM("gemini-2.5-flash", "runs/names", price=(1.0, 2.5))  # doctest: +SKIP
    >>> llm.confirm(chosen) and llm.label(chosen[0].finding)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str,
        folder: str | Path,
        price: tuple[float, float],
        service: str = "gemini",
        key_name: str | None = None,
        budget: float = 0.0,
        per_minute: float = 30.0,
        timeout: float = 120.0,
    ) -> None:
        url, usual = SERVICES.get(service, (service, "LLM_API_KEY"))
        parts = urlsplit(url)
        self._local = parts.hostname in LOOPBACK
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(
                f"The service is one of {', '.join(SERVICES)} or the address of a server, "
                "such as https://example.org/v1, without a user name or key in it."
            )
        if parts.scheme == "http" and not self._local:
            raise ValueError(f"http://{parts.hostname} would carry a key in the clear: use https.")
        paid = len(price) == 2 and all(0 <= dollars < float("inf") for dollars in price)
        if not paid or not per_minute > 0 or not timeout > 0 or not budget >= 0:
            raise ValueError(
                "price is two finite numbers, for a million tokens in and out; prices and budget "
                "are not negative, per_minute and timeout positive."
            )
        self.model, self.url, self.price, self.budget = model, url.rstrip("/"), price, budget
        self.name = f"llm: {model}"
        self._key_name = key_name or usual
        self._gap, self._last, self._timeout = 60 / per_minute, -float("inf"), timeout
        self._sleep: Callable[[float], None] = time.sleep
        config = {"kind": "answers", "model": model, "service": self.url}
        self._run = Run(folder, config)
        paid = sorted(self._run.folder.glob("answer-*.json"))
        self.spent = float(sum(load_json(path)["dollars"] for path in paid))

    # money

    def estimate(self, features: Iterable[Examples]) -> Estimate:
        """What naming these features will cost, at most."""
        calls, cached, seconds, dollars = 0, 0, 0.0, 0.0
        for half in (chosen.finding for chosen in features if not chosen.problem):
            sent = _sent(half)
            if self._run.has(_file(sent, 0)):
                cached += 1
                continue
            calls += 1
            seconds += sum(example.end - example.start for example in sent)
            dollars += self._most(sent)
        return Estimate(calls, cached, seconds, dollars)

    def confirm(self, features: Iterable[Examples], ask: Callable[[str], str] = input) -> bool:
        """Show the estimate and ask; a yes raises the budget by it and a half for second readings.

        Returns
        -------
        bool
            Whether the answer was yes, or nothing has to be paid.
        """
        estimate = self.estimate(features)
        if not estimate.calls:
            return True
        said = ask(f"{self.name}: {estimate}. Go on? [y/N] ")
        if yes := said.strip().lower() in ("y", "yes"):
            self.budget = max(self.budget, self.spent + 1.5 * estimate.dollars)
        return yes

    # naming

    def label(self, half: Half) -> Label:
        """See `Labeler`.

        Raises
        ------
        Unavailable
            No key or a wrong one, a server that cannot be reached or stays busy, a request that it
            does not accept, or the budget does not suffice.
        """
        sent = _sent(half)
        return _label(half, self.name, lambda reading: self._reply(sent, reading))

    def close(self) -> None:
        """Let another process use the folder."""
        self._run.close()

    def __enter__(self) -> MultimodalLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MultimodalLLM({self.model!r}, spent ${self.spent:.4f} of ${self.budget:.2f})"

    # inside

    def _most(self, sent: Sequence[Example]) -> float:
        seconds = sum(example.end - example.start for example in sent)
        tokens = len(ASKED) / 3 + 10 * len(sent) + AUDIO * seconds
        return (tokens * self.price[0] + ANSWER * self.price[1]) / 1e6

    def _reply(self, sent: Sequence[Example], reading: int) -> dict[str, Any]:
        """What the model said: from the disk, or paid for and put there."""
        name = _file(sent, reading)
        if self._run.has(name):
            return json.loads(self._run.path(name).read_text(encoding="utf-8"))
        key = self._key()
        if self.spent + self._most(sent) > self.budget:
            raise Unavailable(
                f"${self.spent:.2f} of ${self.budget:.2f} are spent, and the next answer may cost "
                f"${self._most(sent):.2f}: call confirm, or give a larger budget."
            )
        reply = _read(self._post(sent, key))
        reply["text"] = _without(reply["text"], key)
        used = reply["tokens"]  # where none are reported, the most that it may have cost is counted
        priced = (used[0] * self.price[0] + used[1] * self.price[1]) / 1e6
        reply["dollars"] = priced if any(used) else self._most(sent)
        self._run.save(name, json.dumps(reply))  # ASCII: a lone surrogate has no UTF-8
        self.spent += reply["dollars"]
        return reply

    def _key(self) -> SecretStr:
        key = os.environ.get(self._key_name, "").strip()
        if not key and not self._local:
            raise Unavailable(f"No key: set the environment variable {self._key_name}.")
        if not re.fullmatch(r"[!-~]*", key):
            raise Unavailable(
                f"What {self._key_name} holds is no key: it has spaces or letters that none has."
            )
        return SecretStr(key)

    def _post(self, sent: Sequence[Example], key: SecretStr) -> dict[str, Any]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Busy),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=_wait,
            sleep=lambda seconds: self._sleep(seconds),
        )
        body, failed = {"model": self.model, "messages": _messages(sent), "max_tokens": ANSWER}, ""
        try:
            return retrying(self._once, body, key)
        except tenacity.RetryError as error:
            failed = str(error.last_attempt.exception())
        # Raised out here, so that no exception that knows the request's header hangs on to it.
        raise Unavailable(f"{self.url} did not answer in {ATTEMPTS} attempts: {failed}.")

    def _once(self, body: dict, key: SecretStr) -> dict[str, Any]:
        wait = self._last + self._gap - time.monotonic()
        if wait > 0:
            self._sleep(wait)
        self._last = time.monotonic()
        failed = ""
        try:
            reply = httpx.post(
                f"{self.url}/chat/completions", json=body, headers=_headers(key),
                timeout=self._timeout, trust_env=not self._local,
            )  # fmt: skip
        except httpx.TimeoutException:
            failed = f"no answer within {self._timeout:g} s"
        except httpx.HTTPError as error:
            failed = f"{type(error).__name__}, {error}"
        if failed:
            raise _Busy(_without(failed, key))
        said = _shortly(_without(reply.text, key))
        if reply.status_code in (401, 403):
            raise Unavailable(f"The key in {self._key_name} was refused ({reply.status_code}).")
        if reply.status_code in (408, 409, 429) or reply.status_code >= 500:
            raise _Busy(f"status {reply.status_code}, {said}", _after(reply))
        if reply.status_code != 200:
            raise Unavailable(f"{self.url} answered with {reply.status_code}: {said}")
        try:
            return reply.json()
        except (ValueError, RecursionError):
            pass
        raise _Busy(f"an answer that is not JSON, {said}")


def _headers(key: SecretStr) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _without(text: str, key: SecretStr) -> str:
    """The text without the key, wherever it stands."""
    return text.replace(key.get_secret_value(), "(key)") if key else text


def _sent(half: Half) -> list[Example]:
    n = min(CLIPS, len(half.active), len(half.silent))
    return [*half.active[:n], *half.silent[:n]]


def _file(sent: Sequence[Example], reading: int) -> str:
    """Name of the answer to a question: the same words and sounds give the same name."""
    digest = hashlib.sha256(ASKED.encode())
    for example in sent:
        digest.update(f"{example.sample_rate} {len(example.audio)}".encode())
        digest.update(np.ascontiguousarray(example.audio).tobytes())
    return f"answer-{digest.hexdigest()[:24]}-{reading}.json"


def _label(half: Half, method: str, replied: Callable[[int], dict[str, Any]]) -> Label:
    """What `READINGS` replies come to; the second is asked for if the first is no answer."""
    if not _sent(half):
        return abstain(half, method, "There are no active, or no silent, examples to compare.")
    paid, why = 0.0, ""
    for reading in range(READINGS):
        reply = replied(reading)
        paid += reply["dollars"]
        if reply["refused"]:
            return abstain(half, method, f"The model refused: {reply['text']}", paid)
        try:
            answer = _parsed(reply["text"])
        except ValueError:
            why = f"The answer was not what was asked for: {reply['text'] or 'it is empty'}"
            continue
        if answer.abstain or not (answer.label or "").strip():
            said = answer.evidence or "The model heard nothing that tells them apart."
            return abstain(half, method, said, paid)
        return Label(
            feature=half.feature, method=method, text=answer.label,
            evidence=answer.evidence or "", cost=paid,
        )  # fmt: skip
    return abstain(half, method, why, paid)


def _messages(sent: Sequence[Example]) -> list[dict]:
    from musae_utils.show.players import mp3

    n = len(sent) // 2
    parts: list[dict] = [{"type": "text", "text": ASKED.format(n=n)}]
    for i, example in enumerate(sent):
        data = base64.b64encode(mp3(example.audio, example.sample_rate)).decode()
        parts.append({"type": "text", "text": f"{'AB'[i >= n]}{i % n + 1}:"})
        parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}})
    return [{"role": "user", "content": parts}]


def _read(reply: Any) -> dict[str, Any]:
    """Text, whether it is a refusal, and tokens in and out, of a chat completion; never raises.

    It was paid for, so whatever it holds is kept, and is for `_parsed` to make sense of.
    """
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        refused = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
        text = message.get("refusal") or message.get("content") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        text, refused = "", False
    usage = reply.get("usage") if isinstance(reply, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    counts = [count if isinstance(count, int) and count >= 0 else 0 for count in counts]
    return {"text": _shortly(str(text), 1_000_000), "refused": refused, "tokens": counts}


def _parsed(text: str) -> Answer:
    """The JSON object of an answer, which may stand in a code fence.

    Raises
    ------
    ValueError
        There is none, or it is not an `Answer`.
    """
    try:
        return Answer.model_validate_json(text[text.find("{") : text.rfind("}") + 1])
    except ValidationError:
        raise ValueError("not an answer") from None


def _shortly(text: str, longest: int = 200) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def _after(reply: httpx.Response) -> float | None:
    said = reply.headers.get("retry-after", "")
    return min(float(said), 120.0) if said.isdigit() else None


def _wait(state: tenacity.RetryCallState) -> float:
    """As long as the server says; else a second, doubled each time, with some chance in it."""
    after = state.outcome.exception().after
    usual = tenacity.wait_exponential_jitter(initial=1, max=60)(state)
    return usual if after is None else max(after, usual)
