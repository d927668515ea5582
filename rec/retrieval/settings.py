"""What an index is opened with, and its versions are cleared away by: checked before any of it is
touched. All raise SettingError by name of what is not as it should be."""

from __future__ import annotations

import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from typing import Any

from rec.artifacts import Manifest
from rec.retrieval.errors import SettingError

MAX_GRACE_S = 1e9  # some 31 years; a date so far back must exist


def check(
    log_folder: Any, compact_at: Any, compact_least: Any, keep: Any, grace_s: Any, pool: Any
) -> None:
    """All that `LiveIndex` needs."""
    is_place = isinstance(log_folder, str | os.PathLike) and str(log_folder) != ""
    # a Path has one of the slashes of s3:// left
    is_place = is_place and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(log_folder)) is None
    _expect("log_folder", log_folder, is_place, "the path of a local folder")
    fits = compact_at is None or (_is_number(compact_at) and 0 <= compact_at < math.inf)
    _expect("compact_at", compact_at, fits, "a share of rows, 0 or more; None = never")
    fits = _is_number(compact_least, Integral) and compact_least >= 0
    _expect("compact_least", compact_least, fits, "a whole number of rows, 0 or more")
    check_kept(keep, grace_s, 1)
    check_pool(pool)


def check_kept(keep: Any, grace_s: Any, least: int) -> None:
    """How many versions are kept, at least `least`, and for how long others are."""
    fits = _is_number(keep, Integral) and keep >= least
    _expect("keep", keep, fits, f"a whole number, at least {least}")
    fits = _is_number(grace_s) and 0 <= grace_s <= MAX_GRACE_S
    _expect("grace_s", grace_s, fits, f"seconds, 0 to {MAX_GRACE_S:g}")


def check_opened(mmap: Any, pool: Any, manifest: Any) -> None:
    """All that `Index.open` needs."""
    _expect("mmap", mmap, isinstance(mmap, bool), "True or False")
    check_pool(pool)
    fits = manifest is None or isinstance(manifest, Manifest)
    _expect("manifest", manifest, fits, "a Manifest; None = the one in use")


def check_pool(pool: Any) -> None:
    """What searches parts at once."""
    fits = pool is None or isinstance(pool, ThreadPoolExecutor)
    _expect("pool", pool, fits, "a thread pool")


def _expect(name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise SettingError(f"{name} is {value!r}, expected {expected}")


def _is_number(value: Any, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
