"""Bodies of the requests and answers about items, as `/docs` shows them."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_apps.api import ContentInput, Text

MAX_LISTED = 100  # items of one answer
MAX_IDS = 500  # of one look-up


class Item(BaseModel):
    """Something to watch, read or buy, as the table of items tells it."""

    item_id: str
    domain: str = Field(
        default="", description="what kind of thing; empty where the table has no such id"
    )
    title: str | None = None
    description: str | None = None
    tags: list[str] = Field(default=[], description="hashtags, as the uploader wrote them")
    categories: list[str] = []
    published_at: str | None = Field(default=None, description="ISO 8601, UTC")
    picture: str | None = Field(
        default=None, description="path of its picture here; null: it has none"
    )


class ItemList(BaseModel):
    items: list[Item] = Field(description="the one published last first")
    num_items: int = Field(description="that there are in all, with that tag if one was given")
    items_version: str


class ItemsRequest(BaseModel):
    model_config = ContentInput.model_config

    ids: list[Text] = Field(min_length=1, max_length=MAX_IDS, examples=[["v0000001"]])


class ItemsResponse(BaseModel):
    items: list[Item] = Field(
        description="in the order of the ids, those that are not known left out"
    )
    unknown: list[str] = Field(description="ids that the table does not have")
    items_version: str


class RelatedItem(BaseModel):
    item: Item
    similarity: float = Field(description="cosine, -1 to 1")


class RelatedResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    item: Item
    related: list[RelatedItem] = Field(description="the nearest first")
    model_version: str
    index_version: str


class TagsRequest(ContentInput):
    """What to suggest hashtags for: a text and/or a picture, or an item of the index."""

    item_id: Text | None = None
    k: int = Field(default=10, ge=1, le=MAX_LISTED, description="most tags")
    num_neighbours: int = Field(
        default=30, ge=1, le=MAX_LISTED, description="nearest items, whose tags are counted"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        content = self.text is not None or self.image is not None
        if (self.item_id is not None) + content != 1:
            raise ValueError("expected exactly one of: item_id; text and/or image")
        return self


class SuggestedTag(BaseModel):
    tag: str
    score: float = Field(
        description="0 to 1: the share of the nearest items that have it, weighted by similarity"
    )
    item_ids: list[str] = Field(description="the nearest of the items that have it")


class TagsResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    tags: list[SuggestedTag] = Field(
        description="the likeliest first; of an item, those that it does not have yet"
    )
    model_version: str
    index_version: str


class Tag(BaseModel):
    tag: str
    num_items: int


class TagList(BaseModel):
    tags: list[Tag] = Field(description="the most frequent first")
