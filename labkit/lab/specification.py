"""A specification is the task: a frozen description of one training, which can carry itself out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, dataclass_transform

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt
from pydantic.dataclasses import dataclass

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]  # called with (done, total)
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, strict=False)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def specification(cls: type) -> Any:
    """Make a class a frozen dataclass whose fields pydantic checks, strictly and by name.

    A wrong type or range, or an unknown field, raises `pydantic.ValidationError`, a ValueError.
    """
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return dataclass(frozen=True, kw_only=True, config=config)(cls)


class Specification:
    """One training: its fields, with the code it runs, are the key under which it is kept."""

    @property
    def title(self) -> str:
        """What the progress line shows; no part of the key."""
        return type(self).__name__

    def train(self, progress: Progress) -> Arrays:
        """Carry the training out and return its arrays by name, any shapes."""
        raise NotImplementedError
