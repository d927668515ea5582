"""The phases in which sequence rows are made: each a task a shard, resumed by itself.

items       files of the items table -> its rows by item
vectors     the embedding table      -> the ids that it has, by item
count       a shard of sequences     -> items and how often they are trained on, by item
known       a bucket of items        -> what is known of each
number      one task                 -> items.parquet, labels, numbers to look up
content     one task                 -> content.safetensors
rows        a shard of sequences     -> a shard of each side
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray
from safetensors.numpy import save

from rec.artifacts import join, open_artifact, write_atomic
from rec.data.budget import Budget
from rec.data.item_tags import scatter_items
from rec.data.ledger import Ledger
from rec.data.log_rows import LogTask
from rec.data.parquet import ParquetFile, read_table, write_table
from rec.data.sequence_items import (
    COUNTED,
    ITEM_INFO,
    KNOWN_ITEMS,
    ItemsError,
    count_items,
    join_items,
    look_up,
    number_items,
    write_lookup,
)
from rec.data.sequence_split import SIDES, Cutoffs, events_of, roles, split_rows, trained_on
from rec.data.shuffle import BucketWriter, bucket_of, hash_strings, read_bucket
from rec.data.tables import shard_file
from rec.data.tasks import Summary, run_phase
from rec.schema import SEQUENCE_ROWS, SEQUENCES

# of a task of each phase
BUDGETS = {
    "items": Budget(memory_gb=1.0),
    "vectors": Budget(memory_gb=0.5),
    "count": Budget(memory_gb=1.0),
    "known": Budget(memory_gb=1.0),
    "number": Budget(memory_gb=2.0),
    "content": Budget(memory_gb=2.0),
    "rows": Budget(memory_gb=1.0),
}
_EMBEDDED = pa.schema([("item_id", pa.string())])
_BATCH_ROWS = 16_384
_DOMAIN = "of another domain"

Progress = Callable[[str, int, int], None] | None


class Plan(NamedTuple):
    """What is made of what."""

    source: str  # place of the behaviour's version
    num_buckets: int  # of its users; items go to as many
    cutoffs: Cutoffs | None
    domain: str | None
    minima: tuple[int, int, int]  # events of an item, of a user, items of a label
    target_share: float  # of a user's events in a held-out stretch of time
    tasks: tuple[LogTask, ...]  # files of the items table
    end: int  # microseconds since 1970: items published later are left out
    content: str | None  # an embedding table
    place: str
    work: str

    def spill(self, name: str, index: int) -> str:
        return join(self.work, name, f"task-{index:05d}.arrow")

    @property
    def lookup(self) -> str:
        return join(self.work, "lookup.parquet")


class Result(NamedTuple):
    """What the phases tell."""

    sizes: dict[str, int]  # num_items, num_tags, ...
    domains: dict[str, int]  # of the behaviour, with events
    counts: dict[str, dict[str, int]]  # of each side
    ledger: Ledger


def read_items(plan: Plan, index: int) -> Summary:
    """One task's files of the items table to buckets."""
    ledger = scatter_items(
        plan.tasks[index],
        plan.spill("items", index),
        shard_file(plan.place, "problems", index),
        plan.num_buckets,
        plan.end,
        ITEM_INFO,
    )
    return {"index": index, "ledger": ledger.to_json()}


def read_ids(plan: Plan, index: int) -> Summary:
    """The ids of the embedding table to buckets."""
    with BucketWriter(plan.spill("vectors", index), _EMBEDDED, plan.num_buckets) as writer:
        for batch, _ in _vectors(plan, ["id", "weight"]):
            rows = pa.Table.from_arrays([batch.column("id").cast(pa.string())], schema=_EMBEDDED)
            writer.write(rows, bucket_of(hash_strings(rows.column("item_id")), plan.num_buckets))
    return {"index": index}


def _vectors(plan: Plan, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The active rows of the embedding table, a batch at a time, and how many beside them are not.
    `columns` has "weight" among them."""
    assert plan.content is not None
    _, folder = open_artifact(plan.content, "embedding-table")
    files = [str(path) for path in sorted(folder.rglob("*.parquet"))]
    for batch in pads.dataset(files).to_batches(
        columns=columns, batch_size=_BATCH_ROWS, use_threads=False
    ):
        active = batch.filter(pc.greater(batch.column("weight"), 0))
        yield active, batch.num_rows - active.num_rows


def _sequences(plan: Plan, index: int) -> tuple[pa.Table, dict[str, int]]:
    """A shard's sequences of the domain, and the events of every domain in it."""
    found = read_table(shard_file(plan.source, "sequences", index), SEQUENCES.names)
    sizes = pc.list_value_length(found.column("item_ids"))
    by_domain = pa.table({"domain": found.column("domain"), "num": sizes})
    by_domain = by_domain.group_by("domain").aggregate([("num", "sum")])
    domains = dict(zip(*(column.to_pylist() for column in by_domain.columns), strict=True))
    if plan.domain is not None:
        found = found.filter(pc.equal(found.column("domain"), plan.domain))
    return found, domains


def count_shard(plan: Plan, index: int) -> Summary:
    """How often each item of a shard is trained on, to buckets of items."""
    sequences, domains = _sequences(plan, index)
    with BucketWriter(plan.spill("count", index), COUNTED, plan.num_buckets) as writer:
        # of several domains each user has several rows, and the run ends after this phase
        events = events_of(sequences)
        trained = trained_on(events, roles(events, plan.cutoffs), plan.minima[1])
        counted = count_items(events.items, trained)
        writer.write(counted, bucket_of(hash_strings(counted.column("item_id")), plan.num_buckets))
    num = sum(domains.values())
    ledger = Ledger().record("sequences", num, len(events.user), {_DOMAIN: num - len(events.user)})
    return {"index": index, "domains": domains, "ledger": ledger.to_json()}


def know(plan: Plan, bucket: int) -> Summary:
    """What is known of the items of a bucket."""

    def read(name: str, count: int, schema: pa.Schema) -> pa.Table:
        files = [plan.spill(name, index) for index in range(count)]
        return read_bucket(files, bucket, plan.num_buckets, schema)

    counted = read("count", plan.num_buckets, COUNTED)
    info = read("items", len(plan.tasks), ITEM_INFO)
    embedded = read("vectors", int(plan.content is not None), _EMBEDDED)
    known, ledger = join_items(counted, info, embedded, plan.minima[0], bool(plan.tasks))
    with ParquetFile(shard_file(plan.work, "known", bucket), KNOWN_ITEMS) as file:
        file.write(known)
    return {"index": bucket, "ledger": ledger.to_json()}


def number_all(plan: Plan, index: int) -> Summary:
    """All items numbered: the one task that holds all of them, in memory by their number."""
    known = [read_table(shard_file(plan.work, "known", b)) for b in range(plan.num_buckets)]
    vocabulary = number_items(pa.concat_tables(known), plan.minima[2])
    write_lookup(plan.lookup, vocabulary.items.column("item_id"))
    write_table(join(plan.place, "items.parquet"), vocabulary.items)
    for name, labels in vocabulary.labels.items():
        write_table(join(plan.place, f"{name}.parquet"), labels)
    trained = pc.sum(pc.greater(vocabulary.items.column("num_events"), 0)).as_py() or 0
    sizes = {"num_items": vocabulary.items.num_rows, "num_trained_items": trained}
    return {
        "index": index,
        "sizes": sizes | {f"num_{name}": t.num_rows for name, t in vocabulary.labels.items()},
    }


def write_content(plan: Plan, index: int, num_items: int) -> Summary:
    """Unit vectors of all items that have one, in memory by the number of items.

    Raises:
        ItemsError: an item has several vectors, or vectors differ in size.
    """
    vectors: NDArray[np.float32] | None = None
    mask = np.zeros(num_items, bool)
    ledger = Ledger()
    for batch, inactive in _vectors(plan, ["id", "weight", "vector"]):
        ledger = ledger.record("content vectors", inactive, 0, {"not active (weight 0)": inactive})
        if not batch.num_rows:
            continue
        rows = look_up(plan.lookup, batch.column("id").cast(pa.string()))
        sizes = pc.unique(pc.list_value_length(batch.column("vector"))).to_pylist()
        dim = sizes[0] if vectors is None else vectors.shape[1]
        if mask[rows].any() or len(np.unique(rows)) < len(rows) or sizes != [dim]:
            raise ItemsError(
                f"{plan.content}: rows take one vector an item, all of one size; this table has "
                f"an item twice, or vectors of {sizes} numbers beside those of {dim}"
            )
        if vectors is None:
            vectors = np.zeros((num_items, dim), np.float32)
        flat = pc.list_flatten(batch.column("vector")).to_numpy().astype(np.float64)
        norm = np.linalg.norm(flat.reshape(-1, dim), axis=1)
        fine = np.isfinite(norm) & (norm > 0)
        vectors[rows[fine]] = flat.reshape(-1, dim)[fine] / norm[fine, None]
        mask[rows[fine]] = True
        num, dropped = int(fine.sum()), {"zero or not finite": int((~fine).sum())}
        ledger = ledger.record("content vectors", len(rows), num, dropped)
    if vectors is None:
        raise ItemsError(f"{plan.content}: has no vectors; run jobs.embed, or leave it out")
    content = save({"vectors": vectors, "mask": mask})
    write_atomic(join(plan.place, "content.safetensors"), content)
    return {"index": index, "dim": vectors.shape[1], "ledger": ledger.to_json()}


def write_rows(plan: Plan, index: int, num_trained: int) -> Summary:
    """A shard of sequences as a shard of each side, which may have no row."""
    sequences, _ = _sequences(plan, index)
    events = events_of(sequences)
    item_index = look_up(plan.lookup, events.items)
    sides = split_rows(
        events, item_index, num_trained, plan.cutoffs, plan.minima[1], plan.target_share
    )
    for side, table in sides.tables.items():
        with ParquetFile(shard_file(plan.place, side, index), SEQUENCE_ROWS) as file:
            file.write(table)
    return {"index": index, "counts": sides.counts, "ledger": sides.ledger.to_json()}


def run_phases(plan: Plan, progress: Progress) -> Result:
    """All phases, one after the other; the later ones not where domains would be mixed."""
    ledger = Ledger()

    def run(name: str, count: int, task: Callable[[int], Summary]) -> list[Summary]:
        nonlocal ledger
        found = run_phase(plan.work, name, count, task, progress, BUDGETS[name])
        for summary in found:
            ledger = ledger.merge(Ledger.from_json(summary.get("ledger", "{}")))
        return found

    run("items", len(plan.tasks), lambda index: read_items(plan, index))
    run("vectors", int(plan.content is not None), lambda index: read_ids(plan, index))
    domains: dict[str, int] = {}
    for summary in run("count", plan.num_buckets, lambda index: count_shard(plan, index)):
        for name, events in summary["domains"].items():
            domains[name] = domains.get(name, 0) + events
    if plan.domain is None and len(domains) > 1:
        return Result({}, domains, {}, ledger)
    run("known", plan.num_buckets, lambda bucket: know(plan, bucket))
    sizes: dict[str, Any] = run("number", 1, lambda index: number_all(plan, index))[0]["sizes"]
    sizes["content_dim"] = 0
    if plan.content is not None:
        num_items = sizes["num_items"]
        told = run("content", 1, lambda index: write_content(plan, index, num_items))
        sizes["content_dim"] = told[0]["dim"]
    num_trained = sizes["num_trained_items"]
    rows = run("rows", plan.num_buckets, lambda index: write_rows(plan, index, num_trained))
    counts = {
        side: {
            name: sum(summary["counts"][side][name] for summary in rows)
            for name in rows[0]["counts"][side]
        }
        for side in SIDES
    }
    return Result(sizes, domains, counts, ledger)
