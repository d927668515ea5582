"""The same items for everybody: the most frequent, of all time or of late."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from rec.batch import SequenceBatch
from rec.features.histories import BACK_OFF, item_counts, positions_from_end

_DAY_US = 86_400_000_000


class Popularity:
    """score(u, i) = number of events of item i."""

    def __init__(self, num_items: int) -> None:
        self._counts = np.zeros(num_items)

    def fit(self, sequences: Iterable[SequenceBatch]) -> Self:
        self._counts = np.zeros_like(self._counts)
        for batch in sequences:
            self._counts += item_counts(batch, len(self._counts))
        return self

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32, a view of one row."""
        return torch.from_numpy(self._counts.astype(np.float32)).expand(len(batch), -1)


class RecentPopularity:
    """score(u, i) = sum over events of item i of 2^(-age / half_life), + 1e-6 popularity.

    Args:
        num_items: N.
        half_life: in days or in events, as `by` says.
        by: "time": age is the time to the latest event of all, in days. "position": how many
            events the same user had afterwards, for data whose times only say an order; it
            favours what users come to late in their histories.
    """

    def __init__(
        self, num_items: int, *, half_life: float = 30.0, by: Literal["time", "position"] = "time"
    ) -> None:
        self.half_life, self.by = half_life, by
        self._recent, self._counts = np.zeros(num_items), np.zeros(num_items)
        self._latest: int | None = None  # microseconds; the moment that `_recent` is as of

    def fit(self, sequences: Iterable[SequenceBatch]) -> Self:
        self._recent, self._counts = np.zeros_like(self._recent), np.zeros_like(self._counts)
        self._latest = None
        for batch in sequences:
            if not len(batch.item_index):
                continue
            age = self._age(batch) if self.by == "time" else positions_from_end(batch)
            weights = np.exp2(-age / self.half_life)
            items, num_items = batch.item_index.numpy(), len(self._counts)
            self._recent += np.bincount(items, weights=weights, minlength=num_items)
            self._counts += item_counts(batch, num_items)
        return self

    def _age(self, batch: SequenceBatch) -> np.ndarray:
        """(L,) days to the latest event so far; what was counted before ages along."""
        times = batch.times.numpy()
        before = int(times.max()) if self._latest is None else self._latest
        self._latest = max(before, int(times.max()))
        self._recent *= np.exp2(-(self._latest - before) / _DAY_US / self.half_life)
        return (self._latest - times) / _DAY_US

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32, a view of one row."""
        total = self._recent + BACK_OFF * self._counts
        return torch.from_numpy(total.astype(np.float32)).expand(len(batch), -1)
