"""Appendix 01a: its settings, its pictures, its predictions, and the speeds measured on a GPU."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pydantic import Field

from labkit.lab import machine
from labkit.lab.exercises import Prediction
from labkit.lab.settings import ChapterSettings, Count
from labkit.measure.diagrams import arrow, box, canvas, label
from labkit.measure.plots import PALETTE, legend_below, new_figure


class LadderSettings(ChapterSettings):
    """What the appendix can be set to."""

    warmup_runs: Annotated[int, Field(ge=0)]
    timed_runs: Count
    large_runs: Count
    replicas: Annotated[list[Count], Field(min_length=2)]
    kernel_steps: Count


def launches_diagram() -> Figure:
    """Who waits for whom: many calls, and one."""
    fig, ax = canvas(
        "launches",
        "Two rows of boxes over time. Above, many calls: the CPU starts one operation after "
        "another without a pause; the GPU finishes each in a fraction of that time and waits for "
        "the next. Below, one call: the CPU starts a single kernel, and the GPU computes without a "
        "pause.",
        9.0, 3.6,
    )  # fmt: skip
    for y, words in ((2.85, "many calls"), (0.95, "one call")):
        label(ax, 0.75, y, words)
        for height, name in ((y + 0.35, "CPU"), (y - 0.35, "GPU")):
            label(ax, 1.75, height, name, "blue" if name == "CPU" else "orange")
    for k in range(5):
        call = box(ax, 2.9 + 1.25 * k, 3.2, "start", "blue", width=1.15)
        work = box(ax, call.x + 0.6, 2.5, "", "orange", width=0.3)
        arrow(ax, (call.x + 0.5, call.bottom[1]), (call.x + 0.5, work.top[1]), colour="orange")
    label(ax, 4.13, 2.5, "waits", "grey", fontsize=9)
    call = box(ax, 2.9, 1.3, "start", "blue", width=1.15)
    work = box(ax, 5.55, 0.6, "all steps of all models", "orange", width=4.4)
    arrow(ax, (call.x + 0.5, call.bottom[1]), (call.x + 0.5, work.top[1]), colour="orange")
    label(ax, 7.9, 0.1, "time →", fontsize=9)
    return fig


def _dots(ax: Any, heights: Sequence[float], values: Sequence[Any], colour: Any, name: str) -> None:
    """A dot for the median of each of `values`, a line for the middle half, with its own label."""
    low, middle, high = np.array([np.quantile(v, (0.25, 0.5, 0.75)) for v in values]).T
    ax.errorbar(
        middle, heights, xerr=(middle - low, high - middle), fmt="o", color=colour, label=name
    )


def _rings(ax: Any, heights: Sequence[float], values: Sequence[Any], name: str) -> None:
    style = {"markerfacecolor": "none", "color": "black", "markersize": 9, "zorder": 4}
    ax.plot([np.median(v) for v in values], heights, "o", label=name, **style)


def steps_plot(
    seconds: Mapping[str, Sequence[float]], yours: Mapping[str, Sequence[float]] | None = None
) -> Figure:
    """Seconds of a training step of one model by each way of computing it, from the top down."""
    rings = " Rings mark your run." if yours else ""
    fig, ax = new_figure(
        "steps",
        "Time of a training step of one digit-sum model, logarithmic. A dot is the median over "
        f"rounds, its line the middle half. From the top: {', '.join(seconds)}.{rings}",
        figsize=(8.0, 0.9 + 0.42 * len(seconds)),
    )
    heights = range(len(seconds))
    scaled = [np.multiply(values, 1e6) for values in seconds.values()]
    _dots(ax, heights, scaled, PALETTE[0], "reported")
    for height, values in zip(heights, scaled, strict=True):
        text = f"{np.median(values):,.0f} µs"
        ax.annotate(text, (np.median(values), height), (0, 7), textcoords="offset points", size=8)
    if yours:
        _rings(ax, heights, [np.multiply(yours[name], 1e6) for name in seconds], "you")
        legend_below(fig)
    ax.set(xscale="log", xlabel="µs a model and step", ylim=(len(seconds) - 0.5, -0.7))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.minorticks_off()
    ax.set_yticks(heights, seconds)
    return fig


def ladder_plot(
    ratios: Mapping[str, Mapping[str, Sequence[float]]],
    yours: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Figure:
    """Times over `nn.LSTM`'s of the same round, `ratios[size][rung]`."""
    rungs, rings = [*next(iter(ratios.values()))], " Rings mark your run." if yours else ""
    fig, ax = new_figure(
        "ladder",
        "Time of a forward and backward pass over that of nn.LSTM in the same round, logarithmic. "
        "A dot is the median over rounds, its line the middle half, a colour stands for a size. "
        f"Rows, from the top: {', '.join(rungs)}. Sizes: {'; '.join(ratios)}.{rings}",
        figsize=(8.0, 3.6),
    )
    for number, (size, by_rung) in enumerate(ratios.items()):
        heights = [row + 0.2 * (number - (len(ratios) - 1) / 2) for row in range(len(rungs))]
        _dots(ax, heights, [by_rung[rung] for rung in rungs], PALETTE[number], size)
        if yours:
            _rings(ax, heights, [yours[size][rung] for rung in rungs], "you")
    ax.axvline(1.0, color="black", linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel="time / nn.LSTM's time", ylim=(len(rungs) - 0.5, -0.5))
    ax.set_xticks(ticks := (0.5, 1, 2, 5, 10, 20), map(str, ticks))
    ax.set_yticks(range(len(rungs)), rungs)
    ax.minorticks_off()
    legend_below(fig, ncols=2)
    return fig


def show_functions(module: str, *names: str) -> None:
    """Display functions of a module of labkit that need not be imported, "memory/kernel.py"."""
    source = (machine.ROOT / "labkit" / module).read_text("utf-8")
    found = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
    for name in names:
        text = ast.get_source_segment(source, found[name])
        display(Markdown(f"`labkit/{module}`, `{name}`\n\n```python\n{text}\n```"))


def on_gpu() -> tuple[str, dict[str, float]]:
    """The GPU of the last `make gpu-check`, and its ms a step by what was timed; "" and nothing
    where there was none."""
    path = machine.ROOT / "benchmarks" / "gpu.json"
    if not path.exists():
        return "", {}
    rows = [
        r for step in json.loads(path.read_text("utf-8"))["steps"].values() for r in step["rows"]
    ]
    values = {row["what"]: row["value"] for row in rows}
    end = ": ms a step"
    times = {what.removesuffix(end): v for what, v in values.items() if what.endswith(end)}
    return str(values.get("device_name", "")), times


forty_models = Prediction(
    "forty_models",
    {
        "40 times": "every call takes forty times as long: the arithmetic must have counted, not "
        "the calls.",
        "about 20": "half of the time goes into calls, which forty models share.",
        "less than 10": "a step of one model is mostly calls, and forty models share them.",
    },
)
