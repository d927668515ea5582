"""Small real encoders with random weights, of items and of users, and indexes of their items."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rec import artifacts
from rec.features.content import ContentInputs
from rec.features.text import TextTokenizer, save_tokenizer, train_wordpiece
from rec.models.content.config import AudioConfig, ContentModelConfig, TextConfig, VisionConfig
from rec.models.content.encoder import ContentEncoder, load_encoder, save_encoder
from rec.models.content.encoders import new_backbones
from rec.models.content.pretrain import ContentPretrainer
from rec.recipes import matching, sequence
from rec.retrieval.build import build_index
from rec.runtime.item_vectors import publish_item_vectors
from rec.schema import EMBEDDINGS
from serve_apps.recommend import Places

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "support"))
sys.path.insert(0, str(Path(__file__).parent / "support"))

TEXTS = [
    f"{adjective} {noun}"
    for adjective in ("red", "deep", "quiet")
    for noun in ("river", "planet", "garden", "machine")
]


@dataclass(frozen=True)
class Served:
    encoder_uri: str
    index_uri: str
    encoder: ContentEncoder
    ids: list[str]
    texts: list[str]
    pictures: list[bytes]
    vectors: np.ndarray  # (12, D), of text and picture


def picture(seed: int, size: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def publish_encoder(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    tokenizer_folder = folder / f"tokenizer-{seed}"
    save_tokenizer(train_wordpiece(TEXTS * 2, 200), tokenizer_folder, 16)
    inputs = ContentInputs(max_tokens=16, height=32, width=32)
    config = ContentModelConfig(
        vision=VisionConfig(hidden_size=32, num_layers=4, num_heads=2, patch_size=8),
        text=TextConfig(hidden_size=32, num_layers=4, num_heads=2),
        audio=AudioConfig(hidden_size=32, num_layers=4, num_heads=2),
        fusion_dim=32,
        fusion_heads=2,
        num_queries=2,
        embedding_dim=16,
    )
    vocab_size = TextTokenizer(tokenizer_folder, 16).vocab_size
    model = ContentPretrainer(config, inputs, 2, new_backbones(config, inputs, vocab_size))
    uri = str(folder / f"encoder-{seed}")
    save_encoder(model, tokenizer_folder, inputs, ["a", "b"], uri)
    return uri


def _publish_index(folder: Path, ids: list[str], vectors: np.ndarray, encoder: str | None) -> str:
    parts = folder / "embeddings" / "parts"
    parts.mkdir(parents=True)
    columns = [
        pa.array(ids, pa.string()),
        pa.array(np.zeros(len(ids), np.int32)),
        pa.array(np.ones(len(ids), np.float32)),
        pa.array(vectors.tolist(), pa.list_(pa.float32())),
    ]
    pq.write_table(pa.Table.from_arrays(columns, schema=EMBEDDINGS), parts / "part-00000.parquet")
    lineage = {"encoder": encoder} if encoder else {}
    artifacts.seal(parts.parent, "parts", "embedding-table", lineage=lineage)
    build_index(str(parts.parent), str(folder / "index"))
    return str(folder / "index")


@pytest.fixture(scope="session")
def publish_index() -> Callable[..., str]:
    """(folder, ids, vectors, encoder version or None) -> URI of an index."""
    return _publish_index


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    encoder_uri = publish_encoder(folder, 0)
    encoder = load_encoder(encoder_uri)
    ids = [f"item-{i}" for i in range(len(TEXTS))]
    pictures = [picture(i) for i in range(len(TEXTS))]
    vectors = encoder.encode_items(TEXTS, [[data] for data in pictures])
    index_uri = _publish_index(folder, ids, vectors, encoder.version)
    return Served(encoder_uri, index_uri, encoder, ids, TEXTS, pictures, vectors)


@pytest.fixture(scope="session")
def recommendable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Places]:
    """Encoders of users with the indexes of their items, and rows that all of them are of."""
    from sequence_cases import publish_rows

    folder = tmp_path_factory.mktemp("recommendable")
    rows, found = publish_rows(folder), dict[str, Places]()
    for name, recipe in (("sasrec", sequence.debug_sampled()), ("dssm", matching.debug())):
        torch.manual_seed(0)
        places = Places(
            encoder=f"{folder}/{name}/encoder", index=f"{folder}/{name}/index", rows=rows
        )
        recipe.export(recipe.build(rows), rows, places.encoder, {})
        publish_item_vectors(places.encoder, f"{folder}/{name}/items")
        build_index(f"{folder}/{name}/items", places.index)
        found[name] = places
    return found
