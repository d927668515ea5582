"""What the client makes of answers, refusals and silence, against a service that is made up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from rec.client import AsyncClient, Client, RequestError

OK = httpx2.Response(200, json={"status": "ok"})
# of Serve's proxies, HAProxy or not, where they know of no service
NO_ROUTE = httpx2.Response(
    404, text="Path '/healthz' not found. Ping http://.../-/routes for available routes."
)


class Service:
    """Answers by turns; an exception among them is raised, the last one is repeated."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


def blocking(
    service: Service, path: str = "/healthz", body: Any = None, **how: float
) -> dict[str, Any]:
    transport = httpx2.MockTransport(service)
    with Client("http://there", key="secret", transport=transport, **how) as client:
        return client.call(path, body)


def awaited(
    service: Service, path: str = "/healthz", body: Any = None, **how: float
) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        transport = httpx2.MockTransport(service)
        async with AsyncClient("http://there", key="secret", transport=transport, **how) as client:
            return await client.call(path, body)

    return asyncio.run(main())


def refusal(status: int, kind: str = "busy", **headers: str) -> httpx2.Response:
    body = {"error": {"type": kind, "message": "the reason"}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, json=body, headers=named)


both = pytest.mark.parametrize("call", [blocking, awaited])
Call = Callable[..., dict[str, Any]]


@both
def test_a_request_has_its_key_its_id_and_its_body(call: Call) -> None:
    service = Service(OK)
    assert call(service, "/v1/x", {"a": 1}) == {"status": "ok"}
    assert call(service) == {"status": "ok"}
    post, get = service.requests
    assert (post.method, str(post.url)) == ("POST", "http://there/v1/x")
    assert json.loads(post.content) == {"a": 1}
    assert get.method == "GET"
    for request in (post, get):
        assert request.headers["authorization"] == "Bearer secret"
    assert len({request.headers["x-request-id"] for request in (post, get)}) == 2


@both
@pytest.mark.parametrize(
    "first",
    [
        httpx2.ConnectError("refused"),
        httpx2.ConnectTimeout("refused"),
        httpx2.ReadError("reset"),
        httpx2.RemoteProtocolError("closed"),
        refusal(503, Retry_After="0"),
        refusal(429, "rate_limited", Retry_After="0"),
        refusal(503),
        httpx2.Response(503, text="Service Unavailable"),
        httpx2.Response(500, text="Internal Server Error"),  # Serve's, of a replica that was killed
        httpx2.Response(502, text="<html>"),
        NO_ROUTE,
    ],
)
def test_what_may_pass_is_tried_again_once_under_the_same_id(call: Call, first: Any) -> None:
    service = Service(first, OK)
    assert call(service) == {"status": "ok"}
    assert len({request.headers["x-request-id"] for request in service.requests}) == 1
    twice = Service(first, first, OK)
    with pytest.raises(RequestError):
        call(twice)
    assert len(twice.requests) == 2


@both
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refusal(400, "malformed_json"), "malformed_json"),
        (refusal(401, "no_key"), "no_key"),
        (refusal(404, "unknown_item"), "unknown_item"),
        (refusal(409, "model_mismatch"), "model_mismatch"),
        (refusal(422, "invalid_request", Retry_After="0"), "invalid_request"),
        (refusal(500, "internal"), "internal"),  # our own: it would fail again
        (refusal(504, "late"), "late"),
        (refusal(503, Retry_After="3600"), "busy"),  # longer than anybody waits
        (httpx2.Response(404, text="no such page"), "http_error"),
        (httpx2.ReadTimeout("late"), "timeout"),  # it may still be at work on the first
        (httpx2.Response(200, text="<html>"), "malformed_answer"),
        (httpx2.Response(302, headers={"Location": "http://elsewhere"}), "http_error"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(call: Call, answer: Any, code: str) -> None:
    service = Service(answer, OK)
    with pytest.raises(RequestError) as told:
        call(service)
    (request,) = service.requests
    error = told.value
    assert error.code == code
    assert error.request_id == request.headers["x-request-id"]
    assert error.request_id in str(error)
    assert "secret" not in str(error)
    if isinstance(answer, httpx2.Response):
        assert error.status == answer.status_code
        assert str(error).startswith(f"{answer.status_code} {code}: ")
    else:
        assert error.status is None
        assert isinstance(error.__cause__, httpx2.TransportError)


@both
def test_retry_after_is_kept_to(call: Call) -> None:
    started = time.monotonic()
    assert call(Service(refusal(429, Retry_After="1"), OK)) == {"status": "ok"}
    assert time.monotonic() - started >= 1
    with pytest.raises(RequestError) as told:
        call(Service(refusal(503, Retry_After="60")))
    assert told.value.retry_after_s == 60
    assert told.value.message == "the reason"
    date = refusal(503, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")
    assert call(Service(date, OK)) == {"status": "ok"}


@both
@pytest.mark.parametrize(
    ("nobody", "code"), [(httpx2.ConnectError("refused"), "no_answer"), (NO_ROUTE, "no_route")]
)
def test_where_nobody_listens_it_is_tried_for_as_long_as_was_said(
    call: Call, nobody: Any, code: str
) -> None:
    service = Service(nobody, nobody, nobody, refusal(503, Retry_After="0"), OK)
    assert call(service, patience_s=60) == {"status": "ok"}  # and once more where it was busy
    assert len(service.requests) == 5
    service, since = Service(nobody), time.monotonic()
    with pytest.raises(RequestError, match=code):
        call(service, patience_s=0.5)
    assert 0.5 < time.monotonic() - since < 20
    # what got through may have been done: that is no matter of patience
    lost = Service(httpx2.ReadError("reset"))
    with pytest.raises(RequestError):
        call(lost, patience_s=60)
    assert len(lost.requests) == 2


@both
def test_what_changes_something_is_asked_once(call: Call) -> None:
    service = Service(httpx2.ReadError("reset"), OK)
    with pytest.raises(RequestError, match="no_answer"):
        call(service, "/v1/admin/rollback", {})
    assert len(service.requests) == 1
    assert call(Service(httpx2.ReadError("reset"), OK), "/v1/admin/versions") == {"status": "ok"}


def test_an_answer_without_its_fields_is_told_as_such() -> None:
    with Client("http://there", transport=httpx2.MockTransport(Service(OK))) as client:
        for ask in (
            lambda: client.embed(["a text"]),
            lambda: client.knn_items(["item"]),
            lambda: client.recommend(["item"]),
        ):
            with pytest.raises(RequestError, match="malformed_answer") as told:
                ask()
            assert told.value.status == 200


@pytest.mark.parametrize("timeout_s", [0.2])
def test_nobody_waits_for_ever(timeout_s: float) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with Client(url, timeout_s=timeout_s) as client, pytest.raises(RequestError) as told:
            client.call("/healthz")
        assert told.value.code == "timeout"
        assert time.monotonic() - started < 20
    with Client(url, timeout_s=timeout_s) as client, pytest.raises(RequestError) as told:
        client.call("/healthz")  # nobody listens there any more
    assert told.value.code == "no_answer"
