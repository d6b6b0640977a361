"""The replicas against autograd, against the readable model, and against replicas alone."""

from functools import partial

import pytest
import torch
from torch import nn

from labkit.memory import training
from labkit.memory.data import Split
from labkit.memory.model import Ensemble, ModelSpec, SequenceClassifier, initial_parameters

SPECS = [
    ModelSpec(cell=cell, init=init, train_embedding=trained)
    for cell in ("srn", "lstm")
    for init in ("zero", "xavier")
    for trained in (True, False)
]
SRN, LSTM = ModelSpec(cell="srn"), ModelSpec(cell="lstm")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def label(value: object) -> str:
    return f"{value.cell}/{value.setting}" if isinstance(value, ModelSpec) else str(value)


def sequences(T: int, N: int = 36, seed: int = 0) -> Split:
    X = torch.randint(0, 10, (N, T), generator=torch.Generator().manual_seed(seed))
    return Split(X, X[:, :2].sum(1))


def single(spec: ModelSpec, seed: int, dtype: torch.dtype) -> SequenceClassifier:
    """The readable model, loaded anew after the cast: it was built in float32."""
    model = SequenceClassifier(spec, seed).to(dtype)
    model.load_state_dict(initial_parameters(spec, seed))
    return model


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("spec", SPECS, ids=label)
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
@pytest.mark.parametrize("spec", SPECS, ids=label)
def test_200_steps_together_equal_200_steps_alone(spec, dtype):
    """Against the readable model under torch's own loop, and against an ensemble of one."""
    data, dev = sequences(10), sequences(10, seed=1)
    together, alone = (Ensemble(spec, seeds, dtype=dtype) for seeds in ([0, 1, 2, 7], [2]))
    for ensemble in (together, alone):
        training.fit(ensemble, data, dev, steps=200, evaluate_every=200)
    assert largest_difference(together.parameters_of(2), alone.parameters_of(0)) < TOLERANCE[dtype]

    model = single(spec, 2, dtype)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    stream = training.batches(data, [2])
    for _ in range(200):
        X, y = next(stream)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X[0]), y[0]).backward()
        optimiser.step()
    assert largest_difference(together.parameters_of(2), model.state_dict()) < TOLERANCE[dtype]


def test_trace_agrees_with_the_readable_lstm():
    ensemble, (X, _) = Ensemble(LSTM, [5, 6], dtype=torch.float64), sequences(8, N=3)
    trace, model = ensemble.trace(X), single(LSTM, 6, torch.float64)
    expected = model.recurrent.trace(model.embedding(X))
    for name, theirs in ({name: name for name in "ifoch"} | {"g": "c_tilde"}).items():
        torch.testing.assert_close(trace[name][1], expected[theirs], rtol=0, atol=1e-12)
    torch.testing.assert_close(ensemble.logits(X)[1], model(X), rtol=0, atol=1e-12)
    assert Ensemble(SRN, [5]).trace(X).keys() == {"h"}


@pytest.mark.parametrize("first", [0, 2])
def test_gates_held_from_a_step_on_leave_the_steps_before_alone(first):
    ensemble, (X, _) = Ensemble(LSTM, [3, 8], dtype=torch.float64), sequences(7, N=200)
    held = {"f": torch.full((2, 1, 32), 0.7, dtype=torch.float64)}
    model = single(LSTM, 8, torch.float64)
    h = c = torch.zeros(len(X), 32, dtype=torch.float64)
    with torch.no_grad():
        for t, x in enumerate(model.embedding(X).unbind(1)):
            now = model.recurrent.layers[0].gated_step(x, h, c)
            f = 0.7 if t >= first else now["f"]
            c = f * c + now["i"] * now["c_tilde"]
            h = now["o"] * torch.tanh(c)
        expected = model.head(h)
    logits = ensemble.logits(X, held, first)  # 200 sequences are read in two parts
    torch.testing.assert_close(logits[1], expected, rtol=0, atol=1e-12)
    trace = ensemble.trace(X, held, first)["f"]
    assert bool((trace[:, :, first:] == 0.7).all())
    assert torch.equal(trace[:, :, :first], ensemble.trace(X)["f"][:, :, :first])


@pytest.mark.parametrize("spec, gate, first", [(LSTM, "c", 0), (SRN, "f", 0), (LSTM, "f", 5)])
def test_holding_what_cannot_be_held_is_refused(spec, gate, first):
    ensemble, (X, _) = Ensemble(spec, [0]), sequences(5)
    for method in (ensemble.trace, ensemble.logits):
        with pytest.raises(ValueError, match=r"can be held from a step 0\.\.4 on, got"):
            method(X, {gate: 1.0}, first)


def test_state_dict_loads_strictly():
    state, other = Ensemble(LSTM, [0, 1]).state_dict(), Ensemble(LSTM, [8, 9])
    other.load_state_dict(state)
    assert largest_difference(other.state_dict(), state) == 0
    bias = state.pop("head.bias")
    for wrong in ({}, {"head.bias": bias[:1]}, {"head.bias": bias, "extra": bias}):
        with pytest.raises(ValueError, match=r"missing, unknown or .*(head\.bias|extra)"):
            other.load_state_dict(state | wrong)


def test_no_method_reads_what_is_no_digit():
    """Its row of the look-up table would be that of another replica."""
    ensemble, bad = Ensemble(SRN, [0, 1]), torch.full((4, 5), 10)
    fit = partial(training.fit, ensemble, dev=sequences(5), steps=1)
    for method in (ensemble.logits, ensemble.trace, lambda X: fit(Split(X, X[:, 0]))):
        with pytest.raises(ValueError, match=r"numbers 0\.\.9"):
            method(bad)


def test_starts_of_one_seed_share_embedding_and_head():
    a = initial_parameters(LSTM, 3)
    b = initial_parameters(ModelSpec(cell="srn", init="zero"), 3)
    for name in ("embedding.weight", "head.weight", "head.bias"):
        assert torch.equal(a[name], b[name])
    assert float(b["recurrent.layers.0.W"].abs().max()) == 0
    assert 0.29 < float(a["recurrent.layers.0.W_i"].abs().max()) <= (6 / 64) ** 0.5
    assert 0.3 < float(a["recurrent.layers.0.b_f"].abs().max()) <= (6 / 33) ** 0.5
