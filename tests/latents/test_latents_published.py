"""The real loading path of published latent models, on files of their true layout."""

import json
import shutil

import numpy as np
import pytest
import torch
from hub_cache import go_offline, in_cache
from torch import nn

from musae_utils import latents
from musae_utils.latents import published
from musae_utils.music import make

from diffusers import AutoencoderKL, AutoencoderOobleck  # isort: skip
from safetensors.torch import load_file, save_file  # isort: skip
from transformers import (  # isort: skip
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

SMALL = {
    "encodec": EncodecConfig(num_filters=4, hidden_size=16, codebook_size=32),
    "dac": DacConfig(encoder_hidden_size=4, decoder_hidden_size=32, n_codebooks=3,
                     downsampling_ratios=(2, 4, 5, 8), codebook_size=32, sampling_rate=24_000),
}  # fmt: skip
OOBLECK = {"encoder_hidden_size": 16, "decoder_channels": 8, "decoder_input_channels": 8,
           "channel_multiples": [1, 2, 4, 8, 16]}  # fmt: skip


@pytest.fixture(scope="module")
def sound():
    """Half a second at 24 kHz."""
    return np.random.default_rng(0).normal(0, 0.1, 12_000).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of each kind that the hub holds, of the true layout, small."""
    home = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    encodec = EncodecModel(SMALL["encodec"])
    for layer in encodec.quantizer.layers:
        layer.codebook.embed.normal_()
    encodec.save_pretrained(home / "encodec")
    DacModel(SMALL["dac"]).save_pretrained(home / "dac")
    AutoencoderOobleck(**OOBLECK).save_pretrained(home / "oobleck" / "vae")
    AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=8, block_out_channels=(4, 4, 8),
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        norm_num_groups=2,
    ).save_pretrained(home / "audioldm" / "vae")  # fmt: skip
    SpeechT5HifiGan(vocoder()).save_pretrained(home / "audioldm" / "vocoder")
    return home


def vocoder(**other):
    """AudioLDM's vocoder, narrow: 64 bands, 160 samples a frame."""
    shape = {"model_in_dim": 64, "sampling_rate": 16_000, "upsample_initial_channel": 32,
             "upsample_rates": [5, 4, 2, 2, 2], "upsample_kernel_sizes": [16, 16, 8, 4, 4],
             "normalize_before": False}  # fmt: skip
    return SpeechT5HifiGanConfig(**shape | other)


# -- transformers and diffusers --------------------------------------------------------------------


def test_encodec_is_the_librarys_own(folders, sound):
    model = latents.load(folders / "encodec")
    net = EncodecModel.from_pretrained(folders / "encodec").eval()
    z = model.encode(sound)
    assert (model.kind, z.shape, model.frame_rate) == ("rvq", (38, 16), 75)
    with torch.no_grad():
        x = torch.from_numpy(sound)[None, None]
        theirs = net.encode(x, bandwidth=24.0)
        heard = net.decode(theirs.audio_codes, theirs.audio_scales).audio_values[0, 0]
        codes = net.quantizer.encode(torch.from_numpy(z.T)[None]).transpose(0, 1)
    assert (codes == theirs.audio_codes[0]).all()
    ours = model.decode(z, quantise=True)
    assert len(ours) == 38 * 320
    np.testing.assert_allclose(ours[: len(heard)], heard[: len(ours)], atol=1e-5)
    assert np.abs(model.decode(z) - ours).max() > 1e-4  # rounding is heard
    assert "All 64 codebooks" in model.said


def test_dac_is_the_librarys_own(folders, sound):
    model = latents.load(folders / "dac")
    net = DacModel.from_pretrained(folders / "dac").eval()
    sound = sound[: 37 * 320]
    z = model.encode(sound)
    assert (z.shape, model.frame_rate) == ((37, 64), 75)
    with torch.no_grad():
        theirs = net.encode(torch.from_numpy(sound)[None, None]).quantized_representation
        heard = net.decode(theirs).audio_values[0]
    np.testing.assert_allclose(model.quantise(z), theirs[0].T, atol=1e-5)
    ours = model.decode(z, quantise=True)
    # A stride of 5 takes a sample: silence stands in for it, and lengths stay T · hop.
    assert len(ours) == 37 * 320 >= len(heard)
    np.testing.assert_allclose(ours[: len(heard)], heard, atol=1e-5)


def test_oobleck_is_the_librarys_own(folders, sound):
    model = latents.load(folders / "oobleck")
    net = AutoencoderOobleck.from_pretrained(folders / "oobleck" / "vae", low_cpu_mem_usage=False)
    z = model.encode(sound, 44_100)
    assert (model.kind, z.shape, model.channels) == ("vae", (6, 8), 2)  # ⌈12,000 / 2,048⌉
    x = torch.zeros(1, 2, 6 * 2048)
    x[..., :12_000] = torch.from_numpy(sound)
    with torch.no_grad():
        theirs = net.encode(x).latent_dist.mode()
        heard = net.decode(theirs).sample.mean(1)[0]
    np.testing.assert_allclose(z, theirs[0].T, atol=1e-5)
    np.testing.assert_allclose(model.decode(z), heard, atol=1e-5)
    np.testing.assert_array_equal(model.quantise(z), z)  # a VAE rounds nothing


def test_audioldm_hears_mel_bands_and_sings_through_its_vocoder(folders, sound):
    model = latents.load(folders / "audioldm")
    z = model.encode(sound, 16_000)
    assert (z.shape, model.frame_rate) == ((19, 128), 25)
    assert model.decode(z).shape == (19 * 640,)
    # Its mel bands are librosa's: magnitudes, Slaney's filters, the natural logarithm.
    import librosa

    padded = np.pad(sound, (0, 19 * 640 - len(sound)))
    bands = librosa.feature.melspectrogram(
        y=padded, sr=16_000, n_fft=1024, hop_length=160, n_mels=64, fmax=8000, power=1,
        pad_mode="reflect",
    )  # fmt: skip
    image = torch.from_numpy(np.log(np.maximum(bands[:, : 19 * 4], 1e-5)).T)[None, None]
    net = model.net["vae"]
    with torch.no_grad():
        theirs = net.encode(image).latent_dist.mode()[0]  # (8, 19, 16)
        heard = model.net["vocoder"](net.decode(theirs[None]).sample[:, 0])
    np.testing.assert_allclose(z, theirs.permute(1, 0, 2).flatten(1), atol=1e-3)
    np.testing.assert_allclose(model.decode(z), heard.ravel()[: 19 * 640], atol=1e-3)


def test_audioldm_needs_the_vocoder_it_was_trained_with(folders, tmp_path):
    shutil.copytree(folders / "audioldm" / "vae", tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match="needs the vocoder beside it"):
        latents.load(tmp_path)
    SpeechT5HifiGan(vocoder(model_in_dim=80)).save_pretrained(tmp_path / "vocoder")
    with pytest.raises(ValueError, match="80 mel bands at 16000 Hz"):
        latents.load(tmp_path)


def test_a_codec_with_loudness_beside_its_latents_is_refused(tmp_path):
    EncodecModel(
        EncodecConfig(num_filters=4, hidden_size=8, normalize=True, codebook_size=32)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="keeps it beside its latents"):
        latents.load(tmp_path)


# -- stable-audio-tools and DiffRhythm -------------------------------------------------------------


class Snake(nn.Module):
    """As stable-audio-tools defines it: x + sin²(x e^alpha) / e^beta, a number a channel."""

    def __init__(self, n):
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.randn(n) / 4) for _ in "ab")

    def forward(self, x):
        a, b = (p.exp()[:, None] for p in (self.alpha, self.beta))
        return x + torch.sin(a * x) ** 2 / (b + 1e-9)


class Layers(nn.Module):
    def __init__(self, *layers, residual=False):
        super().__init__()
        self.layers, self.residual = nn.Sequential(*layers), residual

    def forward(self, x):
        return self.layers(x) + (x if self.residual else 0)


def conv(of, *shape, **more):
    return nn.utils.weight_norm(of(*shape, **more))


def unit(n, d):
    wide = conv(nn.Conv1d, n, n, 7, dilation=d, padding=3 * d)
    return Layers(Snake(n), wide, Snake(n), conv(nn.Conv1d, n, n, 1), residual=True)


def stable_audio_tools(width=8, strides=(2, 4, 4, 8, 8), latent=4, sides=2):
    """The Oobleck VAE with the modules in the order in which stable-audio-tools has them."""
    sizes = [width, *(width * 2**i for i in range(len(strides)))]
    down, up = [], []
    for a, b, s in zip(sizes, sizes[1:], strides, strict=False):
        shape = {"kernel_size": 2 * s, "stride": s, "padding": (s + 1) // 2}
        units = [unit(a, d) for d in (1, 3, 9)]
        down.append(Layers(*units, Snake(a), conv(nn.Conv1d, a, b, **shape)))
        units = [unit(a, d) for d in (1, 3, 9)]
        up.insert(0, Layers(Snake(b), conv(nn.ConvTranspose1d, b, a, **shape), *units))
    top, ends = sizes[-1], {"kernel_size": 7, "padding": 3}
    return nn.ModuleDict(
        {
            "encoder": Layers(
                conv(nn.Conv1d, sides, width, **ends), *down, Snake(top),
                conv(nn.Conv1d, top, 2 * latent, 3, padding=1),
            ),
            "decoder": Layers(
                conv(nn.Conv1d, latent, top, **ends), *up, Snake(width),
                conv(nn.Conv1d, width, sides, **ends, bias=False),
            ),
        }
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    return stable_audio_tools()


@pytest.mark.parametrize("prefix", ["", "pretransform.model.", "autoencoder."])
def test_every_weight_finds_its_place(made, sound, tmp_path, prefix):
    state = {prefix + key: value for key, value in made.state_dict().items()}
    others = {"model.model.transformer.weight": torch.ones(2)} if prefix else {}
    save_file(state | others, tmp_path / "vae.safetensors")
    model = latents.load(tmp_path / "vae.safetensors")
    assert (model.hop, model.width, model.channels, model.kind) == (2048, 4, 2, "vae")
    x = torch.zeros(1, 2, 6 * 2048)
    x[..., :12_000] = torch.from_numpy(sound)
    with torch.no_grad():
        mean = made["encoder"](x).chunk(2, dim=1)[0]
        heard = made["decoder"](mean).mean(1)[0]
    z = model.encode(sound, 44_100)
    np.testing.assert_allclose(z, mean[0].T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.decode(z), heard, rtol=1e-4, atol=1e-4)
    assert "44,100 Hz" in model.said and "no tanh" in model.said


def test_a_configuration_beside_the_weights_is_obeyed(made, sound, tmp_path):
    torch.save({"state_dict": made.state_dict()}, tmp_path / "model.ckpt")
    inner = {"decoder": {"config": {"final_tanh": True}}}
    config = {"sample_rate": 48_000, "model": {"pretransform": {"config": inner}}}
    (tmp_path / "model_config.json").write_text(json.dumps(config))
    model = latents.load(tmp_path)
    z = model.encode(sound, 48_000)
    assert model.sample_rate == 48_000 and not model.said
    bounded = model.decode(z)
    del config["model"]
    inner["decoder"]["config"]["final_tanh"] = False
    (tmp_path / "model_config.json").write_text(json.dumps(config | {"model": inner}))
    with torch.no_grad():
        sides = made["decoder"](torch.from_numpy(z.T)[None])[0]
    np.testing.assert_allclose(bounded, sides.tanh().mean(0), atol=1e-4)
    np.testing.assert_allclose(latents.load(tmp_path).decode(z), sides.mean(0), atol=1e-4)


def test_the_shape_of_diffrhythms_vae_is_diffusers_own(monkeypatch):
    """156 M parameters, none of them in memory: names and shapes are compared."""
    with torch.device("meta"):
        theirs = stable_audio_tools(128, latent=64).state_dict()
        ours = AutoencoderOobleck().state_dict()
    names = dict(published.oobleck_keys(5))
    assert theirs.keys() == names.keys() and ours.keys() == set(names.values())
    for key, name in names.items():
        assert theirs[key].numel() == ours[name].numel(), key


@pytest.mark.parametrize("cut, said", [("missing", "misses decoder.layers.0.weight_g"),
                                       ("extra", "has besides decoder.layers.9.bias")])  # fmt: skip
def test_keys_too_few_or_too_many_are_named(made, tmp_path, cut, said):
    state = dict(made.state_dict())
    if cut == "missing":
        del state["decoder.layers.0.weight_g"]
    else:
        state["decoder.layers.9.bias"] = torch.ones(3)
    save_file(state, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=said):
        latents.load(tmp_path / "vae.safetensors")


def test_a_weight_of_another_shape_is_named(made, tmp_path):
    state = dict(made.state_dict()) | {"decoder.layers.1.layers.0.alpha": torch.ones(3)}
    save_file(state, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"layers.0.alpha is \(1, 3, 1\) and not \(1, 128, 1\)"):
        latents.load(tmp_path / "vae.safetensors")


def test_torchscript_is_never_run(made, tmp_path):
    program = torch.jit.trace(made["encoder"], torch.zeros(1, 2, 2048))
    program.save(tmp_path / "vae_model.pt")
    with pytest.raises(ValueError, match="TorchScript: a program"):
        latents.load(tmp_path / "vae_model.pt")
    with pytest.raises(ValueError, match="TorchScript: a program"):
        latents.load(tmp_path)


# -- WavTokenizer ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    from musae_utils.latents.wavtokenizer import WavTokenizer

    torch.manual_seed(0)
    net = WavTokenizer([6, 5, 5, 4], 4, 16, 64, 32, 48, 2, 4).eval()
    nn.init.normal_(net.feature_extractor["encodec"]["quantizer"].vq.layers[0]._codebook.embed)
    return net


def released(net):
    """The state of a released checkpoint: Lightning's, with all that was there in training."""
    extra = {"feature_extractor.encodec.decoder.model.0.conv.conv.bias": torch.ones(2),
             "multiresddisc.discriminators.0.band_convs.0.0.bias": torch.ones(2),
             "multiperioddisc.discriminators.0.convs.0.bias": torch.ones(2),
             "dac.discriminators.0.conv_post.bias": torch.ones(1),
             "melspec_loss.mel_spec.spectrogram.window": torch.ones(4)}  # fmt: skip
    return {"state_dict": net.state_dict() | extra, "epoch": 3, "pytorch-lightning_version": "1.8"}


def test_a_released_wavtokenizer_is_read(tokenizer, sound, tmp_path):
    torch.save(released(tokenizer), tmp_path / "large.ckpt")
    model = latents.load(tmp_path / "large.ckpt")
    z = model.encode(sound)
    assert (model.kind, z.shape, model.frame_rate) == ("single codebook", (20, 16), 40)
    x = torch.from_numpy(sound)[None, None]
    with torch.no_grad():
        theirs = tokenizer.encode(x)
        book = tokenizer.feature_extractor["encodec"]["quantizer"].vq.layers[0].codebook
        nearest = book[torch.cdist(theirs[0].T, book).argmin(1)]
    np.testing.assert_allclose(z, theirs[0].T, atol=1e-5)
    np.testing.assert_allclose(model.quantise(z), nearest, atol=1e-5)
    assert model.decode(z, quantise=True).shape == (20 * 600,)


def test_wavtokenizers_weights_have_the_released_names():
    """Names and shapes as in the 75-token checkpoints (as transformers' converter has them)."""
    from musae_utils.latents.wavtokenizer import WavTokenizer

    with torch.device("meta"):
        state = WavTokenizer([8, 5, 4, 2], 32, 512, 4096, 768, 2304, 12, 4).state_dict()
    encoder, backbone = "feature_extractor.encodec.encoder.model.", "backbone."
    for key, shape in {
        f"{encoder}0.conv.conv.weight_v": (32, 1, 7),
        f"{encoder}3.conv.conv.weight_v": (64, 32, 4),
        f"{encoder}13.lstm.weight_ih_l1": (2048, 512),
        f"{encoder}15.conv.conv.bias": (512,),
        "feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed": (4096, 512),
        f"{backbone}embed.weight": (768, 512, 7),
        f"{backbone}norm.scale.weight": (4, 768),
        f"{backbone}convnext.11.pwconv1.weight": (2304, 768),
        f"{backbone}pos_net.0.norm1.weight": (768,),
        f"{backbone}pos_net.2.q.weight": (768, 768, 1),
        f"{backbone}pos_net.4.conv2.bias": (768,),
        f"{backbone}pos_net.5.bias": (768,),
        f"{backbone}final_layer_norm.weight": (768,),
        "head.out.weight": (1282, 768),
        "head.istft.window": (1280,),
    }.items():
        assert tuple(state[key].shape) == shape, key


def test_wavtokenizers_decoder_is_vocos_after_convolutions_and_attention(tokenizer):
    from vocos.models import VocosBackbone

    with torch.no_grad():
        x = torch.randn(2, 32, 9)
        attention = tokenizer.backbone.pos_net[2]
        y = attention.norm(x)
        q, k, v = (part(y) for part in (attention.q, attention.k, attention.v))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 32**0.5, -1)
        mixed = attention.proj_out(torch.einsum("bij,bcj->bci", weights, v))
        torch.testing.assert_close(attention(x), x + mixed)

        plain = VocosBackbone(16, 32, 48, 2, adanorm_num_embeddings=4).eval()
        own = tokenizer.backbone.state_dict()
        plain.load_state_dict({k: v for k, v in own.items() if "pos_net" not in k})
        z, first = torch.randn(2, 16, 9), torch.zeros(1, dtype=torch.long)
        kept, tokenizer.backbone.pos_net = tokenizer.backbone.pos_net, nn.Identity()
        same = tokenizer.backbone(z, bandwidth_id=first)
        tokenizer.backbone.pos_net = kept
        torch.testing.assert_close(same, plain(z, bandwidth_id=first))


def test_a_wavtokenizer_with_other_keys_is_refused(tokenizer, tmp_path):
    for change, said in (
        (lambda s: s.pop("head.istft.window"), "misses head.istft.window"),
        (lambda s: s.pop("backbone.embed.weight"), "'backbone.embed.weight' is missing"),
        (lambda s: s.update({"backbone.new": torch.ones(1)}), "has besides backbone.new"),
    ):
        state = released(tokenizer)
        change(state["state_dict"])
        torch.save(state, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match=said):
            latents.load(tmp_path / "a.ckpt")


# -- files that are none ---------------------------------------------------------------------------


class Program:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def test_a_pickle_that_would_run_is_not_opened(tmp_path):
    torch.save({"state_dict": Program()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="would run code"):
        latents.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_truncated_file_is_named(made, tmp_path, kind):
    file = tmp_path / f"cut.{kind}"
    state = made.state_dict()
    save_file(state, file) if kind == "safetensors" else torch.save(state, file)
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=f"cut.{kind} is damaged or cut short"):
        latents.load(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=f"cut.{kind} is damaged or cut short"):
        latents.load(file)


@pytest.mark.parametrize("kind", ["encodec", "dac", "oobleck"])
def test_a_folder_with_damaged_or_other_weights_is_named(folders, tmp_path, kind):
    folder = tmp_path / kind
    shutil.copytree(folders / kind, folder)
    weights = next(folder.rglob("*.safetensors"))
    whole = weights.read_bytes()
    state = load_file(weights)
    gone = sorted(state)[-1]
    save_file({k: v for k, v in state.items() if k != gone}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="does not hold the weights of this model: it misses"):
        latents.load(folder)
    save_file(state | {"encoder.other": torch.ones(1)}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"has besides encoder.other"):
        latents.load(folder)
    weights.write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"damaged or cut short|is not a whole"):
        latents.load(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"a config.json and no weights"):
        latents.load(folder)


def test_what_lies_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder or file"):
        latents.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        latents.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"is of a bert; those that can be read are encodec, dac"):
        latents.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        latents.load(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"is neither an Oobleck VAE .* it begins with a"):
        latents.load(tmp_path / "a.safetensors")
    torch.save(torch.ones(3), tmp_path / "b.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        latents.load(tmp_path / "b.pt")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds a.safetensors, b.pt: give the one that is meant"):
        latents.load(tmp_path)


# -- names -----------------------------------------------------------------------------------------


def test_names_are_found_in_the_cache(folders, tokenizer, sound, tmp_path, monkeypatch):
    go_offline(tmp_path, monkeypatch)
    (tmp_path / "released").mkdir()
    row = published.BY_NAME["novateur/WavTokenizer-large-unify-40token"]
    torch.save(released(tokenizer), tmp_path / "released" / row.files[0])
    for name, source in {
        "facebook/encodec_24khz": folders / "encodec",
        "descript/dac_24khz": folders / "dac",
        "stabilityai/stable-audio-open-1.0": folders / "oobleck",
        "cvssp/audioldm2-music": folders / "audioldm",
        row.name: tmp_path / "released",
    }.items():
        in_cache(tmp_path, name, source)
        model = latents.load(name)
        assert model.name == name and model.kind == published.BY_NAME[name].kind
        assert np.isfinite(model.encode(sound, 24_000)).all()


def test_offline_and_not_in_the_cache(tmp_path, monkeypatch):
    go_offline(tmp_path, monkeypatch)
    with pytest.raises(ConnectionError, match=r"not in the Hugging Face cache .* go online once"):
        latents.load("facebook/encodec_32khz")


def test_diffrhythm_by_name_says_why_not_and_loads_where_weights_are(made, tmp_path, monkeypatch):
    go_offline(tmp_path, monkeypatch)
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text("a model")
    in_cache(tmp_path, "ASLP-lab/DiffRhythm-vae", source)
    with pytest.raises(ValueError, match=r"DiffRhythm-vae/vae_model.pt is TorchScript"):
        latents.load("ASLP-lab/DiffRhythm-vae")
    snapshot = next((tmp_path / "hub").rglob("snapshots")) / ("0" * 40)
    save_file(made.state_dict(), snapshot / "vae.safetensors")
    assert latents.load("ASLP-lab/DiffRhythm-vae").hop == 2048


@pytest.mark.parametrize("row", published.TABLE, ids=lambda row: row.name)
def test_each_row_is_honest(row):
    assert row.kind in ("rvq", "vae", "single codebook")
    if not row.files:
        with pytest.raises(ValueError, match="does not load: "):
            latents.load(row.name)
    else:
        assert "not on the published ones" in row.state or "tried on one of" in row.state


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'facebook/encodec_24khz'"):
        latents.load("encodec-24khz")
    with pytest.raises(ValueError, match="There is no latent model called ''"):
        latents.load("")


# -- true shapes -----------------------------------------------------------------------------------


def shapes():
    """What each row's files hold, at full width: who writes them, and what to expect."""
    oobleck, dac, plain = AutoencoderOobleck, DacConfig, EncodecConfig
    ratios = {"downsampling_ratios": (2, 4, 5, 8)}
    return {
        "facebook/encodec_24khz": lambda: EncodecModel(plain()),
        "facebook/encodec_32khz": lambda: EncodecModel(
            plain(sampling_rate=32_000, upsampling_ratios=[8, 5, 4, 4], num_filters=64,
                  codebook_size=2048, target_bandwidths=[2.2], use_causal_conv=False)
        ),
        "descript/dac_16khz": lambda: DacModel(dac(**ratios)),
        "descript/dac_24khz": lambda: DacModel(dac(sampling_rate=24_000, **ratios)),
        "descript/dac_44khz": lambda: DacModel(dac(sampling_rate=44_100)),
        "stabilityai/stable-audio-open-1.0": lambda: oobleck(),
        "ACE-Step/Ace-Step1.5": lambda: oobleck(
            downsampling_ratios=[2, 4, 4, 6, 10], sampling_rate=48_000
        ),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", shapes())
def test_at_its_true_size(name, tmp_path):
    row = published.BY_NAME[name]
    torch.manual_seed(0)
    shapes()[name]().save_pretrained(tmp_path / "vae" if row.kind == "vae" else tmp_path)
    check_true_size(latents.load(tmp_path), row)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in published.BY_NAME if n.startswith("novateur")])
def test_a_wavtokenizer_at_its_true_size(name, tmp_path):
    from musae_utils.latents.wavtokenizer import WavTokenizer

    ratios = [6, 5, 5, 4] if "40token" in name else [8, 5, 4, 2]
    torch.manual_seed(0)
    torch.save(released(WavTokenizer(ratios, 32, 512, 4096, 768, 2304, 12, 4)), tmp_path / "a.ckpt")
    check_true_size(latents.load(tmp_path / "a.ckpt"), published.BY_NAME[name])


@pytest.mark.slow
def test_audioldms_vae_and_vocoder_at_their_true_size(tmp_path):
    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=8, block_out_channels=(128, 256, 512),
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=2,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    wide = vocoder(upsample_initial_channel=1024)
    SpeechT5HifiGan(wide).save_pretrained(tmp_path / "vocoder")
    check_true_size(latents.load(tmp_path), published.BY_NAME["cvssp/audioldm2-music"])


@pytest.mark.slow
def test_diffrhythms_vae_at_its_true_size(tmp_path):
    torch.manual_seed(0)
    save_file(stable_audio_tools(128, latent=64).state_dict(), tmp_path / "vae.safetensors")
    model = latents.load(tmp_path / "vae.safetensors")
    check_true_size(model, published.BY_NAME["ASLP-lab/DiffRhythm-vae"])


def check_true_size(model, row):
    assert (model.sample_rate, model.width, model.kind) == (row.hertz, row.width, row.kind)
    assert model.frame_rate == pytest.approx(row.frames)
    clip = make(seed=1, seconds=5)
    z = model.encode(clip.audio[: clip.sample_rate], clip.sample_rate)  # a second of it
    assert z.shape == (-(-model.sample_rate // model.hop), row.width)
    assert model.decode(z, quantise=True).shape == (len(z) * model.hop,)
    assert f"Sound at {clip.sample_rate:,} Hz" in model.said or model.sample_rate == 16_000
    assert len(model.encode(clip.audio[:800], 16_000)) == -(-model.sample_rate // 20 // model.hop)
