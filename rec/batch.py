"""Frozen dataclasses of tensors that models take. Every tensor's first dimension is the batch.

Shape letters: B batch, T tokens, F frames, A audio patches, P labels, H and W picture size.
Masks are True where something is there.
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
