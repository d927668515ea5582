"""Configuration of the content pretraining model."""

from __future__ import annotations

from pydantic import Field

from rec.config import Config
from rec.nn.fusion import FusionKind


class VisionConfig(Config):
    """A vision transformer: sizes to start from scratch, or a checkpoint that brings its own."""

    checkpoint: str | None = None  # local Hugging Face folder; the sizes below then do not count
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    patch_size: int = 16
    # a fixed patch projection steadies contrastive training of a ViT (Chen et al. 2021, MoCo v3)
    freeze_patch_embedding: bool = True


class TextConfig(Config):
    """A BERT-family encoder: sizes to start from scratch, or a checkpoint that brings its own."""

    checkpoint: str | None = None  # local Hugging Face folder; the sizes below then do not count
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    frozen_layers: int = 0  # the first n layers and, where n > 0, the embeddings are not trained


class AudioConfig(Config):
    """A small vision transformer over log-mel patches of 96 x 64, always from scratch."""

    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 6


class ContentModelConfig(Config):
    """Everything of the model that does not depend on the data."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    audio: AudioConfig | None = AudioConfig()  # None: no audio at all
    fusion: FusionKind = "multi_scale"
    fusion_dim: int = 512
    fusion_heads: int = 8
    num_queries: int = 8  # of the multi_scale and top_layer fusion
    embedding_dim: int = 256
    dropout: float = 0.1  # in encoders and fusion
    temperature: float = 0.1  # of the InfoNCE loss
    label_negatives: float = 1.0  # weight of each label an item does not have
    label_focusing: float = Field(default=0.0, ge=0)  # gamma of asymmetric focusing; 0 is none
