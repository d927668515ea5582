"""A job killed, and what the Ray that it started leaves behind."""

from __future__ import annotations

import contextlib
import subprocess

import psutil

_AGENTS = ("DashboardAgent", "RuntimeEnvAgent")  # Ray's own that outlive it for minutes


def kill_driver(job: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """SIGKILL the job alone, wait until its workers have noticed, and end Ray's agents."""
    children = psutil.Process(job.pid).children(recursive=True)
    agents = [c for c in children if any(agent in " ".join(c.cmdline()) for agent in _AGENTS)]
    job.kill()
    job.wait()
    psutil.wait_procs([child for child in children if child not in agents], timeout=30)
    for agent in agents:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()
