"""Which items are trained on and which are held out, decided once, before anything is fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.config import Config
from rec.data.ingest import shard_file
from rec.data.parquet import read_table
from rec.data.tasks import Summary, map_shards
from rec.schema import TIMESTAMP

_BINS = 1 << 16


class Split(Config):
    """Items published after the cut-off are held out.

    Items without a time of publication, so all of them where nothing is timed, are held out by
    a stable hash of their id, `heldout_fraction` of them.
    """

    heldout_fraction: float
    cutoff: datetime | None = None

    def heldout(self, items: pa.Table) -> np.ndarray:
        """(n,) bool of rows with item_id and published_at."""
        hashed = stable_uniform(items.column("item_id").to_pylist(), "heldout")
        by_hash = hashed < self.heldout_fraction
        times = items.column("published_at")
        if self.cutoff is None:
            return by_hash
        later = pc.greater(times, pa.scalar(self.cutoff, TIMESTAMP)).fill_null(False)
        untimed = pc.is_null(times).to_numpy()
        return np.where(untimed, by_hash, later.to_numpy())

    def visible(self, times: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """(n,) bool: events that training may know of; those without a time count as old."""
        if self.cutoff is None:
            return np.ones(len(times), bool)
        early = pc.less_equal(times, pa.scalar(self.cutoff, TIMESTAMP))
        return np.asarray(early.fill_null(True))


def stable_uniform(ids: Sequence[str], salt: str) -> np.ndarray:
    """(n,) float64 in [0, 1) by id: the same on every machine and in every run."""
    key = salt.encode()
    digests = b"".join(
        hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in ids
    )
    return (np.frombuffer(digests, "<u8") >> np.uint64(11)) * 2.0**-53


def fit_split(
    tables_uri: str, num_shards: int, heldout_fraction: float, cutoff: datetime | None
) -> Split:
    """The split of the items at `tables_uri`, with the cut-off given or found.

    It is found as the 1 - heldout_fraction quantile of published_at, to 1/65536 of the range of
    times, from one histogram a shard: no shard's times reach the driver. Where more items than
    that were published last, at one time, all of these are held out; where all were, they are
    split by hash, as if they had no time.
    """
    if cutoff is not None:
        aware = cutoff if cutoff.tzinfo else cutoff.replace(tzinfo=UTC)
        return Split(heldout_fraction=heldout_fraction, cutoff=aware)

    def times(index: int) -> np.ndarray:
        column = read_table(shard_file(tables_uri, "items", index), ["published_at"]).column(0)
        return column.drop_null().cast(pa.int64()).to_numpy()

    def extent(index: int) -> Summary:
        found = times(index)
        return {"range": [int(found.min()), int(found.max())] if len(found) else None}

    ranges = [s["range"] for s in map_shards(extent, range(num_shards)) if s["range"]]
    if not ranges:
        return Split(heldout_fraction=heldout_fraction)
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    width = max(1, -(-(high - low) // _BINS))  # microseconds

    def histogram(index: int) -> Summary:
        bins, counts = np.unique((times(index) - low) // width, return_counts=True)
        return {"bins": bins.tolist(), "counts": counts.tolist()}

    total = np.zeros(_BINS + 1, np.int64)
    for summary in map_shards(histogram, range(num_shards)):
        np.add.at(total, summary["bins"], summary["counts"])
    cumulative = np.cumsum(total)
    reached = np.searchsorted(cumulative, (1.0 - heldout_fraction) * cumulative[-1])
    if cumulative[reached] == cumulative[-1]:  # more than the fraction came last, all at one time
        earlier = np.flatnonzero(total[:reached])
        if not len(earlier):  # a time that all items share tells nothing of them
            return Split(heldout_fraction=heldout_fraction)
        reached = earlier[-1]
    micros = low + (int(reached) + 1) * width - 1
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return Split(heldout_fraction=heldout_fraction, cutoff=epoch + timedelta(microseconds=micros))
