"""Nodes lost while the pipeline runs and while it is served: the same index, no failed request.

Three Ray nodes share this machine: a head that takes no tasks, and two workers. The pipeline runs
on synthetic data undisturbed, and again while a worker node with all its processes is killed as it
writes data, as it trains and as it embeds; each time another one joins, as an autoscaler would have
it. Tables and rows have to be the same files, and the index to hold the same vectors. Then what
came of it is served by replicas on both worker nodes, one of which is killed under callers. And a
training under ZeRO that may do with one worker loses the node of one of its two, as was announced
to Ray, and gets another.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.disturb import Nodes
from bench.harness import RESULTS, Report, main
from rec.artifacts import MANIFEST, read_manifest
from rec.client import Client, RequestError
from rec.data.tables import read_tables
from rec.retrieval.index import Index
from rec.train.checkpoint import read_state
from rec.train.engine import TrainError
from rec.train.metrics import read_records
from serve_apps.keys import new_key

PARTS = ("pipeline", "serve", "resize")
_CPUS = 2  # of a worker node
_CALLERS = 4
# steps from one checkpoint to the next, of the training that is resized: many, as the one that is
# saved because of a notice is told from others by its step alone
_EVERY = 100
_NOTICE_S = 60.0  # how long that one is waited for
# python -m serve_apps with a replica of everything on each worker node, for which it has no setting
_SERVICE = """
from serve_apps import app
for name in ("Encoder", "Knn", "Gateway"):
    how = {"num_replicas": 2, "max_replicas_per_node": 1}
    setattr(app, name, getattr(app, name).options(**how))
from serve_apps.__main__ import main
raise SystemExit(main())
"""


def pipeline(nodes: Nodes, place: Path, options: argparse.Namespace, report: Report) -> None:
    """The pipeline without and with losses."""
    steps = 60 if options.quick else 300
    command = [sys.executable, "-m", "jobs.pipeline", "--no-serve"]
    command += ["--recipe", "rec.recipes.content:debug", "--set", "users=null"]
    command += [f"source.num_items={options.items}", f"source.num_shards={options.shards}"]
    command += [f"recipe.train.steps={steps}", "recipe.train.checkpoint_every=10"]
    whole, broken = place / "whole", place / "broken"
    started = time.perf_counter()
    nodes.run([*command, "--out", str(whole)])
    report.add("undisturbed: seconds", time.perf_counter() - started)
    started = time.perf_counter()
    nodes.run(
        [*command, "--out", str(broken)],
        nodes.kill_node(broken / "tables", again=_CPUS),
        lambda: any((broken / "train").glob("step-*")),
        nodes.kill_node(name="RayTrainWorker", again=_CPUS),
        lambda: (broken / "encoder" / MANIFEST).exists(),
        nodes.kill_node(broken / "rows", again=_CPUS),
    )
    report.add("three nodes lost: seconds", time.perf_counter() - started)
    compare(whole, broken, report)


def compare(whole: Path, broken: Path, report: Report) -> None:
    """Whether two runs came to the same."""
    tables = [read_tables(str(run / "tables")) for run in (whole, broken)]
    same = tables[0].files == tables[1].files and tables[0].ledger == tables[1].ledger
    report.add("tables and ledger as undisturbed (1 = yes)", same, 1)
    rows = [read_manifest(run / "rows") for run in (whole, broken)]
    report.add("rows: the same files (1 = yes)", rows[0].version == rows[1].version, 1)
    first, second = (Index.open(str(run / "index")) for run in (whole, broken))
    report.add("index: vectors more or less", abs(len(first) - len(second)), 0, True)
    ids = first.ids(np.arange(len(first))).tolist()
    vectors = [index.vectors(ids) for index in (first, second)]
    report.add(
        "index: largest difference of a number", np.abs(vectors[0] - vectors[1]).max(), 1e-5, True
    )
    nearest = [index.search(vectors[0], min(10, len(ids))).ids for index in (first, second)]
    report.add(
        "index: share of ten nearest that are the same", (nearest[0] == nearest[1]).mean(), 0.99
    )
    encoders = [read_manifest(run / "encoder").version for run in (whole, broken)]
    report.note(
        f"{len(first):,} items, {tables[0].tables['media'].num_rows:,} media; encoders "
        f"{' and '.join(encoders)}"
    )


@contextmanager
def service(nodes: Nodes, run: Path, place: Path) -> Iterator[tuple[str, str]]:
    """What serves the run on the nodes: its address, and a key."""
    key, line = new_key("bench", rate_per_s=1e6)
    (place / "keys.txt").write_text(line)
    command = [sys.executable, "-c", _SERVICE, "--port", "0", "--keys", str(place / "keys.txt")]
    command += ["--address", nodes.address]
    command += ["--encoder", str(run / "encoder"), "--index", str(run / "index")]
    log = place / "service.txt"
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=RESULTS.parents[1])
    try:
        while not (lines := [x for x in _lines(log) if x.startswith("serving at ")]):
            if process.poll() is not None:
                raise RuntimeError(f"the service did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield lines[0].split()[2], key
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines()


class Callers:
    """Threads that ask in turns for texts and for items, through rec.client."""

    def __init__(self, url: str, key: str, ids: list[str]) -> None:
        self.failures: list[str] = []
        self.seconds: list[tuple[float, float]] = []  # (when it was answered, how long it took)
        self._url, self._key, self._ids = url, key, ids
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(_CALLERS)]

    def __enter__(self) -> Callers:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for one in self._threads:
            one.join()

    def _ask(self) -> None:
        with Client(self._url, key=self._key) as client:
            number = 0
            while not self._over.is_set():
                number += 1
                began = time.perf_counter()
                try:
                    if number % 2:
                        client.knn_items([self._ids[number % len(self._ids)]], k=5)
                    else:
                        client.knn_content(["a crew lost in space"], k=5)
                except RequestError as error:
                    self.failures.append(f"{error}")
                ended = time.perf_counter()
                self.seconds.append((ended, ended - began))
                time.sleep(0.02)

    def slowest(self, start: float, end: float) -> float:
        return max((took for at, took in self.seconds if start <= at <= end), default=0.0)


def serve(
    nodes: Nodes, run: Path, place: Path, options: argparse.Namespace, report: Report
) -> None:
    """Lose a node of two that serve, under callers."""
    wait = 10.0 if options.quick else 30.0
    ids = Index.open(str(run / "index")).ids(np.arange(8)).tolist()
    with service(nodes, run, place) as (url, key), Callers(url, key, ids) as callers:
        started = time.perf_counter()
        time.sleep(wait)
        lost = time.perf_counter()
        nodes.lose(nodes.raylets[0])
        time.sleep(wait)
        nodes.add(_CPUS)  # and what was lost comes up there again
        time.sleep(wait)
        ended = time.perf_counter()
    report.add("serving: requests", len(callers.seconds))
    report.add("serving: failed requests", len(callers.failures), 0, True)
    report.add("serving: slowest answer before, seconds", callers.slowest(started, lost))
    report.add("serving: slowest answer since, seconds", callers.slowest(lost, ended))
    for failure in callers.failures[:3]:
        report.note(failure)


def resize(place: Path, report: Report) -> None:
    """Train under ZeRO on two nodes, then on the one that is left, then on two again."""
    rows, out = place / "whole" / "rows", place / "resized"
    command = [sys.executable, "-m", "jobs.train", "--recipe", "rec.recipes.content:debug"]
    command += ["--rows", str(rows), "--out", str(out), "--workers", "2", "--min-workers", "1"]
    command += ["--set", "train.engine=deepspeed", "train.zero_stage=1", "train.steps=1000000"]
    command += ["train.schedule=constant", "train.keep_checkpoints=100000"]
    command += [f"train.checkpoint_every={_EVERY}", "train.validate_every=1000000"]

    def worlds() -> list[int]:
        """Of the checkpoints, in their order, each change once."""
        found: list[int] = []
        for folder in sorted((out / "train").glob("step-*")):
            with contextlib.suppress(TrainError):  # being written
                world = read_state(folder).world
                found += [world] if found[-1:] != [world] else []
        return found

    def undue() -> list[str]:
        """Checkpoints of steps at which none is due."""
        names = (folder.name for folder in (out / "train").glob("step-*"))
        return [name for name in names if int(name[5:]) % _EVERY]

    told: list[float] = []

    def saved() -> bool:
        told.append(time.perf_counter())
        return bool(undue()) or told[-1] - told[0] > _NOTICE_S

    with Nodes(place, [0, 1, 1]) as nodes:
        started = time.perf_counter()
        nodes.run(
            command,
            lambda: worlds() == [2],
            nodes.announce("RayTrainWorker"),
            saved,
            nodes.lose_announced,
            lambda: worlds() == [2, 1],
            lambda: nodes.add(1) or True,
            lambda: worlds() == [2, 1, 2],
            nodes.stop_job,
        )
        report.add("resized: seconds", time.perf_counter() - started)
    report.add("a node announced to go: checkpoints saved at once", len(undue()), 1)
    report.add("resized: 2, 1 and 2 ranks in turn (1 = yes)", worlds() == [2, 1, 2], 1)
    losses = [one["train/total"] for one in read_records(str(out / "train" / "logs"))]
    tenth = max(1, len(losses) // 10)
    fall = float(np.mean(losses[-tenth:]) / np.mean(losses[:tenth]))
    report.add("resized: loss, last tenth / first tenth", fall, 0.9, True)
    report.note(f"{len(losses)} records of losses, {losses[0]:.3f} to {losses[-1]:.3f}")


def measure(options: argparse.Namespace, report: Report) -> None:
    options.items = options.items or (120 if options.quick else 1200)
    options.shards = 4 if options.quick else 12
    with tempfile.TemporaryDirectory(prefix="raycall-chaos-", dir=options.work) as folder:
        place = Path(folder)
        with Nodes(place, [0, _CPUS, _CPUS]) as nodes:
            if "pipeline" in options.only:
                pipeline(nodes, place, options, report)
            else:
                command = [sys.executable, "-m", "jobs.pipeline", "--no-serve"]
                command += ["--out", str(place / "whole"), "--recipe", "rec.recipes.content:debug"]
                nodes.run([*command, "--set", "users=null", f"source.num_items={options.items}"])
            if "serve" in options.only:
                serve(nodes, place / "whole", place, options, report)
        if "resize" in options.only:
            resize(place, report)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--items", type=int, help="else 1,200, quick 120")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--work", metavar="DIR", help="for what the runs write; else TMPDIR")


if __name__ == "__main__":
    main("chaos", __doc__, measure, flags)
