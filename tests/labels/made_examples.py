"""Halves of examples made by hand: what tells active from silent is known."""

import numpy as np

from musae_utils.labels import Example, Examples, Half

RATE = 16_000


def example(number, audio=None, activation=0.0, truth=None, group=None):
    if audio is None:
        audio = np.full(800, number / 1000, np.float32)
    audio = np.asarray(audio, np.float32)
    group = f"composition {number}" if group is None else group
    return Example(
        number, f"clip {number}", group, 0.0, len(audio) / RATE, activation, audio, RATE, truth
    )


def half(feature, active, silent, first=0):
    """From two lists of sounds."""
    made = [example(first + i, x, float(i < len(active))) for i, x in enumerate([*active, *silent])]
    return Half(feature, made[: len(active)], made[len(active) :])


def numbered(feature, n=10, rate=0.1):
    """Examples that differ in their clips' numbers alone: 100 features + ..., active ones first."""
    finding = half(feature, [None] * n, [None] * n, 1000 * feature)
    scoring = half(feature, [None] * n, [None] * n, 1000 * feature + 500)
    return Examples(feature, finding, scoring, rate)


def tone(hz, seconds=1.0, level=0.2, seed=0):
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(t)) * 1e-4
    return (level * np.sin(2 * np.pi * hz * t) + noise).astype(np.float32)
