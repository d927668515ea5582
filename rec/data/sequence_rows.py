"""Behaviour to sequence rows: what models of users train on and are judged by.

    <out>/manifest.json
    <out>/<root>/train/shard-*.parquet, heldout/..., test/...    SEQUENCE_ROWS
    <out>/<root>/items.parquet          SEQUENCE_ITEMS, in order of item_index
    <out>/<root>/tags.parquet, categories.parquet, uploaders.parquet    index, name, num_items
    <out>/<root>/content.safetensors    vectors (N, D), mask (N,); where there are content vectors
    <out>/<root>/problems/              rows of the items table that could not be read
    <out>/<root>/ledger.json            what became of every event, user and item

Every phase is a Ray task a shard, as in `rec.data.behaviour`: events are counted by item, items are
numbered, then every shard of sequences becomes a shard of each side. All that is fitted (which
items and labels there are, and their numbers) is fitted on the training side. A user has at most as
many events as behaviour keeps (its `sequences.max_length`); models cut further when they read.
What behaviour cut for later events is missing on the training side, which therefore knows something
of the future; the manifest says how many events that were (`events_cut_before`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import Field

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
from rec.config import Config
from rec.data import behaviour
from rec.data.behaviour_config import State
from rec.data.ledger import Ledger
from rec.data.log_rows import LogTask, micros
from rec.data.logs import TASK_BYTES, LogFiles, check_names, list_days, pack
from rec.data.sequence_phases import Plan, Result, run_phases
from rec.data.sequence_split import Cutoffs
from rec.data.tables import changes
from rec.data.tasks import hash_files, num_cpus, tidy

KIND = "sequence-rows"
CONTENT = "embedding-table"
_ALL_TIME = int(np.iinfo(np.int64).max)


class SequenceRowsError(ValueError):
    """Rows cannot be made of this behaviour, or not be written there. Says why and what to do."""


class SequenceRowsConfig(Config):
    """How sequence rows are made of behaviour."""

    # training ends here and validation begins; None leaves one out: each user's last event is
    # test, the one before it validation. UTC where no zone is given, as all times
    cutoff: datetime | None = None
    test_cutoff: datetime | None = None  # validation ends here and test begins; with cutoff alone
    domain: str | None = None  # whose sequences; None where all are of one
    min_item_events: int = Field(default=1, ge=1)  # on the training side, else not trained on
    min_user_events: int = Field(default=1, ge=1)  # on the training side, else no training row
    min_label_items: int = Field(default=2, ge=1)  # trained on, with a tag, category or uploader
    # of a user's events in validation, and in the test, the last so many are targets and those
    # before are history: with 1, a user without an event before has no history
    target_share: float = Field(default=1.0, gt=0, le=1)
    items: LogFiles | None = None  # what is told of items, as a log of the table items


def build_sequence_rows(
    behaviour_uri: str,
    out_uri: str,
    config: SequenceRowsConfig,
    *,
    content_uri: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Publish the rows of the behaviour at `behaviour_uri`.

    Rows that were published from the same behaviour, items, vectors and config stay as they are;
    a run that was killed goes on where it was.

    Args:
        behaviour_uri: a "behaviour" artifact. For a split by time its own cut-off is the end of
            the test.
        out_uri: the artifact's folder, local (shared by all nodes) or s3://.
        config: split, filters, items table.
        content_uri: an "embedding-table" artifact with one vector an item.
        overwrite: replace rows of something else instead of refusing.
        progress: called with the phase's name, and its finished and all tasks.

    Raises:
        SequenceRowsError: the cut-offs do not fit the behaviour, the vectors know of later times
            than training may, there are several domains, nothing to train on, or other rows
            stand at `out_uri`.
        ArtifactError, LogError, ShardError: behaviour, vectors or items cannot be read.
    """
    source = read_manifest(behaviour_uri, behaviour.KIND)
    state = behaviour.read_state(source)
    cutoffs = _cutoffs(config, state, behaviour_uri)
    lineage = {"behaviour": source.version}
    content_cutoff: datetime | None = None
    if content_uri is not None:
        content = read_manifest(content_uri, CONTENT)
        content_cutoff = _content_cutoff(content, cutoffs, state, content_uri)
        lineage[CONTENT] = content.version
    tasks: list[LogTask] = []
    if config.items is not None:
        check_names(config.items, "items")
        days = list_days(config.items)
        pieces = [piece for day in days.values() for piece in day.pieces]
        tasks = [
            LogTask("items", config.items, tuple(task))
            for task in pack(config.items, pieces, TASK_BYTES, num_cpus())
        ]
        prints = [day.fingerprint for day in days.values()]
        lineage["items"] = hashlib.sha256(json.dumps(prints).encode()).hexdigest()[:16]
    about = config.model_dump(mode="json")
    if old := _published(out_uri, about, lineage, overwrite=overwrite):
        tidy(out_uri, keep={old.root})  # of a run killed before it did
        return old
    pieces = [task.pieces for task in tasks]  # a cluster of another size may cut them otherwise
    contents = json.dumps([about, lineage, pieces], default=str)
    digest = hashlib.sha256(contents.encode()).hexdigest()[:12]
    plan = Plan(
        source=join(behaviour_uri, source.root),
        num_buckets=state.num_buckets,
        cutoffs=cutoffs,
        domain=config.domain,
        minima=(config.min_item_events, config.min_user_events, config.min_label_items),
        target_share=config.target_share,
        tasks=tuple(tasks),
        end=micros(state.cutoff) if state.timed else _ALL_TIME,
        content=content_uri,
        place=join(out_uri, f"v-{digest}"),
        work=join(out_uri, f"work-{digest}"),
    )
    result = run_phases(plan, progress)
    _check_result(result, config, behaviour_uri)
    write_atomic(join(plan.place, "ledger.json"), result.ledger.to_json().encode())
    metrics: dict[str, Any] = {
        **result.sizes,
        "split": "leave-one-out" if cutoffs is None else "time",
        "cutoff": _iso(config.cutoff),
        "test_cutoff": _iso(config.test_cutoff),
        "timed": state.timed,
        "events_cut_before": behaviour.num_cut(behaviour_uri),
        "domain": next(iter(result.domains), "") if config.domain is None else config.domain,
        "content_cutoff": _iso(content_cutoff),
        **result.counts,
    }
    manifest = seal(
        out_uri,
        f"v-{digest}",
        KIND,
        lineage=lineage,
        config=about,
        metrics=metrics,
        hashed=hash_files(plan.place),
    )
    tidy(out_uri, keep={manifest.root})  # also of runs that failed or were replaced
    return manifest


def read_ledger(out_uri: str) -> Ledger:
    """The ledger of the rows that are published at `out_uri`."""
    manifest = read_manifest(out_uri, KIND)
    return Ledger.from_json(read_bytes(join(out_uri, manifest.root, "ledger.json")).decode())


def _cutoffs(config: SequenceRowsConfig, state: State, place: str) -> Cutoffs | None:
    """The cut-offs in order, None where one is left out; raises SequenceRowsError."""
    if config.cutoff is None and config.test_cutoff is None:
        return None
    if config.cutoff is None or config.test_cutoff is None:
        raise SequenceRowsError(
            "a split by time needs both cutoff (training ends) and test_cutoff (validation ends); "
            "give both, or none to leave one out"
        )
    if not state.timed:
        raise SequenceRowsError(
            f"{place}: its log tells the order of events and no times, so there is nothing to cut "
            "off by; leave one out"
        )
    cutoffs = Cutoffs(micros(config.cutoff), micros(config.test_cutoff))
    if not cutoffs.train < cutoffs.heldout < micros(state.cutoff):
        raise SequenceRowsError(
            f"cutoff {config.cutoff.isoformat()}, test_cutoff {config.test_cutoff.isoformat()} and "
            f"the behaviour's own cut-off {state.cutoff.isoformat()}, at which the test ends, "
            "should each be later than the one before"
        )
    return cutoffs


def _content_cutoff(
    content: Manifest, cutoffs: Cutoffs | None, state: State, place: str
) -> datetime | None:
    """Up to when the vectors know anything, None where they do not tell.

    Raises:
        SequenceRowsError: that is later than training may know, or, where one is left out, than
            the behaviour.
    """
    told = content.metrics.get("cutoff")
    if told is None:
        return None
    cutoff = datetime.fromisoformat(told)
    limit = cutoffs.train if cutoffs else micros(state.cutoff) if state.timed else _ALL_TIME
    if micros(cutoff) > limit:
        ends = datetime.fromtimestamp(limit / 1e6, UTC).isoformat()
        raise SequenceRowsError(
            f"{place}: its vectors know of what happened up to {told}, but training ends {ends}; "
            "train their encoder on rows with that cut-off, or move cutoff"
        )
    return cutoff


def _published(
    out_uri: str, about: dict[str, Any], lineage: dict[str, str], *, overwrite: bool
) -> Manifest | None:
    """What is published of the very same; raises SequenceRowsError where it is of another."""
    if not exists(join(out_uri, MANIFEST)):
        return None
    old = read_manifest(out_uri, KIND)
    if old.config == about and old.lineage == lineage:
        return old
    if overwrite:
        return None
    differ = changes({**old.config, "from": old.lineage}, {**about, "from": lineage})
    raise SequenceRowsError(
        f"{out_uri} holds other rows ({differ}); choose another folder or pass --overwrite"
    )


def _check_result(result: Result, config: SequenceRowsConfig, place: str) -> None:
    events = ", ".join(f"{name!r} {number}" for name, number in sorted(result.domains.items()))
    if config.domain is None and len(result.domains) > 1:
        raise SequenceRowsError(
            f"{place}: has sequences of several domains (events: {events}), which are kept apart; "
            "set domain to one of them"
        )
    if not result.counts["train"]["rows"]:
        raise SequenceRowsError(
            f"{place}: no training rows (domains there are, with events: {events or 'none'}); the "
            f"ledger says why:\n{result.ledger.table()}"
        )


def _iso(time: datetime | None) -> str | None:
    if time is None:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()
