"""Which items have which tags, in one spelling of each. Knows nothing of Ray or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.features.tags import normalise


class Tags:
    """Tags of n items, both ways round; "#Sci-Fi" and "sci fi" are one (`rec.features.tags`).

    Args:
        lists: list of strings, of n items; null is none.
    """

    def __init__(self, lists: pa.ListArray) -> None:
        words = pc.list_flatten(lists).dictionary_encode()
        spelt = normalise(words.dictionary).dictionary_encode()
        self.names: list[str] = spelt.dictionary.to_pylist()
        self._codes = {name: code for code, name in enumerate(self.names)}
        of_word = spelt.indices.fill_null(-1).to_numpy()
        codes = of_word[words.indices.drop_null().to_numpy()]
        rows = pc.list_parent_indices(lists).to_numpy()[words.indices.is_valid().to_numpy(False)]
        pairs = np.unique(np.stack([rows, codes], axis=1)[codes >= 0], axis=0)  # each tag once
        rows, self._of_rows = pairs[:, 0], pairs[:, 1]
        self._starts = np.searchsorted(rows, np.arange(len(lists) + 1))
        order = np.argsort(self._of_rows, kind="stable")
        self._rows = rows[order]
        self._ends = np.searchsorted(self._of_rows[order], np.arange(len(self.names) + 1))

    def of(self, row: int) -> list[str]:
        """The tags of an item."""
        codes = self._of_rows[self._starts[row] : self._starts[row + 1]]
        return [self.names[code] for code in codes]

    def rows(self, tag: str) -> np.ndarray:
        """The items that have a tag, however it is spelt, in order."""
        code = self._codes.get(normalise(pa.array([tag], pa.string()))[0].as_py())
        if code is None:
            return np.zeros(0, np.int64)
        return self._rows[self._ends[code] : self._ends[code + 1]]

    def counts(self) -> np.ndarray:
        """Items that have each of `names`."""
        return np.diff(self._ends)


class Suggested(NamedTuple):
    tag: str
    score: float  # 0 to 1: the share of the neighbours, weighted, that have it
    item_ids: list[str]  # the nearest of those


def vote(
    neighbours: Sequence[tuple[str, float, list[str]]],
    without: Sequence[str],
    most: int,
    shown: int = 3,
) -> list[Suggested]:
    """Tags for something from the items nearest to it: each votes with its similarity.

    Args:
        neighbours: id, similarity and tags of each, the nearest first; one of similarity 0 or less,
            or without tags, does not count.
        without: tags that are not to be suggested.
        most: tags; equal scores in order of the tag.
        shown: items told with a tag.
    """
    total = 0.0
    votes: dict[str, float] = {}
    voters: dict[str, list[str]] = {}
    for item_id, similarity, tags in neighbours:
        if not tags or similarity <= 0:
            continue
        total += similarity
        for tag in tags:
            votes[tag] = votes.get(tag, 0.0) + similarity
            voters.setdefault(tag, []).append(item_id)
    for tag in without:
        votes.pop(tag, None)
    best = sorted(votes, key=lambda tag: (-votes[tag], tag))[:most]
    return [Suggested(tag, votes[tag] / total, voters[tag][:shown]) for tag in best]
