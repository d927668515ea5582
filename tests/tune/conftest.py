"""Make the support of tests/models importable; publish rows once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "support"))


@pytest.fixture(scope="session")
def sequence_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    from sequence_cases import publish_rows

    return publish_rows(tmp_path_factory.mktemp("sequences"))
