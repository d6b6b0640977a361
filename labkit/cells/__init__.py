"""Chapter 01, the LSTM operator, and its appendix: the lab's layers, and how they are measured."""

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


class LadderSettings(ChapterSettings):
    """What the appendix can be set to."""

    warmup_runs: Annotated[int, Field(ge=0)]
    timed_runs: Count
    large_runs: Count
    replicas: Annotated[list[Count], Field(min_length=2)]
    kernel_steps: Count
