"""A chapter in JupyterLab, as `make lab` opens it: it runs, and its explorer answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.lab import machine

PATIENCE = 120  # seconds


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where JupyterLab serves working copies of its own; all else is the lab's."""
    for name in ("data", "notebooks", "results", "site"):
        (tmp_path / name).symlink_to(machine.ROOT / name)
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "RUNTIME")}
    environment = os.environ | folders | {"LABKIT_ROOT": str(tmp_path)}
    del environment["LABKIT_PROGRESS"]  # a student runs the cells
    command = [sys.executable, "-m", "labkit", "lab", "--no-browser", "--ServerApp.port=0"]
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            told, deadline = "", time.monotonic() + PATIENCE
            while not told.endswith("}"):
                assert server.poll() is None, Path(log.name).read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.1)
                files = (tmp_path / "RUNTIME").glob("jpserver-*.json")
                told = "".join(file.read_text() for file in files)
            chapter = Path("work", "03_gate_analysis.ipynb")
            yield "{url}lab/tree/{chapter}?token={token}".format(
                chapter=chapter, **json.loads(told)
            )
        finally:
            server.terminate()


def test_a_chapter_runs_and_its_explorer_answers(browser: Any, address: str) -> None:
    page, errors = browser.new_page(), []
    page.set_default_timeout(1000 * PATIENCE)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_text("LSTM course lab | Idle").wait_for()
    for item in ("Run", "Run All Cells"):
        page.get_by_role("menuitem", name=item, exact=True).click()
    explorer = page.get_by_role("region", name="Gate explorer")
    explorer.wait_for(state="attached")
    explorer.scroll_into_view_if_needed()

    said, field = explorer.locator("[aria-live]").first, explorer.get_by_label("10 digits")
    before = said.text_content()
    assert before.startswith("Model 1 predicts ")
    field.fill("1900000080")
    assert said.text_content() != before
    field.fill("123")
    assert field.get_attribute("aria-invalid") == "true"
    assert errors == []
    page.close()
