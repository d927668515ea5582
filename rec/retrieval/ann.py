"""FAISS: training, filling, searching and storing one inner-product index; see also `exact`.

FAISS itself is silent where it should not be (NaN is accepted, k is unbounded, a wrong dimension
is a bare AssertionError); `rec.retrieval.index` checks before it calls this.
"""

from __future__ import annotations

import sys
from functools import cached_property
from threading import Lock
from typing import Any

import faiss
import numpy as np
from faiss import swig_ptr
from numpy import empty, float32, int64

from rec.retrieval import blocks
from rec.retrieval.aligned import align
from rec.retrieval.effort import NEAR_TEN, Effort, search_params

_METRIC = faiss.METRIC_INNER_PRODUCT
_CANDIDATES = 1 << 22  # to be re-ranked at a time, 12 bytes each
_faiss: Any = faiss  # its Python wrappers take arguments that its generated types do not know


class Ann:
    """A FAISS index over rows 0, 1, 2, ... in the order they are added; inner product."""

    def __init__(self, index: faiss.Index) -> None:
        self._owner = index  # what downcast_index returns does not keep it alive
        self._index: Any = faiss.downcast_index(index)
        self._search = self._index.search_c
        self._ivf: Any = faiss.try_extract_index_ivf(index)
        self._refine: Any = self._index if isinstance(self._index, faiss.IndexRefine) else None
        # read once: each look through FAISS's wrapper costs a search half a microsecond
        self.dim: int = self._index.d
        self.num_lists: int = self._ivf.nlist if self._ivf is not None else 0  # 0: has no lists
        self.is_graph = isinstance(self._index, faiss.IndexHNSW)
        # codes without lists are all compared anyway; of additive ones FAISS filters none
        codes = None if self._ivf is None else faiss.downcast_index(self._ivf)
        # FAISS reads four-bit codes in lists without what decodes them, and decodes through nothing
        self.decodes = self._refine is not None or not isinstance(codes, faiss.IndexIVFFastScan)
        additive = isinstance(codes, faiss.IndexIVFAdditiveQuantizer)
        self.takes_bits = self.is_graph or (self.num_lists > 0 and not additive)
        self._has_map = self._ivf is None or self.refines
        self._making_map, self._was_read = Lock(), False
        self._moved: list[np.ndarray] = []  # what FAISS has but a view of
        self.effort = Effort()

    @classmethod
    def make(cls, factory: str, dim: int) -> Ann:
        """An empty index by FAISS factory string. Raises ValueError where FAISS cannot read it."""
        if dim < 1:  # FAISS makes one, and divides by it
            raise ValueError(f"vectors of {dim} values, expected at least 1")
        try:
            return cls(faiss.index_factory(dim, factory, _METRIC))
        except RuntimeError as error:
            reason = str(error).split(":")[-1].strip()
            raise ValueError(f"FAISS factory {factory!r} of dimension {dim}: {reason}") from error

    @classmethod
    def read(cls, path: str, mmap: bool = False) -> Ann:
        """Load into memory to be searched, or map the file: a mapped file must never be written
        again, only replaced or removed, or the next search of it ends the process."""
        ann = cls(faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC if mmap else 0))
        ann._was_read = True
        if not mmap:
            ann._align()
        return ann

    @classmethod
    def from_bytes(cls, data: bytes) -> Ann:
        return cls(faiss.deserialize_index(np.frombuffer(data, np.uint8)))

    def to_bytes(self) -> bytes:
        return faiss.serialize_index(self._index).tobytes()

    def write(self, path: str) -> None:
        """Raises OSError where the disk is full."""
        with open(path, "wb") as file:  # FAISS itself does not say what it loses on closing
            faiss.write_index(self._index, _faiss.PyCallbackIOWriter(file.write))

    @property
    def size(self) -> int:
        return self._index.ntotal

    @property
    def is_trained(self) -> bool:
        return self._index.is_trained

    @property
    def is_flat(self) -> bool:
        """Every row is compared in full: search is exact."""
        return isinstance(self._index, faiss.IndexFlat)

    @property
    def refines(self) -> bool:
        """Candidates are re-ranked by finer codes, so that k_factor means something."""
        return self._refine is not None

    @property
    def decodes_at_once(self) -> bool:
        """Holds a code of every row in order, and decodes many of them as one."""
        return self._coded is not None

    @cached_property
    def finds_all_lists(self) -> bool:
        """Asked for all lists, finds them: a graph of their centres may not lead to some."""
        quantiser = None if self._ivf is None else faiss.downcast_index(self._ivf.quantizer)
        return isinstance(quantiser, faiss.IndexFlat)

    @cached_property
    def compares_in_lists(self) -> bool:
        """Looking into all lists compares all rows, as `reconstruct` gives them."""
        return isinstance(self._index, faiss.IndexIVFScalarQuantizer) and self.finds_all_lists

    @cached_property
    def keeps_vectors(self) -> bool:
        """Vectors are held in full: `reconstruct` gives them as they were added."""
        held = faiss.downcast_index(self._refine.refine_index) if self.refines else self._index
        return isinstance(held, faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexHNSWFlat)

    @property
    def effort(self) -> Effort:
        """Of a search that asks for none. Set before the index is shared between threads."""
        return self._effort

    @effort.setter
    def effort(self, value: Effort) -> None:
        self._effort = value
        self.enough_for = sys.maxsize  # the greatest k; the lists should hold some times as many
        if self._ivf is not None:
            self._ivf.nprobe = value.nprobe
            self.enough_for = value.nprobe * self.size // (4 * max(1, self.num_lists))
            if value.grows:
                self.enough_for = min(self.enough_for, NEAR_TEN)
        if self._refine is not None:
            self._refine.k_factor = value.k_factor
        if self.is_graph:
            self._index.hnsw.efSearch = self.enough_for = value.ef

    def _align(self) -> None:
        """Move centroids, codes and vectors to where a cache line begins."""
        held: list[Any] = [self._index]
        held += [self._ivf.quantizer] if self._ivf is not None else []
        held += [self._refine.refine_index] if self.refines else []
        held += [self._index.storage] if self.is_graph else []
        self._moved += align(held)

    def train(self, vectors: np.ndarray) -> None:
        """Learn from a sample; the coarse centroids on all GPUs where FAISS finds some."""
        if self._ivf is None or not getattr(faiss, "get_num_gpus", int)():
            self._index.train(vectors)
            return
        on_gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlat(self._ivf.d, _METRIC))
        self._ivf.clustering_index = on_gpus
        try:
            self._index.train(vectors)
        finally:
            self._ivf.clustering_index = None

    def add(self, vectors: np.ndarray) -> None:
        """Raises ValueError where the index was read: FAISS would end the process."""
        if self._was_read:
            raise ValueError("an index that was read takes no more rows; fill one anew")
        self._index.add(vectors)

    def merge(self, other: Ann) -> None:
        """Append the rows of `other`, which was trained with this one, and is of no use then.

        Raises:
            ValueError: FAISS cannot merge this kind (graphs).
        """
        parts = [(self._index, other._index)]
        if self.refines:
            parts = [
                (faiss.downcast_index(mine), faiss.downcast_index(theirs))
                for mine, theirs in (
                    (self._refine.base_index, other._refine.base_index),
                    (self._refine.refine_index, other._refine.refine_index),
                )
            ]
        try:
            for mine, theirs in parts:
                lists, others = map(faiss.try_extract_index_ivf, (mine, theirs))
                if lists is not None and blocks.are_in(lists):
                    mine.check_compatible_for_merge(theirs)
                    blocks.append(lists, others)
                    mine.ntotal = lists.ntotal
                else:
                    mine.merge_from(theirs, 0 if lists is None else mine.ntotal)
        except RuntimeError as error:
            raise ValueError(
                f"FAISS cannot merge shards of {type(self._index).__name__}; keep them apart "
                f"(merge=false): {error}"
            ) from error
        if self.refines:
            self._refine.ntotal = self._refine.base_index.ntotal

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        effort: Effort | None = None,
        bits: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, k) rows, -1 where fewer were found, and (B, k) scores, best first.

        Args:
            vectors: (B, D) float32, contiguous.
            k: at least 1.
            effort: None = as set.
            bits: a bit a row, lowest first (`np.packbits`), 1 = may be found; where `takes_bits`.
        """
        num = len(vectors)
        if num > 1 and self._refine is not None:
            most = int(_CANDIDATES // (k * (effort or self._effort).k_factor)) or 1
            if num > most:
                parts = (vectors[at : at + most] for at in range(0, num, most))
                found = [self.search(part, k, effort, bits) for part in parts]
                rows, scores = map(np.concatenate, zip(*found, strict=True))
                return rows, scores
        params = None
        if effort is not None or bits is not None:
            selector = None if bits is None else _faiss.IDSelectorBitmap(bits)
            params = search_params(self._index, effort or self._effort, selector)
        scores, rows = empty((num, k), float32), empty((num, k), int64)
        self._search(num, swig_ptr(vectors), k, swig_ptr(scores), swig_ptr(rows), params)
        return rows, scores

    def first_look(self, vectors: np.ndarray, k: int, effort: Effort) -> tuple[Any, Any]:
        """As `search`, where it `refines`, before the candidates are re-ranked."""
        params = search_params(self._refine.base_index, effort, None)
        return self._refine.base_index.search(vectors, k, params=params)[::-1]

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) vectors as the index stores them: approximate where it quantises. For inverted
        lists the first call makes a map of rows to places (8 bytes a row)."""
        if (held := self._coded) is not None:
            # one after the other FAISS takes seventeen times as long to decode 8-bit codes
            codes = np.zeros(0, np.uint8)  # of no rows FAISS makes floats
            if held.codes.size():
                codes = faiss.rev_swig_ptr(held.codes.data(), held.codes.size())
            return held.sa_decode(codes.reshape(-1, held.code_size)[rows])
        if not self._has_map:
            with self._making_map:
                if not self._has_map:
                    self._ivf.make_direct_map()
                    self._has_map = True
        return self._index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))

    @cached_property
    def _coded(self) -> Any:
        """What holds a code of each row in order; None where nothing does, or holds vectors."""
        held = faiss.downcast_index(self._refine.refine_index) if self.refines else self._index
        is_codes = isinstance(held, faiss.IndexFlatCodes) and not isinstance(held, faiss.IndexFlat)
        return held if is_codes else None

    def nearest_lists(self, vectors: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, num) lists in the order they are looked into, or -1, and their centres' scores."""
        return self._ivf.quantizer.search(self.turned(vectors), num)[::-1]

    def list_scores(self, vectors: np.ndarray) -> np.ndarray:
        """(B, num_lists) scores of the centres of the inverted lists."""
        return faiss.pairwise_distances(self.turned(vectors), self._centres, _METRIC)

    @cached_property
    def _centres(self) -> np.ndarray:
        return self.centroids()  # made twice at worst

    def turned(self, vectors: np.ndarray) -> np.ndarray:
        """As the quantiser takes them."""
        for turn in self._turns:
            vectors = turn.apply(vectors)
        return vectors

    @cached_property
    def _turns(self) -> list[Any]:
        outer = faiss.downcast_index(self._refine.base_index) if self.refines else self._index
        if not isinstance(outer, faiss.IndexPreTransform):
            return []
        chain: Any = outer.chain
        return [faiss.downcast_VectorTransform(chain.at(n)) for n in range(chain.size())]

    def list_of_rows(self) -> np.ndarray:
        """(size,) int32: the inverted list of each row."""
        lists, stored = np.zeros(self.size, np.int32), self._ivf.invlists
        for number in range(self.num_lists):
            if count := stored.list_size(number):
                ids = stored.get_ids(number)
                lists[faiss.rev_swig_ptr(ids, count)] = number
                stored.release_ids(number, ids)
        return lists

    def stored(self, lists: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(n, D) vectors by place in lists, turned; by row it would take a map of all."""
        vectors = np.empty((len(lists), self._ivf.d), np.float32)
        for vector, number, place in zip(vectors, lists.tolist(), places.tolist(), strict=True):
            self._ivf.reconstruct_from_offset(number, place, swig_ptr(vector))
        return vectors

    def centroids(self) -> np.ndarray:
        """(num_lists, D) centres of the inverted lists; (0, D) where there are none."""
        if self._ivf is None:
            return np.zeros((0, self.dim), np.float32)
        return self._ivf.quantizer.reconstruct_n(0, self._ivf.nlist)
