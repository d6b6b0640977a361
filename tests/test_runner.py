"""The runner's promises, each tried with the fault that it guards against."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import nbformat
import pytest

from labkit.lab import environment, results, runner

FAULTS = {
    "02_raises": ['x = 1\nraise ValueError("two\\nlines")'],
    "03_exits": ["import sys\nsys.exit(0)"],
    "04_dies": ["import os\nos.kill(os.getpid(), 9)"],
    "05_leaves": ["import os\nos._exit(0)"],
    "06_other_run": ['import os\nos.environ["LABKIT_RUN_ID"] = "of another run"'],
    "07_full_disk": [
        "import errno, os\ndef full(*_, **__):\n"
        '    raise OSError(errno.ENOSPC, "No space left on device")\nos.replace = full'
    ],
}
CAUSES = {
    "02_raises": ['code cell 2 (`x = 1`, under "A section")', "ValueError: two.", "correct the"],
    "03_exits": ["code cell 2 (`import sys`", "SystemExit: 0", "correct the cell"],
    "04_dies": ["code cell 2 (`import os`", "the kernel died, by SIGKILL", "--workers 1"],
    "05_leaves": ["code cell 2", "the kernel died, exit code 0"],
    "06_other_run": ["run_id 'of another run'", "write_record('06_other_run', ...)"],
    "07_full_disk": ["code cell 3", "OSError: [Errno 28] No space left on device"],
    "14_killed_worker": ["TerminatedWorkerError: gone", "--profile quick --workers 1 (finished"],
    "15_lacks_rate": ["its record's settings lack the parameter 'rate'", "write every parameter"],
    "16_other_seeds": ["its record's settings say seeds = 5, the run had 4"],
    "08_no_record": ["it wrote no record", "write_record('08_no_record', ...)"],
    "09_skips": ["code cell 2 (`x = 1`", "the cell never ran"],
    "10_no_parameters": ["exactly one code cell tagged 'parameters', found 0", "nothing was run"],
    "11_wrong_name": ["unknown parameter 'seedz'", "did you mean 'seeds'?", "seeds: int, rate:"],
    "12_wrong_type": ["'seeds' must be int, got '3' (str)", "profiles/quick/12_wrong_type.json"],
}
UNSTARTED = ("10_no_parameters", "11_wrong_name", "12_wrong_type")
ENVIRONMENT = """import os
from pathlib import Path
found = [os.environ[name] for name in ("PYTHONHASHSEED", "OMP_NUM_THREADS", "LABKIT_WORKERS")]
assert found == ["0", "2", "3"], found
assert Path.cwd().parts[-3:] == (".staging", "quick", "01_sound"), Path.cwd()
from labkit.lab import environment
assert environment.CACHE == environment.ROOT / "elsewhere", environment.CACHE
"""
KILLED = """from joblib.externals.loky.process_executor import TerminatedWorkerError
raise TerminatedWorkerError("gone")"""
LACKS = """from labkit import results
results.write_record({!r}, profile=profile, settings={{"seeds": seeds}}, measures={{}})"""
BEFORE = "what was published before"


@pytest.fixture(scope="module")
def faulty(shared_lab):
    """A lab with a sound first and last chapter and every fault between them, run once."""
    shared_lab.environment["LABKIT_CACHE"] = "elsewhere"  # below the folder of the command
    shared_lab.add("01_sound", ENVIRONMENT)
    for chapter, sources in FAULTS.items():
        shared_lab.add(chapter, *sources)
    shared_lab.add("08_no_record", "x = 1", record=False)
    shared_lab.add("14_killed_worker", KILLED)
    shared_lab.add("15_lacks_rate", LACKS.format("15_lacks_rate"), record=False)
    shared_lab.add("16_other_seeds", "seeds += 1", settings={"seeds": 4})
    shared_lab.add("09_skips", "x = 1", tags=("skip-execution",))
    shared_lab.add("10_no_parameters", parameters=None)
    shared_lab.add("11_wrong_name", settings={"seedz": 3})
    shared_lab.add("12_wrong_type", settings={"seeds": "3"})
    shared_lab.add("13_sound", "x = 1", settings={"seeds": 7, "rate": 1})

    (shared_lab.results / "quick").mkdir(parents=True)
    for chapter in CAUSES:
        (shared_lab.results / "quick" / f"{chapter}.json").write_text(BEFORE)
    return shared_lab, shared_lab.run(
        "run", *["--profile", "quick", "--threads", "2", "--workers", "3"]
    )


@pytest.mark.parametrize("chapter", CAUSES)
def test_a_fault_is_one_line_and_publishes_nothing(faulty, chapter):
    lab, done = faulty
    lines = [line for line in done.stderr.splitlines() if f"{chapter}.ipynb" in line]

    assert len(lines) == 1
    assert lines[0].startswith(f"FAILED notebooks/{chapter}.ipynb")
    for part in [*CAUSES[chapter], ". Next: "]:
        assert part in lines[0]
    assert (lab.results / "quick" / f"{chapter}.json").read_text() == BEFORE


def test_other_chapters_go_on_and_the_command_fails(faulty):
    lab, done = faulty
    status = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[-17:-1]}

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == len(CAUSES)
    assert status.pop("01_sound") == status.pop("13_sound") == "finished"
    assert done.stdout.splitlines()[-1].startswith("These results are not reported. Notebooks with")
    assert status == dict.fromkeys(CAUSES, "failed")
    assert lab.record("01_sound")["measures"]["sum"] == 2.5
    assert lab.record("13_sound")["measures"]["sum"] == 8


def test_what_no_change_of_a_cell_mends_is_run_again_as_it_was(lab):
    """A download that failed: the command goes with all its options, and blames no cell."""
    lab.add(
        "01_a", "from labkit.lab.transfer import DownloadError\nraise DownloadError('no network')"
    )
    done = lab.run("run", "01", "--profile", "cpu", "--force")
    assert "DownloadError: no network. Next: python -m labkit run 01_a --profile cpu --force\n" in (
        done.stderr
    )


def test_a_download_error_keeps_all_its_lines(lab):
    lab.add("01_a", "class DownloadError(OSError): pass\nraise DownloadError('none:\\n  a\\n  b')")
    assert "DownloadError: none: a b. Next: python" in lab.run("run", "--profile", "quick").stderr


def test_a_setting_that_is_not_for_all_chapters_runs_none(lab):
    lab.add("01_a")
    lab.add("02_b", parameters='profile: str = "quick"\nother: int = 1')
    done = lab.run("run", "--profile", "quick", "--set", "seeds=3")
    assert done.returncode == 1
    status = {line.split()[0]: line.split()[1:3] for line in done.stdout.splitlines()[-2:]}
    assert status == {"01_a": ["not", "run"], "02_b": ["failed", "0.0"]}


def test_broken_notebooks_are_kept_and_sound_ones_too(faulty):
    lab, _ = faulty
    failed = {path.stem for path in (lab.results / ".failed" / "quick").glob("*.ipynb")}
    executed = {path.stem for path in (lab.results / ".executed" / "quick").glob("*.ipynb")}

    assert failed == {chapter for chapter in CAUSES if chapter not in UNSTARTED}
    assert executed == {"01_sound", "13_sound"}
    assert not list((lab.results / ".staging").rglob("*.ipynb"))


def test_what_is_up_to_date_is_not_run_again(lab):
    lab.add("01_a")
    assert lab.run("run", "01", "--profile", "quick").returncode == 0
    first = lab.record("01_a")

    again = lab.run("run", "01_a.ipynb", "--profile", "quick")
    assert again.returncode == 0
    assert "[1/1] 01_a: up to date" in again.stdout
    assert "Nothing had to run. To run all the same: make reproduce FORCE=1" in again.stdout
    assert lab.record("01_a") == first


def test_a_full_disk_at_publication_loses_nothing(lab):
    lab.add("01_a")
    assert lab.run("run", "--profile", "quick").returncode == 0
    before = {path: path.read_bytes() for path in (lab.results / "quick").rglob("*.json")}

    full = """
import errno, os, sys
from pathlib import Path
import labkit.__main__
real = os.replace
def replace(source, target, **options):
    if Path(target).parent.name == "quick" and Path(target).suffix == ".json":
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
    return real(source, target, **options)
os.replace = replace
sys.exit(labkit.__main__.main(sys.argv[1:]))
"""
    failed = lab.run("run", "--profile", "quick", "--force", "--set", "seeds=9", code=full)
    assert failed.returncode == 1
    assert (
        "FAILED notebooks/01_a.ipynb: OSError: [Errno 28] No space left on device" in failed.stderr
    )
    assert len(failed.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in before} == before

    mended = lab.run("run", "--profile", "quick", "--force", "--set", "seeds=8")
    assert mended.returncode == 0
    assert "01_a: finished the publication that was cut off" in mended.stdout
    assert lab.record("01_a")["measures"]["sum"] == 8.5


BUSY = """import os, time
from pathlib import Path
Path("{root}/pid").write_text(str(os.getpid()))
while True: sum(range(1000))
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_kernel(lab, signum):
    lab.add("01_busy", BUSY.format(root=lab.root))
    lab.add("02_later")
    process = lab.start("run", "--profile", "quick")
    kernel = int(lab.wait_for("pid"))
    second = lab.run("run", "--profile", "quick") if signum == signal.SIGTERM else None

    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 128 + signum
    assert not is_running(kernel)
    again = "the same command again goes on from here"
    assert stderr.splitlines() == [f"stopped by {signum.name}; {again}"]
    assert "01_busy   interrupted" in stdout
    assert "02_later  not run" in stdout
    assert not list((lab.results / "quick").glob("*"))

    if second:
        assert second.returncode == 2
        assert f"another run of 'quick' is under way (process {process.pid})" in second.stderr


SWEEP = """import os, time
import numpy as np
from pathlib import Path
from labkit.lab import environment, results
from labkit.lab.sweep import run_tasks

environment.prepare(seed=0, device="cpu")

def train(task, progress):
    with open("{root}/pids", "a") as file:
        print(os.getpid(), file=file)
    time.sleep({sleep})
    progress(1, 1)
    return {{"value": np.array([task["x"] ** 2.0])}}

tasks = [{{"label": f"task {{x}}", "x": x}} for x in range(4)]
found = run_tasks(tasks, train, name="squares", modules=["labkit.lab.sweep"], workers=1)
measures = {{"sum": sum(float(arrays["value"][0]) for arrays in found)}}
settings = {{"seeds": seeds, "rate": rate}}
results.write_record("01_sweep", profile=profile, settings=settings, measures=measures)
"""


def test_a_killed_run_resumes_to_the_same_record(tmp_path, lab):
    lab.add("01_sweep", SWEEP.format(root=lab.root, sleep=0.3), record=False)
    published = lab.results / "quick" / "01_sweep.json"
    published.parent.mkdir(parents=True)
    published.write_text(BEFORE)
    process = lab.start("run", "--profile", "quick")
    while len(lab.wait_for("pids").splitlines()) < 3:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    kernel = int(lab.wait_for("pids").split()[0])
    assert published.read_text() == BEFORE
    assert wait_until_gone(kernel, 5)

    resumed = lab.run("run", "--profile", "quick")
    assert resumed.returncode == 0, resumed.stderr
    assert 4 <= len(lab.wait_for("pids").splitlines()) <= 5
    record = lab.record("01_sweep")
    assert record["measures"]["sum"] == 0 + 1 + 4 + 9

    for stored in (lab.root / "data" / "cache").rglob("*.safetensors"):
        stored.unlink()
    assert lab.run("run", "--profile", "quick", "--force").returncode == 0
    assert results.identical(record, lab.record("01_sweep")) == []


def test_stored_notebooks_are_refreshed_in_place(lab):
    path = lab.add("01_a", 'import sys\nprint("noise", file=sys.stderr)\nprint("kept")')
    broken = lab.add("02_b", "1 / 0")
    before = broken.read_bytes()
    done = lab.run("notebooks")

    assert done.returncode == 1
    assert "FAILED notebooks/02_b.ipynb, code cell 2 (`1 / 0`" in done.stdout
    assert broken.read_bytes() == before
    assert "stderr not stored: noise" in done.stdout

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert [output.text for output in code[1].outputs] == ["kept\n"]
    assert [cell.id for cell in notebook.cells] == [f"cell-{n}" for n in range(4)]
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(cell.metadata.keys() <= {"tags"} for cell in notebook.cells)

    first = path.read_bytes()
    assert lab.run("notebooks", "01").returncode == 0
    assert path.read_bytes() == first


def test_an_edit_while_the_notebook_is_refreshed_is_kept(lab):
    path = lab.add(
        "01_a",
        "from pathlib import Path\n"
        f'path = Path("{lab.root}/notebooks/01_a.ipynb")\n'
        'path.write_text(path.read_text().replace("A section", "By hand"));',
    )
    done = lab.run("notebooks")
    assert done.returncode == 1
    assert "FAILED notebooks/01_a.ipynb: it was edited while it ran" in done.stdout
    assert "Next: python -m labkit notebooks 01_a" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "By hand" in path.read_text()
    assert '"execution_count": 1' not in path.read_text()


def test_a_copy_that_cannot_be_kept_does_not_undo_a_publication(lab):
    lab.add("01_a")
    lab.results.mkdir()
    (lab.results / ".executed").write_text("in the way")
    done = lab.run("run", "--profile", "quick")
    assert done.returncode == 0, done.stderr
    assert lab.record("01_a")["measures"]["sum"] == 2.5
    assert "01_a: up to date" in lab.run("run", "--profile", "quick").stdout


def test_lists_may_be_recorded_in_another_order(lab):
    record = (
        "from labkit import results\n"
        "results.write_record('01_a', profile=profile, settings={'lengths': sorted(lengths)}, "
        "measures={})"
    )
    lines = 'profile: str = "quick"\nlengths: list[int] = [20, 10]'
    lab.add("01_a", record, parameters=lines, record=False)
    assert lab.run("run", "--profile", "quick").returncode == 0
    assert lab.record("01_a")["settings"] == {"lengths": [10, 20]}


CUT_OFF = """
import sys
from labkit import __main__
from labkit.lab import publication
publication._carry_out = lambda *_: None
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_clean_first_finishes_a_publication_that_was_cut_off(lab):
    lab.add("01_a")
    lab.run("run", "--profile", "cpu", code=CUT_OFF)
    assert not (lab.results / "cpu" / "01_a.json").exists()
    done = lab.run("clean")
    assert done.returncode == 0, done.stderr
    assert "01_a: finished the publication that was cut off" in done.stdout
    assert lab.record("01_a", "cpu")["measures"]["sum"] == 2.5
    assert not (lab.results / ".staging").exists()


def test_clean_removes_runs_and_keeps_what_is_published(lab, monkeypatch):
    gone = ["results/.failed/quick/a", "results/.executed/cpu/a", "results/quick/a", "data/cache/a"]
    kept = ["results/cpu/a", "results/REPORT.md", "data/downloads/a", "data/digit_sum/a"]
    for name in gone + kept:
        (lab.root / name).parent.mkdir(parents=True, exist_ok=True)
        (lab.root / name).write_text("x")

    monkeypatch.setattr(environment, "RESULTS", lab.results)
    with runner.lock("cpu"):
        refused = lab.run("clean")
    assert refused.returncode == 2
    assert "another run of 'cpu' is under way" in refused.stderr
    assert all((lab.root / name).exists() for name in gone + kept)

    assert lab.run("clean").returncode == 0
    files = [path for path in lab.root.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(lab.root)) for path in files) == sorted(kept)
