"""The site in Chinese: its catalogues in locale/, which `make translations` renews.

A catalogue holds real numbers. Where a message has changed in nothing but its numbers, as generated
sentences do with each new record, its translation stays and takes over the new numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

FOLDER = Path("locale", "zh_CN", "LC_MESSAGES")
LOCALE = Path(__file__).parent / FOLDER
HEADER = """\
msgid ""
msgstr ""
"Language: zh_CN\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"

"""
WORD = re.compile("[A-Za-z]{2}")
NUMBER = re.compile(r"(?<![A-Za-z_0-9.])[-−]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


def templates(pot: Path) -> Iterator[tuple[str, Catalog]]:
    """Each page with its messages, those without a word left out."""
    for path in sorted(pot.rglob("*.pot")):
        name = path.relative_to(pot).with_suffix("").as_posix()
        if not name.startswith("labkit/"):  # code is shown as it is
            template = read_po(path.open("rb"))
            for text in [m.id for m in template if m.id and not WORD.search(m.id)]:
                template.delete(text)
            yield name, template


def write_template(path: Path, texts: Iterable[str]) -> None:
    """Write a template of those with a word; of several that differ in numbers alone, the first."""
    template, shapes = Catalog(), set()
    for text in filter(WORD.search, texts):
        if (shape := NUMBER.sub("#", text)) not in shapes:
            template.add(text)
        shapes.add(shape)
    with path.open("wb") as file:
        write_po(file, template)


def catalogue(name: str) -> Catalog:
    path = LOCALE / f"{name}.po"
    return read_po(path.open("rb"), "zh_CN") if path.exists() else Catalog("zh_CN")


def translator(name: str) -> Callable[[str], str | None]:
    """The translation of each message of a page; None where there is none, or a stale one."""
    done = {m.id: m.string for m in catalogue(name) if m.id and m.string and not m.fuzzy}
    shapes = {NUMBER.sub("#", text): text for text in done}

    def translate(text: str) -> str | None:
        old = text if text in done else shapes.get(NUMBER.sub("#", text))
        return old and renumbered(done[old], NUMBER.findall(old), NUMBER.findall(text))

    return translate


def renumbered(translation: str, old: list[str], new: list[str]) -> str | None:
    """A translation with the numbers `new` for `old`, or None where it is unsure which is which."""
    told = NUMBER.findall(translation)
    if old == new:
        return translation
    if told == old:
        numbers = iter(new)
        return NUMBER.sub(lambda _: next(numbers), translation)
    pairs = dict(zip(old, new, strict=True))
    if sorted(told) != sorted(old) or any(pairs[a] != b for a, b in zip(old, new, strict=True)):
        return None
    return NUMBER.sub(lambda number: pairs[number[0]], translation)


def compiled(pot: Path, build: Path) -> None:
    """Write below `build`, for Sphinx, what is translated."""
    for name, template in templates(pot):
        translate, ready = translator(name), Catalog("zh_CN")
        for message in template:
            if message.id and (text := translate(message.id)):
                ready.add(message.id, text)
        path = build / FOLDER / f"{name}.mo"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            write_mo(file, ready)


def lacking(pot: Path) -> list[str]:
    """The messages without a translation, and those whose translation is stale."""
    found = []
    for name, template in templates(pot):
        translate, known = translator(name), catalogue(name)
        for text in (message.id for message in template if message.id):
            if translate(text) is None:
                kind = "stale" if text in known and known[text].fuzzy else "missing"
                found.append(f"{name}: {kind}: {' '.join(text.split()[:9])}")
    return found


def renew(pot: Path) -> None:
    """Bring the catalogues up to date; a changed message keeps its old translation, as fuzzy."""
    for name, template in templates(pot):
        translate, known = translator(name), catalogue(name)
        for message in template:
            if message.id and message.id not in known and (text := translate(message.id)):
                known.add(message.id, text)
        known.update(template)
        path = LOCALE / f"{name}.po"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(HEADER.encode())
            options = {"omit_header": True, "ignore_obsolete": True, "no_location": True}
            write_po(file, known, width=100, **options)
