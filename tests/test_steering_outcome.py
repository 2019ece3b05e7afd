"""What steering did: known answers for every column, and choices that are made on other seeds."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from musae_utils.models import compat  # noqa: F401  # isort: skip  (before audiocraft)
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import POINT, clip_of, store_of
from test_steering import CARD, PEAK, an_sae, model, sae  # noqa: F401  # fixtures

from musae_utils import stats, steering
from musae_utils.labels.words import phrase
from musae_utils.models import Generation
from musae_utils.steering import Knob, Patch, choose, experiment, outcome

CONCEPTS = ["drums: yes", "drums: no", "tonic: D", "tonic: G"]


class Loud:
    """Hears drums in loud sounds, and everything else in none."""

    name = "loud"
    tags = tuple(map(phrase, CONCEPTS))

    def probabilities(self, sounds):
        level = np.array([np.abs(s.audio).mean() for s in sounds])
        return np.stack([level, 1 - level, 0 * level + 0.5, 0 * level + 0.5], 1).clip(0, 1)


class Space:
    """Sounds by their level and its complement; drums point one way, all else the other."""

    name = "space"

    def embed_sounds(self, sounds):
        level = np.array([np.abs(s.audio).mean() for s in sounds]).clip(0, 1)
        return np.stack([level, np.sqrt(1 - level**2)], 1)

    def embed_texts(self, texts):
        return np.array([[1.0, 0.0] if text == "with drums" else [0.0, 1.0] for text in texts])


def heard(levels, nats=None, clipping=None):
    """Rows of which only the level is told."""
    levels = np.asarray(levels, float)
    odds = np.log(levels / (1 - levels))
    sound = pd.DataFrame({"nats": nats if nats is not None else 3.0 + 0 * levels,
                          "clipping": clipping if clipping is not None else 0 * levels,
                          "silence": 0 * levels, "loops": 0 * levels})  # fmt: skip
    zero = 0 * odds
    return outcome.Heard(
        pd.DataFrame(np.stack([odds, -odds, 2 * odds, zero], 1), columns=CONCEPTS),
        pd.DataFrame(np.stack([levels, zero, zero, zero], 1), columns=CONCEPTS),
        np.stack([levels, zero], 1), sound,
    )  # fmt: skip


def rows(concepts, units, **more):
    return pd.DataFrame({"concept": concepts, "unit": units, **more})


# -- what is heard


def test_a_sweep_is_heard_by_both_and_by_the_model(model):  # noqa: F811
    codes = torch.randint(CARD, (3, 4, 30), generator=torch.Generator().manual_seed(1))
    audio = torch.zeros(3, 9600)
    audio[1] = 1.0
    audio[2] = 0.3
    played = Generation(audio, codes, 16_000, ["slow piano", None, None], {})
    found = outcome.hear(model, played, Loud(), Space(), CONCEPTS)
    assert list(found.odds) == CONCEPTS
    assert found.odds["drums: yes"].tolist() == pytest.approx(
        [np.log(1e-4 / (1 - 1e-4)), -np.log(1e-4 / (1 - 1e-4)), np.log(0.3 / 0.7)], rel=1e-4
    )
    assert found.cosine["drums: yes"].tolist() == pytest.approx([0, 1, 0.3])
    assert found.sound["clipping"].tolist() == [0, 1, 0]
    assert found.sound["silence"].tolist() == [1, 0, 0]
    from musae_utils.models import quality

    nats = quality.cross_entropies(model, codes.numpy(), played.prompts)
    assert found.sound["nats"].to_numpy() == pytest.approx(nats.mean(1), rel=1e-4)


def test_no_model_judges_what_it_chose(model):  # noqa: F811
    played = Generation(torch.zeros(1, 800), torch.zeros(1, 4, 2).long(), 16_000, [None], {})
    with pytest.raises(ValueError, match="another judge"):
        outcome.hear(model, played, Loud(), type("Same", (Space,), {"name": "loud"})(), CONCEPTS)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_loops_are_pieces_that_were_played_before(codes, n):
    pieces = [codes[i : i + n] for i in range(len(codes) - n + 1)]
    again = sum(piece in pieces[:i] for i, piece in enumerate(pieces))
    assert outcome.loops(codes, n) == again / max(1, len(codes))


# -- what became of rows


def test_changes_are_from_the_untouched_row_of_the_same_unit():
    table = outcome.changes(
        heard([0.2, 0.4, 0.5, 0.6], nats=[3.0, 3.2, 4.0, 3.1]),
        rows(["", "", "drums: yes", "drums: yes"], ["a", "b", "b", "a"]), 512,
    )  # fmt: skip
    assert table["judge"].tolist() == pytest.approx([0.1, 0.4])
    assert table["nats"].tolist() == pytest.approx([0.8, 0.1])
    odds = lambda p: np.log(p / (1 - p))  # noqa: E731
    assert table["tagger"].tolist() == pytest.approx([odds(0.5) - odds(0.4), odds(0.6) - odds(0.2)])
    # "drums: no" answers the same question; of the two tonics one moved by twice as much
    assert table["others"].tolist() == pytest.approx(
        [np.sqrt((2 * x) ** 2 / 2) for x in table["tagger"]]
    )
    assert table["broken"].tolist() == [True, False]


def test_scores_go_from_0_to_2():
    levels = [0.1, 0.2, 0.3, 0.4, 0.05, 0.25, 0.9]
    nats = [3.0, 3.0, 3.0, 3.0, 3.0, np.log(512), 2.0]
    told = rows([""] * 4 + ["drums: yes"] * 3, ["a", "b", "c", "d", "a", "a", "a"])
    table = outcome.changes(heard(levels, nats), told, 512)
    assert table["concept score"].tolist() == [0, 0, 2]
    assert table["fluency score"].tolist() == pytest.approx([2, 0, 2])
    assert table["harmonic"].tolist() == pytest.approx([0, 0, 2])
    assert (table["harmonic"] <= (table["concept score"] + table["fluency score"]) / 2).all()


def test_a_unit_has_one_untouched_row():
    for units in (["a", "a", "a"], ["b", "c", "a"]):
        with pytest.raises(ValueError, match="exactly one untouched row"):
            outcome.changes(heard([0.1, 0.2, 0.3]), rows(["", "", "drums: yes"], units), 512)
    with pytest.raises(ValueError, match="not asked for 'mode: minor'"):
        outcome.changes(heard([0.1, 0.2]), rows(["", "mode: minor"], ["a", "a"]), 512)


# -- what holds over units


def made_table(shift, n=12, seed=0):
    rng = np.random.default_rng(seed)
    lines = [
        (method, concept, f"{u}", (shift if method == "output" else 0) + rng.normal(0, 1))
        for method in ("output", "random") for concept in "abcdefgh" for u in range(n)
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["method", "concept", "unit", "judge"])


def test_what_raises_is_found_and_noise_is_not():
    found = outcome.test(made_table(2.0), ["method", "concept"])
    assert (found.loc["output"]["adjusted"] < 0.05).all()
    assert (found.loc["random"]["adjusted"] < 0.05).sum() == 0
    assert (found["n"] == 12).all()
    one = found.loc[("output", "a")]
    assert one["low"] < one["value"] < one["high"] and one["p"] < 0.01
    by_hand = stats.benjamini_hochberg(found.loc["output"]["p"])
    assert found.loc["output"]["adjusted"].tolist() == pytest.approx(by_hand)


def test_wins_are_counted_in_pairs():
    table = made_table(0.0)
    table["judge"] = np.where(table["method"] == "output", 1.0, 0.0)
    lost = (table["method"] == "output") & (table["unit"].isin(["0", "1", "2"]))
    table.loc[lost, "judge"] = -1.0
    ratio, gap = outcome.wins(table, "output", "random")
    assert ratio.value == pytest.approx(3) and ratio.n == 8
    assert gap.value == pytest.approx(0.5)
    turned, _ = outcome.wins(table, "random", "output")
    assert turned.value == pytest.approx(1 / 3)


def test_it_breaks_where_most_rows_are_broken():
    broken = [False] * 4 + [True] * 2 + [False] * 2 + [True] * 4
    table = pd.DataFrame({"strength": np.repeat([0.5, 1, 2], 4), "broken": broken})
    assert outcome.breaks_at(table) == 2.0
    assert np.isnan(outcome.breaks_at(table[table["strength"] < 2]))


@given(st.floats(-3, 3), st.floats(0.5, 2))
@settings(max_examples=10, deadline=None)
def test_the_frechet_distance_of_two_gaussians(shift, scale):
    x = np.random.default_rng(0).standard_normal((400, 3))
    expected = 3 * shift**2 + 6 * shift * (scale - 1) * x.mean()  # of means
    expected = ((x * scale + shift).mean(0) - x.mean(0)) ** 2
    spread = (scale - 1) ** 2 * np.trace(np.cov(x.T))
    found = outcome.frechet(x, x * scale + shift)
    assert found == pytest.approx(expected.sum() + spread, abs=1e-6)


# -- which features


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    clips = [clip_of(i) for i in range(16)]
    return store_of(tmp_path_factory.mktemp("store") / "s", clips, (POINT,))


def test_codes_that_sound_with_a_concept_speak_for_it(store):
    class Clip:
        def __init__(self, truth):
            book = np.where(truth.frames["chord_root"] == 7, 3, 5)
            self.truth, self.codes = truth, torch.from_numpy(np.stack([book, 0 * book]))

    told = SimpleNamespace(clips=[Clip(clip.truth) for clip in store.clips], frame_rate=50.0)
    named, weights = choose.evidence(told, ["chord root: G", "no such concept"], 8)
    assert named == ["chord root: G"] and weights.shape == (1, 2, 8)
    assert weights[0, 0, 3] > 2 and weights[0, 0, 5] < -1 and abs(weights[0, 1, 0]) < 0.1


def test_a_pull_is_the_slope_of_what_is_expected(model, sae):  # noqa: F811
    from musae_utils import trace

    codes = torch.randint(CARD, (2, 4, 20), generator=torch.Generator().manual_seed(4))
    weights = torch.randn(3, 4, CARD, generator=torch.Generator().manual_seed(5))
    pull = choose.pulls(model, [sae], codes, weights)[0]
    assert pull.shape == (sae.config.d_sae, 3)

    def expected(strength):
        knobs = [Knob(sae, 7, strength, peak=1.0)] * 2
        edits = steering.edits(model, knobs, 0.4, guided=False)
        share = trace.edit(model, edits).logits(codes).softmax(-1)
        return torch.stack([(share[:, k, 4 - k : 20 - k].mean((0, 1)) * weights[:, k]).sum(1)
                            for k in range(4)]).sum(0)  # fmt: skip

    step = 0.05
    slope = (expected(step) - expected(-step)) / (2 * step)
    assert pull[7] == pytest.approx(slope.numpy(), rel=0.25, abs=2e-3)


def test_at_most_so_many_answers_to_one_question():
    table = pd.DataFrame({
        "concept": ["tonic: D", "tonic: D", "tonic: G", "tonic: A", "drums: yes"],
        "feature": [1, 2, 3, 4, 5], "t": [1.0, 5.0, 4.0, 3.0, 2.0],
    })  # fmt: skip
    chosen = experiment.clearest(table, "t", experiment.Plan(features=3, most=2))
    assert chosen["feature"].tolist() == [2, 3, 5]
    assert len(experiment.clearest(table, "t", experiment.Plan(features=1, most=2))) == 1


def test_rows_in_which_a_concept_holds(store):
    holds = experiment.where(store, ["chord root: G", "drums: yes"])
    assert holds.shape == (len(store), 2)
    first = store.clips[0]
    assert (holds[first.rows, 1] == first.truth.clip["drums"]).all()
    assert (holds[first.rows, 0] == (first.truth.frames["chord_root"][: first.n_rows] == 7)).all()


def test_the_whole_of_it_in_small(model, tmp_path):  # noqa: F811
    saes = [an_sae(model, 1), an_sae(model, 2, seed=4)]

    atlases = [PEAK, PEAK]  # all that knobs ask of them
    listed = pd.DataFrame({"by": "output", "concept": CONCEPTS[:3], "sae": [0, 1, 0],
                           "feature": [3, 4, 5], "score": 1.0})  # fmt: skip
    plan = experiment.Plan(features=2, most=1, doses=(1.0,), finding=2, scoring=2, untouched=3,
                           screened=0.2, seconds=0.3)  # fmt: skip
    marked = experiment.screen(model, saes, atlases, listed, Loud(), plan, tmp_path / "screen")
    assert np.isfinite(marked[["gain", "t"]].to_numpy()).all()
    again = experiment.screen(model, saes, atlases, listed, Loud(), plan, tmp_path / "screen")
    pd.testing.assert_frame_equal(marked, again)
    chosen = {"output": experiment.clearest(marked, "t", plan)}
    assert len(chosen["output"]) == 2
    made = {"random": list(torch.randn(2, 32))}
    prompts = ("slow piano", "drums")
    variants = experiment.ways(saes, atlases, chosen["output"], listed, plan)
    assert variants["follows"] == [None, None]
    assert variants["prompted half"][0].half == "cond"
    assert [knob.strength for knob in variants["all layers"][0]] == [plan.strength]
    variants["patch"] = [Patch(0, torch.randn(40, 32), plan.strength)] * 2
    play = lambda: experiment.play(  # noqa: E731
        model, saes, atlases, chosen, made, Loud(), Space(), plan, prompts, variants, tmp_path
    )
    table, embeddings = play()
    assert set(table["method"]) == {
        "output",
        "random",
        "prompt",
        "prompt + output",
        "prompted half",
        "all layers",
        "patch",
    }
    counts = table.groupby(["method", "strength"]).size()
    assert counts.pop(("output", 1.0)) == 2 * 2  # doses on one seed
    assert (counts == 2 * 4).all() and len(counts) == 7
    assert embeddings["untouched"].shape == (6, 2) and embeddings["random"].shape == (8, 2)
    # prompts of one seed share their noise with their untouched row: strength 0 would be no change
    pd.testing.assert_frame_equal(table, play()[0])  # kept, not played again
