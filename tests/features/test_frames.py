from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.features import frames
from rec.features.media import MediaError, spread


def picture(height: int, width: int, kind: str = ".png") -> tuple[np.ndarray, bytes]:
    """A smooth RGB picture whose channels tell row and column, and its file."""
    rows = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    columns = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    rgb = np.stack([rows, columns, np.full_like(rows, 40)], -1).astype(np.uint8)
    return rgb, cv2.imencode(kind, rgb[:, :, ::-1])[1].tobytes()


def test_keeps_a_picture_of_the_asked_size_and_its_channel_order() -> None:
    rgb, data = picture(20, 30)
    assert np.array_equal(frames.decode(data, 20, 30), rgb.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40)])
def test_crops_the_longer_side_about_its_centre(height: int, width: int) -> None:
    rgb, data = picture(height, width)
    low = 30
    rows = slice(low, low + 40) if height > width else slice(None)
    columns = slice(low, low + 40) if width > height else slice(None)
    assert np.array_equal(frames.decode(data, 40, 40), rgb[rows, columns].transpose(2, 0, 1))


def test_reduced_decoding_agrees_with_full_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = picture(640, 800, ".jpg")
    reduced = frames.decode(data, 64, 64)
    monkeypatch.setattr(frames, "_REDUCED", ())
    full = frames.decode(data, 64, 64)
    assert np.abs(reduced.astype(int) - full.astype(int)).max() <= 4


def test_grey_and_transparent_pictures_get_three_channels() -> None:
    grey = cv2.imencode(".png", np.full((9, 9), 77, np.uint8))[1].tobytes()
    clear = cv2.imencode(".png", np.full((9, 9, 4), 77, np.uint8))[1].tobytes()
    for data in (grey, clear):
        assert np.array_equal(frames.decode(data, 9, 9), np.full((3, 9, 9), 77, np.uint8))


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\xff\xd8\xff\xe0" + b"\0" * 40])
def test_what_is_no_picture_is_named_so(data: bytes) -> None:
    with pytest.raises(MediaError, match="not a picture"):
        frames.decode(data, 8, 8)


def test_refuses_a_picture_that_unpacks_to_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = picture(20, 30)
    monkeypatch.setattr(frames, "MAX_PICTURE_PIXELS", 599)
    with pytest.raises(MediaError, match=r"30x20 pixels is too large, expected at most 599"):
        frames.decode(data, 8, 8)


@given(st.integers(0, 200), st.integers(1, 20))
def test_spread_is_even_ordered_and_within_bounds(count: int, limit: int) -> None:
    picked = spread(count, limit)
    assert len(picked) == min(count, limit)
    assert picked == sorted(set(picked))
    assert all(0 <= i < count for i in picked)
    if count > limit:
        gaps = np.diff(picked)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1
        assert abs(picked[0] - (count - 1 - picked[-1])) <= 1
