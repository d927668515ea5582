"""Graphs in compressed sparse rows, cut into shards by ranges of source nodes.

A shard is one safetensors file with indptr (n + 1), and for each of its m edges indices, weights
and times: edges of the source node first + i are at indptr[i] to indptr[i + 1], by target.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

NO_TIME = np.iinfo(np.int64).min  # of an edge that nobody dated


class CsrError(ValueError):
    """A shard is not one, or shards do not fit together. Says what was expected."""


@dataclass(frozen=True)
class CsrShard:
    """The edges of the source nodes first, first + 1, ..., first + num_nodes - 1."""

    first: int
    indptr: NDArray[np.int64]  # (num_nodes + 1,)
    indices: NDArray[np.int64]  # (num_edges,) target nodes
    weights: NDArray[np.float32]  # (num_edges,)
    times: NDArray[np.int64]  # (num_edges,) microseconds since 1970, or NO_TIME

    @property
    def num_nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        return len(self.indices)

    def edges(self, node: int) -> slice:
        """Where the edges of a source node of this shard are."""
        at = node - self.first
        return slice(int(self.indptr[at]), int(self.indptr[at + 1]))

    def to_bytes(self) -> bytes:
        arrays = {"indptr": self.indptr, "indices": self.indices}
        arrays |= {"weights": self.weights, "times": self.times}
        return save({**arrays, "first": np.array([self.first], np.int64)})

    @classmethod
    def from_bytes(cls, data: bytes) -> CsrShard:
        """Raises CsrError when the bytes are no shard."""
        try:
            found = load(data)
            first = int(found.pop("first")[0])
            shard = cls(first=first, **found)
        except (SafetensorError, KeyError, TypeError) as error:
            raise CsrError(f"not a shard of a graph: {error}") from error
        if shard.indptr[-1] != shard.num_edges:
            raise CsrError(f"indptr ends at {shard.indptr[-1]}, but {shard.num_edges} edges follow")
        return shard


def build_shard(
    first: int,
    num_nodes: int,
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    weight: NDArray[np.float32],
    time: NDArray[np.int64],
) -> CsrShard:
    """A shard of edges in any order.

    Args:
        first: number of its first source node.
        num_nodes: how many source nodes it has, those without edges too.
        source: (m,) first <= source < first + num_nodes.
        target: (m,) node numbers of the target's type.
        weight: (m,)
        time: (m,)

    Raises:
        CsrError: a source is out of range.
    """
    local = source - first
    if len(local) and (local.min() < 0 or local.max() >= num_nodes):
        raise CsrError(
            f"sources {source.min()} to {source.max()}, expected {first} to {first + num_nodes - 1}"
        )
    order = np.lexsort((target, local))
    counts = np.bincount(local, minlength=num_nodes)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return CsrShard(first, indptr, target[order], weight[order], time[order])


class CsrGraph:
    """Consecutive shards as one graph.

    Raises:
        CsrError: a shard does not begin where the one before it ends.
    """

    def __init__(self, shards: Sequence[CsrShard]) -> None:
        self.shards = sorted(shards, key=lambda shard: (shard.first, shard.num_nodes))
        end = 0
        for shard in self.shards:
            if shard.first != end:
                raise CsrError(f"a shard begins at node {shard.first}, expected {end}")
            end += shard.num_nodes
        self.num_nodes = end
        self._ends = [shard.first + shard.num_nodes for shard in self.shards]

    def neighbours(self, node: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Targets of a source node's edges, ascending, and the edges' weights."""
        if not 0 <= node < self.num_nodes:
            raise CsrError(f"node {node}, expected 0 to {self.num_nodes - 1}")
        shard = self.shards[bisect_right(self._ends, node)]
        at = shard.edges(node)
        return shard.indices[at], shard.weights[at]
