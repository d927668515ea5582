"""What a filtered search would take by each way that there is, in rough nanoseconds: ratios count.

Measured on one machine, with vectors of 48 and of 128 values (`bench.retrieval --only filters` has
what comes of it).
"""

from __future__ import annotations

import math

from rec.retrieval.ann import Ann
from rec.retrieval.effort import Effort

_COMPARE_NS = 0.09  # a value of a query with one of a vector
CHEAP_VALUES = 1 << 18  # numbers of vectors compared in the time that lists would take
_PASS_NS = 3.0  # one row of a list under a filter
# to decode a value, or a row where FAISS decodes them one after the other
_VECTOR_NS, _CODE_NS, _ROW_NS = 0.3, 0.9, 850.0
_RERANK_NS = 120.0  # one candidate by the refinement
_IN_LIST_NS = 0.25  # to compare a value that FAISS decodes as it goes through a list


def ns_to_compare(ann: Ann, num_rows: int, num_queries: int) -> float:
    """To decode these rows and compare each query with each of them."""
    if ann.keeps_vectors:
        decode = _VECTOR_NS * ann.dim
    else:
        decode = _CODE_NS * ann.dim if ann.decodes_at_once else _ROW_NS
    return num_rows * (decode + num_queries * _COMPARE_NS * ann.dim)


def ns_to_pass(ann: Ann, num_lists: float) -> float:
    """To look for rows that fit in so many lists, one query's or all queries' together."""
    return _PASS_NS * ann.size * num_lists / ann.num_lists


def ns_to_rerank(num: float) -> float:
    """To compare so many candidates by the refinement."""
    return _RERANK_NS * num


def affordable(ann: Ann, num_lists: float) -> float:
    """Candidates that are re-ranked in the time that looking into so many lists takes."""
    return ns_to_pass(ann, num_lists) / _RERANK_NS


def passes_all(ann: Ann, num_rows: int, num_queries: int) -> bool:
    """Whether to look into all lists finds the same as to compare all rows that match, sooner."""
    if not ann.compares_in_lists:
        return False
    in_lists = num_queries * (ns_to_pass(ann, ann.num_lists) + num_rows * ann.dim * _IN_LIST_NS)
    return in_lists < ns_to_compare(ann, num_rows, num_queries)


def compares_all(matches: int, ann: Ann, k: int) -> bool:
    """Whether a filtered search compares every row that matches, instead of looking into lists.

    Below a twentieth of the rows (a tenth for graphs, which lose their way sooner), ten times k, or
    what takes no longer than to look into lists at all: that is exact, and faster but where FAISS
    decodes rows one after the other (PQ in lists, not refined; `ns_to_compare`), whose recall is so
    low that exactness is worth it. Above, a graph may lose hits that lie far from the query: it
    cannot be led to them.
    """
    few = matches < max(10 * k, ann.size * (0.1 if ann.is_graph else 0.05))
    return few or matches * ann.dim <= CHEAP_VALUES


def effort_for(ann: Ann, k: int, matches: int) -> Effort | None:
    """More than was tuned for where k is large or few rows match; None = as tuned."""
    tuned, lists = ann.effort, ann.num_lists
    if ann.is_graph:
        ef = max(k, math.ceil(tuned.ef * min(8.0, ann.size / max(matches, 1))))
        return None if ef == tuned.ef else tuned._replace(ef=ef)
    if not lists:
        return None
    # the lists looked into must hold some times k rows that match
    least = math.ceil(4 * k * lists / max(matches, 1))
    wider = math.ceil(tuned.at(k).nprobe * min(8.0, math.sqrt(ann.size / max(matches, 1))))
    nprobe = min(lists, max(least, wider))
    return None if nprobe == tuned.nprobe else tuned._replace(nprobe=nprobe)
