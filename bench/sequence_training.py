"""SASRec on ml-1m beside RecTools': events a second, peak memory, time to the same NDCG@10.

Both with d 64, 2 blocks, 1 head, 200 events, batches of 128, dropout .2, the loss over all items
and a rate of .001, each in a process of its own on all cores. Ours as its recipe has it, with
matrix products in bf16, a warm-up of 100 steps and a cosine; RecTools' as it comes, in fp32 at a
constant rate (--precision fp32 takes the first of these differences away). Trained on everything
but each user's last two events; of the one before the last the NDCG@10 is taken, over all items
that the user has not seen, by the same code for both. Seconds are those of training alone. The peer
lives in an environment of its own; RecBole, of which some batches are timed, in another:

    python -m venv peers && peers/bin/pip install "rectools[torch]"
    python -m venv recbole && recbole/bin/pip install recbole "numpy<2" "pandas<3" "setuptools<80"
    python -m bench.sequence_training --peers peers/bin/python --recbole recbole/bin/python \\
        --data ../shared/data/ml-1m
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from bench.harness import RESULTS, PeakMemory, Report, main
from bench.workload import cores
from rec.artifacts import publish
from rec.data.sequence_rows import KIND
from rec.data.stream import RowStream, open_rows
from rec.features.sequences import histories
from rec.recipes.sequence import sasrec
from rec.schema import SEQUENCE_ITEMS, SEQUENCE_ROWS
from rec.train.engine import PlainEngine
from rec.train.gradient import backpropagate, derive
from rec.train.schedule import lr_factor

TOP = 10


class Mark(NamedTuple):
    """One evaluation of a run."""

    epoch: int
    seconds: float  # of training so far
    processor: float  # seconds of all cores in it, of which other work takes none
    events: int  # predicted so far
    ndcg: float


def read_sequences(file: Path, num_users: int | None) -> list[list[int]]:
    """Items of each user with three events or more, in order of time, numbered from 0."""
    lines = (line.split()[1:] for line in file.read_text().splitlines())
    users = [items for items in lines if len(items) >= 3][:num_users]
    index: dict[str, int] = {}
    return [[index.setdefault(item, len(index)) for item in items] for items in users]


def write_log(users: list[list[int]], file: Path) -> None:
    """Training events as RecTools reads them."""
    rows = [(u, i, p) for u, items in enumerate(users) for p, i in enumerate(items[:-2])]
    np.save(file, np.array(rows, dtype=np.int64))


def write_rows(users: list[list[int]], folder: Path) -> str:
    """The same events as published sequence rows; histories to evaluate are "heldout"."""
    staged = folder / "staged"
    sides = {"train": (-2, 0), "heldout": (-1, 1)}
    for side, (stop, num_targets) in sides.items():
        items = [sequence[:stop] for sequence in users]
        table = pa.table(
            {
                "user_id": [str(u) for u in range(len(users))],
                "item_index": items,
                "weights": [[1.0] * len(x) for x in items],
                "event_times": [list(range(len(x))) for x in items],
                "num_targets": [num_targets] * len(users),
            },
            schema=SEQUENCE_ROWS,
        )
        (staged / side).mkdir(parents=True)
        pq.write_table(table, staged / side / "shard-00000.parquet", row_group_size=1000)
    num_items = 1 + max(max(items) for items in users)
    counts = np.bincount([i for items in users for i in items[:-2]], minlength=num_items)
    table = pa.table(
        {
            "item_id": [str(i) for i in range(num_items)],
            "num_events": counts,
            "published_at": [None] * num_items,
            "tag_index": [[]] * num_items,
            "category_index": [[]] * num_items,
            "uploader_index": [-1] * num_items,
        },
        schema=SEQUENCE_ITEMS,
    )
    pq.write_table(table, staged / "items.parquet")
    sizes = {"num_items": num_items, "num_tags": 0, "num_categories": 0, "num_uploaders": 0}
    publish(staged, folder / "rows", KIND, metrics={**sizes, "content_dim": 0})
    return str(folder / "rows")


def ours(rows: str, out: Path, epochs: int, every: int, precision: str) -> None:
    """What the training loop does in every step, and lists of unseen items; run in a process of
    its own. Prints what bench/peers_sequence_training.py does."""
    torch.set_num_threads(cores())
    recipe = sasrec().override([f"train.precision={precision}"])
    stream = RowStream(
        open_rows(rows, KIND, "train"), recipe.collate, batch_size=recipe.train.batch_size
    )
    steps = stream.steps_per_epoch * epochs
    train = recipe.train.model_copy(update={"steps": steps})
    torch.manual_seed(train.seed)
    engine = PlainEngine(recipe, recipe.build(rows), torch.device("cpu"))
    generator, seconds, processor, events = torch.Generator(), 0.0, 0.0, 0
    batches = stream.batches()
    engine.module.train()
    for epoch in range(1, epochs + 1):
        started, used = time.perf_counter(), time.process_time()
        for step in range((epoch - 1) * stream.steps_per_epoch, epoch * stream.steps_per_epoch):
            batch = recipe.transform(next(batches), generator.manual_seed(step))
            seed = derive(train.seed, step)
            backpropagate(engine, recipe.weights, batch, 1, seed).means()
            engine.step(lr_factor(step, train))
            events += int(batch.target_mask.sum())
        seconds += time.perf_counter() - started
        processor += time.process_time() - used
        if epoch % every == 0:
            engine.module.eval()
            np.save(out / f"top-{epoch}.npy", unseen(engine.module, rows))
            engine.module.train()
            line = {"epoch": epoch, "seconds": seconds, "processor": processor, "events": events}
            print(json.dumps(line), flush=True)


@torch.inference_mode()
def unseen(model: Any, rows: str) -> NDArray[np.int64]:
    """(users, 10) the best items that are not in a user's history."""
    split = open_rows(rows, KIND, "heldout")
    found = []
    for unit in split.units:
        table = pq.ParquetFile(unit.path).read_row_group(unit.row_group)
        for start in range(0, table.num_rows, 256):
            known, _ = histories(table.slice(start, 256))
            scores = model.score(known)
            scores[known.users(), known.item_index] = -torch.inf
            found.append(scores.topk(TOP, dim=1).indices.numpy())
    return np.concatenate(found)


def ndcg(best: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    """NDCG@10 of one target a user: 1 / log2(place + 1), places from 1."""
    place = np.where(best == targets[:, None], np.arange(TOP), TOP).min(axis=1)
    return float(np.where(place < TOP, 1 / np.log2(place + 2), 0).mean())


def follow(
    command: list[str], out: Path, targets: NDArray[np.int64], report: Report
) -> tuple[list[Mark], int]:
    """Run a side to its end: its evaluations and its peak memory in bytes. One that fails on the
    way counts as far as it came, and a note says so.

    Raises:
        CalledProcessError: it failed before the first evaluation; its errors have been printed.
    """
    out.mkdir(parents=True)
    marks: list[Mark] = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=RESULTS.parents[1]
        )
        with PeakMemory(pid=process.pid) as memory:
            for line in _json_lines(process):
                best = np.load(out / f"top-{line['epoch']}.npy")
                marks.append(Mark(**line, ndcg=ndcg(best, targets)))
                print(f"   {marks[-1]}", flush=True)
        if process.wait():
            errors.seek(0)
            print(errors.read()[-4000:], file=sys.stderr)
            if not marks:
                raise subprocess.CalledProcessError(process.returncode, command)
            report.note(f"{out.name}: ended with status {process.returncode} after {marks[-1]}")
    return marks, memory.peak


def _json_lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    return (json.loads(line) for line in process.stdout if line.startswith("{"))


def measure(options: argparse.Namespace, report: Report) -> None:
    num_users = 600 if options.quick else None
    users = read_sequences(Path(options.data) / "sequences.txt", num_users)
    targets = np.array([items[-2] for items in users])
    epochs, every = (2, 1) if options.quick else (options.epochs, min(2, options.epochs))
    with tempfile.TemporaryDirectory(prefix="raycall-training-") as folder:
        work = Path(folder)
        numbers = [str(epochs), str(every)]
        rows, log = write_rows(users, work), work / "log.npy"
        write_log(users, log)
        module = [sys.executable, "-m", "bench.sequence_training", "--ours", rows]
        command = [*module, str(work / "ours"), *numbers, options.precision]
        mine, my_peak = follow(command, work / "ours", targets, report)
        report.note(f"ours: matrix products in {options.precision}; RecTools' in fp32")
        _add("ours", mine, my_peak, report)
        if options.recbole:
            _beside_recbole(options.recbole, log, work, mine, options.quick, report)
        if not options.peers:
            report.note("no --peers PYTHON: nothing compared; see the module's docstring")
            return
        script = Path(__file__).with_name("peers_sequence_training.py")
        peer = [
            options.peers,
            str(script),
            str(log),
            str(work / "RecTools"),
            *numbers,
            str(cores()),
        ]
        theirs, peer_peak = follow(peer, work / "RecTools", targets, report)
    _add("RecTools", theirs, peer_peak, report)
    bars: tuple[float | None, ...] = (None, None, None) if options.quick else (3.0, 0.5, 1.0)
    report.add("events/s, ours / RecTools", _speed(mine) / _speed(theirs), bars[0])
    shares = _speed(mine, "processor"), _speed(theirs, "processor")
    report.add("events/s of a processor, ours / RecTools", shares[0] / shares[1])
    report.add("peak memory, ours / RecTools", my_peak / peer_peak, bars[1], at_most=True)
    goal = max(theirs, key=lambda mark: mark.ndcg)
    reached = [mark.seconds for mark in mine if mark.ndcg >= goal.ndcg]
    share = min(reached) / goal.seconds if reached else float("inf")
    report.add("seconds to RecTools' best NDCG@10, ours / RecTools", share, bars[2], at_most=True)
    report.note(f"RecTools' best NDCG@10, {goal.ndcg:.4f}, came after epoch {goal.epoch}")


def _beside_recbole(
    python: str, log: Path, work: Path, mine: list[Mark], quick: bool, report: Report
) -> None:
    try:
        theirs = recbole(python, log, work, 5 if quick else 50)
    except subprocess.CalledProcessError as error:  # what else is measured stays
        report.note(f"RecBole: ended with status {error.returncode}, nothing compared")
        return
    report.add("RecBole, events/s", theirs)
    report.add("events/s, ours / RecBole", _speed(mine) / theirs, None if quick else 5.0)


def recbole(python: str, log: Path, work: Path, num_batches: int) -> float:
    """Events a second of RecBole's SASRec over some batches."""
    script = Path(__file__).with_name("peers_recbole.py")
    numbers = [str(num_batches), str(cores())]
    command = [python, str(script), str(log), str(work / "recbole"), *numbers]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=work).stdout
    line = json.loads(told.splitlines()[-1])
    return line["events"] / line["seconds"]


def _speed(marks: list[Mark], of: Literal["seconds", "processor"] = "seconds") -> float:
    return marks[-1].events / getattr(marks[-1], of)


def _add(side: str, marks: list[Mark], peak: int, report: Report) -> None:
    report.add(f"{side}, events/s", _speed(marks))
    report.add(f"{side}, peak GB", peak / 2**30)
    best = max(marks, key=lambda mark: mark.ndcg)
    report.add(f"{side}, best NDCG@10 of {marks[-1].epoch} epochs", best.ndcg)
    report.add(f"{side}, training seconds to it", best.seconds)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", metavar="PYTHON", help="of the environment with RecTools")
    parser.add_argument("--recbole", metavar="PYTHON", help="of the environment with RecBole")
    parser.add_argument("--data", metavar="DIR", default="../shared/data/ml-1m")
    parser.add_argument("--epochs", type=int, default=20, help="of both sides")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of ours")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:  # the process that is measured
        ours(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
    else:
        main("sequence_training", __doc__, measure, flags)
