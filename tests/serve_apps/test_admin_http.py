"""The routes of those who run a service, over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from local_backend import LocalBackend
from local_services import refused

from serve_apps.admin import Operator
from serve_apps.board import MemoryBoard
from serve_apps.follower import Follower, pin_held
from serve_apps.gateway import Limits, make_pinned_app
from serve_apps.guard import Access, Guard
from serve_apps.keys import new_key
from serve_apps.knn import Searcher
from serve_apps.observe import Operations
from serve_apps.releases import Pinned, Release
from serve_apps.swap import Swaps
from serve_apps.versions import content_release, content_version

READ, READ_LINE = new_key("reader", rate_per_s=1e6)
ADMIN, ADMIN_LINE = new_key("keeper", "admin", rate_per_s=1e6)
AS_READER = {"authorization": f"Bearer {READ}"}
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}
PLACES = {"encoder", "index", "rows", "model_version", "index_version", "rows_version"}


class Service:
    """The content service in this process, whose index can be swapped."""

    def __init__(self, served: Any, index: str) -> None:
        self.first = content_release(served.encoder_uri, index)
        self.load_s = 0.0
        self._backend, self._board = LocalBackend(served), MemoryBoard()

    def _load(self, release: Release) -> Pinned[Any, Any]:
        time.sleep(self.load_s)
        searcher = Searcher(release.index.uri, release.index.version, release.index.manifest)
        backend = LocalBackend.__new__(LocalBackend)
        backend.__dict__ = {**self._backend.__dict__, "searcher": searcher}
        return Pinned(content_version(release), backend)

    def app(self) -> Any:
        follower = Follower(
            self._board, "gateway", self.first, key=lambda one: one.name, load=self._load,
            poll_s=0.02,
        )  # fmt: skip
        operations = Operations(Guard(Access(keys=(READ_LINE, ADMIN_LINE)), {}))
        app = make_pinned_app(partial(pin_held, follower), Limits(), operations)
        swaps = Swaps(self._board, self.first)
        read = lambda places: content_release(places["encoder"], places["index"])  # noqa: E731
        Operator(swaps, read, wait_s=1.0).add_routes(app, "/v1/admin")
        app.router.on_startup.append(follower.start)
        app.router.on_shutdown.append(follower.stop)
        return app


@pytest.fixture
def index(served: Any, publish_index: Callable[..., str], tmp_path: Path) -> str:
    return publish_index(tmp_path / "one", served.ids, served.vectors, served.encoder.version)


@pytest.fixture
def service(served: Any, index: str) -> Service:
    return Service(served, index)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(service.app(), headers=AS_ADMIN) as client:
        yield client


def test_swap_and_rollback(
    served: Any, client: TestClient, publish_index: Callable[..., str], tmp_path: Path
) -> None:
    first = client.get("/v1/admin/versions").json()
    assert set(first["current"]) == PLACES
    assert first["previous"] is first["preparing"] is first["last"] is None
    assert first["replicas"] == [
        {"name": "gateway", "up_to_date": True, "holds": 1, "failed": None}
    ]
    less = publish_index(
        tmp_path / "two", served.ids[:6], served.vectors[:6], served.encoder.version
    )
    swapped = client.post("/v1/admin/swap", json={"index": less})
    assert swapped.status_code == 200, swapped.text
    told = swapped.json()
    assert (told["current"]["index"], told["previous"]) == (less, first["current"])
    assert (told["last"]["what"], told["last"]["done"]) == ("swap", True)
    assert client.get("/v1/version").json()["num_items"] == 6
    query = {"queries": [{"item_id": "item-9"}], "k": 1}
    refused(client.post("/v1/knn", json=query), 404, "unknown_item", "item-9")
    # who names the version before is answered by it
    old = {"index_version": first["current"]["index_version"]}
    pinned = client.post("/v1/knn", json=query | old).json()
    assert pinned["index_version"] == old["index_version"]
    wrong = client.post("/v1/knn", json=query | {"index_version": "another"})
    refused(wrong, 409, "index_mismatch", "'another'", old["index_version"])
    back = client.post("/v1/admin/rollback")
    assert back.json()["current"] == first["current"]
    assert client.post("/v1/knn", json=query).status_code == 200


def test_what_cannot_be_swapped_to_is_refused(
    served: Any,
    client: TestClient,
    publish_index: Callable[..., str],
    tmp_path: Path,
) -> None:
    alien = publish_index(tmp_path / "alien", served.ids, served.vectors, "0123456789abcdef")
    for body, status, kind, said in (
        ({"index": str(tmp_path / "nothing")}, 422, "unusable_artifact", "not found"),
        ({"index": alien}, 422, "unusable_artifact", "vectors of encoder 0123456789abcdef"),
        ({"rows": "elsewhere"}, 422, "invalid_request", "rows: not a part of"),
        ({"other": 1}, 422, "invalid_request", "other"),
    ):
        refused(client.post("/v1/admin/swap", json=body), status, kind, said)
    refused(client.post("/v1/admin/rollback"), 409, "nothing_before", "is the first")
    torn = publish_index(tmp_path / "torn", served.ids[:5], served.vectors[:5],
                         served.encoder.version)  # fmt: skip
    file = next(Path(torn).rglob("index.faiss"))
    file.write_bytes(file.read_bytes()[:-1])
    answer = client.post("/v1/admin/swap", json={"index": torn})
    refused(answer, 409, "swap_failed", "gateway: ArtifactError", str(file), "Nothing has changed")
    assert client.get("/v1/version").json()["num_items"] == 12


def test_a_swap_that_takes_long_goes_on(
    served: Any,
    service: Service,
    client: TestClient,
    publish_index: Callable[..., str],
    tmp_path: Path,
) -> None:
    less = publish_index(tmp_path / "two", served.ids[:6], served.vectors[:6],
                         served.encoder.version)  # fmt: skip
    service.load_s = 2.0
    swapped = client.post("/v1/admin/swap", json={"index": less})
    assert swapped.status_code == 202
    assert swapped.json()["preparing"]["index"] == less
    assert client.get("/v1/version").json()["num_items"] == 12
    refused(client.post("/v1/admin/rollback"), 409, "swap_in_progress", "wait for it")
    deadline = time.monotonic() + 20
    while client.get("/v1/version").json()["num_items"] != 6:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_only_an_admin_may(client: TestClient) -> None:
    for method, path in (("GET", "versions"), ("POST", "swap"), ("POST", "rollback")):
        answer = client.request(method, f"/v1/admin/{path}", headers=AS_READER)
        refused(answer, 403, "forbidden", "role admin")
        nobody = client.request(method, f"/v1/admin/{path}", headers={"authorization": ""})
        refused(nobody, 401, "no_key")


def test_a_swap_outlives_its_caller(service: Service, served: Any, tmp_path: Path) -> None:
    """The task is held though nobody awaits it, and its failure is told by the versions."""

    async def main() -> None:
        swaps = Swaps(MemoryBoard(), service.first, prepare_s=0.3)  # nobody is there to load
        operator = Operator(swaps, lambda _: service.first, wait_s=0.0)
        other = service.first.model_copy(update={"encoder": service.first.index})
        task = asyncio.create_task(operator._lead("swap", lambda _: other, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while (last := swaps.last()) is None:
            await asyncio.sleep(0.02)
        assert not last.done
        assert "nobody" in last.message

    asyncio.run(main())
