"""Turn raw logs of what users did into per-user sequences, edges and graphs for training.

    python -m jobs.behaviour --logs logs --cutoff 2026-01-08 --out runs/site/behaviour \\
        --set 'interactions.day=day=([0-9-]+)' 'interactions.columns={"item_id": "video"}'
    python -m jobs.behaviour --logs runs/demo/tables --cutoff 2026-01-08 --out runs/demo/behaviour
    python -m jobs.behaviour --logs toy/toy.inter --cutoff 2026-01-08 --out runs/toy/behaviour \\
        --set interactions.time_unit=s 'interactions.constants={"event": "rating"}' \\
        'interactions.columns={"event_time": "timestamp", "value": "rating"}'
    python -m jobs.behaviour --logs ml-1m/sequences.txt --cutoff 2000-01-01 \\
        --out runs/ml-1m/behaviour --set sequences.max_length=4000

LOGS holds a folder a table: interactions, and where there are any searches, comments and items
(for their tags); the tables that jobs.ingest writes are such folders too. Or it is one file of
interactions. Files are Parquet, JSON lines, CSV, RecBole's .inter, or .txt with a user and their
items a line, which tells their order and no times (rec/data/logs.py). Rows after the cut-off are
left out, so that nothing made here knows of them. Given again with more days in the logs and a
later cut-off, the command adds the new days to what it has published; a run that was killed goes
on where it was. Places may be local or s3://.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime

from pyarrow import fs as pafs

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
from rec.artifacts import ArtifactError, Manifest, exists, filesystem, join
from rec.config import ConfigError
from rec.data.behaviour import BehaviourError, build_behaviour, read_ledger
from rec.data.behaviour_config import BehaviourConfig
from rec.data.budget import BudgetError
from rec.data.ledger import LedgerError
from rec.data.logs import LogError, LogFiles
from rec.data.shuffle import ShuffleError
from rec.data.tasks import ShardError

ERRORS = (
    ArtifactError,
    BehaviourError,
    BudgetError,
    ConfigError,
    LedgerError,
    LogError,
    ShardError,
    ShuffleError,
)


def arguments() -> argparse.ArgumentParser:
    flags = parser("jobs.behaviour", __doc__)
    flags.add_argument(
        "--logs", type=place, required=True, help="folder with a folder a table, or a file"
    )
    flags.add_argument(
        "--cutoff",
        type=moment,
        required=True,
        help="training ends here, as 2026-01-08 or 2026-01-08T12:00+01:00; UTC without a zone",
    )
    flags.add_argument("--out", type=place, required=True, help="folder of the artifact")
    flags.add_argument(
        "--overwrite", action="store_true", help="begin anew where days cannot be added"
    )
    add_task_memory(flags)
    add_overrides(flags, BehaviourConfig())
    return flags


def config_of(logs: str, overrides: list[str]) -> BehaviourConfig:
    """The settings with the path of every log that has a folder in `logs`, or of the one file.

    Raises:
        ConfigError: an override is wrong, or there is no log of interactions.
    """
    files, path = filesystem(logs)
    if files.get_file_info(path).type == pafs.FileType.File:
        return BehaviourConfig(interactions=LogFiles(path=logs)).override(overrides)
    found = {
        name: LogFiles(path=join(logs, name))
        for name in ("interactions", "searches", "comments", "items")
        if exists(join(logs, name))
    }
    if "interactions" not in found:
        raise ConfigError(
            f"{join(logs, 'interactions')}: not found; expected a folder of log files"
        )
    return BehaviourConfig.model_validate(found).override(overrides)


def run(
    config: BehaviourConfig, out: str, cutoff: datetime, *, overwrite: bool = False
) -> Manifest:
    """Write the artifact `out` on the Ray that is running, else on one of this process."""
    start_ray(tables_only=True)
    started = time.perf_counter()
    with phase_bars() as progress:
        manifest = build_behaviour(out, config, cutoff, overwrite=overwrite, progress=progress)
    seconds = time.perf_counter() - started
    print(f"behaviour: {out}, version {manifest.version}, {seconds:.1f} s with start-up")
    print("\n".join(f"  {line}" for line in read_ledger(out).table().splitlines()), flush=True)
    return manifest


@tell_errors("behaviour", *ERRORS)
def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    config = config_of(given.logs, given.set)
    start_ray(given, tables_only=True)
    with alone_in(given.out):
        run(config, given.out, given.cutoff, overwrite=given.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
