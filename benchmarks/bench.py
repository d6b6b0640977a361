"""How fast the lab is beside the usual ways: `python benchmarks/bench.py [SECTION ...]`.

Each section measures its ways in turns, round by round, in processes with the lab's settings, and
notes medians. Record, figures and page are written beside this file, with SHA256SUMS. `--small`
tries everything at the smallest size and writes nothing. An aim that is missed fails nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import page
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from labkit.cells import fast, layers
from labkit.lab import code, machine, record
from labkit.measure.plots import png_bytes
from labkit.measure.statistics import summarise

FOLDER = Path(__file__).parent
RESULTS = "results.json"
LENGTHS = (10, 20, 35)
REPLICAS = 20
BATCH = 8  # of the digit-sum trainings
CHAPTER = "01_lstm_operator"
REVIEWS, REVIEW_BATCH, MAX_LEN = 25_000, 64, 500  # an epoch of chapter 04
SLOW = 10  # the handwritten layer is timed on a tenth of an epoch's batches
Measures = dict[str, Any]
Seconds = dict[str, list[float]]


def note(measures: Measures, place: str, seconds: Seconds, compared: str) -> None:
    """Note the seconds of every way, and their ratios to those of the way `compared`."""
    for way, values in seconds.items():
        measures[f"{place}/{way}_seconds"] = _median(values, "s")
        if way != compared:
            ratios = [a / b for a, b in zip(values, seconds[compared], strict=True)]
            measures[f"{place}/{way}_to_{compared}"] = _median(ratios, "")


def _median(values: Sequence[float], unit: str) -> dict[str, Any]:
    return summarise(values, statistic="median", unit=unit, timing=True)


# the sections


def ladder(measures: Measures, small: bool) -> None:
    """Chapter 01's rungs beside `nn.LSTM`, forward and backward."""
    for shape in ((2, 3, 4, 4),) if small else page.SHAPES:
        rounds = 3 if small else 100 if shape[0] == 8 else 15
        seconds = in_child("time_ladder", shape, rounds)
        note(measures, f"ladder/{'x'.join(map(str, shape))}", seconds, "torch")


def replicas(measures: Measures, small: bool) -> None:
    """A training step of one digit-sum model: alone, on `nn.LSTM`, and among 20 replicas."""
    for T in LENGTHS[:1] if small else LENGTHS:
        seconds = in_child("time_replicas", T, 2 if small else 15)
        note(measures, f"replicas/{T}", seconds, "ensemble")


def epoch(measures: Measures, small: bool) -> None:
    """An epoch of 25,000 film reviews on two threads; of made-up reviews if `small`."""
    corpus = ["generated", 2001] if small else ["imdb", 20_001]
    seconds: Seconds = {"handwritten": [], "torch": [], "lab": []}
    for number in range(1 if small else 5):
        for way, values in seconds.items():
            plain = {} if way == "lab" else dict.fromkeys(machine.MALLOC)
            work = (way, *corpus, 2 if small else 60, number)
            values.append(in_child("time_epoch", *work, threads=2, variables=plain))
    note(measures, "epoch", seconds, "lab")


def start(measures: Measures, small: bool) -> None:
    """The command line, and what the lab adds to papermill on a quick chapter."""
    commands = {
        "python": ["-c", "pass"],
        "import": ["-c", "import labkit"],
        "help": ["-m", "labkit", "--help"],
    }
    note(measures, "start", _commands(commands, 2 if small else 15), "python")
    if small:
        return  # whole chapters take too long for a trial
    with TemporaryDirectory() as folder:
        notebook = [str(machine.NOTEBOOKS / f"{CHAPTER}.ipynb"), f"{folder}/out.ipynb"]
        commands = {
            "papermill": ["-m", "papermill", *notebook, "-k", "python3", "--no-progress-bar"],
            "labkit": ["-m", "labkit", "run", CHAPTER, "--profile", "quick", "--force"],
        }
        note(measures, "chapter", _commands(commands, 3), "papermill")


SECTIONS: dict[str, Callable[[Measures, bool], None]] = {
    section.__name__: section for section in (ladder, replicas, epoch, start)
}


def _commands(commands: Mapping[str, Sequence[str]], rounds: int) -> Seconds:
    calls = {
        name: lambda rest=rest: _run([sys.executable, *rest], {}) for name, rest in commands.items()
    }
    return fast.time_in_turns(calls, rounds, warmup=1)


def in_child(
    name: str, *arguments: Any, threads: int = 1, variables: Mapping[str, str | None] | None = None
) -> Any:
    """What a function below returns in a process of its own; a variable of None is unset."""
    settings = machine.kernel_environment(threads) | dict(variables or {})
    command = [sys.executable, __file__, "--child", json.dumps([name, *arguments])]
    return json.loads(_run(command, settings).splitlines()[-1])


def _run(command: Sequence[str], variables: Mapping[str, str | None]) -> str:
    """The output of a command; RuntimeError, with its last words, when it fails."""
    env = {k: v for k, v in (os.environ | dict(variables)).items() if v is not None}
    done = subprocess.run(command, env=env, cwd=machine.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


# in a process of its own


def time_ladder(shape: Sequence[int], rounds: int) -> Seconds:
    """Seconds of a forward and backward pass of every rung and of `nn.LSTM`."""
    return fast.time_layers(tuple(shape), rounds=rounds, warmup=3)["forward_backward"]


def time_replicas(T: int, rounds: int) -> Seconds:
    """Seconds of a training step of one model: "handwritten", "torch", and in an "ensemble"."""
    from labkit.memory.model import Ensemble, ModelSpec, SequenceClassifier

    spec = ModelSpec(cell="lstm")
    on_torch = SequenceClassifier(spec)
    on_torch.recurrent = layers.to_torch(on_torch.recurrent)
    ensemble = Ensemble(spec, range(REPLICAS))
    optimiser = torch.optim.Adam([ensemble.trainable], lr=1e-3, fused=True)
    X, y = _digits(BATCH, T)

    def ensemble_step() -> None:
        ensemble.loss_and_gradients(X, y)
        optimiser.step()

    ways = {  # a step, how many of them are timed together, and how many models it trains
        "handwritten": (_textbook_step(SequenceClassifier(spec), T), 3, 1),
        "torch": (_textbook_step(on_torch, T), 10, 1),
        "ensemble": (ensemble_step, 20, REPLICAS),
    }
    calls = {
        way: lambda step=step, times=times: [step() for _ in range(times)]
        for way, (step, times, _) in ways.items()
    }
    seconds = fast.time_in_turns(calls, rounds, warmup=2)
    return {
        way: [value / times / models for value in seconds[way]]
        for way, (_, times, models) in ways.items()
    }


def _digits(N: int, T: int) -> tuple[Tensor, Tensor]:
    X = torch.randint(0, 10, (N, T), generator=torch.Generator().manual_seed(0))
    return X, X[:, :2].sum(1)


def _textbook_step(model: nn.Module, T: int) -> Callable[[], None]:
    """A training step as a textbook writes it: DataLoader, cross-entropy, Adam as it comes."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = DataLoader(TensorDataset(*_digits(64 * BATCH, T)), batch_size=BATCH, shuffle=True)
    batches = (batch for _ in range(10_000) for batch in data)

    def step() -> None:
        X, y = next(batches)
        loss = nn.functional.cross_entropy(model(X), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def time_epoch(way: str, corpus_name: str, words: int, batches: int, number: int) -> float:
    """Seconds of an epoch at the speed of some batches, which `number` draws.

    "handwritten", chapter 01's first layer, and "torch", `nn.LSTM`, read reviews that are all
    padded to one length; the "lab" groups them by length.
    """
    from labkit.film import corpus as reviews
    from labkit.film.model import ReviewClassifier, ReviewSpec
    from labkit.film.training import Trainer, TrainSpec

    if way == "handwritten":
        batches = max(1, batches // SLOW)
    corpus = reviews.load(corpus_name, words)
    generator = torch.Generator().manual_seed(number)
    train = corpus.split()["train"]
    chosen = train[torch.randperm(len(train), generator=generator)[: batches * REVIEW_BATCH]]
    torch.manual_seed(0)
    model = ReviewClassifier(ReviewSpec(head_size=128), len(corpus.words))
    if way == "handwritten":
        model.layers[0][0] = layers.LSTM(64, 64)
    if way == "lab":
        spec = TrainSpec(batch_size=REVIEW_BATCH, max_len=MAX_LEN)
        trainer = Trainer(model, corpus, spec, torch.device("cpu"))
        seconds = trainer.train_epoch(chosen, generator)["seconds"]
    else:
        X, length = reviews.pad(corpus, chosen, MAX_LEN, to=MAX_LEN)
        data = TensorDataset(X, length, corpus.label[chosen])
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

        def naive_epoch() -> None:
            for X, length, y in DataLoader(data, batch_size=REVIEW_BATCH, shuffle=True):
                loss = nn.functional.cross_entropy(model(X, length), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

        (seconds,) = fast.time_in_turns({way: naive_epoch}, 1, warmup=0)[way]
    return seconds * REVIEWS / (batches * REVIEW_BATCH)


# the record


def write(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Write record, figures and page; return the record.

    Sections that were not measured now are kept if they come from the same machine and versions.
    """
    path, provenance = FOLDER / RESULTS, machine.provenance()
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    kept = old["sections"] if old.get("provenance") == provenance else {}
    sections = {name: (kept | dict(measured)).get(name) for name in SECTIONS}
    content = {
        "sections": {name: section for name, section in sections.items() if section},
        "provenance": provenance,
    }
    figures = page.figures(joined(content["sections"]))
    for name, figure in figures.items():
        code.write_atomically(FOLDER / f"{name}.png", png_bytes(figure))
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    code.write_atomically(path, f"{text}\n".encode())
    readme = page.readme(provenance, joined(content["sections"]), figures)
    code.write_atomically(FOLDER / "README.md", readme.encode())
    record.write_sums(FOLDER, [RESULTS, "README.md", *(f"{name}.png" for name in figures)])
    return content


def joined(sections: Mapping[str, Any]) -> Measures:
    """The measures of all sections."""
    return {name: m for section in sections.values() for name, m in section["measures"].items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--small", action="store_true", help="the smallest sizes; write nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        torch.set_num_threads(machine.threads())
        name, *given = json.loads(options.child)
        print(json.dumps(globals()[name](*given)))
        return
    if unknown := sorted({*options.sections} - {*SECTIONS}):
        parser.error(f"unknown section {unknown[0]}; there are {', '.join(SECTIONS)}")
    measured: dict[str, Any] = {}
    for name in options.sections or SECTIONS:
        print(f"bench: {name}", flush=True)
        measures: Measures = {}
        SECTIONS[name](measures, options.small)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        measured[name] = {"finished": finished, "measures": measures}
        sections = measured if options.small else write(measured)["sections"]
    print(page.table(joined(sections)))


if __name__ == "__main__":
    main()
