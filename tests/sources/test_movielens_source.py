from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from rec.schema import PROBLEMS, TABLES, SchemaError
from rec.sources import MovieLensSource, SourceError

FILES = {
    "movies.csv": """movieId,title,genres
1,Toy Story (1995),Adventure|Comedy
2,"Hero, The (2006\u20132007) ",(no genres listed)
3,Black Mirror,Drama
4,3 dev adam (Three Giant Men) (1973),Action
""",
    "descriptions.csv": """movieId,overview,keywords,language,runtime,source
1,"Led by Woody,
Andy's toys live.",toy|boy next door,en,81,tmdb
4,Giants.,,tr,80,omdb
""",
    "ratings.csv": """userId,movieId,rating,timestamp
7,1,4.0,964982703
7,3,0.5,964982704
8,1,3.5,964982705
""",
    "tags.csv": """userId,movieId,tag,timestamp
2,3,Highly quotable,1445714996
""",
    "relations.csv": """movieId,relation,entity
1,directed_by,John Lasseter
4,has_genre,Action
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "posters").mkdir()
    for film in (1, 3):
        poster = np.full((24, 16, 3), film * 60, dtype=np.uint8)
        (tmp_path / "posters" / f"{film}.jpg").write_bytes(cv2.imencode(".jpg", poster)[1])
    return tmp_path


def read(folder: Path | str, num_shards: int = 2) -> dict[str, pa.Table]:
    source = MovieLensSource(path=str(folder), num_shards=num_shards)
    schemas = {**{name: TABLES[name] for name in source.tables}, "problems": PROBLEMS}
    pieces: dict[str, list[pa.Table]] = {name: [] for name in schemas}
    for shard in source.shards():
        for name, piece in source.read(shard):
            table = name.partition(":")[0]
            assert piece.schema == schemas[table]
            pieces[table].append(piece)
    return {name: pa.concat_tables(found) for name, found in pieces.items()}


def test_films_become_items(folder: Path) -> None:
    items = {row["item_id"]: row for row in read(folder)["items"].to_pylist()}
    assert list(items) == ["1", "2", "3", "4"]
    assert items["1"] == {
        "item_id": "1",
        "domain": "film",
        "title": "Toy Story",
        "description": "Led by Woody,\nAndy's toys live.",
        "tags": ["toy", "boy next door"],
        "categories": ["Adventure", "Comedy"],
        "uploader_id": None,
        "published_at": datetime(1995, 1, 1, tzinfo=UTC),
    }
    assert items["2"]["title"] == "Hero, The"
    assert items["2"]["published_at"] == datetime(2006, 1, 1, tzinfo=UTC)
    assert items["2"]["categories"] is None
    assert items["3"]["title"] == "Black Mirror"
    assert items["3"]["published_at"] is None
    assert items["4"]["title"] == "3 dev adam (Three Giant Men)"
    assert items["4"]["tags"] is None


def test_posters_ratings_tags_and_facts(folder: Path) -> None:
    tables = read(folder)
    assert tables["media"].column("item_id").to_pylist() == ["1", "3"]
    first = tables["media"].to_pylist()[0]
    assert first["data"] == (folder / "posters" / "1.jpg").read_bytes()
    assert first["uri"] == str(folder / "posters" / "1.jpg")
    ratings = tables["interactions"].to_pylist()
    assert [(r["user_id"], r["item_id"], r["value"]) for r in ratings] == [
        ("7", "1", 4.0),
        ("7", "3", 0.5),
        ("8", "1", 3.5),
    ]
    assert ratings[0]["event_time"] == datetime.fromtimestamp(964982703, UTC)
    assert ratings[0]["event"] == "rating"
    (tag,) = tables["edges"].to_pylist()
    assert (tag["source_id"], tag["relation"], tag["target_id"]) == (
        "3",
        "tagged",
        "Highly quotable",
    )
    assert tables["relations"].to_pylist()[0] == {
        "head": "1",
        "relation": "directed_by",
        "tail": "John Lasseter",
    }
    assert tables["problems"].num_rows == 0


@pytest.mark.parametrize("num_shards", [1, 3, 9])
def test_rows_do_not_depend_on_the_number_of_shards(folder: Path, num_shards: int) -> None:
    whole, parts = read(folder, 2), read(folder, num_shards)
    assert {k: t.to_pylist() for k, t in whole.items()} == {
        k: t.to_pylist() for k, t in parts.items()
    }


def test_a_uri_reads_as_a_path_does(folder: Path) -> None:
    local, remote = read(folder), read(folder.as_uri())
    assert remote["media"].column("data") == local["media"].column("data")
    assert remote["items"] == local["items"]


def test_a_bad_poster_is_listed_and_the_film_stays(folder: Path) -> None:
    (folder / "posters" / "3.jpg").write_bytes(b"broken")
    (folder / "posters" / "77.jpg").write_bytes(b"of no film")
    tables = read(folder)
    assert tables["items"].num_rows == 4
    assert tables["media"].column("item_id").to_pylist() == ["1"]
    assert {Path(row["place"]).name: row["reason"] for row in tables["problems"].to_pylist()} == {
        "3.jpg": "undecodable picture: not one of JPEG, PNG, WEBP, BMP",
        "77.jpg": "expected <movieId>.jpg of a film in movies.csv",
    }


def test_rows_about_unknown_films_are_listed(folder: Path) -> None:
    with (folder / "ratings.csv").open("a") as file:
        file.write("9,99,5.0,964982706\n")
    tables = read(folder)
    assert tables["interactions"].num_rows == 3
    assert tables["problems"].to_pylist() == [
        {
            "place": f"{folder}/ratings.csv, column 'movieId'",
            "row": 4,
            "reason": "99 is not in movies.csv",
        }
    ]


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new", "error", "message"),
    [
        (
            "movies.csv",
            "movieId,title,genres",
            "movieId,name,genres",
            SchemaError,
            "/movies.csv: column 'title' is missing; expected movieId (int64), title (string), "
            "genres (string); found movieId, name, genres",
        ),
        (
            "movies.csv",
            "\n3,Black",
            "\nthree,Black",
            SchemaError,
            "/movies.csv, column 'movieId', row 3: 'three', expected int64",
        ),
        (
            "movies.csv",
            "\n3,Black",
            "\n1,Black",
            SchemaError,
            "/movies.csv, column 'movieId', row 3: 1 again, first in row 1; "
            "expected every movieId once",
        ),
        (
            "movies.csv",
            "3,Black Mirror,",
            "3,,",
            SchemaError,
            "/movies.csv, column 'title', row 3: empty, expected string",
        ),
        (
            "movies.csv",
            "3,Black Mirror,Drama",
            "3,Black Mirror",
            SourceError,
            "/movies.csv, row 3: 2 cells, expected 3 as in the header: '3,Black Mirror'",
        ),
        (
            "ratings.csv",
            "7,3,0.5",
            "7,3,good",
            SchemaError,
            "/ratings.csv, column 'rating', row 2: 'good', expected float",
        ),
        (
            "ratings.csv",
            "964982705",
            "",
            SchemaError,
            "/ratings.csv, column 'timestamp', row 3: empty, expected int64",
        ),
        (
            "descriptions.csv",
            "\n4,Giants",
            "\n1,Giants",
            SchemaError,
            "/descriptions.csv, column 'movieId', row 2: 1 again, first in row 1; "
            "expected every movieId once",
        ),
    ],
)
def test_errors_name_file_column_row_and_expectation(
    folder: Path, name: str, old: str, new: str, error: type[ValueError], message: str
) -> None:
    edit(folder, name, old, new)
    with pytest.raises(error) as caught:
        read(folder)
    assert str(caught.value) == f"{folder}{message}"


def test_text_that_is_not_utf8_is_named(folder: Path) -> None:
    data = (folder / "tags.csv").read_bytes().replace(b"Highly", b"Hi\xe9ly")
    (folder / "tags.csv").write_bytes(data)
    with pytest.raises(SchemaError, match=r"tags.csv, column 'tag', row 1: 'Hi\\\\xe9ly quotable'"):
        read(folder)


@pytest.mark.parametrize("name", [*FILES, "posters"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(SourceError, match=rf"{folder}/{name}: not.* expected a MovieLens folder"):
        read(folder)


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"/nowhere/movies.csv: not found; expected a MovieLens"):
        read(tmp_path / "nowhere")
