"""Each patch is still needed: without it, in a process of its own, something must fail."""

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_lm

from musae_utils.models import compat


def run(program, **environment):
    """Run `program` after ``patch(*names)`` was defined: it applies those patches alone."""
    source = Path(compat.__file__).read_text(encoding="utf-8").partition("\nfor _patch in")[0]
    start = (
        "import sys, types\n"
        f"compat = types.ModuleType('compat'); exec({source!r}, compat.__dict__)\n"
        "def patch(*names):\n"
        "    for name in names: getattr(compat, name)()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(program)],
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_every_patch_is_listed_applied_and_dated():
    for patch in compat.PATCHES:
        assert f"`{patch.__name__}`" in compat.__doc__
        assert patch.__doc__
    assert len(compat.PATCHES) == 6


def test_xformers_is_still_imported_by_audiocraft():
    done = run("patch('stub_torchaudio_extension'); import audiocraft.modules.transformer")
    assert "No module named 'xformers'" in done.stderr, done.stderr


def test_stand_ins_satisfy_those_who_look_for_them_and_bars_over_weights_are_gone():
    done = run("""
        patch('stub_xformers')
        import importlib.util
        assert importlib.util.find_spec('xformers') is not None
        from transformers.utils.import_utils import _is_package_available
        assert _is_package_available('xformers', return_version=True)[0] is False
        from xformers.ops import LowerTriangularMask, unbind, memory_efficient_attention
        from xformers.profiler import profiler
        try:
            memory_efficient_attention()
        except NotImplementedError as error:
            print(error)

        from huggingface_hub.utils import are_progress_bars_disabled
        from transformers.utils.logging import is_progress_bar_enabled
        assert is_progress_bar_enabled(), 'transformers is quiet by itself'
        patch('quiet')
        assert not is_progress_bar_enabled() and not are_progress_bars_disabled()
    """)
    assert done.returncode == 0, done.stderr
    assert "xformers is not installed" in done.stdout


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_torchaudio_still_wants_cuda_beside_a_torch_without():
    done = run("import torchaudio, torchaudio.version; print(torchaudio.version.cuda)")
    if done.returncode == 0:
        assert done.stdout.strip() == "None", "a CUDA build loads: the patch is not needed"
        return
    assert "OSError" in done.stderr
    done = run("""
        patch('stub_torchaudio_extension')
        import torch, torchaudio
        print(torchaudio.functional.resample(torch.zeros(1, 44100), 44100, 16000).shape)
    """)
    assert "16000" in done.stdout, done.stderr


def test_the_codec_still_warns():
    from audiocraft.modules.conv import StreamableConv1d

    with pytest.warns(FutureWarning, match="weight_norm"):
        StreamableConv1d(1, 1, 3, norm="weight_norm")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compat.quiet()
        StreamableConv1d(1, 1, 3, norm="weight_norm")
    assert not said


def test_a_melody_conditioner_still_imports_demucs(monkeypatch):
    from audiocraft.modules.conditioners import ChromaStemConditioner

    settings = dict(output_dim=4, sample_rate=16000, n_chroma=12, radix2_exp=10, duration=1)
    assert ChromaStemConditioner(**settings).chroma_len > 0
    with pytest.raises(NotImplementedError, match="pip install demucs"):
        sys.modules["demucs.apply"].apply_model()
    for name in ("demucs", "demucs.pretrained"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="demucs"):
        ChromaStemConditioner(**settings)


class Runs:
    """A pickle that writes a file when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_audiocraft_still_leaves_safety_to_the_environment(tmp_path, monkeypatch):
    from audiocraft.models import loaders

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"a": Runs(tmp_path / "it_ran")}, tmp_path / "state_dict.bin")
    with pytest.raises(ValueError, match="was refused"):
        loaders._get_state_dict(tmp_path, "state_dict.bin")
    assert not (tmp_path / "it_ran").exists()
    loaders._get_state_dict.__wrapped__(tmp_path, "state_dict.bin")
    assert (tmp_path / "it_ran").exists(), "audiocraft is safe by itself: the patch is not needed"


def test_harmless_checkpoints_are_read_and_stay_closed_to_others(tmp_path):
    from omegaconf import OmegaConf

    config = OmegaConf.create({"a": [1, 2.5, None, True, "x"], "b": {"c": "${a}"}})
    torch.save({"cfg": config, "w": torch.arange(3)}, tmp_path / "good.bin")
    read = compat.read_checkpoint(tmp_path / "good.bin")
    assert read["cfg"] == config and read["w"].tolist() == [0, 1, 2]
    # outside of read_checkpoint torch trusts what it trusted before
    assert type(config) not in torch.serialization.get_safe_globals()


# -- streaming


def streamed(lm, conditions, codes, patched):
    """Logits of each position, one at a time after a prompt of three, and the caches' addresses."""
    from audiocraft.modules.transformer import StreamingMultiheadAttention as Attention

    logits, addresses = [], []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), lm.streaming():
        if not patched:
            for name in ("_complete_kv", "forward"):
                patch.setattr(Attention, name, getattr(Attention, name).__wrapped__)
        for first, last in [(0, 3), *((i, i + 1) for i in range(3, codes.shape[-1]))]:
            logits.append(lm(codes[..., first:last], [], conditions))
            state = lm.transformer.layers[0].self_attn._streaming_state
            addresses.append(state["past_keys"].data_ptr())
    return torch.cat(logits, dim=2), addresses


@pytest.mark.parametrize("memory_efficient", [True, False])
def test_streaming_in_place_gives_the_same_numbers(memory_efficient):
    settings = {} if memory_efficient else {"memory_efficient": False, "custom": True}
    lm = tiny_lm(**settings)
    provider = lm.condition_provider
    from audiocraft.modules.conditioners import ConditioningAttributes

    prompts = [ConditioningAttributes(text={"description": p}) for p in ("slow piano", None)]
    conditions = provider(provider.tokenize(prompts))
    codes = torch.randint(0, 32, (2, 4, 300))  # longer than a page of the cache
    ours, in_place = streamed(lm, conditions, codes, patched=True)
    theirs, copied = streamed(lm, conditions, codes, patched=False)
    assert torch.allclose(ours, theirs, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(ours, lm(codes, [], conditions), atol=1e-4)
    assert len(set(in_place)) <= 2
    assert len(set(copied)) > 2, "audiocraft no longer copies its cache: the patch is not needed"


def test_streaming_notices_other_conditions_and_leaves_gradients_alone():
    lm = tiny_lm()
    provider = lm.condition_provider
    from audiocraft.modules.conditioners import ConditioningAttributes

    def conditions(prompt):
        row = [ConditioningAttributes(text={"description": prompt})]
        return provider(provider.tokenize(row))

    codes = torch.randint(0, 32, (1, 4, 2))
    with torch.no_grad():
        first, second = conditions("slow piano"), conditions("fast organ drums")
        with lm.streaming():
            lm(codes[..., :1], [], first)
            changed = lm(codes[..., 1:], [], second)
        with lm.streaming():
            lm(codes[..., :1], [], first)
            kept = lm(codes[..., 1:], [], first)
    assert not torch.allclose(changed, kept)
    with lm.streaming():
        for i in range(2):
            loss = lm(codes[..., i : i + 1], [], conditions("slow piano")).sum()
    loss.backward()
    assert lm.emb[0].weight.grad.abs().sum() > 0
