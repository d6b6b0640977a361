"""The steps of `gpu_check`, each in a process of its own; in the rehearsal they are miniatures."""

from __future__ import annotations

import contextlib
import itertools
import json
import linecache
import math
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from labkit.cells import graphs, layers
from labkit.lab import machine, store
from labkit.memory import data as digits
from labkit.memory.model import Ensemble, ModelSpec, SequenceClassifier
from labkit.memory.training import DigitSumTraining

SMALL = "--rehearse" in sys.argv
DEVICE = "cpu" if SMALL else "cuda"
CELLS, BATCH, ROWS = ("lstm", "srn"), 8, 20 if SMALL else 300  # of chapter 02
EPOCH = -(-ROWS // BATCH)  # steps; the last batch is smaller
noted: list[dict[str, Any]] = []


def note(what: str, value: Any, *, most: float = math.inf, must: bool = False) -> None:
    """Note what was measured. Above `most` an aim is missed; what it `must` keep fails."""
    aim = SMALL and not must  # which a miniature need not reach; what is not a number never is met
    met = not isinstance(value, float) or aim or value <= most
    limit = f"≤ {most:g}" if most < math.inf else ""
    noted.append({"what": what, "value": value, "limit": limit, "met": met, "must": must})


def pick(small: Any, full: Any) -> Any:
    """What the rehearsal takes, or the check."""
    return small if SMALL else full


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """The seconds of a block, the device's work included, as a list of one."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    seconds, began = [], time.perf_counter()
    yield seconds
    wait()
    seconds.append(time.perf_counter() - began)


def facts() -> None:
    """What everything was measured on."""
    found = machine.provenance()
    for name in ("device_name", "cuda", "cpu", "platform"):
        note(name, found[name] or "none")
    note("versions", ", ".join(f"{name} {v}" for name, v in found["versions"].items()))
    note("cores", joblib.cpu_count())
    note("bytes of the GPU, free and all", [] if SMALL else list(torch.cuda.mem_get_info()))


# chapters 02 and 03


def replicas(cell: str, T: int, R: int, device: str, trained: bool = True) -> tuple[Any, ...]:
    """An ensemble, its optimiser, the training data, and the rows of each step of an epoch."""
    ensemble = Ensemble(ModelSpec(cell=cell, train_embedding=trained), range(R), device=device)
    options = {"lr": 1e-3, "fused": True, "capturable": device == "cuda"}
    optimiser = torch.optim.Adam([ensemble.trainable], **options)
    rows = torch.full((1, EPOCH, BATCH), -1)  # -1 is no row
    rows.view(-1)[:ROWS] = torch.arange(ROWS)
    data = digits.Split(*(t[:ROWS].to(device) for t in digits.load_published(T)["train"]))
    return ensemble, optimiser, data, rows.to(device)


def trainer(way: str, parts: tuple[Any, ...]) -> Callable[[int], None]:
    """A function that trains for some epochs, by the "kernel", by "graphs" or step by step."""
    ensemble, optimiser, (X, y), rows = parts

    def by_kernel(epochs: int) -> None:
        from labkit.memory import kernel

        for part in rows.repeat(1, epochs, 1).split(100, dim=1):  # steps of a launch
            kernel.train(ensemble, optimiser, X, y, part)

    def step(X: Tensor, y: Tensor) -> tuple[Tensor]:
        losses = ensemble.loss_and_gradients(X, y)
        optimiser.step()
        return (losses,)

    call = graphs.captured(step, X.device) if way == "graphs" else step

    def by_steps(epochs: int) -> None:
        for _ in range(epochs):
            for batch in zip(X.split(BATCH), y.split(BATCH), strict=True):
                call(*batch)

    return by_kernel if way == "kernel" else by_steps


def parity(way: str, cell: str) -> None:
    """A way of training against the CPU's steps: every parameter after 228 of them, or 76.

    An SRN's training is chaotic: after 228, the CPU's own in float32 and float64 lie far apart.
    """
    T, R, epochs = pick((5, 2, 1), (20, 8, 6 if cell == "lstm" else 2))
    for trained in (True, False):
        states = []
        for name, device in (("steps", "cpu"), (way, DEVICE)):
            parts = replicas(cell, T, R, device, trained)
            trainer(name, parts)(epochs)
            states.append({n: value.cpu() for n, value in parts[0].state_dict().items()})
        gaps = {n: float((states[1][n] - value).abs().max()) for n, value in states[0].items()}
        worst = max(gaps, key=gaps.get)
        place = f"in {worst} {tuple(states[0][worst].shape)}"
        what = f"{cell}, embedding {'trained' if trained else 'frozen'}, {EPOCH * epochs} steps"
        note(f"{what}: largest difference, {place}", gaps[worst], most=1e-5, must=True)


def milliseconds(way: str, cell: str, T: int, R: int) -> float:
    """Of a step of R replicas; what is compiled or captured was so before."""
    run, epochs = trainer(way, replicas(cell, T, R, DEVICE)), pick(1, 12 if way == "kernel" else 3)
    run(pick(1, 2))
    with timed() as seconds:
        run(epochs)
    return 1e3 * seconds[0] / epochs / EPOCH


def speeds() -> None:
    """A step of the digit-sum model: by the kernel, by graphs, call by call, and with nn.LSTM."""
    limits = {("lstm", 35, 132): 5.0, ("lstm", 35, 1_200): 22.0}  # seconds of a whole training
    sizes = [(35, R) for R in (40, 132, 264, 528, 1_200)] + [(10, R) for R in (40, 132, 1_200)]
    for cell, (T, R) in itertools.product(CELLS, pick([(5, 2)], sizes)):
        ms, most = milliseconds("kernel", cell, T, R), limits.get((cell, T, R), math.inf)
        note(f"kernel, {cell}, T={T}, {R} replicas: ms a step", ms)
        note(f"kernel, {cell}, T={T}, {R} replicas: s for 19,000 steps", 19 * ms, most=most)
    sizes, ways = pick([(5, 2)], [(10, 40), (35, 1), (35, 40), (35, 264)]), ("graphs", "steps")
    for way, cell, (T, R) in itertools.product(ways, CELLS, sizes):
        note(f"{way}, {cell}, T={T}, {R} replicas: ms a step", milliseconds(way, cell, T, R))

    model = SequenceClassifier(ModelSpec(cell="lstm"))
    model.recurrent = layers.to_torch(model.recurrent)
    model.to(DEVICE)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    X, y = (t[:BATCH].to(DEVICE) for t in digits.load_published(35)["train"])
    for count in pick((1, 1), (20, 200)):  # the second is noted
        with timed() as seconds:
            for _ in range(count):
                loss = nn.functional.cross_entropy(model(X), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    note("nn.LSTM, T=35, one model: ms a step", 1e3 * seconds[0] / count)


def study() -> None:
    """All trainings of chapter 02 in the profile full, compiling included."""
    road, lengths = machine.find_road("replicas", DEVICE), pick([5], range(35, 5, -5))
    share = 1 if road.name == "kernel" else 10  # of the steps, for the time that there is
    fields = {"steps": pick(40, 19_000) // share, "device": DEVICE}
    starts = [("published", "zero", True), ("published", "zero", False)]
    starts += [(protocol, "xavier", True) for protocol in ("published", "shuffled", "sound")]
    tasks = [
        DigitSumTraining(
            protocol=protocol, model=ModelSpec(cell=cell, init=init, train_embedding=trained),
            length=T, seeds=list(range(pick(2, 40))), **fields,
            evaluate_every=500 if protocol == "sound" else 100,
        )
        for (protocol, init, trained), T, cell in itertools.product(starts, lengths, CELLS)
    ]  # fmt: skip
    note("road", str(road))
    with timed() as seconds:
        store.train(tasks, name="chapter 02")
    note(f"{len(tasks)} stacks, times {share}: s", share * seconds[0], most=60.0)


def sine() -> None:
    """Chapter 06's training by captured graphs: against the CPU's, and its speed."""
    from labkit.sine.study import FORECASTERS, SineTraining

    def train(**fields: Any) -> dict[str, Any]:
        return SineTraining(**fields).train(lambda done, total: None)

    for name, way in {"nine": {}, "every/mixed": FORECASTERS["every/mixed"]}.items():
        few = {**way, "seeds": [0, 3], "batches": pick(4, 60), "batch_size": 20}
        a, b = (train(**few, device=device) for device in (DEVICE, "cpu"))
        gap = max(float(np.abs(a[key] - b[key]).max()) for key in b)
        note(f"{name}, 60 batches: largest difference", gap, most=1e-4, must=True)
        many = {**way, "seeds": list(range(pick(2, 40))), "batches": pick(4, 200)}
        with timed() as seconds:
            train(**many, device=DEVICE)
        note(f"{name}: ms a batch, capturing included", 1e3 * seconds[0] / many["batches"])


MINIATURES = {  # of the chapters, for the rehearsal
    "01": ["parity_shapes=2", "gradient_seeds=2"],
    "02": ["num_seeds=2", "steps=200", "explosion_seeds=2", "explosion_epochs=4"],
    "03": ["steps=200"],
    "04": ["epochs=1", "small_epochs=1", "sgd_epochs=1", "speed_rounds=1"],
    "05": ["source_epochs=[1, 1]", "tuned_epochs=[1, 1]", "recurrent_epochs=[1, 1]"],
    "06": ["batches=100", "scan_batches=10", "num_seeds=2"],
}


def chapter(number: str) -> None:
    """A chapter's notebook, cell by cell, on its road, with the settings of the profile quick."""
    for name in ("IPython", "IPython.display", "ipywidgets", "nbformat"):  # that only show things
        if not find_spec(name.partition(".")[0]):
            sys.modules[name] = MagicMock()
    from labkit.lab.settings import resolve

    (path,) = machine.NOTEBOOKS.glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    given = ["device_name=auto", *pick(MINIATURES[number], ())]
    values, space = resolve(path.stem, cells, "quick", given), {"__name__": "__main__"}
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            source, place = "".join(cell["source"]), f"{path.name}, cell {index}"
            linecache.cache[place] = (len(source), None, source.splitlines(True), place)
            exec(compile(source, place, "exec"), space)
            if "parameters" in cell["metadata"].get("tags", []):
                space |= values
    note("road", str(machine.provenance()["road"]))


def run(name: str, out: str) -> None:
    """Carry out a step; what it noted goes into a file, whatever becomes of it."""
    machine.prepare(device=DEVICE)
    torch.use_deterministic_algorithms(False)  # as the store does where graphs are captured
    name, *arguments = name.split("-")
    try:
        globals()[name](*arguments)
        broken = [row["what"] for row in noted if row["must"] and not row["met"]]
        assert not broken, f"beyond its limit: {broken}"
    finally:
        Path(out).write_text(json.dumps(noted))


if __name__ == "__main__":
    run(*sys.argv[1:3])
