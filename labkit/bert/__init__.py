"""Chapter 05, BERT fine-tuned and taken apart: the parameters of its notebook and their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from labkit.film import SIZES
from labkit.lab.settings import ChapterSettings, Count

SOURCES = "labkit.bert.model"  # where the command `labkit data` finds the models
MODELS = ("tiny", "sentence-transformers/all-MiniLM-L6-v2", "google-bert/bert-base-uncased")

Pieces = Annotated[int, Field(ge=16, le=512)]
Reviews = Annotated[int, Field(ge=20, multiple_of=2)]  # half of either label
Rate = Annotated[PositiveFloat, Field(le=1)]


class Settings(ChapterSettings):
    """The parameters of notebook 05."""

    corpus_name: Literal["imdb", "generated"]
    model_name: str
    max_len: Pieces
    parts: Annotated[list[Literal["head", "tail", "head_tail"]], Field(min_length=1)]
    sizes: Annotated[list[Reviews], Field(min_length=1)]
    main_size: int
    num_dev: Reviews
    tuned_seeds: list[NonNegativeInt]
    tuned_epochs: list[Count]
    lr: Rate
    head_lr: Rate
    batch_size: Count
    random_seeds: Count
    pooling_size: int
    recurrent_seeds: list[NonNegativeInt]
    recurrent_epochs: list[Count]
    source_settings: list[Literal["1/1e-05", "1/0.001", "1/5e-05", "2", "3", "4", "5"]]
    source_seeds: Count
    source_epochs: Count
    source_batch: Count
    source_max_len: Pieces
    test: Literal["held_out", "all"]
    precision: Literal["float32", "bfloat16", "auto"]

    @model_validator(mode="after")
    def _they_fit_each_other(self) -> Self:
        train, dev = SIZES[self.corpus_name]
        names = ("tuned_seeds", "tuned_epochs", "recurrent_seeds", "recurrent_epochs")
        if self.model_name not in MODELS and not Path(self.model_name).expanduser().is_dir():
            raise ValueError(f"model_name must be a folder or one of {', '.join(MODELS)}")
        if self.sizes != sorted({*self.sizes}) or self.sizes[-1] > train:
            raise ValueError(f"sizes must rise, and end at {train:,} at most")
        if self.num_dev > dev:
            raise ValueError(f"num_dev must be at most {dev:,}")
        if self.main_size not in self.sizes or self.pooling_size not in (0, *self.sizes):
            raise ValueError("main_size must be one of the sizes, pooling_size too, or 0")
        if wrong := [name for name in names if len(getattr(self, name)) != len(self.sizes)]:
            raise ValueError(f"{wrong[0]} must have {len(self.sizes)} entries, one for each size")
        at = self.sizes.index(self.main_size)
        if not self.tuned_seeds[at] or not self.recurrent_seeds[at]:
            raise ValueError("tuned_seeds and recurrent_seeds must not be 0 at main_size")
        return self
