"""Several deliveries of one kind of source to one set of tables: of an item, the newest counts.

What a source delivers day by day stands in folders of tables of their own. Where a model is to be
trained on all of it, they are put together: items and media of a delivery go where a later one
brings the item again; what happened (interactions, searches, comments and so on) is all kept. A
Ray task copies one shard of one delivery, in flat memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec.artifacts import FileEntry, exists, file_entry, filesystem, join, read_bytes, write_atomic
from rec.data.attempts import Attempt
from rec.data.budget import Budget
from rec.data.ledger import Ledger
from rec.data.media import MEDIA_INDEX
from rec.data.parquet import ParquetFile, read_row_group, read_table
from rec.data.tables import (
    LEDGER,
    IngestError,
    Tables,
    TableSize,
    read_tables,
    shard_file,
    shard_name,
)
from rec.data.tasks import Summary, with_markers
from rec.schema import PROBLEMS, TABLES

BUDGET = Budget(memory_gb=1.0)  # of a shard's task: a row group, and the ids of later deliveries
_OF_ITEMS = ("items", "media", "media_index")  # go with their item
_AGAIN = "delivered again later"


def merge_tables(
    deliveries: Sequence[str], uri: str, *, progress: Callable[[int, int], None] | None = None
) -> Tables:
    """Write the tables at `deliveries`, oldest first, as one at `uri`; finished shards stay.

    Raises:
        IngestError: a delivery has no finished tables, two are of different sources' kinds, or
            `uri` holds tables of another origin.
    """
    parts = [read_tables(place) for place in deliveries]
    if len(kinds := {part.kind for part in parts}) != 1:
        raise IngestError(
            f"{uri}: deliveries of different sources, {sorted(kinds)}; merge one kind"
        )
    version = hashlib.sha256("\n".join(part.version for part in parts).encode()).hexdigest()[:16]
    _claim(uri, version)
    shards = [(n, i) for n, part in enumerate(parts) for i in range(part.num_shards)]

    def work(index: int, _: Attempt) -> Summary:
        number, shard = shards[index]
        later = [(deliveries[n], parts[n].num_shards) for n in range(number + 1, len(parts))]
        names = [*parts[number].tables, "problems"]
        return _copy(deliveries[number], shard, names, later, uri, index)

    told: dict[int, Summary] = {}
    markers = join(uri, "state")
    for summary in with_markers(work, markers, range(len(shards)), BUDGET, "merge"):
        told[summary["index"]] = summary
        if progress:
            progress(len(told), len(shards))
    tables = _total(version, parts, [told[index] for index in sorted(told)])
    write_atomic(join(uri, LEDGER), tables.to_json().encode())
    return tables


def _claim(uri: str, version: str) -> None:
    """Hold `uri` to these deliveries; what was merged there of others is removed, and nothing
    else."""
    place = join(uri, "state", "merged.json")
    if exists(place):
        if json.loads(read_bytes(place)) == version:
            return
        files, path = filesystem(uri)
        files.delete_dir(path)
    elif exists(join(uri, LEDGER)) or exists(join(uri, "items")):
        raise IngestError(f"{uri}: holds tables that were not merged; merge to another place")
    write_atomic(place, json.dumps(version).encode())


def _copy(
    source: str, shard: int, names: Sequence[str], later: list[tuple[str, int]], uri: str, to: int
) -> Summary:
    """Copy shard `shard` of the tables at `source` to shard `to` at `uri`."""
    again = _items_of(later)
    sizes: dict[str, list[int]] = {}
    entries: dict[str, str] = {}
    dropped: dict[str, int] = {}
    for name in names:
        schema = {"media_index": MEDIA_INDEX, "problems": PROBLEMS}.get(name) or TABLES[name]
        place = shard_file(uri, name, to)
        read = 0
        with ParquetFile(place, schema) as file:
            for piece in _pieces(shard_file(source, name, shard)):
                read += piece.num_rows
                if name in _OF_ITEMS:
                    gone = pc.is_in(piece.column("item_id"), value_set=again)
                    piece = piece.filter(pc.invert(gone))
                if name == "media_index":
                    piece = _placed(piece, to, file.num_rows)
                file.write(piece)
        dropped[name] = read - file.num_rows
        entry = file_entry(place)
        sizes[name], entries[name] = [file.num_rows, entry.num_bytes], entry.sha256
    return {"index": to, "sizes": sizes, "sha256": entries, "dropped": dropped}


def _items_of(deliveries: list[tuple[str, int]]) -> pa.Array:
    """The ids of the items of all shards of some deliveries."""
    found = [
        read_table(shard_file(place, "items", shard), ["item_id"]).column("item_id")
        for place, num_shards in deliveries
        for shard in range(num_shards)
    ]
    chunks = [chunk for column in found for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.string()).combine_chunks()


def _pieces(uri: str) -> Iterator[pa.Table]:
    """The row groups of a file; none where there is no file."""
    if not exists(uri):
        return
    files, path = filesystem(uri)
    with files.open_input_file(path) as stream, pq.ParquetFile(stream) as source:
        for number in range(source.num_row_groups):
            yield read_row_group(source, number, source.schema_arrow.names, uri)


def _placed(index: pa.Table, shard: int, first_row: int) -> pa.Table:
    """Rows of media_index as the media of a shard stand there from `first_row` on."""
    rows = index.num_rows
    where = {
        "shard": pa.array(np.full(rows, shard, np.int32)),
        "row": pa.array(np.arange(first_row, first_row + rows)),
    }
    for name, column in where.items():
        at = index.column_names.index(name)
        index = index.set_column(at, MEDIA_INDEX.field(name), column)
    return index


def _total(version: str, parts: list[Tables], summaries: list[Summary]) -> Tables:
    sizes: dict[str, TableSize] = {}
    files: dict[str, FileEntry] = {}
    ledger = Ledger()
    for summary in summaries:
        for name, (num_rows, num_bytes) in summary["sizes"].items():
            size = sizes.get(name, TableSize())
            sizes[name] = TableSize(
                num_rows=size.num_rows + num_rows, num_bytes=size.num_bytes + num_bytes
            )
            place = shard_name(name, summary["index"])
            files[place] = FileEntry(sha256=summary["sha256"][name], num_bytes=num_bytes)
            if name != "problems":
                gone = summary["dropped"][name]
                ledger = ledger.record(name, num_rows + gone, num_rows, {_AGAIN: gone})
    problems = sizes.pop("problems").num_rows
    return Tables(
        version=version,
        kind=parts[-1].kind,
        source={"merged": [part.version for part in parts]},
        num_shards=len(summaries),
        tables=sizes,
        schemas=parts[-1].schemas,
        ledger=ledger,
        files=files,
        num_alike=sum(part.num_alike for part in parts),
        num_problems=problems,
        problems=parts[-1].problems,
    )
