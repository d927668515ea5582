"""Make support importable, in spawned processes too; publish rows once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture(scope="session")
def content_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    from content_cases import publish_rows

    return publish_rows(tmp_path_factory.mktemp("content"))


@pytest.fixture(scope="session")
def sequence_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    from sequence_cases import publish_rows

    return publish_rows(tmp_path_factory.mktemp("sequences"))
