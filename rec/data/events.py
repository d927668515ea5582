"""Label events: who called which item what, and when, from each table that tells."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rec.config import Config
from rec.data.duplicates import duplicate_ids
from rec.data.ledger import Ledger
from rec.data.parquet import read_table
from rec.data.split import Split
from rec.data.tables import shard_file
from rec.features.evidence import words_of
from rec.features.tags import normalise
from rec.schema import TIMESTAMP

EVENTS = pa.schema(
    [
        ("item_id", pa.string()),
        ("label", pa.string()),  # null: the row is the item itself
        ("event_time", TIMESTAMP),
        ("coefficient", pa.float32()),
        ("source", pa.string()),  # tag, user tag, query, comment
        ("num_events", pa.int64()),  # of searches the visits that stayed, else 1
        ("num_shown", pa.int64()),  # of searches: how often the item was among the results
        ("text_hash", pa.int64()),  # of comments: equal for equal texts
        ("words", pa.list_(pa.string())),  # of the item's row: distinct words of its text
        ("shard", pa.int32()),  # of the item's row
        ("heldout", pa.bool_()),  # of the item's row
        ("duplicate", pa.bool_()),  # of the item's row: it looks like another item
    ]
)
_LINK = r"(?i)https?:|www\.|\b[a-z0-9-]+\.(?:com|net|org|io|ly)\b"
_MAX_WORDS = 64  # of a text
_TEXTS = ("title", "description")


class LabelEvents(Config):
    """Which events make labels, and how far each source is trusted."""

    tag_coefficient: float = Field(default=1.0, ge=0)  # the uploader's hashtags; 0 leaves them out
    user_tag_coefficient: float = Field(default=1.0, ge=0)  # edges with relation "tagged"
    query_coefficient: float = Field(default=0.5, ge=0)
    comment_coefficient: float = Field(default=0.0, ge=0)  # words of comments; 0 leaves them out
    min_dwell_ms: int = Field(default=5000, ge=0)  # a shorter visit is no sign of a match
    min_clicks: int = Field(default=2, ge=1)  # of a query on an item, by visits that stayed
    min_click_rate: float = Field(default=0.0, ge=0, le=1)  # of those among all times shown
    max_query_words: int | None = Field(default=None, ge=1)  # longer ones are sentences, no labels
    min_comments: int = Field(default=2, ge=1)  # of an item with a word
    min_comment_words: int = Field(default=3, ge=1)  # "so cool" says nothing about the item
    min_comment_likes: int = Field(default=0, ge=0)
    # what an item's words must say for its label, in nats: 1 makes the label e times as likely as
    # it is on any item, 1.5 suited hashtags; 0 keeps all labels, as curated ones should be
    min_evidence: float = Field(default=0.0, ge=0)


_NOTHING = EVENTS.empty_table(), Ledger()  # of a source that is not asked for
_NO_WORD = "nothing but signs"


def read_events(
    tables_uri: str,
    table: str,
    shard: int,
    split: Split,
    config: LabelEvents,
    duplicates_uri: str | None = None,
) -> tuple[pa.Table, Ledger]:
    """Rows of EVENTS from one shard of the table called items, edges, searches or comments.

    The ledger has what was read of the table and why the rest makes no event.
    """
    uri = shard_file(tables_uri, table, shard)
    if table == "items":
        columns = ["item_id", "tags", "published_at", *(_TEXTS if config.min_evidence else ())]
        items = read_table(uri, columns)
        again = duplicate_ids(duplicates_uri, shard)
        rows = _items(items, shard, split, config, again)
        tags, ledger = _tags(items, config)
        return pa.concat_tables([rows, tags]), ledger
    if table == "edges":
        columns = ["source_type", "source_id", "relation", "target_id", "event_time"]
        return _edges(read_table(uri, columns), config)
    if table == "comments":
        return _comments(read_table(uri, ["item_id", "text", "likes", "event_time"]), config)
    return _searches(read_table(uri), split, config)


def _events(
    source: str,
    coefficient: float,
    item_id: pa.ChunkedArray | pa.Array,
    label: pa.ChunkedArray | pa.Array,
    time: pa.ChunkedArray | pa.Array,
    **columns: pa.ChunkedArray | pa.Array,
) -> pa.Table:
    """EVENTS rows of one source; `columns` are further ones by name, the others are their default.

    Rows without a label are left out: a tag of symbols alone says nothing.
    """
    rows = len(item_id)
    given: dict[str, pa.ChunkedArray | pa.Array] = {
        "item_id": item_id,
        "label": label,
        "event_time": time,
        "coefficient": pa.repeat(pa.scalar(coefficient, pa.float32()), rows),
        "source": pa.repeat(source, rows),
        "num_events": pa.repeat(pa.scalar(1, pa.int64()), rows),
        **columns,
    }
    table = _filled(given, rows)
    return table.filter(pc.is_valid(table.column("label")))


def _filled(given: dict[str, pa.ChunkedArray | pa.Array], rows: int) -> pa.Table:
    """EVENTS rows of the given columns; the others are null."""
    columns = [given.get(field.name, pa.nulls(rows, field.type)) for field in EVENTS]
    return pa.table(columns, schema=EVENTS)


def _items(
    items: pa.Table, shard: int, split: Split, config: LabelEvents, again: pa.Array
) -> pa.Table:
    rows = items.num_rows
    given: dict[str, pa.ChunkedArray | pa.Array] = {
        "item_id": items.column("item_id"),
        "event_time": items.column("published_at"),
        "shard": pa.repeat(pa.scalar(shard, pa.int32()), rows),
        "heldout": pa.array(split.heldout(items)),
        "duplicate": pc.is_in(items.column("item_id"), value_set=again),
    }
    if config.min_evidence:
        texts = [items.column(name).fill_null("") for name in _TEXTS]
        joined = pc.binary_join_element_wise(*texts, pa.scalar("\n", pa.large_string()))
        given["words"] = words_of(joined, _MAX_WORDS)
    return _filled(given, rows)


def _tags(items: pa.Table, config: LabelEvents) -> tuple[pa.Table, Ledger]:
    if not config.tag_coefficient:
        return _NOTHING
    tags = items.column("tags").combine_chunks()
    owner = pc.list_parent_indices(tags)
    events = _events(
        "tag",
        config.tag_coefficient,
        items.column("item_id").take(owner),
        normalise(pc.list_flatten(tags)),
        items.column("published_at").take(owner),
    )
    left = len(owner) - events.num_rows
    return events, Ledger().record("read tags", len(owner), events.num_rows, {_NO_WORD: left})


def _edges(edges: pa.Table, config: LabelEvents) -> tuple[pa.Table, Ledger]:
    if not config.user_tag_coefficient:
        return _NOTHING
    tagged = pc.and_(
        pc.equal(edges.column("relation"), "tagged"), pc.equal(edges.column("source_type"), "item")
    )
    edges = edges.filter(tagged)
    events = _events(
        "user tag",
        config.user_tag_coefficient,
        edges.column("source_id"),
        normalise(edges.column("target_id")),
        edges.column("event_time"),
    )
    left = edges.num_rows - events.num_rows
    ledger = Ledger().record("read user tags", edges.num_rows, events.num_rows, {_NO_WORD: left})
    return events, ledger


def _searches(searches: pa.Table, split: Split, config: LabelEvents) -> tuple[pa.Table, Ledger]:
    """How often each query showed an item and led to a visit that stayed, a row for each.

    A visit stayed when it was long enough and did not come straight back to the results. What
    came before the cut-off is counted apart, so that it can be told from what training may see.
    """
    if not config.query_coefficient:
        return _NOTHING
    shown = searches.filter(pc.is_valid(searches.column("item_id")))
    long = pc.greater_equal(shown.column("dwell_ms").fill_null(0), config.min_dwell_ms)
    returned = shown.column("returned").fill_null(False)
    stayed = pc.and_(pc.and_(shown.column("clicked"), long), pc.invert(returned))
    time = shown.column("event_time")
    label = normalise(shown.column("query"))
    num_words = pc.add(pc.count_substring(label, " "), 1)
    most = config.max_query_words
    short = pc.is_valid(label) if most is None else pc.less_equal(num_words, most)
    with_word, of_short = pc.is_valid(label), short.fill_null(False)
    num_short = pc.sum(of_short).as_py() or 0
    num_with_word = pc.sum(with_word).as_py() or 0
    num_stayed = pc.sum(pc.and_(of_short, stayed)).as_py() or 0
    dropped = {
        "search that shows no item": searches.num_rows - shown.num_rows,
        _NO_WORD: shown.num_rows - num_with_word,
        "query with too many words": num_with_word - num_short,
        "no visit, or one that did not stay": num_short - num_stayed,
    }
    ledger = Ledger().record("read searches", searches.num_rows, num_stayed, dropped)
    table = pa.table(
        {
            "item_id": shown.column("item_id"),
            "label": pc.if_else(short, label, pa.scalar(None, pa.string())),
            "early": split.visible(time),
            "event_time": time,
            "visit_time": pc.if_else(
                stayed, shown.column("event_time"), pa.scalar(None, TIMESTAMP)
            ),
            "num_events": stayed.cast(pa.int64()),
        }
    )
    keys = ["item_id", "label", "early"]
    sums = [("num_events", "sum"), ("num_events", "count")]
    table = table.group_by(keys).aggregate([*sums, ("event_time", "max"), ("visit_time", "max")])
    events = _events(
        "query",
        config.query_coefficient,
        table.column("item_id"),
        table.column("label"),
        pc.coalesce(table.column("visit_time_max"), table.column("event_time_max")),
        num_events=table.column("num_events_sum"),
        num_shown=table.column("num_events_count"),
    )
    return events, ledger


def _comments(comments: pa.Table, config: LabelEvents) -> tuple[pa.Table, Ledger]:
    """The words of comments that say something: long enough, liked enough, and without a link."""
    if not config.comment_coefficient:
        return _NOTHING
    num_read = comments.num_rows
    likes = comments.column("likes").fill_null(0)
    comments = comments.filter(pc.greater_equal(likes, config.min_comment_likes))
    num_liked = comments.num_rows
    linked = pc.match_substring_regex(comments.column("text"), _LINK).fill_null(False)
    comments = comments.filter(pc.invert(linked))
    num_plain = comments.num_rows
    spelled = normalise(comments.column("text"))
    num_words = pc.add(pc.count_substring(spelled, " "), 1)
    long = pc.greater_equal(num_words, config.min_comment_words).fill_null(False)
    num_words = pc.sum(num_words.filter(long)).as_py() or 0
    comments, spelled = comments.filter(long), spelled.filter(long)
    dropped = {
        "comment with too few likes": num_read - num_liked,
        "comment with a link": num_liked - num_plain,
        "comment with too few words": num_plain - comments.num_rows,
    }
    ledger = Ledger().record("read comments", num_read, comments.num_rows, dropped)
    words = words_of(spelled, _MAX_WORDS)
    owner = pc.list_parent_indices(words)
    digests = [blake2b(text.encode(), digest_size=8).digest() for text in spelled.to_pylist()]
    hashes = np.frombuffer(b"".join(digests), "<i8")
    events = _events(
        "comment",
        config.comment_coefficient,
        comments.column("item_id").take(owner),
        pc.list_flatten(words),
        comments.column("event_time").take(owner),
        text_hash=pa.array(hashes).take(owner),
    )
    # the events are of words: those are counted from here on
    dropped = {f"no word of its own, or past the first {_MAX_WORDS}": num_words - len(owner)}
    return events, ledger.record("words of comments", num_words, len(owner), dropped)
