"""Configuration of the content pretraining model."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rec.config import C, Config
from rec.nn.fusion import FusionKind


class _Sizes(Config):
    """Of a transformer from scratch."""

    hidden_size: int = Field(default=768, ge=1)
    num_layers: int = Field(default=12, ge=1)
    num_heads: int = Field(default=12, ge=1)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        return _multiple(self, "hidden_size", "num_heads")


def _multiple(config: C, size: str, heads: str) -> C:
    dim, num_heads = getattr(config, size), getattr(config, heads)
    if dim % num_heads:
        raise ValueError(f"{size} {dim} must be a multiple of {heads} {num_heads}")
    return config


class VisionConfig(_Sizes):
    """A vision transformer: sizes to start from scratch, or a checkpoint that brings its own."""

    checkpoint: str | None = None  # local Hugging Face folder; the sizes then do not count
    patch_size: int = Field(default=16, ge=1)
    # a fixed patch projection steadies contrastive training of a ViT (Chen et al. 2021, MoCo v3)
    freeze_patch_embedding: bool = True


class TextConfig(_Sizes):
    """A BERT-family encoder: sizes to start from scratch, or a checkpoint that brings its own."""

    checkpoint: str | None = None  # local Hugging Face folder; the sizes then do not count
    # the first n layers and, where n > 0, the embeddings are not trained
    frozen_layers: int = Field(default=0, ge=0)


class AudioConfig(_Sizes):
    """A small vision transformer over log-mel patches of 96 x 64, always from scratch."""

    hidden_size: int = Field(default=384, ge=1)
    num_layers: int = Field(default=6, ge=1)
    num_heads: int = Field(default=6, ge=1)


class ContentModelConfig(Config):
    """Everything of the model that does not depend on the data."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    audio: AudioConfig | None = AudioConfig()  # None: no audio at all
    fusion: FusionKind = "multi_scale"
    fusion_dim: int = Field(default=512, ge=1)
    fusion_heads: int = Field(default=8, ge=1)
    num_queries: int = Field(default=8, ge=1)  # of the multi_scale and top_layer fusion
    embedding_dim: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)  # in encoders and fusion
    temperature: float = Field(default=0.1, gt=0)  # of the InfoNCE loss
    label_negatives: float = Field(default=1.0, ge=0)  # weight of each label an item does not have
    label_focusing: float = Field(default=0.0, ge=0)  # gamma of asymmetric focusing; 0 is none

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        return _multiple(self, "fusion_dim", "fusion_heads")
