"""A checkpoint to the artifact that all else reads."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from rec import artifacts
from rec.runtime.checkpoints import read_weights
from rec.runtime.validation import read_figures
from rec.train import checkpoint
from rec.train.recipe import Recipe


def export(recipe: Recipe[Any], rows: str, folder: str, encoder: str) -> None:
    """Publish the weights of the checkpoint in `folder`, local or s3://, as recipe.export does."""
    state = checkpoint.State.from_json(
        artifacts.read_bytes(artifacts.join(folder, checkpoint.STATE_FILE)).decode()
    )
    model = recipe.build(rows)
    read_weights(folder, cast(nn.Module, model))
    metrics = state.metrics or read_figures(folder)
    recipe.export(model, rows, encoder, {"step": state.step, **metrics})


def export_on_ray(recipe: Recipe[Any], rows: str, folder: str, encoder: str) -> None:
    """The same on a worker: the driver may be a head node without memory for the model."""
    import ray

    ray.get(ray.remote(num_cpus=1)(export).remote(recipe, rows, folder, encoder))
