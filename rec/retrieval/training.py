"""Train an index on a sample: the quantiser and codebook that all its shards share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rec.retrieval.ann import Ann
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.spec import TRAIN_PER_LIST


def train(factory: str, dim: int, sample: Callable[[int], np.ndarray], place: str) -> bytes:
    """The index, trained and empty.

    Args:
        sample: gives at most so many (n, dim) vectors to learn from.
        place: where they come from, for errors.

    Raises:
        IndexBuildError: FAISS refuses the factory string, or has too few vectors for it.
    """
    try:
        ann = Ann.make(factory, dim)
    except ValueError as error:
        raise IndexBuildError(str(error)) from error
    if not ann.is_trained:
        try:
            ann.train(sample(max(TRAIN_PER_LIST * ann.num_lists, 20_000)))
        except RuntimeError as error:  # for instance more lists than training points
            raise IndexBuildError(f"{place}: FAISS refuses {factory}: {error}") from error
    return ann.to_bytes()
