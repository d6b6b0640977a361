"""The code and data behind a result: what counts, what does not, and files written whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit.lab import code, machine, store
from labkit.lab.specification import Specification, specification

# A room beside a copy of labkit: what trains, what that imports, and what only shows results.
ROOM = {
    "__init__": "NAME = 'toy'\n",
    "training": "import labkit.toy.data\nfrom labkit.lab import machine\n"
    "from labkit.toy import steps\n",
    "data": "def load():\n    from labkit.measure import statistics\n",
    "steps": "from .deep import SCALE\n\ndef step(x):\n    '''Twice x.'''\n    return SCALE * x\n",
    "deep": "SCALE = 2  # why not\n",
    "figures": "from labkit.toy import training\n",
}
INSIDE = [
    "labkit.measure.statistics",
    *(f"labkit.toy.{m}" for m in "data deep steps training".split()),
]
OUTSIDE = ["labkit.lab.machine", "labkit.lab.store", "labkit.measure.claims", "labkit.toy.figures"]


@specification
class Toy(Specification):
    seed: int = 0


Toy.__module__ = "labkit.toy.training"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of labkit with the room `toy`."""
    package = tmp_path / "labkit"
    shutil.copytree(code.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "toy").mkdir()
    for name, source in ROOM.items():
        (package / "toy" / f"{name}.py").write_text(source)
    monkeypatch.setattr(code, "PACKAGE", package)
    return package


@pytest.fixture
def key(package, monkeypatch) -> Iterator[Callable[[], str]]:
    """The key of a training as a process that starts now would have it."""

    def of_a_new_process() -> str:
        monkeypatch.setattr(code, "_loaded", {})
        store.code_in_memory.cache_clear()
        return store.key(Toy())

    yield of_a_new_process
    store.code_in_memory.cache_clear()


def edit(package: Path, module: str, change: str = "\nCHANGED = True\n") -> None:
    path = package.parent.joinpath(*module.split(".")).with_suffix(".py")
    path.write_text(path.read_text() + change)


def test_the_closure_is_all_that_a_module_imports_but_for_the_lab_itself(package):
    assert list(code.closure(["labkit.toy.training"])) == INSIDE
    assert list(code.closure(["labkit.toy"])) == ["labkit.toy"]
    assert "labkit.toy.training" in code.closure(["labkit.toy.figures"])
    with pytest.raises(ValueError, match=r"there is no module 'labkit\.absent'"):
        code.closure(["labkit.absent"])


@pytest.mark.parametrize("module", INSIDE)
def test_any_change_in_the_closure_changes_the_key(package, key, module):
    before = key()
    edit(package, module, "\n# only a comment\n")
    assert key() == before
    edit(package, module)
    assert store.key(Toy()) == before  # this process still holds the old code
    assert key() != before


@pytest.mark.parametrize("module", OUTSIDE)
def test_no_change_outside_of_the_closure_changes_the_key(package, key, module):
    before = key()
    edit(package, module)
    assert key() == before


def test_the_code_behind_a_chapter_is_its_cells_and_their_closure(package, monkeypatch):
    monkeypatch.setattr(machine, "NOTEBOOKS", package.parent)

    def digests(*sources: str) -> dict[str, str]:
        cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
        text = json.dumps({"cells": [{"cell_type": "markdown", "source": sources}, *cells]})
        (package.parent / "01_toy.ipynb").write_text(text, "utf-8-sig")  # as some editors save it
        return code.chapter_code("01_toy")

    before = digests("from labkit.toy import training", "x = 1  # one\n")
    assert list(before) == ["notebook", *INSIDE]
    assert digests("from labkit.toy import training\n", "# two\nx = 1") == before
    changed = digests("from labkit.toy import training", "x = 2")
    assert {name for name in changed if changed[name] != before[name]} == {"notebook"}
    assert list(digests("from . import x", "%magic")) == ["notebook"]
    (package.parent / "01_toy.ipynb").write_text('{"cells": 3}')
    with pytest.raises(ValueError, match=r"01_toy\.ipynb cannot be read"):
        code.chapter_code("01_toy")


@pytest.mark.parametrize(
    "one, other",
    [
        ("x = 1  # one", "# another\n\nx = 1   "),
        ("'''Doc.'''\nx = 1", "x = 1"),
        ("class A:\n    '''Doc\n\n    of A.'''  # one\n    x = 1", "class A:\n    x = 1"),
        ("async def f():\n    'Doc'\n    return 1", "async def f():\n    return 1\n"),
        ("x = ('a'  # one\n     'b')", "x = ('a'\n     'b')"),
        ("x = '\u2028'\ny = 1  # one", "x = '\u2028'\ny = 1  # two"),
        ("x = 1\r\ny = 2\r\n", "x = 1\ny = 2\n"),
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_count(one, other):
    assert code.stripped(one) == code.stripped(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("x = 1", "x = 1.0"),
        ("x = 'a # one'", "x = 'a # two'"),
        ("def f(): 'Doc'; return 1", "def f(): 'Doc'; return 2"),
        ("class A: 'Doc'", "class B: 'Doc'"),
        ("x = 1\n'''no docstring'''", "x = 1\n'''none'''"),
        ("x = '''a\n\nb'''", "x = '''a\nb'''"),
        ("x = f'''a  \n{b}'''", "x = f'''a\n{b}'''"),
        ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
        ("%matplotlib inline  # one", "%matplotlib inline  # two"),  # not Python: as it stands
    ],
)
def test_different_code_is_different(one, other):
    assert code.stripped(one) != code.stripped(other)


# data

TABLE = "[gates]\nlength = 10 # digits\n[gates.claims]\na = 'It falls.'\n[speed]\nratio = 4.3\n"


def test_data_count_by_their_bytes_and_tables_by_their_values(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "DATA", tmp_path)
    (tmp_path / "digits.txt").write_bytes(b"1 2\n")
    (tmp_path / "published.toml").write_text(TABLE)
    names = ("digits.txt", "published.toml#gates", "published.toml#gates.claims")
    before = code.data_digests(*names)
    assert before == {
        "digits.txt": code.sha256(b"1 2\n"),
        "published.toml#gates": code.sha256(b'{"claims":{"a":"It falls."},"length":10}'),
        "published.toml#gates.claims": code.sha256(b'{"a":"It falls."}'),
    }
    (tmp_path / "published.toml").write_text(TABLE.replace("10 # digits", "10").replace("4.3", "5"))
    assert code.data_digests(*names) == before


@pytest.mark.parametrize("content", [TABLE, "", "[gates", "gates = 3", "\xff"])
@pytest.mark.parametrize("entry", ["", "absent", "gates.absent", "gates.length.a"])
def test_absent_data_are_named(tmp_path, monkeypatch, content, entry):
    monkeypatch.setattr(machine, "DATA", tmp_path)
    (tmp_path / "published.toml").write_text(content, "latin-1")
    assert code.data_digest(f"published.toml#{entry}") is None
    with pytest.raises(ValueError, match=f"no published.toml#{entry} and no absent.txt in data/"):
        code.data_digests(f"published.toml#{entry}", "absent.txt")


# files


def test_a_torn_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "new" / "file"
    code.write_atomically(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # tears every file, whoever runs this
    try:
        with pytest.raises(OSError, match=r"File too large: '.*new/file'"):
            code.write_atomically(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: calls.append(name) or real(*a)
        )
    code.write_atomically(tmp_path / "ours", b"")
    assert calls == ["fsync", "replace"]
    (tmp_path / "usual").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
