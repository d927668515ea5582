"""Who may ask and how often, by the clock of the test."""

from __future__ import annotations

import base64
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.config import ConfigError
from serve_apps.errors import ApiError
from serve_apps.guard import REREAD_S, VARIABLE, Access, Guard, TokenBucket, is_loopback
from serve_apps.keys import new_key

READ, READ_LINE = new_key("reader")
ADMIN, ADMIN_LINE = new_key("keeper", "admin", 1000)
BOTH = Access(keys=(READ_LINE, ADMIN_LINE))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scope(header: str | None = None, client: Any = ("10.0.0.9", 5), server: Any = None) -> Any:
    headers = [] if header is None else [(b"authorization", header.encode())]
    return {"headers": headers, "client": client, "server": server}


def bearer(key: str) -> Any:
    return scope(f"Bearer {key}")


def basic(key: str) -> Any:
    return scope("Basic " + base64.b64encode(f"anybody:{key}".encode()).decode())


def refused(guard: Guard, asked: Any, role: str | None) -> ApiError:
    with pytest.raises(ApiError) as told:
        guard.admit(asked, role)
    return told.value


def test_keys_are_told_apart_and_roles_kept() -> None:
    guard = Guard(BOTH)
    assert guard.admit(bearer(READ), "read") == "reader"
    assert guard.admit(scope(f"bearer  {READ} "), "read") == "reader"
    assert guard.admit(basic(READ), "read") == "reader"
    for role in ("read", "admin"):
        assert guard.admit(bearer(ADMIN), role) == "keeper"
    assert guard.admit(scope(), None) == "anonymous"
    error = refused(guard, bearer(READ), "admin")
    assert (error.status, error.kind) == (403, "forbidden")
    assert "role admin" in error.message
    # a browser sends it with what another site makes it send, too
    assert "Bearer header" in refused(guard, basic(ADMIN), "admin").message


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (None, "no_key"),
        ("Bearer", "no_key"),
        ("Bearer  ", "no_key"),
        ("{key}", "no_key"),
        ("Basic %%%", "no_key"),
        ("Digest x", "no_key"),
        ("Bearer {cut}", "wrong_key"),
        ("Bearer {key}x", "wrong_key"),
        ("Basic YQ==", "wrong_key"),
        ("Bearer é\u20ac", "wrong_key"),
    ],
)
def test_without_a_good_key(header: str | None, kind: str) -> None:
    if header is not None:  # the key is another one in each process, and names of tests are not
        header = header.format(key=READ, cut=READ[:-1])
    error = refused(Guard(BOTH), scope(header), "read")
    assert (error.status, error.kind) == (401, kind)
    assert "Authorization: Bearer KEY" in error.message
    assert READ not in error.message


def test_each_key_has_a_rate_of_its_own() -> None:
    clock = Clock()
    access = BOTH.model_copy(update={"rate_per_s": 2.0, "burst_s": 2.0})
    guard = Guard(access, clock=clock)
    for _ in range(4):
        guard.admit(bearer(READ), "read")
    error = refused(guard, bearer(READ), "read")
    assert (error.status, error.kind, error.retry_after_s) == (429, "rate_limited", 1)
    assert "2 requests a second" in error.message
    for _ in range(500):
        guard.admit(bearer(ADMIN), "read")  # its line says 1000
    clock.now += 0.5
    guard.admit(bearer(READ), "read")
    assert refused(guard, bearer(READ), "read").status == 429
    slow = access.model_copy(update={"rate_per_s": 0.1, "burst_s": 1.0})
    guard = Guard(slow, clock=clock)
    guard.admit(bearer(READ), "read")
    assert refused(guard, bearer(READ), "read").retry_after_s == 10


def test_health_without_a_key_has_a_rate_too() -> None:
    guard = Guard(BOTH, clock=Clock())
    for _ in range(100):
        guard.admit(scope(), None)
    assert refused(guard, scope(), None).status == 429
    guard.admit(bearer(READ), "read")


@given(
    rate=st.floats(0.1, 1e4),
    burst=st.floats(0.1, 10),
    waits=st.lists(st.floats(0, 3), min_size=1, max_size=50),
)
def test_a_bucket_gives_no_more_than_its_rate_and_keeps_its_word(
    rate: float, burst: float, waits: list[float]
) -> None:
    now = 0.0
    bucket = TokenBucket(rate, burst, now)
    for taken, wait in enumerate(waits, 1):
        now += wait
        left = bucket.take(now)
        if left:
            now += left * (1 + 1e-6) + 1e-9
            assert bucket.take(now) == 0.0  # as long as it said
        assert taken <= max(1.0, rate * burst) + rate * now + 1e-3


def test_keys_come_from_the_environment_or_from_a_file(tmp_path: Path) -> None:
    guard = Guard(Access(), {VARIABLE: f"{READ_LINE};{ADMIN_LINE}"})
    assert guard.admit(bearer(ADMIN), "admin") == "keeper"
    file = tmp_path / "keys.txt"
    file.write_text(READ_LINE)
    guard = Guard(Access(keys_file=str(file)), {VARIABLE: ADMIN_LINE})
    assert guard.admit(bearer(READ), "read") == "reader"
    assert refused(guard, bearer(ADMIN), "read").kind == "wrong_key"
    for access, said in (
        (Access(), "no API keys: make one with python -m serve_apps.keys"),
        (Access(keys_file=str(tmp_path / "none")), "none: keys cannot be read"),
        (Access(keys_file="ftp://there/keys"), "ftp://there/keys: keys cannot be read"),
        (Access(keys=("x",)), "access.keys, line 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            Guard(access, {})
    file.write_text("# none yet")
    with pytest.raises(ConfigError, match="no API keys"):
        Guard(Access(keys_file=str(file)), {})


def test_a_changed_file_is_read_while_it_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "keys.txt", Clock()
    file.write_text(READ_LINE)
    guard = Guard(Access(keys_file=str(file)), clock=clock)

    def later() -> None:
        clock.now += REREAD_S
        with pytest.raises(ApiError):
            guard.admit(scope("Bearer x"), "read")  # which has it read
        for thread in threading.enumerate():
            if thread.name == "keys":
                thread.join(10)

    file.write_text(ADMIN_LINE)
    assert guard.admit(bearer(READ), "read") == "reader"
    later()
    assert guard.admit(bearer(ADMIN), "read") == "keeper"
    assert refused(guard, bearer(READ), "read").kind == "wrong_key"
    file.write_text("broken")
    later()
    assert "the keys stay as they were" in caplog.text
    assert guard.admit(bearer(ADMIN), "read") == "keeper"


@pytest.mark.parametrize(
    ("client", "server", "admitted"),
    [
        (("127.0.0.1", 5), ("127.0.0.1", 8000), True),
        (("::1", 5), ("::1", 8000), True),
        (("::ffff:127.0.0.1", 5), None, True),
        (("10.0.0.9", 5), ("10.0.0.9", 30000), True),  # a proxy on this machine
        (("10.0.0.8", 5), ("10.0.0.9", 8000), False),
        (("testclient", 5), ("testserver", 80), False),
        (None, None, False),
    ],
)
def test_without_keys_only_this_machine_may_ask(client: Any, server: Any, admitted: bool) -> None:
    guard = Guard(Access(off=True), {})
    asked = scope(client=client, server=server)
    if admitted:
        assert guard.admit(asked, "admin") == "anonymous"
    else:
        error = refused(guard, asked, None)
        assert (error.status, error.kind) == (403, "keys_needed")


def test_which_hosts_nobody_else_reaches() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.0.1", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "", None, "example.com"]))
