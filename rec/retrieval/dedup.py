"""Groups of near-duplicates: items whose vectors agree, and whose pictures do where both have one.

A perceptual hash is 64 bits of which few change when a picture is scaled or compressed; vectors
alone call different pictures of one thing duplicates, hashes alone dark ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from pydantic import Field
from scipy import sparse
from scipy.sparse import csgraph

from rec.config import Config
from rec.retrieval.errors import QueryError
from rec.retrieval.index import Index
from rec.retrieval.queries import MAX_K

_BATCH = 1024
_FIRST_K = 16
_MAX_PAIRS = 1 << 20  # looked at, and kept, at a time
_NORMS_APART = 2.0


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
        index: one vector an item; of about one norm, whichever, since neighbours are found by the
            inner product: the largest at most twice the smallest. Zeros are no vector.
        hashes: (rows,) uint64 perceptual hashes in the order of the index's rows; None = none.
        hash_mask: (rows,) bool, which rows have one; None = all.
        rule: see DuplicateRule.

    Raises:
        QueryError: hashes that are no whole numbers, a mask that is no bool, or not one a row; an
            item has several vectors; or their norms differ too much.
    """
    rule = rule or DuplicateRule()
    if index.many:
        raise QueryError("an item has several vectors; index one of each for groups of items")
    num_rows = index.num_rows
    if hashes is None:
        hashes, hash_mask = np.zeros(num_rows, np.uint64), np.zeros(num_rows, bool)
    hashes = np.asarray(hashes)
    hash_mask = np.ones(num_rows, bool) if hash_mask is None else np.asarray(hash_mask)
    if hashes.dtype.kind not in "iu" or hash_mask.dtype != bool:
        raise QueryError(
            f"hashes are of type {hashes.dtype} and the mask of {hash_mask.dtype}, expected uint64 "
            f"and bool"
        )
    hashes = hashes.astype(np.uint64, copy=False)
    if hashes.shape != (num_rows,) or hash_mask.shape != (num_rows,):
        raise QueryError(
            f"hashes of shape {hashes.shape}, the index has {num_rows} rows and the mask is of "
            f"shape {hash_mask.shape}"
        )
    live = np.arange(num_rows) if index.dead is None else np.flatnonzero(~index.dead)
    least = min(rule.similarity, rule.similarity_alone)
    first = np.arange(num_rows)
    first[live], norms = _first_equal(index, live, hashes, hash_mask)
    norm_of = np.zeros(num_rows, np.float32)
    norm_of[live] = norms
    pairs, num_pairs = [np.zeros((0, 2), np.int64)], 0
    for left, right, similarity in _candidates(index, live[first[live] == live], norm_of, least):
        masks = hash_mask[left], hash_mask[right]
        alike = are_duplicates(similarity, (hashes[left], hashes[right]), masks, rule)
        pairs.append(np.stack([left, right], axis=1)[alike & (left != right)])
        num_pairs += len(pairs[-1])
        if num_pairs > _MAX_PAIRS:
            first = _joined(first, np.concatenate(pairs))
            pairs, num_pairs = pairs[:1], 0
    return _joined(first, np.concatenate(pairs))


def _first_equal(
    index: Index, rows: np.ndarray, hashes: np.ndarray, hash_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) of each row the first of the same vector and hash: thousands of equal rows would have
    a pair for every two of them. A vector of zeros is none, and equal to no other. And (n,) norms.
    """
    seen: dict[bytes, int] = {}
    first: list[int] = []
    norms = [np.zeros(0, np.float32)]
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        kept = np.where(hash_mask[batch], hashes[batch], 0)
        vectors = index.reconstruct(batch)
        norms.append(np.linalg.norm(vectors, axis=1))
        for row, vector, bits, has in zip(
            batch.tolist(), vectors, kept, hash_mask[batch], strict=True
        ):
            key = blake2b(vector.tobytes() + bits.tobytes() + has.tobytes(), digest_size=16)
            first.append(seen.setdefault(key.digest(), row) if vector.any() else row)
    return np.array(first, np.int64), np.concatenate(norms)


def _joined(first: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(rows,) of each row the smallest of its group, once the groups of each pair are one."""
    size = len(first)
    ends = np.concatenate([pairs[:, 0], np.arange(size)]), np.concatenate([pairs[:, 1], first])
    graph = sparse.coo_array((np.ones(len(ends[0]), bool), ends), (size, size))
    _, group = csgraph.connected_components(graph, directed=False)
    _, smallest = np.unique(group, return_index=True)
    return smallest[group]


def _candidates(
    index: Index, rows: np.ndarray, norm_of: np.ndarray, least: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs (row, neighbour) of at least this cosine, wider where a row has many."""
    some = np.flatnonzero(norm_of)
    if not len(some):
        return
    low, high = some[norm_of[some].argmin()], norm_of.argmax()
    if norm_of[high] > _NORMS_APART * norm_of[low]:
        small, large = index.ids(np.array([low, high]))
        raise QueryError(
            f"norms from {norm_of[low]:.3g} (item {small!r}) to {norm_of[high]:.3g} (item "
            f"{large!r}): an inner product says little of their cosine; index unit vectors"
        )
    enough = least * norm_of[low]  # a neighbour of a smaller inner product has no such cosine
    divisor = np.where(norm_of > 0, norm_of, 1)
    rows = rows[norm_of[rows] > 0]
    k = min(_FIRST_K, index.num_rows)
    while len(rows):
        more: list[np.ndarray] = []
        step = min(_BATCH, max(1, _MAX_PAIRS // k))
        for start in range(0, len(rows), step):
            batch = rows[start : start + step]
            hits = index.search(index.reconstruct(batch) / divisor[batch, None], k)
            cosines = hits.scores / divisor[hits.rows]
            near = cosines >= least
            full = (hits.scores[:, -1] >= enough) & (k < min(MAX_K, index.num_rows))
            place, column = np.nonzero(near & ~full[:, None])
            yield batch[place], hits.rows[place, column], cosines[place, column]
            more.append(batch[full])
        rows, k = np.concatenate(more), min(4 * k, MAX_K, index.num_rows)
