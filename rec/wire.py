"""What goes over the wire between machines: raw little-endian bytes in place of JSON.

    POST /v1/knn/raw     asked: B x D float32, row after row
                         answered: B uint32, how many were found of each query; then of all found,
                         query after query: float32 scores, uint32 lengths of ids, ids in UTF-8
    POST /v1/embed/raw   asked: uint32 B; B pairs of uint32, bytes of the text and of the picture,
                         0 for none; then text, picture, text, picture ...
                         answered: B x D float32

All else of a request is in its query, all else of an answer in the headers below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MEDIA_TYPE = "application/octet-stream"
MODEL_HEADER, INDEX_HEADER = "X-Model-Version", "X-Index-Version"

_FLOATS, _COUNTS = np.dtype("<f4"), np.dtype("<u4")


class WireError(ValueError):
    """Bytes of another form. The message says what was expected."""


def pack_rows(rows: np.ndarray) -> bytes:
    """(B, D) numbers as float32."""
    return np.asarray(rows).astype(_FLOATS).tobytes()


def unpack_rows(data: bytes, dim: int) -> np.ndarray:
    """(B, dim) float32, not writable, B at least 1.

    Raises:
        WireError: the bytes are no whole rows, or there are none, or a number is not finite.
    """
    rows = view_rows(data, dim)
    check_finite(rows)
    return rows


def view_rows(data: bytes, dim: int) -> np.ndarray:
    """As `unpack_rows`, of any numbers: NaN and infinity too."""
    if not data or len(data) % (4 * dim):
        raise WireError(
            f"{len(data)} bytes, expected one or more rows of {dim} little-endian float32, which "
            f"have {4 * dim} bytes each"
        )
    return np.frombuffer(data, _FLOATS).reshape(-1, dim)


def check_finite(rows: np.ndarray) -> None:
    """Raises WireError where a number of (B, D) is none."""
    fine = np.isfinite(rows).all(axis=1)
    if not fine.all():
        raise WireError(f"row {int((~fine).argmax())} has NaN or infinity")


def pack_found(found: Sequence[tuple[Sequence[str], Sequence[float] | np.ndarray]]) -> bytes:
    """Ids and scores of each query."""
    ids = [item_id.encode() for query, _ in found for item_id in query]
    scores = [np.asarray(one, _FLOATS) for _, one in found]
    parts = [
        np.array([len(query) for query, _ in found], _COUNTS).tobytes(),
        *(one.tobytes() for one in scores),
        np.array([len(one) for one in ids], _COUNTS).tobytes(),
    ]
    return b"".join(parts + ids)


def pack_hits(counts: np.ndarray, scores: np.ndarray, lengths: np.ndarray, ids: bytes) -> bytes:
    """As `pack_found`, of what is in arrays already.

    Args:
        counts: (B,) how many were found of each query, n in all.
        scores, lengths: (n,) of all found, query after query; lengths are in bytes.
        ids: all of them, in UTF-8.
    """
    return b"".join(
        [
            counts.astype(_COUNTS).tobytes(),
            scores.astype(_FLOATS).tobytes(),
            lengths.astype(_COUNTS).tobytes(),
            ids,
        ]
    )


def unpack_found(data: bytes, num_queries: int) -> list[tuple[list[str], np.ndarray]]:
    """Ids and (n,) float32 scores of each query; raises WireError."""
    counts, rest = _take(data, _COUNTS, num_queries)
    total = int(counts.sum(dtype=np.int64))
    scores, rest = _take(rest, _FLOATS, total)
    lengths, rest = _take(rest, _COUNTS, total)
    ids = [part.decode() for part in _cut(rest, lengths)]
    ends = np.cumsum(counts, dtype=np.int64)
    return [
        (ids[end - count : end], scores[end - count : end])
        for count, end in zip(counts.tolist(), ends.tolist(), strict=True)
    ]


def pack_contents(contents: Sequence[tuple[str | None, bytes | None]]) -> bytes:
    """Texts and pictures; None and empty are the same."""
    parts = [part for text, picture in contents for part in ((text or "").encode(), picture or b"")]
    head = np.array([len(contents), *map(len, parts)], _COUNTS)
    return b"".join([head.tobytes(), *parts])


def unpack_contents(data: bytes, most: int) -> list[tuple[str | None, bytes | None]]:
    """Text and picture of each of 1 to `most` inputs, None where absent; raises WireError."""
    count, rest = _take(data, _COUNTS, 1)
    if not 1 <= count[0] <= most:
        raise WireError(f"{count[0]} inputs, expected 1 to {most} a request")
    lengths, rest = _take(rest, _COUNTS, 2 * int(count[0]))
    parts = list(_cut(rest, lengths))
    texts = [_text(i, part) for i, part in enumerate(parts[::2])]
    return list(zip(texts, (part or None for part in parts[1::2]), strict=True))


def _text(i: int, data: bytes) -> str | None:
    try:
        return data.decode() or None
    except UnicodeDecodeError as error:
        raise WireError(f"text of input {i}: not UTF-8: {error.reason}") from error


def _take(data: bytes | memoryview, kind: np.dtype, count: int) -> tuple[np.ndarray, memoryview]:
    """`count` numbers from the front, and what follows them."""
    size = count * kind.itemsize
    if len(data) < size:
        raise WireError(f"cut short: {len(data)} bytes where {count} numbers of 4 bytes should be")
    return np.frombuffer(data, kind, count), memoryview(data)[size:]


def _cut(data: memoryview, lengths: np.ndarray) -> list[bytes]:
    """Pieces of these lengths, which must make up all of the data."""
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    whole = ends[-1] if ends else 0
    if whole != len(data):
        raise WireError(f"{len(data)} bytes follow the lengths, which add up to {whole}")
    return [bytes(data[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
