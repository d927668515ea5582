"""Local folders to write to meanwhile, none of which a process that was killed leaves for good."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "raycall-staging-"
_YOUNG_S = 60.0  # it may be about to be locked


@contextmanager
def folder() -> Iterator[str]:
    """A folder in the system's temporary one, removed in the end; those of processes that have
    ended are removed first. Raises OSError where it cannot be made."""
    _clear(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as made:
        lock = os.open(made, os.O_RDONLY)  # the operating system's: it ends with the process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one that clears holds a young one for a moment
            yield made
        finally:
            os.close(lock)


def _clear(place: Path) -> None:
    for left in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use, another user's, or removed meanwhile
            lock = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(lock).st_mtime > _YOUNG_S:
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
