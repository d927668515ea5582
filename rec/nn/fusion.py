"""Fusion of modalities: multi-scale from the lower layers up, and its four alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from rec.nn.attention import CrossAttention, FeedForward

FusionKind = Literal["multi_scale", "top_layer", "early", "late", "hybrid"]
NUM_SCALES = 4


class Modality(NamedTuple):
    """One modality of a batch of items. S states an item, of width D_m."""

    scales: tuple[Tensor, ...]  # NUM_SCALES of (B, S, D_m), lower layers first
    mask: Tensor  # (B, S) True where there is a state
    pooled: Tensor  # (B, D_m); any finite value where the modality is absent
    time: Tensor | None = None  # (B, S) index of the frame or audio patch, None for text

    @property
    def present(self) -> Tensor:
        """(B,) True where the item has the modality."""
        return self.mask.any(dim=1)


class Reader(nn.Module):
    """Brings one modality's states of one scale to a common width, ready to be attended.

    LN and projection, plus a modality embedding, plus a time embedding where there is time. One
    more state is added at the end: a learned stand-in, attended only where the item lacks the
    modality, so that absence is never a vector of zeros.
    """

    def __init__(self, input_dim: int, dim: int, num_times: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_dim)
        self.project = nn.Linear(input_dim, dim)
        self.kind = nn.Parameter(torch.randn(dim) * 0.02)
        self.missing = nn.Parameter(torch.randn(dim) * 0.02)
        self.times = nn.Parameter(torch.randn(num_times, dim) * 0.02) if num_times else None

    def forward(self, states: Tensor, modality: Modality) -> tuple[Tensor, Tensor]:
        """(B, S, D_m) -> keys (B, S+1, dim) and their mask (B, S+1)."""
        keys = self.project(self.norm(states.to(self.norm.weight.dtype))) + self.kind
        if self.times is not None and modality.time is not None:
            keys = keys + self.times[modality.time]
        missing = self.missing.to(keys.dtype).expand(keys.shape[0], 1, -1)
        mask = torch.cat([modality.mask, ~modality.present[:, None]], dim=1)
        return torch.cat([keys, missing], dim=1), mask


class PooledReader(nn.Module):
    """Brings the modalities' pooled vectors to a common width.

    LN and projection each; a learned vector stands in for an absent modality.

    Args:
        input_dims: width of each modality's vector.
        dim: the common width.
        pretrained: which modalities' encoders know something already. Where some do, the others
            begin at a tenth, so that their noise does not drown what is known.
    """

    def __init__(self, input_dims: list[int], dim: int, pretrained: Sequence[bool] = ()) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in input_dims)
        self.projects = nn.ModuleList(nn.Linear(width, dim) for width in input_dims)
        self.missing = nn.Parameter(torch.randn(len(input_dims), dim) * 0.02)
        for project in self.projects:  # keeps angles best, and items are compared by angle
            nn.init.orthogonal_(cast(nn.Linear, project).weight)
        if any(pretrained):
            for norm, known in zip(self.norms, pretrained, strict=True):
                if not known:
                    nn.init.constant_(cast(nn.LayerNorm, norm).weight, 0.1)

    def forward(self, modalities: list[Modality]) -> list[Tensor]:
        """Modalities in the order of `input_dims` -> as many (B, dim)."""
        return [
            torch.where(m.present[:, None], project(norm(m.pooled.to(missing.dtype))), missing)
            for m, norm, project, missing in zip(
                modalities, self.norms, self.projects, self.missing, strict=True
            )
        ]


class ScaleFusion(nn.Module):
    """Queries that read the modalities scale after scale:

        F_0 = Q + mean_m P_m p_m
        F_s = F_{s-1} + MHA(LN(F_{s-1}); [R_v V_s ; R_t T_s ; R_a A_s]),  then + FFN

    where V, T, A are hidden states at depths L/4, L/2, 3L/4 and L, and p_m the modalities' pooled
    vectors. The learned queries Q start from these, and the blocks add a tenth at first
    (LayerScale, Touvron et al. 2021), so that the item's embedding begins as a projection of what
    the encoders already know: a pretrained text encoder's geometry is there at the first step,
    which queries alone would have to find again through attention. With `top_only` every one of
    the four blocks reads depth L: as many parameters, without the lower layers.

    Args:
        input_dims: width of each modality's states.
        num_times: length of each modality's time embedding; 0 for none.
        pretrained: which modalities' encoders come from a checkpoint.
    """

    def __init__(
        self,
        input_dims: list[int],
        num_times: list[int],
        *,
        dim: int,
        num_heads: int,
        num_queries: int,
        dropout: float,
        top_only: bool,
        pretrained: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        self.top_only = top_only
        self.queries = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        self.pooled = PooledReader(input_dims, dim, pretrained)
        self.readers = nn.ModuleList(
            nn.ModuleList(
                Reader(width, dim, times)
                for width, times in zip(input_dims, num_times, strict=True)
            )
            for _ in range(NUM_SCALES)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(NUM_SCALES))
        self.attentions = nn.ModuleList(
            CrossAttention(dim, dim, num_heads) for _ in range(NUM_SCALES)
        )
        self.dropout = nn.Dropout(dropout)
        self.feed_forwards = nn.ModuleList(FeedForward(dim, dropout) for _ in range(NUM_SCALES))
        self.attended_scale = nn.Parameter(torch.full((NUM_SCALES, dim), 0.1))
        self.forwarded_scale = nn.Parameter(torch.full((NUM_SCALES, dim), 0.1))

    def forward(self, modalities: list[Modality]) -> Tensor:
        """Modalities in the order of `input_dims` -> (B, num_queries, dim)."""
        start = torch.stack(self.pooled(modalities)).mean(dim=0)
        fused = self.queries + start[:, None]
        for scale in range(NUM_SCALES):
            source = NUM_SCALES - 1 if self.top_only else scale
            pairs = [
                reader(modality.scales[source], modality)
                for reader, modality in zip(self.readers[scale], modalities, strict=True)  # type: ignore[arg-type]
            ]
            keys = torch.cat([pair[0] for pair in pairs], dim=1)
            mask = torch.cat([pair[1] for pair in pairs], dim=1)
            attended = self.attentions[scale](self.norms[scale](fused), keys, mask)
            fused = fused + self.attended_scale[scale] * self.dropout(attended)
            fused = fused + self.forwarded_scale[scale] * self.feed_forwards[scale](fused)
        return fused


class PooledFusion(nn.Module):
    """Fusion of one vector a modality.

    early: the vectors are concatenated and one network mixes them. late: a tower a modality,
    the towers' outputs averaged; nothing crosses between modalities. hybrid: both, side by side
    (as compared by Lee et al. 2018, "Collaborative Deep Metric Learning for Video
    Understanding"). A learned vector stands in for an absent modality.
    """

    def __init__(
        self,
        input_dims: list[int],
        *,
        dim: int,
        dropout: float,
        kind: Literal["early", "late", "hybrid"],
        pretrained: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        self.pooled = PooledReader(input_dims, dim, pretrained)
        self.mixer = None if kind == "late" else nn.Linear(len(input_dims) * dim, dim)
        self.mixed = None if kind == "late" else FeedForward(dim, dropout)
        towers = [] if kind == "early" else [FeedForward(dim, dropout) for _ in input_dims]
        self.towers = nn.ModuleList(towers)
        self.join = nn.Linear(2 * dim, dim) if kind == "hybrid" else None

    def forward(self, modalities: list[Modality]) -> Tensor:
        """Modalities in the order of `input_dims` -> (B, 1, dim)."""
        vectors = self.pooled(modalities)
        outputs: list[Tensor] = []
        if self.mixer is not None and self.mixed is not None:
            mixed = self.mixer(torch.cat(vectors, dim=1))
            outputs.append(mixed + self.mixed(mixed))
        if len(self.towers):
            pairs = zip(self.towers, vectors, strict=True)
            outputs.append(torch.stack([v + tower(v) for tower, v in pairs]).mean(dim=0))
        out = outputs[0] if self.join is None else self.join(torch.cat(outputs, dim=1))
        return out[:, None]
