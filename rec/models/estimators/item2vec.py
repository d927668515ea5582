"""item2vec: skip-gram with negative sampling over histories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rec.batch import SequenceBatch
from rec.features.histories import as_scores, item_counts, recency_matrix, small_popularity

_BLOCK_EVENTS = 1 << 16  # of which the pairs are made and shuffled at a time
_BATCH_PAIRS = 8192


def skip_gram_loss(centres: Tensor, contexts: Tensor, negatives: Tensor) -> Tensor:
    """Sum over P pairs of -log sigmoid(c'o) - sum over negatives of log sigmoid(-c'n) (Mikolov
    et al. 2013, equation 4).

    Args:
        centres: (P, D) input vectors.
        contexts: (P, D) output vectors of what stands near.
        negatives: (P, S, D) output vectors of items drawn at random.
    """
    positive = (centres * contexts).sum(dim=1)
    negative = torch.einsum("pd,psd->ps", centres, negatives)
    return F.softplus(-positive).sum() + F.softplus(negative).sum()


class Item2Vec:
    """score(u, j) = cosine of j's vector and the mean of the history's unit vectors, each weighted
    by 2^(-position / half_life), + a trace of popularity (Barkan and Koenigstein 2016).

    Vectors are the input vectors of a skip-gram over histories: pairs up to `window` apart, nearer
    ones more often (a pair d apart with probability (window - d + 1) / window), negatives drawn in
    proportion to count^0.75, sparse Adam. One thread of one machine repeats it bit by bit.

    Memory: 4 bytes an event; 8 N dim bytes of vectors, 16 N dim of the optimiser while fitting.

    Args:
        num_items: N.
        dim, window, num_negatives, epochs, learning_rate: as above.
        half_life: as in item-CF; may be changed after fitting.
        seed: of starting values, pairs and negatives.
    """

    def __init__(
        self,
        num_items: int,
        *,
        dim: int = 64,
        window: int = 5,
        num_negatives: int = 5,
        epochs: int = 10,
        learning_rate: float = 0.01,
        half_life: float = 5.0,
        seed: int = 0,
    ) -> None:
        self.num_items, self.dim, self.window = num_items, dim, window
        self.num_negatives, self.epochs, self.learning_rate = num_negatives, epochs, learning_rate
        self.half_life, self.seed = half_life, seed
        self._counts = np.zeros(num_items)
        self.vectors = np.zeros((num_items, dim), np.float32)  # unit rows, 0 without events

    def fit(self, sequences: Iterable[SequenceBatch]) -> Self:
        items, users = self._collect(sequences)
        torch_draws = torch.Generator().manual_seed(self.seed)
        inputs = nn.Embedding(self.num_items, self.dim, sparse=True)
        outputs = nn.Embedding(self.num_items, self.dim, sparse=True)
        nn.init.uniform_(inputs.weight, -0.5 / self.dim, 0.5 / self.dim, generator=torch_draws)
        nn.init.zeros_(outputs.weight)
        optimiser = torch.optim.SparseAdam([inputs.weight, outputs.weight], lr=self.learning_rate)
        chances = np.cumsum(self._counts**0.75)
        draws = np.random.default_rng(self.seed)
        for _ in range(self.epochs):
            for centres, contexts in self._pairs(items, users, draws):
                points = draws.random((len(centres), self.num_negatives)) * chances[-1]
                negatives = np.searchsorted(chances, points, side="right")
                loss = skip_gram_loss(
                    inputs(torch.from_numpy(centres)),
                    outputs(torch.from_numpy(contexts)),
                    outputs(torch.from_numpy(negatives)),
                )
                optimiser.zero_grad()
                (loss / len(centres)).backward()
                optimiser.step()
        vectors = F.normalize(inputs.weight.detach(), dim=1).numpy()
        self.vectors = np.where(self._counts[:, None] > 0, vectors, 0)
        return self

    def _collect(
        self, sequences: Iterable[SequenceBatch]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(E,) items and users of all events, users numbered through."""
        self._counts = np.zeros_like(self._counts)
        items, users, num_users = [np.empty(0, np.int32)], [np.empty(0, np.int32)], 0
        for batch in sequences:
            self._counts += item_counts(batch, self.num_items)
            items.append(batch.item_index.numpy().astype(np.int32))
            users.append((batch.users().numpy() + num_users).astype(np.int32))
            num_users += len(batch)
        return np.concatenate(items), np.concatenate(users)

    def _pairs(
        self, items: NDArray[np.int32], users: NDArray[np.int32], draws: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Centres and contexts of an epoch, shuffled within blocks that come in random order."""
        starts = np.arange(0, len(items), _BLOCK_EVENTS)
        for start in draws.permutation(starts):
            stop = start + _BLOCK_EVENTS + self.window  # pairs that reach into the next block
            block, owner = items[start:stop].astype(np.int64), users[start:stop]
            found: list[NDArray[np.int64]] = []
            for apart in range(1, self.window + 1):
                left = np.arange(min(_BLOCK_EVENTS, len(block) - apart))
                left = left[owner[left] == owner[left + apart]]
                chance = (self.window - apart + 1) / self.window
                for here, there in ((left, left + apart), (left + apart, left)):
                    keep = draws.random(len(left)) < chance
                    found.append(np.stack([block[here[keep]], block[there[keep]]]))
            pairs = np.concatenate(found, axis=1)
            pairs = pairs[:, draws.permutation(pairs.shape[1])]
            for first in range(0, pairs.shape[1], _BATCH_PAIRS):
                yield pairs[0, first : first + _BATCH_PAIRS], pairs[1, first : first + _BATCH_PAIRS]

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32."""
        users = recency_matrix(batch, self.num_items, self.half_life) @ self.vectors
        norms = np.linalg.norm(users, axis=1, keepdims=True)
        return as_scores(
            (users / np.maximum(norms, 1e-12)) @ self.vectors.T, small_popularity(self._counts)
        )
