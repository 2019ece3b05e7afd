"""SAEs in other libraries' files, read by those libraries; bad files; the layer that fits."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from musae_utils.models import compat  # noqa: F401  # isort: skip  (before audiocraft)
from audiocraft.models import MusicGen

from musae_utils import activations, runs, sae, trace
from musae_utils.models import MusicModel, nano
from musae_utils.music import Clip
from musae_utils.sae import (
    SAE,
    SAEConfig,
    load_dictionary_learning,
    load_saelens,
    load_sparsity,
    save_dictionary_learning,
    save_saelens,
)

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("standard", "topk", "batch_topk", "matryoshka", "jumprelu", "gated")  # all but rmsnorm
PLACE = {"model": "nano", "layer": 3, "path": "transformer.layers.3", "fingerprint": "0123abcd"}
D, N, K = 6, 24, 3
X = torch.randn(50, D, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module", autouse=True)
def unhurried():
    """Hundreds of small files need not reach the disk; that they would is tested with `runs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_flush", lambda path: None)
        yield


def an_sae(kind, d=D, n=N, k=K, scale=1.0, seed=0, **fields):
    """Random weights, no two of a size; so many features active that thresholds matter."""
    k = k if kind in ("topk", "batch_topk", "matryoshka") else None
    made = SAE(SAEConfig.of(d, n / d, k, kind, **fields), PLACE, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise.abs() if parameter is getattr(made, "jump", None) else noise)
    made.scale.fill_(scale)
    if kind in ("batch_topk", "matryoshka"):
        made.calibrate(torch.randn(64, d, generator=generator) / scale)
    made.provenance = {"steps": 7}
    return made


def same(a, b, **tolerance):
    tolerance = tolerance or dict(rtol=0, atol=0)
    x = torch.randn(40, a.config.d_in, generator=torch.Generator().manual_seed(3)) / a.scale
    torch.testing.assert_close(b.encode(x), a.encode(x), **tolerance)
    torch.testing.assert_close(b(x), a(x), **tolerance)
    assert (a.encode(x) > 0).any()


# -- round trips


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saelens_gives_back_every_bit(kind, centred, tmp_path):
    made = an_sae(kind, apply_b_dec_to_input=centred, unit_norm=False)
    save_saelens(made, tmp_path)
    back = load_saelens(tmp_path)
    assert back.config == made.config and back.hook_point == PLACE
    assert back.provenance["steps"] == 7
    for name, value in made.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    same(made, back)


@pytest.mark.parametrize("kind", KINDS)
def test_dictionary_learning_gives_back_every_bit(kind, tmp_path):
    made = an_sae(kind, apply_b_dec_to_input=kind != "jumprelu", unit_norm=False)
    save_dictionary_learning(made, tmp_path)
    for path in (tmp_path, tmp_path / "ae.pt"):
        back = load_dictionary_learning(path)
        assert back.config == made.config and back.hook_point == PLACE
        for name, value in made.state_dict().items():
            assert torch.equal(back.state_dict()[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_takes_over_where_a_class_has_no_choice_about_b_dec(kind, tmp_path):
    made = an_sae(kind, apply_b_dec_to_input=kind == "jumprelu", unit_norm=False)
    save_dictionary_learning(made, tmp_path)
    back = load_dictionary_learning(tmp_path)
    exact = kind == "standard"  # there are two classes of this kind
    assert (back.config.apply_b_dec_to_input == made.config.apply_b_dec_to_input) == exact
    same(made, back, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS), d=st.integers(1, 7), expansion=st.integers(2, 6),
    scale=st.floats(0.01, 100), saelens=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_scale_goes_into_the_weights(
    tmp_path_factory, kind, d, expansion, scale, saelens, seed
):
    folder = tmp_path_factory.mktemp("sae")
    made = an_sae(kind, d, d * expansion, 1, scale, seed, unit_norm=False)
    save, load = (
        (save_saelens, load_saelens)
        if saelens
        else (save_dictionary_learning, load_dictionary_learning)
    )
    save(made, folder)
    back = load(folder)
    assert back.scale == 1
    x = torch.randn(40, d, generator=torch.Generator().manual_seed(seed)) / scale
    # A feature within rounding of its threshold may fall on either side, so z is compared.
    torch.testing.assert_close(back.pre_activations(x), made.pre_activations(x), **CLOSE)
    f = made.encode(x)
    torch.testing.assert_close(back.decode(f) * scale, made.decode(f) * scale, **CLOSE)
    save(back, folder)  # and from then on nothing changes
    again = load(folder)
    for name, value in back.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


CLOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 1e-40, 0.5, 1.0, 3.14159])
@pytest.mark.parametrize("save, load", [
    (save_saelens, load_saelens), (save_dictionary_learning, load_dictionary_learning),
])  # fmt: skip
def test_at_least_and_more_than_differ_by_one_float(threshold, save, load, tmp_path):
    made = SAE(SAEConfig(1, 2, "batch_topk", 1, unit_norm=False), seed=None)
    made.W_enc.data.fill_(1.0)
    made.threshold.fill_(threshold)
    at = made.threshold.expand(1, 1)
    x = torch.cat([at, torch.nextafter(at, torch.tensor(-1.0)), torch.ones(1, 1)])
    save(made, tmp_path)
    back = load(tmp_path)
    assert torch.equal(back.encode(x), made.encode(x))
    assert (made.encode(x)[0] > 0).all() == (threshold > 0)


def test_known_answer(tmp_path):
    """Feature 0 is x₀ - 1 over 0, feature 1 is x₁; the second is written twice as large."""
    cfg = {
        "architecture": "standard", "d_in": 2, "d_sae": 2, "dtype": "float32", "device": "cpu",
        "activation_fn_str": "relu", "apply_b_dec_to_input": False, "hook_name": "hook_layers.1",
        "model_name": "facebook/musicgen-small", "normalize_activations": "none",
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    weights = {
        "W_enc": [[1.0, 0.0], [0.0, 1.0]], "b_enc": [-1.0, 0.0],
        "W_dec": [[1.0, 0.0], [0.0, 2.0]], "b_dec": [1.0, 0.0],
    }  # fmt: skip
    weights["W_enc"][0][1] = 5.0  # feature 1 also hears x₀, five times as loud
    save_file(
        {name: torch.tensor(value) for name, value in weights.items()},
        tmp_path / "sae_weights.safetensors",
    )
    back = load_saelens(tmp_path)
    assert back.encode(torch.tensor([[3.0, 4.0]])).tolist() == [[2.0, 19.0]]
    assert back(torch.tensor([[3.0, 4.0]])).tolist() == [[3.0, 38.0]]


def test_densities_round_trip_and_do_not_outlive_their_sae(tmp_path):
    density = np.array([0.0, 1.0, 0.25, 1e-4] * 6)
    save_saelens(an_sae("topk"), tmp_path, density)
    stored = load_file(tmp_path / "sparsity.safetensors")["sparsity"]
    assert stored[:3].tolist() == pytest.approx([-10, 0, np.log10(0.25)], abs=1e-6)
    assert load_sparsity(tmp_path) == pytest.approx(density, abs=1e-6)
    save_saelens(an_sae("topk", seed=1), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"sparsity.safetensors is missing"):
        load_sparsity(tmp_path)
    with pytest.raises(ValueError, match=r"each of 24 features .* shape \(3,\)"):
        save_saelens(an_sae("topk"), tmp_path, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="from 0 to 1"):
        save_saelens(an_sae("topk"), tmp_path, density - 0.5)


@pytest.mark.parametrize("save", [save_saelens, save_dictionary_learning])
def test_what_a_library_cannot_express_is_refused(save, tmp_path):
    with pytest.raises(ValueError, match="no SAE of the kind 'rmsnorm'"):
        save(SAE(SAEConfig.of(4, 2, architecture="rmsnorm")), tmp_path / "a")
    made = an_sae("jumprelu")
    made.jump.data[3] = -0.1
    with pytest.raises(ValueError, match="no feature is active below 0, and 1 of"):
        save(made, tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        save(an_sae("topk"), tmp_path / "file")


def test_no_folder_of_this_machine_is_published(tmp_path):
    for name, shown in [
        ("/home/me/models/mine", "mine"), ("facebook/musicgen-small", "facebook/musicgen-small"),
        ("../mine", "mine"), (r"C:\me\mine", "mine"), ("~/mine/", "mine"), ("..", "a folder"),
    ]:  # fmt: skip
        made = an_sae("topk")
        made.hook_point["model"] = name
        for save, load, file in (
            (save_saelens, load_saelens, "cfg.json"),
            (save_dictionary_learning, load_dictionary_learning, "config.json"),
        ):
            save(made, tmp_path)
            assert "/home/me" not in (tmp_path / file).read_text()
            assert load(tmp_path).hook_point["model"] == shown


# -- S1's released SAEs


def s1(folder, layer=11, d=8, n=32, k=5, **changes):
    """A folder as sae-lens 5.3.2 writes it, with S1's settings and smaller matrices."""
    folder.mkdir(exist_ok=True)
    cfg = {
        "architecture": "standard", "d_in": d, "d_sae": n, "dtype": "float32", "device": "cuda",
        "model_name": "facebook/musicgen-small", "hook_name": f"hook_layers.{layer}",
        "hook_layer": layer, "hook_head_index": None, "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": k}, "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False, "sae_lens_training_version": "5.3.2",
        "prepend_bos": False, "dataset_path": "/data/MusicSet", "dataset_trust_remote_code": True,
        "context_size": 501, "normalize_activations": "none", "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {}, "seqpos_slice": [None],
    } | changes  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(cfg))
    generator = torch.Generator().manual_seed(layer)
    shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
    weights = {name: torch.randn(s, generator=generator) for name, s in shapes.items()}
    save_file(weights, folder / "sae_weights.safetensors")
    return weights


@pytest.mark.parametrize("layer", sae.presets.S1_LAYERS["small"])
def test_s1_layers_count_from_0_and_the_loader_says_so(layer, tmp_path, capsys):
    w = s1(tmp_path, layer)
    found = load_saelens(tmp_path)
    assert found.hook_point == {
        "model": "facebook/musicgen-small", "layer": layer, "fingerprint": None,
        "path": f"transformer.layers.{layer}",
    }  # fmt: skip
    assert found.config == SAEConfig(8, 32, "topk", 5, unit_norm=False)
    assert found.provenance["cfg"]["context_size"] == 501
    said = capsys.readouterr().out
    assert f"output of transformer.layers.{layer}, as hook_layers.{layer} counts from 0" in said
    assert f"count from 1, it is layer {layer + 1}." in said
    x = torch.randn(20, 8)
    z = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    f = z * (z >= z.sort(descending=True).values[:, 4:5])
    torch.testing.assert_close(found.encode(x), f)
    torch.testing.assert_close(found(x), f @ w["W_dec"] + w["b_dec"])


def test_a_published_sae_is_of_no_use_before_it_is_bound(tmp_path):
    s1(tmp_path)
    found = load_saelens(tmp_path)
    with pytest.raises(ValueError, match=r"weights not known.*load it with model="):
        found.check({**found.hook_point, "fingerprint": "0123abcd"})


def test_an_sae_used_at_another_hook_point_raises(tmp_path):
    save_saelens(an_sae("topk"), tmp_path)
    back = load_saelens(tmp_path)
    back.check(PLACE)
    other = {"layer": 4, "path": "transformer.layers.4"}
    for changed in (other, {"fingerprint": "ffff0000"}):
        with pytest.raises(ValueError, match=r"trained at transformer.layers.3 of nano"):
            back.check(PLACE | changed)


@pytest.mark.parametrize("name, layer", [
    ("hook_layers.0", 0), ("transformer.layers.7", 7), ("lm.transformer.layers.7", 7),
    ("blocks.7.hook_resid_post", 7), ("hook_embed", -1),
])  # fmt: skip
def test_hook_names(name, layer, tmp_path):
    s1(tmp_path, hook_name=name)
    assert load_saelens(tmp_path).hook_point["layer"] == layer
    assert load_saelens(tmp_path, layer=2).hook_point["path"] == "transformer.layers.2"


def test_the_layout_of_sae_lens_6(tmp_path):
    s1(tmp_path)
    cfg = {
        "d_in": 8, "d_sae": 32, "dtype": "float32", "device": "cpu", "k": 5, "architecture": "topk",
        "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none", "rescale_acts_by_decoder_norm": False,
        "metadata": {"hook_name": "hook_layers.11", "model_name": "facebook/musicgen-small"},
    }  # fmt: skip
    x = torch.randn(20, 8)
    before = load_saelens(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    after = load_saelens(tmp_path)
    assert after.config == before.config and after.hook_point == before.hook_point
    assert torch.equal(after(x), before(x))


# -- bad files


def change_cfg(**changes):
    def change(folder):
        cfg = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(cfg | changes))

    return change


def change_weights(**changes):
    def change(folder):
        path = folder / "sae_weights.safetensors"
        weights = load_file(path) | changes
        save_file({k: v for k, v in weights.items() if v is not None}, path)

    return change


def overwrite(name, data):
    def change(folder):
        (folder / name).write_bytes(data)

    return change


def cut(folder):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def missing(name):
    return lambda folder: (folder / name).unlink()


NAN = torch.full((32,), torch.nan)
BAD = {
    "no cfg": (missing("cfg.json"), "cfg.json is missing"),
    "no weights": (missing("sae_weights.safetensors"), "sae_weights.safetensors is missing"),
    "cfg cut short": (overwrite("cfg.json", b'{"d_in": 8'), "cfg.json is not JSON"),
    "cfg is binary": (overwrite("cfg.json", b"\xff\xfe\x00"), "cfg.json is not JSON"),
    "cfg nested without end": (overwrite("cfg.json", b"[" * 10**5), "cfg.json is not JSON"),
    "cfg is a list": (overwrite("cfg.json", b"[]"), "not a configuration"),
    "metadata is a list": (change_cfg(metadata=[1]), "metadata is a group of settings"),
    "musae is a text": (change_cfg(musae="hello"), "musae is a group of settings"),
    "d_in other": (change_cfg(d_in=9), r"W_enc of shape \(8, 32\); with d_in = 9 and d_sae = 32"),
    "d_in a text": (change_cfg(d_in="8"), "d_in is a whole number, not '8'"),
    "d_in missing": (change_cfg(d_in=None), "d_in is a whole number, not None"),
    "d_in negative": (change_cfg(d_in=-8), "d_in is a positive whole number, not -8"),
    "d_in infinite": (change_cfg(d_in=float("inf")), "d_in is a whole number, not inf"),
    "absurd": (change_cfg(d_sae=10**12, d_in=10**12), r"with d_in = 1000000000000"),
    "k too large": (change_cfg(activation_fn_kwargs={"k": 33}), "k = 33 features .* of 32"),
    "k is 0": (change_cfg(activation_fn_kwargs={"k": 0}), "k = 0 features"),
    "k missing": (change_cfg(activation_fn_kwargs=None), "k is a whole number, not None"),
    "k a half": (change_cfg(activation_fn_kwargs={"k": 2.5}), "k is a whole number, not 2.5"),
    "unknown kind": (change_cfg(architecture="quantum"), "no architecture 'quantum' here"),
    "kind is a list": (change_cfg(architecture=["topk"]), r"no architecture \['topk'\] here"),
    "activation": (change_cfg(activation_fn_str="tanh-relu"), "function is 'tanh-relu'"),
    "normalised": (change_cfg(normalize_activations="layer_norm"), "normalised by 'layer_norm'"),
    "heads": (change_cfg(reshape_activations="hook_z"), "reads attention heads"),
    "hook unknown": (change_cfg(hook_name="blocks.1.attn"), "hook 'blocks.1.attn', which is no"),
    "hook outside": (change_cfg(hook_name="../../etc/passwd"), "'../../etc/passwd', which is no"),
    "hook above": (change_cfg(hook_name="hook_layers.11/../../x"), "which is no layer"),
    "model outside": (change_cfg(model_name="../../secret"), "'../../secret', a path outside"),
    "model absolute": (change_cfg(model_name="/etc"), "'/etc', a path outside its folder"),
    "model a number": (change_cfg(model_name=3), "names a model by 3"),
    "layer absurd": (change_cfg(musae={"hook_point": {"layer": 10**12}}), "not 1000000000000"),
    "own kind": (change_cfg(musae={"config": {"architecture": "topk"}}), "no SAE of this package"),
    "weights cut short": (cut, "sae_weights.safetensors is damaged, cut short"),
    "weights empty": (overwrite("sae_weights.safetensors", b""), "is damaged, cut short"),
    "weights foreign": (overwrite("sae_weights.safetensors", b"PK\3\4" * 99), "is damaged"),
    "weights of another": (change_weights(W_enc=None, conv=torch.zeros(3)), "W_enc missing, conv"),
    "wrong shape": (change_weights(W_dec=torch.zeros(8, 32)), r"W_dec of shape \(8, 32\)"),
    "wrong rank": (change_weights(b_enc=torch.zeros(32, 1)), r"b_enc of shape \(32, 1\)"),
    "integers": (change_weights(b_enc=torch.zeros(32, dtype=torch.int64)), "as torch.int64"),
    "NaN": (change_weights(b_enc=NAN), "NaN or infinite values in b_enc"),
    "infinite": (change_weights(b_dec=torch.full((8,), -torch.inf)), "NaN or infinite.*b_dec"),
    "scaled": (change_weights(scaling_factor=torch.full((32,), 2.0)), "after the fact"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_answered_in_a_sentence(case, tmp_path):
    change, words = BAD[case]
    s1(tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        load_saelens(tmp_path / "a")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nothing"):
        for load in (load_saelens, load_sparsity):
            with pytest.raises(FileNotFoundError, match=r"give a folder with cfg.json"):
                load(path)
    with pytest.raises(FileNotFoundError, match=r"give a folder with an ae.pt"):
        load_dictionary_learning(tmp_path)


def test_absurd_sizes_cost_no_memory(tmp_path):
    """Also where the tensors agree, made of one number seen 10^12 times."""
    wide = torch.zeros(1).expand(10**6, 10**6)
    state = {
        "encoder.weight": wide, "decoder.weight": wide, "bias": wide[0], "encoder.bias": wide[0]
    }  # fmt: skip
    torch.save(state, tmp_path / "ae.pt")
    assert (tmp_path / "ae.pt").stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"holds less of .* than its shape \(1000000"):
        load_dictionary_learning(tmp_path)


def test_absurd_groups_cost_no_memory(tmp_path):
    save_dictionary_learning(an_sae("matryoshka"), tmp_path)
    change_state(group_sizes=torch.ones(1, dtype=torch.int64).expand(10**12))(tmp_path)
    with pytest.raises(ValueError, match="holds less of group_sizes than its shape"):
        load_dictionary_learning(tmp_path)


class Wicked:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, 2))]
)
def test_a_pickle_that_runs_something_is_refused(write, tmp_path):
    save_dictionary_learning(an_sae("topk"), tmp_path)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    write({**state, "b_dec": Wicked(tmp_path / "owned")}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae.pt is refused: .* more than tensors"):
        load_dictionary_learning(tmp_path)
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(Wicked(tmp_path / "owned")))  # it would have
    assert (tmp_path / "owned").exists()


def change_state(**changes):
    def change(folder):
        state = torch.load(folder / "ae.pt", weights_only=True) | changes
        torch.save({k: v for k, v in state.items() if v is not None}, folder / "ae.pt")

    return change


def change_trainer(**changes):
    def change(folder):
        known = json.loads((folder / "config.json").read_text())
        known["trainer"] |= changes
        (folder / "config.json").write_text(json.dumps(known))

    return change


BAD_AE = {
    "cut short": (lambda f: (f / "ae.pt").write_bytes((f / "ae.pt").read_bytes()[:500]), "ae.pt"),
    "empty": (overwrite("ae.pt", b""), "ae.pt is damaged, cut short"),
    "text": (overwrite("ae.pt", b"hello"), "ae.pt"),
    "a tensor": (lambda f: torch.save(torch.ones(3), f / "ae.pt"), "not a state dict"),
    "a whole module": (lambda f: torch.save(an_sae("topk"), f / "ae.pt"), "ae.pt is refused"),
    "unknown class": (change_trainer(dict_class="Magic"), "is a 'Magic'; of dictionary_learning"),
    "k differs": (change_trainer(k=4), "has k = 3, .*config.json k = 4"),
    "k too large": (
        lambda f: (change_trainer(k=99)(f), change_state(k=torch.tensor(99))(f)),
        "k = 99 features",
    ),
    "no encoder": (change_state(**{"encoder.weight": None}), "lacks encoder.weight"),
    "wrong shape": (change_state(b_dec=torch.zeros(7)), r"b_dec of shape \(7,\)"),
    "foreign": (change_state(extra=torch.zeros(7)), "extra unknown"),
    "NaN": (change_state(b_dec=torch.full((6,), torch.nan)), "NaN or infinite values in b_dec"),
    "no threshold": (change_state(threshold=None), "lacks its threshold"),
    "config cut short": (overwrite("config.json", b"{"), "config.json is not JSON"),
    "model outside": (
        lambda f: overwrite("config.json", json.dumps({"trainer": {
            "dict_class": "BatchTopKSAE", "lm_name": "../x", "layer": 1}}).encode())(f),
        "a path outside its folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_AE)
def test_bad_ae_files_are_answered_in_a_sentence(case, tmp_path):
    change, words = BAD_AE[case]
    save_dictionary_learning(an_sae("batch_topk"), tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        load_dictionary_learning(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_ae_file_alone_says_what_it_is_unless_two_classes_look_alike(tmp_path):
    for kind in KINDS:
        save_dictionary_learning(an_sae(kind), tmp_path)
        (tmp_path / "config.json").unlink()
        if kind in ("topk", "batch_topk"):
            with pytest.raises(ValueError, match="AutoEncoderTopK and of BatchTopKSAE: put its"):
                load_dictionary_learning(tmp_path)
            continue
        back = load_dictionary_learning(tmp_path, layer=2)
        assert back.config.architecture == kind
        assert back.hook_point["layer"] == 2 and back.hook_point["fingerprint"] is None
        assert load_dictionary_learning(tmp_path).hook_point is None


# -- the layer that fits


def tiny(seed=0):
    """Four layers, of which each changes the stream by half."""
    torch.manual_seed(seed)
    shape = dict(dim=32, layers=4, heads=2, codebooks=4, cardinality=32)
    codec = dict(
        encoder_width=8, decoder_width=8, encoder_dilations=[1], decoder_dilations=[1], n_fft=512,
        dim=8, codebooks=4, cardinality=32, griffin_lim_steps=0,
    )  # fmt: skip
    parts = nano.build_codec(codec).eval(), nano.build_lm(shape).eval()
    return MusicModel("tiny", MusicGen("tiny", *parts, max_duration=30), torch.float32)


def noise(first, n):
    rng = np.random.default_rng(first)
    return [
        Clip(rng.normal(0, 0.1, 32_000).astype(np.float32), 16_000, None, "", {}, f"{first + i}")
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def trained(model):
    """An SAE of layer 2, on 20 clips."""
    rows = torch.cat(list(activations.stream(model, noise(0, 20), 2, dtype="float32")))
    config = sae.presets.nano(expansion=4, k=8, d_in=32, steps=300, batch_size=256)
    return sae.train(config, rows, hook_point=trace.HookPoint.of(model, 2), progress=False).sae


@pytest.fixture(scope="module")
def fresh():
    return noise(100, 5)


def test_verify_names_the_layer_wherever_the_sae_is_bound(model, trained, fresh):
    fits = {}
    for layer in (1, 2, 3):
        moved = SAE(trained.config, trace.HookPoint.of(model, layer), seed=None)
        moved.load_state_dict(trained.state_dict())
        if layer == 2:
            fits[layer] = sae.verify(moved, model, fresh)
        else:
            with pytest.warns(UserWarning, match=r"layer 2 fits, [+-]1 from where it is bound"):
                fits[layer] = sae.verify(moved, model, fresh)
    assert fits[2].fits and fits[2].sure and set(fits[2].fvu) == {1, 2, 3}
    for layer in (1, 3):
        assert fits[layer].best == 2 and fits[layer].sure and not fits[layer].fits
        assert fits[layer].fvu[2] == pytest.approx(fits[2].fvu[2], rel=1e-4)
    assert fits[2].rows == 5 * 97 and fits[2].gap.n == 5
    assert str(fits[2]).endswith("n = 5).") and "485 activations in 5 fresh clips" in str(fits[2])


def test_verify_measures_what_evaluate_does(model, trained, fresh):
    rows = list(activations.stream(model, fresh, [1, 2, 3], dtype="float32"))
    fit = sae.verify(trained, model, fresh)
    for layer, found in fit.fvu.items():
        expected = sae.evaluate(trained, torch.cat([x[layer] for x in rows]))["fvu"]
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_folder_is_bound_to_the_layer_that_fits_and_to_no_other(
    model, trained, fresh, tmp_path, capsys
):
    """The off-by-one of files: S1's layout says nothing about whose weights it knows."""
    save_saelens(trained, tmp_path)
    for layer in (1, 2, 3):
        change_cfg(hook_name=f"hook_layers.{layer}", musae=None)(tmp_path)
        if layer == 2:
            found = load_saelens(tmp_path, model, clips=fresh)
            found.check(trace.HookPoint.of(model, 2))
            assert found.provenance["fvu"]["2"] < found.provenance["fvu"]["1"]
            continue
        with pytest.raises(ValueError, match=r"layer 2 fits, [+-]1 .* With layer= it can be bound"):
            load_saelens(tmp_path, model, clips=fresh)
        load_saelens(tmp_path, model, layer=2, clips=fresh).check(trace.HookPoint.of(model, 2))
        anyway = load_saelens(tmp_path, model, verify=False)
        anyway.check(trace.HookPoint.of(model, layer))
    assert "transformer.layers.2, as layer= says" in capsys.readouterr().out
    save_dictionary_learning(trained, tmp_path)
    assert load_dictionary_learning(tmp_path, model, clips=fresh).hook_point["layer"] == 2


def test_an_sae_of_something_else_fits_nowhere(model, fresh, tmp_path):
    save_saelens(an_sae("topk", 32, 64, 8), tmp_path)
    change_cfg(hook_name="hook_layers.0", musae=None)(tmp_path)
    with pytest.raises(ValueError, match="none of them fits"):
        load_saelens(tmp_path, model, clips=fresh)


def test_bad_bindings(model, trained, fresh, tmp_path):
    s1(tmp_path, layer=1)
    with pytest.raises(ValueError, match=r"width 8, and those of 'tiny' are 32 wide"):
        load_saelens(tmp_path, model)
    save_saelens(trained, tmp_path)
    with pytest.raises(ValueError, match="has the layers 0 to 3"):
        load_saelens(tmp_path, model, layer=4)
    with pytest.raises(ValueError, match="other weights than 'tiny' has"):
        load_saelens(tmp_path, tiny(seed=1))
    for bad in ("2", 2.0, True, -2):
        with pytest.raises(ValueError, match="a layer is a whole number"):
            load_saelens(tmp_path, layer=bad)
    with pytest.raises(ValueError, match="does not say at which layer"):
        sae.verify(SAE(trained.config), model)
    with pytest.raises(ValueError, match="no clips"):
        sae.verify(trained, model, [])
    with pytest.raises(ValueError, match="compared with others"):
        sae.verify(trained, model, fresh, layers=[2])
    with pytest.warns(UserWarning, match="too close to be sure"):
        assert not sae.verify(trained, model, fresh[:1]).sure


# -- the other libraries themselves

THERE = r"""
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

root = Path(sys.argv[1])
x = load_file(root / "x.safetensors")["x"]
said = {}

def keep(name, sae):
    with torch.no_grad():
        f = sae.encode(x)
        said[name + "/f"], said[name + "/x"] = f.contiguous(), sae.decode(f).contiguous()

from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.utils import load_dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.dictionary import (
    AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
)
for folder in sorted((root / "to_dl").iterdir()):
    if "standard" in folder.name and "uncentred" not in folder.name:
        keep("to_dl/" + folder.name,
             AutoEncoder.from_pretrained(folder / "ae.pt", normalize_decoder=False))
    else:
        keep("to_dl/" + folder.name, load_dictionary(folder, "cpu")[0])

import sae_lens
for folder in sorted((root / "to_sl").iterdir()):
    keep("to_sl/" + folder.name, sae_lens.SAE.load_from_disk(folder))

torch.manual_seed(5)
def shake(module):
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(value + torch.rand_like(value).mul(0.1 if "threshold" in name else 1))
    return module

d, n, k = 6, 24, 3
for made in (
    AutoEncoder(d, n), AutoEncoderNew(d, n), GatedAutoEncoder(d, n), JumpReluAutoEncoder(d, n),
    AutoEncoderTopK(d, n, k), BatchTopKSAE(d, n, k), MatryoshkaBatchTopKSAE(d, n, k, [6, 18]),
):
    name = type(made).__name__
    folder = root / "from_dl" / name
    folder.mkdir(parents=True)
    torch.save(shake(made).state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "k": k, "layer": 1, "lm_name": "facebook/musicgen-small"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    keep("from_dl/" + name, made)

common = dict(d_in=d, d_sae=n, metadata=sae_lens.saes.sae.SAEMetadata(
    hook_name="hook_layers.1", model_name="facebook/musicgen-small"))
for name, cls, config in (
    ("standard", sae_lens.StandardSAE, sae_lens.StandardSAEConfig(**common)),
    ("uncentred", sae_lens.StandardSAE,
     sae_lens.StandardSAEConfig(**common, apply_b_dec_to_input=False)),
    ("topk", sae_lens.TopKSAE, sae_lens.TopKSAEConfig(**common, k=k)),
    ("rescaled", sae_lens.TopKSAE,
     sae_lens.TopKSAEConfig(**common, k=k, rescale_acts_by_decoder_norm=True)),
    ("jumprelu", sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig(**common)),
    ("gated", sae_lens.GatedSAE, sae_lens.GatedSAEConfig(**common)),
):
    made = shake(cls(config))
    made.save_model(root / "from_sl" / name)
    keep("from_sl/" + name, made)
made = shake(sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**common, k=k)))
made.save_inference_model(root / "from_sl" / "batchtopk")
keep("from_sl/batchtopk", sae_lens.SAE.load_from_disk(root / "from_sl" / "batchtopk"))
save_file(said, root / "said.safetensors")
"""


def peers_python():
    """A Python that has sae-lens and dictionary_learning, or None."""
    if find_spec("sae_lens") and find_spec("dictionary_learning"):
        return sys.executable
    other = ROOT / ".venv-peers" / "bin" / "python"
    return str(other) if other.exists() else None


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """What the other libraries make of our files, and files of theirs."""
    python = peers_python()
    if python is None:
        pytest.skip("sae-lens and dictionary_learning are not installed: `make peers` does it.")
    root = tmp_path_factory.mktemp("peers")
    save_file({"x": X}, root / "x.safetensors")
    ours = {}
    for kind in KINDS:
        for name, fields in {
            "": {}, "-scaled": {"scale": 0.37}, "-uncentred": {"apply_b_dec_to_input": False},
        }.items():  # fmt: skip
            made = an_sae(kind, unit_norm=False, **fields)
            ours[kind + name] = made
            save_saelens(made, root / "to_sl" / (kind + name))
            save_dictionary_learning(made, root / "to_dl" / (kind + name))
    w = s1(root / "to_sl" / "s1", 1, D, N, K)
    assert w["W_enc"].shape == (D, N)
    ours["s1"] = load_saelens(root / "to_sl" / "s1")
    script = root / "there.py"
    script.write_text(THERE)
    quiet = dict(os.environ, TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS="1")
    quiet.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, script, root], capture_output=True, text=True, env=quiet, timeout=300
    )
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"{python} has not all of the peers: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-2000:]
    yield root, ours, load_file(root / "said.safetensors")
    shutil.rmtree(root)


@pytest.mark.parametrize("library", ["to_sl", "to_dl"])
def test_the_other_library_reads_our_files_as_we_do(peers, library):
    _, ours, said = peers
    names = {name.split("/")[1] for name in said if name.startswith(library)}
    assert names >= {kind + end for kind in KINDS for end in ("", "-scaled", "-uncentred")}
    for name in names:
        f = ours[name].encode(X)
        assert (f > 0).any(1).float().mean() > 0.2, name
        torch.testing.assert_close(said[f"{library}/{name}/f"], f, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(said[f"{library}/{name}/x"], ours[name](X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("library, load, count", [
    ("from_sl", load_saelens, 7), ("from_dl", load_dictionary_learning, 7),
])  # fmt: skip
def test_we_read_the_other_library_s_files_as_it_does(peers, library, load, count):
    root, _, said = peers
    folders = sorted((root / library).iterdir())
    assert len(folders) == count
    for folder in folders:
        found = load(folder)
        assert found.hook_point["layer"] == 1
        f, name = found.encode(X), f"{library}/{folder.name}"
        assert (f > 0).any(1).float().mean() > 0.2, name
        torch.testing.assert_close(f, said[name + "/f"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found(X), said[name + "/x"], rtol=1e-5, atol=1e-5)
