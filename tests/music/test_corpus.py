"""Real scores keep what is written in them; recordings of any kind come in, or say why not."""

import os
import warnings
from collections import Counter

import music21
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_utils import runs
from musae_utils.music import (
    FRAME_RATE,
    QUALITIES,
    SAMPLE_RATE,
    SCALES,
    corpus,
    load_audio,
    load_folder,
)
from musae_utils.music.captions import VOCABULARY, words
from musae_utils.music.compose import CHORD_TONES, PROGRAMS
from musae_utils.music.corpus import read_work, sounding_chords, works_of

KINDS, SPLITS = ("chorales", "folk"), ("train", "test", "validation")


@pytest.fixture(scope="module")
def chorales():
    return corpus(4, seed=0, seconds=8)


@pytest.fixture(scope="module")
def tunes():
    return corpus(4, seed=0, seconds=8, kind="folk")


# -- real scores --------------------------------------------------------------------------------


def test_the_same_number_gives_the_same_clip(chorales):
    (again,) = corpus(1, seed=2, seconds=8)
    np.testing.assert_array_equal(again.audio, chorales[2].audio)
    assert again.caption == chorales[2].caption and again.provenance == chorales[2].provenance
    assert len({c.provenance["source"] for c in chorales}) == 4, "other clips are other works"


def test_a_well_known_chorale_is_read_as_it_is_written():
    work = read_work("bach/bwv66.6.mxl")  # F sharp minor, in four, begins with an upbeat
    assert (work.tonic, work.mode, work.metre) == (6, 1, 4)
    assert work.bars == (1, 2, 3, 4, 5, 6, 7, 8)
    bar = [n for n in work.notes if n[0] < 4]
    soprano = [n[2] for n in bar if n[3] == "melody"]
    assert soprano == [69, 71, 73, 76]  # A B C sharp E, after the upbeat
    assert Counter(n[3] for n in bar)["harmony"] >= 8 and {n[3] for n in bar} >= {"bass"}


def test_chords_are_those_that_music21_finds():
    """music21's chordify and its chord names, slice by slice, against the chord track."""
    work = read_work("bach/bwv66.6.mxl")
    found = sounding_chords(work.notes, 8)  # two bars
    score = music21.corpus.parse("bach/bwv66.6").measures(1, 2).chordify().flatten()
    names = {
        (0, 4, 7): 0, (0, 3, 7): 1, (0, 3, 6): 2, (0, 4, 7, 10): 3,
    }  # fmt: skip
    start = min(float(c.offset) for c in score.notes)
    compared = 0
    for chord in score.notes:
        root = chord.root().pitchClass
        shape = tuple(sorted({(p.pitchClass - root) % 12 for p in chord.pitches}))
        at = float(chord.offset) - start
        mine = [(r, q) for s, e, r, q in found if s - 1e-6 <= at < e - 1e-6]
        assert mine == ([(root, names[shape])] if shape in names else [])
        compared += bool(mine)
    assert compared >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_truth_is_consistent(kind, request):
    for clip in request.getfixturevalue({"chorales": "chorales", "folk": "tunes"}[kind]):
        f, c = clip.truth.frames, clip.truth.clip
        assert clip.audio.shape == (8 * SAMPLE_RATE,) and np.abs(clip.audio).max() > 0.02
        assert {len(v) for v in f.values()} == {8 * FRAME_RATE}
        assert max(n.end for n in clip.truth.notes) <= 8
        # Beats: phase 0 at the first frame, one turn in 60 / tempo seconds.
        assert [f["beat"][0], f["downbeat"][0]] == pytest.approx([0, 0], abs=1e-6)
        turns = np.flatnonzero(np.diff(f["beat"]) < 0) + 1
        beats = np.arange(1, len(turns) + 1) * 60 / c["tempo"]
        np.testing.assert_array_equal(turns, np.ceil(beats * FRAME_RATE - 1e-6))
        bars = np.flatnonzero(np.diff(f["downbeat"]) < 0) + 1
        np.testing.assert_array_equal(bars, turns[c["metre"] - 1 :: c["metre"]])
        # The melody is the top part, and each of its notes sounds.
        for note in clip.truth.notes:
            t = int((note.start + note.end) / 2 * FRAME_RATE)
            assert f["active"][t, note.pitch]
            if note.role == "melody" and kind == "folk":
                assert f["melody"][t] == note.pitch
        # Sound follows the score: it is loud where notes sound.
        heard = f["active"].any(axis=1)
        assert heard.mean() > 0.3 and np.median(f["loudness"][heard]) > -50
        # Nobody knows these: absent, not guessed.
        assert not {"form", "sections", "statements", "register", "texture"} & set(c)
        for name in ("section", "motif", "repeats"):
            assert (f[name] == -1).all()
        assert not f["drums"].any() and c["drums"] is False
        if "key" in c:
            assert (f["tonic"] == c["tonic"]).all() and (f["mode"] == c["mode"]).all()
        else:
            assert (f["tonic"] == -1).all() and (f["mode"] == -1).all()
        assert set(words(clip.caption)) <= set(VOCABULARY)


def test_chord_frames_agree_with_what_sounds(chorales):
    known = 0
    for clip in chorales:
        f = clip.truth.frames
        for chord in clip.truth.clip["chords"]:
            assert QUALITIES[chord["quality"]]
            struck = {
                n.pitch % 12
                for n in clip.truth.notes
                if n.start < chord["end"] - 1e-6 and chord["start"] - 1e-6 <= n.start
            }
            assert struck <= {(chord["root"] + t) % 12 for t in CHORD_TONES[chord["quality"]]}
        known += (f["chord_root"] >= 0).mean()
    assert 0.4 < known / len(chorales) < 1, "passing notes have no chord"


def test_the_key_fits_the_notes():
    fits = []
    for kind in KINDS:
        for entry in works_of(kind, "train")[:4]:
            work = read_work(entry["file"])
            if work.tonic >= 0:
                scale = {(work.tonic + s) % 12 for s in SCALES[work.mode]}
                fits.append(np.mean([n[2] % 12 in scale for n in work.notes]))
    assert len(fits) >= 4 and min(fits) > 0.75 and np.mean(fits) > 0.9


@pytest.mark.parametrize("file, key", [
    ("bach/bwv123.6.mxl", (11, 1)),  # one part calls it D major, three B minor; it closes on B
    ("bach/bwv305.mxl", (-1, -1)),  # no accidentals, closes on E: Phrygian
    ("ryansMammoth/KittyCloversReel.abc", (2, 0)),  # closes on the fifth; its transcriber says D
    ("ryansMammoth/FantasticHornpipe.abc", (-1, -1)),  # analysed as G minor, closes on B flat
])  # fmt: skip
def test_a_key_is_known_where_the_score_bears_it_out(file, key):
    work = read_work(file)
    assert (work.tonic, work.mode) == key


def test_works_are_split_whole():
    for kind in KINDS:
        files = [{w["file"] for w in works_of(kind, split)} for split in SPLITS]
        assert all(len(f) >= 30 for f in files)
        assert len(set.union(*files)) == sum(map(len, files))


def test_the_performer_decides_and_the_score_does_not_bend():
    a, b = (corpus(1, 1, 6, family="flute", tempo=90, dynamics=d)[0] for d in ("soft", "loud"))
    assert a.truth.clip["family"] == "flute" and a.truth.clip["tempo"] == 90
    assert [(n.start, n.pitch) for n in a.truth.notes] == [
        (n.start, n.pitch) for n in b.truth.notes
    ]
    assert np.median(b.truth.frames["loudness"]) > np.median(a.truth.frames["loudness"]) + 4
    (kept,) = corpus(1, 1, 6, held_out_presets=True)
    assert kept.truth.clip["program"] in {p[3] for p in PROGRAMS.values()}


def test_a_clip_of_a_score_shows_itself(tunes):
    clip = tunes[0]
    assert "<audio" in clip.play().data and "<audio" in clip.plot().data
    assert clip.provenance["licence"].startswith("score in the public domain")
    assert clip.provenance["source"].startswith("music21 corpus: ryansMammoth/")
    assert str(clip.truth.clip["tempo"]) in repr(clip)


@pytest.mark.parametrize("asked, said", [
    ({"kind": "opera"}, "kind is 'opera'; it can be one of chorales, folk"),
    ({"split": "dev"}, "split is 'dev'"),
    ({"tonic": 2}, "tonic cannot be chosen for a real score; family, program, tempo"),
    ({"seconds": 0}, "a clip can last 5 to 40 seconds"),
    ({"kind": "folk", "seconds": 40, "tempo": 240}, "No test work of the kind folk lasts 40 s"),
    ({"n": -1}, "both count from 0"),
])  # fmt: skip
def test_what_cannot_be_played_says_why(asked, said):
    with pytest.raises(ValueError, match=said):
        corpus(**({"n": 1} | asked))


def test_a_score_that_gives_no_truth_is_refused():
    with pytest.raises(ValueError, match=r"bach/bwv1\.6\.mxl is not in four voices"):
        read_work("bach/bwv1.6.mxl")  # has two horns
    with pytest.raises(FileNotFoundError, match="installed without its corpus"):
        read_work("bach/bwv9999.mxl")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 11), st.sampled_from(range(4)), st.permutations(range(4)), st.data())
def test_any_voicing_of_a_chord_is_found(root, quality, order, data):
    tones = CHORD_TONES[quality]
    notes = [
        (
            0.0,
            1.0,
            48 + (root + tones[i % len(tones)]) % 12 + 12 * data.draw(st.integers(0, 3)),
            "x",
        )
        for i in order
    ]
    assert sounding_chords(notes, 2.0) == [(0.0, 1.0, root, quality)]
    stranger = data.draw(st.sampled_from([p for p in range(12) if p not in tones]))
    others = [*notes, (0.25, 0.5, 60 + (root + stranger) % 12, "x")]
    found = sounding_chords(others, 2.0)
    assert not any(s < 0.7 and e > 0.3 and (r, q) == (root, quality) for s, e, r, q in found)


# -- recordings ---------------------------------------------------------------------------------


def tone(hz, rate, seconds=1.0, level=0.5):
    return level * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def level_at(audio, hz, rate=SAMPLE_RATE):
    """Amplitude of a sine in the middle of a clip."""
    middle = audio[len(audio) // 4 : 3 * len(audio) // 4].astype(float)
    window = np.hanning(len(middle))
    wave = np.exp(-2j * np.pi * hz * np.arange(len(middle)) / rate)
    return 2 * np.abs((middle * window * wave).sum()) / window.sum()


@pytest.mark.parametrize("ending, kind", [
    ("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS"),
    ("mp3", "MPEG_LAYER_III"), ("WAV", "PCM_16"),
])  # fmt: skip
@pytest.mark.parametrize("rate, channels", [(44_100, 2), (16_000, 1)])
def test_every_format_comes_in(tmp_path, ending, kind, rate, channels):
    path = tmp_path / f"a.{ending}"
    sound = np.repeat(tone(440, rate)[:, None], channels, axis=1)
    soundfile.write(path, sound, rate, format=ending.upper(), subtype=kind)
    clip = load_audio(path)
    assert clip.truth is None and clip.name == "a" and clip.sample_rate == SAMPLE_RATE
    assert clip.audio.dtype == np.float32 and clip.audio.ndim == 1
    assert clip.seconds == pytest.approx(1.0, abs=0.08)  # MP3 and OGG pad
    assert level_at(clip.audio, 440) == pytest.approx(0.5, rel=0.05)
    assert clip.provenance["sha256"] == runs.sha256(path)
    assert clip.provenance["original_sample_rate"] == rate
    assert clip.provenance["original_channels"] == channels
    assert "no truth (a recording)" in repr(clip)


@pytest.mark.parametrize("rate", [44_100, 48_000, 192_000])
def test_resampling_keeps_what_fits_and_folds_nothing_back(tmp_path, rate):
    path = tmp_path / "tones.wav"
    soundfile.write(path, tone(7000, rate) + tone(12_000, rate, level=0.4), rate, subtype="FLOAT")
    audio = load_audio(path).audio
    assert level_at(audio, 7000) == pytest.approx(0.5, rel=0.02)
    assert level_at(audio, 4000) < 0.5e-4, "12 kHz would come back at 4 kHz"
    assert len(audio) == SAMPLE_RATE
    assert len(load_audio(path, sample_rate=32_000).audio) == 32_000
    assert level_at(load_audio(path, sample_rate=32_000).audio, 12_000, 32_000) > 0.39


def test_eight_channels_are_averaged(tmp_path):
    path = tmp_path / "eight.wav"
    soundfile.write(
        path, np.stack([tone(200 * (k + 1), 16_000, level=0.8) for k in range(8)], 1), 16_000
    )
    audio = load_audio(path).audio
    for k in range(8):
        assert level_at(audio, 200 * (k + 1)) == pytest.approx(0.1, rel=0.02)


def test_a_part_of_a_file(tmp_path):
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.linspace(0, 0.9, 48_000 * 3), 48_000, subtype="FLOAT")
    clip = load_audio(path, seconds=1, offset=1)
    assert clip.seconds == 1 and clip.provenance["offset"] == 1
    np.testing.assert_allclose(
        clip.audio[4000:-4000], np.linspace(0.3, 0.6, 16_000)[4000:-4000], atol=1e-3
    )
    assert load_audio(path, seconds=60).seconds == 3, "what there is"
    for bad in (
        {"seconds": 0},
        {"seconds": -1},
        {"seconds": np.nan},
        {"offset": -1},
        {"sample_rate": 0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
            load_audio(path, **bad)
    with pytest.raises(ValueError, match=r"ramp\.wav lasts 3\.0 s; offset 3 is past its end"):
        load_audio(path, offset=3)


def test_a_tenth_of_a_second_is_enough_and_nothing_is_not(tmp_path):
    soundfile.write(tmp_path / "short.wav", tone(440, 44_100, 0.1), 44_100)
    assert load_audio(tmp_path / "short.wav").audio.shape == (1600,)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 44_100)
    with pytest.raises(ValueError, match=r"none\.wav holds no sound"):
        load_audio(tmp_path / "none.wav")


def test_silence_is_said(tmp_path):
    soundfile.write(tmp_path / "quiet.wav", np.zeros(8000), 16_000)
    with pytest.warns(UserWarning, match=r"quiet\.wav is silent"):
        clip = load_audio(tmp_path / "quiet.wav")
    assert clip.seconds == 0.5 and not clip.audio.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers_are_refused(tmp_path, bad):
    sound = tone(440, 16_000)
    sound[100] = bad
    soundfile.write(tmp_path / "broken.wav", sound, 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"broken\.wav holds samples that are not numbers"):
        load_audio(tmp_path / "broken.wav")


def test_a_file_beyond_full_scale_is_turned_down(tmp_path):
    soundfile.write(tmp_path / "hot.wav", tone(440, 16_000, level=30), 16_000, subtype="FLOAT")
    assert np.abs(load_audio(tmp_path / "hot.wav").audio).max() == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"RIFF\x24\0\0\0WAVEfmt ", b"fLaC", b"OggS", b"ID3"]),
    st.sampled_from(["wav", "flac", "mp3", "ogg", "raw"]),
)
def test_no_bytes_break_the_reader(tmp_path_factory, content, magic, ending):
    path = tmp_path_factory.mktemp("bytes") / f"x.{ending}"
    path.write_bytes(magic + content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            assert np.isfinite(load_audio(path).audio).all()
        except ValueError as error:
            assert f"x.{ending}" in str(error)


def test_what_is_not_there_or_no_sound_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.wav"):
        load_audio(tmp_path / "gone.wav")
    with pytest.raises(IsADirectoryError, match="is a folder, not a sound file; load_folder"):
        load_audio(tmp_path)
    (tmp_path / "text.wav").write_text("not music")
    with pytest.raises(
        ValueError, match=r"text\.wav cannot be read as sound .*WAV, FLAC, MP3 or OGG"
    ):
        load_audio(tmp_path / "text.wav")
    whole = tmp_path / "whole.flac"
    soundfile.write(whole, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    (tmp_path / "half.flac").write_bytes(whole.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"half\.flac"):
        load_audio(tmp_path / "half.flac")


NAMES = ("née Ωμέγα 音楽 🎵.wav", "-rf.wav", "two  spaces.wav", "<script>alert(1)<.wav",
         "semi;colon&amp.wav", "dots.in.name.wav", 'quote".wav', "new\nline.wav")  # fmt: skip


def test_a_folder_comes_in_by_name_whatever_the_names(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in (*NAMES, "sub/inner.flac"):
        soundfile.write(tmp_path / name, tone(440, 22_050, 0.2), 22_050)
    (tmp_path / "._ghost.wav").write_bytes(b"another program's note")
    (tmp_path / "notes.txt").write_text("not sound, and so passed over")
    clips = load_folder(tmp_path)
    stems = sorted([n.removesuffix(".wav") for n in NAMES] + ["sub/inner"])
    assert sorted(c.name for c in clips) == stems
    assert [c.name for c in clips] == [c.name for c in load_folder(str(tmp_path))]
    assert all(c.seconds == pytest.approx(0.2) and c.truth is None for c in clips)
    monkeypatch.chdir(tmp_path)
    assert load_audio("-rf.wav").name == "-rf"
    assert load_folder(".", seconds=0.1)[0].seconds == 0.1


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_a_name_that_is_not_unicode_can_be_shown(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    try:
        with open(path, "wb") as file:
            soundfile.write(file, tone(440, 16_000, 0.1), 16_000, format="WAV")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (clip,) = load_folder(tmp_path)
    assert clip.name == "caf?" and clip.provenance["file"].encode()


def test_in_a_folder_the_bad_file_is_named_and_the_rest_is_loaded(tmp_path):
    soundfile.write(tmp_path / "good.wav", tone(440, 16_000), 16_000)
    (tmp_path / "bad.mp3").write_bytes(b"\0" * 500)
    with pytest.warns(UserWarning, match=r"Left out: bad\.mp3 cannot be read as sound") as said:
        clips = load_folder(tmp_path)
    assert [c.name for c in clips] == ["good"] and len(said) == 1
    (tmp_path / "good.wav").unlink()
    with pytest.raises(ValueError, match=r"No sound file in .* can be read\. bad\.mp3 cannot"):
        load_folder(tmp_path)


def test_a_folder_without_music_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no WAV, FLAC, MP3 or OGG file"):
        load_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        load_folder(tmp_path / "nowhere")
    soundfile.write(tmp_path / "a.wav", tone(440, 16_000, 0.1), 16_000)
    with pytest.raises(NotADirectoryError, match=r"a\.wav is a file; load_audio reads one"):
        load_folder(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="seconds is -1"):  # the call is wrong, not the files
        load_folder(tmp_path, seconds=-1)


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0byte"])
def test_a_name_that_cannot_be_a_path_is_answered(name):
    with pytest.raises(FileNotFoundError, match="There is no"):
        load_audio(name)
    with pytest.raises(FileNotFoundError, match="There is no"):
        load_folder(name)
