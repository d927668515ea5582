"""Where queries found their relevant items among all candidates, by the rules that
`rec.metrics.ranking` states: in the worst order that the scores allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    columns: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    ranks: list[Floats] = [np.empty(0)]
    sizes = np.zeros(num_queries, np.int64)
    for start in range(0, num_queries, step):
        stop = min(start + step, num_queries)
        scores = np.asarray(score_rows(start, stop))
        if scores.dtype.kind != "f":
            scores = scores.astype(np.float64)
        for row in range(start, stop):
            out = dropped[row] if never is None else np.union1d(dropped[row], never)
            column, rank = _rank_row(scores[row - start], wanted[row], out)
            columns.append(column)
            ranks.append(rank)
            sizes[row] = len(rank)
    query_index = np.repeat(np.arange(num_queries), sizes)
    return TargetRanks(query_index, np.concatenate(columns), np.concatenate(ranks), total)


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


def _rank_row(
    values: Floats, wanted: NDArray[np.int64], dropped: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats]:
    """The wanted columns that are candidates, best first, and their worst-case ranks.

    Args:
        values: (N,).
        wanted, dropped: columns, ascending.
    """
    if len(dropped) and len(wanted):
        place = np.minimum(np.searchsorted(dropped, wanted), len(dropped) - 1)
        wanted = wanted[dropped[place] != wanted]
    if not len(wanted):
        return wanted.astype(np.int64), np.empty(0)
    own = values[wanted]
    order = np.argsort(-own, kind="stable")  # NaN last
    wanted, own = wanted[order], own[order]
    # "not below" is at least as high, or NaN: both are lost against
    above = _not_below(values, own)
    for left_out in (values[dropped], own):
        above -= _not_below(left_out, own)
    rank = above + np.arange(1.0, len(own) + 1)
    rank[np.isnan(own)] = np.inf
    num_candidates = len(values) - len(dropped)
    if above[0] + len(own) == num_candidates:  # nothing is below the best: all may be equal
        equal = np.count_nonzero(values == own[0]) - np.count_nonzero(values[dropped] == own[0])
        if equal == num_candidates:
            rank[:] = np.inf
    return wanted.astype(np.int64), rank


def _not_below(values: Floats, own: Floats) -> NDArray[np.int64]:
    """(len(own),) how many values are not below each of `own`."""
    if len(own) <= _MAX_COUNTED:
        below = [np.count_nonzero(values < score) for score in own]
    else:
        below = np.searchsorted(np.sort(values), own, side="left")  # NaN is above all
        below[np.isnan(own)] = 0
    return len(values) - np.asarray(below, np.int64)


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
    wanted = _Columns(relevant)
    none = np.empty(0, np.int64)
    columns: list[NDArray[np.int64]] = [none]
    ranks: list[Floats] = [np.empty(0)]
    sizes = np.zeros(len(lists), np.int64)
    for q, row in enumerate(lists):
        there = row >= 0
        listed = row[there].astype(np.int64)
        places = np.flatnonzero(np.isin(listed, wanted[q]))
        places, rank = _rank_row(scores[q][there], places, none)
        columns.append(listed[places])
        ranks.append(rank)
        sizes[q] = len(rank)
    query_index = np.repeat(np.arange(len(lists)), sizes)
    return TargetRanks(query_index, np.concatenate(columns), np.concatenate(ranks), wanted.sizes)


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
