"""Retrieval beside raw FAISS, beside other engines, under filters, and as it grows.

    python -m bench.retrieval [--quick] [--peers PYTHON] [--only PART ...]

Throughput is queries a second of processor time, on one thread. Recall@10 is against brute force
on queries that the index was not tuned with. PYTHON has hnswlib, usearch and qdrant-client; see
bench/retrieval_peers.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from bench.harness import Report, main
from bench.retrieval_apart import growth, peers
from bench.retrieval_data import K, clustered, exact, write_table
from bench.retrieval_peers import per_cpu_second
from bench.retrieval_updates import updates
from rec.retrieval.ann import Ann
from rec.retrieval.build import build_index
from rec.retrieval.effort import Effort
from rec.retrieval.filters import In, Range
from rec.retrieval.index import Index
from rec.retrieval.shards import Shard
from rec.retrieval.spec import IndexConfig
from rec.retrieval.threads import omp_threads
from rec.retrieval.tune import recall

PARTS = ("overhead", "auto", "filters", "updates", "growth", "peers")
PASS_RATES = (0.5, 0.1, 0.01, 0.001)
ROUNDS = 15
NUM_FAR = 100  # queries
TIE = 0.03  # two ways that differ by less are equally fast


class Line(NamedTuple):
    """A hand-picked index and its effort."""

    factory: str
    effort: Effort


def hand_picked(dim: int, lists: int) -> list[Line]:
    """The lines of the project's notes, for these lists."""
    codes = f"IVF{lists},PQ{dim // 2}x4fs"
    return [
        *(Line(f"{codes},Refine(SQ8)", Effort(nprobe, 8)) for nprobe in (16, 48)),
        *(Line(f"{codes},RFlat", Effort(nprobe, 8)) for nprobe in (16, 32, 64)),
        *(Line(f"IVF{lists},SQ8", Effort(nprobe)) for nprobe in (16, 48)),
        *(Line(f"IVF{lists},Flat", Effort(nprobe)) for nprobe in (16, 32)),
    ]


def turn_about(
    ways: dict[str, Callable[[np.ndarray], Any]],
    queries: np.ndarray,
    batch: int,
    rounds: int = ROUNDS,
) -> dict[str, np.ndarray]:
    """(rounds,) queries a second of processor time of each way, all of them once a round, every
    other round in the opposite order."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with omp_threads(1):
        for number in range(rounds):
            for name, search in list(ways.items())[:: -1 if number % 2 else 1]:
                rates[name].append(per_cpu_second(search, queries, batch))
    return {name: np.array(found) for name, found in rates.items()}


def overhead(report: Report, folder: Path, num: int, dim: int) -> None:
    """Library beside raw FAISS on the same index, turn about.

    The same in memory too: copies of one index differ by up to an eighth by where they lie."""
    vectors = clustered(num, dim, 0)
    table = write_table(vectors, f"{folder}/e")
    build_index(table, f"{folder}/i")
    index = Index.open(f"{folder}/i")
    shard = index.parts[0]
    assert isinstance(shard, Shard)
    raw = shard.ann._index
    ways: dict[str, Callable[[np.ndarray], Any]] = {
        "raw": lambda q: raw.search(q, K),
        "library": lambda q: index.search(q, K),
        "with ids": lambda q: index.search(q, K).ids,
    }
    queries = clustered(1024, dim, 1)
    for batch in (1, 64):
        rates = turn_about(ways, queries[:256], batch, 200)
        for way, bar in (("library", 0.95), ("with ids", None)):
            low, middle, high = np.quantile(rates[way] / rates["raw"], (0.1, 0.5, 0.9))
            name = f"{way} / raw FAISS, batch {batch}"
            report.add(f"{name}, {num:,} x {dim}, median of 200 rounds", middle, bar)
            report.note(f"{name}: 80 % of rounds in {low:.3f}..{high:.3f}")


def auto(report: Report, folder: Path, num: int, dim: int, lists: int) -> None:
    """What `auto` reaches, beside the best of the hand-picked lines that reach the same recall."""
    vectors, queries = clustered(num, dim, 0), clustered(1000, dim, 1)
    truth = exact(vectors, queries)
    table = write_table(vectors, f"{folder}/e")
    lines: list[tuple[float, float, Line]] = []
    for line in hand_picked(dim, lists):
        file = _file(folder, line)
        if not file.exists():
            _filled(line.factory, vectors).write(str(file))
        search = _line(folder, line)
        with omp_threads(1):
            found = recall(search(queries)[0], truth)
            rate = per_cpu_second(search, queries, 64)
        lines.append((found, rate, line))
        report.note(f"{num:,} x {dim}: {line.factory} {line.effort}: {found:.4f}, {rate:,.0f}/s")
    for target in (0.95, 0.99):
        started = time.process_time()
        config = IndexConfig(recall_target=target)
        manifest = build_index(table, f"{folder}/i", config)
        seconds = time.process_time() - started
        index = Index.open(f"{folder}/i")
        reached = recall(index.search(queries, K).rows, truth)
        name = f"{num:,} x {dim}, {target} asked"
        report.add(f"auto: recall@10, {name}", reached, target)
        made = manifest.config
        report.note(
            f"{name}: {made['factory']} nprobe {made['nprobe']} k_factor {made['k_factor']}, "
            f"{seconds:.0f} CPU s to build and tune"
        )
        able = [line for line in lines if line[0] >= target]
        if not able:
            report.note(f"{name}: no hand-picked line reaches it")
            continue
        best = max(able, key=lambda line: line[1])
        rates = turn_about(
            {
                "auto": lambda q, index=index: index.search(q, K),
                "best": _line(folder, best[2]),
                "best again": _line(folder, best[2]),
            },
            queries,
            64,
        )
        report.add(
            f"auto / best hand-picked line, turn about, {name}",
            float(np.median(rates["auto"] / rates["best"])),
            1 - TIE,
        )
        for way in ("auto", "best again"):
            low, middle, high = np.quantile(rates[way] / rates["best"], (0.1, 0.5, 0.9))
            report.note(f"{name}: {way} / {best[2]}: {middle:.3f}, 80 % in {low:.3f}..{high:.3f}")


def _file(folder: Path, line: Line) -> Path:
    return folder / f"{line.factory}.faiss"


def _line(folder: Path, line: Line) -> Callable[[np.ndarray], Any]:
    ann = Ann.read(str(_file(folder, line)))
    ann.effort = line.effort
    return lambda queries: ann.search(queries, K)


def _filled(factory: str, vectors: np.ndarray) -> Ann:
    ann = Ann.make(factory, vectors.shape[1])
    with omp_threads(None):
        sample = np.random.default_rng(0).permutation(len(vectors))[
            : max(64 * ann.num_lists, 20_000)
        ]
        ann.train(vectors[np.sort(sample)])
        ann.add(vectors)
    return ann


def filters(report: Report, folder: Path, num: int, dim: int) -> None:
    """Recall and throughput under filters that pass by chance, and under ones that lie elsewhere
    than the query.

    A shard keeps which rows fit the filters asked last: one that is asked anew costs more."""
    vectors, queries = clustered(num, dim, 0), clustered(256, dim, 1)
    axes = np.random.default_rng(3).standard_normal((dim, 10)).astype(np.float32)
    group = (vectors @ axes).argmax(axis=1)
    table = write_table(vectors, f"{folder}/e", group)
    config = IndexConfig(recall_target=0.98, attributes=("u", "group"))
    build_index(table, f"{folder}/i", config)
    index = Index.open(f"{folder}/i")
    uniform = np.random.default_rng(2).random(num)
    for rate in PASS_RATES:
        rows = np.flatnonzero(uniform < rate)
        truth = rows[exact(vectors[rows], queries)]
        where = Range(column="u", below=rate)
        found = index.search(queries, K, where=where).rows
        report.add(f"filtered recall@10, {rate:.1%} pass", recall(found, truth), 0.98)
        fresh = (Range(column="u", below=rate * (1 + 1e-12 * n)) for n in itertools.count(1))
        for how, filters_asked in (("anew", fresh), ("again", itertools.repeat(where))):
            speed = per_cpu_second(
                lambda q, asked=filters_asked: index.search(q, K, where=next(asked)), queries, 1
            )
            report.add(f"filtered queries/CPU s, {rate:.1%} pass, filter asked {how}", speed)
    _far(report, index, vectors, queries, axes)


def _far(
    report: Report, index: Index, vectors: np.ndarray, queries: np.ndarray, axes: np.ndarray
) -> None:
    """Filters by ten groups, each the rows along one of `axes`, for queries in the midst of one of
    them; and exclusions of what is nearest."""
    group, along = (vectors @ axes).argmax(axis=1), queries @ axes
    order = np.argsort(-along, axis=1)
    margin = -np.diff(np.take_along_axis(along, order[:, :2], axis=1)).ravel()
    midst = np.argsort(-margin)[:NUM_FAR]
    for rate, least in ((0.9, 1), (0.5, 5), (0.1, 9)):
        seconds, found = 0.0, []
        for query in midst:
            fitting = order[query, least:].tolist()
            where, one = In(column="group", values=fitting), queries[query : query + 1]
            index.search(one, K, where=where)
            started = time.process_time()
            hits = index.search(one, K, where=where)
            seconds += time.process_time() - started
            rows = np.flatnonzero(np.isin(group, fitting))
            found.append(recall(hits.rows, rows[exact(vectors[rows], one)]))
        name = f"about {rate:.0%} pass, none near the query"
        report.add(f"filtered recall@10, {name}", float(np.mean(found)), 0.98)
        report.add(f"filtered queries/CPU s, {name}, filter asked again", NUM_FAR / seconds)
    for num in (100, 1000):
        scores = queries[midst] @ vectors.T
        best = np.argsort(-scores, axis=1)[:, : num + K]
        out = index.ids(best[:, :num]).tolist()
        started = time.process_time()
        hits = [
            index.search(queries[query : query + 1], K, exclude=[ids]).rows
            for query, ids in zip(midst, out, strict=True)
        ]
        seconds = time.process_time() - started
        name = f"the {num:,} nearest excluded"
        found, stored = (
            np.concatenate(hits),
            index.search(queries[midst], K, exclude=out, exact=True),
        )
        report.add(f"recall@10 of exact search, {name}", recall(found, stored.rows), 0.98)
        # what is left scores nearly the same: codes tell little of it
        report.add(f"recall@10, {name}", recall(found, best[:, num:]))
        report.add(f"queries/CPU s, {name}", NUM_FAR / seconds)


def measure(options: argparse.Namespace, report: Report) -> None:
    small = options.quick
    work: dict[str, Callable[[Path], None]] = {
        "overhead": lambda f: overhead(report, f, *((25_000, 32) if small else (200_000, 128))),
        "filters": lambda f: filters(report, f, *((25_000, 32) if small else (200_000, 128))),
        "updates": lambda f: updates(report, f, *((25_000, 32) if small else (200_000, 128))),
    }
    if small:
        work["auto"] = lambda f: auto(report, f, 25_000, 32, 256)
    else:
        work["auto, 200k"] = lambda f: auto(report, f, 200_000, 128, 1024)
        work["auto, 1M"] = lambda f: auto(report, f, 1_000_000, 96, 4096)
    if not options.peers and "peers" in options.only:
        if options.only is not PARTS:
            options.refuse("--only peers needs --peers PYTHON")
        report.note("peers: not measured; give --peers PYTHON")
    elif options.peers:
        size = (25_000, 32) if small else (200_000, 128)
        work["peers"] = lambda f: peers(report, f, options.peers, *size)
    sizes = (22_000, 44_000) if small else (100_000, 1_000_000, 4_000_000)
    work["growth"] = lambda _: growth(report, sizes, 32 if small else 64)
    for name, part in work.items():
        if name.split(",")[0] in options.only:
            with tempfile.TemporaryDirectory(prefix="raycall-retrieval-") as folder:
                part(Path(folder))
    report.note(
        f"faiss {faiss.__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has the other engines")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)"
    )


if __name__ == "__main__":
    main("retrieval", __doc__, measure, arguments)
