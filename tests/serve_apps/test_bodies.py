"""Bodies that are long or slow, and clients that stop halfway, at a real server without Ray."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from local_backend import LocalBackend, listening
from slow_clients import answer_of, connect, dribble, head, opened

from rec.client import Client
from serve_apps.gateway import Limits, make_app
from serve_apps.versions import match

ASKED = json.dumps({"inputs": [{"text": "red river"}]}).encode()
MAX_S = 1.0


@pytest.fixture(scope="module")
def url(served: Any) -> Iterator[str]:
    limits = Limits(max_body_bytes=20_000, max_body_s=MAX_S, max_embed_s=0.5)
    app = make_app(LocalBackend(served), match(served.encoder_uri, served.index_uri), limits)
    with listening(app) as url:
        yield url


def error_of(body: bytes) -> dict[str, str]:
    return json.loads(body)["error"]


def test_a_slow_body_is_refused_and_nobody_waits_for_it(url: str, served: Any) -> None:
    with opened(url, 50, head("/v1/embed", "", 10_000) + b"{") as slow, Client(url) as client:
        since = time.monotonic()
        for text in served.texts:  # more wait than would be admitted if the slow ones counted
            assert client.embed([text]).vectors.shape == (1, 16)
        dribble(slow, MAX_S)
        for one in slow:
            status, body = answer_of(one)
            assert (status, error_of(body)["type"]) == (408, "body_too_slow")
            assert error_of(body)["message"] == (
                "body: not whole after 1 s; send it faster, or less at once"
            )
            assert one.recv(1) == b""  # closed
        assert MAX_S <= time.monotonic() - since < 20 * MAX_S


def test_a_head_that_does_not_end_keeps_nobody_waiting(url: str, served: Any) -> None:
    with opened(url, 100, head("/v1/embed", "", 10)[:-2]) as slow, Client(url) as client:
        dribble(slow, 0.5)
        assert client.embed(served.texts[:1]).vectors.shape == (1, 16)


def test_a_long_body_is_refused_before_it_has_come(url: str) -> None:
    with opened(url, 1, head("/v1/embed", "", 50_000) + b"{") as (one,):
        status, body = answer_of(one)
        assert (status, error_of(body)["type"]) == (413, "body_too_large")
        assert error_of(body)["message"] == "body: more than 20000 bytes; send less at once"


@pytest.mark.parametrize("sent", [ASKED, ASKED[:5], b""])
def test_a_client_that_sends_no_more(
    url: str, served: Any, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-closed connection: it is answered or closed, and the log has no exception."""
    with connect(url) as one:
        one.sendall(head("/v1/embed", "", len(ASKED)) + sent)
        one.shutdown(socket.SHUT_WR)
        status, _ = answer_of(one)
        assert status in ((0, 200) if sent == ASKED else (0, 400, 408))
    with Client(url) as client:
        assert client.embed(served.texts[:1]).vectors.shape == (1, 16)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
