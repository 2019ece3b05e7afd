"""A server on this machine speaks the protocol, and everything that can go wrong with it."""

import base64
import io
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from made_examples import half, numbered, tone

from musae_utils.labels import (
    Descriptors,
    Examples,
    MultimodalLLM,
    Truth,
    Unavailable,
    name_features,
)
from musae_utils.labels.llm import ATTEMPTS, CLIPS
from musae_utils.runs import RunError

KEY = "sk-test-0123456789-secret"
GOOD = {"abstain": False, "label": "solo flute", "evidence": "A flute in A1 to A4."}
USED = {"prompt_tokens": 1000, "completion_tokens": 100}
PRICE = (1.0, 10.0)  # a millionth of a dollar a token in; ten a token out
PAID = 0.002


def said(content, **message):
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": "stop"}],
            "usage": USED}  # fmt: skip


class Server:
    """Gives its `script` in order (the last one for ever), and keeps what it was asked."""

    def __init__(self):
        self.script, self.asked, self.headers = [said(json.dumps(GOOD))], [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append((self.path, body))
                outer.headers.append(dict(self.headers))
                step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                status, reply, headers = step if isinstance(step, tuple) else (200, step, {})
                if status == "hang":
                    time.sleep(reply)
                    status, reply = 200, said(json.dumps(GOOD))
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    for name, value in {"content-length": len(data), **headers}.items():
                        self.send_header(name, str(value))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client is gone

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def ask(server, tmp_path, monkeypatch):
    """A client of the server that has a key and a budget, and does not really wait."""
    monkeypatch.setenv("LLM_API_KEY", KEY)
    made = []

    def make(**given):
        while made:
            made.pop().close()
        llm = MultimodalLLM(
            "audio-1", tmp_path / "answers",
            **{"price": PRICE, "service": server.url, "budget": 1.0, "per_minute": 6e6} | given,
        )  # fmt: skip
        llm.waits = []
        llm._sleep = llm.waits.append
        made.append(llm)
        return llm

    yield make
    while made:
        made.pop().close()


def sounds(feature=0, n=2):
    return numbered(feature, n).finding


# -- the protocol


def test_the_request_is_the_protocols_and_the_answer_a_label(ask, server):
    loud = [tone(440, 0.1), tone(550, 0.1)]
    label = ask().label(half(7, loud * 4, loud * 4))
    assert (label.feature, label.text, label.method) == (7, "solo flute", "llm: audio-1")
    assert label.evidence == GOOD["evidence"] and label.cost == pytest.approx(PAID)
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions" and body["model"] == "audio-1"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    (message,) = body["messages"]
    parts = message["content"]
    assert (
        message["role"] == "user" and parts[0]["type"] == "text" and "abstain" in parts[0]["text"]
    )
    names = [part["text"] for part in parts[1::2]]
    assert names == [f"{side}{i}:" for side in "AB" for i in range(1, CLIPS + 1)]
    for part in parts[2::2]:
        assert part["type"] == "input_audio" and part["input_audio"]["format"] == "mp3"
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
        assert rate == 16_000 and len(audio) >= 1600


@pytest.mark.parametrize(
    "content",
    [
        f"```json\n{json.dumps(GOOD)}\n```",
        f"Here you are: {json.dumps(GOOD)} I hope it helps.",
        json.dumps({**GOOD, "confidence": 0.9}),
    ],
)
def test_an_answer_in_a_wrapping_is_read(ask, content, server):
    server.script = [said(content)]
    assert ask().label(sounds()).text == "solo flute"


# -- answers that are none


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (said('{"label": "solo flu'), "not what was asked"),
        (said("I think it is a flute."), "not what was asked"),
        (said('{"label": ["a", "list"]}'), "not what was asked"),
        (said("{" * 5000), "not what was asked"),
        (said('{"label": "\\ud800"}'), "not what was asked"),
        (said(""), "it is empty"),
        (said(None), "it is empty"),
        ({"choices": []}, "it is empty"),
        ({"error": "none"}, "it is empty"),
        ([], "it is empty"),
        ({"choices": [{"message": 3}], "usage": "much"}, "it is empty"),
    ],
)
def test_malformed_answers_are_asked_for_once_more_and_then_abstain(ask, server, reply, why):
    server.script = [reply]
    llm = ask()
    label = llm.label(sounds())
    assert label.abstains and why in label.evidence and len(server.asked) == 2
    assert label.cost == pytest.approx(llm.spent) and llm.spent > 0
    assert ask().label(sounds()) == label and len(server.asked) == 2, "not paid for again"


def test_a_second_reading_that_is_right_counts(ask, server):
    server.script = [said("no json"), said(json.dumps(GOOD))]
    label = ask().label(sounds())
    assert label.text == "solo flute" and label.cost == pytest.approx(2 * PAID)


def test_refusals_and_abstentions_are_results(ask, server):
    server.script = [said(None, refusal="I cannot help with <b>that</b>.")]
    label = ask().label(sounds(0))
    assert label.abstains and label.evidence.startswith("The model refused: I cannot")
    filtered = said("")
    filtered["choices"][0]["finish_reason"] = "content_filter"
    server.script = [filtered]
    assert "refused" in ask().label(sounds(1)).evidence
    server.script = [said('{"abstain": true, "label": null, "evidence": "Nothing in common."}')]
    label = ask().label(sounds(2))
    assert label.abstains and label.evidence == "Nothing in common."
    server.script = [said('{"abstain": false, "label": " "}')]
    assert ask().label(sounds(3)).abstains
    assert len(server.asked) == 4


def test_hostile_text_is_kept_harmless(ask, server):
    texts = [
        "<script>alert(1)</script>",
        "# *x* [y](z)",
        "\u202eabc\u200f",
        "loud " * 10_000,
    ]
    for i, text in enumerate(texts):
        server.script = [said(json.dumps({**GOOD, "label": text, "evidence": text}))]
        label = ask().label(sounds(i))
        page = label._repr_html_()
        assert len(label.text) <= 120 and "<script" not in page and "\u202e" not in page
        assert "[y]" not in page and len(page) < 6000
        assert ask().label(sounds(i)) == label
    assert len(server.asked) == len(texts)


# -- a server in trouble


def test_a_busy_server_is_asked_again_later_and_later(ask, server):
    busy = (500, {"error": "overloaded"}, {})
    server.script = [busy, (429, b"", {"retry-after": 17}), (503, b"<html>", {}),
                     said(json.dumps(GOOD))]  # fmt: skip
    llm = ask()
    assert llm.label(sounds()).text == "solo flute"
    assert len(llm.waits) == 3 and llm.waits[1] >= 17
    assert llm.spent == pytest.approx(PAID), "what was not answered is not paid for"


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ((429, {"error": "slow down"}, {}), "429"),
        ((500, {"error": "no"}, {}), "500"),
        ((200, b"<html>gateway</html>", {}), "not JSON"),
        ((200, b"[" * 100_000, {}), "not JSON"),
        (("hang", 1.5, {}), "no answer within 0.2 s"),
    ],
)
def test_a_server_that_stays_in_trouble_is_given_up_on(ask, server, step, says):
    server.script = [step]
    llm = ask(timeout=0.2 if step[0] == "hang" else 60)
    with pytest.raises(Unavailable, match=says) as caught:
        llm.label(sounds())
    assert f"{ATTEMPTS} attempts" in str(caught.value) and len(server.asked) == ATTEMPTS
    assert llm.spent == 0
    server.script = [said(json.dumps(GOOD))]
    assert ask().label(sounds()).text == "solo flute", "no failure is remembered as an answer"


def test_no_server_at_all(ask):
    with pytest.raises(Unavailable, match="ConnectError"):
        ask(service="http://127.0.0.1:9/v1").label(sounds())


# -- keys


def everything(error):
    """All text that hangs on to an exception, and all that the package's frames would print."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [repr(f.f_locals) for f in frames if f.f_code.co_filename != __file__]
    assert len(ours) > 2 and error.__context__ is None
    return "".join([*traceback.format_exception(error), repr(error), *ours])


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ((401, {"error": f"Incorrect API key provided: {KEY}"}, {}), "was refused .401"),
        ((403, {"error": KEY}, {}), "was refused .403"),
        ((400, {"error": f"API key not valid: {KEY}"}, {}), "answered with 400"),
        ((302, KEY.encode(), {"location": "http://127.0.0.1:9/steal"}), "answered with 302"),
        ((500, {"error": KEY}, {}), "attempts"),
        ((200, KEY.encode(), {}), "attempts"),
    ],
)
def test_the_key_is_in_no_exception_and_on_no_disk(ask, server, tmp_path, capfd, step, says):
    server.script = [step]
    llm = ask()
    with pytest.raises(Unavailable, match=says) as caught:
        llm.label(sounds())
    assert KEY not in everything(caught.value) and KEY not in repr(llm) + repr(vars(llm))
    assert KEY not in "".join(capfd.readouterr())
    server.script = [said(json.dumps({**GOOD, "evidence": f"The key is {KEY}."}))]
    label = ask().label(sounds())
    assert label.evidence == "The key is (key)."
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_wrong_key_is_tried_once_and_the_other_methods_go_on(ask, server):
    server.script = [(401, b"", {})]
    features = [numbered(i) for i in range(3)]
    named = name_features([ask()], features, progress=False)
    assert named.labels == [] and "LLM_API_KEY was refused" in named.missing["llm: audio-1"]
    assert len(server.asked) == 1


def test_without_a_key_it_says_so_and_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with (
        MultimodalLLM("g", tmp_path / "a", PRICE, budget=9) as llm,
        pytest.raises(Unavailable, match="No key: set the environment variable GEMINI_API_KEY"),
    ):
        llm.label(sounds())
    monkeypatch.setenv("GEMINI_API_KEY", "two words ü")
    with MultimodalLLM("g", tmp_path / "a", PRICE, budget=9) as llm:
        with pytest.raises(Unavailable, match="GEMINI_API_KEY holds is no key") as caught:
            llm.label(sounds())
        assert "two words" not in str(caught.value)


def test_a_server_of_ones_own_needs_no_key(ask, server, monkeypatch):
    monkeypatch.delenv("LLM_API_KEY")
    assert ask().label(sounds()).text == "solo flute"
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("service", "says"),
    [
        ("http://example.org/v1", "in the clear"),
        ("https://key@example.org/v1", "without a user name or key"),
        ("openia", "one of gemini, openai or the address"),
        ("file:///etc/passwd", "one of gemini, openai or the address"),
    ],
)
def test_addresses_that_would_leak_or_lead_nowhere_are_refused(tmp_path, service, says):
    with pytest.raises(ValueError, match=says):
        MultimodalLLM("m", tmp_path, PRICE, service)
    assert not list(tmp_path.iterdir())


# -- money, the cache, and kills


NAN = float("nan")


@pytest.mark.parametrize(
    "given",
    [{"price": (NAN, 1)}, {"price": (1, NAN)}, {"price": (float("inf"), 1)}, {"price": (-1, 1)},
     {"price": (1,)}, {"budget": NAN}, {"budget": -1}, {"per_minute": 0}, {"timeout": NAN}],
)  # fmt: skip
def test_what_is_no_price_or_limit_would_hold_nothing_back(tmp_path, given):
    with pytest.raises(ValueError, match="price is two finite numbers"):
        MultimodalLLM("m", tmp_path / "answers", **{"price": PRICE} | given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["llm", Truth(), Descriptors()])
def test_without_examples_a_method_abstains_and_nothing_is_paid(ask, server, method):
    """A feature that never fires, always fires, or has no half to be named on."""
    method, some = ask() if method == "llm" else method, [tone(440, 0.5)]
    for active, silent in (([], []), (some, []), ([], some)):
        label = method.label(half(3, active, silent))
        assert label.abstains and label.evidence and label.feature == 3
    assert server.asked == []


def test_a_sound_that_is_none_is_not_paid_for(ask, server):
    good = [tone(440, 0.1)] * 3
    for bad in (np.full(1600, NAN), np.full(1600, np.inf), np.zeros((2, 800))):
        llm = ask()
        with pytest.raises(ValueError, match="finite numbers can be played"):
            llm.label(half(0, [bad, *good[1:]], good))
        assert server.asked == [] and llm.spent == 0
    assert ask().label(half(0, [np.zeros(1600), tone(440, 0.1)], good)).text == "solo flute"


def test_nothing_is_spent_before_a_yes(ask, server):
    features = [numbered(i) for i in range(3)]
    features.append(Examples(9, features[0].finding, features[0].scoring, 0.0, "never fires"))
    llm = ask(budget=0.0)
    with pytest.raises(Unavailable, match="call confirm, or give a larger budget"):
        llm.label(features[0].finding)
    estimate = llm.estimate(features)
    assert (estimate.calls, estimate.cached) == (3, 0)
    assert estimate.seconds == pytest.approx(3 * 2 * CLIPS * 0.05)
    shown = []
    assert not llm.confirm(features, lambda text: shown.append(text) or "") and llm.budget == 0
    assert "3 requests" in shown[0] and "$" in shown[0] and server.asked == []
    assert llm.confirm(features, lambda _: " Yes ")
    named = name_features([llm], features, progress=False)
    assert len(named.labels) == 4 and not named.missing
    assert llm.spent == pytest.approx(3 * PAID) and llm.spent <= estimate.dollars
    assert llm.confirm(features, lambda _: pytest.fail("nothing is to be paid"))


def test_the_budget_holds_over_sessions(ask, server):
    one = ask().estimate([numbered(0)]).dollars
    llm = ask(budget=one + 1.5 * PAID)
    for feature in (0, 1):
        llm.label(sounds(feature))
    for again in (llm, ask(budget=one + 1.5 * PAID)):
        assert again.spent == pytest.approx(2 * PAID)
        with pytest.raises(Unavailable, match=r"call confirm"):
            again.label(sounds(2))
        assert again.label(sounds(1)).text == "solo flute", "what is paid for is there"
    assert len(server.asked) == 2


def test_an_answer_without_a_bill_counts_as_the_most_it_may_have_cost(ask, server):
    reply = said(json.dumps(GOOD))
    del reply["usage"]
    server.script = [reply]
    llm = ask()
    llm.label(sounds())
    assert llm.spent == pytest.approx(llm._most(sounds().all)) and llm.spent > 0


def test_requests_keep_their_distance(ask):
    llm = ask(per_minute=30)
    for feature in range(3):
        llm.label(sounds(feature))
    assert len(llm.waits) == 2 and all(1 < wait <= 2 for wait in llm.waits)


def test_other_sounds_are_another_question_and_another_model_another_folder(ask, server):
    ask().label(sounds(0))
    ask().label(half(5, [e.audio for e in sounds(0).active], [e.audio for e in sounds(0).silent]))
    assert len(server.asked) == 1, "the same sounds are the same question, whatever they are called"
    ask().label(sounds(1))
    assert len(server.asked) == 2
    llm = ask()
    llm.close()
    with pytest.raises(RunError, match="model = 'audio-1', and now model = 'audio-2'"):
        MultimodalLLM("audio-2", llm._run.folder, PRICE, server.url)


def test_a_run_killed_half_way_goes_on_and_pays_for_no_label_twice(server, tmp_path, monkeypatch):
    monkeypatch.delenv("LLM_API_KEY", raising=False)
    features = [numbered(i) for i in range(4)]
    server.script = [said(json.dumps({**GOOD, "label": f"label {i}"})) for i in range(3)]
    server.script += [("hang", 60, {})]

    def work():
        with MultimodalLLM("m", tmp_path / "a", PRICE, server.url, budget=1, per_minute=6e6) as llm:
            name_features([llm], features, progress=False)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    deadline = time.monotonic() + 60
    while len(server.asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(server.asked) == 4, "three were answered, the fourth was on its way"

    server.script = [said(json.dumps({**GOOD, "label": "label 3"}))]
    with MultimodalLLM("m", tmp_path / "a", PRICE, server.url, budget=1, per_minute=6e6) as llm:
        assert llm.spent == pytest.approx(3 * PAID) and llm.estimate(features).cached == 3
        named = name_features([llm], features, progress=False)
        assert [label.text for label in named.labels] == [f"label {i}" for i in range(4)]
        assert len(server.asked) == 5 and llm.spent == pytest.approx(4 * PAID)


def test_a_damaged_answer_is_named(ask, tmp_path):
    ask().label(sounds())
    (path,) = (tmp_path / "answers").glob("answer-*.json")
    path.write_text('{"text": "other", "dollars": 0, "refused": false}')
    with pytest.raises(RunError, match=path.name):
        ask().label(sounds())
