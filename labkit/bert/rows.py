"""The report's tables on BERT: the sources' five settings, the held-out reviews, the peers.

Every published figure is of bert-base. Where ours is of another model, the row shows it under that
model's name, gives no verdict on the figure, and names the command that would fill it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from labkit.measure.rows import MISSING, Row, number_row

CHAPTER = "05_bert_finetuning"
BASE = "bert-base-uncased"
ON_ALL = "all_reviews/fine-tuned/all_accuracy"  # of one training on `main_size` reviews
FILLS = "`make reproduce CHAPTERS=05 PROFILE=full` fills it"
ANOTHER = "another model"
RATES = ("1e-05", "0.001", "5e-05")  # of the sources' first run, which they do not tell apart
PEERS = ("bentrevett_bert_base_test_accuracy", "llms_from_scratch_bert_base_test_accuracy")
Record = Mapping[str, Any] | None


def setting(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on."""
    return (
        f"Published: {BASE}, at most {published['bert']['max_len']} words, the vector of the last "
        "position, 15 epochs, one training each; where no epoch is named, after the last. Ours are "
        "over the sources' slice of 2,000 test reviews, beside the peers over all test reviews; "
        "where no epoch is named at the one that dev chose; the heading says with which model, and "
        "how far ours was cut down. A row of another model has no verdict."
    )


def claims(published: Mapping[str, Any]) -> dict[str, str]:
    """The sources' claim in its three parts, each of which the chapter judges."""
    bert = published["bert"]["held_out"]["bert_accuracy"]
    bilstm = published["imdb_glove"]["held_out"]["bilstm_accuracy"]
    return {
        "beats": f"BERT is better than the BiLSTM: {bert} against {bilstm}.",
        "size": "BERT is better because it is larger.",
        "text": "BERT is better because it saw more text.",
    }


def verdict(record: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """A claim's verdict for the page, with the model's name where that is not the published one."""
    return claim["verdict"] if (ours := _model(record)) == BASE else f"{claim['verdict']} ({ours})"


def tables(published: Mapping[str, Any], record: Record) -> Iterator[tuple[str, list[Row]]]:
    """A heading and its rows for each published table."""
    ours = f" (ours: {_how(record)})" if record else ""
    yield f"BERT, the sources' five settings{ours}", list(_source_rows(published, record))
    yield "BERT, held-out reviews and peers", list(_best_rows(published, record))


def _how(record: Mapping[str, Any]) -> str:
    found = record["settings"]
    return (
        f"{_model(record)}, {found['source_epochs']} epochs, {found['source_max_len']} word pieces"
    )


def _model(record: Mapping[str, Any]) -> str:
    return short_name(record["settings"]["model_name"])


def short_name(model: str) -> str:
    """A model for a reader: the last part of its name at the hub, or of its folder."""
    return model.rstrip("/").rpartition("/")[2]


def _row(what: str, published: float, record: Record, name: str, *, size: int = 0) -> Row:
    """A row of an accuracy; no verdict on what another model than the published one reached.

    A missing result is the profile `full`'s to fill. `size`: on how many reviews ours was trained.
    """
    row = number_row(what, published, record, CHAPTER, name, higher_is_better=True)
    if row.verdict == MISSING:
        why = f"not part of profile `{record['profile']}`; " if record else ""
        return replace(row, reason=f"{why}{FILLS}")
    model, reviews = _model(record), f" on {size:,} reviews" if size else ""
    if model != BASE:
        reason = f"ours is {model}{reviews}, not {BASE}: {FILLS}"
        return replace(row, ours=f"{model} {row.ours}", verdict=ANOTHER, reason=reason)
    return replace(row, reason=f"{row.reason}; ours{reviews}") if size else row


def _source_rows(published: Mapping[str, Any], record: Record) -> Iterator[Row]:
    for run in published["bert"]["runs"]:
        rates = RATES if run["id"] == 1 else ("",)
        for rate in rates:
            name = f"source/{run['id']}{f'/{rate}' if rate else ''}"
            what = f"run {run['id']}{f', rate {rate}' if rate else ''}"
            for epoch in (5, 10):
                if f"test_accuracy_epoch_{epoch}" in run:
                    yield _row(
                        f"{what}, epoch {epoch}",
                        run[f"test_accuracy_epoch_{epoch}"],
                        record,
                        f"{name}/curve_accuracy/{epoch}",
                    )
            yield _row(what, run["test_accuracy"], record, f"{name}/held_out_accuracy")


def _best_rows(published: Mapping[str, Any], record: Record) -> Iterator[Row]:
    settings = record["settings"] if record else {"main_size": 0, "sizes": [0]}
    value, size = published["bert"]["held_out"]["bert_accuracy"], settings["main_size"]
    name = f"tuned/{size}/held_out_accuracy"
    yield _row("held-out slice, fine-tuned", value, record, name, size=size)
    size = settings["sizes"][-1]
    for peer in PEERS:
        what = peer.removesuffix("_test_accuracy").replace("_", " ")
        name, reviews = f"tuned/{size}/test_accuracy", size
        if record and name not in record["measures"]:  # fine-tuned on fewer, tested on as many
            name, reviews = ON_ALL, settings["main_size"]
        row = _row(what, published["peers"][peer], record, name, size=reviews)
        on_slice = record and record["measures"].get(f"tuned/{size}/held_out_accuracy")
        if reviews < size and on_slice:
            right = f"after {size:,} it was right on {on_slice['mean']:.3f} of the slice"
            row = replace(row, reason=f"{row.reason}; {right}")
        yield row
