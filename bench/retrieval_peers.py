"""One nearest-neighbour engine, built or measured in this process; prints one JSON line.

    PYTHON bench/retrieval_peers.py build ENGINE FOLDER TARGET
    PYTHON bench/retrieval_peers.py search ENGINE FOLDER TARGET

Two processes, so that the memory of the second is that of the index it loads.

FOLDER holds vectors.npy, queries.npy, truth.npy (rows of the 10 nearest of each query), tuning.npy
and tuning_truth.npy likewise of other queries, and group.npy (0..99 of each vector: the filter's
attribute) with filtered.npy (the 10 nearest of group 0). ENGINE is hnswlib, usearch or qdrant;
PYTHON is one that has it, and nothing of Raycall is imported. Everything on one thread; effort is
the least that reaches TARGET on the queries of tuning.npy, and more where those of queries.npy,
which are compared, do not reach it with that.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K = 10
EFFORTS = range(K, 2049)


def rss() -> int:
    """Bytes of this process now in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in pairs]))


def per_cpu_second(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> float:
    """Queries a second of processor time, the best of three passes."""
    best = 0.0
    for _ in range(3):
        started = time.process_time()
        for start in range(0, len(queries), batch):
            search(queries[start : start + batch])
        best = max(best, len(queries) / max(time.process_time() - started, 1e-9))
    return best


def hnswlib_index(vectors: np.ndarray, path: str) -> Any:
    import hnswlib  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=200, random_seed=0)
    index.add_items(vectors, num_threads=1)
    index.save_index(path)
    return index


def hnswlib_load(path: str, dim: int) -> Any:
    import hnswlib  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    index = hnswlib.Index("ip", dim)
    index.load_index(path)
    return index


def usearch_index(vectors: np.ndarray, path: str) -> Any:
    from usearch.index import Index  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32")
    index.add(np.arange(len(vectors)), vectors, threads=1)
    index.save(path)
    return index


def usearch_load(path: str, dim: int) -> Any:  # noqa: ARG001
    from usearch.index import Index  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    return Index.restore(path)


def searcher(engine: str, index: Any) -> Callable[[np.ndarray, int], np.ndarray]:
    """(queries, effort) -> (n, 10) rows."""
    if engine == "hnswlib":

        def by_hnswlib(queries: np.ndarray, effort: int) -> np.ndarray:
            index.set_ef(effort)
            return index.knn_query(queries, K, num_threads=1)[0].astype(np.int64)

        return by_hnswlib

    def by_usearch(queries: np.ndarray, effort: int) -> np.ndarray:
        index.expansion_search = effort
        keys = index.search(queries, K, threads=1).keys
        return np.asarray(keys).reshape(len(queries), K).astype(np.int64)

    return by_usearch


def build(engine: str, folder: Path) -> dict[str, Any]:
    vectors = np.load(folder / "vectors.npy")
    started = time.process_time()
    (hnswlib_index if engine == "hnswlib" else usearch_index)(vectors, f"{folder}/{engine}.index")
    return {"engine": engine, "build_cpu_s": time.process_time() - started}


def measure(engine: str, folder: Path, target: float) -> dict[str, Any]:
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    load = hnswlib_load if engine == "hnswlib" else usearch_load
    __import__(engine)  # its code is not the index's
    before = rss()
    search = searcher(engine, load(f"{folder}/{engine}.index", queries.shape[1]))
    tuning, tuning_truth = np.load(folder / "tuning.npy"), np.load(folder / "tuning_truth.npy")

    def tuned(effort: int) -> float:
        return recall(search(tuning, effort), tuning_truth)

    effort = EFFORTS[min(bisect_left(EFFORTS, target, key=tuned), len(EFFORTS) - 1)]
    while (found := recall(search(queries, effort), truth)) < target and effort < EFFORTS[-1]:
        effort = min(effort + max(1, effort // 50), EFFORTS[-1])
    return {
        "engine": engine,
        "effort": effort,
        "reaches": found >= target,
        "recall": found,
        "memory": rss() - before,
        "single": per_cpu_second(lambda q: search(q, effort), queries, 1),
        "batch": per_cpu_second(lambda q: search(q, effort), queries, 64),
    }


def measure_qdrant(folder: Path) -> dict[str, Any]:
    """A 1 % filter in the client's local mode, which compares every vector with numpy; building
    and searching are one step there."""
    from qdrant_client import QdrantClient, models  # pyright: ignore[reportMissingImports]

    names = ("vectors", "queries", "filtered", "group")
    vectors, queries, truth, group = (np.load(folder / f"{name}.npy") for name in names)
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection("c", vectors_config=params)
    started = time.process_time()
    client.upload_collection(
        "c", vectors=vectors, payload=({"g": int(g)} for g in group), ids=range(len(vectors))
    )
    build_s = time.process_time() - started
    only = models.FieldCondition(key="g", match=models.MatchValue(value=0))
    where = models.Filter(must=[only])
    found = []
    queries, truth = queries[:50], truth[:50]  # it takes long
    started = time.process_time()
    for query in queries:
        answer = client.query_points("c", query=query.tolist(), query_filter=where, limit=K)
        found.append([point.id for point in answer.points])
    seconds = time.process_time() - started
    return {
        "engine": "qdrant local mode",
        "recall": recall(np.array(found), truth),
        "build_cpu_s": build_s,
        "single": len(queries) / seconds,
    }


if __name__ == "__main__":
    step, name, place, asked = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
    if name == "qdrant":
        result = measure_qdrant(place)
    else:
        result = build(name, place) if step == "build" else measure(name, place, asked)
    print(json.dumps(result), flush=True)
