"""One trial: the loop that jobs.train runs, with the plain engine, in the trial's own actor.

There is no trainer inside the trial: one would hold processes and slots of its own, which Tune
does not know of when it stops the trial.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rec.batch import SequenceBatch
from rec.config import Config
from rec.contract import Scorer
from rec.metrics.ranking import ndcg
from rec.runtime.ranking_data import read_ranked_items
from rec.runtime.ranking_judge import Judge
from rec.runtime.stop import clear_stop
from rec.runtime.train import Ended, Job, work
from rec.train import checkpoint
from rec.train.engine import Engine
from rec.train.recipe import Recipe
from tune.space import assignments
from tune.trials import Trials

STEP, FIGURE = "step", "NDCG@10"
_LOGGED = f"validation/{FIGURE}"
_MAX_USERS = 5000  # validation rows judged, as many as evaluation tunes its baselines on


@dataclass(frozen=True)
class Task:
    """What every trial is told."""

    recipe: Recipe[Any]
    rows: str
    out: str


def run_trial(config: dict[str, Any], *, task: Task) -> None:
    """Run trial config["number"] to its last step, or on from its last checkpoint, and report.

    An error ends it as failed: the same would come again. A process that is lost leaves it as
    running, and whoever runs it next goes on from the checkpoint; so does a disk, network or store
    that fails, and one that was asked to stop by a file "stop" in its folder.

    Raises:
        OSError: one did, which says nothing about the trial; Tune then tries again.
    """
    from ray import tune

    trials, number = Trials(task.out), config["number"]

    def report(step: int, figure: float) -> None:
        tune.report({STEP: step, FIGURE: figure})

    try:
        ended = train_trial(task, trials, number, report)
    except OSError:
        raise
    except Exception as broken:  # whatever it is, other trials go on
        traceback.print_exc()
        ended = Ended(0, False, f"{type(broken).__name__}: {broken}")
    if ended.error:
        trials.update(number, state="failed", error=ended.error)
    elif not ended.stopped:
        trials.update(number, state="finished")


def train_trial(
    task: Task, trials: Trials, number: int, report: Callable[[int, float], None]
) -> Ended:
    """Train a trial to its last step, until its folder holds a file "stop", or until `report`
    raises.

    Args:
        report: called with the step and NDCG@10 of each validation, once its checkpoint is kept.

    Returns:
        How it ended; the error is one that the loop has a message for.
    """
    values = trials.read(number).values
    recipe = cast(Recipe[Any], cast(Config, task.recipe).override(assignments(values)))
    folder = trials.folder(number)
    clear_stop(str(folder))
    kept = checkpoint.LocalStore(folder / "checkpoints", keep=1)
    store = _Reporting(kept, trials, number, report)
    last = kept.last()
    if last is not None:
        store.again(checkpoint.read_state(last))
    job = Job(recipe, task.rows, str(folder))
    return work(job, store, last, num_threads=1, measure=_Validation(task.rows))


class _Reporting:
    """Checkpoints of a trial; a validated one is told to the record, then to Tune, which may end
    the trial there."""

    def __init__(
        self,
        kept: checkpoint.LocalStore,
        trials: Trials,
        number: int,
        report: Callable[[int, float], None],
    ) -> None:
        self._kept, self._trials, self._number, self._report = kept, trials, number, report

    def save(self, step: int, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        self._kept.save(step, metrics, write)
        if _LOGGED in metrics:
            self._tell(step, metrics[_LOGGED])

    def again(self, state: checkpoint.State) -> None:
        """Tell of the checkpoint that the trial goes on from: it may have been lost on the way."""
        if _LOGGED in state.metrics:
            self._tell(state.step, state.metrics[_LOGGED])

    def _tell(self, step: int, figure: float) -> None:
        before = [one for one in self._trials.read(self._number).figures if one[0] < step]
        self._trials.update(self._number, figures=(*before, (step, figure)))
        self._report(step, figure)


class _Validation:
    """NDCG@10 of a model on validation rows, by ranking all items: losses of unlike temperatures,
    say, cannot be compared."""

    def __init__(self, rows: str) -> None:
        items = read_ranked_items(rows)
        self._judge = Judge.of(rows, "heldout", items, (10,), max_users=_MAX_USERS)

    def __call__(self, engine: Engine) -> dict[str, float]:
        engine.module.eval()
        with torch.no_grad():  # in fp32, as an exported encoder is judged
            ranks = self._judge.ranks(_OnDevice(engine.module, engine.device))
        engine.module.train()
        return {_LOGGED: float(ndcg(ranks, 10).mean())}


class _OnDevice:
    """A model as a scorer of batches from wherever."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = cast(Scorer[SequenceBatch], model), device

    def score(self, batch: SequenceBatch) -> torch.Tensor:
        return self._model.score(batch.to(self._device))
