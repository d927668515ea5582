"""The neighbours of every item of an index, as a score table.

    python -m jobs.neighbours --index runs/demo/index --out runs/demo/neighbours --set k=50

Ray Data actors load the index once each and write the table's parts, each whole or not at all:
Parquet with columns query_id, item_id and score, the best first. Published again, the table
replaces the one before, whose files stay until the next time; older ones go after an hour.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from pydantic import Field

from jobs.cli import add_overrides, alone_in, parser, place, start_ray, tell_errors
from rec import artifacts, leftovers
from rec.artifacts import ArtifactError, Manifest
from rec.config import Config, ConfigError
from rec.data.tasks import stream
from rec.retrieval.errors import QueryError
from rec.retrieval.index import Index
from rec.retrieval.neighbours import neighbours

KIND = "score-table"


class NeighboursConfig(Config):
    """How to make the table."""

    k: int = Field(default=50, ge=1, le=9_999, description="neighbours an item")
    rows_per_part: int = Field(default=100_000, ge=1, description="rows of the index a file")
    num_actors: int = Field(default=2, ge=1, description="Ray actors, each with the index")


class _Neighbours:
    """One actor: the index in memory, the parts it is given."""

    def __init__(self, index: str, manifest: str, folder: str, k: int) -> None:
        # of the version that the job began with: another may be in use by now
        self._index = Index.open(index, manifest=Manifest.from_json(manifest))
        self._folder, self._k = folder, k

    def __call__(self, batch: pa.Table) -> pa.Table:
        counts = []
        for work in batch.to_pylist():
            table = neighbours(self._index, work["start"], work["stop"], self._k)
            data = pa.BufferOutputStream()
            pq.write_table(table, data)
            name = artifacts.join(self._folder, f"part-{work['part']:05d}.parquet")
            artifacts.write_atomic(name, data.getvalue().to_pybytes())
            counts.append(table.num_rows)
        return pa.table({"num_rows": pa.array(counts, pa.int64())})


def run(index: str, out: str, config: NeighboursConfig | None = None) -> Manifest:
    """Write and publish the table; lineage names the index's version.

    Raises:
        ArtifactError: there is no intact index, `out` holds something else, or the table cannot be
            written.
    """
    config = config or NeighboursConfig()
    before = leftovers.root_in_use(out, KIND)
    started = time.monotonic()
    source = artifacts.read_manifest(index, "index")
    artifacts.verify(index, source)  # named here in a line, not by every worker
    root = f"n-{uuid.uuid4().hex[:12]}"
    starts = range(0, source.config["num_rows"], config.rows_per_part)
    work: list[dict[str, Any]] = [
        {"part": part, "start": start, "stop": start + config.rows_per_part}
        for part, start in enumerate(starts)
    ]
    start_ray()
    parts = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        _Neighbours,
        fn_constructor_args=(index, source.to_json(), artifacts.join(out, root), config.k),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(config.num_actors, len(work))),
    )
    parts.context.enable_progress_bars = False
    num_rows = sum(sum(batch["num_rows"].to_pylist()) for batch in stream(parts))
    seconds = round(time.monotonic() - started, 3)
    manifest = artifacts.seal(
        out,
        root,
        KIND,
        lineage={**source.lineage, "index": source.version},
        config=config.model_dump(),
        metrics={"num_rows": num_rows, "num_items": source.config["num_items"], "seconds": seconds},
    )
    leftovers.clear(out, "n-[0-9a-f]{12}", root, before)
    print(
        f"neighbours: {num_rows:,} pairs of {source.config['num_items']:,} items at {out}, version "
        f"{manifest.version}; {seconds:.1f} s",
        flush=True,
    )
    return manifest


@tell_errors("neighbours", ArtifactError, ConfigError, QueryError)
def main(argv: list[str] | None = None) -> int:
    flags = parser("jobs.neighbours", __doc__)
    flags.add_argument("--index", type=place, required=True, help="an index artifact")
    flags.add_argument("--out", type=place, required=True, help="where to publish the table")
    add_overrides(flags, NeighboursConfig())
    given = flags.parse_args(argv)
    config = NeighboursConfig().override(given.set)
    start_ray(given)
    with alone_in(given.out):
        run(given.index, given.out, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
