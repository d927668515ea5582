"""The service on Ray Serve, over real HTTP; the checked-in configuration; the launcher."""

from __future__ import annotations

import base64
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rec.artifacts import ArtifactError
from rec.client import Client, RequestError
from rec.config import ConfigError
from serve_apps.keys import new_key

CONFIG = Path(__file__).parents[2] / "serve_apps" / "config.yaml"


def call(url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    with Client(url) as client:
        return client.call(path, body)


def test_the_checked_in_configuration_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve_apps import app, items_app, recommend_app
    from serve_apps.deployment import COMMON, LOGGING
    from serve_apps.guard import Access
    from serve_apps.recommend_gateway import PATH

    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    content, recommend = config.applications
    assert content.import_path == "serve_apps.app:build"
    assert app.ServeArgs.model_validate(content.args).limits == app.Limits()
    assert app.ServeArgs.model_validate(content.args).access.rate_per_s == Access().rate_per_s
    assert content.args["access"] == recommend.args["access"]
    assert config.logging_config is not None
    assert {name: getattr(config.logging_config, name) for name in LOGGING} == LOGGING
    assert (recommend.import_path, recommend.route_prefix) == (
        "serve_apps.recommend_app:build",
        PATH,
    )
    limits = recommend_app.RecommendArgs.model_validate(recommend.args).limits
    assert limits == recommend_app.RecommendLimits()
    # Ray converts `args` only where the annotation is a class and not a string
    assert inspect.signature(app.build).parameters["args"].annotation is app.ServeArgs
    taken = inspect.signature(recommend_app.build).parameters["args"].annotation
    assert taken is recommend_app.RecommendArgs
    for application, deployments in (
        (content, (app.Encoder, app.Knn, items_app.Items, app.Gateway)),
        (recommend, (recommend_app.Recommend, recommend_app.RecommendGateway)),
    ):
        stated = {d.name: d for d in application.deployments}
        assert set(stated) == {code.name for code in deployments}
        for code in deployments:
            assert stated[code.name].max_ongoing_requests == code.max_ongoing_requests == 64
            assert stated[code.name].max_queued_requests == code.max_queued_requests == 256
            full = stated[code.name].backpressure_config.model_dump()
            assert full == COMMON["backpressure_config"]


@pytest.mark.parametrize("setting", ["max_batch=0", "batch_wait_ms=-1", "timeout_s=0"])
def test_numbers_that_no_service_can_have_are_refused(setting: str) -> None:
    from serve_apps.app import ServeArgs
    from serve_apps.recommend_app import RecommendArgs

    for args in (
        ServeArgs(encoder="e", index="i"),
        RecommendArgs(encoder="e", index="i", rows="r"),
    ):
        with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]}: Input should be"):
            args.override([setting])


# The command first: a second service on the Ray of `url` would be refused.


def _command(served: Any, *more: str) -> list[str]:
    encoder, index = served.encoder_uri, served.index_uri
    return [sys.executable, "-m", "serve_apps", "--encoder", encoder, "--index", index,
            "--address", "local", "--port", "0", *more]  # fmt: skip


@pytest.fixture
def cluster(ray_local: None) -> str:
    """Address of a Ray without a service."""
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_answers_one_question_and_stops(
    served: Any, cluster: str, tmp_path: Path
) -> None:
    titles = {"item_id": served.ids, "title": [f"The {text}" for text in served.texts]}
    (tmp_path / "items").mkdir()
    pq.write_table(pa.table(titles), tmp_path / "items" / "shard-00000.parquet")
    (tmp_path / "poster.png").write_bytes(served.pictures[4])
    done = subprocess.run(
        _command(served, "--ask", served.texts[4], "--ask-image", f"{tmp_path}/poster.png",
                 "--k", "3", "--titles", f"{tmp_path}/items", "--address", cluster),
        capture_output=True, text=True, timeout=300, cwd=CONFIG.parents[1], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    best = next(i for i, line in enumerate(lines) if line.startswith("nearest to")) + 1
    assert lines[best].split() == ["1.000", "item-4", "The", *served.texts[4].split()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--haproxy"]])
def test_the_command_serves_until_sigterm(
    served: Any, more: list[str], cluster: str, tmp_path: Path
) -> None:
    more = more or ["--address", cluster]  # one of them with a Ray of its own
    key, keys_line = new_key("tester")
    (tmp_path / "keys.txt").write_text(keys_line)
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), np.uint8)
    large = cv2.imencode(".png", noise)[1].tobytes()
    assert len(large) > 5_000_000  # gRPC's own limit is 4 MiB
    with subprocess.Popen(
        _command(served, "--keys", str(tmp_path / "keys.txt"), *more),
        stdout=subprocess.PIPE,
        text=True,
        cwd=CONFIG.parents[1],
    ) as process:
        assert process.stdout is not None
        line = next(text for text in process.stdout if text.startswith("serving at "))
        url = line.split()[2]
        with pytest.raises(RequestError, match="401 no_key"):
            call(url, "/v1/version")
        with Client(url, key=key) as client:
            vectors = client.embed([large]).vectors
            np.testing.assert_allclose(vectors, served.encoder.encode_images([large]), atol=1e-5)
            with pytest.raises(RequestError, match=r"422 .*not a picture"):
                client.embed([b"hi"])
            asked = client.knn(served.vectors[:2], k=2)
        assert [one.ids[0] for one in asked.results] == served.ids[:2]
        os.kill(process.pid, signal.SIGTERM)
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "requests under way are finished first" in rest


@pytest.mark.ray
@pytest.mark.slow
def test_a_damaged_index_is_named_when_a_replica_refuses_it(
    served: Any, cluster: str, tmp_path: Path
) -> None:
    index = Path(shutil.copytree(served.index_uri, tmp_path / "index"))
    file = next(index.rglob("index.faiss"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    command = _command(served, "--index", str(index), "--address", cluster, "--no-keys")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=CONFIG.parents[1], check=False
    )
    assert done.returncode == 1
    assert "the service did not start" in done.stderr
    assert f"{file}" in done.stderr
    assert "publish again" in done.stderr


@pytest.fixture(scope="module")
def url(ray_local: None, served: Any, recommendable: Any, tables: str) -> Iterator[str]:
    from serve_apps.app import Limits, ServeArgs
    from serve_apps.guard import Access
    from serve_apps.launch import serving
    from serve_apps.recommend_app import RecommendArgs

    limits = Limits(max_inputs=4, max_k=20, max_body_bytes=200_000)
    off = Access(off=True)
    places = {"encoder": served.encoder_uri, "index": served.index_uri, "items": tables}
    args = ServeArgs(**places, limits=limits, access=off)
    users = RecommendArgs(**recommendable["sasrec"].model_dump(), access=off)
    with serving(args, users, port=0) as url:
        yield url


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
    with urllib.request.urlopen(url + listed["items"][0]["picture"]) as answer:
        assert answer.read() == served.pictures[-1]
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
    for path, name in (("/", "index.html"), ("/explorer/main.js", "main.js")):
        with urllib.request.urlopen(url + path) as answer:
            assert answer.read() == page_files()[name]


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
        ("/v1/embed", {"inputs": [{}]}, "422 .*empty"),
        ("/v1/embed", {"inputs": [{"text": "a"}] * 5}, "422 .*at most 4"),
        ("/v1/embed", {"inputs": [{"image": "?"}]}, "422 .*not base64"),
        ("/v1/embed", {"inputs": [{"image": "aGk="}]}, "422 .*not a picture"),
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
def test_ids_lines_and_metrics_of_requests(url: str) -> None:
    """One header, one JSON line in a replica's log, one more in Ray's own metrics; and no log of
    the whole session tells a key or a body."""
    import ray
    from ray._private.worker import _global_node

    headers = {"X-Request-ID": "found-again", "Authorization": "Bearer SECRETKEY"}
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
            assert b"SECRETKEY" not in text, file
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


def test_a_mismatched_pair_is_refused_before_ray_starts(
    served: Any, publish_index: Any, tmp_path: Path
) -> None:
    from serve_apps.app import ServeArgs
    from serve_apps.launch import serving

    index = publish_index(tmp_path, served.ids, served.vectors, "0" * 16)
    args = ServeArgs(encoder=served.encoder_uri, index=index)
    with pytest.raises(ArtifactError, match="vectors of encoder 0000"), serving(args, port=0):
        pytest.fail("it started")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "no API keys: make one with python -m serve_apps.keys"),
        (["--no-keys", "--host", "0.0.0.0"], "--no-keys: 0.0.0.0 is no loopback interface"),
        (["--keys", "nowhere.txt"], "nowhere.txt: keys cannot be read"),
    ],
)
def test_no_service_without_keys_starts_by_accident(
    served: Any,
    more: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serve_apps.__main__ import main

    monkeypatch.delenv("RAYCALL_API_KEYS", raising=False)
    artifacts = ["--encoder", served.encoder_uri, "--index", served.index_uri]
    assert main([*artifacts, "--port", "0", *more]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_says_what_is_wrong(served: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_apps", "--encoder", str(tmp_path), "--index", "x"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=CONFIG.parents[1], check=False
    )
    assert done.returncode == 1
    assert "manifest.json: not found" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing to serve: give --encoder, --index, or --user-encoder"),
        (["--encoder", "a"], "--index: missing; --encoder, --index go together"),
        (["--sequences", "a"], "--user-encoder, --item-index: missing"),
        (["--items", "t"], "nothing to serve"),
        (
            ["--user-encoder", "a", "--item-index", "b", "--sequences", "c", "--items", "t"],
            "--items needs --encoder",
        ),
        (["--encoder", "a", "--index", "b", "--ask-user", "u"], "--ask-user needs --user-encoder"),
        (
            ["--user-encoder", "a", "--item-index", "b", "--sequences", "c", "--ask", "t"],
            "--ask and --ask-image need --encoder",
        ),
        (["--encoder", "a", "--index", "b", "--set", "users.limits.max_k=3"], "are not served"),
        (["--encoder", "a", "--index", "b", "--keys", "k", "--no-keys"], "give one of them"),
    ],
)
def test_the_command_serves_whole_parts(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve_apps.__main__ import main

    assert main(given) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("reuse", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_that_is_taken_is_refused_before_ray_starts(served: Any, reuse: int) -> None:
    from serve_apps.app import ServeArgs
    from serve_apps.guard import Access
    from serve_apps.launch import ServiceError, serving

    access = Access(off=True)
    args = ServeArgs(encoder=served.encoder_uri, index=served.index_uri, access=access)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, reuse, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1: .*another --port")
        with told, serving(args, port=port):
            pass
