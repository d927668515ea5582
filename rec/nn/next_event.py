"""The next-event objective: the state at an event predicts the one after it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rec.batch import SequenceBatch


class NextEvents(NamedTuple):
    """Each history without its last event, which nothing is predicted from, and what follows."""

    lengths: Tensor  # (B,) int64, zero included
    item_index: Tensor  # (M,) int64 events that are read
    read: Tensor | None  # (P',) int64, states among those M that predict a target; None: all do
    targets: Tensor  # (P,) int64 items: P' of those states, then P - P' that nothing precedes

    def states(self, states: Tensor) -> Tensor:
        """(M, D) of the events read -> (P, D), zeros for a target that nothing precedes: every
        item then has the same score."""
        found = states if self.read is None else states.index_select(0, self.read)
        first = len(self.targets) - len(found)
        return torch.cat([found, found.new_zeros(first, found.shape[1])]) if first else found


def next_events(batch: SequenceBatch) -> NextEvents:
    """The targets of a batch, each with the event before it.

    The events that are not their history's first line up with those that are not its last: the
    i-th of the one follows the i-th of the other.
    """
    place = batch.positions()
    first, last = place == 0, place == batch.lengths[batch.users()] - 1
    wanted = batch.target_mask[~first]
    after = batch.item_index[~first]
    unread = batch.item_index[first & batch.target_mask]
    read = None if bool(wanted.all()) else wanted.nonzero().squeeze(1)
    targets = after if read is None else after[read]
    return NextEvents(
        (batch.lengths - 1).clamp(min=0),
        batch.item_index[~last],
        read,
        torch.cat([targets, unread]),
    )
