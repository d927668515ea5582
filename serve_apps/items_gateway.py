"""The routes about items: browsing, pictures, related items, hashtags. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Protocol
from urllib.parse import quote

import numpy as np
from fastapi import FastAPI, Header, Query, Response

from serve_apps.api import Version
from serve_apps.catalogue import Browsed, Card, Listing, Picture, TagCount
from serve_apps.errors import ApiError
from serve_apps.gateway import Backend, ItemQuery, Limits, checked_content
from serve_apps.item_tags import Suggested
from serve_apps.items_api import (
    MAX_LISTED,
    Item,
    ItemList,
    ItemsRequest,
    ItemsResponse,
    RelatedItem,
    RelatedResponse,
    SuggestedTag,
    Tag,
    TagList,
    TagsRequest,
    TagsResponse,
)
from serve_apps.releases import Pin

_MAX_OFFSET = 1 << 40
_Limit = Annotated[int, Query(ge=1, le=MAX_LISTED, description="most of them")]
_DAY = "private, max-age=86400"  # the address of a picture names the version of the tables


class ItemsBackend(Protocol):
    """What knows the items: `serve_apps.catalogue.Catalogue`, asked from afar. Each method does
    what is told there and raises ApiError."""

    async def browse(self, asked: Listing) -> Browsed: ...

    async def lookup(self, item_ids: Sequence[str]) -> list[Card | None]: ...

    async def tags(self, limit: int, prefix: str) -> list[TagCount]: ...

    async def suggest(
        self, neighbours: Sequence[str], similarities: Sequence[float], own: str | None, limit: int
    ) -> list[Suggested]: ...

    async def picture(self, item_id: str) -> Picture: ...


def add_items(
    app: FastAPI,
    pin: Pin[Version, Backend],
    items: ItemsBackend,
    items_version: str,
    limits: Limits,
) -> None:
    """Add the routes to the content service.

    Args:
        pin, limits: the content service's own.
        items_version: of the tables.
    """
    _add_listing(app, items, items_version)
    _add_neighbours(app, pin, items, items_version, limits)


def _add_listing(app: FastAPI, items: ItemsBackend, items_version: str) -> None:
    """The routes that need the table of items alone."""

    @app.get("/v1/items", summary="Items, the one published last first")
    async def browse(
        offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET)] = 0,
        limit: _Limit = 30,
        tag: Annotated[str | None, Query(description="only those that have it")] = None,
        pictures_first: Annotated[bool, Query(description="before those that have none")] = False,
    ) -> ItemList:
        found = await items.browse(Listing(offset, limit, tag, pictures_first))
        shown = [_item(card, items_version) for card in found.cards]
        return ItemList(items=shown, num_items=found.num_items, items_version=items_version)

    @app.post("/v1/items", summary="Items by their ids")
    async def lookup(body: ItemsRequest) -> ItemsResponse:
        cards = await items.lookup(body.ids)
        return ItemsResponse(
            items=[_item(card, items_version) for card in cards if card],
            unknown=[one for one, card in zip(body.ids, cards, strict=True) if card is None],
            items_version=items_version,
        )

    @app.get(
        "/v1/items/{item_id:path}/picture",
        summary="An item's first picture",
        response_class=Response,
        responses={200: {"content": {"image/*": {}}}, 304: {"description": "as it was"}},
    )
    async def picture(
        item_id: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        found = await items.picture(item_id)
        tag = f'"{hashlib.sha256(found.data).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Cache-Control": _DAY, "X-Content-Type-Options": "nosniff"}
        if if_none_match == tag:
            return Response(status_code=304, headers=headers)
        return Response(found.data, media_type=found.media_type, headers=headers)

    @app.get("/v1/items/{item_id:path}", summary="One item")
    async def one(item_id: str) -> Item:
        card = (await items.lookup([item_id]))[0]
        if card is None:
            raise ApiError(404, "unknown_item", f"{item_id}: not in the table of items")
        return _item(card, items_version)

    @app.get("/v1/tags", summary="The tags that most items have")
    async def tags(
        limit: _Limit = 30,
        prefix: Annotated[str, Query(description="what they begin with, in whatever case")] = "",
    ) -> TagList:
        found = await items.tags(limit, prefix)
        return TagList(tags=[Tag(tag=one.tag, num_items=one.num_items) for one in found])


def _add_neighbours(
    app: FastAPI,
    pin: Pin[Version, Backend],
    items: ItemsBackend,
    items_version: str,
    limits: Limits,
) -> None:
    """The routes that need the index besides: related items, and tags from the nearest items."""

    @app.get("/v1/related", summary="The items nearest to an item")
    async def related(
        item_id: Annotated[str, Query(description="of the index")], k: _Limit = 12
    ) -> RelatedResponse:
        version, backend = pin(None, None)
        found = await backend.search([ItemQuery("related", item_id)], k, True)
        near = found.results[0]
        own, *cards = await items.lookup([item_id, *near.ids])
        return RelatedResponse(
            item=_item(own, items_version) if own else Item(item_id=item_id),
            related=[
                RelatedItem(
                    item=_item(card, items_version) if card else Item(item_id=other),
                    similarity=score,
                )
                for other, card, score in zip(near.ids, cards, near.scores, strict=True)
            ],
            model_version=version.model_version,
            index_version=found.index_version,
        )

    @app.post("/v1/tags", summary="Hashtags for a text, a picture or an item")
    async def suggest(body: TagsRequest) -> TagsResponse:
        version, backend = pin(None, None)
        query: np.ndarray | ItemQuery
        if body.item_id is not None:
            query = ItemQuery("tags", body.item_id)
        else:
            query = (await backend.encode([checked_content("tags", body, limits)]))[0]
        found = await backend.search([query], body.num_neighbours, True)
        near = found.results[0]
        best = await items.suggest(near.ids, near.scores, body.item_id, body.k)
        return TagsResponse(
            tags=[SuggestedTag(**one._asdict()) for one in best],
            model_version=version.model_version,
            index_version=found.index_version,
        )


def _item(card: Card, version: str) -> Item:
    facts = card._asdict()
    path = f"/v1/items/{quote(card.item_id, safe='')}/picture?v={version}"
    return Item(**facts, picture=path if facts.pop("has_picture") else None)
