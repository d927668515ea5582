"""schemathesis on the services' OpenAPI documents: what an independent tool makes of them.

`test_openapi.py` asks what is mostly answered; this asks whatever the documents allow, and what
they do not. `python -m bench.contract` does it 2,000 times over HTTP.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from fastapi import FastAPI, HTTPException
from local_backend import LocalBackend
from local_services import LocalItems, local_recommender

from bench.contract import ask
from serve_apps.gateway import Limits, make_app
from serve_apps.guard import Access, Guard
from serve_apps.items_gateway import add_items
from serve_apps.keys import new_key
from serve_apps.observe import Operations
from serve_apps.recommend import Places
from serve_apps.recommend_gateway import PATH, RecommendLimits, make_recommend_app
from serve_apps.releases import fixed
from serve_apps.versions import match, match_users

KEY, LINE = new_key("tester", rate_per_s=1e6)
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


def guarded() -> Operations:
    return Operations(Guard(Access(keys=(LINE,)), {}))


def held(schema: Any, number: int, *statuses: int) -> None:
    """No 5xx, nothing undocumented, and these statuses among the answers."""
    asked = ask(schema, KEY, number)
    assert not asked.failures, asked.failures[:3]
    assert asked.total >= number
    assert set(asked.statuses()) >= set(statuses), asked.answers
    assert max(asked.statuses()) < 500


def test_the_content_service(served: Any, tables: str) -> None:
    version, limits = match(served.encoder_uri, served.index_uri), Limits()
    backend, items = LocalBackend(served), LocalItems(tables)
    app = make_app(backend, version, limits, guarded())
    add_items(app, fixed(backend, version), items, items.catalogue.version, limits)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=AUTHORIZED)
    held(schema, 160, 200, 401, 404, 422)


def test_recommendations(recommendable: dict[str, Places]) -> None:
    places = recommendable["sasrec"]
    version = match_users(places.encoder, places.index, places.rows)
    made = local_recommender(places)
    app = make_recommend_app(made, version, RecommendLimits(), guarded())
    schema = schemathesis.openapi.from_asgi(f"{PATH}/openapi.json", app, headers=AUTHORIZED)
    held(schema, 100, 200, 401, 404, 422)


def test_what_does_not_hold_is_found() -> None:
    app = FastAPI()

    @app.get("/v1/number")
    async def number(value: int) -> dict[str, int]:
        if value > 0:
            raise HTTPException(418)  # which the document does not have
        return {"value": value}

    asked = ask(schemathesis.openapi.from_asgi("/openapi.json", app), KEY, 40)
    assert any("418" in one and "curl" in one for one in asked.failures), asked
