"""The part of bench.retrieval about changes: how long until a search finds what was put."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from bench.harness import Report
from bench.retrieval_data import clustered, write_table
from rec.retrieval.build import build_index
from rec.retrieval.changes import Put
from rec.retrieval.live import LiveIndex
from rec.retrieval.spec import IndexConfig


def updates(report: Report, folder: Path, num: int, dim: int) -> None:
    """Wall seconds from handing changes over until a search has found the last of them, one at a
    time and a hundred at a time, with nothing else to do and while a compaction runs."""
    vectors, fresh = clustered(num, dim, 0), clustered(20_000, dim, 3)
    table = write_table(vectors, f"{folder}/e")
    build_index(table, f"{folder}/i", IndexConfig())
    live = LiveIndex(f"{folder}/i", f"{folder}/log", compact_at=None)
    place = 0

    def visible(batch: int) -> float:
        nonlocal place
        rows = np.arange(place, place + batch) % len(fresh)
        place += batch
        changes = [Put(f"item-{row * 7 % num}", fresh[row]) for row in rows]
        started = time.perf_counter()
        live.apply(changes)
        found = live.index.search(fresh[rows[-1:]], 1).ids[0, 0]
        seconds = time.perf_counter() - started
        if found != changes[-1].item_id:
            raise RuntimeError(f"{changes[-1].item_id} was put and not found")
        return seconds

    def add(name: str, seconds: list[float]) -> None:
        low, high = np.quantile(seconds, (0.5, 0.99))
        report.add(f"updates: seconds until found, {name}, median", low)
        report.add(f"updates: seconds until found, {name}, p99", high, 1, at_most=True)

    for batch in (1, 100):
        add(f"{batch} a call, {num:,} x {dim}", [visible(batch) for _ in range(100)])
    live._start_worker()
    worker = live._worker
    assert worker is not None
    started, meanwhile = time.perf_counter(), []
    while worker.is_alive():
        meanwhile.append(visible(1))
        time.sleep(0.02)
    report.note(
        f"updates: a compaction of {num:,} with {place:,} changes: "
        f"{time.perf_counter() - started:.1f} s beside {len(meanwhile)} changes"
    )
    add("1 a call while it compacts", meanwhile)
    live.close()
    started = time.perf_counter()
    live = LiveIndex(f"{folder}/i", f"{folder}/log", compact_at=None)
    report.add("updates: seconds to open it again", time.perf_counter() - started)
    live.close()
