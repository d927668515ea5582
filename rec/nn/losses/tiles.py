"""Scores of many states against many candidates, a tile at a time: the matrix is never whole.

A loss over (P states) x (C candidates) needs each score once and keeps none. Its gradient is
taken while the tile is in the cache, in the forward pass, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# elements of a tile, and the fewest states that share a read of the candidates: on a CPU a tile
# stays in the cache, on a GPU it is worth a kernel's launch
_CPU_TILE, _CPU_ROWS = 1 << 20, 32
_GPU_TILE, _GPU_ROWS = 1 << 26, 1024


@dataclass(frozen=True)
class Tiles:
    """What every tile needs: (P, D) states, (C, D) candidates and, of each state, the column of
    the candidate that is its own target, -1 where there is none; that one is left out.

    `compute` is the type of the matrix products (bfloat16 under autocast); scores, sums and
    gradients are in float32, or in float64 where the states are.
    """

    states: Tensor
    candidates: Tensor
    column: Tensor  # (P,) int64
    bias: Tensor | None  # (C,) added to every state's scores
    compute: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.states.dtype, torch.float32)

    def shape(self) -> tuple[int, int]:
        """States and candidates of a tile."""
        on_cpu = self.states.device.type == "cpu"
        size, fewest = (_CPU_TILE, _CPU_ROWS) if on_cpu else (_GPU_TILE, _GPU_ROWS)
        width = max(min(len(self.candidates), size // fewest), 1)
        return size // width, width

    def rows(self) -> Iterator[slice]:
        height, _ = self.shape()
        for start in range(0, len(self.states), height):
            yield slice(start, min(start + height, len(self.states)))

    def columns(self) -> list[slice]:
        _, width = self.shape()
        stop = len(self.candidates)
        return [slice(s, min(s + width, stop)) for s in range(0, stop, width)]

    def scores(self, rows: slice, columns: slice) -> Tensor:
        """One tile, new memory; minus infinity at each state's own target."""
        candidates = self.candidates[columns].to(self.compute)
        scores = (self.states[rows].to(self.compute) @ candidates.T).to(self.wide)
        if self.bias is not None:
            scores += self.bias[columns]
        own = self.column[rows] - columns.start
        inside = (own >= 0) & (own < scores.shape[1])
        own = own.clamp(0, scores.shape[1] - 1)[:, None]
        kept = scores.gather(1, own).masked_fill(inside[:, None], -torch.inf)
        return scores.scatter_(1, own, kept)


class Gradients:
    """Sums of d loss / d states and d loss / d candidates over tiles."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles
        self.states = torch.zeros_like(tiles.states, dtype=tiles.wide)
        self.candidates = torch.zeros_like(tiles.candidates, dtype=tiles.wide)

    def add(self, rows: slice, columns: slice, slope: Tensor, scale: Tensor | None) -> None:
        """Add a tile's part.

        Args:
            slope: (rows, columns) d loss / d scores, but for the factor of each row.
            scale: (rows, 1) that factor; applied to the narrow side of the products.
        """
        tiles = self._tiles
        slope = slope.to(tiles.compute)
        part = (slope @ tiles.candidates[columns].to(tiles.compute)).to(tiles.wide)
        states = tiles.states[rows].to(tiles.wide)
        if scale is not None:
            part, states = part * scale, states * scale
        self.states[rows] += part
        self.candidates[columns] += slope.T @ states.to(tiles.compute)


def compute_type(states: Tensor) -> torch.dtype:
    """bfloat16 or float16 under autocast, else the states' own."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return states.dtype


class Distinct(NamedTuple):
    """A sample of items with each item once."""

    first: Tensor  # (U,) int64 where in the sample each item comes first
    counts: Tensor  # (U,) int64 how often it is there
    column: Tensor  # (P,) int64 which of the U each target is, -1 for none


def distinct(sample: Tensor, targets: Tensor) -> Distinct:
    """(C,) items with repetitions and (P,) targets to columns of different items."""
    unique, inverse, counts = sample.unique(return_inverse=True, return_counts=True)
    place = torch.arange(len(inverse), device=inverse.device)
    first = torch.full_like(unique, len(inverse)).scatter_reduce(0, inverse, place, "amin")
    if not len(unique):
        return Distinct(first, counts, torch.full_like(targets, -1))
    column = torch.searchsorted(unique, targets).clamp(max=len(unique) - 1)
    return Distinct(first, counts, column.masked_fill(unique[column] != targets, -1))
