"""How many inverted lists to look into."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rec.retrieval.ann import Ann
from rec.retrieval.costs import affordable, ns_to_compare, ns_to_pass, ns_to_rerank
from rec.retrieval.effort import Effort
from rec.retrieval.exact import mark_absent
from rec.retrieval.spread import Spread

_BELOW_RISE = 0.95  # of the true neighbours of held-out queries
_STEP = 8  # times as many lists at a time, at most
_MORE_CANDIDATES = 4  # times as many
_MANY_CANDIDATES, _MOST_CANDIDATES = 64, 6400  # for a hit; for all


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
    spread: Spread,
) -> tuple[np.ndarray, np.ndarray]:
    """Look as `walk` does, then on until all lists were looked into that may hold better hits.

    Where the nearest rows fit, those are the lists whose centres come within the effort's rise of
    the k-th score that was found, and mostly they were looked into already. Where those rows do
    not, hits lie in lists that are nearly all as far from the query, of which those with the best
    hits are not those with the best centres: it looks on until the lists left are expected to hold
    no more better rows than the effort may miss. All rows that fit are compared instead wherever
    that costs less.

    Args:
        per_list, bits: see `walk`.
        compare: finds the best of queries among all rows that fit.
    """
    there = int(per_list.sum())
    if ns_to_compare(ann, there, len(queries)) <= ns_to_pass(ann, len(queries) * effort.nprobe):
        return compare(queries)
    first = _with(ann, effort, effort.nprobe, k, there, again=False)
    found = walk(ann, queries, k, first, per_list, bits)
    look = _Look(ann, queries, k, effort, bits, compare, found, there)
    goal = _Goal(ann, spread, k, effort, per_list)
    look.into_lists(goal)
    if ann.refines:
        look.at_candidates(goal)
    return look.rows, look.scores


class _Look:
    """Queries that look on after their first look; see `search_fitting`.

    Args:
        effort: as for the first look, which may have had more candidates.
        found: by `walk`.
        there: rows that fit.
    """

    def __init__(
        self,
        ann: Ann,
        queries: np.ndarray,
        k: int,
        effort: Effort,
        bits: np.ndarray,
        compare: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        found: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        there: int,
    ) -> None:
        self._ann, self._queries, self._k, self._effort = ann, queries, k, effort
        self._bits, self._compare, self._there = bits, compare, there
        self.rows, self.scores, self._looked, self._edge = found
        self._is_exact = np.zeros(len(queries), bool)
        self._tried = np.full(len(queries), float(effort.k_factor))

    def into_lists(self, goal: _Goal) -> None:
        """Look into more lists, as many as `goal` says."""
        ann, looked, left = self._ann, self._looked, np.arange(len(self._queries))
        # whose codes tell better from worse too badly there for so few candidates
        coarse = (looked > self._effort.nprobe) & ann.refines
        while len(left):
            worst = self._worst(left)
            wanted = goal.lists(self._queries[left], worst, looked[left], self._edge[left])
            again = (wanted > looked[left]) | coarse[left]
            if not again.any():
                return
            coarse, left, wanted = np.zeros(len(looked), bool), left[again], wanted[again]
            # on by steps: of better hits it wants fewer lists
            steps = np.clip(wanted, looked[left], np.minimum(_STEP * looked[left], ann.num_lists))
            lost = wanted > ann.num_lists
            if ns_to_compare(ann, self._there, len(left)) <= ns_to_pass(ann, int(steps.sum())):
                lost[:] = True
            self._compared(left[lost])
            left, wanted, steps = left[~lost], wanted[~lost], steps[~lost]
            looked[left] = steps
            for nprobe in np.unique(steps):
                further = _with(ann, self._effort, int(nprobe), self._k, self._there, again=True)
                self._search(left[steps == nprobe], further)
            if ann.finds_all_lists:
                left = left[wanted > steps]
            for nprobe in np.unique(looked[left]):
                now = left[looked[left] == nprobe]
                near = ann.nearest_lists(self._queries[now], int(nprobe))
                self._edge[now] = _edge(ann, self._queries[now], *near)

    def at_candidates(self, goal: _Goal) -> None:
        """Re-rank more candidates far from the query, where many score nearly the same to codes."""
        ann, k, most = self._ann, self._k, self._there / self._k
        left = np.flatnonzero((self._looked > self._effort.nprobe) & ~self._is_exact)
        while len(left):
            looked, tried = self._looked[left], self._tried[left]
            wanted = goal.candidates(self._queries[left], self._worst(left), looked) / k
            again = np.minimum(wanted, most) > tried
            left, looked, tried = left[again], looked[again], tried[again]
            wanted = np.minimum(2 ** np.ceil(np.log2(wanted[again])), most)
            factors = np.minimum(wanted, _STEP * tried)
            passing = ns_to_pass(ann, int(looked.sum())) + ns_to_rerank(factors.sum() * k)
            if ns_to_compare(ann, self._there, len(left)) <= passing:
                self._compared(left)
                return
            for nprobe, factor in set(zip(looked.tolist(), factors.tolist(), strict=True)):
                now = left[(looked == nprobe) & (factors == factor)]
                self._search(now, self._effort._replace(nprobe=nprobe, k_factor=factor))
            left = left[factors < wanted]

    def _worst(self, which: np.ndarray) -> np.ndarray:
        return self.scores[which, min(self._k, max(self._there, 1)) - 1]

    def _compared(self, which: np.ndarray) -> None:
        if len(which):
            self.rows[which], self.scores[which] = self._compare(self._queries[which])
            self._is_exact[which] = True

    def _search(self, which: np.ndarray, effort: Effort) -> None:
        found = self._ann.search(self._queries[which], self._k, effort, self._bits)
        mark_absent(*found)
        self.rows[which], self.scores[which] = found
        self._tried[which] = effort.k_factor


class _Goal:
    """How many lists a query should have looked into, once it has found some hits.

    Args:
        effort: of which it takes `rise` and `missed`.
        per_list: see `walk`.
    """

    def __init__(
        self, ann: Ann, spread: Spread, k: int, effort: Effort, per_list: np.ndarray
    ) -> None:
        self._ann, self._spread, self._per_list = ann, spread, per_list
        self._rise, self._missed = effort.rise, effort.missed * k
        self._reach = spread.reach(self._missed, int(per_list.sum()))

    def lists(
        self, queries: np.ndarray, worst: np.ndarray, looked: np.ndarray, edge: np.ndarray
    ) -> np.ndarray:
        """(B,) lists to look into, those looked into included; more than there are where better
        hits may lie in a list that the graph of centres does not lead to.

        Args:
            worst: (B,) score of the k-th hit.
            looked, edge: (B,) see `walk`.
        """
        along, rises = self._spread.along(self._ann.turned(queries)), self._rise * _norms(queries)
        may = edge >= worst - np.maximum(rises, self._reach * along)
        if self._ann.finds_all_lists:
            may &= looked < self._ann.num_lists
        wanted = looked.copy()
        if not may.any():
            return wanted
        centres = self._ann.list_scores(queries[may])
        better = self._spread.expected(along[may], centres, worst[may], self._per_list)
        least = (worst - rises)[may]
        for place, scores, rows, bound in zip(
            np.flatnonzero(may), centres, better, least, strict=True
        ):
            lists = np.flatnonzero(rows > 0.1 * self._missed / len(rows))
            lists = lists[np.argsort(scores[lists])]
            held = lists[rows[lists].cumsum() > self._missed]
            bound = min(bound, scores[held[0]]) if len(held) else bound
            number = np.count_nonzero(scores >= bound)
            if number > looked[place]:
                # few different numbers, so that queries are searched together
                wanted[place] = np.ceil(2 ** (np.ceil(2 * np.log2(number)) / 2))
            elif not self._ann.finds_all_lists and edge[place] >= bound:
                wanted[place] = self._ann.num_lists + 1
        return wanted

    def candidates(self, queries: np.ndarray, worst: np.ndarray, looked: np.ndarray) -> np.ndarray:
        """(B,) rows to re-rank of so many lists, for most of the k best to be among them."""
        along, centres = (
            self._spread.along(self._ann.turned(queries)),
            self._ann.list_scores(queries),
        )
        rows = self._spread.expected(along, centres, worst, self._per_list, blurred=True)
        found = np.empty(len(queries))
        for place, number in enumerate(looked.tolist()):
            last = np.partition(centres[place], -number)[-number]
            found[place] = rows[place, centres[place] >= last].sum()
        return found


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
        least, many = least * _MORE_CANDIDATES, _MANY_CANDIDATES
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
