"""Refuses what would have to wait too long, so that what is taken is answered soon, however much is
asked. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.errors import ApiError, refusal
from serve_apps.observe import REFUSED

_FEW = 4  # so many at once are never too many: it is not known yet how long they take
_WEIGHT = 0.02  # of the latest that was done: of a batch that ends at once, less than all of it
_WEIGHT_ALONE = 0.05
_FORGET_S = 1.0  # after so long without a request nothing is known any more


class Patience(NamedTuple):
    """How long a request may take by what is under way: the longer of the two."""

    seconds: float
    times: float = 0.0  # as long as one takes that is alone


class Admission:
    """Of one kind of requests. How long one more would take is how many are under way times the
    mean interval at which they are done (Little's law), while there are so many that what can be
    done sets that interval, and not how seldom they come."""

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._under_way = 0
        self._alone_s = 0.0  # mean; 0: not known
        # with at least _FEW under way: seconds, and how many were done, the latest weighing most
        self._busy_s = self._busy_done = 0.0
        self._latest = 0.0

    def enter(self) -> float | None:
        """When one more has come, which is to be given to `leave`; None: it may not come."""
        now = self._clock()
        if not self._under_way and now - self._latest > _FORGET_S:
            self._busy_s = self._busy_done = 0.0
        self._pass(now)
        interval_s = self._busy_s / self._busy_done if self._busy_done else 0.0
        most_s = max(self._patience.seconds, self._patience.times * self._alone_s)
        if self._under_way >= _FEW and (self._under_way + 1) * interval_s > most_s:
            return None
        self._under_way += 1
        return -now if self._under_way == 1 else now  # negative: it found nobody

    def leave(self, came: float) -> None:
        """One is done."""
        now = self._clock()
        self._pass(now)
        if self._under_way >= _FEW:
            self._busy_s *= 1 - _WEIGHT
            self._busy_done = self._busy_done * (1 - _WEIGHT) + 1
        self._under_way -= 1
        # where others never leave a gap, the first of all has to do
        if came < 0 and not (self._under_way and self._alone_s):
            took_s = now + came
            self._alone_s += (took_s - self._alone_s) * (_WEIGHT_ALONE if self._alone_s else 1)

    def _pass(self, now: float) -> None:
        if self._under_way >= _FEW:
            self._busy_s += now - self._latest
        self._latest = now


class Admitted:
    """ASGI middleware: requests of these paths are refused (503) where they would wait too long."""

    def __init__(self, app: ASGIApp, patience: Mapping[str, Patience]) -> None:
        self._app = app
        self._kinds = {path: Admission(one) for path, one in patience.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = self._kinds.get(scope["path"]) if scope["type"] == "http" else None
        if kind is None:
            await self._app(scope, receive, send)
            return
        came = kind.enter()
        if came is None:
            scope[REFUSED] = "overloaded"
            message = "more is asked than can be answered soon"
            error = ApiError(503, "overloaded", message, retry_after_s=1)
            await refusal(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            kind.leave(came)
