"""Baselines fitted on the training rows, and tuned on validation rows as a model would be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
from torch import Tensor

from rec.batch import SequenceBatch
from rec.models.estimators.ease import EASE
from rec.models.estimators.item2vec import Item2Vec
from rec.models.estimators.item_cf import ItemCF
from rec.models.estimators.markov import Markov
from rec.models.estimators.popularity import Popularity, RecentPopularity
from rec.models.estimators.swing import Swing

BaselineName = Literal[
    "popularity", "recent popularity", "Markov", "item-CF", "Swing", "EASE", "item2vec"
]


class Baseline(Protocol):
    """What all baselines are: fitted on histories, then a Scorer of them."""

    def fit(self, sequences: Iterable[SequenceBatch]) -> Self: ...

    def score(self, batch: SequenceBatch) -> Tensor: ...


class Variant(NamedTuple):
    setting: str  # "" where there is none to choose
    make: Callable[[], Baseline]  # fitted


@dataclass(frozen=True)
class Fitter:
    """Makes the variants of each baseline from the same training histories.

    A variant that differs in how it scores shares what was fitted with the others.
    """

    sequences: Iterable[SequenceBatch]
    num_items: int
    timed: bool  # events have times; otherwise only their order is known

    def variants(self, name: BaselineName) -> list[Variant]:
        """Settings to choose from, the first where nothing can be tuned on."""
        n = self.num_items
        match name:
            case "popularity":
                return [self._one(lambda: Popularity(n))]
            case "Markov":
                return [self._one(lambda: Markov(n))]
            case "recent popularity":
                by_time = [self._recent(days, "time") for days in (30.0, 7.0, 90.0, 365.0)]
                by_place = [self._recent(events, "position") for events in (20.0, 5.0, 100.0)]
                return [*by_time, *by_place] if self.timed else by_place
            case "EASE":
                return [self._ease(strength) for strength in (500.0, 100.0, 2500.0)]
            case "item-CF":
                return self._half_lives(ItemCF(n), (3.0, 1.0, 10.0, np.inf))
            case "Swing":
                return self._half_lives(Swing(n), (3.0, 1.0, 10.0, np.inf))
            case "item2vec":
                return self._half_lives(Item2Vec(n), (3.0, 1.0, 10.0))

    def _one(self, make: Callable[[], Baseline], setting: str = "") -> Variant:
        return Variant(setting, lambda: make().fit(self.sequences))

    def _recent(self, half_life: float, by: Literal["time", "position"]) -> Variant:
        unit = "days" if by == "time" else "events before a user's last"
        make = lambda: RecentPopularity(self.num_items, half_life=half_life, by=by)  # noqa: E731
        return self._one(make, f"half-life {half_life:g} {unit}")

    def _ease(self, strength: float) -> Variant:
        return self._one(lambda: EASE(self.num_items, strength=strength), f"lambda {strength:g}")

    def _half_lives(
        self, model: ItemCF | Swing | Item2Vec, half_lives: Sequence[float]
    ) -> list[Variant]:
        fitted: list[ItemCF | Swing | Item2Vec] = []

        def make(half_life: float) -> Baseline:
            if not fitted:
                fitted.append(model.fit(self.sequences))
            found = copy.copy(fitted[0])
            found.half_life = half_life
            return found

        return [
            Variant(f"half-life {half_life:g} events", lambda h=half_life: make(h))
            for half_life in half_lives
        ]


def tuned(
    variants: Sequence[Variant], judge: Callable[[Baseline], float] | None
) -> tuple[Baseline, str]:
    """The variant with the highest value of `judge`, fitted, and its setting.

    Args:
        variants: at least one; of equal ones the first is taken.
        judge: None takes the first variant.
    """
    if judge is None or len(variants) == 1:
        return variants[0].make(), variants[0].setting
    best: tuple[float, Baseline, str] | None = None
    for variant in variants:
        model = variant.make()
        value = judge(model)
        if best is None or value > best[0]:
            best = value, model, variant.setting
    assert best is not None
    return best[1], best[2]
