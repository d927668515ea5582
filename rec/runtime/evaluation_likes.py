"""Who liked what, from the interactions of a run, streamed and bounded.

Behaviour is truth for the figures and never an input of a model of content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from rec.runtime.evaluation_data import open_table

_MAX_LIKES = 20_000_000  # user-item pairs held; beyond, users are sampled


@dataclass(frozen=True)
class Likes:
    """Who liked which evaluated item. `matrix` is truth; `before` is what could be known."""

    matrix: sparse.csr_array  # (U, N) 1 where user u likes item n, at any time
    before: sparse.csr_array  # the same, of events before the cut-off only
    notes: list[str]


def read_likes(
    run: str,
    item_ids: Sequence[str],
    cutoff: datetime | None,
    *,
    like_rating: float,
    like_dwell_ms: int,
    max_likes: int = _MAX_LIKES,
) -> Likes | None:
    """Likes of these items, None where the run has no interactions.

    A rating is a like from `like_rating` up; a click or watch with a dwell time, from
    `like_dwell_ms` up, and without one always; so is a buy; an impression never. Beyond
    `max_likes` pairs users are sampled by a hash of their ids, halving until they fit, so that
    the order of shards does not matter.
    """
    data = open_table(run, "interactions")
    if data is None:
        return None
    wanted = pa.array(item_ids, pa.string())
    pairs, shift = _Pairs.empty(), 0
    columns = ["user_id", "item_id", "event", "value", "dwell_ms", "event_time"]
    waiting: list[_Pairs] = []
    for batch in data.to_batches(columns=columns, batch_size=1 << 16):
        known = pc.is_in(batch.column("item_id"), value_set=wanted)
        liked = batch.filter(pc.and_(known, _liked(batch, like_rating, like_dwell_ms)))
        waiting.append(_pairs(liked, wanted, cutoff).of_users(shift))
        while len(pairs.users) + sum(len(w.users) for w in waiting) > max_likes:
            shift += 1
            pairs, waiting = _joined([pairs, *waiting]).of_users(shift), []
    pairs = _joined([pairs, *waiting])
    users, rows = np.unique(pairs.users, return_inverse=True)
    notes = [f"likes of 1 in {1 << shift} users, sampled by a hash of their ids"] if shift else []
    shape, early = (len(users), len(item_ids)), pairs.early
    return Likes(
        _binary(rows, pairs.items, shape), _binary(rows[early], pairs.items[early], shape), notes
    )


@dataclass(frozen=True)
class _Pairs:
    users: NDArray[np.uint64]  # hashes
    items: NDArray[np.int64]  # positions
    early: NDArray[np.bool_]  # before the cut-off

    @classmethod
    def empty(cls) -> _Pairs:
        return cls(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, bool))

    def of_users(self, shift: int) -> _Pairs:
        """The pairs of one in 2^shift users."""
        if not shift:
            return self
        keep = self.users >> np.uint64(64 - shift) == 0
        return _Pairs(self.users[keep], self.items[keep], self.early[keep])


def _joined(parts: Sequence[_Pairs]) -> _Pairs:
    return _Pairs(
        np.concatenate([p.users for p in parts]),
        np.concatenate([p.items for p in parts]),
        np.concatenate([p.early for p in parts]),
    )


def _pairs(liked: pa.RecordBatch, wanted: pa.Array, cutoff: datetime | None) -> _Pairs:
    if not liked.num_rows:
        return _Pairs.empty()
    users = pc.dictionary_encode(liked.column("user_id"))
    hashes = np.array([_hash(u) for u in users.dictionary.to_pylist()], np.uint64)
    items = pc.index_in(liked.column("item_id"), value_set=wanted)
    early = np.ones(liked.num_rows, bool)
    if cutoff is not None:
        limit = pa.scalar(cutoff, liked.schema.field("event_time").type)
        early = pc.less(liked.column("event_time"), limit).to_numpy(zero_copy_only=False)
    return _Pairs(hashes[users.indices.to_numpy()], items.to_numpy().astype(np.int64), early)


def _hash(user_id: str) -> int:
    return int.from_bytes(blake2b(user_id.encode(), digest_size=8).digest(), "big")


def _liked(batch: pa.RecordBatch, like_rating: float, like_dwell_ms: int) -> pa.Array:
    event = batch.column("event")
    rated = pc.fill_null(pc.greater_equal(batch.column("value"), like_rating), False)
    dwelt = pc.fill_null(pc.greater_equal(batch.column("dwell_ms"), like_dwell_ms), True)
    liked = pc.if_else(pc.equal(event, "rating"), rated, pc.or_(dwelt, pc.equal(event, "buy")))
    return pc.and_(liked, pc.not_equal(event, "impression"))


def _binary(
    rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]
) -> sparse.csr_array:
    matrix = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    matrix.data[:] = 1  # an item liked twice by one user is one like
    return matrix
