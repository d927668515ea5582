"""Files whose names have signs that a URI takes for its own, local and on S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs

from rec.data.media import MediaConfig, media_of_files
from rec.sources import FolderSource

NAMES = ("a b.png", "100%.png", "why?.png", "no#1.png", "a%20b.png", "é.png", "below/x y.png")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, pafs.FileSystem, str]:
    """An empty folder: its URI, its file system, its path there."""
    if request.param == "local":
        return str(tmp_path), pafs.LocalFileSystem(), str(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files, _ = pafs.FileSystem.from_uri("s3://mine?allow_bucket_creation=true")
    files.create_dir("mine")
    return "s3://mine/all", files, "mine/all"


def test_any_name_is_read_as_it_stands(place: tuple[str, pafs.FileSystem, str]) -> None:
    uri, files, path = place
    lines = ["item_id,files"]
    for shade, name in enumerate(NAMES):
        files.create_dir(f"{path}/below", recursive=True)
        data = cv2.imencode(".png", np.full((8, 8, 3), 30 * shade, np.uint8))[1].tobytes()
        with files.open_output_stream(f"{path}/{name}") as stream:
            stream.write(data)
        lines.append(f"i{shade},{name}")
    with files.open_output_stream(f"{path}/items.csv") as stream:
        stream.write("\n".join(lines).encode())
    source = FolderSource(path=uri)
    shades: dict[str, int] = {}
    for shard in source.shards():
        for name, piece in source.read(shard):
            assert name != "problems" or not piece.num_rows
            if name != "files":
                continue
            for media, problems, _ in media_of_files(piece, MediaConfig()):
                assert not problems
                for row in media.to_pylist():
                    pixels = cv2.imdecode(np.frombuffer(row["data"], np.uint8), 0)
                    shades[row["item_id"]] = round(float(pixels.mean()) / 30)
    assert shades == {f"i{shade}": shade for shade in range(len(NAMES))}
