"""Users' histories to items for them: vectors of users, an index of items. Knows nothing of Ray or
HTTP.

What is recommended is what `rec.runtime.ranking_encoder.ServedLists` judges: the items of highest
inner product with an interest of the user, those that were seen left out.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from rec.artifacts import ArtifactError
from rec.config import Config
from rec.retrieval.diversity import mmr
from rec.retrieval.errors import FilterError
from rec.retrieval.index import Index
from rec.retrieval.interests import Recalled, UserInterests, recall_interests
from rec.retrieval.queries import MAX_EXCLUDED, MAX_K
from serve_apps.batcher import Batcher
from serve_apps.errors import ApiError, invalid
from serve_apps.histories import Histories, PopularItem
from serve_apps.reasons import Reasons, explain, unit_rows
from serve_apps.recommend_gateway import Asked, History, Recommended
from serve_apps.releases import Release
from serve_apps.versions import same

CANDIDATES = 5  # times as many items to choose different ones from
_AT_ONCE = 1000


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
        release: what was deployed, with whose manifests it is found though other versions were
            published since; None: what is in use.

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
        release: Release | None = None,
    ) -> None:
        from rec.models.sequence.encoder import load_encoder  # torch: not for the gateway

        parts = {} if release is None else {name: part for name, part in release if part}
        manifests = {name: part.manifest for name, part in parts.items()}
        self._encoder = load_encoder(uris.encoder, device, manifests.get("encoder"))
        same(uris.encoder, self._encoder.version, deployed.encoder)
        self._index = Index.open(
            uris.index, model=self._encoder.version, manifest=manifests.get("index")
        )
        same(uris.index, self._index.version, deployed.index)
        self._histories = Histories(uris.rows, manifests.get("rows"))
        same(uris.rows, self._histories.version, deployed.rows)
        self._known = self._encoder.known_items()
        if self._known.isdisjoint(self._histories.item_ids):
            raise ArtifactError(
                f"{uris.rows}: has none of the items of {uris.encoder}; give the rows that the "
                "encoder was trained on, or later ones of the same items"
            )
        self._popular = self._of_the_index(self._histories.popular)
        self._max_batch, self._max_wait_s = max_batch, max_wait_s
        self._batcher: Batcher[Sequence[str], tuple[UserInterests, float]] | None = None
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
            ApiError: 404, the request gives a history, and the model knows none of its items; 422,
                the filter is of attributes that the index does not hold.
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
        spans = _Spans()
        loop = asyncio.get_running_loop()
        if not num_known:
            shown = await loop.run_in_executor(self._threads, self._popular_of, asked, exclude)
            ids, events = [item.item_id for item in shown], [float(i.num_events) for i in shown]
            return Recommended(ids, events, "popular", *counts, *versions)
        user, encode_s = await self._interests(history)
        spans.add("encode", encode_s, waited="batch")
        found, recall_s = await loop.run_in_executor(
            self._threads, self._recall, user, asked, exclude
        )
        spans.add("recall", recall_s, waited="thread")
        if asked.diversity:
            found = await loop.run_in_executor(self._threads, self._diversify, found, asked)
            spans.add("diversify")
        why = None
        if asked.reasons:
            why = await loop.run_in_executor(
                self._threads, self._explain, user, found, history, asked.reasons
            )
            spans.add("explain")
        ids, scores = found.ids.tolist(), found.scores.tolist()
        return Recommended(ids, scores, "model", *counts, *versions, why, spans.done())

    async def history(self, user: str, limit: int) -> History:
        """The latest `limit` events of a user, the newest last; ApiError, 404, where the rows
        know nobody of that name."""
        found = self._histories.of(user)
        if not found:
            raise ApiError(404, "unknown_user", f"user: {user!r} is not in the rows")
        return History(found[-limit:], len(found), self._histories.version)

    async def users(self, prefix: str, limit: int) -> list[tuple[str, int]]:
        """Users whose ids begin with `prefix`, in order of their ids, and the events of each."""
        return self._histories.users(prefix, limit)

    async def canary(self) -> None:
        """Raises ApiError unless a small history gives what it gave when all was loaded."""
        user, _ = await self._interests(self._encoder.item_ids[:1])
        loop = asyncio.get_running_loop()
        asked = Asked([], None, 1)
        found, _ = await loop.run_in_executor(self._threads, self._recall, user, asked, set())
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

    async def _interests(self, history: Sequence[str]) -> tuple[UserInterests, float]:
        """Of one user, and the seconds that their batch took."""
        if self._batcher is None:  # here, because it belongs to the running loop
            self._batcher = Batcher(self._timed, self._max_batch, self._max_wait_s)
        return await self._batcher.submit(history)

    def _timed(self, histories: Sequence[Sequence[str]]) -> list[tuple[UserInterests, float]]:
        since = time.perf_counter()
        found = self._encode(histories)
        seconds = time.perf_counter() - since
        return [(one, seconds) for one in found]

    def _encode(self, histories: Sequence[Sequence[str]]) -> list[UserInterests]:
        vectors, weights = (
            part.float().cpu().numpy() for part in self._encoder.encode_user(histories)
        )
        return [UserInterests(*one) for one in zip(vectors, weights, strict=True)]

    def _explain(
        self, user: UserInterests, found: Recalled, history: Sequence[str], most: int
    ) -> Reasons:
        chosen = [one for one in dict.fromkeys(reversed(history)) if one in self._known]
        return explain(user, found, self._vectors(found.ids), chosen, self._vectors(chosen), most)

    def _vectors(self, item_ids: Iterable[str]) -> np.ndarray:
        place, vectors = self._encoder.places, self._encoder.item_vectors()
        return vectors[[place[one] for one in item_ids]].float().cpu().numpy()

    def _recall(
        self, user: UserInterests, asked: Asked, exclude: set[str]
    ) -> tuple[Recalled, float]:
        """What is recalled, and the seconds that it took."""
        since = time.perf_counter()
        budget = min(MAX_K, CANDIDATES * asked.k) if asked.diversity else asked.k
        with _of_the_filter():
            found = recall_interests(
                self._index,
                [user],
                budget,
                by="score",
                where=asked.where,
                exclude=[list(exclude)],
            )[0]
        return found, time.perf_counter() - since

    def _diversify(self, found: Recalled, asked: Asked) -> Recalled:
        vectors = unit_rows(self._vectors(found.ids))
        chosen = mmr(_from_0_to_1(found.scores), vectors, asked.k, 1 - asked.diversity)
        return Recalled(*(part[chosen] for part in found))

    def _popular_of(self, asked: Asked, exclude: set[str]) -> list[PopularItem]:
        """The k most popular that are not excluded and fit the filter."""
        left = (item for item in self._popular if item.item_id not in exclude)
        shown: list[PopularItem] = []
        while len(shown) < asked.k and (some := list(itertools.islice(left, _AT_ONCE))):
            if asked.where is not None:
                rows = self._index.locate([item.item_id for item in some])
                with _of_the_filter():
                    fit = self._index.fits(np.array([one[0] for one in rows]), asked.where)
                some = [item for item, fits in zip(some, fit, strict=True) if fits]
            shown += some
        return shown[: asked.k]


@contextmanager
def _of_the_filter() -> Iterator[None]:
    try:
        yield
    except FilterError as error:
        raise invalid(f"where: {error}") from error


def _from_0_to_1(scores: np.ndarray) -> np.ndarray:
    """On the scale of similarities, whatever the norms of users and items are."""
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)


class _Spans:
    """Milliseconds of one request's steps, one after the other."""

    def __init__(self) -> None:
        self._begin = self._since = time.perf_counter()
        self._found: dict[str, float] = {}

    def add(self, step: str, work_s: float | None = None, waited: str = "") -> None:
        """A step has ended: it took all the time since the one before, or `work_s` of it, the rest
        of which it waited."""
        now = time.perf_counter()
        took_s, self._since = now - self._since, now
        if work_s is not None:
            self._found[waited] = 1000 * max(0.0, took_s - work_s)
        self._found[step] = 1000 * (took_s if work_s is None else work_s)

    def done(self) -> dict[str, float]:
        return {**self._found, "replica": 1000 * (time.perf_counter() - self._begin)}
