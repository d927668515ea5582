"""Both services on one Ray Serve, over real HTTP: answers, refusals, what is told of them."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
import numpy as np
import pytest
from pictures import bomb, profile_bomb

from rec.client import Client, RequestError
from serve_apps.keys import new_key

READ, READ_LINE = new_key("reader", rate_per_s=1e6)
BYTES = {"Authorization": f"Bearer {READ}", "Content-Type": "application/octet-stream"}
JSON = BYTES | {"Content-Type": "application/json"}
BOMB, UNPACKED = (
    base64.b64encode(one).decode() for one in (bomb(60_000), profile_bomb(10_000_000))
)


def call(url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    with Client(url, key=READ) as client:
        return client.call(path, body)


class Running(NamedTuple):
    url: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def running(
    ray_local: None,
    served: Any,
    recommendable: Any,
    tables: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """Both services, by the command, on the Ray of this process; each gateway holds all that it
    serves (tests/chaos has them apart)."""
    import ray

    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(READ_LINE)
    users = recommendable["sasrec"]
    with subprocess.Popen(
        [sys.executable, "-m", "serve_apps", "--port", "0", "--keys", str(keys),
         "--address", ray.get_runtime_context().gcs_address,
         "--encoder", served.encoder_uri, "--index", served.index_uri, "--items", tables,
         "--user-encoder", users.encoder, "--item-index", users.index, "--sequences", users.rows,
         "--set", "limits.max_inputs=4", "limits.max_k=20", "limits.max_body_bytes=200_000",
         "encoder_in_gateway=true", "index_in_gateway=true", "users.in_gateway=true"],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            line = next(text for text in process.stdout if text.startswith("serving at "))
            yield Running(line.split()[2], process)
        finally:
            process.send_signal(signal.SIGTERM)  # nothing where it has ended
            process.communicate(timeout=120)


@pytest.fixture(scope="module")
def url(running: Running) -> str:
    return running.url


@pytest.mark.ray
def test_concurrent_callers_get_their_own_answers(served: Any, url: str) -> None:
    def embed(i: int) -> list[float]:
        item = {"text": served.texts[i % 12]}
        if i % 2:
            item["image"] = base64.b64encode(served.pictures[i % 12]).decode()
        return call(url, "/v1/embed", {"inputs": [item]})["vectors"][0]

    alone = [
        served.encoder.encode_items([text], [[data] if i % 2 else []])[0]
        for i, (text, data) in enumerate(zip(served.texts, served.pictures, strict=True))
    ]
    with ThreadPoolExecutor(16) as threads:
        vectors = list(threads.map(embed, range(96)))
    for i, vector in enumerate(vectors):
        np.testing.assert_allclose(vector, alone[i % 12], atol=1e-5)


@pytest.mark.ray
def test_neighbours_over_http(served: Any, url: str) -> None:
    picture = base64.b64encode(served.pictures[5]).decode()
    queries = [
        {"vector": served.vectors[3].tolist()},
        {"item_id": "item-3"},
        {"text": served.texts[5], "image": picture},
    ]
    results = call(url, "/v1/knn", {"queries": queries, "k": 3})["results"]
    order = [f"item-{i}" for i in np.argsort(-(served.vectors @ served.vectors[3]))]
    assert results[0]["ids"] == order[:3]
    assert results[1]["ids"] == order[1:4]
    assert results[2]["ids"][0] == "item-5"
    assert call(url, "/healthz") == {"status": "ok"}
    assert call(url, "/v1/version")["index_version"]


@pytest.mark.ray
def test_recommendations_over_http(recommendable: Any, url: str) -> None:
    """Beside the content service, below a prefix of their own; callers all at once."""
    from rec.models.sequence.encoder import load_encoder

    encoder = load_encoder(recommendable["sasrec"].encoder)
    vectors = encoder.item_vectors().numpy()
    asked = [[f"item{(3 * n + step) % 28}" for step in range(1 + n % 5)] for n in range(32)]

    def recommend(history: list[str]) -> list[str]:
        return call(url, "/v1/recommend", {"history": history, "k": 4})["ids"]

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(recommend, asked))
    for history, ids in zip(asked, found, strict=True):
        scores = vectors @ encoder.encode_user([history]).vectors[0, 0].numpy()
        best = [encoder.item_ids[i] for i in np.argsort(-scores)]
        assert ids == [item_id for item_id in best if item_id not in history][:4]
    assert call(url, "/v1/recommend", {"user": "nobody"})["source"] == "popular"
    assert call(url, "/v1/recommend/healthz") == {"status": "ok"}
    assert call(url, "/v1/recommend/version")["model_version"] == encoder.version


@pytest.mark.ray
def test_items_and_the_page_over_http(served: Any, url: str) -> None:
    from serve_apps.explorer import page_files

    listed = call(url, "/v1/items?limit=2")
    assert [one["title"] for one in listed["items"]] == [served.texts[-1], served.texts[-2]]
    files = {listed["items"][0]["picture"]: served.pictures[-1]}
    files |= {"/": page_files()["index.html"], "/explorer/main.js": page_files()["main.js"]}
    for path, data in files.items():
        assert httpx2.get(url + path, headers={"Authorization": f"Bearer {READ}"}).content == data
    lonely = "only/in the table ü"  # an id that an address has to quote
    assert call(url, f"/v1/items/{quote(lonely, safe='')}")["item_id"] == lonely
    order = np.argsort(-(served.vectors @ served.vectors[3]))
    near = call(url, "/v1/related?item_id=item-3&k=3")["related"]
    assert [one["item"]["title"] for one in near] == [served.texts[i] for i in order[1:4]]
    tags = call(url, "/v1/tags", {"text": served.texts[5], "k": 2})["tags"]
    assert len(tags) == 2
    assert call(url, "/v1/tags?limit=1")["tags"] == [{"tag": "deep", "num_items": 4}]
    assert call(url, "/v1/recommend/history?user=user3&limit=1")["num_events"] > 1
    assert len(call(url, "/v1/recommend/users?limit=4")["users"]) == 4
    told = call(url, "/v1/recommend", {"user": "user3", "reasons": 2, "k": 3})
    assert [len(one["item_ids"]) for one in told["reasons"]] == [2, 2, 2]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/items/gone", None, "404 .*unknown_item.*gone: not in the table"),
        ("/v1/items/item-0/picture", None, "404 .*no_picture"),
        ("/v1/related?item_id=gone", None, "404 .*unknown_item.*gone"),
        ("/v1/tags", {"text": "x", "item_id": "item-1"}, "422 .*exactly one of"),
        ("/v1/recommend/history?user=nobody", None, "404 .*unknown_user"),
        ("/v1/knn", {"queries": [{"item_id": "nobody"}]}, "404 .*unknown_item.*nobody"),
        ("/v1/knn", {"queries": [{"vector": [1.0]}]}, "422 .*1 numbers, expected 16"),
        ("/v1/knn", {"queries": [{"item_id": "item-1"}], "k": 21}, "422 .*k: 21, expected 1 to 20"),
        ("/v1/knn", {"queries": [{"item_id": "a"}], "model_version": "x"}, "409 .*model_mismatch"),
        ("/v1/knn", {"queries": [{"item_id": "a"}], "index_version": "x"}, "409 .*index_mismatch"),
        ("/v1/embed", {"inputs": [{}]}, "422 .*empty"),
        ("/v1/embed", {"inputs": [{"text": "a"}] * 5}, "422 .*at most 4"),
        ("/v1/embed", {"inputs": [{"image": "?"}]}, "422 .*not base64"),
        ("/v1/embed", {"inputs": [{"image": "aGk="}]}, "422 .*not a picture"),
        (
            "/v1/embed",
            {"inputs": [{"image": BOMB}]},
            "422 .*too large, expected at most [0-9]+ pixels",
        ),
        ("/v1/embed", {"inputs": [{"image": UNPACKED}]}, "422 .*not a picture"),
        ("/v1/embed", {"inputs": [{"text": "x" * 300_000}]}, "413 .*200000 bytes"),
        ("/v1/recommend", {"history": ["gone"]}, "404 .*unknown_items.*none of its 1 items"),
        ("/v1/recommend", {}, "422 .*exactly one of: history; user"),
        ("/v1/recommend/other", None, "404 .*not_found.*/v1/recommend/other"),
        ("/v1/other", None, "404 .*not_found"),
    ],
)
def test_refusals_reach_the_client(url: str, path: str, body: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        call(url, path, body)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("headers", "content", "status", "said"),
    [
        ({}, b"", 401, "no_key: give an API key in the header Authorization: Bearer KEY"),
        (
            {"Authorization": "Bearer guess"},
            b"",
            401,
            "wrong_key: this key is not known here: give",
        ),
        (BYTES, b"\0\0\xc0\x7f" + bytes(60), 422, "body: row 0 has NaN"),
        (BYTES, bytes(60), 422, "body: 60 bytes, expected one or more rows of 16"),
        (BYTES, bytes(300_000), 413, "body: more than 200000 bytes; send less at once"),
        (JSON, b'{"queries": [{"vector": [NaN]}]}', 422, "vector[0]: Input should be a finite"),
        (JSON, b'{"queries": ', 400, "malformed_json: body: not JSON at character"),
        (JSON, b"[" * 100_000, 400, "bad_request"),
    ],
    ids=["no key", "wrong key", "NaN", "dimension", "oversized", "NaN in JSON", "cut", "nested"],
)
def test_faults_are_refused_with_what_to_do(
    url: str, headers: dict[str, str], content: bytes, status: int, said: str
) -> None:
    path = "/v1/knn" if headers.get("Content-Type") == "application/json" else "/v1/knn/raw"
    answer = httpx2.post(url + path, content=content, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert said in f"{error['type']}: {error['message']}"
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.ray
def test_ids_lines_and_metrics_of_requests(url: str) -> None:
    """One header, one JSON line in a replica's log, one more in Ray's own metrics; and no log of
    the whole session tells a key or a body."""
    import ray
    from ray._private.worker import _global_node

    headers = {"X-Request-ID": "found-again", "Authorization": f"Bearer {READ}"}
    body = {"queries": [{"item_id": "SECRETBODY"}]}
    with httpx2.Client(base_url=url, headers=headers) as client:
        answer = client.post("/v1/knn", json=body)
        assert answer.status_code == 404
        assert answer.headers.get_list("x-request-id") == ["found-again"]
        client.post("/v1/knn", content="SECRETBODY")
        assert len(client.get("/v1/recommend/version", headers={}).headers["x-request-id"]) > 8
    assert _global_node is not None
    logs = Path(_global_node.get_logs_dir_path())
    files = list(logs.glob("serve/replica_content_Gateway_*.log"))
    told = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    (line,) = [
        one for one in told if one.get("access", {}).get("request_id") == "found-again"
        and one["access"]["status"] == 404
    ]  # fmt: skip
    assert (line["access"]["route"], line["access"]["refused"]) == ("/v1/knn", "unknown_item")
    for file in logs.rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            assert READ.encode() not in text, file
            assert b"SECRETBODY" not in text, file
    (node,) = [one for one in ray.nodes() if one["Alive"]]
    metrics = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    wanted = r'ray_raycall_requests(_total)?\{.*route="/v1/knn".*status="404".*\} [1-9]'
    deadline = time.monotonic() + 90  # Ray collects them every few seconds
    while not re.search(wanted, text := httpx2.get(metrics).text):
        assert time.monotonic() < deadline, re.findall(".*raycall.*", text)
        time.sleep(1)
    assert "ray_raycall_request_seconds_bucket" in text


@pytest.mark.ray
def test_a_second_service_on_the_same_cluster_is_refused(served: Any, url: str) -> None:
    from serve_apps.app import ServeArgs
    from serve_apps.guard import Access
    from serve_apps.launch import ServiceError, serving

    access = Access(off=True)
    args = ServeArgs(encoder=served.encoder_uri, index=served.index_uri, access=access)
    with pytest.raises(ServiceError, match="Serve already runs"), serving(args, port=0):
        pytest.fail("it started")
    assert call(url, "/healthz") == {"status": "ok"}  # the first one is left alone


@pytest.mark.ray
def test_the_command_stops_on_sigterm(running: Running) -> None:
    """The last one: there is no service afterwards."""
    running.process.send_signal(signal.SIGTERM)
    rest, _ = running.process.communicate(timeout=120)
    assert running.process.returncode == 0
    assert "requests under way are finished first" in rest
