"""Turning features while the model plays, beside rivals of the same size (notebook 10).

A `Knob` changes one feature of a sparse autoencoder where that SAE belongs. With a the feature's
activation at a moment, s the knob's strength there, β its `peak` (the largest activation known) and
w what one unit of it adds to the stream (``sae.directions``)::

    how          the feature becomes       the stream x becomes
    "add"        a + s β                   x + s β w         S1's steering, with α for s
    "scale"      (1 + s) a                 x + s a w         -1 silences it, 1 doubles it
    "ablate"     (1 - s) a                 x - s a w         1 silences it
    "clamp"      a + s (to β - a)          x + s (to β - a) w

What the SAE does not explain of x stays in x: nothing is replaced by a reconstruction. Strength 0
is no edit, bit for bit, whatever the kind. Several knobs of a row at one place read the activations
of the same, unedited x.

**Time.** A window in seconds, and a curve of factors for its frames, are about the frames whose
first codebook is being written (the module's picture in `trace`). So is the array that `to` may be.
Row t of an `ActivationStore` is what is heard at position t + K: to lay a feature's activations in
one piece over another at the same moment of listening, shift them by K frames.

**A sweep** is one generation whose rows differ in knobs, prompts and seeds. Rows of one seed share
their random numbers, so that they differ only by what was asked of them.

**Rivals** are knobs too: `along` sends what a feature would add, whenever and as much as it would,
along another direction of the same length (`controls` finds some). The text prompt, with and
without a knob, is a row with another prompt; `Patch` puts another piece's whole stream in.

**Which features?** Those that fire for something need not be those that bring it about: choosing by
effect on the output raised the score of SAE steering two- to threefold in language models (Arad,
Mueller and Belinkov). `output_effect` measures it; a `FeatureAtlas` has the other choice.

The modules `choose` (which feature brings a concept about?), `outcome` (what did a sweep do?) and
`experiment` (all of it beside every rival, ``make steering``) belong to notebook 11.

References
----------
Singh, Cherep and Maes (2026), Discovering and steering interpretable concepts in large generative
music models, arXiv:2505.18186. Arad, Mueller and Belinkov (2025), SAEs are good for steering - if
you select the right features, arXiv:2505.20063. Wu et al. (2025), AxBench, arXiv:2501.17148.
"""

from musae_utils.steering.effects import OutputEffect, output_effect
from musae_utils.steering.knobs import HOW, Knob, Patch, edits
from musae_utils.steering.rivals import controls
from musae_utils.steering.sweeps import sweep

__all__ = ["HOW", "Knob", "OutputEffect", "Patch", "controls", "edits", "output_effect", "sweep"]
