"""Checkpoints: what resumes a run and is read by nothing else.

    state.json               step, data, configuration, ranks, last validation
    model.safetensors        whole fp32 weights, with every engine
    optimizer.safetensors    plain and ddp
    deepspeed/               deepspeed: its own sharded format

There is no RNG state: every random number of a step is drawn from (seed, step, rank, part), so
the step is the state. It is the data position too, as every step takes one batch.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, cast

from safetensors import SafetensorError

from rec.config import Config
from rec.train.engine import Engine, TrainError
from rec.train.recipe import Recipe

STATE_FILE = "state.json"
SCORE = "validation/total"  # lower is better; absent where nothing is held out

# fields that change neither what the saved tensors mean nor the gradient of a step
MAY_CHANGE = frozenset(
    f"train.{name}"
    for name in (
        "steps",
        "micro_batches",
        "log_every",
        "checkpoint_every",
        "validate_every",
        "validate_aside",
        "keep_checkpoints",
    )
)


class State(Config):
    """What state.json holds."""

    step: int  # optimiser steps done, and batches taken
    world: int
    recipe: dict[str, Any]
    recipe_type: str
    data: dict[str, Any]  # names the training rows and their order
    metrics: dict[str, float] = {}  # of the validation at this step, if there was one
    format: int = 1


class Store(Protocol):
    """Where checkpoints go. All ranks call save, which waits for all."""

    def save(self, step: int, metrics: dict[str, float], write: Callable[[Path], None]) -> None: ...


def describe(recipe: Recipe[Any]) -> tuple[str, dict[str, Any]]:
    """The recipe's class and fields, as state.json and manifests keep them."""
    if not isinstance(recipe, Config):
        raise TrainError(f"{type(recipe).__name__} must be a rec.config.Config")
    kind = type(recipe)
    return f"{kind.__module__}:{kind.__qualname__}", recipe.model_dump(mode="json")


def write(
    folder: Path,
    engine: Engine,
    recipe: Recipe[Any],
    step: int,
    data: Mapping[str, Any],
    metrics: dict[str, float],
) -> None:
    """Write a checkpoint into the empty local `folder`; every rank calls it."""
    engine.save(folder)
    if engine.rank == 0:
        kind, fields = describe(recipe)
        state = State(
            step=step,
            world=engine.world,
            recipe=fields,
            recipe_type=kind,
            data=dict(data),
            metrics=metrics,
        )
        (folder / STATE_FILE).write_text(state.to_json())


def read_state(folder: Path) -> State:
    """What state.json of the checkpoint in `folder` says; TrainError where it cannot be read."""
    try:
        return State.from_json((folder / STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> TrainError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return TrainError(
        f"{folder}: this checkpoint cannot be read ({reason}); remove the folder to go on from the "
        "one before it"
    )


def restore(folder: Path, engine: Engine, recipe: Recipe[Any], data: Mapping[str, Any]) -> State:
    """Load the checkpoint in `folder` into the engine.

    `train.steps` may differ (the schedule then stretches to the new end), as may all of
    MAY_CHANGE. The number of ranks may differ too: weights and optimiser continue exactly (what
    ZeRO has cut by ranks is put together and cut again), the current epoch's row order does not.

    Raises:
        TrainError: the recipe or the rows are others, or a file is damaged.
    """
    state = read_state(folder)
    kind, fields = describe(recipe)
    names = [n for n in differing(state.recipe, fields) if n not in MAY_CHANGE]
    if kind != state.recipe_type or names:
        raise TrainError(
            f"{folder}: checkpoint of another recipe ({state.recipe_type}); differing fields: "
            f"{', '.join(names) or 'the class'}. Give the run another --out or name, or the old "
            "values"
        )
    if rows := differing(state.data, data):
        raise TrainError(
            f"{folder}: trained on other rows (differs: {', '.join(rows)}); give the run another "
            "--out or name"
        )
    try:
        engine.load(folder, state.world)
    except (SafetensorError, OSError, EOFError, UnpicklingError) as error:
        raise _damaged(folder, error) from error
    except RuntimeError as error:
        if "PytorchStreamReader" not in f"{error}":  # torch.load's, of a file that was cut
            raise
        raise _damaged(folder, error) from error
    return state


def differing(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two configurations differ."""
    names: list[str] = []
    for key in sorted(saved.keys() | now.keys()):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = cast(Mapping[str, Any], old), cast(Mapping[str, Any], new)
            names += differing(*inner, prefix=f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key}")
    return names


class LocalStore:
    """Checkpoints of a run in this process, in a local folder: the best, and the last few."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, max(keep, 1)
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".*"):  # of a run that was killed while it wrote
            shutil.rmtree(left)

    def save(self, step: int, metrics: dict[str, float], write: Callable[[Path], None]) -> None:  # noqa: ARG002
        aside = self._folder / f".{uuid.uuid4().hex}"
        aside.mkdir()
        write(aside)
        target = self._folder / f"step-{step:08d}"
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside, target)
        kept = {self.best(), *self._all()[-self._keep :]}
        for folder in self._all():
            if folder not in kept:
                shutil.rmtree(folder)

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))

    def last(self) -> Path | None:
        return self._all()[-1] if self._all() else None

    def best(self) -> Path | None:
        """The lowest validation; the last one where nothing was validated."""
        scored = [(read_state(f).metrics.get(SCORE), f) for f in self._all()]
        ranked = [(score, folder) for score, folder in scored if score is not None]
        return min(ranked)[1] if ranked else self.last()
