"""The phases in which behaviour is made: each a task a log file or a bucket, resumed by itself.

    read        log files            -> rows by user; items by item; bad rows
    problems    yesterday's bad rows -> today's list of them
    sequences   a bucket of users    -> sequences; counts of edges by edge
    counts      a bucket of edges    -> counts, added to yesterday's; the strongest by source;
                                        what users did by item
    tags        a bucket of items    -> counts of tags by edge
    tag-counts  a bucket of edges    -> the strongest by source
    edges       a bucket of sources  -> edges; their ends by node; themselves by target
    nodes       a bucket of nodes    -> nodes
    targets     a bucket of nodes    -> edges with numbered targets by source
    graph       a bucket of nodes    -> CSR shards

Whatever a phase reads, it reads of one bucket; only what a hot node may have more of than a bucket
holds (a popular item's users, a common tag's items) is streamed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec.artifacts import join, read_bytes, write_atomic
from rec.data import edges as ed
from rec.data import graphs as gr
from rec.data.behaviour_config import BehaviourConfig, State
from rec.data.budget import Budget
from rec.data.edges import COUNTS
from rec.data.item_tags import ITEM_TAGS, interacted, scatter_items, tag_counts, tags_by_item
from rec.data.ledger import Ledger
from rec.data.log_rows import USER_ROWS, LogTask, micros, scatter
from rec.data.parquet import ParquetFile, read_or_empty, read_table, stream_folder
from rec.data.sequences import CUT, check_order, extend_sequences
from rec.data.shuffle import (
    BucketWriter,
    bucket_of,
    hash_strings,
    read_bucket,
    stream_bucket,
)
from rec.data.tables import shard_file
from rec.data.tasks import Summary, run_phase
from rec.data.user_rows import UserRows, filter_rows, sort_rows
from rec.schema import EDGES, PROBLEMS, SEQUENCES

Hash = Callable[[pa.Table], NDArray[np.uint64]]
GRAPH = "graph.json"
# of a task of each phase
BUDGETS = {
    "read": Budget(memory_gb=1.0),
    "problems": Budget(memory_gb=0.5),
    "sequences": Budget(memory_gb=1.0),
    "counts": Budget(memory_gb=1.0),
    "tags": Budget(memory_gb=1.0),
    "tag-counts": Budget(memory_gb=1.0),
    "edges": Budget(memory_gb=1.0),
    "nodes": Budget(memory_gb=1.0),
    "targets": Budget(memory_gb=1.0),
    "graph": Budget(memory_gb=1.0),
}


class Plan(NamedTuple):
    """One extension of what is published, or its beginning."""

    config: BehaviourConfig
    state: State  # when done
    tasks: tuple[LogTask, ...]
    old: str | None  # place of the version that is extended
    old_buckets: int  # of it: num_buckets is a multiple
    place: str  # of the new one
    work: str

    @property
    def num_buckets(self) -> int:
        return self.state.num_buckets

    def spill(self, name: str, index: int) -> str:
        return join(self.work, name, f"task-{index:05d}.arrow")

    def spills(self, name: str) -> list[str]:
        """The files of all buckets' tasks."""
        return [self.spill(name, index) for index in range(self.num_buckets)]

    def of_log(self, table: str) -> list[str]:
        """The files of a log's tasks."""
        return [self.spill("read", i) for i, task in enumerate(self.tasks) if task.table == table]


def read(plan: Plan, index: int) -> Ledger:
    """One task's log files to buckets."""
    task, config = plan.tasks[index], plan.config
    of_items = task.table == "items"
    problems = shard_file(plan.place, "item-problems" if of_items else "problems", index + 1)
    cutoff = micros(plan.state.cutoff)
    rows = plan.spill("read", index)
    if of_items:
        return scatter_items(task, rows, problems, plan.num_buckets, cutoff)
    return scatter(task, rows, problems, plan.num_buckets, config.filters, cutoff)


def keep_problems(plan: Plan, index: int) -> None:
    """Yesterday's bad rows as shard 0 of the list, a batch at a time."""
    with ParquetFile(shard_file(plan.place, "problems", index), PROBLEMS) as kept:
        for batch in stream_folder(join(plan.old, "problems")) if plan.old else ():
            kept.write(batch)


def gather(plan: Plan, bucket: int) -> Ledger:
    """Filter a bucket's rows, extend its users' sequences, count edges."""
    ledger = Ledger()
    counts: list[pa.Table] = []
    for table, log in plan.config.user_logs().items():
        rows = sort_rows(read_bucket(plan.of_log(table), bucket, plan.num_buckets, USER_ROWS))
        if table == "interactions" and not plan.state.timed:
            check_order(rows, log.path)
        kept, dropped = filter_rows(rows, plan.config.filters, log)
        ledger = ledger.record(f"filter {table}", len(rows), len(kept), dropped)
        if table == "interactions":
            ledger = ledger.merge(_sequences(plan, bucket, kept))
        if plan.config.edges is not None:
            counts.append(ed.edges_of(table, kept, log, plan.config.edges))
    if plan.config.edges is not None:
        _spill(plan, "counted", bucket, counts, COUNTS, ed.hash_edges)
    return ledger


def _sequences(plan: Plan, bucket: int, kept: UserRows) -> Ledger:
    old = _old(plan, "sequences", bucket, SEQUENCES, _hash_users)
    sequences, num_cut = extend_sequences(old, kept, plan.config.sequences)
    with ParquetFile(shard_file(plan.place, "sequences", bucket), SEQUENCES) as file:
        file.write(sequences)
    dropped = {CUT: num_cut}
    return Ledger().record("sequences", len(kept), len(kept) - num_cut, dropped)


def sum_edges(plan: Plan, bucket: int) -> Ledger:
    """Add the new days' counts to yesterday's."""
    old = _old(plan, "counts", bucket, COUNTS, ed.hash_edges)
    new = read_bucket(plan.spills("counted"), bucket, plan.num_buckets, COUNTS)
    counts = ed.sum_counts(pa.concat_tables([old, new]))
    with ParquetFile(shard_file(plan.place, "counts", bucket), COUNTS) as file:
        file.write(counts)
    if plan.config.items is not None:
        _spill(plan, "by-item", bucket, [interacted(counts)], COUNTS, _hash_items)
    return _strongest(plan, "strong", bucket, counts)


def join_tags(plan: Plan, bucket: int) -> Ledger:
    """Count the tags of what users did; a popular item's users stream past."""
    assert plan.config.edges is not None
    items = read_bucket(plan.of_log("items"), bucket, plan.num_buckets, ITEM_TAGS)
    tags, ledger = tags_by_item(items, plan.config.edges.max_tags)
    seen = stream_bucket(plan.spills("by-item"), bucket, plan.num_buckets)
    _spill(plan, "tagged", bucket, tag_counts(tags, seen), COUNTS, ed.hash_edges)
    return ledger


def sum_tags(plan: Plan, bucket: int) -> Ledger:
    """Counts of one bucket of tag edges, summed."""
    found = read_bucket(plan.spills("tagged"), bucket, plan.num_buckets, COUNTS)
    return _strongest(plan, "strong-tags", bucket, ed.sum_counts(found))


def _strongest(plan: Plan, name: str, bucket: int, counts: pa.Table) -> Ledger:
    """Send on what may be among the strongest edges of its source."""
    assert plan.config.edges is not None
    often = ed.frequent(counts, plan.config.edges.min_pairs)
    best = ed.strongest(often, plan.config.edges.max_degree)
    _spill(plan, name, bucket, [best], COUNTS, ed.hash_nodes)
    dropped = {
        "items that met too rarely": counts.num_rows - often.num_rows,
        "beyond the node's strongest": often.num_rows - best.num_rows,
    }
    return Ledger().record("count edges", counts.num_rows, best.num_rows, dropped)


def write_edges(plan: Plan, bucket: int) -> Ledger:
    """The strongest edges of one bucket of sources."""
    assert plan.config.edges is not None
    files = plan.spills("strong")
    if plan.config.items is not None:
        files += plan.spills("strong-tags")
    found = read_bucket(files, bucket, plan.num_buckets, COUNTS)
    best = ed.strongest(found, plan.config.edges.max_degree)
    with ParquetFile(shard_file(plan.place, "edges", bucket), EDGES) as file:
        file.write(ed.as_edges(best))
    _spill(plan, "ends", bucket, [gr.ends_of(best)], gr.NODES, _hash_ends)
    _spill(plan, "by-target", bucket, [gr.by_target(best)], gr.BY_TARGET, gr.hash_targets)
    cut = found.num_rows - best.num_rows
    dropped = {"beyond the node's strongest": cut}
    return Ledger().record("edges", found.num_rows, best.num_rows, dropped)


def write_nodes(plan: Plan, bucket: int) -> list[int]:
    """The nodes of one bucket; how many of each type."""
    found = gr.distinct(read_bucket(plan.spills("ends"), bucket, plan.num_buckets, gr.NODES))
    with ParquetFile(shard_file(plan.place, "nodes", bucket), gr.NODES) as file:
        file.write(found)
    return gr.num_by_type(found)


def number(plan: Plan, bucket: int) -> None:
    """Number the targets that are of one bucket; a common target's edges stream past."""
    nodes = read_table(shard_file(plan.place, "nodes", bucket))
    first = _first(plan)[bucket]
    found = stream_bucket(plan.spills("by-target"), bucket, plan.num_buckets)
    numbered = (gr.number_targets(piece, nodes, first) for piece in found)
    _spill(plan, "by-source", bucket, numbered, gr.BY_SOURCE, gr.hash_sources)


def write_graph(plan: Plan, bucket: int) -> None:
    """The CSR shards of one bucket of sources."""
    nodes = read_table(shard_file(plan.place, "nodes", bucket))
    found = read_bucket(plan.spills("by-source"), bucket, plan.num_buckets, gr.BY_SOURCE)
    for kind, shard in gr.shards(found, nodes, _first(plan)[bucket]).items():
        name = f"shard-{bucket:05d}.safetensors"
        write_atomic(join(plan.place, "graph", gr.graph_name(kind), name), shard.to_bytes())


def run_phases(plan: Plan, progress: Callable[[str, int, int], None] | None) -> Ledger:
    """All phases, one after the other; the ledger of what they did."""
    ledger = Ledger()

    def run(name: str, count: int, work: Callable[[Plan, int], Ledger | None]) -> None:
        nonlocal ledger

        def task(index: int) -> Summary:
            told = work(plan, index)
            return {"index": index, "ledger": (told or Ledger()).to_json()}

        found = run_phase(plan.work, name, count, task, progress, BUDGETS[name])
        for summary in found:
            ledger = ledger.merge(Ledger.from_json(summary["ledger"]))

    run("read", len(plan.tasks), read)  # first, so that all workers start at the same time
    run("problems", 1, keep_problems)
    run("sequences", plan.num_buckets, gather)
    if plan.config.edges is None:
        return ledger
    run("counts", plan.num_buckets, sum_edges)
    if plan.config.items is not None:
        run("tags", plan.num_buckets, join_tags)
        run("tag-counts", plan.num_buckets, sum_tags)
    run("edges", plan.num_buckets, write_edges)

    def nodes(index: int) -> Summary:
        return {"index": index, "num": write_nodes(plan, index)}

    found = run_phase(plan.work, "nodes", plan.num_buckets, nodes, progress, BUDGETS["nodes"])
    counts = [summary["num"] for summary in found]
    about = {"types": gr.NODE_TYPES, "first": gr.first_indices(counts).tolist()}
    write_atomic(join(plan.place, GRAPH), json.dumps(about).encode())
    run("targets", plan.num_buckets, number)
    run("graph", plan.num_buckets, write_graph)
    return ledger


def _spill(
    plan: Plan, name: str, index: int, tables: Iterable[pa.Table], schema: pa.Schema, hashed: Hash
) -> None:
    """Write rows to the buckets that they hash to."""
    with BucketWriter(plan.spill(name, index), schema, plan.num_buckets) as writer:
        for table in tables:
            if table.num_rows:
                writer.write(table, bucket_of(hashed(table), plan.num_buckets))


def _hash_items(counts: pa.Table) -> NDArray[np.uint64]:
    return hash_strings(counts.column("target"))


def _hash_users(sequences: pa.Table) -> NDArray[np.uint64]:
    return hash_strings(sequences.column("user_id"))


def _hash_ends(nodes: pa.Table) -> NDArray[np.uint64]:
    return gr.hash_node(nodes.column("type").to_numpy(), nodes.column("id"))


def _first(plan: Plan) -> NDArray[np.int64]:
    about: dict[str, Any] = json.loads(read_bytes(join(plan.place, GRAPH)))
    return np.array(about["first"], np.int64)


def _old(plan: Plan, table: str, bucket: int, schema: pa.Schema, hashed: Hash) -> pa.Table:
    """What yesterday's version holds of the bucket; where it had fewer, a part of one of them."""
    if plan.old is None:
        return schema.empty_table()
    splits = plan.num_buckets // plan.old_buckets
    found = read_or_empty(shard_file(plan.old, table, bucket // splits), schema, schema.names)
    if splits == 1 or not found.num_rows:
        return found
    return found.filter(pa.array(bucket_of(hashed(found), plan.num_buckets) == bucket))
