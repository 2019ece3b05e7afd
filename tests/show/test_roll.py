import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musae_utils import music, show
from musae_utils.show import roll

VOID = {"input", "img", "br", "meta", "path", "rect", "use"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def without_sound(page):
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.data)


def test_names_agree_with_the_composers():
    assert roll.PITCH_NAMES == music.PITCH_NAMES
    assert roll.MODES == music.MODES
    assert roll.SPOKEN == music.QUALITIES
    assert roll.FRAME_RATE == music.FRAME_RATE


@given(st.lists(st.integers(-1, 3), max_size=60))
def test_segments_give_the_track_back(values):
    runs = roll.segments(values, rate=50)
    again = [v for start, end, v in runs for _ in range(round((end - start) * 50))]
    assert again == values
    assert all(a[2] != b[2] and a[1] == b[0] for a, b in pairwise(runs))


@given(first=st.floats(0, 0.9), bar=st.floats(0.2, 4), seconds=st.floats(1, 20))
def test_bars_start_where_the_phase_turns(first, bar, seconds):
    frames = np.arange(int(seconds * 50)) / 50
    found = np.array(roll.bar_times((frames - first) / bar % 1))
    expected = np.arange(first % bar - bar, frames[-1] + bar, bar).clip(0)
    assert all(np.abs(expected - t).min() < 0.002 for t in found)
    inside = expected[(expected > 0.021) & (expected < frames[-1] - 0.021)]
    assert all(np.abs(found - t).min() < 0.002 for t in inside)


def test_everything_known_is_in_the_picture(clip):
    page = show.piano_roll(clip).data
    for title in ("section A", "section B", "motif a1, first heard", "motif b1, first heard",
                  "motif a2, transposed return of a1", "D minor", "A dominant seventh",
                  "G minor", "bar 1", "bar 4"):  # fmt: skip
        assert f'title="{title}"' in page
    assert 'class="melody"' in page and 'class="drums"' in page
    # Each role has its own shape, not only its own colour.
    shape = {r: re.search(rf'class="{r}" d="([^"]*)"', page)[1] for r in roll.ROLES}
    assert "v1h" in shape["melody"] and "v0.45h" in shape["bass"]
    assert page.count("stroke-dasharray") >= 2


def test_labels_stand_where_the_truth_says(clip):
    page = show.piano_roll(clip).data
    found = re.search(r'data-from="4.000" data-to="6.000" title="A dominant seventh"\s+'
                      r'style="left:50.00%;width:25.00%', page)  # fmt: skip
    assert found


def test_the_words_say_what_the_picture_shows(clip):
    words = without_sound(show.piano_roll(clip)).split("The same in words")[1]
    assert "A from 0.0 s, B from 2.0 s" in words
    assert "Dm at 0.0 s, Gm at 2.0 s, A7 at 4.0 s" in words
    assert "a2 at 4.0 s (transposed return of a1)" in words
    assert roll.in_words(clip).startswith("D minor, 120 beats a minute, 4 beats a bar, form ABAB")


def test_markup_is_sound_and_ids_are_unique(clip):
    parser = Balanced()
    table = show.ab_table([{"a": clip, "b": clip}], caption="two")
    picture = show.figure(show.delay_pattern(), alt="x")
    choice = show.choices("which", {"x": show.piano_roll(clip), "y": table, "z": "words"})
    for page in (show.piano_roll(clip), table, picture, choice, show.choices("?", {"a": "b"})):
        parser.feed(page.data)
    assert not parser.open and parser.ids
    assert len(parser.ids) == len(set(parser.ids))


def test_half_a_minute_stays_small():
    page = show.piano_roll(music.make(seed=1, seconds=30, drums=True))
    assert len(without_sound(page)) < 150_000


def test_text_from_outside_stays_text(clip):
    page = show.piano_roll(replace(clip, name='"><script>alert(1)</script>')).data
    assert "<script>alert" not in page


def test_what_a_source_does_not_know_is_left_out(clip):
    truth = replace(clip.truth, frames={}, clip={"key": "G major"})
    page = without_sound(show.piano_roll(replace(clip, truth=truth)))
    assert "G major, 8 seconds." in page
    assert 'class="lane notes"' in page
    assert not re.search('class="lane (bar|form|motifs|keys|chords|level)"', page)


def test_a_recording_is_shown_another_way(clip):
    with pytest.raises(ValueError, match="clip_figure"):
        show.piano_roll(replace(clip, truth=None))
