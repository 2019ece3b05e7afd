import warnings

import numpy as np
import pytest
import torch
from audiocraft.models import MusicGen
from audiocraft.modules.conditioners import ConditioningAttributes
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_codec, tiny_lm

import musae_utils.models as models
from musae_utils.models.sampling import Noise, generate_codes, sample
from musae_utils.music.clip import Clip

# -- sampling


def test_the_gumbel_rule_draws_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    noise = Noise(1, 4000)
    tokens = sample(logits.expand(4000, 1, 4), noise, temperature=0.7, top_k=None).flatten()
    seen = torch.bincount(tokens, minlength=4) / 4000
    assert torch.allclose(seen, (logits / 0.7).softmax(-1), atol=0.03)


@given(top_k=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_only_the_likeliest_codes_are_drawn(top_k, seed):
    logits = torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(seed))
    tokens = sample(logits, Noise(seed, 5), top_k=top_k)
    rank = (logits > logits.gather(-1, tokens[..., None])).sum(-1)
    assert rank.max() < top_k


def test_zero_temperature_takes_the_likeliest():
    logits = torch.randn(2, 4, 9)
    assert torch.equal(sample(logits, Noise(0, 2), temperature=0), logits.argmax(-1))


@given(seed=st.integers(0, 1000), rows=st.integers(1, 6))
@settings(max_examples=25)
def test_noise_of_a_row_does_not_know_its_neighbours(seed, rows):
    few, many = Noise(seed, rows), Noise(seed, 8)
    for _ in range(2):
        assert torch.equal(few(2, 5), many(2, 5)[:rows])


def test_noise_differs_between_rows_seeds_and_draws_unless_it_is_shared():
    noise = Noise(0, 2)
    first, second = noise(1, 100), noise(1, 100)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)
    # neither (seed 0, row 1) nor any other pair may coincide with (seed 1, row 0)
    assert not torch.equal(Noise(0, 2)(1, 100)[1], Noise(1, 1)(1, 100)[0])
    of_seeds = Noise([4, 0, 4], 3)(1, 100)
    assert torch.equal(of_seeds[[0, 2]], Noise(4, 2, same=True)(1, 100))
    assert torch.equal(of_seeds[1], first[0])
    shared = Noise(0, 3, same=True)(1, 100)
    assert torch.equal(shared[0], shared[2]) and torch.equal(shared[0], first[0])


# -- generating


@pytest.fixture(scope="module")
def model():
    musicgen = MusicGen("tiny", tiny_codec(), tiny_lm(), max_duration=30)
    return models.MusicModel("tiny", musicgen, torch.float32)


@pytest.mark.parametrize("prompt_frames", [0, 1, 7])
@pytest.mark.parametrize("prompts", [["slow piano", "fast organ drums"], [None, "piano"]])
def test_greedy_codes_equal_audiocrafts(model, prompts, prompt_frames):
    prompt = torch.randint(0, 32, (2, 4, prompt_frames)) if prompt_frames else None
    attributes = [ConditioningAttributes(text={"description": p}) for p in prompts]
    theirs = model.lm.generate(
        prompt, attributes, max_gen_len=30, use_sampling=False, cfg_coef=3.0, check=True
    )
    ours = generate_codes(
        model.lm, model.conditions(prompts, guided=True), 30, Noise(0, 2), prompt,
        guidance=3.0, temperature=0,
    )  # fmt: skip
    assert torch.equal(ours, theirs)
    assert len(theirs.unique()) > 3


def test_the_same_seed_plays_the_same_and_another_seed_something_else(model):
    first = model.generate("slow piano", seconds=1, seed=3)
    assert torch.equal(first.codes, model.generate("slow piano", seconds=1, seed=3).codes)
    assert not torch.equal(first.codes, model.generate("slow piano", seconds=1, seed=4).codes)
    assert first.codes.shape == (1, 4, 50) and first.audio.shape == (1, 16000)


def test_a_row_does_not_depend_on_the_batch(model):
    alone = model.generate(["slow piano"], seconds=1)
    among = model.generate(["slow piano", "fast organ", None], seconds=1)
    assert torch.equal(alone.codes[0], among.codes[0])


def test_a_longer_piece_begins_with_the_shorter(model):
    short = model.generate("slow piano", seconds=0.5).codes
    long = model.generate("slow piano", seconds=1).codes
    # the last frames of a piece lack the frames that a longer one has beside them
    assert torch.equal(short[..., :-3], long[..., : short.shape[-1] - 3])


def test_shared_noise_makes_equal_prompts_equal(model):
    shared = model.generate(["slow piano"] * 3, seconds=1, same_noise=True).codes
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], shared[2])
    own = model.generate(["slow piano"] * 3, seconds=1).codes
    assert not torch.equal(own[0], own[1])


def test_prompts_and_guidance_change_what_is_played(model):
    def codes(prompt, **settings):
        return model.generate(prompt, seconds=1, **settings).codes

    assert not torch.equal(codes("slow piano"), codes("fast organ drums"))
    assert not torch.equal(codes("slow piano"), codes("slow piano", guidance=1))
    assert torch.equal(codes(None), codes("")) and torch.equal(codes(None), codes("  "))
    # without a prompt guidance has nothing to add, and is left out
    assert torch.equal(codes(None, guidance=1), codes(None, guidance=3))


def test_continuing_keeps_the_prompt(model):
    sound = np.random.default_rng(0).normal(0, 0.1, (2, 8000)).astype(np.float32)
    given_codes = model.encode(sound)
    result = model.continue_from(sound, seconds=1, prompts="slow piano", seed=2)
    assert result.prompts == ["slow piano", "slow piano"]
    assert torch.equal(result.codes[..., :25], given_codes)
    assert result.codes.shape == (2, 4, 50)
    again = model.generate("slow piano", seconds=1, seed=2, prompt_codes=given_codes)
    assert torch.equal(result.codes, again.codes)


def test_a_generation_can_be_repeated_from_its_provenance(model):
    result = model.generate(["piano", None], seconds=0.4, seed=7, temperature=0.8, top_k=5)
    clip = result.clips()[0]
    assert clip.caption == "piano" and clip.sample_rate == 16000 and clip.truth is None
    kept = {k: clip.provenance[k] for k in ("seed", "guidance", "temperature", "top_k")}
    again = model.generate(result.prompts, seconds=result.seconds, **kept)
    assert torch.equal(again.audio[0], torch.from_numpy(clip.audio))
    assert clip.provenance["fingerprint"] == model.fingerprint
    assert "piano" in repr(result) and "0.4 s" in repr(result)


@pytest.mark.parametrize("seconds", [0, -1, 10_000, float("nan"), float("inf"), 0.001])
def test_impossible_lengths_name_the_limit(model, seconds):
    with pytest.raises(ValueError, match="30 s"):
        model.generate("piano", seconds=seconds)


@pytest.mark.parametrize(
    "settings, word",
    [
        (dict(prompts=[]), "no prompt"),
        (dict(prompts=[3]), "text or None"),
        (dict(prompts="piano", temperature=-1), "temperature"),
        (dict(prompts="piano", guidance=float("nan")), "guidance"),
        (dict(prompts="piano", seed=-1), "seed"),
        (dict(prompts="piano", seed=0.5), "seed"),
        (dict(prompts="piano", top_k=-5), "top_k"),
        (dict(prompts="piano", prompt_codes=torch.zeros(1, 4, 80, dtype=int)), "1.6 s"),
        (dict(prompts=["a"] * 3, prompt_codes=torch.zeros(2, 4, 5, dtype=int)), "3 prompts"),
    ],
)
def test_wrong_settings_are_answered(model, settings, word):
    with pytest.raises(ValueError, match=word):
        model.generate(**{"seconds": 1, **settings})


@pytest.mark.parametrize("prompt", ["piano " * 1700, "ピアノとドラム", "\u202e🎹\x00", "'<b>"])
def test_odd_prompts_are_played(model, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model.generate(prompt, seconds=0.2).codes.shape == (1, 4, 10)


def test_unknown_words_are_said_once(model):
    with pytest.warns(UserWarning, match=r"tiny does not know 'theremin', 'x+…'") as said:
        model.generate(["slow theremin", "piano theremin " + "x" * 1000], seconds=0.2)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(["slow piano", None], seconds=0.2)


# -- sound and codes


def test_sound_of_any_kind_gives_the_same_codes(model):
    sound = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    codes = model.encode(sound)
    assert codes.shape == (1, 4, 50) and codes.dtype == torch.int64
    for same in (
        torch.from_numpy(sound),
        sound[None],
        np.stack([sound, sound])[None],  # stereo
        sound.astype(np.float64),
        Clip(sound, 16000),
        [Clip(sound, 16000)],
        [sound],
    ):
        assert torch.equal(model.encode(same), codes)
    assert model.encode([Clip(sound)] * 20).shape == (20, 4, 50)
    pcm = np.round(sound * 32767).astype(np.int16)
    assert (model.encode(pcm) == codes).float().mean() > 0.9


@pytest.mark.parametrize("rate, channels", [(44100, 2), (192_000, 8), (8000, 1), (22050, 1)])
def test_other_rates_and_channels_are_converted(model, rate, channels):
    time = np.arange(rate) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * time, dtype=np.float32)
    codes = model.encode(np.broadcast_to(tone, (1, channels, rate)), sample_rate=rate)
    reference = model.encode(0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000))
    assert codes.shape == reference.shape
    assert (codes == reference)[..., 2:-2].float().mean() > 0.8  # the edges ring


def test_silence_and_a_tenth_of_a_second_are_sound(model):
    assert model.encode(np.zeros(16000)).shape == (1, 4, 50)
    assert model.encode(np.zeros(1600)).shape == (1, 4, 5)


@pytest.mark.parametrize(
    "sound, word",
    [
        (np.zeros(0), "no sound"),
        ([], "empty"),
        (np.zeros((0, 16000)), "no sound"),
        (np.zeros(100), "0.0063 s"),
        (np.zeros((44100, 2)), "transpose"),
        (np.full(16000, np.nan), "100.00%"),
        (np.r_[np.zeros(15999), np.inf], "NaN or infinite"),
        (np.zeros((1, 1, 1, 16000)), "shape"),
        (np.zeros(16000, complex), "complex"),
        ([np.zeros(16000), np.zeros(8000)], "0.50 to 1.00 s"),
    ],
)
def test_what_is_not_sound_is_answered(model, sound, word):
    with pytest.raises(ValueError, match=word):
        model.encode(sound)


def test_decoding_gives_exact_lengths_and_checks_codes(model):
    codes = torch.randint(0, 32, (10, 4, 25))
    sound = model.decode(codes)
    assert sound.shape == (10, 8000) and sound.dtype == torch.float32
    assert torch.allclose(model.decode(codes[3]), sound[3:4], atol=1e-5)
    for wrong in (codes[:, :3], codes.float(), codes - 1, codes + 1, codes[..., :0], codes[0, 0]):
        with pytest.raises(ValueError, match="Codes of tiny"):
            model.decode(wrong)


def test_the_model_describes_itself(model):
    text = repr(model)
    for word in ("tiny", "cpu", "float32", "2 layers", "16000 Hz", "30 s", model.fingerprint):
        assert word in text


def test_the_fingerprint_follows_the_weights_not_their_precision():
    def fingerprint(lm):
        musicgen = MusicGen("tiny", tiny_codec(), lm, max_duration=30)
        return models.MusicModel("tiny", musicgen, torch.float32).fingerprint

    lm = tiny_lm()
    first = fingerprint(lm)
    assert fingerprint(tiny_lm().half()) == first and len(first) == 16
    with torch.no_grad():
        lm.linears[0].weight[0, 0] += 0.1
    assert fingerprint(lm) != first
