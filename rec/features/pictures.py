"""Pictures as they are stored: checked, turned upright, scaled down, compressed again, hashed."""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rec.features.media import MediaError, fit
from rec.schema import MAX_PICTURE_PIXELS, PICTURE_FORMATS

QUALITY = 90  # of stored JPEGs
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")  # JPEG, PNG, BMP; WebP's has a gap


def is_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a picture of `PICTURE_FORMATS`, whatever its name."""
    return data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def read_picture(data: bytes, side: int) -> np.ndarray:
    """A whole picture as (h, w, 3) uint8 BGR, scaled down to what `fit` gives for `side`.

    Raises:
        MediaError: it is over MAX_PICTURE_PIXELS, cut short, damaged or no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged notes, and of a size held to our own limit
            # Pillow reads the size before it decodes and, unlike OpenCV, refuses a cut-off file
            with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
                if picture.width * picture.height > MAX_PICTURE_PIXELS:
                    raise MediaError(
                        f"picture of {picture.width}x{picture.height} pixels is too large, "
                        f"expected at most {MAX_PICTURE_PIXELS}"
                    )
                # a JPEG comes at 1/2, 1/4 or 1/8 straight from its coefficients
                picture.draft("RGB", fit(*picture.size, side))
                upright = ImageOps.exif_transpose(picture).convert("RGB")
    except Image.DecompressionBombError as error:
        most = f"expected at most {MAX_PICTURE_PIXELS} pixels"
        raise MediaError(f"picture is far too large, {most}") from error
    except UnidentifiedImageError as error:
        names = ", ".join(PICTURE_FORMATS)
        raise MediaError(f"{len(data)} bytes are no picture, expected one of {names}") from error
    except MediaError:
        raise
    except Exception as error:  # Pillow's parsers raise struct.error, zlib.error, TypeError ...
        raise MediaError(f"picture cannot be decoded: {error}") from error
    return shrink(np.asarray(upright)[:, :, ::-1], side)


def shrink(picture: np.ndarray, side: int) -> np.ndarray:
    """An (h, w, 3) picture scaled down to what `fit` gives for `side`; smaller ones stay."""
    height, width = picture.shape[:2]
    size = fit(width, height, side)
    if size == (width, height):
        return np.ascontiguousarray(picture)
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)


def encode_jpeg(picture: np.ndarray) -> bytes:
    """An (h, w, 3) uint8 BGR picture as a JPEG file.

    Raises:
        MediaError: it has a side that JPEG cannot have.
    """
    try:
        written, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    except cv2.error as error:
        raise MediaError(f"picture of shape {picture.shape} is no JPEG: {error}") from error
    if not written:
        raise MediaError(f"picture of shape {picture.shape} is no JPEG")
    return data.tobytes()
