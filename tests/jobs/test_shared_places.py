"""Local places where work runs on other nodes: every job refuses them, with reason and fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import parser, place, start_ray

# In a process of its own: nodes started beside a Ray that other tests use would take its address.
_PROGRAM = """
import contextlib, importlib, io, json, os, sys
import ray
from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster

def run(module, flags):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = importlib.import_module(module).main(flags)
    return [module, status, said.getvalue().strip().splitlines()[-1]]

local, mount = sys.argv[1], sys.argv[2]
commands = [
    ["jobs.ingest", ["--out", local]],
    ["jobs.train", ["--recipe", "rec.recipes.content:debug", "--rows", local, "--out", local]],
    ["jobs.embed", ["--encoder", "s3://b/e", "--rows", "s3://b/r", "--out", local]],
    ["jobs.index", ["--embeddings", local, "--out", "s3://b/i", "--workers", "2"]],
    ["jobs.neighbours", ["--index", local, "--out", local]],
    ["jobs.clusters", ["--embeddings", local, "--out", local]],
    ["jobs.behaviour", ["--logs", local, "--out", local, "--cutoff", "2026-01-01"]],
    ["jobs.sequences", ["--behaviour", "s3://b/b", "--out", local, "--leave-one-out"]],
    ["jobs.pipeline", ["--out", local]],
    ["jobs.nightly", ["--out", local]],
]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
os.environ["RAY_ADDRESS"] = cluster.address
found = {"head alone": run(*commands[0])}
cluster.add_node(num_cpus=1)
found["all"] = [run(*command) for command in commands]
neighbours = ["jobs.neighbours", ["--index", f"{mount}/i", "--out", f"{mount}/n"]]
found["mounted"] = run(neighbours[0], [*neighbours[1], "--shared-mount", mount])
found["beside"] = run(neighbours[0], [*neighbours[1], "--shared-mount", mount[:-1]])
print(json.dumps(found))
ray.shutdown()
cluster.shutdown()
reset_ray_address()  # or Ray would look for this cluster later
"""


@pytest.mark.ray
@pytest.mark.slow
def test_every_job_refuses_a_local_place_on_several_nodes(tmp_path: Path) -> None:
    local, mount = tmp_path / "mine", tmp_path / "mount"
    (local / "interactions").mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(local), str(mount)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    _, status, said = found["head alone"]
    assert status == 1
    assert "(this node takes no tasks)" in said
    assert len(found["all"]) == 10
    for module, status, said in found["all"]:
        assert status == 1, module
        assert f"{local}: a path of this machine" in said, (module, said)
        assert "(1 of 2 nodes are others); give an s3:// URI, or --shared-mount DIR" in said
    assert [path.name for path in local.iterdir()] == ["interactions"]  # nothing was written
    _, status, said = found["mounted"]
    assert status == 1
    assert "manifest.json: not found" in said  # the place was taken; there is just no index
    assert f"{mount}/i: a path of this machine" in found["beside"][2]


def test_places_are_noted_however_they_are_given(tmp_path: Path) -> None:
    flags = parser("jobs.x", None)
    flags.add_argument("--out", type=place)
    flags.add_argument("--run", type=place, nargs="+", default=[])
    flags.add_argument("--path", type=place)
    flags.add_argument("--name")
    options = flags.parse_args(["--out", "a", "--run", "s3://b/c", "/d", "--name", "/e"])
    assert options.places == [os.path.abspath("a"), "s3://b/c", "/d"]
    assert options.shared_mount == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_one_machine_takes_its_own_paths() -> None:
    flags = parser("jobs.x", None)
    flags.add_argument("--out", type=place)
    options = flags.parse_args(["--out", "/anywhere"])
    assert options.places == ["/anywhere"]
    start_ray(options)  # refuses nothing
