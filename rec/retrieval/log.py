"""An append-only log on local disk: checksummed records that survive a restart and a torn write.

    changes-0000000000000001.log   a first record that says what the log is of, then one record
                                   for each append, numbered 1, 2, 3, ... over all segments

A record is a header (payload length, number, CRC-32 of the payload, CRC-32 of the header) and the
payload. A record is on disk (fsync) before `append` returns. A last record that is shorter than
its header says, or a header of zeros, is what a crash left half written: never acknowledged, and
cut off with a warning. (A file that lost its end otherwise looks the same: what was never written
leaves no trace. Only the index can tell: it knows which segment is the newest and, once the log
was closed, which record is the last; and it may have changes that the log has not.)
Anything else that does not check is damage, and refused, never skipped; so is a last
record whose length was written but not its contents, which cannot be told from damage.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rec.retrieval import records
from rec.retrieval.errors import LogError
from rec.retrieval.known_log import LOG_FILE
from rec.retrieval.records import Record

_SUFFIX = ".log"
MAX_PAYLOAD = 1 << 30
_log = logging.getLogger(__name__)


class ChangeLog:
    """The log in `folder`, open for one writer.

    Args:
        folder: made where it is not there.
        about: what the log is of (dimension, encoder); a log of something else is refused.
        start: number that a log that is not there yet goes on from.
        identity: the log's, of `identity` when it was made; None = whichever it is.
        newest: as `newest` was when changes were last made; a log without it has lost some.
        last: as `last` was when it was closed; one that ends before has lost some. None = it was
            not closed.

    Raises:
        LogError: it is another's log, is damaged, has another writer, or cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        about: dict[str, object],
        start: int = 0,
        identity: str | None = None,
        newest: int = 0,
        last: int | None = None,
    ) -> None:
        self._folder, self._about = Path(folder), about
        self.identity = uuid.uuid4().hex if identity is None else identity
        self._is_known = identity is not None
        self.last = 0  # number of the newest record
        self.torn_bytes = 0  # cut off when the log was opened
        self._broken: str | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock: IO[bytes] = open(self._folder / ".writer", "wb")  # noqa: SIM115
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise LogError(
                f"{self._folder}: another process writes this log; close it there first"
            ) from error
        except OSError as error:
            raise LogError(
                f"{self._folder}: {error}; a log needs a local folder that can be written"
            ) from error
        try:
            self._recover(start, newest, last)
        except OSError as error:
            self._lock.close()
            raise LogError(
                f"{error.filename or self._folder}: the log cannot be read: {error}; restore it"
            ) from error
        except BaseException:
            self._lock.close()
            raise

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob(f"changes-*{_SUFFIX}"))

    def _recover(self, start: int, newest: int, last: int | None) -> None:
        segments = self._segments()
        expected: int | None = None
        num_records = end = size = 0
        for segment in segments:
            first = records.first_of(segment)
            if expected is not None and first != expected:
                raise LogError(
                    f"{segment}: begins with record {first}, expected {expected}: a segment is "
                    f"missing; restore it"
                )
            expected = first
            end = 0
            for record, stop in self._scan(segment):
                expected, end, num_records = record.number + 1, stop, num_records + 1
            size = segment.stat().st_size
            if not end and first == newest and num_records:
                raise self._lost(segment, "is empty")
            if end < size and segment != segments[-1]:
                raise LogError(f"{segment}, byte {end}: ends within a record; restore it")
        if self._is_known and not num_records:  # it is known once its first is on disk
            missing = self._segment(newest) if newest else self._folder
            place = segments[-1] if segments else missing
            raise self._another("an empty log" if segments else "no log", place)
        if num_records and newest > self.newest:
            raise self._lost(self._segment(newest), "is missing")
        self.last = start if expected is None else expected - 1
        if segments and last is not None and self.last < last:
            how = f"ends with change {self.last}, {last} was the last when the log was closed"
            raise self._lost(segments[-1], how)
        if end < size:
            self._cut(segments[-1], end, size)
        if segments and segments[-1].stat().st_size > 0:
            self._file = open(segments[-1], "ab", buffering=0)  # noqa: SIM115
        else:
            self._start_segment()

    def _cut(self, segment: Path, end: int, size: int) -> None:
        with open(segment, "r+b") as stream:
            stream.truncate(end)
            os.fsync(stream.fileno())
        self.torn_bytes = size - end
        torn = "a change that a crash left half written, which was never acknowledged"
        _log.warning("%s: dropped %d bytes after byte %d: %s", segment, size - end, end, torn)

    def _scan(self, segment: Path) -> Iterator[tuple[Record, int]]:
        """As `records.read`, once what the log is of is found to be right."""
        for place, (record, stop) in enumerate(records.read(segment)):
            if not place:
                self._check_about(segment, record.payload)
            yield record, stop

    def _check_about(self, segment: Path, payload: bytes) -> None:
        found = json.loads(payload)
        identity = found.pop("log", "")
        if self._is_known and identity != self.identity:
            raise self._another(f"log {identity}", segment)
        self.identity, self._is_known = identity, True
        if found != self._about:
            raise LogError(
                f"{segment}: a log of {found}, the index is {self._about}; give the new index a "
                f"log folder of its own (and remove {LOG_FILE} beside its manifest), and make the "
                f"changes again with its encoder"
            )

    def _another(self, found: str, place: Path) -> LogError:
        return LogError(
            f"{place}: {found}, the changes of this index are in log {self.identity}; give "
            f"the folder of that log, or restore it; or remove {LOG_FILE} beside the index's "
            f"manifest, to go on without what only that log holds"
        )

    def _lost(self, segment: Path, how: str) -> LogError:
        return LogError(
            f"{segment}: {how}, and changes may have been in it; restore it, or remove {LOG_FILE} "
            f"beside the index's manifest, to go on without them"
        )

    def _segment(self, first: int) -> Path:
        return self._folder / f"changes-{first:016d}{_SUFFIX}"

    def _start_segment(self) -> None:
        path = self._segment(self.last + 1)
        try:
            file = open(path, "ab", buffering=0)  # noqa: SIM115
            about = json.dumps({**self._about, "log": self.identity}).encode()
            records.write(file, records.encode(self.last, about))
            os.fsync(file.fileno())
            folder = os.open(self._folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise LogError(f"{path}: cannot be written: {error}; free space there") from error
        self._file = file

    def append(self, payload: bytes) -> int:
        """Write a record; its number, once it is on disk.

        Raises:
            LogError: it cannot be written (disk full); the log is as it was before.
        """
        if self._broken is not None:
            raise LogError(self._broken)
        if len(payload) > MAX_PAYLOAD:
            raise LogError(f"{len(payload)} bytes of changes at once; apply them in parts")
        size = os.fstat(self._file.fileno()).st_size
        try:
            records.write(self._file, records.encode(self.last + 1, payload))
            os.fsync(self._file.fileno())
        except OSError as error:
            place = self._file.name
            try:
                self._file.truncate(size)
                os.fsync(self._file.fileno())
            except OSError as second:
                self._broken = f"{place}: cannot be written nor mended ({second}); restart"
            raise LogError(
                f"{place}: cannot be written: {error}; free space there and apply again"
            ) from error
        self.last += 1
        return self.last

    def replay(self, after: int | None) -> Iterator[Record]:
        """The records numbered above `after`, in order; None = all that there have been.

        Raises:
            LogError: the log begins later than that, or is damaged.
        """
        segments = self._segments()
        first = records.first_of(segments[0])
        if after is None and first > 1:
            raise LogError(
                f"{self._folder}: holds changes {first} to {self.last}, and the index does not say "
                f"which it has; build it again and say so (jobs.index --log-seq: number of the "
                f"last change that the table includes)"
            )
        after = 0 if after is None else after
        if after > self.last or after + 1 < first:
            raise LogError(
                f"{self._folder}: holds changes {first} to {self.last}, wanted those after "
                f"{after}; restore the segments, or build the index again from a full table; or "
                f"where the version in use says wrongly which it has, go back to the one before "
                f"(rec.retrieval.versions.rollback, jobs.index --rollback)"
            )
        for segment, following in zip(segments, [*segments[1:], None], strict=True):
            if following is not None and records.first_of(following) <= after + 1:
                continue
            for place, (record, _) in enumerate(self._scan(segment)):
                if place and record.number > after:  # the first says what the log is of
                    yield record

    def roll(self) -> None:
        """Begin a new segment, so that those before can be forgotten."""
        if self._broken is not None:
            raise LogError(self._broken)
        if os.fstat(self._file.fileno()).st_size > 0 and self.last + 1 != self.newest:
            before = self._file
            self._start_segment()
            before.close()

    @property
    def place(self) -> Path:
        """Its folder."""
        return self._folder

    @property
    def newest(self) -> int:
        """Number of the first change that the newest segment is for."""
        return records.first_of(self._segments()[-1])

    def first_kept(self, through: int = 0) -> int:
        """Number of the first change that `forget` leaves."""
        firsts = [records.first_of(segment) for segment in self._segments()]
        return max([firsts[0], *(first for first in firsts if first <= through + 1)])

    def segment_of(self, number: int) -> Path:
        """The file that has this change."""
        return max(path for path in self._segments() if records.first_of(path) <= number)

    def forget(self, through: int) -> None:
        """Remove segments that hold nothing above `through`."""
        first = self.first_kept(through)
        for segment in self._segments():
            if records.first_of(segment) < first:
                segment.unlink()

    @property
    def is_closed(self) -> bool:
        return self._lock.closed

    def close(self) -> None:
        self._broken = f"{self._folder}: this log is closed; open the index again"
        self._file.close()
        self._lock.close()
