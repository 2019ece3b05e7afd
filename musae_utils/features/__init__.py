"""Features of sparse autoencoders: the atlas, its explorer, and the exam (notebook 07).

`FeatureAtlas` looks at every feature of a dictionary over a store of music, `publish` makes a site
of it that needs no server, and `known_answers` says which planted concepts have a feature.
"""

from .atlas import Coder, FeatureAtlas, Followed, encode, publish, sounds, strongest, survey
from .exam import FOUND, Directions, KnownAnswers, known_answers, rivals

__all__ = [
    "FOUND",
    "Coder",
    "Directions",
    "FeatureAtlas",
    "Followed",
    "KnownAnswers",
    "encode",
    "known_answers",
    "publish",
    "rivals",
    "sounds",
    "strongest",
    "survey",
]
