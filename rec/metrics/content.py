"""What item vectors know of content: labels by kNN transfer, text against picture, and items
liked together. Every figure takes any matrix of item vectors, so that a trained encoder and a
TF-IDF baseline pass through the same lines.

Vectors are dense (N, D) arrays or sparse `csr_array`s; rows are compared by cosine, and a row
of zeros (an item with nothing to see) is at similarity 0 from all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rec.metrics.ranking import TargetRanks, average_precision, rank_in_chunks, recall

Floats = NDArray[np.floating]
Index = NDArray[np.int64]
Vectors = Floats | sparse.csr_array
V = TypeVar("V", NDArray[np.floating], sparse.csr_array)
_CHUNK_SCORES = 1 << 24
_BACK_OFF = 1e-6  # weight of the label prior, which only orders labels that votes leave equal


def unit_rows(vectors: V) -> V:
    """Rows scaled to length 1; rows of zeros stay zeros."""
    if isinstance(vectors, sparse.csr_array):
        norms = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
        return sparse.csr_array(sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def similarity(queries: Vectors, items: Vectors) -> Floats:
    """(Q, N) inner products, dense; cosines if the rows are unit rows."""
    if isinstance(queries, sparse.csr_array):
        product = queries @ items.T
        return product.toarray() if isinstance(items, sparse.csr_array) else product
    return np.asarray(queries @ items.T)


class Neighbours(NamedTuple):
    rows: Index  # (Q, k) rows of the items, nearest first
    similarity: Floats  # (Q, k) cosines

    def first(self, k: int) -> Neighbours:
        return Neighbours(self.rows[:, :k], self.similarity[:, :k])


def nearest(queries: Vectors, items: Vectors, k: int) -> Neighbours:
    """The k most similar items (all, where there are fewer) of each query, exact, in chunks.

    Both arguments are unit rows. Equal similarities are ordered by row number.
    """
    num_queries, num_items = queries.shape[0], items.shape[0]
    k = min(k, num_items)
    rows = np.empty((num_queries, k), np.int64)
    values = np.empty((num_queries, k), np.float32)
    step = max(1, _CHUNK_SCORES // max(1, num_items))
    for start in range(0, num_queries, step):
        scores = similarity(queries[start : start + step], items)
        top = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        found = np.take_along_axis(scores, top, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        rows[start : start + step] = np.take_along_axis(top, order, axis=1)
        values[start : start + step] = np.take_along_axis(found, order, axis=1)
    return Neighbours(rows, values)


class LabelTransfer(NamedTuple):
    """How neighbours vote: the k nearest, weighted by exp(sharpness * cosine), summing to 1."""

    num_neighbours: int
    sharpness: float


GRID = tuple(LabelTransfer(k, s) for k in (5, 10, 20, 50, 100, 200) for s in (0, 2, 5, 10, 20, 40))


@dataclass(frozen=True)
class LabelProblem:
    """Items with their labels of one kind (keywords, genres), split by time.

    Items without a label of the kind are neither neighbours nor queries: no label on record is
    not the same as no label being right.
    """

    train_rows: Index  # (n,) rows of training items in the matrix of vectors, oldest first
    train_labels: sparse.csr_array  # (n, L) 0 or 1
    query_rows: Index  # (m,) rows of the items whose labels are to be found
    query_labels: sparse.csr_array  # (m, L)

    def validation(self, share: float = 0.15) -> LabelProblem:
        """The same problem within the training items: the latest `share` of them are queries."""
        cut = max(1, round(len(self.train_rows) * (1 - share)))
        return LabelProblem(
            self.train_rows[:cut],
            self.train_labels[:cut],
            self.train_rows[cut:],
            self.train_labels[cut:],
        )


def label_problem(labels: Sequence[Sequence[str]], num_train: int) -> LabelProblem:
    """Build the problem from each item's labels; the first `num_train` items are for training.

    Labels that only queries have are kept: nobody can find them, and they count as missed.

    Raises:
        ValueError: no training item or no query has a label.
    """
    names = {label: i for i, label in enumerate(sorted({x for row in labels for x in row}))}
    indptr = np.cumsum([0] + [len(set(row)) for row in labels])
    indices = np.array([names[x] for row in labels for x in sorted(set(row))], dtype=np.int64)
    shape = (len(labels), len(names))
    matrix = sparse.csr_array((np.ones(len(indices)), indices, indptr), shape=shape)
    rows = np.flatnonzero(np.diff(indptr) > 0)
    train, query = rows[rows < num_train], rows[rows >= num_train]
    if not len(train) or not len(query):
        raise ValueError(f"{len(train)} training items and {len(query)} queries have labels")
    return LabelProblem(train, matrix[train], query, matrix[query])


def transfer_labels(
    neighbours: Neighbours, labels: sparse.csr_array, setting: LabelTransfer
) -> sparse.csr_array:
    """(Q, L) label scores: the share of its neighbours' weight that votes for the label.

    Args:
        neighbours: (Q, at least setting.num_neighbours), rows of `labels`.
        labels: (n, L) 0 or 1.
        setting: neighbourhood and weights.
    """
    near = neighbours.first(setting.num_neighbours)
    cosines = near.similarity.astype(np.float64)
    weights = np.exp(setting.sharpness * (cosines - cosines[:, :1]))
    weights /= weights.sum(axis=1, keepdims=True)
    num_queries, k = near.rows.shape
    indptr = np.arange(0, num_queries * k + 1, k)
    shape = (num_queries, labels.shape[0])
    cells = (weights.ravel(), near.rows.ravel(), indptr)
    votes = sparse.csr_array(sparse.csr_array(cells, shape=shape) @ labels)
    votes.data = votes.data.round(9)  # sums in another order must not break ties
    return votes


def label_figures(
    votes: sparse.csr_array, problem: LabelProblem, *, min_positives: int = 5, k: int = 10
) -> dict[str, Floats]:
    """Per-query values of two figures of label scores.

    - "mAP": one value a label with at least `min_positives` queries that have it: the average
      precision of all labelled queries ranked by their score for this label. The mean over
      labels is the macro mAP. A scorer that gives each item the same score for a label gets 0.
    - "recall@k": one value a query: the share of its labels among its k best scored labels.
      Candidates are the labels of training items; what votes leave equal is ordered by how many
      training items have the label. Labels outside the candidates stay in the denominator.

    Args:
        votes: (Q, L) from `transfer_labels`, or all zeros for the label prior alone.
        problem: whose queries the rows of `votes` are.
        min_positives: for mAP; labels with fewer are left out of it.
        k: for recall.
    """
    truth = problem.query_labels
    often = np.flatnonzero(np.asarray(truth.sum(axis=0)).ravel() >= min_positives)
    by_label, items_of = sparse.csr_array(votes.T)[often], sparse.csr_array(truth.T)[often]
    prior = np.asarray(problem.train_labels.mean(axis=0)).ravel()
    label_ranks = rank_in_chunks(lambda a, b: by_label[a:b].toarray(), items_of)
    item_ranks = rank_in_chunks(
        lambda a, b: votes[a:b].toarray() + _BACK_OFF * prior, truth, candidate_mask=prior > 0
    )
    return {"mAP": average_precision(label_ranks), f"recall@{k}": recall(item_ranks, k)}


class TunedTransfer(NamedTuple):
    variant: int  # which of the method's matrices
    setting: LabelTransfer
    validation_map: float


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def tune_transfer(
    variants: Sequence[Vectors], problem: LabelProblem, *, min_positives: int = 5
) -> TunedTransfer:
    """The variant and setting with the best macro mAP on `problem.validation()`.

    Held-out items play no part. An encoder that was trained on the validation items' labels
    looks better there than it is, which can only cost it a worse setting.
    """
    inner = problem.validation()
    best = TunedTransfer(0, GRID[0], -1.0)
    for number, vectors in enumerate(variants):
        near = nearest(
            vectors[inner.query_rows],
            vectors[inner.train_rows],
            max(s.num_neighbours for s in GRID),
        )
        for setting in GRID:
            votes = transfer_labels(near, inner.train_labels, setting)
            found = label_figures(votes, inner, min_positives=min_positives)
            score = _mean(found["mAP"])
            if score > best.validation_map:
                best = TunedTransfer(number, setting, score)
    return best


def evaluate_labels(
    variants: Sequence[Vectors], problem: LabelProblem, *, min_positives: int = 5
) -> tuple[dict[str, Floats], TunedTransfer]:
    """`label_figures` of kNN label transfer, tuned by `tune_transfer`.

    Args:
        variants: matrices (unit rows) among which tuning chooses; mostly one.
        problem: labels and split.
        min_positives: labels with fewer positive queries are left out of mAP.
    """
    tuned = tune_transfer(variants, problem, min_positives=min_positives)
    vectors = variants[tuned.variant]
    near = nearest(
        vectors[problem.query_rows], vectors[problem.train_rows], tuned.setting.num_neighbours
    )
    votes = transfer_labels(near, problem.train_labels, tuned.setting)
    return label_figures(votes, problem, min_positives=min_positives), tuned


def cross_modal_ranks(queries: Floats, targets: Floats) -> TargetRanks:
    """Ranks of each query's own target among all targets: row i of one belongs to row i of
    the other. Targets that equal another item's count as lost, by the tie rule."""
    return rank_in_chunks(
        lambda a, b: similarity(queries[a:b], targets), sparse.csr_array(np.eye(len(queries)))
    )


@dataclass(frozen=True)
class CoLiked:
    """For each query item, the items that the same users like: truth, never an input."""

    query_rows: Index  # (Q,) rows of the query items
    relevant: sparse.csr_array  # (Q, N) non-zero where relevant, over all items


def co_liked(
    likes: sparse.csr_array,
    query_rows: Index,
    *,
    num_relevant: int = 20,
    min_likes: int = 10,
    min_common: int = 3,
) -> CoLiked:
    """The `num_relevant` items with the highest cosine of co-occurrence with each query item.

    cosine(i, j) = users who like both / sqrt(users who like i * users who like j). A query has
    at least `min_likes` users; a relevant item has too, and at least `min_common` of them like
    both. Queries for whom nothing qualifies are left out of `query_rows`. Of equal cosines the
    item in the lower row is taken.

    Args:
        likes: (U, N) 1 where user u likes item n.
        query_rows: which items ask.
        num_relevant: at most so many relevant items a query.
        min_likes: support below which cosines are noise.
        min_common: users in common below which they are, too.
    """
    counts = np.asarray(likes.sum(axis=0)).ravel()
    queries = query_rows[counts[query_rows] >= min_likes]
    by_item = sparse.csr_array(likes.T)
    kept: list[int] = []
    columns: list[Index] = []
    for row in queries:
        common = by_item @ by_item[[row]].toarray().ravel()
        common[row] = 0
        fits = np.flatnonzero((common >= min_common) & (counts >= min_likes))
        cosine = common[fits] / np.sqrt(counts[fits] * counts[row])
        if len(fits):
            kept.append(int(row))
            columns.append(np.sort(fits[np.argsort(-cosine, kind="stable")[:num_relevant]]))
    indptr = np.cumsum([0] + [len(c) for c in columns])
    indices = np.concatenate(columns) if columns else np.empty(0, np.int64)
    shape = (len(kept), likes.shape[1])
    relevant = sparse.csr_array((np.ones(len(indices)), indices, indptr), shape=shape)
    return CoLiked(np.array(kept, dtype=np.int64), relevant)


def item_to_item_ranks(score_rows: Callable[[int, int], Floats], truth: CoLiked) -> TargetRanks:
    """Ranks of each query's relevant items among all items but the query itself.

    Args:
        score_rows: scores (stop - start, N) of queries start to stop, against all items.
        truth: from `co_liked`.
    """
    num_queries = len(truth.query_rows)
    cells = (np.ones(num_queries), (np.arange(num_queries), truth.query_rows))
    itself = sparse.csr_array(cells, shape=truth.relevant.shape)
    return rank_in_chunks(score_rows, truth.relevant, excluded=itself)
