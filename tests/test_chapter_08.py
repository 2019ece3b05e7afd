"""What chapter 08 claims, on less music than the chapter takes, with the code its readers see."""

import re

import pytest
from chapter import Chapter

from musae_utils import labels, models  # noqa: F401  # models before audiocraft

execute = Chapter("08_naming_features")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The parameters, the imports, the nano model, and the lot of features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("chapter"))
        space = execute.begin()
        yield execute(space, "labels.study(", pieces=40, seconds=5)


@pytest.fixture(scope="module")
def named(start):
    return execute(
        start, "chosen = max(clear", "described = labels.Descriptors()",
        "labels.nano_tagger(), labels.nano_clap()", "by_tags, by_texts =",
        "labels.MultimodalLLM(", "automatic = [label for label in named",
        display=lambda *_: None,
    )  # fmt: skip


def test_no_composition_is_in_both_halves_or_in_the_set_of_the_choice(start):
    study = start["study"]
    chosen_on = {clip.group for clip in study.known.clips}
    for examples in study.examples:
        halves = [{e.group for e in half.all} for half in (examples.finding, examples.scoring)]
        assert not halves[0] & halves[1] and not (halves[0] | halves[1]) & chosen_on


def test_the_lot_has_features_that_follow_and_features_that_were_drawn(start):
    planted = start["study"].planted
    assert (planted != "").sum() >= 3 and (planted == "").sum() == 2


def test_the_ears_show_their_marks_on_music_that_they_never_heard(named):
    marks = named["marks"]
    assert marks.loc["drums"].min() > 0.9  # what every ear must hear
    assert marks["nano tagger"]["10 s"].mean() > 0.8


def test_without_a_key_nothing_is_spent_and_the_others_go_on(named, capsys):
    assert named["listener"].spent == 0 and named["listener"].budget == 0
    assert {label.method for label in named["named"]} == {
        "nano tagger", "nano CLAP", "descriptors", "truth", "ensemble",
    }  # fmt: skip


def test_an_abstention_is_a_line_of_the_table(named):
    table = named["table"]
    assert (table == "—").any(axis=None) and len(table) == len(named["study"].planted)
    texts = table.drop(columns="follows, on training pieces")
    assert (texts != "—").any(axis=None)


def test_names_are_seldom_found_where_there_is_nothing(named):
    """Asked often enough that one name in twenty can be told from one in four."""
    study, found = named["study"], 0
    usable = [chosen for chosen in study.examples if not chosen.problem]
    coin = [labels.shuffled(chosen, seed) for seed in range(10) for chosen in usable]
    methods = [named["by_tags"], named["by_texts"]]
    for method in methods:
        for chosen in coin:
            found += not method.label(chosen.finding).abstains
    assert found / (len(coin) * len(methods)) < 0.15


def test_the_exercise_accepts_its_solution_and_hints_otherwise(start):
    space = execute(start, "def loud_or_quiet(half)", "def check(method)")
    assert "nothing, 80 got a name" in space["check"](space["loud_or_quiet"])
    cell = next(c for c in execute.cells if "dropdown} Solution" in c.source)
    solved = {}
    exec(re.search(r"```python\n(.*?)```", cell.source, re.S)[1], solved)
    assert space["check"](solved["loud_or_quiet"]).startswith("Right")
    assert "Too careful" in space["check"](lambda half: "")
    assert "return 'loud'" in space["check"](lambda half: "both")
