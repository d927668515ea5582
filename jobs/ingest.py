"""Turn raw logs and media into tables, and tables into content rows.

    python -m jobs.ingest --source synthetic --out runs/demo --set source.num_items=2000
    python -m jobs.ingest --source movielens --path ../data/movielens --out s3://bucket/films
    python -m jobs.ingest --source folder --path my-videos --out runs/mine

A folder holds items.csv and the videos, pictures and sounds it names; see rec/sources/folder.py.

Writes OUT/tables (one folder a table, with ledger.json) and OUT/rows (a content-rows artifact).
Places may be local or s3://; several nodes need a place that all of them reach. A run that was
killed goes on where it was when the same command is given again. On a cluster:
`ray job submit -- python -m jobs.ingest ...`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

import ray
import ray.data
from tqdm import tqdm

from jobs.cli import (
    add_overrides,
    add_task_memory,
    alone_in,
    load_recipe,
    parser,
    peek,
    place,
    recipe_settings,
    start_ray,
    tell_errors,
)
from rec.artifacts import ArtifactError, Manifest, join, read_bytes
from rec.config import Config, ConfigError
from rec.data.budget import BudgetError
from rec.data.ingest import write_tables
from rec.data.ledger import Ledger, LedgerError
from rec.data.media import MediaConfig
from rec.data.rows import RowsConfig, RowsError, build_rows
from rec.data.tables import IngestError, Tables
from rec.data.tasks import ShardError
from rec.features.text import TokenizerError
from rec.schema import SchemaError
from rec.sources import (
    AnySource,
    ExercisesSource,
    FolderSource,
    MovieLensSource,
    SourceError,
    SyntheticSource,
)

ERRORS = (
    ArtifactError,
    BudgetError,
    ConfigError,
    IngestError,
    LedgerError,
    RowsError,
    SchemaError,
    ShardError,
    SourceError,
    TokenizerError,
)


_WITH_PATH = ("folder", "movielens", "exercises")


class IngestConfig(Config):
    """Where the data comes from and what is made of it."""

    source: AnySource
    media: MediaConfig = MediaConfig()
    rows: RowsConfig = RowsConfig()


def arguments(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    flags = parser("jobs.ingest", __doc__)
    add_source(flags)
    flags.add_argument(
        "--recipe",
        metavar="MODULE:FUNCTION",
        help="make the rows that this recipe reads; --set then overrides its settings",
    )
    flags.add_argument("--out", type=place, required=True, help="folder for tables/ and rows/")
    flags.add_argument(
        "--overwrite", action="store_true", help="replace what another config wrote there"
    )
    flags.add_argument("--tables-only", action="store_true", help="write no content rows")
    rows = getattr(recipe_settings(peek(argv, "--recipe")), "rows", RowsConfig())
    add_task_memory(flags)
    add_overrides(flags, IngestConfig(source=shown_source(argv), rows=rows))
    return flags


def add_source(flags: argparse.ArgumentParser) -> None:
    """Add --source and --path."""
    flags.add_argument(
        "--source",
        choices=["synthetic", *_WITH_PATH],
        default="synthetic",
        help="where the data comes from; synthetic needs no data (default)",
    )
    flags.add_argument("--path", type=place, help="folder of the data; synthetic takes none")


def source_of(source: str, path: str | None) -> AnySource:
    """The source of the command line; raises ConfigError when a path is missing or not wanted."""
    if (path is None) != (source == "synthetic"):
        need = "takes no" if source == "synthetic" else "needs a"
        raise ConfigError(f"--source {source} {need} --path")
    if source == "movielens":
        return MovieLensSource(path=path or "")
    if source == "exercises":
        return ExercisesSource(path=path or "")
    if source == "folder":
        return FolderSource(path=path or "")
    return SyntheticSource()


def shown_source(argv: Sequence[str] | None) -> AnySource:
    """The source whose settings --help lists; the choice itself is checked by the parser."""
    kind = peek(argv, "--source")
    return source_of(kind, "PATH") if kind in _WITH_PATH else SyntheticSource()


def rows_of(recipe: str) -> RowsConfig:
    """The rows' settings of the recipe at `module:function`; raises ConfigError without any."""
    rows = getattr(load_recipe(recipe), "rows", None)
    if not isinstance(rows, RowsConfig):
        raise ConfigError(f"--recipe {recipe}: it has no settings of content rows")
    return rows


def run(config: IngestConfig, out: str, *, overwrite: bool = False) -> tuple[Tables, Manifest]:
    """Write `out`/tables and `out`/rows on the Ray that is running, else on one of this process."""
    tables = run_tables(config, out, overwrite=overwrite)
    return tables, run_rows(config, out, overwrite=overwrite)


def _start() -> float:
    start_ray()
    # one bar of our own a phase says more than one a Ray operator
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return time.perf_counter()


def run_tables(config: IngestConfig, out: str, *, overwrite: bool = False) -> Tables:
    """Write `out`/tables alone."""
    started = _start()
    with _Bar("tables") as bar:
        tables = write_tables(
            config.source,
            join(out, "tables"),
            media=config.media,
            overwrite=overwrite,
            progress=bar.update,
        )
    _tell_tables(tables, out, time.perf_counter() - started)
    return tables


def run_rows(
    config: IngestConfig, out: str, *, overwrite: bool = False, tables: str | None = None
) -> Manifest:
    """Write `out`/rows of the tables at `tables`, else of `out`/tables, which are there."""
    started = _start()
    print("rows: fitting the split, the tokenizer, key terms and labels", flush=True)
    with _Bar("rows") as bar:
        manifest = build_rows(
            tables or join(out, "tables"),
            join(out, "rows"),
            config.rows,
            overwrite=overwrite,
            progress=bar.update,
        )
    _tell_rows(manifest, out, time.perf_counter() - started)
    return manifest


class _Bar:
    """A progress bar over shards that appears with the first of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm | None = None

    def __enter__(self) -> _Bar:
        return self

    def update(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, desc=self.name, unit="shard")
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _tell_tables(tables: Tables, out: str, seconds: float) -> None:
    print(f"tables: {join(out, 'tables')}, version {tables.version}, {seconds:.1f} s")
    for name, size in tables.tables.items():
        print(f"  {name:<14}{size.num_rows:>14,} rows{size.num_bytes / 2**20:>12,.1f} MiB")
    if tables.num_alike:
        print(
            f"  frames of videos left out because another one looks the same: {tables.num_alike:,}"
        )
    if tables.num_problems:
        print(f"  left out: {tables.num_problems:,}, all listed in tables/problems; the first:")
        for problem in tables.problems[:5]:
            print(f"    {problem}")


def _tell_rows(manifest: Manifest, out: str, seconds: float) -> None:
    rows = join(out, "rows")
    metrics = manifest.metrics
    count = metrics["train"]["rows"] + metrics["heldout"]["rows"]
    print(
        f"rows: {rows}, version {manifest.version}, {seconds:.1f} s, "
        f"{count / max(seconds, 1e-9):,.0f} rows/s with start-up; "
        f"cut-off {metrics['cutoff'] or 'none, by hash'}; {metrics['num_labels']:,} labels"
    )
    for side in ("train", "heldout"):
        held = ", ".join(f"{number:,} {name}" for name, number in metrics[side].items())
        print(f"  {side:<8} {held}")
    if not metrics["heldout"]["rows"]:
        print(
            "  no item is held out: training cannot validate, and jobs.evaluate will refuse these "
            "rows: give an earlier rows.cutoff, or none and a rows.heldout_fraction"
        )
    ledger = Ledger.from_json(read_bytes(join(rows, manifest.root, "ledger.json")).decode())
    print("\n".join(f"  {line}" for line in ledger.table().splitlines()), flush=True)


@tell_errors("ingest", *ERRORS)
def main(argv: list[str] | None = None) -> int:
    given = arguments(argv).parse_args(argv)
    config = IngestConfig(
        source=source_of(given.source, given.path),
        rows=rows_of(given.recipe) if given.recipe else RowsConfig(),
    ).override(given.set)
    start_ray(given)
    with alone_in(given.out):
        work = run_tables if given.tables_only else run
        work(config, given.out, overwrite=given.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
