"""The report's rows on film reviews: none is missing, and few seeds are judged as few."""

from __future__ import annotations

import re
import tomllib

import pytest
from scipy import stats

from labkit.film import rows as report_imdb
from labkit.film import studies as imdb
from labkit.lab import environment, report, results
from labkit.measure import rows as report_rows
from labkit.measure.rows import judge_few, number_row

CHAPTER = report_imdb.CHAPTER
PUBLISHED = tomllib.loads((environment.DATA / "published.toml").read_text("utf-8"))
EPOCHS = 5


def summary(*values: float, **options) -> dict:
    return results.summarise(list(values), student=True, **options)


def measures() -> dict:
    """A measure for every row of the tables, 0.4, 0.5 and 0.6, one seed for what is an outcome."""
    found = {}
    for name in imdb.STUDY_A:
        for curve, _ in report_imdb.CURVES.values():
            for epoch in range(1, EPOCHS + 1):
                found[f"a/{name}/{curve}/{epoch}"] = summary(0.4, 0.5, 0.6)
        found[f"a/{name}/seconds"] = summary(60.0, 61.0, 62.0, unit="s", timing=True)
    for epoch in range(1, 32):
        for curve in ("curve_accuracy", "train_accuracy"):
            found[f"b/mistake/all/{curve}/{epoch}"] = summary(0.4, 0.5, 0.6)
    for name in ("mistake/all", "mistake/none", *(f"source/{name}" for name in imdb.SOURCE_B)):
        found[f"b/{name}/held_out_accuracy"] = summary(0.4, 0.5, 0.6)
    outcomes = [f"source/{name}" for name in imdb.SOURCE_B if "sgd" in name]
    for name in [*outcomes, *(f"stack/{name}" for name in imdb.STACK)]:
        found[f"b/{name}/held_out_accuracy"] = summary(0.5)
        found[f"b/{name}/train_accuracy/{EPOCHS}"] = summary(0.51)
    found["baseline/averaged_embeddings/test_accuracy"] = summary(0.4, 0.5, 0.6)
    found["best/model/test_accuracy"] = summary(0.889, 0.89, 0.891)
    for kind in ("binary", "tfidf_pairs"):
        found[f"baseline/{kind}/test_accuracy"] = 0.86 if kind == "binary" else 0.9085
    return found


@pytest.fixture
def page(chapter_page):
    """A function that renders the report for given measures of this chapter, None for no record."""

    def render(found: dict | None, profile: str = "cpu", claims=(), **more) -> str:
        settings = {"small_epochs": EPOCHS, **more}
        return chapter_page(CHAPTER, found, profile=profile, settings=settings, claims=claims)

    return render


def row(page: str, *parts: str) -> str:
    (found,) = [
        line for line in page.splitlines() if line.startswith("|") and all(p in line for p in parts)
    ]
    return found


def section(page: str, heading: str) -> str:
    (rest,) = re.findall(rf"^### {re.escape(heading)}[^\n]*\n(.*?)(?=^##|\Z)", page, re.M | re.S)
    return rest


def expected_rows() -> dict[str, list[str]]:
    """The start of every row that a published number of the two studies asks for, by table."""
    rows: dict[str, list[str]] = {}
    for table, values in PUBLISHED["imdb"].items():
        if not isinstance(values, dict) or table == "claims":
            continue
        for name in report_imdb.STUDY_A[table]:
            heading = f"Study A, {table.replace('_', ' ')}, ours `{name}`"
            rows[heading] = [
                f"| {quantity.replace('_', ' ')}, epoch {epoch} | {value!r} |"
                for quantity in report_imdb.CURVES
                for epoch, value in enumerate(values.get(quantity, []), start=1)
            ]
    seconds = PUBLISHED["imdb"]["handwritten_lstm_batch128"]["seconds_for_5_epochs"]
    rows["Study A, seconds"] = [
        f"| seconds for five epochs, {batch} | {value} s |" for batch, value in seconds.items()
    ]
    glove = PUBLISHED["imdb_glove"]
    slice_accuracy = glove["held_out"]["bilstm_accuracy"]
    held_out = "held-out slice, published with its three mistakes"
    adam, decay = glove["bilstm_adam"], glove["bilstm_adam_l2"]
    low, high = glove["bilstm_adam_dropout"]["test_accuracy_percent_range"]
    rows["Study B, bidirectional"] = [
        *(
            f"| Adam, test accuracy at epoch {epoch} | {percent} % |"
            for epoch, percent in zip(adam["epochs"], adam["test_accuracy_percent"], strict=True)
        ),
        f"| Adam, training accuracy at epoch 31 | {adam['train_accuracy_epoch_31']} |",
        f"| dropout 0.5, lowest test accuracy | {low} % |",
        f"| dropout 0.5, highest test accuracy | {high} % |",
        *(
            f"| L2 penalty λ = {weight:g}, test accuracy | {percent} % |"
            for weight, percent in zip(decay["lambda"], decay["test_accuracy_percent"], strict=True)
        ),
        f"| {held_out}, ours with them likewise | {slice_accuracy} |",
        f"| {held_out}, ours without them | {slice_accuracy} |",
    ]
    return rows | {"Study B, stochastic": _sgd_rows(glove), "Peers": _peer_rows()}


def _sgd_rows(glove: dict) -> list[str]:
    lstm, both, stack = glove["lstm_sgd"], glove["bilstm_sgd"], glove["handwritten_two_layer_sgd"]
    ends = zip(lstm["halve_every"], lstm["epochs"], lstm["outcome"], strict=True)
    way = "bidirectional, rate 0.03 halved every 20 epochs, 100 epochs"
    return [
        *(f"| LSTM, rate 0.1 halved every {k} epochs, {n} epochs | {end} |" for k, n, end in ends),
        f"| {way}, test accuracy | {both['test_accuracy_percent']} % |",
        f"| {way}, training accuracy | {both['train_accuracy']} |",
        *(
            f"| handwritten two-layer stack, plain SGD, rate {rate} | "
            f"{stack['test_accuracy_percent']} %, {stack['outcome']} |"
            for rate in ("0.1", "0.001", "1e-06")
        ),
    ]


def _peer_rows() -> list[str]:
    ends = "_test_accuracy"
    peers = {n.removesuffix(ends).replace("_", " "): v for n, v in PUBLISHED["peers"].items()}
    peers = {name: v for name, v in peers.items() if "bert base" not in name}  # chapter 05's
    logreg = "llms from scratch logreg"  # for both linear baselines
    return [f"| {name} | {v} |" for name, v in [*peers.items(), (logreg, peers[logreg])]]


@pytest.mark.parametrize("complete", [True, False])
def test_every_published_number_has_its_row_and_no_other_is_there(page, complete):
    text = page(measures() if complete else None)
    for heading, starts in expected_rows().items():
        part = section(text, heading)
        found = [line for line in part.splitlines() if line.startswith("|")][2:]
        assert len(found) == len(starts), heading
        assert all(any(line.startswith(s) for line in found) for s in starts), heading
        assert all(any(line.startswith(s) for s in starts) for line in found), heading
        assert all(("no result yet" in line) is not complete for line in found), heading
    headings = re.findall(r"^### (Study|Peers)", text, re.M)
    assert len(headings) == len(expected_rows())


def test_headings_say_what_was_assumed(page):
    text = page(None)
    assert "ours `handwritten/mse` (squared error assumed)" in text
    assert "ours `handwritten/adamax` (learning rate 0.002 assumed)" in text
    assert "ours `handwritten/bce_on_sigmoid` (a second sigmoid inferred" in text
    assert "ours `handwritten/bce`\n" in text


def test_the_setting_names_the_sources_numbers(page):
    text = page(None)
    for part in ("20,001 words", "20,000 reviews", "batches of 64", "front padding to 592",
                 "GloVe 100d", "1,984 test reviews"):  # fmt: skip
        assert part in text


def test_without_a_record_a_row_says_which_command_fills_it(page):
    text = page(None)
    command = f"`python -m labkit run {CHAPTER} --profile cpu`"
    assert f"No result yet: {command}" in text
    lines = [line for line in text.splitlines() if "no result yet" in line]
    assert len(lines) == sum(map(len, expected_rows().values())) + len(PUBLISHED["imdb"]["claims"])
    assert all(line.endswith(f"{command} fills it |") for line in lines)


def test_without_a_measure_a_row_names_it(page):
    found = measures()
    gone = ("a/gru/last/curve_accuracy/3", "b/stack/sgd/0.001/held_out_accuracy",
            "baseline/binary/test_accuracy", "best/model/test_accuracy")  # fmt: skip
    for name in gone:
        del found[name]
    text = page(found, profile="full")
    missing = [line for line in text.splitlines() if "no result yet" in line]
    assert len(missing) == 6  # two peers ask for the best model, and the claim has none
    for name in gone:
        assert any(f"the record has no `{name}`: " in line for line in missing)
    assert all("--profile full --force` fills it" in line for line in missing)


def test_the_claim_carries_the_chapters_verdict(page):
    claim = {"id": "gated/last", "claim": "as published", "holds": True, "verdict": "holds",
             "reason": "accuracy: +0.02", "evidence": []}  # fmt: skip
    text = page(measures(), claims=[claim])
    expected = f"| gated/last | {PUBLISHED['imdb']['claims']['gated']} | holds | accuracy: +0.02 |"
    assert expected in text


# verdicts


@pytest.mark.parametrize(
    "published, higher_is_better, verdict",
    [
        (0.5, True, "as one more seed"),
        (0.7, True, "as one more seed"),  # beyond the highest seed, and yet to be expected
        (0.996, True, "as one more seed"),
        (0.998, True, "ours worse"),
        (0.998, False, "ours better"),
        (0.998, None, "not as one more seed"),
        (0.004, True, "as one more seed"),
        (0.002, True, "ours better"),
        (0.002, False, "ours worse"),
        (0.002, None, "not as one more seed"),
    ],
)
def test_few_seeds_are_judged_by_students_prediction(published, higher_is_better, verdict):
    """0.4, 0.5, 0.6: mean 0.5, sd 0.1, so ± 4.3027 · 0.1 · √(4/3) = 0.4968."""
    assert stats.t.ppf(0.975, 2) * 0.1 * (4 / 3) ** 0.5 == pytest.approx(0.4968, abs=1e-4)
    found, reason = judge_few(published, summary(0.4, 0.5, 0.6), higher_is_better=higher_is_better)
    assert found == verdict
    assert reason == "one more seed is expected in [0.00317, 0.997]"


def test_one_or_two_seeds_give_no_verdict():
    for values in ((0.5,), (0.4, 0.6)):
        found = judge_few(0.53, summary(*values), higher_is_better=True)
        assert found == ("too few seeds for a verdict", "published minus ours +0.03")


@pytest.mark.parametrize(
    "measure, verdict",
    [
        (summary(0.4, 0.5, 0.6), "as one more seed"),
        (summary(0.5), "too few seeds for a verdict"),
        (summary(0.4, 0.6), "too few seeds for a verdict"),
        (results.summarise([0.4, 0.5, 0.6]), "ours worse"),  # a bootstrap asks the other question
        (summary(*(0.4 + k / 40 for k in range(8))), "ours worse"),
        (summary(*(0.4 + k / 40 for k in range(7))), "as one more seed"),
    ],
)
def test_the_number_of_seeds_chooses_the_question(measure, verdict):
    record = {"measures": {"m": measure}, "profile": "cpu"}
    found = number_row("what", 0.61, record, CHAPTER, "m", higher_is_better=True)
    assert found.verdict == verdict
    assert found.ours.endswith(f"n = {measure['n']}")


@pytest.mark.parametrize("values", [(0.5, 0.5), (0.5, 0.5, 0.5)])
def test_equal_seeds_are_few_seeds_too(values):
    record = {"measures": {"m": summary(*values)}, "profile": "cpu"}
    found = number_row("what", 0.61, record, CHAPTER, "m", higher_is_better=True)
    expected = "too few seeds for a verdict" if len(values) < 3 else "ours worse"
    assert found.verdict == expected
    assert "than all" not in found.reason


def test_times_are_judged_over_runs(page):
    text = section(page(measures()), "Study A, seconds")
    assert "| ours better | one more seed is expected in" in row(text, "batch64")
    assert "| ours worse |" in row(text, "batch128")


@pytest.mark.parametrize("last, verdict", [(0.59, "did not learn"), (0.61, "learned")])
def test_an_outcome_is_told_by_the_training_accuracy(page, last, verdict):
    found = measures()
    found[f"b/stack/sgd/0.1/train_accuracy/{EPOCHS}"] = summary(last)
    found["b/stack/sgd/0.1/held_out_accuracy"] = summary(0.77)
    line = row(section(page(found), "Study B, stochastic"), "plain SGD, rate 0.1 |")
    assert "| 50 %, never learns | 0.770, n = 1 | " + verdict in line
    assert f"training accuracy {last:.3f} after our {EPOCHS} epochs; too few seeds" in line


@pytest.mark.parametrize("epochs, short", [(15, True), (20, False)])
def test_an_outcome_that_comes_later_is_not_tested(page, epochs, short):
    found = measures()
    found[f"b/source/lstm_sgd/20/train_accuracy/{epochs}"] = summary(0.51)
    text = section(page(found, small_epochs=epochs), "Study B, stochastic")
    line = row(text, "halved every 20 epochs, 20 epochs")
    assert ("too few to test what is published after 20; too few seeds" in line) == short


@pytest.mark.parametrize("to, said", [(0, "padded inside the batch"), (592, "padded to 592 words")])
def test_the_headings_of_study_b_say_how_large_ours_was(page, to, said):
    sizes = {"small_hidden": 32, "glove_words": 2603, "small_pad_to": to}
    heads = [line for line in page(measures(), **sizes).splitlines() if "# Study B, " in line]
    end = f" (ours: 32 hidden units, {EPOCHS} epochs, vectors of 2,603 words, {said})"
    assert [line.endswith(end) for line in heads] == [True, True]


def test_settings_padded_as_the_report_did_stand_beside_the_others(page):
    found = measures()
    found["b/mistake/all, padded/curve_accuracy/5"] = summary(0.59)
    found["b/mistake/all, padded/held_out_accuracy"] = summary(0.7)
    text = section(page(found, also_padded=["all"]), "Study B, bidirectional")
    padded = [line for line in text.splitlines() if "ours padded to 592 words likewise" in line]
    assert [line.split("|")[3].strip() for line in padded] == ["0.590, n = 1", "0.700, n = 1"]
    assert all(report_rows.TOO_FEW in line for line in padded)
    assert "padded to" not in section(page(found, also_padded=[]), "Study B, bidirectional")


def test_linear_peers_are_compared_without_seeds(page):
    text = section(page(measures()), "Peers")
    assert "| 0.860 | ours worse | -0.028; logistic" in row(text, "logreg", "`binary`")
    assert "| ours better | +0.020; logistic" in row(text, "logreg", "`tfidf_pairs`")
    assert "| ours better |" in row(text, "| bentrevett bilstm | 0.862 |")


def test_the_page_explains_the_verdicts():
    for verdict in (report_rows.EXPECTED, report_rows.UNEXPECTED, "ours better", "ours worse"):
        assert f"**{verdict}" in report.HOW_TO_READ
    assert report_rows.TOO_FEW in report.HOW_TO_READ
