"""The questions that evaluation asks, put to one method of making item vectors after another.

- keywords, genres: which labels does an item have? kNN label transfer from training items
  (`rec.metrics.labels`), mAP over labels and recall@10 of an item's labels;
- text to picture, picture to text: which picture belongs to this text, of all held-out items
  that have both?
- behaviour: which items do the same people like? Behaviour is truth only, never an input.

Every method is tuned in the same way, on the latest 15 % of the training items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse

from rec.config import Config
from rec.metrics.content import CoLiked, co_liked, item_to_item_ranks
from rec.metrics.labels import LabelProblem, evaluate_labels, label_figures, label_problem
from rec.metrics.ranking import first_rank, ndcg, recall
from rec.metrics.ranks import TargetRanks
from rec.metrics.vectors import Vectors, similarity
from rec.runtime.evaluation_data import EvaluationItems
from rec.runtime.evaluation_likes import Likes, read_likes
from rec.runtime.evaluation_results import Answers

Floats = NDArray[np.floating]


class EvaluationConfig(Config):
    """What to evaluate and how. Runs to compare differ from `run` in their seed only."""

    run: str  # a run folder
    compare: tuple[str, ...] = ()  # further runs of the same recipe on the same rows
    text_encoder: str | None = None  # local Hugging Face folder of a frozen text encoder
    baselines: bool = True  # False where they stand in another run's report on the same rows
    max_items: int = Field(default=20_000, ge=10)  # on each side of the cut-off; beyond, a sample
    # held-out items that a label needs to count for mAP
    min_label_positives: int = Field(default=5, ge=1)
    like_rating: float = 4.0  # a rating from here up is a like
    like_dwell_ms: int = 10_000  # a watch or click from here up is a like
    # users that an item needs to be asked for, or to be found, by behaviour
    min_likes: int = Field(default=5, ge=1)
    num_relevant: int = Field(default=20, ge=1)  # most co-liked items that should be found
    device: str = "cpu"  # where the encoder runs


class Evaluator:
    """One set of items and truths; methods are put to it one by one."""

    def __init__(
        self, config: EvaluationConfig, items: EvaluationItems, tell: Callable[[str], None]
    ) -> None:
        self.config, self.items, self.tell = config, items, tell
        self.notes = list(items.notes)
        self.settings: dict[str, str] = {}
        self.problems = {
            task: problem
            for task, labels in (("keywords", items.tags), ("genres", items.categories))
            if (problem := self._labels(task, labels)) is not None
        }
        self.likes = read_likes(
            config.run,
            items.item_ids,
            items.cutoff,
            like_rating=config.like_rating,
            like_dwell_ms=config.like_dwell_ms,
        )
        self.truth, self.validation = self._behaviour(self.likes)

    def _labels(self, task: str, labels: list[list[str]]) -> LabelProblem | None:
        try:
            problem = label_problem(labels, self.items.num_train)
        except ValueError as error:
            self.notes.append(f"{task}: not asked, {error}")
            return None
        often = np.asarray(problem.query_labels.sum(axis=0)) >= self.config.min_label_positives
        self.notes.append(
            f"{task}: {len(problem.query_rows)} of {len(self.items) - self.items.num_train} "
            f"held-out items have any; {int(often.sum())} labels have at least "
            f"{self.config.min_label_positives} of them"
        )
        return problem

    def _behaviour(self, likes: Likes | None) -> tuple[CoLiked | None, CoLiked | None]:
        if likes is None:
            self.notes.append("behaviour: not asked, the run has no interactions")
            return None, None
        self.notes += likes.notes
        c, first = self.config, self.items.num_train

        def truth(matrix: sparse.csr_array, start: int, stop: int) -> CoLiked | None:
            found = co_liked(
                matrix,
                np.arange(start, stop),
                num_relevant=c.num_relevant,
                min_likes=c.min_likes,
            )
            return found if len(found.query_rows) else None

        found = truth(likes.matrix, first, len(self.items))
        self.notes.append(
            f"behaviour: {len(found.query_rows) if found else 0} of {len(self.items) - first} "
            f"held-out items have {c.min_likes} likes and co-liked items"
        )
        known = truth(sparse.csr_array(likes.before[:, :first]), round(first * 0.85), first)
        return found, known

    def vectors(self, method: str, variants: Sequence[Vectors]) -> list[Answers]:
        """Answers of a method that is a matrix of unit rows, or several to choose among."""
        self.tell(method)
        answers: list[Answers] = []
        for task, problem in self.problems.items():
            found, tuned = evaluate_labels(
                variants, problem, min_positives=self.config.min_label_positives
            )
            answers += [Answers(method, task, metric, v) for metric, v in found.items()]
            setting = f"k {tuned.setting.num_neighbours}, sharpness {tuned.setting.sharpness:g}"
            more = f", variant {tuned.variant}" if len(variants) > 1 else ""
            self.settings[f"{method}, {task}"] = setting + more
        if self.truth is not None:
            best = variants[self._best_for_behaviour(method, variants)]
            answers += self._item_to_item(method, self.truth, _scorer(best, self.truth, best))
        return answers

    def _best_for_behaviour(self, method: str, variants: Sequence[Vectors]) -> int:
        if len(variants) == 1 or self.validation is None:
            return 0
        truth, first = self.validation, self.items.num_train
        found = [
            ndcg(item_to_item_ranks(_scorer(v, truth, v[:first]), truth), 10).mean()
            for v in variants
        ]
        best = int(np.argmax(found))
        self.settings[f"{method}, behaviour"] = f"variant {best}"
        return best

    def _item_to_item(
        self, method: str, truth: CoLiked, scores: Callable[[int, int], Floats]
    ) -> list[Answers]:
        ranks = item_to_item_ranks(scores, truth)
        return [
            Answers(method, "behaviour", "recall@10", recall(ranks, 10)),
            Answers(method, "behaviour", "recall@50", recall(ranks, 50)),
            Answers(method, "behaviour", "NDCG@10", ndcg(ranks, 10)),
        ]

    def popularity(self) -> list[Answers]:
        """The same answer for everybody: commonest labels, most liked items before the cut-off.

        By mAP it scores 0, as every scorer does that cannot tell items apart.
        """
        answers: list[Answers] = []
        for task, problem in self.problems.items():
            nothing = sparse.csr_array(problem.query_labels.shape)
            found = label_figures(nothing, problem, min_positives=self.config.min_label_positives)
            answers += [Answers("popularity", task, metric, v) for metric, v in found.items()]
        if self.truth is not None and self.likes is not None:
            counts = np.asarray(self.likes.before.sum(axis=0)).ravel()
            answers += self._item_to_item(
                "popularity", self.truth, lambda a, b: np.tile(counts, (b - a, 1))
            )
        return answers


def _scorer(vectors: Vectors, truth: CoLiked, items: Vectors) -> Callable[[int, int], Floats]:
    return lambda a, b: similarity(vectors[truth.query_rows[a:b]], items)


def cross_modal(method: str, ranks: tuple[TargetRanks, TargetRanks]) -> list[Answers]:
    answers: list[Answers] = []
    for task, found in zip(("text to picture", "picture to text"), ranks, strict=True):
        answers += [
            Answers(method, task, "recall@1", recall(found, 1)),
            Answers(method, task, "recall@10", recall(found, 10)),
            Answers(method, task, "median rank", first_rank(found), "median"),
        ]
    return answers
