"""Appendix 01a: its settings, its pictures and its prediction."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pydantic import Field

from labkit.lab import machine
from labkit.lab.exercises import Prediction
from labkit.lab.settings import ChapterSettings, Count
from labkit.measure.diagrams import arrow, box, canvas, label
from labkit.measure.plots import PALETTE, new_figure


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
    scaled = {name: np.multiply(values, 1e6) for name, values in seconds.items()}
    style = {"estimator": "median", "errorbar": ("pi", 50), "linestyle": "none"}
    sns.pointplot(scaled, ax=ax, orient="h", log_scale=True, color=PALETTE[0], **style)
    for height, middle in enumerate(map(np.median, scaled.values())):
        place = {"xytext": (0, 7), "textcoords": "offset points", "size": 8}
        ax.annotate(f"{middle:,.0f} µs", (middle, height), **place)
    if yours:
        style = {"markerfacecolor": "none", "color": "black", "markersize": 9, "zorder": 4}
        ax.plot([np.median(yours[name]) * 1e6 for name in seconds], [*seconds], "o", **style)
    ax.set(xlabel="µs a model and step", ylim=(len(seconds) - 0.5, -0.7))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.minorticks_off()
    return fig


def show_functions(module: str, *names: str) -> None:
    """Display functions of a module of labkit that need not be imported, "memory/kernel.py"."""
    source = (machine.ROOT / "labkit" / module).read_text("utf-8")
    found = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
    for name in names:
        text = ast.get_source_segment(source, found[name])
        display(Markdown(f"`labkit/{module}`, `{name}`\n\n```python\n{text}\n```"))


forty_models = Prediction(
    "forty_models",
    {
        "40 times": "every call takes forty times as long: the arithmetic must have counted, not "
        "the calls.",
        "about 20": "half of the time goes into calls, which forty models share.",
        "less than 10": "a step of one model is mostly calls, and forty models share them.",
    },
)
