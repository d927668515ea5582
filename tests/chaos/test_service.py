"""Both services behind HAProxy under load, while versions are swapped, clients are slow, and one
process after the other is killed: callers notice nothing of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx2
import numpy as np
import pytest
from running import NUM_REPLICAS, Running, started
from sides import Ask, Side, UsersSide, questions, two_sides, two_users_sides
from slow_clients import answer_of, connect, dribble, head, opened
from under_load import Callers, asking, kill_one

from rec.client import Client, RequestError
from serve_apps.keys import new_key

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ADMIN, ADMIN_LINE = new_key("keeper", "admin")
READ, READ_LINE = new_key("reader", rate_per_s=1e6)
CONTENT, USERS = "ray::ServeReplica:content:", "ray::ServeReplica:recommend:"
MAX_BODY_S = 3.0


@pytest.fixture(scope="module")
def running(
    served: Any, recommendable: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"{ADMIN_LINE}\n{READ_LINE}\n")
    users = recommendable["sasrec"]
    with started(
        ["--keys", str(keys), "--encoder", served.encoder_uri, "--index", served.index_uri,
         "--user-encoder", users.encoder, "--item-index", users.index, "--sequences", users.rows,
         "--set", f"limits.max_body_s={MAX_BODY_S}"]
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def url(running: Running) -> str:
    return running.url


@pytest.fixture(scope="module")
def sides(
    served: Any, make_encoder: Any, publish_index: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Side, Side]:
    return two_sides(served, make_encoder, publish_index, tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="module")
def users(recommendable: Any) -> tuple[UsersSide, UsersSide]:
    return two_users_sides(recommendable)


@pytest.fixture
def admin(url: str) -> Iterator[Client]:
    with Client(url, key=ADMIN, timeout_s=120) as client:
        yield client


@pytest.fixture
def asks(served: Any, sides: tuple[Side, Side], users: tuple[UsersSide, UsersSide]) -> list[Ask]:
    return questions(served, sides, users)


def refused(client: Client, path: str, body: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as told:
        client.call(path, body)
    return told.value


def swap_to(admin: Client, to: Side | UsersSide, below: str = "/v1/admin") -> None:
    """Swap, and hold what is told then to it: all replicas have it, and it is in use."""
    swapped = admin.call(f"{below}/swap", {"encoder": to.encoder, "index": to.index})
    assert swapped["current"]["model_version"] == to.model_version
    assert all(one["up_to_date"] for one in swapped["replicas"])
    version = "/v1/version" if below == "/v1/admin" else "/v1/recommend/version"
    assert admin.call(version)["model_version"] == to.model_version


def go_back(admin: Client, to: Side | UsersSide, below: str = "/v1/admin") -> None:
    back = admin.call(f"{below}/rollback", {})
    assert back["current"]["model_version"] == to.model_version


def test_keys_and_large_pictures(url: str, served: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), np.uint8)
    large = cv2.imencode(".png", noise)[1].tobytes()
    assert len(large) > 5_000_000  # gRPC's own limit is 4 MiB
    with Client(url) as client, pytest.raises(RequestError, match="401 no_key"):
        client.call("/v1/version")
    with Client(url, key=READ) as client:
        vectors = client.embed([large]).vectors
        np.testing.assert_allclose(vectors, served.encoder.encode_images([large]), atol=1e-5)
        with pytest.raises(RequestError, match=r"422 .*not a picture"):
            client.embed([b"hi"])


def test_swaps_and_steps_back(
    sides: tuple[Side, Side],
    users: tuple[UsersSide, UsersSide],
    url: str,
    admin: Client,
    asks: list[Ask],
) -> None:
    (first, second), below = sides, "/v1/recommend/admin"
    with asking(asks, url, READ) as callers:
        with Client(url, key=READ) as reader:
            assert refused(reader, "/v1/admin/rollback", {}).status == 403
        callers.go_on(5)
        versions = admin.call("/v1/admin/versions")
        assert versions["current"]["model_version"] == first.model_version
        assert len(versions["replicas"]) == sum(
            NUM_REPLICAS[name] for name in ("Encoder", "Knn", "Gateway")
        )
        told = refused(admin, "/v1/admin/rollback", {})
        assert (told.status, told.code) == (409, "nothing_before")
        for _ in range(2):
            swap_to(admin, second)
            swap_to(admin, users[1], below)
            callers.go_on(5)
            go_back(admin, first)
            go_back(admin, users[0], below)
            callers.go_on(5)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_what_is_damaged_is_refused_while_the_old_version_answers(
    served: Any,
    sides: tuple[Side, Side],
    url: str,
    admin: Client,
    asks: list[Ask],
    publish_index: Callable[..., str],
    tmp_path: Path,
) -> None:
    first, second = sides
    with asking(asks, url, READ) as callers:
        for damage in (_flip, _cut):
            folder = tmp_path / damage.__name__
            torn = publish_index(folder, served.ids[:6], served.vectors[:6], first.model_version)
            file = next(Path(torn).rglob("index.faiss"))
            damage(file)
            told = refused(admin, "/v1/admin/swap", {"index": torn})
            assert (told.status, told.code) == (409, "swap_failed")
            assert "Knn" in told.message
            assert str(file) in told.message
        told = refused(admin, "/v1/admin/swap", {"index": second.index})
        assert (told.status, told.code) == (422, "unusable_artifact")
        versions = admin.call("/v1/admin/versions")
        assert versions["current"]["model_version"] == first.model_version
        assert (versions["last"]["what"], versions["last"]["done"]) == ("swap", False)
        callers.go_on(5)


def test_slow_clients_keep_nobody_waiting(url: str, asks: list[Ask]) -> None:
    """More of them than two gateways take requests at once: 64 each, and 256 that wait."""
    body = json.dumps({"queries": [{"item_id": "item-1"}], "k": 2}).encode()
    whole = head("/v1/knn", READ, len(body)) + body
    with (
        asking(asks, url, READ) as callers,
        opened(url, 100, whole[:-40]) as bodies,
        opened(url, 200, head("/v1/knn", READ, 10)[:-2]),
    ):
        callers.go_on(5)
        dribble(bodies[:20], MAX_BODY_S)
        for one in bodies[50:]:
            status, told = answer_of(one)
            assert (status, json.loads(told)["error"]["type"]) == (408, "body_too_slow")
        # half-closed connections, with which HAProxy does not deal: it takes their clients for gone
        for sent in (whole, whole[:-5], whole[:20]):
            with connect(url) as one:
                one.sendall(sent)
                one.shutdown(1)
                assert answer_of(one)[0] in ((0, 200, 400) if sent == whole else (0, 400, 408))
        callers.go_on(5)


def test_no_request_fails_when_a_replica_or_the_controller_is_killed(
    sides: tuple[Side, Side],
    users: tuple[UsersSide, UsersSide],
    running: Running,
    admin: Client,
    asks: list[Ask],
) -> None:
    """The client asks again, once; a replica that starts later takes what is in use, not what was
    deployed."""
    swap_to(admin, sides[1])
    swap_to(admin, users[1], "/v1/recommend/admin")
    root = running.process.pid
    with asking(asks, running.url, READ) as callers:
        # the controller in between: it has to go on with what it finds
        kill_one(callers, rf"{CONTENT}Knn\b", NUM_REPLICAS["Knn"], root)
        kill_one(callers, "ray::ServeController", 1, root)
        kill_one(callers, rf"{CONTENT}Gateway\b", NUM_REPLICAS["Gateway"], root)
        kill_one(callers, rf"{USERS}Recommend\b", NUM_REPLICAS["Recommend"], root)
        assert admin.call("/v1/version")["model_version"] == sides[1].model_version
        go_back(admin, sides[0])
        go_back(admin, users[0], "/v1/recommend/admin")
        callers.go_on(5)


def test_callers_with_patience_notice_nothing_of_a_killed_haproxy(
    running: Running, asks: list[Ask]
) -> None:
    from ray.serve._private.haproxy import get_haproxy_binary

    with asking(asks, running.url, READ, patience_s=60) as callers:
        since = time.monotonic()
        kill_one(callers, re.escape(get_haproxy_binary()), 1, running.process.pid)
        assert time.monotonic() - since < 60


def test_what_is_under_way_is_finished_on_sigterm(running: Running, asks: list[Ask]) -> None:
    """The last one: there is no service afterwards."""
    callers = Callers(asks, running.url, READ, 0.0)
    callers.start()
    try:
        callers.go_on(5)
        asked = time.monotonic()
        rest = running.stop()
        took = time.monotonic() - asked
    finally:
        callers.stop()
    assert running.process.returncode == 0
    assert "requests under way are finished first" in rest
    assert took < 45  # however crowded the machine is; Serve's own 30 s a replica would be more
    assert not callers.wrong
    assert all(when > asked for when, _ in callers.failures)
    told = {(one.status, one.code, type(one.__cause__).__name__) for _, one in callers.failures}
    assert told <= {(None, "no_answer", "ConnectError"), (404, "no_route", "NoneType")}, told
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(running.url)
