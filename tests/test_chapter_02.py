"""What chapter 02 claims, on less music than the chapter takes, with the code its readers see."""

import numpy as np
import pytest
import torch
from chapter import Chapter

from musae_utils import models  # before audiocraft

execute = Chapter("02_the_model_plays")


@pytest.fixture(scope="module")
def start():
    """The parameters, the imports and the nano model."""
    return execute.begin()


@pytest.fixture(scope="module")
def heard(start):
    """Six clips, and what the codec keeps of them."""
    return execute(start, "melody, drums = (", "def decode_first", "def compare(audio)", n=6)


@pytest.fixture(scope="module")
def read(heard):
    """What the language model expects of the same clips."""
    books = [f"codebook {k + 1}" for k in range(heard["n_codebooks"])]
    snippets = "def surprise(codes", "def unigram(book)", "first = cost[", "def saved("
    return execute(heard, *snippets, books=books)


# -- the codec -----------------------------------------------------------------------------------


def test_each_codebook_brings_a_copy_closer_and_random_codes_do_not(heard):
    kept = heard["kept"]
    notes = [kept[k]["chroma correlation"].value for k in kept]
    colour = [kept[k]["log-spectral distance (dB)"].value for k in kept]
    assert notes[0] < notes[-1] and np.diff(notes).min() > -0.02
    assert colour[0] > colour[-1] and np.diff(colour).max() < 0.3
    for rival in (heard["by_chance"], heard["stranger"]):
        assert kept[1]["chroma correlation"].above(rival["chroma correlation"])
        assert colour[-1] < rival["log-spectral distance (dB)"].low


def test_the_waveform_is_lost_and_the_notes_are_kept(heard):
    whole = heard["kept"][heard["n_codebooks"]]
    assert whole["SI-SDR (dB)"].high < 3
    assert whole["chroma correlation"].low > 0.8


def test_magnitudes_tell_the_next_frame_and_samples_do_not(heard):
    told = execute(heard, "def likeness(x, y)")["told"]
    (samples, _), (magnitudes, elsewhere) = told.mean(0)
    assert abs(samples) < 0.25 and magnitudes > 0.5 > 0.25 > elsewhere


def test_codes_return_because_of_their_order(heard):
    codes = heard["musicgen"].encode(heard["melody"])
    space = execute(heard, "shuffle = torch.randperm(n_frames", "def stays(codes)", codes=codes)
    in_order, shuffled = space["stays"](space["codes"]), space["stays"](space["shuffled"])
    assert (in_order > 1.5 * shuffled).all()


def test_positions_hold_the_frames_that_the_text_says(heard):
    space = execute(heard, "build_pattern_sequence")  # asserts it against MusicGen's own code
    assert len(space["sequence"]) == space["n_codebooks"] and space["sequence"][2, 5] == 5 - 1 - 2


# -- the language model --------------------------------------------------------------------------


def test_the_model_beats_every_reader_that_knows_less(read):
    first, saved = read["first"], read["saved"]
    own = first["model, own caption"]
    assert own < 0.7 * first["unigram"] < first["uniform"]
    assert own < first["model, shuffled frames"] - 1
    assert saved("model, own caption", "model, no caption").low > 0
    assert saved("model, own caption", "model, another clip's caption").low > 0


def test_surprise_gathers_where_notes_begin(read):
    space = execute(read, "calm = music.make_many", "def near(clip")
    assert space["at_onsets"].above(space["moved"])
    assert abs(space["moved"].value) < 0.2


def test_temperature_and_guidance_do_what_the_text_says(read):
    space = execute(read, "guesses = {", "m = max(2, n // 2)", "def in_key(", n=4)
    spread = [space["table"][row]["codes that share 90 %"] for row in space["table"]]
    assert spread == sorted(spread) and spread[1] < spread[-1] / 2
    variety = {way: space["variety"](codes).mean() for way, (_, codes) in space["played"].items()}
    assert variety["temperature 0"] < variety["1, top 250"] < variety["1.5, all codes"]

    space = execute(space, "def two_takes(", "def obedience(", n=8, length=3.0)
    asked, away, same, _ = space["curves"].values()
    assert asked[3].above(away[3]) and asked[3].value > asked[0].value + 0.1
    assert same[6].value > same[0].value

    check = execute(space, "def check(answer)", answer=None)["check"]
    assert check(None).startswith("Hint") and "Which way" in check(1)
    assert check(12).startswith(("Hint", "Found"))


def test_one_word_changes_what_it_names(read):
    space = execute(read, 'base = "piano', "def facts(", n=8, length=3.0)
    values = space["values"]
    moved = {name: values.loc[name] - values.loc["as it is"] for name in space["prompts"]}
    assert moved["key"]["in F# major"].mean() > 0.2 > -0.2 > moved["key"]["in C major"].mean()


def test_unknown_words_are_named_and_change_nothing(start, capsys):
    space = execute(start, 'asked = "a dreamy')
    said = capsys.readouterr().out
    assert all(word in said for word in ("dreamy", "raga", "sitar")) and "'minor'" not in said
    assert space["strange"].codes.equal(space["plain"].codes)


def test_a_continuation_keeps_the_key_it_was_given(read):
    space = execute(
        read, "pieces = music.make_many", "report = quality", m=8, length=3.0,
        title_of=lambda clip: clip.name,
    )  # fmt: skip
    report = space["report"]
    assert report["continuation_key_ratio"].above(report["continuation_key_ratio.wrong_key"])
    assert report["continuity"].value > report["continuity.strangers"].value


@pytest.mark.slow
def test_every_cell_takes_another_model(monkeypatch, capsys):
    """One like the published ones: 32 kHz, other codebooks, a text encoder for any word."""
    from audiocraft.models import MusicGen
    from models.tiny_models import WordConditioner, tiny_codec, tiny_lm

    monkeypatch.delattr(WordConditioner, "unknown_words")
    codec, lm = tiny_codec(32_000, (4, 4, 5, 8), bins=64, n_q=3), tiny_lm(card=64, n_q=3)
    musicgen = MusicGen("like", codec, lm, max_duration=30)
    like = models.MusicModel("like", musicgen, torch.float32)
    monkeypatch.setattr(models, "load", lambda name: like)

    space = {}
    for cell in execute.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "02_the_model_plays.ipynb", "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space["profile"] = "smoke"
    assert space["musicgen"] is like and space["sequence"].shape == (3, 11)
    assert "Warning: none" in capsys.readouterr().out
