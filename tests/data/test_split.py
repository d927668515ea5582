"""The cut-off that is found in times of publication, also where many items share a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec.data.split import Split, fit_split
from rec.schema import TIMESTAMP

pytestmark = pytest.mark.ray
START = datetime(2024, 1, 1, tzinfo=UTC)


def found(place: Path, days: Sequence[float | None], fraction: float) -> tuple[Split, np.ndarray]:
    times = [None if day is None else START + timedelta(days=float(day)) for day in days]
    ids = [f"i{n:03d}" for n in range(len(days))]
    items = pa.table({"item_id": ids, "published_at": pa.array(times, TIMESTAMP)})
    (place / "items").mkdir()
    half = len(days) // 2
    for index, part in enumerate((items.slice(0, half), items.slice(half))):
        pq.write_table(part, place / "items" / f"shard-{index:05d}.parquet")
    split = fit_split(str(place), 2, fraction, None)
    return split, split.heldout(items)


def test_the_newest_tenth_is_held_out(ray_local: None, tmp_path: Path) -> None:
    days = list(np.random.default_rng(0).permutation(200))
    heldout = found(tmp_path, days, 0.1)[1]
    assert sorted(day for day, out in zip(days, heldout, strict=True) if out) == [*range(180, 200)]


def test_all_of_the_last_time_are_held_out_where_they_are_more(
    ray_local: None, tmp_path: Path
) -> None:
    days = [*range(80), *[100] * 40]
    heldout = found(tmp_path, days, 0.1)[1]
    assert [day for day, out in zip(days, heldout, strict=True) if out] == [100] * 40


def test_one_old_time_does_not_blur_the_others(ray_local: None, tmp_path: Path) -> None:
    hours = np.random.default_rng(0).permutation(400) / 24 / 60  # minutes of one day
    days = [-54 * 365, *hours]
    heldout = found(tmp_path, days, 0.1)[1]
    newest = sorted(days)[-40:]
    assert sorted(day for day, out in zip(days, heldout, strict=True) if out) == newest


def test_a_last_time_of_most_items_splits_by_hash(ray_local: None, tmp_path: Path) -> None:
    split, heldout = found(tmp_path, [*range(20), *[100] * 380], 0.2)
    assert split.cutoff is None
    assert 40 < heldout.sum() < 120


@pytest.mark.parametrize("day", [7, None])
def test_a_time_that_all_share_splits_by_hash(
    ray_local: None, tmp_path: Path, day: int | None
) -> None:
    split, heldout = found(tmp_path, [day] * 400, 0.2)
    assert split.cutoff is None
    assert 40 < heldout.sum() < 120
