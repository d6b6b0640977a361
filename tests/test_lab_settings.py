"""A chapter's parameters: cell, profile and `--set` are checked before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from labkit.lab.settings import ChapterSettings, Count, SettingsError, resolve

CELL = """profile: str = "quick"
seed: int = 0
device_name: str = "cpu"
num_n: int = 2
lr: float = 0.1
clip: float | None = None
cell: str = "lstm"
lengths: list[int] = [5, 10]
"""
PROFILES = {"quick": "", "cpu": "num_n = 3\nlr = 1\n", "full": "num_n = 4"}


class Settings(ChapterSettings):
    num_n: Count
    lr: Annotated[float, Field(gt=0)]
    clip: float | None
    cell: Literal["srn", "lstm"]
    lengths: Annotated[list[Literal[5, 10, 15]], Field(min_length=2)]

    @model_validator(mode="after")
    def _enough(self):
        if self.num_n > max(self.lengths):
            raise ValueError(f"num_n={self.num_n} must be at most the largest of lengths")
        return self


def text_of(profiles: dict[str, str], settings: str = "toy_settings:Settings") -> str:
    tables = "".join(f"[{name}]\n{lines}\n" for name, lines in profiles.items())
    return f'settings = "{settings}"\n{tables}'


TEXT = text_of(PROFILES)


@pytest.fixture
def values(root, monkeypatch) -> Callable[..., dict[str, Any]]:
    """A function that resolves the parameters of a chapter as its cell and its profiles are."""
    monkeypatch.setitem(sys.modules, "toy_settings", SimpleNamespace(Settings=Settings))
    path = root / "notebooks" / "profiles" / "01_a.toml"

    def resolved(*given: str, profile="cpu", cell=CELL, text=TEXT, cells=1):
        if text is not None:
            path.write_text(text, "latin-1")
        tagged = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": cell}
        plain = {"cell_type": "code", "metadata": {}, "source": "num_n = 7"}
        return resolve("01_a", [plain, *[tagged] * cells], profile, given)

    return resolved


def test_a_profile_comes_before_the_cell_and_given_values_before_both(values):
    quick = values(profile="quick")
    assert quick == {
        "profile": "quick", "seed": 0, "device_name": "cpu", "num_n": 2, "lr": 0.1, "clip": None,
        "cell": "lstm", "lengths": [5, 10],
    }  # fmt: skip
    assert values() == quick | {"profile": "cpu", "num_n": 3, "lr": 1.0}
    assert values("num_n=5", "num_n=4")["num_n"] == 4
    given = values("lr=3", "cell=srn", "lengths=[10, 15]")  # read as their settings say
    assert repr([given[n] for n in ("lr", "cell", "lengths")]) == "[3.0, 'srn', [10, 15]]"


@pytest.mark.parametrize(
    "given, message",
    [
        ("num_n=0", "'num_n': Input should be greater than or equal to 1, got 0 from --set"),
        ("lengths=[5, 17]", "parameter 'lengths[1]': Input should be 5, 10 or 15, got [5, 17]"),
        ("num_n=11", "num_n=11 must be at most the largest of lengths"),
        ("length=[5]", "unknown parameter 'length' from --set; did you mean 'lengths'? There are"),
        ("profile=cpu", "unknown parameter 'profile' from --set. There are"),
        ("num_n", "--set takes name=value, such as --set seed=4, got 'num_n'"),
    ],
)
def test_wrong_given_values_are_named(values, given, message):
    with pytest.raises(SettingsError) as caught:
        values(given)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == str(caught.value).count("Value error") == 0


@pytest.mark.parametrize(
    "changes, message",
    [({"cell": CELL + "x: int = 1 + 1"}, "only lines such as 'num_seeds: int = 3', not 'x: int ="),
     ({"cell": CELL + "x: int = "}, "not line 9: invalid syntax"),
     ({"cell": CELL.replace("0.1", "-1.0"), "profile": "quick"}, "-1.0 from the parameters cell"),
     ({"cell": CELL + "more: int = 1"}, "the parameters cell and Settings differ in: more"),
     ({"cells": 2}, "needs one code cell tagged 'parameters', has 2"),
     ({"text": None}, "No such file or directory"),
     ({"text": "[quick]\n"}, "it needs a line such as settings ="),
     ({"text": text_of(PROFILES, "toy_settings:Setting")}, "has no attribute 'Setting'"),
     ({"text": text_of({"cpu": ""})}, "and the tables quick, cpu and full"),
     ({"text": text_of(PROFILES | {"cpu": "seeds = 1"})}, "unknown parameter 'seeds' from note"),
     ({"text": text_of(PROFILES | {"cpu": "num_n = 0"})}, "got 0 from notebooks/profiles/01_a.")],
)  # fmt: skip
def test_wrong_cells_and_profiles_are_named(values, changes, message):
    with pytest.raises(SettingsError) as caught:
        values(**changes)
    assert message in str(caught.value)
    assert "text" not in changes or "notebooks/profiles/01_a.toml" in str(caught.value)
