"""SHA-256 of what decides a result: code and data; and files that are written whole or not at all.

The code behind a result is the import closure of what computed it: the modules of labkit that it
imports, directly or through others. The room `lab`, which runs, keeps and shows results but
computes none, ends the closure. Comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import tempfile
import tokenize
import tomllib
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
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's files are for their owner alone
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(error, OSError) and not error.filename:  # a full disk names no file itself
            error.filename = str(path)
        raise


# code


def stripped(source: str) -> str:
    """Python source without comments, docstrings and blank lines; as it is if it does not parse."""
    source = io.StringIO(source, newline=None).read()  # every line ends in \n
    try:
        nodes = list(ast.walk(ast.parse(source)))
        comments = [
            token.start
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        ]
    except (SyntaxError, tokenize.TokenError):
        return source
    lines = source.split("\n")
    inside: set[int] = set()  # rows that end inside a string, where blanks count
    for node in nodes:
        if isinstance(node, ast.JoinedStr | ast.Constant):
            inside.update(range(node.lineno, node.end_lineno))
    for row, column in comments:
        lines[row - 1] = lines[row - 1][:column]
        inside.discard(row)
    for node in nodes:
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            doc = node.body[0]
            before = lines[doc.lineno - 1].encode()[: doc.col_offset]
            after = lines[doc.end_lineno - 1].encode()[doc.end_col_offset :]
            if not (before.strip() or after.strip()):  # it stands alone on its lines
                inside.difference_update(range(doc.lineno, doc.end_lineno))
                lines[doc.lineno - 1 : doc.end_lineno] = [""] * (doc.end_lineno - doc.lineno + 1)
    numbered = [(n, line if n in inside else line.rstrip()) for n, line in enumerate(lines, 1)]
    return "\n".join(line for n, line in numbered if line or n in inside)


def _path(name: str) -> Path | None:
    """The file of a module or package of labkit, or None if there is none."""
    if name.split(".")[0] != "labkit":
        return None
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@cache
def _digest_and_imports(source: str, package: str) -> tuple[str, frozenset[tuple[str, ...]]]:
    """SHA-256 of the code in a source, and its imports: names of which the first that is a module
    counts."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        nodes = []
    imports: set[tuple[str, ...]] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            imports |= {(alias.name,) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            module = name
            if node.level and package:  # a cell of a notebook has none
                module = importlib.util.resolve_name(name, package)
            imports |= {(f"{module}.{alias.name}", module) for alias in node.names}
    return sha256(stripped(source).encode()), frozenset(imports)


def _modules(imports: Iterable[tuple[str, ...]]) -> set[str]:
    """The modules of labkit among what `_digest_and_imports` returns."""
    return {name for names in imports if (name := next(filter(_path, names), None))}


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
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        digests[name], imports = _digest_and_imports(source, package)
        waiting += _modules(imports)
    return dict(sorted(digests.items()))


def chapter_code(chapter: str) -> dict[str, str]:
    """Name -> SHA-256 of the code behind a chapter: "notebook" and the closure of its imports."""
    sources = notebook_sources(chapter)
    imports = set().union(*(_modules(_digest_and_imports(source, "")[1]) for source in sources))
    notebook = sha256(canonical([stripped(source) for source in sources]))
    return {"notebook": notebook} | closure(imports)


def notebook_sources(chapter: str) -> list[str]:
    """The source of every code cell of a chapter, in order; ValueError if it cannot be read."""
    path = machine.NOTEBOOKS / f"{chapter}.ipynb"
    try:
        cells = json.loads(path.read_text("utf-8-sig"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{machine.shown(path)} cannot be read: {error!r}") from error


# data


def data_digest(name: str) -> str | None:
    """SHA-256 of a file below data/, or of one entry of a TOML file; None if there is none.

    "published.toml#digit_sum.claims" names the entry `claims` of the table `digit_sum`: its value
    counts as canonical JSON, so comments and the rest of the file do not.
    """
    file, mark, entry = name.partition("#")
    path = machine.DATA / file
    if not path.is_file():
        return None
    if not mark:
        return sha256(path.read_bytes())
    try:
        value = tomllib.loads(path.read_text("utf-8"))
        for key in entry.split("."):
            value = value[key]
        return sha256(canonical(value))
    except (ValueError, KeyError, TypeError):
        return None


def data_digests(*names: str) -> dict[str, str]:
    """Name -> SHA-256 of inputs below data/, as a record lists them; ValueError for none."""
    digests = {name: data_digest(name) for name in names}
    if missing := [name for name, digest in digests.items() if digest is None]:
        raise ValueError(f"there is no {' and no '.join(missing)} in data/")
    return digests
