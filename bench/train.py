"""Training on Ray Train beside bare torch loops on the same model, rows and threads.

One worker with DeepSpeed is held to a plain loop, two workers with DeepSpeed and with DDP to plain
torch DDP. The bare loops have what a loop needs and no more: a thread that collates ahead, AdamW,
clipping, a schedule. They keep their rows in memory, log nothing, check nothing, save nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.harness import Report, main
from bench.workload import cores, elsewhere, make_rows
from rec.batch import ContentBatch
from rec.data.stream import RowStream, open_rows
from rec.recipes.content import ContentRecipe, demo
from rec.runtime.train import train
from rec.train.metrics import read_records
from rec.train.schedule import lr_factor

_AHEAD = 4  # batches collated ahead, as in RowStream
_MARKS = "seconds.json"


def _ours(rank: int, recipe: ContentRecipe, rows: str, out: str, workers: int) -> None:  # noqa: ARG001
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    train(recipe, rows, out, num_workers=workers, use_gpu=False)
    ray.shutdown()


def _bare(rank: int, recipe: ContentRecipe, rows: str, out: str, workers: int) -> None:
    threads = max(cores() // workers, 1)
    torch.set_num_threads(threads)
    if workers > 1:
        meeting = f"file://{out}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
    config = recipe.train
    stream = RowStream(
        open_rows(rows, recipe.kind, "train"),
        recipe.collate,
        batch_size=config.batch_size // workers,
        seed=config.seed,
        rank=rank,
        world=workers,
    )
    tables = list(islice(stream.tables(), config.steps))  # the very batches of our run
    torch.manual_seed(config.seed)
    model = recipe.build(rows)
    # DDP gets a group of its own: the model gathers negatives in the default one meanwhile
    called = DistributedDataParallel(model, process_group=dist.new_group()) if workers > 1 else None
    marks = _loop(recipe, model, called or model, _collated(recipe, tables, max(threads - 1, 1)))
    if rank == 0:
        Path(out, _MARKS).write_text(json.dumps(marks))
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def _loop(
    recipe: ContentRecipe,
    model: nn.Module,
    called: nn.Module,
    batches: Iterator[ContentBatch],
) -> list[float]:
    """The seconds at which each step had ended, before the first of them 0."""
    config, generator = recipe.train, torch.Generator()
    groups = recipe.parameter_groups(model)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(groups, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    started, marks = time.perf_counter(), [0.0]
    for step, batch in enumerate(batches):
        views = recipe.transform(batch, generator.manual_seed(step))
        terms = called(views).items()
        parts = [recipe.weights[k] * t.total / t.count.clamp_min(1e-12) for k, t in terms]
        torch.stack(parts).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * lr_factor(step, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter() - started)
    return marks


def _collated(
    recipe: ContentRecipe, tables: list[pa.Table], threads: int
) -> Iterator[ContentBatch]:
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[ContentBatch]] = deque()
        for table in tables:
            ahead.append(pool.submit(recipe.collate, table))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _our_rate(recipe: ContentRecipe, out: str, warm_up: int) -> float:
    """Rows a second of the steps after `warm_up`, from the run's own log."""
    records = read_records(f"{out}/train/logs")
    rates = [r["rows_per_s"] for r in records if r["step"] > warm_up]
    if len(rates) != (recipe.train.steps - warm_up) // recipe.train.log_every:
        raise RuntimeError(f"{out}: the log lacks records, found {len(rates)}")
    return statistics.harmonic_mean(rates)  # records span equally many rows


def _bare_rate(recipe: ContentRecipe, out: str, warm_up: int) -> float:
    marks = json.loads(Path(out, _MARKS).read_text())
    rows = (recipe.train.steps - warm_up) * recipe.train.batch_size
    return rows / (marks[-1] - marks[warm_up])


def measure(options: argparse.Namespace, report: Report) -> None:
    items, steps, warm_up, every, rounds = (
        (400, 9, 3, 3, 1) if options.quick else (2000, 60, 20, 10, 3)
    )
    recipe = demo().override(
        [
            "rows.heldout_fraction=0.05",
            f"train.steps={steps}",
            f"train.log_every={every}",
            f"train.checkpoint_every={steps}",
            f"train.validate_every={steps}",
        ]
    )
    # name, engine (None: bare), workers; in the order in which every round runs them
    sides = (
        ("DeepSpeed, 1 worker", "deepspeed", 1),
        ("bare loop", None, 1),
        ("DeepSpeed, 2 workers", "deepspeed", 2),
        ("bare DDP, 2 processes", None, 2),
        ("DDP, 2 workers", "ddp", 2),
    )
    warm: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    whole: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    with tempfile.TemporaryDirectory(prefix="raycall-train-") as folder:
        rows = make_rows(recipe, f"{folder}/run", items, per_shard=500)
        for number in range(rounds):
            for name, engine, workers in sides:
                out = Path(folder, f"{number}-{name.replace(' ', '-')}")
                out.mkdir()
                if engine is None:
                    arguments = (recipe, rows, str(out), workers)
                    seconds = elsewhere(_bare, *arguments, processes=workers)
                    rate = _bare_rate(recipe, str(out), warm_up)
                else:
                    used = recipe.override([f"train.engine={engine}"])
                    seconds = elsewhere(_ours, used, rows, str(out), workers)
                    rate = _our_rate(used, str(out), warm_up)
                warm[name].append(rate)
                whole[name].append(steps * recipe.train.batch_size / seconds)
                report.note(f"round {number + 1}, {name}: {rate:.1f} rows/s, {seconds:.1f} s")
    _compare(report, warm, whole)
    report.note(
        f"demo recipe, {items} synthetic items, {steps} steps of {recipe.train.batch_size}, of "
        f"which {warm_up} are warm-up; {cores()} threads shared by the workers; medians of "
        f"{rounds} rounds. After warm-up includes our logging and collapse statistics every "
        f"{every} steps; with start-up also our validation, checkpoint and the start of Ray"
    )


def _compare(report: Report, warm: dict[str, list[float]], whole: dict[str, list[float]]) -> None:
    for name, values in warm.items():
        report.add(f"rows/s, {name}", statistics.median(values))
    for ours, bare, bar in (
        ("DeepSpeed, 1 worker", "bare loop", 0.9),
        ("DeepSpeed, 2 workers", "bare DDP, 2 processes", 0.95),
        ("DDP, 2 workers", "bare DDP, 2 processes", 0.95),
    ):
        for values, when, held in ((warm, "after warm-up", bar), (whole, "with start-up", None)):
            ratio = statistics.median(values[ours]) / statistics.median(values[bare])
            report.add(f"{ours} / {bare}, {when}", ratio, bar=held)


if __name__ == "__main__":
    main("train", __doc__, measure)
