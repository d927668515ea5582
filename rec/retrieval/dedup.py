"""Groups of near-duplicates: items whose vectors agree, and whose pictures do where both have one.

A perceptual hash is 64 bits of which few change when a picture is scaled or compressed; vectors
alone call different pictures of one thing duplicates, hashes alone dark ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
from pydantic import Field
from scipy import sparse
from scipy.sparse import csgraph

from rec.config import Config
from rec.retrieval.index import Index
from rec.retrieval.queries import MAX_K

_BATCH = 1024
_FIRST_K = 16
T = TypeVar("T", bound=Hashable)


class DuplicateRule(Config):
    """When two items are near-duplicates."""

    similarity: float = Field(default=0.9, gt=0, le=1)  # cosine, and the hashes agree
    max_bits: int = Field(default=8, ge=0, le=64)  # that agreeing hashes may differ in
    similarity_alone: float = Field(default=0.98, gt=0, le=1)  # where one has no hash


def are_duplicates(
    similarity: np.ndarray,
    hashes: tuple[np.ndarray, np.ndarray],
    hash_masks: tuple[np.ndarray, np.ndarray],
    rule: DuplicateRule,
) -> np.ndarray:
    """(n,) bool of n pairs: cosines, uint64 hashes of both sides, and whether each has one."""
    bits = np.bitwise_count(hashes[0] ^ hashes[1])
    both = hash_masks[0] & hash_masks[1]
    alike = (similarity >= rule.similarity) & (bits <= rule.max_bits)
    return np.where(both, alike, similarity >= rule.similarity_alone)


def duplicate_groups(
    index: Index,
    hashes: np.ndarray | None = None,
    hash_mask: np.ndarray | None = None,
    rule: DuplicateRule | None = None,
) -> np.ndarray:
    """(rows,) of each row the smallest row of its group; alone in it, its own.

    Groups are the connected components of the pairs that are near-duplicates; candidates are
    each row's neighbours, as many as reach the rule's similarity. Dead rows stand alone.

    Args:
        index: of unit vectors; one vector an item.
        hashes: (rows,) uint64 perceptual hashes in the order of the index's rows; None = none.
        hash_mask: (rows,) bool, which rows have one; None = all.
        rule: see DuplicateRule.
    """
    rule = rule or DuplicateRule()
    num_rows = index.num_rows
    if hashes is None:
        hashes, hash_mask = np.zeros(num_rows, np.uint64), np.zeros(num_rows, bool)
    hash_mask = np.ones(num_rows, bool) if hash_mask is None else hash_mask
    if hashes.shape != (num_rows,) or hash_mask.shape != (num_rows,):
        raise ValueError(f"hashes of shape {hashes.shape}, the index has {num_rows} rows")
    live = np.arange(num_rows) if index.dead is None else np.flatnonzero(~index.dead)
    least = min(rule.similarity, rule.similarity_alone)
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(live), _BATCH):
        rows = live[start : start + _BATCH]
        left, right, similarity = _candidates(index, rows, least)
        masks = hash_mask[left], hash_mask[right]
        alike = are_duplicates(similarity, (hashes[left], hashes[right]), masks, rule)
        pairs.append(np.stack([left, right], axis=1)[alike & (left != right)])
    edges = np.concatenate(pairs)
    graph = sparse.coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (num_rows,) * 2)
    _, group = csgraph.connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return first[group]


def _candidates(
    index: Index, rows: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (row, neighbour) of at least this similarity, wider where a row has many."""
    k = min(_FIRST_K, index.num_rows)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while len(rows):
        hits = index.search(index.reconstruct(rows), k)
        near = hits.scores >= least
        full = near[:, -1] & (k < min(MAX_K, index.num_rows))
        place, column = np.nonzero(near & ~full[:, None])
        found.append((rows[place], hits.rows[place, column], hits.scores[place, column]))
        rows, k = rows[full], min(4 * k, MAX_K, index.num_rows)
    left, right, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return left, right, similarity


def first_of_group(items: Sequence[T], group_of: dict[T, Hashable]) -> list[int]:
    """Positions of the items that are the first of their group; one without a group stays."""
    seen: set[Hashable] = set()
    kept = []
    for place, item in enumerate(items):
        group = group_of.get(item)
        if group is None or group not in seen:
            kept.append(place)
        if group is not None:
            seen.add(group)
    return kept
