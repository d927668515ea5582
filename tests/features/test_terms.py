from __future__ import annotations

import math
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from rec.features.attention import AttentionScorer
from rec.features.terms import TermTable, WordFinder, document_frequencies, flatten, score
from rec.features.text import TextTokenizer, TokenizerError, save_tokenizer, train_wordpiece

TEXTS = [
    "A wolf hunts the other wolf, a space wolf 7",
    "the cosy kitchen and a dragon; a dragon's egg!",
    "space kitchen in 1987",
    "",
    "the and of",
]
ELIGIBLE = [  # by hand: no stop words, punctuation, single letters or digits
    ["wolf", "hunts", "wolf", "space", "wolf"],
    ["cosy", "kitchen", "dragon", "dragon", "egg"],
    ["space", "kitchen", "1987"],
    [],
    [],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_wordpiece([*TEXTS, "hunt", "19 87"] * 3, 90), path, 64)
    return TextTokenizer(path, 64)


def test_only_words_that_carry_meaning_are_eligible(tokenizer: TextTokenizer) -> None:
    finder = WordFinder(tokenizer)
    tokens, word_ids, rows = flatten(*tokenizer.encode(TEXTS))
    words = finder.find(tokens, word_ids, rows)
    found: list[list[str]] = [[] for _ in TEXTS]
    for start, length, row, ok in zip(
        words.start, words.length, words.row, words.eligible, strict=True
    ):
        if ok:
            found[row].append(finder.spell(tokens[start : start + length]))
    assert found == ELIGIBLE
    assert words.length.max() > 1  # some word is cut into pieces


def test_document_frequencies_count_texts(tokenizer: TextTokenizer) -> None:
    finder = WordFinder(tokenizer)
    tokens, word_ids, rows = flatten(*tokenizer.encode(TEXTS))
    words = finder.find(tokens, word_ids, rows)
    keys, counts, at = document_frequencies(words)
    spelled = [finder.spell(tokens[words.start[i] : words.start[i] + words.length[i]]) for i in at]
    expected = Counter(word for text in ELIGIBLE for word in set(text))
    assert dict(zip(spelled, counts.tolist(), strict=True)) == expected
    assert len(set(keys.tolist())) == len(expected)


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_scores_agree_with_a_plain_loop(tokenizer: TextTokenizer, alpha: float) -> None:
    finder = WordFinder(tokenizer)
    tokens, word_ids, rows = flatten(*tokenizer.encode(TEXTS))
    words = finder.find(tokens, word_ids, rows)
    keys, counts, at = document_frequencies(words)
    known = counts >= 2  # the others have no entry and count as in one text
    table = TermTable.fit(keys[known], counts[known], 5, rarest=1)
    attention = np.random.default_rng(0).random(len(tokens))
    given = attention if alpha < 1 else None
    scores = score(words, len(tokens), table, attention=given, alpha=alpha)

    df = Counter(word for text in ELIGIBLE for word in set(text))
    expected = np.full(len(tokens), -math.inf)
    for row in range(len(TEXTS)):
        places = [
            (finder.spell(tokens[s : s + n]), range(s, s + n))
            for s, n, r, ok in zip(
                words.start, words.length, words.row, words.eligible, strict=True
            )
            if ok and r == row
        ]
        tf = Counter(word for word, _ in places)
        weight = {w: tf[w] * (math.log((1 + 5) / (1 + df[w])) + 1) for w in tf}
        seen = {
            w: statistics.mean(sum(attention[i] for i in at) for v, at in places if v == w)
            for w in tf
        }

        def z(values: dict[str, float]) -> dict[str, float]:
            if len(values) < 2 or statistics.pstdev(values.values()) < 1e-9:
                return dict.fromkeys(values, 0.0)
            mean, deviation = statistics.mean(values.values()), statistics.pstdev(values.values())
            return {w: (v - mean) / deviation for w, v in values.items()}

        z_weight, z_seen = z(weight), z(seen)
        for word, at in places:
            value = alpha * z_weight[word] + (1 - alpha) * z_seen[word]
            expected[list(at)] = value
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_words_without_an_entry_are_the_rarest() -> None:
    table = TermTable.fit(np.array([9, -4]), np.array([5, 50]), 99, rarest=2)
    found = table.lookup(np.array([-4, 9, 1]))
    np.testing.assert_allclose(found, [math.log(100 / (1 + n)) + 1 for n in (50, 5, 2)], rtol=1e-6)
    empty = TermTable.fit(np.zeros(0, np.int64), np.zeros(0, np.int64), 9, rarest=4)
    assert empty.lookup(np.array([3])).tolist() == pytest.approx([math.log(2) + 1])


def test_texts_without_words_have_no_scores(tokenizer: TextTokenizer) -> None:
    finder = WordFinder(tokenizer)
    table = TermTable.fit(np.zeros(0, np.int64), np.zeros(0, np.int64), 1, 1)
    for texts in ([""], ["the , of"]):
        tokens, word_ids, rows = flatten(*tokenizer.encode(texts))
        assert np.all(score(finder.find(tokens, word_ids, rows), len(tokens), table) == -np.inf)


def test_attention_is_the_mean_over_heads_and_last_layers(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=6,
        attn_implementation="eager",
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    texts = [[2, 7, 8, 3], [], [2, 9, 3], [2, 5, 6, 7, 8, 9, 10, 3]]
    found = AttentionScorer(str(tmp_path), layers=2, vocab_size=40, batch_size=2)(texts)
    expected: list[float] = []
    for text in texts:
        if not text:
            continue
        with torch.no_grad():
            out = model(torch.tensor([text[:6]]), output_attentions=True)
        for token in range(min(len(text), 6)):
            values = [
                out.attentions[layer][0, head, 0, token] for layer in (1, 2) for head in (0, 1)
            ]
            expected.append(float(sum(values)) / 4)
        expected += [0.0] * (len(text) - 6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(TokenizerError, match="40 token embeddings, but the tokenizer has 41"):
        AttentionScorer(str(tmp_path), layers=2, vocab_size=41)


def test_attention_of_an_encoder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere: no config\.json; expected a local"):
        AttentionScorer(str(tmp_path / "nowhere"), layers=2, vocab_size=41)
