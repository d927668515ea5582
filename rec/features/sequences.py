"""SEQUENCE_ROWS to batches of histories, without a loop over users or events."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rec.batch import SequenceBatch


class Targets(NamedTuple):
    """What each of B rows holds out: row b's are item_index[offsets[b] : offsets[b + 1]]."""

    offsets: NDArray[np.int64]  # (B + 1,)
    item_index: NDArray[np.int64]  # (T,) in order of time


def collate_sequences(table: pa.Table, max_length: int) -> SequenceBatch:
    """Rows as a model trains or is validated on them, each cut to its latest events.

    A target is predicted from at most `max_length` events before it, in training as at any other
    time: of a training row the latest max_length + 1 events stay, of a held-out row its targets
    and the max_length events before them. So a model that counts positions needs max_length of
    them for what it reads, and one more where the event to predict has a position too.

    Args:
        table: SEQUENCE_ROWS of B users.
        max_length: events that a model sees before the first target, at least 1.

    Returns:
        B histories. In training rows (num_targets 0) every event but the first of those that
        stay is a target, in others the last num_targets.
    """
    num_targets = _number(table, "num_targets")
    batch = _whole(table).latest(max_length + num_targets.clamp(min=1))
    before = torch.where(num_targets > 0, batch.lengths - num_targets, 1)
    return batch.mark(before)


def histories(table: pa.Table) -> tuple[SequenceBatch, Targets]:
    """Held-out rows as what is known of each user and what is to be predicted from it.

    Args:
        table: SEQUENCE_ROWS of B users.

    Returns:
        B whole histories without their targets and with no event to predict; a user who was new
        has one of length 0. And the targets.
    """
    num_targets = _number(table, "num_targets")
    whole = _whole(table)
    whole = whole.mark(whole.lengths - num_targets)
    held = whole.target_mask
    ends = num_targets.cumsum(0).numpy()
    offsets = np.concatenate([np.zeros(1, np.int64), ends])
    return whole.known(), Targets(offsets, whole.item_index[held].numpy())


def _number(table: pa.Table, name: str) -> Tensor:
    return torch.from_numpy(table.column(name).to_numpy().astype(np.int64))


def _whole(table: pa.Table) -> SequenceBatch:
    """All events of all rows, none of them a target yet."""
    table = table.combine_chunks()
    lists = {
        name: table.column(name).combine_chunks()
        for name in ("item_index", "weights", "event_times")
    }
    values = {name: column.flatten().to_numpy() for name, column in lists.items()}
    lengths = np.diff(lists["item_index"].offsets.to_numpy()).astype(np.int64)
    item_index = torch.from_numpy(values["item_index"].astype(np.int64))
    return SequenceBatch(
        lengths=torch.from_numpy(lengths),
        item_index=item_index,
        weights=torch.from_numpy(values["weights"].astype(np.float32)),
        times=torch.from_numpy(values["event_times"].astype(np.int64)),
        target_mask=torch.zeros_like(item_index, dtype=torch.bool),
    )
