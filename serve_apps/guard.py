"""Who may ask, and how often: API keys with roles, a token bucket a key. Knows nothing of Ray."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pydantic import Field
from starlette.types import Scope

from rec.artifacts import ArtifactError, read_bytes
from rec.config import Config, ConfigError
from serve_apps.errors import ApiError
from serve_apps.keys import Key, find, parse_keys

logger = logging.getLogger(__name__)

VARIABLE = "RAYCALL_API_KEYS"
REREAD_S = 10.0  # so long a key that was taken out of the file may go on
NOBODY = "anonymous"

_OPEN_PER_S = 50.0  # requests without a key, of all callers: health, which costs a search
_SAID = "give an API key in the header Authorization: Bearer KEY"


class Access(Config):
    """Who may ask the service."""

    keys_file: str | None = None  # path or s3:// URI; without one, RAYCALL_API_KEYS has the lines
    keys: tuple[str, ...] = ()  # lines of such a file, to go without either
    off: bool = False  # ask for no key: only where the service listens on a loopback interface
    rate_per_s: float = Field(default=200.0, gt=0)  # requests of a key, at each gateway replica
    burst_s: float = Field(default=2.0, gt=0)  # so many seconds' worth of them may come at once


class TokenBucket:
    """Fills at a rate and holds no more than a burst; a request takes one token."""

    def __init__(self, rate_per_s: float, burst_s: float, now: float) -> None:
        self._rate, self._size = rate_per_s, max(1.0, rate_per_s * burst_s)
        self._tokens, self._at = self._size, now

    def take(self, now: float) -> float:
        """0 where there was a token; else nothing is taken and it says in how many seconds."""
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class _Given(NamedTuple):
    key: str
    by_browser: bool  # which sends it with whatever another site makes it ask, too


class Guard:
    """Admits requests or refuses them. Used within one event loop.

    Args:
        access: the rules.
        environment, clock: the process's own.

    Raises:
        ConfigError: there are no keys, or they cannot be read.
    """

    def __init__(
        self,
        access: Access,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access, self._environment, self._clock = access, environment, clock
        self._keys = [] if access.off else self._read()
        self._read_at = clock()
        self._reading = threading.Lock()
        self._buckets: dict[str, TokenBucket] = {}

    def admit(self, scope: Scope, role: str | None) -> str:
        """The name of who asks, where they may.

        Args:
            scope: of ASGI.
            role: that the route needs; None: anybody may ask.

        Raises:
            ApiError: 401 without a good key, 403 without the role, 429 where it is too often.
        """
        if self._access.off:
            _refuse_strangers(scope)
            return NOBODY
        if role is None:
            self._take(NOBODY, _OPEN_PER_S)
            return NOBODY
        self._read_again()
        given = _given(scope)
        if given is None:
            raise ApiError(401, "no_key", _SAID)
        key = find(self._keys, given.key)
        if key is None:
            raise ApiError(401, "wrong_key", f"this key is not known here: {_SAID}")
        if not key.may(role) or (given.by_browser and role != "read"):
            how = " in a Bearer header, not as a password" if key.may(role) else ""
            raise ApiError(403, "forbidden", f"this needs a key of role {role}{how}")
        self._take(key.name, key.rate_per_s or self._access.rate_per_s)
        return key.name

    def _take(self, name: str, rate_per_s: float) -> None:
        now = self._clock()
        if name not in self._buckets:
            self._buckets[name] = TokenBucket(rate_per_s, self._access.burst_s, now)
        wait_s = self._buckets[name].take(now)
        if wait_s:
            raise ApiError(
                429,
                "rate_limited",
                f"more than {rate_per_s:g} requests a second: slow down, or get a key with more",
                retry_after_s=math.ceil(wait_s),
            )

    def _read(self) -> list[Key]:
        access = self._access
        keys = parse_keys("\n".join(access.keys), "access.keys")
        if access.keys_file is not None:
            try:
                text = read_bytes(access.keys_file).decode()
            except (OSError, ArtifactError, UnicodeDecodeError) as error:
                raise ConfigError(f"{access.keys_file}: keys cannot be read: {error}") from error
            keys += parse_keys(text, access.keys_file)
        elif not access.keys:
            keys = parse_keys(self._environment.get(VARIABLE, ""), VARIABLE)
        if not keys:
            raise ConfigError(
                f"no API keys: make one with python -m serve_apps.keys NAME and put its line into "
                f"a file (access.keys_file) or {VARIABLE}; on a loopback interface access.off "
                "(--no-keys) goes without"
            )
        return keys

    def _read_again(self) -> None:
        """Read the file now and then, in a thread: it may be far away."""
        if self._access.keys_file is None or self._clock() - self._read_at < REREAD_S:
            return
        self._read_at = self._clock()
        threading.Thread(target=self._replace, name="keys", daemon=True).start()

    def _replace(self) -> None:
        with self._reading:
            try:
                keys = self._read()
            except ConfigError as error:
                logger.error("the keys stay as they were: %s", error)
                return
            changed = {old.name for old in self._keys if old not in keys}
            self._keys = keys
        for name in changed:  # the rate may be another
            self._buckets.pop(name, None)


def _given(scope: Scope) -> _Given | None:
    """The key of the Authorization header, also as the password that a browser asks for."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    kind, _, rest = header.decode("utf-8", "surrogateescape").partition(" ")
    if kind.lower() == "bearer" and rest.strip():
        return _Given(rest.strip(), by_browser=False)
    if kind.lower() == "basic":
        try:
            pair = base64.b64decode(rest, validate=True).decode("utf-8", "surrogateescape")
        except (binascii.Error, ValueError):
            return None
        return _Given(pair.partition(":")[2], by_browser=True)
    return None


def _refuse_strangers(scope: Scope) -> None:
    """Raise ApiError where a caller is not on this machine: without keys nobody else may ask."""
    peer, own = ((scope.get(name) or (None,))[0] for name in ("client", "server"))
    # a proxy on this machine has the machine's address at both ends
    if peer is None or (not is_loopback(peer) and peer != own):
        raise ApiError(
            403,
            "keys_needed",
            "this service asks for no keys (access.off), so it answers callers on its own machine "
            "alone: start it with keys",
        )


def is_loopback(host: str | None) -> bool:
    """Whether nobody but this machine can reach that host name or address."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
