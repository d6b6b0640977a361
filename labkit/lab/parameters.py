"""The parameters cell of a notebook: read through its syntax tree, checked before a kernel starts.

A notebook has one cell tagged `parameters` with annotated plain values, e.g. `seeds: int = 2`.
Papermill would take any name and any type, so every given value is held against that cell first.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN = {"str": str, "int": int, "float": float, "bool": bool}
ALLOWED = "str, int, float, bool, None, list[...], dict[str, ...], Literal[...] and unions of them"


class ParameterError(ValueError):
    """A parameters cell, a settings file or a given value that cannot be used."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    annotation: ast.expr
    default: Any

    @property
    def type(self) -> str:
        return ast.unparse(self.annotation)

    def accepts(self, value: Any) -> bool:
        return _accepts(self.annotation, value)


def read_parameters(cells: Iterable[Mapping[str, Any]], place: str) -> dict[str, Parameter]:
    """The parameters of a notebook's cells by name; `place` names the notebook in errors."""
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1 or tagged[0]["cell_type"] != "code":
        raise ParameterError(
            f"{place}: needs exactly one code cell tagged 'parameters', found {len(tagged)}"
        )
    try:
        body = ast.parse(tagged[0]["source"]).body
    except SyntaxError as error:
        raise ParameterError(
            f"{place}: the parameters cell is not valid Python: {error.msg} (line {error.lineno})"
        ) from error

    parameters: dict[str, Parameter] = {}
    for statement in body:
        parameter = _parameter(statement, place)
        if parameter.name in parameters:
            raise ParameterError(f"{place}: parameter '{parameter.name}' is defined twice")
        parameters[parameter.name] = parameter
    return parameters


def _parameter(statement: ast.stmt, place: str) -> Parameter:
    line = ast.unparse(statement).splitlines()[0]
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as v):
            pass
        case _:
            raise ParameterError(
                f"{place}: the parameters cell may hold only lines such as 'seeds: int = 2', "
                f"found '{line}'"
            )
    if not _is_known(annotation):
        raise ParameterError(
            f"{place}: parameter '{name}' has the type '{ast.unparse(annotation)}'; "
            f"allowed are {ALLOWED}"
        )
    try:
        default = ast.literal_eval(v)
    except (ValueError, TypeError) as error:
        raise ParameterError(
            f"{place}: the default of parameter '{name}' must be a plain value, found '{line}'"
        ) from error
    parameter = Parameter(name, annotation, default)
    if not parameter.accepts(default):
        raise ParameterError(
            f"{place}: the default of parameter '{name}' must be {parameter.type}, "
            f"found {_shown(default)}"
        )
    return parameter


def check(
    given: Mapping[str, Any], parameters: Mapping[str, Parameter], place: str, origin: str
) -> None:
    """Raise ParameterError for the first given value that has an unknown name or a wrong type.

    `place` names the notebook, `origin` says where the values came from.
    """
    for name, value in given.items():
        if name == "profile":
            raise ParameterError(
                f"{place}: '{name}' is set by the runner, remove it from {origin}; "
                "choose the profile with --profile"
            )
        if name not in parameters:
            raise ParameterError(unknown(name, parameters, place, origin))
        parameter = parameters[name]
        if not parameter.accepts(value):
            raise ParameterError(
                f"{place}: parameter '{name}' must be {parameter.type}, "
                f"got {_shown(value)} from {origin}"
            )
        if name.startswith("num_") and value < 1:
            raise ParameterError(
                f"{place}: parameter '{name}' must be at least 1, got {value} from {origin}"
            )


def unknown(name: str, parameters: Mapping[str, Parameter], place: str, origin: str) -> str:
    """The message for a name that the parameters cell does not define."""
    allowed = ", ".join(f"{p.name}: {p.type}" for p in parameters.values() if p.name != "profile")
    close = difflib.get_close_matches(name, [n for n in parameters if n != "profile"], n=2)
    hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
    return (
        f"{place}: unknown parameter '{name}' from {origin}{hint} Allowed: {allowed or 'no others'}"
    )


def parse_given(
    given: Iterable[str], parameters: Mapping[str, Parameter], place: str
) -> dict[str, Any]:
    """Values of `--set name=value`, each read as the type that the parameters cell declares."""
    values: dict[str, Any] = {}
    for text in given:
        name, equals, raw = text.partition("=")
        name, origin = name.strip(), f"--set {text}"
        if not equals or not name.isidentifier():
            raise ParameterError(f"--set takes name=value, e.g. --set seed=4, got '{text}'")
        if name in parameters and parameters[name].accepts(raw):
            value: Any = raw
        else:
            try:
                literal = {"true": "True", "false": "False", "null": "None"}.get(raw, raw)
                value = ast.literal_eval(literal.strip())
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                value = raw  # these are what literal_eval raises for what is no plain value
        check({name: value}, parameters, place, origin)
        values[name] = value
    return values


def read_settings(path: Path, place: str) -> dict[str, Any]:
    """The overrides in a settings file: one JSON object with unique names and finite numbers."""
    if not path.is_file():
        raise ParameterError(
            f"{place} is missing; a chapter without overrides has a file with {{}}"
        )
    try:
        settings = json.loads(
            path.read_text("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse
        )
    except ValueError as error:
        raise ParameterError(f"{place} is not valid: {error}") from error
    if not isinstance(settings, dict):
        raise ParameterError(f"{place} must hold one JSON object, found {_shown(settings)}")
    return settings


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the name '{twice[0]}' is there twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a finite number")


def _is_known(annotation: ast.expr) -> bool:
    match annotation:
        case ast.Name(id=name):
            return name in PLAIN
        case ast.Constant(value=None):
            return True
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _is_known(left) and _is_known(right)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return _is_known(item)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return ast.unparse(key) == "str" and _is_known(item)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=item):
            return all(isinstance(choice, ast.Constant) for choice in _choices(item))
    return False


def _accepts(annotation: ast.expr, value: Any) -> bool:
    match annotation:
        case ast.Name(id="float"):
            return type(value) in (int, float) and math.isfinite(value)
        case ast.Name(id=name):
            return type(value) is PLAIN[name]
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(left=left, right=right):
            return _accepts(left, value) or _accepts(right, value)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return type(value) is list and all(_accepts(item, entry) for entry in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])):
            return type(value) is dict and all(
                type(key) is str and _accepts(item, entry) for key, entry in value.items()
            )
        case ast.Subscript(slice=item):
            return any(
                type(value) is type(choice.value) and value == choice.value
                for choice in _choices(item)
            )
    return False


def _choices(item: ast.expr) -> list[ast.expr]:
    return item.elts if isinstance(item, ast.Tuple) else [item]


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
