"""What chapter 07 claims, on less music than the chapter takes, with the code its readers see."""

import re

import numpy as np
import pytest
from chapter import Chapter

from musae_utils import features, models, stats  # noqa: F401  # models before audiocraft

execute = Chapter("07_the_feature_atlas")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The parameters, the imports, the nano model and the dictionaries, on 24 pieces a side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("chapter"))
        space = execute.begin()
        yield execute(space, "def harvested(split)", "features.encode(sae, unseen)", n=24)


@pytest.fixture(scope="module")
def surveyed(start):
    return execute(start, "features.survey(saes, unseen)")


@pytest.fixture(scope="module")
def marked(start):
    return execute(start, "features.known_answers(\n    {", profile="smoke")


def test_the_sets_share_no_composition_and_the_dictionaries_ship(start):
    groups = [{clip.group for clip in start[name].clips} for name in ("known", "unseen")]
    assert len(groups[0]) == len(groups[1]) == 24 and not groups[0] & groups[1]
    assert len(start["layers"]) == 3
    for sae, layer in zip(start["saes"], start["layers"], strict=True):
        assert sae.hook_point["layer"] == layer
        assert sae.provenance["music"]["split"] == "train"  # shipped, not trained here


def test_what_fires_most_in_a_piece_is_rarer_elsewhere(start):
    most = start["most"]
    assert (start["share"][most] > start["everywhere"][most]).all()


def test_an_untrained_dictionary_passes_the_filter_too(surveyed):
    kept = execute(surveyed, "idle = [features.rivals(")["kept"]
    assert (kept["untrained: kept"] > 100).all()
    assert (kept["kept"] <= kept["fire at all"]).all()


def test_the_explorer_is_written_beside_the_notebook(surveyed, capsys):
    space = execute(surveyed, "hear = features.sounds", "features.publish(atlases", display=print)
    page = space["place"] / "index.html"
    assert page.is_file() and "https://" not in re.sub(r"<!--.*?-->", "", page.read_text())
    assert len(list((space["place"] / "audio").glob("*.mp3"))) > 5


def test_training_found_more_than_chance(marked):
    gain = marked["marks"].gain("SAE", "untrained SAE", "frame")
    assert gain.low > 0.01
    blind = marked["marks"].gain("untrained SAE", "SAE", "frame")
    assert blind.value == pytest.approx(-gain.value)


def test_recall_bounds_the_auc_of_a_pure_feature(start):
    made = execute(start, "rng = np.random.default_rng(seed)\nholds =")["made"]
    assert np.allclose(made["AUC"], made["(1 + r) / 2"], atol=0.03)


def test_by_f1_the_dictionary_beats_its_untrained_twin(marked):
    table = marked["marks"].table["f1"]
    twin = table.loc["untrained SAE"].loc["frame"]
    difference = table.loc["SAE"].loc["frame"] - twin
    assert stats.bootstrap(difference.to_numpy()).low > 0


def test_the_missing_are_counted(marked):
    told = execute({**marked, "family": None}, "def family(concept)", "def found(level)")["told"]
    assert (told["one feature"] <= told["asked"]).all()
    marks = marked["marks"]
    for level in marks.levels:
        missed = told.loc[level]["asked"].sum() - told.loc[level]["one feature"].sum()
        assert missed == len(marks.missed("SAE", level)) > 0


def test_the_exercise_accepts_its_solution_and_hints_otherwise(start):
    space = execute(start, "def check(made)", winner=lambda *_: (0, 0.5))
    check = space["check"]
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {"stats": stats}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert check(solved["winner"]).startswith("Right")
    greedy = execute(start, "def winner(a, holds_a")["winner"]
    assert "lucky" in check(greedy)
    assert "chosen" in check(lambda a, p, b, q: (0, 0.5))
    assert check(lambda a, p, b, q: (-1, 0.5)).startswith("Hint")
