"""The one training loop. It knows no Ray and no DeepSpeed, only an engine and a stream of rows.

A step takes a batch, draws its random inputs, leaves the gradient (rec.train.gradient), lets
the engine step and logs; every so often it validates and saves. The step number is all of the
loop's state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from rec.contract import ItemEncoder
from rec.train import checkpoint
from rec.train.engine import Engine, TrainError
from rec.train.gradient import Rows, Sums, backpropagate, derive, evaluate
from rec.train.metrics import MetricLog, collapse_statistics, memory_mb
from rec.train.recipe import Recipe, TrainConfig
from rec.train.schedule import lr_factor

_STEP, _TRANSFORM, _VALIDATION = range(3)  # what a random number is for
_COLLAPSE_ROWS = 128  # item vectors that the collapse statistics look at


Measure = Callable[[Engine], dict[str, float]]
B = TypeVar("B", bound=Rows)
B_co = TypeVar("B_co", bound=Rows, covariant=True)


class Stream(Protocol[B_co]):
    """This rank's training batches; batch i is a function of i alone."""

    def batches(self, start_step: int = 0) -> Iterator[B_co]: ...


class HeldOut(Protocol[B_co]):
    """This rank's part of the held-out rows, in as many batches as every rank has."""

    @property
    def num_rows(self) -> int: ...  # over all ranks
    def __iter__(self) -> Iterator[B_co]: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `stopped` means on request, be it in the last step; whether steps are left
    is for `step` to say."""

    step: int
    stopped: bool
    metrics: dict[str, float]  # the last record


def validate(engine: Engine, recipe: Recipe[B], heldout: HeldOut[B]) -> dict[str, float]:
    """Mean of every term over the held-out rows, each seen once, with fixed random inputs."""
    generator = torch.Generator(engine.device)
    sums: Sums | None = None
    rows = 0
    engine.module.eval()
    for i, batch in enumerate(heldout):
        rows += len(batch)
        seed = derive(recipe.train.seed, _VALIDATION, engine.rank, i)
        batch = recipe.transform(batch.to(engine.device), generator.manual_seed(seed))
        found = evaluate(engine, recipe.weights, batch, recipe.train.micro_batches, seed)
        if sums is None:
            sums = found
        else:
            sums.values += found.values
    engine.module.train()
    seen = torch.tensor(rows, device=engine.device)
    if engine.world > 1:
        dist.all_reduce(seen)
    if sums is None or int(seen) != heldout.num_rows:
        raise TrainError(f"validation saw {int(seen)} of {heldout.num_rows} held-out rows")
    return {f"validation/{name}": value for name, value in sums.means().items()}


def _any_rank(flags: Sequence[bool], engine: Engine) -> list[bool]:
    """Which of the flags are true on any rank."""
    if engine.world == 1:
        return list(flags)
    values = torch.tensor([float(flag) for flag in flags], device=engine.device)
    dist.all_reduce(values)
    return [bool(value) for value in values.tolist()]


def _check_finite(step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainError(
                f"step {step}: {name} is {value}. Nothing of this step was saved; in another "
                "--out, lower train.learning_rate or train.max_grad_norm, or use fp32"
            )


def validates(train: TrainConfig, step: int) -> bool:
    """Whether a validation is due after `step` steps."""
    return step % train.validate_every == 0 or step == train.steps


def check(recipe: Recipe[Any], world: int) -> None:
    """Raise TrainError where the engine is not for as many ranks, the batch cannot be cut evenly
    into ranks and micro-batches, or no loss counts."""
    train = recipe.train
    if not any(recipe.weights.values()):
        names = ", ".join(f"weights.{name}" for name in recipe.weights)
        raise TrainError(f"every loss weighs 0, so nothing would be learned; raise one of {names}")
    if train.engine == "plain" and world > 1:
        raise TrainError(
            f"engine 'plain' is one process, this run has {world}; set train.engine to 'ddp' or "
            "'deepspeed'"
        )
    if train.batch_size % (world * train.micro_batches):
        raise TrainError(
            f"train.batch_size {train.batch_size} must be a multiple of workers x "
            f"train.micro_batches = {world} x {train.micro_batches}"
        )


class Clock:
    """Rows a second and the share of time that the loop waited for data, between two records."""

    def __init__(self) -> None:
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def waiting(self, since: float) -> None:
        self._waited += time.perf_counter() - since
        self._steps += 1

    def read(self, batch_size: int) -> dict[str, float]:
        passed = time.perf_counter() - self._start
        values = {
            "rows_per_s": self._steps * batch_size / passed,
            "data_wait": self._waited / passed,
        }
        self.__init__()
        return values


def run(
    recipe: Recipe[B],
    engine: Engine,
    stream: Stream[B],
    heldout: HeldOut[B] | None,
    store: checkpoint.Store,
    log: MetricLog | None,
    *,
    data: Mapping[str, Any],
    start_step: int = 0,
    stop: Callable[[], bool] = lambda: False,
    save: Callable[[], bool] = lambda: False,
    measure: Measure | None = None,
    aside: bool = False,
) -> Outcome:
    """Train to train.steps, or to the end of the step in which any rank's `stop()` is true; where
    any rank's `save()` is, with a checkpoint of that step.

    Args:
        data: names the rows, for the checkpoints.
        log: given on rank 0 alone.
        start_step: steps that the engine's restored state has behind it.
        measure: gives more figures of each validation; called on every rank.
        aside: others validate the checkpoints, so there is one of each step at which it is due.

    Raises:
        TrainError: a loss, a validation or the gradient is not finite, or the parts do not fit
            together.
    """
    train = recipe.train
    check(recipe, engine.world)
    generator = torch.Generator(engine.device)
    engine.module.train()
    batches = stream.batches(start_step)
    clock, record, step, stopping = Clock(), dict[str, float](), start_step, False
    while step < train.steps and not stopping:
        waiting = time.perf_counter()
        batch = next(batches)
        clock.waiting(waiting)
        seed = derive(train.seed, _TRANSFORM, step, engine.rank)
        batch = recipe.transform(batch.to(engine.device), generator.manual_seed(seed))
        seed = derive(train.seed, _STEP, step, engine.rank)
        sums = backpropagate(engine, recipe.weights, batch, train.micro_batches, seed)
        rate = lr_factor(step, train)
        norm = engine.step(rate)
        step += 1
        losses = {f"train/{name}": value for name, value in sums.means().items()}
        _check_finite(step, {**losses, "grad_norm": float(norm)})

        stopping, saving = _any_rank((stop(), save()), engine)
        ending = step == train.steps or stopping
        validated: dict[str, float] = {}
        record = {**losses, "lr": train.learning_rate * rate, "grad_norm": float(norm)}
        validating = validates(train, step)
        logging = step % train.log_every == 0 or ending or validating
        if logging:
            record |= clock.read(train.batch_size)
            record["memory_mb"] = memory_mb(engine.device)
        if validating or ending:
            record |= _collapse(engine, batch)  # a forward of its own
        if validating:
            if heldout is not None:
                validated = validate(engine, recipe, heldout)
            if measure is not None:
                validated |= measure(engine)
            _check_finite(step, validated)
        if log and logging:
            log.write(step, {**record, **validated})
        due = step % train.checkpoint_every == 0 or (aside and validating)
        if due or ending or validated or saving:
            _save(store, engine, recipe, step, data, validated)
            if log:
                log.flush()
        record |= validated
    return Outcome(step, stopping, record)


def _save(
    store: checkpoint.Store,
    engine: Engine,
    recipe: Recipe[Any],
    step: int,
    data: Mapping[str, Any],
    metrics: dict[str, float],
) -> None:
    def write(folder: Path) -> None:
        checkpoint.write(folder, engine, recipe, step, data, metrics)

    store.save(step, metrics, write)


def _collapse(engine: Engine, batch: Rows) -> dict[str, float]:
    if not isinstance(engine.module, ItemEncoder):
        return {}
    engine.module.eval()
    with torch.no_grad():  # on every rank, as engines may communicate in a forward
        vectors = engine.call("encode_item", batch.rows(0, min(len(batch), _COLLAPSE_ROWS)))
    engine.module.train()
    return collapse_statistics(vectors)
