"""Replicas that read sequences of different lengths, trained at once.

Shorter sequences are aligned at their end, with `PAD` in front. The input's part of every gate is
zero there, so a state that starts at zero stays exactly zero (σ(0) tanh(0) = 0) until the first
digit: each sequence is read as if it stood alone. `PAD` has no row in the look-up table's gradient,
so padding teaches nothing. What it costs is time: every step is computed for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from labkit.classifier import ModelSpec
from labkit.ensemble import Ensemble, _Workspace

PAD = -1


def aligned_at_the_end(parts: Sequence[Tensor]) -> Tensor:
    """One batch for each replica, (B, T_r) each, as digits (R, B, T) with `PAD` in front."""
    T = max(part.shape[-1] for part in parts)
    return torch.stack(
        [torch.nn.functional.pad(part, (T - part.shape[-1], 0), value=PAD) for part in parts]
    )


class MixedLengthEnsemble(Ensemble):
    """An `Ensemble` whose sequences may begin with `PAD`, in any number up to all but one step."""

    def __init__(self, spec: ModelSpec, seeds: Sequence[int], **options: Any) -> None:
        super().__init__(spec, seeds, **options)
        # the table has one more row for each replica, that of PAD
        self._row_offset = self._row_offset // spec.vocab_size * (spec.vocab_size + 1)

    def _rows(self, X: Tensor) -> Tensor:
        is_pad = X == PAD
        if bool((is_pad[..., 1:] & ~is_pad[..., :-1]).any()):
            raise ValueError("padding must stand in front of the digits, not between or after them")
        if bool(is_pad[..., -1:].any()):
            raise ValueError("every sequence needs at least one digit")
        rows = super()._rows(X.masked_fill(is_pad, 0))
        where = is_pad.expand(len(self), *is_pad.shape[-2:]).permute(2, 0, 1)
        return rows + where * self.spec.vocab_size  # digit 0 moves to the row behind the digits

    def _read(self, rows: Tensor, ablate: Mapping[str, float | Tensor] | None = None) -> _Workspace:
        if ablate:
            raise ValueError("a gate that is set to a constant would write into the padding")
        work, p = self._workspace(rows.shape[0], rows.shape[2]), self.parameters
        table = torch.baddbmm(p["b"], p["embedding"], p["W"])  # (R, V, G*H)
        table = torch.nn.functional.pad(table, (0, 0, 0, 1))  # a row of zeros for PAD
        torch.index_select(table.flatten(0, 1), 0, rows.flatten(), out=work.Z.flatten(0, 2))
        if self.spec.cell == "srn":
            self._run_srn(work)
        else:
            self._run_lstm(work, {})
        return work
