"""Column names and pyarrow schemas of every table, and the one check that holds data to them.

Tables are the only thing that sources produce and that everything after them reads. A field
that is not nullable must be filled in every row. Timestamps are UTC, in microseconds.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

TIMESTAMP = pa.timestamp("us", tz="UTC")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


ITEMS = pa.schema(
    [
        _required("item_id", pa.string()),
        _required("domain", pa.string()),  # what kind of thing: video, film, product, article
        pa.field("title", pa.large_string()),
        pa.field("description", pa.large_string()),
        pa.field("tags", pa.list_(pa.string())),  # hashtags as the uploader wrote them
        pa.field("categories", pa.list_(pa.string())),  # genres, or a path from root to leaf
        pa.field("uploader_id", pa.string()),
        pa.field("published_at", TIMESTAMP),
    ]
)

MEDIA = pa.schema(
    [
        _required("item_id", pa.string()),
        _required("media_index", pa.int32()),  # order within the item and the kind
        _required("kind", pa.string()),  # "frame" (a compressed picture), "audio" or "log_mel"
        _required("uri", pa.string()),  # where it came from, for messages
        _required("data", pa.large_binary()),  # compressed bytes; log_mel: float16, n x 96 x 64
    ]
)

INTERACTIONS = pa.schema(
    [
        _required("user_id", pa.string()),
        _required("item_id", pa.string()),
        _required("domain", pa.string()),
        _required("event", pa.string()),  # impression, click, watch, rating, buy
        pa.field("value", pa.float32()),  # the rating, or the event's weight
        pa.field("dwell_ms", pa.int64()),
        _required("event_time", TIMESTAMP),
    ]
)

SEARCHES = pa.schema(
    [
        _required("user_id", pa.string()),
        _required("query", pa.large_string()),
        pa.field("item_id", pa.string()),  # the item shown at this position
        pa.field("position", pa.int32()),
        _required("clicked", pa.bool_()),
        pa.field("dwell_ms", pa.int64()),
        pa.field("returned", pa.bool_()),  # came straight back to the results
        _required("event_time", TIMESTAMP),
    ]
)

COMMENTS = pa.schema(
    [
        _required("comment_id", pa.string()),
        _required("item_id", pa.string()),
        _required("user_id", pa.string()),
        _required("text", pa.large_string()),
        pa.field("likes", pa.int64()),
        _required("event_time", TIMESTAMP),
    ]
)

RELATIONS = pa.schema(
    [
        _required("head", pa.string()),
        _required("relation", pa.string()),
        _required("tail", pa.string()),
    ]
)

SEQUENCES = pa.schema(
    [
        _required("user_id", pa.string()),
        _required("domain", pa.string()),  # of the items; "" where the log tells none apart
        _required("item_ids", pa.list_(pa.string())),
        _required("event_times", pa.list_(TIMESTAMP)),
        _required("weights", pa.list_(pa.float32())),
    ]
)

EDGES = pa.schema(
    [
        _required("source_type", pa.string()),
        _required("source_id", pa.string()),
        _required("relation", pa.string()),
        _required("target_type", pa.string()),
        _required("target_id", pa.string()),
        _required("weight", pa.float32()),
        pa.field("event_time", TIMESTAMP),
    ]
)

EMBEDDINGS = pa.schema(
    [
        _required("id", pa.string()),
        _required("interest", pa.int32()),
        _required("weight", pa.float32()),
        _required("vector", pa.list_(pa.float32())),
    ]
)

SCORES = pa.schema(
    [
        _required("query_id", pa.string()),
        _required("item_id", pa.string()),
        _required("score", pa.float32()),
    ]
)

# Training rows of behaviour: what rec.data.sequence_rows publishes and models of users read.
SEQUENCE_ROWS = pa.schema(
    [
        _required("user_id", pa.string()),
        _required("item_index", pa.list_(pa.int32())),  # oldest first; rows of SEQUENCE_ITEMS
        _required("weights", pa.list_(pa.float32())),
        _required("event_times", pa.list_(pa.int64())),  # microseconds since 1970
        # how many at the end are held out, to be predicted from those before; 0: a training row
        _required("num_targets", pa.int32()),
    ]
)

# Their items, in order of item_index from 0; an item that only features know has num_events 0.
SEQUENCE_ITEMS = pa.schema(
    [
        _required("item_id", pa.string()),
        _required("num_events", pa.int64()),  # on the training side
        pa.field("published_at", TIMESTAMP),
        _required("tag_index", pa.list_(pa.int32())),
        _required("category_index", pa.list_(pa.int32())),
        _required("uploader_index", pa.int32()),  # -1: not known
    ]
)

# what was left out of the rows of an origin
PROBLEMS = pa.schema(
    [
        _required("place", pa.string()),  # the file, and the column if one
        pa.field("row", pa.int64()),  # data row within the file, from 1; null for whole files
        _required("reason", pa.string()),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "items": ITEMS,
    "media": MEDIA,
    "interactions": INTERACTIONS,
    "searches": SEARCHES,
    "comments": COMMENTS,
    "relations": RELATIONS,
    "sequences": SEQUENCES,
    "edges": EDGES,
    "embeddings": EMBEDDINGS,
    "scores": SCORES,
}


# what a medium of kind "frame" may be: formats that Pillow and OpenCV both read, and a limit, since
# a small file can unpack to gigabytes
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PICTURE_PIXELS = 64_000_000


class SchemaError(ValueError):
    """Data does not fit its table. The message names file, column, row and what was expected."""


# of the years 1 to 9999, in microseconds since 1970
_YEARS_US = (-62_135_596_800_000_000, 253_402_300_800_000_000)


def _first(mask: pa.ChunkedArray | pa.Array) -> int:
    """Position of the first True of a boolean array, or -1."""
    return pc.index(mask, True).as_py()


def _shown(value: pa.Scalar) -> str:
    if pa.types.is_timestamp(value.type):  # Python knows no year after 9999
        return f"{value.cast(pa.int64()).as_py()}"
    return f"{value.as_py()!r}"


def _check_years(column: pa.ChunkedArray, name: str, place: str, first_row: int) -> None:
    """Times that Arrow can hold but no Python date, as milliseconds taken for seconds are."""
    limits = (pa.scalar(number, pa.int64()).cast(TIMESTAMP) for number in _YEARS_US)
    first, last = limits
    strange = pc.or_(pc.less(column, first), pc.greater_equal(column, last))
    if (row := _first(strange)) >= 0:
        raise SchemaError(
            f"{place}, column '{name}', row {first_row + row}: {_shown(column[row])} microseconds "
            f"since 1970, expected a time of the years 1 to 9999"
        )


def _cast(column: pa.ChunkedArray, field: pa.Field, place: str, first_row: int) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        for row in range(len(column)):
            try:
                column.slice(row, 1).cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise SchemaError(
                    f"{place}, column '{field.name}', row {first_row + row}: "
                    f"{_shown(column[row])} is {column.type}, expected {field.type}"
                ) from error
        raise SchemaError(
            f"{place}, column '{field.name}': type {column.type}, expected {field.type}"
        ) from error


def check(table: pa.Table, name: str, *, place: str, first_row: int = 0) -> pa.Table:
    """Return `table` with exactly the columns and types of the table called `name`.

    Args:
        table: any number of rows; nullable columns that are absent are filled with nulls,
            columns the schema does not know are dropped, castable types are cast.
        name: a key of `TABLES`.
        place: what to call the data in messages, usually the file's path.
        first_row: number of the table's first row within `place`, for messages.

    Raises:
        SchemaError: a required column is missing, a value cannot be cast without loss, or a
            required value is null.
    """
    schema = TABLES[name]
    columns: list[pa.ChunkedArray] = []
    for field in schema:
        if field.name not in table.column_names:
            if not field.nullable:
                raise SchemaError(
                    f"{place}: column '{field.name}' is missing; table '{name}' expects "
                    f"{field.type}; found columns {table.column_names}"
                )
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
            continue
        column = _cast(table.column(field.name), field, place, first_row)
        if not field.nullable and column.null_count:
            raise SchemaError(
                f"{place}, column '{field.name}', row {first_row + _first(pc.is_null(column))}: "
                f"empty, expected {field.type}"
            )
        if field.type == TIMESTAMP:
            _check_years(column, field.name, place, first_row)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def check_unique(table: pa.Table, column: str, *, place: str, first_row: int = 0) -> None:
    """Raise SchemaError that names the first repeated value of `column` and its two rows."""
    values = table.column(column).combine_chunks()
    if pc.count_distinct(values).as_py() == len(values):
        return
    seen: dict[object, int] = {}
    for row, value in enumerate(values.to_pylist()):
        if value in seen:
            raise SchemaError(
                f"{place}, column '{column}', row {first_row + row}: {value!r} again, first in "
                f"row {first_row + seen[value]}; expected every {column} once"
            )
        seen[value] = row
