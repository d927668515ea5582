"""The projection head of SimCLR v2."""

from __future__ import annotations

from torch import Tensor, nn

from rec.nn.batchnorm import RankBatchNorm


class ProjectionHead(nn.Module):
    """Three linear layers as wide as the input, each with batch norm, ReLU on all but the last
    (Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners",
    appendix; the layers have no bias of their own, the last norm has none either).

    Batch norm couples rows, so a batch that is cut for GradCache must meet here as a whole.
    """

    def __init__(self, dim: int, output_dim: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, dim, bias=False),
            RankBatchNorm(dim),
            nn.ReLU(),
            nn.Linear(dim, dim, bias=False),
            RankBatchNorm(dim),
            nn.ReLU(),
            nn.Linear(dim, output_dim, bias=False),
            RankBatchNorm(output_dim, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) -> (n, output_dim)."""
        return self.layers(x)
