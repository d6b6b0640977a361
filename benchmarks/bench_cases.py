"""What `labkit bench` measures: seconds and memory of the lab's fast paths beside the naive ones.

Every function takes its size from the caller and returns seconds (or bytes), one value for each
round. What is compared runs in turns, so that a busy moment of the machine hits all alike.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from labkit.cells import ladder, parity
from labkit.lab import environment
from labkit.memory.ensemble import Ensemble
from labkit.memory.model import ModelSpec, SequenceClassifier

Seconds = dict[str, list[float]]
BATCH = 8  # of the digit-sum trainings
SHAPES = ((8, 20, 32, 32), (8, 35, 32, 32), (64, 256, 64, 64))


def rungs_of_the_ladder(shape: ladder.Shape, rounds: int, compiled: bool) -> Seconds:
    """Seconds of a forward and backward pass of every rung, and of `nn.LSTM` as "torch"."""
    rungs = [name for name in ladder.RUNGS if compiled or name != "compiled"]
    passes = ["forward_backward"]
    return ladder.time_layers(shape, rungs, rounds=rounds, warmup=3, passes=passes)[passes[0]]


def ladder_in_child(
    shape: ladder.Shape, rounds: int, variables: Mapping[str, str | None]
) -> Seconds:
    """`rungs_of_the_ladder` without C++, in a process with other environment variables."""
    return _in_child("rungs_of_the_ladder", [shape, rounds, False], variables)


# replicas


def digits(N: int, T: int) -> tuple[Tensor, Tensor]:
    """Random digits (N, T) and classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(0, 10, (N, T), generator=generator)
    return X, X[:, :2].sum(1)


class _TorchClassifier(SequenceClassifier):
    """The digit-sum model on `nn.LSTM`."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        super().__init__(spec, seed)
        self.recurrent = parity.to_torch(self.recurrent)


def textbook_loop(model: nn.Module, T: int) -> Callable[[], None]:
    """One training step as a textbook writes it: DataLoader, cross-entropy, Adam as it comes."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*digits(64 * BATCH, T)), batch_size=BATCH, shuffle=True)
    batches = iter(())

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def ensemble_step(replicas: int, T: int, cell: str = "lstm") -> Callable[[], None]:
    """One training step of `replicas` models at once, as `labkit.memory.training.fit` takes it."""
    ensemble = Ensemble(ModelSpec(cell), range(replicas))
    optimiser = torch.optim.Adam([ensemble.trainable], lr=1e-3, fused=True)
    X, y = digits(BATCH, T)

    def step() -> None:
        ensemble.loss_and_gradients(X, y)
        optimiser.step()

    return step


def replicas_at_once(T: int, replicas: int, rounds: int, naive_steps: int = 3) -> Seconds:
    """Seconds of a training step of one model: naive, `nn.LSTM`, and in an ensemble."""
    spec = ModelSpec("lstm")
    ways = {
        "naive": (textbook_loop(SequenceClassifier(spec), T), naive_steps, 1),
        "torch": (textbook_loop(_TorchClassifier(spec), T), 10, 1),
        "ensemble": (ensemble_step(replicas, T), 20, replicas),
    }

    def repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
        return lambda: [step() for _ in range(times)] and None

    calls = {name: repeated(step, times) for name, (step, times, _) in ways.items()}
    found = ladder.interleaved_seconds(calls, rounds, warmup=2)
    return {
        name: [value / ways[name][1] / ways[name][2] for value in values]
        for name, values in found.items()
    }


# cost as the work grows


def growth_of_ensemble(replicas: int, T: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a training step, and the memory (bytes) that it needs beyond a tiny one."""
    ensemble_step(1, 2)()  # what torch loads on its first step does not count
    before = _peak_memory()
    step = ensemble_step(replicas, T)
    for _ in range(3):
        step()
    seconds = ladder.interleaved_seconds({"step": step}, rounds, warmup=2)["step"]
    return {"seconds": seconds, "bytes": [_peak_memory() - before]}


def growth_of_reviews(count: int, rounds: int) -> dict[str, list[float]]:
    """The same for an epoch of `count` made-up reviews of chapter 04's LSTM.

    Its memory does not grow, so that there is nothing above a tiny run: the bytes are those of the
    whole process.
    """
    from labkit.film import corpus as reviews
    from labkit.film.model import ReviewClassifier, ReviewSpec
    from labkit.film.training import Trainer, TrainSpec

    corpus = reviews.load("generated", 2001)
    train = corpus.split()["train"]
    index = train.repeat(-(-count // len(train)))[:count]
    torch.manual_seed(0)
    model = ReviewClassifier(ReviewSpec(head_size=128), len(corpus.words))
    trainer = Trainer(model, corpus, TrainSpec(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    rows = [trainer.train_epoch(index, generator) for _ in range(rounds + 1)]
    return {"seconds": [row["seconds"] for row in rows[1:]], "bytes": [_peak_memory()]}


def accuracy_both_ways(
    corpus_name: str, vocab_size: int, *, seeds: int, reviews_read: int, epochs: int, max_len: int
) -> dict[str, list[float]]:
    """Test accuracy after training the lab's way and the naive way, one value for each seed.

    Chapter 04's LSTM with the mean over time, from the same start and on the same reviews:
    "grouped" by length, or "naive", in random order and all padded to `max_len`.
    """
    from labkit.film import corpus as reviews
    from labkit.film import speed as review_speed
    from labkit.film import tasks as review_tasks
    from labkit.film.model import ReviewClassifier, ReviewSpec
    from labkit.film.training import Trainer, TrainSpec

    corpus = reviews.load(corpus_name, vocab_size)
    split = corpus.split()
    test = review_tasks.draw(corpus, split["test"], min(5000, len(split["test"])), 0)
    spec = ReviewSpec(pooling="mean", head_size=128)
    found: dict[str, list[float]] = {"grouped": [], "naive": []}
    for seed in range(seeds):
        train = review_tasks.draw(corpus, split["train"], reviews_read, seed)
        for way, values in found.items():
            torch.manual_seed(seed)
            model = ReviewClassifier(spec, len(corpus.words))
            trainer = Trainer(model, corpus, TrainSpec(max_len=max_len), torch.device("cpu"))
            generator = torch.Generator().manual_seed(seed)
            for _ in range(epochs):
                if way == "grouped":
                    trainer.train_epoch(train, generator)
                else:
                    model.train()
                    optimiser = trainer.optimiser
                    review_speed.naive_epoch(model, optimiser, corpus, train, max_len)
            values.append(trainer.score(test)[1])
    return found


def in_fresh_process(name: str, *arguments: Any) -> dict[str, list[float]]:
    """Call a function of this module in a process of its own, whose peak memory is its own."""
    return _in_child(name, list(arguments), {})


def sweep_seconds(
    workers: int, *, lengths: Sequence[int], cells: Sequence[str], stacks: int, steps: int
) -> float:
    """Seconds of digit-sum trainings of 20 seeds each on `workers` processes, from an empty store.

    `stacks` trainings for each of `lengths` and `cells`, with the evaluations of chapter 02.
    """
    with TemporaryDirectory() as folder:
        settings = [workers, list(lengths), list(cells), stacks, steps]
        return _in_child("_sweep", settings, {"LABKIT_CACHE": folder})


def _sweep(workers: int, lengths: list[int], cells: list[str], stacks: int, steps: int) -> float:
    from labkit.lab import sweep
    from labkit.memory import data as digit_sum

    tasks = [
        digit_sum.training_task(cell, length=length, seeds=range(20 * k, 20 * (k + 1)), steps=steps)
        for length in sorted(lengths, reverse=True)
        for cell in cells
        for k in range(stacks)
    ]
    start = time.perf_counter()
    modules = ["labkit.memory.data"]  # the store is a fresh one
    sweep.run_tasks(tasks, digit_sum.train_task, name="bench", modules=modules, workers=workers)
    return time.perf_counter() - start


# starting


def command_seconds(command: Sequence[str], variables: Mapping[str, str] | None = None) -> float:
    """Seconds of one command. RuntimeError, with its last words, when it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | dict(variables or {}), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-400:]}")
    return time.perf_counter() - start


def starts(rounds: int) -> Seconds:
    """Seconds of Python alone, of `import labkit`, and of the command line's help."""
    commands = {
        "python": ["-c", "pass"],
        "import": ["-c", "import labkit"],
        "help": ["-m", "labkit", "--help"],
    }
    calls = {
        name: lambda rest=rest: command_seconds([sys.executable, *rest])
        for name, rest in commands.items()
    }
    return ladder.interleaved_seconds(calls, rounds, warmup=1)


def chapter_runs(chapter: str, rounds: int) -> Seconds:
    """Seconds of a quick chapter by `labkit run`, and by papermill alone on the same kernel."""
    with TemporaryDirectory() as folder:
        notebook = environment.NOTEBOOKS / f"{chapter}.ipynb"
        papermill = ["-m", "papermill", str(notebook), str(Path(folder) / "out.ipynb")]
        papermill += ["--cwd", str(environment.NOTEBOOKS), "-k", "python3", "--no-progress-bar"]
        lab = ["-m", "labkit", "run", chapter, "--profile", "quick", "--force"]
        calls = {
            name: lambda rest=rest: command_seconds([sys.executable, *rest])
            for name, rest in {"papermill": papermill, "labkit": lab}.items()
        }
        return ladder.interleaved_seconds(calls, rounds, warmup=0)


# processes


def _in_child(name: str, arguments: list[Any], variables: Mapping[str, str | None]) -> Any:
    """What a function of this module returns in a process of its own; None unsets a variable."""
    command = [sys.executable, "-m", __name__, name, json.dumps(arguments)]
    env = {k: v for k, v in (os.environ | dict(variables)).items() if v is not None}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"bench, {name}{tuple(arguments)}: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak_memory() -> int:
    """The most memory that this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held when it forked, too
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


if __name__ == "__main__":
    torch.set_num_threads(environment.threads())
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
