"""Raw logs to behaviour: per-user sequences and, where asked for, edges and graphs.

    <out>/manifest.json
    <out>/<root>/sequences/shard-*.parquet    SEQUENCES, a file for each bucket of users
    <out>/<root>/counts/, edges/, nodes/, graph/    see rec.data.edges and rec.data.graphs
    <out>/<root>/problems/*.parquet           the bad rows of these days: file, row, reason
    <out>/<root>/ledger.json                  rows in, out and dropped, of all days so far

Log files are read by one task each (several, where they are small or large), which hashes rows to
buckets; then every bucket is a task. Days that are published already are not read again: their
sequences and counts are extended. Every day's rows are decided on by themselves (bots,
duplicates, sessions), so days one by one give, row for row, what all days at once give.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from pyarrow import fs as pafs
from pydantic import Field

from rec.artifacts import (
    MANIFEST,
    Manifest,
    exists,
    filesystem,
    join,
    read_bytes,
    read_manifest,
    seal,
    write_atomic,
)
from rec.config import Config
from rec.data.ingest import changes, shard_file
from rec.data.ledger import Ledger
from rec.data.log_rows import USER_ROWS, Filters, LogTask, micros, scatter
from rec.data.logs import TASK_BYTES, Day, LogFiles, list_days, pack
from rec.data.parquet import ParquetFile, read_or_empty
from rec.data.sequences import SequenceConfig, extend_sequences
from rec.data.shuffle import read_bucket
from rec.data.tasks import Summary, with_markers
from rec.data.user_rows import filter_rows, sort_rows
from rec.schema import SEQUENCES

KIND = "behaviour"
_BUCKET_BYTES = 24 << 20  # of log files for each bucket; their rows unpacked are several times that
_MAX_BUCKETS = 4096


class BehaviourError(ValueError):
    """Behaviour cannot be written to a folder, or not be extended. Says why and what to do."""


class BehaviourConfig(Config):
    """Which logs there are and what is made of them."""

    interactions: LogFiles = LogFiles()
    filters: Filters = Filters()
    sequences: SequenceConfig = SequenceConfig()
    # of users; None: by the size of the logs of the first run. Fixed from then on
    num_buckets: int | None = Field(default=None, ge=1, le=_MAX_BUCKETS)

    def logs(self) -> dict[str, LogFiles]:
        """The logs that are shuffled by user, by table."""
        return {"interactions": self.interactions}


class State(Config):
    """What a published version is made of: all that a later day needs to know."""

    num_buckets: int
    cutoff: datetime
    days: dict[str, dict[str, str]]  # table -> day -> fingerprint of its files


class _Plan(NamedTuple):
    """One extension of what is published, or its beginning."""

    config: BehaviourConfig
    state: State  # when done
    tasks: tuple[LogTask, ...]
    old: str | None  # place of the version that is extended
    place: str  # of the new one
    work: str


def build_behaviour(
    out_uri: str,
    config: BehaviourConfig,
    cutoff: datetime,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Publish the behaviour that the logs show up to the cut-off, at `out_uri`.

    What is published there from the same config is extended by the days that have come since.

    Args:
        out_uri: the artifact's folder, local (shared by all nodes) or s3://.
        config: logs, filters and sizes.
        cutoff: training ends here: later rows are dropped and counted. UTC without a zone.
        overwrite: begin anew instead of refusing where what is there cannot be extended.
        progress: called with the phase's name, and its finished and all tasks.

    Raises:
        BehaviourError: what is published cannot be extended to this.
        LogError: a log has no files, or its files' names do not fit.
        ShardError: a file cannot be read, or a column is absent; its own message.
    """
    found = {table: list_days(log) for table, log in config.logs().items()}
    old: Manifest | None = None
    if exists(join(out_uri, MANIFEST)):
        old = read_manifest(out_uri, KIND)
        if reason := _refused(old, config, cutoff, found, out_uri):
            if not overwrite:
                raise BehaviourError(f"{out_uri}: {reason}; pass --overwrite to begin anew")
            old = None
    plan = _plan(out_uri, config, cutoff, found, old)
    if old is not None and not plan.tasks:
        return old
    ledger = _run(plan, old, progress)
    write_atomic(join(plan.place, "ledger.json"), ledger.to_json().encode())
    manifest = seal(
        out_uri,
        plan.place.rsplit("/", 1)[-1],
        KIND,
        lineage={"previous": old.version} if old else {},
        config=_about(config),
        metrics={"state": plan.state.model_dump(mode="json")},
    )
    _tidy(out_uri, keep={manifest.root, *([old.root] if old else [])})
    return manifest


def read_ledger(out_uri: str) -> Ledger:
    """The ledger of all days that are published at `out_uri`."""
    manifest = read_manifest(out_uri, KIND)
    return Ledger.from_json(read_bytes(join(out_uri, manifest.root, "ledger.json")).decode())


def _about(config: BehaviourConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _refused(
    old: Manifest,
    config: BehaviourConfig,
    cutoff: datetime,
    found: dict[str, dict[str, Day]],
    out_uri: str,
) -> str | None:
    """Why what is published cannot be extended, or None."""
    if old.config != _about(config):
        return f"published from another config ({changes(old.config, _about(config))})"
    state = State.model_validate(old.metrics["state"])
    if micros(cutoff) != micros(state.cutoff):
        if micros(cutoff) < micros(state.cutoff):
            return f"published up to {state.cutoff.isoformat()}, later than the cut-off asked for"
        stages = read_ledger(out_uri).stages.values()
        if cut := sum(stage.dropped.get("after the cut-off", 0) for stage in stages):
            return (
                f"published up to {state.cutoff.isoformat()}, when {cut} rows of days that were "
                "read were later; a later cut-off needs them"
            )
    for table, days in state.days.items():
        last = max(days)
        for day, files in found[table].items():
            if day in days and files.fingerprint != days[day]:
                return f"the {table} log of {day} has other files than when it was read"
            if day not in days and day < last:
                return f"the {table} log has a new day {day}, earlier than {last}, which was read"
    return None


def _plan(
    out_uri: str,
    config: BehaviourConfig,
    cutoff: datetime,
    found: dict[str, dict[str, Day]],
    old: Manifest | None,
) -> _Plan:
    state = State.model_validate(old.metrics["state"]) if old else None
    done = state.days if state else {}
    tasks: list[LogTask] = []
    days: dict[str, dict[str, str]] = {}
    for table, log in config.logs().items():
        before = done.get(table, {})
        new = {day: files for day, files in found[table].items() if day not in before}
        pieces = [piece for files in new.values() for piece in files.pieces]
        tasks += [LogTask(table, log, tuple(task)) for task in pack(log, pieces, TASK_BYTES)]
        days[table] = {**before, **{day: files.fingerprint for day, files in new.items()}}
    size = sum(piece.num_bytes for task in tasks for piece in task.pieces)
    num_buckets = config.num_buckets or min(_MAX_BUCKETS, max(1, size // _BUCKET_BYTES))
    new_state = State(
        num_buckets=state.num_buckets if state else num_buckets, cutoff=cutoff, days=days
    )
    contents = json.dumps(
        [_about(config), new_state.model_dump(mode="json"), old.version if old else None]
    )
    digest = hashlib.sha256(contents.encode()).hexdigest()[:12]
    return _Plan(
        config,
        new_state,
        tuple(tasks),
        join(out_uri, old.root) if old else None,
        join(out_uri, f"v-{digest}"),
        join(out_uri, f"work-{digest}"),
    )


def _run(
    plan: _Plan, old: Manifest | None, progress: Callable[[str, int, int], None] | None
) -> Ledger:
    """All phases, each resumed where it was; the ledger of all days so far."""
    ledger = Ledger()
    if plan.old is not None:
        ledger = Ledger.from_json(read_bytes(join(plan.old, "ledger.json")).decode())

    def read(index: int) -> Summary:
        task = plan.tasks[index]
        told = scatter(
            task,
            _rows_file(plan, index),
            shard_file(plan.place, "problems", index),
            plan.state.num_buckets,
            plan.config.filters,
            micros(plan.state.cutoff),
        )
        return {"index": index, "ledger": told.to_json()}

    def gather(index: int) -> Summary:
        return {"index": index, "ledger": _gather(plan, index).to_json()}

    phases = (("read", len(plan.tasks), read), ("sequences", plan.state.num_buckets, gather))
    for name, count, work in phases:
        told: dict[int, Ledger] = {}
        for summary in with_markers(work, join(plan.work, "done", name), range(count)):
            told[summary["index"]] = Ledger.from_json(summary["ledger"])
            if progress:
                progress(name, len(told), count)
        for index in sorted(told):
            ledger = ledger.merge(told[index])
    return ledger


def _rows_file(plan: _Plan, index: int) -> str:
    return join(plan.work, "rows", f"task-{index:05d}.arrow")


def _gather(plan: _Plan, bucket: int) -> Ledger:
    """Filter one bucket's rows and extend its users' sequences."""
    ledger = Ledger()
    num_buckets = plan.state.num_buckets
    for table, log in plan.config.logs().items():
        files = [_rows_file(plan, i) for i, task in enumerate(plan.tasks) if task.table == table]
        rows = sort_rows(read_bucket(files, bucket, num_buckets, USER_ROWS))
        kept, dropped = filter_rows(rows, plan.config.filters, log)
        ledger = ledger.record(f"filter {table}", len(rows), len(kept), dropped)
        if table == "interactions":
            old = SEQUENCES.empty_table()
            if plan.old is not None:
                old = read_or_empty(
                    shard_file(plan.old, "sequences", bucket), SEQUENCES, SEQUENCES.names
                )
            sequences, num_cut = extend_sequences(old, kept, plan.config.sequences)
            with ParquetFile(shard_file(plan.place, "sequences", bucket), SEQUENCES) as file:
                file.write(sequences)
            ledger = ledger.record(
                "sequences", len(kept), len(kept) - num_cut, {"beyond the latest": num_cut}
            )
    return ledger


def _tidy(out_uri: str, keep: set[str]) -> None:
    """Delete work folders and all versions but the new one and the one that it extends."""
    files, path = filesystem(out_uri)
    for info in files.get_file_info(pafs.FileSelector(path)):
        mine = info.base_name.startswith(("v-", "work-"))
        if info.type == pafs.FileType.Directory and mine and info.base_name not in keep:
            files.delete_dir(info.path)
