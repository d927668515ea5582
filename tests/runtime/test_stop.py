"""A wish to stop is found, even where the storage fails to answer once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rec import artifacts
from rec.runtime import stop


def test_a_storage_that_fails_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists, asked = artifacts.exists, list[str]()

    def failing(uri: str) -> bool:
        asked.append(uri)
        if len(asked) == 1:
            raise OSError("connection reset")
        return exists(uri)

    monkeypatch.setattr(stop, "_POLL_S", 0.01)
    monkeypatch.setattr(artifacts, "exists", failing)
    (tmp_path / stop.STOP).touch()
    with stop.watch_stop(str(tmp_path), rank=0) as stopping:
        deadline = time.monotonic() + 10
        while not stopping() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stopping()
    assert len(asked) == 2
