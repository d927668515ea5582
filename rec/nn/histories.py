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

    num_histories: int
    length: int
    mask: Tensor | None  # (G, T) bool, True for events; None where none is padding


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
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(-sizes, kind="stable")
    order = order[: np.count_nonzero(sizes)]
    groups: list[Group] = []
    events, slots = [np.zeros(0, np.int64)], np.zeros(int(sizes.sum()), np.int64)
    padding, used = [np.zeros(0, bool)], 0
    while len(order):
        longest = int(sizes[order[0]])
        fits = sizes[order] >= _SHORTEST * longest - _SLACK
        mine, order = order[fits], order[~fits]
        place = np.arange(longest)
        real = place < sizes[mine, None]
        event = starts[mine, None] + np.minimum(place, sizes[mine, None] - 1)
        slots[event[real]] = used + np.flatnonzero(real)
        mask = None if real.all() else torch.from_numpy(real).to(lengths.device)
        groups.append(Group(len(mine), longest, mask))
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
