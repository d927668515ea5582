"""Keys, rates, request ids, log lines and metrics of both applications, without Ray."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from local_backend import LocalBackend

from rec import wire
from serve_apps.api import RecommendVersion
from serve_apps.gateway import Limits, make_app
from serve_apps.guard import Access, Guard
from serve_apps.keys import new_key
from serve_apps.observe import Operations
from serve_apps.recommend_gateway import PATH, RecommendLimits, make_recommend_app
from serve_apps.versions import match

READ, READ_LINE = new_key("reader")
ADMIN, ADMIN_LINE = new_key("keeper", "admin")
SLOW, SLOW_LINE = new_key("slow", rate_per_s=0.5)
ACCESS = Access(keys=(READ_LINE, ADMIN_LINE, SLOW_LINE), rate_per_s=1e6)
MESSAGE = "SECRET, as it was asked"  # by name: a traceback has the line of code
KNN = {"queries": [{"item_id": "item-1"}]}


class Meter:
    def __init__(self) -> None:
        self.counted: list[tuple[str, int, str]] = []

    def __call__(self, route: str, status: int, caller: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.counted.append((route, status, caller))


@pytest.fixture(scope="module")
def meter() -> Meter:
    return Meter()


@pytest.fixture(scope="module")
def backend(served: Any) -> LocalBackend:
    return LocalBackend(served)


@pytest.fixture(scope="module")
def client(served: Any, backend: LocalBackend, meter: Meter) -> Iterator[TestClient]:
    version = match(served.encoder_uri, served.index_uri)
    limits = Limits(max_body_bytes=20_000)
    app = make_app(backend, version, limits, Operations(Guard(ACCESS, {}), meter))
    with TestClient(app) as client:  # an exception that comes through is raised here
        yield client


@pytest.fixture(scope="module")
def recommending() -> Iterator[TestClient]:
    """The other application, with a backend that has nothing to give."""

    async def nothing(*_: Any) -> None:
        raise ValueError(MESSAGE)

    backend: Any = SimpleNamespace(recommend=nothing, canary=nothing)
    names = ("model_version", "index_version", "rows_version", "domain", "raycall")
    version = RecommendVersion(**dict.fromkeys(names, "v"), dim=1, num_items=1)
    operations = Operations(Guard(ACCESS, {}))
    app = make_recommend_app(backend, version, RecommendLimits(), operations)
    with TestClient(app, root_path=PATH) as client:
        yield client


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


def refused(response: Response, status: int, kind: str) -> None:
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)


def routes(client: TestClient) -> Iterator[tuple[str, str]]:
    for path, methods in client.app.openapi()["paths"].items():  # type: ignore[attr-defined]
        for method in methods:
            yield method.upper(), path


def test_every_route_but_health_needs_a_key(client: TestClient, recommending: TestClient) -> None:
    asked = 0
    for one, below in ((client, ""), (recommending, PATH)):
        pages = [("GET", f"{below}/docs"), ("GET", f"{below}/openapi.json"), ("GET", "/nothing")]
        for method, path in [*routes(one), *pages]:
            if path.endswith("/healthz"):
                continue
            asked += 1
            answer = one.request(method, path, content=b"x" * 100_000)  # not even read
            refused(answer, 401, "no_key")
            assert answer.headers["www-authenticate"].startswith("Basic realm=")
            refused(one.request(method, path, headers=bearer("guess")), 401, "wrong_key")
            status = one.request(method, path, headers=bearer(READ)).status_code
            assert status not in (401, 403, 429), (method, path)
    assert asked >= 12
    assert client.get("/healthz").status_code == 200


def test_roles(client: TestClient, recommending: TestClient) -> None:
    for one, path in ((client, "/v1/admin/swap"), (recommending, f"{PATH}/admin")):
        refused(one.post(path, headers=bearer(READ)), 403, "forbidden")
        refused(one.post(path, auth=("me", ADMIN)), 403, "forbidden")
        refused(one.post(path, headers=bearer(ADMIN)), 404, "not_found")  # there are none yet
    assert client.get("/v1/version", auth=("me", READ)).status_code == 200
    assert client.get("/v1/version", headers=bearer(ADMIN)).status_code == 200


def test_too_often(client: TestClient) -> None:
    assert client.get("/v1/version", headers=bearer(SLOW)).status_code == 200
    answer = client.get("/v1/version", headers=bearer(SLOW))
    refused(answer, 429, "rate_limited")
    assert answer.headers["retry-after"] == "2"
    assert client.get("/v1/version", headers=bearer(READ)).status_code == 200


def test_request_ids_are_taken_or_made_and_returned(client: TestClient) -> None:
    path = "/v1/version"
    own = client.get(path, headers=bearer(READ, **{"X-Request-ID": "job-7/3"}))
    assert own.headers.get_list("x-request-id") == ["job-7/3"]
    made = {client.get(path, headers=bearer(READ)).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    long = client.get(path, headers=bearer(READ, **{"X-Request-ID": "x" * 500}))
    assert long.headers["x-request-id"] == "x" * 128
    for refusal in (client.get(path), client.get("/nothing", headers=bearer(READ))):
        assert refusal.headers["x-request-id"]


def test_a_server_that_returns_ids_itself_is_left_to_it(served: Any, backend: Any) -> None:
    version = match(served.encoder_uri, served.index_uri)
    app = make_app(backend, version, Limits(), Operations(returns_ids=False))
    with TestClient(app) as client:
        assert "x-request-id" not in client.get("/v1/version").headers


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [r.__dict__["access"] for r in caplog.records if r.name == "serve_apps.access"]


def test_a_line_a_request(
    client: TestClient, meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_apps.access")
    meter.counted.clear()
    headers = bearer(READ, **{"X-Request-ID": "abc"})
    answer = client.post("/v1/knn", json=KNN, headers=headers)
    client.post("/v1/knn", json={"queries": [{"item_id": "nobody"}]}, headers=headers)
    client.get("/v1/secret-path", headers=headers)
    client.get("/v1/version")
    client.request("BREW", "/v1/version", headers=headers)
    told = lines(caplog)
    assert [tuple(one[name] for name in ("method", "route", "status", "refused", "caller"))
            for one in told] == [
        ("POST", "/v1/knn", 200, None, "reader"),
        ("POST", "/v1/knn", 404, "unknown_item", "reader"),
        ("GET", "unknown", 404, "not_found", "reader"),
        ("GET", "unknown", 401, "no_key", "anonymous"),
        ("other", "/v1/version", 405, "method_not_allowed", "reader"),
    ]  # fmt: skip
    assert {one["request_id"] for one in told[:3]} == {"abc"}
    assert told[0]["bytes_in"] == int(answer.request.headers["content-length"])
    assert told[0]["bytes_out"] == len(answer.content)
    assert told[0]["ms"] > 0
    assert {one["service"] for one in told} == {"Raycall content"}
    assert meter.counted == [(one["route"], one["status"], one["caller"]) for one in told]


def test_nothing_in_the_log_tells_a_key_or_a_body(
    client: TestClient,
    recommending: TestClient,
    backend: LocalBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx2", "httpcore2", "asyncio"):  # of the client, who may
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    raw = {"content-type": wire.MEDIA_TYPE}

    async def broken(*_: Any) -> None:
        raise RuntimeError(MESSAGE)

    for header in (bearer(READ), bearer(f"{READ}x"), {"Authorization": READ}):
        client.post("/v1/embed", json={"inputs": [{"text": "SECRET"}]}, headers=header)
        client.post("/v1/embed", json={"inputs": [{"SECRET": "SECRET"}]}, headers=header)
        client.post("/v1/embed", content=b"{SECRET", headers={**header, **raw})
        client.post("/v1/knn", json={"queries": [{"item_id": "SECRET"}]}, headers=header)
        client.post("/v1/knn", content="SECRET" * 9_000, headers=header)
        client.get("/v1/SECRET?key=SECRET", headers=header)
        with monkeypatch.context() as patched:
            patched.setattr(backend, "encode", broken)
            answer = client.post("/v1/embed", json={"inputs": [{"text": "a"}]}, headers=header)
        if header == bearer(READ):
            refused(answer, 500, "internal")
            assert answer.headers["x-request-id"]
    refused(recommending.post(PATH, json={"user": "SECRET"}, headers=bearer(READ)), 500, "internal")
    everything = "\n".join(f"{r.getMessage()} {r.__dict__}" for r in caplog.records)
    assert "failed with RuntimeError at" in everything  # and where
    assert "in embed" in everything
    for secret in ("SECRET", READ, READ[:12]):
        assert secret not in everything


def test_bytes_have_keys_too(served: Any, client: TestClient) -> None:
    rows = wire.pack_rows(np.ones((1, 16)))
    kind = {"content-type": wire.MEDIA_TYPE}
    refused(client.post("/v1/knn/raw", content=rows, headers=kind), 401, "no_key")
    good = client.post("/v1/knn/raw", content=rows, headers=bearer(READ, **kind))
    assert good.status_code == 200
