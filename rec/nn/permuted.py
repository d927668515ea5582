"""XLNet's two-stream body: events are predicted in a random order of factorisation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rec.nn.attention import HeadsConfig
from rec.nn.histories import positions, users


class PermutedConfig(HeadsConfig):
    """Two-stream attention with relative positions (Yang et al. 2019, XLNet)."""

    kind: Literal["permuted"] = "permuted"
    num_layers: int = 2
    num_heads: int = Field(default=2, ge=1)
    widening: int = 4
    dropout: float = Field(default=0.2, ge=0, lt=1)
    max_length: int = Field(default=200, ge=1)  # events it reads, the one to predict beside them


class PermutedBody(nn.Module):
    """See PermutedConfig. transformers' XLNetModel underneath, on padded histories."""

    def __init__(self, config: PermutedConfig) -> None:
        from transformers import XLNetConfig, XLNetModel  # seconds to import, used by none else

        super().__init__()
        self.config = config
        self.net = XLNetModel(
            XLNetConfig(
                vocab_size=1,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
                d_model=config.dim,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                d_inner=config.widening * config.dim,
                dropout=config.dropout,
                mem_len=None,
                use_mems_eval=False,
            )
        )
        for name, parameter in self.net.named_parameters():  # tokens and segments, of no use here
            if name.split(".")[-1] in ("seg_embed", "r_s_bias") or "word_embedding" in name:
                parameter.requires_grad_(False)

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
        length = max(int(lengths.max()), 1) if len(lengths) else 1
        place = torch.arange(length, device=items.device)
        real = place < lengths[:, None]
        slot = users(lengths) * length + positions(lengths)
        shape = (len(lengths), length)
        padded = items.new_zeros(real.numel(), items.shape[1]).index_copy(0, slot, items)
        orders = order.new_full((real.numel(),), -1).index_copy(0, slot, order).view(shape)
        wanted = orders >= 0
        hidden = wanted[:, None, :] & (orders[:, :, None] <= orders[:, None, :])
        count = wanted.sum(dim=1)
        most = max(int(count.max()), 1) if len(count) else 1
        first = (~wanted).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        found = self.net(
            inputs_embeds=padded.view(*shape, -1),
            attention_mask=real.to(items.dtype),
            perm_mask=hidden.to(items.dtype),
            target_mapping=F.one_hot(first, length).to(items.dtype),
        ).last_hidden_state
        # XLNetModel spreads the attention of a query that sees nothing evenly over everything,
        # the very event to predict and the padding included
        sees = (real[:, None] & ~hidden).any(dim=2).gather(1, first)
        found = found * sees[:, :, None]
        return found[torch.arange(most, device=items.device) < count[:, None]]

    def users(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(L, D) -> (B, D), of an event after the last; zeros for a history without events."""
        longer = lengths + 1
        last = positions(longer) == lengths[users(longer)]
        padded = items.new_zeros(len(last), items.shape[1])
        padded = padded.index_copy(0, (~last).nonzero().squeeze(1), items)
        return self(padded, last.long() - 1, longer)
