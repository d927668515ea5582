"""The services over HTTP beside what they are made of, under overload, and as hours go by.

    python -m bench.serve [--quick] [--only knn single embed recommend overload soak]
                          [--soak-minutes 30]

The load generator (bench/load.py) is a process of its own on the same machine; its processor time
is told apart and is no part of any ratio. The service runs behind HAProxy with a key, log and
metrics as anybody would run it. Rates within a ratio are measured in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from bench import serve_users
from bench.harness import Report, main
from bench.load import Load, Result, request, run
from bench.retrieval_data import K, clustered
from bench.serve_data import DIM, publish_content, texts
from bench.serve_services import Service, ours, peer, spent
from rec import wire
from rec.models.content.encoder import load_encoder
from rec.retrieval.build import build_index
from rec.retrieval.index import Index
from rec.retrieval.shards import Shard
from rec.retrieval.spec import IndexConfig
from rec.retrieval.threads import omp_threads

PARTS = ("knn", "single", "embed", "recommend", "overload", "soak")
_BATCH, _CALLERS = 64, 16
# as one machine is best served
_GATEWAYS = 2
_IN_GATEWAY = ("--set", "index_in_gateway=true", f"gateways={_GATEWAYS}")
_ENCODER_TOO = ("--set", "index_in_gateway=true", "encoder_in_gateway=true")


def knn_requests(service: Service, path: str, batch: int) -> list[bytes]:
    """Requests of `batch` vectors each for one of the binary routes."""
    vectors = clustered(2048, DIM, 1)
    return [
        request(
            "POST",
            f"{path}?k={K}",
            wire.pack_rows(vectors[start : start + batch]),
            wire.MEDIA_TYPE,
            service.headers,
        )
        for start in range(0, len(vectors) - batch + 1, batch)
    ]


def embed_requests(service: Service, inputs: int, number: int) -> list[bytes]:
    """Requests of so many texts each for the binary route."""
    sample = texts(inputs * number, 1)
    packed = (
        wire.pack_contents([(text, None) for text in sample[i : i + inputs]])
        for i in range(0, len(sample), inputs)
    )
    return [
        request("POST", "/v1/embed/raw", one, wire.MEDIA_TYPE, service.headers) for one in packed
    ]


def measured(
    service: Service, load: Load, requests: list[bytes]
) -> tuple[Result, dict[str, float]]:
    """What a load found, and the server's processor seconds meanwhile by what they went into.

    The load's warm-up and end are in the seconds too, so they are set against all answers.
    """
    before = service.cpu_s()
    result = run(load, requests)
    return result, spent(before, service.cpu_s())


def refuse_failures(result: Result, what: str) -> None:
    """Raise RuntimeError where a request of a load that must succeed did not."""
    if not result.ok.all():
        statuses = dict(zip(*np.unique(result.status, return_counts=True), strict=True))
        raise RuntimeError(f"{what}: {statuses}")


def raw_rate(uri: str) -> Callable[[], float]:
    """Measures raw FAISS on the index of `uri`: queries a second of processor time, with as many
    searching at once as the service has gateways, who share the machine's memory as those do."""
    part = Index.open(uri).parts[0]
    assert isinstance(part, Shard)
    batches = np.split(clustered(2048, DIM, 1), 2048 // _BATCH)

    def search(seconds: float) -> int:
        until, number = time.monotonic() + seconds, 0
        with omp_threads(1):
            while time.monotonic() < until:
                part.ann._index.search(batches[number % len(batches)], K)
                number += 1
        return number

    def measure() -> float:
        best = 0.0
        for _ in range(3):
            started = time.process_time()
            with ThreadPoolExecutor(_GATEWAYS) as pool:
                number = sum(pool.map(search, [0.7] * _GATEWAYS))
            best = max(best, _BATCH * number / (time.process_time() - started))
        return best

    return measure


def knn(report: Report, folder: Path, encoder: str, index: str, seconds: float) -> None:
    """64 vectors a request: queries a second of processor time beside raw FAISS, of the index that
    `auto` makes, of one of plain codes, and of all vectors compared."""
    places = {"auto": index}
    for factory in ("IVF1024,SQ8", "Flat"):
        places[factory] = str(folder / factory)
        build_index(str(folder / "embeddings"), places[factory], IndexConfig(factory=factory))
    for what, uri in places.items():
        one_knn(report, folder, encoder, uri, seconds, what)


def one_knn(
    report: Report, folder: Path, encoder: str, index: str, seconds: float, what: str
) -> None:
    raw = raw_rate(index)
    ratios, replica, loads, used = [], [], [], {}
    with ours(folder, "--encoder", encoder, "--index", index, *_IN_GATEWAY) as service:
        load = Load("127.0.0.1", service.port, seconds, warm_s=0.0, connections=4)
        requests = knn_requests(service, "/v1/knn/raw", _BATCH)
        run(load, requests)
        for _ in range(3):
            before = raw()
            result, used = measured(service, load, requests)
            refuse_failures(result, "knn")
            beside = (before + raw()) / 2
            queries = _BATCH * len(result.status)
            ratios.append(queries / sum(used.values()) / beside)
            replica.append(queries / (used["Gateway"]) / beside)
            loads.append(result)
    name = f"kNN over HTTP, 64 vectors a request, {what}"
    report.add(f"{name}: queries/CPU s beside raw FAISS", statistics.median(ratios), 0.85)
    report.add(f"{name}: the same of its replicas alone", statistics.median(replica))
    report.add(f"{name}: queries/s", statistics.median(_BATCH * one.rate for one in loads))
    factory = Index.open(index).manifest.config["factory"]
    report.note(f"{name}: {factory}, raw FAISS {raw():.0f} queries/CPU s")
    tell_cpu(report, name, loads[-1], used)


def tell_cpu(report: Report, name: str, result: Result, used: dict[str, float]) -> None:
    """Note where processor time went, in microseconds a request."""
    each = 1e6 / len(result.status)
    parts = ", ".join(f"{role} {seconds * each:.0f}" for role, seconds in used.items())
    own = result.cpu_s * each
    report.note(f"{name}: CPU us a request: {parts}; load generator, apart, {own:.0f}")


def _beside(
    report: Report, name: str, service: Service, path: str, other: Service, seconds: float
) -> tuple[float, float, float]:
    """Throughput and p99 of a service as ratios to a peer's, in turns; and p99 in ms."""
    sides = ((service, path), (other, "/knn"))
    found: list[list[Result]] = [[], []]
    used: list[dict[str, float]] = [{}, {}]
    for number in range(4):  # the first warms up
        for i, (one, place) in enumerate(sides):
            load = Load("127.0.0.1", one.port, seconds, connections=_CALLERS)
            result, used[i] = measured(one, load, knn_requests(one, place, 1))
            refuse_failures(result, f"{name}, {place}")
            if number:
                found[i].append(result)
    for i, who in enumerate((name, "FastAPI")):
        rate = statistics.median(one.rate for one in found[i])
        report.note(f"{who}: {rate:.0f} requests/s")
        tell_cpu(report, who, found[i][-1], used[i])
    rates, tails = (
        [f(a) / f(b) for a, b in zip(*found, strict=True)]
        for f in (lambda r: r.rate, lambda r: r.quantile_ms(0.99))
    )
    p99 = statistics.median(one.quantile_ms(0.99) for one in found[0])
    return statistics.median(rates), statistics.median(tails), p99


def single(report: Report, folder: Path, encoder: str, index: str, seconds: float) -> None:
    """One vector a request at 16 connections, beside FastAPI and beside Serve's Python proxy."""
    where = ("--encoder", encoder, "--index", index)
    with peer(index) as other:
        with ours(folder, *where, *_IN_GATEWAY) as service:
            rate, tail, p99 = _beside(
                report, "behind HAProxy", service, "/v1/knn/raw", other, seconds
            )
        with ours(folder, *where, *_IN_GATEWAY, haproxy=False) as service:  # the same application
            slow, _, slow_p99 = _beside(
                report, "behind Serve's Python proxy", service, "/v1/knn/raw", other, seconds
            )
    report.add("single vectors at 16 connections: requests/s beside FastAPI + uvicorn", rate, 0.7)
    report.add("single vectors: p99 beside FastAPI + uvicorn", tail, 3.0, True)
    report.add("single vectors: requests/s beside Serve's Python proxy", rate / slow, 5.0)
    report.add("single vectors: p99, ms", p99)
    report.add("single vectors behind Serve's Python proxy: p99, ms", slow_p99)


def embed(report: Report, folder: Path, encoder: str, index: str, seconds: float) -> None:
    """16 callers with texts of 20 to 32 tokens beside the bare model, on one thread each."""
    model = load_encoder(encoder)
    torch.set_num_threads(1)
    sample = texts(256, 1)

    def bare() -> float:
        since, done = time.perf_counter(), 0
        while time.perf_counter() - since < seconds / 2:
            start = done % len(sample)
            model.encode_texts(sample[start : start + 32])
            done += 32
        return done / (time.perf_counter() - since)

    with ours(folder, "--encoder", encoder, "--index", index, *_ENCODER_TOO) as service:
        for inputs in (1, 8):
            requests = embed_requests(service, inputs, len(sample) // inputs)
            load = Load("127.0.0.1", service.port, seconds, connections=_CALLERS)
            ratios, result, used = [], run(load, requests), {}
            for _ in range(3):
                before = bare()
                result, used = measured(service, load, requests)
                refuse_failures(result, "embed")
                ratios.append(inputs * result.rate / ((before + bare()) / 2))
            name = f"embed, 16 callers, {inputs} text{'s' * (inputs > 1)} a request"
            report.add(f"{name}: texts/s beside the bare model", statistics.median(ratios), 0.9)
            report.add(f"{name}: p99, ms", result.quantile_ms(0.99))
            tell_cpu(report, name, result, used)
    report.note(
        "embed: six layers of 384, untrained; bare: batches of 32 of the same texts, in turns. "
        "infinity-emb and the weights of MiniLM are not at hand and are not measured"
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--soak-minutes", type=float, default=30.0)
    parser.add_argument("--items", type=int, help="of each index (default: 200,000)")
    parser.add_argument("--seconds", type=float, help="of each measurement (default: 8)")


def measure(options: argparse.Namespace, report: Report) -> None:
    seconds = options.seconds or (1.0 if options.quick else 8.0)
    items = options.items or (5_000 if options.quick else 200_000)
    with tempfile.TemporaryDirectory(prefix="raycall-serve-") as name:
        folder = Path(name)
        if {"knn", "single", "embed", "soak"} & set(options.only):
            content = publish_content(folder, items)
            for part in (knn, single, embed):
                if part.__name__ in options.only:
                    part(report, folder, *content, seconds)
        if {"recommend", "overload", "soak"} & set(options.only):
            serve_users.measure(options, report, folder, items, seconds)


if __name__ == "__main__":
    main("serve", __doc__, measure, _arguments)
