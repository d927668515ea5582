"""The records that a log's segments are made of: see `rec.retrieval.log`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from rec.retrieval.errors import LogError

_HEADER = struct.Struct("<IQI")  # payload length, number, CRC of the payload
_CRC = struct.Struct("<I")
_HEADER_SIZE = _HEADER.size + _CRC.size


class Record(NamedTuple):
    number: int
    payload: bytes


def first_of(segment: Path) -> int:
    """Number of the first change that a segment is for."""
    return int(segment.stem.split("-")[1])


def read(segment: Path) -> Iterator[tuple[Record, int]]:
    """The records of a segment and where each ends, up to a torn end.

    Raises:
        LogError: one of them is damaged.
    """
    size = segment.stat().st_size
    number = first_of(segment) - 1  # of the record that says what the log is of
    with open(segment, "rb") as stream:
        while (start := stream.tell()) + _HEADER_SIZE <= size:
            header = stream.read(_HEADER_SIZE)
            length, found, crc = _HEADER.unpack(header[: _HEADER.size])
            if zlib.crc32(header[: _HEADER.size]) != _CRC.unpack(header[_HEADER.size :])[0]:
                if not any(header) and not any(stream.read()):
                    return  # space that a crash left unwritten
                raise _damaged(segment, start, "its header does not check")
            if start + _HEADER_SIZE + length > size:
                return
            payload = stream.read(length)
            if zlib.crc32(payload) != crc:
                raise _damaged(segment, start, "its contents do not check")
            if found != number:
                raise _damaged(segment, start, f"it is number {found}, expected {number}")
            yield Record(number, payload), stream.tell()
            number += 1


def encode(number: int, payload: bytes) -> bytes:
    """A record as it stands in a segment."""
    header = _HEADER.pack(len(payload), number, zlib.crc32(payload))
    return header + _CRC.pack(zlib.crc32(header)) + payload


def write(file: IO[bytes], data: bytes) -> None:
    """All of it: an unbuffered file may take less at once."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _damaged(segment: Path, start: int, why: str) -> LogError:
    return LogError(
        f"{segment}, byte {start}: a record is damaged ({why}); restore the file, or cut it to "
        f"{start} bytes to go on without this change and those after it"
    )
