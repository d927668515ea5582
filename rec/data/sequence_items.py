"""Items of sequence rows: numbered by how often they are trained on, with what is told of them.

What is known of an item meets in a bucket of items: how often it is trained on, its row in the
items table, whether it has a content vector. Then one task numbers all of them, which takes memory
by the number of items, and so does a task that looks their numbers up: 12 bytes an item.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec.data.item_tags import last_of_each
from rec.data.ledger import Ledger
from rec.data.parquet import read_table, write_table
from rec.data.shuffle import codes, hash_distinct, hash_strings
from rec.features.tags import normalise
from rec.schema import SEQUENCE_ITEMS, TIMESTAMP

COUNTED = pa.schema([("item_id", pa.string()), ("num_events", pa.int64())])
ITEM_INFO = pa.schema(
    [
        ("item_id", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("categories", pa.list_(pa.string())),
        ("uploader_id", pa.string()),
        ("published_at", TIMESTAMP),
    ]
)
KNOWN_ITEMS = pa.schema([*COUNTED, *list(ITEM_INFO)[1:]])
# a label's position, its name, and how many items that are trained on have it
LABELS = pa.schema([("index", pa.int32()), ("name", pa.string()), ("num_items", pa.int64())])
_LOOKUP = pa.schema([("hash", pa.uint64()), ("item_index", pa.int32())])


class ItemsError(ValueError):
    """Items cannot be numbered or looked up. Says which and what to do."""


def count_items(items: pa.Array, trained: NDArray[np.bool_]) -> pa.Table:
    """COUNTED of the items of E events; `trained` (E,) tells which of them count."""
    encoded = items.dictionary_encode()
    index = encoded.indices.to_numpy()
    number = np.bincount(index[trained], minlength=len(encoded.dictionary)).astype(np.int64)
    return pa.Table.from_arrays([encoded.dictionary, pa.array(number)], schema=COUNTED)


def join_items(
    counted: pa.Table, info: pa.Table, embedded: pa.Table, min_events: int, has_table: bool
) -> tuple[pa.Table, Ledger]:
    """KNOWN_ITEMS of one bucket, of items that have an event, a row or a vector.

    Args:
        counted: COUNTED of all shards; an item may be there several times.
        info: ITEM_INFO; of an item that is there several times the last row counts.
        embedded: column item_id, of the items with a content vector.
        min_events: an item with fewer on the training side is as one with none.
        has_table: whether there is an items table at all.
    """
    counted = counted.group_by("item_id").aggregate([("num_events", "sum")])
    info, ledger = last_of_each(info)
    ids = [t.column("item_id").cast(pa.string()) for t in (counted, info, embedded)]
    every = pc.unique(pa.chunked_array([c for column in ids for c in column.chunks], pa.string()))
    every = every.take(pc.sort_indices(every))
    at = pc.index_in(every, value_set=counted.column("item_id").combine_chunks())
    number = counted.column("num_events_sum").take(at).fill_null(0).to_numpy()
    with_event, often = np.asarray(pc.is_valid(at)), number >= min_events
    ledger = ledger.record(
        "items trained on",
        len(every),
        int(often.sum()),
        {
            "too few events": int(((number > 0) & ~often).sum()),
            "no event on the training side": int((with_event & (number == 0)).sum()),
            "no event": int((~with_event).sum()),
        },
    )
    row = pc.index_in(every, value_set=info.column("item_id").combine_chunks())
    if has_table:
        found = int((with_event & np.asarray(pc.is_valid(row))).sum())
        num = int(with_event.sum())
        ledger = ledger.record("item table", num, found, {"item not in it": num - found})
    columns = [info.column(name).take(row) for name in ITEM_INFO.names[1:]]
    arrays = [every, pa.array(np.where(often, number, 0), pa.int64()), *columns]
    return pa.Table.from_arrays(arrays, schema=KNOWN_ITEMS), ledger


class Vocabulary(NamedTuple):
    """All items in order of item_index, and what their labels are called."""

    items: pa.Table  # SEQUENCE_ITEMS
    labels: dict[str, pa.Table]  # tags, categories, uploaders -> LABELS


def number_items(known: pa.Table, min_label_items: int) -> Vocabulary:
    """Items by falling num_events, equal ones by id; labels that enough trained-on items have.

    So a training row is the same whatever items are seen later: those have no events to train on
    and come last. Labels are numbered as items are, by how many trained-on items have them. Tags
    are in one spelling (`rec.features.tags.normalise`), categories and uploaders as they are.
    """
    order = pc.sort_indices(
        known, sort_keys=[("num_events", "descending"), ("item_id", "ascending")]
    )
    known = known.take(order).combine_chunks()
    trained = known.column("num_events").to_numpy() > 0
    uploader = known.column("uploader_id").combine_chunks()
    lists = {
        "tags": _lists(known.column("tags"), spelled=True),
        "categories": _lists(known.column("categories"), spelled=False),
        "uploaders": (np.arange(len(uploader)), uploader),
    }
    labels: dict[str, pa.Table] = {}
    found: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for name, (owner, texts) in lists.items():
        labels[name], found[name] = _number_labels(owner, texts, trained, min_label_items)
    owner, index = found["uploaders"]
    uploaders = np.full(known.num_rows, -1, np.int32)
    uploaders[owner] = index
    columns = [
        known.column("item_id"),
        known.column("num_events"),
        known.column("published_at"),
        _list_array(*found["tags"], known.num_rows),
        _list_array(*found["categories"], known.num_rows),
        pa.array(uploaders),
    ]
    return Vocabulary(pa.Table.from_arrays(columns, schema=SEQUENCE_ITEMS), labels)


def _lists(column: pa.ChunkedArray, *, spelled: bool) -> tuple[NDArray[np.int64], pa.Array]:
    """The item that every label is of, and the labels."""
    lists = column.combine_chunks()
    owner = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    texts = lists.flatten()
    return owner, normalise(texts) if spelled else texts


def _number_labels(
    owner: NDArray[np.int64], texts: pa.Array, trained: NDArray[np.bool_], min_items: int
) -> tuple[pa.Table, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """LABELS, and (item, label) pairs by item and label, each once."""
    there = np.asarray(pc.and_(pc.is_valid(texts), pc.not_equal(texts, "")).fill_null(False))
    label, names = codes(pa.chunked_array([texts.filter(pa.array(there))], pa.string()))
    pairs = np.unique(owner[there] * max(len(names), 1) + label)
    owner, label = np.divmod(pairs, max(len(names), 1))
    count = np.bincount(label[trained[owner]], minlength=len(names))
    kept = np.flatnonzero(count >= min_items)
    kept = kept[np.argsort(-count[kept], kind="stable")]  # of equal counts by name
    index = np.full(len(names), -1)
    index[kept] = np.arange(len(kept))
    table = pa.Table.from_arrays(
        [
            pa.array(np.arange(len(kept)), pa.int32()),
            names.take(pa.array(kept)),
            pa.array(count[kept], pa.int64()),
        ],
        schema=LABELS,
    )
    known = index[label] >= 0
    owner, label = owner[known], index[label[known]]
    order = np.lexsort((label, owner))
    return table, (owner[order], label[order])


def _list_array(owner: NDArray[np.int64], label: NDArray[np.int64], rows: int) -> pa.Array:
    offsets = np.searchsorted(owner, np.arange(rows + 1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(label, pa.int32()))


def write_lookup(uri: str, item_ids: pa.ChunkedArray) -> None:
    """Write what `look_up` reads: the numbers of items in order of item_index.

    Raises:
        ItemsError: two ids have one hash, which of a million distinct ones happens once in some
            thirty million data sets.
    """
    hashed = hash_strings(item_ids)
    order = np.argsort(hashed, kind="stable")
    again = np.flatnonzero(np.diff(hashed[order]) == 0)
    if len(again):
        two = [item_ids[int(order[again[0] + step])].as_py() for step in (0, 1)]
        raise ItemsError(f"items {two[0]!r} and {two[1]!r} have one hash; rename one of them")
    columns = [pa.array(hashed[order]), pa.array(order, pa.int32())]
    write_table(uri, pa.Table.from_arrays(columns, schema=_LOOKUP))


@functools.lru_cache(maxsize=1)
def _lookup(uri: str) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Opened once a worker process."""
    table = read_table(uri)
    return table.column("hash").to_numpy(), table.column("item_index").to_numpy()


def look_up(uri: str, item_ids: pa.Array) -> NDArray[np.int32]:
    """(n,) item_index of each id, all of which are among the items.

    Raises:
        ItemsError: one is not.
    """
    hashes, numbers = _lookup(uri)
    encoded = item_ids.dictionary_encode()
    hashed = hash_distinct(encoded.dictionary)
    at = np.minimum(np.searchsorted(hashes, hashed), max(len(hashes) - 1, 0))
    found = hashes[at] == hashed if len(hashes) else np.zeros(len(hashed), bool)
    if not found.all():
        missing = encoded.dictionary[int(np.argmin(found))].as_py()
        raise ItemsError(
            f"{uri}: item {missing!r} has no number, so the behaviour or the vectors changed while "
            "rows were made of them; delete the work- folder and run again"
        )
    return numbers[at][encoded.indices.to_numpy()]
