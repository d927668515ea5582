"""Which words are hidden: rates, whole words, fates, and whether they are the key terms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rec.features.masking import MaskingConfig, mask_terms

NEVER = -torch.inf


def _texts(
    rows: int, words: int, seed: int = 0, scores: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Every word has two tokens, between [CLS] and [SEP], and one place of padding."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.arange(words).repeat_interleave(2)
    edge = torch.tensor([-1])
    word_ids = torch.cat([edge, inner, edge, edge]).expand(rows, -1).clone()
    token_ids = torch.randint(10, 1000, word_ids.shape, generator=generator)
    if scores is None:
        scores = torch.randn(rows, words, generator=generator)
    term_scores = torch.full(word_ids.shape, NEVER)
    term_scores[:, 1:-2] = scores.repeat_interleave(2, dim=1)
    return token_ids, word_ids, term_scores


def _run(texts: tuple[Tensor, Tensor, Tensor], seed: int = 0, **config: object):
    generator = torch.Generator().manual_seed(seed)
    return mask_terms(*texts, generator, MaskingConfig(**config))  # type: ignore[arg-type]


def test_without_noise_the_highest_scores_are_hidden_as_a_loop_would():
    texts = _texts(6, 20)
    _, targets = _run(texts, noise=0.0)
    for row in range(6):
        scores = texts[2][row, 1:-2:2]
        hidden = set(scores.argsort(descending=True)[:3].tolist())  # 15 % of 20
        words = {int(w) for w, t in zip(texts[1][row], targets[row], strict=True) if t != -100}
        assert words == hidden


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    words=st.integers(1, 30),
    kind=st.sampled_from(["key_terms", "uniform"]),
    seed=st.integers(0, 10_000),
)
def test_invariants(rows: int, words: int, kind: str, seed: int):
    texts = _texts(rows, words, seed)
    token_ids, _, term_scores = texts
    generator = torch.Generator().manual_seed(seed)
    term_scores[:, 1:-2][
        torch.rand(rows, words, generator=generator).repeat_interleave(2, 1) < 0.3
    ] = NEVER
    hidden, targets = _run(texts, seed, kind=kind)
    chosen = targets != -100
    assert torch.equal(targets[chosen], token_ids[chosen])
    assert torch.equal(hidden[~chosen], token_ids[~chosen])
    assert not (chosen & (term_scores == NEVER)).any(), "stop words and special tokens stay"
    assert torch.equal(chosen[:, 1:-2:2], chosen[:, 2:-2:2]), "whole words"
    maskable = (term_scores[:, 1:-2:2] > NEVER).sum(1)
    expected = torch.where(maskable > 0, (maskable * 0.15).round().clamp(min=1), 0)
    assert torch.equal(chosen[:, 1:-2:2].sum(1), expected.long())
    again = _run(texts, seed, kind=kind)
    assert torch.equal(again[0], hidden)


def test_eighty_ten_ten_and_random_tokens_come_from_maskable_words():
    texts = _texts(400, 40)
    hidden, targets = _run(texts)
    chosen = targets != -100
    masked = (hidden[chosen] == 4).float().mean()
    kept = (hidden[chosen] == targets[chosen]).float().mean()
    assert 0.78 < masked < 0.82
    assert 0.08 < kept < 0.12
    pool = set(texts[0][texts[2] > NEVER].tolist())
    assert set(hidden[chosen].tolist()) - {4} <= pool


def test_a_second_sentence_whose_words_count_from_zero_again():
    token_ids = torch.arange(10, 20)[None]
    word_ids = torch.tensor([[-1, 0, 1, 2, -1, 0, 1, 2, 2, -1]])
    scores = torch.tensor([[NEVER, 0, 0, 0, NEVER, 0, 0, 5, 5, NEVER]])
    _, targets = _run((token_ids, word_ids, scores), noise=0.0)
    assert (targets != -100).nonzero()[:, 1].tolist() == [7, 8]


def test_off_changes_nothing_and_an_empty_text_is_no_trouble():
    texts = _texts(2, 4)
    hidden, targets = _run(texts, kind="off")
    assert torch.equal(hidden, texts[0])
    assert (targets == -100).all()
    texts[2][1] = NEVER
    _, targets = _run(texts)
    assert (targets[0] != -100).any()
    assert (targets[1] == -100).all()


def _planted() -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """200 texts of 40 words, one in ten a key term, whose z-score is 2 higher on average."""
    generator = torch.Generator().manual_seed(7)
    is_key = torch.rand(200, 40, generator=generator) < 0.1
    scores = torch.randn(200, 40, generator=generator) + 2.0 * is_key
    return _texts(200, 40, scores=scores), is_key


@pytest.mark.parametrize("seed", [0, 1])
def test_key_terms_are_hidden_three_times_as_often_as_by_chance(seed: int):
    texts, is_key = _planted()
    precision = {}
    for kind in ("key_terms", "uniform"):
        _, targets = _run(texts, seed, kind=kind)
        precision[kind] = is_key[targets[:, 1:-2:2] != -100].float().mean().item()
    assert precision["key_terms"] >= 3 * precision["uniform"], precision


def test_noise_makes_epochs_differ():
    texts, _ = _planted()
    masks = [_run(texts, seed)[1] != -100 for seed in (0, 1)]
    shared = (masks[0] & masks[1]).sum() / masks[0].sum()
    assert 0.3 < shared < 0.95
