"""Turn raw logs of what users did into per-user sequences, edges and graphs for training.

    python -m jobs.behaviour --logs logs --cutoff 2026-01-08 --out runs/site/behaviour \\
        --set 'interactions.day=day=([0-9-]+)' 'interactions.columns={"item_id": "video"}'
    python -m jobs.behaviour --logs runs/demo/tables --cutoff 2026-01-08 --out runs/demo/behaviour

LOGS holds a folder a table: interactions, and where there are any searches, comments and items
(for their tags), of Parquet, JSON-lines or CSV files; the tables that jobs.ingest writes are such
folders too. Rows after the cut-off are left out, so that nothing made here knows of them. Given
again with more days in the logs and a later cut-off, the command adds the new days to what it has
published; a run that was killed goes on where it was. Places may be local or s3://.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from datetime import datetime

import ray.data
from tqdm import tqdm

from jobs.cli import add_overrides, parser, place, start_ray
from rec.artifacts import ArtifactError, Manifest, exists, join
from rec.config import ConfigError
from rec.data.behaviour import BehaviourError, build_behaviour, read_ledger
from rec.data.behaviour_config import BehaviourConfig
from rec.data.ledger import LedgerError
from rec.data.logs import LogError, LogFiles
from rec.data.shuffle import ShuffleError
from rec.data.tasks import ShardError

ERRORS = (
    ArtifactError,
    BehaviourError,
    ConfigError,
    LedgerError,
    LogError,
    ShardError,
    ShuffleError,
)


def arguments() -> argparse.ArgumentParser:
    flags = parser("jobs.behaviour", __doc__)
    flags.add_argument("--logs", type=place, required=True, help="folder with a folder a table")
    flags.add_argument(
        "--cutoff",
        type=datetime.fromisoformat,
        required=True,
        help="training ends here, as 2026-01-08 or 2026-01-08T12:00+01:00; UTC without a zone",
    )
    flags.add_argument("--out", type=place, required=True, help="folder of the artifact")
    flags.add_argument(
        "--overwrite", action="store_true", help="begin anew where days cannot be added"
    )
    add_overrides(flags, BehaviourConfig())
    return flags


def config_of(logs: str, overrides: list[str]) -> BehaviourConfig:
    """The settings with the path of every log that has a folder in `logs`.

    Raises:
        ConfigError: an override is wrong, or there is no log of interactions.
    """
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
    start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    started = time.perf_counter()
    bars: dict[str, tqdm] = {}

    def progress(phase: str, done: int, total: int) -> None:
        if phase not in bars:
            bars[phase] = tqdm(total=total, desc=phase, unit="task")
        bars[phase].update(done - bars[phase].n)

    try:
        manifest = build_behaviour(out, config, cutoff, overwrite=overwrite, progress=progress)
    finally:
        for bar in bars.values():
            bar.close()
    seconds = time.perf_counter() - started
    print(f"behaviour: {out}, version {manifest.version}, {seconds:.1f} s with start-up")
    print("\n".join(f"  {line}" for line in read_ledger(out).table().splitlines()), flush=True)
    return manifest


def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    try:
        config = config_of(given.logs, given.set)
        start_ray(given)
        run(config, given.out, given.cutoff, overwrite=given.overwrite)
    except ERRORS as error:
        print(f"behaviour: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
