"""Where in memory FAISS's arrays lie.

Where malloc puts them each load by AVX-512 touches two cache lines: searching the same index took
up to an eighth longer by where its centroids happened to lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

_LINE = 64  # bytes of a cache line
_MOST_MOVED = 256 << 20  # bytes: what is moved stands in memory twice meanwhile
_faiss: Any = faiss  # its Python wrappers take arguments that its generated types do not know


def align(indices: Sequence[faiss.Index]) -> list[np.ndarray]:
    """Move the codes of these to where a cache line begins; returns the arrays that they then lie
    in, to be kept as long as the indices."""
    arrays: list[np.ndarray] = []
    for index in map(faiss.downcast_index, indices):
        if isinstance(index, faiss.IndexFlatCodes) and index.codes.size() <= _MOST_MOVED:
            codes: Any = index.codes
            moved = np.empty(codes.size() + _LINE, np.uint8)
            moved = moved[-moved.ctypes.data % _LINE :][: codes.size()]
            moved[:] = faiss.rev_swig_ptr(codes.data(), codes.size())
            view = _faiss.MaybeOwnedVectorUInt8.create_view
            index.codes = view(faiss.swig_ptr(moved), codes.size(), codes.owner)
            arrays.append(moved)
    return arrays
