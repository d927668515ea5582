"""The published content encoder: what embedding and serving load.

An artifact of kind "content-encoder": config.json (sizes, architectures, inputs), labels.parquet,
model.safetensors and tokenizer/. No checkpoint that training started from is needed to load it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from rec.artifacts import ArtifactError, Manifest, open_artifact, publish
from rec.batch import ContentBatch
from rec.config import Config
from rec.features.content import ContentCollator, ContentInputs
from rec.features.text import TextTokenizer
from rec.models.content.config import ContentModelConfig
from rec.models.content.encoders import Backbones, architectures, backbones_of
from rec.models.content.pretrain import ContentPretrainer

KIND = "content-encoder"
WEIGHTS, LABELS = "model.safetensors", "labels.parquet"
_CONFIG, _TOKENIZER = "config.json", "tokenizer"


class EncoderConfig(Config):
    """config.json of the artifact."""

    model: ContentModelConfig
    inputs: ContentInputs
    architectures: dict[str, Any]  # transformers' configuration of each backbone


def save_encoder(
    model: ContentPretrainer,
    tokenizer_folder: str | os.PathLike[str],
    inputs: ContentInputs,
    labels: pa.Table | Sequence[str],
    uri: str | os.PathLike[str],
    *,
    lineage: Mapping[str, str] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Publish a trained model at `uri`; returns its version.

    Args:
        tokenizer_folder: the tokenizer that made the rows.
        labels: the label vocabulary in the order of label_id: the table of the rows' artifact
            (columns label and label_id at least), or the names.
        lineage: artifact it was made from -> that one's version.
        metrics: what was measured of it.

    Raises:
        ArtifactError: there are not as many labels as the model predicts.
    """
    table = _label_table(labels) if isinstance(labels, Sequence) else labels
    if table.num_rows != len(model.labels.bias):
        raise ArtifactError(
            f"{uri}: {table.num_rows} labels given, the model predicts {len(model.labels.bias)}"
        )
    backbones = Backbones(
        model.vision.backbone, model.text.backbone, model.audio.backbone if model.audio else None
    )
    config = EncoderConfig(
        model=model.config, inputs=inputs, architectures=architectures(backbones)
    )
    with tempfile.TemporaryDirectory(prefix="raycall-encoder-") as folder:
        staged = Path(folder)
        (staged / _CONFIG).write_text(config.to_json())
        weights = {k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(weights, staged / WEIGHTS)
        pq.write_table(table, staged / LABELS)
        shutil.copytree(tokenizer_folder, staged / _TOKENIZER)
        about = {"embedding_dim": model.config.embedding_dim, "inputs": inputs.model_dump()}
        manifest = publish(
            staged, uri, KIND, lineage=lineage, config=about, metrics=dict(metrics or {})
        )
    return manifest.version


def _label_table(names: Sequence[str]) -> pa.Table:
    ids = pa.array(range(len(names)), pa.int32())
    return pa.table({"label": pa.array(list(names), pa.string()), "label_id": ids})


class ContentEncoder:
    """A loaded encoder: texts, pictures or whole rows to vectors, and to labels.

    Safe to call from several threads; every call runs without gradient, in evaluation mode.
    """

    def __init__(
        self, model: ContentPretrainer, tokenizer: TextTokenizer, labels: list[str], version: str
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.labels, self.version = tokenizer, labels, version
        self.collator = ContentCollator(model.inputs)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.model.config.embedding_dim

    @property
    def inputs(self) -> ContentInputs:
        return self.model.inputs

    @property
    def device(self) -> torch.device:
        return self.model.labels.bias.device

    @torch.inference_mode()
    def encode(self, batch: ContentBatch) -> np.ndarray:
        """(B, dim) float32 of unit norm, from whatever each item has."""
        return self.model.encode_item(batch.to(self.device)).cpu().numpy()

    def encode_rows(self, rows: pa.Table) -> np.ndarray:
        """(B, dim) of content rows: columns token_ids, frames and log_mel."""
        return self.encode(self.collator(rows))

    def encode_items(
        self, texts: Sequence[str | None], pictures: Sequence[Sequence[bytes]]
    ) -> np.ndarray:
        """(B, dim) of items with a text, compressed pictures, or both; empty is absent.

        Raises:
            MediaError: a picture cannot be decoded.
        """
        return self.encode(self.collate(texts, pictures))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(B, dim) of texts alone."""
        return self.encode_items(texts, [()] * len(texts))

    def encode_images(self, pictures: Sequence[bytes]) -> np.ndarray:
        """(B, dim) of compressed pictures alone, one an item; raises MediaError."""
        return self.encode_items([None] * len(pictures), [[data] for data in pictures])

    def collate(
        self, texts: Sequence[str | None], pictures: Sequence[Sequence[bytes]]
    ) -> ContentBatch:
        """A batch of items with a text, pictures, or both; raises MediaError."""
        if len(texts) != len(pictures):
            raise ValueError(f"{len(texts)} texts and pictures of {len(pictures)} items")
        frames = [[self.collator.decode(data) for data in item] for item in pictures]
        return self.collator.from_parts(self.tokenizer.encode(texts).token_ids, frames)

    @torch.inference_mode()
    def predict_labels(self, batch: ContentBatch, k: int) -> list[list[tuple[str, float]]]:
        """The `k` likeliest labels of each item with their probabilities, best first."""
        scores = self.model.labels(self.model.encode_item(batch.to(self.device)))
        best = torch.sigmoid(scores).topk(min(k, len(self.labels)), dim=1)
        return [
            [(self.labels[i], p) for i, p in zip(ids, probabilities, strict=True)]
            for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def load_encoder(
    uri: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    manifest: Manifest | None = None,
) -> ContentEncoder:
    """The encoder published at `uri`, verified against its manifest.

    Args:
        manifest: of the version to load; None = the one in use.

    Raises:
        ArtifactError: there is none, a file is absent or altered, or weights and config disagree.
    """
    manifest, folder = open_artifact(uri, KIND, manifest=manifest)
    config = EncoderConfig.from_json((folder / _CONFIG).read_text())
    labels = pq.read_table(folder / LABELS).sort_by("label_id").column("label").to_pylist()
    backbones = backbones_of(config.architectures)
    model = ContentPretrainer(config.model, config.inputs, len(labels), backbones)
    found = load_file(folder / WEIGHTS)
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise ArtifactError(f"{folder / WEIGHTS}: does not fit {_CONFIG}: {error}") from error
    tokenizer = TextTokenizer(folder / _TOKENIZER, config.inputs.max_tokens)
    return ContentEncoder(model.to(device), tokenizer, labels, manifest.version)
