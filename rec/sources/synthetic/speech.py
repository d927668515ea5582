"""What users type: searches with the clicks they led to, and comments of mixed quality."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.schema import TIMESTAMP
from rec.sources.synthetic.behaviour import (
    dwell_ms,
    interests,
    item_ids,
    moments,
    no_interest,
    some_interest,
    user_ids,
)
from rec.sources.synthetic.catalogue import Catalogue, Ints
from rec.sources.synthetic.hashing import Purpose, below, bits, uniform
from rec.sources.synthetic.language import NUM_NOISE, NUM_TERMS
from rec.sources.synthetic.text import zipf
from rec.sources.synthetic.words import COMMON_WORDS, PRAISE, REMARKS, SPAM

NUM_RESULTS = 5
_NO_CLICK_RATE = 0.15  # of searches
_BOUNCE_MS = 5_000  # dwell below which most come straight back
_BOUNCE_RATE = 0.8


def searches(catalogue: Catalogue, start: int, stop: int) -> pa.Table:
    """Five shown results a search of users start..stop, at most one of them clicked.

    People search for an interest of theirs. `off_interest_rate` of the clicks, and of the other
    results, are items of topics that the user does not care for. Rows of rec.schema.SEARCHES.
    """
    config, purpose = catalogue.config, Purpose.SEARCHES
    user, number, time_us = moments(catalogue, start, stop, config.searches_per_user, purpose)
    liked = interests(catalogue, user, time_us)
    topic = some_interest(liked, uniform(config.seed, purpose, user, number, 3))
    query = _query(catalogue, topic, user, number)
    clicked_at = (NUM_RESULTS * uniform(config.seed, purpose, user, number, 4) ** 2).astype(int)
    none = uniform(config.seed, purpose, user, number, 5) < _NO_CLICK_RATE

    rows = np.repeat(np.arange(len(user)), NUM_RESULTS)
    position = np.tile(np.arange(NUM_RESULTS), len(user))
    user, number, time_us = user[rows], number[rows], time_us[rows]
    fits = uniform(config.seed, purpose, user, number, position, 6) >= config.off_interest_rate
    other = no_interest(catalogue, liked[rows], purpose, user, number, position, 7)
    shown = np.where(fits, topic[rows], other)
    item = catalogue.sample(shown, time_us, purpose, user, number, position, 8)
    clicked = (position == clicked_at[rows]) & ~none[rows]
    dwell = dwell_ms(catalogue, fits, purpose, user, number, position, 9)
    bounced = dwell < _BOUNCE_MS
    bounced &= uniform(config.seed, purpose, user, number, position, 10) < _BOUNCE_RATE
    not_clicked = ~clicked
    table = pa.table(
        {
            "user_id": user_ids(user),
            "query": query.take(pa.array(rows)).cast(pa.large_string()),
            "item_id": item_ids(item.clip(0)),
            "position": position.astype(np.int32),
            "clicked": clicked,
            "dwell_ms": pa.array(dwell, mask=not_clicked),
            "returned": pa.array(bounced, mask=not_clicked),
            "event_time": pa.array(time_us, TIMESTAMP),
        }
    )
    return table.filter(pa.array(item >= 0))  # nothing of that topic was out yet


def _query(catalogue: Catalogue, topic: Ints, user: Ints, number: Ints) -> pa.Array:
    """A key term, two, or one and a common word."""
    seed, language, purpose = catalogue.config.seed, catalogue.language, Purpose.SEARCHES
    first = zipf(NUM_TERMS, uniform(seed, purpose, user, number, 11))
    second = (first + 1 + below(NUM_TERMS - 1, seed, purpose, user, number, 12)) % NUM_TERMS
    common = language.common_from + zipf(
        len(COMMON_WORDS), uniform(seed, purpose, user, number, 13)
    )
    kind = below(5, seed, purpose, user, number, 14)  # 0 and 1: two terms; 2: with a common word
    base = language.term_from + topic * NUM_TERMS
    tail = np.select([kind < 2, kind == 2], [base + second, common], 0)
    tails = language.words.take(pa.array(tail, mask=kind > 2))
    words = language.words.take(pa.array(base + first))
    return pc.binary_join_element_wise(words, tails, " ", null_handling="skip")


class Quality(IntEnum):
    """Kinds of comments."""

    TERMS = 0  # says something about the item, with one of its topic's key terms
    PRAISE = 1  # empty
    SPAM = 2
    DUPLICATE = 3  # the same text under an item again and again


_QUALITY_SHARES = (0.35, 0.35, 0.15, 0.15)
_MEAN_LIKES = (6.0, 1.5, 0.1, 0.3)


def comment_quality(catalogue: Catalogue, user: Ints, number: Ints) -> Ints:
    """The Quality of comment `number` of a user."""
    draw = uniform(catalogue.config.seed, Purpose.COMMENTS, user, number, 3)
    return np.searchsorted(np.cumsum(_QUALITY_SHARES)[:-1], draw, "right")


def comments(catalogue: Catalogue, start: int, stop: int) -> pa.Table:
    """Comments of users start..stop on items of their interests; rows of rec.schema.COMMENTS."""
    config, purpose = catalogue.config, Purpose.COMMENTS
    user, number, time_us = moments(catalogue, start, stop, config.comments_per_user, purpose)
    liked = interests(catalogue, user, time_us)
    topic = some_interest(liked, uniform(config.seed, purpose, user, number, 4))
    item = catalogue.sample(topic, time_us, purpose, user, number, 5)
    quality = comment_quality(catalogue, user, number)
    scale = np.array(_MEAN_LIKES)[quality]
    likes = -np.log1p(-uniform(config.seed, purpose, user, number, 6)) * scale
    numbers = pa.array(np.char.zfill(number.astype(str), 4))
    users = pc.utf8_slice_codeunits(user_ids(user), 1)
    ids = pc.binary_join_element_wise(pc.binary_join_element_wise("c", users, ""), numbers, "-")
    table = pa.table(
        {
            "comment_id": ids,
            "item_id": item_ids(item.clip(0)),
            "user_id": user_ids(user),
            "text": _texts(catalogue, topic, item, quality, user, number),
            "likes": likes.astype(np.int64),
            "event_time": pa.array(time_us, TIMESTAMP),
        }
    )
    return table.filter(pa.array(item >= 0))  # nothing of that topic was out yet


def _texts(
    catalogue: Catalogue, topic: Ints, item: Ints, quality: Ints, user: Ints, number: Ints
) -> pa.Array:
    seed, language, purpose = catalogue.config.seed, catalogue.language, Purpose.COMMENTS
    own = bits(seed, purpose, user, number, 7)
    same = bits(seed, purpose, item, 8)  # a duplicate's text depends on its item alone
    draw = np.where(quality == Quality.DUPLICATE, same, own)
    term = language.words.take(
        pa.array(language.term_from + topic * NUM_TERMS + (draw % np.uint64(NUM_TERMS)).astype(int))
    )
    remark = pa.array((draw >> np.uint64(8)) % np.uint64(len(REMARKS)), pa.int64())
    before = pa.array([pair[0] for pair in REMARKS]).take(remark)
    after = pa.array([pair[1] for pair in REMARKS]).take(remark)
    said = pc.binary_join_element_wise(before, term, after, "")
    praise = pa.array(PRAISE).take(
        pa.array((draw >> np.uint64(16)) % np.uint64(len(PRAISE)), pa.int64())
    )
    spam = pa.array(SPAM).take(pa.array((draw >> np.uint64(24)) % np.uint64(len(SPAM)), pa.int64()))
    code = language.noise_from + ((draw >> np.uint64(32)) % np.uint64(NUM_NOISE)).astype(np.int64)
    spam = pc.binary_join_element_wise(spam, language.words.take(pa.array(code)), " ")
    kind = pa.array(np.where(quality == Quality.DUPLICATE, Quality.TERMS, quality))
    return pc.choose(kind, said, praise, spam).cast(pa.large_string())
