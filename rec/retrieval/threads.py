"""OpenMP threads of FAISS."""

from __future__ import annotations

import os

import faiss

omp_get_max_threads = faiss.omp_get_max_threads  # for calls by this thread


class omp_threads:
    """OpenMP threads of FAISS calls by this thread meanwhile; None = all that the process may use.

    Put back afterwards: torch reads the same OpenMP runtime, so a search would slow it down.
    """

    __slots__ = ("_before", "_num_threads")

    def __init__(self, num_threads: int | None) -> None:
        self._num_threads = num_threads or len(os.sched_getaffinity(0))

    def __enter__(self) -> None:
        self._before = faiss.omp_get_max_threads()
        if self._before != self._num_threads:
            faiss.omp_set_num_threads(self._num_threads)

    def __exit__(self, *error: object) -> None:
        if self._before != self._num_threads:
            faiss.omp_set_num_threads(self._before)
