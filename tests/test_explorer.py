"""The feature explorer: its files, and what a reader with a browser, a keyboard or ears gets."""

import functools
import json
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from planted import OTHER, POINT, TopK, clip_of, store_of
from test_browser import AUDIT, WIDTHS, Quiet, browser, visit  # noqa: F401  (a fixture)

from musae_utils import features, runs
from musae_utils.features import FeatureAtlas
from musae_utils.show import explorer

TITLE = "Atlas <i>of</i> tests & tunes"
DRUM = 24  # the stand-in's feature that fires at drums


@pytest.fixture(scope="module")
def clips():
    fields = [dict(tonic=7 * (i % 2), mode=0, drums=bool(i // 2 % 2)) for i in range(24)]
    return [clip_of(seed, 6.0, **each) for seed, each in enumerate(fields)]


@pytest.fixture(scope="module")
def atlases(clips, tmp_path_factory):
    store = store_of(tmp_path_factory.mktemp("explorer") / "store", clips, (POINT, OTHER))
    found = features.survey([TopK(), TopK(point=OTHER)], store, examples=3)
    found[0].names[2] = "<script>alert('named')</script> hum"
    return found


@pytest.fixture(scope="module")
def site(atlases, clips, tmp_path_factory):
    return features.publish(atlases, tmp_path_factory.mktemp("site"), clips, TITLE).parent


def index_of(folder):
    text = (folder / "data" / "index.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r"musaeIndex\((.*)\);", text, re.DOTALL)[1])


# -- files


def test_the_site_needs_nobody_else_and_shares_its_sound(site, atlases):
    for file in site.rglob("*.*"):
        if file.suffix in (".html", ".js", ".css"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(src|href)=.?[\"']?(https?:)?//|fetch\(|import ", text), file
    sounds = list((site / "audio").glob("*.mp3"))
    used = {int(c) for atlas in atlases for c in atlas.examples.ravel() if c >= 0}
    assert {int(file.stem) for file in sounds} == used
    assert all(file.stat().st_size < 6 * 6000 for file in sounds)  # 40 kbit/s


def test_the_index_says_what_the_atlas_says(site, atlases):
    index = index_of(site)
    for layer, atlas in zip(index["layers"], atlases, strict=True):
        assert layer["ids"] == np.flatnonzero(atlas.fires).tolist()
        np.testing.assert_allclose(layer["density"], atlas.density[layer["ids"]], rtol=1e-2)
        kept = [character == "1" for character in layer["kept"]]
        np.testing.assert_array_equal(kept, atlas.kept()[layer["ids"]])
        table = atlas.to_frame()
        for f, follows in zip(layer["ids"], layer["follows"], strict=True):
            best = index["concepts"][follows[0]][0] if follows else ""
            assert best == table.loc[f, "concept"]
    names = {index["concepts"][row[0]][0]: row for row in index["best"]}
    assert names["drums: yes"][2] in (DRUM, DRUM + 1) and names["drums: yes"][3] == 1


def test_a_curve_survives_being_a_string(atlases):
    atlas = atlases[0]
    e = 0
    clip = atlas.examples[DRUM, e]
    n = atlas.clips[clip]["frames"]
    levels = atlas.curves[DRUM, e, :n]
    text = explorer._curve(levels, 2)
    assert '"' not in text and "\\" not in text and len(text) <= -(-n // 2)
    spelt = re.sub("!(.)", lambda run: "#" * (ord(run[1]) - 31), text)  # as feature.js does
    decoded = np.array([ord(c) - 35 for c in spelt.ljust(-(-n // 2), "#")]) * (255 / 56)
    highest = np.pad(levels, (0, n % 2)).reshape(-1, 2).max(1)
    np.testing.assert_allclose(decoded, highest, atol=255 / 56)
    np.testing.assert_array_equal(decoded > 0, highest > 0)
    rare = np.zeros(400, np.uint8)
    rare[[0, 30, 300]] = 255
    assert len(explorer._curve(rare, 2)) < 12
    held = np.array([0, 1, 1, 0, 0, 1], bool)
    assert explorer._runs(held, 2) == [[0.5, 1.5], [2.5, 3.0]]


def test_publishing_again_leaves_nothing_old_and_touches_no_other_folder(atlases, clips, tmp_path):
    folder = tmp_path / "site"
    features.publish(atlases, folder, clips)
    atlases[0].publish(folder)  # fewer layers, no sound
    assert not list((folder / "audio").glob("*")) and not list((folder / "data").glob("1-*"))
    assert "sound" not in index_of(folder)["clips"][0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(runs.RunError, match="holds something else"):
        atlases[0].publish(tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_what_cannot_be_shown_together_is_refused(atlases, tmp_path):
    with pytest.raises(ValueError, match="one atlas a layer"):
        features.publish([atlases[0], atlases[0]], tmp_path / "site")
    with pytest.raises(ValueError, match="one atlas a layer"):
        features.publish([], tmp_path / "site")
    foreign = FeatureAtlas(**{**vars(atlases[1]), "store": "another"})
    with pytest.raises(ValueError, match="different stores"):
        features.publish([atlases[0], foreign], tmp_path / "site")


# -- in a browser

slow = pytest.mark.slow


def opened(browser, folder, page="index.html", **settings):  # noqa: F811
    tab, wrong = visit(browser, folder.as_uri(), page, **settings)
    tab.wait_for_selector("html[data-ready]")
    return tab, wrong


def listed(tab):
    return tab.evaluate("[...document.querySelectorAll('#list b')].map((b) => +b.innerText)")


@slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_a_folder_and_fits(browser, site, width, scheme):  # noqa: F811
    settings = dict(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for page in ("index.html", f"index.html#layer-3/feature-{DRUM}"):
        tab, wrong = opened(browser, site, page, **settings)
        if "#" in page:
            tab.wait_for_selector("#feature figure")
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert tab.evaluate(wide) <= 0
        said = [line for line in tab.evaluate(AUDIT) if not line.startswith("link to nowhere")]
        assert not said and not wrong
        light = tab.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        )
        assert (light > 200) == (scheme == "light")
        tab.close()


@slow
def test_names_from_elsewhere_are_text(browser, site):  # noqa: F811
    tab, wrong = opened(browser, site, "index.html#layer-3/feature-2")
    tab.wait_for_selector("#feature figure")
    assert tab.locator("h1").inner_text() == TITLE
    assert "<script>alert('named')</script> hum" in tab.locator("#feature").inner_text()
    assert "<b>" in tab.locator("#feature figcaption b").first.inner_text()
    assert tab.locator("#feature script, #feature figcaption b b, h1 i").count() == 0
    tab.close()
    assert not wrong


@slow
def test_searching_filtering_and_sorting(browser, site, atlases):  # noqa: F811
    tab, wrong = opened(browser, site)
    first = atlases[0]
    count = lambda: tab.locator("#count").inner_text()  # noqa: E731
    frames = "() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))"
    settle = lambda: tab.evaluate(frames)  # noqa: E731  (the list is made in the next frame)
    total = sum(int(atlas.fires.sum()) for atlas in atlases)
    kept = sum(int(atlas.kept().sum()) for atlas in atlases)
    assert count() == f"{kept} of {total} features"
    tab.uncheck("#kept")
    settle()
    assert count() == f"{total} of {total} features"
    tab.fill("#search", "DRUM onset")
    settle()
    assert sorted(listed(tab)) == [DRUM, DRUM + 1]
    tab.fill("#search", str(DRUM))
    settle()
    assert listed(tab)[0] == DRUM
    tab.fill("#search", "no such thing")
    settle()
    assert "No feature fits" in count()
    tab.fill("#search", "")
    tab.select_option("#layer", "0")
    tab.select_option("#sort", "often")
    settle()
    order = np.argsort(-first.density[first.fires], kind="stable")
    assert listed(tab) == np.flatnonzero(first.fires)[order].tolist()
    tab.select_option("#low", "0.05")
    settle()
    assert set(listed(tab)) == set(np.flatnonzero(first.density >= 0.05))
    tab.select_option("#low", "0")
    tab.select_option("#concept", label="drums: yes")
    tab.select_option("#auc", "0.95")
    settle()
    assert listed(tab) == [DRUM]
    tab.close()
    assert not wrong


@slow
def test_links_lead_to_features_and_keys_to_everything(browser, site):  # noqa: F811
    tab, wrong = opened(browser, site)
    tab.focus("#search")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    second = tab.evaluate("document.activeElement.getAttribute('href')")
    assert second == tab.locator("#list a").nth(1).get_attribute("href")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#feature figure")
    assert tab.evaluate("document.activeElement.closest('#feature h2') !== null"), "focus follows"
    assert tab.evaluate("location.hash") == second
    number = second.split("-")[-1]
    assert f"Feature {number}" in tab.locator("#said").inner_text()  # read aloud
    assert f"Feature {number}" in tab.title()
    assert tab.locator("#list [aria-current]").count() == 1
    tab.click("#next")
    tab.wait_for_function("h => location.hash !== h", arg=second)
    tab.go_back()
    tab.wait_for_function("n => document.title.startsWith('Feature ' + n)", arg=number)
    relative = tab.locator(".relatives a").first
    target = relative.get_attribute("href")
    relative.click()
    tab.wait_for_function("h => location.hash === h", arg=target)
    tab.evaluate("location.hash = '#layer-3/feature-41'")  # never fires
    tab.wait_for_selector("#missing:not(:empty)")
    assert "never fires" in tab.locator("#missing").inner_text()
    tab.evaluate("location.hash = '#layer-1'")
    tab.wait_for_function("document.getElementById('layer').value === '1'")
    tab.close()
    assert not wrong


@slow
def test_sound_is_read_when_it_is_played_and_the_playhead_follows(browser, site):  # noqa: F811
    tab, wrong = opened(browser, site)
    asked = []
    tab.on("request", lambda r: asked.append(r.url.split("/")[-1].split("?")[0]))
    tab.evaluate(f"location.hash = '#layer-3/feature-{DRUM}'")
    tab.wait_for_selector("#feature figure")
    tab.wait_for_timeout(200)
    assert asked == ["3-0.js"], "one part, and no sound yet"
    curve = tab.locator("#feature .curve").first
    head = lambda: float(  # noqa: E731
        curve.locator(".head").evaluate("e => e.style.left").rstrip("%")
    )
    curve.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert head() == pytest.approx(100 * 2 / 6, abs=1)
    assert "2.0 s" in curve.get_attribute("aria-valuetext")
    tab.keyboard.press(" ")
    tab.wait_for_function(
        "[...document.querySelectorAll('audio')].some((a) => a.currentTime > 2.4)"
    )
    assert 100 * 2.3 / 6 < head() < 100 and asked[-1].endswith(".mp3")
    other = tab.locator("#feature .curve").nth(1)
    box = other.bounding_box()
    other.click(position={"x": box["width"] / 2, "y": 20})
    tab.keyboard.press(" ") if other.evaluate("e => e === document.activeElement") else other.press(
        " "
    )
    tab.wait_for_function("document.querySelectorAll('audio')[1].currentTime > 3.1")
    playing = "[...document.querySelectorAll('audio')].filter((a) => !a.paused).length"
    assert tab.evaluate(playing) == 1, "one sound at a time"
    sources = tab.evaluate("[...document.querySelectorAll('audio')].map((a) => a.src)")
    assert len(set(sources)) == len(sources) >= 5
    tab.evaluate("location.hash = ''")
    tab.wait_for_function("document.documentElement.dataset.view === 'home'")
    assert tab.evaluate(playing) == 0
    tab.close()
    assert not wrong


@slow
def test_a_static_host_serves_it_too(browser, site):  # noqa: F811
    handler = functools.partial(Quiet, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    tab, wrong = visit(browser, address, f"index.html#layer-3/feature-{DRUM}")
    tab.wait_for_selector("#feature figure")
    curve = tab.locator("#feature .curve").first
    curve.press("ArrowRight")
    curve.press(" ")
    tab.wait_for_function("document.querySelector('audio').currentTime > 1.2")
    tab.close()
    server.shutdown()
    assert not wrong


@slow
def test_the_map_opens_what_is_clicked(browser, site):  # noqa: F811
    tab, wrong = opened(browser, site, viewport={"width": 1440, "height": 900})
    tab.uncheck("#kept")
    tab.wait_for_timeout(400)  # the map is drawn when the list is
    index = index_of(site)["layers"][0]
    i = index["ids"].index(DRUM)
    canvas = tab.locator("#map")
    canvas.scroll_into_view_if_needed()
    size = canvas.bounding_box()["width"]
    at = {k: 8 + index[k][i] / 1000 * (size - 18) for k in ("x", "y")}
    canvas.click(position=at)
    tab.wait_for_selector("#feature figure")
    assert tab.evaluate("location.hash") == f"#layer-3/feature-{DRUM}"
    tab.close()
    assert not wrong


# -- in a notebook


@slow
def test_a_card_stands_alone(browser, atlases, clips, tmp_path):  # noqa: F811
    html = atlases[0].show(DRUM, clips).data + atlases[0].show(2).data
    assert "<script>alert" not in html
    (tmp_path / "cell.html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><body>{html}', encoding="utf-8"
    )
    tab, wrong = visit(browser, tmp_path.as_uri(), "cell.html")
    tab.wait_for_selector(".musae-feature figure")
    assert tab.locator(".musae-feature h2").all_inner_texts() == [
        f"Feature {DRUM} layer 3", "Feature 2 layer 3"
    ]  # fmt: skip
    assert tab.locator("audio").count() == 3, "the strongest clips are heard"
    curve = tab.locator(".curve").first
    curve.press("End")
    assert "6.0 s" in curve.get_attribute("aria-valuetext")
    assert tab.locator(".curve[role=img]").count() >= 3, "without sound they are pictures"
    tab.close()
    assert not wrong


def test_a_feature_that_never_fires_has_a_card_too(atlases, clips):
    dead = int(np.flatnonzero(~atlases[0].fires)[0])
    assert f"Feature {dead}" in atlases[0].show(dead, clips).data
    with pytest.raises(ValueError, match="no feature"):
        atlases[0].show(10_000)


def test_the_widget_searches_and_has_a_static_form(atlases, clips):
    browser = atlases[0].browse(clips)  # noqa: F811
    bundle = browser._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "musae-feature" in bundle["text/html"]
    (search, sort, kept), found, shown = browser.box.children[0].children, *browser.box.children[1:]
    assert len(found.options) == atlases[0].kept().sum()
    kept.value = False
    assert len(found.options) == atlases[0].fires.sum()
    search.value = "drum onset"
    assert [f for _, f in found.options] == [DRUM]
    found.value = DRUM  # found without being sought again
    assert "Feature 24" in str(shown.outputs)
    search.value, sort.value = "", "density"
    density = [atlases[0].density[f] for _, f in found.options]
    assert density == sorted(density, reverse=True)


def test_a_published_page_shows_the_static_form():
    config = yaml.safe_load((Path(__file__).parents[1] / "_config.yml").read_text())
    never = ["html", "application/vnd.jupyter.widget-view+json", None]
    assert never in config["sphinx"]["config"]["nb_mime_priority_overrides"]


def test_recordings_have_an_explorer_without_concepts(tmp_path):
    clips = [clip_of(seed, known=False) for seed in range(4)]
    atlas = FeatureAtlas.of(TopK(), store_of(tmp_path / "store", clips), examples=2)
    folder = atlas.publish(tmp_path / "site", clips).parent
    index = index_of(folder)
    assert index["concepts"] == index["best"] == [] and len(index["layers"][0]["ids"]) > 5
    assert "Feature 3" in atlas.show(3).data
