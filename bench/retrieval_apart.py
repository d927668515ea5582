"""The parts of bench.retrieval that take processes of their own: growth, and other engines.

An index is built in one process and searched in another, so that memory and processor time are
those of one alone.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from bench.harness import Report
from bench.retrieval_data import K, clustered, exact, write_table
from bench.retrieval_peers import per_cpu_second, rss
from bench.workload import elsewhere
from rec import artifacts
from rec.retrieval.build import build_index
from rec.retrieval.filters import Equal, In
from rec.retrieval.index import Index
from rec.retrieval.spec import IndexConfig
from rec.retrieval.tune import recall


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
