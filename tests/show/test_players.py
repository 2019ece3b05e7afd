import base64
import io
import re

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils import show
from musae_utils.show.players import MP3_RATES, TARGET_LUFS, matching_gains, mono, mp3

RATE = 16000


def sounds(markup):
    """Decoded audio of every player in the markup."""
    found = re.findall(r"data:audio/mpeg;base64,([^\"]+)", markup)
    return [soundfile.read(io.BytesIO(base64.b64decode(data))) for data in found]


def tone(level=0.1, seconds=2.0, hertz=440, rate=RATE):
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype("f4")


def test_loudness_is_the_standards():
    # BS.1770 fixes the scale by this: a 997 Hz full-scale sine in one channel is -3.01 LKFS.
    assert show.loudness(tone(1.0, 5, 997, 48000), 48000) == pytest.approx(-3.01, abs=0.1)
    assert show.loudness(np.zeros(RATE), RATE) == -np.inf


def test_a_clip_below_the_standards_block_still_has_a_loudness():
    short, long = show.loudness(tone(0.1, 0.1, 997), RATE), show.loudness(tone(0.1, 2, 997), RATE)
    assert short == pytest.approx(long, abs=1.0)


@settings(max_examples=25, deadline=None)
@given(
    levels=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=4),
    spike=st.floats(0, 1),
    seconds=st.floats(0.05, 1.0),
)
def test_matched_clips_are_equally_loud_and_never_clip(levels, spike, seconds):
    clips = [(tone(level, seconds), RATE) for level in levels]
    clips[0][0][0] = spike  # a peak far above the rest asks for the common reduction
    gains = matching_gains(clips)
    after = [samples * 10 ** (g / 20) for (samples, _), g in zip(clips, gains, strict=True)]
    assert max(np.abs(a).max() for a in after) <= 0.891
    heard = [show.loudness(a, RATE) for a in after]
    assert np.ptp(heard) < 0.2
    assert max(heard) <= TARGET_LUFS + 0.2


def test_silence_is_left_alone():
    gains = matching_gains([(np.zeros(RATE, "f4"), RATE), (tone(1.0, 0.2), RATE)])
    assert gains[0] == 0 and np.isfinite(gains[1])


def test_an_unmatched_table_keeps_the_difference():
    page = show.ab_table([{"loud": tone(0.5), "soft": tone(0.05)}], RATE, match=False).data
    (loud, _), (soft, _) = sounds(page)
    assert np.std(loud) / np.std(soft) == pytest.approx(10, rel=0.05)
    assert "matched" not in page


def test_a_matched_table_says_what_it_changed():
    page = show.ab_table({"x": {"loud": tone(0.5), "soft": tone(0.05)}}, RATE).data
    (loud, _), (soft, _) = sounds(page)
    assert np.std(loud) == pytest.approx(np.std(soft), rel=0.05)
    assert "Loudness matched" in page
    shown = [float(x.replace("−", "-")) for x in re.findall(r"<small>([+−][\d.]+) dB", page)]
    assert shown[1] - shown[0] == pytest.approx(20, abs=0.11)


def test_a_table_has_named_rows_columns_and_players():
    cells = {"original": tone(), "prompt": "sad <i>flute</i>", "score": 0.123456, "none": None}
    page = show.ab_table({"clip & co": cells}, RATE, caption="A < B").data
    assert page.count('scope="col"') == 4 and page.count('scope="row"') == 1
    assert 'aria-label="clip &amp; co: original"' in page
    assert "sad &lt;i&gt;flute&lt;/i&gt;" in page and "<i>flute" not in page
    assert "A &lt; B</caption>" in page and "0.123<" in page and "–</td>" in page


def test_ten_seconds_stay_small():
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype("f4")
    assert len(mp3(noise, RATE)) < 85_000
    assert len(mp3(np.repeat(noise, 2), 32000)) < 130_000


def test_what_cannot_be_heard_is_refused_before_the_encoder_ends_the_process():
    for bad in (np.full(RATE, np.nan), np.full(RATE, np.inf), np.zeros((2, RATE))):
        with pytest.raises(ValueError, match="finite numbers can be played"):
            mp3(bad.astype("f4"), RATE)


@pytest.mark.parametrize("rate", [*MP3_RATES, 6000, 11025, 20000, 96000, 192000])
def test_every_sample_rate_keeps_time_and_pitch(rate):
    decoded, kept = soundfile.read(io.BytesIO(mp3(tone(0.3, 1, 440, rate), rate)))
    assert len(decoded) / kept == pytest.approx(1, abs=0.001)
    spectrum = np.abs(np.fft.rfft(decoded[: kept * 9 // 10]))
    assert spectrum.argmax() / 0.9 == pytest.approx(440, abs=3)


def test_a_player_plays_as_loud_as_the_clip_unless_it_would_clip():
    assert "Turned down" not in show.player(tone(0.9), RATE).data
    page = show.player(tone(2.0), RATE, title="<script>alert(1)</script>").data
    assert "Turned down by 7.0 dB" in page
    assert "<script>alert" not in page
    assert np.abs(sounds(page)[0][0]).max() <= 1


def test_clips_and_tensors_are_sound_too(clip):
    import torch

    assert mono(clip)[1] == clip.sample_rate
    half = torch.zeros(1, 1, 50, dtype=torch.bfloat16, requires_grad=True)
    assert mono(half, RATE)[0].shape == (50,)


@pytest.mark.parametrize(
    ("audio", "rate", "words"),
    [
        (np.zeros((4, 100)), RATE, "pick a row"),
        (np.zeros(0), RATE, "empty"),
        (np.array([0.0, np.nan, np.inf]), RATE, "2 samples that are NaN or infinite"),
        (np.zeros(10), None, "sample rate"),
        (np.zeros(10), 0, "sample rate"),
    ],
)
def test_what_is_no_sound_is_refused_in_plain_words(audio, rate, words):
    with pytest.raises(ValueError, match=words):
        show.player(audio, rate)


@pytest.mark.parametrize("rows", [[], {}, {"a": {}}, {"a": np.zeros(9)}])
def test_what_is_no_table_is_refused(rows):
    with pytest.raises(ValueError, match="rows of named cells"):
        show.ab_table(rows, RATE)
