"""A chapter's parameters, checked once: the parameters cell, the profile and `--set`.

The cell tagged `parameters` holds typed plain values, the defaults of the profile `quick`. The
chapter's profile file names its pydantic model, which says what each parameter may be.
"""

from __future__ import annotations

import ast
import difflib
import pkgutil
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labkit.lab import machine

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class SettingsError(ValueError):
    """Parameters that cannot be used; the message names the parameter and what is allowed."""


class ChapterSettings(BaseModel):
    """What every chapter can be set to; each room adds its chapter's parameters."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    profile: Literal["quick", "cpu", "full"]
    seed: Seed
    device_name: Literal["auto", "cpu", "cuda"]


def resolve(
    chapter: str, cells: Sequence[Mapping[str, Any]], profile: str, given: Sequence[str] = ()
) -> dict[str, Any]:
    """Every parameter of a chapter as a run would have it: cell, then profile, then `--set`.

    `cells` are the notebook's, `given` texts such as "num_seeds=5". Raises SettingsError.
    """
    model, profiles = _read_profiles(chapter)
    values = defaults(cells) | {"profile": profile}
    origin = dict.fromkeys(values, "the parameters cell")
    for source, changes in (
        (f"notebooks/profiles/{chapter}.toml", profiles[profile]),
        ("--set", dict(_parse(text) for text in given)),
    ):
        for name, value in changes.items():
            if name not in values or name == "profile":
                names = [n for n in values if n != "profile"]
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else "."
                message = f"unknown parameter '{name}' from {source}{hint}"
                raise SettingsError(f"{message} There are {', '.join(names)}")
            values[name], origin[name] = value, source
    if {*values} != {*model.model_fields}:
        odd = ", ".join(sorted({*values} ^ {*model.model_fields}))
        raise SettingsError(f"the parameters cell and {model.__name__} differ in: {odd}")
    try:
        return model.model_validate(values).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:  # else a validator of the whole says it, which names the parameters
            name, *inner = first["loc"]
            place = name + "".join(f"[{index}]" for index in inner if isinstance(index, int))
            message = f"parameter '{place}': {message}, got {values[name]!r} from {origin[name]}"
        raise SettingsError(message) from None


def _read_profiles(chapter: str) -> tuple[type[ChapterSettings], dict[str, dict[str, Any]]]:
    path = machine.NOTEBOOKS / "profiles" / f"{chapter}.toml"
    try:
        content = tomllib.loads(path.read_text("utf-8"))
        model = pkgutil.resolve_name(content["settings"])
        return model, {profile: dict(content[profile]) for profile in machine.PROFILES}
    except (OSError, KeyError, TypeError, AttributeError, ImportError, ValueError) as error:
        raise SettingsError(
            f"{machine.shown(path)}: {error!r}; it needs a line such as settings = "
            '"labkit.sine:Settings" and the tables quick, cpu and full'
        ) from error


def defaults(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Name -> default of the one cell tagged `parameters`: lines such as `num_seeds: int = 3`."""
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise SettingsError(f"needs one code cell tagged 'parameters', has {len(tagged)}")
    values: dict[str, Any] = {}
    allowed = "the parameters cell may hold only lines such as 'num_seeds: int = 3', not"
    try:
        lines = ast.parse("".join(tagged[0]["source"])).body
    except SyntaxError as error:
        raise SettingsError(f"{allowed} line {error.lineno}: {error.msg}") from error
    for line in lines:
        try:
            values[line.target.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError, TypeError) as error:
            raise SettingsError(f"{allowed} '{ast.unparse(line)}'") from error
    return values


def _parse(text: str) -> tuple[str, Any]:
    name, equals, raw = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise SettingsError(f"--set takes name=value, such as --set seed=4, got '{text}'")
    try:
        literal = {"true": "True", "false": "False", "null": "None"}.get(raw, raw)
        return name.strip(), ast.literal_eval(literal.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return name.strip(), raw
