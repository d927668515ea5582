"""What is packed comes out as it was; other bytes are refused with what was expected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.wire import (
    WireError,
    pack_contents,
    pack_found,
    pack_hits,
    pack_rows,
    unpack_contents,
    unpack_found,
    unpack_rows,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
FOUND = st.lists(
    st.lists(st.tuples(TEXT, st.floats(-1, 1, width=32)), max_size=4), min_size=1, max_size=5
)
CONTENTS = st.lists(
    st.tuples(st.none() | TEXT, st.none() | st.binary(max_size=9)), min_size=1, max_size=5
)


def test_rows_are_little_endian_float32_one_after_another() -> None:
    data = bytes.fromhex("0000803f 000000c0 00000000 0000c03f")
    rows = [[1.0, -2.0], [0.0, 1.5]]
    assert pack_rows(np.array(rows)) == pack_rows(np.array(rows, ">f8")) == data
    assert unpack_rows(data, 2).tolist() == rows
    assert unpack_rows(data, 4).tolist() == [[1.0, -2.0, 0.0, 1.5]]


@pytest.mark.parametrize(
    ("data", "dim", "said"),
    [
        (b"", 4, "0 bytes, expected one or more rows of 4 little-endian float32"),
        (b"\0" * 15, 4, "15 bytes, .* 16 bytes each"),
        (b"\0" * 24, 4, "24 bytes"),
        (pack_rows(np.array([[0, 1], [1, np.nan]])), 2, "row 1 has NaN or infinity"),
        (pack_rows(np.array([[np.inf, 1], [1, 1]])), 2, "row 0 has NaN"),
    ],
)
def test_rows_of_another_form(data: bytes, dim: int, said: str) -> None:
    with pytest.raises(WireError, match=said):
        unpack_rows(data, dim)


@given(found=FOUND)
def test_found_comes_out_as_it_was(found: list[list[tuple[str, float]]]) -> None:
    given = [([i for i, _ in one], [score for _, score in one]) for one in found]
    data = pack_found(given)
    flat = [item_id.encode() for ids, _ in given for item_id in ids]
    arrays = (
        np.array([len(ids) for ids, _ in given], np.int64),
        np.array([one for _, scores in given for one in scores], np.float64),
        np.array([len(one) for one in flat], np.int64),
    )
    assert pack_hits(*arrays, b"".join(flat)) == data
    out = unpack_found(data, len(given))
    assert [(ids, scores.tolist()) for ids, scores in out] == given
    for cut in (data[:-1], data + b"\0"):
        with pytest.raises(WireError):
            unpack_found(cut, len(given))


@given(contents=CONTENTS)
def test_contents_come_out_as_they_were(contents: list[tuple[str | None, bytes | None]]) -> None:
    data = pack_contents(contents)
    assert unpack_contents(data, 5) == [(text or None, data or None) for text, data in contents]
    for cut in (data[:-1], data + b"\0"):
        with pytest.raises(WireError):
            unpack_contents(cut, 5)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_contents_or_refused(data: bytes) -> None:
    try:
        contents = unpack_contents(data, 5)
    except WireError:
        return
    assert pack_contents(contents) == data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (b"\0\0\0\0", "0 inputs, expected 1 to 3"),
        (b"\xff\xff\xff\xff", "4294967295 inputs, expected 1 to 3"),
        (pack_contents([("a", None)] * 4), "4 inputs"),
        (b"\1\0\0\0" + b"\xff" * 8, "0 bytes follow the lengths, which add up to 8589934590"),
        (b"\1\0\0\0\1\0\0\0\0\0\0\0\xff", "text of input 0: not UTF-8"),
    ],
)
def test_contents_of_another_form(data: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        unpack_contents(data, 3)
