"""Frozen dataclasses of tensors that models take. Every tensor's first dimension is the batch.

Shape letters: B batch, T tokens, F frames, A audio patches, P labels, H and W picture size.
Masks are True where something is there.

`SequenceBatch` is the exception to the first dimension: its histories are laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class Batch:
    """What every batch can do; subclasses are frozen dataclasses of tensors, None where absent."""

    def _tensors(self) -> dict[str, Tensor]:
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return {name: value for name, value in pairs if value is not None}

    def __len__(self) -> int:
        return next(iter(self._tensors().values())).shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[type-var]

    def rows(self, start: int, stop: int) -> Self:
        """Rows start to stop, for micro-batches; tensors are views."""
        cut = {k: v[start:stop] for k, v in self._tensors().items()}
        return replace(self, **cut)  # type: ignore[type-var]

    def take(self, index: Sequence[int] | Tensor) -> Self:
        """The rows at these positions, in this order."""
        index = torch.as_tensor(index, dtype=torch.long)
        picked = {k: v[index.to(v.device)] for k, v in self._tensors().items()}
        return replace(self, **picked)  # type: ignore[type-var]


@dataclass(frozen=True)
class ContentBatch(Batch):
    """Items as a content encoder sees them; the second half is filled for training only.

    T, F and A are the longest in the batch and at least 1, so that an absent modality is a
    mask of False and never a missing tensor.
    """

    token_ids: Tensor  # (B, T) int64; in training the masked text
    token_mask: Tensor  # (B, T) bool; a row of False is an item without text
    frames: Tensor  # (B, F, 3, H, W) uint8 RGB
    frame_mask: Tensor  # (B, F) bool
    log_mel: Tensor  # (B, A, 96, 64) float32: A patches of 0.96 s, 64 mel bands
    audio_mask: Tensor  # (B, A) bool

    word_ids: Tensor | None = None  # (B, T) int64, -1 for special tokens and padding
    term_scores: Tensor | None = None  # (B, T) float32, -inf where a word is never masked
    label_ids: Tensor | None = None  # (B, P) int64
    label_weights: Tensor | None = None  # (B, P) float32, 0 where padded
    views: Tensor | None = None  # (B, 2, 3, H, W) float32, normalised; two augmented views
    view_mask: Tensor | None = None  # (B,) bool; False is an item without frames
    token_targets: Tensor | None = None  # (B, T) int64 original ids, -100 where not masked


@dataclass(frozen=True)
class SequenceBatch(Batch):
    """B users' histories, oldest event first, laid end to end: nothing is padded.

    L is the sum of the lengths. A model predicts each event that `target_mask` marks from the
    events of the same user before it, and from nothing else.
    """

    lengths: Tensor  # (B,) int64; 0 only without targets: of a user who was new
    item_index: Tensor  # (L,) int64, positions in the rows' items
    weights: Tensor  # (L,) float32, of the event
    times: Tensor  # (L,) int64, microseconds since 1970
    target_mask: Tensor  # (L,) bool; training: all but each user's first; held out: the targets

    input_index: Tensor | None = None  # (L,) int64, item_index as a masked model sees it

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def rows(self, start: int, stop: int) -> Self:
        """Histories start to stop; tensors are views."""
        first, count = self.lengths[:start].sum(), self.lengths[start:stop].sum()
        return self._cut(slice(start, stop), slice(int(first), int(first + count)))

    def take(self, index: Sequence[int] | Tensor) -> Self:
        """The histories at these positions, in this order."""
        index = torch.as_tensor(index, dtype=torch.long, device=self.lengths.device)
        first, lengths = self._starts()[index], self.lengths[index]
        within = torch.arange(int(lengths.sum()), device=index.device)
        within = within - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        return self._cut(index, first.repeat_interleave(lengths) + within)

    def latest(self, count: int | Tensor) -> Self:
        """The last `count` events of each history; one number for all or (B,) int64."""
        keep = torch.as_tensor(count, device=self.lengths.device).expand_as(self.lengths)
        keep = torch.minimum(keep, self.lengths)
        return self._only(self.positions() >= (self.lengths - keep)[self.users()], keep)

    def known(self) -> Self:
        """The events that are not to be predicted."""
        known = ~self.target_mask
        num = torch.zeros_like(self.lengths).index_add_(0, self.users(), known.long())
        return self._only(known, num)

    def mark(self, first: Tensor) -> Self:
        """The same histories with events from position `first` (B,) on as those to predict."""
        return replace(self, target_mask=self.positions() >= first[self.users()])

    def users(self) -> Tensor:
        """(L,) int64, the history that each event is of."""
        count = torch.arange(len(self), device=self.lengths.device)
        return count.repeat_interleave(self.lengths)

    def positions(self) -> Tensor:
        """(L,) int64, each event's place in its history, from 0."""
        count = torch.arange(self.item_index.shape[0], device=self.lengths.device)
        return count - self._starts()[self.users()]

    def _starts(self) -> Tensor:
        return self.lengths.cumsum(0) - self.lengths

    def _only(self, keep: Tensor, lengths: Tensor) -> Self:
        return replace(self._cut(slice(None), keep), lengths=lengths)

    def _cut(self, users: slice | Tensor, events: slice | Tensor) -> Self:
        cut = {k: v[events] for k, v in self._tensors().items() if k != "lengths"}
        return replace(self, lengths=self.lengths[users], **cut)
