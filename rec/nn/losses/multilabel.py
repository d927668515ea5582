"""Multi-label classification with a weight on every positive label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rec.contract import LossTerm


def multilabel(
    logits: Tensor,
    label_ids: Tensor,
    label_weights: Tensor,
    *,
    negatives: float = 1.0,
    focusing: float = 0.0,
) -> LossTerm:
    """sum over positives of w softplus(-s) + negatives * sum over the rest of softplus(s).

    With TF-IDF x freshness as w, rare and fresh labels count for more. A label absent from a
    labelled row is a negative; a row without any label contributes nothing, since no one said
    what it is. Dense: every label of every row, meant for up to some 50,000 labels.

    Args:
        logits: (B, L) scores s.
        label_ids: (B, P) positives.
        label_weights: (B, P) their weights w; 0 where padded.
        negatives: weight of each negative label.
        focusing: gamma of asymmetric focusing (Ben-Baruch et al. 2021): a negative is weighted
            by sigmoid(s)^gamma, so that the many easy ones fade; 0 is none.

    Returns:
        The sum, in float32, and the sum of w.
    """
    num_labels = logits.shape[1]
    weights = label_weights.float()
    # padding goes to an extra column, which is cut off again: label 0 is a label like any other
    column = label_ids.masked_fill(weights <= 0, num_labels)
    positive = weights.new_zeros(logits.shape[0], num_labels + 1)
    positive = positive.scatter_add(1, column, weights)[:, :num_labels]
    is_negative = (positive == 0) & (positive > 0).any(dim=1, keepdim=True)

    scores = logits.float()
    missed = positive * F.softplus(-scores)
    alarm = F.softplus(scores)
    if focusing > 0:
        alarm = alarm * torch.sigmoid(scores).pow(focusing)
    total = missed.sum() + negatives * (alarm * is_negative).sum()
    return LossTerm(total, positive.sum())
