"""The site: what is built, and what a browser makes of it. One build serves all tests."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import translations
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))
KINDS = (  # a page of each kind
    "index.html",
    "notebooks/appendix/01a_ladder.html",
    "results/REPORT.html?chapter=03_gate_analysis",
    "explorer.html",
    "docs/glossary.html",
    "docs/teachers.html",
    "search.html?q=gate",
    *(f"notebooks/{path.stem}.html" for path in CHAPTERS if path.parent.name == "notebooks"),
)
CHINESE = re.compile("[\u4e00-\u9fff]")


class Elements(HTMLParser):
    """The elements of a page, as (tag, attributes)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def elements(site: Path) -> Callable[[Path], Elements]:
    return functools.cache(Elements)


def page_of(notebook: Path, site: Path) -> Path:
    return site / notebook.relative_to(ROOT).with_suffix(".html")


def test_every_link_inside_the_site_leads_somewhere(site, elements):
    broken = []
    pages = [p for p in site.rglob("*.html") if "_static" not in p.relative_to(site).parts]
    assert len(pages) > len(CHAPTERS)
    for path in pages:
        for attributes in [a for _, a in elements(path).found]:
            for link in filter(None, (attributes.get("href"), attributes.get("src"))):
                parts = urlsplit(link)
                if parts.scheme or parts.netloc:
                    assert attributes.get("href"), f"{path} would load {link}"
                    continue
                target = path.parent / unquote(parts.path) if parts.path else path
                if not target.exists():
                    broken.append(f"{path.relative_to(site)}: {link}")
                elif parts.fragment and target.suffix == ".html":
                    ids = [a.get("id") for _, a in elements(target.resolve()).found]
                    if parts.fragment not in ids:
                        broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_keeps_its_pictures_and_formulas_but_no_solution(notebook, site, elements):
    page = elements(page_of(notebook, site))
    cells = nbformat.read(notebook, 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [o.metadata["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    assert texts
    assert [image.get("alt") for image in page.all("img")] == texts
    chinese = elements(page_of(notebook, site / "zh"))
    assert len(texts) == len([i for i in chinese.all("img") if CHINESE.search(i["alt"])])
    assert len(chinese.all("math")) == len(page.all("math"))
    text = page_of(notebook, site).read_text("utf-8")
    formulas = [m for c in cells if c.cell_type == "markdown" for m in c.source.split("$$")[1::2]]
    assert page.all("math").count(
        {"xmlns": "http://www.w3.org/1998/Math/MathML", "display": "block"}
    ) == len(formulas)
    assert "merror" not in text
    sources = "".join(cell.source for cell in cells)
    assert ("your code here" in text) == ("### BEGIN SOLUTION" in sources)
    assert "BEGIN SOLUTION" not in text


def test_students_get_no_solution_to_download_either(site):
    for notebook in CHAPTERS:
        copy = (site / "_sources" / notebook.relative_to(ROOT)).read_text("utf-8")
        assert "BEGIN SOLUTION" not in copy


def test_the_report_has_every_row_with_its_figure_and_record(site, elements):
    with (ROOT / "results" / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = elements(site / "results" / "REPORT.html")
    assert len([a for a in page.all("tr") if "data-kind" in a]) == len(rows)
    links = [a["href"] for a in page.all("a") if a["href"].startswith(("cpu/", "full/"))]
    assert links == [row[name] for row in rows for name in ("figure", "record")]


def test_every_message_has_a_translation_that_is_not_stale(site):
    assert translations.lacking(site.parent / "pot") == [], "`make translations`, then translate"


def test_a_translation_takes_over_new_numbers_where_it_is_sure_which_is_which():
    old, new = ["3", "20", "0.5"], ["4", "20", "0.71"]
    assert translations.renumbered("3 里的 20，0.5", old, new) == "4 里的 20，0.71"
    assert translations.renumbered("20 个中的 3 个，0.5", old, new) == "20 个中的 4 个，0.71"
    assert translations.renumbered("20 个中的三个，0.5", old, new) is None
    assert translations.renumbered("20 对 3、3", ["3", "3", "20"], ["4", "5", "20"]) is None


def test_the_chinese_pages_show_no_mark_of_emphasis(site):
    for path in [p for p in (site / "zh").rglob("*.html") if "_static" not in p.parts]:
        shown = re.sub(r"(?s)<(pre|code|script|math|title)\b.*?</\1>", "", path.read_text("utf-8"))
        assert "**" not in shown, path


# in a browser


@pytest.mark.parametrize("home, words", [("", "forget gate"), ("zh/", "遗忘门")])
def test_the_search_finds_the_forget_gate(home: str, words: str, page: Page) -> None:
    page.goto(f"{home}index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("document.querySelector('#search-results .context')?.textContent")
    links = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
    assert any(f"{home}notebooks/01_lstm_operator.html" in link for link in links)
    assert not any("/labkit/" in link for link in links)


def test_a_page_leads_to_itself_in_the_other_language(page: Page) -> None:
    path = "results/REPORT.html?chapter=03_gate_analysis"
    page.goto(path)
    page.get_by_role("link", name="中文").click()
    page.wait_for_url(f"**/zh/{path}")
    page.get_by_label("判定").select_option(label="不成立")
    assert set(shown(page, 6)) == {"不成立"}
    page.get_by_role("link", name="English").click()
    page.wait_for_url(lambda url: "/zh/" not in url)
    assert set(shown(page, 6)) == {"fails"}


def shown(page: Page, column: int) -> list[str]:
    return page.locator(f"#rows tbody tr:not([hidden]) td:nth-child({column})").all_inner_texts()


def test_the_report_filters_and_sorts_by_keyboard(page: Page) -> None:
    with (ROOT / "results" / "report.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["chapter"] == "03_gate_analysis"]
    claims = [row for row in rows if row["kind"] == "claim"]
    page.goto("results/REPORT.html?chapter=03_gate_analysis")
    assert len(shown(page, 1)) == len(rows) > len(claims)
    page.get_by_label("kind").select_option("claim")
    assert shown(page, 2) == [row["what"] for row in claims]
    page.get_by_label("verdict").select_option("fails")
    assert set(shown(page, 6)) == {"fails"}
    assert page.url.endswith("?chapter=03_gate_analysis&kind=claim&verdict=fails")
    page.get_by_role("button", name="show all").press("Enter")
    page.wait_for_function("!document.querySelector('#rows tr[hidden]')")
    page.get_by_label("at least").fill("20")
    assert min(map(int, shown(page, 5))) >= 20
    for order in ("ascending", "descending"):
        page.get_by_role("button", name="seeds").press("Enter")
        head = page.locator(f'#rows th[aria-sort="{order}"]')
        assert head.inner_text().startswith("seeds")
        values = [int(n) for n in shown(page, 5)]
        assert values == sorted(values, reverse=order == "descending")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_page_is_accessible_in_both_languages_and_themes(
    kind: str, page: Page
) -> None:
    for home, theme in (("", "light"), ("zh/", "dark")):
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # no colours halfway
        page.goto(home + kind)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        options = {"preload": False, "resultTypes": ["violations"]}  # it would ask for style sheets
        found = Axe().run(page, options=options).response["violations"]
        serious = [
            (v["id"], node["target"], node["failureSummary"])
            for v in found
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"][:3]
        ]
        assert serious == []


def test_formulas_are_drawn_with_the_font_of_the_site(page: Page) -> None:
    page.goto("notebooks/01_lstm_operator.html")
    page.wait_for_function("document.fonts.status == 'loaded'")
    assert page.evaluate(
        "[...document.fonts].some(f => f.family.includes('Lab Math') && f.status == 'loaded')"
    )
    height = "m => m.getBoundingClientRect().height"
    heights = page.locator("div.math math").evaluate_all(f"all => all.map({height})")
    assert min(heights) > 15


def test_paper_is_light(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto("docs/glossary.html")
    for media, theme in (("print", "light"), ("screen", "dark")):
        page.emulate_media(media=media)
        page.wait_for_function(f"document.documentElement.dataset.theme == '{theme}'")
