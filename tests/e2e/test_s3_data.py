"""Logs and folders on S3 through Ray to artifacts on S3, by the commands that users run."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import cv2
import numpy as np
import pyarrow as pa
import pytest

from jobs import behaviour, ingest, sequences
from rec.artifacts import join, read_manifest, verify, write_atomic
from rec.data import sequence_rows
from rec.data.behaviour import KIND, read_ledger
from rec.data.parquet import read_table, write_table
from rec.data.tables import read_tables, shard_file

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]


def write_day(base: str, day: int) -> None:
    """A day of a log as JSON lines, of which the last is none."""
    start = datetime(2026, 1, 1, 8, tzinfo=UTC) + timedelta(days=day)
    rows = [
        {
            "user_id": f"u{n % 5}",
            "item_id": f"i{(7 * n + day) % 11}",
            "event": "click",
            "event_time": (start + timedelta(minutes=n)).isoformat(),
        }
        for n in range(60)
    ]
    lines = [*map(json.dumps, rows), "{broken"]
    place = join(base, "logs", "interactions", f"day=2026-01-0{day + 1}", "a.jsonl")
    write_atomic(place, "\n".join(lines).encode())


def write_items(base: str) -> None:
    tags = [[f"t{n % 3}", f"t{n % 2}"] for n in range(11)]
    table = pa.table({"item_id": [f"i{n}" for n in range(11)], "tags": tags})
    write_table(join(base, "logs", "items", "items.parquet"), table)


def test_logs_to_rows_on_s3_day_by_day(ray_local: None, s3: str) -> None:
    base = f"{s3}/site"
    write_items(base)
    out, rows, items = join(base, "behaviour"), join(base, "rows"), join(base, "logs", "items")
    flags = ["--logs", join(base, "logs"), "--out", out, "--cutoff", "2026-02-01"]
    for day in range(2):
        write_day(base, day)
        settings = ["num_buckets=2", "interactions.day=day=(.{10})"]
        assert behaviour.main([*flags, "--set", *settings]) == 0
    assert sequences.main(
        ["--behaviour", out, "--out", rows, "--items", items, "--leave-one-out"]
    ) == 0  # fmt: skip
    published = read_manifest(out, KIND)
    verify(out, published)
    assert published.lineage["previous"]
    ledger = read_ledger(out)
    assert ledger.stages["read interactions"].dropped == {"not a row": 2}
    assert ledger.stages["sequences"].rows_out == 120
    made = read_manifest(rows, sequence_rows.KIND)
    verify(rows, made)
    assert made.lineage["behaviour"] == published.version
    assert made.metrics["test"]["events"] == 5


def test_a_folder_of_pictures_on_s3_becomes_tables_there(ray_local: None, s3: str) -> None:
    lines = ["item_id,title,files"]
    for n in range(4):
        picture = np.full((16, 16, 3), 40 * n, np.uint8)
        data = cv2.imencode(".png", picture)[1].tobytes() if n else b"broken"
        write_atomic(f"{s3}/mine/pictures/{n}.png", data)
        lines.append(f"i{n},number {n},pictures/{n}.png")
    write_atomic(f"{s3}/mine/items.csv", "\n".join(lines).encode())
    flags = ["--source", "folder", "--path", f"{s3}/mine", "--out", f"{s3}/run", "--tables-only"]
    assert ingest.main([*flags, "--set", "source.num_shards=2"]) == 0
    tables = read_tables(f"{s3}/run/tables")
    assert tables.tables["media"].num_rows == 3
    assert tables.ledger.stages["files"].dropped == {"cannot be read": 1}
    found = [read_table(shard_file(f"{s3}/run/tables", "media", i)) for i in range(2)]
    assert pa.concat_tables(found).column("uri").to_pylist()[0] == f"{s3}/mine/pictures/1.png"
