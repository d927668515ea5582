"""Both applications answer hundreds of random requests, made from their OpenAPI documents, as those
say.

No answer is a 5xx, none has a status, a type or a body that the document does not have.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_backend import LocalBackend
from openapi_cases import TEXT, Case, Hints, cases, check, operations
from pictures import bomb, profile_bomb

from rec import wire
from serve_apps.gateway import Limits, make_app
from serve_apps.guard import Access, Guard
from serve_apps.keys import new_key
from serve_apps.observe import Operations
from serve_apps.recommend import Places, Recommender
from serve_apps.recommend_gateway import PATH, RecommendLimits, make_recommend_app
from serve_apps.versions import match, match_users

KEY, LINE = new_key("tester", rate_per_s=1e6)
SLOW, SLOW_LINE = new_key("slow", rate_per_s=0.5)
HOW = settings(deadline=None, suppress_health_check=list(HealthCheck))
RARE = {401, 404, 409, 415, 429}  # what few requests are answered
KEYS = st.sampled_from([KEY] * 17 + [SLOW, KEY[1:], None])


def guarded() -> Operations:
    return Operations(Guard(Access(keys=(LINE, SLOW_LINE)), {}))


@pytest.fixture(scope="module")
def content(served: Any) -> Iterator[TestClient]:
    limits = Limits(max_inputs=4, max_k=20, max_text_chars=50, max_body_bytes=20_000)
    version = match(served.encoder_uri, served.index_uri)
    with TestClient(make_app(LocalBackend(served), version, limits, guarded())) as client:
        yield client


@pytest.fixture(scope="module")
def recommending(recommendable: dict[str, Places]) -> Iterator[TestClient]:
    places = recommendable["sasrec"]
    version = match_users(places.encoder, places.index, places.rows)
    versions = version.model_version, version.index_version, version.rows_version
    deployed = Places(**dict(zip(("encoder", "index", "rows"), versions, strict=True)))
    made = Recommender(places, deployed, max_batch=8, max_wait_s=0.001)
    app = make_recommend_app(made, version, RecommendLimits(max_history=5), guarded())
    with TestClient(app, root_path=PATH) as client:
        yield client


def hold(client: TestClient, hints: Hints, num_cases: int, paths: tuple[str, ...]) -> None:
    """Ask `num_cases` times, then twice as many, at most 16 times as many, until each operation was
    asked, POST of each path was answered and refused, and each of RARE was an answer."""
    document = client.app.openapi()  # type: ignore[attr-defined]
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    each = list(operations(document))
    posts = [one for one in each if one.method == "POST"]  # can be wrong in more ways
    every = st.sampled_from(each + posts * (len(each) // len(posts))).flatmap(
        lambda operation: cases(document, operation, hints)
    )

    def ask(case: Case, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if case.content is not None:
            headers["Content-Type"] = case.media_type
        method, path, _ = case.operation
        answer = client.request(
            method, path, params=case.query, content=case.content, headers=headers
        )
        seen[f"{method} {path}"][answer.status_code] += 1
        check(document, case.operation, answer)

    def complete() -> bool:
        return (
            set(seen) == {f"{one.method} {one.path}" for one in each}
            and all({200, 422} <= set(seen[f"POST {path}"]) for path in paths)
            and set().union(*seen.values()) >= RARE
        )

    for times in (1, 2, 4, 8, 16):  # more, not the same again: the seed may be given
        settings(HOW, max_examples=num_cases * times)(given(case=every, key=KEYS)(ask))()
        if complete():
            break
    assert complete(), seen
    assert sum(one.total() for one in seen.values()) >= num_cases


def test_the_content_service(content: TestClient, served: Any) -> None:
    def one(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(fields)

    version = match(served.encoder_uri, served.index_uri)
    files = [*served.pictures[:2], bomb(), profile_bomb(10_000_000), b"no picture", b""]
    texts = st.sampled_from(served.texts) | TEXT
    rows = st.integers(1, 5).map(lambda n: wire.pack_rows(np.ones((n, 16))))
    pairs = st.tuples(st.none() | st.sampled_from(served.texts), st.none() | st.sampled_from(files))
    good = st.tuples(st.sampled_from(served.texts), st.none() | st.just(served.pictures[0]))
    images = st.sampled_from([base64.b64encode(file).decode() for file in files]) | TEXT
    vectors = st.lists(st.floats(-9, 9, width=32), min_size=16, max_size=16) | st.just([1.0])
    items = st.sampled_from(["item-1", "item-11", "nobody", "nobody"])
    contents = one(text=st.sampled_from(served.texts)) | one(text=texts) | one(image=images)
    hints: Hints = {
        "ContentInput": contents,
        "Query": contents | one(vector=vectors) | one(item_id=items),
        "text": texts,
        "image": images,
        "vector": vectors,
        "item_id": items,
        "model_version": st.sampled_from([served.encoder.version] * 5 + ["another"]),
        "index_version": st.sampled_from([version.index_version] * 5 + ["another"]),
        "k": st.integers(1, 22),
        "/v1/knn/raw": rows | rows.map(lambda data: data[1:]),
        "/v1/embed/raw": (st.lists(good, max_size=4) | st.lists(pairs, max_size=5)).map(
            wire.pack_contents
        ),
    }
    hold(content, hints, 350, ("/v1/embed", "/v1/knn", "/v1/embed/raw", "/v1/knn/raw"))


def test_recommendations(recommending: TestClient) -> None:
    ids = st.lists(st.sampled_from(["item1", "item2", "item9", "gone"]), max_size=6)
    hints: Hints = {
        "history": ids,
        "exclude": ids,
        "user": st.sampled_from(["user1", "nobody"]),
        "domain": st.sampled_from(["", "", "film"]),
        "model_version": st.sampled_from(["another"]),
        "k": st.integers(1, 30),
    }
    hold(recommending, hints, 150, (PATH,))
