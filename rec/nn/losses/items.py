"""Which loss over items a model takes, and which items' vectors a step needs for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rec.config import Config
from rec.contract import LossTerm
from rec.nn.losses.bce import gbce
from rec.nn.losses.softmax import candidate_softmax, sampled_softmax

_SAMPLER_STEPS = 1 << 52  # to which an item's probability is rounded up


class ItemLossConfig(Config):
    """The loss of predicting one item among all."""

    # gbce with calibration 0 is plain binary cross-entropy
    kind: Literal["softmax", "sampled_softmax", "gbce"] = "softmax"
    num_negatives: int = Field(default=1024, ge=1)  # drawn anew each step, shared by all its rows
    # negatives are drawn by (events of the item)^popularity; gbce wants 0, uniform
    popularity: float = Field(default=0.0, ge=0, le=1)
    calibration: float = Field(default=0.75, ge=0, le=1)  # t of gbce


class Sampler(nn.Module):
    """Draws items that have events on the training side, by (number of events)^power, with
    replacement.

    Args:
        num_events: (N,) of each item; at least one above 0.
    """

    cumulative: Tensor  # (N,) int64: DeepSpeed rounds every buffer that is not of integers to bf16

    def __init__(self, num_events: Tensor, power: float) -> None:
        super().__init__()
        weight = num_events.double().pow(power) * (num_events > 0)
        cumulative = (weight / weight.sum() * _SAMPLER_STEPS).ceil().long().cumsum(0)
        self._total = int(cumulative[-1])
        self.register_buffer("cumulative", cumulative, persistent=False)

    def forward(self, count: int) -> Tensor:
        """(count,) int64, from torch's own generator, which the loop seeds for each step."""
        drawn = torch.randint(self._total, (count,), device=self.cumulative.device)
        return torch.searchsorted(self.cumulative, drawn, right=True)

    def share(self, index: Tensor) -> Tensor:
        """(n,) items -> (n,) float32 probability of each."""
        before = self.cumulative[(index - 1).clamp(min=0)].masked_fill(index == 0, 0)
        return ((self.cumulative[index] - before).double() / self._total).float()


@dataclass(frozen=True)
class Needed:
    """Items whose vectors a step computes."""

    index: Tensor | None  # (U,) int64 ascending; None: all
    negatives: Tensor  # (S,) int64 items, none where the loss is over all

    def place(self, items: Tensor) -> Tensor:
        """Rows of the computed vectors that are these items'."""
        return items if self.index is None else torch.searchsorted(self.index, items)


class ItemLoss(nn.Module):
    """Loss of states against the items they are to predict, without the (P, N) matrix of scores.

    Only items with events on the training side compete: features of an item without any would
    otherwise learn that such items are never wanted.

    Args:
        num_events: (N,) of each item on the training side.
    """

    trained_index: Tensor
    column: Tensor

    def __init__(self, num_events: Tensor, config: ItemLossConfig) -> None:
        super().__init__()
        self.config = config
        trained = num_events > 0
        if not trained.any():
            raise ValueError("ItemLoss: no item has an event on the training side")
        self._all_trained, self._num_trained = bool(trained.all()), int(trained.sum())
        column = torch.where(trained, trained.cumsum(0) - 1, -1)
        self.register_buffer("trained_index", trained.nonzero().squeeze(1), persistent=False)
        self.register_buffer("column", column, persistent=False)
        self.sampler = Sampler(num_events, config.popularity)

    def needed(self, items: Tensor) -> Needed:
        """For a step that reads or predicts `items` (any number, repetitions too)."""
        if self.config.kind == "softmax":
            return Needed(None, items.new_zeros(0))
        negatives = self.sampler(self.config.num_negatives)
        return Needed(torch.cat([items, negatives]).unique(), negatives)

    def forward(self, states: Tensor, targets: Tensor, vectors: Tensor, needed: Needed) -> LossTerm:
        """The sum over P states and its count.

        Args:
            states: (P, D).
            targets: (P,) int64 items.
            vectors: (U, D) or (N, D) of `needed.index`.
        """
        positives = vectors.index_select(0, needed.place(targets))
        if self.config.kind == "softmax":
            every = self._all_trained
            candidates = vectors if every else vectors.index_select(0, self.trained_index)
            positive = (states * positives).sum(dim=1)
            return candidate_softmax(states, positive, candidates, self.column[targets])
        negatives = needed.negatives
        sample = vectors.index_select(0, needed.place(negatives))
        if self.config.kind == "gbce":
            return gbce(
                states, positives, targets, sample, negatives,
                num_items=self._num_trained, calibration=self.config.calibration,
            )  # fmt: skip
        expected = self.sampler.share(negatives) * len(negatives)
        return sampled_softmax(states, positives, targets, sample, negatives, expected.log())
