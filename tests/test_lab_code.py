"""The code and data behind a result: what counts, what does not, and files written whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.lab import code, machine, store
from labkit.lab.store import Specification, specification

# A room beside a copy of labkit: what trains, what that imports, and what only shows results.
ROOM = {
    "__init__": "NAME = 'toy'\n",
    "training": "import labkit.toy.data\nfrom labkit.lab import run\nfrom labkit.toy import steps",
    "data": "def load():\n    from labkit.measure import statistics\n",
    "steps": "from labkit.toy.deep import SCALE\n\ndef step(x):\n    return SCALE * x\n",
    "deep": "SCALE = 2  # why not\n",
    "figures": "from labkit.toy import training\n",
}
INSIDE = [
    "labkit.measure.statistics", "labkit.toy.data", "labkit.toy.deep", "labkit.toy.steps",
    "labkit.toy.training",
]  # fmt: skip
OUTSIDE = ["labkit.lab.machine", "labkit.lab.store", "labkit.measure.claims", "labkit.toy.figures"]


@specification
class Toy(Specification):
    seed: int = 0


Toy.__module__ = "labkit.toy.training"


def key() -> str:
    """The key of a training without what `code_in_memory` remembers."""
    store.code_in_memory.cache_clear()
    return store.key(Toy())


def key_in_a_new_process() -> str:
    code._loaded.clear()
    return key()


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of labkit with the room `toy`."""
    assert {*code.PACKAGE.rglob("*.py")} <= {*code._loaded}  # known before anything is edited
    package = tmp_path / "labkit"
    shutil.copytree(code.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "toy").mkdir()
    for name, source in ROOM.items():
        (package / "toy" / f"{name}.py").write_text(source)
    monkeypatch.setattr(code, "PACKAGE", package)
    monkeypatch.setattr(code, "_loaded", {})
    yield package
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
def test_any_change_in_the_closure_changes_the_key(package, module):
    before = key_in_a_new_process()
    edit(package, module)
    assert key() == before  # this process still holds the old code
    assert key_in_a_new_process() != before


@pytest.mark.parametrize("module", OUTSIDE)
def test_no_change_outside_of_the_closure_changes_the_key(package, module):
    before = key_in_a_new_process()
    edit(package, module)
    assert key_in_a_new_process() == before


def test_the_code_behind_a_chapter_is_its_cells_and_their_closure(package, monkeypatch):
    monkeypatch.setattr(machine, "NOTEBOOKS", package.parent)
    path = package.parent / "01_toy.ipynb"

    def digests(*sources: str) -> dict[str, str]:
        cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
        text = {"cell_type": "markdown", "source": sources}
        path.write_text(json.dumps({"cells": [text, *cells]}), "utf-8-sig")  # as some editors do
        return code.chapter_code("01_toy")

    before = digests("from labkit.toy import training", "x = 1  # one\n")
    assert list(before) == ["notebook", *INSIDE]
    assert digests("from labkit.toy import training\n", "# two\nx = 1") == before
    changed = digests("from labkit.toy import training", "x = 2")
    assert {name for name in changed if changed[name] != before[name]} == {"notebook"}
    assert list(digests("from . import x", "%magic")) == ["notebook"]
    path.write_text('{"cells": 3}')
    with pytest.raises(ValueError, match=r"01_toy\.ipynb cannot be read"):
        code.chapter_code("01_toy")


@pytest.mark.parametrize(
    "one, other",
    [("x = 1  # one", "# another\n\nx = 1   "), ("'''Doc.'''\nx = 1", "x = 1"),
     ("class A:\n    '''Doc\n\n    of A.'''  # one\n    x = 1", "class A:\n    x = 1"),
     ("x = ('a'  # one\n     'b')", "x = 'ab'")],
)  # fmt: skip
def test_comments_docstrings_and_blank_lines_do_not_count(one, other):
    assert code.parsed(one) == code.parsed(other)


@pytest.mark.parametrize(
    "one, other",
    [("x = 1", "x = 1.0"), ("x = 'a # one'", "x = 'a # two'"), ("class A: 'Doc'", "class B: 'Doc'"),
     ("class A:\n    'Doc'; x = 1", "class A:\n    'Doc'; x = 2"),
     ("x = f'''a  \n{b}'''", "x = f'''a\n{b}'''"),
     ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"), ("%magic 'a", "%magic 'b")],
)  # fmt: skip
def test_different_code_is_different(one, other):
    assert code.parsed(one) != code.parsed(other)


def test_a_digest_is_the_same_under_every_python():
    source = """def f(x):\n  return f'{x !r:>{w}.{p}} {{}}', f'{f"{x}"}', ['', 1e999]"""
    assert (
        code.sha256(code.parsed(source)[0])
        == "e784e1bab4b01448dcd3c2267ed37f0f6b7275c16fbf66118717ba0805dd9a11"
    )


TABLE = "[gates]\nlength = 10 # digits\n[gates.claims]\na = 'It falls.'\n[speed]\nratio = 4.3\n"


def test_data_count_by_their_bytes_and_tables_by_their_values(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "DATA", tmp_path)
    (tmp_path / "digits.txt").write_bytes(b"1 2\n")
    digests = {
        "digits.txt": code.sha256(b"1 2\n"),
        "published.toml#gates": code.sha256(b'{"claims":{"a":"It falls."},"length":10}'),
        "published.toml#gates.claims": code.sha256(b'{"a":"It falls."}'),
    }
    for table in (TABLE, TABLE.replace("10 # digits", "10").replace("4.3", "5")):
        (tmp_path / "published.toml").write_text(table)
        assert code.data_digests(*digests) == digests


def test_absent_data_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "DATA", tmp_path)
    (tmp_path / "published.toml").write_text(TABLE)
    for entry in ("", "absent", "gates.absent", "gates.length.a"):
        with pytest.raises(ValueError, match=f"no published.toml#{entry} and no x.txt in data/"):
            code.data_digests(f"published.toml#{entry}", "x.txt")


def test_a_file_is_on_the_disk_before_it_takes_its_place_and_a_torn_write_leaves_the_old_one(
    tmp_path, monkeypatch
):
    path, calls = tmp_path / "new" / "file", []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", calls.append)
        patch.setattr(os, "replace", lambda *names: calls.append(names) or shutil.move(*names))
        code.write_atomically(path, b"before")
    assert [type(call) for call in calls] == [int, tuple]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # tears every file, whoever runs this
    try:
        with pytest.raises(OSError, match=r"File too large: '.*new/file'"):
            code.write_atomically(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert [file.name for file in path.parent.iterdir()] == ["file"]
