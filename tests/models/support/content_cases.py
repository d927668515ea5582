"""Content rows, batches and ranks for tests of the content model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from ranks import on_ranks

from rec.artifacts import publish
from rec.features.text import TextTokenizer, save_tokenizer, train_wordpiece
from rec.recipes.content import ContentRecipe, debug

WORDS = [f"{a}{b}" for a in ("red", "blue", "dark", "wild") for b in ("fox", "sea", "town", "moon")]
NUM_LABELS = 7
NUM_ROWS = 12
CUTOFF = "2026-01-01T00:00:00+00:00"  # of the rows


def text_of(row: int) -> str:
    generator = np.random.default_rng(row)
    return " ".join(generator.choice(WORDS, 4 + row % 5))


def picture_of(row: int, frame: int, size: tuple[int, int] = (40, 48)) -> bytes:
    pixels = np.random.default_rng(100 * row + frame).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC))[
        1
    ].tobytes()


def publish_rows(folder: Path) -> str:
    """A "content-rows" artifact with a tokenizer trained on the texts, labels, and one shard."""
    staged = folder / "staged"
    (staged / "train").mkdir(parents=True)
    tokenizer = train_wordpiece((text_of(i) for i in range(200)), 80)
    save_tokenizer(tokenizer, staged / "tokenizer", 32)
    labels = {"label": [f"tag{i}" for i in range(NUM_LABELS)], "label_id": list(range(NUM_LABELS))}
    pq.write_table(pa.table(labels), staged / "labels.parquet")
    pq.write_table(_table(staged / "tokenizer"), staged / "train" / "shard-00000.parquet")
    publish(staged, folder / "rows", "content-rows", metrics={"cutoff": CUTOFF})
    return str(folder / "rows")


def read_rows(rows: str) -> pa.Table:
    return pq.read_table(next(Path(rows).glob("v-*/train/*.parquet")))


def _table(tokenizer_folder: Path) -> pa.Table:
    """Twelve rows. Rows 4 to 7 have no pictures, 8 to 11 no text and no labels, and only 4 to 7
    and row 1 have sound: cut among three ranks, no rank has everything."""
    tokens = TextTokenizer(tokenizer_folder, 32).encode(
        [text_of(i) if i < 8 else None for i in range(NUM_ROWS)]
    )
    generator = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("item_id", "frames", "log_mel", "term_scores", "label_ids", "label_weights")
    }
    for row in range(NUM_ROWS):
        sound = generator.normal(size=(1 + row % 2, 96, 64)).astype(np.float16)
        columns["item_id"].append(f"item{row}")
        columns["frames"].append(
            [] if 4 <= row < 8 else [picture_of(row, frame) for frame in range(1 + row % 3)]
        )
        columns["log_mel"].append(sound.tobytes() if 4 <= row < 8 or row == 1 else None)
        columns["term_scores"].append(
            [float(generator.normal()) if word >= 0 else -np.inf for word in tokens.word_ids[row]]
        )
        labels = generator.choice(NUM_LABELS, 1 + row % 3, replace=False) if row < 8 else []
        columns["label_ids"].append([int(label) for label in labels])
        columns["label_weights"].append([float(generator.uniform(0.5, 2)) for _ in labels])
    types = {
        "item_id": pa.string(),
        "frames": pa.list_(pa.large_binary()),
        "log_mel": pa.large_binary(),
        "term_scores": pa.list_(pa.float32()),
        "label_ids": pa.list_(pa.int32()),
        "label_weights": pa.list_(pa.float32()),
    }
    made = {name: pa.array(values, types[name]) for name, values in columns.items()}
    made["token_ids"] = pa.array(tokens.token_ids, pa.list_(pa.int32()))
    made["word_ids"] = pa.array(tokens.word_ids, pa.list_(pa.int32()))
    return pa.table(made)


def exact(**train: Any) -> ContentRecipe:
    """The debug recipe, without dropout, everything trained: for gradients to the last digit."""
    recipe = debug().override(["model.vision.freeze_patch_embedding=false"])
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def gradients(
    recipe: ContentRecipe, rows: str, only: str, num_parts: int
) -> dict[str, torch.Tensor]:
    """Gradients of one loss term, or of "all", on this rank's part of the rows, by the loop's own
    engines; and, as "loss", the mean over all ranks."""
    from rec.train.engine import build_engine
    from rec.train.gradient import backpropagate

    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    engine = build_engine(recipe, rows)
    engine.module.train()
    prepared = recipe.transform(recipe.collate(read_rows(rows)), torch.Generator().manual_seed(1))
    share = NUM_ROWS // world
    weights = {name: float(only in (name, "all")) for name in recipe.weights}
    part = prepared.rows(rank * share, (rank + 1) * share)
    sums = backpropagate(engine, weights, part, num_parts, seed=0)
    found = {"loss": torch.tensor(sums.means()["total"])}
    for name, parameter in engine.module.named_parameters():
        if recipe.train.engine == "deepspeed":
            from deepspeed.utils import safe_get_full_grad

            gradient = safe_get_full_grad(parameter)
        else:
            gradient = parameter.grad
        assert gradient is not None, f"no gradient for {name}"
        found[name] = gradient.detach().float().clone()
    found |= {
        name: buffer.clone() for name, buffer in engine.module.named_buffers() if "running" in name
    }
    return found


def from_ranks(world: int, work: Callable[..., Any], folder: Path, *args: Any) -> Any:
    """What `work(*args)`, tensors in lists and dicts, returned on rank 0 of `world` processes."""
    file = folder / "result.pt"
    on_ranks(world, _keep, work, str(file), args)
    return torch.load(file, weights_only=True)


def _keep(work: Callable[..., Any], file: str, args: Any) -> None:
    result = work(*args)
    if dist.get_rank() == 0:
        torch.save(result, file)
