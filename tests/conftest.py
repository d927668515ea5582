"""Fixtures for all tests. Nothing here reaches the network."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pyarrow import fs as pafs

sys.path.insert(0, str(Path(__file__).parent / "support"))

# machines are shared: how long one example takes says nothing
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see jobs/__init__.py


@pytest.fixture(scope="session")
def s3_server() -> Iterator[None]:
    """An S3 server of this machine, which from now on is all of S3, for other processes too."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # only file systems made from a URI read AWS_ENDPOINT_URL
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "test"
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    yield
    server.stop()


@pytest.fixture
def s3(s3_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an empty bucket; what is cached of it lies below tmp_path."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    bucket = f"b-{tmp_path.name.replace('_', '-').lower()}"[:60].rstrip("-")
    pafs.FileSystem.from_uri(f"s3://{bucket}?allow_bucket_creation=true")[0].create_dir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def ray_local(s3_server: None) -> Iterator[None]:
    """One Ray instance on this machine for all tests that need it; its processes know that S3."""
    import ray

    from rec.local_ray import prepare_local_ray

    prepare_local_ray()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # many short runs
    # four logical CPUs: two train workers would otherwise leave Ray Data no slot on two cores
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
