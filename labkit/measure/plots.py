"""Every plot of the lab: a function takes results and returns a matplotlib Figure.

Each figure carries a name and an alternative text, and uses colours that colour-blind readers can
tell apart. No pyplot state is touched, so a figure depends on its data alone.
"""

from __future__ import annotations

import inspect
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.PngImagePlugin import PngInfo

PALETTE = sns.color_palette("colorblind")
COLOURS = {"srn": PALETTE[1], "lstm": PALETTE[0], "gru": PALETTE[2], "chance": PALETTE[7]}
LABELS = {"srn": "SRN", "lstm": "LSTM", "gru": "GRU"}
DPI = 144
STYLE = {
    "axes.axisbelow": True,
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
}


def new_figure(
    name: str,
    alt: str,
    nrows: int = 1,
    ncols: int = 1,
    *,
    figsize: tuple[float, float] = (7.0, 4.2),
    **subplots: Any,
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure with a name, an alternative text and axes, laid out so that nothing overlaps.

    `figsize` is in inches; `subplots` goes to `Figure.subplots` (sharex, squeeze, ...). Returns
    the figure and one Axes, or an array of them as `Figure.subplots` shapes it. A record takes only
    names that are plain file stems, and no figure without a text.
    """
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=figsize, dpi=DPI, layout="constrained")
        axes = fig.subplots(nrows, ncols, **subplots)
        for ax in fig.axes:
            ax.grid(True, alpha=0.3)  # said here, since grid lines are made when they are drawn
    fig.labkit_name, fig.labkit_alt = name, " ".join(alt.split())
    return fig, axes


def seed_lines(
    ax: Axes, x: Sequence[float], values: np.ndarray, color: Any, label: str, **median: Any
) -> None:
    """A faint line for each seed of `values` (R, K) over `x` (K,), and their median strong.

    `median` goes to the strong line (marker, linestyle, ...).
    """
    ax.plot(x, np.asarray(values).T, color=color, alpha=0.25, linewidth=0.8)
    ax.plot(x, np.median(values, axis=0), color=color, linewidth=2, label=label, **median)


def legend_below(fig: Figure, ncols: int = 4) -> None:
    """One legend below all panels, each label once."""
    entries = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        fig.legend(
            entries.values(), entries, loc="outside lower center", ncols=ncols, fontsize=9,
            frameon=False,
        )  # fmt: skip


def png_bytes(fig: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same data; the metadata holds its text.

    A palette of 128 colours makes a figure of many fine lines about a third as large. What is
    transparent stays so.
    """
    drawn, packed = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({**STYLE, "savefig.bbox": "standard"}):
        fig.savefig(drawn, format="png", dpi=DPI, facecolor=fig.get_facecolor())
    texts = PngInfo()
    texts.add_text("Title", fig.labkit_name)
    texts.add_itxt("Description", fig.labkit_alt)
    clear = fig.get_facecolor()[3] == 0
    image = PIL.Image.open(drawn).convert("RGBA" if clear else "RGB")
    image = image.quantize(128, dither=PIL.Image.Dither.NONE)
    image.save(packed, format="png", pnginfo=texts, dpi=(DPI, DPI), optimize=True)
    return packed.getvalue()


def show(fig: Figure) -> None:
    """Display the figure, its alternative text in the output's metadata and in a caption below."""
    width = round(fig.get_figwidth() * 100)
    display(Image(png_bytes(fig), format="png", width=width, alt=fig.labkit_alt))
    display(Markdown(f"*{fig.labkit_alt}*"))


def show_source(*objects: Any) -> None:
    """Display the source of classes, functions or methods, so that no notebook holds a copy."""
    for obj in objects:
        source = textwrap.dedent(inspect.getsource(obj)).rstrip()
        where = f"{obj.__module__.replace('.', '/')}.py"
        display(Markdown(f"`{where}`, `{obj.__qualname__}`\n\n```python\n{source}\n```"))


def show_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Display rows of values under a header as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)))
