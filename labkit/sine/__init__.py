"""Chapter 06: three stacked LSTM cells follow a sine. What may be set, and within which bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from labkit.lab.settings import ChapterSettings, Count


def _distinct(rates: list[float]) -> list[float]:
    if len({f"{rate:g}" for rate in rates}) < len(rates):
        raise ValueError("every rate may stand there once")
    return rates


# the published losses are those of the first hundred batches
Batches = Annotated[int, Field(ge=100)]
# beyond a rate of 100 the weights may overflow
Rate = Annotated[float, Field(gt=0, le=100)]
Rates = Annotated[list[Rate], Field(min_length=1), AfterValidator(_distinct)]


class Settings(ChapterSettings):
    """The parameters of notebook 06; what passes here can be run."""

    num_seeds: Annotated[int, Field(ge=1, le=1_000)]  # the scan's seeds begin 1,000 later
    batches: Batches
    contrast_batches: Batches
    scan_seeds: Count
    scan_batches: Count
    sgd_rates: Rates
    adam_rates: Rates
    free_batches: Count
    free_steps: Annotated[int, Field(ge=63)]  # one period
    chunk: Count
