"""The feature explorer: a site of static files, and the same card for one feature in a notebook.

Two scripts. ``feature.js`` draws one feature from plain data and lets it play; it stands in a
notebook's output as well as on the site. ``app.js`` is the site around it: list, filters, map, deep
links. The site's folder::

    index.html
    assets/           page.css, feature.css, app.css, feature.js, app.js
    data/index.js     a few dozen bytes a feature: what the list needs, for all layers
    data/3-0.js       64 features of layer 3, read when one of them is first looked at
    audio/12.mp3      the sound of clip 12, read when it is played

Data are scripts that call a function, because a page opened from a folder may not read files. A
curve is a string, one character for each 40 ms: "#" is 0, and 56 steps above it the feature's peak;
"!" and a character stand for 4 to 60 zeros.
Everything that came from elsewhere (names, captions, titles) is escaped where it meets the page.

Used in notebooks/07_the_feature_atlas.ipynb through `musae_utils.features`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.display import HTML

from musae_utils.runs import RunError, atomic_write
from musae_utils.show import page, players

if TYPE_CHECKING:
    from musae_utils.features import FeatureAtlas

__all__ = ["browse", "card", "write"]

HERE = Path(__file__).parent
PART = 64  # features in a data file
POINTS = 25  # a second of a curve: as fine as a playhead can be followed
STEPS, FIRST = 56, 35  # heights of a curve, and the character of the lowest, "#"
FOLLOWED = 6  # concepts of a feature by which the list can be filtered
SHOWN = 3  # concepts of each level on a feature's page
RELATED = 0.1  # cosine, phi or correlation below which features are not called relatives
KBPS = 40  # of the site's sound: ten seconds are 50 kB


# -- the data --------------------------------------------------------------------------------------


def _curve(levels: np.ndarray, step: int) -> str:
    """Activations in 0-255 as a string, the largest of each `step` frames; ends at the last."""
    padded = np.pad(levels, (0, -len(levels) % step)).reshape(-1, step).max(1)
    steps = np.ceil(padded * (STEPS / 255)).astype(np.uint8) + FIRST
    text = steps.tobytes().decode("ascii").rstrip(chr(FIRST))
    return re.sub(chr(FIRST) + "{4,60}", lambda run: "!" + chr(FIRST - 4 + len(run[0])), text)


def _runs(holds: np.ndarray, step: int) -> list[list[float]]:
    """Where a concept holds: starts and ends, in points of a curve."""
    edges = np.flatnonzero(np.diff(holds.astype(np.int8), prepend=0, append=0)) / step
    return np.round(edges, 2).reshape(-1, 2).tolist()


def _step(atlas: FeatureAtlas) -> int:
    return max(1, round(atlas.frame_rate / POINTS))


def _number(x: float, digits: int = 3) -> float:
    return float(f"{x:.{digits}g}")


def _pairs(lists: tuple[np.ndarray, np.ndarray], feature: int) -> list[list[float]]:
    return [
        [int(f), round(float(value), 2)]
        for f, value in zip(lists[0][feature], lists[1][feature], strict=True)
        if f >= 0 and value >= RELATED
    ]


def _concepts(atlases: Sequence[FeatureAtlas]) -> list[list[str]]:
    """Name, level and group of every concept of any of the atlases."""
    listed = {
        name: [name, level, name.split(":")[0]]
        for atlas in atlases
        for level, followed in atlas.concepts.items()
        for name in followed.names
    }
    return list(listed.values())


def _followed(atlas: FeatureAtlas, features: np.ndarray) -> list[list[tuple[str, str, float]]]:
    """For each feature the concepts that it follows, the clearest first: name, level, AUC."""
    listed: list[list[tuple[float, str, str, float]]] = [[] for _ in features]
    for level, followed in atlas.concepts.items():
        values, aucs = followed.follow(features), followed.scored[features]
        best = np.argsort(-values, axis=1, kind="stable")[:, :FOLLOWED]
        for i, row in enumerate(best):
            for c in row:
                if values[i, c]:
                    entry = values[i, c], followed.names[c], level, float(aucs[i, c])
                    listed[i].append(entry)
    return [
        [(name, level, auc) for _, name, level, auc in sorted(of, key=lambda x: -x[0])]
        for of in listed
    ]


def _card(atlas: FeatureAtlas, feature: int, follows, number: Mapping[str, int]) -> dict[str, Any]:
    """What only the page of one feature needs."""
    step, f = _step(atlas), feature
    frames = [entry for entry in follows if entry[1] == "frame"]
    examples = []
    for e, (kind, clip) in enumerate(zip(atlas.kinds, atlas.examples[f].tolist(), strict=True)):
        if clip < 0:
            continue
        n = atlas.clips[clip]["frames"]
        one: dict[str, Any] = {
            "clip": clip, "kind": kind, "points": -(-n // step),
            "mean": _number(atlas.track_mean[clip, f]), "rate": _number(atlas.track_rate[clip, f]),
        }  # fmt: skip
        if kind != "silent":
            one["curve"] = _curve(atlas.curves[f, e, :n], step)
            if frames:
                one["holds"] = _runs(np.unpackbits(atlas.marks[f, e])[:n], step)
        examples.append(one)
    shown = frames[:SHOWN] + [entry for entry in follows if entry[1] == "clip"][:SHOWN]
    return {
        "id": f,
        "share": _number(atlas.share[f]),
        "median": _number(atlas.quantiles[f, 0]),
        "follows": [[number[name], round(auc, 2)] for name, _, auc in shown],
        "marked": number[frames[0][0]] if frames else -1,
        "examples": examples,
        "near": _pairs(atlas.neighbours, f),
        "together": _pairs(atlas.partners, f),
        "matches": {layer: _pairs(lists, f) for layer, lists in atlas.matches.items()},
    }


def _layer(atlas: FeatureAtlas, follows, number: Mapping[str, int]) -> dict[str, Any]:
    """What the list, the map and the start page need of a layer."""
    ids = np.flatnonzero(atlas.fires)  # `follows` has a list for each of them
    kept, table = atlas.kept(), atlas.sensitivity()
    column = lambda values, digits=3: [_number(x, digits) for x in values[ids]]  # noqa: E731
    place = np.round(1000 * np.nan_to_num(atlas.place[ids], nan=-1)).astype(int)
    return {
        "layer": atlas.layer, "hook": atlas.hook, "features": len(atlas), "passed": int(kept.sum()),
        "l0": float(atlas.density.sum()), "ids": ids.tolist(),
        "density": column(atlas.density), "rate": column(atlas.rate), "peak": column(atlas.peak),
        "kept": "".join("01"[int(k)] for k in kept[ids]),
        "names": {f: atlas.names[f] for f in ids.tolist() if atlas.names[f]},
        "follows": [
            [x for name, _, auc in each[:FOLLOWED] for x in (number[name], round(100 * auc))]
            for each in follows
        ],
        "x": place[:, 0].tolist(), "y": place[:, 1].tolist(),
        "sensitivity": {
            "highs": list(table.columns),
            "rows": [
                [by, low, *(None if np.isnan(n) else int(n) for n in row)]
                for (by, low), row in zip(
                    table.index, table.to_numpy(float, na_value=np.nan), strict=True
                )
            ],
        },
    }  # fmt: skip


def _best(atlases: Sequence[FeatureAtlas], number: Mapping[str, int]) -> list[list[float]]:
    """Concept, layer, feature, AUC: the feature that followed it best where it was looked for."""
    best: dict[str, tuple[float, int, int, float]] = {}
    for i, atlas in enumerate(atlases):
        for name, row in atlas.best().iterrows():
            entry = float(row["found"]), i, int(row["feature"]), float(row["auc"])
            best[name] = max(best.get(name, entry), entry)
    rows = [[number[name], i, f, round(auc, 3)] for name, (_, i, f, auc) in best.items()]
    return sorted(rows, key=lambda row: -row[3])


# -- the site --------------------------------------------------------------------------------------


def write(
    atlases: Sequence[FeatureAtlas], folder: Path, sound: Any = None, title: str = "Feature atlas"
) -> Path:
    """Write the site; see `musae_utils.features.publish`."""
    ours = folder / "data" / "index.js"
    if folder.exists() and not ours.exists() and any(folder.iterdir()):
        raise RunError(
            f"{folder} holds something else than an explorer: choose an empty or new folder."
        )
    concepts = _concepts(atlases)
    number = {name: i for i, (name, *_) in enumerate(concepts)}
    files: dict[str, str | bytes] = {}
    layers = []
    for atlas in atlases:
        ids = np.flatnonzero(atlas.fires)
        follows = _followed(atlas, ids)
        layers.append(_layer(atlas, follows, number))
        pages = [_card(atlas, int(f), each, number) for f, each in zip(ids, follows, strict=True)]
        for part in range(0, len(ids), PART):
            cards = pages[part : part + PART]
            key = f"{atlas.layer}-{part // PART}"
            files[f"data/{key}.js"] = f"musaePart({_json(key)},{_json(cards)});"
    heard = sorted({int(c) for atlas in atlases for c in np.unique(atlas.examples) if c >= 0})
    first = atlases[0]
    clips = [
        {"name": clip["name"], "caption": clip["caption"],
         "seconds": round(clip["frames"] / first.frame_rate, 3)}
        for clip in first.clips
    ]  # fmt: skip
    if sound is not None:
        for clip in heard:
            files[f"audio/{clip}.mp3"] = _mp3(sound, clip)
            clips[clip]["sound"] = f"audio/{clip}.mp3"
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(name.encode() + (data.encode() if isinstance(data, str) else data))
    version = digest.hexdigest()[:8]
    for clip in clips:
        if "sound" in clip:
            clip["sound"] += f"?v={version}"
    groups = list(dict.fromkeys(group for *_, group in concepts))
    index = {
        "title": title, "version": version, "part": PART, "frames": first.n_rows, "clips": clips,
        "concepts": concepts, "groups": _by_size(groups, layers, concepts), "layers": layers,
        "best": _best(atlases, number),
    }  # fmt: skip
    for path in (page.__file__, __file__):
        for asset in sorted(Path(path).parent.glob("*.css")) + sorted(HERE.glob("*.js")):
            files[f"assets/{asset.name}"] = asset.read_text(encoding="utf-8")
    files["index.html"] = _page(title, layers, len(first.clips), version)
    files["data/index.js"] = f"musaeIndex({_json(index)});"
    for name, data in files.items():  # the index last
        atomic_write(folder / name, data)
    for kind in ("data", "audio"):
        for old in (folder / kind).glob("*"):
            if f"{kind}/{old.name}" not in files:
                old.unlink()
    return folder / "index.html"


def _by_size(groups: list[str], layers: list[dict], concepts: list[list[str]]) -> list[str]:
    """Groups of concepts, those that most features follow first: they get colours on the map."""
    count = dict.fromkeys(groups, 0)
    for layer in layers:
        for follows in layer["follows"]:
            if follows:
                count[concepts[follows[0]][2]] += 1
    return sorted(groups, key=lambda group: -count[group])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _sound(sound: Any, clip: int) -> tuple[np.ndarray, int]:
    found = sound(clip) if callable(sound) else sound[clip]
    samples, rate = players.mono(*found) if isinstance(found, tuple) else players.mono(found)
    [gain] = players.matching_gains([(samples, rate)], match=False)
    return samples * np.float32(10 ** (gain / 20)), rate


def _mp3(sound: Any, clip: int) -> bytes:
    return players.mp3(*_sound(sound, clip), kbps=KBPS)


def _page(title: str, layers: list[dict], n_clips: int, version: str) -> str:
    alive = sum(len(layer["ids"]) for layer in layers)
    many = len(layers) > 1
    options = lambda pairs: "".join(  # noqa: E731
        f'<option value="{value}">{escape(text)}</option>' for value, text in pairs
    )
    layer = options([("", "all layers"), *((i, x["layer"]) for i, x in enumerate(layers))])
    shares = (0.0001, 0.001, 0.01, 0.05, 0.25)
    low = options([(0, "0"), *((s, f"{100 * s:g} %") for s in shares)])
    high = options([*((s, f"{100 * s:g} %") for s in shares[1:]), (1, "100 %")])
    high = high.replace('value="1"', 'value="1" selected')
    auc = options([(0, "any"), *((a, f"{a:.2f}") for a in (0.6, 0.7, 0.8, 0.9, 0.95))])
    sort = options([
        ("auc", "AUC, highest first"), ("often", "fires most often"),
        ("seldom", "fires least often"), ("peak", "strongest activation"), ("number", "number"),
    ])  # fmt: skip
    of = f"{alive:,} features" + (
        f" of {len(layers)} layers" if many else f" of {layers[0]['hook']}"
    )
    layer = f'<label>Layer <select id="layer">{layer}</select></label>' if many else ""
    heads = "<span>feature</span>" + ("<span>layer</span>" if many else "")
    assets = "".join(
        f'<link rel="stylesheet" href="assets/{name}.css?v={version}">'
        for name in ("page", "feature", "app")
    )
    scripts = "".join(
        f'<script src="{name}.js?v={version}"></script>'
        for name in ("assets/feature", "assets/app", "data/index")
    )
    return f"""<!doctype html>
<html lang="en" data-view="home">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
{assets}
</head>
<body class="{"layers" if many else ""}">
<a class="skip" href="#reading">Skip to the text</a>
<header><h1><a href="#">{escape(title)}</a></h1><p>{escape(of)}, over {n_clips:,} clips</p></header>
<div class="columns">
<nav class="musae" aria-label="Features">
<form id="filters" role="search" autocomplete="off">
<label class="full">Search <input id="search" type="search" placeholder="drum, chord root: G, or a number"></label>
{layer}<label>Concept <select id="concept"><option value="">any</option></select></label>
<label>AUC at least <select id="auc">{auc}</select></label>
<label>Fires in at least <select id="low">{low}</select></label>
<label>Fires in at most <select id="high">{high}</select></label>
<label>Sort <select id="sort">{sort}</select></label>
<label class="check full"><input id="kept" type="checkbox" checked> Only what passes S1’s filter (rate 1–25 %)</label>
</form>
<a class="jump" href="#home">To the map and the concepts</a>
<p id="count" role="status"></p>
<div class="heads" aria-hidden="true">{heads}<span>follows</span><span>AUC</span><span>fires in</span></div>
<ol id="list"></ol>
<button id="more" type="button" hidden>Show more</button>
<noscript>This page needs JavaScript.</noscript>
</nav>
<main id="reading">
<p id="said" class="unseen" role="status"></p>
<p id="missing"></p>
<div class="walk"><a href="#">Back to the list</a><a id="previous" hidden>Previous</a><a id="next" hidden>Next</a></div>
<article id="feature" class="musae musae-feature" aria-label="Feature"></article>
<section id="home" class="musae" aria-label="Overview"></section>
</main>
</div>
{scripts}
</body>
</html>
"""  # noqa: E501


# -- in a notebook ---------------------------------------------------------------------------------


def card(atlas: FeatureAtlas, feature: int, sound: Any = None) -> HTML:
    """One feature as HTML that stands alone: see `FeatureAtlas.show`."""
    data = _whole(atlas, feature, sound)
    said = f"Feature {feature}, layer {atlas.layer}."
    # Inside a script only "</" and "<!--" can end the text early.
    inside = _json(data).replace("<", "\\u003c")
    style = page._asset("explorer/feature.css")
    script = page._asset("explorer/feature.js")
    body = f'<p>{escape(said)}</p><script type="application/json">{inside}</script>'
    html = page.wrap("feature", body, 'data-lm-suppress-shortcuts="true"')
    return HTML(f"<style>{style}</style>{html.data}<script>{script}</script>")


def _whole(atlas: FeatureAtlas, feature: int, sound: Any) -> dict[str, Any]:
    """Everything feature.js draws, of one feature, with its sound inside."""
    concepts = _concepts([atlas])
    number = {name: i for i, (name, *_) in enumerate(concepts)}
    [follows] = _followed(atlas, np.array([feature]))
    data = _card(atlas, feature, follows, number)
    for example in data["examples"]:
        clip = atlas.clips[example["clip"]]
        example |= {"name": clip["name"], "caption": clip["caption"],
                    "seconds": round(clip["frames"] / atlas.frame_rate, 3)}  # fmt: skip
        if sound is not None and example["kind"] == "top":  # each weighs 65 kB in the cell
            encoded = base64.b64encode(_mp3(sound, example["clip"])).decode()
            example["sound"] = f"data:audio/mpeg;base64,{encoded}"
    near = {f for name in ("near", "together") for f, _ in data[name]}
    words = atlas.to_frame(near)["concept"].to_dict()

    def listed(pairs: list, layer: str) -> list:
        mine = layer == atlas.layer
        return [[layer, f, value, words.get(f, "") if mine else ""] for f, value in pairs]

    return data | {
        "layer": atlas.layer, "name": atlas.names[feature], "known": bool(concepts),
        "density": _number(atlas.density[feature]), "rate": _number(atlas.rate[feature]),
        "peak": _number(atlas.peak[feature]), "kept": bool(atlas.kept()[feature]),
        "follows": [[*concepts[c][:2], auc] for c, auc in data["follows"]],
        "marked": concepts[data["marked"]][0] if data["marked"] >= 0 else "",
        "relatives": [
            ["Like directions (cosine)", listed(data["near"], atlas.layer)],
            ["Fire together (phi)", listed(data["together"], atlas.layer)],
            *([f"The same in layer {layer} (correlation)", listed(pairs, layer)]
              for layer, pairs in data["matches"].items()),
        ],
    }  # fmt: skip


def browse(atlas: FeatureAtlas, sound: Callable | Any = None) -> Any:
    """Search, sort and listen with ipywidgets; see `FeatureAtlas.browse`."""
    import ipywidgets as widgets

    drawn = functools.cache(lambda feature: card(atlas, feature, sound))
    search = widgets.Text(placeholder="drum, chord root: G, or a number", description="Search")
    sort = widgets.Dropdown(options=["auc", "density", "rate", "peak"], description="Sort")
    kept = widgets.Checkbox(value=True, description="only what passes S1's filter")
    found = widgets.Select(rows=12, description="Features", layout={"width": "34rem"})
    shown = widgets.Output()
    table = atlas.to_frame()[atlas.fires]

    def update(_: Any = None) -> None:
        rows = atlas.search(search.value, len(atlas)) if search.value.strip() else table
        rows = rows[rows["kept"]] if kept.value else rows
        rows = rows.sort_values(sort.value, ascending=False, kind="stable")
        what = np.where(rows["name"] != "", rows["name"], rows["concept"])
        found.options = [
            (f"{f} · {name or '–'} · AUC {auc:.2f} · fires in {density:.2%}", f)
            for f, name, auc, density in zip(
                rows.index, what, rows["auc"], rows["density"], strict=True
            )
        ]

    def show(change: Any) -> None:
        if change["new"] is not None:
            shown.outputs = ()
            shown.append_display_data(drawn(change["new"]))

    for control in (search, sort, kept):
        control.observe(update, "value")
    found.observe(show, "value")
    update()
    if found.options:
        found.index = 0
    box = widgets.VBox([widgets.HBox([search, sort, kept]), found, shown])
    return _Browser(box, "" if found.value is None else drawn(found.value).data)


class _Browser:
    """A widget, with a static form for pages behind which no kernel runs."""

    def __init__(self, box: Any, static: str) -> None:
        self.box, self._static = box, static

    def _repr_mimebundle_(self, **settings: Any) -> dict[str, Any]:
        return self.box._repr_mimebundle_(**settings) | {"text/html": self._static}
