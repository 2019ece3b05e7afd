"""The real loading path: audiocraft's true layout in a folder and in a Hugging Face cache."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hub_cache import go_offline, in_cache
from omegaconf import OmegaConf
from safetensors.torch import save_file
from tiny_models import tiny_codec, tiny_lm

import musae_utils.models as models

T5 = "t5-small"  # audiocraft knows its width (512) by this name


def lm_config(**conditioners):
    """What audiocraft trains MusicGen with, as far as loading reads it, at a tiny size."""
    conditioners = conditioners or {"description": text_conditioner()}
    return OmegaConf.create(
        {
            "device": "cuda", "dtype": "float16", "solver": "musicgen", "sample_rate": 16000,
            "channels": 1, "lm_model": "transformer_lm",
            "transformer_lm": {
                "dim": 16, "num_heads": 2, "num_layers": 2, "hidden_scale": 4, "n_q": 4, "card": 32,
                "dropout": 0.0, "emb_lr": None, "activation": "gelu", "norm_first": True,
                "bias_ff": False, "bias_attn": False, "bias_proj": False, "past_context": None,
                "causal": True, "custom": False, "memory_efficient": True,
                "attention_as_float32": False, "layer_scale": None, "positional_embedding": "sin",
                "xpos": False, "checkpointing": "none", "weight_init": "gaussian",
                "depthwise_init": "current", "zero_bias_init": True, "norm": "layer_norm",
                "cross_attention": False, "qk_layer_norm": False, "qk_layer_norm_cross": False,
                "attention_dropout": None, "kv_repeat": 1, "two_step_cfg": False,
            },
            "codebooks_pattern": {
                "modeling": "delay",
                "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0},
            },
            "classifier_free_guidance": {"training_dropout": 0.2, "inference_coef": 3.0},
            "attribute_dropout": {"args": {"active_on_eval": False}, "text": {}},
            "conditioners": {"args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5},
                             **conditioners},
            "fuser": {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1,
                      "sum": [], "prepend": [], "cross": ["description"], "input_interpolate": []},
            "dataset": {"segment_duration": 30},
            "interleave_stereo_codebooks": {"use": False},
            "compression_model_n_q": None,
        }
    )  # fmt: skip


def text_conditioner():
    return {
        "model": "t5",
        "t5": {"name": T5, "finetune": False, "word_dropout": 0.2, "normalize_text": False},
    }


def melody_conditioner():
    return {
        "model": "chroma_stem",
        "chroma_stem": {"sample_rate": 16000, "n_chroma": 12, "radix2_exp": 12, "argmax": True,
                        "cache_path": "/nowhere"},
    }  # fmt: skip


def codec_config():
    return OmegaConf.create(
        {
            "device": "cuda", "sample_rate": 16000, "channels": 1, "compression_model": "encodec",
            "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": 16000,
                        "channels": 1, "causal": False, "renormalize": False},
            "seanet": {"dimension": 8, "channels": 1, "causal": False, "n_filters": 2,
                       "n_residual_layers": 1, "ratios": [4, 4, 4, 5], "norm": "weight_norm",
                       "norm_params": {}, "lstm": 2,
                       "decoder": {"trim_right_ratio": 1.0}, "encoder": {}},
            "rvq": {"n_q": 4, "q_dropout": False, "bins": 32, "decay": 0.99, "kmeans_init": False,
                    "kmeans_iters": 50, "threshold_ema_dead_code": 2},
        }
    )  # fmt: skip


def write_t5(folder, width=512):
    """A text encoder of one layer, its width the published one's, and a small tokenizer."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    torch.manual_seed(0)
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0)]
    letters += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    T5EncoderModel(
        T5Config(vocab_size=40, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(folder)
    T5TokenizerFast(vocab=letters, extra_ids=0).save_pretrained(folder)


def write_musicgen(folder, config=None, yaml=False):
    """A model's two files as audiocraft exports them: half-precision weights, configuration."""
    from audiocraft.models import builders

    config = config or lm_config()
    torch.manual_seed(0)
    building = OmegaConf.merge(config, {"device": "cpu", "dtype": "float32"})
    for extra in ("merge_text_conditions_p", "drop_desc_p"):
        del building.conditioners.args[extra]
    if "self_wav" in building.conditioners:
        del building.conditioners.self_wav.chroma_stem.cache_path
    lm = builders.get_lm_model(building)
    codec = builders.get_compression_model(OmegaConf.merge(codec_config(), {"device": "cpu"}))
    for file, model, cfg in (
        ("state_dict.bin", lm, config),
        ("compression_state_dict.bin", codec, codec_config()),
    ):
        state = {k: v.half() if "condition" in k else v for k, v in model.state_dict().items()}
        torch.save(
            {
                "best_state": state,
                "xp.cfg": OmegaConf.to_yaml(cfg) if yaml else cfg,
                "version": "1.3.0",
                "exported": True,
            },
            folder / file,
        )
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A Hugging Face home that holds the text encoder; the process is offline in it."""
    home = tmp_path_factory.mktemp("hf")
    t5 = tmp_path_factory.mktemp("t5")
    write_t5(t5)
    in_cache(home, T5, t5)
    return home


@pytest.fixture
def offline(home, monkeypatch):
    """This process, its Hugging Face libraries already imported, offline with that home."""
    go_offline(home, monkeypatch)
    return home


@pytest.fixture
def folder(offline, tmp_path):
    return write_musicgen(tmp_path)


def plays(model):
    result = model.generate(["slow piano", None], seconds=0.4, seed=1, guidance=30)
    assert result.audio.shape == (2, 6400) and result.audio.isfinite().all()
    assert model.encode(result.audio).shape == (2, 4, 20)
    other = model.generate(["fast organ", None], seconds=0.4, seed=1, guidance=30)
    assert not torch.equal(result.codes[0], other.codes[0])
    assert torch.equal(result.codes[1], other.codes[1])
    return True


# -- audiocraft's layout


def test_a_folder_in_audiocrafts_layout_plays(folder):
    model = models.load(folder, device="cpu")
    assert model.max_seconds == 30 and model.frame_rate == 50 and model.cardinality == 32
    assert model.dtype == torch.float32 and next(model.lm.parameters()).dtype == torch.float32
    assert not model.lm.training and not model.codec.training
    saved = torch.load(folder / "state_dict.bin", weights_only=False)["best_state"]
    assert torch.equal(model.lm.state_dict()["linears.0.weight"], saved["linears.0.weight"])
    assert plays(model)


def test_a_configuration_in_yaml_gives_the_same_model(folder, tmp_path_factory):
    other = write_musicgen(tmp_path_factory.mktemp("yaml"), yaml=True)
    assert models.load(folder).fingerprint == models.load(other).fingerprint


@pytest.mark.parametrize("prompt", ["a" * 10_000, "ピアノとドラム", "", "🎹"])
def test_the_text_encoder_takes_odd_prompts(folder, prompt):
    model = models.load(folder, device="cpu")
    if len(prompt) < 2000:
        assert model.generate([prompt], seconds=0.1).codes.shape == (1, 4, 5)
        return
    with pytest.warns(UserWarning, match=r"10,000 characters: only the first 2,000"):
        assert model.generate([prompt], seconds=0.1).codes.shape == (1, 4, 5)


def test_a_melody_model_plays_from_text_without_a_stem_separator(offline, tmp_path):
    config = lm_config(description=text_conditioner(), self_wav=melody_conditioner())
    config.fuser.prepend, config.fuser.cross = ["self_wav", "description"], []
    assert plays(models.load(write_musicgen(tmp_path, config), device="cpu"))


def test_a_stereo_model_plays_mixed_to_mono(offline, tmp_path):
    config = lm_config()
    config.interleave_stereo_codebooks = {"use": True, "per_timestep": False}
    config.transformer_lm.n_q = 8
    config.codebooks_pattern.delay.delays = [0, 0, 1, 1, 2, 2, 3, 3]
    model = models.load(write_musicgen(tmp_path, config), device="cpu")
    result = model.generate("slow piano", seconds=0.4)
    assert result.codes.shape == (1, 8, 20) and result.audio.shape == (1, 6400)
    assert model.encode(torch.randn(1, 2, 6400)).shape == (1, 8, 20)


def test_a_codec_named_by_the_checkpoint_is_found(offline, tmp_path, tmp_path_factory):
    from transformers import EncodecConfig, EncodecModel

    codec = tmp_path_factory.mktemp("codec")
    EncodecModel(
        EncodecConfig(
            sampling_rate=16000, audio_channels=1, normalize=False, chunk_length_s=None,
            num_filters=2, hidden_size=8, codebook_dim=8, codebook_size=32, num_lstm_layers=1,
            upsampling_ratios=[5, 4, 4, 4], target_bandwidths=[1.0], overlap=None,
        )
    ).save_pretrained(codec)  # fmt: skip
    if not (offline / "hub" / "models--facebook--encodec_tiny").exists():
        in_cache(offline, "facebook/encodec_tiny", codec)
    write_musicgen(tmp_path)
    torch.save({"pretrained": "facebook/encodec_tiny"}, tmp_path / "compression_state_dict.bin")
    assert plays(models.load(tmp_path, device="cpu"))


def test_a_published_name_loads_from_the_cache_alone(home, tmp_path):
    """In a process of its own, told by the environment only, as a user would."""
    write_home = tmp_path / "home"
    shutil.copytree(home, write_home)
    in_cache(write_home, "facebook/musicgen-small", write_musicgen_with_t5(tmp_path, home))
    program = """
        from musae_utils import models
        model = models.load("facebook/musicgen-small", device="cpu")
        print(model)
        print(tuple(model.generate("slow piano", seconds=0.4).audio.shape))
        try:
            models.load("facebook/musicgen-melody", device="cpu")
        except ConnectionError as error:
            print("said:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "HF_HOME": str(write_home), "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "facebook/musicgen-small" in done.stdout and "(1, 6400)" in done.stdout
    assert "said: facebook/musicgen-melody is not in the Hugging Face cache" in done.stdout
    assert not done.stderr.strip(), "loading and playing are quiet"


def write_musicgen_with_t5(tmp_path, home):
    """`write_musicgen` needs the text encoder to build the weights it saves."""
    folder = tmp_path / "musicgen"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        import huggingface_hub.constants as hub

        patch.setattr(hub, "HF_HUB_OFFLINE", True)
        patch.setattr(hub, "HF_HUB_CACHE", str(home / "hub"))
        return write_musicgen(folder)


# -- the nano's layout


@pytest.fixture
def nano_folder(tmp_path, monkeypatch):
    """Four files in the nano's layout, and a reader for them that builds random models."""

    class Reader:
        @staticmethod
        def load_nano(folder):
            return tiny_codec(), tiny_lm()

    monkeypatch.setattr(models, "nano", Reader, raising=False)
    for part in ("lm", "codec"):
        (tmp_path / f"{part}.json").write_text(json.dumps({"max_seconds": 20}))
        save_file({"weight": torch.zeros(100)}, tmp_path / f"{part}.safetensors")
    return tmp_path


def test_a_folder_in_the_nanos_layout_plays(nano_folder):
    model = models.load(nano_folder, device="cpu")
    assert model.max_seconds == 20
    assert plays(model)


def test_nano_means_the_shipped_folder(nano_folder, monkeypatch):
    monkeypatch.setattr(models, "NANO_FOLDER", nano_folder)
    assert models.load().name == "nano"
    (nano_folder / "lm.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lm.safetensors missing .*make nano"):
        models.load()
    monkeypatch.setattr(models, "NANO_FOLDER", nano_folder / "nowhere")
    with pytest.raises(FileNotFoundError, match="make nano"):
        models.load()


@pytest.mark.skipif(not (models.NANO_FOLDER / "lm.safetensors").exists(), reason="not trained yet")
def test_the_shipped_nano_plays():
    model = models.load(device="cpu")
    assert (model.sample_rate, model.frame_rate, model.max_seconds) == (16000, 50, 30)
    result = model.generate(["slow piano in D minor", None], seconds=0.5)
    assert result.audio.shape == (2, 8000) and result.audio.isfinite().all()
    alone = model.generate(["slow piano in D minor"], seconds=0.5)
    assert torch.equal(alone.codes[0], result.codes[0])
    with pytest.warns(UserWarning, match="nano does not know 'theremin'"):
        model.conditions(["slow theremin"])


@pytest.mark.parametrize("file", models.NANO_FILES)
def test_truncated_nano_files_are_named(nano_folder, file):
    path = nano_folder / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{file} is damaged or cut short"):
        models.load(nano_folder)


# -- what cannot be loaded


@pytest.mark.parametrize(
    "name, near",
    [
        ("facebook/musicgen-smal", "'facebook/musicgen-small'"),
        ("musicgen-large", "'facebook/musicgen-large'"),
        ("Nano", "'nano'"),
        ("bert-base-uncased", "Known models: nano, facebook/musicgen-small"),
        ("", "Known models"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as said:
        models.load(name)
    assert near in str(said.value)


def test_missing_folders_files_and_foreign_folders_are_answered(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="no folder"):
        models.load(folder / "nowhere")
    with pytest.raises(ValueError, match="is a file"):
        models.load(folder / "state_dict.bin")
    (folder / "state_dict.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"^state_dict.bin missing"):
        models.load(folder)
    foreign = tmp_path_factory.mktemp("foreign")
    with pytest.raises(ValueError, match="is empty"):
        models.load(foreign)
    (foreign / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds config.json.*transformers"):
        models.load(foreign)


@pytest.mark.parametrize("keep", [0, 10, 5000, -1000])
def test_truncated_checkpoints_are_named(folder, keep):
    path = folder / "state_dict.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"state_dict.bin is damaged"):
        models.load(folder)


def test_checkpoints_of_something_else_are_answered(folder):
    torch.save({"model": torch.zeros(3)}, folder / "state_dict.bin")
    with pytest.raises(ValueError, match="not a MusicGen as audiocraft exports it"):
        models.load(folder)


class Runs:
    """A pickle that writes a file when it is read."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return (Path.touch, (Path(self.trace),))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("file", models.AUDIOCRAFT_FILES)
def test_a_pickle_that_runs_code_is_refused(folder, file, bare, monkeypatch):
    # the variable that makes torch.load's defaults unsafe changes nothing
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    evil = {"best_state": {}, "xp.cfg": Runs(folder / "it_ran")}
    if bare:
        (folder / file).write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, folder / file)
    with pytest.raises(ValueError, match=rf"{file} was refused: .* would run code"):
        models.load(folder)
    assert not (folder / "it_ran").exists()
    pickle.loads(pickle.dumps(evil))
    assert (folder / "it_ran").exists(), "the pickle is not as dangerous as the test believes"


def test_too_little_memory_is_said_before_loading(folder, monkeypatch):
    class Little:
        available = 1000

    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: Little)
    for name, size in ((str(folder), "0.0"), ("facebook/musicgen-large", "13.7")):
        with pytest.raises(MemoryError, match=f"needs about {size} GB and 0.0 GB are free"):
            models.load(name, device="cpu")


def test_a_missing_text_encoder_is_answered(folder, monkeypatch, tmp_path_factory):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("empty")))
    with pytest.raises(ConnectionError, match="text encoder or the codec"):
        models.load(folder)


def test_devices_and_types_are_checked(folder):
    with pytest.raises(ValueError, match="'cuda', 'mps' or 'cpu'"):
        models.load(folder, device="gpu")
    with pytest.raises(ValueError, match=r"float32 or torch\.float16"):
        models.load(folder, dtype=torch.bfloat16)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no cuda"):
            models.load(folder, device="cuda")
    assert models.load(folder, device="cpu", dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0byte", "~nobody-of-that-name/x", "\udce9"])
def test_a_name_that_cannot_be_a_path_is_answered(name):
    with pytest.raises((ValueError, FileNotFoundError), match="There is no"):
        models.load(name)
