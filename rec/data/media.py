"""Files of items to media rows: key frames scaled and compressed, log-mel patches, hashes. No Ray.

A file that cannot be read is a problem with its reason; its item stays, and so do its other files.
Where each row is and what it looks like stands in the table media_index, a file for each shard.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs
from pydantic import Field

from rec.artifacts import filesystem, join
from rec.config import Config
from rec.data.attempts import Attempt
from rec.features.audio import decode, encode_patches, patches
from rec.features.hashes import dhash, near_groups, phash
from rec.features.media import MediaError, MediaLimits, spread
from rec.features.pictures import encode_jpeg, is_picture, read_picture
from rec.features.video import key_frames, streams
from rec.schema import MEDIA

MEDIA_INDEX = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("media_index", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # in the shard's file of media
        pa.field("num_bytes", pa.int64(), nullable=False),
        ("phash", pa.uint64()),  # of frames that are not flat (rec.features.hashes)
        ("dhash", pa.uint64()),
    ]
)
Problem = tuple[str, int | None, str]
FATAL = "cannot be read: it ended the process that tried, by a crash or for want of memory"
_ENDED, _UNREADABLE = "ended the process that read it", "cannot be read"  # in ledgers


class MediaConfig(Config):
    """What is kept of an item's files."""

    max_frames: int = Field(default=8, ge=1)  # of a video
    # pixels of the shorter side; never enlarged, and the longer one at most four times as long
    frame_side: int = Field(default=256, ge=16)
    # of two frames of a video that differ in at most so many bits of their hash one is kept
    frame_distance: int = Field(default=4, ge=0, le=63)
    max_patches: int = Field(default=16, ge=1)  # of 0.96 s, evenly spread over the sound
    max_sound_seconds: float = Field(default=60.0, gt=0)  # that are read at all
    limits: MediaLimits = MediaLimits()


class Decoded(NamedTuple):
    """What is kept of one file."""

    frames: list[bytes]
    log_mel: bytes | None
    num_alike: int  # frames of a video left out because another one looks the same
    problem: str | None  # why it has no sound though it has pictures


def decode_file(data: bytes, config: MediaConfig) -> Decoded:
    """Frames and sound of a picture, video or sound, told apart by their bytes, not by a name.

    Raises:
        MediaError: nothing of it can be read; the message says why.
    """
    if not data:
        raise MediaError("empty file")
    if len(data) > config.limits.max_bytes:
        raise MediaError(f"{len(data)} bytes, expected at most {config.limits.max_bytes}")
    if is_picture(data):
        return Decoded([encode_jpeg(read_picture(data, config.frame_side))], None, 0, None)
    moving, sounding = streams(data)
    if not moving:
        return Decoded([], _log_mel(data, config), 0, None)
    pictures = key_frames(data, config.max_frames, config.frame_side, config.limits)
    kept = _unlike(pictures, config.frame_distance)
    log_mel, problem = None, None
    if sounding:
        try:
            log_mel = _log_mel(data, config)
        except MediaError as error:
            problem = f"its sound: {error}"
    frames = [encode_jpeg(picture) for picture in kept]
    return Decoded(frames, log_mel, len(pictures) - len(kept), problem)


def _log_mel(data: bytes, config: MediaConfig) -> bytes:
    values = patches(decode(data, config.max_sound_seconds))
    return encode_patches(values[spread(len(values), config.max_patches)])


def _unlike(pictures: list[np.ndarray], distance: int) -> list[np.ndarray]:
    """The first of the pictures that look alike; flat ones (fades, blank slides) are all alike."""
    hashes = [phash(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)) for picture in pictures]
    full = np.array([i for i, value in enumerate(hashes) if value is not None], np.int64)
    flat = [i for i, value in enumerate(hashes) if value is None]
    groups = near_groups(np.array([hashes[i] for i in full], np.uint64), distance)
    kept = sorted([*full[np.unique(groups)].tolist(), *flat[:1]])
    return [pictures[i] for i in kept]


class MediaPart(NamedTuple):
    """What became of some files; never more of them at once than an item has, and those before it
    that nothing is kept of."""

    rows: pa.Table  # MEDIA
    problems: list[Problem]
    num_alike: int  # frames left out because another one looks the same
    lost: Counter[str]  # reason -> files of which nothing is kept


def media_of_files(
    files: pa.Table, config: MediaConfig, attempt: Attempt | None = None
) -> Iterator[MediaPart]:
    """What is kept of the files, an item at a time.

    Args:
        files: rows of rec.sources.FILES, an item's one after the other.
        config: what is kept.
        attempt: knows the files that ended the processes that tried before; they are problems.
    """
    columns = [
        files.column(name).to_pylist() for name in ("item_id", "folder", "name", "num_bytes")
    ]
    opened = functools.cache(filesystem)
    rows: list[dict[str, object]] = []
    problems: list[Problem] = []
    count = Counter[str]()  # rows of the item by kind
    lost = Counter[str]()
    alike = 0
    for item_id, folder, name, num_bytes in zip(*columns, strict=True):
        uri = join(folder, name)
        if rows and rows[0]["item_id"] != item_id:
            yield MediaPart(pa.Table.from_pylist(rows, schema=MEDIA), problems, alike, lost)
            rows, problems, alike, lost = [], [], 0, Counter()
            count.clear()
        if attempt is not None:
            if uri in attempt.fatal:
                problems.append((uri, None, FATAL))
                lost[_ENDED] += 1
                continue
            attempt.at(uri)
        try:
            if num_bytes > config.limits.max_bytes:
                raise MediaError(f"{num_bytes} bytes, expected at most {config.limits.max_bytes}")
            found = decode_file(_read(opened(folder), name), config)
        except (MediaError, OSError) as error:
            problems.append((uri, None, str(error)))
            lost[_UNREADABLE] += 1
            continue
        except Exception as error:  # a decoder raised what it should not: one file, not the job
            problems.append((uri, None, f"cannot be read: {type(error).__name__}: {error}"))
            lost[_UNREADABLE] += 1
            continue
        if found.problem:
            problems.append((uri, None, found.problem))
        alike += found.num_alike
        kinds = [("frame", data) for data in found.frames]
        kinds += [("log_mel", found.log_mel)] if found.log_mel is not None else []
        for kind, data in kinds:
            medium = {"media_index": count[kind], "kind": kind, "uri": uri, "data": data}
            count[kind] += 1
            rows.append({"item_id": item_id, **medium})
    yield MediaPart(pa.Table.from_pylist(rows, schema=MEDIA), problems, alike, lost)


def _read(folder: tuple[pafs.FileSystem, str], name: str) -> bytes:
    """The bytes of a file; to an address `?`, `#` and `%` mean something, to a path they do not."""
    files, path = folder
    with files.open_input_stream(f"{path.rstrip('/')}/{name}") as stream:
        return stream.read()


def index_rows(media: pa.Table, shard: int, first_row: int) -> pa.Table:
    """MEDIA_INDEX of MEDIA rows that stand in a shard's file from `first_row` on."""
    kinds, data = media.column("kind").to_pylist(), media.column("data")
    hashes = [
        _hashes(data[i].as_py()) if kind == "frame" else (None, None)
        for i, kind in enumerate(kinds)
    ]
    rows = media.num_rows
    columns = [
        media.column("item_id"),
        media.column("media_index"),
        media.column("kind"),
        pa.repeat(pa.scalar(shard, pa.int32()), rows),
        pa.array(np.arange(first_row, first_row + rows)),
        pc.binary_length(data),
        pa.array([pair[0] for pair in hashes], pa.uint64()),
        pa.array([pair[1] for pair in hashes], pa.uint64()),
    ]
    return pa.table(columns, schema=MEDIA_INDEX)


def _hashes(data: bytes) -> tuple[int | None, int | None]:
    """Hashes of a picture that was checked when it was read."""
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    return (None, None) if grey is None else (phash(grey), dhash(grey))
