"""Key terms: how much each word of a text carries, so that masking picks words worth predicting.

score = alpha * z(tf * idf) + (1 - alpha) * z(attention), z taken over a text's eligible words.
Attention is that of a given pretrained encoder (`rec.features.attention`); the variant that
follows the model in training by a moving average is left out, because scores are columns.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from rec.features.text import TextTokenizer

_PREFIXES = ("##", "Ġ", "▁")  # how WordPiece, byte-level BPE and SentencePiece mark word parts


class Words(NamedTuple):
    """Word occurrences of many texts, W of them over N tokens, in order."""

    start: np.ndarray  # (W,) int64, first token of the word in the flat tokens
    length: np.ndarray  # (W,) int64, tokens
    row: np.ndarray  # (W,) int64, which text
    key: np.ndarray  # (W,) int64, equal for equal words
    eligible: np.ndarray  # (W,) bool, may be a key term


class WordFinder:
    """Cuts tokens into words and tells which may be key terms.

    Not eligible are English stop words, punctuation, single ASCII letters and digits, and words
    with special or unknown tokens. A word is known by a 64-bit hash of its tokens.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # seconds

        backend = tokenizer.backend
        size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self._signs = np.zeros(size, np.int64)  # letters and digits of the token
        self._ascii = np.ones(size, bool)
        for token, index in backend.get_vocab(with_added_tokens=True).items():
            text = functools.reduce(str.removeprefix, _PREFIXES, token)
            self._signs[index] = sum(character.isalnum() for character in text)
            self._ascii[index] = text.isascii()
        self._special = np.zeros(size, bool)
        self._special[tokenizer.special_ids] = True
        self._tokenizer = tokenizer
        self._stop = np.zeros(0, np.int64)
        stops = [form for w in sorted(ENGLISH_STOP_WORDS) for form in (w, w.capitalize(), f"x {w}")]
        ids, words = tokenizer.encode(stops)
        found = self.find(*flatten(ids, words))
        last = np.append(found.row[1:] != found.row[:-1], True) if len(found.row) else []
        self._stop = np.unique(found.key[last])

    def find(self, token_ids: np.ndarray, word_ids: np.ndarray, row: np.ndarray) -> Words:
        """Words of flat tokens.

        Args:
            token_ids: (N,) of all texts one after the other.
            word_ids: (N,) word of its text that each token is of, -1 for special tokens.
            row: (N,) text that each token is of.
        """
        inside = np.flatnonzero(word_ids >= 0)
        tokens, words, rows = token_ids[inside], word_ids[inside], row[inside]
        new = np.ones(len(inside), bool)
        new[1:] = (words[1:] != words[:-1]) | (rows[1:] != rows[:-1])
        first = np.flatnonzero(new)
        length = np.diff(np.append(first, len(inside)))
        if not len(first):
            none = np.zeros(0, np.int64)
            return Words(none, none, none, none, np.zeros(0, bool))
        place = np.arange(len(inside)) - np.repeat(first, length)
        key = np.add.reduceat(_mixed(tokens, place), first).view(np.int64)
        signs = np.add.reduceat(self._signs[tokens], first)
        ascii_only = np.logical_and.reduceat(self._ascii[tokens], first)
        special = np.logical_or.reduceat(self._special[tokens], first)
        eligible = (signs > np.where(ascii_only, 1, 0)) & ~special & ~np.isin(key, self._stop)
        return Words(inside[first], length, rows[first], key, eligible)

    def spell(self, token_ids: np.ndarray) -> str:
        """The text of one word's tokens."""
        return self._tokenizer.backend.decode(token_ids.tolist()).strip()


def _mixed(tokens: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(N,) uint64 hash of each token at its place in the word (splitmix64, Steele et al. 2014)."""
    value = tokens.astype(np.uint64) + (place.astype(np.uint64) << np.uint64(32))
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def flatten(
    token_ids: list[list[int]], word_ids: list[list[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists of each text to flat (N,) int64 tokens, words and rows."""
    lengths = [len(ids) for ids in token_ids]
    tokens = np.fromiter((i for ids in token_ids for i in ids), np.int64, sum(lengths))
    words = np.fromiter((i for ids in word_ids for i in ids), np.int64, sum(lengths))
    return tokens, words, np.repeat(np.arange(len(lengths)), lengths)


@dataclass(frozen=True)
class TermTable:
    """idf of words, fitted on the training side. Words it does not know count as the rarest."""

    key: np.ndarray  # (V,) int64, ascending
    idf: np.ndarray  # (V,) float32
    unknown: float  # idf of words that are not in the table

    @classmethod
    def fit(cls, key: np.ndarray, num_texts_with: np.ndarray, num_texts: int, rarest: int) -> Self:
        """From document frequencies: idf = log((1 + N) / (1 + df)) + 1.

        Args:
            key: (V,) words that occur in at least `rarest` texts.
            num_texts_with: (V,) in how many texts each occurs.
            num_texts: N.
            rarest: document frequency that words without an entry are taken to have.
        """
        order = np.argsort(key)
        df = np.append(num_texts_with[order], rarest).astype(np.float64)
        values = (np.log((1.0 + num_texts) / (1.0 + df)) + 1.0).astype(np.float32)
        return cls(np.ascontiguousarray(key[order]), values[:-1], float(values[-1]))

    def lookup(self, key: np.ndarray) -> np.ndarray:
        """(n,) float32 idf of words."""
        if not len(self.key):
            return np.full(len(key), self.unknown, np.float32)
        at = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
        return np.where(self.key[at] == key, self.idf[at], np.float32(self.unknown))


def document_frequencies(words: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eligible words as key, number of texts they occur in, and one occurrence of each."""
    chosen = np.flatnonzero(words.eligible)
    pairs, one = np.unique(
        np.stack([words.key[chosen], words.row[chosen]]), axis=1, return_index=True
    )
    key, first, count = np.unique(pairs[0], return_index=True, return_counts=True)
    return key, count, chosen[one[first]]


def score(
    words: Words,
    num_tokens: int,
    table: TermTable,
    *,
    attention: np.ndarray | None = None,
    alpha: float = 1.0,
) -> np.ndarray:
    """(N,) float32 per token: the score of its word, -inf where that is never to be masked.

    All occurrences of a word in a text have the same score: tf is their number and attention
    their mean. z is 0 where all eligible words of a text are equal.

    Args:
        words: as `WordFinder.find` gives them.
        num_tokens: N.
        table: idf.
        attention: (N,) attention that each token gets; without it alpha counts as 1.
        alpha: weight of tf * idf beside attention.
    """
    scores = np.full(num_tokens, -np.inf, np.float32)
    chosen = np.flatnonzero(words.eligible)
    if not len(chosen):
        return scores
    pairs, group, tf = np.unique(
        np.stack([words.row[chosen], words.key[chosen]]),
        axis=1,
        return_inverse=True,
        return_counts=True,
    )
    group = group.reshape(-1)
    row, key = pairs
    value = _z(tf * table.lookup(key).astype(np.float64), row)
    if attention is not None:
        before = np.concatenate([[0.0], np.cumsum(attention, dtype=np.float64)])
        start, length = words.start[chosen], words.length[chosen]
        given = np.bincount(group, before[start + length] - before[start]) / tf
        value = alpha * value + (1.0 - alpha) * _z(given, row)
    inside = np.repeat(words.start[chosen], words.length[chosen])
    ends = np.cumsum(words.length[chosen])
    inside += np.arange(len(inside)) - np.repeat(ends - words.length[chosen], words.length[chosen])
    scores[inside] = np.repeat(value[group], words.length[chosen])
    return scores


def _z(value: np.ndarray, row: np.ndarray) -> np.ndarray:
    """(n,) values less their row's mean, over its standard deviation; 0 where that is 0."""
    count = np.maximum(np.bincount(row), 1)
    mean = np.bincount(row, value) / count
    centred = value - mean[row]
    deviation = np.sqrt(np.bincount(row, centred**2) / count)[row]
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-9)


def read_terms(table: pa.Table, num_texts: int, rarest: int) -> TermTable:
    """The table of columns term_key and num_items as a TermTable."""
    key = table.column("term_key").to_numpy()
    return TermTable.fit(key, table.column("num_items").to_numpy(), num_texts, rarest)
