"""Chapter 01, the LSTM operator: the layers that the lab uses, and what they are measured by."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from labkit.lab.settings import ChapterSettings, Count


class Settings(ChapterSettings):
    """What chapter 01 can be set to."""

    parity_shapes: Count
    gradient_seeds: Count
    gradient_steps: Annotated[int, Field(ge=2)]
    batch_size: Count
    seq_len: Count
    input_size: Count
    hidden_size: Count
    warmup_runs: Annotated[int, Field(ge=0)]
    timed_runs: Count
