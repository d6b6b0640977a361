"""Chapter 01: its exercises, its figures and its rows of the report."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labkit.cells import figures, layers
from labkit.lab import record
from labkit.lab.exercises import load
from labkit.measure.statistics import summarise

exercises = load("01")


@pytest.fixture
def lstm():
    torch.manual_seed(0)
    return nn.LSTM(3, 4, batch_first=True).double().requires_grad_(False)


def test_the_weights_that_a_right_answer_reads_make_the_step_compute_what_torch_does(lstm):
    weights = exercises.read_weights.right(*lstm.parameters())
    x, h, c = (torch.randn(2, size, dtype=torch.float64) for size in (3, 4, 4))
    _, expected = lstm(x[:, None], (h[None], c[None]))
    for ours, theirs in zip(exercises.lstm_step.right(x, h, c, *weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs[0])


def test_the_right_answer_on_layouts_is_what_a_time_first_layer_gives(lstm):
    X, wrong = torch.randn(2, 5, 3, dtype=torch.float64), nn.LSTM(3, 4).double()
    wrong.load_state_dict(lstm.state_dict())
    expected, (h_n, _) = wrong(X)
    output, h = exercises.time_first.right(lstm, X)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(h, h_n[0])


def test_the_right_gradients_of_the_cell_state_are_autograds():
    torch.manual_seed(0)
    module = layers.LSTM(3, 4, dtype=torch.float64)
    layer, X = module.layers[0], torch.randn(1, 6, 3, dtype=torch.float64)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    h, c = zip(*layer.unroll(X, (zero, zero)), strict=True)
    gradients = torch.stack(torch.autograd.grad(h[-1].sum(), (*h, *c)))  # (2T, 1, H)
    d_h, d_c = gradients.squeeze(1).chunk(2)
    seen = module.trace(X)
    gates = (seen[name][0].detach() for name in ("f", "o", "c"))
    torch.testing.assert_close(exercises.cell_gradients.right(d_h, *gates), d_c)


def test_the_cell_diagram_and_the_layer_have_one_order_of_gates():
    (ax,) = figures.cell_diagram().axes
    place = {text.get_text(): text.get_position()[0] for text in ax.texts}
    gates = ["$i_t$", "$f_t$", "$o_t$", "$\\tilde{c}_t$"]
    assert sorted(gates, key=place.get) == gates
    assert layers.LSTMLayer.gates == ("_i", "_f", "_o", "_c")


def gradients():
    starts = ["srn/xavier", *(f"lstm/forget_bias_{bias}" for bias in (0, 1, 3, 5))]
    return {
        start: {"median": [0.1 * k, 0.5, 1.0], "min": [0.01, 0.1, 1.0], "max": [1.0, 1.0, 1.0]}
        for k, start in enumerate(starts, start=1)
    }


def test_the_gradient_plot_goes_back_from_the_last_step_and_marks_the_readers_run():
    yours = {start: curve["median"] for start, curve in gradients().items()}
    (ax,) = figures.gradient_plot(gradients(), yours, "you: seeds 0–2").axes
    assert [line.get_ydata()[0] for line in ax.lines] == [1.0] * 10
    assert [round(line.get_ydata()[2], 1) for line in ax.lines[::2]] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "you: seeds 0–2", "LSTM, forget gates near 0.99", "LSTM, forget gates near 0.95",
        "LSTM, forget gates near 0.73", "LSTM, forget gates near 0.50", "SRN",
    ]  # fmt: skip
    assert "Rings" not in figures.gradient_plot(gradients()).labkit_alt


def measures(**changes):
    ratio = summarise([2.0, 2.1, 5.0] * 3, statistic="median", timing=True)
    timed = {"speed/ratio_naive_to_torch": ratio}
    plain = {"toy_output": [[0.0594, 0.0952]], "parity_mistake/shapes": [[2, 10], [5, 10]]}
    return timed | plain | changes


def test_rows_set_ours_beside_every_published_number():
    (rows,) = figures.rows(measures(), {}, record.published()).values()
    verdicts = ["reproduced", "inside our runs", "mistake reproduced"]
    assert [row.verdict for row in rows] == verdicts
    assert rows[1].published.startswith("4.34 (0.006990")
    assert rows[1].reason == "higher than 6 of 9 runs"


@pytest.mark.parametrize("ours", [[[0.0595, 0.0952]], [[0.0594], [0.0952]]])
def test_another_toy_value_is_not_reproduced(ours):
    rows = figures.rows(measures(toy_output=ours), {}, record.published())["Numbers"]
    assert rows[0].verdict == "not reproduced"
