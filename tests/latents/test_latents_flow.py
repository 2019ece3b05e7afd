"""The nano latent-diffusion model: steps from noise to music, swaps, steering, a survived kill."""

import numpy as np
import pytest
import torch

from musae_utils.latents import flow as flows
from musae_utils.latents import nano, train_flow
from musae_utils.latents.model import LatentModel
from musae_utils.models import nano as parts

SMALL = {"width": 16, "layers": 2, "heads": 2, "latent": 4, "max_words": 6}


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    vae = nano.NanoVAE({"encoder_width": 16, "decoder_width": 16, "dim": 4}).eval()
    model = LatentModel("tiny", "vae", vae, vae.encode, vae.decode, 16000, 640, 4)
    return flows.Flow(flows.FlowNet(SMALL), model)


def test_a_birth_holds_every_step(flow):
    birth = flow.draw(["flute in c major", None], seconds=1, seeds=[3, 4], steps=5)
    assert birth.states.shape == (6, 2, 25, 4) and birth.predictions.shape == (5, 2, 25, 4)
    assert birth.sigmas[0] == 1 and birth.sigmas[-1] == 0 and (np.diff(birth.sigmas) < 0).all()
    assert np.array_equal(birth.states[0], flow.noise([3, 4], 1))
    # Euler's method: the last step goes all the way to the last prediction.
    assert np.allclose(birth.states[-1], birth.predictions[-1], atol=1e-5)


def test_states_lie_between_prediction_and_noise(flow):
    birth = flow.draw(["flute"], seconds=1, seeds=[0], steps=4)
    for t in range(4):
        share = birth.sigmas[t + 1] / birth.sigmas[t]
        between = share * birth.states[t] + (1 - share) * birth.predictions[t]
        assert np.allclose(birth.states[t + 1], between, atol=1e-5)


def test_the_same_seed_is_the_same_music_whoever_else_is_there(flow, monkeypatch):
    alone = flow.draw(["flute"], seconds=1, seeds=[7], steps=3)
    together = flow.draw(["piano", "flute", None], seconds=1, seeds=[1, 7, 2], steps=3)
    assert np.allclose(alone.states[:, 0], together.states[:, 1], atol=1e-5)
    monkeypatch.setattr(flows, "ROWS", 2)
    apart = flow.draw(["piano", "flute", None], seconds=1, seeds=[1, 7, 2], steps=3)
    assert np.allclose(apart.states, together.states, atol=1e-5)


def test_a_swapped_prompt_is_heard_from_its_step_on(flow):
    a, b = ["flute in c major"], ["piano in d minor, slow"]
    ask = dict(seconds=1, seeds=[5], steps=6)
    first, other = flow.draw(a, **ask), flow.draw(b, **ask)
    swapped = flow.draw(a, prompts_from={2: b}, **ask)
    assert np.array_equal(swapped.states[:3], first.states[:3])
    assert not np.allclose(swapped.states[3], first.states[3])
    assert np.array_equal(flow.draw(a, prompts_from={0: b}, **ask).states, other.states)
    same = flow.draw(a, prompts_from={3: a}, **ask)
    assert np.array_equal(same.states, first.states)


def test_a_birth_goes_on_from_any_of_its_states(flow):
    ask = dict(seconds=1, seeds=[5], steps=6)
    whole = flow.draw(["flute"], **ask)
    rest = flow.draw(["flute"], begin=(4, whole.states[4]), **ask)
    assert rest.first == 4 and np.allclose(rest.states, whole.states[4:], atol=1e-5)


def test_steering_by_nothing_changes_nothing_and_by_something_moves_the_result(flow):
    ask = dict(seconds=1, seeds=[5], steps=6)
    plain = flow.draw(["flute"], **ask)
    same = flow.draw(["flute"], steer=lambda step, x: x, **ask)
    assert np.allclose(same.states, plain.states, atol=1e-5)
    push = np.array([1, 0, 0, 0], np.float32)
    pushed = flow.draw(["flute"], steer=lambda step, x: x + push if step == 5 else x, **ask)
    assert np.allclose(pushed.states[-1], plain.states[-1] + push, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (dict(prompts=[]), "as many seeds"),
        (dict(prompts=["flute"], seeds=[1, 2]), "as many seeds"),
        (dict(prompts=["flute"], steps=0), "one step or more"),
        (dict(prompts=["flute"], seconds=0.01), "one latent frame"),
        (dict(prompts=["flute"], steps=4, begin=(4, np.zeros((1, 5, 4)))), "from 0 to 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(flow, asked, answer):
    with pytest.raises(ValueError, match=answer):
        flow.draw(**asked)


def test_what_is_saved_is_loaded(tmp_path, flow):
    parts.save_part(tmp_path, "flow", flow.net, {"architecture": SMALL}, eight_bit=True)
    net = parts.load_part(tmp_path, "flow", {"flow": flows.FlowNet})
    x, level = torch.randn(1, 4, 10), torch.tensor([0.5])
    before, after = (n(x, level, n.read(["flute"])) for n in (flow.net, net))
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.99


class Killed(Exception):
    pass


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch, flow):
    for name, value in {"SHAPES": ((2, 20), (3, 10)), "SAVE_EVERY": 2}.items():
        monkeypatch.setattr(train_flow, name, value)
    for name, value in SMALL.items():
        monkeypatch.setitem(flows.FLOW, name, value)
    known = np.random.default_rng(0).standard_normal((100, 750, 4)).astype(np.float16)
    monkeypatch.setattr(train_flow, "load_nano_latents", lambda *args: flow.vae)
    monkeypatch.setattr(train_flow, "latent_shard", lambda *args: known)
    monkeypatch.setattr(train_flow.Captions, "of", lambda *args: "flute in c major")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    train_flow.train(whole, whole, steps=6, shards=1)
    calls = []

    def dying(*args):
        calls.append(1)
        if len(calls) == 9:
            raise Killed
        return "flute in c major"

    with monkeypatch.context() as m:
        m.setattr(train_flow.Captions, "of", dying)
        with pytest.raises(Killed):
            train_flow.train(killed, killed, steps=6, shards=1)
    train_flow.train(killed, killed, steps=6, shards=1)
    a, b = ((folder / "flow.safetensors").read_bytes() for folder in (whole, killed))
    assert a == b
