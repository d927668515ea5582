"""Faults put into logs, media and the cluster: nothing is lost, nothing is there twice.

All jobs run on two Ray nodes. The same logs of 30 days are turned into sequences undisturbed; by
ten days at a time; with rows that are bad, a day delivered twice and a day delivered again as the
next one, while two workers are killed that have a file open; and so again, while a node is killed
with all its processes. What comes out has to be the same rows (a checksum over user, place, item,
time and weight), and the ledger that of the undisturbed run and, by reason, exactly what was put
in. Media likewise: pictures and videos, some of them broken, with a worker killed
(bench/broken_files.py).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench import broken_files
from bench.disturb import Condition, TwoNodes
from bench.harness import Report, main
from bench.logs import DAYS, FIRST_DAY, checksum, day_folder, write_days
from bench.sequences import ours, sequences_of
from rec.artifacts import read_manifest
from rec.data.behaviour import KIND, read_ledger
from rec.data.ledger import Ledger

PARTS = ("media", "logs")
TWICE, AS_NEXT = 3, 11  # days
_BAD_LINES = {
    "not a row": "{broken",
    "user_id: empty": '{"user_id": "", "item_id": "i", "event": "click", "event_time": TIME}',
    "item_id: empty": '{"user_id": "u", "event": "click", "event_time": TIME}',
    "event_time: not a time": '{"user_id": "u", "item_id": "i", "event": "click", '
    '"event_time": "then"}',
    "dwell_ms: not a whole number": '{"user_id": "u", "item_id": "i", "event": "click", '
    '"event_time": TIME, "dwell_ms": "long"}',
}
_BAD_VALUES = {"value: not finite": {"value": float("inf")}, "dwell_ms: negative": {"dwell_ms": -1}}
_BAD = (*_BAD_LINES, *_BAD_VALUES)


def add_faults(folder: Path, num_rows: int) -> Ledger:
    """Put bad rows into every day of a log, and two days in again; what a ledger has to say."""
    each = max(1, num_rows // 1000 // DAYS // len(_BAD))
    for day in range(DAYS):
        noon = f'"{day_folder(folder, day).name[4:]}T12:00:00Z"'
        lines = [line.replace("TIME", noon) for line in _BAD_LINES.values()] * each
        (day_folder(folder, day) / "bad.jsonl").write_text("".join(f"{line}\n" for line in lines))
        good = pq.ParquetFile(day_folder(folder, day) / "part-00000.parquet")
        first = next(good.iter_batches(each)).to_pylist()
        rows = [{**row, **wrong} for wrong in _BAD_VALUES.values() for row in first]
        table = pa.Table.from_pylist(rows, schema=good.schema_arrow)
        pq.write_table(table, day_folder(folder, day) / "bad.parquet")
    bad = dict.fromkeys(_BAD, each * DAYS)
    events = _copy(day_folder(folder, TWICE), day_folder(folder, TWICE))
    moved = _copy(day_folder(folder, AS_NEXT), day_folder(folder, AS_NEXT + 1))
    dropped = {
        **bad,
        "event not wanted": events["impression"],
        "of another day than its file": moved.total(),
    }
    again = events["click"] + events["watch"]
    rows_in = again + sum(dropped.values())
    found = Ledger().record("read interactions", rows_in, again, dropped)
    return found.record("filter interactions", again, 0, {"duplicate": again})


def _copy(source: Path, target: Path) -> Counter[str]:
    """Deliver a day's files again; how many rows of each event."""
    count = Counter[str]()
    for file in sorted(source.glob("part-*.parquet")):
        shutil.copy(file, target / f"again-{file.name}")
        events = pq.read_table(file, columns=["event"]).column("event")
        for row in pc.value_counts(events).to_pylist():
            count[row["values"]] += row["counts"]
    return count


def rows_on_disk(folder: Path) -> int:
    """Rows of Parquet files and lines of the others."""
    rows = sum(pq.read_metadata(file).num_rows for file in folder.rglob("*.parquet"))
    return rows + sum(len(f.read_bytes().splitlines()) for f in folder.rglob("*.jsonl"))


def logs(nodes: TwoNodes, work: Path, num_rows: int, report: Report) -> None:
    """The same rows undisturbed, ten days at a time, and under faults."""
    folder = work / "logs"
    write_days(folder / "interactions", num_rows)

    def command(out: Path, cutoff: str = "2030-01-01") -> list[str]:
        return ours(folder, out, cutoff, ["interactions.day=day=(.{10})", "num_buckets=48"])

    def result(out: Path) -> tuple[tuple[int, int], Ledger]:
        return checksum(sequences_of(out)), read_ledger(str(out))

    whole, daily = work / "whole", work / "daily"
    nodes.run(command(whole))
    clean, ledger = result(whole)
    shutil.rmtree(whole)
    report.note(f"undisturbed: {num_rows:,} rows to {clean[0]:,} events of sequences")
    for day in (10, 20, DAYS):
        nodes.run(command(daily, (FIRST_DAY + timedelta(days=day)).isoformat()))
    found, of_days = result(daily)
    shutil.rmtree(daily)
    report.add("ten days at a time: rows as all at once (1 = yes)", found == clean, 1)
    report.add("ten days at a time: ledger as all at once (1 = yes)", of_days == ledger, 1)
    injected = add_faults(folder / "interactions", num_rows)
    on_disk = rows_on_disk(folder / "interactions")
    for how in ("killed workers", "killed node"):
        out = work / how.replace(" ", "-")
        read = _begun(out, "problems")  # reading begins when the phase of problems is done
        faults = [read, nodes.kill_worker(out), _begun(out, "sequences"), nodes.kill_worker(out)]
        if how == "killed node":
            faults = [read, nodes.kill_node(out)]
        started = time.perf_counter()
        nodes.run(command(out), *faults)
        report.add(f"{how}: seconds", time.perf_counter() - started)
        found, disturbed = result(out)
        report.add(f"{how}: rows as undisturbed (1 = yes)", found == clean, 1)
        lost = _unaccounted(disturbed, on_disk, found[0])
        report.add(f"{how}: rows unaccounted for", lost, 0, True)
        wrong = _differences(disturbed, ledger.merge(injected))
        report.add(f"{how}: counts that are not what was put in", len(wrong), 0, True)
        for line in wrong:
            report.note(line)
        bad = sum(injected.stages["read interactions"].dropped[name] for name in _BAD)
        missed = abs(_listed(out) - bad)
        report.add(f"{how}: bad rows listed more or less than once", missed, 0, True)
        shutil.rmtree(out)
    counts = {**injected.stages["read interactions"].dropped}
    counts |= injected.stages["filter interactions"].dropped
    put = ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
    report.note(f"put in, of {on_disk:,} rows then: {put}")


def _begun(out: Path, phase: str) -> Condition:
    """Whether a task of the phase is done."""
    return lambda: any(out.glob(f"work-*/done/{phase}/shard-*.json"))


def _listed(out: Path) -> int:
    """Rows of the list of bad rows."""
    place = out / read_manifest(str(out), KIND).root / "problems"
    return sum(pq.read_metadata(file).num_rows for file in place.glob("*.parquet"))


def _unaccounted(ledger: Ledger, rows_in: int, events: int) -> int:
    """Rows lost or made between the log's files and the sequences', summed over the stages."""
    stages = [ledger.stages[f"{name} interactions"] for name in ("read", "filter")]
    stages.append(ledger.stages["sequences"])
    came = [rows_in, *(stage.rows_out for stage in stages)]
    went = [*(stage.rows_in for stage in stages), events]
    inside = (s.rows_in - s.rows_out - sum(s.dropped.values()) for s in stages)
    return sum(abs(a - b) for a, b in zip(came, went, strict=True)) + sum(map(abs, inside))


def _differences(found: Ledger, expected: Ledger) -> list[str]:
    """What two ledgers count differently, in words."""
    lines: list[str] = []
    for stage in sorted(set(found.stages) | set(expected.stages)):
        one, two = (
            {"in": s.rows_in, "out": s.rows_out, **s.dropped} if s else {}
            for s in (found.stages.get(stage), expected.stages.get(stage))
        )
        for name in sorted(set(one) | set(two)):
            if one.get(name, 0) != two.get(name, 0):
                lines.append(f"{stage}, {name}: {one.get(name, 0)}, expected {two.get(name, 0)}")
    return lines


def media(nodes: TwoNodes, work: Path, items: int, report: Report) -> None:
    """Broken files: each listed once, and all others give the rows that they give without them."""
    found: dict[str, Counter[bytes]] = {}
    for name in ("undisturbed", "disturbed"):
        source, out = work / f"{name}-files", work / name
        named, broken = broken_files.make_folder(source, items, broken=name == "disturbed")
        command = [sys.executable, "-m", "jobs.ingest", "--source", "folder", "--path", str(source)]
        command += ["--tables-only", "--out", str(out), "--set", "source.num_shards=16"]
        kill = nodes.kill_worker(out / "tables" / "media")
        nodes.run(command, *([kill] if name == "disturbed" else []))
        read = broken_files.read(out / "tables", source)
        found[name] = read.rows
        lost = abs(named - read.files - read.listed.total())
        report.add(f"media, {name}: files unaccounted for", lost, 0, True)
        wrong = (read.listed - broken).total() + (broken - read.listed).total()
        report.add(f"media, {name}: problems that are not what was put in", wrong, 0, True)
        report.note(
            f"media, {name}: {named:,} files, {read.files:,} to {read.rows.total():,} rows, "
            f"broken {dict(broken)}, listed {dict(read.listed)}"
        )
    same = found["undisturbed"] == found["disturbed"]
    report.add("media: rows as undisturbed (1 = yes)", same, 1)


def measure(options: argparse.Namespace, report: Report) -> None:
    num_rows = options.rows or (200_000 if options.quick else 50_000_000)
    with tempfile.TemporaryDirectory(prefix="raycall-faults-", dir=options.work) as folder:
        place = Path(folder)
        with TwoNodes(place) as nodes:
            if "media" in options.only:
                (place / "media").mkdir()
                media(nodes, place / "media", 400 if options.quick else 20_000, report)
                shutil.rmtree(place / "media")
            if "logs" in options.only:
                logs(nodes, place, num_rows, report)  # last: it leaves one node


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, help="of the logs; else 50,000,000, quick 200,000")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: both")
    parser.add_argument("--work", metavar="DIR", help="for logs and outputs, 8 GB; else TMPDIR")


if __name__ == "__main__":
    main("faults", __doc__, measure, flags)
