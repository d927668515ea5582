"""Inverted lists of four-bit codes, which FAISS stores interleaved, in blocks of 32 rows.

FAISS's own `merge_from` must not be used for them: it takes a list of as many rows as a block has
bytes, or a multiple of it, for one whose last block is full as a list of whole blocks is, copies
the blocks to come whole, and counts those that are there once more: it reads and writes as far past
the end (1.15.1, BlockInvertedLists::add_entries). Here rows are taken out of their blocks and put
into others, each list at a time.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from faiss import rev_swig_ptr, swig_ptr

_faiss: Any = faiss  # its generated types do not know of blocks


def are_in(ivf: Any) -> bool:
    """Whether the lists of this index are of blocks."""
    return isinstance(_faiss.downcast_InvertedLists(ivf.invlists), _faiss.BlockInvertedLists)


def append(ivf: Any, other: Any) -> None:
    """Append the rows of `other`, trained with this one; they are numbered behind its own."""
    mine = _faiss.downcast_InvertedLists(ivf.invlists)
    theirs = _faiss.downcast_InvertedLists(other.invlists)
    for number in range(ivf.nlist):
        if not (count := theirs.list_size(number)):
            continue
        size = mine.list_size(number)
        whole = size - size % mine.n_per_block  # rows of blocks that stay as they are
        codes = np.concatenate(
            [_codes(mine, number, whole, size), _codes(theirs, number, 0, count)]
        )
        mine.resize(number, size + count)
        ids = rev_swig_ptr(mine.get_ids(number), size + count)
        ids[size:] = rev_swig_ptr(theirs.get_ids(number), count)
        ids[size:] += ivf.ntotal
        _put(mine, number, whole, codes)
    ivf.ntotal += other.ntotal


def _codes(lists: Any, number: int, start: int, stop: int) -> np.ndarray:
    """(stop - start, bytes) codes of rows of a list; `start` begins a block."""
    step, places = lists.n_per_block, range(start, stop, lists.n_per_block)
    codes = np.zeros((len(places) * step, lists.packer.code_size), np.uint8)
    stored = _blocks(lists, number)
    for at, place in enumerate(places):
        block = stored[place // step]
        lists.packer.unpack_all(swig_ptr(block), swig_ptr(codes[at * step :]))
    return codes[: stop - start]


def _put(lists: Any, number: int, start: int, codes: np.ndarray) -> None:
    """Store codes of rows from `start`, which begins a block, to the end of a list."""
    step = lists.n_per_block
    codes = np.pad(codes, ((0, -len(codes) % step), (0, 0)))
    stored = _blocks(lists, number)
    for at in range(0, len(codes), step):
        lists.packer.pack_all(swig_ptr(codes[at:]), swig_ptr(stored[(start + at) // step]))


def _blocks(lists: Any, number: int) -> np.ndarray:
    """(blocks, bytes) of a list, as they stand in FAISS's memory."""
    num = -(-lists.list_size(number) // lists.n_per_block)
    if not num:
        return np.zeros((0, lists.block_size), np.uint8)
    held = rev_swig_ptr(lists.get_codes(number), num * lists.block_size)
    return held.reshape(num, lists.block_size)
