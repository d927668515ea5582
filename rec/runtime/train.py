"""Training on Ray Train: the same loop on any number of workers, restarted where it broke.

    <storage>/<name>/                Ray Train's run: checkpoints and its own bookkeeping
    <storage>/<name>/logs/           metrics.jsonl and tensorboard/, written by rank 0
    <storage>/<name>/validations/    figures of checkpoints validated beside the training
    <storage>/<name>/stop            while it is there, the run ends after its current step

With num_workers 0 the loop runs in this process, without Ray, for the plain engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist

from rec import artifacts
from rec.config import ConfigError
from rec.data.stream import RowStream, StreamError, open_rows
from rec.runtime.checkpoints import ALONE, forget_removed, refuse_other_kind
from rec.runtime.export import export, export_on_ray
from rec.runtime.failures import REFUSED, end_at_once, reason
from rec.runtime.ray_store import SCORE, RayStore
from rec.runtime.stop import clear_stop, sigint_as_before, stop_on_sigterm, watch_notice, watch_stop
from rec.runtime.validation import (
    beside,
    forget_figures,
    gpus,
    held_out,
    holds_out,
    new_figures,
    spare_gpu,
)
from rec.runtime.verify import verify
from rec.train import checkpoint, loop
from rec.train.engine import Engine, TrainError, build_engine
from rec.train.malloc import ONE_ARENA, keep_freed_memory
from rec.train.metrics import MetricLog
from rec.train.recipe import Recipe

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

LOGS = "logs"
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_SETTINGS = {
    # Ray's own is 2 s; a checkpoint waits until Ray has looked at the one before, and the end too
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
}


@dataclass(frozen=True)
class TrainOutcome:
    """How a run ended and where its things are."""

    step: int
    stopped: bool  # on request, be it in the last step; the same call continues, or exports
    metrics: dict[str, float]  # validation of the best checkpoint; empty if nothing is held out
    best: str  # folder of the checkpoint with the lowest validation total, else of the last
    last: str
    logs: str
    encoder: str | None  # the exported artifact


@dataclass(frozen=True)
class Job:
    """What every worker is told; `run` is the run's folder."""

    recipe: Recipe[Any]
    rows: str
    run: str
    aside: bool = False  # validation is done beside the training, of checkpoints


@dataclass(frozen=True)
class Ended:
    """How one rank's part ended."""

    step: int
    stopped: bool
    error: str | None  # one that would come again: not worth a restart


def train(
    recipe: Recipe[Any],
    rows: str,
    storage: str,
    name: str = "train",
    *,
    num_workers: int = 1,
    min_workers: int | None = None,
    use_gpu: bool | None = None,
    encoder: str | None = None,
    resume: bool = True,
    max_failures: int = 3,
) -> TrainOutcome:
    """Train `recipe` on the published rows at `rows`; continue an earlier run of `name`.

    A worker that dies (SIGKILL, lost node) restarts the group from the last checkpoint, up to
    `max_failures` times; the losses are those of an unbroken run. SIGTERM finishes the step, saves
    and returns an outcome with `stopped`.

    Args:
        storage: folder of runs, local (shared by the nodes) or s3://.
        num_workers: processes; 0 is this process, without Ray, for the plain engine.
        min_workers: go on with as few where there is no room for more, as after a lost node, and
            with more again once there is; None: wait for `num_workers`.
        use_gpu: one GPU a worker; None takes them where Ray has them.
        encoder: where to export the last checkpoint as an artifact, once all steps are done. Not
            the best one: that was chosen on held-out rows, which evaluation reports on.
        resume: False refuses to continue when the run already has a checkpoint.

    Raises:
        TrainError: recipe, rows and workers do not fit together, a loss is not finite, or Ray's
            workers failed, by the machine (no space, no rights) or more than `max_failures` times.
        ArtifactError: there are no published rows at `rows`, or a file is not as published.
    """
    fewest = num_workers if min_workers is None else min_workers
    if not 0 < fewest <= num_workers and num_workers:
        raise TrainError(f"min_workers is {fewest}, expected 1 to num_workers, {num_workers}")
    for ranks in range(max(fewest, 1), max(num_workers, 1) + 1):
        loop.check(recipe, ranks)
    if recipe.train.validate_aside and not num_workers:
        raise TrainError(
            "train.validate_aside is for a task of Ray's: give --workers 1 or more, or turn it off"
        )
    published = artifacts.read_manifest(rows, recipe.kind)
    run = artifacts.join(storage if "://" in storage else os.path.abspath(storage), name)
    if not resume and artifacts.exists(run):
        raise TrainError(f"{run}: there is a run already; remove it or give another name")
    refuse_other_kind(run, num_workers)
    verify(rows, published, on_ray=num_workers > 0)  # before workers are started
    aside = num_workers > 0 and recipe.train.validate_aside and holds_out(rows, recipe.kind)
    job = Job(recipe, rows, run, aside)
    clear_stop(run)
    with stop_on_sigterm(run) as asked:
        if num_workers:
            outcome = _train_on_ray(
                job, storage, name, (fewest, num_workers), use_gpu, max_failures
            )
        else:
            outcome = _train_here(job)
        # the workers look once a second, and not after their last step
        outcome = replace(outcome, stopped=outcome.stopped or asked())
    if outcome.stopped or encoder is None:
        return outcome
    if num_workers:
        export_on_ray(recipe, rows, outcome.last, encoder)
    else:
        export(recipe, rows, outcome.last, encoder)
    return replace(outcome, encoder=encoder)


def _train_here(job: Job) -> TrainOutcome:
    if "://" in job.run:
        raise TrainError(f"{job.run}: without workers the run needs a local folder")
    store = checkpoint.LocalStore(Path(job.run) / ALONE, job.recipe.train.keep_checkpoints)
    ended = work(job, store, store.last(), num_threads=torch.get_num_threads())
    if ended.error:
        raise TrainError(ended.error)
    best, last = store.best(), store.last()
    if best is None or last is None:
        raise TrainError(f"{job.run}: no checkpoint was written; set train.steps to 1 or more")
    return _outcome(job, ended, str(best), str(last), checkpoint.read_state(best).metrics)


def _outcome(
    job: Job, ended: Ended, best: str, last: str, metrics: dict[str, float]
) -> TrainOutcome:
    logs = artifacts.join(job.run, LOGS)
    return TrainOutcome(ended.step, ended.stopped, metrics, best, last, logs, None)


def work(
    job: Job,
    store: checkpoint.Store,
    resumed: Path | None,
    num_threads: int,
    measure: loop.Measure | None = None,
    notice: Callable[[], bool] = lambda: False,
) -> Ended:
    """What one rank does. Errors that would come again are returned, so that nobody retries.

    Args:
        store: where checkpoints go.
        resumed: the checkpoint to start from.
        num_threads: of this process.
        measure: see loop.run.
        notice: true when a checkpoint is to be saved, though none is due.
    """
    torch.set_num_threads(num_threads)
    if not torch.cuda.is_available():
        keep_freed_memory()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    recipe, config = job.recipe, job.recipe.train
    log: MetricLog | None = None
    try:
        split = open_rows(job.rows, recipe.kind, "train")
        loaders = max(num_threads - 1, 1)
        stream = RowStream(
            split,
            recipe.collate,
            batch_size=config.batch_size // world,
            seed=config.seed,
            rank=rank,
            world=world,
            threads=loaders,
        )
        version = artifacts.read_manifest(job.rows, recipe.kind).version
        data = {"rows": split.num_rows, "fingerprint": f"{version} {split.fingerprint}"}
        heldout = None if job.aside else held_out(recipe, job.rows, rank, world, loaders)
        engine = build_engine(recipe, job.rows)
        start = 0
        if resumed is not None:
            start = _restore(resumed, engine, recipe, data)
        if rank == 0:
            forget_figures(job.run, start)
            log = _log(job, start)
        with watch_stop(job.run, rank) as stop:
            outcome = loop.run(
                recipe,
                engine,
                stream,
                heldout,
                store,
                log,
                data=data,
                start_step=start,
                stop=stop,
                save=notice,
                measure=measure,
                aside=job.aside,
            )
        return Ended(outcome.step, outcome.stopped, None)
    except (TrainError, StreamError, ConfigError, artifacts.ArtifactError) as error:
        return Ended(0, False, f"{error}")
    finally:
        if log is not None:
            log.close()


def _log(job: Job, step: int) -> MetricLog:
    logs, steps = artifacts.join(job.run, LOGS), job.recipe.train.steps
    return MetricLog(logs, step, steps, partial(new_figures, job.run))


def _restore(folder: Path, engine: Engine, recipe: Recipe[Any], data: dict[str, Any]) -> int:
    """checkpoint.restore's step; where one rank cannot, all raise what the first of them says."""
    errors: list[str | None] = [None] * engine.world
    step = 0
    try:
        step = checkpoint.restore(folder, engine, recipe, data).step
    except TrainError as error:
        errors[engine.rank] = f"{error}"
    if engine.world > 1:
        dist.all_gather_object(errors, errors[engine.rank])
    for error in errors:
        if error is not None:
            raise TrainError(error)
    return step


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    from ray import train as ray_train

    job: Job = config["job"]
    context = ray_train.get_context()
    threads = max(len(os.sched_getaffinity(0)) // context.get_local_world_size(), 1)
    found = ray_train.get_checkpoint()
    due = partial(loop.validates, job.recipe.train) if job.aside else lambda _: False
    store = RayStore(job.run, due)
    try:
        if found is None:
            ended = work(job, store, None, threads, notice=watch_notice())
        else:
            with found.as_directory() as folder:
                ended = work(job, store, Path(folder), threads, notice=watch_notice())
            if ended.error:  # from S3, `folder` is a copy that nobody else sees
                place = artifacts.join(job.run, Path(found.path).name)
                ended = replace(ended, error=ended.error.replace(folder, place))
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        ended = Ended(0, False, f"{error}")
    if ended.error and context.get_world_size() > 1:
        # other ranks may wait for this one in a collective: only a failed worker ends them
        raise TrainError(ended.error)
    return ended.__dict__


def _train_on_ray(
    job: Job,
    storage: str,
    name: str,
    workers: tuple[int, int],
    use_gpu: bool | None,
    max_failures: int,
) -> TrainOutcome:
    from ray import train as ray_train

    for setting, value in _SETTINGS.items():
        os.environ.setdefault(setting, value)
    # Ray's own 60 s are too short for a GPU node that is still booting. A group that may be smaller
    # is only tried anew with what is there when this is over
    os.environ.setdefault(_START_TIMEOUT, "60" if workers[0] < workers[1] else "600")
    if use_gpu is None:
        use_gpu = gpus() >= workers[1]
    forget_removed(job.run, aside=job.aside)
    trainer = _trainer(job, storage, name, workers, use_gpu, max_failures)
    try:
        with sigint_as_before():
            result = trainer.fit()
    except ray_train.TrainingFailedError as error:
        raise TrainError(reason(error)) from error
    except SystemExit as stop:
        if stop.code not in (0, 1):  # of Ctrl-C Ray's handler makes 0, and its ray.get 1
            raise
        raise KeyboardInterrupt from stop
    ended = Ended(**cast(dict[str, Any], result.return_value))
    if ended.error:
        raise TrainError(ended.error)
    if job.aside:
        _log(job, ended.step).close()  # with the validations that ended after the workers
    if result.checkpoint is None:
        raise TrainError(f"{job.run}: no checkpoint was written; set train.steps to 1 or more")
    scored = [
        (metrics[checkpoint.SCORE], found, metrics)
        for found, metrics in result.best_checkpoints or []
        if checkpoint.SCORE in metrics
    ]
    best, metrics = result.checkpoint, dict[str, float]()
    if scored:
        _, best, metrics = min(scored, key=lambda entry: entry[0])
    metrics = {k: v for k, v in metrics.items() if k.startswith("validation/")}
    scheme = storage.partition("://")[0] + "://" if "://" in storage else ""
    return _outcome(job, ended, scheme + best.path, scheme + result.checkpoint.path, metrics)


def _trainer(
    job: Job,
    storage: str,
    name: str,
    workers: tuple[int, int],
    use_gpu: bool,
    max_failures: int,
) -> TorchTrainer:
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    files, path = artifacts.filesystem(storage)
    fewest, most = workers
    aside = None
    if job.aside:
        aside = beside(job.recipe, job.rows, job.run, spare_gpu(use_gpu, most), most)
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        validation_config=aside,
        scaling_config=ray_train.ScalingConfig(
            num_workers=workers if fewest < most else most, use_gpu=use_gpu
        ),
        run_config=ray_train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=files,
            worker_runtime_env={"env_vars": {} if use_gpu else ONE_ARENA},
            failure_config=ray_train.FailureConfig(max_failures=max_failures),
            callbacks=[end_at_once()],
            checkpoint_config=ray_train.CheckpointConfig(
                num_to_keep=job.recipe.train.keep_checkpoints + 1,
                checkpoint_score_attribute=SCORE,
                checkpoint_score_order="max",
            ),
        ),
    )
