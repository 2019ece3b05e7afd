"""SAE training against sae-lens, dictionary_learning, sparsify and Overcomplete (`make peers`).

    .venv-peers/bin/python benchmarks/sae_peers.py [--part speed] [--pairs 12] [--json FILE]

Peers live in an environment of their own, which holds no audiocraft; what the nano model thinks of
music is harvested before, by ``make peers``. Two parts:

**speed** At S1's width and at the nano model's, `sae_speed.measure`: everybody has one turn a round
on the same batches, one thread each, the clock is the process's own. Each library enters with the
fastest of its settings (`SETTINGS`), found at each shape by one step each; what a library cannot do
is written down with the reason, as measured.

**fvu** TopK SAEs (d = 256, × 16, k = 32) on the nano model's middle layer: the same batches in the
same order for everybody; ours with Adam's momentum (0.9) and without it (the default). Learning
rates are powers of √10, from 0.01 outward until both neighbours are worse, for each library and
each of its settings; they are chosen on seed 0 and on other compositions than those on which seeds
1, 2 and 3 are scored. Everybody warms up over a twentieth of
the steps and decays to 0 over the last fifth, except sparsify, which has schedules of its own.

The table is written to ``data/sae_peers.json``, which the scoreboard reads. Runs of peers are kept
in ``runs/sae_peers/``: delete the folder to start over.

=========================  =======================================================================
sae.speed_vs_gemm          tokens a second over those of the encoder's product alone
sae.speed_vs_best_peer     … over those of the fastest peer
sae.fvu_vs_best_peer       fraction of variance unexplained over that of the best peer
=========================  =======================================================================
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import platform
import sys
import time
import types
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("WANDB_MODE", "disabled")

import numpy as np
import sae_speed
import torch
from scipy import stats as _scipy
from torch.optim.lr_scheduler import LambdaLR

from musae_utils import runs
from musae_utils.activations import ActivationStore
from musae_utils.sae import SAE, SAEConfig, TrainConfig
from musae_utils.sae.steps import bfloat16_pays, step_for
from musae_utils.stats import Interval

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "runs" / "sae_peers"
TABLE = ROOT / "data" / "sae_peers.json"
SEEDS = (1, 2, 3)  # scored; 0 chooses learning rates
START = -4  # the first learning rate, 0.01, as a power of √10
MOMENTUM = "ours with momentum"  # moves every row at every step: not our default, but measured
LONG = 10**6  # steps of a training of which only a few are timed


class Trainer(NamedTuple):
    """One library at work.

    Attributes
    ----------
    step : callable
        A whole training step on raw activations (B, d).
    read : callable
        Raw activations (N, d) to their reconstruction and their codes (N, n).
    """

    step: Callable[[torch.Tensor], object]
    read: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def rise_and_fall(steps: int) -> Callable[[int], float]:
    """Share of the learning rate at a step, for libraries that take any schedule."""
    rising, falling = max(1, steps // 20), max(1, steps // 5)
    return lambda i: min(1.0, (i + 1) / rising, max(0.0, (steps - i) / (falling + 1)))


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_pays())


def stand_in(module: str, name: str) -> None:
    """An empty module in place of one that a library imports and training does not use."""
    if module not in sys.modules:
        sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[module], name, None)


# -- the libraries ---------------------------------------------------------------------------------
# Each takes one of its settings, sizes, the first activations, learning rate, steps and seed.


def ours(setting, d, n, k, first, lr, steps, seed, batch) -> Trainer:
    config = TrainConfig(
        SAEConfig.of(d, n // d, k), lr=lr, steps=steps, warmup=max(1, steps // 20),
        batch_size=batch, seed=seed, betas=(0.9 * ("momentum" in setting), 0.999),
    )  # fmt: skip
    sae = SAE(config.sae, seed=None)
    generator = torch.Generator().manual_seed(seed)
    sae.initialise(generator, first, config.b_dec, scaled=True)
    step, count = step_for(sae, config, "bf16" if bfloat16_pays() else "fp32"), itertools.count()

    def read(x):
        codes = sae.encode(x)
        return sae.decode(codes), codes

    return Trainer(lambda x: step(x, config.rate(next(count))), read)


def dictionary_learning(setting, d, n, k, first, lr, steps, seed, batch) -> Trainer:
    stand_in("nnsight", "LanguageModel")  # for reading models; 0.3 breaks torch.compile for others
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=steps, activation_dim=d, dict_size=n, k=k, layer=0, lm_name="", lr=lr, seed=seed,
        warmup_steps=max(1, steps // 20), decay_start=int(0.8 * steps), device="cpu",
    )  # fmt: skip
    count, scale = itertools.count(), first.square().sum(1).mean().rsqrt()

    def step(x):
        with half():
            trainer.update(next(count), x * scale)

    def read(x):
        codes = trainer.ae.encode(x * scale)
        return trainer.ae.decode(codes) / scale, codes

    return Trainer(step, read)


def sae_lens(setting, d, n, k, first, lr, steps, seed, batch) -> Trainer:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    autocast = bfloat16_pays() and setting != "sparse fp32"
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d,
            d_sae=n,
            k=k,
            use_sparse_activations=setting == "sparse fp32",
            normalize_activations="expected_average_only_in",
            rescale_acts_by_decoder_norm=setting != "sparse fp32",  # has no gradient there
        )
    )
    if setting == "bf16 compiled":  # as its runner does with compile_sae
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    settings = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, lr=lr, lr_end=lr / 10,
        lr_warm_up_steps=max(2, steps // 20), lr_decay_steps=steps // 5, autocast=autocast,
    )  # fmt: skip
    trainer = SAETrainer(settings, sae, iter(()))
    trainer.activation_scaler.scaling_factor = float(d**0.5 / first.norm(dim=1).mean())

    def step(x):
        trainer.step(x)
        trainer.n_training_steps += 1

    def read(x):
        codes = sae.encode(trainer.activation_scaler(x))
        codes = codes.to_dense() if codes.is_sparse else codes
        return trainer.activation_scaler.unscale(sae.decode(codes)), codes

    return Trainer(step, read)


def sparsify(setting, d, n, k, first, lr, steps, seed, batch) -> Trainer:
    """Its trainer runs a language model itself: this is what happens in there to activations."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    coder = SparseCoder(d, SparseCoderConfig(num_latents=n, k=k))
    coder.b_dec.data = first.mean(0)
    optimiser, chunks = setting.split(", ")
    if optimiser == "signum":
        adapt = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr), momentum=0.95)
        adapt.train()
        schedule = None
    else:
        adapt = torch.optim.Adam(coder.parameters(), lr)
        schedule = get_linear_schedule_with_warmup(adapt, max(1, steps // 20), steps)
    idle = torch.zeros(n, dtype=torch.long)

    def step(x):
        coder.set_decoder_norm_to_unit_norm()
        variance, fired = (x - x.mean(0)).square().sum(), torch.zeros(n, dtype=torch.bool)
        for part in x.chunk(int(chunks.split()[0])):
            with half():
                out = coder(part, total_variance=variance)
            fired[out.latent_indices.flatten()] = True
            out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adapt.step()
        adapt.zero_grad()
        if schedule is not None:
            schedule.step()
        idle.add_(len(x))
        idle[fired] = 0

    def read(x):
        if schedule is None:
            adapt.eval()
        values, indices, _ = coder.encode(x)
        said = coder.decode(values, indices)
        return said, torch.zeros(len(x), n).scatter(1, indices, values)

    return Trainer(step, read)


def overcomplete(setting, d, n, k, first, lr, steps, seed, batch) -> Trainer:
    stand_in("torchvision", "transforms")  # for images; beside torch for CPUs it cannot be loaded
    from overcomplete.sae import TopKSAE, train_sae

    torch.manual_seed(seed)
    sae = TopKSAE(d, n, top_k=k)
    if setting == "bf16, encoder from dictionary":
        sae.untied(bias=True)
    adam = torch.optim.Adam(sae.parameters(), lr)
    schedule = LambdaLR(adam, rise_and_fall(steps))
    mean = first.mean(0)  # the library has no bias for it
    scale = (first - mean).square().mean().rsqrt()

    def loss(x, said, before, codes, dictionary):
        return (x - said).square().mean()

    def step(x):
        with half():
            train_sae(sae, [(x - mean) * scale], loss, adam, schedule, nb_epochs=1, monitoring=0)

    def read(x):
        _, codes, said = sae((x - mean) * scale)
        return said / scale + mean, codes

    return Trainer(step, read)


LIBRARIES: dict[str, Callable[..., Trainer]] = {
    f.__name__: f for f in (ours, dictionary_learning, sae_lens, sparsify, overcomplete)
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "ours": ("bf16", "bf16, momentum"),
    "dictionary_learning": ("bf16",),
    "sae_lens": ("bf16", "sparse fp32", "bf16 compiled"),
    "sparsify": ("signum, 1 chunk", "signum, 4 chunks", "signum, 8 chunks"),
    "overcomplete": ("bf16", "bf16, encoder from dictionary"),
}
TRAINED = {  # of these, those that differ in what is learnt and not only in speed
    "sae_lens": ("bf16",),
    "sparsify": ("signum, 8 chunks", "adam, 8 chunks"),
}
PACKAGES = {
    "dictionary_learning": "dictionary-learning", "sae_lens": "sae-lens",
    "sparsify": "eai-sparsify", "overcomplete": "overcomplete",
}  # fmt: skip


# -- speed -----------------------------------------------------------------------------------------


def peers(left_out: dict[str, str], chosen: dict[str, str]) -> Callable:
    """What `sae_speed.measure` asks for; notes what does not run, and the settings that won."""

    def trainers(d, n, k, batch, first):
        found = {}
        for name in PACKAGES:
            quickest = math.inf
            for setting in SETTINGS[name]:
                try:
                    trainer = LIBRARIES[name](
                        setting, d, n, k, first, lr=3e-4, steps=LONG, seed=0, batch=batch
                    )
                    seconds = min(sae_speed.timed([trainer.step], [first], 2, "cpu"))
                except Exception as error:
                    left_out[f"{name}, {setting}"] = f"{type(error).__name__}: {error}"[:300]
                    continue
                print(f"  {d} → {n}, k = {k}: {name} ({setting}) {batch / seconds:,.0f} tokens/s")
                if seconds < quickest:
                    quickest, found[name] = seconds, trainer.step
                    chosen[name] = setting
        found[MOMENTUM] = ours(
            "bf16, momentum", d, n, k, first, lr=3e-4, steps=LONG, seed=0, batch=batch
        ).step
        return found

    return trainers


def speed(shapes: list[str], pairs: int, batch: int, table: dict) -> None:
    """Measure shape by shape, so that what is measured is kept."""
    for shape in shapes:
        left_out: dict[str, str] = {}
        chosen: dict[str, str] = {}
        entries = sae_speed.measure([shape], pairs, batch, peers(left_out, chosen))
        rates = {e["name"].split("_vs_")[1].split(".")[0]: e for e in entries}
        d, n, k = sae_speed.SHAPES[shape]
        table["speed"][shape] = {
            "d": d, "n": n, "k": k, "batch": batch, "rounds": pairs,
            "ours": round(entries[0]["ours"]),
            "rivals": {
                rival: {
                    "tokens_per_second": round(e["rival"]), "setting": chosen.get(rival),
                    **{key: round(e[key], 4) for key in ("value", "low", "high")},
                }
                for rival, e in rates.items()
            },
            "left_out": left_out,
        }  # fmt: skip
        for rival, e in rates.items():
            print(
                f"{shape:9} ours over {rival:20} {e['value']:.3f} [{e['low']:.3f}, "
                f"{e['high']:.3f}]  {e['ours']:,.0f} against {e['rival']:,.0f} tokens/s"
            )
        save(table)


# -- FVU -------------------------------------------------------------------------------------------


@torch.no_grad()
def unexplained(trainer: Trainer, x: torch.Tensor) -> tuple[float, float, float]:
    """On held-out activations (N, d): FVU, active features a sample, share of all ever active."""
    rest = active = 0.0
    alive = torch.tensor(False)
    for part in x.split(2048):
        said, codes = trainer.read(part)
        rest += float((part - said).double().square().sum())
        active += float((codes != 0).sum())
        alive = alive | (codes != 0).any(0)
    spread = float((x - x.mean(0)).double().square().sum())
    return rest / spread, active / len(x), float(alive.float().mean())


def learn(name, setting, steps, batch, store, tests, power, seed) -> list[tuple]:
    """Train once: `unexplained` of each half of what is held out. Kept, for peers."""
    kept = FOLDER / "kept" / f"{name}-{setting}-{power}-{seed}-{steps}-{batch}.json"
    about = [store.fingerprint, metadata.version(PACKAGES[name])] if name != "ours" else None
    if about and kept.exists() and runs.load_json(kept)["about"] == about:
        return runs.load_json(kept)["found"]
    batches = store.batches(store_layer(store), batch, seed=seed, epochs=None)
    batches = (x.float() for x in batches if len(x) == batch)
    first = torch.cat([next(batches), next(batches)])
    trainer = LIBRARIES[name](
        setting, store.d, 16 * store.d, 32, first, 10 ** (power / 2), steps, seed, batch=batch
    )
    start = time.process_time()
    for x in itertools.islice(itertools.chain(first.split(batch), batches), steps):
        trainer.step(x)
    found = [unexplained(trainer, x) for x in tests]
    print(
        f"  {name} ({setting}) lr {10 ** (power / 2):.2g}, seed {seed}: "
        f"FVU {found[1][0]:.4f}, L0 {found[1][1]:.1f}, {found[1][2]:.0%} alive, "
        f"{time.process_time() - start:.0f} s"
    )
    if about:
        runs.save_json(kept, {"about": about, "found": found})
    return found


def store_layer(store: ActivationStore) -> str:
    return next(iter(store.hooks))


def best_rate(score: Callable[[int], float], power: int) -> int:
    """The power with the lowest score, sought outward from a first one until both sides rise."""
    seen = {p: score(p) for p in (power - 1, power, power + 1)}
    while (best := min(seen, key=seen.get)) in (min(seen), max(seen)):
        further = best - 1 if best == min(seen) else best + 1
        seen[further] = score(further)
    return best


def tuned(train: Callable) -> dict:
    """The learning rate that is best on seed 0 and one half; FVU of other seeds on the other."""
    power = best_rate(lambda p: train(p, 0)[0][0], START)
    scored = np.round([train(power, seed)[1] for seed in SEEDS], 5).T.tolist()
    return {
        "lr": float(f"{10 ** (power / 2):.3g}"), "chosen_at": round(train(power, 0)[0][0], 5),
        **dict(zip(("fvu", "l0", "alive"), scored, strict=True)),
    }  # fmt: skip


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Geometric mean of paired ratios with its 95 % t-interval."""
    logs = np.log(ours) - np.log(theirs)
    reach = _scipy.t.ppf(0.975, len(logs) - 1) * _scipy.sem(logs)
    return tuple(float(np.exp(x)) for x in (logs.mean(), logs.mean() - reach, logs.mean() + reach))


def fvu(steps: int, batch: int, table: dict) -> None:
    store = ActivationStore.open(FOLDER / "train")
    halves = ActivationStore.open(FOLDER / "held_out").split(0.5)
    tests = [half[store_layer(half)][:].float() for half in halves]
    found, left_out = {}, {}
    for name in LIBRARIES:
        for setting in TRAINED.get(name, SETTINGS[name]):
            train = partial(learn, name, setting, steps, batch, store, tests)
            try:
                row = tuned(train)
            except Exception as error:
                left_out[f"{name}, {setting}"] = f"{type(error).__name__}: {error}"[:300]
                continue
            rows = found.setdefault(name, [])
            rows.append({"setting": setting, **row})
            rows.sort(key=lambda row: row["chosen_at"])  # the first is the library's entry
    mine = found.pop("ours")
    for name, (row, *_) in found.items():
        row |= dict(
            zip(("value", "low", "high"), np.round(ratio(mine[0]["fvu"], row["fvu"]), 4).tolist(),
                strict=True)
        )  # fmt: skip
        print(f"FVU over that of {name}: {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    point = store.hooks[store_layer(store)]
    table["fvu"] = {
        "d": store.d, "n": 16 * store.d, "k": 32, "batch": batch, "steps": steps,
        "rows": len(store), "held_out_rows": [len(x) for x in tests],
        "hook": f"{point['path']} of {point['model']} [{point['fingerprint']}]",
        "ours": mine, "rivals": found, "left_out": left_out,
    }  # fmt: skip
    save(table)


# -- the table -------------------------------------------------------------------------------------


def headlines(table: dict) -> dict[str, tuple[Interval, str]]:
    """Figures of the scoreboard: our worst shape and our strongest rival, then all of them."""
    found, made = {}, f"{table['made']['processor']}, {table['made']['date']}"
    for figure, is_rival in (("gemm", "gemm".__eq__), ("best_peer", "gemm".__ne__)):
        shapes = {}
        for shape, row in table["speed"].items():
            rivals = {name: e for name, e in row["rivals"].items() if is_rival(name)}
            rivals.pop(MOMENTUM, None)
            best = min(rivals, key=lambda name: rivals[name]["value"])
            shapes[shape] = _interval(rivals[best], row["rounds"]), f"ratio, {best}"
        worst = min(shapes, key=lambda shape: shapes[shape][0].value)
        interval, unit = shapes[worst]
        found[f"sae.speed_vs_{figure}"] = interval, f"{unit} at {worst} ({made})"
        found |= {f"sae.speed_vs_{figure}.{shape}": row for shape, row in shapes.items()}
    if not table["fvu"]:  # not measured yet: no figure
        return found
    rivals = {name: row for name, (row, *_) in table["fvu"]["rivals"].items()}
    best = max(rivals, key=lambda name: rivals[name]["value"])
    for name, row in rivals.items():
        found[f"sae.fvu_vs_best_peer.{name}"] = _interval(row, len(SEEDS)), "ratio"
    said = f"ratio, {table['fvu']['ours'][0]['setting']} against {best} ({made})"
    found["sae.fvu_vs_best_peer"] = _interval(rivals[best], len(SEEDS)), said
    return found


def _interval(row: dict, n: int) -> Interval:
    return Interval(row["value"], row["low"], row["high"], n)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def save(table: dict) -> None:
    table["made"] = {
        "date": date.today().isoformat(), "processor": processor(), "threads": 1,
        "bf16": bfloat16_pays(), "torch": torch.__version__,
        "versions": {name: metadata.version(package) for name, package in PACKAGES.items()},
    }  # fmt: skip
    runs.save_json(table["file"], {k: v for k, v in table.items() if k != "file"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["speed", "fvu"], help="both if absent")
    parser.add_argument("--shape", action="append", choices=list(sae_speed.SHAPES))
    parser.add_argument("--pairs", type=int, default=12, help="rounds of a speed")
    parser.add_argument("--batch", type=int, default=2048, help="activations a step")
    parser.add_argument("--steps", type=int, default=500, help="of a training that is scored")
    parser.add_argument("--json", type=Path, default=TABLE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = {"speed": {}, "fvu": {}}
    if given.json.exists() and (given.part or given.shape):
        table = runs.load_json(given.json)
    table["file"] = given.json
    if given.part != "fvu":
        speed(given.shape or list(sae_speed.SHAPES), given.pairs, given.batch, table)
    if given.part != "speed":
        fvu(given.steps, given.batch, table)
    print(f"Written to {given.json}")


if __name__ == "__main__":
    main()
