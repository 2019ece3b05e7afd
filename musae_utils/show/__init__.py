"""What is heard and seen: players, piano rolls, figures, and the choice between several of them.

Everything here returns an :class:`IPython.display.HTML` object or a matplotlib figure. The HTML
carries its own sound, style and script and asks no other host for anything, so the same object
works in JupyterLab, in the published book and in a saved page without a network.

Conventions
-----------
Sound is one clip, mono: an array or tensor of shape (n,) with its sample rate, or a ``Clip``.
Times are in seconds, frequencies in Hz, levels in dB. Colours are Okabe and Ito's, which most
colour-blind readers can tell apart, and no meaning hangs on colour alone.
Text is escaped: a label, a file name or a model's answer cannot become markup.

See Also
--------
notebooks/01_music_with_known_answers.ipynb : meets every one of these.
musae_utils.show.desk : features to turn, live and on a page (notebook 10).
musae_utils.show.listening : a blind listening study for a class (notebook 10).
"""

from .page import choices, figure
from .players import ab_table, loudness, player
from .plots import (
    COLOURS,
    clip_figure,
    compare_spectrograms,
    delay_pattern,
    heat_map,
    intervals,
    layer_curves,
    spectrogram,
    style,
    token_grid,
)
from .roll import piano_roll

__all__ = [
    "COLOURS",
    "ab_table",
    "choices",
    "clip_figure",
    "compare_spectrograms",
    "delay_pattern",
    "figure",
    "heat_map",
    "intervals",
    "layer_curves",
    "loudness",
    "piano_roll",
    "player",
    "spectrogram",
    "style",
    "token_grid",
]
