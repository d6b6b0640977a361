"""The review classifier against torch's packed sequences, against padding, and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from labkit.cells import layers
from labkit.film.corpus import PAD_ID
from labkit.film.model import TORCH_LAYERS, ReviewClassifier, ReviewSpec, backward_order, pool

V, E, H = 30, 5, 4
LENGTH = torch.tensor([3, 7, 1, 7, 5])
POOLINGS = ("last", "mean", "max", "mean_max", "last_step")


def make(cell: str = "lstm", table: Tensor | None = None, **options) -> ReviewClassifier:
    torch.manual_seed(0)
    spec = ReviewSpec(cell=cell, embedding_size=E, hidden_size=H, **options)
    return ReviewClassifier(spec, V, table).eval()


def batch(length: Tensor = LENGTH, extra: int = 0) -> Tensor:
    """Random words but the last one, the padding behind them."""
    generator = torch.Generator().manual_seed(0)
    T = int(length.max()) + extra
    X = torch.full((len(length), T), PAD_ID)
    for row, n in zip(X, length.tolist(), strict=True):
        row[:n] = torch.randint(2, V - 1, (n,), generator=generator)
    return X


def as_torch(model: ReviewClassifier) -> nn.Module:
    """torch's stacked module with the weights of the model's layers."""
    spec = model.spec
    stacked = TORCH_LAYERS[spec.cell](
        E, H, spec.num_layers, bidirectional=spec.bidirectional, batch_first=True
    )
    weights = {
        f"{name[:-1]}{depth}{'_reverse' if direction else ''}": value
        for depth, layer in enumerate(model.layers)
        for direction, module in enumerate(layer)
        for name, value in module.state_dict().items()
    }
    stacked.load_state_dict(weights, strict=True)
    return stacked


def side_by_side(h: Tensor | tuple, directions: int) -> Tensor:
    """The top layer's final hidden states (B, D*H) from torch's h_n (L*D, B, H)."""
    h = h[0] if isinstance(h, tuple) else h
    return torch.cat(list(h[-directions:]), dim=1)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# padding


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", TORCH_LAYERS)
def test_the_gathered_state_is_that_of_a_packed_sequence(cell, bidirectional, num_layers):
    model = make(cell, bidirectional=bidirectional, num_layers=num_layers)
    X = batch(extra=2)
    Z = pack_padded_sequence(model.embedding(X), LENGTH, batch_first=True, enforce_sorted=False)
    packed, h_n = as_torch(model)(Z)
    expected = side_by_side(h_n, 1 + bidirectional)

    output = model.run(X, LENGTH)
    close(pool(output, LENGTH, model.spec), expected)
    close(model(X, LENGTH), model.head(expected))
    over_time, _ = pad_packed_sequence(packed, batch_first=True)
    for ours, theirs, n in zip(output, over_time, LENGTH.tolist(), strict=True):
        close(ours[:n], theirs[:n])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "cell, options",
    [
        ("lstm", {"bidirectional": True, "num_layers": 2}),
        ("handwritten", {"bidirectional": True}),
        ("none", {}),
        ("gru", {"bidirectional": True, "skip": True}),
    ],
)
def test_padding_changes_no_answer(cell, options, pooling):
    """A review alone, the same among longer ones, and with other words in place of the padding."""
    if pooling in ("last", "last_step"):
        options = options | {"skip": False}
    model = make(cell, pooling=pooling, **options)
    X = batch(extra=3)
    together = model(X, LENGTH)
    close(model(X.masked_fill(X == PAD_ID, 7), LENGTH), together)
    for row, n in enumerate(LENGTH.tolist()):
        close(model(X[row : row + 1, :n], LENGTH[row : row + 1])[0], together[row])


def test_a_backward_direction_reads_the_words_reversed_and_the_padding_in_place():
    length = torch.tensor([3, 1, 4])
    assert backward_order(4, length).tolist() == [[2, 1, 0, 3], [0, 1, 2, 3], [3, 2, 1, 0]]


def test_last_step_has_read_one_word_only_on_its_way_back():
    model = make(bidirectional=True, pooling="last_step")
    X = batch(extra=2)
    output = model.run(X, LENGTH)
    mistaken = pool(output, LENGTH, model.spec)
    whole = pool(output, LENGTH, ReviewSpec(hidden_size=H, bidirectional=True))
    final_word = X[torch.arange(len(X)), LENGTH - 1].unsqueeze(1)
    one_word, _ = model.layers[0][1](model.embedding(final_word))
    close(mistaken[:, H:], one_word.squeeze(1))
    close(mistaken[:, :H], whole[:, :H])
    assert ((mistaken - whole)[LENGTH > 1, H:].abs().amax(1) > 1e-3).all()


# the handwritten cell


@pytest.mark.parametrize(
    "options",
    [{"pooling": "last"}, {"num_layers": 2}, {"bidirectional": True, "pooling": "max"},
     {"num_layers": 2, "bidirectional": True}],
)  # fmt: skip
def test_the_handwritten_cell_computes_what_chapter_01_does(options):
    """Answers and gradients of torch's fast layer are those of the loop written out."""
    fast, slow = (make("handwritten", **{"pooling": "mean"} | options) for _ in range(2))
    for layer in slow.layers:
        for direction, module in enumerate(layer):
            layer[direction] = layers.from_torch(module)
    answers = [model(batch(), LENGTH) for model in (fast, slow)]
    for logits in answers:
        logits.square().sum().backward()
    close(*answers)
    for name in ("embedding.weight", "head.weight", "head.bias"):
        close(*(model.get_parameter(name).grad for model in (fast, slow)))
    for torchs, ours in zip(*(itertools.chain(*m.layers) for m in (fast, slow)), strict=True):
        torchs.bias_hh_l0.grad = torchs.bias_ih_l0.grad  # which is not trained
        for _, one, other in layers._pairs(ours, torchs, "grad"):
            assert one.abs().max() > 1e-4
            close(one, other)


def test_the_handwritten_cell_starts_as_chapter_01_does_and_keeps_one_bias():
    """Xavier for each gate, the biases too, and not torch's 1/√H; what follows notices nothing."""
    torch.manual_seed(0)
    spec = ReviewSpec(cell="handwritten", embedding_size=64, hidden_size=16)
    (layer,) = ReviewClassifier(spec, V).layers[0]
    bound = math.sqrt(6 / (64 + 16))
    assert 0.97 * bound < layer.weight_ih_l0.abs().max() <= bound
    assert layer.bias_ih_l0.abs().max() > 0.25
    assert layer.bias_hh_l0.abs().max() == 0
    assert not layer.bias_hh_l0.requires_grad
    assert all(p.requires_grad for p in make("lstm").layers.parameters())


def test_each_place_of_a_batch_has_an_lstm_of_its_own():
    """Review p is read as by a model of one LSTM with the p-th weights, and trains these alone."""
    model = make("handwritten", places=6, num_layers=2)  # a place more than there are reviews
    X = batch(extra=2)
    together = model(X, LENGTH)
    together[1].sum().backward()
    for place, n in enumerate(LENGTH.tolist()):
        alone = make("handwritten", num_layers=2)
        alone.load_state_dict(model.state_dict(), strict=False)  # embedding and head
        for (one,), (many,) in zip(alone.layers, model.layers, strict=True):
            weights = (one.weight_ih_l0, one.weight_hh_l0, one.bias_ih_l0)
            for ours, theirs in zip(weights, (many.W, many.U, many.b), strict=True):
                ours.data.copy_(theirs[place])
                assert (theirs.grad[place].abs().max() > 0) == (place == 1)
        close(alone(X[place : place + 1, :n], LENGTH[place : place + 1])[0], together[place])
    assert len({float(w.detach().sum()) for w in model.layers[0][0].W}) == 6  # each its own start


# pooling, head, states


def test_poolings_by_hand():
    """Two units over three steps; the second review has two words, then padding."""
    output = torch.tensor(
        [[[1.0, -4.0], [5.0, -2.0], [3.0, -9.0]], [[-1.0, 2.0], [-3.0, 4.0], [9, 9]]]
    )
    length = torch.tensor([3, 2])
    expected = {
        "mean": [[3.0, -5.0], [-2.0, 3.0]],
        "max": [[5.0, -2.0], [-1.0, 4.0]],
        "mean_max": [[3.0, -5.0, 5.0, -2.0], [-2.0, 3.0, -1.0, 4.0]],
        "last": [[3.0, -9.0], [-3.0, 4.0]],
        "last_step": [[3.0, -9.0], [-3.0, 4.0]],
    }
    for pooling, values in expected.items():
        spec = ReviewSpec(hidden_size=2, pooling=pooling)
        torch.testing.assert_close(pool(output, length, spec), torch.tensor(values))
    # with one unit in each direction the backward one ends at the first word
    spec = ReviewSpec(hidden_size=1, bidirectional=True)
    assert pool(output, length, spec).tolist() == [[3.0, -4.0], [-3.0, 2.0]]


def test_skip_puts_each_word_beside_the_output():
    model = make("gru", bidirectional=True, pooling="mean_max", skip=True)
    X = batch(extra=1)
    output = model.run(X, LENGTH)
    close(output[..., : 2 * H], make("gru", bidirectional=True).run(X, LENGTH))
    close(output[..., 2 * H :], model.embedding(X))
    assert model(X, LENGTH).shape == (5, 2)


@pytest.mark.parametrize("cell", [*TORCH_LAYERS, "handwritten"])
def test_states_are_taken_up_and_replaced(cell):
    """Two halves of a text, one after the other, end where the whole text ends."""
    model = make(cell, num_layers=2)
    X = batch(torch.tensor([6, 6]))
    states: list = []
    model(X[:, :4], torch.tensor([4, 4]), states=states)
    assert len(states) == 2
    close(model(X[:, 4:], torch.tensor([2, 2]), states=states), model(X, torch.tensor([6, 6])))


# vectors


def after_a_step(model: ReviewClassifier) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    model(torch.arange(2, V).unsqueeze(0), torch.tensor([V - 2])).square().sum().backward()
    torch.optim.SGD(parameters, lr=1.0).step()
    return model.embedding.weight.detach()


@pytest.mark.parametrize("kind", ["learned", "pretrained", "tuned", "random"])
def test_vectors_start_and_train_as_they_should(kind):
    """Pretrained vectors are there for the words from 10 on."""
    table = 3 * torch.randn(V, E, generator=torch.Generator().manual_seed(1))
    table[:10] = 0
    model = make(table=table, vectors=kind, pooling="mean")
    start = model.embedding.weight.detach().clone()
    moved = (after_a_step(model) - start).abs().amax(1)
    if kind in ("pretrained", "tuned"):
        assert torch.equal(start, table)
    elif kind == "random":  # for known words only, about as long as the pretrained ones
        assert start[:10].abs().max() == 0
        assert start[10:].std() == pytest.approx(table[10:].std().item(), rel=0.25)
        assert not torch.isclose(start[10:], table[10:]).any(1).all()
    assert (moved[2:] > 0).all() if kind in ("learned", "tuned") else moved.max() == 0
    assert moved[PAD_ID] == 0
