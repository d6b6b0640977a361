"""Shared fixtures, and the environment that nbval's kernels inherit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest

from labkit.lab import environment
from labkit.lab.transfer import PIECE

os.environ.update(environment.kernel_environment())
os.environ["LABKIT_PROGRESS"] = os.devnull  # no progress bars in the outputs that nbval compares

PARAMETERS = 'profile: str = "quick"\nseeds: int = 2\nrate: float = 0.5'
RECORD = """from labkit import results
settings, measures = {{"seeds": seeds, "rate": rate}}, {{"sum": seeds + rate}}
results.write_record({chapter!r}, profile=profile, settings=settings, measures=measures)"""


PAGE = b"<!DOCTYPE html><title>Log in</title>" + b" " * 1000


class Lab:
    """A lab of tiny chapters in a folder of its own, run through the real command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results = root / "results"
        self._processes: list[subprocess.Popen[str]] = []
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("LABKIT_")
        } | {"LABKIT_ROOT": str(root)}

    def add(
        self,
        chapter: str,
        *sources: str,
        parameters: str | None = PARAMETERS,
        record: bool = True,
        settings: object = None,
        tags: tuple[str, ...] = (),
    ) -> Path:
        """Write a chapter: a parameters cell, the given code cells and the record's cell."""
        new = nbformat.v4.new_code_cell
        cells = [nbformat.v4.new_markdown_cell("# A chapter\n\n## A section")]
        if parameters is not None:
            cells.append(new(parameters, metadata={"tags": ["parameters"]}))
        cells += [new(source, metadata={"tags": list(tags)}) for source in sources]
        if record:
            cells.append(new(RECORD.format(chapter=chapter)))
        for number, cell in enumerate(cells):
            cell.id = f"cell-{number}"
        kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})

        path = self.root / "notebooks" / f"{chapter}.ipynb"
        for profile in environment.PROFILE_NAMES:
            file = self.root / "notebooks" / "profiles" / profile / f"{chapter}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({} if settings is None else settings))
        nbformat.write(notebook, path)
        return path

    def start(self, *arguments: str, code: str | None = None) -> subprocess.Popen[str]:
        """Start `python -m labkit`, or the given code, in the background."""
        command = ["-c", code] if code else ["-m", "labkit"]
        process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def run(self, *arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, within a minute."""
        process = self.start(*arguments, code=code)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def close(self) -> None:
        """End what a failed test left running."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=10)

    def record(self, chapter: str, profile: str = "quick") -> dict:
        return json.loads((self.results / profile / f"{chapter}.json").read_text())

    def wait_for(self, name: str, seconds: float = 30) -> str:
        """The content of a file that a cell writes into the lab's folder, once it is there."""
        path, deadline = self.root / name, time.monotonic() + seconds
        while not path.exists() or not path.read_text():
            assert time.monotonic() < deadline, f"{path} did not appear within {seconds} s"
            time.sleep(0.05)
        return path.read_text()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty lab."""
    with contextlib.closing(Lab(tmp_path)) as lab:
        yield lab


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """An empty lab for one module, for tests that look at one run from several sides."""
    with contextlib.closing(Lab(tmp_path_factory.mktemp("lab"))) as lab:
        yield lab


class Server(ThreadingHTTPServer):
    """Serves `files`; each request takes the next of `faults`, if any, and is noted in `ranges`.

    A fault is a status, "page" or "disguised page" for a web page in the file's place, "cut" or
    "stall" after the first `half` bytes: two pieces, for of a piece that is cut nothing is kept.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.paths: list[str] = []
        self.faults: list[object] = []
        self.ranges: list[str | None] = []
        self.conditions: list[str | None] = []
        self.sent = 0
        self.half = 2 * PIECE
        self.honours_ranges = True
        self.pause = 0.0
        self.released = threading.Event()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.root}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        span = self.headers["Range"]
        server.paths.append(self.path)
        server.ranges.append(span)
        server.conditions.append(self.headers["If-Range"])
        fault = server.faults.pop(0) if server.faults else None
        content = server.files.get(self.path)
        if content is None or isinstance(fault, int):
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        if fault in ("page", "disguised page"):
            body = PAGE if fault == "disguised page" else b"Please log in"
            self._begin(200, body, "text/html" if fault == "page" else "application/gzip")
            self.wfile.write(body)
            return
        status, start, extra = 200, 0, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        if self.path.endswith(".gz"):
            extra["Content-Encoding"] = "x-gzip"  # as Apache may
        if span and server.honours_ranges:
            status, start = 206, int(re.fullmatch(r"bytes=(\d+)-", span).group(1))
            if start >= len(content):
                self.send_error(416)
                return
            extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._begin(status, content[start:], "application/octet-stream", extra)
        self._send(content[start:], fault)

    def _begin(self, status: int, body: bytes, kind: str, extra: dict | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": len(body), "Content-Type": kind, **(extra or {})}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def _send(self, body: bytes, fault: object) -> None:
        server = self.server
        time.sleep(server.pause)
        part = body[: server.half] if fault in ("cut", "stall") else body
        self.wfile.write(part)
        server.sent += len(part)
        if fault == "stall":
            self.wfile.flush()
            server.released.wait(5)


@pytest.fixture
def fault_server() -> Iterator[Server]:
    """A local web server with faults."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def chapter_page(tmp_path, monkeypatch) -> Callable[..., str]:
    """A function that renders a chapter's part of the report from measures, None for no record."""
    from labkit.lab import report, results

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(environment, "RESULTS", tmp_path / "results")

    def render(chapter: str, found: dict | None, *, profile: str = "cpu", **record) -> str:
        path = tmp_path / "notebooks" / f"{chapter}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"cells": []}')
        os.utime(path, (0, 0))
        if found is not None:
            staging = environment.RESULTS / ".staging" / profile / chapter
            monkeypatch.setenv("LABKIT_STAGING", str(staging))
            results.write_record(chapter, profile=profile, measures=found, **record)
            results.publish(staging, chapter, profile)
        text = report.render()
        start = text.index(f"## {report.TITLES[chapter]}\n")
        return re.split(r"^## ", text[start + 3 :], flags=re.M)[0]

    return render


@pytest.fixture
def check_figure() -> Callable[..., None]:
    """A function that checks what every figure has: name, text, labels, and data of its own.

    `make` and `make_other` draw it, from data that differ.
    """
    from labkit.measure import plots as figures

    def check(name: str, make: Callable, make_other: Callable) -> None:
        fig = make()
        assert fig.labkit_name == name
        assert len(fig.labkit_alt) > 60
        assert fig.labkit_alt.endswith(".")
        shown = [ax for ax in fig.axes if ax.axison]
        assert any(ax.get_xlabel() or len(ax.get_xticklabels()) > 1 for ax in shown)
        assert figures.data_digest(fig) == figures.data_digest(make())
        assert figures.data_digest(fig) != figures.data_digest(make_other())

    return check


@pytest.fixture
def check_bytes(monkeypatch) -> Callable[[Callable], None]:
    """A function that checks that a figure is drawn to the same PNG twice, coarsely for speed."""
    from labkit.measure import plots as figures

    monkeypatch.setattr(figures, "DPI", 40)

    def check(make: Callable) -> None:
        png = figures.png_bytes(make())
        assert png.startswith(b"\x89PNG")
        assert png == figures.png_bytes(make())

    return check
