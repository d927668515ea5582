"""Which labels does an item have? kNN label transfer from training items, for any item vectors.

Every method passes through the same lines and is tuned in the same way, so that a trained
encoder and a TF-IDF baseline differ in their vectors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from rec.metrics.ranking import average_precision, recall
from rec.metrics.ranks import rank_in_chunks
from rec.metrics.vectors import Floats, Index, Neighbours, Vectors, nearest

_BACK_OFF = 1e-6  # weight of the label prior, which only orders labels that votes leave equal


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


def label_map(votes: sparse.csr_array, problem: LabelProblem, *, min_positives: int = 5) -> Floats:
    """One value a label that at least `min_positives` queries have: the average precision of all
    queries ranked by their score for this label. The mean over labels is the macro mAP.

    A scorer that gives every item the same score for a label gets 0 for it.

    Args:
        votes: (Q, L) from `transfer_labels`.
        problem: whose queries the rows of `votes` are.
        min_positives: labels with fewer are left out.
    """
    truth = problem.query_labels
    often = np.flatnonzero(np.asarray(truth.sum(axis=0)).ravel() >= min_positives)
    by_label, items_of = sparse.csr_array(votes.T)[often], sparse.csr_array(truth.T)[often]
    return average_precision(rank_in_chunks(lambda a, b: by_label[a:b].toarray(), items_of))


def label_recall(votes: sparse.csr_array, problem: LabelProblem, *, k: int = 10) -> Floats:
    """One value a query: the share of its labels among its k best scored labels.

    Candidates are the labels of training items; what votes leave equal is ordered by how many
    training items have the label. Labels outside the candidates stay in the denominator. With
    votes of zeros this is the label prior.
    """
    prior = np.asarray(problem.train_labels.mean(axis=0)).ravel()
    ranks = rank_in_chunks(
        lambda a, b: votes[a:b].toarray() + _BACK_OFF * prior,
        problem.query_labels,
        candidate_mask=prior > 0,
    )
    return recall(ranks, k)


def label_figures(
    votes: sparse.csr_array, problem: LabelProblem, *, min_positives: int = 5
) -> dict[str, Floats]:
    """`label_map` and `label_recall`, by the names of the figures."""
    return {
        "mAP": label_map(votes, problem, min_positives=min_positives),
        "recall@10": label_recall(votes, problem, k=10),
    }


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
            score = _mean(label_map(votes, inner, min_positives=min_positives))
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
