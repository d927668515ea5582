"""Labels judged by what their items' words say, with counts that are given. No Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.data.pairs import HEARD, PAIRS
from rec.features.evidence import Profiles, evidence

_PAIRS_A_CHUNK = 20_000  # with up to some 100 words each
_NOTHING = "label that goes with no words"
_ALONE = "word of comments that texts of their items do not share"
_UNFIT = "label that its item's words do not speak for"


class Incidence(NamedTuple):
    """What words an item with a label has, for some pairs: n (pair, word) combinations."""

    pair: np.ndarray  # (n,) row among the pairs
    label: np.ndarray  # (n,) label index
    word: np.ndarray  # (n,) word index


def incidences(
    pairs: pa.Table, words: pa.Table, labels: pa.Array, vocabulary: pa.Array
) -> Iterator[Incidence]:
    """All combinations of pairs and their items' words, some 20,000 pairs at a time.

    Pairs and words whose label or word is not among the given ones are passed over.
    """
    ids = pc.unique(pairs.column("item_id").combine_chunks())
    word = pc.index_in(words.column("word"), value_set=vocabulary)
    owner = pc.index_in(words.column("item_id"), value_set=ids)
    known = pc.and_(pc.is_valid(word), pc.is_valid(owner))
    owners = owner.filter(known).to_numpy().astype(np.int64)
    order = np.argsort(owners, kind="stable")
    word_index = word.filter(known).to_numpy().astype(np.int64)[order]
    count = np.bincount(owners, minlength=len(ids))
    first = np.cumsum(count) - count
    label = pc.index_in(pairs.column("label"), value_set=labels)
    rows = np.flatnonzero(np.asarray(pc.is_valid(label)))
    label_index = label.take(pa.array(rows)).to_numpy().astype(np.int64)
    item = pc.index_in(pairs.column("item_id"), value_set=ids).to_numpy().astype(np.int64)[rows]
    for start in range(0, len(rows), _PAIRS_A_CHUNK):
        part = slice(start, start + _PAIRS_A_CHUNK)
        size = count[item[part]]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        at = np.repeat(first[item[part]], size) + within
        yield Incidence(
            np.repeat(rows[part], size),
            np.repeat(label_index[part], size),
            word_index[at],
        )


def own_words(labels: pa.Array, vocabulary: pa.Array) -> np.ndarray:
    """Ascending label * W + word of the words a label is made of, in texts and as people say."""
    words = pc.split_pattern(labels, " ")
    spelled = pc.list_flatten(words)
    heard = pc.binary_join_element_wise(HEARD, spelled, "")
    label = pa.concat_arrays([pc.list_parent_indices(words)] * 2)
    word = pc.index_in(pa.concat_arrays([spelled, heard]), value_set=vocabulary)
    known = pc.is_valid(word)
    label, word = (x.filter(known).to_numpy().astype(np.int64) for x in (label, word))
    return np.unique(label * len(vocabulary) + word)


class Model(NamedTuple):
    """What labels are judged by."""

    labels: pa.Array
    words: pa.Array
    own: np.ndarray  # of own_words()
    profiles: Profiles


def clean(
    pairs: pa.Table, words: pa.Table, model: Model, min_evidence: float
) -> tuple[pa.Table, dict[str, int]]:
    """The rows of PAIRS that stay, and how many do not, by reason.

    Args:
        pairs: rows of PAIRS.
        words: EVIDENCE of the same items.
        model: counts.
        min_evidence: in nats.
    """
    total = np.zeros(pairs.num_rows)
    judged = np.zeros(pairs.num_rows, bool)
    training = ~np.asarray(pairs.column("heldout"))
    tagged = np.asarray(pairs.column("tagged"))
    in_text = ~np.asarray(pc.starts_with(model.words, HEARD))
    for part in incidences(pairs, words, model.labels, model.words):
        own = np.isin(part.label * len(model.words) + part.word, model.own)
        # words come in phrases: of what comments say the item's text alone is the judge
        by_tag = tagged[part.pair]
        said = own & by_tag
        usable = by_tag | in_text[part.word]
        value = evidence(model.profiles, part.label, part.word, said, training[part.pair])
        total += np.bincount(part.pair, value * usable, minlength=len(total))
        judged[part.pair] = True
    known = pairs.column("label")
    shared = model.labels.filter(pa.array(_shared(model, in_text, min_evidence)))
    open_to_doubt = ~np.asarray(pairs.column("clicked"))
    alone = open_to_doubt & ~tagged & ~np.asarray(pc.is_in(known, value_set=shared))
    unfit = open_to_doubt & judged & ~alone & (total < min_evidence)
    with_words = np.zeros(len(model.labels), bool)
    with_words[model.profiles.pair // max(len(model.words), 1)] = True
    speaking = model.labels.filter(pa.array(with_words))
    empty = unfit & ~np.asarray(pc.is_in(known, value_set=speaking))
    dropped = {
        _NOTHING: int(empty.sum()),
        _UNFIT: int((unfit & ~empty).sum()),
        _ALONE: int(alone.sum()),
    }
    return pairs.filter(pa.array(~unfit & ~alone)).select(PAIRS.names), dropped


def _shared(model: Model, in_text: np.ndarray, min_evidence: float) -> np.ndarray:
    """(T,) bool: labels that people say of items whose texts say them too, more than others'.

    Phrases like "this made my day" are said of anything; a key term where texts have it.
    """
    label, word = np.divmod(model.own, max(len(model.words), 1))
    label, word = label[in_text[word]], word[in_text[word]]
    none = np.zeros(len(label), bool)
    value = evidence(model.profiles, label, word, none, none)
    shared = np.zeros(len(model.labels), bool)
    shared[label[value >= min_evidence]] = True
    return shared
