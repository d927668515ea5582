"""Video to key frames: a few samples a second, cut into shots, and frames spread over the shots.

A shot ends where two neighbouring samples differ much more than samples around them do, by the
mean of two distances from 0 to 1: of their colour histograms, which sees another scene, and of
where their edges lie, which sees another picture in the same colours (compare Boreczky and Rowe,
Comparison of video shot boundary detection techniques, 1996). Every shot gets a frame as long as
there are frames; then the one whose frames stand for the longest stretch gets another (D'Hondt).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rec.features.media import Deadline, MediaError, MediaLimits, fit, open_media, spread

SAMPLES_A_SECOND = 4.0
MAX_SAMPLES = 128  # held at once; of longer videos every second one goes, again and again
MIN_CUT = 0.16  # distance below which two samples are of one shot
CUT_OVER_MEDIAN = 3.0  # a cut's distance over the median around it
_AROUND = 8  # samples to either side
_BINS = 8  # of each colour
_GRID = 8  # cells of edges a side
_MAX_FRAMES = 3000  # beyond, only the frames that are coded by themselves are decoded
_WHOLE = 0.8  # of the frames' time that the header promises; less was cut off
# formats whose header states how long the video is; of others FFmpeg guesses it by the bit rate
_STATING = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "asf"}


class Samples(NamedTuple):
    """Pictures of a video in order of time."""

    seconds: np.ndarray  # (n,) float64 from the first frame
    pictures: list[np.ndarray]  # uint8 BGR, all of one size


def key_frames(data: bytes, limit: int, side: int, limits: MediaLimits) -> list[np.ndarray]:
    """At most `limit` pictures that stand for a video, uint8 BGR, in order of time.

    Args:
        data: the file's bytes.
        limit: how many.
        side: what pictures are scaled down to, as `rec.features.media.fit` does.
        limits: what the file may ask for.

    Raises:
        MediaError: the file is over a limit, cut short, damaged, or has no picture.
    """
    samples = read_samples(data, side, limits)
    chosen = choose(shots(samples.pictures), limit)
    return [samples.pictures[i] for i in chosen]


def streams(data: bytes) -> tuple[bool, bool]:
    """Whether a file has moving pictures, and sound; the cover of a song does not move.

    Raises:
        MediaError: it cannot be opened, or has neither.
    """
    with open_media(data, "file") as container:
        found = _stream(container) is not None, bool(container.streams.audio)
    if not any(found):
        raise MediaError(f"neither sound nor pictures in a file of {len(data)} bytes")
    return found


def _stream(container: InputContainer) -> VideoStream | None:
    streams = (s for s in container.streams.video if not s.disposition & s.disposition.attached_pic)
    return next(streams, None)


def read_samples(data: bytes, side: int, limits: MediaLimits) -> Samples:
    """At most MAX_SAMPLES pictures of a video at equal distances in time.

    All frames of short videos are decoded; of long ones those that need no other, which encoders
    also put where scenes change.
    """
    if len(data) > limits.max_bytes:
        raise MediaError(f"{len(data)} bytes, expected at most {limits.max_bytes}")
    deadline = Deadline(limits.max_decode_seconds)
    with open_media(data, "video") as container:
        stream = _stream(container)
        if stream is None:
            raise MediaError("no video stream")
        promised = _check(stream, container, limits)
        stream.codec_context.thread_count = 1  # workers share the cores
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        if promised * float(stream.average_rate or 25) > _MAX_FRAMES:
            stream.codec_context.skip_frame = "NONKEY"
        taken = _Taken(side)
        first, end = None, 0.0
        for packet in container.demux():  # the sound too: either may be the longer one
            deadline.check()
            if packet.pts is not None and packet.time_base:
                at = float(packet.pts * packet.time_base)
                first = at if first is None else first
                end = max(end, at - first)
            if end > limits.max_seconds:
                raise MediaError(f"video longer than {limits.max_seconds:g} s")
            if packet.stream.index != stream.index:
                continue
            for frame in packet.decode():
                deadline.check()
                if isinstance(frame, VideoFrame):
                    taken.see(frame)
        if not taken.pictures:
            raise MediaError("no picture in the video stream")
        if container.format.name in _STATING and end < _WHOLE * promised - 1.0:
            raise MediaError(f"cut short: {end:.1f} s of {promised:.1f} s")
    return Samples(np.array(taken.seconds), taken.pictures)


def _check(stream: VideoStream, container: InputContainer, limits: MediaLimits) -> float:
    """Hold the header to the limits; the seconds it promises, or FFmpeg guesses, come back."""
    if stream.codec_context is None:
        raise MediaError("video of a format that FFmpeg does not know")
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > limits.max_pixels:
        raise MediaError(
            f"video of {stream.codec_context.width}x{stream.codec_context.height} pixels is too "
            f"large, expected at most {limits.max_pixels}"
        )
    seconds = (container.duration or 0) / 1e6
    if container.format.name in _STATING and seconds > limits.max_seconds:
        raise MediaError(f"video of {seconds:.0f} s, expected at most {limits.max_seconds:g} s")
    return seconds


class _Taken:
    """Samples so far, at a distance in time that doubles when there are too many."""

    def __init__(self, side: int) -> None:
        self.seconds: list[float] = []
        self.pictures: list[np.ndarray] = []
        self._side = side
        self._size: tuple[int, int] | None = None
        self._interval = 1.0 / SAMPLES_A_SECOND
        self._first: float | None = None

    def see(self, frame: VideoFrame) -> None:
        at = frame.time if frame.time is not None else (self._first or 0.0)
        self._first = at if self._first is None else self._first
        seconds = at - self._first
        if self.seconds and seconds < self.seconds[-1] + self._interval * 0.999:
            return
        self.seconds.append(seconds)
        self.pictures.append(self._picture(frame))
        if len(self.pictures) > MAX_SAMPLES:
            self.seconds, self.pictures = self.seconds[::2], self.pictures[::2]
            self._interval *= 2.0

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        if self._size is None:  # of the first frame; a stream may change its own on the way
            self._size = fit(frame.width, frame.height, self._side)
        small = frame.reformat(*self._size, format="bgr24", interpolation="AREA").to_ndarray()
        return np.ascontiguousarray(np.rot90(small, round(frame.rotation / 90) % 4))


def shots(pictures: list[np.ndarray]) -> list[tuple[int, int]]:
    """Consecutive (start, stop) of the samples of each shot."""
    looks = [_look(picture) for picture in pictures]
    change = np.array([_distance(*pair) for pair in pairwise(looks)])
    cuts = [0]
    for i, value in enumerate(change):
        around = np.delete(change[max(i - _AROUND, 0) : i + _AROUND + 1], min(i, _AROUND))
        usual = float(np.median(around)) if len(around) else 0.0
        if value >= max(MIN_CUT, CUT_OVER_MEDIAN * usual):
            cuts.append(i + 1)
    return list(zip(cuts, [*cuts[1:], len(pictures)], strict=True))


def _look(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour histogram and share of the edges in each cell of a grid; both sum to 1."""
    from scipy import ndimage  # a quarter of a second, and recipes lead to this file

    small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
    colours = cv2.calcHist([small], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3)
    # a colour near the border of a bin is to count in both, or a slight change is a great one
    colours = ndimage.uniform_filter(colours, 3, mode="constant").ravel()
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
    edges = np.abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    cells = cv2.resize(edges, (_GRID, _GRID), interpolation=cv2.INTER_AREA).ravel()
    cells += 1.0  # where there are no edges, noise is not to look like any
    return colours / colours.sum(), cells / cells.sum()


def _distance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    halves = [0.5 * float(np.abs(a - b).sum()) for a, b in zip(first, second, strict=True)]
    return sum(halves) / len(halves)


def choose(shots: list[tuple[int, int]], limit: int) -> list[int]:
    """At most `limit` positions: a middle one of every shot, the longest first, then more of those
    whose frames stand for most samples; evenly spread within each shot."""
    length = np.array([stop - start for start, stop in shots], np.float64)
    count = np.zeros(len(shots), np.int64)
    for _ in range(min(limit, int(length.sum()))):
        worth = np.where(count > 0, length / np.maximum(count, 1), np.inf)
        worth = np.where(count == 0, length + length.sum(), worth)  # a first one before any second
        worth[count >= length] = -1.0
        count[np.argmax(worth)] += 1
    return [
        start + place
        for (start, stop), number in zip(shots, count.tolist(), strict=True)
        for place in spread(stop - start, number)
        if number
    ]
