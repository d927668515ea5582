"""The gradient of one step, over all ranks and micro-batches.

Losses come as sums and counts. For term t over ranks and micro-batches,

    L = sum_t weight_t * (sum of totals_t) / (sum of counts_t)

Engines average gradients over ranks, so each rank differentiates its own totals times the
number of ranks over the global count.

A step cut into micro-batches takes two passes (GradCache, Gao et al. 2021): the first, without
gradient, finds the counts and the representations that couple rows; their gradient is taken
once over the whole batch; the second pass carries it into the encoders part by part. A model
that is not GradCacheable takes the first pass for its counts alone. Parts see the same dropout
in both passes, as all randomness is drawn from (seed, step, rank, part). Batch norm inside
`encode` sees parts, in both passes: such layers belong into `couple`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Protocol, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rec.contract import GradCacheable, Losses, LossTerm
from rec.train.engine import Engine, TrainError


class Rows(Protocol):
    """What a batch must do; `rec.batch.Batch` does."""

    def __len__(self) -> int: ...
    def to(self, device: torch.device | str) -> Self: ...
    def rows(self, start: int, stop: int) -> Self: ...


def derive(*numbers: int) -> int:
    """A seed that is a function of these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Sums:
    """Totals and counts of every term over all ranks, on the device."""

    def __init__(self, losses: Losses, engine: Engine, weights: Mapping[str, float]) -> None:
        if losses.keys() != weights.keys():
            raise TrainError(
                f"the model's loss terms {sorted(losses)} and the recipe's weights "
                f"{sorted(weights)} must have the same names"
            )
        self.names, self._world, self._weights = sorted(losses), engine.world, weights
        pairs = [
            torch.stack([t.total.detach().double(), t.count.double()])
            for t in (losses[name] for name in self.names)
        ]
        self.values = torch.stack(pairs)  # (terms, 2)
        if engine.world > 1:
            dist.all_reduce(self.values)

    def loss(self, losses: Losses) -> Tensor:
        """What this rank differentiates for these terms; a term that nothing counted adds 0."""
        counts = dict(zip(self.names, self.values[:, 1], strict=True))
        parts = [
            term.total * (self._weights[name] * self._world / counts[name].clamp_min(1e-12)).float()
            for name, term in losses.items()
        ]
        return torch.stack(parts).sum()

    def means(self) -> dict[str, float]:
        """Mean of every term and, as "total", their weighted sum."""
        pairs = zip(self.names, self.values.tolist(), strict=True)
        means = {name: total / count if count else 0.0 for name, (total, count) in pairs}
        return {**means, "total": sum(self._weights[n] * v for n, v in means.items())}


def backpropagate(
    engine: Engine, weights: Mapping[str, float], batch: Rows, num_parts: int, seed: int
) -> Sums:
    """Leave in the parameters the gradient of the loss over all ranks' batches."""
    if num_parts > 1:
        return _two_passes(engine, weights, batch, num_parts, seed)
    torch.manual_seed(derive(seed, 0))
    with engine.micro(last=True):
        losses = engine.call("forward", batch)
        sums = Sums(losses, engine, weights)
        engine.backward(sums.loss(losses))
    return sums


def evaluate(
    engine: Engine, weights: Mapping[str, float], batch: Rows, num_parts: int, seed: int
) -> Sums:
    """The losses of all ranks' batches, whatever the number of parts that bounds the memory; of
    fewer parts where a rank has fewer rows."""
    if num_parts > 1 and engine.world > 1:
        fewest = torch.tensor(len(batch), device=engine.device)
        dist.all_reduce(fewest, dist.ReduceOp.MIN)
        num_parts = min(num_parts, int(fewest))
    num_parts = min(num_parts, len(batch))
    with torch.no_grad():
        if num_parts <= 1:
            torch.manual_seed(seed)
            return Sums(engine.call("forward", batch), engine, weights)
        _, joined, losses = _first_pass(engine, batch, num_parts, seed)
        if isinstance(engine.module, GradCacheable):
            torch.manual_seed(seed)
            losses |= engine.call("couple", joined)
        return Sums(losses, engine, weights)


def _encode(engine: Engine, part: Rows, seed: int) -> tuple[dict[str, Tensor], Losses]:
    torch.manual_seed(seed)
    if isinstance(engine.module, GradCacheable):
        return engine.call("encode", part)
    return {}, engine.call("forward", part)


def _first_pass(
    engine: Engine, batch: Rows, num_parts: int, seed: int
) -> tuple[list[Rows], dict[str, Tensor], Losses]:
    """The parts, and without gradient what couples their rows, joined, and their own losses."""
    bounds = [len(batch) * i // num_parts for i in range(num_parts + 1)]
    parts = [batch.rows(start, stop) for start, stop in pairwise(bounds)]
    with torch.no_grad():
        first = [_encode(engine, part, derive(seed, i)) for i, part in enumerate(parts)]
    local = {
        name: LossTerm(
            torch.stack([losses[name].total for _, losses in first]).sum(),
            torch.stack([losses[name].count for _, losses in first]).sum(),
        )
        for name in first[0][1]
    }
    joined = {name: torch.cat([r[name] for r, _ in first]) for name in first[0][0]}
    return parts, joined, local


def _two_passes(
    engine: Engine, weights: Mapping[str, float], batch: Rows, num_parts: int, seed: int
) -> Sums:
    parts, joined, local = _first_pass(engine, batch, num_parts, seed)
    for value in joined.values():
        value.requires_grad_(value.is_floating_point())  # ids are passed on as they are
    passed = dict.fromkeys(joined, 0)  # rows of parts before; parts may have different numbers
    with engine.micro(last=False):
        torch.manual_seed(derive(seed, num_parts))
        coupled: Losses = {}
        if isinstance(engine.module, GradCacheable):
            coupled = engine.call("couple", dict(joined))
        sums = Sums({**local, **coupled}, engine, weights)
        if coupled:
            engine.backward(sums.loss(coupled))
    for i in range(num_parts):
        with engine.micro(last=i == num_parts - 1):
            representations, losses = _encode(engine, parts[i], derive(seed, i))
            pieces = [sums.loss(losses)] if losses else []
            for name, value in representations.items():
                gradient, start = joined[name].grad, passed[name]
                passed[name] += len(value)
                if gradient is not None:
                    pieces.append((value * gradient[start : passed[name]]).float().sum())
            engine.backward(torch.stack(pieces).sum())
    return sums
