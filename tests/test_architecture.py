"""The house: which room may import which, and how large it may be."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "labkit"
ALLOWED = {
    "": {"lab"},  # the command line
    "measure": set(),
    "lab": {"measure"},
    "cells": {"measure", "lab"},
    "memory": {"cells", "measure", "lab"},
    "film": {"cells", "measure", "lab"},
    "bert": {"film", "cells", "measure", "lab"},  # its rivals read the corpus of film reviews
    "sine": {"cells", "measure", "lab"},
}
LIMITS = [("labkit", 8_840, 48), ("tests", 9_134, 49), ("benchmarks", 498, 3)]  # lines, files


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """The modules of labkit that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import, which the closure does not see"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES.keys() or {node.module}
    return names & MODULES.keys() - {name}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_only_what_the_table_allows(name):
    wrong = [
        other for other in imports(name) if room(other) not in ALLOWED[room(name)] | {room(name)}
    ]
    assert not wrong, f"{name} imports {wrong}: a chapter's room may not"


def test_there_are_no_circles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' → '.join([*path, name])}"
        if name not in done:
            for other in imports(name):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def unpickling(source: str) -> list[str]:
    """What in a source could load a pickle."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    wrong = [c for c in calls if any(k.arg == "allow_pickle" for k in c.keywords)]
    words = (
        r"\b(torch|joblib)\.load\b|read_pickle|import (c?pickle|dill|cloudpickle|shelve|marshal)"
    )
    return [*map(ast.unparse, wrong), *(m.group() for m in re.finditer(words, source))]


@pytest.mark.parametrize("name", MODULES)
def test_nothing_unpickles(name):
    assert unpickling(MODULES[name].read_text("utf-8")) == []


def test_unpickling_is_noticed():
    for source in ("import pickle", "torch.load('x')", "np.load('x', allow_pickle=True)"):
        assert unpickling(source)


@pytest.mark.parametrize("folder, limit, most", LIMITS)
def test_the_house_stays_small(folder, limit, most, capsys):
    files = sorted((ROOT / folder).rglob("*.py"))
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in files)
    with capsys.disabled():
        print(f"\n{folder}: {lines:,} of {limit:,} lines in {len(files)} files")
    assert lines <= limit
    assert len(files) <= most
