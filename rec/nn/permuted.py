"""XLNet's two-stream body: events are predicted in a random order of factorisation."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rec.nn.attention import HeadsConfig
from rec.nn.dropout import Dropout
from rec.nn.histories import layout, positions, users
from rec.nn.relative import RelativeAttention, Sight

_STD, _EPS = 0.02, 1e-12  # XLNet's


class PermutedConfig(HeadsConfig):
    """Two-stream attention with relative positions (Yang et al. 2019, XLNet)."""

    kind: Literal["permuted"] = "permuted"
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=2, ge=1)
    widening: int = 4
    dropout: float = Field(default=0.2, ge=0, lt=1)
    max_length: int = Field(default=200, ge=1)  # events it reads, the one to predict beside them


class PermutedBlock(nn.Module):
    """Attention and a feed-forward layer, each added to what it reads and then normalised."""

    def __init__(self, config: PermutedConfig) -> None:
        super().__init__()
        dim, inner, dropout = config.dim, config.widening * config.dim, config.dropout
        self.attention = RelativeAttention(dim, config.num_heads, dropout)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, inner), nn.GELU(), Dropout(dropout), nn.Linear(inner, dim),
            Dropout(dropout),
        )  # fmt: skip
        self.last_norm = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, rows: Tensor, events: Tensor, sight: Sight) -> Tensor:
        """(R, dim), (L, dim) -> (R, dim)."""
        rows = self.norm(rows + self.dropout(self.attention(rows, events, sight)))
        return self.last_norm(rows + self.feed_forward(rows))


class PermutedBody(nn.Module):
    """See PermutedConfig. What events are read as (XLNet's content stream) and what is expected at
    those to predict (its query stream) are rows side by side: both pass the same weights, and the
    second exist for the events to predict alone. Nothing reads the events after the last block, so
    it works out the others only.

    The same as transformers' XLNetModel without segments, but for what is dropped out of relative
    positions, see RelativeAttention.
    """

    def __init__(self, config: PermutedConfig) -> None:
        super().__init__()
        self.config = config
        self.mask = nn.Parameter(torch.empty(config.dim))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(PermutedBlock(config) for _ in range(config.num_layers))
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=_STD)
            if name.endswith("bias") and "feed_forward" in name:
                nn.init.zeros_(parameter)

    def forward(self, items: Tensor, order: Tensor, lengths: Tensor) -> Tensor:
        """What is expected at the events to predict.

        Args:
            items: (L, D) vectors of the events' items.
            order: (L,) int64, -1 for an event that all others see; the P others are predicted,
                each from those that all see and those of its history with a lower order.
            lengths: (B,).

        Returns:
            (P, D) in the order of the events; zeros, as for a target that nothing precedes, where
            an event sees no other.
        """
        wanted = (order >= 0).nonzero().squeeze(1)
        where, owner, place = layout(lengths), users(lengths), positions(lengths)
        none = torch.full_like(wanted, -1)  # an event to predict does not see itself
        last = Sight.of(where, order, owner[wanted], place[wanted], order[wanted], none)
        owners, places, ranks = (torch.cat([one, one[wanted]]) for one in (owner, place, order))
        sight = Sight.of(where, order, owners, places, ranks, torch.cat([place, none]))
        read, asking = self.dropout(items), self.dropout(self.mask.expand(len(wanted), -1))
        for block in self.blocks[:-1]:
            both = block(torch.cat([read, asking]), read, sight)
            read, asking = both.split([len(items), len(wanted)])
        asking = self.dropout(self.blocks[-1](asking, read, last))
        lowest = order.new_zeros(len(lengths)).scatter_reduce(
            0, owner, order, "amin", include_self=False
        )
        sees = lowest[owner[wanted]] < order[wanted]
        return asking * sees[:, None]

    def users(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(L, D) -> (B, D), of an event after the last; zeros for a history without events."""
        longer = lengths + 1
        last = positions(longer) == lengths[users(longer)]
        padded = items.new_zeros(len(last), items.shape[1])
        padded = padded.index_copy(0, (~last).nonzero().squeeze(1), items)
        return self(padded, last.long() - 1, longer)
