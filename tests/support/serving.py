"""Small real encoders with random weights, of items and of users, and indexes of their items: what
is served in tests, as fixtures for conftest files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
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
from rec.schema import EMBEDDINGS, ITEMS, MEDIA
from serve_apps.recommend import Places

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "support"))

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


@pytest.fixture(scope="session")
def make_encoder() -> Callable[[Path, int], str]:
    """(folder, seed) -> URI of an encoder."""
    return publish_encoder


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


LONELY = "only/in the table ü"  # an item that no index has


def publish_tables(folder: Path, ids: list[str], pictures: list[bytes]) -> str:
    """Tables of items: TEXTS as titles, their words as tags in several spellings, a day apart, the
    last one the newest; every item but the first has two pictures, in two files. LONELY besides."""
    days = [datetime(2024, 1, 1 + n, tzinfo=UTC) for n in range(len(ids))]
    spelt = ("#{}", "#{}_", "{}", "\uff03{}")
    facts = [
        {
            "item_id": item_id,
            "domain": "video",
            "title": text,
            "description": f"all about {text}",
            "tags": [
                spelt[n % 4].format(word.upper()) for word in (*text.split(), text.split()[0])
            ],
            "categories": None,
            "uploader_id": "somebody",
            "published_at": day,
        }
        for n, (item_id, text, day) in enumerate(zip(ids, TEXTS, days, strict=True))
    ]
    bare = dict.fromkeys(ITEMS.names) | {"item_id": LONELY, "domain": "video"}
    for number, part in enumerate((facts[:5], [*facts[5:], bare])):
        write(folder / "items" / f"shard-{number:05d}.parquet", part, ITEMS)
    media = [
        {"item_id": item_id, "media_index": index, "kind": kind, "uri": "", "data": data}
        for item_id, picture in list(zip(ids, pictures, strict=True))[1:]
        for index, kind, data in (
            (1, "frame", b"another"),
            (0, "frame", picture),
            (0, "audio", b""),
        )
    ]
    write(folder / "media" / "shard-00000.parquet", media[:9], MEDIA, row_group_size=4)
    write(folder / "media" / "shard-00001.parquet", media[9:], MEDIA, row_group_size=4)
    (folder / "media" / ".shard-00002.parquet.aside.tmp").write_bytes(b"half a file")
    (folder / "ledger.json").write_text(json.dumps({"version": "0123456789abcdef"}))
    return str(folder)


def write(path: Path, rows: list[dict[str, object]], schema: pa.Schema, **how: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **how)


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory, served: Served) -> str:
    """Tables of the items that are served."""
    return publish_tables(tmp_path_factory.mktemp("tables"), served.ids, served.pictures)


@pytest.fixture(scope="session")
def catalogued(tmp_path_factory: pytest.TempPathFactory, served: Served) -> str:
    """Tables of the items that are served and of those that are recommended."""
    from sequence_cases import ITEM_IDS

    folder = tmp_path_factory.mktemp("catalogued")
    publish_tables(folder, served.ids, served.pictures)
    facts = dict.fromkeys(ITEMS.names) | {"domain": "film"}
    films = [facts | {"item_id": one, "title": f"film {one}"} for one in ITEM_IDS]
    write(folder / "items" / "shard-00002.parquet", films, ITEMS)
    return str(folder)


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
