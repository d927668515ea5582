"""Where queries found their relevant items among all candidates, by the rules that
`rec.metrics.ranking` states: in the worst order that the scores allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
CHUNK_SCORES = 1 << 24  # scores held at a time; 64 MiB as float32
_MAX_COUNTED = 32  # relevant items of a query up to which counting is no slower than sorting


@dataclass(frozen=True)
class TargetRanks:
    """Where Q queries found their relevant items: all that the metrics need."""

    query_index: NDArray[np.int64]  # (M,) ascending
    column_index: NDArray[np.int64]  # (M,) the relevant candidates
    rank: Floats  # (M,) from 1, ascending within a query; inf where never retrieved
    num_relevant: NDArray[np.int64]  # (Q,) at least 1; counts items that were no candidates

    def __len__(self) -> int:
        return len(self.num_relevant)

    def per_query(self, values: Floats) -> Floats:
        sums = np.bincount(self.query_index, weights=values, minlength=len(self))
        return sums.astype(float)  # bincount of nothing is of integers

    def position(self) -> Floats:
        """(M,) 1 for a query's best ranked relevant item, 2 for the next, and so on."""
        first = np.searchsorted(self.query_index, self.query_index, side="left")
        return np.arange(len(self.query_index)) - first + 1.0


def rank_targets(
    scores: Floats,
    relevant_mask: Mask,
    candidate_mask: Mask | None = None,
    num_relevant: NDArray[np.integer] | None = None,
) -> TargetRanks:
    """Worst-case ranks of the relevant candidates of B queries.

    Args:
        scores: (B, N), higher is better.
        relevant_mask: (B, N), True where the candidate is what the query should find.
        candidate_mask: (B, N) or (N,), False where it is left out (seen items, the query itself).
        num_relevant: (B,) how many relevant items there are, with those outside the N columns;
            by default the row sums of `relevant_mask`, before `candidate_mask` is applied.

    Raises:
        ValueError: shapes differ, or a query has no relevant item (leave it out and say so).
    """
    if scores.ndim != 2 or scores.shape != relevant_mask.shape:
        raise ValueError(f"scores {scores.shape} and relevant_mask {relevant_mask.shape} differ")
    excluded = None
    if candidate_mask is not None:
        excluded = sparse.csr_array(~np.broadcast_to(candidate_mask, scores.shape))
    return rank_in_chunks(
        lambda start, stop: scores[start:stop],
        sparse.csr_array(relevant_mask),
        excluded=excluded,
        num_relevant=num_relevant,
    )


def rank_in_chunks(
    score_rows: Callable[[int, int], Floats],
    relevant: sparse.csr_array,
    *,
    candidate_mask: Mask | None = None,
    excluded: sparse.csr_array | None = None,
    num_relevant: NDArray[np.integer] | None = None,
    chunk_scores: int = CHUNK_SCORES,
) -> TargetRanks:
    """`rank_targets` for score matrices that are too large to hold (100k x 100k is 40 GB).

    Ranks are counted, not sorted for: one comparison a score and relevant item, and beside the
    scores of a chunk nothing of their size is held.

    Args:
        score_rows: gives the scores (stop - start, N) of queries start to stop.
        relevant: (Q, N), non-zero where relevant.
        candidate_mask: (N,), False for columns that are no candidates for anybody.
        excluded: (Q, N), non-zero where the column is no candidate for this query.
        num_relevant: (Q,), as in `rank_targets`.
        chunk_scores: how many scores to hold at a time.

    Raises:
        ValueError: as `rank_targets`.
    """
    wanted = _Columns(relevant)
    total = wanted.sizes if num_relevant is None else np.asarray(num_relevant, dtype=np.int64)
    if (short := total < np.maximum(wanted.sizes, 1)).any():
        row = int(np.argmax(short))
        raise ValueError(
            f"query {row}: num_relevant {total[row]}, relevant columns {wanted.sizes[row]}"
        )
    dropped = _Columns(sparse.csr_array(relevant.shape) if excluded is None else excluded)
    never = None if candidate_mask is None else np.flatnonzero(~candidate_mask)
    num_queries, num_columns = relevant.shape
    step = max(1, chunk_scores // max(1, num_columns))
    parts: list[_Ranked] = []
    for start in range(0, num_queries, step):
        stop = min(start + step, num_queries)
        scores = np.asarray(score_rows(start, stop))
        if scores.dtype.kind != "f":
            scores = scores.astype(np.float64)
        found = _rank_chunk(scores, start, wanted, dropped, never)
        parts.append(found._replace(row=found.row + start))
    row, column, rank = (np.concatenate(p) for p in zip(_NOTHING, *parts, strict=True))
    return TargetRanks(row, column, rank, total)


class _Columns:
    """The non-zero columns of each row, ascending."""

    def __init__(self, matrix: sparse.csr_array) -> None:
        clean: Any = matrix.astype(bool)  # a copy: what follows works in place
        clean.sum_duplicates()
        clean.eliminate_zeros()
        self._columns, self._starts = clean.indices, clean.indptr
        self.sizes = np.diff(clean.indptr).astype(np.int64)

    def count(self, column_mask: Mask) -> NDArray[np.int64]:
        """(Q,) how many columns of each row are in the mask."""
        upto = np.concatenate([[0], np.cumsum(column_mask[self._columns])])
        return np.diff(upto[self._starts])

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        return self._columns[self._starts[row] : self._starts[row + 1]]

    def cells(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows, counted from `start`, and columns of all that is there in rows start to stop."""
        columns = self._columns[self._starts[start] : self._starts[stop]].astype(np.int64)
        return np.repeat(np.arange(stop - start), self.sizes[start:stop]), columns


class _Ranked(NamedTuple):
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    rank: Floats


_NOTHING = _Ranked(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def _rank_chunk(
    scores: Floats,
    start: int,
    wanted: _Columns,
    dropped: _Columns,
    never: NDArray[np.int64] | None,
) -> _Ranked:
    """The wanted columns that are candidates, best first in each row, and their worst-case ranks.

    Args:
        scores: (B, N) of rows start to start + B.
        wanted, dropped: columns of all rows.
        never: columns that are dropped from every row.
    """
    row, column = wanted.cells(start, start + len(scores))
    keep = ~_among(row, column, *dropped.cells(start, start + len(scores)), scores.shape[1])
    if never is not None:
        keep &= ~np.isin(column, never)
    row, column = row[keep], column[keep]
    own = scores[row, column]
    order = np.lexsort((-own, row))  # NaN last
    row, column, own = row[order], column[order], own[order]
    firsts = np.flatnonzero(np.diff(row, prepend=-1))
    sizes = np.diff(firsts, append=len(row))
    not_below = np.zeros(len(row), np.int64)
    equal = np.zeros(len(row), bool)  # all candidates have one score: no order
    for first, size in zip(firsts.tolist(), sizes.tolist(), strict=True):
        part, at = slice(first, first + size), int(row[first])
        out = dropped[start + at] if never is None else np.union1d(dropped[start + at], never)
        not_below[part], equal[part] = _not_below(scores[at], own[part], out)
    rank = not_below - _own_not_below(own, firsts, sizes)  # above it, and not wanted
    rank = rank + np.arange(1.0, len(row) + 1) - np.repeat(firsts, sizes)
    rank[np.isnan(own) | equal] = np.inf
    return _Ranked(row, column, rank)


def _among(
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    width: int,
) -> Mask:
    """Which of the first cells are among the others, which are ascending."""
    if not len(rows):
        return np.zeros(len(row), bool)
    cells, others = row * width + column, rows * width + columns
    return others[np.minimum(np.searchsorted(others, cells), len(others) - 1)] == cells


def _own_not_below(
    own: Floats, firsts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many of a row's wanted scores are at least as high as each of them, or NaN.

    Args:
        own: row by row, falling, NaN last.
        firsts, sizes: of the rows.
    """
    level = np.ones(len(own), bool)  # begins a row or another score
    level[1:] = own[1:] != own[:-1]
    level[firsts] = True
    begins = np.append(np.flatnonzero(level), len(own))
    ends = np.repeat(begins[1:], np.diff(begins))
    nans = np.concatenate([[0], np.cumsum(np.isnan(own))])
    return ends - np.repeat(firsts - (nans[firsts + sizes] - nans[firsts]), sizes)


def _not_below(
    values: Floats, own: Floats, dropped: NDArray[np.int64]
) -> tuple[NDArray[np.int64], bool]:
    """How many candidates are at least as high as each of `own`, or NaN; and whether all of them
    have one score.

    Args:
        values: (N,).
        own: falling, NaN last.
        dropped: columns that are no candidates.
    """
    if len(dropped):
        values = values.copy()
        values[dropped] = -np.inf  # below all but what is as low
    if len(own) <= _MAX_COUNTED:
        below = np.array([np.count_nonzero(values < score) for score in own])
    else:
        below = np.searchsorted(np.sort(values), own, side="left")  # NaN is above all
    below[own > -np.inf] -= len(dropped)
    below[np.isnan(own)] = 0
    num_candidates = len(values) - len(dropped)
    equal = False
    if not below[0]:  # the best of them is the lowest there is
        others = len(dropped) if own[0] == -np.inf else 0
        equal = np.count_nonzero(values == own[0]) - others == num_candidates
    return num_candidates - below, equal


def rank_lists(
    lists: NDArray[np.integer], scores: Floats, relevant: sparse.csr_array
) -> TargetRanks:
    """Worst-case ranks of the relevant columns in ready lists, as an index returns them.

    Ties are seen as far as a list goes: one item more than the largest cut-off settles all.

    Args:
        lists: (Q, k) columns, each once; -1 for no item.
        scores: (Q, k) of the items.
        relevant: (Q, N), non-zero where relevant.
    """
    there = lists >= 0
    row, place = np.nonzero(there)
    asked = _Columns(relevant)
    hit = _among(row, lists[there].astype(np.int64), *asked.cells(0, len(lists)), relevant.shape[1])
    cells = (np.ones(int(hit.sum())), (row[hit], place[hit]))
    found = rank_in_chunks(
        lambda start, stop: scores[start:stop],
        sparse.csr_array(cells, shape=lists.shape),
        excluded=sparse.csr_array(~there),
        num_relevant=asked.sizes,
    )
    columns = lists[found.query_index, found.column_index].astype(np.int64)
    return replace(found, column_index=columns)


def joined(parts: Sequence[TargetRanks]) -> TargetRanks:
    """The ranks of queries that were answered in parts, one part after the other."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    none = np.empty(0, np.int64)
    nothing = TargetRanks(none, none, np.empty(0), none)
    shifted = [part.query_index + at for part, at in zip(parts, starts, strict=False)]
    parts = [nothing, *parts]
    return TargetRanks(
        np.concatenate([nothing.query_index, *shifted]),
        np.concatenate([part.column_index for part in parts]),
        np.concatenate([part.rank for part in parts]),
        np.concatenate([part.num_relevant for part in parts]),
    )


def only_columns(
    ranks: TargetRanks, relevant: sparse.csr_array, column_mask: Mask
) -> tuple[NDArray[np.int64], TargetRanks]:
    """What the ranks say of some of the columns: cold items, say.

    Ranks stay places in the whole list. Queries without a relevant item of the kind are left out.

    Args:
        ranks: of all relevant columns.
        relevant: (Q, N), from which `ranks` come, none of them outside the N columns.
        column_mask: (N,) True for the columns to look at.

    Returns:
        The (R,) queries that are left, ascending, and their ranks, numbered 0 to R - 1.
    """
    kept = _Columns(relevant).count(column_mask)
    queries = np.flatnonzero(kept)
    keep = column_mask[ranks.column_index]
    return queries, TargetRanks(
        np.searchsorted(queries, ranks.query_index[keep]),
        ranks.column_index[keep],
        ranks.rank[keep],
        kept[queries],
    )
