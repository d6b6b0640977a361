"""How Sphinx makes the site from what build.py has staged. Nothing is executed."""

from __future__ import annotations

import gettext
import hashlib
import json
import re
from base64 import b64decode
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish
from sphinx.transforms import SphinxTransform

chinese = tags.has("zh")  # noqa: F821 - Sphinx defines it
language = "zh_CN" if chinese else "en"
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
html_extra_path = [] if chinese else ["../build/site/extra"]
templates_path = ["templates"]
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_context = {"default_mode": "auto", "chinese": chinese}
html_css_files = ["lab.css"]
html_js_files = [("lab.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_theme_options = {
    "navbar_persistent": [],
    "use_fullscreen_button": False,
    "article_header_end": ["language", "article-header-buttons"],
}
pygments_style = "a11y-high-contrast-light"
locale_dirs = ["../locale"]
gettext_compact = gettext_location = False
if chinese:
    html_title = "LSTM 课程实验"
    nb_code_prompt_show, nb_code_prompt_hide = "显示代码", "隐藏代码"


def words(app: Sphinx) -> gettext.NullTranslations:
    """The translations of the page that is being read."""
    folder = app.srcdir.parent / "locale"
    return gettext.translation(app.env.docname, folder, [language], fallback=True)


class Formulas(SphinxTransform):
    """Translate the words in formulas, which Sphinx itself takes for Markdown then."""

    default_priority = 19  # before Sphinx translates the rest

    def apply(self, **_: object) -> None:
        for node in self.document.findall(nodes.math_block):
            node.rawsource = words(self.app).gettext(node.astext())
            node.children = [nodes.Text(node.rawsource)]
            node["translated"] = True


def alternative_texts(app: Sphinx, doctree: nodes.document) -> None:
    """Give each picture the text that its output carries; myst-nb names a picture by its digest.

    The text also stands below the picture, emphasised, so it is in the page's catalogue.
    """
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    translate = words(app).gettext
    cells = json.loads(path.read_text())["cells"]
    texts = {
        hashlib.sha256(b64decode(output["data"]["image/png"])).hexdigest(): translate(
            f"*{text}*"
        ).strip("*")
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


class SearchChinese(SearchEnglish):
    """Search Chinese by all pairs of neighbouring characters, which needs no dictionary."""

    lang = "zh"
    js_splitter_code = r"""var splitQuery = (query) =>
  [...query.matchAll(/\w+|(?=([\u4e00-\u9fff]{2}))/g)].map(([word, pair]) => word || pair);"""

    def split(self, text: str) -> list[str]:
        found = re.findall("([A-Za-z0-9_]+)|(?=([\u4e00-\u9fff]{2}))", text)
        return [word or pair for word, pair in found]


def setup(app: Sphinx) -> None:
    app.add_search_language(SearchChinese)
    if chinese:
        app.add_transform(Formulas)
    app.connect("doctree-read", alternative_texts)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
