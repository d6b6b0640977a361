"""`make bench`: how fast the lab is, in one run: a JSON record, a table and figures.

Each section measures in turns and reports medians. The aims stand in `AIMS`; a missed aim is
reported like any other figure and fails nothing. `results/bench/README.md` shows it all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks import bench_cases, figures_bench
from labkit.cells import cpp as recurrent_cpp
from labkit.cells import ladder
from labkit.lab import digests, environment
from labkit.measure.plots import png_bytes
from labkit.measure.statistics import summarise

FOLDER = environment.RESULTS / "bench"
LENGTHS = (10, 20, 35)
REPLICAS = 20
QUICK_CHAPTER = "01_lstm_operator"
# the ladder's other settings: nn.LSTM kept to vectors of 256 bits, as older processors have them,
# and the allocator as it comes, without what the lab tells it
LADDERS: dict[str, dict[str, str | None]] = {
    "ladder_avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "ladder_malloc": dict.fromkeys(environment.MALLOC),
}


@dataclass(frozen=True)
class Aim:
    """What a measure should reach: at most, or with `least` at least, `limit`."""

    measure: str
    limit: float
    what: str
    least: bool = False

    def met(self, value: float) -> bool:
        """Whether `value` reaches it."""
        return value >= self.limit if self.least else value <= self.limit


def _ladder_aims() -> list[Aim]:
    aims = []
    limits = {(8, 20, 32, 32): 1.3, (8, 35, 32, 32): 1.6, (64, 256, 64, 64): 1.0}
    for shape, limit in limits.items():
        key, size = _key(shape), ladder.size_text(shape)
        for kind, note in {"ladder": "", "ladder_malloc": ", plain malloc"}.items():
            what = f"workspace / nn.LSTM, {size}{note}"
            aims.append(Aim(f"{kind}/{key}/workspace_to_torch", limit, what))
        if shape[0] == 8:
            own = f"ladder/{key}/naive_to_workspace"
            aims.append(Aim(own, 7, f"eight products / workspace, {size}", least=True))
            aims.append(Aim(f"ladder/{key}/compiled_to_torch", 0.65, f"C++ / nn.LSTM, {size}"))
    return aims


def _key(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


AIMS = _ladder_aims()
for _T in LENGTHS:
    AIMS += [
        Aim(f"replicas/{_T}/naive_to_ensemble", 30, f"naive / ensemble, T={_T}", least=True),
        Aim(f"replicas/{_T}/torch_to_ensemble", 4, f"nn.LSTM / ensemble, T={_T}", least=True),
    ]
AIMS += [
    Aim("epoch/2/handwritten_to_grouped", 10, "IMDB epoch, eight products / lab", least=True),
    Aim("epoch/2/naive_to_grouped", 2.5, "IMDB epoch, nn.LSTM / lab", least=True),
    Aim("sweep/published_minutes", 16, "digit-sum sweep of one setting, minutes"),
    Aim("start/import_seconds", 0.3, "import labkit, s"),
    Aim("start/help_seconds", 0.5, "python -m labkit --help, s"),
    Aim("start/overhead", 0.1, "a quick chapter's time over papermill's, share"),
]


def _note(measures: dict[str, Any], name: str, values: Iterable[float], unit: str) -> None:
    measures[name] = summarise(list(values), statistic="median", unit=unit, timing=True)


def _note_ratio(
    measures: dict[str, Any], name: str, above: Sequence[float], below: Sequence[float]
) -> None:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    _note(measures, name, ratios, "")


def measure_ladder(measures: dict[str, Any], small: bool) -> None:
    """Every rung beside `nn.LSTM`, and again under each setting of `LADDERS`."""
    compiled = not recurrent_cpp.problem()
    for shape in bench_cases.SHAPES:
        rounds = (3 if small else 100) if shape[0] == 8 else (1 if small else 15)
        timed = {"ladder": bench_cases.rungs_of_the_ladder(shape, rounds, compiled)}
        for kind, variables in LADDERS.items():
            timed[kind] = bench_cases.ladder_in_child(shape, rounds, variables)
        for kind, seconds in timed.items():
            prefix = f"{kind}/{_key(shape)}"
            for name, values in seconds.items():
                _note(measures, f"{prefix}/{name}_seconds", values, "s")
            for name, ratios in ladder.ratios_to_torch(seconds).items():
                _note(measures, f"{prefix}/{name}_to_torch", ratios, "")
            own = seconds["naive"], seconds["workspace"]
            _note_ratio(measures, f"{prefix}/naive_to_workspace", *own)


def measure_replicas(measures: dict[str, Any], small: bool) -> None:
    """Replicas at once beside the naive loop and `nn.LSTM`, seconds of a model's step."""
    for T in LENGTHS:
        seconds = bench_cases.replicas_at_once(T, REPLICAS, 1 if small else 15)
        for name, values in seconds.items():
            _note(measures, f"replicas/{T}/{name}_seconds", values, "s")
        for name in ("naive", "torch"):
            pair = seconds[name], seconds["ensemble"]
            _note_ratio(measures, f"replicas/{T}/{name}_to_ensemble", *pair)


def measure_epoch(measures: dict[str, Any], small: bool) -> None:
    """An epoch of 25,000 film reviews, on one thread and on two; made-up reviews if `small`."""
    from labkit.film import speed as review_speed

    name, words = ("generated", 2001) if small else ("imdb", 20_001)
    sizes = {"rounds": 1, "batches": 10} if small else {"rounds": 5, "batches": 60}
    for threads in (1, 2):
        seconds = review_speed.epoch_seconds(name, words, threads=threads, **sizes)
        for way, values in seconds.items():
            _note(measures, f"epoch/{threads}/{way}_seconds", values, "s")
        for way in ("handwritten", "naive"):
            pair = seconds[way], seconds["grouped"]
            _note_ratio(measures, f"epoch/{threads}/{way}_to_grouped", *pair)

    work = {"seeds": 2, "reviews_read": 100, "epochs": 1, "max_len": 50}
    if not small:
        work = {"seeds": 8, "reviews_read": 4000, "epochs": 4, "max_len": 200}
    accuracy = bench_cases.accuracy_both_ways(name, words, **work)
    shifts = [a - b for a, b in zip(accuracy["grouped"], accuracy["naive"], strict=True)]
    for what, values in (accuracy | {"grouped_minus_naive": shifts}).items():
        measures[f"epoch/accuracy/{what}"] = summarise(values, student=True)


def measure_growth(measures: dict[str, Any], small: bool) -> None:
    """Time and memory over replicas, length and reviews, time over workers; fitted exponents."""
    rounds = 1 if small else 5
    ways = {
        "replicas": ([5, 10, 20, 40, 80], "growth_of_ensemble", lambda R: (R, 20)),
        "length": ([10, 20, 40, 80], "growth_of_ensemble", lambda T: (REPLICAS, T)),
        "reviews": ([2000, 4000, 8000, 16_000], "growth_of_reviews", lambda N: (N,)),
    }
    for what, (sizes, function, arguments) in ways.items():
        sizes = sizes[:2] if small else sizes
        found = {n: bench_cases.in_fresh_process(function, *arguments(n), rounds) for n in sizes}
        for quantity, unit in {"seconds": "s", "bytes": "byte"}.items():
            for n, values in found.items():
                _note(measures, f"growth/{what}/{n}/{quantity}", values[quantity], unit)
            medians = [float(np.median(values[quantity])) for values in found.values()]
            measures[f"growth/{what}/exponent_of_{quantity}"] = exponent(sizes, medians)
    work = {"lengths": [10], "cells": ["lstm"], "stacks": 4, "steps": 20 if small else 4000}
    for workers in (1, 2):
        seconds = [bench_cases.sweep_seconds(workers, **work) for _ in range(1 if small else 3)]
        _note(measures, f"growth/workers/{workers}/seconds", seconds, "s")
    medians = [measures[f"growth/workers/{n}/seconds"]["median"] for n in (1, 2)]
    measures["growth/workers/exponent_of_seconds"] = exponent([1, 2], medians)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value over log size: 1 where twice the work costs twice as much.

    A value of 0 bytes, too little to be seen, counts as 1.
    """
    return float(np.polyfit(np.log(sizes), np.log([value or 1 for value in values]), 1)[0])


def measure_sweep(measures: dict[str, Any], small: bool) -> None:
    """The whole published sweep of chapter 02: 6 lengths, SRN and LSTM, 20 seeds, 19,000 steps."""
    lengths = [10] if small else [10, 15, 20, 25, 30, 35]
    work = {"lengths": lengths, "cells": ["srn", "lstm"], "stacks": 1}
    seconds = bench_cases.sweep_seconds(2, **work, steps=20 if small else 19_000)
    _note(measures, "sweep/published_minutes", [seconds / 60], "min")


def measure_start(measures: dict[str, Any], small: bool) -> None:
    """`import labkit`, the help, and what the lab adds to papermill on a quick chapter."""
    seconds = bench_cases.starts(1 if small else 15)
    for name, values in seconds.items():
        _note(measures, f"start/{name}_seconds", values, "s")
    if small:
        return  # whole chapters take too long for a trial
    runs = bench_cases.chapter_runs(QUICK_CHAPTER, 5)
    for name, values in runs.items():
        _note(measures, f"start/{name}_seconds", values, "s")
    shares = [a / b - 1 for a, b in zip(runs["labkit"], runs["papermill"], strict=True)]
    _note(measures, "start/overhead", shares, "")


SECTIONS: dict[str, Callable[[dict[str, Any], bool], None]] = {
    "ladder": measure_ladder,
    "replicas": measure_replicas,
    "epoch": measure_epoch,
    "growth": measure_growth,
    "start": measure_start,
    "sweep": measure_sweep,
}


def run(sections: Sequence[str] = (), *, small: bool = False) -> str:
    """Measure `sections`, all by default; write record and figures; return the table of aims.

    `small` tries everything at the smallest size and writes nothing. ValueError for an unknown
    section.
    """
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; sections are {', '.join(SECTIONS)}")
    found: dict[str, dict[str, Any]] = {}
    for name in sections or SECTIONS:
        print(f"bench: {name}", flush=True)
        measures: dict[str, Any] = {}
        SECTIONS[name](measures, small)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        found[name] = {"finished": finished, "measures": measures}
        everything = found if small else _write(found)  # what is measured outlives a later failure
    return table(_joined(everything))


def _joined(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: m for part in sections.values() for name, m in part["measures"].items()}


def _write(found: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record and the figures; return all sections of the record.

    Sections that were not measured now are kept, if they come from the same machine and versions.
    """
    path, provenance = FOLDER / "bench.json", environment.provenance()
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    kept = old["sections"] if old.get("provenance") == provenance else {}
    sections = {name: (kept | dict(found))[name] for name in SECTIONS if name in kept | dict(found)}
    record = {
        "sections": sections,
        "allocator": {name: os.environ.get(name) for name in environment.MALLOC},
        "provenance": provenance,
    }
    made = figures_bench.all_figures(_joined(sections))
    for name, figure in made.items():
        digests.write_atomically(FOLDER / f"{name}.png", png_bytes(figure))
    texts = {name: figure.labkit_alt for name, figure in made.items()}
    digests.write_atomically(FOLDER / "README.md", _page(record, texts).encode())
    content = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    digests.write_atomically(path, content.encode())
    return sections


def _page(record: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The record for a reader, in Markdown: machine, aims, and the figures with their texts."""
    measures, found = _joined(record["sections"]), record["provenance"]
    judged = [aim.met(measures[aim.measure]["median"]) for aim in AIMS if aim.measure in measures]
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("python", "torch"))
    intro = (
        f"`make bench` writes this page. Measured on {found['device_name']} "
        f"({found['cpu_capability']}), {found['platform']}; {versions}. A median is that of the "
        "rounds, in each of which all ways ran in turn; a ratio, of the ratios within a round. "
        f"{sum(judged)} of {len(judged)} aims are met here; they were set on another machine."
    )
    words = (
        "a / b is the time of a over that of b: below 1, a is the faster one. *Eight products*, "
        "*workspace* and *C++* are rungs of chapter 01's ladder. *Naive* is the textbook's loop on "
        "the first of them, *ensemble* 20 replicas trained at once. *Lab* is chapter 04's way: "
        "reviews of about one length in a batch, and the allocator's settings; beside it every "
        "review is padded to 500 words, and malloc is plain; an epoch has 25,000 reviews and two "
        "threads, and is scaled up from 60 batches (6 for *eight products*). The sweep is 6 "
        "lengths, SRN and LSTM, 20 seeds and 19,000 steps each."
    )
    images = [f"![{text}]({name}.png)" for name, text in figures.items()]
    parts = ["# How fast the lab is", intro, words, f"```text\n{table(measures)}\n```", *images]
    return "\n\n".join(parts) + "\n"


def table(measures: Mapping[str, Any]) -> str:
    """The aims that were measured, as lines of text."""
    width = max(len(aim.what) for aim in AIMS)
    lines = [f"{'':{width}s} {'median':>8s}  {'95 % interval':18s} {'aim':>8s}"]
    for aim in AIMS:
        if aim.measure in measures:
            found = measures[aim.measure]
            low, high = found["low"], found["high"]
            interval = "" if low is None else f"{low:.3g} to {high:.3g}"
            sign = "≥" if aim.least else "≤"
            verdict = "met" if aim.met(found["median"]) else "missed"
            lines.append(
                f"{aim.what:{width}s} {found['median']:8.3g}  {interval:18s} "
                f"{sign} {aim.limit:<6g} {verdict}"
            )
    if shift := measures.get("epoch/accuracy/grouped_minus_naive"):
        verdict = "contains 0" if shift["low"] <= 0 <= shift["high"] else "does not contain 0"
        lines.append(
            f"{'test accuracy, lab minus naive (mean)':{width}s} {shift['mean']:+8.3f}  "
            f"{shift['low']:+.3f} to {shift['high']:+.3f}   {verdict}"
        )
    return "\n".join(lines)
