"""The protocols by which data, models, loop, index and serving meet. No base classes.

Losses are sums and counts because the mean of per-rank means is wrong for masked or ragged
batches: only the loop divides, by the count over all ranks and micro-batches.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import pyarrow as pa
from torch import Tensor

B = TypeVar("B", contravariant=True)


class LossTerm(NamedTuple):
    total: Tensor  # scalar: sum over this rank's valid elements, with gradient
    # how many there were (or the sum of their weights), scalar, no gradient
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]


Losses = dict[str, LossTerm]


class Interests(NamedTuple):
    vectors: Tensor  # (B, K, D)
    weights: Tensor  # (B, K); 0 is an inactive interest


@runtime_checkable
class Trainable(Protocol[B]):
    """A model that knows its losses. Every parameter gets a gradient from every batch (zeros
    where nothing used it), so that ranks with different modalities stay in step."""

    def forward(self, batch: B) -> Losses: ...


@runtime_checkable
class GradCacheable(Protocol[B]):
    """A Trainable whose batch can be cut although some loss couples its rows (GradCache,
    Gao et al. 2021): forward(batch) equals local losses joined with couple(representations).
    """

    def encode(self, batch: B) -> tuple[dict[str, Tensor], Losses]:
        """Representations that coupled losses need, (any number of rows, ...) each, and the local
        losses. Integers among them, such as ids, carry no gradient."""
        ...

    def couple(self, representations: dict[str, Tensor]) -> Losses:
        """Losses over the whole batch's representations; gathers over ranks where it must."""
        ...


@runtime_checkable
class ItemEncoder(Protocol[B]):
    def encode_item(self, batch: B) -> Tensor:
        """(B, D), unit norm."""
        ...


@runtime_checkable
class UserEncoder(Protocol[B]):
    def encode_user(self, batch: B) -> Interests: ...


@runtime_checkable
class Scorer(Protocol[B]):
    def score(self, batch: B) -> Tensor:
        """(B, N) scores of N candidates."""
        ...


@runtime_checkable
class Estimator(Protocol):
    def fit(self, columns: pa.Table) -> Self: ...

    def transform(self, columns: pa.Table) -> pa.Table: ...
