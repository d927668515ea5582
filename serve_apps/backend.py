"""What answers the content service's requests, and what is said to it and by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from pydantic import Field

from rec.config import Config
from rec.retrieval.filters import Filter
from rec.retrieval.queries import MAX_K


class Content(NamedTuple):
    """A checked input on its way to the encoder; `place` is what to call it in messages."""

    place: str
    text: str | None
    picture: bytes | None


class ItemQuery(NamedTuple):
    place: str
    item_id: str


# (D,) float32 unit vectors and items, or (B, D) such vectors
Queries: TypeAlias = Sequence[np.ndarray | ItemQuery] | np.ndarray


class Found(NamedTuple):
    ids: list[str]
    scores: list[float]


class Searched(NamedTuple):
    results: list[Found]  # one a query
    index_version: str  # of what answered, which a roll-out may have made newer than the gateway


class Packed(NamedTuple):
    body: bytes  # as `rec.wire` packs what was found
    index_version: str


class Limits(Config):
    """How much one request may ask."""

    max_inputs: int = Field(default=64, ge=1)  # inputs or queries
    max_k: int = Field(default=1000, ge=1, le=MAX_K)
    max_text_chars: int = Field(default=100_000, ge=1)  # of one text; the model reads the start
    max_body_bytes: int = Field(default=16 << 20, ge=1)
    max_body_s: float = Field(default=20.0, gt=0)  # that a body may take to come
    # what would take longer than that with all that is under way is refused (503)
    max_embed_s: float = Field(default=5.0, gt=0)
    max_knn_s: float = Field(default=1.0, gt=0)


class Backend(Protocol):
    """What answers. All methods raise ApiError."""

    async def encode(self, inputs: Sequence[Content]) -> np.ndarray:
        """(B, D) float32, unit norm."""
        ...

    async def search(
        self, queries: Queries, k: int, exclude_self: bool, where: Filter | None = None
    ) -> Searched:
        """Neighbours of vectors and of items, best first, among the items that fit."""
        ...

    async def search_packed(self, rows: np.ndarray, k: int) -> Packed:
        """Neighbours of (B, D) float32 unit vectors, for the wire."""
        ...

    async def canary(self) -> None:
        """One small encoding and one search, each compared with what must come out."""
        ...
