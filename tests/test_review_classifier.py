"""The review classifier against torch's packed sequences, against padding, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from labkit.film.model import (
    CELLS,
    POOLINGS,
    TORCH_LAYERS,
    ReviewClassifier,
    ReviewSpec,
    backward_order,
    pool,
)
from labkit.film.vocabulary import PAD_ID

V, E, H = 30, 5, 4
RAGGED = torch.tensor([3, 7, 1, 7, 5])
OVER_TIME = ("mean", "max", "mean_max")


def make(cell: str = "lstm", seed: int = 0, table: Tensor | None = None, **options):
    torch.manual_seed(seed)
    spec = ReviewSpec(cell, embedding_size=E, hidden_size=H, **options)
    return ReviewClassifier(spec, V, table).eval()


def batch(length: Tensor = RAGGED, extra: int = 0, *, front: bool = False) -> Tensor:
    """Random words but the last one, the padding behind them or in front of them."""
    generator = torch.Generator().manual_seed(0)
    T = int(length.max()) + extra
    X = torch.full((len(length), T), PAD_ID)
    for row, n in zip(X, length.tolist(), strict=True):
        place = slice(T - n, T) if front else slice(0, n)
        row[place] = torch.randint(2, V - 1, (n,), generator=generator)
    return X


def as_torch(model: ReviewClassifier) -> nn.Module:
    """torch's stacked module with the weights of the model's layers."""
    spec = model.spec
    stacked = TORCH_LAYERS[spec.cell](
        E, H, spec.num_layers, bidirectional=spec.bidirectional, batch_first=True
    )
    weights = {
        f"{name}{depth}{'_reverse' if direction else ''}": value
        for depth, layer in enumerate(model.layers)
        for direction, module in enumerate(layer)
        for name, value in ((n[:-1], v) for n, v in module.state_dict().items())
    }
    stacked.load_state_dict(weights, strict=True)
    return stacked


def side_by_side(h: Tensor | tuple, directions: int) -> Tensor:
    """The top layer's final hidden states (B, D*H) from torch's h_n (L*D, B, H)."""
    h = h[0] if isinstance(h, tuple) else h
    return torch.cat(list(h[-directions:]), dim=1)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", TORCH_LAYERS)
def test_the_gathered_state_is_that_of_a_packed_sequence(cell, bidirectional, num_layers):
    model = make(cell, bidirectional=bidirectional, num_layers=num_layers)
    X = batch(extra=2)
    Z = pack_padded_sequence(model.embedding(X), RAGGED, batch_first=True, enforce_sorted=False)
    packed, h_n = as_torch(model)(Z)
    expected = side_by_side(h_n, 1 + bidirectional)

    output = model.run(X, RAGGED)
    found = pool(output, RAGGED, model.spec)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(X, RAGGED), model.head(expected), rtol=0, atol=1e-6)
    over_time, _ = pad_packed_sequence(packed, batch_first=True)
    for ours, theirs, n in zip(output, over_time, RAGGED.tolist(), strict=True):
        torch.testing.assert_close(ours[:n], theirs[:n], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "cell, options",
    [
        ("lstm", {}),
        ("lstm", {"bidirectional": True, "num_layers": 2}),
        ("handwritten", {"bidirectional": True}),
        ("none", {}),
        ("gru", {"bidirectional": True, "skip": True}),
    ],
)
def test_padding_changes_no_answer(cell, options, pooling):
    """A review alone, the same among longer ones, and with other words in place of the padding."""
    if options.get("skip") and pooling not in OVER_TIME:
        options = options | {"skip": False}
    model = make(cell, pooling=pooling, **options)
    X = batch(extra=3)
    together = model(X, RAGGED)
    rubbish = X.masked_fill(X == PAD_ID, 7)
    torch.testing.assert_close(model(rubbish, RAGGED), together, rtol=0, atol=1e-6)
    for row, n in enumerate(RAGGED.tolist()):
        alone = model(X[row : row + 1, :n], RAGGED[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_in_the_batch_gets_no_gradient(pooling):
    model = make(bidirectional=True, pooling=pooling)
    X = batch(extra=2)
    last = V - 1  # a word that no review holds
    model(X.masked_fill(X == PAD_ID, last), RAGGED).square().sum().backward()
    gradient = model.embedding.weight.grad.abs().amax(1)
    assert gradient[last] == 0
    assert gradient[int(X[2, 0])] > 0


def test_last_step_has_read_one_word_only_on_its_way_back():
    model = make("lstm", bidirectional=True, pooling="last_step")
    X = batch(extra=2)
    output = model.run(X, RAGGED)
    found = pool(output, RAGGED, model.spec)
    whole = pool(output, RAGGED, ReviewSpec(hidden_size=H, bidirectional=True))
    final_word = X[torch.arange(len(X)), RAGGED - 1].unsqueeze(1)
    one_word, _ = model.layers[0][1](model.embedding(final_word))
    torch.testing.assert_close(found[:, H:], one_word.squeeze(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, :H], whole[:, :H], rtol=0, atol=0)
    several = RAGGED > 1
    assert ((found - whole)[several, H:].abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(found[~several], whole[~several], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", TORCH_LAYERS)
def test_front_padding_is_what_a_plain_bidirectional_layer_does(cell):
    model = make(cell, bidirectional=True, num_layers=2)
    X = batch(extra=2, front=True)
    expected, h_n = as_torch(model)(model.embedding(X))
    output = model.run(X, RAGGED, front=True)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    found = pool(output, RAGGED, model.spec, front=True)
    torch.testing.assert_close(found, side_by_side(h_n, 2), rtol=0, atol=1e-6)

    at_end = ReviewSpec(hidden_size=H, bidirectional=True, pooling="last_step")
    found = pool(output, RAGGED, at_end, front=True)
    torch.testing.assert_close(found, expected[:, -1], rtol=0, atol=1e-6)
    mean = pool(output, RAGGED, ReviewSpec(pooling="mean"), front=True)
    for ours, row, n in zip(mean, expected, RAGGED.tolist(), strict=True):
        torch.testing.assert_close(ours, row[-n:].mean(0), rtol=0, atol=1e-6)


def test_front_padding_is_read_and_changes_answers():
    model = make(bidirectional=True)
    few, many = (batch(extra=extra, front=True) for extra in (0, 6))
    assert not torch.allclose(model(few, RAGGED, front=True), model(many, RAGGED, front=True))


def test_a_backward_direction_reads_the_words_reversed_and_the_padding_in_place():
    length = torch.tensor([3, 1, 4])
    assert backward_order(4, length).tolist() == [[2, 1, 0, 3], [0, 1, 2, 3], [3, 2, 1, 0]]
    assert backward_order(4, length, front=True).tolist() == [[3, 2, 1, 0]] * 3


# the handwritten cell


def engines(**options) -> tuple[ReviewClassifier, ReviewClassifier, list[Tensor]]:
    models, following = [], []
    for engine in ("own", "torch"):
        models.append(make("handwritten", engine=engine, head_size=3, **options))
        following.append(torch.rand(5))
    return *models, following


def in_torch_order(fused: Tensor) -> Tensor:
    """The fused gates i, f, o, c as torch stacks them: i, f, c, o."""
    i, f, o, c = fused.T.chunk(4)
    return torch.cat([i, f, c, o])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_both_engines_of_the_handwritten_cell_are_one_function(options):
    own, torchs, (after_own, after_torch) = engines(pooling="mean", **options)
    assert torch.equal(after_own, after_torch)  # what follows the model draws the same numbers
    X, y = batch(), torch.tensor([0, 1, 1, 0, 1])
    for model in (own, torchs):
        nn.functional.cross_entropy(model(X, RAGGED), y).backward()
    torch.testing.assert_close(own(X, RAGGED), torchs(X, RAGGED), rtol=0, atol=1e-6)

    shared = {n: p for n, p in own.named_parameters() if not n.startswith("layers")}
    theirs = dict(torchs.named_parameters())
    assert len(shared) == 5
    for name, parameter in shared.items():
        assert torch.equal(parameter, theirs[name]), name
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=1e-6)
    for ours, module in zip(own.layers, torchs.layers, strict=True):
        for fused, layer in zip(ours, module, strict=True):
            names = {"W": "weight_ih_l0", "U": "weight_hh_l0", "b": "bias_ih_l0"}
            for kind, name in names.items():
                mine, yours = getattr(fused.layers[0], kind), getattr(layer, name)
                assert torch.equal(in_torch_order(mine).view_as(yours), yours)
                gradient = in_torch_order(mine.grad).view_as(yours)
                torch.testing.assert_close(gradient, yours.grad, rtol=0, atol=1e-6)


def test_the_second_bias_stays_zero():
    _, model, _ = engines()
    (layer,) = model.layers[0]
    assert not layer.bias_hh_l0.requires_grad
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(batch(), RAGGED).square().sum().backward()
    optimiser.step()
    assert layer.bias_hh_l0.abs().max() == 0
    for parameter in make("lstm").layers.parameters():  # torch's own layers keep both
        assert parameter.requires_grad


@pytest.mark.parametrize("engine", ["own", "torch"])
def test_the_handwritten_cell_starts_as_chapter_01_does(engine):
    """Xavier for each gate, the biases too, and not torch's 1/√H."""
    spec = ReviewSpec("handwritten", engine, embedding_size=64, hidden_size=16)
    torch.manual_seed(0)
    (layer,) = ReviewClassifier(spec, V).layers[0]
    values = layer.layers[0].W if engine == "own" else layer.weight_ih_l0
    bound = math.sqrt(6 / (64 + 16))
    assert 0.97 * bound < values.abs().max() <= bound
    bias = layer.layers[0].b if engine == "own" else layer.bias_ih_l0
    assert bias.abs().max() > 0.25


# pooling and head


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
    assert set(expected) == set(POOLINGS)
    for pooling, values in expected.items():
        spec = ReviewSpec(hidden_size=2, pooling=pooling)
        torch.testing.assert_close(pool(output, length, spec), torch.tensor(values))
    # with one unit in each direction the backward one ends at the first word
    spec = ReviewSpec(hidden_size=1, bidirectional=True)
    assert pool(output, length, spec).tolist() == [[3.0, -4.0], [-3.0, 2.0]]


def test_without_a_cell_the_embeddings_are_averaged():
    model = make("none", pooling="mean")
    X = batch(extra=1)
    means = [model.embedding(row[:n]).mean(0) for row, n in zip(X, RAGGED.tolist(), strict=True)]
    torch.testing.assert_close(model(X, RAGGED), model.head(torch.stack(means)))
    assert not list(model.layers)


@pytest.mark.parametrize("pooling", OVER_TIME)
def test_skip_puts_each_word_beside_the_output(pooling):
    model = make("gru", bidirectional=True, pooling=pooling, skip=True)
    width = 2 * H + E
    assert model.head.in_features == width * (2 if pooling == "mean_max" else 1)
    X = batch(extra=1)
    output = model.run(X, RAGGED)
    plain = make("gru", bidirectional=True, pooling=pooling)
    torch.testing.assert_close(output[..., : 2 * H], plain.run(X, RAGGED), rtol=0, atol=0)
    torch.testing.assert_close(output[..., 2 * H :], model.embedding(X), rtol=0, atol=0)
    assert model(X, RAGGED).shape == (5, 2)


@pytest.mark.parametrize("activation, kind", [("relu", nn.ReLU), ("tanh", nn.Tanh)])
def test_the_head_has_the_hidden_layer_that_was_asked_for(activation, kind):
    model = make(head_size=6, activation=activation, num_classes=10)
    first, middle, last = model.head
    assert isinstance(middle, kind)
    assert (first.in_features, first.out_features, last.out_features) == (H, 6, 10)
    assert model(batch(), RAGGED).shape == (5, 10)


def test_dropout_acts_while_training_only():
    model = make(dropout=0.5, embedding_dropout=0.5)
    X = batch()
    assert torch.equal(model(X, RAGGED), model(X, RAGGED))
    model.train()
    assert not torch.equal(model(X, RAGGED), model(X, RAGGED))


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "none"])
def test_states_are_taken_up_and_replaced(cell):
    """Two halves of a text, one after the other, end where the whole text ends."""
    model = make(cell, num_layers=2)
    length = torch.tensor([6, 6])
    X = batch(length)
    states: list = []
    model(X[:, :4], torch.tensor([4, 4]), states=states)
    assert len(states) == 2
    second = model(X[:, 4:], torch.tensor([2, 2]), states=states)
    torch.testing.assert_close(second, model(X, length), rtol=0, atol=1e-6)
    afresh = model(X[:, 4:], torch.tensor([2, 2]))
    assert not torch.allclose(second, afresh)


def test_a_bidirectional_model_carries_a_state_for_each_layer_and_direction():
    states: list = []
    model = make("lstm", num_layers=2, bidirectional=True)
    first = model(batch(), RAGGED, states=states)
    assert len(states) == 4
    assert not torch.allclose(model(batch(), RAGGED, states=states), first)


# vectors


def vectors() -> Tensor:
    """Pretrained vectors for the words from 10 on."""
    table = 3 * torch.randn(V, E, generator=torch.Generator().manual_seed(1))
    table[:10] = 0
    return table


def after_a_step(model: ReviewClassifier) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    X = torch.arange(2, V).unsqueeze(0)
    model(X, torch.tensor([V - 2])).square().sum().backward()
    torch.optim.SGD(parameters, lr=1.0).step()
    return model.embedding.weight.detach()


@pytest.mark.parametrize("kind", ["glove", "glove_tuned"])
def test_pretrained_vectors_are_fixed_or_trained(kind):
    table = vectors()
    model = make(table=table, vectors=kind, pooling="mean")
    assert torch.equal(model.embedding.weight, table)
    moved = (after_a_step(model) - table).abs().amax(1)
    if kind == "glove":
        assert moved.max() == 0
    else:
        assert (moved[2:] > 0).all()
        assert moved[PAD_ID] == 0


def test_random_vectors_stand_for_known_words_only_and_stay():
    table = vectors()
    model = make(table=table, vectors="random", pooling="mean")
    start = model.embedding.weight.detach().clone()
    known = table.abs().sum(1) > 0
    assert start[~known].abs().max() == 0
    assert (start[known].abs().sum(1) > 0).all()
    assert not torch.isclose(start[known], table[known]).any(1).all()
    assert start[known].std() == pytest.approx(table[known].std().item(), rel=0.25)
    assert torch.equal(after_a_step(model), start)


def test_learned_vectors_take_no_table_and_train():
    model = make(pooling="mean")
    start = model.embedding.weight.detach().clone()
    assert start[PAD_ID].abs().max() == 0
    moved = (after_a_step(model) - start).abs().amax(1)
    assert (moved[2:] > 0).all()
    assert moved[PAD_ID] == 0


# refusals


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cell": "transformer"}, r"ReviewSpec\.cell must be one of rnn, lstm.*got 'transformer'"),
        ({"engine": "jax"}, r"ReviewSpec\.engine must be one of own, torch; got 'jax'"),
        ({"pooling": "sum"}, r"ReviewSpec\.pooling must be one of last"),
        ({"vectors": "word2vec"}, r"ReviewSpec\.vectors must be one of learned"),
        ({"activation": "gelu"}, r"ReviewSpec\.activation must be one of relu, tanh"),
        ({"embedding_size": 0}, r"ReviewSpec\.embedding_size must be at least 1"),
        ({"hidden_size": 0}, r"ReviewSpec\.hidden_size must be at least 1"),
        ({"num_layers": 0}, r"ReviewSpec\.num_layers must be at least 1"),
        ({"num_classes": 0}, r"ReviewSpec\.num_classes must be at least 1"),
        ({"dropout": 1.0}, r"ReviewSpec\.dropout must be in 0\.\.1, got 1"),
        ({"embedding_dropout": -0.1}, r"ReviewSpec\.embedding_dropout must be in 0\.\.1"),
        ({"skip": True}, r"ReviewSpec\.skip needs a pooling over time, not 'last'"),
        ({"skip": True, "pooling": "last_step"}, r"not 'last_step'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReviewSpec(**options)


@pytest.mark.parametrize("kind", ["glove", "glove_tuned", "random"])
def test_vectors_need_a_table_that_fits(kind):
    with pytest.raises(ValueError, match=f"vectors '{kind}' need a table"):
        make(vectors=kind)
    with pytest.raises(ValueError, match=r"the table must be \(30, 5\), got \(30, 6\)"):
        make(vectors=kind, table=torch.ones(V, E + 1))
