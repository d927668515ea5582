"""How many inverted lists to look into."""

from __future__ import annotations

import numpy as np

from rec.retrieval.ann import Ann, Effort, mark_absent


def walk(
    ann: Ann,
    queries: np.ndarray,
    k: int,
    effort: Effort,
    per_list: np.ndarray,
    bits: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Look into lists at least as far as `effort` goes, and for each query on until those
    passed hold enough rows, in enough lists: what fits may lie far from the query.

    Args:
        per_list: (lists,) rows that may be found in each.
        bits: of these rows; None = all.
    """
    least_rows = min(4 * k, int(per_list.sum()))
    least_lists = min(effort.nprobe, int(np.count_nonzero(per_list)))
    rows = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    waiting, nprobe = np.arange(len(queries)), effort.nprobe
    while len(waiting):
        nprobe = min(nprobe, ann.num_lists)
        near = ann.nearest_lists(queries[waiting], nprobe)
        held = np.where(near < 0, 0, per_list[near])
        enough = (held.sum(axis=1) >= least_rows) & ((held > 0).sum(axis=1) >= least_lists)
        enough |= nprobe == ann.num_lists
        if len(now := waiting[enough]):
            effort = effort._replace(nprobe=nprobe)
            rows[now], scores[now] = ann.search(queries[now], k, effort, bits)
        waiting, nprobe = waiting[~enough], 2 * nprobe
    mark_absent(rows, scores)
    return rows, scores
