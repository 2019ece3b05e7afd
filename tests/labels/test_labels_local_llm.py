"""A tiny Qwen2-Audio and a tiny Music Flamingo of random weights, in the files of the true ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from hub_cache import go_offline
from made_examples import half, numbered, tone

from musae_utils.labels import Unavailable, name_features
from musae_utils.labels.llm import CLIPS
from musae_utils.labels.local_llm import AGAIN, LocalLLM
from musae_utils.runs import RunError

GOOD = {"abstain": False, "label": "solo flute", "evidence": "A flute in A1 to A4."}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>",
           "<|audio_eos|>", "<sound>", "<|sound_bos|>", "<|sound_eos|>"]  # fmt: skip
TALK = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'audio' %}<sound>{% else %}\
{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_tokenizer(folder):
    """A tokenizer of single bytes in Qwen's files."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    letters = list(bytes_to_unicode().values())
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return tokenizer


TEXT = {"vocab_size": 288, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "max_position_embeddings": 8192,
        "eos_token_id": None, "bos_token_id": None}  # fmt: skip


def write_qwen(folder):
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = write_tokenizer(folder.with_name("bytes"))
    torch.manual_seed(0)
    audio = {"model_type": "qwen2_audio_encoder", "d_model": 16, "encoder_layers": 1,
             "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 80}  # fmt: skip
    sizes = Qwen2AudioConfig(
        audio_config=audio, text_config={"model_type": "qwen2", **TEXT},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    Qwen2AudioForConditionalGeneration(sizes).save_pretrained(folder)
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    return folder


def write_flamingo(folder):
    from transformers import (
        MusicFlamingoConfig,
        MusicFlamingoForConditionalGeneration,
        MusicFlamingoProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = write_tokenizer(folder.with_name("bytes"))
    torch.manual_seed(0)
    audio = {"model_type": "audioflamingo3_encoder", "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 16, "num_mel_bins": 80}  # fmt: skip
    ids = {f"audio{at}_token_id": tokenizer.convert_tokens_to_ids(word) for at, word in
           (("", "<sound>"), ("_bos", "<|sound_bos|>"), ("_eos", "<|sound_eos|>"))}  # fmt: skip
    sizes = MusicFlamingoConfig(
        audio_config=audio, text_config={"model_type": "qwen2", **TEXT}, **ids
    )
    MusicFlamingoForConditionalGeneration(sizes).save_pretrained(folder)
    MusicFlamingoProcessor(
        WhisperFeatureExtractor(feature_size=80), tokenizer, chat_template=TALK
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"qwen": write_qwen(folder / "qwen"), "flamingo": write_flamingo(folder / "flamingo")}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    go_offline(tmp_path / "hf", monkeypatch)


def answering(llm, *texts):
    """Let the model of `llm` say these texts, and keep what it was given."""
    model, processor = llm._loaded
    given, left = [], list(texts)

    def generate(**inputs):
        given.append(inputs)
        said = processor.tokenizer(left.pop(0), return_tensors="pt")["input_ids"]
        return torch.cat([inputs["input_ids"], said], dim=1)

    model.generate = generate
    return given


def prompts(llm, given):
    words = llm._loaded[1].tokenizer
    return [words.decode(inputs["input_ids"][0]) for inputs in given]


@pytest.mark.parametrize("kind", ["qwen", "flamingo"])
def test_random_weights_say_nothing_and_are_asked_twice(written, tmp_path, kind, monkeypatch):
    monkeypatch.setattr("musae_utils.labels.local_llm.ANSWER", 8)
    with LocalLLM(written[kind], tmp_path / "run", device="cpu") as llm:
        label = llm.label(numbered(7, 2).finding)
        assert label.abstains and "was not what was asked for" in label.evidence
        assert (label.feature, label.method, label.cost) == (7, f"llm: {kind}", 0)
        answers = sorted(path.name for path in (tmp_path / "run").glob("answer-*.json"))
        assert [name[-7:] for name in answers] == ["-0.json", "-1.json"]
    with LocalLLM(written[kind], tmp_path / "other", device="cpu") as llm:
        assert llm.label(numbered(7, 2).finding) == label, "the same question, the same answer"


def test_the_sounds_reach_the_model_in_their_order(written, tmp_path):
    loud = [tone(220 * (i + 1), 0.2, seed=i) for i in range(6)]
    with LocalLLM(written["qwen"], tmp_path / "run", device="cpu") as llm:
        given = answering(llm, json.dumps(GOOD))
        label = llm.label(half(3, loud, loud[::-1]))
        assert (label.text, label.evidence) == ("solo flute", GOOD["evidence"])
        (inputs,), (prompt,) = given, prompts(llm, given)
        assert inputs["do_sample"] is False and inputs["input_features"].shape[0] == 2 * CLIPS
        order = [prompt.index(f"{side}{i}:") for side in "AB" for i in range(1, CLIPS + 1)]
        assert order == sorted(order) and "abstain: an honest abstention" in prompt
        assert prompt.endswith("<|im_start|>assistant\n")
        hear = llm._loaded[1].feature_extractor
        first = hear(loud[5], sampling_rate=16_000, return_tensors="pt")["input_features"][0]
        assert torch.allclose(inputs["input_features"][CLIPS], first, atol=1e-5)


def test_where_one_recording_is_taken_the_clips_follow_one_another(written, tmp_path):
    loud = [tone(440, 1.0), tone(550, 2.0)]
    with LocalLLM(written["flamingo"], tmp_path / "run", device="cpu") as llm:
        given = answering(llm, f"```json\n{json.dumps(GOOD)}\n```")
        assert llm.label(half(3, loud, loud)).text == "solo flute"
        (prompt,) = prompts(llm, given)
        assert "A1 at 0.0 s, A2 at 2.0 s, B1 at 5.0 s, B2 at 7.0 s." in prompt
        # 10 s with the silences, of 25 tokens a second
        assert prompt.count("<sound>") == 250


def test_a_second_reading_hears_what_was_wrong_with_the_first(written, tmp_path):
    with LocalLLM(written["qwen"], tmp_path / "run", device="cpu") as llm:
        given = answering(llm, "It is a flute.", json.dumps({**GOOD, "label": "<script>x"}))
        label = llm.label(numbered(0, 2).finding)
        first, second = prompts(llm, given)
        assert AGAIN not in first and "It is a flute." in second and AGAIN in second
        assert label.text == "<script>x" and "<script" not in label._repr_html_()


def test_what_was_answered_is_not_asked_again_and_needs_no_weights(written, tmp_path):
    features = [numbered(i, 2) for i in range(3)]
    with LocalLLM(written["qwen"], tmp_path / "run", device="cpu") as llm:
        answering(llm, *(json.dumps({**GOOD, "label": f"label {i}"}) for i in range(2)))
        with pytest.raises(IndexError):  # killed while the third is asked
            name_features([llm], features, progress=False)
    with LocalLLM(written["qwen"], tmp_path / "run", device="cpu") as llm:
        assert llm.label(features[1].finding).text == "label 1"
        assert "_loaded" not in vars(llm)
        given = answering(llm, json.dumps({**GOOD, "label": "label 2"}))
        named = name_features([llm], features, progress=False)
        assert [label.text for label in named.labels] == [f"label {i}" for i in range(3)]
        assert len(given) == 1
    with pytest.raises(RunError, match="model = 'qwen', and now model = 'flamingo'"):
        LocalLLM(written["flamingo"], tmp_path / "run")


def test_models_that_are_not_there_or_no_listeners_are_named(written, tmp_path):
    with pytest.raises(Unavailable, match=r"`hf download Qwen/Qwen2-Audio-7B-Instruct`"):
        LocalLLM("Qwen/Qwen2-Audio-7B-Instruct", tmp_path / "run")
    with pytest.raises(ValueError, match="There is no folder"):
        LocalLLM(tmp_path / "gone", tmp_path / "run")
    deaf = shutil.copytree(written["qwen"], tmp_path / "deaf")
    (deaf / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match=r"kind 'qwen2': 'qwen2_audio' or .* was expected"):
        LocalLLM(deaf, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_damaged_or_out_of_memory_says_so_when_it_is_asked(written, tmp_path):
    folder = shutil.copytree(written["qwen"], tmp_path / "model")
    with LocalLLM(folder, tmp_path / "run", device="cpu") as llm:
        llm._loaded[0].generate = lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError())
        named = name_features([llm], [numbered(0, 2)], progress=False)
        assert "does not fit on the GPU" in named.missing["llm: model"]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with LocalLLM(folder, tmp_path / "half", device="cpu") as llm:
        with pytest.raises(ValueError, match=r"weights of .* are damaged"):
            llm.label(numbered(0, 2).finding)


@pytest.mark.parametrize(
    ("audio", "says"),
    [(np.full(1600, np.nan), "not numbers"), (np.zeros(100), "of at least 0.05 s")],
)
def test_sounds_that_are_none_are_refused_by_name(written, tmp_path, audio, says):
    good = [tone(440, 0.1)] * 2
    with LocalLLM(written["qwen"], tmp_path / "run", device="cpu") as llm:
        with pytest.raises(ValueError, match=f"clip 1 .*{says}"):
            llm.label(half(0, [good[0], audio], good))
        answering(llm, json.dumps(GOOD))
        assert llm.label(half(0, [np.zeros(1600)], good[:1])).text, "silence and 0.1 s are sounds"
