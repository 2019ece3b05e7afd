"""What only a browser can tell: sound plays, the playhead moves, keys work, nothing overflows."""

import os
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from musae_utils import show

pytestmark = pytest.mark.slow

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page_file(clip, tmp_path_factory):
    """Everything of the package on one page, with narrow margins as in the book."""
    tone = clip.audio
    parts = [
        show.player(clip, title="alone"),
        show.ab_table({"tone": {"one": tone, "two": tone / 2, "three": clip}}, 16000, "A table"),
        show.piano_roll(clip),
        show.piano_roll(clip, title="again"),
        show.choices("Pick", {"words": "just words", "sound": show.player(clip, title="inside")}),
        show.figure(show.delay_pattern(), alt="the delay pattern"),
        show.figure(show.compare_spectrograms({"a": clip, "b": clip}), alt="spectrograms"),
    ]
    body = "<hr>".join(part.data for part in parts)
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>'
        f'<meta name="viewport" content="width=device-width"><body style="margin:1rem">{body}'
    )
    return file


@contextmanager
def opened(browser, file, width=768, **context):
    """The page at that width; fails on a console error or a request to anywhere."""
    session = browser.new_context(viewport={"width": width, "height": 900}, **context)
    page, wrong = session.new_page(), []
    page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: r.url.startswith(("data:", "file:")) or wrong.append(r.url))
    page.goto(file.as_uri())
    try:
        yield page
        assert not wrong
    finally:
        session.close()


def playing(page):
    return page.evaluate(
        "[...document.querySelectorAll('audio')].flatMap((a, i) => a.paused ? [] : [i])"
    )


def now(roll):
    return roll.locator("audio").evaluate("a => a.currentTime")


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_the_page_fits_and_asks_nobody(browser, page_file, width):
    with opened(browser, page_file, width) as page:
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = page.locator("audio:visible").evaluate_all(
            "all => all.map(a => [a.getBoundingClientRect().width, a.error, a.ariaLabel])"
        )
        assert len(boxes) == 6
        for wide, error, name in boxes:
            assert wide >= 136 and error is None and name


def test_starting_one_sound_stops_the_other(browser, page_file):
    with opened(browser, page_file) as page:
        for i in (0, 2):
            page.locator("audio").nth(i).evaluate("a => a.play()")
            page.wait_for_timeout(100)
            assert playing(page) == [i]


def test_digits_switch_within_a_row_without_losing_the_place(browser, page_file):
    with opened(browser, page_file) as page:
        row = page.locator(".musae-ab audio")
        row.nth(0).focus()
        row.nth(0).evaluate("a => { a.currentTime = 3; return a.play() }")
        page.keyboard.press("3")
        page.wait_for_timeout(200)
        assert playing(page) == [3]
        assert 3 <= row.nth(2).evaluate("a => a.currentTime") < 4.5


def test_the_playhead_moves_with_the_sound_and_names_what_is_heard(browser, page_file):
    with opened(browser, page_file) as page:
        first, second = page.locator(".musae-roll").all()
        first.locator("audio").evaluate("a => { a.currentTime = 4.2; return a.play() }")
        page.wait_for_timeout(400)
        left = first.locator(".head").evaluate("h => parseFloat(h.style.left)")
        first.locator("audio").evaluate("a => a.pause()")
        assert 4.3 < left * 8 / 100 < 5.5
        text = first.locator(".now-text").inner_text()
        assert re.match(r"\d\.\d s · bar 3 beat [1-3] · section A · motif a2, transposed", text)
        assert "A dominant seventh" in text
        assert second.locator(".head").evaluate("h => parseFloat(h.style.left)") == 0


def test_click_and_keys_move_the_playhead(browser, page_file):
    with opened(browser, page_file) as page:
        roll = page.locator(".musae-roll").first
        tracks = roll.get_by_role("slider")
        box = tracks.bounding_box()
        tracks.click(position={"x": box["width"] * 0.5, "y": 60})
        assert now(roll) == pytest.approx(4, abs=0.1)
        for key, expected in {
            "ArrowRight": 5, "ArrowLeft": 4, "PageUp": 6, "PageDown": 4, "Home": 0, "End": 7.99,
        }.items():  # fmt: skip
            tracks.press(key)
            assert now(roll) == pytest.approx(expected, abs=0.1), key
        tracks.press("Home")
        assert tracks.get_attribute("aria-valuetext").startswith("0.0 seconds, bar 1 beat 1")
        assert tracks.get_attribute("aria-valuemax") == "8.0"
        tracks.press(" ")
        page.wait_for_timeout(100)
        assert len(playing(page)) == 1
        tracks.press(" ")
        assert playing(page) == []


def test_the_sound_starts_when_the_picture_says(browser, page_file, clip):
    with opened(browser, page_file) as page:
        samples = page.locator(".musae-roll audio").first.evaluate(
            """async (a) => {
              const bytes = Uint8Array.from(atob(a.src.split(",")[1]), (c) => c.charCodeAt(0));
              const decoder = new OfflineAudioContext(1, 1, 16000);
              const sound = await decoder.decodeAudioData(bytes.buffer);
              return [...sound.getChannelData(0)];
            }"""
        )
    # The clicks of the clip, sought after the decoder of the browser.
    loud = np.flatnonzero(np.abs(samples) > 0.4) / 16000
    clicks = loud[np.r_[True, np.diff(loud) > 0.5]]
    assert clicks == pytest.approx(np.arange(1, 8), abs=0.01)


def test_a_choice_shows_one_panel_by_keyboard_and_silences_the_hidden(browser, page_file):
    with opened(browser, page_file) as page:
        group = page.get_by_role("group", name="Pick")
        group.get_by_role("radio", name="words").focus()
        page.keyboard.press("ArrowRight")
        inside = group.locator("audio")
        assert inside.is_visible() and not group.get_by_text("just words").is_visible()
        inside.evaluate("a => a.play()")
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(100)
        assert group.get_by_text("just words").is_visible() and playing(page) == []


def test_without_javascript_the_picture_the_player_and_the_choices_remain(browser, page_file):
    with opened(browser, page_file, java_script_enabled=False) as page:
        roll = page.locator(".musae-roll").first
        assert roll.locator("svg .melody, path.melody").first.is_visible()
        assert roll.locator("audio").is_visible()
        assert not roll.locator(".head").is_visible()
        assert not page.get_by_text("Click to move").first.is_visible()
        page.get_by_text("sound", exact=True).click()
        assert page.get_by_label("inside").is_visible()


def test_a_screen_reader_finds_the_table(browser, page_file):
    for width in (390, 1440):  # stacked and not
        with opened(browser, page_file, width) as page:
            table = page.get_by_role("table", name="A table")
            assert table.get_by_role("rowheader", name="tone").count() == 1
            assert table.locator("tbody").get_by_role("cell").count() == 3
            assert table.get_by_role("columnheader").count() == 3


def test_a_late_roll_comes_alive(browser, page_file, clip):
    """A notebook inserts outputs long after the page was read, and may run scripts too early."""
    with opened(browser, page_file) as page:
        page.evaluate(
            """(markup) => {
              const box = document.createElement("div");
              box.innerHTML = markup;
              for (const old of box.querySelectorAll("script")) window.eval(old.textContent);
              setTimeout(() => document.body.append(box), 50);
            }""",
            show.piano_roll(clip, title="late").data,
        )
        page.wait_for_timeout(1200)
        assert page.get_by_role("slider", name="Position in late, in seconds").count() == 1
