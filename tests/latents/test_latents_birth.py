"""How a sound is born: planted decisions are found where they were planted."""

from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musae_utils import models, music
from musae_utils.latents import birth, nano
from musae_utils.latents import flow as flows
from musae_utils.latents.model import LatentModel

SMALL = {"width": 16, "layers": 2, "heads": 2, "latent": 4, "max_words": 32}
ONE = ("loudness",)


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    vae = nano.NanoVAE({"encoder_width": 16, "decoder_width": 16, "dim": 4}).eval()
    model = LatentModel("tiny", "vae", vae, vae.encode, vae.decode, 16000, 640, 4)
    return flows.Flow(flows.FlowNet(SMALL), model)


@pytest.fixture(scope="module")
def nano_lm():
    return models.load("nano")


# -- asking and hearing


def test_pairs_differ_in_everything_and_every_word_is_known():
    asked = birth.prompt_pairs(40, seed=1)
    for name in ("tonic", "mode", "family", "drums", "dynamics", "register", "tempo"):
        assert (asked[f"{name}_a"] != asked[f"{name}_b"]).all(), name
    known = set(flows.VOCABULARY)
    from musae_utils.music.captions import words

    said = {w for text in [*asked["a"], *asked["b"]] for w in words(text)}
    assert said <= known
    assert max(len(words(text)) for text in asked["a"]) <= flows.FLOW["max_words"]
    assert birth.prompt_pairs(40, seed=1).equals(asked)
    assert asked["a"].nunique() == 40


def test_hearing_tells_loud_from_soft_and_high_from_low():
    t = np.arange(16_000) / 16_000
    sounds = np.stack([0.5 * np.sin(2 * np.pi * hz * t) for hz in (220, 880)])
    sounds[1] *= 0.1
    heard = birth.hear(sounds, 16_000)
    assert set(heard) == set(birth.UNITS)
    assert heard["pitch"].shape == (2, 25) and heard["tonic"].shape == (2, 12)
    pitch, level = (birth.overall(name, heard[name])[:, 0] for name in ("pitch", "loudness"))
    assert pitch[1] - pitch[0] == pytest.approx(24, abs=0.5)
    assert level[1] - level[0] == pytest.approx(-20, abs=0.5)
    with pytest.raises(ValueError, match="no attribute 'colour'; there are pitch"):
        birth.hear(sounds, 16_000, ["colour"])


@given(
    st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_distances_are_distances(rows, random):
    a = np.array(rows)
    b = a[random.sample(range(len(a)), len(a))]
    for name in ("pitch", "onsets"):
        assert (birth.distance(name, a, a) == 0).all()
        assert np.allclose(birth.distance(name, a, b), birth.distance(name, b, a))
        assert np.allclose(birth.distance(name, a, b), np.abs(a - b).mean(1))
    p = np.exp(a / 50) / np.exp(a / 50).sum(1, keepdims=True)
    q = p[::-1]
    assert ((birth.distance("tonic", p, q) >= 0) & (birth.distance("tonic", p, q) <= 1)).all()


def test_frames_without_a_pitch_are_no_knowledge_and_no_goal():
    goal = np.array([[60.0, np.nan, 64.0], [np.nan, np.nan, np.nan]])
    heard = np.array([[60.0, 90.0, np.nan], [60.0, 60.0, 60.0]])
    gap = birth.distance("pitch", heard, goal)
    assert gap[0] == pytest.approx((0 + 2) / 2)  # the median of all goals, 62, against 64
    assert np.isnan(gap[1])
    with pytest.raises(ValueError, match="cannot be compared"):
        birth.distance("pitch", heard, goal[:, :2])


# -- statistics


@given(st.floats(0.5, 30), st.floats(0.3, 3))
def test_half_of_a_falling_curve_is_found(middle, width):
    at = np.arange(0, 33, 2)
    curve = 1 / (1 + np.exp((at - middle) / width))
    found = birth.halfway(at, curve)
    assert abs(found - middle) < 0.6
    assert birth.halfway(at, curve * 0.4) == 0  # never above one half
    assert birth.halfway(at, np.ones(len(at))) == 32


@given(st.integers(0, 15), st.floats(0.01, 0.5))
def test_settling_is_after_the_last_step_outside(last, tolerance):
    at, curve = list(range(17)), np.zeros(17)
    curve[last] = 1.0
    found = birth.settling(at, curve, tolerance)
    assert last < found <= last + 1
    assert birth.settling(at, np.zeros(17)) == 0
    assert birth.settling(at, np.ones(17)) == 16
    curve[last] = np.nan
    assert birth.settling(at, curve, tolerance) == last + 1


def made_course(steps=32, settle=10, n=30, seed=0):
    """Errors that fall to nothing at a planted step, and two births that end where they began."""
    rng = np.random.default_rng(seed)
    at = list(range(0, steps + 1, 2))
    falls = np.clip(1 - np.array(at) / settle, 0, 1)[:, None]
    error = falls * rng.uniform(0.8, 1.2, n)
    way = rng.uniform(1, 2, n)
    way[:2] = 1e-4
    moved = (1 - falls) * way
    moved[5, :2] = 1.0
    names = birth.UNITS
    part = {"at": at, "error": dict.fromkeys(names, error), "moved": dict.fromkeys(names, moved)}
    return {"state": part, "prediction": part, "stranger": dict.fromkeys(names, np.ones(n)),
            "average": dict.fromkeys(names, np.full(n, 0.7))}  # fmt: skip


def test_settling_steps_are_found_and_small_ways_left_out():
    kept = made_course(settle=10)
    for by in ("error", "s"):
        found = birth.settled(kept, "state", "pitch", by=by)
        assert found.value == pytest.approx(9, abs=0.7)
        assert found.low <= found.value <= found.high
    s, left_out = birth.ways(kept, "state", "pitch")
    assert left_out == 2 and s.shape == (17, 28) and s.max() < 1.01
    later = birth.settled(made_course(settle=24), "state", "pitch")
    assert later.above(birth.settled(kept, "state", "pitch"))
    assert (np.diff(birth.errors(kept, "state", "pitch")) <= 0).all()


def made_swaps(decided=12, n=40, noise=0.3, steps=32, seed=0):
    """Levels of pieces under swaps: they are the donor's until a step, and then their own."""
    rng = np.random.default_rng(seed)
    level = lambda x: {"loudness": x[:, None] + np.zeros((1, 5))}  # noqa: E731
    own, donor = rng.normal(0, 3, n), rng.normal(0, 3, n)
    results = {}
    for t in range(0, steps + 1, 2):
        mine = own if t >= decided else donor
        results[t] = level(mine + (0 if t in (0, steps) else noise) * rng.normal(0, 1, n))
    return birth.between(results, level(own), level(donor))


@pytest.mark.parametrize("step", [4, 12, 26])
def test_a_planted_decision_is_found(step):
    kept = made_swaps(step)
    shares = birth.share(kept, "loudness")
    assert shares[0] == pytest.approx(1) and shares[-1] == pytest.approx(0)
    found, null = (birth.decided(kept, "loudness", goal) for goal in ("donor", "stranger"))
    assert step - 2 <= found.low <= found.value <= found.high <= step
    assert found.n == 40
    assert null == (0, 0, 0, 40) and np.abs(birth.share(kept, "loudness", "stranger")).max() < 0.3
    assert birth.grip(kept, "loudness").low > 0.6


def test_what_goes_somewhere_else_does_not_follow():
    rng = np.random.default_rng(2)
    level = lambda x: {"loudness": x[:, None] + np.zeros((1, 5))}  # noqa: E731
    own, donor, else_ = rng.normal(0, 3, (3, 200))
    results = {0: level(donor), 1: level(else_), 2: level(own)}
    kept = birth.between(results, level(own), level(donor))
    assert abs(birth.share(kept, "loudness")[1]) < 0.15
    assert birth.left(kept, "loudness")[1] == pytest.approx(1, abs=0.2)
    assert birth.left(kept, "loudness")[[0, 2]].tolist() == [1, 0]
    with pytest.raises(ValueError, match="one row only"):
        birth.between({0: level(own[:1])}, level(own[:1]), level(donor[:1]))


def test_a_prompt_without_a_grip_decides_nothing():
    own = np.random.default_rng(1).normal(0, 3, 40)
    level = lambda x: {"loudness": x[:, None] + np.zeros((1, 5))}  # noqa: E731
    results = {t: level(own + 0.01 * (32 - t) / 32) for t in (0, 16, 32)}
    kept = birth.between(results, results[32], results[0])
    assert birth.grip(kept, "loudness").high < 0.05


# -- births


def test_swaps_begin_with_the_other_prompt_and_end_with_the_own(flow, monkeypatch):
    monkeypatch.setattr(birth, "STEPS", 6)
    a, b = ["piano, in c major"] * 2, ["flute, in d minor, slow"] * 2
    born, results = birth.swapped(flow, a, b, [3, 4], (2, 4), seconds=1, steps=6)
    assert list(results) == [0, 2, 4, 6]
    assert np.allclose(results[0], flow.draw(b, 1, [3, 4], 6).states[-1], atol=1e-5)
    assert np.array_equal(results[6], born.states[-1])
    whole = flow.draw(a, 1, [3, 4], 6, prompts_from={2: b}).states[-1]
    assert np.allclose(results[2], whole, atol=1e-5)
    # The null: the same prompt again changes nothing.
    _, same = birth.swapped(flow, a, a, [3, 4], (2, 4), seconds=1, steps=6)
    assert all(np.allclose(x, same[6], atol=1e-5) for x in same.values())


def test_a_course_ends_at_the_result(flow):
    born = flow.draw(["piano", "flute", None], 1, [0, 1, 2], 4)
    kept = birth.course(flow, born, every=3)
    assert kept["state"]["at"] == [0, 3, 4] and kept["prediction"]["at"] == [0, 3]
    for name in birth.UNITS:
        assert np.shape(kept["state"]["error"][name]) == (3, 3)
        last = kept["state"]["error"][name][-1]
        assert np.allclose(last[np.isfinite(last)], 0)
        assert np.allclose(kept["state"]["moved"][name][0], 0)
    with pytest.raises(ValueError, match="two of them"):
        birth.course(flow, flow.draw(["piano"], 1, [0], 2))


def test_pushes_act_in_their_window_alone(flow):
    born = flow.draw(["piano"], 1, [0], 4)
    by = np.ones(4, np.float32)
    turned = birth.steered(flow, born, by, [(0, 4), (3, 4), (4, 4), (1, 1)])
    assert np.allclose(turned[3, 4], born.states[-1] + by, atol=1e-4)  # the last step is direct
    assert np.array_equal(turned[4, 4], born.states[-1] + by)
    assert np.allclose(turned[1, 1], born.states[-1], atol=1e-5)
    assert not np.allclose(turned[0, 4], turned[3, 4], atol=1e-3)
    spread = np.array([1.0, 2, 3, 4])
    drawn = birth.random_like(by, spread)
    assert np.linalg.norm(drawn / spread) == pytest.approx(np.linalg.norm(by / spread), rel=1e-5)
    assert np.array_equal(drawn, birth.random_like(by, spread))


def test_directions_are_what_was_planted():
    clips = music.make_many(6, 61_000, 5.0, "train", drums=False)
    clips += music.make_many(6, 61_100, 5.0, "train", drums=True)

    class Planted:
        """Latents whose first number is the level in dB / 10, and whose last says drums."""

        def encode(self, given):
            out = np.random.default_rng(0).normal(0, 0.01, (len(given), 125, 3))
            for i, clip in enumerate(given):
                heard = birth.hear(clip.audio, clip.sample_rate, ONE)["loudness"][0]
                out[i, :, 0] += heard[:125] / 10
                out[i, :, 2] += 2.0 * clip.truth.clip["drums"]
            return out.astype(np.float32)

    found = birth.directions(Planted(), clips)
    assert found["louder"][0] == pytest.approx(0.1, abs=0.01)
    assert abs(found["louder"][1]) < 0.01
    assert found["drums"][2] == pytest.approx(2.0, abs=0.05)
    with pytest.raises(ValueError, match="with drums and without"):
        birth.directions(Planted(), clips[:6])


# -- the language model


def test_codebooks_go_over_one_by_one():
    a, b = torch.zeros(2, 4, 3, dtype=torch.long), torch.ones(2, 4, 3, dtype=torch.long)
    for keep, order in (("first", [0, 1, 2, 3]), ("last", [3, 2, 1, 0])):
        mixed = birth.mixed_codebooks(a, b, keep)
        assert list(mixed) == [0, 1, 2, 3, 4]
        assert mixed[0].equal(a) and mixed[4].equal(b)
        for k in range(4):
            assert (mixed[k + 1] - mixed[k]).sum((0, 2)).nonzero()[:, 0].tolist() == [order[k]]
    with pytest.raises(ValueError, match="not 'middle'"):
        birth.mixed_codebooks(a, b, "middle")
    with pytest.raises(ValueError, match="cannot be mixed"):
        birth.mixed_codebooks(a, b[..., :2], "first")


def test_prompts_by_layer_run_from_the_donors_music_to_the_own(nano_lm):
    a, b = ["slow piano in c major"], ["fast flute in d minor, with drums"]
    played = birth.prompts_by_layer(nano_lm, a, b, 0.5, [5])
    assert list(played) == list(range(nano_lm.n_layers + 1))
    both = nano_lm.generate([*a, *b], 0.5, [5, 5]).audio.numpy()
    assert np.allclose(played[nano_lm.n_layers], both[:1], atol=1e-3)
    assert np.allclose(played[0], both[1:], atol=1e-3)
    same = birth.prompts_by_layer(nano_lm, a, a, 0.3, [5])
    assert all(np.allclose(x, same[0], atol=1e-3) for x in same.values())
    assert not nano_lm.lm.transformer.layers[0].cross_attention._forward_pre_hooks


def test_a_model_whose_layers_do_not_read_the_prompt_is_told_so():
    layers = [SimpleNamespace(cross_attention=None)]
    model = SimpleNamespace(lm=SimpleNamespace(transformer=SimpleNamespace(layers=layers)))
    model.name, model.n_layers = "melody", 1
    assert not birth.hears_by_layer(model)
    with pytest.raises(ValueError, match="melody do not read the prompt"):
        birth.prompts_by_layer(model, ["a"], ["b"], 1.0, [0])


def test_memories_run_from_the_donors_continuation_to_the_own(nano_lm):
    clips = music.make_many(2, 61_000, 5.0, "test")
    codes = nano_lm.encode(clips)[..., :25]
    played = birth.memories_by_layer(nano_lm, codes[:1], codes[1:], 0.4, [3])
    assert list(played) == list(range(-1, nano_lm.n_layers + 1))
    alone = nano_lm.generate([None] * 2, 0.9, [3, 3], prompt_codes=codes)
    cut = round(0.5 * nano_lm.sample_rate)
    own, donor = nano_lm.decode(alone.codes).numpy()[:, cut:]
    assert np.allclose(played[nano_lm.n_layers], own, atol=1e-3)
    # The donor's continuation: the same codes, whose phase the decoder continues from elsewhere.
    seam = round(0.1 * nano_lm.sample_rate)
    seen = [np.abs(librosa.stft(x[seam:], n_fft=512)) for x in (played[-1][0], donor, own)]
    likeness = [np.corrcoef(seen[0].ravel(), x.ravel())[0, 1] for x in seen[1:]]
    assert likeness[0] > 0.95 > likeness[1]
    itself = birth.memories_by_layer(nano_lm, codes[:1], codes[:1], 0.3, [3])
    assert all(np.allclose(x, itself[0], atol=1e-3) for x in itself.values())


# -- all of it


@pytest.mark.slow
def test_everything_is_kept_and_taken_up_again(flow, nano_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(birth, "_clips", lambda: music.make_many(8, 61_000, 5.0, "train"))
    plan = birth.Plan(pairs=4, seconds=1.0, swaps=(8, 16), windows=((0, 32), (32, 32)), pushed=2,
                      pieces=2, begun=0.5, played=0.5, batch=2)  # fmt: skip
    made = birth.run(tmp_path / "runs", plan, flow, nano_lm)
    birth._save(tmp_path / "birth.json", made)
    kept = birth.load(tmp_path / "birth.json")
    found = birth.figures(kept)
    for name in birth.UNITS:
        for one in (f"birth.{name}_settle", f"birth.{name}_decided"):
            assert 0 <= found[one].low <= found[one].high <= 32 and found[one].n <= 4
    assert (
        birth.share(kept["swap"], "tonic")[0] == 1 and birth.share(kept["swap"], "tonic")[-1] == 0
    )

    def never(*_, **__):
        raise AssertionError("what was kept is not made again")

    monkeypatch.setattr(birth, "swapped", never)
    monkeypatch.setattr(birth, "prompts_by_layer", never)
    next((tmp_path / "runs").glob("push-*/000-002.json")).unlink()
    again = birth.run(tmp_path / "runs", plan, flow, nano_lm)
    was, now = dict(made["provenance"]), dict(again["provenance"])
    was.pop("seconds"), now.pop("seconds")
    assert was == now
    assert birth._plain(again["swap"]) == birth._plain(made["swap"])


def test_the_kept_table_is_whole():
    if not birth.TABLE.exists():
        pytest.skip("make latents has not been run")
    kept = birth.load()
    plan = kept["provenance"]["plan"]
    assert plan["pairs"] >= 64 and kept["provenance"]["steps"] == 32
    found = birth.figures(kept)
    for name in ("pitch", "loudness", "timbre"):
        assert found[f"birth.{name}_decided"].n >= 64
        assert 0 <= found[f"birth.{name}_settle"].low <= found[f"birth.{name}_settle"].high <= 32
    assert birth.share(kept["swap"], "tonic")[0] == pytest.approx(1)
    assert birth.share(kept["swap"], "tonic")[-1] == pytest.approx(0)
