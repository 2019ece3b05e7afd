"""Names for features: who gives them, and whether they are true (notebooks 08 and 09).

`choose_examples` finds what a feature is named from and splits it by composition; a `Labeler` sees
the finding half alone and gives a `Label`, or abstains; `score_labels` asks a judge who did not
make the label whether it tells active from silent examples of the other half, beside rivals.

=================  =================================================================================
`Truth`            the planted concept that the feature follows best; composed music only
`Descriptors`      measurable differences as a sentence, with effect sizes
`MultimodalLLM`    a language model that listens, over an OpenAI-compatible service
`TagLabeler`       the clearest of a tagger's tags; `nano_tagger` ships
`CLAPLabeler`      the text nearest in a space of sounds and texts; `nano_clap` ships
`LocalLLM`         a language model that listens, on this machine
=================  =================================================================================

Judges: `TagJudge`, `CLAPLabeler`, and `TruthJudge`, which reads what was written. One that does not
know what a text speaks of says so (`Unjudged`).

Ears that others trained: `TransformersCLAP`, `LaionCLAP`, `AudioSetAST`, `EssentiaTags`.
"""

from .clap import AudioTextModel, CLAPLabeler, candidate_texts
from .contrast import Descriptors, Truth, contrasts, describe
from .ears import TruthJudge, nano_clap, nano_tagger
from .emergent import audible, reached
from .examples import Example, Examples, Half, choose_examples, of_sounds, shuffled
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
from .local_llm import LocalLLM
from .marking import agreed, calibrate, mark, mark_concepts, truths
from .pretrained import AudioSetAST, EssentiaTags, LaionCLAP, TransformersCLAP
from .scoring import AudioTextScorer, Scores, Unjudged, agreement, score_labels
from .studies import Study, study
from .taggers import Tagger, TagJudge, TagLabeler
from .words import concepts_in, phrase

__all__ = [
    "AudioSetAST",
    "AudioTextModel",
    "AudioTextScorer",
    "CLAPLabeler",
    "Descriptors",
    "EssentiaTags",
    "Estimate",
    "Example",
    "Examples",
    "Half",
    "Label",
    "Labeler",
    "LaionCLAP",
    "LocalLLM",
    "MultimodalLLM",
    "Named",
    "Scores",
    "Study",
    "TagJudge",
    "TagLabeler",
    "Tagger",
    "TransformersCLAP",
    "Truth",
    "TruthJudge",
    "Unavailable",
    "Unjudged",
    "abstain",
    "agreed",
    "agreement",
    "audible",
    "calibrate",
    "candidate_texts",
    "choose_examples",
    "clean",
    "concepts_in",
    "contrasts",
    "describe",
    "load",
    "mark",
    "mark_concepts",
    "name_features",
    "nano_clap",
    "nano_tagger",
    "of_sounds",
    "phrase",
    "reached",
    "safe",
    "save",
    "score_labels",
    "shuffled",
    "study",
    "truths",
]
