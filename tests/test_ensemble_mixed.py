"""Replicas with sequences of different lengths against each of them trained alone."""

from __future__ import annotations

import pytest
import torch

from labkit.classifier import ModelSpec
from labkit.ensemble import Ensemble
from labkit.ensemble_mixed import PAD, MixedLengthEnsemble, aligned_at_the_end

SPECS = [
    ModelSpec(cell, "xavier", trained) for cell in ("srn", "lstm") for trained in (True, False)
]
LENGTHS = (12, 5, 3, 12, 2)
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


def batch(T: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    X = torch.randint(0, 10, (8, T), generator=torch.Generator().manual_seed(seed))
    return X, X[:, :2].sum(1)


def adam(ensemble: Ensemble) -> torch.optim.Optimizer:
    return torch.optim.Adam([ensemble.trainable], lr=1e-3, fused=True)


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_200_steps_of_mixed_lengths_equal_200_steps_alone(spec, dtype):
    seeds = range(len(LENGTHS))
    mixed = MixedLengthEnsemble(spec, seeds, dtype=dtype)
    alone = [Ensemble(spec, [seed], dtype=dtype) for seed in seeds]
    optimisers = [adam(mixed), *map(adam, alone)]
    for step in range(200):
        parts = [batch(T, 1000 * step + seed) for seed, T in zip(seeds, LENGTHS, strict=True)]
        X = aligned_at_the_end([X for X, _ in parts])
        losses = mixed.loss_and_gradients(X, torch.stack([y for _, y in parts]))
        own = [one.loss_and_gradients(*part) for one, part in zip(alone, parts, strict=True)]
        assert (losses - torch.cat(own)).abs().max() < LIMIT[dtype]
        for optimiser in optimisers:
            optimiser.step()
    for seed, one in zip(seeds, alone, strict=True):
        ours, theirs = mixed.parameters_of(seed), one.parameters_of(0)
        for name in theirs:
            assert (ours[name] - theirs[name]).abs().max() < LIMIT[dtype], name


def test_states_stay_at_zero_until_the_first_digit():
    ensemble = MixedLengthEnsemble(ModelSpec("lstm", "xavier"), [0, 1])
    X = aligned_at_the_end([batch(6, 0)[0], batch(4, 1)[0]])
    trace = ensemble.trace(X)
    for name in "ch":
        assert torch.equal(trace[name][1, :, :2], torch.zeros_like(trace[name][1, :, :2]))
        assert (trace[name][1, :, 2] != 0).all()
        assert (trace[name][0, :, 0] != 0).all()


def test_without_padding_it_is_an_ensemble():
    X, y = batch(5, 0)
    plain, mixed = (
        kind(ModelSpec("lstm", "xavier"), [0, 1]) for kind in (Ensemble, MixedLengthEnsemble)
    )
    assert torch.equal(plain.loss_and_gradients(X, y), mixed.loss_and_gradients(X, y))
    assert torch.equal(plain.trainable.grad, mixed.trainable.grad)
    assert torch.equal(plain.evaluate(X, y)[0], mixed.evaluate(X, y)[0])


def test_sequences_are_aligned_at_their_end():
    found = aligned_at_the_end([torch.tensor([[1, 2, 3]]), torch.tensor([[4]])])
    assert found.tolist() == [[[1, 2, 3]], [[PAD, PAD, 4]]]


@pytest.mark.parametrize(
    "X, message",
    [
        ([[1, PAD, 2]], "in front of the digits"),
        ([[1, 2, PAD]], "in front of the digits"),
        ([[PAD, PAD, PAD]], "at least one digit"),
        ([[PAD, 10, 1]], "digits 0..9"),
        ([[PAD, -2, 1]], "digits 0..9"),
    ],
)
def test_padding_elsewhere_and_other_digits_are_refused(X, message):
    ensemble = MixedLengthEnsemble(ModelSpec("lstm"), [0])
    with pytest.raises(ValueError, match=message):
        ensemble.logits(torch.tensor(X))


def test_a_gate_cannot_be_set():
    ensemble = MixedLengthEnsemble(ModelSpec("lstm"), [0])
    with pytest.raises(ValueError, match="write into the padding"):
        ensemble.logits(torch.tensor([[PAD, 1]]), ablate={"i": 1.0})
