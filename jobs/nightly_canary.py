"""Whether a new version may be served: asked of the index itself, then of the service.

Nothing here changes what is published; who calls takes a version back that is refused.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from jobs.nightly_plan import LEFT
from rec.artifacts import Manifest, filesystem, join, read_manifest
from rec.client import Client, RequestError
from rec.config import Config
from rec.data.carried import ids_of, parts_of
from rec.retrieval.index import Index

_K = 10
_EQUAL = 1e-3  # of a cosine: an item whose ten nearest are copies of it is found all the same
_ASKED = 8  # fresh items that the service is asked for
_STEP_S = 0.5


class CanaryError(RuntimeError):
    """A new version is not to be served. Says why, and what became of it."""


class CanaryConfig(Config):
    """What a new index has to show."""

    num_items: int = Field(default=200, ge=1)  # of the fresh, and of all, that are looked up
    least_found: float = Field(default=0.95, ge=0, le=1)  # share that are among their own nearest
    max_recall_drop: float = Field(default=0.05, ge=0)  # of recall@10, from the version before
    max_left: float = Field(default=0.2, ge=0, le=1)  # share of items there were that may be gone
    swap_s: float = Field(default=600.0, gt=0)  # how long a service may take to swap


def check_index(
    index: str,
    embeddings: str,
    vectors: str,
    before: Manifest | None,
    config: CanaryConfig,
    last: str | None = None,
) -> dict[str, float]:
    """Look fresh and other items up by their own vectors; what was measured.

    Args:
        embeddings: the table that the index is made of.
        vectors: those of it that are fresh; there may be none.
        before: the version that was in use; None: none was.
        last: the table of the night before; None: there was none.

    Raises:
        CanaryError: too few are found, vectors are missing, more have left than may, or recall is
            lower than before.
    """
    table = read_manifest(embeddings, "embedding-table")
    opened = Index.open(index, model=table.lineage["encoder"])
    expected = table.metrics["num_rows"]
    if len(opened) != expected:
        raise CanaryError(f"{index}: {len(opened):,} vectors, {embeddings} holds {expected:,}")
    if last is not None:
        _check_left(table, embeddings, last, config)
    measured: dict[str, float] = {}
    for name, place in (("fresh", vectors), ("all", embeddings)):
        ids, queries = sample(place, config.num_items)
        if not ids:
            continue
        measured[f"found of {name}"] = share = _found(opened, ids, queries)
        if share < config.least_found:
            raise CanaryError(
                f"{index}: {share:.3f} of {len(ids)} items of {place} are among the {_K} nearest "
                f"to their own vectors, least_found is {config.least_found:g}"
            )
    measured["recall@10"] = recall = opened.manifest.metrics["recall@10"]
    if before is not None:
        was = before.metrics["recall@10"]
        if recall < was - config.max_recall_drop:
            raise CanaryError(
                f"{index}: recall@10 is {recall:.4f}, that of version {before.version} was "
                f"{was:.4f}; max_recall_drop is {config.max_recall_drop:g}"
            )
    return measured


def _check_left(table: Manifest, embeddings: str, last: str, config: CanaryConfig) -> None:
    """Hold how many items of the night before are gone against max_left, however many are new."""
    before = read_manifest(last, "embedding-table")
    were = before.metrics["num_rows"]
    if LEFT in table.metrics:
        left = table.metrics[LEFT]
    elif table.metrics.get("carried"):
        return  # nothing leaves a table that was carried on otherwise
    else:  # all were embedded
        theirs, ours = (
            ids_of(parts_of(last, before), "id"),
            ids_of(parts_of(embeddings, table), "id"),
        )
        left = were - (pc.sum(pc.is_in(theirs, value_set=ours)).as_py() or 0)
    if left > config.max_left * were:
        raise CanaryError(
            f"{embeddings}: {left:,} of the {were:,} items of the night before have left; max_left "
            f"is {config.max_left:g}. Was the delivery whole?"
        )


def _found(index: Index, ids: list[str], queries: np.ndarray) -> float:
    hits = index.search(queries, min(_K, len(index)))
    own = np.einsum("nd,nd->n", queries, queries)
    among = (hits.ids == np.array(ids, object)[:, None]).any(axis=1)
    copies = hits.scores[:, -1] >= own - _EQUAL
    return float((among | copies).mean())


def sample(uri: str, num: int) -> tuple[list[str], np.ndarray]:
    """Up to `num` ids and (n, D) vectors, from the first rows of files all over a table; of an
    empty one (0, 0)."""
    manifest = read_manifest(uri, "embedding-table")
    files, folder = filesystem(join(uri, manifest.root))
    names = sorted(name for name in manifest.files if name.endswith(".parquet"))
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, 64).astype(int))]
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for left, name in zip(range(len(chosen), 0, -1), chosen, strict=True):
        with files.open_input_file(f"{folder}/{name}") as stream, pq.ParquetFile(stream) as source:
            size = -(-(num - len(ids)) // left)  # what small files lack, later ones make up for
            batch = next(source.iter_batches(max(size, 1), columns=["id", "vector"]), None)
        if batch is not None and batch.num_rows and size > 0:
            ids += batch["id"].to_pylist()
            vectors += [np.array(one, np.float32) for one in batch["vector"].to_pylist()]
    return ids, np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def swap(
    client: Client, encoder: str, index: str, fresh: list[str], config: CanaryConfig
) -> dict[str, Any]:
    """Have a running service use these versions; what it says is in use then.

    It is asked first whether it is well, and afterwards for items that are fresh. Where these are
    not found it is led back.

    Args:
        client: with an admin's key.
        fresh: ids of items that the new version has.

    Raises:
        CanaryError: it is not well, refuses the swap, is too slow, or does not find them.
    """
    wanted = read_manifest(encoder).version, read_manifest(index, "index").version
    try:
        client.call("/healthz")
        anything = np.ones((1, client.call("/v1/version")["dim"]), np.float32)
        client.knn(anything, k=1)
        told = client.call("/v1/admin/swap", {"encoder": encoder, "index": index})
        deadline = time.monotonic() + config.swap_s
        while _in_use(told) != wanted:
            last = told["last"]
            if told["preparing"] is None and last is not None and not last["done"]:
                raise CanaryError(f"the service did not swap: {last['message']}")
            if time.monotonic() > deadline:
                raise CanaryError(f"the service has not swapped within {config.swap_s:g} s")
            time.sleep(_STEP_S)
            told = client.call("/v1/admin/versions")
    except RequestError as error:
        raise CanaryError(f"the service did not swap: {error}") from error
    try:
        lost = _not_found(client, fresh[:_ASKED], *wanted)
    except RequestError as error:
        lost = [f"{error}"]
    if lost:
        message = f"the service swapped and does not find {', '.join(lost)}"
        try:
            client.call("/v1/admin/rollback", {})
        except RequestError as error:
            raise CanaryError(f"{message}; it could not be led back: {error}") from error
        raise CanaryError(f"{message}; it was led back")
    return told


def _in_use(told: dict[str, Any]) -> tuple[str, str]:
    return told["current"]["model_version"], told["current"]["index_version"]


def _not_found(client: Client, fresh: list[str], model: str, index: str) -> list[str]:
    lost: list[str] = []
    for item_id in fresh:
        found = client.knn_items([item_id], k=_K, exclude_self=False, model=model, index=index)
        best = found.results[0]
        if item_id not in best.ids and best.scores[-1] < 1 - _EQUAL:
            lost.append(item_id)
    return lost
