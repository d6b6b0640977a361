"""Seconds of an epoch of film reviews: the naive ways and the lab's, in turns, in one run.

Each way trains in a process of its own, for the lab's allocator settings (`ALLOCATOR`) act from a
process' start: the naive ways do without them, as someone who never heard of them does. A
process waits while another one's turn lasts. All use as many threads as this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from labkit.cells import layers as recurrent
from labkit.film import corpus as reviews
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier, ReviewSpec
from labkit.film.training import Trainer, TrainSpec
from labkit.lab import environment

# "handwritten": chapter 01's layer as first written down, "naive": `nn.LSTM`; both on reviews that
# are all padded to one length. "grouped": what `Trainer` does.
WAYS = ("handwritten", "naive", "grouped")
# A batch of long texts asks for blocks of many MB. In pages of 2 MB, where glibc (2.35 or newer)
# and the system have them, these cost far fewer page faults than in pages of 4 KB.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
ALLOCATOR = environment.MALLOC | HUGE_PAGES
BATCH = 64
REVIEWS = 25_000
SLOW = 10  # the handwritten layer is timed on a tenth of the batches


def epoch_seconds(
    corpus_name: str,
    vocab_size: int,
    *,
    rounds: int,
    batches: int,
    max_len: int = 500,
    ways: Sequence[str] = WAYS,
    threads: int | None = None,
) -> dict[str, list[float]]:
    """Seconds of an epoch of 25,000 reviews for each of `ways`, one value for each of `rounds`.

    In a round every way trains `batches` batches of 64 of the corpus' training reviews, one way
    after the other, and the time is scaled to an epoch. Embedding and hidden size are 64. The
    reviews of a way are drawn by the round, the same for all. Each way has `threads` threads, by
    default as many as this process. RuntimeError when a process fails.
    """
    settings = {
        "corpus_name": corpus_name, "vocab_size": vocab_size, "batches": batches,
        "max_len": max_len, "threads": threads or environment.threads(),
    }  # fmt: skip
    found: dict[str, list[float]] = {way: [] for way in ways}
    with contextlib.ExitStack() as stack:
        timers = {way: stack.enter_context(_started(way, settings)) for way in ways}
        for number in range(rounds):
            for way, process in timers.items():
                found[way].append(_ask(process, number))
    return found


@contextlib.contextmanager
def _started(way: str, settings: Mapping[str, Any]) -> Iterator[subprocess.Popen]:
    """A process that times one way, until the block ends."""
    variables = {k: v for k, v in os.environ.items() if k not in ALLOCATOR}
    if way == "grouped":
        variables |= ALLOCATOR
    command = [sys.executable, "-m", __name__, json.dumps({"way": way, **settings})]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=variables, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # of a question that it did not read
                process.stdin.close()


def _ask(process: subprocess.Popen, number: int) -> float:
    """Let a process train its batches of one round; the seconds, scaled to an epoch."""
    with contextlib.suppress(BrokenPipeError):  # its own error says more
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        last = process.stderr.read().strip().splitlines()[-1:]
        raise RuntimeError(f"the process that times an epoch has ended: {' '.join(last)}")
    return float(answer)


# in the process of one way


def timer(way: str, corpus: Corpus, *, batches: int, max_len: int) -> Callable[[int], float]:
    """A function that trains a round's batches and returns the seconds of an epoch at that speed.

    ValueError for an unknown way and for too few reviews.
    """
    if way not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}; got {way!r}")
    train = corpus.split()["train"]
    if len(train) < batches * BATCH:
        raise ValueError(f"{batches} batches need {batches * BATCH} reviews, got {len(train)}")
    if way == "handwritten":
        batches = max(1, batches // SLOW)
    torch.manual_seed(0)
    model = ReviewClassifier(ReviewSpec(head_size=128), len(corpus.words))
    if way == "handwritten":
        model.layers[0][0] = recurrent.LSTM(64, 64)
    trainer = Trainer(model, corpus, TrainSpec(batch_size=BATCH, max_len=max_len),
                      torch.device("cpu"))  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def one_round(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        chosen = train[torch.randperm(len(train), generator=generator)[: batches * BATCH]]
        if way == "grouped":
            seconds = trainer.train_epoch(chosen, generator)["seconds"]
        else:
            seconds = naive_epoch(model, optimiser, corpus, chosen, max_len)
        return seconds * REVIEWS / (batches * BATCH)

    return one_round


def naive_epoch(
    model: nn.Module, optimiser: torch.optim.Optimizer, corpus: Corpus, index: Tensor, max_len: int
) -> float:
    """Train on the reviews `index` the naive way; the seconds.

    A DataLoader hands out single reviews, all padded to `max_len`.
    """
    X, length = reviews.pad(corpus, index, max_len, to=max_len)
    items = TensorDataset(X, length, corpus.label[index])
    start = time.perf_counter()
    for X, length, y in DataLoader(items, batch_size=BATCH, shuffle=True):
        loss = nn.functional.cross_entropy(model(X, length), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - start


def _answer() -> None:
    """Time one round for each number that comes in."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings.pop("threads"))
    corpus = reviews.load(settings.pop("corpus_name"), settings.pop("vocab_size"))
    one_round = timer(settings.pop("way"), corpus, **settings)
    for line in sys.stdin:
        print(one_round(int(line)), flush=True)


if __name__ == "__main__":
    _answer()
