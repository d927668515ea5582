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
from rec.data.events import EVENTS, LabelEvents, read_events
from rec.data.ledger import Ledger, LedgerError
from rec.data.parquet import write_table
from rec.data.split import Split
from rec.data.tables import Tables
from rec.data.tasks import num_partitions, stream
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
        ("tagged", pa.bool_()),  # by someone, whatever else was said
        ("clicked", pa.bool_()),  # searched for, with visits that stayed
    ]
)
EVIDENCE = pa.schema(
    [
        ("item_id", pa.string()),
        ("heldout", pa.bool_()),
        ("word", pa.string()),  # after HEARD what people searched or said, else of the text
    ]
)
_STAGES = (
    *("read tags", "read user tags", "read searches", "read comments", "words of comments"),
    *("label events", "label pairs"),
)
_LEDGER = "ledger"  # in place of a source: the row is `_told`
HEARD = "~"  # no word starts with a sign


class Pairs(NamedTuple):
    """(item, label) pairs on disk, the files that hold them, and when training ends."""

    files: list[str]
    words: list[str]  # files of EVIDENCE about the same items, where labels are to be cleaned
    num_pairs: int
    reference: datetime | None
    ledger: Ledger


def build_pairs(
    tables_uri: str,
    tables: Tables,
    split: Split,
    config: LabelEvents,
    work_uri: str,
    duplicates_uri: str | None = None,
) -> Pairs:
    """Shuffle events to their items, and write what training may see of every (item, label).

    Items that `find_duplicates` listed below `duplicates_uri` have neither labels nor words.
    """
    wanted = ["items", "edges", "searches", *(["comments"] if config.comment_coefficient else [])]
    names = [name for name in wanted if name in tables.tables]
    parts = [{"table": name, "shard": i} for name in names for i in range(tables.num_shards)]
    folder = join(work_uri, f"pairs-{uuid.uuid4().hex[:8]}")

    def read(batch: pa.Table) -> pa.Table:
        part = batch.to_pylist()[0]
        table, shard = part["table"], part["shard"]
        events, ledger = read_events(tables_uri, table, shard, split, config, duplicates_uri)
        return pa.concat_tables([events, _told(ledger, num_events(events))])

    def work(block: pa.Table) -> pa.Table:
        # a block without rows may lack its columns
        block = block.select(EVENTS.names).cast(EVENTS) if block.num_rows else EVENTS.empty_table()
        is_told = pc.equal(block.column("source"), _LEDGER).fill_null(False)
        told, block = block.filter(is_told), block.filter(pc.invert(is_told))
        pairs, ledger = join_events(block, split, config)
        for text in told.column("label").to_pylist():
            ledger = ledger.merge(Ledger.from_json(text))
        name = join(folder, uuid.uuid4().hex)  # a repeated task leaves stray files
        write_table(f"{name}.parquet", pairs)
        words = f"{name}.words.parquet" if config.min_evidence else None
        if words:
            write_table(words, join_words(block, split))
        seen = pairs.filter(pc.invert(pairs.column("heldout"))).column("last_time")
        last = pc.max(seen).cast(pa.int64()).as_py()
        return pa.table(
            {
                "file": pa.array([f"{name}.parquet"], pa.string()),
                "words": pa.array([words], pa.string()),
                "rows": pa.array([pairs.num_rows], pa.int64()),
                "read": pa.array([num_events(told)], pa.int64()),
                "last": pa.array([last], pa.int64()),
                "ledger": pa.array([ledger.to_json()], pa.string()),
            }
        )

    events = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        read, batch_size=1, batch_format="pyarrow"
    )
    by_item = events.repartition(num_partitions(tables.num_shards), keys=["item_id"])
    files: list[str] = []
    words: list[str] = []
    times: list[int] = []
    num_pairs = num_read = 0
    ledger = Ledger()
    for batch in stream(by_item.map_batches(work, batch_size=None, batch_format="pyarrow")):
        for row in batch.to_pylist():
            files.append(row["file"])
            words.extend([row["words"]] if row["words"] else [])
            num_pairs += row["rows"]
            num_read += row["read"]
            times.extend([row["last"]] if row["last"] is not None else [])
            ledger = ledger.merge(Ledger.from_json(row["ledger"]))
    check_arrived(num_read, ledger)
    reference = split.cutoff
    if reference is None and times:
        reference = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=max(times))
    return Pairs(files, words, num_pairs, reference, in_order(ledger))


def _told(ledger: Ledger, count: int) -> pa.Table:
    """A row of EVENTS that carries through the shuffle what was read."""
    row = {"item_id": "", "label": ledger.to_json(), "source": _LEDGER, "num_events": count}
    return pa.Table.from_pylist([row], schema=EVENTS)


def in_order(ledger: Ledger) -> Ledger:
    """The stages as rows pass them; they come in the order in which tasks happen to finish."""
    stages = {name: ledger.stages[name] for name in _STAGES if name in ledger.stages}
    return ledger.model_copy(update={"stages": stages | ledger.stages})


def check_arrived(num_read: int, ledger: Ledger) -> None:
    """Raise LedgerError unless as many label events came to their items as were read."""
    arrived = ledger.stages["label events"].rows_in if "label events" in ledger.stages else 0
    if arrived != num_read:
        raise LedgerError(f"{num_read} label events were read and {arrived} came to their items")


def _known(block: pa.Table, split: Split) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """The block's items, the events about them that training may see, and what was left out."""
    is_item = pc.is_null(block.column("label"))
    items, events = block.filter(is_item), block.filter(pc.invert(is_item))
    again = items.filter(items.column("duplicate").fill_null(False)).column("item_id")
    of_again = pc.is_in(events.column("item_id"), value_set=again.combine_chunks())
    num_again = num_events(events.filter(of_again))
    events = events.filter(pc.invert(of_again))
    items = items.filter(pc.invert(items.column("duplicate").fill_null(False)))
    at = pc.index_in(events.column("item_id"), value_set=items.column("item_id").combine_chunks())
    known = pc.is_valid(at)
    num_unknown = num_events(events.filter(pc.invert(known)))
    events, at = events.filter(known), at.filter(known)
    heldout = items.column("heldout").take(at)
    events = events.set_column(EVENTS.get_field_index("shard"), "shard", items["shard"].take(at))
    events = events.set_column(EVENTS.get_field_index("heldout"), "heldout", heldout)
    seen = pa.array(np.asarray(heldout) | split.visible(events.column("event_time")))
    num_late = num_events(events.filter(pc.invert(seen)))
    events = events.filter(seen)
    first, num_same = _once(events.filter(pc.equal(events.column("source"), "comment")))
    others = events.filter(pc.not_equal(events.column("source"), "comment"))
    dropped = {
        "item looks like another one": num_again,
        "item unknown": num_unknown,
        "after the cut-off": num_late,
        "the same comment again": num_same,
    }
    return items, pa.concat_tables([others, first]), dropped


def num_events(events: pa.Table) -> int:
    return pc.sum(events.column("num_events")).as_py() or 0


def _once(comments: pa.Table) -> tuple[pa.Table, int]:
    """The first of equal comments on an item, word by word, and how many words were left out."""
    keys = [name for name in EVENTS.names if name not in ("event_time", "words")]
    first = comments.group_by(keys).aggregate([("event_time", "min")])
    first = first.rename_columns([*keys, "event_time"])
    first = first.append_column("words", pa.nulls(first.num_rows, EVENTS.field("words").type))
    return first.select(EVENTS.names).cast(EVENTS), comments.num_rows - first.num_rows


def join_events(block: pa.Table, split: Split, config: LabelEvents) -> tuple[pa.Table, Ledger]:
    """All events and items of some item ids to PAIRS, and what was left out.

    Args:
        block: rows of EVENTS; a row without label is the item itself.
        split: training items see no event after its cut-off.
        config: how often a query must have led to an item, and a comment said a word.
    """
    if not block.num_rows:
        return PAIRS.empty_table(), Ledger()
    num_in = num_events(block.filter(pc.is_valid(block.column("label"))))
    _, events, dropped = _known(block, split)
    # a query that showed an item and led to no visit has a time all the same
    visited = pc.greater(events.column("num_events"), 0)
    time = pc.if_else(visited, events.column("event_time"), pa.scalar(None, TIMESTAMP))
    events = events.set_column(EVENTS.get_field_index("event_time"), "event_time", time)
    keys = ["item_id", "shard", "heldout", "label"]
    sums = [("num_events", "sum"), ("num_shown", "sum"), ("event_time", "max")]
    grouped = events.group_by([*keys, "source"]).aggregate([*sums, ("coefficient", "max")])
    is_query = pc.equal(grouped.column("source"), "query")
    is_comment = pc.equal(grouped.column("source"), "comment")
    count = grouped.column("num_events_sum")
    shown = grouped.column("num_shown_sum").fill_null(0)
    clicked = pc.and_(
        pc.greater_equal(count, config.min_clicks),
        pc.greater_equal(count.cast(pa.float64()), pc.multiply(shown, config.min_click_rate)),
    )
    said = pc.greater_equal(count, config.min_comments)
    few_clicks = pc.and_(is_query, pc.invert(clicked))
    few_said = pc.and_(is_comment, pc.invert(said))
    dropped["query with too few clicks"] = pc.sum(count.filter(few_clicks)).as_py() or 0
    dropped["word of too few comments"] = pc.sum(count.filter(few_said)).as_py() or 0
    tagged = pc.invert(pc.or_(is_query, is_comment))
    kept = grouped.append_column("tagged", tagged).append_column("clicked", is_query)
    kept = kept.filter(pc.invert(pc.or_(few_clicks, few_said)))
    sums = [("num_events_sum", "sum"), ("event_time_max", "max"), ("coefficient_max", "max")]
    pairs = kept.group_by(keys).aggregate([*sums, ("tagged", "max"), ("clicked", "max")])
    pairs = pairs.rename_columns([*keys, *PAIRS.names[4:]])
    num_out = num_events(pairs)
    ledger = Ledger().record("label events", num_in, num_out, dropped)
    met = {"counted with another event of its item and label": num_out - pairs.num_rows}
    ledger = ledger.record("label pairs", num_out, pairs.num_rows, met)
    return pairs.select(PAIRS.names).cast(PAIRS), ledger


def join_words(block: pa.Table, split: Split) -> pa.Table:
    """EVIDENCE of the items in a block of EVENTS: what their texts, searches and comments say.

    Of searches and comments, what training may not see is left out, as `join_events` does.
    """
    items, events, _ = _known(block, split)
    words = items.column("words").combine_chunks()
    owner = items.column("item_id").combine_chunks().take(pc.list_parent_indices(words))
    text = pa.table({"item_id": owner, "word": pc.list_flatten(words)})
    telling = pc.and_(
        pc.is_in(events.column("source"), value_set=pa.array(["query", "comment"])),
        pc.greater(events.column("num_events"), 0),
    )
    heard = events.filter(telling)
    words = pc.split_pattern(heard.column("label").combine_chunks(), " ")
    owner = heard.column("item_id").combine_chunks().take(pc.list_parent_indices(words))
    spelled = pc.binary_join_element_wise(HEARD, pc.list_flatten(words), "")
    heard = pa.table({"item_id": owner, "word": spelled})
    rows = pa.concat_tables([text, heard]).group_by(["item_id", "word"]).aggregate([])
    at = pc.index_in(rows.column("item_id"), value_set=items.column("item_id").combine_chunks())
    rows = rows.append_column("heldout", items.column("heldout").take(at))
    return rows.select(EVIDENCE.names).cast(EVIDENCE)
