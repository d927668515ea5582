"""Label events: who called which item what, and when, from each table that tells."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rec.config import Config
from rec.data.ingest import shard_file
from rec.data.parquet import read_table
from rec.data.split import Split
from rec.features.tags import normalise
from rec.schema import TIMESTAMP

EVENTS = pa.schema(
    [
        ("item_id", pa.string()),
        ("label", pa.string()),  # null: the row is the item itself
        ("event_time", TIMESTAMP),
        ("coefficient", pa.float32()),
        ("query", pa.bool_()),  # a search, of which one alone may be a slip
        ("shard", pa.int32()),  # of the item's row
        ("heldout", pa.bool_()),  # of the item's row
    ]
)


class LabelEvents(Config):
    """Which events make labels, and how far each source is trusted."""

    tag_coefficient: float = Field(default=1.0, ge=0)  # the uploader's hashtags; 0 leaves them out
    user_tag_coefficient: float = Field(default=1.0, ge=0)  # edges with relation "tagged"
    query_coefficient: float = Field(default=0.5, ge=0)
    min_dwell_ms: int = Field(default=5000, ge=0)  # a shorter visit is no sign of a match
    min_clicks: int = Field(default=2, ge=1)  # of a query on an item


def read_events(
    tables_uri: str, table: str, shard: int, split: Split, config: LabelEvents
) -> pa.Table:
    """Rows of EVENTS from one shard of the table called items, edges or searches."""
    uri = shard_file(tables_uri, table, shard)
    if table == "items":
        items = read_table(uri, ["item_id", "tags", "published_at"])
        return pa.concat_tables([_items(items, shard, split), _tags(items, config)])
    if table == "edges":
        columns = ["source_type", "source_id", "relation", "target_id", "event_time"]
        return _edges(read_table(uri, columns), config)
    return _searches(read_table(uri), config)


def _events(
    item_id: pa.ChunkedArray | pa.Array,
    label: pa.Array,
    time: pa.ChunkedArray | pa.Array,
    coefficient: float,
    *,
    query: bool = False,
) -> pa.Table:
    rows = len(item_id)
    table = pa.table(
        [
            item_id,
            label,
            time,
            pa.repeat(pa.scalar(coefficient, pa.float32()), rows),
            pa.repeat(query, rows),
            pa.nulls(rows, pa.int32()),
            pa.nulls(rows, pa.bool_()),
        ],
        schema=EVENTS,
    )
    return table.filter(pc.is_valid(table.column("label")))


def _items(items: pa.Table, shard: int, split: Split) -> pa.Table:
    rows = items.num_rows
    return pa.table(
        [
            items.column("item_id"),
            pa.nulls(rows, pa.string()),
            items.column("published_at"),
            pa.nulls(rows, pa.float32()),
            pa.repeat(False, rows),
            pa.repeat(pa.scalar(shard, pa.int32()), rows),
            pa.array(split.heldout(items)),
        ],
        schema=EVENTS,
    )


def _tags(items: pa.Table, config: LabelEvents) -> pa.Table:
    if not config.tag_coefficient:
        return EVENTS.empty_table()
    tags = items.column("tags").combine_chunks()
    owner = pc.list_parent_indices(tags)
    return _events(
        items.column("item_id").take(owner),
        normalise(pc.list_flatten(tags)),
        items.column("published_at").take(owner),
        config.tag_coefficient,
    )


def _edges(edges: pa.Table, config: LabelEvents) -> pa.Table:
    tagged = pc.and_(
        pc.equal(edges.column("relation"), "tagged"), pc.equal(edges.column("source_type"), "item")
    )
    edges = edges.filter(tagged)
    if not config.user_tag_coefficient or not edges.num_rows:
        return EVENTS.empty_table()
    return _events(
        edges.column("source_id"),
        normalise(edges.column("target_id")),
        edges.column("event_time"),
        config.user_tag_coefficient,
    )


def _searches(searches: pa.Table, config: LabelEvents) -> pa.Table:
    """Clicks that stayed: dwell over the threshold, and no return to the results."""
    stayed = pc.greater_equal(searches.column("dwell_ms").fill_null(0), config.min_dwell_ms)
    returned = searches.column("returned").fill_null(False)
    good = pc.and_(pc.and_(searches.column("clicked"), stayed), pc.invert(returned))
    clicks = searches.filter(pc.and_(good, pc.is_valid(searches.column("item_id"))))
    if not config.query_coefficient or not clicks.num_rows:
        return EVENTS.empty_table()
    return _events(
        clicks.column("item_id"),
        normalise(clicks.column("query")),
        clicks.column("event_time"),
        config.query_coefficient,
        query=True,
    )
