"""Your own items: a folder with items.csv and the files of videos, pictures and sounds it names.

    items.csv
    anywhere/below/clip.mp4 ...

items.csv has a row an item: `item_id`, and any of `domain`, `title`, `description`, `tags`,
`categories`, `uploader_id`, `published_at` (as 2024-01-31T18:30:00Z) and `files` (paths below the
folder). `tags`, `categories` and `files` are lists, parted by |.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rec.artifacts import join
from rec.config import Config
from rec.schema import TIMESTAMP, check, check_unique
from rec.sources.base import FILES, Shard, SourceError, problem_table, ranges
from rec.sources.files import (
    FIRST_ROW,
    file_sizes,
    fingerprint,
    list_tree,
    read_csv,
    require,
    stamp,
    unread_columns,
)

_EXPECTED = "a folder with items.csv"
_FILE = "items.csv"
_TEXT = pa.string()
_LISTS = ("tags", "categories", "files")
_OPTIONAL = {
    **dict.fromkeys(("domain", "title", "description", "uploader_id", *_LISTS), _TEXT),
    "published_at": TIMESTAMP,
}
_ROW_BYTES = 2_000  # of an item's texts and labels
_STORED_BYTES = 64_000  # of a file: what is kept of one is bounded, a video's length is not
_SHARD_BYTES = 16 << 20  # expected of a shard: what a killed run loses of each worker
MAX_FILES = 256  # of an item


class FolderSource(Config):
    """Items of a CSV file with their videos, pictures and sounds.

    Shards are consecutive items that are expected to be stored in equally many bytes. A worker
    parses items.csv once and looks up the files of its own shards' items alone.
    """

    tables: ClassVar[tuple[str, ...]] = ("items", "media")
    gives_files: ClassVar[bool] = True

    kind: Literal["folder"] = "folder"
    path: str  # the folder, local or s3://
    domain: str = "video"  # of items that name none
    num_shards: int | None = Field(default=None, ge=1)  # None: some hundred items with files each

    def contents(self) -> str:
        return fingerprint(self.path, _EXPECTED)

    def shards(self) -> list[Shard]:
        number = self.num_shards
        if number is None:
            number = max(1, -(-int(_expected(self._rows()).sum()) // _SHARD_BYTES))
        return [Shard(i, number) for i in range(number)]

    def read(self, shard: Shard) -> Iterator[tuple[str, pa.Table]]:
        rows = self._rows()
        if shard.index == 0:
            sizes = list_tree(self.path, _EXPECTED)
            named = set(pc.list_flatten(rows.column("files")).to_pylist())
            stray = sorted(set(sizes) - named - {_FILE})
            reason = "no item of items.csv names this file"
            yield "problems", problem_table([(join(self.path, x), None, reason) for x in stray])
            columns = ["item_id", *_OPTIONAL]
            unread = unread_columns(self.path, _FILE, columns)
            known = ", ".join(columns)
            yield (
                "problems",
                problem_table(
                    [(self._place, None, f"column '{x}' is not read, only {known}") for x in unread]
                ),
            )
        bounds = shard_bounds(_expected(rows), shard.num_shards)
        for start, stop in ranges(bounds[shard.index], bounds[shard.index + 1]):
            piece = rows.slice(start, stop - start)
            yield "items", check(piece, "items", place=self._place, first_row=start + FIRST_ROW)
            files, problems = self._files(piece, start + FIRST_ROW)
            yield "problems", problem_table(problems)
            yield "files", files

    @property
    def _place(self) -> str:
        return join(self.path, _FILE)

    def _rows(self) -> pa.Table:
        # frozen, so hashable: the type checker cannot see that pydantic adds it
        return _read_items(self, stamp(self.path, _FILE))  # pyright: ignore[reportArgumentType]

    def parse(self) -> pa.Table:
        """items.csv with the columns of the items table, and `files` as lists."""
        table = read_csv(self.path, _FILE, {"item_id": _TEXT}, _EXPECTED, _OPTIONAL)
        require(table, ["item_id"], self._place)
        check_unique(table, "item_id", place=self._place, first_row=FIRST_ROW)
        if not table.num_rows:
            raise SourceError(f"{self._place}: no rows; expected one item a row")
        for name in _LISTS:
            at = table.column_names.index(name)
            table = table.set_column(at, name, pc.split_pattern(table.column(name), "|"))
        at = table.column_names.index("domain")
        return table.set_column(at, "domain", table.column("domain").fill_null(self.domain))

    def _files(
        self, piece: pa.Table, first_row: int
    ) -> tuple[pa.Table, list[tuple[str, int | None, str]]]:
        """FILES of some items in order, and what was left out: absent files, repeats, too many."""
        found: list[tuple[str, str, str, int]] = []
        problems: list[tuple[str, int | None, str]] = []
        named = [list(dict.fromkeys(names or [])) for names in piece.column("files").to_pylist()]
        sizes = file_sizes(self.path, [name for names in named for name in names[:MAX_FILES]])
        lengths = pc.list_value_length(piece.column("files")).fill_null(0).to_pylist()
        columns = (piece.column("item_id").to_pylist(), named, lengths)
        for row, (item_id, names, length) in enumerate(zip(*columns, strict=True), first_row):
            if length > len(names):
                again = length - len(names)
                problems.append((self._place, row, f"{again} files are named again; read once"))
            if len(names) > MAX_FILES:
                more = f"{len(names) - MAX_FILES} files over the {MAX_FILES} an item may have"
                problems.append((self._place, row, f"{more}; left out"))
            for name in names[:MAX_FILES]:
                if name in sizes:
                    found.append((item_id, self.path, name, sizes[name]))
                else:
                    reason = f"not found; expected a file of item {item_id}"
                    problems.append((join(self.path, name), None, reason))
        arrays = list(zip(*found, strict=True)) if found else [()] * len(FILES)
        return pa.table(arrays, schema=FILES), problems


@functools.lru_cache(maxsize=1)
def _read_items(source: FolderSource, changed: tuple[int, int]) -> pa.Table:  # noqa: ARG001
    """Parsed once a process, and again when the file has changed."""
    return source.parse()


def _expected(rows: pa.Table) -> np.ndarray:
    """(n,) bytes that are expected to be stored of each item."""
    count = pc.list_value_length(rows.column("files")).fill_null(0).to_numpy()
    return _ROW_BYTES + _STORED_BYTES * np.minimum(count, MAX_FILES)


def shard_bounds(expected: np.ndarray, num_shards: int) -> list[int]:
    """(num_shards + 1) rows at which shards begin and end, of about equally many bytes."""
    before = np.cumsum(expected) - expected / 2
    shares = np.arange(1, num_shards) * (expected.sum() / num_shards)
    return [0, *np.searchsorted(before, shares).tolist(), len(expected)]
