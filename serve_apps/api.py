"""Bodies of the services' requests and answers, as `/docs` shows them."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from rec.retrieval import filters


def _unicode(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no text encoding can carry further."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not Unicode text: {error.reason}") from error
    return text


Text = Annotated[str, AfterValidator(_unicode)]
_WHERE = (
    "only items whose attributes, of those that the index was built to keep, fit; as in "
    '{"op": "range", "column": "published_at", "least": "2026-01-01T00:00:00Z"}'
)
# the parser first: it bounds how deep and how large a filter is
Where = Annotated[filters.Filter, BeforeValidator(filters.parse)]


class Body(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class ContentInput(Body):
    """Something to embed: a text, a picture, or both."""

    text: Text | None = Field(None, examples=["a crew lost in space"])
    image: str | None = Field(
        None, description="a picture file (JPEG, PNG, WebP...) as base64, without a data: prefix"
    )

    @property
    def picture(self) -> bytes | None:
        """The picture file's bytes; raises ValueError where `image` is not base64."""
        if self.image is None:
            return None
        try:
            return base64.b64decode(self.image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"not base64: {error}") from error

    @property
    def is_empty(self) -> bool:
        return not (self.text and self.text.strip()) and not self.image


class EmbedRequest(Body):
    inputs: list[ContentInput] = Field(min_length=1)
    model_version: Text | None = Field(
        None, description="refuse (409) unless this is the model that answers"
    )


class EmbedResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    vectors: list[list[float]] = Field(description="one of unit norm for each input, in order")
    dim: int
    model_version: str


class Query(ContentInput):
    """What to find neighbours of: a vector, an item of the index, or text and/or a picture."""

    vector: list[float] | None = Field(None, description="of the model's dimension; any length")
    item_id: Text | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        content = self.text is not None or self.image is not None
        if (self.vector is not None) + (self.item_id is not None) + content != 1:
            raise ValueError("expected exactly one of: vector; item_id; text and/or image")
        return self


class KnnRequest(Body):
    queries: list[Query] = Field(min_length=1)
    k: int = Field(
        default=10, ge=1, description="neighbours a query; fewer where the index holds fewer"
    )
    exclude_self: bool = Field(True, description="leave the item out of its own neighbours")
    where: Where | None = Field(
        None,
        description=_WHERE,
    )
    model_version: Text | None = Field(
        None, description="refuse (409) unless this is the model that answers"
    )
    index_version: Text | None = Field(
        None, description="refuse (409) unless this is the index that answers"
    )


class Neighbours(BaseModel):
    ids: list[str]
    scores: list[float] = Field(description="cosine similarity, falling")


class KnnResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    results: list[Neighbours] = Field(description="one for each query, in order")
    model_version: str
    index_version: str


class Version(BaseModel):
    """What is being served."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_version: str
    index_version: str
    dim: int
    num_items: int
    raycall: str


class RecommendRequest(Body):
    """Whom to recommend to: what they did, or who they are."""

    history: list[Text] | None = Field(
        None,
        description="ids of the items that the user chose, the newest last; none: what is popular",
        examples=[[]],
    )
    user: Text | None = Field(
        None, description="a user of the rows that are served; a new one is shown what is popular"
    )
    k: int = Field(default=10, ge=1, description="items; fewer where no more are left")
    exclude: list[Text] = Field([], description="ids of further items to leave out")
    exclude_seen: bool = Field(True, description="leave out the items of the history")
    where: Where | None = Field(
        None,
        description=_WHERE,
    )
    diversity: float = Field(
        0,
        ge=0,
        le=1,
        description="0: by score alone; above, of five times as many items, each next one that has "
        "the best score less what it resembles those before it, which weighs so much (MMR)",
    )
    reasons: int = Field(
        0,
        ge=0,
        le=10,
        description="items of the history to tell with each interest and each recommended item, "
        "those nearest to it; 0: none",
    )
    domain: Text | None = Field(
        None, description="refuse (404) unless the items that are served are of this domain"
    )
    model_version: Text | None = Field(
        None, description="refuse (409) unless this is the model that answers"
    )
    index_version: Text | None = Field(
        None, description="refuse (409) unless this is the index that answers"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.history is None) == (self.user is None):
            raise ValueError("expected exactly one of: history; user")
        return self


class InterestDetail(BaseModel):
    weight: float
    item_ids: list[str] = Field(description="of the history, those of highest score for it")
    scores: list[float]


class ReasonDetail(BaseModel):
    interest: int = Field(description="which of `interests` the item was found for, from 0")
    item_ids: list[str] = Field(description="of the history, the nearest first")
    similarities: list[float] = Field(description="cosine of the two items' vectors")


class RecommendResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    ids: list[str] = Field(description="of items, the best first")
    scores: list[float] = Field(
        description="falling, but with diversity; of the model: inner products of user and item; "
        "of what is popular: the items' events on the training side"
    )
    source: Literal["model", "popular"] = Field(
        description="popular: nothing that the model knows is known of the user"
    )
    num_known: int = Field(description="events of the history whose items the model knows")
    num_unknown: int = Field(description="events of other items, which told it nothing")
    interests: list[InterestDetail] | None = Field(None, description="of the user, if asked for")
    reasons: list[ReasonDetail] | None = Field(
        None, description="one for each item, in order, if asked for; none for what is popular"
    )
    model_version: str
    index_version: str


class RecommendVersion(BaseModel):
    """What is being served."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_version: str
    index_version: str
    rows_version: str = Field(description="of the rows that tell users' histories")
    domain: str = Field(description="of the items; empty where the logs told none apart")
    dim: int
    num_items: int
    raycall: str


class ErrorDetail(BaseModel):
    type: str
    message: str


class ErrorResponse(BaseModel):
    error: ErrorDetail
