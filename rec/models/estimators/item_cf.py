"""Items that the same users have: item-based collaborative filtering by cosine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
from scipy import sparse
from torch import Tensor

from rec.batch import SequenceBatch
from rec.features.histories import (
    all_seen,
    as_scores,
    blocks,
    largest,
    recency_matrix,
    small_popularity,
)


class ItemCF:
    """score(u, j) = sum over events i of u's history of 2^(-position / half_life) cos(i, j),
    + a trace of popularity.

    cos(i, j) = users with both / sqrt(users with i * users with j), of which each item keeps its
    `num_neighbours` largest (Sarwar et al. 2001; Deshpande and Karypis 2004).

    Memory: 8 bytes an event while fitting, 8 bytes * num_neighbours an item afterwards. Time: the
    sum over users of the square of their histories.

    Args:
        num_items: N.
        num_neighbours: kept of each item.
        half_life: events, counted from the latest, over which an event's weight halves; infinite
            for all alike. May be changed after fitting.
    """

    def __init__(
        self, num_items: int, *, num_neighbours: int = 200, half_life: float = np.inf
    ) -> None:
        self.num_items, self.num_neighbours, self.half_life = num_items, num_neighbours, half_life
        self._counts = np.zeros(num_items)
        self._similar = sparse.csr_array((num_items, num_items), dtype=np.float32)

    def fit(self, sequences: Iterable[SequenceBatch]) -> Self:
        seen = all_seen(sequences, self.num_items)
        self._counts = np.asarray(seen.sum(axis=0), dtype=np.float64).ravel()
        scale = (1 / np.sqrt(np.maximum(self._counts, 1))).astype(np.float32)
        by_item = sparse.csr_array(seen.T)
        parts: list[sparse.csr_array] = []
        for start, stop in blocks(self.num_items, self.num_items):
            cosine = (by_item[start:stop] @ seen).toarray()
            cosine *= scale[start:stop, None] * scale
            cosine[np.arange(stop - start), np.arange(start, stop)] = 0
            parts.append(largest(cosine, self.num_neighbours))
        self._similar = sparse.csr_array(sparse.vstack(parts, format="csr"))
        return self

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32."""
        history = recency_matrix(batch, self.num_items, self.half_life)
        return as_scores(sparse.csr_array(history @ self._similar), small_popularity(self._counts))
