"""Dropout whose masks cost little on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 1 << 16


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014), on a CPU with four masks from one random number.

    PyTorch draws a number an element there, which was a sixth of a training step; sixteen bits
    give `p` to 1 in 65,536. Multiplying by zeros and ones takes a tenth of filling by a mask.

    Args:
        p: probability that an element is set to zero in training, below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}, expected 0 <= p < 1")
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return _CpuDropout.apply(x, round(self.p * _STEPS))  # type: ignore[return-value]


class _CpuDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
        ctx.kept = (drawn >= steps - _STEPS // 2).to(x.dtype)
        ctx.scale = _STEPS / (_STEPS - steps)
        return (x * ctx.scale).mul_(ctx.kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return (grads[0] * ctx.scale).mul_(ctx.kept), None
