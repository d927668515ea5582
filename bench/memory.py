"""Peak memory of ingest and embedding at two sizes: flat means that it does not grow with data.

Every job runs in a process of its own with a Ray of its own; the peak is that of the whole tree
of processes, Ray's daemons, workers and object store included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from bench.harness import PeakMemory, Report, main
from bench.workload import cores, elsewhere, ingest_items, make_encoder
from jobs import embed
from rec.recipes.content import ContentRecipe, debug
from rec.runtime.embed import EmbedConfig
from rec.sources import SyntheticSource

# what makes an item cheap without making any table empty
_SMALL = SyntheticSource(
    frame_size=16,
    sound_share=0.02,
    interactions_per_user=10,
    searches_per_user=4,
    comments_per_user=1,
)


def _ingest(
    rank: int, recipe: ContentRecipe, out: str, items: int, per_shard: int, like: SyntheticSource
) -> None:
    with _Measured(Path(out, "ingest.json")):
        ingest_items(rank, recipe, out, items, per_shard, like)


def _embed(rank: int, out: str) -> None:  # noqa: ARG001
    import ray

    with _Measured(Path(out, "embed.json")):
        config = EmbedConfig(num_actors=cores())
        embed.run(f"{out}/encoder", f"{out}/rows", f"{out}/embeddings", config)
        ray.shutdown()


class _Measured:
    """Writes peak bytes and seconds of its block to a file."""

    def __init__(self, file: Path) -> None:
        self._file, self._memory = file, PeakMemory()

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        self._memory.__enter__()

    def __exit__(self, *error: object) -> None:
        self._memory.__exit__(None, None, None)
        seconds = time.perf_counter() - self._started
        self._file.write_text(json.dumps({"peak": self._memory.peak, "seconds": seconds}))


def measure(options: argparse.Namespace, report: Report) -> None:
    sizes = (500, 5_000) if options.quick else (10_000, 200_000)
    per_shard = sizes[0] // 4  # the small size must fill the cores too
    recipe = debug()
    peaks: dict[str, list[float]] = {"ingest": [], "embed": []}
    for items in sizes:
        with tempfile.TemporaryDirectory(prefix="raycall-memory-") as out:
            elsewhere(_ingest, recipe, out, items, per_shard, _SMALL)
            make_encoder(recipe, f"{out}/rows", f"{out}/encoder")
            elsewhere(_embed, out)
            for job, found in peaks.items():
                values = json.loads(Path(out, f"{job}.json").read_text())
                found.append(values["peak"])
                report.add(f"peak of {job}, {items:,} items, GB", values["peak"] / 2**30)
                rate = items / values["seconds"]
                report.add(f"items/s of {job} with start-up, {items:,} items", rate)
    for job, (small, large) in peaks.items():
        ratio = large / small
        report.add(f"{job}: peak at {sizes[1]:,} / at {sizes[0]:,} items", ratio, 1.25, True)
    report.note(
        f"shards of {per_shard:,} items, debug recipe, its encoder untrained, {cores()} actors; "
        "proportional set size summed over the tree of processes; small pictures, few sounds and "
        "few events a user, since bytes an item say nothing of growth"
    )


if __name__ == "__main__":
    main("memory", __doc__, measure)
