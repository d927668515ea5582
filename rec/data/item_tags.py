"""Tags joined to what users did: which user prefers which tag, and which item has it.

All edges of an item meet its tags in the item's bucket; of the bucket only the tags are held,
while the edges, of which a popular item has any number, stream past.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.data.edges import INTERACTED, PREFERS, TAGGED, counts_of, sum_counts
from rec.data.ledger import Ledger
from rec.data.log_rows import LATE, LogTask, checked_batches
from rec.data.parquet import ParquetFile
from rec.data.shuffle import BucketWriter, bucket_of, codes, hash_strings
from rec.features.tags import normalise
from rec.graphs.csr import NO_TIME
from rec.schema import PROBLEMS

ITEM_TAGS = pa.schema([("item_id", pa.string()), ("tags", pa.list_(pa.string()))])


def scatter_items(
    task: LogTask,
    rows_uri: str,
    problems_uri: str,
    num_buckets: int,
    cutoff: int,
    schema: pa.Schema = ITEM_TAGS,
) -> Ledger:
    """Write the items of the task's files, as `schema` has them, to their buckets.

    An item published after the cut-off (microseconds since 1970) is dropped; of the others the tags
    are those that the log has as of now, since when each was given is nowhere told.
    """
    ledger = Ledger()
    with (
        ParquetFile(problems_uri, PROBLEMS) as problems,
        BucketWriter(rows_uri, schema, num_buckets) as writer,
    ):
        for _, checked in checked_batches(task, problems):
            read = checked.table.num_rows + checked.problems.num_rows
            published = checked.table.column("published_at").cast(pa.int64()).fill_null(cutoff)
            known = checked.table.filter(pc.less_equal(published, cutoff))
            dropped = {**checked.dropped, LATE: checked.table.num_rows - known.num_rows}
            ledger = ledger.record("read items", read, known.num_rows, dropped)
            if known.num_rows:
                rows = known.select(schema.names)
                writer.write(rows, bucket_of(hash_strings(rows.column("item_id")), num_buckets))
    return ledger


def last_of_each(items: pa.Table) -> tuple[pa.Table, Ledger]:
    """The last row of every item, in order of their ids; the ledger has the others."""
    item, names = codes(items.column("item_id"))
    latest = np.full(len(names), -1)
    np.maximum.at(latest, item, np.arange(len(item)))
    again = len(item) - len(names)
    ledger = Ledger().record("items", len(item), len(names), {"given again later": again})
    return items.take(pa.array(latest)), ledger


def tags_by_item(items: pa.Table, max_tags: int) -> tuple[pa.Table, Ledger]:
    """(item, tag) rows in order of item and of its tags, normalised, each tag once.

    Of an item that is there more than once the last row counts; the ledger has the others.
    """
    latest, ledger = last_of_each(items)
    names = latest.column("item_id").combine_chunks()
    lists = latest.column("tags").combine_chunks()
    owner = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    tags = normalise(pc.list_flatten(lists))
    known = np.asarray(pc.is_valid(tags))
    owner, tags = owner[known], tags.filter(pa.array(known))
    tag, _ = codes(pa.chunked_array([tags], pa.string()))
    order = np.lexsort((np.arange(len(tag)), tag, owner))
    first = np.zeros(len(tag), bool)
    if len(tag):
        again = (np.diff(owner[order]) == 0) & (np.diff(tag[order]) == 0)
        first[order] = np.concatenate([[True], ~again])
    kept = np.flatnonzero(first)
    rank = np.arange(len(kept)) - np.searchsorted(owner[kept], owner[kept])
    few = kept[rank < max_tags]
    ledger = ledger.record(
        "item tags",
        len(known),
        len(few),
        {
            "no letter in the tag": int((~known).sum()),
            "the item's tag again": len(known) - int((~known).sum()) - len(kept),
            "beyond the item's first": len(kept) - len(few),
        },
    )
    return pa.table({"item": names.take(pa.array(owner[few])), "tag": tags.take(few)}), ledger


def tag_counts(tags: pa.Table, edges: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """COUNTS of the items' tags, then those of users' tags, for each piece of edges by itself.

    Args:
        tags: of one bucket, as `tags_by_item` gives them.
        edges: pieces of COUNTS of kind INTERACTED whose targets are of the bucket.
    """
    rows = tags.num_rows
    item, tag = tags.column("item").combine_chunks(), tags.column("tag").combine_chunks()
    yield counts_of(TAGGED, item, tag, np.ones(rows, np.int64), np.full(rows, NO_TIME))
    code, names = codes(pa.chunked_array([item], pa.string()))
    size = np.bincount(code, minlength=len(names))
    begin = np.cumsum(size) - size
    for piece in edges:
        at = pc.index_in(piece.column("target"), value_set=names)
        known = np.flatnonzero(np.asarray(pc.is_valid(at)))
        found = at.take(pa.array(known)).to_numpy().astype(np.int64)
        copies = size[found]
        step = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
        edge = np.repeat(known, copies)
        yield sum_counts(
            counts_of(
                PREFERS,
                piece.column("source").take(pa.array(edge)),
                tag.take(pa.array(np.repeat(begin[found], copies) + step)),
                piece.column("num").to_numpy()[edge],
                piece.column("last").to_numpy()[edge],
            )
        )


def interacted(counts: pa.Table) -> pa.Table:
    """The rows of COUNTS that tag_counts joins."""
    return counts.filter(pc.equal(counts.column("kind"), INTERACTED))
