"""Clients that are slow, or half gone, on plain sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    assert place.hostname is not None
    return socket.create_connection((place.hostname, place.port or 80), timeout=30)


def head(path: str, key: str, num_bytes: int) -> bytes:
    """Of a POST of so many bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: here", f"Authorization: Bearer {key}",
             "Content-Type: application/json", f"Content-Length: {num_bytes}", "", ""]  # fmt: skip
    return "\r\n".join(lines).encode()


@contextmanager
def opened(url: str, number: int, first: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that have sent the same and send no more of themselves."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(url)) for _ in range(number)]
        for one in sockets:
            one.sendall(first)
        yield sockets


def dribble(sockets: list[socket.socket], seconds: float) -> None:
    """A byte on each, five times a second; those that the server has closed are passed over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for one in sockets:
            try:
                one.send(b" ")
            except OSError:
                continue
        time.sleep(0.2)


def answer_of(one: socket.socket) -> tuple[int, bytes]:
    """Status and all that came after the head; (0, b"") where the server closed without a word."""
    data = b""
    try:
        while b"\r\n\r\n" not in data or not _whole(data):
            more = one.recv(65536)
            if not more:
                break
            data += more
    except ConnectionError:
        pass
    if not data:
        return 0, b""
    return int(data[9:12]), data.partition(b"\r\n\r\n")[2]


def _whole(data: bytes) -> bool:
    top, _, body = data.partition(b"\r\n\r\n")
    sizes = [
        int(line[15:]) for line in top.lower().split(b"\r\n") if line[:15] == b"content-length:"
    ]
    return bool(sizes) and len(body) >= sizes[0]
