from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rec.schema import SchemaError
from rec.sources import FolderSource, SourceError
from rec.sources import folder as module
from rec.sources.files import file_sizes, read_csv
from rec.sources.folder import MAX_FILES

CSV = """item_id,title,tags,published_at,files
a,First,#one|#two,2024-01-31T18:30:00Z,clips/a.mp4|a.jpg
b,Second,,,
c,,#three,,missing.jpg|../secret|/etc/hostname
"""


def read(source: FolderSource) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {"items": [], "files": [], "problems": []}
    for shard in source.shards():
        for name, piece in source.read(shard):
            found[name] += piece.to_pylist()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "mine"
    (place / "clips").mkdir(parents=True)
    (place / "items.csv").write_text(CSV)
    (place / "clips" / "a.mp4").write_bytes(b"film")
    (place / "a.jpg").write_bytes(b"picture")
    (place / "stray.png").write_bytes(b"nobody's")
    (tmp_path / "secret").write_bytes(b"not of the folder")
    return place


def test_rows_become_items_with_their_files_in_order(folder: Path) -> None:
    found = read(FolderSource(path=str(folder), num_shards=2))
    first, second, third = found["items"]
    assert (first["item_id"], first["domain"], first["title"]) == ("a", "video", "First")
    assert first["tags"] == ["#one", "#two"]
    assert str(first["published_at"]) == "2024-01-31 18:30:00+00:00"
    assert (second["tags"], third["title"]) == (None, None)
    names = [(f["item_id"], f["folder"], f["name"], f["num_bytes"]) for f in found["files"]]
    assert names == [
        ("a", str(folder), "clips/a.mp4", 4),
        ("a", str(folder), "a.jpg", 7),
    ]


def test_what_is_not_there_or_not_named_is_listed_and_no_path_leads_out(folder: Path) -> None:
    problems = read(FolderSource(path=str(folder), num_shards=3))["problems"]
    told = {str(p["place"]).removeprefix(str(folder)): p["reason"] for p in problems}
    assert told == {
        "/stray.png": "no item of items.csv names this file",
        "/missing.jpg": "not found; expected a file of item c",
        "/../secret": "not found; expected a file of item c",
        "//etc/hostname": "not found; expected a file of item c",
    }


def test_a_file_in_place_of_the_folder_is_told_with_the_folder(folder: Path) -> None:
    with pytest.raises(SourceError) as told:
        FolderSource(path=str(folder / "items.csv")).shards()
    assert str(told.value) == (
        f"{folder}/items.csv: a file, expected a folder with items.csv; give the folder that it is "
        f"in, {folder}"
    )


def test_a_column_that_is_not_read_is_listed(folder: Path) -> None:
    csv = folder / "items.csv"
    csv.write_text(csv.read_text().replace("title", "titel", 1))
    found = read(FolderSource(path=str(folder), num_shards=2))
    (told,) = [p["reason"] for p in found["problems"] if p["place"] == str(csv)]
    assert told.startswith("column 'titel' is not read, only item_id, domain, title, ")
    assert [item["title"] for item in found["items"]] == [None] * 3


@pytest.mark.parametrize("num_shards", [1, 3, 40])
def test_shards_hold_all_items_once_in_equal_bytes(tmp_path: Path, num_shards: int) -> None:
    rows = ["item_id,files"]
    for n in range(60):
        name = f"{n}.jpg" if n < 20 else ""  # all pictures are on the first third
        rows.append(f"i{n},{name}")
        if name:
            (tmp_path / name).write_bytes(bytes(50_000))
    (tmp_path / "items.csv").write_text("\n".join(rows))
    source = FolderSource(path=str(tmp_path), num_shards=num_shards)
    assert [item["item_id"] for item in read(source)["items"]] == [f"i{n}" for n in range(60)]
    if num_shards == 3:
        sizes = [sum(p.num_rows for name, p in source.read(s) if name == "files")
                 for s in source.shards()]  # fmt: skip
        assert max(sizes) - min(sizes) <= 3


def test_there_are_more_shards_of_more_items_and_each_looks_up_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"i{n},{n}.jpg" for n in range(1000)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,files", *rows]))
    source = FolderSource(path=str(tmp_path))
    looked: list[int] = []
    parsed: list[str] = []

    def sizes(folder: str, names: list[str]) -> dict[str, int]:
        looked.append(len(names))
        return file_sizes(folder, names)

    def parse(*given: Any) -> pa.Table:
        parsed.append(given[1])
        return read_csv(*given)

    monkeypatch.setattr(module, "file_sizes", sizes)
    monkeypatch.setattr(module, "read_csv", parse)
    assert len(source.shards()) == 4  # of 66,000 bytes an item
    assert len(read(source)["items"]) == 1000
    assert (sum(looked), max(looked)) == (1000, 250)
    assert parsed == ["items.csv"]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,files", *rows[:100]]))
    assert len(source.shards()) == 1  # a changed file is read again


def test_files_named_again_and_too_many_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    (tmp_path / "items.csv").write_text(
        "\n".join(["item_id,files", "a," + "|".join(["a.jpg"] * 1000),
                   "b," + "|".join(f"{n}.jpg" for n in range(MAX_FILES + 3))])
    )  # fmt: skip
    found = read(FolderSource(path=str(tmp_path)))
    assert [f["name"] for f in found["files"]] == ["a.jpg"]
    of_rows = [(p["row"], p["reason"]) for p in found["problems"] if p["row"] is not None]
    assert of_rows == [
        (1, "999 files are named again; read once"),
        (2, "3 files over the 256 an item may have; left out"),
    ]
    assert len(found["problems"]) == 2 + MAX_FILES


@pytest.mark.parametrize("name", ["a/../../secret", "/etc/hostname", "x" * 300, "a//b", ".", ""])
def test_a_name_that_no_file_below_can_have_is_of_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"not of the folder")
    (tmp_path / "in" / "b.jpg").write_bytes(b"picture")
    assert file_sizes(str(tmp_path / "in"), [name, "b.jpg"]) == {"b.jpg": 7}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("title\nx\n", SchemaError, "column 'item_id' is missing"),
        ("item_id\na\na\n", SchemaError, "'a' again"),
        ("item_id,title\n,x\n", SchemaError, "column 'item_id', row 1: empty"),
        ("item_id,published_at\na,yesterday\n", SchemaError, "row 1: 'yesterday'"),
        ("item_id,title,title\na,b,c\n", SchemaError, "column 'title' is there twice"),
        ("item_id\n", SourceError, "no rows"),
    ],
)
def test_a_wrong_csv_is_refused(
    tmp_path: Path, text: str, error: type[ValueError], message: str
) -> None:
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(error, match=message):
        read(FolderSource(path=str(tmp_path)))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        read(FolderSource(path=str(tmp_path / "nowhere")))
