"""Shared fixtures, and the environment that nbval's kernels inherit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pytest
from filelock import FileLock

from labkit.lab import machine

os.environ.update(machine.kernel_environment())
os.environ["LABKIT_PROGRESS"] = os.devnull  # no progress bars in the outputs that nbval compares

PLAYWRIGHT = ("playwright", "playwright", "make test EXTRAS=site brings it (50 MB)")
LEFT_OUT = {
    "test_memory_kernel.py": ("triton", "Triton", "make test EXTRAS=triton brings it (1 GB)"),
    "test_explorer.py": PLAYWRIGHT,
    "test_jupyterlab.py": PLAYWRIGHT,
    "test_site.py": ("myst_nb", "the site's builder", "make test EXTRAS=site brings it (200 MB)"),
}
collect_ignore = [name for name, (module, *_) in LEFT_OUT.items() if not find_spec(module)]

PATIENCE = 300  # seconds: a slow machine may take long, a broken lab takes for ever
PARAMETERS = (
    'profile: str = "quick"\nseed: int = 0\nseeds: int = 2\nrate: float = 0.5\n'
    'device_name: str = "cpu"'
)
RECORD = """from labkit.lab import record
record.write({chapter!r}, profile=profile, measures={{"sum": seeds + rate}})"""
SETTINGS = """from typing import Annotated
from pydantic import Field
from labkit.lab.settings import ChapterSettings, Count

class Settings(ChapterSettings):
    seeds: Count
    rate: Annotated[float, Field(gt=0)]
"""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in collect_ignore:
        _, what, how = LEFT_OUT[name]
        terminalreporter.write_line(f"left out: {name}, for {what} is not installed; {how}")


class Lab:
    """A lab of tiny chapters in a folder of its own, run through the real command line."""

    EDIT = """from labkit.lab import machine, notebooks
path = machine.notebook(*notebooks.chapters())
path.write_text(path.read_text().replace("seeds + rate", "seeds - rate"))"""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = sys.executable
        self.results = root / "results"
        self._processes: list[subprocess.Popen[str]] = []
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("LABKIT_")
        } | {"LABKIT_ROOT": str(root), "PYTHONPATH": str(Path(machine.__file__).parents[2])}
        (root / "toy.py").write_text(SETTINGS)

    def add(
        self,
        chapter: str,
        *sources: str,
        parameters: str | None = PARAMETERS,
        record: bool = True,
        settings: str = "",
        tags: tuple[str, ...] = (),
    ) -> Path:
        """Write a chapter: a parameters cell, the given code cells and the record's cell.

        `settings` are lines of TOML for every profile.
        """
        new = nbformat.v4.new_code_cell
        cells = [nbformat.v4.new_markdown_cell("# A chapter\n\n## A section")]
        if parameters is not None:
            cells.append(new(parameters, metadata={"tags": ["parameters"]}))
        cells += [new(source, metadata={"tags": list(tags)}) for source in sources]
        if record:
            cells.append(new(RECORD.format(chapter=chapter)))
        for number, cell in enumerate(cells):
            cell.id = f"cell-{number}"
        kernel = {"name": machine.KERNEL, "display_name": "LSTM course lab", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})

        profiles = self.root / "notebooks" / "profiles" / f"{chapter}.toml"
        profiles.parent.mkdir(parents=True, exist_ok=True)
        tables = "".join(f"[{profile}]\n{settings}\n" for profile in machine.PROFILES)
        profiles.write_text(f'settings = "toy:Settings"\n{tables}')
        path = self.root / "notebooks" / f"{chapter}.ipynb"
        nbformat.write(notebook, path)
        return path

    @staticmethod
    def default_signals() -> None:
        """As in a terminal, also where nohup or a background job has switched signals off."""
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

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
            preexec_fn=self.default_signals,
        )
        self._processes.append(process)
        return process

    def run(self, *arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*arguments, code=code)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def close(self) -> None:
        """End what a failed test left running."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=10)

    def record(self, chapter: str, profile: str = "quick") -> dict:
        return json.loads((self.results / profile / chapter / "record.json").read_text())

    def files(self, *parts: str) -> dict[str, bytes]:
        """Every file below a folder of results by its path, but for those of the lab's own runs."""
        folder = self.results.joinpath(*parts)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def wait_for(self, name: str) -> str:
        """The content of a file that a cell writes into the lab's folder, once it is there."""
        path, deadline = self.root / name, time.monotonic() + PATIENCE
        while not path.exists() or not path.read_text():
            assert time.monotonic() < deadline, f"{path} did not appear"
            time.sleep(0.05)
        return path.read_text()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty lab; its folder's name has what a path may have."""
    root = tmp_path / "a {lab} of 'her' π"
    root.mkdir()
    with contextlib.closing(Lab(root)) as lab:
        yield lab


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty lab for this process."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    for name in ("NOTEBOOKS", "RESULTS", "DATA"):
        monkeypatch.setattr(machine, name, tmp_path / name.lower())
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    return tmp_path


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """An empty lab for one module, for tests that look at one run from several sides."""
    with contextlib.closing(Lab(tmp_path_factory.mktemp("lab"))) as lab:
        yield lab


@pytest.fixture
def check_figure(monkeypatch) -> Callable[..., None]:
    """A function that checks what every figure has: name, text, labels, and pixels of its data.

    `make` and `make_other` draw it, from data that differ; coarsely, for speed.
    """
    from labkit.measure import plots

    monkeypatch.setattr(plots, "DPI", 40)

    def check(name: str, make: Callable, make_other: Callable) -> None:
        figure = make()
        assert figure.labkit_name == name
        assert len(figure.labkit_alt) > 60
        assert figure.labkit_alt.endswith(".")
        shown = [ax for ax in figure.axes if ax.axison]
        assert any(ax.get_xlabel() or len(ax.get_xticklabels()) > 1 for ax in shown)
        assert plots.png_bytes(figure) == plots.png_bytes(make())
        assert plots.png_bytes(figure) != plots.png_bytes(make_other())

    return check


# the site, and a browser on it


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built once for all tests, as `make site` builds it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    root = Path(__file__).resolve().parents[1]
    done = shared / "site-built"
    with FileLock(shared / "site.lock"):
        if not done.exists():
            command = [sys.executable, str(root / "site" / "build.py")]
            build = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            assert build.returncode == 0, build.stderr[-3000:]
            done.touch()
    return root / "build" / "site" / "html"


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served, for this machine alone."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, that of the machine."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("LABKIT_CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.fail("no chromium for the site's tests; LABKIT_CHROMIUM names one that is elsewhere")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page that must not complain, nor ask another machine for anything."""
    wrong: list[str] = []
    with browser.new_context(base_url=address) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        local = (address, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(local) else wrong.append(r.url))
        yield page
    assert wrong == []
