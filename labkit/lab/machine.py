"""Where things are, what the lab runs on, and how a run is made to repeat itself.

torch and numpy are imported where they are needed, so that the command line starts at once.
"""

from __future__ import annotations

import os
import platform
import random
import re
import sys
from contextlib import suppress
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


# The road on a GPU for each kind of work: name, trainings at once, and why. Work that is not named
# gains nothing from a GPU.
GPU_ROADS = {
    "replicas": ("kernel", 6, "one kernel trains all replicas, many steps in a launch"),
    "stacks": ("graphs", 4, "a step is one captured graph of many small kernels"),
    "reviews": ("gpu", 4, "cuDNN's layers, several processes take turns on the GPU"),
    "encoder": ("gpu", 6, "large products, several processes fill each other's gaps"),
}
GIGABYTES = {"reviews": 3, "encoder": 9}  # of the GPU's memory, for each process


def notebook(chapter: str) -> Path:
    """Where the notebook of a chapter lies; those with a letter, such as 01a, are appendices."""
    return NOTEBOOKS / ("appendix" if chapter[2:3].isalpha() else "") / f"{chapter}.ipynb"


def shown(path: Path) -> str:
    """A path as messages name it: relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def kernel_environment() -> dict[str, str]:
    """Variables that must be set before a process starts: one thread, and what repeats itself."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(pools, "1") | {
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONNOUSERSITE": "1",
        "MATPLOTLIBRC": os.devnull,  # a reader's settings would change the figures
        **MALLOC,
    }


def device(name: str = "auto") -> torch.device:
    """The device called "cpu", "cuda", or "auto" (CUDA where there is a GPU)."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': this torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def find_road(work: str, device_name: str = "auto") -> Road:
    """The fastest sound road for a kind of `work` on this machine; a device given by name, and
    `LABKIT_WORKERS`, are obeyed."""
    import joblib
    import torch

    cuda, workers = device(device_name).type == "cuda", joblib.cpu_count()
    if work == "replicas" and not util.find_spec("triton"):
        work = "stacks"
    if cuda and work in GPU_ROADS:
        name, most, why = GPU_ROADS[work]
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        workers = min(workers, most, max(1, int(memory / GIGABYTES.get(work, 1))))
        road = Road(name, "cuda", workers, why)
    elif device_name == "cuda":
        road = Road("gpu", "cuda", 1, "the device was asked for by name")
    else:
        why = "launches would take longer than the work" if cuda else "no GPU is used"
        road = Road("cores", "cpu", workers, why)
    given = os.environ.get("LABKIT_WORKERS")
    return replace(road, workers=int(given)) if given else road


def prepare(seed: int = 0, device: str = "auto", work: str | None = None) -> torch.device:
    """Make this process repeatable and return the device that the road for `work` takes.

    A chapter names its kind of work, and the road is printed; without one, `device` alone decides.
    Seeds the generators of Python, numpy and torch (`seed` is in 0..2**32-1), chooses torch's
    deterministic kernels, turns cuDNN's search and TF32 off, and sets one thread.
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
    torch.set_num_threads(1)
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
        "threads": 1,
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
