"""Items as functions of their index: topic, time, domain, uploader, event; and the way back.

Items come in blocks of a power of two. In every block each topic has a fixed quota of slots,
Zipf-like over topics, and an invertible permutation of its own maps positions to slots. So the
topic of item i, and the k-th item of a topic, both take constant time in billions of items.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rec.sources.synthetic.hashing import Purpose, below, bits, uniform
from rec.sources.synthetic.language import Language, build_language
from rec.sources.synthetic.settings import SyntheticConfig

Ints = NDArray[np.int64]

_SLOTS_PER_TOPIC = 8  # at least, on average
_ITEMS_PER_UPLOADER = 20
_MAX_STAR_LEVEL = 10
_RECENT_SHARE = 0.5  # of draws that look for new items
_RECENT_SCALE = 0.05  # their mean age, in shares of the topic's items so far
_UPLOADER_SHIFTS = (0.0, 0.37, 0.71)  # where in the slots an uploader's further topics lie
_EVENT_AGES = 3  # windows during which an event goes on, each half as strong as the last


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items of one platform. Arguments called `index` are item indices, any length."""

    config: SyntheticConfig
    language: Language
    slot_topic: Ints  # (block size,)
    first_slot: Ints  # (topics,)
    quota: Ints  # (topics,)

    @property
    def block_bits(self) -> int:
        return len(self.slot_topic).bit_length() - 1

    def topic(self, index: ArrayLike) -> Ints:
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        block, position = index >> self.block_bits, index & (len(self.slot_topic) - 1)
        return self.slot_topic[self._permute(block, position)]

    def published_us(self, index: ArrayLike) -> Ints:
        """Microseconds since 1970; grows with the index."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        jitter = uniform(self.config.seed, Purpose.PUBLISHED, index)
        share = (index + jitter) / self.config.num_items
        return self.config.start_us + (share * self.config.span_us).astype(np.int64)

    def is_product(self, index: ArrayLike) -> NDArray[np.bool_]:
        return uniform(self.config.seed, Purpose.DOMAIN, index) < self.config.product_share

    def event(self, index: ArrayLike) -> Ints:
        """The event an item belongs to, or -1. Events are rare, and young when they are used."""
        config = self.config
        since_us = self.published_us(index) - config.start_us
        window = since_us // (config.event_days * 86_400_000_000)
        age = np.floor(-np.log2(1.0 - uniform(config.seed, Purpose.EVENT, index, 1)))
        event = window - np.minimum(age, _EVENT_AGES - 1).astype(np.int64)
        belongs = uniform(config.seed, Purpose.EVENT, index, 0) < config.event_rate
        return np.where(belongs & (event >= 0), event, -1)

    @property
    def num_uploaders(self) -> int:
        size = len(self.slot_topic)
        return size * max(1, self.config.num_items // (_ITEMS_PER_UPLOADER * size))

    def uploader_topics(self, uploader: ArrayLike) -> Ints:
        """(n, 3) topics that an uploader likes, the first most; -1 where there are fewer."""
        uploader = np.atleast_1d(np.asarray(uploader, dtype=np.int64))
        size = len(self.slot_topic)
        slots = (uploader[:, None] % size + self._shifts()) % size
        count = 1 + below(3, self.config.seed, Purpose.UPLOADER, uploader, 0)
        return np.where(np.arange(3) < count[:, None], self.slot_topic[slots], -1)

    def uploader(self, index: ArrayLike) -> Ints:
        """Who published an item: someone who likes its topic."""
        seed, size, topic = self.config.seed, len(self.slot_topic), self.topic(index)
        slot = self.first_slot[topic] + below(self.quota[topic], seed, Purpose.UPLOADER, index, 1)
        group = uniform(seed, Purpose.UPLOADER, index, 2) ** 2  # some publish far more
        base = (group * (self.num_uploaders // size)).astype(np.int64) * size
        rank = np.searchsorted([0.7, 0.9], uniform(seed, Purpose.UPLOADER, index, 3), "right")
        wanted = base + (slot - self._shifts()[rank]) % size
        likes = (self.uploader_topics(wanted) == topic[:, None]).any(1)
        return np.where(likes, wanted, base + slot)

    def sample(self, topic: Ints, time_us: Ints, purpose: Purpose, *keys: ArrayLike) -> Ints:
        """One item of each topic published before each time, or -1 where none is found.

        Half of the draws prefer new items. Popularity is Zipf-like by nested stars: a draw picks
        a level l at random and goes to the one star of its group of 2^l items, so that an item
        that is a star at level l gets 2^l times the usual traffic of that level.
        """
        seed, quota = self.config.seed, self.quota[topic]
        elapsed = np.maximum(time_us - self.config.start_us, 0) / self.config.span_us
        published = np.minimum(elapsed, 1.0) * self.config.num_items
        published = np.floor(published).astype(np.int64)  # items below this index are out
        count = ((published >> self.block_bits) + 1) * quota
        back = -np.log1p(-uniform(seed, purpose, *keys, 0)) * count * _RECENT_SCALE
        recent = np.maximum(count - 1 - back.astype(np.int64), 0)
        anywhere = below(count, seed, purpose, *keys, 1)
        chosen = np.where(uniform(seed, purpose, *keys, 2) < _RECENT_SHARE, recent, anywhere)
        blocks = max(1, self.config.num_items >> self.block_bits)
        levels = 1 + np.minimum(np.log2(quota * blocks).astype(np.int64), _MAX_STAR_LEVEL)
        level = below(levels, seed, purpose, *keys, 3)
        group = chosen >> level
        star = (group << level) + below(1 << level, seed, Purpose.STARS, topic, level, group)
        found = np.full(len(topic), -1, dtype=np.int64)
        # the last block is partly unpublished: the same slot a block or two ago is not
        for candidate in (star, chosen, chosen - quota, chosen - 2 * quota):
            index = self._nth(topic, np.maximum(candidate, 0))
            out = (candidate >= 0) & (index < published)
            found = np.where((found < 0) & out, index, found)
        return found

    def random_topic(self, purpose: Purpose, *keys: ArrayLike) -> Ints:
        """A topic as frequent as among items."""
        return self.slot_topic[below(len(self.slot_topic), self.config.seed, purpose, *keys)]

    def _shifts(self) -> Ints:
        return (np.array(_UPLOADER_SHIFTS) * len(self.slot_topic)).astype(np.int64)

    def _nth(self, topic: Ints, number: Ints) -> Ints:
        block, slot = np.divmod(number, self.quota[topic])
        return (block << self.block_bits) + self._restore(block, slot + self.first_slot[topic])

    def _keys(self, block: Ints) -> tuple[NDArray[np.uint64], ...]:
        """Odd multipliers and offsets of the blocks' permutations."""
        raw = [bits(self.config.seed, Purpose.SLOTS, block, n) for n in range(4)]
        return raw[0] | np.uint64(1), raw[1], raw[2] | np.uint64(1), raw[3]

    def _permute(self, block: Ints, position: Ints) -> Ints:
        mask, shift = np.uint64(len(self.slot_topic) - 1), np.uint64((self.block_bits + 1) // 2)
        multiply_1, add_1, multiply_2, add_2 = self._keys(block)
        x = (position.astype(np.uint64) * multiply_1 + add_1) & mask
        x ^= x >> shift  # its own inverse, as the shift is at least half of the bits
        return ((x * multiply_2 + add_2) & mask).astype(np.int64)

    def _restore(self, block: Ints, slot: Ints) -> Ints:
        mask, shift = np.uint64(len(self.slot_topic) - 1), np.uint64((self.block_bits + 1) // 2)
        multiply_1, add_1, multiply_2, add_2 = self._keys(block)
        x = ((slot.astype(np.uint64) - add_2) * _inverse(multiply_2)) & mask
        x ^= x >> shift
        return (((x - add_1) * _inverse(multiply_1)) & mask).astype(np.int64)


def _inverse(odd: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Inverse modulo 2^64 by Newton's iteration; each round doubles the right bits from 3."""
    x = odd.copy()
    for _ in range(5):
        x = x * (np.uint64(2) - odd * x)
    return x


def build_catalogue(config: SyntheticConfig) -> Catalogue:
    """The catalogue of a platform: small tables of its topics, nothing per item. Cached."""
    return _build(SyntheticConfig.to_json(config))


@lru_cache(maxsize=8)
def _build(settings: str) -> Catalogue:
    config = SyntheticConfig.from_json(settings)
    topics = config.num_topics
    size = 1 << (_SLOTS_PER_TOPIC * topics - 1).bit_length()
    rank = np.argsort(bits(config.seed, Purpose.RANKS, np.arange(topics)))
    weight = 1.0 / (rank + 2.0)
    exact = weight / weight.sum() * (size - topics)
    quota = 1 + np.floor(exact).astype(np.int64)
    short = size - int(quota.sum())
    quota[np.argsort(-(exact % 1.0), kind="stable")[:short]] += 1
    first = np.cumsum(quota) - quota
    return Catalogue(
        config=config,
        language=build_language(config),
        slot_topic=np.repeat(np.arange(topics), quota),
        first_slot=first,
        quota=quota,
    )
