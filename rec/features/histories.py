"""Batches of histories as sparse matrices: what the baselines count.

U users, N items. An event counts as one whatever its weight: a baseline predicts what comes next,
not how much it will be liked.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from rec.batch import SequenceBatch

Floats = NDArray[np.floating]
Index = NDArray[np.int64]
BACK_OFF = 1e-6  # weight of popularity, which only orders what a baseline leaves equal
BLOCK_VALUES = 1 << 24  # of a dense block that is held at a time: 64 MiB of float32


def positions_from_end(batch: SequenceBatch) -> Index:
    """(L,) 0 for a user's latest event, 1 for the one before, and so on."""
    lengths = batch.lengths.numpy()
    return np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(batch.item_index))


def item_counts(batch: SequenceBatch, num_items: int) -> Floats:
    """(N,) events of each item."""
    return np.bincount(batch.item_index.numpy(), minlength=num_items).astype(np.float64)


def last_items(batch: SequenceBatch) -> Index:
    """(U,) each user's latest item, -1 for a user without events."""
    last = np.cumsum(batch.lengths.numpy()) - 1
    has_any = batch.lengths.numpy() > 0
    found = np.full(len(batch), -1, np.int64)
    found[has_any] = batch.item_index.numpy()[last[has_any]]
    return found


def seen_matrix(batch: SequenceBatch, num_items: int) -> sparse.csr_array:
    """(U, N) float32, 1 where the user has an event with the item."""
    matrix = recency_matrix(batch, num_items)
    matrix.data[:] = 1
    return matrix


def recency_matrix(
    batch: SequenceBatch, num_items: int, half_life: float = np.inf
) -> sparse.csr_array:
    """(U, N) float32: the sum over the user's events with the item of 2^(-position / half_life),
    counted from the user's latest event (0)."""
    weights = np.exp2(-positions_from_end(batch) / half_life).astype(np.float32)
    cells = (batch.users().numpy(), batch.item_index.numpy())
    return sparse.csr_array((weights, cells), shape=(len(batch), num_items))


def transitions(batch: SequenceBatch, num_items: int) -> sparse.csr_array:
    """(N, N) float32: how often item j directly follows item i in a history."""
    items, users = batch.item_index.numpy(), batch.users().numpy()
    same = users[1:] == users[:-1]
    cells = (items[:-1][same], items[1:][same])
    ones = np.ones(int(same.sum()), np.float32)
    return sparse.csr_array((ones, cells), shape=(num_items, num_items))


def all_seen(sequences: Iterable[SequenceBatch], num_items: int) -> sparse.csr_array:
    """`seen_matrix` of all batches, one below the other: 8 bytes an event."""
    parts = [seen_matrix(batch, num_items) for batch in sequences]
    if not parts:
        return sparse.csr_array((0, num_items), dtype=np.float32)
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def largest(block: Floats, k: int) -> sparse.csr_array:
    """(R, N) the k largest positive values of each row of a dense block, the rest 0."""
    k = min(k, block.shape[1])
    columns = np.sort(np.argpartition(-block, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(block, columns, axis=1)
    keep = values > 0
    indptr = np.concatenate([[0], np.cumsum(keep.sum(axis=1))])
    return sparse.csr_array((values[keep], columns[keep], indptr), shape=block.shape)


def blocks(num_rows: int, num_columns: int) -> Iterable[tuple[int, int]]:
    """Ranges of rows of which a dense block holds at most `BLOCK_VALUES`."""
    step = max(1, BLOCK_VALUES // max(1, num_columns))
    return ((start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def as_scores(values: sparse.csr_array | Floats, back_off: Floats) -> torch.Tensor:
    """(U, N) float32 `values` + `back_off` (N,), which orders what the values leave equal: all
    items of a user without history."""
    dense = values.toarray() if isinstance(values, sparse.csr_array) else values
    scores = np.asarray(dense, dtype=np.float32)
    scores += back_off.astype(np.float32)
    return torch.from_numpy(scores)


def small_popularity(counts: Floats) -> Floats:
    """(N,) BACK_OFF for the most frequent item, others in proportion: too little to turn two
    similarities round that differ by more than it."""
    return BACK_OFF * counts / max(1.0, counts.max(initial=0))
