"""Binary cross-entropy of targets against sampled items, and gBCE, which undoes its
overconfidence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rec.contract import LossTerm
from rec.nn.losses.tiles import Gradients, Tiles, compute_type, distinct


def gbce(
    states: Tensor,
    positives: Tensor,
    targets: Tensor,
    negatives: Tensor,
    negative_index: Tensor,
    *,
    num_items: int,
    calibration: float,
) -> LossTerm:
    """-beta log sigmoid(s_target) - sum over sampled negatives of log(1 - sigmoid(s)).

    beta = a (t (1 - 1/a) + 1/a), with a = K / (num_items - 1) the share of items that is sampled
    and t the calibration (Petrov & Macdonald 2023, "gSASRec", equations 10 and 11): t = 0 is
    plain binary cross-entropy, t = 1 undoes what sampling does to the probabilities. Here the K
    negatives, uniform over items, are shared by all states; a state's own target is left out.

    Args:
        states: (P, D).
        positives: (P, D) vectors of the targets.
        targets: (P,) int64.
        negatives: (K, D) vectors of the sample.
        negative_index: (K,) int64 items of the sample; equal items have equal vectors.
        num_items: how many there are to sample from.
        calibration: t, from 0 to 1.

    Returns:
        The sum in float32, and P (K + 1).
    """
    rate = min(len(negative_index) / max(num_items - 1, 1), 1.0)
    beta = calibration * (rate - 1) + 1
    positive = (states * positives).sum(dim=1)
    found = distinct(negative_index, targets)
    chosen = negatives.index_select(0, found.first)
    tiles = Tiles(states, chosen, found.column, None, compute_type(states))
    learns = torch.is_grad_enabled() and (states.requires_grad or chosen.requires_grad)
    rejected: Tensor = _Rejections.apply(states, chosen, found.counts, tiles, learns)  # type: ignore[assignment]
    total = beta * F.softplus(-positive).sum() + rejected
    return LossTerm(total, total.new_tensor(len(states) * (len(negatives) + 1.0)).detach())


class _Rejections(torch.autograd.Function):
    """Sum over states and negatives of counts * softplus(score)."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, candidates: Tensor, counts: Tensor, tiles: Tiles, learns: bool
    ) -> Tensor:
        total = torch.zeros((), dtype=tiles.wide, device=states.device)
        gradients = Gradients(tiles) if learns else None
        with torch.autocast(states.device.type, enabled=False):
            for rows in tiles.rows():
                for part in tiles.columns():
                    scores = tiles.scores(rows, part)
                    total += (F.softplus(scores) * counts[part]).sum()
                    if gradients is not None:
                        gradients.add(rows, part, scores.sigmoid_().mul_(counts[part]), None)
        if gradients is not None:
            ctx.types = (states.dtype, candidates.dtype)
            ctx.save_for_backward(gradients.states, gradients.candidates)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.types, strict=True)
        return *((gradient * grads[0]).to(kind) for gradient, kind in found), None, None, None
