"""Users and what they watch: a pure function of the user's number, many users at once.

A user has two to five interests (topics) at any time. Each interest lasts for a while of its
own and then moves to another topic. A share of what users open is none of their interests, and
most of that is left again within seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from rec.sources.synthetic.catalogue import Catalogue, Ints
from rec.sources.synthetic.hashing import Purpose, below, normal, uniform

MAX_INTERESTS = 5
MIN_INTERESTS = 2
WATCH_MS = 8_000  # dwell from which a click is a watch
_DRIFT = (0.35, 1.5)  # how long an interest lasts, in shares of the platform's time
_LAST_JOIN = 0.6  # users join until then
_SPREAD = 0.8  # sigma of the log-normal activity of users
_LEFT_AT_ONCE = 0.8  # of off-interest openings
_BUY_RATE = 0.15  # of products opened out of interest
_EVENTS = ("click", "watch", "buy")
_VALUES = (0.3, 1.0, 3.0)


def interests(catalogue: Catalogue, user: ArrayLike, time_us: ArrayLike) -> Ints:
    """(n, 5) distinct topics of each user at each time, the strongest first, then -1."""
    config, purpose = catalogue.config, Purpose.INTERESTS
    row = np.atleast_1d(np.asarray(user, dtype=np.int64))[:, None]
    column = np.arange(MAX_INTERESTS)
    since = (np.atleast_1d(time_us)[:, None] - config.start_us) / config.span_us
    low, high = _DRIFT
    lasts = low + (high - low) * uniform(config.seed, purpose, row, column, 0)
    epoch = np.floor(since / lasts + uniform(config.seed, purpose, row, column, 1))
    topics = catalogue.random_topic(purpose, row, column, epoch.astype(np.int64), 2)
    for k in range(1, MAX_INTERESTS):
        topics[:, k] = _other_than(topics[:, k], topics[:, :k], config.num_topics)
    spread = MAX_INTERESTS - MIN_INTERESTS + 1
    count = MIN_INTERESTS + below(spread, config.seed, purpose, row, 3)
    return np.where(column < count, topics, -1)


def _other_than(topic: Ints, taken: Ints, num_topics: int) -> Ints:
    """The topic, or the next one after it that is not among `taken` (n, k)."""
    for _ in range(taken.shape[1]):
        topic = np.where((taken == topic[:, None]).any(1), (topic + 1) % num_topics, topic)
    return topic


def some_interest(liked: Ints, draw: NDArray[np.float64]) -> Ints:
    """One interest of each row of `liked`, the first ones more often."""
    count = (liked >= 0).sum(axis=1)
    which = (count * draw**1.5).astype(np.int64)
    return np.take_along_axis(liked, which[:, None], axis=1)[:, 0]


def no_interest(catalogue: Catalogue, liked: Ints, purpose: Purpose, *keys: ArrayLike) -> Ints:
    """A topic outside of each row of `liked`."""
    topic = catalogue.random_topic(purpose, *keys)
    return _other_than(topic, liked, catalogue.config.num_topics)


def dwell_ms(
    catalogue: Catalogue, liked: NDArray[np.bool_], purpose: Purpose, *keys: ArrayLike
) -> Ints:
    """How long something is looked at: about 25 s out of interest, mostly 2.5 s otherwise."""
    seed = catalogue.config.seed
    left = ~liked & (uniform(seed, purpose, *keys, 0) < _LEFT_AT_ONCE)
    deviate = normal(seed, purpose, *keys, 1)
    median = np.where(left, 2_500.0, 25_000.0)
    return (median * np.exp(np.where(left, 0.5, 0.7) * deviate)).astype(np.int64)


class Moments(NamedTuple):
    """Times at which users do something, ordered by user and time."""

    user: Ints
    number: Ints  # of the moment among the user's, before ordering: the key of further draws
    time_us: Ints


def moments(catalogue: Catalogue, start: int, stop: int, mean: float, purpose: Purpose) -> Moments:
    """When users start..stop act; `mean` times a user, log-normally spread over users."""
    config = catalogue.config
    users = np.arange(start, stop)
    skew = np.exp(_SPREAD * normal(config.seed, purpose, users, 0) - _SPREAD**2 / 2)
    counts = np.minimum(np.floor(mean * skew + uniform(config.seed, purpose, users, 1)), 10 * mean)
    counts = counts.astype(np.int64)
    user = np.repeat(users, counts)
    number = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    joined = 0.02 + _LAST_JOIN * uniform(config.seed, Purpose.INTERESTS, user, 4)
    share = joined + (1.0 - joined) * uniform(config.seed, purpose, user, number, 2)
    time_us = config.start_us + (share * config.span_us).astype(np.int64)
    order = np.lexsort((number, time_us, user))
    return Moments(user[order], number[order], time_us[order])


def item_ids(index: Ints) -> pa.Array:
    """v0000000012 for item 12."""
    return _ids("v", index)


def user_ids(user: Ints) -> pa.Array:
    """u0000000012 for user 12."""
    return _ids("u", user)


def _ids(letter: str, number: Ints) -> pa.Array:
    return pa.array(np.char.add(letter, np.char.zfill(number.astype(str), 10)), pa.string())


def interactions(catalogue: Catalogue, start: int, stop: int) -> pa.Table:
    """What users start..stop opened, ordered by user and time; rows of rec.schema.INTERACTIONS."""
    config, purpose = catalogue.config, Purpose.INTERACTIONS
    user, number, time_us = moments(catalogue, start, stop, config.interactions_per_user, purpose)
    liked = interests(catalogue, user, time_us)
    wanted = uniform(config.seed, purpose, user, number, 3) >= config.off_interest_rate
    topic = np.where(
        wanted,
        some_interest(liked, uniform(config.seed, purpose, user, number, 4)),
        no_interest(catalogue, liked, purpose, user, number, 5),
    )
    item = catalogue.sample(topic, time_us, purpose, user, number, 6)
    product = catalogue.is_product(item)
    dwell = dwell_ms(catalogue, wanted, purpose, user, number, 7)
    bought = product & wanted & (uniform(config.seed, purpose, user, number, 8) < _BUY_RATE)
    event = np.select([bought, ~product & (dwell >= WATCH_MS)], [2, 1], 0)
    table = pa.table(
        {
            "user_id": user_ids(user),
            "item_id": item_ids(item.clip(0)),
            "domain": np.where(product, "product", "video"),
            "event": np.array(_EVENTS)[event],
            "value": np.array(_VALUES, dtype=np.float32)[event],
            "dwell_ms": dwell,
            "event_time": pa.array(time_us, pa.timestamp("us", tz="UTC")),
        }
    )
    return table.filter(pa.array(item >= 0))  # nothing of that topic was out yet
