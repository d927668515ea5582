"""`python -m serve_apps` with both services behind HAProxy, on a Ray of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from serve_apps.launch import free_port

ROOT = Path(__file__).parents[3]
# those that are killed; more of the others would take longer to start
NUM_REPLICAS = {"Encoder": 1, "Knn": 2, "Gateway": 2, "Recommend": 2, "RecommendGateway": 1}
# the command has no setting for their numbers
COMMAND = f"""
from serve_apps.__main__ import behind_haproxy, main
behind_haproxy()
from serve_apps import app, recommend_app
for name, number in {NUM_REPLICAS}.items():
    place = app if hasattr(app, name) else recommend_app
    setattr(place, name, getattr(place, name).options(num_replicas=number))
raise SystemExit(main())
"""


class Running(NamedTuple):
    url: str
    process: subprocess.Popen[str]

    def stop(self) -> str:
        """Asks it to end, once; what it said since it was up."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=60)[0]


def own_ports() -> dict[str, str]:
    """The environment, with ports for what would otherwise collide with another's HAProxy."""
    names = "HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP"
    return os.environ | {f"RAY_SERVE_{name}_PORT": str(free_port()) for name in names}


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[Running]:
    command = [sys.executable, "-c", COMMAND, "--haproxy", "--port", "0", "--address", "local"]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=own_ports()
    ) as process:
        try:
            assert process.stdout is not None
            line = next(text for text in process.stdout if text.startswith("serving at "))
            running = Running(line.split()[2], process)
            yield running
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)
