"""WavTokenizer (Ji et al., arXiv 2408.16532), for its released checkpoints (notebook 12).

Encoder and codebook are the ``encodec`` package's, the decoder is ``vocos``'s, after convolutions
and an attention of WavTokenizer's own. Everything is called what a released file calls it, so
weights are read as they are.
"""

from __future__ import annotations

import math
import re

import torch
from torch import nn
from torch.nn import functional as F

from musae_utils.models import compat  # noqa: F401  (first: vocos imports torchaudio)

from encodec.modules import SEANetEncoder  # isort: skip
from encodec.quantization import ResidualVectorQuantizer  # isort: skip
from vocos.heads import ISTFTHead  # isort: skip
from vocos.models import VocosBackbone  # isort: skip

SAMPLE_RATE = 24_000
ENCODER, CODEBOOK = "feature_extractor.encodec.encoder.", "feature_extractor.encodec.quantizer."
#: What a released file holds besides: discriminators, losses, and EnCodec's decoder, never used.
TRAINING_ONLY = ("multiperioddisc.", "multiresddisc.", "dac.", "dacdiscriminator.", "melspec_loss.",
                 "feature_extractor.encodec.decoder.")  # fmt: skip


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResnetBlock(nn.Module):
    """(B, width, T) to the same, and itself added."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(width), nn.Conv1d(width, width, 3, padding=1)
        self.norm2, self.conv2 = _norm(width), nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class AttnBlock(nn.Module):
    """One head over all frames: (B, width, T) to the same, and itself added."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (part(y).transpose(1, 2) for part in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))


class Backbone(VocosBackbone):
    """Vocos's, after `pos_net`."""

    def __init__(self, input_channels: int, dim: int, *others: int):
        super().__init__(input_channels, dim, *others[:2], adanorm_num_embeddings=others[2])
        self.pos_net = nn.Sequential(
            ResnetBlock(dim), ResnetBlock(dim), AttnBlock(dim), ResnetBlock(dim), ResnetBlock(dim),
            _norm(dim),
        )  # fmt: skip

    def forward(self, x: torch.Tensor, bandwidth_id: torch.Tensor) -> torch.Tensor:
        x = self.pos_net(self.embed(x))
        x = self.norm(x.transpose(1, 2), cond_embedding_id=bandwidth_id).transpose(1, 2)
        for block in self.convnext:
            x = block(x, cond_embedding_id=bandwidth_id)
        return self.final_layer_norm(x.transpose(1, 2))


class WavTokenizer(nn.Module):
    """24 kHz sound to frames of one code each, and back.

    Parameters
    ----------
    ratios : list of int
        Of the encoder's four convolutions, last one first: 8·5·4·2 samples a frame, or 6·5·5·4.
    filters, width, bins : int
        Channels after the first convolution; numbers a frame; entries of the codebook.
    dim, hidden, layers, bandwidths : int
        Of the decoder: its width, the inner width of its blocks, how many; kinds of normalisation.
    """

    def __init__(self, ratios, filters, width, bins, dim, hidden, layers, bandwidths):
        super().__init__()
        self.hop, self.width = math.prod(ratios), width
        # The arguments of WavTokenizer's own code; those of the encoder differ from EnCodec's.
        encoder = SEANetEncoder(
            dimension=width, n_filters=filters, ratios=ratios, causal=False, true_skip=False
        )
        codebook = ResidualVectorQuantizer(dimension=width, n_q=1, bins=bins)
        inner = nn.ModuleDict({"encoder": encoder, "quantizer": codebook})
        self.feature_extractor = nn.ModuleDict({"encodec": inner})
        self.backbone = Backbone(width, dim, hidden, layers, bandwidths)
        self.head = ISTFTHead(dim, 4 * self.hop, self.hop)

    @classmethod
    def of(cls, state: dict[str, torch.Tensor]) -> WavTokenizer:
        """One of the shape of a released file, whose strides are half its kernels."""
        convolutions = {
            int(match[1]): state[key].shape
            for key in state
            if (match := re.fullmatch(rf"{ENCODER}model\.(\d+)\.conv\.conv\.weight_v", key))
        }
        ratios = [k // 2 for _, (out, into, k) in sorted(convolutions.items()) if out == 2 * into]
        width, dim = state[f"{CODEBOOK}vq.layers.0._codebook.embed"], state["backbone.embed.weight"]
        blocks = {key.split(".")[2] for key in state if key.startswith("backbone.convnext.")}
        return cls(
            ratios=ratios[::-1],
            filters=state[f"{ENCODER}model.0.conv.conv.weight_v"].shape[0],
            width=width.shape[1],
            bins=width.shape[0],
            dim=dim.shape[0],
            hidden=state["backbone.convnext.0.pwconv1.weight"].shape[0],
            layers=len(blocks),
            bandwidths=state["backbone.norm.scale.weight"].shape[0],
        )

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """(B, 1, n) samples to (B, width, T), before the codebook."""
        return self.feature_extractor["encodec"]["encoder"](audio)

    def quantise(self, z: torch.Tensor) -> torch.Tensor:
        """The nearest entry of the codebook for each frame, (B, width, T)."""
        codebook = self.feature_extractor["encodec"]["quantizer"].vq
        return codebook.decode(codebook.encode(z))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(B, width, T) to (B, 1, T * hop)."""
        first = torch.zeros(1, dtype=torch.long, device=z.device)  # the bandwidth its authors use
        return self.head(self.backbone(z, bandwidth_id=first))[:, None]
