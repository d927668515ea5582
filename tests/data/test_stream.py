"""Row streams: every row once an epoch, and any restart equals the unbroken stream."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec import artifacts
from rec.data.stream import RowPass, RowStream, Split, StreamError, open_rows

shard_sizes = st.lists(st.integers(0, 23), min_size=1, max_size=6)
layout = {
    "sizes": shard_sizes,
    "row_group": st.integers(1, 9),
    "world": st.integers(1, 4),
    "batch": st.integers(1, 5),
    "window": st.integers(1, 20),
}


@contextmanager
def written(sizes: list[int], row_group: int) -> Iterator[Split]:
    with tempfile.TemporaryDirectory() as folder:
        first = 0
        for i, size in enumerate(sizes):
            table = pa.table({"row": pa.array(range(first, first + size), pa.int64())})
            place = Path(folder, "v-1", "train", f"shard-{i:05d}.parquet")
            place.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, place, row_group_size=row_group)
            first += size
        artifacts.seal(folder, "v-1", "content-rows")
        yield open_rows(folder, "content-rows", "train")


def rows_of(table: pa.Table) -> list[int]:
    return table.column("row").to_pylist()


def streams(split: Split, world: int, batch: int, window: int) -> list[RowStream[list[int]]]:
    return [
        RowStream(
            split, rows_of, batch_size=batch, seed=3, rank=r, world=world, shuffle_rows=window
        )
        for r in range(world)
    ]


@settings(max_examples=40, deadline=None)
@given(**layout)
def test_an_epoch_has_every_row_once_but_the_documented_tail(
    sizes: list[int], row_group: int, world: int, batch: int, window: int
) -> None:
    with written(sizes, row_group) as split:
        if sum(sizes) < world * batch:
            with pytest.raises(StreamError, match="fewer than one batch"):
                streams(split, world, batch, window)
            return
        ranks = streams(split, world, batch, window)
        steps = ranks[0].steps_per_epoch
        assert steps == sum(sizes) // (world * batch)
        for epoch in range(2):
            seen = [
                row
                for stream in ranks
                for part in itertools.islice(stream.batches(epoch * steps), steps)
                for row in part
            ]
            assert len(seen) == len(set(seen)) == steps * world * batch
            assert len(seen) > sum(sizes) - world * batch
            assert set(seen) <= set(range(sum(sizes)))


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 30), **layout)
def test_starting_anywhere_equals_the_unbroken_stream(
    start: int, sizes: list[int], row_group: int, world: int, batch: int, window: int
) -> None:
    with written(sizes, row_group) as split:
        if sum(sizes) < world * batch:
            return
        stream = streams(split, world, batch, window)[-1]
        unbroken = list(itertools.islice(stream.batches(), start + 5))
        assert list(itertools.islice(stream.batches(start), 5)) == unbroken[start:]


def test_skipped_rows_are_neither_collated_nor_read() -> None:
    with written([40] * 10, 10) as split:
        collated: list[list[int]] = []

        def collate(table: pa.Table) -> list[int]:
            collated.append(rows_of(table))
            return collated[-1]

        whole = RowStream(split, rows_of, batch_size=4, shuffle_rows=20)
        tail = RowStream(split, collate, batch_size=4, shuffle_rows=20, prefetch=1)
        got = list(itertools.islice(tail.batches(90), 3))
        skipped = {r for b in itertools.islice(whole.batches(), 90) for r in b}
        assert not skipped & {r for b in collated for r in b}
        assert got == list(itertools.islice(whole.batches(), 93))[90:]


def test_order_depends_on_seed_and_epoch_and_crosses_shards() -> None:
    with written([16] * 4, 4) as split:
        stream = RowStream(split, rows_of, batch_size=16, seed=1, shuffle_rows=32)
        other = RowStream(split, rows_of, batch_size=16, seed=2, shuffle_rows=32)
        first = list(itertools.islice(stream.batches(), 8))
        assert first[:4] != first[4:]
        assert first[:4] != list(itertools.islice(other.batches(), 4))
        assert len({row // 16 for row in first[0]}) > 1


def test_collate_errors_reach_the_consumer() -> None:
    def broken(table: pa.Table) -> None:
        raise ValueError("row 7 is broken")

    with written([8], 8) as split, pytest.raises(ValueError, match="row 7 is broken"):
        next(RowStream(split, broken, batch_size=2).batches())


@settings(max_examples=40, deadline=None)
@given(
    sizes=shard_sizes,
    row_group=st.integers(1, 9),
    world=st.integers(1, 4),
    batch=st.integers(1, 7),
)
def test_a_pass_has_every_row_once_in_equal_steps(
    sizes: list[int], row_group: int, world: int, batch: int
) -> None:
    with written(sizes, row_group) as split:
        if sum(sizes) < world:
            with pytest.raises(StreamError, match="workers"):
                RowPass(split, rows_of, batch_size=batch, world=world)
            return
        passes = [
            list(RowPass(split, rows_of, batch_size=batch, rank=r, world=world))
            for r in range(world)
        ]
        assert [row for batches in passes for b in batches for row in b] == list(range(sum(sizes)))
        assert len({len(batches) for batches in passes}) == 1
        assert all(1 <= len(b) <= batch + 1 for batches in passes for b in batches)


def test_published_rows_are_opened_and_wrong_places_are_named(tmp_path: Path) -> None:
    for split, size in {"train": 6, "heldout": 2}.items():
        folder = tmp_path / "rows" / "v-1" / split
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"row": list(range(size))}), folder / "shard-00000.parquet")
    artifacts.seal(tmp_path / "rows", "v-1", "content-rows")
    assert open_rows(str(tmp_path / "rows"), "content-rows", "train").num_rows == 6
    assert open_rows(str(tmp_path / "rows"), "content-rows", "heldout").num_rows == 2
    with pytest.raises(StreamError, match="v-1/test: no Parquet shards are published"):
        open_rows(str(tmp_path / "rows"), "content-rows", "test")


def test_shards_that_were_not_published_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "v-1" / "train"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"row": [1, 2]}), folder / "shard-00000.parquet")
    artifacts.seal(tmp_path, "v-1", "content-rows")
    pq.write_table(pa.table({"row": [3, 4, 5]}), folder / "shard-00001.parquet")
    assert open_rows(str(tmp_path), "content-rows", "train").num_rows == 2


def test_fingerprint_sees_another_cut() -> None:
    with written([8, 8], 8) as one, written([8, 8], 8) as same, written([8, 8], 4) as other:
        assert one.fingerprint == same.fingerprint != other.fingerprint
