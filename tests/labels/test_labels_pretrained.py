"""Real loading paths on files of the true layout: laion-clap's, transformers', Essentia's."""

import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from hub_cache import go_offline, in_cache
from made_examples import half, tone

from musae_utils.labels import (
    AudioSetAST,
    CLAPLabeler,
    EssentiaTags,
    Example,
    Examples,
    Label,
    LaionCLAP,
    TagJudge,
    TagLabeler,
    TransformersCLAP,
    Unavailable,
    name_features,
    score_labels,
)

LETTERS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"]


def write_tokenizer(folder):
    """A tokenizer of single letters in the files of roberta-base."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(LETTERS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("hf")
    in_cache(home, "roberta-base", write_tokenizer(tmp_path_factory.mktemp("roberta")))
    return home


@pytest.fixture(autouse=True)
def offline(home, monkeypatch):
    go_offline(home, monkeypatch)


def sound(audio, rate=48_000, name="piece"):
    audio = np.asarray(audio, np.float32)
    return Example(0, name, name, 0.0, len(audio) / rate, 0.0, audio, rate)


# -- laion-clap


def laion_shapes():
    """Names and shapes of laion-clap 1.1.7's state, with sizes of a few units."""
    shapes = {"logit_scale_a": (), "logit_scale_t": ()}

    def add(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    audio, text = "audio_branch", "text_branch"
    shapes[f"{audio}.spectrogram_extractor.stft.conv_real.weight"] = (513, 1, 1024)
    shapes[f"{audio}.spectrogram_extractor.stft.conv_imag.weight"] = (513, 1, 1024)
    shapes[f"{audio}.logmel_extractor.melW"] = (513, 64)
    add(f"{audio}.bn0", 64)
    shapes |= {f"{audio}.bn0.running_mean": (64,), f"{audio}.bn0.running_var": (64,)}
    add(f"{audio}.patch_embed.proj", 8, 1, 4, 4)
    add(f"{audio}.patch_embed.norm", 8)
    for i, (depth, heads) in enumerate(zip((1, 1, 2, 1), (1, 2, 2, 4), strict=True)):
        d = 8 * 2**i
        for j in range(depth):
            block = f"{audio}.layers.{i}.blocks.{j}"
            shapes[f"{block}.attn.relative_position_bias_table"] = (225, heads)
            add(f"{block}.norm1", d), add(f"{block}.norm2", d)
            add(f"{block}.attn.qkv", 3 * d, d), add(f"{block}.attn.proj", d, d)
            add(f"{block}.mlp.fc1", 4 * d, d), add(f"{block}.mlp.fc2", d, 4 * d)
        if i < 3:
            add(f"{audio}.layers.{i}.downsample.norm", 4 * d)
            add(f"{audio}.layers.{i}.downsample.reduction", 2 * d, 4 * d, bias=False)
    add(f"{audio}.norm", 64), add(f"{audio}.tscam_conv", 3, 64, 2, 3), add(f"{audio}.head", 3, 3)
    add(f"{text}.embeddings.word_embeddings", 60, 64, bias=False)
    add(f"{text}.embeddings.position_embeddings", 90, 64, bias=False)
    add(f"{text}.embeddings.token_type_embeddings", 1, 64, bias=False)
    add(f"{text}.embeddings.LayerNorm", 64)
    layer = f"{text}.encoder.layer.0"
    for part in ("query", "key", "value"):
        add(f"{layer}.attention.self.{part}", 64, 64)
    add(f"{layer}.attention.output.dense", 64, 64), add(f"{layer}.attention.output.LayerNorm", 64)
    add(f"{layer}.intermediate.dense", 32, 64), add(f"{layer}.output.dense", 64, 32)
    add(f"{layer}.output.LayerNorm", 64), add(f"{text}.pooler.dense", 64, 64)
    for side in ("audio", "text"):
        add(f"{side}_transform.sequential.0", 16, 16), add(f"{side}_transform.sequential.3", 16, 16)
        add(f"{side}_projection.0", 16, 64), add(f"{side}_projection.2", 16, 16)
    return shapes


def laion_state():
    """A state whose weights follow from their names, so that laion-clap can be given the same."""
    state = {}
    for name, shape in laion_shapes().items():
        phase = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16) / 1e4
        x = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        value = torch.cos(x * 1.7 + phase + x**1.5 % 6.28)
        if name.endswith("running_var"):
            value = 300 + 0.2 * value.abs()
        elif name.endswith("running_mean"):
            value = -40 + 5 * value
        elif len(shape) < 2:
            value = 0.1 * value + name.endswith("weight")
        else:
            value = value * (2 / np.prod(shape[1:])) ** 0.5
        state[name] = value.reshape(shape).float()
    mel = librosa.filters.mel(sr=48_000, n_fft=1024, n_mels=64, fmin=50, fmax=14_000)
    state["audio_branch.logmel_extractor.melW"] = torch.from_numpy(mel.T).float().contiguous()
    return state


def write_laion(path, change=lambda state: state):
    """A checkpoint as laion-clap's training writes it."""
    state = {f"module.{name}": value for name, value in change(laion_state()).items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(90)[None]
    state["module.audio_branch.bn0.num_batches_tracked"] = torch.tensor(7)
    state["module.audio_branch.layers.2.blocks.1.attn_mask"] = torch.zeros(1, 64, 64)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    score = np.float64(0.9014)
    torch.save(
        {"epoch": 15, "name": "m", "state_dict": state, "optimizer": optimizer, "esc": score}, path
    )
    return path


TEXTS = ["a slow flute", "drums"]


def known_sounds():
    t = np.arange(480_000) / 48_000
    beating = 0.2 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(2 * np.pi * 3 * t))
    sounds = 0.3 * np.sin(2 * np.pi * 440 * t), beating[:144_000], np.zeros(48_000)
    return [audio.astype(np.float32) for audio in sounds]


def test_a_checkpoint_of_laion_clap_gives_laion_claps_embeddings(tmp_path):
    clap = LaionCLAP(write_laion(tmp_path / "music.pt"), device="cpu")
    assert clap.name == "clap: music" and len(clap.fingerprint) == 16
    # laion-clap 1.1.7's own classes, given `laion_state` and the same sounds and texts, gave these.
    heard = clap.embed_sounds([sound(audio) for audio in known_sounds()])
    given = [[-0.04717, -0.10865, 0.05003, 0.13887], [-0.25416, 0.05873, -0.02665, 0.09055],
             [-0.16453, 0.21251, -0.00024, 0.02231]]  # fmt: skip
    assert heard.shape == (3, 16) and np.allclose(heard[:, :4], given, atol=1e-4)
    read = clap.embed_texts(TEXTS)
    given = [[-0.04886, 0.42378, -0.14189, 0.4282], [-0.26769, 0.3143, -0.22387, 0.16733]]
    assert read.shape == (2, 16) and np.allclose(read[:, :4], given, atol=1e-4)
    assert clap.embed_texts(["a flute " * 6000]).shape == (1, 16), "long texts are cut"


def test_a_sound_of_another_rate_or_length_is_the_same_sound(tmp_path):
    clap = LaionCLAP(write_laion(tmp_path / "music.pt"), device="cpu")
    whole = known_sounds()[1]
    at = [sound(whole), sound(librosa.resample(whole, orig_sr=48_000, target_sr=32_000), 32_000)]
    near = clap.embed_sounds(at)
    assert near[0] @ near[1] > 0.999
    # 25 s of a tone are three pieces, each of which is a tone
    tones = clap.embed_sounds([sound(tone(440, s), 16_000) for s in (10.0, 25.0)])
    assert tones[0] @ tones[1] > 0.999
    short = clap.embed_sounds([sound(tone(440, 0.1), 16_000), sound(np.zeros(4800))])
    assert np.allclose(np.linalg.norm(short, axis=1), 1)


@pytest.mark.parametrize("make", ["clap", "laion", "ast", "essentia"])
@pytest.mark.parametrize(
    ("audio", "says"),
    [
        (np.full(4800, np.nan), "piece holds values that are not numbers"),
        ([], "piece has a sound of shape .0,. at 48000 Hz: mono sound of at least 0.05 s"),
        (np.zeros(480), "at least 0.05 s"),
        (np.zeros((2, 48_000)), "mono sound"),
    ],
)
def test_sounds_that_are_none_are_refused_by_name(ears, make, audio, says):
    bad = [sound(np.zeros(48_000)), Example(0, "piece", "", 0, 1, 0, np.asarray(audio), 48_000)]
    with pytest.raises(ValueError, match=says):
        listen(ears[make], bad)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {k: v for k, v in s.items() if "fc1.bias" not in k}, "5 weights are missing"),
        (lambda s: s | {"audio_branch.patch_embed.fusion_model.a": torch.ones(1)}, "and 1 unknown"),
        (lambda s: s | {"text_projection.0.weight": torch.ones(3, 3)}, "size mismatch"),
        (lambda s: {k: v for k, v in s.items() if "patch_embed" not in k}, "it lacks"),
        (lambda s: {"x": torch.ones(1)}, "it lacks"),
        (
            lambda s: s | {"audio_branch.logmel_extractor.melW": torch.ones(513, 64)},
            "other spectra",
        ),
    ],
)
def test_every_entry_of_a_checkpoint_is_accounted_for(tmp_path, change, says):
    path = write_laion(tmp_path / "odd.pt", change)
    with pytest.raises(ValueError, match=f"odd.pt is not a checkpoint of laion-clap .*{says}"):
        LaionCLAP(path)


class Runs:
    """A pickle that writes a file when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(Unavailable, match=r"no file .*music.pt: fetch it from https://huggingface"):
        LaionCLAP(tmp_path / "music.pt")
    torch.save({"state_dict": {"a": Runs(tmp_path / "it_ran")}}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match=r"code.pt was refused: .* would run code"):
        LaionCLAP(tmp_path / "code.pt")
    assert not (tmp_path / "it_ran").exists()
    whole = write_laion(tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half.pt is damaged"):
        LaionCLAP(tmp_path / "half.pt")
    for holds in ([1, 2], {"state_dict": 3}, {"state_dict": {"a": "text"}}):
        torch.save(holds, tmp_path / "list.pt")
        with pytest.raises(ValueError, match="no dictionary of named tensors"):
            LaionCLAP(tmp_path / "list.pt")


def test_without_its_tokenizer_the_checkpoint_waits_for_one(tmp_path, monkeypatch):
    go_offline(tmp_path / "empty", monkeypatch)
    path = write_laion(tmp_path / "music.pt")
    with pytest.raises(Unavailable, match=r"roberta-base is not in the .* `hf download roberta-"):
        LaionCLAP(path)


def test_weights_that_are_no_numbers_are_noticed(tmp_path):
    path = write_laion(tmp_path / "nan.pt", lambda s: {k: v * float("nan") if "norm.weight" in k
                                                       else v for k, v in s.items()})  # fmt: skip
    with pytest.raises(ValueError, match="clap: nan gave numbers that are not finite"):
        LaionCLAP(path).embed_sounds([sound(np.zeros(48_000))])


# -- transformers' CLAP and AST


def write_clap(folder):
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        ClapProcessor,
        RobertaTokenizer,
    )

    torch.manual_seed(0)
    sizes = ClapConfig(
        projection_dim=16,
        audio_config={"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1],
                      "num_attention_heads": [1, 1, 2, 2]},
        text_config={"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1,
                     "num_attention_heads": 1, "intermediate_size": 16},
    )  # fmt: skip
    ClapModel(sizes).save_pretrained(folder)
    tokenizer = RobertaTokenizer.from_pretrained(write_tokenizer(folder.with_name("letters")))
    ClapProcessor(
        ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc"), tokenizer
    ).save_pretrained(folder)
    return folder


KINDS_OF_SOUND = ["Speech", "Singing", "Male <b>singing</b>", "Humming", "Dog", "Music",
                  "Piano", "Piano", "Scary music", "Wind"]  # fmt: skip


def write_ast(folder, labels=KINDS_OF_SOUND):
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    sizes = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_length=128, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    model = ASTForAudioClassification(sizes)
    with torch.no_grad():  # small random weights answer everything with one half
        for value in model.classifier.parameters():
            value.normal_()
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_essentia(folder / "essentia")
    return {"clap": write_clap(folder / "clap"), "ast": write_ast(folder / "ast"),
            "laion": write_laion(folder / "music.pt"), "essentia": folder / "essentia"}  # fmt: skip


@pytest.fixture
def ears(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "essentia.standard", essentia_standard())
    monkeypatch.setitem(sys.modules, "essentia", types.ModuleType("essentia"))
    return {"clap": TransformersCLAP(written["clap"], device="cpu"),
            "ast": AudioSetAST(written["ast"], device="cpu"),
            "laion": LaionCLAP(written["laion"], device="cpu"),
            "essentia": EssentiaTags(written["essentia"])}  # fmt: skip


def listen(ear, sounds):
    return ear.probabilities(sounds) if hasattr(ear, "probabilities") else ear.embed_sounds(sounds)


def tones(seconds=1.0):
    return [sound(tone(hz, seconds), 16_000, f"{hz} Hz") for hz in (220, 440, 880)]


def test_a_clap_of_transformers_is_asked_as_transformers_asks_it(written):
    from transformers import ClapModel, ClapProcessor

    clap = TransformersCLAP(written["clap"], device="cpu")
    model, processor = (c.from_pretrained(written["clap"]) for c in (ClapModel, ClapProcessor))
    audio = [librosa.resample(s.audio, orig_sr=16_000, target_sr=48_000) for s in tones()]
    given = processor(text=TEXTS, audio=audio, sampling_rate=48_000, return_tensors="pt",
                      padding=True)  # fmt: skip
    with torch.no_grad():
        theirs = model.eval()(**given)
    assert np.allclose(clap.embed_sounds(tones()), theirs.audio_embeds, atol=1e-5)
    assert np.allclose(clap.embed_texts(TEXTS), theirs.text_embeds, atol=1e-5)
    assert clap.name == "clap: clap" and "cpu" in repr(clap)
    many = clap.embed_texts([f"{a}{b}" for a in "abcdefghij" for b in "klmnopq"])
    assert many.shape == (70, 16), "more texts than go through at once"


def test_the_transformer_of_audioset_says_what_transformers_says_of_music(written):
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    ast = AudioSetAST(written["ast"], device="cpu")
    assert ast.tags == ("Singing", "Male <b>singing</b>", "Humming", "Music", "Piano",
                        "Piano (2)", "Scary music")  # fmt: skip
    model = ASTForAudioClassification.from_pretrained(written["ast"]).eval()
    hear = ASTFeatureExtractor.from_pretrained(written["ast"])
    with torch.no_grad():
        given = hear([s.audio for s in tones()], sampling_rate=16_000, return_tensors="pt")
        theirs = torch.sigmoid(model(**given).logits)[:, [1, 2, 3, 5, 6, 7, 8]]
    ours = ast.probabilities(tones())
    assert np.allclose(ours, theirs, atol=1e-6) and 0 <= ours.min() < ours.max() <= 1
    # 128 frames are 1.28 s: 2.56 s are heard in two pieces
    halves = [sound(tone(hz, 1.28, seed=hz), 16_000) for hz in (220, 880)]
    both = ast.probabilities([sound(np.concatenate([half.audio for half in halves]), 16_000)])
    assert np.allclose(both[0], ast.probabilities(halves).mean(0), atol=1e-6)
    quiet = [sound(np.zeros(16_000), 16_000), sound(np.zeros(1600), 16_000)]
    assert np.isfinite(ast.probabilities(quiet)).all()


def test_a_tagger_that_knows_other_words_keeps_them_all(tmp_path):
    assert AudioSetAST(write_ast(tmp_path / "m", ["a", "b\u202e"])).tags == ("a", "b")


def test_what_is_in_the_cache_is_found_by_name_and_what_is_not_is_named(
    home, written, monkeypatch, tmp_path
):
    shutil.copytree(home / "hub", tmp_path / "hub")
    in_cache(tmp_path, "laion/small", written["clap"])
    go_offline(tmp_path, monkeypatch)
    clap = TransformersCLAP("laion/small", device="cpu")
    assert clap.name == "clap: small" and clap.fingerprint == "0" * 40
    for make, name in ((TransformersCLAP, "laion/larger"), (AudioSetAST, "MIT/ast")):
        with pytest.raises(
            Unavailable, match=f"{name} is not in the Hugging .* `hf download {name}`"
        ) as caught:
            make(name)
        assert "\n" not in str(caught.value)


def test_the_fingerprint_is_of_the_weights(written, tmp_path):
    first = TransformersCLAP(written["clap"]).fingerprint
    same = shutil.copytree(written["clap"], tmp_path / "same")
    assert TransformersCLAP(same).fingerprint == first
    other = write_ast(tmp_path / "other", ["a", "b"])
    assert AudioSetAST(other).fingerprint != AudioSetAST(written["ast"]).fingerprint


def keep_half(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def fewer_weights(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file(dict(list(state.items())[3:]), folder / "model.safetensors", {"format": "pt"})


def other_kind(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def own_code(folder):
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoModel": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(settings))


def no_json(folder):
    (folder / "config.json").write_text("{")


def no_config(folder):
    (folder / "config.json").unlink()


def code(folder):
    no_weights(folder)
    torch.save({"a": Runs(folder / "it_ran")}, folder / "pytorch_model.bin")


def wrong_sizes(folder):
    settings = json.loads((folder / "config.json").read_text())
    for part in (settings, *(v for v in settings.values() if isinstance(v, dict))):
        if "intermediate_size" in part:
            part["intermediate_size"] = 24
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(("make", "kind"), [(TransformersCLAP, "clap"), (AudioSetAST, "ast")])
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (keep_half, "weights of .* are damaged"),
        (no_weights, "cannot be read: .*no file named"),
        (fewer_weights, "lacks 3 weights of"),
        (wrong_sizes, r"lacks \d+ weights of .* or has them in other sizes"),
        (other_kind, "is a model of the kind 'bert'"),
        (own_code, "is a model of the kind 'mine'"),
        (no_json, "cannot be read: .*JSON"),
        (no_config, "cannot be read: .*config.json"),
        (code, "would run code; nothing of them was run"),
    ],
)
def test_folders_that_are_no_such_model_are_refused_in_a_sentence(
    written, tmp_path, capfd, make, kind, harm, says
):
    folder = shutil.copytree(written[kind], tmp_path / "model")
    harm(folder)
    with pytest.raises(ValueError, match=says) as caught:
        make(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "it_ran").exists()


def test_a_tokenizer_without_its_files_is_not_taken_for_one(written, tmp_path):
    folder = shutil.copytree(written["clap"], tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"tokenizer of clap: model knows 5 words .* model 40"):
        TransformersCLAP(folder)


def test_a_folder_that_is_missing_is_no_name_on_the_hub(tmp_path):
    for make in (TransformersCLAP, AudioSetAST):
        for missing in (tmp_path / "gone", "./gone"):
            with pytest.raises(ValueError, match=r"There is no folder .*gone"):
                make(missing)


# -- Essentia, through a stand-in with the same calls: the package is an extra


def essentia_standard():
    """Two algorithms with the names and defaults of essentia-tensorflow 2.1b6.dev1389.

    Patches of 128 frames of 256 samples, every 62 frames; a head for 1280 numbers. A file that is
    no graph raises RuntimeError, as there.
    """
    module = types.ModuleType("essentia.standard")

    class TensorflowPredictEffnetDiscogs:
        def __init__(self, graphFilename="", output="PartitionedCall", **_):
            if not Path(graphFilename).read_bytes():
                raise RuntimeError("Error while configuring: could not load the graph")
            assert output == "PartitionedCall:1", "the embeddings, not the styles"

        def __call__(self, signal):
            assert signal.dtype == np.float32 and signal.ndim == 1
            frames = len(signal) // 256
            patches = 1 + (frames - 128) // 62 if frames >= 128 else 0
            return np.tile(np.abs(signal).mean(), (patches, 1280)).astype(np.float32)

    class TensorflowPredict2D:
        def __init__(self, graphFilename="", input="model/Placeholder", output="model/Sigmoid"):
            self.classes = len(Path(graphFilename).read_bytes())

        def __call__(self, embeddings):
            assert embeddings.shape[1] == 1280 and len(embeddings), "no patch at all"
            loud = embeddings[:, :1]
            return np.concatenate([loud / (k + 1) for k in range(self.classes)], axis=1)

    module.TensorflowPredictEffnetDiscogs = TensorflowPredictEffnetDiscogs
    module.TensorflowPredict2D = TensorflowPredict2D
    return module


def write_essentia(folder, classes=("guitar", "genre---<i>rock", "piano")):
    folder.mkdir()
    (folder / "discogs-effnet-bs64-1.pb").write_bytes(b"graph")
    head = "mtg_jamendo_instrument-discogs-effnet-1"
    (folder / f"{head}.pb").write_bytes(b"pb!")
    (folder / f"{head}.json").write_text(json.dumps({"name": "MTG", "classes": list(classes)}))
    return folder


def test_essentias_tagger_is_asked_as_essentia_asks_it(ears):
    essentia = ears["essentia"]
    assert essentia.tags == ("guitar", "genre <i>rock", "piano")
    assert essentia.name == "tagger: mtg_jamendo_instrument"
    sounds = [sound(np.full(48_000, level)) for level in (0.0, 0.5)]
    sounds.append(sound(np.full(1600, 0.5), 16_000))  # 0.1 s are repeated until a patch is full
    said = essentia.probabilities(sounds)
    assert said.shape == (3, 3) and np.allclose(said[0], 0)
    assert np.allclose(said[1:], np.array([1, 1 / 2, 1 / 3]) / 2, atol=0.02)


def test_essentia_says_what_to_install_and_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "essentia", None)
    with pytest.raises(Unavailable, match="pip install essentia-tensorflow"):
        EssentiaTags(tmp_path)
    monkeypatch.setitem(sys.modules, "essentia", types.ModuleType("essentia"))
    monkeypatch.setitem(sys.modules, "essentia.standard", essentia_standard())
    with pytest.raises(Unavailable, match=r"discogs-effnet-bs64-1.pb: fetch it from https://ess"):
        EssentiaTags(tmp_path)
    folder = write_essentia(tmp_path / "m", classes=["one"])
    with pytest.raises(ValueError, match="do not belong together"):
        EssentiaTags(folder).probabilities(tones())
    (folder / "mtg_jamendo_instrument-discogs-effnet-1.json").write_text("[]")
    with pytest.raises(ValueError, match="does not list classes"):
        EssentiaTags(folder)
    (write_essentia(tmp_path / "n") / "discogs-effnet-bs64-1.pb").write_bytes(b"")
    with pytest.raises(ValueError, match="Essentia cannot read the models"):
        EssentiaTags(tmp_path / "n")


def test_every_ear_has_what_the_protocols_ask(ears):
    for ear in ears.values():
        assert isinstance(ear.name, str) and ear.fingerprint
        assert len(listen(ear, tones())) == 3
        none = listen(ear, [])
        assert none.shape == (0, listen(ear, tones()[:1]).shape[1])


def test_any_text_has_a_place(ears):
    hostile = ["", "<script>\u202e" * 5000, "a \ud800 b", "# *x* [y](z)", "\u0000"]
    for clap in (ears["clap"], ears["laion"]):
        placed = clap.embed_texts(hostile)
        assert placed.shape == (5, 16) and np.allclose(np.linalg.norm(placed, axis=1), 1)
        assert np.allclose(clap.embed_texts(["a \u202eflute\n"]), clap.embed_texts(["a flute"]))
        assert clap.embed_texts([]).shape == (0, 16)


def test_ears_name_and_judge_through_the_labels_interfaces(ears):
    """Loud against soft, which an untrained ear tells apart by some tag or text or by none."""
    loud = [tone(220, 0.5, level=0.5, seed=i) for i in range(5)]
    soft = [tone(880, 0.5, level=0.01, seed=9 + i) for i in range(5)]
    chosen = half(4, loud, soft)
    labelers = [TagLabeler(ears["ast"]), TagLabeler(ears["essentia"]),
                *(CLAPLabeler(ears[name], TEXTS) for name in ("clap", "laion"))]  # fmt: skip
    features = [Examples(4, chosen, half(4, loud, soft, 50), 0.1)]
    named = name_features(labelers, features, progress=False)
    assert not named.missing and len({label.method for label in named.labels}) == 4
    by = {label.method: label.text for label in named.labels}
    assert by["tagger: mtg_jamendo_instrument"], "the stand-in hears loudness"
    scores = score_labels(
        [Label(feature=4, method="m", text="piano")], features,
        {"essentia": TagJudge(ears["essentia"]), "clap": CLAPLabeler(ears["clap"], TEXTS)},
    )  # fmt: skip
    assert scores.table.set_index("judge").loc["essentia", "auc"] == 1.0
    assert scores.table["auc"].notna().all()
