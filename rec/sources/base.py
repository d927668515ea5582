"""What a source is: it turns one origin into checked tables, a shard at a time.

A source is a frozen config, so it travels as JSON or as command-line overrides. Shards are
independent: any process that can reach the origin may read any of them, in any order. Rows
count from 1 in messages and problem lists, the header of a CSV file not counted.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import av
import av.error
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from rec.schema import MAX_PICTURE_PIXELS, PICTURE_FORMATS, PROBLEMS

# files of items as they came, yielded under the name "files"; ingest makes rows of the table media
# of them: a video's key frames and its sound, pictures scaled down, sound as log-mel patches
FILES = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("folder", pa.string(), nullable=False),  # local or s3://
        pa.field("name", pa.string(), nullable=False),  # path below it, with any signs
        pa.field("num_bytes", pa.int64(), nullable=False),
    ]
)

MAX_MEDIA_BYTES = 64 << 20
PIECE_ITEMS = 256  # items of one yielded table


class SourceError(ValueError):
    """The origin is not what the source expects. Names file, column, row and what it expected."""


@dataclass(frozen=True)
class Shard:
    """One of `num_shards` disjoint parts that together are the whole origin."""

    index: int
    num_shards: int

    def bounds(self, num_rows: int) -> tuple[int, int]:
        """First row and one past the last of this shard's contiguous part of `num_rows`."""
        start = num_rows * self.index // self.num_shards
        return start, num_rows * (self.index + 1) // self.num_shards


class Source(Protocol):
    """One origin. Item shard i and media shard i hold the same items."""

    tables: ClassVar[tuple[str, ...]]  # the tables of rec.schema that `read` may yield
    gives_files: ClassVar[bool]  # whether `read` yields rows of FILES

    @property
    def kind(self) -> str:
        """The source's name: movielens, exercises, folder, synthetic."""
        ...

    def contents(self) -> str:
        """Changes when what `read` would give changes, for all that a config does not say.

        Of media, names and sizes count: one that is altered and keeps its size goes unnoticed.
        """
        ...

    def shards(self) -> list[Shard]: ...

    def read(self, shard: Shard) -> Iterator[tuple[str, pa.Table]]:
        """Yield (table name, rows that passed `rec.schema.check`) in pieces of bounded size.

        What is left out (undecodable media, rows about unknown items) is yielded as rows of
        `PROBLEMS` under the name "problems", or, where each of them would have been a row of a
        table, "problems:TABLE". An item stays when a medium of it is left out. Instead of rows of
        media, a source may yield rows of `FILES`, an item's one after the other.

        Raises:
            SourceError: a file is absent or cannot be parsed.
            SchemaError: a column, type or value is not what the table expects, or ids repeat.
        """
        ...


def ranges(start: int, stop: int, size: int = PIECE_ITEMS) -> Iterator[tuple[int, int]]:
    """Cut start..stop into consecutive (start, stop) pieces of at most `size`."""
    for low in range(start, stop, size):
        yield low, min(low + size, stop)


def problem_table(problems: Iterable[tuple[str, int | None, str]]) -> pa.Table:
    """(place, row, reason) triples as a table of `PROBLEMS`."""
    rows = [dict(zip(PROBLEMS.names, problem, strict=True)) for problem in problems]
    return pa.Table.from_pylist(rows, schema=PROBLEMS)


def media_problem(data: bytes, kind: str) -> str | None:
    """Why these bytes cannot be decoded as a medium of `kind`, or None when all of them can.

    Args:
        data: the file's bytes.
        kind: "frame" (JPEG, PNG, WebP or BMP) or "audio" (any container that FFmpeg reads).
    """
    if not data:
        return "empty file"
    if len(data) > MAX_MEDIA_BYTES:
        return f"{len(data)} bytes, expected at most {MAX_MEDIA_BYTES}"
    return _picture_problem(data) if kind == "frame" else _audio_problem(data)


def _picture_problem(data: bytes) -> str | None:
    # Pillow reads the size before it decodes and, unlike OpenCV, refuses a truncated file.
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PICTURE_PIXELS:
                return f"{width} x {height} pixels, expected at most {MAX_PICTURE_PIXELS}"
            picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"{error}, expected at most {MAX_PICTURE_PIXELS} pixels"
    except UnidentifiedImageError:
        return f"undecodable picture: not one of {', '.join(PICTURE_FORMATS)}"
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow's decoders raise
        return f"undecodable picture: {error}"
    return None


def _audio_problem(data: bytes) -> str | None:
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.audio:
                return "undecodable audio: no audio stream"
            if not any(frame.samples for frame in container.decode(audio=0)):
                return "undecodable audio: no samples"
    except (av.error.FFmpegError, ValueError) as error:
        return f"undecodable audio: {error}"
    return None
