"""Batch normalisation over the rows of all ranks, for ragged row counts.

torch.nn.SyncBatchNorm wants a GPU and at least one row on every rank; contrastive heads here
see only rows that have the modality, which may be none on some rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rec.nn.collectives import sum_over_ranks


class RankBatchNorm(nn.Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias (Ioffe & Szegedy 2015), with mean and
    variance over all ranks' rows in training and running ones in evaluation.

    Equal to nn.BatchNorm1d on one process. Statistics are taken in float32. Rows are what is
    there: leave padding out before.

    Args:
        num_features: D.
        bias: add a learned bias.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, *, bias: bool = True, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features)) if bias else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) -> (n, D) in the type of `x`; n may be 0 on this rank."""
        wide = x.float()
        if self.training:
            mean, var = self._statistics(wide)
        else:
            mean, var = self.running_mean.float(), self.running_var.float()
        scale = torch.rsqrt(var + self.eps) * self.weight.float()
        out = (wide - mean) * scale
        if self.bias is not None:
            out = out + self.bias.float()
        return out.to(x.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ones = x.new_full((1,), float(x.shape[0]))
        sums = sum_over_ranks(torch.cat([x.sum(0), ones]))
        count = sums[-1].detach()
        mean = sums[:-1] / count.clamp(min=1)
        # a second pass: E[x^2] - E[x]^2 loses its digits where the mean is large
        var = sum_over_ranks((x - mean).square().sum(0)) / count.clamp(min=1)
        if count > 0:
            unbiased = var.detach() * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, var
