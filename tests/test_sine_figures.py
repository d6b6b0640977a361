"""The plots of the sine chapter draw what they are given, and its rows of the report."""

from __future__ import annotations

import pytest
import torch

from labkit.lab import record
from labkit.measure.statistics import summarise
from labkit.sine import figures
from labkit.sine.study import LENGTHS

PUBLISHED = record.published()["sine"]
NOTE = PUBLISHED["every_step"]
VALUES = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) + 0.1  # three seeds


def make_all(shift: float = 0.0) -> dict:
    moved, two = VALUES + shift, ("last/nine", "every/mixed")
    blocks = {"adam": moved[:, :6], "sgd": VALUES[:, :6] + 1}
    ways = dict.fromkeys(figures.WAYS, moved)
    by_length = dict.fromkeys(figures.WAYS, VALUES[:, : len(LENGTHS)])
    strokes = dict(zip(("again", "on", "fitted"), VALUES, strict=True))
    return {
        "loss": lambda: figures.loss_plot(dict.fromkeys(figures.STARTS, blocks), PUBLISHED, 0.007),
        "error_over_place_and_length": lambda: figures.error_plot(ways, by_length, {"mean": 0.1}),
        "free_run": lambda: figures.free_run_plot(
            VALUES[0], dict.fromkeys(two, moved[0]), dict.fromkeys(two, moved), strokes
        ),
    }


@pytest.mark.parametrize("name", make_all())
def test_figures_have_a_name_a_text_labels_and_stable_data(name, check_figure):
    check_figure(name, make_all()[name], make_all(0.05)[name])


def lines(ax) -> dict[str, list[float]]:
    """The labelled lines of a panel."""
    labelled = [line for line in ax.lines if not line.get_label().startswith("_")]
    return {line.get_label(): torch.as_tensor(line.get_ydata()).tolist() for line in labelled}


def test_losses_stand_at_the_end_of_their_batches_beside_the_published_ones():
    left, _ = make_all()["loss"]().axes
    adam, sgd = (line for line in left.lines if line.get_label() == "published")
    assert adam.get_xdata().tolist() == [20, 40, 60, 80, 100]
    assert [*adam.get_ydata()] == PUBLISHED["adam_loss"]
    assert [*sgd.get_ydata()] == PUBLISHED["sgd_loss"]
    assert lines(left)["Adam"] == pytest.approx(VALUES[:, :6].median(0).values.tolist())


def measures(shift: float = 0.0) -> dict:
    """Twelve seeds around each published number, or beside it by a share `shift` of it."""
    columns = {"note/0": NOTE["initial_prediction"]}
    columns |= dict.fromkeys(("note/100", "note/end"), NOTE["final_prediction"])
    for start in figures.STARTS:
        columns |= {f"loss/{start}/{o}": PUBLISHED[f"{o}_loss"] for o in figures.OPTIMISERS}
    return {
        f"{name}/{k}": summarise([value * (1 + shift + j / 100) for j in range(-6, 6)])
        for name, column in columns.items()
        for k, value in enumerate(column, start=1)
    }


def rows(measures: dict) -> list:
    return list(figures.rows(measures, {"batches": 1_500}, {"sine": PUBLISHED}).items())


def test_the_last_losses_and_every_output_have_a_row_in_their_order():
    tables = rows(measures())
    assert [heading for heading, _ in tables[1:]] == [
        "Losses, ours with Xavier start",
        "Outputs before training",
        "Outputs after training, ours after 100 batches",
        "Outputs after training, ours after 1,500 batches",
    ]
    columns = [[PUBLISHED[f"{name}_loss"][-1] for name in ("adam", "sgd")]] * 2
    columns += [NOTE["initial_prediction"], NOTE["final_prediction"], NOTE["final_prediction"]]
    for (_, table), column in zip(tables, columns, strict=True):
        assert [row.published for row in table] == [repr(value) for value in column]
        assert {row.verdict for row in table} == {"inside our seeds"}
    assert tables[0][1][1].what == "SGD, 0.01, loss of batches 81 to 100"


def test_a_lower_loss_is_better_and_an_output_is_neither():
    verdicts = [{row.verdict for row in table} for _, table in rows(measures(-0.5))]
    assert verdicts == [{"ours better"}] * 2 + [{"outside our seeds"}] * 3
