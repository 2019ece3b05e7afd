"""A study whose listeners are simulated here: no figure of this file is of people."""

import base64
import io
import json
import re
import zlib

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_show_in_browser import browser, opened, playing  # noqa: F401  (a fixture)

from musae_utils import show
from musae_utils.runs import RunError
from musae_utils.show import listening
from musae_utils.show.listening import Trial

RATE, SECONDS = 16000, 0.5
CONDITIONS = ("steered", "untouched", "random")
NASTY = "<script>alert(1)</script> **bold** \u202e" + "x" * 50_000


def tone(hertz, level=0.1, seconds=SECONDS, rate=RATE):
    return level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def trials_of(n, label="drums"):
    """Trials of all kinds; a condition has its own pitch, level and length."""
    sounds = {c: tone(300 + 200 * i, 0.05 * (i + 1), SECONDS + 0.1 * i)
              for i, c in enumerate(CONDITIONS)}  # fmt: skip
    two = {c: sounds[c] for c in CONDITIONS[:2]}
    one = {"steered": sounds["steered"]}
    kinds = [("prefer", sounds), ("abx", two), ("rate", one)]
    return [
        Trial(kind, dict(reversed(heard.items())) if i % 2 else heard, label, f"item {i // 3}")
        for i, (kind, heard) in ((i, kinds[i % 3]) for i in range(n))
    ]


def made(folder, trials, **settings):
    """The page's text, what it holds, and the key."""
    settings = {"sample_rate": RATE, "seed": 1} | settings
    file = listening.make(trials, folder / "out" / "page.html", folder / "key.json", **settings)
    text = file.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="study"[^>]*>(.*?)</script>', text)
    return text, json.loads(found[1]), json.loads((folder / "key.json").read_text())


# -- the page


def test_nothing_on_the_page_tells_the_condition(tmp_path):
    text, study, key = made(tmp_path, trials_of(30))
    for word in (*CONDITIONS, "item 3"):
        assert word not in text
    assert sorted(CONDITIONS) == sorted({c for t in key["trials"].values()
                                         for c in t["sounds"].values()})  # fmt: skip
    sounds = {s["id"]: base64.b64decode(s["data"]) for t in study["trials"] for s in t["sounds"]}
    assert len({len(data) for data in sounds.values()}) == 1, "one size"
    assert len(set(sounds.values())) == len(sounds), "the same sound is never the same bytes"
    heard = [soundfile.read(io.BytesIO(data))[0] for data in sounds.values()]
    assert {len(samples) for samples in heard} == {len(heard[0])}
    assert np.ptp([show.loudness(samples, RATE) for samples in heard]) < 0.3
    first = [key["trials"][t["id"]]["sounds"][t["sounds"][0]["id"]] for t in study["trials"]]
    assert len({c for c, t in zip(first, study["trials"], strict=True)
                if t["kind"] == "prefer"}) > 1, "no condition always comes first"  # fmt: skip
    order = [key["trials"][t["id"]]["item"] for t in study["trials"]]
    assert order != sorted(order, key=lambda item: int(item.split()[1]))


def test_levels_stay_where_loudness_is_what_is_asked(tmp_path):
    pair = {"soft": tone(400, 0.02), "loud": tone(400, 0.2)}
    _, study, key = made(tmp_path, [Trial("prefer", pair, "soft")], match=False)
    [trial] = study["trials"]
    named = key["trials"][trial["id"]]["sounds"]
    levels = {
        named[s["id"]]: show.loudness(
            soundfile.read(io.BytesIO(base64.b64decode(s["data"])))[0], RATE
        )
        for s in trial["sounds"]
    }
    assert levels["loud"] - levels["soft"] == pytest.approx(20, abs=0.5)


def test_a_study_is_new_each_time_unless_its_seed_is_given(tmp_path):
    a, b = (made(tmp_path / name, trials_of(3), seed=None)[2] for name in "ab")
    assert a["study"] != b["study"] and not set(a["trials"]) & set(b["trials"])
    assert made(tmp_path / "c", trials_of(3)) == made(tmp_path / "d", trials_of(3))


@pytest.mark.parametrize("where", ["label", "title", "about"])
def test_text_stays_text(tmp_path, where):
    if where == "label":
        text, study, _ = made(tmp_path, trials_of(3, NASTY))
        assert all(len(t["label"]) <= 120 for t in study["trials"])
    else:
        text, _, _ = made(tmp_path, trials_of(3), **{where: NASTY})
    assert "<script>alert" not in text and "\u202e" not in text and len(text) < 400_000


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ([], "at least one"),
        ([Trial("guess", {"a": tone(300)}, "x")], "kind is one of abx, prefer, rate"),
        ([Trial("abx", {"a": tone(300)})], "takes 2 sounds, not 1"),
        ([Trial("prefer", dict(a=tone(300), b=tone(400)))], "asks about a label"),
        ([Trial("rate", {"a": np.zeros(RATE)}, "x")], "Trial 1, 'a': the sound is silent"),
        ([Trial("rate", {"a": tone(300, seconds=0.1)}, "x")], "0.10 s"),
        ([Trial("rate", {"a": tone(300) * np.nan}, "x")], "NaN"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, trials, said):
    with pytest.raises(ValueError, match=said):
        made(tmp_path, trials)


def test_sounds_of_two_rates_and_a_key_beside_the_page_are_refused(tmp_path, clip):
    other = type(clip)(tone(300, rate=8000), 8000, None, "", {}, "other")
    with pytest.raises(ValueError, match=r"8000, 16000.*can be heard"):
        made(tmp_path, [Trial("abx", {"a": clip, "b": other})])
    with pytest.raises(ValueError, match="put it into another folder"):
        listening.make(trials_of(1), tmp_path / "a.html", tmp_path / "key.json", sample_rate=RATE)


# -- the answers


def simulated(study, key, listener, choose, rate=lambda rng: 4, n=None):
    """Answers of a listener that does not exist."""
    rng, answers = np.random.default_rng(zlib.crc32(listener.encode())), []
    for trial in study["trials"][:n]:
        ids = rng.permutation([s["id"] for s in trial["sounds"]]).tolist()
        one = {"trial": trial["id"], "shown": ids, "seconds": 3.5, "at": "2026-01-01T00:00:00Z"}
        named = key["trials"][trial["id"]]["sounds"]
        if trial["kind"] == "rate":
            one["rating"] = int(rate(rng))
        else:
            if trial["kind"] == "abx":
                one["x"] = ids[int(rng.integers(2))]
            wanted = choose(rng, sorted(named.values()), named.get(one.get("x")))
            one["chosen"] = next(i for i in ids if named[i] == wanted)
        answers.append(one)
    return {
        "format": listening.ANSWERS, "study": key["study"], "listener": listener, "seed": 7,
        "began": "2026", "saved": "2026", "trials": len(study["trials"]), "answers": answers,
    }  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return made(tmp_path_factory.mktemp("study"), trials_of(60))[1:]


def honest(rng, conditions, x):
    """Prefers "steered" in two of three trials, and hears X three times out of four."""
    if x is not None:
        return x if rng.random() < 0.75 else next(c for c in conditions if c != x)
    return "steered" if rng.random() < 0.6 else str(rng.choice(conditions))


def test_the_papers_own_count_gives_the_papers_own_chi_squared(tmp_path):
    """66, 17 and 17 of 100: chi-squared 48.02, as S1 states it."""
    three = {c: tone(300 + 100 * i) for i, c in enumerate(CONDITIONS)}
    _, study, key = made(tmp_path, [Trial("prefer", three, "x", f"{i}") for i in range(100)])
    told = iter(["steered"] * 66 + ["untouched"] * 17 + ["random"] * 17)
    found = listening.analyse([simulated(study, key, "one", lambda *_: next(told))], key)
    assert found.wins["chi2"].iloc[0] == pytest.approx(48.02, abs=0.005)
    assert found.wins["chosen"].droplevel(0)["steered"] == 66
    duel = found.duels.loc[("random", "steered")]
    assert (duel["wins"], duel["losses"]) == (17, 66) and duel["p"] < 1e-6
    assert found.duels.loc[("random", "untouched")]["p"] == 1
    assert np.isnan(found.wins["by_listener"].iloc[0].low), "one listener has no interval"


def test_planted_preferences_are_found_and_chance_is_not(study):
    liking = listening.analyse([simulated(*study, f"l{i}", honest) for i in range(12)], study[1])
    share = liking.wins.droplevel(0).loc["steered", "by_listener"]
    assert share.low > 1 / 3 and liking.wins["p"].iloc[0] < 0.001
    assert (liking.duels.xs("steered", level="against")["adjusted"] < 0.01).all()
    abx = liking.abx.iloc[0]
    assert 0.6 < abx["by_listener"].low and abx["accuracy"] < 0.9 and abx["p"] < 0.001

    def guess(rng, conditions, x):
        return str(rng.choice(conditions))

    blind = listening.analyse([simulated(*study, f"l{i}", guess) for i in range(12)], study[1])
    assert blind.wins["p"].iloc[0] > 0.001 and blind.abx.iloc[0]["p"] > 0.001
    assert abs(blind.agreement["prefer"].value) < 0.2


def test_ratings_and_agreement_have_known_answers(study):
    same = [simulated(*study, f"l{i}", lambda *_: "steered", lambda rng: 4) for i in range(3)]
    for export in same:
        for i, one in enumerate(a for a in export["answers"] if "rating" in a):
            one["rating"] = 1 + i % 5
    found = listening.analyse(same, study[1])
    assert found.ratings.loc["steered", "mean"] == pytest.approx(3) and len(found.answers) == 180
    assert found.agreement["rate"].value == 1
    for export in same[1:]:
        for one in (a for a in export["answers"] if "rating" in a):
            one["rating"] = 6 - one["rating"]
    turned = listening.analyse(same, study[1])
    assert turned.agreement["rate"].value < 0.5
    assert turned.ratings.loc["steered", "mean"] == pytest.approx(3)


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(3)))
def test_the_order_of_the_files_does_not_matter(study, order):
    exports = [simulated(*study, f"l{i}", honest, n=12) for i in range(3)]
    shuffled = [exports[i] for i in order]
    one, other = (listening.analyse(some, study[1]).wins for some in (exports, shuffled))
    assert (one["chosen"] == other["chosen"]).all() and (one["p"] == other["p"]).all()


def test_files_that_cannot_be_used_are_named_all_at_once(study, tmp_path):
    good = simulated(*study, "good", honest)
    texts = {
        "cut.json": json.dumps(good)[:200],
        "foreign.json": '{"a": 1}',
        "other.json": json.dumps(good | {"study": "0" * 16}),
        "changed.json": json.dumps(good | {"answers": [good["answers"][0] | {"chosen": "nobody"}]}),
        "twice.json": json.dumps(good | {"answers": good["answers"][:1] * 2}),
        "ten.json": json.dumps(good | {"answers": [
            a | {"rating": 10} for a in good["answers"] if "rating" in a]}),
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RunError) as caught:
        listening.analyse([good, *(tmp_path / name for name in texts)], study[1])
    lines = str(caught.value).splitlines()
    assert len(lines) == len(texts)
    expected = ("cut off", "not answers to a listening study", "another page", "was changed",
                "twice", "less than or equal to 5")  # fmt: skip
    for line, name, words in zip(lines, texts, expected, strict=True):
        assert name in line and words in line
    with pytest.raises(RunError, match="not the key of a listening study"):
        listening.analyse([good], good)
    with pytest.raises(RunError, match="Nobody has answered"):
        listening.analyse([good | {"answers": []}], study[1])


def test_a_listener_who_comes_twice_is_noticed(study):
    whole = simulated(*study, "kim", honest)
    some = whole | {"answers": whole["answers"][:10]}
    found = listening.analyse([some, whole], study[1])
    assert len(found.answers) == 60 and "handed in two files" in found.notes[0]
    other = simulated(*study, "kim", lambda rng, c, x: c[0])
    with pytest.raises(RunError, match="two people with one code"):
        listening.analyse([whole, other], study[1])
    unfinished = listening.analyse([some], study[1])
    assert "answered 10 of 60" in unfinished.notes[0]


# -- in a browser


def answer(page, number):
    """One trial, with keys alone."""
    for letter in [b.inner_text()[5] for b in page.locator("#sounds button").all()]:
        page.keyboard.press(letter.lower())
        page.locator(f"#sounds button:has-text('Play {letter}') .heard:not(:empty)").wait_for()
    page.keyboard.press(str(number))
    page.keyboard.press("Enter")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_a_keyboard_alone_gets_through_and_the_file_can_be_analysed(
    browser, tmp_path, width  # noqa: F811
):  # fmt: skip
    _, _, key = made(tmp_path, trials_of(3, "a flute & <b>drums</b>")[1:], title="Ears")
    file = tmp_path / "out" / "page.html"
    with opened(browser, file, width) as page:
        fits = "document.documentElement.scrollWidth <= innerWidth"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "code"
        page.keyboard.type("Kim 7")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "question"
        assert page.locator("#where").inner_text().startswith("Practice") and page.evaluate(fits)
        page.keyboard.press("Enter")
        assert "First listen to A" in page.get_by_role("status").first.inner_text()
        page.keyboard.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid", "one sees where one is"
        page.keyboard.press("Space")
        page.wait_for_timeout(100)
        assert page.locator("#sounds button").first.get_attribute("aria-pressed") == "true"
        page.keyboard.press("Space")
        for _ in range(2):
            answer(page, 1)
        assert page.locator("#where").inner_text() == "Trial 1 of 2" and page.evaluate(fits)
        answer(page, 2)
        page.reload()
        assert page.locator("#so-far").inner_text().startswith("kim 7: 1 of 2")
        page.keyboard.press("Enter")  # the focus is on "Go on"
        assert page.locator("#where").inner_text() == "Trial 2 of 2"
        page.locator("#pause").press("Enter")
        page.locator("#resume").press("Enter")
        answer(page, 1)
        assert page.evaluate("document.activeElement.id") == "done"
        with page.expect_download() as waiting:
            page.locator("#save").press("Enter")
        name = waiting.value.suggested_filename
        waiting.value.save_as(tmp_path / name)
        assert page.evaluate(fits)
    assert name == f"answers-{key['study']}-kim-7.json"
    found = listening.analyse([tmp_path / name], tmp_path / "key.json")
    assert len(found.answers) == 2 and set(found.answers["listener"]) == {"kim 7"}
    assert found.answers["seconds"].between(0.3, 60).all() and not found.notes


AT_ONCE = """window.Audio = class extends EventTarget {
  constructor() { super(); Object.assign(this, { currentTime: 0, duration: 1, paused: true }); }
  play() { this.currentTime = 1; this.dispatchEvent(new Event("ended")); }
  pause() {}
};"""  # sounds that are over as soon as they begin


@pytest.mark.slow
def test_each_listener_gets_another_order_and_the_same_one_the_same(browser, tmp_path):  # noqa: F811
    two = dict(a=tone(300), b=tone(400))
    _, _, key = made(tmp_path, [Trial("prefer", two, f"label {i}") for i in range(8)])
    told = {}
    for visit, code in enumerate(["one", "two", "three", "one"]):
        with opened(browser, tmp_path / "out" / "page.html") as page:
            page.add_init_script(AT_ONCE)
            page.reload()
            page.fill("#code", code)
            page.keyboard.press("Enter")
            while not page.locator("#end").is_visible():
                for button in page.locator("#sounds button").all():
                    button.click()
                page.keyboard.press("1")
                page.keyboard.press("Enter")
            answers = json.loads(page.locator("#file").text_content())["answers"]
            told[visit] = [(row["trial"], row["shown"]) for row in answers]
    assert told[0] == told[3], "a code decides"
    orders = [tuple(trial for trial, _ in told[visit]) for visit in range(3)]
    assert len(set(orders)) == 3
    first = [key["trials"][trial]["sounds"][shown[0]] for visit in range(3)
             for trial, shown in told[visit]]  # fmt: skip
    assert 4 < first.count("a") < 20, "sides change"


@pytest.mark.slow
def test_screen_readers_find_their_way_and_labels_cannot_act(browser, tmp_path):  # noqa: F811
    made(tmp_path, trials_of(3, "\u05d7\u05dc\u05d9\u05dc " + NASTY), title="<i>Ears</i>")
    with opened(browser, tmp_path / "out" / "page.html", 390) as page:
        assert page.get_by_role("heading", name="<i>Ears</i>").is_visible()
        page.get_by_role("button", name="Begin").press("Enter")
        sounds = page.get_by_role("group", name="Sounds")
        assert sounds.get_by_role("button", name="Play A").count() == 1
        assert page.get_by_role("progressbar", name="Trials done").count() == 1
        assert page.get_by_role("radio").count() >= 2
        assert page.evaluate("document.querySelectorAll('main *').length") < 100
        page.locator("#keys").uncheck()  # keys can be switched off for those who speak their input
        page.keyboard.press("a")
        page.wait_for_timeout(100)
        assert playing(page) == []
