"""With token authentication, as cluster.yaml turns it on, a job without the token is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

# in a process of its own, for Ray reads its token once
_HEAD = """
import socket
import sys
from ray.cluster_utils import Cluster

with socket.socket() as free:  # the agent of another test's Ray has the usual port
    free.bind(("", 0))
    port = free.getsockname()[1]
head = {"include_dashboard": True, "num_cpus": 1, "dashboard_agent_listen_port": port}
for _ in range(3):  # on a busy machine Ray goes on without a dashboard that is late
    cluster = Cluster(initialize_head=True, head_node_args=head)
    if cluster.head_node.webui_url:
        break
    cluster.shutdown()
print(cluster.head_node.webui_url, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def environment(**own: str) -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}  # other tests' too
    return {**ours, **own}


def submit(dashboard: str, mark: Path, **own: str) -> subprocess.Popen[str]:
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "job", "submit", "--address", f"http://{dashboard}", "--"]
    return subprocess.Popen(
        [*command, "touch", str(mark)],
        env=environment(**own),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_without_the_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    (tmp_path / "wrong").write_text("f" * 64)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with subprocess.Popen(
        [sys.executable, "-c", _HEAD],
        env=environment(**token),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as head:
        try:
            assert head.stdout is not None
            dashboard = head.stdout.readline().strip()
            ways = {
                "none": {"RAY_AUTH_MODE": "disabled"},
                "wrong": {**token, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")},
                "right": token,
            }
            jobs = {name: submit(dashboard, tmp_path / f"{name}-ran", **own)
                    for name, own in ways.items()}  # fmt: skip
            said = {name: job.communicate(timeout=240)[0] for name, job in jobs.items()}
            until = time.monotonic() + 60
            while "No available agent" in said["right"] and time.monotonic() < until:
                jobs["right"] = submit(dashboard, tmp_path / "right-ran", **token)
                said["right"] = jobs["right"].communicate(timeout=240)[0]
        finally:
            assert head.stdin is not None
            head.stdin.close()
            head.wait(60)
    told = json.dumps(said, indent=1)
    assert jobs["right"].returncode == 0, told
    assert (tmp_path / "right-ran").exists(), told
    for name in ("none", "wrong"):
        assert jobs[name].returncode != 0, told
        assert not (tmp_path / f"{name}-ran").exists(), told
    for name, why in (("none", "Missing"), ("wrong", "Invalid")):
        assert f"{why} authentication token" in said[name], told
