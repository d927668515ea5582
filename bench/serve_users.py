"""The parts of bench.serve about recommendations: latency at half of saturation and where it goes,
overload, and memory as time goes by."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.harness import Report
from bench.load import Load, Result, request, run
from bench.serve_data import histories, publish_users
from bench.serve_services import Service, ours

_CALLERS = (4, 6, 8, 16)
_MOST_CONNECTIONS = 4000
_STEPS = {  # of a request's time, in order: from the caller's side to what it waited for
    "proxy": "HAProxy, sockets, and waiting for the gateway",
    "gateway": "gateway: key, JSON, checks, answer",
    "transport": "between gateway and replica",
    "batch": "waiting for a batch",
    "encode": "encoding the batch",
    "thread": "waiting for a thread",
    "recall": "searching",
    "rest": "rest of the replica",
}


def recommend_requests(service: Service, num_items: int) -> list[bytes]:
    return [
        request("POST", "/v1/recommend", body, "application/json", service.headers)
        for body in histories(num_items, 512)
    ]


def parse_timings(header: str) -> dict[str, float]:
    """Milliseconds by name, of a Server-Timing header."""
    parts = (part.strip().split(";dur=") for part in header.split(","))
    return {name: float(ms) for name, ms in parts}


def breakdown(result: Result) -> dict[str, np.ndarray]:
    """(requests,) milliseconds of each step of the good answers; they add up to the latency."""
    told = [parse_timings(one) for one, ok in zip(result.timings, result.ok, strict=True) if ok]
    column = {name: np.array([one[name] for one in told]) for name in told[0]}
    inner = sum(column[name] for name in ("batch", "encode", "thread", "recall"))
    return {
        "proxy": 1000 * result.latency_s[result.ok] - column["app"],
        "gateway": column["app"] - column["call"],
        "transport": column["call"] - column["replica"],
        **{name: column[name] for name in ("batch", "encode", "thread", "recall")},
        "rest": column["replica"] - inner,
    }


def saturation(service: Service, requests: Sequence[bytes], seconds: float) -> float:
    """The most requests a second that are answered in closed loops of a few callers: of many some
    are refused, and ask again at once as no client would."""
    rates: list[float] = []
    for callers in (_CALLERS[0], *_CALLERS):  # the first warms up
        load = Load("127.0.0.1", service.port, seconds / 2, connections=callers)
        rates.append(run(load, requests).rate)
        print(f"   {callers} callers: {rates[-1]:.1f} requests/s")
    return max(rates[1:])


def at_rate(
    service: Service, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0
) -> Result:
    """An open loop of this rate."""
    load = Load(
        "127.0.0.1", service.port, seconds, connections=_MOST_CONNECTIONS, rate=rate, seed=seed
    )
    return run(load, requests)


def recommend(
    report: Report, service: Service, requests: Sequence[bytes], full: float, seconds: float
) -> None:
    """Latency at half of saturation, and where it goes."""
    result = at_rate(service, requests, full / 2, 4 * seconds)
    p50, p99 = result.quantile_ms(0.5), result.quantile_ms(0.99)
    report.add("recommend: saturation, requests/s", full)
    report.add("recommend at half of it: p50, ms", p50)
    report.add("recommend at half of it: p99, ms", p99)
    report.add("recommend at half of it: p99 / p50", p99 / p50, 4.0, True)
    report.add("recommend at half of it: share refused", float((~result.ok).mean()), 0.001, True)
    steps = breakdown(result)
    total = 1000 * result.latency_s[result.ok]
    slow = total >= np.quantile(total, 0.99)
    report.table += ["| where the time goes, ms | median | mean | mean of the slowest 1 % |"]
    report.table += ["| --- | ---: | ---: | ---: |"]
    for name, words in _STEPS.items():
        ms = steps[name]
        report.table.append(
            f"| {words} | {np.median(ms):.2f} | {ms.mean():.2f} | {ms[slow].mean():.2f} |"
        )
    report.table.append(
        f"| whole | {np.median(total):.2f} | {total.mean():.2f} | {total[slow].mean():.2f} |"
    )
    print("\n".join(report.table))


def overload(
    report: Report, service: Service, requests: Sequence[bytes], full: float, seconds: float
) -> None:
    """Three times what it can do, beside a tenth of it."""
    calm = at_rate(service, requests, full / 10, 4 * seconds)
    if not calm.ok.all():
        raise RuntimeError(f"unloaded: {(~calm.ok).sum()} requests were not answered")
    result = at_rate(service, requests, 3 * full, 2 * seconds, seed=1)
    refused = np.isin(result.status, (429, 503))
    others = ~(result.ok | refused)
    p99, before = result.quantile_ms(0.99), calm.quantile_ms(0.99)
    report.add("3x overload: unloaded p99, ms", before)
    report.add("3x overload: p99 of accepted, ms", p99)
    report.add("3x overload: p99 of accepted / unloaded", p99 / before, 3.0, True)
    report.add("3x overload: accepted a second / saturation", result.rate / full)
    report.add("3x overload: share refused with 429 or 503", float(refused.mean()))
    told = float(result.retry_after[refused].mean()) if refused.any() else 1.0
    report.add("3x overload: share of refusals that say when to come back", told, 1.0)
    report.add("3x overload: requests that hang or end otherwise", int(others.sum()), 0, True)
    longest = float(result.latency_s.max())
    report.add("3x overload: longest until any answer, s", longest, 10.0, True)
    if others.any():
        values, counts = np.unique(result.status[others], return_counts=True)
        report.note(
            f"3x overload: statuses {dict(zip(values.tolist(), counts.tolist(), strict=True))}"
        )
    after = at_rate(service, requests, full / 10, seconds, seed=2)
    report.add("3x overload: share answered right after", float(after.ok.mean()), 1.0)


def soak(
    report: Report, service: Service, requests: Sequence[bytes], full: float, minutes: float
) -> None:
    """Memory of all the server's processes, asked three kinds of things 0.3 times as often as it
    can recommend; the first third warms up."""
    times: list[float] = []
    sizes: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(5.0, minutes * 60 / 30)):
            times.append(time.monotonic())
            sizes.append(service.memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = at_rate(service, requests, 0.3 * full, 60 * minutes)
    finally:
        over.set()
        watcher.join()
    warm = len(times) // 3
    when, size = np.array(times[warm:]) / 600, np.array(sizes[warm:], float)
    slope, start = np.polyfit(when - when[0], size, 1)
    report.add("soak: minutes", minutes)
    report.add("soak: requests", len(result.status))
    report.add("soak: share not answered 200", float((~result.ok).mean()), 0.001, True)
    report.add("soak: memory at the end, MB", sizes[-1] / 2**20)
    report.add("soak: growth of memory, % in 10 minutes", 100 * slope / start, 1.0, True)
    report.add("soak: p99, ms", result.quantile_ms(0.99))


def measure(
    options: argparse.Namespace, report: Report, folder: Path, items: int, seconds: float
) -> None:
    users = publish_users(folder, items)
    where = ["--user-encoder", users.encoder, "--item-index", users.index]
    where += ["--sequences", users.rows, "--set", "users.in_gateway=true"]
    if "soak" in options.only:
        where += ["--encoder", str(folder / "encoder"), "--index", str(folder / "index")]
        where += ["--set", "index_in_gateway=true", "encoder_in_gateway=true"]
    with ours(folder, *where) as service:
        requests = recommend_requests(service, items)
        full = saturation(service, requests, seconds)
        for part in (recommend, overload):
            if part.__name__ in options.only:
                part(report, service, requests, full, seconds)
        if "soak" in options.only:
            from bench.serve import embed_requests, knn_requests

            three = (
                requests,
                knn_requests(service, "/v1/knn/raw", 4),
                embed_requests(service, 1, len(requests)),
            )
            mixed = [one for each in zip(*three, strict=True) for one in each]
            soak(report, service, mixed, full, options.soak_minutes)
