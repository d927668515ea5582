"""Items that look like another one, by the hashes of their frames in media_index.

Two frames are near when both their pHash and, twice as loosely, their dHash differ in few bits. An
item is a duplicate when `MIN_SHARE` of its frames that are not flat are near frames of one other
item that ranks before it, and that looks like none itself: what an item is left out for is there.
So of a chain of items, each like the next, the second goes and later ones stay. Training items
rank before held-out ones, then the id decides: what is held out takes nothing from training.

Frames go, once for each band of bits, to the task of that band's value. There equal ones stand for
each other, and the others are compared with those of items that rank before theirs, in order,
until one is near: it alone is kept, so a frame votes for the first item that has one like it and
for no later one. Copies of one picture, equal or compressed again, cost a comparison and a row
each. A frame that is near none of the first `MAX_COMPARED` is compared with no more, and counted.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from rec.data.ledger import Ledger
from rec.data.media import MEDIA_INDEX
from rec.data.parquet import read_or_empty, read_table, write_table
from rec.data.split import Split
from rec.data.tables import Tables, shard_file
from rec.data.tasks import num_partitions, stream
from rec.features.hashes import band_keys, distances

MIN_SHARE = 0.5
MAX_COMPARED = 512  # frames of a band's value that others are compared with
DUPLICATES = pa.schema(
    [
        ("item_id", pa.string()),
        ("duplicate_of", pa.string()),
        ("num_near", pa.int64()),  # frames near one of the other item
        ("num_frames", pa.int64()),  # that are not flat
    ]
)
# items stand in these tables by `rank`: their id after a sign that sorts training items first
_FRAMES = pa.schema(
    [
        ("band", pa.int32()),
        ("key", pa.uint64()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("rank", pa.string()),
        ("num_frames", pa.int64()),
        ("phash", pa.uint64()),
        ("dhash", pa.uint64()),
    ]
)
_NEAR = pa.schema(
    [
        ("shard", pa.int32()),  # -1: the row only counts frames in num_frames (`_cut`)
        ("row", pa.int64()),
        ("rank", pa.string()),
        ("num_frames", pa.int64()),
        ("duplicate_of", pa.string()),
    ]
)
_ALIKE = pa.schema(
    [
        ("meet", pa.string()),  # of what looks like another item; of what another one looks like
        # null: the row only says that `meet` looks like another item; -1 as above
        ("shard", pa.int32()),
        ("rank", pa.string()),
        ("duplicate_of", pa.string()),
        ("num_near", pa.int64()),
        ("num_frames", pa.int64()),
    ]
)


def find_duplicates(
    tables_uri: str, tables: Tables, split: Split, max_distance: int, folder: str
) -> Ledger:
    """Write the duplicates among the items of each shard to a file for it below `folder`.

    The ledger says whether there were too many frames to compare all.

    Args:
        tables_uri: folder of `write_tables`.
        tables: its ledger.
        split: which items are held out.
        max_distance: bits in which the pHash of near frames differs at most.
        folder: of the files; a shard without duplicates has none.
    """

    def read(batch: pa.Table) -> pa.Table:
        shard = batch["item"].to_pylist()[0]
        uri = shard_file(tables_uri, "media_index", shard)
        index = read_or_empty(uri, MEDIA_INDEX, MEDIA_INDEX.names)
        items = read_table(shard_file(tables_uri, "items", shard), ["item_id", "published_at"])
        heldout = items.column("item_id").filter(pa.array(split.heldout(items)))
        return frames_by_band(index, heldout.combine_chunks(), max_distance)

    def compare(block: pa.Table) -> pa.Table:
        near, num_cut = first_near(_of(block, _FRAMES), max_distance)
        return pa.concat_tables([near, _cut(_NEAR, num_cut)])

    def write(block: pa.Table) -> pa.Table:
        rows = _of(block, _ALIKE)
        counted = pc.equal(rows.column("shard"), -1)
        num_cut = pc.sum(rows.filter(counted).column("num_frames")).as_py() or 0
        rows = rows.filter(pc.invert(counted))
        for shard in pc.unique(rows.column("shard")).to_pylist():
            own = rows.filter(pc.equal(rows.column("shard"), shard))
            write_table(shard_file(folder, "duplicates", shard), best_of(own))
        return pa.table({"cut": pa.array([num_cut], pa.int64())})

    shards = list(range(tables.num_shards))
    partitions = num_partitions(tables.num_shards)
    rows = ray.data.from_items(shards, override_num_blocks=len(shards))
    rows = rows.map_batches(read, batch_size=1, batch_format="pyarrow")
    for keys, step in (
        (["band", "key"], compare),
        (["rank"], lambda block: alike(_of(block, _NEAR))),
        (["meet"], lambda block: settled(_of(block, _ALIKE))),
        (["shard"], write),
    ):
        rows = rows.repartition(partitions, keys=keys)
        rows = rows.map_batches(step, batch_size=None, batch_format="pyarrow")
    num_cut = sum(pc.sum(batch.column("cut")).as_py() for batch in stream(rows))
    if not num_cut:
        return Ledger()
    what = (
        f"frames near none of the first {MAX_COMPARED} that share bits of their hash were compared "
        f"with no more, {num_cut} times: duplicates of later items may be left"
    )
    return Ledger(num_problems=1, problems=(what,))


def duplicate_ids(folder: str | None, shard: int) -> pa.Array:
    """Ids of the items of a shard that `find_duplicates` listed below `folder`; None: of none."""
    if folder is None:
        return pa.array([], pa.string())
    uri = shard_file(folder, "duplicates", shard)
    return read_or_empty(uri, DUPLICATES, ["item_id"]).column("item_id").combine_chunks()


def _of(block: pa.Table, schema: pa.Schema) -> pa.Table:
    """The block's rows; one without rows may lack its columns."""
    return block.select(schema.names).cast(schema) if block.num_rows else schema.empty_table()


def _cut(schema: pa.Schema, count: int) -> pa.Table:
    """A row that carries a count through the shuffles, where there is something to count."""
    said = {"shard": -1, "rank": "", "meet": "", "num_frames": count}
    rows = [{name: said.get(name) for name in schema.names}] if count else []
    return pa.Table.from_pylist(rows, schema=schema)


def frames_by_band(index: pa.Table, heldout: pa.Array, max_distance: int) -> pa.Table:
    """_FRAMES of the hashed frames in MEDIA_INDEX rows, each once for every band of bits.

    Args:
        index: rows of a shard.
        heldout: ids of its held-out items.
        max_distance: as above.
    """
    index = index.filter(pc.is_valid(index.column("phash")))
    index = index.filter(pc.is_valid(index.column("dhash")))
    owner = index.column("item_id").combine_chunks().dictionary_encode()
    code = owner.indices.to_numpy(zero_copy_only=False)
    count = np.bincount(code, minlength=len(owner.dictionary))[code]
    index = index.append_column("num_frames", pa.array(count, pa.int64()))
    late = pc.is_in(index.column("item_id"), value_set=heldout)
    rank = pc.binary_join_element_wise(pc.if_else(late, "1", "0"), index.column("item_id"), "")
    index = index.append_column("rank", rank)
    keys = band_keys(index.column("phash").to_numpy(), max_distance)
    tables = [
        index.append_column("band", pa.repeat(pa.scalar(band, pa.int32()), index.num_rows))
        .append_column("key", pa.array(keys[:, band]))
        .select(_FRAMES.names)
        for band in range(keys.shape[1])
    ]
    return pa.concat_tables(tables).cast(_FRAMES)


def first_near(frames: pa.Table, max_distance: int) -> tuple[pa.Table, int]:
    """_NEAR of the frames that are near another item's: the one that ranks first.

    The number is that of frames that were not compared with all before them.

    Args:
        frames: all _FRAMES of some bands and keys.
        max_distance: as above.
    """
    if not frames.num_rows:
        return _NEAR.empty_table(), 0
    names = frames.column("rank").combine_chunks().unique().sort()
    owner = pc.index_in(frames.column("rank"), value_set=names).to_numpy().astype(np.uint64)
    columns = [frames.column(name).to_numpy() for name in ("band", "key", "phash", "dhash")]
    looks = np.stack([column.astype(np.uint64) for column in columns], axis=1)
    # of frames that look exactly the same in one band, the first item stands for all
    order = np.lexsort((owner, *looks.T[::-1]))
    new = np.ones(len(order), bool)
    new[1:] = (looks[order[1:]] != looks[order[:-1]]).any(1)
    heads, group = order[new], np.cumsum(new) - 1
    bucket = np.cumsum(np.append(True, (looks[heads[1:], :2] != looks[heads[:-1], :2]).any(1)))
    by_owner = np.lexsort((owner[heads], bucket))
    start = np.searchsorted(bucket, bucket)  # of its bucket; by_owner leaves buckets where they are
    heads = heads[by_owner]
    best = owner[heads].copy()
    place = np.arange(len(heads)) - start
    at = np.arange(len(heads))
    for offset in range(MAX_COMPARED):
        at = at[place[at] > offset]  # those with another one left to be compared with
        other = start[at] + offset
        near = distances(looks[heads[at], 2], looks[heads[other], 2]) <= max_distance
        near &= distances(looks[heads[at], 3], looks[heads[other], 3]) <= 2 * max_distance
        best[at[near]] = owner[heads[other[near]]]  # the first in order: no later one ranks before
        at = at[~near]
        if not len(at):
            break
    cut = at[place[at] > MAX_COMPARED]
    num_cut = int(np.bincount(group)[by_owner[cut]].sum())
    of_head = np.empty(len(heads), np.uint64)
    of_head[by_owner] = best
    first = np.empty(len(order), np.uint64)
    first[order] = of_head[group]
    found = np.flatnonzero(first < owner)
    rows = frames.take(pa.array(found)).append_column(
        "duplicate_of", names.take(pa.array(first[found]))
    )
    return rows.select(_NEAR.names).cast(_NEAR), num_cut


def alike(near: pa.Table) -> pa.Table:
    """_ALIKE of the items that look like another one, and a row that says so of each.

    Args:
        near: _NEAR rows; all rows of an item are there.
    """
    counted = pc.equal(near.column("shard"), -1)
    num_cut = pc.sum(near.filter(counted).column("num_frames")).as_py() or 0
    near = near.filter(pc.invert(counted))
    keys = ["shard", "rank", "num_frames"]
    frames = near.group_by([*keys, "row"]).aggregate([("duplicate_of", "min")])
    counts = frames.group_by([*keys, "duplicate_of_min"]).aggregate([("row", "count")])
    counts = counts.rename_columns([*keys, "duplicate_of", "num_near"])
    needed = pc.multiply(counts.column("num_frames").cast(pa.float64()), MIN_SHARE)
    counts = counts.filter(pc.greater_equal(counts.column("num_near"), needed))
    pairs = counts.append_column("meet", counts.column("duplicate_of"))
    ranks = pc.unique(counts.column("rank")).cast(pa.string())
    said = {"meet": ranks}
    columns = [said.get(field.name, pa.nulls(len(ranks), field.type)) for field in _ALIKE]
    pairs = pairs.select(_ALIKE.names).cast(_ALIKE)
    return pa.concat_tables([pairs, pa.table(columns, schema=_ALIKE), _cut(_ALIKE, num_cut)])


def settled(rows: pa.Table) -> pa.Table:
    """_ALIKE of the items that look like one that looks like none itself.

    Args:
        rows: _ALIKE; all rows that `meet` in an item are there.
    """
    is_pair = pc.is_valid(rows.column("shard"))
    pairs, said = rows.filter(is_pair), rows.filter(pc.invert(is_pair)).column("meet")
    return pairs.filter(pc.invert(pc.is_in(pairs.column("meet"), said.combine_chunks())))


def best_of(rows: pa.Table) -> pa.Table:
    """DUPLICATES of settled _ALIKE rows: of each item the one that most frames are near."""
    keys = [("rank", "ascending"), ("num_near", "descending"), ("duplicate_of", "ascending")]
    rows = rows.sort_by(keys)
    ranks = rows.column("rank").to_numpy(zero_copy_only=False).astype(str)
    rows = rows.take(pa.array(np.unique(ranks, return_index=True)[1]))
    plain = [pc.utf8_slice_codeunits(rows.column(x), 1) for x in ("rank", "duplicate_of")]
    columns = [*plain, rows.column("num_near"), rows.column("num_frames")]
    return pa.table(columns, schema=DUPLICATES).sort_by("item_id")
