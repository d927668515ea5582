"""Tells Ray that AWS is about to take this spot node away, two minutes before it does.

    python -m jobs.spot_notice

Nothing else tells it. Ray then places no work here any more, and training saves a checkpoint
(rec.runtime.stop.watch_notice). cluster.yaml starts it on spot nodes, after Ray; it ends with the
notice, and at once where the machine knows of no metadata.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

METADATA = "http://169.254.169.254"
_POLL_S = 5.0
_TIMEOUT_S = 2.0


def seconds_left(metadata: str = METADATA) -> float | None:
    """Until this machine goes; None: nothing is announced.

    Raises:
        OSError: there are no metadata to ask.
    """
    told = _ask(f"{metadata}/latest/api/token", "PUT", "X-aws-ec2-metadata-token-ttl-seconds", "60")
    try:
        action = _ask(
            f"{metadata}/latest/meta-data/spot/instance-action",
            "GET",
            "X-aws-ec2-metadata-token",
            told,
        )
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    end = datetime.fromisoformat(json.loads(action)["time"])
    return max(0.0, (end - datetime.now(UTC)).total_seconds())


def _ask(url: str, method: str, header: str, value: str) -> str:
    request = urllib.request.Request(url, method=method, headers={header: value})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        return answer.read().decode()


def drain(seconds: float) -> None:
    """Tell Ray, by its own command, of the node that this process runs on."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(int(seconds))], check=True)


def watch(metadata: str = METADATA, tell: Callable[[float], None] = drain) -> None:
    """Wait for the notice and tell of it; a question that fails is asked again."""
    failures = 0
    while failures < 3:
        try:
            left = seconds_left(metadata)
        except OSError as error:
            failures += 1
            print(f"spot_notice: {metadata}: {error}", file=sys.stderr, flush=True)
        else:
            failures = 0
            if left is not None:
                print(f"spot_notice: this node goes in {left:.0f} s", flush=True)
                tell(left)
                return
        time.sleep(_POLL_S)


if __name__ == "__main__":
    watch()
