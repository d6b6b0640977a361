"""The digit-sum task: add the first two digits of a sequence, however long the rest is.

Three protocols. *published* repeats the textbook's experiment on its own data, byte for byte: 300
training sequences in file order, which is sorted by digit pair, 100 for development, 100 for the
test. *shuffled* is the same with a new order in every epoch. *sound* draws fresh data for every
seed, shuffles, keeps twenty digit pairs out of the training set, and tests on thousands of
sequences, of trained and of held-out pairs apart.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.lab import environment
from labkit.memory import training
from labkit.memory.ensemble import Ensemble
from labkit.memory.model import ModelSpec
from labkit.memory.training import FitSettings, Split

LENGTHS = (5, 10, 15, 20, 25, 30, 35)
SPLITS = {"train": 3, "dev": 1, "test": 1}  # copies of each of the hundred digit pairs
PROTOCOLS = ("published", "shuffled", "sound")
CHANCE = 0.10  # always answering 9 is right for ten of the hundred pairs
MODULES = (
    "labkit.memory.model",
    "labkit.memory.ensemble",
    "labkit.memory.training",
    "labkit.memory.data",
)

# SHA-256 prefixes of the textbook's files (LF line ends), train, dev and test of each length
PUBLISHED_SHA256 = {
    5: ("c4296d119b8ed4f5", "e7d6f947533e239d", "c6ea050ca76747b5"),
    10: ("4c01b87002492162", "d8c410b4f8e3ea0b", "9c53e761aa614ec1"),
    15: ("06aecc8c972394ab", "45cd5c47d7aa51fc", "509bd78b65a4e418"),
    20: ("60acd43edbd569d2", "355c8598debbf3cd", "93da6b804adce3a7"),
    25: ("8a9e178a493702bc", "05b47e88536c5249", "6ae756f9124be4e6"),
    30: ("623e5f66b1736829", "cd0794e276afcf71", "f21dff2082e82454"),
    35: ("165f535a7b0b7d7c", "f5a00561daf6aa32", "7c0aa6fac99fab48"),
}


def check_length(length: int) -> int:
    """Return `length` if a sequence of that many digits has room for the addends and one more."""
    if not isinstance(length, int) or isinstance(length, bool):
        raise TypeError(f"length must be an int, got {length!r}")
    if length < 3:
        raise ValueError(f"length must be at least 3 (two addends and one other), got {length}")
    return length


# the textbook's data


def published_files() -> dict[str, bytes]:
    """Generate the textbook's 21 files: path below data/digit_sum -> content.

    The generator is the textbook's: numpy's legacy global stream, seeded with 0 once, drawn through
    all lengths and splits in order. `RandomState(0)` is that stream without the global state.
    """
    stream = np.random.RandomState(0)
    files = {}
    for length in LENGTHS:
        for split, copies in SPLITS.items():
            lines = []
            for pair in range(100):
                addends = divmod(pair, 10)
                for _ in range(copies):
                    digits = [*addends, *[0] * (length - 2)]
                    position = stream.randint(2, length)
                    digits[position] = stream.randint(0, 10)
                    lines.append(" ".join(map(str, digits)) + f"\t{sum(addends)}\n")
            files[f"{length:02d}/{split}.txt"] = "".join(lines).encode()
    return files


def parse(text: str, *, source: str, length: int) -> Split:
    """Read lines `d d d …<TAB>sum` into X (N, length) and y (N,).

    Raises ValueError that names `source`, the line and what is wrong with it.
    """
    rows, sums = [], []
    for number, line in enumerate(text.splitlines(), start=1):

        def fail(problem: str, number: int = number, line: str = line) -> ValueError:
            return ValueError(f"{source}, line {number}: {problem}; got {line[:80]!r}")

        digits, tab, label = line.partition("\t")
        fields = digits.split(" ")
        if not tab:
            raise fail("expected digits, a tab and their sum")
        if len(fields) != length:
            raise fail(f"expected {length} digits, found {len(fields)}")
        if not all(len(field) == 1 and field in "0123456789" for field in fields):
            raise fail("every entry before the tab must be one digit 0..9")
        row = [int(field) for field in fields]
        if label != str(row[0] + row[1]):
            raise fail(f"the label must be the sum of the first two digits, {row[0] + row[1]}")
        rows.append(row)
        sums.append(row[0] + row[1])
    if not rows:
        raise ValueError(f"{source}: no lines; expected `d d d …<TAB>sum`")
    return Split(torch.tensor(rows), torch.tensor(sums))


def load_published(length: int, folder: Path | None = None) -> dict[str, Split]:
    """Read the textbook's train, dev and test data of one length, after checking their SHA-256."""
    folder = folder or environment.DATA / "digit_sum"
    if length not in PUBLISHED_SHA256:
        raise ValueError(f"length must be one of {', '.join(map(str, LENGTHS))}; got {length!r}")
    splits = {}
    for split, prefix in zip(SPLITS, PUBLISHED_SHA256[length], strict=True):
        path = folder / f"{length:02d}" / f"{split}.txt"
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if not digest.startswith(prefix):
            raise ValueError(
                f"{path}: SHA-256 begins {digest[:16]}, the textbook's file begins {prefix}; "
                "restore it with `git checkout -- data/digit_sum`"
            )
        splits[split] = parse(content.decode(), source=str(path), length=length)
    return splits


def data_digests(lengths: Sequence[int]) -> dict[str, str]:
    """SHA-256 of the textbook's files of these lengths, by path below data/."""
    folder = environment.DATA / "digit_sum"
    names = [f"{length:02d}/{split}.txt" for length in lengths for split in SPLITS]
    return {
        f"digit_sum/{name}": hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in names
    }


# fresh data


def all_pairs(length: int, position: int | None = None, digit: int = 0) -> Split:
    """All hundred digit pairs in order, the rest zeros but for `digit` at `position`."""
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    X = torch.zeros(100, check_length(length), dtype=torch.int64)
    X[:, :2] = pairs
    if position is not None:
        if not 2 <= position < length:
            raise ValueError(f"position must be in 2..{length - 1}, got {position}")
        if not 0 <= digit <= 9:
            raise ValueError(f"digit must be in 0..9, got {digit}")
        X[:, position] = digit
    return Split(X, pairs.sum(1))


def _draw(pairs: Tensor, copies: int, length: int, generator: torch.Generator) -> Split:
    """`copies` sequences of each pair (P, 2), each with one random digit at a random place."""
    addends = pairs.repeat_interleave(copies, 0)
    N = len(addends)
    X = torch.zeros(N, length, dtype=torch.int64)
    X[:, :2] = addends
    position = torch.randint(2, length, (N,), generator=generator)
    X[torch.arange(N), position] = torch.randint(0, 10, (N,), generator=generator)
    return Split(X, addends.sum(1))


def sound_data(length: int, seed: int) -> dict[str, Split]:
    """Fresh data for one seed: 80 digit pairs to train on and 20 held out.

    train: 320 sequences, 4 of each trained pair. dev: 400, 5 of each trained pair, drawn anew.
    seen_pairs: 4,000 new sequences, 50 of each trained pair. unseen_pairs: 4,000, 200 of each
    held-out pair. Every sum keeps at least one trained pair, so no class is unknown.
    """
    check_length(length)
    generator = torch.Generator().manual_seed(1_000_003 * seed + length)
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    pairs = pairs[torch.randperm(100, generator=generator)]

    # the first pair of each sum is never held out; of the 81 others, the last 20 are
    sums = pairs.sum(1)
    is_first = torch.tensor([s not in sums[:k] for k, s in enumerate(sums)])
    pairs = torch.cat([pairs[is_first], pairs[~is_first]])
    seen, unseen = pairs[:80], pairs[80:]
    return {
        "train": _draw(seen, 4, length, generator),
        "dev": _draw(seen, 5, length, generator),
        "seen_pairs": _draw(seen, 50, length, generator),
        "unseen_pairs": _draw(unseen, 200, length, generator),
    }


# what the write-ups printed

PublishedRow = tuple[str, str, str, list[int], list[float]]


def published_rows() -> dict[str, list[PublishedRow]]:
    """The published accuracies by setting (start/embedding): (source, cell, quantity, lengths,
    values). A source's hidden setting stands beside its figures in data/published.toml.
    """
    tables = tomllib.loads((environment.DATA / "published.toml").read_text())["digit_sum"]
    rows: dict[str, list[PublishedRow]] = {}
    for source in ("nndl-a", "nndl-b"):
        table = tables["lstm"][source]
        for quantity in ("dev_accuracy", "test_accuracy"):
            row = (source, "lstm", quantity, table["lengths"], table[quantity])
            rows.setdefault(f"{table['init']}/{table['embedding']}", []).append(row)
    rerun = tables["rerun"]["nndl-c"]
    for cell in ("lstm", "srn"):
        for quantity in ("dev_accuracy", "test_accuracy"):
            row = ("nndl-c", cell, quantity, rerun["lengths"], rerun[f"{cell}_{quantity}"])
            rows.setdefault(f"{rerun['init']}/{rerun['embedding']}", []).append(row)
    return rows


# trainings


def training_task(
    cell: str,
    *,
    length: int,
    seeds: Sequence[int],
    protocol: str = "published",
    init: str = "zero",
    train_embedding: bool = True,
    steps: int = 19_000,
    evaluate_every: int = 100,
    device: str = "cpu",
) -> dict[str, Any]:
    """Describe one training of `len(seeds)` replicas, for `labkit.lab.sweep.run_tasks`."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}")
    check_length(length)
    ModelSpec(cell, init, train_embedding)
    FitSettings(steps=steps, evaluate_every=evaluate_every)
    embedding = "trained" if train_embedding else "frozen"
    return {
        "label": f"{protocol} {cell} {init} {embedding} length {length}",
        "protocol": protocol,
        "cell": cell,
        "init": init,
        "train_embedding": train_embedding,
        "length": length,
        "seeds": list(seeds),
        "steps": steps,
        "evaluate_every": evaluate_every,
        "device": device,
    }


def task_name(task: Mapping[str, Any]) -> str:
    """Where a task's measures stand in a record: protocol/cell/init/embedding/length."""
    embedding = "trained" if task["train_embedding"] else "frozen"
    return f"{task['protocol']}/{task['cell']}/{task['init']}/{embedding}/{task['length']}"


def _stacked(splits: list[dict[str, Split]]) -> dict[str, Split]:
    return {
        name: Split(
            torch.stack([s[name].X for s in splits]), torch.stack([s[name].y for s in splits])
        )
        for name in splits[0]
    }


def train_task(
    task: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, np.ndarray]:
    """Train the replicas of one task and test each one's best checkpoint.

    Returns, for R replicas and K evaluations: first_loss, dev_accuracy, best_step and
    test_accuracy, or for sound test_accuracy_seen_pairs and test_accuracy_unseen_pairs,
    each (R,); step (K,); train_loss, dev_loss, dev_curve (R, K); and the chosen parameters under
    "parameters.<name>", (R, ...).
    """
    device = environment.device(task["device"])
    ensemble = Ensemble(
        ModelSpec(task["cell"], task["init"], task["train_embedding"]), task["seeds"], device=device
    )
    if task["protocol"] != "sound":
        data = load_published(task["length"])
        tests = {"test_accuracy": data["test"]}
    else:
        data = _stacked([sound_data(task["length"], seed) for seed in task["seeds"]])
        tests = {f"test_accuracy_{kind}": data[kind] for kind in ("seen_pairs", "unseen_pairs")}
    settings = FitSettings(
        steps=task["steps"],
        evaluate_every=task["evaluate_every"],
        shuffle=task["protocol"] != "published",
    )
    train, dev = data["train"].to(device), data["dev"].to(device)

    first = next(training.batches(train, settings, ensemble.seeds))
    first_loss, _ = ensemble.evaluate(*first)
    history = training.fit(ensemble, train, dev, settings, progress)
    found = {
        "first_loss": first_loss,
        "dev_accuracy": history.best_dev_accuracy,
        "best_step": history.best_step,
        "step": history.step,
        "train_loss": history.train_loss,
        "dev_loss": history.dev_loss,
        "dev_curve": history.dev_accuracy,
    }
    found |= {name: ensemble.evaluate(*test.to(device))[1] for name, test in tests.items()}
    found |= {f"parameters.{name}": value for name, value in history.best.items()}
    return {name: value.cpu().numpy() for name, value in found.items()}


def load_ensemble(task: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Ensemble:
    """The trained replicas of a task, each at its best checkpoint, loaded strictly."""
    prefix = "parameters."
    ensemble = Ensemble(
        ModelSpec(task["cell"], task["init"], task["train_embedding"]), task["seeds"]
    )
    ensemble.load_state_dict(
        {
            name.removeprefix(prefix): torch.from_numpy(value)
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
    )
    return ensemble


# gradient explosion


def explode(
    seeds: Sequence[int],
    *,
    init: str = "xavier",
    clip: str = "none",
    max_norm: float = 5.0,
    length: int = 20,
    epochs: int = 50,
    lr: float = 0.2,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """The textbook's recipe for a gradient explosion: SRN, plain SGD, summed cross-entropy.

    `clip` is "none", "per_tensor" (the textbook's framework) or "global" (torch's
    `clip_grad_norm_`), to `max_norm`. Returns, for R replicas and K steps, "loss" (R, K), a mean
    per sequence; the L2 norms before clipping "gradient/W", "gradient/U", "gradient/b" and of the
    parameters "weight/W", "weight/U", "weight/b", each (R, K); and at the end (R,) "dev_accuracy"
    and "saturated", the share of hidden values on the dev set beyond ±0.999.
    """
    clippers = {
        "none": None,
        "per_tensor": training.clip_per_tensor,
        "global": training.clip_global,
    }
    if clip not in clippers:
        raise ValueError(f"clip must be one of {', '.join(clippers)}; got {clip!r}")
    ensemble = Ensemble(ModelSpec("srn", init), seeds)
    data = load_published(length)
    settings = FitSettings(batch_size=batch_size)
    stream = training.batches(data["train"], settings, ensemble.seeds)

    rows: dict[str, list[Tensor]] = {}
    for _ in range(epochs * -(-len(data["train"].y) // batch_size)):
        X, y = next(stream)
        found = {"loss": ensemble.loss_and_gradients(X, y, reduction="sum") / len(y)}
        for name in ("W", "U", "b"):
            found[f"gradient/{name}"] = ensemble.gradients[name].flatten(1).norm(dim=1)
            found[f"weight/{name}"] = ensemble.parameters[name].flatten(1).norm(dim=1)
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
        if clippers[clip]:
            clippers[clip](ensemble, max_norm)
        with torch.no_grad():
            ensemble.trainable -= lr * ensemble.trainable.grad
    hidden = ensemble.trace(data["dev"].X)["h"]
    return {name: torch.stack(values, 1) for name, values in rows.items()} | {
        "dev_accuracy": ensemble.evaluate(*data["dev"])[1],
        "saturated": (hidden.abs() > 0.999).to(hidden.dtype).mean(dim=(1, 2, 3)),
    }
