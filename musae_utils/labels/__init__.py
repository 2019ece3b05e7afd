"""Names for features: who gives them, and whether they are true (notebooks 08 and 09).

`choose_examples` finds what a feature is named from and splits it by composition; a `Labeler` sees
the finding half alone and gives a `Label`, or abstains; `score_labels` asks a judge who did not
make the label whether it tells active from silent examples of the other half, beside rivals.

=================  =================================================================================
`Truth`            the planted concept that the feature follows best; composed music only
`Descriptors`      measurable differences as a sentence, with effect sizes
`MultimodalLLM`    a language model that listens, over an OpenAI-compatible service
=================  =================================================================================
"""

from .contrast import Descriptors, Truth, contrasts, describe
from .examples import Example, Examples, Half, choose_examples
from .label import (
    Label,
    Labeler,
    Named,
    Unavailable,
    abstain,
    clean,
    load,
    name_features,
    safe,
    save,
)
from .llm import Estimate, MultimodalLLM
from .scoring import AudioTextScorer, Scores, agreement, score_labels

__all__ = [
    "AudioTextScorer",
    "Descriptors",
    "Estimate",
    "Example",
    "Examples",
    "Half",
    "Label",
    "Labeler",
    "MultimodalLLM",
    "Named",
    "Scores",
    "Truth",
    "Unavailable",
    "abstain",
    "agreement",
    "choose_examples",
    "clean",
    "contrasts",
    "describe",
    "load",
    "name_features",
    "safe",
    "save",
    "score_labels",
]
