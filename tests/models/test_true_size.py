"""MusicGen-small at its true size, from files of the released layout to a bound SAE of S1's.

The weights are random; their number, shapes, names and precision are those of the released files,
so that whatever depends on size alone (widths that do not match, layers that are miscounted, memory
that is held twice) shows here and not on a reader's machine. T5 is as wide as the true one, but of
one layer.
"""

import json
import math

import numpy as np
import psutil
import pytest
import torch
from hub_cache import go_offline, in_cache
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_load import write_t5

from musae_utils import activations, models, plan, trace
from musae_utils.models.outline import musicgen_config, outline
from musae_utils.music import Clip
from musae_utils.sae import files, presets

NAME, LAYER = "facebook/musicgen-small", 11
NEEDED = 8e9  # the weights of the files and of the model, and the SAE's

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        psutil.virtual_memory().available < NEEDED,
        reason=f"needs {NEEDED / 1e9:.0f} GB of memory, and "
        f"{psutil.virtual_memory().available / 1e9:.1f} GB are free",
    ),
]


def random_state(shapes):
    """Random weights that keep the size of what goes through them, at the speed of a copy."""
    some = torch.randn(
        1_000_003, generator=torch.Generator().manual_seed(0)
    )  # a prime: rows differ
    state = {}
    for name, shape in shapes.items():
        if "norm" in name:
            state[name] = torch.full(shape, float(name.endswith("weight")), dtype=torch.half)
            continue
        n = math.prod(shape)
        values = some.repeat(-(-n // len(some)))[:n].reshape(shape)
        state[name] = (values * shape[-1] ** -0.5).half()
    return state


def write_released(folder):
    """The two files: half precision and float32, each with its configuration as YAML."""
    from audiocraft.models import builders

    lm, codec = musicgen_config(NAME)
    shapes = {k: v.shape for k, v in outline(NAME).model().lm.state_dict().items()
              if "condition" not in k}  # fmt: skip
    prompt = "condition_provider.conditioners.description.output_proj"
    shapes |= {f"{prompt}.weight": (1024, 768), f"{prompt}.bias": (1024,)}
    torch.manual_seed(0)
    sound = builders.get_compression_model(OmegaConf.merge(codec, {"device": "cpu"}))
    for layer in sound.quantizer.vq.layers:
        layer._codebook.embed.normal_(std=0.05)
        layer._codebook.inited.fill_(1)
    for file, state, config in (
        ("state_dict.bin", random_state(shapes), lm),
        ("compression_state_dict.bin", sound.state_dict(), codec),
    ):
        about = {"best_state": state, "xp.cfg": OmegaConf.to_yaml(config), "version": "1.3.0"}
        torch.save({**about, "exported": True}, folder / file)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A Hugging Face cache that holds the model and its text encoder; this process is in it."""
    home, t5, empty = (tmp_path_factory.mktemp(name) for name in ("hf", "t5", "empty"))
    write_t5(t5, width=768)
    in_cache(home, "t5-base", t5)
    in_cache(home, NAME, empty)
    (folder,) = home.glob("hub/models--facebook--musicgen-small/snapshots/*")
    write_released(folder)
    with pytest.MonkeyPatch.context() as patch:
        go_offline(home, patch)
        yield folder
    for file in folder.iterdir():
        file.unlink()  # a gigabyte that nobody looks at again


@pytest.fixture(scope="module")
def model(snapshot):
    return models.load(NAME, device="cpu")


def noise(first, n, seconds=0.8):
    for i in range(first, first + n):
        sound = np.random.default_rng(i).normal(0, 0.1, round(seconds * 32_000))
        yield Clip(sound.astype(np.float32), 32_000, None, "", {"group": str(i)}, f"noise {i}")


def test_its_files_are_as_large_as_the_released_ones(snapshot):
    sizes = {path.name: path.stat().st_size / 1e6 for path in snapshot.iterdir()}
    assert sizes["state_dict.bin"] == pytest.approx(841, abs=1)
    assert sizes["compression_state_dict.bin"] == pytest.approx(236, abs=1)
    assert outline(snapshot).parameters == outline(NAME).parameters


def test_it_loads_by_name_and_plays(model):
    told = (model.n_layers, model.dim, model.n_codebooks, model.cardinality, model.sample_rate)
    assert told == (24, 1024, 4, 2048, 32_000) and model.frame_rate == 50
    counted = outline(NAME).parameters
    assert sum(p.numel() for p in model.lm.parameters()) == counted["language model"]
    played = model.generate(["slow piano", None], 0.2, seed=1)
    assert played.codes.shape == (2, 4, 10) and played.audio.shape == (2, 6400)
    assert played.audio.isfinite().all() and played.codes.unique().numel() > 20
    again = model.generate(["fast organ", None], 0.2, seed=1)
    assert torch.equal(again.codes[1], played.codes[1])
    assert not torch.equal(again.codes[0], played.codes[0])


def test_its_streams_are_read_and_edited_where_s1_looked(model):
    layers = plan.s1_layers(NAME)
    codes = torch.randint(0, 2048, (1, 4, 10), generator=torch.Generator().manual_seed(2))
    streams = trace.residuals(model, codes, layers)
    assert list(streams) == [1, 5, 11, 17, 21]
    assert all(x.shape == (1, 14, 1024) and x.isfinite().all() for x in streams.values())
    push = trace.edit(model, trace.Edit(LAYER, torch.ones(1024)))
    moved = push.residuals(codes, layers)
    assert torch.equal(moved[5], streams[5]) and not torch.equal(moved[17], streams[17])
    # Positions after the last frame's own go with it, and are edited as well.
    assert torch.allclose(moved[11][:, 1:], streams[11][:, 1:] + 1, atol=1e-4)


def test_an_sae_of_the_released_size_is_bound_to_its_layer(model, tmp_path, capsys):
    """Its features are the principal directions of layer 11, both ways; all others are silent."""
    config = presets.s1_small().sae
    d, n, k = config.d_in, config.d_sae, config.k
    assert (d, n, k) == (1024, 32_768, 100)
    x = torch.cat(list(activations.stream(model, noise(0, 4), LAYER, dtype="float32")))
    mean = x.mean(0)
    directions = torch.linalg.svd(x - mean, full_matrices=False).Vh[: k // 2]
    known = torch.cat([directions, -directions])
    weights = {"W_enc": torch.zeros(d, n), "W_dec": torch.zeros(n, d), "b_dec": mean,
               "b_enc": torch.full((n,), -1e4)}  # fmt: skip
    weights["W_enc"][:, : len(known)], weights["W_dec"][: len(known)] = known.T, known
    weights["W_dec"][len(known) :, 0] = 1  # released decoders have rows of length 1
    weights["b_enc"][: len(known)] = 0
    released(tmp_path, weights, k)
    assert (tmp_path / "sae_weights.safetensors").stat().st_size > 4 * 2 * d * n

    found = files.load_saelens(tmp_path, model, clips=noise(100, 3))
    assert found.config.d_sae == n and found.hook_point["fingerprint"] == model.fingerprint
    assert (
        f"output of transformer.layers.{LAYER}, as hook_layers.{LAYER}" in capsys.readouterr().out
    )
    fvu = {int(layer): value for layer, value in found.provenance["fvu"].items()}
    assert set(fvu) == {10, 11, 12} and fvu[11] < min(fvu[10], fvu[12]) and fvu[11] < 1
    features = found.encode(x[:20])
    assert features.shape == (20, n) and (features > 0).sum(1).max() <= k
    assert not features[:, len(known) :].any()

    released(tmp_path, None, k, layer=12)
    with pytest.raises(ValueError, match="layer 11 fits"):
        files.load_saelens(tmp_path, model, clips=noise(100, 3))


def released(folder, weights, k, layer=LAYER):
    """An SAE folder as sae-lens 5.3.2 wrote S1's."""
    cfg = {
        "architecture": "standard", "d_in": 1024, "d_sae": 32_768, "dtype": "float32",
        "device": "cuda", "model_name": NAME, "hook_name": f"hook_layers.{layer}",
        "hook_layer": layer, "hook_head_index": None, "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": k}, "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False, "sae_lens_training_version": "5.3.2",
        "prepend_bos": False, "dataset_path": "MusicSet", "context_size": 501,
        "normalize_activations": "none", "model_from_pretrained_kwargs": {}, "seqpos_slice": [None],
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(cfg))
    if weights is not None:
        save_file(weights, folder / "sae_weights.safetensors")
