"""Bodies: the flat item vectors of histories to states, and to one vector a history.

What models of users share, and all that serving needs of them beside the items' vectors. A body
is described whole by its config, which stands in the published artifact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rec.batch import SequenceBatch
from rec.config import Config
from rec.contract import Interests
from rec.nn.attention import HeadsConfig, HistoryBlock
from rec.nn.dropout import Dropout
from rec.nn.histories import last_states, layout, positions, users
from rec.nn.permuted import PermutedBody, PermutedConfig


class CausalConfig(HeadsConfig):
    """A transformer in which an event sees those before it (Kang & McAuley 2018, SASRec)."""

    kind: Literal["causal"] = "causal"
    num_layers: int = 2
    widening: int = 1  # of the feed-forward layers; SASRec's are as wide as its events
    dropout: float = Field(default=0.2, ge=0, lt=1)
    max_length: int = Field(default=200, ge=1)  # events it reads; there is a position for each
    # what the learned positions are counted from. From the end, the last event's is always the
    # same, as in SASRec's own code; from the start, an event's does not move as others come
    positions: Literal["end", "start"] = "end"


class MaskedConfig(HeadsConfig):
    """A transformer in which an event sees all others (Sun et al. 2019, BERT4Rec)."""

    kind: Literal["masked"] = "masked"
    num_layers: int = 2
    num_heads: int = Field(default=2, ge=1)
    widening: int = 4
    dropout: float = Field(default=0.2, ge=0, lt=1)
    max_length: int = Field(default=200, ge=1)  # events it reads, the mask beside them


class PooledConfig(Config):
    """A recency-weighted mean of the events so far and a perceptron (the user tower of DSSM)."""

    kind: Literal["pooled"] = "pooled"
    dim: int = 64
    hidden_dim: int = 256
    dropout: float = Field(default=0.1, ge=0, lt=1)
    max_length: int = Field(default=200, ge=1)  # events it reads
    half_lives: tuple[float, ...] = (1.0, 8.0, 64.0)  # in events; a mean with each, side by side


AnyConfig = CausalConfig | MaskedConfig | PermutedConfig | PooledConfig
BodyConfig = Annotated[AnyConfig, Field(discriminator="kind")]


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)


def _blocks(config: CausalConfig | MaskedConfig, *, causal: bool) -> nn.ModuleList:
    return nn.ModuleList(
        HistoryBlock(config.dim, config.num_heads, config.dropout, config.widening, causal=causal)
        for _ in range(config.num_layers)
    )


class CausalBody(nn.Module):
    """See CausalConfig."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.position = nn.Embedding(config.max_length, config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = _blocks(config, causal=True)
        self.norm = nn.LayerNorm(config.dim)
        _initialise(self)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """What is expected after each event.

        Args:
            items: (L, D) vectors of the events' items.
            lengths: (B,) events of each history, zero included.

        Returns:
            (L, D); row i is a function of the events of the same history up to i, and, with
            positions from the end, of how many come after.
        """
        place = positions(lengths)
        if self.config.positions == "end":
            place = lengths[users(lengths)] - 1 - place
        # validation reads a little more than max_length where a row holds several targets out
        x = items + self.position(place.clamp(max=self.config.max_length - 1))
        x = self.dropout(x * self.config.dim**0.5)
        where = layout(lengths)
        for block in self.blocks:
            x = block(x, where)
        return self.norm(x)

    def users(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(L, D) -> (B, D), zeros for a history without events."""
        return last_states(self(items, lengths), lengths)


class MaskedBody(nn.Module):
    """See MaskedConfig."""

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        self.config = config
        self.mask = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.position = nn.Embedding(config.max_length + 1, config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = _blocks(config, causal=False)
        self.norm = nn.LayerNorm(config.dim)
        _initialise(self)

    def forward(self, items: Tensor, hidden: Tensor, lengths: Tensor) -> Tensor:
        """What is expected at each event.

        Args:
            items: (L, D) vectors of the events' items.
            hidden: (L,) bool, events of which the mask is seen and not the item.
            lengths: (B,).

        Returns:
            (L, D), positions counted from the end, where inference has its mask.
        """
        place = lengths[users(lengths)] - 1 - positions(lengths)
        seen = torch.where(hidden[:, None], self.mask, items)
        x = seen + self.position(place.clamp(max=self.config.max_length))
        x = self.dropout(x * self.config.dim**0.5)
        where = layout(lengths)
        for block in self.blocks:
            x = block(x, where)
        return self.norm(x)

    def users(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(L, D) -> (B, D), of a mask after the last event; zeros for a history without events."""
        longer = lengths + 1
        hidden = positions(longer) == lengths[users(longer)]
        padded = items.new_zeros(len(hidden), items.shape[1])
        padded = padded.index_copy(0, (~hidden).nonzero().squeeze(1), items)
        states = self(padded, hidden, longer)[hidden]
        return states * (lengths > 0)[:, None]


class PooledBody(nn.Module):
    """See PooledConfig."""

    def __init__(self, config: PooledConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dim * len(config.half_lives)
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.hidden_dim),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(config.hidden_dim, config.dim),
        )
        _initialise(self)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """What is expected after each event: (L, D) vectors of its items -> (L, D) of unit norm,
        each a function of the events of its history up to it."""
        where = layout(lengths)
        slots = where.to_slots(items)
        means = []
        for part, group in zip(slots.split(where.sizes), where.groups, strict=True):
            age = torch.arange(group.length, device=items.device)
            age = (age[:, None] - age).float()  # of a column's event at a row's time
            parts = part.view(group.num_histories, group.length, -1)
            pooled = []
            for half_life in self.config.half_lives:
                share = torch.exp2(-age / half_life).masked_fill(age < 0, 0)
                pooled.append((share / share.sum(1, keepdim=True)).to(parts.dtype) @ parts)
            means.append(torch.cat(pooled, dim=-1).flatten(0, 1))
        width = items.shape[1] * len(self.config.half_lives)
        joined = torch.cat(means) if means else slots.new_zeros(0, width)
        return F.normalize(self.layers(where.to_events(joined)).float(), dim=1)

    def users(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(L, D) -> (B, D) of unit norm, zeros for a history without events."""
        return last_states(self(items, lengths), lengths)


Body = CausalBody | MaskedBody | PermutedBody | PooledBody


def build_body(config: AnyConfig) -> Body:
    """The body that a config describes, its weights new."""
    match config:
        case CausalConfig():
            return CausalBody(config)
        case MaskedConfig():
            return MaskedBody(config)
        case PermutedConfig():
            return PermutedBody(config)
        case PooledConfig():
            return PooledBody(config)


def encode_users(
    body: Body, vectors: Callable[[Tensor], Tensor], batch: SequenceBatch
) -> Interests:
    """Users' vectors from the latest events that are not targets, as many as the body reads.

    Args:
        vectors: (n,) items -> (n, D) vectors to read.

    Returns:
        (B, 1, D) and (B, 1), weight 0 for a history without events.
    """
    known = batch.known().latest(body.config.max_length)
    items, place = known.item_index.unique(return_inverse=True)
    found = body.users(vectors(items).index_select(0, place), known.lengths).float()
    return Interests(found[:, None], (known.lengths > 0).to(found.dtype)[:, None])
