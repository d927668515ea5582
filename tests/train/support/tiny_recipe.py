"""A small real recipe: a contrastive term that gathers over ranks, and a masked local term."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F

from rec import artifacts
from rec.batch import Batch
from rec.config import Config, ConfigError
from rec.contract import Losses, LossTerm
from rec.nn.collectives import gather_rows
from rec.train import engine
from rec.train.recipe import TrainConfig

DIM, CLASSES = 8, 3


@dataclass(frozen=True)
class TinyBatch(Batch):
    x: Tensor  # (B, DIM)
    label: Tensor  # (B,) int64
    label_mask: Tensor  # (B,) bool; few rows have a label, a rank may have none
    view: Tensor | None = None  # (B, DIM), x with noise


class TinyModel(nn.Module):
    def __init__(self, dropout: float, hidden: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(DIM, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, DIM)
        )
        self.classifier = nn.Linear(DIM, CLASSES)
        self.scale = nn.Parameter(torch.tensor([2.0]))
        self.shift = nn.Parameter(torch.zeros(DIM))

    def encode_item(self, batch: TinyBatch) -> Tensor:
        return F.normalize(self.encoder(batch.x) + self.shift, dim=-1)

    def encode(self, batch: TinyBatch) -> tuple[dict[str, Tensor], Losses]:
        assert batch.view is not None
        hidden = self.encoder(batch.x) + self.shift
        ce = F.cross_entropy(self.classifier(hidden).float(), batch.label, reduction="none")
        mask = batch.label_mask.float()
        pair = {
            "left": F.normalize(hidden, dim=-1),
            "right": F.normalize(self.encoder(batch.view) + self.shift, dim=-1),
        }
        return pair, {"classify": LossTerm((ce * mask).sum(), mask.sum())}

    def couple(self, representations: dict[str, Tensor]) -> Losses:
        left, right = representations["left"].float(), representations["right"].float()
        columns, offset = gather_rows(right)
        logits = left @ columns.T * self.scale.exp()
        target = torch.arange(len(left), device=left.device) + offset
        total = F.cross_entropy(logits, target, reduction="sum")
        return {"contrast": LossTerm(total, torch.tensor(float(len(left)), device=left.device))}

    def forward(self, batch: TinyBatch) -> Losses:
        representations, losses = self.encode(batch)
        return {**losses, **self.couple(representations)}


class LocalModel(TinyModel):
    """The same without its coupled term's GradCache methods: it cannot be cut there."""

    encode = None  # type: ignore[assignment]

    def forward(self, batch: TinyBatch) -> Losses:
        hidden = self.encoder(batch.x) + self.shift
        ce = F.cross_entropy(self.classifier(hidden), batch.label, reduction="none")
        mask = batch.label_mask.float()
        spread = (hidden * self.scale).pow(2).sum(-1)
        return {
            "classify": LossTerm((ce * mask).sum(), mask.sum()),
            "contrast": LossTerm(spread.sum(), torch.tensor(float(len(hidden)))),
        }


def _refuse(tensors: object, file: Path) -> None:
    raise SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})")


class TinyRecipe(Config):
    train: TrainConfig = TrainConfig(
        steps=12,
        batch_size=12,
        warmup_steps=3,
        learning_rate=1e-2,
        log_every=1,
        checkpoint_every=4,
        validate_every=6,
    )
    weights: dict[str, float] = {"classify": 0.5, "contrast": 1.0}
    dropout: float = 0.1
    coupled: bool = True
    hidden: int = 16
    poison_step: int = -1  # rows whose number is this times the batch size become NaN
    kill_file: str = ""  # while absent: make it and kill the own process at row kill_row
    kill_row: int = -1
    full_disk: bool = False  # checkpoints cannot be written
    refused_row: int = -1  # cannot be collated

    @property
    def name(self) -> str:
        return "tiny"

    @property
    def kind(self) -> str:
        return "content-rows"

    def build(self, rows: str) -> TinyModel:
        if self.full_disk:
            engine.save_file = _refuse
        return (TinyModel if self.coupled else LocalModel)(self.dropout, self.hidden)

    def collate(self, table: pa.Table) -> TinyBatch:
        x = np.array(table.column("x").to_pylist(), dtype=np.float32)
        label = np.array(table.column("label"), dtype=np.int64)
        rows = np.array(table.column("row"))
        if self.refused_row in rows:
            raise ConfigError(f"row {self.refused_row} is refused")
        if self.kill_file and self.kill_row in rows and not os.path.exists(self.kill_file):
            Path(self.kill_file).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.poison_step >= 0:
            x[rows == self.poison_step] = np.nan
        return TinyBatch(
            torch.from_numpy(x),
            torch.from_numpy(np.maximum(label, 0)),
            torch.from_numpy(label >= 0),
        )

    def transform(self, batch: TinyBatch, generator: torch.Generator) -> TinyBatch:
        noise = torch.randn(batch.x.shape, generator=generator, device=batch.x.device)
        return replace(batch, view=batch.x + 0.1 * noise)

    def parameter_groups(self, model: TinyModel) -> list[dict[str, Any]]:
        matrices = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        return [
            {"params": matrices, "lr": self.train.learning_rate},
            {"params": rest, "lr": 0.5 * self.train.learning_rate, "weight_decay": 0.0},
        ]

    def export(self, model: TinyModel, rows: str, uri: str, metrics: Mapping[str, Any]) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            save_model(model, f"{folder}/model.safetensors")
            artifacts.publish(folder, uri, "tiny-encoder", metrics=metrics)


def write_rows(
    folder: Path, num_train: int = 90, num_heldout: int = 17, misleading: bool = False
) -> str:
    """A published "content-rows" artifact of clustered points, a third of them labelled.

    Args:
        misleading: held-out points have wrong labels, so that the first validation is the best.
    """
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLASSES, DIM))
    first = 0
    for split, num in {"train": num_train, "heldout": num_heldout}.items():
        (folder / "v-1" / split).mkdir(parents=True)
        kinds = generator.integers(CLASSES, size=num)
        table = pa.table(
            {
                "row": np.arange(first, first + num),
                "x": list(centres[kinds] + 0.3 * generator.normal(size=(num, DIM))),
                "label": np.where(generator.random(num) < 0.34, kinds, -1),
            }
        )
        if misleading and split == "heldout":
            label = table.column("label").to_numpy()
            wrong = np.where(label >= 0, (label + 1) % CLASSES, label)
            table = table.set_column(table.column_names.index("label"), "label", pa.array(wrong))
        half = num // 2
        for i, part in enumerate((table.slice(0, half), table.slice(half))):
            file = folder / "v-1" / split / f"shard-{i:05d}.parquet"
            pq.write_table(part, file, row_group_size=8)
        first += num
    artifacts.seal(folder, "v-1", "content-rows")
    return str(folder)
