"""Bodies of the answers about users and what they did, as `/docs` shows them."""

from __future__ import annotations

from pydantic import BaseModel, Field

MAX_LISTED = 500  # events or users of one answer


class HistoryResponse(BaseModel):
    user: str
    ids: list[str] = Field(description="of the items that the user chose, the newest last")
    num_events: int = Field(description="that there are in all")
    rows_version: str


class User(BaseModel):
    user: str
    num_events: int


class UserList(BaseModel):
    users: list[User]
