"""The page of the benchmark: its table of aims, its figures and its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from labkit.cells import fast
from labkit.cells.figures import ladder_plot
from labkit.measure.plots import PALETTE, new_figure

Measures = Mapping[str, Any]


class Aim(NamedTuple):
    """What a measure should reach: `limit` at least, or at most."""

    what: str
    measure: str
    limit: float
    least: bool = True

    def met(self, value: float) -> bool:
        """Whether `value` reaches it."""
        return value >= self.limit if self.least else value <= self.limit


SHAPES = {  # of the ladder: B, T, I, H, and how near nn.LSTM its last rung should come
    (8, 20, 32, 32): 1.3,
    (8, 35, 32, 32): 1.6,
    (64, 256, 64, 64): 1.0,
}
AIMS = [
    *(
        Aim(
            f"backward by hand / nn.LSTM, {fast.size_text(shape)}",
            f"ladder/{'x'.join(map(str, shape))}/backward_to_torch",
            limit,
            False,
        )
        for shape, limit in SHAPES.items()
    ),
    *(
        Aim(f"{label} / 20 replicas at once, T={T}", f"replicas/{T}/{way}_to_ensemble", limit)
        for T in (10, 20, 35)
        for way, label, limit in (("handwritten", "textbook", 30), ("torch", "nn.LSTM", 4))
    ),
    Aim("review epoch: eight products, padded / the lab's way", "epoch/handwritten_to_lab", 10),
    Aim("review epoch: nn.LSTM, padded / the lab's way", "epoch/torch_to_lab", 2.5),
    Aim("import labkit, s", "start/import_seconds", 0.3, False),
    Aim("python -m labkit --help, s", "start/help_seconds", 0.5, False),
    Aim("a quick chapter: labkit / papermill", "chapter/labkit_to_papermill", 1.1, False),
]
WORDS = (
    "a / b is the time of a over that of b: below 1, a is the faster. *Backward by hand* and "
    "*eight products* are rungs of chapter 01's ladder, timed forward and backward. *Textbook* is "
    "a loop of DataLoader, the handwritten layer, cross-entropy and Adam as it comes, and "
    "*nn.LSTM* the same on torch's layer. The lab's way with reviews groups them by length, with "
    "the allocator's settings; beside it every review is padded to 500 words, and malloc is "
    "plain. An epoch has 25,000 reviews and two threads, scaled up from 60 batches (6 for eight "
    "products)."
)


def table(measures: Measures) -> str:
    """The aims that were measured, as lines of text."""
    lines = [f"{'':54s} {'median':>8s}  {'95 % interval':18s} aim"]
    for aim in AIMS:
        if measure := measures.get(aim.measure):
            low, high = measure["low"], measure["high"]
            interval = "" if low is None else f"{low:.3g} to {high:.3g}"
            verdict = "met" if aim.met(measure["median"]) else "missed"
            sign = "≥" if aim.least else "≤"
            lines.append(
                f"{aim.what:54s} {measure['median']:8.3g}  {interval:18s} "
                f"{sign} {aim.limit:<4g} {verdict}"
            )
    return "\n".join(lines)


def readme(machine: Mapping[str, Any], measures: Measures, figures: Mapping[str, Figure]) -> str:
    """The record for a reader, in Markdown: machine, aims, and the figures with their texts."""
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("python", "torch"))
    origin = (
        f"`make bench` writes this page. Measured on {machine['device_name']} "
        f"({machine['cpu_capability']}), {machine['platform']}; {versions}. A median is that of "
        "the rounds, in each of which all ways ran in turn; a ratio, of the ratios within a round."
    )
    images = [f"![{figure.labkit_alt}]({name}.png)" for name, figure in figures.items()]
    text = f"```text\n{table(measures)}\n```"
    return "\n\n".join(["# How fast the lab is", origin, WORDS, text, *images]) + "\n"


def figures(measures: Measures) -> dict[str, Figure]:
    """The figures of the sections that were measured, by name."""
    makers = {"ladder": _ladder, "replicas": _replicas, "epoch": _epoch}
    measured = {name.split("/")[0] for name in measures}
    return {name: make(measures) for name, make in makers.items() if name in measured}


def _ladder(measures: Measures) -> Figure:
    rungs = [name for name in fast.LABELS if name != "torch"]
    shapes = dict.fromkeys(name.split("/")[1] for name in measures if name.startswith("ladder/"))
    return ladder_plot(
        {
            fast.size_text(tuple(map(int, shape.split("x")))): {
                fast.LABELS[rung]: measures[f"ladder/{shape}/{rung}_to_torch"]["raw"]
                for rung in rungs
            }
            for shape in shapes
        }
    )


def _centres(measures: Measures, names: list[str], scale: float = 1.0) -> tuple[Any, Any]:
    """Medians (n,) and the reach of their intervals below and above (2, n)."""
    chosen = [measures[name] for name in names]
    centre = np.array([m["median"] for m in chosen])
    ends = np.array([[m["median"] if m[end] is None else m[end] for m in chosen]
                     for end in ("low", "high")])  # fmt: skip
    return centre * scale, np.abs(ends - centre) * scale


def _replicas(measures: Measures) -> Figure:
    lengths = sorted({int(name.split("/")[1]) for name in measures if name.startswith("replicas/")})
    ways = {"handwritten": "textbook", "torch": "nn.LSTM", "ensemble": "20 replicas at once"}
    fig, ax = new_figure(
        "replicas",
        "Microseconds that one training step of one digit-sum model takes, over the length of its "
        f"sequences, on logarithmic axes: {', '.join(ways.values())}. Bars are 95 % intervals of "
        "the median.",
        figsize=(6.0, 3.8),
    )
    for colour, (way, label) in zip(PALETTE, ways.items(), strict=False):
        names = [f"replicas/{T}/{way}_seconds" for T in lengths]
        ax.errorbar(lengths, *_centres(measures, names, 1e6), color=colour, marker="o", label=label)
    ax.set(xscale="log", yscale="log", xlabel="length T (steps)", ylabel="µs a model and step")
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def _epoch(measures: Measures) -> Figure:
    ways = {
        "handwritten": "eight products, padded",
        "torch": "nn.LSTM, padded",
        "lab": "the lab's way",
    }
    fig, ax = new_figure(
        "epoch",
        "Seconds of an epoch of 25,000 film reviews on two threads: chapter 01's first layer with "
        "every review padded to 500 words, nn.LSTM likewise, and the lab's way. Bars are 95 % "
        "intervals of the median.",
        figsize=(6.5, 2.6),
    )
    centre, reach = _centres(measures, [f"epoch/{way}_seconds" for way in ways])
    bars = ax.barh([*ways.values()], centre, xerr=reach, color=PALETTE[:3])
    ax.bar_label(bars, [f"{value:.0f} s" for value in centre], padding=6)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set(xlabel="seconds")
    return fig
