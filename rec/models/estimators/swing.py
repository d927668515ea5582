"""Swing: two items are alike where pairs of users share both and little else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
from scipy import sparse
from torch import Tensor

from rec.batch import SequenceBatch
from rec.features.histories import (
    Floats,
    all_seen,
    as_scores,
    blocks,
    largest,
    recency_matrix,
    small_popularity,
)


class Swing:
    """score(u, j) = sum over events i of u's history of 2^(-position / half_life) s(i, j),
    + a trace of popularity, with s of Yang et al. 2020 ("Large Scale Product Graph Construction for
    Recommendation in E-commerce", section 3.2):

        s(i, j) = sum over pairs of users {v, w} who have both i and j of
                  1 / sqrt(|I_v|) * 1 / sqrt(|I_w|) / (alpha + |I_v and I_w in common|)

    Departure: of an item with more than `max_users` users a sample of so many is taken (drawn
    from `seed` and the item), which bounds the pairs; s of such an item is then lower by the same
    factor for all j in expectation, so each item's row is scaled back by it.

    Memory: 8 bytes an event twice while fitting, 8 bytes * num_neighbours an item afterwards. Time:
    for each item, max_users^2 times the distinct items of those users.

    Args:
        num_items: N.
        alpha: smoothing, above 0.
        num_neighbours: kept of each item.
        max_users: sample of an item's users.
        half_life: as in item-CF; may be changed after fitting.
        seed: of the samples.
    """

    def __init__(
        self,
        num_items: int,
        *,
        alpha: float = 1.0,
        num_neighbours: int = 200,
        max_users: int = 200,
        half_life: float = np.inf,
        seed: int = 0,
    ) -> None:
        self.num_items, self.alpha, self.num_neighbours = num_items, alpha, num_neighbours
        self.max_users, self.half_life, self.seed = max_users, half_life, seed
        self._counts = np.zeros(num_items)
        self._similar = sparse.csr_array((num_items, num_items), dtype=np.float32)

    def fit(self, sequences: Iterable[SequenceBatch]) -> Self:
        seen = all_seen(sequences, self.num_items)
        self._counts = np.asarray(seen.sum(axis=0), dtype=np.float64).ravel()
        users_of = sparse.csr_array(seen.T)
        parts: list[sparse.csr_array] = []
        for start, stop in blocks(self.num_items, self.num_items):
            rows = np.zeros((stop - start, self.num_items), np.float32)
            for item in range(start, stop):
                users = users_of.indices[users_of.indptr[item] : users_of.indptr[item + 1]]
                if len(users) > 1:
                    self._fill(rows[item - start], item, users, seen)
            parts.append(largest(rows, self.num_neighbours))
        self._similar = sparse.csr_array(sparse.vstack(parts, format="csr"))
        return self

    def _fill(self, row: Floats, item: int, users: np.ndarray, seen: sparse.csr_array) -> None:
        """Write s(item, j) into `row` for every j."""
        factor = 1.0
        if len(users) > self.max_users:
            pairs = len(users) * (len(users) - 1)
            users = np.sort(
                np.random.default_rng([self.seed, item]).choice(users, self.max_users, False)
            )
            factor = pairs / (len(users) * (len(users) - 1))
        own = seen[users]
        columns, places = np.unique(own.indices, return_inverse=True)
        dense = np.zeros((len(users), len(columns)), np.float32)
        sizes = np.diff(own.indptr)
        dense[np.repeat(np.arange(len(users)), sizes), places] = 1
        weight = 1 / np.sqrt(sizes).astype(np.float32)
        pair = np.outer(weight, weight) / (np.float32(self.alpha) + dense @ dense.T)
        np.fill_diagonal(pair, 0)
        # each unordered pair is met twice
        row[columns] = factor / 2 * np.einsum("uj,uj->j", dense, pair @ dense)
        row[item] = 0

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32."""
        history = recency_matrix(batch, self.num_items, self.half_life)
        return as_scores(sparse.csr_array(history @ self._similar), small_popularity(self._counts))
