from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from rec.config import Config
from rec.sources import AnySource, ExercisesSource, MovieLensSource, Shard, SyntheticSource
from rec.sources.base import MAX_MEDIA_BYTES, media_problem, problem_table, ranges


class Holder(Config):
    source: AnySource


def picture(kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    target = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(target, kind)
    return target.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        tail = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + tail

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")


@given(st.integers(0, 1000), st.integers(1, 20))
def test_shards_partition_the_rows_in_order(num_rows: int, num_shards: int) -> None:
    bounds = [Shard(i, num_shards).bounds(num_rows) for i in range(num_shards)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == num_rows
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 70))
def test_ranges_cover_each_position_once(start: int, count: int, size: int) -> None:
    pieces = list(ranges(start, start + count, size))
    covered = [x for low, high in pieces for x in range(low, high)]
    assert covered == list(range(start, start + count))
    assert all(high - low <= size for low, high in pieces)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_whole_pictures_are_decodable(kind: str) -> None:
    assert media_problem(picture(kind), "frame") is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not a picture", "undecodable picture: not one of JPEG, PNG, WEBP, BMP"),
        (picture()[: len(picture()) // 2], "undecodable picture: image file is truncated"),
        (picture("GIF"), "undecodable picture: not one of"),
        (png_header(9000, 8000), "9000 x 8000 pixels, expected at most 64000000"),
        (png_header(60_000, 60_000), "expected at most 64000000"),
        (b"\0" * (MAX_MEDIA_BYTES + 1), f"bytes, expected at most {MAX_MEDIA_BYTES}"),
    ],
)
def test_bad_pictures_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    problem = media_problem(data, "frame")
    assert problem is not None
    assert reason in problem


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not sound", "undecodable audio: "),
        (picture(), "undecodable audio: no audio stream"),
    ],
)
def test_bad_sounds_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    problem = media_problem(data, "audio")
    assert problem is not None
    assert reason in problem


def test_problems_may_lack_a_row() -> None:
    table = problem_table([("a.csv", 3, "odd"), ("b.jpg", None, "gone")])
    assert table.column("row").to_pylist() == [3, None]
    assert problem_table([]).num_rows == 0


@pytest.mark.parametrize(
    "source",
    [
        MovieLensSource(path="s3://bucket/films", num_shards=2),
        ExercisesSource(path="somewhere"),
        SyntheticSource(num_items=7, seed=3),
    ],
)
def test_any_source_travels_as_json(source: AnySource) -> None:
    holder = Holder(source=source)
    again = Holder.from_json(holder.to_json())
    assert again == holder
    assert type(again.source) is type(source)
    assert again.override(["source.num_shards=9"]).source.num_shards == 9


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValidationError, match="'movielens', 'exercises', 'folder', 'synthetic'"):
        TypeAdapter(AnySource).validate_python({"kind": "elsewhere", "path": "x"})
