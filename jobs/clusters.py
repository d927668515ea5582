"""Cluster an embedding table by spherical k-means; publish the centres and who belongs to which.

    python -m jobs.clusters --embeddings runs/demo/embeddings --out runs/demo/clusters \\
        --set num_clusters=1000

The centres are an embedding table themselves (ids "0", "1", ...), which jobs.index can index; the
assignments stand beside them as Parquet (id, interest, cluster, similarity). Ray tasks pass over
one partition each, and only sums travel. Published again, centres and assignments replace those
before, whose files stay until the next time; older ones go after an hour.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from jobs.cli import add_overrides, alone_in, parser, place, start_ray, tell_errors
from jobs.index import ray_runner
from rec import artifacts, leftovers
from rec.artifacts import ArtifactError, Manifest
from rec.config import Config, ConfigError
from rec.retrieval.clusters import Round, Sums, add_up, first_centres, kmeans, nearest
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.table import EmbeddingTable, folder_of
from rec.retrieval.versions import upload
from rec.schema import EMBEDDINGS

KIND = "embedding-table"
ASSIGNMENTS = "clusters"  # kind of the artifact below --out/assignments


class ClustersConfig(Config):
    """How to cluster."""

    num_clusters: int = Field(default=1000, ge=1)
    rounds: int = Field(default=20, ge=1, description="passes over all vectors, at most")
    sample: int = Field(
        default=50_000, ge=1, description="vectors to choose the first centres from"
    )
    rows_per_task: int = Field(default=1_000_000, ge=1)
    workers: int = Field(default=2, ge=1, description="Ray tasks at once")
    seed: int = Field(default=0, ge=0)


class _Slice(NamedTuple):
    """Some active rows of an embedding table."""

    embeddings: str
    version: str
    out: str
    start: int
    stop: int

    def table(self) -> EmbeddingTable:
        return EmbeddingTable(folder_of(self.embeddings, self.version), self.start, self.stop)


def _share(work: Round) -> Sums:
    return add_up(work.part.table().vectors(), work.centres)


def _assign(work: Round) -> int:
    """Write the assignments of one slice; returns how many."""
    rows: _Slice = work.part
    table = rows.table()
    found = [nearest(vectors, work.centres) for vectors in table.vectors()]
    clusters, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    keys = table.keys()
    assigned = pa.table(
        {
            "id": keys["id"],
            "interest": keys["interest"],
            "cluster": pa.array(clusters, pa.int32()),
            "similarity": pa.array(similarity, pa.float32()),
        }
    )
    with tempfile.TemporaryDirectory(prefix="raycall-clusters-") as staged:
        pq.write_table(assigned, Path(staged, f"part-{rows.start:012d}.parquet"))
        upload(staged, rows.out)
    return assigned.num_rows


def _in_use(out: str, assignments: str) -> tuple[str | None, str | None]:
    """Folders of the centres and of the assignments that are published there; none where nothing
    is. Raises ArtifactError where something else is."""
    centres = leftovers.root_in_use(out, KIND)
    assigned = leftovers.root_in_use(assignments, ASSIGNMENTS)
    # the centres are published first: a run that was killed then has no assignments
    if centres and "num_clusters" not in artifacts.read_manifest(out, KIND).config:
        raise ArtifactError(
            f"{out}: holds vectors that are no clusters' centres; give another --out"
        )
    return centres, assigned


def run(embeddings: str, out: str, config: ClustersConfig | None = None) -> Manifest:
    """Cluster and publish; returns the manifest of the centres.

    Raises:
        ArtifactError, IndexBuildError: the table is not intact, or has fewer vectors than there
            are clusters to be; or `out` holds something else.
    """
    config = config or ClustersConfig()
    assignments = artifacts.join(out, "assignments")
    if os.path.realpath(embeddings) == os.path.realpath(out):  # of s3://, as texts
        raise ArtifactError(f"{out}: the centres would replace the vectors; give another --out")
    before = _in_use(out, assignments)
    started = time.monotonic()
    source, folder = artifacts.open_artifact(embeddings, "embedding-table")
    table = EmbeddingTable(folder)
    num_rows = table.keys().num_rows
    if num_rows < config.num_clusters:
        raise IndexBuildError(
            f"{embeddings}: {num_rows} vectors for {config.num_clusters} clusters; set num_clusters"
        )
    rng = np.random.default_rng(config.seed)
    size = min(num_rows, max(config.sample, config.num_clusters))
    sample = table.sample(np.sort(rng.choice(num_rows, size, replace=False)))
    root = f"k-{uuid.uuid4().hex[:12]}"
    target = artifacts.join(assignments, root)
    slices = [
        _Slice(
            embeddings, source.version, target, start, min(start + config.rows_per_task, num_rows)
        )
        for start in range(0, num_rows, config.rows_per_task)
    ]
    start_ray()
    runner = ray_runner(config.workers)
    centres = first_centres(sample, config.num_clusters, config.seed)
    centres, history = kmeans(
        slices, _share, centres, rounds=config.rounds, seed=config.seed, run=runner
    )
    assigned = sum(runner(_assign, [Round(part, centres) for part in slices]))
    lineage = {**source.lineage, "embedding-table": source.version}
    about = {
        "config": config.model_dump(),
        "metrics": {
            "num_rows": assigned,
            "mean_similarity": history,
            "seconds": round(time.monotonic() - started, 3),
        },
    }
    with tempfile.TemporaryDirectory(prefix="raycall-clusters-") as staged:
        columns = [
            pa.array([str(number) for number in range(len(centres))], pa.string()),
            pa.array(np.zeros(len(centres), np.int32)),
            pa.array(np.ones(len(centres), np.float32)),
            pa.array(list(centres), pa.list_(pa.float32())),
        ]
        pq.write_table(
            pa.Table.from_arrays(columns, schema=EMBEDDINGS), Path(staged, "centres.parquet")
        )
        manifest = artifacts.publish(staged, out, KIND, lineage=lineage, **about)
    artifacts.seal(
        assignments, root, ASSIGNMENTS, lineage={**lineage, "centres": manifest.version}, **about
    )
    leftovers.clear(out, "v-[0-9a-f]{12}", manifest.root, before[0])
    leftovers.clear(assignments, "k-[0-9a-f]{12}", root, before[1])
    print(
        f"clusters: {assigned:,} vectors in {len(centres):,} clusters at {out}, mean similarity "
        f"{history[0]:.4f} to {history[-1]:.4f} in {len(history)} rounds",
        flush=True,
    )
    return manifest


@tell_errors("clusters", ArtifactError, ConfigError, IndexBuildError)
def main(argv: list[str] | None = None) -> int:
    flags = parser("jobs.clusters", __doc__)
    flags.add_argument("--embeddings", type=place, required=True, help="an embedding table")
    flags.add_argument("--out", type=place, required=True, help="where to publish the centres")
    add_overrides(flags, ClustersConfig())
    given = flags.parse_args(argv)
    config = ClustersConfig().override(given.set)
    start_ray(given)
    with alone_in(given.out):
        run(given.embeddings, given.out, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
