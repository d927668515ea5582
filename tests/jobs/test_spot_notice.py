"""A spot node's metadata are asked as EC2 has them, and Ray is told once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from jobs import spot_notice


class Metadata(BaseHTTPRequestHandler):
    """EC2's, version 2: a token first, then 404 until there is a notice."""

    looks = 0
    end: datetime

    def do_PUT(self) -> None:
        ok = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in (
            self.headers
        )
        self.answer(200 if ok else 400, "the token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "the token":
            self.answer(401, "")
            return
        Metadata.looks += 1
        if self.path != "/latest/meta-data/spot/instance-action" or Metadata.looks < 3:
            self.answer(404, "")
            return
        time = self.end.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.answer(200, json.dumps({"action": "terminate", "time": time}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(spot_notice, "_POLL_S", 0.01)
    Metadata.looks, Metadata.end = 0, datetime.now(UTC) + timedelta(seconds=120)
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_ray_is_told_once_there_is_a_notice(metadata: str) -> None:
    told: list[float] = []
    spot_notice.watch(metadata, told.append)
    assert len(told) == 1
    assert 60 < told[0] <= 120
    assert Metadata.looks == 3


def test_a_machine_without_metadata_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spot_notice, "_POLL_S", 0.01)
    told: list[float] = []
    spot_notice.watch("http://127.0.0.1:1", told.append)
    assert told == []
    assert capsys.readouterr().err.count("127.0.0.1:1") == 3


def test_the_command_of_ray_has_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.scripts.scripts import drain_node

    ran: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: ran.append(command))
    spot_notice.drain(119.6)
    known = {name: option for option in drain_node.params for name in option.opts}
    words = ran[0][2:]
    assert words[::2] == [name for name in words[::2] if name in known]
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--reason"] in known["--reason"].type.choices  # type: ignore[attr-defined]
    assert given["--deadline-remaining-seconds"] == "119"
