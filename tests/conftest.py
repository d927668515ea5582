"""Fixtures for all tests. Nothing here reaches the network."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

# machines are shared: how long one example takes says nothing
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see jobs/__init__.py


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One Ray instance on this machine for all tests that need it."""
    import ray

    # four logical CPUs: two train workers would otherwise leave Ray Data no slot on two cores
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
