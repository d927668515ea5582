"""What a cluster costs: `ray job submit` beside the same pipeline in a process of its own, and how
soon a node that joins is used.

Both sides run on one Ray head with its dashboard, in turns, each in a folder of its own; what is
compared is the time from the command to its end. A node is then added by hand (there is no
autoscaler here) to a Ray that has no room for the tasks that wait.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster

from bench.harness import RESULTS, Report, main
from bench.workload import cores
from rec.local_ray import KEEP_IDLE
from serve_apps.launch import free_port

_ROOT = RESULTS.parents[1]
_JOIN = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1, resources={"joined": 1})
def where():
    return time.time()

wanted = where.remote()
print("waiting", flush=True)
print(ray.get(wanted), flush=True)
"""


def pipeline(out: Path, options: argparse.Namespace) -> list[str]:
    command = ["-m", "jobs.pipeline", "--out", str(out), "--recipe", "rec.recipes.content:debug"]
    sizes = [f"source.num_items={options.items}", f"recipe.train.steps={options.steps}"]
    users = [f"users.recipe.train.steps={options.steps}", "users.recipe.train.batch_size=16"]
    return [*command, "--no-serve", "--set", *sizes, *users]


def submitting(cluster: Cluster, place: Path, options: argparse.Namespace, report: Report) -> None:
    """The pipeline as a job and as a process, in turns."""
    assert cluster.head_node is not None
    dashboard = f"http://{cluster.head_node.webui_url}"
    ray = str(Path(sys.executable).with_name("ray"))
    submit = [ray, "job", "submit", "--address", dashboard, "--working-dir", str(_ROOT), "--"]
    ways = {
        "in a process": lambda out: [sys.executable, *pipeline(out, options)],
        "as a job": lambda out: [*submit, sys.executable, *pipeline(out, options)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    _await_agent(submit)
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment["RAY_ADDRESS"] = str(cluster.address)
    for turn in range(options.turns):
        for name, command in list(ways.items())[:: 1 if turn % 2 else -1]:
            out = place / f"{name.replace(' ', '-')}-{turn}"
            own = dict(environment)
            if name == "as a job":
                del own["RAY_ADDRESS"]  # the job gets it from Ray
            started = time.perf_counter()
            done = subprocess.run(
                command(out), env=own, cwd=_ROOT, capture_output=True, text=True, check=False
            )
            seconds[name].append(time.perf_counter() - started)
            if done.returncode:
                raise RuntimeError(f"{name}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
            if not (out / "report" / "report.html").exists():
                raise RuntimeError(f"{name}: no report:\n{done.stdout[-3000:]}")
            print(f"   {name}, turn {turn}: {seconds[name][-1]:.1f} s", flush=True)
            shutil.rmtree(out)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        report.add(f"debug pipeline {name}: seconds, median", median)
    ratio = medians["as a job"] / medians["in a process"]
    report.add("as a job / in a process", ratio, 1.2, True)
    report.note("; ".join(f"{n}: {', '.join(f'{x:.1f}' for x in s)} s" for n, s in seconds.items()))


def _await_agent(submit: list[str]) -> None:
    """Until a job is taken: the head answers before the agent that starts jobs does."""
    deadline = time.monotonic() + 180
    while True:
        done = subprocess.run([*submit, "true"], capture_output=True, text=True, check=False)
        if not done.returncode:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"no job is taken:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        time.sleep(1)


def joining(cluster: Cluster, report: Report) -> None:
    """From the start of a node to the first task on it."""
    waiting = subprocess.Popen(
        [sys.executable, "-c", _JOIN, str(cluster.address)], stdout=subprocess.PIPE, text=True
    )
    assert waiting.stdout is not None
    if waiting.stdout.readline().strip() != "waiting":
        raise RuntimeError("the task that waits for a node was not begun")
    time.sleep(3)
    began = time.time()
    cluster.add_node(num_cpus=1, resources={"joined": 1})
    used = float(waiting.stdout.readline())
    waiting.wait()
    report.add("a node added by hand: seconds until its first task runs", used - began, 30, True)


def measure(options: argparse.Namespace, report: Report) -> None:
    options.turns = options.turns or (1 if options.quick else 3)
    options.items = 60 if options.quick else 500
    options.steps = 4 if options.quick else 30
    # without a token: this machine alone reaches the dashboard, and the run leaves no file of it
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ |= KEEP_IDLE  # as nodes of a cluster have it
    with tempfile.TemporaryDirectory(prefix="submit-", dir=options.work) as folder:
        # places of its own: Ray tells a job the address of the Ray that was started last in its
        # temporary folder, and the usual port may be that of another Ray on this machine
        head: dict[str, Any] = {"include_dashboard": True, "num_cpus": max(2, cores())}
        head |= {"temp_dir": str(Path(folder, "ray")), "dashboard_port": free_port()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            if "submit" in options.only:
                submitting(cluster, Path(folder), options, report)
            if "join" in options.only:
                joining(cluster, report)
        finally:
            cluster.shutdown()
            reset_ray_address()  # or Ray would look for this cluster later


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, help="of each side; else 3, quick 1")
    parser.add_argument("--only", nargs="+", choices=("submit", "join"), default=("submit", "join"))
    parser.add_argument("--work", metavar="DIR", help="for what the runs write; else TMPDIR")


if __name__ == "__main__":
    main("submit", __doc__, measure, flags)
