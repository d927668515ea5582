"""A trained model of users as evaluation asks it: exactly, and as it is served through an index."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rec.artifacts import join, seal
from rec.batch import SequenceBatch
from rec.contract import Interests
from rec.retrieval.build import build_index
from rec.retrieval.index import Index
from rec.retrieval.interests import UserInterests, recall_interests
from rec.retrieval.queries import MAX_EXCLUDED
from rec.retrieval.spec import IndexConfig
from rec.runtime.item_vectors import write_vectors
from rec.runtime.ranking_data import RankedItems, position_of


class SequenceEncoder(Protocol):
    """What a loaded "sequence-encoder" artifact does."""

    @property
    def item_ids(self) -> list[str]:
        """M ids, in the order of its vectors."""
        ...

    def encode_user(self, histories: Sequence[Sequence[str]]) -> Interests:
        """(B, K, D) and (B, K) of histories of item ids, oldest first; unknown ids are passed over
        and a user it knows nothing of has weights of 0."""
        ...

    def item_vectors(self) -> Tensor:
        """(M, D), to be compared with interests by inner product."""
        ...


class EncoderScorer:
    """score(u, i) = the highest inner product of i's vector and an active interest of u.

    Items that the encoder does not know score -inf, the lowest there is. A user of whom it knows
    nothing has one score for all, so retrieves nothing.

    Args:
        encoder: the model.
        items: of the rows, whose item_index histories and scores are in.
    """

    def __init__(self, encoder: SequenceEncoder, items: RankedItems) -> None:
        self.encoder, self.items = encoder, items
        self.ids = np.array(items.item_ids.to_pylist(), object)
        theirs = position_of(pa.array(encoder.item_ids, pa.string()), items.item_ids)
        self._known, self._theirs = theirs >= 0, theirs
        self._vectors = encoder.item_vectors().float()
        self._all_known = np.array_equal(theirs, np.arange(len(encoder.item_ids)))
        self.num_unknown_events = 0

    @property
    def num_unknown_items(self) -> int:
        return int((~self._known).sum())

    def encode(self, batch: SequenceBatch) -> Interests:
        """Interests of histories in the rows' item_index."""
        index = batch.item_index.numpy()
        self.num_unknown_events += int((~self._known[index]).sum())
        ends = np.cumsum(batch.lengths.numpy())[:-1]
        with torch.inference_mode():
            return self.encoder.encode_user(
                [part.tolist() for part in np.split(self.ids[index], ends)]
            )

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32."""
        interests = self.encode(batch)
        vectors, active = interests.vectors.float(), interests.weights > 0
        best = torch.full((len(batch), len(self._vectors)), -torch.inf, device=vectors.device)
        for k in range(vectors.shape[1]):  # one after the other: all at once would be K chunks
            products = vectors[:, k] @ self._vectors.T
            best = torch.maximum(best, products.masked_fill_(~active[:, k, None], -torch.inf))
        scores = best.cpu()
        if not self._all_known:
            known = torch.from_numpy(self._known)
            scores = torch.full((len(batch), len(self.items)), -torch.inf)
            scores[:, known] = best.cpu()[:, torch.from_numpy(self._theirs)[known]]
        return scores.masked_fill(~active.any(dim=1)[:, None].cpu(), 0.0)

    def known_vectors(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(n,) rows' item_index of items it knows, and their (n, D) vectors."""
        known = np.flatnonzero(self._known)
        return known, self._vectors.cpu().numpy()[self._theirs[known]].astype(np.float32)


class ServedLists:
    """The lists that a user is served: interests through an index of the item vectors.

    Args:
        scorer: whose interests and vectors.
        index: of its items, by item id.
    """

    def __init__(self, scorer: EncoderScorer, index: Index) -> None:
        self.scorer, self.index = scorer, index
        self._position = {item_id: at for at, item_id in enumerate(scorer.ids)}

    def lists(
        self, batch: SequenceBatch, k: int, *, exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(B, k) item_index, best first, -1 where a list is shorter, and their scores.

        The latest MAX_EXCLUDED events of a history are left out where the seen are. Items that all
        have one score are in no order, and the list is empty. So k should be at least 2.
        """
        interests = self.scorer.encode(batch)
        vectors, weights = (part.float().cpu().numpy() for part in interests)
        finite = np.asarray(np.isfinite(vectors).all(axis=2))  # an index takes no other
        vectors, weights = np.where(finite[:, :, None], vectors, 0), np.where(finite, weights, 0)
        users = [UserInterests(v, w) for v, w in zip(vectors, weights, strict=True)]
        exclude = None
        if exclude_seen:
            recent = batch.latest(MAX_EXCLUDED)
            ends = np.cumsum(recent.lengths.numpy())
            events = self.scorer.ids[recent.item_index.numpy()]
            exclude = [list(set(part)) for part in np.split(events, ends[:-1])]
        found = recall_interests(self.index, users, k, by="score", exclude=exclude)
        lists = np.full((len(batch), k), -1, np.int64)
        scores = np.zeros((len(batch), k), np.float32)
        for row, recalled in enumerate(found):
            if len(np.unique(recalled.scores)) > 1:
                lists[row, : len(recalled.ids)] = [self._position[i] for i in recalled.ids]
                scores[row, : len(recalled.ids)] = recalled.scores
        return lists, scores


def index_of(scorer: EncoderScorer, config: IndexConfig) -> Index:
    """An index of the encoder's items in memory, made as jobs.index makes one.

    Raises:
        IndexBuildError: the vectors are not finite, or FAISS refuses them.
    """
    columns, vectors = scorer.known_vectors()
    item_ids = scorer.items.item_ids.take(pa.array(columns))
    with tempfile.TemporaryDirectory(prefix="raycall-served-") as folder:
        table_uri, index_uri = join(folder, "vectors"), join(folder, "index")
        write_vectors(join(table_uri, "v1", "part-00000.parquet"), item_ids, vectors)
        seal(table_uri, "v1", "embedding-table")
        build_index(table_uri, index_uri, config)
        return Index.open(index_uri)
