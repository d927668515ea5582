from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.features.media import MediaError, MediaLimits, open_media
from rec.features.video import (
    MAX_SAMPLES,
    choose,
    key_frames,
    read_samples,
    shots,
    streams,
)

LIMITS = MediaLimits()


def scene(seed: int, width: int, height: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def film(
    scenes: Sequence[tuple[float, int]],
    *,
    container: str = "matroska",
    codec: str = "mpeg4",
    rate: int = 20,
    size: tuple[int, int] = (96, 64),
    sound: bool = False,
) -> bytes:
    """Scenes of (seconds, seed) that pan slowly, cut hard."""
    target = io.BytesIO()
    width, height = size
    with av.open(target, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        noise = out.add_stream("pcm_s16le", rate=16_000, layout="mono") if sound else None
        for seconds, seed in scenes:
            wide = scene(seed, width + 12, height)
            for n in range(round(seconds * rate)):
                at = int(12 * n / (seconds * rate))
                picture = np.ascontiguousarray(wide[:, at : at + width])
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        out.mux(stream.encode())
        if noise is not None:
            total = round(sum(seconds for seconds, _ in scenes) * 16_000)
            samples = np.random.default_rng(0).integers(-9000, 9000, (1, total), dtype=np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), 0
            out.mux(noise.encode(frame))
            out.mux(noise.encode())
    return target.getvalue()


THREE = film([(3, 0), (1, 1), (5, 2)])


def test_cuts_are_found_where_scenes_change() -> None:
    samples = read_samples(THREE, 64, LIMITS)
    starts = [float(samples.seconds[start]) for start, _ in shots(samples.pictures)]
    assert starts == pytest.approx([0.0, 3.0, 4.0], abs=0.3)


def test_key_frames_show_every_scene_in_order() -> None:
    for limit in (3, 6):
        found = key_frames(THREE, limit, 64, LIMITS)
        assert len(found) == limit
        nearest = []
        for picture in found:
            wide = [scene(seed, 108, 64)[:, 6:102].astype(int) for seed in range(3)]
            nearest.append(int(np.argmin([np.abs(picture - w).mean() for w in wide])))
        assert nearest == sorted(nearest)
        assert set(nearest) == {0, 1, 2}


def test_one_long_shot_is_cut_nowhere_and_samples_are_bounded() -> None:
    data = film([(80, 4)], rate=5, size=(32, 32))
    samples = read_samples(data, 64, LIMITS)
    assert MAX_SAMPLES / 2 <= len(samples.pictures) <= MAX_SAMPLES
    assert np.ptp(np.diff(samples.seconds)) < 0.25
    assert shots(samples.pictures) == [(0, len(samples.pictures))]


def test_frames_are_scaled_down_and_never_up() -> None:
    assert key_frames(THREE, 1, 32, LIMITS)[0].shape == (32, 48, 3)
    assert key_frames(THREE, 1, 500, LIMITS)[0].shape == (64, 96, 3)


def test_a_wide_video_is_scaled_by_its_longer_side() -> None:
    data = film([(0.5, 0)], size=(2048, 32), codec="mpeg4")
    samples = read_samples(data, 32, LIMITS)
    assert {picture.shape for picture in samples.pictures} == {(2, 128, 3)}
    assert key_frames(data, 1, 32, LIMITS)[0].shape == (2, 128, 3)


def test_a_guessed_duration_refuses_no_video() -> None:
    data = bytearray(film([(2, 0)], container="mpeg1video", codec="mpeg1video", rate=25))
    header = b"\x00\x00\x01\xb3"
    at = data.find(header)
    while at >= 0:  # the 18 bits of the bit rate, in 400 bits a second, to 1
        data[at + 8], data[at + 9] = 0, 0
        data[at + 10] = data[at + 10] & 0x3F | 0x40
        at = data.find(header, at + 4)
    with open_media(bytes(data), "video") as container:
        assert (container.duration or 0) > 20e6
    samples = read_samples(bytes(data), 64, MediaLimits(max_seconds=10))
    assert len(samples.pictures) >= 7


def test_streams_of_a_file() -> None:
    assert streams(THREE) == (True, False)
    assert streams(film([(1, 0)], sound=True)) == (True, True)
    assert streams(film([(1, 0)], container="mp4", codec="libx264")) == (True, False)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 20))
def test_chosen_frames_spread_over_shots(lengths: list[int], limit: int) -> None:
    ends = np.cumsum(lengths).tolist()
    parts = list(zip([0, *ends[:-1]], ends, strict=True))
    chosen = choose(parts, limit)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, ends[-1])
    counts = [sum(start <= i < stop for i in chosen) for start, stop in parts]
    if limit >= len(parts):
        assert min(counts) >= 1
    else:
        left_out = [n for n, c in zip(lengths, counts, strict=True) if not c]
        taken = [n for n, c in zip(lengths, counts, strict=True) if c]
        assert set(counts) <= {0, 1}
        assert max(left_out) <= min(taken)


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/hostname\n"


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (b"", {}, "empty file"),
        (b"junk" * 500, {}, "video of 2000 bytes cannot be decoded: Invalid data"),
        (HLS, {}, "cannot be decoded"),
        (CONCAT, {}, "cannot be decoded"),
        (THREE[: len(THREE) // 2], {}, "cut short: .* s of 9.0 s"),
        (THREE[:600], {}, "no picture|cannot be decoded|cut short"),
        (THREE, {"max_bytes": 100}, "bytes, expected at most 100"),
        (THREE, {"max_pixels": 6143}, "96x64 pixels is too large"),
        (THREE, {"max_seconds": 5}, "video of 9 s, expected at most 5 s"),
        (THREE, {"max_decode_seconds": 1e-6}, "decoding took more than 1e-06 s"),
    ],
)
def test_bad_files_are_refused_with_their_reason(
    data: bytes, limits: dict[str, float], reason: str
) -> None:
    with pytest.raises(MediaError, match=reason):
        key_frames(data, 4, 64, MediaLimits.model_validate(limits))


@settings(deadline=None)
@given(st.integers(0, len(THREE) - 1), st.integers(0, 255))
def test_a_damaged_byte_never_raises_anything_else(at: int, value: int) -> None:
    data = bytearray(THREE)
    data[at] = value
    try:
        found = key_frames(bytes(data), 2, 32, MediaLimits(max_decode_seconds=5))
    except MediaError:
        return
    assert 1 <= len(found) <= 2
