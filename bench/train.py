"""Training on Ray Train beside bare torch loops on the same model, rows and threads.

One worker with DeepSpeed is held to a plain loop, two workers with DeepSpeed and with DDP to plain
torch DDP. The bare loops have what a loop needs and no more: a thread that collates ahead, AdamW,
clipping, a schedule. They keep their rows in memory, log nothing, check nothing, save nothing.

The two sides run in short turns (bench.turns), since a shared machine's speed changes by a third
within minutes.
"""

from __future__ import annotations

import argparse
import tempfile
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
from bench.turns import Turns, take_turns
from bench.workload import MarkedRecipe, cores, make_rows
from rec.batch import ContentBatch
from rec.data.stream import RowStream, open_rows
from rec.recipes.content import ContentRecipe, demo
from rec.runtime.train import train
from rec.train.schedule import lr_factor

_AHEAD = 4  # batches collated ahead, as in RowStream
_MARKS = "steps.txt"
_PAIRS = ("deepspeed-1", "deepspeed-2", "ddp-2")  # engine and workers, each beside a bare loop
_TURN_S = 15.0  # Ray has to catch up after each stop
# the least size that would be trained in earnest (the films recipe's); what a step costs besides
# arithmetic (hooks, logging, daemons) weighs more the smaller a model is
_SIZES = (
    "model.vision.hidden_size=192",
    "model.vision.num_layers=6",
    "model.vision.num_heads=6",
    "model.text.hidden_size=384",
    "model.text.num_layers=6",
    "model.text.num_heads=6",
    "model.fusion_dim=256",
    "model.embedding_dim=256",
)


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
    _loop(recipe, model, called or model, _collated(recipe, tables, max(threads - 1, 1)))
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def _loop(
    recipe: ContentRecipe,
    model: nn.Module,
    called: nn.Module,
    batches: Iterator[ContentBatch],
) -> None:
    config, generator = recipe.train, torch.Generator()
    groups = recipe.parameter_groups(model)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(groups, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
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


def measure(options: argparse.Namespace, report: Report) -> None:
    items, steps, warm_up, every = (400, 12, 3, 3) if options.quick else (2000, 60, 10, 10)
    turn_s = 1.0 if options.quick else _TURN_S
    recipe = MarkedRecipe.model_validate(demo().model_dump()).override(
        [
            *_SIZES,
            "rows.heldout_fraction=0.05",
            f"train.steps={steps}",
            f"train.log_every={every}",
            f"train.checkpoint_every={steps}",
            f"train.validate_every={steps}",
        ]
    )
    with tempfile.TemporaryDirectory(prefix="raycall-train-") as folder:
        rows = make_rows(recipe, f"{folder}/run", items, per_shard=500)
        # ZeRO 0: a bare loop and plain DDP do not partition the optimiser's state either, which
        # costs copies and another exchange of all weights
        for engine, workers, bar in (
            ("deepspeed", 1, 0.9),
            ("deepspeed", 2, 0.95),
            ("ddp", 2, 0.95),
        ):
            if f"{engine}-{workers}" not in options.pairs:
                continue
            place = Path(folder, f"{engine}-{workers}")
            sides = []
            for name, work, processes in (("ours", _ours, 1), ("bare", _bare, workers)):
                out = place / name
                out.mkdir(parents=True)
                settings = [f"train.engine={engine}", "train.zero_stage=0"]
                used = recipe.override([*settings, f"marks={out}/{_MARKS}"])
                sides.append(Turns(work, (used, rows, str(out), workers), processes, out / _MARKS))
            ours, bare = take_turns(sides[0], sides[1], warm_up, steps, turn_s)
            kind = "deepspeed ZeRO 0" if engine == "deepspeed" else engine
            name = f"{kind}, {workers} worker{'s' * (workers > 1)}"
            size = recipe.train.batch_size
            report.add(f"rows/s, {name}", ours.rate * size)
            report.add(f"rows/s, bare {'DDP' if workers > 1 else 'loop'}", bare.rate * size)
            report.add(f"{name} / bare, after warm-up", ours.rate / bare.rate, bar)
            whole = [steps / (s.start_s + steps / s.rate) for s in (ours, bare)]
            report.add(f"{name} / bare, {steps} steps with start-up", whole[0] / whole[1])
            report.note(f"{name}: first step after {ours.start_s:.1f} s, bare {bare.start_s:.1f} s")
    report.note(
        f"demo recipe with the films recipe's sizes, {items} synthetic items, batches of "
        f"{recipe.train.batch_size}, {cores()} threads shared by the workers. Both sides stand "
        f"side by side and run in turns of {turn_s:g} s, the other stopped with all its processes, "
        f"from step {warm_up} on, until one has made {steps}; a rate is steps by the side's own "
        f"time. Ours includes a log record every {every} steps"
    )


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", nargs="+", choices=_PAIRS, default=_PAIRS, help="default: all")


if __name__ == "__main__":
    main("train", __doc__, measure, flags)
