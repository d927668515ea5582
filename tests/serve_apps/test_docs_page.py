"""The page at /docs tells all of the OpenAPI document, by itself, and its examples are answered."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from local_backend import LocalBackend
from local_services import LocalItems, local_recommender

from serve_apps.gateway import Limits, make_app
from serve_apps.items_gateway import add_items
from serve_apps.recommend import Places
from serve_apps.recommend_gateway import PATH, RecommendLimits, make_recommend_app
from serve_apps.releases import fixed
from serve_apps.versions import match, match_users


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def content_app(served: Any, tables: str) -> FastAPI:
    version, limits = match(served.encoder_uri, served.index_uri), Limits()
    backend, items = LocalBackend(served), LocalItems(tables)
    app = make_app(backend, version, limits)
    add_items(app, fixed(backend, version), items, items.catalogue.version, limits)
    return app


def users_app(places: Places) -> FastAPI:
    version = match_users(places.encoder, places.index, places.rows)
    return make_recommend_app(local_recommender(places), version, RecommendLimits())


@pytest.mark.parametrize("below", ["", PATH])
def test_the_page(below: str, served: Any, tables: str, recommendable: dict[str, Places]) -> None:
    app = users_app(recommendable["sasrec"]) if below else content_app(served, tables)
    document = app.openapi()
    with TestClient(app, root_path=below) as client:
        answer = client.get(f"{below}/docs")
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        page = Parsed(answer.text)
        assert len(page.ids) == len(set(page.ids))
        source = f"{below}/openapi.json"
        assert {one[1:] for one in page.addresses if one != source} <= set(page.ids)
        assert client.get(source).json()["paths"]
        for path, methods in document["paths"].items():
            for method, about in methods.items():
                assert f"{method.upper()} {path}" in page.text
                assert about["summary"] in page.text
        for name, about in document["components"]["schemas"].items():
            assert name in page.ids
            for field in about.get("properties", {}).values():
                assert field.get("description", "") in page.text
        assert "Equal or In or Range or All or AnyOf or Not or null" in page.text
        told = re.findall(r"http://HOST:PORT(\S+) .*?-d '(.*?)'", page.text, re.DOTALL)
        assert {path for path, _ in told} >= ({PATH} if below else {"/v1/embed", "/v1/knn"})
        for path, body in told:
            status = client.post(path, json=json.loads(body)).status_code
            assert status in ((200,) if "{" not in path else (200, 404)), (path, body)
        for gone in ("/redoc", f"{below}/redoc"):
            assert client.get(gone).status_code == 404
