"""Chapters 02 and 03: how far back a network remembers, and what its gates do meanwhile."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from labkit.lab.settings import ChapterSettings, Count

Length = Literal[5, 10, 15, 20, 25, 30, 35]  # the textbook has files for these


def _distinct(values: list) -> list:
    if len({*values}) < len(values):
        raise ValueError("every value may stand there once")
    return values


Distinct = AfterValidator(_distinct)


class SweepSettings(ChapterSettings):
    """Parameters of chapter 02; `settings` name the recurrent start and the embedding."""

    num_seeds: Count
    lengths: Annotated[list[Length], Field(min_length=2), Distinct]
    settings: Annotated[
        list[Literal["zero/trained", "zero/frozen", "xavier/trained", "xavier/frozen"]],
        Field(min_length=1),
        Distinct,
    ]
    steps: Count
    evaluate_every: Count
    shuffled_lengths: Annotated[list[Length], Field(min_length=1), Distinct]
    sound_lengths: Annotated[
        list[Annotated[int, Field(ge=3, le=100)]], Field(min_length=1), Distinct
    ]
    explosion_seeds: Count
    explosion_epochs: Count


class GateSettings(ChapterSettings):
    """Parameters of chapter 03; `starts` are those of the recurrent weights."""

    num_seeds: Count
    starts: Annotated[list[Literal["zero", "xavier"]], Field(min_length=1), Distinct]
    steps: Count
    evaluate_every: Count
