"""Labels of items from tags and click-through queries, weighted, a file for each item shard.

Only narrow rows (item, label, time) are shuffled, never media, and no item's labels pass through
the driver: one shuffle by item brings events to their items (`rec.data.pairs`), one by shard brings
labels to the item shards.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from pydantic import Field
from ray.data.aggregate import Sum

from rec.artifacts import join
from rec.config import Config
from rec.data.cleaning import clean_labels
from rec.data.events import LabelEvents
from rec.data.label_graph import write_label_graph
from rec.data.ledger import Ledger
from rec.data.pairs import Pairs, build_pairs
from rec.data.parquet import read_table, write_table
from rec.data.split import Split
from rec.data.tables import Tables
from rec.data.tasks import num_partitions, stream
from rec.features.tags import LabelWeights, final_weights, idf, raw_weights
from rec.schema import TIMESTAMP

VOCABULARY = pa.schema(
    [
        ("label", pa.string()),
        ("label_id", pa.int32()),
        ("num_items", pa.int64()),
        ("idf", pa.float32()),
    ]
)
COUNTS = pa.schema(
    [
        ("label", pa.string()),
        ("num_items", pa.int64()),  # training items with it in the window
        ("num_pairs", pa.int64()),  # at any time
        ("mass", pa.float64()),  # sum over the pairs of their raw weight with idf 1
    ]
)
ITEM_LABELS = pa.schema(
    [
        ("item_id", pa.string()),
        ("label_ids", pa.list_(pa.int32())),
        ("label_weights", pa.list_(pa.float32())),
    ]
)
_MICROS_A_DAY = 86_400_000_000.0
_ITEMS_KEY = ""  # counts items among label counts; no normalised label is empty


class LabelConfig(Config):
    """Which labels there are and what they weigh."""

    events: LabelEvents = LabelEvents()
    weights: LabelWeights = LabelWeights()
    min_items: int = Field(default=3, ge=1)  # training items a label must be on
    max_labels: int = Field(default=50_000, ge=1)  # the most frequent ones
    window_days: float | None = Field(default=None, gt=0)  # idf counts labels given this recently


class Labels(NamedTuple):
    """The fitted vocabulary and the folder with a file of ITEM_LABELS for each item shard."""

    vocabulary: pa.Table
    folder: str
    ledger: Ledger


def build_labels(
    tables_uri: str,
    tables: Tables,
    split: Split,
    config: LabelConfig,
    work_uri: str,
    graph_uri: str,
    duplicates_uri: str | None = None,
) -> Labels:
    """Fit the label vocabulary on the training side and write every item's labels.

    Held-out items get labels of the same vocabulary; their events, and all events after the
    cut-off, reach neither a training row nor idf, counts or the mean weight.

    Args:
        tables_uri: folder of `write_tables`.
        tables: its ledger.
        split: which items are held out.
        config: sources, weights and sizes.
        work_uri: folder for pairs and the per-shard label files.
        graph_uri: folder for the edges between labels of the same items.
        duplicates_uri: where `find_duplicates` listed items that get no labels.
    """
    pairs = build_pairs(tables_uri, tables, split, config.events, work_uri, duplicates_uri)
    if config.events.min_evidence:
        pairs = clean_labels(pairs, config.events.min_evidence, work_uri)
    vocabulary, mean = _vocabulary(pairs, config)
    write_label_graph(pairs, vocabulary, graph_uri)
    folder = join(work_uri, "labels")
    ledger = _write(pairs, vocabulary, mean, config, folder, tables.num_shards)
    return Labels(vocabulary, folder, pairs.ledger.merge(ledger))


def _vocabulary(pairs: Pairs, config: LabelConfig) -> tuple[pa.Table, float]:
    """The most frequent labels of training items, at most max_labels of them, as VOCABULARY rows,
    and the mean raw weight of the training pairs that have one of them.

    Counts are merged by a distributed aggregation; of them the driver holds max_labels and a
    block at a time. A raw weight is idf times what the pair alone decides, so the sum of the
    latter by label is all that the mean needs.
    """
    oldest = None
    if config.window_days is not None and pairs.reference is not None:
        oldest = pairs.reference - timedelta(days=config.window_days)

    def count(batch: pa.Table) -> pa.Table:
        return count_labels(
            read_table(batch["item"].to_pylist()[0]), oldest, pairs.reference, config.weights
        )

    files = ray.data.from_items(pairs.files, override_num_blocks=len(pairs.files))
    counted = files.map_batches(count, batch_size=1, batch_format="pyarrow")
    sums = [Sum(name, alias_name=name) for name in COUNTS.names[1:]]
    total = counted.groupby("label", num_partitions=len(pairs.files)).aggregate(*sums)
    num_items = 0
    best = COUNTS.empty_table()
    for batch in stream(total):
        batch = batch.select(COUNTS.names).cast(COUNTS)
        whole = pc.equal(batch.column("label"), _ITEMS_KEY)
        num_items += pc.sum(batch.filter(whole).column("num_items")).as_py() or 0
        frequent = pc.greater_equal(batch.column("num_items"), config.min_items)
        best = pa.concat_tables([best, batch.filter(pc.and_(frequent, pc.invert(whole)))])
        best = best.sort_by([("num_items", "descending"), ("label", "ascending")])
        best = best.slice(0, config.max_labels).combine_chunks()
    rarity = idf(best.column("num_items").to_numpy(), num_items)
    tfidf = config.weights.weighting == "tfidf"
    mass = best.column("mass").to_numpy() * (rarity if tfidf else 1.0)
    num_pairs = best.column("num_pairs").to_numpy().sum()
    columns = [
        best.column("label"),
        pa.array(np.arange(best.num_rows), pa.int32()),
        best.column("num_items"),
        pa.array(rarity),
    ]
    mean = float(mass.sum() / num_pairs) if mass.sum() > 0 else 1.0
    return pa.table(columns, schema=VOCABULARY), mean


def count_labels(
    pairs: pa.Table, oldest: datetime | None, reference: datetime | None, config: LabelWeights
) -> pa.Table:
    """COUNTS of the training pairs: items by label in the window, all pairs, their mass.

    Args:
        pairs: PAIRS rows; all of an item's are among them.
        oldest: start of the window in which items count for idf; None = no limit.
        reference: when training ends.
        config: how a pair weighs.
    """
    rows = pairs.filter(pc.invert(pairs.column("heldout")))
    recent = pa.array(np.ones(rows.num_rows, bool))
    if oldest is not None:
        newer = pc.greater_equal(rows.column("last_time"), pa.scalar(oldest, TIMESTAMP))
        recent = newer.fill_null(True)
    mass = _raw(rows, np.ones(rows.num_rows, np.float32), reference, config).astype(np.float64)
    table = pa.table({"label": rows.column("label"), "num_items": recent, "mass": mass})
    sums = table.group_by("label").aggregate(
        [("num_items", "sum"), ("label", "count"), ("mass", "sum")]
    )
    sums = sums.select(["label", "num_items_sum", "label_count", "mass_sum"])
    items = pc.count_distinct(rows.filter(recent).column("item_id")).as_py()
    whole = pa.table([[_ITEMS_KEY], [items], [0], [0.0]], schema=COUNTS)
    return pa.concat_tables([sums.rename_columns(COUNTS.names).cast(COUNTS), whole])


def _raw(
    pairs: pa.Table, idf: np.ndarray, reference: datetime | None, config: LabelWeights
) -> np.ndarray:
    age = np.zeros(pairs.num_rows)
    if reference is not None:
        now = pa.scalar(reference, TIMESTAMP).cast(pa.int64()).as_py()
        times = pairs.column("last_time").cast(pa.int64()).fill_null(now)
        age = (now - times.to_numpy()) / _MICROS_A_DAY
    return raw_weights(
        pairs.column("num_events").to_numpy(),
        idf,
        age,
        pairs.column("coefficient").to_numpy(),
        config,
    )


def weigh(
    pairs: pa.Table,
    vocabulary: pa.Table,
    mean: float,
    reference: datetime | None,
    config: LabelWeights,
) -> pa.Table:
    """item_id, shard, label_id and final weight of the pairs whose label is in the vocabulary."""
    at = pc.index_in(pairs.column("label"), value_set=vocabulary.column("label").combine_chunks())
    known = pc.is_valid(at)
    pairs, at = pairs.filter(known), at.filter(known)
    raw = _raw(pairs, vocabulary.column("idf").take(at).to_numpy(), reference, config)
    narrow = pairs.select(["item_id", "shard"])
    narrow = narrow.append_column("label_id", vocabulary.column("label_id").take(at))
    return narrow.append_column("weight", pa.array(final_weights(raw, mean, config)))


def _write(
    pairs: Pairs,
    vocabulary: pa.Table,
    mean: float,
    config: LabelConfig,
    folder: str,
    num_shards: int,
) -> Ledger:
    """Weights of all pairs, over the training side's mean, to a file for each item shard."""

    def read(batch: pa.Table) -> pa.Table:
        rows = read_table(batch["item"].to_pylist()[0])
        return weigh(rows, vocabulary, mean, pairs.reference, config.weights)

    def write(block: pa.Table) -> pa.Table:
        for shard in pc.unique(block.column("shard")).to_pylist():
            rows = block.filter(pc.equal(block.column("shard"), shard))
            write_table(label_file(folder, shard), gather(rows))
        return pa.table({"rows": pa.array([block.num_rows], pa.int64())})

    files = ray.data.from_items(pairs.files, override_num_blocks=len(pairs.files))
    weighed = files.map_batches(read, batch_size=1, batch_format="pyarrow")
    by_shard = weighed.repartition(num_partitions(num_shards), keys=["shard"])
    written = 0
    for batch in stream(by_shard.map_batches(write, batch_size=None, batch_format="pyarrow")):
        written += pc.sum(batch.column("rows")).as_py()
    dropped = {"label not in the vocabulary": pairs.num_pairs - written}
    return Ledger().record("item labels", pairs.num_pairs, written, dropped)


def label_file(folder: str, shard: int) -> str:
    return join(folder, f"shard-{shard:05d}.parquet")


def gather(rows: pa.Table) -> pa.Table:
    """(item_id, label_id, weight) rows to ITEM_LABELS, a row an item, labels ascending."""
    rows = rows.sort_by([("item_id", "ascending"), ("label_id", "ascending")])
    lengths = pc.value_counts(rows.column("item_id").combine_chunks())
    offsets = np.concatenate([[0], np.cumsum(lengths.field("counts").to_numpy())])
    offsets = pa.array(offsets, pa.int32())
    ids = pa.ListArray.from_arrays(offsets, rows.column("label_id").combine_chunks())
    weights = pa.ListArray.from_arrays(offsets, rows.column("weight").combine_chunks())
    return pa.table([lengths.field("values"), ids, weights], schema=ITEM_LABELS)
