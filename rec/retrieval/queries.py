"""What an index is asked, checked: errors name the argument."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy import ascontiguousarray, float32, ndarray, vdot

from rec.retrieval.errors import QueryError

MAX_K = 10_000
MAX_EXCLUDED = 10_000
MAX_DEADLINE_S = 86_400
MAX_NORM = 1e18  # of a vector: inner products of two, and sums of many, then fit float32
_MAX_SQUARES = MAX_NORM**2
_FLOAT32 = np.dtype(float32)


def checked(vectors: np.ndarray, k: int, dim: int) -> np.ndarray:
    """`vectors` as FAISS takes them.

    Raises:
        QueryError: k is out of range, or the vectors are not (B, dim) finite numbers, of a norm
            up to `MAX_NORM`.
    """
    if not 1 <= k <= MAX_K:
        raise QueryError(f"k is {k}, expected 1 to {MAX_K}")
    try:
        # one that is masked is an array of another type
        is_plain = type(vectors) is ndarray and vectors.dtype is _FLOAT32
        queries = vectors if is_plain else as_floats(vectors)
        queries = ascontiguousarray(queries)
    except (TypeError, ValueError) as error:
        raise QueryError(f"query vectors are not numbers: {error}") from error
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise QueryError(
            f"query vectors have shape {np.shape(vectors)}, expected (B, {dim}): the index's "
            f"dimension is {dim}"
        )
    # neither NaN nor a sum that overflows is below the bound; and vdot warns of neither
    if not vdot(queries, queries) <= _MAX_SQUARES and (found := unfit(queries)) is not None:
        raise QueryError(f"query {found[0]} has {found[1]}")
    return queries


def unfit(vectors: np.ndarray) -> tuple[int, str] | None:
    """The first of (n, D) float32 vectors that no index takes, and what it has; None = all fit."""
    fine = np.einsum("ij,ij->i", vectors, vectors) <= _MAX_SQUARES  # einsum warns of no overflow
    if fine.all():
        return None
    row = int((~fine).argmax())
    if not np.isfinite(vectors[row]).all():
        return row, "NaN or infinity"
    norm = np.linalg.norm(vectors[row].astype(np.float64))
    return row, f"a norm of {norm:.3g}, expected at most {MAX_NORM:g}: inner products overflow"


def as_floats(vectors: Any) -> np.ndarray:
    """Raises TypeError where it is complex, masked or no number; too large a one becomes
    infinity."""
    if np.ma.is_masked(vectors):
        raise TypeError("some of them are masked")
    with np.errstate(over="ignore"):
        try:
            vectors = np.asarray(vectors)
        except RuntimeError as error:  # a tensor that requires a gradient
            raise TypeError(str(error)) from error
        return vectors.astype(float32, casting="same_kind", copy=False)


def due_at(deadline_s: float | None, has_pool: bool) -> float | None:
    """The moment by `time.monotonic` when an answer is due; None = no deadline."""
    if deadline_s is None:
        return None
    if not has_pool:
        raise QueryError("deadline_s needs an index opened with a pool")
    if not isinstance(deadline_s, Real) or not 0 <= deadline_s <= MAX_DEADLINE_S:
        raise QueryError(
            f"deadline_s is {deadline_s!r}, expected seconds, 0 to {MAX_DEADLINE_S}; None = no "
            f"deadline"
        )
    return time.monotonic() + float(deadline_s)


def excluded(
    exclude: Any, num_queries: int, locate: Callable[[Sequence[str]], list[np.ndarray]]
) -> np.ndarray:
    """(B, widest) rows to leave out, -2 where a query has fewer; `locate` finds the rows of ids."""
    if exclude is None:
        return np.full((num_queries, 0), -2)
    is_scalar = isinstance(exclude, str) or getattr(exclude, "ndim", 1) == 0
    if is_scalar or not hasattr(exclude, "__len__"):
        raise QueryError(f"exclude is {exclude!r}, expected a list of ids for each query")
    if len(exclude) != num_queries:
        raise QueryError(f"{len(exclude)} lists of excluded ids for {num_queries} queries")
    most = max((len(ids) for ids in exclude if hasattr(ids, "__len__")), default=0)
    if most > MAX_EXCLUDED:
        raise QueryError(f"{most} excluded ids for one query, expected at most {MAX_EXCLUDED}")
    found = [np.concatenate([np.zeros(0, np.int64), *locate(item_ids)]) for item_ids in exclude]
    dropped = np.full((num_queries, max(map(len, found), default=0)), -2)
    for place, rows in enumerate(found):
        dropped[place, : len(rows)] = rows
    return dropped


def texts(item_ids: Any) -> list[str]:
    if isinstance(item_ids, str) or not hasattr(item_ids, "__len__"):
        raise QueryError(f"{item_ids!r} in place of a list of ids")
    for item_id in item_ids:
        if not isinstance(item_id, str):
            raise QueryError(f"id {item_id!r} is of type {type(item_id).__name__}, expected str")
    return list(item_ids)


def whole(value: Any, name: str = "k", least: int | None = None, most: int | None = None) -> int:
    """`value` as an int. Raises QueryError by `name` where it is none, or not in the range."""
    try:
        if isinstance(value, bool):  # to Python it is one
            raise TypeError("a truth value")
        number = operator.index(value)
    except TypeError as error:
        raise QueryError(f"{name} is {value!r}, expected a whole number") from error
    if (least is not None and number < least) or (most is not None and number > most):
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise QueryError(f"{name} is {number}, expected {expected}")
    return number


def as_rows(rows: Any, num_rows: int, least: int = 0) -> np.ndarray:
    """`rows` as int64. Raises QueryError where one is none of an index's, or below `least`."""
    found = np.asarray(rows)
    if found.size and found.dtype.kind not in "iu":
        raise QueryError(f"rows are of type {found.dtype}, expected whole numbers")
    if found.size and not (least <= found.min() and found.max() < num_rows):
        row = found[(found < least) | (found >= num_rows)].flat[0]
        raise QueryError(f"row {row} is not there: expected {least} to {num_rows - 1}")
    return found.astype(np.int64, copy=False)
