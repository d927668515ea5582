from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from rec.schema import SchemaError
from rec.sources import ExercisesSource, SourceError


def exercise(key: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "id": key,
        "name": f"The {key}",
        "force": "pull",
        "level": "beginner",
        "mechanic": None,
        "equipment": "body only",
        "category": "strength",
        "primaryMuscles": ["abdominals"],
        "secondaryMuscles": ["neck"],
        "instructions": ["Lie down.", "Get up."],
        "images": [f"frames/{key}_0.jpg", f"frames/{key}_1.jpg"],
    }
    return {**fields, **changes}


def write(folder: Path, rows: object) -> None:
    (folder / "exercises.json").write_text(json.dumps(rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, [exercise("Sit"), exercise("Run", equipment=None, instructions=[])])
    (tmp_path / "frames").mkdir()
    picture = cv2.imencode(".jpg", np.zeros((20, 20, 3), dtype=np.uint8))[1]
    for name in ("Sit_0", "Sit_1", "Run_0", "Run_1"):
        (tmp_path / "frames" / f"{name}.jpg").write_bytes(picture)
    return tmp_path


def read(folder: Path, num_shards: int = 2) -> dict[str, pa.Table]:
    source = ExercisesSource(path=str(folder), num_shards=num_shards)
    pieces: dict[str, list[pa.Table]] = {"items": [], "media": [], "problems": []}
    for shard in source.shards():
        for name, piece in source.read(shard):
            pieces[name.partition(":")[0]].append(piece)
    return {name: pa.concat_tables(found) for name, found in pieces.items()}


def test_exercises_become_items_with_frames_in_order(folder: Path) -> None:
    tables = read(folder)
    sit, run = tables["items"].to_pylist()
    assert sit == {
        "item_id": "Sit",
        "domain": "exercise",
        "title": "The Sit",
        "description": "Lie down. Get up.",
        "tags": ["abdominals", "neck"],
        "categories": ["strength", "body only"],
        "uploader_id": None,
        "published_at": None,
    }
    assert run["description"] is None
    assert run["categories"] == ["strength"]
    media = tables["media"].to_pylist()
    assert [(m["item_id"], m["media_index"], Path(m["uri"]).name) for m in media] == [
        ("Sit", 0, "Sit_0.jpg"),
        ("Sit", 1, "Sit_1.jpg"),
        ("Run", 0, "Run_0.jpg"),
        ("Run", 1, "Run_1.jpg"),
    ]
    assert tables["problems"].num_rows == 0


def test_absent_and_broken_frames_are_listed(folder: Path) -> None:
    (folder / "frames" / "Sit_1.jpg").unlink()
    (folder / "frames" / "Run_0.jpg").write_bytes(b"")
    tables = read(folder)
    assert tables["media"].column("media_index").to_pylist() == [0, 1]
    assert {Path(r["place"]).name: r["reason"] for r in tables["problems"].to_pylist()} == {
        "Sit_1.jpg": "not found; expected a picture of item Sit",
        "Run_0.jpg": "empty file",
    }


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != field}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(exercise("b"), "name"), ", column 'name', row 2: Field required"),
        (exercise("b", name=5), ", column 'name', row 2: Input should be a valid string (got 5)"),
        (
            exercise("b") | {"id": ""},
            ", column 'id', row 2: String should have at least 1 character (got '')",
        ),
        (
            exercise("b", instructions=["a", 1]),
            ", column 'instructions.1', row 2: Input should be a valid string (got 1)",
        ),
        (
            exercise("b", images=["../../etc/passwd"]),
            ", column 'images.0', row 2: String should match pattern '^frames/[^/]+$' "
            "(got '../../etc/passwd')",
        ),
        (
            exercise("a"),
            ", column 'id', row 2: 'a' again, first in row 1; expected every id once",
        ),
    ],
)
def test_errors_name_file_column_row_and_expectation(
    folder: Path, row: dict[str, Any], message: str
) -> None:
    write(folder, [exercise("a"), row])
    with pytest.raises(SchemaError) as caught:
        read(folder)
    assert str(caught.value) == f"{folder}/exercises.json{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "exercises.json: not JSON: "),
        ("{}", "exercises.json: expected a list of one object an exercise"),
        ("[]", "exercises.json: expected a list of one object an exercise"),
    ],
)
def test_a_file_of_another_shape_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "exercises.json").write_text(text)
    with pytest.raises(SourceError, match=message):
        read(folder)


def test_a_wrong_path_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere/exercises.json: not found; expected an exer"):
        read(tmp_path / "nowhere")
    (folder / "frames").rename(folder / "pictures")
    with pytest.raises(SourceError, match=r"/frames: not a folder; expected an exercises folder"):
        read(folder)
