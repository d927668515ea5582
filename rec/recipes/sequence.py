"""Recipes of sequence models: the next item from a user's history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

import pyarrow as pa
import torch
from pydantic import Field, NonNegativeFloat
from torch import nn

from rec.batch import SequenceBatch
from rec.config import Config
from rec.contract import Trainable
from rec.data.sequence_rows import KIND as ROWS
from rec.features.sequences import collate_sequences
from rec.models.sequence.bert4rec import BERT4Rec, mask_events
from rec.models.sequence.encoder import Trained
from rec.models.sequence.sasrec import SASRec
from rec.models.sequence.xlnet import XLNet
from rec.nn.items import ItemConfig
from rec.nn.losses.items import ItemLossConfig
from rec.nn.permuted import PermutedConfig
from rec.nn.users import CausalConfig, MaskedConfig
from rec.recipes.sequence_rows import export_encoder, parameter_groups, read_columns
from rec.train.recipe import TrainConfig

M = TypeVar("M", CausalConfig, MaskedConfig, PermutedConfig)


class _SequenceRecipe(Config, Generic[M]):
    """What recipes of sequence models have in common."""

    name: str
    model: M
    inputs: ItemConfig = ItemConfig()
    loss: ItemLossConfig = ItemLossConfig()
    train: TrainConfig

    @property
    def kind(self) -> str:
        return ROWS

    def collate(self, table: pa.Table) -> SequenceBatch:
        return collate_sequences(table, self.model.max_length)

    def parameter_groups(self, model: Trainable[SequenceBatch]) -> list[dict[str, Any]]:
        """With weight decay, and without: embeddings, norms and biases."""
        return parameter_groups(cast(nn.Module, model), self.train.weight_decay)

    def export(
        self, model: Trainable[SequenceBatch], rows: str, uri: str, metrics: Mapping[str, Any]
    ) -> None:
        """Publish the model as a "sequence-encoder" artifact."""
        export_encoder(cast(Trained, model), rows, uri, metrics)


class SASRecRecipe(_SequenceRecipe[CausalConfig]):
    """One run of SASRec, whole. Implements rec.train.recipe.Recipe[SequenceBatch]."""

    weights: dict[str, NonNegativeFloat] = {"next_item": 1.0}

    def build(self, rows: str) -> SASRec:
        """The model, for the items of the published rows at `rows`.

        Raises:
            ArtifactError: there are no published rows.
            ConfigError: the rows have no content vectors, and `inputs` wants them.
        """
        columns = read_columns(rows, self.inputs)
        return SASRec(columns, self.model, self.inputs, self.loss)

    def transform(
        self,
        batch: SequenceBatch,
        generator: torch.Generator,  # noqa: ARG002
    ) -> SequenceBatch:
        """The batch as it is: dropout and negatives are the model's own."""
        return batch


class BERT4RecRecipe(_SequenceRecipe[MaskedConfig]):
    """One run of BERT4Rec, whole. Implements rec.train.recipe.Recipe[SequenceBatch]."""

    mask_share: float = Field(default=0.2, gt=0, lt=1)  # of the events of a history
    mask_last: float = Field(default=0.1, ge=0, le=1)  # histories that hide their last alone
    weights: dict[str, NonNegativeFloat] = {"masked_item": 1.0}

    def build(self, rows: str) -> BERT4Rec:
        """As SASRecRecipe.build."""
        columns = read_columns(rows, self.inputs)
        return BERT4Rec(columns, self.model, self.inputs, self.loss)

    def transform(self, batch: SequenceBatch, generator: torch.Generator) -> SequenceBatch:
        return mask_events(batch, generator, share=self.mask_share, last=self.mask_last)


class XLNetRecipe(_SequenceRecipe[PermutedConfig]):
    """One run of XLNet, whole. Implements rec.train.recipe.Recipe[SequenceBatch]."""

    target_share: float = Field(default=0.3, gt=0, lt=1)  # of the events of a history
    target_last: float = Field(default=0.1, ge=0, le=1)  # histories that predict their last alone
    weights: dict[str, NonNegativeFloat] = {"permuted_item": 1.0}

    def build(self, rows: str) -> XLNet:
        """As SASRecRecipe.build."""
        return XLNet(read_columns(rows, self.inputs), self.model, self.inputs, self.loss)

    def transform(self, batch: SequenceBatch, generator: torch.Generator) -> SequenceBatch:
        """Which events are predicted; in which order, the model draws."""
        return mask_events(batch, generator, share=self.target_share, last=self.target_last)


def sasrec() -> SASRecRecipe:
    """SASRec with the loss over all items, sized as published for ml-1m (d 64, 2 blocks, 1 head,
    200 events, dropout .2, batches of 128)."""
    return SASRecRecipe(
        name="sasrec",
        model=CausalConfig(),
        train=TrainConfig(
            steps=6000,
            batch_size=128,
            learning_rate=1e-3,
            weight_decay=0.0,
            warmup_steps=100,
            max_grad_norm=5.0,
            precision="bf16",
            log_every=50,
            checkpoint_every=500,
            validate_every=500,
        ),
    )


def sampled() -> SASRecRecipe:
    """SASRec for catalogues too large to score whole in each step, its histories short: a
    softmax over sampled items (sized for amazon-beauty: 50 events, dropout .5)."""
    recipe = sasrec()
    return recipe.model_copy(
        update={
            "name": "sasrec-sampled",
            "model": CausalConfig(max_length=50, dropout=0.5),
            "loss": ItemLossConfig(kind="sampled_softmax", num_negatives=2048),
            "train": recipe.train.model_copy(update={"batch_size": 256, "steps": 8000}),
        }
    )


def bert4rec() -> BERT4RecRecipe:
    """BERT4Rec with the loss over all items, sized as published for ml-1m (d 64, 2 blocks, 2
    heads, 200 events, a fifth masked)."""
    return BERT4RecRecipe(
        name="bert4rec",
        model=MaskedConfig(),
        train=TrainConfig(
            steps=20_000,
            batch_size=128,
            learning_rate=1e-3,
            weight_decay=0.0,
            warmup_steps=500,
            schedule="linear",
            max_grad_norm=5.0,
            precision="bf16",
            log_every=50,
            checkpoint_every=1000,
            validate_every=1000,
        ),
    )


def xlnet() -> XLNetRecipe:
    """XLNet with the loss over all items, sized as bert4rec()."""
    train = bert4rec().train.model_copy(update={"steps": 5000, "precision": "fp32"})
    return XLNetRecipe(name="xlnet", model=PermutedConfig(), train=train)


def _seconds(batch_size: int = 16) -> TrainConfig:
    return TrainConfig(
        steps=30,
        batch_size=batch_size,
        learning_rate=5e-3,
        weight_decay=0.0,
        warmup_steps=5,
        log_every=5,
        checkpoint_every=15,
        validate_every=15,
    )


def debug() -> SASRecRecipe:
    """SASRec in seconds on one core: for tests, and to see that a run goes through."""
    return SASRecRecipe(
        name="sasrec-debug",
        model=CausalConfig(dim=16, num_heads=2, max_length=20, dropout=0.1),
        train=_seconds(),
    )


def demo() -> SASRecRecipe:
    """SASRec in seconds on the few users of the simulated platform: what `make demo` trains."""
    recipe = debug()
    return recipe.model_copy(
        update={
            "name": "sasrec-demo",
            "model": CausalConfig(dim=32, max_length=50),
            "train": recipe.train.model_copy(
                update={
                    "steps": 300,
                    "batch_size": 64,
                    "log_every": 50,
                    "checkpoint_every": 150,
                    "validate_every": 150,
                }
            ),
        }
    )


def debug_sampled() -> SASRecRecipe:
    """debug() over sampled items, with all that is known of them but content vectors."""
    return debug().model_copy(
        update={
            "name": "sasrec-sampled-debug",
            "inputs": ItemConfig(features=("id", "tags", "categories", "uploader")),
            "loss": ItemLossConfig(kind="sampled_softmax", num_negatives=32),
        }
    )


def debug_bert4rec() -> BERT4RecRecipe:
    """BERT4Rec in seconds on one core."""
    return BERT4RecRecipe(
        name="bert4rec-debug",
        model=MaskedConfig(dim=16, max_length=20, dropout=0.1),
        train=_seconds(),
    )


def debug_xlnet() -> XLNetRecipe:
    """XLNet in seconds on one core."""
    return XLNetRecipe(
        name="xlnet-debug",
        model=PermutedConfig(dim=16, max_length=20, dropout=0.1),
        train=_seconds(),
    )
