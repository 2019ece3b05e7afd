"""What chapter 12 claims, on less music than the chapter takes, with the code its readers see."""

import re

import numpy as np
import pytest
from chapter import Chapter

execute = Chapter("12_inside_the_codec")


@pytest.fixture(scope="module")
def start():
    """The parameters, the imports and the three spaces."""
    space = execute({}, 'profile: str = "full"')
    return execute({**space, "profile": "smoke"}, "spaces = {name: latents.load(")


@pytest.fixture(scope="module")
def looked(start):
    """Six pieces in three spaces."""
    return execute(start, "frames = codec.encode(clips[0])", "def bits(name)")


@pytest.fixture(scope="module")
def taught(looked):
    """Dictionaries on the latents of a dozen pieces."""
    return execute(looked, "penalty = 0.05")


def test_the_tokenizer_is_told_least_and_the_vae_is_not_told_more_than_the_codec(looked):
    bits = looked["size"]["bits a second"]
    assert bits["codec"] == 50 * 8 * 9 and bits["tokenizer"] == 50 * 12
    assert bits["tokenizer"] < bits["VAE"] < 1.5 * bits["codec"] < 256_000 / 40
    assert looked["again"].shape == (5 * 16_000,)


def test_copies_are_copies_and_rounding_costs_one_codebook_most(looked):
    reports = execute(looked, "strangers = codec_report(")["reports"]
    for name in looked["spaces"]:
        for measure in ("chroma", "pitch_agreement"):
            assert reports[name][measure].above(reports["another piece"][measure])
        assert reports[name]["lsd"].high < reports["another piece"]["lsd"].low
    lost = {name: reports[name]["lsd"].value - reports[f"{name}, not rounded"]["lsd"].value
            for name in ("codec", "tokenizer")}  # fmt: skip
    assert abs(lost["codec"]) < 0.2 < lost["tokenizer"]


def test_a_price_switches_numbers_off_and_spreads_the_others(looked):
    space = execute(looked, "def variances(x)")
    assert space["still"]["VAE"] > 5 and space["still"]["codec"] == 0
    assert min(space["directions"]["VAE"]) > 1.5 * max(space["directions"]["codec"])
    for name, x in space["known"].items():
        assert space["memory"](x, 1) > space["at_once"][name] + 0.2


def test_a_single_number_is_no_slider(looked):
    space = execute({**looked, "pushes": 4, "rng": np.random.default_rng(0)}, "def pushed(one")
    table = space["pushed_table"]
    single = table[table["pushed"] == "one number"]
    assert single["purity"].mean() < 0.75
    assert (single[["pitch", "loudness", "centroid"]] > 0.02).all(axis=1).mean() > 0.7
    one, z = space["spaces"]["VAE"], space["z"]["VAE"][:2]
    assert max(space["pushed"](one, z, np.zeros(64, np.float32)).values()) == 0


def test_topk_leaves_less_unexplained_at_equal_sparsity(taught):
    first = taught["first"]
    for name in taught["spaces"]:
        fixed, topk = first.loc[(name, "rmsnorm")], first.loc[(name, "topk")]
        assert topk["L0"] == pytest.approx(fixed["L0"], abs=0.6)
        assert topk["FVU"] < fixed["FVU"]


def test_a_feature_follows_its_note_and_no_strangers(taught):
    space = execute(
        {**taught, "rng": np.random.default_rng(0)}, "def follows(learn", "rows, followers = [], {}"
    )
    by = space["followed"].set_index(["name", "series"])
    for name in space["spaces"]:
        value = {series: by.loc[(name, series), "value"] for series in by.loc[name].index}
        assert value["SAE"] > max(value["one number"], value["random"])
        assert value["SAE"] > 4 * value["stranger"]
        assert value["SAE"] > value["SAE, band"]  # and in a band it does not


@pytest.fixture(scope="module")
def cycled(looked):
    return execute({**looked, "rng": np.random.default_rng(0)}, "def cycle(name, x)")


def test_noise_is_sound_in_the_vae_and_not_in_the_codec(cycled):
    by = cycled["cycles"].set_index(["name", "series"])
    assert by.loc[("VAE", "noise"), "high"] < by.loc[("codec", "noise"), "low"]
    for name in cycled["spaces"]:
        assert by.loc[(name, "real"), "high"] < by.loc[(name, "noise"), "low"]
        assert by.loc[(name, "halfway"), "value"] < 2 * by.loc[(name, "real"), "value"]


def test_the_exercise_accepts_its_solution_and_hints_otherwise(cycled):
    space = execute(cycled, "def between(a, b, t)", "def check(made)")
    check = space["check"]
    assert "The arc keeps it" in check(space["between"])
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {"np": np}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert check(solved["between"]).startswith("Right")
    assert "At t = 0" not in check(solved["between"])
    assert "at t = 0 it is a" in check(lambda a, b, t: a + b)
    assert "of the same width" in check(lambda a, b, t: np.zeros(3))


def test_the_table_and_its_refusals_are_shown(start, capsys):
    space = execute(start, "published = pd.DataFrame(latents.TABLE)", '"encodec-32khz"')
    assert len(space["published"]) == len(space["latents"].TABLE)
    said = capsys.readouterr().out
    assert "does not load" in said and "Did you mean 'facebook/encodec_32khz'" in said


@pytest.mark.slow
def test_another_space_is_taken_beside_the_three(tmp_path):
    """One like the published ones: another rate, other frames."""
    import torch
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    small = DacConfig(
        encoder_hidden_size=4, decoder_hidden_size=32, n_codebooks=2, codebook_size=32,
        downsampling_ratios=(2, 4, 5, 8), sampling_rate=24_000,
    )  # fmt: skip
    DacModel(small).save_pretrained(tmp_path / "dac")
    space = {}
    for cell in execute.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "12_inside_the_codec.ipynb", "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"profile": "smoke", "space": str(tmp_path / "dac")}
    assert list(space["spaces"])[-1] == str(tmp_path / "dac")
    assert set(space["followed"]["name"]) == set(space["spaces"])
