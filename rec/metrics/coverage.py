"""What share of the items a recommender shows at all, and how much of it is new or rare.

Lists are (Q, k) positions of items, best first, -1 where a list is shorter.

>>> lists = np.array([[0, 1], [0, 2], [0, -1]])
>>> exposures(lists, 5).tolist()
[3, 1, 1, 0, 0]
>>> coverage(exposures(lists, 5))
0.6
>>> share_of(lists, np.array([False, True, True, False, False])).tolist()
[0.5, 0.5, 0.0]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Lists = NDArray[np.integer]


def exposures(lists: Lists, num_items: int) -> NDArray[np.int64]:
    """(N,) in how many places each item stands. Sums over chunks of queries add up."""
    return np.bincount(lists[lists >= 0].ravel(), minlength=num_items).astype(np.int64)


def unique_items(shown: NDArray[np.integer]) -> int:
    """How many items stand in any list.

    Args:
        shown: (N,) from `exposures`.
    """
    return int(np.count_nonzero(shown))


def coverage(shown: NDArray[np.integer]) -> float:
    """The share of all items that stand in any list (catalogue coverage)."""
    return unique_items(shown) / len(shown)


def share_of(lists: Lists, item_mask: NDArray[np.bool_]) -> Floats:
    """(Q,) the share of a list's items that are marked: new items, say; 0 for an empty list.

    Args:
        item_mask: (N,) True for the items asked for.
    """
    there = lists >= 0
    marked = np.count_nonzero(item_mask[lists] & there, axis=1)
    return marked / np.maximum(there.sum(axis=1), 1)


def tail_mask(num_events: NDArray[np.integer], head_share: float = 0.8) -> NDArray[np.bool_]:
    """(N,) True for items outside the head: the fewest items, taken from the most frequent, that
    have at least `head_share` of all events. Items without an event are tail, too.

    Of items with equally many events those that come first are head.
    """
    order = np.argsort(-np.asarray(num_events), kind="stable")
    events = np.asarray(num_events)[order]
    before = np.cumsum(events) - events  # of those more frequent
    tail = np.ones(len(order), bool)
    tail[order] = (before >= head_share * events.sum()) | (events == 0)
    return tail
