"""Train an index on a sample: the quantiser and codebook that all its shards share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rec.retrieval.ann import Ann
from rec.retrieval.effort import Effort
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.spec import TRAIN_PER_LIST

_TRIED = 128


class TooFewError(IndexBuildError):
    """FAISS cannot train on these vectors, most often for they are too few."""

    def __init__(self, place: str, factory: str, reason: str) -> None:
        super().__init__(f"{place}: FAISS refuses {factory}: {reason}")
        self.reason = reason.split(": ")[-1]  # without where in FAISS


def train(factory: str, dim: int, sample: Callable[[int], np.ndarray], place: str) -> bytes:
    """The index, trained and empty.

    Args:
        sample: gives at most so many (n, dim) vectors to learn from.
        place: where they come from, for errors.

    Raises:
        IndexBuildError: FAISS refuses the factory string, has too few vectors for it, or makes of
            it what cannot be filled in parts, searched, read and decoded.
    """
    try:
        ann = Ann.make(factory, dim)
    except ValueError as error:
        raise IndexBuildError(str(error)) from error
    if not ann.is_trained:
        try:
            ann.train(sample(max(TRAIN_PER_LIST * ann.num_lists, 20_000)))
        except RuntimeError as error:  # for instance more lists than training points
            raise TooFewError(place, factory, str(error)) from error
    trained = ann.to_bytes()
    try:
        _try_out(trained, dim)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split(": ")[-1]
        raise IndexBuildError(
            f"FAISS factory {factory!r} makes an index that cannot be used here: {reason}; leave "
            f"that part out, or take factory=auto"
        ) from error
    return trained


def _try_out(trained: bytes, dim: int) -> None:
    """What building and searching does, on vectors by chance: not every kind in FAISS can."""
    vectors = np.random.default_rng(0).standard_normal((2 * _TRIED, dim)).astype(np.float32)
    ann = Ann.from_bytes(trained)
    if not ann.decodes:
        raise ValueError("four-bit codes in lists are not decoded unless re-ranked (add ,RFlat)")
    for part in (vectors[:_TRIED], vectors[_TRIED:]):
        ann.add(part)
    ann = Ann.from_bytes(ann.to_bytes())
    ann.search(vectors[:1], 1)
    if ann.num_lists or ann.is_graph:
        ann.search(vectors[:1], 1, Effort())  # more than is tuned for: a large k, a filter
    ann.reconstruct(np.arange(ann.size))
