"""Chapter 04: film reviews."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from labkit.lab.settings import ChapterSettings, Count

# reviews of a corpus that may train, and its dev reviews
SIZES = {"generated": (1_600, 400), "imdb": (20_000, 5_000)}
BATCH = 64
SOURCES = "labkit.film.corpus"  # lists what `labkit data` fetches


class Settings(ChapterSettings):
    """The parameters of chapter 04."""

    corpus_name: Literal["generated", "imdb"]
    vocab_size: Annotated[int, Field(ge=3)]
    max_len: Count
    epochs: Count
    num_seeds: Count  # of every setting of both studies
    everything: bool
    lr: Annotated[float, Field(gt=0)]
    small_train: Annotated[int, Field(ge=BATCH, multiple_of=4)]  # the stack trains on half of them
    small_dev: Annotated[int, Field(ge=2, multiple_of=2)]
    small_epochs: Annotated[int, Field(ge=1, le=100)]  # where the report's own are more
    sgd_epochs: Annotated[int, Field(ge=1, le=100)]  # likewise, of the report's trainings by SGD
    small_hidden: Count
    small_words: Count  # that a review is cut to and padded to, in front; study B: 592
    glove_words: Annotated[int, Field(ge=0, le=400_000)]
    speed_rounds: Count

    @model_validator(mode="after")
    def _fits_the_corpus(self) -> Settings:
        train, dev = SIZES[self.corpus_name]
        limits = {"small_train": train, "small_dev": dev}
        for name, most in limits.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} is at most {most:,} for corpus {self.corpus_name!r}")
        return self
