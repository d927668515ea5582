"""Origins of data and the one type by which a config holds any of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rec.sources.base import PROBLEMS, Shard, Source, SourceError
from rec.sources.exercises import ExercisesSource
from rec.sources.movielens import MovieLensSource
from rec.sources.synthetic import SyntheticSource

AnySource = Annotated[
    MovieLensSource | ExercisesSource | SyntheticSource, Field(discriminator="kind")
]

__all__ = [
    "PROBLEMS",
    "AnySource",
    "ExercisesSource",
    "MovieLensSource",
    "Shard",
    "Source",
    "SourceError",
    "SyntheticSource",
]
