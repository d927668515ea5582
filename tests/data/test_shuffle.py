from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rec.data.parquet import write_table
from rec.data.shuffle import (
    BucketWriter,
    ShuffleError,
    bucket_of,
    codes,
    hash_strings,
    mix,
    read_bucket,
    stable_order,
    starts,
)

SCHEMA = pa.schema([("key", pa.string()), ("number", pa.int64())])


def plain_hash(text: str, salt: int) -> int:
    """The definition of hash_strings with Python's integers."""
    data = text.encode()
    total = 0
    for place, letter in enumerate(data):
        key = int(mix(np.array([place + (salt << 32)], np.uint64))[0])
        total = (total + (letter + 1) * key) % 2**64
    value = total ^ (len(data) * 0x9E3779B97F4A7C15) % 2**64
    return int(mix(np.array([value], np.uint64))[0])


@given(st.lists(st.none() | st.text(max_size=6), max_size=12), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_hash_agrees_with_its_definition(texts: list[str | None], salt: int) -> None:
    found = hash_strings(pa.chunked_array([pa.array(texts, pa.string())]), salt)
    assert found.tolist() == [plain_hash(text or "", salt) for text in texts]


def test_hash_is_that_of_the_value_and_not_of_its_place() -> None:
    column = pa.array(["skip", "user-1", "", "user-2", "user-1"])
    assert hash_strings(column.slice(1))[0] == hash_strings(pa.array(["user-1"]))[0]
    # written down: a hash that changes loses the buckets of all earlier days
    assert hash_strings(pa.array(["user-1"])).tolist() == [16751697260173289732]


def test_buckets_are_even_and_salts_independent() -> None:
    keys = pa.array([f"u{i}" for i in range(64_000)])
    first = bucket_of(hash_strings(keys), 64)
    counts = np.bincount(first, minlength=64)
    assert counts.min() > 850
    assert counts.max() < 1150
    same = (first == bucket_of(hash_strings(keys, 1), 64)).mean()
    assert same == pytest.approx(1 / 64, abs=0.005)
    assert len(np.unique(hash_strings(keys))) == 64_000


def test_rows_come_back_once_in_their_bucket_and_in_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    places, rows = [], []
    for task in range(3):
        place = str(tmp_path / f"task-{task}.arrow")
        places.append(place)
        with BucketWriter(place, SCHEMA, 5) as writer:
            for part in range(2):
                keys = [f"k{i}" for i in random.integers(0, 20, 30)]
                table = pa.table({"key": keys, "number": np.arange(30) + 100 * (2 * task + part)})
                rows += table.to_pylist()
                writer.write(table, bucket_of(hash_strings(table.column("key")), 5))
    found = [read_bucket(places, b, 5, SCHEMA).to_pylist() for b in range(5)]
    for b, table in enumerate(found):
        expected = [r for r in rows if bucket_of(hash_strings(pa.array([r["key"]])), 5)[0] == b]
        assert table == expected
    assert sum(map(len, found)) == len(rows) == 180


def test_many_small_tables_are_one_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "task.arrow")
    table = pa.table({"key": ["a", "b"], "number": [1, 2]})
    bucket = np.array([3, 0], np.uint16)
    for rows, rounds in ((1000, 1), (50, 4)):
        monkeypatch.setattr("rec.data.shuffle._ROUND_ROWS", rows)
        with BucketWriter(place, SCHEMA, 5) as writer:
            for _ in range(100):
                writer.write(table, bucket)
                writer.write(table.slice(0, 0), bucket[:0])
        assert pa.ipc.open_file(place).num_record_batches == 5 * rounds
        assert [read_bucket([place], b, 5, SCHEMA).num_rows for b in range(5)] == [
            100,
            0,
            0,
            100,
            0,
        ]


def test_buckets_without_rows_cost_next_to_nothing(tmp_path: Path) -> None:
    rows = pa.table({"id": [f"item-{n}" for n in range(2000)]})
    sizes = []
    for num_buckets in (1, 300):
        uri = str(tmp_path / f"{num_buckets}.arrow")
        with BucketWriter(uri, rows.schema, num_buckets) as writer:
            writer.write(rows, np.zeros(2000, np.uint16))
        assert read_bucket([uri], 0, num_buckets, rows.schema) == rows
        sizes.append(Path(uri).stat().st_size)
    assert sizes[1] - sizes[0] < 300 * 400


def test_a_file_that_failed_is_not_there_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    place = str(tmp_path / "task.arrow")
    with pytest.raises(RuntimeError), BucketWriter(place, SCHEMA, 2):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with BucketWriter(place, SCHEMA, 3) as writer:
        writer.write(pa.table({"key": ["a"], "number": [1]}), np.zeros(1, np.uint16))
    with pytest.raises(ShuffleError, match="3 batches, expected a multiple of 2"):
        read_bucket([place], 0, 2, SCHEMA)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-(2**62), 2**62)), max_size=20))
@example([(0, 2**62), (0, -(2**62))])  # further apart than 63 bits hold
@settings(max_examples=60, deadline=None)
def test_order_and_runs(pairs: list[tuple[int, int]]) -> None:
    first = np.array([p[0] for p in pairs], np.int64)
    second = np.array([p[1] for p in pairs], np.int64)
    for keys in (first, first * 70_000):  # of 2 bits and of more than 16
        for times in (second, second % 2**30, np.sort(second), second % 7):
            order = stable_order(keys, times)
            expected = sorted(range(len(pairs)), key=lambda i: (keys[i], times[i], i))
            assert order.tolist() == expected
    runs = starts(first[order], (second % 7)[order])
    distinct = len({(a, b % 7) for a, b in pairs})
    assert len(runs) == distinct + 1
    assert runs[-1] == len(pairs)


def test_codes_rank_strings() -> None:
    found, values = codes(pa.chunked_array([["b", "a"], ["c", "b"]]))
    assert found.tolist() == [1, 0, 2, 1]
    assert values.to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["buckets", "parquet"])
def test_a_file_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its marker is, so after a power cut there would be a marker beside an empty file."""
    path, done = tmp_path / "file", list[str]()
    sync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        done.append(f"sync {os.readlink(f'/proc/self/fd/{number}')}")
        sync(number)

    def replaced(aside: str, target: str) -> None:
        done.append(f"name {aside}")
        replace(aside, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    rows = pa.table({"key": ["a"], "number": [1]}, SCHEMA)
    if kind == "buckets":
        with BucketWriter(str(path), SCHEMA, 1) as writer:
            writer.write(rows, np.zeros(1, np.uint16))
    else:
        write_table(str(path), rows)
    aside = done[0].removeprefix("sync ")
    assert Path(aside).name.lstrip(".").startswith("file.")
    assert done == [f"sync {aside}", f"name {aside}", f"sync {tmp_path}"]
