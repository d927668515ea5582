"""What pictures, sound and video have in common: how a bad file is named, what a file may cost.

Files come from strangers. They are opened from memory, as one of the containers below and nothing
else: a playlist that names files or addresses is refused, so no file makes FFmpeg read another.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager

import av
import av.error
import numpy as np
from av.container import InputContainer
from pydantic import Field

from rec.config import Config

_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,asf,ogg,"
    "wav,w64,flac,mp3,aac,amr,aiff,au,caf,ac3"
)
MAX_RATIO = 4  # of a stored picture's sides; one that is longer is scaled down further


class MediaError(ValueError):
    """Bytes that cannot be read as a picture, as sound or as video. The message says why."""


class MediaLimits(Config):
    """What one file may ask for; more is a MediaError."""

    max_bytes: int = Field(default=256 << 20, ge=1)
    max_pixels: int = Field(default=4096 * 2304, ge=1)  # of a video's frame
    max_seconds: float = Field(default=3600.0, gt=0)  # of a video
    max_decode_seconds: float = Field(default=60.0, gt=0)  # by the clock, between two frames


class Deadline:
    """A point in time after which work on a file is given up."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise MediaError when the time is over."""
        if time.monotonic() > self._end:
            raise MediaError(f"decoding took more than {self._seconds:g} s")


@contextmanager
def open_media(data: bytes, what: str) -> Iterator[InputContainer]:
    """A sound or video file in memory, opened by FFmpeg; `what` names it in messages.

    Raises:
        MediaError: it is empty, of no container that is read here, or what FFmpeg says while it
            is open.
    """
    if not data:
        raise MediaError("empty file")
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(data), mode="r", options=options) as container:
            yield container
    # PyAV raises ValueError and its kin for frames that no filter or format takes
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, MediaError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{what} of {len(data)} bytes cannot be decoded: {reason}") from error


def fit(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of a picture with a shorter side of at most `side`, never enlarged.

    The longer side is held to `MAX_RATIO` times as much, so that a strip costs no more than
    another picture.
    """
    scale = min(1.0, side / min(width, height), MAX_RATIO * side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the positions 0 to count-1, evenly spread, in order.

    All of them where they fit; else the middles of `limit` equal stretches, so that one of many
    is the middle one.
    """
    if count <= limit:
        return list(range(count))
    middles = (np.arange(limit) + 0.5) * count / limit
    return middles.astype(int).tolist()
