"""Heads of the content pretraining model: key terms and labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rec.nn.attention import CrossAttention


class TermHead(nn.Module):
    """Predicts masked key terms from the text's own states and from the fused item, so that a
    picture or a sound can say what the hidden word was.

    Logits are tied to the word embeddings, with a bias of their own (Devlin et al. 2019).
    """

    def __init__(
        self, dim: int, fusion_dim: int, num_heads: int, embedding_dim: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, fusion_dim, num_heads)
        self.transform = nn.Sequential(
            nn.Linear(dim, embedding_dim), nn.GELU(), nn.LayerNorm(embedding_dim)
        )
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def states(self, tokens: Tensor, fused: Tensor) -> Tensor:
        """(N, T, dim) token states and (N, Q, fusion_dim) fused queries -> (N, T, dim)."""
        return tokens + self.attention(self.norm(tokens), fused)

    def logits(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """(M, dim) -> (M, V)."""
        return F.linear(self.transform(states), word_embeddings, self.bias)


class LabelHead(nn.Module):
    """s = exp(g) cos(e, w_l) + b_l, a scaled cosine with a bias a label (the form of SigLIP,
    Zhai et al. 2023).

    The cosine, because items are later compared by the cosine of the same embedding: a plain
    linear layer would keep part of what it learns in the vector's length, which retrieval drops.
    The bias starts at -log(num_labels): the many negatives of a row then begin with a loss of
    about one in all rather than one each.
    """

    def __init__(self, dim: int, num_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_labels, dim) * dim**-0.5)
        self.bias = nn.Parameter(torch.full((num_labels,), -math.log(max(num_labels, 2))))
        self.log_scale = nn.Parameter(torch.full((1,), math.log(10.0)))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, dim) of unit length -> (B, num_labels)."""
        weight = F.normalize(self.weight.float(), dim=1).to(embedding.dtype)
        cosine = F.linear(embedding, weight).float()
        return self.log_scale.float().exp() * cosine + self.bias.float()
