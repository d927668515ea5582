"""Which items may be shown, by their attributes, and items that differ from each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from local_backend import LocalBackend
from local_services import refused
from sequence_cases import ITEM_IDS

from rec.models.sequence.encoder import load_encoder
from rec.retrieval.build import build_index
from rec.retrieval.diversity import mmr
from rec.retrieval.spec import IndexConfig
from rec.runtime.item_vectors import publish_item_vectors
from serve_apps.gateway import Limits, make_app
from serve_apps.recommend import CANDIDATES, Places, Recommender
from serve_apps.recommend_gateway import PATH, RecommendLimits, make_recommend_app
from serve_apps.versions import match, match_users

K = 4
HISTORY = ["item1", "item2"]
EVEN = {"op": "equal", "column": "parity", "value": "even"}


def attributes(folder: Path, ids: list[str]) -> str:
    """Parquet that tells of each item whether its place is even, and its place."""
    folder.mkdir()
    parity = [("even", "odd")[place % 2] for place in range(len(ids))]
    columns = {"item_id": ids, "parity": parity, "place": list(range(len(ids)))}
    pq.write_table(pa.table(columns), folder / "attributes.parquet")
    return str(folder)


def config() -> IndexConfig:
    return IndexConfig(attributes=("parity", "place"))


@pytest.fixture(scope="module")
def places(recommendable: dict[str, Places], tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("filtered")
    told = attributes(folder / "told", ITEM_IDS)
    publish_item_vectors(recommendable["sasrec"].encoder, str(folder / "items"))
    index = str(folder / "index")
    build_index(str(folder / "items"), index, config(), attributes_uri=told)
    return recommendable["sasrec"].model_copy(update={"index": index})


@pytest.fixture(scope="module")
def users(places: Places) -> Iterator[TestClient]:
    told = match_users(places.encoder, places.index, places.rows)
    versions = told.model_version, told.index_version, told.rows_version
    deployed = Places(**dict(zip(("encoder", "index", "rows"), versions, strict=True)))
    recommender = Recommender(places, deployed, max_batch=8, max_wait_s=0.002)
    app = make_recommend_app(recommender, told, RecommendLimits())
    with TestClient(app, raise_server_exceptions=False, root_path=PATH) as client:
        yield client


@pytest.fixture(scope="module")
def ranked(places: Places) -> dict[str, float]:
    """Scores of all items but those of HISTORY, the best first, by hand."""
    encoder = load_encoder(places.encoder)
    user = encoder.encode_user([HISTORY]).vectors[0, 0]
    scores = (encoder.item_vectors() @ user).tolist()
    pairs = zip(encoder.item_ids, scores, strict=True)
    found = sorted(pairs, key=lambda pair: -pair[1])
    return {item: score for item, score in found if item not in HISTORY}


def posted(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_only_items_that_fit_are_recommended(users: TestClient, ranked: dict[str, float]) -> None:
    found = posted(users, history=HISTORY, k=K, where=EVEN)
    assert found["ids"] == [item for item in ranked if ITEM_IDS.index(item) % 2 == 0][:K]
    late = {"op": "range", "column": "place", "least": 20, "below": 25}
    both = {"op": "all", "of": [EVEN, late]}
    few = posted(users, history=HISTORY, k=K, where=both)
    assert set(few["ids"]) == {ITEM_IDS[place] for place in (20, 22, 24)}
    none = posted(users, history=HISTORY, k=K, where={**EVEN, "value": "neither"})
    assert none["ids"] == none["scores"] == []


def test_only_items_that_fit_are_shown_to_who_is_new(users: TestClient) -> None:
    everything = posted(users, history=[], k=len(ITEM_IDS))
    found = posted(users, history=[], k=len(ITEM_IDS), where=EVEN, diversity=0.5)
    assert found["source"] == "popular"
    assert found["ids"] == [i for i in everything["ids"] if ITEM_IDS.index(i) % 2 == 0]
    assert posted(users, history=[], k=2, where=EVEN)["ids"] == found["ids"][:2]


@pytest.mark.parametrize("diversity", [0.3, 1.0])
def test_items_that_differ_are_chosen_among_the_best(
    users: TestClient, places: Places, ranked: dict[str, float], diversity: float
) -> None:
    best = list(ranked)[: CANDIDATES * K]
    scores = np.array([ranked[item] for item in best])
    encoder = load_encoder(places.encoder)
    at = [list(encoder.item_ids).index(item) for item in best]
    vectors = encoder.item_vectors()[at].numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    expected = [best[i] for i in mmr(relevance, vectors, K, 1 - diversity)]
    found = posted(users, history=HISTORY, k=K, diversity=diversity, reasons=2)
    assert found["ids"] == expected != best[:K]
    assert found["scores"] == pytest.approx([ranked[item] for item in expected], abs=1e-5)
    assert len(found["reasons"]) == K
    assert posted(users, history=HISTORY, k=K, diversity=0)["ids"] == best[:K]


WRONG = [
    ({**EVEN, "column": "genre"}, "no attribute 'genre'; the index holds ['parity', 'place']"),
    ({**EVEN, "value": 3}, "3 cannot be compared with 'parity'"),
    ({"op": "like", "column": "parity"}, "'like'"),
    ({"column": "parity", "value": "even"}, "op"),
    ([EVEN], "where"),
]


@pytest.mark.parametrize(("where", "reason"), WRONG)
def test_filters_that_cannot_be_are_refused(users: TestClient, where: Any, reason: str) -> None:
    for body in ({"history": HISTORY}, {"history": []}):
        answer = users.post(PATH, json={**body, "where": where})
        refused(answer, 422, "invalid_request", "where", reason)


def test_filters_too_deep_and_diversity_out_of_range_are_refused(users: TestClient) -> None:
    deep: Any = EVEN
    for _ in range(500):
        deep = {"op": "not", "of": deep}
    answer = users.post(PATH, json={"history": HISTORY, "where": deep})
    refused(answer, 422, "invalid_request", "inside each other")
    for diversity in (-0.1, 1.1, "much"):
        answer = users.post(PATH, json={"history": HISTORY, "diversity": diversity})
        refused(answer, 422, "invalid_request", "diversity")


def test_neighbours_that_fit(served: Any, tmp_path: Path) -> None:
    told = attributes(tmp_path / "told", served.ids)
    index = str(tmp_path / "index")
    embeddings = str(Path(served.index_uri).parent / "embeddings")
    build_index(embeddings, index, config(), attributes_uri=told)
    backend = LocalBackend(replace(served, index_uri=index))
    app = make_app(backend, match(served.encoder_uri, index), Limits())
    with TestClient(app, raise_server_exceptions=False) as client:
        queries = [{"item_id": served.ids[0]}, {"text": served.texts[1]}]
        body = {"queries": queries, "k": len(served.ids)}
        everything = client.post("/v1/knn", json=body).json()["results"]
        found = client.post("/v1/knn", json={**body, "where": EVEN}).json()["results"]
        for one, other in zip(found, everything, strict=True):
            fit = [i for i in other["ids"] if served.ids.index(i) % 2 == 0]
            assert one["ids"] == fit
            assert fit
        wrong = client.post("/v1/knn", json={**body, "where": {**EVEN, "column": "genre"}})
        refused(wrong, 422, "invalid_request", "no attribute 'genre'")
