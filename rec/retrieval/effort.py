"""How hard an index looks, as a setting and as FAISS takes it."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import faiss

TEN, HUNDRED = 10, 100  # hits that are tuned for
NEAR_TEN = 16  # hits up to which what is enough for ten is taken
_faiss: Any = faiss  # its Python wrappers take arguments that its generated types do not know


class Effort(NamedTuple):
    """How hard an approximate index looks; a field that the index has no use for is ignored."""

    nprobe: int = 1  # inverted lists looked into for ten hits
    k_factor: float = 1  # candidates re-ranked by the refinement, as a multiple of k
    ef: int = 64  # HNSW's queue
    # by how much a hit may score above its list's centre, for a query of norm 1; for filters
    rise: float = 0.0
    # share of the hits that lists not looked into may be expected to hold; for filters
    missed: float = 0.02
    nprobe_100: int = 0  # inverted lists looked into for a hundred hits; 0 = not known

    @property
    def grows(self) -> bool:
        """More hits than ten take more lists."""
        return self.nprobe_100 > self.nprobe

    def at(self, k: int) -> Effort:
        """For k hits: lists as a power of k, through what was tuned for ten and for a hundred;
        beyond that of the root of k at least, as the further out the more lists are as far."""
        if k <= NEAR_TEN or not self.grows:
            return self
        power = math.log10(self.nprobe_100 / self.nprobe)
        lists = self.nprobe * (k / TEN) ** power
        if k > HUNDRED:
            lists = self.nprobe_100 * (k / HUNDRED) ** max(power, 0.5)
        return self._replace(nprobe=math.ceil(lists - 1e-9))

    @classmethod
    def from_json(cls, text: str) -> Effort:
        """What else it has counts for nothing: older versions had a `margin` whatever the norm."""
        return cls(
            **{name: value for name, value in json.loads(text).items() if name in cls._fields}
        )


def search_params(index: Any, effort: Effort, selector: Any) -> Any:
    """FAISS's search parameters, nested as the index is."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = search_params(index.index, effort, selector)
        return _faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = search_params(index.base_index, effort, selector)
        return _faiss.IndexRefineSearchParameters(
            k_factor=float(effort.k_factor), base_index_params=inner
        )
    if isinstance(index, faiss.IndexIVF):
        return _faiss.SearchParametersIVF(nprobe=int(effort.nprobe), sel=selector)
    if isinstance(index, faiss.IndexHNSW):
        return _faiss.SearchParametersHNSW(efSearch=int(effort.ef), sel=selector)
    return _faiss.SearchParameters(sel=selector)
