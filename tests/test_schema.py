from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.schema import INTERACTIONS, TABLES, TIMESTAMP, SchemaError, check, check_unique

SCORES = {"query_id": ["q", "q"], "item_id": ["a", "b"], "score": [1.0, 2.0]}


def test_check_returns_columns_in_order_with_their_types() -> None:
    given_table = pa.table({"score": [1.0], "item_id": ["a"], "query_id": ["q"], "other": [1]})
    table = check(given_table, "scores", place="here")
    assert table.schema == TABLES["scores"]
    assert table.to_pylist() == [{"query_id": "q", "item_id": "a", "score": 1.0}]


def test_check_fills_absent_nullable_columns_with_nulls() -> None:
    table = check(pa.table({"item_id": ["1"], "domain": ["film"]}), "items", place="here")
    assert table.schema == TABLES["items"]
    assert table.column("published_at").null_count == table.num_rows == 1
    assert table.column("tags").to_pylist() == [None]


@pytest.mark.parametrize("name", list(TABLES))
def test_an_empty_table_of_every_schema_passes_its_own_check(name: str) -> None:
    assert check(TABLES[name].empty_table(), name, place="here").schema == TABLES[name]


def test_a_missing_column_is_named_with_what_there_is() -> None:
    table = pa.table(SCORES).drop_columns(["score"])
    with pytest.raises(SchemaError) as caught:
        check(table, "scores", place="s.parquet")
    assert str(caught.value) == (
        "s.parquet: column 'score' is missing; table 'scores' expects float; "
        "found columns ['query_id', 'item_id']"
    )


def test_an_empty_required_value_is_named_with_its_row() -> None:
    table = pa.table({**SCORES, "item_id": ["a", None]})
    with pytest.raises(SchemaError) as caught:
        check(table, "scores", place="s.parquet", first_row=11)
    assert str(caught.value) == "s.parquet, column 'item_id', row 12: empty, expected string"


def test_a_value_of_the_wrong_type_is_named_with_its_row() -> None:
    table = pa.table({**SCORES, "score": ["1.5", "many"]})
    with pytest.raises(SchemaError) as caught:
        check(table, "scores", place="s.parquet", first_row=1)
    message = "s.parquet, column 'score', row 2: 'many' is string, expected float"
    assert str(caught.value) == message


def test_a_number_that_does_not_fit_is_refused_and_not_wrapped() -> None:
    media = {"item_id": ["1"], "kind": ["frame"], "uri": ["x"], "data": [b"x"]}
    with pytest.raises(SchemaError, match=r"m, column 'media_index', row 0: 2147483648 is int64"):
        check(pa.table({**media, "media_index": [2**31]}), "media", place="m")


def test_a_column_whose_type_cannot_be_cast_at_all_is_refused() -> None:
    table = pa.table({**SCORES, "score": pa.array([[1.0], [2.0]])})
    with pytest.raises(SchemaError, match=r"column 'score', row 0: \[1.0\] is list<.*expected"):
        check(table, "scores", place="s")


def test_times_without_a_zone_are_taken_as_utc() -> None:
    naive = pa.array([0], pa.timestamp("s"))
    row = {"user_id": ["u"], "item_id": ["i"], "domain": ["film"], "event": ["rating"]}
    table = check(pa.table({**row, "event_time": naive}), "interactions", place="r")
    assert table.schema == INTERACTIONS
    assert table.column("event_time").cast(pa.int64()).to_pylist() == [0]
    assert table.schema.field("event_time").type == TIMESTAMP


def test_check_unique_names_both_rows() -> None:
    table = pa.table({"item_id": ["a", "b", "c", "b", "a"]})
    with pytest.raises(SchemaError) as caught:
        check_unique(table, "item_id", place="items.csv", first_row=1)
    assert str(caught.value) == (
        "items.csv, column 'item_id', row 4: 'b' again, first in row 2; expected every item_id once"
    )


@given(st.lists(st.integers(0, 20), max_size=12))
def test_check_unique_agrees_with_python(values: list[int]) -> None:
    table = pa.table({"id": pa.array(values, pa.int64())})
    if len(set(values)) == len(values):
        check_unique(table, "id", place="here")
    else:
        with pytest.raises(SchemaError):
            check_unique(table, "id", place="here")


@pytest.mark.parametrize("number", [999_999_999_999_999, 999_999_999_999, -62_135_596_801])
def test_a_time_that_no_date_can_hold_is_refused(number: int) -> None:
    rows = {
        "user_id": ["u", "u"],
        "item_id": ["a", "b"],
        "domain": ["film"] * 2,
        "event": ["click"] * 2,
    }
    times = pa.array([0, number], pa.int64()).cast(pa.timestamp("s", tz="UTC"))
    with pytest.raises(SchemaError, match=r"r\.csv, column 'event_time', row 3: -?\d+ "):
        check(pa.table({**rows, "event_time": times}), "interactions", place="r.csv", first_row=2)
