"""Recommendations without Ray: what is served is what evaluation judges; answers and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from local_services import refused
from sequence_cases import ITEM_IDS, NUM_TRAINED, publish_rows, read_side

from rec.artifacts import ArtifactError, publish, read_manifest
from rec.features.sequences import histories
from rec.models.sequence.encoder import load_encoder
from rec.recipes import sequence
from rec.retrieval.build import build_index
from rec.retrieval.index import Index
from rec.runtime.item_vectors import publish_item_vectors
from rec.runtime.ranking_data import read_ranked_items
from rec.runtime.ranking_encoder import EncoderScorer, ServedLists
from rec.schema import SEQUENCE_ITEMS, SEQUENCE_ROWS
from serve_apps.errors import ApiError
from serve_apps.histories import Histories
from serve_apps.recommend import Places, Recommender
from serve_apps.recommend_gateway import PATH, Asked, RecommendLimits, make_recommend_app
from serve_apps.versions import match_users

K = 10
LIMITS = RecommendLimits(max_k=30, max_history=40, max_exclude=5, max_body_bytes=20_000)


def recommender(places: Places, **changed: str) -> Recommender:
    told = match_users(places.encoder, places.index, places.rows)
    deployed = Places(
        encoder=told.model_version, index=told.index_version, rows=told.rows_version
    ).model_copy(update=changed)
    return Recommender(places, deployed, max_batch=8, max_wait_s=0.002)


def ask(asked: Recommender, *requests: Asked) -> list[Any]:
    """The answers to concurrent requests."""

    async def main() -> list[Any]:
        return await asyncio.gather(*(asked.recommend(one) for one in requests))

    try:
        return asyncio.run(main())
    finally:
        asked._batcher = None  # it belongs to the loop that has ended


@pytest.mark.parametrize("kind", ["sasrec", "dssm"])
def test_users_of_the_test_rows_are_served_what_evaluation_ranks_first(
    recommendable: dict[str, Places], kind: str
) -> None:
    places = recommendable[kind]
    items = read_ranked_items(places.rows)
    scorer = EncoderScorer(load_encoder(places.encoder), items)
    batch, _ = histories(read_side(places.rows, "test"))
    exact = scorer.score(batch).numpy()
    ends = np.cumsum(batch.lengths.numpy())[:-1]
    asked = [scorer.ids[part].tolist() for part in np.split(batch.item_index.numpy(), ends)]
    found = ask(recommender(places), *(Asked(history, None, K) for history in asked))
    judged, _ = ServedLists(scorer, Index.open(places.index)).lists(batch, K, exclude_seen=True)
    for history, scores, answer, theirs in zip(asked, exact, found, judged, strict=True):
        assert not set(answer.ids) & set(history)
        if not history:
            assert answer.source == "popular"
            continue
        left = [i for i in np.argsort(-scores) if ITEM_IDS[i] not in history][:K]
        assert (answer.source, answer.ids) == ("model", [ITEM_IDS[i] for i in left])
        np.testing.assert_allclose(answer.scores, scores[left], atol=1e-5)
        assert answer.ids == [ITEM_IDS[i] for i in theirs[theirs >= 0]]
        assert (answer.num_known, answer.num_unknown) == (len(history), 0)


def test_a_user_is_served_by_all_that_the_rows_know(recommendable: dict[str, Places]) -> None:
    asked = recommender(recommendable["sasrec"])
    rows = read_side(recommendable["sasrec"].rows, "test").to_pylist()
    whole = {row["user_id"]: [ITEM_IDS[i] for i in row["item_index"]] for row in rows}
    users = ["useruser3", "two", "cold"]
    theirs = ask(asked, *(Asked(None, user, K) for user in users))
    given = ask(asked, *(Asked(whole[user], None, K) for user in users))
    for one, other in zip(theirs, given, strict=True):
        assert one.ids == other.ids
        assert (one.source, one.num_known) == ("model", other.num_known)
    assert not set(theirs[2].ids) & set(whole["cold"])
    again = ask(asked, Asked(None, "two", 28, exclude_seen=False))[0]
    assert set(whole["two"]) < set(again.ids)


def test_who_is_new_is_shown_what_is_popular(recommendable: dict[str, Places]) -> None:
    asked = recommender(recommendable["sasrec"])
    counts = dict.fromkeys(ITEM_IDS, 0)
    for row in read_side(recommendable["sasrec"].rows, "train").to_pylist():
        for item in row["item_index"]:
            counts[ITEM_IDS[item]] += 1
    nobody, empty = ask(asked, Asked(None, "nobody", 30), Asked([], None, 30))
    assert nobody == empty
    assert nobody.source == "popular"
    assert (nobody.num_known, nobody.num_unknown) == (0, 0)
    assert len(nobody.ids) == NUM_TRAINED  # an item without events is not popular
    assert nobody.scores == [counts[i] for i in nobody.ids]
    assert nobody.scores == sorted(nobody.scores, reverse=True)
    few = ask(asked, Asked(None, "nobody", 2, exclude=nobody.ids[:2]))[0]
    assert few.ids == nobody.ids[2:4]


def test_items_that_tell_the_model_nothing_are_not_known(
    recommendable: dict[str, Places], tmp_path: Path
) -> None:
    """Those without events, where a model goes by ids alone."""
    rows, recipe = recommendable["sasrec"].rows, sequence.debug()
    names = ("encoder", "index")
    places = Places(rows=rows, **{name: str(tmp_path / name) for name in names})
    recipe.export(recipe.build(rows), rows, places.encoder, {})
    publish_item_vectors(places.encoder, str(tmp_path / "items"))
    build_index(str(tmp_path / "items"), places.index)
    asked, (first, last) = recommender(places), (ITEM_IDS[0], ITEM_IDS[-1])
    encoder = load_encoder(places.encoder)
    assert encoder.known_items() == set(ITEM_IDS[:NUM_TRAINED])
    found = ask(asked, Asked([first, last], None, K))[0]
    assert (found.source, found.num_known, found.num_unknown) == ("model", 1, 1)
    vector = encoder.encode_user([[first, last]]).vectors[0, 0]  # as evaluation reads it
    best = torch.argsort(encoder.item_vectors() @ vector, descending=True, stable=True)
    seen = [i for i in best.tolist() if ITEM_IDS[i] not in (first, last)]
    assert found.ids[:3] == [ITEM_IDS[i] for i in seen[:3]]
    with pytest.raises(ApiError, match="knows none of its 2 items"):
        ask(asked, Asked([last, last], None, K))


def test_histories_hold_each_users_latest_row(tmp_path: Path) -> None:
    rows = publish_rows(tmp_path)
    found = Histories(rows)
    expected: dict[str, list[str]] = {}
    for side in ("train", "heldout", "test"):
        for row in read_side(rows, side).to_pylist():
            expected[row["user_id"]] = [ITEM_IDS[i] for i in row["item_index"]]
    assert len(found) == len(expected)
    assert {user: found.of(user) for user in expected} == expected
    for stranger in ("", "user", "user99", "zz", "ü"):
        assert found.of(stranger) == []


def _rows_of(folder: Path, sides: dict[str, dict[str, list[int]]], ids: list[str]) -> str:
    staged = folder / "staged"
    for side, users in sides.items():
        (staged / side).mkdir(parents=True)
        columns = {
            "user_id": list(users),
            "item_index": list(users.values()),
            "weights": [[1.0] * len(i) for i in users.values()],
            "event_times": [list(range(len(i))) for i in users.values()],
            "num_targets": [int(side != "train")] * len(users),
        }
        table = pa.table(columns, schema=SEQUENCE_ROWS)
        pq.write_table(table, staged / side / "shard-00000.parquet")
    blank = {"published_at": None, "tag_index": [], "category_index": [], "uploader_index": -1}
    items = [{"item_id": i, "num_events": 1, **blank} for i in ids]
    pq.write_table(pa.Table.from_pylist(items, SEQUENCE_ITEMS), staged / "items.parquet")
    publish(staged, folder / "rows", "sequence-rows", metrics={"domain": "video"})
    return str(folder / "rows")


def test_a_later_row_counts_and_newer_rows_may_have_other_items(
    recommendable: dict[str, Places], tmp_path: Path
) -> None:
    sides = {"train": {"é": [0], "z": [0, 1]}, "heldout": {"é": [0, 1]}, "test": {"Z": [2, 2, 0]}}
    rows = _rows_of(tmp_path, sides, ["item3", "item1", "brand-new"])
    assert [Histories(rows).of(user) for user in ("é", "z", "Z", "a")] == [
        ["item3", "item1"],
        ["item3", "item1"],
        ["brand-new", "brand-new", "item3"],
        [],
    ]
    asked = recommender(recommendable["sasrec"].model_copy(update={"rows": rows}))
    theirs, popular = ask(asked, Asked(None, "Z", 3), Asked([], None, 9))
    assert (theirs.source, theirs.num_known, theirs.num_unknown) == ("model", 1, 2)
    assert popular.ids == ["item3", "item1"]  # the index has no other of them


def test_what_does_not_belong_together_is_refused(
    recommendable: dict[str, Places], tmp_path: Path
) -> None:
    sasrec, dssm = recommendable["sasrec"], recommendable["dssm"]
    with pytest.raises(ArtifactError, match="vectors of encoder") as refusal:
        match_users(sasrec.encoder, dssm.index, sasrec.rows)
    assert "build the index again" in str(refusal.value)
    with pytest.raises(ArtifactError, match="'index' artifact, expected 'sequence-encoder'"):
        match_users(sasrec.index, sasrec.index, sasrec.rows)
    with pytest.raises(ArtifactError, match="expected 'sequence-rows'"):
        match_users(sasrec.encoder, sasrec.index, sasrec.encoder)
    for part in ("encoder", "index", "rows"):
        with pytest.raises(ArtifactError, match="published again"):
            recommender(sasrec, **{part: "0" * 16})
    strange = _rows_of(tmp_path, {"train": {"u": [0]}}, ["elsewhere"])
    with pytest.raises(ArtifactError, match="none of the items of"):
        recommender(sasrec.model_copy(update={"rows": strange}))


@pytest.fixture(scope="module")
def client(recommendable: dict[str, Places]) -> Iterator[TestClient]:
    places = recommendable["sasrec"]
    app = make_recommend_app(
        recommender(places), match_users(places.encoder, places.index, places.rows), LIMITS
    )
    # as Serve calls what it puts below a prefix
    with TestClient(app, raise_server_exceptions=False, root_path=PATH) as client:
        yield client


def test_answers_over_http(recommendable: dict[str, Places], client: TestClient) -> None:
    places = recommendable["sasrec"]
    history = ["item1", "gone", "item2", "item1"]
    answer = client.post(PATH, json={"history": history, "k": 4, "exclude": ["item5", "gone"]})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert len(body["ids"]) == len(body["scores"]) == 4
    assert not set(body["ids"]) & {"item1", "item2", "item5"}
    assert (body["source"], body["num_known"], body["num_unknown"]) == ("model", 3, 1)
    versions = [read_manifest(places.encoder).version, read_manifest(places.index).version]
    assert [body["model_version"], body["index_version"]] == versions
    told = client.get(f"{PATH}/version").json()
    assert [told["model_version"], told["index_version"]] == versions
    assert told["rows_version"] == read_manifest(places.rows).version
    assert (told["num_items"], told["dim"], told["domain"]) == (len(ITEM_IDS), 16, "")
    assert client.post(PATH, json={"user": "user1", "model_version": versions[0]}).json()["ids"]
    assert client.post(PATH, json={"user": "nobody", "domain": ""}).json()["source"] == "popular"
    assert client.get(f"{PATH}/healthz").json() == {"status": "ok"}
    assert client.get(f"{PATH}/docs").status_code == 200
    paths = client.get(f"{PATH}/openapi.json").json()["paths"]
    assert {PATH, f"{PATH}/version", f"{PATH}/healthz"} <= set(paths)


def test_an_answer_names_the_versions_that_gave_it(recommendable: dict[str, Places]) -> None:
    """While a new version is rolled out, a gateway of the old one reaches replicas of the new."""
    old, new = (
        match_users(places.encoder, places.index, places.rows)
        for places in (recommendable["sasrec"], recommendable["dssm"])
    )
    app = make_recommend_app(recommender(recommendable["dssm"]), old, LIMITS)
    with TestClient(app, root_path=PATH) as client:
        for body in ({"history": ["item1"]}, {"user": "nobody"}):
            answer = client.post(PATH, json=body).json()
            versions = [answer["model_version"], answer["index_version"]]
            assert versions == [new.model_version, new.index_version]
        body = {"history": ["item1"], "model_version": old.model_version}
        refused(client.post(PATH, json=body), 409, "model_mismatch", f"{new.model_version!r} is")


def test_an_answer_tells_what_its_time_went_into(client: TestClient) -> None:
    answer = client.post(PATH, json={"history": ["item1", "item2"], "k": 4, "reasons": 2})
    parts = (part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    ms = {name: float(value) for name, value in parts}
    steps = ["batch", "encode", "thread", "recall", "explain"]
    assert list(ms) == [*steps, "replica", "call", "app"]
    assert 0 < sum(ms[step] for step in steps) <= ms["replica"] <= ms["call"] <= ms["app"]
    popular = client.post(PATH, json={"history": [], "k": 4})
    assert "recall" not in popular.headers["server-timing"]
    refused = client.post(PATH, json={"history": []} | {"k": 0})
    assert "server-timing" not in refused.headers


@pytest.mark.parametrize(
    ("body", "status", "kind", "parts"),
    [
        ({}, 422, "invalid_request", ["exactly one of: history; user"]),
        ({"history": ["item1"], "user": "user1"}, 422, "invalid_request", ["exactly one of"]),
        ({"history": ["gone", "x"]}, 404, "unknown_items", ["none of its 2 items", "popular"]),
        ({"history": "item1"}, 422, "invalid_request", ["history", "list"]),
        ({"history": [1]}, 422, "invalid_request", ["history[0]", "string"]),
        ({"history": ["item1"] * 41}, 422, "invalid_request", ["history: 41 ids", "at most 40"]),
        ({"user": "a", "exclude": ["x"] * 6}, 422, "invalid_request", ["exclude: 6 ids"]),
        ({"user": "a", "k": 0}, 422, "invalid_request", ["k: "]),
        ({"user": "a", "k": 31}, 422, "invalid_request", ["k: 31, expected 1 to 30"]),
        ({"user": "a", "items": []}, 422, "invalid_request", ["items"]),
        ({"user": "a", "domain": "film"}, 404, "unknown_domain", ["'film' asked, '' is served"]),
        ({"user": "a", "model_version": "x"}, 409, "model_mismatch", ["'x' asked"]),
        ({"user": "a" * 30_000}, 413, "body_too_large", ["20000 bytes"]),
    ],
)
def test_refusals(client: TestClient, body: Any, status: int, kind: str, parts: list[str]) -> None:
    refused(client.post(PATH, json=body), status, kind, *parts)


def test_what_is_not_there_and_not_json(client: TestClient) -> None:
    wrong = client.get(PATH)
    refused(wrong, 405, "method_not_allowed")
    assert wrong.headers["Allow"] == "POST"
    refused(client.get(f"{PATH}/nothing"), 404, "not_found", f"{PATH}/nothing")
    json_type = {"content-type": "application/json"}
    refused(client.post(PATH, content=b'{"user"', headers=json_type), 400, "malformed_json")


LEAF = st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None), max_size=9)
IDS = st.lists(st.sampled_from(["item1", "gone", "\ud800", ""]) | LEAF, max_size=4) | LEAF
BODY = st.fixed_dictionaries(
    {},
    optional={
        "history": IDS,
        "user": st.sampled_from(["user1", "\ud800"]) | LEAF,
        "exclude": IDS,
        "k": st.integers(1, 30) | LEAF,
        "exclude_seen": LEAF,
        "domain": LEAF,
    },
)


@settings(max_examples=150, deadline=None)
@given(body=BODY)
def test_no_body_ends_in_a_server_error(client: TestClient, body: Any) -> None:
    answer = client.post(
        PATH, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert answer.status_code < 500, answer.text


def test_a_model_that_changed_in_memory_is_unhealthy(recommendable: dict[str, Places]) -> None:
    places = recommendable["dssm"]
    asked = recommender(places)
    app = make_recommend_app(asked, match_users(places.encoder, places.index, places.rows), LIMITS)
    with TestClient(app, root_path=PATH) as client:
        assert client.get(f"{PATH}/healthz").status_code == 200
        asked._encoder._inputs.add_(torch.randn(asked._encoder._inputs.shape))
        refused(client.get(f"{PATH}/healthz"), 503, "not_ready", "canary history")
