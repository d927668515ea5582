"""DSSM: a tower for users and one for items, learned from what users went on to."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rec.batch import SequenceBatch
from rec.config import Config
from rec.contract import Interests, Losses
from rec.nn.collectives import gather_rows
from rec.nn.items import ItemColumns, ItemConfig, ItemVectors
from rec.nn.losses.items import Sampler
from rec.nn.losses.softmax import sampled_softmax
from rec.nn.next_event import next_events
from rec.nn.users import PooledBody, PooledConfig, encode_users


class DSSMConfig(Config):
    """The two towers and their loss."""

    user: PooledConfig = PooledConfig()
    item_hidden_dim: int = 256
    temperature: float = Field(default=0.07, gt=0)
    num_negatives: int = Field(default=1024, ge=0)  # sampled beside the batch's own targets
    popularity: float = Field(default=0.0, ge=0, le=1)  # they are drawn by (events)^popularity


class DSSM(nn.Module):
    """Two towers (Huang et al. 2013), trained by a softmax of each user's next item against the
    targets of the whole batch, of all ranks, and items sampled beside them (Yang et al. 2020,
    mixed negatives), corrected for how often each was to be expected (Yi et al. 2019, logQ).

    The user tower reads the latest events: means weighted by recency, then a perceptron. The item
    tower is a perceptron over the item's vector. Both give unit vectors.

    Args:
        columns: what is known of the items.
        config: towers and loss.
        items: what items' vectors are made of.
    """

    def __init__(self, columns: ItemColumns, config: DSSMConfig, items: ItemConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.user.dim
        self.items = ItemVectors(columns, dim, items)
        self.body = PooledBody(config.user)
        self.tower = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, config.item_hidden_dim),
            nn.GELU(),
            nn.Linear(config.item_hidden_dim, dim),
        )
        # how targets are distributed; in held-out rows those without events are targets too
        self.batch_sampler = Sampler(columns.num_events.clamp(min=1), 1.0)
        self.sampler = Sampler(columns.num_events, config.popularity)

    def forward(self, batch: SequenceBatch) -> Losses:
        """{"next_item": ...} over the events that batch.target_mask marks."""
        representations, _ = self.encode(batch)
        return self.couple(representations)

    def encode(self, batch: SequenceBatch) -> tuple[dict[str, Tensor], Losses]:
        """{"users", "items": (P, D), "targets": (P,)} of the P events to predict."""
        events = next_events(batch)
        index, place = torch.cat([events.item_index, events.targets]).unique(return_inverse=True)
        vectors = self.items(index)
        read, wanted = place.split([len(events.item_index), len(events.targets)])
        users = self.body(vectors.index_select(0, read), events.lengths)
        items = self._tower(vectors.index_select(0, wanted))
        return {"users": events.states(users), "items": items, "targets": events.targets}, {}

    def couple(self, representations: dict[str, Tensor]) -> Losses:
        """The softmax over all ranks' targets and this rank's sample."""
        users, items, targets = (representations[name] for name in ("users", "items", "targets"))
        others, _ = gather_rows(items)
        others_index, _ = gather_rows(targets)
        sample = self.sampler(self.config.num_negatives)
        candidates = torch.cat([others, self._tower(self.items(sample))])
        index = torch.cat([others_index, sample])
        expected = self.batch_sampler.share(index) * len(others)
        expected = expected + self.sampler.share(index) * len(sample)
        return {
            "next_item": sampled_softmax(
                users / self.config.temperature, items, targets, candidates, index, expected.log()
            )
        }

    def encode_user(self, batch: SequenceBatch) -> Interests:
        """(B, 1, D) of unit norm from the events that are not targets; weight 0 without any."""
        return encode_users(self.body, self.items, batch)

    def item_vectors(self) -> Tensor:
        """(N, D) of unit norm."""
        return self._tower(self.items())

    def input_vectors(self) -> Tensor:
        """(N, D) as histories are read."""
        return self.items()

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) cosines of users and items."""
        return self.encode_user(batch).vectors[:, 0] @ self.item_vectors().T

    def _tower(self, vectors: Tensor) -> Tensor:
        return F.normalize(self.tower(vectors).float(), dim=1)


def choose_targets(batch: SequenceBatch, generator: torch.Generator, count: int) -> SequenceBatch:
    """Keep `count` of each history's targets, drawn at random; all where there are no more.

    A user's targets are alike; a few of each make room for more users in a batch.
    """
    keys = torch.rand(batch.item_index.shape, generator=generator, device=batch.item_index.device)
    order = keys.masked_fill(~batch.target_mask, 2.0).argsort()
    order = order[batch.users()[order].argsort(stable=True)]  # by user, then by key
    kept = torch.zeros_like(batch.target_mask)
    kept[order] = batch.positions() < count
    return replace(batch, target_mask=kept & batch.target_mask)
