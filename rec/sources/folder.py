"""Your own items: a folder with items.csv and the files of videos, pictures and sounds it names.

    items.csv
    anywhere/below/clip.mp4 ...

items.csv has a row an item: `item_id`, and any of `domain`, `title`, `description`, `tags`,
`categories`, `uploader_id`, `published_at` (as 2024-01-31T18:30:00Z) and `files` (paths below the
folder). `tags`, `categories` and `files` are lists, parted by |.
"""

from __future__ import annotations

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
from rec.sources.files import FIRST_ROW, list_tree, read_csv, require

_EXPECTED = "a folder with items.csv"
_FILE = "items.csv"
_TEXT = pa.string()
_LISTS = ("tags", "categories", "files")
_ROW_BYTES = 2_000  # of an item's texts and labels
_STORED_BYTES = 64_000  # of a file at most: what is kept of one is bounded, a video's length is not


class FolderSource(Config):
    """Items of a CSV file with their videos, pictures and sounds.

    Shards are consecutive items that are expected to be stored in equally many bytes.
    """

    tables: ClassVar[tuple[str, ...]] = ("items", "media")

    kind: Literal["folder"] = "folder"
    path: str  # the folder, local or s3://
    domain: str = "video"  # of items that name none
    num_shards: int = Field(default=4, ge=1)

    def shards(self) -> list[Shard]:
        return [Shard(i, self.num_shards) for i in range(self.num_shards)]

    def read(self, shard: Shard) -> Iterator[tuple[str, pa.Table]]:
        rows = self._rows()
        sizes = list_tree(self.path, _EXPECTED)
        if shard.index == 0:
            named = set(pc.list_flatten(rows.column("files")).to_pylist())
            stray = sorted(set(sizes) - named - {_FILE})
            reason = "no item of items.csv names this file"
            yield "problems", problem_table([(join(self.path, x), None, reason) for x in stray])
        bounds = self.bounds(rows, sizes)
        for start, stop in ranges(bounds[shard.index], bounds[shard.index + 1]):
            piece = rows.slice(start, stop - start)
            yield "items", check(piece, "items", place=self._place, first_row=start + FIRST_ROW)
            files, problems = self._files(piece, sizes)
            yield "problems", problem_table(problems)
            yield "files", files

    def bounds(self, rows: pa.Table, sizes: dict[str, int]) -> list[int]:
        """(num_shards + 1) rows at which shards begin and end."""
        expected = [
            _ROW_BYTES + sum(min(sizes.get(name, 0), _STORED_BYTES) for name in names or [])
            for names in rows.column("files").to_pylist()
        ]
        before = np.cumsum(expected) - np.array(expected) / 2
        shares = np.arange(1, self.num_shards) * (sum(expected) / self.num_shards)
        return [0, *np.searchsorted(before, shares).tolist(), rows.num_rows]

    @property
    def _place(self) -> str:
        return join(self.path, _FILE)

    def _rows(self) -> pa.Table:
        """items.csv with the columns of the items table, and `files` as lists."""
        names = ("domain", "title", "description", "uploader_id", *_LISTS)
        optional = {**dict.fromkeys(names, _TEXT), "published_at": TIMESTAMP}
        table = read_csv(self.path, _FILE, {"item_id": _TEXT}, _EXPECTED, optional)
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
        self, piece: pa.Table, sizes: dict[str, int]
    ) -> tuple[pa.Table, list[tuple[str, int | None, str]]]:
        """FILES of some items in order, and the files that are not there.

        A path is looked up among those that the folder holds, so none leads out of it.
        """
        found: list[tuple[str, str, str, int]] = []
        problems: list[tuple[str, int | None, str]] = []
        columns = [piece.column(name).to_pylist() for name in ("item_id", "files")]
        for item_id, names in zip(*columns, strict=True):
            for name in names or []:
                if name in sizes:
                    found.append((item_id, self.path, name, sizes[name]))
                else:
                    reason = f"not found; expected a file of item {item_id}"
                    problems.append((join(self.path, name), None, reason))
        arrays = list(zip(*found, strict=True)) if found else [()] * len(FILES)
        return pa.table(arrays, schema=FILES), problems
