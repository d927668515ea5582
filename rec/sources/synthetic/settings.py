"""The dials of the simulated platform."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Literal, Self

from pydantic import Field, model_validator

from rec.config import Config


class SyntheticConfig(Config):
    """What the platform is like. Equal settings give equal tables, in however many shards."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = 0
    num_items: int = Field(default=500, ge=1, lt=10**10)
    num_users: int | None = Field(default=None, ge=1, lt=10**10)  # None: one for every two items
    num_shards: int = Field(default=4, ge=1)
    num_topics: int = Field(default=24, ge=8, le=4096)
    start: date = date(2024, 1, 1)  # first publication, midnight UTC
    end: date = date(2024, 7, 1)
    interactions_per_user: float = Field(default=30.0, ge=0.0)  # means of skewed counts
    searches_per_user: float = Field(default=6.0, ge=0.0)
    comments_per_user: float = Field(default=5.0, ge=0.0)
    product_share: float = Field(default=0.15, ge=0.0, le=1.0)
    frame_share: float = Field(default=0.95, ge=0.0, le=1.0)  # of items that have frames
    sound_share: float = Field(default=0.3, ge=0.0, le=1.0)  # of videos that have sound
    description_share: float = Field(default=0.85, ge=0.0, le=1.0)
    wrong_tag_rate: float = Field(default=0.33, ge=0.0, le=1.0)  # of hashtags that name a topic
    off_interest_rate: float = Field(default=0.4, ge=0.0, le=1.0)  # of interactions and clicks
    frame_size: int = Field(default=64, ge=16, le=512)  # pixels a side
    event_days: int = Field(default=7, ge=1)  # a new fresh tag appears every so many days
    event_rate: float = Field(default=0.12, ge=0.0, le=1.0)  # of items that belong to some event

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"end {self.end} is not after start {self.start}")
        return self

    @property
    def users(self) -> int:
        return self.num_users or max(1, self.num_items // 2)

    @property
    def start_us(self) -> int:
        return microseconds(datetime.combine(self.start, time(), UTC))

    @property
    def span_us(self) -> int:
        return microseconds(datetime.combine(self.end, time(), UTC)) - self.start_us

    @property
    def num_events(self) -> int:
        return -(-(self.end - self.start).days // self.event_days)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime, exactly."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
