"""Titles, descriptions and hashtags of items, for many items at once.

A text mixes stop words and common words (Zipf), rare words that mean nothing, and key terms of
the item's topic; an item keeps to three of its topic's terms, so that they repeat.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec.sources.synthetic.catalogue import Catalogue, Ints
from rec.sources.synthetic.hashing import Purpose, below, uniform
from rec.sources.synthetic.language import (
    NUM_NOISE,
    NUM_TAGS,
    NUM_TERMS,
    NUM_VARIANTS,
    TOPICS_PER_BRANCH,
)
from rec.sources.synthetic.words import COMMON_WORDS, PRODUCT_WORDS, SPAM_TAGS, STOP_WORDS

_MAX_TITLE, _MIN_TITLE = 6, 3
_MAX_DESCRIPTION, _MIN_DESCRIPTION = 30, 14
_TITLE_MIX = (0.08, 0.09, 0.31)  # key terms below the first, noise below the second, stop words
_DESCRIPTION_MIX = (0.07, 0.08, 0.42)
_MAX_TOPIC_TAGS, _MIN_TOPIC_TAGS = 5, 2
_MAX_SPAM_TAGS = 2
_SPAM_RATE = 0.5  # of items
_SENTENCE = 9  # words


def zipf(limit: int, draw: NDArray[np.float64]) -> Ints:
    """Numbers below `limit` with probability near 1 / (number + 1), from uniform draws."""
    return (np.exp(draw * np.log(limit + 1.0)) - 1.0).astype(np.int64).clip(0, limit - 1)


def focus(catalogue: Catalogue, index: Ints) -> Ints:
    """(n, 3) word ids of the key terms that an item is about, the main one first."""
    language = catalogue.language
    draw = uniform(catalogue.config.seed, Purpose.FOCUS, index[:, None], np.arange(3))
    return language.term_from + catalogue.topic(index)[:, None] * NUM_TERMS + zipf(NUM_TERMS, draw)


def _words(
    catalogue: Catalogue, index: Ints, purpose: Purpose, length: int, mix: tuple[float, ...]
) -> Ints:
    """(n, length) word ids."""
    seed, language = catalogue.config.seed, catalogue.language
    row, column = index[:, None], np.arange(length)
    kind = uniform(seed, purpose, row, column, 0)
    which = uniform(seed, purpose, row, column, 1)
    term = np.take_along_axis(focus(catalogue, index), (which * 3).astype(np.int64), axis=1)
    noise = language.noise_from + (which * NUM_NOISE).astype(np.int64)
    common = language.common_from + zipf(len(COMMON_WORDS), which)
    stop = zipf(len(STOP_WORDS), which)
    return np.select([kind < share for share in mix], [term, noise, stop], common)


def _place(words: Ints, at: Ints, word: Ints, where: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(where)
    words[rows, at[rows]] = word[rows]


def _joined(catalogue: Catalogue, words: Ints, lengths: Ints, stops: bool) -> pa.Array:
    """Rows of word ids, cut to their lengths, as text; with full stops where asked for."""
    column = np.arange(words.shape[1])
    kept = column < lengths[:, None]
    text = catalogue.language.words.take(pa.array(words[kept]))
    if stops:
        last = column == lengths[:, None] - 1
        ends = (last | (column % _SENTENCE == _SENTENCE - 1))[kept]
        text = pc.binary_join_element_wise(text, np.where(ends, ".", ""), "")
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(offsets, text), " ")


def titles(catalogue: Catalogue, index: Ints) -> pa.Array:
    """Three to six words; most hold the item's main key term, few hold its event's."""
    seed, purpose = catalogue.config.seed, Purpose.TITLE
    lengths = _MIN_TITLE + below(_MAX_TITLE - _MIN_TITLE + 1, seed, purpose, index, 2)
    words = _words(catalogue, index, purpose, _MAX_TITLE, _TITLE_MIX)
    first, second = np.zeros_like(index), np.ones_like(index)
    main = focus(catalogue, index)[:, 0]
    _place(words, first, main, uniform(seed, purpose, index, 3) < 0.75)
    event = catalogue.event(index)
    told = (event >= 0) & (uniform(seed, purpose, index, 4) < 0.5)
    _place(words, second, catalogue.language.event_from + event, told)
    noun = catalogue.language.product_from + below(len(PRODUCT_WORDS), seed, purpose, index, 5)
    _place(words, lengths - 1, noun, catalogue.is_product(index))
    return _joined(catalogue, words, lengths, stops=False)


def descriptions(catalogue: Catalogue, index: Ints) -> pa.Array:
    """14 to 30 words in sentences, or null; each holds its main key term, most their event's."""
    seed, purpose = catalogue.config.seed, Purpose.DESCRIPTION
    spread = _MAX_DESCRIPTION - _MIN_DESCRIPTION + 1
    lengths = _MIN_DESCRIPTION + below(spread, seed, purpose, index, 2)
    words = _words(catalogue, index, purpose, _MAX_DESCRIPTION, _DESCRIPTION_MIX)
    half = lengths // 2
    _place(words, below(half, seed, purpose, index, 3), focus(catalogue, index)[:, 0], index >= 0)
    event = catalogue.event(index)
    told = (event >= 0) & (uniform(seed, purpose, index, 4) < 0.9)
    at = half + below(lengths - half, seed, purpose, index, 5)
    _place(words, at, catalogue.language.event_from + event, told)
    text = _joined(catalogue, words, lengths, stops=True)
    has = uniform(seed, Purpose.HAS, index, 0) < catalogue.config.description_share
    return pc.if_else(pa.array(has), text, None)


class Tags(NamedTuple):
    """Hashtags of n items in a grid, as ids into Language.tags."""

    ids: Ints  # (n, m)
    mask: NDArray[np.bool_]  # (n, m) True where there is a hashtag
    right: NDArray[np.bool_]  # (n, m) True where it says the item's own topic or event


def draw_tags(catalogue: Catalogue, index: Ints) -> Tags:
    """Two to five topic hashtags, some of them another topic's; spam on half; events."""
    config, language, purpose = catalogue.config, catalogue.language, Purpose.TAGS
    row, column = index[:, None], np.arange(_MAX_TOPIC_TAGS)
    topic = catalogue.topic(index)[:, None]
    count = _MIN_TOPIC_TAGS + below(
        _MAX_TOPIC_TAGS - _MIN_TOPIC_TAGS + 1, config.seed, purpose, index, 0
    )
    wrong = uniform(config.seed, purpose, row, column, 1) < config.wrong_tag_rate
    other = catalogue.random_topic(purpose, row, column, 2)
    sibling = other // TOPICS_PER_BRANCH == topic // TOPICS_PER_BRANCH  # shares a hashtag
    other = np.where(sibling, (other + TOPICS_PER_BRANCH) % config.num_topics, other)
    start = below(NUM_TAGS, config.seed, purpose, index, 3)[:, None]
    which = (start + column) % NUM_TAGS  # no hashtag twice
    topical = np.where(wrong, other, topic) * NUM_TAGS + which

    spam_column = np.arange(_MAX_SPAM_TAGS)
    spam_start = below(len(SPAM_TAGS), config.seed, purpose, index, 4)[:, None]
    spam = language.spam_from + (spam_start + spam_column) % len(SPAM_TAGS)
    some = uniform(config.seed, purpose, index, 5) < _SPAM_RATE
    num_spam = some * (1 + below(_MAX_SPAM_TAGS, config.seed, purpose, index, 6))

    event = catalogue.event(index)[:, None]
    ids = np.concatenate([topical, spam, language.event_tag_from + event.clip(0)], axis=1)
    mask = np.concatenate(
        [column < count[:, None], spam_column < num_spam[:, None], event >= 0], axis=1
    )
    right = np.concatenate([~wrong, np.zeros_like(spam, dtype=bool), event >= 0], axis=1)
    variant = np.searchsorted(
        [0.7, 0.85, 0.95], uniform(config.seed, purpose, row, np.arange(ids.shape[1]), 7), "right"
    )
    return Tags(ids + variant.clip(0, NUM_VARIANTS - 1) * language.num_tags, mask, right & mask)


def tag_lists(catalogue: Catalogue, ids: Ints, mask: NDArray[np.bool_]) -> pa.ListArray:
    """The masked hashtags of each row, as written."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(mask.sum(axis=1))]), pa.int32())
    return pa.ListArray.from_arrays(offsets, catalogue.language.tags.take(pa.array(ids[mask])))
