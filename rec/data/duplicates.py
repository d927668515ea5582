"""Items that look like another one, by the hashes of their frames in media_index.

Two frames are near when both their pHash and, twice as loosely, their dHash differ in few bits. An
item is a duplicate when `MIN_SHARE` of its frames that are not flat are near frames of one other
item whose id sorts before its own. Frames go, once for each band of bits, to the task of that
band's value, equal ones are compared once, and each keeps only the first item it is near: a
picture that is on a million items costs a row each.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from rec.data.ingest import Tables, shard_file
from rec.data.media import MEDIA_INDEX
from rec.data.pairs import num_partitions
from rec.data.parquet import read_or_empty, write_table
from rec.data.tasks import stream
from rec.features.hashes import band_keys, distances, partners

MIN_SHARE = 0.5
DUPLICATES = pa.schema(
    [
        ("item_id", pa.string()),
        ("duplicate_of", pa.string()),
        ("num_near", pa.int64()),  # frames near one of the other item
        ("num_frames", pa.int64()),  # that are not flat
    ]
)
_FRAMES = pa.schema(
    [
        ("band", pa.int32()),
        ("key", pa.uint64()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("item_id", pa.string()),
        ("num_frames", pa.int64()),
        ("phash", pa.uint64()),
        ("dhash", pa.uint64()),
    ]
)
_NEAR = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("item_id", pa.string()),
        ("num_frames", pa.int64()),
        ("duplicate_of", pa.string()),
    ]
)


def find_duplicates(tables_uri: str, tables: Tables, max_distance: int, folder: str) -> None:
    """Write the duplicates among the items of each shard to a file for it below `folder`.

    Args:
        tables_uri: folder of `write_tables`.
        tables: its ledger.
        max_distance: bits in which the pHash of near frames differs at most.
        folder: of the files; a shard without duplicates has none.
    """

    def read(batch: pa.Table) -> pa.Table:
        uri = shard_file(tables_uri, "media_index", batch["item"].to_pylist()[0])
        return frames_by_band(read_or_empty(uri, MEDIA_INDEX, MEDIA_INDEX.names), max_distance)

    def compare(block: pa.Table) -> pa.Table:
        if not block.num_rows:  # such a block may lack its columns
            return _NEAR.empty_table()
        return first_near(block.select(_FRAMES.names).cast(_FRAMES), max_distance)

    def write(block: pa.Table) -> pa.Table:
        for shard in pc.unique(block.column("shard")).to_pylist() if block.num_rows else []:
            rows = block.filter(pc.equal(block.column("shard"), shard))
            write_table(shard_file(folder, "duplicates", shard), duplicates(rows))
        return pa.table({"rows": pa.array([block.num_rows], pa.int64())})

    shards = list(range(tables.num_shards))
    partitions = num_partitions(tables.num_shards)
    frames = ray.data.from_items(shards, override_num_blocks=len(shards))
    frames = frames.map_batches(read, batch_size=1, batch_format="pyarrow")
    by_band = frames.repartition(partitions, keys=["band", "key"])
    near = by_band.map_batches(compare, batch_size=None, batch_format="pyarrow")
    by_shard = near.repartition(partitions, keys=["shard"])
    for _ in stream(by_shard.map_batches(write, batch_size=None, batch_format="pyarrow")):
        continue  # the files are the result


def frames_by_band(index: pa.Table, max_distance: int) -> pa.Table:
    """_FRAMES of the hashed frames in MEDIA_INDEX rows, each once for every band of bits."""
    index = index.filter(pc.is_valid(index.column("phash")))
    index = index.filter(pc.is_valid(index.column("dhash")))
    owner = index.column("item_id").combine_chunks().dictionary_encode()
    code = owner.indices.to_numpy(zero_copy_only=False)
    count = np.bincount(code, minlength=len(owner.dictionary))[code]
    index = index.append_column("num_frames", pa.array(count, pa.int64()))
    keys = band_keys(index.column("phash").to_numpy(), max_distance)
    tables = [
        index.append_column("band", pa.repeat(pa.scalar(band, pa.int32()), index.num_rows))
        .append_column("key", pa.array(keys[:, band]))
        .select(_FRAMES.names)
        for band in range(keys.shape[1])
    ]
    return pa.concat_tables(tables).cast(_FRAMES)


def first_near(frames: pa.Table, max_distance: int) -> pa.Table:
    """_NEAR of the frames that are near another item's: the one whose id sorts first.

    Args:
        frames: all _FRAMES of some bands and keys.
        max_distance: as above.
    """
    if not frames.num_rows:
        return _NEAR.empty_table()
    names = frames.column("item_id").combine_chunks().unique().sort()
    owner = pc.index_in(frames.column("item_id"), value_set=names).to_numpy().astype(np.uint64)
    columns = [frames.column(name).to_numpy() for name in ("band", "key", "phash", "dhash")]
    looks = np.stack([column.astype(np.uint64) for column in columns], axis=1)
    # of frames that look exactly the same in one band, the first item stands for all
    order = np.lexsort((owner, *looks.T[::-1]))
    new = np.ones(len(order), bool)
    new[1:] = (looks[order[1:]] != looks[order[:-1]]).any(1)
    heads, group = order[new], np.cumsum(new) - 1
    bucket = np.cumsum(np.append(True, (looks[heads[1:], :2] != looks[heads[:-1], :2]).any(1)))
    best = owner[heads].copy()
    for left, right in partners(bucket):
        a, b = heads[left], heads[right]
        near = distances(looks[a, 2], looks[b, 2]) <= max_distance
        near &= distances(looks[a, 3], looks[b, 3]) <= 2 * max_distance
        np.minimum.at(best, left[near], owner[b[near]])
        np.minimum.at(best, right[near], owner[a[near]])
    first = np.empty(len(order), np.uint64)
    first[order] = best[group]
    found = np.flatnonzero(first < owner)
    rows = frames.take(pa.array(found)).append_column(
        "duplicate_of", names.take(pa.array(first[found]))
    )
    return rows.select(_NEAR.names).cast(_NEAR)


def duplicates(near: pa.Table) -> pa.Table:
    """DUPLICATES among the items of _NEAR rows; all rows of an item are there."""
    frames = near.group_by(["item_id", "num_frames", "row"]).aggregate([("duplicate_of", "min")])
    counts = frames.group_by(["item_id", "num_frames", "duplicate_of_min"]).aggregate(
        [("row", "count")]
    )
    needed = pc.multiply(counts.column("num_frames").cast(pa.float64()), MIN_SHARE)
    counts = counts.filter(pc.greater_equal(counts.column("row_count"), needed))
    keys = [
        ("item_id", "ascending"),
        ("row_count", "descending"),
        ("duplicate_of_min", "ascending"),
    ]
    counts = counts.sort_by(keys)
    ids = counts.column("item_id").combine_chunks()
    first = np.unique(ids.to_numpy(zero_copy_only=False).astype(str), return_index=True)[1]
    names = ["item_id", "duplicate_of_min", "row_count", "num_frames"]
    return counts.take(pa.array(first)).select(names).rename_columns(DUPLICATES.names)
