"""Batches, the best checkpoint and clipping."""

import pytest
import torch

from labkit.memory import training
from labkit.memory.ensemble import Ensemble
from labkit.memory.model import ModelSpec
from labkit.memory.training import FitSettings, Split


def numbered(N: int, R: int | None = None) -> Split:
    """Sequences whose first entry tells their row, so that a batch shows where it comes from."""
    shape = (N,) if R is None else (R, N)
    y = torch.arange(N).expand(shape).contiguous()
    return Split(y.unsqueeze(-1).expand(*shape, 3).contiguous(), y)


def take(stream, count: int) -> list[Split]:
    return [next(stream) for _ in range(count)]


def test_without_shuffling_batches_come_in_file_order_again_and_again():
    stream = training.batches(numbered(10), FitSettings(batch_size=4), (0, 1))
    assert [b.y.tolist() for b in take(stream, 4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
        [0, 1, 2, 3],
    ]


def test_shuffled_epochs_hold_every_row_once_and_depend_on_the_own_seed_only():
    settings = FitSettings(batch_size=4, shuffle=True)
    epochs = {}
    for seeds in ((0, 1), (1,)):
        found = take(training.batches(numbered(10, len(seeds)), settings, seeds), 6)
        for batch in found:
            assert torch.equal(batch.X[..., 0], batch.y)
        epochs[seeds] = [torch.cat([b.y for b in found[k : k + 3]], 1) for k in (0, 3)]
        for epoch in epochs[seeds]:
            for row in epoch:
                assert sorted(row.tolist()) == list(range(10))
    first, second = epochs[0, 1]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert torch.equal(first[1], epochs[1,][0][0])


def test_fit_keeps_the_best_checkpoint_of_each_replica():
    """With a large step the accuracy goes up and down; what stays is the best, not the last."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(0, 10, (40, 4), generator=generator)
    data = Split(X, X[:, :2].sum(1))
    ensemble = Ensemble(ModelSpec("srn", "xavier"), [0, 1, 2])
    calls = []
    history = training.fit(
        ensemble,
        data,
        data,
        FitSettings(steps=105, evaluate_every=10, lr=0.1),
        progress=lambda done, total: calls.append((done, total)),
    )
    best = history.dev_accuracy.amax(1)
    assert torch.equal(history.best_dev_accuracy, best)
    assert bool((history.dev_accuracy[:, -1] < best).any())
    torch.testing.assert_close(ensemble.evaluate(*data)[1], best)
    assert history.step.tolist() == [*range(10, 101, 10), 105]
    assert calls[-1] == (105, 105)
    assert history.train_loss.shape == (3, 11)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"batch_size": -8}, ValueError, "batch_size must be at least 1, got -8"),
        ({"evaluate_every": 2.5}, TypeError, "evaluate_every must be an int"),
        ({"lr": 0.0}, ValueError, "lr must be positive"),
    ],
)
def test_bad_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        FitSettings(**arguments)


def test_clipping_against_torch():
    """Globally as `clip_grad_norm_` does it for each replica, per tensor one tensor at a time."""
    X, y = torch.randint(0, 10, (8, 6)), torch.randint(0, 19, (8,))
    for clip in (training.clip_global, training.clip_per_tensor):
        ensemble = Ensemble(ModelSpec("lstm", "xavier"), [0, 1], dtype=torch.float64)
        ensemble.loss_and_gradients(X, y, reduction="sum")
        expected = []
        for r in range(2):
            tensors = []
            for gradient in ensemble.gradients.values():
                parameter = torch.nn.Parameter(torch.zeros_like(gradient[r]))
                parameter.grad = gradient[r].clone()
                tensors.append(parameter)
            groups = [tensors] if clip is training.clip_global else [[p] for p in tensors]
            for group in groups:
                torch.nn.utils.clip_grad_norm_(group, 0.5)
            expected.append([p.grad for p in tensors])
        clip(ensemble, 0.5)
        for k, gradient in enumerate(ensemble.gradients.values()):
            for r in range(2):
                torch.testing.assert_close(gradient[r], expected[r][k], rtol=1e-5, atol=1e-9)
