"""(item, label) pairs: label events brought to their items by one shuffle of narrow rows.

It relies on `repartition(keys=...)`, which puts all rows of a key into one block.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from rec.artifacts import join
from rec.data.events import LabelEvents, read_events
from rec.data.ingest import Tables
from rec.data.ledger import Ledger
from rec.data.parquet import write_table
from rec.data.split import Split
from rec.data.tasks import stream
from rec.schema import TIMESTAMP

PAIRS = pa.schema(
    [
        ("item_id", pa.string()),
        ("shard", pa.int32()),
        ("heldout", pa.bool_()),
        ("label", pa.string()),
        ("num_events", pa.int64()),
        ("last_time", TIMESTAMP),
        ("coefficient", pa.float32()),
    ]
)


class Pairs(NamedTuple):
    """(item, label) pairs on disk, the files that hold them, and when training ends."""

    files: list[str]
    num_pairs: int
    reference: datetime | None
    ledger: Ledger


def build_pairs(
    tables_uri: str, tables: Tables, split: Split, config: LabelEvents, work_uri: str
) -> Pairs:
    """Shuffle events to their items, and write what training may see of every (item, label)."""
    names = [name for name in ("items", "edges", "searches") if name in tables.tables]
    parts = [{"table": name, "shard": i} for name in names for i in range(tables.num_shards)]
    folder = join(work_uri, f"pairs-{uuid.uuid4().hex[:8]}")

    def read(batch: pa.Table) -> pa.Table:
        part = batch.to_pylist()[0]
        return read_events(tables_uri, part["table"], part["shard"], split, config)

    def work(block: pa.Table) -> pa.Table:
        pairs, ledger = join_events(block, split, config)
        name = join(folder, f"{uuid.uuid4().hex}.parquet")  # a repeated task leaves a stray file
        write_table(name, pairs)
        seen = pairs.filter(pc.invert(pairs.column("heldout"))).column("last_time")
        last = pc.max(seen).cast(pa.int64()).as_py()
        return pa.table(
            {
                "file": pa.array([name], pa.string()),
                "rows": pa.array([pairs.num_rows], pa.int64()),
                "last": pa.array([last], pa.int64()),
                "ledger": pa.array([ledger.to_json()], pa.string()),
            }
        )

    events = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        read, batch_size=1, batch_format="pyarrow"
    )
    by_item = events.repartition(num_partitions(tables.num_shards), keys=["item_id"])
    files: list[str] = []
    times: list[int] = []
    num_pairs = 0
    ledger = Ledger()
    for batch in stream(by_item.map_batches(work, batch_size=None, batch_format="pyarrow")):
        for row in batch.to_pylist():
            files.append(row["file"])
            num_pairs += row["rows"]
            times.extend([row["last"]] if row["last"] is not None else [])
            ledger = ledger.merge(Ledger.from_json(row["ledger"]))
    reference = split.cutoff
    if reference is None and times:
        reference = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=max(times))
    return Pairs(files, num_pairs, reference, ledger)


def num_partitions(num_shards: int) -> int:
    return min(max(num_shards, 1), 200)


def join_events(block: pa.Table, split: Split, config: LabelEvents) -> tuple[pa.Table, Ledger]:
    """All events and items of some item ids to PAIRS, and what was left out.

    Args:
        block: rows of EVENTS; a row without label is the item itself.
        split: training items see no event after its cut-off.
        config: how often a query must have led to an item.
    """
    if not block.num_rows:
        return PAIRS.empty_table(), Ledger()
    is_item = pc.is_null(block.column("label"))
    items, events = block.filter(is_item), block.filter(pc.invert(is_item))
    at = pc.index_in(events.column("item_id"), value_set=items.column("item_id").combine_chunks())
    known = pc.is_valid(at)
    num_unknown = events.num_rows - pc.sum(known).as_py() if events.num_rows else 0
    events, at = events.filter(known), at.filter(known)
    heldout = items.column("heldout").take(at)
    seen = pa.array(np.asarray(heldout) | split.visible(events.column("event_time")))
    events = (
        events.set_column(events.column_names.index("shard"), "shard", items["shard"].take(at))
        .set_column(events.column_names.index("heldout"), "heldout", heldout)
        .filter(seen)
    )
    num_late = len(at) - events.num_rows
    keys = ["item_id", "shard", "heldout", "label"]
    sums = [("count", "sum"), ("event_time", "max"), ("coefficient", "max")]
    events = events.append_column("count", pa.repeat(pa.scalar(1, pa.int64()), events.num_rows))
    grouped = events.group_by([*keys, "query"]).aggregate(sums)
    enough = pc.or_(
        pc.invert(grouped.column("query")),
        pc.greater_equal(grouped.column("count_sum"), config.min_clicks),
    )
    num_rare = (pc.sum(grouped.filter(pc.invert(enough)).column("count_sum")).as_py()) or 0
    pairs = (
        grouped.filter(enough)
        .group_by(keys)
        .aggregate([("count_sum", "sum"), ("event_time_max", "max"), ("coefficient_max", "max")])
        .rename_columns([*keys, "num_events", "last_time", "coefficient"])
    )
    kept = pc.sum(pairs.column("num_events")).as_py() or 0
    ledger = Ledger().record(
        "label events",
        num_unknown + num_late + num_rare + kept,
        kept,
        {
            "item unknown": num_unknown,
            "after the cut-off": num_late,
            "query with too few clicks": num_rare,
        },
    )
    return pairs.select(PAIRS.names).cast(PAIRS), ledger
