"""The free-exercise-db: exercises with instructions, muscles, equipment and two frames each.

The folder holds exercises.json (a list of objects) and frames/<id>_<n>.jpg. Nothing in it
tells when an exercise was published: published_at is null, so splits by time fall back to
whatever the reader does without one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from rec.artifacts import join
from rec.config import Config
from rec.schema import SchemaError, check, check_unique
from rec.sources.base import Shard, SourceError, problem_table, ranges
from rec.sources.files import FIRST_ROW, fingerprint, list_files, read_file, read_media

_EXPECTED = "an exercises folder with exercises.json and frames/"
_FILE = "exercises.json"


class _Exercise(BaseModel):
    """One object of exercises.json, its fields named and typed as in the file."""

    model_config = ConfigDict(strict=True, frozen=True)

    id: Annotated[str, StringConstraints(min_length=1)]
    name: str
    category: str
    equipment: str | None = None
    primary_muscles: list[str] = Field(alias="primaryMuscles")
    secondary_muscles: list[str] = Field(alias="secondaryMuscles")
    instructions: list[str]
    # flat names only, so that no path leads out of the folder
    images: list[Annotated[str, StringConstraints(pattern=r"^frames/[^/]+$")]]

    def categories(self) -> list[str]:
        return [self.category, *([self.equipment] if self.equipment else [])]


class ExercisesSource(Config):
    """Exercises as items with their frames in order."""

    tables: ClassVar[tuple[str, ...]] = ("items", "media")
    gives_files: ClassVar[bool] = False

    kind: Literal["exercises"] = "exercises"
    path: str  # the folder, local or s3://
    num_shards: int = Field(default=4, ge=1)

    def contents(self) -> str:
        return fingerprint(self.path, _EXPECTED)

    def shards(self) -> list[Shard]:
        return [Shard(i, self.num_shards) for i in range(self.num_shards)]

    def read(self, shard: Shard) -> Iterator[tuple[str, pa.Table]]:
        exercises = self._exercises()
        present = list_files(self.path, "frames", _EXPECTED)
        for start, stop in ranges(*shard.bounds(len(exercises))):
            piece = exercises[start:stop]
            yield "items", self._items(piece, start)
            names = [
                (exercise.id, index, image.removeprefix("frames/"))
                for exercise in piece
                for index, image in enumerate(exercise.images)
            ]
            media, problems = read_media(join(self.path, "frames"), names, present)
            yield "media", media
            yield "problems:media", problem_table(problems)

    def _exercises(self) -> list[_Exercise]:
        place = join(self.path, _FILE)
        try:
            rows = json.loads(read_file(self.path, _FILE, _EXPECTED))
        except ValueError as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{place}: not JSON: {error}") from error
        if not isinstance(rows, list) or not rows:
            raise SourceError(f"{place}: expected a list of one object an exercise")
        try:
            exercises = TypeAdapter(list[_Exercise]).validate_python(rows)
        except ValidationError as error:
            first = error.errors()[0]
            row, *path = first["loc"]
            column = ".".join(str(part) for part in path)
            where = f", column '{column}'" if column else ""
            shown = "" if first["type"] == "missing" else f" (got {first['input']!r:.80})"
            raise SchemaError(
                f"{place}{where}, row {int(row) + FIRST_ROW}: {first['msg']}{shown}"
            ) from error
        ids = pa.table({"id": [exercise.id for exercise in exercises]})
        check_unique(ids, "id", place=place, first_row=FIRST_ROW)
        return exercises

    def _items(self, piece: list[_Exercise], start: int) -> pa.Table:
        rows = [
            {
                "item_id": exercise.id,
                "domain": "exercise",
                "title": exercise.name,
                "description": " ".join(exercise.instructions) or None,
                "tags": exercise.primary_muscles + exercise.secondary_muscles,
                "categories": exercise.categories(),
            }
            for exercise in piece
        ]
        table = pa.Table.from_pylist(rows)
        return check(table, "items", place=join(self.path, _FILE), first_row=start + FIRST_ROW)
