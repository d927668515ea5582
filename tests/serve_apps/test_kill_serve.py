"""Replicas that are killed under load cost no caller an answer: the client asks again once."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import psutil
import pytest

from rec.client import Client, RequestError

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


def pids(deployment: str) -> list[int]:
    """Of the running replicas of one deployment, of the Ray that this process has started."""
    ours = psutil.Process().children(recursive=True)
    return [
        one.pid
        for one in ours
        if "".join(one.cmdline()).startswith(f"ray::ServeReplica:content:{deployment}")
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_no_request_fails_when_a_replica_is_killed(
    ray_local: None, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_apps import app
    from serve_apps.guard import Access
    from serve_apps.launch import serving

    for name in ("Knn", "Gateway"):
        twice = getattr(app, name).options(num_replicas=2)
        monkeypatch.setattr(app, name, twice)
    access = Access(off=True)
    args = app.ServeArgs(encoder=served.encoder_uri, index=served.index_uri, access=access)
    expected = [f"item-{i}" for i in np.argsort(-(served.vectors @ served.vectors[3]))[:3]]
    failures: list[RequestError] = []
    answered = [0] * 4
    stop = threading.Event()

    def ask(caller: int) -> None:
        with Client(url) as client:
            while not stop.is_set():
                try:
                    found = client.knn(served.vectors[3:4], k=3)
                except RequestError as error:
                    failures.append(error)
                    continue
                assert found.results[0].ids == expected
                answered[caller] += 1

    with serving(args, port=0) as url:
        callers = [threading.Thread(target=ask, args=(i,)) for i in range(len(answered))]
        for one in callers:
            one.start()
        try:
            for deployment in ("Knn", "Gateway"):
                time.sleep(2)
                before = sum(answered)
                victims = pids(deployment)
                assert len(victims) == 2
                os.kill(victims[0], signal.SIGKILL)
                time.sleep(5)
                assert sum(answered) > before + 20
        finally:
            stop.set()
            for one in callers:
                one.join(90)
    assert not failures, failures[:3]
