"""Graphs in compressed sparse rows, cut into shards by ranges of source nodes.

A shard is one safetensors file with first (1), indptr (n + 1), and for each of its m edges indices,
weights and times: those of the source node first + i are at indptr[i] to indptr[i + 1], by target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

NO_TIME = np.iinfo(np.int64).min  # of an edge that nobody dated


class CsrError(ValueError):
    """Edges are not of the shard. Says what was expected."""


@dataclass(frozen=True)
class CsrShard:
    """The edges of the source nodes first, first + 1, ..., one for each of indptr but its last."""

    first: int
    indptr: NDArray[np.int64]  # (nodes + 1,)
    indices: NDArray[np.int64]  # (edges,) target nodes
    weights: NDArray[np.float32]  # (edges,)
    times: NDArray[np.int64]  # (edges,) microseconds since 1970, or NO_TIME

    def to_bytes(self) -> bytes:
        """As the file."""
        arrays = {"indptr": self.indptr, "indices": self.indices}
        arrays |= {"weights": self.weights, "times": self.times}
        return save({**arrays, "first": np.array([self.first], np.int64)})


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
