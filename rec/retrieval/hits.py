"""What a search found."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rec.retrieval.index import Index


class Hits:
    """What was found, best first; where there are fewer than k the rest is row -1, score -inf.

    Args:
        rows: (B, k) int64; of `index` only, another version counts differently.
        scores: (B, k) float32.
        missing_shards: did not answer, or not in full, by the deadline.
    """

    # no dataclass: every search would take half a microsecond more
    __slots__ = ("__dict__", "index", "missing_shards", "rows", "scores")

    def __init__(
        self,
        rows: np.ndarray,
        scores: np.ndarray,
        index: Index,
        missing_shards: tuple[int, ...] = (),
    ) -> None:
        self.rows, self.scores, self.index = rows, scores, index
        self.missing_shards = missing_shards

    @property
    def partial(self) -> bool:
        return bool(self.missing_shards)

    @cached_property
    def ids(self) -> np.ndarray:
        """(B, k) object array of str, None where there is no hit."""
        return self.index.ids_at(self.rows)

    @cached_property
    def interests(self) -> np.ndarray:
        """(B, k) which of the item's vectors was hit (a region, say); -1 where there is no hit."""
        return self.index.interests(self.rows)
