"""The steering desk: turn a feature and compare, by ear, with what would have been (notebook 10).

One object, two forms. In JupyterLab `Desk` is a panel of widgets that plays what is asked of it:
any feature, strength, window, prompt and seed. On a published page, behind which no kernel runs, it
is the same choice over a grid that the notebook rendered: features × strengths × prompts.

Both compare a turned row with the untouched row of the same random numbers, at equal loudness
(ITU-R BS.1770-4). Where loudness is the point, the page can give the levels back.
"""

from __future__ import annotations

import base64
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from html import escape
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from IPython.display import HTML

from musae_utils.music import measure
from musae_utils.show import page, players

if TYPE_CHECKING:
    from musae_utils.features import FeatureAtlas
    from musae_utils.models import Generation, MusicModel
    from musae_utils.sae import SAE

KBPS = 40  # of the grid's sound: five seconds are 25 KB


class _Grid(NamedTuple):
    """All that a page shows: a row of `played` for each (prompt, feature or None, strength)."""

    played: Generation
    rows: list[tuple[int, int | None, float]]
    values: list[dict[str, float]]


class Desk:
    """Features to be turned, as widgets and as a page.

    Parameters
    ----------
    model : MusicModel
    sae : SAE
    atlas : FeatureAtlas
        Of this SAE: it knows how strongly features fire (β).
    features : mapping of int to str
        The features of the grid, each with its label.
    prompts : sequence of (str or None)
        Of the grid.
    strengths : sequence of float
        Of the grid; 0 comes by itself.
    seconds : float
    seed : int
    measured : callable
        From (samples, sample rate) to named numbers, which stand below the players.
    folder : str or Path, optional
        A run folder that keeps the grid's codes.

    Raises
    ------
    ValueError
        No features, prompts or strengths; what `Knob` and `sweep` refuse.

    Examples
    --------
    >>> Desk(model, sae, atlas, {11: "with drums"}, ["slow piano"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: MusicModel,
        sae: SAE,
        atlas: FeatureAtlas,
        features: Mapping[int, str],
        prompts: Sequence[str | None],
        strengths: Sequence[float] = (0.5, 1.0, 2.0),
        seconds: float = 5.0,
        seed: int = 0,
        measured: Callable[[np.ndarray, int], Mapping[str, float]] = measure.describe,
        folder: Any = None,
    ) -> None:
        from musae_utils.labels import clean

        if not features or not prompts or not any(strengths):
            raise ValueError("A desk needs a feature, a prompt and a strength other than 0.")
        self.model, self.sae, self.atlas = model, sae, atlas
        self.features = {int(f): clean(label) for f, label in features.items()}
        self.prompts = [prompt and clean(prompt, 600) for prompt in prompts]
        self.strengths = sorted({0.0, *map(float, strengths)})
        self.seconds, self.seed, self.measured, self.folder = seconds, seed, measured, folder
        self._knob(next(iter(self.features)), 1.0)  # whatever is wrong is said at once

    def _knob(self, feature: int, strength: float, window: Any = None) -> Any:
        from musae_utils.steering import Knob

        return Knob(self.sae, feature, strength, peak=self.atlas, window=window)

    def _values(self, samples: np.ndarray) -> dict[str, float]:
        found = self.measured(samples, self.model.sample_rate)
        return {str(name): float(value) for name, value in found.items()}

    @cached_property
    def grid(self) -> _Grid:
        """All rows, played in one sweep when they are first needed."""
        from musae_utils.steering import sweep

        rows = []
        for p in range(len(self.prompts)):
            rows.append((p, None, 0.0))
            rows += [(p, f, s) for f in self.features for s in self.strengths if s]
        played = sweep(
            self.model, [self.prompts[p] for p, _, _ in rows],
            [None if f is None else self._knob(f, s) for _, f, s in rows],
            self.seconds, self.seed, folder=self.folder,
        )  # fmt: skip
        return _Grid(played, rows, [self._values(samples) for samples in played.audio.numpy()])

    def static(self) -> HTML:
        """The grid as HTML that stands alone."""
        played, rows, values = self.grid
        sounds = [(samples, played.sample_rate) for samples in played.audio.numpy()]
        gains = np.array(players.matching_gains(sounds))
        at = {row: i for i, row in enumerate(rows)}
        features = list(self.features)
        data = {
            "strengths": [_number(s, 6) for s in self.strengths],
            "features": [self._named(f) for f in features],
            "at": [
                [[at[p, f if s else None, s] for s in self.strengths] for f in features]
                for p in range(len(self.prompts))
            ],
            "names": list(values[0]),
            "sounds": [
                {
                    "data": _mp3(samples * np.float32(10 ** (gain / 20)), rate),
                    # What undoes the matching, as a volume of at most 1.
                    "level": float(10 ** ((gains.min() - gain) / 20)),
                    "values": [_number(value) for value in found.values()],
                }
                for (samples, rate), gain, found in zip(sounds, gains, values, strict=True)
            ],
        }  # fmt: skip
        inside = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        inside = inside.replace("<", "\\u003c")
        most = len(self.strengths) - 1
        first = min(self.strengths.index(0) + 1, most)
        body = f"""<div class="controls">
<label>Feature <select data-is="feature" autocomplete="off">{_options(data["features"])}</select></label>
<label>Prompt <select data-is="prompt" autocomplete="off">{_options(self.prompts)}</select></label>
<label>Strength <b data-is="said" aria-hidden="true"></b><input data-is="strength" type="range" min="0" max="{most}" step="1" value="{first}" autocomplete="off"></label>
<label class="check"><input data-is="matched" type="checkbox" checked autocomplete="off"> Equally loud</label>
</div>
<div class="pair" role="group" aria-label="Compare">
<div><b>1 Untouched</b><audio data-is="plain" controls aria-label="Untouched"></audio></div>
<div><b data-is="name">2 Turned</b><audio data-is="turned" controls aria-label="Turned"></audio></div>
</div>
<p class="js keys muted">Inside the desk, <kbd>1</kbd> and <kbd>2</kbd> switch between the two without losing the place.</p>
<div class="scroll"><table aria-label="Measured"><thead><tr><td></td><th scope="col">untouched</th><th scope="col">turned</th></tr></thead><tbody data-is="values"></tbody></table></div>
<p class="unseen" role="status" data-is="status"></p><noscript>The desk needs JavaScript.</noscript>
<script type="application/json">{inside}</script>"""  # noqa: E501
        desk = page.wrap("desk", body, 'data-lm-suppress-shortcuts="true"')
        style, script = page._asset("desk.css"), page._asset("desk.js")
        return HTML(f"<style>{style}</style>{desk.data}<script>{script}</script>")

    def _named(self, feature: int) -> str:
        return f"{feature} · {self.features[feature]}" if self.features[feature] else str(feature)

    @cached_property
    def widgets(self) -> SimpleNamespace:
        """The live desk: its controls by name, and the ``box`` that holds them."""
        import ipywidgets

        style = {"description_width": "5rem"}
        wide = {"width": "34rem", "max_width": "100%"}
        names = [self._named(f) for f in self.features]
        end = float(self.seconds)
        w = SimpleNamespace(
            feature=ipywidgets.Combobox(
                value=names[0], options=names, description="Feature", style=style, layout=wide,
                placeholder=f"a number from 0 to {self.sae.config.d_sae - 1}",
            ),
            strength=ipywidgets.FloatSlider(
                value=1, min=-4, max=8, step=0.1, description="Strength", style=style, layout=wide,
                continuous_update=False,
            ),
            window=ipywidgets.FloatRangeSlider(
                value=(0, end), min=0, max=end, step=0.1, description="Window, s", style=style,
                layout=wide,
            ),
            prompt=ipywidgets.Text(
                value=self.prompts[0] or "", description="Prompt", style=style, layout=wide,
                placeholder="none",
            ),
            seed=ipywidgets.IntText(value=self.seed, description="Seed", style=style),
            play=ipywidgets.Button(description="Turn and play", button_style="primary"),
            progress=ipywidgets.IntProgress(layout={"visibility": "hidden"}),
            said=ipywidgets.HTML(),
            shown=ipywidgets.Output(),
        )  # fmt: skip
        w.play.on_click(self._turn)
        controls = (w.feature, w.strength, w.window, w.prompt, w.seed)
        w.box = ipywidgets.VBox([*controls, ipywidgets.HBox([w.play, w.progress]), w.said, w.shown])
        return w

    def _turn(self, _: Any = None) -> None:
        """Play what the widgets ask for, beside the untouched row; say in words what is wrong."""
        from musae_utils.steering import sweep

        w, notes = self.widgets, []
        w.said.value, w.shown.outputs, w.play.disabled = "", (), True
        w.progress.value = 0
        w.progress.max = round(self.seconds * self.model.frame_rate) + self.model.n_codebooks - 1
        w.progress.layout.visibility = "visible"

        def step(*_: Any) -> None:
            w.progress.value += 1

        counter = self.model.lm.register_forward_hook(step)
        try:
            number = re.match(r"\s*(\d+)\b", w.feature.value)
            if not number:
                raise ValueError(
                    f"A feature is a number from 0 to {self.sae.config.d_sae - 1}, with or without "
                    f"its label behind it; not {w.feature.value!r}."
                )
            whole = w.window.value == (w.window.min, w.window.max)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                knob = self._knob(
                    int(number[1]), w.strength.value, None if whole else w.window.value
                )
                prompt = w.prompt.value.strip() or None
                played = sweep(self.model, prompt, [None, knob], self.seconds, w.seed.value)
            notes = [str(one.message) for one in caught if one.category is UserWarning]
            w.shown.append_display_data(self._compared(played, knob))
        except (ValueError, RuntimeError) as error:
            notes = [str(error)]
        finally:
            counter.remove()
            w.play.disabled, w.progress.layout.visibility = False, "hidden"
        w.said.value = "".join(f'<p role="alert">{escape(note)}</p>' for note in notes)

    def _compared(self, played: Generation, knob: Any) -> HTML:
        plain, turned = played.audio.numpy()
        name = f"feature {knob.feature}, strength {knob.strength:g}"
        rows: dict[str, dict[str, Any]] = {"sound": {"untouched": plain, name: turned}}
        for side, samples in (("untouched", plain), (name, turned)):
            for what, value in self._values(samples).items():
                rows.setdefault(what, {})[side] = value
        return players.ab_table(rows, played.sample_rate, played.prompts[0] or "no prompt")

    def _repr_mimebundle_(self, **settings: Any) -> dict[str, Any]:
        """Widgets where there is a kernel, the grid where there is none."""
        live = self.widgets.box._repr_mimebundle_(**settings)
        return live | {"text/html": self.static().data}


def _number(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:g}".replace("-", "−")


def _mp3(samples: np.ndarray, rate: int) -> str:
    encoded = base64.b64encode(players.mp3(samples, rate, KBPS)).decode()
    return f"data:audio/mpeg;base64,{encoded}"


def _options(names: Sequence[str | None]) -> str:
    return "".join(
        f'<option value="{i}">{escape(name or "no prompt")}</option>'
        for i, name in enumerate(names)
    )
