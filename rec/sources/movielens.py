"""MovieLens ml-latest-small with plots, keywords, posters and a knowledge graph beside it.

The folder holds movies.csv, descriptions.csv, ratings.csv, tags.csv, relations.csv and
posters/<movieId>.jpg. All films are kept: one without plot or poster is a missing modality.
Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 2015.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rec.artifacts import join
from rec.config import Config
from rec.schema import TIMESTAMP, check, check_unique
from rec.sources.base import Shard, SourceError, problem_table, ranges
from rec.sources.files import FIRST_ROW, fingerprint, list_files, read_csv, read_media, require

_EXPECTED = (
    "a MovieLens folder with movies.csv, descriptions.csv, ratings.csv, tags.csv, "
    "relations.csv and posters/"
)
_YEAR = r"^(?P<title>.*?)\s*\((?P<year>\d{4})(?:\s*[–-]\s*\d{0,4})?\)\s*$"  # noqa: RUF001
_EVENT_ROWS = 16_384  # rows of one yielded ratings, tags or relations table
_ID, _TEXT, _TIME = pa.int64(), pa.string(), pa.timestamp("s")

Problem = tuple[str, int | None, str]


class MovieLensSource(Config):
    """Films as items; ratings as interactions, user tags as edges, film facts as relations.

    published_at is 1 January of the year in the title, and null where the title has none.
    """

    tables: ClassVar[tuple[str, ...]] = ("items", "media", "interactions", "edges", "relations")
    gives_files: ClassVar[bool] = False

    kind: Literal["movielens"] = "movielens"
    path: str  # the folder, local or s3://
    num_shards: int = Field(default=4, ge=1)

    def contents(self) -> str:
        return fingerprint(self.path, _EXPECTED)

    def shards(self) -> list[Shard]:
        return [Shard(i, self.num_shards) for i in range(self.num_shards)]

    def read(self, shard: Shard) -> Iterator[tuple[str, pa.Table]]:
        movies = self._movies()
        known = movies.column("movieId")
        posters = list_files(self.path, "posters", _EXPECTED)
        descriptions, problems = self._known(self._descriptions(), "descriptions.csv", known)
        items = self._items(movies, descriptions)
        if shard.index == 0:  # whole-file problems are told once, not by every shard
            problems += self._stray_posters(posters, known)
            yield "problems", problem_table(problems)
        for start, stop in ranges(*shard.bounds(items.num_rows)):
            piece = items.slice(start, stop - start)
            yield "items", piece
            ids = piece.column("item_id").to_pylist()
            names = [(i, 0, f"{i}.jpg") for i in ids if f"{i}.jpg" in posters]
            media, bad = read_media(join(self.path, "posters"), names, posters)
            yield "media", media
            yield "problems:media", problem_table(bad)
        for name, table, bad in (self._ratings(known), self._tags(known), self._relations(known)):
            for start, stop in ranges(*shard.bounds(table.num_rows), _EVENT_ROWS):
                yield name, table.slice(start, stop - start)
            if shard.index == 0:
                yield f"problems:{name}", problem_table(bad)

    def _place(self, name: str) -> str:
        return join(self.path, name)

    def _csv(self, name: str, **columns: pa.DataType) -> pa.Table:
        return read_csv(self.path, name, columns, _EXPECTED)

    def _movies(self) -> pa.Table:
        movies = self._csv("movies.csv", movieId=_ID, title=_TEXT, genres=_TEXT)
        place = self._place("movies.csv")
        require(movies, ["movieId", "title"], place)
        check_unique(movies, "movieId", place=place, first_row=FIRST_ROW)
        if not movies.num_rows:
            raise SourceError(f"{place}: no rows; expected one film a row")
        return movies

    def _descriptions(self) -> pa.Table:
        table = self._csv("descriptions.csv", movieId=_ID, overview=_TEXT, keywords=_TEXT)
        place = self._place("descriptions.csv")
        require(table, ["movieId"], place)
        check_unique(table, "movieId", place=place, first_row=FIRST_ROW)
        return table

    def _known(
        self, table: pa.Table, name: str, known: pa.ChunkedArray
    ) -> tuple[pa.Table, list[Problem]]:
        """The rows about films of movies.csv, and the others as problems."""
        mask = pc.is_in(table.column("movieId"), value_set=known.combine_chunks())
        rows = pc.indices_nonzero(pc.invert(mask)).to_pylist()
        column = table.column("movieId")
        place = f"{self._place(name)}, column 'movieId'"
        problems: list[Problem] = [
            (place, row + FIRST_ROW, f"{column[row].as_py()} is not in movies.csv") for row in rows
        ]
        return table.filter(mask), problems

    def _stray_posters(self, posters: frozenset[str], known: pa.ChunkedArray) -> list[Problem]:
        stray = posters - {f"{movie}.jpg" for movie in known.to_pylist()}
        reason = "expected <movieId>.jpg of a film in movies.csv"
        return [(join(self.path, "posters", name), None, reason) for name in sorted(stray)]

    def _items(self, movies: pa.Table, descriptions: pa.Table) -> pa.Table:
        at = pc.index_in(
            movies.column("movieId"), value_set=descriptions.column("movieId").combine_chunks()
        )
        titles = movies.column("title")
        parts = pc.extract_regex(titles, pattern=_YEAR)
        genres = movies.column("genres")
        named = pc.if_else(pc.equal(genres, "(no genres listed)"), None, genres)
        year = pc.binary_join_element_wise(pc.struct_field(parts, "year"), "-01-01T00:00:00Z", "")
        columns = {
            "item_id": movies.column("movieId").cast(_TEXT),
            "domain": pa.array(["film"] * movies.num_rows),
            "title": pc.coalesce(pc.struct_field(parts, "title"), titles),
            "description": descriptions.column("overview").take(at),
            "tags": pc.split_pattern(descriptions.column("keywords").take(at), "|"),
            "categories": pc.split_pattern(named, "|"),
            "published_at": year.cast(TIMESTAMP),
        }
        return check(
            pa.table(columns), "items", place=self._place("movies.csv"), first_row=FIRST_ROW
        )

    def _events(
        self, name: str, known: pa.ChunkedArray, **columns: pa.DataType
    ) -> tuple[pa.Table, list[Problem]]:
        table = self._csv(name, **columns)
        require(table, list(columns), self._place(name))
        return self._known(table, name, known)

    def _checked(self, columns: dict[str, object], table: str, name: str) -> pa.Table:
        return check(pa.table(columns), table, place=self._place(name), first_row=FIRST_ROW)

    def _ratings(self, known: pa.ChunkedArray) -> tuple[str, pa.Table, list[Problem]]:
        rows, problems = self._events(
            "ratings.csv", known, userId=_ID, movieId=_ID, rating=pa.float32(), timestamp=_ID
        )
        columns: dict[str, object] = {
            "user_id": rows.column("userId").cast(_TEXT),
            "item_id": rows.column("movieId").cast(_TEXT),
            "domain": pa.repeat("film", rows.num_rows),
            "event": pa.repeat("rating", rows.num_rows),
            "value": rows.column("rating"),
            "event_time": rows.column("timestamp").cast(_TIME),
        }
        return "interactions", self._checked(columns, "interactions", "ratings.csv"), problems

    def _tags(self, known: pa.ChunkedArray) -> tuple[str, pa.Table, list[Problem]]:
        rows, problems = self._events(
            "tags.csv", known, userId=_ID, movieId=_ID, tag=_TEXT, timestamp=_ID
        )
        columns: dict[str, object] = {
            "source_type": pa.repeat("item", rows.num_rows),
            "source_id": rows.column("movieId").cast(_TEXT),
            "relation": pa.repeat("tagged", rows.num_rows),
            "target_type": pa.repeat("tag", rows.num_rows),
            "target_id": rows.column("tag"),
            "weight": pa.repeat(pa.scalar(1.0, pa.float32()), rows.num_rows),
            "event_time": rows.column("timestamp").cast(_TIME),
        }
        return "edges", self._checked(columns, "edges", "tags.csv"), problems

    def _relations(self, known: pa.ChunkedArray) -> tuple[str, pa.Table, list[Problem]]:
        rows, problems = self._events(
            "relations.csv", known, movieId=_ID, relation=_TEXT, entity=_TEXT
        )
        columns: dict[str, object] = {
            "head": rows.column("movieId").cast(_TEXT),
            "relation": rows.column("relation"),
            "tail": rows.column("entity"),
        }
        return "relations", self._checked(columns, "relations", "relations.csv"), problems
