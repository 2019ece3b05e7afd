"""Architectures without weights: counted as audiocraft and the released files have them."""

import json
import shutil

import pytest
import torch
from test_load import (  # noqa: F401  (fixtures)
    folder,
    home,
    lm_config,
    melody_conditioner,
    offline,
    text_conditioner,
    write_musicgen,
)

from musae_utils import models
from musae_utils.models.outline import outline


@pytest.mark.parametrize(
    "name, half, codec",
    [
        # Sizes of the released files: state_dict.bin in half precision, the codec's in full.
        ("facebook/musicgen-small", 0.841e9, 0.236e9),
        ("facebook/musicgen-medium", 3.68e9, 0.236e9),
        ("facebook/musicgen-large", 6.51e9, 0.236e9),
    ],
)
def test_published_models_weigh_what_their_files_do(name, half, codec):
    counted = outline(name).parameters
    assert 2 * counted["language model"] == pytest.approx(half, rel=0.01)
    assert 4 * counted["codec"] == pytest.approx(codec, rel=0.03)
    assert counted["text encoder"] == 109_628_544  # of T5-base, its encoder alone


@pytest.mark.parametrize("name", models.PUBLISHED)
def test_rough_sizes_agree_with_the_count(name):
    counted = sum(outline(name).parameters.values())
    assert models.PUBLISHED[name] == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("name", models.PUBLISHED)
def test_a_transformer_has_the_weights_of_the_textbook(name):
    shape = outline(name)
    d, melody = shape.dim, name.endswith("melody")
    layer = (12 if melody else 16) * d * d + (4 if melody else 6) * d
    ends = shape.codebooks * (shape.cardinality + 1 + shape.cardinality) * d + 2 * d
    read = (768 + 1) * d + ((12 + 1) * d if melody else 0)
    assert shape.parameters["language model"] == shape.layers * layer + ends + read


def test_the_nano_is_counted_as_it_is():
    shape, model = outline("nano"), models.load("nano")
    weights = sum(p.numel() for p in model.lm.parameters())
    assert shape.parameters["language model"] == weights
    codebooks = sum(layer.codebook.numel() for layer in model.codec.quantizer.vq.layers)
    codec = sum(p.numel() for p in model.codec.parameters()) + codebooks
    assert shape.parameters["codec"] == codec
    told = (shape.layers, shape.dim, shape.codebooks, shape.cardinality, shape.sample_rate)
    assert told == (model.n_layers, model.dim, model.n_codebooks, model.cardinality, 16_000)
    assert (shape.frame_rate, shape.max_seconds) == (model.frame_rate, model.max_seconds)


def test_a_folder_in_audiocrafts_layout_is_counted_without_its_tensors(folder, monkeypatch):  # noqa: F811
    model = models.load(folder, device="cpu")
    shape = outline(folder)
    assert shape.parameters["language model"] == sum(p.numel() for p in model.lm.parameters())
    assert (shape.layers, shape.dim, shape.text) == (2, 16, "t5-small")
    assert shape.files == sum(path.stat().st_size for path in folder.iterdir())


def test_a_melody_model_is_counted_with_its_chroma(offline, tmp_path):  # noqa: F811
    config = lm_config(description=text_conditioner(), self_wav=melody_conditioner())
    config.fuser.prepend, config.fuser.cross = ["self_wav", "description"], []
    shape = outline(write_musicgen(tmp_path, config))
    model = models.load(tmp_path, device="cpu")
    assert shape.parameters["language model"] == sum(p.numel() for p in model.lm.parameters())
    assert shape.prefix > shape.tokens


@pytest.mark.parametrize("name", ["nano", "facebook/musicgen-stereo-small",
                                  "facebook/musicgen-melody"])  # fmt: skip
def test_shapes_run_through_the_whole_model(name):
    model = outline(name).model(2)
    assert model.n_layers == 2 and model.device.type == "meta"
    with torch.no_grad():
        sound = torch.empty(1, model.codec.channels, model.sample_rate, device="meta")
        codes = model.codec.encode(sound)[0]
        assert codes.shape == (1, model.n_codebooks, model.frame_rate)
        assert model.codec.decode(codes, None).shape == sound.shape


def test_made_up_weights_play_finite_sound():
    model = outline("nano").model(2, "cpu")
    played = model.generate([None, None], 0.2)
    assert played.codes.shape == (2, 8, 10) and played.audio.isfinite().all()


def test_unknown_names_are_answered_as_load_does():
    with pytest.raises(ValueError, match="Did you mean 'facebook/musicgen-small'"):
        outline("musicgen-smal")
    with pytest.raises(FileNotFoundError, match="no folder"):
        outline("/nowhere/at/all")


def test_a_configuration_of_other_weights_is_told(tmp_path):
    for file in models.NANO_FILES:
        shutil.copy(models.NANO_FOLDER / file, tmp_path)
    told = json.loads((tmp_path / "lm.json").read_text())
    told["architecture"]["layers"] += 1
    (tmp_path / "lm.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"language model of .* do not belong together"):
        outline(tmp_path)
    (tmp_path / "lm.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="damaged or cut short"):
        outline(tmp_path)


def test_a_text_encoder_that_nobody_knows_is_named(folder):  # noqa: F811
    saved = torch.load(folder / "state_dict.bin", weights_only=False)
    saved["xp.cfg"].conditioners.description.t5.name = "google/t5-tremendous"
    torch.save(saved, folder / "state_dict.bin")
    with pytest.raises(ValueError, match="reads prompts with 'google/t5-tremendous'"):
        outline(folder)
