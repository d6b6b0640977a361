"""The ensemble against autograd, against replicas trained alone, and against bad input."""

import pytest
import torch
from torch import nn

from labkit.memory import training
from labkit.memory.ensemble import Ensemble
from labkit.memory.model import ModelSpec, SequenceClassifier, initial_parameters
from labkit.memory.training import FitSettings, Split

SPECS = [
    ModelSpec(cell, init, embedding)
    for cell in ("srn", "lstm")
    for init in ("zero", "xavier")
    for embedding in (True, False)
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def sequences(T: int, N: int = 36, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randint(0, 10, (N, T), generator=generator)
    return Split(X, X[:, :2].sum(1))


def single(spec: ModelSpec, seed: int, dtype: torch.dtype) -> SequenceClassifier:
    """The readable model, loaded anew after the cast: it was built in float32."""
    model = SequenceClassifier(spec, seed).to(dtype)
    model.load_state_dict(initial_parameters(spec, seed))
    return model


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("T", [3, 10])
def test_one_step_of_gradient_descent_equals_autograd(spec, T):
    """Every gradient: after one SGD step the parameters equal those of the readable model."""
    X, y = sequences(T, N=5)
    ensemble = Ensemble(spec, [3, 4], dtype=torch.float64)
    # a few random numbers on top, since zero starts leave most gradients at zero
    generator = torch.Generator().manual_seed(1)
    start = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in ensemble.state_dict().items()
    }
    ensemble.load_state_dict(start)
    losses = ensemble.loss_and_gradients(X, y)
    with torch.no_grad():
        ensemble.trainable -= 0.5 * ensemble.trainable.grad

    for r in range(2):
        model = single(spec, 0, torch.float64)
        model.load_state_dict({name: value[r] for name, value in start.items()})
        loss = nn.functional.cross_entropy(model(X), y)
        loss.backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
        assert abs(loss.item() - losses[r].item()) < 1e-12
        assert largest_difference(ensemble.parameters_of(r), model.state_dict()) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_200_steps_in_a_batch_equal_200_steps_alone(spec, dtype):
    """Against the readable model under torch's own loop, and against an ensemble of one."""
    data, settings = sequences(10), FitSettings(steps=200, evaluate_every=200)
    seeds = [0, 1, 2, 7]
    together = Ensemble(spec, seeds, dtype=dtype)
    training.fit(together, data, sequences(10, seed=1), settings)

    alone = Ensemble(spec, [2], dtype=dtype)
    training.fit(alone, data, sequences(10, seed=1), settings)
    assert largest_difference(together.parameters_of(2), alone.parameters_of(0)) < TOLERANCE[dtype]

    model = single(spec, 2, dtype)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    stream = training.batches(data, settings, (2,))
    for _ in range(200):
        X, y = next(stream)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimiser.step()
    assert largest_difference(together.parameters_of(2), model.state_dict()) < TOLERANCE[dtype]


def test_frozen_embedding_stays_and_a_trained_one_moves():
    data, settings = sequences(5), FitSettings(steps=20, evaluate_every=20)
    for trained in (True, False):
        spec = ModelSpec("lstm", "xavier", trained)
        ensemble = Ensemble(spec, [0])
        before = ensemble.state_dict()["embedding.weight"]
        training.fit(ensemble, data, data, settings)
        same = torch.equal(before, ensemble.state_dict()["embedding.weight"])
        assert same is not trained


def test_trace_agrees_with_the_readable_lstm():
    spec = ModelSpec("lstm", "xavier")
    ensemble = Ensemble(spec, [5, 6], dtype=torch.float64)
    X, _ = sequences(8, N=3)
    trace = ensemble.trace(X)
    model = single(spec, 6, torch.float64)
    expected = model.recurrent.trace(model.embedding(X))
    names = {name: name for name in "ifoch"} | {"g": "c_tilde"}
    for name, theirs in names.items():
        torch.testing.assert_close(trace[name][1], expected[theirs], rtol=0, atol=1e-12)
    torch.testing.assert_close(ensemble.logits(X)[1], model(X), rtol=0, atol=1e-12)


def test_ablation_replaces_a_gate():
    ensemble = Ensemble(ModelSpec("lstm", "xavier"), [0, 1])
    X, _ = sequences(6, N=4)
    ablated = ensemble.trace(X, ablate={"f": 0.25})
    assert bool((ablated["f"] == 0.25).all())
    assert not torch.equal(ablated["c"], ensemble.trace(X)["c"])
    assert not torch.equal(ensemble.logits(X, ablate={"f": 0.25}), ensemble.logits(X))


def test_evaluation_in_parts_equals_evaluation_at_once():
    ensemble = Ensemble(ModelSpec("lstm", "xavier"), [0, 1], dtype=torch.float64)
    X, y = sequences(6, N=300)
    loss, accuracy = ensemble.evaluate(X, y)
    parts = [ensemble.evaluate(X[k : k + 100], y[k : k + 100]) for k in (0, 100, 200)]
    torch.testing.assert_close(loss, torch.stack([p[0] for p in parts]).mean(0))
    torch.testing.assert_close(accuracy, torch.stack([p[1] for p in parts]).mean(0))


def test_replicas_can_read_different_sequences():
    ensemble = Ensemble(ModelSpec("srn", "xavier"), [0, 0], dtype=torch.float64)
    data = [sequences(6, N=4, seed=s) for s in (0, 1)]
    both = ensemble.logits(torch.stack([d.X for d in data]))
    for r in (0, 1):
        torch.testing.assert_close(both[r], ensemble.logits(data[r].X)[r])


def test_state_dict_loads_strictly():
    ensemble = Ensemble(ModelSpec("lstm"), [0, 1])
    state = ensemble.state_dict()
    other = Ensemble(ModelSpec("lstm"), [8, 9])
    other.load_state_dict(state)
    assert largest_difference(other.state_dict(), state) == 0
    with pytest.raises(ValueError, match=r"missing head\.bias"):
        other.load_state_dict({k: v for k, v in state.items() if k != "head.bias"})
    with pytest.raises(ValueError, match="unknown extra"):
        other.load_state_dict(state | {"extra": state["head.bias"]})
    with pytest.raises(ValueError, match=r"head\.bias has shape \(1, 19\)"):
        other.load_state_dict(state | {"head.bias": state["head.bias"][:1]})


@pytest.mark.parametrize(
    "X, error, message",
    [
        (torch.zeros(4, 5), TypeError, "integer digits"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"\(B, T\)"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), ValueError, r"R=2"),
        (torch.zeros(0, 5, dtype=torch.int64), ValueError, "B, T >= 1"),
        (torch.full((4, 5), 10), ValueError, r"digits 0\.\.9, got 10\.\.10"),
    ],
)
def test_bad_digits_are_refused(X, error, message):
    with pytest.raises(error, match=message):
        Ensemble(ModelSpec("srn"), [0, 1]).logits(X)


@pytest.mark.parametrize(
    "y, error, message",
    [
        (torch.zeros(3, dtype=torch.int64), ValueError, r"shape \(B=4,\) or \(R=2, B=4\)"),
        (torch.zeros(4), TypeError, "int64 classes"),
        (torch.full((4,), 19), ValueError, r"classes 0\.\.18, got 19\.\.19"),
        (torch.full((2, 4), -1), ValueError, r"classes 0\.\.18, got -1\.\.-1"),
    ],
)
def test_bad_classes_are_refused(y, error, message):
    ensemble, X = Ensemble(ModelSpec("srn"), [0, 1]), torch.zeros(4, 5, dtype=torch.int64)
    for method in (ensemble.loss_and_gradients, ensemble.evaluate):
        with pytest.raises(error, match=message):
            method(X, y)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"cell": "gru"}, ValueError, "cell must be one of srn, lstm; got 'gru'"),
        ({"cell": "srn", "init": "ones"}, ValueError, "init must be one of zero, xavier"),
        ({"cell": "srn", "hidden_size": 0}, ValueError, "hidden_size must be at least 1, got 0"),
        ({"cell": "srn", "hidden_size": 3.5}, TypeError, "hidden_size must be an int"),
        ({"cell": "srn", "train_embedding": 1}, TypeError, "train_embedding must be a bool"),
    ],
)
def test_bad_model_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ModelSpec(**arguments)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="at least one seed"):
        Ensemble(ModelSpec("srn"), [])
    with pytest.raises(TypeError, match=r"float32 or torch\.float64"):
        Ensemble(ModelSpec("srn"), [0], dtype=torch.float16)
    with pytest.raises(ValueError, match="no gate 'g' in a lstm; allowed: i, f, o"):
        Ensemble(ModelSpec("lstm"), [0]).trace(torch.zeros(1, 3, dtype=int), ablate={"g": 1.0})
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum'"):
        Ensemble(ModelSpec("srn"), [0]).loss_and_gradients(
            torch.zeros(1, 3, dtype=int), torch.zeros(1, dtype=int), reduction="max"
        )


def test_starts_of_one_seed_share_embedding_and_head():
    a = initial_parameters(ModelSpec("lstm", "xavier"), 3)
    b = initial_parameters(ModelSpec("srn", "zero"), 3)
    for name in ("embedding.weight", "head.weight", "head.bias"):
        assert torch.equal(a[name], b[name])
    assert float(b["recurrent.layers.0.W"].abs().max()) == 0
    assert 0.29 < float(a["recurrent.layers.0.W_i"].abs().max()) <= (6 / 64) ** 0.5
    assert 0.3 < float(a["recurrent.layers.0.b_f"].abs().max()) <= (6 / 33) ** 0.5
