"""What a latent model keeps of the sound that goes through it (notebook 12, the scoreboard)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import librosa
import numpy as np

from musae_utils.latents.model import LatentModel
from musae_utils.models.quality import codec_report
from musae_utils.music import Clip
from musae_utils.stats import Interval

#: What is reported, and what `models.quality.codec_report` calls it.
MEASURES = {
    "chroma": "chroma_correlation",
    "pitch_agreement": "pitch_agreement",
    "lsd": "log_spectral_distance",
    "worst_band": "band_energy_error",
}


def copies(model: LatentModel, clips: Sequence[Clip], quantise: bool = True) -> np.ndarray:
    """Clips of one length through a latent model and back, at the clips' own rate.

    Parameters
    ----------
    model : LatentModel
    clips : sequence of Clip
    quantise : bool
        Through its codebooks, where it has any.

    Returns
    -------
    ndarray of float32, shape (B, n)
    """
    sound = model.decode(model.encode(list(clips)), quantise)
    if model.sample_rate != clips[0].sample_rate:
        sound = librosa.resample(
            sound, orig_sr=model.sample_rate, target_sr=clips[0].sample_rate
        ).astype(np.float32)
    return sound[:, : len(clips[0].audio)]


def report(
    model: LatentModel,
    clips: Sequence[Clip],
    quantise: bool = True,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, Interval]:
    """How alike are clips and their copies?

    Parameters
    ----------
    model : LatentModel
    clips : sequence of Clip, with truth, of one length
        Of compositions that the model did not learn from.
    quantise : bool
        Through its codebooks, where it has any.
    progress : callable
        Wraps the loop over clips.

    Returns
    -------
    dict of str to Interval over clips
        ``chroma`` (mean correlation), ``pitch_agreement`` (share of the melody's frames with the
        same strongest pitch), ``lsd`` (log-spectral distance, dB), ``worst_band`` (energy error of
        the octave band furthest off, dB without sign).

    Examples
    --------
    >>> from musae_utils import latents, music
    >>> report(latents.load("nano-vae"), music.make_many(20))["chroma"]  # doctest: +SKIP
    """
    found = codec_report(clips, copies(model, clips, quantise), progress=progress)
    return {name: found[theirs] for name, theirs in MEASURES.items()}
