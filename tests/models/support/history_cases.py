"""Histories as lists of items, and the batches they make."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from rec.batch import SequenceBatch

NUM_ITEMS = 6


def batch_of(
    histories: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None = None
) -> SequenceBatch:
    """Histories without targets; times count up within a user unless given."""
    lengths = torch.tensor([len(h) for h in histories], dtype=torch.int64)
    items = torch.tensor([i for h in histories for i in h], dtype=torch.int64)
    at = [t for h in times or [range(len(h)) for h in histories] for t in h]
    return SequenceBatch(
        lengths=lengths,
        item_index=items,
        weights=torch.ones(len(items)),
        times=torch.tensor(at, dtype=torch.int64),
        target_mask=torch.zeros(len(items), dtype=torch.bool),
    )


def in_parts(histories: Sequence[Sequence[int]], size: int = 2) -> list[SequenceBatch]:
    """The same users over several batches."""
    return [batch_of(histories[i : i + size]) for i in range(0, len(histories), size)]


def popularity(histories: Sequence[Sequence[int]]) -> np.ndarray:
    counts = np.zeros(NUM_ITEMS)
    for history in histories:
        for item in history:
            counts[item] += 1
    return counts


def histories_of(min_size: int = 0) -> st.SearchStrategy[list[list[int]]]:
    one = st.lists(st.integers(0, NUM_ITEMS - 1), min_size=min_size, max_size=7)
    return st.lists(one, min_size=1, max_size=6)
