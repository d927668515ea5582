"""What spawned ranks run: one step from one batch, or a few steps with save and restore."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tiny_recipe import CLASSES, DIM, TinyBatch, TinyRecipe

from rec.runtime.train import Job, work
from rec.train import checkpoint
from rec.train.engine import MODEL_FILE, build_engine
from rec.train.gradient import backpropagate

WEIGHTS = "weights.safetensors"


def batch_of(num: int = 12) -> TinyBatch:
    """Labels only in the first third: with two or three ranks one has none."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(num, DIM, generator=generator)
    label = torch.randint(CLASSES, (num,), generator=generator)
    view = x + 0.1 * torch.randn(num, DIM, generator=generator)
    return TinyBatch(x, label, torch.arange(num) < num // 3, view)


def steps(recipe: TinyRecipe, folder: str, num_steps: int, save_after: int | None) -> None:
    """`num_steps` steps on the same batch; after `save_after` of them, save and go on in a
    fresh engine."""
    engine = build_engine(recipe, "")
    whole = batch_of()
    size = len(whole) // engine.world
    mine = whole.rows(engine.rank * size, (engine.rank + 1) * size).to(engine.device)
    norms = []
    for step in range(num_steps):
        if step == save_after:
            place = Path(folder) / "checkpoint"
            place.mkdir(exist_ok=True)
            checkpoint.write(place, engine, recipe, step, {}, {})
            if dist.is_initialized():
                dist.barrier()
            engine = build_engine(recipe, "")
            checkpoint.restore(place, engine, recipe, {})
        backpropagate(engine, recipe.weights, mine, recipe.train.micro_batches, seed=step)
        norms.append(float(engine.step(1.0)))
    final = Path(folder) / f"final-{engine.rank}"
    final.mkdir(exist_ok=True)
    engine.save(final)
    if engine.rank == 0:
        result = load_file(final / MODEL_FILE)
        result["norms"] = torch.tensor(norms)
        save_file(result, Path(folder) / WEIGHTS)


class OneFolder:
    """A store that keeps the last checkpoint of all ranks in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        if dist.get_rank() == 0:  # more ranks than these may have written there
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        dist.barrier()
        write(self._folder)
        dist.barrier()


def worked(recipe: TinyRecipe, rows: str, folder: str, num_threads: int = 1) -> None:
    """A run of all ranks without Ray, from the checkpoint in `folder` where there is one; each
    rank leaves there in "ended-RANK" how it ended."""
    place = Path(folder) / "checkpoint"
    resumed = place if place.exists() else None
    dist.barrier()
    ended = work(Job(recipe, rows, folder), OneFolder(place), resumed, num_threads)
    (Path(folder) / f"ended-{dist.get_rank()}").write_text(f"{ended.step} {ended.error}")
