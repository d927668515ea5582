"""Perceptual hashes of pictures, and groups of those that are nearly equal.

pHash: signs of the 64 lowest frequencies of a 32 x 32 grey picture's cosine transform, against
their median (Zauner, Implementation and benchmarking of perceptual image hash functions, 2010).
dHash: whether each of 9 x 8 cells is brighter than the next one in its row. Both survive scaling
and compression; neither survives cropping or mirroring.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

BITS = 64
MIN_CONTRAST = 4.0  # standard deviation of grey below which a picture is flat


def phash(grey: np.ndarray) -> int | None:
    """The hash of an (h, w) uint8 picture; None for a flat one, of which it would be noise."""
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < MIN_CONTRAST:
        return None
    low = cv2.dct(small)[:8, :8].ravel()
    return _packed(low > np.median(low[1:]))


def dhash(grey: np.ndarray) -> int | None:
    """The hash of an (h, w) uint8 picture; None for a flat one."""
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    if small.std() < MIN_CONTRAST:
        return None
    return _packed((small[:, 1:] > small[:, :-1]).ravel())


def _packed(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) Hamming distances of uint64 hashes."""
    return np.bitwise_count(first ^ second).astype(np.int64)


def band_keys(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """(n, max_distance + 1) uint64: equal in some column wherever two hashes are near.

    Of as many bands of bits, plus one, as may differ, one band is equal in both.
    """
    bounds = BITS * np.arange(max_distance + 2) // (max_distance + 1)
    widths = np.diff(bounds)
    keys = np.empty((len(hashes), len(widths)), np.uint64)
    for band, (start, width) in enumerate(zip(bounds[:-1].tolist(), widths.tolist(), strict=True)):
        keys[:, band] = (hashes >> np.uint64(start)) & np.uint64((1 << width) - 1)
    return keys


def near_pairs(hashes: np.ndarray, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of hashes at most `max_distance` apart, in parts; a pair may come more than once.

    Hashes are sorted by each band and compared within equal bands; memory is that of the hashes.
    Equal hashes come as a star about the first, so that a picture that is there a million times
    costs a million comparisons.

    Args:
        hashes: (n,) uint64.
        max_distance: bits that may differ, from 0 to 63.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    yield first[inverse[again]], again
    for column in band_keys(values, max_distance).T:
        order = np.argsort(column, kind="stable")
        for left, right in partners(column[order]):
            a, b = order[left], order[right]
            near = distances(values[a], values[b]) <= max_distance
            yield first[a[near]], first[b[near]]


def partners(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of positions with equal keys, in parts of at most n: those k apart, k = 1, 2, ...

    Args:
        keys: (n,) equal ones next to each other.
    """
    if not len(keys):
        return
    start = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    end = np.append(start[1:], len(keys))
    after = np.repeat(end, end - start) - np.arange(len(keys)) - 1  # equal ones that follow
    at = np.flatnonzero(after > 0)
    offset = 1
    while len(at):
        yield at, at + offset
        offset += 1
        at = at[after[at] >= offset]


def near_groups(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """(n,) int64: for each hash, the first position of its group.

    A group is what is linked by steps of at most `max_distance` bits.
    """
    from scipy.sparse import coo_array  # a quarter of a second, and recipes lead to this file
    from scipy.sparse.csgraph import connected_components

    links = [np.stack(pair) for pair in near_pairs(hashes, max_distance)]
    size = len(hashes)
    rows, columns = np.concatenate(links, axis=1) if links else np.zeros((2, 0), np.int64)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(size, size))
    _, group = connected_components(graph, directed=False)
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)
