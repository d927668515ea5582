"""How many inverted lists to look into."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rec.retrieval.ann import Ann
from rec.retrieval.costs import affordable, ns_to_compare, ns_to_pass
from rec.retrieval.effort import Effort
from rec.retrieval.exact import mark_absent

_BELOW_RISE = 0.95  # of the true neighbours of held-out queries
_FAR = 2.0  # times the rise; of rows that are all far the best lie further from their centres
_MORE_CANDIDATES = 4  # times as many
_MANY_CANDIDATES, _MOST_CANDIDATES = 64, 6400  # for a hit; for all
_MANY_LISTS = 4  # times as many as were tuned to, of which all rows score nearly the same


def rise(anns: Sequence[Ann], queries: np.ndarray, truth: np.ndarray, scores: np.ndarray) -> float:
    """How far the neighbours of held-out queries score above the centres of the lists that they
    are in, by the query's norm; all but a twentieth of them score less.

    Args:
        anns: shards of inverted lists.
        queries: (Q, D).
        truth: (Q, k) rows over all shards, -1 where there are fewer; with their `scores`.
    """
    above, start, norms = [np.zeros(1)], 0, _norms(queries)
    for ann in anns:
        query, place = np.nonzero((truth >= start) & (truth < start + ann.size))
        lists = ann.list_of_rows()[truth[query, place] - start]
        by = scores[query, place] - ann.list_scores(queries)[query, lists]
        above.append(by / np.where(norms > 0, norms, 1)[query])
        start += ann.size
    return float(np.quantile(np.concatenate(above), _BELOW_RISE))


def search_fitting(
    ann: Ann,
    queries: np.ndarray,
    k: int,
    effort: Effort,
    per_list: np.ndarray,
    bits: np.ndarray,
    compare: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Look as `walk` does, then once more where better hits may lie further off: into all lists
    whose centres come within the effort's rise of the k-th score that was found.

    Where the nearest rows fit, those lists were looked into already. Where they do not, hits lie
    in lists that are nearly all as far from the query, further from their centres than near ones,
    and many rows score nearly the same: then it takes twice the rise, and the refinement, where
    there is one, many candidates. All rows that fit are compared instead wherever that costs less.

    Args:
        per_list, bits: see `walk`.
        compare: finds the best of queries among all rows that fit.
    """
    there = int(per_list.sum())
    if ns_to_compare(ann, there, len(queries)) <= ns_to_pass(ann, len(queries) * effort.nprobe):
        return compare(queries)
    first = _with(ann, effort, effort.nprobe, k, there, again=False)
    rows, scores, looked, edge = walk(ann, queries, k, first, per_list, bits)
    is_far = looked > effort.nprobe
    margins = np.where(is_far, _FAR, 1.0) * effort.rise * _norms(queries)
    least = scores[:, min(k, max(there, 1)) - 1] - margins
    again = (edge >= least) & (looked < ann.num_lists)
    if ann.refines:
        again |= is_far
    if again.any():
        wanted = (ann.list_scores(queries[again]) >= least[again, None]).sum(axis=1)
        # few different numbers, so that queries are searched together
        wanted = np.ceil(2 ** (np.ceil(2 * np.log2(wanted + 1)) / 2)).astype(np.int64)
        looked[again] = np.clip(wanted, looked[again], ann.num_lists)
        passing = ns_to_pass(ann, int(looked[again].sum()))
        if ns_to_compare(ann, there, int(again.sum())) <= passing:
            rows[again], scores[again] = compare(queries[again])
            return rows, scores
        for nprobe in np.unique(looked[again]):
            now = np.flatnonzero(again & (looked == nprobe))
            if not ann.finds_all_lists:
                found = _edge(ann, queries[now], *ann.nearest_lists(queries[now], int(nprobe)))
                if len(lost := now[found >= least[now]]):
                    rows[lost], scores[lost] = compare(queries[lost])
                now = now[found < least[now]]
            further = _with(ann, effort, int(nprobe), k, there, again=True)
            rows[now], scores[now] = ann.search(queries[now], k, further, bits)
        mark_absent(rows, scores)
    return rows, scores


def walk(
    ann: Ann,
    queries: np.ndarray,
    k: int,
    effort: Effort,
    per_list: np.ndarray,
    bits: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Look into lists at least as far as `effort` goes, and for each query on until those
    passed hold enough rows, in enough lists: what fits may lie far from the query. Returns
    (B, k) rows and scores, and (B,) into how many lists it looked and the score that no centre of
    another list exceeds.

    Args:
        per_list: (lists,) rows that may be found in each.
        bits: of these rows; None = all.
    """
    least_rows = min(4 * k, int(per_list.sum()))
    least_lists = min(effort.nprobe, int(np.count_nonzero(per_list)))
    rows = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    looked, edge = np.zeros(len(queries), np.int64), np.zeros(len(queries), np.float32)
    waiting, nprobe = np.arange(len(queries)), effort.nprobe
    while len(waiting):
        nprobe = min(nprobe, ann.num_lists)
        near, centres = ann.nearest_lists(queries[waiting], nprobe)
        held = np.where(near < 0, 0, per_list[near])
        enough = (held.sum(axis=1) >= least_rows) & ((held > 0).sum(axis=1) >= least_lists)
        enough |= nprobe == ann.num_lists
        if len(now := waiting[enough]):
            effort = effort._replace(nprobe=nprobe)
            rows[now], scores[now] = ann.search(queries[now], k, effort, bits)
            looked[now] = np.count_nonzero(near[enough] >= 0, axis=1)
            edge[now] = _edge(ann, queries[now], near[enough], centres[enough])
        waiting, nprobe = waiting[~enough], 2 * nprobe
    mark_absent(rows, scores)
    return rows, scores, looked, edge


def _with(ann: Ann, effort: Effort, nprobe: int, k: int, there: int, again: bool) -> Effort:
    """`effort` for so many lists. Of the more rows that are passed more score nearly the same to
    codes, and the less it adds to re-rank as many candidates as that takes time; `again` more."""
    many, least = affordable(ann, nprobe) / k, effort.k_factor
    if again:
        least *= _MORE_CANDIDATES
        many = _MANY_CANDIDATES if nprobe > _MANY_LISTS * ann.effort.nprobe else many
    many = max(least, min(many, _MANY_CANDIDATES, _MOST_CANDIDATES / k))
    return effort._replace(nprobe=nprobe, k_factor=max(effort.k_factor, min(many, there / k)))


def _edge(ann: Ann, queries: np.ndarray, near: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(B,) the score that no centre of a list other than the `near` ones exceeds."""
    if ann.finds_all_lists:
        return centres[:, -1]
    left = ann.list_scores(queries)
    query, place = np.nonzero(near >= 0)
    left[query, near[query, place]] = -np.inf
    return left.max(axis=1)


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors.astype(np.float64), axis=1)
