"""Users' histories to items for them: vectors of users, an index of items. Knows nothing of Ray or
HTTP.

What is recommended is what `rec.runtime.ranking_encoder.ServedLists` judges: the items of highest
inner product with an interest of the user, those that were seen left out.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rec.artifacts import ArtifactError
from rec.config import Config
from rec.retrieval.index import Index
from rec.retrieval.interests import Recalled, UserInterests, recall_interests
from rec.retrieval.queries import MAX_EXCLUDED
from serve_apps.batcher import Batcher
from serve_apps.errors import ApiError
from serve_apps.histories import Histories, PopularItem
from serve_apps.recommend_gateway import Asked, Recommended
from serve_apps.versions import same


class Places(Config):
    """URIs of the artifacts that serve together, or their versions as they were deployed."""

    encoder: str  # "sequence-encoder"
    index: str  # "index" of its items
    rows: str  # "sequence-rows"


class Recommender:
    """One encoder, the index of its items and users' histories, all in memory.

    Args:
        uris: of the artifacts.
        deployed: their versions; others, published since, are refused.
        max_batch, max_wait_s: as for `Batcher`.
        device: where the encoder runs.

    Raises:
        ArtifactError: an artifact cannot be read, or they do not belong together.
    """

    def __init__(
        self,
        uris: Places,
        deployed: Places,
        *,
        max_batch: int,
        max_wait_s: float,
        device: str = "cpu",
    ) -> None:
        from rec.models.sequence.encoder import load_encoder  # torch: not for the gateway

        self._encoder = load_encoder(uris.encoder, device)
        same(uris.encoder, self._encoder.version, deployed.encoder)
        self._index = Index.open(uris.index, model=self._encoder.version)
        same(uris.index, self._index.version, deployed.index)
        self._histories = Histories(uris.rows)
        same(uris.rows, self._histories.version, deployed.rows)
        self._known = self._encoder.known_items()
        if self._known.isdisjoint(self._histories.item_ids):
            raise ArtifactError(
                f"{uris.rows}: has none of the items of {uris.encoder}; give the rows that the "
                "encoder was trained on, or later ones of the same items"
            )
        self._popular = self._of_the_index(self._histories.popular)
        self._max_batch, self._max_wait_s = max_batch, max_wait_s
        self._batcher: Batcher[Sequence[str], UserInterests] | None = None
        # each search runs on one OpenMP thread, and FAISS releases the GIL
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="recall")
        canary = self._encode([self._encoder.item_ids[:1]])[0]
        self._expected = recall_interests(self._index, [canary], 1, by="score")[0]

    def _of_the_index(self, items: Sequence[PopularItem]) -> list[PopularItem]:
        found = self._index.locate([item.item_id for item in items])
        return [item for item, rows in zip(items, found, strict=True) if len(rows)]

    async def recommend(self, asked: Asked) -> Recommended:
        """The items for one user, the best first; fewer than k where no more are left.

        Of whom the model knows nothing, what is popular is shown. The latest of the seen items are
        left out, as many as make MAX_EXCLUDED with those of the request.

        Raises:
            ApiError: 404, the request gives a history, and the model knows none of its items.
        """
        history = self._histories.of(asked.user or "") if asked.history is None else asked.history
        num_known = sum(item_id in self._known for item_id in history)
        if asked.history and not num_known:
            raise ApiError(
                404,
                "unknown_items",
                f"history: model {self._encoder.version} knows none of its {len(history)} items; "
                "an empty history asks for what is popular",
            )
        exclude = set(asked.exclude)
        if asked.exclude_seen:
            latest = dict.fromkeys(reversed(history))
            exclude.update(itertools.islice(latest, MAX_EXCLUDED - len(exclude)))
        counts = num_known, len(history) - num_known
        versions = self._encoder.version, self._index.version
        if not num_known:
            left = (item for item in self._popular if item.item_id not in exclude)
            shown = list(itertools.islice(left, asked.k))
            ids, events = [item.item_id for item in shown], [float(i.num_events) for i in shown]
            return Recommended(ids, events, "popular", *counts, *versions)
        user = await self._interests(history)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._recall, user, asked.k, exclude)
        return Recommended(found.ids.tolist(), found.scores.tolist(), "model", *counts, *versions)

    async def canary(self) -> None:
        """Raises ApiError unless a small history gives what it gave when all was loaded."""
        user = await self._interests(self._encoder.item_ids[:1])
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._recall, user, 1, set())
        same_size = len(found.scores) == len(self._expected.scores)
        if not same_size or not np.allclose(found.scores, self._expected.scores, 1e-3, 1e-5):
            raise ApiError(
                503,
                "unhealthy",
                f"the canary history gives {found.ids.tolist()} at {found.scores.tolist()}, "
                f"expected {self._expected.ids.tolist()} at {self._expected.scores.tolist()}",
            )

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        self._threads.shutdown(wait=False)

    async def _interests(self, history: Sequence[str]) -> UserInterests:
        if self._batcher is None:  # here, because it belongs to the running loop
            self._batcher = Batcher(self._encode, self._max_batch, self._max_wait_s)
        return await self._batcher.submit(history)

    def _encode(self, histories: Sequence[Sequence[str]]) -> list[UserInterests]:
        vectors, weights = (
            part.float().cpu().numpy() for part in self._encoder.encode_user(histories)
        )
        return [UserInterests(*one) for one in zip(vectors, weights, strict=True)]

    def _recall(self, user: UserInterests, k: int, exclude: set[str]) -> Recalled:
        return recall_interests(self._index, [user], k, by="score", exclude=[list(exclude)])[0]
