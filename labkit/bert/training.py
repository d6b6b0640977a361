"""Fine-tuning of BERT: the loop, its schedule, the best dev checkpoint, states to resume from.

Every step draws its dropout, and every epoch its order, from a number made of the seed and its own
number. Where a run was broken off therefore decides nothing: one that resumes repeats the other.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.bert.encoding import Encoded
from labkit.bert.model import PRECISIONS, BertClassifier, mixed
from labkit.bert import encoding as bert_reviews
from labkit.film import corpus as reviews
from labkit.film.training import accuracy
from labkit.lab import digests

if TYPE_CHECKING:
    from accelerate import Accelerator

SCHEDULES = ("linear", "constant", "halve")
EVALUATION_BATCH = 64
KEEP_SECONDS = 600.0  # between two states that are kept within an epoch
NOBODYS = -100  # the label that F.cross_entropy passes over

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BertTrainSpec:
    """How a BERT classifier is trained, by AdamW.

    `lr`: the encoder's learning rate; `head_lr`: the head's, the same for 0. Over the first
    `warmup` of all steps both rise from zero; then they fall along a line to zero ("linear"), stay
    ("constant"), or are halved every `halve_every` epochs ("halve"). `weight_decay` acts on
    matrices, not on biases and LayerNorm. `clip`: the L2 norm that all gradients together are
    scaled down to, 0 for no clipping. `max_len`: the limit to a review's pieces; `fixed` pads
    every batch to it, as a source did, and not to the longest of its reviews. `precision`: of the
    matrix products, in training and testing; weights and optimiser are always float32.
    """

    epochs: int = 3
    batch_size: int = 16
    lr: float = 2e-5
    head_lr: float = 0.0
    schedule: str = "linear"
    warmup: float = 0.1
    halve_every: int = 5
    weight_decay: float = 0.01
    clip: float = 1.0
    max_len: int = 128
    fixed: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(
                    f"BertTrainSpec.{name} must be one of {', '.join(choices)}; got {value!r}"
                )
        for name in ("epochs", "batch_size", "halve_every", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"BertTrainSpec.{name} must be at least 1")
        for name in ("lr", "head_lr", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"BertTrainSpec.{name} must not be negative")
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"BertTrainSpec.warmup must be at least 0 and below 1, got {self.warmup}"
            )


def make_optimiser(model: BertClassifier, spec: BertTrainSpec) -> torch.optim.AdamW:
    """AdamW over what the model trains, with each part's learning rate and decay."""
    groups = []
    for part, lr in ((model.encoder, spec.lr), (model.head, spec.head_lr or spec.lr)):
        trained = [p for p in part.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        vectors = [p for p in trained if p.ndim == 1]  # biases and LayerNorm
        groups.append({"params": matrices, "initial_lr": lr, "weight_decay": spec.weight_decay})
        groups.append({"params": vectors, "initial_lr": lr, "weight_decay": 0.0})
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def rate(spec: BertTrainSpec, step: int, steps_an_epoch: int) -> float:
    """The share of the learning rates that a step takes; steps count from 0."""
    steps = spec.epochs * steps_an_epoch
    warmup = round(spec.warmup * steps)
    if step < warmup:
        return step / warmup
    if spec.schedule == "linear":
        return (steps - step) / (steps - warmup)
    if spec.schedule == "halve":
        return 0.5 ** (step // steps_an_epoch // spec.halve_every)
    return 1.0


@dataclass
class Run:
    """How far a training has come, apart from its tensors."""

    rows: list[dict[str, float]] = field(default_factory=list)  # one for each finished epoch
    best_epoch: int = 0  # from 1
    step: int = 0  # of the epoch that is under way
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])  # losses and hits, in it
    seconds: float = 0.0


class Trainer:
    """Trains `model` on some reviews, alone or together with the processes of `accelerator`."""

    def __init__(
        self,
        model: BertClassifier,
        encoded: Encoded,
        spec: BertTrainSpec,
        device: torch.device,
        accelerator: Accelerator | None = None,
    ) -> None:
        positions = model.encoder.config.max_position_embeddings
        if spec.fixed and spec.max_len > positions:
            raise ValueError(f"max_len is {spec.max_len}, the model has {positions} positions")
        limit = min(spec.max_len, positions)
        if int(encoded.length.max()) > limit:
            raise ValueError(
                f"a review has {int(encoded.length.max())} pieces, the training reads {limit}: "
                "encode the reviews with this max_len"
            )
        self.model, self.encoded, self.spec, self.device = model.to(device), encoded, spec, device
        self.optimiser = make_optimiser(model, spec)
        self.accelerator = accelerator
        self.rank = accelerator.process_index if accelerator else 0
        self.processes = accelerator.num_processes if accelerator else 1
        self._net = accelerator.prepare(model) if accelerator else model

    def fit(
        self,
        train: Tensor,
        dev: Tensor,
        seed: int,
        *,
        curve: Tensor | None = None,
        progress: Progress | None = None,
        keep: Path | None = None,
    ) -> dict[str, Tensor]:
        """Train for `spec.epochs` and leave the model at its best dev accuracy.

        Returns one value an epoch: train_loss and train_accuracy (means over the epoch's reviews,
        while the model changes), seconds (of training), dev_loss, dev_accuracy, with `curve` also
        curve_loss and curve_accuracy; and best_epoch, from 1. The test set plays no part in it.

        After every epoch, and within one every ten minutes, the training is kept in the folder
        `keep`, where a later call with the same settings goes on; best.safetensors in it is the
        best checkpoint so far. ValueError for a folder with another training. Torch's global
        generator is seeded anew.
        """
        reads = {"train": train, "dev": dev, "curve": curve}
        keeper = Keeper(keep, self._facts(seed, reads) if keep else {}, write=self.rank == 0)
        run = keeper.load(self.model, self.optimiser)
        while len(run.rows) < self.spec.epochs:
            row = self.train_epoch(train, seed, run, keeper, progress)
            row["dev_loss"], row["dev_accuracy"] = self.score(dev)
            if curve is not None:
                row["curve_loss"], row["curve_accuracy"] = self.score(curve)

            accuracies = [earlier["dev_accuracy"] for earlier in run.rows]
            if row["dev_accuracy"] > max(accuracies, default=-1.0):
                run.best_epoch = len(run.rows) + 1
                keeper.store_best(self.model)
            run = Run([*run.rows, row], run.best_epoch)
            keeper.store(self.model, self.optimiser, run)
        self.model.load_state_dict(keeper.best)
        history = {name: torch.tensor([row[name] for row in run.rows]) for name in run.rows[0]}
        return history | {"best_epoch": torch.tensor(run.best_epoch)}

    def train_epoch(
        self,
        train: Tensor,
        seed: int,
        run: Run,
        keeper: Keeper,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Read the reviews `train` once, from where `run` stands; a row of `fit`."""
        spec, began = self.spec, time.perf_counter() - run.seconds
        self.model.train()
        epoch = len(run.rows)
        order = torch.Generator().manual_seed(_number(seed, "order", epoch))
        batches = reviews.by_length(self.encoded.length[train], spec.batch_size, order)
        sums = torch.tensor(run.sums, dtype=torch.float64, device=self.device)
        for batch in batches[run.step :]:
            step = epoch * len(batches) + run.step
            for group in self.optimiser.param_groups:
                group["lr"] = group["initial_lr"] * rate(spec, step, len(batches))
            torch.manual_seed(_number(seed, "dropout", step, self.rank))
            sums += self._step(train[batch])
            run.step += 1
            if progress and step % 5 == 0:
                progress(step, spec.epochs * len(batches))
            if keeper.is_due():
                _check_finite(sums)
                run.sums, run.seconds = sums.tolist(), time.perf_counter() - began
                keeper.store(self.model, self.optimiser, run)

        _check_finite(sums)
        loss, share = (sums / len(train)).tolist()
        seconds = time.perf_counter() - began
        return {"train_loss": loss, "train_accuracy": share, "seconds": seconds}

    def _step(self, index: Tensor) -> Tensor:
        """One step of the optimiser; the sum of the batch's losses, and its hits."""
        X, mask, y = self._batch(index)
        with mixed(self.device, self.spec.precision):
            logits = self._net(X, mask)  # (B, C)
        loss = F.cross_entropy(logits.float(), y, reduction="sum")

        self.optimiser.zero_grad()
        # processes average their gradients, so that each has to count for its share of the batch
        (loss * self.processes / len(index)).backward()
        if self.spec.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip)
        self.optimiser.step()
        return self._sum(torch.stack([loss.detach(), (logits.argmax(1) == y).sum()]).double())

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """This process' share of some reviews: X and mask (B, T), y (B,)."""
        own = index[self.rank :: self.processes]
        y = self.encoded.label[own]
        if self.model.spec.num_classes > 2:
            y = self.encoded.rating[own] - 1
        if not len(own):  # it works along on the first review, which counts elsewhere
            own, y = index[:1], torch.tensor([NOBODYS])
        X, mask = self._pad(own)
        return X, mask, y.to(self.device)

    def _pad(self, index: Tensor) -> tuple[Tensor, Tensor]:
        fixed = self.spec.fixed or self.model.spec.pooling == "last_position"
        X, mask = bert_reviews.pad(self.encoded, index, self.spec.max_len if fixed else None)
        return X.to(self.device), mask.to(self.device)

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(values, "sum") if self.accelerator else values

    @torch.no_grad()
    def probabilities(self, index: Tensor) -> Tensor:
        """The probability of "positive" (a rating from 6 on) for some reviews, (n,), on the CPU."""
        self.model.eval()
        found = torch.zeros(len(index), device=self.device)
        batches = list(reviews.in_order(self.encoded.length[index], EVALUATION_BATCH))
        for batch in batches[self.rank :: self.processes]:
            X, mask = self._pad(index[batch])
            with mixed(self.device, self.spec.precision):
                classes = self.model(X, mask).float().softmax(1)
            found[batch.to(self.device)] = classes[:, classes.shape[1] // 2 :].sum(1)
        return self._sum(found).cpu()

    def score(self, index: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on some reviews."""
        p = self.probabilities(index)
        y = self.encoded.label[index]
        return float(F.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), y.float())), accuracy(p, y)

    def _facts(self, seed: int, reads: dict[str, Tensor | None]) -> dict[str, Any]:
        """What a kept training must have in common with this one, to go on with it."""
        tensors = {**self.model.state_dict(), "pieces": self.encoded.ids, **reads}
        return {
            "seed": seed,
            "model": json.loads(digests.canonical(asdict(self.model.spec))),
            "training": asdict(self.spec),
            "processes": self.processes,
            "start and reviews": digests.sha256(
                b"".join(
                    digests.sha256(f"{name} {t.dtype}".encode() + _bytes(t)).encode()
                    for name, t in tensors.items()
                    if t is not None
                )
            ),
        }


class Keeper:
    """Keeps a training in a folder, and its best checkpoint; without a folder only the latter."""

    def __init__(self, folder: Path | None, facts: dict[str, Any], *, write: bool = True) -> None:
        self.folder, self.facts, self._writes = folder, facts, write and folder is not None
        self.best: dict[str, Tensor] = {}
        self._stored = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to keep a state."""
        return self._writes and time.monotonic() - self._stored >= KEEP_SECONDS

    def store(self, model: nn.Module, optimiser: torch.optim.Optimizer, run: Run) -> None:
        """Keep a state in one file, whole or not at all: tensors, and the rest as JSON."""
        if not self._writes:
            return
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for number, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in values.items()}
        self._write("state", tensors, {"facts": self.facts, "run": asdict(run)})
        self._stored = time.monotonic()

    def store_best(self, model: nn.Module) -> None:
        self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if self._writes:
            self._write("best", self.best, {"facts": self.facts})

    def load(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> Run:
        """Bring model and optimiser to where the kept training stands; a new `Run` without one."""
        state = self._read("state")
        if state is None:
            return Run()
        tensors, notes = state
        if other := [name for name, value in self.facts.items() if notes["facts"][name] != value]:
            raise ValueError(
                f"{self.folder} holds another training, with another {', '.join(other)}: name "
                "another folder, or empty this one"
            )
        run = Run(**notes["run"])
        if run.best_epoch:
            best = self._read("best")
            if best is None:
                return Run()  # it is gone, or damaged
            device = next(model.parameters()).device
            self.best = {name: value.to(device) for name, value in best[0].items()}
        inner: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, number, name = name.split(".")
                inner.setdefault(int(number), {})[name] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": inner})
        prefix = "model."
        model.load_state_dict(
            {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        )
        return run

    def _write(self, name: str, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        from safetensors.torch import save

        metadata = {key: digests.canonical(value).decode() for key, value in notes.items()}
        digests.write_atomically(self.folder / f"{name}.safetensors", save(tensors, metadata))

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        from safetensors import SafetensorError, safe_open

        path = self.folder / f"{name}.safetensors" if self.folder else None
        if not path or not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                notes = {key: json.loads(text) for key, text in file.metadata().items()}
                return {key: file.get_tensor(key) for key in file.keys()}, notes  # noqa: SIM118
        except SafetensorError:
            return None  # a damaged file is made again


def _check_finite(sums: Tensor) -> None:
    if not math.isfinite(float(sums[0])):
        raise ValueError(f"the loss is {float(sums[0])}: take a smaller lr, or clip")


def _number(*parts: object) -> int:
    """A number for a generator's seed, made of a seed and what it is for."""
    return int(digests.sha256(" ".join(map(str, parts)).encode())[:8], 16)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
