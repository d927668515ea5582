"""Lines of requests in a replica's log: the fields that Serve's own lines have, at a fraction of
their cost.

Serve's filters and formatter look up for every line what stays the same in all of a replica, and
its handler looks at the file and flushes it line by line, which took as long as a search.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from functools import lru_cache
from logging.handlers import MemoryHandler
from typing import Any

from ray._common.formatters import JSONFormatter

from serve_apps.soon import Soon

_BLOCK = "serve_apps.access.block"
_MOST = 100  # lines at once: the event loop waits for them


class AccessLines(logging.Handler):
    """Takes records of `serve_apps.observe`, writes them as lines together, within a second.

    Args:
        serves: Serve's handler of a replica. Where it holds back no lines, neither does this.
    """

    def __init__(self, serves: MemoryHandler) -> None:
        super().__init__()
        assert serves.target is not None
        self._serves, self._target = serves, serves.target
        inner = self._target.formatter
        assert inner is not None
        self._inner = inner
        self._target.setFormatter(_Blocks(inner))
        self._same: dict[str, Any] | None = None
        self._lines = Soon(self._write, min(serves.capacity, _MOST))

    def emit(self, record: logging.LogRecord) -> None:
        if self._same is None:
            self._same = self._fields_of(record)
        self._lines.add(record)

    def flush(self) -> None:
        self._lines.flush()

    def _fields_of(self, record: logging.LogRecord) -> dict[str, Any]:
        """A line's fields as Serve has them; those of the request itself are replaced in each."""
        self._serves.filter(record)
        return json.loads(self._inner.format(record))

    def _write(self, records: Sequence[logging.LogRecord]) -> None:
        lines = "\n".join([json.dumps(self._line(one)) for one in records])
        block = logging.LogRecord(_BLOCK, logging.INFO, "", 0, lines, None, None)
        self._target.handle(block)

    def _line(self, record: logging.LogRecord) -> dict[str, Any]:
        access = record.__dict__["access"]
        own = {
            "asctime": f"{_second(int(record.created))},{int(record.msecs):03d}",
            "message": record.msg,
            "timestamp_ns": int(record.created * 1e9),
            "request_id": access["request_id"],
            "route": access["route"],
            "access": access,
        }
        return {**(self._same or {}), **own}


class _Blocks(logging.Formatter):
    """Leaves lines as they are that are formatted already."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return record.msg if record.name == _BLOCK else self._inner.format(record)


@lru_cache(maxsize=8)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def quick(handlers: Sequence[logging.Handler]) -> list[logging.Handler]:
    """Serve's handlers for the lines of requests; where one is of another kind than JSON lines
    in the replica's file, as they are."""
    return [
        AccessLines(one)
        if isinstance(one, MemoryHandler)
        and one.target is not None
        and isinstance(one.target.formatter, JSONFormatter)
        else one
        for one in handlers
    ]
