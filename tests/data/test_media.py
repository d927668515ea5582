from __future__ import annotations

import io
import json
import struct
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.data import duplicates as module
from rec.data import media
from rec.data.content_stages import AddSound, DropDuplicates
from rec.data.duplicates import (
    DUPLICATES,
    alike,
    best_of,
    first_near,
    frames_by_band,
    settled,
)
from rec.data.ingest import write_shard
from rec.data.ledger import Ledger, StageCounts
from rec.data.media import (
    MEDIA_INDEX,
    MediaConfig,
    decode_file,
    index_rows,
    media_of_files,
)
from rec.data.parquet import read_table
from rec.data.stage import run_stages
from rec.data.tables import shard_file
from rec.features.hashes import dhash, distances, phash
from rec.features.media import MediaError, MediaLimits
from rec.schema import MEDIA
from rec.sources import FILES, FolderSource

CONFIG = MediaConfig(max_frames=4, frame_side=32, max_patches=2)


def scene(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_CUBIC)


def picture(seed: int, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", scene(seed), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def sound(seconds: float = 3.0) -> bytes:
    target = io.BytesIO()
    noise = np.random.default_rng(0).integers(-9000, 9000, int(16_000 * seconds), dtype=np.int16)
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(noise.tobytes())
    return target.getvalue()


def film(seeds: list[int]) -> bytes:
    """A second of each still scene."""
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for seed in seeds:
            for _ in range(10):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(scene(seed), format="bgr24")))
        out.mux(stream.encode())
    return target.getvalue()


def test_files_are_told_apart_by_their_bytes() -> None:
    shown = decode_file(picture(0), CONFIG)
    assert (len(shown.frames), shown.log_mel) == (1, None)
    assert cv2.imdecode(np.frombuffer(shown.frames[0], np.uint8), 1).shape == (32, 48, 3)
    heard = decode_file(sound(), CONFIG)
    assert (heard.frames, len(heard.log_mel or b"")) == ([], 2 * 96 * 64 * 2)
    seen = decode_file(film([0, 1]), CONFIG)
    assert (len(seen.frames), seen.num_alike, seen.log_mel) == (2, 2, None)  # two of each scene


@pytest.mark.parametrize("data", [b"", b"junk" * 99, picture(0)[:-60], film([0, 1])[:1500]])
def test_what_cannot_be_read_raises(data: bytes) -> None:
    with pytest.raises(MediaError):
        decode_file(data, CONFIG)
    with pytest.raises(MediaError, match="expected at most 10"):
        decode_file(picture(0), MediaConfig(limits=MediaLimits(max_bytes=10)))


def test_files_become_media_of_their_items_and_bad_ones_problems(tmp_path: Path) -> None:
    files = {"a1": film([0, 1]), "a2": b"broken", "a3": picture(2), "b1": b"", "c1": sound()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows = [(name[0], str(tmp_path), name, len(data)) for name, data in files.items()]
    rows.append(("c", str(tmp_path), "gone", 9))
    table = pa.table(list(zip(*rows, strict=True)), schema=FILES)
    parts = list(media_of_files(table, CONFIG))
    media = pa.concat_tables([part.rows for part in parts])
    keys = [(r["item_id"], r["media_index"], r["kind"]) for r in media.to_pylist()]
    frames = [("a", n, "frame") for n in range(3)]
    assert keys == [*frames, ("c", 0, "log_mel")]
    problems = [problem for part in parts for problem in part.problems]
    assert [Path(place).name for place, _, _ in problems] == ["a2", "b1", "gone"]
    assert problems[1][2] == "empty file"
    assert sum(part.num_alike for part in parts) == 2
    assert sum(part.lost.total() for part in parts) == 3


def test_a_file_that_a_decoder_fails_on_is_listed_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(picture(0) if name == "b" else picture(1))
    broken = picture(1)

    def decode(data: bytes, config: MediaConfig) -> media.Decoded:
        if data == broken:
            raise struct.error("unpack requires a buffer of 4 bytes")
        return decode_file(data, config)

    monkeypatch.setattr(media, "decode_file", decode)
    rows = [(name, str(tmp_path), name, 9) for name in "ab"]
    parts = list(media_of_files(pa.table(list(zip(*rows, strict=True)), schema=FILES), CONFIG))
    assert pa.concat_tables([part.rows for part in parts])["item_id"].to_pylist() == ["b"]
    assert [reason for part in parts for _, _, reason in part.problems] == [
        "cannot be read: error: unpack requires a buffer of 4 bytes"
    ]


def folder_of(place: Path, files: dict[str, bytes]) -> FolderSource:
    place.mkdir(exist_ok=True)
    lines = ["item_id,title,files"]
    for name, data in files.items():
        (place / name).write_bytes(data)
        lines.append(f"{name},title of {name},{name}")
    (place / "items.csv").write_text("\n".join(lines))
    return FolderSource(path=str(place), num_shards=2)


def test_a_shard_is_one_thread_of_opencv_s(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a": picture(0)})
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        write_shard(source, source.shards()[0], str(tmp_path / "out"), CONFIG)
        assert cv2.getNumThreads() == 1  # a task has one core
    finally:
        cv2.setNumThreads(before)


def test_a_shard_of_files_has_an_index_that_finds_every_row(tmp_path: Path) -> None:
    files = {"a": film([0, 1]), "b": picture(3), "c": b"broken", "d": sound(), "e": picture(4)}
    source, out = folder_of(tmp_path / "in", files), str(tmp_path / "out")
    summaries = [write_shard(source, shard, out, CONFIG) for shard in source.shards()]
    assert sum(summary["alike"] for summary in summaries) == 2
    assert json.dumps(summaries)
    num_rows = 0
    for shard in source.shards():
        media = read_table(shard_file(out, "media", shard.index))
        index = read_table(shard_file(out, "media_index", shard.index))
        assert index.schema == MEDIA_INDEX
        num_rows += media.num_rows
        for row in index.to_pylist():
            medium = media.slice(row["row"], 1).to_pylist()[0]
            assert row["shard"] == shard.index
            for name in ("item_id", "media_index", "kind"):
                assert row[name] == medium[name]
            assert row["num_bytes"] == len(medium["data"])
            if row["kind"] == "frame":
                grey = cv2.imdecode(np.frombuffer(medium["data"], np.uint8), cv2.IMREAD_GRAYSCALE)
                assert (row["phash"], row["dhash"]) == (phash(grey), dhash(grey))
    assert num_rows == 2 + 1 + 1 + 1
    listed = [
        row
        for shard in source.shards()
        for row in read_table(shard_file(out, "problems", shard.index)).to_pylist()
    ]
    assert [Path(row["place"]).name for row in listed] == ["c"]
    ledger = Ledger()
    for summary in summaries:
        ledger = ledger.merge(Ledger.from_json(summary["ledger"]))
    files_read = StageCounts(rows_in=5, rows_out=4, dropped={"cannot be read": 1})
    assert ledger.stages["files"] == files_read
    assert ledger.stages["media"] == StageCounts(rows_in=5, rows_out=5)


def test_patches_that_are_there_need_no_decoding() -> None:
    patches = np.arange(5 * 96 * 64, dtype=np.float16).reshape(5, 96, 64)
    rows = [
        {"item_id": "a", "media_index": 0, "kind": "audio", "uri": "x", "data": b"broken"},
        {
            "item_id": "a",
            "media_index": 0,
            "kind": "log_mel",
            "uri": "y",
            "data": patches.tobytes(),
        },
    ]
    media = pa.Table.from_pylist(rows, schema=MEDIA)
    table, ledger, _ = run_stages([AddSound(media, 1, 60.0)], pa.table({"item_id": ["a"]}))
    assert table["log_mel"][0].as_py() == patches[2].tobytes()
    assert ledger.num_problems == 0


def media_of(frames: dict[str, list[bytes]]) -> pa.Table:
    rows = [
        {"item_id": item, "media_index": n, "kind": "frame", "uri": item, "data": data}
        for item, own in frames.items()
        for n, data in enumerate(own)
    ]
    return pa.Table.from_pylist(rows, schema=MEDIA)


NOBODY = pa.array([], pa.string())


def found_in(index: pa.Table, heldout: pa.Array = NOBODY, distance: int = 5) -> pa.Table:
    """What the whole job writes, for data that is in one shard."""
    near, num_cut = first_near(frames_by_band(index, heldout, distance), distance)
    assert not num_cut
    return best_of(settled(alike(near)))


def index_of(hashes: dict[str, int]) -> pa.Table:
    """MEDIA_INDEX of items with a frame each."""
    rows = [(item, 0, "frame", 0, n, 1, x, x) for n, (item, x) in enumerate(hashes.items())]
    return pa.Table.from_pylist(
        [dict(zip(MEDIA_INDEX.names, row, strict=True)) for row in rows], schema=MEDIA_INDEX
    )


def test_a_held_out_item_takes_none_away_from_training() -> None:
    index = index_of({"a": 77, "b": 77, "c": 77})
    pairs = found_in(index, pa.array(["a"])).select(["item_id", "duplicate_of"]).to_pylist()
    assert [tuple(pair.values()) for pair in pairs] == [("a", "b"), ("c", "b")]


def test_of_a_chain_only_those_go_whose_original_stays() -> None:
    chain = {item: (1 << (3 * n)) - 1 for n, item in enumerate("abcde")}  # 3 bits from each to next
    found = found_in(index_of(chain), distance=3)
    assert [tuple(row.values())[:2] for row in found.to_pylist()] == [("b", "a")]


def test_copies_of_a_template_cost_a_comparison_each_and_others_have_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = 0

    def counted(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(first)
        return distances(first, second)

    monkeypatch.setattr(module, "distances", counted)
    bits = [(i, j) for i in range(32, 64) for j in range(i)]
    template = {"a": 1 << 20, **{f"b{i}{j}": 1 << 20 | 1 << i | 1 << j for i, j in bits}}
    assert found_in(index_of(template), distance=3).num_rows == len(bits)
    assert compared <= 2 * 4 * len(bits)  # two hashes, four bands

    # frames that share a band's bits and nothing else
    random = np.random.default_rng(0)
    others = {f"c{n:04d}": int(x) << 22 for n, x in enumerate(random.integers(0, 2**40, 2000))}
    frames = frames_by_band(index_of(others), NOBODY, 3)
    frames = frames.filter(pc.equal(frames["band"], 0))
    monkeypatch.setattr(module, "MAX_COMPARED", 50)
    compared = 0
    near, num_cut = first_near(frames, 3)
    assert near.num_rows == 0
    assert num_cut == 2000 - 51
    assert compared <= 2 * 50 * 2000


def test_what_was_cut_short_is_told_through_the_shuffles() -> None:
    near = pa.concat_tables([module._cut(module._NEAR, 3), module._cut(module._NEAR, 4)])
    rows = settled(alike(near)).to_pylist()
    assert [(row["shard"], row["num_frames"]) for row in rows] == [(-1, 7)]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 31)), min_size=2, max_size=24),
    st.sets(st.integers(0, 9)),
)
def test_what_items_are_left_out_for_stays(frames: list[tuple[int, int]], late: set[int]) -> None:
    rows = [(f"i{i}", n, "frame", 0, n, 1, x, x) for n, (i, x) in enumerate(frames)]
    index = pa.Table.from_pylist(
        [dict(zip(MEDIA_INDEX.names, row, strict=True)) for row in rows], schema=MEDIA_INDEX
    )
    heldout = {f"i{i}" for i in late}
    found = found_in(index, pa.array(sorted(heldout), pa.string()), 1).to_pylist()
    gone = [row["item_id"] for row in found]
    assert len(gone) == len(set(gone))
    for row in found:
        assert row["duplicate_of"] not in gone
        assert row["item_id"] in heldout or row["duplicate_of"] not in heldout


def test_items_that_look_like_another_are_found_and_dropped_with_a_reason() -> None:
    flat = cv2.imencode(".png", np.full((64, 96, 3), 99, np.uint8))[1].tobytes()
    frames = {
        "a": [picture(0), picture(1), flat],
        "b": [picture(2), flat],
        "c": [picture(0, quality=40), picture(1, quality=40), picture(9)],  # a, and another frame
        "d": [picture(2, quality=30)],  # b
        "e": [picture(5), picture(6), picture(0)],  # one of three is a's
        "f": [flat],
    }
    index = index_rows(media_of(frames), 0, 0)
    found = found_in(index)
    assert found.schema == DUPLICATES
    assert found.to_pylist() == [
        {"item_id": "c", "duplicate_of": "a", "num_near": 2, "num_frames": 3},
        {"item_id": "d", "duplicate_of": "b", "num_near": 1, "num_frames": 1},
    ]
    dropped = found["item_id"].combine_chunks()
    items = pa.table({"item_id": list(frames)})
    kept, ledger, left_out = run_stages([DropDuplicates(dropped)], items)
    assert kept["item_id"].to_pylist() == ["a", "b", "e", "f"]
    assert left_out["item_id"].to_pylist() == ["c", "d"]
    assert ledger.stages["drop duplicates"].dropped == {"looks like another item": 2}


def test_frames_near_each_other_agree_with_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    values = [int(x) for x in random.integers(0, 2**63, 5)]
    rows = []
    for n in range(120):
        value = values[random.integers(5)]
        for bit in random.integers(0, 64, random.integers(0, 6)).tolist():
            value ^= 1 << int(bit)
        owner = f"i{random.integers(40):02d}"
        rows.append((owner, n, "frame", 0, n, 1, value, value))
    index = pa.Table.from_pylist(
        [dict(zip(MEDIA_INDEX.names, row, strict=True)) for row in rows], schema=MEDIA_INDEX
    )
    near, _ = first_near(frames_by_band(index, NOBODY, 4), 4)
    near = near.group_by("row").aggregate([("duplicate_of", "min")])
    expected = {}
    for owner, n, *_, value, _ in rows:
        others = [o for o, *_, x, _ in rows if (x ^ value).bit_count() <= 4 and o < owner]
        if others:
            expected[n] = f"0{min(others)}"
    found = dict(zip(near["row"].to_pylist(), near["duplicate_of_min"].to_pylist(), strict=True))
    assert found == expected
    assert found_in(index.slice(0, 0)) == DUPLICATES.empty_table()
