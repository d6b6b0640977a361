"""The runner's promises, each tried from outside with the fault that it guards against."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import time

import pytest

FAULTS = {
    "02_raises": ['x = 1\nraise ValueError("two\\nlines, \\udcff")'],  # a surrogate
    "03_exits": ["import sys\nsys.exit(0)"],
    "04_dies": ["import os\nos.kill(os.getpid(), 9)"],
    "06_other_run": ['import os\nos.environ["LABKIT_RUN_ID"] = "of another run"'],
    "07_full_disk": [
        "import errno, os\ndef full(*_, **__):\n"
        '    raise OSError(errno.ENOSPC, "No space left on device")\nos.replace = full'
    ],
    "14_killed_worker": [
        "from joblib.externals.loky.process_executor import TerminatedWorkerError\n"
        'raise TerminatedWorkerError("gone")'
    ],
    "15_download": ["class DownloadError(OSError): pass\nraise DownloadError('none:\\n  a\\n  b')"],
    "16_quits": ["exit()"],
    "18_odd_output": ["from IPython.display import display\ndisplay({'image/png': 3}, raw=True)"],
}
CAUSES = {
    "02_raises": ['code cell 2 (`x = 1`, under "A section")', "ValueError: two", "correct the"],
    "03_exits": ["code cell 2 (`import sys`", "SystemExit: 0", "correct the cell"],
    "04_dies": ["code cell 2 (`import os`", "the kernel died, by SIGKILL", "--workers 1"],
    "06_other_run": ["its record is not of this run"],
    "07_full_disk": ["code cell 3", "OSError: [Errno 28] No space left on device", "free some"],
    "14_killed_worker": ["TerminatedWorkerError: gone", "--profile quick --workers 1 (kept"],
    "15_download": ["DownloadError: none: a b. Next: python -m labkit run 15_download"],
    "16_quits": ["code cell 2 (`exit()`"],
    "18_odd_output": ["18_odd_output.ipynb"],
    "08_no_record": ["it wrote no record", "record.write(...)"],
    "09_skips": ["code cell 2 (`x = 1`", "the cell never ran"],
    "10_no_parameters": ["one code cell tagged 'parameters', has 0", "nothing was run"],
    "11_wrong_name": ["unknown parameter 'seedz'", "did you mean 'seed'?"],
}
UNSTARTED = ("10_no_parameters", "11_wrong_name")
SOUND = """import os
from pathlib import Path
names = ("PYTHONHASHSEED", "OMP_NUM_THREADS", "LABKIT_WORKERS", "MATPLOTLIBRC", "PYTHONNOUSERSITE")
values = [os.environ[name] for name in names]
assert values == ["0", "1", "3", os.devnull, "1"], values
from labkit.lab import machine
assert machine.CACHE == machine.ROOT / "elsewhere", machine.CACHE
"""


@pytest.fixture(scope="module")
def faulty(shared_lab):
    """A lab with every fault and a sound last chapter, run once."""
    shared_lab.environment["LABKIT_CACHE"] = "elsewhere"  # below the folder of the command
    for chapter, sources in FAULTS.items():
        shared_lab.add(chapter, *sources)
    shared_lab.add("08_no_record", "x = 1", record=False)
    shared_lab.add("09_skips", "x = 1", tags=("skip-execution",))
    shared_lab.add("10_no_parameters", parameters=None)
    shared_lab.add("11_wrong_name", settings="seedz = 3")
    shared_lab.add("19_sound", SOUND, settings="seeds = 7\nrate = 1")
    for chapter in CAUSES:
        before = shared_lab.results / "quick" / chapter / "record.json"
        before.parent.mkdir(parents=True)
        before.write_text("what was published before")
    return shared_lab, shared_lab.run("run", "--profile", "quick", "--workers", "3")


@pytest.mark.parametrize("chapter", CAUSES)
def test_a_fault_is_one_line_and_publishes_nothing(faulty, chapter):
    lab, done = faulty
    lines = [line for line in done.stderr.splitlines() if f"{chapter}.ipynb" in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"FAILED notebooks/{chapter}.ipynb")
    for part in [*CAUSES[chapter], ". Next: "]:
        assert part in lines[0]
    assert lab.files("quick", chapter) == {"record.json": b"what was published before"}


def statuses(stdout: str) -> dict[str, str]:
    """Chapter -> first word of its status in the table at a run's end."""
    return dict(re.findall(r"(?m)^(\d\d_\w+) +(\w+)[\w ]* +[\d.]+$", stdout))


def test_other_chapters_go_on_and_the_command_fails(faulty):
    lab, done = faulty
    status = statuses(done.stdout)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == len(CAUSES), done.stderr
    assert status.pop("19_sound") == "finished"
    assert status == dict.fromkeys(CAUSES, "failed")
    assert lab.record("19_sound")["measures"]["sum"] == 8
    assert lab.record("19_sound")["settings"] == {
        "seed": 0, "seeds": 7, "rate": 1.0, "device_name": "cpu",
    }  # fmt: skip
    assert not list((lab.results / "quick").glob(".*"))
    failed = {path.stem for path in (lab.results / ".failed" / "quick").glob("*/*.ipynb")}
    executed = {path.stem for path in (lab.results / ".executed" / "quick").glob("*.ipynb")}
    assert failed == {chapter for chapter in CAUSES if chapter not in UNSTARTED}
    assert executed == {"19_sound"}


def test_a_setting_that_is_not_for_all_chapters_runs_none(lab):
    lab.add("01_a")
    lab.add("02_b", parameters='profile: str = "quick"\nother: int = 1')
    done = lab.run("run", "--profile", "quick", "--set", "seeds=3")
    assert done.returncode == 1
    assert statuses(done.stdout) == {"01_a": "not", "02_b": "failed"}


def test_what_is_up_to_date_is_not_run_again_and_set_is(lab):
    lab.add("01_a")
    assert lab.run("run", "1", "--profile", "quick").returncode == 0
    first = lab.files("quick")
    again = lab.run("run", "01_a.ipynb", "--profile", "quick")
    assert (again.returncode, again.stderr) == (0, "")
    assert "[1/1] 01_a: up to date" in again.stdout
    assert "To run all the same: make reproduce FORCE=1" in again.stdout
    assert lab.files("quick") == first
    lab.run("run", "01", "--profile", "quick", "--set", "seeds=3")
    assert lab.record("01_a")["measures"]["sum"] == 3.5


def test_an_edit_during_the_run_makes_the_record_stale(lab):
    lab.add("01_a", lab.EDIT)
    assert lab.run("run", "--profile", "quick").returncode == 0
    assert lab.record("01_a")["code"]["notebook"] == "edited during the run"
    look = "from labkit.lab import report; print(report.stale_reasons('01_a', 'quick'))"
    assert "the code has moved on (notebook)" in lab.run(code=look).stdout


FULL = """
import errno, os, sys
from pathlib import Path
from labkit import __main__
real = os.replace
def replace(source, target, **options):
    if Path(target).name == "01_a" and Path(source).name == "complete":
        raise OSError({number}, os.strerror({number}), str(target))
    return real(source, target, **options)
os.replace = replace
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_a_publication_that_fails_loses_nothing_and_locks_nothing(lab):
    lab.add("01_a")
    assert lab.run("run", "--profile", "quick").returncode == 0
    before = lab.files("quick")
    command = ["run", "--profile", "quick", "--set", "seeds=8"]
    for number in (18, 28):  # another file system; no space left
        failed = lab.run(*command, code=FULL.format(number=number))
        assert failed.returncode == 1
        assert f"FAILED notebooks/01_a.ipynb: [Errno {number}]" in failed.stderr
        assert lab.files("quick") == before
    assert lab.run(*command).returncode == 0
    assert lab.record("01_a")["measures"]["sum"] == 8.5


BUSY = """import os, time
from pathlib import Path
from labkit.lab import machine
Path(machine.ROOT / "pid").write_text(str(os.getpid()))
while True: sum(range(1000))
"""


def is_gone(pid: int, seconds: float = 0) -> bool:
    """Whether a process ends within so many seconds."""
    deadline, command = time.monotonic() + seconds, ["ps", "-o", "stat=", "-p", str(pid)]
    while subprocess.run(command, capture_output=True).stdout[:1] not in (b"", b"Z"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_kernel(lab, signum):
    lab.add("01_busy", BUSY)
    lab.add("02_later")
    process = lab.start("run", "--profile", "quick")
    kernel = int(lab.wait_for("pid"))
    second = lab.run("run", "--profile", "quick") if signum == signal.SIGTERM else None
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert is_gone(kernel)
    assert stderr.splitlines()[-1].startswith(f"stopped by {signum.name}; the same command")
    assert statuses(stdout) == {"01_busy": "interrupted", "02_later": "not"}
    assert lab.files("quick") == {}
    if second:
        assert second.returncode == 2
        assert "another run of 'quick' is under way" in second.stderr


def test_a_closed_terminal_ends_the_run_though_make_does_not_pass_it_on(lab):
    """make leads the session, gets the hang-up and waits for a child that was never told."""
    lab.add("01_busy", BUSY)
    command = f'"{lab.python}" -m labkit run --profile quick'
    child, terminal = pty.fork()
    if child == 0:
        lab.default_signals()
        os.chdir(lab.root)
        os.execvpe("sh", ["sh", "-c", f"trap : HUP; {command}"], lab.environment)
    kernel = int(lab.wait_for("pid"))
    os.close(terminal)
    assert is_gone(kernel, 15)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_cell_may_have_a_time_limit(lab):
    lab.add("01_a", "import time\ntime.sleep(600)")
    done = lab.run("run", "--profile", "quick", "--cell-timeout", "2")
    assert done.returncode == 1
    assert "after 2 seconds. Next: python -m labkit run 01_a" in done.stderr


SWEEP = """import os, sys
sys.path.insert(0, {root!r})
import squares
from labkit.lab import machine, record, store
machine.prepare(seed=0, device="cpu")
results = store.train([squares.Square(x=x) for x in range(4)], name="squares", workers=2)
measures = {{"sum": sum(float(arrays["value"][0]) for arrays in results)}}
record.write("01_sweep", profile=profile, measures=measures)
"""
SQUARES = """import os, time
import numpy as np
from pathlib import Path
from labkit.lab import machine
from labkit.lab.store import Specification, specification

@specification
class Square(Specification):
    x: int
    def train(self, progress):
        with open(machine.ROOT / "pids", "a") as file:
            print(os.getpid(), file=file)
        time.sleep(0.3)
        progress(1, 1)
        return {"value": np.array([self.x ** 2.0])}

Square.__module__ = "labkit.measure.statistics"  # whose code is then in the key
"""


def test_a_killed_run_resumes_to_the_record_of_a_whole_one(lab):
    (lab.root / "squares.py").write_text(SQUARES)
    lab.add("01_sweep", SWEEP.format(root=str(lab.root)), record=False)
    process = lab.start("run", "--profile", "quick")
    while not (kept := list((lab.root / "data" / "cache").rglob("*.safetensors"))):
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (lab.results / "quick" / "01_sweep").exists()
    pids = {*map(int, lab.wait_for("pids").split())}  # of what the kernel started
    assert all(is_gone(pid, 15) for pid in pids)
    made = kept[0].stat().st_mtime_ns

    resumed = lab.run("run", "--profile", "quick")
    assert resumed.returncode == 0, resumed.stderr
    assert kept[0].stat().st_mtime_ns == made  # not made again
    assert lab.record("01_sweep")["measures"]["sum"] == 0 + 1 + 4 + 9
