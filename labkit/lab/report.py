"""The published figures beside ours: `data/published.toml` and the records give REPORT.md.

The page depends on these files alone, so that rendering it again shows whether it is up to date.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.bert import rows as report_bert
from labkit.film import rows as report_imdb
from labkit.lab import environment
from labkit.lab.digests import write_atomically
from labkit.lab.publication import REPORT
from labkit.lab.results import cell, machine_line, reported
from labkit.measure.rows import Row, binomial_half_width, judge, missing_row, number_row
from labkit.sine import rows as report_sine

__all__ = ["Row", "binomial_half_width", "judge", "render", "write"]

OPERATOR, DIGIT_SUM, GATES = "01_lstm_operator", "02_digit_sum_sweep", "03_gate_analysis"
IMDB = report_imdb.CHAPTER
BERT = report_bert.CHAPTER
SINE = report_sine.CHAPTER
TITLES = {
    OPERATOR: "01 LSTM operator",
    DIGIT_SUM: "02 Digit-sum memory sweep",
    GATES: "03 Gate analysis",
    IMDB: "04 Film reviews",
    BERT: "05 BERT fine-tuning",
    SINE: "06 Sine forecast",
}
TOY_TOLERANCE = 5e-5  # the published values are rounded to four decimals

HEAD = """\
# Published and ours

`python -m labkit report` writes this page from `data/published.toml` and the records beside it; an
edit by hand is lost, and `make verify` reports it. Each published accuracy comes from one seed;
ours come from as many seeds as each row names.
"""

HOW_TO_READ = """\
## How to read this page

- **ours** is the mean over our seeds (the median where it says so) with its 95 % interval from a
  BCa bootstrap, and n, the number of seeds. For the time of a layer, n counts the timed runs.
  Sources and peers go by short names, which `data/README.md` explains.
- **inside our seeds**: the published number lies between our lowest and our highest seed. If the
  source differed from us by nothing but its seed, its number would still fall outside with
  probability 2/(n + 1): {outside}. With {rows} rows, some land outside by chance alone.
- *inside* does not mean close: read the rank. **inside our runs** says the same of timed runs.
  **reproduced** means equal as printed (*by 18 of 20*: by so many seeds); **mistake reproduced**,
  that the source's error was made again on purpose.
- **ours better**, **ours worse**: the published number lies outside that range, on the side that
  the words tell; **outside our seeds**: the same for a number of which neither more nor less is
  better. The reason says how it ranks among our seeds.
- Chapters 04 and 05 have few seeds, so their rows ask another question. **as one more seed**: the
  published number lies where one more seed of ours is expected to, the 95 % range of Student's
  prediction; else **ours better**, **ours worse** or **not as one more seed**. Their intervals are
  Student's. Of three seeds that lie apart such a range is wide, and may reach beyond what is
  possible; then it says little. One or two seeds give **too few seeds for a verdict** (of timed
  runs: **too few runs**).
- **learned**, **did not learn**: chapter 04 says by what training accuracy. **no result yet**: the
  reason names the command that makes it.
- **another model**: the published number is of bert-base, ours of a smaller model that stands in
  for it where bert-base cannot be run; nothing follows from how close the two are.
- An accuracy p that was counted on m examples carries a sampling error of its own; ± gives the
  half-width of its 95 % binomial interval, 1.96 · √(p(1 − p)/m), for the published number.
- A claim made in words **holds**, **does not hold**, is **not shown** where the interval of the
  difference contains zero, or holds within the limits that its verdict names (*in part*, *on
  average*, *only at …*). A verdict was reached by the chapter that measured it; the reason is its
  own.
- Claims of chapter 02 are named after their setting: *zero* or *xavier*, how the recurrent weights
  start; *trained* or *frozen*, the embedding; *sound*, fresh data for every seed, Xavier start.
  *last* and *mean* in chapter 04 say which states the answer is read from; in chapter 06 *gluon*
  and *xavier* are starts, *tuned* gives each its best rate of the scan, *every* and *last* are the
  steps that are trained, *nine* and *mixed* the lengths.
- The published times are means. Ours are medians of timed runs, a ratio that of the ratios within
  each round; of whole trainings they are means over the seeds. Times belong to a machine: a faster
  one makes ours better without any merit of the code.
"""


def render() -> str:
    """The report as Markdown; ValueError when a record or the published figures are damaged."""
    published = tomllib.loads((environment.DATA / "published.toml").read_text("utf-8"))
    records = {chapter: reported(chapter) for chapter in TITLES}
    tables = {
        OPERATOR: [("", _operator_rows(published["operator"], records[OPERATOR]))],
        DIGIT_SUM: list(_digit_sum_tables(published["digit_sum"], records[DIGIT_SUM])),
        GATES: [("", _gate_rows(published["gates"], records[GATES]))],
        IMDB: list(report_imdb.tables(published, records[IMDB])),
        BERT: list(report_bert.tables(published, records[BERT])),
        SINE: list(report_sine.tables(published, records[SINE])),
    }
    claims = {
        OPERATOR: {"parity": published["operator"]["parity_claim"]["claim"]},
        DIGIT_SUM: published["digit_sum"]["claims"],
        GATES: dict(zip("abc", published["gates"]["claims"], strict=True)),
        IMDB: published["imdb"]["claims"],
        BERT: report_bert.claims(published),
        SINE: report_sine.CLAIMS,
    }
    claim_rows = {
        chapter: _claim_rows(chapter, claims[chapter], records[chapter]) for chapter in TITLES
    }

    rows = [row for chapter in tables.values() for _, group in chapter for row in group]
    parts = [HEAD, _summary(claim_rows, rows), _how_to_read(records[DIGIT_SUM], len(rows))]
    settings = _published_settings(published)
    for chapter, title in TITLES.items():
        parts.append(f"## {title}\n\n{settings[chapter]}\n\n{_origin(chapter, records[chapter])}\n")
        parts.append(_table("claim", claim_rows[chapter], heading="Claims"))
        parts += [
            _table("figure", group, heading or "Numbers") for heading, group in tables[chapter]
        ]
        parts += _images(records[chapter])
    return "\n".join(parts).rstrip() + "\n"


def write() -> Path:
    """Write `results/REPORT.md`; return its path."""
    path = environment.RESULTS / REPORT
    write_atomically(path, render().encode())
    return path


# 01


def _operator_rows(published: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[Row]:
    toy, speed = published["toy_output"], published["speed"]
    rows = [_toy_row(toy["hidden_state"], record)]
    for what, key, name, unit in (
        ("handwritten layer, one forward pass", "handwritten_seconds", "naive_seconds", "s"),
        ("`nn.LSTM`, one forward pass", "torch_nn_seconds", "torch_seconds", "s"),
        ("handwritten over `nn.LSTM`", "ratio", "ratio_naive_to_torch", ""),
    ):
        rows.append(
            number_row(
                f"speed ({speed['device']}): {what}", speed[key], record, OPERATOR,
                f"speed/{name}", higher_is_better=False, unit=unit,
            )
        )  # fmt: skip
    shapes = published["parity_claim"]["printed_shapes"]
    rows.append(_shapes_row([shapes["handwritten"], shapes["torch_nn"]], record))
    return rows


def _toy_row(published: list, record: Mapping[str, Any] | None) -> Row:
    what = "toy example: last hidden state"
    ours = record and record["measures"].get("toy_output")
    if not ours:
        return missing_row(what, str(published), record, OPERATOR, "toy_output")
    pairs = list(zip(_flat(published), _flat(ours), strict=False))
    same = len(_flat(ours)) == len(_flat(published)) and all(
        abs(a - b) <= TOY_TOLERANCE for a, b in pairs
    )
    verdict = "reproduced" if same else "not reproduced"
    return Row(what, str(published), str(ours), verdict, "equal to the four decimals printed")


def _shapes_row(published: list, record: Mapping[str, Any] | None) -> Row:
    what = "parity: printed shapes, handwritten and `nn.LSTM`"
    ours = record and record["measures"].get("parity_mistake/shapes")
    if not ours:
        return missing_row(what, str(published), record, OPERATOR, "parity_mistake/shapes")
    verdict = "mistake reproduced" if ours == published else "not reproduced"
    reason = (
        "a batch-first tensor in an `nn.LSTM` with batch_first=False; equal layout, equal shape"
    )
    return Row(what, str(published), str(ours), verdict, reason)


def _flat(value: Any) -> list[float]:
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, list) else [value]


# 02


def _digit_sum_tables(
    published: Mapping[str, Any], record: Mapping[str, Any] | None
) -> Iterator[tuple[str, list[Row]]]:
    """A heading and its rows for each source."""
    sources = {**published["lstm"], **published["rerun"]}
    for source, table in sources.items():
        setting = f"{table['init']}/{table['embedding']}"
        rows = []
        for key, values in table.items():
            if key.endswith("accuracy"):
                cell_name, _, quantity = key.rpartition("_accuracy")[0].rpartition("_")
                rows += _accuracy_rows(
                    published, record, setting, cell_name or "lstm", quantity,
                    zip(table["lengths"], values, strict=True),
                )  # fmt: skip
        if source == "nndl-a":
            rows.append(_first_loss_row(published["first_step_loss"], record))
        yield f"{source}: {table['init']} start, embedding {table['embedding']}", rows


def _accuracy_rows(
    published: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    setting: str,
    cell_name: str,
    split: str,
    values: Iterable[tuple[int, float]],
) -> Iterator[Row]:
    for length, value in values:
        yield number_row(
            f"{cell_name.upper()}, {length} digits, {split} accuracy",
            value,
            record,
            DIGIT_SUM,
            f"published/{cell_name}/{setting}/{length}/{split}_accuracy",
            higher_is_better=True,
            examples=published[f"n_{split}"],
        )


def _first_loss_row(value: float, record: Mapping[str, Any] | None) -> Row:
    return number_row(
        "LSTM, loss at the first step", value, record, DIGIT_SUM,
        "published/lstm/zero/trained/first_step_loss", higher_is_better=None,
    )  # fmt: skip


# 03


def _gate_rows(published: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[Row]:
    expected, digits = published["prediction"], " ".join(map(str, published["sequence"]))
    what = f"prediction for {digits}"
    ours = record["measures"].get("prediction") if record else None
    if ours is None:
        return [missing_row(what, str(expected), record, GATES, "prediction")]
    values = _flat(ours["raw"] if isinstance(ours, dict) else ours)
    hits = sum(value == expected for value in values)
    if hits in (0, len(values)):
        verdict = "reproduced" if hits else "not reproduced"
    else:
        verdict = f"reproduced by {hits} of {len(values)} seeds"
    shown = f"{values[0]:g}" if len(set(values)) == 1 else f"{hits} × {expected}"
    reason = f"{expected} predicted by {hits} of {len(values)} trained models"
    return [Row(what, str(expected), f"{shown}, n = {len(values)}", verdict, reason)]


# the page


def _claim_rows(
    chapter: str, claims: Mapping[str, str], record: Mapping[str, Any] | None
) -> list[Row]:
    """A row for every published claim, several where the record judges it in several settings."""
    rows = []
    for key, text in claims.items():
        judged = [
            claim
            for claim in (record["claims"] if record else [])
            if claim["id"].split("/")[0] == key
        ]
        for claim in judged:
            verdict = report_bert.verdict(record, claim) if chapter == BERT else claim["verdict"]
            rows.append(Row(claim["id"], text, "", verdict, claim["reason"]))
        if not judged:
            rows.append(missing_row(key, text, record, chapter, f"claim {key}"))
    return rows


def _summary(claim_rows: Mapping[str, Sequence[Row]], rows: Sequence[Row]) -> str:
    lines = ["## Summary", "", "| chapter | claim | published | verdict |", "|---|---|---|---|"]
    for chapter, group in claim_rows.items():
        for row in group:
            parts = (TITLES[chapter], row.what, row.published, f"**{row.verdict}**")
            lines.append(f"| {' | '.join(map(cell, parts))} |")
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.verdict] = counts.get(row.verdict, 0) + 1
    found = ", ".join(f"{verdict} {count}" for verdict, count in counts.items())
    total = f"The {len(rows)} rows of published numbers (one beside two settings has two): {found}."
    chapters = ", ".join(f"[{title}](#{_anchor(title)})" for title in TITLES.values())
    found = f"Chapter by chapter: {chapters}. Short names of claims are explained below."
    return "\n".join([*lines, "", total, "", found, ""])


def _anchor(title: str) -> str:
    """What a heading is called in links within the page."""
    return title.lower().replace(" ", "-")


def _how_to_read(record: Mapping[str, Any] | None, rows: int) -> str:
    sizes = {
        measure["n"]
        for name, measure in (record or {"measures": {}})["measures"].items()
        if name.startswith("published/") and isinstance(measure, dict)
    }
    outside = ", ".join(f"{2 / (n + 1):.0%} for n = {n}" for n in sorted(sizes) or (16,))
    return HOW_TO_READ.format(outside=outside, rows=rows)


def _published_settings(published: Mapping[str, Any]) -> dict[str, str]:
    """What each chapter's published figures were measured on."""
    speed, sums, gates = published["operator"]["speed"], published["digit_sum"], published["gates"]
    return {
        OPERATOR: (
            f"Published speed: batch {speed['batch_size']}, {speed['seq_len']} steps, "
            f"{speed['input_size']} inputs, {speed['hidden_size']} hidden units, "
            f"{speed['warmup_runs']} runs to warm up and {speed['timed_runs']} timed."
        ),
        DIGIT_SUM: (
            f"Published runs: {sums['n_train']} training, {sums['n_dev']} dev and {sums['n_test']} "
            f"test sequences a length, {sums['total_steps']:,} steps, "
            f"{sums['steps_per_epoch']} to an epoch."
        ),
        GATES: (
            f"Published: heat maps of one LSTM that was trained on {gates['length']} digits, for "
            "one sequence."
        ),
        IMDB: report_imdb.setting(published),
        BERT: report_bert.setting(published),
        SINE: report_sine.setting(published),
    }


def _origin(chapter: str, record: Mapping[str, Any] | None) -> str:
    if record is None:
        return f"No result yet: `python -m labkit run {chapter} --profile cpu` makes it."
    link = f"[record]({record['profile']}/{chapter}.json)"
    return f"Ours ({link}): {machine_line(record)}"


def _table(first: str, rows: Sequence[Row], heading: str) -> str:
    if first == "claim":
        lines = ["| claim | published | verdict | reason |", "|---|---|---|---|"]
        cells = [(row.what, row.published, row.verdict, row.reason) for row in rows]
    else:
        lines = ["| figure | published | ours | verdict | reason |", "|---|--:|--:|---|---|"]
        cells = [(row.what, row.published, row.ours, row.verdict, row.reason) for row in rows]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in cells]
    return "\n".join([f"### {heading}", "", *lines, ""])


def _images(record: Mapping[str, Any] | None) -> list[str]:
    """The record's figures, linked relative to the report, with their alternative texts."""
    if record is None:
        return []
    images = ["### Figures\n"] if record["figures"] else []
    for figure in record["figures"].values():
        alt = cell(figure["alt"]).replace("[", "(").replace("]", ")")
        images.append(f"![{alt}]({record['profile']}/{figure['file']})\n")
    return images
