"""Which labels go together: a table of EDGES between labels of the same training items.

weight of a -> b: the share of a's items that have b too; both directions are there. Counted in
each file of pairs, then summed by label, so a label on a third of all items costs no more than
the labels it meets.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from rec.artifacts import join
from rec.data.pairs import Pairs
from rec.data.parquet import read_table, write_table
from rec.data.tasks import stream
from rec.features.hashes import partners
from rec.schema import EDGES

MIN_ITEMS = 2  # that have both labels
MAX_LABELS = 64  # of an item that are counted, the most frequent ones
RELATION = "on the same item"
_MET = pa.schema([("source", pa.int64()), ("target", pa.int64()), ("num_items", pa.int64())])


def write_label_graph(pairs: Pairs, vocabulary: pa.Table, folder: str) -> None:
    """Write the edges between labels of the vocabulary to files below `folder`."""
    labels = vocabulary.column("label").combine_chunks()

    def count(batch: pa.Table) -> pa.Table:
        return count_met(read_table(batch["item"].to_pylist()[0]), labels)

    def write(block: pa.Table) -> pa.Table:
        if not block.num_rows:  # such a block may lack its columns
            return pa.table({"rows": pa.array([0], pa.int64())})
        edges = edges_of(block.select(_MET.names).cast(_MET), labels)
        if edges.num_rows:  # named by what is in it, so that a repeated task writes the same file
            first = pc.min(pc.index_in(edges.column("source_id"), value_set=labels)).as_py()
            write_table(join(folder, f"part-{first:06d}.parquet"), edges)
        return pa.table({"rows": pa.array([edges.num_rows], pa.int64())})

    files = ray.data.from_items(pairs.files, override_num_blocks=len(pairs.files))
    counted = files.map_batches(count, batch_size=1, batch_format="pyarrow")
    by_source = counted.repartition(len(pairs.files), keys=["source"])
    for _ in stream(by_source.map_batches(write, batch_size=None, batch_format="pyarrow")):
        continue  # the files are the result


def count_met(pairs: pa.Table, labels: pa.Array) -> pa.Table:
    """_MET of training items' labels in both directions, and of each label with itself.

    Args:
        pairs: rows of PAIRS; all of an item's are among them.
        labels: the vocabulary, the most frequent first.
    """
    label = pc.index_in(pairs.column("label"), value_set=labels)
    used = pc.and_(pc.is_valid(label), pc.invert(pairs.column("heldout")))
    ids = pairs.column("item_id").filter(used).combine_chunks().dictionary_encode()
    item = ids.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    label = label.filter(used).to_numpy().astype(np.int64)
    order = np.lexsort((label, item))
    item, label = item[order], label[order]
    count = np.bincount(item)
    rank = np.arange(len(item)) - np.repeat(np.cumsum(count) - count, count)
    item, label = item[rank < MAX_LABELS], label[rank < MAX_LABELS]
    size = len(labels)
    key, total = np.unique(label * size + label, return_counts=True)
    for left, right in partners(item):
        # summed at each step: held are the labels that meet, not each time that they do
        both = np.concatenate(
            [label[left] * size + label[right], label[right] * size + label[left]]
        )
        more, count = np.unique(both, return_counts=True)
        key, at = np.unique(np.concatenate([key, more]), return_inverse=True)
        total = np.bincount(at, np.concatenate([total, count]), len(key)).astype(np.int64)
    source, target = np.divmod(key, max(size, 1))
    return pa.table([source, target, total], schema=_MET)


def edges_of(met: pa.Table, labels: pa.Array) -> pa.Table:
    """EDGES of _MET rows; all rows of a source are there."""
    sums = met.group_by(["source", "target"]).aggregate([("num_items", "sum")])
    source, target, both = (column.to_numpy() for column in sums.columns)
    alone = np.zeros(len(labels), np.int64)
    alone[source[source == target]] = both[source == target]
    kept = (source != target) & (both >= MIN_ITEMS)
    source, target, both = source[kept], target[kept], both[kept]
    order = np.lexsort((target, source))
    rows = len(order)
    columns = [
        pa.repeat("label", rows),
        labels.take(pa.array(source[order])),
        pa.repeat(RELATION, rows),
        pa.repeat("label", rows),
        labels.take(pa.array(target[order])),
        pa.array((both / np.maximum(alone[source], 1))[order].astype(np.float32)),
        pa.nulls(rows, EDGES.field("event_time").type),
    ]
    return pa.table(columns, schema=EDGES)
