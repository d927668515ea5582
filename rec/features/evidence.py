"""Does a label fit its item? Words of the item beside words of the label's other items.

For label t and word w with n_t, n_w and n_tw of N training items, the evidence that w gives for t
is log(P(w | t) / P(w)) with P(w | t) = (n_tw + s m) / (n_t + s). The prior mean m is P(w); for a
word of the label itself, which says it outright, it is at least `SAID`. A word counts when the
label's items have it more often than chance has it (`MIN_Z` deviations), or when it is the
label's own. An item's evidence for a label is the sum over its words: a naive Bayes odds ratio
that takes presence alone into account, because a short text lacks most words that would fit. What
the item itself adds to the counts is taken out first, so that no item vouches for its own label.
A label of all kinds of items (#fyp) has no words of its own and gets no evidence anywhere.

The idea is that of weak-label denoising by agreement of views (as in Veit et al., Learning From
Noisy Large-Scale Datasets With Minimal Supervision, CVPR 2017), without any clean labels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.features.tags import normalise

SMOOTHING = 5.0  # s: items that the prior is worth
SAID = 0.3  # share of a label's items that are taken to say it before any was seen
MIN_Z = 2.0


@functools.cache
def _stop_words() -> pa.Array:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # seconds

    return pa.array(sorted(ENGLISH_STOP_WORDS), pa.string())


def words_of(texts: pa.Array | pa.ChunkedArray, max_words: int) -> pa.ListArray:
    """Distinct words of each text in one spelling, without stop words and single characters.

    Of a longer text the first `max_words` are taken. Words are what spaces and punctuation part,
    so a script that is written without them gives one word a phrase.
    """
    spelled = normalise(texts)
    words = pc.split_pattern(spelled.fill_null(""), " ")
    owner, flat = pc.list_parent_indices(words), pc.list_flatten(words)
    kept = pc.and_(pc.greater(pc.utf8_length(flat), 1), pc.invert(pc.is_in(flat, _stop_words())))
    table = pa.table({"row": owner.filter(kept), "word": flat.filter(kept)})
    table = table.append_column("place", pa.array(np.arange(table.num_rows)))
    first = table.group_by(["row", "word"]).aggregate([("place", "min")]).sort_by("place_min")
    rows = first.column("row").to_numpy().astype(np.int64)
    count = np.bincount(rows, minlength=len(spelled))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    short = rank < max_words
    offsets = np.concatenate([[0], np.cumsum(np.minimum(count, max_words))])
    column = first.column("word").combine_chunks().filter(pa.array(short))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column)


@dataclass(frozen=True)
class Profiles:
    """How often words go with labels on the training side. W words, T labels, P pairs of them."""

    num_items: int  # N, those with a word or a label
    word_items: np.ndarray  # (W,) n_w
    label_items: np.ndarray  # (T,) n_t
    pair: np.ndarray  # (P,) int64 label * W + word, ascending
    pair_items: np.ndarray  # (P,) n_tw

    def together(self, label: np.ndarray, word: np.ndarray) -> np.ndarray:
        """(n,) n_tw, 0 for pairs that are not listed."""
        if not len(self.pair):
            return np.zeros(len(label), np.int64)
        wanted = label * len(self.word_items) + word
        at = np.minimum(np.searchsorted(self.pair, wanted), len(self.pair) - 1)
        return np.where(self.pair[at] == wanted, self.pair_items[at], 0)


def evidence(
    profiles: Profiles,
    label: np.ndarray,
    word: np.ndarray,
    said: np.ndarray,
    training: np.ndarray,
) -> np.ndarray:
    """(n,) float64: what word[i] of an item says for label[i], in nats; 0 where it says nothing.

    Args:
        profiles: counts.
        label: (n,) label indices.
        word: (n,) word indices; every (label, word) is of an item that has both.
        said: (n,) bool, the word is the label's own.
        training: (n,) bool, the item is among those that were counted.
    """
    out = training.astype(np.float64)
    total = np.maximum(profiles.num_items - out, 1.0)
    # a word of this item alone is as rare as a word can be, not impossible
    background = np.maximum(profiles.word_items[word] - out, 0.5) / total
    items = np.maximum(profiles.label_items[label] - out, 0.0)
    both = np.maximum(profiles.together(label, word) - out, 0.0)
    prior = np.where(said, np.maximum(background, SAID), background)
    value = np.log((both + SMOOTHING * prior) / (items + SMOOTHING) / background)
    chance = items * background
    telling = both - chance >= MIN_Z * np.sqrt(np.maximum(chance, 0.5))
    return np.where(telling | said, value, 0.0)


def deviation(
    num_items: int, word_items: np.ndarray, label_items: np.ndarray, both: np.ndarray
) -> np.ndarray:
    """(n,) float64: by how many deviations label and word meet more often than chance has it.

    At least what `evidence` can find, one item left out or none; below `MIN_Z` it finds nothing.

    Args:
        num_items: N.
        word_items: (n,) n_w of the pair's word.
        label_items: (n,) n_t of its label.
        both: (n,) n_tw.
    """
    # without one item the chance count is lower by less than 1, and n_tw by 1 or not at all
    chance = np.maximum(label_items * (word_items / max(num_items, 1)) - 1.0, 0.0)
    return (both - chance) / np.sqrt(np.maximum(chance, 0.5))
