"""InfoNCE between two views, as in SimCLR v2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rec.contract import LossTerm
from rec.nn.collectives import gather_rows


def infonce(
    z_a: Tensor, z_b: Tensor, temperature: float, row_mask: Tensor | None = None
) -> LossTerm:
    """Cross-entropy of each view's own partner among all other views, both ways.

    For a row i of view a, over the N rows of all ranks,

        -log exp(a_i.b_i / t) / (sum_j exp(a_i.b_j / t) + sum_{j != i} exp(a_i.a_j / t))

    with a and b of unit length, and the same with a and b exchanged (Chen et al. 2020, "A
    Simple Framework for Contrastive Learning", and the SimCLR v2 code). Rows are this rank's,
    columns are those of all ranks, gathered with gradient and without padding.

    Args:
        z_a, z_b: (n, D) projections; normalised here. n may differ between ranks and be 0.
        temperature: t.
        row_mask: (n,) True for rows that take part; the others are neither rows nor columns.

    Returns:
        The sum over this rank's 2 n terms, in float32, and 2 n.
    """
    if row_mask is not None:
        z_a, z_b = z_a[row_mask], z_b[row_mask]
    with torch.autocast(z_a.device.type, enabled=False):
        own_a, own_b = F.normalize(z_a.float(), dim=1), F.normalize(z_b.float(), dim=1)
        columns, offset = gather_rows(torch.cat([own_a, own_b], dim=1))
        all_a, all_b = columns.chunk(2, dim=1)
        if columns.shape[0] == 0:  # no rows on any rank: zero, still joined to the inputs
            total = columns.sum()
        else:
            forth = _one_way(own_a, all_a, all_b, temperature, offset)
            total = forth + _one_way(own_b, all_b, all_a, temperature, offset)
    return LossTerm(total, total.new_tensor(2.0 * own_a.shape[0]))


def _one_way(
    own: Tensor, same_view: Tensor, other_view: Tensor, temperature: float, offset: int
) -> Tensor:
    target = torch.arange(own.shape[0], device=own.device) + offset
    across = own @ other_view.T / temperature
    within = own @ same_view.T / temperature
    itself = F.one_hot(target, same_view.shape[0]).bool()
    logits = torch.cat([across, within.masked_fill(itself, -torch.inf)], dim=1)
    return F.cross_entropy(logits, target, reduction="sum")
