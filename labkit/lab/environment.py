"""Where things are, on what they run, and how a run is made to repeat itself.

Nothing heavy is imported before it is needed, so that the command line starts at once.
"""

from __future__ import annotations

import os
import platform
import random
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(os.environ.get("LABKIT_ROOT") or Path(__file__).parents[2]).resolve()
NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
RESULTS = ROOT / "results"
DATA = ROOT / "data"
CACHE = Path(os.environ.get("LABKIT_CACHE") or DATA / "cache").resolve()
PROFILE_NAMES = ("quick", "cpu", "full")
DEVICES = ("auto", "cpu", "cuda")
PACKAGES = (
    "torch", "torchtext", "numpy", "scipy", "scikit-learn", "transformers", "tokenizers",
    "matplotlib", "seaborn", "safetensors", "ipykernel",
)  # fmt: skip

# With these glibc keeps freed blocks of a few MB, and does not give them back to the system to
# take them anew in every batch, which costs an LSTM on long texts a quarter of its time.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}

_prepared: list[torch.device | None] = [None]


def chapters() -> tuple[str, ...]:
    """The chapters' names, in order: the stems of notebooks/NN_*.ipynb."""
    return tuple(sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")))


CHAPTERS = chapters()


def kernel_environment(threads: int = 1) -> dict[str, str]:
    """Variables that must be set before a kernel starts, for `threads` threads of arithmetic."""
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise TypeError(f"threads must be an int, got {threads!r}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    count = str(threads)
    return {
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "LABKIT_THREADS": count,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "MATPLOTLIBRC": os.devnull,  # a reader's own settings would change the figures
        **MALLOC,
    }


def device(name: str = "auto") -> torch.device:
    """The device called "cpu", "cuda", or "auto" (CUDA where it is there)."""
    import torch

    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda': this torch sees no CUDA device; use 'auto' or 'cpu', or install a "
            "CUDA build with `make setup TORCH=cuda`"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


_find_device = device  # `prepare` has a parameter of that name


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators; `seed` lies in numpy's range."""
    import numpy as np
    import torch

    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..2**32-1, got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def prepare(seed: int = 0, device: str = "auto") -> torch.device:
    """Make this process repeatable and return the device called `device`.

    Seeds every generator, takes torch's deterministic kernels, turns cuDNN's search and TF32 off,
    and sets as many threads as `LABKIT_THREADS` says (1 when unset).
    """
    import torch

    chosen = _find_device(device)
    seed_everything(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(threads())
    _prepared.append(chosen)
    return chosen


def threads() -> int:
    """The number of threads of arithmetic that `LABKIT_THREADS` asks for, 1 when unset."""
    given = os.environ.get("LABKIT_THREADS") or "1"
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"LABKIT_THREADS must be a whole number from 1 on, got {given!r}")
    return int(given)


def provenance(used: torch.device | None = None) -> dict[str, Any]:
    """What a record says about the machine: device, CPU, threads, versions; no user and no host.

    `used` is by default the device that `prepare` returned last.
    """
    used = used or _prepared[-1]
    found = {
        "device": str(used or "cpu"),
        "device_name": _cpu_name(),
        "cpu": _cpu_name(),
        "cpu_capability": None,
        "cuda": None,
        "threads": threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if "torch" in sys.modules:  # a chapter that never needed it should not wait for it here
        import torch

        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = torch.get_num_threads()
        if used is not None and used.type == "cuda":
            found["device_name"] = torch.cuda.get_device_name(used)
            found["cuda"] = torch.version.cuda
    return found


def _versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named.group(1).strip() if named else platform.processor() or platform.machine()
