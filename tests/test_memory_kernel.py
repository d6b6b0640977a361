"""The GPU kernel against the replicas' operators, in Triton's interpreter; and mutants of it.

Triton decides when it is imported whether it interprets, so all runs happen in a process of their
own: this file, called with the name of one of its functions, which prints its result as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import labkit.memory
from labkit.memory import training
from labkit.memory.data import Split
from labkit.memory.model import Ensemble, ModelSpec

pytestmark = pytest.mark.timeout(900)  # 70 s on one idle core
TOLERANCE = 1e-5
LSTM, SRN = {"cell": "lstm"}, {"cell": "srn"}
FROZEN = {"train_embedding": False}

# model, length, replicas, each with its own order, each with its own data
CASES = {
    "lstm": (LSTM, 10, 1, False, False),
    "lstm, own order, a narrow embedding": (LSTM | {"embedding_size": 16}, 5, 1, True, False),
    "lstm, zero start, frozen, own data": (LSTM | FROZEN | {"init": "zero"}, 3, 3, False, True),
    "srn": (SRN, 5, 1, False, False),
    "srn, frozen, own order and data": (SRN | FROZEN, 3, 3, True, True),
}

# for each equation of the kernel: a part of it, and what a mistake would write
MUTANTS = {
    "lstm": {
        "output gate": ("o = tl.sigmoid(", "o = tanh("),
        "input gate": ("tl.dot(h, U_i", "tl.dot(h, U_f"),
        "forget gate": ("tl.load(z + 2 * H)", "tl.load(z)"),
        "candidate": ("g = tanh(", "g = tl.sigmoid("),
        "cell state": ("f * c + i * g", "f * c + g"),
        "hidden state": ("h = o * tanh(c)", "h = o * c"),
        "tanh of small values": ("3.33332819422e-1", "3.3e-1"),
        "tanh of large values": ("/ (1 + e)", "/ (1.001 + e)"),
        "into the cell": ("d_h * o * (1 - tanh_c * tanh_c)", "d_h * o"),
        "d output gate": ("d_h * tanh_c * o * (1 - o)", "d_h * tanh_c * o"),
        "d input gate": ("d_c * g * i * (1 - i)", "d_c * g * (1 - i)"),
        "d forget gate": ("d_c * c_before * f", "d_c * tanh_c * f"),
        "d candidate": ("d_c * i * (1 - g * g)", "d_c * i"),
        "along the cell": ("d_c = d_c * f", "d_c = d_c * i"),
        "back to h": ("tl.trans(weights[k])", "weights[k]"),
    },
    "srn": {
        "hidden state": ("h = tanh(tl.dot(h,", "h = tanh(tl.dot(c,"),
        "d sum": ("d_h * (1 - h * h)", "d_h * (1 - h)"),
        "look-up table": ("z += tl.load(p + b + col", "z -= tl.load(p + b + col"),
        "d U": ("tl.trans(h_before), d_z,", "tl.trans(h_before), -d_z,"),
        "d W": ("tl.dot(tl.trans(x), d_table", "tl.dot(tl.trans(x), -d_table"),
        "d b": ("tl.sum(d_table, 0)", "tl.max(d_table, 0)"),
        "d embedding": ("d_x = tl.dot(d_table", "d_x = tl.dot(-d_table"),
        "d head's weight": ("tl.dot(tl.trans(h), d_z", "tl.dot(tl.trans(h), -d_z"),
        "d head's bias": ("tl.sum(d_z, 0)", "tl.max(d_z, 0)"),
        "softmax": (" - right.to(tl.float32)", ""),
        "loss": ("tl.log(total) -", "total -"),
        "mean": ("count = tl.sum(given.to(tl.float32), 0)", "count = 8"),
        "mask": ("d_z = tl.where(given[:, None]", "d_z = tl.where(total[:, None] > 0"),
        "mask of the loss": ("tl.where(given, losses", "tl.where(total > 0, losses"),
        "digits read back": ("row * T + k // B", "row * T + k % B"),
        "first moment": ("(1 - BETA1) * g", "g"),
        "second moment": ("(1 - BETA2) * g * g", "(1 - BETA1) * g * g"),
        "correction of the first": ("lr / (1 - BETA1.value**n)", "lr + 0 * n"),
        "correction of the second": ("/ root + EPS", "+ EPS"),
        "epsilon": ("(tl.sqrt(v_new) / root + EPS)", "(tl.sqrt(v_new + EPS) / root)"),
        "Adam's step": ("other=0.0) - change", "other=0.0) + change"),
    },
}


def differences(
    launches: tuple[int, ...], model: dict, T: int, R: int, shuffle: bool, own: bool
) -> dict[str, float]:
    """The largest difference between two ensembles after the steps of `launches`, of each thing."""
    shape = (R, 12, T) if own else (12, T)  # batches of 8 and of 4
    X = torch.randint(0, 10, shape, generator=torch.Generator().manual_seed(1))
    train, results = Split(X, X[..., :2].sum(-1)), []
    for way in (training.by_operators, training.by_kernel):
        ensemble = Ensemble(ModelSpec(**model), range(R))
        optimiser = torch.optim.Adam([ensemble.trainable], lr=1e-3, fused=True)
        advance = way(ensemble, optimiser, train, shuffle=shuffle)
        losses = torch.stack([advance(steps) / steps for steps in launches])
        gradients = {f"d {name}": value for name, value in ensemble.gradients.items()}
        state = optimiser.state[ensemble.trainable] | gradients | ensemble.parameters
        results.append(state | {"losses": losses})
    ours, theirs = results
    assert ours.keys() == theirs.keys()
    largest = {name: (value - theirs[name]).abs().max() for name, value in ours.items()}
    return {name: float(value.nan_to_num(math.inf)) for name, value in largest.items()}


def equality() -> dict[str, dict[str, float]]:
    return {name: differences((25, 25, 10), *case) for name, case in CASES.items()}


def mutation() -> dict[str, float]:
    """The largest of a mutant's differences after two steps; of none, under "none"."""
    source, worst = Path(labkit.memory.__path__[0], "kernel.py").read_text("utf-8"), {}
    for cell, mutants in MUTANTS.items():
        for name, (old, new) in {f"no mutant of {cell}": ("", ""), **mutants}.items():
            assert not old or source.count(old) == 1, name
            path = Path(tempfile.mkdtemp(), "mutant.py")
            path.write_text(source.replace(old, new, 1), "utf-8")
            found = importlib.util.spec_from_file_location("mutant", path)
            labkit.memory.kernel = importlib.util.module_from_spec(found)
            found.loader.exec_module(labkit.memory.kernel)
            worst[f"{cell}: {name}"] = max(
                differences((2,), {"cell": cell}, 3, 1, False, False).values()
            )
    return worst


def compilation() -> dict[str, list[str]]:
    """Of the machine code that Triton makes for GPUs, which it can without one: its products."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from labkit.memory import kernel

    names, made = kernel.train_replica.arg_names, {}
    numbers = {"E": 32, "H": 32, "PARTS": 6, "P": "tf32x3"}
    types = dict.fromkeys(names, "i32") | dict.fromkeys(names[:13], "*fp32")
    types |= dict.fromkeys(("X", "y", "order"), "*i64")
    for G, capability in ((4, 80), (4, 90), (1, 90)):
        constants = {(names.index(name),): v for name, v in (numbers | {"G": G}).items()}
        types |= {names[place[0]]: "constexpr" for place in constants}
        source, target = ASTSource(kernel.train_replica, types, constants), ("cuda", capability, 32)
        text = compile(source, target=GPUTarget(*target), options=kernel.LAUNCH).asm["ptx"]
        made[f"{G} {capability}"] = sorted({*re.findall(r"mma\.sync[.\w]*", text)})
    return made


def run(function: str, interpret: str = "1") -> dict:
    """The result of a function of this file, in a process where Triton interprets, or not."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    one["TRITON_INTERPRET"] = interpret
    done = subprocess.run(
        [sys.executable, __file__, function], env=os.environ | one, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def equal() -> dict[str, dict[str, float]]:
    return run("equality")


@pytest.fixture(scope="module")
def mutants() -> dict[str, float]:
    return run("mutation")


@pytest.mark.parametrize("case", CASES)
def test_60_steps_of_the_kernel_equal_those_of_the_operators(case, equal):
    """Losses, gradients, parameters, moments and the number of steps."""
    assert {name: value for name, value in equal[case].items() if not value < TOLERANCE} == {}
    assert {"losses", "U", "d U", "exp_avg", "exp_avg_sq", "step"} <= equal[case].keys()


def test_a_mistake_in_any_equation_is_noticed(mutants):
    assert len(mutants) == 2 + sum(map(len, MUTANTS.values()))
    for name, difference in mutants.items():
        assert (difference < TOLERANCE) is ("no mutant" in name), (name, difference)


def test_it_compiles_for_gpus_with_products_on_their_matrix_units():
    (products,) = {tuple(found) for found in run("compilation", "0").values()}
    assert products == ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
