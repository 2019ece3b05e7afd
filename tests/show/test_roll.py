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


@pytest.mark.parametrize("tonic, mode, names", [
    (0, 0, "C D E F G A B"), (2, 0, "D E F# G A B C#"), (5, 0, "F G A Bb C D E"),
    (4, 0, "E F# G# A B C# D#"), (11, 0, "B C# D# E F# G# A#"), (8, 0, "Ab Bb C Db Eb F G"),
    (6, 0, "F# G# A# B C# D# E#"), (5, 1, "F G Ab Bb C Db Eb"), (10, 1, "Bb C Db Eb F Gb Ab"),
    (1, 1, "C# D# E F# G# A B"), (3, 1, "Eb F Gb Ab Bb Cb Db"),
])  # fmt: skip
def test_a_scale_is_spelled_with_each_letter_once(tonic, mode, names):
    steps = (0, 2, 3, 5, 7, 8, 10) if mode else (0, 2, 4, 5, 7, 9, 11)
    assert [roll.pitch_name((tonic + s) % 12, tonic) for s in steps] == names.split()


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("pitch", range(12))
def test_a_spelled_note_is_the_note(pitch, tonic):
    name = roll.pitch_name(pitch, tonic)
    natural = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))
    sounds = natural[name[0]] + name.count("#") - name.count("b")
    assert sounds % 12 == pitch
    assert roll.pitch_name(pitch) == roll.PITCH_NAMES[pitch]
    assert roll.pitch_name(tonic, tonic) == roll.PITCH_NAMES[tonic]


def test_chords_in_the_picture_are_spelled_in_its_key(clip):
    frames = clip.truth.frames | {"tonic": np.full(400, 4), "chord_root": np.full(400, 8)}
    page = show.piano_roll(replace(clip, truth=replace(clip.truth, frames=frames))).data
    assert 'title="G# minor"' in page and 'title="Ab minor"' not in page


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
