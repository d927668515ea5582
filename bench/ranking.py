"""Metrics and baselines of recommenders: published figures, time and memory, RecTools beside.

    python -m bench.ranking --data DIR
    python -m bench.ranking --data DIR --peers peers/bin/python   # an environment with rectools

DIR holds ml-1m/sequences.txt and amazon-beauty/sequences.txt, lines of `user item item ...` in
order of time. Leave-one-out: the last item is to be found among all that the user has not seen,
baselines are fitted on all but the last two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from bench.harness import PeakMemory, Report, main
from bench.peers_metrics import CUTOFFS
from rec.batch import SequenceBatch
from rec.contract import Scorer
from rec.features.histories import seen_matrix
from rec.metrics.bootstrap import bootstrap_means
from rec.metrics.coverage import coverage, exposures
from rec.metrics.diversity import category_shares, intra_list_diversity
from rec.metrics.ranking import hit_rate, mrr, ndcg, recall
from rec.metrics.ranks import TargetRanks, rank_in_chunks
from rec.metrics.vectors import unit_rows
from rec.models.estimators.ease import EASE
from rec.models.estimators.item2vec import Item2Vec
from rec.models.estimators.item_cf import ItemCF
from rec.models.estimators.markov import Markov
from rec.models.estimators.popularity import Popularity, RecentPopularity
from rec.models.estimators.swing import Swing
from rec.runtime.ranking_data import Aims, RankedItems
from rec.runtime.ranking_judge import Judge, Question, users_at_a_time

_ROUNDS = 3  # of what is timed; medians are told
METRICS: dict[str, Callable[[TargetRanks, int], np.ndarray]] = {
    "hit rate": hit_rate,
    "recall": recall,
    "NDCG": ndcg,
    "MRR": mrr,
}
# (data, baseline) -> hit rate@10, NDCG@10; computed on these files by code that is not ours
PUBLISHED = {
    ("ml-1m", "popularity"): (0.0369, 0.0180),
    ("ml-1m", "Markov"): (0.2146, 0.1260),
    ("ml-1m", "EASE"): (0.1084, 0.0536),
    ("amazon-beauty", "popularity"): (0.0110, 0.0053),
    ("amazon-beauty", "Markov"): (0.0665, 0.0438),
}
BASELINES: dict[str, Callable[[int], Scorer[SequenceBatch]]] = {
    "popularity": Popularity,
    "recent popularity": lambda n: RecentPopularity(n, half_life=5, by="position"),
    "Markov": Markov,
    "item-CF": lambda n: ItemCF(n, half_life=2),
    "Swing": lambda n: Swing(n, half_life=2),
    "EASE": lambda n: EASE(n, strength=500),
    "item2vec": Item2Vec,
}


def batch_of(histories: Sequence[np.ndarray]) -> SequenceBatch:
    """Histories that are known whole; their times say the order."""
    items = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *histories]))
    return SequenceBatch(
        lengths=torch.tensor([len(h) for h in histories]),
        item_index=items,
        weights=torch.ones(len(items)),
        times=torch.from_numpy(np.concatenate([np.arange(len(h)) for h in histories])),
        target_mask=torch.zeros(len(items), dtype=torch.bool),
    )


def read(path: Path) -> tuple[list[np.ndarray], int]:
    """Each user's items as dense positions, and how many items there are."""
    lines = [np.array(line.split()[1:], np.int64) for line in path.read_text().splitlines()]
    lines = [line for line in lines if len(line) > 2]
    ids, flat = np.unique(np.concatenate(lines), return_inverse=True)
    return np.split(flat, np.cumsum([len(line) for line in lines])[:-1]), len(ids)


def last_of(histories: Sequence[np.ndarray], num_items: int) -> sparse.csr_array:
    """(U, N) 1 at each user's last item."""
    cells = (np.arange(len(histories)), [h[-1] for h in histories])
    shape = (len(histories), num_items)
    return sparse.csr_array((np.ones(len(histories)), cells), shape=shape)


def published(folder: Path, names: Sequence[str], report: Report) -> None:
    """Every baseline on one file; those with a figure from elsewhere are held to it."""
    histories, num_items = read(folder / "sequences.txt")
    train = [batch_of([h[:-2] for h in histories])]
    known = batch_of([h[:-1] for h in histories])
    seen, relevant = seen_matrix(known, num_items), last_of(histories, num_items)
    for name in names:
        started = time.perf_counter()
        model = BASELINES[name](num_items).fit(train)  # type: ignore[attr-defined]
        fitted = time.perf_counter()
        ranks = rank_in_chunks(
            lambda a, b, of=model: of.score(known.rows(a, b)).numpy(), relevant, excluded=seen
        )
        seconds = fitted - started, time.perf_counter() - fitted
        expected = PUBLISHED.get((folder.name, name))
        for place, (what, metric) in enumerate((("hit rate", hit_rate), ("NDCG", ndcg))):
            value = float(metric(ranks, 10).mean())
            label = f"{folder.name}, {name}, {what}@10"
            report.add(label, value)
            if expected:
                report.add(f"{label}: off the published", abs(value - expected[place]), 5e-4, True)
        report.note(
            f"{folder.name}, {name}: fitted in {seconds[0]:.1f} s, scored and ranked in "
            f"{seconds[1]:.1f} s"
        )


def all_metrics(ranks: TargetRanks) -> dict[str, float]:
    return {
        f"{name}@{k}": float(metric(ranks, k).mean())
        for k in (10, 30, 50, 100)
        for name, metric in METRICS.items()
    }


class _Given:
    """Scores that are there, handed out in order."""

    def __init__(self, scores: np.ndarray) -> None:
        self._scores, self._start = torch.from_numpy(scores), 0

    def score(self, batch: SequenceBatch) -> torch.Tensor:
        start, self._start = self._start, self._start + len(batch)
        return self._scores[start : self._start]


def exact(report: Report, num_users: int, num_items: int, num_categories: int = 18) -> None:
    """All that jobs.evaluate says of a method whose scores are there: ranks, every metric at four
    cut-offs over all targets and in each slice, what the lists show, intervals."""
    draws = np.random.default_rng(0)
    shape = (num_users, num_items)
    scores = draws.standard_normal(shape, dtype=np.float32)
    seen = sparse.csr_array(draws.random(shape) < 0.05, dtype=np.float32)
    cells = (np.ones(num_users), (np.arange(num_users), draws.integers(num_items, size=num_users)))
    relevant = sparse.csr_array(cells, shape=shape)
    lengths = np.diff(seen.indptr).astype(np.int64)
    known = SequenceBatch(
        lengths=torch.from_numpy(lengths),
        item_index=torch.from_numpy(seen.indices.astype(np.int64)),
        weights=torch.ones(seen.nnz),
        times=torch.zeros(seen.nnz, dtype=torch.long),
        target_mask=torch.zeros(seen.nnz, dtype=torch.bool),
    )
    items = RankedItems(
        item_ids=pa.array([str(i) for i in range(num_items)]),
        num_events=draws.geometric(0.01, num_items) * (draws.random(num_items) < 0.9),
        categories=category_shares(
            draws.integers(num_categories, size=(num_items, 2)).tolist(), num_categories
        ),
        content=unit_rows(draws.normal(size=(num_items, 64)).astype(np.float32)),
        content_mask=draws.random(num_items) < 0.9,
    )
    aims = Aims(relevant, lengths, {"users": num_users})
    judge = Judge("", "test", items, aims, (10, 30, 50, 100))
    step = users_at_a_time(num_items)
    ends = [(a, min(a + step, num_users)) for a in range(0, num_users, step)]
    asked = [Question(known.rows(a, b), seen[a:b], relevant[a:b]) for a, b in ends]
    whole, ranks_alone = [], []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        all_metrics(rank_in_chunks(lambda a, b: scores[a:b], relevant, excluded=seen))
        ranks_alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        judged = judge.judged("given", map(judge.exact(_Given(scores)), asked))
        for part in judge.slices(judged.ranks):
            bootstrap_means(part.values)
        whole.append(time.perf_counter() - started)
    what = f"{num_users:,} users x {num_items:,} items after scores"
    report.add(f"{what}, all metrics with intervals, s", float(np.median(whole)), 2, True)
    report.add(f"{what}, hit rate, recall, NDCG, MRR alone, s", float(np.median(ranks_alone)))


def large(report: Report, num_users: int, num_items: int, dim: int = 16) -> None:
    """Scores made as they are needed, of factors: what is held stays small."""
    draws = np.random.default_rng(0)
    users = draws.standard_normal((num_users, dim), dtype=np.float32)
    items = draws.standard_normal((num_items, dim), dtype=np.float32)
    rows = np.repeat(np.arange(num_users), 100)
    cells = (np.ones(len(rows), np.float32), (rows, draws.integers(num_items, size=len(rows))))
    seen = sparse.csr_array(cells, shape=(num_users, num_items))
    aims = (np.ones(num_users), (np.arange(num_users), draws.integers(num_items, size=num_users)))
    relevant = sparse.csr_array(aims, shape=(num_users, num_items))
    started = time.perf_counter()
    with PeakMemory() as memory:
        all_metrics(rank_in_chunks(lambda a, b: users[a:b] @ items.T, relevant, excluded=seen))
    size = f"{num_users:,} users x {num_items:,} items"
    report.add(f"{size}, peak GB", memory.peak / 2**30, 4, True)
    report.add(f"{size}, scores of {dim} dimensions with them, s", time.perf_counter() - started)


def beside_rectools(python: str, report: Report, num_trials: int) -> None:
    """The largest difference of any value of any query, over random scores, targets and lists."""
    with tempfile.TemporaryDirectory() as folder:
        ours: list[dict[str, np.ndarray]] = []
        for trial in range(num_trials):
            ours.append(_trial(Path(folder), trial))
        script = Path(__file__).with_name("peers_metrics.py")
        subprocess.run([python, str(script), folder], check=True)
        worst: dict[str, float] = {}
        for trial, found in enumerate(ours):
            theirs = json.loads((Path(folder) / f"trial-{trial:04d}.json").read_text())
            assert theirs.keys() == found.keys()
            for name, values in found.items():
                off = float(np.abs(values - np.array(theirs[name])).max())
                metric = name.partition("@")[0]
                worst[metric] = max(worst.get(metric, 0.0), off)
    for metric, off in worst.items():
        report.add(
            f"RecTools, {metric}: largest difference in {num_trials} trials", off, 1e-6, True
        )


def _trial(folder: Path, trial: int) -> dict[str, np.ndarray]:
    """One random problem, written for RecTools, and what we say of it. Scores have no ties: those
    RecTools leaves to the order of its rows."""
    draws = np.random.default_rng(trial)
    num_queries, num_items = int(draws.integers(1, 9)), int(draws.integers(10, 40))
    scores = np.stack([draws.permutation(num_items) for _ in range(num_queries)]).astype(float)
    wanted = draws.random(scores.shape) < draws.uniform(0.02, 0.5)
    wanted[np.arange(num_queries), draws.integers(num_items, size=num_queries)] = True
    vectors = unit_rows(draws.normal(size=(num_items, 4)))
    lists = np.argsort(-scores, axis=1)[:, : max(CUTOFFS)]
    np.savez(
        folder / f"trial-{trial:04d}.npz",
        lists=lists,
        targets=np.argwhere(wanted),
        vectors=vectors,
    )
    ranks = rank_in_chunks(lambda a, b: scores[a:b], sparse.csr_array(wanted))
    found: dict[str, np.ndarray] = {}
    for k in CUTOFFS:
        found |= {f"{name}@{k}": metric(ranks, k) for name, metric in METRICS.items()}
        found[f"coverage@{k}"] = np.array(coverage(exposures(lists[:, :k], num_items)))
        if k > 1:
            found[f"intra-list diversity@{k}"] = intra_list_diversity(lists[:, :k], vectors)
    return found


def measure(options: argparse.Namespace, report: Report) -> None:
    exact(report, 6040, 3416)
    large(report, *((5_000, 20_000) if options.quick else (100_000, 100_000)))
    if options.peers:
        beside_rectools(options.peers, report, 20 if options.quick else 200)
    names = ["popularity", "Markov"] if options.quick else options.baselines
    for data in ("ml-1m", "amazon-beauty") if options.data else ():
        published(options.data / data, names, report)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of the two files")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with rectools")
    parser.add_argument("--baselines", nargs="+", choices=list(BASELINES), default=list(BASELINES))


if __name__ == "__main__":
    main("ranking", __doc__, measure, arguments)
