"""Attention over histories of different lengths that lie end to end.

Everything else of a model works on the flat (L, D) events. Attention looks at histories of like
length side by side: sorted by length and cut where they get too short, so that little is padded.
Padding comes after a history's end, so causal attention needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# a group ends where a history is shorter than this share of its longest, less a few events:
# another group costs some kernel launches, a padded event costs attention
_SHORTEST, _SLACK = 0.75, 4


class Group(NamedTuple):
    """G histories side by side, T events each."""

    histories: NDArray[np.int64]  # (G,), which ones
    length: int
    mask: Tensor | None  # (G, T) bool, True for events; None where none is padding

    @property
    def num_histories(self) -> int:
        return len(self.histories)


@dataclass(frozen=True)
class Layout:
    """Where the L events of B histories stand among the S slots of all groups, one group's
    histories after the other's."""

    lengths: Tensor  # (B,) int64, zero included
    groups: tuple[Group, ...]
    event_of_slot: Tensor  # (S,) int64; some event of the same history where it is padding
    slot_of_event: Tensor  # (L,) int64
    padding: Tensor | None  # (S,) bool; None where there is none

    @property
    def sizes(self) -> list[int]:
        """Slots of each group."""
        return [group.num_histories * group.length for group in self.groups]

    def to_slots(self, events: Tensor) -> Tensor:
        """(L, ...) -> (S, ...). What stands in padding is undefined, its gradient is dropped: for
        users that let no event depend on it."""
        return _ToSlots.apply(events, self)  # type: ignore[return-value]

    def to_events(self, slots: Tensor) -> Tensor:
        """(S, ...) -> (L, ...)."""
        return _ToEvents.apply(slots, self)  # type: ignore[return-value]


def layout(lengths: Tensor) -> Layout:
    """The layout of histories of these lengths, (B,) int64."""
    sizes = lengths.cpu().numpy()
    order = np.argsort(-sizes, kind="stable")
    order = order[: np.count_nonzero(sizes)]
    groups: list[NDArray[np.int64]] = []
    while len(order):
        fits = sizes[order] >= _SHORTEST * sizes[order[0]] - _SLACK
        groups.append(order[fits])
        order = order[~fits]
    return _arrange(lengths, np.arange(sizes.sum()), groups)


def beside(where: Layout, owner: Tensor) -> Layout:
    """The layout of other rows of the same histories in the same groups.

    Args:
        where: of the histories.
        owner: (R,) int64, the history that each row is of, in any order; one with events.

    Returns:
        Slots of a history in the order of its rows; T is the most rows of a history in the group.
    """
    lengths = torch.zeros_like(where.lengths).index_add_(0, owner, torch.ones_like(owner))
    rows = owner.argsort(stable=True).cpu().numpy()
    return _arrange(lengths, rows, [group.histories for group in where.groups])


def _arrange(lengths: Tensor, rows: NDArray[np.int64], members: list[NDArray[np.int64]]) -> Layout:
    """`rows` are the rows' places, those of one history after those of the one before."""
    sizes = lengths.cpu().numpy()
    starts = np.cumsum(sizes) - sizes
    groups: list[Group] = []
    events, slots = [np.zeros(0, np.int64)], np.zeros(len(rows), np.int64)
    padding, used = [np.zeros(0, bool)], 0
    for mine in members:
        longest = int(sizes[mine].max())
        place = np.arange(longest)
        real = place < sizes[mine, None]
        # of a history without rows it is another's, or the last of all
        event = starts[mine, None] + np.minimum(place, np.maximum(sizes[mine, None] - 1, 0))
        event = rows[np.minimum(event, len(rows) - 1)]
        slots[event[real]] = used + np.flatnonzero(real)
        mask = None if real.all() else torch.from_numpy(real).to(lengths.device)
        groups.append(Group(mine, longest, mask))
        events.append(event.ravel())
        padding.append(~real.ravel())
        used += event.size
    pads = np.concatenate(padding)

    def tensor(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(lengths.device)

    return Layout(
        lengths,
        tuple(groups),
        tensor(np.concatenate(events)),
        tensor(slots),
        tensor(pads) if pads.any() else None,
    )


class _ToSlots(torch.autograd.Function):
    """A gather whose gradient is a gather too: adding by index is slow."""

    @staticmethod
    def forward(ctx: Any, events: Tensor, where: Layout) -> Tensor:
        ctx.where = where
        return events.index_select(0, where.event_of_slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.where.slot_of_event), None


class _ToEvents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slots: Tensor, where: Layout) -> Tensor:
        ctx.where = where
        return slots.index_select(0, where.slot_of_event)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        where: Layout = ctx.where
        gradient = grads[0].index_select(0, where.event_of_slot)
        if where.padding is not None:
            gradient[where.padding] = 0
        return gradient, None


def users(lengths: Tensor) -> Tensor:
    """(L,) int64, the history that each event is of."""
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)


def positions(lengths: Tensor) -> Tensor:
    """(L,) int64, each event's place in its history, from 0."""
    starts = lengths.cumsum(0) - lengths
    owner = users(lengths)
    return torch.arange(len(owner), device=lengths.device) - starts[owner]


def last_states(states: Tensor, lengths: Tensor) -> Tensor:
    """(L, D) -> (B, D): each history's last, zeros for one without events."""
    found = states.new_zeros(len(lengths), states.shape[1])
    some = (lengths > 0).nonzero().squeeze(1)
    return found.index_copy(0, some, states.index_select(0, lengths.cumsum(0)[some] - 1))
