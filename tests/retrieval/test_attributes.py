"""Which types of columns an index keeps, and that filters and changes hold to all of a value."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import clustered

from rec.retrieval.build import build_index
from rec.retrieval.changes import Put
from rec.retrieval.errors import ChangeError, IndexBuildError
from rec.retrieval.filters import Equal, In, Range, mask
from rec.retrieval.index import Index
from rec.retrieval.live import LiveIndex
from rec.retrieval.spec import IndexConfig
from rec.retrieval.table import write_table

V = clustered(4)


def build(folder: Path, values: pa.Array) -> str:
    write_table(str(folder / "e"), list("abcd"), V, attributes={"x": values})
    build_index(str(folder / "e"), str(folder / "i"), IndexConfig(attributes=("x",)))
    return str(folder / "i")


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (pa.array([1] * 4).cast(pa.decimal128(30, 2)), "float64"),
        (pa.array([b"x"] * 4), "make it text"),
        (pa.array([1] * 4).cast(pa.duration("s")), "an integer"),
        (pa.array([1] * 4, pa.int32()).cast(pa.time32("s")), "an integer"),
        (pa.array([{"y": 1}] * 4), "make it text"),
        (pa.array([[b"x"]] * 4), "make it text"),
        (pa.array(["x"] * 4, pa.string_view()), "cast it to string"),
    ],
)
def test_types_that_no_filter_compares_are_refused_at_build(
    tmp_path: Path, values: pa.Array, advice: str
) -> None:
    with pytest.raises(IndexBuildError, match=f"e: attribute 'x' is of type .*{advice}"):
        build(tmp_path, values)
    write_table(str(tmp_path / "t"), list("abcd"), V)
    pq.write_table(pa.table({"id": list("abcd"), "x": values}), tmp_path / "a.parquet")
    with pytest.raises(IndexBuildError, match=r"a\.parquet: attribute 'x' is of type"):
        build_index(
            str(tmp_path / "t"),
            str(tmp_path / "j"),
            IndexConfig(attributes=("x",)),
            attributes_uri=str(tmp_path / "a.parquet"),
        )


@pytest.mark.parametrize(
    ("values", "like"),
    [
        (pa.array([["a", "b"], ["c", "d"], None, ["a", "a"]], pa.list_(pa.string(), 2)), "a"),
        (pa.array(["a", "b", None, "a"]).dictionary_encode(), "a"),
        (pa.array([["a"], ["b"], None, ["c", "a"]], pa.large_list(pa.string())), "a"),
        (pa.array(np.array([1.5, 2, 3, 1.5], np.float16)), 1.5),
    ],
)
def test_kinds_that_are_kept_as_others(tmp_path: Path, values: pa.Array, like: Any) -> None:
    index = Index.open(build(tmp_path, values))
    rows = index.search(V[:1], 4, where=Equal(column="x", value=like)).rows
    assert sorted(rows[rows >= 0]) == [0, 3]


def test_nanoseconds_are_compared_and_changed_as_they_are(tmp_path: Path) -> None:
    text = "2026-01-01T00:00:00.12345678"
    times = np.array([f"{text}{last}" for last in (0, 1, 9, 9)], "datetime64[ns]")
    live = LiveIndex(build(tmp_path, pa.array(times)), tmp_path / "log", compact_at=None)

    def found(where: Any) -> list[int]:
        rows = live.index.search(V[:1], 6, where=where).rows
        return sorted(rows[rows >= 0].tolist())

    live.apply([Put("new", V[0], {"x": times[1]}), Put("text", V[1], {"x": f"{text}9"})])
    assert found(Equal(column="x", value=f"{text}9")) == [2, 3, 5]
    assert found(Equal(column="x", value=f"{text}9+00:00")) == [2, 3, 5]
    assert found(Equal(column="x", value=f"{text}1")) == [1, 4]
    assert found(In(column="x", values=(f"{text}0", f"{text}1"))) == [0, 1, 4]
    assert found(Range(column="x", least=f"{text}1", below=f"{text}9")) == [1, 4]
    assert found(Equal(column="x", value=text)) == [0]
    assert found(Range(column="x", below=datetime(9999, 1, 1, tzinfo=UTC))) == [0, 1, 2, 3, 4, 5]
    assert found(Range(column="x", least="1500-01-01")) == [0, 1, 2, 3, 4, 5]
    assert found(Range(column="x", below="1500-01-01")) == []
    live.compact()
    assert len(found(Equal(column="x", value=f"{text}9"))) == 3
    live.close()


def test_between_two_microseconds() -> None:
    table = pa.table({"x": pa.array([datetime(2026, 1, 1, 0, 0, 0, n) for n in (1, 2)])})
    between = "2026-01-01T00:00:00.0000015"
    assert mask(Equal(column="x", value=between), table).tolist() == [False, False]
    assert mask(Range(column="x", least=between), table).tolist() == [False, True]
    assert mask(Range(column="x", below=between), table).tolist() == [True, False]


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        (Range(column="x", below=1000), [True, True, False]),
        (Range(column="x", least=-1000), [True, True, False]),
        (Range(column="x", below=-1000), [False] * 3),
        (Range(column="x", least=10**30), [False] * 3),
        (Range(column="x", least=0, below=float("inf")), [False, True, False]),
        (Range(column="x", least=-1e300, below=1.5), [True, False, False]),
    ],
)
def test_bounds_beyond_what_a_column_holds(where: Range, fits: list[bool]) -> None:
    for kind in (pa.int8(), pa.int64()):
        assert mask(where, pa.table({"x": pa.array([-5, 5, None], kind)})).tolist() == fits


def test_a_bound_below_none_of_unsigned() -> None:
    table = pa.table({"x": pa.array([0, 2**64 - 1], pa.uint64())})
    assert mask(Range(column="x", least=-1, below=2**64), table).tolist() == [True, True]


@pytest.mark.parametrize("value", ["news", b"news", {"news": 1}, 5])
def test_what_is_no_list_is_not_split_into_one(tmp_path: Path, value: Any) -> None:
    uri = build(tmp_path, pa.array([["news"]] * 4))
    live = LiveIndex(uri, tmp_path / "log", compact_at=None)
    with pytest.raises(ChangeError, match=r"attribute 'x' is .*expected list<.*: not a list"):
        live.apply([Put("new", V[0], {"x": value})])
    live.apply([Put("a", V[0], {"x": np.array(["b", "c"])}), Put("d", V[1], {"x": None})])
    rows = np.concatenate(live.index.locate(["a", "d"]))
    assert live.index.attributes(rows) == [{"x": ["b", "c"]}, {"x": None}]
    live.close()
