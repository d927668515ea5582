"""Sums and gathers over ranks that gradients pass through; the one use of torch.distributed
below rec.train.

Every function is the identity where no process group is initialised, so models need not know.

Convention: a gradient here is that of the *sum* of all ranks' losses. DistributedDataParallel
then averages parameter gradients over ranks and the loop multiplies its local sums by the
number of ranks, which together give the gradient that one process would have found.

Every rank must call in the same order, with no rows if it has none: a rank that skips a
collective, or its backward, stops all others.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.offset = sum(sizes[: rank()])
        ctx.num_rows = x.shape[0]
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: x.shape[0]] = x.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.offset : ctx.offset + ctx.num_rows], None


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x`, of one shape on every rank; its gradient is summed over ranks too."""
    return x if world_size() == 1 else _Sum.apply(x)  # type: ignore[return-value]


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """All ranks' rows in rank order, and the position among them of this rank's first.

    Args:
        x: (n, ...), n of any size on each rank, zero included; the rest alike on all.

    Returns:
        (sum of n, ...), through which the gradients of all ranks' losses reach each rank's
        rows, and the offset of this rank's rows.
    """
    if world_size() == 1:
        return x, 0
    mine = torch.tensor([x.shape[0]], device=x.device)
    counts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(counts, mine)
    sizes = [int(count) for count in counts]
    return _Gather.apply(x, sizes), sum(sizes[: rank()])  # type: ignore[return-value]
