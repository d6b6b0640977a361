"""How fast the lab trains on a CPU beside a textbook's loop: `python benchmarks/bench.py`.

A training step of one digit-sum model is timed by itself, on `nn.LSTM`, and among replicas that are
trained at once, in turns, round by round. Record and page are written beside this file.
`--small` tries everything and writes nothing. An aim that is missed fails nothing. (The layers of
chapter 01 and the reading of chapter 04 are timed in these chapters; gpu_check.py times a GPU.)
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
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from labkit.cells import fast, layers
from labkit.lab import code, machine, record
from labkit.measure.statistics import summarise
from labkit.memory.model import Ensemble, ModelSpec, SequenceClassifier

FOLDER = Path(__file__).parent
LENGTHS, REPLICAS, BATCH = (10, 20, 35), 20, 8
AIMS = {"handwritten": 30, "torch": 4}  # times the ensemble's time, at least
WAYS = {
    "handwritten": "textbook", "torch": "nn.LSTM", "ensemble": f"{REPLICAS} replicas at once"
}  # fmt: skip
Measures = dict[str, Any]


def time_steps(T: int, rounds: int) -> fast.Seconds:
    """Seconds of a training step of one model: "handwritten", "torch", and in an "ensemble"."""
    spec = ModelSpec(cell="lstm")
    on_torch, ensemble = SequenceClassifier(spec), Ensemble(spec, range(REPLICAS))
    on_torch.recurrent = layers.to_torch(on_torch.recurrent)
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


def measures_of(T: int, seconds: fast.Seconds) -> Measures:
    """The times at a length, and the ratios to the ensemble's in the same round."""
    measures = {}
    for way, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["ensemble"], strict=True)]
        for kind, numbers, unit in (("seconds", values, "s"), ("to_ensemble", ratios, "")):
            summary = summarise(numbers, statistic="median", unit=unit, timing=True)
            measures[f"replicas/{T}/{way}_{kind}"] = summary
    return measures


def table(measures: Measures) -> str:
    """The ratios with their aims, as lines of text."""
    lines = [f"{'':44s} {'median':>8s}  {'95 % interval':18s} aim"]
    for T in LENGTHS:
        for way, aim in AIMS.items():
            if ratio := measures.get(f"replicas/{T}/{way}_to_ensemble"):
                low, high = ratio["low"], ratio["high"]
                interval = "" if low is None else f"{low:.3g} to {high:.3g}"
                verdict = "met" if ratio["median"] >= aim else "missed"
                what = f"{WAYS[way]} / {WAYS['ensemble']}, T={T}"
                lines.append(f"{what:44s} {ratio['median']:8.3g}  {interval:18s} ≥ {aim} {verdict}")
    return "\n".join(lines)


def write(measures: Measures, facts: Mapping[str, Any], finished: str) -> None:
    """Write record and page; a check on a GPU keeps its own beside them."""
    content = {"finished": finished, "measures": measures, "provenance": facts}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    code.write_atomically(FOLDER / "results.json", f"{text}\n".encode())
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("python", "torch"))
    page = f"""\
# How fast the lab trains

`make bench` writes this page. Measured on {facts["device_name"]} ({facts["cpu_capability"]}),
{facts["platform"]}, {versions}.

a / b is the time of a over that of b, in a training step of one digit-sum model: the median of the
rounds, in each of which all ways ran in turn. *Textbook* is a loop of DataLoader, the handwritten
layer, cross-entropy and Adam as it comes, *nn.LSTM* the same on torch's layer. Chapters 01 and 04
time layers and the reading of reviews. `make gpu-check` measures a GPU.

```text
{table(measures)}
```
"""
    code.write_atomically(FOLDER / "README.md", page.encode())
    names = [path.name for path in sorted(FOLDER.iterdir()) if path.suffix in (".json", ".md")]
    record.write_sums(FOLDER, names)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each length in a process with the lab's settings, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few rounds; write nothing")
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        torch.set_num_threads(machine.threads())
        print(json.dumps(time_steps(*options.child)))
        return
    measures: Measures = {}
    for T in LENGTHS[:1] if options.small else LENGTHS:
        print(f"bench: {T} digits", flush=True)
        command = [sys.executable, __file__, "--child", str(T), str(2 if options.small else 15)]
        env = os.environ | machine.kernel_environment()
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        measures |= measures_of(T, json.loads(done.stdout))
    if not options.small:
        write(measures, machine.provenance(), datetime.now(UTC).isoformat(timespec="seconds"))
    print(table(measures))


if __name__ == "__main__":
    main()
