"""The checks of the exercises, calibrated: wrong answers are caught, right ones are not refused."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from answers import Answers

from labkit.lab import machine
from labkit.lab.exercises import Exercise, Prediction, WrongAnswer

MODULES = sorted(p.stem for p in (Path(__file__).parent / "answers").glob("chapter_*.py"))
ANSWERS = {a.exercise.name: a for m in MODULES for a in import_module(f"answers.{m}").ANSWERS}
GENERIC = ("case ", "your code ", "your function ", "there is no answer")


def message(answers: Answers, source: str) -> str | None:
    """What the check says of an answer; None where it calls it right."""
    names = dict(answers.names)
    exec(source, names)
    try:
        answers.exercise.check(names["answer"])
    except WrongAnswer as wrong:
        return str(wrong)
    return None


def calibration() -> str:
    """The table of the page for teachers."""
    lines = [
        "| exercise | wrong answers | caught | named | right answers | refused |",
        "|---|---|---|---|---|---|",
    ]
    for name, answers in sorted(ANSWERS.items()):
        said = [message(answers, source) for source in answers.sources().values()]
        caught = [text for text in said if text]
        named = [text for text in caught if not text.startswith(GENERIC)]
        refused = [source for source in answers.right if message(answers, source)]
        counts = len(said), len(caught), len(named), len(answers.right), len(refused)
        lines.append(f"| `{name}` | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


@pytest.mark.parametrize("name", ANSWERS)
def test_wrong_answers_are_caught_and_right_ones_are_not_refused(name: str) -> None:
    answers = ANSWERS[name]
    assert len(answers.wrong) >= 8
    assert len(answers.right) >= 4
    missed = [what for what, source in answers.sources().items() if not message(answers, source)]
    assert missed == []
    assert [message(answers, source) for source in answers.right] == [None] * len(answers.right)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_named_mistake_is_met_by_a_wrong_answer(name: str) -> None:
    answers = ANSWERS[name]
    said = {message(answers, source) for source in answers.sources().values()}
    assert {*answers.exercise.mistakes.values()} <= said, "a diagnosis that no typical answer meets"


def test_the_page_for_teachers_publishes_what_the_checks_caught() -> None:
    page = (machine.ROOT / "docs" / "teachers.md").read_text("utf-8")
    assert calibration() in page, f"docs/teachers.md should hold\n{calibration()}"


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda values: 1 / 0, "your code stops with ZeroDivisionError: division by zero"),
        (lambda values: None, "your function returns nothing"),
        (lambda values: values.clear() or {"sum": 3.0}, "your code changes its arguments"),
        (lambda values: {"total": 3.0}, "case 1: a dictionary with the keys sum is wanted"),
        (lambda values: {"sum": "3"[:0]}, "case 1: a number is wanted, got str"),
        (lambda values: {"sum": 2.0}, "case 1: got 2.0, 3.0 is right"),
        (lambda values: {"sum": 3.0}, "case 2: got 3.0, 7.0 is right"),
        (lambda values: {"sum": float(max(values))}, "that is the largest"),
    ],
)
def test_a_check_says_what_is_wrong(answer, said):
    def total(values, *, mistake=""):
        return {"sum": float(max(values) if mistake else sum(values))}

    cases = [([1, 2],), ([3, 4],)]
    exercise = Exercise("total", total, lambda: cases, {"largest": "that is the largest"})
    with pytest.raises(WrongAnswer, match=f"^{said}"):
        exercise.check(answer)


def test_any_prediction_will_do_but_one_must_be_noted(capsys):
    prediction = Prediction("side", {"lower": "it forgets", "higher": "it keeps"})
    prediction.check(lambda: "lower", "lower")
    prediction.check(lambda: "lower", "higher")
    assert capsys.readouterr().out.splitlines() == [
        "✓ side: As you said; measured: 'lower', because it forgets",
        "✓ side: You said 'lower'; measured: 'higher', because it keeps",
    ]

    def unanswered():
        raise NotImplementedError

    for answer in (unanswered, lambda: None, lambda: ..., lambda: "low", lambda: 3, list):
        with pytest.raises(WrongAnswer, match="return 'lower' or 'higher'"):
            prediction.check(answer, "lower")
