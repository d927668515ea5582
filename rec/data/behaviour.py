"""Raw logs to behaviour: per-user sequences and, where asked for, edges and graphs.

    <out>/manifest.json
    <out>/<root>/sequences/shard-*.parquet    SEQUENCES, a file for each bucket of users
    <out>/<root>/edges/shard-*.parquet        EDGES, a file for each bucket of sources
    <out>/<root>/nodes/shard-*.parquet        types and ids; graph.json numbers them
    <out>/<root>/graph/<edge>/shard-*.safetensors    rec.graphs.csr
    <out>/<root>/counts/shard-*.parquet       all edges uncut, for the days to come
    <out>/<root>/problems/shard-*.parquet     the bad rows of all days so far: file, row, reason
    <out>/<root>/item-problems/shard-*.parquet    those of the items as they are now
    <out>/<root>/ledger.json                  rows in, out and dropped, of all days so far

Log files are read by tasks, which hash rows to buckets; then every bucket is a task
(`rec.data.behaviour_phases`). Days that are published already are not read again: their sequences
and counts are extended. Every day's rows are decided on by themselves (bots, duplicates,
sessions), so days one by one give, row for row, what all days at once give.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

from rec.artifacts import (
    MANIFEST,
    Manifest,
    exists,
    join,
    read_bytes,
    read_manifest,
    seal,
    write_atomic,
)
from rec.data.behaviour_config import MAX_BUCKETS, BehaviourConfig, State
from rec.data.behaviour_phases import Plan, run_phases
from rec.data.ledger import Ledger, StageCounts
from rec.data.log_rows import LATE, LogTask, day_start, micros
from rec.data.logs import (
    ALL_DAYS,
    TASK_BYTES,
    Day,
    LogFiles,
    changed,
    check_names,
    is_timed,
    list_days,
    pack,
)
from rec.data.sequences import CUT
from rec.data.tables import changes
from rec.data.tasks import hash_files, num_cpus, tidy

KIND = "behaviour"
# of log files for each bucket: their rows unpacked are several times that, their edges many times
_BUCKET_BYTES, _BUCKET_BYTES_EDGES = 32 << 20, 8 << 20
# these stages are of everything so far in every run; the others are of the days that it adds
_WHOLE = ("read items", "items", "item tags", "count edges", "edges")


class BehaviourError(ValueError):
    """Behaviour cannot be written to a folder, or not be extended. Says why and what to do."""


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
        cutoff: training ends here: later rows are dropped and counted. UTC without a zone. A day
            that begins here or later is not read, so a cut-off at midnight can go on by the day.
        overwrite: begin anew instead of refusing where what is there cannot be extended.
        progress: called with the phase's name, and its finished and all tasks.

    Raises:
        BehaviourError: what is published cannot be extended to this, no day of interactions
            begins before the cut-off, or those that do have no row.
        LogError: a log has no files, or names of its files or columns do not fit.
        ShardError: a file cannot be read, or a column is absent; its own message.
    """
    for table, log in config.logs().items():
        check_names(log, table)
    found = {table: list_days(log) for table, log in config.logs().items()}
    old: Manifest | None = None
    if exists(join(out_uri, MANIFEST)):
        old = read_manifest(out_uri, KIND)
        if reason := _refused(old, config, cutoff, found, out_uri):
            if not overwrite:
                raise BehaviourError(f"{out_uri}: {reason}; pass --overwrite to begin anew")
            old = None
    plan = _plan(out_uri, config, cutoff, found, old)
    done = old is not None and plan.state.days == read_state(old).days
    if old is not None and done and not _late_items(old, cutoff, out_uri):
        tidy(out_uri, keep={old.root, old.metrics["extends"]})  # of a run killed before it did
        return _moved_on(old, cutoff, out_uri)
    ledger = _run(plan, progress)
    if not ledger.stages.get("read interactions", StageCounts()).rows_in:
        raise BehaviourError(
            f"{config.interactions.path}: no rows in its files so far, so nothing to publish; a "
            "header alone is none"
        )
    write_atomic(join(plan.place, "ledger.json"), ledger.to_json().encode())
    manifest = seal(
        out_uri,
        plan.place.rsplit("/", 1)[-1],
        KIND,
        lineage=_lineage(plan.state, old),
        config=_about(config),
        hashed=hash_files(plan.place),
        metrics={
            "state": plan.state.model_dump(mode="json"),
            "extends": old.root if old else None,
        },
    )
    tidy(out_uri, keep={manifest.root, manifest.metrics["extends"]})
    return manifest


def read_ledger(out_uri: str) -> Ledger:
    """The ledger of all days that are published at `out_uri`."""
    manifest = read_manifest(out_uri, KIND)
    return Ledger.from_json(read_bytes(join(out_uri, manifest.root, "ledger.json")).decode())


def num_cut(out_uri: str) -> int:
    """How many events the users' later ones have pushed out of the sequences at `out_uri`."""
    return read_ledger(out_uri).stages.get("sequences", StageCounts()).dropped.get(CUT, 0)


def read_state(manifest: Manifest) -> State:
    """What a published version is made of."""
    return State.model_validate(manifest.metrics["state"])


def _lineage(state: State, old: Manifest | None) -> dict[str, str]:
    """Of each log a digest of its files by day, all so far, and the version that was extended."""
    digests = {
        table: hashlib.sha256(json.dumps(days, sort_keys=True).encode()).hexdigest()[:16]
        for table, days in state.days.items()
    }
    return digests | ({"previous": old.version} if old else {})


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
    state = read_state(old)
    if micros(cutoff) != micros(state.cutoff):
        if micros(cutoff) < micros(state.cutoff):
            return f"published up to {state.cutoff.isoformat()}, later than the cut-off asked for"
        stages = read_ledger(out_uri).stages.items()
        of_days = [stage for name, stage in stages if name not in _WHOLE]
        if cut := sum(stage.dropped.get(LATE, 0) for stage in of_days):
            return (
                f"published up to {state.cutoff.isoformat()}, when {cut} rows of days that were "
                "read were later; a later cut-off needs them"
            )
    for table, days in state.days.items():
        if table == "items":
            continue
        last = max(days, default="")  # none where all began after the cut-off
        for day, files in found[table].items():
            if day in days and (reason := changed(days[day], files.fingerprint)):
                return f"the {table} log of {day} {reason}"
            if day not in days and day < last:
                return f"the {table} log has a new day {day}, earlier than {last}, which was read"
    return None


def _late_items(old: Manifest, cutoff: datetime, out_uri: str) -> bool:
    """Whether items were left out that a later cut-off may let in."""
    items = read_ledger(out_uri).stages.get("read items", StageCounts())
    return micros(cutoff) > micros(read_state(old).cutoff) and LATE in items.dropped


def _moved_on(old: Manifest, cutoff: datetime, out_uri: str) -> Manifest:
    """What is published, up to a cut-off that adds nothing to it; its readers ask for that."""
    state = read_state(old)
    if micros(cutoff) == micros(state.cutoff):
        return old
    state = state.model_copy(update={"cutoff": cutoff}).model_dump(mode="json")
    manifest = old.model_copy(update={"metrics": {**old.metrics, "state": state}})
    write_atomic(join(out_uri, MANIFEST), manifest.to_json().encode())
    return manifest


def _plan(
    out_uri: str,
    config: BehaviourConfig,
    cutoff: datetime,
    found: dict[str, dict[str, Day]],
    old: Manifest | None,
) -> Plan:
    state = read_state(old) if old else None
    done = state.days if state else {}
    tasks: list[LogTask] = []
    days: dict[str, dict[str, str]] = {}
    for table, log in config.logs().items():
        before = {} if table == "items" else done.get(table, {})
        new = {
            day: files
            for day, files in found[table].items()
            if day not in before and not _begins_late(day, log, cutoff)
        }
        pieces = [piece for files in new.values() for piece in files.pieces]
        tasks += [
            LogTask(table, log, tuple(task)) for task in pack(log, pieces, TASK_BYTES, num_cpus())
        ]
        days[table] = {**before, **{day: files.fingerprint for day, files in new.items()}}
    if not days["interactions"]:
        raise BehaviourError(f"no day of interactions begins before {cutoff.isoformat()}")
    of_users, of_items = (
        sum(p.num_bytes for t in tasks for p in t.pieces if (t.table == "items") == items)
        for items in (False, True)
    )
    num_bytes = of_users + (state.num_bytes if state else 0)
    num_buckets = _num_buckets(config, num_bytes + of_items, state)
    new_state = State(
        num_buckets=num_buckets,
        num_bytes=num_bytes,
        cutoff=cutoff,
        timed=is_timed(found["interactions"]),
        days=days,
    )
    contents = json.dumps(
        [
            _about(config),
            new_state.model_dump(mode="json"),
            old.version if old else None,
            [task.pieces for task in tasks],  # a cluster of another size may cut them otherwise
        ],
        default=str,
    )
    digest = hashlib.sha256(contents.encode()).hexdigest()[:12]
    return Plan(
        config,
        new_state,
        tuple(tasks),
        join(out_uri, old.root) if old else None,
        state.num_buckets if state else num_buckets,
        join(out_uri, f"v-{digest}"),
        join(out_uri, f"work-{digest}"),
    )


def _begins_late(day: str, log: LogFiles, cutoff: datetime) -> bool:
    """Whether a day is left to the runs with a later cut-off."""
    if day == ALL_DAYS:
        return False
    return day_start(date.fromisoformat(day), log) >= micros(cutoff)


def _num_buckets(config: BehaviourConfig, num_bytes: int, state: State | None) -> int:
    """As many as the logs need, or those of the published version times a power of two.

    A bucket is a range of hashes, so twice as many split each in two, and what is published can
    be read on: bucket b of twice as many is part of bucket b // 2.
    """
    if config.num_buckets is not None:
        return config.num_buckets
    each = _BUCKET_BYTES if config.edges is None else _BUCKET_BYTES_EDGES
    needed = min(MAX_BUCKETS, max(1, -(-num_bytes // each)))
    num = state.num_buckets if state else needed
    while num < needed and 2 * num <= MAX_BUCKETS:
        num *= 2
    return num


def _run(plan: Plan, progress: Callable[[str, int, int], None] | None) -> Ledger:
    """All phases; the ledger of all days so far."""
    before = Ledger()
    if plan.old is not None:
        before = Ledger.from_json(read_bytes(join(plan.old, "ledger.json")).decode())
        kept = {name: counts for name, counts in before.stages.items() if name not in _WHOLE}
        before = Ledger(stages=kept)
    return before.merge(run_phases(plan, progress))
