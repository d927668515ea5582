"""What a recipe gives the loop. A recipe is a frozen config whose methods build its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa
import torch
from pydantic import Field

from rec.config import Config
from rec.contract import Trainable

B = TypeVar("B")


class TrainConfig(Config):
    """Everything the loop needs that does not depend on the model."""

    steps: int = Field(default=1000, ge=1)  # optimiser steps
    batch_size: int = Field(default=64, ge=1)  # rows an optimiser step, over all ranks
    # forward passes a step and rank; GradCache where losses couple rows
    micro_batches: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=3e-4, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: float = Field(default=1.0, ge=0)
    engine: Literal["plain", "ddp", "deepspeed"] = "plain"
    zero_stage: Literal[0, 1, 2, 3] = 1  # for deepspeed
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    validate_every: int = Field(default=200, ge=1)
    validate_aside: bool = False  # of checkpoints, by a task of Ray's beside the training
    keep_checkpoints: int = Field(default=2, ge=1)  # besides the best one


class Recipe(Protocol[B]):
    """A frozen config, generic in its batch type: a type checker refuses a sequence model on
    graph data. `rec.recipes` has one file an experiment family, each with base() and debug()."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """The kind of artifact that its rows are."""
        ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def weights(self) -> Mapping[str, float]:
        """Loss term name -> weight in the total."""
        ...

    def build(self, rows: str) -> Trainable[B]:
        """The model, its sizes taken from the published rows at `rows` (label vocabulary...)."""
        ...

    def collate(self, table: pa.Table) -> B:
        """Rows as read from Parquet to a batch; runs in loader threads; decodes and pads."""
        ...

    def transform(self, batch: B, generator: torch.Generator) -> B:
        """Random training inputs (augmented views, masks), drawn from `generator` alone, on the
        batch's device: equal generators give equal batches, which makes resuming exact."""
        ...

    def parameter_groups(self, model: Trainable[B]) -> list[dict[str, Any]]:
        """Optimiser groups: no decay on norms and biases, per-part learning rates ("lr")."""
        ...

    def export(self, model: Trainable[B], rows: str, uri: str, metrics: Mapping[str, Any]) -> None:
        """Publish the trained model as an artifact at `uri`."""
        ...
