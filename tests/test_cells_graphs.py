"""Captured graphs, on a stand-in for CUDA that keeps tensors where they are, as a graph does."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labkit.cells import graphs
from labkit.sine import study
from labkit.sine.study import SineTraining

WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def tensors(values) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Graph(TorchDispatchMode):
    """Notes what is computed while it is active, undoes it, and repeats it in the same places."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.before, self.replays = [], [], 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        if call in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        inputs = dict(zip((a.name for a in call._schema.arguments), args, strict=False))
        inputs |= kwargs or {}
        written = {a.name for a in call._schema.arguments if a.alias_info and a.alias_info.is_write}
        self.before += [(t, t.clone()) for n in written for t in tensors(inputs.get(n))]
        result = call(*args, **(kwargs or {}))
        self.calls.append((call, args, kwargs or {}, tensors(result)))
        return result

    def undo(self) -> None:
        for tensor, value in reversed(self.before):
            tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for call, args, kwargs, places in self.calls:
            for place, value in zip(places, tensors(call(*args, **kwargs)), strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)


@pytest.fixture
def made(monkeypatch) -> list[Graph]:
    """The graphs that were captured."""
    made, stream = [], SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def capture(graph, *, pool, stream, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        made.append(graph)
        with graph:
            yield
        graph.undo()

    stand_ins = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value, raising=False)
    return made


def test_every_replay_reads_its_inputs_and_changes_what_the_call_would(made):
    total = torch.zeros(2)

    def call(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total.add_(x.sum(0))
        return x * 2, total + 1

    captured, results = graphs.Captured(call), []
    inputs = [torch.full((n, 2), float(k)) for k, n in enumerate((3, 3, 5, 3, 5, 5, 3))]
    for x in inputs:
        results.append((captured(x), total.clone()))
    assert [graph.replays for graph in made] == [3, 2]  # of each shape all calls but the first
    expected = torch.zeros(2)
    for x, ((double, beyond), now) in zip(inputs, results, strict=True):
        expected += x.sum(0)
        assert torch.equal(now, expected)
        assert torch.equal(double, 2 * x)  # no later replay has changed it
        assert torch.equal(beyond, expected + 1)


def test_a_step_that_waits_for_the_device_cannot_be_captured(made):
    captured = graphs.Captured(lambda x: (x * int(x.max()),))
    captured(torch.ones(2))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(torch.ones(2))


@pytest.mark.parametrize("fields", [{}, {"optimiser": "sgd"}, study.FORECASTERS["every/mixed"]])
def test_a_sine_net_trains_by_graphs_as_without(made, monkeypatch, fields):
    training = SineTraining(seeds=[0, 3], **{**fields, "batches": 40, "batch_size": 3})
    plain = training.train(lambda done, total: None)
    assert not made
    steps = []

    def captured(call, device):
        steps.append(graphs.Captured(call))
        return steps[0]

    monkeypatch.setattr(study, "captured", captured)
    by_graphs = training.train(lambda done, total: None)
    assert sum(graph.replays for graph in made) == 40 - len(steps[0]._graphs) > 10
    for name, values in plain.items():
        assert (values == by_graphs[name]).all(), name
