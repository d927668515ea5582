"""The job as a user runs it: killed, run again, and a day later."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.behaviour import arguments, config_of, main
from rec.artifacts import join, read_manifest, verify
from rec.config import ConfigError
from rec.data.behaviour import KIND, read_ledger

_SETTINGS = [
    "num_buckets=12",
    "edges={}",
    "interactions.day=day=(.{10})",
    'interactions.columns={"item_id": "video"}',
]


def write_day(logs: Path, day: int, rows: int) -> None:
    random = np.random.default_rng(day)
    times = np.datetime64(f"2026-01-0{day}", "us") + random.integers(0, 86_400_000_000, rows)
    folder = logs / "interactions" / f"day=2026-01-0{day}"
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "user_id": pa.array(random.integers(0, rows // 20, rows)),
            "video": pa.array(random.integers(0, 500, rows)),
            "event": ["watch"] * rows,
            "event_time": times,
        }
    )
    pq.write_table(table, folder / "a.parquet")


def flags(logs: Path, out: Path) -> list[str]:
    return ["--logs", str(logs), "--out", str(out), "--cutoff", "2026-02-01", "--set", *_SETTINGS]


def contents(out: Path) -> dict[str, str]:
    manifest = read_manifest(str(out), KIND)
    verify(str(out), manifest)
    return {name: entry.sha256 for name, entry in manifest.files.items() if "ledger" not in name}


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_job_goes_on_and_writes_every_row_once(
    ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs, out, whole = tmp_path / "logs", tmp_path / "out", tmp_path / "whole"
    write_day(logs, 1, 20_000)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    killed = subprocess.Popen(
        [sys.executable, "-m", "jobs.behaviour", *flags(logs, out)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    try:
        while len(list(out.glob("work-*/done/sequences/shard-*.json"))) < 3:
            assert time.monotonic() < deadline
            assert killed.poll() is None
            time.sleep(0.02)
        started = [" ".join(one.cmdline()) for one in psutil.Process(killed.pid).children()]
        assert any("raylet" in line for line in started)
        # nor what carries output: these are for a Ray that outlives the job
        assert not [line for line in started if re.search("dashboard.py|monitor.py", line)]
    finally:
        os.killpg(killed.pid, signal.SIGKILL)  # the job, with the Ray that it started
        killed.wait()
    assert not (out / "manifest.json").exists()
    for place in (out, whole):
        assert main(flags(logs, place)) == 0
    assert "read interactions        20000       20000  -" in capsys.readouterr().out
    assert contents(out) == contents(whole)
    assert read_ledger(str(out)).stages == read_ledger(str(whole)).stages
    assert (
        sum(
            len(row["item_ids"])
            for name in contents(out)
            if name.startswith("sequences/")
            for row in pq.read_table(
                join(str(out), read_manifest(str(out), KIND).root, name)
            ).to_pylist()
        )
        == read_ledger(str(out)).stages["sequences"].rows_out
    )


def test_logs_are_found_by_their_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="interactions: not found"):
        config_of(str(tmp_path), [])
    for name in ("interactions", "items"):
        (tmp_path / name).mkdir()
    config = config_of(str(tmp_path), ['edges={"window": 5}'])
    assert config.interactions.path == str(tmp_path / "interactions")
    assert config.searches is None
    assert config.items is not None
    assert config.edges is not None
    assert config.edges.window == 5
    with pytest.raises(ConfigError, match="no field 'min_dwell'"):
        config_of(str(tmp_path), ["filters.min_dwell=3"])


def test_a_cut_off_is_required(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        arguments().parse_args(["--logs", "a", "--out", "b"])
    assert "--cutoff" in capsys.readouterr().err
    given = ["--logs", str(tmp_path), "--out", str(tmp_path), "--cutoff", "2026-01-01"]
    assert main(given) == 1
    assert "behaviour: " in capsys.readouterr().err
