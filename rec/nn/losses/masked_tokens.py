"""Cross-entropy of masked tokens, computed where tokens are masked and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from rec.contract import LossTerm

IGNORE = -100


def masked_tokens(states: Tensor, targets: Tensor, project: Callable[[Tensor], Tensor]) -> LossTerm:
    """-log softmax(project(state))[target], summed over the masked positions (Devlin et al.
    2019).

    Args:
        states: (B, T, D).
        targets: (B, T) original token ids, -100 where nothing is to be predicted.
        project: (M, D) -> (M, V) logits, called with the M masked positions only: the
            vocabulary is the widest layer of the model, six tokens in seven are not masked.

    Returns:
        The sum over masked positions, in float32, and their number.
    """
    chosen = targets != IGNORE
    logits = project(states[chosen]).float()
    total = F.cross_entropy(logits, targets[chosen], reduction="sum")
    return LossTerm(total, chosen.sum().to(total.dtype))
