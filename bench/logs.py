"""Synthetic logs of any size, and a checksum of the sequences that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec.data.shuffle import hash_strings, mix

FIRST_DAY = date(2026, 1, 1)
DAYS = 30
NUM_ITEMS = 500_000
_FILE_ROWS = 1_000_000
_DAY = 86_400_000_000  # microseconds
_START = 1_767_225_600_000_000  # of the first day, since 1970
_ROWS_A_USER = 100


def write_logs(folder: Path, num_rows: int) -> None:
    """Skewed users and items over 30 days, in files by time; no two rows have the same time."""
    folder.mkdir(parents=True)
    step = DAYS * _DAY // num_rows
    for start in range(0, num_rows, _FILE_ROWS):
        rows = min(_FILE_ROWS, num_rows - start)
        table = _events([0, start], _START + start * step, step, rows, _num_users(num_rows))
        pq.write_table(table, folder / f"part-{start // _FILE_ROWS:05d}.parquet")


def write_days(folder: Path, num_rows: int) -> None:
    """The like in a folder a day, `day=2026-01-01` and so on."""
    for day in range(DAYS):
        place = day_folder(folder, day)
        place.mkdir(parents=True)
        of_day = num_rows // DAYS + (day < num_rows % DAYS)
        step = _DAY // of_day
        for start in range(0, of_day, _FILE_ROWS):
            rows = min(_FILE_ROWS, of_day - start)
            begin = _START + day * _DAY + start * step
            table = _events([1, day, start], begin, step, rows, _num_users(num_rows))
            pq.write_table(table, place / f"part-{start // _FILE_ROWS:05d}.parquet")


def day_folder(folder: Path, day: int) -> Path:
    return folder / f"day={FIRST_DAY + timedelta(days=day)}"


def _num_users(num_rows: int) -> int:
    return max(1, num_rows // _ROWS_A_USER)


def _events(seed: Sequence[int], begin: int, step: int, rows: int, num_users: int) -> pa.Table:
    """An event every `step` microseconds or so from `begin` on."""
    random = np.random.default_rng(seed)
    users = (random.random(rows) ** 2 * num_users).astype(np.int64)
    items = (random.random(rows) ** 3 * NUM_ITEMS).astype(np.int64)
    times = begin + np.arange(rows) * step + random.integers(0, step, rows)
    events = random.choice(3, rows, p=[0.2, 0.5, 0.3])
    return pa.table(
        {
            "user_id": pc.binary_join_element_wise("user", pa.array(users).cast("string"), "-"),
            "item_id": pc.binary_join_element_wise("item", pa.array(items).cast("string"), "-"),
            "event": pa.array(["impression", "click", "watch"]).take(pa.array(events)),
            "value": pa.array(random.random(rows, np.float32)),
            "dwell_ms": pa.array(random.integers(0, 30_000, rows)),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )


def checksum(folder: Path) -> tuple[int, int]:
    """Events, and a sum over them of a hash of user, place, item, time and weight.

    Equal for equal rows, in whatever order the users are and in whatever files.
    """
    count, total = 0, 0
    for file in sorted(folder.rglob("*.parquet")):
        names = ["user_id", "item_ids", "event_times", "weights"]
        for batch in pq.ParquetFile(file).iter_batches(65_536, columns=names):
            lists = batch.column("item_ids")
            sizes = pc.list_value_length(lists).to_numpy()
            place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            time = batch.column("event_times").flatten().cast(pa.timestamp("us", "UTC"))
            weight = batch.column("weights").flatten().to_numpy().view(np.uint32)
            parts = [
                np.repeat(hash_strings(batch.column("user_id").cast(pa.string())), sizes),
                place.astype(np.uint64),
                hash_strings(lists.flatten().cast(pa.string())),
                time.cast(pa.int64()).to_numpy().astype(np.uint64),
                weight.astype(np.uint64),
            ]
            hashed = np.zeros(len(place), np.uint64)
            for part in parts:
                hashed = mix(hashed ^ part)
            count += len(place)
            total += int(hashed.sum(dtype=np.uint64))
    return count, total % 2**64
