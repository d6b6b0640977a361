"""A step of many small operations as one launch: CUDA graphs.

A GPU takes some microseconds to begin an operation, longer than a small one lasts. A graph holds
all launches of a call with their addresses, and repeats them as one.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
# the first step of each shape is plain, as it must be
warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
_one_at_a_time = threading.Lock()  # trainings in other threads may replay meanwhile


class Captured:
    """`call`, which takes and returns tensors, as a graph for each shape of its inputs.

    The first call of a shape is a plain one, which also sets up what a graph cannot: libraries,
    workspaces, an optimiser's state. The second is captured, which computes nothing, and replayed.
    A replay runs no Python, so `call` must not decide by values, nor wait for the device. All that
    it reads or changes besides its inputs must stay where it is: parameters, moments, workspaces.
    """

    def __init__(self, call: Callable[..., Tensors]) -> None:
        self._call, self._stream = call, torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()  # one for all: only one graph runs at a time
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensors] | None] = {}

    def __call__(self, *inputs: Tensor) -> Tensors:
        shapes, current = tuple((X.shape, X.dtype) for X in inputs), torch.cuda.current_stream()
        if shapes not in self._graphs:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                outputs = self._call(*inputs)
            current.wait_stream(self._stream)
            self._graphs[shapes] = None
            return outputs
        if self._graphs[shapes] is None:
            self._graphs[shapes] = self._capture([X.clone() for X in inputs])
        graph, held, outputs = self._graphs[shapes]
        for old, new in zip(held, inputs, strict=True):
            old.copy_(new)
        graph.replay()
        return tuple(output.clone() for output in outputs)  # the next replay overwrites them

    def _capture(self, held: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensors]:
        graph, options = torch.cuda.CUDAGraph(), {"pool": self._pool, "stream": self._stream}
        with (
            _one_at_a_time,
            torch.cuda.graph(graph, capture_error_mode="thread_local", **options),
        ):
            outputs = self._call(*held)
        return graph, held, outputs


def captured(call: Callable[..., Tensors], device: torch.device) -> Callable[..., Tensors]:
    """`call` as graphs on a GPU, as it is elsewhere."""
    return Captured(call) if device.type == "cuda" else call
