"""Labels that nothing about their item speaks for are left out (`rec.features.evidence`).

Two aggregations over the files of pairs and words, both of counts alone: how many training items
have each word and each label, then each (label, word). The first is held by the driver, the most
frequent `MAX_WORDS` and `MAX_LABELS` of them; the second goes from tasks to files. A label on a
third of all items has as many (label, word) counts as there are words, whatever its items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data.aggregate import Sum

from rec.artifacts import join
from rec.data.ledger import Ledger
from rec.data.pairs import HEARD, PAIRS, Pairs
from rec.data.parquet import read_table, write_table
from rec.data.tasks import map_shards, stream
from rec.features.evidence import Profiles, evidence, worth_keeping

MAX_LABELS = 200_000
MAX_WORDS = 500_000
_MIN_ITEMS = 2  # a word or label of one item can speak for no other
_PAIRS_A_CHUNK = 20_000  # with up to some 100 words each
_COUNTS = pa.schema([("kind", pa.string()), ("key", pa.string()), ("num_items", pa.int64())])
_TOGETHER = pa.schema(
    [("label_index", pa.int64()), ("word_index", pa.int64()), ("num_items", pa.int64())]
)
_NOTHING = "label that goes with no words"
_ALONE = "word of comments that texts of their items do not share"
_UNFIT = "label that its item's words do not speak for"


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
    folder = join(work_uri, "cleaning")
    num_items = _count(pairs, folder)
    profiles = _count_together(pairs, folder, num_items)

    def work(index: int) -> dict[str, object]:
        model = read_profiles(folder, profiles, num_items)
        rows = read_table(pairs.files[index])
        kept, dropped = clean(rows, read_table(pairs.words[index]), model, min_evidence)
        write_table(join(folder, f"pairs-{index:05d}.parquet"), kept)
        return {"rows_in": rows.num_rows, "rows_out": kept.num_rows, "dropped": dropped}

    ledger = Ledger()
    for found in map_shards(work, range(len(pairs.files))):
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


class Incidence(NamedTuple):
    """What words an item with a label has, for some pairs: n (pair, word) combinations."""

    pair: np.ndarray  # (n,) row among the pairs
    label: np.ndarray  # (n,) label index
    word: np.ndarray  # (n,) word index


def incidences(
    pairs: pa.Table, words: pa.Table, labels: pa.Array, vocabulary: pa.Array
) -> Iterator[Incidence]:
    """All combinations of pairs and their items' words, some 20,000 pairs at a time.

    Pairs and words whose label or word is not among the given ones are passed over.
    """
    ids = pc.unique(pairs.column("item_id").combine_chunks())
    word = pc.index_in(words.column("word"), value_set=vocabulary)
    owner = pc.index_in(words.column("item_id"), value_set=ids)
    known = pc.and_(pc.is_valid(word), pc.is_valid(owner))
    owners = owner.filter(known).to_numpy().astype(np.int64)
    order = np.argsort(owners, kind="stable")
    word_index = word.filter(known).to_numpy().astype(np.int64)[order]
    count = np.bincount(owners, minlength=len(ids))
    first = np.cumsum(count) - count
    label = pc.index_in(pairs.column("label"), value_set=labels)
    rows = np.flatnonzero(np.asarray(pc.is_valid(label)))
    label_index = label.take(pa.array(rows)).to_numpy().astype(np.int64)
    item = pc.index_in(pairs.column("item_id"), value_set=ids).to_numpy().astype(np.int64)[rows]
    for start in range(0, len(rows), _PAIRS_A_CHUNK):
        part = slice(start, start + _PAIRS_A_CHUNK)
        size = count[item[part]]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        at = np.repeat(first[item[part]], size) + within
        yield Incidence(
            np.repeat(rows[part], size),
            np.repeat(label_index[part], size),
            word_index[at],
        )


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
        kept = worth_keeping(num_items, words.num_items[word], labels.num_items[label], both)
        kept |= np.isin(label * len(words.key) + word, own_words(labels.key, words.key))
        # named by what is in it, so that a repeated task writes the same file
        name = f"together-{label.min() if len(label) else 'none'}.parquet"
        write_table(join(folder, name), rows.filter(pa.array(kept)).rename_columns(_TOGETHER.names))
        return pa.table({"file": pa.array([name], pa.string())})

    counted = _numbers(pairs).map_batches(count, batch_size=1, batch_format="pyarrow")
    by_label = counted.repartition(len(pairs.files), keys=["label_index"])
    written = stream(by_label.map_batches(write, batch_size=None, batch_format="pyarrow"))
    return sorted({name for batch in written for name in batch.column("file").to_pylist()})


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


def own_words(labels: pa.Array, vocabulary: pa.Array) -> np.ndarray:
    """Ascending label * W + word of the words a label is made of, in texts and as people say."""
    words = pc.split_pattern(labels, " ")
    spelled = pc.list_flatten(words)
    heard = pc.binary_join_element_wise(HEARD, spelled, "")
    label = pa.concat_arrays([pc.list_parent_indices(words)] * 2)
    word = pc.index_in(pa.concat_arrays([spelled, heard]), value_set=vocabulary)
    known = pc.is_valid(word)
    label, word = (x.filter(known).to_numpy().astype(np.int64) for x in (label, word))
    return np.unique(label * len(vocabulary) + word)


class Model(NamedTuple):
    """What labels are judged by."""

    labels: pa.Array
    words: pa.Array
    own: np.ndarray  # of own_words()
    profiles: Profiles


def read_profiles(folder: str, files: list[str], num_items: int) -> Model:
    """The counts that were written to `folder`."""
    labels, words = _terms(folder, "label"), _terms(folder, "word")
    together = pa.concat_tables(
        [_TOGETHER.empty_table(), *(read_table(join(folder, name)) for name in files)]
    )
    label, word, both = (column.to_numpy() for column in together.columns)
    pair = label * len(words.key) + word
    order = np.argsort(pair)
    profiles = Profiles(num_items, words.num_items, labels.num_items, pair[order], both[order])
    return Model(labels.key, words.key, own_words(labels.key, words.key), profiles)


def clean(
    pairs: pa.Table, words: pa.Table, model: Model, min_evidence: float
) -> tuple[pa.Table, dict[str, int]]:
    """The rows of PAIRS that stay, and how many do not, by reason.

    Args:
        pairs: rows of PAIRS.
        words: EVIDENCE of the same items.
        model: counts.
        min_evidence: in nats.
    """
    total = np.zeros(pairs.num_rows)
    judged = np.zeros(pairs.num_rows, bool)
    training = ~np.asarray(pairs.column("heldout"))
    tagged = np.asarray(pairs.column("tagged"))
    in_text = ~np.asarray(pc.starts_with(model.words, HEARD))
    for part in incidences(pairs, words, model.labels, model.words):
        own = np.isin(part.label * len(model.words) + part.word, model.own)
        # words come in phrases: of what comments say the item's text alone is the judge
        by_tag = tagged[part.pair]
        said = own & by_tag
        usable = by_tag | in_text[part.word]
        value = evidence(model.profiles, part.label, part.word, said, training[part.pair])
        total += np.bincount(part.pair, value * usable, minlength=len(total))
        judged[part.pair] = True
    known = pairs.column("label")
    shared = model.labels.filter(pa.array(_shared(model, in_text, min_evidence)))
    open_to_doubt = ~np.asarray(pairs.column("clicked"))
    alone = open_to_doubt & ~tagged & ~np.asarray(pc.is_in(known, value_set=shared))
    unfit = open_to_doubt & judged & ~alone & (total < min_evidence)
    with_words = np.zeros(len(model.labels), bool)
    with_words[model.profiles.pair // max(len(model.words), 1)] = True
    speaking = model.labels.filter(pa.array(with_words))
    empty = unfit & ~np.asarray(pc.is_in(known, value_set=speaking))
    dropped = {
        _NOTHING: int(empty.sum()),
        _UNFIT: int((unfit & ~empty).sum()),
        _ALONE: int(alone.sum()),
    }
    return pairs.filter(pa.array(~unfit & ~alone)).select(PAIRS.names), dropped


def _shared(model: Model, in_text: np.ndarray, min_evidence: float) -> np.ndarray:
    """(T,) bool: labels that people say of items whose texts say them too, more than others'.

    Phrases like "this made my day" are said of anything; a key term where texts have it.
    """
    label, word = np.divmod(model.own, max(len(model.words), 1))
    label, word = label[in_text[word]], word[in_text[word]]
    none = np.zeros(len(label), bool)
    value = evidence(model.profiles, label, word, none, none)
    shared = np.zeros(len(model.labels), bool)
    shared[label[value >= min_evidence]] = True
    return shared
