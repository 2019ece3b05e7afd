"""Small random models of audiocraft's own classes, for tests."""

import re

import torch
from audiocraft.models.encodec import EncodecModel
from audiocraft.models.lm import LMModel
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider, TextConditioner
from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder
from audiocraft.quantization import ResidualVectorQuantizer

VOCABULARY = "piano organ slow fast major minor drums".split()


class WordConditioner(TextConditioner):
    """A vocabulary of a few words; every prompt is padded to eight."""

    def __init__(self, dim):
        super().__init__(dim, dim)
        self.embed = torch.nn.Embedding(len(VOCABULARY) + 1, dim)

    def _known(self, prompt):
        return [w for w in re.findall(r"\w+", prompt.lower()) if w in VOCABULARY][:8]

    def unknown_words(self, prompt):
        return [w for w in re.findall(r"\w+", prompt.lower()) if w not in VOCABULARY]

    def tokenize(self, prompts):
        tokens = torch.zeros(len(prompts), 8, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            for i, word in enumerate(self._known(prompt or "")):
                tokens[row, i] = VOCABULARY.index(word) + 1
        return tokens

    def forward(self, tokens):
        mask = (tokens > 0).to(self.embed.weight)
        return self.output_proj(self.embed(tokens)) * mask[..., None], mask


def tiny_codec(sample_rate=16000, ratios=(4, 4, 4, 5), bins=32, n_q=4):
    """16 kHz mono at 50 frames a second."""
    torch.manual_seed(0)
    seanet = dict(n_filters=2, dimension=8, ratios=list(ratios), n_residual_layers=1, lstm=0)
    quantizer = ResidualVectorQuantizer(dimension=8, n_q=n_q, bins=bins, kmeans_init=False)
    for layer in quantizer.vq.layers:
        layer._codebook.embed.normal_()
    hop = int(torch.tensor(ratios).prod())
    return EncodecModel(
        SEANetEncoder(**seanet), SEANetDecoder(**seanet), quantizer,
        frame_rate=sample_rate // hop, sample_rate=sample_rate, channels=1,
    ).eval()  # fmt: skip


def tiny_lm(dim=16, layers=2, heads=2, card=32, n_q=4, **settings):
    torch.manual_seed(0)
    provider = ConditioningProvider({"description": WordConditioner(dim)})
    fuser = ConditionFuser(
        {"cross": ["description"], "prepend": [], "sum": [], "input_interpolate": []}
    )
    settings = {"memory_efficient": True, "weight_init": "gaussian", **settings}
    lm = LMModel(
        DelayedPatternProvider(n_q), provider, fuser, n_q=n_q, card=card, dim=dim, num_heads=heads,
        norm_first=True, num_layers=layers, dropout=0.0, causal=True, cross_attention=True,
        **settings,
    )  # fmt: skip
    # Far from uniform, so that what is played depends on prompts and on what went before.
    with torch.no_grad():
        for linear in lm.linears:
            linear.weight.mul_(4)
    return lm.eval()
