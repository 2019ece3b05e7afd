"""Figures of sound, tokens and results, with units on every axis.

Each function returns a :class:`matplotlib.figure.Figure`; ``show.figure(fig, alt=...)`` puts it on
a page. Figures are made without pyplot, so nothing is drawn twice in a notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as _Figure

from .page import INK, png
from .players import mono

COLOURS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
}
"""Okabe and Ito's palette, less black and yellow, which vanish on one of the two themes."""

MARKERS = ("o", "s", "^", "D", "v", "P")
PITCH_TICKS = {0: "C", 2: "D", 4: "E", 7: "G", 9: "A", 11: "B"}
FLOOR_DB = -80.0
_STYLE = {
    "axes.prop_cycle": mpl.cycler(color=list(COLOURS.values())) + mpl.cycler(marker=MARKERS),
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "grid.color": INK, "grid.alpha": 0.15,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.titlesize": "medium", "axes.titleweight": "bold", "axes.titlelocation": "left",
    "font.size": 10, "legend.frameon": False, "lines.markersize": 5,
    "figure.constrained_layout.use": True, "image.cmap": "magma", "hatch.color": INK,
}  # fmt: skip


def style() -> None:
    """Make our look matplotlib's default for the rest of the session.

    Needed only for figures of one's own; those of this package bring it with them.
    """
    mpl.rcParams.update(_STYLE)


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inside


class Figure(_Figure):
    """A figure that shows itself in a notebook although pyplot never hears of it."""

    def _repr_png_(self) -> bytes:
        return png(self)


# -- sound


def _log_spectrum(samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Levels in dB, shape (bins, frames), bin frequencies in Hz (24 an octave), frame seconds."""
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    size = 2 ** round(np.log2(0.093 * rate))  # about 93 ms: tells neighbouring notes apart
    # About 700 columns are as many as a page shows.
    hop = max(size // 8, int(np.ceil(len(samples) / 700)))
    transform = ShortTimeFFT(hann(size), hop, rate, mfft=2 * size, scale_to="magnitude")
    if len(samples) < size:
        samples = np.pad(samples, (0, size - len(samples)))
    power = np.abs(transform.stft(samples.astype(np.float64))) ** 2
    frames = np.arange(power.shape[1]) + transform.p_min
    power = power[:, (frames >= 0) & (frames * hop < len(samples))]
    bands = 55 * 2 ** (np.arange(0, np.log2(rate / 2 / 55), 1 / 24))
    # The strongest line within each band; below 200 Hz bands are narrower than the lines.
    first, last = (np.searchsorted(transform.f, bands * 2**step) for step in (-1 / 48, 1 / 48))
    strongest = np.stack(
        [
            power[i:j].max(0) if j > i else np.minimum(power[i - 1], power[i])
            for i, j in zip(first, np.minimum(last, len(power)), strict=True)
        ]
    )
    # Amplitude of a sine is twice its one-sided magnitude: a full-scale sine reads 0 dB.
    return 10 * np.log10(np.maximum(4 * strongest, 1e-12)), bands, hop / rate


def _draw_spectrogram(ax: Any, samples: np.ndarray, rate: int, top: float | None = None) -> Any:
    levels, hertz, step = _log_spectrum(samples, rate)
    top = levels.max() if top is None else top
    image = ax.imshow(
        np.clip(levels, top + FLOOR_DB, top), origin="lower", aspect="auto",
        extent=(-step / 2, (levels.shape[1] - 0.5) * step, -0.5, len(hertz) - 0.5),
        vmin=top + FLOOR_DB, vmax=top,
        interpolation="none",
    )  # fmt: skip
    ticks = [f for f in (62.5, 125, 250, 500, 1000, 2000, 4000, 8000, 16000) if f < hertz[-1]]
    names = [f"{f / 1000:g}k" if f >= 1000 else f"{f:g}" for f in ticks]
    ax.set_yticks(24 * np.log2(np.array(ticks) / 55), names)
    ax.set(ylabel="frequency (Hz)", xlim=(0, len(samples) / rate))
    return image


def _chroma(samples: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    """Share of each pitch class, shape (12, frames) with maximum 1 a frame, and frame seconds."""
    levels, hertz, step = _log_spectrum(samples, rate)
    low, high = np.searchsorted(hertz, (60, min(2100, rate / 2)))
    power = 10 ** (levels[low:high] / 10)
    pitch = np.round(69 + 12 * np.log2(hertz[low:high] / 440)).astype(int) % 12
    classes = np.stack([power[pitch == c].sum(0) for c in range(12)])
    loud = classes.sum(0) > 1e-7  # a silent frame has no pitch class
    return np.where(loud, classes / np.maximum(classes.max(0), 1e-12), 0.0), step


def _frame_levels(samples: np.ndarray, rate: int, frame: float = 0.05) -> np.ndarray:
    size = max(1, int(frame * rate))
    whole = np.pad(samples, (0, -len(samples) % size)).reshape(-1, size).astype(np.float64)
    return 10 * np.log10(np.maximum((whole**2).mean(1), 1e-8))


def _colour_bar(fig: Figure, image: Any, axes: Any, label: str) -> None:
    bar = fig.colorbar(image, ax=axes, label=label, pad=0.01, aspect=15 * max(1, np.size(axes)))
    bar.outline.set_visible(False)


@_styled
def spectrogram(audio: Any, sample_rate: int | None = None, title: str = "") -> Figure:
    """Level over time and log frequency; a full-scale sine reads 0 dB.

    Parameters
    ----------
    audio : array or tensor of shape (n,), or a Clip
    sample_rate : int, optional
        In Hz; a Clip brings its own.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    return compare_spectrograms.__wrapped__({title: audio}, sample_rate)


@_styled
def compare_spectrograms(audios: Mapping[str, Any], sample_rate: int | None = None) -> Figure:
    """Spectrograms below each other on one time axis and one colour scale.

    Parameters
    ----------
    audios : mapping label → array or tensor of shape (n,), or a Clip
    sample_rate : int, optional
        Of bare arrays, in Hz.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not audios:
        raise ValueError("compare_spectrograms(...) got no sounds: give {label: audio, ...}.")
    clips = {label: mono(audio, sample_rate) for label, audio in audios.items()}
    top = max(_log_spectrum(*clip)[0].max() for clip in clips.values())
    fig = Figure(figsize=(7.2, 0.9 + 1.75 * len(clips)))
    axes = fig.subplots(len(clips), sharex=True, squeeze=False)[:, 0]
    for ax, (label, clip) in zip(axes, clips.items(), strict=True):
        image = _draw_spectrogram(ax, *clip, top)
        ax.set_title(label)
    axes[-1].set(xlabel="time (s)", xlim=(0, max(len(s) / r for s, r in clips.values())))
    _colour_bar(fig, image, list(axes), "level (dB)")
    return fig


@_styled
def clip_figure(clip: Any, title: str = "") -> Figure:
    """A clip at a glance: spectrogram, pitch classes, loudness; with truth, what is known too.

    Truth adds the melody's fundamental on the spectrogram, and bars and chords above it.

    Parameters
    ----------
    clip : Clip
        With or without truth.
    title : str, optional
        The clip's name by default.

    Returns
    -------
    matplotlib.figure.Figure

    See Also
    --------
    piano_roll : the notes themselves, with sound.
    """
    from .roll import bar_times, chord_name, chords, segments

    samples, rate = mono(clip)
    fig = Figure(figsize=(7.2, 5.4))
    axes = fig.subplots(3, sharex=True, height_ratios=(3, 1.9, 1.1))
    image = _draw_spectrogram(axes[0], samples, rate)
    _colour_bar(fig, image, [axes[0]], "level (dB)")
    chroma, step = _chroma(samples, rate)
    image = axes[1].imshow(
        chroma, origin="lower", aspect="auto", interpolation="none", vmin=0, vmax=1,
        extent=(-step / 2, (chroma.shape[1] - 0.5) * step, -0.5, 11.5),
    )  # fmt: skip
    axes[1].set_yticks(list(PITCH_TICKS), PITCH_TICKS.values())
    axes[1].set(ylabel="pitch class")
    _colour_bar(fig, image, [axes[1]], "share of peak")
    levels = _frame_levels(samples, rate)
    axes[2].fill_between((np.arange(len(levels)) + 0.5) * 0.05, -80, levels, alpha=0.5, lw=0)
    axes[2].set(
        ylabel="level (dBFS)",
        xlabel="time (s)",
        ylim=(-70, 0),
        yticks=(-60, -40, -20, 0),
        xlim=(0, len(samples) / rate),
    )
    name = title or getattr(clip, "name", "")
    truth = getattr(clip, "truth", None)
    if truth is not None:
        midi = np.asarray(truth.frames.get("melody", ()))
        runs = np.array([run for run in segments(midi) if run[2] >= 0]).reshape(-1, 3)
        height = 24 * np.log2(440 * 2 ** ((runs[:, 2] - 69) / 12) / 55)
        axes[0].hlines(
            height, runs[:, 0], runs[:, 1], color="white", lw=1.8, label="melody (truth)"
        )
        axes[0].legend(
            loc="upper right",
            labelcolor="white",
            fontsize="small",
            frameon=True,
            facecolor="black",
            edgecolor="none",
            framealpha=0.6,
        )
        for start, end, chord in chords(truth):
            if end - start > 0.03 * len(samples) / rate:
                axes[0].text(
                    start,
                    1.01,
                    chord_name(*chord),
                    fontsize=8,
                    transform=axes[0].get_xaxis_transform(),
                )
        for ax in axes[1:]:
            for bar in bar_times(truth.frames.get("downbeat", ())):
                ax.axvline(bar, color="white" if ax is axes[1] else INK, lw=0.8, alpha=0.5)
        name = f"{name}\n" if name else ""
    if name:
        axes[0].set_title(name, pad=4)
    return fig


# -- tokens


@_styled
def token_grid(codes: Any, frame_rate: float, title: str = "") -> Figure:
    """A codec's codes, one row a codebook, one column a frame.

    A code is a name, not a quantity: colours only show where the same one returns. With at most
    24 frames the codes are printed.

    Parameters
    ----------
    codes : int array or tensor of shape (K, T) or (1, K, T)
    frame_rate : float
        Frames a second.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    codes = np.asarray(codes.detach().cpu() if hasattr(codes, "detach") else codes)
    codes = codes[0] if codes.ndim == 3 and len(codes) == 1 else codes
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"Expected codes of shape (K, T), got {codes.shape}: pick one clip.")
    books, frames = codes.shape
    # Spread neighbouring numbers over the colour map: nearness of codes means nothing.
    shade = (codes * 0.6180339887) % 1.0
    fig = Figure(figsize=(7.2, 0.9 + 0.42 * books))
    ax = fig.subplots()
    ax.imshow(
        shade,
        aspect="auto",
        cmap="viridis",
        interpolation="none",
        vmin=0,
        vmax=1,
        extent=(0, frames / frame_rate, books - 0.5, -0.5),
    )
    if frames <= 24:
        for k in range(books):
            for t in range(frames):
                ax.text(
                    (t + 0.5) / frame_rate,
                    k,
                    codes[k, t],
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="black" if shade[k, t] > 0.55 else "white",
                )
    ax.set_yticks(range(books))
    ax.set(xlabel="time (s)", ylabel="codebook", title=title)
    ax.spines[:].set_visible(False)
    return fig


@_styled
def delay_pattern(
    n_codebooks: int = 4, n_frames: int = 8, frame_rate: float = 50.0, frame: int | None = 2
) -> Figure:
    """Which frame of which codebook the language model reads at each of its positions.

    Position s holds frame s − 1 − k of codebook k (counted from 0), so one frame lies on a
    diagonal; position 0 and the corners hold the special token. What position s gives out is the
    prediction of column s + 1.

    Parameters
    ----------
    n_codebooks : int
    n_frames : int
        Keep it small: every cell is labelled.
    frame_rate : float
        Frames a second, for the axis of seconds above (codebook 0's frame).
    frame : int, optional
        The frame to bring out.

    Returns
    -------
    matplotlib.figure.Figure
    """
    positions = n_frames + n_codebooks
    fig = Figure(figsize=(7.2, 1.5 + 0.42 * n_codebooks))
    ax = fig.subplots()
    for k in range(n_codebooks):
        for s in range(positions):
            t = s - 1 - k
            real, chosen = 0 <= t < n_frames, t == frame
            ax.add_patch(
                mpl.patches.Rectangle(
                    (s - 0.46, k - 0.44),
                    0.92,
                    0.88,
                    lw=0.8,
                    edgecolor=INK,
                    facecolor=COLOURS["vermillion"]
                    if chosen
                    else COLOURS["sky"]
                    if real
                    else "none",
                    alpha=1.0 if chosen else 0.35 if real else 0.5,
                    hatch=None if real else "////",
                )
            )
            if real:
                ax.text(
                    s,
                    k,
                    t,
                    ha="center",
                    va="center",
                    color="black" if chosen else INK,
                    fontweight="bold" if chosen else "normal",
                )
    ax.set(
        xlim=(-0.6, positions - 0.4),
        ylim=(n_codebooks - 0.4, -0.6),
        ylabel="codebook",
        xlabel="position in the language model; hatched: special token",
    )
    ax.set_xticks(range(positions))
    ax.set_yticks(range(n_codebooks))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    seconds = ax.secondary_xaxis("top")
    ticks = [s for s in range(1, n_frames + 1) if (s - 1) % 2 == 0]
    seconds.set_xticks(ticks, [f"{(s - 1) / frame_rate:g}" for s in ticks])
    seconds.set_xlabel("start of codebook 0's frame (s)")
    seconds.spines[:].set_visible(False)
    return fig


# -- results


def _need(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [column for column in columns if column not in table]
    if missing or table.empty:
        raise ValueError(
            f"{what} needs rows with the columns {', '.join(columns)}; "
            f"got {', '.join(map(str, table.columns)) or 'none'}"
            f"{' and no rows' if table.empty else ''}."
        )


@_styled
def layer_curves(
    layers: pd.DataFrame,
    rivals: pd.DataFrame | None = None,
    chance: Mapping[str, float] | None = None,
    ylabel: str = "accuracy",
) -> Figure:
    """How much each layer knows of each concept, beside its rivals: one panel a concept.

    Parameters
    ----------
    layers : DataFrame with columns concept, layer, value, low, high
        Layer −1 is the model's input (sum of code embeddings); low and high bound the interval.
    rivals : DataFrame with columns concept, rival, value, low, high, optional
        What is no layer: acoustic features, the codec's latents, a control task.
    chance : mapping concept → value, optional
        Drawn dashed.
    ylabel : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    _need(layers, ("concept", "layer", "value", "low", "high"), "layers")
    if rivals is not None:
        _need(rivals, ("concept", "rival", "value", "low", "high"), "rivals")
    concepts = list(dict.fromkeys(layers["concept"]))
    names = [] if rivals is None else list(dict.fromkeys(rivals["rival"]))
    wide = min(3, len(concepts))
    tall = -(-len(concepts) // wide)
    fig = Figure(figsize=(max(4.2, 2.55 * wide), 0.7 + 2.1 * tall))
    grid = fig.subplots(tall, wide, squeeze=False, sharey=True, sharex=True).ravel()
    ids = np.sort(layers["layer"].unique())
    places = {name: ids[-1] + 1.5 + i for i, name in enumerate(names)}
    for ax, concept in zip(grid, concepts, strict=False):
        rows = layers[layers["concept"] == concept].sort_values("layer")
        ax.fill_between(rows["layer"], rows["low"], rows["high"], alpha=0.2, lw=0)
        ax.plot(rows["layer"], rows["value"], label="layers")
        for i, (name, x) in enumerate(places.items(), 1):
            mine = rivals[(rivals["concept"] == concept) & (rivals["rival"] == name)]
            for row in mine.to_dict("records"):
                ax.errorbar(
                    x,
                    row["value"],
                    [[row["value"] - row["low"]], [row["high"] - row["value"]]],
                    fmt=MARKERS[i % len(MARKERS)],
                    capsize=3,
                    label=name,
                    color=list(COLOURS.values())[i % len(COLOURS)],
                )
        if chance and concept in chance:
            ax.axhline(chance[concept], color=INK, ls="--", lw=1, alpha=0.7, label="chance")
        ax.set_title(str(concept))
        ax.grid(axis="y")
        ticks = ids if len(ids) <= 9 else ids[:: -(-len(ids) // 8)]
        ax.set_xticks(ticks, ["in" if i == -1 else f"{i:g}" for i in ticks])
    for ax in grid[len(concepts) :]:
        ax.set_visible(False)
    for i, ax in enumerate(grid[: len(concepts)]):
        if i % wide == 0:
            ax.set_ylabel(ylabel)
        if i + wide >= len(concepts):
            ax.set_xlabel("layer")
            ax.tick_params(labelbottom=True)
    found = {}
    for ax in grid:
        handles, labels = ax.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    if len(found) > 1:
        fig.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), 4)
        )
    return fig


@_styled
def intervals(table: pd.DataFrame, xlabel: str, chance: float | None = None) -> Figure:
    """Values with their intervals, one line each; several series take a colour and a shape each.

    Parameters
    ----------
    table : DataFrame with columns name, value, low, high and optionally series
    xlabel : str
        The quantity and its unit.
    chance : float, optional
        What guessing reaches, or no effect; drawn dashed.

    Returns
    -------
    matplotlib.figure.Figure
    """
    _need(table, ("name", "value", "low", "high"), "intervals(...)")
    names = list(dict.fromkeys(table["name"]))
    series = list(dict.fromkeys(table["series"])) if "series" in table else [None]
    fig = Figure(figsize=(6.4, 0.9 + max(0.32, 0.17 * len(series)) * len(names)))
    ax = fig.subplots()
    for i, one in enumerate(series):
        rows = table if one is None else table[table["series"] == one]
        y = np.array([names.index(name) for name in rows["name"]], dtype=float)
        y += 0.6 * ((i + 0.5) / len(series) - 0.5) if len(series) > 1 else 0.0
        ax.errorbar(
            rows["value"],
            y,
            xerr=[rows["value"] - rows["low"], rows["high"] - rows["value"]],
            fmt=MARKERS[i % len(MARKERS)],
            capsize=3,
            color=list(COLOURS.values())[i % len(COLOURS)],
            label=one,
        )
    if chance is not None:
        ax.axvline(chance, color=INK, ls="--", lw=1, alpha=0.7, label="chance")
    ax.set_yticks(range(len(names)), [str(name) for name in names])
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
    ax.grid(axis="x")
    if ax.get_legend_handles_labels()[1]:
        fig.legend(loc="outside upper right", ncols=4)
    return fig


@_styled
def heat_map(table: pd.DataFrame, label: str, low: float = 0.0, high: float = 1.0) -> Figure:
    """A matrix with its numbers printed, such as the association between attributes.

    Parameters
    ----------
    table : DataFrame of shape (rows, columns)
        NaN leaves a cell empty.
    label : str
        The quantity and its unit.
    low, high : float
        Ends of the colour scale; values beyond are drawn in the end's colour.

    Returns
    -------
    matplotlib.figure.Figure
    """
    values = table.to_numpy(dtype=float)
    if not values.size:
        raise ValueError("heat_map(...) got an empty table.")
    rows, columns = values.shape
    fig = Figure(figsize=(min(9.5, 2.2 + 0.58 * columns), 1.3 + 0.38 * rows))
    ax = fig.subplots()
    diverging = low < 0 < high
    image = ax.imshow(
        values, cmap="RdBu_r" if diverging else "cividis", vmin=low, vmax=high, aspect="auto"
    )
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.to_rgba(value)
            light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
            ax.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if light else "white",
            )
    ax.set_xticks(
        range(columns),
        [str(c) for c in table.columns],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
    )
    ax.set_yticks(range(rows), [str(r) for r in table.index])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    _colour_bar(fig, image, [ax], label)
    return fig
