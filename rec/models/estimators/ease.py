"""EASE: a linear item-to-item model in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
from scipy import sparse
from scipy.linalg import get_lapack_funcs
from torch import Tensor

from rec.batch import SequenceBatch
from rec.features.histories import all_seen, as_scores, blocks, seen_matrix, small_popularity

MAX_ITEMS = 50_000


class EASE:
    """scores = X B, with B the minimum of |X - X B|^2 + strength |B|^2 of zero diagonal: off it,
    B_ij = -P_ij / P_jj with P = (X'X + strength I)^-1 (Steck, WWW 2019), + a trace of popularity.

    X is 1 where a user has an event with an item, for scoring as for fitting.

    Memory: one N x N float32 matrix, inverted in place (20,000 items: 1.6 GB). Time: N^3.

    Args:
        num_items: N, at most MAX_ITEMS.
        strength: lambda, above 0.

    Raises:
        ValueError: there are more items than that.
    """

    def __init__(self, num_items: int, *, strength: float = 500.0) -> None:
        if num_items > MAX_ITEMS:
            raise ValueError(
                f"{num_items} items, EASE takes at most {MAX_ITEMS}: its matrix would need "
                f"{4e-9 * num_items**2:,.0f} GB"
            )
        self.num_items, self.strength = num_items, strength
        self._counts = np.zeros(num_items)
        self._weights = np.zeros((0, 0), np.float32)

    def fit(self, sequences: Iterable[SequenceBatch]) -> Self:
        seen = all_seen(sequences, self.num_items)
        self._counts = np.asarray(seen.sum(axis=0), dtype=np.float64).ravel()
        by_item = sparse.csr_array(seen.T)
        matrix = np.empty((self.num_items, self.num_items), np.float32, order="F")
        for start, stop in blocks(self.num_items, self.num_items):
            matrix[start:stop] = (by_item[start:stop] @ seen).toarray()
        diagonal = np.arange(self.num_items)
        matrix[diagonal, diagonal] += self.strength
        self._weights = _inverted(matrix)
        own = self._weights[diagonal, diagonal].copy()
        self._weights /= -own
        self._weights[diagonal, diagonal] = 0
        return self

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32."""
        return as_scores(
            seen_matrix(batch, self.num_items) @ self._weights, small_popularity(self._counts)
        )


def _inverted(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a symmetric positive matrix in Fortran order, in its memory."""
    potrf, potri = get_lapack_funcs(("potrf", "potri"), (matrix,))
    factor, failed = potrf(matrix, lower=1, overwrite_a=1)
    if failed:
        raise ValueError("X'X + strength I is not positive in float32: give a larger strength")
    inverse, _ = potri(factor, lower=1, overwrite_c=1)
    for row in range(len(inverse)):  # only the lower half was written
        inverse[row, row + 1 :] = inverse[row + 1 :, row]
    return inverse
