"""Cross-entropy over items: over all of them, or over a sample corrected for how it was drawn."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rec.contract import LossTerm
from rec.nn.losses.tiles import Gradients, Tiles, compute_type, distinct


def candidate_softmax(
    states: Tensor,
    positive: Tensor,
    candidates: Tensor,
    column: Tensor,
    bias: Tensor | None = None,
) -> LossTerm:
    """-log( exp(s_p) / (exp(s_p) + sum over candidates c other than p of exp(s_c + bias_c)) ).

    The (P, C) scores are never whole in memory, see rec.nn.losses.tiles: beside the inputs and
    their gradients there is one tile. Candidates must be different items.

    Args:
        states: (P, D) what predicts.
        positive: (P,) score s_p of each state's target; its gradient flows as given.
        candidates: (C, D); their scores are inner products with the states.
        column: (P,) int64 where among the candidates the target itself is, -1 if it is not.
        bias: (C,) without gradient.

    Returns:
        The sum over states, in float32 (float64 of such states), and P. Under autocast the
        matrix products are in its type.
    """
    tiles = Tiles(states, candidates, column, bias, compute_type(states))
    inputs = (states, positive, candidates)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    total: Tensor = _CandidateSoftmax.apply(*inputs, tiles, learns)  # type: ignore[assignment]
    return LossTerm(total, total.new_tensor(float(len(states))).detach())


def cross_entropy(states: Tensor, items: Tensor, targets: Tensor) -> LossTerm:
    """F.cross_entropy(states @ items.T, targets, reduction="sum") without that matrix.

    Args:
        states: (P, D).
        items: (N, D) all items' vectors.
        targets: (P,) int64 positions in `items`.
    """
    positive = (states * F.embedding(targets, items)).sum(dim=1)
    return candidate_softmax(states, positive, items, targets)


def sampled_softmax(
    states: Tensor,
    positives: Tensor,
    targets: Tensor,
    candidates: Tensor,
    candidate_index: Tensor,
    log_expected: Tensor,
) -> LossTerm:
    """Softmax over each state's target and a sample of items that all states share.

    A candidate's score is lowered by the logarithm of how often it was to be expected in the
    sample (logQ correction; Bengio & Senecal 2008, Yi et al. 2019), which makes the sum over the
    sample an unbiased estimate of the sum over all items. The target is not sampled, so its score
    stays as it is, and where the sample holds it too (an accidental hit) it is left out. Items
    that were drawn several times, from the batch as from elsewhere (Yang et al. 2020, mixed
    negatives), count as often as they were drawn.

    Args:
        states: (P, D).
        positives: (P, D) vectors of the targets.
        targets: (P,) int64 item of each state.
        candidates: (C, D) vectors of the sample.
        candidate_index: (C,) int64 items of the sample; equal items have equal vectors.
        log_expected: (C,) log of the number of times that each was to be expected among the C.
    """
    found = distinct(candidate_index, targets)
    return candidate_softmax(
        states,
        (states * positives).sum(dim=1),
        candidates.index_select(0, found.first),
        found.column,
        found.counts.log() - log_expected[found.first],
    )


class _CandidateSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, positive: Tensor, candidates: Tensor, tiles: Tiles, learns: bool
    ) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            total, found = _forward(tiles, positive.to(tiles.wide), learns)
        if found is not None:
            ctx.types = (states.dtype, positive.dtype, candidates.dtype)
            ctx.save_for_backward(*found)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.types, strict=True)
        return *((gradient * grads[0]).to(kind) for gradient, kind in found), None, None


def _forward(
    tiles: Tiles, positive: Tensor, learns: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    total = torch.zeros((), dtype=tiles.wide, device=positive.device)
    columns = tiles.columns()
    gradients = Gradients(tiles) if learns else None
    slope = torch.empty_like(positive)
    for rows in tiles.rows():
        own = positive[rows, None]
        once = tiles.scores(rows, columns[0]) if len(columns) == 1 else None
        if once is not None:
            top = torch.maximum(once.amax(dim=1, keepdim=True), own)
            once.sub_(top).exp_()
            others = once.sum(dim=1, keepdim=True)
        else:
            top, others = _running_sum(tiles, rows, columns, own)
        mine = (own - top).exp()
        norm = mine + others
        total += (norm.log() + top - own).sum()
        if gradients is None:
            continue
        slope[rows] = (mine / norm - 1).squeeze(1)
        for part in columns:
            shares = once if once is not None else tiles.scores(rows, part).sub_(top).exp_()
            gradients.add(rows, part, shares, 1 / norm)
    return total, None if gradients is None else (gradients.states, slope, gradients.candidates)


def _running_sum(
    tiles: Tiles, rows: slice, columns: list[slice], own: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest score of each row, its own target's included, and the sum of exp(score - that)
    over the candidates."""
    top, others = own, torch.zeros_like(own)
    for part in columns:
        scores = tiles.scores(rows, part)
        higher = torch.maximum(scores.amax(dim=1, keepdim=True), top)
        others = others * (top - higher).exp() + scores.sub_(higher).exp_().sum(1, keepdim=True)
        top = higher
    return top, others
