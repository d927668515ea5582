"""Interactions to per-user sequences in Parquet beside polars, DuckDB and PySpark, and growth.

Every engine runs as a process of its own, start included, ours as the job that a user runs
(`python -m jobs.behaviour`), which also checks every row, looks for bots and duplicates, keeps a
ledger and hashes what it publishes. All write the same rows, which is checked. The peers live in
an environment of their own:

    python -m venv peers && peers/bin/pip install polars duckdb pyspark   # and a Java 17
    python -m bench.sequences --peers peers/bin/python
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.harness import RESULTS, PeakMemory, Report, main
from bench.logs import checksum, write_logs
from bench.peers_sequences import EVENTS, MAX_LENGTH, MIN_DWELL_MS
from bench.workload import cores
from rec.artifacts import read_manifest
from rec.data.behaviour import KIND

PEERS = ("polars", "duckdb", "pyspark")


def ours(logs: Path, out: Path, cutoff: str = "2030-01-01", more: Sequence[str] = ()) -> list[str]:
    """The command of the job, with the peers' filters and `more` settings."""
    settings = [
        f"filters.events={json.dumps(EVENTS)}",
        f"filters.min_dwell_ms={MIN_DWELL_MS}",
        f"sequences.max_length={MAX_LENGTH}",
    ]
    job = [sys.executable, "-m", "jobs.behaviour", "--logs", str(logs), "--out", str(out)]
    return [*job, "--cutoff", cutoff, "--set", *settings, *more]


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
    """Time and peak memory of ours at two sizes."""
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
    report.note("the exponent includes what starting costs; at both sizes every core reads a share")


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
