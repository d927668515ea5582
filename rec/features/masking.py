"""Key-term masking: which words a text model has to predict."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rec.config import Config
from rec.nn.losses.masked_tokens import IGNORE

_TO_MASK, _TO_RANDOM = 0.8, 0.1  # the remaining tenth stays as it is (Devlin et al. 2019)


class MaskingConfig(Config):
    """Which words are masked, and by what."""

    # key_terms: the highest scores; uniform: any maskable word, at the same rate, as a control
    kind: Literal["key_terms", "uniform", "off"] = "key_terms"
    rate: float = Field(default=0.15, gt=0, lt=1)  # share of a text's maskable words
    noise: float = Field(default=0.5, ge=0)  # of Gumbel noise on scores, so that epochs differ
    mask_token_id: int = 4  # of the rows' tokenizer


def mask_terms(
    token_ids: Tensor,
    word_ids: Tensor,
    term_scores: Tensor,
    generator: torch.Generator,
    config: MaskingConfig,
) -> tuple[Tensor, Tensor]:
    """Hide whole words: those with the highest score plus noise.

    Of each text's maskable words, `rate` are hidden, rounded, and at least one. Of their
    tokens 80 % become the mask token, 10 % a token from anywhere in the batch's maskable words
    (in proportion to use, rather than BERT's uniform draw from the vocabulary, of which a text
    never sees most), and 10 % stay.

    Args:
        token_ids: (B, T).
        word_ids: (B, T) the same for the tokens of one word, -1 for special tokens and padding.
        term_scores: (B, T) the word's score on each of its tokens; -inf is never masked.
        generator: the only source of randomness; it may live on another device.

    Returns:
        (B, T) token ids with words hidden, and (B, T) targets: the original id where something
        is to be predicted, -100 elsewhere.
    """
    targets = torch.full_like(token_ids, IGNORE)
    maskable = (word_ids >= 0) & (term_scores > -torch.inf)
    if config.kind == "off" or not maskable.any():
        return token_ids, targets
    drawn = torch.rand((3, *token_ids.shape), generator=generator, device=generator.device)
    noise, fate, source = drawn.to(token_ids.device)

    chosen = maskable & _chosen_words(word_ids, maskable, term_scores, noise, config)
    pool = token_ids[maskable]
    random_ids = pool[(source * len(pool)).long().clamp(max=len(pool) - 1)]
    hidden = torch.where(fate < _TO_MASK, config.mask_token_id, token_ids)
    hidden = torch.where((fate >= _TO_MASK) & (fate < _TO_MASK + _TO_RANDOM), random_ids, hidden)
    return torch.where(chosen, hidden, token_ids), torch.where(chosen, token_ids, targets)


def _chosen_words(
    word_ids: Tensor, maskable: Tensor, scores: Tensor, noise: Tensor, config: MaskingConfig
) -> Tensor:
    """(B, T) True on every token of the words to hide."""
    position = torch.arange(word_ids.shape[1], device=word_ids.device)
    begins = torch.ones_like(maskable)
    begins[:, 1:] = word_ids[:, 1:] != word_ids[:, :-1]
    first = torch.where(begins, position, 0).cummax(dim=1).values  # where the token's word begins

    gumbel = -torch.log(-torch.log(noise.clamp(1e-6, 1 - 1e-6)))
    uniform = config.kind == "uniform"
    key = gumbel if uniform else scores.float() + config.noise * gumbel
    is_word = begins & maskable
    rank = key.masked_fill(~is_word, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
    num_words = is_word.sum(dim=1, keepdim=True)
    num_hidden = (num_words * config.rate).round().clamp(min=1)
    return (is_word & (rank < num_hidden)).gather(1, first)
