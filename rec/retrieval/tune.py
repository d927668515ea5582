"""Find the least effort whose recall on held-out queries reaches a target, and keep the curve."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rec.retrieval.effort import TEN, Effort

_K_FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_PLATEAU = 0.001  # twice the effort for less recall than this is the end of the road
_SPARE = 2.0  # standard errors


def hits(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(Q,) share of each query's true rows that were found; 0 where there are none to find.

    Args:
        found: (Q, k) rows, -1 where nothing was found.
        truth: (Q, k) rows, -1 where there are fewer true ones than k.
    """
    there = truth >= 0
    num_hits = ((truth[:, :, None] == found[:, None, :]).any(axis=2) & there).sum(axis=1)
    return num_hits / np.maximum(there.sum(axis=1), 1)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean of `hits` over the queries; 1 where no query has anything to find."""
    return float(hits(found, truth).mean()) if (truth >= 0).any() else 1.0


class Verdict(NamedTuple):
    """How well an index does, for one to be compared with another."""

    reached: bool  # the target
    strained: bool  # only by re-ranking as many candidates as it may: its codes are too coarse
    recall: float
    queries_per_s: float

    @property
    def rank(self) -> tuple[bool, float]:
        """Greater is better: the faster of those that reach the target, else the truer."""
        return self.reached, self.queries_per_s if self.reached else self.recall


class Tuner:
    """Tries efforts on one set of queries; `curve` records every one tried.

    Args:
        search: effort -> (Q, k) rows found.
        truth: (Q, k) true rows, fewer where there are fewer in all.
        target: recall@k to reach, with two standard errors to spare: the queries are a sample,
            and the least effort that reaches it is sought, so that luck is sought too.
    """

    def __init__(
        self,
        search: Callable[[Effort], np.ndarray],
        truth: np.ndarray,
        target: float,
        k: int = TEN,
    ) -> None:
        self._search, self._truth, self._target = search, truth, target
        self._recall = f"recall@{k}"
        self.curve: list[dict[str, Any]] = []
        self.chosen: dict[str, Any] | None = None  # the point of the curve that was chosen

    @property
    def verdict(self) -> Verdict:
        if self.chosen is None:  # nothing to tune: search is exact, or has no effort to set
            return Verdict(True, False, 1.0, 0.0)
        strained = self.chosen["k_factor"] == _K_FACTORS[-1]
        rate, found = self.chosen["queries_per_s"], self.chosen[self._recall]
        return Verdict(self.chosen["reached"], strained, found, rate)

    def lists(self, num_lists: int, refines: bool) -> Effort:
        """For inverted lists: per k_factor the least nprobe that reaches the target, of these the
        fastest; the one of best recall where none does."""
        for k_factor in _K_FACTORS if refines else (1,):
            self._least_nprobe(num_lists, k_factor)
        return self._best()

    def graph(self) -> Effort:
        """For HNSW: the least queue of 16, 32, ... 1024 that reaches the target."""
        for ef in (16, 32, 64, 128, 256, 512, 1024):
            if self._try(Effort(ef=ef))["reached"]:
                break
        return self._best()

    def more_lists(self, num_lists: int, effort: Effort) -> int:
        """From `effort` on the least nprobe that reaches the target, or else little less than what
        can be reached so."""
        self._least_nprobe(num_lists, effort.k_factor, effort.nprobe)
        best = max(point[self._recall] for point in self.curve)
        enough = [p for p in self.curve if p["reached"]] or [
            p for p in self.curve if p[self._recall] >= best - _PLATEAU
        ]
        return min(point["nprobe"] for point in enough)

    def _least_nprobe(self, num_lists: int, k_factor: float, first: int = 1) -> None:
        before, low, high = 0.0, first - 1, first
        while not (point := self._try(Effort(high, k_factor)))["reached"]:
            if high == num_lists or (high >= 16 and point[self._recall] - before < _PLATEAU):
                return
            before, low, high = point[self._recall], high, min(2 * high, num_lists)
        while high - low > max(1, high // 16):
            middle = (low + high) // 2
            if self._try(Effort(middle, k_factor))["reached"]:
                high = middle
            else:
                low = middle

    def _try(self, effort: Effort) -> dict[str, Any]:
        started = time.perf_counter()
        found = self._search(effort)
        seconds = time.perf_counter() - started
        shares = hits(found, self._truth)
        mean = recall(found, self._truth)
        error = float(shares.std() / np.sqrt(len(shares)))
        point = {
            "nprobe": effort.nprobe,
            "k_factor": effort.k_factor,
            "ef": effort.ef,
            self._recall: mean,
            "queries_per_s": round(len(found) / max(seconds, 1e-9), 1),  # of one run, wall clock
            "reached": mean - _SPARE * error >= self._target or mean >= 1,
        }
        self.curve.append(point)
        return point

    def _best(self) -> Effort:
        # of those that differ in effort alone the least: it needs no clock, which others disturb
        least: dict[float, dict[str, Any]] = {}
        for point in sorted(self.curve, key=lambda point: (point["nprobe"], point["ef"])):
            if point["reached"]:
                least.setdefault(point["k_factor"], point)
        finalists = list(least.values())
        if not finalists:
            finalists = [max(self.curve, key=lambda point: point[self._recall])]
        for point in finalists:  # again: one run alone may have been disturbed
            point["queries_per_s"] = self._rate(point)
        self.chosen = max(finalists, key=lambda point: point["queries_per_s"])
        return _effort(self.chosen)

    def _rate(self, point: dict[str, Any]) -> float:
        """Queries a second, the best of three more runs."""
        seconds: list[float] = []
        for _ in range(3):
            started = time.perf_counter()
            self._search(_effort(point))
            seconds.append(time.perf_counter() - started)
        return round(len(self._truth) / max(min(seconds), 1e-9), 1)


def _effort(point: dict[str, Any]) -> Effort:
    return Effort(point["nprobe"], point["k_factor"], point["ef"])
