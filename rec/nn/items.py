"""Items' vectors from their ids and from what else is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from rec.config import Config

Feature = Literal["id", "tags", "categories", "uploader", "content"]


class ItemConfig(Config):
    """What an item's vector is made of."""

    features: tuple[Feature, ...] = ("id",)
    # how often an item's id is hidden in training, where there are other features: what they
    # learn so is all that an item without events has
    id_dropout: float = Field(default=0.1, ge=0, lt=1)

    @field_validator("features")
    @classmethod
    def _once(cls, features: tuple[Feature, ...]) -> tuple[Feature, ...]:
        if not features or len(set(features)) < len(features):
            raise ValueError(f"name one feature or more, each once; got {features}")
        return features


@dataclass(frozen=True)
class Bags:
    """Lists of labels of N items, end to end."""

    lengths: Tensor  # (N,) int64
    index: Tensor  # (sum of lengths,) int64
    num_labels: int


@dataclass(frozen=True)
class ItemColumns:
    """What is known of N items."""

    num_events: Tensor  # (N,) int64 on the training side; 0: the id means nothing
    tags: Bags
    categories: Bags
    uploader: Tensor  # (N,) int64, -1 where not known
    num_uploaders: int
    content: Tensor | None = None  # (N, C) float32, unit rows or zeros where there is none

    def __len__(self) -> int:
        return len(self.num_events)


class ItemVectors(nn.Module):
    """(N, D) vectors: the sum of an embedding of the id, the mean embedding of its tags, that of
    its categories, an embedding of its uploader and a projection of its content vector.

    The id counts only for items with events on the training side: others never are a target, so
    that training would say nothing of their id but to keep away from it. What an item lacks
    adds nothing.

    Args:
        columns: of all items.
        dim: D.
        config: which of these.
    """

    trained: Tensor
    uploader_index: Tensor
    content_vectors: Tensor

    def __init__(self, columns: ItemColumns, dim: int, config: ItemConfig) -> None:
        super().__init__()
        self.dim, self.config, self.num_items = dim, config, len(columns)
        trained = columns.num_events > 0
        self._all_trained = bool(trained.all())
        self._buffer("trained", trained)
        features = config.features
        if "id" in features:
            self.id = _embedding(len(columns), dim)
        for name, bags in (("tags", columns.tags), ("categories", columns.categories)):
            if name in features:
                self.add_module(name, _embedding(max(bags.num_labels, 1), dim))
                self._buffer(f"{name}_lengths", bags.lengths)
                self._buffer(f"{name}_starts", bags.lengths.cumsum(0) - bags.lengths)
                self._buffer(f"{name}_index", bags.index)
        if "uploader" in features:
            self.uploader = _embedding(max(columns.num_uploaders, 1), dim)
            self._buffer("uploader_index", columns.uploader)
        if "content" in features:
            if columns.content is None:
                raise ValueError("ItemVectors: feature 'content', but the items have no content")
            self.content = nn.Linear(columns.content.shape[1], dim, bias=False)
            nn.init.normal_(self.content.weight, std=0.02)  # unit rows come out as ids begin
            self._buffer("content_vectors", columns.content)

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)  # the rows have it

    def forward(self, index: Tensor | None = None) -> Tensor:
        """(n, D) vectors of items at `index` (n,) int64, or of all N."""
        if self.config.features == ("id",) and self._all_trained:
            return self.id.weight if index is None else self.id(index)
        if index is None:
            index = torch.arange(self.num_items, device=self.trained.device)
        first, *others = (self._part(feature, index) for feature in self.config.features)
        return sum(others, start=first)

    def _part(self, feature: Feature, index: Tensor) -> Tensor:
        if feature == "id":
            return self.id(index) * self._known(index)
        if feature == "uploader":
            found = self.uploader_index[index]
            return self.uploader(found.clamp(min=0)) * (found >= 0)[:, None]
        if feature == "content":
            return self.content(self.content_vectors[index]).to(self.content.weight.dtype)
        return self._mean(feature, index)

    def _known(self, index: Tensor) -> Tensor:
        """(n, 1) whether the id counts; by chance not in training, where there is more to go by."""
        known = self.trained[index][:, None]
        hidden = self.config.id_dropout if len(self.config.features) > 1 else 0.0
        if self.training and hidden:
            known = known & (torch.rand(known.shape, device=known.device) >= hidden)
        return known

    def _mean(self, name: str, index: Tensor) -> Tensor:
        """(n, D) mean embeddings of the labels of items, zeros where there is none."""
        lengths = self.get_buffer(f"{name}_lengths")[index]
        ends = lengths.cumsum(0)
        shift = self.get_buffer(f"{name}_starts")[index] - (ends - lengths)
        place = torch.arange(int(lengths.sum()), device=index.device)
        labels = self.get_buffer(f"{name}_index")[place + shift.repeat_interleave(lengths)]
        weight = self.get_submodule(name).get_parameter("weight")
        return F.embedding_bag(labels, weight, ends - lengths, mode="mean")


def _embedding(count: int, dim: int) -> nn.Embedding:
    made = nn.Embedding(count, dim)
    nn.init.normal_(made.weight, std=0.02)
    return made
