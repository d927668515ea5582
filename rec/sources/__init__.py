"""Origins of data and the one type by which a config holds any of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rec.sources.base import FILES, Shard, Source, SourceError
from rec.sources.exercises import ExercisesSource
from rec.sources.folder import FolderSource
from rec.sources.movielens import MovieLensSource
from rec.sources.synthetic import SyntheticSource

AnySource = Annotated[
    MovieLensSource | ExercisesSource | FolderSource | SyntheticSource, Field(discriminator="kind")
]

__all__ = [
    "FILES",
    "AnySource",
    "ExercisesSource",
    "FolderSource",
    "MovieLensSource",
    "Shard",
    "Source",
    "SourceError",
    "SyntheticSource",
]
