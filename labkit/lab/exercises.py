"""Exercises that check themselves, and say what is wrong with an answer.

An exercise knows a right answer and typical mistakes. An answer is right if it returns what the
right one does; if it returns what a mistake does, the student is told which one it was. The
exercises stand in notebooks/exercises, a module for each chapter: no result depends on them.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from types import ModuleType
from typing import Any

import numpy as np

from labkit.lab import machine

WIDTH = 90  # of messages: Jupyter breaks longer lines in mid-word


class WrongAnswer(AssertionError):
    """An answer that is not right; the message says what is wrong with it."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows: the message, and none of the check's own code."""
        return textwrap.wrap(f"Not yet: {self}", WIDTH)


def load(chapter: str) -> ModuleType:
    """The exercises of a chapter."""
    name = f"chapter_{chapter[:2]}"
    spec = util.spec_from_file_location(name, machine.NOTEBOOKS / "exercises" / f"{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Exercise:
    """One exercise: `right` answers each of `cases()`, which are tuples of arguments.

    With the keyword `mistake` it makes one of `mistakes`, which map it to what a student is told.
    Results are numbers, texts, arrays and tensors, or tuples, lists and dictionaries of them.
    """

    name: str
    right: Callable[..., Any]
    cases: Callable[[], Sequence[tuple[Any, ...]]]
    mistakes: Mapping[str, str]
    rtol: float = 1e-4
    atol: float = 1e-6

    def check(self, answer: Callable[..., Any]) -> None:
        """Say that an answer is right, or raise WrongAnswer with what is wrong."""
        cases = self.cases()
        results = [self._result(answer, case) for case in cases]
        for number, (case, result) in enumerate(zip(cases, results, strict=True), start=1):
            wrong = self._difference(result, self.right(*copy.deepcopy(case)))
            if wrong:
                raise WrongAnswer(self._diagnosis(cases, results) or f"case {number}: {wrong}.")
        print(f"✓ {self.name}: right in all {len(cases)} cases")

    def _result(self, answer: Callable[..., Any], case: tuple[Any, ...]) -> Any:
        """What an answer returns; WrongAnswer where it fails, or changes what it was given."""
        given = copy.deepcopy(case)
        try:
            result = answer(*given)
        except NotImplementedError:
            raise WrongAnswer("there is no answer yet: write it in the cell above.") from None
        except Exception as error:
            raise WrongAnswer(f"your code stops with {type(error).__name__}: {error}") from error
        if result is None or result is Ellipsis:
            raise WrongAnswer("your function returns nothing: end it with `return ...`.")
        if self._difference(given, case):
            raise WrongAnswer("your code changes its arguments: compute with new values instead.")
        return result

    def _diagnosis(self, cases: Sequence[tuple[Any, ...]], results: Sequence[Any]) -> str | None:
        """What the student is told of the mistake that returns the same in every case."""
        for mistake, message in self.mistakes.items():
            theirs = [self.right(*copy.deepcopy(case), mistake=mistake) for case in cases]
            if not self._difference(results, theirs):
                return message
        return None

    def _difference(self, value: Any, right: Any) -> str:
        """In which respect a value is not the right one; "" where they agree."""
        if isinstance(right, Mapping):
            if not isinstance(value, Mapping) or value.keys() != right.keys():
                return f"a dictionary with the keys {', '.join(map(str, right))} is wanted"
            value, right = list(value.values()), [right[key] for key in value]
        if isinstance(right, list | tuple):
            if not isinstance(value, list | tuple) or len(value) != len(right):
                return f"{len(right)} values are wanted, got {_kind(value)}"
            pairs = zip(value, right, strict=True)
            return next(filter(None, (self._difference(*pair) for pair in pairs)), "")
        if not isinstance(right, bool | int | float) and not hasattr(right, "__array__"):
            return "" if value == right else f"got {value!r}, {right!r} is right"
        try:
            given, wanted = _array(value), _array(right)
        except (TypeError, ValueError):
            kind = f"a tensor of shape {tuple(right.shape)}" if np.ndim(right) else "a number"
            return f"{kind} is wanted, got {_kind(value)}"
        if given.shape != wanted.shape:
            return f"the shape is {given.shape}, {wanted.shape} is right"
        close = np.isclose(given, wanted, self.rtol, self.atol, equal_nan=True)
        if close.all():
            return ""
        if not given.shape:
            return f"got {value!r}, {right!r} is right"
        place = tuple(int(index) for index in np.argwhere(~close)[0])
        return f"element {place} is {given[place]:.4g}, {wanted[place]:.4g} is right"


@dataclass(frozen=True)
class Prediction:
    """A guess noted before a run. None is wrong: the check tells what was measured, and why.

    `why` maps each answer that may be given, in words, to the reason if that is what is measured.
    """

    name: str
    why: Mapping[str, str]

    def check(self, answer: Callable[[], str], measured: str) -> None:
        """Say how the guess compares; WrongAnswer where there is none."""
        options = " or ".join(map(repr, self.why))
        try:
            guess = answer()
        except NotImplementedError:
            guess = None
        if guess is None or guess is Ellipsis:
            raise WrongAnswer(f"note your prediction first: return {options}.")
        if guess not in [*self.why]:
            raise WrongAnswer(f"{guess!r} is no prediction here: return {options}.")
        says = "As you said" if guess == measured else f"You said {guess!r}"
        text = f"✓ {self.name}: {says}; measured: {measured!r}, because {self.why[measured]}"
        print(textwrap.fill(text, WIDTH))


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach() if hasattr(value, "detach") else value, dtype=float)


def _kind(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, list | tuple) else ""
    return type(value).__name__ + size
