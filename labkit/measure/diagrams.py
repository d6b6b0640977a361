"""Diagrams in one style: boxes, gates, arrows and labels on a transparent background.

A page may be white or dark, and no colour of text has a contrast of 4.5 : 1 on both. So lines are
of middle tones, and every text stands on a light patch of its own.

>>> fig, ax = canvas("sum", "Two numbers go into a sum.", 4, 1)
>>> a, plus = box(ax, 0.8, 0.5, "a", "blue"), gate(ax, 3, 0.5, "+", "green")
>>> arrow(ax, a.right, plus.left, colour="blue")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path

from labkit.measure.plots import new_figure

INK = "#1a1a1a"  # all text
COLOURS = {  # of lines, and of what they enclose
    "grey": ("#767676", "#f0f0f0"), "blue": ("#0173b2", "#dcedf8"), "green": ("#028a65", "#d9f2e9"),
    "orange": ("#d55e00", "#fce4d4"), "purple": ("#b35aa5", "#f5e3f2"),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Where something was drawn: its centre and its size, and the middles of its sides."""

    x: float
    y: float
    width: float
    height: float

    left = property(lambda self: (self.x - self.width / 2, self.y))
    right = property(lambda self: (self.x + self.width / 2, self.y))
    top = property(lambda self: (self.x, self.y + self.height / 2))
    bottom = property(lambda self: (self.x, self.y - self.height / 2))


def canvas(name: str, alt: str, width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure of `width` × `height` inches, which are also the axes' units."""
    fig, ax = new_figure(name, alt, figsize=(width, height))
    fig.set_layout_engine("none")
    fig.patch.set_alpha(0)
    ax.set(position=(0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def box(
    ax: Axes, x: float, y: float, text: str, colour: str = "grey", *, width: float = 0.9,
    height: float = 0.5, size: float = 11,
) -> Shape:  # fmt: skip
    """A box with its text, centred at (x, y); `size` of the text in points."""
    corner = (x - width / 2, y - height / 2)
    outline = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.06")
    return _put(ax, outline, Shape(x, y, width, height), text, colour, size)


def gate(ax: Axes, x: float, y: float, text: str, colour: str = "grey", r: float = 0.2) -> Shape:
    """A circle of radius `r`: an operation (×, +) or a function (σ, tanh)."""
    size = (60 if len(text) == 1 else 38) * r
    return _put(ax, Circle((x, y), r), Shape(x, y, 2 * r, 2 * r), text, colour, size)


def _put(ax: Axes, outline: Patch, place: Shape, text: str, colour: str, size: float) -> Shape:
    line, fill = COLOURS[colour]
    ax.add_patch(outline).set(facecolor=fill, edgecolor=line, linewidth=1.5, zorder=3)
    middle = {"ha": "center", "va": "center_baseline", "zorder": 4}
    ax.text(place.x, place.y, text, color=INK, fontsize=size, **middle)
    return place


def arrow(ax: Axes, *points: tuple[float, float], colour: str = "grey", **style: Any) -> None:
    """An arrow through points (x, y), the head at the last; `style` (linewidth, linestyle, ...)."""
    drawn = {"linewidth": 1.8, "mutation_scale": 13, "arrowstyle": "-|>", "zorder": 2} | style
    path = Path(points)
    ax.add_patch(FancyArrowPatch(path=path, color=COLOURS[colour][0], joinstyle="round", **drawn))


def label(ax: Axes, x: float, y: float, text: str, colour: str = "grey", **style: Any) -> None:
    """Text on a light patch, centred at (x, y); `style` goes to `Axes.text`."""
    patch = {"facecolor": COLOURS[colour][1], "edgecolor": "none", "boxstyle": "round,pad=0.2"}
    drawn = {"fontsize": 10, "ha": "center", "va": "center", "zorder": 5} | style
    ax.text(x, y, text, color=INK, bbox=patch, **drawn)
