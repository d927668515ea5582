"""Why items are recommended, and what is told of users, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from local_services import local_recommender
from sequence_cases import ITEM_IDS, read_side

from rec.models.sequence.encoder import load_encoder
from rec.retrieval.interests import Recalled, UserInterests
from serve_apps.reasons import Interest, Reason, explain
from serve_apps.recommend import Places
from serve_apps.recommend_gateway import PATH, Asked, RecommendLimits, make_recommend_app
from serve_apps.versions import match_users


def test_reasons_of_several_interests_by_hand() -> None:
    """Interest 1 is inactive; a choice of zeros, of which nothing is known, is near to nothing."""
    user = UserInterests(np.array([[1, 0], [5, 5], [0, 2]], "f4"), np.array([0.75, 0, 0.25], "f4"))
    found = Recalled(
        np.array(["p", "q"], object), np.array([2.0, 1.5], "f4"), np.array([2, 0], np.int64)
    )
    told = explain(
        user,
        found,
        np.array([[0, 3], [2, 2]], "f4"),
        ["a", "b", "zero"],
        np.array([[2, 0], [0.6, 0.8], [0, 0]], "f4"),
        2,
    )
    assert [one.item_ids for one in told.interests] == [["a", "b"], ["b", "a"]]
    assert told.interests[0] == Interest(0.75, ["a", "b"], pytest.approx([2.0, 0.6]))
    assert told.interests[1] == Interest(0.25, ["b", "a"], pytest.approx([1.6, 0.0]))
    assert told.items[0] == Reason(1, ["b", "a"], pytest.approx([0.8, 0.0]))
    assert told.items[1] == Reason(0, ["b", "a"], pytest.approx([1.4 / 2**0.5, 0.5**0.5]))


@pytest.mark.parametrize("kind", ["sasrec", "dssm"])
def test_served_reasons_are_those_of_the_models_vectors(
    recommendable: dict[str, Places], kind: str
) -> None:
    places = recommendable[kind]
    encoder = load_encoder(places.encoder)
    history = ["item1", "item2", "gone", "item9", "item2"]
    asked = local_recommender(places)
    found = asyncio.run(asked.recommend(Asked(history, None, 5, reasons=2)))
    without = asyncio.run(local_recommender(places).recommend(Asked(history, None, 5)))
    assert (found.ids, found.scores) == (without.ids, without.scores)
    assert without.why is None
    assert found.why is not None
    vectors = encoder.item_vectors().numpy()
    place = {item_id: row for row, item_id in enumerate(encoder.item_ids)}
    chosen = ["item2", "item9", "item1"]
    user = encoder.encode_user([history])
    (interest,) = found.why.interests
    assert interest.weight == pytest.approx(float(user.weights[0, 0]))
    scores = {one: float(vectors[place[one]] @ user.vectors[0, 0].numpy()) for one in chosen}
    best = sorted(chosen, key=lambda one: -scores[one])[:2]
    assert interest.item_ids == best
    np.testing.assert_allclose(interest.scores, [scores[one] for one in best], atol=1e-5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for item_id, reason in zip(found.ids, found.why.items, strict=True):
        near = {one: float(unit[place[item_id]] @ unit[place[one]]) for one in chosen}
        expected = sorted(chosen, key=lambda one: -near[one])[:2]
        assert (reason.interest, reason.item_ids) == (0, expected)
        np.testing.assert_allclose(reason.similarities, [near[i] for i in expected], atol=1e-5)


@pytest.fixture(scope="module")
def client(recommendable: dict[str, Places]) -> Iterator[TestClient]:
    places = recommendable["sasrec"]
    told = match_users(places.encoder, places.index, places.rows)
    app = make_recommend_app(local_recommender(places), told, RecommendLimits())
    with TestClient(app, raise_server_exceptions=False, root_path=PATH) as client:
        yield client


def test_reasons_come_where_they_are_asked_for(client: TestClient) -> None:
    plain = client.post(PATH, json={"user": "user1"}).json()
    assert not {"interests", "reasons", "why"} & set(plain)
    told = client.post(PATH, json={"user": "user1", "reasons": 1}).json()
    assert told["ids"] == plain["ids"]
    assert len(told["reasons"]) == len(told["ids"])
    assert [one["interest"] for one in told["reasons"]] == [0] * len(told["ids"])
    assert all(len(one["item_ids"]) == 1 for one in (*told["reasons"], *told["interests"]))
    popular = client.post(PATH, json={"user": "nobody", "reasons": 1}).json()
    assert popular["source"] == "popular"
    assert "reasons" not in popular


def test_a_users_history_and_the_users(
    recommendable: dict[str, Places], client: TestClient
) -> None:
    sides = [read_side(recommendable["sasrec"].rows, side) for side in ("train", "test")]
    rows = [row for side in sides for row in side.to_pylist()]
    whole = {row["user_id"]: [ITEM_IDS[i] for i in row["item_index"]] for row in rows}
    for user in ("user3", "two"):
        found = client.get(f"{PATH}/history", params={"user": user}).json()
        assert (found["user"], found["ids"]) == (user, whole[user])
        assert found["num_events"] == len(whole[user])
    latest = client.get(f"{PATH}/history", params={"user": "user9", "limit": 2}).json()
    assert (latest["ids"], latest["num_events"]) == (whole["user9"][-2:], len(whole["user9"]))

    def users(**asked: Any) -> dict[str, int]:
        found = client.get(f"{PATH}/users", params=asked).json()["users"]
        return {one["user"]: one["num_events"] for one in found}

    sizes = {user: len(items) for user, items in sorted(whole.items())}
    assert users(limit=500) == sizes
    assert list(users(limit=500)) == list(sizes)
    assert users(prefix="user1") == {u: n for u, n in sizes.items() if u.startswith("user1")}
    assert list(users(prefix="user1", limit=2)) == ["user1", "user10"]
    assert users(prefix="zz") == users(prefix="user99") == {}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind", "part"),
    [
        ("get", "/history?user=nobody", None, 404, "unknown_user", "'nobody' is not in the rows"),
        ("get", "/history", None, 422, "invalid_request", "user: "),
        ("get", "/history?user=user1&limit=0", None, 422, "invalid_request", "limit: "),
        ("get", "/history?user=user1&limit=501", None, 422, "invalid_request", "limit: "),
        ("get", "/users?limit=501", None, 422, "invalid_request", "limit: "),
        ("post", "", {"user": "user1", "reasons": 11}, 422, "invalid_request", "reasons: "),
        ("post", "", {"user": "user1", "reasons": -1}, 422, "invalid_request", "reasons: "),
    ],
)
def test_refusals(
    client: TestClient, method: str, path: str, body: Any, status: int, kind: str, part: str
) -> None:
    answer = client.request(method, f"{PATH}{path}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["type"] == kind
    assert part in answer.json()["error"]["message"]
