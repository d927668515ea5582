"""Recipes of two-tower matching: users' recent events to items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pyarrow as pa
import torch
from pydantic import Field, NonNegativeFloat
from torch import nn

from rec.batch import SequenceBatch
from rec.config import Config
from rec.contract import Trainable
from rec.data.sequence_rows import KIND as ROWS
from rec.features.sequences import collate_sequences
from rec.models.matching.dssm import DSSM, DSSMConfig, choose_targets
from rec.models.sequence.encoder import Trained
from rec.nn.items import ItemConfig
from rec.nn.users import PooledConfig
from rec.recipes.sequence_rows import export_encoder, parameter_groups, read_columns
from rec.train.recipe import TrainConfig


class DSSMRecipe(Config):
    """One run of DSSM, whole. Implements rec.train.recipe.Recipe[SequenceBatch]."""

    name: str
    model: DSSMConfig
    inputs: ItemConfig = ItemConfig()
    train: TrainConfig
    targets_per_user: int = Field(default=8, ge=1)  # events of a user that a step predicts
    weights: dict[str, NonNegativeFloat] = {"next_item": 1.0}

    @property
    def kind(self) -> str:
        return ROWS

    def build(self, rows: str) -> DSSM:
        """The model, for the items of the published rows at `rows`.

        Raises:
            ArtifactError: there are no published rows.
            ConfigError: the rows have no content vectors, and `inputs` wants them.
        """
        return DSSM(read_columns(rows, self.inputs), self.model, self.inputs)

    def collate(self, table: pa.Table) -> SequenceBatch:
        return collate_sequences(table, self.model.user.max_length)

    def transform(self, batch: SequenceBatch, generator: torch.Generator) -> SequenceBatch:
        return choose_targets(batch, generator, self.targets_per_user)

    def parameter_groups(self, model: Trainable[SequenceBatch]) -> list[dict[str, Any]]:
        """With weight decay, and without: embeddings, norms and biases."""
        return parameter_groups(cast(nn.Module, model), self.train.weight_decay)

    def export(
        self, model: Trainable[SequenceBatch], rows: str, uri: str, metrics: Mapping[str, Any]
    ) -> None:
        """Publish the model as a "sequence-encoder" artifact."""
        export_encoder(cast(Trained, model), rows, uri, metrics)


def dssm() -> DSSMRecipe:
    """Ids and whatever side information rows have without content vectors, on two CPU cores."""
    return DSSMRecipe(
        name="dssm",
        model=DSSMConfig(),
        inputs=ItemConfig(features=("id", "tags", "categories", "uploader")),
        train=TrainConfig(
            steps=5000,
            batch_size=256,
            learning_rate=1e-3,
            weight_decay=0.01,
            warmup_steps=100,
            max_grad_norm=5.0,
            log_every=50,
            checkpoint_every=500,
            validate_every=500,
        ),
    )


def debug() -> DSSMRecipe:
    """DSSM in seconds on one core: for tests, and to see that a run goes through."""
    return DSSMRecipe(
        name="dssm-debug",
        model=DSSMConfig(
            user=PooledConfig(dim=16, hidden_dim=32, dropout=0.0, max_length=20),
            item_hidden_dim=32,
            num_negatives=32,
        ),
        inputs=ItemConfig(features=("id", "tags", "categories", "uploader")),
        train=TrainConfig(
            steps=30,
            batch_size=16,
            micro_batches=2,
            learning_rate=5e-3,
            weight_decay=0.0,
            warmup_steps=5,
            log_every=5,
            checkpoint_every=15,
            validate_every=15,
        ),
    )
