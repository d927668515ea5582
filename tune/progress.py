"""What a search says while it runs, and its table at the end."""

# pyright: reportIncompatibleMethodOverride=false
# Tune passes all by name: what is not used here is left in `info`
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune import Callback

from tune.space import assignments
from tune.trial import FIGURE, STEP
from tune.trials import TrialRecord, Trials, best


class Progress(Callback):
    """A line a validation and a line a trial that ends.

    Args:
        trials: the records.
        num_trials: that this run is to end.
    """

    def __init__(self, trials: Trials, num_trials: int) -> None:
        self._trials, self._num_trials, self._ended = trials, num_trials, 0

    def on_trial_start(self, trial: Any, **info: Any) -> None:  # noqa: ARG002
        record = self._trials.read(trial.config["number"])
        where = f"on from step {record.step}: " if record.figures else ""
        print(f"trial {record.number}: {where}{_settings(record)}", flush=True)

    def on_trial_result(self, trial: Any, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002
        number = trial.config["number"]
        print(f"trial {number}: step {result[STEP]}  {FIGURE} {result[FIGURE]:.5f}", flush=True)

    def on_trial_complete(self, trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._ended += 1
        records = self._trials.all()
        record = self._trials.read(trial.config["number"])
        found = best(records)
        so_far = "" if found is None else f"; best so far: trial {found.number}, {found.figure:.5f}"
        text = f"{record.state}{f', {record.error}' if record.error else ''}"
        print(
            f"trial {record.number}: {text} ({self._ended} of {self._num_trials} ended{so_far})",
            flush=True,
        )

    def on_trial_error(self, trial: Any, **info: Any) -> None:  # noqa: ARG002
        why = "its process was lost, or a disk or network failed"
        print(f"trial {trial.config['number']}: not done, {why}", flush=True)


def table(records: Sequence[TrialRecord]) -> str:
    """One line a trial."""
    lines = [f"{'trial':>5}  {'state':8}  {'step':>7}  {FIGURE:>8}  settings"]
    for one in records:
        figure = "" if one.figure is None else f"{one.figure:.5f}"
        line = f"{one.number:>5}  {one.state:8}  {one.step:>7}  {figure:>8}  {_settings(one)}"
        lines.append(f"{line}  [{one.error}]" if one.error else line)
    return "\n".join(lines)


def _settings(record: TrialRecord) -> str:
    values = {
        path: float(f"{value:.3g}") if isinstance(value, float) else value
        for path, value in record.values.items()
    }
    return " ".join(assignments(values)) or "the recipe as it is"
