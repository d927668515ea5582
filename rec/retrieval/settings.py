"""What a live index is opened with, checked before it or its log is touched."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from typing import Any

from rec.retrieval.errors import SettingError

MAX_GRACE_S = 1e9  # some 31 years; a date so far back must exist


def check(compact_at: Any, keep: Any, grace_s: Any, pool: Any) -> None:
    """Raises SettingError by name of the first that is not as `LiveIndex` needs it."""
    is_share = compact_at is None or (_is_number(compact_at) and 0 <= compact_at < math.inf)
    is_grace = _is_number(grace_s) and 0 <= grace_s <= MAX_GRACE_S
    for name, value, fits, expected in (
        ("compact_at", compact_at, is_share, "a share of rows, 0 or more; None = never"),
        ("keep", keep, _is_number(keep, Integral) and keep >= 1, "a whole number, at least 1"),
        ("grace_s", grace_s, is_grace, f"seconds, 0 to {MAX_GRACE_S:g}"),
        ("pool", pool, pool is None or isinstance(pool, ThreadPoolExecutor), "a thread pool"),
    ):
        if not fits:
            raise SettingError(f"{name} is {value!r}, expected {expected}")


def _is_number(value: Any, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
