"""Retrieval beside raw FAISS, beside other engines, under filters, and as it grows.

    python -m bench.retrieval [--quick] [--peers PYTHON] [--only overhead auto filters growth peers]

Throughput is queries a second of processor time, on one thread. Recall@10 is against brute force
on queries that the index was not tuned with. PYTHON has hnswlib, usearch and qdrant-client; see
bench/retrieval_peers.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from bench.harness import Report, main
from bench.retrieval_data import K, clustered, exact, write_table
from bench.retrieval_peers import per_cpu_second, rss
from bench.workload import elsewhere
from rec import artifacts
from rec.retrieval.ann import Ann, Effort, omp_threads
from rec.retrieval.build import build_index
from rec.retrieval.filters import Equal, In, Range
from rec.retrieval.index import Index
from rec.retrieval.shards import INDEX_FILE, Shard
from rec.retrieval.spec import IndexConfig
from rec.retrieval.tune import recall

PARTS = ("overhead", "auto", "filters", "growth", "peers")
PASS_RATES = (0.5, 0.1, 0.01, 0.001)
ROUNDS = 15
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
    ways: dict[str, Callable[[np.ndarray], Any]], queries: np.ndarray, batch: int
) -> dict[str, np.ndarray]:
    """(rounds,) queries a second of processor time of each way, all of them once a round, every
    other round in the opposite order."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with omp_threads(1):
        for number in range(ROUNDS):
            for name, search in list(ways.items())[:: -1 if number % 2 else 1]:
                rates[name].append(per_cpu_second(search, queries, batch))
    return {name: np.array(found) for name, found in rates.items()}


def overhead(report: Report, folder: Path, num: int, dim: int) -> None:
    """Library beside raw FAISS on the same index, turn about."""
    vectors = clustered(num, dim, 0)
    table = write_table(vectors, f"{folder}/e")
    build_index(table, f"{folder}/i")
    index = Index.open(f"{folder}/i")
    shard = index.parts[0]
    assert isinstance(shard, Shard)
    (file,) = Path(folder, "i").rglob(INDEX_FILE)
    raw = Ann.read(str(file))
    raw.effort = shard.ann.effort
    ways: dict[str, Callable[[np.ndarray], Any]] = {
        "raw": lambda q: raw._index.search(q, K),
        "library": lambda q: index.search(q, K),
        "with ids": lambda q: index.search(q, K).ids,
    }
    queries = clustered(1024, dim, 1)
    for batch in (1, 64):
        rates = turn_about(ways, queries[:256], batch)
        best = {name: max(rate) for name, rate in rates.items()}
        report.add(
            f"library / raw FAISS, batch {batch}, {num:,} x {dim}",
            best["library"] / best["raw"],
            0.95,
        )
        report.add(f"with ids / raw FAISS, batch {batch}", best["with ids"] / best["raw"])


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
    far = []
    for number, query in enumerate((queries @ axes).argmax(axis=1)[:100]):
        other = int((query + 1) % 10)
        rows = np.flatnonzero(group == other)
        one = queries[number : number + 1]
        truth = rows[exact(vectors[rows], one)]
        hits = index.search(one, K, where=Equal(column="group", value=other))
        far.append(recall(hits.rows, truth))
    report.add("filtered recall@10, about 10 % pass, none near the query", float(np.mean(far)))


def _build(rank: int, folder: str, target: float, columns: tuple[str, ...]) -> None:  # noqa: ARG001
    """Index the table of `folder` on one thread, in a process of its own."""
    faiss.omp_set_num_threads(1)
    started = time.process_time()
    config = IndexConfig(recall_target=target, attributes=columns)
    build_index(f"{folder}/e", f"{folder}/i", config, num_threads=1)
    Path(folder, "build.json").write_text(json.dumps(time.process_time() - started))


def _search(rank: int, folder: str) -> None:  # noqa: ARG001
    """Load and search the index of `folder`, in a process of its own."""
    arrays = {path.stem: np.load(path) for path in Path(folder).glob("[qtf]*.npy")}
    queries = arrays["queries"]
    faiss.omp_set_num_threads(1)
    manifest = artifacts.read_manifest(f"{folder}/i", "index")
    # what Arrow and FAISS hold once, whatever the size, is not the index's
    build_index(write_table(queries[:100], f"{folder}/warm-e"), f"{folder}/warm-i")
    Index.open(f"{folder}/warm-i").search(queries[:64], K)
    before = rss()
    index = Index.open(f"{folder}/i")
    result: dict[str, Any] = {
        "factory": manifest.config["factory"],
        "recall": recall(index.search(queries, K).rows, arrays["truth"]),
        "memory": max(rss() - before, 1),
        "disk": sum(entry.num_bytes for entry in manifest.files.values()),
        "build": json.loads(Path(folder, "build.json").read_text()),
        "single": per_cpu_second(lambda q: index.search(q, K), queries, 1),
        "batch": per_cpu_second(lambda q: index.search(q, K), queries, 64),
    }
    if "filtered" in arrays:
        where = Equal(column="group", value=0)
        found = index.search(queries, K, where=where).rows
        result["filtered_recall"] = recall(found, arrays["filtered"])
        # no group is negative: the same rows by a filter that was not asked before
        fresh = (In(column="group", values=(0, -n)) for n in itertools.count(1))
        for name, asked in (("filtered_anew", fresh), ("filtered_again", itertools.repeat(where))):
            result[name] = per_cpu_second(
                lambda q, asked=asked: index.search(q, K, where=next(asked)), queries, 1
            )
    Path(folder, "search.json").write_text(json.dumps(result))


def ours(folder: str, target: float, columns: tuple[str, ...] = ()) -> dict[str, Any]:
    """Build and search what stands in `folder`; what was measured."""
    elsewhere(_build, folder, target, columns)
    elsewhere(_search, folder)
    return json.loads(Path(folder, "search.json").read_text())


def _prepare(rank: int, folder: str, num: int, dim: int) -> None:  # noqa: ARG001
    """Write table, queries and their true neighbours, in a process of its own."""
    vectors, queries = clustered(num, dim, 0), clustered(500, dim, 1)
    np.save(f"{folder}/queries.npy", queries)
    np.save(f"{folder}/truth.npy", exact(vectors, queries))
    write_table(vectors, f"{folder}/e")


def growth(report: Report, sizes: tuple[int, ...], dim: int) -> None:
    """Build, search and memory at growing sizes, with the exponent of a power law."""
    found: list[dict[str, Any]] = []
    for num in sizes:
        with tempfile.TemporaryDirectory(prefix="raycall-growth-") as folder:
            elsewhere(_prepare, folder, num, dim)
            found.append(ours(folder, 0.95))
    report.table += [
        "| vectors | index | recall@10 | build, CPU s | query, CPU us | memory, MB | disk, MB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for num, one in zip(sizes, found, strict=True):
        report.table.append(
            f"| {num:,} | {one['factory']} | {one['recall']:.3f} | {one['build']:.1f} | "
            f"{1e6 / one['single']:.0f} | {one['memory'] / 2**20:.0f} | {one['disk'] / 2**20:.0f} |"
        )
    print("\n".join(report.table))
    for what in ("build", "search", "memory", "disk"):
        costs = [1 / one["single"] if what == "search" else one[what] for one in found]
        slope = np.polyfit(np.log(sizes), np.log(costs), 1)[0]
        report.add(f"exponent of {what} from {sizes[0]:,} to {sizes[-1]:,}", float(slope))
    num, one = sizes[-1], found[-1]
    report.add(f"index of {num:,} vectors: build, CPU us a vector", one["build"] / num * 1e6)
    report.add(f"index of {num:,} vectors: query, CPU us", 1e6 / one["single"])
    report.add(f"index of {num:,} vectors: memory, bytes a vector", one["memory"] / num)
    report.add(f"index of {num:,} vectors: disk, bytes a vector", one["disk"] / num)


def _peer(python: str, step: str, engine: str, folder: Path) -> dict[str, Any]:
    script = str(Path(__file__).with_name("retrieval_peers.py"))
    command = [python, script, step, engine, str(folder), "0.95"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peers(report: Report, folder: Path, python: str, num: int, dim: int) -> None:
    """Engines of others at recall@10 .95, each in a process of its own."""
    vectors, queries = clustered(num, dim, 0), clustered(500, dim, 1)
    group = np.random.default_rng(4).integers(0, 100, num)
    rows = np.flatnonzero(group == 0)
    arrays = {
        "vectors": vectors,
        "queries": queries,
        "truth": exact(vectors, queries),
        "tuning": (tuning := clustered(500, dim, 2)),
        "tuning_truth": exact(vectors, tuning),
        "group": group,
        "filtered": rows[exact(vectors[rows], queries)],
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    write_table(vectors, f"{folder}/e", group)
    mine = ours(str(folder), 0.95, ("group",))
    report.note(f"ours, {num:,} x {dim}: {mine}")
    report.add(f"our recall@10, {num:,} x {dim}", mine["recall"], 0.95)
    for engine in ("hnswlib", "usearch", "qdrant"):
        theirs: dict[str, Any] = {}
        try:
            for step in ("search",) if engine == "qdrant" else ("build", "search"):
                theirs |= _peer(python, step, engine, folder)
        except subprocess.CalledProcessError as error:
            report.note(f"{engine}: could not be measured: {error.stderr.strip()[-300:]}")
            continue
        report.note(f"{engine}: {theirs}")
        name = theirs["engine"]
        if engine == "qdrant":
            for how in ("anew", "again"):
                ratio = mine[f"filtered_{how}"] / theirs["single"]
                report.add(f"queries/CPU s beside {name}, 1 % filter asked {how}", ratio, 1.0)
            report.add("our recall@10 under the 1 % filter", mine["filtered_recall"], 0.98)
            continue
        report.add(f"recall@10 of {name}", theirs["recall"])
        if not theirs["reaches"]:
            report.note(f"{name}: not compared, does not reach .95 at effort {theirs['effort']}")
            continue
        for how in ("single", "batch"):
            report.add(f"queries/CPU s beside {name}, {how}", mine[how] / theirs[how], 1.0)
        report.add(f"memory beside {name}", mine["memory"] / theirs["memory"], 1.0, True)
        ratio = mine["build"] / theirs["build_cpu_s"]
        report.add(f"build CPU s beside {name}", ratio, 1.0, True)


def measure(options: argparse.Namespace, report: Report) -> None:
    small = options.quick
    work: dict[str, Callable[[Path], None]] = {
        "overhead": lambda f: overhead(report, f, *((25_000, 32) if small else (200_000, 128))),
        "filters": lambda f: filters(report, f, *((25_000, 32) if small else (200_000, 128))),
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
