"""Which rows of a shard fit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Fit(NamedTuple):
    """The rows that may be found."""

    bits: np.ndarray  # a bit a row, lowest first
    num_rows: int
    per_list: np.ndarray  # (lists,) how many of them each inverted list holds

    def less(self, rows: np.ndarray, lists: np.ndarray) -> Fit:
        """Without some rows, which may be there more than once, or not fit.

        Args:
            lists: (size,) the list of each row.
        """
        rows = np.unique(rows)
        byte, bit = rows >> 3, (1 << (rows & 7)).astype(np.uint8)
        held = (self.bits[byte] & bit) > 0
        rows, byte, bit = rows[held], byte[held], bit[held]
        bits = self.bits.copy()
        np.bitwise_and.at(bits, byte, ~bit)
        lost = np.bincount(lists[rows], minlength=len(self.per_list))
        return Fit(bits, self.num_rows - len(rows), self.per_list - lost)

    def bytes_with(self, key: str) -> int:
        return len(key) + self.bits.nbytes + self.per_list.nbytes
