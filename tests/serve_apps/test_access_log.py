"""Lines of requests as Serve's own handler writes them, many in one write."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path
from typing import Any

import pytest
from ray._common.formatters import JSONFormatter

from serve_apps import soon
from serve_apps.access_log import AccessLines, quick
from serve_apps.soon import Soon


class Counting(RotatingFileHandler):
    written = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.written += 1
        super().emit(record)


def replica(record: logging.LogRecord) -> bool:
    """As Serve's filters do."""
    record.__dict__.update(replica="one", request_id="first", route="/first")
    return True


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Counting]:
    target = Counting(tmp_path / "log", maxBytes=1 << 20, backupCount=1)
    target.setFormatter(JSONFormatter())
    yield target
    target.close()


def serves(target: logging.Handler, capacity: int = 1000) -> MemoryHandler:
    handler = MemoryHandler(capacity, target=target)
    handler.addFilter(replica)
    return handler


def record(number: int) -> logging.LogRecord:
    access = {"request_id": f"id-{number}", "route": "/v1/knn", "status": 200}
    name = "serve_apps.access"
    made = logging.LogRecord(name, logging.INFO, "", 0, "told", None, None)
    made.__dict__["access"] = access
    return made


def lines(target: RotatingFileHandler) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(target.baseFilename).read_text().splitlines()]


def test_lines_have_the_fields_that_serves_own_have(target: Counting) -> None:
    before = serves(target)
    before.handle(one := record(1))
    before.flush()
    AccessLines(serves(target)).handle(two := record(2))
    usual, own = lines(target)
    assert set(own) == set(usual) | {"timestamp_ns"}
    assert own["asctime"] == logging.Formatter().formatTime(two)
    told = {"message": "told", "replica": "one", "levelname": "INFO"}
    assert told.items() <= own.items()
    assert told.items() <= usual.items()
    assert own["access"] == two.__dict__["access"]
    assert (own["request_id"], own["route"]) == ("id-2", "/v1/knn")
    assert usual["access"] == one.__dict__["access"]


def test_many_are_one_write(target: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soon, "WAIT_S", 0.05)

    async def told(handler: AccessLines, number: int) -> int:
        for i in range(number):
            handler.handle(record(i))
        await asyncio.sleep(0.2)
        return len(lines(target))

    handler = AccessLines(serves(target))
    assert asyncio.run(told(handler, 30)) == 30
    assert target.written == 1
    at_once = AccessLines(serves(target, capacity=1))
    assert asyncio.run(told(at_once, 3)) == 33
    assert target.written == 4
    target.handle(logging.LogRecord("serve_apps", logging.INFO, "", 0, "another", None, None))
    assert lines(target)[-1]["message"] == "another"


def test_other_handlers_stay(target: Counting) -> None:
    plain = logging.NullHandler()
    text = serves(logging.NullHandler())
    assert quick([plain, text]) == [plain, text]
    (found,) = quick([serves(target)])
    assert isinstance(found, AccessLines)


def test_what_is_gathered_is_passed_on_by_number_and_by_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soon, "WAIT_S", 0.05)
    taken: list[list[int]] = []

    async def add() -> None:
        gathering: Soon[int] = Soon(lambda some: taken.append(list(some)), 3)
        for i in range(4):
            gathering.add(i)
        assert taken == [[0, 1, 2]]
        await asyncio.sleep(0.2)
        gathering.add(4)
        gathering.flush()
        await asyncio.sleep(0.1)

    asyncio.run(add())
    assert taken == [[0, 1, 2], [3], [4]]
    Soon(lambda some: taken.append(list(some)), 3).add(5)  # no loop
    assert taken[-1] == [5]
