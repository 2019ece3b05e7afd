"""How fast the feature explorer opens and searches: thousands of features, headless Chromium.

    python benchmarks/explorer_speed.py [--features 4000] [--runs 10] [--json FILE]

The site is published from made-up features with the sizes of real ones (120 concepts, eight clips
each with a curve) into a temporary folder and opened as a file. Times are what a reader waits:

- ``atlas.explorer_open``: from asking for the page until the list is on the screen, in a fresh
  browser context, in seconds;
- ``atlas.explorer_search``: from a key in the search field until the new list is on the screen, in
  milliseconds, over several searches of all features;
- ``atlas.explorer_feature``: from a click until a feature's curves are there, its part of the data
  read from the disk, in milliseconds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from musae_utils import stats
from musae_utils.features import FeatureAtlas, Followed, publish

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SEARCHES = ("d", "dr", "drum", "chord root: g", "melody", "tempo fast", "17", "nothing", "")
PAINTED = "() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => r(performance.now()))))"  # noqa: E501
SEARCH = """(words) => new Promise((done) => {
  const field = document.getElementById("search"), begun = performance.now();
  field.value = words;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  // The list is made in the next frame and is on the screen in the one after it.
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begun)));
})"""
OPEN = """(hash) => new Promise((done) => {
  const begun = performance.now(), box = document.getElementById("feature");
  new MutationObserver(() => requestAnimationFrame(() => done(performance.now() - begun)))
    .observe(box, { childList: true });
  location.hash = hash;
})"""


def made_up(n: int, clips: int = 200, frames: int = 500, seed: int = 0) -> FeatureAtlas:
    """An atlas with the sizes of a real one and nothing to say."""
    rng = np.random.default_rng(seed)
    kinds = ("top",) * 5 + ("middle",) * 2 + ("silent",) * 2
    names = [f"{g}: {v}" for g in ("chord root", "melody", "sounding", "melody pitch") for v in
             "C C# D Eb E F F# G Ab A Bb B".split()]  # fmt: skip
    clip_names = [f"{g}: {v}" for g in ("tonic", "family", "form", "tempo", "drums") for v in
                  ("fast", "yes", "no", "one", "two", "three")]  # fmt: skip
    curves = rng.integers(0, 255, (n, 7, frames), np.uint8)
    curves[rng.random((n, 7, frames)) < 0.8] = 0

    def followed(names: list[str]) -> Followed:
        found = rng.beta(4, 3, (2, n, len(names))).astype(np.float32)
        return Followed(names, *found, np.full(len(names), 0.6, np.float32))

    pair = lambda: (rng.integers(0, n, (n, 8), np.int32), rng.random((n, 8), np.float32))  # noqa: E731
    density = (10 ** rng.uniform(-4, -0.5, n)).astype(np.float32)
    return FeatureAtlas(
        layer="3", hook="transformer.layers.3 of nothing", store="", sae="", frame_rate=50.0,
        n_rows=clips * frames,
        clips=[{"name": f"clip {i}", "group": str(i), "kin": i, "frames": frames,
                "caption": "a moderate song form in D minor, featuring flute with drums"}
               for i in range(clips)],
        density=density, mean=density, peak=np.ones(n, np.float32),
        quantiles=np.ones((n, 3), np.float32),
        track_mean=rng.random((clips, n), np.float32), track_rate=np.tile(density, (clips, 1)),
        kinds=kinds, examples=rng.integers(0, clips, (n, 9), np.int32), curves=curves,
        marks=np.packbits(rng.random((n, 7, frames // 25)).repeat(25, 2) < 0.3, axis=2),
        neighbours=pair(), partners=pair(), place=rng.random((n, 2), np.float32),
        concepts={"frame": followed(names), "clip": followed(clip_names)}, names=[""] * n,
    )  # fmt: skip


def measure(features: int = 4000, repeats: int = 10, only: str = "atlas") -> list[dict]:
    """The figures whose names begin with `only`, as scoreboard entries.

    Parameters
    ----------
    features : int
    repeats : int
        Fresh openings; the searches are made in each.

    Returns
    -------
    list of dict
        name, value, low, high, n, unit, seconds.

    Raises
    ------
    FileNotFoundError
        There is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        raise FileNotFoundError(
            "There is no Chromium on this machine (Debian: apt install chromium)."
        )
    begun = time.perf_counter()
    times: dict[str, list[float]] = {"open": [], "search": [], "feature": []}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = publish([made_up(features)], Path(folder) / "site").as_uri()
        chromium = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        for run in range(repeats + 1):
            context = chromium.new_context(viewport={"width": 1440, "height": 900})
            tab = context.new_page()
            tab.goto(page)
            tab.wait_for_selector("html[data-ready]", state="attached")
            opened = tab.evaluate(PAINTED) / 1000
            tab.uncheck("#kept")
            searched = [tab.evaluate(SEARCH, words) for words in SEARCHES]
            turned = [tab.evaluate(OPEN, f"#layer-3/feature-{f}") for f in (0, 700, 2100)]
            context.close()
            if run:  # the first one warms the browser and the disk
                times["open"].append(opened)
                times["search"] += searched
                times["feature"] += turned
        chromium.close()
    seconds = time.perf_counter() - begun
    entries = []
    for name, unit in (("open", "s"), ("search", "ms"), ("feature", "ms")):
        found = stats.bootstrap(times[name])
        entries.append(
            dict(name=f"atlas.explorer_{name}", value=found.value, low=found.low, high=found.high,
                 n=found.n, unit=unit, seconds=seconds)
        )  # fmt: skip
    return [entry for entry in entries if entry["name"].startswith(only)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the entries to this file")
    arguments = parser.parse_args()
    entries = measure(arguments.features, arguments.runs)
    for e in entries:
        print(f"{e['name']:24} {e['value']:8.3f} [{e['low']:.3f}, {e['high']:.3f}] {e['unit']}")
    if arguments.json:
        from musae_utils.runs import save_json

        save_json(arguments.json, entries)


if __name__ == "__main__":
    main()
