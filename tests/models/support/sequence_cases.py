"""Published sequence rows for tests: histories that walk through items in order, mostly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

from rec.artifacts import publish
from rec.schema import SEQUENCE_ITEMS, SEQUENCE_ROWS

NUM_TRAINED, NUM_ITEMS = 24, 28  # the last four have no event
NUM_USERS, NUM_TAGS, NUM_CATEGORIES, NUM_UPLOADERS, CONTENT_DIM = 40, 5, 3, 4, 6
ITEM_IDS = [f"item{i}" for i in range(NUM_ITEMS)]


def history_of(user: int) -> list[int]:
    """2 to 31 items; the next is one up, one time in ten anything."""
    generator = np.random.default_rng(user)
    items = [int(generator.integers(NUM_TRAINED))]
    for _ in range(1 + user % 30):
        jump = generator.random() < 0.1
        items.append(int(generator.integers(NUM_TRAINED)) if jump else (items[-1] + 1) % 24)
    return items


def _rows(histories: dict[str, tuple[list[int], int]]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in SEQUENCE_ROWS.names}
    for user, (items, num_targets) in histories.items():
        columns["user_id"].append(user)
        columns["item_index"].append(items)
        columns["weights"].append([1.0] * len(items))
        columns["event_times"].append([1000 * i for i in range(len(items))])
        columns["num_targets"].append(num_targets)
    return pa.table(columns, schema=SEQUENCE_ROWS)


def _items(num_events: list[int]) -> pa.Table:
    every = range(NUM_ITEMS)
    return pa.table(
        {
            "item_id": ITEM_IDS,
            "num_events": num_events,
            "published_at": [None] * NUM_ITEMS,
            "tag_index": [[] if i % 7 == 3 else [i % 5, (i + 2) % 5][: 1 + i % 2] for i in every],
            "category_index": [[i % NUM_CATEGORIES] for i in every],
            "uploader_index": [-1 if i % 5 == 4 else i % NUM_UPLOADERS for i in every],
        },
        schema=SEQUENCE_ITEMS,
    )


def publish_rows(folder: Path) -> str:
    """A "sequence-rows" artifact. Of the held-out rows one has no history, one two targets, one a
    target without events."""
    staged = folder / "staged"
    known = {f"user{u}": history_of(u) for u in range(NUM_USERS)}
    held = {f"user{u}": ([*items, (items[-1] + 1) % 24], 1) for u, items in known.items()}
    held |= {"new": ([3], 1), "two": ([4, 5, 6, 7], 2), "cold": ([8, 9, NUM_ITEMS - 1], 1)}
    sides = {"train": {u: (items, 0) for u, items in known.items()}, "heldout": held, "test": held}
    for side, rows in sides.items():
        (staged / side).mkdir(parents=True)
        pq.write_table(_rows(rows), staged / side / "shard-00000.parquet")
    counts = np.bincount([i for items in known.values() for i in items], minlength=NUM_ITEMS)
    assert (counts[:NUM_TRAINED] > 0).all()
    assert not counts[NUM_TRAINED:].any()
    pq.write_table(_items(counts.tolist()), staged / "items.parquet")
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, CONTENT_DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mask = np.arange(NUM_ITEMS) % 6 != 2
    save_file({"vectors": vectors, "mask": mask}, staged / "content.safetensors")
    metrics = {
        "num_items": NUM_ITEMS,
        "num_tags": NUM_TAGS,
        "num_categories": NUM_CATEGORIES,
        "num_uploaders": NUM_UPLOADERS,
        "content_dim": CONTENT_DIM,
    }
    publish(staged, folder / "rows", "sequence-rows", metrics=metrics)
    return str(folder / "rows")


def read_side(rows: str, side: str) -> pa.Table:
    return pq.read_table(next(Path(rows).glob(f"v-*/{side}/*.parquet")))


def gradients(
    recipe: Any, rows: str, num_parts: int, num_rows: int = 36
) -> dict[str, torch.Tensor]:
    """Parameter gradients on this rank's part of the training rows, by the loop's own engines;
    and, as "loss", the mean over all ranks."""
    import torch.distributed as dist

    from rec.train.engine import build_engine
    from rec.train.gradient import backpropagate

    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    engine = build_engine(recipe, rows)
    engine.module.train()
    batch = recipe.collate(read_side(rows, "train").slice(0, num_rows))
    batch = recipe.transform(batch, torch.Generator().manual_seed(1))
    share = num_rows // world
    part = batch.rows(rank * share, (rank + 1) * share)
    sums = backpropagate(engine, recipe.weights, part, num_parts, seed=0)
    found = {"loss": torch.tensor(sums.means()["total"])}
    for name, parameter in engine.module.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        found[name] = parameter.grad.detach().clone()
    return found
