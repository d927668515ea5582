"""The laboratory's truth: what is behind the items and users, asked for without any table."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rec.sources.synthetic import behaviour, speech, text
from rec.sources.synthetic.catalogue import build_catalogue
from rec.sources.synthetic.settings import SyntheticConfig, microseconds
from rec.sources.synthetic.speech import Quality


class Truth:
    """Answers about one platform; topics are numbers from 0, items and users indices."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.catalogue = build_catalogue(config)

    def index_of(self, item_or_user_id: str) -> int:
        """The index in an item's or a user's id."""
        return int(item_or_user_id[1:])

    def topic_of(self, index: ArrayLike) -> NDArray[np.int64]:
        """(n,) topics of items."""
        return self.catalogue.topic(index)

    def event_of(self, index: ArrayLike) -> NDArray[np.int64]:
        """(n,) events of items, -1 for none."""
        return self.catalogue.event(index)

    def key_terms(self, topic: int) -> tuple[str, ...]:
        """All key terms of a topic."""
        return self.catalogue.language.terms[topic]

    def key_terms_of(self, index: int) -> frozenset[str]:
        """The planted words that may stand in an item's text: its topic's and its event's."""
        event = int(self.event_of(index)[0])
        own = self.catalogue.language.event_terms[event : event + 1] if event >= 0 else ()
        return frozenset((*self.key_terms(int(self.topic_of(index)[0])), *own))

    def hashtags(self, topic: int) -> tuple[str, ...]:
        """The right hashtags of a topic, before people write them in their ways."""
        return self.catalogue.language.hashtags[topic]

    def event_tag(self, event: int) -> str:
        """The rare fresh hashtag of an event."""
        return f"#{self.catalogue.language.event_terms[event]}"

    def true_tags(self, index: int) -> tuple[str, ...]:
        """The hashtags of an item, as written, that are neither wrong nor spam."""
        tags = text.draw_tags(self.catalogue, np.array([index]))
        return tuple(text.tag_lists(self.catalogue, tags.ids, tags.right)[0].as_py())

    def interests(self, user: int, time: datetime) -> tuple[int, ...]:
        """The two to five topics that a user cares for at an aware time, the strongest first."""
        row = behaviour.interests(self.catalogue, user, microseconds(time))[0]
        return tuple(row[row >= 0].tolist())

    def uploader_topics(self, uploader: int) -> tuple[int, ...]:
        """The one to three topics that an uploader publishes."""
        row = self.catalogue.uploader_topics(uploader)[0]
        return tuple(row[row >= 0].tolist())

    def comment_quality(self, comment_id: str) -> Quality:
        """What kind of comment it is."""
        user, number = comment_id[1:].split("-")
        kinds = speech.comment_quality(
            self.catalogue, np.array([int(user)]), np.array([int(number)])
        )
        return Quality(int(kinds[0]))
