"""HTML that stands alone: the shared style and script, figures with alternative text, choices.

The style and script (``page.css``, ``page.js``) travel inside every element, about 12 KB, because
neither a notebook cell nor a page of the book may count on another one being there. The script
installs itself once a page.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

from IPython.display import HTML
from matplotlib.figure import Figure

INK = "#1a1b1c"
"""The colour of text and axes in our figures: used for nothing else, so that :func:`figure` can
put the page's own text colour in its place (dark on light, light on dark)."""

MAX_SVG = 250_000
MAX_PNG = 100_000


def _asset(name: str) -> str:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/|^\s*//.*?$", "", text, flags=re.S | re.M)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


_STYLE = f"<style>{_asset('page.css')}</style>"
_SCRIPT = f"<script>{_asset('page.js')}</script>"
_ids = count()


def new_id() -> str:
    """An element id that no other element of this page has."""
    return f"musae-{next(_ids)}-{id(_ids) & 0xFFFF:x}"


def wrap(kind: str, body: str, attributes: str = "") -> HTML:
    """`body` as a self-contained element of class ``musae-<kind>``."""
    return HTML(f'{_STYLE}<div class="musae musae-{kind}" {attributes}>{body}</div>{_SCRIPT}')


def inner(content: Any) -> str:
    """Markup of anything a cell can show, without its copy of the shared style and script."""
    if isinstance(content, str):
        return f"<p>{escape(content)}</p>"
    if isinstance(content, Figure):
        raise ValueError(
            "A matplotlib figure needs words for those who cannot see it: "
            "pass show.figure(fig, alt='what it shows') instead."
        )
    markup = getattr(content, "_repr_html_", lambda: None)()
    if markup is None:
        raise ValueError(
            f"Cannot show a {type(content).__name__} on a page: give text or HTML, "
            "such as show.player(...), show.figure(...) or a DataFrame."
        )
    return markup.replace(_STYLE, "").replace(_SCRIPT, "")


def choices(title: str, panels: Mapping[Any, Any], start: Any = None) -> HTML:
    """Several results, one shown at a time: the book's and the notebook's only widget.

    The results are made beforehand, so the published page shows what the notebook showed, with no
    kernel behind it. Built from radio buttons: arrow keys move, screen readers name the group,
    and it works without JavaScript. Sound that becomes hidden is paused.

    Parameters
    ----------
    title : str
        What is being chosen, as a question or a noun ("Guidance").
    panels : mapping
        Label → text, HTML (anything of this package), or an object with an HTML form.
    start : optional
        Label shown at first; the first one by default.

    Returns
    -------
    IPython.display.HTML

    Examples
    --------
    >>> choices("Layer", {layer: f"what layer {layer} knows" for layer in (0, 3)})
    <IPython.core.display.HTML object>
    """
    if not panels:
        raise ValueError("choices(...) got no panels: give at least one label and what it shows.")
    start = next(iter(panels)) if start is None else start
    if start not in panels:
        raise ValueError(f"start={start!r} is none of the labels {list(panels)}.")
    group = new_id()
    parts = []
    for i, (label, content) in enumerate(panels.items()):
        name = escape(str(label))
        checked = "checked" if label == start else ""
        parts.append(
            f'<input type="radio" name="{group}" id="{group}-{i}" {checked} autocomplete="off">'
            f'<label for="{group}-{i}">{name}</label>'
            f'<div class="panel" role="group" aria-label="{name}">{inner(content)}</div>'
        )
    legend = f"<legend>{escape(title)}</legend>"
    return wrap(
        "choices", f"<fieldset data-lm-suppress-shortcuts=true>{legend}{''.join(parts)}</fieldset>"
    )


def figure(fig: Figure, alt: str, caption: str = "") -> HTML:
    """A matplotlib figure as part of a page: sharp, in the page's colours, described in words.

    Drawn as inline SVG whose text and axes follow the light or dark theme; a figure with too many
    points for that (over 250 KB) becomes a PNG of at most 100 KB on a white ground.

    Parameters
    ----------
    fig : matplotlib.figure.Figure
    alt : str
        What the figure shows, for who cannot see it: the finding, not "a plot".
    caption : str, optional
        Printed below.

    Returns
    -------
    IPython.display.HTML
    """
    if not alt.strip():
        raise ValueError("figure(...) needs alt text: say in words what the figure shows.")
    wide = round(fig.get_figwidth() * 96)
    svg = _svg(fig)
    if len(svg) <= MAX_SVG and INK in svg:
        attributes = f'role="img" aria-label="{escape(alt)}" style="--wide:{wide}px"'
        # The theme's ink, and a blue light enough for a dark page.
        svg = svg.replace(INK, "currentColor").replace("#0072b2", "var(--blue)")
        picture = svg.replace("<svg", f"<svg {attributes}", 1)
    else:
        data = base64.b64encode(png(fig)).decode()
        picture = f'<img alt="{escape(alt)}" width="{wide}" src="data:image/png;base64,{data}">'
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return wrap("figure", f'<figure><div class="scroll">{picture}</div>{below}</figure>')


def _svg(fig: Figure) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    # A fixed salt: the same figure is the same text in every build of the book.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "musae", "savefig.dpi": 144}):
        fig.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"(data:image/png;base64,)([^\"]+)", _repack, svg)
    # Hundredths of a point are finer than any screen.
    svg = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    # Ids are shared by the whole page once the picture is inline.
    mine = new_id()
    svg = re.sub(r'\bid="', f'id="{mine}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{mine}-", svg)
    return re.sub(r"\s*\n\s*", " ", svg)


def _repack(match: re.Match) -> str:
    """An embedded picture (a spectrogram, say) as WebP, where that saves more than it loses."""
    from PIL import Image

    raw = base64.b64decode(match[2])
    if len(raw) < 20_000:
        return match[0]
    out = io.BytesIO()
    Image.open(io.BytesIO(raw)).save(out, "WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def png(fig: Figure) -> bytes:
    """The figure as a PNG of at most 100 KB on a white ground, coarser where it must be."""
    from PIL import Image

    for dpi in (144, 110, 80, 56):
        out = io.BytesIO()
        fig.savefig(out, format="png", dpi=dpi, facecolor="white")
        image = Image.open(out).convert("RGB").quantize(128)
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        if out.tell() <= MAX_PNG:
            break
    return out.getvalue()
