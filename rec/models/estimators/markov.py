"""What follows the latest item: a first-order Markov chain over items."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
from scipy import sparse
from torch import Tensor

from rec.batch import SequenceBatch
from rec.features.histories import BACK_OFF, as_scores, item_counts, last_items, transitions


class Markov:
    """score(u, j) = how often j directly followed u's latest item, + 1e-6 popularity of j, or less
    where the most popular item would have more than half a transition of it.

    A user without history gets popularity. Memory: 8 bytes for each distinct transition.
    """

    def __init__(self, num_items: int) -> None:
        self._counts = np.zeros(num_items)
        self._follows = sparse.csr_array((num_items, num_items), dtype=np.float32)

    def fit(self, sequences: Iterable[SequenceBatch]) -> Self:
        self._counts = np.zeros_like(self._counts)
        self._follows = sparse.csr_array(self._follows.shape, dtype=np.float32)
        for batch in sequences:
            self._counts += item_counts(batch, len(self._counts))
            self._follows = self._follows + transitions(batch, len(self._counts))
        return self

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32."""
        last = last_items(batch)
        has_any = np.flatnonzero(last >= 0)
        cells = (np.ones(len(has_any), np.float32), (has_any, last[has_any]))
        picked = sparse.csr_array(cells, shape=(len(batch), len(self._counts)))
        rate = min(BACK_OFF, 0.5 / max(1.0, self._counts.max(initial=0)))
        return as_scores(sparse.csr_array(picked @ self._follows), rate * self._counts)
