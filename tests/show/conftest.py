"""A small clip made by hand, so that these tests need neither composer nor renderer."""

import numpy as np
import pytest

from musae_utils.music.clip import FRAME_RATE, Clip, Note, Truth

RATE = 16000


def build_clip(seconds: int = 8, name: str = "test clip") -> Clip:
    """Four beats a bar at 120 BPM in D minor; a click at every second makes time audible."""
    t = np.arange(seconds * RATE) / RATE
    audio = 0.1 * np.sin(2 * np.pi * 220 * t)
    audio[(t % 1 < 0.005) & (t > 0.5)] = 0.9
    frames = np.arange(seconds * FRAME_RATE)
    bars = frames // (2 * FRAME_RATE)  # a bar lasts two seconds
    truth = Truth(
        frames={
            "tonic": np.full(len(frames), 2),
            "mode": np.ones(len(frames), int),
            "chord_root": np.array([2, 7, 9, 2])[bars % 4],
            "chord_quality": np.array([1, 1, 3, 1])[bars % 4],
            "beat": frames % 25 / 25,
            "downbeat": frames % 100 / 100,
            "tempo": np.full(len(frames), 120.0),
            "melody": np.where(bars % 2, 69, -1),
            "loudness": np.full(len(frames), -20.0),
        },
        clip={
            "key": "D minor", "tonic": 2, "mode": 1, "tempo": 120.0, "metre": 4, "family": "flute",
            "drums": True, "form": "ABAB",
            "sections": [
                {"start": 2.0 * i, "end": 2.0 * i + 2, "label": "AB"[i % 2]}
                for i in range(seconds // 2)
            ],
            "statements": [
                {"start": 0.0, "end": 2.0, "motif": 7, "kind": "first", "of": -1},
                {"start": 2.0, "end": 4.0, "motif": 3, "kind": "first", "of": -1},
                {"start": 4.0, "end": 6.0, "motif": 7, "kind": "transposed", "of": 0},
            ],
        },
        notes=[
            Note(b / 2, b / 2 + 0.4, pitch, 80, role)
            for b in range(2 * seconds)
            for pitch, role in ((74, "melody"), (62, "harmony"), (38, "bass"), (36, "drums"))
        ],
    )  # fmt: skip
    return Clip(audio.astype(np.float32), RATE, truth, "a flute", {}, name)


@pytest.fixture(scope="session")
def clip() -> Clip:
    return build_clip()
