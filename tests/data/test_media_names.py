"""Files whose names have signs that a URI takes for its own, local and on S3."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pyarrow import fs as pafs

from rec.artifacts import filesystem
from rec.data.media import MediaConfig, media_of_files
from rec.sources import FolderSource

NAMES = ("a b.png", "100%.png", "why?.png", "no#1.png", "a%20b.png", "é.png", "below/x y.png")


@pytest.fixture(params=["local", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, pafs.FileSystem, str]:
    """An empty folder: its URI, its file system, its path there."""
    if request.param == "local":
        return str(tmp_path), pafs.LocalFileSystem(), str(tmp_path)
    uri = f"{request.getfixturevalue('s3')}/all"
    return (uri, *filesystem(uri))


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
            for part in media_of_files(piece, MediaConfig()):
                assert not part.problems
                for row in part.rows.to_pylist():
                    pixels = cv2.imdecode(np.frombuffer(row["data"], np.uint8), 0)
                    shades[row["item_id"]] = round(float(pixels.mean()) / 30)
    assert shades == {f"i{shade}": shade for shade in range(len(NAMES))}
