from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from rec.data.ingest import write_tables
from rec.data.labels import LabelConfig
from rec.data.ledger import Ledger
from rec.data.media import MediaConfig
from rec.data.rows import RowsConfig, build_rows
from rec.data.tables import IngestError
from rec.data.texts import TextConfig
from rec.sources import FolderSource

pytestmark = pytest.mark.ray
ROWS = RowsConfig(
    text=TextConfig(vocab_size=120, max_tokens=16),
    labels=LabelConfig(min_items=1),
    heldout_fraction=0.2,
    duplicate_distance=5,
)


def test_a_folder_becomes_rows_without_look_alikes_and_goes_on_where_it_was(
    ray_local: None, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    lines = ["item_id,title,tags,published_at,files"]
    for n in range(24):
        coarse = np.random.default_rng(n % 20).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_CUBIC)
        quality = 90 if n < 20 else 50  # the last four look like the first four
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        (folder / f"{n}.jpg").write_bytes(data if n != 7 else data[:100])
        lines.append(f"i{n:02d},wolf story {n},#wolf,2024-01-{n + 1:02d}T00:00:00Z,{n}.jpg")
    (folder / "items.csv").write_text("\n".join(lines))
    source = FolderSource(path=str(folder), num_shards=3)
    tables = write_tables(source, str(out / "tables"))
    assert tables.tables["media_index"].num_rows == tables.tables["media"].num_rows == 23
    assert tables.num_problems == 1
    assert "7.jpg: picture cannot be decoded" in tables.problems[0]

    # a shard without its marker is done again, the others are not, and the whole is the same
    media = out / "tables" / "media"
    before = {path.name: path.stat().st_mtime_ns for path in media.iterdir()}
    (out / "tables" / "state" / "shard-00001.json").unlink()
    (media / "shard-00001.parquet").unlink()
    assert write_tables(source, str(out / "tables")).version == tables.version
    again = {path.name: path.stat().st_mtime_ns for path in media.iterdir()}
    assert [name for name in sorted(before) if before[name] != again[name]] == [
        "shard-00001.parquet"
    ]
    with pytest.raises(IngestError, match=r"media.frame_side: 256 there, 64 now"):
        write_tables(source, str(out / "tables"), media=MediaConfig(frame_side=64))

    manifest = build_rows(str(out / "tables"), str(out / "rows"), ROWS)
    root = out / "rows" / manifest.root
    ledger = Ledger.from_json((root / "ledger.json").read_text())
    assert ledger.stages["items to rows"].rows_in == 24
    assert ledger.stages["items to rows"].dropped == {"looks like another item": 4}
    listed = [
        row for file in (root / "duplicates").iterdir() for row in pq.read_table(file).to_pylist()
    ]
    assert {(row["item_id"], row["duplicate_of"]) for row in listed} == {
        (f"i{n}", f"i{n - 20:02d}") for n in range(20, 24)
    }
    rows = [row for side in ("train", "heldout") for file in (root / side).glob("*")
            for row in pq.read_table(file).to_pylist()]  # fmt: skip
    assert sorted(row["item_id"] for row in rows) == [f"i{n:02d}" for n in range(20)]
    # the latest are the look-alikes of the earliest, and nothing was fitted on what is left out
    assert manifest.metrics["train"]["rows"] == manifest.metrics["num_texts"]

    # published first, the look-alikes still are what goes: training has all its items
    times = {f"i{n:02d}": f"2024-01-{n + 1:02d}T" for n in range(24)}
    turned = (folder / "items.csv").read_text()
    for n in range(24):
        turned = turned.replace(times[f"i{n:02d}"], f"2024-02-{24 - n:02d}T")
    (folder / "items.csv").write_text(turned)
    write_tables(source, str(out / "turned"))
    manifest = build_rows(str(out / "turned"), str(out / "turned-rows"), ROWS)
    root = out / "turned-rows" / manifest.root
    gone = [row["item_id"] for file in (root / "duplicates").iterdir()
            for row in pq.read_table(file).to_pylist()]  # fmt: skip
    assert sorted(gone) == ["i00", "i01", "i02", "i03"]  # held out, though their ids come first
    assert manifest.metrics["num_texts"] == manifest.metrics["train"]["rows"]


def test_a_folder_that_changed_is_not_mixed_with_what_was_there(
    ray_local: None, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    lines = ["item_id,title,files", *(f"i{n},story {n}," for n in range(8))]
    (folder / "items.csv").write_text("\n".join(lines))
    source = FolderSource(path=str(folder), num_shards=2)
    version = write_tables(source, out).version
    assert write_tables(source, out, overwrite=True).version == version

    (folder / "items.csv").write_text("\n".join([*lines, "i8,story 8,", "i9,story 9,"]))
    with pytest.raises(IngestError, match=r"contents: '\w+' there, '\w+' now.*--overwrite"):
        write_tables(source, out)
    tables = write_tables(source, out, overwrite=True)
    assert tables.version != version
    ids = [row["item_id"] for row in pq.read_table(f"{out}/items").to_pylist()]
    assert sorted(ids) == [f"i{n}" for n in range(10)]

    (folder / "new.jpg").write_bytes(b"not a picture")
    with pytest.raises(IngestError, match="contents"):
        write_tables(source, out)
