"""Encoder and index are held to each other, before serving and when loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rec.artifacts import ArtifactError
from serve_apps.embed import Embedder
from serve_apps.errors import ApiError
from serve_apps.gateway import Content
from serve_apps.knn import Searcher
from serve_apps.versions import match


def test_a_pair_that_belongs_together(served: Any) -> None:
    version = match(served.encoder_uri, served.index_uri)
    assert version.model_version == served.encoder.version
    assert (version.dim, version.num_items) == (16, 12)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [("0123456789abcdef", "vectors of encoder 0123456789abcdef"), (None, "no record")],
)
def test_another_models_index_is_refused(
    served: Any,
    publish_index: Callable[..., str],
    tmp_path: Path,
    encoder: str | None,
    said: str,
) -> None:
    index = publish_index(tmp_path, served.ids, served.vectors, encoder)
    with pytest.raises(ArtifactError, match=said) as refusal:
        match(served.encoder_uri, index)
    assert served.encoder.version in str(refusal.value)
    assert "build the index again" in str(refusal.value)


def test_artifacts_in_each_others_place_are_refused(served: Any) -> None:
    with pytest.raises(ArtifactError, match="a 'index' artifact, expected 'content-encoder'"):
        match(served.index_uri, served.encoder_uri)


def test_what_was_published_since_is_refused(served: Any) -> None:
    with pytest.raises(ArtifactError, match="published again"):
        Embedder(served.encoder_uri, "0" * 16, max_batch=4, max_wait_s=0.001)
    with pytest.raises(ArtifactError, match="published again"):
        Searcher(served.index_uri, "0" * 16)


class Handle:
    """Calls a deployment's methods in this process, as Serve's handle calls a replica's."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._replica, name))


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
def test_a_gateway_and_replicas_of_two_versions_give_no_answer(served: Any) -> None:
    """While a new version is rolled out, each gateway reaches replicas of both."""
    from serve_apps.app import Encoder, Knn, ServeArgs, ServeBackend

    own = match(served.encoder_uri, served.index_uri)
    args = ServeArgs(encoder=served.encoder_uri, index=served.index_uri).model_dump()

    async def replica(deployment: Any, version: str) -> Handle:
        made = object.__new__(deployment.func_or_class)
        await made.__init__(args, version)
        return Handle(made)

    async def main() -> None:
        encoder = await replica(Encoder, own.model_version)
        knn = await replica(Knn, own.index_version)
        backend: Any = ServeBackend(encoder, knn, own.model_version, 30)  # pyright: ignore[reportArgumentType]
        vectors = await backend.encode([Content("x", served.texts[3], None)])
        found = await backend.search(vectors, 3, exclude_self=False)
        assert (len(found.results[0].ids), found.index_version) == (3, own.index_version)
        later: Any = ServeBackend(encoder, knn, "0" * 16, 30)  # pyright: ignore[reportArgumentType]
        for call in (
            later.encode([Content("x", served.texts[3], None)]),
            later.search(vectors, 3, exclude_self=False),
        ):
            with pytest.raises(ApiError, match=f"{own.model_version} answers where 0000") as told:
                await call
            assert (told.value.status, told.value.retry_after_s) == (503, 1)

    asyncio.run(main())


def test_joined_batches_give_each_caller_its_own_vectors(served: Any) -> None:
    """Callers with texts of several lengths, with and without pictures, all at once."""
    alone = np.concatenate(
        [
            served.encoder.encode_items([text], [[data] if i % 3 else []])
            for i, (text, data) in enumerate(zip(served.texts, served.pictures, strict=True))
        ]
    )

    async def main() -> list[np.ndarray]:
        embedder = Embedder(
            served.encoder_uri, served.encoder.version, max_batch=8, max_wait_s=0.005
        )
        sizes: list[int] = []
        run = embedder._run
        embedder._run = lambda parts: (sizes.append(len(parts)), run(parts))[1]  # type: ignore[method-assign]
        calls = [
            embedder.encode([Content("x", text, data if i % 3 else None)])
            for i, (text, data) in enumerate(zip(served.texts, served.pictures, strict=True))
        ]
        vectors = await asyncio.gather(*calls)
        await embedder.close()
        assert sum(sizes) == 12
        assert len(sizes) < 6  # they were joined
        return vectors

    np.testing.assert_allclose(np.concatenate(asyncio.run(main())), alone, atol=1e-5)
