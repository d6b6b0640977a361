"""Chapter 05, BERT fine-tuned and taken apart: the parameters of its notebook and their bounds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from labkit.film import SIZES
from labkit.lab.settings import ChapterSettings, Count

SOURCES = "labkit.bert.model"  # where the command `labkit data` finds the models

Pieces = Annotated[int, Field(ge=16, le=512)]
Reviews = Annotated[int, Field(ge=20, multiple_of=2)]  # half of either label
Rate = Annotated[PositiveFloat, Field(le=1)]


class Settings(ChapterSettings):
    """The parameters of notebook 05."""

    corpus_name: Literal["imdb", "generated"]
    model_name: str
    max_len: Pieces
    part: Literal["head", "tail"]
    whole_len: Pieces
    padded_len: Pieces
    sizes: Annotated[list[Reviews], Field(min_length=1)]
    main_size: int
    num_dev: Reviews
    num_seeds: Count
    tuned_epochs: list[Count]
    random_epochs: Count
    recurrent_epochs: list[Count]
    lr: Rate
    head_lr: Rate
    batch_size: Count
    source_reviews: Annotated[list[Reviews], Field(min_length=2, max_length=2)]
    source_epochs: Annotated[list[Count], Field(min_length=2, max_length=2)]
    source_batch: Count
    source_max_len: Pieces
    source_part: Literal["head", "tail"]
    source_rate: Literal[0, 1e-5, 5e-5, 1e-3]
    test: Literal["held_out", "all"]
    precision: Literal["float32", "bfloat16", "auto"]

    @model_validator(mode="after")
    def _they_fit_each_other(self) -> Self:
        train, _ = SIZES[self.corpus_name]
        if self.sizes != sorted({*self.sizes}) or max(*self.sizes, *self.source_reviews) > train:
            raise ValueError(f"sizes must rise, and all reviews are {train:,}")
        if self.main_size not in self.sizes:
            raise ValueError("main_size must be one of the sizes")
        for name in ("tuned_epochs", "recurrent_epochs"):
            if len(getattr(self, name)) != len(self.sizes):
                raise ValueError(f"{name} must have {len(self.sizes)} entries, one for each size")
        return self
