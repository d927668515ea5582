from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.data.log_check import conform
from rec.data.log_read import Batch
from rec.data.logs import LOG_TABLES, LogFiles

SCHEMA = LOG_TABLES["interactions"]
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def times_of(values: pa.Array, log: LogFiles) -> list[datetime | None]:
    """The times that are made of a column's values, None where it is none."""
    rows = len(values)
    same = {name: pa.repeat(name[0], rows) for name in ("user_id", "item_id", "event")}
    batch = Batch(pa.table({**same, "event_time": values}), np.arange(rows), [])
    checked = conform(batch, SCHEMA, log, "here")
    times = checked.table.column("event_time").to_pylist()
    found = dict(zip(checked.rows.tolist(), times, strict=True))
    return [found.get(row) for row in range(rows)]


def test_times_may_be_finer_than_a_microsecond() -> None:
    late = NOON.replace(microsecond=500_000)
    seconds = LogFiles(time_unit="s")
    number = 1767355200
    assert times_of(pa.array([number + 0.5, float("nan"), 1e300]), seconds) == [late, None, None]
    texts = pa.array([f"{number}.5", "1.7673552e9", f"{number}", "soon"])
    assert times_of(texts, seconds) == [late, NOON, NOON, None]
    assert times_of(pa.array([float(number * 1000 + 500)]), LogFiles(time_unit="ms")) == [late]
    fine = [number * 10**9 + 500_000_001]
    assert times_of(pa.array(fine), LogFiles(time_unit="ns")) == [late]
    assert times_of(pa.array(fine, pa.timestamp("ns", "UTC")), LogFiles()) == [late]
    assert times_of(pa.array(fine, pa.timestamp("ns")), LogFiles()) == [late]
    written = ["2026-01-02T12:00:00.500000001Z", "2026-01-02 12:00:00.5", "2026-01-02"]
    assert times_of(pa.array(written), LogFiles()) == [late, late, NOON.replace(hour=0)]
    assert times_of(pa.array([NOON.date()]), LogFiles()) == [NOON.replace(hour=0)]


@given(st.lists(st.sampled_from(["1", "2", "", "x", "1.5", "-3", "é"]), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_bad_values_are_found_wherever_they_are(values: list[str]) -> None:
    rows = len(values)
    cells: dict[str, list[bytes]] = {
        "user_id": [b"u"] * rows,
        "item_id": [b"i"] * rows,
        "event": [b"click"] * rows,
        "event_time": [b"2026-01-02 00:00:00+00:00"] * rows,
        "dwell_ms": [value.encode() for value in values],
    }
    batch = Batch(pa.table(cells), np.arange(1, rows + 1), [])
    checked = conform(batch, SCHEMA, LogFiles(), "here")
    fits = [value in ("1", "2") for value in values]
    assert checked.rows.tolist() == [i + 1 for i, good in enumerate(fits) if good]
    listed = sorted(checked.problems.column("row").to_pylist())
    assert listed == [i + 1 for i, good in enumerate(fits) if not good]
