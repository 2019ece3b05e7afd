"""Structure: what returns in a piece, and how far a label that says so can be believed.

`what_returns` finds what comes back in any sound; `label` answers for one window, with the kept
`labeler`; `questions` and `trap` are scored music on which both were marked, by
``python -m musae_utils.structure.returns`` (notebook 15).
"""

from musae_utils.structure.hearing import SCORES, Heard, hear, scores
from musae_utils.structure.labelers import (
    Labeler,
    boundaries,
    clap_scores,
    fit,
    label,
    labeler,
    onsets,
    what_returns,
)
from musae_utils.structure.scored import KINDS, TRAPS, Question, questions, trap

__all__ = [
    "KINDS", "SCORES", "TRAPS", "Heard", "Labeler", "Question", "boundaries", "clap_scores", "fit",
    "hear", "label", "labeler", "onsets", "questions", "scores", "trap",
    "what_returns",
]  # fmt: skip
