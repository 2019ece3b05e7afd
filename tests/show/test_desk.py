"""The steering desk: as widgets, driven as a hand would, and as a page, by keyboard alone."""

import json
import re

import numpy as np
import pytest
import torch
from planted import clip_of
from test_show_in_browser import browser, opened, playing  # noqa: F401  (a fixture)
from test_steering import an_sae, tiny

from musae_utils import activations
from musae_utils.features import FeatureAtlas
from musae_utils.show import players
from musae_utils.show.desk import Desk
from musae_utils.steering import Knob, sweep

LABEL = "drums <script>alert('x')</script> & more"
SECONDS = 0.5


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    model = tiny()
    sae = an_sae(model)
    clips = [clip_of(seed, 5.0) for seed in range(3)]
    folder = tmp_path_factory.mktemp("desk") / "store"
    store = activations.harvest(model, clips, [1], folder, progress=False)
    return model, sae, FeatureAtlas.of(sae, store, examples=1)


def loud(samples, rate):
    return {"peak": np.abs(samples).max(), "rate": rate}


@pytest.fixture(scope="module")
def desk(parts):
    chosen = np.flatnonzero(parts[2].fires)[:2].tolist()
    features = {chosen[0]: LABEL, chosen[1]: ""}
    return Desk(*parts, features, ["piano", None], (0.5, 4.0), SECONDS, measured=loud)


def held(desk):
    text = re.search(
        r'<script type="application/json">(.*?)</script>', desk.static().data, re.DOTALL
    )
    return json.loads(text[1])


# -- the grid


def test_the_grid_is_what_a_sweep_plays(desk, parts):
    model, sae, atlas = parts
    feature = next(iter(desk.features))
    alone = sweep(model, "piano", [None, Knob(sae, feature, 4.0, peak=atlas)], SECONDS).codes
    played, rows, values = desk.grid
    assert torch.equal(played.codes[rows.index((0, None, 0.0))], alone[0])
    assert torch.equal(played.codes[rows.index((0, feature, 4.0))], alone[1])
    assert len(rows) == 2 * (1 + 2 * 2) and len(values) == len(rows)
    assert values[0]["peak"] == np.abs(played.audio[0].numpy()).max()


def test_the_page_finds_the_row_that_its_controls_name(desk):
    d = held(desk)
    rows, strengths = desk.grid.rows, [0.0, 0.5, 4.0]
    assert d["strengths"] == ["0", "0.5", "4"]
    for p in range(2):
        for f, feature in enumerate(desk.features):
            for s, strength in enumerate(strengths):
                wanted = (p, feature if strength else None, strength)
                assert rows[d["at"][p][f][s]] == wanted


def test_levels_undo_the_matching(desk):
    d = held(desk)
    played = desk.grid.played
    gains = np.array(players.matching_gains([(x, 16000) for x in played.audio.numpy()]))
    undone = gains + 20 * np.log10([sound["level"] for sound in d["sounds"]])
    assert np.ptp(undone) < 1e-6 and max(sound["level"] for sound in d["sounds"]) == 1


def test_labels_cannot_act_and_the_page_asks_nobody(desk):
    text = desk.static().data
    assert "<script>alert" not in text and "https://" not in text
    assert len(re.sub(r'"data":"[^"]*"', "", text)) < 40_000


def test_what_is_wrong_is_said_when_the_desk_is_made(parts):
    with pytest.raises(ValueError, match="needs a feature, a prompt and a strength"):
        Desk(*parts, {}, ["piano"])
    with pytest.raises(ValueError, match="needs a feature, a prompt and a strength"):
        Desk(*parts, {1: ""}, ["piano"], (0.0,))
    with pytest.raises(ValueError, match="there is no 9999"):
        Desk(*parts, {9999: ""}, ["piano"])


# -- the widgets


def test_the_button_plays_what_the_widgets_say(desk, parts):
    model, sae, atlas = parts
    w, feature = desk.widgets, list(desk.features)[1]
    w.feature.value, w.strength.value, w.prompt.value, w.seed.value = f"{feature}", 4.0, "organ", 3
    w.window.value = (0.2, 0.5)
    seen = []
    w.progress.observe(lambda change: seen.append(change["new"]), "value")
    w.play.click()
    assert w.said.value == "" and not w.play.disabled
    assert max(seen) == w.progress.max == 25 + model.n_codebooks - 1, "progress, step by step"
    [shown] = w.shown.outputs
    text = shown["data"]["text/html"]
    assert f"feature {feature}, strength 4" in text and "organ" in text and "peak" in text
    wanted = sweep(
        model, "organ", [None, Knob(sae, feature, 4.0, peak=atlas, window=(0.2, 0.5))], SECONDS, 3
    ).audio.numpy()
    expected = [f"{np.abs(samples).max():.3g}" for samples in wanted]
    cells = re.findall(r'data-label="[^"]*">([\d.]+)</td>', text)
    assert cells[:2] == expected
    assert not model.lm._forward_hooks, "nothing stays on the model"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"feature": "drums"}, "A feature is a number from 0 to"),
        ({"feature": "123456"}, "there is no 123456"),
        ({"seed": -1}, "seed is a whole number from 0 up"),
        ({"feature": "<b>1</b>"}, "&lt;b&gt;"),
    ],
)
def test_mistakes_are_answered_in_the_desk(desk, settings, said):
    w = desk.widgets
    w.feature.value, w.seed.value = str(next(iter(desk.features))), 0
    for name, value in settings.items():
        getattr(w, name).value = value
    w.play.click()
    assert said in w.said.value and "<b>1" not in w.said.value and not w.play.disabled
    assert not w.shown.outputs


def test_a_dead_feature_is_said_to_be_dead(desk, parts):
    dead = np.flatnonzero(~parts[2].fires)
    if not len(dead):
        pytest.skip("every feature of the stand-in fires")
    desk.widgets.feature.value = str(dead[0])
    desk.widgets.play.click()
    assert "never fires" in desk.widgets.said.value


def test_both_forms_travel_together(desk):
    bundle = desk._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "musae-desk" in bundle["text/html"]


# -- in a browser


@pytest.fixture(scope="module")
def file(desk, tmp_path_factory):
    place = tmp_path_factory.mktemp("page") / "page.html"
    place.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>'
        '<meta name="viewport" content="width=device-width"><body style="margin:1rem">'
        f"<main>{desk.static().data}{desk.static().data}</main>",
        encoding="utf-8",
    )
    return place


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_a_keyboard_alone_works_the_desk(browser, file, desk, width):  # noqa: F811
    d = held(desk)
    with opened(browser, file, width) as page:
        here = page.locator(".musae-desk").first
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        value = lambda column: here.locator(f"tbody td:nth-child({column})").first.inner_text()  # noqa: E731
        sound = lambda p, f, s: d["sounds"][d["at"][p][f][s]]  # noqa: E731
        assert value(2) == sound(0, 0, 0)["values"][0]
        assert value(3) == sound(0, 0, 1)["values"][0]
        for name in ("feature", "prompt", "strength"):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.dataset.is") == name
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("ArrowRight")
        slider = here.get_by_role("slider", name="Strength")
        assert slider.get_attribute("aria-valuetext") == "4"
        assert value(3) == sound(0, 0, 2)["values"][0]
        assert "Strength 4: peak" in here.get_by_role("status").inner_text()
        here.get_by_label("Feature").first.focus()
        page.keyboard.press("ArrowDown")
        here.get_by_label("Prompt").focus()
        page.keyboard.press("ArrowDown")
        assert value(2) == sound(1, 0, 0)["values"][0]
        assert value(3) == sound(1, 1, 2)["values"][0]
        slider.focus()
        page.keyboard.press("2")
        page.wait_for_timeout(150)
        assert playing(page) == [1]
        page.keyboard.press("1")
        page.wait_for_timeout(50)
        assert playing(page) == [0], "one sound at a time"
        here.get_by_label("Equally loud").focus()
        page.keyboard.press("Space")
        volume = here.locator("audio").nth(1).evaluate("a => a.volume")
        assert volume == pytest.approx(sound(1, 1, 2)["level"], abs=1e-6)


@pytest.mark.slow
def test_a_screen_reader_hears_what_is_chosen(browser, file):  # noqa: F811
    with opened(browser, file, 390) as page:
        here = page.locator(".musae-desk").first
        options = here.get_by_label("Feature").first.locator("option").all_inner_texts()
        assert "drums <script>alert('x')</script> & more" in options[0]
        assert here.get_by_role("group", name="Compare").locator("audio").count() == 2
        assert here.get_by_role("table", name="Measured").get_by_role("columnheader").count() == 2
        assert here.locator("audio").nth(1).get_attribute("aria-label").startswith("Feature ")
        second = page.locator(".musae-desk").nth(1)
        assert second.locator("tbody td").first.inner_text(), "two desks live on one page"
