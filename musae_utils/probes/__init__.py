"""Linear probes: what can be read off a model's activations, and what could be read anyway.

A probe is a linear map fitted to predict a known property of the music (the key, the chord, the
phase of the beat, …) from activations. That it succeeds shows that the property is *there* in
linear form, not that the model uses it. Four controls keep the claim honest:

- **Split by composition.** A probe is found on one half of the compositions and scored on the
  other; frames and crops of one composition never lie on both sides. Standardisation,
  regularisation strength and the choice of the best layer see the first half only.
- **Rivals.** The same split, rows and probe for the sum of code embeddings, the codec's latents,
  plain acoustic features and the mere position in the clip. Differences are paired by composition.
- **Control tasks** after Hewitt and Liang (2019): labels drawn at random per *type* of input, which
  only a probe that memorises can learn. Selectivity is the accuracy on the task minus that on its
  control task.
- **Chance** is what a probe without features scores on the same rows: the most common class.

What is a type, in music? In language it is the word. Here

- for a *frame* the type is its token in the first codebook: it occurs in many compositions, and
  says what the frame sounds like and nothing about where in the music it stands;
- for a *clip* a label drawn per composition could never be learnt from one half for the other, so
  the type is one of a few dozen equally large kinds of sound: a leaf of a balanced tree over the
  clips' histograms of first-codebook tokens (`clip_types`), built without any label.

Three tasks: ``"class"`` (multinomial logistic regression), ``"regress"`` (ridge; tempo) and
``"circular"`` (ridge on cosine and sine; a phase in [0, 1)).

Explained and used in notebooks/04_what_the_model_knows.ipynb.

References
----------
Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes,
arXiv:1610.01644. Hewitt and Liang (2019), Designing and interpreting probes with control tasks,
arXiv:1909.03368.
"""

from .concepts import CONCEPTS, Concept, Rows, concept_rows, probe_concepts
from .linear import clip_types, control_labels, probe, probe_layers, selectivity
from .results import LayerProbes, ProbeResult, Selectivity
from .sources import (
    RIVALS,
    acoustic_features,
    layer_features,
    pool,
    position_features,
    rival_features,
    untrained,
    with_context,
)

__all__ = [
    "CONCEPTS",
    "RIVALS",
    "Concept",
    "LayerProbes",
    "ProbeResult",
    "Rows",
    "Selectivity",
    "acoustic_features",
    "clip_types",
    "concept_rows",
    "control_labels",
    "layer_features",
    "pool",
    "position_features",
    "probe",
    "probe_concepts",
    "probe_layers",
    "rival_features",
    "selectivity",
    "untrained",
    "with_context",
]
