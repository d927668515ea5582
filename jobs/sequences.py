"""Turn behaviour into rows for models of users: train, validation and test, with their items.

    python -m jobs.sequences --behaviour runs/site/behaviour --out runs/site/sequences \\
        --cutoff 2026-01-01 --test-cutoff 2026-01-08 --items logs/items
    python -m jobs.sequences --behaviour runs/ml-1m/behaviour --out runs/ml-1m/sequences \\
        --leave-one-out

By time: training ends at CUTOFF, validation at TEST_CUTOFF, and the test where the behaviour ends,
so run jobs.behaviour with a later cut-off than TEST_CUTOFF. A held-out row has what its user did
before as history and all that follows in that stretch of time as targets; users and items that
are new there stay in. Where users come once and for a short time, `--set target_share=.2` makes
targets of the last fifth of what follows, and history of the rest. Leave one out, for published
figures: each user's last event is test, the one before it validation; who has fewer than three is
trained on alone. Behaviour of logs without times has no other split.

ITEMS is read as jobs.behaviour reads logs: item_id, tags, categories, uploader_id, published_at,
each but the first optional; tables/items of jobs.ingest is one. Its items stay in even if nobody
chose them, as do those of the embedding table CONTENT, which may know nothing from after CUTOFF.
What is dropped is counted by reason; a run that was killed goes on where it was. Places may be
local or s3://.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from jobs.cli import (
    add_overrides,
    add_task_memory,
    alone_in,
    moment,
    parser,
    phase_bars,
    place,
    start_ray,
    tell_errors,
)
from rec.artifacts import ArtifactError, Manifest
from rec.config import ConfigError
from rec.data.budget import BudgetError
from rec.data.ledger import LedgerError
from rec.data.logs import LogError, LogFiles
from rec.data.sequence_rows import (
    SequenceRowsConfig,
    SequenceRowsError,
    build_sequence_rows,
    read_ledger,
)
from rec.data.sequence_split import SIDES
from rec.data.shuffle import ShuffleError
from rec.data.tasks import ShardError

ERRORS = (
    ArtifactError,
    BudgetError,
    ConfigError,
    LedgerError,
    LogError,
    SequenceRowsError,
    ShardError,
    ShuffleError,
)


def arguments() -> argparse.ArgumentParser:
    flags = parser("jobs.sequences", __doc__)
    flags.add_argument("--behaviour", type=place, required=True, help="of jobs.behaviour")
    split = flags.add_mutually_exclusive_group(required=True)
    split.add_argument(
        "--cutoff",
        type=moment,
        help="training ends here, as 2026-01-08 or 2026-01-08T12:00+01:00; UTC without a zone",
    )
    split.add_argument("--leave-one-out", action="store_true", help="instead of a split by time")
    flags.add_argument("--test-cutoff", type=moment, help="validation ends here; with --cutoff")
    flags.add_argument("--items", type=place, help="folder or file that tells of items")
    flags.add_argument("--content", type=place, help="an embedding table, a vector an item")
    flags.add_argument("--out", type=place, required=True, help="folder of the artifact")
    flags.add_argument(
        "--overwrite", action="store_true", help="replace rows made of something else"
    )
    add_task_memory(flags)
    add_overrides(flags, SequenceRowsConfig(items=LogFiles()))
    return flags


def config_of(given: argparse.Namespace) -> SequenceRowsConfig:
    """The settings of a command line; raises ConfigError."""
    found: dict[str, Any] = {"cutoff": given.cutoff, "test_cutoff": given.test_cutoff}
    if given.items is not None:
        found["items"] = LogFiles(path=given.items)
    return SequenceRowsConfig.model_validate(found).override(given.set)


def run(
    behaviour: str,
    config: SequenceRowsConfig,
    out: str,
    *,
    content: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write the artifact `out` on the Ray that is running, else on one of this process."""
    start_ray(tables_only=True)
    started = time.perf_counter()
    with phase_bars() as progress:
        manifest = build_sequence_rows(
            behaviour, out, config, content_uri=content, overwrite=overwrite, progress=progress
        )
    seconds = time.perf_counter() - started
    _tell(manifest, out, seconds)
    return manifest


def _tell(manifest: Manifest, out: str, seconds: float) -> None:
    metrics = manifest.metrics
    print(f"sequences: {out}, version {manifest.version}, {seconds:.1f} s with start-up")
    print(
        f"  {metrics['num_items']:,} items, {metrics['num_trained_items']:,} of them trained on; "
        f"{metrics['num_tags']:,} tags, {metrics['num_categories']:,} categories, "
        f"{metrics['num_uploaders']:,} uploaders, content vectors of {metrics['content_dim']}"
    )
    if metrics["content_dim"] and metrics["content_cutoff"] is None:
        print("  the content vectors do not tell up to when they know anything: not checked")
    if number := metrics["events_cut_before"]:
        print(
            f"  {number:,} events were cut before in favour of later ones, also of held-out ones; "
            "to keep them, run jobs.behaviour with a larger sequences.max_length"
        )
    for side in SIDES:
        counts = (f"{number:,} {name.replace('_', ' ')}" for name, number in metrics[side].items())
        print(f"  {side:<8} {', '.join(counts)}")
    print("\n".join(f"  {line}" for line in read_ledger(out).table().splitlines()), flush=True)


@tell_errors("sequences", *ERRORS)
def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    config = config_of(given)
    start_ray(given, tables_only=True)
    with alone_in(given.out):
        run(
            given.behaviour,
            config,
            given.out,
            content=given.content,
            overwrite=given.overwrite,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
