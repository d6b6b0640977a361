"""Batches, the best checkpoint, what a specification trains, and the exploding gradient."""

import numpy as np
import pytest
import torch

from labkit.lab import machine
from labkit.memory import data as digit_sum
from labkit.memory import training
from labkit.memory.data import Split
from labkit.memory.model import Ensemble, ModelSpec, SequenceClassifier
from labkit.memory.training import DigitSumTraining

SRN, LSTM = ModelSpec(cell="srn"), ModelSpec(cell="lstm")
SHORT = {"length": 5, "steps": 60, "evaluate_every": 20}
NUMBERED = Split(torch.arange(10).view(10, 1).expand(10, 3), torch.arange(10))


def test_without_shuffling_batches_come_in_file_order_again_and_again():
    stream = training.batches(NUMBERED, (0, 1), batch_size=4)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    assert [next(stream).y.tolist() for _ in range(4)] == [[rows, rows] for rows in expected]


def test_shuffled_epochs_hold_every_row_once_and_depend_on_the_replicas_seed_only():
    epochs = {}
    for seeds in ((0, 1), (1,)):
        stream = training.batches(NUMBERED, seeds, batch_size=4, shuffle=True)
        read = [next(stream) for _ in range(6)]
        assert all(torch.equal(batch.X[..., 0], batch.y) for batch in read)
        epochs[seeds] = [torch.cat([b.y for b in read[k : k + 3]], 1) for k in (0, 3)]
        for epoch in epochs[seeds]:
            assert all(sorted(row.tolist()) == list(range(10)) for row in epoch)
    first, second = epochs[0, 1]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert torch.equal(first[1], epochs[1,][0][0])


def test_fit_keeps_the_best_checkpoint_of_each_replica():
    """With a large step the accuracy goes up and down; what stays is the best, not the last."""
    X = torch.randint(0, 10, (40, 4), generator=torch.Generator().manual_seed(0))
    data, ensemble, states = Split(X, X[:, :2].sum(1)), Ensemble(SRN, [0, 1, 2]), []
    seen = {
        "progress": lambda *_: states.append((ensemble.evaluate(*data)[1], ensemble.state_dict()))
    }
    arrays = training.fit(ensemble, data, data, 105, 10, lr=0.1, **seen)
    curve = torch.stack([accuracy for accuracy, _ in states], 1)
    best, at = curve.max(1)
    assert torch.equal(arrays["dev_accuracy"], best)
    assert bool((curve[:, -1] < best).any())
    for name, value in ensemble.state_dict().items():
        first = [states[k][1][name][r] for r, k in enumerate(at)]  # of several, the earliest
        assert torch.equal(value, torch.stack(first))
    assert arrays["step"].tolist() == [*range(10, 101, 10), 105]
    assert arrays["train_loss"].shape == arrays["dev_loss"].shape == (3, 11)


def test_replicas_take_the_kernel_where_the_machine_has_that_road(monkeypatch):
    sizes = {"cell": "lstm", "embedding_size": 16, "hidden_size": 32}
    for found, hidden_size, way in (
        ("kernel", 32, training.by_kernel),
        ("kernel", 5, training.by_operators),  # a size that no product on a GPU can have
        ("graphs", 32, training.by_operators),
        (None, 32, training.by_operators),  # what this machine finds for a CPU
    ):
        with monkeypatch.context() as patch:
            if found:
                other = machine.Road(found, "cuda", 1, "a test")
                patch.setattr(machine, "find_road", lambda work, device, other=other: other)
            model = ModelSpec(**sizes | {"hidden_size": hidden_size})
            assert training.road(Ensemble(model, [0])) is way


@pytest.mark.parametrize("protocol", ["published", "sound"])
def test_scores_belong_to_the_stored_parameters(protocol):
    """The dev score and the test score are those of the checkpoint that is handed back."""
    specification = DigitSumTraining(model=LSTM, seeds=[0, 3], protocol=protocol, **SHORT)
    arrays = specification.train()
    ensemble = specification.load(arrays)
    data, kinds = digit_sum.load_published(5), {"dev": "dev_accuracy", "test": "test_accuracy"}
    if protocol == "sound":  # the second replica's own data
        data = digit_sum.sound_data(5, seed=3)
        kinds = {kind: f"test_accuracy_{kind}" for kind in ("seen_pairs", "unseen_pairs")}
    model = SequenceClassifier(LSTM)  # the readable model answers the same
    model.load_state_dict(ensemble.parameters_of(1))
    for kind, name in kinds.items():
        X, y = data[kind]
        accuracy = (model(X).argmax(1) == y).float().mean().item()
        assert ensemble.evaluate(X, y)[1][1].item() == pytest.approx(accuracy, abs=1e-6)
        assert arrays[name][1] == pytest.approx(accuracy, abs=1e-6)


def test_the_order_of_the_data_tells_published_from_shuffled_and_a_second_run_is_bit_equal():
    published, again, shuffled = (
        DigitSumTraining(model=SRN, seeds=[0], protocol=protocol, **SHORT).train()
        for protocol in ("published", "published", "shuffled")
    )
    assert all(np.array_equal(value, again[name]) for name, value in published.items())
    for name in ("parameters.head.bias", "train_loss"):
        assert not np.array_equal(published[name], shuffled[name])


def test_a_specification_names_its_measures():
    base = {"model": LSTM, "length": 10, "seeds": [0, 1]}
    assert DigitSumTraining(**base).name == "published/lstm/xavier/trained/10"
    frozen = ModelSpec(cell="lstm", init="zero", train_embedding=False)
    assert DigitSumTraining(**base | {"model": frozen}).name == "published/lstm/zero/frozen/10"


@pytest.mark.parametrize("together", [True, False])
def test_clipping_against_torch(together):
    """Globally as `clip_grad_norm_` does it for each replica, per tensor one tensor at a time."""
    ensemble = Ensemble(LSTM, [0, 1], dtype=torch.float64)
    X, y = torch.randint(0, 10, (8, 6)), torch.randint(0, 19, (8,))
    ensemble.loss_and_gradients(X, y, reduction="sum")
    replicas = []
    for r in range(2):
        tensors = [torch.nn.Parameter(g[r].clone()) for g in ensemble.gradients.values()]
        for parameter in tensors:
            parameter.grad = parameter.detach().clone()
        for group in [tensors] if together else [[p] for p in tensors]:
            torch.nn.utils.clip_grad_norm_(group, 0.5)
        replicas.append([parameter.grad for parameter in tensors])
    training.clip_gradients(ensemble, 0.5, together=together)
    for gradient, *expected in zip(ensemble.gradients.values(), *replicas, strict=True):
        torch.testing.assert_close(gradient, torch.stack(expected), rtol=1e-5, atol=1e-9)


def test_without_clipping_gradients_explode_and_clipping_bounds_the_loss():
    runs = {clip: training.explode([0, 1, 2], clip) for clip in ("none", "per_tensor", "global")}
    assert runs["none"]["gradient"].amax() > 1000
    assert runs["none"]["loss"].amax() > 10 * runs["global"]["loss"].amax()
    assert runs["none"]["saturated"].min() > 0.9 > runs["global"]["saturated"].max()
    assert runs["per_tensor"]["gradient"].shape == (3, 250)
