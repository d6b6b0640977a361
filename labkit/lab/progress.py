"""What a person sees while chapters run: one redrawn line in a terminal, few lines in a log.

Trainings report by appending JSON lines to a file (see `labkit.lab.sweep`); a thread reads it and draws
the chapter, the training and the time left.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

LOG_EVERY = 60.0  # seconds between two progress lines in a log
DRAW_EVERY = 0.5  # seconds between two looks at the file


class Trainings:
    """The state of one chapter's trainings, fed with the lines of its progress file."""

    def __init__(self) -> None:
        self._sweep: tuple[str, int] | None = None
        self._fractions: dict[str, float] = {}
        self.label = ""
        self.total = 0
        self.restarts = 0

    @property
    def done(self) -> float:
        """Trainings done, those under way counted by their fraction."""
        return sum(self._fractions.values())

    def feed(self, line: str) -> None:
        """Take in one line; a line that was cut off by a kill is passed over."""
        try:
            event = json.loads(line)
            task, done, total = str(event["task"]), float(event["done"]), float(event["total"])
            tasks = int(event.get("tasks", 1)) - int(event.get("stored", 0))
        except (ValueError, KeyError, TypeError):
            return
        sweep = (str(event.get("sweep", "")), tasks)
        if sweep != self._sweep:
            self._sweep, self._fractions = sweep, {}
            self.restarts += 1
        self._fractions[task] = min(done / total, 1.0) if total > 0 else 1.0
        self.label = f"{task} {done:,.0f}/{total:,.0f}"
        self.total = max(tasks, len(self._fractions))


class Display:
    """Draws one chapter's progress from its start to its end; use it as a context manager."""

    def __init__(self, chapter: str, file: Path, stream: TextIO | None = None) -> None:
        self.cell = ""
        self._chapter, self._file = chapter, file
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._trainings = Trainings()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Display:
        self._file.write_text("")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        from tqdm import tqdm

        bar = tqdm(
            total=1,
            file=self._stream,
            disable=not self._terminal,
            leave=False,
            ncols=80,
            nrows=24,
            bar_format="{desc}",
        )
        drawn, logged, rest = 0, time.monotonic(), ""
        with bar, self._file.open(encoding="utf-8") as file:
            while not self._stop.wait(DRAW_EVERY):
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    self._trainings.feed(line)
                if self._terminal:
                    if self._trainings.restarts != drawn:
                        drawn = self._trainings.restarts
                        bar.reset()
                    self._draw(bar)
                elif lines and time.monotonic() - logged >= LOG_EVERY:
                    logged = time.monotonic()
                    print(f"{self._chapter}: {self._summary()}", file=self._stream, flush=True)

    def _summary(self) -> str:
        now = self._trainings
        return f"{now.done:.1f} of {now.total} trainings, {now.label}"

    def _draw(self, bar) -> None:
        now = self._trainings
        bar.ncols = shutil.get_terminal_size().columns - 1
        busy = now.done < now.total
        label = now.label if busy else self.cell
        bar.set_description_str(f"{self._chapter}: {label}", refresh=False)
        if busy:
            bar.bar_format = "{desc} |{bar}| {n:.1f}/{total_fmt} trainings [{elapsed}<{remaining}]"
            bar.total = now.total
            bar.n = now.done
        else:
            bar.bar_format = "{desc} [{elapsed}]"
        bar.refresh()
