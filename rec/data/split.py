"""Which items are trained on and which are held out, decided once, before anything is fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.config import Config
from rec.data.parquet import read_table
from rec.data.tables import shard_file
from rec.data.tasks import Summary, map_shards
from rec.schema import TIMESTAMP

_BINS = 1 << 16
_COARSE = 0.1  # of the items to hold out: more in one bin are told apart by a finer histogram


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

    It is found as the 1 - heldout_fraction quantile of published_at, from one histogram a shard and
    finer ones of the bin that it falls into while that holds many items: no shard's times reach the
    driver. Where more items than that were published last, at one time, all of these are held out;
    where these are more than half of all, times say too little and items are split by hash, as if
    they had none.
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

    ranges = [
        s["range"] for s in map_shards(extent, range(num_shards), stage="split") if s["range"]
    ]
    if not ranges:
        return Split(heldout_fraction=heldout_fraction)
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    below = num_timed = 0  # items before `low`, and in all
    while True:
        width = max(1, -(-(high - low + 1) // _BINS))  # microseconds
        counts = _histogram(times, num_shards, low, high, width)
        num_timed = num_timed or int(counts.sum())
        cumulative = below + np.cumsum(counts)
        reached = int(np.searchsorted(cumulative, (1.0 - heldout_fraction) * num_timed))
        start, many = low + reached * width, int(counts[reached])
        if width == 1 or many <= max(1, _COARSE * heldout_fraction * num_timed):
            break
        below, low, high = int(cumulative[reached]) - many, start, start + width - 1
    micros = start + width - 1
    if cumulative[reached] == num_timed:  # more than the fraction came last, all at one time
        if many > num_timed / 2:
            return Split(heldout_fraction=heldout_fraction)
        micros = start - 1
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return Split(heldout_fraction=heldout_fraction, cutoff=epoch + timedelta(microseconds=micros))


def _histogram(
    times: Callable[[int], np.ndarray], num_shards: int, low: int, high: int, width: int
) -> np.ndarray:
    """(_BINS,) how many of all shards' times from `low` to `high` lie in each bin of `width`."""

    def count(index: int) -> Summary:
        found = times(index)
        found = found[(found >= low) & (found <= high)]
        bins, counts = np.unique((found - low) // width, return_counts=True)
        return {"bins": bins.tolist(), "counts": counts.tolist()}

    total = np.zeros(_BINS, np.int64)
    for summary in map_shards(count, range(num_shards), stage="split"):
        np.add.at(total, summary["bins"], summary["counts"])
    return total
