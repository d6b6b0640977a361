"""Progress: one redrawn line in a terminal, few lines in a log."""

from __future__ import annotations

import io
import json
import time

import pytest

from labkit.lab.progress import Display, Trainings


def test_trainings_count_fractions_and_pass_over_torn_lines():
    trainings = Trainings()
    lines = [
        {"task": "a", "done": 50, "total": 100, "tasks": 4},
        {"task": "b", "done": 100, "total": 100, "tasks": 4},
    ]
    for line in lines:
        trainings.feed(json.dumps(line))
    trainings.feed('{"task": "c", "do')
    assert (trainings.done, trainings.total, trainings.label) == (1.5, 4, "b 100/100")

    trainings.feed(json.dumps({"task": "c", "done": 1, "total": 2, "tasks": 9}))
    assert (trainings.done, trainings.total) == (0.5, 9)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_terminal_shows_progress_and_a_log_stays_quiet(tmp_path, monkeypatch, stream):
    monkeypatch.setattr("labkit.lab.progress.DRAW_EVERY", 0.02)
    events = tmp_path / "events"
    with Display("02_sweep", events, stream):
        for done in (10, 15):
            with events.open("a") as file:
                print(
                    json.dumps({"task": "L=10", "done": done, "total": 20, "tasks": 2}), file=file
                )
            time.sleep(0.2)
    text = stream.getvalue()
    if stream.isatty():
        assert "02_sweep: L=10 15/20 |" in text
        assert "0.8/2 trainings [" in text
        assert "\n" not in text.strip()
    else:
        assert text == ""


def test_a_log_gets_a_line_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.lab.progress.DRAW_EVERY", 0.02)
    monkeypatch.setattr("labkit.lab.progress.LOG_EVERY", 0.1)
    stream, events = io.StringIO(), tmp_path / "events"
    with Display("02_sweep", events, stream):
        time.sleep(0.2)
        with events.open("a") as file:
            print(json.dumps({"task": "L=10", "done": 10, "total": 20, "tasks": 2}), file=file)
        time.sleep(0.2)
    assert stream.getvalue() == "02_sweep: 0.5 of 2 trainings, L=10 10/20\n"
