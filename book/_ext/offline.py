"""A site that asks no other host for anything: formulas as MathML, no outside scripts.

Browsers draw MathML themselves and screen readers speak it; docutils converts TeX to it.
"""

from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)


def mathml(node, as_block):
    """Return a formula as MathML; a formula that cannot be converted is a warning, never lost."""
    tex = node.astext().strip()
    if as_block and "\\\\" in tex and "\\begin" not in tex:
        tex = f"\\begin{{aligned}}{tex}\\end{{aligned}}"
    try:
        return tex2mathml(tex, as_block=as_block)
    except (MathError, SyntaxError, ValueError) as error:
        logger.warning("formula %r cannot be shown: %s", tex, error, location=node)
        return f"<code>{tex.replace('&', '&amp;').replace('<', '&lt;')}</code>"


def visit_inline(translator, node):
    translator.body.append(f'<span class="math">{mathml(node, False)}</span>')
    raise SkipNode


def visit_display(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})</span>')
    translator.body.append(mathml(node, True) + "</div>")
    raise SkipNode


def drop_outside_scripts(app, pagename, templatename, context, doctree):
    """Leave out what other hosts serve, and thebe, which would fetch itself from one."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _outside(file)]


def _outside(file):
    name = str(getattr(file, "filename", file) or "")
    body = str(getattr(file, "attributes", {}).get("body", ""))
    far = name.startswith(("http:", "https:", "//"))
    return far or "thebe" in name or "thebe" in body.lower()


def slim(app, error):
    """Spare each page 1.5 MB: the theme's icons also come as a font, so their script is emptied."""
    static = Path(app.outdir) / "_static"
    script = static / "scripts" / "fontawesome.js"
    if script.exists():
        script.write_text("/* the icons are a font: see pydata-sphinx-theme.css */\n")
    for leftover in [*static.rglob("*.map"), *static.rglob("*.ttf")]:
        leftover.unlink()


def setup(app):
    if "mathml" in app.registry.html_inline_math_renderers:
        raise ExtensionError("another extension already renders MathML")
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    app.connect("html-page-context", drop_outside_scripts, priority=900)
    app.connect("build-finished", slim)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
