"""Which trials go on, and in which order trials come: the two ends where Tune asks us."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune.space import Space, propose
from tune.trial import FIGURE, STEP
from tune.trials import TrialRecord, Trials

_REDUCTION = 3  # of the trials that reach a rung, one in three goes on
_FIRST_RUNG = 9  # at the first validation after this part of the steps


class Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020), told of all earlier reports.

    Trial 0, the recipe as it is, always runs to the end: it is what others are compared with.
    Trials are known by their number, which stays the same when a search goes on.

    Args:
        steps: that a trial runs at most.
        trials: where it is written that a trial was stopped.
    """

    def __init__(self, steps: int, trials: Trials) -> None:
        super().__init__(
            time_attr=STEP,
            metric=FIGURE,
            mode="max",
            max_t=steps,
            grace_period=max(1, steps // _FIRST_RUNG),
            reduction_factor=_REDUCTION,
            stop_last_trials=False,
        )
        self._steps, self._trials = steps, trials
        for record in trials.all():
            trial = SimpleNamespace(trial_id=record.number)
            super().on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
            for step, figure in record.figures:
                super().on_trial_result(None, trial, {STEP: step, FIGURE: figure})  # pyright: ignore[reportArgumentType]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:  # noqa: ARG002
        return True  # they are those of __init__

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        decision = super().on_trial_result(tune_controller, _numbered(trial), result)
        if decision != TrialScheduler.STOP or not number or result[STEP] >= self._steps:
            return TrialScheduler.CONTINUE
        self._trials.update(number, state="stopped")
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        pass  # all that it reported is known

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        pass  # what is stopped or failed stays in its rungs


def _numbered(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["number"])


class Proposals(Searcher):
    """First the trials that are not done, then the recipe as it is, then what Optuna proposes.

    Args:
        space: what is tuned.
        trials: the records there are; those of new trials are written before they start.
    """

    def __init__(self, space: Space, trials: Trials) -> None:
        super().__init__(metric=FIGURE, mode="max")
        self._space, self._trials = space, trials
        self._unfinished = [one.number for one in trials.all() if one.state == "running"]

    def suggest(self, trial_id: str) -> dict[str, Any]:  # noqa: ARG002
        if self._unfinished:
            return {"number": self._unfinished.pop(0)}
        records = self._trials.all()
        taken = {one.number for one in records}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        values = propose(self._space, records) if number else {}
        self._trials.write(TrialRecord(number=number, values=values))
        return {"number": number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass  # the records say it

    def save(self, checkpoint_path: str) -> None:
        pass  # records are what a search goes on from

    def restore(self, checkpoint_path: str) -> None:
        pass
