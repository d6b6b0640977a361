"""Answers to the exercises, right and wrong, on which their checks are calibrated.

One module a chapter; each lists `ANSWERS`. An answer is the source of a function named `answer`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from labkit.lab import machine
from labkit.lab.exercises import Exercise
from labkit.lab.notebooks import read_notebook


def solution(chapter: str, exercise: str) -> str:
    """The solution that stands in a chapter's notebook."""
    facts = {"exercise": exercise, "role": "answer"}
    cells = read_notebook(machine.notebook(chapter)).cells
    (source,) = (cell.source for cell in cells if cell.metadata.get("labkit") == facts)
    source = re.sub(r" +###.*\n?", "", source)
    return re.sub(r"def \w+", "def answer", source, count=1) + "\n"


def each(sources: str) -> list[str]:
    """The answers of a text, with a blank line between them."""
    return sources.strip("\n").split("\n\n")


@dataclass(frozen=True)
class Answers:
    """At least four right answers, different in kind, and eight typical wrong ones.

    `wrong` maps what is wrong to a source, or to a change (old, new) of the first right answer.
    `names` is what the source may use.
    """

    exercise: Exercise
    right: list[str]
    wrong: dict[str, str | tuple[str, str]]
    names: dict[str, Any] = field(default_factory=dict)

    def sources(self) -> dict[str, str]:
        """What is wrong -> the wrong answer's source."""
        sources = {}
        for name, change in self.wrong.items():
            if isinstance(change, tuple):
                assert self.right[0].count(change[0]) >= 1, f"{name}: {change[0]!r} is not there"
                change = self.right[0].replace(*change)
            sources[name] = change
        return sources
