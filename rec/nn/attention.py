"""Attention of a few queries to many keys, attention within histories, and the feed-forward layer
that follows either."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rec.config import Config
from rec.nn.dropout import Dropout
from rec.nn.histories import Layout


class HeadsConfig(Config):
    """Width and heads of attention, of which one divides the other."""

    dim: int = Field(default=64, ge=1)
    num_heads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        return self


class CrossAttention(nn.Module):
    """Multi-head attention of queries to keys that are their own values (Vaswani et al. 2017).

    Args:
        dim: width of queries and output.
        key_dim: width of keys.
        num_heads: heads; divides `dim`.
    """

    def __init__(self, dim: int, key_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(key_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, Q, dim), (B, S, key_dim), (B, S) True = attend -> (B, Q, dim).

        Each row of `key_mask` needs at least one True.
        """
        heads = (self.num_heads, -1)
        q = self.query(queries).unflatten(-1, heads).transpose(1, 2)
        k, v = (
            part.unflatten(-1, heads).transpose(1, 2)
            for part in self.key_value(keys).chunk(2, dim=-1)
        )
        mask = None if key_mask is None else key_mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


class HistoryAttention(nn.Module):
    """Multi-head self-attention of every event to events of its own history.

    Args:
        dim: width of events.
        num_heads: heads; divides `dim`.
        causal: an event attends to itself and those before it, else to all.
    """

    def __init__(self, dim: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, where: Layout) -> Tensor:
        """(L, dim) -> (L, dim)."""
        slots = where.to_slots(self.query_key_value(x))
        attended = []
        for part, group in zip(slots.split(where.sizes), where.groups, strict=True):
            shape = (group.num_histories, group.length, 3, self.num_heads, -1)
            q, k, v = (states.transpose(1, 2) for states in part.view(shape).unbind(2))
            hidden = None if self.causal or group.mask is None else group.mask[:, None, None]
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden, is_causal=self.causal)
            attended.append(found.transpose(1, 2).reshape(len(part), -1))
        joined = torch.cat(attended) if attended else slots[:, : x.shape[1]]
        return self.out(where.to_events(joined))


class FeedForward(nn.Sequential):
    """Layer norm, then two linear layers with GELU between, `widening` times as wide inside."""

    def __init__(self, dim: int, dropout: float, widening: int = 4) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, widening * dim),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(widening * dim, dim),
            Dropout(dropout),
        )


class HistoryBlock(nn.Module):
    """A transformer block with the norms before its two parts (Xiong et al. 2020)."""

    def __init__(
        self, dim: int, num_heads: int, dropout: float, widening: int, *, causal: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = HistoryAttention(dim, num_heads, causal=causal)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(dim, dropout, widening)

    def forward(self, x: Tensor, where: Layout) -> Tensor:
        """(L, dim) -> (L, dim)."""
        x = x + self.dropout(self.attention(self.norm(x), where))
        return x + self.feed_forward(x)
