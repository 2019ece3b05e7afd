"""MuSAE: music with known answers, MusicGen opened up, and honest controls.

The chapters in ``notebooks/`` use these modules in the order in which data flows: ``music`` →
``models`` → ``trace`` → ``probes``, with ``runs``, ``stats`` and ``show`` beside them.
"""

__version__ = "0.1.0"
