"""Chapter 06, stacked LSTM cells that follow a sine."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from labkit.lab.settings import ChapterSettings, Count

Batches = Annotated[int, Field(ge=100)]  # the published losses are those of the first hundred
Rate = Annotated[float, Field(gt=0, le=100)]  # weights may overflow beyond
Rates = Annotated[list[Rate], Field(min_length=1)]


class Settings(ChapterSettings):
    """The parameters of notebook 06."""

    num_seeds: Annotated[int, Field(ge=1, le=1_000)]  # the scan's seeds begin 1,000 later
    batches: Batches
    contrast_batches: Batches
    scan_seeds: Count
    scan_batches: Annotated[int, Field(ge=20)]  # of all trainings whose rate is scanned
    sgd_rates: Rates
    adam_rates: Rates
    study_seeds: Count
    study_rates: Rates
    free_batches: Count
    free_steps: Annotated[int, Field(ge=63)]  # one period
