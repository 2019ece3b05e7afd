"""What probes read: layers, and rivals that do without the language model (notebook 04)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .fitting import _array

RIVALS = ("embeddings", "codec latents", "acoustics", "position")


def layer_features(
    model: Any,
    codes: Any,
    layers: Iterable[int] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, list[np.ndarray]]:
    """What a language model's layers hold at each frame of given music, and what goes into them.

    Teacher-forced and without a prompt: whatever is found was heard. Frame t is read where the
    model has just seen all codebooks of frame t (`trace.align`), and has no more of the future.

    Parameters
    ----------
    model : MusicModel
    codes : Tensor of shape (B, K, T)
    layers : iterable of int, optional
        All of them unless given.
    progress : callable
        Wraps the iteration over batches, e.g. ``tqdm``.

    Returns
    -------
    dict of name to list of B arrays, float16
        ``"embeddings"``, the sum of code embeddings, and ``"layer 0"``, …: (T, dim).
    """
    from .. import trace  # torch and audiocraft: seconds to import, and only this needs them

    layers = list(range(model.n_layers)) if layers is None else list(layers)
    out: dict[str, list[np.ndarray]] = {"embeddings": []} | {f"layer {i}": [] for i in layers}
    n_frames, last = codes.shape[-1], trace._delays(model.lm)[-1]
    for batch in progress(codes.split(8)):
        streams = trace.residuals(model, batch, ["embed", *layers])
        frames = {k: trace.align(x, n_frames, last).cpu().float() for k, x in streams.items()}
        for name, place in zip(out, ["embed", *layers], strict=True):
            out[name] += list(frames[place].half().numpy())
    return out


def rival_features(
    model: Any,
    clips: Sequence[Any],
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, list[np.ndarray]]:
    """What can be known about clips without the language model.

    Parameters
    ----------
    model : MusicModel
        Its codec's encoder is a rival.
    clips : list of Clip, of one length
    progress : callable
        Wraps the iteration over clips, e.g. ``tqdm``.

    Returns
    -------
    dict of name to list of arrays of shape (T, d)
        ``"codec latents"``: the encoder's output *before* quantisation, so more than the model was
        told. ``"acoustics"``: `acoustic_features`. ``"position"``: a stopwatch.
    """
    out: dict[str, list[np.ndarray]] = {name: [] for name in RIVALS[1:]}
    for clip in progress(clips):
        latents = _array(model.latents(clip)[0].T)
        heard = acoustic_features(clip.audio, clip.sample_rate, model.frame_rate)
        out["codec latents"].append(latents.astype(np.float16))
        out["acoustics"].append(heard[: len(latents)].astype(np.float16))
        out["position"].append(position_features(len(latents), model.frame_rate))
    return out


@contextmanager
def untrained(model: Any, seed: int = 0) -> Iterator[Any]:
    """The same language model with random weights, for as long as the ``with`` lasts.

    Its layers mix what they are told, and have learnt nothing. Matrices are Gaussian with the
    variance of one over their inputs, norms and biases neutral; the learned weights come back.

    Parameters
    ----------
    model : MusicModel
    seed : int

    Yields
    ------
    MusicModel
        `model` itself.
    """
    import torch

    rng = torch.Generator().manual_seed(seed)
    learned = {name: value.clone() for name, value in model.lm.state_dict().items()}
    try:
        with torch.no_grad():
            for name, weights in model.lm.named_parameters():
                if weights.dim() > 1:
                    noise = torch.randn(weights.shape, generator=rng) / weights.shape[-1] ** 0.5
                    weights.copy_(noise)
                else:
                    weights.fill_(float(name.endswith("weight")))
        yield model
    finally:
        model.lm.load_state_dict(learned)


def pool(frames: ArrayLike) -> np.ndarray:
    """Mean and standard deviation over time: (T, d) to (2 d,), float32."""
    frames = _array(frames).astype(np.float32, copy=False)
    if frames.ndim != 2 or len(frames) == 0:
        raise ValueError(f"Pooling needs frames of shape (T, d), T at least 1; got {frames.shape}.")
    return np.concatenate([frames.mean(0), frames.std(0)])


def with_context(
    frames: ArrayLike, windows: Sequence[int], rows: ArrayLike | None = None
) -> np.ndarray:
    """Append means over the past, so that a rival can have heard as much as a language model.

    A causal model's residual at a frame may draw on everything before it. A single frame's features
    cannot, and losing to the model would then say little.

    Parameters
    ----------
    frames : array of shape (T, d)
    windows : sequence of int
        Lengths in frames of the windows that end at each frame (shorter at the start).
    rows : array of shape (N,), optional
        The frames wanted; all of them unless given.

    Returns
    -------
    array of shape (N, d · (1 + len(windows))), float32
        A row depends on frames up to its own only.
    """
    frames = _array(frames).astype(np.float64)
    rows = np.arange(len(frames)) if rows is None else np.asarray(rows)
    total = np.vstack([np.zeros((1, frames.shape[1])), np.cumsum(frames, axis=0)])
    end, parts = rows + 1, [frames[rows]]
    for window in windows:
        length = np.minimum(end, max(1, window))
        parts.append((total[end] - total[end - length]) / length[:, None])
    return np.concatenate(parts, axis=1).astype(np.float32)


def position_features(n_frames: int, frame_rate: float = 50.0, n: int = 16) -> np.ndarray:
    """Time in the clip alone, as `n` overlapping bumps: what a stopwatch would know.

    The rival to beat for sections and returns, which come at similar times in many pieces.

    Returns
    -------
    array of shape (n_frames, n), float32, in [0, 1]
        Bumps are spaced evenly over 30 s, on a square-root scale: finer at the start.
    """
    t = np.sqrt((np.arange(n_frames) + 0.5) / frame_rate / 30.0)
    centres = np.linspace(0, 1, n)
    return np.exp(-0.5 * ((t[:, None] - centres) * (n - 1)) ** 2).astype(np.float32)


def acoustic_features(audio: ArrayLike, sr: int, frame_rate: float = 50.0) -> np.ndarray:
    """Plain acoustic features, and what a listener keeps of the rhythm so far.

    Of each frame: chroma (12), chroma of the bass (12), 20 MFCC, spectral contrast (7), spectral
    centroid, RMS level and onset strength. Added are the onset strength of the past second in steps
    of 40 ms, and the autocorrelation of the past 4 s of onset strength (a tempogram) at 24 tempi
    from 30 to 300 BPM.

    A frame's analysis windows are centred on it and reach at most 0.128 s past its middle; nothing
    else looks ahead. A MusicGen-type model has seen the frame's own codes, which the codec too
    computes from a little of the future.

    Parameters
    ----------
    audio : array of shape (n,) or (channels, n)
        Samples, any loudness; channels are averaged.
    sr : int
        Sampling rate in Hz; converted to 16 kHz at 50 frames a second.
    frame_rate : float
        Frames a second; frame i covers [i, i + 1) / frame_rate.

    Returns
    -------
    array of shape (T, 104), float32, T = ⌈n · frame_rate / sr⌉
    """
    import librosa  # takes seconds to import, and only this needs it

    y = _array(audio).astype(np.float32)
    y = y.mean(0) if y.ndim == 2 else y
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"Audio of shape (n,) or (channels, n) is needed; got {y.shape}.")
    if not np.isfinite(y).all():
        raise ValueError(
            f"The audio holds NaN or infinity in {int((~np.isfinite(y)).sum())} samples."
        )
    n_frames = int(np.ceil(len(y) * frame_rate / sr - 1e-6))
    hop, n_fft = 320, 4096
    rate = round(hop * frame_rate)
    if sr != rate:
        y = librosa.resample(y, orig_sr=sr, target_sr=rate)
    before = (n_fft - hop) // 2  # window i is centred on the middle of frame i
    after = max(0, n_fft + hop * (n_frames - 1) - before - len(y))
    y = np.pad(y, (before, after))
    wide = np.abs(librosa.stft(y, n_fft=n_fft, hop_length=hop, center=False))[:, :n_frames]
    cut = (n_fft - 1024) // 2
    narrow = np.abs(librosa.stft(y[cut : len(y) - cut], n_fft=1024, hop_length=hop, center=False))
    narrow = narrow[:, :n_frames]
    mel = librosa.feature.melspectrogram(S=narrow**2, sr=rate, n_mels=64)
    db = librosa.power_to_db(mel, top_db=None, amin=1e-8)
    onset = librosa.onset.onset_strength(S=db, sr=rate, center=False).astype(np.float32)
    rms = librosa.feature.rms(S=narrow, frame_length=1024)
    chroma = dict(S=wide**2, sr=rate, n_fft=n_fft, tuning=0.0)
    now = np.vstack(
        [
            librosa.feature.chroma_stft(**chroma),
            librosa.feature.chroma_stft(**chroma, ctroct=2.0, octwidth=0.75),
            librosa.feature.mfcc(S=db, n_mfcc=20),
            librosa.feature.spectral_contrast(S=narrow, sr=rate),
            librosa.feature.spectral_centroid(S=narrow, sr=rate) / 1000,
            librosa.amplitude_to_db(rms, top_db=None, amin=1e-4),
            onset[None],
        ]
    ).T
    heard = np.pad(onset, (round(frame_rate), 0))
    lags = np.lib.stride_tricks.sliding_window_view(heard, round(frame_rate) + 1)[:n_frames, ::-2]
    return np.hstack([now, lags, _tempogram(onset, frame_rate)]).astype(np.float32)


def _tempogram(onset: np.ndarray, frame_rate: float) -> np.ndarray:
    """Autocorrelation of the past 4 s of onset strength at 24 tempi: (T,) to (T, 24)."""
    window = round(4 * frame_rate)
    past = np.lib.stride_tricks.sliding_window_view(np.pad(onset, (window - 1, 0)), window)
    past = past - past.mean(1, keepdims=True)
    spectrum = np.fft.rfft(past, 2 * window)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:, : window // 2 + 1]
    correlation = correlation / (correlation[:, :1] + 1e-6)
    lag = 60 * frame_rate / np.geomspace(30, 300, 24)
    low = np.minimum(np.floor(lag).astype(int), window // 2 - 1)
    part = lag - low
    return correlation[:, low] * (1 - part) + correlation[:, low + 1] * part
