"""The platform's language: key terms, hashtags and categories of topics, and event words.

A key term belongs to one topic and no other. Most are invented, pronounceable words; some are
compounds that look real. Topics are leaves of a tree: 3 to a branch, 2 branches to a root.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

from rec.sources.synthetic.hashing import Purpose, below
from rec.sources.synthetic.settings import SyntheticConfig
from rec.sources.synthetic.words import (
    BRANCHES,
    COMMON_WORDS,
    ENDINGS,
    PRODUCT_WORDS,
    ROOTS,
    SPAM_TAGS,
    STEMS,
    STOP_WORDS,
)

NUM_TERMS = 8  # key terms of a topic
NUM_TAGS = 6  # hashtags of a topic: four terms, the leaf, the branch
NUM_NOISE = 2000  # rare words that mean nothing
TOPICS_PER_BRANCH = 3
BRANCHES_PER_ROOT = 2
NUM_VARIANTS = 4  # ways to write a hashtag

_COMPOUNDS_FROM = 6  # terms from this one on are compounds
_ONSETS = (
    "b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z",
    "br", "dr", "kl", "pl", "st", "tr",
)  # fmt: skip
_VOWELS = "aeiou"
_SYLLABLES = tuple(onset + vowel for onset in _ONSETS for vowel in _VOWELS)
_NUM_WORDS = len(_SYLLABLES) ** 3
_STRIDE = 387_421  # coprime to the numbers of words, so that distinct numbers stay distinct


def _word(number: int, offset: int) -> str:
    """The invented word of this number below 10^6; distinct numbers, distinct words."""
    mixed = (number * _STRIDE + offset) % _NUM_WORDS
    high, low = divmod(mixed, len(_SYLLABLES))
    first, middle = divmod(high, len(_SYLLABLES))
    return _SYLLABLES[first] + _SYLLABLES[middle] + _SYLLABLES[low]


def _compound(number: int, offset: int) -> str:
    mixed = (number * _STRIDE + offset) % (len(STEMS) * len(ENDINGS))
    return STEMS[mixed // len(ENDINGS)] + ENDINGS[mixed % len(ENDINGS)]


@dataclass(frozen=True)
class Language:
    """All words of a platform. Ids into `words`: stop words from 0, then the parts below."""

    terms: tuple[tuple[str, ...], ...]  # (topics, NUM_TERMS)
    hashtags: tuple[tuple[str, ...], ...]  # (topics, NUM_TAGS)
    categories: tuple[tuple[str, str, str], ...]  # (topics, root branch leaf)
    event_terms: tuple[str, ...]  # (events,)
    words: pa.StringArray
    common_from: int
    product_from: int
    noise_from: int
    term_from: int  # + topic * NUM_TERMS + term
    event_from: int
    # hashtags as written, variant * num_tags + id; ids: topics, then spam, then events
    tags: pa.StringArray
    num_tags: int
    spam_from: int
    event_tag_from: int


def build_language(config: SyntheticConfig) -> Language:
    """The words of a platform; depends on seed, num_topics and the number of events."""
    offset = int(below(_NUM_WORDS, config.seed, Purpose.WORDS)[0])
    topics, events = config.num_topics, config.num_events
    terms = tuple(_terms(topic, offset) for topic in range(topics))
    taken = topics * NUM_TERMS
    leaves = [_word(taken + topic, offset) for topic in range(topics)]
    event_terms = tuple(_word(taken + topics + event, offset) for event in range(events))
    noise_start = taken + topics + events
    noise = [_word(noise_start + number, offset) for number in range(NUM_NOISE)]
    categories = tuple(_path(topic, leaves[topic]) for topic in range(topics))
    hashtags = tuple(
        tuple(f"#{word}" for word in (*terms[topic][:4], leaves[topic], _joined(path[1])))
        for topic, path in enumerate(categories)
    )
    tags = [tag for row in hashtags for tag in row]
    tags += [*SPAM_TAGS, *(f"#{term}" for term in event_terms)]
    parts = [STOP_WORDS, COMMON_WORDS, PRODUCT_WORDS, noise, [*chain(*terms)], event_terms]
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return Language(
        terms=terms,
        hashtags=hashtags,
        categories=categories,
        event_terms=event_terms,
        words=pa.array([word for part in parts for word in part]),
        common_from=starts[1],
        product_from=starts[2],
        noise_from=starts[3],
        term_from=starts[4],
        event_from=starts[5],
        tags=pa.array([written for variant in _variants(tags) for written in variant]),
        num_tags=len(tags),
        spam_from=topics * NUM_TAGS,
        event_tag_from=topics * NUM_TAGS + len(SPAM_TAGS),
    )


def _terms(topic: int, offset: int) -> tuple[str, ...]:
    words = [_word(topic * NUM_TERMS + j, offset) for j in range(NUM_TERMS)]
    for j in range(_COMPOUNDS_FROM, NUM_TERMS):
        number = topic * (NUM_TERMS - _COMPOUNDS_FROM) + j - _COMPOUNDS_FROM
        if number < len(STEMS) * len(ENDINGS):  # more topics than compounds: invented words
            words[j] = _compound(number, offset)
    return tuple(words)


def _path(topic: int, leaf: str) -> tuple[str, str, str]:
    branch = topic // TOPICS_PER_BRANCH
    root = branch // BRANCHES_PER_ROOT
    turn = root // len(ROOTS)
    name = ROOTS[root % len(ROOTS)] + (f" {turn + 1}" if turn else "")
    return name, f"{BRANCHES[branch % len(BRANCHES)]} {name}", leaf


def _joined(name: str) -> str:
    return name.replace(" ", "")


def _variants(tags: list[str]) -> tuple[list[str], ...]:
    """The same hashtags as people write them; cleaning has to bring them together again."""
    capital = ["#" + tag[1:].capitalize() for tag in tags]
    return tags, capital, [tag.upper() for tag in tags], [f"{tag}_" for tag in tags]
