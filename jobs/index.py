"""Build a nearest-neighbour index from an embedding table.

    python -m jobs.index --embeddings runs/demo/embeddings --out runs/demo/index \\
        --set recall_target=0.98
    python -m jobs.index --embeddings s3://b/e --out s3://b/i --workers 8 \\
        --attributes s3://b/tables/items --set attributes='["language", "published_at"]'
    python -m jobs.index --out runs/demo/index --rollback
    python -m jobs.index --out runs/demo/index --keep 2

All places may be local or s3://. Up to 20,000 items the index is exact; beyond, it is tuned on
held-out rows (or --queries) to the recall asked for, and what it reached is in the manifest. With
--workers its shards are filled by Ray tasks; without, no Ray is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from jobs.cli import add_overrides, alone_in, count, parser, place, start_ray, tell_errors
from rec.artifacts import ArtifactError, Manifest
from rec.config import ConfigError
from rec.retrieval import versions
from rec.retrieval.build import Runner, build_index
from rec.retrieval.errors import IndexBuildError, LogError
from rec.retrieval.spec import IndexConfig


def arguments() -> argparse.ArgumentParser:
    places = parser("jobs.index", __doc__)
    places.add_argument("--embeddings", type=place, help="an embedding-table artifact")
    places.add_argument("--out", type=place, required=True, help="where to publish the index")
    places.add_argument("--attributes", type=place, help="Parquet files with attributes by item_id")
    places.add_argument("--queries", type=place, help="an embedding table of queries to tune with")
    places.add_argument(
        "--log-seq", type=count, help="number of the last live change that the table includes"
    )
    places.add_argument(
        "--workers", type=count, default=0, help="Ray tasks that fill shards at once; 0 = no Ray"
    )
    places.add_argument(
        "--rollback",
        nargs="?",
        const="",
        metavar="VERSION",
        help="instead: use this version at --out again, or what the one in use replaced",
    )
    places.add_argument(
        "--keep",
        type=count,
        metavar="N",
        help="afterwards, or alone, remove all but the N newest versions, the one in use, and N "
        "that rollbacks lead to; what was written or in use in the last hour stays",
    )
    add_overrides(places, IndexConfig())
    return places


def run(
    embeddings: str,
    out: str,
    config: IndexConfig | None = None,
    *,
    attributes: str | None = None,
    queries: str | None = None,
    log_seq: int | None = None,
    workers: int = 0,
) -> Manifest:
    """Build and publish; see rec.retrieval.build.build_index."""
    runner: Runner = map
    if workers:
        start_ray()
        runner = ray_runner(workers)
    manifest = build_index(
        embeddings,
        out,
        config,
        attributes_uri=attributes,
        queries_uri=queries,
        log_seq=log_seq,
        run=runner,
    )
    built, found = manifest.config, manifest.metrics
    print(
        f"index: {built['num_items']:,} items of dimension {built['dimension']} at {out}, version "
        f"{manifest.version}; {built['factory']}, shards {built['num_shards']}, nprobe "
        f"{built['nprobe']}, k_factor {built['k_factor']:g}; recall@10 "
        f"{found['recall@10']:.4f}, recall@100 {found['recall@100']:.4f} on "
        f"{found['num_queries']} held-out queries; {found['seconds']:.1f} s",
        flush=True,
    )
    if found["recall@10"] < found["recall_target"]:
        print(
            f"index: recall@10 is below the target of {found['recall_target']}; for more, set "
            f"factory=auto, more memory_gb, or factory=Flat (exact)",
            flush=True,
        )
    return manifest


def ray_runner(num_workers: int) -> Runner:
    """`map` by Ray tasks, at most `num_workers` at once, results in order."""
    import ray

    def run_all(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=1)(function)
        ahead = [remote.remote(task) for task in tasks[:num_workers]]
        number = 0
        try:
            for number in range(len(tasks)):
                # as one comes back another goes out: what is in flight stays bounded
                yield ray.get(ahead[number])
                if len(ahead) < len(tasks):
                    ahead.append(remote.remote(tasks[len(ahead)]))
        finally:  # after one that failed Ray would print what befell those that nobody waits for
            for task in ahead[number + 1 :]:
                ray.cancel(task)
                with suppress(Exception):
                    ray.get(task)

    return run_all


@tell_errors("index", ArtifactError, ConfigError, IndexBuildError, LogError)
def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    config = IndexConfig().override(given.set)
    with alone_in(given.out):
        if given.rollback is not None:
            manifest = versions.rollback(given.out, given.rollback or None)
            print(f"index: {given.out} uses version {manifest.version} of {manifest.created_at}")
        elif given.embeddings is None and given.keep is None:
            raise ConfigError("give --embeddings to build from, --rollback or --keep")
        elif given.embeddings is not None:
            if given.workers:
                start_ray(given)
            run(
                given.embeddings,
                given.out,
                config,
                attributes=given.attributes,
                queries=given.queries,
                log_seq=given.log_seq,
                workers=given.workers,
            )
        if given.keep is not None:
            removed = versions.collect(given.out, given.keep)
            kept = len(versions.history(given.out))
            print(
                f"index: removed {len(removed)} versions that are no longer kept, {kept} are left; "
                f"what was written or in use in the last hour stays"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
