"""What chapters 02 and 03 show: plots, an explorer of gates, their rows of the report.

`measures` are those of a record, or of this run; `yours`, where given, are the reader's.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import seaborn as sns
import torch
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.lab import machine
from labkit.measure import diagrams, plots
from labkit.measure.claims import MIN_SEEDS, Row, number_row
from labkit.measure.plots import COLOURS, LABELS, PALETTE
from labkit.measure.statistics import Measure, paired_difference
from labkit.memory.data import ADDENDS, CHANCE, DIGITS, all_pairs, with_digit
from labkit.memory.gates import NAMES, WAYS
from labkit.memory.model import Ensemble
from labkit.memory.training import place

EXPLORER = machine.ROOT / "site" / "static" / "explorer"  # the site shows the same one
FIRST_LOSS = "published/lstm/zero/trained/first_step_loss"  # which write-up A printed
SOURCES = {"nndl-a": "write-up A", "nndl-b": "write-up B", "nndl-c": "rerun of A"}
MARKERS = dict(zip(SOURCES, "s^D", strict=True))
INKS = {"SRN": COLOURS["srn"], "LSTM": COLOURS["lstm"]}  # what a label holds -> its colour
INKS |= {"zero start": PALETTE[0], "xavier start": PALETTE[1]}
INKS |= {"falls": PALETTE[0], "rises": PALETTE[1], "untrained": PALETTE[2], "permuted": PALETTE[7]}
INKS |= {"in its place": PALETTE[0], "step before": PALETTE[7]}
SETTINGS = {
    "zero/trained": "zero start",
    "zero/frozen": "zero start, frozen embedding",
    "xavier/trained": "Xavier start",
}

Panels = Mapping[str, Mapping[str, Any]]  # title -> label -> what is drawn
MARKS = (
    "Every seed is a faint line with the median strong, or a dot beside the mean and, from "
    f"{MIN_SEEDS} seeds on, its 95 % interval."
)


class PublishedRow(NamedTuple):
    """Accuracies that a source printed, each of a single seed."""

    source: str
    label: str
    setting: str  # start/embedding, as the source's code has it
    cell: str
    quantity: str  # dev_accuracy or test_accuracy
    values: dict[int, float]  # by length


def published_rows(published: Mapping[str, Any]) -> Iterator[PublishedRow]:
    """Every row of accuracies of chapter 02 in data/published.toml."""
    tables = published["digit_sum"]
    for source, table in {**tables["lstm"], **tables["rerun"]}.items():
        for key in (key for key in table if key.endswith("_accuracy")):
            cell, quantity = ("lstm", key) if key.count("_") == 1 else key.split("_", 1)
            values = dict(zip(table["lengths"], table[key], strict=True))
            setting, label = f"{table['init']}/{table['embedding']}", LABELS[cell]
            label = f"{SOURCES[source]}, {label}"
            yield PublishedRow(source, label, setting, cell, quantity, values)


def sweep_rows(
    measures: Mapping[str, Measure], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The report's rows of chapter 02, by source: what was printed beside our seeds, for each
    length and start that was trained."""
    table = published["digit_sum"]
    groups: dict[str, list[Row]] = {}
    for source, _, setting, cell, quantity, values in published_rows(published):
        rows = groups.setdefault(
            "{}: {} start, embedding {}".format(source, *setting.split("/")), []
        )
        split = quantity.removesuffix("_accuracy")
        trained = settings["lengths"] if setting in settings["settings"] else ()
        for length in (n for n in values if n in trained):
            what = f"{cell.upper()}, {length} digits, {split} accuracy"
            name = f"{place('published', cell, setting, length)}/{quantity}"
            facts = {"higher_is_better": True, "examples": table[f"n_{split}"]}
            rows.append(number_row(what, values[length], measures, name, **facts))
    if "zero/trained" in settings["settings"]:
        what, loss = "LSTM, loss at the first step", table["first_step_loss"]
        row = number_row(what, loss, measures, FIRST_LOSS, higher_is_better=None)
        next(iter(groups.values())).append(row)
    return {heading: rows for heading, rows in groups.items() if rows}


def gate_rows(measures: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The report's row of chapter 03: how many models predict what the source printed."""
    table = published["gates"]
    expected, predictions = table["prediction"], measures["prediction"]
    hits, n = predictions.count(expected), len(predictions)
    verdict = {0: "not reproduced", n: "reproduced"}.get(hits, f"reproduced by {hits} of {n} seeds")
    ours = str(predictions[0]) if len({*predictions}) == 1 else f"{hits} × {expected}"
    what = f"prediction for {' '.join(map(str, table['sequence']))}"
    reason = f"{expected} predicted by {hits} of {n} trained models"
    return {"Numbers": [Row(what, str(expected), f"{ours}, n = {n}", verdict, reason)]}


def accuracy(protocol: str, setting: str, kind: str = "") -> str:
    """The name of a test accuracy in a record, with "{}" for the cell and for the length."""
    return f"{place(protocol, '{}', setting, '{}')}/test_accuracy{kind}"


STEPS = {  # of the opening picture, from the published setting to the sound one
    "zero start\n(write-up A)": accuracy("published", "zero/trained"),
    "zero start, frozen\nembedding (write-up B)": accuracy("published", "zero/frozen"),
    "Xavier start": accuracy("published", "xavier/trained"),
    "Xavier start,\nshuffled": accuracy("shuffled", "xavier/trained"),
    "Xavier start, shuffled,\nsound data": accuracy("sound", "xavier/trained", "_seen_pairs"),
}


def leads(measures: Mapping[str, Measure], lengths: Sequence[int]) -> dict[str, Measure]:
    """The LSTM's lead over the SRN in test accuracy, seed by seed, averaged over `lengths`; for
    each of `STEPS` that was trained on all of them."""
    found = {}
    for step, name in STEPS.items():
        lstm, srn = ([name.format(cell, n) for n in lengths] for cell in ("lstm", "srn"))
        if {*lstm, *srn} <= measures.keys():
            means = (np.mean([measures[name]["raw"] for name in names], 0) for names in (lstm, srn))
            found[step] = paired_difference(*means, measures[srn[0]]["seeds"])
    return found


def lead(measures: Mapping[str, Measure], lengths: Sequence[int]) -> Figure:
    """The picture of the chapter: the LSTM's lead by setting, at the first length and over all."""
    every = ", ".join(map(str, lengths))
    alt = (
        "The LSTM's lead over the SRN in test accuracy. One row for each setting: zero start with "
        "trained and with frozen embedding, Xavier start, then also shuffled, then also on sound "
        f"data. Left at {lengths[0]} digits, right averaged over {every} digits. Every seed is a "
        f"dot, the mean an upright line, its 95 % interval a level one, from {MIN_SEEDS} seeds on."
    )
    size = {"figsize": (9.6, 3.8), "sharex": True, "sharey": True}
    fig, axes = plots.new_figure("lead", alt, ncols=2, **size)
    titles = {f"{lengths[0]} digits": lengths[:1], f"averaged over {every} digits": lengths}
    rows, ink = {step: -k for k, step in enumerate(STEPS)}, COLOURS["lstm"]
    for ax, (title, chosen) in zip(axes, titles.items(), strict=True):
        for step, m in leads(measures, chosen).items():
            spread = rows[step] + np.linspace(-0.2, 0.2, m["n"])
            ax.scatter(m["raw"], spread, s=12, color=ink, alpha=0.45, lw=0)
            ax.plot(m["mean"], rows[step], "|", ms=13, mew=2.4, color=ink)
            if m["n"] >= MIN_SEEDS:
                ax.hlines(rows[step], m["low"], m["high"], color=ink, lw=1.6)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("LSTM minus SRN, test accuracy")
    axes[0].set_yticks([*rows.values()], [*rows])
    return fig


def over_length(
    name: str, what: str, names: Mapping[str, str], measures: Mapping[str, Measure],
    yours: Mapping[str, Measure], published: Sequence[PublishedRow] = (),
    nines: Sequence[float] = (CHANCE,) * 3,
) -> Figure:  # fmt: skip
    """Accuracy of both cells over the length. `names` maps a panel's title to `accuracy(...)`,
    `nines` are the panels' chance lines; `what` begins the alternative text."""
    drawn, mine = (
        {title: _by_length(source, name) for title, name in names.items()}
        for source in (measures, yours)
    )
    for (title, name_), nine in zip(names.items(), nines, strict=False):
        rows = [row for row in published if accuracy("published", row.setting) == name_]
        drawn[title] |= {row.label: row for row in rows} | {"always 9": nine}
    seeds = next((m["seeds"] for m in yours.values() if isinstance(m, dict)), [0])
    you = f"you: seeds {seeds[0]}–{seeds[-1]}"
    mine = mine if yours else None
    return panels(name, what, drawn, "digits", "test accuracy", yours=mine, you=you)


def _by_length(measures: Mapping[str, Measure], name: str) -> dict[str, dict[int, Measure]]:
    """The cells' measures by length."""
    names = {LABELS[c]: {n: name.format(c, n) for n in range(100)} for c in ("srn", "lstm")}
    return {
        label: {n: measures[where] for n, where in by_length.items() if where in measures}
        for label, by_length in names.items()
    }


def one_seed_studies(
    measures: Mapping[str, Measure], settings: Sequence[str], published: Sequence[PublishedRow]
) -> Figure:
    """The LSTM's test accuracy over the length, a line a seed, the published rows dashed."""
    drawn = {}
    for setting in settings:
        by_length = _by_length(measures, accuracy("published", setting))["LSTM"]
        values = np.array([m["raw"] for m in by_length.values()]).T  # (seeds, lengths)
        rows = (row for row in published if (row.setting, row.cell) == (setting, "lstm"))
        drawn[SETTINGS[setting]] = {"LSTM": ([*by_length], values)} | {r.label: r for r in rows}
    what = "What studies with one seed would have printed: LSTM test accuracy over the length"
    return panels("one_seed_studies", what, drawn, "digits", "LSTM test accuracy")


def loss_curves(
    curves: Mapping[str, Any], settings: Sequence[str], length: int, guessing: float,
    yours: Mapping[str, Any],
) -> Figure:  # fmt: skip
    """Training loss of both cells, a panel for each start; the loss of `guessing` is dotted."""
    alt = (
        f"Training loss over the steps at {length} digits, SRN and LSTM: median of the seeds, and "
        "a band that holds their middle half; dotted, the loss of knowing only how often each sum "
        f"occurs; dashed, the reader's run. Panels: {'; '.join(SETTINGS[s] for s in settings)}."
    )
    size = {"figsize": (4.6 * len(settings), 3.8), "sharey": True, "squeeze": False}
    fig, axes = plots.new_figure("loss_curves", alt, ncols=len(settings), **size)
    for ax, setting in zip(axes[0], settings, strict=True):
        for cell, (source, line, who) in product(
            ("srn", "lstm"), ((curves, "-", ""), (yours, "--", "you: "))
        ):
            if run := source.get(place("published", cell, setting, length)):
                x, ink = np.array(run["step"]) / 1000, COLOURS[cell]
                low, middle, high = np.quantile(run["train_loss"], (0.25, 0.5, 0.75), axis=0)
                ax.plot(x, middle, line, color=ink, label=who + LABELS[cell])
                ax.fill_between(x, low, high, color=ink, alpha=0 if who else 0.25, lw=0)
        ax.axhline(guessing, color="black", ls=":", lw=1.2, label="class frequencies")
        ax.set_title(SETTINGS[setting], fontsize=10)
        ax.set(xlabel="1,000 steps", ylim=(0, None))
    axes[0, 0].set_ylabel("training loss (nats)")
    plots.legend_below(fig, 5)
    return fig


def panels(
    name: str, what: str, content: Panels, xlabel: str, ylabel: str, width: float = 3.6,
    yours: Panels | None = None, you: str = "you",
) -> Figure:  # fmt: skip
    """Panels of `width` (inches) with shared axes; `content[title][label]` is drawn by its kind.

    x (K,) and values (seeds, K) become a faint line a seed and a strong median; a mapping x ->
    summary dots, means (joined where x is a length) and intervals; a `PublishedRow` open markers;
    a float a level. `what` begins the alternative text. `yours` holds the reader's own results
    under the same titles and labels; black crosses, labelled `you`, stand for them.
    """
    labels = dict.fromkeys(label for drawn in content.values() for label in drawn)
    alt = f"{what}. {MARKS} Drawn: {'; '.join(labels)}. Panels: {'; '.join(content)}."
    if yours:
        alt += f" Black crosses, {you}: the reader's own run."
    size = {"figsize": (len(content) * width + 0.6, 3.6), "squeeze": False}
    shared = {"sharex": True, "sharey": True}
    fig, ((first, *_),) = plots.new_figure(name, alt, ncols=len(content), **size, **shared)
    first.set_ylabel(ylabel)
    for ax, (title, drawn) in zip(fig.axes, content.items(), strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(xlabel)
        for side, (label, value) in zip((-1, 1, *[0] * len(drawn)), drawn.items(), strict=False):
            ink = next((ink for part, ink in INKS.items() if part in label), "black")
            if isinstance(value, PublishedRow):
                joined = tuple in map(type, drawn.values())
                style = {"ls": "--", "color": "black"} if joined else {"ls": "", "color": ink}
                style |= {"marker": MARKERS[value.source], "mfc": "none", "zorder": 4}
                ax.plot(value.values.keys(), value.values.values(), label=label, **style)
            elif isinstance(value, float):
                ax.axhline(value, color=ink, ls=":", lw=1.2, label=label)
            elif isinstance(value, tuple):
                plots.seed_lines(ax, *value, ink, label)
            else:
                _strip(ax, side, value, ink, label)
            if mine := (yours or {}).get(title, {}).get(label):
                _crosses(ax, side, mine, you)
    first.set_ylim(0, None)
    plots.legend_below(fig)
    return fig


def _strip(ax: Axes, side: int, by_x: Mapping[Any, Measure], color: Any, label: str) -> None:
    """Every seed a dot, the mean a level line; with enough seeds its interval an upright line."""
    lengths = all(isinstance(x, int) for x in by_x)
    ticks = np.array([*by_x] if lengths else range(len(by_x)))
    ax.set_xticks(ticks, list(by_x))
    unit, means = 0.6 if lengths else 0.2, [measure["mean"] for measure in by_x.values()]
    style = {"ms": 12, "mew": 2.4, "color": color, "label": label}
    ax.plot(ticks + side * unit, means, "_-" if lengths else "_", **style)
    for x, measure in zip(ticks + side * unit, by_x.values(), strict=True):
        spread = np.linspace(-0.5, 0.5, measure["n"]) * unit
        ax.scatter(x + spread, measure["raw"], s=12, color=color, alpha=0.5, lw=0)
        if measure["n"] >= MIN_SEEDS:
            ax.vlines(x, measure["low"], measure["high"], color=color, lw=1.4)


def _crosses(ax: Axes, side: int, mine: Any, label: str) -> None:
    """The reader's own seeds over what `panels` draws: medians on lines, every one beside dots."""
    style = {"ls": "", "marker": "x", "ms": 5, "color": "black", "zorder": 5, "label": label}
    if isinstance(mine, tuple):
        ax.plot(mine[0], np.median(mine[1], axis=0), **style)
        return
    shift = 1.1 if all(isinstance(x, int) for x in mine) else 0.34
    for k, (x, measure) in enumerate(mine.items()):
        at = (x if isinstance(x, int) else k) + side * shift
        ax.plot(np.full(measure["n"], at), measure["raw"], **style)


# chapter 03


def digit_responses(measures: Mapping[str, Measure], start: str) -> Figure:
    """Units that fall and that rise at a 1, against a zero in its place, and against the step
    before, which is what one picture shows."""
    against = {"against a zero in its place": "", "against the step before": "_seen"}
    names = {gate: name.replace(" ", "\n") for gate, name in NAMES.items()}
    names["c"] = "size of the\ncell state"
    content = {
        f"units that {way.rstrip('s')}": {
            label: {
                names[gate]: measures[f"gates/{start}/digit_1/{gate}{kind}/{way}"] for gate in names
            }
            for label, kind in against.items()
        }
        for way in WAYS
    }
    what = f"Shares of the units whose gates, or cell state, fall and rise at a 1, {start} start"
    return panels("digit_responses", what, content, "", "share of units", width=4.6)


def _maps(name: str, alt: str, panels: Mapping[str, tuple], framed: int) -> Figure:
    """Heat maps side by side: title -> values (T, H), the digits read, and the scale's two ends,
    which tell a gate (from 0) from what is signed. Step `framed`, from 0, has a frame."""
    size = {"figsize": (3.1 * len(panels), 5.2), "sharey": True}
    fig, axes = plots.new_figure(name, alt, ncols=len(panels), **size)
    for ax, (title, (values, digits, low, high)) in zip(axes, panels.items(), strict=True):
        values = np.asarray(values).T  # (H, T)
        colours = sns.color_palette("vlag" if low else "viridis", as_cmap=True).resampled(40)
        style = {"vmin": low, "vmax": high, "cmap": colours, "cbar_kws": {"shrink": 0.8}}
        sns.heatmap(values, ax=ax, xticklabels=list(digits), yticklabels=5, **style)
        ax.tick_params(rotation=0)
        ax.set(title=title, xlabel="digit read")
        frame = Rectangle((framed, 0), 1, len(values), fill=False, ec=PALETTE[3], lw=2.5)
        ax.add_patch(frame)
    axes[0].set_ylabel("hidden unit")
    return fig


def gate_maps(
    trace: Mapping[str, Any], digits: Sequence[int], predicted: int, model: str, framed: int
) -> Figure:
    """Heat maps of `trace`, "i", "f", "o", "c", (T, H) each."""
    text = " ".join(map(str, digits))
    alt = (
        f"Heat maps of an LSTM reading {text}, {model}, which predicts {predicted}: gates i, f and "
        "o on a scale from 0 to 1, cell state from −5 to 5; hidden units down, digits read across; "
        f"the column of step {framed + 1} is framed."
    )
    ends = {"c": (-5, 5)}
    shown = {title: (trace[n], digits, *ends.get(n, (0, 1))) for n, title in NAMES.items()}
    fig = _maps("gate_maps", alt, shown, framed)
    fig.suptitle(f"{text}  →  {predicted}   ({model})")
    return fig


def effect_maps(f: Any, f_zero: Any, digits: Sequence[int], framed: int, model: str) -> Figure:
    """The forget gate (T, H) with a digit at step `framed`, with a zero there, the difference."""
    digit, zeroed = digits[framed], [*digits[:framed], 0, *digits[framed + 1 :]]
    alt = (
        f"The forget gate of an LSTM, {model}, reading {' '.join(map(str, digits))}: as it is, "
        f"with a zero in place of the {digit}, and the first minus the second, on a scale from "
        "−0.5 to 0.5. The difference is zero until the framed column. Hidden units down, digits "
        "read across."
    )
    shown = {
        f"with the {digit}": (f, digits, 0, 1),
        "with a zero there": (f_zero, zeroed, 0, 1),
        f"what the {digit} does": (f - f_zero, digits, -0.5, 0.5),
    }
    return _maps("effect_maps", alt, shown, framed)


def explore(ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> None:
    """Display the explorer of these networks; not in a run (`LABKIT_PROGRESS` is set), which
    nobody explores."""
    if os.environ.get("LABKIT_PROGRESS"):
        print("The explorer opens when you run this cell yourself.")
    else:
        display(HTML(explorer(explored(ensembles, digits))))


def explored(ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> dict[str, Any]:
    """What the explorer needs of LSTMs, by start: "numbers" of each network are its parameters and
    the means of i, f and o, at every step and from step 3 on, that an ablation holds them at."""
    pairs, places = all_pairs(len(digits)), range(ADDENDS, len(digits))
    X = torch.cat([with_digit(pairs.X, p, d) for p in places for d in range(DIGITS)])
    layer = [f"recurrent.layers.0.{kind}_{gate}" for gate in "ifoc" for kind in "WUb"]
    nets = []
    for start, ensemble in ensembles.items():
        trace, spec = ensemble.trace(X), ensemble.spec
        means = [trace[g][:, :, first:].mean((1, 2)) for first in (0, ADDENDS) for g in "ifo"]
        for replica, seed in enumerate(ensemble.seeds):
            p = ensemble.parameters_of(replica)
            parts = [p[name] for name in ("embedding.weight", *layer, "head.weight", "head.bias")]
            flat = torch.cat([part.flatten() for part in (*parts, *(m[replica] for m in means))])
            numbers = base64.b64encode(flat.cpu().numpy().astype("<f4").tobytes()).decode()
            nets.append({"start": start, "seed": seed, "numbers": numbers})
    sizes = {"embedding": spec.embedding_size, "hidden": spec.hidden_size}
    return {"digits": [*digits], **sizes, "nets": nets}


def explorer(data: Mapping[str, Any]) -> str:
    """The explorer of the networks in `data`, as HTML that needs nothing else."""
    style, script = ((EXPLORER / f"explorer.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return (
        f'<style>{style}</style><section class="gate-explorer" aria-label="Gate explorer" '
        f'data-lm-suppress-shortcuts="true"><script type="application/json">{json.dumps(data)}'
        f"</script></section><script>{script}</script>"
    )


def probe_diagram() -> Figure:
    """A linear classifier reads the sum from the cell state after each step."""
    alt = (
        "An LSTM reads 6 7 0 0 and so on; its cell state goes from step to step. After each step "
        "a separate linear probe reads the sum from the cell state. The probes are fitted "
        "afterwards, on other pairs of addends, and change nothing in the network."
    )
    fig, ax = diagrams.canvas("probe", alt, 8.0, 3.1)
    before = None
    for x, digit, step in ((0.7, 6, 1), (1.85, 7, 2), (3.0, 0, 3), (4.15, 0, 4), (6.0, 0, 10)):
        read = diagrams.box(ax, x, 0.35, str(digit), width=0.5, height=0.45, size=13)
        cell = diagrams.box(ax, x, 1.35, "LSTM", "blue", width=0.8)
        probe = diagrams.box(ax, x, 2.6, f"probe {step}", "green", width=0.95)
        diagrams.arrow(ax, read.top, cell.bottom)
        diagrams.arrow(ax, cell.top, probe.bottom, colour="green", linestyle="--")
        diagrams.label(ax, x, 1.97, f"$c_{{{step}}}$", "green")
        if before:
            diagrams.arrow(ax, before.right, cell.left, colour="blue")
        before = cell
    diagrams.label(ax, 5.08, 1.35, "…", "blue")
    diagrams.arrow(ax, probe.right, (6.85, 2.6), colour="green")
    diagrams.label(ax, 7.35, 2.6, "the sum?", "green")
    diagrams.label(ax, 7.3, 1.35, "trained before,\nnot changed")
    return fig


def ablation_diagram() -> Figure:
    """The forget gate of a cell, cut off from its inputs and held at a constant."""
    alt = (
        "A step of the cell state: the old state times the forget gate, plus the input gate times "
        "the candidate. The forget gate's own computation, a sigmoid of x and h, is cut off; a "
        "constant, 1 or the unit's own mean, takes its place. All else stays as trained."
    )
    fig, ax = diagrams.canvas("ablation_diagram", alt, 6.6, 2.4)
    old, new = (diagrams.box(ax, x, 1.95, f"$c_{{{t}}}$") for x, t in ((0.7, "t-1"), (5.6, "t")))
    times, plus = diagrams.gate(ax, 2.4, 1.95, "×"), diagrams.gate(ax, 4.2, 1.95, "+")
    held = diagrams.box(ax, 2.4, 1.1, "1 or mean", "orange", width=1.1, height=0.45)
    diagrams.box(ax, 2.4, 0.3, r"$\sigma(x_t, h_{t-1})$", width=1.4, height=0.45)
    added = diagrams.box(ax, 4.2, 1.1, r"$i_t \odot \tilde{c}_t$", height=0.45)
    for start, end in ((old, times), (times, plus), (plus, new)):
        diagrams.arrow(ax, start.right, end.left)
    diagrams.arrow(ax, added.top, plus.bottom)
    diagrams.arrow(ax, held.top, times.bottom, colour="orange")
    diagrams.label(ax, 2.7, 1.54, "$f_t$", "orange")
    diagrams.label(ax, 2.4, 0.7, "cut", "orange", fontsize=8)
    diagrams.label(ax, 4.6, 0.3, "all else as trained")
    return fig
