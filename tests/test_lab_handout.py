"""What a teacher hands out and grades, with nbgrader, on a toy chapter and three hand-ins."""

from __future__ import annotations

import csv

import nbformat
import pytest
from nbformat import v4

from labkit.lab import handout, machine

pytest.importorskip("nbgrader", reason="grading is not tested without nbgrader: EXTRAS=teach")

ANSWER = '''def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION'''
CHECK = "assert double(3) == 6, 'not twice'"
NAME = "01_toy"


@pytest.fixture
def folder(root):
    marks = {"exercise": "double"}
    cells = [
        v4.new_markdown_cell("# 01 Toy"),
        v4.new_code_cell(ANSWER, metadata={"labkit": {**marks, "role": "answer"}}),
        v4.new_code_cell(CHECK, metadata={"labkit": {**marks, "role": "check", "points": 2}}),
        v4.new_code_cell("print(4)", outputs=[v4.new_output("stream", text="4\n")]),
    ]
    kernel = {"name": machine.KERNEL, "display_name": "LSTM course lab", "language": "python"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, machine.NOTEBOOKS / f"{NAME}.ipynb")
    nbformat.write(v4.new_notebook(), machine.NOTEBOOKS / "02_without.ipynb")
    return root / "handout"


def test_students_get_no_solution_and_hand_ins_are_graded(folder):
    assert handout.make(folder) == [NAME]
    path = folder / "students" / f"{NAME}.ipynb"
    students = nbformat.read(path, 4)
    assert "return 2 * x" not in path.read_text("utf-8")
    assert "raise NotImplementedError" in students.cells[1].source
    assert students.cells[2].source == CHECK
    assert [len(cell.outputs) for cell in students.cells[1:]] == [0, 0, 1]

    answers = {"ada": "def double(x):\n    return x + x", "bob": "double = abs", "cleo": None}
    for student, answer in answers.items():
        students.cells[1].source = answer or nbformat.read(path, 4).cells[1].source
        handed_in = folder / "course" / "submitted" / student / NAME / f"{NAME}.ipynb"
        handed_in.parent.mkdir(parents=True)
        nbformat.write(students, handed_in)
    handout.make(folder)  # again, as after a correction of the chapter: what was handed in stays
    for command in (["autograde", NAME], ["generate_feedback", NAME], ["export"]):
        handout.nbgrader(*command, course=folder / "course")
    with (folder / "course" / "grades.csv").open(newline="") as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores == {"ada": 2, "bob": 0, "cleo": 0}
    feedback = folder / "course" / "feedback" / "bob" / NAME / f"{NAME}.html"
    assert "not twice" in feedback.read_text("utf-8")
    with pytest.raises(ValueError, match="nbgrader autograde 09_none"):
        handout.nbgrader("autograde", "09_none", course=folder / "course")
