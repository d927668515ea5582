"""What each step costs in processor time and bytes: the constants of docs/scale.md.

    python -m bench.constants [--rows 5000000] [--only behaviour jobs media rows embed index]

Processor seconds instead of the clock's, since plans are about machines that do nothing else. A
step that runs shard by shard is run in a loop of this process, without Ray; `jobs` and `rows` are
whole jobs with all processes of their Ray, as the slope between two sizes, so that starting does
not count.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bench import retrieval_apart
from bench.harness import Report, main
from bench.logs import DAYS, FIRST_DAY, NUM_ITEMS, write_logs
from bench.media import scene, sound, video
from bench.sequences import ours, timed
from bench.workload import elsewhere, make_encoder, make_rows
from rec.artifacts import join
from rec.data import behaviour, sequence_rows
from rec.data.behaviour_config import MAX_BUCKETS, BehaviourConfig
from rec.data.edges import EdgeConfig
from rec.data.logs import LogFiles
from rec.data.media import MediaConfig, decode_file, index_rows
from rec.data.sequence_rows import SequenceRowsConfig
from rec.models.content.encoder import load_encoder
from rec.recipes.content import base, demo
from rec.runtime.embed import list_partitions
from rec.schema import MEDIA
from rec.sources import SyntheticSource

PARTS = ("behaviour", "jobs", "media", "rows", "embed", "index")
_NO_END = datetime(2030, 1, 1, tzinfo=UTC)


class Phases:
    """Progress of a build as processor seconds by phase, and the most bytes its work took."""

    def __init__(self, out: Path) -> None:
        self.seconds: dict[str, float] = {}
        self.spilled = 0
        self._out, self._last = out, time.process_time()

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._book(phase)
        if done == total:
            files = (f for work in self._out.glob("work-*") for f in work.rglob("*.arrow"))
            self.spilled = max(self.spilled, sum(f.stat().st_size for f in files))
            self._last = time.process_time()

    def end(self) -> None:
        """What came after the last phase: hashing and publishing."""
        self._book("publish")

    def _book(self, phase: str) -> None:
        now = time.process_time()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


class CpuSeconds:
    """Processor seconds of the processes below this one while it is open, dead ones included."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CpuSeconds:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def total(self) -> float:
        return sum(self._found.values())

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._found[process.pid, process.create_time()] = times.user + times.system


def _in_a_loop(
    work: Callable[[int], dict[str, Any]], indices: Sequence[int], *_: object, **__: object
) -> Iterator[dict[str, Any]]:
    return (work(index) for index in indices)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _items(folder: Path) -> None:
    """What is told of the items of the logs: three tags of 5,000 each."""
    folder.mkdir()
    tags = np.random.default_rng(0).integers(0, 5000, 3 * NUM_ITEMS).astype(str)
    table = pa.table(
        {
            "item_id": [f"item-{n}" for n in range(NUM_ITEMS)],
            "tags": pa.ListArray.from_arrays(np.arange(NUM_ITEMS + 1) * 3, pa.array(tags)),
        }
    )
    pq.write_table(table, folder / "items.parquet")


def _logs_to(name: str, config: BehaviourConfig, work: Path, num_rows: int, report: Report) -> int:
    """Costs of all phases, by rows of the log; how many events were kept."""
    out = work / name.replace(" ", "-")
    clock = Phases(out)
    with patch("rec.data.tasks.map_shards", _in_a_loop):
        manifest = behaviour.build_behaviour(str(out), config, _NO_END, progress=clock)
    clock.end()
    millions = num_rows / 1e6
    for phase, seconds in clock.seconds.items():
        report.add(f"logs to {name}: {phase}, CPU s a million rows", seconds / millions)
    total = sum(clock.seconds.values())
    report.add(f"logs to {name}: all phases, CPU s a million rows", total / millions)
    report.add(f"logs to {name}: spilled at most, bytes a row", clock.spilled / num_rows)
    written = {f.name: _size(f) / num_rows for f in (out / manifest.root).iterdir()}
    for folder in ("sequences", "counts", "edges", "nodes", "graph"):
        if folder in written:
            report.add(f"logs to {name}: {folder}, bytes a row", written[folder])
    events = behaviour.read_ledger(str(out)).stages["sequences"].rows_out
    buckets = behaviour.read_state(manifest).num_buckets
    report.note(f"logs to {name}: {num_rows:,} rows, {events:,} events kept, {buckets} buckets")
    return events


def of_behaviour(work: Path, num_rows: int, report: Report) -> None:
    """Logs to sequences; to sequences, edges and a graph; sequences to rows of training."""
    write_logs(work / "interactions", num_rows)
    _items(work / "items")
    log = LogFiles(path=str(work / "interactions"))
    report.add("log, bytes a row", _size(work / "interactions") / num_rows)
    plain = BehaviourConfig(interactions=log)
    items = LogFiles(path=str(work / "items"))
    whole = BehaviourConfig(interactions=log, items=items, edges=EdgeConfig())
    many = BehaviourConfig(interactions=log, num_buckets=MAX_BUCKETS)
    _logs_to("many buckets", many, work, num_rows, report)
    _logs_to("graph", whole, work, num_rows, report)
    events = _logs_to("sequences", plain, work, num_rows, report)
    report.add("events kept of a row", events / num_rows)
    first = datetime.combine(FIRST_DAY, datetime.min.time(), UTC)
    cutoffs = (first + timedelta(days=DAYS - 7), first + timedelta(days=DAYS - 3))
    split = SequenceRowsConfig(cutoff=cutoffs[0], test_cutoff=cutoffs[1])
    out = work / "rows"
    clock = Phases(out)
    with (
        patch("rec.data.tasks.map_shards", _in_a_loop),
        patch("rec.data.split.map_shards", _in_a_loop),
    ):
        sequence_rows.build_sequence_rows(str(work / "sequences"), str(out), split, progress=clock)
    clock.end()
    total = sum(clock.seconds.values())
    report.add("sequences to rows, CPU s a million events", total / (events / 1e6))
    report.add("sequences to rows, bytes written an event", _size(out) / events)


def of_jobs(work: Path, num_rows: int, report: Report) -> None:
    """`jobs.behaviour` with the processes of its Ray."""
    sizes, found = (num_rows // 5, num_rows), []
    for rows in sizes:
        write_logs(work / str(rows) / "interactions", rows)
        with CpuSeconds() as clock:
            timed(ours(work / str(rows), work / f"out-{rows}"))
        found.append(clock.total)
    slope = (found[1] - found[0]) / (sizes[1] - sizes[0]) * 1e6
    report.add("jobs.behaviour with Ray, CPU s a million rows", slope)
    start = found[0] - slope * sizes[0] / 1e6
    report.add("jobs.behaviour with Ray, CPU s to start and end", start)


def of_media(num: int, report: Report) -> None:
    """One file of each kind to what is stored of it."""
    cv2.setNumThreads(1)
    random = np.random.default_rng(0)
    files = {
        "video of 8 s, 640 x 360, with sound": lambda: video(random),
        "picture, 1280 x 960": lambda: cv2.imencode(".jpg", scene(random, 1280, 960))[1].tobytes(),
        "sound of 10 s": lambda: sound(random),
    }
    config = MediaConfig()
    for name, make in files.items():
        data = [make() for _ in range(num)]
        decode_file(data[0], config)
        started = time.process_time()
        found = [decode_file(one, config) for one in data]
        cost = (time.process_time() - started) / num
        report.add(f"{name}: decode, scale, compress, log-mel, CPU ms", cost * 1e3)
        kept = [x for one in found for x in (*one.frames, *([one.log_mel] if one.log_mel else []))]
        report.add(f"{name}: bytes read", sum(map(len, data)) / num)
        report.add(f"{name}: bytes stored", sum(map(len, kept)) / num)
        frames = [frame for one in found for frame in one.frames]
        if frames:
            rows = [
                {"item_id": "i", "media_index": n, "kind": "frame", "uri": "", "data": frame}
                for n, frame in enumerate(frames)
            ]
            started = time.process_time()
            index_rows(pa.Table.from_pylist(rows, schema=MEDIA), 0, 0)
            cost = (time.process_time() - started) / num
            report.add(f"{name}: hashes of what is kept, CPU ms", cost * 1e3)
            report.add(f"{name}: frames kept", len(frames) / num)


def _ingest(rank: int, items: int, out: str, step: str) -> None:  # noqa: ARG001
    import ray

    from jobs import ingest

    source = SyntheticSource(num_items=items, num_shards=4)
    config = ingest.IngestConfig(source=source, rows=demo().rows)
    (ingest.run_tables if step == "tables" else ingest.run_rows)(config, out)
    ray.shutdown()


def of_rows(work: Path, sizes: tuple[int, int], report: Report) -> None:
    """Content rows of tables: labels, key terms, tokens, frames; with the processes of Ray."""
    found: list[float] = []
    for items in sizes:
        out = str(work / str(items))
        elsewhere(_ingest, items, out, "tables")
        with CpuSeconds() as clock:
            elsewhere(_ingest, items, out, "rows")
        found.append(clock.total)
    slope = (found[1] - found[0]) / (sizes[1] - sizes[0])
    report.add("tables to content rows with Ray, CPU ms an item", slope * 1e3)


def of_embedding(work: Path, quick: bool, report: Report) -> None:
    """Rows through an untrained encoder on one thread."""
    torch.set_num_threads(1)
    for recipe, items in ((demo(), 64 if quick else 1024), (base(), 2 if quick else 16)):
        run = work / recipe.name
        uri = make_rows(recipe, str(run), 1024, 256)
        encoder = load_encoder(make_encoder(recipe, uri, f"{run}/encoder"))
        parts = [pq.read_table(join(p.folder, p.name)) for p in list_partitions(uri)[1]]
        rows = pa.concat_tables(parts).slice(0, items)
        encoder.encode_rows(rows.slice(0, 1))
        started = time.process_time()
        for start in range(0, items, 64):
            encoder.encode_rows(rows.slice(start, 64))
        cost = (time.process_time() - started) / items
        report.add(f"encoder of {recipe.name}, CPU ms an item", cost * 1e3)


def measure(options: argparse.Namespace, report: Report) -> None:
    quick = options.quick
    num_rows = options.rows or (100_000 if quick else 5_000_000)
    work: dict[str, Callable[[Path], None]] = {
        "behaviour": lambda f: of_behaviour(f, num_rows, report),
        "jobs": lambda f: of_jobs(f, num_rows, report),
        "media": lambda _: of_media(2 if quick else 20, report),
        "rows": lambda f: of_rows(f, (200, 400) if quick else (1000, 4000), report),
        "embed": lambda f: of_embedding(f, quick, report),
        "index": lambda _: retrieval_apart.growth(
            report, (22_000, 44_000) if quick else (250_000, 1_000_000), 64
        ),
    }
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="raycall-constants-", dir=options.work) as folder:
            work[name](Path(folder))


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, help="of the logs; else 5,000,000, quick 100,000")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--work", metavar="DIR", help="for logs and outputs, 3 GB; else TMPDIR")


if __name__ == "__main__":
    main("constants", __doc__, measure, flags)
