"""Compressed pictures to RGB tensors of one size. Used by training, embedding and serving."""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from PIL import Image

from rec.features.media import MediaError
from rec.schema import MAX_PICTURE_PIXELS, PICTURE_FORMATS

_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)


def _size(data: bytes) -> tuple[int, int]:
    """(height, width) as the file's header says, without decoding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
                return image.height, image.width
    except Image.DecompressionBombError as error:
        raise MediaError(f"picture is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        names = ", ".join(PICTURE_FORMATS)
        raise MediaError(
            f"not a picture that can be read: {len(data)} bytes, expected one of {names}"
        ) from error


def _flag(size: tuple[int, int], height: int, width: int) -> int:
    """OpenCV's flag for the smallest scale that still covers height x width.

    JPEG is decoded at 1/8, 1/4 or 1/2 straight from its coefficients, several times as fast.
    """
    shorter = min(size)  # a picture may be turned by its EXIF tag, so sides cannot be told apart
    for factor, flag in _REDUCED:
        if shorter // factor >= max(height, width):
            return flag
    return cv2.IMREAD_COLOR


def decode(data: bytes, height: int, width: int) -> np.ndarray:
    """A compressed picture as uint8 RGB of shape (3, height, width).

    The shorter side is scaled to fit and the longer one is cropped about the centre, so that
    nothing is distorted and no border is added; what lies outside the crop is not seen. EXIF
    orientation is applied, transparency is dropped, grey becomes three equal channels.

    Raises:
        MediaError: the bytes are no picture OpenCV can decode, or over `MAX_PICTURE_PIXELS`.
    """
    size = _size(data)
    if size[0] * size[1] > MAX_PICTURE_PIXELS:
        raise MediaError(
            f"picture of {size[1]}x{size[0]} pixels is too large, expected at most "
            f"{MAX_PICTURE_PIXELS}"
        )
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), _flag(size, height, width))
    except cv2.error as error:
        raise MediaError(f"picture cannot be decoded: {error.err}") from error
    if picture is None:
        raise MediaError(f"picture cannot be decoded: {len(data)} bytes, cut short or damaged")
    return np.ascontiguousarray(_fit(picture, height, width)[:, :, ::-1].transpose(2, 0, 1))


def _fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, 3) cropped about the centre to the asked aspect, then scaled to (height, width, 3)."""
    h, w = picture.shape[:2]
    scale = min(h / height, w / width)
    crop_h = min(h, max(1, round(height * scale)))
    crop_w = min(w, max(1, round(width * scale)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    crop = picture[top : top + crop_h, left : left + crop_w]
    if crop.shape[:2] == (height, width):
        return crop
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    return cv2.resize(crop, (width, height), interpolation=method)
