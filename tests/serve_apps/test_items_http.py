"""Routes about items over real tables, a real encoder and index, without Ray: answers, refusals."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from local_services import LocalContent, LocalItems, refused
from pyarrow import fs

from rec.artifacts import ArtifactError, filesystem
from serve_apps.catalogue import Catalogue, Listing
from serve_apps.errors import ApiError
from serve_apps.explorer import add_page, page_files
from serve_apps.gateway import Limits, make_app
from serve_apps.item_tags import Suggested, Tags, vote
from serve_apps.items_gateway import add_items
from serve_apps.releases import fixed
from serve_apps.versions import match

LONELY = "only/in the table ü"  # as in conftest: an item that no index has
LIMITS = Limits(max_text_chars=50, max_body_bytes=20_000)


@pytest.fixture(scope="module")
def client(served: Any, tables: str) -> Iterator[TestClient]:
    version = match(served.encoder_uri, served.index_uri)
    content, items = LocalContent(served.encoder_uri, served.index_uri), LocalItems(tables)
    app = make_app(content, version, LIMITS)
    add_items(app, fixed(content, version), items, items.catalogue.version, LIMITS)
    add_page(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ids_of(items: list[dict[str, Any]]) -> list[str]:
    return [item["item_id"] for item in items]


def test_items_are_listed_newest_first_in_parts(served: Any, client: TestClient) -> None:
    whole = client.get("/v1/items", params={"limit": 100}).json()
    assert ids_of(whole["items"]) == [*reversed(served.ids), LONELY]  # without a time: last
    assert (whole["num_items"], whole["items_version"]) == (13, "0123456789abcdef")
    parts = [client.get("/v1/items", params={"offset": at, "limit": 5}).json() for at in (0, 5, 10)]
    assert [one for part in parts for one in part["items"]] == whole["items"]
    beyond = client.get("/v1/items", params={"offset": 1 << 40}).json()
    assert (beyond["items"], beyond["num_items"]) == ([], 13)
    item = whole["items"][0]
    assert item["title"] == served.texts[-1]
    assert item["published_at"] == "2024-01-12T00:00:00+00:00"
    assert "somebody" not in json.dumps(whole)  # who uploaded it is nobody's business


def test_items_with_a_picture_can_come_first(served: Any, client: TestClient) -> None:
    found = client.get("/v1/items", params={"limit": 100, "pictures_first": True}).json()["items"]
    assert ids_of(found) == [*reversed(served.ids[1:]), served.ids[0], LONELY]
    tagged = client.get("/v1/items", params={"tag": "red", "pictures_first": True}).json()["items"]
    assert ids_of(tagged) == ["item-3", "item-2", "item-1", "item-0"]


def test_a_tag_finds_its_items_however_it_is_spelt(client: TestClient) -> None:
    for tag in ("planet", "#Planet", "PLANET_"):
        found = client.get("/v1/items", params={"tag": tag}).json()
        assert ids_of(found["items"]) == ["item-9", "item-5", "item-1"]
        assert found["num_items"] == 3
    for tag in ("nothing", "#", ""):
        assert client.get("/v1/items", params={"tag": tag}).json()["num_items"] == 0
    tags = client.get("/v1/tags").json()["tags"]
    assert tags[:4] == [{"tag": word, "num_items": 4} for word in ("deep", "quiet", "red")] + [
        {"tag": "garden", "num_items": 3}
    ]
    assert client.get("/v1/tags", params={"prefix": "P"}).json()["tags"] == [
        {"tag": "planet", "num_items": 3}
    ]


def test_items_by_id(served: Any, client: TestClient) -> None:
    one = client.get("/v1/items/item-3").json()
    assert one["tags"] == ["\uff03RED", "\uff03MACHINE", "\uff03RED"]  # as they were written
    assert one["picture"] == "/v1/items/item-3/picture?v=0123456789abcdef"
    found = client.post("/v1/items", json={"ids": ["item-3", "gone", LONELY, "item-3"]}).json()
    assert found["items"][0] == found["items"][2] == one
    assert (ids_of(found["items"])[1], found["unknown"]) == (LONELY, ["gone"])
    assert found["items"][1]["picture"] is None
    assert client.get(f"/v1/items/{quote(LONELY, safe='')}").json()["item_id"] == LONELY


def test_pictures_are_the_first_stored_ones(served: Any, client: TestClient) -> None:
    for item_id, data in list(zip(served.ids, served.pictures, strict=True))[1:]:
        answer = client.get(f"/v1/items/{item_id}/picture")
        assert answer.status_code == 200
        assert answer.content == data
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
    again = client.get(
        "/v1/items/item-11/picture", headers={"If-None-Match": answer.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "item_id",
    ["gone", "item-0", LONELY, "../../ledger.json", "/etc/passwd", "\0"],
)
def test_there_is_no_picture_but_of_items_that_have_one(client: TestClient, item_id: str) -> None:
    known = item_id in ("item-0", LONELY)
    answer = client.get(f"/v1/items/{quote(item_id, safe='')}/picture")
    refused(answer, 404, "no_picture" if known else "unknown_item", item_id)


def test_related_items_are_the_nearest_with_their_similarity(
    served: Any, client: TestClient
) -> None:
    found = client.get("/v1/related", params={"item_id": "item-3", "k": 4}).json()
    scores = served.vectors @ served.vectors[3]
    order = [i for i in np.argsort(-scores) if i != 3][:4]
    assert [one["item"]["item_id"] for one in found["related"]] == [served.ids[i] for i in order]
    assert [one["item"]["title"] for one in found["related"]] == [served.texts[i] for i in order]
    np.testing.assert_allclose(
        [s["similarity"] for s in found["related"]], scores[order], atol=1e-5
    )
    assert found["item"]["title"] == served.texts[3]
    assert found["model_version"] == served.encoder.version
    refused(client.get("/v1/related", params={"item_id": LONELY}), 404, "unknown_item", LONELY)


def test_tags_are_those_of_the_nearest_items(served: Any, client: TestClient) -> None:
    picture = base64.b64encode(served.pictures[6]).decode()
    vectors = served.encoder.encode_items([served.texts[6]], [[served.pictures[6]]])
    for body, vector, own in (
        ({"item_id": "item-6"}, served.vectors[6], 6),
        ({"text": served.texts[6], "image": picture}, vectors[0], None),
        ({"text": served.texts[2]}, served.encoder.encode_texts([served.texts[2]])[0], None),
    ):
        scores = served.vectors @ vector
        near = [i for i in np.argsort(-scores) if i != own][:5]
        weights: dict[str, float] = {}
        for i in near:
            for word in served.texts[i].split():
                weights[word] = weights.get(word, 0.0) + scores[i]
        for word in served.texts[own].split() if own is not None else ():
            weights.pop(word, None)
        expected = sorted(weights, key=lambda word: (-weights[word], word))[:3]
        answer = client.post("/v1/tags", json=body | {"k": 3, "num_neighbours": 5}).json()
        assert [one["tag"] for one in answer["tags"]] == expected
        np.testing.assert_allclose(
            [one["score"] for one in answer["tags"]],
            [weights[word] / scores[near].sum() for word in expected],
            atol=1e-5,
        )
        for one in answer["tags"]:
            told = [i for i in near if one["tag"] in served.texts[i].split()]
            assert one["item_ids"] == [served.ids[i] for i in told[:3]]


def test_what_is_unlike_does_not_vote_and_equal_votes_are_in_order() -> None:
    near = [("a", 0.5, ["x", "z"]), ("b", 0.5, ["y"]), ("c", 0.4, []), ("d", -0.5, ["x"])]
    assert vote(near, ["z"], 9) == [Suggested("x", 0.5, ["a"]), Suggested("y", 0.5, ["b"])]
    assert vote(near[2:], [], 9) == []


@settings(max_examples=60)
@given(st.lists(st.none() | st.lists(st.none() | st.sampled_from(["#a", "A ", "b", "#", "b c"]))))
def test_tags_both_ways_round(lists: list[list[str | None] | None]) -> None:
    tags = Tags(pa.array(lists, pa.list_(pa.string())))
    spelling = {"#a": "a", "A ": "a", "b": "b", "b c": "b c"}
    expected = [{spelling[t] for t in one or () if t and t in spelling} for one in lists]
    assert [set(tags.of(row)) for row in range(len(lists))] == expected
    for name, number in zip(tags.names, tags.counts().tolist(), strict=True):
        rows = tags.rows(name).tolist()
        assert rows == [row for row, one in enumerate(expected) if name in one]
        assert number == len(rows)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind", "parts"),
    [
        ("get", "/v1/items?limit=0", None, 422, "invalid_request", ["limit: "]),
        ("get", "/v1/items?limit=101", None, 422, "invalid_request", ["limit: ", "100"]),
        ("get", "/v1/items?offset=-1", None, 422, "invalid_request", ["offset: "]),
        (
            "get",
            "/v1/items?offset=9999999999999999999999",
            None,
            422,
            "invalid_request",
            ["offset"],
        ),
        ("get", "/v1/items/gone", None, 404, "unknown_item", ["gone: not in the table"]),
        ("post", "/v1/items", {"ids": []}, 422, "invalid_request", ["ids: "]),
        ("post", "/v1/items", {"ids": ["a"] * 501}, 422, "invalid_request", ["ids: ", "500"]),
        ("post", "/v1/items", {"ids": [1]}, 422, "invalid_request", ["ids[0]"]),
        ("get", "/v1/related", None, 422, "invalid_request", ["item_id: "]),
        ("get", "/v1/related?item_id=gone", None, 404, "unknown_item", ["gone"]),
        ("get", "/v1/related?item_id=item-1&k=0", None, 422, "invalid_request", ["k: "]),
        ("post", "/v1/tags", {}, 422, "invalid_request", ["exactly one of: item_id; text"]),
        (
            "post",
            "/v1/tags",
            {"text": "a", "item_id": "b"},
            422,
            "invalid_request",
            ["exactly one"],
        ),
        ("post", "/v1/tags", {"text": " "}, 422, "invalid_request", ["tags: empty"]),
        ("post", "/v1/tags", {"text": "x" * 51}, 422, "invalid_request", ["tags.text: 51 char"]),
        ("post", "/v1/tags", {"image": "aGk="}, 422, "invalid_request", ["tags.image: "]),
        ("post", "/v1/tags", {"item_id": "gone"}, 404, "unknown_item", ["gone"]),
        ("post", "/v1/tags", {"item_id": "item-1", "k": 101}, 422, "invalid_request", ["k: "]),
        ("delete", "/v1/items", None, 405, "method_not_allowed", []),
        ("get", "/explorer/../app.py", None, 404, "not_found", []),
        ("get", "/explorer/__init__.py", None, 404, "not_found", []),
    ],
)
def test_refusals(
    client: TestClient,
    method: str,
    path: str,
    body: Any,
    status: int,
    kind: str,
    parts: list[str],
) -> None:
    refused(client.request(method, path, json=body), status, kind, *parts)


@settings(max_examples=150)
@given(
    item_id=st.text(max_size=8),
    offset=st.integers() | st.text(max_size=3),
    body=st.fixed_dictionaries(
        {},
        optional={
            "ids": st.lists(st.text(st.characters(codec=None), max_size=3), max_size=3) | st.none(),
            "item_id": st.sampled_from(["item-1", "\ud800", "x"]) | st.none(),
            "text": st.text(st.characters(codec=None), max_size=5) | st.none(),
            "image": st.sampled_from(["", "aGk=", "?"]) | st.none(),
            "k": st.integers(-1, 102),
        },
    ),
)
def test_nothing_ends_in_a_server_error(
    client: TestClient, item_id: str, offset: Any, body: Any
) -> None:
    name = quote(item_id, safe="")
    for path in (f"/v1/items/{name}", f"/v1/items/{name}/picture", f"/v1/related?item_id={name}"):
        assert client.get(path).status_code < 500
    assert client.get("/v1/items", params={"offset": offset, "tag": item_id}).status_code < 500
    for path in ("/v1/items", "/v1/tags"):
        content = json.dumps(body).encode()
        answer = client.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code < 500, answer.text


def test_the_interface_is_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"get", "post"} <= set(paths["/v1/items"])
    assert {"get", "post"} <= set(paths["/v1/tags"])
    assert {"/v1/items/{item_id}", "/v1/items/{item_id}/picture", "/v1/related"} <= set(paths)
    assert "/" not in paths


def test_the_page_needs_nothing_from_outside(client: TestClient) -> None:
    files = page_files()
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.content == files["index.html"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    again = client.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status_code == 304
    for name, data in files.items():
        text = data.decode().replace("'http://www.w3.org/2000/svg'", "")  # a name, not a place
        assert not re.search(r"""["'`(=]\s*(https?:)?//""", text), name
        if name != "index.html":
            assert client.get(f"/explorer/{name}").content == data
            told = name in files["index.html"].decode() or name.endswith(".js")
            assert told, name


def test_tables_that_are_not_finished_or_change_are_refused(tables: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ledger.json: not found; give the folder"):
        Catalogue(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(tables, copy)
    (copy / "ledger.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not a ledger"):
        Catalogue(str(copy))
    (copy / "ledger.json").write_text('{"version": "1"}')
    catalogue = Catalogue(str(copy))
    shutil.copy(copy / "media" / "shard-00001.parquet", copy / "media" / "shard-00000.parquet")
    with pytest.raises(ApiError, match="written again") as refusal:
        catalogue.picture("item-1")
    assert refusal.value.status == 503
    shutil.rmtree(copy / "media")
    with pytest.raises(ApiError, match="written again"):
        catalogue.picture("item-9")
    assert catalogue.lookup(["item-9"])[0]
    shutil.rmtree(copy / "items")
    assert len(Catalogue(str(copy))) == 0


@pytest.mark.slow
def test_tables_on_s3(s3: str, tables: str, served: Any) -> None:
    files, path = filesystem(f"{s3}/tables")
    fs.copy_files(tables, path, destination_filesystem=files)
    there, here = Catalogue(f"{s3}/tables"), Catalogue(tables)
    assert there.version == here.version
    assert there.browse(Listing(0, 20)) == here.browse(Listing(0, 20))
    assert there.picture("item-9").data == served.pictures[9]
