"""Players that carry their sound with them, and tables to compare sounds by ear.

Sound is embedded as MP3 (64 kbit/s up to 24 kHz, 96 kbit/s above: ten seconds are about 85 KB
at 16 kHz, 120 KB at 32 kHz before base64). Louder is easily taken for better, so a comparison is
matched in loudness after ITU-R BS.1770-4, and whatever was changed is said beside the player.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import soundfile
from IPython.display import HTML

from .page import wrap

TARGET_LUFS = -20.0
PEAK = 0.89  # -1 dBFS: MP3 may overshoot its input a little
# Of the rates MP3 has, those whose frames hold the mark that keeps a decoder from adding silence.
MP3_RATES = (16000, 22050, 24000, 32000, 44100, 48000)


def mono(audio: Any, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """One clip as float32 samples of shape (n,) and its sample rate in Hz.

    Parameters
    ----------
    audio : array or tensor of shape (n,) or (1, n), or a Clip (brings its own sample rate)
    sample_rate : int, optional
        In Hz; needed unless `audio` is a Clip.

    Raises
    ------
    ValueError
        If there is no sample rate, more than one row, no sample, or a value that is not finite.
    """
    if hasattr(audio, "audio"):
        audio, sample_rate = audio.audio, audio.sample_rate
    if not sample_rate or sample_rate <= 0:
        raise ValueError("Give the sample rate in Hz, e.g. sample_rate=16000, or a Clip.")
    if hasattr(audio, "detach"):
        audio = audio.detach().float().cpu().numpy()
    samples = np.asarray(audio, dtype=np.float32)
    if samples.ndim > 1 and samples.size == samples.shape[-1]:
        samples = samples.reshape(-1)
    if samples.ndim != 1:
        raise ValueError(
            f"Expected one mono clip of shape (n,), got shape {samples.shape}: "
            "pick a row (audio[0]) or mix the channels (audio.mean(0))."
        )
    if samples.size == 0:
        raise ValueError("The clip is empty: it has no samples.")
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise ValueError(f"The clip has {bad} samples that are NaN or infinite.")
    return samples, int(sample_rate)


def loudness(audio: Any, sample_rate: int | None = None) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4); -inf for silence.

    A clip shorter than the standard's 0.4 s block, or one that its gate (-70 LUFS) leaves nothing
    of, is measured by its plain mean power on the same scale.

    Examples
    --------
    >>> t = np.arange(48000) / 48000
    >>> round(loudness(np.sin(2 * np.pi * 997 * t), 48000))  # full-scale sine, one channel
    -3
    """
    import pyloudnorm

    samples, rate = mono(audio, sample_rate)
    if len(samples) >= 0.4 * rate:
        with np.errstate(divide="ignore"):
            level = float(pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64)))
        if math.isfinite(level):
            return level
    power = float(np.mean(samples.astype(np.float64) ** 2))
    return -0.691 + 10 * math.log10(power) if power > 1e-12 else -math.inf


def matching_gains(clips: Sequence[tuple[np.ndarray, int]], match: bool = True) -> list[float]:
    """Gain in dB for each clip: equal loudness, and no sample beyond full scale.

    Each clip is brought to -20 LUFS; if one of them would then clip, all are turned down by the
    same amount, so that they stay equal. Silence stays silence (gain 0). With ``match=False``
    only that common reduction remains.
    """
    gains, heard = [], []
    for samples, rate in clips:
        level = loudness(samples, rate)
        heard.append(math.isfinite(level))
        gains.append(TARGET_LUFS - level if match and heard[-1] else 0.0)
    peaks = [np.abs(s).max() * 10 ** (g / 20) for (s, _), g in zip(clips, gains, strict=True)]
    # Unmatched clips keep their level unless they really clip; matched ones keep MP3's headroom.
    limit = PEAK if match else 1.0
    over = max(peaks, default=0.0)
    if over > limit:
        down = 20 * math.log10(PEAK / over)
        gains = [g + down if h else g for g, h in zip(gains, heard, strict=True)]
    return gains


def mp3(samples: np.ndarray, sample_rate: int, kbps: int | None = None) -> bytes:
    """The clip, of shape (n,), as MP3 at 64 kbit/s (up to 24 kHz) or 96 kbit/s, if not another.

    Raises
    ------
    ValueError
        It is not mono, or holds NaN: the encoder would end the whole process.
    """
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(
            f"A sound of shape (n,) and finite numbers can be played, not one of {samples.shape} "
            f"of which {np.isfinite(samples).mean():.0%} are finite."
        )
    if sample_rate not in MP3_RATES:
        from scipy.signal import resample_poly

        rate = next((r for r in MP3_RATES if r >= sample_rate), MP3_RATES[-1])
        shared = math.gcd(rate, sample_rate)
        samples, sample_rate = resample_poly(samples, rate // shared, sample_rate // shared), rate
    # libsndfile maps 0..1 linearly onto the standard's range of constant bitrates.
    lowest, highest, usual = (8, 160, 64) if sample_rate <= 24000 else (32, 320, 96)
    wanted = usual if kbps is None else min(max(kbps, lowest), highest)
    out = io.BytesIO()
    soundfile.write(
        out,
        np.clip(samples, -1, 1),
        sample_rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=(highest - wanted) / (highest - lowest),
    )
    return out.getvalue()


def audio_tag(samples: np.ndarray, sample_rate: int, label: str, gain: float = 0.0) -> str:
    """A native audio element, named for screen readers, with the sound inside."""
    data = base64.b64encode(mp3(samples * np.float32(10 ** (gain / 20)), sample_rate)).decode()
    return (
        f'<audio controls preload="metadata" aria-label="{escape(label)}" '
        f'src="data:audio/mpeg;base64,{data}"></audio>'
    )


def player(audio: Any, sample_rate: int | None = None, title: str = "", caption: str = "") -> HTML:
    """One sound with the browser's own controls.

    It plays as loud as it is, unless it would clip; then it is turned down and says so.

    Parameters
    ----------
    audio : array or tensor of shape (n,), or a Clip
    sample_rate : int, optional
        In Hz; a Clip brings its own.
    title, caption : str, optional
        Printed above and below. The title also names the player for screen readers.

    Returns
    -------
    IPython.display.HTML

    See Also
    --------
    ab_table : several sounds side by side, matched in loudness.
    """
    samples, rate = mono(audio, sample_rate)
    [gain] = matching_gains([(samples, rate)], match=False)
    above = f"<b>{escape(title)}</b>" if title else ""
    below = f"<small>{escape(caption)}</small>" if caption else ""
    if gain < 0:
        below += f"<small>Turned down by {-gain:.1f} dB, so that it does not clip.</small>"
    tag = audio_tag(samples, rate, title or caption or "Clip", gain)
    return wrap("player", above + tag + below)


def ab_table(
    rows: Mapping[Any, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
    sample_rate: int | None = None,
    caption: str = "",
    match: bool = True,
) -> HTML:
    """A table of sounds to compare by ear: one row an example, one column a treatment.

    Parameters
    ----------
    rows : mapping row name → {column: cell}, or a list of {column: cell}
        A cell is a sound (array or tensor of shape (n,), or a Clip), text, a number, or None for
        an empty place. The columns are those of all rows, in order of appearance.
    sample_rate : int, optional
        Of the bare arrays, in Hz.
    caption : str, optional
        The table's heading, also its name for screen readers.
    match : bool
        Bring all sounds to -20 LUFS. Switch it off where loudness is what is compared.

    Returns
    -------
    IPython.display.HTML
        The digits 1 to 9 play that player of the row from the moment the other one has reached.

    Examples
    --------
    >>> tone = 0.1 * np.sin(np.arange(16000) / 6)
    >>> ab_table({"a tone": {"original": tone, "louder": 2 * tone}}, 16000)
    <IPython.core.display.HTML object>
    """
    table = dict(rows) if isinstance(rows, Mapping) else dict(enumerate(rows, 1))
    if not table or not all(isinstance(row, Mapping) and row for row in table.values()):
        raise ValueError(
            "ab_table(...) expects rows of named cells, e.g. "
            '{"clip 1": {"original": audio, "decoded": audio}}.'
        )
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    sounds = {
        (name, column): mono(cell, sample_rate)
        for name, row in table.items()
        for column, cell in row.items()
        if not (cell is None or isinstance(cell, (str, int, float, np.number)))
    }
    gains = dict(zip(sounds, matching_gains(list(sounds.values()), match), strict=True))

    row_heads = isinstance(rows, Mapping) or len(table) > 1
    share = f'style="--share:{(78 if row_heads else 100) / len(columns):.0f}%"'
    heads = ("<td></td>" if row_heads else "") + "".join(
        f'<th scope="col" role="columnheader" {share}>{escape(str(column))}</th>'
        for column in columns
    )
    body = []
    for name, row in table.items():
        cells = f'<th scope="row" role="rowheader">{escape(str(name))}</th>' if row_heads else ""
        for column in columns:
            cell, label = row.get(column), escape(str(column))
            if (name, column) in sounds:
                samples, rate = sounds[name, column]
                gain = gains[name, column]
                title = f"{name}: {column}" if row_heads else str(column)
                note = f"{gain:+.1f} dB".replace("-", "−") if abs(gain) >= 0.05 else ""
                note = note if samples.any() else "silent"
                tag = audio_tag(samples, rate, title, gain)
                cells += f'<td role="cell" data-label="{label}">{tag}<small>{note}</small></td>'
            else:
                shown = f"{cell:.3g}" if isinstance(cell, (float, np.floating)) else cell
                words = "–" if cell is None else escape(str(shown))
                cells += f'<td role="cell" class="text" data-label="{label}">{words}</td>'
        body.append(f'<tr role="row">{cells}</tr>')

    notes = []
    if match and any(abs(g) >= 0.05 for g in gains.values()):
        notes.append("Loudness matched (ITU-R BS.1770); the change in level is under each player.")
    elif any(abs(g) >= 0.05 for g in gains.values()):
        notes.append("All turned down alike, so that none clips.")
    most = max(sum((name, column) in sounds for column in columns) for name in table)
    if most > 1:
        notes.append(
            f'<span class="js keys">Inside a row, <kbd>1</kbd> to <kbd>{min(most, 9)}</kbd> '
            "switch players without losing the place.</span>"
        )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    name = escape(caption or "Sounds to compare")
    # Explicit roles: a narrow page lays the rows out as blocks, which would take them away.
    return wrap(
        "ab",
        f'<div class="scroll" data-lm-suppress-shortcuts="true">'
        f'<table role="table" aria-label="{name}">'
        f'{title}<thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table></div>'
        + (f'<p class="note">{" ".join(notes)}</p>' if notes else ""),
    )
