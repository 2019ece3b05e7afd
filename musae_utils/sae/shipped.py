"""The nano model's SAEs that the chapters begin from: ``make saes`` trains them again.

One for an early, a middle and a late layer. The music is composed, the model reads it without a
prompt, and all layers are harvested in one pass. Stopped at any time, it goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from musae_utils import runs
from musae_utils.sae.architectures import SAE
from musae_utils.sae.presets import nano
from musae_utils.sae.train import train

if TYPE_CHECKING:
    from musae_utils.activations import ActivationStore
    from musae_utils.models import MusicModel

DEPTHS = (0.2, 0.6, 1.0)  # of the layers: early, middle, late
CLIPS, SECONDS, SEED = 800, 10.0, 0  # composed training music
STEPS = 3000
# With momentum more of the planted concepts of a frame have a feature of their own (19 % for 16 %)
# at a lower FVU. Twice as fast and twice as long, the FVU falls further (0.133 for 0.143), but half
# of the features never fire on other music: they know pieces by heart.
LEARNING = {"betas": (0.5, 0.999)}


def layers(model: MusicModel) -> list[int]:
    """An early, a middle and a late layer of a model; those of the nano model have shipped SAEs."""
    from musae_utils import trace

    return sorted({trace.at_depth(model, depth) for depth in DEPTHS})


def pretrained(
    model: MusicModel,
    layer: int,
    store: ActivationStore | None = None,
    folder: str | Path = "runs",
    steps: int = 1000,
) -> SAE:
    """The SAE that ships for a layer; for another model or layer, one trained here and kept.

    Parameters
    ----------
    model : MusicModel
    layer : int
    store : ActivationStore, optional
        Activations to train on where nothing ships.
    folder : str or Path
        Run folders of SAEs trained here, one for each hook point and store.
    steps : int
        Batches of 2,048 to train for.

    Returns
    -------
    SAE

    Raises
    ------
    FileNotFoundError
        Nothing ships for this layer of this model, and no store was given.
    """
    from musae_utils import models, trace

    hook = trace.HookPoint.of(model, layer)
    path = models.NANO_FOLDER / f"sae-{layer}.safetensors"
    if path.exists():
        sae = SAE.load(path)
        if (sae.hook_point or {}).get("fingerprint") == hook.fingerprint:
            return sae
    if store is None:
        raise FileNotFoundError(
            f"No SAE ships for {hook.path} of {model.name} [{hook.fingerprint}]: give a store of "
            "its activations, and one is trained."
        )
    place = Path(folder) / f"sae-{hook.fingerprint}-{layer}-{store.fingerprint}-{steps}"
    config = nano(d_in=store.widths[store.hook(layer)], steps=steps, **LEARNING)
    return train(config, batches(store, layer), place, hook, progress=False).sae


def batches(store: ActivationStore, layer: int, size: int = 2048):
    """For `train`: the store's rows in a new order at each pass."""
    return lambda epoch: store.batches(layer, size, seed=epoch)


def main() -> None:
    from musae_utils import activations, models, music

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/saes"))
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    model = models.load("nano")
    chosen = layers(model)
    clips = music.make_many(asked.clips, SEED, SECONDS, "train")
    folder = asked.folder / f"{model.fingerprint}-{asked.clips}"
    store = activations.harvest(model, clips, chosen, folder / "store")
    for layer in chosen:
        began = time.monotonic()
        config = nano(d_in=model.dim, steps=asked.steps, **LEARNING)
        hook = store.hook_point(layer)
        trained = train(config, batches(store, layer), folder / f"sae-{layer}", hook)
        trained.sae.provenance |= {
            "music": {"clips": asked.clips, "seconds": SECONDS, "seed": SEED, "split": "train"},
            "last": trained.history[-1], "seconds": round(time.monotonic() - began),
        }  # fmt: skip
        path = models.NANO_FOLDER / f"sae-{layer}.safetensors"
        trained.sae.save(path, half=True)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {runs.sha256(path)[:12]}")


if __name__ == "__main__":
    main()
