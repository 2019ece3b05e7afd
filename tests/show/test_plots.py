import re
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils import show
from musae_utils.show.plots import _chroma, _log_spectrum

RATE = 16000


def sine(hertz, level=1.0, seconds=1.0):
    t = np.arange(int(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def labels(fig):
    """Every axis label of the figure."""
    return {text for ax in fig.axes for text in (ax.get_xlabel(), ax.get_ylabel()) if text}


@settings(max_examples=20, deadline=None)
@given(hertz=st.floats(200, 6000), level=st.floats(-60, 0))
def test_the_spectrogram_reads_the_level_and_frequency_of_a_sine(hertz, level):
    levels, bins, step = _log_spectrum(sine(hertz, 10 ** (level / 20)), RATE)
    middle = levels[:, levels.shape[1] // 2]
    assert middle.max() == pytest.approx(level, abs=1.0)  # scalloping of the window
    assert abs(np.log2(bins[middle.argmax()] / hertz)) < 1 / 12
    assert step * levels.shape[1] == pytest.approx(1.0, abs=0.05)


def test_time_in_the_spectrogram_is_time_in_the_sound():
    sound = np.concatenate([np.zeros(RATE), sine(1000), np.zeros(RATE)]).astype("f4")
    levels, _, step = _log_spectrum(sound, RATE)
    loud = np.flatnonzero(levels.max(0) > -6.5) * step
    assert loud[0] == pytest.approx(1.0, abs=0.03)
    assert loud[-1] == pytest.approx(2.0, abs=0.03)


@pytest.mark.parametrize("midi", range(57, 69))
def test_chroma_names_the_note(midi):
    chroma, _ = _chroma(sine(440 * 2 ** ((midi - 69) / 12), 0.1), RATE)
    assert chroma[:, chroma.shape[1] // 2].argmax() == midi % 12


def test_silence_has_no_pitch_class():
    assert not _chroma(np.zeros(RATE, "f4"), RATE)[0].any()


@pytest.mark.parametrize("samples", [1, 100, 3200])
def test_the_shortest_sounds_have_a_picture(samples):
    show.figure(show.spectrogram(np.zeros(samples), RATE), alt="silence")


def test_compared_spectrograms_share_axes_and_scale(clip):
    fig = show.compare_spectrograms({"one": clip, "half": 0.5 * clip.audio[:RATE]}, RATE)
    first, second = (ax.images[0] for ax in fig.axes[:2])
    assert first.get_clim() == second.get_clim()
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim() == (0, 8)
    assert labels(fig) == {"frequency (Hz)", "time (s)", "level (dB)"}
    assert [ax.get_title(loc="left") for ax in fig.axes[:2]] == ["one", "half"]


@pytest.mark.parametrize("known", [True, False])
def test_a_clip_at_a_glance(clip, known):
    fig = show.clip_figure(clip if known else replace(clip, truth=None))
    assert {"pitch class", "level (dBFS)", "time (s)", "frequency (Hz)"} <= labels(fig)
    texts = {t.get_text() for t in fig.axes[0].texts}
    assert texts == ({"Dm", "Gm", "A7"} if known else set())


def test_tokens_are_printed_when_they_fit():
    codes = np.arange(12).reshape(2, 6)
    few = show.token_grid(codes, 50)
    assert [t.get_text() for t in few.axes[0].texts] == [str(i) for i in range(12)]
    assert few.axes[0].images[0].get_extent() == [0, 6 / 50, 1.5, -0.5]
    assert not show.token_grid(np.zeros((1, 4, 500), int), 50).axes[0].texts
    with pytest.raises(ValueError, match="pick one clip"):
        show.token_grid(np.zeros((3, 4, 500), int), 50)


@given(books=st.integers(1, 6), frames=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_the_delay_pattern_is_audiocrafts(books, frames):
    import torch

    from musae_utils.models import compat  # noqa: F401  (makes audiocraft importable)

    patterns = pytest.importorskip("audiocraft.modules.codebooks_patterns")
    codes = torch.arange(frames).repeat(1, books, 1)
    pattern = patterns.DelayedPatternProvider(books).get_pattern(frames)
    sequence = pattern.build_pattern_sequence(codes, -1)[0][0].numpy()
    ax = show.delay_pattern(books, frames, frame=0).axes[0]
    drawn = np.full(sequence.shape, -1)
    for text in ax.texts:
        s, k = text.get_position()
        drawn[int(k), int(s)] = int(text.get_text())
    assert (drawn == sequence).all()


LAYERS = pd.DataFrame(
    [
        {"concept": c, "layer": i, "value": v, "low": v - 0.1, "high": v + 0.1}
        for c, v in (("key", 0.5), ("beat", 0.7), ("form", 0.3), ("drums", 0.9))
        for i in range(-1, 4)
    ]
)
RIVALS = LAYERS[LAYERS["concept"] == "key"][:1].assign(rival="latents")


def test_layers_stand_beside_their_rivals():
    fig = show.layer_curves(LAYERS, RIVALS, {"key": 0.1}, ylabel="balanced accuracy")
    panels = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in panels] == ["key", "beat", "form", "drums"]
    assert {t.get_text() for t in fig.legends[0].get_texts()} == {"layers", "latents", "chance"}
    assert labels(fig) == {"layer", "balanced accuracy"}
    assert panels[-1].get_xticklabels()[0].get_text() == "in"


def test_intervals_tell_series_apart_by_shape_and_place():
    rows = [
        {"name": n, "series": s, "value": 0.5, "low": 0.4, "high": 0.6}
        for n in ("key", "beat")
        for s in ("layer", "rival")
    ]
    fig = show.intervals(pd.DataFrame(rows), "accuracy", chance=0.1)
    lines = [c.lines[0] for c in fig.axes[0].containers]
    assert lines[0].get_marker() != lines[1].get_marker()
    assert set(lines[0].get_ydata()).isdisjoint(lines[1].get_ydata())


def test_a_heat_map_prints_its_numbers():
    table = pd.DataFrame([[1.0, np.nan], [0.25, 1.0]], ["a", "b"], ["x", "y"])
    fig = show.heat_map(table, "Cramér's V")
    assert [t.get_text() for t in fig.axes[0].texts] == ["1.00", "0.25", "1.00"]
    assert "Cramér's V" in labels(fig)


@pytest.mark.parametrize(
    "call",
    [
        lambda: show.layer_curves(pd.DataFrame({"concept": []})),
        lambda: show.layer_curves(LAYERS, RIVALS.drop(columns="rival")),
        lambda: show.intervals(pd.DataFrame({"value": [1]}), "x"),
    ],
)
def test_a_table_without_its_columns_is_refused_by_name(call):
    with pytest.raises(ValueError, match=r"columns (concept|name)"):
        call()


def test_our_look_stays_ours_until_it_is_asked_for():
    with mpl.rc_context():
        before = mpl.rcParams["axes.spines.top"]
        show.delay_pattern()
        assert mpl.rcParams["axes.spines.top"] == before
        show.style()
        assert mpl.rcParams["axes.spines.top"] is False


def luminance(colour):
    c = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear @ [
        0.2126,
        0.7152,
        0.0722,
    ]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_first_colours_show_on_light_and_dark():
    # The blue becomes lighter on a dark page (page.css).
    css = (show.page.Path(show.page.__file__).parent / "page.css").read_text()
    light, dark = re.findall(r"--blue: (#\w+)", css)
    assert light.upper() == show.COLOURS["blue"]
    first = [show.COLOURS[c] for c in ("vermillion", "green")]
    assert min(contrast(c, "#ffffff") for c in (light, *first)) >= 3
    assert min(contrast(c, "#121212") for c in (dark, *first)) >= 3
