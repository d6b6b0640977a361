"""Chapters 02 and 03: how far back a network remembers, and what its gates do meanwhile."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from labkit.lab.settings import ChapterSettings, Count


def _distinct(values: list) -> list:
    if len({*values}) < len(values):
        raise ValueError("every value may stand there once")
    return values


T = TypeVar("T")
Distinct = Annotated[list[T], Field(min_length=1), AfterValidator(_distinct)]
Length = Literal[5, 10, 15, 20, 25, 30, 35]  # the textbook has files for these


class SweepSettings(ChapterSettings):
    """Parameters of chapter 02; `settings` name the recurrent start and the embedding."""

    num_seeds: Count
    lengths: Annotated[Distinct[Length], Field(min_length=2)]
    settings: Distinct[Literal["zero/trained", "zero/frozen", "xavier/trained", "xavier/frozen"]]
    steps: Count
    evaluate_every: Count
    shuffled_lengths: Distinct[Length]
    sound_lengths: Distinct[Annotated[int, Field(ge=3, le=100)]]
    explosion_seeds: Count
    explosion_epochs: Count


class GateSettings(ChapterSettings):
    """Parameters of chapter 03; `starts` are those of the recurrent weights."""

    num_seeds: Count
    starts: Distinct[Literal["zero", "xavier"]]
    steps: Count
    evaluate_every: Count
