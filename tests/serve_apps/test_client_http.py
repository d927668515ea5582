"""The client against a real server of the real applications, without Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from local_backend import LocalBackend, listening

from rec.client import AsyncClient, Client, Content, RequestError
from serve_apps.gateway import Limits, make_app
from serve_apps.recommend import Places, Recommender
from serve_apps.recommend_gateway import RecommendLimits, make_recommend_app
from serve_apps.versions import match, match_users

LIMITS = Limits(max_inputs=4, max_k=20, max_body_bytes=50_000)


@pytest.fixture(scope="module")
def url(served: Any) -> Iterator[str]:
    app = make_app(LocalBackend(served), match(served.encoder_uri, served.index_uri), LIMITS)
    with listening(app) as url:
        yield url


def test_vectors_and_neighbours(served: Any, url: str) -> None:
    contents = [
        served.texts[0],
        served.pictures[1],
        Content(served.texts[2], served.pictures[2]),
    ]
    expected = served.encoder.encode_items(
        [served.texts[0], None, served.texts[2]], [[], [served.pictures[1]], [served.pictures[2]]]
    )
    with Client(url) as client:
        vectors, version = client.embed(contents)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert version == served.encoder.version
        for found in (
            client.knn(served.vectors[3:5], k=4),
            client.knn_items(["item-3", "item-4"], k=4, exclude_self=False),
            client.knn_content([Content(served.texts[i], served.pictures[i]) for i in (3, 4)], k=4),
        ):
            assert found.model_version == served.encoder.version
            for (ids, scores), vector in zip(found.results, served.vectors[3:5], strict=True):
                cosines = served.vectors @ vector
                assert ids == [f"item-{i}" for i in np.argsort(-cosines)[:4]]
                np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:4], atol=1e-5)
                assert scores.dtype == np.float32
        without = client.knn_items(["item-3"], k=20).results[0]
        assert len(without.ids) == len(without.scores) == 11
        assert client.call("/v1/version")["num_items"] == 12


def test_the_asynchronous_client_says_the_same(served: Any, url: str) -> None:
    async def main() -> None:
        async with AsyncClient(url) as client:
            found, same, items, vectors, version = await asyncio.gather(
                client.knn(served.vectors[:2], k=3),
                client.knn_content([Content(served.texts[0], served.pictures[0])], k=3),
                client.knn_items(["item-0"], k=2),
                client.embed([served.texts[5]]),
                client.call("/v1/version"),
            )
        assert found.results[0].ids == same.results[0].ids
        assert found.results[0].ids[1:] == items.results[0].ids
        expected = served.encoder.encode_texts([served.texts[5]])
        np.testing.assert_allclose(vectors.vectors, expected, atol=1e-5)
        assert version["model_version"] == vectors.model_version

    asyncio.run(main())


def test_refusals_are_told(served: Any, url: str) -> None:
    with Client(url) as client:
        for ask, status, code, said in (
            (lambda: client.knn_items(["nobody"]), 404, "unknown_item", "nobody"),
            (lambda: client.knn(np.ones((1, 3), np.float32)), 422, "invalid_request", "16"),
            (lambda: client.knn(served.vectors[:1], k=21), 422, "invalid_request", "1 to 20"),
            (lambda: client.embed(["x"], "another"), 409, "model_mismatch", "'another'"),
            (lambda: client.embed([b"no picture"]), 422, "invalid_request", "not a picture"),
            (lambda: client.embed(["x" * 60_000]), 413, "body_too_large", "50000 bytes"),
            (lambda: client.call("/v1/nothing"), 404, "not_found", "/v1/nothing"),
        ):
            with pytest.raises(RequestError, match=said) as told:
                ask()
            assert (told.value.status, told.value.code) == (status, code)


def test_threads_may_share_a_client(served: Any, url: str) -> None:
    alone = served.encoder.encode_texts(served.texts)
    with Client(url) as client, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda text: client.embed([text]).vectors[0], served.texts * 3))
    np.testing.assert_allclose(found, np.concatenate([alone] * 3), atol=1e-5)


def test_recommendations(recommendable: dict[str, Places]) -> None:
    places = recommendable["sasrec"]
    version = match_users(places.encoder, places.index, places.rows)
    deployed = Places(
        encoder=version.model_version, index=version.index_version, rows=version.rows_version
    )
    made = Recommender(places, deployed, max_batch=8, max_wait_s=0.002)
    app = make_recommend_app(made, version, RecommendLimits())
    with listening(app) as url, Client(url) as client:
        found = client.recommend(["item1", "gone"], k=4, exclude=["item5"])
        assert len(found.ids) == len(found.scores) == 4
        assert (found.source, found.num_known, found.num_unknown) == ("model", 1, 1)
        assert (found.model_version, found.index_version) == tuple(deployed.model_dump().values())[
            :2
        ]
        assert client.recommend(user="nobody").source == "popular"
        with pytest.raises(RequestError, match="exactly one of"):
            client.recommend()

        async def main() -> list[str]:
            async with AsyncClient(url) as other:
                return (await other.recommend(["item1", "gone"], k=4, exclude=["item5"])).ids

        assert asyncio.run(main()) == found.ids


def test_a_connection_that_the_server_has_closed_is_made_anew(served: Any) -> None:
    """As a proxy closes it that is replaced, between two calls and within one."""
    import socket

    closed = threading.Event()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    def serve(listener: socket.socket) -> None:
        for answers in (1, 0, 1):  # one answer, then gone; gone within the call; one answer
            connection, _ = listener.accept()
            with connection:
                for _ in range(answers):
                    connection.recv(65536)
                    connection.sendall(answer)
                connection.recv(65536 if not answers else 0)
            closed.set()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=20) as client:
            assert client.call("/a") == {}
            assert closed.wait(20)
            assert client.call("/b") == {}
        thread.join(20)
