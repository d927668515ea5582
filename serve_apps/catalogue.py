"""Items as people see them: titles, tags and pictures, from tables of items. Knows nothing of Ray
or HTTP."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from rec.artifacts import ArtifactError, exists, filesystem, join, read_bytes
from rec.schema import ITEMS
from serve_apps.errors import ApiError
from serve_apps.item_tags import Suggested, Tags, vote

_LEDGER = "ledger.json"  # written last, so that tables without it are not finished
_FACTS = [
    name for name in ITEMS.names if name != "uploader_id"
]  # people's names stay where they are
_GROUPS = 8  # of 16 MB, of pictures held in memory
_MEDIA_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"BM": "image/bmp"}


class Card(NamedTuple):
    """An item of the tables."""

    item_id: str
    domain: str
    title: str | None
    description: str | None
    tags: list[str]
    categories: list[str]
    published_at: str | None  # ISO 8601, UTC
    has_picture: bool


class Listing(NamedTuple):
    """What part of the list of items is asked for."""

    offset: int
    limit: int
    tag: str | None = None  # only those that have it
    pictures_first: bool = False  # those with a picture before those without


class Browsed(NamedTuple):
    cards: list[Card]
    num_items: int  # there are in all


class TagCount(NamedTuple):
    tag: str
    num_items: int


class Picture(NamedTuple):
    data: bytes
    media_type: str


class Catalogue:
    """The "items" and "media" tables below a folder: facts in memory, the newest item first,
    pictures read when they are asked for.

    Args:
        uri: the folder that jobs.ingest wrote, local or s3://.

    Raises:
        ArtifactError: there are no finished tables.
    """

    def __init__(self, uri: str) -> None:
        self.version = tables_version(uri)
        parts = [pq.read_table(path, columns=_FACTS, filesystem=files)
                 for files, path in _files(uri, "items")]  # fmt: skip
        table = pa.concat_tables(parts) if parts else ITEMS.empty_table().select(_FACTS)
        newest = [("published_at", "descending"), ("item_id", "ascending")]
        self._items = table.take(pc.sort_indices(table, sort_keys=newest)).combine_chunks()
        ids = self._items.column("item_id").to_pylist()
        self._rows = {item_id: row for row, item_id in enumerate(ids)}
        lists = self._items.column("tags")
        self._tags = Tags(
            pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
        )
        counts = sorted(zip((-self._tags.counts()).tolist(), self._tags.names, strict=True))
        self._ranked = [TagCount(tag, -number) for number, tag in counts]
        self._pictures = _Pictures(uri, self._rows)
        self._order = np.arange(len(self._rows))
        self._order_by_picture = self._pictures.first(self._order)

    def __len__(self) -> int:
        return self._items.num_rows

    def browse(self, asked: Listing) -> Browsed:
        """A part of the list of all items, the newest first."""
        tag, pictures_first = asked.tag, asked.pictures_first
        rows = self._order if tag is None else self._tags.rows(tag)
        if pictures_first and tag is not None:
            rows = self._pictures.first(rows)
        elif pictures_first:
            rows = self._order_by_picture
        return Browsed(self._cards(rows[asked.offset : asked.offset + asked.limit]), len(rows))

    def lookup(self, item_ids: Sequence[str]) -> list[Card | None]:
        """The items of these ids, None where there is none."""
        rows = [self._rows.get(item_id) for item_id in item_ids]
        found = iter(self._cards(np.array([row for row in rows if row is not None], np.int64)))
        return [None if row is None else next(found) for row in rows]

    def tags(self, limit: int, prefix: str = "") -> list[TagCount]:
        """The most frequent tags that begin with `prefix`, in whatever case."""
        start = prefix.casefold()
        found = (one for one in self._ranked if one.tag.startswith(start))
        return list(itertools.islice(found, limit))

    def suggest(
        self, neighbours: Sequence[str], similarities: Sequence[float], own: str | None, limit: int
    ) -> list[Suggested]:
        """At most `limit` tags for something, from the items nearest to it; see `vote`.

        Args:
            neighbours: ids, the nearest first.
            similarities: of each.
            own: the item that it is for, whose own tags are left out; None: it is none.
        """
        return vote(
            [
                (one, similarity, self._tags_of(one))
                for one, similarity in zip(neighbours, similarities, strict=True)
            ],
            [] if own is None else self._tags_of(own),
            limit,
        )

    def _tags_of(self, item_id: str) -> list[str]:
        row = self._rows.get(item_id)
        return [] if row is None else self._tags.of(row)

    def picture(self, item_id: str) -> Picture:
        """The first picture of an item, as it is stored.

        Raises:
            ApiError: 404, there is no such item, or it has none.
        """
        row = self._rows.get(item_id)
        if row is None:
            raise ApiError(404, "unknown_item", f"{item_id}: not in the table of items")
        return self._pictures.read(row, item_id)

    def _cards(self, rows: np.ndarray) -> list[Card]:
        facts = self._items.take(pa.array(rows)).to_pylist()
        return [
            Card(
                **fact
                | {
                    "tags": fact["tags"] or [],
                    "categories": fact["categories"] or [],
                    "published_at": fact["published_at"] and fact["published_at"].isoformat(),
                    "has_picture": self._pictures.has(row),
                }
            )
            for row, fact in zip(rows.tolist(), facts, strict=True)
        ]


class _Pictures:
    """Where the first picture of each item lies: file, row group and row within it."""

    def __init__(self, uri: str, rows: dict[str, int]) -> None:
        self._files = _files(uri, "media")
        self._places = np.full((len(rows), 3), -1, np.int32)
        first = np.full(len(rows), np.iinfo(np.int32).max)
        for number, (files, path) in enumerate(self._files):
            with files.open_input_file(path) as stream:
                file = pq.ParquetFile(stream)
                for group in range(file.num_row_groups):
                    told = file.read_row_group(group, ["item_id", "media_index", "kind"])
                    for at, one in enumerate(told.to_pylist()):
                        row = rows.get(one["item_id"])
                        if row is None or one["kind"] != "frame":
                            continue
                        if one["media_index"] < first[row]:
                            first[row] = one["media_index"]
                            self._places[row] = number, group, at
        self._group = lru_cache(_GROUPS)(self._read_group)  # a page's pictures lie together
        self._reading = Lock()  # and are asked for at once: one of them reads

    def has(self, row: int) -> bool:
        return bool(self._places[row, 0] >= 0)

    def first(self, rows: np.ndarray) -> np.ndarray:
        """Those with a picture before those without, otherwise as they are."""
        return rows[np.argsort(self._places[rows, 0] < 0, kind="stable")]

    def read(self, row: int, item_id: str) -> Picture:
        number, group, at = self._places[row].tolist()
        if number < 0:
            raise ApiError(404, "no_picture", f"{item_id}: has no picture")
        try:
            with self._reading:
                found = self._group(number, group)
            owner, data = (found.column(name)[at].as_py() for name in ("item_id", "data"))
        except (OSError, IndexError, pa.ArrowException):
            owner, data = None, b""
        if owner != item_id:
            message = "the tables were written again since the service started: start it again"
            raise ApiError(503, "items_changed", message)
        return Picture(data, _media_type(data))

    def _read_group(self, number: int, group: int) -> pa.Table:
        files, path = self._files[number]
        with files.open_input_file(path) as stream:
            return pq.ParquetFile(stream).read_row_group(group, ["item_id", "data"])


def tables_version(uri: str) -> str:
    """The version of the tables in a folder.

    Raises:
        ArtifactError: there are no finished ones.
    """
    place = join(uri, _LEDGER)
    if not exists(place):
        raise ArtifactError(
            f"{place}: not found; give the folder of finished tables, as in RUN/tables"
        )
    try:
        return str(json.loads(read_bytes(place))["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{place}: not a ledger of tables: {error!r}") from error


def _files(uri: str, table: str) -> list[tuple[pafs.FileSystem, str]]:
    """Files of a table in order of their names; what is being written aside begins with a dot."""
    files, path = filesystem(join(uri, table))
    found = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    names = (one.path for one in found if one.base_name.endswith(".parquet"))
    return [(files, name) for name in sorted(names) if not name.rpartition("/")[2].startswith(".")]


def _media_type(data: bytes) -> str:
    for start, media_type in _MEDIA_TYPES.items():
        if data.startswith(start):
            return media_type
    return "image/webp" if data[8:12] == b"WEBP" else "application/octet-stream"
