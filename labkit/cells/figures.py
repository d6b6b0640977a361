"""What chapter 01 and its appendix show: diagrams, plots, and rows of the report."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from labkit.lab import machine
from labkit.measure.claims import Row, number_row
from labkit.measure.diagrams import arrow, box, canvas, gate, label
from labkit.measure.plots import COLOURS, PALETTE, new_figure

BACK = {"colour": "orange", "linestyle": "--"}  # the way of a gradient

# diagrams


def unrolled_diagram() -> Figure:
    """A recurrent layer unrolled in time."""
    fig, ax = canvas(
        "unrolled",
        "A recurrent layer unrolled in time: a box for each step from 1 to T, all with the same "
        "weights. Each reads its input from below and the state of the step before from the left. "
        "The loss reads the last state. Its gradient, dashed, goes back through every step.",
        9.0, 2.6,
    )  # fmt: skip
    before, loss = box(ax, 0.5, 1.35, "$h_0$", width=0.5), box(ax, 8.5, 1.35, "loss", "orange")
    for name, x in {"1": 1.8, "2": 3.5, "3": 5.2, "T": 7.0}.items():
        step, given = box(ax, x, 1.35, "step", "blue"), box(ax, x, 0.4, f"$x_{name}$", width=0.5)
        arrow(ax, before.right, step.left, colour="blue", linestyle=":" if name == "T" else "-")
        arrow(ax, given.top, step.bottom)
        before = step
    arrow(ax, before.right, loss.left, colour="blue")
    for x, name in zip((2.65, 4.35, 7.75), "12T", strict=True):
        label(ax, x, 1.35, f"$h_{name}$", "blue")
    arrow(ax, loss.top, (8.5, 2.25), (1.8, 2.25), (1.8, 1.6), **BACK)
    label(ax, 5.1, 2.25, "the way of the gradient: T − 1 steps back", "orange")
    return fig


def cell_diagram() -> Figure:
    """One step of an LSTM, its gates from left to right in the order of the formulas."""
    fig, ax = canvas(
        "lstm_cell",
        "One step of an LSTM. Below, the last hidden state and the input reach four functions, "
        "from left to right: input gate i, forget gate f and output gate o, each a sigmoid, and "
        "the candidate, a tanh. Above, the old cell state is multiplied by f, then i times the "
        "candidate is added: that is the new cell state. Its tanh, times o, is the new hidden "
        "state.",
        9.0, 4.3,
    )  # fmt: skip
    top, out, bus = 3.85, 7.6, 0.4
    i, f, o = (gate(ax, *place, 0.28) for place in (
        (1.9, 1.2, "σ", "green"), (3.1, 1.2, "σ", "blue"), (4.3, 1.2, "σ", "purple"),
    ))  # fmt: skip
    candidate, squash = gate(ax, 5.5, 1.2, "tanh", r=0.28), gate(ax, out, 2.95, "tanh", r=0.28)
    keep, add = gate(ax, 3.1, top, "×", "blue"), gate(ax, 5.5, top, "+", "blue")
    write, show = gate(ax, 5.5, 2.8, "×", "green"), gate(ax, out, 2.0, "×", "purple")

    for start, end in ((0.7, keep.left), (keep.right[0], add.left), (add.right[0], (8.5, top))):
        arrow(ax, (start, top), end, colour="blue", linewidth=3.5)  # the memory
    for colour, *points in (
        ("grey", (0.9, bus), (5.5, bus), candidate.bottom), ("grey", (i.x, bus), i.bottom),
        ("grey", (f.x, bus), f.bottom), ("grey", (o.x, bus), o.bottom),
        ("green", i.top, (i.x, write.y), write.left), ("grey", candidate.top, write.bottom),
        ("green", write.top, add.bottom), ("blue", f.top, keep.bottom),
        ("grey", (out, top), squash.top), ("grey", squash.bottom, show.top),
        ("purple", o.top, (o.x, show.y), show.left), ("purple", show.right, (8.5, show.y)),
    ):  # fmt: skip
        arrow(ax, *points, colour=colour)
    for x, y, text, colour in (
        (0.75, bus, "$h_{t-1}$, $x_t$", "grey"), (0.5, top, "$c_{t-1}$", "blue"),
        (8.6, top, "$c_t$", "blue"), (8.6, show.y, "$h_t$", "purple"),
        (i.x, 1.75, "$i_t$", "green"), (f.x, 1.75, "$f_t$", "blue"), (o.x, 1.75, "$o_t$", "purple"),
        (candidate.x, 1.72, "$\\tilde{c}_t$", "grey"),
    ):  # fmt: skip
        label(ax, x, y, text, colour, fontsize=12)
    return fig


def ways_diagram() -> Figure:
    """What a gradient is multiplied by on its way back, through h and through c."""
    fig, ax = canvas(
        "ways_back",
        "Two ways of a gradient back through three steps. Above, through the hidden states of an "
        "SRN: every step multiplies by the slope of tanh and by the transposed matrix U. Below, "
        "along the cell states of an LSTM: every step multiplies by its forget gate. At each step "
        "more comes in from the hidden state, times the output gate and the slope of tanh.",
        9.0, 4.2,
    )  # fmt: skip
    times = dict(zip(("t-3", "t-2", "t-1", "t"), (0.8, 3.25, 5.7, 8.15), strict=True))
    for y, state, colour, words in (
        (3.1, "h", "grey", "SRN, through $h$: a slope of at most 1, and always the same matrix"),
        (1.5, "c", "blue", "LSTM, along $c$: a number from 0 to 1, which the network sets"),
    ):
        label(ax, 4.5, y + 0.65, words, colour)
        shapes = [box(ax, x, y, f"${state}_{{{t}}}$", colour, width=0.8) for t, x in times.items()]
        for earlier, later, t in zip(shapes, shapes[1:], [*times][1:], strict=False):
            arrow(ax, later.left, earlier.right, **BACK)
            factor = "× tanh′ × $U^⊤$" if state == "h" else f"× $f_{{{t}}}$"
            label(ax, (earlier.x + later.x) / 2, y, factor, "orange")
    for t, x in times.items():
        arrow(ax, box(ax, x, 0.35, f"$h_{{{t}}}$", width=0.8).top, (x, 1.25), **BACK)
        label(ax, x, 0.92, f"× $o_{{{t}}}$ × tanh′", "orange", fontsize=9)
    return fig


# plots


def power(value: float) -> str:
    """A number as 4 · 10⁻¹¹, in TeX."""
    digit, exponent = f"{value:.0e}".split("e")
    return rf"${digit} \cdot 10^{{{int(exponent)}}}$"


def squashing_plot() -> Figure:
    """σ and tanh, and their slopes."""
    fig, axes = new_figure(
        "squashing",
        "Left: σ rises from 0 to 1 and tanh from −1 to 1, both flat at the ends. Right: their "
        "slopes, at most a quarter and at most 1, both at zero. Far from zero they vanish.",
        ncols=2, figsize=(8.0, 2.8),
    )  # fmt: skip
    a = np.linspace(-6, 6, 241)
    sigma, tanh = 1 / (1 + np.exp(-a)), np.tanh(a)
    for ax, title, values in (
        (axes[0], "value", (sigma, tanh)), (axes[1], "slope", (sigma * (1 - sigma), 1 - tanh**2)),
    ):  # fmt: skip
        for name, curve in zip(("σ", "tanh"), values, strict=True):
            ax.plot(a, curve, label=name, linewidth=2)
        ax.set(title=title, xlabel="a")
    axes[1].set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes[0].legend(loc="upper left")
    return fig


def gradient_plot(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    yours: Mapping[str, Sequence[float]] | None = None,
    whose: str = "",
) -> Figure:
    """Norms of dℓ/dh_t over the steps back: `curves[start]` has median, min and max, (T,) each.

    `yours[start]`, the medians (T,) of a reader's run, become rings; `whose` names them.
    """
    open_by = {f"lstm/forget_bias_{bias}": 1 / (1 + np.exp(-bias)) for bias in (0, 1, 3, 5)}
    labels = {"srn/xavier": "SRN"}
    labels |= {start: f"LSTM, forget gates near {f:.2f}" for start, f in open_by.items()}
    rings = " Rings mark your run." if yours else ""
    fig, ax = new_figure(
        "gradient_norm",
        "Norm of the gradient of the last step's loss with respect to the hidden state, over the "
        "steps travelled back, logarithmic. Lines are medians over seeds, bands reach from the "
        f"lowest seed to the highest: {'; '.join(labels.values())}.{rings}",
        figsize=(8.0, 4.4),
    )
    colours = [COLOURS["srn"], *sns.color_palette("Blues", 7)[2:6]]
    for (start, text), colour in zip(labels.items(), colours, strict=True):
        if start in curves:
            median, low, high = (curves[start][name][::-1] for name in ("median", "min", "max"))
            ax.plot(median, color=colour, linewidth=2.2, label=text)
            ax.fill_between(range(len(low)), low, high, color=colour, alpha=0.2, linewidth=0)
        if yours:
            style = {"color": colour, "markerfacecolor": "white", "markevery": 7, "zorder": 4}
            name = whose if start == "lstm/forget_bias_5" else None
            ax.plot(yours[start][::-1], "o", label=name, **style)
    ax.set(yscale="log", xlabel="steps travelled back from the last one")
    ax.set_ylabel("norm of the gradient, $\\|\\partial\\ell\\,/\\,\\partial h_t\\|$")
    handles, texts = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], texts[::-1], loc="lower left", fontsize=9)
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


# the report


def rows(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The published numbers of chapter 01 beside ours."""
    operator = published["operator"]
    speed, shapes = operator["speed"], [*operator["parity_claim"]["printed_shapes"].values()]
    toy, ours = operator["toy_output"]["hidden_state"], measures["toy_output"]  # 4 decimals each
    toy_row = Row(
        "toy example: last hidden state", str(toy), str(ours),
        "reproduced" if ours == toy else "not reproduced", "equal to the four decimals printed",
    )  # fmt: skip
    ours = measures["parity_mistake/shapes"]
    shapes_row = Row(
        "parity: printed shapes, handwritten and `nn.LSTM`", str(shapes), str(ours),
        "mistake reproduced" if ours == shapes else "not reproduced",
        "a batch-first tensor in an `nn.LSTM` with batch_first=False; equal layout, equal shape",
    )  # fmt: skip
    speed_row = number_row(
        "speed ({device}): handwritten over `nn.LSTM`, a forward pass of {batch_size} sequences, "
        "{seq_len} steps, {input_size} inputs, {hidden_size} units; {timed_runs} runs after "
        "{warmup_runs}".format(**speed),
        speed["ratio"], measures, "speed/ratio_naive_to_torch", higher_is_better=False,
        shown="{ratio} ({handwritten_seconds} s over {torch_nn_seconds} s)".format(**speed),
    )  # fmt: skip
    return {"Numbers": [toy_row, speed_row, shapes_row]}
