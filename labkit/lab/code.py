"""SHA-256 of what decides a result: code and data; and files that are written whole or not at all.

The code behind a result is the import closure of what computed it: the modules of labkit that it
imports, directly or through others. The room `lab`, which runs, keeps and shows results but
computes none, ends the closure. Comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tomllib
import uuid
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from labkit.lab import machine

PACKAGE = Path(__file__).parents[1]
OUTSIDE = "labkit.lab"  # bookkeeping: no number depends on it
_loaded = {path: path.read_bytes() for path in PACKAGE.rglob("*.py")}


def sha256(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and without spaces; ValueError for NaN and infinities."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, and a restart after a crash, sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:  # a full disk names no file itself
            error.filename = str(path)
        raise


# code


@cache
def parsed(source: str) -> tuple[bytes, frozenset[str]]:
    """The syntax tree of Python source as JSON, and the modules of labkit that it imports.

    The tree is without positions and docstrings, and the same under every version of Python.
    Source that is not Python stays as it is.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return canonical(source), frozenset()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts between the pieces
            node.values = [piece for piece in node.values if getattr(piece, "value", None) != ""]
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # a module of a package, else a name defined in it
                inner = f"{node.module}.{alias.name}"
                names.add(inner if _path(inner) else node.module)
    return canonical(_plain(tree)), frozenset(filter(_path, names))


def _plain(node: Any) -> Any:
    match node:
        case ast.Expr(ast.Constant(str())):
            return None  # a docstring
        case list():
            return [item for item in map(_plain, node) if item]
        case ast.AST():  # what a newer Python adds is empty in older code
            fields = {name: _plain(value) for name, value in ast.iter_fields(node)}
            return [type(node).__name__, {n: f for n, f in fields.items() if f not in ("None", [])}]
        case _:
            return repr(node)


def _path(name: str) -> Path | None:
    """The file of a module or package of labkit, or None if there is none."""
    if name.split(".")[0] != "labkit":
        return None
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def closure(modules: Iterable[str], *, loaded: bool = False) -> dict[str, str]:
    """Name -> SHA-256 of the named labkit modules and all that they import, as they are on disk.

    With `loaded`, as they were when this process imported them: edits since then do not count.
    ValueError names a module that does not exist.
    """
    waiting, digests = list(modules), {}
    while waiting:
        name = waiting.pop()
        if name in digests or name == OUTSIDE or name.startswith(f"{OUTSIDE}."):
            continue
        path = _path(name)
        if path is None:
            raise ValueError(f"there is no module {name!r} in labkit")
        now = path.read_bytes()
        source = (_loaded.setdefault(path, now) if loaded else now).decode()
        tree, imports = parsed(source)
        digests[name] = sha256(tree)
        waiting += imports
    return dict(sorted(digests.items()))


def chapter_code(chapter: str) -> dict[str, str]:
    """Name -> SHA-256 of the code behind a chapter: "notebook" and the closure of its imports.

    ValueError for a notebook that cannot be read.
    """
    path = machine.notebook(chapter)
    try:
        cells = json.loads(path.read_text("utf-8-sig"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{machine.shown(path)} cannot be read: {error!r}") from error
    pairs = [parsed(source) for source in sources]
    notebook = sha256(b"[%s]" % b",".join(tree for tree, _ in pairs))
    return {"notebook": notebook} | closure(set().union(*(imports for _, imports in pairs)))


# data


def data_digest(name: str) -> str | None:
    """SHA-256 of a file below data/, or of one entry of a TOML file; None if there is none.

    "published.toml#digit_sum.claims" names the entry `claims` of the table `digit_sum`: its value
    counts as canonical JSON, so comments and the rest of the file do not.
    """
    file, mark, entry = name.partition("#")
    try:
        content = (machine.DATA / file).read_bytes()
        if not mark:
            return sha256(content)
        value = tomllib.loads(content.decode())
        for key in entry.split("."):
            value = value[key]
        return sha256(canonical(value))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def data_digests(*names: str) -> dict[str, str]:
    """Name -> SHA-256 of inputs below data/, as a record lists them; ValueError for none."""
    digests = {name: data_digest(name) for name in names}
    if missing := [name for name, digest in digests.items() if digest is None]:
        raise ValueError(f"there is no {' and no '.join(missing)} in data/")
    return digests
