"""What benchmarks work on: synthetic rows, an untrained encoder, and processes of their own.

Both sides of a comparison run in fresh processes on the CPU, so that both pay Python's start and
neither finds what the other left in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from jobs import ingest
from rec.artifacts import join
from rec.batch import ContentBatch
from rec.recipes.content import ContentRecipe
from rec.sources import SyntheticSource


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def elsewhere(work: Callable[..., None], *arguments: Any, processes: int = 1) -> float:
    """Seconds that `work(rank, *arguments)` takes in fresh processes, their start included.

    Raises:
        ProcessRaisedException: one of them failed; the others are ended.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # one side would take the GPU, the other not
    started = time.perf_counter()
    spawn(work, args=arguments, nprocs=processes)
    return time.perf_counter() - started


def make_rows(recipe: ContentRecipe, out: str, items: int, per_shard: int) -> str:
    """Ingest synthetic items for `recipe` into `out`; returns the place of the rows."""
    elsewhere(ingest_items, recipe, out, items, per_shard)
    return join(out, "rows")


def ingest_items(
    rank: int,  # noqa: ARG001
    recipe: ContentRecipe,
    out: str,
    items: int,
    per_shard: int,
    like: SyntheticSource | None = None,
) -> None:
    """The ingest job on a Ray of this process: items of the default platform or of one `like`."""
    import ray

    sizes = {"num_items": items, "num_shards": -(-items // per_shard)}
    source = (like or SyntheticSource()).model_copy(update=sizes)
    ingest.run(ingest.IngestConfig(source=source, rows=recipe.rows), out)
    ray.shutdown()


def make_encoder(recipe: ContentRecipe, rows: str, uri: str) -> str:
    """Publish the recipe's model at `uri` as it is before training."""
    torch.manual_seed(recipe.train.seed)
    recipe.export(recipe.build(rows), rows, uri, {})
    return uri


class MarkedRecipe(ContentRecipe):
    """A recipe that writes down when each step of rank 0 begins, in whatever loop it is used."""

    marks: str = ""  # file that gets a line a step: seconds of the machine's monotonic clock

    def transform(self, batch: ContentBatch, generator: torch.Generator) -> ContentBatch:
        if not dist.is_initialized() or dist.get_rank() == 0:
            with Path(self.marks).open("a") as stream:
                stream.write(f"{time.monotonic()}\n")
        return super().transform(batch, generator)
