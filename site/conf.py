"""How Sphinx makes the site from what build.py has staged. Nothing is executed."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

project = author = "LSTM course lab"
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables in Markdown outputs are tables
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure", "myst.header"]  # "!" of IPython; skipped levels

html_theme = "sphinx_book_theme"
html_title = project
html_show_copyright = html_show_sphinx = False
html_extra_path = ["../build/site/extra"]
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_context = {"default_mode": "auto"}
html_css_files = ["lab.css"]
html_js_files = [("lab.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_theme_options = {"navbar_persistent": [], "use_fullscreen_button": False}
pygments_style = "a11y-high-contrast-light"
locale_dirs = ["locale"]
gettext_compact = False


def alternative_texts(app: Sphinx, doctree: nodes.document) -> None:
    """Give each picture the text that its output carries; myst-nb names a picture by its digest."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    cells = json.loads(path.read_text())["cells"]
    texts = {
        hashlib.sha256(b64decode(output["data"]["image/png"])).hexdigest(): text
        for cell in cells
        for output in cell.get("outputs", [])
        if (text := output.get("metadata", {}).get("image/png", {}).get("alt"))
    }
    for image in doctree.findall(nodes.image):
        image.setdefault("alt", texts.get(Path(image["uri"]).stem, ""))


def formula(translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw and screen readers speak without a script."""
    block = isinstance(node, nodes.math_block)
    formula = convert(node.astext(), display="block" if block else "inline")
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", alternative_texts)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
