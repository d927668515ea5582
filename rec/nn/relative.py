"""Attention of rows to the events of their histories, by content and by distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from rec.nn.dropout import Dropout
from rec.nn.histories import Layout, beside

_SCORES = 1 << 20  # of a block, which stays in the caches of a core
_HIDDEN = -6e4  # added to scores, also in half precision; adding takes a tenth of filling by a mask


@dataclass(frozen=True)
class Sight:
    """Which of the L events of B histories each of R rows sees, and from where.

    A history's longest distance is far below 10,000 events, the longest of the waves.
    """

    events: Layout
    rows: Layout  # in the same groups
    place: Tensor  # (R,) int64, from which distances to events are counted
    hidden: tuple[Tensor, ...]  # of each group (G, rows, events) float32, added to scores

    @classmethod
    def of(
        cls, events: Layout, order: Tensor, owner: Tensor, place: Tensor, rank: Tensor, own: Tensor
    ) -> Self:
        """A row sees the events with a lower order, those with order -1, and one of its own.

        Args:
            events: the histories' layout.
            order: (L,) int64, -1 or more, of the events.
            owner: (R,) the rows' histories.
            place: (R,) the rows' places in them.
            rank: (R,) int64, the rows' orders.
            own: (R,) the place of an event that the row sees in any case; -1 for none.
        """
        rows = beside(events, owner)
        hidden = []
        keys = order.index_select(0, events.event_of_slot).split(events.sizes)
        asked = torch.stack([rank.clamp(min=0), own], dim=1).index_select(0, rows.event_of_slot)
        for key, row, seen, by in zip(
            keys, asked.split(rows.sizes), events.groups, rows.groups, strict=True
        ):
            shape = (seen.num_histories, 1, seen.length)
            ranks, owns = row.view(seen.num_histories, by.length, 2).split(1, dim=2)
            there = torch.arange(seen.length, device=order.device)
            mask = (key.view(shape) >= ranks) & (there != owns)
            if seen.mask is not None:
                mask |= ~seen.mask[:, None]
            hidden.append(mask.float() * _HIDDEN)
        return cls(events, rows, place, tuple(hidden))


class RelativeAttention(nn.Module):
    """Multi-head attention with relative positions (Dai et al. 2019, Transformer-XL).

    With q of a row at i, and k and v of an event at j, its score is
    ((q + content_bias) k + (q + position_bias) W r(i - j)) / sqrt(dim of a head), r(n) being
    sin(w n) and cos(w n) of dim / 2 frequencies. sin(w (i - j)) is
    sin(w i) cos(w j) - cos(w i) sin(w j), so W'(q + position_bias) is turned by i, and what is
    left to compare it with is r(j): no distance has a vector of its own.

    It departs from XLNet in what is dropped out of positions: there, in each history, waves of a
    distance, here waves of a row; one pair's score is distributed alike.

    Args:
        dim: width of rows and events.
        num_heads: heads; divides `dim`.
        dropout: of attention weights and positions.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, head = num_heads, dim // num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.position = nn.Linear(dim + dim % 2, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, head))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, head))
        self.dropout = Dropout(dropout)

    def forward(self, rows: Tensor, events: Tensor, sight: Sight) -> Tensor:
        """(R, dim), (L, dim) -> (R, dim). A row that sees nothing gets a mean of what is there."""
        heads = (self.num_heads, -1)
        longest = max((group.length for group in sight.events.groups), default=0)
        sin, cos = self._waves(longest, rows)
        q = self.query(rows).unflatten(1, heads)
        near = q + self.content_bias
        far = torch.einsum(
            "rhd,hdw->rhw", q + self.position_bias, self.position.weight.unflatten(0, heads)
        )
        first, second = self.dropout(far).chunk(2, dim=2)
        s, c = (wave[sight.place][:, None] for wave in (sin, cos))
        turned = torch.cat([first * s + second * c, second * s - first * c], dim=2)
        asked = torch.cat([near, turned], dim=2) * near.shape[2] ** -0.5
        told = torch.cat([self.key(events), self.value(events)], dim=1)
        asked = sight.rows.to_slots(asked).split(sight.rows.sizes)
        told = sight.events.to_slots(told).split(sight.events.sizes)
        waves = torch.cat([cos, sin], dim=1)
        found = [
            self._attend(a.unflatten(0, h.shape[:2]), t.unflatten(0, h.shape[::2]), h, waves)
            for a, t, h in zip(asked, told, sight.hidden, strict=True)
        ]
        joined = torch.cat(found) if found else rows.new_zeros(rows.shape)
        return self.out(sight.rows.to_events(joined))

    def _waves(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """sin and cos, each (length, ceil(dim / 2)), of the places from 0."""
        width = self.position.weight.shape[1]
        powers = torch.arange(0, width, 2, device=like.device) / width
        angle = torch.arange(length, device=like.device)[:, None] / 10_000**powers
        return angle.sin(), angle.cos()

    def _attend(self, asked: Tensor, told: Tensor, hidden: Tensor, waves: Tensor) -> Tensor:
        """(G, R, H, d + W), (G, T, 2 dim), (G, R, T), (.., W) -> (G * R, dim), a few histories at
        a time."""
        (_, num_rows, num_events), heads = hidden.shape, self.num_heads
        count = max(1, _SCORES // max(1, heads * num_rows * num_events))
        waves, found = waves[:num_events].T, []
        for a, t, h in zip(*(x.split(count) for x in (asked, told, hidden)), strict=True):
            k, v = t.view(*t.shape[:2], 2, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
            a = a.transpose(1, 2).flatten(0, 1)
            near, turned = a.split([k.shape[2], len(waves)], dim=2)
            scores = torch.baddbmm(turned @ waves, near, k.transpose(1, 2))
            scores = scores.view(len(h), heads, num_rows, num_events).add_(h[:, None])
            weights = self.dropout(scores.softmax(dim=3)).flatten(0, 1)
            out = (weights.to(v.dtype) @ v).view(len(h), heads, num_rows, v.shape[2])
            found.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(found)
