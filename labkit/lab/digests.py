"""SHA-256 of what decides a result: code, settings, data, lock file; and files that are never torn.

Code is hashed through its syntax tree, so that comments, docstrings and formatting do not count.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from labkit.lab import environment

PACKAGE = Path(__file__).parent.parent
# These fetch what is then checked by its hash, carry tasks about, file away or judge what a chapter
# computes: no number depends on their code, so it does not count, but what they import does.
BOOKKEEPING = (
    "labkit.lab.archives",
    "labkit.lab.cluster",
    "labkit.lab.comparison",
    "labkit.lab.digests",
    "labkit.lab.download",
    "labkit.bert.model_sources",
    "labkit.lab.parameters",
    "labkit.lab.publication",
    "labkit.lab.report",
    "labkit.bert.rows",
    "labkit.film.rows",
    "labkit.measure.rows",
    "labkit.sine.rows",
    "labkit.lab.results",
    "labkit.lab.transfer",
)
LOCK = "requirements-cpu.lock"


def sha256(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and without spaces; ValueError for NaN and infinities."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, and a restart after a crash, finds the old or the new one.

    Creates missing folders. On an error, such as a full disk, the old file stays and no temporary
    file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp keeps its files to the owner
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in a folder last beyond a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# code


def normalise(source: str) -> str:
    """Python source as its syntax tree, without comments, docstrings and formatting.

    The form is the same under every version of Python: fields that are empty, which newer versions
    add, are left out, and the text between an f-string's braces is in one piece. Source that does
    not parse stays as it is.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    return json.dumps(_plain(tree), separators=(",", ":"))


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = fields["body"][ast.get_docstring(node, clean=False) is not None :]
    if isinstance(node, ast.JoinedStr):
        fields["values"] = _joined(node.values)
    kept = {
        name: _plain(value)
        for name, value in fields.items()
        if value is not None and value != [] and name not in ("kind", "type_comment")
    }
    # a constant None is a value, not an empty field
    if isinstance(node, ast.Constant):
        kept["value"] = repr(node.value)
    return [type(node).__name__, kept]


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with neighbouring texts made one, and none of them empty.

    Python 3.12 cuts these texts in other places than 3.11, and adds empty ones.
    """
    joined: list[ast.expr] = []
    for part in values:
        if not isinstance(part, ast.Constant):
            joined.append(part)
        elif joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(joined[-1].value + part.value)
        elif part.value:
            joined.append(part)
    return joined


def notebook_sources(chapter: str) -> list[str]:
    """The source of every code cell of a chapter, in order; ValueError if it cannot be read."""
    path = environment.NOTEBOOKS / f"{chapter}.ipynb"
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        return [source if isinstance(source, str) else "".join(source) for source in code]
    except FileNotFoundError:
        raise ValueError(f"there is no notebooks/{chapter}.ipynb") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"notebooks/{chapter}.ipynb is not a notebook: {error!r}") from error


def notebook_digest(chapter: str) -> str:
    """SHA-256 over a chapter's code cells, normalised. Text and outputs do not count."""
    return sha256(canonical([normalise(source) for source in notebook_sources(chapter)]))


def module_digest(module_names: Iterable[str]) -> str:
    """SHA-256 over the named labkit modules ("labkit.memory.ensemble"), normalised; not what they import.

    ValueError names a module that does not exist.
    """
    return sha256(canonical({name: _module(name)[0] for name in module_names}))


def code_parts(chapter: str) -> dict[str, str]:
    """SHA-256 of each piece of code behind a chapter: its notebook, and by name every labkit module
    that it imports, directly or through others, those in `BOOKKEEPING` apart."""
    waiting = list(_imports("\n".join(map(_parsable, notebook_sources(chapter)))))
    parts = {}
    while waiting:
        name = waiting.pop()
        if name not in parts:
            parts[name], imported = _module(name)
            waiting += imported
    counted = {name: parts[name] for name in sorted(parts) if name not in BOOKKEEPING}
    return {"notebook": notebook_digest(chapter), **counted}


def code_digest(chapter: str) -> str:
    """SHA-256 over `code_parts`: the chapter's code cells and the labkit modules behind them."""
    return sha256(canonical(code_parts(chapter)))


def module_path(name: str) -> Path:
    """The file of a labkit module, whether it exists or not."""
    return PACKAGE / f"{name.removeprefix('labkit.').replace('.', '/')}.py"


def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """Digest and imports of a module as it is now."""
    path = module_path(name)
    if not name.startswith("labkit.") or not path.is_file():
        raise ValueError(f"there is no module {name!r} in labkit")
    return _read_module(path.read_text("utf-8"))


@cache
def _read_module(source: str) -> tuple[str, tuple[str, ...]]:
    return sha256(normalise(source).encode()), tuple(sorted(_imports(source)))


def _parsable(source: str) -> str:
    try:
        ast.parse(source)
    except SyntaxError:
        return ""
    return source


def _imports(source: str) -> set[str]:
    """The labkit modules that a source imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(_parsable(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = f"labkit.{base}".rstrip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("labkit.") and module_path(name).is_file()}


# settings, data, lock file


def settings_digest(chapter: str, profile: str) -> str | None:
    """SHA-256 of a chapter's settings file as canonical JSON; None where there is no valid one."""
    try:
        text = (environment.PROFILES / profile / f"{chapter}.json").read_text("utf-8")
        return sha256(canonical(json.loads(text)))
    except (FileNotFoundError, ValueError):
        return None


def lock_digest() -> str | None:
    """SHA-256 of the pinned versions in the lock file, in any order; None where there is none.

    Comments and the hashes of the single wheels do not count.
    """
    path = environment.ROOT / LOCK
    if not path.is_file():
        return None
    lines = (line.split("#")[0].split("\\")[0].strip() for line in path.read_text().splitlines())
    return sha256(canonical(sorted(line for line in lines if "==" in line)))


def data_digest(name: str) -> str | None:
    """SHA-256 of a file below data/, or of one entry of a TOML file; None where there is none.

    "published.toml#digit_sum.claims" names the entry `claims` of the table `digit_sum`: its value
    counts as canonical JSON, so comments and the rest of the file do not.
    """
    file, mark, entry = name.partition("#")
    path = environment.DATA / file
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


def published_digest(*entries: str) -> dict[str, str]:
    """Name and SHA-256 of entries of data/published.toml, as `write_record` takes them in `data`.

    `published_digest("gates")` gives {"published.toml#gates": ...}. ValueError for an entry that is
    not there.
    """
    names = [f"published.toml#{entry}" for entry in entries]
    found = {name: data_digest(name) for name in names}
    if absent := [name for name, digest in found.items() if digest is None]:
        raise ValueError(f"there is no {' and no '.join(absent)} in data/")
    return found
