"""Attention of a few queries to many keys, and the feed-forward layer that follows it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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


class FeedForward(nn.Sequential):
    """Layer norm, then two linear layers with GELU between; four times as wide inside."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )
