import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from musae_utils import show
from musae_utils.show import page


def busy(points):
    fig = Figure()
    rng = np.random.default_rng(0)
    fig.subplots().scatter(*rng.normal(size=(2, points)), c=rng.random(points))
    return fig


def test_a_figure_takes_the_pages_ink_and_says_what_it_shows():
    markup = show.figure(show.delay_pattern(), alt='Diagonals "<&"', caption="a <b>").data
    assert '<svg role="img" aria-label="Diagonals &quot;&lt;&amp;&quot;"' in markup
    assert "currentColor" in markup and page.INK not in markup
    assert "a &lt;b&gt;</figcaption>" in markup
    # A style element of matplotlib's would reach every other picture of the page.
    assert markup.count("<style>") == 1 and "<metadata" not in markup


def test_ids_do_not_collide_and_still_lead_somewhere():
    one, two = (show.figure(show.delay_pattern(), alt="x").data for _ in range(2))
    ids = [set(re.findall(r'\bid="([^"]+)"', markup)) for markup in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', one))
    assert used and {a or b for a, b in used} <= ids[0]


def test_a_crowded_figure_becomes_a_small_png():
    from PIL import Image

    markup = show.figure(busy(20_000), alt="a cloud").data
    data = base64.b64decode(re.search(r"image/png;base64,([^\"]+)", markup)[1])
    assert len(data) <= page.MAX_PNG and '<img alt="a cloud"' in markup
    assert Image.open(io.BytesIO(data)).size[0] >= 350


def test_a_figure_in_foreign_colours_keeps_its_white_ground():
    fig = Figure()
    fig.subplots().plot([1, 2])
    assert "<img" in show.figure(fig, alt="a line").data


def test_a_figure_without_words_is_refused():
    with pytest.raises(ValueError, match="alt text"):
        show.figure(show.delay_pattern(), alt=" ")
    with pytest.raises(ValueError, match="alt="):
        show.choices("x", {"a": show.delay_pattern()})


def test_a_bare_figure_shows_itself():
    assert show.delay_pattern()._repr_png_().startswith(b"\x89PNG")


def test_choices_name_the_group_and_check_one():
    panels = {0: "zero <", "<one>": pd.DataFrame({"a": [1]}), 2: show.player(np.zeros(99), 16000)}
    markup = show.choices("Pick & see", panels, start="<one>").data
    assert "<legend>Pick &amp; see</legend>" in markup and "zero &lt;" in markup
    assert markup.count('type="radio"') == 3
    checked = re.findall(r'id="([^"]+)" checked', markup)
    assert re.search(rf'<label for="{checked[0]}">&lt;one&gt;</label>', markup)
    # The shared style and script come once, however much is inside.
    assert markup.count("<style>.musae") == 1 and markup.count("<script>") == 1


def test_choices_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="no panels"):
        show.choices("x", {})
    with pytest.raises(ValueError, match="none of the labels"):
        show.choices("x", {"a": "b"}, start="c")
    with pytest.raises(ValueError, match="Cannot show a set"):
        show.choices("x", {"a": {1}})


def test_nothing_is_fetched_from_elsewhere(clip):
    for markup in (show.piano_roll(clip).data, show.ab_table([{"a": clip}]).data,
                   show.figure(show.clip_figure(clip), alt="x").data):  # fmt: skip
        links = re.findall(r"(?:src|href)=\"([^\"]{0,40})|url\(([^)]{0,40})", markup)
        assert all((a or b).startswith(("data:", "#", '"#')) for a, b in links)
        assert len(page._STYLE + page._SCRIPT) < 16_000
