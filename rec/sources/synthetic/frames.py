"""Pictures of items: a topic's shape in its colours moves its way over its gradient.

Items of a topic differ in place, size, speed, colour cast, noise and a distracting patch.
Products are one still frame.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from rec.sources.synthetic.catalogue import Catalogue, Ints
from rec.sources.synthetic.hashing import Purpose, below, uniform

MAX_FRAMES = 4
_NUM_SHAPES = 6
_NUM_DIRECTIONS = 8
_NUM_DRAWS = 16  # uniform numbers that make one item's pictures
_NUM_TILES = 16
_GOLDEN_RATIO = 0.618034  # steps of hue that keep any number of topics apart
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 80]

Picture = NDArray[np.uint8]


@lru_cache(maxsize=4)
def _noise(seed: int, size: int) -> NDArray[np.float32]:
    """(tiles, size, size, 1) fixed noise, about normal, that items pick from and scale."""
    keys = np.arange(_NUM_TILES * size * size)
    draws = uniform(seed, Purpose.NOISE, keys[:, None], np.arange(3)).sum(axis=1)
    return (2.0 * (draws - 1.5)).astype(np.float32).reshape(_NUM_TILES, size, size, 1)


@lru_cache(maxsize=32)
def _ramp(direction: int, size: int) -> NDArray[np.float32]:
    """(size, size, 1) from 0 to 1 along a direction."""
    angle = 2.0 * np.pi * direction / _NUM_DIRECTIONS
    y, x = np.mgrid[0:size, 0:size] / (size - 1.0) - 0.5
    slope = x * np.cos(angle) + y * np.sin(angle)
    return ((slope - slope.min()) / np.ptp(slope)).astype(np.float32)[..., None]


def _colour(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(value, 1.0))
    return np.array([blue, green, red], dtype=np.float32) * 255.0


def _star(x: float, y: float, radius: float, points: int, inner: float) -> NDArray[np.int32]:
    """Corners of a star in 1/16 pixels; inner = 1 gives a regular polygon."""
    angle = np.arange(2 * points) * np.pi / points - np.pi / 2
    reach = radius * np.where(np.arange(2 * points) % 2, inner, 1.0)
    corners = np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], axis=1)
    return (corners * 16).astype(np.int32)


def _draw_shape(
    picture: Picture, shape: int, x: float, y: float, radius: float, ink: tuple[float, ...]
) -> None:
    centre = (int(x * 16), int(y * 16))
    if shape == 0:
        cv2.circle(picture, centre, int(radius * 16), ink, -1, cv2.LINE_AA, 4)
    elif shape == 1:
        width = max(1, int(radius * 0.5))
        cv2.circle(picture, centre, int(radius * 13), ink, width, cv2.LINE_AA, 4)
    else:
        points, inner = ((2, 1.0), (3, 0.5), (4, 0.35), (5, 0.45))[shape - 2]
        corners = _star(x, y, radius, points, inner)
        cv2.fillPoly(picture, [corners], ink, cv2.LINE_AA, 4)


def num_frames(catalogue: Catalogue, index: Ints) -> Ints:
    """How many frames each item has: 0, 1 for a product, 2 to 4 for a video."""
    config = catalogue.config
    moving = 2 + below(MAX_FRAMES - 1, config.seed, Purpose.FRAMES, index, 0)
    count = np.where(catalogue.is_product(index), 1, moving)
    has = uniform(config.seed, Purpose.HAS, index, 1) < config.frame_share
    return np.where(has, count, 0)


def render(catalogue: Catalogue, index: Ints) -> list[list[bytes]]:
    """The JPEG frames of each item, in order; an empty list where it has none."""
    draws = uniform(catalogue.config.seed, Purpose.FRAMES, index[:, None], 1, np.arange(_NUM_DRAWS))
    counts = num_frames(catalogue, index).tolist()
    topics = catalogue.topic(index).tolist()
    return [
        _item(catalogue, topic, row, count)
        for topic, row, count in zip(topics, draws.tolist(), counts, strict=True)
    ]


def _item(catalogue: Catalogue, topic: int, draw: list[float], count: int) -> list[bytes]:
    if not count:
        return []
    config = catalogue.config
    size = config.frame_size
    direction = topic * 5 % _NUM_DIRECTIONS
    hue = topic * _GOLDEN_RATIO + 0.08 * (draw[0] - 0.5)
    near = _colour(hue, 0.35 + 0.3 * draw[1], 0.45 + 0.4 * draw[2])
    far = _colour(hue + 0.12, 0.5, 0.25 + 0.3 * draw[3])
    ink = _colour(hue + 0.45 + 0.1 * (draw[4] - 0.5), 0.8, 0.75 + 0.25 * draw[5])
    scene = near + (far - near) * _ramp(direction, size)
    tile = _noise(config.seed, size)[int(draw[6] * _NUM_TILES)]
    scene = scene + tile * (4.0 + 10.0 * draw[7])
    base = scene.clip(0.0, 255.0).astype(np.uint8)
    _distract(base, draw, size)
    radius = size * (0.14 + 0.1 * draw[8])
    angle = 2.0 * np.pi * direction / _NUM_DIRECTIONS
    step = size * (0.08 + 0.08 * draw[9])
    x, y = size * (0.3 + 0.4 * draw[10]), size * (0.3 + 0.4 * draw[11])
    frames: list[bytes] = []
    for number in range(count):
        picture = base.copy()
        along = step * (number - (count - 1) / 2.0)
        place = (x + along * np.cos(angle), y + along * np.sin(angle))
        _draw_shape(picture, topic % _NUM_SHAPES, *place, radius, tuple(ink.tolist()))
        frames.append(_encode(picture))
    return frames


def _distract(picture: Picture, draw: list[float], size: int) -> None:
    """A small patch of any colour, the same for all topics."""
    corner = (int(draw[12] * size * 0.8), int(draw[13] * size * 0.8))
    opposite = (corner[0] + size // 6, corner[1] + size // 8)
    ink = tuple(_colour(draw[14], 0.7, 0.4 + 0.6 * draw[15]).tolist())
    cv2.rectangle(picture, corner, opposite, ink, -1)


def _encode(picture: Picture) -> bytes:
    done, data = cv2.imencode(".jpg", picture, _QUALITY)
    if not done:
        raise RuntimeError("OpenCV could not encode a rendered frame as JPEG")
    return data.tobytes()
