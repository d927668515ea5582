"""What is killed under load costs no caller an answer: the client asks again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from under_load import asking, pids

from rec.client import Client
from serve_apps.keys import new_key

CONTROLLER = "ray::ServeController"


def asker(served: Any) -> Callable[[Client], None]:
    expected = [f"item-{i}" for i in np.argsort(-(served.vectors @ served.vectors[3]))[:3]]

    def ask(client: Client) -> None:
        found = client.knn(served.vectors[3:4], k=3)
        assert found.results[0].ids == expected

    return ask


def kill_one(start: str, number: int, root: int | None = None) -> None:
    """Kill one of `number` processes whose command line begins so; another takes its place."""
    victims = pids(start, root)
    assert len(victims) == number
    os.kill(victims[0], signal.SIGKILL)
    deadline = time.monotonic() + 90
    while victims[0] in (left := pids(start, root)) or len(left) < number:
        assert time.monotonic() < deadline, f"{start}: {len(left)} of {number}"
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
def test_no_request_fails_when_a_replica_or_the_controller_is_killed(
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
    replica = "ray::ServeReplica:content:"
    with serving(args, port=0) as url, asking([asker(served)] * 4, url) as callers:
        # the controller in between: it has to go on with what it finds
        for start, number in ((f"{replica}Knn", 2), (CONTROLLER, 1), (f"{replica}Gateway", 2)):
            callers.go_on(5)
            kill_one(start, number)
            callers.go_on(20)


@pytest.mark.ray
@pytest.mark.slow
def test_no_request_fails_when_the_controller_is_killed(served: Any, tmp_path: Path) -> None:
    key, line = new_key("tester", rate_per_s=1e6)
    (tmp_path / "keys.txt").write_text(line)
    command = [sys.executable, "-m", "serve_apps", "--haproxy", "--port", "0"]
    command += ["--encoder", served.encoder_uri, "--index", served.index_uri]
    command += ["--address", "local", "--keys", str(tmp_path / "keys.txt")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            assert process.stdout is not None
            started = next(text for text in process.stdout if text.startswith("serving at "))
            with asking([asker(served)] * 4, started.split()[2], key) as callers:
                callers.go_on(20)
                kill_one(CONTROLLER, 1, process.pid)
                callers.go_on(20)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
