"""The report's tables on film reviews: studies A and B, and the peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from labkit.lab.results import number
from labkit.measure.rows import MISSING, Row, missing_row, number_row

CHAPTER = "04_imdb_recurrent"
Record = Mapping[str, Any] | None

# our settings for each published table of study A; the first one is what its text describes
STUDY_A = {
    "rnn": ("rnn/mean", "rnn/last"),
    "lstm": ("lstm/mean", "lstm/last"),
    "gru": ("gru/mean", "gru/last"),
    "handwritten_lstm": ("handwritten/mean",),
    "handwritten_lstm_hidden128": ("handwritten/hidden128",),
    "handwritten_lstm_two_cells": ("handwritten/two_cells",),
    "handwritten_lstm_other_loss": ("handwritten/mse",),
    "handwritten_lstm_bce_one_hot": ("handwritten/bce", "handwritten/bce_on_sigmoid"),
    "handwritten_lstm_adamax": ("handwritten/adamax",),
    "handwritten_lstm_batch128": ("handwritten/batch128",),
}
# what a published curve is called in our record, and whether more of it is better
CURVES = {
    "test_accuracy": ("curve_accuracy", True),
    "test_loss": ("curve_loss", False),
    "train_accuracy": ("train_accuracy", None),
    "train_loss": ("train_loss", None),
}
LEARNED = 0.6  # training accuracy; one half is chance
ASSUMED = {
    "handwritten/mse": "squared error assumed",
    "handwritten/bce_on_sigmoid": "a second sigmoid inferred from the printed losses",
    "handwritten/adamax": "learning rate 0.002 assumed",
}


def setting(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on."""
    a, b = published["imdb"], published["imdb_glove"]
    return (
        f"Published, study A: {a['vocab_size']:,} words, embedding {a['embedding_dim']}, hidden "
        f"{a['hidden_size']}, {a['epochs']} epochs on {a['n_train']:,} reviews, batches of "
        f"{a['batch_size']}; one training each, chosen by the test curve. Study B: "
        f"{b['n_train']:,} reviews, GloVe {b['embedding_dim']}d, front padding to {b['max_len']} "
        f"words, batches of {b['batch_size']}, {b['n_test']:,} test reviews; its mistakes are a "
        "softmax before the cross-entropy, states carried from batch to batch, and the last step "
        "of a bidirectional output. In study A our curves are over 5,000 test reviews, and a test "
        "accuracy without an epoch is that of the epoch chosen by dev, on all 25,000; in study B "
        f"both are over the slice of 2,000 that the {b['n_test']:,} of the published final test "
        "come from; for its other test figures the source names no reviews. A "
        f"training with stochastic gradient descent *learned* where it got at least {LEARNED:.0%} "
        "of its training reviews right in the end, else it *did not learn*. The peers' baselines "
        "and best models read all 25,000."
    )


def tables(published: Mapping[str, Any], record: Record) -> Iterator[tuple[str, list[Row]]]:
    """A heading and its rows for each published table."""
    for table, ours in STUDY_A.items():
        for name in ours:
            note = f" ({ASSUMED[name]})" if name in ASSUMED else ""
            rows = list(_curve_rows(published["imdb"][table], record, name))
            yield f"Study A, {table.replace('_', ' ')}, ours `{name}`{note}", rows
    yield "Study A, seconds for five epochs", list(_second_rows(published["imdb"], record))
    size = _size(record)
    yield f"Study B, bidirectional LSTM{size}", list(_glove_rows(published, record))
    yield (
        f"Study B, stochastic gradient descent{size}",
        list(_sgd_rows(published["imdb_glove"], record)),
    )
    yield "Peers: public material on the same data", list(_peer_rows(published["peers"], record))


def _size(record: Record) -> str:
    """How large our study B was, for a heading."""
    if not record or "small_hidden" not in record["settings"]:
        return ""
    found = record["settings"]
    padded = f"to {found['small_pad_to']} words" if found["small_pad_to"] else "inside the batch"
    return (
        f" (ours: {found['small_hidden']} hidden units, {found['small_epochs']} epochs, vectors "
        f"of {found['glove_words']:,} words, padded {padded})"
    )


def _curve_rows(table: Mapping[str, Any], record: Record, name: str) -> Iterator[Row]:
    for quantity, (curve, better) in CURVES.items():
        for epoch, value in enumerate(table.get(quantity, ()), start=1):
            what = f"{quantity.replace('_', ' ')}, epoch {epoch}"
            yield _row(what, value, record, f"a/{name}/{curve}/{epoch}", higher_is_better=better)


def _row(what: str, value: float, record: Record, name: str, **options: Any) -> Row:
    """A row; what a smaller profile does not train is filled by the profile `full`."""
    row = number_row(what, value, record, CHAPTER, name, **options)
    if record and row.verdict == MISSING and record["profile"] != "full":
        reason = f"not part of profile `{record['profile']}`; "
        reason += f"`make reproduce CHAPTERS={CHAPTER[:2]} PROFILE=full` fills it"
        return replace(row, reason=reason)
    return row


def _second_rows(published: Mapping[str, Any], record: Record) -> Iterator[Row]:
    seconds = published["handwritten_lstm_batch128"]["seconds_for_5_epochs"]
    for batch, name in (("batch64", "handwritten/mean"), ("batch128", "handwritten/batch128")):
        what = f"seconds for five epochs, {batch}"
        yield _row(
            what, seconds[batch], record, f"a/{name}/seconds", higher_is_better=False, unit="s"
        )


def _glove_rows(published: Mapping[str, Any], record: Record) -> Iterator[Row]:
    glove = published["imdb_glove"]
    adam = glove["bilstm_adam"]
    for note, own in _paddings(glove["max_len"], record):
        for epoch, percent in zip(adam["epochs"], adam["test_accuracy_percent"], strict=True):
            name = f"b/mistake/all{own}/curve_accuracy/{epoch}"
            if own and name not in record["measures"]:
                continue
            yield _row(
                f"Adam, test accuracy at epoch {epoch}{note}", percent / 100, record, name,
                higher_is_better=True, shown=f"{percent} %",
            )  # fmt: skip
    yield _row(
        "Adam, training accuracy at epoch 31", adam["train_accuracy_epoch_31"], record,
        "b/mistake/all/train_accuracy/31", higher_is_better=None,
    )  # fmt: skip
    for end, percent in zip(
        ("lowest", "highest"),
        glove["bilstm_adam_dropout"]["test_accuracy_percent_range"],
        strict=True,
    ):
        yield _row(
            f"dropout 0.5, {end} test accuracy", percent / 100, record,
            "b/source/dropout/held_out_accuracy", higher_is_better=True, shown=f"{percent} %",
        )  # fmt: skip
    decay = glove["bilstm_adam_l2"]
    for lam, percent in zip(decay["lambda"], decay["test_accuracy_percent"], strict=True):
        yield _row(
            f"L2 penalty λ = {lam:g}, test accuracy", percent / 100, record,
            f"b/source/l2/{lam:g}/held_out_accuracy", higher_is_better=True, shown=f"{percent} %",
        )  # fmt: skip
    for note, own in _paddings(glove["max_len"], record):
        for label, name in (("with them likewise", "all"), ("without them", "none")):
            found = f"b/mistake/{name}{own}/held_out_accuracy"
            if own and found not in record["measures"]:
                continue
            yield _row(
                f"held-out slice, published with its three mistakes, ours {label}{note}",
                glove["held_out"]["bilstm_accuracy"], record, found, higher_is_better=True,
            )  # fmt: skip


def _paddings(to: int, record: Record) -> Iterator[tuple[str, str]]:
    """What a row says of our padding, and how it ends the setting's name in the record."""
    yield "", ""
    if record and record["settings"].get("also_padded"):
        yield f", ours padded to {to} words likewise", ", padded"


def _sgd_rows(glove: Mapping[str, Any], record: Record) -> Iterator[Row]:
    lstm = glove["lstm_sgd"]
    for every, epoch, outcome in zip(
        lstm["halve_every"], lstm["epochs"], lstm["outcome"], strict=True
    ):
        what = f"LSTM, rate 0.1 halved every {every} epochs, {epoch} epochs"
        yield _outcome_row(what, outcome, record, f"b/source/lstm_sgd/{every}", epochs=epoch)
    bilstm, name = glove["bilstm_sgd"], "b/source/bilstm_sgd"
    what = "bidirectional, rate 0.03 halved every 20 epochs, 100 epochs"
    shown = f"{bilstm['test_accuracy_percent']} %"
    yield _outcome_row(f"{what}, test accuracy", shown, record, name, epochs=100)
    shown = str(bilstm["train_accuracy"])
    yield _outcome_row(f"{what}, training accuracy", shown, record, name, training=True, epochs=100)
    stack = glove["handwritten_two_layer_sgd"]
    shown = f"{stack['test_accuracy_percent']} %, {stack['outcome']}"
    for rate in ("0.1", "0.001", "1e-06"):
        what = f"handwritten two-layer stack, plain SGD, rate {rate}"
        yield _outcome_row(what, shown, record, f"b/stack/sgd/{rate}")


def _outcome_row(
    what: str,
    published: str,
    record: Record,
    name: str,
    *,
    training: bool = False,
    epochs: int = 0,
) -> Row:
    """A published outcome, after `epochs` where known, beside what our run came to in its own."""
    measures = (record or {"measures": {}})["measures"]
    found = measures.get(f"{name}/held_out_accuracy")
    if found is None:
        return missing_row(what, published, record, CHAPTER, f"{name}/held_out_accuracy")
    own = record["settings"]["small_epochs"]
    last = measures.get(f"{name}/train_accuracy/{own}")
    if last is None:
        return missing_row(what, published, record, CHAPTER, f"{name}/train_accuracy/{own}")
    verdict = "learned" if last["mean"] >= LEARNED else "did not learn"
    reason = f"training accuracy {number(last['mean'])} after our {own} epochs"
    if own < epochs:
        reason += f", too few to test what is published after {epochs}"
    if found["n"] < 3:
        reason += "; too few seeds for an interval"
    shown = last if training else found
    return Row(what, published, f"{number(shown)}, n = {shown['n']}", verdict, reason)


def _peer_rows(peers: Mapping[str, Any], record: Record) -> Iterator[Row]:
    pairs = {
        "bentrevett_nbow_test_accuracy": "baseline/averaged_embeddings/test_accuracy",
        "bentrevett_bilstm_test_accuracy": "best/model/test_accuracy",
        "nndl_textbook_bilstm_test_accuracy": "best/model/test_accuracy",
    }
    for peer, name in pairs.items():
        yield number_row(
            peer.removesuffix("_test_accuracy").replace("_", " "), peers[peer], record, CHAPTER,
            name, higher_is_better=True,
        )  # fmt: skip
    value = peers["llms_from_scratch_logreg_test_accuracy"]
    what = "llms from scratch logreg"
    for kind in ("binary", "tfidf_pairs"):
        name = f"baseline/{kind}/test_accuracy"
        ours = (record or {"measures": {}})["measures"].get(name)
        if ours is None:
            yield missing_row(what, str(value), record, CHAPTER, name)
            continue
        verdict = "ours better" if ours > value else "ours worse"
        reason = f"{ours - value:+.3f}; logistic regression, `{kind}`, no seed"
        yield Row(what, str(value), number(ours), verdict, reason)
