"""Encoder and index are held to each other, before serving and when loaded."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rec.artifacts import ArtifactError
from serve_apps.board import MemoryBoard
from serve_apps.embed import Embedder
from serve_apps.errors import ApiError
from serve_apps.follower import Follower
from serve_apps.gateway import Content
from serve_apps.knn import Searcher
from serve_apps.releases import Placed, Release
from serve_apps.versions import content_release, match


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


def test_a_replica_gives_no_answer_of_another_version(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_apps import app
    from serve_apps.releases import Deployed

    release = content_release(served.encoder_uri, served.index_uri)
    board = MemoryBoard()

    def follow(deployed: Deployed, **how: Any) -> Follower[Any]:
        return Follower(board, f"replica {len(board.keys(''))}", deployed.first, **how)

    monkeypatch.setattr(app, "follow", follow)
    monkeypatch.setattr(app, "own_device", lambda: "cpu")
    deployed = Deployed(first=release).model_dump()
    args = app.ServeArgs(encoder=served.encoder_uri, index=served.index_uri).model_dump()

    async def replica(deployment: Any, *about: Any) -> Handle:
        made = object.__new__(deployment.func_or_class)
        await made.__init__(*about)
        return Handle(made)

    async def main() -> None:
        replicas: Any = (
            await replica(app.Encoder, args, deployed),
            await replica(app.Knn, deployed),
        )
        settings = app.ServeArgs.model_validate(args)
        backend = app.ServeBackend(*replicas, release, settings)
        vectors = await backend.encode([Content("x", served.texts[3], None)])
        found = await backend.search(vectors, 3, exclude_self=False)
        assert (len(found.results[0].ids), found.index_version) == (3, release.index.version)
        await backend.canary()
        manifest = release.index.manifest.model_copy(update={"version": "0" * 16})
        other = Placed(uri="elsewhere", manifest=manifest)
        later = app.ServeBackend(*replicas, Release(encoder=other, index=other), settings)
        for call in (
            later.encode([Content("x", served.texts[3], None)]),
            later.search(vectors, 3, exclude_self=False),
        ):
            with pytest.raises(ApiError, match="version 0000000000000000 is not held") as told:
                await call
            assert (told.value.status, told.value.retry_after_s) == (503, 1)

    asyncio.run(main())


def test_a_gateway_that_holds_all_itself_answers_by_the_deadline(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_apps import app

    monkeypatch.setattr(app, "own_device", lambda: "cpu")
    release = content_release(served.encoder_uri, served.index_uri)
    settings = app.ServeArgs(encoder=served.encoder_uri, index=served.index_uri)
    content = [Content("x", served.texts[3], None)]

    async def main() -> None:
        backend = app.ServeBackend(None, None, release, settings)
        vectors = await backend.encode(content)
        np.testing.assert_allclose(vectors[0], served.encoder.encode_texts(served.texts[3:4])[0])
        found = await backend.search(vectors, 3, exclude_self=False)
        assert (len(found.results[0].ids), found.index_version) == (3, release.index.version)
        await backend.canary()
        await backend.close()
        hasty = settings.model_copy(update={"timeout_s": 1e-6})
        with pytest.raises(ApiError, match="no answer within") as told:
            await app.ServeBackend(None, None, release, hasty).encode(content)
        assert told.value.status == 504

    asyncio.run(main())


def test_a_version_is_found_though_another_was_published_since(
    served: Any, publish_index: Callable[..., str], tmp_path: Path
) -> None:
    """So that a replica that starts after a publication takes the version in use."""
    uri = publish_index(tmp_path, served.ids, served.vectors, served.encoder.version)
    old = content_release(served.encoder_uri, uri)
    shutil.rmtree(tmp_path / "embeddings")
    publish_index(tmp_path, served.ids[:5], served.vectors[:5], served.encoder.version)
    new = content_release(served.encoder_uri, uri)
    assert new.index.version != old.index.version
    for release, size in ((old, 12), (new, 5)):
        index = release.index
        assert len(Searcher(uri, index.version, index.manifest)._index) == size


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


def test_bfloat16_gives_nearly_the_same_unit_vectors(served: Any) -> None:
    async def vectors(bf16: bool) -> np.ndarray:
        embedder = Embedder(
            served.encoder_uri, served.encoder.version, max_batch=8, max_wait_s=0.001, bf16=bf16
        )
        embedder.probe()
        pairs = zip(served.texts, served.pictures, strict=True)
        found = await embedder.encode([Content("x", *pair) for pair in pairs])
        await embedder.close()
        return found

    exact, near = asyncio.run(vectors(False)), asyncio.run(vectors(True))
    assert near.dtype == np.float32
    assert (exact != near).any()
    np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, atol=1e-3)
    assert (exact * near).sum(1).min() > 0.999
