"""Puts held-out histories to a scorer, chunk by chunk, and keeps where the targets came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rec.batch import SequenceBatch
from rec.contract import Scorer
from rec.features.histories import seen_matrix
from rec.metrics.coverage import coverage, exposures, share_of, tail_mask, unique_items
from rec.metrics.diversity import category_entropy, intra_list_diversity
from rec.metrics.lists import top_lists
from rec.metrics.ranking import hit_rate, mrr, ndcg, recall
from rec.metrics.ranks import (
    CHUNK_SCORES,
    TargetRanks,
    joined,
    only_columns,
    rank_in_chunks,
    rank_lists,
)
from rec.runtime.ranking_data import Aims, RankedItems, Side, questions, read_aims
from rec.runtime.ranking_encoder import ServedLists
from rec.runtime.ranking_results import ALL, Shown

Floats = NDArray[np.floating]
METRICS: dict[str, Callable[[TargetRanks, int], Floats]] = {
    "hit rate": hit_rate,
    "recall": recall,
    "NDCG": ndcg,
    "MRR": mrr,
}
_MAX_USERS = 1024  # in a chunk, however few items there are


def users_at_a_time(num_items: int) -> int:
    """So many that a chunk's scores are about CHUNK_SCORES."""
    return int(np.clip(CHUNK_SCORES // max(1, num_items), 1, _MAX_USERS))


class Question(NamedTuple):
    """A chunk of B users."""

    batch: SequenceBatch  # their histories
    seen: sparse.csr_array | None  # (B, N) left out of the lists; None: nothing is
    relevant: sparse.csr_array  # (B, N) what should be found


# where the relevant items came, and (B, k) lists
Answer = tuple[TargetRanks, NDArray[np.int64]]


class Judged(NamedTuple):
    """One method's answers."""

    ranks: TargetRanks
    shown: list[Shown]


class Slice(NamedTuple):
    """Values of one method over some of the targets or users."""

    name: str
    values: Floats  # (Q, metrics), one row a user of the slice


@dataclass(frozen=True)
class Judge:
    """The questions of one side of the rows; every method gets the same."""

    rows: str
    side: Side
    items: RankedItems
    aims: Aims
    cutoffs: tuple[int, ...]
    exclude_seen: bool = True
    new_user_events: int = 5  # with fewer a user is new
    head_share: float = 0.8

    @classmethod
    def of(
        cls,
        rows: str,
        side: Side,
        items: RankedItems,
        cutoffs: Sequence[int],
        *,
        max_users: int | None = None,
        exclude_seen: bool = True,
        new_user_events: int = 5,
        head_share: float = 0.8,
    ) -> Judge:
        """Read what is to be found, of the first `max_users` rows."""
        users = users_at_a_time(len(items))
        aims = read_aims(rows, side, len(items), users, max_users)
        sizes = tuple(sorted(set(cutoffs)))
        return cls(rows, side, items, aims, sizes, exclude_seen, new_user_events, head_share)

    def exact(self, scorer: Scorer[SequenceBatch]) -> Callable[[Question], Answer]:
        """Answers by ranking all items."""

        def answer(question: Question) -> Answer:
            scores = scorer.score(question.batch)
            held = scores.float().cpu().numpy()
            ranks = rank_in_chunks(
                lambda start, stop: held[start:stop], question.relevant, excluded=question.seen
            )
            return ranks, top_lists(scores, question.seen, self.cutoffs[-1])

        return answer

    def served(self, served: ServedLists) -> Callable[[Question], Answer]:
        """Answers by the lists that an index returns."""

        def answer(question: Question) -> Answer:
            # one more than is asked for: what is tied with it is lost
            lists, scores = served.lists(
                question.batch, self.cutoffs[-1] + 1, exclude_seen=question.seen is not None
            )
            return rank_lists(lists, scores, question.relevant), lists

        return answer

    def _questions(self) -> Iterator[Question]:
        start, users = 0, users_at_a_time(len(self.items))
        for batch, _ in questions(self.rows, self.side, users, self.aims.counts["users"]):
            stop = start + len(batch)
            seen = seen_matrix(batch, len(self.items)) if self.exclude_seen else None
            yield Question(batch, seen, self.aims.relevant[start:stop])
            start = stop

    def ranks(self, scorer: Scorer[SequenceBatch]) -> TargetRanks:
        """Where a scorer ranks the targets, and nothing else."""
        answer = self.exact(scorer)
        return joined([answer(question)[0] for question in self._questions()])

    def judge(self, method: str, answer: Callable[[Question], Answer]) -> Judged:
        """All that is to be known of a method."""
        return self.judged(method, map(answer, self._questions()))

    def judged(self, method: str, answers: Iterable[Answer]) -> Judged:
        """The same of answers that are given to all users in order."""
        parts: list[TargetRanks] = []
        lists = _Lists(method, self.items, self.cutoffs, self.head_share)
        for ranks, shown in answers:
            parts.append(ranks)
            lists.add(shown)
        return Judged(joined(parts), lists.finish())

    def slices(self, ranks: TargetRanks) -> list[Slice]:
        """Values over all targets, those of cold and of tail items, and of new users; without the
        slices that are empty."""
        everything = self._values(ranks)
        cold = self.items.num_events == 0
        tail = tail_mask(self.items.num_events, self.head_share) & ~cold
        relevant = self.aims.relevant
        found = [
            Slice(ALL, everything),
            Slice("cold items", self._values(only_columns(ranks, relevant, cold)[1])),
            Slice("tail items", self._values(only_columns(ranks, relevant, tail)[1])),
            Slice("new users", everything[self.aims.history_lengths < self.new_user_events]),
        ]
        return [one for one in found if len(one.values)]

    @property
    def metrics(self) -> list[str]:
        """Names of the columns of a slice's values."""
        return [f"{name}@{k}" for k in self.cutoffs for name in METRICS]

    def _values(self, ranks: TargetRanks) -> Floats:
        columns = [metric(ranks, k) for k in self.cutoffs for metric in METRICS.values()]
        return np.stack(columns, axis=1)


class _Lists:
    """What lists show, summed over chunks."""

    def __init__(
        self, method: str, items: RankedItems, cutoffs: tuple[int, ...], head_share: float
    ) -> None:
        self._method, self._items, self._cutoffs = method, items, cutoffs
        self._new = items.num_events == 0
        self._tail = tail_mask(items.num_events, head_share)
        self._exposed = {k: np.zeros(len(items), np.int64) for k in cutoffs}
        # of each figure at each k: the sum over lists that have it, and how many have
        self._sums = {k: np.zeros((4, 2)) for k in cutoffs}

    def add(self, lists: NDArray[np.int64]) -> None:
        items = self._items
        for k in self._cutoffs:
            first = lists[:, :k]
            self._exposed[k] += exposures(first, len(items))
            values = [share_of(first, self._new), share_of(first, self._tail)]
            nothing = np.full(len(first), np.nan)
            content, categories = items.content, items.categories
            values += [
                nothing
                if content is None
                else intra_list_diversity(first, content, items.content_mask),
                nothing if categories is None else category_entropy(first, categories),
            ]
            for place, one in enumerate(values):
                there = ~np.isnan(one)
                self._sums[k][place] += one[there].sum(), there.sum()

    def finish(self) -> list[Shown]:
        found = []
        for k in self._cutoffs:
            new, tail, apart, entropy = (
                float(total / count) if count else None for total, count in self._sums[k]
            )
            found.append(
                Shown(
                    method=self._method,
                    k=k,
                    coverage=coverage(self._exposed[k]),
                    unique_items=unique_items(self._exposed[k]),
                    new_share=new or 0.0,
                    tail_share=tail or 0.0,
                    intra_list_diversity=apart,
                    category_entropy=entropy,
                )
            )
        return found
