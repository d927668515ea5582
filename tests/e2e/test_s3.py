"""Ingest, training and its continuation with all places on S3, as on a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs

from rec.artifacts import filesystem, read_manifest
from rec.train.metrics import read_records

_RECIPE = ["--recipe", "rec.recipes.content:debug"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run's place on an S3 server of this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    pafs.FileSystem.from_uri("s3://runs?allow_bucket_creation=true")[0].create_dir("runs")
    yield "s3://runs/one"
    server.stop()


def job(name: str, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", f"jobs.{name}", *_RECIPE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rows_training_and_its_continuation_on_s3(run: str) -> None:
    job("ingest", "--out", run, "--set", "source.num_items=160", "source.num_shards=2")
    rows = read_manifest(f"{run}/rows", "content-rows")
    assert rows.metrics["train"]["rows"] + rows.metrics["heldout"]["rows"] == 160
    train = ["--rows", f"{run}/rows", "--out", run, "--set", "train.checkpoint_every=2"]
    job("train", *train, "train.steps=4", "train.validate_every=4", "train.schedule=constant")
    first = read_manifest(f"{run}/encoder", "content-encoder")
    assert first.lineage["content-rows"] == rows.version
    more = job(
        "train", *train, "train.steps=6", "train.validate_every=4", "train.schedule=constant"
    )
    assert "finished    6 steps" in more
    assert read_manifest(f"{run}/encoder", "content-encoder").version != first.version
    logged = [record["step"] for record in read_records(f"{run}/train/logs")]
    assert logged == sorted(set(logged))
    assert logged[-1] == 6

    files, path = filesystem(f"{run}/rows/{rows.root}")  # an altered shard is refused there too
    shard = f"{path}/{next(name for name in rows.files if name.startswith('train/'))}"
    with files.open_input_file(shard) as stream:
        whole = stream.read()
    with files.open_output_stream(shard) as stream:
        stream.write(whole[:-1] + b"x")
    command = [sys.executable, "-m", "jobs.train", *_RECIPE, *train, "train.steps=9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 1
    assert "publish again" in done.stderr.splitlines()[-1]
