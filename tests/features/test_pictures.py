from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rec.features.media import MediaError
from rec.features.pictures import encode_jpeg, is_picture, read_picture, shrink


def encoded(kind: str, height: int = 40, width: int = 60) -> bytes:
    random = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = cv2.resize(random, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(kind, picture)[1].tobytes()


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp", ".bmp"])
def test_pictures_are_known_by_their_bytes_and_scaled(kind: str) -> None:
    data = encoded(kind)
    assert is_picture(data)
    whole = read_picture(data, 40)
    assert whole.shape == (40, 60, 3)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert np.abs(whole - expected).mean() < 2
    assert read_picture(data, 20).shape == (20, 30, 3)
    assert read_picture(data, 400).shape == (40, 60, 3)
    assert not is_picture(b"RIFF\x00\x00\x00\x00WAVEfmt ")


def test_a_turned_picture_comes_upright() -> None:
    target = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (60, 40), (10, 200, 30)).save(target, "JPEG", exif=exif)
    assert read_picture(target.getvalue(), 40).shape == (60, 40, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(".jpg")[:-40], "cannot be decoded"),
        (encoded(".png")[:-40], "cannot be decoded"),
        (b"\xff\xd8\xff" + b"junk" * 9, "no picture"),
        (bomb(), "too large"),
    ],
)
def test_bad_pictures_are_refused_with_their_reason(data: bytes, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        read_picture(data, 64)


@pytest.mark.parametrize(("height", "width"), [(1, 80_000), (80_000, 1), (200, 60_000)])
def test_a_strip_is_scaled_by_its_longer_side(height: int, width: int) -> None:
    data = cv2.imencode(".png", np.full((height, width, 3), 9, np.uint8))[1].tobytes()
    shrunk = read_picture(data, 64)
    assert max(shrunk.shape) == 256
    assert is_picture(encode_jpeg(shrunk))


def test_what_is_no_jpeg_is_a_media_error() -> None:
    with pytest.raises(MediaError, match="no JPEG"):
        encode_jpeg(np.zeros((1, 80_000, 3), np.uint8))


def with_notes() -> bytes:
    """A JPEG with EXIF of several fields."""
    target = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "told", 72.5
    Image.new("RGB", (24, 16), (10, 200, 30)).save(target, "JPEG", exif=exif)
    return target.getvalue()


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([with_notes(), *(encoded(k, 16, 24) for k in (".jpg", ".png", ".webp"))]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
)
def test_damaged_bytes_never_raise_anything_else(
    whole: bytes, damage: list[tuple[float, int]]
) -> None:
    data = bytearray(whole)
    for at, value in damage:
        data[int(at**2 * len(data))] = value  # most of it in the header
    try:
        picture = read_picture(bytes(data), 16)
    except MediaError:
        return
    assert picture.dtype == np.uint8


def test_shrinking_keeps_the_shape_and_jpegs_are_pictures() -> None:
    picture = np.zeros((30, 90, 3), np.uint8)
    assert shrink(picture, 10).shape == (10, 30, 3)
    assert is_picture(encode_jpeg(picture))
