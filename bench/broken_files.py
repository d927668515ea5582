"""A folder of pictures and videos, some of them broken, and what ingest made of it."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq

from bench.media import scene, video

KINDS = ("empty", "cut.jpg", "text.jpg", "huge.png", "cut.mp4", "absent")
_SAID = {"huge.png": "too large"}  # a problem that says something else is not the one put in
_EVERY = 8  # so-manieth item has a broken file
_VIDEOS = 16  # so-manieth good item has a video, one of a few


class Found(NamedTuple):
    """What ingest told of a folder's files."""

    files: int  # that rows of media came from
    listed: Counter[str]  # problems by kind of the broken file, or by the whole place
    rows: Counter[bytes]  # of media, by a hash of item, number, kind and bytes


def make_folder(folder: Path, items: int, broken: bool) -> tuple[int, Counter[str]]:
    """items.csv, and for each item a file; the same good ones whether there are `broken` ones.

    Returns:
        How many files the items name, and the broken among them by kind.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    videos = [video(random) for _ in range(4)]
    made = Counter[str]()
    lines = ["item_id,title,files"]
    for n in range(items):
        name = ""
        picture = cv2.imencode(".jpg", scene(random, 320, 240))[1].tobytes()
        if n % _EVERY == 0:
            kind = KINDS[n // _EVERY % len(KINDS)]
            if broken:
                name = f"{n:06d}-{kind}"
                made[kind] += 1
                if kind != "absent":
                    (folder / name).write_bytes(_broken(kind, picture, videos[0]))
        elif n % _VIDEOS == 1:
            name = f"{n:06d}.mp4"
            (folder / name).write_bytes(videos[n // _VIDEOS % len(videos)])
        else:
            name = f"{n:06d}.jpg"
            (folder / name).write_bytes(picture)
        lines.append(f"i{n:06d},item {n},{name}")
    (folder / "items.csv").write_text("\n".join(lines))
    return items - -(-items // _EVERY) + made.total(), made


def _broken(kind: str, picture: bytes, film: bytes) -> bytes:
    if kind == "huge.png":
        size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        black = zlib.compress(bytes(1000))  # of a picture cut short its size would not be read
        chunks = [_chunk(b"IHDR", size), _chunk(b"IDAT", black), _chunk(b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    cut = {"cut.jpg": picture[: len(picture) // 2], "cut.mp4": film[: len(film) // 2]}
    return {"empty": b"", "text.jpg": b"no picture at all", **cut}[kind]


def _chunk(name: bytes, body: bytes) -> bytes:
    tail = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + tail


def read(tables: Path, folder: Path) -> Found:
    """What stands in the tables that were made of `folder`; a benchmark's size fits memory."""
    files: set[str] = set()
    rows = Counter[bytes]()
    for shard in sorted((tables / "media").glob("*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            files.add(row["uri"])
            about = f"{row['item_id']} {row['media_index']} {row['kind']} ".encode()
            rows[hashlib.sha256(about + row["data"]).digest()] += 1
    listed = Counter[str]()
    for shard in sorted((tables / "problems").glob("*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            name = row["place"].removeprefix(f"{folder}/")
            kind = name[7:]
            expected = kind in KINDS and _SAID.get(kind, "") in row["reason"]
            listed[kind if expected else name] += 1
    return Found(len(files), listed, rows)
