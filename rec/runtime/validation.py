"""Held-out rows, and validation beside the training: of checkpoints, by a task of Ray's.

    <run>/validations/step-00000200.json     figures of the checkpoint step-00000200

Ray Train starts one task at a time, keeps a checkpoint until its own is over, and notes in the run
which are not: the next attempt, or job, begins these again. Rank 0 takes the figures that are there
into the run's log with each checkpoint.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pyarrow import fs as pafs

from rec import artifacts
from rec.data.stream import RowPass, open_rows
from rec.runtime.checkpoints import read_weights
from rec.runtime.ray_store import figures
from rec.train import loop
from rec.train.engine import TrainError, build_engine
from rec.train.recipe import Recipe

if TYPE_CHECKING:
    from ray import train as ray_train

FOLDER = "validations"
_LONGEST_S = 12 * 3600.0  # of one, with waiting for room: a run's end waits for the last
_FILE = re.compile(r"step-(\d+)\.json")


def holds_out(rows: str, kind: str) -> bool:
    """Whether the published rows have any that are not trained on."""
    published = artifacts.read_manifest(rows, kind).files
    return any(name.startswith("heldout/") for name in published)


def held_out(
    recipe: Recipe[Any], rows: str, rank: int, world: int, threads: int
) -> RowPass[Any] | None:
    """The held-out rows, in batches as large as a step's, so that losses which couple rows have
    as many of them; None where nothing is held out."""
    if not holds_out(rows, recipe.kind):
        return None
    split = open_rows(rows, recipe.kind, "heldout")
    if not split.num_rows:
        return None
    return RowPass(
        split,
        recipe.collate,
        batch_size=recipe.train.batch_size // world,
        rank=rank,
        world=world,
        threads=threads,
    )


def beside(
    recipe: Recipe[Any], rows: str, run: str, num_gpus: int, num_workers: int
) -> ray_train.ValidationConfig:
    """What Ray Train is to do with a checkpoint that is reported for validation.

    An error of it is told in the driver's output, and the checkpoint counts as not validated, as
    one does that took too long. Only a worker that dies would end the training (ray 2.60): so the
    work is done by a task of the task, whose death is an error of the latter.

    Args:
        num_gpus: of the task; without one it takes a core.
        num_workers: of the training.
    """
    from ray import train as ray_train

    return ray_train.ValidationConfig(
        fn=cast(
            Any,
            partial(
                _in_a_task,
                recipe=recipe,
                rows=rows,
                run=run,
                num_gpus=num_gpus,
                num_workers=num_workers,
            ),
        ),
        task_config=ray_train.ValidationTaskConfig(timeout_s=_LONGEST_S),
        ray_remote_kwargs={"num_cpus": 0, "max_retries": -1},
    )


def gpus() -> float:
    """That Ray has now."""
    import ray

    return ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0


def spare_gpu(use_gpu: bool, num_workers: int) -> int:
    """GPUs for a validation beside the training: one where Ray has more than the training takes.
    For one that has yet to start, or is the training's, it might wait until the training's end."""
    return int(use_gpu and gpus() > num_workers)


def _in_a_task(
    checkpoint: ray_train.Checkpoint,
    recipe: Recipe[Any],
    rows: str,
    run: str,
    num_gpus: int,
    num_workers: int,
) -> dict[str, float]:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    place = artifacts.join(run, Path(checkpoint.path).name)
    # Ray 2.60 hides no GPUs from tasks that ask for none, and these would be the training's
    hidden = {} if num_gpus else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    # begun again here: by Ray, one that its memory monitor ended would be for ever
    work = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0, runtime_env=hidden)(
        validate_checkpoint
    )
    try:
        return figures(ray.get(work.remote(recipe, rows, place, num_workers)))
    except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
        print(f"{Path(place).name}: validation is tried once more: {error}", flush=True)
    return figures(ray.get(work.remote(recipe, rows, place, num_workers)))


def validate_checkpoint(
    recipe: Recipe[Any], rows: str, folder: str, num_workers: int
) -> dict[str, float]:
    """Validate the checkpoint in `folder`, local or s3://, in this process, and keep its figures
    beside it in the run; figures that stand are read.

    Batches and random inputs are those of a training by one process, whatever the engine; a forward
    takes as many rows as a rank's of `num_workers`, which bounds the memory. Losses that couple
    rows still see the whole batch where the model is GradCacheable; others see what a rank has.

    Raises:
        TrainError: nothing is held out, or a figure is not finite.
    """
    if known := read_figures(folder):
        return known
    parts = recipe.train.micro_batches * num_workers
    train = recipe.train.model_copy(update={"engine": "plain", "micro_batches": parts})
    alone: Any = recipe.model_copy(update={"train": train})  # pyright: ignore
    rows_held = held_out(alone, rows, rank=0, world=1, threads=1)
    if rows_held is None:
        raise TrainError(f"{rows}: holds no rows out")
    engine = build_engine(alone, rows)
    read_weights(folder, engine.module)
    found = loop.validate(engine, alone, rows_held)
    for name, value in found.items():
        if not math.isfinite(value):
            raise TrainError(f"{folder}: {name} is {value}")
    artifacts.write_atomic(_place(folder), json.dumps(found).encode())
    print(f"{Path(folder).name}: validation/total {found['validation/total']:.4g}", flush=True)
    return found


def _place(folder: str) -> str:
    run, _, name = folder.rstrip("/").rpartition("/")
    return artifacts.join(run, FOLDER, f"{name}.json")


def read_figures(folder: str) -> dict[str, float]:
    """What was found beside the training of the checkpoint in `folder`; empty: nothing yet."""
    place = _place(folder)
    return json.loads(artifacts.read_bytes(place)) if artifacts.exists(place) else {}


def new_figures(run: str, known: Collection[int]) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and figures of each validation that is over and not of a step that is known."""
    with suppress(OSError):  # of storage far away, once: they are there at the next look
        for step, place in _steps(run):
            if step not in known:
                yield step, json.loads(artifacts.read_bytes(place))


def forget_figures(run: str, after: int) -> None:
    """Remove those of later steps, which are made again."""
    for step, place in _steps(run):
        if step > after:
            files, path = artifacts.filesystem(place)
            files.delete_file(path)


def _steps(run: str) -> list[tuple[int, str]]:
    files, path = artifacts.filesystem(artifacts.join(run, FOLDER))
    infos = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    found = [(_FILE.fullmatch(info.base_name), info.base_name) for info in infos]
    names = [(int(match[1]), name) for match, name in found if match]
    return [(step, artifacts.join(run, FOLDER, name)) for step, name in sorted(names)]
