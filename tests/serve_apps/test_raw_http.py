"""The binary routes over a real encoder and index, without Ray: answers, and every refusal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from local_backend import LocalBackend
from local_services import refused
from pictures import bomb, profile_bomb

from rec import wire
from serve_apps.gateway import Limits, make_app
from serve_apps.versions import match

LIMITS = Limits(max_inputs=4, max_k=20, max_text_chars=50, max_body_bytes=20_000)
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[TestClient]:
    version = match(served.encoder_uri, served.index_uri)
    with TestClient(make_app(LocalBackend(served), version, LIMITS)) as client:
        yield client


def test_knn_answers_what_json_answers(served: Any, client: TestClient) -> None:
    rows = 7 * served.vectors[2:5]
    raw = client.post("/v1/knn/raw?k=5", content=wire.pack_rows(rows), headers=BYTES)
    assert raw.status_code == 200, raw.text
    assert raw.headers["content-type"] == "application/octet-stream"
    asked = {"queries": [{"vector": row.tolist()} for row in rows], "k": 5}
    body = client.post("/v1/knn", json=asked).json()
    for (ids, scores), expected in zip(
        wire.unpack_found(raw.content, 3), body["results"], strict=True
    ):
        assert ids == expected["ids"]
        np.testing.assert_allclose(scores, expected["scores"], atol=1e-6)
    assert raw.headers[wire.MODEL_HEADER] == body["model_version"]
    assert raw.headers[wire.INDEX_HEADER] == body["index_version"]


def test_k_may_exceed_the_index_and_numbers_may_be_huge(served: Any, client: TestClient) -> None:
    rows = np.where(served.vectors[:1] > 0, 3.4e38, -3.4e38)
    raw = client.post("/v1/knn/raw?k=20", content=wire.pack_rows(rows), headers=BYTES)
    ((ids, scores),) = wire.unpack_found(raw.content, 1)
    assert sorted(ids) == sorted(served.ids)
    assert np.isfinite(scores).all()


def test_embed_gives_the_encoders_vectors(served: Any, client: TestClient) -> None:
    contents = [
        (served.texts[0], None),
        (None, served.pictures[1]),
        (served.texts[2], served.pictures[2]),
    ]
    raw = client.post("/v1/embed/raw", content=wire.pack_contents(contents), headers=BYTES)
    assert raw.status_code == 200, raw.text
    expected = served.encoder.encode_items(
        [text for text, _ in contents], [[p] if p else [] for _, p in contents]
    )
    np.testing.assert_allclose(wire.unpack_rows(raw.content, 16), expected, atol=1e-5)
    assert raw.headers[wire.MODEL_HEADER] == served.encoder.version


ONE = wire.pack_rows(np.ones((1, 16)))


@pytest.mark.parametrize(
    ("query", "content", "parts"),
    [
        ("", b"", ["body: 0 bytes", "rows of 16 little-endian float32"]),
        ("", ONE[:-1], ["body: 63 bytes", "64 bytes each"]),
        ("", wire.pack_rows(np.ones((2, 17))), ["body: 136 bytes"]),
        ("", ONE * 5, ["body: 5 rows", "at most 4"]),
        ("", ONE + bytes(64), ["body: row 1 is all zeros"]),
        ("", ONE + wire.pack_rows(np.full((1, 16), np.nan)), ["body: row 1 has NaN"]),
        ("?k=21", ONE, ["k: 21, expected 1 to 20"]),
        ("?k=0", ONE, ["k: ", "greater than or equal to 1"]),
        ("?k=x", ONE, ["k: ", "integer"]),
    ],
)
def test_knn_refuses_with_the_reason(
    client: TestClient, query: str, content: bytes, parts: list[str]
) -> None:
    answer = client.post(f"/v1/knn/raw{query}", content=content, headers=BYTES)
    refused(answer, 422, "invalid_request", *parts)


@pytest.mark.parametrize(
    ("contents", "parts"),
    [
        ([(None, None)], ["inputs[0]: empty"]),
        ([("a", None), (" \n", None)], ["inputs[1]: empty"]),
        ([("x" * 51, None)], ["inputs[0].text: 51 characters", "50"]),
        ([("\u200b", None)], ["inputs[0].text: nothing"]),
        ([("red", b"no picture")], ["inputs[0].image: not a picture"]),
        ([("red", bomb(60_000))], ["inputs[0].image: picture", "too large"]),
        ([(None, bomb(20_000))], ["inputs[0].image: picture", "too large"]),
        ([(None, profile_bomb(10_000_000))], ["inputs[0].image: not a picture"]),
        ([("a", None)] * 5, ["body: 5 inputs, expected 1 to 4"]),
        ([], ["body: 0 inputs"]),
    ],
)
def test_embed_refuses_with_the_reason(
    client: TestClient, contents: list[tuple[str | None, bytes | None]], parts: list[str]
) -> None:
    packed = wire.pack_contents(contents)
    answer = client.post("/v1/embed/raw", content=packed, headers=BYTES)
    refused(answer, 422, "invalid_request", *parts)


@pytest.mark.parametrize("path", ["/v1/embed/raw", "/v1/knn/raw"])
def test_what_is_refused_of_both(served: Any, client: TestClient, path: str) -> None:
    good = ONE if "knn" in path else wire.pack_contents([("red", None)])
    for kind in ("application/json", "", "text/plain"):
        wrong = client.post(path, content=good, headers={"content-type": kind})
        refused(wrong, 415, "unsupported_media_type", "Content-Type: application/octet-stream")
    other = client.post(f"{path}?model_version=another", content=good, headers=BYTES)
    refused(other, 409, "model_mismatch", "'another'", served.encoder.version)
    own = f"{path}?model_version={served.encoder.version}"
    assert client.post(own, content=good, headers=BYTES).status_code == 200
    refused(client.post(path, content=b"\1" * 20_001, headers=BYTES), 413, "body_too_large")
    refused(client.get(path), 405, "method_not_allowed")


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(["/v1/embed/raw", "/v1/knn/raw?k=3"]),
    content=st.binary(max_size=200) | st.binary(min_size=64, max_size=64),
)
def test_no_bytes_end_in_a_server_error(client: TestClient, path: str, content: bytes) -> None:
    answer = client.post(path, content=content, headers=BYTES)
    assert answer.status_code < 500, answer.text
