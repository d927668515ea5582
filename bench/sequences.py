"""Interactions to per-user sequences in Parquet beside polars, DuckDB and PySpark; growth; faults.

Every engine runs as a process of its own, start included, ours as the job that a user runs
(`python -m jobs.behaviour`), which also checks every row, looks for bots and duplicates, keeps a
ledger and hashes what it publishes. All write the same rows, which is checked. The peers live in
an environment of their own:

    python -m venv peers && peers/bin/pip install polars duckdb pyspark   # and a Java 17
    python -m bench.sequences --peers peers/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.harness import RESULTS, PeakMemory, Report, main
from bench.peers_sequences import EVENTS, MAX_LENGTH, MIN_DWELL_MS
from bench.workload import cores
from rec.artifacts import read_manifest
from rec.data.behaviour import KIND, read_ledger
from rec.data.shuffle import hash_strings, mix

PEERS = ("polars", "duckdb", "pyspark")
_FILE_ROWS = 1_000_000
_START = 1_767_225_600_000_000  # 2026-01-01, microseconds
_DAYS = 30
_ROWS_A_USER = 100


def write_logs(folder: Path, num_rows: int) -> None:
    """Skewed users and items over 30 days, in files by time; no two rows have the same time."""
    folder.mkdir(parents=True)
    num_users = max(1, num_rows // _ROWS_A_USER)
    step = _DAYS * 86_400_000_000 // num_rows
    for start in range(0, num_rows, _FILE_ROWS):
        rows = min(_FILE_ROWS, num_rows - start)
        random = np.random.default_rng([0, start])
        users = (random.random(rows) ** 2 * num_users).astype(np.int64)
        items = (random.random(rows) ** 3 * 500_000).astype(np.int64)
        times = _START + (start + np.arange(rows)) * step + random.integers(0, step, rows)
        events = random.choice(3, rows, p=[0.2, 0.5, 0.3])
        table = pa.table(
            {
                "user_id": pc.binary_join_element_wise("user", pa.array(users).cast("string"), "-"),
                "item_id": pc.binary_join_element_wise("item", pa.array(items).cast("string"), "-"),
                "event": pa.array(["impression", "click", "watch"]).take(pa.array(events)),
                "value": pa.array(random.random(rows, np.float32)),
                "dwell_ms": pa.array(random.integers(0, 30_000, rows)),
                "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            }
        )
        pq.write_table(table, folder / f"part-{start // _FILE_ROWS:05d}.parquet")


def ours(logs: Path, out: Path) -> list[str]:
    """The command of the job, with the peers' filters."""
    settings = [
        f"filters.events={json.dumps(EVENTS)}",
        f"filters.min_dwell_ms={MIN_DWELL_MS}",
        f"sequences.max_length={MAX_LENGTH}",
    ]
    job = [sys.executable, "-m", "jobs.behaviour", "--logs", str(logs), "--out", str(out)]
    return [*job, "--cutoff", "2030-01-01", "--set", *settings]


def peer(python: str, engine: str, logs: Path, out: Path) -> list[str]:
    script = Path(__file__).with_name("peers_sequences.py")
    return [python, str(script), engine, str(logs / "interactions"), str(out), str(cores())]


def timed(command: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak bytes of a process and all that it starts.

    Raises:
        CalledProcessError: it failed; its output has been printed.
    """
    away = {"RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"}
    environment = {name: value for name, value in os.environ.items() if name not in away}
    environment |= {"POLARS_MAX_THREADS": str(cores()), "PYTHONPATH": str(RESULTS.parents[1])}
    started = time.perf_counter()
    with PeakMemory() as memory:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        done.check_returncode()
    return seconds, memory.peak


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


def sequences_of(out: Path) -> Path:
    """The folder with the sequences that our job published."""
    return out / read_manifest(str(out), KIND).root / "sequences"


def compare(work: Path, quick: bool, python: str, report: Report) -> None:
    """All engines in turn; the median time of each. At a quick run's size starting is all."""
    num_rows, repeats = (200_000, 1) if quick else (20_000_000, 3)
    logs = work / "logs"
    write_logs(logs / "interactions", num_rows)
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *PEERS)}
    sums: dict[str, tuple[int, int]] = {}
    peaks: dict[str, int] = dict.fromkeys(seconds, 0)
    for _ in range(repeats):
        for name, found in seconds.items():
            out = work / name
            shutil.rmtree(out, ignore_errors=True)
            command = ours(logs, out) if name == "ours" else peer(python, name, logs, out)
            took, peak = timed(command)
            found.append(took)
            peaks[name] = max(peaks[name], peak)
            sums[name] = checksum(sequences_of(out) if name == "ours" else out)
            print(f"   {name}: {took:.1f} s, {peak / 2**30:.2f} GB", flush=True)
    times = {name: statistics.median(found) for name, found in seconds.items()}
    for name, took in times.items():
        report.add(f"{name}, {num_rows:,} rows, s", took)
        report.add(f"{name}, peak, GB", peaks[name] / 2**30)
    same = sum(sums[name] == sums["ours"] for name in PEERS)
    report.add("peers that wrote the same rows", same, len(PEERS))
    report.add("ours / PySpark, speed", times["pyspark"] / times["ours"], None if quick else 3.0)
    report.add("ours / polars, speed", times["polars"] / times["ours"], None if quick else 0.5)
    report.add("ours / DuckDB, speed", times["duckdb"] / times["ours"])
    report.note(
        f"{repeats} runs in turn, medians of whole processes, {cores()} cores; "
        f"{sums['ours'][0]:,} events kept by all"
    )


def grow(work: Path, quick: bool, report: Report) -> None:
    """Time and peak memory of ours at two sizes, then the large one once more with faults."""
    sizes = (200_000, 2_000_000) if quick else (5_000_000, 50_000_000)
    times, peaks = [], []
    logs, out = work / "logs", work / "out"
    for num_rows in sizes:
        shutil.rmtree(logs, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        write_logs(logs / "interactions", num_rows)
        took, peak = timed(ours(logs, out))
        times.append(took)
        peaks.append(peak / 2**30)
        report.add(f"ours, {num_rows:,} rows, s", took)
        report.add(f"ours, {num_rows:,} rows, peak GB", peak / 2**30, 10.0, True)
    exponent = math.log(times[1] / times[0]) / math.log(sizes[1] / sizes[0])
    report.add(f"exponent of time, {sizes[0]:,} to {sizes[1]:,} rows", exponent, 1.1, True)
    bar = None if quick else 1.25  # the quick run's small size does not fill a bucket
    report.add("peak at the large size / at the small one", peaks[1] / peaks[0], bar, True)
    report.note("the exponent includes what starting costs; both sizes fill all cores")
    clean = checksum(sequences_of(out))
    shutil.rmtree(out)
    survive(logs, out, sizes[1], clean, report)


def survive(logs: Path, out: Path, num_rows: int, clean: tuple[int, int], report: Report) -> None:
    """The same rows come out of a log with bad rows and a file twice, while a worker is killed."""
    folder = logs / "interactions"
    shutil.copy(folder / "part-00000.parquet", folder / "part-00000-again.parquet")
    twice = pq.read_metadata(folder / "part-00000.parquet").num_rows
    lines = ['{"user_id": "", "item_id": "i", "event": "click", "event_time": 1767225600000000}']
    lines += ["{broken", '{"user_id": "u", "item_id": "i", "event": "click", "event_time": "x"}']
    bad = num_rows // 1000
    (folder / "bad.jsonl").write_text("".join(f"{lines[i % 3]}\n" for i in range(bad)))
    killer = threading.Thread(target=_kill_a_worker, args=(out,), daemon=True)
    killer.start()
    took, _ = timed(ours(logs, out))
    killer.join()
    report.add("with faults, s", took)
    report.add("with faults, rows as without (1 = yes)", checksum(sequences_of(out)) == clean, 1)
    stages = read_ledger(str(out)).stages
    dropped = [sum(stage.dropped.values()) for stage in stages.values()]
    lost = num_rows + twice + bad - sum(dropped) - stages["sequences"].rows_out
    report.add("rows unaccounted for in the ledger, at least", lost, 0)
    report.add("rows unaccounted for in the ledger, at most", lost, 0, True)
    wrong = [n for reason, n in stages["read interactions"].dropped.items() if ":" in reason]
    wrong.append(stages["read interactions"].dropped.get("not a row", 0))
    report.add("bad rows found / made", sum(wrong) / bad, 1)
    report.note(
        f"faults: {bad:,} bad rows, a file of {twice:,} rows twice, a worker killed while it read"
    )


def _kill_a_worker(out: Path) -> None:
    """End the first busy Ray worker below this process once the job works on its files."""
    while not list(out.glob("work-*")):
        time.sleep(0.05)
    while True:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("ray::") and "IDLE" not in process.name():
                    process.kill()
                    return
        time.sleep(0.05)


def measure(options: argparse.Namespace, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="raycall-sequences-", dir=options.work) as folder:
        work = Path(folder)
        if options.peers:
            compare(work, options.quick, options.peers, report)
            shutil.rmtree(work / "logs")
        else:
            report.note("no --peers PYTHON: nothing compared; see the module's docstring")
        grow(work, options.quick, report)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", metavar="PYTHON", help="of the environment with the peers")
    parser.add_argument("--work", metavar="DIR", help="for logs and outputs, 10 GB; else TMPDIR")


if __name__ == "__main__":
    main("sequences", __doc__, measure, flags)
