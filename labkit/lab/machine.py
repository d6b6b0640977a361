"""Where things are, what the lab runs on, and how a run is made to repeat itself.

torch and numpy are imported where they are needed, so that the command line starts at once.
"""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(os.environ.get("LABKIT_ROOT") or Path(__file__).parents[2]).resolve()
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
DATA = ROOT / "data"
CACHE = Path(os.environ.get("LABKIT_CACHE") or DATA / "cache").resolve()
DOWNLOADS = Path(os.environ.get("LABKIT_DOWNLOADS") or DATA / "downloads").resolve()
PROFILES = ("quick", "cpu", "full")
REPORTED = ("full", "cpu")  # the first that holds a record is the one reported
KERNEL = "lstm-course-lab"
PACKAGES = (
    "torch", "torchtext", "numpy", "scipy", "scikit-learn", "transformers", "tokenizers",
    "matplotlib", "seaborn", "safetensors", "ipykernel",
)  # fmt: skip

# With these, glibc keeps freed blocks of a few MB instead of returning them to the system and
# taking them anew in every batch, which costs an LSTM on long texts a quarter of its time.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}

_prepared: list[Road | None] = [None]


@dataclass(frozen=True)
class Road:
    """How work is done on a machine: `workers` trainings at once on `device`."""

    name: str  # "kernel", "graphs", "gpu" or "cores"
    device: str  # "cuda" or "cpu"
    workers: int
    why: str

    @property
    def shared(self) -> bool:
        """Whether trainings run in threads of one process, for a GPU lets processes only take
        turns. They draw from generators of their own."""
        return self.name in ("kernel", "graphs")

    def __str__(self) -> str:
        return f"{self.name} on {self.device}, {self.workers} at once: {self.why}"


# The roads on a GPU for each kind of work, the fastest first: name, what it needs, trainings at
# once, and why. Work without such a road gains nothing from a GPU.
GPU_ROADS: dict[str, list[tuple[str, str, int, str]]] = {
    "replicas": [
        ("kernel", "triton", 6, "one kernel trains all replicas, many steps in a launch"),
        ("graphs", "", 4, "a step is one captured graph, for there is no Triton"),
    ],
    "stacks": [("graphs", "", 4, "a step is one captured graph of many small kernels")],
    "reviews": [
        ("gpu", "mps", 12, "cuDNN's layers, several processes on the GPU by MPS"),
        ("gpu", "", 4, "cuDNN's layers, several processes take turns on the GPU"),
    ],
    "encoder": [("gpu", "", 6, "large products, several processes fill each other's gaps")],
    "small": [],
}
GIGABYTES = {"reviews": 3, "encoder": 9}  # of the GPU's memory, for each process
MPS = "nvidia-cuda-mps-control"
MPS_FOLDERS = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
MPS_CLIENT = """import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
assert not (cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0))"""


def notebook(chapter: str) -> Path:
    """Where the notebook of a chapter lies; those with a letter, such as 01a, are appendices."""
    return NOTEBOOKS / ("appendix" if chapter[2:3].isalpha() else "") / f"{chapter}.ipynb"


def shown(path: Path) -> str:
    """A path as messages name it: relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def kernel_environment(threads: int = 1) -> dict[str, str]:
    """Variables that must be set before a process starts, for `threads` threads of arithmetic."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LABKIT_THREADS")
    return dict.fromkeys(pools, str(threads)) | {
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONNOUSERSITE": "1",
        "MATPLOTLIBRC": os.devnull,  # a reader's settings would change the figures
        **MALLOC,
    }


def count_from(variable: str) -> int | None:
    """The number of at least 1 that a variable of the environment holds, None when unset."""
    given = os.environ.get(variable)
    if given and not (given.isdecimal() and int(given)):
        raise ValueError(f"{variable} must be a whole number of at least 1, got {given!r}")
    return int(given) if given else None


def device(name: str = "auto") -> torch.device:
    """The device called "cpu", "cuda", or "auto" (CUDA where there is a GPU)."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': this torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def shared_gpu(wanted: bool = True) -> Iterator[None]:
    """Let processes that begin meanwhile compute on a GPU at the same time, and not in turns.

    NVIDIA's MPS does so. Where it is missing or does not work, nothing changes; no result does.
    """
    control = shutil.which(MPS) if wanted and MPS_FOLDERS[0] not in os.environ else None
    if not control:
        yield
        return
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 60}
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        variables = dict.fromkeys(MPS_FOLDERS, folder)
        started = {**quiet, "env": os.environ | variables}
        try:
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run([control, "-d"], check=True, **started)
                subprocess.run([sys.executable, "-c", MPS_CLIENT], check=True, **started)
                os.environ |= variables
            yield
        finally:
            for name in MPS_FOLDERS:
                os.environ.pop(name, None)
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run([control], input=b"quit\n", **started)


def find_road(work: str, device_name: str = "auto") -> Road:
    """The fastest sound road for a kind of `work`, one of `GPU_ROADS`, on this machine; a device
    given by name, and `LABKIT_WORKERS`, are obeyed."""
    import joblib
    import torch

    cuda, cores = device(device_name).type == "cuda", joblib.cpu_count()
    if cuda and work in GIGABYTES:
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        cores = min(cores, max(1, int(memory / GIGABYTES[work])))
    has = {"": cuda, "triton": util.find_spec("triton"), "mps": MPS_FOLDERS[0] in os.environ}
    roads = [
        Road(name, "cuda", min(workers, cores), why)
        for name, needs, workers, why in GPU_ROADS[work]
        if cuda and has[needs]
    ]
    if device_name == "cuda":
        roads.append(Road("gpu", "cuda", 1, "the device was asked for by name"))
    why = "launches would take longer than the work" if cuda else "no GPU is used"
    found = [*roads, Road("cores", "cpu", cores, why)][0]
    return replace(found, workers=count_from("LABKIT_WORKERS") or found.workers)


def prepare(seed: int = 0, device: str = "auto", work: str | None = None) -> torch.device:
    """Make this process repeatable and return the device that the road for `work` takes.

    A chapter names its kind of work, and the road is printed; without one, `device` alone decides.
    Seeds the generators of Python, numpy and torch (`seed` is in 0..2**32-1), chooses torch's
    deterministic kernels, turns cuDNN's search and TF32 off, and sets as many threads as
    `LABKIT_THREADS` says.
    """
    import numpy as np
    import torch

    chosen = find_road(work or "small", device)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(count_from("LABKIT_THREADS") or 1)
    _prepared.append(chosen)
    if work:
        print(chosen)
    return torch.device(chosen.device)


def provenance() -> dict[str, Any]:
    """What a record says about the machine: device, CPU, threads, versions; no user and no host."""
    used, cpu = _prepared[-1], _cpu_name()
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    facts = {
        "device": used.device if used else "cpu",
        "road": asdict(used) if used else None,
        "device_name": cpu,
        "cpu": cpu,
        "cpu_capability": None,
        "cuda": None,
        "threads": count_from("LABKIT_THREADS") or 1,
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions},
    }
    if "torch" in sys.modules:  # a chapter that never needed it should not wait for it here
        import torch

        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        facts["threads"] = torch.get_num_threads()
        if used is not None and used.device == "cuda":
            facts["device_name"] = torch.cuda.get_device_name()
            facts["cuda"] = torch.version.cuda
    return facts


def _cpu_name() -> str:
    """The processor's name where the system tells it, else its architecture."""
    with suppress(OSError, TypeError):  # there is no such file, or no such line in it
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        return re.search(r"(?m)^model name\s*:\s*(.+?)\s*$", text)[1]
    return platform.processor() or platform.machine()
