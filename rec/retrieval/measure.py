"""Tune a built index on queries held out, and measure what it reaches."""

from __future__ import annotations

from typing import Any

import numpy as np

from rec.retrieval.effort import HUNDRED, TEN, Effort
from rec.retrieval.fill import NUM_TRUE, Filled, HeldOut
from rec.retrieval.lists import rise
from rec.retrieval.shards import Shard
from rec.retrieval.spec import IndexConfig
from rec.retrieval.threads import omp_threads
from rec.retrieval.tune import Tuner, Verdict, recall


def tuned(
    shards: list[Shard], held_out: HeldOut, true: Filled, config: IndexConfig
) -> tuple[Effort, dict[str, Any], Verdict]:
    """The effort to search with, what it reaches on the other half of the queries, and how
    it did on the first."""
    num_rows = sum(shard.size for shard in shards)
    rng = np.random.default_rng(config.seed)
    truth = true.rows
    half = rng.permutation(len(truth))
    tune, report = half[::2], half[1::2] if len(half) > 1 else half

    def found(which: np.ndarray, effort: Effort, k: int) -> np.ndarray:
        # one more than k, as the query may be among them, of as many candidates as for k
        effort = effort.at(k)._replace(
            nprobe_100=0, k_factor=max(1.0, effort.k_factor * k / (k + 1))
        )
        hits = search_with(shards, held_out.queries[which], min(k + 1, num_rows), effort)
        true_k = Filled(truth[which, :k], true.scores[which, :k])
        return exchange_ties(without_self(hits, held_out.own[which]), true_k)

    def tuner_for(k: int) -> Tuner:
        target = config.recall_target
        return Tuner(lambda effort: found(tune, effort, k), truth[tune, :k], target, k)

    tuner, wider = tuner_for(TEN), tuner_for(HUNDRED)
    ann, effort = shards[0].ann, Effort()
    with omp_threads(1):  # as it is searched when serving
        if ann.num_lists:
            known = truth[tune, :10], true.scores[tune, :10]
            above = rise([shard.ann for shard in shards], held_out.queries[tune], *known)
            missed = min(max(1 - config.recall_target, 0.002), 0.05)
            effort = tuner.lists(ann.num_lists, ann.refines)._replace(rise=above, missed=missed)
            effort = effort._replace(nprobe_100=wider.more_lists(ann.num_lists, effort))
        elif ann.is_graph:
            effort = tuner.graph()
    metrics: dict[str, Any] = {
        f"recall@{k}": recall(found(report, effort, k), truth[report, :k]) for k in (TEN, HUNDRED)
    }
    metrics |= {"num_queries": len(report), "recall_target": config.recall_target}
    curves = {"curve": tuner.curve, "curve@100": wider.curve}
    return effort, metrics | curves, tuner.verdict


def true_rows(filled: list[Filled], starts: np.ndarray, held_out: HeldOut) -> Filled:
    """(Q, 100) true neighbours over all shards and their scores, the query itself left out."""
    rows = np.concatenate(
        [
            np.where(part.rows < 0, -1, part.rows + start)
            for part, start in zip(filled, starts, strict=True)
        ],
        axis=1,
    )
    scores = np.concatenate([part.scores for part in filled], axis=1)
    best = np.argsort(np.where(rows < 0, np.inf, -scores), axis=1, kind="stable")[:, :NUM_TRUE]
    rows, scores = (np.take_along_axis(array, best, axis=1) for array in (rows, scores))
    return without_self(Filled(rows, scores), held_out.own)


def search_with(shards: list[Shard], queries: np.ndarray, k: int, effort: Effort) -> Filled:
    """(Q, k) rows over all shards with this effort, as an opened index would find them."""
    for shard in shards:
        shard.ann.effort = effort
    parts = [shard.search(queries, k) for shard in shards]
    if len(parts) == 1:
        return Filled(*parts[0])
    starts = np.cumsum([0, *(shard.size for shard in shards)])
    rows = np.concatenate(
        [np.where(r < 0, -1, r + start) for (r, _), start in zip(parts, starts, strict=False)], 1
    )
    scores = np.concatenate([np.where(r < 0, -np.inf, s) for r, s in parts], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Filled(*(np.take_along_axis(array, best, axis=1) for array in (rows, scores)))


def without_self(hits: Filled, own: np.ndarray) -> Filled:
    """(Q, k - 1): each query's hits but itself; where it did not find itself, but the last."""
    is_own = (hits.rows == own[:, None]) & (own[:, None] >= 0)
    is_own[~is_own.any(axis=1), -1] = True
    return Filled(*(array[~is_own].reshape(len(own), -1) for array in hits))


def exchange_ties(found: Filled, true: Filled) -> np.ndarray:
    """(Q, k) rows found, those that score as the last of the (Q, k) true ones do exchanged for
    true ones of that score that were not found: which of equal items a search gives is chance."""
    last = np.where(true.rows >= 0, true.scores, np.inf).min(axis=1, keepdims=True)
    same = (true.rows[:, :, None] == found.rows[:, None, :]) & (true.rows >= 0)[:, :, None]
    spare = _level(found, last) & ~same.any(axis=1)
    missing = _level(true, last) & ~same.any(axis=2)
    rows = found.rows.copy()
    for query in np.nonzero(spare.any(axis=1) & missing.any(axis=1))[0]:
        places, others = np.nonzero(spare[query])[0], true.rows[query, missing[query]]
        rows[query, places[: len(others)]] = others[: len(places)]
    return rows


def _level(hits: Filled, score: np.ndarray) -> np.ndarray:
    # sums of products differ in the last bits by how many queries are searched at once
    return (hits.rows >= 0) & np.isclose(hits.scores, score, rtol=1e-6, atol=1e-30)
