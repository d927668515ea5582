"""The HTTP layer over a real encoder and index, without Ray: answers, and every refusal."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_backend import LocalBackend
from pictures import bomb

from serve_apps.gateway import Content, Limits, make_app
from serve_apps.versions import match

LIMITS = Limits(max_inputs=4, max_k=20, max_text_chars=50, max_body_bytes=20_000)


@pytest.fixture(scope="module")
def backend(served: Any) -> LocalBackend:
    return LocalBackend(served)


@pytest.fixture(scope="module")
def client(served: Any, backend: LocalBackend) -> Iterator[TestClient]:
    app = make_app(backend, match(served.encoder_uri, served.index_uri), LIMITS)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refused(response: Response, status: int, kind: str, *parts: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert error["type"] == kind
    for part in parts:
        assert part in error["message"], error["message"]


def test_embed_gives_the_encoders_vectors(served: Any, client: TestClient) -> None:
    inputs = [
        {"text": served.texts[0]},
        {"image": b64(served.pictures[1])},
        {"text": served.texts[2], "image": b64(served.pictures[2])},
    ]
    answer = client.post("/v1/embed", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    expected = served.encoder.encode_items(
        [served.texts[0], None, served.texts[2]], [[], [served.pictures[1]], [served.pictures[2]]]
    )
    np.testing.assert_allclose(body["vectors"], expected, atol=1e-5)
    assert body["dim"] == 16
    assert body["model_version"] == served.encoder.version


def test_knn_by_every_kind_of_query_equals_brute_force(served: Any, client: TestClient) -> None:
    text_vector = served.encoder.encode_texts([served.texts[7]])[0]
    queries = [
        {"vector": (5 * served.vectors[3]).tolist()},  # any length
        {"item_id": "item-3"},
        {"text": served.texts[7]},
        {"text": served.texts[3], "image": b64(served.pictures[3])},
    ]
    body = client.post("/v1/knn", json={"queries": queries, "k": 5}).json()
    for result, vector in zip(
        body["results"],
        [served.vectors[3], served.vectors[3], text_vector, served.vectors[3]],
        strict=True,
    ):
        scores = served.vectors @ vector
        order = [f"item-{i}" for i in np.argsort(-scores)]
        if result is body["results"][1]:  # by item: without itself
            order.remove("item-3")
        assert result["ids"] == order[:5]
        expected = [scores[int(i.removeprefix("item-"))] for i in result["ids"]]
        np.testing.assert_allclose(result["scores"], expected, atol=1e-5)
    assert body["results"][3]["ids"][0] == "item-3"
    assert {"model_version", "index_version"} < set(body)


def test_exclude_self_can_be_turned_off_and_k_may_exceed_the_index(client: TestClient) -> None:
    ask: dict[str, Any] = {"queries": [{"item_id": "item-3"}], "k": 20}
    without = client.post("/v1/knn", json=ask).json()["results"][0]
    with_self = client.post("/v1/knn", json=ask | {"exclude_self": False}).json()["results"][0]
    assert len(without["ids"]) == 11
    assert len(with_self["ids"]) == 12
    assert with_self["ids"][0] == "item-3"
    assert "item-3" not in without["ids"]


def test_version_health_and_docs(served: Any, backend: LocalBackend, client: TestClient) -> None:
    version = client.get("/v1/version").json()
    assert version["model_version"] == served.encoder.version
    assert (version["dim"], version["num_items"]) == (16, 12)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/embed", "/v1/knn", "/v1/version", "/healthz"} <= set(paths)
    backend.broken = True
    try:
        answer = client.get("/healthz")
    finally:
        backend.broken = False
    refused(answer, 503, "not_ready", "being replaced")
    assert answer.headers["retry-after"] == "1"


CUT = b64(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"inputs": []}, ["inputs", "at least 1"]),
        ({}, ["inputs", "required"]),
        ({"inputs": [{}]}, ["inputs[0]: empty"]),
        ({"inputs": [{"text": " \n"}]}, ["inputs[0]: empty"]),
        ({"inputs": [{"text": "river"}, {"text": "\u200b"}]}, ["inputs[1].text: nothing"]),
        ({"inputs": [{"text": "\U0001f937 \u0436"}]}, ["inputs[0].text: nothing"]),
        ({"inputs": [{"text": 5}]}, ["inputs[0].text", "valid string"]),
        ({"inputs": [{"text": "x" * 51}]}, ["inputs[0].text: 51 characters", "50"]),
        ({"inputs": [{"text": "a"}] * 5}, ["inputs: 5", "at most 4"]),
        ({"inputs": [{"text": "a"}, {"image": "%%%"}]}, ["inputs[1].image: not base64"]),
        ({"inputs": [{"image": "ÿ"}]}, ["inputs[0].image: not base64"]),
        ({"inputs": [{"image": b64(b"no picture")}]}, ["inputs[0].image: not a picture"]),
        ({"inputs": [{"image": CUT}]}, ["inputs[0].image"]),
        ({"inputs": [{"image": b64(bomb(60_000))}]}, ["inputs[0].image: picture", "too large"]),
        ({"inputs": [{"text": "a", "txt": "b"}]}, ["inputs[0].txt"]),
        ([1], ["body"]),
    ],
)
def test_embed_refuses_with_the_reason(client: TestClient, body: Any, parts: list[str]) -> None:
    refused(client.post("/v1/embed", json=body), 422, "invalid_request", *parts)


VECTOR = [1.0] * 16


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"queries": [{}]}, ["queries[0]", "exactly one of"]),
        ({"queries": [{"item_id": "a", "text": "b"}]}, ["queries[0]", "exactly one of"]),
        ({"queries": [{"vector": VECTOR}, {"vector": [1.0] * 3}]}, ["queries[1]", "expected 16"]),
        ({"queries": [{"vector": []}]}, ["queries[0].vector: 0 numbers"]),
        ({"queries": [{"vector": [0.0] * 16}]}, ["queries[0].vector: all zeros"]),
        ({"queries": [{"vector": ["1"] * 16}]}, ["queries[0].vector[0]", "(and 15 more)"]),
        ({"queries": [{"text": ""}]}, ["queries[0]: empty"]),
        ({"queries": [{"image": "%"}]}, ["queries[0].image: not base64"]),
        ({"queries": [{"vector": VECTOR}] * 5}, ["queries: 5", "at most 4"]),
        ({"queries": [{"vector": VECTOR}], "k": 0}, ["k: ", "greater than or equal to 1"]),
        ({"queries": [{"vector": VECTOR}], "k": 21}, ["k: 21, expected 1 to 20"]),
        ({"queries": [{"vector": VECTOR}], "k": True}, ["k: ", "integer"]),
        ({"queries": [{"vector": VECTOR}], "k": 1e99}, ["k: "]),
    ],
)
def test_knn_refuses_with_the_reason(client: TestClient, body: Any, parts: list[str]) -> None:
    refused(client.post("/v1/knn", json=body), 422, "invalid_request", *parts)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_not_finite(client: TestClient, number: str) -> None:
    numbers = ", ".join([number] + ["1"] * 15)
    raw = f'{{"queries": [{{"vector": [{numbers}]}}]}}'
    answer = client.post("/v1/knn", content=raw, headers={"content-type": "application/json"})
    refused(answer, 422, "invalid_request", "queries[0].vector[0]", "finite")


def test_huge_but_finite_vectors_are_answered(served: Any, client: TestClient) -> None:
    huge = [1.7e308 if v > 0 else -1.7e308 for v in served.vectors[0]]
    answer = client.post("/v1/knn", json={"queries": [{"vector": huge}]})
    assert answer.status_code == 200, answer.text
    assert np.isfinite(answer.json()["results"][0]["scores"]).all()


def test_unknown_item(client: TestClient) -> None:
    body = {"queries": [{"item_id": "item-1"}, {"item_id": "nobody"}]}
    refused(client.post("/v1/knn", json=body), 404, "unknown_item", "queries[1].item_id", "nobody")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embed", {"inputs": [{"text": "a"}]}),
        ("/v1/knn", {"queries": [{"item_id": "item-1"}]}),
    ],
)
def test_model_version(served: Any, client: TestClient, path: str, body: dict[str, Any]) -> None:
    asked = body | {"model_version": served.encoder.version}
    assert client.post(path, json=asked).status_code == 200
    other = client.post(path, json=body | {"model_version": "another"})
    refused(other, 409, "model_mismatch", "'another'", served.encoder.version)


def test_bodies_that_are_not_what_was_asked_for(client: TestClient) -> None:
    json_type = {"content-type": "application/json"}
    malformed = client.post("/v1/embed", content=b'{"inputs": [', headers=json_type)
    refused(malformed, 400, "malformed_json", "character 12")
    deep = client.post("/v1/embed", content=b"[" * 15_000, headers=json_type)
    refused(deep, 400, "bad_request")
    bytes_ = client.post("/v1/embed", content=b'{"inputs": "\xff"}', headers=json_type)
    refused(bytes_, 400, "bad_request")
    form = client.post("/v1/embed", content=b'{"inputs": []}', headers={"content-type": "text/x"})
    refused(form, 415, "unsupported_media_type", "Content-Type: application/json")
    refused(client.get("/v1/embed"), 405, "method_not_allowed")
    refused(client.get("/v1/nothing"), 404, "not_found", "/v1/nothing")
    surrogate = client.post("/v1/embed", content=rb'{"\ud800": 1}', headers=json_type)
    refused(surrogate, 422, "invalid_request")
    surrogate = client.post(
        "/v1/embed", content=rb'{"inputs": [{"text": "\ud800"}]}', headers=json_type
    )
    refused(surrogate, 422, "invalid_request", "inputs[0].text: not Unicode text")


@pytest.mark.parametrize("streamed", [False, True])
def test_oversized_body(client: TestClient, streamed: bool) -> None:
    raw = json.dumps({"inputs": [{"text": "x" * 30_000}]}).encode()
    parts = (raw[i : i + 1000] for i in range(0, len(raw), 1000))
    answer = client.post(
        "/v1/embed",
        content=parts if streamed else raw,
        headers={"content-type": "application/json"},
    )
    refused(answer, 413, "body_too_large", "20000 bytes")


LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["item-1", "red river", CUT, "aGk=", VECTOR, [1e308] * 16, [-0.0] * 16])
)
KEYS = st.sampled_from(
    ["inputs", "queries", "text", "image", "vector", "item_id", "k", "exclude_self",
     "model_version"]
) | st.text(st.characters(codec=None), max_size=5)  # fmt: skip
CONTENT = st.dictionaries(st.sampled_from(["text", "image", "vector", "item_id"]), LEAF, max_size=2)
NEAR = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(CONTENT, max_size=5),
        "queries": st.lists(CONTENT, max_size=5),
        "k": LEAF,
        "exclude_self": LEAF,
        "model_version": LEAF,
    },
)
ANY = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(["/v1/embed", "/v1/knn"]), body=NEAR | ANY)
def test_no_json_body_ends_in_a_server_error(client: TestClient, path: str, body: Any) -> None:
    answer = client.post(
        path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["type"]
        assert error["message"]


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=200), path=st.sampled_from(["/v1/embed", "/v1/knn"]))
def test_no_bytes_end_in_a_server_error(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text


def test_a_text_does_not_wait_for_another_request_s_pictures(served: Any) -> None:
    large = cv2.imencode(".png", np.zeros((6000, 6000), np.uint8))[1].tobytes()

    async def ask() -> list[str]:
        ended: list[str] = []

        async def one(name: str, *contents: Content) -> None:
            await backend.encode(contents)
            ended.append(name)

        pictures = [Content(f"inputs[{i}]", None, large) for i in range(12)]
        async with asyncio.TaskGroup() as group:
            group.create_task(one("pictures", *pictures))
            await asyncio.sleep(0.05)
            group.create_task(one("picture", pictures[0]))
            group.create_task(one("text", Content("inputs[0]", "a text", None)))
        await backend.embedder.close()
        return ended

    backend = LocalBackend(served)
    assert asyncio.run(ask()) == ["text", "picture", "pictures"]
