"""What bench.serve serves: artifacts of fixed seeds, with random weights and clustered vectors."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from bench.retrieval_data import clustered, write_table
from rec import artifacts
from rec.features.content import ContentInputs
from rec.features.text import TextTokenizer, save_tokenizer, train_wordpiece
from rec.models.content.config import ContentModelConfig, TextConfig, VisionConfig
from rec.models.content.encoder import save_encoder
from rec.models.content.encoders import new_backbones
from rec.models.content.pretrain import ContentPretrainer
from rec.models.sequence import encoder as sequence_encoder
from rec.nn.users import Body, CausalConfig, build_body
from rec.retrieval.build import build_index
from rec.runtime.item_vectors import publish_item_vectors
from rec.schema import SEQUENCE_ITEMS, SEQUENCE_ROWS

DIM = 128
USER_DIM = 64
MAX_TOKENS = 32
_WORDS = 2000
_USERS = 2000


@dataclass(frozen=True)
class Users:
    """URIs of what /v1/recommend serves."""

    encoder: str
    index: str
    rows: str


def texts(number: int, seed: int) -> list[str]:
    """Sentences of 12 to 24 words out of two thousand, which become some 20 to 32 tokens."""
    rng = np.random.default_rng([7, seed])
    words = np.array([f"word{i}" for i in range(_WORDS)])
    return [" ".join(rng.choice(words, rng.integers(12, 25))) for _ in range(number)]


def publish_content(folder: Path, num_items: int) -> tuple[str, str]:
    """An encoder, whose texts go through as many layers and widths as all-MiniLM-L6-v2's, and an
    index of clustered vectors that claims to be made with it."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="raycall-tokenizer-") as tokenizer:
        save_tokenizer(train_wordpiece(texts(2000, 0), 8000), tokenizer, MAX_TOKENS)
        inputs = ContentInputs(max_tokens=MAX_TOKENS, height=32, width=32)
        config = ContentModelConfig(
            vision=VisionConfig(hidden_size=64, num_layers=4, num_heads=2, patch_size=8),
            text=TextConfig(hidden_size=384, num_layers=6, num_heads=12),
            audio=None,
            fusion_dim=128,
            fusion_heads=4,
            num_queries=2,
            embedding_dim=DIM,
        )
        size = TextTokenizer(tokenizer, MAX_TOKENS).vocab_size
        model = ContentPretrainer(config, inputs, 2, new_backbones(config, inputs, size))
        encoder, index = str(folder / "encoder"), str(folder / "index")
        version = save_encoder(model, tokenizer, inputs, ["a", "b"], encoder)
    table = write_table(clustered(num_items, DIM, 0), str(folder / "embeddings"))
    artifacts.seal(table, "rows", "embedding-table", lineage={"encoder": version})
    build_index(table, index)
    return encoder, index


class _Untrained:
    """What rec.models.sequence.encoder.save_encoder takes: a body and one table of vectors."""

    training = False

    def __init__(self, body: Body, vectors: Tensor) -> None:
        self.body, self._vectors = body, vectors

    def train(self, mode: bool = True) -> object:  # noqa: ARG002
        return self

    def input_vectors(self) -> Tensor:
        return self._vectors

    def item_vectors(self) -> Tensor:
        return self._vectors


def publish_users(folder: Path, num_items: int) -> Users:
    """SASRec of the published size (d 64, 2 blocks, 200 events) over clustered item vectors, the
    index of those, and histories of some users."""
    places = Users(*(str(folder / "users" / name) for name in ("encoder", "index", "rows")))
    ids = [f"item-{row}" for row in range(num_items)]
    _publish_rows(Path(places.rows), ids)
    torch.manual_seed(0)
    vectors = torch.from_numpy(clustered(num_items, USER_DIM, 0))
    model = _Untrained(build_body(CausalConfig(dim=USER_DIM)), vectors)
    sequence_encoder.save_encoder(model, pa.array(ids), places.encoder)
    publish_item_vectors(places.encoder, str(folder / "users" / "items"))
    build_index(str(folder / "users" / "items"), places.index)
    return places


def _publish_rows(uri: Path, ids: list[str]) -> None:
    rng = np.random.default_rng(3)
    lists = [rng.integers(0, len(ids), rng.integers(50, 101)).tolist() for _ in range(_USERS)]
    columns = {
        "user_id": [f"u{number:06d}" for number in range(_USERS)],
        "item_index": lists,
        "weights": [[1.0] * len(one) for one in lists],
        "event_times": [[1000 * i for i in range(len(one))] for one in lists],
        "num_targets": [0] * _USERS,
    }
    counts = np.bincount(np.concatenate(lists), minlength=len(ids))
    num = len(ids)
    items = {
        "item_id": ids,
        "num_events": counts,
        "published_at": pa.nulls(num, SEQUENCE_ITEMS.field("published_at").type),
        "tag_index": [[]] * num,
        "category_index": [[]] * num,
        "uploader_index": [-1] * num,
    }
    with tempfile.TemporaryDirectory(prefix="raycall-rows-") as name:
        staged = Path(name)
        (staged / "train").mkdir()
        rows = pa.table(columns, schema=SEQUENCE_ROWS)
        pq.write_table(rows, staged / "train" / "shard-00000.parquet")
        pq.write_table(pa.table(items, schema=SEQUENCE_ITEMS), staged / "items.parquet")
        artifacts.publish(staged, uri, "sequence-rows", metrics={"num_items": num})


def histories(num_items: int, number: int) -> list[bytes]:
    """Bodies of POST /v1/recommend: histories of 50 to 100 items, 100 results."""
    rng = np.random.default_rng(5)
    return [
        json.dumps(
            {
                "history": [
                    f"item-{row}" for row in rng.integers(0, num_items, rng.integers(50, 101))
                ],
                "k": 100,
            }
        ).encode()
        for _ in range(number)
    ]
