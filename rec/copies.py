"""Local copies of artifacts on S3: held while they are read, dropped once nobody needs them.

    TMPDIR/raycall/VERSION        a copy; whoever reads it has a shared lock on the folder
    TMPDIR/raycall/VERSION.*.tmp  one that is being made

A process that goes on to another version of an address drops its copy of the one before, unless
another process is reading that; copies that nobody opened for a day go at the next opening of any.
The locks are the operating system's: they end with the process.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"[0-9a-f]{16}(\.[0-9a-f]{32}\.tmp)?")
_UNUSED_S = 86_400.0
_lock = threading.Lock()
_held: dict[Path, tuple[int, int]] = {}  # copy -> descriptor of its folder, how many hold it
_newest: dict[str, Path] = {}  # address -> the copy that this process went on to


def place(version: str) -> Path:
    """Where the copy of a version stands, or is to."""
    return Path(tempfile.gettempdir()) / "raycall" / version


def aside(version: str) -> Path:
    """A new folder to make a copy in: it has its name once it is renamed."""
    made = place(f"{version}.{uuid.uuid4().hex}.tmp")
    made.mkdir(parents=True)
    return made


def hold(copy: Path) -> bool:
    """See to it that no process drops a copy until `let_go`, or this process ends; False where it
    is not there."""
    with _lock:
        number, holders = _held.pop(copy, (-1, 0))
        if number >= 0 and not _is_at(number, copy):
            os.close(number)
            number, holders = -1, 0
        if number < 0:
            try:
                number = os.open(copy, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                return False
            with suppress(OSError):  # a file system without locks
                fcntl.flock(number, fcntl.LOCK_SH)  # waits for one that drops it
            if not _is_at(number, copy):
                os.close(number)
                return False
        _held[copy] = number, holders + 1
    with suppress(OSError):  # another user's
        os.utime(copy)
    return True


def let_go(copy: Path) -> None:
    """What was held once less; a folder that is no copy is none of ours."""
    with _lock:
        number, holders = _held.pop(copy, (-1, 0))
        if holders > 1:
            _held[copy] = number, holders - 1
        elif number >= 0:
            os.close(number)


def done(uri: str, copy: Path) -> None:
    """All of a held copy of the artifact at `uri` is in memory, or mapped: let go of it, and drop
    what is no longer needed. A folder that is no copy is left alone."""
    with _lock:
        if copy not in _held:
            return
        before, _newest[uri] = _newest.get(uri, copy), copy
    let_go(copy)
    if before != copy:
        _drop(before)
    for other in copy.parent.iterdir():
        with suppress(OSError):  # gone meanwhile
            if _NAME.fullmatch(other.name) and time.time() - other.stat().st_mtime > _UNUSED_S:
                _drop(other)


def _is_at(number: int, copy: Path) -> bool:
    """Whether an open folder still stands there."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(number), os.stat(copy))
    return False


def _drop(copy: Path) -> None:
    with suppress(OSError):  # gone, in use, or another user's
        number = os.open(copy, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(copy, ignore_errors=True)
        finally:
            os.close(number)
