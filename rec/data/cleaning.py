"""Labels that nothing about their item speaks for are left out (`rec.features.evidence`).

Two aggregations over the files of pairs and words, both of counts alone: how many training items
have each word and each label, then each (label, word). The first is held by the driver, the most
frequent `MAX_WORDS` and `MAX_LABELS` of them; the second goes from tasks to files. A label on a
third of all items has as many (label, word) counts as there are words, whatever its items; of
them the `MAX_TELLING` that tell most are kept, and each worker reads what is kept once.
"""

from __future__ import annotations

import functools
import uuid
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data.aggregate import Sum

from rec.artifacts import join
from rec.data.budget import Budget
from rec.data.label_evidence import Model, clean, incidences, own_words
from rec.data.ledger import Ledger
from rec.data.pairs import Pairs
from rec.data.parquet import read_table, write_table
from rec.data.tasks import map_shards, stream
from rec.features.evidence import MIN_Z, Profiles, deviation

BUDGET = Budget(memory_gb=2.0)  # of a task of the last step, which holds all that is kept
MAX_LABELS = 200_000
MAX_WORDS = 500_000
MAX_TELLING = 2_000  # words of a label, the most telling ones
_MIN_ITEMS = 2  # a word or label of one item can speak for no other
_COUNTS = pa.schema([("kind", pa.string()), ("key", pa.string()), ("num_items", pa.int64())])
_TOGETHER = pa.schema(
    [("label_index", pa.int64()), ("word_index", pa.int64()), ("num_items", pa.int64())]
)


def clean_labels(pairs: Pairs, min_evidence: float, work_uri: str) -> Pairs:
    """The pairs without those whose label has less evidence than `min_evidence` on its item.

    What people searched for and stayed with stays: they have judged it. So do tags that cannot be
    judged: of an item without words, and on fewer than two training items. Words of comments have
    to be shared by texts first (`_shared`). Held-out items are judged by what training items tell.

    Args:
        pairs: of `build_pairs`, with files of words.
        min_evidence: in nats.
        work_uri: folder for counts and for the pairs that stay.
    """
    # named anew, as workers keep what they read of it
    folder = join(work_uri, f"cleaning-{uuid.uuid4().hex[:8]}")
    num_items = _count(pairs, folder)
    profiles = _count_together(pairs, folder, num_items)

    def work(index: int) -> dict[str, object]:
        model = read_profiles(folder, tuple(profiles), num_items)
        rows = read_table(pairs.files[index])
        kept, dropped = clean(rows, read_table(pairs.words[index]), model, min_evidence)
        write_table(join(folder, f"pairs-{index:05d}.parquet"), kept)
        return {"rows_in": rows.num_rows, "rows_out": kept.num_rows, "dropped": dropped}

    ledger = Ledger()
    for found in map_shards(work, range(len(pairs.files)), BUDGET, "label cleaning"):
        ledger = ledger.record(
            "label cleaning", found["rows_in"], found["rows_out"], found["dropped"]
        )
    files = [join(folder, f"pairs-{i:05d}.parquet") for i in range(len(pairs.files))]
    num_pairs = ledger.stages["label cleaning"].rows_out if files else 0
    return Pairs(files, [], num_pairs, pairs.reference, pairs.ledger.merge(ledger))


def _numbers(pairs: Pairs) -> ray.data.Dataset:
    return ray.data.from_items(list(range(len(pairs.files))), override_num_blocks=len(pairs.files))


def _count(pairs: Pairs, folder: str) -> int:
    """Write the most frequent labels and words, with their training items; N comes back."""

    def count(batch: pa.Table) -> pa.Table:
        index = batch["item"].to_pylist()[0]
        return count_items(read_table(pairs.files[index]), read_table(pairs.words[index]))

    counted = _numbers(pairs).map_batches(count, batch_size=1, batch_format="pyarrow")
    total = counted.groupby(["kind", "key"], num_partitions=len(pairs.files)).aggregate(
        Sum("num_items", alias_name="num_items")
    )
    limits = {"label": MAX_LABELS, "word": MAX_WORDS}
    best: dict[str, pa.Table] = dict.fromkeys(limits, _COUNTS.empty_table())
    num_items = 0
    for batch in stream(total):
        batch = batch.select(_COUNTS.names).cast(_COUNTS)
        whole = batch.filter(pc.equal(batch.column("kind"), "item"))
        num_items += pc.sum(whole.column("num_items")).as_py() or 0
        frequent = batch.filter(pc.greater_equal(batch.column("num_items"), _MIN_ITEMS))
        for kind, limit in limits.items():
            rows = frequent.filter(pc.equal(frequent.column("kind"), kind))
            rows = pa.concat_tables([best[kind], rows])
            rows = rows.sort_by([("num_items", "descending"), ("key", "ascending")])
            best[kind] = rows.slice(0, limit).combine_chunks()
    for kind, rows in best.items():
        write_table(join(folder, f"{kind}s.parquet"), rows.select(["key", "num_items"]))
    return num_items


def count_items(pairs: pa.Table, words: pa.Table) -> pa.Table:
    """_COUNTS of the training items in one file: of every label, of every word, and of all."""
    labels = pairs.filter(pc.invert(pairs.column("heldout"))).select(["item_id", "label"])
    said = words.filter(pc.invert(words.column("heldout"))).select(["item_id", "word"])
    tables: list[pa.Table] = []
    for kind, column, rows in (("label", "label", labels), ("word", "word", said)):
        sums = rows.group_by(column).aggregate([("item_id", "count")])
        names = [pa.repeat(kind, sums.num_rows), sums.column(column), sums.column("item_id_count")]
        tables.append(pa.table(names, schema=_COUNTS))
    ids = pa.chunked_array([*labels.column("item_id").chunks, *said.column("item_id").chunks])
    whole = pa.table([["item"], [""], [pc.count_distinct(ids).as_py()]], schema=_COUNTS)
    return pa.concat_tables([*tables, whole])


class _Terms(NamedTuple):
    key: pa.Array  # (n,) string, the words or labels that are counted
    num_items: np.ndarray  # (n,)


def _terms(folder: str, kind: str) -> _Terms:
    table = read_table(join(folder, f"{kind}s.parquet"))
    return _Terms(table.column("key").combine_chunks(), table.column("num_items").to_numpy())


def _count_together(pairs: Pairs, folder: str, num_items: int) -> list[str]:
    """Write in how many training items label and word meet, where that can tell; the files."""

    def count(batch: pa.Table) -> pa.Table:
        index = batch["item"].to_pylist()[0]
        rows = read_table(pairs.files[index])
        rows = rows.filter(pc.invert(rows.column("heldout")))
        said = read_table(pairs.words[index])
        return count_together(rows, said, _terms(folder, "label").key, _terms(folder, "word").key)

    def write(block: pa.Table) -> pa.Table:
        if not block.num_rows:  # such a block may lack its columns
            block = _TOGETHER.empty_table()
        labels, words = _terms(folder, "label"), _terms(folder, "word")
        rows = block.select(_TOGETHER.names).cast(_TOGETHER)
        rows = rows.group_by(["label_index", "word_index"]).aggregate([("num_items", "sum")])
        label, word, both = (column.to_numpy() for column in rows.columns)
        value = deviation(num_items, words.num_items[word], labels.num_items[label], both)
        kept = most_telling(label, word, value, MAX_TELLING)
        kept |= np.isin(label * len(words.key) + word, own_words(labels.key, words.key))
        # named by what is in it, so that a repeated task writes the same file
        name = f"together-{label.min() if len(label) else 'none'}.parquet"
        write_table(join(folder, name), rows.filter(pa.array(kept)).rename_columns(_TOGETHER.names))
        return pa.table({"file": pa.array([name], pa.string())})

    counted = _numbers(pairs).map_batches(count, batch_size=1, batch_format="pyarrow")
    by_label = counted.repartition(len(pairs.files), keys=["label_index"])
    written = stream(by_label.map_batches(write, batch_size=None, batch_format="pyarrow"))
    return sorted({name for batch in written for name in batch.column("file").to_pylist()})


def most_telling(
    label: np.ndarray, word: np.ndarray, deviation: np.ndarray, limit: int
) -> np.ndarray:
    """(n,) bool: of each label the words that can tell, at most `limit`, the most telling first.

    Args:
        label: (n,) label indices.
        word: (n,) word indices, which part words that tell equally much.
        deviation: (n,) of `rec.features.evidence.deviation`.
        limit: how many.
    """
    order = np.lexsort((word, -deviation, label))
    count = np.bincount(label)
    rank = np.empty(len(label), np.int64)
    rank[order] = np.arange(len(label)) - np.repeat(np.cumsum(count) - count, count)
    return (deviation >= MIN_Z) & (rank < limit)


def count_together(
    pairs: pa.Table, words: pa.Table, labels: pa.Array, vocabulary: pa.Array
) -> pa.Table:
    """_TOGETHER of one file's pairs: in how many items label and word meet."""
    counts = _TOGETHER.empty_table()
    for part in incidences(pairs, words, labels, vocabulary):
        key, count = np.unique(part.label * len(vocabulary) + part.word, return_counts=True)
        label, word = np.divmod(key, len(vocabulary))
        rows = pa.table([label, word, count.astype(np.int64)], schema=_TOGETHER)
        counts = pa.concat_tables([counts, rows]).group_by(_TOGETHER.names[:2])
        counts = counts.aggregate([("num_items", "sum")]).rename_columns(_TOGETHER.names)
    return counts


@functools.lru_cache(maxsize=1)
def read_profiles(folder: str, files: tuple[str, ...], num_items: int) -> Model:
    """The counts that were written to `folder`, read and sorted once a worker process."""
    labels, words = _terms(folder, "label"), _terms(folder, "word")
    together = pa.concat_tables(
        [_TOGETHER.empty_table(), *(read_table(join(folder, name)) for name in files)]
    )
    label, word, both = (column.to_numpy() for column in together.columns)
    pair = label * len(words.key) + word
    order = np.argsort(pair)
    profiles = Profiles(num_items, words.num_items, labels.num_items, pair[order], both[order])
    return Model(labels.key, words.key, own_words(labels.key, words.key), profiles)
